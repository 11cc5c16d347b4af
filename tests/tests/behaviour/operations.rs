//! Our own operator's questions: the accounting of Stats, /metrics, ListHolders and ExplainPayload, and what payloadctl
//! makes of them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, ChildStdin, Command, Stdio};

use payload_tests::server::{PATIENCE, Place, Server, ended, eventually, program};
use payload_tests::v1::{DISK, RAM, V1, content, id, refused, spilled, stranger};
use payload_wire::pb::admin::v1::StatsResponse;
use payload_wire::pb::core::v1::PayloadId;
use payload_wire::pb::operations::v1 as pb;
use payload_wire::pb::operations::v1::payload_operations_service_client::PayloadOperationsServiceClient;
use serde_json::Value;
use tonic::transport::Channel;
use tonic::{Code, Response};

const PAGE: u64 = 4096;

struct Operations(PayloadOperationsServiceClient<Channel>);

impl Operations {
    fn of(v1: &V1) -> Self {
        Self(PayloadOperationsServiceClient::new(v1.channel()))
    }

    async fn holders(&self, id: &PayloadId) -> Result<pb::ListHoldersResponse, tonic::Status> {
        let request = pb::ListHoldersRequest { id: Some(id.clone()) };
        self.0.clone().list_holders(request).await.map(Response::into_inner)
    }

    async fn explain(&self, id: &PayloadId) -> Result<pb::ExplainPayloadResponse, tonic::Status> {
        let request = pb::ExplainPayloadRequest { id: Some(id.clone()) };
        self.0.clone().explain_payload(request).await.map(Response::into_inner)
    }
}

/// Another process with leases of its own.
struct Holder {
    child: Child,
    tasks: Option<ChildStdin>,
}

impl Holder {
    /// A process that leases this payload and keeps the lease.
    fn of(server: &Server, id: &PayloadId) -> Self {
        let mut command = Command::new(program("peer"));
        command.arg(&server.address).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("peer runs");
        let mut tasks = child.stdin.take().expect("piped");
        let hex: String = id.value.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(tasks, "hold {hex}").expect("it reads");
        let mut answer = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut answer).expect("it answers");
        assert!(!answer.is_empty(), "leased");
        Self { child, tasks: Some(tasks) }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.tasks.take());
        drop(self.child.wait());
    }
}

fn payloadctl(server: &Server, args: &[&str]) -> String {
    let mut command = Command::new(program("payloadctl"));
    command.args(["--addr", &server.address]).args(args);
    let output = ended(command);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn objects(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("one object a line")).collect()
}

fn tier(stats: &StatsResponse, tier: i32) -> pb::TierAccounting {
    *stats.tiers.iter().find(|part| part.tier == tier).expect("configured")
}

fn uuid(id: &PayloadId) -> String {
    payload_types::PayloadId::from_slice(&id.value).expect("16 bytes").to_string()
}

/// What must hold of every answer.
#[track_caller]
fn adds_up(stats: &StatsResponse) {
    assert_eq!(stats.tiers.len(), 2, "RAM and DISK are configured: {stats:?}");
    for part in &stats.tiers {
        assert_eq!(
            part.capacity_bytes,
            part.reserved_bytes + part.allocated_bytes + part.free_bytes,
            "{part:?}"
        );
        for share in [
            part.leased_bytes,
            part.pinned_bytes,
            part.spilling_bytes,
            part.limbo_bytes,
            part.uncommitted_bytes,
            part.under_way_bytes,
        ] {
            assert!(share <= part.allocated_bytes, "{part:?}");
        }
        assert!(
            part.peak_bytes >= part.allocated_bytes && part.peak_bytes <= part.capacity_bytes,
            "{part:?}"
        );
        let beyond = part.physical_bytes.map(|physical| physical.saturating_sub(part.allocated_bytes));
        assert_eq!(part.fragmentation_bytes, beyond, "{part:?}");
    }
    assert_eq!(stats.bytes_ram, tier(stats, RAM).logical_bytes);
    assert_eq!(stats.payloads_disk, tier(stats, DISK).payloads);
}

