//! Full tiers, on a real server with several processes: who waits and is served, who is evicted, and who is not.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};

use payload_tests::server::{Place, Server, eventually};
use payload_tests::v1::{
    DISK, RAM, UNSPECIFIED, V1, VOID, acquisition, allocation, content, id, promotion, refused, within,
};
use payload_wire::pb::core::v1 as core;
use payload_wire::pb::core::v1::PayloadId;
use payload_wire::pb::runtime::v1 as rt;
use tonic::Code;

const MIB: usize = 1 << 20;

/// 16 MiB of RAM and 256 MiB of disk; nobody waits longer than the test.
fn place() -> Place {
    Place::new()
        .with("STORAGE__RAM__CAPACITY_BYTES", "16MiB")
        .with("STORAGE__DISK__CAPACITY_BYTES", "256MiB")
        .with("LIMITS__ALLOCATE_WAIT", "1h")
}

fn policed(size: usize, policy: core::EvictionPolicy) -> rt::AllocatePayloadRequest {
    rt::AllocatePayloadRequest { eviction_policy: Some(policy), ..allocation(RAM, size as u64) }
}

fn priority(priority: core::EvictionPriority) -> core::EvictionPolicy {
    core::EvictionPolicy { priority: priority.into(), ..Default::default() }
}

/// Allocates as asked, writes in place, commits.
async fn put(v1: &V1, request: rt::AllocatePayloadRequest, bytes: &[u8]) -> PayloadId {
    let descriptor = v1.allocate(request).await.expect("allocated").payload_descriptor.expect("one");
    v1.map(&descriptor).copy_from_slice(bytes);
    v1.commit(&id(&descriptor)).await.expect("committed");
    id(&descriptor)
}

async fn tier_of(v1: &V1, id: &PayloadId) -> Option<i32> {
    v1.resolve(id).await.ok().map(|descriptor| descriptor.tier)
}

/// Another process deletes a payload.
fn delete_elsewhere(server: &Server, id: &PayloadId) {
    let mut peer = Command::new(env!("CARGO_BIN_EXE_peer"))
        .arg(&server.address)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a second process");
    let name: String = id.value.iter().map(|byte| format!("{byte:02x}")).collect();
    writeln!(peer.stdin.take().expect("piped"), "delete {name}").expect("it listens");
    let mut answer = String::new();
    BufReader::new(peer.stdout.take().expect("piped")).read_line(&mut answer).expect("it answers");
    assert_eq!(answer.trim(), "deleted");
    assert!(peer.wait().expect("it ends").success());
}

#[tokio::test]
async fn given_a_full_tier_when_another_process_deletes_then_who_waits_is_served() {
    // The server's own limit on waiting is one that no slow machine races; the one who waits brings his own.
    let place = place().with("LIMITS__ALLOCATE_WAIT", "300ms");
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let never = priority(core::EvictionPriority::Never);
    let hog = put(&v1, policed(14 * MIB, never), &content(1, 14 * MIB)).await;
    let waiting = {
        let v1 = v1.clone();
        let request = within(600_000, allocation(RAM, 8 * MIB as u64));
        tokio::spawn(async move { v1.catalog().allocate_payload(request).await })
    };
    // One is refused with the reason when its time is over, and the other one waits on.
    let late = v1.allocate(allocation(RAM, 4 * MIB as u64)).await;
    refused(
        late,
        Code::ResourceExhausted,
        &["RAM", "allocated 14 MiB", "leased", "pinned", "spilling", "free"],
    );
    assert!(!waiting.is_finished());
    delete_elsewhere(&server, &hog);
    let served = waiting.await.expect("no panic").expect("served").into_inner();
    let served = served.payload_descriptor.expect("one");
    assert_eq!(v1.path(&served).metadata().expect("exists").len(), 8 * MIB as u64);
}

