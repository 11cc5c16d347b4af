//! behaviour.md, "Metadata and lineage", row by row, against a real server; what is stored is there after `kill -9`.

use payload_tests::server::{Place, Server, eventually};
use payload_tests::v1::{RAM, V1, allocation, content, id, refused, stranger};
use payload_wire::pb::catalog::v1 as pb;
use payload_wire::pb::core::v1::{MetadataUpdateMode, PayloadId};
use payload_wire::pb::operations::v1 as own;
use payload_wire::pb::operations::v1::MetadataEventKind;
use payload_wire::pb::operations::v1::payload_records_service_client::PayloadRecordsServiceClient;
use tonic::{Code, Response, Status};

const MERGE: i32 = MetadataUpdateMode::Merge as i32;
const REPLACE: i32 = MetadataUpdateMode::Replace as i32;

/// What is no JSON and no text.
const BYTES: &[u8] = b"\0\xFF{not json\0";

struct Records(V1);

impl Records {
    async fn of(server: &Server) -> Self {
        Self(V1::connect(server).await)
    }

    async fn payload(&self) -> PayloadId {
        id(&self.0.put(RAM, &content(1, 100)).await)
    }

    async fn update(
        &self,
        id: &PayloadId,
        mode: i32,
        data: &[u8],
        schema: &str,
    ) -> Result<pb::UpdatePayloadMetadataResponse, Status> {
        let request = pb::UpdatePayloadMetadataRequest {
            id: Some(id.clone()),
            mode,
            metadata: Some(pb::PayloadMetadata {
                id: Some(stranger()),
                data: data.to_vec(),
                schema: schema.to_owned(),
            }),
            actor: "tester".to_owned(),
            reason: "because\0".to_owned(),
        };
        self.0.catalog().update_payload_metadata(request).await.map(Response::into_inner)
    }

    async fn note(&self, id: &PayloadId, data: &[u8]) -> Result<(), Status> {
        let request = pb::AppendPayloadMetadataEventRequest {
            id: Some(id.clone()),
            metadata: Some(pb::PayloadMetadata { data: data.to_vec(), ..Default::default() }),
            source: "probe".to_owned(),
            version: "v7".to_owned(),
        };
        self.0.catalog().append_payload_metadata_event(request).await.map(drop)
    }

    async fn get(&self, id: &PayloadId) -> Result<own::GetPayloadMetadataResponse, Status> {
        let request = own::GetPayloadMetadataRequest { id: Some(id.clone()) };
        self.own().get_payload_metadata(request).await.map(Response::into_inner)
    }

    /// Data and schema as they are now.
    async fn current(&self, id: &PayloadId) -> (Vec<u8>, String) {
        let metadata = self.get(id).await.expect("known").metadata.expect("set in every answer");
        (metadata.data, metadata.schema)
    }

    async fn events(
        &self,
        id: &PayloadId,
        page_size: i32,
        token: &str,
    ) -> Result<own::ListPayloadMetadataEventsResponse, Status> {
        let request = own::ListPayloadMetadataEventsRequest {
            id: Some(id.clone()),
            page_size,
            page_token: token.to_owned(),
        };
        self.own().list_payload_metadata_events(request).await.map(Response::into_inner)
    }

    async fn all_events(&self, id: &PayloadId) -> Vec<own::MetadataEvent> {
        let page = self.events(id, 0, "").await.expect("known");
        assert_eq!(page.next_page_token, "");
        page.events
    }

    async fn add(&self, child: &PayloadId, parents: Vec<pb::LineageEdge>) -> Result<(), Status> {
        let request = pb::AddLineageRequest { child: Some(child.clone()), parents };
        self.0.catalog().add_lineage(request).await.map(Response::into_inner)
    }

    /// The edges as (parent, child, operation, role, parameters).
    async fn lineage(&self, id: &PayloadId, upstream: bool, max_depth: u32) -> Result<Vec<Edge>, Status> {
        let request = pb::GetLineageRequest { id: Some(id.clone()), upstream, max_depth };
        let edges = self.0.catalog().get_lineage(request).await?.into_inner().edges;
        Ok(edges.into_iter().map(Edge::from).collect())
    }

