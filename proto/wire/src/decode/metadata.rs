//! UpdatePayloadMetadata, AppendPayloadMetadataEvent and what reads them back (behaviour.md, "Metadata and lineage").

use payload_types::limits::{EVENT_PAGE_DEFAULT, EVENT_PAGE_MAX};
use payload_types::record::{Metadata, RecordChange, RecordQuery};
use payload_types::{NamespaceId, PayloadError, WallMs};

use super::{opaque, page_size, text};
use crate::pb::catalog::v1 as pb;
use crate::pb::operations::v1 as own;
use crate::{enums, ids, page_token};

/// Decodes UpdatePayloadMetadata. The id inside the metadata is ignored; no metadata are empty ones.
///
/// # Errors
/// `INVALID_ARGUMENT` for a malformed id, a mode outside the contract, data over 1 MiB, a text over 64 KiB.
pub fn metadata_update(
    namespace: NamespaceId,
    request: pb::UpdatePayloadMetadataRequest,
    at: WallMs,
) -> Result<RecordChange, PayloadError> {
    Ok(RecordChange::MetadataUpdate {
        key: ids::payload_key(namespace, request.id.as_ref())?,
        mode: enums::metadata_mode("mode", request.mode)?,
        metadata: metadata(request.metadata)?,
        actor: text("actor", request.actor)?,
        reason: text("reason", request.reason)?,
        at,
    })
}

/// Decodes AppendPayloadMetadataEvent.
///
/// # Errors
/// `INVALID_ARGUMENT` for a malformed id, data over 1 MiB, a text over 64 KiB.
pub fn metadata_note(
    namespace: NamespaceId,
    request: pb::AppendPayloadMetadataEventRequest,
    at: WallMs,
) -> Result<RecordChange, PayloadError> {
    Ok(RecordChange::MetadataNote {
        key: ids::payload_key(namespace, request.id.as_ref())?,
        metadata: metadata(request.metadata)?,
        source: text("source", request.source)?,
        version: text("version", request.version)?,
        at,
    })
}

/// Decodes GetPayloadMetadata.
///
/// # Errors
/// `INVALID_ARGUMENT` for a malformed id.
pub fn metadata_get(
    namespace: NamespaceId,
    request: &own::GetPayloadMetadataRequest,
    at: WallMs,
) -> Result<RecordQuery, PayloadError> {
    Ok(RecordQuery::Metadata { key: ids::payload_key(namespace, request.id.as_ref())?, at })
}

/// Decodes ListPayloadMetadataEvents: a page size of 0 or less is 50, one over 500 is 500.
///
/// # Errors
/// `INVALID_ARGUMENT` for a malformed id, or a page token that is none of ours.
pub fn metadata_events(
    namespace: NamespaceId,
    request: &own::ListPayloadMetadataEventsRequest,
    at: WallMs,
) -> Result<RecordQuery, PayloadError> {
    Ok(RecordQuery::MetadataEvents {
        key: ids::payload_key(namespace, request.id.as_ref())?,
        after: page_token::events_decode(&request.page_token)?,
        entries_max: page_size(request.page_size, EVENT_PAGE_DEFAULT, EVENT_PAGE_MAX),
        at,
    })
}

fn metadata(message: Option<pb::PayloadMetadata>) -> Result<Metadata, PayloadError> {
    let pb::PayloadMetadata { data, schema, .. } = message.unwrap_or_default();
    Ok(Metadata { data: opaque("metadata.data", data)?, schema: text("metadata.schema", schema)? })
}

#[cfg(test)]
mod tests {
    use payload_types::ErrorKind::InvalidArgument;
    use payload_types::limits::{OPAQUE_BYTES_MAX, TEXT_BYTES_MAX};
    use payload_types::record::MetadataMode;

    use super::*;
    use crate::decode::testing::{NAMESPACE, id, key, refused};

    const AT: WallMs = WallMs::from_millis(1_000);

