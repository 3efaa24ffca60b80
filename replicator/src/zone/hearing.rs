//! What a host of a region has heard of the region's head, and when.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::Lsn;
use proto::messages::NodeWord;
use runtime::clock::{boottime_us, now};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::layout::write_durably;

/// How long any host of the region may take to answer: one that comes to listen meanwhile is found by trying
/// again rather than by waiting.
pub const ANOTHER: Duration = Duration::from_millis(700);

/// How often it is looked whether a head is silent.
const LOOK: Duration = Duration::from_millis(50);

/// The wait before a head is looked for again that is about to begin, and for how long it is expected to be.
const SOON: Duration = Duration::from_millis(5);
const BEGINS: Duration = Duration::from_secs(1);

/// What was heard last; kept on disk, so that a host can take over that was started again meanwhile.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LastHead {
    /// Which host it is.
    pub name: String,
    /// What a copy of its data is a copy of; empty while it had none.
    pub origin: String,
    /// It goes by the promises of the copies, so that another host may take over.
    pub may_be_followed: bool,
    /// The host to which it has handed over, as its last word was; empty where it was not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub handed_over_to: String,
}

impl LastHead {
    /// Keeps it at `path`, durably.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep(&self, path: &Path) -> std::io::Result<()> {
        write_durably(path, &serde_json::to_vec_pretty(self)?)
    }
}

/// What a host of a region has heard of the region's head.
#[derive(Debug)]
pub struct Hearing {
    /// How long a head must not have been heard before another host takes over.
    pub after: Duration,
    /// Where the last head is kept.
    path: PathBuf,
    heard: Mutex<Heard>,
    /// The head that was heard last in this process has handed over, and no other was heard since.
    handed_over: watch::Sender<Option<HandedOver>>,
}

/// The last word of a head that has handed over to another host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HandedOver {
    /// To which.
    pub to: String,
    /// When the writer was stopped for that, as [`boottime_us`] tells it here. It took the word a moment to
    /// come, so it may have been that much earlier.
    pub stopped_at_us: u64,
    /// Where that writer's redo ends, all of which the other host has applied; none where there was none.
    pub ended_lsn: Option<Lsn>,
}

#[derive(Debug)]
struct Heard {
    /// The process began, or a head was heard in it.
    here: Instant,
    /// For how long none had been heard before.
    before: Duration,
    /// Whoever was heard last, in this process or an earlier one.
    last: Option<LastHead>,
    /// The head was heard in this process.
    in_this_process: bool,
    /// Another host was seen to stand.
    stood: Option<Instant>,
}

impl Hearing {
    /// Of a process whose host had not heard a head for `before` when it began; the last head is kept at
    /// `path`.
    #[must_use]
    pub fn new(after: Duration, path: PathBuf, before: Duration) -> Hearing {
        let last = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .inspect_err(|e| tracing::warn!("{}: {e}; it is written anew", path.display()))
                .ok(),
            // None was heard, or none that can be known.
            Err(_) => None,
        };
        let heard = Heard { here: now(), before, last, in_this_process: false, stood: None };
        Hearing { after, path, heard: Mutex::new(heard), handed_over: watch::Sender::default() }
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A head has said this.
    pub fn note(&self, word: &NodeWord) {
        let handed_over = word.stopped_us.map(|stopped_us| HandedOver {
            to: word.moves_to.clone(),
            stopped_at_us: boottime_us().saturating_sub(stopped_us),
            ended_lsn: word.ended_lsn.map(Lsn),
        });
        let head = LastHead {
            name: word.head.clone(),
            origin: word.origin.clone(),
            may_be_followed: word.may_lead,
            handed_over_to: handed_over.as_ref().map(|over| over.to.clone()).unwrap_or_default(),
        };
        let is_new = {
            let mut heard = self.heard();
            let is_new = heard.last.as_ref() != Some(&head);
            let stood = heard.stood;
            let last = Some(head.clone());
            *heard = Heard { here: now(), before: Duration::ZERO, last, in_this_process: true, stood };
            is_new
        };
        // Whoever waits for it goes first: that it is kept is for a restart.
        self.handed_over.send_if_modified(|known| {
            let changed = *known != handed_over;
            *known = handed_over;
            changed
        });
        if is_new && let Err(e) = head.keep(&self.path) {
            tracing::warn!("{}: {e}; the region's head is not known after a restart", self.path.display());
        }
    }

    /// Another host says that it stands.
    pub fn note_stands(&self) {
        self.heard().stood = Some(now());
    }

    /// How long ago another host was seen to stand.
    #[must_use]
    pub fn another_stands(&self) -> Option<Duration> {
        self.heard().stood.map(|stood| stood.elapsed())
    }

    /// The head that was heard last.
    #[must_use]
    pub fn last(&self) -> Option<LastHead> {
        self.heard().last.clone()
    }

    /// A head was heard since this process began.
    #[must_use]
    pub fn in_this_process(&self) -> bool {
        self.heard().in_this_process
    }

    /// How long no head was heard.
    #[must_use]
    pub fn silent(&self) -> Duration {
        let heard = self.heard();
        heard.before + heard.here.elapsed()
    }

    /// How long none had been heard when this process began, or since one was heard: none.
    #[must_use]
    pub fn before(&self) -> Duration {
        self.heard().before
    }

    /// How long no head was heard by this process.
    #[must_use]
    pub fn silent_here(&self) -> Duration {
        self.heard().here.elapsed()
    }

    /// How long a head may be silent before other hosts are looked at: the rest is for finding it again where
    /// it was only started again.
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.after * 3 / 4
    }

    /// What the head has said that was heard last in this process, if it has handed over.
    #[must_use]
    pub fn handed_over(&self) -> Option<HandedOver> {
        self.handed_over.borrow().clone()
    }

    /// Returns once a head hands over, from now on, or after `patience`.
    pub async fn until_handed_over(&self, patience: Duration) {
        let mut handed_over = self.handed_over.subscribe();
        let handing = async {
            // The sender lives as long as this.
            while handed_over.changed().await.is_ok() {
                if handed_over.borrow_and_update().is_some() {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(patience, handing).await;
    }

    /// The wait before a host of the region is looked for again, `usual` where none has handed over: then
    /// another one is about to listen.
    #[must_use]
    pub fn pause(&self, usual: Duration) -> Duration {
        match self.handed_over() {
            Some(_) if self.silent_here() < BEGINS => usual.min(SOON),
            Some(_) => usual.min(LOOK),
            None => usual,
        }
    }

    /// Returns once nothing was heard for [`Hearing::patience`], or the head has handed over, since this was
    /// asked or later.
    pub async fn until_silent(&self) {
        let begun = now();
        let silent = async {
            while self.silent_here().min(begun.elapsed()) < self.patience() {
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::select! {
            () = silent => {}
            () = self.until_handed_over(Duration::MAX) => {}
        }
    }
}
