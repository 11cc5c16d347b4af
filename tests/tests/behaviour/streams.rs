//! behaviour.md, "Streams", row by row, against a real server; what is appended is there after `kill -9`.

use std::time::{Duration, Instant};

use payload_tests::server::{PATIENCE, Place, Server, eventually};
use payload_tests::sys::Signal;
use payload_tests::v1::{RAM, V1, content, id, refused, stranger};
use payload_wire::pb::core::v1::PayloadId;
use payload_wire::pb::runtime::v1 as pb;
use payload_wire::pb::runtime::v1::subscribe_request::Start;
use payload_wire::pb::services::v1::payload_stream_service_client::PayloadStreamServiceClient;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

/// One stream of a server.
#[derive(Clone)]
struct Stream {
    v1: V1,
    name: pb::StreamId,
}

impl Stream {
    async fn of(server: &Server, name: &str) -> Self {
        let name = pb::StreamId { name: name.to_owned(), namespace: "tests".to_owned() };
        Self { v1: V1::connect(server).await, name }
    }

    /// A new stream without limits.
    async fn made(server: &Server) -> Self {
        let stream = Self::of(server, "made").await;
        stream.create(0, 0).await.expect("created");
        stream
    }

    fn stub(&self) -> PayloadStreamServiceClient<Channel> {
        PayloadStreamServiceClient::new(self.v1.channel())
    }

    fn name(&self) -> Option<pb::StreamId> {
        Some(self.name.clone())
    }

    async fn create(&self, entries: u64, seconds: u64) -> Result<(), Status> {
        let request = pb::CreateStreamRequest {
            stream: self.name(),
            retention_max_entries: entries,
            retention_max_age_sec: seconds,
            retain_payloads: false,
        };
        self.stub().create_stream(request).await.map(drop)
    }

    async fn delete(&self) -> Result<(), Status> {
        self.stub().delete_stream(pb::DeleteStreamRequest { stream: self.name() }).await.map(drop)
    }

    async fn append(&self, ids: &[&PayloadId]) -> Result<(u64, u64), Status> {
        self.append_items(ids.iter().map(|id| item(id)).collect()).await
    }

    async fn append_items(&self, items: Vec<pb::AppendItem>) -> Result<(u64, u64), Status> {
        let answer = self.stub().append(pb::AppendRequest { stream: self.name(), items }).await?.into_inner();
        Ok((answer.first_offset, answer.last_offset))
    }

    /// Appends this payload so often.
    async fn fill(&self, payload: &PayloadId, count: usize) {
        self.append(&vec![payload; count]).await.expect("appended");
    }

    async fn read(&self, start_offset: u64, max_entries: u64) -> Result<Vec<pb::StreamEntry>, Status> {
        let request = pb::ReadRequest { stream: self.name(), start_offset, max_entries, not_before: None };
        self.stub().read(request).await.map(|answer| answer.into_inner().entries)
    }

    async fn offsets(&self, start_offset: u64) -> Vec<u64> {
        offsets(&self.read(start_offset, 0).await.expect("read"))
    }

    async fn range(&self, start_offset: u64, end_offset: u64) -> Result<Vec<u64>, Status> {
        let request = pb::GetRangeRequest { stream: self.name(), start_offset, end_offset };
        self.stub().get_range(request).await.map(|answer| offsets(&answer.into_inner().entries))
    }

    async fn commit(&self, group: &str, offset: u64) -> Result<(), Status> {
        let request = pb::CommitRequest { stream: self.name(), consumer_group: group.to_owned(), offset };
        self.stub().commit(request).await.map(drop)
    }

    async fn committed(&self, group: &str) -> Result<(u64, bool), Status> {
        let request = pb::GetCommittedRequest { stream: self.name(), consumer_group: group.to_owned() };
        let answer = self.stub().get_committed(request).await?.into_inner();
        Ok((answer.offset, answer.committed))
    }

