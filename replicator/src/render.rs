//! Cluster status for people and for programs: pure functions to text.

use std::time::Duration;

use proto::messages::finding::Outcome;
use proto::messages::{
    ClusterStatus, CopyView, Finding, HeadMove, KeyUse, NodeStatus, Promotion, PromotionStep, RegionStatus,
    VolumeView,
};
use proto::{Lsn, RegionName};
use serde::Serialize;

use crate::units::{show_bytes, show_ms};

/// The stable contract of `status --json`.
#[derive(Serialize)]
struct Json<'a> {
    cluster: &'a str,
    epoch: u64,
    primary: &'a str,
    regions: Vec<JsonRegion<'a>>,
    /// What an operator should know, in words.
    notes: &'a [String],
}

#[derive(Serialize)]
struct JsonRegion<'a> {
    name: &'a str,
    role: &'a str,
    state: &'a str,
    timeline: u32,
    durable_lsn: Option<String>,
    applied_lsn: Option<String>,
    behind_bytes: Option<u64>,
    durability_lag_ms: Option<u64>,
    visibility_lag_ms: Option<u64>,
    redo_bytes: u64,
    wan_bytes: u64,
    url: &'a str,
    /// Only while it is seeded.
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<JsonSeed>,
    /// Only where the region has nodes besides the host of its daemon.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    nodes: Vec<JsonNode<'a>>,
}

/// How far a seed is, bytes of the backup before compression: what is in place or on its way, of about how
/// many, and how much of the first was there already and was not sent.
#[derive(Serialize)]
struct JsonSeed {
    bytes: u64,
    total_bytes: u64,
    not_sent_bytes: u64,
}

#[derive(Serialize)]
struct JsonNode<'a> {
    name: &'a str,
    zone: Option<&'a str>,
    state: Option<&'a str>,
    applied_lsn: Option<String>,
    lag_ms: Option<u64>,
    url: Option<&'a str>,
}

/// The status as one line of JSON. What is not known is `null`.
#[must_use]
pub fn json(status: &ClusterStatus) -> String {
    let ClusterStatus { cluster, epoch, primary, regions, notes } = status;
    let regions = regions.iter().map(json_region).collect();
    let json = Json { cluster, epoch: *epoch, primary, regions, notes };
    serde_json::to_string(&json).unwrap_or_default()
}

/// A row of `status --json`.
#[must_use]
pub fn region_value(row: &RegionStatus) -> serde_json::Value {
    serde_json::to_value(json_region(row)).unwrap_or_default()
}

fn json_region(row: &RegionStatus) -> JsonRegion<'_> {
    let lsn = |lsn: Option<u64>| lsn.map(|l| Lsn(l).to_string());
    JsonRegion {
        name: &row.name,
        role: &row.role,
        state: &row.state,
        timeline: row.timeline,
        durable_lsn: lsn(row.durable_lsn),
        applied_lsn: lsn(row.applied_lsn),
        behind_bytes: row.behind_bytes,
        durability_lag_ms: row.durability_lag_ms,
        visibility_lag_ms: row.visibility_lag_ms,
        redo_bytes: row.redo_bytes,
        wan_bytes: row.wan_bytes,
        url: &row.url,
        seed: (row.state == "seeding").then_some(JsonSeed {
            bytes: row.seed_bytes,
            total_bytes: row.seed_total_bytes,
            not_sent_bytes: row.seed_kept_bytes,
        }),
        nodes: row.nodes.iter().map(json_node).collect(),
    }
}

fn json_node(node: &NodeStatus) -> JsonNode<'_> {
    fn given(text: &str) -> Option<&str> {
        Some(text).filter(|text| !text.is_empty())
    }
    JsonNode {
        name: &node.name,
        zone: given(&node.zone),
        state: given(&node.state),
        applied_lsn: node.applied_lsn.map(|lsn| Lsn(lsn).to_string()),
        lag_ms: node.lag_ms,
        url: given(&node.url),
    }
}

