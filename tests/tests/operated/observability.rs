//! What monitors see of a real server: health, shards, every metric that alerts and dashboards name, OTLP over gRPC and
//! HTTP to a receiver of the test's own, traces from the caller to the disk, endpoints that are not there, and systemd.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::metrics::v1::{Metric, metric};
use opentelemetry_proto::tonic::trace::v1::Span;
use payload_tests::server::{PATIENCE, Place, Server, eventually};
use payload_tests::sys::{self, Signal};
use payload_tests::v1::{DISK, OBJECT, RAM, V1, content, id, spilled, spilling};
use prost::Message;
use serde_json::Value;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::{Request, Response, Status};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

/// Asks as curl would, and gives the status and the body.
fn get(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("somebody listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").expect("sent");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, body.to_owned())
}

async fn metrics_address(server: &Server) -> String {
    eventually("the server says where /metrics is", async || {
        let log = server.log();
        let line = log.lines().find(|line| line.contains("serving /metrics"))?;
        Some(line.split("address=").nth(1)?.split_whitespace().next()?.to_owned())
    })
    .await
}

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(path)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(deploy(path)).unwrap_or_else(|error| panic!("deploy/{path}: {error}"))
}

/// The metrics that a file's queries name.
fn names_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|symbol: char| !(symbol.is_ascii_alphanumeric() || symbol == '_'));
    let ours = words.filter(|word| word.starts_with("payload_"));
    ours.map(str::to_owned).collect()
}

/// The `expr` of every alert, and nothing else of the file.
fn alert_queries() -> String {
    let rules: serde_yaml_ng::Value = serde_yaml_ng::from_str(&read("prometheus/alerts.yaml")).expect("YAML");
    let rules = rules["groups"][0]["rules"].as_sequence().expect("rules").clone();
    assert!(rules.len() > 10, "{}", rules.len());
    let mut queries = String::new();
    for rule in rules {
        assert!(rule["annotations"]["action"].is_string(), "{rule:?}: what shall somebody do?");
        queries += rule["expr"].as_str().expect("a query");
        queries += "\n";
    }
    queries
}

