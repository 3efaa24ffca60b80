//! `copy.meta`: whose copy a directory holds, what it has promised, and under which ballots its redo was written. Pure.

use proto::{ClusterId, Epoch, Lsn, Timeline};

use crate::Durable;
use crate::ballot::{Ballot, Ballots};
use crate::quorum::{Adoption, CopyId, Keep};

/// The first line of `copy.meta`.
const FORMAT: &str = "replicator copy 2";

/// What `copy.meta` says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Meta {
    /// The volume's log that is kept here; zero when there is none yet.
    pub generation: u64,
    /// Where that log began, and the timeline and epoch there.
    pub begin: Durable,
    /// The highest ballot this copy has promised; nothing below it is taken.
    pub promised: Ballot,
    /// Under which ballots the redo was written.
    pub ballots: Ballots,
}

/// Why a `copy.meta` is none of this copy's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetaError {
    /// It is another cluster's.
    OtherCluster(ClusterId),
    /// It is another copy's: a disk in the wrong place.
    OtherCopy(String),
    /// It does not say what it should.
    Damaged(String),
}

impl Meta {
    /// What is to be on disk before a promise of `ballot` is given.
    ///
    /// # Errors
    /// The ballot promised already, when it is higher.
    pub fn promise(&self, ballot: Ballot) -> Result<Meta, Ballot> {
        if ballot < self.promised {
            return Err(self.promised);
        }
        Ok(Meta { promised: ballot, ..self.clone() })
    }

    /// What is to be on disk once the log was cut as `adoption` says.
    ///
    /// # Errors
    /// The ballot promised, when it is not the adoption's.
    pub fn adopt(&self, adoption: &Adoption) -> Result<Meta, Ballot> {
        if adoption.ballot != self.promised {
            return Err(self.promised);
        }
        let (generation, begin) = match adoption.keep {
            Keep::Before(_) => (self.generation, self.begin),
            Keep::Nothing(begin) => (adoption.generation, begin),
        };
        Ok(Meta { generation, begin, promised: self.promised, ballots: adoption.ballots.clone() })
    }

    /// The file's content.
    #[must_use]
    pub fn text(&self, cluster_id: ClusterId, copy: CopyId) -> String {
        let Meta { generation, begin, promised, ballots } = self;
        let mut text = format!(
            "{FORMAT}\ncluster {cluster_id}\ncopy {copy}\ngeneration {generation}\nbegin {} {} {}\npromised {promised}\n",
            begin.lsn, begin.timeline, begin.epoch
        );
        for (ballot, lsn) in ballots.entries() {
            text += &format!("ballot {ballot} {lsn}\n");
        }
        let crc = crc32c::crc32c(text.as_bytes());
        text + &format!("crc {crc:08x}\n")
    }

    /// Reads the file's content.
    ///
    /// # Errors
    /// When it is damaged, or of another cluster or copy.
    pub fn parse(text: &str, cluster_id: ClusterId, copy: CopyId) -> Result<Meta, MetaError> {
        let bad = |what: &str| MetaError::Damaged(what.to_owned());
        let (body, crc) = text.rsplit_once("crc ").ok_or_else(|| bad("it has no checksum"))?;
        if format!("{:08x}", crc32c::crc32c(body.as_bytes())) != crc.trim() {
            return Err(bad("it does not match its checksum"));
        }
        let mut lines = body.lines().peekable();
        if lines.next() != Some(FORMAT) {
            return Err(bad(&format!("it is not of the format '{FORMAT}'")));
        }
        let mut field = |name: &str| {
            let value = lines.next().and_then(|line| line.strip_prefix(name)?.strip_prefix(' '));
            value.ok_or_else(|| bad(&format!("it lacks '{name}'")))
        };
        let found: ClusterId = field("cluster")?.parse().map_err(|_| bad("its cluster is no cluster id"))?;
        if found != cluster_id {
            return Err(MetaError::OtherCluster(found));
        }
        let name = field("copy")?;
        if name != copy.to_string() {
            return Err(MetaError::OtherCopy(name.to_owned()));
        }
        let generation = field("generation")?.parse().map_err(|_| bad("its generation is no number"))?;
        let begin = position(field("begin")?).ok_or_else(|| bad("its beginning is no position"))?;
        let promised = field("promised")?.parse().map_err(|e: String| bad(&e))?;
        let mut entries = Vec::new();
        for line in lines {
            let entry = line.strip_prefix("ballot ").and_then(|rest| {
                let (ballot, lsn) = rest.split_once(' ')?;
                Some((ballot.parse().ok()?, lsn.parse::<Lsn>().ok()?))
            });
            entries.push(entry.ok_or_else(|| bad("a line is no ballot"))?);
        }
        let ballots = Ballots::new(entries).ok_or_else(|| bad("its ballots do not ascend"))?;
        Ok(Meta { generation, begin, promised, ballots })
    }
}

fn position(text: &str) -> Option<Durable> {
    let [lsn, timeline, epoch] = text.split(' ').collect::<Vec<_>>()[..] else { return None };
    let (timeline, epoch) = (Timeline(timeline.parse().ok()?), Epoch(epoch.parse().ok()?));
    Some(Durable { lsn: lsn.parse().ok()?, timeline, epoch })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_and_refuses_what_is_not_its_own() {
        let mut meta = Meta {
            generation: 3,
            begin: Durable { lsn: Lsn(16), timeline: Timeline(2), epoch: Epoch(4) },
            promised: Ballot { epoch: Epoch(4), opening: 9, writer: 7 },
            ballots: Ballots::default(),
        };
        meta.ballots.begin(Ballot { epoch: Epoch(1), opening: 2, writer: 8 }, Lsn(16));
        meta.ballots.begin(Ballot { epoch: Epoch(4), opening: 9, writer: 7 }, Lsn(0x1_0000_0000));
        let (cluster, copy) = (ClusterId([5; 16]), CopyId(2));
        let text = meta.text(cluster, copy);
        assert_eq!(Meta::parse(&text, cluster, copy), Ok(meta));
        assert_eq!(
            Meta::parse(&text, ClusterId([6; 16]), copy),
            Err(MetaError::OtherCluster(cluster)),
            "another cluster's"
        );
        assert_eq!(Meta::parse(&text, cluster, CopyId(3)), Err(MetaError::OtherCopy("b1".into())));
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            let damaged = String::from_utf8_lossy(&bytes).into_owned();
            assert!(
                Meta::parse(&damaged, cluster, copy).is_err() || damaged.trim() == text.trim(),
                "byte {at}"
            );
        }
    }
}
