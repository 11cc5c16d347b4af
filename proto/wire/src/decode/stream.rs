//! The eight RPCs of streams, and ListStreams (behaviour.md, "Streams").

use payload_types::limits::{
    LIST_PAGE_DEFAULT, LIST_PAGE_MAX, NAME_BYTES_MAX, OPAQUE_BYTES_MAX, STORED_INTEGER_MAX, STREAM_READ_MAX,
};
use payload_types::record::{RecordChange, RecordQuery, StreamItem, StreamLimits, StreamName, Timestamp};
use payload_types::{PayloadError, WallMs};

use super::{page_size, storable};
use crate::pb::operations::v1 as own;
use crate::pb::runtime::v1 as pb;
use crate::{ids, page_token};

/// Entries that a subscription buffers when its `max_inflight` is 0: some milliseconds of a fast stream.
pub const INFLIGHT_DEFAULT: usize = 256;

/// What `google.protobuf.Timestamp` can express: 0001-01-01T00:00:00Z to 9999-12-31T23:59:59.999999999Z.
const SECONDS_MIN: i64 = -62_135_596_800;
/// See [`SECONDS_MIN`].
const SECONDS_MAX: i64 = 253_402_300_799;

/// A decoded Subscribe.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SubscribeParts {
    /// Which stream.
    pub stream: StreamName,
    /// The first offset that is wanted; `None`: what is appended from now on.
    pub start: Option<u64>,
    /// Entries that the server may hold for the subscriber, 1 ..= `STREAM_READ_MAX`.
    pub inflight_max: usize,
}

/// Decodes CreateStream; a limit of 0 is none.
///
/// # Errors
/// `INVALID_ARGUMENT` for a bad name, or a limit that cannot be stored: an age is kept in milliseconds.
pub fn stream_create(request: pb::CreateStreamRequest, at: WallMs) -> Result<RecordChange, PayloadError> {
    let stream = name(request.stream)?;
    let entries = storable("retention_max_entries", request.retention_max_entries)?;
    let seconds = request.retention_max_age_sec;
    let age_ms =
        seconds.checked_mul(1_000).filter(|age_ms| *age_ms <= STORED_INTEGER_MAX).ok_or_else(|| {
            PayloadError::invalid(format!(
                "retention_max_age_sec is {seconds}; the longest age is {} seconds, and 0 is no limit",
                STORED_INTEGER_MAX / 1_000
            ))
        })?;
    let set = |limit: u64| (limit > 0).then_some(limit);
    let limits = StreamLimits {
        entries_max: set(entries),
        age_ms_max: set(age_ms),
        retains_payloads: request.retain_payloads,
    };
    Ok(RecordChange::StreamCreate { stream, limits, at })
}

/// Decodes DeleteStream.
///
/// # Errors
/// `INVALID_ARGUMENT` for a bad name.
pub fn stream_delete(request: pb::DeleteStreamRequest) -> Result<RecordChange, PayloadError> {
    Ok(RecordChange::StreamDelete { stream: name(request.stream)? })
}

/// Decodes Append.
///
/// # Errors
/// `INVALID_ARGUMENT`: a bad name, no items, a malformed id, a time that is none, a duration beyond 2^63-1, tags of one
/// item over 1 MiB.
pub fn stream_append(request: pb::AppendRequest, at: WallMs) -> Result<RecordChange, PayloadError> {
    let stream = name(request.stream)?;
    if request.items.is_empty() {
        return Err(PayloadError::invalid("items is empty; append at least one"));
    }
    let items = request.items.into_iter().map(item).collect::<Result<_, _>>()?;
    Ok(RecordChange::StreamAppend { stream, items, held: false, at })
}

fn item(item: pb::AppendItem) -> Result<StreamItem, PayloadError> {
    let tag_bytes: usize = item.tags.iter().map(|(key, value)| key.len() + value.len()).sum();
    // An entry must fit into one answer with room to spare, or nobody could read it.
    if tag_bytes > OPAQUE_BYTES_MAX {
        return Err(PayloadError::invalid(format!(
            "the tags of one item have {tag_bytes} bytes; at most {OPAQUE_BYTES_MAX} are kept: put them into a payload"
        )));
    }
    let mut tags: Vec<(String, String)> = item.tags.into_iter().collect();
    tags.sort_unstable();
    Ok(StreamItem {
        payload: ids::payload_id(item.payload_id.as_ref())?,
        event_time: item.event_time.map(|time| timestamp("event_time", time)).transpose()?,
        duration_ns: storable("duration_ns", item.duration_ns)?,
        tags,
    })
}

