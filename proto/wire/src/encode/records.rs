//! Metadata, lineage and streams, as the catalog answered.
//!
//! The catalog bounds its answers by what it stores; names and tags that are repeated with each entry come on top here, so
//! this is where an answer is cut to what a message may be.

use payload_types::limits::ANSWER_BYTES_MAX;
use payload_types::record::{
    LineageEdge, Metadata, MetadataEvent, StreamEntry, StreamGroup, StreamInfo, StreamName, Timestamp,
};
use payload_types::{PayloadId, WallMs};
use prost::Message as _;

use super::timestamp;
use crate::pb::catalog::v1 as pb;
use crate::pb::operations::v1 as own;
use crate::pb::runtime::v1 as rt;
use crate::{enums, ids, page_token};

/// The answer to UpdatePayloadMetadata.
pub fn metadata_updated(id: PayloadId, metadata: Metadata, at: WallMs) -> pb::UpdatePayloadMetadataResponse {
    pb::UpdatePayloadMetadataResponse {
        id: Some(ids::payload_id_to_pb(id)),
        metadata: Some(metadata_of(id, metadata)),
        updated_at: Some(timestamp(at)),
    }
}

/// The answer to AppendPayloadMetadataEvent.
pub fn metadata_noted(id: PayloadId, at: WallMs) -> pb::AppendPayloadMetadataEventResponse {
    pb::AppendPayloadMetadataEventResponse {
        id: Some(ids::payload_id_to_pb(id)),
        event_time: Some(timestamp(at)),
    }
}

/// The answer to GetPayloadMetadata; `None`: there were never any.
pub fn metadata_got(id: PayloadId, current: Option<(Metadata, WallMs)>) -> own::GetPayloadMetadataResponse {
    let updated_at = current.as_ref().map(|(_, at)| timestamp(*at));
    let metadata = current.map(|(metadata, _)| metadata).unwrap_or_default();
    own::GetPayloadMetadataResponse { metadata: Some(metadata_of(id, metadata)), updated_at }
}

fn metadata_of(id: PayloadId, metadata: Metadata) -> pb::PayloadMetadata {
    pb::PayloadMetadata { id: Some(ids::payload_id_to_pb(id)), data: metadata.data, schema: metadata.schema }
}

/// A page of the history; `more`: it goes on.
pub fn metadata_events(
    id: PayloadId,
    events: Vec<MetadataEvent>,
    more: bool,
) -> own::ListPayloadMetadataEventsResponse {
    let next_page_token = match events.last() {
        Some(last) if more => page_token::events_encode(last.number),
        _ => String::new(),
    };
    let event = |event: MetadataEvent| own::MetadataEvent {
        number: event.number,
        kind: enums::event_kind_to_pb(event.kind).into(),
        event: Some(pb::PayloadMetadataEvent {
            id: Some(ids::payload_id_to_pb(id)),
            ts: Some(timestamp(event.at)),
            data: event.metadata.data,
            source: event.source,
            version: event.version,
        }),
        schema: event.metadata.schema,
        reason: event.reason,
    };
    own::ListPayloadMetadataEventsResponse {
        events: events.into_iter().map(event).collect(),
        next_page_token,
    }
}

/// The answer to GetLineage; `None`: it is longer than a message may be.
pub fn lineage(edges: Vec<LineageEdge>) -> Option<pb::GetLineageResponse> {
    let edge = |edge: LineageEdge| pb::LineageEdge {
        parent: Some(ids::payload_id_to_pb(edge.parent)),
        operation: edge.operation,
        role: edge.role,
        parameters: edge.parameters,
        child: Some(ids::payload_id_to_pb(edge.child)),
    };
    let answer = pb::GetLineageResponse { edges: edges.into_iter().map(edge).collect() };
    (answer.encoded_len() <= ANSWER_BYTES_MAX).then_some(answer)
}

