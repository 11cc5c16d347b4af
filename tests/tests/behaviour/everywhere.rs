//! behaviour.md, "Everywhere": what holds for every RPC. Seen through the generated stubs, as v1 clients see it.

use std::io::Write as _;
use std::net::TcpStream;
use std::time::Duration;

use payload_tests::server::{PATIENCE, Place, eventually};
use payload_tests::v1::{
    BEST_EFFORT, DISK, GPU, OBJECT, RAM, UNSPECIFIED, V1, VOID, acquisition, allocation, content, id,
    listing, promotion, refused, spill_refused, spilling, stranger, untimed,
};
use payload_wire::pb::core::v1 as core;
use payload_wire::pb::runtime::v1 as rt;
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

/// Every call that names one payload by an id field, with this id.
async fn calls_with(v1: &V1, id: Option<core::PayloadId>) -> Vec<(&'static str, Result<(), Status>)> {
    let (mut stub, mut data) = (v1.catalog(), v1.data());
    let commit = rt::CommitPayloadRequest { id: id.clone(), checksum_xxh3_64: None };
    let delete = rt::DeleteRequest { id: id.clone(), ..Default::default() };
    let promote = rt::PromoteRequest { id: id.clone(), target_tier: RAM, ..Default::default() };
    let prefetch = rt::PrefetchRequest { id: id.clone(), target_tier: RAM };
    let pin = rt::PinRequest { id: id.clone(), duration_ms: 0 };
    let acquire = rt::AcquireReadLeaseRequest { id: id.clone(), ..Default::default() };
    vec![
        ("CommitPayload", stub.commit_payload(commit).await.map(drop)),
        ("Delete", stub.delete(delete).await.map(drop)),
        ("Promote", stub.promote(promote).await.map(drop)),
        ("Prefetch", stub.prefetch(prefetch).await.map(drop)),
        ("Pin", stub.pin(pin).await.map(drop)),
        ("Unpin", stub.unpin(rt::UnpinRequest { id: id.clone() }).await.map(drop)),
        (
            "ResolveSnapshot",
            data.resolve_snapshot(rt::ResolveSnapshotRequest { id: id.clone() }).await.map(drop),
        ),
        ("AcquireReadLease", data.acquire_read_lease(acquire).await.map(drop)),
    ]
}

#[tokio::test]
async fn given_an_id_that_is_not_16_bytes_or_unset_when_any_rpc_names_it_then_invalid_argument() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let ids = [0, 1, 15, 17, 36].map(|length| Some(core::PayloadId { value: vec![7; length] }));
    for id in ids.into_iter().chain([None]) {
        for (rpc, answer) in calls_with(&v1, id.clone()).await {
            let status = answer.expect_err(rpc);
            assert_eq!(status.code(), Code::InvalidArgument, "{rpc} {id:?}: {status}");
            assert!(status.message().contains("16"), "{rpc} {id:?}: {status}");
        }
        let lease_id = id.clone().map(|id| core::LeaseId { value: id.value });
        let release = v1.data().release_lease(rt::ReleaseLeaseRequest { lease_id }).await;
        refused(release, Code::InvalidArgument, &["16"]);
        if let Some(bad) = id {
            let good = stranger();
            let spill = rt::SpillRequest { ids: vec![good, bad], target_tier: DISK, ..Default::default() };
            refused(v1.spill(spill).await, Code::InvalidArgument, &["ids[1]", "16"]);
        }
    }
}

#[tokio::test]
async fn given_an_unknown_or_deleted_payload_when_any_rpc_names_it_then_not_found() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let deleted = id(&v1.put(RAM, b"soon gone").await);
    v1.delete(&deleted, false).await.expect("deleted");
    for id in [stranger(), deleted] {
        for (rpc, answer) in calls_with(&v1, Some(id.clone())).await {
            assert_eq!(answer.expect_err(rpc).code(), Code::NotFound, "{rpc}");
        }
        for target in [DISK, VOID, UNSPECIFIED] {
            spill_refused(&v1.spill_to(&id, target).await, &["not known"]);
        }
        let background = rt::SpillRequest { policy: BEST_EFFORT, ..spilling(&id, DISK) };
        spill_refused(&v1.spill_one(background).await, &["not known"]);
    }
}