/// The stable contract of `promote --json`.
#[derive(Serialize)]
struct JsonPromotion<'a> {
    from: &'a str,
    to: &'a str,
    mode: &'a str,
    epoch: u64,
    fork_lsn: Option<String>,
    loss: JsonLoss,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    lost_voters: &'a [String],
    #[serde(skip_serializing_if = "str::is_empty")]
    ordered_by: &'a str,
    write_gap_ms: Option<u64>,
    steps: Vec<JsonStep<'a>>,
    findings: Vec<JsonFinding<'a>>,
}

/// Something that was found before anything was touched.
#[derive(Serialize)]
struct JsonFinding<'a> {
    kind: &'a str,
    region: &'a str,
    fact: &'a str,
    action: &'a str,
    outcome: &'static str,
}

impl JsonFinding<'_> {
    fn of(found: &Finding) -> JsonFinding<'_> {
        let Finding { kind, region, fact, action, .. } = found;
        JsonFinding { kind, region, fact, action, outcome: outcome(found) }
    }
}

/// What comes of a finding, in a word.
fn outcome(found: &Finding) -> &'static str {
    match found.outcome() {
        Outcome::Refused => "refused",
        Outcome::Mended => "mended",
        Outcome::Told | Outcome::Unspecified => "told",
    }
}

/// Whether something was found for which the promotion would not begin.
#[must_use]
pub fn refuses(promotion: &Promotion) -> bool {
    promotion.findings.iter().any(|found| found.outcome() == Outcome::Refused)
}

/// What was found, a line for each.
fn findings(all: &[Finding]) -> String {
    let mut text = String::new();
    for found in all {
        let word = if found.outcome() == Outcome::Mended { "to mend" } else { outcome(found) };
        text += &format!("  {:8} {}: {}; {}\n", word, found.region, found.fact, found.action);
    }
    text
}

/// What a promotion lost. A switchover loses nothing.
#[derive(Serialize, Default)]
struct JsonLoss {
    bytes: u64,
    seconds: u64,
    from_lsn: Option<String>,
    to_lsn: Option<String>,
}

impl JsonLoss {
    fn of(promotion: &Promotion) -> JsonLoss {
        let bytes = promotion.lost_to_lsn.saturating_sub(promotion.fork_lsn);
        let lsn = |lsn: u64| (bytes > 0).then(|| Lsn(lsn).to_string());
        JsonLoss {
            bytes,
            seconds: promotion.lost_us.div_ceil(1_000_000),
            from_lsn: lsn(promotion.fork_lsn),
            to_lsn: lsn(promotion.lost_to_lsn),
        }
    }
}

#[derive(Serialize)]
struct JsonStep<'a> {
    name: &'a str,
    ms: u64,
}

impl JsonStep<'_> {
    fn of(step: &PromotionStep) -> JsonStep<'_> {
        JsonStep { name: &step.name, ms: step.us / 1000 }
    }
}

/// A promotion as one line of JSON.
#[must_use]
pub fn promotion_json(promotion: &Promotion) -> String {
    let done = !promotion.dry_run;
    let steps = promotion.steps.iter().map(JsonStep::of);
    let json = JsonPromotion {
        from: &promotion.from,
        to: &promotion.to,
        mode: &promotion.mode,
        epoch: promotion.epoch,
        fork_lsn: done.then(|| Lsn(promotion.fork_lsn).to_string()),
        loss: JsonLoss::of(promotion),
        lost_voters: &promotion.lost_voters,
        ordered_by: &promotion.ordered_by,
        write_gap_ms: (promotion.write_gap_us > 0).then_some(promotion.write_gap_us / 1000),
        steps: steps.collect(),
        findings: promotion.findings.iter().map(JsonFinding::of).collect(),
    };
    serde_json::to_string(&json).unwrap_or_default()
}

