//! How a voter without a memory gets one: `coordination::memory` decides.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use coordination::lawful::Unlawful;
use coordination::memory::{self, Memory, Recall, Said};
use coordination::register::Answer;
use coordination::{Acceptor, Number};
use proto::RegionName;
use proto::messages::{self as m, Refusal, control_request, control_response};
use tokio::task::JoinSet;

use super::rounds::ROUND;
use super::{Voter, lock, wire};
use crate::client::AskError;

/// How a voter came to have a memory.
enum TakenUp {
    FirstStart(BTreeMap<RegionName, u64>),
    Told(Memory, Box<Acceptor>),
}

impl Voter {
    /// Whether this voter knows what it has promised and accepted.
    #[must_use]
    pub fn remembers(&self) -> bool {
        self.kept.get().memory.remembers
    }

    /// Whether this voter may answer another one: it promises, accepts and supports nothing before it has a
    /// memory.
    ///
    /// # Errors
    /// A refusal that says what it waits for.
    pub fn able(&self) -> Result<(), Refusal> {
        if self.remembers() {
            return Ok(());
        }
        let why = lock(&self.forgot).clone();
        let why =
            if why.is_empty() { "this voter has just been started for the first time".into() } else { why };
        Err(Refusal::new(m::refusal::Kind::Busy, format!("voter {}: {why}", self.me)))
    }

    /// Tells `from`, whose directory has the id in `request`, what this voter knows of its memory.
    #[must_use]
    pub fn answer_recall(&self, from: &RegionName, request: m::RecallRequest) -> control_response::Body {
        let recalled = wire::recalled(&self.kept.get(), self.remembers(), from, request.id);
        control_response::Body::Recalled(recalled)
    }

    /// An operator's word, that what those say who answer is all that there is to know.
    ///
    /// # Errors
    /// When this voter remembers, or still does not.
    pub async fn answer_revote(self: &Arc<Self>) -> Result<control_response::Body, Refusal> {
        if self.remembers() {
            let reason = format!("voter {} remembers what it has promised: it votes already", self.me);
            return Err(Refusal::new(m::refusal::Kind::NotAllowed, reason));
        }
        tracing::warn!("voter {}: votes again on an operator's word", self.me);
        self.recall(true).await;
        self.able()?;
        Ok(control_response::Body::Done(true))
    }

    /// Has connections to the others made, as they are about to be asked. What they answer is of no use yet.
    pub fn greet(self: &Arc<Self>) {
        for voter in self.voters.iter().filter(|voter| voter.name != self.me) {
            let (this, name) = (self.clone(), voter.name.clone());
            self.spawn(async move {
                let _ = this.ask(&name, control_request::Body::Survey(m::SurveyRequest {}), ROUND).await;
            });
        }
    }

    /// Tries once to get a memory.
    pub(super) async fn recall(self: &Arc<Self>, word: bool) {
        let tried = self.try_to_recall(word).await;
        let told = match &tried {
            Ok(TakenUp::FirstStart(together)) => {
                let names: Vec<&str> = together.keys().map(RegionName::as_str).collect();
                format!("this is the cluster's first start, with {}", names.join(", "))
            }
            Ok(TakenUp::Told(_, acceptor)) => {
                let record = acceptor.record();
                format!("it was told epoch {} of {}, and votes again", record.epoch, record.primary)
            }
            Err(why) => why.clone(),
        };
        let kept = match tried {
            Ok(taken) => self.kept.change(|state| {
                match taken {
                    // Another task may have been faster.
                    _ if state.memory.remembers => {}
                    TakenUp::FirstStart(together) => {
                        (state.memory.remembers, state.memory.may_create) = (true, true);
                        state.memory.together = together;
                    }
                    TakenUp::Told(memory, acceptor) => {
                        (state.memory, state.acceptor) = (memory, *acceptor);
                        state.forgot = state.system_id.is_none();
                    }
                }
            }),
            Err(_) => Ok(()),
        };
        let told = kept.err().map_or(told, |e| e.to_string());
        let last = std::mem::replace(&mut *lock(&self.forgot), told.clone());
        if last != told {
            tracing::warn!("voter {}: {told}", self.me);
        }
        self.changed.notify_waiters();
    }