#[tokio::test]
async fn given_more_than_ram_holds_when_put_then_it_moves_to_disk_and_every_byte_comes_back() {
    let place = place();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let leased = put(&v1, allocation(RAM, MIB as u64), &content(100, MIB)).await;
    let lease = v1.lease(&leased).await.expect("leased");
    let mapping = v1.map(lease.payload_descriptor.as_ref().expect("one"));
    let mut payloads = Vec::new();
    for seed in 0..48 {
        let bytes = content(seed, MIB);
        payloads.push((put(&v1, allocation(RAM, MIB as u64), &bytes).await, bytes));
    }
    let mut on_disk = 0;
    for (payload, bytes) in &payloads {
        let (tier, read) = v1.bytes(payload).await;
        assert!(read == *bytes);
        on_disk += usize::from(tier == DISK);
    }
    // 16 MiB of RAM hold at most 15 beside the leased one.
    assert!((33..=48).contains(&on_disk), "{on_disk} of 48 on disk");
    assert_eq!(tier_of(&v1, &leased).await, Some(RAM), "a leased one stays");
    assert!(mapping[..] == content(100, MIB));
    v1.release(&lease).await.expect("released");
    assert_eq!(v1.stats().await.expect("stats").payloads_ram, 49 - on_disk as u64);
}

#[tokio::test]
async fn given_priorities_and_void_when_ram_fills_then_low_goes_first_and_void_is_discarded() {
    // Evicted only for who waits, so that it can be counted.
    let place = place().with("STORAGE__RAM__HIGH_WATERMARK", "100").with("STORAGE__RAM__LOW_WATERMARK", "99");
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let void = core::EvictionPolicy { spill_target: VOID, ..priority(core::EvictionPriority::Low) };
    let cache = put(&v1, policed(2 * MIB, void), &content(1, 2 * MIB)).await;
    let low = put(&v1, policed(2 * MIB, priority(core::EvictionPriority::Low)), &content(2, 2 * MIB)).await;
    let plain = put(&v1, allocation(RAM, 2 * MIB as u64), &content(3, 2 * MIB)).await;
    let high = put(&v1, policed(2 * MIB, priority(core::EvictionPriority::High)), &content(4, 2 * MIB)).await;
    let never =
        put(&v1, policed(2 * MIB, priority(core::EvictionPriority::Never)), &content(5, 2 * MIB)).await;
    let first = v1.allocated(RAM, 10 * MIB as u64).await;
    eventually("the discarded one is gone", async || v1.resolve(&cache).await.err()).await;
    refused(v1.lease(&cache).await, Code::NotFound, &["deleted"]);
    let tiers = [&low, &plain, &high, &never].map(|payload| tier_of(&v1, payload));
    let mut seen = Vec::new();
    for tier in tiers {
        seen.push(tier.await);
    }
    assert_eq!(seen, [Some(DISK), Some(RAM), Some(RAM), Some(RAM)], "LOW alone made the room");
    v1.delete(&id(&first), false).await.expect("deleted");
    // What was promoted back has its file still: it goes again without being written.
    v1.promote(promotion(&low, RAM)).await.expect("promoted");
    assert!(v1.bytes(&low).await == (RAM, content(2, 2 * MIB)));
    let bytes_disk = v1.stats().await.expect("stats").bytes_disk;
    v1.allocated(RAM, 10 * MIB as u64).await;
    assert_eq!(tier_of(&v1, &never).await, Some(RAM));
    let mut tiers = Vec::new();
    for payload in [&low, &plain, &high] {
        tiers.push(tier_of(&v1, payload).await);
    }
    assert_eq!(tiers, [Some(DISK), Some(RAM), Some(RAM)]);
    assert!(v1.bytes(&low).await == (DISK, content(2, 2 * MIB)), "the same bytes, from its file");
    assert!(v1.stats().await.expect("stats").bytes_disk >= bytes_disk);
}

#[tokio::test]
async fn given_a_huge_wait_and_many_small_ones_when_space_comes_and_goes_then_all_get_their_turn() {
    let place = place();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let mut held = Vec::new();
    for _ in 0..16 {
        held.push(id(&v1.allocated(RAM, MIB as u64).await));
    }
    let huge = {
        let v1 = v1.clone();
        tokio::spawn(async move { v1.allocate(allocation(RAM, 12 * MIB as u64)).await })
    };
    // Twelve producers that never pause: each deletes what it was given and asks again.
    let small: Vec<_> = held
        .into_iter()
        .map(|first| {
            let v1 = v1.clone();
            tokio::spawn(async move {
                let mut last = first;
                for _ in 0..20 {
                    v1.delete(&last, false).await.expect("deleted");
                    last = id(&v1.allocated(RAM, MIB as u64).await);
                }
                v1.delete(&last, false).await.expect("deleted");
            })
        })
        .collect();
    for task in small {
        task.await.expect("every small one was served, each time");
    }
    let huge = huge.await.expect("no panic").expect("the huge one was served");
    v1.delete(&id(&huge.payload_descriptor.expect("one")), false).await.expect("deleted");
}

