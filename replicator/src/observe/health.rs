//! What a load balancer or a supervisor is told: decided from facts alone, in favour of "no" where something
//! is not known.

use primary::gate::Held;
use proto::RegionState;
use serde::Serialize;

use super::facts::Facts;
use crate::facts::{FollowerFacts, LeaderFacts, PartFacts};

/// An answer to a health check.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Health {
    /// Whether the answer is yes: 200, and 503 otherwise.
    pub ok: bool,
    /// The region.
    pub region: String,
    /// `primary`, `secondary` or `none`: the part that it plays now.
    pub role: &'static str,
    /// What it does.
    pub state: &'static str,
    /// The epoch that it knows of.
    pub epoch: u64,
    /// How far what queries see is behind, seconds, as far as that is known.
    pub lag_seconds: Option<f64>,
    /// Why not, or what else is to be known, in words.
    pub reason: String,
}

/// Whether the region can do its part: a primary takes commits and lets them return, a secondary answers
/// queries.
#[must_use]
pub fn ready(facts: &Facts) -> Health {
    let hindered = match &facts.part {
        PartFacts::Leads(leader) => leads(facts, leader),
        PartFacts::Follows(follower) => answers(facts, follower),
        PartFacts::Neither => Err(besides(facts, "this region plays no part yet")),
    };
    health(facts, hindered)
}

/// Whether the region is the primary, and commits return.
#[must_use]
pub fn primary(facts: &Facts) -> Health {
    let hindered = match &facts.part {
        PartFacts::Leads(leader) => leads(facts, leader),
        PartFacts::Follows(_) => Err("this region is a secondary".into()),
        PartFacts::Neither => Err(besides(facts, "this region plays no part yet")),
    };
    health(facts, hindered)
}

/// Whether the region is a secondary that answers queries and, where `lag_s` is given, is at most so many
/// seconds behind.
#[must_use]
pub fn replica(facts: &Facts, lag_s: Option<f64>) -> Health {
    let hindered = match &facts.part {
        PartFacts::Leads(_) => Err("this region is the primary".into()),
        PartFacts::Follows(follower) => answers(facts, follower).and_then(|said| match lag_s {
            Some(most_s) => near(facts, follower, most_s).map(|()| said),
            None => Ok(said),
        }),
        PartFacts::Neither => Err(besides(facts, "this region plays no part yet")),
    };
    health(facts, hindered)
}

/// How far what queries see is behind, seconds; none where that is not known.
fn lag_s(facts: &Facts) -> Option<f64> {
    match &facts.part {
        PartFacts::Leads(_) => Some(0.0),
        #[allow(clippy::cast_precision_loss, reason = "microseconds of years")]
        PartFacts::Follows(follower) => follower.heard_lag_us.map(|us| us as f64 / 1e6),
        PartFacts::Neither => None,
    }
}

fn health(facts: &Facts, said: Result<String, String>) -> Health {
    let ok = said.is_ok();
    Health {
        ok,
        region: facts.region.to_string(),
        role: facts.part.role(),
        state: facts.part.state().as_str(),
        epoch: facts.epoch.0,
        lag_seconds: lag_s(facts),
        reason: said.unwrap_or_else(|why| why),
    }
}

/// `what`, and what the owner of the region's part says.
fn besides(facts: &Facts, what: &str) -> String {
    if facts.trouble.is_empty() { what.to_owned() } else { format!("{what}: {}", facts.trouble) }
}

fn postgres_answers(facts: &Facts) -> Result<(), String> {
    match &facts.postgres {
        Ok(_) => Ok(()),
        Err(why) => Err(format!("PostgreSQL does not answer: {why}")),
    }
}

fn leads(facts: &Facts, leader: &LeaderFacts) -> Result<String, String> {
    if !leader.runs {
        return Err("this region gives the leadership up: its writer was told to stop".into());
    }
    if leader.state() != RegionState::Streaming {
        return Err(format!("this primary {}: {}", leader.lacks(), leader.detail()));
    }
    if !facts.volume.writable {
        return Err("commits wait: the volume needs four of its six copies".into());
    }
    let reached = || leader.secondaries.iter().filter(|secondary| secondary.link.is_some()).count();
    match leader.held() {
        // Waiting for regions for a moment is the rule where commits do; for those that are not there it is
        // not.
        Some(Held::TooFewRegions { need, .. }) if reached() >= usize::from(need) => {}
        Some(held) => return Err(held.to_string()),
        None => {}
    }
    postgres_answers(facts).map(|()| String::new())
}

