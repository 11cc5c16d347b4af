//! Spans and metrics as OTLP messages (<https://opentelemetry.io/docs/specs/otlp/>).

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics,
    ScopeMetrics, Sum, metric, number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{self as pb, ResourceSpans, ScopeSpans, Status};

use super::tracer::{Attribute, Span};
use crate::config::OtlpMetricsConfig;
use crate::metrics::table::{Family, Kind, Sample, Value};

/// Who tells all this.
#[derive(Clone, Debug)]
pub struct Origin {
    /// `node.name`.
    pub node: String,
    /// When counting began, in nanoseconds since 1970.
    pub started_ns: u64,
}

impl Origin {
    fn resource(&self) -> Resource {
        let attributes = [
            ("service.name", "payload-manager"),
            ("service.version", env!("CARGO_PKG_VERSION")),
            ("service.instance.id", &self.node),
        ];
        let attributes = attributes.into_iter().map(|(key, text)| key_value(key, words(text))).collect();
        Resource { attributes, ..Resource::default() }
    }
}

fn scope() -> Option<InstrumentationScope> {
    let version = env!("CARGO_PKG_VERSION").to_owned();
    Some(InstrumentationScope { name: "payload-manager".to_owned(), version, ..Default::default() })
}

fn words(text: &str) -> any_value::Value {
    any_value::Value::StringValue(text.to_owned())
}

fn key_value(key: &str, value: any_value::Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

/// These spans, as one request.
pub fn traces(origin: &Origin, spans: &[Span]) -> ExportTraceServiceRequest {
    let spans = spans.iter().map(span).collect();
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(origin.resource()),
            scope_spans: vec![ScopeSpans { scope: scope(), spans, ..ScopeSpans::default() }],
            ..ResourceSpans::default()
        }],
    }
}

fn span(span: &Span) -> pb::Span {
    let attribute = |(key, attribute): &(&str, Attribute)| {
        let value = match attribute {
            Attribute::Text(text) => words(text),
            Attribute::Number(number) => any_value::Value::IntValue(*number),
            Attribute::Flag(flag) => any_value::Value::BoolValue(*flag),
        };
        key_value(key, value)
    };
    let status =
        span.error.as_ref().map(|error| Status { code: StatusCode::Error as i32, message: error.clone() });
    pb::Span {
        trace_id: span.ids.trace.0.to_vec(),
        span_id: span.ids.span.0.to_vec(),
        parent_span_id: span.parent.map(|parent| parent.0.to_vec()).unwrap_or_default(),
        name: span.name.clone(),
        kind: if span.is_server { SpanKind::Server } else { SpanKind::Internal } as i32,
        start_time_unix_nano: span.start_ns,
        end_time_unix_nano: span.end_ns,
        attributes: span.attributes.iter().map(attribute).collect(),
        status,
        ..pb::Span::default()
    }
}

/// These figures, as far as they are wanted, as one request.
pub fn metrics(
    origin: &Origin,
    wanted: OtlpMetricsConfig,
    at_ns: u64,
    found: Vec<(&'static Family, Vec<Sample>)>,
) -> ExportMetricsServiceRequest {
    let found = found.into_iter().filter(|(family, _)| is_wanted(wanted, family.name));
    let metrics = found.map(|(family, samples)| {
        let (labels, samples) = merged(wanted, family, samples);
        metric(family, &labels, samples, (origin.started_ns, at_ns))
    });
    let metrics = metrics.collect();
    ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics {
            resource: Some(origin.resource()),
            scope_metrics: vec![ScopeMetrics { scope: scope(), metrics, ..ScopeMetrics::default() }],
            ..ResourceMetrics::default()
        }],
    }
}

fn is_wanted(wanted: OtlpMetricsConfig, name: &str) -> bool {
    match name {
        "payload.request.count" => wanted.requests,
        "payload.request.latency_ms" => wanted.requests && wanted.request_latencies,
        "payload.spill.duration_ms" => wanted.spills,
        "payload.tier.occupancy_bytes" => wanted.occupancy,
        _ => true,
    }
}

