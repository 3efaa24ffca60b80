//! `replicator promote` and `replicator history`.

use proto::messages::PromoteRequest;
use proto::{NodeName, RegionName};

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
    let only_asks = request.dry_run;
    let promotion = operator.promote(region, request, &tell).await.map_err(|e| match e {
        OperatorError::Promotion(AskError::Transport(_) | AskError::Slow(_)) if only_asks => {
            format!("region {region}: {e}. Nothing was changed")
        }
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

/// Has the head of a region move to its host `node`, or only looks whether it could, as `dry_run` says; tells
/// each step, and how it went.
pub(super) async fn move_head(
    operator: &Operator,
    region: &RegionName,
    node: &NodeName,
    (dry_run, json): (bool, bool),
) -> AnyResult {
    let tell = |what: &str| eprintln!("{what}");
    let moved = operator.move_head(region, node, dry_run, &tell).await.map_err(|e| match e {
        OperatorError::Asked { source: AskError::Transport(_) | AskError::Slow(_), .. } => format!(
            "{e}; whether its head has moved is not known here: see `replicator status`, and `replicator events` for how it goes on"
        ),
        OperatorError::Asked { source, .. } => format!("the head of {region} was not moved: {source}"),
        e => e.to_string(),
    })?;
    match json {
        true => println!("{}", render::head_move_json(region, &moved)),
        false => print!("{}", render::head_move(region, &moved)),
    }
    match &moved {
        moved if !moved.findings.is_empty() => {
            Err(format!("the head of {region} cannot move to {node} now. Nothing was changed").into())
        }
        moved if !dry_run && moved.head != node.as_str() => {
            Err(format!("{node} did not become the head of {region}; {} is that", moved.head).into())
        }
        _ => Ok(()),
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
        let by = match told.ordered_by.as_str() {
            "" => String::new(),
            by => format!("  ordered by {by}"),
        };
        println!("{at}  epoch {:<4} {:10}  {} to {}  {end}{by}", told.epoch, told.mode, told.from, told.to);
    }
    Ok(())
}