    async fn subscribe(&self, start: Option<Start>, max_inflight: u32) -> Result<Follower, Status> {
        let request = pb::SubscribeRequest { stream: self.name(), max_inflight, start };
        self.stub().subscribe(request).await.map(|answer| Follower(answer.into_inner()))
    }
}

/// A subscription.
struct Follower(Streaming<pb::SubscribeResponse>);

impl Follower {
    /// The next message, which must come.
    async fn next(&mut self) -> Result<pb::StreamEntry, Status> {
        let message = tokio::time::timeout(PATIENCE, self.0.message()).await.expect("something comes");
        message.map(|message| message.expect("no end without a status").entry.expect("an entry"))
    }

    async fn offsets(&mut self, count: usize) -> Vec<u64> {
        let mut offsets = Vec::new();
        for _ in 0..count {
            offsets.push(self.next().await.expect("an entry").offset);
        }
        offsets
    }

    /// Nothing comes for a moment.
    async fn is_silent(&mut self) -> bool {
        tokio::time::timeout(Duration::from_millis(50), self.0.message()).await.is_err()
    }
}

fn item(payload: &PayloadId) -> pb::AppendItem {
    pb::AppendItem { payload_id: Some(payload.clone()), ..Default::default() }
}

fn offsets(entries: &[pb::StreamEntry]) -> Vec<u64> {
    entries.iter().map(|entry| entry.offset).collect()
}

async fn payload(stream: &Stream) -> PayloadId {
    id(&stream.v1.put(RAM, &content(1, 100)).await)
}

#[tokio::test]
async fn given_names_that_are_none_or_unknown_when_any_rpc_is_called_then_its_code() {
    let place = Place::new();
    let server = place.start();
    let known = Stream::made(&server).await;
    let payload = payload(&known).await;
    let named = |name: Option<(&str, &str)>| {
        name.map(|(name, namespace)| pb::StreamId { name: name.to_owned(), namespace: namespace.to_owned() })
    };
    let long = "n".repeat(256);
    let mut stub = known.stub();
    let bad = [
        None,
        Some(("", "n")),
        Some(("a\0", "")),
        Some(("a", "\0")),
        Some((&*long, "")),
        Some(("a", &*long)),
    ];
    for (name, unknown) in bad.into_iter().map(|name| (name, false)).chain([(Some(("nobody", "")), true)]) {
        let stream = || named(name);
        let (consumer_group, items) = ("g".to_owned(), vec![item(&payload)]);
        let subscribe = pb::SubscribeRequest { stream: stream(), ..Default::default() };
        let answers = [
            stub.append(pb::AppendRequest { stream: stream(), items }).await.map(drop),
            stub.read(pb::ReadRequest { stream: stream(), ..Default::default() }).await.map(drop),
            stub.subscribe(subscribe).await.map(drop),
            stub.commit(pb::CommitRequest { stream: stream(), consumer_group: "g".to_owned(), offset: 0 })
                .await
                .map(drop),
            stub.get_committed(pb::GetCommittedRequest { stream: stream(), consumer_group }).await.map(drop),
            stub.get_range(pb::GetRangeRequest { stream: stream(), start_offset: 2, end_offset: 1 })
                .await
                .map(drop),
        ];
        let code = if unknown { Code::NotFound } else { Code::InvalidArgument };
        for answer in answers {
            refused(answer, code, &["stream"]);
        }
        let deleted = stub.delete_stream(pb::DeleteStreamRequest { stream: stream() }).await.map(drop);
        if unknown {
            deleted.expect("deleting what is not there is fine");
        } else {
            refused(deleted, code, &[]);
            let create = pb::CreateStreamRequest { stream: stream(), ..Default::default() };
            refused(stub.create_stream(create).await.map(drop), code, &[]);
        }
    }
}

