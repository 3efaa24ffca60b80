//! What a voter is told is judged: a message that no correct voter can send is refused, each kind of it; a
//! hint is not a fact; and a voter without a memory answers nothing.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use coordination::leadership::{Change, Loss, Next, Order};
use coordination::orders::{Automatic, Orders, Verified};
use coordination::register::Accepted;
use coordination::{Electorate, Leadership, Mode, Number, SignedOrder, Voters};
use proto::messages::{self as m, Refusal, control_request, control_response, refusal::Kind};
use proto::{ClusterId, Epoch, Lsn, RegionName, Timeline};
use replicator::client::AskError;
use replicator::config::{Place, Role};
use replicator::region_file::{RegionFile, RegionState};
use replicator::voter::{Network, Voter, VoterOptions, wire};

fn name(text: &str) -> RegionName {
    text.parse().unwrap()
}

/// Nobody else answers.
#[derive(Debug)]
struct Nobody;

impl Network for Nobody {
    fn ask<'a>(
        &'a self,
        _: &'a Place,
        _: control_request::Body,
        _: Duration,
    ) -> Pin<Box<dyn Future<Output = Result<control_response::Body, AskError>> + Send + 'a>> {
        Box::pin(async { Err(AskError::Slow(0)) })
    }
}

/// Nobody signs here; whether that has to be done.
#[derive(Debug)]
struct Unsigned {
    required: bool,
}

impl Orders for Unsigned {
    fn required(&self) -> bool {
        self.required
    }

    fn carried(&self) -> bool {
        false
    }

    fn automatic(&self) -> Option<Automatic> {
        None
    }

    fn verify(&self, _: &SignedOrder) -> Result<Verified, String> {
        Err("nobody signs here".into())
    }
}

/// Voter b, of the regions a and b and the witness w.
fn voter(remembers: bool) -> Arc<Voter> {
    voter_of(remembers, false)
}

fn voter_of(remembers: bool, required: bool) -> Arc<Voter> {
    let mut state = RegionState::new(ClusterId([1; 16]), name("b"), Role::Secondary, first(), 7);
    state.memory.remembers = remembers;
    let places = ["a", "b", "w"].map(|text| Place { name: name(text), advertise: String::new() });
    Voter::with(VoterOptions {
        me: name("b"),
        voters: places.to_vec(),
        regions: [name("a"), name("b")].into(),
        agreement: m::Agreement::default(),
        lease: Duration::from_secs(5),
        commits_elsewhere: false,
        kept: Arc::new(RegionFile::in_memory(state)),
        orders: Arc::new(Unsigned { required }),
        network: Box::new(Nobody),
        proposer: 3,
    })
}

fn first() -> Leadership {
    Leadership::first(Epoch(1), name("a"))
}

fn begun() -> Leadership {
    let order = Order::new(1, Epoch(1), Mode::Failover, &name("b"));
    first().apply(&Change::Begin(order)).unwrap()
}

fn promoted() -> Leadership {
    let next = Next::Promote { fork_lsn: Lsn(50), parent: Timeline(1), loss: Loss::default() };
    begun().apply(&Change::Advance { id: 1, attempt: 0, next, done: vec![] }).unwrap()
}

fn at(round: u64) -> Number {
    Number { round, proposer: 9 }
}

fn accepted(round: u64, record: &Leadership) -> Accepted {
    Accepted { number: at(round), record: record.clone() }
}

fn proposal(round: u64, record: &Leadership) -> m::Accept {
    let proposal = Some(wire::accepted(&accepted(round, record)));
    m::Accept { proposal, next: Some(wire::number(at(round + 1))) }
}

fn kind<T>(answer: Result<T, Refusal>) -> Option<Kind> {
    answer.err().map(|refusal| refusal.kind())
}

