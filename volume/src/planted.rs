//! Bugs put in on purpose, to show that the simulation finds them. The product is built without the feature
//! `planted-bugs`, and there [`is`] is always false; the simulation plants one for the thread that runs a
//! seed.

/// A line of a decision that is taken away or moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Bug {
    /// None.
    #[default]
    None,
    /// A copy says that it has promised before that is on its disk.
    PromisesUnwritten,
    /// A copy keeps what the chosen log does not have.
    KeepsCut,
    /// A copy says that it has flushed before it has.
    FlushedEarly,
    /// A copy takes appends of any ballot.
    TakesAnyBallot,
    /// A log is chosen although copies have lost more than it to damage.
    IgnoresLost,
    /// A copy that cuts off what it cannot read forgets that it had it.
    ForgetsLost,
    /// The promise of a copy that has forgotten what it promised counts.
    CountsForgotten,
    /// A promise of an earlier ballot counts.
    CountsLatePromises,
    /// The longest log is chosen, whatever ballot it was written under.
    ChoosesLongest,
    /// Redo is called durable although a part of the chosen log is not.
    OpensEarly,
    /// Three copies make redo durable.
    SmallQuorum,
    /// A reset goes on under the old log's number.
    ResetKeepsNumber,
    /// The copy whose log was chosen may go before that log is durable.
    ForgetsDonor,
    /// A copy that is adopting is not told a history.
    ForgetsHistory,
    /// Redo that is not durable yet is dropped.
    DropsQueued,
    /// A host goes on as the region's head although another one was it meanwhile.
    ResumesOvertaken,
    /// A head answers in its region's name without asking the copies whether it still is that.
    VotesUnasked,
}

impl Bug {
    /// All of them but [`Bug::None`].
    pub const ALL: [Bug; 17] = [
        Bug::PromisesUnwritten,
        Bug::KeepsCut,
        Bug::FlushedEarly,
        Bug::TakesAnyBallot,
        Bug::IgnoresLost,
        Bug::ForgetsLost,
        Bug::CountsForgotten,
        Bug::CountsLatePromises,
        Bug::ChoosesLongest,
        Bug::OpensEarly,
        Bug::SmallQuorum,
        Bug::ResetKeepsNumber,
        Bug::ForgetsDonor,
        Bug::ForgetsHistory,
        Bug::DropsQueued,
        Bug::ResumesOvertaken,
        Bug::VotesUnasked,
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