#[tokio::test]
async fn given_a_stream_when_created_again_then_already_exists_and_a_deleted_one_starts_anew() {
    let place = Place::new();
    let server = place.start();
    let stream = Stream::made(&server).await;
    let payload = payload(&stream).await;
    refused(stream.create(5, 0).await, Code::AlreadyExists, &[]);
    refused(stream.create(1 << 63, 0).await, Code::InvalidArgument, &["retention_max_entries"]);
    refused(stream.create(0, u64::MAX).await, Code::InvalidArgument, &["retention_max_age_sec"]);
    stream.fill(&payload, 3).await;
    stream.commit("g", 2).await.expect("committed");
    stream.delete().await.expect("deleted");
    refused(stream.read(0, 0).await, Code::NotFound, &[]);
    stream.delete().await.expect("deleted again");
    stream.create(0, 0).await.expect("made anew");
    assert!(stream.offsets(0).await.is_empty());
    assert_eq!(stream.committed("g").await.expect("a stream"), (0, false), "no commits");
    assert_eq!(stream.append(&[&payload]).await.expect("appended"), (0, 0), "from offset 0");
    let elsewhere = pb::StreamId { name: "made".to_owned(), namespace: String::new() };
    let other = Stream { name: elsewhere, ..stream.clone() };
    other.create(0, 0).await.expect("another namespace, another stream");
    assert!(other.offsets(0).await.is_empty());
}

#[tokio::test]
async fn given_items_when_appended_then_all_or_none_and_every_field_is_kept_over_a_kill() {
    let place = Place::new();
    let server = place.start();
    let stream = Stream::made(&server).await;
    let (one, two) = (payload(&stream).await, payload(&stream).await);
    refused(stream.append(&[]).await, Code::InvalidArgument, &["items"]);
    refused(stream.append(&[&one, &stranger()]).await, Code::NotFound, &[]);
    let allocated = id(&stream.v1.allocated(RAM, 10).await);
    refused(stream.append(&[&one, &allocated]).await, Code::FailedPrecondition, &["commit"]);
    let bad_time = Some(prost_types::Timestamp { seconds: 0, nanos: -1 });
    let bad = pb::AppendItem { event_time: bad_time, ..item(&one) };
    refused(stream.append_items(vec![item(&one), bad]).await, Code::InvalidArgument, &["event_time"]);
    let bad = pb::AppendItem { duration_ns: 1 << 63, ..item(&one) };
    refused(stream.append_items(vec![bad]).await, Code::InvalidArgument, &["duration_ns"]);
    assert!(stream.offsets(0).await.is_empty(), "nothing of all that was stored");

    let full = pb::AppendItem {
        event_time: Some(prost_types::Timestamp { seconds: -62_135_596_800, nanos: 999_999_999 }),
        duration_ns: i64::MAX as u64,
        tags: [("k\0", "v"), ("", "é")].map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        ..item(&two)
    };
    assert_eq!(stream.append_items(vec![item(&one), full.clone()]).await.expect("appended"), (0, 1));
    assert_eq!(stream.append(&[&one, &one, &two]).await.expect("appended"), (2, 4), "contiguous");
    let entries = stream.read(0, 0).await.expect("read");
    assert_eq!(offsets(&entries), [0, 1, 2, 3, 4]);
    let entry = &entries[1];
    assert_eq!((entry.stream.as_ref(), entry.payload_id.as_ref()), (Some(&stream.name), Some(&two)));
    assert_eq!((entry.event_time, entry.duration_ns), (full.event_time, full.duration_ns));
    assert_eq!(entry.tags, full.tags);
    assert!(entries.iter().all(|entry| entry.append_time.is_some()));
    assert_eq!(entries[0].event_time, None);
    stream.v1.delete(&two, false).await.expect("payloads in a stream may be deleted");
    refused(stream.append(&[&two]).await, Code::NotFound, &[]);

    server.kill();
    let server = place.start();
    let stream = Stream::of(&server, "made").await;
    assert_eq!(stream.read(0, 0).await.expect("read"), entries);
    assert_eq!(stream.append(&[&one]).await.expect("appended"), (5, 5));
    server.stop();
}

