//! Native sessions end to end: a real server process, sessions of this process and of others, real memory and files.
//!
//! Nothing here waits for a time: what must happen "within a second" is polled until it is so.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use payload_client::blocking::Client;
use payload_client::{AcquireOptions, ClientError, Location, Session, SpillOptions};
use payload_local::hello::{ClientFrame, Hello, RefusalKind, ServerFrame};
use payload_local::layout::{RING_ENTRIES, SessionView, ShardView, session_bytes};
use payload_local::{Outcome, Submission};
use payload_tests::peer::{Peer, answer};
use payload_tests::server::{PATIENCE, Place, Server, eventually, program};
use payload_tests::sys::{self, Signal};
use payload_tests::v1::{DISK, RAM, V1, content};
use payload_types::tier::SpillTarget;
use payload_types::{ByteCount, Checksum, ErrorKind, Memory, PayloadId, Tier, WallMs};
use payload_wire::pb::core::v1 as core;
use xxhash_rust::xxh3::xxh3_64;

fn native(server: &Server) -> Client {
    let client = Client::connect(&server.address).expect("connected");
    assert!(client.session().is_some(), "a server on this host gives a session");
    client
}

fn client_of(server: &Server) -> Client {
    Client::connect_grpc(&server.address).expect("connected")
}

fn put(client: &Client, tier: Tier, bytes: &[u8]) -> PayloadId {
    let mut payload = client.allocate(ByteCount(bytes.len() as u64)).tier(tier).open().expect("allocated");
    payload.copy_from_slice(bytes);
    payload.commit(Some(Checksum(xxh3_64(bytes)))).expect("committed").id
}

fn wire(id: PayloadId) -> core::PayloadId {
    core::PayloadId { value: id.as_bytes().to_vec() }
}

/// A lease, wherever the bytes lie.
fn wish(id: PayloadId) -> Submission {
    Submission::Acquire {
        id,
        min_tier: None,
        policy: payload_types::PromotionPolicy::Blocking,
        accepts_packed: true,
        expected_version: None,
        deadline_ms: 0,
    }
}

fn lease(client: &Client, id: PayloadId) -> payload_client::blocking::ReadLease {
    client.acquire(id, &AcquireOptions::default()).expect("leased")
}

/// Runs what blocks beside the test's runtime.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("no panic")
}

/// Polls without a runtime.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

#[test]
fn given_bytes_written_over_a_session_when_leased_on_every_tier_and_by_grpc_then_the_same_bytes() {
    let place = Place::new().with("STORAGE__DISK__CAPACITY_BYTES", "256MiB");
    let server = place.start();
    let client = native(&server);
    let mut peer = Peer::start(&server);
    for (seed, length) in [(1, 1), (2, 4096), (3, 70_001), (4, 300_000)] {
        let bytes = content(seed, length);
        for tier in [Tier::Ram, Tier::Disk] {
            let id = put(&client, tier, &bytes);
            let held = lease(&client, id);
            assert_eq!((&*held, held.descriptor().tier), (&bytes[..], tier));
            assert_eq!(held.descriptor().created_at, Some(id.created_at()));
            drop(held);
            let number = if tier == Tier::Ram { RAM } else { DISK };
            assert_eq!(peer.ask_bytes("look", &wire(id)), answer(number, &bytes));
        }
        // Spilled: packed into a segment file, read at its place; promoted back; and as a file of its own.
        let id = put(&client, Tier::Ram, &bytes);
        let options = SpillOptions { target: Some(SpillTarget::Tier(Tier::Disk)), ..SpillOptions::default() };
        let spilled = client.spill(&[id], &options).expect("asked");
        let shown = spilled[0].result.clone().expect("spilled").expect("kept");
        assert_eq!((spilled[0].id, shown.tier), (id, Tier::Disk));
        let held = lease(&client, id);
        assert_eq!(&*held, &bytes);
        let Some(Location::File { path, .. }) = &held.descriptor().location else { panic!("on disk") };
        assert!(path.extension().is_some_and(|extension| extension == "seg"), "{}", path.display());
        drop(held);
        let own = AcquireOptions { own_file: true, ..AcquireOptions::default() };
        let held = client.acquire(id, &own).expect("leased");
        assert_eq!(&*held, &bytes);
        let Some(Location::File { path, .. }) = &held.descriptor().location else { panic!("on disk") };
        assert!(path.extension().is_some_and(|extension| extension == "bin"), "{}", path.display());
        drop(held);
        assert_eq!(client.promote(id, Tier::Ram, None, None).expect("promoted").tier, Tier::Ram);
        assert_eq!(&*lease(&client, id), &bytes);
        client.delete(id, false, None).expect("the leases were released before");
        let error = client.resolve(id).expect_err("deleted");
        assert_eq!(error.kind(), Some(ErrorKind::NotFound));
    }
}

