//! Timelines as PostgreSQL records them: a history file for each timeline but the first.

use crate::{Lsn, Timeline};

/// One ancestor of a timeline: it ended where the next one forked off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ancestor {
    /// The ancestor.
    pub timeline: Timeline,
    /// Where its successor begins; the ancestor's redo beyond this is not part of the history.
    pub fork_lsn: Lsn,
}

/// The ancestry of one timeline, and the history file it was read from.
///
/// Source: `timeline.c` of PostgreSQL, `readTimeLineHistory`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TimelineHistory {
    /// The timeline whose history this is.
    pub timeline: Timeline,
    /// Its ancestors, oldest first; empty for timeline 1.
    pub ancestors: Vec<Ancestor>,
    /// The bytes of the history file; empty for timeline 1.
    pub content: Vec<u8>,
}

/// Why a history file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TimelineError {
    /// Larger than any real history.
    #[error("timeline history of {0} bytes; {max} is the most", max = TimelineHistory::MAX_BYTES)]
    TooLarge(usize),
    /// A line that is not an entry.
    #[error("timeline history line {0} is not 'timeline, LSN, reason'")]
    Line(usize),
    /// Entries must have growing timelines below the one they describe, at LSNs that do not go back.
    #[error("timeline history line {0} is out of order")]
    Order(usize),
}

impl TimelineHistory {
    /// The largest history file taken: some ten thousand promotions.
    pub const MAX_BYTES: usize = 1 << 20;

    /// The first timeline, which has no ancestors.
    #[must_use]
    pub fn first() -> TimelineHistory {
        TimelineHistory { timeline: Timeline(1), ancestors: Vec::new(), content: Vec::new() }
    }

