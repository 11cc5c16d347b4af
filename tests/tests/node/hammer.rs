//! Many clients at once on few payloads, with real memory, files and SQLite: whoever holds a lease reads the right
//! bytes, what was acknowledged survives a kill, and in the end nothing is left and every byte of budget is back.
//!
//! What each client does next is drawn from a seed, which is printed; how the clients interleave is not.
//! `HAMMER_SEED=N` draws others.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use payload_tests::server::{Place, Server, eventually};
use payload_tests::v1::{
    DISK, RAM, UNSPECIFIED, V1, VOID, allocation, content, id, listing, promotion, spilling,
};
use payload_wire::pb::core::v1::PayloadId;
use payload_wire::pb::runtime::v1 as rt;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use tonic::{Code, Status};

const CLIENTS: u64 = 8;
const ROUNDS: u64 = 150;
/// Room for all payloads on each tier, twice: 8 x 6 x 200 KiB are below 10 MiB.
const PAYLOADS_PER_CLIENT: usize = 6;

/// What the clients know of one payload.
#[derive(Clone)]
struct Known {
    bytes: Arc<Vec<u8>>,
    /// Somebody has asked for its end, answered or not.
    doomed: bool,
}

type Board = Arc<Mutex<HashMap<Vec<u8>, Known>>>;

fn pick(board: &Board, random: &mut SmallRng) -> Option<(PayloadId, Known)> {
    let board = board.lock().expect("nobody panicked");
    let at = random.random_range(0..board.len().max(1));
    board.iter().nth(at).map(|(value, known)| (PayloadId { value: value.clone() }, known.clone()))
}

fn doom(board: &Board, id: &PayloadId) {
    if let Some(known) = board.lock().expect("nobody panicked").get_mut(&id.value) {
        known.doomed = true;
    }
}

/// A refusal that the contract has for a payload that others delete, lease and move.
fn expected(status: &Status, doomed: bool) {
    let expected = match status.code() {
        Code::NotFound => doomed && !status.message().contains("LOST"),
        Code::Aborted | Code::FailedPrecondition | Code::ResourceExhausted => true,
        // The server was killed: what its client made of that has a source, what a server says has none.
        _ if std::error::Error::source(status).is_some() => true,
        _ => false,
    };
    assert!(expected, "doomed {doomed}: {status}");
}

/// One client's life; ends early when the server is gone. Returns how many leases were read.
async fn client(v1: V1, board: Board, seed: u64) -> u64 {
    let mut random = SmallRng::seed_from_u64(seed);
    let (mut own, mut reads) = (0, 0);
    for round in 0..ROUNDS {
        if own < PAYLOADS_PER_CLIENT && random.random_bool(0.3) {
            let bytes = Arc::new(content((seed << 32) | round, random.random_range(1..200_000)));
            let tier = if random.random_bool(0.5) { RAM } else { DISK };
            let Ok(answer) = v1.allocate(allocation(tier, bytes.len() as u64)).await else { return reads };
            let allocated = answer.payload_descriptor.expect("one");
            v1.map(&allocated).copy_from_slice(&bytes);
            if v1.commit(&id(&allocated)).await.is_err() {
                return reads;
            }
            board
                .lock()
                .expect("nobody panicked")
                .insert(id(&allocated).value, Known { bytes, doomed: false });
            own += 1;
            continue;
        }
        let Some((payload, _)) = pick(&board, &mut random) else { continue };
        let result = match random.random_range(0..100) {
            0..50 => read(&v1, &board, &payload, &mut random).await.map(|()| reads += 1),
            50..70 => {
                let wait_for_leases = random.random_bool(0.3);
                let fsync = random.random_bool(0.3);
                let policy = random.random_range(0..3);
                let request = rt::SpillRequest { wait_for_leases, fsync, policy, ..spilling(&payload, DISK) };
                v1.spill(request).await.map(drop)
            }
            70..90 => {
                let policy = random.random_range(0..3);
                let target = if random.random_bool(0.8) { RAM } else { DISK };
                v1.promote(rt::PromoteRequest { policy, ..promotion(&payload, target) }).await.map(drop)
            }
            90..94 => v1.prefetch(&payload, RAM).await,
            94..96 => v1.pin(&payload, random.random_range(1..20)).await,
            96..98 => {
                doom(&board, &payload);
                v1.delete(&payload, random.random_bool(0.5)).await
            }
            _ => {
                doom(&board, &payload);
                v1.spill(spilling(&payload, VOID)).await.map(drop)
            }
        };
        if let Err(status) = result {
            let doomed = board.lock().expect("nobody panicked")[&payload.value].doomed;
            expected(&status, doomed);
            if v1.stats().await.is_err() {
                return reads;
            }
        }
    }
    reads
}