#[test]
fn given_refusals_over_a_session_when_compared_with_grpc_then_kind_and_sentence_are_the_same() {
    let place = Place::new();
    let server = place.start();
    let (ring, grpc) = (native(&server), Client::connect_grpc(&server.address).expect("connected"));
    let id = put(&ring, Tier::Ram, b"held");
    let held = lease(&ring, id);
    let stranger = PayloadId::from_bytes([0xEE; 16]);
    let wrong = Some(payload_types::Version(77));
    let refusals = |client: &Client| {
        let errors = [
            client.delete(id, false, None).expect_err("leased"),
            client.delete(id, true, wrong).expect_err("another version"),
            client.resolve(stranger).expect_err("unknown"),
            client.acquire(stranger, &AcquireOptions::default()).expect_err("unknown"),
            client.promote(id, Tier::Gpu, None, None).expect_err("no such tier"),
            client.allocate(ByteCount(1 << 30)).tier(Tier::Disk).open().expect_err("more than there is"),
        ];
        errors.map(|error| (error.kind(), error.to_string()))
    };
    for (over_ring, over_grpc) in refusals(&ring).into_iter().zip(refusals(&grpc)) {
        assert_eq!(over_ring, over_grpc);
    }
    assert_eq!(&*held, b"held", "no refusal touched it");
}

#[tokio::test]
async fn given_a_client_that_is_killed_when_it_held_leases_and_allocations_then_all_are_gone() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let address = server.address.clone();
    let (client, id) = apart(move || {
        let client = Client::connect(&address).expect("connected");
        let id = put(&client, Tier::Ram, &content(1, 10_000));
        (client, id)
    })
    .await;
    let mut peer = Peer::start(&server);
    assert_eq!(peer.ask_bytes("native-hold", &wire(id)), answer(RAM, &content(1, 10_000)));
    let allocated = peer.ask("native-allocate 100000");
    let allocated: PayloadId = allocated.parse().expect("an id");
    assert!(v1.row(&wire(allocated)).await.is_some());
    let error = v1.delete(&wire(id), false).await.expect_err("leased");
    assert_eq!(error.code(), tonic::Code::Aborted);
    // Stopped, it is not dead: what it holds stays held.
    sys::signal(peer.pid(), Signal::Stop).expect("stopped");
    assert!(v1.delete(&wire(id), false).await.is_err());
    assert!(v1.row(&wire(allocated)).await.is_some());
    drop(peer);
    eventually("the dead client's lease ends", async || v1.delete(&wire(id), false).await.ok()).await;
    let gone = async || v1.row(&wire(allocated)).await.is_none().then_some(());
    eventually("its allocation is given back", gone).await;
    apart(move || {
        let id = put(&client, Tier::Ram, b"others go on");
        assert_eq!(&*lease(&client, id), b"others go on");
    })
    .await;
}

