//! Sends spans and metrics to `observability.otlp_endpoint`, from a thread of its own with a runtime of its own: an
//! endpoint that is slow, or not there, keeps nobody but this thread waiting.
//!
//! ```text
//! Tracer's queue --every schedule_delay, or once a batch waits--> batch --> send (gRPC or HTTP), once more if it fails
//! Sources::scrape --every collection_interval--> all metrics      --> send
//! ```
//! What cannot be sent is dropped and counted. The log says once that the endpoint fails, and once that it is back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context as _;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_client::MetricsServiceClient;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use prost::Message as _;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tonic::transport::{Channel, Endpoint};

use super::otlp::{self, Origin};
use super::tracer::{Span, Tracer, now_ns};
use crate::config::{BatchConfig, OtlpConfig, OtlpMetricsConfig, OtlpTransport};
use crate::metrics::scrape::Sources;
use crate::metrics::table;

/// How often the queue is looked at, so that a full batch does not wait for the schedule.
const LOOK: Duration = Duration::from_millis(50);

/// The pause before what could not be sent is sent once more.
const AGAIN: Duration = Duration::from_secs(1);

/// How long the last spans may take at a stop.
const FLUSH: Duration = Duration::from_secs(1);

/// What was sent and what was not, since the start.
#[derive(Debug, Default)]
pub struct Counts {
    spans_exported: AtomicU64,
    spans_failed: AtomicU64,
    metrics_exported: AtomicU64,
    metrics_failed: AtomicU64,
}

/// See [`Counts`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Exported {
    /// Spans that arrived.
    pub spans: u64,
    /// Spans that could not be sent.
    pub spans_failed: u64,
    /// Rounds of metrics that arrived.
    pub metrics: u64,
    /// Rounds of metrics that could not be sent.
    pub metrics_failed: u64,
}

impl Counts {
    /// Now.
    pub fn read(&self) -> Exported {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Exported {
            spans: count(&self.spans_exported),
            spans_failed: count(&self.spans_failed),
            metrics: count(&self.metrics_exported),
            metrics_failed: count(&self.metrics_failed),
        }
    }
}

/// The thread that sends.
#[derive(Debug)]
pub struct Exporter {
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Exporter {
    /// Starts it.
    ///
    /// # Errors
    /// When the endpoint is no URI, or the system refuses a thread. That nobody is there is no error.
    pub fn start(
        config: &OtlpConfig,
        origin: Origin,
        tracer: Option<Arc<Tracer>>,
        sources: Arc<Sources>,
        counts: Arc<Counts>,
    ) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("the runtime of the OTLP export could not be started")?;
        let link = {
            let _inside = runtime.enter();
            Link::new(config)?
        };
        let (stop, stopped) = watch::channel(false);
        let spans = config.tracing.map(|tracing| tracing.batch).zip(tracer);
        let metrics = config.metrics;
        let work = Work { link: Arc::new(link), origin, counts };
        let thread = std::thread::Builder::new()
            .name("pm-otlp".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    let spans = work.spans(spans, stopped.clone());
                    let metrics = work.metrics(metrics, sources, stopped);
                    tokio::join!(spans, metrics);
                });
            })
            .context("no thread for the OTLP export")?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Sends what waits, within a second, and ends. Blocks.
    pub fn stop(mut self) {
        let _gone_already = self.stop.send(true);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// Where it is sent to.
struct Link {
    wire: Wire,
    health: Health,
}

enum Wire {
    Grpc(Channel),
    Http { client: reqwest::Client, endpoint: String },
}

/// Says once that it fails, and once that it is back.
#[derive(Default)]
struct Health(AtomicU64);

impl Health {
    fn note(&self, sent: &Result<(), String>) {
        match sent {
            Ok(()) => {
                let failures = self.0.swap(0, Ordering::Relaxed);
                if failures > 0 {
                    tracing::info!(failures, "the OTLP endpoint takes spans and metrics again");
                }
            }
            Err(error) => {
                if self.0.fetch_add(1, Ordering::Relaxed) == 0 {
                    tracing::warn!(
                        %error,
                        "the OTLP endpoint cannot be reached or refuses; spans and metrics are dropped, and counted, until it is back (observability.otlp_endpoint)"
                    );
                }
            }
        }
    }
}

impl Link {
    fn new(config: &OtlpConfig) -> anyhow::Result<Self> {
        let endpoint = config.endpoint.0.clone();
        let wire = match config.transport {
            OtlpTransport::Grpc => {
                let endpoint = Endpoint::from_shared(endpoint).context(
                    "observability.otlp_endpoint is no address; write it like `http://collector:4317`",
                )?;
                Wire::Grpc(endpoint.connect_lazy())
            }
            OtlpTransport::Http => {
                // Whoever was first has installed it.
                let _installed = rustls::crypto::ring::default_provider().install_default();
                let client = reqwest::Client::builder()
                    .no_proxy()
                    .build()
                    .context("the OTLP export over HTTP could not be started")?;
                Wire::Http { client, endpoint }
            }
        };
        Ok(Self { wire, health: Health::default() })
    }

    async fn send_spans(&self, spans: ExportTraceServiceRequest, within: Duration) -> Result<(), String> {
        let sent = async {
            match &self.wire {
                Wire::Grpc(channel) => {
                    let sent = TraceServiceClient::new(channel.clone()).export(spans).await;
                    sent.map(drop).map_err(|status| said(&status))
                }
                Wire::Http { client, endpoint } => {
                    post(client, endpoint, "v1/traces", spans.encode_to_vec()).await
                }
            }
        };
        self.noted(timeout(within, sent).await.unwrap_or_else(|_late| Err(late(within))))
    }

    async fn send_metrics(
        &self,
        metrics: ExportMetricsServiceRequest,
        within: Duration,
    ) -> Result<(), String> {
        let sent = async {
            match &self.wire {
                Wire::Grpc(channel) => {
                    let sent = MetricsServiceClient::new(channel.clone()).export(metrics).await;
                    sent.map(drop).map_err(|status| said(&status))
                }
                Wire::Http { client, endpoint } => {
                    post(client, endpoint, "v1/metrics", metrics.encode_to_vec()).await
                }
            }
        };
        self.noted(timeout(within, sent).await.unwrap_or_else(|_late| Err(late(within))))
    }

    fn noted(&self, sent: Result<(), String>) -> Result<(), String> {
        self.health.note(&sent);
        sent
    }
}

fn said(status: &tonic::Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

fn late(within: Duration) -> String {
    format!("no answer within {} ms", within.as_millis())
}

async fn post(client: &reqwest::Client, endpoint: &str, path: &str, body: Vec<u8>) -> Result<(), String> {
    let request = client.post(format!("{endpoint}/{path}")).header("content-type", "application/x-protobuf");
    // An URL may hold a password, which the error must not show.
    let answer = request.body(body).send().await.map_err(|error| error.without_url().to_string())?;
    match answer.status() {
        status if status.is_success() => Ok(()),
        status => Err(format!("HTTP {status}")),
    }
}

/// Spans that were taken from the queue: counted in any case, also when the stop does not wait for their end.
struct Batch<'a> {
    counts: &'a Counts,
    len: u64,
    is_sent: bool,
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        let counter = if self.is_sent { &self.counts.spans_exported } else { &self.counts.spans_failed };
        counter.fetch_add(self.len, Ordering::Relaxed);
    }
}

