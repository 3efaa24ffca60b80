//! Certificates are made anew in good time, by a daemon on the machine that has the authority's key.

use std::convert::Infallible;
use std::time::Duration;

use runtime::task::blocking;

use super::certificates::{self, Renew};
use crate::config::Config;
use crate::layout::Layout;

/// How often it is looked whether one is due: in a third of a minute, the shortest that is left of one.
const LOOK: Duration = Duration::from_secs(10);

/// Makes anew what is due of the certificates of `config` on this machine, for ever; of several daemons the
/// others find nothing due. Nothing where the authority's key is elsewhere, or another account's.
pub async fn keep(config: Config, layout: Layout) -> Infallible {
    let mut told = String::new();
    loop {
        tokio::time::sleep(LOOK).await;
        let (config, layout) = (config.clone(), layout.clone());
        let renewed = blocking("renew certificates", move || renew_due(&config, &layout)).await;
        match renewed.map_err(|e| e.to_string()).and_then(|renewed| renewed) {
            Ok(0) => told.clear(),
            Ok(made) => {
                tracing::info!("{made} certificates had less than a third of their life left: made anew")
            }
            Err(why) if why != told => {
                tracing::error!("certificates that are due are not made anew: {why}; it is tried again");
                told = why;
            }
            Err(_) => {}
        }
    }
}

fn renew_due(config: &Config, layout: &Layout) -> Result<usize, String> {
    let authority = layout.authority();
    if std::fs::File::open(authority.join("ca.key")).is_err() {
        return Ok(0);
    }
    certificates::make(config, layout, Renew::Due, None).map_err(|e| e.to_string())
}
