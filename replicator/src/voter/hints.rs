//! What other voters say is judged before it counts: no correct voter can say some of it
//! (`coordination::lawful`), and what one of them says is agreed is a hint. It counts as agreed once a
//! majority says that it has accepted just that; who tells of it and this voter may be one.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use coordination::lawful::{self, Unlawful};
use coordination::leadership::Change;
use coordination::orders::{self, Known, Unordered};
use coordination::planted::{self, Bug};
use coordination::register::{Accepted, Answer};
use coordination::{Leadership, Number};
use proto::messages::{self as m, Refusal, control_request, control_response, refusal::Kind};
use proto::{Epoch, RegionName};
use runtime::clock::wall_us;

use super::{Voter, failed, lock, wire};

/// Whether a voter must know who asks `body` to answer it: [`Voter::answer`] does.
#[must_use]
pub fn of_a_voter(body: &control_request::Body) -> bool {
    use control_request::Body;
    matches!(body, Body::Support(_) | Body::Recall(_) | Body::Learn(_))
}

fn refused(why: &Unlawful) -> Refusal {
    Refusal::new(Kind::Protocol, format!("no correct voter says that: {why}"))
}

impl Voter {
    /// Answers what [`of_a_voter`] names.
    ///
    /// # Errors
    /// A refusal, for `from`.
    pub fn answer(
        self: &Arc<Self>,
        from: &RegionName,
        body: control_request::Body,
    ) -> Result<control_response::Body, Refusal> {
        match body {
            control_request::Body::Support(request) => {
                if let Some(theirs) = &request.agreement {
                    self.compare(from, theirs);
                }
                self.support(from, Epoch(request.epoch))?;
                let agreement = Some(self.agreement());
                Ok(control_response::Body::Supported(m::Supported { agreement }))
            }
            control_request::Body::Recall(request) => Ok(self.answer_recall(from, request)),
            control_request::Body::Learn(agreed) => self.answer_learn(from, &agreed),
            _ => Err(Refusal::new(Kind::Protocol, "a voter does not answer that")),
        }
    }

    /// Looks into what `from` says is agreed.
    ///
    /// # Errors
    /// When it is no record, or no correct voter says that.
    pub fn answer_learn(
        self: &Arc<Self>,
        from: &RegionName,
        agreed: &m::Accepted,
    ) -> Result<control_response::Body, Refusal> {
        self.able()?;
        let told = wire::to_accepted(agreed).map_err(failed)?;
        // One that is late is of no use, and not wrong.
        if self.agreed().is_none_or(|known| known.number < told.number) {
            self.judge_number(told.number)?;
            self.judge_record(&told.record).map_err(|why| refused(&why))?;
            // Whether it was ordered is for those to judge who have accepted it: their majority is asked.
            self.look_into(from, told);
        }
        Ok(control_response::Body::Done(true))
    }

    fn look_into(self: &Arc<Self>, from: &RegionName, told: Accepted) {
        let mut have = BTreeSet::from([from.clone()]);
        if *self.kept.get().acceptor.accepted() == told {
            have.insert(self.me.clone());
        }
        // Who tells of other voters than an operator has signed is heard by those who are known.
        let known = self.voters_were_ordered(&told.record).is_err().then(|| self.electorate());
        let voters = told.record.electorate(&self.file).clone();
        let decide = move |have: &BTreeSet<RegionName>| {
            let has = |name: &RegionName| have.contains(name);
            voters.decide(has) && known.as_ref().is_none_or(|known| known.decide(has))
        };
        if decide(&have) || planted::is(Bug::BelievesHints) {
            return self.take(&told);
        }
        {
            let mut hinted = lock(&self.hinted);
            if *hinted >= told.number {
                return;
            }
            *hinted = told.number;
        }
        let this = self.clone();
        self.spawn(async move {
            let others = this.voters.iter().map(|voter| voter.name.clone());
            let others: BTreeSet<RegionName> =
                others.filter(|name| *name != this.me && !have.contains(name)).collect();
            let request = control_request::Body::Recall(m::RecallRequest::default());
            let mut asking = this.begin_to_ask(&others, &request);
            while !decide(&have)
                && let Some(asked) = asking.join_next().await
            {
                if let Ok((Ok(control_response::Body::Recalled(recalled)), name)) = asked
                    && recalled.remembers
                    && matches!(recalled.accepted.as_ref().map(wire::to_accepted), Some(Ok(theirs)) if theirs == told)
                {
                    have.insert(name);
                }
                if *this.kept.get().acceptor.accepted() == told {
                    have.insert(this.me.clone());
                }
            }
            match decide(&have) {
                true => this.take(&told),
                // Told again, it is looked into again.
                false => *lock(&this.hinted) = Number::default(),
            }
        });
    }

