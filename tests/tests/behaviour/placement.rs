//! behaviour.md, "Placement": Promote, Spill, Prefetch, Pin, Unpin.

use payload_tests::server::{Place, eventually};
use payload_tests::v1::{
    BEST_EFFORT, BLOCKING, DISK, RAM, UNSPECIFIED, V1, VOID, allocation, content, id, promotion, refused,
    spill_refused, spilled, spilling, stranger, untimed, within,
};
use payload_wire::pb::core::v1 as core;
use payload_wire::pb::core::v1::{PayloadId, PayloadState};
use payload_wire::pb::runtime::v1 as rt;
use tonic::{Code, Request};

/// Puts bytes into RAM with a policy.
async fn put_with(v1: &V1, policy: core::EvictionPolicy, bytes: &[u8]) -> PayloadId {
    let request =
        rt::AllocatePayloadRequest { eviction_policy: Some(policy), ..allocation(RAM, bytes.len() as u64) };
    let allocated = v1.allocate(request).await.expect("allocated").payload_descriptor.expect("one");
    v1.map(&allocated).copy_from_slice(bytes);
    id(&v1.commit(&id(&allocated)).await.expect("committed"))
}

/// Waits until the descriptor shows this tier.
async fn arrives(v1: &V1, payload: &PayloadId, tier: i32) -> core::PayloadDescriptor {
    eventually("it arrives on its tier", async || {
        Some(v1.resolve(payload).await.expect("known")).filter(|seen| seen.tier == tier)
    })
    .await
}

#[tokio::test]
async fn given_targets_that_are_none_when_promoted_or_prefetched_then_each_has_its_kept_code() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let payload = id(&v1.put(RAM, b"stays").await);
    refused(v1.promote_to(&payload, UNSPECIFIED).await, Code::FailedPrecondition, &["TIER_UNSPECIFIED"]);
    refused(v1.promote_to(&payload, VOID).await, Code::InvalidArgument, &["TIER_VOID"]);
    refused(v1.prefetch(&payload, UNSPECIFIED).await, Code::FailedPrecondition, &["TIER_UNSPECIFIED"]);
    refused(v1.prefetch(&payload, VOID).await, Code::InvalidArgument, &["TIER_VOID"]);
}

#[tokio::test]
async fn given_a_payload_when_promoted_to_where_it_is_then_ok_and_nothing_changes() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    for tier in [RAM, DISK] {
        let committed = v1.put(tier, &content(1, 5000)).await;
        for policy in [UNSPECIFIED, BEST_EFFORT, BLOCKING] {
            let request = rt::PromoteRequest { policy, ..promotion(&id(&committed), tier) };
            assert_eq!(v1.promote(request).await.expect("there already"), committed);
        }
    }
}

#[tokio::test]
async fn given_any_policy_when_promoted_then_done_when_answered_and_the_bytes_are_the_same() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    for policy in [UNSPECIFIED, BEST_EFFORT, BLOCKING] {
        let bytes = content(2, 3_000_001);
        let durable = v1.put(DISK, &bytes).await;
        let request = rt::PromoteRequest { policy, ..promotion(&id(&durable), RAM) };
        let promoted = v1.promote(request).await.expect("promoted");
        assert_eq!((promoted.tier, promoted.state()), (RAM, PayloadState::Durable));
        assert!(promoted.version > durable.version);
        assert_eq!(v1.look(&promoted), bytes);
        assert!(v1.path(&durable).exists(), "a durable replica stays");
        // A slower target is a spill to it: the copy that is there is shown again, nothing is written.
        let back = v1
            .promote(rt::PromoteRequest { policy, ..promotion(&id(&durable), DISK) })
            .await
            .expect("spilled");
        assert_eq!((back.tier, &back.location), (DISK, &durable.location));
        assert!(back.version > promoted.version);
        assert_eq!(v1.bytes(&id(&durable)).await, (DISK, bytes));
    }
}

#[tokio::test]
async fn given_an_allocated_payload_when_moved_then_failed_precondition_and_still_allocated() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    for tier in [RAM, DISK] {
        let payload = id(&v1.allocated(tier, 64).await);
        for target in [RAM, DISK] {
            refused(v1.promote_to(&payload, target).await, Code::FailedPrecondition, &["commit"]);
            spill_refused(&v1.spill_to(&payload, target).await, &["commit"]);
        }
        spill_refused(&v1.spill_to(&payload, VOID).await, &["commit"]);
        assert_eq!(v1.resolve(&payload).await.expect("known").state(), PayloadState::Allocated);
    }
}

