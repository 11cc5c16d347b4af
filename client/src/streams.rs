//! Streams: payloads in the order in which they were appended, at offsets 0, 1, ... that are never used again.
//!
//! ```text
//! stream_append --> [0][1][2][3] ... --stream_read / stream_range--> pages      stream_commit: how far a group has come
//!                                  `--stream_subscribe--> entries as they are appended
//! ```

use std::ops::RangeInclusive;

use payload_types::limits;
use payload_types::record::{
    StreamEntry, StreamGroup, StreamInfo, StreamItem, StreamLimits, StreamName, Timestamp,
};
use payload_wire::ids;
use payload_wire::pb::operations::v1 as operations;
use payload_wire::pb::runtime::v1 as runtime;
use payload_wire::pb::services::v1::payload_stream_service_client::PayloadStreamServiceClient;
use tonic::Response;
use tonic::transport::Channel;

use crate::client::Client;
use crate::descriptor::{broken, decode_id, decode_time};
use crate::error::ClientError;

/// Where a subscription starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    /// At the oldest entry that is kept.
    Beginning,
    /// At this offset; beyond the end it waits for it.
    Offset(u64),
    /// With what is appended from now on.
    Latest,
}

/// A page of the streams that there are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StreamPage {
    /// By namespace and name.
    pub streams: Vec<StreamInfo>,
    /// Leads to the next page; `None`: this was the last one.
    pub next_page_token: Option<String>,
}

impl Client {
    /// Makes an empty stream. `limits.age_ms_max` must be whole seconds.
    ///
    /// # Errors
    /// As behaviour.md says of CreateStream; [`ClientError::Input`] for a fraction of a second.
    pub async fn stream_create(&self, stream: &StreamName, limits: StreamLimits) -> Result<(), ClientError> {
        let age_ms = limits.age_ms_max.unwrap_or_default();
        if !age_ms.is_multiple_of(1_000) {
            return Err(ClientError::Input(format!(
                "a stream cannot keep its entries for {age_ms} ms; ages are whole seconds"
            )));
        }
        let request = runtime::CreateStreamRequest {
            stream: encode_name(stream),
            retention_max_entries: limits.entries_max.unwrap_or_default(),
            retention_max_age_sec: age_ms / 1_000,
            retain_payloads: limits.retains_payloads,
        };
        self.answer(self.stream_service().create_stream(self.request(request)).await)
    }

    /// Removes a stream, its entries and what groups have committed; one that is not there is fine.
    ///
    /// # Errors
    /// As behaviour.md says of DeleteStream.
    pub async fn stream_delete(&self, stream: &StreamName) -> Result<(), ClientError> {
        let request = runtime::DeleteStreamRequest { stream: encode_name(stream) };
        self.answer(self.stream_service().delete_stream(self.request(request)).await)
    }

    /// Appends committed payloads, all or none. Returns the offsets they got. Repeated after a broken connection, it may
    /// append them twice.
    ///
    /// # Errors
    /// As behaviour.md says of Append.
    pub async fn stream_append(
        &self,
        stream: &StreamName,
        items: Vec<StreamItem>,
    ) -> Result<RangeInclusive<u64>, ClientError> {
        let request = runtime::AppendRequest {
            stream: encode_name(stream),
            items: items.into_iter().map(encode_item).collect(),
        };
        let answer = self.answer(self.stream_service().append(self.request(request)).await)?;
        Ok(answer.first_offset..=answer.last_offset)
    }

    /// Entries from offset `from` on, or from the oldest that is kept: at most `entries_max`, 10,000 when it is 0, and
    /// fewer where they would pass 4 MiB. Empty: there is none yet. `not_before` leaves out what was appended earlier.
    ///
    /// # Errors
    /// As behaviour.md says of Read.
    pub async fn stream_read(
        &self,
        stream: &StreamName,
        from: u64,
        entries_max: u64,
        not_before: Option<Timestamp>,
    ) -> Result<Vec<StreamEntry>, ClientError> {
        let request = runtime::ReadRequest {
            stream: encode_name(stream),
            start_offset: from,
            max_entries: entries_max,
            not_before: not_before.map(encode_time),
        };
        let answer = self.answer(self.stream_service().read(self.request(request)).await)?;
        answer.entries.into_iter().map(decode_entry).collect()
    }

    /// The entries between two offsets, both included.
    ///
    /// # Errors
    /// As behaviour.md says of GetRange: RESOURCE_EXHAUSTED when there are more than 10,000 of them, or 4 MiB.
    pub async fn stream_range(
        &self,
        stream: &StreamName,
        offsets: RangeInclusive<u64>,
    ) -> Result<Vec<StreamEntry>, ClientError> {
        let request = runtime::GetRangeRequest {
            stream: encode_name(stream),
            start_offset: *offsets.start(),
            end_offset: *offsets.end(),
        };
        let answer = self.answer(self.stream_service().get_range(self.request(request)).await)?;
        answer.entries.into_iter().map(decode_entry).collect()
    }

