//! Bugs put in on purpose, to show that the simulation finds them. Only the simulation plants one, for the
//! thread that runs a seed. A build of the product alone (`cargo build -p replicator`) is without the feature
//! `planted-bugs`, and there [`is`] is a constant; a build of the workspace asks a variable of the thread,
//! which nothing in the product sets.

/// A line of a decision that is taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Bug {
    /// None.
    #[default]
    None,
    /// A region whose volume is not open grants what it does not know.
    GrantsUnopened,
    /// A voter says that it has never answered a primary.
    ForgetsAnswers,
    /// A coordinator does not wait for the old primary's lease to end.
    WaitsForNoLease,
    /// A coordinator has the region that shall lead gather nothing.
    GathersNothing,
    /// A voter promises a number below one that it has promised.
    PromisesTwice,
    /// A voter accepts what it has promised not to.
    AcceptsOutbid,
    /// A proposer takes any of the promised records for the newest.
    TakesAnyRecord,
    /// A proposer needs one voter less than a majority.
    SmallMajority,
    /// A region leads as soon as it has accepted a record, agreed or not.
    LeadsUnagreed,
    /// The owner of a region's part does not look at the record again before a step that cannot be undone.
    LooksOnce,
    /// A region acknowledges before the promotion that makes it the primary is over.
    AcknowledgesEarly,
    /// A primary acknowledges whatever its lease says.
    NoLease,
    /// A voter forgets at a restart what it has promised and accepted.
    ForgetsPromises,
    /// A voter that has lost its memory answers at once, as if it had never answered.
    AnswersForgotten,
    /// A voter takes it from another one that a record is agreed.
    BelievesHints,
    /// A primary without a data directory makes a database whatever the record says.
    MakesEmpty,
    /// A hand-over does not wait until the other region has everything.
    HandsOverEarly,
    /// While the voters change, a majority of the new ones decides.
    CountsNewVotersOnly,
    /// A primary keeps its lease by the voters of its file.
    LeasesByFile,
    /// An order begins in whatever epoch it comes.
    BeginsLate,
    /// A failover that nobody ordered loses whatever there is to lose.
    LosesMore,
    /// Failovers that nobody ordered are not counted.
    FailsOverOften,
    /// A voter takes what no operator has signed.
    TakesUnsigned,
}

impl Bug {
    /// All of them but [`Bug::None`].
    pub const ALL: [Bug; 23] = [
        Bug::GrantsUnopened,
        Bug::ForgetsAnswers,
        Bug::WaitsForNoLease,
        Bug::GathersNothing,
        Bug::PromisesTwice,
        Bug::AcceptsOutbid,
        Bug::TakesAnyRecord,
        Bug::SmallMajority,
        Bug::LeadsUnagreed,
        Bug::LooksOnce,
        Bug::AcknowledgesEarly,
        Bug::NoLease,
        Bug::ForgetsPromises,
        Bug::HandsOverEarly,
        Bug::AnswersForgotten,
        Bug::MakesEmpty,
        Bug::BelievesHints,
        Bug::CountsNewVotersOnly,
        Bug::LeasesByFile,
        Bug::BeginsLate,
        Bug::LosesMore,
        Bug::FailsOverOften,
        Bug::TakesUnsigned,
    ];
}

#[cfg(feature = "planted-bugs")]
mod planted_here {
    use std::cell::Cell;

    use super::Bug;

    thread_local!(static PLANTED: Cell<Bug> = const { Cell::new(Bug::None) });

    /// Plants `bug` for this thread until the returned value is dropped.
    #[must_use]
    pub fn plant(bug: Bug) -> Planted {
        PLANTED.set(bug);
        Planted(())
    }

    /// A bug is planted while this lives.
    #[derive(Debug)]
    pub struct Planted(());

    impl Drop for Planted {
        fn drop(&mut self) {
            PLANTED.set(Bug::None);
        }
    }

    /// Whether `bug` is planted.
    #[must_use]
    pub fn is(bug: Bug) -> bool {
        PLANTED.get() == bug
    }
}

#[cfg(feature = "planted-bugs")]
pub use planted_here::{Planted, is, plant};

/// Whether `bug` is planted: never, in the product.
#[cfg(not(feature = "planted-bugs"))]
#[must_use]
#[inline]
pub fn is(_bug: Bug) -> bool {
    false
}
