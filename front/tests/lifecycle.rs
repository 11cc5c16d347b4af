//! The main job over gRPC, against the real binary: allocate, write, commit, lease, read, spill, promote, delete.

mod common;

use common::{Place, bytes, put, read};
use payload_client::{AcquireOptions, AllocateOptions, ClientError, SpillOptions};
use payload_types::tier::SpillTarget;
use payload_types::{ByteCount, ErrorKind, PayloadId, PayloadState, PromotionPolicy, SpillPolicy, Tier};
use payload_wire::ids::payload_id_to_pb;
use payload_wire::pb::runtime::v1 as pb;
use payload_wire::pb::services::v1::payload_catalog_service_client::PayloadCatalogServiceClient;
use tonic::Code;

fn to_disk() -> SpillOptions {
    SpillOptions { target: Some(SpillTarget::Tier(Tier::Disk)), fsync: true, ..SpillOptions::default() }
}

fn kind<T: std::fmt::Debug>(result: Result<T, ClientError>) -> Option<ErrorKind> {
    result.expect_err("must be refused").kind()
}

#[tokio::test]
async fn given_a_payload_when_moved_down_and_up_then_every_reader_finds_the_same_bytes() {
    let place = Place::new();
    let server = place.start();
    let client = server.client().await;
    let content = bytes(1, 3_000_001);
    let descriptor = put(&client, Tier::Ram, content.clone()).await;
    assert_eq!((descriptor.tier, descriptor.state), (Tier::Ram, PayloadState::Active));
    assert_eq!(read(&client, descriptor.id).await, (Tier::Ram, content.clone()));

    let spilled = client.spill(&[descriptor.id], &to_disk()).await.expect("spilled");
    let on_disk = spilled[0].result.clone().expect("ok").expect("kept");
    assert_eq!((on_disk.tier, on_disk.state), (Tier::Disk, PayloadState::Durable));
    assert!(on_disk.version > descriptor.version && on_disk.checksum == descriptor.checksum);
    assert_eq!(read(&client, descriptor.id).await, (Tier::Disk, content.clone()));

    let promoted = client.promote(descriptor.id, Tier::Ram, None, None).await.expect("promoted");
    assert_eq!((promoted.tier, promoted.state), (Tier::Ram, PayloadState::Durable));
    assert_eq!(read(&client, descriptor.id).await, (Tier::Ram, content));

    let stats = client.stats().await.expect("stats");
    assert_eq!((stats[Tier::Ram].payloads, stats[Tier::Disk].payloads), (1, 0));
    assert_eq!((stats[Tier::Ram].bytes, stats[Tier::Disk].bytes), (3_000_001, 3_000_001));
    client.delete(descriptor.id, false, None).await.expect("deleted");
    assert_eq!(kind(client.resolve(descriptor.id).await), Some(ErrorKind::NotFound));
    assert_eq!(kind(client.delete(descriptor.id, true, None).await), Some(ErrorKind::NotFound));
}

#[tokio::test]
async fn given_many_ids_with_doubles_and_strangers_when_spilled_then_one_result_each_in_order() {
    let place = Place::new().with("SHARDS__COUNT", "3");
    let server = place.start();
    let client = server.client().await;
    let mut ids = Vec::new();
    for seed in 0..40 {
        ids.push(put(&client, Tier::Ram, bytes(seed, 5000)).await.id);
    }
    let stranger = PayloadId::mint(77 << 12, 1);
    ids.insert(7, stranger);
    ids.extend([ids[0], stranger, ids[1]]);
    let spilled = client.spill(&ids, &to_disk()).await.expect("answered");
    assert_eq!(spilled.iter().map(|one| one.id).collect::<Vec<_>>(), ids);
    for one in &spilled {
        match &one.result {
            Ok(descriptor) => assert_eq!(descriptor.as_ref().map(|shown| shown.tier), Some(Tier::Disk)),
            Err(reason) => assert!(one.id == stranger && reason.contains("not known"), "{reason}"),
        }
    }
    let discard = SpillOptions { target: Some(SpillTarget::Void), ..SpillOptions::default() };
    let discarded = client.spill(&[ids[0], ids[0]], &discard).await.expect("answered");
    assert!(
        discarded.iter().all(|one| one.result == Ok(None)),
        "the second is the same answer, not a NOT_FOUND"
    );
    assert!(client.spill(&[], &to_disk()).await.expect("answered").is_empty());
}

#[tokio::test]
async fn given_payloads_on_many_shards_when_listed_by_pages_then_newest_first_each_once() {
    let place = Place::new().with("SHARDS__COUNT", "3");
    let server = place.start();
    let client = server.client().await;
    let mut ids = Vec::new();
    for _ in 0..23 {
        let options = AllocateOptions::default();
        ids.push(client.allocate_payload(ByteCount(100), &options).await.expect("allocated").descriptor.id);
    }
    ids.reverse();
    let (mut listed, mut token) = (Vec::new(), None);
    loop {
        let page = client.list(Some(Tier::Ram), 5, token).await.expect("a page");
        assert_eq!(page.total_count, 23);
        listed.extend(page.rows.iter().map(|row| row.id));
        token = page.next_page_token;
        if token.is_none() {
            break;
        }
    }
    assert_eq!(listed, ids, "ids sort by creation, also across shards");
    assert_eq!(client.list(Some(Tier::Disk), 5, None).await.expect("a page").total_count, 0);
    let bad = client.list(None, 5, Some("nonsense".to_owned())).await;
    assert_eq!(kind(bad), Some(ErrorKind::InvalidArgument));
}

