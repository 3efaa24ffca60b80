//! What an operator asks of the voters: who they are, and that one is added or removed.

use std::collections::BTreeSet;
use std::time::Duration;

use coordination::leadership::{Change, Conflict};
use coordination::orders::Content;
use coordination::voters::Hindrance;
use coordination::{Leadership, Membership, SignedOrder};
use proto::RegionName;
use proto::messages::{self as m, Refusal, control_request, control_response, refusal::Kind};
use runtime::clock::now;

use super::Region;
use crate::orders;
use crate::voter::ChangeError;

/// How long a voter may take to say whether it is there.
const ASK: Duration = Duration::from_secs(1);

/// How long what hinders a change may take to be over.
const PATIENCE: Duration = Duration::from_secs(20);

/// The wait before it is tried again.
const AGAIN: Duration = Duration::from_millis(300);

fn busy(reason: String) -> Refusal {
    Refusal::new(Kind::Busy, reason)
}

impl Region {
    /// Shows the voters, once one was added or removed as `request` says. What was done already is not done
    /// again.
    pub(super) async fn voters(&self, request: m::VotersRequest) -> Result<m::VotersView, Refusal> {
        let name = |text: &str| text.parse().map_err(|e: proto::ids::ParseIdError| busy(e.to_string()));
        let membership = match (request.add.as_str(), request.remove.as_str()) {
            ("", "") => return Ok(self.show_voters(self.voter.agreed().map(|agreed| agreed.record))),
            (add, "") => self.addition(name(add)?)?,
            (_, remove) => Membership::Remove { name: name(remove)? },
        };
        let order = orders::in_request(request.order.as_ref()).filter(|_| self.voter.orders().carried());
        self.was_signed(order.as_ref(), &membership)?;
        let begin = now();
        loop {
            match self.try_to_change(&membership, order.as_ref()).await {
                Ok(record) => return Ok(self.show_voters(Some(record))),
                Err(Hindered::ForNow(why)) if begin.elapsed() >= PATIENCE => {
                    return Err(busy(format!("{why}. What was begun goes on; the command can be repeated")));
                }
                Err(Hindered::ForNow(_)) => tokio::time::sleep(AGAIN).await,
                Err(Hindered::ForGood(why)) => return Err(Refusal::new(Kind::NotAllowed, why)),
            }
        }
    }

    fn addition(&self, name: RegionName) -> Result<Membership, Refusal> {
        let witness = self.config.witnesses.iter().any(|witness| witness.name == name);
        if !witness && self.config.region(&name).is_none() {
            let reason = format!(
                "{name} is not in this daemon's regions.toml: write it into every daemon's file, restart them one after the other, start \
                 {name}, and then add it"
            );
            return Err(Refusal::new(Kind::NotAllowed, reason));
        }
        Ok(Membership::Add { name, witness })
    }

    async fn try_to_change(
        &self,
        membership: &Membership,
        order: Option<&SignedOrder>,
    ) -> Result<Leadership, Hindered> {
        let record = self.voter.change(&Change::Read).await?;
        let voters = record.electorate(self.voter.file()).clone();
        if let Membership::Remove { name } = membership {
            self.is_known(name, &record)?;
        }
        // What the record itself forbids is said before what hinders for now.
        let by = self.own.name.clone();
        record
            .apply_with(
                &Change::Voters { by, membership: membership.clone(), order: order.cloned() },
                self.voter.file(),
            )
            .map_err(ChangeError::from)?;
        let changed = voters.step(membership, order).map_err(|e| ChangeError::from(Conflict::from(e)))?;
        if changed.now != voters.now {
            let answer = self.who_answers(&changed.names()).await;
            if let Membership::Add { name, .. } = membership
                && !answer.contains(name)
            {
                let why = format!("{name} does not answer as a voter: start it, and see its log");
                return Err(Hindered::ForNow(why));
            }
            if !changed.decide(|name| answer.contains(name)) {
                let silent: Vec<String> = changed
                    .names()
                    .iter()
                    .filter(|name| !answer.contains(*name))
                    .map(ToString::to_string)
                    .collect();
                return Err(Hindered::ForNow(format!(
                    "{} would not answer, and there would be no majority of {}: start those first, or add another voter before this is \
                     removed",
                    silent.join(", "),
                    changed.now
                )));
            }
        }
        Ok(self.voter.change_voters(membership.clone(), order.cloned()).await?)
    }

