//! How a primary keeps its lease: it asks each other voter, again and again, whether that still takes it for
//! the primary.
//!
//! The lease does not depend on what streams: a region that is being seeded or is far behind votes, and so
//! counts.

use std::sync::Arc;
use std::time::Duration;

use coordination::leadership::Change;
use proto::messages::{SupportRequest, Supported, control_request, control_response};
use proto::{Epoch, RegionName};

use crate::client::AskError;
use crate::voter::Voter;

/// Asks `name` until `answered` says that it is over. `answered` takes the time of `clock` at which the
/// answered question left: the lease counts from then, as the voter may have answered at once and the answer
/// come late.
pub async fn ask(
    voter: Arc<Voter>,
    name: RegionName,
    epoch: Epoch,
    lease: Duration,
    clock: impl Fn() -> u64 + Send,
    answered: impl Fn(&RegionName, u64) -> bool + Send,
) {
    loop {
        let asked_at_us = clock();
        let request = SupportRequest { epoch: epoch.0, agreement: Some(voter.agreement()) };
        let answer = voter.ask(&name, control_request::Body::Support(request), lease / 5).await;
        if let Ok(control_response::Body::Supported(Supported { agreement: Some(theirs) })) = &answer {
            voter.compare(&name, theirs);
        }
        match answer {
            Ok(_) if !answered(&name, asked_at_us) => return,
            Ok(_) => voter.found(&name),
            Err(AskError::Refused(_)) => {
                // It may know of a later epoch.
                drop(voter.change(&Change::Read).await);
                tokio::time::sleep(lease / 10).await;
            }
            Err(_) => {}
        }
        tokio::time::sleep(lease / 20).await;
    }
}
