//! The Rust client on the native path, end to end: the async flavour, batches, ACCEPTED, slabs, what is left when the
//! server is gone. A real server, sessions of this process and of others.

use std::process::Command;
use std::time::Instant;

use payload_client::{
    AcquireOptions, AllocateOptions, Client, ClientError, Location, Memory, ReadLease, blocking,
};
use payload_tests::peer::{Peer, answer};
use payload_tests::server::{PATIENCE, Place, Server, eventually, program};
use payload_tests::v1::{RAM, content};
use payload_types::{ByteCount, Checksum, ErrorKind, PayloadId, PayloadState, Tier};
use payload_wire::pb::core::v1 as core;
use xxhash_rust::xxh3::xxh3_64;

async fn native(server: &Server) -> Client {
    let client = Client::connect(&server.address).await.expect("connected");
    assert!(client.session().is_some(), "a server on this host gives a session");
    client
}

fn in_memory(memory: Memory) -> AllocateOptions {
    AllocateOptions::default().memory(memory)
}

async fn put(client: &Client, options: &AllocateOptions, bytes: &[u8]) -> PayloadId {
    let mut payload =
        client.allocate(ByteCount(bytes.len() as u64)).options(options).await.expect("allocated");
    payload.copy_from_slice(bytes);
    payload.commit(Some(Checksum(xxh3_64(bytes)))).await.expect("committed").id
}

async fn lease(client: &Client, id: PayloadId) -> ReadLease {
    client.acquire(id, &AcquireOptions::default()).await.expect("leased")
}

fn wire(id: PayloadId) -> core::PayloadId {
    core::PayloadId { value: id.as_bytes().to_vec() }
}

#[tokio::test]
async fn given_a_client_on_this_host_when_it_stores_and_reads_then_over_the_session_and_to_all_the_same() {
    let place = Place::new();
    let server = place.start();
    let client = native(&server).await;
    let remote = Client::connect_grpc(&server.address).await.expect("connected");
    assert!(remote.session().is_none());
    for (seed, length, tier) in [(1, 1, Tier::Ram), (2, 70_001, Tier::Ram), (3, 300_000, Tier::Disk)] {
        let bytes = content(seed, length);
        let id = put(&client, &AllocateOptions { tier, ..AllocateOptions::default() }, &bytes).await;
        let held = lease(&client, id).await;
        assert_eq!((&*held, held.expires_at(), held.descriptor().tier), (&bytes[..], None, tier));
        assert!(held.is_valid().await);
        held.release().await.expect("released");
        let held = lease(&remote, id).await;
        assert!(*held == bytes[..] && held.expires_at().is_some() && held.is_valid().await);
        // What reads a whole payload knows what it is to be compared with, whichever way it came.
        for client in [&client, &remote] {
            let options = AcquireOptions::default();
            let checksum = client.read_leased(id, &options, |lease| {
                assert_eq!(lease.descriptor().checksum, Some(Checksum(xxh3_64(lease))));
                lease.verify()
            });
            assert_eq!(checksum.await.expect("leased").expect("undamaged"), Checksum(xxh3_64(&bytes)));
        }
        let refused = client.delete(id, false, None).await.expect_err("the other client's lease");
        assert_eq!(refused.kind(), Some(ErrorKind::LeaseConflict));
        held.release().await.expect("released");
        client.delete(id, false, None).await.expect("nobody holds it");
    }
}

#[tokio::test]
async fn given_the_path_of_a_socket_when_connected_then_everything_is_to_be_had() {
    let place = Place::new();
    let server = place.start();
    let path = native(&server).await.session().expect("there").path().to_owned();
    let path = path.to_str().expect("text").to_owned();
    let client = Client::connect(&path).await.expect("connected");
    assert_eq!(client.address(), server.address);
    assert!(client.session().is_some(), "leases go over it");
    let id = put(&client, &AllocateOptions::default(), b"by path").await;
    assert_eq!(&*lease(&client, id).await, b"by path");
    assert_eq!(client.resolve(id).await.expect("there").size, ByteCount(7));
    client.pin(id, None).await.expect("not over rings");
    let listed = tokio::task::spawn_blocking(move || {
        let client = blocking::Client::connect(&path).expect("connected");
        assert!(client.session().is_some(), "leases go over it");
        assert_eq!(&*client.acquire(id, &AcquireOptions::default()).expect("leased"), b"by path");
        client.grpc(async |client| client.list(None, 0, None).await).expect("not over rings")
    });
    let listed = listed.await.expect("no panic").rows;
    assert_eq!(listed.iter().map(|row| row.id).collect::<Vec<_>>(), [id]);
}

