//! behaviour.md, "Everywhere": what is repeated with the same `x-request-id` is done once.

use payload_client::Client;
use payload_tests::server::Place;
use payload_tests::v1::{DISK, RAM, V1, allocation, content, id, refused};
use payload_types::record::{StreamItem, StreamName};
use payload_wire::pb::catalog::v1 as catalog;
use payload_wire::pb::core::v1::PayloadId;
use payload_wire::pb::operations::v1::payload_records_service_client::PayloadRecordsServiceClient;
use payload_wire::pb::operations::v1::{ListPayloadMetadataEventsRequest, ListStreamsRequest};
use payload_wire::pb::runtime::v1 as rt;
use payload_wire::pb::services::v1::payload_stream_service_client::PayloadStreamServiceClient;
use tonic::{Code, Request};

fn with_id<T>(id: &'static str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("x-request-id", id.parse().expect("ASCII"));
    request
}

fn commit(id: &PayloadId) -> rt::CommitPayloadRequest {
    rt::CommitPayloadRequest { id: Some(id.clone()), checksum_xxh3_64: None }
}

#[tokio::test]
async fn given_a_request_id_when_allocate_and_commit_are_repeated_then_done_once() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let allocate = async |request_id| {
        let answer = v1.catalog().allocate_payload(with_id(request_id, allocation(RAM, 100))).await?;
        Ok::<_, tonic::Status>(answer.into_inner().payload_descriptor.expect("one"))
    };
    let (first, again) = tokio::join!(allocate("a-1"), allocate("a-1"));
    let allocated = first.expect("allocated");
    assert_eq!(again.expect("the same"), allocated, "also while the first is under way");
    assert_ne!(id(&allocate("a-2").await.expect("another")), id(&allocated));
    assert_eq!(v1.stats().await.expect("stats").payloads_ram, 2);
    let other = v1.catalog().allocate_payload(with_id("a-1", allocation(RAM, 200))).await.map(drop);
    refused(other, Code::InvalidArgument, &["x-request-id", "a-1"]);

    let payload = id(&allocated);
    let committed = v1.catalog().commit_payload(with_id("c-1", commit(&payload))).await.expect("committed");
    let again = v1.catalog().commit_payload(with_id("c-1", commit(&payload))).await.expect("the same");
    assert_eq!(again.into_inner(), committed.into_inner());
    let without = v1.catalog().commit_payload(commit(&payload)).await.map(drop);
    refused(without, Code::FailedPrecondition, &["committed"]);
    // An id is of one method: the same one elsewhere is another.
    let too_large = v1.catalog().allocate_payload(with_id("c-1", allocation(RAM, 1 << 30))).await.map(drop);
    refused(too_large, Code::ResourceExhausted, &[]);
    v1.catalog().allocate_payload(with_id("c-1", allocation(RAM, 10))).await.expect("refusals are forgotten");
}

#[tokio::test]
async fn given_a_request_id_when_appends_and_metadata_are_repeated_then_stored_once() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let payload = id(&v1.put(RAM, &content(1, 100)).await);
    let mut streams = PayloadStreamServiceClient::new(v1.channel());
    let stream = Some(rt::StreamId { name: "s".to_owned(), namespace: String::new() });
    let create = rt::CreateStreamRequest { stream: stream.clone(), ..Default::default() };
    streams.create_stream(create).await.expect("created");
    let item = rt::AppendItem { payload_id: Some(payload.clone()), ..Default::default() };
    let append = || rt::AppendRequest { stream: stream.clone(), items: vec![item.clone(); 2] };
    for _ in 0..3 {
        let answer = streams.append(with_id("s-1", append())).await.expect("appended").into_inner();
        assert_eq!((answer.first_offset, answer.last_offset), (0, 1));
    }
    let answer = streams.append(append()).await.expect("appended").into_inner();
    assert_eq!(answer.first_offset, 2, "without an id it is another");

    let client = Client::connect_grpc(&server.address).await.expect("connected");
    for bad in ["", "é", "a\nb"] {
        assert!(client.with_request_id(bad).is_err(), "{bad:?}");
    }
    let client = client.with_request_id("rust-1").expect("an id");
    let name = StreamName { namespace: String::new(), name: "s".to_owned() };
    let key = payload_types::PayloadId::from_slice(&payload.value).expect("16 bytes");
    let entry = StreamItem { payload: key, event_time: None, duration_ns: 0, tags: Vec::new() };
    for _ in 0..2 {
        let offsets = client.stream_append(&name, vec![entry.clone()]).await.expect("appended");
        assert_eq!(offsets, 4..=4, "our own client, too");
    }

    let update = || catalog::UpdatePayloadMetadataRequest {
        id: Some(payload.clone()),
        metadata: Some(catalog::PayloadMetadata { data: b"{}".to_vec(), ..Default::default() }),
        ..Default::default()
    };
    let note =
        || catalog::AppendPayloadMetadataEventRequest { id: Some(payload.clone()), ..Default::default() };
    for _ in 0..2 {
        v1.catalog().update_payload_metadata(with_id("m-1", update())).await.expect("updated");
        v1.catalog().append_payload_metadata_event(with_id("m-1", note())).await.expect("noted");
    }
    let list = ListPayloadMetadataEventsRequest { id: Some(payload.clone()), ..Default::default() };
    let mut records = PayloadRecordsServiceClient::new(v1.channel());
    let events = records.list_payload_metadata_events(list).await.expect("known").into_inner().events;
    assert_eq!(events.len(), 2, "one of each");
    let no_text = with_id("", note());
    refused(
        v1.catalog().append_payload_metadata_event(no_text).await.map(drop),
        Code::InvalidArgument,
        &["x-request-id"],
    );
}