/// Decodes Read: `max_entries` of 0 or over 10,000 is 10,000.
///
/// # Errors
/// `INVALID_ARGUMENT` for a bad name, an offset beyond 2^63-1, a time that is none.
pub fn stream_read(request: pb::ReadRequest, at: WallMs) -> Result<RecordQuery, PayloadError> {
    Ok(RecordQuery::StreamRead {
        stream: name(request.stream)?,
        from: storable("start_offset", request.start_offset)?,
        to: STORED_INTEGER_MAX,
        not_before: request.not_before.map(|time| timestamp("not_before", time)).transpose()?,
        entries_max: entries_max(request.max_entries, STREAM_READ_MAX),
        at,
    })
}

/// Decodes GetRange.
///
/// # Errors
/// `INVALID_ARGUMENT` for a bad name, or an offset beyond 2^63-1.
pub fn stream_range(request: pb::GetRangeRequest, at: WallMs) -> Result<RecordQuery, PayloadError> {
    Ok(RecordQuery::StreamRead {
        stream: name(request.stream)?,
        from: storable("start_offset", request.start_offset)?,
        to: storable("end_offset", request.end_offset)?,
        not_before: None,
        entries_max: STREAM_READ_MAX,
        at,
    })
}

/// Decodes Subscribe: without a start it is from the beginning.
///
/// # Errors
/// `INVALID_ARGUMENT` for a bad name, or an offset beyond 2^63-1.
pub fn stream_subscribe(request: pb::SubscribeRequest) -> Result<SubscribeParts, PayloadError> {
    use pb::subscribe_request::Start;
    Ok(SubscribeParts {
        stream: name(request.stream)?,
        start: match request.start {
            Some(Start::Offset(offset)) => Some(storable("offset", offset)?),
            Some(Start::FromLatest(true)) => None,
            None | Some(Start::FromBeginning(_) | Start::FromLatest(false)) => Some(0),
        },
        inflight_max: entries_max(request.max_inflight.into(), INFLIGHT_DEFAULT),
    })
}

/// Decodes Commit.
///
/// # Errors
/// `INVALID_ARGUMENT` for a bad name, an empty or long group, an offset beyond 2^63-1.
pub fn stream_commit(request: pb::CommitRequest, at: WallMs) -> Result<RecordChange, PayloadError> {
    Ok(RecordChange::StreamCommit {
        stream: name(request.stream)?,
        group: group(request.consumer_group)?,
        offset: storable("offset", request.offset)?,
        at,
    })
}

/// Decodes GetCommitted.
///
/// # Errors
/// `INVALID_ARGUMENT` for a bad name, or an empty or long group.
pub fn stream_committed(request: pb::GetCommittedRequest) -> Result<RecordQuery, PayloadError> {
    Ok(RecordQuery::Committed { stream: name(request.stream)?, group: group(request.consumer_group)? })
}

/// Decodes ListStreams: a page size of 0 or less is 50, one over 500 is 500.
///
/// # Errors
/// `INVALID_ARGUMENT` for a page token that is none of ours.
pub fn stream_list(request: &own::ListStreamsRequest) -> Result<RecordQuery, PayloadError> {
    Ok(RecordQuery::Streams {
        after: page_token::streams_decode(&request.page_token)?,
        entries_max: page_size(request.page_size, LIST_PAGE_DEFAULT, LIST_PAGE_MAX),
    })
}

/// Decodes ListConsumerGroups: page sizes as [`stream_list`].
///
/// # Errors
/// `INVALID_ARGUMENT` for a bad name, or a page token that no group's name can be.
pub fn group_list(request: own::ListConsumerGroupsRequest) -> Result<RecordQuery, PayloadError> {
    short("page_token", &request.page_token)?;
    Ok(RecordQuery::Groups {
        stream: name(request.stream)?,
        after: request.page_token,
        groups_max: page_size(request.page_size, LIST_PAGE_DEFAULT, LIST_PAGE_MAX),
    })
}

