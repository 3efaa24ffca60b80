//! The one table of metrics. Everything else follows it: what is exported, docs/METRICS.md, and what a
//! dashboard or an alert may name.

use std::fmt::Write as _;

/// What a metric's values are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// A value that goes up and down.
    Gauge,
    /// A sum that only grows while a daemon runs.
    Counter,
    /// How often values fell below each of these bounds, which grow.
    Histogram(&'static [f64]),
}

/// What a metric's values are measured in: a base unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Seconds.
    Seconds,
    /// Bytes; positions in redo are bytes as well.
    Bytes,
    /// A number of these.
    Count(&'static str),
    /// 1 for yes and 0 for no, or a number without a unit.
    None,
}

impl Unit {
    /// The unit as OTLP has it (UCUM).
    #[must_use]
    pub fn ucum(self) -> String {
        match self {
            Unit::Seconds => "s".into(),
            Unit::Bytes => "By".into(),
            Unit::Count(what) => format!("{{{what}}}"),
            Unit::None => String::new(),
        }
    }

    fn suffix(self) -> &'static str {
        match self {
            Unit::Seconds => "_seconds",
            Unit::Bytes => "_bytes",
            Unit::Count(_) | Unit::None => "",
        }
    }
}

/// One row of the table.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Metric {
    /// Its name in OTLP: words with dots, without a unit.
    pub name: &'static str,
    /// What its values are.
    pub kind: Kind,
    /// What they are measured in.
    pub unit: Unit,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// What it says, in one sentence.
    pub help: &'static str,
}

impl Metric {
    /// Its name in Prometheus, which is also what a collector makes of it.
    #[must_use]
    pub fn prometheus_name(&self) -> String {
        let total = if self.kind == Kind::Counter { "_total" } else { "" };
        format!("{}{}{total}", self.name.replace('.', "_"), self.unit.suffix())
    }

    fn kind_name(&self) -> &'static str {
        match self.kind {
            Kind::Gauge => "gauge",
            Kind::Counter => "counter",
            Kind::Histogram(_) => "histogram",
        }
    }
}

/// Bounds of lags, seconds.
const LAGS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0,
];

macro_rules! table {
    ($($constant:ident = $kind:expr, $name:literal, $unit:expr, [$($label:literal),*], $help:literal;)*) => {
        $(
            #[doc = $help]
            pub const $constant: Metric =
                Metric { name: $name, kind: $kind, unit: $unit, labels: &[$($label),*], help: $help };
        )*
        /// The whole table, in the order of the document.
        pub const METRICS: &[Metric] = &[$($constant),*];
    };
}

use Kind::{Counter, Gauge, Histogram};
use Unit::{Bytes, Count, None as Plain, Seconds};

