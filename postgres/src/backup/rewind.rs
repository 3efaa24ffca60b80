//! Rewinds a data directory to before what was cut off, with PostgreSQL's own pg_rewind: only pages that redo
//! since then has changed are read from the other server.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use proto::Lsn;

use crate::below::Below;
use crate::instance::control::ClusterState;
use crate::instance::{Instance, InstanceError, Part, Stop, at, in_conninfo};
use crate::sockets::{REWIND_PORT, SUPERUSER};
use crate::tablespaces::{LINKS, is_of_postgresql};
use crate::wal::segment::is_segment;

impl Instance {
    /// Has a standby that was killed end its recovery cleanly, with the redo that it has: pg_rewind lets a
    /// writer recover by itself, and cannot do that with a standby. Does nothing for others.
    ///
    /// # Errors
    /// When it does not start or stop within `patience` each. It is stopped then, if it can be.
    pub async fn settle_standby(&self, patience: Duration) -> Result<(), InstanceError> {
        if !self.is_standby() || self.control_data()?.state != ClusterState::InArchiveRecovery {
            return Ok(());
        }
        self.configure(Part::Standby)?;
        let started = self.start(patience).await;
        let stopped = self.stop(if started.is_ok() { Stop::Fast } else { Stop::Immediate }, patience).await;
        started.and(stopped)
    }

    /// Whether this was a standby that somebody promoted, not [`Instance::promote`], and that ended before it
    /// had begun a timeline of its own. Recovered as a writer it would write on the one that it followed, and
    /// look as if it had nothing that is to be rewound.
    ///
    /// # Errors
    /// When the control file cannot be read.
    pub fn is_promoted_by_another(&self) -> Result<bool, InstanceError> {
        let halfway = !self.is_standby() && self.promoting()?.is_none();
        Ok(halfway && self.control_data()?.state == ClusterState::InArchiveRecovery)
    }

    /// The command that rewinds the data of the instance, which does not run, to where they parted from the
    /// server at [`REWIND_PORT`] in the directory of its sockets. Redo that is not in `pg_wal` any more is
    /// taken from `segments`.
    ///
    /// # Errors
    /// When the configuration cannot be written.
    pub fn rewind(&self, segments: &Path) -> Result<Command, InstanceError> {
        let options = self.options();
        // One that crashed as a writer is recovered as one first.
        self.configure(match self.is_standby() {
            true => Part::Standby,
            false => Part::Writer { synchronous: false },
        })?;
        self.disown_stale_locks()?;
        let restore = format!("cp \"{}/%f\" \"%p\"", segments.display());
        self.add_setting("restore_command", &restore)?;
        let of_major = self.installation().major.session_settings().iter();
        let of_major =
            of_major.map(|(name, value)| format!("-c {name}={value}")).collect::<Vec<_>>().join(" ");
        let server = format!(
            "host={} port={REWIND_PORT} user={SUPERUSER} dbname=postgres application_name=replicator_rewind options='{of_major}'",
            in_conninfo(&options.socket_dir.display().to_string())
        );
        let mut command = options.account.command(&self.installation().program("pg_rewind"));
        command.args(["--restore-target-wal", "--source-server", &server, "--target-pgdata"]);
        command.arg(&options.data_dir);
        Ok(command)
    }

    /// What is left to do when pg_rewind has succeeded; returns from where on the data need redo.
    ///
    /// # Errors
    /// When files cannot be read or removed.
    pub fn rewound(&self) -> Result<Lsn, InstanceError> {
        let (data, data_dir) = (self.data()?, &self.options().data_dir);
        // A slot of the time as a writer would keep redo for nobody.
        empty(&data, "pg_replslot").map_err(at(data_dir))?;
        let Some(content) = self.read_if_any("backup_label")? else {
            // It had nothing that the other one had not: it goes on from its last checkpoint.
            return self.control_data().map(|control| control.checkpoint_redo_lsn);
        };
        // The other one's redo came along, and may not be durable in this region yet: a standby never applies
        // what its volume does not have.
        let remove_segments = || {
            let wal = data.directory(Path::new("pg_wal"))?;
            let names = wal.names()?.into_iter().map(|entry| entry.name);
            for name in names.filter(|name| is_segment(&name.to_string_lossy())) {
                wal.remove_file(&name)?;
            }
            empty(&wal, "archive_status")
        };
        remove_segments().map_err(at(&data_dir.join("pg_wal")))?;
        label_start(&content).ok_or(InstanceError::ControlData("where the redo of the rewound data begins"))
    }
}