/// Decodes RemoveConsumerGroup.
///
/// # Errors
/// `INVALID_ARGUMENT` for a bad name, or an empty or long group.
pub fn group_remove(request: own::RemoveConsumerGroupRequest) -> Result<RecordChange, PayloadError> {
    Ok(RecordChange::GroupRemove { stream: name(request.stream)?, group: group(request.consumer_group)? })
}

/// `asked`, or `default` for 0; at most [`STREAM_READ_MAX`].
fn entries_max(asked: u64, default: usize) -> usize {
    match usize::try_from(asked) {
        Ok(0) => default,
        Ok(asked) => asked.min(STREAM_READ_MAX),
        Err(_huge) => STREAM_READ_MAX,
    }
}

/// The name of a stream.
fn name(message: Option<pb::StreamId>) -> Result<StreamName, PayloadError> {
    let message = message.ok_or_else(|| {
        PayloadError::invalid("stream is not set; send its name and its namespace, which may be empty")
    })?;
    if message.name.is_empty() {
        return Err(PayloadError::invalid("stream.name is empty; a stream's name has 1 to 255 bytes"));
    }
    for (field, text) in [("stream.name", &message.name), ("stream.namespace", &message.namespace)] {
        short(field, text)?;
        if text.contains('\0') {
            return Err(PayloadError::invalid(format!("{field} contains a NUL; leave it out")));
        }
    }
    Ok(StreamName { namespace: message.namespace, name: message.name })
}

fn group(text: String) -> Result<String, PayloadError> {
    if text.is_empty() {
        return Err(PayloadError::invalid("consumer_group is empty; a group's name has 1 to 255 bytes"));
    }
    short("consumer_group", &text)?;
    Ok(text)
}

fn short(field: &str, text: &str) -> Result<(), PayloadError> {
    if text.len() <= NAME_BYTES_MAX {
        return Ok(());
    }
    Err(PayloadError::invalid(format!(
        "{field} has {} bytes; at most {NAME_BYTES_MAX} are allowed",
        text.len()
    )))
}

fn timestamp(field: &str, time: prost_types::Timestamp) -> Result<Timestamp, PayloadError> {
    let nanoseconds = u32::try_from(time.nanos).ok().filter(|nanos| *nanos < 1_000_000_000);
    match nanoseconds {
        Some(nanoseconds) if (SECONDS_MIN..=SECONDS_MAX).contains(&time.seconds) => {
            Ok(Timestamp { seconds: time.seconds, nanoseconds })
        }
        _ => Err(PayloadError::invalid(format!(
            "{field} has {} seconds and {} nanoseconds; a time is between the years 1 and 9999, with 0 to 999999999 nanoseconds",
            time.seconds, time.nanos
        ))),
    }
}

#[cfg(test)]
mod tests {
    use payload_types::ErrorKind::InvalidArgument;
    use payload_types::PayloadId;
    use pb::subscribe_request::Start;

    use super::*;
    use crate::decode::testing::{TOO_LARGE, id, refused};

    const AT: WallMs = WallMs::from_millis(1_000);

    fn stream() -> Option<pb::StreamId> {
        Some(pb::StreamId { name: "frames".to_owned(), namespace: "cam".to_owned() })
    }

    fn frames() -> StreamName {
        StreamName { namespace: "cam".to_owned(), name: "frames".to_owned() }
    }

    fn append(spoil: impl FnOnce(&mut pb::AppendItem)) -> Result<RecordChange, PayloadError> {
        let mut item = pb::AppendItem {
            payload_id: id(1),
            event_time: Some(prost_types::Timestamp { seconds: -5, nanos: 7 }),
            duration_ns: 9,
            tags: [("b", "2"), ("a", "1\0")].map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        };
        spoil(&mut item);
        stream_append(pb::AppendRequest { stream: stream(), items: vec![item] }, AT)
    }

