//! What an endpoint did, as numbers.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts of one endpoint, or of the sessions that other regions bring.
#[derive(Debug, Default)]
pub struct Tally {
    clients: AtomicU64,
    waiting: AtomicU64,
    opened: AtomicU64,
    refused: AtomicU64,
    cut: AtomicU64,
}

/// The counts at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Clients that are connected: those that wait included.
    pub clients: u64,
    /// Clients that wait for a PostgreSQL.
    pub waiting: u64,
    /// Sessions that were brought to a PostgreSQL.
    pub opened: u64,
    /// Clients that were turned away.
    pub refused: u64,
    /// Sessions that were cut off, because their writer was shut out.
    pub cut: u64,
}

impl Tally {
    /// The counts now.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let value = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Counts {
            clients: value(&self.clients),
            waiting: value(&self.waiting),
            opened: value(&self.opened),
            refused: value(&self.refused),
            cut: value(&self.cut),
        }
    }

    /// A place among at most `max` clients; none when all are taken.
    pub(super) fn enter(&self, max: u64) -> Option<Counted<'_>> {
        let taken = self.clients.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |clients| {
            (clients < max).then_some(clients + 1)
        });
        taken.ok().map(|_| Counted(&self.clients))
    }

    /// A client waits while this lives.
    pub(super) fn wait(&self) -> Counted<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Counted(&self.waiting)
    }

    pub(super) fn opened(&self) {
        self.opened.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn cut(&self) {
        self.cut.fetch_add(1, Ordering::Relaxed);
    }
}

/// One that is counted while this lives.
#[derive(Debug)]
pub(super) struct Counted<'a>(&'a AtomicU64);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_and_given_back() {
        let tally = Tally::default();
        let first = tally.enter(2).unwrap();
        let second = tally.enter(2).unwrap();
        assert!(tally.enter(2).is_none());
        drop(first);
        assert_eq!(tally.counts().clients, 1);
        drop((tally.enter(2).unwrap(), second));
        assert_eq!(tally.counts(), Counts::default());
    }
}
