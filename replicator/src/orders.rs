//! Operators' orders as messages: how a command signs one, and how a daemon tells one from what was made up.
//! What counts as ordered is decided in `coordination::orders`.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use coordination::orders::{Automatic, Content, Orders, Verified};
use coordination::{Electorate, Membership, Mode, SignedOrder, Voters};
use prost::Message;
use proto::messages as m;
use proto::messages::order_content::Body;
use proto::{ClusterId, Epoch, RegionName};
use runtime::clock::{micros, wall_us};
use runtime::random;
use transport::{Endpoint, Identity};

use crate::config::Config;

/// What is said where an order should be signed, and is not.
pub const UNSIGNED: &str = "the order is not signed, and this cluster takes signed orders alone: use a `replicator` of the daemons' version";

/// Orders that are signed by operators whom the endpoint lets in.
#[derive(Debug)]
pub struct SignedOrders {
    endpoint: Endpoint,
    cluster: ClusterId,
    rules: Mutex<Rules>,
}

#[derive(Debug, Clone, Copy)]
struct Rules {
    required: Option<bool>,
    automatic: Option<Automatic>,
}

impl Rules {
    fn of(config: &Config) -> Rules {
        let failover = config.failover;
        let automatic =
            Automatic { after_us: micros(failover.after), loss_max_bytes: failover.max_loss_bytes };
        Rules { required: config.require_signed_orders, automatic: failover.automatic.then_some(automatic) }
    }
}

impl SignedOrders {
    /// Those of `cluster`, as `config` wants them.
    #[must_use]
    pub fn new(endpoint: Endpoint, cluster: ClusterId, config: &Config) -> SignedOrders {
        SignedOrders { endpoint, cluster, rules: Mutex::new(Rules::of(config)) }
    }

    /// From now on as `config` wants them.
    pub fn take(&self, config: &Config) {
        *self.rules() = Rules::of(config);
    }

    fn rules(&self) -> MutexGuard<'_, Rules> {
        // It is replaced whole.
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Orders for SignedOrders {
    fn required(&self) -> bool {
        self.rules().required.unwrap_or_else(|| self.endpoint.signs().required)
    }

    fn carried(&self) -> bool {
        self.required() || self.endpoint.signs().known
    }

    fn automatic(&self) -> Option<Automatic> {
        self.rules().automatic
    }

    fn verify(&self, order: &SignedOrder) -> Result<Verified, String> {
        let signed = m::SignedOrder::decode(order.bytes()).map_err(|e| e.to_string())?;
        let content = m::OrderContent::decode(&*signed.content).map_err(|e| e.to_string())?;
        self.endpoint.verify_order(&signed, content.at_us)?;
        if content.cluster_id != self.cluster.0.as_slice() {
            return Err("it is of another cluster".into());
        }
        Ok(Verified { at_us: content.at_us, content: to_content(content)? })
    }
}

fn to_content(content: m::OrderContent) -> Result<Content, String> {
    let name = |text: &String| text.parse::<RegionName>().map_err(|e| e.to_string());
    let names = |texts: &[String]| texts.iter().map(name).collect::<Result<BTreeSet<_>, _>>();
    match content.body {
        Some(Body::Promotion(order)) => Ok(Content::Promotion {
            id: order.id,
            epoch: Epoch(order.epoch),
            mode: if order.failover { Mode::Failover } else { Mode::Switchover },
            to: name(&order.to)?,
            forced: order.old_primary_is_down,
            lost: names(&order.lost)?,
        }),
        Some(Body::Voters(order)) => Ok(Content::Voters {
            steps: order.steps,
            voters: Voters { regions: names(&order.regions)?, witnesses: names(&order.witnesses)? },
        }),
        None => Err("it orders nothing that is known here".into()),
    }
}

fn to_texts(names: &BTreeSet<RegionName>) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

fn sign(identity: &Identity, body: Body) -> Result<m::SignedOrder, String> {
    let cluster_id = identity.cluster_id.0.to_vec().into();
    let content = m::OrderContent { cluster_id, at_us: wall_us(), body: Some(body) };
    identity.sign_order(content.encode_to_vec())
}

/// Signs what `request` orders of region `to`, in `epoch`.
///
/// # Errors
/// When the key cannot sign, in words.
pub fn sign_promotion(
    identity: &Identity,
    to: &RegionName,
    request: &m::PromoteRequest,
    epoch: Epoch,
) -> Result<m::SignedOrder, String> {
    let order = m::PromotionOrder {
        id: 1 + random::below(u64::MAX - 1),
        epoch: epoch.0,
        failover: request.failover,
        to: to.to_string(),
        old_primary_is_down: request.old_primary_is_down,
        lost: request.lost.clone(),
    };
    sign(identity, Body::Promotion(order))
}

/// Signs that those vote who do once `membership` has changed `electorate`.
///
/// # Errors
/// When the key cannot sign, in words.
pub fn sign_voters(
    identity: &Identity,
    electorate: &Electorate,
    membership: &Membership,
) -> Result<m::SignedOrder, String> {
    let after = electorate.after(membership);
    let order = m::VotersOrder {
        steps: electorate.steps,
        regions: to_texts(&after.regions),
        witnesses: to_texts(&after.witnesses),
    };
    sign(identity, Body::Voters(order))
}

/// The order in a request as the record has it; none where there is none.
#[must_use]
pub fn in_request(order: Option<&m::SignedOrder>) -> Option<SignedOrder> {
    SignedOrder::of(order?.encode_to_vec())
}

/// Whose certificate an order in the record has beside it, for people: role, name, serial number.
#[must_use]
pub fn signer(order: &SignedOrder) -> Option<String> {
    let signed = m::SignedOrder::decode(order.bytes()).ok()?;
    let certificate = transport::orders::signer_of(&signed)?;
    Some(format!("{} {}, serial {}", certificate.peer.role(), certificate.peer.name(), certificate.serial))
}