    #[test]
    fn given_bad_names_when_any_rpc_is_decoded_then_invalid_argument() {
        let named = |name: &str, namespace: &str| {
            Some(pb::StreamId { name: name.to_owned(), namespace: namespace.to_owned() })
        };
        let long = "n".repeat(NAME_BYTES_MAX + 1);
        for (stream, word) in [
            (None, "not set"),
            (named("", "n"), "empty"),
            (named("a\0", ""), "NUL"),
            (named("a", "\0"), "NUL"),
            (named(&long, ""), "256"),
            (named("a", &long), "256"),
        ] {
            let stream = || stream.clone();
            let changes = [
                stream_create(pb::CreateStreamRequest { stream: stream(), ..Default::default() }, AT),
                stream_delete(pb::DeleteStreamRequest { stream: stream() }),
                stream_append(pb::AppendRequest { stream: stream(), items: Vec::new() }, AT),
                stream_commit(pb::CommitRequest { stream: stream(), ..Default::default() }, AT),
            ];
            changes.into_iter().for_each(|change| refused(change, InvalidArgument, word));
            let queries = [
                stream_read(pb::ReadRequest { stream: stream(), ..Default::default() }, AT),
                stream_range(pb::GetRangeRequest { stream: stream(), ..Default::default() }, AT),
                stream_committed(pb::GetCommittedRequest { stream: stream(), ..Default::default() }),
            ];
            queries.into_iter().for_each(|query| refused(query, InvalidArgument, word));
            let subscribe = pb::SubscribeRequest { stream: stream(), ..Default::default() };
            refused(stream_subscribe(subscribe), InvalidArgument, word);
        }
        let longest = named(&"n".repeat(NAME_BYTES_MAX), &"s".repeat(NAME_BYTES_MAX));
        stream_delete(pb::DeleteStreamRequest { stream: longest }).expect("as long as may be");
    }

    #[test]
    fn given_limits_when_decoded_then_zero_is_none_and_overflow_refused() {
        let create = |retention_max_entries, retention_max_age_sec| {
            let retain_payloads = retention_max_entries == 5;
            let request = pb::CreateStreamRequest {
                stream: stream(),
                retention_max_entries,
                retention_max_age_sec,
                retain_payloads,
            };
            stream_create(request, AT)
        };
        let limits = |entries_max, age_ms_max| {
            let retains_payloads = entries_max == Some(5);
            let limits = StreamLimits { entries_max, age_ms_max, retains_payloads };
            Ok(RecordChange::StreamCreate { stream: frames(), limits, at: AT })
        };
        assert_eq!(create(0, 0), limits(None, None));
        assert_eq!(create(5, 3600), limits(Some(5), Some(3_600_000)));
        refused(create(TOO_LARGE, 0), InvalidArgument, "retention_max_entries");
        refused(create(0, STORED_INTEGER_MAX / 1_000 + 1), InvalidArgument, "retention_max_age_sec");
        refused(create(0, u64::MAX), InvalidArgument, "retention_max_age_sec");
        create(STORED_INTEGER_MAX, STORED_INTEGER_MAX / 1_000).expect("the most that can be");
    }

    #[test]
    fn given_items_when_decoded_then_tags_are_sorted_and_everything_is_kept() {
        let item = StreamItem {
            payload: PayloadId::from_bytes([1; 16]),
            event_time: Some(Timestamp { seconds: -5, nanoseconds: 7 }),
            duration_ns: 9,
            tags: vec![("a".to_owned(), "1\0".to_owned()), ("b".to_owned(), "2".to_owned())],
        };
        let expected =
            RecordChange::StreamAppend { stream: frames(), items: vec![item], held: false, at: AT };
        assert_eq!(append(|_| {}), Ok(expected));
    }

    #[test]
    fn given_items_that_cannot_be_stored_when_decoded_then_invalid_argument_names_the_field() {
        let time = |seconds, nanos| Some(prost_types::Timestamp { seconds, nanos });
        let none = pb::AppendRequest { stream: stream(), items: Vec::new() };
        refused(stream_append(none, AT), InvalidArgument, "items is empty");
        refused(append(|item| item.payload_id = None), InvalidArgument, "not set");
        refused(append(|item| item.duration_ns = TOO_LARGE), InvalidArgument, "duration_ns");
        for bad in [time(0, -1), time(0, 1_000_000_000), time(SECONDS_MIN - 1, 0), time(SECONDS_MAX + 1, 0)] {
            refused(append(|item| item.event_time = bad), InvalidArgument, "event_time");
            let read = pb::ReadRequest { stream: stream(), not_before: bad, ..Default::default() };
            refused(stream_read(read, AT), InvalidArgument, "not_before");
        }
        append(|item| item.event_time = time(SECONDS_MIN, 0)).expect("the first time");
        append(|item| item.event_time = time(SECONDS_MAX, 999_999_999)).expect("the last time");
        let tag = |bytes: usize| [("k".to_owned(), "v".repeat(bytes - 1))].into();
        append(|item| item.tags = tag(OPAQUE_BYTES_MAX)).expect("as long as may be");
        refused(append(|item| item.tags = tag(OPAQUE_BYTES_MAX + 1)), InvalidArgument, "tags");
    }