    fn update(mode: i32) -> pb::UpdatePayloadMetadataRequest {
        pb::UpdatePayloadMetadataRequest {
            id: id(1),
            mode,
            metadata: Some(pb::PayloadMetadata { id: id(9), data: vec![0, 255], schema: "s\0".to_owned() }),
            actor: "me".to_owned(),
            reason: "why".to_owned(),
        }
    }

    #[test]
    fn given_an_update_when_decoded_then_bytes_are_kept_and_the_inner_id_is_ignored() {
        for (number, mode) in [(0, MetadataMode::Merge), (1, MetadataMode::Merge), (2, MetadataMode::Replace)]
        {
            let expected = RecordChange::MetadataUpdate {
                key: key(1),
                mode,
                metadata: Metadata { data: vec![0, 255], schema: "s\0".to_owned() },
                actor: "me".to_owned(),
                reason: "why".to_owned(),
                at: AT,
            };
            assert_eq!(metadata_update(NAMESPACE, update(number), AT), Ok(expected));
        }
        refused(metadata_update(NAMESPACE, update(3), AT), InvalidArgument, "mode is 3");
    }

    #[test]
    fn given_what_is_too_long_when_decoded_then_invalid_argument_names_the_field() {
        let spoiled = |spoil: fn(&mut pb::UpdatePayloadMetadataRequest)| {
            let mut request = update(2);
            spoil(&mut request);
            metadata_update(NAMESPACE, request, AT)
        };
        let at_most = spoiled(|request| {
            request.metadata.as_mut().expect("set").data = vec![1; OPAQUE_BYTES_MAX];
            request.actor = "a".repeat(TEXT_BYTES_MAX);
        });
        at_most.expect("as long as may be");
        let too_long = "a".repeat(TEXT_BYTES_MAX + 1);
        refused(
            spoiled(|request| request.metadata.as_mut().expect("set").data = vec![1; OPAQUE_BYTES_MAX + 1]),
            InvalidArgument,
            "metadata.data",
        );
        refused(spoiled(|request| request.id = None), InvalidArgument, "not set");
        refused(
            spoiled(|request| {
                request.metadata.as_mut().expect("set").schema = "a".repeat(TEXT_BYTES_MAX + 1)
            }),
            InvalidArgument,
            "metadata.schema",
        );
        refused(
            spoiled(|request| request.reason = "a".repeat(TEXT_BYTES_MAX + 1)),
            InvalidArgument,
            "reason",
        );
        let note =
            pb::AppendPayloadMetadataEventRequest { id: id(1), version: too_long, ..Default::default() };
        refused(metadata_note(NAMESPACE, note, AT), InvalidArgument, "version");
    }

    #[test]
    fn given_a_note_without_metadata_when_decoded_then_they_are_empty() {
        let note = pb::AppendPayloadMetadataEventRequest { id: id(1), ..Default::default() };
        let expected = RecordChange::MetadataNote {
            key: key(1),
            metadata: Metadata::default(),
            source: String::new(),
            version: String::new(),
            at: AT,
        };
        assert_eq!(metadata_note(NAMESPACE, note, AT), Ok(expected));
    }

    #[test]
    fn given_a_page_of_events_when_decoded_then_its_size_is_bounded_and_its_token_checked() {
        let ask = |page_size, page_token: &str| {
            let request = own::ListPayloadMetadataEventsRequest {
                id: id(1),
                page_size,
                page_token: page_token.to_owned(),
            };
            metadata_events(NAMESPACE, &request, AT)
        };
        for (size, token, entries_max, after) in
            [(0, "", 50, 0), (-5, "", 50, 0), (7, "12", 7, 12), (10_000, "", 500, 0)]
        {
            let expected = RecordQuery::MetadataEvents { key: key(1), after, entries_max, at: AT };
            assert_eq!(ask(size, token), Ok(expected));
        }
        for token in ["x", "-1", "9223372036854775808", " 1", "+1"] {
            refused(ask(0, token), InvalidArgument, "page_token");
        }
    }
}
