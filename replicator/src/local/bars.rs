//! What `up` shows while regions come up.

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use proto::messages::ClusterStatus;

use super::process::Daemon;
use crate::config::Config;
use crate::render::seeding;

/// A line for each region while it comes up; a bar while it is seeded.
pub(super) struct Bars {
    all: MultiProgress,
    bars: Vec<(String, ProgressBar)>,
}

impl Bars {
    pub(super) fn new(config: &Config, daemons: &[Daemon]) -> Bars {
        let all = MultiProgress::new();
        let style = ProgressStyle::with_template("{prefix:14} {msg:14} {wide_bar} {bytes}/{total_bytes}");
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = |daemon: &Daemon| {
            let bar = all.add(ProgressBar::new(1)).with_style(style.clone());
            bar.set_prefix(daemon.name.to_string());
            bar.set_message("starting");
            (daemon.name.to_string(), bar)
        };
        let regions =
            daemons.iter().filter(|daemon| daemon.apart.is_none() && config.region(&daemon.name).is_some());
        let bars = regions.map(bar).collect();
        Bars { all, bars }
    }

    pub(super) fn show(&self, status: &ClusterStatus) {
        for (name, bar) in &self.bars {
            let Some(row) = status.regions.iter().find(|row| row.name == *name) else { continue };
            bar.set_message(match row.seed_kept_bytes {
                0 => row.state.clone(),
                _ => seeding(&row.state, [row.seed_bytes, row.seed_total_bytes, row.seed_kept_bytes]),
            });
            if row.seed_total_bytes > 0 {
                bar.set_length(row.seed_total_bytes);
                bar.set_position(row.seed_bytes);
            }
        }
    }

    pub(super) fn clear(&self) {
        // A terminal that cannot be cleared shows the bars as they were.
        let _ = self.all.clear();
    }
}