table! {
    REGION_INFO = Gauge, "replicator.region.info", Plain, ["region", "role", "version"],
        "1: the part that the region plays, and the program's version.";
    REGION_STATE = Gauge, "replicator.region.state", Plain, ["region", "state"],
        "1 for the state that `replicator status` shows of the region, 0 for the others.";
    REGION_READY = Gauge, "replicator.region.ready", Plain, ["region"],
        "1 when `/readyz` answers 200, 0 when it does not.";
    EPOCH = Gauge, "replicator.epoch", Plain, ["region"], "The epoch that the region knows of.";
    TIMELINE = Gauge, "replicator.timeline", Plain, ["region"], "PostgreSQL's timeline of the region's newest redo.";

    DURABLE_LAG = Gauge, "replicator.durable_lag", Seconds, ["region"],
        "How far the region's durable redo is behind the primary, as the primary reckons it; 0 for the primary itself.";
    VISIBLE_LAG = Gauge, "replicator.visible_lag", Seconds, ["region"],
        "How far what queries see in the region is behind the primary, as the primary reckons it; 0 for the primary itself.";
    RPO_LAG = Gauge, "replicator.rpo_lag", Seconds, ["region"],
        "The age of the oldest redo that the region is not known to have durable: what a disaster now would lose.";
    HEARD_LAG = Gauge, "replicator.heard_lag", Seconds, ["region"],
        "How far what queries see is behind what the region heard from its primary, by the region's own clock; it grows while nothing is heard.";
    DURABLE_LAG_OBSERVED = Histogram(LAGS), "replicator.durable_lag.observed", Seconds, ["region"],
        "The durable lag, looked at every second.";
    VISIBLE_LAG_OBSERVED = Histogram(LAGS), "replicator.visible_lag.observed", Seconds, ["region"],
        "The visible lag, looked at every second.";
    RPO_LAG_OBSERVED = Histogram(LAGS), "replicator.rpo_lag.observed", Seconds, ["region"],
        "The RPO lag, looked at every second.";
    DURABLE_BEHIND = Gauge, "replicator.durable_behind", Bytes, ["region"],
        "Redo that is durable in the primary and not known to be in the region.";
    VISIBLE_BEHIND = Gauge, "replicator.visible_behind", Bytes, ["region"],
        "Redo that is durable in the primary and not known to be applied in the region.";
    DURABLE_POSITION = Gauge, "replicator.durable_position", Bytes, ["region"],
        "The end of the region's durable redo, an LSN as a number.";
    APPLIED_POSITION = Gauge, "replicator.applied_position", Bytes, ["region"],
        "The end of the redo that the region's PostgreSQL has applied, an LSN as a number.";
    RELEASED_POSITION = Gauge, "replicator.released_position", Bytes, ["region"],
        "Up to where the primary lets commits return, an LSN as a number.";

    COMMITS_HELD = Gauge, "replicator.commits.held", Plain, ["region", "reason"],
        "1 while commits do not return for this reason, 0 otherwise.";
    LEASE_LEFT = Gauge, "replicator.lease.left", Seconds, ["region"],
        "How long the primary may go on letting commits return if nobody answers any more.";
    REDO_READ = Counter, "replicator.redo.read", Bytes, ["region"], "Redo read from the region's writer.";
    REDO_RECEIVED = Counter, "replicator.redo.received", Bytes, ["region"], "Redo received from the primary.";
    BATCHES_REPAIRED = Counter, "replicator.batches.repaired", Count("batch"), ["region"],
        "Batches that the region had earlier by redundancy than by their retransmission.";
    BATCHES = Counter, "replicator.batches", Count("batch"), ["region"], "Batches that the primary's reader cut.";
    BATCH_COMPRESSED = Counter, "replicator.batches.compressed", Bytes, ["region"],
        "What the batches take once compressed: what is stored and sent.";

    LINK_UP = Gauge, "replicator.link.up", Plain, ["region", "peer"],
        "1 while redo streams from the region to the peer, 0 otherwise.";
    LINK_SILENCE = Gauge, "replicator.link.silence", Seconds, ["region", "peer"],
        "How long the region has heard nothing from the peer.";
    LINK_ROUND_TRIP = Gauge, "replicator.link.round_trip", Seconds, ["region", "peer"],
        "The round trip to the peer, smoothed.";
    LINK_WINDOW = Gauge, "replicator.link.congestion_window", Bytes, ["region", "peer"],
        "How much may be in flight to the peer.";
    LINK_PACKETS = Counter, "replicator.link.packets", Count("packet"), ["region", "peer"],
        "Packets sent to the peer.";
    LINK_LOST = Counter, "replicator.link.lost_packets", Count("packet"), ["region", "peer"],
        "Packets to the peer that were lost.";
    LINK_WAN = Counter, "replicator.link.wan", Bytes, ["region", "peer"],
        "Bytes that crossed the network to the peer for redo, with all headers.";
    LINK_REDO = Counter, "replicator.link.redo", Bytes, ["region", "peer"],
        "Redo sent to the peer, before compression.";
    LINK_BATCHES = Counter, "replicator.link.batches", Count("batch"), ["region", "peer"],
        "Batches sent to the peer.";
    LINK_REPAIRS = Counter, "replicator.link.repairs", Bytes, ["region", "peer"],
        "Redundancy sent to the peer beside the redo, of which it puts together what was lost; none on a clean link.";
    LINK_SEED_SENT = Gauge, "replicator.link.seed_sent", Bytes, ["region", "peer"],
        "How much of the seed in progress the peer was sent or had already, before compression; 0 without a seed.";
    LINK_SEED_SIZE = Gauge, "replicator.link.seed_size", Bytes, ["region", "peer"],
        "How large the seed in progress is expected to be; 0 without a seed.";

    COPIES = Gauge, "replicator.volume.copies", Count("copy"), ["region", "state"],
        "Copies of the region's volume in each state; six in all, and four must be live.";
    COPY_BEHIND = Gauge, "replicator.volume.copy_behind", Bytes, ["region", "copy"],
        "Durable redo of the volume that the copy does not hold on its disk.";
    VOLUME_WRITABLE = Gauge, "replicator.volume.writable", Plain, ["region"],
        "1 while what is given to the volume can become durable, 0 otherwise.";
    VOLUME_STORED = Gauge, "replicator.volume.stored", Bytes, ["region"], "What each copy takes on its disk.";
    VOLUME_HORIZON = Gauge, "replicator.volume.horizon", Bytes, ["region"],
        "The beginning of the oldest redo kept, an LSN as a number.";
    COPY_FILLED = Counter, "replicator.volume.filled", Bytes, ["region", "copy"],
        "What repair brought to the copy from its peers.";
    COPY_REPAIRED = Counter, "replicator.volume.repaired_segments", Count("segment"), ["region", "copy"],
        "Damaged segments of the copy that were put right.";
    COPY_DAMAGE = Gauge, "replicator.volume.damage", Count("segment"), ["region", "copy"],
        "What the copy's last reading found and could not be put right yet.";
    COPY_SCRUB_AGE = Gauge, "replicator.volume.scrub_age", Seconds, ["region", "copy"],
        "How long ago the copy was last read back against its checksums; absent before that.";

    NODE_UP = Gauge, "replicator.node.up", Plain, ["region", "node"],
        "1 while the region's node is connected and, where it runs a replica, that streams; 0 otherwise.";
    NODE_LAG = Gauge, "replicator.node.lag", Seconds, ["region", "node"],
        "How far what the node's replica shows is behind what its region knows of the primary; absent while that is not known.";

    PROMOTION_RUNNING = Gauge, "replicator.promotion.running", Plain, ["region"],
        "1 while the region knows of a promotion in progress, 0 otherwise.";
    PROMOTIONS = Gauge, "replicator.promotion.ended", Count("promotion"), ["region"],
        "Promotions in the record that have ended; the record keeps the newest.";
    PROMOTION_STEP = Gauge, "replicator.promotion.last_step", Seconds, ["region", "step"],
        "How long each step of the newest promotion took.";
    PROMOTION_WRITE_GAP = Gauge, "replicator.promotion.last_write_gap", Seconds, ["region"],
        "How long nobody could write in the newest promotion; 0 where it is not known.";

    POSTGRES_UP = Gauge, "replicator.postgres.up", Plain, ["region"],
        "1 when the region's PostgreSQL answered the last question, 0 otherwise.";
    POSTGRES_CONNECTIONS = Gauge, "replicator.postgres.connections", Count("connection"), ["region", "state"],
        "Client connections of the region's PostgreSQL by state.";
    POSTGRES_CONNECTIONS_MAX = Gauge, "replicator.postgres.connections_max", Count("connection"), ["region"],
        "How many connections PostgreSQL takes (`max_connections`).";
    POSTGRES_TRANSACTIONS = Counter, "replicator.postgres.transactions", Count("transaction"), ["region", "outcome"],
        "Transactions that ended, by outcome, in all databases.";
    POSTGRES_DEADLOCKS = Counter, "replicator.postgres.deadlocks", Count("deadlock"), ["region"],
        "Deadlocks in all databases.";
    POSTGRES_BLOCKS = Counter, "replicator.postgres.blocks", Count("block"), ["region", "from"],
        "Blocks that PostgreSQL found in its buffers (`hit`) or asked the system for (`read`).";
    POSTGRES_OLDEST = Gauge, "replicator.postgres.oldest_transaction", Seconds, ["region"],
        "The age of the oldest transaction that is still open.";
    SLOT_RETAINED = Gauge, "replicator.postgres.slot_retained", Bytes, ["region", "slot"],
        "Redo that the writer keeps for a replication slot.";

    LOAD_SESSIONS = Counter, "replicator.load.sessions", Count("session"), ["region", "wait"],
        "Active sessions of the region's PostgreSQL, summed over one look a second, by the type of what they waited for (`CPU` for nothing): its rate is the average of active sessions.";
    LOAD_CORES = Gauge, "replicator.load.cores", Count("core"), ["region"],
        "The processors of the region's machine, which that average is to be seen beside.";
    LOAD_LOOKS = Counter, "replicator.load.looks", Count("look"), ["region", "outcome"],
        "Looks at the active sessions, by whether PostgreSQL answered in time (`answered`, `missed`).";
    LOAD_TOOK = Counter, "replicator.load.looking", Seconds, ["region"],
        "How long PostgreSQL took to answer all looks at the active sessions.";

    ENDPOINT_CLIENTS = Gauge, "replicator.endpoint.clients", Count("client"), ["region", "endpoint"],
        "Clients that are connected to the region's endpoint of the `writer` or the `reader`, or were brought by those of other regions (`elsewhere`).";
    ENDPOINT_WAITING = Gauge, "replicator.endpoint.waiting", Count("client"), ["region", "endpoint"],
        "Clients of those that are held while there is no PostgreSQL to bring them to.";
    ENDPOINT_SESSIONS = Counter, "replicator.endpoint.sessions", Count("session"), ["region", "endpoint"],
        "Sessions that were brought to a PostgreSQL.";
    ENDPOINT_REFUSED = Counter, "replicator.endpoint.refused", Count("client"), ["region", "endpoint"],
        "Clients that were turned away: there were too many, or nothing to bring them to for too long.";
    ENDPOINT_CUT = Counter, "replicator.endpoint.cut", Count("session"), ["region", "endpoint"],
        "Sessions that were cut off because their writer was shut out.";

    CERTIFICATE_LEFT = Gauge, "replicator.certificate.left", Seconds, ["region"],
        "How long the first of the region's certificates to end, the daemon's or its PostgreSQL's, is still valid; \
         negative once it is not.";
}

