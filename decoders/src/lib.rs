//! Every decoder of bytes that are not the daemon's own, as a function of any bytes.
//!
//! Each holds what its decoder promises: it does not panic, allocates within a limit, and what was read is
//! the same once it was written and read again. libFuzzer gives them inputs in `fuzz/`, `tests/corpora.rs`
//! what that has found, and mutations of it. docs/TESTING.md lists the decoders.
//!
//! Without the feature `program` only those of libraries are here: they are built in a third of the time.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "a target ends where it finds something")]

pub mod corpus;
#[cfg(feature = "program")]
pub mod daemons;
pub mod disks;
pub mod mutate;
pub mod peers;
pub mod postgresql;
mod seeds;

/// A decoder, and what it is given.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name, which its corpus and its fuzz target have as well.
    pub name: &'static str,
    /// What it is run by.
    pub run: fn(&[u8]),
    /// It is about what C does, zstd or aws-lc: then it is fuzzed with AddressSanitizer.
    pub c: bool,
    /// The longest input that says something new, bytes.
    pub most: usize,
    /// Good inputs, as what is written now makes them.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them, a line each, as `scripts/fuzz.sh` reads them. Those that whoever reaches the port can try
/// come first.
#[rustfmt::skip]
pub const TARGETS: &[Target] = &[
    Target { name: "messages", run: peers::messages, c: false, most: 512, seeds: seeds::messages },
    Target { name: "identity", run: peers::identity, c: true, most: 1024, seeds: seeds::identity },
    Target { name: "repair", run: peers::repair, c: false, most: 96, seeds: seeds::repair },
    Target { name: "client", run: postgresql::client, c: false, most: 512, seeds: seeds::client },
    Target { name: "wire", run: postgresql::wire, c: false, most: 512, seeds: seeds::wire },
    #[cfg(feature = "program")]
    Target { name: "zone", run: daemons::zone, c: false, most: 512, seeds: seeds::zone },
    Target { name: "batch", run: peers::batch, c: true, most: 512, seeds: seeds::batch },
    Target { name: "receiver", run: peers::receiver, c: false, most: 512, seeds: seeds::receiver },
    #[cfg(feature = "program")]
    Target { name: "control", run: daemons::control, c: false, most: 1024, seeds: seeds::control },
    Target { name: "inventory", run: peers::inventory, c: true, most: 512, seeds: seeds::inventory },
    Target { name: "seed", run: postgresql::seed, c: true, most: 1024, seeds: seeds::seed },
    Target { name: "archive", run: postgresql::archive, c: true, most: 4096, seeds: seeds::archive },
    Target { name: "records", run: postgresql::records, c: false, most: 4096, seeds: seeds::records },
    Target { name: "tablespaces", run: postgresql::tablespaces, c: false, most: 1024, seeds: seeds::tablespaces },
    Target { name: "scram", run: postgresql::scram, c: true, most: 256, seeds: seeds::scram },
    Target { name: "texts", run: postgresql::texts, c: false, most: 1536, seeds: seeds::texts },
    Target { name: "timeline", run: disks::timeline, c: false, most: 256, seeds: seeds::timeline },
    Target { name: "segment", run: disks::segment, c: false, most: 512, seeds: seeds::segment },
    Target { name: "sealed", run: disks::sealed, c: true, most: 256, seeds: seeds::sealed },
    Target { name: "meta", run: disks::meta, c: false, most: 512, seeds: seeds::meta },
    #[cfg(feature = "program")]
    Target { name: "keys", run: daemons::keys, c: false, most: 512, seeds: seeds::keys },
    #[cfg(feature = "program")]
    Target { name: "region_json", run: daemons::region_json, c: false, most: 1024, seeds: seeds::region_json },
    #[cfg(feature = "program")]
    Target { name: "audit", run: daemons::audit, c: false, most: 1536, seeds: seeds::audit },
    #[cfg(feature = "program")]
    Target { name: "events", run: daemons::events, c: false, most: 512, seeds: seeds::events },
    #[cfg(feature = "program")]
    Target { name: "load", run: daemons::load, c: false, most: 1024, seeds: seeds::load },
    #[cfg(feature = "program")]
    Target { name: "config", run: daemons::config, c: false, most: 2048, seeds: seeds::config },
];

/// The target of this name.
#[must_use]
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
