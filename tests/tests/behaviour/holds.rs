//! `retain_payloads`: what a stream's entries refer to stays until every group has passed it, against a real server, also
//! after `kill -9`.

use std::time::Duration;

use payload_tests::postgres::Postgres;
use payload_tests::server::{Place, Server, eventually, objects, payloadctl};
use payload_tests::v1::{DISK, RAM, V1, VOID, allocation, content, id, refused};
use payload_wire::ids;
use payload_wire::pb::catalog::v1 as catalog;
use payload_wire::pb::core::v1::PayloadId;
use payload_wire::pb::operations::v1 as own;
use payload_wire::pb::operations::v1::payload_operations_service_client::PayloadOperationsServiceClient;
use payload_wire::pb::operations::v1::payload_records_service_client::PayloadRecordsServiceClient;
use payload_wire::pb::runtime::v1 as rt;
use payload_wire::pb::services::v1::payload_stream_service_client::PayloadStreamServiceClient;
use tonic::{Code, Status};

const TTL_MS: u64 = 100;

/// A stream that retains payloads.
struct Stream {
    v1: V1,
    name: rt::StreamId,
}

impl Stream {
    async fn of(server: &Server, name: &str) -> Self {
        let name = rt::StreamId { name: name.to_owned(), namespace: "tests".to_owned() };
        Self { v1: V1::connect(server).await, name }
    }

    async fn made(server: &Server) -> Self {
        let stream = Self::of(server, "kept").await;
        stream.create(0, 0).await;
        stream
    }

    fn stub(&self) -> PayloadStreamServiceClient<tonic::transport::Channel> {
        PayloadStreamServiceClient::new(self.v1.channel())
    }

    async fn create(&self, retention_max_entries: u64, retention_max_age_sec: u64) {
        let request = rt::CreateStreamRequest {
            stream: Some(self.name.clone()),
            retention_max_entries,
            retention_max_age_sec,
            retain_payloads: true,
        };
        self.stub().create_stream(request).await.expect("created");
    }

    async fn append(&self, payloads: &[&PayloadId]) -> Result<(u64, u64), Status> {
        let item = |id: &&PayloadId| rt::AppendItem { payload_id: Some((*id).clone()), ..Default::default() };
        let items = payloads.iter().map(item).collect();
        let request = rt::AppendRequest { stream: Some(self.name.clone()), items };
        let answer = self.stub().append(request).await?.into_inner();
        Ok((answer.first_offset, answer.last_offset))
    }

    async fn commit(&self, group: &str, offset: u64) {
        let request =
            rt::CommitRequest { stream: Some(self.name.clone()), consumer_group: group.to_owned(), offset };
        self.stub().commit(request).await.expect("committed");
    }

    async fn remove(&self) {
        self.stub()
            .delete_stream(rt::DeleteStreamRequest { stream: Some(self.name.clone()) })
            .await
            .expect("deleted");
    }

    async fn payload(&self, tier: i32) -> PayloadId {
        id(&self.v1.put(tier, &content(1, 100)).await)
    }

    /// One that expires soon.
    async fn mortal(&self) -> PayloadId {
        let request = rt::AllocatePayloadRequest { ttl_ms: TTL_MS, ..allocation(RAM, 100) };
        let answer = self.v1.allocate(request).await.expect("allocated");
        let made = id(&answer.payload_descriptor.expect("set"));
        self.v1.commit(&made).await.expect("committed");
        made
    }

    async fn is_there(&self, payload: &PayloadId) -> bool {
        match self.v1.resolve(payload).await {
            Ok(_) => true,
            Err(status) if status.code() == Code::NotFound => false,
            Err(status) => panic!("{status}"),
        }
    }

    async fn gone(&self, payload: &PayloadId) {
        eventually("it has expired", async || (!self.is_there(payload).await).then_some(())).await;
    }

    /// An unforced Delete is refused, and names the entry.
    async fn is_held(&self, payload: &PayloadId, offset: u64) {
        let answer = self.v1.delete(payload, false).await;
        let words = [format!("entry {offset}"), format!("`{}`", self.name.name)];
        refused(answer, Code::FailedPrecondition, &[&words[0], &words[1], "`tests`", "force"]);
    }
}

async fn past_its_ttl() {
    tokio::time::sleep(Duration::from_millis(3 * TTL_MS)).await;
}

