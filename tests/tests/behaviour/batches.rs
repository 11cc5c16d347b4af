//! Batches and lease sessions through a real server: one result an item, commits that happen together or not at all, and
//! sessions that leave nothing behind.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use payload_client::{AcquireOptions, AllocateOptions, BatchCommit, Client, ClientError, Descriptor};
use payload_tests::peer::Peer;
use payload_tests::server::{Place, Server, eventually};
use payload_types::{ByteCount, ErrorKind, PayloadId, PayloadState, Tier};
use payload_wire::ids;
use payload_wire::pb::operations::v1 as operations;
use payload_wire::pb::operations::v1::payload_batch_service_client::PayloadBatchServiceClient;
use payload_wire::pb::runtime::v1 as runtime;
use tonic::Request;
use tonic::transport::Endpoint;

/// The window of a client that does not read: about a hundred answers.
const WINDOW_BYTES: u32 = 16 << 10;

fn on(tier: Tier) -> AllocateOptions {
    AllocateOptions { tier, ..AllocateOptions::default() }
}

async fn client(server: &Server) -> Client {
    Client::connect_grpc(&server.address).await.expect("connected")
}

/// Allocates so many, on RAM and DISK in turn.
async fn allocate(client: &Client, count: usize) -> Vec<PayloadId> {
    let items: Vec<_> = (0..count)
        .map(|number| (ByteCount(100), on(if number % 2 == 0 { Tier::Ram } else { Tier::Disk })))
        .collect();
    let allocated = client.batch_allocate(&items).await.expect("answered");
    allocated.into_iter().map(|result| result.expect("allocated").descriptor.id).collect()
}

/// A batch of these, without checksums.
async fn commit(client: &Client, ids: &[PayloadId]) -> Result<BatchCommit, ClientError> {
    let items: Vec<_> = ids.iter().map(|id| (*id, None)).collect();
    client.batch_commit(&items).await
}

fn all(answer: Result<BatchCommit, ClientError>) -> Vec<Descriptor> {
    match answer.expect("answered") {
        BatchCommit::Committed(descriptors) => descriptors,
        BatchCommit::Refused(why) => panic!("refused: {why:?}"),
    }
}

fn none(answer: Result<BatchCommit, ClientError>) -> Vec<(Option<ErrorKind>, String)> {
    match answer.expect("answered") {
        BatchCommit::Committed(descriptors) => panic!("committed: {descriptors:?}"),
        BatchCommit::Refused(why) => why.into_iter().map(|error| (error.kind(), error.to_string())).collect(),
    }
}

async fn state(client: &Client, id: PayloadId) -> PayloadState {
    client.resolve(id).await.expect("it is there").state
}

/// Leases held now, by the accounting.
async fn leases(client: &Client) -> u64 {
    client.accounting().await.expect("stats").node.expect("ours").leases
}

fn is_refused<T: std::fmt::Debug>(result: Result<T, ClientError>, kind: ErrorKind, word: &str) {
    let error = result.expect_err("refused");
    assert_eq!(error.kind(), Some(kind), "{error}");
    assert!(error.to_string().contains(word), "{error}");
}

#[tokio::test]
async fn given_good_and_bad_items_when_allocated_together_then_each_has_its_own_result_in_order() {
    let place = Place::new();
    let server = place.start();
    let client = client(&server).await;
    let items = [
        (ByteCount(100), on(Tier::Ram)),
        (ByteCount(0), on(Tier::Ram)),
        (ByteCount(200), on(Tier::Disk)),
        (ByteCount(1 << 40), on(Tier::Ram)),
        (ByteCount(1 << 30), on(Tier::Ram)),
        (ByteCount(300), on(Tier::Gpu)),
    ];
    let results = client.batch_allocate(&items).await.expect("answered");
    let seen: Vec<_> = results
        .iter()
        .map(|result| match result {
            Ok(allocation) => Ok((allocation.descriptor.size.0, allocation.descriptor.tier)),
            Err(error) => Err(error.kind().expect("the server's")),
        })
        .collect();
    let expected = [
        Ok((100, Tier::Ram)),
        Err(ErrorKind::InvalidArgument),
        Ok((200, Tier::Disk)),
        Err(ErrorKind::InvalidArgument),
        Err(ErrorKind::ResourceExhausted),
        Err(ErrorKind::FailedPrecondition),
    ];
    assert_eq!(seen, expected);
    assert_eq!(client.list(None, 10, None).await.expect("listed").total_count, 2);

    is_refused(client.batch_allocate(&[]).await, ErrorKind::InvalidArgument, "1 to 1000");
    let many = vec![(ByteCount(1), on(Tier::Ram)); 1001];
    is_refused(client.batch_allocate(&many).await, ErrorKind::InvalidArgument, "1001 items");
    is_refused(
        client.batch_acquire(&[], &AcquireOptions::default()).await,
        ErrorKind::InvalidArgument,
        "0 items",
    );
    is_refused(client.batch_release(&[]).await, ErrorKind::InvalidArgument, "0 items");
    is_refused(commit(&client, &[]).await, ErrorKind::InvalidArgument, "0 items");
}

