//! The region's certificates: that of its daemon, and that of its PostgreSQL. Either is replaced while all
//! goes on.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use proto::messages::reloaded_key::Outcome;
use transport::Identity;
use transport::identity::life_of;

use super::{Parts, Region};
use crate::daemon::renewal;
use crate::events::Kind as EventKind;

/// The wait before PostgreSQL is given again what it did not take.
const AGAIN: Duration = Duration::from_secs(60);

/// From so long before its end on it is told that a certificate ends, seconds; of one that is made for less
/// than four times that, from the last quarter of its life on.
const TOLD_BEFORE_S: i64 = 30 * 86_400;

/// When a certificate ends, and from when on that is told, seconds since 1970; never where there is none.
#[derive(Debug)]
pub(crate) struct End {
    ends_s: AtomicI64,
    told_from_s: AtomicI64,
}

impl End {
    /// That of the certificate in `directory`.
    pub(super) fn of(directory: &Path) -> End {
        let end = End { ends_s: AtomicI64::new(i64::MAX), told_from_s: AtomicI64::new(i64::MAX) };
        end.look(directory);
        end
    }

    /// It may be another one by now.
    pub(super) fn look(&self, directory: &Path) {
        let life = life_of(&directory.join("cert.pem"));
        let (ends_s, told_from_s) = life.map_or((i64::MAX, i64::MAX), |(ends, life)| {
            let ends_s = ends.unix_timestamp();
            (ends_s, ends_s - TOLD_BEFORE_S.min(life.whole_seconds() / 4))
        });
        self.ends_s.store(ends_s, Ordering::Relaxed);
        self.told_from_s.store(told_from_s, Ordering::Relaxed);
    }
}

impl Parts {
    /// When the first of the region's certificates ends, seconds since 1970.
    pub(crate) fn certificates_end_s(&self) -> i64 {
        let ends_s = |end: &End| end.ends_s.load(Ordering::Relaxed);
        ends_s(&self.certificate).min(ends_s(&self.server_certificate))
    }

    /// Whether it is told at `now_s` that one of the region's certificates ends.
    pub(super) fn tells_end(&self, now_s: i64) -> bool {
        [&self.certificate, &self.server_certificate]
            .iter()
            .any(|end| now_s >= end.told_from_s.load(Ordering::Relaxed))
    }
}

impl Region {
    /// Has the daemon and its PostgreSQL use other certificates once they lie there, for ever.
    pub(super) async fn renew_certificates(self: Arc<Self>, now: Identity) {
        let taken = |identity: &Identity| {
            self.certificate.look(&self.layout.identity());
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
