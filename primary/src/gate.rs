//! When a commit may return: one pure function of where its redo is durable.

use std::fmt;
use std::time::Duration;

use proto::Lsn;

/// Where redo must be durable before a commit returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CommitLevel {
    /// On the writer's own disk: commits do not wait for the volume.
    Local,
    /// On four of the region's six copies.
    #[default]
    Region,
    /// There, and in the volumes of this many secondary regions.
    Regions(u8),
}

/// What a cluster promises of its commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CommitPolicy {
    /// Where a commit is durable when it returns.
    pub level: CommitLevel,
    /// Commits are held while every secondary is further behind than this.
    pub rpo: Option<Duration>,
}

impl CommitPolicy {
    /// Whether PostgreSQL's commits wait for the volume at all.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.level != CommitLevel::Local
    }

    /// Whether what secondaries report can release commits.
    #[must_use]
    pub fn asks_secondaries(&self) -> bool {
        matches!(self.level, CommitLevel::Regions(_)) || self.rpo.is_some()
    }
}

/// What a primary needs of the others to go on acknowledging commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// The regions of the cluster, this one included.
    pub voters: usize,
    /// How long an answer counts.
    pub length: Duration,
}

impl Lease {
    /// Whether a majority answered heartbeats that left within the lease; `answered_us` are the times at which these left, on
    /// a clock that never steps. With fewer than three regions there is no majority without the other one, and no lease.
    #[must_use]
    pub fn holds(&self, now_us: i64, answered_us: &[Option<i64>]) -> bool {
        let length_us = i64::try_from(self.length.as_micros()).unwrap_or(i64::MAX);
        let fresh =
            |at_us: &&Option<i64>| at_us.is_some_and(|at_us| now_us.saturating_sub(at_us) < length_us);
        self.voters < 3 || answered_us.iter().filter(fresh).count() >= self.voters / 2
    }
}

/// How far a secondary region is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Secondary {
    /// What it has durable; none before it said so.
    pub durable_lsn: Option<Lsn>,
    /// How old the oldest redo is that it does not have durable, microseconds; none when that is unknown.
    pub rpo_lag_us: Option<i64>,
}

/// Why commits do not return.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Held {
    /// Fewer secondaries than asked for have the redo.
    TooFewRegions {
        /// How many have all of it.
        have: usize,
        /// How many are asked for.
        need: u8,
    },
    /// Every secondary is further behind than `rpo`.
    Rpo,
    /// A majority of the voters does not answer: one of them may be the primary by now.
    Lease,
    /// The promotion that makes this region the primary is not over: it may still be another.
    Promotion,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Held::TooFewRegions { have, need } => {
                write!(f, "commits wait for {need} secondary regions; {have} have the newest redo")
            }
            Held::Lease => f.write_str(
                "commits are held: a majority of the voters has not answered within the lease, and may have another primary",
            ),
            Held::Promotion => f.write_str("commits wait: this region is not agreed to be the primary yet"),
            Held::Rpo => f.write_str("commits are held: every secondary is further behind than `rpo` allows"),
        }
    }
}

/// Up to where commits may return, given that commits up to `released_lsn` did, and why not further, if something holds
/// them. `durable_lsn` is the region's own durable LSN.
#[must_use]
pub fn releasable(
    policy: CommitPolicy,
    durable_lsn: Lsn,
    released_lsn: Lsn,
    secondaries: &[Secondary],
) -> (Lsn, Option<Held>) {
    if let Some(rpo) = policy.rpo {
        let limit_us = i64::try_from(rpo.as_micros()).unwrap_or(i64::MAX);
        let within = |secondary: &Secondary| secondary.rpo_lag_us.is_some_and(|lag_us| lag_us <= limit_us);
        if !secondaries.iter().any(within) {
            return (released_lsn, Some(Held::Rpo));
        }
    }
    let CommitLevel::Regions(need) = policy.level else { return (durable_lsn.max(released_lsn), None) };
    let mut theirs: Vec<Lsn> = secondaries.iter().map(|s| s.durable_lsn.unwrap_or(Lsn::ZERO)).collect();
    theirs.sort_unstable_by(|a, b| b.cmp(a));
    let have = theirs.iter().filter(|lsn| **lsn >= durable_lsn).count();
    let reached = usize::from(need)
        .checked_sub(1)
        .map_or(durable_lsn, |index| theirs.get(index).copied().unwrap_or(Lsn::ZERO).min(durable_lsn));
    let held = (reached < durable_lsn).then_some(Held::TooFewRegions { have, need });
    (reached.max(released_lsn), held)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(lsn: u64, lag_s: i64) -> Secondary {
        Secondary { durable_lsn: Some(Lsn(lsn)), rpo_lag_us: Some(lag_s * 1_000_000) }
    }

    const UNKNOWN: Secondary = Secondary { durable_lsn: None, rpo_lag_us: None };

    fn policy(level: CommitLevel, rpo_s: Option<u64>) -> CommitPolicy {
        CommitPolicy { level, rpo: rpo_s.map(Duration::from_secs) }
    }

    #[test]
    fn a_lease_needs_a_majority() {
        let lease = |voters| Lease { voters, length: Duration::from_secs(5) };
        let (now, fresh, old) = (100_000_000, Some(96_000_000), Some(95_000_000));
        assert!(
            lease(1).holds(now, &[]) && lease(2).holds(now, &[None]),
            "two have no majority without the other"
        );
        assert!(lease(3).holds(now, &[None, fresh]) && !lease(3).holds(now, &[None, old]));
        assert!(!lease(4).holds(now, &[fresh, old, None]) && lease(4).holds(now, &[fresh, fresh, None]));
        assert!(lease(6).holds(now, &[fresh, fresh, fresh, None, None]));
        assert!(!lease(6).holds(now, &[fresh, fresh, old, None, None]));
    }

    #[test]
    fn a_commit_waits_for_as_many_regions_as_are_asked() {
        let level = |n| policy(CommitLevel::Regions(n), None);
        let regions = [at(90, 0), UNKNOWN, at(70, 0), at(120, 0)];
        assert_eq!(releasable(level(1), Lsn(100), Lsn(0), &regions), (Lsn(100), None));
        let held = |have, need| Some(Held::TooFewRegions { have, need });
        assert_eq!(releasable(level(2), Lsn(100), Lsn(0), &regions), (Lsn(90), held(1, 2)));
        assert_eq!(releasable(level(3), Lsn(100), Lsn(0), &regions), (Lsn(70), held(1, 3)));
        assert_eq!(releasable(level(4), Lsn(100), Lsn(0), &regions), (Lsn(0), held(1, 4)));
        assert_eq!(releasable(level(5), Lsn(100), Lsn(60), &regions), (Lsn(60), held(1, 5)), "never back");
        assert_eq!(releasable(policy(CommitLevel::Region, None), Lsn(100), Lsn(0), &[]), (Lsn(100), None));
    }

    #[test]
    fn commits_are_held_while_every_region_is_further_behind_than_the_rpo() {
        let rpo = policy(CommitLevel::Region, Some(30));
        assert_eq!(releasable(rpo, Lsn(100), Lsn(50), &[at(40, 31), UNKNOWN]), (Lsn(50), Some(Held::Rpo)));
        assert_eq!(releasable(rpo, Lsn(100), Lsn(50), &[at(40, 31), at(45, 30)]), (Lsn(100), None));
        assert_eq!(releasable(rpo, Lsn(100), Lsn(50), &[]), (Lsn(50), Some(Held::Rpo)));
    }
}