fn answers(facts: &Facts, follower: &FollowerFacts) -> Result<String, String> {
    match follower.state() {
        RegionState::Streaming => postgres_answers(facts).map(|()| String::new()),
        // What it has can be read; how old that is, `/replica?lag=` says.
        RegionState::Disconnected => postgres_answers(facts)
            .map(|()| format!("nothing is heard from a primary: {}", follower.detail())),
        state => Err(format!("this region is '{state}': {}", follower.detail())),
    }
}

fn near(facts: &Facts, follower: &FollowerFacts, most_s: f64) -> Result<(), String> {
    match lag_s(facts) {
        Some(lag_s) if lag_s <= most_s => Ok(()),
        Some(lag_s) => Err(format!("this region is {lag_s:.1} s behind, and {most_s} s are allowed")),
        None => Err(format!("how far this region is behind is not known: {}", follower.detail())),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use primary::release::Released;
    use primary::{ReaderState, SecondaryFacts};
    use proto::{Epoch, Lsn, RegionName, Timeline};
    use secondary::InboundState;
    use volume::quorum::{CopyId, CopyState};
    use volume::{Bounds, CopyStatus, VolumeStatus};

    use super::super::vitals::Vitals;
    use super::*;
    use crate::load::told::Told;

    fn name(name: &str) -> RegionName {
        name.parse().unwrap()
    }

    fn facts(part: PartFacts) -> Facts {
        let bounds = Bounds { horizon_lsn: Lsn(100), durable_lsn: Lsn(5000), timeline: Timeline(2) };
        let copies = CopyId::all().map(|id| CopyStatus {
            id,
            place: String::new(),
            state: CopyState::Live,
            flushed_lsn: Lsn(5000),
            repair: volume::Tally { scrubbed_us: 5_000_000, ..Default::default() },
        });
        Facts {
            region: name("a"),
            epoch: Epoch(2),
            part,
            trouble: String::new(),
            volume: VolumeStatus {
                ballot: Default::default(),
                bounds,
                writable: true,
                members: 0,
                closed: None,
                keys: Vec::new(),
                active_key: None,
                copies: copies.collect(),
            },
            stored_bytes: 4096,
            postgres: Ok(Vitals::default()),
            load: Some(Told::new(4)),
            nodes: Vec::new(),
            promoting: false,
            endpoints: Vec::new(),
            past: Vec::new(),
            certificate_left_s: 86_400,
            now_us: 60_000_000,
        }
    }

    /// A primary that takes commits, and has one secondary.
    pub fn leading() -> Facts {
        let secondary = SecondaryFacts {
            name: name("b"),
            url: String::new(),
            state: RegionState::Streaming,
            detail: String::new(),
            timeline: Timeline(2),
            durable_lsn: Some(Lsn(4000)),
            applied_lsn: Some(Lsn(3000)),
            durable_behind_bytes: Some(1000),
            behind_bytes: Some(2000),
            durable_lag_us: Some(10_000),
            visible_lag_us: Some(20_000),
            rpo_lag_us: Some(10_000),
            silent_us: Some(5_000),
            redo_bytes: 4000,
            batches: 4,
            repair_bytes: 0,
            sent: Default::default(),
            link: Some(primary::facts::LinkFacts { round_trip_us: 80_000, window_bytes: 65_536 }),
            seed_bytes: 0,
            seed_total_bytes: 0,
            seed_kept_bytes: 0,
        };
        let reader = ReaderState {
            streaming: true,
            durable_lsn: Lsn(5000),
            timeline: Timeline(2),
            released: Released { lsn: Lsn(5000), held: None },
            ..ReaderState::default()
        };
        facts(PartFacts::Leads(LeaderFacts {
            epoch: Epoch(2),
            runs: true,
            postgres_trouble: None,
            shut_until: None,
            reader,
            lease_left_us: Some(4_000_000),
            secondaries: vec![secondary],
        }))
    }

    /// A secondary that keeps up.
    pub fn following() -> Facts {
        facts(PartFacts::Follows(FollowerFacts {
            lacks: String::new(),
            epoch: Epoch(2),
            seeded: true,
            seed_total_bytes: 0,
            postgres_trouble: None,
            inbound: InboundState { streaming: true, ..InboundState::default() },
            timeline: Timeline(2),
            durable_lsn: Lsn(5000),
            applied_lsn: Lsn(5000),
            shown_lsn: Lsn::ZERO,
            silent_us: Some(50_000),
            heard_lag_us: Some(0),
        }))
    }

    fn changed(mut facts: Facts, change: impl FnOnce(&mut LeaderFacts)) -> Facts {
        if let PartFacts::Leads(leader) = &mut facts.part {
            change(leader);
        }
        facts
    }

    fn followed(mut facts: Facts, change: impl FnOnce(&mut FollowerFacts)) -> Facts {
        if let PartFacts::Follows(follower) = &mut facts.part {
            change(follower);
        }
        facts
    }

    fn refuses(health: &Health, words: &str) {
        assert!(!health.ok && health.reason.contains(words), "{health:?}");
    }

    #[test]
    fn a_primary_is_ready_while_commits_return_and_only_then() {
        let facts = leading();
        assert!(ready(&facts).ok && primary(&facts).ok && !replica(&facts, None).ok);
        assert_eq!(ready(&facts).role, "primary");
        let contradicted = Held::Contradicted { contradict: 2, secondaries: 2 };
        for held in [Held::Lease, Held::Rpo, Held::Promotion, Held::GivenUp, contradicted, Held::Unasked] {
            let facts = changed(leading(), |leader| leader.reader.released.held = Some(held));
            refuses(&ready(&facts), &held.to_string());
            refuses(&primary(&facts), &held.to_string());
        }
        let facts = changed(leading(), |leader| leader.runs = false);
        refuses(&primary(&facts), "told to stop");
        let facts = changed(leading(), |leader| leader.reader.streaming = false);
        refuses(&primary(&facts), "does not read its writer");
        let facts = changed(leading(), |leader| leader.shut_until = Some(Lsn(6000)));
        refuses(&ready(&facts), "lets no client in yet");
        refuses(&primary(&facts), "its writer has redo up to 0/1770 that may not be acknowledged yet");
        let facts = Facts { postgres: Err("too many clients".into()), ..leading() };
        refuses(&primary(&facts), "too many clients");
        let mut facts = leading();
        facts.volume.writable = false;
        refuses(&primary(&facts), "four of its six copies");
    }

    #[test]
    fn commits_that_wait_for_regions_hold_a_primary_only_while_the_regions_are_not_there() {
        let waits = |need| {
            changed(leading(), |leader| {
                leader.reader.released.held = Some(Held::TooFewRegions { have: 0, need });
            })
        };
        assert!(primary(&waits(1)).ok, "a moment of this is the rule");
        refuses(&primary(&waits(2)), "wait for 2 secondary regions");
        let cut = changed(waits(1), |leader| leader.secondaries[0].link = None);
        refuses(&primary(&cut), "wait for 1 secondary regions");
    }

    #[test]
    fn a_secondary_answers_while_it_can_be_read_and_says_how_old_that_is() {
        let facts = following();
        assert!(ready(&facts).ok && replica(&facts, None).ok && replica(&facts, Some(0.0)).ok);
        refuses(&primary(&facts), "a secondary");
        let cut = followed(following(), |follower| {
            (follower.inbound.streaming, follower.heard_lag_us) = (false, Some(12_300_000));
        });
        assert!(ready(&cut).ok && replica(&cut, None).ok && replica(&cut, Some(13.0)).ok);
        refuses(&replica(&cut, Some(10.0)), "12.3 s behind");
        let unknown = followed(cut, |follower| follower.heard_lag_us = None);
        refuses(&replica(&unknown, Some(1e9)), "not known");
        let empty = followed(following(), |follower| follower.seeded = false);
        refuses(&ready(&empty), "waiting");
        let dead = Facts { postgres: Err("it ended".into()), ..following() };
        refuses(&replica(&dead, None), "it ended");
        let none = Facts { part: PartFacts::Neither, trouble: "no data".into(), ..following() };
        refuses(&ready(&none), "no data");
    }
}
