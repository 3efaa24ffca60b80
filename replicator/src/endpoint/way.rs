//! Where a client goes, and how long it stays there: by the record of who leads, and by what the region is.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use coordination::Mode;
use coordination::lineage::timeline_of;
use coordination::region::{Part, View};
use proto::{Epoch, Lsn, NodeName, RegionName, Timeline};

/// What a region's daemon knows at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Knows {
    /// The region.
    pub me: RegionName,
    /// The record of who leads.
    pub view: View,
    /// The part that the region plays.
    pub part: Part,
    /// Its own PostgreSQL.
    pub own: Own,
    /// Those of its nodes that can be read.
    pub replicas: Vec<Replica>,
}

/// A PostgreSQL of a region's node, as a client would find it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replica {
    /// The node.
    pub node: NodeName,
    /// Where it is reached.
    pub at: SocketAddr,
    /// How far what it shows is behind; none while that is not known.
    pub lag: Option<Duration>,
    /// All redo up to there is applied, of the timeline of the newest epoch; zero while that is not known.
    pub shown_lsn: Lsn,
}

/// What a reader takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Freshness {
    /// How far behind what it reads may be.
    pub lag_max: Duration,
    /// The position up to which it wants to see all; zero where it names none.
    pub at_least: Lsn,
}

impl Freshness {
    /// Whether a standby that is so far behind, and has applied so much, is taken.
    ///
    /// # Errors
    /// Why not.
    fn takes(&self, lag: Option<Duration>, shown_lsn: Lsn) -> Result<(), String> {
        match lag {
            Some(lag) if lag > self.lag_max => Err(format!("it is {} ms behind", lag.as_millis())),
            Some(_) if shown_lsn < self.at_least => Err(format!(
                "it is known to show redo up to {shown_lsn}, and the client wants to see all up to {}",
                self.at_least
            )),
            Some(_) => Ok(()),
            None => Err("it has not heard a primary yet".to_owned()),
        }
    }
}

/// A PostgreSQL of the region itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Near {
    /// That of the host of its daemon.
    Own,
    /// That of a node.
    Node(NodeName, SocketAddr),
}

/// A region's own PostgreSQL, as a client would find it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Own {
    /// A writer whose commits may return, as far as leadership goes.
    Writes,
    /// A writer that clients may not be brought to.
    WritesNot(Unfit),
    /// A standby that clients can read, and how far what it shows is behind; none while that is not known.
    Reads {
        /// By the region's own clock.
        lag: Option<Duration>,
        /// As for a replica.
        shown_lsn: Lsn,
    },
    /// Nothing that lets clients in.
    Closed(Unfit),
}

/// Why clients are not brought to a PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unfit {
    /// It does not run, or does not let clients in yet.
    Starts,
    /// It does not answer.
    Silent,
    /// Its lease is over.
    Lease,
    /// The promotion that makes it the writer is not over.
    Promotion,
    /// It gives the leadership up, or another has it.
    GivenUp,
    /// It has lost redo that others have, or does not know yet whether it has.
    Doubt,
    /// The region has no data yet.
    NoData,
    /// It has had too few copies for so long that another host may be the region's head.
    NoQuorum,
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Unfit::Starts => "its PostgreSQL lets no client in yet",
            Unfit::Silent => "its PostgreSQL does not answer",
            Unfit::Lease => "a majority of the voters does not answer it",
            Unfit::Promotion => "its promotion is not over",
            Unfit::GivenUp => "it gives the leadership up",
            Unfit::Doubt => "it does not know yet whether its redo is all that it wrote",
            Unfit::NoData => "it has no data yet",
            Unfit::NoQuorum => "it has too few copies, and another host may be the region's head",
        })
    }
}

/// A region in the epoch that it leads. Whoever was brought to its writer stays for as long as both hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Term {
    /// The region.
    pub region: RegionName,
    /// The epoch.
    pub epoch: Epoch,
}

/// Where a client goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// To a PostgreSQL of the region's own.
    Here(Near),
    /// To that of another region.
    There(RegionName),
}

/// Why a client waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Waits {
    /// Who leads is not known here.
    Unknown,
    /// A promotion is in progress.
    Promotion(Mode, RegionName),
    /// This region is to lead, and has not begun to.
    Begins(RegionName),
    /// This region leads, and its writer cannot be used.
    Writer(RegionName, Unfit),
    /// The region that leads did not take the client.
    Refused(RegionName, String),
    /// No region can be read that is fresh enough.
    NobodyFresh(String),
}

impl fmt::Display for Waits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Waits::Unknown => f.write_str("this region does not know who leads: too few voters answer"),
            Waits::Promotion(mode, to) => write!(f, "a {mode} to region {to} is in progress"),
            Waits::Begins(region) => write!(f, "region {region} is about to lead"),
            Waits::Writer(region, why) => write!(f, "region {region} leads, and {why}"),
            Waits::Refused(region, why) => write!(f, "region {region} takes no session: {why}"),
            Waits::NobodyFresh(why) => write!(f, "no region can be read that is fresh enough: {why}"),
        }
    }
}