struct Work {
    link: Arc<Link>,
    origin: Origin,
    counts: Arc<Counts>,
}

impl Work {
    async fn spans(&self, from: Option<(BatchConfig, Arc<Tracer>)>, mut stopped: watch::Receiver<bool>) {
        let Some((config, tracer)) = from else { return };
        let delay = Duration::from_millis(config.delay_ms);
        let within = Duration::from_millis(config.timeout_ms);
        let mut due = Instant::now() + delay;
        'serving: loop {
            tokio::select! {
                () = tokio::time::sleep_until(due.min(Instant::now() + LOOK)) => {}
                _ = stopped.changed() => break,
            }
            if Instant::now() < due && tracer.len() < config.batch_len {
                continue;
            }
            due = Instant::now() + delay;
            while !tracer.is_empty() {
                tokio::select! {
                    () = self.send_batch(&tracer, config.batch_len, within) => {}
                    // What is under way is given up; the rest is flushed below.
                    _ = stopped.changed() => break 'serving,
                }
            }
        }
        let flush = async {
            while !tracer.is_empty() {
                self.send_batch(&tracer, config.batch_len, FLUSH).await;
            }
        };
        drop(timeout(FLUSH, flush).await);
    }

    async fn send_batch(&self, tracer: &Tracer, batch_len: usize, within: Duration) {
        let spans: Vec<Span> = std::iter::from_fn(|| tracer.pop()).take(batch_len).collect();
        let mut fate = Batch { counts: &self.counts, len: spans.len() as u64, is_sent: false };
        let request = otlp::traces(&self.origin, &spans);
        let mut sent = self.link.send_spans(request.clone(), within).await;
        if sent.is_err() {
            tokio::time::sleep(AGAIN).await;
            sent = self.link.send_spans(request, within).await;
        }
        fate.is_sent = sent.is_ok();
    }

    async fn metrics(
        &self,
        wanted: Option<OtlpMetricsConfig>,
        sources: Arc<Sources>,
        mut stopped: watch::Receiver<bool>,
    ) {
        let Some(wanted) = wanted else { return };
        let period = Duration::from_millis(wanted.interval_ms);
        let mut round = interval_at(Instant::now() + period, period);
        // After a round that took long, the next one comes a whole interval later.
        round.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = round.tick() => {}
                _ = stopped.changed() => return,
            }
            tokio::select! {
                () = self.send_metrics(wanted, &sources) => {}
                _ = stopped.changed() => return,
            }
        }
    }

    async fn send_metrics(&self, wanted: OtlpMetricsConfig, sources: &Sources) {
        // A server that stops answers nobody; its last figures are told by the round before.
        let Ok(scrape) = sources.scrape().await else { return };
        let request = otlp::metrics(&self.origin, wanted, now_ns(), table::collect(&scrape));
        let sent = self.link.send_metrics(request, Duration::from_millis(wanted.timeout_ms)).await;
        let counter = if sent.is_ok() { &self.counts.metrics_exported } else { &self.counts.metrics_failed };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}