/// The `expr` of every panel.
fn dashboard_queries() -> String {
    let dashboard: Value = serde_json::from_str(&read("grafana/payload-manager.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let queries: Vec<&str> = targets.map(|target| target["expr"].as_str().expect("a query")).collect();
    assert!(queries.len() > 20, "{}", queries.len());
    queries.join("\n")
}

/// One in which every part has something to tell: all tiers, moves, an export.
async fn busy(place: &Place) -> (Server, V1, String) {
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let payload = id(&v1.put(RAM, &content(3, 5_000)).await);
    let _lease = v1.lease(&payload).await.expect("leased");
    let moved = id(&v1.put(RAM, &content(4, 5_000)).await);
    spilled(v1.spill_to(&moved, DISK).await, DISK);
    spilled(v1.spill_to(&moved, OBJECT).await, OBJECT);
    let metrics = metrics_address(&server).await;
    (server, v1, metrics)
}

#[tokio::test]
async fn given_alerts_and_a_dashboard_when_compared_with_a_real_server_then_each_metric_is_exported() {
    let objects = tempfile::tempdir().expect("a directory");
    let place = Place::new()
        .with("OBSERVABILITY__METRICS_ADDRESS", "127.0.0.1:0")
        .with("OBSERVABILITY__TRACING_ENABLED", "true")
        .with("OBSERVABILITY__OTLP_ENDPOINT", "127.0.0.1:1")
        .with("STORAGE__DISK__CAPACITY_BYTES", "256MiB")
        .with("STORAGE__OBJECT__ROOT_PATH", &objects.path().display().to_string());
    let (_server, _v1, metrics) = busy(&place).await;
    let (status, body) = get(&metrics, "/metrics");
    assert_eq!(status, 200);
    let exported: BTreeSet<&str> = body
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(['{', ' ']).next())
        .collect();
    let lacks = |text: &str| {
        let names = names_in(text);
        assert!(!names.is_empty());
        names.into_iter().filter(|name| !exported.contains(name.as_str())).collect::<Vec<_>>()
    };
    assert_eq!(lacks(&alert_queries()), Vec::<String>::new(), "alerts ask for what is not exported");
    assert_eq!(
        lacks(&dashboard_queries()),
        Vec::<String>::new(),
        "the dashboard asks for what is not exported"
    );
    assert_eq!(
        lacks("rate(payload_request_counts[5m])"),
        ["payload_request_counts"],
        "a misspelt one is found"
    );

    for series in [
        "payload_request_count{route=\"AllocatePayload\",status=\"OK\"} 2",
        "payload_request_latency_ms_count{route=\"AllocatePayload\"} 2",
        "payload_spill_duration_ms_count{from=\"ram\",to=\"disk\"} 1",
        "payload_spill_duration_ms_count{from=\"disk\",to=\"object\"} 1",
        "payload_manager_leases 1",
    ] {
        assert!(body.lines().any(|line| line == series), "{series} in\n{body}");
    }
    // What was moved is free once a driver has proven that nobody has it open.
    eventually("RAM holds what is leased", async || {
        let (_, body) = get(&metrics, "/metrics");
        body.lines().any(|line| line == "payload_tier_occupancy_bytes{tier=\"ram\"} 8192").then_some(())
    })
    .await;
}

#[tokio::test]
async fn given_a_server_when_asked_how_it_is_then_health_readiness_and_shards_answer() {
    let place = Place::new().with("OBSERVABILITY__METRICS_ADDRESS", "127.0.0.1:0");
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let payload = id(&v1.put(RAM, &content(5, 5_000)).await);
    let _lease = v1.lease(&payload).await.expect("leased");
    let metrics = metrics_address(&server).await;
    assert_eq!(get(&metrics, "/healthz").0, 200);
    assert_eq!(get(&metrics, "/readyz").0, 200);
    let (status, body) = get(&metrics, "/debug/shards");
    assert_eq!(status, 200);
    let node: Value = serde_json::from_str(&body).expect("JSON");
    let shards = node["shards"].as_array().expect("shards");
    assert_eq!(shards.len(), 2);
    let leases = |shard: &Value| shard["slots"]["leases"]["taken"].as_u64().expect("a number");
    assert_eq!(shards.iter().map(leases).sum::<u64>(), 1);
    for shard in shards {
        assert_eq!(shard["queues"]["requests"]["limit"].as_u64(), Some(1024));
        assert!(shard["turns"]["count"].as_u64() > Some(0) && shard["turns"]["longest"].is_array());
    }
    assert!(node["catalog"]["groups"].as_u64() > Some(0), "the commit was one: {body}");
}

/// What a collector was sent.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Collected>>);

#[derive(Default)]
struct Collected {
    spans: Vec<Span>,
    metrics: Vec<Metric>,
    resource: BTreeMap<String, String>,
}

impl Collector {
    fn take_spans(&self, request: ExportTraceServiceRequest) {
        let mut collected = self.0.lock().expect("nobody panicked");
        for resource in request.resource_spans {
            let attributes = resource.resource.expect("who it is").attributes;
            collected
                .resource
                .extend(attributes.into_iter().map(|pair| (pair.key, format!("{:?}", pair.value))));
            collected.spans.extend(resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
        }
    }

    fn take_metrics(&self, request: ExportMetricsServiceRequest) {
        let scopes = request.resource_metrics.into_iter().flat_map(|resource| resource.scope_metrics);
        let metrics = scopes.flat_map(|scope| scope.metrics);
        self.0.lock().expect("nobody panicked").metrics.extend(metrics);
    }

    /// The spans of the test's own trace, once there are those that it waits for.
    async fn trace(&self, names: &[&str]) -> Vec<Span> {
        eventually("the spans arrive", async || {
            let collected = self.0.lock().expect("nobody panicked");
            let ours = collected.spans.iter().filter(|span| hex(&span.trace_id) == TRACE);
            let ours: Vec<Span> = ours.cloned().collect();
            names.iter().all(|name| ours.iter().any(|span| span.name == *name)).then_some(ours)
        })
        .await
    }

    async fn metric(&self, name: &str) -> Metric {
        eventually("the metric arrives", async || {
            let collected = self.0.lock().expect("nobody panicked");
            collected.metrics.iter().rev().find(|metric| metric.name == name).cloned()
        })
        .await
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.take_spans(request.into_inner());
        Ok(Response::new(Default::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Collector {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        self.take_metrics(request.into_inner());
        Ok(Response::new(Default::default()))
    }
}

/// Both of a collector's services, by their paths.
#[derive(Clone)]
struct Services {
    traces: TraceServiceServer<Collector>,
    metrics: MetricsServiceServer<Collector>,
}

impl Service<http::Request<Body>> for Services {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<http::Response<Body>, Infallible>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        match request.uri().path() {
            path if path.contains("TraceService") => self.traces.call(request),
            _ => self.metrics.call(request),
        }
    }
}

fn exporting(endpoint: &str, transport: &str) -> Place {
    Place::new()
        .with("OBSERVABILITY__OTLP_ENDPOINT", endpoint)
        .with("OBSERVABILITY__TRANSPORT", transport)
        .with("OBSERVABILITY__TRACING_ENABLED", "true")
        .with("OBSERVABILITY__TRACING__PROCESSOR", "TRACE_PROCESSOR_SIMPLE")
        .with("OBSERVABILITY__METRICS_ENABLED", "true")
        .with("OBSERVABILITY__METRICS__MIN_COLLECTION_INTERVAL_MS", "50")
        .with("OBSERVABILITY__METRICS__COLLECTION_INTERVAL_MS", "100")
}

/// Spills a payload in a call of the trace that the test knows.
async fn spill_traced(v1: &V1) {
    let payload = id(&v1.put(RAM, &content(6, 5_000)).await);
    let mut request = Request::new(spilling(&payload, DISK));
    let parent = format!("00-{TRACE}-{CALLER}-01");
    request.metadata_mut().insert("traceparent", parent.parse().expect("a header"));
    let answer = v1.catalog().spill(request).await.expect("spilled").into_inner();
    assert!(answer.results.iter().all(|result| result.ok), "{answer:?}");
}

/// The caller's span, the call, the shard, and what the shard waited for, are one tree.
fn is_one_tree(spans: &[Span]) {
    let one = |name: &str| spans.iter().find(|span| span.name == name).expect("waited for");
    let (call, shard) = (one("Spill"), one("shard"));
    assert_eq!(hex(&call.parent_span_id), CALLER);
    assert_eq!(shard.parent_span_id, call.span_id);
    for work in ["copy RAM to DISK", "catalog"].map(one) {
        assert_eq!(work.parent_span_id, shard.span_id, "{}", work.name);
        assert!(work.start_time_unix_nano >= shard.start_time_unix_nano);
        assert!(work.end_time_unix_nano <= shard.end_time_unix_nano && work.status.is_none());
    }
    assert!(shard.attributes.iter().any(|pair| pair.key == "payload.id"), "{shard:?}");
}

#[tokio::test]
async fn given_a_collector_over_grpc_when_a_traced_call_comes_then_its_spans_and_the_metrics_arrive() {
    let collector = Collector::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let services = Services {
        traces: TraceServiceServer::new(collector.clone()),
        metrics: MetricsServiceServer::new(collector.clone()),
    };
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    drop(tokio::spawn(tonic::transport::Server::builder().serve_with_incoming(services, incoming)));
    let place = exporting(&address.to_string(), "OTLP_TRANSPORT_GRPC");
    let server = place.start();
    let v1 = V1::connect(&server).await;
    spill_traced(&v1).await;
    is_one_tree(&collector.trace(&["Spill", "shard", "copy RAM to DISK", "catalog"]).await);
    let metric = collector.metric("payload.spill.duration_ms").await;
    let Some(metric::Data::Histogram(histogram)) = metric.data else { panic!("{metric:?}") };
    assert_eq!((histogram.data_points[0].count, metric.unit.as_str()), (1, "ms"));
    let turns = collector.metric("payload_manager_shard_turns_total").await;
    assert!(
        matches!(turns.data, Some(metric::Data::Sum(sum)) if sum.is_monotonic && sum.data_points.len() == 2)
    );
    let resource = collector.0.lock().expect("nobody panicked").resource.clone();
    assert!(resource["service.name"].contains("payload-manager"), "{resource:?}");
}

/// Serves OTLP over HTTP as far as a client of it needs: one request a connection, or several.
fn http_collector(collector: Collector) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let collector = collector.clone();
            std::thread::spawn(move || while http_request(&stream, &collector).is_some() {});
        }
    });
    address
}