#[tokio::test]
async fn given_a_best_effort_promotion_when_its_deadline_passes_then_ok_with_the_present_tier_and_it_goes_on()
{
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let mut met = 0;
    for (seed, micros) in [(10, 900), (11, 2_000), (12, 5_000), (13, 15_000)] {
        let bytes = content(seed, 20 << 20);
        let payload = id(&v1.put(DISK, &bytes).await);
        let mut hurried =
            Request::new(rt::PromoteRequest { policy: BEST_EFFORT, ..promotion(&payload, RAM) });
        hurried.set_timeout(std::time::Duration::from_micros(micros));
        match untimed(&server).promote(hurried).await {
            Ok(answer) => {
                let shown = answer.into_inner().payload_descriptor.expect("one");
                assert!([RAM, DISK].contains(&shown.tier));
                met += 1;
                arrives(&v1, &payload, RAM).await;
                assert_eq!(v1.bytes(&payload).await, (RAM, bytes));
            }
            // So short that the answer could not come back in time.
            Err(status) => assert_eq!(status.code(), Code::DeadlineExceeded, "{status}"),
        }
        v1.delete(&payload, true).await.expect("deleted");
    }
    println!("{met} of 4 answers came in time");
}

#[tokio::test]
async fn given_a_leased_payload_when_promoted_then_up_is_ok_and_down_is_refused() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let bytes = content(3, 40_000);
    let payload = id(&v1.put(DISK, &bytes).await);
    let lease = v1.lease(&payload).await.expect("leased on disk");
    assert_eq!(v1.promote_to(&payload, RAM).await.expect("the replica is added").tier, RAM);
    refused(v1.promote_to(&payload, DISK).await, Code::FailedPrecondition, &["leased"]);
    v1.release(&lease).await.expect("released");
    v1.pin(&payload, 0).await.expect("pinned");
    refused(v1.promote_to(&payload, DISK).await, Code::FailedPrecondition, &["pinned"]);
    assert_eq!(v1.promote_to(&payload, RAM).await.expect("there already").tier, RAM);
    v1.unpin(&payload).await.expect("unpinned");
    assert_eq!(v1.promote_to(&payload, DISK).await.expect("spilled").tier, DISK);
    assert_eq!(v1.bytes(&payload).await, (DISK, bytes));
}

#[tokio::test]
async fn given_many_ids_when_spilled_then_one_result_for_each_in_order_with_its_own_outcome() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let ram = id(&v1.put(RAM, &content(1, 5000)).await);
    let allocated = id(&v1.allocated(RAM, 64).await);
    let disk = id(&v1.put(DISK, &content(2, 5000)).await);
    let pinned = id(&v1.put(RAM, &content(3, 5000)).await);
    v1.pin(&pinned, 0).await.expect("pinned");
    let leased = id(&v1.put(RAM, &content(4, 5000)).await);
    let _lease = v1.lease(&leased).await.expect("leased");
    let ids = vec![stranger(), ram.clone(), allocated, pinned, disk.clone(), leased, ram.clone()];
    let request = rt::SpillRequest { ids: ids.clone(), target_tier: DISK, ..Default::default() };
    let results = v1.spill(request).await.expect("OK, whatever becomes of each");
    assert_eq!(results.iter().filter_map(|result| result.id.clone()).collect::<Vec<_>>(), ids);
    assert_eq!(
        results.iter().map(|result| result.ok).collect::<Vec<_>>(),
        [false, true, false, false, true, false, true]
    );
    for result in results {
        match result.ok {
            true => assert_eq!(spilled(result.clone(), DISK).payload_id, result.id),
            false => spill_refused(&result, &[]),
        }
    }
    assert_eq!(v1.spill(rt::SpillRequest::default()).await.expect("no ids"), []);
    assert_eq!((v1.bytes(&ram).await.0, v1.bytes(&disk).await.0), (DISK, DISK));
}

#[tokio::test]
async fn given_any_policy_and_fsync_when_spilled_then_the_tier_is_the_target_and_faster_replicas_go() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    for (policy, fsync) in [(UNSPECIFIED, false), (BLOCKING, false), (BLOCKING, true)] {
        let bytes = content(5, 2_000_003);
        let active = v1.put(RAM, &bytes).await;
        let request = rt::SpillRequest { policy, fsync, ..spilling(&id(&active), DISK) };
        let durable = spilled(v1.spill_one(request.clone()).await, DISK);
        assert_eq!(durable.state(), PayloadState::Durable);
        assert!(durable.version > active.version);
        assert_eq!(v1.resolve(&id(&active)).await.expect("known"), durable);
        eventually("the segment goes", async || (!v1.path(&active).exists()).then_some(())).await;
        assert_eq!(v1.bytes(&id(&active)).await, (DISK, bytes));
        assert_eq!(spilled(v1.spill_one(request).await, DISK), durable, "already there: nothing changes");
    }
}