impl Knows {
    /// The region that leads by the newest record that is known to be agreed, if nothing is about to change
    /// that.
    fn leads(&self) -> Result<Term, Waits> {
        let accepted = &self.view.accepted;
        let newest = self.view.pending.iter().chain([&accepted.record]);
        if let Some(promotion) = newest.filter_map(|record| record.promotion.as_ref()).next() {
            return Err(Waits::Promotion(promotion.mode, promotion.to.clone()));
        }
        let agreed = self.view.agreed.as_ref().filter(|agreed| agreed.number >= accepted.number);
        let Some(agreed) = agreed.filter(|_| self.view.remembers) else { return Err(Waits::Unknown) };
        if let Some(promotion) = &agreed.record.promotion {
            return Err(Waits::Promotion(promotion.mode, promotion.to.clone()));
        }
        Ok(Term { region: agreed.record.primary.clone(), epoch: agreed.record.epoch })
    }

    /// Where a client goes that wants the writer.
    ///
    /// # Errors
    /// Why it waits.
    pub fn writer(&self) -> Result<(Way, Term), Waits> {
        let term = self.leads()?;
        if term.region != self.me {
            return Ok((Way::There(term.region.clone()), term));
        }
        match (&self.part, &self.own) {
            (Part::Leading { epoch }, Own::Writes) if *epoch == term.epoch => {
                Ok((Way::Here(Near::Own), term))
            }
            (Part::Leading { .. }, Own::WritesNot(why) | Own::Closed(why)) => {
                Err(Waits::Writer(term.region, *why))
            }
            _ => Err(Waits::Begins(term.region)),
        }
    }

    /// The redo of the region is of `timeline`. Where another epoch has begun one since, a position may be of
    /// that, and what is shown here is another line's. The first epoch goes on on whatever there was.
    pub fn forget_other_line(&mut self, timeline: Timeline) {
        let epoch = self.view.accepted.record.epoch;
        if epoch == Epoch(1) || timeline_of(epoch) == timeline {
            return;
        }
        if let Own::Reads { shown_lsn, .. } = &mut self.own {
            *shown_lsn = Lsn::ZERO;
        }
        self.replicas.iter_mut().for_each(|replica| replica.shown_lsn = Lsn::ZERO);
    }

    /// The PostgreSQLs of this region that are fresh enough for a reader. The writer comes last: its replicas
    /// spare it. It shows all that was acknowledged, so that it is fresh enough for whatever position. Who of
    /// the others comes first is by `turn`, so that readers are spread.
    ///
    /// # Errors
    /// Why there is none.
    pub fn serves_reader(&self, wanted: &Freshness, turn: usize) -> Result<Vec<Near>, String> {
        let own = match &self.own {
            // A writer shows what is durable: only its commits wait.
            Own::Writes => Ok(()),
            Own::Reads { lag, shown_lsn } => wanted.takes(*lag, *shown_lsn),
            Own::WritesNot(why) | Own::Closed(why) => Err(why.to_string()),
        };
        let fresh = |replica: &&Replica| wanted.takes(replica.lag, replica.shown_lsn).is_ok();
        let replicas = self.replicas.iter().filter(fresh);
        let mut near: Vec<Near> =
            replicas.map(|replica| Near::Node(replica.node.clone(), replica.at)).collect();
        match (own, &self.own) {
            (Ok(()), Own::Writes) => {
                spread(&mut near, turn);
                near.push(Near::Own);
            }
            (Ok(()), _) => {
                near.push(Near::Own);
                spread(&mut near, turn);
            }
            (Err(why), _) if near.is_empty() => return Err(why),
            (Err(_), _) => spread(&mut near, turn),
        }
        Ok(near)
    }

    /// Whom a reader is brought to, the best first, among `regions`: this region, the other secondaries, and
    /// the primary at last.
    #[must_use]
    pub fn reader(&self, regions: &[RegionName], wanted: &Freshness, turn: usize) -> Vec<Way> {
        let own = self.serves_reader(wanted, turn).unwrap_or_default().into_iter().map(Way::Here);
        let primary = &self.view.accepted.record.primary;
        let others = || regions.iter().filter(|region| **region != self.me);
        let secondaries = others().filter(|region| *region != primary);
        let last = others().filter(|region| *region == primary);
        own.chain(secondaries.chain(last).cloned().map(Way::There)).collect()
    }