#[test]
fn given_a_client_that_leaves_when_it_comes_back_then_it_starts_with_nothing() {
    let place = Place::new();
    let server = place.start();
    let socket = native(&server).session().expect("there").path().to_owned();
    let (first, second) = (Session::connect(&socket).expect("in"), Session::connect(&socket).expect("in"));
    assert_ne!(first.welcome().session, second.welcome().session);
    let client = Client::connect(socket.to_str().expect("text")).expect("connected by its path");
    let id = put(&client, Tier::Ram, b"shared");
    let acquire = |session: &Session| {
        let outcome = session.call(&wish(id));
        let Ok(Outcome::Leased(lease, _)) = outcome else { panic!("{outcome:?}") };
        lease
    };
    let (held, other) = (acquire(&first), acquire(&second));
    assert_ne!(held, other);
    // Each ends what it holds, and nothing of the other's.
    drop(second);
    until("the socket of the second is seen to be closed", || {
        let holders = client_of(&server).grpc(async |client| client.holders(id).await).expect("listed");
        holders.leases.len() == 1
    });
    let error = client.delete(id, false, None).expect_err("the first one holds it");
    assert_eq!(error.kind(), Some(ErrorKind::LeaseConflict));
    first.call(&Submission::Release { lease: held }).expect("released");
    let _kept = acquire(&first);
    drop(first);
    until("the lease ends with its session", || client.delete(id, false, None).is_ok());
    let error = client.grpc(async |client| client.pin(id, None).await).expect_err("it is gone");
    assert_eq!(error.kind(), Some(ErrorKind::NotFound), "asked over gRPC, by the path alone");
}

#[test]
fn given_many_shards_when_a_session_leases_then_its_caps_count_all_of_them_together() {
    let place = Place::new()
        .with("SHARDS__COUNT", "3")
        .with("LOCAL__SESSION_LEASES_MAX", "10")
        .with("LOCAL__SESSION_LEASED_BYTES_MAX", "64KiB");
    let server = place.start();
    let (client, other) = (native(&server), native(&server));
    // On DISK, so that every lease is asked for.
    let ids: Vec<PayloadId> = (0..40u8).map(|seed| put(&client, Tier::Disk, &[seed; 100])).collect();
    let shards: std::collections::BTreeSet<u16> = ids.iter().map(|id| id.shard(3).0).collect();
    assert_eq!(shards.len(), 3, "they lie on all shards");
    let mut held: Vec<_> = ids[..10].iter().map(|id| lease(&client, *id)).collect();
    for id in &ids[10..] {
        let error = client.acquire(*id, &AcquireOptions::default()).expect_err("one too many");
        assert_eq!(error.kind(), Some(ErrorKind::ResourceExhausted));
        assert!(error.to_string().contains("local.session_leases_max"), "{error}");
    }
    let others: Vec<_> = ids[10..20].iter().map(|id| lease(&other, *id)).collect();
    drop(others);
    // A lease that ends on one shard makes room on each.
    for (at, id) in ids[10..].iter().enumerate() {
        drop(held.remove(at % held.len()));
        let granted = eventually_leased(&client, *id);
        held.push(granted);
    }
    drop(held);
    let large: Vec<PayloadId> = (0..6).map(|seed| put(&client, Tier::Disk, &content(seed, 20_000))).collect();
    let held: Vec<_> = large[..3].iter().map(|id| eventually_leased(&client, *id)).collect();
    for id in &large[3..] {
        let error = client.acquire(*id, &AcquireOptions::default()).expect_err("too many bytes");
        assert!(error.to_string().contains("local.session_leased_bytes_max"), "{error}");
    }
    // What a session held counts no more once it has ended.
    drop((held, client));
    let again = native(&server);
    let _held: Vec<_> = large[..3].iter().map(|id| lease(&again, *id)).collect();
}

/// A lease of a session that released others a moment ago, perhaps on other shards.
fn eventually_leased(client: &Client, id: PayloadId) -> payload_client::blocking::ReadLease {
    let start = Instant::now();
    loop {
        match client.acquire(id, &AcquireOptions::default()) {
            Ok(lease) => return lease,
            Err(error) => assert!(start.elapsed() < PATIENCE, "{error}"),
        }
    }
}