fn http_request(mut stream: &TcpStream, collector: &Collector) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).expect("a head").to_ascii_lowercase();
    assert!(head.contains("content-type: application/x-protobuf"), "{head}");
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
    let mut body = vec![0; length.parse().expect("a number")];
    stream.read_exact(&mut body).ok()?;
    match head.split(' ').nth(1).expect("a path") {
        "/v1/traces" => collector.take_spans(Message::decode(&body[..]).expect("OTLP")),
        "/v1/metrics" => collector.take_metrics(Message::decode(&body[..]).expect("OTLP")),
        path => panic!("{path} is none of OTLP's"),
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").ok()
}

#[tokio::test]
async fn given_a_collector_over_http_when_a_traced_call_comes_then_its_spans_and_the_metrics_arrive() {
    let collector = Collector::default();
    let address = http_collector(collector.clone());
    let place = exporting(&address, "OTLP_TRANSPORT_HTTP")
        .with("OBSERVABILITY__METRICS__ROUTE_LABELS_ENABLED", "false")
        .with("LOGGING__LEVEL", "debug");
    let server = place.start();
    let v1 = V1::connect(&server).await;
    spill_traced(&v1).await;
    is_one_tree(&collector.trace(&["Spill", "shard", "copy RAM to DISK", "catalog"]).await);
    let metric = collector.metric("payload.request.latency_ms").await;
    let Some(metric::Data::Histogram(histogram)) = metric.data else { panic!("{metric:?}") };
    assert_eq!(histogram.data_points.len(), 1, "all routes together");
    assert!(histogram.data_points[0].attributes.is_empty() && histogram.data_points[0].count >= 2);
}

