//! What a host of a region has heard of the region's head, and when.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::messages::NodeWord;
use runtime::clock::now;
use tokio::time::Instant;

/// How long any host of the region may take to answer: one that comes to listen meanwhile is found by trying
/// again rather than by waiting.
pub const ANOTHER: Duration = Duration::from_millis(700);

/// How often it is looked whether a head is silent.
const LOOK: Duration = Duration::from_millis(50);

/// What was heard last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LastHead {
    /// Which host it is.
    pub name: String,
    /// What a copy of its data is a copy of; empty while it had none.
    pub origin: String,
    /// It goes by the promises of the copies, so that another host may take over.
    pub may_be_followed: bool,
}

/// What a host of a region has heard of the region's head since the process began.
#[derive(Debug)]
pub struct Hearing {
    /// How long a head must not have been heard before another host takes over.
    pub after: Duration,
    heard: Mutex<(Instant, Option<LastHead>)>,
}

impl Hearing {
    /// Nothing was heard yet.
    #[must_use]
    pub fn new(after: Duration) -> Hearing {
        Hearing { after, heard: Mutex::new((now(), None)) }
    }

    fn heard(&self) -> MutexGuard<'_, (Instant, Option<LastHead>)> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A head has said this.
    pub fn note(&self, word: &NodeWord) {
        let head =
            LastHead { name: word.head.clone(), origin: word.origin.clone(), may_be_followed: word.may_lead };
        *self.heard() = (now(), Some(head));
    }

    /// The head that was heard last.
    #[must_use]
    pub fn last(&self) -> Option<LastHead> {
        self.heard().1.clone()
    }

    /// How long no head was heard.
    #[must_use]
    pub fn silent(&self) -> Duration {
        self.heard().0.elapsed()
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
        while self.silent().min(begun.elapsed()) < self.patience() {
            tokio::time::sleep(LOOK).await;
        }
    }
}
