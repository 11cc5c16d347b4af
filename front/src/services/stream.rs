//! `PayloadStreamService`: part of the contract, not built yet. Every call says so.

use std::pin::Pin;

use payload_wire::pb::runtime::v1 as pb;
use payload_wire::pb::services::v1::payload_stream_service_server::PayloadStreamService;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

/// See the module.
pub struct StreamService;

/// The answer to an RPC of the contract that this version does not serve.
pub(super) fn not_served(rpc: &str, purpose: &str) -> Status {
    Status::unimplemented(format!(
        "{rpc} is not served by this version of payload-manager: {purpose} are not available yet; payloads, leases and tiering are"
    ))
}

fn streams(rpc: &str) -> Status {
    not_served(rpc, "streams")
}

#[tonic::async_trait]
impl PayloadStreamService for StreamService {
    type SubscribeStream = Pin<Box<dyn Stream<Item = Result<pb::SubscribeResponse, Status>> + Send>>;

    async fn create_stream(&self, _: Request<pb::CreateStreamRequest>) -> Result<Response<()>, Status> {
        Err(streams("CreateStream"))
    }

    async fn delete_stream(&self, _: Request<pb::DeleteStreamRequest>) -> Result<Response<()>, Status> {
        Err(streams("DeleteStream"))
    }

    async fn append(&self, _: Request<pb::AppendRequest>) -> Result<Response<pb::AppendResponse>, Status> {
        Err(streams("Append"))
    }

    async fn read(&self, _: Request<pb::ReadRequest>) -> Result<Response<pb::ReadResponse>, Status> {
        Err(streams("Read"))
    }

    async fn subscribe(
        &self,
        _: Request<pb::SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        Err(streams("Subscribe"))
    }

    async fn commit(&self, _: Request<pb::CommitRequest>) -> Result<Response<()>, Status> {
        Err(streams("Commit"))
    }

    async fn get_committed(
        &self,
        _: Request<pb::GetCommittedRequest>,
    ) -> Result<Response<pb::GetCommittedResponse>, Status> {
        Err(streams("GetCommitted"))
    }

    async fn get_range(
        &self,
        _: Request<pb::GetRangeRequest>,
    ) -> Result<Response<pb::GetRangeResponse>, Status> {
        Err(streams("GetRange"))
    }
}