#[tokio::test]
async fn given_a_request_id_when_repeated_after_the_server_was_killed_then_the_first_answer_and_nothing_more()
{
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let payload = id(&v1.put(DISK, &content(1, 100)).await);
    let stream = Some(rt::StreamId { name: "s".to_owned(), namespace: String::new() });
    let kept = Some(rt::StreamId { name: "kept".to_owned(), namespace: String::new() });
    let mut streams = PayloadStreamServiceClient::new(v1.channel());
    for (stream, retain_payloads) in [(&stream, false), (&kept, true)] {
        let create =
            rt::CreateStreamRequest { stream: stream.clone(), retain_payloads, ..Default::default() };
        streams.create_stream(create).await.expect("created");
    }
    let item = rt::AppendItem { payload_id: Some(payload.clone()), ..Default::default() };
    let append = |stream: &Option<rt::StreamId>, count| {
        let request = rt::AppendRequest { stream: stream.clone(), items: vec![item.clone(); count] };
        with_id(if count == 3 { "kept-1" } else { "s-1" }, request)
    };
    let note = || {
        let request =
            catalog::AppendPayloadMetadataEventRequest { id: Some(payload.clone()), ..Default::default() };
        with_id("m-1", request)
    };
    let first = streams.append(append(&stream, 2)).await.expect("appended").into_inner();
    let held = streams.append(append(&kept, 3)).await.expect("appended").into_inner();
    let noted = v1.catalog().append_payload_metadata_event(note()).await.expect("noted").into_inner();
    server.kill();

    let server = place.start();
    let v1 = V1::connect(&server).await;
    let mut streams = PayloadStreamServiceClient::new(v1.channel());
    for _ in 0..2 {
        assert_eq!(streams.append(append(&stream, 2)).await.expect("again").into_inner(), first);
        assert_eq!(streams.append(append(&kept, 3)).await.expect("again").into_inner(), held);
        let again = v1.catalog().append_payload_metadata_event(note()).await.expect("again").into_inner();
        assert_eq!(again, noted);
    }
    refused(v1.delete(&payload, false).await, Code::FailedPrecondition, &["entry 2"]);
    let mut records = PayloadRecordsServiceClient::new(v1.channel());
    let listed =
        records.list_streams(ListStreamsRequest::default()).await.expect("listed").into_inner().streams;
    assert_eq!(listed.iter().map(|stream| stream.end_offset).collect::<Vec<_>>(), [3, 2], "kept and s");
    let list = ListPayloadMetadataEventsRequest { id: Some(payload.clone()), ..Default::default() };
    let events = records.list_payload_metadata_events(list).await.expect("known").into_inner().events;
    assert_eq!(events.len(), 1);
    server.kill();
    let server = place.start();
    let mut streams = PayloadStreamServiceClient::new(V1::connect(&server).await.channel());
    let other = streams.append(append(&stream, 1)).await.map(drop);
    refused(other, Code::InvalidArgument, &["x-request-id", "s-1"]);
}