    fn take(&self, agreed: &Accepted) {
        if let Err(e) = self.learn(agreed) {
            tracing::error!("{e}");
        }
    }

    /// Whether a correct proposer can have this number.
    ///
    /// # Errors
    /// A refusal, when it is far ahead. A voter that was away for long reads then.
    pub(super) fn judge_number(self: &Arc<Self>, number: Number) -> Result<(), Refusal> {
        let judged = lawful::number(number, self.highest());
        if judged.is_err() {
            self.catch_up();
        }
        judged.map_err(|why| refused(&why))
    }

    fn catch_up(self: &Arc<Self>) {
        if self.catching_up.swap(true, Ordering::Relaxed) {
            return;
        }
        let this = self.clone();
        self.spawn(async move {
            let _ = this.change(&Change::Read).await;
            this.catching_up.store(false, Ordering::Relaxed);
        });
    }

    fn judge_record(&self, record: &Leadership) -> Result<(), Unlawful> {
        let voters = self.voters.iter().map(|voter| voter.name.clone()).collect();
        lawful::form(record, &self.regions, &voters)?;
        self.agreed.borrow().as_ref().map_or(Ok(()), |agreed| lawful::follows(record, &agreed.record))
    }

    /// Whether all in `record` that is new here was ordered.
    fn judge_orders(&self, record: &Leadership) -> Result<(), Unlawful> {
        Ok(self.with_known(|known| orders::judge(record, known, &*self.orders))?)
    }

    fn voters_were_ordered(&self, record: &Leadership) -> Result<(), Unordered> {
        self.with_known(|known| orders::judge_voters(record, known, &*self.orders))
    }

    fn with_known<T>(&self, judge: impl FnOnce(Known<'_>) -> T) -> T {
        let (agreed, state) = (self.agreed(), self.kept.get());
        // What was agreed in an earlier life is agreed.
        let agreed = agreed.as_ref().map(|agreed| &agreed.record).or(state.agreed.as_ref());
        judge(Known {
            agreed,
            accepted: state.acceptor.record(),
            file: &self.file,
            heard_us: self.heard_us(),
            now_us: wall_us(),
        })
    }

    /// A proposal and the number that is asked to be promised with it, if a correct voter can propose that.
    ///
    /// # Errors
    /// A refusal, when it is none, or this voter has no memory.
    pub fn judge_proposal(self: &Arc<Self>, accept: m::Accept) -> Result<(Accepted, Number), Refusal> {
        self.able()?;
        let proposal = wire::to_accepted(&accept.proposal.unwrap_or_default()).map_err(failed)?;
        let next = wire::to_number(accept.next.unwrap_or_default());
        self.judge_number(proposal.number)?;
        lawful::next_number(proposal.number, next).map_err(|why| refused(&why))?;
        // A late proposal that is outbid changes nothing, and may well be of the time before what is agreed
        // by now.
        if self.would_accept(proposal.number) {
            let judged = self.judge_record(&proposal.record);
            let judged = judged.and_then(|()| self.judge_orders(&proposal.record));
            if matches!(judged, Err(Unlawful::Unordered(_))) {
                // A majority may have accepted what it follows from while this voter was away.
                self.catch_up();
            }
            judged.map_err(|why| refused(&why))?;
        }
        Ok((proposal, next))
    }

    /// Whether a voter that promises `number` can have accepted `accepted`.
    pub(super) fn judge_promised(&self, accepted: &Accepted, number: Number) -> Result<(), Unlawful> {
        lawful::promise(accepted, number)?;
        let voters = self.voters.iter().map(|voter| voter.name.clone()).collect();
        lawful::form(&accepted.record, &self.regions, &voters)?;
        // What it accepted before the newest that is agreed is not the newest of those promised.
        match self.agreed() {
            Some(agreed) if agreed.number <= accepted.number => {
                lawful::follows(&accepted.record, &agreed.record)?;
                self.judge_orders(&accepted.record)
            }
            Some(_) => Ok(()),
            None => self.judge_orders(&accepted.record),
        }
    }

    /// An answer to the question under `number`, if a correct voter can give it; the reason in words, if not.
    pub(super) fn judge_answer(
        self: &Arc<Self>,
        from: &RegionName,
        answer: Answer,
        number: Number,
    ) -> Result<Answer, String> {
        if let Answer::Promised(accepted) = &answer {
            let judged = self.judge_promised(accepted, number);
            if matches!(judged, Err(Unlawful::Unordered(_))) {
                // It may be what a majority has agreed on, while this voter was away.
                self.look_into(from, accepted.clone());
            }
            judged.map_err(|why| format!("no correct voter says that: {why}"))?;
        }
        Ok(answer)
    }
}