/// A promotion for people.
#[must_use]
pub fn promotion(promotion: &Promotion) -> String {
    let Promotion { from, to, epoch, .. } = promotion;
    let failover = promotion.mode == "failover";
    let known = promotion.lost_to_lsn.saturating_sub(promotion.fork_lsn);
    let more =
        if known == 0 { "no more than that".to_owned() } else { format!("{} more", show_bytes(known)) };
    let loss = match promotion.lost_us {
        0 => "No commit is lost that was acknowledged; one whose client cancelled the wait for it was not.\n"
            .to_owned(),
        us => format!(
            "At risk: redo of {from} beyond {}. It said last that it had {more}; it may have acknowledged commits for {} s after that.\n\
             What only it had is kept there when it comes back: see `replicator lost`.\n",
            Lsn(promotion.fork_lsn),
            us.div_ceil(1_000_000),
        ),
    };
    let found = findings(&promotion.findings);
    if refuses(promotion) {
        return format!("{to} cannot take over from {from} now:\n{found}");
    }
    if promotion.dry_run && failover {
        return format!(
            "{to} would lead epoch {epoch}: fence {from} at a majority, wait for what is left of its lease, gather what\n\
             another survivor has, and promote PostgreSQL. {loss}{found}"
        );
    }
    if promotion.dry_run {
        return format!(
            "{to} can take over from {from} now, as the primary of epoch {epoch}, with nothing lost.\n\
             It would: write a checkpoint, stop the writer, ship and apply its last record, record the new epoch,\n\
             promote PostgreSQL, and follow with {from} as a secondary.\n{found}"
        );
    }
    let mut text = format!("{to} is the primary of epoch {epoch}, from {} on.\n", Lsn(promotion.fork_lsn));
    text += if failover { &loss } else { "Nothing is lost.\n" };
    if !promotion.lost_voters.is_empty() {
        let names = promotion.lost_voters.join(", ");
        text +=
            &format!("Counted as lost, on your word: {names}. Each has a vote again once it answers {to}.\n");
    }
    for step in &promotion.steps {
        text +=
            &format!("  {:36} {:>8.1} ms\n", step.name, Duration::from_micros(step.us).as_secs_f64() * 1e3);
    }
    if promotion.write_gap_us > 0 {
        let gap = Duration::from_micros(promotion.write_gap_us).as_secs_f64() * 1e3;
        text += &format!("No writes were taken for {gap:.0} ms. {from} follows as a secondary.\n");
    }
    text
}

/// The stable contract of `promote --node --json`.
#[derive(Serialize)]
struct JsonHeadMove<'a> {
    region: &'a str,
    head: &'a str,
    from: Option<&'a str>,
    to: &'a str,
    dry_run: bool,
    moved: bool,
    gap_ms: Option<u64>,
    steps: Vec<JsonStep<'a>>,
    findings: Vec<JsonFinding<'a>>,
}

/// How a move of a region's head went, as one line of JSON.
#[must_use]
pub fn head_move_json(region: &RegionName, moved: &HeadMove) -> String {
    let json = JsonHeadMove {
        region: region.as_str(),
        head: &moved.head,
        from: Some(moved.from.as_str()).filter(|from| !from.is_empty()),
        to: &moved.to,
        dry_run: moved.dry_run,
        moved: !moved.from.is_empty() && moved.head == moved.to,
        gap_ms: (moved.gap_us > 0).then_some(moved.gap_us / 1000),
        steps: moved.steps.iter().map(JsonStep::of).collect(),
        findings: moved.findings.iter().map(JsonFinding::of).collect(),
    };
    serde_json::to_string(&json).unwrap_or_default()
}