#[test]
fn given_a_server_that_is_killed_when_calls_wait_then_each_has_an_error_and_mapped_bytes_stay() {
    let place = Place::new().with("STORAGE__RAM__CAPACITY_BYTES", "8MiB");
    let server = place.start();
    let client = native(&server);
    let bytes = content(5, 6 << 20);
    // In a segment, which outlives the server.
    let mut payload = client
        .allocate(ByteCount(bytes.len() as u64))
        .memory(payload_client::Memory::Segment)
        .open()
        .expect("allocated");
    payload.copy_from_slice(&bytes);
    let id = payload.commit(None).expect("committed").id;
    let held = lease(&client, id);
    // No room while the lease is held: these wait for up to 30 s.
    let session = client.session().expect("there");
    let allocate = Submission::Allocate {
        size: ByteCount(6 << 20),
        tier: Tier::Ram,
        ttl_ms: 0,
        no_evict: false,
        policy: payload_types::EvictionPolicy::default(),
        memory: Memory::Segment,
        deadline_ms: 0,
    };
    let waits: Vec<_> = (0..4).map(|_| session.submit(&allocate).expect("submitted")).collect();
    // Behind those of its shard in the same ring: when it is answered, the shard has them.
    client.resolve(id).expect("answered");
    std::thread::scope(|scope| {
        let waiters: Vec<_> = waits.into_iter().map(|wait| scope.spawn(|| wait.wait())).collect();
        server.kill();
        for waiter in waiters {
            let error = waiter.join().expect("no panic").expect_err("the server is gone");
            assert!(matches!(error, ClientError::Ended { .. }), "{error:?}");
        }
    });
    assert_eq!(&*held, &bytes, "what is mapped stays readable");
    drop(held);
    let error = client.resolve(id).expect_err("the session has ended");
    assert!(
        matches!(error, ClientError::Ended { .. }) && error.to_string().contains("connect again"),
        "{error}"
    );
    // A new server on the same place takes the socket's path over, and the same client library connects again.
    let again = place.start();
    assert_eq!(&*lease(&native(&again), id), &bytes);
}

#[test]
fn given_a_server_that_stops_when_a_session_is_idle_then_the_session_knows() {
    let place = Place::new();
    let server = place.start();
    let client = native(&server);
    assert!(client.session().expect("there").is_open());
    server.stop();
    assert!(!client.session().expect("there").is_open());
    let error = client.resolve(PayloadId::from_bytes([1; 16])).expect_err("ended");
    assert!(matches!(error, ClientError::Ended { .. }), "{error:?}");
}

#[test]
fn given_many_threads_and_tasks_when_they_share_one_session_then_each_gets_its_own_answer() {
    let place = Place::new();
    let server = place.start();
    let client = native(&server);
    let contents: Vec<Vec<u8>> = (0..8).map(|seed| content(seed, 1000 + seed as usize)).collect();
    let ids: Vec<PayloadId> = contents.iter().map(|bytes| put(&client, Tier::Ram, bytes)).collect();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (client, ids, contents) = (&client, &ids, &contents);
            scope.spawn(move || {
                for round in 0..500 {
                    let at = (thread * 3 + round) % ids.len();
                    assert_eq!(&*lease(client, ids[at]), &contents[at]);
                }
            });
        }
    });
    let socket = client.session().expect("there").path().to_owned();
    let session = Arc::new(Session::connect(&socket).expect("in"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        // More at a time than a ring holds.
        let tasks: Vec<_> = (0..4 * RING_ENTRIES)
            .map(|task| {
                let (session, id) = (Arc::clone(&session), ids[task % ids.len()]);
                tokio::spawn(async move { (id, session.call_async(&Submission::Resolve { id }).await) })
            })
            .collect();
        for task in tasks {
            let (asked, outcome) = task.await.expect("no panic");
            let outcome = outcome.expect("answered");
            assert!(matches!(outcome, Outcome::Payload(id, _) if id == asked), "{outcome:?}");
        }
    });
    for id in ids {
        client.delete(id, false, None).expect("every lease was released");
    }
}

#[test]
fn given_calls_that_nobody_waits_for_when_they_are_granted_then_undone() {
    let place = Place::new();
    let server = place.start();
    let client = native(&server);
    let session = client.session().expect("there");
    let id = put(&client, Tier::Ram, b"wanted for a moment");
    for _ in 0..100 {
        drop(session.submit(&wish(id)));
        drop(client.allocate(ByteCount(4096)).tier(Tier::Ram).open().expect("allocated"));
    }
    // Each is undone when its answer is met, which a later call does.
    until("no lease is left", || client.delete(id, false, None).is_ok());
    until("no allocation is left", || {
        let page = client.grpc(async |client| client.list(None, 0, None).await).expect("listed");
        client.resolve(id).is_err() && page.rows.is_empty()
    });
}

