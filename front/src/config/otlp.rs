//! `observability`, as far as OpenTelemetry goes: what is exported, where to and how.

use super::error::ConfigError;
use super::settings::Settings;
use super::tree::{
    AttributeLevel, BatchConfig, OtlpConfig, OtlpMetricsConfig, OtlpTransport, Secret, TraceHint,
    TracingConfig,
};

/// A processor of the simple kind hands a span on at once: as soon as a batch of this age.
const SIMPLE_DELAY_MS: u64 = 10;

/// `None` when nothing is exported.
///
/// # Errors
/// An endpoint of another kind than http and https, or with a password where none is sent.
pub(super) fn resolve(settings: &Settings) -> Result<Option<OtlpConfig>, ConfigError> {
    let flag = |name: &str| settings.flag(&format!("observability.{name}"));
    let (metrics, tracing) = (flag("metrics_enabled"), flag("tracing_enabled"));
    if !metrics && !tracing {
        return Ok(None);
    }
    let transport = match settings.text("observability.transport").as_deref() {
        Some("OTLP_TRANSPORT_HTTP") => OtlpTransport::Http,
        _ => OtlpTransport::Grpc,
    };
    Ok(Some(OtlpConfig {
        endpoint: Secret(endpoint(settings, transport)?),
        transport,
        metrics: metrics.then(|| metrics_config(settings)),
        tracing: tracing.then(|| tracing_config(settings)),
    }))
}

/// With its scheme, without a slash at its end.
fn endpoint(settings: &Settings, transport: OtlpTransport) -> Result<String, ConfigError> {
    let key = "observability.otlp_endpoint";
    // The collector's own ports.
    let default = match transport {
        OtlpTransport::Grpc => "http://localhost:4317",
        OtlpTransport::Http => "http://localhost:4318",
    };
    let text = settings.text(key).unwrap_or_else(|| default.to_owned());
    let text = text.trim_end_matches('/');
    let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
    let refuse = |reason: &str| Err(ConfigError::refused(key, reason));
    match scheme {
        _ if rest.is_empty() => refuse("it names no host; write it like `http://collector:4317`"),
        "http" | "https" if transport == OtlpTransport::Grpc && rest.contains('@') => refuse(
            "a user and a password are sent over OTLP_TRANSPORT_HTTP only; set observability.transport",
        ),
        "https" if transport == OtlpTransport::Grpc => refuse(
            "https is spoken over OTLP_TRANSPORT_HTTP only; set observability.transport, and the collector's port for it (4318)",
        ),
        "http" | "https" => Ok(format!("{scheme}://{rest}")),
        _ => refuse("only http and https are spoken"),
    }
}

fn metrics_config(settings: &Settings) -> OtlpMetricsConfig {
    let flag = |name: &str| settings.flag(&format!("observability.metrics.{name}_enabled"));
    let number = |name: &str| settings.number(&format!("observability.metrics.{name}")).unwrap_or_default();
    OtlpMetricsConfig {
        // A round without a pause would keep a core busy.
        interval_ms: number("collection_interval_ms").max(number("min_collection_interval_ms")).max(10),
        timeout_ms: number("export_timeout_ms").max(1),
        requests: flag("request_metrics"),
        request_latencies: flag("request_latency_histograms"),
        spills: flag("spill_metrics"),
        occupancy: flag("tier_occupancy_metrics"),
        route_labels: flag("route_labels"),
        tier_labels: flag("tier_labels"),
    }
}

fn tracing_config(settings: &Settings) -> TracingConfig {
    let word = |name: &str| settings.text(&format!("observability.tracing.{name}")).unwrap_or_default();
    let number = |name: &str| settings.number(&format!("observability.tracing.{name}"));
    let BatchConfig { queue_len, batch_len, delay_ms, timeout_ms } = BatchConfig::default();
    let len = |name: &str, default: usize| {
        number(name).map_or(default, |number| usize::try_from(number).unwrap_or(default)).max(1)
    };
    let queue_len = len("batch.max_queue_size", queue_len);
    TracingConfig {
        hint: match word("trace_hint").as_str() {
            "TRACE_HINT_ALWAYS" => TraceHint::Always,
            "TRACE_HINT_NEVER" => TraceHint::Never,
            _ => TraceHint::Default,
        },
        batch: BatchConfig {
            queue_len,
            batch_len: len("batch.max_export_batch_size", batch_len).min(queue_len),
            delay_ms: match word("processor").as_str() {
                "TRACE_PROCESSOR_SIMPLE" => SIMPLE_DELAY_MS,
                _ => number("batch.schedule_delay_ms").unwrap_or(delay_ms).max(1),
            },
            timeout_ms: number("batch.export_timeout_ms").unwrap_or(timeout_ms).max(1),
        },
        stage_spans: settings.flag("observability.tracing.stage_spans_enabled"),
        attributes: match word("attribute_level").as_str() {
            "ATTRIBUTES_MINIMAL" => AttributeLevel::Minimal,
            "ATTRIBUTES_VERBOSE" => AttributeLevel::Verbose,
            _ => AttributeLevel::Standard,
        },
        latency_budget_ms: number("latency_budget_ms").filter(|budget| *budget > 0),
    }
}
