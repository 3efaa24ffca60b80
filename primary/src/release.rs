//! Up to where commits return, and why not further: decided here, without I/O or clocks.
//!
//! The reader reports one LSN to the writer, and this decides which. It puts together whether this region is
//! agreed to lead, its lease, and the [`gate`](crate::gate) of the commit level. It never takes back what was
//! released, and never releases what is not durable in the region.

use proto::Lsn;

use crate::gate::{CommitPolicy, Doubt, Held, Lease, Secondary, releasable};

/// What this region was told of its leadership.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Leadership {
    /// The promotion that makes it the primary is not over.
    #[default]
    Unconfirmed,
    /// It is agreed to be the primary.
    Confirmed,
    /// It gives the leadership up, or somebody takes it: nothing more is released before it is confirmed
    /// again.
    Held,
}

impl Leadership {
    /// What it becomes when the region learns whether commits may return. A hold ends only when they may.
    #[must_use]
    pub fn acknowledging(self, allowed: bool) -> Leadership {
        match (self, allowed) {
            (_, true) => Leadership::Confirmed,
            (Leadership::Held, false) => Leadership::Held,
            (_, false) => Leadership::Unconfirmed,
        }
    }
}

/// What is known at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// Whether the region leads.
    pub leadership: Leadership,
    /// What the secondaries say against it.
    pub doubt: Doubt,
    /// What it needs of the other voters.
    pub lease: Lease,
    /// Now, on the clock of leases, microseconds.
    pub now_us: u64,
    /// For each set of voters, and each other voter in it, when the newest request left that it supported, on
    /// the same clock.
    pub supported_us: &'a [Vec<Option<u64>>],
    /// What the cluster promises of its commits.
    pub policy: CommitPolicy,
    /// The region's own durable LSN.
    pub durable_lsn: Lsn,
    /// How far the secondaries are.
    pub secondaries: &'a [Secondary],
}

/// What may return.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Released {
    /// Commits up to here.
    pub lsn: Lsn,
    /// Why no more, when something holds them.
    pub held: Option<Held>,
}