#[tokio::test]
async fn given_an_entry_that_no_group_has_passed_when_deleted_or_discarded_then_refused_and_force_deletes() {
    let place = Place::new();
    let server = place.start();
    let stream = Stream::made(&server).await;
    let (one, two) = (stream.payload(RAM).await, stream.payload(DISK).await);
    assert_eq!(stream.append(&[&one, &two, &one]).await.expect("appended"), (0, 2));
    stream.is_held(&one, 2).await;
    stream.is_held(&two, 1).await;
    let spilled = stream.v1.spill_to(&one, VOID).await;
    assert!(!spilled.ok && spilled.error_message.contains("entry 2"), "{spilled:?}");
    let down = stream.v1.spill_to(&one, DISK).await;
    assert!(down.ok, "DISK is fine: {down:?}");
    let mut operations = PayloadOperationsServiceClient::new(stream.v1.channel());
    let holders = operations
        .list_holders(own::ListHoldersRequest { id: Some(two.clone()) })
        .await
        .expect("answered")
        .into_inner();
    let expected = vec![own::StreamHolder { stream: Some(stream.name.clone()), offset: 1 }];
    assert_eq!(holders.streams, expected);
    let explained = operations
        .explain_payload(own::ExplainPayloadRequest { id: Some(two.clone()) })
        .await
        .expect("answered")
        .into_inner();
    assert_eq!(explained.streams, expected);
    let reasons = explained.replicas[0].kept_because.join("; ");
    assert!(reasons.contains("entry 1 of stream `kept`"), "{reasons}");
    stream.v1.delete(&two, true).await.expect("forced");
    stream.commit("g", 3).await;
    stream.v1.delete(&one, false).await.expect("every group has passed it");
}

#[tokio::test]
async fn given_groups_when_they_commit_go_back_and_join_then_the_one_furthest_behind_counts() {
    let place = Place::new();
    let server = place.start();
    let stream = Stream::made(&server).await;
    let mut payloads = Vec::new();
    for offset in 0..4 {
        payloads.push(stream.payload(RAM).await);
        assert_eq!(
            stream.append(&[&payloads[offset]]).await.expect("appended"),
            (offset as u64, offset as u64)
        );
    }
    stream.commit("fast", 4).await;
    stream.commit("slow", 1).await;
    stream.is_held(&payloads[1], 1).await;
    stream.v1.delete(&payloads[0], false).await.expect("passed by both");
    stream.commit("slow", 3).await;
    stream.v1.delete(&payloads[1], false).await.expect("passed by both");
    stream.commit("slow", 0).await;
    stream.is_held(&payloads[2], 2).await;
    stream.commit("slow", 4).await;
    stream.commit("late", 3).await;
    stream.is_held(&payloads[3], 3).await;
    stream.v1.delete(&payloads[2], false).await.expect("the new group starts behind it");
    stream.remove().await;
    stream.v1.delete(&payloads[3], false).await.expect("the stream is gone");
}

#[tokio::test]
async fn given_a_ttl_that_passes_when_held_then_served_with_all_that_belongs_to_it_until_the_hold_ends() {
    let place = Place::new();
    let server = place.start();
    let stream = Stream::made(&server).await;
    let payload = stream.mortal().await;
    let update = || catalog::UpdatePayloadMetadataRequest {
        id: Some(payload.clone()),
        mode: payload_wire::pb::core::v1::MetadataUpdateMode::Replace as i32,
        metadata: Some(catalog::PayloadMetadata { data: b"{}".to_vec(), ..Default::default() }),
        ..Default::default()
    };
    stream.v1.catalog().update_payload_metadata(update()).await.expect("updated");
    stream.append(&[&payload]).await.expect("appended");
    past_its_ttl().await;
    let lease = stream.v1.lease(&payload).await.expect("leased");
    stream.v1.release(&lease).await.expect("released");
    stream.v1.catalog().update_payload_metadata(update()).await.expect("updated again");
    let got = PayloadRecordsServiceClient::new(stream.v1.channel())
        .get_payload_metadata(own::GetPayloadMetadataRequest { id: Some(payload.clone()) })
        .await
        .expect("answered")
        .into_inner();
    assert_eq!(got.metadata.expect("set").data, b"{}");
    let other = Stream::of(&server, "other").await;
    other.create(1, 0).await;
    other.append(&[&payload]).await.expect("another stream takes it, too");
    stream.commit("g", 1).await;
    assert!(stream.is_there(&payload).await, "the other stream keeps it");
    let fresh = stream.payload(RAM).await;
    // Its newest entry alone is kept, and that is another payload's.
    other.append(&[&fresh]).await.expect("appended");
    stream.gone(&payload).await;
    other.is_held(&fresh, 1).await;
}

