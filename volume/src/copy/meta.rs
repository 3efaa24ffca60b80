//! `copy.meta`: whose copy a directory holds, what it has promised, and under which ballots its redo was
//! written. Pure.

use proto::{ClusterId, Epoch, Lsn, Timeline};

use crate::Durable;
use crate::ballot::{Ballot, Ballots};
use crate::planted::{self, Bug};
use crate::quorum::{Adoption, CopyId, Held, Keep};

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
    /// How far this log was durable for certain, where redo before that could not be read any more; zero
    /// otherwise.
    pub proven_lsn: Lsn,
    /// How far this log went before damage was cut off, or may have gone in a copy that has forgotten
    /// everything; nothing where neither was.
    pub held: Held,
}

/// Redo that cannot be read any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost {
    /// How far the volume was durable, as it says.
    pub proven_lsn: Lsn,
    /// Where it ended.
    pub end_lsn: Lsn,
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
        let (generation, begin, may_have_held) = match adoption.keep {
            Keep::Before(_) => (self.generation, self.begin, Held::default()),
            Keep::Nothing { begin, held } => (adoption.generation, begin, held),
        };
        // What was lost is of one log. It stays lost: the adopted log may go before it is durable.
        let (proven_lsn, held) = match generation == self.generation {
            true => (self.proven_lsn, self.held),
            false => (Lsn::ZERO, Held::default()),
        };
        // One that begins anew says so until it has been filled: it may be the one that made redo durable.
        let held = if planted::is(Bug::ForgetsLost) { held } else { held.max(may_have_held) };
        let ballots = adoption.ballots.clone();
        Ok(Meta { generation, begin, promised: self.promised, ballots, proven_lsn, held })
    }

    /// What is to be on disk before the log is cut at `end_lsn`, where it cannot be read any more, although
    /// it went on: what says so is cut off with the rest. None when that is known.
    #[must_use]
    pub fn lose(&self, end_lsn: Lsn, lost: Lost) -> Option<Meta> {
        let Lost { proven_lsn, end_lsn: lost_lsn } = lost;
        let proven_lsn = if proven_lsn > end_lsn { proven_lsn.max(self.proven_lsn) } else { self.proven_lsn };
        let held = self.held.max(Held { ballot: self.ballots.written_at(lost_lsn), lsn: lost_lsn });
        let news = (proven_lsn, held) != (self.proven_lsn, self.held);
        (news && !planted::is(Bug::ForgetsLost)).then(|| Meta { proven_lsn, held, ..self.clone() })
    }

    /// The file's content.
    #[must_use]
    pub fn text(&self, cluster_id: ClusterId, copy: CopyId) -> String {
        let Meta { generation, begin, promised, ballots, proven_lsn, held } = self;
        let mut text = format!(
            "{FORMAT}\ncluster {cluster_id}\ncopy {copy}\ngeneration {generation}\nbegin {} {} {}\npromised {promised}\n",
            begin.lsn, begin.timeline, begin.epoch
        );
        if *proven_lsn > Lsn::ZERO {
            text += &format!("proven {proven_lsn}\n");
        }
        if *held != Held::default() {
            text += &format!("held {} {}\n", held.ballot, held.lsn);
        }
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
        let mut proven_lsn = Lsn::ZERO;
        if let Some(text) = lines.peek().and_then(|line| line.strip_prefix("proven ")) {
            proven_lsn = text.parse().map_err(|_| bad("its proof is no LSN"))?;
            lines.next();
        }
        let mut held = Held::default();
        if let Some(text) = lines.peek().and_then(|line| line.strip_prefix("held ")) {
            let (ballot, lsn) = text.split_once(' ').ok_or_else(|| bad("what it held has no end"))?;
            let lsn = lsn.parse().map_err(|_| bad("what it held ends at no LSN"))?;
            held = Held { ballot: ballot.parse().map_err(|e: String| bad(&e))?, lsn };
            lines.next();
        }
        let mut entries = Vec::new();
        for line in lines {
            let entry = line.strip_prefix("ballot ").and_then(|rest| {
                let (ballot, lsn) = rest.split_once(' ')?;
                Some((ballot.parse().ok()?, lsn.parse::<Lsn>().ok()?))
            });
            entries.push(entry.ok_or_else(|| bad("a line is no ballot"))?);
        }
        let ballots = Ballots::new(entries).ok_or_else(|| bad("its ballots do not ascend"))?;
        Ok(Meta { generation, begin, promised, ballots, proven_lsn, held })
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
    use proptest::prelude::*;

    /// A file with these words, and the checksum that belongs to them.
    fn sealed(body: &str) -> String {
        format!("{body}crc {:08x}\n", crc32c::crc32c(body.as_bytes()))
    }

    proptest! {
        #[test]
        fn any_text_is_a_meta_or_refused(
            lines in proptest::collection::vec(
                "(cluster|copy|generation|begin|promised|proven|held|ballot|crc)? ?[0-9a-f/. -]{0,40}\n?",
                0..12,
            ),
            text in ".{0,300}",
            with_head: bool,
        ) {
            let (cluster, copy) = (ClusterId([5; 16]), CopyId(2));
            let head = if with_head { format!("{FORMAT}\ncluster {cluster}\ncopy {copy}\n") } else { String::new() };
            let body = head + &lines.concat();
            if let Ok(meta) = Meta::parse(&sealed(&body), cluster, copy) {
                prop_assert_eq!(Meta::parse(&meta.text(cluster, copy), cluster, copy), Ok(meta));
            }
            let _ = (Meta::parse(&text, cluster, copy), Meta::parse(&sealed(&text), cluster, copy));
            let _ = text.parse::<Ballot>();
        }
    }

    #[test]
    fn round_trips_and_refuses_what_is_not_its_own() {
        let mut meta = Meta {
            generation: 3,
            begin: Durable { lsn: Lsn(16), timeline: Timeline(2), epoch: Epoch(4) },
            promised: Ballot { epoch: Epoch(4), opening: 9, writer: 7 },
            ballots: Ballots::default(),
            proven_lsn: Lsn(0x1_0000_0008),
            held: Held { ballot: Ballot { epoch: Epoch(2), opening: 3, writer: 5 }, lsn: Lsn(0x1_0000_0010) },
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
