//! Certificates that are not let in although their authority is trusted: those that are denied, those of
//! another cluster, and, on connections that there are, those that have ended.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use proto::ClusterId;
use quinn::VarInt;
use runtime::clock::wall_us;
use runtime::task::Task;
use tokio::sync::mpsc::{self, error::TrySendError};

use crate::connection::canonical;
use crate::credentials::Credentials;
use crate::peer::{Certificate, Peer};
use crate::proof;

/// A connection whose certificate has ended is closed so long afterwards: whoever has renewed in time, and
/// has not connected since, is not cut off at a minute that nobody chose.
pub const GRACE: Duration = Duration::from_secs(3600);

/// The same in seconds, where this is set: tests shorten time.
const GRACE_VARIABLE: &str = "REPLICATOR_CERTIFICATE_GRACE";

/// How often connections are looked through.
const LOOK: Duration = Duration::from_secs(1);

/// With what a connection is closed whose certificate is not let in any more.
const CLOSED: VarInt = VarInt::from_u32(4);

/// The most refusals that wait to be heard of; what is beyond is only in the log.
const REFUSALS_MAX: usize = 64;

/// Somebody who was not let in, or not any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// From where.
    pub address: SocketAddr,
    /// Whose certificate, where one was verified.
    pub certificate: Option<Certificate>,
    /// Why.
    pub why: String,
}

/// Clones are the same one.
#[derive(Debug, Clone)]
pub(crate) struct Guard(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    cluster: ClusterId,
    used: Credentials,
    rules: Mutex<Rules>,
    live: Mutex<Vec<Live>>,
    refusals: mpsc::Sender<Refused>,
    heard: tokio::sync::Mutex<mpsc::Receiver<Refused>>,
}

#[derive(Debug)]
struct Rules {
    denied: BTreeSet<String>,
    /// Whether one without a role is refused; none as its authority has it.
    require_roles: Option<bool>,
    grace: Duration,
}

/// A connection that there is.
#[derive(Debug)]
struct Live {
    connection: quinn::Connection,
    certificate: Arc<Certificate>,
    /// The one that was shown last, once it was renewed.
    renewed: Option<Certificate>,
    /// Takes what is shown.
    _taking: Task<()>,
    /// Gone once nobody has a handle on it any more; none where that does not end it.
    held: Option<Weak<()>>,
}

impl Rules {
    /// Why this certificate is not let in at `now_s`, with `grace` after its end.
    fn judge(
        &self,
        certificate: &Certificate,
        cluster: ClusterId,
        now_s: i64,
        grace: Duration,
    ) -> Option<String> {
        let grace_s = i64::try_from(grace.as_secs()).unwrap_or(i64::MAX);
        if certificate.is_among(&self.denied) {
            return Some(format!(
                "the certificate of {} is denied, serial {}",
                certificate.peer, certificate.serial
            ));
        }
        if !certificate.has_role() && self.require_roles.unwrap_or(certificate.of_roles) {
            return Some(format!(
                "the certificate of {} has no role, serial {}: replicator certs --renew",
                certificate.peer, certificate.serial
            ));
        }
        if certificate.cluster.is_some_and(|its| its != cluster) {
            return Some(format!("the certificate of {} is of another cluster", certificate.peer));
        }
        let over = now_s > certificate.ends_s.saturating_add(grace_s);
        over.then(|| {
            format!("the certificate of {} has ended, serial {}", certificate.peer, certificate.serial)
        })
    }
}

impl Guard {
    pub(crate) fn new(cluster: ClusterId, used: Credentials) -> Guard {
        let (refusals, heard) = mpsc::channel(REFUSALS_MAX);
        let set = std::env::var(GRACE_VARIABLE).ok().and_then(|seconds| seconds.parse().ok());
        let grace = set.map_or(GRACE, Duration::from_secs);
        let rules = Mutex::new(Rules { denied: BTreeSet::new(), require_roles: None, grace });
        let heard = tokio::sync::Mutex::new(heard);
        Guard(Arc::new(Inner { cluster, used, rules, live: Mutex::default(), refusals, heard }))
    }

