//! Native sessions under load whose clients are killed at any moment: nothing of theirs is left, and nobody else is harmed.

use std::time::{Duration, Instant};

use payload_client::AcquireOptions;
use payload_client::blocking::Client;
use payload_tests::peer::Peer;
use payload_tests::server::{PATIENCE, Place, Server};
use payload_tests::sys::{self, Signal};
use payload_tests::v1::content;
use payload_types::{ByteCount, PayloadId, PayloadState};
use payload_wire::pb::core::v1 as core;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

/// How long clients are killed. Bounded so that a test run stays short; the seed makes another run differ.
const LOAD: Duration = Duration::from_secs(8);

/// Clients at a time.
const CLIENTS: usize = 3;

fn wire(id: PayloadId) -> core::PayloadId {
    core::PayloadId { value: id.as_bytes().to_vec() }
}

fn put(client: &Client, bytes: &[u8]) -> PayloadId {
    let size = ByteCount(bytes.len() as u64);
    let mut payload = client.allocate(size).open().expect("allocated");
    payload.copy_from_slice(bytes);
    payload.commit(None).expect("committed").id
}

fn churning(server: &Server, id: PayloadId) -> Peer {
    let mut peer = Peer::start(server);
    assert_eq!(peer.ask_bytes("native-churn", &wire(id)), "churning");
    peer
}

/// Polls without a runtime.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn given_clients_that_are_killed_under_load_when_all_are_dead_then_nothing_of_theirs_is_left() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    let place = Place::new();
    let server = place.start();
    let client = Client::connect(&server.address).expect("connected");
    assert!(client.session().is_some(), "a native session");
    let kept: Vec<(PayloadId, Vec<u8>)> = (0..4)
        .map(|number| {
            let bytes = content(number, 1 + number as usize * 5_000);
            (put(&client, &bytes), bytes)
        })
        .collect();
    let mut peers: Vec<Peer> = (0..CLIENTS).map(|at| churning(&server, kept[at].0)).collect();
    let (end, mut killed) = (Instant::now() + LOAD, 0);
    while Instant::now() < end {
        for _ in 0..random.random_range(1..200) {
            let (id, bytes) = &kept[random.random_range(0..kept.len())];
            let lease = client.acquire(*id, &AcquireOptions::default()).expect("leased");
            assert_eq!(&*lease, &bytes[..], "the bytes of a payload that nobody deleted");
        }
        let victim = random.random_range(0..peers.len());
        if random.random_bool(0.3) {
            sys::signal(peers[victim].pid(), Signal::Stop).expect("stopped");
        }
        // Dropped, it is killed.
        peers[victim] = churning(&server, kept[victim].0);
        killed += 1;
    }
    drop(peers);
    assert!(killed >= 3, "{killed} clients were killed; that is no load");
    let node = || {
        let stats = client.grpc(async |client| client.accounting().await).expect("answered");
        stats.node.expect("this server tells it")
    };
    until("only this session and no lease is left", || {
        let node = node();
        (node.native_sessions, node.leases, node.direct_leases) == (1, 0, 0)
    });
    until("no allocation is left", || {
        let page = client.grpc(async |client| client.list(None, 0, None).await).expect("listed");
        page.rows.iter().all(|row| row.state != PayloadState::Allocated)
    });
    for (id, bytes) in &kept {
        assert_eq!(&*client.acquire(*id, &AcquireOptions::default()).expect("leased"), &bytes[..]);
        client.delete(*id, false, None).expect("nobody holds it");
    }
}