/// A client that keeps no rule.
struct Raw {
    _socket: std::os::fd::OwnedFd,
    _descriptors: Vec<std::os::fd::OwnedFd>,
    memory: memmap2::MmapRaw,
    shard_count: u16,
}

impl Raw {
    fn connect(path: &std::path::Path) -> Self {
        let socket = sys::seqpacket(path).expect("connected");
        sys::send(&socket, &ClientFrame::Hello(Hello::new("raw")).encode()).expect("sent");
        let (bytes, descriptors) = sys::receive(&socket).expect("answered");
        let frame = ServerFrame::decode(&bytes).expect("a frame");
        let ServerFrame::Welcome(welcome) = frame else { panic!("{frame:?}") };
        let shard_count = welcome.shard_count;
        let memory = sys::map_shared(&descriptors[0], session_bytes(shard_count)).expect("mapped");
        Self { _socket: socket, _descriptors: descriptors, memory, shard_count }
    }

    fn view(&self) -> SessionView<'_, AtomicU64> {
        SessionView::new(sys::words(&self.memory), self.shard_count).expect("as long as stated")
    }

    fn ring(&self) {
        for bell in &self._descriptors[2..] {
            use std::io::Write as _;
            let mut bell = std::fs::File::from(bell.try_clone().expect("a descriptor"));
            bell.write_all(&1u64.to_ne_bytes()).expect("rung");
        }
    }

    /// Why the server closed it.
    fn farewell(&self) -> String {
        let (bytes, _) = sys::receive(&self._socket).expect("told");
        match ServerFrame::decode(&bytes) {
            Ok(ServerFrame::Closed { text }) => text,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn given_sessions_that_keep_no_rule_when_they_write_garbage_then_nobody_else_is_harmed() {
    use std::sync::atomic::Ordering::{Relaxed, Release};
    let place = Place::new();
    let server = place.start();
    let client = native(&server);
    let socket = client.session().expect("there").path().to_owned();
    let id = put(&client, Tier::Ram, b"untouched");
    let held = lease(&client, id);

    // Garbage in sequence: each entry is refused.
    let garbage = Raw::connect(&socket);
    let few = RING_ENTRIES / 2;
    for shard in 0..garbage.shard_count {
        let view = garbage.view().shard(shard);
        for (at, word) in view.submissions[..few * 8].iter().enumerate() {
            let noise = (at as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ u64::from(shard);
            word.store(if at % 8 == 0 { (at / 8) as u64 + 1 } else { noise }, Release);
        }
    }
    garbage.ring();
    until("all of it is answered", || {
        (0..garbage.shard_count).all(|shard| {
            let last = &garbage.view().shard(shard).completions[(few - 1) * 8];
            last.load(Relaxed) == few as u64
        })
    });
    assert_eq!(&*lease(&client, id), b"untouched");

    // One that takes no answers: it is served until they fill their ring, and nobody waits for it.
    let resolve = Submission::Resolve { id }.encode(0);
    let submit = |view: &ShardView<'_, AtomicU64>, position: u64| {
        let slot = &view.submissions[(position as usize % RING_ENTRIES) * 8..][..8];
        for (word, value) in slot[1..].iter().zip(resolve) {
            word.store(value, Relaxed);
        }
        slot[0].store(position + 1, Release);
    };
    let deaf = Raw::connect(&socket);
    let session = deaf.view();
    let view = session.shard(0);
    (0..RING_ENTRIES as u64).for_each(|position| submit(&view, position));
    deaf.ring();
    until("its ring of answers is full", || view.submissions_taken.load(Relaxed) == RING_ENTRIES as u64);
    (RING_ENTRIES as u64..2 * RING_ENTRIES as u64).for_each(|position| submit(&view, position));
    deaf.ring();
    assert_eq!(&*lease(&client, id), b"untouched");

    // Counters that cannot be: the session is closed with the reason.
    view.completions_taken.store(u64::MAX, Release);
    deaf.ring();
    let reason = deaf.farewell();
    assert!(reason.contains("not possible"), "{reason}");

    // Doorbells without end, and all memory overwritten.
    let flood = Raw::connect(&socket);
    for round in 0..200u64 {
        sys::words(&flood.memory)
            .iter()
            .for_each(|word| word.store(round.wrapping_mul(0x0101_0101), Relaxed));
        flood.ring();
        assert_eq!(&*lease(&client, id), b"untouched");
    }
    drop((garbage, deaf, flood));
    assert_eq!(&*held, b"untouched");
    drop(held);
    until("leases that garbage may have got are gone", || client.delete(id, false, None).is_ok());
}

#[test]
fn given_hellos_that_are_none_when_sent_then_refused_by_reason_or_closed_and_others_come_in() {
    let place = Place::new().with("LOCAL__SESSIONS_MAX", "2");
    let server = place.start();
    let first = native(&server);
    let socket = first.session().expect("there").path().to_owned();
    let refusal = |bytes: &[u8]| {
        let raw = sys::seqpacket(&socket).expect("connected");
        sys::send(&raw, bytes).expect("sent");
        let (bytes, descriptors) = sys::receive(&raw).expect("answered");
        assert!(descriptors.is_empty(), "nothing is given to who is refused");
        match ServerFrame::decode(&bytes) {
            Ok(ServerFrame::Refusal { kind, text }) => (kind, text),
            other => panic!("{other:?}"),
        }
    };
    let future = Hello { version_min: 7, version_max: 9, ..Hello::new("future") };
    let (kind, text) = refusal(&ClientFrame::Hello(future).encode());
    assert_eq!(kind, RefusalKind::Version);
    assert!(text.contains("version 1") && text.contains("7 to 9"), "{text}");
    for nonsense in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 100]] {
        assert_eq!(refusal(nonsense).0, RefusalKind::Malformed);
    }
    // Who says nothing is let go.
    let silent = sys::seqpacket(&socket).expect("connected");
    let (bytes, _) = sys::receive(&silent).expect("ended");
    let is_refusal = matches!(ServerFrame::decode(&bytes), Ok(ServerFrame::Refusal { .. }));
    assert!(bytes.is_empty() || is_refusal, "{bytes:?}");

    let second = Session::connect(&socket).expect("the second of two");
    let error = Session::connect(&socket).expect_err("one too many");
    let text = error.to_string();
    assert!(matches!(error, ClientError::Refused { .. }) && text.contains("local.sessions_max"), "{text}");
    // A client with an address goes on over gRPC.
    let third = Client::connect(&server.address).expect("connected");
    assert!(third.session().is_none());
    let id = put(&third, Tier::Ram, b"over gRPC");
    assert_eq!(&*lease(&third, id), b"over gRPC");
    drop(second);
    until("a place is free again", || Session::connect(&socket).is_ok());
}

#[test]
fn given_native_sessions_switched_off_when_connected_then_grpc_alone() {
    let place = Place::new().with("LOCAL__ENABLED", "false");
    let server = place.start();
    let client = Client::connect(&server.address).expect("connected");
    assert!(client.session().is_none());
    let id = put(&client, Tier::Ram, b"over gRPC");
    let held = lease(&client, id);
    assert_eq!(&*held, b"over gRPC");
    assert!(held.descriptor().expires_at.is_none_or(|end| end < WallMs::MAX));
    drop(held);
    client.delete(id, false, None).expect("released when it was dropped");
}

#[test]
fn given_the_quick_start_when_run_by_address_and_by_path_then_it_stores_and_reads() {
    let place = Place::new();
    let server = place.start();
    let socket = native(&server).session().expect("there").path().to_owned();
    let example = program("payload-manager").with_file_name("examples").join("quickstart");
    for target in [server.address.as_str(), socket.to_str().expect("text")] {
        let output = Command::new(&example).arg(target).output().expect("cargo test builds examples");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        // 4,096 times the sum of 0 to 255.
        assert!(said.contains("1048576 bytes, sum 133693440"), "{said}");
    }
}
