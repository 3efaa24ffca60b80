//! Numbers, records and grants as messages.

use coordination::Number;
use coordination::promotion::Grant;
use coordination::register::{Accepted, Answer};
use proto::messages::{self as m, control_response, voted};
use proto::{Lsn, Timeline};

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
    use coordination::Record;
    use proptest::prelude::*;

    #[test]
    fn a_record_round_trips() {
        let record = Record::first(proto::Epoch(3), "us-east".parse().unwrap());
        let original = Accepted { number: Number { round: 5, proposer: 7 }, record };
        assert_eq!(to_accepted(&accepted(&original)).unwrap(), original);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_record_or_refused(bytes: Vec<u8>) {
            let _ = to_accepted(&m::Accepted { number: None, record: bytes.into() });
        }
    }
}