    /// Denies these, and no others from now on; closes what there is of them.
    pub(crate) fn deny(&self, denied: BTreeSet<String>) -> usize {
        self.rules().denied = denied;
        self.look()
    }

    /// Refuses certificates without a role from now on, or does not; none as each one's authority has it.
    pub(crate) fn require_roles(&self, required: Option<bool>) -> usize {
        self.rules().require_roles = required;
        self.look()
    }

    /// Whose certificate has no role, of those that are connected.
    pub(crate) fn without_roles(&self) -> BTreeSet<String> {
        let live = self.live();
        let without = live.iter().filter(|one| one.connection.close_reason().is_none());
        without
            .filter(|one| !one.certificate.has_role())
            .map(|one| one.certificate.peer.to_string())
            .collect()
    }

    pub(crate) fn set_grace(&self, grace: Duration) {
        self.rules().grace = grace;
    }

    /// Why a connection may not begin with this certificate.
    pub(crate) fn refusal(&self, certificate: &Certificate) -> Option<String> {
        self.refusal_at(certificate, now_s())
    }

    /// The same, as it was at `at_s`, seconds since 1970, but for who is denied now.
    pub(crate) fn refusal_at(&self, certificate: &Certificate, at_s: i64) -> Option<String> {
        self.rules().judge(certificate, self.0.cluster, at_s, Duration::ZERO)
    }

    /// Looks after a connection until it is over, or nobody holds it any more.
    pub(crate) fn keep(
        &self,
        connection: &quinn::Connection,
        certificate: Arc<Certificate>,
        held: Option<Weak<()>>,
    ) {
        let taking = take_renewed(connection.clone(), Arc::downgrade(&self.0));
        let taking = Task::spawn("renewed certificates", taking);
        let connection = connection.clone();
        self.live().push(Live { connection, certificate, renewed: None, _taking: taking, held });
    }

    /// From now on `connection` goes on by the certificate that its other side has shown; says whose it is.
    fn renew(&self, connection: &quinn::Connection, shown: &proof::Shown) -> Result<Peer, String> {
        let shown = shown.verify(connection, &self.0.used.roots(), now_s())?;
        if let Some(why) = self.refusal(&shown) {
            return Err(why);
        }
        let mut live = self.live();
        let this = |one: &&mut Live| one.connection.stable_id() == connection.stable_id();
        let one = live.iter_mut().find(this).ok_or("the connection is over")?;
        let peer = shown.peer.clone();
        if !peer.succeeds(&one.certificate.peer) {
            return Err(format!("it is {peer}'s, and the connection is with {}", one.certificate.peer));
        }
        one.renewed = Some(shown);
        Ok(peer)
    }

    /// The connections that there are.
    pub(crate) fn connections(&self) -> Vec<quinn::Connection> {
        let live = self.live();
        let open = live.iter().filter(|one| one.connection.close_reason().is_none());
        open.map(|one| one.connection.clone()).collect()
    }

    /// Looks through all connections again and again, for ever.
    pub(crate) async fn watch(self) {
        loop {
            tokio::time::sleep(LOOK).await;
            self.look();
        }
    }

    /// Closes what is not to go on; returns how many.
    fn look(&self) -> usize {
        let mut over = Vec::new();
        {
            let (rules, mut live) = (self.rules(), self.live());
            live.retain(|one| {
                let held = one.held.as_ref().is_none_or(|held| held.strong_count() > 0);
                if one.connection.close_reason().is_some() || !held {
                    return false;
                }
                let now = one.renewed.as_ref().unwrap_or(&one.certificate);
                let why = rules.judge(now, self.0.cluster, now_s(), rules.grace);
                // Who was denied by the certificate that it began with is denied.
                let why = why.or_else(|| {
                    let since_renewed = one.renewed.is_some().then_some(Duration::MAX)?;
                    rules.judge(&one.certificate, self.0.cluster, now_s(), since_renewed)
                });
                over.extend(
                    why.iter().map(|why| (one.connection.clone(), one.certificate.clone(), why.clone())),
                );
                why.is_none()
            });
        }
        for (connection, certificate, why) in &over {
            connection.close(CLOSED, why.as_bytes());
            let address = canonical(connection.remote_address());
            tracing::warn!("closed a connection with {address}: {why}");
            self.tell(address, Some((**certificate).clone()), why);
        }
        over.len()
    }