#[tokio::test]
async fn given_many_producers_when_they_append_at_once_then_offsets_are_contiguous_and_batches_whole() {
    const PRODUCERS: u64 = 8;
    const APPENDS: u64 = 20;
    let place = Place::new();
    let server = place.start();
    let stream = Stream::made(&server).await;
    let payload = payload(&stream).await;
    let mut follower = stream.subscribe(None, 7).await.expect("subscribed");
    let tasks: Vec<_> = (0..PRODUCERS)
        .map(|_| {
            let (stream, payload) = (stream.clone(), payload.clone());
            tokio::spawn(async move {
                for count in 0..APPENDS {
                    let count = 1 + count % 3;
                    let ids = vec![&payload; usize::try_from(count).expect("small")];
                    let (first, last) = stream.append(&ids).await.expect("appended");
                    assert_eq!(last - first + 1, count);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic");
    }
    let total = PRODUCERS * (0..APPENDS).map(|count| 1 + count % 3).sum::<u64>();
    let expected: Vec<u64> = (0..total).collect();
    assert_eq!(stream.offsets(0).await, expected);
    assert_eq!(follower.offsets(expected.len()).await, expected, "each once, in order");
}

#[tokio::test]
async fn given_reads_when_asked_then_bounded_and_filtered_by_time() {
    let place = Place::new();
    let server = place.start();
    let stream = Stream::made(&server).await;
    let payload = payload(&stream).await;
    stream.fill(&payload, 6_000).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    stream.fill(&payload, 6_000).await;
    assert_eq!(offsets(&stream.read(3, 2).await.expect("read")), [3, 4]);
    for max in [0, 20_000, u64::MAX] {
        let entries = stream.read(0, max).await.expect("read");
        assert_eq!(entries.len(), 10_000, "10,000 at most");
        assert_eq!(entries[9_999].offset, 9_999);
    }
    assert!(stream.offsets(12_000).await.is_empty(), "beyond the end: empty");
    assert!(stream.offsets(i64::MAX as u64).await.is_empty());
    refused(stream.read(1 << 63, 0).await, Code::InvalidArgument, &["start_offset"]);
    let not_before = stream.read(6_000, 1).await.expect("read").remove(0).append_time;
    let request = pb::ReadRequest { stream: stream.name(), start_offset: 0, max_entries: 5, not_before };
    let late = stream.stub().read(request).await.expect("read").into_inner().entries;
    assert_eq!(offsets(&late), [6_000, 6_001, 6_002, 6_003, 6_004], "by append_time");

    assert_eq!(stream.range(4, 6).await.expect("inclusive"), [4, 5, 6]);
    assert_eq!(stream.range(6, 6).await.expect("one"), [6]);
    assert!(stream.range(6, 4).await.expect("start > end: empty").is_empty());
    assert_eq!(stream.range(11_999, 1 << 40).await.expect("beyond the end"), [11_999]);
    assert_eq!(stream.range(2_000, 11_999).await.expect("10,000 fit").len(), 10_000);
    refused(stream.range(0, 10_000).await, Code::ResourceExhausted, &["page"]);

    let tag = |bytes: usize| [("k".to_owned(), "v".repeat(bytes))].into();
    let large = pb::AppendItem { tags: tag((1 << 20) - 1), ..item(&payload) };
    for _ in 0..5 {
        stream.append_items(vec![large.clone()]).await.expect("1 MiB of tags may be");
    }
    let entries = stream.read(12_000, 0).await.expect("fits into a message");
    assert!((1..5).contains(&entries.len()), "fewer where the answer would pass 4 MiB");
    refused(stream.range(12_000, 12_004).await, Code::ResourceExhausted, &["page"]);
    let too_large = pb::AppendItem { tags: tag(1 << 20), ..item(&payload) };
    refused(stream.append_items(vec![too_large]).await, Code::InvalidArgument, &["tags"]);
    let mut follower = stream.subscribe(Some(Start::Offset(11_998)), 0).await.expect("subscribed");
    assert_eq!(follower.offsets(2).await, [11_998, 11_999]);
}

#[tokio::test]
async fn given_groups_when_they_commit_then_positions_are_kept_and_may_go_back() {
    let place = Place::new();
    let server = place.start();
    let stream = Stream::made(&server).await;
    let payload = payload(&stream).await;
    stream.fill(&payload, 3).await;
    assert_eq!(stream.committed("g").await.expect("never"), (0, false));
    stream.commit("g", 3).await.expect("up to the end");
    stream.commit("other", 0).await.expect("the beginning");
    refused(stream.commit("g", 4).await, Code::InvalidArgument, &["3"]);
    refused(stream.commit("", 1).await, Code::InvalidArgument, &["consumer_group"]);
    refused(stream.committed("").await, Code::InvalidArgument, &["consumer_group"]);
    refused(stream.commit("g", 1 << 63).await, Code::InvalidArgument, &["offset"]);
    assert_eq!(stream.committed("g").await.expect("kept"), (3, true));
    stream.commit("g", 1).await.expect("a rewind");
    server.kill();
    let server = place.start();
    let stream = Stream::of(&server, "made").await;
    assert_eq!(stream.committed("g").await.expect("kept"), (1, true));
    assert_eq!(stream.committed("other").await.expect("kept"), (0, true));
    server.stop();
}

#[tokio::test]
async fn given_a_subscription_when_entries_are_appended_then_they_come_from_where_it_started() {
    let place = Place::new();
    let server = place.start();
    let stream = Stream::made(&server).await;
    let payload = payload(&stream).await;
    stream.fill(&payload, 3).await;
    let mut unset = stream.subscribe(None, 0).await.expect("subscribed");
    let mut beginning = stream.subscribe(Some(Start::FromBeginning(true)), 1).await.expect("subscribed");
    let mut latest = stream.subscribe(Some(Start::FromLatest(true)), 0).await.expect("subscribed");
    let mut offset = stream.subscribe(Some(Start::Offset(2)), 0).await.expect("subscribed");
    let mut beyond = stream.subscribe(Some(Start::Offset(5)), 0).await.expect("subscribed");
    refused(
        stream.subscribe(Some(Start::Offset(1 << 63)), 0).await.map(|_| ()),
        Code::InvalidArgument,
        &["offset"],
    );
    assert_eq!(unset.offsets(3).await, [0, 1, 2]);
    assert_eq!(beginning.offsets(3).await, [0, 1, 2]);
    assert_eq!(offset.offsets(1).await, [2]);
    assert!(latest.is_silent().await && beyond.is_silent().await);
    stream.append(&[&payload]).await.expect("appended");
    for follower in [&mut unset, &mut beginning, &mut latest, &mut offset] {
        assert_eq!(follower.offsets(1).await, [3]);
    }
    assert!(beyond.is_silent().await, "beyond the end: waits");
    stream.fill(&payload, 3).await;
    assert_eq!(beyond.offsets(2).await, [5, 6]);
    assert_eq!(unset.offsets(3).await, [4, 5, 6]);
}

#[tokio::test]
async fn given_a_subscriber_that_reads_nothing_when_others_go_on_then_it_slows_only_itself() {
    let place = Place::new();
    let server = place.start();
    let stream = Stream::made(&server).await;
    let payload = payload(&stream).await;
    let mut slow = stream.subscribe(None, 1).await.expect("subscribed");
    let mut fast = Stream::of(&server, "made").await.subscribe(None, 0).await.expect("subscribed");
    let tags: std::collections::BTreeMap<_, _> = [("k".to_owned(), "v".repeat(60 << 10))].into();
    let large = pb::AppendItem { tags, ..item(&payload) };
    for _ in 0..10 {
        stream.append_items(vec![large.clone(); 40]).await.expect("24 MB are more than windows hold");
    }
    let expected: Vec<u64> = (0..400).collect();
    assert_eq!(fast.offsets(400).await, expected);
    assert_eq!(slow.offsets(400).await, expected, "and it gets all of it, late");
}

#[tokio::test]
async fn given_a_stream_that_is_deleted_when_followed_then_not_found_also_where_it_is_made_anew() {
    let place = Place::new();
    let server = place.start();
    let stream = Stream::made(&server).await;
    let payload = payload(&stream).await;
    stream.fill(&payload, 1).await;
    let mut follower = stream.subscribe(None, 0).await.expect("subscribed");
    assert_eq!(follower.offsets(1).await, [0]);
    stream.delete().await.expect("deleted");
    refused(follower.next().await, Code::NotFound, &["deleted"]);
    stream.create(0, 0).await.expect("made anew");
    let mut waiting = stream.subscribe(Some(Start::Offset(1)), 0).await.expect("subscribed");
    assert!(waiting.is_silent().await);
    stream.delete().await.expect("deleted");
    stream.create(0, 0).await.expect("made anew");
    stream.fill(&payload, 5).await;
    refused(waiting.next().await, Code::NotFound, &["deleted"]);
}

#[tokio::test]
async fn given_subscribers_when_the_server_stops_then_unavailable_at_once_and_it_ends_in_time() {
    let place = Place::new();
    let mut server = place.start();
    let stream = Stream::made(&server).await;
    let payload = payload(&stream).await;
    stream.fill(&payload, 1).await;
    let mut followers = Vec::new();
    for _ in 0..10 {
        let mut follower = stream.subscribe(None, 0).await.expect("subscribed");
        assert_eq!(follower.offsets(1).await, [0]);
        followers.push(follower);
    }
    let asked = Instant::now();
    server.signal(Signal::Term);
    for follower in &mut followers {
        refused(follower.next().await, Code::Unavailable, &["stopping"]);
    }
    let code = eventually("the server ends", async || server.exit_code()).await;
    assert_eq!(code, 0);
    assert!(
        asked.elapsed() < Duration::from_secs(10),
        "SIGTERM ends within 10 s (behaviour.md, Operational)"
    );
}

#[tokio::test]
async fn given_limits_when_a_stream_outgrows_them_then_the_oldest_go_also_without_an_append() {
    let place = Place::new();
    let server = place.start();
    let few = Stream::of(&server, "few").await;
    few.create(3, 0).await.expect("created");
    let payload = payload(&few).await;
    let mut follower = few.subscribe(None, 1).await.expect("subscribed");
    few.fill(&payload, 2).await;
    assert_eq!(follower.offsets(2).await, [0, 1]);
    few.fill(&payload, 8).await;
    assert_eq!(few.offsets(0).await, [7, 8, 9], "before retention: starts at the oldest");
    assert_eq!(few.range(0, 8).await.expect("what is kept"), [7, 8]);
    assert_eq!(few.append(&[&payload]).await.expect("appended"), (10, 10), "offsets are never used again");
    // It may have got more before they went; never again an older one, and the newest in any case.
    let mut last = 1;
    while last < 10 {
        let offset = follower.next().await.expect("an entry").offset;
        assert!(offset > last, "{offset} after {last}");
        last = offset;
    }

    let brief = Stream::of(&server, "brief").await;
    brief.create(0, 1).await.expect("created");
    brief.fill(&payload, 4).await;
    assert_eq!(brief.offsets(0).await, [0, 1, 2, 3]);
    brief.commit("g", 4).await.expect("committed");
    eventually("age removes them", async || brief.offsets(0).await.is_empty().then_some(())).await;
    assert_eq!(brief.committed("g").await.expect("kept"), (4, true));
    assert_eq!(brief.append(&[&payload]).await.expect("appended"), (4, 4));
    server.kill();
    let server = place.start();
    let few = Stream::of(&server, "few").await;
    assert_eq!(few.offsets(0).await, [8, 9, 10]);
    server.stop();
}
