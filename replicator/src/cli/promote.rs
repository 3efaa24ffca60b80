//! `replicator promote` and `replicator history`.

use proto::RegionName;
use proto::messages::PromoteRequest;

use super::AnyResult;
use crate::client::AskError;
use crate::operator::{Operator, OperatorError};
use crate::{region, render, units};

/// Orders a promotion, tells each step as it is recorded, and shows how it went.
pub(super) async fn promote(
    operator: &Operator,
    region: &RegionName,
    request: PromoteRequest,
    json: bool,
) -> AnyResult {
    let tell = |what: &str| eprintln!("{what}");
    let promotion = operator.promote(region, request, &tell).await.map_err(|e| match e {
        // What was ordered goes on by itself, or was never heard.
        OperatorError::Promotion(AskError::Transport(_) | AskError::Slow(_)) => format!(
            "region {region}: {e}; whether it was promoted is not known here: see `replicator history`, and \
                 `replicator status` for a promotion that goes on by itself"
        ),
        e => format!("{region} was not promoted: {e}"),
    })?;
    match json {
        true => println!("{}", render::promotion_json(&promotion)),
        false => print!("{}", render::promotion(&promotion)),
    }
    match render::refuses(&promotion) {
        true => Err(format!("{region} cannot be promoted now. Nothing was changed").into()),
        false => Ok(()),
    }
}

/// The promotions that are over, oldest first.
pub(super) fn show_history(record: &coordination::Leadership, json: bool) -> AnyResult {
    for past in &record.history {
        let told = region::order::told(past);
        if json {
            println!("{}", render::promotion_json(&told));
            continue;
        }
        let at = time::OffsetDateTime::from_unix_timestamp(past.at_us / 1_000_000)?;
        let at = at.format(&time::format_description::well_known::Rfc3339)?;
        let end = match &past.rolled_back {
            Some(why) if past.began() => format!("from {}  given up: {why}", past.promotion.fork_lsn),
            Some(why) => format!("not done: {why}"),
            None => {
                let lost = units::show_bytes(told.lost_to_lsn.saturating_sub(told.fork_lsn));
                let at_risk = match told.lost_us.div_ceil(1_000_000) {
                    0 => String::new(),
                    seconds => format!(", and what was acknowledged in the last {seconds} s is at risk"),
                };
                format!("from {}  lost {lost}{at_risk}", past.promotion.fork_lsn)
            }
        };
        println!("{at}  epoch {:<4} {:10}  {} to {}  {end}", told.epoch, told.mode, told.from, told.to);
    }
    Ok(())
}
