//! The page that every region's daemon shows: one file, read-only, which asks for [`json`] again
//! and again.
//!
//! The numbers are those of `status --json`, `history` and `events`. Nothing here knows a region's parts: the
//! daemon hands in [`Facts`].

mod http;

use std::collections::VecDeque;
use std::time::Duration;

pub use http::{Source, router};

use coordination::Leadership;
use coordination::leadership::{Past, Promotion, Step};
use proto::messages::{ClusterStatus, Event, RegionStatus};
use serde::Serialize;
use serde_json::{Value, json};

use crate::events::{file::weight, merge};
use crate::render;
use crate::units::show_bytes;
use crate::verdict::judge;

/// The page itself: style and script are in it, and nothing is downloaded from elsewhere.
pub const PAGE: &str = include_str!("page.html");

/// What a browser is told besides: nothing from elsewhere is loaded, and no other page frames this one.
pub const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; \
                          connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The samples that are kept of each region: an hour, one a second.
pub const SAMPLES_MAX: usize = 3_600;

/// Of the hour, which is asked for at first, one sample for so many microseconds: that with the highest lag.
const COARSE_US: i64 = 5_000_000;

/// The newest events on the page.
const EVENTS_MAX: usize = 60;

/// How far a region was at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sample {
    /// When, microseconds since 1970, by the clock of the daemon that shows the page.
    pub at_us: i64,
    /// None while it was not known.
    pub durability_lag_ms: Option<u64>,
    /// None while it was not known.
    pub visibility_lag_ms: Option<u64>,
    /// Raw redo sent to the region so far; of the primary, read so far.
    pub redo_bytes: u64,
    /// What crossed the network for it so far.
    pub wan_bytes: u64,
}

/// The last hour of one region. Bounded.
#[derive(Debug, Clone, Default)]
pub struct Hour(VecDeque<Sample>);

impl Hour {
    /// Adds how far the region is.
    pub fn push(&mut self, at_us: i64, row: &RegionStatus) {
        self.0.push_back(Sample {
            at_us,
            durability_lag_ms: row.durability_lag_ms,
            visibility_lag_ms: row.visibility_lag_ms,
            redo_bytes: row.redo_bytes,
            wan_bytes: row.wan_bytes,
        });
        if self.0.len() > SAMPLES_MAX {
            self.0.pop_front();
        }
    }

    /// The samples after `after_us`. From the beginning on they are thinned out: the highest lag of each few
    /// seconds, and what is not known stays.
    #[must_use]
    pub fn after(&self, after_us: i64) -> Vec<Sample> {
        if after_us > 0 {
            return self.0.iter().filter(|sample| sample.at_us > after_us).copied().collect();
        }
        let mut thin: Vec<Sample> = Vec::new();
        // What is not known weighs more than any lag.
        let weight = |sample: &Sample| sample.visibility_lag_ms.map_or(u64::MAX, |ms| ms);
        for sample in &self.0 {
            match thin.last_mut() {
                Some(last) if last.at_us / COARSE_US == sample.at_us / COARSE_US => {
                    if weight(sample) >= weight(last) {
                        *last = *sample;
                    }
                }
                _ => thin.push(*sample),
            }
        }
        thin
    }
}

/// What the page is made of.
#[derive(Debug)]
pub struct Facts<'a> {
    /// Now, microseconds since 1970.
    pub at_us: i64,
    /// The region whose daemon shows it.
    pub asked: &'a str,
    /// How far all regions are.
    pub status: &'a ClusterStatus,
    /// What tells this record from others: the page gives it back.
    pub mark: String,
    /// The record of who leads, as the daemon knows it.
    pub record: &'a Leadership,
    /// The samples of each region of `status`, in that order.
    pub samples: Vec<Vec<Sample>>,
    /// The newest events of each daemon.
    pub journals: Vec<(String, Vec<Event>)>,
    /// The lag above which a region is degraded.
    pub max_lag: Duration,
}

#[derive(Serialize)]
struct Finding {
    level: &'static str,
    text: String,
}

/// What the page asks for.
#[must_use]
pub fn json(facts: Facts<'_>) -> String {
    let Facts { at_us, asked, status, mark, record, samples, journals, max_lag } = facts;
    let verdict = judge(status, max_lag);
    let findings = verdict.findings.into_iter();
    let findings: Vec<Finding> =
        findings.map(|(level, text)| Finding { level: level.name(), text }).collect();
    let regions: Vec<Value> =
        status.regions.iter().zip(samples).map(|(row, samples)| region(row, &samples)).collect();
    let mut events = merge(journals);
    events.reverse();
    events.truncate(EVENTS_MAX);
    let events: Vec<Value> = events.iter().map(|(region, event)| show_event(region, event)).collect();
    let history: Vec<Value> = record.history.iter().rev().map(past).collect();
    json!({
        "at_ms": at_us / 1000,
        "asked": asked,
        "record": mark,
        "cluster": status.cluster,
        "epoch": status.epoch,
        "primary": status.primary,
        "verdict": { "level": verdict.level.name(), "findings": findings },
        "regions": regions,
        "promotion": record.promotion.as_ref().map(promotion),
        "history": history,
        "events": events,
    })
    .to_string()
}

