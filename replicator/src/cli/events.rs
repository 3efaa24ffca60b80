//! `replicator events`.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use proto::RegionName;
use proto::messages::Event;
use runtime::clock::wall_us;
use serde::Serialize;

use super::AnyResult;
use crate::events::{file::weight, merge, show_time};
use crate::operator::{Journals, Operator};

/// How often `--follow` asks.
const FOLLOW: Duration = Duration::from_secs(1);

/// The stable contract of `events --json`.
#[derive(Serialize)]
struct JsonEvent<'a> {
    at: String,
    region: &'a str,
    number: u64,
    kind: &'a str,
    weight: &'a str,
    text: &'a str,
}

/// Prints what happened in the last `since`, and with `follow` what happens.
pub(super) async fn show(
    operator: &Operator,
    region: Option<RegionName>,
    since: Duration,
    follow: bool,
    json: bool,
) -> AnyResult {
    let since_us = wall_us().saturating_sub(i64::try_from(since.as_micros()).unwrap_or(i64::MAX));
    let mut after: BTreeMap<String, u64> = BTreeMap::new();
    let mut told: BTreeMap<String, String> = BTreeMap::new();
    let mut seen = Seen::default();
    loop {
        let (journals, silent) = operator.events(region.as_ref(), since_us, &after).await?;
        for (name, why) in &silent {
            if told.get(name) != Some(why) {
                eprintln!("replicator: {name}: {why}; its events are not shown");
            }
        }
        if journals.is_empty() && !follow {
            return Err("no daemon answered; are the regions up?".into());
        }
        told = silent;
        for (name, events) in &journals {
            if let Some(last) = events.last() {
                after.insert(name.clone(), last.number);
            }
        }
        let text: String =
            seen.new_ones(journals).iter().map(|(name, event)| line(name, event, json)).collect();
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()?;
        drop(out);
        if !follow {
            return Ok(());
        }
        tokio::time::sleep(FOLLOW).await;
    }
}

/// The keys that were shown: another daemon may note the same event later.
#[derive(Default)]
struct Seen(std::collections::BTreeSet<String>);

impl Seen {
    fn new_ones(&mut self, journals: Journals) -> Vec<(String, Event)> {
        let mut merged = merge(journals);
        merged.retain(|(_, event)| event.key.is_empty() || self.0.insert(event.key.clone()));
        merged
    }
}

fn line(region: &str, event: &Event, json: bool) -> String {
    let at = show_time(event.at_us);
    if json {
        let Event { number, kind, text, .. } = event;
        let json = JsonEvent { at, region, number: *number, kind, weight: weight(kind).name(), text };
        return serde_json::to_string(&json).unwrap_or_default() + "\n";
    }
    // What a daemon said goes to a terminal: nothing in it may command that.
    let text: String = event.text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let kind: String = event.kind.chars().filter(|c| !c.is_control()).collect();
    format!("{at}  {region:14}  {kind:22}  {text}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_exactly_the_promised_fields_and_what_is_known_already_is_not_told_again() {
        let event = Event {
            number: 3,
            at_us: 0,
            kind: "commits-held".into(),
            text: "commits in a: held".into(),
            key: "k".into(),
        };
        assert_eq!(
            line("a", &event, true),
            "{\"at\":\"1970-01-01T00:00:00.000Z\",\"region\":\"a\",\"number\":3,\"kind\":\"commits-held\",\
             \"weight\":\"grave\",\"text\":\"commits in a: held\"}\n"
        );
        let sly = Event { text: "a\x1b[2Jb\nc".into(), ..event.clone() };
        assert!(line("a", &sly, false).ends_with("a [2Jb c\n"));
        let mut seen = Seen::default();
        assert_eq!(seen.new_ones(vec![("a".into(), vec![event.clone()])]).len(), 1);
        assert_eq!(seen.new_ones(vec![("b".into(), vec![event])]).len(), 0);
    }
}