#[tokio::test]
async fn given_an_endpoint_that_is_not_there_when_calls_are_traced_then_they_are_answered_and_spans_are_counted_as_dropped()
 {
    // Somebody who accepts connections and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = silent.local_addr().expect("bound").to_string();
    let place = exporting(&address, "OTLP_TRANSPORT_GRPC")
        .with("OBSERVABILITY__METRICS_ADDRESS", "127.0.0.1:0")
        .with("OBSERVABILITY__TRACING__BATCH__MAX_QUEUE_SIZE", "4")
        .with("OBSERVABILITY__TRACING__BATCH__EXPORT_TIMEOUT_MS", "100");
    let server = place.start();
    let v1 = V1::connect(&server).await;
    for _ in 0..40 {
        v1.stats().await.expect("answered all the same");
    }
    let metrics = metrics_address(&server).await;
    let dropped = |reason: &str| {
        let series = format!("payload_manager_otlp_dropped_total{{signal=\"spans\",reason=\"{reason}\"}} ");
        let (_, body) = get(&metrics, "/metrics");
        let line = body.lines().find_map(|line| line.strip_prefix(&series).map(str::to_owned));
        line.and_then(|count| count.parse::<u64>().ok()).expect("exported")
    };
    eventually("spans are dropped for both reasons", async || {
        v1.stats().await.expect("answered");
        (dropped("queue_full") > 0 && dropped("export_failed") > 0).then_some(())
    })
    .await;
    let warnings =
        server.log().lines().filter(|line| line.contains("OTLP endpoint cannot be reached")).count();
    assert_eq!(warnings, 1, "said once: {}", server.log());
    drop(silent);
}

