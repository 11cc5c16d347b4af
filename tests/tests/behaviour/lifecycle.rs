//! behaviour.md, "Lifecycle": AllocatePayload, CommitPayload, Delete. Listing and statistics have a file of their own.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use payload_tests::server::{PATIENCE, Place, eventually};
use payload_tests::v1::{
    DISK, RAM, UNSPECIFIED, V1, VOID, allocation, content, id, listing, refused, untimed, within,
};
use payload_wire::pb::core::v1 as core;
use payload_wire::pb::core::v1::PayloadState;
use payload_wire::pb::core::v1::payload_descriptor::Location;
use payload_wire::pb::runtime::v1 as rt;
use tonic::Code;

const GIB: u64 = 1 << 30;

#[tokio::test]
async fn given_no_size_or_too_much_when_allocated_then_the_contracts_codes_and_nothing_is_kept() {
    // Nothing may wait for space that can never come.
    let place = Place::new().with("LIMITS__ALLOCATE_WAIT", "1h");
    let server = place.start();
    let v1 = V1::connect(&server).await;
    for tier in [RAM, DISK] {
        refused(v1.allocate(allocation(tier, 0)).await, Code::InvalidArgument, &["size_bytes"]);
        for size in [128 * GIB + 1, u64::MAX] {
            refused(v1.allocate(allocation(tier, size)).await, Code::InvalidArgument, &["128 GiB"]);
        }
        for size in [(64 << 20) + 1, 128 * GIB] {
            let answer = tokio::time::timeout(PATIENCE, v1.allocate(allocation(tier, size))).await;
            refused(answer.expect("at once"), Code::ResourceExhausted, &["64 MiB"]);
        }
        let whole = v1.allocated(tier, 64 << 20).await;
        let full = untimed(&server).allocate_payload(within(1_000, allocation(tier, 4096))).await;
        let words = ["allocated", "leased", "pinned", "spilling", "free"];
        refused(full, Code::ResourceExhausted, &words);
        v1.delete(&id(&whole), false).await.expect("deleted");
        let next =
            eventually("space comes back", async || v1.allocate(allocation(tier, 64 << 20)).await.ok()).await;
        v1.delete(&id(&next.payload_descriptor.expect("one")), false).await.expect("deleted");
    }
    let page = v1.list(listing(UNSPECIFIED, 10)).await.expect("a page");
    assert_eq!(page.total_count, 0);
}

#[tokio::test]
async fn given_tiers_that_are_none_when_allocated_then_each_has_its_kept_code() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    refused(v1.allocate(allocation(UNSPECIFIED, 64)).await, Code::FailedPrecondition, &["TIER_UNSPECIFIED"]);
    refused(v1.allocate(allocation(VOID, 64)).await, Code::InvalidArgument, &["TIER_VOID"]);
}

#[tokio::test]
async fn given_ram_and_disk_when_allocated_then_the_location_is_there_at_full_size() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    for (tier, size) in [(RAM, 1), (RAM, 4096), (RAM, 1_234_567), (DISK, 1), (DISK, 1_234_567)] {
        let request = rt::AllocatePayloadRequest {
            ttl_ms: 3_600_000,
            eviction_policy: Some(core::EvictionPolicy {
                priority: core::EvictionPriority::High.into(),
                require_durable: true,
                spill_target: DISK,
                min_residency_tier: DISK,
            }),
            ..allocation(tier, size)
        };
        let answer = v1.allocate(request).await.expect("allocated");
        assert_eq!(answer.object_upload_path, "");
        let descriptor = answer.payload_descriptor.expect("one");
        assert_eq!(
            (descriptor.tier, descriptor.state(), descriptor.version),
            (tier, PayloadState::Allocated, 1)
        );
        assert_eq!(id(&descriptor).value.len(), 16);
        assert_eq!(id(&descriptor).value[6] >> 4, 7, "UUIDv7: id order is creation order");
        assert_eq!(descriptor.eviction_policy, request.eviction_policy);
        let created = descriptor.created_at.expect("set");
        let expires = descriptor.expires_at.expect("a ttl was given");
        assert_eq!((expires.seconds - created.seconds, expires.nanos), (3600, created.nanos));
        let (offset, length) = match descriptor.location.as_ref().expect("set") {
            Location::Ram(ram) => {
                assert!(ram.shm_name.starts_with(&format!("/{}-", place.prefix())), "{ram:?}");
                (0, ram.length_bytes)
            }
            Location::Disk(disk) => {
                assert!(disk.path.starts_with(place.path().to_str().expect("text")), "{disk:?}");
                (disk.offset_bytes, disk.length_bytes)
            }
            Location::Gpu(gpu) => panic!("not asked for: {gpu:?}"),
        };
        assert_eq!((offset, length), (0, size));
        assert_eq!(fs::metadata(v1.path(&descriptor)).expect("exists").len(), size, "at full size already");
    }
}