/// An entry of a stream.
pub fn stream_entry(stream: &StreamName, entry: StreamEntry) -> rt::StreamEntry {
    let item = entry.item;
    rt::StreamEntry {
        stream: Some(stream_id(stream.clone())),
        offset: entry.offset,
        payload_id: Some(ids::payload_id_to_pb(item.payload)),
        event_time: item.event_time.map(time),
        append_time: Some(timestamp(entry.appended_at)),
        duration_ns: item.duration_ns,
        tags: item.tags.into_iter().collect(),
    }
}

/// Entries of one stream, and whether they are all: an answer has as many as one message holds, and at least one.
pub fn stream_entries(stream: &StreamName, entries: Vec<StreamEntry>) -> (Vec<rt::StreamEntry>, bool) {
    let mut shown = Vec::with_capacity(entries.len());
    let mut bytes = 0;
    for entry in entries {
        let entry = stream_entry(stream, entry);
        let length = entry.encoded_len();
        // The key and the length of a repeated field.
        bytes += 1 + prost::length_delimiter_len(length) + length;
        if bytes > ANSWER_BYTES_MAX && !shown.is_empty() {
            return (shown, false);
        }
        shown.push(entry);
    }
    (shown, true)
}

/// A page of streams; `more`: it goes on.
pub fn streams(streams: Vec<StreamInfo>, more: bool) -> own::ListStreamsResponse {
    let next_page_token = match streams.last() {
        Some(last) if more => page_token::streams_encode(&last.stream),
        _ => String::new(),
    };
    let info = |info: StreamInfo| own::StreamInfo {
        stream: Some(stream_id(info.stream)),
        retention_max_entries: info.limits.entries_max.unwrap_or_default(),
        retention_max_age_sec: info.limits.age_ms_max.unwrap_or_default() / 1_000,
        first_offset: info.first,
        end_offset: info.end,
        incarnation: info.incarnation,
        retain_payloads: info.limits.retains_payloads,
    };
    own::ListStreamsResponse { streams: streams.into_iter().map(info).collect(), next_page_token }
}

/// A page of groups; `more`: it goes on.
pub fn groups(groups: Vec<StreamGroup>, more: bool) -> own::ListConsumerGroupsResponse {
    let next_page_token = groups.last().filter(|_| more).map(|last| last.name.clone()).unwrap_or_default();
    let group = |group: StreamGroup| own::ConsumerGroup {
        consumer_group: group.name,
        offset: group.next,
        committed_at: Some(timestamp(group.at)),
    };
    own::ListConsumerGroupsResponse { groups: groups.into_iter().map(group).collect(), next_page_token }
}

fn stream_id(stream: StreamName) -> rt::StreamId {
    rt::StreamId { name: stream.name, namespace: stream.namespace }
}