/// Stats, once what the file system holds was counted and is so: files are counted in the background.
async fn counted(v1: &V1, of: i32, is_right: impl Fn(u64) -> bool) -> StatsResponse {
    eventually("the files are counted, and the count is right", async || {
        let stats = v1.stats().await.expect("stats");
        tier(&stats, of).physical_bytes.is_some_and(&is_right).then_some(stats)
    })
    .await
}

// Long because: one story, in which each step changes one figure.
#[tokio::test]
async fn given_payloads_in_every_condition_when_accounted_then_each_figure_is_exact_and_all_add_up() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let empty = v1.stats().await.expect("stats");
    adds_up(&empty);
    assert_eq!(tier(&empty, RAM).allocated_bytes, 0);
    assert_eq!(tier(&empty, RAM).capacity_bytes, 64 << 20);

    let uncommitted = v1.allocated(RAM, 10_000).await;
    let stats = counted(&v1, RAM, |physical| physical == 3 * PAGE).await;
    adds_up(&stats);
    let ram = tier(&stats, RAM);
    assert_eq!((ram.allocated_bytes, ram.uncommitted_bytes, ram.logical_bytes), (3 * PAGE, 3 * PAGE, 10_000));

    v1.commit(&id(&uncommitted)).await.expect("committed");
    let lease = v1.lease(&id(&uncommitted)).await.expect("leased");
    v1.pin(&id(&uncommitted), 60_000).await.expect("pinned");
    let stats = v1.stats().await.expect("stats");
    adds_up(&stats);
    let ram = tier(&stats, RAM);
    assert_eq!((ram.uncommitted_bytes, ram.leased_bytes, ram.pinned_bytes), (0, 3 * PAGE, 3 * PAGE));
    let node = stats.node.expect("always there");
    assert_eq!((node.leases, node.leases_granted_total, node.connections), (1, 1, 1));

    v1.unpin(&id(&uncommitted)).await.expect("unpinned");
    v1.release(&lease).await.expect("released");
    let other = v1.put(RAM, &content(1, 5_000)).await;
    spilled(v1.spill_to(&id(&other), DISK).await, DISK);
    // A driver proves the dropped segment free in its own time.
    let stats = eventually("the dropped segment is free", async || {
        let stats = v1.stats().await.expect("stats");
        adds_up(&stats);
        (tier(&stats, RAM).limbo_bytes == 0).then_some(stats)
    })
    .await;
    let (ram, disk) = (tier(&stats, RAM), tier(&stats, DISK));
    assert_eq!((ram.leased_bytes, ram.pinned_bytes, ram.allocated_bytes), (0, 0, 3 * PAGE));
    assert_eq!((disk.allocated_bytes, disk.logical_bytes, disk.payloads), (2 * PAGE, 5_000, 1));
    assert_eq!((disk.spilled_bytes_total, disk.promoted_bytes_total), (5_000, 0));
    counted(&v1, DISK, |physical| physical >= 5_000).await;
    assert_eq!(ram.peak_bytes, 5 * PAGE, "both segments were there at a time: {ram:?}");

    v1.promote_to(&id(&other), RAM).await.expect("promoted");
    for payload in [&uncommitted, &other] {
        v1.delete(&id(payload), false).await.expect("deleted");
    }
    let stats = eventually("all is free again", async || {
        let stats = v1.stats().await.expect("stats");
        adds_up(&stats);
        stats
            .tiers
            .iter()
            .all(|part| part.allocated_bytes == 0 && part.physical_bytes == Some(0))
            .then_some(stats)
    })
    .await;
    assert_eq!(tier(&stats, RAM).promoted_bytes_total, 5_000);
    assert_eq!(tier(&stats, RAM).evictions_total, 0);
}