#[tokio::test]
async fn given_no_evict_or_never_when_allocated_with_a_ttl_then_there_is_no_expiry() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let never = core::EvictionPolicy { priority: core::EvictionPriority::Never.into(), ..Default::default() };
    let kept = rt::AllocatePayloadRequest { ttl_ms: 1, no_evict: true, ..allocation(RAM, 64) };
    let also = rt::AllocatePayloadRequest { ttl_ms: 1, eviction_policy: Some(never), ..allocation(RAM, 64) };
    let without = allocation(RAM, 64);
    for request in [kept, also, without] {
        let descriptor = v1.allocate(request).await.expect("allocated").payload_descriptor.expect("one");
        assert_eq!(descriptor.expires_at, None);
        assert_eq!(v1.row(&id(&descriptor)).await.expect("listed").expires_at_ms, 0);
    }
}

#[tokio::test]
async fn given_a_policy_that_contradicts_itself_when_allocated_then_invalid_argument() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let policies = [
        core::EvictionPolicy { require_durable: true, spill_target: VOID, ..Default::default() },
        core::EvictionPolicy { min_residency_tier: RAM, spill_target: DISK, ..Default::default() },
        core::EvictionPolicy { min_residency_tier: DISK, spill_target: VOID, ..Default::default() },
        core::EvictionPolicy { min_residency_tier: VOID, ..Default::default() },
    ];
    for policy in policies {
        let request = rt::AllocatePayloadRequest { eviction_policy: Some(policy), ..allocation(RAM, 64) };
        refused(v1.allocate(request).await, Code::InvalidArgument, &[]);
    }
}

#[tokio::test]
async fn given_an_allocation_that_is_never_committed_when_its_time_is_over_then_it_is_reclaimed() {
    let place = Place::new().with("LEASES__ALLOCATION_TIMEOUT", "1s");
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let timed_out = v1.allocated(RAM, 5000).await;
    let short = rt::AllocatePayloadRequest { ttl_ms: 200, ..allocation(DISK, 5000) };
    let expired = v1.allocate(short).await.expect("allocated").payload_descriptor.expect("one");
    let committed = id(&v1.put(RAM, b"stays").await);
    for descriptor in [&timed_out, &expired] {
        eventually("it is reclaimed", async || v1.resolve(&id(descriptor)).await.err()).await;
        refused(v1.commit(&id(descriptor)).await, Code::NotFound, &[]);
        eventually("its bytes are removed", async || (!v1.path(descriptor).exists()).then_some(())).await;
    }
    let stats = v1.stats().await.expect("stats");
    assert_eq!((stats.payloads_ram, stats.payloads_disk, stats.bytes_ram, stats.bytes_disk), (1, 0, 5, 0));
    assert_eq!(v1.bytes(&committed).await.1, b"stays");
}

#[tokio::test]
async fn given_a_connection_that_ends_when_looked_at_by_another_then_allocations_and_leases_outlive_it() {
    let place = Place::new();
    let server = place.start();
    let first = V1::connect(&server).await;
    let allocated = first.allocated(DISK, 6).await;
    let leased = id(&first.put(RAM, b"leased").await);
    let lease = first.lease(&leased).await.expect("leased");
    drop(first);
    let second = V1::connect(&server).await;
    refused(second.delete(&leased, false).await, Code::Aborted, &["leases"]);
    assert_eq!(second.row(&leased).await.expect("listed").active_leases, 1);
    second.map(&allocated).copy_from_slice(b"second");
    second.commit(&id(&allocated)).await.expect("committed by another connection");
    assert_eq!(second.bytes(&id(&allocated)).await, (DISK, b"second".to_vec()));
    second.release(&lease).await.expect("released by another connection");
    second.delete(&leased, false).await.expect("deleted");
}

#[tokio::test]
async fn given_written_bytes_when_committed_then_active_or_durable_once() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    for (tier, state) in [(RAM, PayloadState::Active), (DISK, PayloadState::Durable)] {
        let bytes = content(3, 70_001);
        let allocated = v1.allocated(tier, 70_001).await;
        v1.map(&allocated).copy_from_slice(&bytes);
        let committed = v1.commit(&id(&allocated)).await.expect("committed");
        assert_eq!((committed.tier, committed.state()), (tier, state));
        assert!(committed.version > allocated.version);
        assert_eq!(committed.location, allocated.location, "bytes stay where they were written");
        assert_eq!(
            (committed.created_at, committed.expires_at),
            (allocated.created_at, allocated.expires_at)
        );
        refused(v1.commit(&id(&allocated)).await, Code::FailedPrecondition, &["committed"]);
        assert_eq!(v1.resolve(&id(&allocated)).await.expect("known").version, committed.version);
        assert_eq!(v1.bytes(&id(&allocated)).await, (tier, bytes));
    }
}