/// A row as `status --json` has it, and what the page shows besides.
fn region(row: &RegionStatus, samples: &[Sample]) -> Value {
    let mut value = render::region_value(row);
    let copies: serde_json::Map<String, Value> =
        row.copies.iter().map(|copy| (copy.name.clone(), copy.state.clone().into())).collect();
    let samples: Vec<Value> = samples
        .iter()
        .map(|s| json!([s.at_us / 1000, s.durability_lag_ms, s.visibility_lag_ms, s.redo_bytes, s.wan_bytes]))
        .collect();
    let seeding = row.state == "seeding" && row.seed_total_bytes > 0;
    let detail = match seeding {
        true if row.seed_kept_bytes > 0 => format!(
            "{} of about {} in place, of which {} were there and not sent",
            show_bytes(row.seed_bytes),
            show_bytes(row.seed_total_bytes),
            show_bytes(row.seed_kept_bytes)
        ),
        true => format!("{} of about {} sent", show_bytes(row.seed_bytes), show_bytes(row.seed_total_bytes)),
        false => row.detail.clone(),
    };
    if let Some(fields) = value.as_object_mut() {
        fields.insert("held".into(), row.held.clone().into());
        fields.insert("detail".into(), detail.into());
        fields.insert("copies".into(), copies.into());
        fields.insert("samples".into(), samples.into());
    }
    value
}

fn promotion(promotion: &Promotion) -> Value {
    let steps: Vec<Value> =
        promotion.steps.iter().map(|step| json!({ "name": step.name, "ms": step.us / 1000 })).collect();
    json!({
        "mode": promotion.mode.to_string(),
        "from": promotion.from.as_str(),
        "to": promotion.to.as_str(),
        "coordinator": promotion.coordinator.as_str(),
        "attempt": promotion.attempt,
        "step": match promotion.step {
            Step::HandOver => "handover",
            Step::Fence => "fence",
            Step::Promote => "promote",
        },
        "steps": steps,
    })
}

fn past(past: &Past) -> Value {
    let promotion = &past.promotion;
    json!({
        "at_ms": past.at_us / 1000,
        "epoch": promotion.epoch.0,
        "mode": promotion.mode.to_string(),
        "from": promotion.from.as_str(),
        "to": promotion.to.as_str(),
        "write_gap_ms": past.write_gap_us / 1000,
        "at_risk": promotion.loss.us > 0,
        "undone": past.rolled_back,
    })
}

fn show_event(region: &str, event: &Event) -> Value {
    json!({
        "at_ms": event.at_us / 1000,
        "region": region,
        "kind": event.kind,
        "weight": weight(&event.kind).name(),
        "text": event.text,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::Epoch;
    use proto::messages::CopyState;

    fn sample(at_s: i64, lag: Option<u64>) -> RegionStatus {
        RegionStatus { visibility_lag_ms: lag, redo_bytes: at_s.unsigned_abs(), ..RegionStatus::default() }
    }

    #[test]
    fn an_hour_is_bounded_and_its_peaks_survive_thinning_out() {
        let mut hour = Hour::default();
        for at_s in 0..10_000 {
            let lag = match at_s {
                8_001 => Some(900),
                9_002 => None,
                _ => Some(3),
            };
            hour.push(at_s * 1_000_000, &sample(at_s, lag));
        }
        assert_eq!(hour.after(1).len(), SAMPLES_MAX);
        let thin = hour.after(0);
        assert_eq!(thin.len(), SAMPLES_MAX / 5);
        assert!(thin.iter().any(|sample| sample.visibility_lag_ms == Some(900)));
        assert!(thin.iter().any(|sample| sample.visibility_lag_ms.is_none()));
        assert_eq!(hour.after(9_997_000_000).len(), 2);
    }

    #[test]
    fn the_page_s_numbers_are_those_of_status() {
        let row = RegionStatus {
            name: "eu-west".into(),
            role: "primary".into(),
            state: "streaming".into(),
            durable_lsn: Some(0x16B_3748),
            copies: vec![CopyState { name: "b1".into(), state: "absent".into() }],
            ..RegionStatus::default()
        };
        let status =
            ClusterStatus { cluster: "demo".into(), regions: vec![row.clone()], ..ClusterStatus::default() };
        let record = Leadership::first(Epoch(1), "eu-west".parse().unwrap());
        let mut hour = Hour::default();
        hour.push(7_000, &row);
        let text = json(Facts {
            at_us: 9_000,
            asked: "eu-west",
            status: &status,
            mark: "1.1".into(),
            record: &record,
            samples: vec![hour.after(0)],
            journals: Vec::new(),
            max_lag: Duration::from_secs(5),
        });
        let page: Value = serde_json::from_str(&text).unwrap();
        let told: Value = serde_json::from_str(&render::json(&status)).unwrap();
        for (field, value) in told["regions"][0].as_object().unwrap() {
            assert_eq!(&page["regions"][0][field], value, "{field}");
        }
        assert_eq!(page["verdict"]["level"], "degraded");
        assert_eq!(page["regions"][0]["copies"]["b1"], "absent");
        assert_eq!(page["regions"][0]["samples"], json!([[7, null, null, 0, 0]]));
    }

    /// Nothing in the page asks anybody but its own daemon.
    #[test]
    fn the_page_downloads_nothing() {
        let without_names = PAGE.replace("http://www.w3.org/2000/svg", "");
        for elsewhere in ["http:", "https:", "//cdn", "@import", "src=", "url("] {
            assert!(!without_names.contains(elsewhere), "{elsewhere}");
        }
    }
}
