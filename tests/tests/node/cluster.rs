//! Two servers on one PostgreSQL: what each tells of the other's payloads, and that neither harms the other's.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use payload_tests::postgres::{Pooler, Postgres, name_of};
use payload_tests::server::{Place, Server, eventually, objects, payloadctl};
use payload_tests::v1::{DISK, OBJECT, RAM, UNSPECIFIED, V1, content, id, listing, refused, stranger};
use payload_wire::ids;
use payload_wire::pb::catalog::v1 as catalog;
use payload_wire::pb::core::v1::PayloadId;
use payload_wire::pb::operations::v1 as own;
use payload_wire::pb::operations::v1::batch_acquire_result::Outcome;
use payload_wire::pb::operations::v1::payload_batch_service_client::PayloadBatchServiceClient;
use payload_wire::pb::operations::v1::payload_operations_service_client::PayloadOperationsServiceClient;
use payload_wire::pb::operations::v1::payload_records_service_client::PayloadRecordsServiceClient;
use payload_wire::pb::runtime::v1 as rt;
use payload_wire::pb::services::v1::payload_stream_service_client::PayloadStreamServiceClient;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

const SIZE: usize = 4096;

/// A database, and the places of the nodes `one` and `two` on it.
struct Cluster {
    // Before its server: it goes first.
    pooler: Option<Pooler>,
    postgres: Postgres,
    database: String,
    places: [Place; 2],
}

impl Cluster {
    fn new(is_pooled: bool) -> Self {
        let postgres = Postgres::start().expect("a PostgreSQL server starts; tests/run installs one");
        let direct = postgres.database();
        let pooler = is_pooled.then(|| postgres.pooler().expect("PgBouncer starts; tests/run installs it"));
        let uri = pooler.as_ref().map_or_else(|| direct.clone(), |pooler| pooler.uri(&direct));
        let place = |node| {
            Place::new()
                .with("DATABASE__POSTGRES__CONNECTION_URI", &uri)
                .with("DATABASE__POSTGRES__POOLED", &is_pooled.to_string())
                .with("NODE__NAME", node)
        };
        Self { pooler, postgres, database: name_of(&direct).to_owned(), places: [place("one"), place("two")] }
    }

    fn start(&self) -> [Server; 2] {
        [self.places[0].start(), self.places[1].start()]
    }
}

async fn connected(servers: &[Server; 2]) -> [V1; 2] {
    [V1::connect(&servers[0]).await, V1::connect(&servers[1]).await]
}

/// All that a server lists of a tier, page by page, and the total that the last page told.
async fn listed(v1: &V1, tier: i32, page_size: i32) -> (Vec<rt::PayloadSummary>, i32) {
    let (mut rows, mut request) = (Vec::new(), listing(tier, page_size));
    loop {
        let page = v1.list(request.clone()).await.expect("a page");
        rows.extend(page.payloads);
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            return (rows, page.total_count);
        }
    }
}

fn ids_of(rows: &[rt::PayloadSummary]) -> Vec<Vec<u8>> {
    rows.iter().map(|row| row.id.clone().expect("an id").value).collect()
}

/// Everything that only the owner can do answers this.
async fn refused_elsewhere(v1: &V1, payload: &PayloadId, words: &[&str]) {
    let precondition = Code::FailedPrecondition;
    refused(v1.lease(payload).await, precondition, words);
    refused(v1.commit(payload).await, precondition, words);
    refused(v1.promote_to(payload, RAM).await, precondition, words);
    refused(v1.prefetch(payload, RAM).await, precondition, words);
    refused(v1.pin(payload, 0).await, precondition, words);
    refused(v1.unpin(payload).await, precondition, words);
    for force in [false, true] {
        refused(v1.delete(payload, force).await, precondition, words);
    }
    let result = v1.spill_to(payload, DISK).await;
    assert!(!result.ok && words.iter().all(|word| result.error_message.contains(word)), "{result:?}");
    let mut operations = PayloadOperationsServiceClient::new(v1.channel());
    let held = operations.list_holders(own::ListHoldersRequest { id: Some(payload.clone()) }).await;
    refused(held, precondition, words);
    let explained =
        operations.explain_payload(own::ExplainPayloadRequest { id: Some(payload.clone()) }).await;
    refused(explained, precondition, words);
}

