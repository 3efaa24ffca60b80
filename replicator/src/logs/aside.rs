//! PostgreSQL's log, a region's or a node's: it does not grow for ever.

use std::time::Duration;

use postgres::instance::Instance;
use runtime::task::blocking;

use super::{make_room, older};
use crate::config::LogsConfig;

/// How often the log is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Puts PostgreSQL's log aside whenever it is as large as `limits` say, for ever.
pub async fn put_postgres_aside(of: &Instance, limits: impl Fn() -> LogsConfig) {
    // An earlier daemon may have been killed before it told the collector.
    let mut untold = true;
    let mut failed = String::new();
    loop {
        tokio::time::sleep(LOOK).await;
        let (limits, instance) = (limits(), of.clone());
        let looked = blocking("look at PostgreSQL's log", move || look(&instance, limits, untold)).await;
        let error = match looked {
            Ok(Ok(still_untold)) => {
                untold = still_untold;
                continue;
            }
            Ok(Err(e)) => e,
            Err(e) => e.to_string(),
        };
        untold = true;
        if failed != error {
            tracing::warn!("PostgreSQL's log is not put aside: {error}; it is tried again");
            failed = error;
        }
    }
}

/// Puts the log aside if it is large, and tells the collector; whether that is still to be told.
fn look(instance: &Instance, limits: LogsConfig, mut untold: bool) -> Result<bool, String> {
    if !instance.collects_log() {
        return Ok(untold);
    }
    let log = &instance.options().log_file;
    let size_bytes = std::fs::metadata(log).map(|metadata| metadata.len()).ok();
    if size_bytes.is_none_or(|size_bytes| size_bytes >= limits.max_size_bytes) {
        if size_bytes.is_some() {
            make_room(log, limits.keep).map_err(|e| e.to_string())?;
        }
        instance.put_log_aside(&older(log, 1)).map_err(|e| e.to_string())?;
        untold = true;
    }
    if untold {
        instance.reopen_log().map_err(|e| e.to_string())?;
    }
    Ok(false)
}
