//! behaviour.md, "Reading": ResolveSnapshot, AcquireReadLease, ReleaseLease.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use payload_tests::server::{PATIENCE, Place, eventually};
use payload_tests::v1::{
    BEST_EFFORT, BLOCKING, DISK, RAM, UNSPECIFIED, V1, VOID, acquisition, allocation, content, id, promotion,
    refused, spill_refused, spilled, spilling, within,
};
use payload_wire::pb::core::v1 as core;
use payload_wire::pb::core::v1::PayloadState;
use payload_wire::pb::runtime::v1 as rt;
use tonic::Code;

fn descriptor(lease: &rt::AcquireReadLeaseResponse) -> &core::PayloadDescriptor {
    lease.payload_descriptor.as_ref().expect("a lease says where the bytes are")
}

/// Milliseconds from now until the lease ends.
fn remaining_ms(lease: &rt::AcquireReadLeaseResponse) -> i64 {
    let expires = lease.lease_expires_at.as_ref().expect("a lease says when it ends");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis();
    expires.seconds * 1000 + i64::from(expires.nanos) / 1_000_000 - i64::try_from(now).expect("fits")
}

#[tokio::test]
async fn given_allocated_and_committed_payloads_when_resolved_then_only_the_committed_one_has_a_location() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    for tier in [RAM, DISK] {
        let policy =
            core::EvictionPolicy { priority: core::EvictionPriority::Low.into(), ..Default::default() };
        let request = rt::AllocatePayloadRequest {
            ttl_ms: 3_600_000,
            eviction_policy: Some(policy),
            ..allocation(tier, 3)
        };
        let allocated = v1.allocate(request).await.expect("allocated").payload_descriptor.expect("one");
        let seen = v1.resolve(&id(&allocated)).await.expect("known");
        assert_eq!((seen.state(), seen.tier, seen.version), (PayloadState::Allocated, tier, 1));
        assert_eq!(seen.location, None);
        v1.map(&allocated).copy_from_slice(b"abc");
        let committed = v1.commit(&id(&allocated)).await.expect("committed");
        let seen = v1.resolve(&id(&allocated)).await.expect("known");
        assert_eq!(seen, committed, "committed: the whole descriptor");
        assert!(seen.location.is_some() && seen.created_at.is_some() && seen.expires_at.is_some());
        assert_eq!(seen.eviction_policy, Some(policy));
        assert_eq!(v1.look(&seen), b"abc");
    }
}

#[tokio::test]
async fn given_an_allocated_payload_when_leased_then_failed_precondition() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let allocated = v1.allocated(RAM, 64).await;
    refused(v1.lease(&id(&allocated)).await, Code::FailedPrecondition, &["ALLOCATED", "commit"]);
}

#[tokio::test]
async fn given_modes_and_tiers_when_leased_then_only_reading_and_real_tiers_are_granted() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let payload = id(&v1.put(RAM, b"read me").await);
    for mode in [0, 1] {
        let lease = v1.acquire(rt::AcquireReadLeaseRequest { mode, ..acquisition(&payload) }).await;
        assert_eq!(lease.expect("reading").lease_id.expect("set").value.len(), 16);
    }
    for mode in [2, -1, i32::MAX] {
        let request = rt::AcquireReadLeaseRequest { mode, ..acquisition(&payload) };
        refused(v1.acquire(request).await, Code::FailedPrecondition, &["mode"]);
    }
    let void = rt::AcquireReadLeaseRequest { min_tier: VOID, ..acquisition(&payload) };
    refused(v1.acquire(void).await, Code::InvalidArgument, &["min_tier"]);
}