#[tokio::test]
async fn given_enum_values_outside_the_contract_when_sent_then_invalid_argument_and_nothing_is_stored() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let policy = |policy| rt::AllocatePayloadRequest { eviction_policy: Some(policy), ..allocation(RAM, 64) };
    for bad in [-1, 6, 77, i32::MAX, i32::MIN] {
        let priority = core::EvictionPolicy { priority: bad, ..Default::default() };
        let spill_target = core::EvictionPolicy { spill_target: bad, ..Default::default() };
        let min_residency = core::EvictionPolicy { min_residency_tier: bad, ..Default::default() };
        let requests = [allocation(bad, 64), policy(priority), policy(spill_target), policy(min_residency)];
        for request in requests {
            refused(v1.allocate(request).await, Code::InvalidArgument, &[&bad.to_string()]);
        }
        refused(v1.list(listing(bad, 10)).await, Code::InvalidArgument, &["tier_filter"]);
    }
    assert_eq!(v1.list(listing(UNSPECIFIED, 10)).await.expect("a page").total_count, 0, "nothing is stored");

    let known = id(&v1.put(RAM, b"still where it was").await);
    let before = v1.resolve(&known).await.expect("known");
    for bad in [-1, 6, 77] {
        refused(v1.promote_to(&known, bad).await, Code::InvalidArgument, &["target_tier"]);
        refused(v1.prefetch(&known, bad).await, Code::InvalidArgument, &["target_tier"]);
        let with_policy = rt::PromoteRequest { policy: bad, ..promotion(&known, DISK) };
        refused(v1.promote(with_policy).await, Code::InvalidArgument, &["policy"]);
        refused(v1.spill(spilling(&known, bad)).await, Code::InvalidArgument, &["target_tier"]);
        let with_policy = rt::SpillRequest { policy: bad, ..spilling(&known, DISK) };
        refused(v1.spill(with_policy).await, Code::InvalidArgument, &["policy"]);
        let min_tier = rt::AcquireReadLeaseRequest { min_tier: bad, ..acquisition(&known) };
        refused(v1.acquire(min_tier).await, Code::InvalidArgument, &["min_tier"]);
        let with_policy = rt::AcquireReadLeaseRequest { promotion_policy: bad, ..acquisition(&known) };
        refused(v1.acquire(with_policy).await, Code::InvalidArgument, &["promotion_policy"]);
    }
    assert_eq!(v1.resolve(&known).await.expect("known"), before);
}

#[tokio::test]
async fn given_a_tier_that_this_node_lacks_when_asked_for_then_failed_precondition_names_it() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let known = id(&v1.put(RAM, b"in memory").await);
    for (tier, name) in [(GPU, "GPU"), (OBJECT, "OBJECT")] {
        refused(v1.allocate(allocation(tier, 64)).await, Code::FailedPrecondition, &[name, "not configured"]);
        refused(v1.promote_to(&known, tier).await, Code::FailedPrecondition, &[name]);
        refused(v1.prefetch(&known, tier).await, Code::FailedPrecondition, &[name]);
        spill_refused(&v1.spill_to(&known, tier).await, &[name]);
    }
    for promotion_policy in [UNSPECIFIED, BEST_EFFORT] {
        let faster = rt::AcquireReadLeaseRequest { min_tier: GPU, promotion_policy, ..acquisition(&known) };
        refused(v1.acquire(faster).await, Code::FailedPrecondition, &["GPU"]);
    }
    assert_eq!(v1.bytes(&known).await, (RAM, b"in memory".to_vec()));
}