#[tokio::test]
async fn given_an_age_limit_when_entries_outlive_it_then_their_payloads_are_let_go() {
    let place = Place::new();
    let server = place.start();
    let stream = Stream::of(&server, "young").await;
    stream.create(0, 1).await;
    let payload = stream.mortal().await;
    stream.append(&[&payload]).await.expect("appended");
    past_its_ttl().await;
    assert!(stream.is_there(&payload).await);
    stream.gone(&payload).await;
}

#[tokio::test]
async fn given_kill_9_and_restarts_when_held_then_held_again_and_what_was_passed_expires() {
    let mut place = Place::new();
    let server = place.start();
    let stream = Stream::made(&server).await;
    let (passed, kept) = (stream.mortal().await, stream.mortal().await);
    let durable = stream.payload(DISK).await;
    stream.append(&[&passed, &kept]).await.expect("appended");
    stream.append(&[&durable]).await.expect("appended");
    stream.commit("g", 1).await;
    server.kill();
    past_its_ttl().await;
    // Another number of shards: holds go where their payloads go.
    place.set("SHARDS__COUNT", "3");
    let server = place.start();
    let stream = Stream::of(&server, "kept").await;
    stream.gone(&passed).await;
    assert!(stream.is_there(&kept).await, "its ttl has passed long ago");
    stream.is_held(&durable, 2).await;
    stream.append(&[&durable, &kept]).await.expect("appended: it is known to retain payloads");
    stream.commit("g", 4).await;
    stream.is_held(&kept, 4).await;
    stream.commit("g", 5).await;
    stream.gone(&kept).await;
    stream.v1.delete(&durable, false).await.expect("passed");
}

#[tokio::test]
async fn given_payloads_that_are_not_there_when_appended_then_refused_as_ever_and_nothing_stays_held() {
    let place = Place::new();
    let server = place.start();
    let stream = Stream::made(&server).await;
    let payload = stream.payload(RAM).await;
    let allocated = id(&stream.v1.allocated(RAM, 10).await);
    let stranger = payload_tests::v1::stranger();
    refused(stream.append(&[&payload, &stranger]).await, Code::NotFound, &[]);
    refused(stream.append(&[&payload, &allocated]).await, Code::FailedPrecondition, &["commit"]);
    let many: Vec<&PayloadId> = std::iter::repeat_n(&payload, 3_000).collect();
    assert_eq!(stream.append(&many).await.expect("appended"), (0, 2_999), "offsets start at 0");
    stream.remove().await;
    refused(stream.append(&[&payload]).await, Code::NotFound, &["kept"]);
    stream.v1.delete(&payload, false).await.expect("nobody holds it");
    stream.v1.delete(&allocated, false).await.expect("nobody holds it");
}

#[tokio::test]
async fn given_many_payloads_and_writers_when_groups_pass_them_then_all_can_be_deleted() {
    let place = Place::new();
    let server = place.start();
    let stream = Stream::made(&server).await;
    let mut payloads = Vec::new();
    for _ in 0..700 {
        payloads.push(stream.payload(RAM).await);
    }
    let appends = payloads.chunks(100).map(|some| {
        let some: Vec<&PayloadId> = some.iter().collect();
        let stream = &stream;
        async move { stream.append(&some).await.expect("appended") }
    });
    for append in appends {
        append.await;
    }
    stream.commit("g", 350).await;
    stream.is_held(&payloads[350], 350).await;
    stream.commit("g", 700).await;
    for payload in &payloads {
        stream.v1.delete(payload, false).await.expect("passed");
    }
}