#[tokio::test]
async fn given_two_nodes_when_asked_for_the_others_payloads_then_shown_counted_and_their_owner_named() {
    let cluster = Cluster::new(false);
    let servers = cluster.start();
    let [one, two] = connected(&servers).await;
    let mut made: Vec<(Vec<u8>, &str)> = Vec::new();
    for number in 0_u64..30 {
        let (v1, node) = if number.is_multiple_of(3) { (&one, "one") } else { (&two, "two") };
        let descriptor = v1.put([RAM, DISK][number as usize % 2], &content(number, SIZE)).await;
        assert_eq!(descriptor.node_id, node);
        made.insert(0, (id(&descriptor).value, node));
    }
    let uncommitted = id(&two.allocated(RAM, 1).await);
    // Newest first, whatever node: ids are minted by clocks that are one here.
    for (v1, extra) in [(&one, 0), (&two, 1)] {
        let (rows, total) = listed(v1, UNSPECIFIED, 4).await;
        assert_eq!((rows.len(), total), (30 + extra, 30 + extra as i32));
        let wanted: Vec<Vec<u8>> = made.iter().map(|(id, _)| id.clone()).collect();
        assert_eq!(ids_of(&rows[extra..]), wanted);
        let nodes: Vec<&str> = rows[extra..].iter().map(|row| row.node_id.as_str()).collect();
        assert_eq!(nodes, made.iter().map(|(_, node)| *node).collect::<Vec<_>>());
    }
    for (tier, count) in [(RAM, 15), (DISK, 15), (OBJECT, 0)] {
        let (rows, total) = listed(&one, tier, 7).await;
        assert!(rows.iter().all(|row| row.tier == tier) && (rows.len(), total) == (count, count as i32));
    }
    // Stats is a node's own.
    let counts =
        |stats: &payload_wire::pb::admin::v1::StatsResponse| stats.payloads_ram + stats.payloads_disk;
    assert_eq!(counts(&one.stats().await.expect("stats")), 10);
    assert_eq!(counts(&two.stats().await.expect("stats")), 21);

    let theirs = two.put(DISK, &content(99, SIZE)).await;
    let shown = one.resolve(&id(&theirs)).await.expect("resolved");
    assert_eq!((shown.node_id.as_str(), &shown.node_address), ("two", &servers[1].address));
    assert_eq!(shown.location, None);
    let unplaced = payload_wire::pb::core::v1::PayloadDescriptor { location: None, ..theirs.clone() };
    assert_eq!(shown, unplaced, "but for its location all is as its own node says");
    refused_elsewhere(&one, &id(&theirs), &["`two`", &servers[1].address, "call that node"]).await;
    refused(one.resolve(&stranger()).await, Code::NotFound, &[]);
    refused(one.lease(&stranger()).await, Code::NotFound, &[]);
    refused(one.resolve(&uncommitted).await, Code::NotFound, &[]);
    // What was refused changed nothing, and its own node does it all.
    assert_eq!(two.bytes(&id(&theirs)).await.1, content(99, SIZE));
    two.delete(&id(&theirs), false).await.expect("deleted");
    refused(one.resolve(&id(&theirs)).await, Code::NotFound, &[]);
    assert_eq!(listed(&one, UNSPECIFIED, 500).await.1, 30);

    let text = ids::payload_id(Some(&PayloadId { value: made[0].0.clone() })).expect("an id").to_string();
    let said = objects(&payloadctl(&servers[0], &["stat", &text]));
    assert_eq!(said[0]["node"]["id"], "two");
    assert_eq!(said[0]["node"]["address"], servers[1].address.as_str());
}