#[tokio::test]
async fn given_leases_and_pins_when_moved_or_deleted_then_the_contracts_codes() {
    let place = Place::new();
    let server = place.start();
    let client = server.client().await;
    let id = put(&client, Tier::Ram, bytes(2, 10_000)).await.id;
    let lease = client.acquire_read_lease(id, &AcquireOptions::default()).await.expect("leased");
    assert_eq!(kind(client.delete(id, false, None).await), Some(ErrorKind::LeaseConflict));
    let refused = client.spill(&[id], &to_disk()).await.expect("answered");
    assert!(refused[0].result.as_ref().expect_err("leased").contains("leased"));
    client.release_lease(lease.id).await.expect("released");
    client.release_lease(lease.id).await.expect("released twice is fine");

    client.pin(id, None).await.expect("pinned");
    assert!(client.spill(&[id], &to_disk()).await.expect("answered")[0].result.is_err());
    client.unpin(id).await.expect("unpinned");
    client.unpin(id).await.expect("not pinned is fine");
    client.prefetch(id, Tier::Ram).await.expect("already there");
    let best_effort = client.promote(id, Tier::Ram, Some(PromotionPolicy::BestEffort), None).await;
    assert_eq!(best_effort.expect("already there").tier, Tier::Ram);
    assert_eq!(kind(client.promote(id, Tier::Object, None, None).await), Some(ErrorKind::FailedPrecondition));
    let background = SpillOptions { policy: Some(SpillPolicy::BestEffort), ..to_disk() };
    assert!(client.spill(&[id], &background).await.expect("answered")[0].result.is_ok());
    client.delete(id, true, None).await.expect("a forced delete is never refused");
}

#[tokio::test]
async fn given_a_lease_of_a_shard_that_is_gone_when_released_then_ok() {
    let place = Place::new();
    let server = place.start();
    let client = server.client().await;
    let nonce = payload_types::LeaseNonce([1; 10]);
    for shard in [0, 200] {
        let lease = payload_types::LeaseId::new(payload_types::ShardIndex(shard), 3, nonce);
        client.release_lease(lease).await.expect("idempotent");
    }
}

#[tokio::test]
async fn given_no_object_store_when_an_object_is_imported_then_the_key_is_named() {
    let place = Place::new();
    let server = place.start();
    let mut catalog = PayloadCatalogServiceClient::new(server.client().await.channel());
    let id = Some(payload_wire::ids::payload_id_to_pb(payload_types::PayloadId::mint(1 << 12, 1)));
    let import = pb::ImportPayloadRequest { id, size_bytes: 5, ..Default::default() };
    let status = catalog.import_payload(import).await.expect_err("import");
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("storage.object.root_path"), "{status}");
}

#[tokio::test]
async fn given_malformed_requests_when_sent_then_the_contracts_codes_and_the_server_lives_on() {
    let place = Place::new();
    let server = place.start();
    let client = server.client().await;
    let mut catalog = PayloadCatalogServiceClient::new(client.channel());
    let allocate = |size_bytes, preferred_tier| pb::AllocatePayloadRequest {
        size_bytes,
        preferred_tier,
        ..pb::AllocatePayloadRequest::default()
    };
    for (request, code) in [
        (allocate(0, 2), Code::InvalidArgument),
        (allocate(u64::MAX, 2), Code::InvalidArgument),
        (allocate(1, 0), Code::FailedPrecondition),
        (allocate(1, 5), Code::InvalidArgument),
        (allocate(1, 77), Code::InvalidArgument),
        (allocate(1, 1), Code::FailedPrecondition),
        (allocate(1, 4), Code::FailedPrecondition),
        (allocate(65 << 20, 2), Code::ResourceExhausted),
    ] {
        let status = catalog.allocate_payload(request).await.expect_err("refused");
        assert_eq!(status.code(), code, "{request:?}: {status}");
        assert!(!status.message().is_empty());
    }
    let id = payload_id_to_pb(PayloadId::mint(1 << 40, 1));
    let short = payload_wire::pb::core::v1::PayloadId { value: vec![1; 15] };
    for (id, code) in
        [(Some(id), Code::NotFound), (Some(short), Code::InvalidArgument), (None, Code::InvalidArgument)]
    {
        let request = pb::CommitPayloadRequest { id, ..pb::CommitPayloadRequest::default() };
        assert_eq!(catalog.commit_payload(request).await.expect_err("refused").code(), code);
    }
    assert!(client.is_serving().await.expect("health"));
}
