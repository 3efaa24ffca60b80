//! A node's talk with its region's daemon: it says how it is, and hears what it has to know.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use proto::messages::refusal::Kind;
use proto::messages::{
    MAX_CONTROL_MESSAGE_BYTES, NodeOpen, NodeReport, NodeWord, Open, PROTOCOL_VERSION, open,
};
use proto::{ClusterId, NodeName};
use tokio::sync::watch;
use transport::{Connection, Endpoint, TransportError};

use super::REPORT;
use super::plan::{Origin, Word};
use crate::client;
use crate::config::Place;
use crate::layout::RegionLayout;
use crate::secrets::{self, Clients};
use crate::zone::hearing::{ANOTHER, Hearing};

/// The wait before going to the region's daemon again.
const AGAIN: Duration = Duration::from_millis(200);

/// How long the region's daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long the region's daemon may say nothing before the connection is given up: eight of its words.
const SILENT: Duration = Duration::from_secs(2);

/// The way to the region's daemon.
pub(super) struct Link {
    pub(super) place: Place,
    pub(super) node: NodeName,
    /// Tells this process from another that says it is the same node.
    pub(super) process: u64,
    pub(super) cluster_id: ClusterId,
    pub(super) endpoint: Endpoint,
    /// What the region's daemon said last.
    pub(super) word: watch::Sender<Option<Word>>,
    /// The host that is to be the head next, as the head said last; empty where none is.
    pub(super) moves_to: watch::Sender<String>,
    /// Where another host may take over: what was heard of the head.
    pub(super) hearing: Option<Arc<Hearing>>,
    /// Where this host may take over.
    pub(super) keeps_password: Option<KeepsPassword>,
    /// The connection, while there is one.
    pub(super) way: watch::Sender<Option<Connection>>,
}

/// Where the superuser's password is kept, for when this host takes over.
pub(super) struct KeepsPassword {
    pub(super) layout: RegionLayout,
    /// The role that applications use.
    pub(super) owner: String,
    /// Where they reach PostgreSQL.
    pub(super) listen: SocketAddr,
}

impl Link {
    /// The first message of a stream to the region's daemon.
    pub(super) fn open(&self, purpose: open::Purpose) -> Open {
        let cluster_id = self.cluster_id.0.to_vec().into();
        Open { protocol: PROTOCOL_VERSION, cluster_id, purpose: Some(purpose) }
    }

    /// Goes to the region's daemon again and again, for ever; `report` says how the node is.
    pub(super) async fn talk(&self, report: impl Fn() -> NodeReport) {
        let mut last = String::new();
        loop {
            let ended = match self.talk_once(&report, &mut last).await {
                Ok(()) => "the region's daemon closed the connection".to_owned(),
                Err(e) => e.to_string(),
            };
            self.way.send_replace(None);
            if ended != last {
                tracing::warn!("{ended}; trying again");
                last = ended;
            }
            let pause = self.hearing.as_ref().map_or(AGAIN, |hearing| hearing.pause(AGAIN));
            tokio::time::sleep(pause).await;
        }
    }

    async fn talk_once(
        &self,
        report: &impl Fn() -> NodeReport,
        last: &mut String,
    ) -> Result<(), TransportError> {
        let patience = self.hearing.as_ref().map_or(PATIENCE, |_| ANOTHER);
        let connection = client::connect(&self.endpoint, &self.place, patience).await?;
        let node = NodeOpen { node: self.node.to_string(), process: self.process };
        let stream = connection.open_stream(&self.open(open::Purpose::Node(node))).await?;
        let (mut sender, mut receiver) = stream.split();
        let telling = async {
            loop {
                sender.send(&report()).await?;
                tokio::time::sleep(REPORT).await;
            }
        };
        let hearing = async {
            loop {
                let word = receiver.receive::<NodeWord>(MAX_CONTROL_MESSAGE_BYTES);
                let patience = self.hearing.as_ref().map_or(SILENT, |hearing| hearing.patience().min(SILENT));
                let silent = |_| Err(TransportError::Lost("the region's daemon is silent".into()));
                let word = tokio::time::timeout(patience, word).await.unwrap_or_else(silent)?;
                self.take(word.ok_or(TransportError::Finished)?, &connection, last)?;
            }
        };
        tokio::select! {
            ended = telling => ended,
            ended = hearing => ended,
        }
    }

    /// Keeps the superuser's password, which the head says with each word.
    fn keep_password(&self, password: &str) {
        let Some(KeepsPassword { layout, owner, listen }) = &self.keeps_password else { return };
        let is_kept = || secrets::load(layout).is_ok_and(|kept| kept == password);
        if !password.is_empty()
            && !is_kept()
            && let Err(e) = secrets::keep(layout, password, Clients { owner, listen: *listen })
        {
            tracing::warn!("the superuser's password is not kept: {e}; it is tried again");
        }
    }

    fn take(&self, word: NodeWord, connection: &Connection, last: &mut String) -> Result<(), TransportError> {
        if let Some(refusal) = word.refusal {
            self.endpoint.avoid(&self.place.advertise, connection.remote_address());
            if let Some(hearing) = self.hearing.as_ref().filter(|_| refusal.kind() == Kind::NotHead) {
                hearing.note_stands();
            }
            return Err(TransportError::Lost(refusal.reason));
        }
        if let Some(hearing) = &self.hearing {
            hearing.note(&word);
        }
        if word.stopped_us.is_some() {
            // Clients are held from now on, and the head is not looked for at once where it was.
            self.endpoint.await_another(&self.place.advertise, connection.remote_address());
            return Err(TransportError::Lost(format!(
                "the region's head has handed over to {}",
                word.moves_to
            )));
        }
        self.moves_to.send_if_modified(|known| {
            let changed = *known != word.moves_to;
            known.clone_from(&word.moves_to);
            changed
        });
        self.keep_password(&word.password);
        if self.way.borrow().is_none() {
            tracing::info!("the daemon of region {} is reached", self.place.name);
            last.clear();
            self.way.send_replace(Some(connection.clone()));
        }
        let origin = Some(word.origin).filter(|origin| !origin.is_empty()).map(Origin);
        let said = Some(Word { origin, missing: Some(word.missing).filter(|id| *id != 0) });
        self.word.send_if_modified(|word| {
            let changed = *word != said;
            *word = said;
            changed
        });
        Ok(())
    }
}
