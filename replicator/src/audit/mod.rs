//! Who did what, and was not let do: each daemon keeps an audit in its directory.
//!
//! - [`chain`] is what a line is, and what is wrong with lines. It is pure.
//! - [`file`] is the audit on disk.
//! - [`Audit`] is a daemon's handle on it.
//!
//! What is ordered is done also where the audit cannot be written: a failover does not wait for a full disk.

pub mod chain;
pub mod file;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use coordination::Leadership;
use proto::messages::reloaded_key::Outcome;
use proto::messages::{self as m, control_request, control_response, open};
use runtime::clock::{now, wall_us};
use runtime::task::blocking;
use tokio::time::Instant;
use transport::{Certificate, Connection, Refused};

use crate::daemon::authority::Request;
use crate::events::show_time;
use chain::{Deed, Head};
use file::Files;

/// So many refusals of one peer are kept in [`REFUSALS_EVERY`]; of more only the number is. Who is refused
/// all the time does not push out what was ordered: that takes two months.
const REFUSALS_MAX: u64 = 10;
/// See [`REFUSALS_MAX`].
const REFUSALS_EVERY: Duration = Duration::from_secs(3600);

/// The most peers whose refusals are counted apart; those of all others are counted together.
const PEERS_MAX: usize = 16;

/// How long is waited for a line to be on disk, before what was ordered is done all the same.
const PATIENCE: Duration = Duration::from_secs(2);

/// The most bytes of lines in one answer: with the rest it stays below the largest control message.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// A daemon's audit. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Audit(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    files: Files,
    refusals: Mutex<HashMap<String, Refusals>>,
    /// Why the last deed was not kept; none if it was.
    failing: Mutex<Option<String>>,
    /// The record of who leads, as it was kept last.
    record: Mutex<String>,
}

/// How many refusals were kept since when, and how many were not.
#[derive(Debug, Default)]
struct Refusals {
    since: Option<Instant>,
    kept: u64,
    left_out: u64,
}

impl Refusals {
    /// Whether one more is kept at `now`, and how many were left out before it.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.since.is_none_or(|since| now.duration_since(since) >= REFUSALS_EVERY) {
            (self.since, self.kept) = (Some(now), 0);
        }
        if self.kept == REFUSALS_MAX {
            self.left_out += 1;
            return None;
        }
        self.kept += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

impl Audit {
    /// The audit in `directory`, a region's or a witness'.
    #[must_use]
    pub fn new(directory: &Path) -> Audit {
        let files = Files::new(directory);
        let (refusals, failing, record) = (Mutex::default(), Mutex::default(), Mutex::default());
        Audit(Arc::new(Inner { files, refusals, failing, record }))
    }

    /// Keeps a deed; it is on disk when this returns, unless that cannot be. Whether it is.
    pub async fn keep(&self, deed: Deed) -> bool {
        let (files, at_us) = (self.0.files.clone(), wall_us());
        let keeping = blocking("keep the audit", move || files.append(at_us, deed));
        let failed = match tokio::time::timeout(PATIENCE, keeping).await {
            Ok(Ok(Ok(()))) => None,
            Ok(Ok(Err(e))) => Some(e.to_string()),
            Ok(Err(e)) => Some(e.to_string()),
            Err(_) => Some(format!("it is not written within {} s", PATIENCE.as_secs())),
        };
        let is_kept = failed.is_none();
        let was = std::mem::replace(
            &mut *self.0.failing.lock().unwrap_or_else(PoisonError::into_inner),
            failed.clone(),
        );
        if let Some(why) = failed.filter(|_| was.is_none()) {
            tracing::warn!(
                "the audit: {why}; what is ordered is done all the same, and not kept until it can be written"
            );
        }
        is_kept
    }