/// How a move of a region's head went, or what is found before one.
#[must_use]
pub fn head_move(region: &RegionName, moved: &HeadMove) -> String {
    let HeadMove { head, to, from, .. } = moved;
    if !moved.findings.is_empty() {
        return format!("The head of {region} cannot move to {to} now:\n{}", findings(&moved.findings));
    }
    if head == to && from.is_empty() {
        return format!("{to} is the head of {region} already.\n");
    }
    if moved.dry_run {
        return format!(
            "The head of {region} can move from {head} to {to} now, with nothing lost.\n\
             It would: write a checkpoint, prepare {to}, stop what {head} runs, see its last record applied on {to}, and hand over.\n"
        );
    }
    if head != to {
        return format!(
            "{head} is the head of {region}: {to} did not take over in time, and nothing is lost.\n"
        );
    }
    let gap = match moved.gap_us {
        0 => format!("For how long nothing was taken is not known, as {to} took over by itself"),
        us => format!("Nothing was taken for {:.0} ms", Duration::from_micros(us).as_secs_f64() * 1e3),
    };
    format!(
        "{to} is the head of {region}, which {from} was. Nothing is lost.\n\
         {gap}. {from} follows as a node.\n"
    )
}

/// The stable contract of `volume status --json`.
#[derive(Serialize)]
struct JsonVolume<'a> {
    region: &'a str,
    ballot: String,
    horizon_lsn: String,
    durable_lsn: String,
    timeline: u32,
    writable: bool,
    stored_bytes: u64,
    copies: Vec<JsonCopy<'a>>,
    active_key: Option<&'a str>,
    keys: Vec<JsonKeyUse<'a>>,
}

/// The segments sealed with a key, or, without one, in the clear.
#[derive(Serialize)]
struct JsonKeyUse<'a> {
    key: Option<&'a str>,
    segments: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct JsonCopy<'a> {
    name: &'a str,
    zone: &'a str,
    state: &'a str,
    flushed_lsn: String,
    behind_bytes: u64,
    filled_bytes: u64,
    repaired_segments: u64,
    scrubbed_us: Option<i64>,
    damage: &'a [String],
    detail: &'a str,
    place: &'a str,
}

/// A volume as one line of JSON.
#[must_use]
pub fn volume_json(view: &VolumeView) -> String {
    let copy = |copy: &'_ CopyView| -> u64 { view.durable_lsn.saturating_sub(copy.flushed_lsn) };
    let copies = view.copies.iter().map(|c| JsonCopy {
        name: &c.name,
        zone: &c.zone,
        state: &c.state,
        flushed_lsn: Lsn(c.flushed_lsn).to_string(),
        behind_bytes: copy(c),
        filled_bytes: c.filled_bytes,
        repaired_segments: c.repaired_segments,
        scrubbed_us: (c.scrubbed_us > 0).then_some(c.scrubbed_us),
        damage: &c.damage,
        detail: &c.detail,
        place: &c.place,
    });
    let ballot = view.ballot.unwrap_or_default();
    let json = JsonVolume {
        region: &view.region,
        ballot: format!("{}.{}", ballot.epoch, ballot.opening),
        horizon_lsn: Lsn(view.horizon_lsn).to_string(),
        durable_lsn: Lsn(view.durable_lsn).to_string(),
        timeline: view.timeline,
        writable: view.writable,
        stored_bytes: view.stored_bytes,
        copies: copies.collect(),
        active_key: named(&view.active_key),
        keys: view.keys.iter().map(key_use).collect(),
    };
    serde_json::to_string(&json).unwrap_or_default()
}

fn named(key: &str) -> Option<&str> {
    Some(key).filter(|key| !key.is_empty())
}

fn key_use(of: &KeyUse) -> JsonKeyUse<'_> {
    JsonKeyUse { key: named(&of.key), segments: of.segments, bytes: of.bytes }
}

