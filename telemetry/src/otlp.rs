//! Sends metrics and traces by OTLP over gRPC, to a collector that may be slow or away.
//!
//! Each snapshot holds sums since the daemon began, so one that was not sent is made good by the next:
//! nothing is kept for later, and nothing waits. The messages are made here, by pure functions, and not by
//! the SDK's instruments: those go on sending a gauge's last value when its series is gone, such as the lags
//! that a former primary measured.

use std::time::Duration;

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_client::MetricsServiceClient;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric as Message, NumberDataPoint,
    ResourceMetrics, ScopeMetrics, Sum, metric::Data, number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span as SpanMessage, span};
use tonic::metadata::{Ascii, MetadataKey, MetadataMap, MetadataValue};
use tonic::transport::{Channel, Endpoint};

use crate::snapshot::{Sample, Snapshot, Value};
use crate::table::{Kind, METRICS};

/// The longest that a connection may take.
const CONNECT: Duration = Duration::from_secs(3);

/// Where to send, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// A URL, `http://host:port`.
    pub url: String,
    /// Headers of each request.
    pub headers: Vec<(String, String)>,
    /// How long a request may take.
    pub timeout: Duration,
    /// How often metrics are sent.
    pub every: Duration,
    /// Whether traces are sent as well.
    pub traces: bool,
    /// Who sends: attributes.
    pub resource: Vec<(String, String)>,
}

impl Destination {
    /// Where metrics and traces of `region` of `cluster` go: what the standard variables say, which
    /// `variable` looks up, and else `configured`; none when neither says anything, or the variables switch
    /// it off.
    #[must_use]
    pub fn find(
        variable: impl Fn(&str) -> Option<String>,
        configured: Option<&str>,
        cluster: &str,
        region: &str,
    ) -> Option<Destination> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let off = variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"))
            || variable("OTEL_METRICS_EXPORTER").is_some_and(|value| value == "none");
        let of = |what: &str| {
            variable(&format!("OTEL_EXPORTER_OTLP_METRICS_{what}"))
                .or_else(|| variable(&format!("OTEL_EXPORTER_OTLP_{what}")))
        };
        let url = of("ENDPOINT").or_else(|| configured.map(str::to_owned)).filter(|_| !off)?;
        let says = |name: &str, value: &str| variable(name).is_some_and(|said| said == value);
        let traces = !says("OTEL_TRACES_EXPORTER", "none") && !says("OTEL_TRACES_SAMPLER", "always_off");
        let millis = |value: Option<String>, default: u64| {
            Duration::from_millis(value.and_then(|value| value.parse().ok()).unwrap_or(default).max(1))
        };
        let own = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let mut resource = vec![
            own("service.name", "replicator"),
            own("service.namespace", cluster),
            own("service.instance.id", region),
            own("service.version", env!("CARGO_PKG_VERSION")),
        ];
        let said = variable("OTEL_RESOURCE_ATTRIBUTES").map(|text| pairs(&text)).unwrap_or_default();
        let name = variable("OTEL_SERVICE_NAME").map(|name| own("service.name", &name));
        for (key, value) in said.into_iter().chain(name) {
            resource.retain(|(known, _)| *known != key);
            resource.push((key, value));
        }
        Some(Destination {
            url,
            headers: of("HEADERS").map(|text| pairs(&text)).unwrap_or_default(),
            timeout: millis(of("TIMEOUT"), 10_000),
            every: millis(variable("OTEL_METRIC_EXPORT_INTERVAL"), 10_000),
            traces,
            resource,
        })
    }
}