#[tokio::test]
async fn given_a_node_that_is_killed_or_stopped_when_asked_for_its_payloads_then_listed_and_told_until_it_is_back()
 {
    let cluster = Cluster::new(false);
    let [first, second] = cluster.start();
    let (one, two) = (V1::connect(&first).await, V1::connect(&second).await);
    let theirs = id(&two.put(DISK, &content(1, SIZE)).await);
    let mine = id(&one.put(RAM, &content(2, SIZE)).await);
    second.kill();
    assert_eq!(one.resolve(&theirs).await.expect("its row is there").node_id, "two");
    assert_eq!(listed(&one, UNSPECIFIED, 10).await.1, 2);
    refused(one.lease(&theirs).await, Code::FailedPrecondition, &["`two`"]);
    eventually("it was not heard of for 10 s", async || {
        let status = one.lease(&theirs).await.expect_err("it is not here");
        assert_eq!(status.code(), Code::FailedPrecondition);
        status.message().contains("last heard of 1").then_some(())
    })
    .await;
    let second = cluster.places[1].start();
    refused(one.lease(&theirs).await, Code::FailedPrecondition, &["call that node", &second.address]);
    let two = V1::connect(&second).await;
    assert_eq!(two.bytes(&theirs).await.1, content(1, SIZE));
    assert_eq!(two.resolve(&mine).await.expect("resolved").node_address, first.address);
    second.stop();
    refused(one.lease(&theirs).await, Code::FailedPrecondition, &["`two`", "has stopped"]);
    assert_eq!(one.bytes(&mine).await.1, content(2, SIZE));
}

