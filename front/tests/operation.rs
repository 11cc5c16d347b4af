//! Starting, stopping, crashing and being full: what an operator sees of the real binary.

mod common;

use std::time::Duration;

use common::{Place, bytes, put, read};
use payload_client::{AcquireOptions, AllocateOptions, SpillOptions};
use payload_types::tier::SpillTarget;
use payload_types::{ByteCount, ErrorKind, Tier};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

fn to_disk(wait_for_leases: bool) -> SpillOptions {
    let target = Some(SpillTarget::Tier(Tier::Disk));
    SpillOptions { target, wait_for_leases, ..SpillOptions::default() }
}

#[tokio::test]
async fn given_a_killed_server_when_restarted_with_other_shards_then_all_committed_bytes_are_there() {
    let place = Place::new();
    let server = place.start();
    let client = server.client().await;
    let mut contents = Vec::new();
    for seed in 0..6 {
        let tier = if seed % 2 == 0 { Tier::Ram } else { Tier::Disk };
        let content = bytes(seed, 100_000 + usize::from(seed));
        contents.push((put(&client, tier, content.clone()).await, content));
    }
    let never_committed =
        client.allocate_payload(ByteCount(4096), &AllocateOptions::default()).await.expect("allocated");
    assert_eq!(place.segments().len(), 4);
    server.kill();

    let place = place.with("SHARDS__COUNT", "4");
    let server = place.start();
    let client = server.client().await;
    for (before, content) in &contents {
        let (tier, found) = read(&client, before.id).await;
        assert_eq!((tier, &found), (before.tier, content));
        assert!(client.resolve(before.id).await.expect("known").version > before.version);
    }
    let lost = client.resolve(never_committed.descriptor.id).await.expect_err("was never committed");
    assert_eq!(lost.kind(), Some(ErrorKind::NotFound));
    assert_eq!(place.segments().len(), 3, "what was never committed is reclaimed");
    server.stop();
    assert_eq!(place.segments().len(), 3, "a graceful stop keeps what was committed");
}

#[tokio::test]
async fn given_a_lost_segment_when_restarted_then_not_found_with_the_reason_lost() {
    let place = Place::new();
    let server = place.start();
    let client = server.client().await;
    let id = put(&client, Tier::Ram, bytes(1, 5000)).await.id;
    server.kill();
    std::fs::remove_file(format!("/dev/shm/{}", place.segments()[0])).expect("the segment");

    let server = place.start();
    let client = server.client().await;
    let error = client.resolve(id).await.expect_err("lost");
    assert_eq!(error.kind(), Some(ErrorKind::NotFound));
    assert!(error.to_string().contains("LOST"), "{error}");
}

#[tokio::test]
async fn given_a_missing_catalog_when_started_on_its_disk_root_then_refused_and_the_files_stay() {
    let place = Place::new();
    let server = place.start();
    let client = server.client().await;
    let content = bytes(1, 5000);
    let id = put(&client, Tier::Disk, content.clone()).await.id;
    server.stop();
    let moved = place.directory.path().join("moved.db");
    std::fs::rename(place.directory.path().join("catalog.db"), &moved).expect("moved");
    for _ in 0..2 {
        let said = place.start_refused();
        assert!(said.contains("of another catalog"), "{said}");
    }
    let place = place.with("DATABASE__SQLITE__PATH", moved.to_str().expect("text"));
    let server = place.start();
    assert_eq!(read(&server.client().await, id).await, (Tier::Disk, content));
}

#[tokio::test]
async fn given_a_running_server_when_a_second_one_wants_what_it_holds_then_it_is_refused_by_name() {
    let place = Place::new();
    let server = place.start();
    let client = server.client().await;
    let id = put(&client, Tier::Ram, bytes(1, 5000)).await.id;

    let elsewhere = Place::new().with("SERVER__BIND_ADDRESS", &server.address);
    let said = elsewhere.start_refused();
    assert!(said.contains(&server.address) && said.contains("taken"), "{said}");
    let left = std::fs::read_dir(elsewhere.directory.path()).expect("its directory").count();
    assert_eq!(left, 0, "nothing was made for a server that cannot serve");

    let data = place.directory.path().to_str().expect("text").to_owned();
    let same_root = Place::new().with("STORAGE__DISK__ROOT_PATH", &format!("{data}/disk"));
    let said = same_root.start_refused();
    assert!(said.contains(&format!("{data}/disk")), "{said}");
    let same_catalog = Place::new().with("DATABASE__SQLITE__PATH", &format!("{data}/catalog.db"));
    let said = same_catalog.start_refused();
    assert!(said.contains(&format!("{data}/catalog.db")), "{said}");
    assert_eq!(said.trim().lines().count(), 1, "one sentence: {said}");

    assert_eq!(read(&client, id).await.1, bytes(1, 5000), "the first server was not disturbed");
}

