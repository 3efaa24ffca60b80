//! The region's certificates: that of its daemon, and that of its PostgreSQL. Either is replaced while all
//! goes on.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use proto::messages::reloaded_key::Outcome;
use transport::Identity;
use transport::identity::names_in;

use super::{Parts, Region};
use crate::daemon::renewal;
use crate::events::Kind as EventKind;
use crate::layout::RegionLayout;

/// The wait before PostgreSQL is given again what it did not take.
const AGAIN: Duration = Duration::from_secs(60);

/// When the certificate of a region's PostgreSQL ends, seconds since 1970; never where there is none.
pub(super) fn server_ends_s(places: &RegionLayout) -> i64 {
    names_in(&places.server_identity().join("cert.pem")).map_or(i64::MAX, |(_, ends_s)| ends_s)
}

impl Parts {
    /// When the first of the region's certificates ends, seconds since 1970.
    pub(crate) fn certificates_end_s(&self) -> i64 {
        let (own, server) = (&self.certificate_ends_s, &self.server_certificate_ends_s);
        own.load(Ordering::Relaxed).min(server.load(Ordering::Relaxed))
    }
}

impl Region {
    /// Has the daemon and its PostgreSQL use other certificates once they lie there, for ever.
    pub(super) async fn renew_certificates(self: Arc<Self>, now: Identity) {
        let taken = |identity: &Identity| {
            self.certificate_ends_s.store(identity.ends_s, Ordering::Relaxed);
            self.has_no_role.store(!identity.certificate.has_role(), Ordering::Relaxed);
        };
        tokio::select! {
            never = renewal::watch(&self.endpoint, self.layout.identity(), &now, taken) => match never {},
            never = self.renew_servers_certificate() => match never {},
        }
    }

    /// Notes whom the endpoint does not let in, or not any more, for ever.
    pub(super) async fn note_refused(self: Arc<Self>) {
        loop {
            let refused = self.endpoint.refused().await;
            self.journal.note(EventKind::PeerRefused, renewal::told(&self.own.name, &refused));
            self.audit.keep_not_let_in(&refused).await;
        }
    }

    async fn renew_servers_certificate(&self) -> Infallible {
        loop {
            self.instance.until_another_certificate().await;
            let reloaded = self.take_servers_certificate().await;
            let refused = reloaded.keys.iter().any(|key| key.outcome() == Outcome::Refused);
            if refused || !reloaded.refused.is_empty() {
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}