#[tokio::test]
async fn given_the_default_modes_when_committed_then_nobody_may_open_the_bytes_for_writing() {
    let place = Place::new().without("STORAGE__RAM__SEGMENT_MODE").without("STORAGE__DISK__FILE_MODE");
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let mode = |descriptor: &core::PayloadDescriptor| {
        fs::metadata(v1.path(descriptor)).expect("exists").permissions().mode() & 0o7777
    };
    for tier in [RAM, DISK] {
        let allocated = v1.allocated(tier, 100).await;
        assert_eq!(mode(&allocated), 0o660);
        assert_eq!(mode(&v1.commit(&id(&allocated)).await.expect("committed")), 0o440);
        let other = if tier == RAM { DISK } else { RAM };
        assert_eq!(mode(&v1.promote_to(&id(&allocated), other).await.expect("moved")), 0o440);
    }
}

#[tokio::test]
async fn given_commits_at_the_same_time_when_answered_then_one_commit_whose_repeats_join_or_are_refused() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    for tier in [RAM, DISK] {
        let payload = id(&v1.allocated(tier, 4096).await);
        let calls: Vec<_> = (0..16)
            .map(|_| {
                let (v1, payload) = (v1.clone(), payload.clone());
                tokio::spawn(async move { v1.commit(&payload).await })
            })
            .collect();
        let mut versions = Vec::new();
        for call in calls {
            match call.await.expect("no panic") {
                Ok(descriptor) => versions.push(descriptor.version),
                Err(status) => assert_eq!(status.code(), Code::FailedPrecondition, "{status}"),
            }
        }
        assert!(
            !versions.is_empty() && versions.iter().all(|version| *version == versions[0]),
            "{versions:?}"
        );
    }
}

#[tokio::test]
async fn given_a_disk_file_missing_or_short_when_committed_then_refused_and_still_allocated_until_it_is_whole()
 {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let missing = v1.allocated(DISK, 9000).await;
    fs::remove_file(v1.path(&missing)).expect("removed");
    let short = v1.allocated(DISK, 9000).await;
    fs::OpenOptions::new()
        .write(true)
        .open(v1.path(&short))
        .and_then(|file| file.set_len(8999))
        .expect("cut");
    for payload in [&missing, &short] {
        refused(v1.commit(&id(payload)).await, Code::FailedPrecondition, &[]);
        let seen = v1.resolve(&id(payload)).await.expect("still there");
        assert_eq!((seen.state(), seen.version), (PayloadState::Allocated, 1));
        assert_eq!(seen.location, None, "ALLOCATED shows no location");
    }
    v1.map(&short).copy_from_slice(&content(4, 9000));
    v1.commit(&id(&short)).await.expect("whole again");
    assert_eq!(v1.bytes(&id(&short)).await, (DISK, content(4, 9000)));
    v1.delete(&id(&missing), false).await.expect("deleted");
}

#[tokio::test]
async fn given_a_v1_client_when_it_opens_sets_the_length_and_maps_then_writing_and_reading_work() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    for tier in [RAM, DISK] {
        let bytes = content(5, 123_457);
        let allocated = v1.allocated(tier, 123_457).await;
        let mut producer = v1.map(&allocated);
        producer.copy_from_slice(&bytes);
        v1.commit(&id(&allocated)).await.expect("committed");
        let lease = v1.lease(&id(&allocated)).await.expect("leased");
        // Readers open read-write, and set the length that it has.
        let reader = v1.map(lease.payload_descriptor.as_ref().expect("one"));
        assert_eq!(&reader[..], &bytes);
        v1.release(&lease).await.expect("released");
        if tier == RAM {
            // Writable mappings are still there: the copy must be made all the same, and be the bytes.
            assert!(v1.spill_to(&id(&allocated), DISK).await.ok);
            assert_eq!(v1.bytes(&id(&allocated)).await, (DISK, bytes));
        }
        drop((producer, reader));
    }
}

#[tokio::test]
async fn given_any_unleased_payload_when_deleted_then_ok_and_the_second_time_not_found() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let allocated = v1.allocated(RAM, 100).await;
    let active = v1.put(RAM, b"active").await;
    let durable = v1.put(DISK, b"durable").await;
    let pinned = v1.put(RAM, b"pinned").await;
    v1.pin(&id(&pinned), 0).await.expect("pinned");
    let request = rt::AllocatePayloadRequest { no_evict: true, ..allocation(RAM, 100) };
    let no_evict = v1.allocate(request).await.expect("allocated").payload_descriptor.expect("one");
    for payload in [&allocated, &active, &durable, &pinned, &no_evict] {
        v1.delete(&id(payload), false).await.expect("unleased");
        for force in [false, true] {
            refused(v1.delete(&id(payload), force).await, Code::NotFound, &[]);
        }
        refused(v1.resolve(&id(payload)).await, Code::NotFound, &[]);
        eventually("its bytes are removed", async || (!v1.path(payload).exists()).then_some(())).await;
    }
    let stats = v1.stats().await.expect("stats");
    assert_eq!((stats.payloads_ram, stats.payloads_disk, stats.bytes_ram, stats.bytes_disk), (0, 0, 0, 0));
}

