//! Metadata: opaque bytes and the name of their schema, attached to a payload, and the history of their updates.
//!
//! ```text
//! update_metadata --> the current metadata, and an event      append_metadata_event --> an event alone
//! metadata        <-- the current metadata                    metadata_events       <-- events, oldest first, paged
//! ```

use payload_types::record::{Metadata, MetadataEvent, MetadataEventKind, MetadataMode};
use payload_types::{PayloadId, WallMs, limits};
use payload_wire::pb::catalog::v1 as catalog;
use payload_wire::pb::core::v1::MetadataUpdateMode;
use payload_wire::pb::operations::v1 as operations;
use payload_wire::pb::operations::v1::payload_records_service_client::PayloadRecordsServiceClient;
use tonic::transport::Channel;

use crate::client::{Client, encode_id};
use crate::descriptor::{broken, decode_time};
use crate::error::ClientError;

/// A page of a payload's metadata history.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MetadataPage {
    /// Oldest first.
    pub events: Vec<MetadataEvent>,
    /// Leads to the next page; `None`: this was the last one.
    pub next_page_token: Option<String>,
}

impl Client {
    /// Replaces or merges a payload's metadata, and says who does it and why. Returns what results, and when it was
    /// stored. Repeated after a broken connection, it leaves a second event.
    ///
    /// # Errors
    /// As behaviour.md says of UpdatePayloadMetadata.
    pub async fn update_metadata(
        &self,
        id: PayloadId,
        mode: MetadataMode,
        metadata: Metadata,
        actor: &str,
        reason: &str,
    ) -> Result<(Metadata, WallMs), ClientError> {
        let mode = match mode {
            MetadataMode::Replace => MetadataUpdateMode::Replace,
            MetadataMode::Merge => MetadataUpdateMode::Merge,
        };
        let request = catalog::UpdatePayloadMetadataRequest {
            id: encode_id(id),
            mode: mode.into(),
            metadata: Some(encode_metadata(metadata)),
            actor: actor.to_owned(),
            reason: reason.to_owned(),
        };
        let answer = self.answer(self.catalog().update_payload_metadata(self.request(request)).await)?;
        let updated_at = decode_time(answer.updated_at)?;
        Ok((
            decode_metadata(answer.metadata),
            updated_at.ok_or_else(|| broken("an update has no updated_at"))?,
        ))
    }

    /// Adds an event to a payload's history and leaves its current metadata as they are. Returns when it was stored.
    ///
    /// # Errors
    /// As behaviour.md says of AppendPayloadMetadataEvent.
    pub async fn append_metadata_event(
        &self,
        id: PayloadId,
        metadata: Metadata,
        source: &str,
        version: &str,
    ) -> Result<WallMs, ClientError> {
        let request = catalog::AppendPayloadMetadataEventRequest {
            id: encode_id(id),
            metadata: Some(encode_metadata(metadata)),
            source: source.to_owned(),
            version: version.to_owned(),
        };
        let answer =
            self.answer(self.catalog().append_payload_metadata_event(self.request(request)).await)?;
        decode_time(answer.event_time)?.ok_or_else(|| broken("an event has no event_time"))
    }

    /// A payload's current metadata and when they were stored; `None`: never.
    ///
    /// # Errors
    /// NOT_FOUND for a payload that is not there.
    pub async fn metadata(&self, id: PayloadId) -> Result<Option<(Metadata, WallMs)>, ClientError> {
        let request = operations::GetPayloadMetadataRequest { id: encode_id(id) };
        let answer = self.answer(self.records().get_payload_metadata(self.request(request)).await)?;
        Ok(decode_time(answer.updated_at)?.map(|at| (decode_metadata(answer.metadata), at)))
    }

    /// One page of a payload's metadata history, oldest first. `page_token` is the last page's `next_page_token`;
    /// `page_size` 0 is the server's default.
    ///
    /// # Errors
    /// NOT_FOUND for a payload that is not there.
    pub async fn metadata_events(
        &self,
        id: PayloadId,
        page_size: u16,
        page_token: Option<String>,
    ) -> Result<MetadataPage, ClientError> {
        let request = operations::ListPayloadMetadataEventsRequest {
            id: encode_id(id),
            page_size: page_size.into(),
            page_token: page_token.unwrap_or_default(),
        };
        let answer = self.answer(self.records().list_payload_metadata_events(self.request(request)).await)?;
        Ok(MetadataPage {
            events: answer.events.into_iter().map(decode_event).collect::<Result<_, _>>()?,
            next_page_token: Some(answer.next_page_token).filter(|token| !token.is_empty()),
        })
    }

    pub(crate) fn records(&self) -> PayloadRecordsServiceClient<Channel> {
        PayloadRecordsServiceClient::new(self.channel()).max_decoding_message_size(limits::MESSAGE_BYTES_MAX)
    }
}

fn encode_metadata(metadata: Metadata) -> catalog::PayloadMetadata {
    catalog::PayloadMetadata { id: None, data: metadata.data, schema: metadata.schema }
}

fn decode_metadata(message: Option<catalog::PayloadMetadata>) -> Metadata {
    let catalog::PayloadMetadata { data, schema, .. } = message.unwrap_or_default();
    Metadata { data, schema }
}

fn decode_event(message: operations::MetadataEvent) -> Result<MetadataEvent, ClientError> {
    let kind = match message.kind() {
        operations::MetadataEventKind::Replaced => MetadataEventKind::Replaced,
        operations::MetadataEventKind::Merged => MetadataEventKind::Merged,
        operations::MetadataEventKind::Noted => MetadataEventKind::Noted,
        operations::MetadataEventKind::Unspecified => {
            return Err(broken(&format!("an event has kind number {}", message.kind)));
        }
    };
    let event = message.event.unwrap_or_default();
    Ok(MetadataEvent {
        number: message.number,
        at: decode_time(event.ts)?.ok_or_else(|| broken("an event has no time"))?,
        kind,
        metadata: Metadata { data: event.data, schema: message.schema },
        source: event.source,
        reason: message.reason,
        version: event.version,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_events_that_break_the_contract_when_decoded_then_refused() {
        let event = || operations::MetadataEvent {
            number: 3,
            kind: operations::MetadataEventKind::Merged.into(),
            event: Some(catalog::PayloadMetadataEvent {
                ts: Some(prost_types::Timestamp { seconds: 1, nanos: 500_000_000 }),
                data: vec![0, 255],
                source: "me".to_owned(),
                ..Default::default()
            }),
            schema: "s".to_owned(),
            reason: "why".to_owned(),
        };
        let decoded = decode_event(event()).expect("valid");
        assert_eq!((decoded.number, decoded.at), (3, WallMs::from_millis(1_500)));
        assert_eq!((decoded.kind, decoded.metadata.data), (MetadataEventKind::Merged, vec![0, 255]));
        for spoil in [
            |event: &mut operations::MetadataEvent| event.kind = 0,
            |event: &mut operations::MetadataEvent| event.kind = 77,
            |event: &mut operations::MetadataEvent| event.event = None,
        ] {
            let mut message = event();
            spoil(&mut message);
            assert!(matches!(decode_event(message), Err(ClientError::Contract(_))));
        }
    }
}
