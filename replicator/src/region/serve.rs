//! What a region's daemon answers peers that were let in, and what it knows of who may ask.

use std::sync::Arc;
use std::time::Duration;

use coordination::leadership::Change;
use coordination::region::Part;
use proto::messages::control_response::Body as Answer;
use proto::messages::{
    ControlRequest, ControlResponse, GatherOpen, Refusal, ReplicateOpen, ReplicateReady, RewindOpen,
    SeedOpen, SessionReady, ZoneReady, control_request, open, refusal::Kind,
};
use proto::{BatchId, Epoch, Lsn, NodeName, RegionName};
use runtime::task::Tasks;
use tokio_util::sync::CancellationToken;
use transport::{Connection, Peer, Stream, TransportError};

use super::Region;
use super::head::Heading;
use crate::audit;
use crate::audit::chain::Deed;
use crate::daemon::authority::Condition;
use crate::daemon::serve::{Daemon, Door, accept};
use crate::events::Kind as EventKind;
use crate::voter::{of_a_voter, wire};
use crate::zone;

/// How long a host that takes over may take to play its region's part, before a primary is refused.
const BEGINS: Duration = Duration::from_secs(3);

/// How often it is looked whether it does.
const LOOK: Duration = Duration::from_millis(5);

impl Region {
    /// Answers peers until `stop`, then stops everything in order.
    pub(super) async fn answer_peers(self: Arc<Self>, stop: CancellationToken) {
        let tasks = Tasks::new();
        tokio::select! {
            () = stop.cancelled() => {}
            () = accept(&self, &self.endpoint, &tasks) => {}
        }
        tracing::info!("stopping");
        self.owner.cluster().stop().await;
        self.endpoint.close().await;
        tasks.ended().await;
    }

    /// Whether what a node asks is for itself, as the configuration in force has it.
    fn is_itself(&self, node: &NodeName, purpose: &open::Purpose) -> Result<(), Refusal> {
        let is = match purpose {
            open::Purpose::Node(open) => open.node == node.as_str(),
            open::Purpose::Feed(open) => open.node == node.as_str(),
            open::Purpose::Backup(open) => open.node == node.as_str(),
            open::Purpose::Zone(open) => {
                let zone = self.its_node(node.as_str())?.zone;
                zone.is_some_and(|zone| open.zone == zone.to_string())
            }
            _ => false,
        };
        if is {
            return Ok(());
        }
        let reason = format!("node {node} may ask this for itself, and for the zone that the file gives it");
        Err(Refusal::new(Kind::NotAllowed, reason))
    }

    /// Waits a moment where this host has just taken over as the region's head, and is about to know who
    /// leads and to follow: a primary that is refused meanwhile comes again only after seconds.
    async fn until_it_plays_a_part(&self) {
        let begins =
            || self.owner.part() == Part::Starting || self.voter.view().standing(&self.own.name).is_none();
        let takes_over = self.heading.as_ref().is_some_and(Heading::takes_over);
        let playing = async {
            while takes_over && begins() {
                tokio::time::sleep(LOOK).await;
            }
        };
        let _ = tokio::time::timeout(BEGINS, playing).await;
    }

    /// Whether `name` coordinates the promotion in progress.
    async fn coordinates(&self, name: &RegionName) -> Result<(), Refusal> {
        let coordinates = || self.voter.accepted().promotion.is_some_and(|p| p.coordinator == *name);
        if !coordinates() {
            // It was recorded without this region.
            self.voter.change(&Change::Read).await?;
        }
        if coordinates() {
            return Ok(());
        }
        let reason = format!("{name} coordinates no promotion that region {} knows of", self.own.name);
        Err(Refusal::new(Kind::NotAllowed, reason))
    }
}

impl Daemon for Region {
    fn door(&self) -> &Door {
        &self.door
    }

    async fn refused(&self, connection: &Connection, asked: &str, refusal: &Refusal) {
        // That a region is busy, or another epoch is led by now, is a matter of course.
        if matches!(
            refusal.kind(),
            Kind::NotAllowed | Kind::Protocol | Kind::OtherCluster | Kind::OtherSystem
        ) {
            let peer = connection.peer();
            let text = format!(
                "'{peer}': refused by {}, {}; nothing was done for it",
                self.own.name, refusal.reason
            );
            self.journal.note(EventKind::PeerRefused, text);
            let outcome = format!("refused: {}", refusal.reason);
            let deed = Deed { what: asked.into(), outcome, ..audit::by(connection) };
            self.audit.keep_refused(deed).await;
        }
    }