fn time(time: Timestamp) -> prost_types::Timestamp {
    // Below 10^9, which is how it came in.
    prost_types::Timestamp { seconds: time.seconds, nanos: time.nanoseconds as i32 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use payload_types::record::{MetadataEventKind, StreamItem, StreamLimits};

    const ID: PayloadId = PayloadId::from_bytes([7; 16]);
    const AT: WallMs = WallMs::from_millis(1_500);

    fn metadata() -> Metadata {
        Metadata { data: vec![0, 255], schema: "s".to_owned() }
    }

    #[test]
    fn given_metadata_when_shown_then_id_bytes_and_time_are_there() {
        let shown = metadata_updated(ID, metadata(), AT);
        let inner = shown.metadata.expect("set");
        assert_eq!((inner.data, inner.schema.as_str()), (vec![0, 255], "s"));
        assert_eq!((inner.id, shown.id.clone()), (shown.id, Some(ids::payload_id_to_pb(ID))));
        assert_eq!(shown.updated_at, Some(timestamp(AT)));
        let never = metadata_got(ID, None);
        assert_eq!(never.updated_at, None);
        assert_eq!(never.metadata.expect("set").data, Vec::<u8>::new());
        assert_eq!(metadata_got(ID, Some((metadata(), AT))).updated_at, Some(timestamp(AT)));
    }

    #[test]
    fn given_a_page_of_events_when_shown_then_a_token_leads_on_only_when_there_are_more() {
        let event = |number| MetadataEvent {
            number,
            at: AT,
            kind: MetadataEventKind::Noted,
            metadata: metadata(),
            source: "me".to_owned(),
            reason: String::new(),
            version: "v1".to_owned(),
        };
        let page = metadata_events(ID, vec![event(4), event(5)], true);
        assert_eq!(page_token::events_decode(&page.next_page_token), Ok(5));
        assert_eq!((page.events[0].number, page.events[0].kind), (4, 3));
        let inner = page.events[0].event.clone().expect("set");
        assert_eq!((inner.source.as_str(), inner.version.as_str(), inner.data), ("me", "v1", vec![0, 255]));
        assert!(metadata_events(ID, vec![event(4)], false).next_page_token.is_empty());
    }

    #[test]
    fn given_an_edge_when_shown_then_both_ends_are_raw_bytes() {
        let child = PayloadId::from_bytes([8; 16]);
        let edge = LineageEdge {
            child,
            parent: ID,
            operation: "cut".to_owned(),
            role: "in".to_owned(),
            parameters: vec![0],
        };
        let shown = lineage(vec![edge]).expect("short").edges.remove(0);
        assert_eq!(shown.parent.expect("set").value, vec![7; 16]);
        assert_eq!(shown.child.expect("set").value, vec![8; 16]);
        assert_eq!((shown.operation.as_str(), shown.role.as_str(), shown.parameters), ("cut", "in", vec![0]));
    }

    #[test]
    fn given_a_stream_when_listed_then_no_limit_is_zero() {
        let stream = StreamName { namespace: "é".to_owned(), name: "a".to_owned() };
        let info = |limits| StreamInfo { stream: stream.clone(), limits, first: 1, end: 4, incarnation: 9 };
        let bounded = StreamLimits { entries_max: Some(3), age_ms_max: Some(5_000), retains_payloads: true };
        let page = streams(vec![info(StreamLimits::default()), info(bounded)], true);
        assert_eq!(page_token::streams_decode(&page.next_page_token), Ok(Some(stream.clone())));
        assert_eq!((page.streams[0].retention_max_entries, page.streams[0].retention_max_age_sec), (0, 0));
        assert_eq!((page.streams[1].retention_max_entries, page.streams[1].retention_max_age_sec), (3, 5));
        assert_eq!((page.streams[1].first_offset, page.streams[1].end_offset), (1, 4));
        assert_eq!((page.streams[0].retain_payloads, page.streams[1].retain_payloads), (false, true));
    }

    #[test]
    fn given_more_than_a_message_holds_when_shown_then_entries_are_cut_and_lineage_is_refused() {
        let stream = StreamName { namespace: "n".repeat(255), name: "s".repeat(255) };
        let entry = |tag_bytes| StreamEntry {
            offset: 1,
            appended_at: AT,
            item: StreamItem {
                payload: ID,
                event_time: Some(Timestamp { seconds: -1, nanoseconds: 999_999_999 }),
                duration_ns: 1,
                tags: vec![("k".to_owned(), "v".repeat(tag_bytes))],
            },
        };
        let (all, complete) = stream_entries(&stream, vec![entry(9); 100]);
        assert_eq!((all.len(), complete), (100, true));
        let (few, complete) = stream_entries(&stream, vec![entry(9); 10_000]);
        assert!(!complete && few.len() > 1_000);
        let answer = rt::ReadResponse { entries: few };
        assert!((ANSWER_BYTES_MAX - 1_000..=ANSWER_BYTES_MAX).contains(&answer.encoded_len()));
        let (one, complete) = stream_entries(&stream, vec![entry(ANSWER_BYTES_MAX), entry(1)]);
        assert_eq!((one.len(), complete), (1, false), "an answer has one in any case");
        let edge = |parameters| LineageEdge {
            child: ID,
            parent: ID,
            operation: String::new(),
            role: String::new(),
            parameters,
        };
        assert!(lineage(vec![edge(vec![1; 1 << 20]); 3]).is_some());
        assert!(lineage(vec![edge(vec![1; 1 << 20]); 4]).is_none());
    }
}
