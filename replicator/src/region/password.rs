//! The superuser's password, kept in line with what PostgreSQL takes, and by it that of the role that
//! applications use.
//!
//! What PostgreSQL keeps of a password reaches every region as redo; the password itself does not. So a
//! rotation brings it to each region's daemon first, where it lies as the next one, and to the writer last.
//! Each daemon compares with its own PostgreSQL: once that takes the next one, it becomes the one in the
//! region's files, at the moment at which clients of this region need it. A region that was not reached, or
//! was seeded meanwhile, finds that PostgreSQL takes none that it has, and asks the primary.

use std::sync::Arc;
use std::time::Duration;

use postgres::instance::OwnerIs;
use postgres::scram::fits;
use postgres::sockets::SUPERUSER;
use proto::messages::control_response::Body as Answer;
use proto::messages::refusal::Kind;
use proto::messages::{FetchPasswordRequest, PasswordRequest, PasswordView, Refusal, control_request};
use runtime::task::blocking;

use super::Region;
use crate::events::Kind as EventKind;
use crate::secrets::{self, Clients};

/// How often it is compared while there is a next one.
const SOON: Duration = Duration::from_millis(200);

/// How often, before it is compared more seldom.
const SOON_LOOKS: u32 = 600;

/// How often it is compared otherwise.
const LATER: Duration = Duration::from_secs(5);

/// How long the primary may take to tell it.
const ASK: Duration = Duration::from_secs(3);

/// How long the writer may take to have it durable wherever commits are.
const SET: Duration = Duration::from_secs(20);

/// Which password PostgreSQL takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Takes {
    /// The one in the files.
    Kept,
    /// The next one.
    Next,
    /// Neither.
    Neither,
    /// It keeps it in a way from which that cannot be told.
    Unknown,
}

fn judge(kept: Option<&str>, next: Option<&str>, verifier: Option<&str>) -> Takes {
    let Some(verifier) = verifier else { return Takes::Neither };
    let taken = |password: Option<&str>| password.map(|password| fits(password, verifier));
    match (taken(kept), taken(next)) {
        (Some(None), _) | (_, Some(None)) => Takes::Unknown,
        (Some(Some(true)), _) => Takes::Kept,
        (_, Some(Some(true))) => Takes::Next,
        (Some(Some(false)) | None, Some(Some(false)) | None) => Takes::Neither,
    }
}

impl Region {
    /// Keeps the region's files in line with what its PostgreSQL takes, for ever.
    pub(super) async fn keep_password(self: Arc<Self>) {
        let (mut said, mut seen, mut looks) = (String::new(), None, 0);
        loop {
            let next = secrets::next(&self.layout);
            looks = if next == seen { looks + 1 } else { 0 };
            seen = next;
            // One that an interrupted rotation left may lie there for long.
            let soon = seen.is_some() && looks < SOON_LOOKS;
            tokio::time::sleep(if soon { SOON } else { LATER }).await;
            match self.settle_password().await {
                Ok(_) => said.clear(),
                Err(why) if why != said => {
                    tracing::warn!("the superuser's password: {why}");
                    said = why;
                }
                Err(_) => {}
            }
        }
    }

    /// Brings the region's files in line with what its PostgreSQL takes. Whether they are; not, where it
    /// cannot be asked now.
    ///
    /// # Errors
    /// Why they are not, and what to do.
    pub(super) async fn settle_password(&self) -> Result<bool, String> {
        if self.instance.process().is_none() {
            return Ok(false);
        }
        let Ok(verifier) = self.instance.superuser_verifier().await else { return Ok(false) };
        let (kept, next) = (secrets::load(&self.layout).ok(), secrets::next(&self.layout));
        let known = verifier.clone();
        let judged =
            blocking("compare passwords", move || judge(kept.as_deref(), next.as_deref(), known.as_deref()));
        let failed = |e: std::io::Error| e.to_string();
        match judged.await.map_err(|e| e.to_string())? {
            Takes::Kept | Takes::Unknown => Ok(true),
            Takes::Next => {
                secrets::take_next(&self.layout, self.clients()).map_err(failed)?;
                tracing::info!("the superuser's password is another, and this region's files have it");
                Ok(true)
            }
            Takes::Neither => {
                let fetched = self.fetch_password().await?;
                let verifier = verifier.unwrap_or_default();
                let compared = fetched.clone();
                let taken = blocking("compare passwords", move || fits(&compared, &verifier));
                if taken.await.map_err(|e| e.to_string())? != Some(true) {
                    return Err(
                        "PostgreSQL here does not take the one that the primary has; it is asked again"
                            .into(),
                    );
                }
                secrets::keep(&self.layout, &fetched, self.clients()).map_err(failed)?;
                tracing::info!(
                    "the superuser's password is another, and this region has it from the primary"
                );
                Ok(true)
            }
        }
    }