#[tokio::test]
async fn given_more_payloads_than_a_ring_holds_when_leased_in_batches_then_each_has_its_own_bytes() {
    let place = Place::new();
    let server = place.start();
    let client = native(&server).await;
    let mut ids = Vec::new();
    for seed in 0..700u64 {
        ids.push(put(&client, &AllocateOptions::default(), &seed.to_le_bytes()).await);
    }
    let stranger = PayloadId::from_bytes([0xEE; 16]);
    ids.insert(350, stranger);
    let remote = Client::connect_grpc(&server.address).await.expect("connected");
    let (address, asked) = (server.address.clone(), ids.clone());
    let blocked = tokio::task::spawn_blocking(move || {
        let client = blocking::Client::connect(&address).expect("connected");
        let leases = client.acquire_many(&asked, &AcquireOptions::default()).expect("asked");
        let read: Vec<_> = leases.iter().map(|lease| lease.as_deref().ok().map(<[u8]>::to_vec)).collect();
        client.release_many(leases.into_iter().flatten().collect()).expect("released");
        read
    });
    let expected: Vec<_> = (0..700u64).map(|seed| Some(seed.to_le_bytes().to_vec())).collect();
    let check = |mut read: Vec<Option<Vec<u8>>>| {
        assert_eq!(read.remove(350), None, "a stranger");
        assert_eq!(read, expected);
    };
    check(blocked.await.expect("no panic"));
    for client in [&client, &remote] {
        let leases = client.acquire_many(&ids, &AcquireOptions::default()).await.expect("asked");
        check(leases.iter().map(|lease| lease.as_deref().ok().map(<[u8]>::to_vec)).collect());
        let refused = leases[350].as_ref().expect_err("a stranger");
        assert_eq!(refused.kind(), Some(ErrorKind::NotFound));
        let error = client.delete(ids[0], false, None).await.expect_err("leased");
        assert_eq!(error.kind(), Some(ErrorKind::LeaseConflict));
        client.release_many(leases.into_iter().flatten().collect()).await.expect("released");
    }
    for id in ids.iter().filter(|id| **id != stranger) {
        client.delete(*id, false, None).await.expect("every lease was released");
    }
}

#[tokio::test]
async fn given_a_commit_that_is_accepted_when_awaited_then_durable_and_leasable_meanwhile() {
    let place = Place::new();
    let server = place.start();
    let remote = Client::connect_grpc(&server.address).await.expect("connected");
    for client in [native(&server).await, remote] {
        let mut all = Vec::new();
        for seed in 0..20u64 {
            let mut payload = client.allocate(ByteCount(8)).await.expect("room");
            payload.copy_from_slice(&seed.to_le_bytes());
            let accepted = payload.commit_accepted(None).await.expect("accepted");
            assert_eq!(&*lease(&client, accepted.id()).await, &seed.to_le_bytes());
            all.push(accepted);
        }
        for accepted in all {
            let id = accepted.id();
            let durable = accepted.durable().await.expect("durable");
            assert_eq!((durable.id, durable.state), (id, PayloadState::Active));
            client.delete(id, false, None).await.expect("released");
        }
        // Who does not wait loses nothing.
        let payload = client.allocate(ByteCount(8)).await.expect("room");
        let id = payload.commit_accepted(None).await.expect("accepted").id();
        let committed = async || {
            let state = client.resolve(id).await.expect("there").state;
            (state == PayloadState::Active).then_some(())
        };
        eventually("it is committed", committed).await;
    }
}

#[tokio::test]
async fn given_a_payload_that_is_deleted_by_force_when_its_lease_is_asked_then_invalid_and_readable() {
    let place = Place::new();
    let server = place.start();
    let client = native(&server).await;
    let other = native(&server).await;
    let bytes = content(1, 50_000);
    let (id, kept) = (
        put(&client, &AllocateOptions::default(), &bytes).await,
        put(&client, &AllocateOptions::default(), &bytes).await,
    );
    let (gone, there) = (lease(&client, id).await, lease(&client, kept).await);
    assert!(gone.is_valid().await && there.is_valid().await);
    other.delete(id, true, None).await.expect("by force");
    eventually("the lease is seen to be invalid", async || (!gone.is_valid().await).then_some(())).await;
    assert!(there.is_valid().await, "another payload's is not concerned");
    assert_eq!((&*gone, &*there), (&bytes[..], &bytes[..]));
}