/// What a volume's segments are sealed with, in words.
#[must_use]
pub fn sealed_words(view: &VolumeView) -> String {
    let of = |of: &KeyUse| {
        let how = named(&of.key).map_or("in the clear".to_owned(), |key| format!("sealed with key {key}"));
        let segments = if of.segments == 1 { "segment" } else { "segments" };
        format!("{} {segments} ({}) {how}", of.segments, show_bytes(of.bytes))
    };
    let uses: Vec<String> = view.keys.iter().map(of).collect();
    let next = match named(&view.active_key) {
        Some(key) => format!("new ones are sealed with key {key}"),
        None => "new ones are in the clear".to_owned(),
    };
    if uses.is_empty() { format!("no segments yet; {next}") } else { format!("{}; {next}", uses.join(", ")) }
}

/// A volume as a table, with what is wrong below it.
#[must_use]
pub fn volume_table(view: &VolumeView) -> String {
    let heads =
        ["Copy", "Zone", "State", "Flushed LSN", "Behind", "Filled", "Repaired", "Read back", "Place"];
    let mut rows: Vec<Vec<String>> = vec![heads.map(str::to_owned).to_vec()];
    rows.extend(view.copies.iter().map(|copy| {
        let held = matches!(copy.state.as_str(), "live" | "filling");
        let or_dash = |text: String| if held { text } else { "-".to_owned() };
        let scrubbed = match copy.scrubbed_us {
            0 => "not yet".to_owned(),
            _ if copy.damage.is_empty() => "good".to_owned(),
            _ => "damaged".to_owned(),
        };
        vec![
            copy.name.clone(),
            copy.zone.clone(),
            copy.state.clone(),
            or_dash(Lsn(copy.flushed_lsn).to_string()),
            or_dash(show_bytes(view.durable_lsn.saturating_sub(copy.flushed_lsn))),
            show_bytes(copy.filled_bytes),
            copy.repaired_segments.to_string(),
            scrubbed,
            if copy.place.is_empty() { "-".to_owned() } else { copy.place.clone() },
        ]
    }));
    let ballot = view.ballot.unwrap_or_default();
    let mut text = format!(
        "Region {}: redo from {} to {} on timeline {}, {} in each copy; ballot {}.{}; {}\n\n",
        view.region,
        Lsn(view.horizon_lsn),
        Lsn(view.durable_lsn),
        view.timeline,
        show_bytes(view.stored_bytes),
        ballot.epoch,
        ballot.opening,
        if view.writable { "appends become durable" } else { "appends wait" }
    );
    let clear_alone = view.active_key.is_empty() && view.keys.iter().all(|of| of.key.is_empty());
    if !clear_alone {
        text.insert_str(text.len() - 1, &format!("{}\n", sealed_words(view)));
    }
    text += &columns(&rows);
    if !view.detail.is_empty() {
        text += &format!("\n{}\n", view.detail);
    }
    for copy in &view.copies {
        if !copy.detail.is_empty() {
            text += &format!("{}: {}\n", copy.name, copy.detail);
        }
        for damage in &copy.damage {
            text += &format!("{}: {damage}\n", copy.name);
        }
    }
    text
}

/// The status as a table, with notes below it.
#[must_use]
pub fn table(status: &ClusterStatus) -> String {
    let heads = [
        "Region",
        "Role",
        "State",
        "TL",
        "Durable LSN",
        "Applied LSN",
        "Behind",
        "Durable lag",
        "Visible lag",
        "Connection",
    ];
    let mut rows: Vec<Vec<String>> = vec![heads.map(str::to_owned).to_vec()];
    let lsn = |lsn: Option<u64>| lsn.map_or_else(dash, |l| Lsn(l).to_string());
    let ms = |ms: Option<u64>| ms.map_or_else(dash, show_ms);
    for row in &status.regions {
        rows.push(vec![
            row.name.clone(),
            row.role.clone(),
            seeding(&row.state, [row.seed_bytes, row.seed_total_bytes, row.seed_kept_bytes]),
            if row.timeline == 0 { dash() } else { row.timeline.to_string() },
            lsn(row.durable_lsn),
            lsn(row.applied_lsn),
            row.behind_bytes.map_or_else(dash, show_bytes),
            ms(row.durability_lag_ms),
            ms(row.visibility_lag_ms),
            row.url.clone(),
        ]);
        for node in &row.nodes {
            let zone = if node.zone.is_empty() { String::new() } else { format!(", zone {}", node.zone) };
            rows.push(vec![
                format!("  {}{zone}", node.name),
                if node.url.is_empty() { "node" } else { "replica" }.into(),
                node_state(node),
                dash(),
                dash(),
                lsn(node.applied_lsn),
                dash(),
                dash(),
                ms(node.lag_ms),
                node.url.clone(),
            ]);
        }
    }
    let mut text =
        format!("cluster {}, epoch {}, primary {}\n", status.cluster, status.epoch, status.primary);
    text += &columns(&rows);
    for note in &status.notes {
        text.push_str(&format!("  note: {note}\n"));
    }
    text
}