    /// Follows a stream. The server holds at most `inflight_max` entries for a subscriber that reads slowly; 0 is its
    /// default. The client's deadline does not apply; dropping the subscription ends it.
    ///
    /// # Errors
    /// As behaviour.md says of Subscribe.
    pub async fn stream_subscribe(
        &self,
        stream: &StreamName,
        start: Start,
        inflight_max: u32,
    ) -> Result<Subscription, ClientError> {
        use runtime::subscribe_request::Start as Wire;
        let start = match start {
            Start::Beginning => Wire::FromBeginning(true),
            Start::Offset(offset) => Wire::Offset(offset),
            Start::Latest => Wire::FromLatest(true),
        };
        let request = runtime::SubscribeRequest {
            stream: encode_name(stream),
            start: Some(start),
            max_inflight: inflight_max,
        };
        let entries = self.answer(self.stream_service().subscribe(self.lasting(request)).await)?;
        Ok(Subscription { client: self.clone(), entries })
    }

    /// Stores how far a group has come: the offset that it wants next.
    ///
    /// # Errors
    /// As behaviour.md says of Commit.
    pub async fn stream_commit(
        &self,
        stream: &StreamName,
        group: &str,
        offset: u64,
    ) -> Result<(), ClientError> {
        let request =
            runtime::CommitRequest { stream: encode_name(stream), consumer_group: group.to_owned(), offset };
        self.answer(self.stream_service().commit(self.request(request)).await)
    }

    /// How far a group has come; `None`: it never committed.
    ///
    /// # Errors
    /// As behaviour.md says of GetCommitted.
    pub async fn stream_committed(
        &self,
        stream: &StreamName,
        group: &str,
    ) -> Result<Option<u64>, ClientError> {
        let request =
            runtime::GetCommittedRequest { stream: encode_name(stream), consumer_group: group.to_owned() };
        let answer = self.answer(self.stream_service().get_committed(self.request(request)).await)?;
        Ok(answer.committed.then_some(answer.offset))
    }

    /// One page of the streams that there are, by namespace and name. `page_token` is the last page's
    /// `next_page_token`; `page_size` 0 is the server's default.
    ///
    /// # Errors
    /// UNIMPLEMENTED from a server without our own RPCs.
    pub async fn streams(
        &self,
        page_size: u16,
        page_token: Option<String>,
    ) -> Result<StreamPage, ClientError> {
        let request = operations::ListStreamsRequest {
            page_size: page_size.into(),
            page_token: page_token.unwrap_or_default(),
        };
        let answer = self.answer(self.records().list_streams(self.request(request)).await)?;
        Ok(StreamPage {
            streams: answer.streams.into_iter().map(decode_info).collect::<Result<_, _>>()?,
            next_page_token: Some(answer.next_page_token).filter(|token| !token.is_empty()),
        })
    }

    /// One page of the consumer groups of a stream, by name; as [`streams`](Self::streams).
    ///
    /// # Errors
    /// NOT_FOUND, UNIMPLEMENTED from a server without our own RPCs.
    pub async fn stream_groups(
        &self,
        stream: &StreamName,
        page_size: u16,
        page_token: Option<String>,
    ) -> Result<(Vec<StreamGroup>, Option<String>), ClientError> {
        let request = operations::ListConsumerGroupsRequest {
            stream: encode_name(stream),
            page_size: page_size.into(),
            page_token: page_token.unwrap_or_default(),
        };
        let answer = self.answer(self.records().list_consumer_groups(self.request(request)).await)?;
        let group = |group: operations::ConsumerGroup| {
            let at = decode_time(group.committed_at)?.unwrap_or_default();
            Ok::<_, ClientError>(StreamGroup { name: group.consumer_group, next: group.offset, at })
        };
        let next = Some(answer.next_page_token).filter(|token| !token.is_empty());
        Ok((answer.groups.into_iter().map(group).collect::<Result<_, _>>()?, next))
    }

    /// Forgets a consumer group. Of a stream that retains payloads the offset from which on it keeps them now.
    ///
    /// # Errors
    /// NOT_FOUND when there is no such stream, or group.
    pub async fn stream_group_remove(
        &self,
        stream: &StreamName,
        group: &str,
    ) -> Result<Option<u64>, ClientError> {
        let request = operations::RemoveConsumerGroupRequest {
            stream: encode_name(stream),
            consumer_group: group.to_owned(),
        };
        let answer = self.answer(self.records().remove_consumer_group(self.request(request)).await)?;
        Ok(answer.retained_from_offset)
    }

    fn stream_service(&self) -> PayloadStreamServiceClient<Channel> {
        PayloadStreamServiceClient::new(self.channel()).max_decoding_message_size(limits::MESSAGE_BYTES_MAX)
    }
}