#[tokio::test]
async fn given_a_best_effort_spill_when_asked_then_validated_now_and_done_later() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let best_effort =
        |payload: &PayloadId, target| rt::SpillRequest { policy: BEST_EFFORT, ..spilling(payload, target) };
    let bytes = content(6, 1 << 20);
    let payload = id(&v1.put(RAM, &bytes).await);
    assert!(v1.spill_one(best_effort(&payload, DISK)).await.ok);
    arrives(&v1, &payload, DISK).await;
    assert_eq!(v1.bytes(&payload).await, (DISK, bytes));
    spill_refused(&v1.spill_one(best_effort(&stranger(), DISK)).await, &["not known"]);
    let allocated = id(&v1.allocated(RAM, 64).await);
    spill_refused(&v1.spill_one(best_effort(&allocated, DISK)).await, &["commit"]);
    spill_refused(&v1.spill_one(best_effort(&payload, RAM)).await, &["faster"]);
}

#[tokio::test]
async fn given_a_leased_payload_when_spilled_then_refused_or_waits_and_new_leases_do_not_starve_it() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let bytes = content(7, 60_000);
    let payload = id(&v1.put(RAM, &bytes).await);
    let held = v1.lease(&payload).await.expect("leased");
    spill_refused(&v1.spill_to(&payload, DISK).await, &["leased", "wait_for_leases"]);

    let mut bounded = Request::new(rt::SpillRequest { wait_for_leases: true, ..spilling(&payload, DISK) });
    bounded.set_timeout(std::time::Duration::from_millis(800));
    let late = v1.catalog().spill(bounded).await.expect("answered before the deadline").into_inner();
    spill_refused(&late.results[0], &["deadline"]);

    let waiter = v1.clone();
    let waiting = rt::SpillRequest { wait_for_leases: true, ..spilling(&payload, DISK) };
    let spill = tokio::spawn(async move { waiter.spill_one(waiting).await });
    // From before the old lease ends until after the spill, somebody always holds a lease.
    let mut newest = v1.lease(&payload).await.expect("leased");
    let mut held = Some(held);
    let mut rounds = 0;
    while !spill.is_finished() {
        let next = v1.lease(&payload).await.expect("leased");
        v1.release(&newest).await.expect("released");
        newest = next;
        rounds += 1;
        if rounds == 20 {
            v1.release(&held.take().expect("once")).await.expect("released");
        }
        assert!(rounds < 100_000, "the spill starves");
    }
    spilled(spill.await.expect("no panic"), DISK);
    assert_eq!(v1.look(newest.payload_descriptor.as_ref().expect("one")), bytes);
}

#[tokio::test]
async fn given_a_pin_when_spilled_then_refused_until_unpinned_or_over_and_the_longer_of_two_wins() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let payload = id(&v1.put(RAM, &content(8, 5000)).await);
    v1.pin(&payload, 1).await.expect("pinned");
    v1.pin(&payload, 0).await.expect("until Unpin, which is longer");
    v1.pin(&payload, 1).await.expect("shorter: changes nothing");
    spill_refused(&v1.spill_to(&payload, DISK).await, &["pinned"]);
    spill_refused(&v1.spill_to(&payload, VOID).await, &["pinned"]);
    let patient = rt::SpillRequest { wait_for_leases: true, ..spilling(&payload, DISK) };
    spill_refused(&v1.spill_one(patient).await, &["pinned"]);
    v1.unpin(&payload).await.expect("unpinned");
    v1.unpin(&payload).await.expect("not pinned: OK");
    spilled(v1.spill_to(&payload, DISK).await, DISK);

    v1.promote_to(&payload, RAM).await.expect("promoted");
    v1.pin(&payload, 1500).await.expect("pinned");
    v1.pin(&payload, 10).await.expect("shorter: changes nothing");
    let mut refusals = 0;
    let moved = eventually("the pin ends by itself", async || {
        let result = v1.spill_to(&payload, DISK).await;
        if !result.ok {
            refusals += 1;
            spill_refused(&result, &["pinned"]);
        }
        result.ok.then_some(result)
    })
    .await;
    spilled(moved, DISK);
    assert!(refusals > 0);
}

#[tokio::test]
async fn given_pins_when_the_server_is_killed_then_they_hold_after_the_restart() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let pinned = id(&v1.put(RAM, &content(1, 5000)).await);
    let unpinned = id(&v1.put(RAM, &content(2, 5000)).await);
    let before_commit = v1.allocated(RAM, 5000).await;
    v1.pin(&id(&before_commit), 3_600_000).await.expect("an allocation may be pinned");
    v1.commit(&id(&before_commit)).await.expect("committed");
    for payload in [&pinned, &unpinned] {
        v1.pin(payload, 0).await.expect("pinned");
    }
    v1.unpin(&unpinned).await.expect("unpinned");
    server.kill();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    spill_refused(&v1.spill_to(&pinned, DISK).await, &["pinned"]);
    spill_refused(&v1.spill_to(&id(&before_commit), DISK).await, &["pinned"]);
    spilled(v1.spill_to(&unpinned, DISK).await, DISK);
    v1.delete(&pinned, false).await.expect("a pin does not block Delete");
}

