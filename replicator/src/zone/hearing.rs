//! What a host of a region has heard of the region's head, and when.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::messages::NodeWord;
use runtime::clock::now;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::layout::write_durably;

/// How long any host of the region may take to answer: one that comes to listen meanwhile is found by trying
/// again rather than by waiting.
pub const ANOTHER: Duration = Duration::from_millis(700);

/// How often it is looked whether a head is silent.
const LOOK: Duration = Duration::from_millis(50);

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
}

/// What a host of a region has heard of the region's head.
#[derive(Debug)]
pub struct Hearing {
    /// How long a head must not have been heard before another host takes over.
    pub after: Duration,
    /// Where the last head is kept.
    path: PathBuf,
    heard: Mutex<Heard>,
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
        Hearing { after, path, heard: Mutex::new(heard) }
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A head has said this.
    pub fn note(&self, word: &NodeWord) {
        let head =
            LastHead { name: word.head.clone(), origin: word.origin.clone(), may_be_followed: word.may_lead };
        let is_new = {
            let mut heard = self.heard();
            let is_new = heard.last.as_ref() != Some(&head);
            let stood = heard.stood;
            let last = Some(head.clone());
            *heard = Heard { here: now(), before: Duration::ZERO, last, in_this_process: true, stood };
            is_new
        };
        if is_new && let Err(e) = self.keep(&head) {
            tracing::warn!("{}: {e}; the region's head is not known after a restart", self.path.display());
        }
    }

    fn keep(&self, head: &LastHead) -> std::io::Result<()> {
        write_durably(&self.path, &serde_json::to_vec_pretty(head)?)
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

    /// Returns once nothing was heard for [`Hearing::patience`], since this was asked or later.
    pub async fn until_silent(&self) {
        let begun = now();
        while self.silent_here().min(begun.elapsed()) < self.patience() {
            tokio::time::sleep(LOOK).await;
        }
    }
}