    /// Why the last deed was not kept; none if it was.
    #[must_use]
    pub fn failing(&self) -> Option<String> {
        self.0.failing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Keeps that somebody was refused, unless that happens too often.
    pub async fn keep_refused(&self, mut deed: Deed) {
        let mut whose = format!("{} {}", deed.role, deed.name);
        let admitted = {
            let mut refusals = self.0.refusals.lock().unwrap_or_else(PoisonError::into_inner);
            if refusals.len() >= PEERS_MAX && !refusals.contains_key(&whose) {
                whose.clear();
            }
            refusals.entry(whose).or_default().admit(now())
        };
        let Some(left_out) = admitted else { return };
        if left_out > 0 {
            deed.detail =
                format!("{left_out} refusals before this one came too fast to be kept. {}", deed.detail);
        }
        self.keep(deed).await;
    }

    /// Keeps that the endpoint did not let somebody in, or not any more.
    pub async fn keep_not_let_in(&self, refused: &Refused) {
        let Refused { address, certificate, why } = refused;
        let by = certificate.as_ref().map(by_certificate).unwrap_or_default();
        let outcome = format!("refused: {why}");
        let deed = Deed { from: address.to_string(), what: "connect".into(), outcome, ..by };
        self.keep_refused(deed).await;
    }

    /// Keeps the record of who leads that this voter has accepted, if it is another than the last one.
    pub async fn keep_record(&self, record: &Leadership) {
        let told = tell(record);
        let last = {
            let mut last = self.0.record.lock().unwrap_or_else(PoisonError::into_inner);
            if *last == told {
                return;
            }
            std::mem::replace(&mut *last, told.clone())
        };
        let name = match &record.promotion {
            Some(promotion) => promotion.coordinator.to_string(),
            None => record.primary.to_string(),
        };
        let what = if last.is_empty() { "begins with the record" } else { "accepts the record" };
        let (role, what, outcome) = ("record".into(), what.into(), "accepted".into());
        self.keep(Deed { role, name, what, detail: told, outcome, ..Deed::default() }).await;
    }

    /// Lines from the `skip`th on.
    ///
    /// # Errors
    /// When they cannot be read.
    pub async fn page(&self, skip: u64) -> Result<m::AuditPage, String> {
        let files = self.0.files.clone();
        let read = blocking("read the audit", move || files.page(skip, ANSWER_BYTES_MAX)).await;
        let (lines, more, Head { number, hash }) =
            read.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
        Ok(m::AuditPage { lines, more, head_number: number, head_hash: hash })
    }
}

/// The record of who leads in a line: what an order changes.
fn tell(record: &Leadership) -> String {
    let mut told = format!("epoch {} is led by {}", record.epoch, record.primary);
    if let Some(p) = &record.promotion {
        let forced = if p.forced { ", on an operator's word" } else { "" };
        let by = p.order.as_ref().and_then(crate::orders::signer);
        let by = by.map_or_else(String::new, |by| format!(", ordered by {by}"));
        told += &format!(
            "; a {} to {} for epoch {}, at step {:?}, coordinated by {}{forced}{by}",
            p.mode, p.to, p.epoch, p.step, p.coordinator
        );
    }
    if let Some(voters) = &record.voters {
        let names: Vec<String> = voters.names().iter().map(ToString::to_string).collect();
        told += &format!("; {} vote", names.join(", "));
    }
    told
}

fn by_certificate(certificate: &Certificate) -> Deed {
    Deed {
        role: certificate.peer.role().into(),
        name: certificate.peer.name(),
        serial: certificate.serial.clone(),
        ..Deed::default()
    }
}

/// A deed of whoever is at the other end of `connection`, of which nothing else is known yet.
#[must_use]
pub fn by(connection: &Connection) -> Deed {
    let from = connection.remote_address().to_string();
    Deed { from, ..by_certificate(connection.certificate()) }
}

/// A deed of somebody on this machine.
#[must_use]
pub fn local(what: &str, detail: String, outcome: String) -> Deed {
    let own = nix::unistd::User::from_uid(nix::unistd::Uid::current()).ok().flatten();
    let name = own.map_or_else(|| nix::unistd::Uid::current().to_string(), |user| user.name);
    Deed { role: "local".into(), name, what: what.into(), detail, outcome, ..Deed::default() }
}

/// What is kept of a request that was let in, if it is an order or a secret that is given: what it is
/// called, and what is to be known of it.
#[must_use]
pub fn kept(purpose: &open::Purpose) -> Option<(&'static str, String)> {
    use control_request::Body;
    let detail = match purpose {
        open::Purpose::Seed(open) => format!("a base backup of epoch {}, with the password", open.epoch),
        open::Purpose::Rewind(open) => format!("for epoch {}, with the password", open.epoch),
        open::Purpose::Gather(open) => format!("redo for epoch {}", open.epoch),
        open::Purpose::Backup(_) => "a copy of all data".into(),
        open::Purpose::Rehearse(_) => "a session of the superuser's, for a rehearsal".into(),
        open::Purpose::Control(request) => match request.body.as_ref()? {
            Body::Url(request) => format!("the password, for {}", request.region),
            Body::FetchPassword(_) => "the password".into(),
            Body::Promote(request) => {
                let mode = if request.failover { "failover" } else { "switchover" };
                let word = if request.old_primary_is_down { ", the old primary is down" } else { "" };
                let lost = if request.lost.is_empty() {
                    String::new()
                } else {
                    format!(", lost: {}", request.lost.join(" "))
                };
                let dry = if request.dry_run { ", only to see" } else { "" };
                format!("{mode}{word}{lost}{dry}")
            }
            Body::HandOver(request) if !request.dry_run => format!("to {}", request.to),
            Body::GetReady(_) | Body::Lead(_) | Body::Revote(_) | Body::Reseed(_) | Body::Reload(_) => {
                String::new()
            }
            Body::Voters(request) if !request.add.is_empty() => format!("add {}", request.add),
            Body::Voters(request) if !request.remove.is_empty() => format!("remove {}", request.remove),
            Body::Password(request) if request.set => "give PostgreSQL the next password".into(),
            Body::Password(request) if !request.next.is_empty() => "keep the next password".into(),
            Body::Volume(request) if request.recover => "recover with three copies".into(),
            Body::Volume(request) if request.scrub => format!("scrub {}", request.copy),
            Body::Token(request) => {
                let until = show_time(request.ends_s.saturating_mul(1_000_000));
                format!("for {}, until {until}, serial {}", request.role, request.serial)
            }
            Body::Audit(_) => "read".into(),
            Body::MoveHead(request) if !request.watch => {
                format!("to {}{}", request.node, if request.dry_run { ", only to see" } else { "" })
            }
            _ => return None,
        },
        _ => return None,
    };
    Request::of(purpose).map(|request| (request.name(), detail.trim().to_owned()))
}

/// What came of a request, in words.
#[must_use]
pub fn outcome(answer: &control_response::Body) -> String {
    use control_response::Body;
    match answer {
        Body::Refusal(refusal) => format!("refused: {}", refusal.reason),
        Body::Promotion(promotion) if promotion.dry_run => "nothing was done".into(),
        Body::Promotion(promotion) => format!("{} leads epoch {}", promotion.to, promotion.epoch),
        Body::HeadMove(moved) if moved.dry_run => "nothing was done".into(),
        Body::HeadMove(moved) if moved.handed_over => format!("handed over to {}", moved.to),
        Body::HeadMove(moved) => format!("{} is the head already", moved.head),
        Body::Reloaded(reloaded) => told_reload(reloaded),
        _ => "done".into(),
    }
}

/// What a file that was read again has changed, in words.
#[must_use]
pub fn told_reload(reloaded: &m::Reloaded) -> String {
    if !reloaded.refused.is_empty() {
        return format!("refused: {}", reloaded.refused);
    }
    let word = |outcome: Outcome| match outcome {
        Outcome::Unchanged | Outcome::Unspecified => None,
        Outcome::Applied => Some("applied"),
        Outcome::NeedsRestart => Some("needs a restart"),
        Outcome::Refused => Some("refused"),
    };
    let keys = reloaded.keys.iter();
    let told: Vec<String> =
        keys.filter_map(|key| Some(format!("{} {}", key.key, word(key.outcome())?))).collect();
    if told.is_empty() { "nothing is another".into() } else { told.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_kept_up_to_a_number_and_the_others_counted() {
        let (mut refusals, begin) = (Refusals::default(), now());
        let admitted = (0..100).filter(|_| refusals.admit(begin).is_some()).count();
        assert_eq!(admitted, 10);
        assert_eq!(refusals.admit(begin + REFUSALS_EVERY), Some(90));
        assert_eq!(refusals.admit(begin + REFUSALS_EVERY), Some(0));
    }

    #[test]
    fn orders_and_secrets_are_kept_and_questions_are_not() {
        let control = |body| open::Purpose::Control(m::ControlRequest { body: Some(body) });
        use control_request::Body;
        let url = kept(&control(Body::Url(m::UrlRequest { region: "a".into() })));
        assert_eq!(url, Some(("url", "the password, for a".into())));
        let promote = m::PromoteRequest { failover: true, lost: vec!["b".into()], ..Default::default() };
        assert_eq!(kept(&control(Body::Promote(promote))), Some(("promote", "failover, lost: b".into())));
        let scrub = m::VolumeRequest { scrub: true, ..Default::default() };
        assert_eq!(kept(&control(Body::Volume(scrub))), Some(("volume", "scrub".into())));
        for question in [
            Body::ClusterStatus(m::ClusterStatusRequest {}),
            Body::Volume(m::VolumeRequest::default()),
            Body::Voters(m::VotersRequest::default()),
            Body::Password(m::PasswordRequest::default()),
            Body::Record(m::RecordRequest::default()),
        ] {
            assert_eq!(kept(&control(question.clone())), None, "{question:?}");
        }
    }
}