/// The list of files that a server answers pg_rewind with, without what a region is not to get from there.
///
/// WAL segments: it would have all of them sent, those included that were recycled and hold nothing yet:
/// easily more than all that has changed. A region has its redo from its volume.
///
/// Tablespaces that the region was not told of before, and has made no place for: pg_rewind would make the
/// very links that the server has, and write through them. They were made since, and redo brings them. Of
/// those that it was told of, what is not PostgreSQL's own.
#[derive(Debug, Default)]
pub struct Listing {
    /// The tablespaces that the region was told of.
    tablespaces: BTreeSet<u32>,
    /// The beginning of a message, or all of one that may name what is left out.
    held: Vec<u8>,
    /// So much of the present message is still to be passed on.
    passing: usize,
}

impl Listing {
    /// A message's tag and length, bytes.
    const HEADER_BYTES: usize = 5;

    /// No row that names such a file is longer, bytes: a link leads to a path of 1,023 at most.
    const ROW_BYTES_MAX: usize = 1536;

    /// The list for a region that was told of `tablespaces`.
    #[must_use]
    pub fn new(tablespaces: BTreeSet<u32>) -> Listing {
        Listing { tablespaces, ..Listing::default() }
    }

    /// Takes what the server sent next; appends what of it is to be passed on.
    pub fn pass(&mut self, mut sent: &[u8], out: &mut Vec<u8>) {
        while !sent.is_empty() {
            if self.passing > 0 {
                let (now, later) = sent.split_at(self.passing.min(sent.len()));
                out.extend_from_slice(now);
                (self.passing, sent) = (self.passing - now.len(), later);
                continue;
            }
            let wanted = match self.length() {
                None => Self::HEADER_BYTES,
                Some(length) => length,
            };
            let (now, later) = sent.split_at((wanted - self.held.len()).min(sent.len()));
            self.held.extend_from_slice(now);
            sent = later;
            match self.length() {
                Some(length) if self.held.len() == length && self.is_left_out() => self.held.clear(),
                Some(length) if self.held.len() == length || !self.may_name_a_file(length) => {
                    self.passing = length - self.held.len();
                    out.append(&mut self.held);
                }
                _ => {}
            }
        }
    }

    /// How long the held message is, its tag included; none when that is not known yet.
    fn length(&self) -> Option<usize> {
        let length = u32::from_be_bytes(*self.held.get(1..)?.first_chunk()?);
        Some(1 + usize::try_from(length).unwrap_or(usize::MAX).max(4))
    }

    fn may_name_a_file(&self, length: usize) -> bool {
        self.held[0] == b'D' && length <= Self::ROW_BYTES_MAX
    }

    /// Whether the held message is a row whose first column is the path of what is left out.
    fn is_left_out(&self) -> bool {
        let first = || {
            let row = self.held.get(Self::HEADER_BYTES + 2..)?;
            let length = usize::try_from(u32::from_be_bytes(*row.first_chunk()?)).ok()?;
            std::str::from_utf8(row.get(4..)?.get(..length)?).ok()
        };
        self.held[0] == b'D' && first().is_some_and(|path| self.leaves_out(path))
    }

    fn leaves_out(&self, path: &str) -> bool {
        if let Some(name) = path.strip_prefix("pg_wal/") {
            return is_segment(name);
        }
        let mut parts = Path::new(path).iter();
        if parts.next() != Some(LINKS.as_ref()) {
            return false;
        }
        let Some(oid) = parts.next() else { return false };
        let is_known =
            oid.to_str().and_then(|oid| oid.parse().ok()).is_some_and(|oid| self.tablespaces.contains(&oid));
        !is_known || parts.next().is_some_and(|name| !is_of_postgresql(name))
    }
}