    /// Whether an operator has signed what other voters would refuse otherwise. What the record has by the
    /// time that they vote is theirs to judge.
    fn was_signed(&self, order: Option<&SignedOrder>, membership: &Membership) -> Result<(), Refusal> {
        if !self.voter.orders().required() {
            return Ok(());
        }
        let refused = |why: String| Refusal::new(Kind::NotAllowed, format!("{why}. Nothing was changed"));
        let order = order.ok_or_else(|| refused(orders::UNSIGNED.into()))?;
        let verified = self.voter.orders().verify(order).map_err(refused)?;
        let wanted = self.voter.electorate().after(membership);
        match verified.content {
            Content::Voters { voters, .. } if voters == wanted => Ok(()),
            _ => Err(refused(format!(
                "the order is that others vote than {wanted}: the record or the file was another one; order it again"
            ))),
        }
    }

    /// One that was removed already may be so again; whose name nobody knows was mistyped.
    fn is_known(&self, name: &RegionName, record: &Leadership) -> Result<(), Hindered> {
        let known = self.show_voters(Some(record.clone())).voters;
        if known.iter().any(|voter| voter.name == name.as_str()) {
            return Ok(());
        }
        let known: Vec<&str> = known.iter().map(|voter| voter.name.as_str()).collect();
        Err(Hindered::ForGood(format!(
            "{name} is no voter, nor in this daemon's regions.toml; nothing was changed. Those are {}",
            known.join(", ")
        )))
    }

    /// Those of `names` that answer, and remember what they have promised.
    async fn who_answers(&self, names: &BTreeSet<RegionName>) -> BTreeSet<RegionName> {
        let asked = names.iter().filter(|name| **name != self.own.name).map(|name| async {
            let body = control_request::Body::Recall(m::RecallRequest::default());
            let answer = self.voter.ask(name, body, ASK).await;
            matches!(answer, Ok(control_response::Body::Recalled(told)) if told.remembers)
                .then(|| name.clone())
        });
        let mut answer = BTreeSet::from([self.own.name.clone()]);
        for asked in asked {
            answer.extend(asked.await);
        }
        answer
    }

    fn show_voters(&self, record: Option<Leadership>) -> m::VotersView {
        let record = record.unwrap_or_else(|| self.voter.accepted());
        let (file, voters) = (self.voter.file(), record.electorate(self.voter.file()));
        let names: BTreeSet<RegionName> =
            file.names().into_iter().chain(voters.names()).chain(voters.lost.names().cloned()).collect();
        let voter = |name: RegionName| m::VoterView {
            witness: voters.is_witness(&name)
                || voters.lost.witnesses.contains(&name)
                || file.is_witness(&name),
            votes: voters.now.has(&name),
            lost: voters.lost.has(&name),
            in_file: file.has(&name),
            name: name.to_string(),
        };
        m::VotersView {
            recorded: record.voters.is_some(),
            changing: !voters.is_settled(),
            voters: names.into_iter().map(voter).collect(),
        }
    }
}

/// Why the voters were not changed.
enum Hindered {
    /// It may be over soon.
    ForNow(String),
    /// It is not for waiting.
    ForGood(String),
}

impl From<ChangeError> for Hindered {
    fn from(error: ChangeError) -> Hindered {
        match &error {
            ChangeError::Conflict(Conflict::Voters(Hindrance::Unsettled | Hindrance::Promotion))
            | ChangeError::NoMajority { .. }
            | ChangeError::Forgot(_) => Hindered::ForNow(error.to_string()),
            ChangeError::Conflict(_) => Hindered::ForGood(format!("{error}. Nothing was changed")),
        }
    }
}
