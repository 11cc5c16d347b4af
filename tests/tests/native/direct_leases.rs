//! Direct leases, end to end: a real server, sessions of this process and of others, payloads in slabs.
//!
//! That a lease asked nobody is seen from the server's own count of leases it granted: it does not go up.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use payload_client::blocking::{Client, ReadLease};
use payload_client::{AcquireOptions, Memory, SpillOptions};
use payload_tests::peer::{Peer, answer};
use payload_tests::server::{PATIENCE, Place, Server};
use payload_tests::v1::{RAM, content};
use payload_types::{ByteCount, Checksum, ErrorKind, PayloadId, Tier};
use payload_wire::pb::core::v1 as core;
use payload_wire::pb::operations::v1::NodeAccounting;
use xxhash_rust::xxh3::xxh3_64;

fn connect(server: &Server) -> Client {
    let client = Client::connect(&server.address).expect("connected");
    assert!(client.session().is_some_and(payload_client::Session::leases_directly), "the server offers it");
    client
}

fn put(client: &Client, bytes: &[u8]) -> PayloadId {
    let mut payload =
        client.allocate(ByteCount(bytes.len() as u64)).memory(Memory::Arena).open().expect("room");
    payload.copy_from_slice(bytes);
    payload.commit(Some(Checksum(xxh3_64(bytes)))).expect("committed").id
}

fn lease(client: &Client, id: PayloadId) -> ReadLease {
    client.acquire(id, &AcquireOptions::default()).expect("leased")
}

fn node(client: &Client) -> NodeAccounting {
    let stats = client.grpc(async |client| client.accounting().await).expect("answered");
    stats.node.expect("there")
}

