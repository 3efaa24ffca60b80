//! Numbers, records and grants as messages.

use std::collections::BTreeMap;

use coordination::memory::{Memory, Said};
use coordination::promotion::Grant;
use coordination::register::{Accepted, Answer};
use coordination::{Leadership, Number};
use proto::ids::ParseIdError;
use proto::messages::{self as m, control_response, voted};
use proto::{Lsn, RegionName, Timeline};

use crate::region_file::RegionState;

/// A number as a message.
#[must_use]
pub fn number(number: Number) -> m::Number {
    m::Number { round: number.round, proposer: number.proposer }
}

/// A number from a message.
#[must_use]
pub fn to_number(number: m::Number) -> Number {
    Number { round: number.round, proposer: number.proposer }
}

/// An accepted record as a message.
#[must_use]
pub fn accepted(accepted: &Accepted) -> m::Accepted {
    // A record is names and numbers: it can be written.
    let record = serde_json::to_vec(&accepted.record).unwrap_or_default();
    m::Accepted { number: Some(number(accepted.number)), record: record.into() }
}

/// An accepted record from a message.
///
/// # Errors
/// When it is none.
pub fn to_accepted(accepted: &m::Accepted) -> Result<Accepted, String> {
    let record = serde_json::from_slice(&accepted.record).map_err(|e| format!("that is no record: {e}"))?;
    Ok(Accepted { number: to_number(accepted.number.unwrap_or_default()), record })
}

/// What a voter says of its memory, as a message for `asker`, whose directory has `id`.
#[must_use]
pub fn recalled(state: &RegionState, remembers: bool, asker: &RegionName, id: u64) -> m::Recalled {
    let Memory { together, .. } = &state.memory;
    let was_there = together.get(asker) == Some(&id);
    let founders = together.iter().filter(|_| was_there);
    m::Recalled {
        id: state.memory.id,
        remembers,
        together: founders.map(|(name, id)| m::Founder { name: name.to_string(), id: *id }).collect(),
        promised: Some(number(state.acceptor.promised())),
        has_data: state.system_id.is_some(),
        accepted: Some(accepted(state.acceptor.accepted())),
    }
}

/// What a voter says of its memory, from a message.
///
/// # Errors
/// When a name in it is none.
pub fn to_said(recalled: &m::Recalled) -> Result<Said, String> {
    let founder = |founder: &m::Founder| Ok((founder.name.parse()?, founder.id));
    let together: Result<BTreeMap<RegionName, u64>, ParseIdError> =
        recalled.together.iter().map(founder).collect();
    let newest = recalled.accepted.as_ref().and_then(|accepted| to_accepted(accepted).ok());
    let voters = newest.and_then(|newest| Some((newest.number, newest.record.voters?)));
    Ok(Said {
        id: recalled.id,
        remembers: recalled.remembers,
        together: together.map_err(|e| e.to_string())?,
        promised: to_number(recalled.promised.unwrap_or_default()),
        has_data: recalled.has_data,
        voters,
    })
}

/// Whether `request` has voters agree once more on `accepted`, the record that this voter has accepted
/// already.
///
/// # Errors
/// A refusal, when it would change the record.
pub fn same_record(request: &m::ControlRequest, accepted: &Leadership) -> Result<(), m::Refusal> {
    let proposed = match &request.body {
        Some(m::control_request::Body::Accept(accept)) => accept.proposal.as_ref().map(to_accepted),
        _ => None,
    };
    match proposed {
        Some(Ok(proposed)) if proposed.record == *accepted => Ok(()),
        _ => Err(m::Refusal::new(m::refusal::Kind::NotAllowed, "a witness does not change who leads")),
    }
}

/// A grant as a message.
#[must_use]
pub fn grant(grant: &Grant) -> m::Granted {
    m::Granted {
        has_data: grant.has_data,
        has_redo: grant.has_redo,
        timeline: grant.timeline.0,
        durable_lsn: grant.durable_lsn.0,
        silent_us: grant.silent_us,
        primary_lsn: grant.primary_lsn.0,
        stopped: grant.stopped,
        open: grant.open,
        ..m::Granted::default()
    }
}

/// A grant from a message.
#[must_use]
pub fn to_grant(granted: &m::Granted) -> Grant {
    Grant {
        has_data: granted.has_data,
        has_redo: granted.has_redo,
        timeline: Timeline(granted.timeline),
        durable_lsn: Lsn(granted.durable_lsn),
        silent_us: granted.silent_us,
        primary_lsn: Lsn(granted.primary_lsn),
        stopped: granted.stopped,
        open: granted.open,
    }
}

/// A voter's answer to either round, as a message; `granted` goes with an acceptance.
#[must_use]
pub fn answer(answer: &Answer, granted: m::Granted) -> m::Voted {
    let body = match answer {
        Answer::Promised(newest) => voted::Body::Promised(accepted(newest)),
        Answer::Accepted => voted::Body::Accepted(granted),
        Answer::Outbid(higher) => voted::Body::Outbid(number(*higher)),
    };
    m::Voted { body: Some(body) }
}

/// A voter's answer to either round, from a message.
///
/// # Errors
/// When it is another answer.
pub fn voted(body: control_response::Body) -> Result<(Answer, Option<Grant>), String> {
    match body {
        control_response::Body::Voted(m::Voted { body: Some(voted) }) => match voted {
            voted::Body::Promised(newest) => Ok((Answer::Promised(to_accepted(&newest)?), None)),
            voted::Body::Accepted(granted) => Ok((Answer::Accepted, Some(to_grant(&granted)))),
            voted::Body::Outbid(higher) => Ok((Answer::Outbid(to_number(higher)), None)),
        },
        _ => Err("it gave another answer".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coordination::Leadership;
    use proptest::prelude::*;

    #[test]
    fn a_record_round_trips() {
        let record = Leadership::first(proto::Epoch(3), "us-east".parse().unwrap());
        let original = Accepted { number: Number { round: 5, proposer: 7 }, record };
        assert_eq!(to_accepted(&accepted(&original)).unwrap(), original);
    }

    #[test]
    fn a_record_may_be_agreed_on_again_and_not_be_changed() {
        let record = Leadership::first(proto::Epoch(3), "us-east".parse().unwrap());
        let accept = |record: &Leadership| {
            let proposal = accepted(&Accepted { number: Number::default(), record: record.clone() });
            let accept = m::Accept { proposal: Some(proposal), next: None };
            m::ControlRequest { body: Some(m::control_request::Body::Accept(accept)) }
        };
        assert_eq!(same_record(&accept(&record), &record), Ok(()));
        let other = Leadership { epoch: proto::Epoch(4), ..record.clone() };
        assert!(same_record(&accept(&other), &record).is_err());
        assert!(same_record(&m::ControlRequest { body: None }, &record).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_record_or_refused(bytes: Vec<u8>) {
            let _ = to_accepted(&m::Accepted { number: None, record: bytes.into() });
        }
    }
}
