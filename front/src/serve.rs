//! Serves gRPC on one thread until a signal comes, then ends everything in order (see [`crate::shutdown`]).
//!
//! One current-thread tokio runtime: decoding, encoding and sockets for all connections. More threads were measured
//! to be no faster (FACTS.md, tonic unary echo), and the shards have their own.

use std::net::TcpListener;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use payload_reactor::topology;
use payload_types::limits;
use payload_wire::pb::operations::v1::payload_batch_service_server::PayloadBatchServiceServer;
use payload_wire::pb::operations::v1::payload_operations_service_server::PayloadOperationsServiceServer;
use payload_wire::pb::operations::v1::payload_records_service_server::PayloadRecordsServiceServer;
use payload_wire::pb::services::v1::payload_admin_service_server::PayloadAdminServiceServer;
use payload_wire::pb::services::v1::payload_catalog_service_server::PayloadCatalogServiceServer;
use payload_wire::pb::services::v1::payload_data_service_server::PayloadDataServiceServer;
use payload_wire::pb::services::v1::payload_stream_service_server::PayloadStreamServiceServer;
use tokio::sync::oneshot;
use tonic::server::NamedService;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::access::{Guards, reload};
use crate::accounting::Accounting;
use crate::admission::Gate;
use crate::bootstrap::Node;
use crate::config::Config;
use crate::dispatch::{Dispatch, Other, Services};
use crate::incoming::{Connections, Incoming, Patience};
use crate::locate::Places;
use crate::metrics::scrape::Sources;
use crate::metrics::{Metrics, Readiness};
use crate::records::{Records, holds, look};
use crate::services::{
    AdminService, BatchService, CatalogService, DataService, OperationsService, RecordsService, Router,
    StreamService,
};
use crate::shutdown::{self, Budget, Signals};
use crate::systemd::Notifier;
use crate::tally::Tally;

/// HTTP/2 windows. The default of 64 KiB makes a 4 MiB message wait for 64 window updates; one stream may fill a
/// quarter of its connection's window.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// See [`STREAM_WINDOW_BYTES`]. What an unread connection can make the server hold.
const CONNECTION_WINDOW_BYTES: u32 = limits::MESSAGE_BYTES_MAX as u32;

/// A connection that answers no ping for `PING_TIMEOUT` is closed. One ping a minute keeps idle sessions free.
const PING_INTERVAL: Duration = Duration::from_secs(60);
/// See [`PING_INTERVAL`].
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// How often the end of the calls in flight is looked for while stopping.
const DRAIN_LOOK: Duration = Duration::from_millis(5);

/// The front's own limits, from the configuration.
#[derive(Clone, Copy, Debug)]
pub struct FrontLimits {
    /// `limits.requests_in_flight`.
    pub requests_in_flight: usize,
    /// `limits.connections`.
    pub connections: usize,
    /// `limits.streams_per_connection`.
    pub streams_per_connection: u32,
    /// `limits.header_bytes`.
    pub header_bytes: u32,
    /// How long a client may take to begin and to read.
    pub patience: Patience,
    /// `limits.allocate_wait` in milliseconds.
    pub allocate_wait_ms: u64,
    /// How long stopping may take.
    pub stop: Budget,
}

impl FrontLimits {
    /// What the configuration says.
    pub fn of(config: &Config) -> Self {
        Self {
            requests_in_flight: config.limits.requests_in_flight,
            connections: config.limits.connections,
            streams_per_connection: config.limits.streams_per_connection,
            header_bytes: config.limits.header_bytes,
            patience: Patience {
                handshake: Duration::from_millis(config.limits.handshake_timeout_ms),
                write_stall: Duration::from_millis(config.limits.write_stall_ms),
            },
            allocate_wait_ms: config.limits.allocate_wait_ms,
            stop: Budget::of(config.shutdown.drain_timeout_ms, config.shutdown.spill_budget_ms),
        }
    }
}

/// The sockets to serve.
#[derive(Debug)]
pub struct Listeners {
    /// gRPC.
    pub grpc: TcpListener,
    /// /metrics, where it is wanted.
    pub metrics: Option<TcpListener>,
}