#[tokio::test]
async fn given_request_ids_when_batches_are_repeated_then_done_once_and_refused_ones_are_tried_again() {
    let place = Place::new();
    let server = place.start();
    let client = client(&server).await;
    let named = |name: &str| client.with_request_id(name).expect("an id");
    let items = vec![(ByteCount(100), on(Tier::Ram)); 5];
    let ids = async |client: &Client| -> Vec<PayloadId> {
        let results = client.batch_allocate(&items).await.expect("answered");
        results.into_iter().map(|result| result.expect("allocated").descriptor.id).collect()
    };
    let (one, again) = (named("a-1"), named("a-1"));
    let (first, second) = tokio::join!(ids(&one), ids(&again));
    assert_eq!(first, second);
    assert_eq!(client.list(None, 10, None).await.expect("listed").total_count, 5);

    let committed = all(commit(&named("c-1"), &first).await);
    assert_eq!(all(commit(&named("c-1"), &first).await), committed);
    let why = none(commit(&client, &first).await);
    assert!(why.iter().all(|(kind, _)| *kind == Some(ErrorKind::FailedPrecondition)), "{why:?}");

    // The file is too short: put back. Made whole, the same call with the same id succeeds.
    let one = client.batch_allocate(&[(ByteCount(9000), on(Tier::Disk))]).await.expect("answered").remove(0);
    let one = one.expect("allocated").descriptor;
    let Some(payload_client::Location::File { path, .. }) = one.location else { panic!("{one:?}") };
    let length =
        |bytes| std::fs::OpenOptions::new().write(true).open(&path).expect("it is there").set_len(bytes);
    length(10).expect("shortened");
    let why = none(commit(&named("c-2"), &[one.id]).await);
    assert_eq!(why[0].0, Some(ErrorKind::FailedPrecondition), "{why:?}");
    length(9000).expect("whole again");
    all(commit(&named("c-2"), &[one.id]).await);
}

#[tokio::test]
async fn given_payloads_on_both_tiers_and_shards_when_one_is_bad_then_none_is_committed_and_each_says_why() {
    let place = Place::new().with("SHARDS__COUNT", "3");
    let server = place.start();
    let client = client(&server).await;
    let ids = allocate(&client, 20).await;
    let unknown = PayloadId::mint(77, 77);
    let mut batch = ids.clone();
    batch.insert(7, unknown);
    let why = none(commit(&client, &batch).await);
    assert_eq!(why.len(), 21);
    for (at, (kind, message)) in why.iter().enumerate() {
        let expected = if at == 7 { ErrorKind::NotFound } else { ErrorKind::LeaseConflict };
        assert_eq!(*kind, Some(expected), "{at}: {message}");
        assert!(message.contains(&batch[at].to_string()), "{message}");
    }
    for id in &ids {
        assert_eq!(state(&client, *id).await, PayloadState::Allocated);
    }
    let mut twice = ids.clone();
    twice.push(ids[0]);
    is_refused(commit(&client, &twice).await, ErrorKind::InvalidArgument, "twice");

    let committed = all(commit(&client, &ids).await);
    for (number, descriptor) in committed.iter().enumerate() {
        assert_eq!(descriptor.id, ids[number]);
        let expected = if number % 2 == 0 { PayloadState::Active } else { PayloadState::Durable };
        assert_eq!(descriptor.state, expected);
    }
    // One that is committed already spoils a batch, too.
    let mut more = allocate(&client, 3).await;
    more.push(ids[3]);
    let why = none(commit(&client, &more).await);
    assert_eq!(why[3].0, Some(ErrorKind::FailedPrecondition));
    assert_eq!(state(&client, more[0]).await, PayloadState::Allocated);
    server.kill();
    let server = place.start();
    let client = self::client(&server).await;
    for id in &ids {
        assert!(state(&client, *id).await.is_readable());
    }
    assert_eq!(
        client.list(None, 10, None).await.expect("listed").total_count,
        20,
        "what was put back is gone"
    );
}