    /// Reads the history file of `timeline`.
    ///
    /// # Errors
    /// When the file is too large, has a line that is not an entry, or entries out of order.
    pub fn parse(timeline: Timeline, content: &[u8]) -> Result<TimelineHistory, TimelineError> {
        if content.len() > Self::MAX_BYTES {
            return Err(TimelineError::TooLarge(content.len()));
        }
        let text = String::from_utf8_lossy(content);
        let mut ancestors: Vec<Ancestor> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let mut fields = line.split_whitespace();
            let entry =
                fields.next().and_then(|t| t.parse().ok()).zip(fields.next().and_then(|l| l.parse().ok()));
            let (ancestor, fork_lsn) = entry.ok_or(TimelineError::Line(index + 1))?;
            let ancestor = Ancestor { timeline: Timeline(ancestor), fork_lsn };
            let last = ancestors.last().map_or((Timeline(0), Lsn::ZERO), |a| (a.timeline, a.fork_lsn));
            if ancestor.timeline <= last.0 || ancestor.timeline >= timeline || ancestor.fork_lsn < last.1 {
                return Err(TimelineError::Order(index + 1));
            }
            ancestors.push(ancestor);
        }
        Ok(TimelineHistory { timeline, ancestors, content: content.to_vec() })
    }

    /// Where `timeline` ends on the way to this one, or `None` when it is this one or not an ancestor.
    #[must_use]
    pub fn fork_of(&self, timeline: Timeline) -> Option<Lsn> {
        self.ancestors.iter().find(|a| a.timeline == timeline).map(|a| a.fork_lsn)
    }

    /// The successor of `timeline` on the way to this one, or `None` when it is this one or not an ancestor.
    #[must_use]
    pub fn successor_of(&self, timeline: Timeline) -> Option<Timeline> {
        let at = self.ancestors.iter().position(|a| a.timeline == timeline)?;
        Some(self.ancestors.get(at + 1).map_or(self.timeline, |a| a.timeline))
    }

    /// Where this timeline begins: the fork from its parent, or zero for the first.
    #[must_use]
    pub fn begin_lsn(&self) -> Lsn {
        self.ancestors.last().map_or(Lsn::ZERO, |a| a.fork_lsn)
    }

    /// The timeline on which the byte at `lsn` lies.
    #[must_use]
    pub fn timeline_at(&self, lsn: Lsn) -> Timeline {
        self.ancestors.iter().find(|a| lsn < a.fork_lsn).map_or(self.timeline, |a| a.timeline)
    }

    /// The end of the redo that this history and `other` have in common: `u64::MAX` when it is the same
    /// timeline. That a timeline has its number from the epoch that began it is what makes equal numbers mean
    /// equal redo.
    #[must_use]
    pub fn common_end(&self, other: &TimelineHistory) -> Lsn {
        let line = |history: &TimelineHistory| {
            let own = Ancestor { timeline: history.timeline, fork_lsn: Lsn(u64::MAX) };
            history.ancestors.iter().copied().chain([own]).collect::<Vec<Ancestor>>()
        };
        let (mine, theirs) = (line(self), line(other));
        let shared = mine.iter().rev().find_map(|a| {
            let b = theirs.iter().find(|b| b.timeline == a.timeline)?;
            Some(a.fork_lsn.min(b.fork_lsn))
        });
        shared.unwrap_or(Lsn::ZERO)
    }

    /// What stands in the history file of a number that no timeline of this line has.
    pub const UNUSED: &str = "# no timeline of this line has this number\n";

    /// The name PostgreSQL gives this history's file, such as `00000002.history`.
    #[must_use]
    pub fn file_name(timeline: Timeline) -> String {
        format!("{:08X}.history", timeline.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_two_histories_have_in_common() {
        let history = |timeline, content: &[u8]| TimelineHistory::parse(Timeline(timeline), content).unwrap();
        let (first, third) = (TimelineHistory::first(), history(3, b"1\t0/500\tx\n"));
        assert_eq!(third.common_end(&third), Lsn(u64::MAX));
        assert_eq!(first.common_end(&third), Lsn(0x500), "what the first has beyond was cut off");
        let fifth = history(5, b"1\t0/500\tx\n3\t0/700\tx\n");
        assert_eq!(third.common_end(&fifth), Lsn(0x700));
        let other = history(4, b"1\t0/400\tx\n");
        assert_eq!((fifth.common_end(&other), other.common_end(&fifth)), (Lsn(0x400), Lsn(0x400)));
        let unused = history(4, TimelineHistory::UNUSED.as_bytes());
        assert_eq!(unused.ancestors, []);
    }

    #[test]
    fn follows_the_ancestors() {
        let content = b"1\t0/3000000\tno recovery target specified\n\n2\t0/5000000\tbecause\n";
        let history = TimelineHistory::parse(Timeline(4), content).unwrap();
        assert_eq!(history.fork_of(Timeline(1)), Some(Lsn(0x300_0000)));
        assert_eq!(history.successor_of(Timeline(1)), Some(Timeline(2)));
        assert_eq!(history.successor_of(Timeline(2)), Some(Timeline(4)));
        assert_eq!(history.successor_of(Timeline(4)), None);
        assert_eq!(history.begin_lsn(), Lsn(0x500_0000));
        assert_eq!(history.timeline_at(Lsn(0x2FF_FFFF)), Timeline(1));
        assert_eq!(history.timeline_at(Lsn(0x300_0000)), Timeline(2));
        assert_eq!(history.timeline_at(Lsn(0x500_0000)), Timeline(4));
    }

    #[test]
    fn refuses_what_no_postgresql_writes() {
        let parse = |text: &str| TimelineHistory::parse(Timeline(3), text.as_bytes());
        assert_eq!(parse("x"), Err(TimelineError::Line(1)));
        assert_eq!(parse("1 0/5 a\n1 0/6 b"), Err(TimelineError::Order(2)));
        assert_eq!(parse("1 0/5 a\n2 0/4 b"), Err(TimelineError::Order(2)));
        assert_eq!(parse("3 0/5 a"), Err(TimelineError::Order(1)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = TimelineHistory::parse(Timeline(9), &bytes);
        }
    }
}
