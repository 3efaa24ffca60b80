//! What a node says of itself, as those who work on its PostgreSQL note it.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use proto::RegionState;
use proto::messages::NodeReport;

use super::plan::Data;

/// What a node says of itself.
#[derive(Debug, Default)]
pub(super) struct Said {
    /// Why its PostgreSQL does not run, or what went wrong last; often empty.
    detail: Mutex<String>,
    pub(super) copying: AtomicBool,
    pub(super) copied_bytes: AtomicU64,
    pub(super) copying_bytes: AtomicU64,
    /// Of those copied, what was there already.
    pub(super) kept_bytes: AtomicU64,
    /// The connections on which its standby is fed.
    pub(super) fed: AtomicU32,
    /// Its PostgreSQL accepts connections, as far as whoever keeps it running knows.
    pub(super) runs: AtomicBool,
    /// Why it does not answer all the same; empty while it does.
    silent: Mutex<String>,
    /// The host that it has heard is to be the head next, once what is to be done here for that is done;
    /// empty where none is.
    moves_to: Mutex<String>,
}

impl Said {
    /// PostgreSQL does not run, or something went wrong, as `detail` says; nothing did where that is empty.
    pub(super) fn say(&self, detail: impl Into<String>) {
        *self.detail.lock().unwrap_or_else(PoisonError::into_inner) = detail.into();
    }

    /// PostgreSQL does not answer, as `why` says; it does where that is empty.
    pub(super) fn is_silent(&self, why: String) {
        *self.silent.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// The head moves to that host, and what is to be done here for it is done; to none where it is empty.
    pub(super) fn is_ready_for(&self, host: &str) {
        host.clone_into(&mut self.moves_to.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The report of a node that has `data`.
    pub(super) fn report(&self, data: Option<Data>) -> NodeReport {
        let detail = self.detail.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let state = match (&data, detail.is_empty()) {
            _ if self.copying.load(Ordering::Relaxed) => RegionState::Seeding,
            (None, _) => RegionState::Waiting,
            (Some(_), false) => RegionState::Starting,
            (Some(_), true) if !silent.is_empty() => RegionState::Silent,
            (Some(_), true) if self.fed.load(Ordering::Relaxed) > 0 => RegionState::Streaming,
            (Some(_), true) => RegionState::Disconnected,
        };
        NodeReport {
            state: state.to_string(),
            detail: if detail.is_empty() { silent } else { detail },
            seed_bytes: self.copied_bytes.load(Ordering::Relaxed),
            seed_total_bytes: self.copying_bytes.load(Ordering::Relaxed),
            seed_kept_bytes: self.kept_bytes.load(Ordering::Relaxed),
            origin: data.map(|data| data.origin.0).unwrap_or_default(),
            moves_to: self.moves_to.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}