#[tokio::test]
async fn given_replicas_on_two_tiers_when_leased_without_a_wish_then_the_fastest_one() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let bytes = content(1, 30_000);
    let payload = id(&v1.put(DISK, &bytes).await);
    assert_eq!(v1.bytes(&payload).await, (DISK, bytes.clone()));
    v1.promote_to(&payload, RAM).await.expect("promoted");
    for min_tier in [UNSPECIFIED, RAM, DISK] {
        let lease = v1.acquire(rt::AcquireReadLeaseRequest { min_tier, ..acquisition(&payload) }).await;
        let lease = lease.expect("leased");
        assert_eq!((descriptor(&lease).tier, v1.look(descriptor(&lease))), (RAM, bytes.clone()));
    }
}

#[tokio::test]
async fn given_a_slower_replica_when_leased_with_a_faster_min_tier_then_promoted_first_or_granted_at_once() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    for promotion_policy in [UNSPECIFIED, BLOCKING] {
        let bytes = content(2, 1 << 20);
        let payload = id(&v1.put(DISK, &bytes).await);
        // Other holders' leases do not matter.
        let other = v1.lease(&payload).await.expect("leased");
        let request =
            rt::AcquireReadLeaseRequest { min_tier: RAM, promotion_policy, ..acquisition(&payload) };
        let lease = v1.acquire(request).await.expect("promoted, then leased");
        assert_eq!((descriptor(&lease).tier, v1.look(descriptor(&lease))), (RAM, bytes.clone()));
        assert_eq!(descriptor(&lease).state(), PayloadState::Durable, "its disk replica stays");
        assert_eq!(v1.look(descriptor(&other)), bytes, "who reads on disk reads on");
    }
    let bytes = content(3, 1 << 20);
    let payload = id(&v1.put(DISK, &bytes).await);
    let best_effort =
        rt::AcquireReadLeaseRequest { min_tier: RAM, promotion_policy: BEST_EFFORT, ..acquisition(&payload) };
    let lease = v1.acquire(best_effort).await.expect("granted on the present replica");
    assert_eq!(v1.look(descriptor(&lease)), bytes);
    let seen = eventually("the promotion that was scheduled", async || {
        Some(v1.resolve(&payload).await.expect("known")).filter(|seen| seen.tier == RAM)
    })
    .await;
    assert_eq!(v1.look(&seen), bytes);
}

#[tokio::test]
async fn given_no_room_on_the_faster_tier_when_leased_then_best_effort_is_granted_and_blocking_is_exhausted()
{
    let place = Place::new().with("STORAGE__RAM__CAPACITY_BYTES", "8MiB");
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let hog = v1.allocated(RAM, 8 << 20).await;
    let payload = id(&v1.put(DISK, &content(4, 1 << 20)).await);
    let wish = rt::AcquireReadLeaseRequest { min_tier: RAM, ..acquisition(&payload) };
    let answer = v1.data().acquire_read_lease(within(1_000, wish.clone())).await;
    refused(answer, Code::ResourceExhausted, &["RAM", "free"]);
    let best_effort = rt::AcquireReadLeaseRequest { promotion_policy: BEST_EFFORT, ..wish };
    let lease = v1.acquire(best_effort).await.expect("granted");
    assert_eq!(descriptor(&lease).tier, DISK);
    // Scheduled: it is tried again once there is room.
    v1.delete(&id(&hog), false).await.expect("deleted");
    eventually("the promotion", async || {
        (v1.resolve(&payload).await.expect("known").tier == RAM).then_some(())
    })
    .await;
}