/// The rows of docs/METRICS.md.
#[must_use]
pub fn markdown() -> String {
    let mut text = String::from("| metric | kind | labels | says |\n|---|---|---|---|\n");
    for metric in METRICS {
        let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        let (name, kind) = (metric.prometheus_name(), metric.kind_name());
        let _ = writeln!(text, "| `{name}` | {kind} | {} | {} |", labels.join(", "), metric.help);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_conventional_and_given_once() {
        let names: BTreeSet<String> = METRICS.iter().map(Metric::prometheus_name).collect();
        assert_eq!(names.len(), METRICS.len());
        for metric in METRICS {
            let fine = |c: char| c.is_ascii_lowercase() || c == '_' || c == '.';
            assert!(metric.name.starts_with("replicator.") && metric.name.chars().all(fine), "{metric:?}");
            assert!(!metric.name.ends_with("total") && !metric.name.ends_with("seconds"), "{metric:?}");
            assert_eq!(metric.labels.first(), Some(&"region"), "keyed by region: {metric:?}");
            assert!(metric.help.ends_with('.'), "{metric:?}");
            if let Kind::Histogram(bounds) = metric.kind {
                assert!(bounds.is_sorted(), "{metric:?}");
            }
        }
        assert_eq!(LINK_WAN.prometheus_name(), "replicator_link_wan_bytes_total");
    }

    #[test]
    fn the_document_is_generated_from_the_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/METRICS.md");
        let document = std::fs::read_to_string(path).unwrap();
        let (begin, end) = ("<!-- generated from telemetry/src/table.rs -->\n", "<!-- end -->");
        let (head, rest) = document.split_once(begin).unwrap();
        let (_, tail) = rest.split_once(end).unwrap();
        let wanted = format!("{head}{begin}{}{end}{tail}", markdown());
        if std::env::var_os("REPLICATOR_BLESS").is_some() {
            std::fs::write(path, &wanted).unwrap();
        }
        assert!(std::fs::read_to_string(path).unwrap() == wanted, "docs/METRICS.md differs: run `make fix`");
    }
}
