//! What lies in slabs moves: to disk and back, into segments for readers that cannot map slabs, away under pressure, and at
//! a stop under leases. A real server, native and gRPC clients, another process.
//!
//! The first byte to the last is compared everywhere. Timings decide nothing; what is charged is looked at all the while.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use payload_client::{AcquireOptions, Client, ClientError, Location, Memory, SpillOptions};
use payload_tests::peer::{Peer, answer};
use payload_tests::server::{Place, Server};
use payload_tests::v1::{RAM, content};
use payload_types::{ByteCount, PayloadId, PayloadState, Tier};
use payload_wire::pb::core::v1 as core;

/// Around pages, and larger than a slab of this server (1 MiB).
const SIZES: [usize; 4] = [1, 4096, 70_001, 3_000_001];
/// Sizes that producers mix, of several classes of slabs.
const MIXED: [usize; 4] = [400_000, 5_000, 70_001, 900_000];
/// Memory of the servers that get more than fits.
const RAM_BYTES: usize = 32 << 20;

async fn native(server: &Server) -> Client {
    let client = Client::connect(&server.address).await.expect("connected");
    assert!(client.session().is_some(), "a server on this host gives a session");
    client
}

async fn put(client: &Client, bytes: &[u8]) -> PayloadId {
    let size = ByteCount(bytes.len() as u64);
    let mut payload = client.allocate(size).memory(Memory::Arena).await.expect("allocated");
    assert!(matches!(payload.descriptor().location, Some(Location::Block { .. })), "{payload:?}");
    payload.copy_from_slice(bytes);
    payload.commit(None).await.expect("committed").id
}

async fn read(client: &Client, id: PayloadId) -> Result<Vec<u8>, ClientError> {
    let lease = client.acquire(id, &AcquireOptions::default()).await?;
    let bytes = lease.to_vec();
    lease.release().await?;
    Ok(bytes)
}

fn crowded() -> Place {
    Place::new()
        .with("STORAGE__RAM__CAPACITY_BYTES", &RAM_BYTES.to_string())
        .with("STORAGE__DISK__CAPACITY_BYTES", "512MiB")
}

/// Payload `n` of a producer: its bytes follow from the seed.
fn nth(producer: u64, n: u64) -> (u64, usize) {
    (producer * 1_000_000 + n, MIXED[(n % 4) as usize])
}

/// Waits for the producers; what they put, in the order of each.
async fn all_of<T>(producers: Vec<tokio::task::JoinHandle<Vec<T>>>) -> Vec<T> {
    let mut all = Vec::new();
    for producer in producers {
        all.extend(producer.await.expect("the producer ended well"));
    }
    all
}

#[tokio::test]
async fn given_a_block_that_others_hold_when_leased_over_grpc_then_it_is_shown_in_a_segment_and_stays_theirs()
{
    let place = Place::new();
    let server = place.start();
    let (writer, reader) = (native(&server).await, native(&server).await);
    let remote = Client::connect_grpc(&server.address).await.expect("connected");
    let mut peer = Peer::start(&server);
    for (seed, size) in (1..).zip(SIZES) {
        let bytes = content(seed, size);
        let id = put(&writer, &bytes).await;
        let held = reader.acquire(id, &AcquireOptions::default()).await.expect("leased");
        assert!(matches!(held.descriptor().location, Some(Location::Block { .. })), "{held:?}");
        let wire = core::PayloadId { value: id.as_bytes().to_vec() };
        assert_eq!(peer.ask_bytes("native-hold", &wire), answer(RAM, &bytes));
        assert!(read(&remote, id).await.expect("leased over gRPC") == bytes, "{size} bytes");
        let shown = remote.resolve(id).await.expect("known");
        assert!(matches!(shown.location, Some(Location::Segment { .. })), "{shown:?}");
        assert!(*held == bytes[..], "{size} bytes");
        // What the same session writes next is not put where somebody reads.
        for seed in 100..140 {
            put(&writer, &content(seed, size)).await;
        }
        assert!(*held == bytes[..] && held.is_valid().await, "{size} bytes");
        held.release().await.expect("released");
        assert!(read(&writer, id).await.expect("leased") == bytes, "{size} bytes");
    }
}