#[tokio::test]
async fn given_a_tier_above_its_high_watermark_when_it_was_evicted_from_then_evictions_are_counted() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let mut ids = Vec::new();
    for seed in 0..62 {
        ids.push(id(&v1.put(RAM, &content(seed, 1 << 20)).await));
    }
    let stats = eventually("pressure has ended", async || {
        let stats = v1.stats().await.expect("stats");
        adds_up(&stats);
        let ram = tier(&stats, RAM);
        (ram.allocated_bytes * 10 <= ram.capacity_bytes * 9 && ram.spilling_bytes == 0).then_some(stats)
    })
    .await;
    let (ram, disk) = (tier(&stats, RAM), tier(&stats, DISK));
    assert!(ram.evictions_total > 0, "{ram:?}");
    assert_eq!(disk.spilled_bytes_total, ram.evictions_total << 20, "each was copied down: {disk:?}");
    for (seed, id) in ids.iter().enumerate() {
        assert_eq!(v1.bytes(id).await.1, content(seed as u64, 1 << 20));
    }
}

#[tokio::test]
async fn given_leases_of_two_processes_when_holders_are_listed_then_each_has_its_own_process() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let operations = Operations::of(&v1);
    let payload = v1.put(RAM, &content(1, 5_000)).await;
    let target = id(&payload);
    let [first, second] = [Holder::of(&server, &target), Holder::of(&server, &target)];

    let held = operations.holders(&target).await.expect("held");
    let pids: Vec<u32> = held.leases.iter().filter_map(|lease| lease.owner.as_ref()?.pid).collect();
    assert_eq!(pids, [first.child.id(), second.child.id()], "oldest first: {held:?}");
    assert_eq!((held.lease_count, held.complete, &held.pin), (2, true, &None));
    for lease in &held.leases {
        let owner = lease.owner.as_ref().expect("always there");
        assert!(owner.peer.starts_with("127.0.0.1:") && owner.program == "peer" && owner.note.is_empty());
        assert_eq!((lease.tier, lease.length_bytes, lease.limbo), (RAM, 5_000, false));
        assert!(lease.lease_id.as_ref().is_some_and(|id| id.value.len() == 16));
        let (start, end) = (lease.acquired_at.expect("known"), lease.expires_at.expect("known"));
        assert!((19..=21).contains(&(end.seconds - start.seconds)), "leases.default_lease: {lease:?}");
    }

    let shown = objects(&payloadctl(&server, &["--json", "holders", &uuid(&target)]));
    assert_eq!(shown.len(), 2);
    assert_eq!((&shown[0]["kind"], &shown[0]["pid"]), (&"lease".into(), &first.child.id().into()));
    let table = payloadctl(&server, &["holders", &uuid(&target)]);
    assert!(table.contains(&format!("peer (pid {})", second.child.id())), "{table}");

    // The lease outlives the process; that its address is nobody's any more is said.
    drop(first);
    eventually("the server sees the connection close", async || {
        let held = operations.holders(&target).await.expect("held");
        let owner = held.leases[0].owner.clone().expect("always there");
        (owner.pid.is_none() && owner.note.contains("closed")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn given_more_leases_than_one_turn_lists_when_holders_are_listed_then_every_lease_is_there_once() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let operations = Operations::of(&v1);
    let target = id(&v1.put(RAM, b"held by many").await);
    let mut leases = Vec::new();
    for _ in 0..700 {
        leases.push(v1.lease(&target).await.expect("leased").lease_id.expect("an id").value);
    }
    let held = operations.holders(&target).await.expect("held");
    let listed: Vec<Vec<u8>> =
        held.leases.iter().map(|lease| lease.lease_id.clone().expect("an id").value).collect();
    assert_eq!((listed, held.complete, held.lease_count), (leases, true, 700), "oldest first");
}

#[tokio::test]
async fn given_a_pin_when_holders_are_listed_then_its_end_and_its_owner_until_a_restart() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let target = id(&v1.put(DISK, &content(2, 9_000)).await);
    v1.pin(&target, 600_000).await.expect("pinned");
    let pin = Operations::of(&v1).holders(&target).await.expect("held").pin.expect("pinned");
    let owner = pin.owner.expect("always there");
    assert_eq!(owner.pid, Some(std::process::id()), "this process pinned it");
    let (since, end) = (pin.pinned_at.expect("known"), pin.expires_at.expect("it ends"));
    assert!((599..=601).contains(&(end.seconds - since.seconds)) && pin.bytes == 9_000, "{since} {end}");

    v1.pin(&target, 0).await.expect("pinned longer");
    let pin = Operations::of(&v1).holders(&target).await.expect("held").pin.expect("pinned");
    assert_eq!(pin.expires_at, None, "until it is unpinned");

    server.stop();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let pin = Operations::of(&v1).holders(&target).await.expect("held").pin.expect("it survived");
    let owner = pin.owner.expect("always there");
    assert_eq!((owner.peer.as_str(), owner.pid, pin.pinned_at), ("", None, None));
    assert!(owner.note.contains("before the last start"), "{owner:?}");
    let shown = objects(&payloadctl(&server, &["holders", "--json", &uuid(&target)]));
    assert_eq!((&shown[0]["kind"], &shown[0]["age_ms"]), (&"pin".into(), &Value::Null));

    v1.unpin(&target).await.expect("unpinned");
    let held = Operations::of(&v1).holders(&target).await.expect("known");
    assert_eq!((held.pin, held.leases.len()), (None, 0));
}

// Long because: each condition of a payload is one question and its answer.
#[tokio::test]
async fn given_payloads_in_every_condition_when_explained_then_the_reason_is_the_true_one() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let operations = Operations::of(&v1);
    let verdict = |replica: &pb::ReplicaExplanation| replica.verdict();
    let (evictable, kept) = (pb::PressureVerdict::Evictable, pb::PressureVerdict::Kept);

    let allocated = id(&v1.allocated(RAM, 64).await);
    let answer = operations.explain(&allocated).await.expect("known");
    assert_eq!((answer.replicas.len(), verdict(&answer.replicas[0])), (1, kept));
    assert!(answer.replicas[0].under_pressure.contains("not committed"), "{answer:?}");
    assert_eq!(answer.descriptor.as_ref().expect("always there").location, None);

    let target = id(&v1.put(RAM, &content(3, 5_000)).await);
    let answer = operations.explain(&target).await.expect("known");
    let [ram] = &answer.replicas[..] else { panic!("one replica: {answer:?}") };
    assert_eq!((ram.tier, verdict(ram), ram.charged_bytes), (RAM, evictable, 2 * PAGE));
    assert_eq!(ram.under_pressure, "copied to DISK, then dropped from RAM");
    assert!(ram.since.is_some() && !ram.kept_because.is_empty());
    let [outlook] = &answer.outlook[..] else { panic!("one tier holds it: {answer:?}") };
    assert_eq!((outlook.tier, outlook.place, outlook.under_pressure), (RAM, Some(1), false));
    let victims: Vec<_> = outlook.next_victims.iter().map(|victim| victim.id.clone()).collect();
    assert_eq!(victims, [Some(target.clone())], "the other payload is not committed: {outlook:?}");

    let lease = v1.lease(&target).await.expect("leased");
    v1.pin(&target, 600_000).await.expect("pinned");
    let answer = operations.explain(&target).await.expect("known");
    let ram = &answer.replicas[0];
    assert_eq!((verdict(ram), ram.leases, answer.leases, answer.pinned), (kept, 1, 1, true));
    assert!(ram.under_pressure.contains("1 lease held") && ram.under_pressure.contains("pinned for another"));
    assert!(answer.pin_ends_at.is_some());
    assert_eq!((answer.outlook[0].place, answer.outlook[0].next_victims.len()), (None, 0), "it may not go");
    v1.unpin(&target).await.expect("unpinned");
    v1.release(&lease).await.expect("released");

    spilled(v1.spill_to(&target, DISK).await, DISK);
    v1.promote_to(&target, RAM).await.expect("promoted");
    let answer = operations.explain(&target).await.expect("known");
    let [ram, disk] = &answer.replicas[..] else { panic!("two replicas: {answer:?}") };
    assert_eq!((ram.tier, disk.tier, verdict(ram), disk.synced), (RAM, DISK, evictable, true));
    assert_eq!(ram.under_pressure, "dropped from RAM without a write: DISK has the same bytes");
    assert!(disk.kept_because.iter().any(|reason| reason.contains("keeps the bytes")), "{disk:?}");

    let shown = payloadctl(&server, &["explain", &uuid(&target)]);
    assert!(shown.contains("dropped from RAM without a write"), "{shown}");
    let shown = &objects(&payloadctl(&server, &["explain", "--json", &uuid(&target)]))[0];
    assert_eq!((&shown["tier"], &shown["replicas"][0]["evictable"]), (&"ram".into(), &true.into()));
}