#[tokio::test]
async fn given_a_manager_of_services_when_the_server_starts_lives_and_stops_then_it_is_told() {
    let place = Place::new();
    let path = place.path().join("notify");
    let manager = UnixDatagram::bind(&path).expect("bound");
    manager.set_read_timeout(Some(PATIENCE)).expect("set");
    let heard = |words: &str| {
        let mut buffer = [0; 512];
        loop {
            let length = manager.recv(&mut buffer).unwrap_or_else(|error| panic!("{words}: {error}"));
            if buffer[..length].starts_with(words.as_bytes()) {
                return;
            }
        }
    };
    let mut command = place.command();
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "200000");
    let mut child = command.stdout(std::process::Stdio::null()).spawn().expect("started");
    heard("READY=1");
    heard("WATCHDOG=1");
    heard("WATCHDOG=1");
    sys::signal(child.id(), Signal::Term).expect("it runs");
    heard("STOPPING=1");
    assert!(child.wait().is_ok_and(|status| status.success()));
}

#[test]
fn given_the_files_of_deploy_when_read_then_they_parse_and_belong_together() {
    for path in [
        "docker/compose.yaml",
        "docker/config.yaml",
        "systemd/config.yaml",
        "prometheus/prometheus.yaml",
        "grafana/provisioning/datasources/prometheus.yaml",
        "grafana/provisioning/dashboards/payload-manager.yaml",
    ] {
        let _: serde_yaml_ng::Value =
            serde_yaml_ng::from_str(&read(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    }
    let manifests = read("kubernetes/payload-manager.yaml");
    let kinds: Vec<String> = manifests
        .split("\n---\n")
        .map(|text| {
            let manifest: serde_yaml_ng::Value = serde_yaml_ng::from_str(text).expect("YAML");
            manifest["kind"].as_str().expect("a kind").to_owned()
        })
        .collect();
    assert_eq!(kinds, ["Namespace", "ServiceAccount", "ConfigMap", "DaemonSet", "Service"]);
    let profile: Value = serde_json::from_str(&read("seccomp.json")).expect("JSON");
    let calls = profile["syscalls"][0]["names"].as_array().expect("names");
    for call in ["io_uring_setup", "io_uring_enter", "memfd_create", "pidfd_open", "mbind"] {
        assert!(calls.iter().any(|name| name == call), "{call}");
    }
    let unit = read("systemd/payload-manager.service");
    for line in
        ["Type=notify", "NotifyAccess=main", "LimitMEMLOCK=infinity", "RuntimeDirectory=payload-manager"]
    {
        assert!(unit.lines().any(|other| other == line), "{line}");
    }
    let mut configs = vec![read("docker/config.yaml"), read("systemd/config.yaml")];
    let compose: serde_yaml_ng::Value = serde_yaml_ng::from_str(&read("docker/compose.yaml")).expect("YAML");
    configs.push(compose["configs"]["server"]["content"].as_str().expect("a configuration").to_owned());
    let map: serde_yaml_ng::Value =
        serde_yaml_ng::from_str(manifests.split("\n---\n").nth(2).expect("the ConfigMap")).expect("YAML");
    configs.push(map["data"]["config.yaml"].as_str().expect("a configuration").to_owned());
    for config in configs {
        is_taken(&config);
    }
}

/// The server takes this configuration, as far as it can be looked at without starting.
fn is_taken(config: &str) {
    let place = Place::new();
    let file = place.path().join("config.yaml");
    std::fs::write(&file, config).expect("written");
    let mut command = std::process::Command::new(payload_tests::server::program("payload-manager"));
    command.arg("--config").arg(&file).arg("--data-dir").arg(place.path()).arg("--check-config");
    let output = payload_tests::server::ended(command);
    assert!(output.status.success(), "{config}: {}", String::from_utf8_lossy(&output.stderr));
}