    /// Whether a client stays with the writer of `term`. What the record forbids counts at once; and a
    /// primary whose lease is over may have been replaced already.
    #[must_use]
    pub fn stays(&self, term: &Term) -> bool {
        if !self.view.supports(&term.region, term.epoch) {
            return false;
        }
        let leads = |epoch: Epoch| epoch == term.epoch;
        term.region != self.me
            || match (&self.part, &self.own) {
                (Part::Leading { epoch }, Own::WritesNot(why)) => {
                    leads(*epoch) && !matches!(why, Unfit::Lease | Unfit::NoQuorum)
                }
                // A writer that stops tells its clients itself.
                (Part::Leading { epoch } | Part::Stopping { epoch }, _) => leads(*epoch),
                _ => false,
            }
    }
}

fn spread(near: &mut [Near], turn: usize) {
    let first = turn % near.len().max(1);
    near.rotate_left(first);
}

/// What is asked of another region's daemon for a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// The writer of this epoch.
    Writer(Epoch),
    /// A PostgreSQL that is so fresh.
    Reader(Freshness),
}

impl Wanted {
    /// The position up to which all is to be seen; zero where none is named.
    #[must_use]
    pub fn at_least(&self) -> Lsn {
        match self {
            // It has all.
            Wanted::Writer(_) => Lsn::ZERO,
            Wanted::Reader(fresh) => fresh.at_least,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coordination::Number;
    use coordination::leadership::{Leadership, Loss, Promotion, Step};
    use coordination::register::Accepted;

    fn name(text: &str) -> RegionName {
        text.parse().unwrap()
    }

    fn record(epoch: u64, primary: &str) -> Leadership {
        Leadership::first(Epoch(epoch), name(primary))
    }

    fn promotion(step: Step) -> Promotion {
        Promotion {
            id: 7,
            mode: Mode::Failover,
            from: name("a"),
            to: name("b"),
            epoch: Epoch(4),
            step,
            coordinator: name("b"),
            attempt: 0,
            forced: false,
            lost: [].into(),
            loss_max_bytes: None,
            order: None,
            fork_lsn: Lsn::ZERO,
            parent: 1,
            loss: Loss::default(),
            steps: Vec::new(),
        }
    }

    /// Region `me`, to which it is known that `a` leads epoch 3.
    fn knows(me: &str) -> Knows {
        let accepted = Accepted { number: Number { round: 5, ..Number::default() }, record: record(3, "a") };
        let view =
            View { accepted: accepted.clone(), agreed: Some(accepted), pending: Vec::new(), remembers: true };
        let (part, own) = match me {
            "a" => (Part::Leading { epoch: Epoch(3) }, Own::Writes),
            _ => (Part::Following, reads(Some(Duration::from_millis(3)))),
        };
        Knows { me: name(me), view, part, own, replicas: Vec::new() }
    }

    fn reads(lag: Option<Duration>) -> Own {
        Own::Reads { lag, shown_lsn: Lsn(1000) }
    }

    fn within(lag_max: Duration) -> Freshness {
        Freshness { lag_max, at_least: Lsn::ZERO }
    }

    fn term() -> Term {
        Term { region: name("a"), epoch: Epoch(3) }
    }

    #[test]
    fn the_writer_is_found_from_everywhere() {
        assert_eq!(knows("a").writer(), Ok((Way::Here(Near::Own), term())));
        assert_eq!(knows("b").writer(), Ok((Way::There(name("a")), term())));
        assert!(knows("a").stays(&term()) && knows("b").stays(&term()));
        let forgot = |mut knows: Knows| {
            knows.view.remembers = false;
            knows
        };
        assert_eq!(forgot(knows("b")).writer(), Err(Waits::Unknown));
        let mut unheard = knows("b");
        unheard.view.agreed = None;
        assert_eq!(unheard.writer(), Err(Waits::Unknown));
    }

    #[test]
    fn new_clients_wait_while_a_promotion_is_in_progress_and_those_of_a_writer_that_is_shut_out_go() {
        for step in [Step::HandOver, Step::Fence] {
            for how in ["pending", "accepted"] {
                let mut knows = knows("b");
                let next = Leadership { promotion: Some(promotion(step)), ..record(3, "a") };
                match how {
                    "pending" => knows.view.pending.push(next),
                    _ => knows.view.accepted.record = next,
                }
                assert_eq!(
                    knows.writer(),
                    Err(Waits::Promotion(Mode::Failover, name("b"))),
                    "{step:?} {how}"
                );
                assert_eq!(knows.stays(&term()), step == Step::HandOver, "{step:?} {how}");
            }
        }
        let mut over = knows("b");
        over.view.accepted.record = record(4, "b");
        over.view.accepted.number.round += 1;
        over.view.agreed = Some(over.view.accepted.clone());
        assert!(!over.stays(&term()));
        assert_eq!(over.writer(), Err(Waits::Begins(name("b"))));
        (over.part, over.own) = (Part::Leading { epoch: Epoch(4) }, Own::Writes);
        assert_eq!(over.writer(), Ok((Way::Here(Near::Own), Term { region: name("b"), epoch: Epoch(4) })));
    }

    #[test]
    fn a_primary_without_a_lease_keeps_nobody_and_a_writer_that_starts_keeps_those_it_has() {
        let mut knows = knows("a");
        knows.own = Own::WritesNot(Unfit::Lease);
        assert!(!knows.stays(&term()));
        assert_eq!(knows.writer(), Err(Waits::Writer(name("a"), Unfit::Lease)));
        knows.own = Own::WritesNot(Unfit::Starts);
        assert!(knows.stays(&term()));
        knows.part = Part::Stopping { epoch: Epoch(3) };
        assert!(knows.stays(&term()));
        knows.part = Part::Following;
        assert!(!knows.stays(&term()));
    }

    #[test]
    fn readers_go_to_what_is_near_and_fresh() {
        let regions = [name("a"), name("b"), name("c")];
        let (second, limit) = (Duration::from_secs(1), within(Duration::from_secs(1)));
        let there = |region: &str| Way::There(name(region));
        let here = || Way::Here(Near::Own);
        assert_eq!(knows("b").reader(&regions, &limit, 0), [here(), there("c"), there("a")]);
        assert_eq!(knows("a").reader(&regions, &limit, 0), [here(), there("b"), there("c")]);
        for lag in [None, Some(second * 2)] {
            let mut behind = knows("b");
            behind.own = reads(lag);
            assert_eq!(behind.reader(&regions, &limit, 0), [there("c"), there("a")]);
            assert!(behind.serves_reader(&limit, 0).is_err());
        }
    }

    #[test]
    fn readers_are_spread_over_replicas_that_are_fresh_and_spare_the_writer() {
        let (second, ms) = (Duration::from_secs(1), Duration::from_millis);
        let limit = within(second);
        let replica = |node: &str, lag| Replica {
            node: node.parse().unwrap(),
            at: "127.0.0.1:1".parse().unwrap(),
            lag,
            shown_lsn: Lsn(if node == "n1" { 900 } else { 1100 }),
        };
        let names = |near: Result<Vec<Near>, String>| -> Vec<String> {
            let name = |near: Near| match near {
                Near::Own => "own".to_owned(),
                Near::Node(node, _) => node.to_string(),
            };
            near.unwrap().into_iter().map(name).collect()
        };
        let replicas = vec![
            replica("n1", Some(ms(3))),
            replica("late", Some(second * 2)),
            replica("n2", Some(ms(900))),
            replica("new", None),
        ];
        let primary = Knows { replicas: replicas.clone(), ..knows("a") };
        assert_eq!(names(primary.serves_reader(&limit, 0)), ["n1", "n2", "own"]);
        assert_eq!(names(primary.serves_reader(&limit, 1)), ["n2", "n1", "own"]);
        let secondary = Knows { replicas, ..knows("b") };
        let after = |at_least| Freshness { at_least: Lsn(at_least), ..limit };
        assert_eq!(names(primary.serves_reader(&after(901), 0)), ["n2", "own"], "n1 has not come so far");
        assert_eq!(names(primary.serves_reader(&after(9999), 0)), ["own"], "the writer has all");
        assert_eq!(names(secondary.serves_reader(&after(1000), 0)), ["n2", "own"]);
        assert_eq!(names(secondary.serves_reader(&after(1001), 0)), ["n2"]);
        let none = secondary.serves_reader(&after(1101), 0).unwrap_err();
        assert!(none.contains("0/3E8") && none.contains("0/44D"), "{none}");
        // Epoch 3 is on timeline 3: what is of an earlier one says nothing of a position.
        for (timeline, expected) in [(3, vec!["own", "n2"]), (2, vec![])] {
            let mut on = Knows { replicas: secondary.replicas.clone(), ..knows("b") };
            on.forget_other_line(Timeline(timeline));
            let found = on.serves_reader(&after(1000), 1).map_or_else(|_| Vec::new(), |near| names(Ok(near)));
            let found: std::collections::BTreeSet<String> = found.into_iter().collect();
            assert_eq!(found, expected.into_iter().map(str::to_owned).collect(), "{timeline}");
            assert!(on.serves_reader(&limit, 0).is_ok(), "who names none is served");
        }
        let firsts: Vec<String> =
            (0..6).map(|turn| names(secondary.serves_reader(&limit, turn)).remove(0)).collect();
        assert_eq!(firsts, ["n1", "n2", "own", "n1", "n2", "own"]);
        let closed = Knows { own: Own::Closed(Unfit::Silent), ..secondary };
        assert_eq!(names(closed.serves_reader(&limit, 2)), ["n1", "n2"], "its own does not answer");
        assert!(closed.serves_reader(&within(ms(1)), 0).is_err());
    }
}