    async fn try_to_recall(self: &Arc<Self>, word: bool) -> Result<TakenUp, String> {
        let memory = self.kept.get().memory.clone();
        let others: BTreeSet<RegionName> =
            self.voters.iter().map(|voter| voter.name.clone()).filter(|name| *name != self.me).collect();
        let said =
            self.ask_all(&others, control_request::Body::Recall(m::RecallRequest { id: memory.id })).await;
        let said = said.into_iter().filter_map(|(name, answer)| match answer {
            control_response::Body::Recalled(recalled) => Some((name, wire::to_said(&recalled).ok()?)),
            _ => None,
        });
        let said: BTreeMap<RegionName, Said> = said.collect();
        match memory::next(&self.me, &memory, &self.file, &said, self.proposer, word) {
            Recall::Wait(lacking) => Err(lacking.to_string()),
            Recall::FirstStart { together } => Ok(TakenUp::FirstStart(together)),
            Recall::Ask { number } => self.ask_for(number, &memory, &others, &said, word).await,
        }
    }

    async fn ask_for(
        self: &Arc<Self>,
        number: Number,
        memory: &Memory,
        others: &BTreeSet<RegionName>,
        said: &BTreeMap<RegionName, Said>,
        word: bool,
    ) -> Result<TakenUp, String> {
        self.note_proposed(number);
        let promised = self.ask_all(others, control_request::Body::Prepare(wire::number(number))).await;
        let accepted: BTreeMap<_, _> = promised
            .into_iter()
            .filter_map(|(name, answer)| match wire::voted(answer) {
                Ok((Answer::Promised(accepted), _)) => {
                    // By an operator's word what is said counts as it is.
                    let judged = self.judge_promised(&accepted, number);
                    let counts = match &judged {
                        Err(Unlawful::Unordered(why)) if !word => {
                            tracing::warn!("{name} remembers what nobody has ordered: {why}");
                            false
                        }
                        Err(Unlawful::Unordered(_)) | Ok(()) => true,
                        Err(_) => false,
                    };
                    counts.then_some((name, accepted))
                }
                _ => None,
            })
            .collect();
        let taken = memory::take_up(&self.me, memory, number, &accepted, &self.file, said, word);
        taken.map(|(memory, acceptor)| TakenUp::Told(memory, Box::new(acceptor))).ok_or_else(|| {
            format!(
                "this voter has no memory of its votes: {} of the other voters have told it theirs, and these are too few; it asks again",
                accepted.len()
            )
        })
    }

    /// Asks each of `names`; what they answer comes as it comes.
    pub(super) fn begin_to_ask(
        self: &Arc<Self>,
        names: &BTreeSet<RegionName>,
        body: &control_request::Body,
    ) -> JoinSet<(Result<control_response::Body, AskError>, RegionName)> {
        let mut asking = JoinSet::new();
        for name in names {
            let (this, name, body) = (self.clone(), name.clone(), body.clone());
            asking.spawn(async move { (this.ask(&name, body, ROUND).await, name) });
        }
        asking
    }

    /// What each of `names` answers that does answer.
    async fn ask_all(
        self: &Arc<Self>,
        names: &BTreeSet<RegionName>,
        body: control_request::Body,
    ) -> BTreeMap<RegionName, control_response::Body> {
        let mut asking = self.begin_to_ask(names, &body);
        let mut answers = BTreeMap::new();
        while let Some(asked) = asking.join_next().await {
            if let Ok((Ok(answer), name)) = asked {
                answers.insert(name, answer);
            }
        }
        answers
    }
}