#[tokio::test]
async fn given_integers_that_the_store_cannot_keep_when_sent_then_invalid_argument_names_the_field() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let known = id(&v1.put(RAM, b"unmoved").await);
    for huge in [1 << 63, u64::MAX] {
        let lasting = rt::AllocatePayloadRequest { ttl_ms: huge, ..allocation(RAM, 64) };
        refused(v1.allocate(lasting).await, Code::InvalidArgument, &["ttl_ms"]);
        refused(v1.pin(&known, huge).await, Code::InvalidArgument, &["duration_ms"]);
        let long = rt::AcquireReadLeaseRequest { min_lease_duration_ms: huge, ..acquisition(&known) };
        refused(v1.acquire(long).await, Code::InvalidArgument, &["min_lease_duration_ms"]);
        let fenced = rt::PromoteRequest { expected_version: Some(huge), ..promotion(&known, DISK) };
        refused(v1.promote(fenced).await, Code::InvalidArgument, &["expected_version"]);
    }
    for overflowing in [i64::MAX as u64, 400_000_000_000_000] {
        let lasting = rt::AllocatePayloadRequest { ttl_ms: overflowing, ..allocation(RAM, 64) };
        refused(v1.allocate(lasting).await, Code::InvalidArgument, &["ttl_ms"]);
    }
    v1.pin(&known, i64::MAX as u64).await.expect("as long as the clock goes");
    let longest =
        rt::AcquireReadLeaseRequest { min_lease_duration_ms: i64::MAX as u64, ..acquisition(&known) };
    v1.acquire(longest).await.expect("clamped");
}

#[tokio::test]
async fn given_rpcs_that_this_version_lacks_when_called_then_unimplemented_with_a_sentence() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let mut raw = tonic::client::Grpc::new(v1.channel());
    for path in ["/payload.manager.services.v1.PayloadDataService/NoSuchRpc", "/no.such.Service/Rpc"] {
        raw.ready().await.expect("connected");
        let codec = tonic_prost::ProstCodec::<prost_types::Duration, prost_types::Duration>::default();
        let answer =
            raw.unary(Request::new(prost_types::Duration::default()), path.parse().expect("a path"), codec);
        assert_eq!(answer.await.expect_err("no such RPC").code(), Code::Unimplemented, "{path}");
    }
}

#[tokio::test]
async fn given_malformed_protobuf_and_foreign_bytes_when_sent_then_refused_and_the_server_goes_on() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let known = id(&v1.put(RAM, b"unharmed").await);
    // Field 1 of every request of the catalog is a message; of Duration it is a number.
    let malformed = prost_types::Duration { seconds: 5, nanos: 7 };
    let mut raw = tonic::client::Grpc::new(v1.channel());
    for rpc in ["CommitPayload", "Delete", "Promote", "Spill", "Pin"] {
        raw.ready().await.expect("connected");
        let path = format!("/payload.manager.services.v1.PayloadCatalogService/{rpc}");
        let codec = tonic_prost::ProstCodec::<prost_types::Duration, ()>::default();
        let answer = raw.unary(Request::new(malformed), path.parse().expect("a path"), codec).await;
        let code = answer.expect_err("malformed").code();
        assert!(matches!(code, Code::Internal | Code::InvalidArgument), "{rpc}: {code:?}");
    }
    let huge = rt::ReleaseLeaseRequest { lease_id: Some(core::LeaseId { value: vec![1; 5 << 20] }) };
    let code = v1.data().release_lease(huge).await.expect_err("over 4 MiB").code();
    assert!(matches!(code, Code::OutOfRange | Code::ResourceExhausted | Code::InvalidArgument), "{code:?}");
    for bytes in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff",
        &[0; 100],
    ] {
        let mut socket = TcpStream::connect(&server.address).expect("it listens");
        socket.write_all(bytes).expect("sent");
    }
    assert_eq!(v1.bytes(&known).await.1, b"unharmed");
    assert_eq!(
        V1::connect(&server).await.bytes(&known).await.1,
        b"unharmed",
        "and new connections are served"
    );
}