#[tokio::test]
async fn given_promotions_into_a_full_tier_when_all_ram_is_taken_then_others_go_and_nobody_hangs() {
    let place = place();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let mut payloads = Vec::new();
    for seed in 0..40 {
        let bytes = content(seed, MIB);
        payloads.push((id(&v1.put(DISK, &bytes).await), bytes));
    }
    // More than twice what RAM holds is asked for at once, and read where it was asked for.
    let readers: Vec<_> = payloads
        .into_iter()
        .map(|(payload, bytes)| {
            let v1 = v1.clone();
            tokio::spawn(async move {
                let wish = rt::AcquireReadLeaseRequest { min_tier: RAM, ..acquisition(&payload) };
                let lease = v1.acquire(wish).await.expect("leased in RAM");
                let descriptor = lease.payload_descriptor.as_ref().expect("one");
                assert!((descriptor.tier, v1.look(descriptor)) == (RAM, bytes));
                v1.release(&lease).await.expect("released");
            })
        })
        .collect();
    for reader in readers {
        reader.await.expect("read");
    }
    let page = v1.list(payload_tests::v1::listing(UNSPECIFIED, 100)).await.expect("a page");
    assert_eq!(page.total_count, 40);
}

#[tokio::test]
async fn given_a_full_disk_when_ram_is_waited_for_then_what_needs_no_room_goes_before_all_that_do() {
    // Who is passed over comes back in a moment, so that one tried after another would never be over.
    let place = place()
        .with("STORAGE__DISK__CAPACITY_BYTES", "16MiB")
        .with("STORAGE__RAM__HIGH_WATERMARK", "100")
        .with("STORAGE__RAM__LOW_WATERMARK", "99")
        .with("SPILL_WORKERS__RETRY_BACKOFF", "1ms");
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let hog = id(&v1.put(DISK, &content(1, 16 * MIB)).await);
    let mut plain = Vec::new();
    for seed in 0..7 {
        plain.push(put(&v1, allocation(RAM, 2 * MIB as u64), &content(seed, 2 * MIB)).await);
    }
    let void = core::EvictionPolicy { spill_target: VOID, ..Default::default() };
    let cache = put(&v1, policed(2 * MIB, void), &content(9, 2 * MIB)).await;
    let wait = |mib: usize| {
        let (v1, request) = (v1.clone(), within(120_000, allocation(RAM, (mib * MIB) as u64)));
        async move { v1.catalog().allocate_payload(request).await }
    };
    let first = wait(2).await.expect("the last in rank made room").into_inner();
    refused(v1.lease(&cache).await, Code::NotFound, &[]);
    for (seed, payload) in (0..).zip(&plain) {
        assert!(v1.bytes(payload).await == (RAM, content(seed, 2 * MIB)), "the disk is full");
    }
    // Nobody can go now; when the disk has room, who waited for it does.
    let waiting = tokio::spawn(wait(4));
    v1.delete(&hog, false).await.expect("deleted");
    waiting.await.expect("no panic").expect("served");
    assert!(first.payload_descriptor.is_some());
    for (seed, payload) in (0..).zip(&plain) {
        assert!(v1.bytes(payload).await.1 == content(seed, 2 * MIB));
    }
}

#[tokio::test]
async fn given_a_discardable_payload_on_a_full_disk_with_a_copy_in_ram_when_waited_for_then_it_makes_room() {
    let place = place().with("STORAGE__DISK__CAPACITY_BYTES", "16MiB");
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let void = core::EvictionPolicy { spill_target: VOID, ..Default::default() };
    let request =
        rt::AllocatePayloadRequest { eviction_policy: Some(void), ..allocation(DISK, 4 * MIB as u64) };
    let cache = put(&v1, request, &content(1, 4 * MIB)).await;
    let kept = id(&v1.put(DISK, &content(2, 10 * MIB)).await);
    for payload in [&cache, &kept] {
        v1.promote(promotion(payload, RAM)).await.expect("promoted");
    }
    let request = within(120_000, allocation(DISK, 5 * MIB as u64));
    v1.catalog().allocate_payload(request).await.expect("room was made");
    refused(v1.lease(&cache).await, Code::NotFound, &[]);
    assert!(v1.bytes(&kept).await.1 == content(2, 10 * MIB));
}