/// The nodes of all regions, below each other.
#[must_use]
pub fn replicas(status: &ClusterStatus) -> String {
    let heads = ["Region", "Node", "Zone", "State", "Applied LSN", "Visible lag", "Connection"];
    let mut rows: Vec<Vec<String>> = vec![heads.map(str::to_owned).to_vec()];
    let or_dash = |text: &str| if text.is_empty() { dash() } else { text.to_owned() };
    for (region, node) in nodes(status) {
        rows.push(vec![
            region.name.clone(),
            node.name.clone(),
            or_dash(&node.zone),
            node_state(node),
            node.applied_lsn.map_or_else(dash, |lsn| Lsn(lsn).to_string()),
            node.lag_ms.map_or_else(dash, show_ms),
            or_dash(&node.url),
        ]);
    }
    if rows.len() == 1 {
        return "no region has nodes besides the host of its daemon; replicator replica add makes one\n"
            .into();
    }
    columns(&rows)
}

/// The stable contract of `replica list --json`: an object for each node, as in `status --json`, with its
/// region.
#[must_use]
pub fn replicas_json(status: &ClusterStatus) -> String {
    let nodes: Vec<serde_json::Value> = nodes(status)
        .map(|(row, node)| {
            let mut value = serde_json::to_value(json_node(node)).unwrap_or_default();
            value["region"] = row.name.as_str().into();
            value
        })
        .collect();
    format!("{}\n", serde_json::json!({ "nodes": nodes }))
}

/// Each node, with its region.
fn nodes(status: &ClusterStatus) -> impl Iterator<Item = (&RegionStatus, &NodeStatus)> {
    status.regions.iter().flat_map(|row| row.nodes.iter().map(move |node| (row, node)))
}

/// The state of a node, and how far its copy is; one without a PostgreSQL holds copies alone.
pub(crate) fn node_state(node: &NodeStatus) -> String {
    match node.state.is_empty() {
        true => "serves".into(),
        false => seeding(&node.state, [node.seed_bytes, node.seed_total_bytes, node.seed_kept_bytes]),
    }
}

/// What stands where there is nothing to show.
fn dash() -> String {
    "-".to_owned()
}

/// A state, and how far a seed is.
pub(crate) fn seeding(state: &str, [bytes, total_bytes, kept_bytes]: [u64; 3]) -> String {
    match total_bytes > 0 && state == "seeding" {
        // What is said is that of the whole; what was not sent is part of what is there by now.
        true if kept_bytes > 0 => format!(
            "seeding {} %, {} % not sent",
            percent(bytes, total_bytes),
            percent(kept_bytes, total_bytes)
        ),
        true => format!("seeding {} %", percent(bytes, total_bytes)),
        false => state.to_owned(),
    }
}