/// `a=1,b=2`, percent-decoded where it is valid.
fn pairs(text: &str) -> Vec<(String, String)> {
    let decode = |text: &str| {
        let mut bytes = Vec::with_capacity(text.len());
        let mut rest = text.trim().as_bytes();
        while let Some((first, others)) = rest.split_first() {
            let digits = others.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
            match digits.filter(|_| *first == b'%').and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
                Some(byte) => {
                    bytes.push(byte);
                    rest = &others[2..];
                }
                None => {
                    bytes.push(*first);
                    rest = others;
                }
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let pair = |pair: &str| pair.split_once('=').map(|(key, value)| (decode(key), decode(value)));
    text.split(',').filter_map(pair).collect()
}

/// What a span is to the other end of a wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanKind {
    /// Nothing: it is within a region.
    Internal,
    /// It sends, and does not wait until that was taken.
    Producer,
    /// It takes what was sent so.
    Consumer,
}

/// A step of a trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// The trace; spans of one have the same.
    pub trace: u128,
    /// The span; not zero.
    pub id: u64,
    /// The span that it is part of; zero for the whole.
    pub parent: u64,
    /// What was done.
    pub name: String,
    /// What it is to the other end.
    pub kind: SpanKind,
    /// When it began and ended, microseconds since 1970.
    pub from_us: i64,
    /// See [`Span::from_us`].
    pub to_us: i64,
    /// What else is to be known.
    pub attributes: Vec<(String, String)>,
}

/// A sender. Nothing is connected before something is sent.
#[derive(Debug, Clone)]
pub struct Sender {
    destination: Destination,
    metrics: MetricsServiceClient<Channel>,
    traces: TraceServiceClient<Channel>,
    headers: MetadataMap,
}