    fn own(&self) -> PayloadRecordsServiceClient<tonic::transport::Channel> {
        PayloadRecordsServiceClient::new(self.0.channel())
    }
}

#[derive(Clone, PartialEq, Debug)]
struct Edge {
    parent: PayloadId,
    child: PayloadId,
    operation: String,
    parameters: Vec<u8>,
}

impl From<pb::LineageEdge> for Edge {
    fn from(edge: pb::LineageEdge) -> Self {
        Self {
            parent: edge.parent.expect("16 raw bytes"),
            child: edge.child.expect("our own field"),
            operation: edge.operation,
            parameters: edge.parameters,
        }
    }
}

fn parent(id: &PayloadId, operation: &str, parameters: &[u8]) -> pb::LineageEdge {
    pb::LineageEdge {
        parent: Some(id.clone()),
        operation: operation.to_owned(),
        role: "input".to_owned(),
        parameters: parameters.to_vec(),
        child: None,
    }
}

fn edge(parent: &PayloadId, child: &PayloadId, operation: &str) -> Edge {
    Edge {
        parent: parent.clone(),
        child: child.clone(),
        operation: operation.to_owned(),
        parameters: operation.as_bytes().to_vec(),
    }
}

#[tokio::test]
async fn given_metadata_when_replaced_then_read_back_byte_for_byte_also_after_a_kill() {
    let place = Place::new();
    let server = place.start();
    let records = Records::of(&server).await;
    let payload = records.payload().await;
    let never = records.get(&payload).await.expect("known");
    assert_eq!((never.updated_at, never.metadata.expect("set").data), (None, Vec::new()));
    let updated = records.update(&payload, REPLACE, BYTES, "s\0").await.expect("updated");
    assert_eq!(updated.id.as_ref(), Some(&payload));
    let metadata = updated.metadata.expect("what resulted");
    assert_eq!((metadata.data.as_slice(), metadata.schema.as_str()), (BYTES, "s\0"));
    assert_eq!(metadata.id.as_ref(), Some(&payload), "the id inside the request is ignored");
    assert_eq!(records.get(&payload).await.expect("known").updated_at, updated.updated_at);
    let largest = content(5, 1 << 20);
    records.update(&payload, REPLACE, &largest, "").await.expect("1 MiB may be");
    assert_eq!(records.current(&payload).await, (largest.clone(), String::new()), "both fields replaced");
    records.update(&payload, REPLACE, BYTES, "kept").await.expect("updated");
    let events = records.all_events(&payload).await;
    assert_eq!(events.len(), 3);

    server.kill();
    let server = place.start();
    let records = Records::of(&server).await;
    assert_eq!(records.current(&payload).await, (BYTES.to_vec(), "kept".to_owned()));
    assert_eq!(records.all_events(&payload).await, events);
    server.stop();
}