    #[test]
    fn given_reads_and_ranges_when_decoded_then_their_number_is_bounded() {
        let read = |start_offset, max_entries| {
            stream_read(pb::ReadRequest { stream: stream(), start_offset, max_entries, not_before: None }, AT)
        };
        for (asked, given) in [(0, 10_000), (1, 1), (10_001, 10_000), (u64::MAX, 10_000)] {
            let Ok(RecordQuery::StreamRead { entries_max, from: 3, to: STORED_INTEGER_MAX, .. }) =
                read(3, asked)
            else {
                panic!("a read from 3 to the end");
            };
            assert_eq!(entries_max, given);
        }
        refused(read(TOO_LARGE, 0), InvalidArgument, "start_offset");
        let range = |start_offset, end_offset| {
            stream_range(pb::GetRangeRequest { stream: stream(), start_offset, end_offset }, AT)
        };
        assert!(matches!(
            range(4, 2),
            Ok(RecordQuery::StreamRead { from: 4, to: 2, entries_max: STREAM_READ_MAX, .. })
        ));
        refused(range(TOO_LARGE, 0), InvalidArgument, "start_offset");
        refused(range(0, TOO_LARGE), InvalidArgument, "end_offset");
    }

    #[test]
    fn given_subscriptions_when_decoded_then_no_start_is_the_beginning() {
        let subscribe = |start, max_inflight| {
            stream_subscribe(pb::SubscribeRequest { stream: stream(), start, max_inflight })
        };
        for (start, expected) in [
            (None, Some(0)),
            (Some(Start::FromBeginning(true)), Some(0)),
            (Some(Start::FromLatest(true)), None),
            (Some(Start::FromLatest(false)), Some(0)),
            (Some(Start::Offset(7)), Some(7)),
        ] {
            assert_eq!(subscribe(start, 0).map(|parts| parts.start), Ok(expected));
        }
        refused(subscribe(Some(Start::Offset(TOO_LARGE)), 0), InvalidArgument, "offset");
        for (asked, given) in [(0, INFLIGHT_DEFAULT), (1, 1), (u32::MAX, STREAM_READ_MAX)] {
            assert_eq!(subscribe(None, asked).map(|parts| parts.inflight_max), Ok(given));
        }
    }

    #[test]
    fn given_groups_when_decoded_then_they_need_a_name() {
        let commit = |group: &str, offset| {
            let consumer_group = group.to_owned();
            stream_commit(pb::CommitRequest { stream: stream(), consumer_group, offset }, AT)
        };
        let expected =
            RecordChange::StreamCommit { stream: frames(), group: "g".to_owned(), offset: 4, at: AT };
        assert_eq!(commit("g", 4), Ok(expected));
        refused(commit("", 0), InvalidArgument, "consumer_group");
        refused(commit(&"g".repeat(256), 0), InvalidArgument, "consumer_group");
        refused(commit("g", TOO_LARGE), InvalidArgument, "offset");
        let asked = pb::GetCommittedRequest { stream: stream(), consumer_group: String::new() };
        refused(stream_committed(asked), InvalidArgument, "consumer_group");
    }

    #[test]
    fn given_pages_of_streams_when_decoded_then_the_token_leads_on() {
        let list = |page_token: String| stream_list(&own::ListStreamsRequest { page_size: 0, page_token });
        let expected = RecordQuery::Streams { after: Some(frames()), entries_max: 50 };
        assert_eq!(list(page_token::streams_encode(&frames())), Ok(expected));
        assert_eq!(list(String::new()), Ok(RecordQuery::Streams { after: None, entries_max: 50 }));
        for token in ["frames", "x:frames", "99:frames", "3:cam"] {
            refused(list(token.to_owned()), InvalidArgument, "page_token");
        }
    }
}
