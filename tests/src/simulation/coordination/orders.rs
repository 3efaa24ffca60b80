//! What an operator signs here, and what voters take for signed: a signature is its content, which nobody but
//! the operator of the simulation writes down.

use std::collections::BTreeSet;

use coordination::leadership::Order;
use coordination::orders::{Automatic, Content, Orders, Verified};
use coordination::{Electorate, Membership, Mode, SignedOrder, Voters};
use proto::{Epoch, RegionName};
use runtime::clock::wall_us;

use super::node::GONE_US;

/// What a voter of the simulation goes by.
#[derive(Debug)]
pub(super) struct Signatures {
    /// Regions may order failovers by themselves.
    pub(super) automatic: bool,
}

impl Orders for Signatures {
    fn required(&self) -> bool {
        true
    }

    fn carried(&self) -> bool {
        true
    }

    fn automatic(&self) -> Option<Automatic> {
        self.automatic.then_some(Automatic { after_us: GONE_US, loss_max_bytes: u64::MAX })
    }

    fn verify(&self, order: &SignedOrder) -> Result<Verified, String> {
        let content = decode(order.bytes()).ok_or("it is none")?;
        // Just now: clocks of people are not simulated.
        Ok(Verified { content, at_us: wall_us() })
    }
}

/// The operator signs `order`.
pub(super) fn sign(order: Order) -> Order {
    // The old primary among them, which is counted as lost in any case.
    let lost: Vec<&str> = order.lost.iter().map(RegionName::as_str).collect();
    let Order { id, epoch, mode, to, forced, .. } = &order;
    let text = format!("promotion {id} {} {mode} {to} {forced} {}", epoch.0, lost.join(","));
    Order { signed: SignedOrder::of(text.into_bytes()), ..order }
}

/// The operator signs that `membership` changes `electorate`.
pub(super) fn sign_voters(electorate: &Electorate, membership: &Membership) -> Option<SignedOrder> {
    let after = electorate.after(membership);
    let names = |set: &BTreeSet<RegionName>| {
        let names: Vec<&str> = set.iter().map(RegionName::as_str).collect();
        names.join(",")
    };
    let text = format!("voters {} {};{}", electorate.steps, names(&after.regions), names(&after.witnesses));
    SignedOrder::of(text.into_bytes())
}

fn decode(bytes: &[u8]) -> Option<Content> {
    let text = std::str::from_utf8(bytes).ok()?;
    let names = |text: &str| -> Option<BTreeSet<RegionName>> {
        text.split(',').filter(|name| !name.is_empty()).map(|name| name.parse().ok()).collect()
    };
    let parts: Vec<&str> = text.split(' ').collect();
    match parts[..] {
        ["promotion", id, epoch, mode, to, forced, lost] => Some(Content::Promotion {
            id: id.parse().ok()?,
            epoch: Epoch(epoch.parse().ok()?),
            mode: if mode == "failover" { Mode::Failover } else { Mode::Switchover },
            to: to.parse().ok()?,
            forced: forced == "true",
            lost: names(lost)?,
        }),
        ["voters", steps, voters] => {
            let (regions, witnesses) = voters.split_once(';')?;
            let voters = Voters { regions: names(regions)?, witnesses: names(witnesses)? };
            Some(Content::Voters { steps: steps.parse().ok()?, voters })
        }
        _ => None,
    }
}