#[tokio::test]
async fn given_ids_that_name_nothing_when_asked_about_then_not_found_or_invalid_argument() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let operations = Operations::of(&v1);
    refused(operations.holders(&stranger()).await, Code::NotFound, &["not known"]);
    refused(operations.explain(&stranger()).await, Code::NotFound, &["not known"]);
    for length in [0, 15, 17] {
        let bad = PayloadId { value: vec![7; length] };
        refused(operations.holders(&bad).await, Code::InvalidArgument, &["16"]);
        refused(operations.explain(&bad).await, Code::InvalidArgument, &["16"]);
    }
}

/// Asks as curl would, and gives the head and the body.
fn http(address: &str, request: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).expect("somebody listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    let head =
        format!("{request} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: curl/8.0\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).expect("sent");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
    (head.to_ascii_lowercase(), body.to_owned())
}

/// Reads the text format strictly: every family with its HELP and TYPE before its samples, nothing twice.
fn parsed(text: &str) -> BTreeMap<String, f64> {
    let is_name = |name: &str| {
        name.starts_with(|symbol: char| symbol.is_ascii_lowercase())
            && name.chars().all(|symbol| symbol.is_ascii_alphanumeric() || symbol == '_')
    };
    assert!(text.ends_with('\n'), "the last line ends too");
    let (mut family, mut families) = (String::new(), BTreeSet::new());
    let (mut samples, mut is_histogram) = (BTreeMap::new(), false);
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("a name and a sentence");
            assert!(is_name(name) && name.starts_with("payload_") && !help.is_empty(), "{line}");
            assert!(families.insert(name.to_owned()), "{name} comes twice");
            let kind = lines.next().and_then(|line| line.strip_prefix("# TYPE ")).expect("TYPE follows HELP");
            let (typed, kind) = kind.split_once(' ').expect("a name and a kind");
            assert_eq!(typed, name);
            // The contract's own names are as existing dashboards know them.
            if name.starts_with("payload_manager_") {
                assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
            }
            assert!(matches!(kind, "counter" | "gauge" | "histogram"), "{line}");
            is_histogram = kind == "histogram";
            family = name.to_owned();
            continue;
        }
        let (series, value) = line.rsplit_once(' ').expect("a series and a value");
        let name = series.split('{').next().expect("a name");
        let parts = ["_bucket", "_sum", "_count"];
        let of = parts.iter().find_map(|part| name.strip_suffix(part)).filter(|_| is_histogram);
        assert_eq!(of.unwrap_or(name), family, "samples stand under their family");
        if let Some(labels) = series.strip_prefix(name).filter(|labels| !labels.is_empty()) {
            let labels = labels.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).expect("braces");
            for label in labels.split(',') {
                let (key, quoted) = label.split_once('=').expect("key=\"value\"");
                assert!(is_name(key) && quoted.len() > 2 && quoted.starts_with('"') && quoted.ends_with('"'));
            }
        }
        let value: f64 = value.parse().expect("a number");
        assert!(samples.insert(series.to_owned(), value).is_none(), "{series} comes twice");
    }
    samples
}