#[tokio::test]
async fn given_any_duration_when_leased_then_default_and_maximum_hold_and_the_answer_tells() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let payload = id(&v1.put(RAM, b"for a while").await);
    // What the clock shows may be later than when the lease was granted, by a second on a busy machine.
    for (asked, granted) in [
        (0, 20_000),
        (1_500, 1_500),
        (60_000, 60_000),
        (120_000, 120_000),
        (120_001, 120_000),
        (1 << 40, 120_000),
    ] {
        let request = rt::AcquireReadLeaseRequest { min_lease_duration_ms: asked, ..acquisition(&payload) };
        let remaining = remaining_ms(&v1.acquire(request).await.expect("leased"));
        assert!(
            remaining <= granted && remaining > granted - 20_000,
            "asked {asked}: {remaining} of {granted}"
        );
    }
    let place = Place::new().with("LEASES__DEFAULT_LEASE", "2s").with("LEASES__MAX_LEASE", "3s");
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let payload = id(&v1.put(RAM, b"for a moment").await);
    for (asked, granted) in [(0, 2_000), (1 << 40, 3_000)] {
        let request = rt::AcquireReadLeaseRequest { min_lease_duration_ms: asked, ..acquisition(&payload) };
        assert!(remaining_ms(&v1.acquire(request).await.expect("leased")) <= granted);
    }
    eventually("leases end by themselves", async || v1.delete(&payload, false).await.ok()).await;
}

#[tokio::test]
async fn given_a_move_or_a_wait_going_on_when_leased_then_answered_now_on_an_existing_replica() {
    let place = Place::new().with("LEASES__MAX_LEASE", "1h");
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let bytes = content(5, 24 << 20);
    let payload = id(&v1.put(RAM, &bytes).await);
    let held =
        v1.acquire(rt::AcquireReadLeaseRequest { min_lease_duration_ms: 3_600_000, ..acquisition(&payload) });
    let held = held.await.expect("leased");
    let waiter = v1.clone();
    let waiting = rt::SpillRequest { wait_for_leases: true, ..spilling(&payload, DISK) };
    let spill = tokio::spawn(async move { waiter.spill_one(waiting).await });
    // Whether the spill has arrived or not, whether it waits or copies: each lease is granted.
    for _ in 0..50 {
        let lease = tokio::time::timeout(PATIENCE, v1.lease(&payload)).await.expect("now").expect("granted");
        assert_eq!(v1.look(descriptor(&lease))[..100], bytes[..100]);
        v1.release(&lease).await.expect("released");
    }
    v1.release(&held).await.expect("released");
    let mut tiers = Vec::new();
    while !spill.is_finished() {
        let lease = tokio::time::timeout(PATIENCE, v1.lease(&payload)).await.expect("now").expect("granted");
        tiers.push(descriptor(&lease).tier);
        assert_eq!(v1.look(descriptor(&lease))[..100], bytes[..100]);
        v1.release(&lease).await.expect("released");
    }
    spilled(spill.await.expect("no panic"), DISK);
    assert!(tiers.is_sorted(), "RAM until it is spilled, then DISK: {tiers:?}");
    assert_eq!(v1.bytes(&payload).await, (DISK, bytes));
}

#[tokio::test]
async fn given_a_replica_whose_bytes_are_gone_when_moved_then_data_loss_and_never_wrong_bytes() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let sound = id(&v1.put(DISK, &content(6, 9000)).await);

    // The only replica altered behind the server's back: its checksum from the first copy tells.
    let payload = id(&v1.put(RAM, &content(7, 9000)).await);
    let on_disk = spilled(v1.spill_to(&payload, DISK).await, DISK);
    let mut altered = content(7, 9000);
    altered[4321] ^= 1;
    let start = on_disk_offset(&on_disk);
    let mut file = fs::read(v1.path(&on_disk)).expect("readable");
    file[start..start + 9000].copy_from_slice(&altered);
    fs::write(v1.path(&on_disk), &file).expect("altered");
    refused(v1.promote_to(&payload, RAM).await, Code::DataLoss, &["DISK"]);
    refused(v1.lease(&payload).await, Code::DataLoss, &["no other replica"]);
    refused(v1.promote_to(&payload, RAM).await, Code::DataLoss, &[]);
    spill_refused(&v1.spill_to(&payload, DISK).await, &[]);

    // The only replica removed.
    let removed = v1.put(DISK, &content(8, 9000)).await;
    fs::remove_file(v1.path(&removed)).expect("removed");
    let wish = rt::AcquireReadLeaseRequest { min_tier: RAM, ..acquisition(&id(&removed)) };
    refused(v1.acquire(wish).await, Code::DataLoss, &["DISK"]);
    refused(v1.lease(&id(&removed)).await, Code::DataLoss, &[]);

    assert_eq!(v1.bytes(&sound).await.1, content(6, 9000), "nothing else is harmed");
    for payload in [&payload, &id(&removed)] {
        v1.delete(payload, false).await.expect("what is damaged can be deleted");
    }
}

