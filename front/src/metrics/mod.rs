//! `/metrics` on `observability.metrics_address`: plain HTTP/1.1, for Prometheus and whoever else scrapes.
//!
//! ```text
//! listener --at most CONNECTIONS_MAX--> hyper (http1) --GET /metrics--> Accounting::gather --> figures --> text
//! ```
//! Runs on the front's own thread, beside gRPC. A scrape asks every shard once, as Stats does. Without an address there
//! is no listener. No TLS and no access control: it tells figures, never ids, names or bytes.

mod figures;
mod text;

use std::convert::Infallible;
use std::net::TcpListener as StdListener;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming as Body;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use payload_reactor::ReactorHandle;
use tokio::net::TcpListener;

use crate::accounting::Accounting;
use crate::admission::{Gate, Permit};
use crate::tally::Tally;

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

/// Where the figures come from.
pub struct Metrics {
    /// As for Stats.
    pub accounting: Arc<Accounting>,
    /// Lanes and stalls.
    pub reactor: ReactorHandle,
    /// Calls answered.
    pub tally: Tally,
    /// Calls in flight.
    pub gate: Gate,
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
        if request.uri().path() != "/metrics" {
            return plain(StatusCode::NOT_FOUND, "only /metrics is here\n");
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut refusal = plain(StatusCode::METHOD_NOT_ALLOWED, "GET it\n");
            refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refusal;
        }
        let gathered = tokio::time::timeout(GATHER_TIMEOUT, self.accounting.gather(None)).await;
        match gathered {
            Ok(Ok(stats)) => {
                let text = figures::render(&stats, &self.reactor, &self.tally, self.gate.taken());
                plain(StatusCode::OK, text)
            }
            Ok(Err(error)) => plain(StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
            Err(_late) => plain(StatusCode::SERVICE_UNAVAILABLE, "the shards did not answer in time\n"),
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