/// Why something was not sent.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The destination is no URL that can be sent to.
    #[error("{url} cannot be sent to by OTLP: {why}")]
    Destination {
        /// The URL.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// The collector did not take it.
    #[error("the collector: {0}")]
    Collector(#[from] Box<tonic::Status>),
}

impl Sender {
    /// A sender to `destination`. Call it within a tokio runtime.
    ///
    /// # Errors
    /// When its URL or a header cannot be used.
    pub fn new(destination: Destination) -> Result<Sender, SendError> {
        let unusable = |why: String| SendError::Destination { url: destination.url.clone(), why };
        let endpoint = Endpoint::from_shared(destination.url.clone()).map_err(|e| unusable(e.to_string()))?;
        if endpoint.uri().scheme_str() != Some("http") {
            return Err(unusable("only http:// is; have a collector beside the daemon encrypt".into()));
        }
        let channel = endpoint.connect_timeout(CONNECT).timeout(destination.timeout).connect_lazy();
        let mut headers = MetadataMap::new();
        for (key, value) in &destination.headers {
            let key =
                key.to_lowercase().parse::<MetadataKey<Ascii>>().map_err(|e| unusable(e.to_string()))?;
            let value = value.parse::<MetadataValue<Ascii>>().map_err(|e| unusable(e.to_string()))?;
            headers.insert(key, value);
        }
        let (metrics, traces) =
            (MetricsServiceClient::new(channel.clone()), TraceServiceClient::new(channel));
        Ok(Sender { destination, metrics, traces, headers })
    }

    /// How often metrics are to be sent.
    #[must_use]
    pub fn every(&self) -> Duration {
        self.destination.every
    }

    /// Sends a snapshot, whose sums began at `from_us` (microseconds since 1970).
    ///
    /// # Errors
    /// When it was not taken within the destination's timeout.
    pub async fn send(&mut self, snapshot: &Snapshot, from_us: i64, now_us: i64) -> Result<(), SendError> {
        let message = metrics(snapshot, &self.destination.resource, from_us, now_us);
        let mut request = tonic::Request::new(message);
        *request.metadata_mut() = self.headers.clone();
        self.metrics.export(request).await.map(drop).map_err(|e| SendError::Collector(Box::new(e)))
    }

    /// Sends spans.
    ///
    /// # Errors
    /// When they were not taken within the destination's timeout.
    pub async fn trace(&mut self, spans: &[Span]) -> Result<(), SendError> {
        let mut request = tonic::Request::new(traces(spans, &self.destination.resource));
        *request.metadata_mut() = self.headers.clone();
        self.traces.export(request).await.map(drop).map_err(|e| SendError::Collector(Box::new(e)))
    }
}

fn attribute(key: &str, value: &str) -> KeyValue {
    let value = AnyValue { value: Some(any_value::Value::StringValue(value.to_owned())) };
    KeyValue { key: key.to_owned(), value: Some(value), ..Default::default() }
}

fn attributes(pairs: &[(String, String)]) -> Vec<KeyValue> {
    pairs.iter().map(|(key, value)| attribute(key, value)).collect()
}

fn scope() -> Option<InstrumentationScope> {
    Some(InstrumentationScope {
        name: "replicator".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        ..Default::default()
    })
}

fn nanos(us: i64) -> u64 {
    u64::try_from(us).unwrap_or(0).saturating_mul(1000)
}

/// The message of a snapshot, in the table's order.
#[must_use]
pub fn metrics(
    snapshot: &Snapshot,
    resource: &[(String, String)],
    from_us: i64,
    now_us: i64,
) -> ExportMetricsServiceRequest {
    let (start_time_unix_nano, time_unix_nano) = (nanos(from_us), nanos(now_us));
    let labels = |sample: &Sample| {
        let pairs = sample.metric.labels.iter().zip(&sample.labels);
        pairs.map(|(key, value)| attribute(key, value)).collect::<Vec<_>>()
    };
    let mut messages = Vec::new();
    for metric in METRICS {
        let samples: Vec<&Sample> = snapshot.of(metric).collect();
        if samples.is_empty() {
            continue;
        }
        let numbers = || {
            let number = |sample: &&Sample| match sample.value {
                Value::Number(number) => Some(NumberDataPoint {
                    attributes: labels(sample),
                    start_time_unix_nano,
                    time_unix_nano,
                    value: Some(number_data_point::Value::AsDouble(number)),
                    ..Default::default()
                }),
                Value::Distribution(_) => None,
            };
            samples.iter().filter_map(number).collect()
        };
        let cumulative = AggregationTemporality::Cumulative.into();
        let data = match metric.kind {
            Kind::Gauge => Data::Gauge(Gauge { data_points: numbers() }),
            Kind::Counter => Data::Sum(Sum {
                data_points: numbers(),
                aggregation_temporality: cumulative,
                is_monotonic: true,
            }),
            Kind::Histogram(bounds) => {
                let point = |sample: &&Sample| match &sample.value {
                    Value::Distribution(fell) => Some(HistogramDataPoint {
                        attributes: labels(sample),
                        start_time_unix_nano,
                        time_unix_nano,
                        count: fell.count(),
                        sum: Some(fell.sum()),
                        bucket_counts: fell.counts().to_vec(),
                        explicit_bounds: bounds.to_vec(),
                        ..Default::default()
                    }),
                    Value::Number(_) => None,
                };
                let data_points = samples.iter().filter_map(point).collect();
                Data::Histogram(Histogram { data_points, aggregation_temporality: cumulative })
            }
        };
        messages.push(Message {
            name: metric.name.to_owned(),
            description: metric.help.to_owned(),
            unit: metric.unit.ucum(),
            data: Some(data),
            ..Default::default()
        });
    }
    let scope_metrics = vec![ScopeMetrics { scope: scope(), metrics: messages, ..Default::default() }];
    let resource = Some(Resource { attributes: attributes(resource), ..Default::default() });
    ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics { resource, scope_metrics, ..Default::default() }],
    }
}

