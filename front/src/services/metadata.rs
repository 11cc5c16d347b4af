//! Metadata and lineage: what `PayloadCatalogService` lets clients write and `PayloadRecordsService` read back.
//!
//! A payload that is not committed has no row in the catalog; its shard knows it.

use payload_reactor::clock;
use payload_types::record::{RecordAnswer, RecordChange, RecordOutcome};
use payload_types::{PayloadError, PayloadId, WallMs};
use payload_wire::pb::catalog::v1 as pb;
use payload_wire::pb::operations::v1 as own;
use payload_wire::{decode, encode, ids};

use super::router::NAMESPACE;
use crate::deadline::Deadline;
use crate::records::{Records, disagreement};
use crate::repeats::RequestId;

/// UpdatePayloadMetadata.
pub async fn update(
    records: &Records,
    request: pb::UpdatePayloadMetadataRequest,
    call: Option<&RequestId>,
    deadline: Option<Deadline>,
) -> Result<pb::UpdatePayloadMetadataResponse, PayloadError> {
    let at = clock::now().wall;
    let id = ids::payload_id(request.id.as_ref())?;
    let change = RequestId::wrap(call, decode::metadata_update(NAMESPACE, request, at)?, at);
    let (outcome, at) = made(records.change_of([id].into_iter(), change, deadline).await?, at);
    match outcome {
        RecordOutcome::Metadata(metadata) => Ok(encode::metadata_updated(id, metadata, at)),
        RecordOutcome::TooLarge { bytes } => Err(PayloadError::invalid(format!(
            "the merged metadata would have {bytes} bytes; at most {} are kept: replace them with less",
            payload_types::limits::OPAQUE_BYTES_MAX
        ))),
        other => Err(disagreement("UpdatePayloadMetadata", &other)),
    }
}

/// AppendPayloadMetadataEvent.
pub async fn note(
    records: &Records,
    request: pb::AppendPayloadMetadataEventRequest,
    call: Option<&RequestId>,
    deadline: Option<Deadline>,
) -> Result<pb::AppendPayloadMetadataEventResponse, PayloadError> {
    let at = clock::now().wall;
    let id = ids::payload_id(request.id.as_ref())?;
    let change = RequestId::wrap(call, decode::metadata_note(NAMESPACE, request, at)?, at);
    let (outcome, at) = made(records.change_of([id].into_iter(), change, deadline).await?, at);
    match outcome {
        RecordOutcome::Done => Ok(encode::metadata_noted(id, at)),
        other => Err(disagreement("AppendPayloadMetadataEvent", &other)),
    }
}

/// What was made, and when: `now`, or before by the same call.
fn made(outcome: RecordOutcome, now: WallMs) -> (RecordOutcome, WallMs) {
    match outcome {
        RecordOutcome::Before { at, outcome } => (*outcome, at),
        outcome => (outcome, now),
    }
}

/// AddLineage.
pub async fn lineage_add(
    records: &Records,
    request: pb::AddLineageRequest,
    deadline: Option<Deadline>,
) -> Result<(), PayloadError> {
    let change = decode::lineage_add(NAMESPACE, request, clock::now().wall)?;
    let RecordChange::LineageAdd { child, edges, .. } = &change else {
        return Err(disagreement("AddLineage", &change));
    };
    let ids: Vec<PayloadId> = std::iter::once(child.id).chain(edges.iter().map(|edge| edge.parent)).collect();
    match records.change_of(ids.into_iter(), change, deadline).await? {
        RecordOutcome::Done => Ok(()),
        other => Err(disagreement("AddLineage", &other)),
    }
}

/// GetLineage.
pub async fn lineage_get(
    records: &Records,
    request: pb::GetLineageRequest,
    deadline: Option<Deadline>,
) -> Result<pb::GetLineageResponse, PayloadError> {
    let id = ids::payload_id(request.id.as_ref())?;
    let query = decode::lineage_get(NAMESPACE, &request, clock::now().wall)?;
    records.refuse_lost(id, deadline).await?;
    let too_large = || {
        PayloadError::exhausted(
            "the lineage of this payload does not fit into one answer; ask for fewer steps with max_depth, and go on from the payloads found",
        )
    };
    match records.query_of(id, query, deadline).await? {
        RecordAnswer::Lineage(edges) => encode::lineage(edges).ok_or_else(too_large),
        RecordAnswer::TooLarge => Err(too_large()),
        RecordAnswer::NotFound(id) | RecordAnswer::Lost(id) => {
            records.resolve(id, deadline).await?;
            Ok(pb::GetLineageResponse::default())
        }
        other => Err(disagreement("GetLineage", &other)),
    }
}

/// GetPayloadMetadata.
pub async fn get(
    records: &Records,
    request: own::GetPayloadMetadataRequest,
    deadline: Option<Deadline>,
) -> Result<own::GetPayloadMetadataResponse, PayloadError> {
    let id = ids::payload_id(request.id.as_ref())?;
    let query = decode::metadata_get(NAMESPACE, &request, clock::now().wall)?;
    records.refuse_lost(id, deadline).await?;
    match records.query_of(id, query, deadline).await? {
        RecordAnswer::Metadata(current) => Ok(encode::metadata_got(id, current)),
        RecordAnswer::NotFound(id) | RecordAnswer::Lost(id) => {
            records.resolve(id, deadline).await?;
            Ok(encode::metadata_got(id, None))
        }
        other => Err(disagreement("GetPayloadMetadata", &other)),
    }
}

/// ListPayloadMetadataEvents.
pub async fn events(
    records: &Records,
    request: own::ListPayloadMetadataEventsRequest,
    deadline: Option<Deadline>,
) -> Result<own::ListPayloadMetadataEventsResponse, PayloadError> {
    let id = ids::payload_id(request.id.as_ref())?;
    let query = decode::metadata_events(NAMESPACE, &request, clock::now().wall)?;
    records.refuse_lost(id, deadline).await?;
    match records.query_of(id, query, deadline).await? {
        RecordAnswer::MetadataEvents(events, more) => Ok(encode::metadata_events(id, events, more)),
        RecordAnswer::NotFound(id) | RecordAnswer::Lost(id) => {
            records.resolve(id, deadline).await?;
            Ok(own::ListPayloadMetadataEventsResponse::default())
        }
        other => Err(disagreement("ListPayloadMetadataEvents", &other)),
    }
}