/// Where redo begins, in a backup_label.
fn label_start(content: &str) -> Option<Lsn> {
    content.lines().find_map(|line| {
        let rest = line.strip_prefix("START WAL LOCATION:")?;
        rest.split_whitespace().next()?.parse().ok()
    })
}

/// Removes what is in a directory of `data`, if that is there.
fn empty(data: &Below, name: &str) -> std::io::Result<()> {
    match data.directory(Path::new(name)) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        directory => directory?.empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn row(columns: &[&[u8]]) -> Vec<u8> {
        let mut body = u16::try_from(columns.len()).unwrap().to_be_bytes().to_vec();
        for column in columns {
            body.extend(u32::try_from(column.len()).unwrap().to_be_bytes());
            body.extend(*column);
        }
        message(b'D', &body)
    }

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
        [&[tag][..], &length, body].concat()
    }

    #[test]
    fn what_a_region_is_not_to_get_is_not_listed_and_all_else_is_passed_on_however_it_comes() {
        let (page, far) = (vec![b'D'; 9000], [b'/'; 1023]);
        let messages: [(Vec<u8>, bool); 15] = [
            (message(b'R', &[0; 4]), true),
            (row(&[b"base/1/1259", b"8192", b"f", b""]), true),
            (row(&[b"pg_wal/00000002.history", b"40", b"f"]), true),
            (row(&[b"pg_wal/000000020000000000000009", b"16777216", b"f"]), false),
            (row(&[b"pg_wal/000000020000000000000009.partial", b"16777216", b"f"]), false),
            (row(&[b"base/1/1259", b"\0\0\0\0", &page]), true),
            (row(&[b"pg_tblspc", b"4096", b"t"]), true),
            (row(&[b"pg_tblspc/7", b"4096", b"t", &far]), true),
            (row(&[b"pg_tblspc/7/PG_15_1/5/6", b"8192", b"f"]), true),
            (row(&[b"pg_tblspc/7/replicator.seeding", b"4096", b"t"]), false),
            (row(&[b"pg_tblspc/8", b"4096", b"t", &far]), false),
            (row(&[b"pg_tblspc/8/PG_15_1/5/6", b"8192", b"f"]), false),
            (row(&[b"pg_tblspc/other", b"0", b"f"]), false),
            (message(b'Z', b"I"), true),
            (message(b'n', b""), true),
        ];
        let all = messages.iter().flat_map(|(message, _)| message.clone()).collect::<Vec<u8>>();
        let wanted = messages.iter().filter(|(_, passes)| *passes);
        let wanted = wanted.flat_map(|(message, _)| message.clone()).collect::<Vec<u8>>();
        for pieces in [1, 3, 7, 100, 4096, all.len()] {
            let (mut listing, mut passed) = (Listing::new([7].into()), Vec::new());
            for piece in all.chunks(pieces) {
                listing.pass(piece, &mut passed);
            }
            assert!(passed == wanted, "in pieces of {pieces} bytes");
        }
    }

    proptest! {
        /// Whatever the server sends, in whatever pieces: nothing is made up, and little is held back.
        #[test]
        fn any_bytes_pass_or_are_left_out(
            sent in proptest::collection::vec(prop_oneof![Just(b'D'), Just(0_u8), any::<u8>()], 0..2000),
            piece in 1_usize..300,
        ) {
            let (mut listing, mut passed) = (Listing::default(), Vec::new());
            for (index, piece) in sent.chunks(piece).enumerate() {
                listing.pass(piece, &mut passed);
                prop_assert!(listing.held.len() <= Listing::ROW_BYTES_MAX, "piece {index}");
            }
            let mut rest = sent.iter();
            prop_assert!(passed.iter().all(|byte| rest.any(|other| other == byte)), "in the order in which it was sent");
        }
    }

    #[test]
    fn where_a_label_says_that_redo_begins() {
        let label =
            "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\nCHECKPOINT LOCATION: 0/2000060\n";
        assert_eq!(label_start(label), Some(Lsn(0x200_0028)));
        assert_eq!(label_start("CHECKPOINT LOCATION: 0/2000060\n"), None);
    }
}