/// Serves until a signal comes, and returns when everything has ended. The calling thread becomes the front's; it is
/// kept on `cores` where they are given.
///
/// Prints one line to standard output, `payload-manager listening on ADDRESS`, once calls are answered.
///
/// # Errors
/// When the runtime cannot be made or the listening socket breaks.
pub fn run(
    listeners: Listeners,
    node: Node,
    front: FrontLimits,
    guards: Guards,
    cores: Option<&[usize]>,
) -> anyhow::Result<()> {
    if let Some(cores) = cores
        && let Err(error) = topology::pin_current_thread(cores)
    {
        tracing::warn!(?cores, %error, "the front's thread could not be kept on its cores; the kernel places it");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the front's runtime could not be started")?;
    let outcome = runtime.block_on(serve(listeners, node, front, guards));
    // Connections that did not close in time are dropped here.
    runtime.shutdown_timeout(shutdown::FLUSH);
    outcome
}

// Long because: the order of the steps is the point, and each step is one statement.
async fn serve(
    listeners: Listeners,
    mut node: Node,
    front: FrontLimits,
    guards: Guards,
) -> anyhow::Result<()> {
    let mut signals = Signals::install().context("SIGTERM and SIGINT could not be taken over")?;
    reload::start(guards.clone()).context("SIGHUP could not be taken over")?;
    let Listeners { grpc: listener, metrics } = listeners;
    listener.set_nonblocking(true).context("the listening socket refused non-blocking mode")?;
    let listener =
        tokio::net::TcpListener::from_std(listener).context("the listening socket cannot be watched")?;
    let address = listener.local_addr().context("the listening socket has no address")?;

    let gate = Gate::new(front.requests_in_flight);
    let connections = Connections::default();
    let places =
        Places { locator: node.locator(), node: node.own(), objects: node.objects(), gpu: node.gpu() };
    let router =
        Arc::new(Router::new(node.handle(), places, node.cluster(), node.objects(), front.allocate_wait_ms));
    let records = Arc::new(node.records(Arc::clone(&router)));
    drop(tokio::spawn(holds::run(Arc::clone(&records))));
    if router.cluster.is_some() {
        drop(tokio::spawn(look::run(Arc::clone(&records))));
    }
    let (health, others) = health_and_reflection().await?;
    let accounting = Arc::new(Accounting::new(Arc::clone(&router), &node, connections.clone()));
    let operations = OperationsService::new(
        Arc::clone(&router),
        connections.clone(),
        address.port(),
        node.info(),
        node.sessions().zip(node.direct()),
    );
    let telemetry = node.telemetry();
    let (tally, readiness) = (Tally::traced(telemetry.tracer()), Readiness::default());
    let sources = Arc::new(Sources {
        accounting: Arc::clone(&accounting),
        reactor: node.handle(),
        tally: tally.clone(),
        gate: gate.clone(),
        flights: node.flights(),
        telemetry: Arc::clone(&telemetry),
    });
    let exporter = telemetry.export(Arc::clone(&sources))?;
    let notifier = Notifier::from_environment().map(Arc::new);
    if let Some(notifier) = &notifier {
        let alive = Arc::clone(notifier).keep_alive(Arc::clone(&sources), readiness.clone());
        drop(tokio::spawn(alive));
    }
    if let Some(listener) = metrics {
        metrics_start(Metrics { sources, readiness: readiness.clone() }, listener);
    }
    let dispatch = Dispatch::new(
        services(&router, &records, accounting, operations, others, gate.clone()),
        guards.access.clone(),
        tally,
    );
    let (stop, stopped) = oneshot::channel::<()>();
    let mut serving = pin!(
        Server::builder()
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_concurrent_streams(front.streams_per_connection)
            .http2_max_header_list_size(front.header_bytes)
            .http2_keepalive_interval(Some(PING_INTERVAL))
            .http2_keepalive_timeout(Some(PING_TIMEOUT))
            .serve_with_incoming_shutdown(
                dispatch,
                Incoming::new(
                    listener,
                    Gate::new(front.connections),
                    connections.clone(),
                    guards.tls.clone(),
                    front.patience,
                ),
                async { drop(stopped.await) },
            )
    );

    readiness.set(true);
    announce(&address.to_string());
    if let Some(notifier) = &notifier {
        notifier.ready(&address.to_string());
    }
    tokio::select! {
        ended = &mut serving => {
            ended.context("the gRPC server ended by itself")?;
            anyhow::bail!("the gRPC server ended by itself; its listening socket is gone");
        }
        kind = signals.next() => tracing::info!(signal = kind.as_raw_value(), "stopping"),
    }

    readiness.set(false);
    if let Some(notifier) = &notifier {
        notifier.stopping();
    }
    shutdown::watchdog_start(front.stop.exit + front.stop.spill);
    tokio::spawn(signals.exit_at_next());
    health_set(&health, ServingStatus::NotServing).await;
    node.refuse_sessions();
    // Subscriptions would keep their connections open for ever.
    records.hub().stop();
    // The server may have ended meanwhile; then nobody needs to be told.
    let _ended = stop.send(());
    let mut closed = false;
    let drained = async {
        while gate.taken() > 0 {
            tokio::time::sleep(DRAIN_LOOK).await;
        }
    };
    tokio::select! {
        _ = &mut serving => closed = true,
        outcome = tokio::time::timeout(front.stop.calls, drained) => {
            if outcome.is_err() {
                tracing::info!(in_flight = gate.taken(), "calls still in flight are answered UNAVAILABLE");
            }
        }
    }
    shutdown::slabs_save(&router, front.stop.spill).await;
    // The shards answer what still waits; the runtime goes on sending meanwhile.
    let stopping = tokio::task::spawn_blocking(move || node.stop());
    stopping.await.context("stopping the node failed")?;
    if !closed {
        drop(tokio::time::timeout(shutdown::FLUSH, &mut serving).await);
    }
    if let Some(exporter) = exporter {
        // What the last calls did is told, too.
        drop(tokio::task::spawn_blocking(move || exporter.stop()).await);
    }
    tracing::info!("stopped");
    Ok(())
}

fn services(
    router: &Arc<Router>,
    records: &Arc<Records>,
    accounting: Arc<Accounting>,
    operations: OperationsService,
    others: Vec<Other>,
    gate: Gate,
) -> Services {
    let max = limits::MESSAGE_BYTES_MAX;
    Services {
        data: PayloadDataServiceServer::new(DataService::new(Arc::clone(router)))
            .max_decoding_message_size(max)
            .max_encoding_message_size(max),
        catalog: PayloadCatalogServiceServer::new(CatalogService::new(
            Arc::clone(router),
            Arc::clone(records),
        ))
        .max_decoding_message_size(max)
        .max_encoding_message_size(max),
        admin: PayloadAdminServiceServer::new(AdminService::new(accounting))
            .max_decoding_message_size(max)
            .max_encoding_message_size(max),
        stream: PayloadStreamServiceServer::new(StreamService::new(Arc::clone(records)))
            .max_decoding_message_size(max)
            .max_encoding_message_size(max),
        operations: PayloadOperationsServiceServer::new(operations)
            .max_decoding_message_size(max)
            .max_encoding_message_size(max),
        batch: PayloadBatchServiceServer::new(BatchService::new(Arc::clone(router), Arc::clone(records)))
            .max_decoding_message_size(max)
            .max_encoding_message_size(max),
        records: PayloadRecordsServiceServer::new(RecordsService::new(Arc::clone(records)))
            .max_decoding_message_size(max)
            .max_encoding_message_size(max),
        others,
        gate,
    }
}

/// Serves /metrics for as long as the runtime lives.
fn metrics_start(metrics: Metrics, listener: TcpListener) {
    if let Ok(address) = listener.local_addr() {
        tracing::info!(%address, "serving /metrics");
    }
    drop(tokio::spawn(async move {
        if let Err(error) = Arc::new(metrics).serve(listener).await {
            tracing::error!(%error, "/metrics is not served");
        }
    }));
}

/// The services that health speaks of; the empty name is the whole server.
const HEALTH_NAMES: [&str; 8] = [
    "",
    <PayloadCatalogServiceServer<CatalogService> as NamedService>::NAME,
    <PayloadDataServiceServer<DataService> as NamedService>::NAME,
    <PayloadAdminServiceServer<AdminService> as NamedService>::NAME,
    <PayloadStreamServiceServer<StreamService> as NamedService>::NAME,
    <PayloadOperationsServiceServer<OperationsService> as NamedService>::NAME,
    <PayloadBatchServiceServer<BatchService> as NamedService>::NAME,
    <PayloadRecordsServiceServer<RecordsService> as NamedService>::NAME,
];

async fn health_set(health: &HealthReporter, status: ServingStatus) {
    for name in HEALTH_NAMES {
        health.set_service_status(name, status).await;
    }
}

async fn health_and_reflection() -> anyhow::Result<(HealthReporter, Vec<Other>)> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health_set(&health, ServingStatus::Serving).await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(payload_wire::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let unreadable = "the contract's descriptors cannot be reflected";
    let others = vec![
        Other::new(health_service),
        Other::new(reflection().build_v1().context(unreadable)?),
        Other::new(reflection().build_v1alpha().context(unreadable)?),
    ];
    Ok((health, others))
}

/// One line that people read and the demo, the tests and scripts parse.
fn announce(address: &str) {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    // A closed standard output is no reason not to serve.
    drop(writeln!(out, "payload-manager listening on {address}").and_then(|()| out.flush()));
    tracing::info!(address, "serving");
}
