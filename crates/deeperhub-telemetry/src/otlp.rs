//! Converts spans and metrics to OTLP messages.

use std::time::{Duration, SystemTime};

use deeperhub_metrics::{HistogramSnapshot, MetricData, MetricSnapshot, Number, Unit};
use deeperhub_node::trace::{Span, SpanKind, Value};
use deeperhub_protocol::message::SpanContext;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1 as metrics;
use opentelemetry_proto::tonic::metrics::v1::{exemplar, metric, number_data_point};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1 as trace;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Status, span, status};

use crate::config::TelemetryConfig;

/// Flag of an OTLP span: the flag [`IS_REMOTE`] is meaningful.
const HAS_IS_REMOTE: u32 = 0x100;

/// Flag of an OTLP span: the parent span belongs to another process.
const IS_REMOTE: u32 = 0x200;

/// The sampled flag of a W3C trace context.
const SAMPLED: u32 = 1;

/// Name of the instrumentation scope.
pub(crate) const SCOPE_NAME: &str = "deeperhub";

/// Resource, scope and start time, which are the same in all requests.
#[derive(Debug)]
pub(crate) struct Origin {
    resource: Resource,
    scope: InstrumentationScope,
    started: SystemTime,
}

impl Origin {
    /// Creates an origin. Its resource has the attributes of this process and the configured ones.
    /// A configured attribute replaces an attribute of the process with the same name.
    pub(crate) fn new(config: &TelemetryConfig, node_id: &str) -> Self {
        let known = [
            ("service.name", config.service.name.clone()),
            ("service.version", config.service.version.clone()),
            ("service.instance.id", node_id.to_owned()),
            ("process.pid", std::process::id().to_string()),
            ("telemetry.sdk.name", "deeperhub-ws".to_owned()),
            ("telemetry.sdk.language", "rust".to_owned()),
            ("telemetry.sdk.version", env!("CARGO_PKG_VERSION").to_owned()),
        ];
        let is_configured = |name: &str| config.resource.iter().any(|(other, _)| other == name);
        let mut attributes: Vec<_> = known
            .into_iter()
            .filter(|(name, _)| !is_configured(name))
            .map(|(name, value)| text_attribute(name, value))
            .collect();
        attributes.extend(config.resource.iter().map(|(name, value)| text_attribute(name, value.clone())));
        Self {
            resource: Resource { attributes, ..Resource::default() },
            scope: InstrumentationScope {
                name: SCOPE_NAME.to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                ..InstrumentationScope::default()
            },
            started: SystemTime::now(),
        }
    }
}

/// Returns a request that carries spans.
pub(crate) fn traces_request(
    origin: &Origin,
    spans: impl Iterator<Item = Span>,
) -> ExportTraceServiceRequest {
    let scope_spans = ScopeSpans {
        scope: Some(origin.scope.clone()),
        spans: spans.map(otlp_span).collect(),
        schema_url: String::new(),
    };
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(origin.resource.clone()),
            scope_spans: vec![scope_spans],
            schema_url: String::new(),
        }],
    }
}

pub(crate) fn otlp_span(span: Span) -> trace::Span {
    let kind = match span.kind {
        SpanKind::Server => span::SpanKind::Server,
        SpanKind::Client => span::SpanKind::Client,
        SpanKind::Producer => span::SpanKind::Producer,
        SpanKind::Consumer => span::SpanKind::Consumer,
        _ => span::SpanKind::Internal,
    };
    let mut attributes: Vec<_> = span
        .attributes
        .into_iter()
        .map(|(name, value)| KeyValue {
            key: name.to_owned(),
            value: Some(any_value(value)),
            ..KeyValue::default()
        })
        .collect();
    let status = span
        .error
        .as_ref()
        .map(|_| Status { message: String::new(), code: status::StatusCode::Error as i32 });
    attributes.extend(span.error.map(|error| text_attribute("error.type", error.into_owned())));
    let remote = if span.parent.is_some() && span.parent_is_remote { IS_REMOTE } else { 0 };
    trace::Span {
        trace_id: span.context.trace_id().to_be_bytes().to_vec(),
        span_id: span.context.span_id().to_be_bytes().to_vec(),
        trace_state: span.tracestate.map(|state| state.to_string()).unwrap_or_default(),
        parent_span_id: span.parent.map(|parent| parent.span_id().to_be_bytes().to_vec()).unwrap_or_default(),
        flags: SAMPLED | HAS_IS_REMOTE | remote,
        name: span.name.into_owned(),
        kind: kind as i32,
        start_time_unix_nano: unix_nanos(span.start),
        end_time_unix_nano: unix_nanos(span.end),
        attributes,
        links: span.links.iter().map(otlp_link).collect(),
        status,
        ..trace::Span::default()
    }
}

fn otlp_link(linked: &SpanContext) -> span::Link {
    span::Link {
        trace_id: linked.trace_id().to_be_bytes().to_vec(),
        span_id: linked.span_id().to_be_bytes().to_vec(),
        flags: u32::from(linked.is_sampled()),
        ..span::Link::default()
    }
}

/// Period that a cumulative data point covers, in nanoseconds since 1970.
#[derive(Debug, Clone, Copy)]
struct Period {
    start: u64,
    end: u64,
}