#[tokio::test]
async fn given_targets_and_policies_that_forbid_it_when_spilled_then_not_ok_with_the_reason() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let disk = id(&v1.put(DISK, &content(1, 5000)).await);
    spill_refused(&v1.spill_to(&disk, RAM).await, &["faster"]);
    let resident =
        put_with(&v1, core::EvictionPolicy { min_residency_tier: RAM, ..Default::default() }, b"near").await;
    for target in [DISK, VOID] {
        spill_refused(&v1.spill_to(&resident, target).await, &["min_residency_tier"]);
    }
    let durable =
        put_with(&v1, core::EvictionPolicy { require_durable: true, ..Default::default() }, b"kept").await;
    spill_refused(&v1.spill_to(&durable, VOID).await, &["require_durable"]);
    spilled(v1.spill_to(&durable, DISK).await, DISK);
    spill_refused(&v1.spill_to(&durable, VOID).await, &["require_durable"]);
}

#[tokio::test]
async fn given_target_void_when_spilled_then_the_payload_is_deleted_and_no_descriptor_is_shown() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    for tier in [RAM, DISK] {
        let payload = v1.put(tier, &content(1, 5000)).await;
        let result = v1.spill_to(&id(&payload), VOID).await;
        assert!(result.ok && result.payload_descriptor.is_none(), "{result:?}");
        refused(v1.resolve(&id(&payload)).await, Code::NotFound, &[]);
        eventually("its bytes go", async || (!v1.path(&payload).exists()).then_some(())).await;
    }
}

#[tokio::test]
async fn given_no_target_when_spilled_then_its_own_spill_target_else_disk_and_lower_already_is_fine() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let plain = id(&v1.put(RAM, &content(1, 5000)).await);
    let durable = spilled(v1.spill_to(&plain, UNSPECIFIED).await, DISK);
    assert_eq!(spilled(v1.spill_to(&plain, UNSPECIFIED).await, DISK), durable, "already there");
    let target = |spill_target| core::EvictionPolicy { spill_target, ..Default::default() };
    let to_void = put_with(&v1, target(VOID), b"scrap").await;
    let result = v1.spill_to(&to_void, UNSPECIFIED).await;
    assert!(result.ok && result.payload_descriptor.is_none(), "{result:?}");
    refused(v1.resolve(&to_void).await, Code::NotFound, &[]);
    let to_ram = put_with(&v1, target(RAM), b"high").await;
    spilled(v1.spill_to(&to_ram, UNSPECIFIED).await, RAM);
    let lower = spilled(v1.spill_to(&to_ram, DISK).await, DISK);
    assert_eq!(
        spilled(v1.spill_to(&to_ram, UNSPECIFIED).await, DISK),
        lower,
        "already below it: nothing changes"
    );
}

#[tokio::test]
async fn given_a_full_disk_tier_when_spilled_then_it_waits_and_the_payload_is_as_before() {
    let place = Place::new().with("STORAGE__DISK__CAPACITY_BYTES", "8MiB");
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let hog = v1.allocated(DISK, 8 << 20).await;
    let payload = id(&v1.put(RAM, &content(1, 5000)).await);
    let answer = untimed(&server).spill(within(1_000, spilling(&payload, DISK))).await.expect("one result");
    spill_refused(&answer.into_inner().results[0], &["DISK", "full"]);
    let after = v1.resolve(&payload).await.expect("known");
    assert_eq!((after.tier, after.state()), (RAM, PayloadState::Active));
    // In the background it is retried while possible.
    let background = rt::SpillRequest { policy: BEST_EFFORT, ..spilling(&payload, DISK) };
    assert!(v1.spill_one(background).await.ok);
    v1.delete(&id(&hog), false).await.expect("deleted");
    arrives(&v1, &payload, DISK).await;
    assert_eq!(v1.bytes(&payload).await, (DISK, content(1, 5000)));
}

#[tokio::test]
async fn given_a_prefetch_when_asked_then_ok_at_once_and_the_payload_arrives() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let bytes = content(9, 1 << 20);
    let payload = id(&v1.put(DISK, &bytes).await);
    v1.prefetch(&payload, RAM).await.expect("scheduled");
    arrives(&v1, &payload, RAM).await;
    assert_eq!(v1.bytes(&payload).await, (RAM, bytes));
    let allocated = id(&v1.allocated(DISK, 64).await);
    refused(v1.prefetch(&allocated, RAM).await, Code::FailedPrecondition, &["commit"]);
}