#[tokio::test]
async fn a_forged_message_is_refused_each_kind() {
    let voter = voter(true);
    let judged = |accept: m::Accept| voter.judge_proposal(accept).err().map(|refusal| refusal.reason);
    let says = |accept: m::Accept, word: &str| {
        let reason = judged(accept).unwrap_or_default();
        assert!(reason.contains(word), "'{word}' is not in: {reason}");
    };
    assert_eq!(judged(proposal(5, &begun())), None);
    says(proposal(5, &Leadership::first(Epoch(1), name("x"))), "is no region");
    says(proposal(5, &Leadership::first(Epoch(1), name("w"))), "is no region");
    let mut odd = begun();
    odd.promotion.as_mut().unwrap().epoch = Epoch(1);
    says(proposal(5, &odd), "contradicts the record");
    let mut coordinated = begun();
    coordinated.promotion.as_mut().unwrap().coordinator = name("x");
    says(proposal(5, &coordinated), "no voter");
    says(proposal(1 << 60, &begun()), "far ahead");
    let next = Some(wire::number(at(1 << 40)));
    says(m::Accept { next, ..proposal(5, &begun()) }, "next number");
    assert_eq!(kind(voter.answer_prepare(wire::number(at(u64::MAX)))), Some(Kind::Protocol));
    // What contradicts that which is agreed.
    voter.learn(&accepted(6, &promoted())).unwrap();
    says(proposal(7, &first()), "below epoch 2");
    let other = Leadership { primary: name("a"), promotion: None, ..promoted() };
    says(proposal(7, &other), "which is agreed");
    says(proposal(7, &Leadership { epoch: Epoch(1 << 40), promotion: None, ..promoted() }), "far ahead");
    assert_eq!(judged(proposal(7, &promoted())), None);
    assert_eq!(
        kind(voter.answer_learn(&name("w"), &wire::accepted(&accepted(7, &first())))),
        Some(Kind::Protocol)
    );
}

#[tokio::test]
async fn a_lying_witness_cannot_install_a_primary() {
    let voter = voter(true);
    // It is lawful, and made up: nobody else has accepted it.
    let lie = wire::accepted(&accepted(8, &promoted()));
    assert!(voter.answer_learn(&name("w"), &lie).is_ok());
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(voter.agreed(), None);
    assert_eq!(voter.accepted(), first(), "nor is it obeyed");
    // What this voter has accepted as well is accepted by a majority of three.
    voter.accept(&accepted(9, &begun()), at(10)).unwrap();
    assert!(voter.answer_learn(&name("a"), &wire::accepted(&accepted(9, &begun()))).is_ok());
    assert_eq!(voter.agreed(), Some(accepted(9, &begun())));
}

/// One message that says that its sender alone votes, leads, and that this is agreed.
#[tokio::test]
async fn who_says_that_he_alone_votes_is_asked_of_those_who_do() {
    let voter = voter_of(true, true);
    let voters = |names: &[&str]| {
        let regions = names.iter().map(|text| name(text)).collect();
        Electorate { steps: 2, ..Electorate::of(Voters { regions, ..Voters::default() }) }
    };
    for (round, known) in [(6, None), (8, Some(voters(&["a", "b", "w"])))] {
        let agreed = Leadership { voters: known, ..first() };
        voter.learn(&accepted(round, &agreed)).unwrap();
        let alone = Some(Electorate { steps: 9, ..voters(&["a"]) });
        let lie = Leadership { epoch: Epoch(2), primary: name("a"), voters: alone, ..agreed.clone() };
        let _ = voter.answer_learn(&name("a"), &wire::accepted(&accepted(round + 1, &lie)));
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(voter.agreed().unwrap().record, agreed);
        assert_eq!(voter.accepted(), agreed);
    }
}

#[tokio::test]
async fn a_voter_without_a_memory_answers_nothing() {
    let voter = voter(false);
    assert_eq!(kind(voter.answer_prepare(wire::number(at(5)))), Some(Kind::Busy));
    assert_eq!(kind(voter.judge_proposal(proposal(5, &begun()))), Some(Kind::Busy));
    assert_eq!(kind(voter.witness_vote(proposal(5, &begun()))), Some(Kind::Busy));
    assert_eq!(kind(voter.support(&name("a"), Epoch(1))), Some(Kind::Busy));
    let learn = wire::accepted(&accepted(5, &begun()));
    assert_eq!(kind(voter.answer_learn(&name("a"), &learn)), Some(Kind::Busy));
    assert!(voter.change(&Change::Read).await.is_err() && voter.standing().is_none());
    let word = voter.answer_revote().await;
    assert!(word.is_ok() && voter.remembers(), "an operator's word");
    assert_eq!(kind(voter.answer_revote().await), Some(Kind::NotAllowed), "it is not taken twice");
}
