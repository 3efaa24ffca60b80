//! Values of the table's metrics at one moment, and their text for Prometheus.

use std::fmt::Write as _;

use crate::table::{Kind, METRICS, Metric};

/// How values of one histogram fell.
#[derive(Debug, Clone, PartialEq)]
pub struct Distribution {
    bounds: &'static [f64],
    /// Values up to each bound and above the one before; the last are above all.
    counts: Vec<u64>,
    sum: f64,
}

impl Distribution {
    /// No values yet, for `metric`. Of a metric that is no histogram all values are above all bounds.
    #[must_use]
    pub fn of(metric: &Metric) -> Distribution {
        let bounds = match metric.kind {
            Kind::Histogram(bounds) => bounds,
            Kind::Gauge | Kind::Counter => &[],
        };
        Distribution { bounds, counts: vec![0; bounds.len() + 1], sum: 0.0 }
    }

    /// Notes a value.
    pub fn note(&mut self, value: f64) {
        let index = self.bounds.partition_point(|bound| *bound < value);
        self.counts[index] += 1;
        self.sum += value;
    }

    /// Values up to each bound and above the one before; the last are above all.
    #[must_use]
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// The sum of all values.
    #[must_use]
    pub fn sum(&self) -> f64 {
        self.sum
    }

    /// How many values there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// A value of one series.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Of a gauge or a counter.
    Number(f64),
    /// Of a histogram.
    Distribution(Distribution),
}

/// One series at the moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Which metric.
    pub metric: Metric,
    /// The values of its labels, in the table's order.
    pub labels: Vec<String>,
    /// Its value.
    pub value: Value,
}

/// All series at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Snapshot {
    samples: Vec<Sample>,
}

impl Snapshot {
    /// Adds a value; `labels` are in the table's order, and as many.
    pub fn put(&mut self, metric: Metric, labels: &[&str], value: f64) {
        debug_assert_eq!(labels.len(), metric.labels.len(), "{}", metric.name);
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        self.samples.push(Sample { metric, labels, value: Value::Number(value) });
    }

    /// Adds how a histogram's values fell.
    pub fn put_distribution(&mut self, metric: Metric, labels: &[&str], distribution: Distribution) {
        debug_assert_eq!(labels.len(), metric.labels.len(), "{}", metric.name);
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        self.samples.push(Sample { metric, labels, value: Value::Distribution(distribution) });
    }

    /// The series of one metric.
    pub fn of(&self, metric: &Metric) -> impl Iterator<Item = &Sample> {
        let name = metric.name;
        self.samples.iter().filter(move |sample| sample.metric.name == name)
    }

    /// The value of one series; none where there is none.
    #[must_use]
    pub fn number(&self, metric: &Metric, labels: &[&str]) -> Option<f64> {
        self.of(metric).find(|sample| sample.labels == labels).and_then(|sample| match &sample.value {
            Value::Number(number) => Some(*number),
            Value::Distribution(_) => None,
        })
    }

    /// The text that Prometheus reads (exposition format 0.0.4), in the table's order.
    #[must_use]
    pub fn prometheus(&self) -> String {
        let mut text = String::new();
        for metric in METRICS {
            let mut series = self.of(metric).peekable();
            if series.peek().is_none() {
                continue;
            }
            let name = metric.prometheus_name();
            let kind = match metric.kind {
                Kind::Gauge => "gauge",
                Kind::Counter => "counter",
                Kind::Histogram(_) => "histogram",
            };
            // Writing to a text does not fail.
            let _ = writeln!(text, "# HELP {name} {}\n# TYPE {name} {kind}", escape(metric.help, false));
            for Sample { labels, value, .. } in series {
                let pairs = metric.labels.iter().zip(labels);
                let pairs: Vec<String> =
                    pairs.map(|(key, value)| format!("{key}=\"{}\"", escape(value, true))).collect();
                let pairs = pairs.join(",");
                let _ = match value {
                    Value::Number(number) => writeln!(text, "{name}{{{pairs}}} {number}"),
                    Value::Distribution(distribution) => {
                        write_buckets(&mut text, &name, &pairs, distribution)
                    }
                };
            }
        }
        text
    }
}

fn write_buckets(
    text: &mut String,
    name: &str,
    pairs: &str,
    distribution: &Distribution,
) -> std::fmt::Result {
    let mut below = 0;
    for (bound, count) in distribution.bounds.iter().zip(&distribution.counts) {
        below += count;
        writeln!(text, "{name}_bucket{{{pairs},le=\"{bound}\"}} {below}")?;
    }
    let count = distribution.count();
    writeln!(text, "{name}_bucket{{{pairs},le=\"+Inf\"}} {count}")?;
    writeln!(text, "{name}_sum{{{pairs}}} {}\n{name}_count{{{pairs}}} {count}", distribution.sum)
}

fn escape(text: &str, quotes: bool) -> String {
    let text = text.replace('\\', "\\\\").replace('\n', "\\n");
    if quotes { text.replace('"', "\\\"") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table;

    #[test]
    fn the_text_is_what_prometheus_reads() {
        let mut snapshot = Snapshot::default();
        snapshot.put(table::LINK_WAN, &["a", "b\"\\\n"], 12.0);
        snapshot.put(table::EPOCH, &["a"], 3.0);
        let mut lags = Distribution::of(&table::VISIBLE_LAG_OBSERVED);
        [0.001, 0.002, 9999.0].into_iter().for_each(|lag| lags.note(lag));
        snapshot.put_distribution(table::VISIBLE_LAG_OBSERVED, &["a"], lags);
        let text = snapshot.prometheus();
        let epoch = "# TYPE replicator_epoch gauge\nreplicator_epoch{region=\"a\"} 3\n";
        assert!(text.contains(epoch), "{text}");
        let wan = "replicator_link_wan_bytes_total{region=\"a\",peer=\"b\\\"\\\\\\n\"} 12\n";
        assert!(text.contains(wan), "{text}");
        let name = "replicator_visible_lag_observed_seconds";
        for (le, count) in [("0.001", 1), ("0.0025", 2), ("3600", 2), ("+Inf", 3)] {
            let line = format!("{name}_bucket{{region=\"a\",le=\"{le}\"}} {count}\n");
            assert!(text.contains(&line), "{line} {text}");
        }
        assert!(text.contains(&format!("{name}_count{{region=\"a\"}} 3\n")), "{text}");
        assert!(text.find("replicator_epoch").unwrap() < text.find(name).unwrap(), "the table's order");
    }
}
