//! Spans: one for each call that is traced, one for each request to a shard within it, and one for whatever the shard
//! waited for: catalog, copies, storage.
//!
//! ```text
//! Dispatch: Tracer::begin -> Call --thread-local--> Router::post: Call::stage("shard") --by payload--> Flights: work
//!           Call::end ------------------------------------------------------------------> queue --> exporter
//! ```
//! Without tracing there is no [`Tracer`], and a call costs one look at an `Option`. With it, finished spans go into a
//! bounded queue; one that is full loses them, counted. Nobody ever waits. Work of a shard belongs to the request that
//! is under way for the same payload: a payload has one exclusive operation at a time.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crossbeam::queue::ArrayQueue;
use payload_types::PayloadId;
use tonic::Code;
use tonic::codegen::http::HeaderMap;

use super::context::{self, Ids, Parent, SpanId, TraceId};
use crate::config::{AttributeLevel, TraceHint, TracingConfig};
use crate::tally::code_name;

/// The header of W3C trace context, as gRPC metadata.
const TRACEPARENT: &str = "traceparent";

/// A span that has ended.
#[derive(Clone, PartialEq, Debug)]
pub struct Span {
    /// Its ids.
    pub ids: Ids,
    /// The span that it is part of.
    pub parent: Option<SpanId>,
    /// What was done.
    pub name: String,
    /// A call that came from outside.
    pub is_server: bool,
    /// Nanoseconds since 1970.
    pub start_ns: u64,
    /// Nanoseconds since 1970.
    pub end_ns: u64,
    /// What else there is to say.
    pub attributes: Vec<(&'static str, Attribute)>,
    /// It failed with this sentence.
    pub error: Option<String>,
}

/// See [`Span`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Attribute {
    /// Words.
    Text(String),
    /// A number.
    Number(i64),
    /// Yes or no.
    Flag(bool),
}

/// See the module. One a node.
#[derive(Debug)]
pub struct Tracer {
    config: TracingConfig,
    queue: ArrayQueue<Span>,
    dropped: AtomicU64,
    /// Requests under way, by the payload they are about.
    requests: Mutex<HashMap<PayloadId, Stage>>,
    /// How many those are: looked at without the lock.
    requests_len: AtomicUsize,
}

/// A call that is traced.
#[derive(Debug)]
pub struct Call {
    tracer: Arc<Tracer>,
    ids: Ids,
    parent: Option<SpanId>,
    rpc: &'static str,
    start_ns: u64,
}

/// Something that a call does.
#[derive(Clone, Debug)]
pub struct Stage {
    tracer: Arc<Tracer>,
    ids: Ids,
    parent: SpanId,
    start_ns: u64,
}

impl Tracer {
    /// Traces as configured.
    pub fn new(config: TracingConfig) -> Self {
        let queue = ArrayQueue::new(config.batch.queue_len);
        Self {
            config,
            queue,
            dropped: AtomicU64::new(0),
            requests: Mutex::default(),
            requests_len: AtomicUsize::new(0),
        }
    }

    /// A call of `rpc` that arrives now, if it is to be traced.
    pub fn begin(self: &Arc<Self>, rpc: &'static str, headers: &HeaderMap) -> Option<Arc<Call>> {
        let header = headers.get(TRACEPARENT).and_then(|header| header.to_str().ok());
        let parent = header.and_then(context::parent_of);
        let is_traced = match self.config.hint {
            TraceHint::Always => true,
            TraceHint::Never => false,
            // As the caller does; a call without a caller's trace begins one.
            TraceHint::Default => parent.is_none_or(|Parent { is_sampled, .. }| is_sampled),
        };
        is_traced.then(|| {
            let trace = parent.map_or_else(TraceId::random, |parent| parent.ids.trace);
            Arc::new(Call {
                tracer: Arc::clone(self),
                ids: Ids { trace, span: SpanId::random() },
                parent: parent.map(|parent| parent.ids.span),
                rpc,
                start_ns: now_ns(),
            })
        })
    }

    /// The next span that has ended.
    pub fn pop(&self) -> Option<Span> {
        self.queue.pop()
    }

    /// Spans that wait.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// True when none waits.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Spans that found the queue full, since the start.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// What is under way for this payload, if that is traced.
    pub fn stage_of(&self, payload: PayloadId) -> Option<Stage> {
        if self.requests_len.load(Ordering::Relaxed) == 0 || !self.config.stage_spans {
            return None;
        }
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests.get(&payload).cloned()
    }