fn on_disk_offset(descriptor: &core::PayloadDescriptor) -> usize {
    match descriptor.location.as_ref().expect("a location") {
        core::payload_descriptor::Location::Disk(disk) => usize::try_from(disk.offset_bytes).expect("small"),
        other => panic!("not on disk: {other:?}"),
    }
}

#[tokio::test]
async fn given_a_lease_when_released_twice_expired_or_unknown_then_ok() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let payload = id(&v1.put(RAM, b"shared").await);
    let lease = v1.lease(&payload).await.expect("leased");
    for _ in 0..3 {
        v1.release(&lease).await.expect("idempotent");
    }
    let short = rt::AcquireReadLeaseRequest { min_lease_duration_ms: 1, ..acquisition(&payload) };
    let short = v1.acquire(short).await.expect("leased");
    eventually("it expires", async || {
        (v1.row(&payload).await.expect("listed").active_leases == 0).then_some(())
    })
    .await;
    v1.release(&short).await.expect("expired");
    for byte in [0, 1, 0x7F, 0xFF] {
        let lease_id = Some(core::LeaseId { value: vec![byte; 16] });
        let unknown = rt::AcquireReadLeaseResponse { lease_id, ..Default::default() };
        v1.release(&unknown).await.expect("unknown, of whatever shard");
    }
    let kept = v1.lease(&payload).await.expect("leased");
    v1.release(&lease).await.expect("again");
    refused(v1.delete(&payload, false).await, Code::Aborted, &[]);
    v1.release(&kept).await.expect("the one that counts");
    v1.delete(&payload, false).await.expect("nobody holds it");
}

#[tokio::test]
async fn given_an_expected_version_when_it_is_not_the_present_one_then_failed_precondition_names_both() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let committed = v1.put(RAM, &content(9, 5000)).await;
    let payload = id(&committed);
    let (present, stale) = (committed.version, committed.version + 7);
    let words = [present.to_string(), stale.to_string()];
    let words = [words[0].as_str(), words[1].as_str()];
    let expected_version = Some(stale);
    let acquire = rt::AcquireReadLeaseRequest { expected_version, ..acquisition(&payload) };
    refused(v1.acquire(acquire).await, Code::FailedPrecondition, &words);
    let promote = rt::PromoteRequest { expected_version, ..promotion(&payload, RAM) };
    refused(v1.promote(promote).await, Code::FailedPrecondition, &words);
    let delete = rt::DeleteRequest { id: Some(payload.clone()), expected_version, ..Default::default() };
    refused(v1.catalog().delete(delete).await, Code::FailedPrecondition, &words);
    let spill = rt::SpillRequest { expected_version, ..spilling(&payload, DISK) };
    spill_refused(&v1.spill_one(spill).await, &words);

    let expected_version = Some(present);
    let lease = v1.acquire(rt::AcquireReadLeaseRequest { expected_version, ..acquisition(&payload) }).await;
    v1.release(&lease.expect("the present version")).await.expect("released");
    let spill = rt::SpillRequest { expected_version, ..spilling(&payload, DISK) };
    let moved = spilled(v1.spill_one(spill).await, DISK);
    assert!(moved.version > present);
    let promote = rt::PromoteRequest { expected_version: Some(moved.version), ..promotion(&payload, RAM) };
    let promoted = v1.promote(promote).await.expect("the present version");
    let delete =
        rt::DeleteRequest { id: Some(payload), force: true, expected_version: Some(promoted.version) };
    v1.catalog().delete(delete).await.expect("the present version");
}