#[tokio::test]
async fn given_a_server_that_is_killed_when_tasks_wait_then_each_has_an_error_and_mapped_bytes_stay() {
    let place = Place::new().with("STORAGE__RAM__CAPACITY_BYTES", "8MiB");
    let server = place.start();
    let client = native(&server).await;
    let bytes = content(5, 6 << 20);
    let id = put(&client, &in_memory(Memory::Segment), &bytes).await;
    let held = lease(&client, id).await;
    // No room while the lease is held: these wait for up to 30 s.
    let waits: Vec<_> = (0..4)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move {
                client.allocate(ByteCount(6 << 20)).memory(Memory::Segment).await.map(drop)
            })
        })
        .collect();
    tokio::task::yield_now().await;
    lease(&client, id).await.release().await.expect("answered: the others are under way");
    let start = Instant::now();
    server.kill();
    for wait in waits {
        let error = wait.await.expect("no panic").expect_err("the server is gone");
        assert!(matches!(error, ClientError::Ended { .. }), "{error:?}");
    }
    assert!(start.elapsed() < PATIENCE);
    assert_eq!(&*held, &bytes, "what is mapped stays readable");
    assert!(!held.is_valid().await, "nobody vouches for it");
    assert!(held.release().await.is_err());
    // A session that has ended is not asked again: the rest of this client goes on over gRPC, as far as there is one.
    let error = lease_error(&client, id).await;
    assert!(matches!(error, ClientError::Connect { .. } | ClientError::Interrupted { .. }), "{error:?}");
}

async fn lease_error(client: &Client, id: PayloadId) -> ClientError {
    client.acquire(id, &AcquireOptions::default()).await.expect_err("the server is gone")
}

/// Where a lease's bytes lie, if that is a slab.
fn slab_of(lease: &ReadLease) -> Option<u32> {
    match &lease.descriptor().location {
        Some(Location::Block { slab, .. }) => Some(slab.get()),
        _ => None,
    }
}

#[tokio::test]
async fn given_payloads_in_arenas_when_leased_by_all_kinds_of_clients_then_each_sees_the_same_bytes() {
    let place = Place::new();
    let server = place.start();
    let (writer, reader) = (native(&server).await, native(&server).await);
    assert!(writer.session().expect("there").has_arenas(), "the server has arenas");
    let mut peer = Peer::start(&server);
    let mut slabs = std::collections::BTreeSet::new();
    // From a line to many pages, and one that is larger than any slab of this tier (1 MiB).
    for (seed, length) in [(1, 1), (2, 4_096), (3, 4_097), (4, 70_001), (5, 300_000), (6, 3 << 20)] {
        let bytes = content(seed, length);
        for memory in [Memory::Arena, Memory::Sealed] {
            let id = put(&writer, &in_memory(memory), &bytes).await;
            for client in [&writer, &reader] {
                let held = lease(client, id).await;
                slabs.insert(slab_of(&held).expect("in a slab"));
                assert_eq!((&*held, held.descriptor().tier), (&bytes[..], Tier::Ram), "{memory:?} {length}");
                held.release().await.expect("released");
            }
            assert_eq!(peer.ask_bytes("native-hold", &wire(id)), answer(RAM, &bytes), "another process");
        }
    }
    assert!(slabs.len() >= 6 + 2, "a sealed payload has memory of its own: {slabs:?}");
}

#[tokio::test]
async fn given_an_arena_when_the_server_is_killed_then_leased_bytes_stay_readable_and_a_commit_fails() {
    let place = Place::new();
    let server = place.start();
    let (writer, reader) = (native(&server).await, native(&server).await);
    let bytes = content(9, 200_000);
    let id = put(&writer, &in_memory(Memory::Arena), &bytes).await;
    let (own, others) = (lease(&writer, id).await, lease(&reader, id).await);
    let space = writer.allocate(ByteCount(5_000)).memory(Memory::Arena).await.expect("allocated");
    server.kill();
    assert_eq!((&*own, &*others, space.len()), (&bytes[..], &bytes[..], 5_000));
    let error = space.commit(None).await.expect_err("the server is gone");
    assert!(matches!(error, ClientError::Ended { .. }), "{error:?}");
    drop((writer, reader));
    assert_eq!((&*own, &*others), (&bytes[..], &bytes[..]), "a lease keeps its mapping");
}

#[tokio::test]
async fn given_the_examples_when_run_by_address_and_by_path_then_they_store_and_read() {
    let place = Place::new();
    let server = place.start();
    let path = native(&server).await.session().expect("there").path().to_owned();
    let examples = program("payload-manager").with_file_name("examples");
    // 4,096 bytes of each of 0 to 99; 65,536 of each of 1 to 8.
    for (name, word) in [("batch", "100 payloads, sum 20275200"), ("tasks", "8 pairs, sum 2359296")] {
        for target in [server.address.as_str(), path.to_str().expect("text")] {
            let output = Command::new(examples.join(name)).arg(target).output();
            let output = output.expect("cargo test builds examples");
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            assert!(said.contains(word), "{name} {target}: {said}");
        }
    }
}