#[tokio::test]
async fn given_payloadctl_when_a_stream_retains_payloads_then_made_listed_and_shown_as_holder() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let payload = id(&v1.put(RAM, &content(1, 100)).await);
    let text = ids::payload_id(Some(&payload)).expect("an id").to_string();
    for args in [
        &["stream", "create", "cam/kept", "--retain-payloads"][..],
        &["stream", "create", "cam/plain"],
        &["stream", "append", "cam/kept", &text],
    ] {
        assert!(payloadctl(&server, args).status.success(), "{args:?}");
    }
    let listed = objects(&payloadctl(&server, &["stream", "ls"]));
    let retains: Vec<_> = listed.iter().map(|row| row["retain_payloads"].as_bool()).collect();
    assert_eq!(retains, [Some(true), Some(false)]);
    let holders = objects(&payloadctl(&server, &["holders", &text]));
    assert_eq!((&holders[0]["kind"], &holders[0]["stream"]), (&"stream".into(), &"cam/kept".into()));
    assert_eq!(holders[0]["offset"], 0);
    let explained = objects(&payloadctl(&server, &["explain", &text]));
    assert_eq!(explained[0]["streams"][0]["stream"], "cam/kept");
    let refused = payloadctl(&server, &["rm", &text]);
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("entry 0"));
    assert!(
        payloadctl(&server, &["stream", "commit", "cam/kept", "--group", "g", "--offset", "1"])
            .status
            .success()
    );
    assert!(payloadctl(&server, &["rm", &text]).status.success());
}

#[tokio::test]
async fn given_two_nodes_on_one_catalog_when_one_holds_then_the_others_commits_let_go_and_its_appends_name_the_owner()
 {
    let postgres = Postgres::start().expect("a PostgreSQL server starts; tests/run installs one");
    let database = postgres.database();
    let place =
        |node| Place::new().with("DATABASE__POSTGRES__CONNECTION_URI", &database).with("NODE__NAME", node);
    let (one, two) = (place("one"), place("two"));
    let servers = [one.start(), two.start()];
    let here = Stream::made(&servers[0]).await;
    let there = Stream::of(&servers[1], "kept").await;
    let (first, second) = (here.mortal().await, here.payload(DISK).await);
    here.append(&[&first, &second]).await.expect("appended");
    refused(there.append(&[&second]).await, Code::FailedPrecondition, &["one", &servers[0].address]);
    let own = there.payload(RAM).await;
    assert_eq!(there.append(&[&own]).await.expect("its own"), (2, 2));
    past_its_ttl().await;
    assert!(here.is_there(&first).await);
    there.commit("g", 1).await;
    here.gone(&first).await;
    here.is_held(&second, 1).await;
    there.remove().await;
    eventually("the other node has heard that the stream is gone", async || {
        here.v1.delete(&second, false).await.ok()
    })
    .await;
    there.v1.delete(&own, false).await.expect("nothing holds it");
}

#[tokio::test]
async fn given_a_group_that_is_never_heard_of_again_when_removed_then_what_only_it_held_can_go_at_once() {
    let place = Place::new();
    let server = place.start();
    let stream = Stream::made(&server).await;
    let (one, two) = (stream.payload(RAM).await, stream.payload(DISK).await);
    assert_eq!(stream.append(&[&one, &two]).await.expect("appended"), (0, 1));
    stream.commit("gone", 0).await;
    stream.commit("here", 1).await;
    stream.is_held(&one, 0).await;
    let mut records = PayloadRecordsServiceClient::new(stream.v1.channel());
    let remove = |group: &str| own::RemoveConsumerGroupRequest {
        stream: Some(stream.name.clone()),
        consumer_group: group.to_owned(),
    };
    let answer = records.remove_consumer_group(remove("gone")).await.expect("removed").into_inner();
    assert_eq!(answer.retained_from_offset, Some(1));
    stream.v1.delete(&one, false).await.expect("every group that is left has passed it");
    stream.is_held(&two, 1).await;
    refused(records.remove_consumer_group(remove("gone")).await, Code::NotFound, &["`gone`"]);
    refused(records.remove_consumer_group(remove("")).await, Code::InvalidArgument, &["consumer_group"]);
    let page = |page_token: &str| own::ListConsumerGroupsRequest {
        stream: Some(stream.name.clone()),
        page_size: 1,
        page_token: page_token.to_owned(),
    };
    stream.commit("there", 2).await;
    let first = records.list_consumer_groups(page("")).await.expect("listed").into_inner();
    let second =
        records.list_consumer_groups(page(&first.next_page_token)).await.expect("listed").into_inner();
    let brief = |group: &own::ConsumerGroup| (group.consumer_group.clone(), group.offset);
    assert_eq!(first.groups.iter().map(brief).collect::<Vec<_>>(), [("here".to_owned(), 1)]);
    assert_eq!(second.groups.iter().map(brief).collect::<Vec<_>>(), [("there".to_owned(), 2)]);
    assert!(second.next_page_token.is_empty() && second.groups[0].committed_at.is_some());
}
