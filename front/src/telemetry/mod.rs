//! OpenTelemetry: traces and metrics over OTLP, as `observability.*` asks for them.
//!
//! ```text
//! context   ids, W3C trace context, the call that the front's thread works on
//! tracer    calls and their stages -> spans in a bounded queue
//! flights   what shards wait for: how long, and in which call
//! otlp      spans and metrics as OTLP messages
//! export    a thread that sends them
//! ```
//! Spans and batching are our own, and OTLP's messages and clients are `opentelemetry-proto`'s: metrics are the one table
//! that `/metrics` shows, and what is dropped is counted (docs/decisions/2026-11-23-observability.md).

pub mod context;
pub mod export;
pub mod flights;
pub mod otlp;
pub mod tracer;

use std::sync::Arc;

use payload_types::reply::ReplyResult;
use payload_types::request::Request;
use payload_types::{PayloadId, ShardIndex};

use crate::config::{Config, OtlpConfig};
use crate::metrics::scrape::Sources;
use export::{Counts, Exported, Exporter};
use otlp::Origin;
use tracer::{Stage, Tracer, now_ns};

/// A request to a shard, in a call that is traced.
pub struct Asked {
    stage: Stage,
    shard: ShardIndex,
    payload: Option<PayloadId>,
}

/// The call that this thread works on asks a shard; `None`: it is not traced, which costs one look.
pub fn asked(shard: ShardIndex, request: &Request) -> Option<Asked> {
    let call = context::current()?;
    let payload = request.routing_id();
    Some(Asked { stage: call.ask(payload)?, shard, payload })
}

impl Asked {
    /// The shard has answered.
    pub fn answered(self, result: &ReplyResult) {
        let error = result.as_ref().err().map(ToString::to_string);
        self.stage.answered(self.shard.0, self.payload, error);
    }
}

/// What a node tells OpenTelemetry; without `observability.*` nothing.
#[derive(Debug)]
pub struct Telemetry {
    config: Option<OtlpConfig>,
    origin: Origin,
    tracer: Option<Arc<Tracer>>,
    counts: Arc<Counts>,
}

/// What became of spans and metrics since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Fate {
    /// What was sent and what could not be.
    pub exported: Exported,
    /// Spans that found the queue full.
    pub spans_dropped: u64,
}

impl Telemetry {
    /// As configured.
    pub fn new(config: &Config) -> Self {
        let otlp = config.observability.otlp.clone();
        let tracing = otlp.as_ref().and_then(|otlp| otlp.tracing);
        Self {
            origin: Origin { node: config.node.name.clone(), started_ns: now_ns() },
            tracer: tracing.map(|tracing| Arc::new(Tracer::new(tracing))),
            counts: Arc::default(),
            config: otlp,
        }
    }

    /// Who traces calls; `None`: nobody.
    pub fn tracer(&self) -> Option<Arc<Tracer>> {
        self.tracer.clone()
    }

    /// What became of spans and metrics; `None`: nothing is exported.
    pub fn fate(&self) -> Option<Fate> {
        self.config.as_ref()?;
        let spans_dropped = self.tracer.as_ref().map_or(0, |tracer| tracer.dropped());
        Some(Fate { exported: self.counts.read(), spans_dropped })
    }

    /// Starts sending; `None`: nothing is exported.
    ///
    /// # Errors
    /// As [`Exporter::start`].
    pub fn export(&self, sources: Arc<Sources>) -> anyhow::Result<Option<Exporter>> {
        let start = |config| {
            Exporter::start(config, self.origin.clone(), self.tracer(), sources, Arc::clone(&self.counts))
        };
        self.config.as_ref().map(start).transpose()
    }
}
