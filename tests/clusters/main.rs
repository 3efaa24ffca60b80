//! Clusters: real daemons, PostgreSQL and QUIC on loopback; things are killed, frozen, cut off, rot and fill
//! up.
//!
//! One area a file, and one program for all of them: it is linked once, and each test is a process of its own
//! anyway where cargo-nextest runs it. `cargo nextest run --release --workspace -E 'test(/^endpoints::/)'`
//! runs one file's.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

mod attackers;
mod automatic;
mod browser;
mod crashes;
mod drill;
mod endpoints;
mod events;
mod field;
mod flood;
mod head;
mod held;
mod instance;
mod left;
mod load;
mod majors;
mod nodes;
mod observe;
mod owner;
mod poolers;
mod promotion;
mod reload;
mod sealed;
mod secure;
mod seeds;
mod service;
mod streaming;
mod tablespaces;
mod tls;
mod tokens;
mod volume;
mod voters;
mod wan;

use replicator_tests::Cluster;

/// What `status` has for a region, as any daemon tells it: its state, and the notes on it; both empty where
/// none answers.
fn row(cluster: &Cluster, region: &str) -> (String, String) {
    let output = cluster.run(&["status", "--json"]);
    let Ok(status) = serde_json::from_slice::<serde_json::Value>(&output.stdout) else {
        return <_>::default();
    };
    let mut rows = status["regions"].as_array().unwrap().iter();
    let state = rows.find(|row| row["name"] == region).map(|row| row["state"].as_str().unwrap().to_owned());
    let notes = status["notes"].as_array().unwrap().iter().filter_map(|note| note.as_str());
    let prefix = format!("{region}: ");
    let notes: Vec<&str> = notes.filter_map(|note| note.strip_prefix(&prefix)).collect();
    (state.unwrap_or_default(), notes.join("; "))
}
