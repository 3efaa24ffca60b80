//! The lines of a daemon's log: as text, or each as a JSON object.

use std::collections::BTreeMap;
use std::fmt;

use chrono::{DateTime, SecondsFormat};
use runtime::clock::wall_us;
use serde::Serialize;
use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{Format, Full, Writer};
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::{DaemonLog, Who};
use crate::layout::Apart;

/// What a line is made by.
#[derive(Debug)]
pub struct Lines {
    log: DaemonLog,
    text: Format<Full, Clock>,
}

impl Lines {
    /// Lines of `log`, as it says at the time of each.
    #[must_use]
    pub fn of(log: DaemonLog) -> Lines {
        Lines { log, text: Format::default().with_timer(Clock).with_ansi(false) }
    }
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let Some(who) = self.log.json() else { return self.text.format_event(context, writer, event) };
        let mut said = Said::default();
        event.record(&mut said);
        let (level, target) = (event.metadata().level().as_str(), event.metadata().target());
        writeln!(writer, "{}", line(wall_us(), level, target, &who, said))
    }
}

/// The time of a line of text.
#[derive(Debug)]
pub struct Clock;

impl FormatTime for Clock {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        writer.write_str(&time(wall_us()))
    }
}

/// A moment, microseconds since 1970, as RFC 3339 has it, in UTC.
fn time(us: i64) -> String {
    let moment = DateTime::from_timestamp_micros(us).unwrap_or_default();
    moment.to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// What an event says.
#[derive(Debug, Default)]
pub(super) struct Said {
    pub(super) message: String,
    pub(super) fields: BTreeMap<&'static str, Value>,
}

impl Said {
    fn note(&mut self, field: &Field, value: Value) {
        self.fields.insert(field.name(), value);
    }
}

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            _ => self.note(field, Value::String(format!("{value:?}"))),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => value.clone_into(&mut self.message),
            _ => self.note(field, value.into()),
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.note(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.note(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.note(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.note(field, value.into());
    }
}

/// A line, without its end.
pub(super) fn line(now_us: i64, level: &str, target: &str, who: &Who, said: Said) -> String {
    #[derive(Serialize)]
    struct Line<'a> {
        time: String,
        level: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        region: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        zone: Option<char>,
        #[serde(skip_serializing_if = "Option::is_none")]
        node: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        epoch: Option<u64>,
        target: &'a str,
        message: &'a str,
        #[serde(flatten)]
        fields: BTreeMap<&'static str, Value>,
    }
    let Said { message, mut fields } = said;
    // A name stands in a line once.
    for own in ["time", "level", "region", "zone", "node", "epoch", "target"] {
        fields.remove(own);
    }
    let (region, epoch) = (who.region.as_deref(), who.epoch());
    let (zone, node) = match &who.apart {
        Some(Apart::Zone(zone)) => (Some(*zone), None),
        Some(Apart::Node(node)) => (None, Some(node.to_string())),
        None => (None, None),
    };
    let time = time(now_us);
    let line = Line { time, level, region, zone, node, epoch, target, message: &message, fields };
    // Texts, numbers and names that are texts: there is nothing that could not be written.
    serde_json::to_string(&line).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    use super::*;

    #[test]
    fn a_line_is_one_object_whatever_it_says() {
        let who =
            Who { region: Some("eu-west".into()), apart: None, epoch: Some(Arc::new(AtomicU64::new(7))) };
        let said = Said {
            message: "two\nlines, \"quoted\" \u{1b}".into(),
            fields: [("lsn", "0/16B3748".into()), ("epoch", 1.into()), ("ms", 5.into())].into(),
        };
        let line = line(1_700_000_000_000_042, "WARN", "replicator::x", &who, said);
        let parsed: serde_json::Value = serde_json::from_str(&line).unwrap();
        let wanted = serde_json::json!({
            "time": "2023-11-14T22:13:20.000042Z", "level": "WARN", "region": "eu-west", "epoch": 7,
            "target": "replicator::x", "message": "two\nlines, \"quoted\" \u{1b}", "lsn": "0/16B3748", "ms": 5,
        });
        assert_eq!((parsed, line.matches("\"epoch\"").count()), (wanted, 1));
        assert!(!line.contains('\n') && line.starts_with("{\"time\""), "{line}");
    }
}
