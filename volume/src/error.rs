//! What goes wrong with a volume.

use proto::batch::BatchError;
use proto::timeline::TimelineError;
use proto::{ClusterId, Epoch, Lsn, Timeline};

use crate::ballot::Ballot;
use crate::key::KeyId;
use crate::quorum::CopyId;

/// Why the volume cannot do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum VolumeError {
    /// The disk failed.
    #[error("{path}: {what}")]
    Io {
        /// The file.
        path: String,
        /// What the system says.
        what: String,
    },
    /// A disk does not answer.
    #[error("the disk of copy {copy} has not answered for {seconds} s")]
    Hung {
        /// The copy.
        copy: CopyId,
        /// For how long, seconds.
        seconds: u64,
    },
    /// Another opening of this volume has taken over.
    #[error(
        "another daemon has taken over this region's volume with ballot {ballot}, above this one's {own}: nothing written \
         here becomes durable any more. Only one daemon may run for a region; stop the other, then start this one again"
    )]
    Deposed {
        /// The ballot that the copies have promised.
        ballot: Ballot,
        /// The ballot of this opening.
        own: Ballot,
    },
    /// Another host of the region has opened the volume, or tried to, since this one did.
    #[error(
        "another host of this region has taken its volume with ballot {ballot}: this one is the region's head no more"
    )]
    Overtaken {
        /// The ballot that a copy has promised.
        ballot: Ballot,
    },
    /// The directory belongs to another cluster.
    #[error("{path} is of cluster {found}, not of {expected}; give each cluster a data directory of its own")]
    OtherCluster {
        /// The file.
        path: String,
        /// The cluster found.
        found: ClusterId,
        /// The cluster expected.
        expected: ClusterId,
    },
    /// The directory holds another copy.
    #[error("{path} is of copy {found}, not of {expected}: a disk in another's place. Put each where it was")]
    OtherCopy {
        /// The file.
        path: String,
        /// The copy found.
        found: String,
        /// The copy expected.
        expected: CopyId,
    },
    /// A copy of another process does not answer.
    #[error("copy {copy} does not answer: {what}")]
    Unreached {
        /// Which.
        copy: CopyId,
        /// What went wrong.
        what: String,
    },
    /// No copy that is reached has the redo.
    #[error("no copy that can be reached has redo from {lsn}; `replicator volume status` shows them")]
    NoCopy {
        /// What was asked for.
        lsn: Lsn,
    },
    /// What is on disk is not what was written.
    #[error("{path} is damaged at byte {offset}: {what}")]
    Damaged {
        /// The file.
        path: String,
        /// Where.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// A later version of this program wrote it.
    #[error(
        "{path} is of format {version}, which a later version of this program wrote: start that one; nothing was changed"
    )]
    LaterVersion {
        /// The file.
        path: String,
        /// Its version.
        version: String,
    },
    /// Redo is sealed with a key that is not here.
    #[error(
        "redo from {begin_lsn} is sealed with key {key}, which is not among this region's keys: put it back into the file \
         that `encryption` names; `replicator keys list` shows which segments need it"
    )]
    NoKey {
        /// Which.
        key: KeyId,
        /// Where the redo begins.
        begin_lsn: Lsn,
    },
    /// What is sealed is not what was, or lies elsewhere, although its checksum is right.
    #[error(
        "redo from {begin_lsn} matches its checksum and does not open with its key: it did not rot, it was changed or moved here"
    )]
    Forged {
        /// Where the redo begins.
        begin_lsn: Lsn,
    },
    /// The cipher refuses: what is to be sealed is longer than any batch.
    #[error("redo from {begin_lsn} cannot be sealed")]
    Sealing {
        /// Where the redo begins.
        begin_lsn: Lsn,
    },
    /// A peer's segment comes in the name of another writer, or belongs to another log.
    #[error("the segment from {begin_lsn} is of another writer, or of another log")]
    OtherWriter {
        /// Where the segment begins.
        begin_lsn: Lsn,
    },
    /// A peer's segment came before the history of its timeline.
    #[error(
        "the segment from {begin_lsn} came before the history of timeline {timeline}; it is brought again"
    )]
    NoHistory {
        /// Where the segment begins.
        begin_lsn: Lsn,
        /// The timeline.
        timeline: Timeline,
    },
    /// A batch does not continue the log.
    #[error(
        "batch {begin_lsn} on timeline {timeline}, epoch {epoch}, does not continue the log, which ends at {end_lsn}: {why}"
    )]
    Discontinuous {
        /// The batch's beginning.
        begin_lsn: Lsn,
        /// The batch's timeline.
        timeline: Timeline,
        /// The batch's epoch.
        epoch: Epoch,
        /// The log's end.
        end_lsn: Lsn,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The redo asked for is gone.
    #[error("redo from {asked_lsn} was asked for, and the oldest kept is {horizon_lsn}")]
    HorizonPassed {
        /// What was asked for.
        asked_lsn: Lsn,
        /// The oldest kept.
        horizon_lsn: Lsn,
    },
    /// The redo asked for is not there yet.
    #[error("redo from {asked_lsn} was asked for, and the durable redo ends at {durable_lsn}")]
    Ahead {
        /// What was asked for.
        asked_lsn: Lsn,
        /// The end.
        durable_lsn: Lsn,
    },
    /// A stored batch is not one.
    #[error("stored redo: {0}")]
    Batch(#[from] BatchError),
    /// Stored redo does not decompress.
    #[error("stored redo: {0}")]
    Compression(String),
    /// A history file that cannot be used.
    #[error("timeline history: {0}")]
    History(#[from] TimelineError),
    /// An operator gave his word for a volume that has a log.
    #[error("the volume has found its redo: there is nothing to recover, and nothing was changed")]
    NothingToRecover,
    /// An operator gave his word, and too little is left.
    #[error(
        "{members} copies that remember the volume's redo have answered, and three must: bring back another copy's disk or zone; \
         nothing was changed"
    )]
    TooFewToRecover {
        /// How many have answered.
        members: usize,
    },
    /// The volume is closed.
    #[error("the volume is closed")]
    Closed,
}