fn wire(id: PayloadId) -> core::PayloadId {
    core::PayloadId { value: id.as_bytes().to_vec() }
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// How many leases the server has granted while `work` ran.
fn granted(client: &Client, work: impl FnOnce()) -> u64 {
    let before = node(client).leases_granted_total;
    work();
    node(client).leases_granted_total - before
}

#[test]
fn given_a_payload_in_a_slab_when_leased_then_nobody_is_asked_and_it_is_counted_and_shown() {
    let place = Place::new();
    let server = place.start();
    let (writer, reader) = (connect(&server), connect(&server));
    let bytes = content(1, 70_001);
    let id = put(&writer, &bytes);
    let asked = granted(&writer, || {
        for client in [&writer, &reader] {
            let held = lease(client, id);
            assert_eq!((&*held, held.is_valid()), (&bytes[..], true));
            assert_eq!(held.descriptor().checksum, Some(Checksum(xxh3_64(&bytes))), "an entry has it");
            assert_eq!((node(client).direct_leases, node(client).leases), (1, 0));
            let holders = client.grpc(async |client| client.holders(id).await).expect("answered");
            let pids: Vec<_> = holders.direct.iter().map(|holder| holder.owner.as_ref()?.pid).collect();
            assert_eq!((pids, holders.direct[0].leases), (vec![Some(std::process::id())], 1));
            drop(held);
            assert_eq!(node(client).direct_leases, 0);
        }
    });
    assert_eq!(asked, 0, "leased directly");
    // What a table cannot tell is asked for, and answered as ever.
    let refused = reader.acquire(PayloadId::from_bytes([7; 16]), &AcquireOptions::default());
    assert_eq!(refused.expect_err("unknown").kind(), Some(ErrorKind::NotFound));
    let version = Some(payload_types::Version(99));
    let fenced = AcquireOptions { expected_version: version, ..AcquireOptions::default() };
    let refused = reader.acquire(id, &fenced).expect_err("another version");
    assert_eq!(refused.kind(), Some(ErrorKind::FailedPrecondition));
    let id = writer
        .allocate(ByteCount(9))
        .memory(Memory::Segment)
        .open()
        .expect("room")
        .commit(None)
        .expect("committed")
        .id;
    assert_eq!(granted(&writer, || drop(lease(&reader, id))), 1, "a segment is asked for");
}

#[test]
fn given_more_leases_than_cells_when_taken_one_by_one_and_at_once_then_the_rest_is_asked_for() {
    const MANY: u64 = 600;
    let place = Place::new();
    let server = place.start();
    let client = connect(&server);
    let ids: Vec<_> = (0..MANY).map(|seed| put(&client, &seed.to_le_bytes())).collect();
    let is_right =
        |leases: &[ReadLease]| leases.iter().zip(0..MANY).all(|(lease, seed)| **lease == seed.to_le_bytes());
    let mut asked = Vec::new();
    for _ in 0..2 {
        asked.push(granted(&client, || {
            let leases: Vec<_> = ids.iter().map(|id| lease(&client, *id)).collect();
            assert!(is_right(&leases));
        }));
        asked.push(granted(&client, || {
            let leases = client.acquire_many(&ids, &AcquireOptions::default()).expect("asked");
            let leases: Vec<_> = leases.into_iter().collect::<Result<_, _>>().expect("all of them");
            assert!(is_right(&leases));
            assert!(
                client.delete(ids[0], false, None).is_err() && client.delete(ids[599], false, None).is_err()
            );
            client.release_many(leases).expect("released");
        }));
    }
    assert_eq!(asked, [MANY - 512; 4], "one thread has 512 cells");
    assert_eq!((node(&client).direct_leases, node(&client).leases), (0, 0));
    ids.iter().for_each(|id| client.delete(*id, false, None).expect("nobody holds it"));
}

#[test]
fn given_a_direct_lease_when_deleted_or_spilled_then_refused_until_it_ends_and_by_force_it_is_taken() {
    let place = Place::new();
    let server = place.start();
    let (writer, reader) = (connect(&server), connect(&server));
    let bytes = content(2, 5_000);
    let id = put(&writer, &bytes);
    let held = lease(&reader, id);
    for _ in 0..3 {
        let refused = writer.delete(id, false, None).expect_err("held");
        assert_eq!(refused.kind(), Some(ErrorKind::LeaseConflict), "{refused}");
        let spilled = writer.spill(&[id], &SpillOptions::default()).expect("answered");
        assert!(spilled[0].result.is_err(), "{spilled:?}");
        assert!(held.is_valid() && *held == bytes[..]);
        // Refusing gives it back as it was: others lease it.
        assert_eq!(granted(&writer, || assert_eq!(&*lease(&writer, id), &bytes[..])), 0);
    }
    drop(held);
    writer.delete(id, false, None).expect("nobody holds it");
    let gone = reader.acquire(id, &AcquireOptions::default()).expect_err("deleted");
    assert_eq!(gone.kind(), Some(ErrorKind::NotFound));

    let (id, kept) = (put(&writer, &bytes), put(&writer, &bytes));
    let (held, other) = (lease(&reader, id), lease(&reader, kept));
    writer.delete(id, true, None).expect("by force");
    until("the lease is taken away", || !held.is_valid());
    assert!(other.is_valid() && *other == bytes[..], "another payload's is not concerned");
    assert!(reader.acquire(id, &AcquireOptions::default()).is_err());
}

#[test]
fn given_a_process_with_a_direct_lease_when_it_is_killed_then_what_it_held_is_free_after_the_grace() {
    let place = Place::new();
    let server = place.start();
    let client = connect(&server);
    let bytes = content(3, 9_000);
    let ids = [put(&client, &bytes), put(&client, &bytes)];
    let mut peer = Peer::start(&server);
    for id in ids {
        assert_eq!(peer.ask_bytes("native-hold", &wire(id)), answer(RAM, &bytes));
    }
    assert_eq!(node(&client).direct_leases, 2);
    let holders = client.grpc(async |client| client.holders(ids[0]).await).expect("answered");
    assert_eq!(holders.direct[0].owner.as_ref().and_then(|owner| owner.pid), Some(peer.pid()));
    assert!(client.delete(ids[0], false, None).is_err(), "held by another process");
    drop(peer);
    for id in ids {
        until("what a dead process held is free", || client.delete(id, false, None).is_ok());
    }
    until("its pages are gone", || node(&client).direct_sessions == 1);
    assert_eq!(node(&client).direct_leases, 0);
}

#[test]
fn given_tables_that_grow_when_read_meanwhile_then_bytes_are_right_and_all_is_leased_directly_in_the_end() {
    const MANY: u64 = 16_000;
    let place = Place::new();
    let server = place.start();
    let (writer, reader) = (connect(&server), connect(&server));
    let ids: Vec<PayloadId> = (0..200).map(|seed: u64| put(&writer, &seed.to_le_bytes())).collect();
    let is_over = AtomicBool::new(false);
    let mut all = ids.clone();
    std::thread::scope(|scope| {
        let reads = scope.spawn(|| {
            let mut reads = 0u64;
            while !is_over.load(Ordering::Relaxed) {
                for (seed, id) in (0u64..).zip(&ids) {
                    assert_eq!(*lease(&reader, *id), seed.to_le_bytes());
                    reads += 1;
                }
            }
            reads
        });
        for seed in all.len() as u64..MANY {
            all.push(put(&writer, &seed.to_le_bytes()));
        }
        is_over.store(true, Ordering::Relaxed);
        assert!(reads.join().expect("bytes were right") > 0);
    });
    // A session that came later, and those that were there.
    let late = connect(&server);
    for client in [&late, &reader] {
        let mut asked = u64::MAX;
        until("the larger tables are there", || {
            asked = granted(&writer, || {
                for (seed, id) in (0u64..).zip(&all) {
                    assert_eq!(*lease(client, *id), seed.to_le_bytes());
                }
            });
            asked <= node(&writer).direct_unplaced_total
        });
        assert!(asked < MANY / 100, "{asked} of {MANY} found no place");
    }
}

#[test]
fn given_pressure_when_read_directly_then_bytes_never_change_and_what_is_read_often_stays() {
    const HOT: usize = 16;
    const BYTES: usize = 16 << 10;
    let place = Place::new().with("STORAGE__RAM__CAPACITY_BYTES", "8MiB");
    let server = place.start();
    let (writer, reader) = (connect(&server), connect(&server));
    let bytes = |seed: usize| content(seed as u64, BYTES);
    let hot: Vec<_> = (0..HOT).map(|seed| put(&writer, &bytes(seed))).collect();
    let (is_over, reads) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let expected: Vec<_> = (0..HOT).map(bytes).collect();
            while !is_over.load(Ordering::Relaxed) {
                for (id, expected) in hot.iter().zip(&expected) {
                    let held = lease(&reader, *id);
                    let is_right = *held == expected[..];
                    // By force or by quota alone it could have been taken, and neither happens here.
                    assert!(is_right && held.is_valid(), "a leased payload changed");
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let mut cold = Vec::new();
        // Four times what fits.
        for seed in 0..2_000 {
            cold.push(put(&writer, &bytes(1_000 + seed)));
            // Readers are faster than one writer over rings on most machines; on others it waits for them.
            let wanted = (seed as u64 + 1) * 8;
            let start = Instant::now();
            while reads.load(Ordering::Relaxed) < wanted && start.elapsed() < Duration::from_millis(20) {
                std::thread::yield_now();
            }
            if seed % 64 == 0 {
                let old = cold[seed / 2];
                assert_eq!(&*lease(&writer, old), &bytes(1_000 + seed / 2)[..], "moved, and the same");
            }
        }
        is_over.store(true, Ordering::Relaxed);
    });
    let stays =
        hot.iter().filter(|id| writer.resolve(**id).is_ok_and(|found| found.tier == Tier::Ram)).count();
    assert!(node(&writer).direct_samples_total > 0, "samples reached the shards");
    assert!(stays >= HOT * 3 / 4, "{stays} of {HOT} payloads that were read all the time are in RAM");
}