    fn push(&self, span: Span) {
        if self.queue.push(span).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Call {
    /// Its ids.
    pub fn ids(&self) -> Ids {
        self.ids
    }

    /// It was answered.
    pub fn end(&self, code: Code) {
        let TracingConfig { attributes: level, latency_budget_ms, .. } = self.tracer.config;
        let end_ns = now_ns();
        let mut attributes = vec![
            ("rpc.method", Attribute::Text(self.rpc.to_owned())),
            ("rpc.grpc.status_code", Attribute::Number(code as i64)),
        ];
        if level != AttributeLevel::Minimal {
            attributes.push(("rpc.system", Attribute::Text("grpc".to_owned())));
        }
        let took = Duration::from_nanos(end_ns.saturating_sub(self.start_ns));
        if latency_budget_ms.is_some_and(|budget| took > Duration::from_millis(budget)) {
            attributes.push(("payload.latency_budget_exceeded", Attribute::Flag(true)));
        }
        self.tracer.push(Span {
            ids: self.ids,
            parent: self.parent,
            name: self.rpc.to_owned(),
            is_server: true,
            start_ns: self.start_ns,
            end_ns,
            attributes,
            error: (code != Code::Ok).then(|| code_name(code).to_owned()),
        });
    }

    /// Begins what this call asks a shard about `payload`. What drivers and the catalog do for that payload until its
    /// end belongs to it. `None`: stages are not wanted.
    pub fn ask(&self, payload: Option<PayloadId>) -> Option<Stage> {
        let tracer = &self.tracer;
        let stage = tracer.config.stage_spans.then(|| Stage {
            tracer: Arc::clone(tracer),
            ids: Ids { trace: self.ids.trace, span: SpanId::random() },
            parent: self.ids.span,
            start_ns: now_ns(),
        })?;
        if let Some(payload) = payload {
            let mut requests = tracer.requests.lock().unwrap_or_else(PoisonError::into_inner);
            // Of two about one payload the first has the operation, and the other waits for it.
            requests.entry(payload).or_insert_with(|| stage.clone());
            tracer.requests_len.store(requests.len(), Ordering::Relaxed);
        }
        Some(stage)
    }
}

impl Stage {
    /// Begins something within it.
    pub fn child(&self) -> Self {
        let ids = Ids { trace: self.ids.trace, span: SpanId::random() };
        Self { tracer: Arc::clone(&self.tracer), ids, parent: self.ids.span, start_ns: now_ns() }
    }

    /// The shard has answered.
    pub fn answered(self, shard: u16, payload: Option<PayloadId>, error: Option<String>) {
        if let Some(payload) = payload {
            let mut requests = self.tracer.requests.lock().unwrap_or_else(PoisonError::into_inner);
            if requests.get(&payload).is_some_and(|stage| stage.ids == self.ids) {
                requests.remove(&payload);
            }
            self.tracer.requests_len.store(requests.len(), Ordering::Relaxed);
        }
        let mut attributes = Vec::new();
        if self.tracer.config.attributes != AttributeLevel::Minimal {
            attributes.push(("payload.shard", Attribute::Number(i64::from(shard))));
            attributes.extend(payload.map(|payload| ("payload.id", Attribute::Text(payload.to_string()))));
        }
        self.end("shard".to_owned(), attributes, error);
    }

    /// It is over.
    pub fn end(self, name: String, attributes: Vec<(&'static str, Attribute)>, error: Option<String>) {
        let Self { tracer, ids, parent, start_ns } = self;
        let parent = Some(parent);
        tracer.push(Span {
            ids,
            parent,
            name,
            is_server: false,
            start_ns,
            end_ns: now_ns(),
            attributes,
            error,
        });
    }
}

/// Nanoseconds since 1970.
pub fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::BatchConfig;

    fn tracer(hint: TraceHint, queue_len: usize) -> Arc<Tracer> {
        let batch = BatchConfig { queue_len, ..BatchConfig::default() };
        Arc::new(Tracer::new(TracingConfig { hint, batch, stage_spans: true, ..TracingConfig::default() }))
    }

    fn headers(parent: &str) -> HeaderMap {
        HeaderMap::from_iter([(TRACEPARENT.parse().expect("a name"), parent.parse().expect("a value"))])
    }

    const SAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    const UNSAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";

    #[test]
    fn given_hints_when_calls_begin_then_they_are_traced_as_the_caller_does_or_always_or_never() {
        let traced = |hint, header: &str| tracer(hint, 8).begin("Spill", &headers(header)).is_some();
        assert!(traced(TraceHint::Default, SAMPLED) && !traced(TraceHint::Default, UNSAMPLED));
        assert!(traced(TraceHint::Default, "nonsense"), "it begins a trace of its own");
        assert!(traced(TraceHint::Always, UNSAMPLED) && !traced(TraceHint::Never, SAMPLED));
    }

    #[test]
    fn given_a_call_with_stages_when_it_ends_then_its_spans_are_one_tree_below_its_caller() {
        let tracer = tracer(TraceHint::Default, 8);
        let payload = PayloadId::mint(1 << 12, 7);
        let call = tracer.begin("Spill", &headers(SAMPLED)).expect("traced");
        let stage = call.ask(Some(payload)).expect("wanted");
        let work = tracer.stage_of(payload).expect("under way").child();
        work.end("copy".to_owned(), Vec::new(), None);
        stage.answered(3, Some(payload), Some("no".to_owned()));
        assert!(tracer.stage_of(payload).is_none(), "over");
        call.end(Code::NotFound);
        let spans: Vec<Span> = std::iter::from_fn(|| tracer.pop()).collect();
        let [copy, shard, server] = &spans[..] else { panic!("three: {spans:?}") };
        assert_eq!(server.parent.expect("the caller's").to_string(), "b7ad6b7169203331");
        assert_eq!((shard.parent, copy.parent), (Some(server.ids.span), Some(shard.ids.span)));
        assert!(spans.iter().all(|span| span.ids.trace == call.ids().trace && span.end_ns >= span.start_ns));
        assert_eq!((server.error.as_deref(), shard.error.as_deref()), (Some("NOT_FOUND"), Some("no")));
    }

    #[test]
    fn given_a_full_queue_when_spans_end_then_they_are_dropped_and_counted() {
        let tracer = tracer(TraceHint::Always, 2);
        for _ in 0..5 {
            tracer.begin("Stats", &HeaderMap::new()).expect("traced").end(Code::Ok);
        }
        assert_eq!((tracer.len(), tracer.dropped()), (2, 3));
    }
}
