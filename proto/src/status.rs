//! The words in which regions speak of their state.

use std::fmt;

/// What a region does, as its primary or it itself sees it. The messages carry the word of
/// [`RegionState::as_str`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RegionState {
    /// Nothing is known yet.
    Starting,
    /// The first attempt to reach it is under way.
    Connecting,
    /// It does not answer.
    Unreachable,
    /// Redo flows, and what queries see is recent.
    Streaming,
    /// Redo flows, and what queries see is not recent yet.
    CatchingUp,
    /// Its data are being brought.
    Seeding,
    /// Its data are being brought back to before what was cut off.
    Rewinding,
    /// Its redo is not its primary's, and cannot be brought back to it.
    Diverged,
    /// Its PostgreSQL runs and does not answer.
    Silent,
    /// It answers, and refuses.
    Refused,
    /// It has no data, and waits for its primary to bring some.
    Waiting,
    /// It hears from no primary.
    Disconnected,
}

impl RegionState {
    /// All states.
    pub const ALL: [RegionState; 12] = [
        RegionState::Starting,
        RegionState::Connecting,
        RegionState::Unreachable,
        RegionState::Streaming,
        RegionState::CatchingUp,
        RegionState::Seeding,
        RegionState::Rewinding,
        RegionState::Diverged,
        RegionState::Silent,
        RegionState::Refused,
        RegionState::Waiting,
        RegionState::Disconnected,
    ];

    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            RegionState::Starting => "starting",
            RegionState::Connecting => "connecting",
            RegionState::Unreachable => "unreachable",
            RegionState::Streaming => "streaming",
            RegionState::CatchingUp => "catching_up",
            RegionState::Seeding => "seeding",
            RegionState::Rewinding => "rewinding",
            RegionState::Diverged => "diverged",
            RegionState::Silent => "silent",
            RegionState::Refused => "refused",
            RegionState::Waiting => "waiting",
            RegionState::Disconnected => "disconnected",
        }
    }
}

impl fmt::Display for RegionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