/// Where the server says that it serves /metrics.
async fn metrics_address(server: &Server) -> String {
    eventually("the server says where /metrics is", async || {
        let log = server.log();
        let line = log.lines().find(|line| line.contains("serving /metrics"))?;
        Some(line.split("address=").nth(1)?.split_whitespace().next()?.to_owned())
    })
    .await
}

#[tokio::test]
async fn given_a_metrics_address_when_scraped_then_the_figures_are_those_of_stats() {
    let place = Place::new().with("OBSERVABILITY__METRICS_ADDRESS", "127.0.0.1:0");
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let metrics = metrics_address(&server).await;
    let target = id(&v1.put(RAM, &content(4, 5_000)).await);
    let _lease = v1.lease(&target).await.expect("leased");
    refused(v1.lease(&stranger()).await, Code::NotFound, &["not known"]);

    let stats = counted(&v1, RAM, |physical| physical == 2 * PAGE).await;
    let (head, body) = http(&metrics, "GET /metrics");
    assert!(head.starts_with("http/1.1 200") && head.contains("text/plain; version=0.0.4"), "{head}");
    let samples = parsed(&body);
    let ram = tier(&stats, RAM);
    for (name, figure) in [
        ("capacity_bytes", ram.capacity_bytes),
        ("reserved_bytes", ram.reserved_bytes),
        ("allocated_bytes", ram.allocated_bytes),
        ("free_bytes", ram.free_bytes),
        ("leased_bytes", ram.leased_bytes),
        ("physical_bytes", ram.physical_bytes.expect("measured")),
        ("peak_bytes", ram.peak_bytes),
        ("payloads", 1),
        ("evictions_total", 0),
    ] {
        assert_eq!(samples[&format!("payload_manager_tier_{name}{{tier=\"ram\"}}")], figure as f64, "{name}");
    }
    assert_eq!(samples["payload_manager_leases_granted_total"], 1.0);
    let calls = |rpc: &str, code: &str| {
        let series = format!("payload_manager_requests_total{{rpc=\"{rpc}\",code=\"{code}\"}}");
        samples.get(&series).copied().unwrap_or(0.0)
    };
    assert_eq!((calls("AcquireReadLease", "OK"), calls("AcquireReadLease", "NOT_FOUND")), (1.0, 1.0));
    assert!(calls("Stats", "OK") >= 1.0 && calls("AllocatePayload", "OK") == 1.0);
    assert!(samples["payload_manager_shard_turns_total{shard=\"0\"}"] > 0.0);
    assert!(samples.contains_key("payload_manager_shard_lane_requests{shard=\"1\"}"), "two shards");

    for (request, status) in [
        ("GET /", "404"),
        ("GET /metrics/x", "404"),
        ("POST /metrics", "405"),
        ("DELETE /metrics", "405"),
        ("GET /metrics?name=x", "200"),
    ] {
        let (head, _) = http(&metrics, request);
        assert!(head.starts_with(&format!("http/1.1 {status}")), "{request}: {head}");
        assert_eq!(head.contains("allow: get, head"), status == "405", "{head}");
    }
    let (head, body) = http(&metrics, "HEAD /metrics");
    assert!(head.starts_with("http/1.1 200") && body.is_empty(), "{head} {body}");
    assert!(v1.resolve(&target).await.is_ok(), "scraping changes nothing");
}