#[tokio::test]
async fn given_a_thousand_payloads_when_allocated_committed_leased_and_released_then_every_one_is() {
    let place = Place::new().with("SHARDS__COUNT", "1");
    let server = place.start();
    let client = client(&server).await;
    let items = vec![(ByteCount(10), on(Tier::Ram)); 1000];
    let allocated = client.batch_allocate(&items).await.expect("answered");
    let ids: Vec<PayloadId> =
        allocated.into_iter().map(|result| result.expect("allocated").descriptor.id).collect();
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), 1000);
    // Two batches at a time: one waits at the gate, both are committed.
    let (left, right) = tokio::join!(commit(&client, &ids[..600]), commit(&client, &ids[600..]));
    assert_eq!(all(left).len() + all(right).len(), 1000);
    let leased = client.batch_acquire(&ids, &AcquireOptions::default()).await.expect("answered");
    let held: Vec<_> = leased.into_iter().map(|result| result.expect("leased")).collect();
    assert!(held.iter().zip(&ids).all(|(lease, id)| lease.descriptor.id == *id));
    assert_eq!(leases(&client).await, 1000);
    let held: Vec<_> = held.iter().map(|lease| lease.id).collect();
    for _ in 0..2 {
        let released = client.batch_release(&held).await.expect("answered");
        assert!(released.iter().all(Result::is_ok), "twice is fine");
    }
    assert_eq!(leases(&client).await, 0);
    // Some are unknown, some are not: each for itself.
    let mut some = ids[..3].to_vec();
    some.insert(1, PayloadId::mint(5, 5));
    let results = client.batch_acquire(&some, &AcquireOptions::default()).await.expect("answered");
    let kinds: Vec<_> =
        results.iter().map(|result| result.as_ref().err().and_then(ClientError::kind)).collect();
    assert_eq!(kinds, [None, Some(ErrorKind::NotFound), None, None]);
}

#[tokio::test]
async fn given_a_full_tier_when_allocated_together_then_items_wait_and_what_fits_is_reported() {
    let place = Place::new();
    let server = place.start();
    let client = client(&server).await;
    let items = vec![(ByteCount(20 << 20), AllocateOptions { no_evict: true, ..on(Tier::Ram) }); 5];
    let started = Instant::now();
    let soon = client.with_deadline(Duration::from_secs(2));
    let results = soon.batch_allocate(&items).await.expect("an answer before the deadline");
    assert!(started.elapsed() < Duration::from_secs(2));
    let fits = results.iter().filter(|result| result.is_ok()).count();
    let full = results.iter().filter_map(|result| result.as_ref().err());
    let kinds: Vec<_> = full.map(ClientError::kind).collect();
    assert_eq!((fits, &kinds[..]), (3, &[Some(ErrorKind::ResourceExhausted); 2][..]), "{results:?}");

    let first = results.into_iter().find_map(Result::ok).expect("some fit").descriptor.id;
    let waiting = {
        let client = client.clone();
        let items = items[..2].to_vec();
        tokio::spawn(async move { client.batch_allocate(&items).await })
    };
    eventually("both wait", async || {
        let node = client.accounting().await.expect("stats").node.expect("ours");
        (node.operations == 2).then_some(())
    })
    .await;
    client.delete(first, false, None).await.expect("deleted");
    eventually("one has its space", async || {
        let node = client.accounting().await.expect("stats").node.expect("ours");
        (node.operations == 1).then_some(())
    })
    .await;
    for row in client.list(None, 10, None).await.expect("listed").rows {
        client.delete(row.id, false, None).await.expect("deleted");
    }
    let results = waiting.await.expect("no panic").expect("answered");
    assert!(results.iter().all(Result::is_ok), "{results:?}");
}