/// Up to where commits may return, given that they did up to `released_lsn`.
#[must_use]
pub fn release(facts: &Facts<'_>, released_lsn: Lsn) -> Released {
    let held = match facts.leadership {
        Leadership::Unconfirmed => Some(Held::Promotion),
        Leadership::Held => Some(Held::GivenUp),
        Leadership::Confirmed if facts.doubt.holds().is_some() => facts.doubt.holds(),
        Leadership::Confirmed if !facts.lease.holds(facts.now_us, facts.supported_us) => Some(Held::Lease),
        Leadership::Confirmed => None,
    };
    if held.is_some() {
        return Released { lsn: released_lsn, held };
    }
    let (lsn, held) = releasable(facts.policy, facts.durable_lsn, released_lsn, facts.secondaries);
    Released { lsn, held }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::gate::CommitLevel;

    const LEASE_US: u64 = 5_000_000;

    fn any_policy() -> impl Strategy<Value = CommitPolicy> {
        let level = prop_oneof![
            Just(CommitLevel::Local),
            Just(CommitLevel::Region),
            (0u8..4).prop_map(CommitLevel::Regions)
        ];
        let rpo = proptest::option::of((0u64..10).prop_map(Duration::from_secs));
        (level, rpo).prop_map(|(level, rpo)| CommitPolicy { level, rpo })
    }

    fn any_secondaries() -> impl Strategy<Value = Vec<Secondary>> {
        let one = (proptest::option::of(0u64..100), proptest::option::of(0i64..10_000_000));
        let one = one.prop_map(|(lsn, rpo_lag_us)| Secondary { durable_lsn: lsn.map(Lsn), rpo_lag_us });
        proptest::collection::vec(one, 0..5)
    }

    fn any_leadership() -> impl Strategy<Value = Leadership> {
        prop_oneof![
            1 => Just(Leadership::Unconfirmed),
            4 => Just(Leadership::Confirmed),
            1 => Just(Leadership::Held),
        ]
    }

    fn any_doubt() -> impl Strategy<Value = Doubt> {
        let some = (0usize..3, 0usize..2, 0usize..5);
        some.prop_map(|(contradict, unasked, others)| Doubt {
            secondaries: contradict + unasked + others,
            contradict,
            unasked,
        })
    }

    proptest! {
        /// Step by step, as durable redo grows: what is released is durable and never goes back. It grows
        /// only while the region leads and, with three or more voters, has a majority's support within the
        /// lease. With `{regions=n}` it grows only up to what so many have.
        #[test]
        fn nothing_is_released_that_is_not_covered(
            policy in any_policy(),
            steps in proptest::collection::vec(
                (
                    any_leadership(),
                    any_doubt(),
                    0u64..20,
                    0u64..9_000_000,
                    proptest::collection::vec(proptest::option::of(0u64..60_000_000), 0..6),
                    any_secondaries(),
                ),
                1..40,
            ),
        ) {
            let (mut released_lsn, mut durable_lsn, mut now_us) = (Lsn::ZERO, Lsn::ZERO, 0);
            for (leadership, doubt, redo, passed_us, supported_us, secondaries) in steps {
                durable_lsn = durable_lsn + redo;
                now_us += passed_us;
                let supported_us: Vec<_> =
                    supported_us.into_iter().map(|at_us| at_us.filter(|at_us| *at_us <= now_us)).collect();
                let voters = supported_us.len() + 1;
                let lease = Lease { length: Duration::from_micros(LEASE_US) };
                let sets = [supported_us.clone()];
                let facts = Facts {
                    leadership, doubt, lease, now_us, supported_us: &sets, policy, durable_lsn, secondaries: &secondaries,
                };
                let released = release(&facts, released_lsn);
                prop_assert!(released.lsn >= released_lsn && released.lsn <= durable_lsn);
                if released.lsn < durable_lsn {
                    prop_assert!(released.held.is_some(), "who waits is told why");
                }
                if released.lsn > released_lsn {
                    prop_assert_eq!(leadership, Leadership::Confirmed);
                    prop_assert!(doubt.contradict * 2 <= doubt.secondaries, "{:?}", doubt);
                    let fresh = supported_us.iter().flatten().filter(|at_us| now_us - **at_us < LEASE_US).count();
                    prop_assert!(voters < 3 || (fresh + 1) * 2 > voters, "{} of {} voters", fresh + 1, voters);
                    if let CommitLevel::Regions(need) = policy.level {
                        let have = secondaries.iter().filter(|s| s.durable_lsn >= Some(released.lsn)).count();
                        prop_assert!(have >= usize::from(need));
                    }
                }
                released_lsn = released.lsn;
            }
        }

        /// After a hold nothing moves, whatever else is said, until the leadership is confirmed.
        #[test]
        fn after_a_hold_nothing_moves(refusals in 0usize..5, durable in 0u64..100, released in 0u64..100) {
            let leadership = (0..refusals).fold(Leadership::Held, |now, _| now.acknowledging(false));
            prop_assert_eq!(leadership, Leadership::Held);
            let facts = Facts {
                leadership,
                doubt: Doubt::default(),
                lease: Lease { length: Duration::from_secs(5) },
                now_us: 0,
                supported_us: &[Vec::new()],
                policy: CommitPolicy::default(),
                durable_lsn: Lsn(durable),
                secondaries: &[],
            };
            let still = Released { lsn: Lsn(released), held: Some(Held::GivenUp) };
            prop_assert_eq!(release(&facts, Lsn(released)), still);
            let confirmed = Facts { leadership: leadership.acknowledging(true), ..facts };
            prop_assert_eq!(release(&confirmed, Lsn(released)).lsn, Lsn(durable.max(released)));
        }
    }
}
