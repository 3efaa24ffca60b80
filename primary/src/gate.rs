//! When a commit may return: one pure function of where its redo is durable.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use proto::{Lsn, RegionName};

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
    /// How long an answer counts.
    pub length: Duration,
}

impl Lease {
    /// Whether a majority of each set of voters, this region included, supported requests that left within
    /// the lease. Each of `sets` has, for each other voter, when such a request left, on a clock that never
    /// steps and counts the time that the machine is suspended. With fewer than three voters there is no
    /// majority without the other one, and no lease.
    #[must_use]
    pub fn holds(&self, now_us: u64, sets: &[Vec<Option<u64>>]) -> bool {
        let length_us = runtime::clock::micros(self.length);
        let fresh =
            |at_us: &&Option<u64>| at_us.is_some_and(|at_us| now_us.saturating_sub(at_us) < length_us);
        let holds = |others: &Vec<Option<u64>>| {
            let voters = others.len() + 1;
            voters < 3 || others.iter().filter(fresh).count() >= voters / 2
        };
        !sets.is_empty() && sets.iter().all(holds)
    }

    /// How long [`Lease::holds`] goes on to be true if nobody answers any more, microseconds; none where
    /// there is no lease.
    #[must_use]
    pub fn left_us(&self, now_us: u64, sets: &[Vec<Option<u64>>]) -> Option<u64> {
        let left_us = |others: &Vec<Option<u64>>| {
            let voters = others.len() + 1;
            let needed = (voters >= 3).then_some(voters / 2)?;
            let mut newest: Vec<u64> = others.iter().flatten().copied().collect();
            newest.sort_unstable_by(|a, b| b.cmp(a));
            let ends_us =
                newest.get(needed - 1).map(|at_us| at_us.saturating_add(runtime::clock::micros(self.length)));
            Some(ends_us.map_or(0, |ends_us| ends_us.saturating_sub(now_us)))
        };
        sets.iter().filter_map(left_us).min()
    }
}

/// For each of `sets` of voters, what [`Lease::holds`] is told of those in it other than `own`: of each, when
/// the newest request left that it `supported`. One that is no voter, as it was counted as lost, needs a
/// majority without its own word.
pub fn others(
    sets: &[BTreeSet<RegionName>],
    own: &RegionName,
    supported: impl Fn(&RegionName) -> Option<u64>,
) -> Vec<Vec<Option<u64>>> {
    let others = |set: &BTreeSet<RegionName>| {
        let without_own = (!set.contains(own)).then_some(None);
        set.iter().filter(|name| *name != own).map(&supported).chain(without_own).collect()
    };
    sets.iter().map(others).collect()
}

/// How far a secondary region is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Secondary {
    /// What it has durable; none before it said so.
    pub durable_lsn: Option<Lsn>,
    /// How old the oldest redo is that it does not have durable, microseconds; none when that is unknown.
    pub rpo_lag_us: Option<i64>,
}

/// What the secondaries say against this primary. A batch tells its epoch, and only the primary of an epoch
/// cuts batches of it, and ships them once they are durable: so a secondary that has one which this primary
/// has not shows that redo was lost. By one of several it may be the secondary that was put back as it was
/// before an operator decided; by most of them it is the primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Doubt {
    /// How many secondaries there are.
    pub secondaries: usize,
    /// Those that have redo of this epoch which this primary has not.
    pub contradict: usize,
    /// Those of which that is still being found out, by a primary that was started again.
    pub unasked: usize,
}

impl Doubt {
    /// What it holds commits for.
    #[must_use]
    pub fn holds(&self) -> Option<Held> {
        let Doubt { secondaries, contradict, unasked } = *self;
        let most = |count: usize| count * 2 > secondaries;
        match (most(contradict), most(contradict + unasked)) {
            (true, _) => Some(Held::Contradicted { contradict, secondaries }),
            (false, true) => Some(Held::Unasked),
            (false, false) => None,
        }
    }
}

/// Why commits do not return.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    /// This region gives the leadership up, or it is taken.
    GivenUp,
    /// Most secondaries have redo of this epoch that this primary has not: it has lost it.
    Contradicted {
        /// How many have.
        contradict: usize,
        /// How many there are.
        secondaries: usize,
    },
    /// It is not known yet whether they have.
    Unasked,
}