/// The message of spans.
#[must_use]
pub fn traces(spans: &[Span], resource: &[(String, String)]) -> ExportTraceServiceRequest {
    let span = |span: &Span| SpanMessage {
        trace_id: span.trace.to_be_bytes().to_vec(),
        span_id: span.id.to_be_bytes().to_vec(),
        parent_span_id: if span.parent == 0 { Vec::new() } else { span.parent.to_be_bytes().to_vec() },
        name: span.name.clone(),
        kind: match span.kind {
            SpanKind::Internal => span::SpanKind::Internal,
            SpanKind::Producer => span::SpanKind::Producer,
            SpanKind::Consumer => span::SpanKind::Consumer,
        }
        .into(),
        start_time_unix_nano: nanos(span.from_us),
        end_time_unix_nano: nanos(span.to_us),
        attributes: attributes(&span.attributes),
        ..Default::default()
    };
    let scope_spans =
        vec![ScopeSpans { scope: scope(), spans: spans.iter().map(span).collect(), ..Default::default() }];
    let resource = Some(Resource { attributes: attributes(resource), ..Default::default() });
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans { resource, scope_spans, ..Default::default() }],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Distribution;
    use crate::table;

    fn find(variables: &[(&str, &str)], configured: Option<&str>) -> Option<Destination> {
        let variable = |name: &str| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Destination::find(variable, configured, "shop", "us-east")
    }

    #[test]
    fn variables_come_before_the_file_and_nothing_is_sent_unless_one_of_them_says_so() {
        assert_eq!(find(&[], None), None);
        let file = find(&[], Some("http://file:4317")).unwrap();
        assert_eq!((file.url.as_str(), file.timeout), ("http://file:4317", Duration::from_secs(10)));
        let all = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://all:4317"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=a%20b,x=1"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "500"),
            ("OTEL_METRIC_EXPORT_INTERVAL", "250"),
            ("OTEL_SERVICE_NAME", "db"),
            ("OTEL_RESOURCE_ATTRIBUTES", "service.name=no,zone=a"),
        ];
        let found = find(&all, Some("http://file:4317")).unwrap();
        assert_eq!(found.url, "http://all:4317");
        assert_eq!(found.headers, [("api-key".into(), "a b".into()), ("x".into(), "1".into())]);
        let times = (found.timeout, found.every);
        assert_eq!(times, (Duration::from_millis(500), Duration::from_millis(250)));
        let value = |key: &str| {
            let all: Vec<_> = found.resource.iter().filter(|(known, _)| known == key).collect();
            assert_eq!(all.len(), 1, "{key}");
            all[0].1.clone()
        };
        assert_eq!((value("service.name").as_str(), value("zone").as_str()), ("db", "a"));
        assert_eq!(value("service.instance.id"), "us-east");
        let own = [all[0], ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://metrics:4317")];
        assert_eq!(find(&own, None).unwrap().url, "http://metrics:4317");
        for off in [("OTEL_SDK_DISABLED", "true"), ("OTEL_METRICS_EXPORTER", "none")] {
            assert_eq!(find(&[all[0], off], Some("http://file:4317")), None);
        }
        for off in [("OTEL_TRACES_EXPORTER", "none"), ("OTEL_TRACES_SAMPLER", "always_off")] {
            assert!(!find(&[off], Some("http://file:4317")).unwrap().traces && file.traces);
        }
    }

    #[test]
    fn a_message_says_what_the_table_says() {
        let mut snapshot = Snapshot::default();
        snapshot.put(table::LINK_WAN, &["a", "b"], 12.0);
        snapshot.put(table::VISIBLE_LAG, &["b"], 0.5);
        let mut lags = Distribution::of(&table::VISIBLE_LAG_OBSERVED);
        lags.note(0.5);
        snapshot.put_distribution(table::VISIBLE_LAG_OBSERVED, &["b"], lags);
        let message = metrics(&snapshot, &[("k".into(), "v".into())], 1, 2);
        let sent = &message.resource_metrics[0].scope_metrics[0].metrics;
        let names: Vec<(&str, &str)> = sent.iter().map(|m| (m.name.as_str(), m.unit.as_str())).collect();
        let wanted = [
            ("replicator.visible_lag", "s"),
            ("replicator.visible_lag.observed", "s"),
            ("replicator.link.wan", "By"),
        ];
        assert_eq!(names, wanted);
        assert!(matches!(&sent[0].data, Some(Data::Gauge(gauge)) if gauge.data_points.len() == 1));
        let Some(Data::Histogram(histogram)) = &sent[1].data else { panic!("{sent:?}") };
        let point = &histogram.data_points[0];
        assert_eq!((point.count, point.sum), (1, Some(0.5)));
        assert_eq!(point.bucket_counts.len(), point.explicit_bounds.len() + 1);
        let Some(Data::Sum(sum)) = &sent[2].data else { panic!("{sent:?}") };
        assert!(sum.is_monotonic && sum.data_points[0].attributes.len() == 2);
        assert_eq!(sum.data_points[0].time_unix_nano, 2000);
    }
}