    /// The primary's password.
    async fn fetch_password(&self) -> Result<String, String> {
        let primary = self.voter.accepted().primary;
        if primary == self.own.name {
            return Err(
                "PostgreSQL does not take the one in superuser.password: it was changed by hand, or lost with a failover. \
                 `replicator password rotate` makes a new one"
                    .into(),
            );
        }
        let body = control_request::Body::FetchPassword(FetchPasswordRequest {});
        match self.voter.ask(&primary, body, ASK).await {
            Ok(Answer::FetchedPassword(password)) => Ok(password),
            Ok(_) => Err(format!("{primary} answered another question")),
            Err(e) => Err(format!(
                "PostgreSQL does not take the one in this region's files, and {primary} does not tell it: {e}; it is asked again"
            )),
        }
    }

    /// Whose password is kept beside the superuser's.
    fn clients(&self) -> Clients<'_> {
        Clients { owner: &self.config.owner, listen: self.own.postgres }
    }

    /// The role that applications use, and its password; none where somebody else has given it that.
    ///
    /// # Errors
    /// Where there is no such role, or this region has no data.
    pub(super) async fn client_role(&self) -> Result<(&str, Option<String>), Refusal> {
        let superusers = secrets::load(&self.layout)
            .map_err(|_| Refusal::new(Kind::Busy, "this region has no data yet, and so no password"))?;
        let owner = self.config.owner.as_str();
        let password = Some(secrets::of_owner(&superusers, owner));
        if owner == SUPERUSER {
            return Ok((owner, password));
        }
        match self.instance.owner_is(owner).await {
            Ok(OwnerIs::Absent) => Err(Refusal::new(
                Kind::Failed,
                format!(
                    "PostgreSQL has no role '{owner}': `replicator password rotate` makes it, and its database; or name the role that \
                     applications use in regions.toml (`owner`)"
                ),
            )),
            Ok(OwnerIs::Theirs) => Ok((owner, None)),
            // No password lets it in.
            Ok(OwnerIs::Ours) if self.in_force().token_roles.contains(owner) => Ok((owner, None)),
            // Where it cannot be asked now, a client finds out.
            Ok(OwnerIs::Ours) | Err(_) => Ok((owner, password)),
        }
    }

    /// What another region is told that has no password that its PostgreSQL takes.
    pub(super) fn tell_password(&self) -> Result<Answer, Refusal> {
        let password = secrets::load(&self.layout);
        let password =
            password.map_err(|e| Refusal::new(Kind::Failed, format!("the superuser's password: {e}")))?;
        Ok(Answer::FetchedPassword(password))
    }

    /// Does a step of a rotation, and tells whether the region's files are in line with its PostgreSQL.
    pub(super) async fn step_password(&self, request: PasswordRequest) -> Result<Answer, Refusal> {
        let failed = |e: String| Refusal::new(Kind::Failed, e);
        if !request.next.is_empty() {
            secrets::keep_next(&self.layout, &request.next).map_err(|e| failed(e.to_string()))?;
        }
        if request.set {
            if self.owner.cluster().leader().is_none() {
                let reason = format!("region {} does not lead", self.own.name);
                return Err(Refusal::new(Kind::NotAllowed, reason));
            }
            let next = secrets::next(&self.layout);
            let next = next.ok_or_else(|| failed("there is no next password here".into()))?;
            let owner = secrets::owner(&self.config.owner, &next);
            let set = self.instance.set_passwords(&next, owner.as_ref(), SET).await;
            set.map_err(|e| failed(format!("PostgreSQL was not given its next password, or did not say so: {e}; give the command again")))?;
            let word = "the superuser of PostgreSQL, and the role that applications use, have other passwords, on an operator's word";
            tracing::info!("{word}");
            self.journal.note(EventKind::PasswordRotated, word);
        }
        let (in_force, detail) = match self.settle_password().await {
            Ok(settled) => (settled && secrets::next(&self.layout).is_none(), String::new()),
            Err(why) => (false, why),
        };
        Ok(Answer::Password(PasswordView { in_force, detail }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use postgres::scram::verifier;

    #[test]
    fn the_one_that_postgresql_takes_is_found() {
        let old = verifier("old", &[1; 16]);
        let new = verifier("new", &[1; 16]);
        let judged = |verifier: &str| judge(Some("old"), Some("new"), Some(verifier));
        assert_eq!((judged(&old), judged(&new)), (Takes::Kept, Takes::Next));
        assert_eq!(judge(Some("old"), None, Some(&new)), Takes::Neither);
        assert_eq!(judge(None, None, Some(&new)), Takes::Neither);
        assert_eq!(judge(Some("old"), None, None), Takes::Neither);
        assert_eq!(judge(Some("old"), Some("new"), Some("md50123")), Takes::Unknown);
    }
}