/// Rows with their columns below each other.
pub(crate) fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.first().map_or(0, Vec::len);
    let width = |c: usize| rows.iter().map(|row| row[c].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// How much of `total` is done, at most 100.
#[must_use]
pub fn percent(done: u64, total: u64) -> u64 {
    (done.saturating_mul(100) / total.max(1)).min(100)
}

/// Whether every region streams, and every node of it that is known.
#[must_use]
pub fn all_stream(status: &ClusterStatus) -> bool {
    let node = |node: &NodeStatus| matches!(node.state.as_str(), "streaming" | "");
    let region = |row: &RegionStatus| row.state == "streaming" && row.nodes.iter().all(node);
    !status.regions.is_empty() && status.regions.iter().all(region)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> ClusterStatus {
        let row = RegionStatus {
            name: "eu-west".into(),
            role: "secondary".into(),
            state: "streaming".into(),
            timeline: 1,
            durable_lsn: Some(0x16B_3748),
            visibility_lag_ms: Some(3),
            url: "postgresql://x".into(),
            ..RegionStatus::default()
        };
        ClusterStatus {
            cluster: "demo".into(),
            epoch: 1,
            primary: "us-east".into(),
            regions: vec![row],
            notes: vec!["something".into()],
        }
    }

    #[test]
    fn json_has_exactly_the_promised_fields() {
        assert_eq!(
            json(&status()),
            "{\"cluster\":\"demo\",\"epoch\":1,\"primary\":\"us-east\",\"regions\":[{\"name\":\"eu-west\",\
             \"role\":\"secondary\",\"state\":\"streaming\",\"timeline\":1,\"durable_lsn\":\"0/16B3748\",\
             \"applied_lsn\":null,\"behind_bytes\":null,\"durability_lag_ms\":null,\"visibility_lag_ms\":3,\
             \"redo_bytes\":0,\"wan_bytes\":0,\"url\":\"postgresql://x\"}],\
             \"notes\":[\"something\"]}"
        );
    }

    #[test]
    fn how_far_a_seed_is_and_how_much_of_it_was_not_sent() {
        assert_eq!(seeding("seeding", [0, 0, 0]), "seeding");
        assert_eq!(seeding("seeding", [50, 200, 0]), "seeding 25 %");
        assert_eq!(seeding("seeding", [150, 200, 90]), "seeding 75 %, 45 % not sent");
        assert_eq!(seeding("streaming", [200, 200, 90]), "streaming");
        let row = RegionStatus {
            state: "seeding".into(),
            seed_bytes: 150,
            seed_total_bytes: 200,
            seed_kept_bytes: 90,
            ..RegionStatus::default()
        };
        let shown = region_value(&row)["seed"].clone();
        assert_eq!(shown, serde_json::json!({"bytes": 150, "total_bytes": 200, "not_sent_bytes": 90}));
    }

    #[test]
    fn a_dry_run_shows_what_was_found_and_what_refuses() {
        let found = Finding {
            kind: "archive_queue".into(),
            region: "a".into(),
            fact: "3 segments wait".into(),
            action: "mend it".into(),
            outcome: Outcome::Refused.into(),
        };
        let mut planned = Promotion { to: "b".into(), dry_run: true, ..Promotion::default() };
        planned.findings.push(found);
        assert!(
            refuses(&planned) && promotion(&planned).ends_with("  refused  a: 3 segments wait; mend it\n")
        );
        assert!(promotion_json(&planned).contains(
            "\"findings\":[{\"kind\":\"archive_queue\",\"region\":\"a\",\"fact\":\"3 segments wait\",\
             \"action\":\"mend it\",\"outcome\":\"refused\"}]"
        ));
        planned.findings[0].set_outcome(Outcome::Mended);
        assert!(!refuses(&planned) && promotion(&planned).contains("  to mend  a: 3 segments wait"));
    }

    #[test]
    fn the_table_aligns_and_keeps_notes() {
        let text = table(&status());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1].find("Connection"), lines[2].find("postgresql://"));
        assert_eq!(lines[3], "  note: something");
        assert!(all_stream(&status()) && !all_stream(&ClusterStatus::default()));
    }
}
