//! What direct leases rest on, end to end: a real server, sessions of this process and of others, payloads in slabs.
//!
//! Whether a lease asks nobody or the ring makes no difference to these tests; both ways have to be right.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use payload_client::blocking::{Client, ReadLease};
use payload_client::{AcquireOptions, Memory};
use payload_local::direct::page::{CELLS, CellIndex, written_bytes};
use payload_local::direct::{CellsView, Claim};
use payload_local::hello::{ClientFrame, FEATURE_ARENAS, FEATURE_DIRECT, Hello, ServerFrame};
use payload_tests::peer::{Peer, answer};
use payload_tests::server::{PATIENCE, Place, Server};
use payload_tests::sys;
use payload_tests::v1::{RAM, content};
use payload_types::{ByteCount, Checksum, Generation, PayloadId, ShardIndex};
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
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn given_a_process_with_leases_when_it_is_killed_then_what_it_held_is_free_and_its_pages_go_after_the_grace()
{
    let place = Place::new();
    let server = place.start();
    let client = connect(&server);
    let bytes = content(3, 9_000);
    let ids = [put(&client, &bytes), put(&client, &bytes)];
    let mut peer = Peer::start(&server);
    for id in ids {
        assert_eq!(peer.ask_bytes("native-hold", &wire(id)), answer(RAM, &bytes));
    }
    assert_eq!(node(&client).direct_sessions, 2);
    assert!(client.delete(ids[0], false, None).is_err(), "held by another process");
    drop(peer);
    for id in ids {
        until("what a dead process held is free", || client.delete(id, false, None).is_ok());
    }
    until("its pages are gone", || node(&client).direct_sessions == 1);
}

#[test]
fn given_pressure_when_read_meanwhile_then_leased_bytes_never_change() {
    const HOT: usize = 16;
    const BYTES: usize = 16 << 10;
    let place = Place::new().with("STORAGE__RAM__CAPACITY_BYTES", "8MiB");
    let server = place.start();
    let (writer, reader) = (connect(&server), connect(&server));
    let bytes = |seed: usize| content(seed as u64, BYTES);
    let hot: Vec<_> = (0..HOT).map(|seed| put(&writer, &bytes(seed))).collect();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let expected: Vec<_> = (0..HOT).map(bytes).collect();
            while !is_over.load(Ordering::Relaxed) {
                for (id, expected) in hot.iter().zip(&expected) {
                    let held = lease(&reader, *id);
                    let is_right = *held == expected[..];
                    // By force or by quota alone it could have been taken, and neither happens here.
                    assert!(is_right && held.is_valid(), "a leased payload changed");
                }
            }
        });
        let mut cold = Vec::new();
        // Twice what fits.
        for seed in 0..1_000 {
            cold.push(put(&writer, &bytes(1_000 + seed)));
            if seed % 64 == 0 {
                let old = cold[seed / 2];
                assert_eq!(&*lease(&writer, old), &bytes(1_000 + seed / 2)[..], "moved, and the same");
            }
        }
        is_over.store(true, Ordering::Relaxed);
    });
}

/// A session that keeps no rule. Its memory stays mapped by descriptor alone.
struct Raw {
    _socket: OwnedFd,
    features: u64,
    shard_count: u16,
    pages: Vec<OwnedFd>,
}

impl Raw {
    fn connect(server: &Server, features: u64) -> Self {
        let path = Client::connect(&server.address).expect("connected");
        let path = path.session().expect("there").path().to_owned();
        let socket = sys::seqpacket(&path).expect("connected");
        let hello = Hello { features, ..Hello::new("raw") };
        sys::send(&socket, &ClientFrame::Hello(hello).encode()).expect("sent");
        let mut raw = Self { _socket: socket, features: 0, shard_count: 0, pages: Vec::new() };
        loop {
            let (bytes, descriptors) = sys::receive(&raw._socket).expect("answered");
            match ServerFrame::decode(&bytes).expect("a frame") {
                ServerFrame::Welcome(welcome) => {
                    (raw.features, raw.shard_count) = (welcome.features, welcome.shard_count);
                    if welcome.features & FEATURE_DIRECT == 0 {
                        return raw;
                    }
                }
                ServerFrame::IndexOffered { .. } => assert_eq!(descriptors.len(), 1),
                ServerFrame::Pages { .. } => {
                    raw.pages = descriptors;
                    return raw;
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn given_a_session_whose_cells_are_garbage_when_others_work_then_nothing_of_theirs_is_harmed() {
    let place = Place::new();
    let server = place.start();
    let client = connect(&server);
    let hostile = Raw::connect(&server, FEATURE_ARENAS | FEATURE_DIRECT);
    let bytes = written_bytes(hostile.shard_count);
    let memory = sys::map_shared(&hostile.pages[0], bytes).expect("what it may write");
    assert!(sys::map_shared(&hostile.pages[1], 4096).is_err(), "its status it may only read");
    let words = sys::words(&memory);
    // All samples, all counts, all cells: whatever a word can be.
    let mut random = 0x9E37_79B9_7F4A_7C15_u64;
    for word in words {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        word.store(random, Ordering::Relaxed);
    }
    let check = || {
        for seed in 0..300u64 {
            let id = put(&client, &seed.to_le_bytes());
            assert_eq!(*lease(&client, id), seed.to_le_bytes());
            client.delete(id, false, None).expect("nobody holds it, whatever a stranger's cells say");
        }
    };
    check();
    words[0].store(u64::MAX, Ordering::Relaxed);
    check();
    // Claims that may be true cost who makes them, and nobody else a wait: a delete is refused as for any lease.
    let cells = CellsView::new(words).expect("long enough");
    for cell in 0..CELLS as u16 {
        let claim = Claim::new(ShardIndex(cell % 2), Generation(u64::from(cell) + 1));
        cells.cell(CellIndex(cell)).store(claim.bits(), Ordering::Relaxed);
    }
    check();
    assert_eq!(node(&client).direct_leases, CELLS as u64, "shown as what it says it holds");
}

#[test]
fn given_a_session_without_the_feature_when_opened_then_it_has_no_pages_and_leases_over_rings() {
    let place = Place::new();
    let server = place.start();
    let client = connect(&server);
    for (wanted, got) in [(0, 0), (FEATURE_ARENAS, FEATURE_ARENAS), (FEATURE_DIRECT, 0)] {
        let raw = Raw::connect(&server, wanted);
        assert_eq!((raw.features, raw.pages.len()), (got, 0), "{wanted}");
    }
    until("only who may lease directly has pages", || node(&client).direct_sessions == 1);
}
