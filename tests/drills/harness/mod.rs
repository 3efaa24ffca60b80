//! The harness of all drills: a [`Site`] of regions in containers, its [`wan`], and the [`Score`] of a drill.
//!
//! Whatever happens in a drill, a failure or Ctrl-C included, its containers, networks and volumes are
//! removed; after a failure their logs are kept. What a killed test process leaves has the label
//! `replicator.drill`, by which `scripts/drills.sh` removes it.

mod site;
pub mod wan;

use std::io::Write;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;

use futures_util::FutureExt;

pub use site::{Site, gap_ms};

/// What a drill is about.
#[derive(Default)]
pub struct Plan {
    /// Its name: the scenario's.
    pub name: &'static str,
    /// Secondaries besides the one primary.
    pub secondaries: usize,
    /// Lines at the beginning of `regions.toml`, behind the cluster's name.
    pub lines: &'static str,
    /// The network loses nothing.
    pub clean: bool,
    /// The primary region's zones are containers of their own.
    pub zones: bool,
    /// The volume of this region is on a disk of this many bytes.
    pub small_disk: Option<(&'static str, i64)>,
}

/// What a drill measured: a line of the table.
#[derive(Default)]
pub struct Score {
    /// The longest time without an acknowledged commit, from the order or the disaster on, ms.
    pub rto_ms: Option<u128>,
    /// Acknowledged commits that were lost.
    pub lost: Option<usize>,
    /// What the promotion said was at risk.
    pub reported: Option<String>,
    /// Acknowledged commits in all.
    pub commits: usize,
}

impl Score {
    /// Takes what a promotion's `--json` says of its loss.
    pub fn told(&mut self, promoted: &serde_json::Value) {
        let loss = &promoted["loss"];
        self.reported = Some(match loss["seconds"].as_u64() {
            Some(0) => "nothing".into(),
            seconds => format!("{} bytes known, and {} s", loss["bytes"], seconds.unwrap_or(0)),
        });
    }
}

/// Runs a drill: brings its regions up, and takes them away whatever happens.
pub async fn drill(plan: Plan, scenario: impl AsyncFnOnce(&mut Site, &mut Score)) {
    let seed = seed();
    let begin = replicator_tests::now();
    let mut site = Site::new(&plan, seed).await;
    let mut score = Score::default();
    let running = AssertUnwindSafe(async {
        site.bring_up().await;
        scenario(&mut site, &mut score).await;
    });
    let ended = tokio::select! {
        ended = running.catch_unwind() => ended,
        interrupted = tokio::signal::ctrl_c() => {
            let why: Box<dyn std::any::Any + Send> = Box::new(format!("interrupted: {interrupted:?}"));
            Err(why)
        }
    };
    let logs = logs_directory(&plan, seed);
    if ended.is_err() {
        site.keep_logs(&logs).await;
    }
    site.remove().await;
    match ended {
        Ok(()) => {
            let line = serde_json::json!({
                "drill": plan.name, "seed": seed, "rto_ms": score.rto_ms, "lost": score.lost,
                "reported": score.reported, "commits": score.commits, "seconds": begin.elapsed().as_secs(),
            });
            println!("{line}");
            let path = directory().join("results.jsonl");
            let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
            writeln!(file.unwrap(), "{line}").unwrap();
        }
        Err(_) => panic!(
            "drill {} failed, seed {seed} (DRILL_SEED={seed} runs it again); logs of every container: {}",
            plan.name,
            logs.display()
        ),
    }
}

/// What decides what the network loses and how late it is.
fn seed() -> u64 {
    let given = std::env::var("DRILL_SEED").ok().and_then(|seed| seed.parse().ok());
    given.unwrap_or_else(|| runtime::random::below(1_000_000))
}

fn directory() -> PathBuf {
    let target = replicator_tests::program();
    let directory = target.parent().unwrap().with_file_name("drills");
    std::fs::create_dir_all(&directory).unwrap();
    directory
}

fn logs_directory(plan: &Plan, seed: u64) -> PathBuf {
    directory().join(format!("{}-{seed}", plan.name))
}