#[tokio::test]
async fn given_a_client_that_goes_away_when_its_batch_is_under_way_then_it_is_committed_whole() {
    let place = Place::new();
    let server = place.start();
    let client = client(&server).await;
    for round in 0..20 {
        let ids = allocate(&client, 40).await;
        let batch = commit(&client, &ids);
        // Given up after a moment, somewhere on its way.
        let answer = tokio::time::timeout(Duration::from_micros(100 * round), batch).await;
        let is_first = async || state(&client, ids[0]).await.is_readable();
        if answer.is_err() && !is_first().await {
            // It may never have been sent; else it goes on.
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        let first = is_first().await;
        for id in &ids {
            assert_eq!(state(&client, *id).await.is_readable(), first, "round {round}");
        }
    }
}

#[tokio::test]
async fn given_a_server_killed_while_batches_commit_then_each_batch_is_there_whole_or_not_at_all() {
    let place = Place::new();
    let mut committed: Vec<Vec<PayloadId>> = Vec::new();
    let (mut survived, mut gone) = (0, 0);
    for round in 0..12_u64 {
        let server = place.start();
        let client = client(&server).await;
        let mut batches = Vec::new();
        for _ in 0..4 {
            batches.push(allocate(&client, 25).await);
        }
        let running: Vec<_> = batches
            .iter()
            .map(|ids| {
                let (client, ids) = (client.clone(), ids.clone());
                tokio::spawn(async move { commit(&client, &ids).await.is_ok() })
            })
            .collect();
        tokio::time::sleep(Duration::from_micros(800 * round)).await;
        server.kill();
        let mut acknowledged = Vec::new();
        for batch in running {
            acknowledged.push(batch.await.expect("no panic"));
        }
        let server = place.start();
        let client = self::client(&server).await;
        for (ids, acknowledged) in batches.into_iter().zip(acknowledged) {
            let mut there = 0;
            for id in &ids {
                there += usize::from(client.resolve(*id).await.is_ok());
            }
            assert!(there == 0 || there == ids.len(), "round {round}: {there} of {}", ids.len());
            assert!(!acknowledged || there > 0, "round {round}: it was acknowledged");
            if there > 0 {
                survived += 1;
                committed.push(ids);
            } else {
                gone += 1;
            }
        }
        server.kill();
    }
    assert!(survived > 0 && gone > 0, "{survived} and {gone}: both ends of the transaction were to be met");
    let server = place.start();
    let client = client(&server).await;
    for id in committed.iter().flatten() {
        assert!(state(&client, *id).await.is_readable());
    }
}

#[tokio::test]
async fn given_a_session_when_many_leases_are_wished_for_at_once_then_all_are_answered_and_close_releases_them()
 {
    let place = Place::new();
    let server = place.start();
    let client = client(&server).await;
    let ids = allocate(&client, 100).await;
    all(commit(&client, &ids).await);
    let session = std::sync::Arc::new(client.lease_session().await.expect("opened"));
    let wishes: Vec<_> = (0..1000)
        .map(|number| {
            let (session, id) = (session.clone(), ids[number % ids.len()]);
            tokio::spawn(async move {
                let lease = session.acquire(id, &AcquireOptions::default()).await.expect("leased");
                assert_eq!(lease.descriptor.id, id);
                if number % 2 == 0 {
                    session.release(lease.id).await.expect("released");
                }
            })
        })
        .collect();
    for wish in wishes {
        wish.await.expect("no panic");
    }
    assert_eq!(leases(&client).await, 500);
    is_refused(
        session.acquire(PayloadId::mint(3, 3), &AcquireOptions::default()).await,
        ErrorKind::NotFound,
        "not known",
    );
    let holders = client.holders(ids[1]).await.expect("holders");
    assert!(!holders.leases.is_empty());
    for lease in &holders.leases {
        assert_eq!(lease.owner.as_ref().expect("an owner").pid, Some(std::process::id()));
    }
    let session = std::sync::Arc::into_inner(session).expect("nobody else has it");
    session.close().await.expect("closed");
    assert_eq!(leases(&client).await, 0, "released before the end is told");

    let session = client.lease_session().await.expect("opened");
    session.acquire(ids[0], &AcquireOptions::default()).await.expect("leased");
    drop(session);
    eventually("a dropped session releases", async || (leases(&client).await == 0).then_some(())).await;
    client.delete(ids[0], false, None).await.expect("nobody leases it");
}

#[tokio::test]
async fn given_a_process_with_a_session_when_it_is_killed_then_its_leases_are_released() {
    let place = Place::new();
    let server = place.start();
    let client = client(&server).await;
    let ids = allocate(&client, 2).await;
    all(commit(&client, &ids).await);
    let mut peer = Peer::start(&server);
    let id = ids::payload_id_to_pb(ids[0]);
    assert_eq!(peer.ask_bytes("session", &id), "1");
    assert_eq!(peer.ask_bytes("session", &id), "2");
    assert_eq!(leases(&client).await, 2);
    let holders = client.holders(ids[0]).await.expect("holders");
    let pids: Vec<Option<u32>> =
        holders.leases.iter().map(|lease| lease.owner.as_ref().expect("an owner").pid).collect();
    assert_eq!(pids, [Some(peer.pid()); 2]);
    is_refused(client.delete(ids[0], false, None).await, ErrorKind::LeaseConflict, "lease");
    // SIGKILL.
    drop(peer);
    eventually("its leases end", async || (leases(&client).await == 0).then_some(())).await;
    client.delete(ids[0], false, None).await.expect("nobody leases it");
}

#[tokio::test]
async fn given_an_open_session_when_the_server_stops_then_unavailable_promptly() {
    let place = Place::new();
    let server = place.start();
    let client = client(&server).await;
    let ids = allocate(&client, 2).await;
    all(commit(&client, &ids).await);
    let session = client.lease_session().await.expect("opened");
    session.acquire(ids[0], &AcquireOptions::default()).await.expect("leased");
    let started = Instant::now();
    let stopping = tokio::task::spawn_blocking(move || server.stop());
    eventually("the session hears of it", async || {
        let refused = session.acquire(ids[0], &AcquireOptions::default()).await.err()?;
        assert_eq!(refused.kind(), Some(ErrorKind::Unavailable), "{refused}");
        refused.to_string().contains("the server is stopping").then_some(())
    })
    .await;
    stopping.await.expect("exit 0");
    assert!(started.elapsed() < Duration::from_secs(8), "it was no reason to wait");
    is_refused(session.close().await, ErrorKind::Unavailable, "stopping");
}

#[tokio::test]
async fn given_a_session_that_nobody_reads_when_it_wishes_on_then_it_holds_little_and_others_are_served() {
    let place = Place::new();
    let server = place.start();
    let client = client(&server).await;
    let ids = allocate(&client, 1).await;
    all(commit(&client, &ids).await);
    let (wishes, sent) = tokio::sync::mpsc::channel(1);
    // A small window, so that it is full soon.
    let slow = Endpoint::from_shared(format!("http://{}", server.address)).expect("an address");
    let slow = slow.initial_stream_window_size(WINDOW_BYTES).connect().await.expect("connected");
    let mut service = PayloadBatchServiceClient::new(slow);
    let answers =
        service.lease_session(tokio_stream::wrappers::ReceiverStream::new(sent)).await.expect("opened");
    let acquire = runtime::AcquireReadLeaseRequest {
        id: Some(ids::payload_id_to_pb(ids[0])),
        ..runtime::AcquireReadLeaseRequest::default()
    };
    let wish = |tag| {
        let wish = Some(operations::lease_session_request::Wish::Acquire(acquire.clone()));
        operations::LeaseSessionRequest { tag, wish, timeout_ms: 0 }
    };
    for tag in 0..1000 {
        wishes.send(wish(tag)).await.expect("taken");
    }
    // Windows and buffers fill; then it stands still.
    let mut before = u64::MAX;
    let held = eventually("it stands still", async || {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let held = leases(&client).await;
        (std::mem::replace(&mut before, held) == held && held > 0).then_some(held)
    })
    .await;
    // What the window holds, 64 answers beside it, 64 under way, and what the transport keeps.
    assert!(held < 600, "{held}");
    for _ in 0..100 {
        let lease = client.acquire_read_lease(ids[0], &AcquireOptions::default()).await.expect("served");
        client.release_lease(lease.id).await.expect("served");
    }
    // Who sends on for ever and reads nothing loses its connection, and its leases with it.
    let answers = answers.into_inner();
    for tag in 1000.. {
        if wishes.send(wish(tag)).await.is_err() {
            break;
        }
    }
    eventually("all of it is released", async || (leases(&client).await == 0).then_some(())).await;
    drop(answers);
}

#[tokio::test]
async fn given_broken_wishes_when_sent_then_each_is_refused_with_its_tag_and_the_session_goes_on() {
    let place = Place::new();
    let server = place.start();
    let client = client(&server).await;
    let ids = allocate(&client, 1).await;
    all(commit(&client, &ids).await);
    use operations::lease_session_request::Wish;
    use operations::lease_session_response::Outcome;
    let acquire = |value: Vec<u8>| runtime::AcquireReadLeaseRequest {
        id: Some(payload_wire::pb::core::v1::PayloadId { value }),
        ..runtime::AcquireReadLeaseRequest::default()
    };
    let wish = |tag, wish| operations::LeaseSessionRequest { tag, wish, timeout_ms: 0 };
    let good = ids::payload_id_to_pb(ids[0]).value;
    let wishes = vec![
        wish(7, None),
        wish(8, Some(Wish::Acquire(acquire(vec![1; 15])))),
        wish(9, Some(Wish::Release(runtime::ReleaseLeaseRequest::default()))),
        wish(9, Some(Wish::Acquire(acquire(good)))),
    ];
    let mut service = PayloadBatchServiceClient::new(client.channel());
    let request = Request::new(tokio_stream::iter(wishes));
    let mut answers = service.lease_session(request).await.expect("opened").into_inner();
    let mut seen = Vec::new();
    while let Some(answer) = answers.message().await.expect("no end but the good one") {
        seen.push(match answer.outcome.expect("one") {
            Outcome::Acquired(_) => (answer.tag, 0),
            Outcome::Released(()) => panic!("nothing was released"),
            Outcome::Error(error) => (answer.tag, error.code),
        });
    }
    seen.sort_unstable();
    assert_eq!(seen, [(7, 3), (8, 3), (9, 0), (9, 3)]);
    assert_eq!(leases(&client).await, 0, "the stream has ended");
}

#[tokio::test]
async fn given_a_wish_with_a_time_limit_when_there_is_no_room_then_it_ends_by_then_and_the_session_goes_on() {
    let place = Place::new().with("STORAGE__RAM__CAPACITY_BYTES", "8MiB");
    let server = place.start();
    let client = client(&server).await;
    let hog = client.allocate_payload(ByteCount(8 << 20), &on(Tier::Ram)).await.expect("allocated");
    let made = client.allocate_payload(ByteCount(1 << 20), &on(Tier::Disk)).await.expect("allocated");
    let payload = made.descriptor.id;
    client.commit_payload(payload, None).await.expect("committed");
    let session = client.lease_session().await.expect("opened");
    let fast = AcquireOptions { min_tier: Some(Tier::Ram), ..AcquireOptions::default() };
    let started = Instant::now();
    let late = session.acquire_within(payload, &fast, Duration::from_millis(300)).await;
    is_refused(late, ErrorKind::ResourceExhausted, "RAM");
    assert!(started.elapsed() < Duration::from_secs(20), "without a limit it waits for 30 s");
    client.delete(hog.descriptor.id, false, None).await.expect("deleted");
    let lease = session.acquire_within(payload, &fast, Duration::from_secs(20)).await.expect("there is room");
    assert_eq!(lease.descriptor.tier, Tier::Ram);
    session.close().await.expect("closed");
}