/// Returns a request that carries the metrics' values at `now`.
pub(crate) fn metrics_request(
    origin: &Origin,
    snapshots: &[MetricSnapshot<'_>],
    now: SystemTime,
) -> ExportMetricsServiceRequest {
    let period = Period { start: unix_nanos(origin.started), end: unix_nanos(now) };
    let scope_metrics = metrics::ScopeMetrics {
        scope: Some(origin.scope.clone()),
        metrics: snapshots.iter().filter_map(|snapshot| otlp_metric(snapshot, period)).collect(),
        schema_url: String::new(),
    };
    ExportMetricsServiceRequest {
        resource_metrics: vec![metrics::ResourceMetrics {
            resource: Some(origin.resource.clone()),
            scope_metrics: vec![scope_metrics],
            schema_url: String::new(),
        }],
    }
}

/// Converts a metric. Strips the suffixes for unit and kind from its name, because a collector that
/// converts OTLP to Prometheus appends them again. Returns `None` for an unknown kind.
fn otlp_metric(snapshot: &MetricSnapshot<'_>, period: Period) -> Option<metrics::Metric> {
    let (unit, suffix) = match snapshot.unit {
        Unit::Bytes => ("By", "_bytes"),
        Unit::Seconds => ("s", "_seconds"),
        Unit::Ratio => ("1", "_ratio"),
        _ => ("", ""),
    };
    let name = snapshot.name.strip_suffix("_total").unwrap_or(snapshot.name);
    let name = name.strip_suffix(suffix).unwrap_or(name);
    let cumulative = metrics::AggregationTemporality::Cumulative as i32;
    let data = match &snapshot.data {
        MetricData::Counter(points) => metric::Data::Sum(metrics::Sum {
            data_points: points
                .iter()
                .map(|&(label, value)| {
                    let labels = label
                        .map(|(name, value)| text_attribute(name, value.to_owned()))
                        .into_iter()
                        .collect();
                    number_point(labels, value, period)
                })
                .collect(),
            aggregation_temporality: cumulative,
            is_monotonic: true,
        }),
        MetricData::Gauge(value) => metric::Data::Gauge(metrics::Gauge {
            data_points: vec![number_point(Vec::new(), *value, period)],
        }),
        MetricData::Info(labels) => {
            let labels = labels.iter().map(|(name, value)| text_attribute(name, value.clone())).collect();
            metric::Data::Gauge(metrics::Gauge {
                data_points: vec![number_point(labels, Number::Whole(1), period)],
            })
        }
        MetricData::Histogram(histogram) => metric::Data::Histogram(metrics::Histogram {
            data_points: vec![histogram_point(histogram, period)],
            aggregation_temporality: cumulative,
        }),
        _ => return None,
    };
    Some(metrics::Metric {
        name: name.to_owned(),
        description: snapshot.help.to_owned(),
        unit: unit.to_owned(),
        metadata: Vec::new(),
        data: Some(data),
    })
}

fn number_point(attributes: Vec<KeyValue>, value: Number, period: Period) -> metrics::NumberDataPoint {
    let value = match value {
        Number::Count(value) => match i64::try_from(value) {
            Ok(value) => number_data_point::Value::AsInt(value),
            Err(_) => number_data_point::Value::AsDouble(value as f64),
        },
        Number::Whole(value) => number_data_point::Value::AsInt(value),
        Number::Float(value) => number_data_point::Value::AsDouble(value),
        _ => number_data_point::Value::AsInt(0),
    };
    metrics::NumberDataPoint {
        attributes,
        start_time_unix_nano: period.start,
        time_unix_nano: period.end,
        value: Some(value),
        ..metrics::NumberDataPoint::default()
    }
}

fn histogram_point(histogram: &HistogramSnapshot, period: Period) -> metrics::HistogramDataPoint {
    let bounds = histogram.bounds();
    let exemplars = histogram.exemplars().iter().flatten().map(|exemplar| metrics::Exemplar {
        filtered_attributes: Vec::new(),
        time_unix_nano: unix_nanos(exemplar.at),
        span_id: exemplar.span_id.to_be_bytes().to_vec(),
        trace_id: exemplar.trace_id.to_be_bytes().to_vec(),
        value: Some(exemplar::Value::AsDouble(bounds.exposed(exemplar.value))),
    });
    metrics::HistogramDataPoint {
        start_time_unix_nano: period.start,
        time_unix_nano: period.end,
        count: histogram.count(),
        sum: Some(bounds.exposed(histogram.sum())),
        bucket_counts: histogram.buckets().to_vec(),
        explicit_bounds: bounds.upper().iter().map(|&bound| bounds.exposed(bound)).collect(),
        exemplars: exemplars.collect(),
        ..metrics::HistogramDataPoint::default()
    }
}

fn text_attribute(name: &str, value: String) -> KeyValue {
    KeyValue {
        key: name.to_owned(),
        value: Some(any_value(Value::Text(value.into()))),
        ..KeyValue::default()
    }
}

fn any_value(value: Value) -> AnyValue {
    let value = match value {
        Value::Text(text) => any_value::Value::StringValue(text.into_owned()),
        Value::Integer(number) => any_value::Value::IntValue(number),
        Value::Float(number) => any_value::Value::DoubleValue(number),
        Value::Flag(flag) => any_value::Value::BoolValue(flag),
        _ => any_value::Value::StringValue(String::new()),
    };
    AnyValue { value: Some(value) }
}

/// Returns the nanoseconds since 1970; 0 for earlier times.
fn unix_nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
