//! Plain HTTP/1.1 on `observability.metrics_address`, for Prometheus, load balancers, Kubernetes and people with curl.
//!
//! ```text
//! GET /metrics       every metric of the table (`table/`)
//! GET /healthz       200 while the process serves HTTP; 503 when a shard does not answer
//! GET /readyz        200 while calls are taken; 503 before and while stopping
//! GET /debug/shards  JSON: each shard's queues, slots and longest turns, with what they handled
//! ```
//! Runs on the front's own thread, beside gRPC. A look asks every shard once, as Stats does. Without an address there
//! is no listener. No TLS and no access control: it tells figures, never ids, names or bytes.

pub mod debug;
pub mod histogram;
pub mod scrape;
pub mod table;
mod text;

use std::convert::Infallible;
use std::net::TcpListener as StdListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::body::Incoming as Body;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

use crate::admission::{Gate, Permit};
use scrape::{Scrape, Sources};

/// Scrapers of one node: a few, each with a connection or two. More are closed at once.
const CONNECTIONS_MAX: usize = 16;

/// A connection that sends no whole request head for so long is closed: an idle one, and one that dawdles. Prometheus
/// scrapes every minute or more often.
const HEAD_TIMEOUT: Duration = Duration::from_secs(120);

/// The longest request head that is read. The largest scrapers send less than 1 KiB.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// A scrape that the shards do not answer in time says so; Prometheus itself waits for 10 s.
const GATHER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long accepting rests after an error such as EMFILE.
const ACCEPT_REST: Duration = Duration::from_millis(50);

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Whether calls are taken: what `/readyz` says. Shared by its clones.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<AtomicBool>);

impl Readiness {
    /// From now on.
    pub fn set(&self, is_ready: bool) {
        self.0.store(is_ready, Ordering::Relaxed);
    }

    /// Now.
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What is served here.
pub struct Metrics {
    /// Where the figures come from.
    pub sources: Arc<Sources>,
    /// For `/readyz`.
    pub readiness: Readiness,
}

/// What can be asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Page {
    Metrics,
    Health,
    Ready,
    Shards,
}

impl Page {
    fn at(path: &str) -> Option<Self> {
        match path {
            "/metrics" => Some(Self::Metrics),
            "/healthz" => Some(Self::Health),
            "/readyz" => Some(Self::Ready),
            "/debug/shards" => Some(Self::Shards),
            _ => None,
        }
    }
}

impl Metrics {
    /// Serves until it is dropped.
    ///
    /// # Errors
    /// When the socket cannot be watched.
    pub async fn serve(self: Arc<Self>, listener: StdListener) -> std::io::Result<()> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let gate = Gate::new(CONNECTIONS_MAX);
        loop {
            match listener.accept().await {
                Ok((socket, peer)) => match gate.enter() {
                    Some(permit) => drop(tokio::spawn(connection(Arc::clone(&self), socket, permit))),
                    None => tracing::debug!(%peer, limit = CONNECTIONS_MAX, "a scraper too many; closed"),
                },
                Err(error) => {
                    tracing::warn!(%error, "accepting a scraper's connection failed; resting before the next try");
                    tokio::time::sleep(ACCEPT_REST).await;
                }
            }
        }
    }

    async fn answer(&self, request: &Request<Body>) -> Response<String> {
        let Some(page) = Page::at(request.uri().path()) else {
            return plain(StatusCode::NOT_FOUND, "here are /metrics, /healthz, /readyz and /debug/shards\n");
        };
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut refusal = plain(StatusCode::METHOD_NOT_ALLOWED, "GET it\n");
            refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refusal;
        }
        if page == Page::Ready {
            return match self.readiness.get() {
                true => plain(StatusCode::OK, "ready\n"),
                false => {
                    plain(StatusCode::SERVICE_UNAVAILABLE, "no calls are taken: the server starts or stops\n")
                }
            };
        }
        match tokio::time::timeout(GATHER_TIMEOUT, self.sources.scrape()).await {
            Ok(Ok(scrape)) => page.of(&scrape),
            Ok(Err(error)) => plain(StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
            Err(_late) => plain(StatusCode::SERVICE_UNAVAILABLE, "the shards did not answer in time\n"),
        }
    }
}

impl Page {
    fn of(self, scrape: &Scrape) -> Response<String> {
        match self {
            Self::Metrics => plain(StatusCode::OK, text::render(table::collect(scrape))),
            Self::Health | Self::Ready => plain(StatusCode::OK, "alive\n"),
            Self::Shards => {
                let mut response = plain(StatusCode::OK, debug::shards(scrape));
                response.headers_mut().insert(CONTENT_TYPE, JSON);
                response
            }
        }
    }
}

async fn connection(metrics: Arc<Metrics>, socket: tokio::net::TcpStream, _permit: Permit) {
    let service = service_fn(|request: Request<Body>| {
        let metrics = Arc::clone(&metrics);
        async move { Ok::<_, Infallible>(metrics.answer(&request).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(socket), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a scraper's connection ended");
    }
}

fn plain(status: StatusCode, body: impl Into<String>) -> Response<String> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, TEXT);
    response
}