#[tokio::test]
async fn given_a_deadline_when_it_passes_while_waiting_then_deadline_exceeded_and_not_cancelled() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let leased = id(&v1.put(RAM, &content(1, 10_000)).await);
    let lease = v1.lease(&leased).await.expect("leased");
    // One wait that answers in a result, and one that is the call's own answer: Promote to a slower tier of a payload
    // whose spill is waiting.
    let mut waiting = Request::new(rt::SpillRequest { wait_for_leases: true, ..spilling(&leased, DISK) });
    waiting.set_timeout(Duration::from_millis(1500));
    let results = v1.catalog().spill(waiting).await.expect("the server answers before the client gives up");
    spill_refused(&results.into_inner().results[0], &["deadline"]);
    v1.release(&lease).await.expect("released");

    // The shortest deadlines, from a client without a timer of its own, as slow ones in other languages are: the code
    // is the server's, whether its handler or its transport noticed first.
    let slow = id(&v1.put(RAM, &content(2, 16 << 20)).await);
    let mut untimed = untimed(&server);
    let mut late = 0;
    for micros in [1, 50, 200, 500, 1_000, 1_500, 2_000, 3_000, 5_000] {
        let target = if v1.resolve(&slow).await.expect("known").tier == RAM { DISK } else { RAM };
        let mut hurried = Request::new(promotion(&slow, target));
        hurried.set_timeout(Duration::from_micros(micros));
        if let Err(status) = untimed.promote(hurried).await {
            assert_eq!(status.code(), Code::DeadlineExceeded, "{micros} us: {status}");
            late += 1;
        }
    }
    assert!(late > 0, "16 MiB are not moved in a microsecond");
    assert_eq!(v1.bytes(&slow).await.1, content(2, 16 << 20), "whatever became of the moves");
}

#[tokio::test]
async fn given_as_many_calls_as_admitted_when_one_more_comes_then_resource_exhausted_and_health_answers() {
    let place = Place::new().with("LIMITS__REQUESTS_IN_FLIGHT", "1");
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let leased = id(&v1.put(RAM, b"held").await);
    let lease = v1.lease(&leased).await.expect("leased");
    let waiter = v1.clone();
    let waiting = rt::SpillRequest { wait_for_leases: true, ..spilling(&leased, DISK) };
    let spill = tokio::spawn(async move {
        // It may lose the race for the place against a call of the loop below.
        while waiter
            .spill(waiting.clone())
            .await
            .is_err_and(|status| status.code() == Code::ResourceExhausted)
        {}
    });
    let full = eventually("the spill takes the only place", async || v1.resolve(&leased).await.err()).await;
    refused(Err::<(), _>(full), Code::ResourceExhausted, &["limits.requests_in_flight", "try again"]);
    let health = HealthClient::new(v1.channel()).check(HealthCheckRequest { service: String::new() }).await;
    assert_eq!(health.expect("health takes no place").into_inner().status(), ServingStatus::Serving);
    spill.abort();
    eventually("the place is free again", async || v1.resolve(&leased).await.ok()).await;
    v1.release(&lease).await.expect("released");
}

#[tokio::test]
async fn given_a_server_when_asked_for_health_and_reflection_then_both_are_served() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    for service in [
        "",
        "payload.manager.services.v1.PayloadCatalogService",
        "payload.manager.services.v1.PayloadDataService",
    ] {
        let request = HealthCheckRequest { service: service.to_owned() };
        let status =
            HealthClient::new(v1.channel()).check(request).await.expect("known").into_inner().status();
        assert_eq!(status, ServingStatus::Serving, "{service}");
    }
    let ask = |message| ServerReflectionRequest { host: String::new(), message_request: Some(message) };
    let symbol = "payload.manager.core.v1.PayloadDescriptor".to_owned();
    let requests =
        [ask(MessageRequest::ListServices(String::new())), ask(MessageRequest::FileContainingSymbol(symbol))];
    let mut answers = ServerReflectionClient::new(v1.channel())
        .server_reflection_info(tokio_stream::iter(requests))
        .await
        .expect("served")
        .into_inner();
    let mut next = async || {
        let answer =
            tokio::time::timeout(PATIENCE, answers.message()).await.expect("in time").expect("answered");
        answer.and_then(|answer| answer.message_response).expect("one answer for each request")
    };
    let MessageResponse::ListServicesResponse(list) = next().await else { panic!("services were asked for") };
    let names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
    for service in ["Catalog", "Data", "Admin", "Stream"] {
        let name = format!("payload.manager.services.v1.Payload{service}Service");
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    let MessageResponse::FileDescriptorResponse(files) = next().await else {
        panic!("a symbol was asked for")
    };
    assert!(!files.file_descriptor_proto.is_empty());
}