    /// Tells whoever wants to know; never waits.
    pub(crate) fn tell(&self, address: SocketAddr, certificate: Option<Certificate>, why: &str) {
        match self.0.refusals.try_send(Refused { address, certificate, why: why.to_owned() }) {
            // Nobody may want to know.
            Ok(()) | Err(TrySendError::Full(_) | TrySendError::Closed(_)) => {}
        }
    }

    /// The next one who was not let in.
    pub(crate) async fn refused(&self) -> Refused {
        match self.0.heard.lock().await.recv().await {
            Some(refused) => refused,
            // The sender is in this.
            None => std::future::pending().await,
        }
    }

    fn rules(&self) -> MutexGuard<'_, Rules> {
        self.0.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn live(&self) -> MutexGuard<'_, Vec<Live>> {
        self.0.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes the certificates that the other side of `connection` shows, until that is over.
async fn take_renewed(connection: quinn::Connection, guard: Weak<Inner>) {
    while let Some(shown) = proof::next(&connection).await {
        let Some(guard) = guard.upgrade().map(Guard) else { return };
        match guard.renew(&connection, &shown) {
            Ok(peer) => tracing::debug!("{peer} has shown a renewed certificate"),
            Err(why) => {
                let address = canonical(connection.remote_address());
                tracing::warn!("{address}: the renewed certificate that it shows is not taken: {why}");
            }
        }
    }
}

/// Seconds since 1970.
fn now_s() -> i64 {
    wall_us().div_euclid(1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::{Holder, Peer};

    #[test]
    fn a_certificate_is_let_in_unless_denied_another_cluster_s_or_over() {
        let (ours, theirs) = (ClusterId([1; 16]), ClusterId([2; 16]));
        let certificate = |cluster, ends_s| Certificate {
            peer: Peer::Operator(Holder::operator()),
            cluster,
            serial: "abc".into(),
            fingerprint: "00ff".into(),
            ends_s,
            of_roles: false,
            of_orders: false,
        };
        let rules = |denied: &[&str]| Rules {
            denied: denied.iter().map(|mark| (*mark).to_owned()).collect(),
            require_roles: None,
            grace: GRACE,
        };
        let judged = |denied: &[&str], cluster, ends_s, now_s, grace| {
            rules(denied).judge(&certificate(cluster, ends_s), ours, now_s, grace).is_some()
        };
        assert!(!judged(&["abd"], Some(ours), 100, 100, Duration::ZERO));
        assert!(!judged(&[], None, 100, 100, Duration::ZERO), "one without a role names no cluster");
        let without = |require_roles, of_roles| {
            let rules = Rules { require_roles, ..rules(&[]) };
            let one = Certificate { of_roles, ..certificate(None, 100) };
            rules.judge(&one, ours, 1, Duration::ZERO).is_some()
        };
        assert!(without(None, true) && without(Some(true), false));
        assert!(!without(Some(false), true));
        assert!(judged(&["abc"], Some(ours), 100, 1, Duration::ZERO), "by its serial number");
        assert!(judged(&["ff"], Some(ours), 100, 1, Duration::ZERO), "by its fingerprint");
        assert!(judged(&[], Some(theirs), 100, 1, Duration::ZERO));
        assert!(judged(&[], Some(ours), 100, 101, Duration::ZERO));
        assert!(
            !judged(&[], Some(ours), 100, 110, Duration::from_secs(10)),
            "what there is goes on for a while"
        );
        assert!(judged(&[], Some(ours), 100, 111, Duration::from_secs(10)));
    }
}
