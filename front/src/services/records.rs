//! `PayloadRecordsService`: reads back what clients attached to payloads, finds payloads, and looks after streams and their groups.

use std::sync::Arc;

use payload_types::record::RecordAnswer;
use payload_wire::pb::operations::v1 as pb;
use payload_wire::pb::operations::v1::payload_records_service_server::PayloadRecordsService;
use payload_wire::status::to_status;
use payload_wire::{decode, encode};
use tonic::{Request, Response, Status};

use super::{find, metadata, stream};
use crate::deadline::Deadline;
use crate::records::{Records, disagreement};

/// See the module.
pub struct RecordsService {
    records: Arc<Records>,
}

impl RecordsService {
    /// Serves from the catalog behind `records`.
    pub fn new(records: Arc<Records>) -> Self {
        Self { records }
    }
}

#[tonic::async_trait]
impl PayloadRecordsService for RecordsService {
    async fn get_payload_metadata(
        &self,
        request: Request<pb::GetPayloadMetadataRequest>,
    ) -> Result<Response<pb::GetPayloadMetadataResponse>, Status> {
        let deadline = Deadline::of(request.metadata());
        let answer = metadata::get(&self.records, request.into_inner(), deadline).await;
        answer.map(Response::new).map_err(to_status)
    }

    async fn list_payload_metadata_events(
        &self,
        request: Request<pb::ListPayloadMetadataEventsRequest>,
    ) -> Result<Response<pb::ListPayloadMetadataEventsResponse>, Status> {
        let deadline = Deadline::of(request.metadata());
        let answer = metadata::events(&self.records, request.into_inner(), deadline).await;
        answer.map(Response::new).map_err(to_status)
    }

    async fn find_payloads(
        &self,
        request: Request<pb::FindPayloadsRequest>,
    ) -> Result<Response<pb::FindPayloadsResponse>, Status> {
        let deadline = Deadline::of(request.metadata());
        let answer = find::find(&self.records, request.into_inner(), deadline).await;
        answer.map(Response::new).map_err(to_status)
    }

    async fn list_streams(
        &self,
        request: Request<pb::ListStreamsRequest>,
    ) -> Result<Response<pb::ListStreamsResponse>, Status> {
        let deadline = Deadline::of(request.metadata());
        let query = decode::stream_list(request.get_ref()).map_err(to_status)?;
        match self.records.query(query, deadline).await.map_err(to_status)? {
            RecordAnswer::Streams(streams, more) => Ok(Response::new(encode::streams(streams, more))),
            other => Err(to_status(disagreement("ListStreams", &other))),
        }
    }

    async fn list_consumer_groups(
        &self,
        request: Request<pb::ListConsumerGroupsRequest>,
    ) -> Result<Response<pb::ListConsumerGroupsResponse>, Status> {
        let deadline = Deadline::of(request.metadata());
        let answer = stream::groups(&self.records, request.into_inner(), deadline).await;
        answer.map(Response::new).map_err(to_status)
    }

    async fn remove_consumer_group(
        &self,
        request: Request<pb::RemoveConsumerGroupRequest>,
    ) -> Result<Response<pb::RemoveConsumerGroupResponse>, Status> {
        let deadline = Deadline::of(request.metadata());
        let answer = stream::group_remove(&self.records, request.into_inner(), deadline).await;
        answer.map(Response::new).map_err(to_status)
    }
}