#[tokio::test]
async fn given_payloads_in_slabs_when_spilled_and_promoted_then_every_client_reads_them_as_they_were_written()
{
    let place = Place::new();
    let server = place.start();
    let (writer, reader) = (native(&server).await, native(&server).await);
    let remote = Client::connect_grpc(&server.address).await.expect("connected");
    for (seed, size) in (1..).zip(SIZES) {
        for fsync in [false, true] {
            let bytes = content(seed, size);
            let id = put(&writer, &bytes).await;
            let held = reader.acquire(id, &AcquireOptions::default()).await.expect("leased");
            let options = SpillOptions { fsync, ..SpillOptions::default() };
            let refused = remote.spill(&[id], &options).await.expect("asked").remove(0).result;
            assert!(refused.expect_err("somebody holds it").contains("is leased"));
            assert!(*held == bytes[..], "{size} bytes");
            held.release().await.expect("released");

            remote.spill(&[id], &options).await.expect("asked").remove(0).result.expect("spilled");
            assert_eq!(remote.resolve(id).await.expect("known").tier, Tier::Disk);
            for client in [&reader, &remote] {
                assert!(read(client, id).await.expect("leased on disk") == bytes, "{size} bytes");
            }
            let back = remote.promote(id, Tier::Ram, None, None).await.expect("promoted");
            assert_eq!(back.tier, Tier::Ram);
            assert!(matches!(back.location, Some(Location::Segment { .. })), "{back:?}");
            for client in [&writer, &reader, &remote] {
                assert!(read(client, id).await.expect("leased in memory") == bytes, "{size} bytes");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn given_two_producers_of_three_times_memory_when_all_is_read_then_it_is_right_and_capacity_was_kept() {
    let place = crowded();
    let server = place.start();
    let remote = Client::connect_grpc(&server.address).await.expect("connected");
    let mut producers = Vec::new();
    for producer in 0..2 {
        let client = native(&server).await;
        producers.push(tokio::spawn(async move {
            let (mut put_so_far, mut total) = (Vec::new(), 0);
            for n in 0.. {
                let (seed, size) = nth(producer, n);
                put_so_far.push((put(&client, &content(seed, size)).await, seed, size));
                total += size;
                if total >= 3 * RAM_BYTES / 2 {
                    break;
                }
            }
            put_so_far
        }));
    }
    let done = Arc::new(AtomicBool::new(false));
    let (watch, stop) = (remote.clone(), Arc::clone(&done));
    let watcher = tokio::spawn(async move {
        let mut peak = 0;
        while !stop.load(Ordering::Relaxed) {
            let stats = watch.accounting().await.expect("answered");
            let ram = stats.tiers.iter().find(|tier| tier.tier == RAM).expect("there is RAM");
            assert_eq!(ram.capacity_bytes, RAM_BYTES as u64);
            assert!(ram.allocated_bytes <= ram.capacity_bytes, "{ram:?}");
            assert!(ram.peak_bytes <= ram.capacity_bytes, "{ram:?}");
            peak = ram.peak_bytes;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        peak
    });
    let all = all_of(producers).await;
    let reader = native(&server).await;
    for (n, (id, seed, size)) in all.iter().enumerate() {
        let client = if n % 3 == 0 { &remote } else { &reader };
        let bytes = read(client, *id).await.expect("leased");
        assert!(bytes == content(*seed, *size), "payload {seed} of {size} bytes");
    }
    done.store(true, Ordering::Relaxed);
    let peak = watcher.await.expect("capacity was kept");
    assert!(peak > RAM_BYTES as u64 / 2, "memory was short: {peak} bytes at most");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn given_memory_that_is_short_when_blocks_are_leased_over_grpc_meanwhile_then_all_bytes_are_right() {
    let place = crowded();
    let server = place.start();
    let mut producers = Vec::new();
    for producer in 0..2 {
        let client = native(&server).await;
        let remote = Client::connect_grpc(&server.address).await.expect("connected");
        producers.push(tokio::spawn(async move {
            let mut put_so_far = Vec::new();
            for n in 0..140 {
                let (seed, size) = nth(producer, n);
                let bytes = content(seed, size);
                let id = put(&client, &bytes).await;
                if n % 3 == 0 {
                    assert!(read(&remote, id).await.expect("room is made for a copy") == bytes);
                }
                put_so_far.push((id, bytes));
            }
            put_so_far
        }));
    }
    let all = all_of(producers).await;
    let reader = native(&server).await;
    for (id, bytes) in &all {
        assert!(read(&reader, *id).await.expect("leased") == *bytes, "{} bytes", bytes.len());
    }
}

#[tokio::test]
async fn given_leased_payloads_in_slabs_when_the_server_is_told_to_stop_then_leases_read_on_and_all_is_kept()
{
    let place = Place::new();
    let server = place.start();
    let (writer, reader) = (native(&server).await, native(&server).await);
    let (mut all, mut held) = (Vec::new(), Vec::new());
    for seed in 0..40 {
        let bytes = content(seed, 1 + (seed as usize * 7919) % 200_000);
        let id = put(&writer, &bytes).await;
        if seed % 2 == 0 {
            held.push(reader.acquire(id, &AcquireOptions::default()).await.expect("leased"));
        }
        all.push((id, bytes));
    }
    // Sends SIGTERM, and waits for the end in good order.
    server.stop();
    for (lease, (_, bytes)) in held.iter().zip(all.iter().step_by(2)) {
        assert!(**lease == bytes[..], "what is mapped stays");
    }

    let server = place.start();
    let client = native(&server).await;
    for (id, bytes) in &all {
        let found = client.resolve(*id).await.expect("known");
        assert_eq!((found.tier, found.state), (Tier::Disk, PayloadState::Durable));
        assert!(read(&client, *id).await.expect("leased") == *bytes, "{} bytes", bytes.len());
    }
}