#[tokio::test]
async fn given_metadata_when_merged_then_objects_are_patched_and_empty_fields_keep_the_old_value() {
    let place = Place::new();
    let server = place.start();
    let records = Records::of(&server).await;
    let payload = records.payload().await;
    records
        .update(&payload, MERGE, br#"{"z":1,"deep":{"a":1,"b":[1,2]},"big":12345678901234567890.10}"#, "one")
        .await
        .expect("set");
    let merged = records.update(&payload, 0, br#"{"deep":{"a":null,"c":"\u00e9"},"new":true}"#, "").await;
    let metadata = merged.expect("UNSPECIFIED merges").metadata.expect("what resulted");
    assert_eq!(metadata.schema, "one", "an empty field keeps the old value");
    let expected =
        "{\"z\":1,\"deep\":{\"b\":[1,2],\"c\":\"é\"},\"big\":12345678901234567890.10,\"new\":true}";
    assert_eq!(String::from_utf8(metadata.data).expect("JSON"), expected, "RFC 7396");
    records.update(&payload, MERGE, b"", "two").await.expect("merged");
    assert_eq!(records.current(&payload).await, (expected.as_bytes().to_vec(), "two".to_owned()));
    records.update(&payload, MERGE, BYTES, "").await.expect("merged");
    assert_eq!(
        records.current(&payload).await,
        (BYTES.to_vec(), "two".to_owned()),
        "no two objects: replaced"
    );
    records.update(&payload, MERGE, br#"{"a":1}"#, "").await.expect("merged");
    assert_eq!(records.current(&payload).await.0, br#"{"a":1}"#);
    let half = |name: &str| format!("{{\"{name}\":\"{}\"}}", "x".repeat(600 << 10)).into_bytes();
    records.update(&payload, REPLACE, &half("a"), "").await.expect("updated");
    let too_large = records.update(&payload, MERGE, &half("b"), "").await;
    refused(too_large, Code::InvalidArgument, &["merged", "1048576"]);
    assert_eq!(records.current(&payload).await.0, half("a"), "nothing is stored");
}

#[tokio::test]
async fn given_updates_and_notes_when_listed_then_each_left_an_immutable_event_in_order() {
    let place = Place::new();
    let server = place.start();
    let records = Records::of(&server).await;
    let payload = records.payload().await;
    records.update(&payload, REPLACE, br#"{"a":1}"#, "s").await.expect("updated");
    records.note(&payload, BYTES).await.expect("noted");
    records.update(&payload, MERGE, br#"{"b":2}"#, "").await.expect("updated");
    assert_eq!(records.current(&payload).await.0, br#"{"a":1,"b":2}"#, "a note changes nothing");
    let events = records.all_events(&payload).await;
    let told: Vec<_> =
        events.iter().map(|event| (event.number, event.kind(), event.schema.as_str())).collect();
    assert_eq!(
        told,
        [
            (1, MetadataEventKind::Replaced, "s"),
            (2, MetadataEventKind::Noted, ""),
            (3, MetadataEventKind::Merged, "s"),
        ]
    );
    let inner = |index: usize| events[index].event.clone().expect("set");
    assert_eq!((inner(0).source.as_str(), events[0].reason.as_str()), ("tester", "because\0"));
    assert_eq!((inner(1).source.as_str(), inner(1).version.as_str()), ("probe", "v7"));
    assert_eq!((inner(1).data.as_slice(), inner(1).id.as_ref()), (BYTES, Some(&payload)));
    assert_eq!(inner(2).data, br#"{"a":1,"b":2}"#, "what resulted");
    assert!(events.iter().all(|event| event.event.as_ref().is_some_and(|inner| inner.ts.is_some())));

    for _ in 0..4 {
        records.note(&payload, &content(1, 1 << 20)).await.expect("noted");
    }
    let (mut token, mut numbers) = (String::new(), Vec::new());
    loop {
        let page = records.events(&payload, 3, &token).await.expect("a page fits into a message");
        assert!((1..=3).contains(&page.events.len()));
        numbers.extend(page.events.iter().map(|event| event.number));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7]);
    let whole = records.events(&payload, 500, "").await.expect("cut to a message");
    assert!(whole.events.len() < 7 && !whole.next_page_token.is_empty());
    refused(records.events(&payload, 0, "nonsense").await, Code::InvalidArgument, &["page_token"]);
}

#[tokio::test]
async fn given_payloads_that_are_not_there_when_metadata_are_touched_then_not_found_and_bad_input_is_refused()
{
    let place = Place::new();
    let server = place.start();
    let records = Records::of(&server).await;
    let payload = records.payload().await;
    records.update(&payload, REPLACE, b"kept", "").await.expect("updated");
    refused(records.update(&payload, 9, b"x", "").await, Code::InvalidArgument, &["mode"]);
    let huge = vec![1; (1 << 20) + 1];
    refused(records.update(&payload, REPLACE, &huge, "").await, Code::InvalidArgument, &["metadata.data"]);
    refused(records.note(&payload, &huge).await, Code::InvalidArgument, &["metadata.data"]);
    let long = "s".repeat((64 << 10) + 1);
    refused(records.update(&payload, REPLACE, b"", &long).await, Code::InvalidArgument, &["schema"]);
    let short = PayloadId { value: vec![1; 15] };
    refused(records.update(&short, REPLACE, b"", "").await, Code::InvalidArgument, &["16"]);
    assert_eq!(records.current(&payload).await.0, b"kept", "nothing of what was refused is stored");
    assert_eq!(records.all_events(&payload).await.len(), 1);

    let short_lived = rt_allocation(&records, 300).await;
    records.update(&short_lived, REPLACE, b"soon gone", "").await.expect("alive");
    records.0.delete(&payload, false).await.expect("deleted");
    eventually("it expires", async || records.get(&short_lived).await.err().map(|status| status.code()))
        .await;
    for gone in [stranger(), payload, short_lived] {
        refused(records.update(&gone, REPLACE, b"", "").await, Code::NotFound, &[]);
        refused(records.note(&gone, b"").await, Code::NotFound, &[]);
        refused(records.get(&gone).await, Code::NotFound, &[]);
        refused(records.events(&gone, 0, "").await, Code::NotFound, &[]);
    }
}

/// A committed payload that lives so long.
async fn rt_allocation(records: &Records, ttl_ms: u64) -> PayloadId {
    let request = payload_wire::pb::runtime::v1::AllocatePayloadRequest { ttl_ms, ..allocation(RAM, 10) };
    let allocated = records.0.allocate(request).await.expect("allocated").payload_descriptor.expect("one");
    id(&records.0.commit(&id(&allocated)).await.expect("committed"))
}

#[tokio::test]
async fn given_lineage_when_walked_then_breadth_first_both_ways_each_edge_once_and_as_deep_as_asked() {
    let place = Place::new();
    let server = place.start();
    let records = Records::of(&server).await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(records.payload().await);
    }
    let [a, b, c, d, e] = &ids[..] else { panic!("five") };
    // e is made of c and d, both of b, and b of a.
    records.add(b, vec![parent(a, "ab", b"ab")]).await.expect("added");
    records.add(c, vec![parent(b, "bc", b"bc")]).await.expect("added");
    records.add(d, vec![parent(b, "bd", b"bd")]).await.expect("added");
    records.add(e, vec![parent(c, "ce", b"ce"), parent(d, "de", b"de")]).await.expect("added");
    let up = records.lineage(e, true, 0).await.expect("known");
    assert_eq!(
        up,
        [edge(c, e, "ce"), edge(d, e, "de"), edge(b, c, "bc"), edge(b, d, "bd"), edge(a, b, "ab")]
    );
    assert_eq!(records.lineage(e, true, 2).await.expect("known"), up[..4]);
    assert_eq!(records.lineage(e, true, 1).await.expect("known"), up[..2]);
    let down = records.lineage(a, false, 0).await.expect("known");
    assert_eq!(
        down,
        [edge(a, b, "ab"), edge(b, c, "bc"), edge(b, d, "bd"), edge(c, e, "ce"), edge(d, e, "de")]
    );
    assert!(records.lineage(a, true, 0).await.expect("known").is_empty(), "nothing above");
    // A cycle, and an edge to itself.
    records.add(a, vec![parent(e, "ea", b"ea"), parent(a, "aa", b"aa")]).await.expect("descriptive only");
    let all = records.lineage(e, true, 0).await.expect("it ends");
    assert_eq!(all.len(), 7);
    assert_eq!(records.lineage(e, false, 0).await.expect("it ends").len(), 7);

    server.kill();
    let server = place.start();
    let records = Records::of(&server).await;
    assert_eq!(records.lineage(e, true, 0).await.expect("known"), all);
    server.stop();
}

#[tokio::test]
async fn given_edges_when_added_again_then_replaced_and_unknown_ends_store_nothing() {
    let place = Place::new();
    let server = place.start();
    let records = Records::of(&server).await;
    let (child, one, two) = (records.payload().await, records.payload().await, records.payload().await);
    records.add(&child, vec![]).await.expect("no parents are fine");
    records.add(&child, vec![parent(&one, "cut", BYTES)]).await.expect("added");
    records.add(&child, vec![parent(&one, "cut", b"new\0")]).await.expect("replaced");
    let edges = records.lineage(&child, true, 0).await.expect("known");
    assert_eq!(edges.len(), 1, "not duplicated");
    assert_eq!(edges[0].parameters, b"new\0");
    records.add(&child, vec![parent(&one, "paste", b"")]).await.expect("another operation is another edge");
    let unknown = records.add(&child, vec![parent(&two, "cut", b""), parent(&stranger(), "cut", b"")]).await;
    refused(unknown, Code::NotFound, &[]);
    refused(records.add(&stranger(), vec![parent(&two, "cut", b"")]).await, Code::NotFound, &[]);
    refused(records.add(&stranger(), vec![]).await, Code::NotFound, &[]);
    let huge = vec![0; (1 << 20) + 1];
    refused(
        records.add(&child, vec![parent(&two, "cut", &huge)]).await,
        Code::InvalidArgument,
        &["parameters"],
    );
    assert_eq!(records.lineage(&child, true, 0).await.expect("known").len(), 2, "nothing was stored");
    assert!(records.lineage(&two, false, 0).await.expect("known").is_empty());
    refused(records.lineage(&stranger(), true, 0).await, Code::NotFound, &[]);
}

#[tokio::test]
async fn given_a_node_in_between_when_deleted_then_the_chain_is_walked_while_any_payload_of_it_lives() {
    let place = Place::new();
    let server = place.start();
    let records = Records::of(&server).await;
    let (a, b, c) = (records.payload().await, records.payload().await, records.payload().await);
    records.add(&b, vec![parent(&a, "ab", b"ab")]).await.expect("added");
    records.add(&c, vec![parent(&b, "bc", b"bc")]).await.expect("added");
    records.0.delete(&b, false).await.expect("deleted");
    let whole = [edge(&b, &c, "bc"), edge(&a, &b, "ab")];
    assert_eq!(records.lineage(&c, true, 0).await.expect("known"), whole);
    refused(records.lineage(&b, true, 0).await, Code::NotFound, &[]);
    records.0.delete(&a, false).await.expect("deleted");
    server.kill();
    let server = place.start();
    let records = Records::of(&server).await;
    assert_eq!(records.lineage(&c, true, 0).await.expect("known"), whole, "also when only its end lives");
    server.stop();
}

#[tokio::test]
async fn given_a_payload_that_is_not_committed_when_described_then_its_metadata_and_lineage_are_kept() {
    let place = Place::new();
    let server = place.start();
    let records = Records::of(&server).await;
    let allocated = records.0.allocated(RAM, 100).await;
    let (child, parents) =
        (id(&allocated), [id(&records.0.allocated(RAM, 10).await), records.payload().await]);
    assert_eq!(records.get(&child).await.expect("known").updated_at, None);
    assert!(records.all_events(&child).await.is_empty());
    assert!(records.lineage(&child, true, 0).await.expect("known").is_empty());
    records.update(&child, REPLACE, BYTES, "early").await.expect("ALLOCATED is allowed");
    records.note(&child, b"noted").await.expect("ALLOCATED is allowed");
    let edges = parents.iter().map(|id| parent(id, "mix", b"")).collect();
    records.add(&child, edges).await.expect("ALLOCATED is allowed");
    records.0.map(&allocated).fill(7);
    records.0.commit(&child).await.expect("committed");
    assert_eq!(records.current(&child).await, (BYTES.to_vec(), "early".to_owned()));
    assert_eq!(records.all_events(&child).await.len(), 2);
    assert_eq!(records.lineage(&child, true, 0).await.expect("known").len(), 2);
    assert_eq!(records.0.bytes(&child).await.1, vec![7; 100]);
    // What is never committed leaves nothing behind.
    records.0.delete(&parents[0], false).await.expect("deleted");
    refused(records.get(&parents[0]).await, Code::NotFound, &[]);
    assert_eq!(records.0.stats().await.expect("stats").payloads_ram, 2);
    let unfinished = id(&records.0.allocated(RAM, 10).await);
    records.update(&unfinished, REPLACE, BYTES, "").await.expect("ALLOCATED is allowed");
    server.kill();
    let server = place.start();
    let records = Records::of(&server).await;
    assert_eq!(records.current(&child).await, (BYTES.to_vec(), "early".to_owned()));
    assert_eq!(records.0.bytes(&child).await.1, vec![7; 100]);
    refused(records.get(&unfinished).await, Code::NotFound, &["LOST"]);
    refused(records.update(&unfinished, REPLACE, BYTES, "").await, Code::NotFound, &["LOST"]);
    records.0.delete(&unfinished, false).await.expect("deleted");
    refused(records.0.resolve(&unfinished).await, Code::NotFound, &["never allocated"]);
    server.stop();
}