    async fn holds(&self, condition: Condition, peer: &Peer, purpose: &open::Purpose) -> Result<(), Refusal> {
        let no = |why: &str| Err(Refusal::new(Kind::NotAllowed, why));
        let name = match (condition, peer) {
            (Condition::Itself, Peer::Node(_, node)) => return self.is_itself(node, purpose),
            (Condition::Itself, _) => return no("only a node speaks of itself"),
            (_, peer) => match peer.voter() {
                Some(name) => name,
                // The table has these conditions for regions and witnesses alone.
                None => return no("only a region or a witness may ask this"),
            },
        };
        match (condition, purpose) {
            (Condition::LeadsEpoch, open::Purpose::Replicate(ReplicateOpen { epoch, .. }))
            | (Condition::LeadsEpoch, open::Purpose::Seed(SeedOpen { epoch, .. }))
            | (Condition::LeadsEpoch, open::Purpose::Rewind(RewindOpen { epoch, .. })) => {
                self.until_it_plays_a_part().await;
                self.owner.admit(name, Epoch(*epoch)).await
            }
            (Condition::ShallLead, open::Purpose::Gather(GatherOpen { epoch, .. })) => {
                // The old primary is shut out then.
                match self.voter.accepted().promotion {
                    Some(promotion) if promotion.to == *name && promotion.epoch.0 == *epoch => Ok(()),
                    _ => no("no promotion in progress makes the asker lead that epoch"),
                }
            }
            (Condition::Coordinates, open::Purpose::Control(request)) => match &request.body {
                Some(control_request::Body::HandOver(request)) if request.dry_run => Ok(()),
                _ => self.coordinates(name).await,
            },
            (Condition::SameRecord, open::Purpose::Control(request)) => {
                wire::same_record(request, &self.voter.accepted())
            }
            (Condition::LeadsEpoch | Condition::ShallLead | Condition::Itself, _)
            | (Condition::Coordinates | Condition::SameRecord, _) => no("this request names no epoch"),
        }
    }

    async fn serve(
        &self,
        connection: &Connection,
        purpose: open::Purpose,
        mut stream: Stream,
    ) -> Result<(), TransportError> {
        let deed = audit::kept(&purpose).map(|(what, detail)| {
            let what = what.to_owned();
            Deed { what, detail, outcome: "begun".into(), ..audit::by(connection) }
        });
        // Of what is asked of the daemon itself the outcome is kept, where it is known.
        if let Some(deed) = deed.clone().filter(|_| !matches!(purpose, open::Purpose::Control(_))) {
            self.audit.keep(deed).await;
        }
        match purpose {
            open::Purpose::Replicate(open) => {
                if let Err(refusal) = self.serves() {
                    stream.send(&ReplicateReady { refusal: Some(refusal), ..<_>::default() }).await?;
                    stream.finish().await;
                    return Ok(());
                }
                if let Some(follower) = self.owner.cluster().follower() {
                    let (epoch, peer) = (Epoch(open.epoch), connection.peer().clone());
                    let wanted = || peer.voter().is_some_and(|name| self.owner.still_admits(name, epoch));
                    follower.replicate(open, stream, wanted).await;
                }
                Ok(())
            }
            open::Purpose::Seed(open) => {
                if let Some(follower) = self.owner.cluster().follower() {
                    follower.seed(open, stream).await;
                }
                Ok(())
            }
            open::Purpose::Rewind(open) => {
                if let Some(follower) = self.owner.cluster().follower() {
                    follower.rewind(open, stream).await;
                }
                Ok(())
            }
            open::Purpose::Gather(open) => {
                let wanted = Lsn(open.from_lsn)..Lsn(open.to_lsn);
                let newest = open.newest.as_ref().map(BatchId::from_message);
                secondary::gather::serve(&self.volume, wanted, newest, stream).await
            }
            open::Purpose::Session(_) | open::Purpose::Client(_) if self.serves().is_err() => {
                stream
                    .send(&SessionReady { refusal: self.serves().err(), ..SessionReady::default() })
                    .await?;
                stream.finish().await;
                Ok(())
            }
            open::Purpose::Session(open) => self.doors.bring(&open, stream).await,
            open::Purpose::Client(open) => self.doors.bring_client(&open, stream).await,
            open::Purpose::Rehearse(_) => self.bring_rehearsal(stream).await,
            open::Purpose::Zone(open) => {
                if let Err(refusal) = self.admits(&open).await {
                    stream.send(&ZoneReady { refusal: Some(refusal) }).await?;
                    stream.finish().await;
                    return Ok(());
                }
                let local = self.own.local_copies();
                zone::join(&self.volume, &local, self.cluster_id, connection, open, stream).await
            }
            open::Purpose::Node(open) => self.attend(open, stream).await,
            open::Purpose::Feed(open) => self.feed_node(open, stream).await,
            open::Purpose::Backup(open) => self.send_backup(open, stream).await,
            open::Purpose::Control(ControlRequest { body: Some(body) }) if of_a_voter(&body) => {
                let Some(name) = connection.peer().voter() else { return Ok(()) };
                let mut answer = self.voter.answer(name, body).unwrap_or_else(Answer::Refusal);
                if let Err(refusal) = self.is_head().await {
                    answer = Answer::Refusal(refusal);
                }
                stream.send(&ControlResponse { body: Some(answer) }).await?;
                stream.finish().await;
                Ok(())
            }
            open::Purpose::Control(request) => self.control(request, deed, stream).await,
            // Only a zone's process is asked for copies.
            open::Purpose::Copy(_) => Ok(()),
        }
    }
}