/// Without the labels that are not wanted: what differs in these only is added up. The contract's names only.
fn merged(
    wanted: OtlpMetricsConfig,
    family: &Family,
    samples: Vec<Sample>,
) -> (Vec<&'static str>, Vec<Sample>) {
    let goes = |label: &str| match label {
        "route" => !wanted.route_labels,
        "tier" | "from" | "to" => !wanted.tier_labels && family.name.starts_with("payload."),
        _ => false,
    };
    if !family.labels.iter().any(|label| goes(label)) {
        return (family.labels.to_vec(), samples);
    }
    let kept: Vec<bool> = family.labels.iter().map(|label| !goes(label)).collect();
    let keep = |at: usize| kept[at];
    let labels =
        family.labels.iter().enumerate().filter(|(at, _)| keep(*at)).map(|(_, label)| *label).collect();
    let mut sums: BTreeMap<Vec<String>, Value> = BTreeMap::new();
    for Sample { labels, value } in samples {
        let key: Vec<String> =
            labels.into_iter().enumerate().filter(|(at, _)| keep(*at)).map(|(_, label)| label).collect();
        match sums.entry(key) {
            std::collections::btree_map::Entry::Vacant(place) => {
                place.insert(value);
            }
            std::collections::btree_map::Entry::Occupied(mut sum) => add(sum.get_mut(), value),
        }
    }
    (labels, sums.into_iter().map(|(labels, value)| Sample { labels, value }).collect())
}

fn add(sum: &mut Value, more: Value) {
    match (sum, more) {
        (Value::Whole(sum), Value::Whole(more)) => *sum += more,
        (Value::Real(sum), Value::Real(more)) => *sum += more,
        (Value::Spread(sum), Value::Spread(more)) => {
            sum.counts.iter_mut().zip(more.counts).for_each(|(sum, more)| *sum += more);
            sum.sum += more.sum;
        }
        (sum, more) => unreachable!("a family has values of one kind: {sum:?}, {more:?}"),
    }
}

fn metric(family: &Family, labels: &[&str], samples: Vec<Sample>, (started, at): (u64, u64)) -> Metric {
    let attributes = |sample: &Sample| -> Vec<KeyValue> {
        labels.iter().zip(&sample.labels).map(|(label, text)| key_value(label, words(text))).collect()
    };
    let number = |sample: &Sample| {
        let value = match &sample.value {
            Value::Whole(value) => number_data_point::Value::AsInt(i64::try_from(*value).unwrap_or(i64::MAX)),
            Value::Real(value) => number_data_point::Value::AsDouble(*value),
            Value::Spread(spread) => number_data_point::Value::AsDouble(spread.sum),
        };
        NumberDataPoint {
            attributes: attributes(sample),
            start_time_unix_nano: started,
            time_unix_nano: at,
            value: Some(value),
            ..NumberDataPoint::default()
        }
    };
    let cumulative = AggregationTemporality::Cumulative as i32;
    let data = match family.kind {
        Kind::Gauge => metric::Data::Gauge(Gauge { data_points: samples.iter().map(number).collect() }),
        Kind::Counter => metric::Data::Sum(Sum {
            data_points: samples.iter().map(number).collect(),
            aggregation_temporality: cumulative,
            is_monotonic: true,
        }),
        Kind::Histogram => metric::Data::Histogram(Histogram {
            data_points: samples
                .iter()
                .filter_map(|sample| match &sample.value {
                    Value::Spread(spread) => Some(HistogramDataPoint {
                        attributes: attributes(sample),
                        start_time_unix_nano: started,
                        time_unix_nano: at,
                        count: spread.count(),
                        sum: Some(spread.sum),
                        bucket_counts: spread.counts.clone(),
                        explicit_bounds: spread.bounds.clone(),
                        ..HistogramDataPoint::default()
                    }),
                    Value::Whole(_) | Value::Real(_) => None,
                })
                .collect(),
            aggregation_temporality: cumulative,
        }),
    };
    Metric {
        name: family.name.to_owned(),
        description: family.help.to_owned(),
        unit: family.unit.to_owned(),
        data: Some(data),
        ..Metric::default()
    }
}