#[tokio::test]
async fn given_a_call_that_waits_when_stopped_then_it_is_answered_unavailable_and_the_server_exits_with_0() {
    let place = Place::new().with("SHUTDOWN__DRAIN_TIMEOUT", "2s");
    let mut server = place.start();
    let client = server.client().await;
    let id = put(&client, Tier::Ram, bytes(1, 5000)).await.id;
    client.acquire_read_lease(id, &AcquireOptions::default()).await.expect("leased");
    let waiting = client.clone();
    let spill = tokio::spawn(async move { waiting.spill(&[id], &to_disk(true)).await });
    // The call is under way once the payload cannot be told apart any more; a moment is enough for loopback.
    tokio::time::sleep(Duration::from_millis(200)).await;
    server.signal("TERM");
    let answered = spill.await.expect("no panic");
    let said = match answered {
        Ok(results) => results[0].result.clone().expect_err("it cannot have been spilled"),
        Err(error) => error.to_string(),
    };
    assert!(said.contains("stopping"), "{said}");
    assert_eq!(server.wait().code(), Some(0));
    assert!(client.resolve(id).await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn given_a_stopping_server_when_signalled_again_then_it_leaves_at_once_with_128_plus_the_signal() {
    let place = Place::new();
    let mut server = place.start();
    let client = server.client().await;
    let id = put(&client, Tier::Ram, bytes(1, 5000)).await.id;
    client.acquire_read_lease(id, &AcquireOptions::default()).await.expect("leased");
    let waiting = client.clone();
    let spill = tokio::spawn(async move { waiting.spill(&[id], &to_disk(true)).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    server.signal("TERM");
    tokio::time::sleep(Duration::from_millis(200)).await;
    server.signal("INT");
    assert_eq!(server.wait().code(), Some(130));
    assert!(spill.await.expect("no panic").is_err());
}

#[tokio::test]
async fn given_somebody_who_watches_health_when_the_server_stops_then_not_serving() {
    let place = Place::new();
    let mut server = place.start();
    let channel = server.client().await.channel();
    let request = HealthCheckRequest { service: "payload.manager.services.v1.PayloadDataService".to_owned() };
    let mut watch = HealthClient::new(channel).watch(request).await.expect("health").into_inner();
    let mut next = async || watch.message().await.expect("an answer").expect("one more").status();
    assert_eq!(next().await, ServingStatus::Serving);
    server.signal("TERM");
    assert_eq!(next().await, ServingStatus::NotServing);
    assert_eq!(server.wait().code(), Some(0), "a watcher keeps nobody from stopping");
}

#[tokio::test]
async fn given_a_deadline_when_it_passes_while_waiting_then_deadline_exceeded_from_the_server() {
    let place = Place::new();
    let server = place.start();
    let client = server.client().await;
    let id = put(&client, Tier::Ram, bytes(1, 5000)).await.id;
    client.acquire_read_lease(id, &AcquireOptions::default()).await.expect("leased");
    let hurried = client.with_deadline(Duration::from_millis(800));
    let results = hurried.spill(&[id], &to_disk(true)).await.expect("answered before the client gives up");
    let reason = results[0].result.as_ref().expect_err("a lease is held");
    assert!(reason.contains("deadline"), "{reason}");
}

#[tokio::test]
async fn given_as_many_calls_as_allowed_when_one_more_comes_then_exhausted_and_health_still_answers() {
    let place = Place::new().with("LIMITS__REQUESTS_IN_FLIGHT", "1");
    let server = place.start();
    let client = server.client().await;
    let id = put(&client, Tier::Ram, bytes(1, 5000)).await.id;
    let lease = client.acquire_read_lease(id, &AcquireOptions::default()).await.expect("leased");
    let waiting = client.clone();
    // The only place may be taken by one of the calls below when the spill arrives: then it tries again.
    let spill = tokio::spawn(async move { while waiting.spill(&[id], &to_disk(true)).await.is_err() {} });
    let refused = loop {
        // Until the spill has arrived there is room; its arrival is what this waits for. The pause lets it in.
        match client.resolve(id).await {
            Ok(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            Err(error) => break error,
        }
    };
    assert_eq!(refused.kind(), Some(ErrorKind::ResourceExhausted));
    assert!(refused.to_string().contains("limits.requests_in_flight"), "{refused}");
    assert!(client.is_serving().await.expect("health takes no place"));
    spill.abort();
    drop(lease);
}

#[tokio::test]
async fn given_a_server_when_reflected_then_its_services_are_named() {
    let place = Place::new();
    let server = place.start();
    let channel = server.client().await.channel();
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = ServerReflectionClient::new(channel)
        .server_reflection_info(tokio_stream::iter([request]))
        .await
        .expect("reflection")
        .into_inner();
    let answer = answers.message().await.expect("an answer").expect("one");
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("another answer: {answer:?}");
    };
    let names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
    for service in
        ["PayloadCatalogService", "PayloadDataService", "PayloadAdminService", "PayloadStreamService"]
    {
        let full = format!("payload.manager.services.v1.{service}");
        assert!(names.contains(&full), "{full} in {names:?}");
    }
    assert!(names.contains(&"grpc.health.v1.Health".to_owned()));
}

#[test]
fn given_files_when_the_demo_runs_then_every_byte_matches_and_nothing_is_left() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("some bytes");
    std::fs::write(&file, bytes(9, 123_457)).expect("written");
    let demo = std::process::Command::new(env!("CARGO_BIN_EXE_payload-manager"))
        .arg("demo")
        .arg(&file)
        .env("TMPDIR", directory.path())
        .output()
        .expect("the demo runs");
    let said = String::from_utf8(demo.stdout).expect("text");
    assert!(demo.status.success(), "{said}{}", String::from_utf8_lossy(&demo.stderr));
    assert!(said.contains("every byte matched") && said.contains("payload bytes over gRPC: 0"), "{said}");
    let left: Vec<_> =
        std::fs::read_dir(directory.path()).expect("it").flatten().map(|entry| entry.path()).collect();
    assert_eq!(left, [file], "the demo's directory is gone");
    let missing = std::process::Command::new(env!("CARGO_BIN_EXE_payload-manager"))
        .args(["demo", "/does/not/exist"])
        .output()
        .expect("the demo runs");
    assert!(
        !missing.status.success() && String::from_utf8_lossy(&missing.stderr).contains("/does/not/exist")
    );
}