#[tokio::test]
async fn given_operations_manual_when_read_then_every_metric_stands_in_it() {
    let place = Place::new().with("OBSERVABILITY__METRICS_ADDRESS", "127.0.0.1:0");
    let server = place.start();
    let (_, body) = http(&metrics_address(&server).await, "GET /metrics");
    let manual = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/OPERATIONS.md");
    let manual = std::fs::read_to_string(manual).expect("part of the repository");
    for line in body.lines().filter_map(|line| line.strip_prefix("# HELP ")) {
        let name = line.split(' ').next().expect("a name");
        let short = name.replace("payload_manager_tier_", "payload_manager_tier_*");
        let figure = short.strip_prefix("payload_manager_tier_*").unwrap_or(name);
        assert!(manual.contains(&format!("`{figure}`")), "{name} is not in docs/OPERATIONS.md as `{figure}`");
    }
}

#[test]
fn given_a_taken_metrics_address_when_started_then_the_server_refuses_and_names_the_key() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("bound").to_string();
    let said = Place::new().with("OBSERVABILITY__METRICS_ADDRESS", &address).start_refused();
    assert!(said.contains(&address) && said.contains("observability.metrics_address"), "{said}");
}

#[tokio::test]
async fn given_no_metrics_address_when_started_then_nothing_listens_for_scrapers() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    v1.stats().await.expect("it serves");
    assert!(!server.log().contains("/metrics"), "{}", server.log());
}