/// A stream that is followed.
pub struct Subscription {
    client: Client,
    entries: tonic::Streaming<runtime::SubscribeResponse>,
}

impl Subscription {
    /// The next entry, as soon as it is there. Offsets grow; where retention has passed a slow subscriber, some are left
    /// out.
    ///
    /// # Errors
    /// NOT_FOUND when the stream was deleted, UNAVAILABLE when the server stops, and those of the connection.
    pub async fn next(&mut self) -> Result<StreamEntry, ClientError> {
        match self.client.answer(self.entries.message().await.map(Response::new))? {
            Some(runtime::SubscribeResponse { entry: Some(entry) }) => decode_entry(entry),
            Some(runtime::SubscribeResponse { entry: None }) => Err(broken("a subscription gave no entry")),
            None => Err(broken("a subscription ended without a word")),
        }
    }
}

fn encode_name(stream: &StreamName) -> Option<runtime::StreamId> {
    Some(runtime::StreamId { name: stream.name.clone(), namespace: stream.namespace.clone() })
}

fn encode_item(item: StreamItem) -> runtime::AppendItem {
    runtime::AppendItem {
        payload_id: Some(ids::payload_id_to_pb(item.payload)),
        event_time: item.event_time.map(encode_time),
        duration_ns: item.duration_ns,
        tags: item.tags.into_iter().collect(),
    }
}

fn encode_time(time: Timestamp) -> prost_types::Timestamp {
    // One that does not fit is refused by the server like any other that is out of range.
    prost_types::Timestamp { seconds: time.seconds, nanos: i32::try_from(time.nanoseconds).unwrap_or(-1) }
}

fn decode_entry(message: runtime::StreamEntry) -> Result<StreamEntry, ClientError> {
    let event_time = match message.event_time {
        None => None,
        Some(time) => Some(Timestamp {
            seconds: time.seconds,
            nanoseconds: u32::try_from(time.nanos)
                .map_err(|_| broken(&format!("an event_time has {} nanoseconds", time.nanos)))?,
        }),
    };
    let mut tags: Vec<(String, String)> = message.tags.into_iter().collect();
    tags.sort_unstable();
    Ok(StreamEntry {
        offset: message.offset,
        appended_at: decode_time(message.append_time)?
            .ok_or_else(|| broken("an entry has no append_time"))?,
        item: StreamItem {
            payload: decode_id(message.payload_id.as_ref())?,
            event_time,
            duration_ns: message.duration_ns,
            tags,
        },
    })
}

fn decode_info(message: operations::StreamInfo) -> Result<StreamInfo, ClientError> {
    let stream = message.stream.ok_or_else(|| broken("a stream has no name"))?;
    let set = |limit: u64| (limit > 0).then_some(limit);
    Ok(StreamInfo {
        stream: StreamName { namespace: stream.namespace, name: stream.name },
        limits: StreamLimits {
            entries_max: set(message.retention_max_entries),
            age_ms_max: set(message.retention_max_age_sec.saturating_mul(1_000)),
            retains_payloads: message.retain_payloads,
        },
        first: message.first_offset,
        end: message.end_offset,
        incarnation: message.incarnation,
    })
}

#[cfg(test)]
mod tests {
    use payload_types::{PayloadId, WallMs};

    use super::*;

    #[test]
    fn given_entries_when_decoded_then_tags_are_sorted_and_broken_ones_refused() {
        let entry = || runtime::StreamEntry {
            stream: None,
            offset: 4,
            payload_id: Some(ids::payload_id_to_pb(PayloadId::from_bytes([7; 16]))),
            event_time: Some(prost_types::Timestamp { seconds: -3, nanos: 5 }),
            append_time: Some(prost_types::Timestamp { seconds: 1, nanos: 0 }),
            duration_ns: 6,
            tags: [("b", "2"), ("a", "1")].map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        };
        let decoded = decode_entry(entry()).expect("valid");
        assert_eq!((decoded.offset, decoded.appended_at), (4, WallMs::from_millis(1_000)));
        assert_eq!(decoded.item.event_time, Some(Timestamp { seconds: -3, nanoseconds: 5 }));
        assert_eq!(decoded.item.tags[0], ("a".to_owned(), "1".to_owned()));
        for spoil in [
            |entry: &mut runtime::StreamEntry| entry.payload_id = None,
            |entry: &mut runtime::StreamEntry| entry.append_time = None,
            |entry: &mut runtime::StreamEntry| {
                entry.event_time = Some(prost_types::Timestamp { seconds: 0, nanos: -1 });
            },
        ] {
            let mut message = entry();
            spoil(&mut message);
            assert!(matches!(decode_entry(message), Err(ClientError::Contract(_))));
        }
    }
}