/// Commits and deletes at one server until it is over, through all that happens; what must be there at the end.
async fn load(v1: &V1, over: &AtomicBool, made: &AtomicUsize) -> Vec<Vec<u8>> {
    let (mut kept, mut number) = (Vec::new(), 0_u64);
    while !over.load(Ordering::Relaxed) {
        number += 1;
        let descriptor = v1.allocated(RAM, SIZE as u64).await;
        v1.map(&descriptor).copy_from_slice(&content(number, SIZE));
        match v1.commit(&id(&descriptor)).await {
            Ok(_) => {
                made.fetch_add(1, Ordering::Relaxed);
                kept.push(id(&descriptor).value);
            }
            Err(status) => {
                assert_eq!(status.code(), Code::Unavailable, "{status}");
                // Not committed: nothing of it may be listed by the other.
                drop(v1.delete(&id(&descriptor), true).await);
            }
        }
        if number.is_multiple_of(5)
            && let Some(gone) = kept.pop()
        {
            let gone = PayloadId { value: gone };
            while let Err(status) = v1.delete(&gone, false).await {
                if status.code() == Code::NotFound {
                    break;
                }
                assert_eq!(status.code(), Code::Unavailable, "{status}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
    kept
}

/// Both nodes under load while their database crashes twice; then each lists what both have acknowledged, and nothing else.
async fn disturbed(is_pooled: bool) {
    let cluster = Cluster::new(is_pooled);
    let [first, second] = cluster.start();
    let (one, two) = (V1::connect(&first).await, V1::connect(&second).await);
    let mine = id(&one.put(RAM, &content(7, SIZE)).await);
    let (over, made) = (AtomicBool::new(false), AtomicUsize::new(0));
    let disturb = async {
        for _ in 0..2 {
            let before = made.load(Ordering::Relaxed);
            cluster.postgres.crash();
            for _ in 0..20 {
                // Known payloads are leased, unknown ids cannot be told.
                assert_eq!(one.bytes(&mine).await.1, content(7, SIZE));
            }
            refused(one.resolve(&stranger()).await, Code::Unavailable, &["catalog"]);
            refused(one.list(listing(UNSPECIFIED, 5)).await, Code::Unavailable, &["catalog"]);
            cluster.postgres.start_again().expect("it starts");
            eventually("commits go on", async || (made.load(Ordering::Relaxed) > before + 40).then_some(()))
                .await;
            // Lists go on, too, while both write.
            eventually("lists go on", async || one.list(listing(UNSPECIFIED, 50)).await.ok()).await;
        }
        over.store(true, Ordering::Relaxed);
    };
    let (at_one, at_two, ()) = tokio::join!(load(&one, &over, &made), load(&two, &over, &made), disturb);
    second.kill();
    let second = cluster.places[1].start();
    let two = V1::connect(&second).await;
    let wanted: BTreeSet<Vec<u8>> =
        at_one.iter().chain(&at_two).cloned().chain([mine.value.clone()]).collect();
    for v1 in [&one, &two] {
        let (rows, total) = listed(v1, UNSPECIFIED, 500).await;
        let found: BTreeSet<Vec<u8>> = ids_of(&rows).into_iter().collect();
        assert_eq!(found.symmetric_difference(&wanted).count(), 0, "listed and acknowledged");
        assert_eq!((rows.len(), total), (wanted.len(), wanted.len() as i32));
    }
    for (v1, kept) in [(&one, &at_one), (&two, &at_two)] {
        for value in kept {
            v1.bytes(&PayloadId { value: value.clone() }).await;
        }
    }
    first.stop();
    second.stop();
    drop(cluster.pooler);
}

#[tokio::test]
async fn given_two_nodes_under_load_when_their_database_crashes_then_both_list_what_both_acknowledged() {
    disturbed(false).await;
}

#[tokio::test]
async fn given_two_nodes_through_pgbouncer_when_their_database_crashes_then_both_list_what_both_acknowledged()
{
    disturbed(true).await;
}

/// A stream as one node sees it.
struct Stream {
    stub: PayloadStreamServiceClient<Channel>,
}

impl Stream {
    fn at(v1: &V1) -> Self {
        Self { stub: PayloadStreamServiceClient::new(v1.channel()) }
    }

    fn name() -> Option<rt::StreamId> {
        Some(rt::StreamId { name: "shared".to_owned(), namespace: "tests".to_owned() })
    }

    async fn create(&mut self) {
        let request = rt::CreateStreamRequest { stream: Self::name(), ..Default::default() };
        self.stub.create_stream(request).await.expect("created");
    }

    async fn append(&mut self, payload: &PayloadId) -> Result<u64, Status> {
        let items = vec![rt::AppendItem { payload_id: Some(payload.clone()), ..Default::default() }];
        let answer = self.stub.append(rt::AppendRequest { stream: Self::name(), items }).await?;
        Ok(answer.into_inner().last_offset)
    }

    async fn follow(&mut self) -> Streaming<rt::SubscribeResponse> {
        let request = rt::SubscribeRequest { stream: Self::name(), ..Default::default() };
        self.stub.subscribe(request).await.expect("subscribed").into_inner()
    }

    async fn delete(&mut self) {
        self.stub.delete_stream(rt::DeleteStreamRequest { stream: Self::name() }).await.expect("deleted");
    }
}

/// What comes next, within the time that tests are given.
async fn next(follower: &mut Streaming<rt::SubscribeResponse>) -> Result<(u64, PayloadId), Status> {
    let message = tokio::time::timeout(payload_tests::server::PATIENCE, follower.message());
    let entry = message.await.expect("in time")?.expect("it goes on").entry.expect("an entry");
    Ok((entry.offset, entry.payload_id.expect("an id")))
}

#[tokio::test]
async fn given_two_nodes_when_one_appends_describes_and_deletes_then_the_other_hears_of_it() {
    let cluster = Cluster::new(false);
    let servers = cluster.start();
    let [one, two] = connected(&servers).await;
    let (mine, theirs) =
        (id(&one.put(RAM, &content(1, SIZE)).await), id(&two.put(DISK, &content(2, SIZE)).await));
    let (mut at_one, mut at_two) = (Stream::at(&one), Stream::at(&two));
    at_one.create().await;
    let (mut near, mut far) = (at_one.follow().await, at_two.follow().await);
    for round in 0..5 {
        // Either node appends either's payload.
        for (stream, payload) in [(&mut at_one, &theirs), (&mut at_two, &mine)] {
            let offset = stream.append(payload).await.expect("appended");
            for follower in [&mut near, &mut far] {
                assert_eq!(next(follower).await.expect("delivered"), (offset, payload.clone()), "{round}");
            }
        }
    }
    let uncommitted = id(&two.allocated(RAM, 1).await);
    refused(at_one.append(&uncommitted).await, Code::NotFound, &[]);

    // Metadata and lineage speak of either's payloads.
    let update = catalog::UpdatePayloadMetadataRequest {
        id: Some(theirs.clone()),
        metadata: Some(rt_metadata(&theirs, b"{\"a\":1}")),
        actor: "one".to_owned(),
        ..Default::default()
    };
    one.catalog().update_payload_metadata(update).await.expect("updated");
    let mut records = PayloadRecordsServiceClient::new(two.channel());
    let got = records.get_payload_metadata(own::GetPayloadMetadataRequest { id: Some(theirs.clone()) }).await;
    let got = got.expect("got").into_inner();
    assert_eq!(got.metadata.expect("there").data, b"{\"a\":1}");
    let edge = catalog::LineageEdge {
        parent: Some(theirs.clone()),
        operation: "copy".to_owned(),
        ..Default::default()
    };
    let lineage = catalog::AddLineageRequest { child: Some(mine.clone()), parents: vec![edge] };
    two.catalog().add_lineage(lineage).await.expect("added");
    let request = catalog::GetLineageRequest { id: Some(theirs.clone()), upstream: false, max_depth: 0 };
    let edges = one.catalog().get_lineage(request).await.expect("walked").into_inner().edges;
    assert_eq!(edges.len(), 1);

    at_one.delete().await;
    for follower in [&mut near, &mut far] {
        refused(next(follower).await, Code::NotFound, &["deleted"]);
    }
}

fn rt_metadata(payload: &PayloadId, data: &[u8]) -> catalog::PayloadMetadata {
    catalog::PayloadMetadata { id: Some(payload.clone()), data: data.to_vec(), schema: String::new() }
}

#[tokio::test]
async fn given_a_payload_of_another_node_when_in_a_batch_or_a_retaining_stream_then_its_part_names_the_owner()
{
    let cluster = Cluster::new(false);
    let servers = cluster.start();
    let [one, two] = connected(&servers).await;
    let (mine, theirs) =
        (id(&one.put(RAM, &content(1, SIZE)).await), id(&two.put(DISK, &content(2, SIZE)).await));
    let mut batches = PayloadBatchServiceClient::new(one.channel());
    let acquire = |id: &PayloadId| rt::AcquireReadLeaseRequest { id: Some(id.clone()), ..Default::default() };
    let request = own::BatchAcquireRequest { items: vec![acquire(&mine), acquire(&theirs)] };
    let results = batches.batch_acquire(request).await.expect("answered").into_inner().results;
    let [Some(Outcome::Acquired(lease)), Some(Outcome::Error(error))] =
        [&results[0].outcome, &results[1].outcome]
    else {
        panic!("{results:?}")
    };
    assert_eq!(error.code, Code::FailedPrecondition as i32, "{error:?}");
    assert!(error.message.contains("`two`") && error.message.contains(&servers[1].address), "{error:?}");

    one.release(lease).await.expect("released");

    let mut stream = Stream::at(&one);
    let request =
        rt::CreateStreamRequest { stream: Stream::name(), retain_payloads: true, ..Default::default() };
    stream.stub.create_stream(request).await.expect("created");
    refused(stream.append(&theirs).await, Code::FailedPrecondition, &["`two`", &servers[1].address]);
    stream.append(&mine).await.expect("its own node can hold it");
    refused(one.delete(&mine, false).await, Code::FailedPrecondition, &["shared"]);
}

/// Gives node two's row `theirs` the id of `claimed`, too: as after a restore of its rows from another time.
fn claim(cluster: &Cluster, theirs: &PayloadId, claimed: &PayloadId) {
    let [theirs, claimed] = [theirs, claimed].map(text);
    let copy = format!(
        "CREATE TEMP TABLE copy AS SELECT * FROM payload_manager.payload WHERE id = '{theirs}';
         UPDATE copy SET id = '{claimed}'; INSERT INTO payload_manager.payload SELECT * FROM copy"
    );
    cluster.postgres.sql(&cluster.database, &copy).expect("copied");
}

fn text(id: &PayloadId) -> String {
    ids::payload_id(Some(id)).expect("an id").to_string()
}

/// The row with this id, as one value.
fn row_of(cluster: &Cluster, id: &PayloadId) -> String {
    let query = format!("SELECT md5(p::text) FROM payload_manager.payload AS p WHERE id = '{}'", text(id));
    cluster.postgres.sql(&cluster.database, &query).expect("read").trim().to_owned()
}

/// Allocated at a node and written, not committed.
async fn written(v1: &V1, seed: u64) -> PayloadId {
    let descriptor = v1.allocated(RAM, SIZE as u64).await;
    v1.map(&descriptor).copy_from_slice(&content(seed, SIZE));
    id(&descriptor)
}

#[tokio::test]
async fn given_two_nodes_that_claim_one_id_when_the_second_commits_then_refused_and_the_first_ones_row_stays()
{
    let cluster = Cluster::new(false);
    let servers = cluster.start();
    let [one, two] = connected(&servers).await;
    let theirs = id(&two.put(DISK, &content(1, SIZE)).await);
    let claimed = written(&one, 2).await;
    claim(&cluster, &theirs, &claimed);
    let before = row_of(&cluster, &claimed);
    let words = ["`two`", &servers[1].address, &text(&claimed), "allocate it anew"];
    refused(one.commit(&claimed).await, Code::FailedPrecondition, &words);
    // The rest goes on, and what was refused is as it was: it may be deleted, which leaves the other's row alone.
    one.put(RAM, &content(3, SIZE)).await;
    refused(one.lease(&claimed).await, Code::FailedPrecondition, &[]);
    one.delete(&claimed, false).await.expect("deleted");
    assert_eq!(row_of(&cluster, &claimed), before);
    refused(one.lease(&claimed).await, Code::FailedPrecondition, &["`two`"]);
    assert_eq!(two.bytes(&theirs).await.1, content(1, SIZE));
}

#[tokio::test]
async fn given_a_batch_with_an_id_of_another_node_when_committed_then_nothing_of_it_is_and_the_owner_is_named()
 {
    let cluster = Cluster::new(false);
    let servers = cluster.start();
    let [one, two] = connected(&servers).await;
    let theirs = id(&two.put(DISK, &content(1, SIZE)).await);
    let mut parts = Vec::new();
    for seed in 10..15 {
        parts.push(written(&one, seed).await);
    }
    claim(&cluster, &theirs, &parts[2]);
    let before = row_of(&cluster, &parts[2]);
    let mut batches = PayloadBatchServiceClient::new(one.channel());
    let commit = |id: &PayloadId| rt::CommitPayloadRequest { id: Some(id.clone()), ..Default::default() };
    let request = own::BatchCommitRequest { items: parts.iter().map(commit).collect() };
    // Others commit and describe at the same time, and none of them is harmed.
    let others = async {
        for seed in 20..40 {
            let put = id(&one.put(RAM, &content(seed, SIZE)).await);
            let update = catalog::UpdatePayloadMetadataRequest {
                id: Some(put.clone()),
                metadata: Some(rt_metadata(&put, b"{}")),
                ..Default::default()
            };
            one.catalog().update_payload_metadata(update).await.expect("updated");
        }
    };
    let (answer, ()) = tokio::join!(batches.batch_commit(request), others);
    let answer = answer.expect("answered").into_inner();
    assert!(!answer.committed, "{answer:?}");
    for (place, (result, part)) in answer.results.iter().zip(&parts).enumerate() {
        let Some(own::batch_commit_result::Outcome::Error(error)) = &result.outcome else {
            panic!("{result:?}")
        };
        let (code, words) = if place == 2 {
            (Code::FailedPrecondition, vec!["`two`".to_owned(), servers[1].address.clone(), text(part)])
        } else {
            (Code::Aborted, vec![text(part), "another one of its batch".to_owned()])
        };
        assert_eq!(error.code, code as i32, "{error:?}");
        assert!(words.iter().all(|word| error.message.contains(word)), "{error:?}");
        refused(one.lease(part).await, Code::FailedPrecondition, &[]);
    }
    assert_eq!(row_of(&cluster, &parts[2]), before);
    // Without it the batch is committed, and only once.
    one.delete(&parts.remove(2), false).await.expect("deleted");
    let request = own::BatchCommitRequest { items: parts.iter().map(commit).collect() };
    assert!(batches.batch_commit(request).await.expect("answered").into_inner().committed);
    for (seed, part) in [10, 11, 13, 14].into_iter().zip(&parts) {
        assert_eq!(one.bytes(part).await.1, content(seed, SIZE));
    }
    assert_eq!(two.bytes(&theirs).await.1, content(1, SIZE));
}

#[tokio::test]
async fn given_a_server_that_shares_nothing_when_asked_then_no_node_is_named() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let descriptor = v1.put(RAM, &content(1, SIZE)).await;
    assert!(descriptor.node_id.is_empty() && descriptor.node_address.is_empty());
    assert!(v1.row(&id(&descriptor)).await.expect("listed").node_id.is_empty());
    refused(v1.lease(&stranger()).await, Code::NotFound, &[]);
}