#[tokio::test]
async fn given_a_leased_payload_when_deleted_then_aborted_and_by_force_at_once() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    for tier in [RAM, DISK] {
        let bytes = content(6, 50_000);
        let payload = id(&v1.put(tier, &bytes).await);
        let lease = v1.lease(&payload).await.expect("leased");
        let mapping = v1.map(lease.payload_descriptor.as_ref().expect("one"));
        refused(v1.delete(&payload, false).await, Code::Aborted, &["leases"]);
        assert_eq!(v1.bytes(&payload).await.1, bytes, "nothing happened to it");
        v1.delete(&payload, true).await.expect("forced");
        refused(v1.resolve(&payload).await, Code::NotFound, &[]);
        refused(v1.lease(&payload).await, Code::NotFound, &[]);
        v1.release(&lease).await.expect("an invalid lease is as good as released");
        // The memory is not used for anything else while somebody has it mapped.
        let others: Vec<_> = [7, 8, 9].into_iter().map(|seed| content(seed, 50_000)).collect();
        for other in &others {
            v1.put(tier, other).await;
        }
        assert_eq!(&mapping[..], &bytes);
    }
}

#[tokio::test]
async fn given_a_ttl_when_it_passes_under_a_lease_then_no_new_leases_and_removed_with_the_last_one() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let short = rt::AllocatePayloadRequest { ttl_ms: 3000, ..allocation(RAM, 6) };
    let allocated = v1.allocate(short).await.expect("allocated").payload_descriptor.expect("one");
    let unleased = v1.allocate(short).await.expect("allocated").payload_descriptor.expect("one");
    for descriptor in [&allocated, &unleased] {
        v1.map(descriptor).copy_from_slice(b"fleet!");
        v1.commit(&id(descriptor)).await.expect("committed");
    }
    let payload = id(&allocated);
    v1.pin(&id(&unleased), 0).await.expect("a pin does not keep it from expiring");
    let lease = v1.lease(&payload).await.expect("leased");
    let mapping = v1.map(lease.payload_descriptor.as_ref().expect("one"));
    let row = eventually("it is shown EXPIRED", async || {
        let row = v1.row(&payload).await.expect("listed while it is leased");
        (row.state() == PayloadState::Expired).then_some(row)
    })
    .await;
    assert_eq!(row.active_leases, 1);
    refused(v1.lease(&payload).await, Code::NotFound, &["ttl"]);
    refused(v1.resolve(&payload).await, Code::NotFound, &["ttl"]);
    eventually("the unleased one is removed", async || v1.row(&id(&unleased)).await.is_none().then_some(()))
        .await;
    assert_eq!(&mapping[..], b"fleet!", "who held a lease reads on");
    assert!(v1.row(&payload).await.is_some());
    v1.release(&lease).await.expect("released");
    eventually("it goes with its last lease", async || v1.row(&payload).await.is_none().then_some(())).await;
    drop(mapping);
    tokio::time::timeout(PATIENCE, async {
        while !server.segments().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("its segment is removed");
}

#[tokio::test]
async fn given_a_thousand_payloads_that_expire_together_when_others_are_leased_meanwhile_then_nobody_is_held_up()
 {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let lasting = id(&v1.put(RAM, b"lasting").await);
    let makers: Vec<_> = (0..8)
        .map(|_| {
            let v1 = v1.clone();
            tokio::spawn(async move {
                for _ in 0..125 {
                    let brief = rt::AllocatePayloadRequest { ttl_ms: 1500, ..allocation(RAM, 100) };
                    let made = v1.allocate(brief).await.expect("allocated").payload_descriptor.expect("one");
                    // Half of them are committed, if they live that long.
                    if made.payload_id.as_ref().is_some_and(|id| id.value[15] % 2 == 0) {
                        drop(v1.commit(&id(&made)).await);
                    }
                }
            })
        })
        .collect();
    for maker in makers {
        maker.await.expect("no panic");
    }
    eventually("all are gone", async || {
        let lease =
            tokio::time::timeout(PATIENCE, v1.lease(&lasting)).await.expect("not held up").expect("leased");
        v1.release(&lease).await.expect("released");
        (v1.list(listing(UNSPECIFIED, 1)).await.expect("a page").total_count == 1).then_some(())
    })
    .await;
    eventually("with their segments", async || (server.segments().len() == 1).then_some(())).await;
    assert_eq!(v1.bytes(&lasting).await.1, b"lasting");
}