/// Leases, reads in place, releases. The bytes are the right ones, unless the lease was taken away by force.
async fn read(v1: &V1, board: &Board, payload: &PayloadId, random: &mut SmallRng) -> Result<(), Status> {
    let min_tier = [UNSPECIFIED, UNSPECIFIED, RAM][random.random_range(0..3)];
    let promotion_policy = random.random_range(0..3);
    let request = rt::AcquireReadLeaseRequest {
        id: Some(payload.clone()),
        min_tier,
        promotion_policy,
        ..Default::default()
    };
    let lease = v1.acquire(request).await?;
    let descriptor = lease.payload_descriptor.as_ref().expect("one");
    let found = std::fs::read(v1.path(descriptor));
    let known = board.lock().expect("nobody panicked")[&payload.value].clone();
    match found {
        Ok(bytes) => assert!(bytes == *known.bytes, "a lease on {descriptor:?} gave other bytes"),
        Err(error) => {
            assert!(known.doomed, "{error}: a leased payload that nobody deleted is gone: {descriptor:?}")
        }
    }
    v1.release(&lease).await
}

async fn hammer(server: &Server, board: &Board, seed: u64) -> Vec<tokio::task::JoinHandle<u64>> {
    let other = std::env::var("HAMMER_SEED").map_or(0, |text| text.parse::<u64>().expect("a number"));
    let seed = seed + other * 16;
    println!("seed {seed}");
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let v1 = V1::connect(server).await;
        clients.push(tokio::spawn(client(v1, Arc::clone(board), seed * CLIENTS + number)));
    }
    clients
}

/// Every payload that nobody wanted deleted is there with its bytes; then all are deleted, and nothing remains.
async fn settle(server: &Server, place: &Place, board: &Board) {
    let v1 = V1::connect(server).await;
    let known = std::mem::take(&mut *board.lock().expect("nobody panicked"));
    for (value, known) in known {
        let payload = PayloadId { value };
        match v1.resolve(&payload).await {
            Ok(_) => assert!(v1.bytes(&payload).await.1 == *known.bytes),
            Err(status) => assert!(known.doomed && status.code() == Code::NotFound, "{status}"),
        }
    }
    for row in v1.list(listing(UNSPECIFIED, 500)).await.expect("a page").payloads {
        v1.delete(&row.id.expect("set"), true).await.expect("deleted");
    }
    let stats = v1.stats().await.expect("stats");
    assert_eq!((stats.payloads_ram, stats.payloads_disk, stats.bytes_ram, stats.bytes_disk), (0, 0, 0, 0));
    // Every byte of both budgets is back: all of each tier can be had at once.
    for tier in [RAM, DISK] {
        let whole =
            eventually("the whole tier is free", async || v1.allocate(allocation(tier, 64 << 20)).await.ok());
        v1.delete(&id(&whole.await.payload_descriptor.expect("one")), false).await.expect("deleted");
    }
    eventually("no segment is left", async || server.segments().is_empty().then_some(())).await;
    let root = place.path().join("disk");
    eventually("no payload's file is left", async || (bytes_below(&root) < 100_000).then_some(())).await;
}

/// Bytes of all files below a directory: the marker and the intent log are small.
fn bytes_below(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(found) if found.is_dir() => bytes_below(&entry.path()),
            Ok(found) => found.len(),
            // Removed just now.
            Err(_) => 0,
        })
        .sum()
}

#[tokio::test]
async fn given_many_clients_when_they_do_everything_at_once_then_right_bytes_and_nothing_is_left() {
    let place = Place::new().with("SHARDS__COUNT", "3");
    let server = place.start();
    let board = Board::default();
    let idle = server.open_files();
    let mut reads = 0;
    for client in hammer(&server, &board, 1).await {
        reads += client.await.expect("no client saw anything wrong");
    }
    assert!(reads > 100, "{reads} leases were read");
    settle(&server, &place, &board).await;
    // A few are opened at first use and kept; hundreds of payloads were opened and closed.
    eventually("no descriptor is leaked", async || (server.open_files() <= idle + 8).then_some(())).await;
    assert!(!server.log().contains("ERROR"), "{}", server.log());
    server.stop();
}

#[tokio::test]
async fn given_many_clients_when_the_server_is_killed_under_them_again_and_again_then_what_was_acknowledged_survives()
 {
    let place = Place::new();
    let board = Board::default();
    for seed in 2..6 {
        let server = place.start();
        let v1 = V1::connect(&server).await;
        let known = board.lock().expect("nobody panicked").len();
        let clients = hammer(&server, &board, seed).await;
        let more = known + 10 + usize::try_from(seed % 16).expect("small") * 3;
        eventually("the clients are at work", async || {
            v1.stats().await.expect("it serves");
            (board.lock().expect("nobody panicked").len() >= more).then_some(())
        })
        .await;
        server.kill();
        for client in clients {
            client.await.expect("no client saw anything wrong");
        }
    }
    let place = place.with("SHARDS__COUNT", "4");
    let server = place.start();
    settle(&server, &place, &board).await;
    server.stop();
}
