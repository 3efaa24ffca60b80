//! What dashboards and alerts name is in the table, and what is in the table can be seen on a dashboard.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use replicator_telemetry::METRICS;

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// The names of metrics in a text.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_lowercase() || c == '_'));
    let metrics = words.filter(|word| word.starts_with("replicator_"));
    let of_histogram = |word: &str| {
        ["_bucket", "_count", "_sum"]
            .iter()
            .find_map(|part| word.strip_suffix(part))
            .unwrap_or(word)
            .to_owned()
    };
    metrics.map(of_histogram).collect()
}

#[test]
fn dashboards_and_alerts_name_what_there_is() {
    let known: BTreeSet<String> = METRICS.iter().map(replicator_telemetry::Metric::prometheus_name).collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../observability");
    let mut seen = BTreeSet::new();
    for path in files(&root) {
        let names = named(&std::fs::read_to_string(&path).unwrap());
        let strangers: Vec<&String> = names.difference(&known).collect();
        assert!(strangers.is_empty(), "{} names {strangers:?}, which are not in the table", path.display());
        seen.extend(names);
    }
    // A distribution is shown for one of the lags; positions are numbers for machines.
    let aside = |name: &&String| name.contains("_observed_") || name.contains("_position_");
    let unseen: Vec<&String> = known.difference(&seen).filter(|name| !aside(name)).collect();
    println!("on no dashboard: {unseen:?}");
    assert!(unseen.len() <= 3, "on no dashboard: {unseen:?}");
}