impl Held {
    /// Whether it is news. Waiting for regions for a moment is the rule where commits wait for them, and a
    /// promotion says itself how it goes.
    #[must_use]
    pub fn is_news(self) -> bool {
        matches!(self, Held::Rpo | Held::Lease | Held::Contradicted { .. })
    }

    /// Whether commits wait so for a moment as a rule: then they are held only if none returns for long.
    #[must_use]
    pub fn is_momentary(self) -> bool {
        matches!(self, Held::TooFewRegions { .. })
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Held::TooFewRegions { have, need } => {
                write!(f, "commits wait for {need} secondary regions; {have} have the newest redo")
            }
            Held::Lease => f.write_str(
                "commits are held: a majority of the voters has not answered within the lease, and may have another \
                 primary",
            ),
            Held::Promotion => f.write_str("commits wait: this region is not agreed to be the primary yet"),
            Held::GivenUp => f.write_str("commits wait: this region is being replaced as the primary"),
            Held::Contradicted { contradict, secondaries } => write!(
                f,
                "commits are held: {contradict} of {secondaries} secondaries have redo of this epoch that this primary has lost, as after a \
                 restored directory. They hold more: stop this region's daemon and promote one of them (replicator promote --region R \
                 --mode failover); or, if this primary has what is right, have them seeded anew (replicator reseed --region R)"
            ),
            Held::Unasked => {
                f.write_str("commits wait: the secondaries are asked first whether they have redo that this primary has lost")
            }
            Held::Rpo => f.write_str("commits are held: every secondary is further behind than `rpo` allows"),
        }
    }
}

/// Up to where commits may return, given that commits up to `released_lsn` did, and why not further, if
/// something holds them. `durable_lsn` is the region's own durable LSN.
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
    fn what_most_secondaries_have_and_the_primary_has_not_it_has_lost() {
        let holds = |secondaries, contradict, unasked| Doubt { secondaries, contradict, unasked }.holds();
        for (of, few, most) in [(1, 0, 1), (2, 1, 2), (3, 1, 2), (4, 2, 3), (5, 2, 3)] {
            assert_eq!(holds(of, few, 0), None, "{few} of {of}: they may have been put back");
            let contradicted = Held::Contradicted { contradict: most, secondaries: of };
            assert_eq!(holds(of, most, of - most), Some(contradicted));
            assert_eq!(holds(of, 0, most), Some(Held::Unasked));
            assert_eq!(holds(of, 0, few), None, "the others have what it has");
        }
        assert_eq!(holds(2, 1, 1), Some(Held::Unasked), "the other one decides");
        assert_eq!(holds(0, 0, 0), None);
    }

    #[test]
    fn a_lease_needs_a_majority() {
        let lease = Lease { length: Duration::from_secs(5) };
        let (now, fresh, old) = (100_000_000, Some(96_000_000), Some(95_000_000));
        let holds = |others: &[Option<u64>]| lease.holds(now, &[others.to_vec()]);
        assert!(holds(&[]) && holds(&[None]), "two have no majority without the other");
        assert!(holds(&[None, fresh]) && !holds(&[None, old]));
        assert!(!holds(&[fresh, old, None]) && holds(&[fresh, fresh, None]));
        assert!(holds(&[fresh, fresh, fresh, None, None]) && !holds(&[fresh, fresh, old, None, None]));
        // While the voters change, of each set.
        assert!(!lease.holds(now, &[vec![fresh, None], vec![fresh, None, None]]));
        assert!(lease.holds(now, &[vec![fresh, None], vec![None]]) && !lease.holds(now, &[]));
        let two = [vec![old, fresh]];
        let left = lease.left_us(now, &two).unwrap();
        assert!(lease.holds(now + left - 1, &two) && !lease.holds(now + left, &two));
        assert_eq!(
            (
                lease.left_us(now, &[vec![None]]),
                lease.left_us(now, &[vec![fresh; 1], vec![fresh, None, None]])
            ),
            (None, Some(0))
        );
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
