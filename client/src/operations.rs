//! What operators ask: the accounting, the holders of a payload, and why it is where it is.
//!
//! These answers are for people and monitors, not for moving bytes, so they are given as the messages of the package
//! `payload.manager.operations.v1`: the .proto files say what each field means. A server that lacks the service
//! answers UNIMPLEMENTED, and one without our own fields leaves them empty.

use payload_types::PayloadId;
use payload_wire::ids;
use payload_wire::pb::admin::v1 as admin;
use payload_wire::pb::operations::v1 as operations;
use payload_wire::pb::operations::v1::payload_operations_service_client::PayloadOperationsServiceClient;
use payload_wire::pb::services::v1::payload_admin_service_client::PayloadAdminServiceClient;
use tonic::transport::Channel;

use crate::client::Client;
use crate::error::ClientError;

impl Client {
    /// Stats with every field: `tiers` and `node` are our own.
    ///
    /// # Errors
    /// As behaviour.md says of Stats.
    pub async fn accounting(&self) -> Result<admin::StatsResponse, ClientError> {
        let mut admin = PayloadAdminServiceClient::new(self.channel());
        self.answer(admin.stats(self.request(admin::StatsRequest {})).await)
    }

    /// Every lease and the pin of a payload, with their owners.
    ///
    /// # Errors
    /// NOT_FOUND for a payload that is not there.
    pub async fn holders(&self, id: PayloadId) -> Result<operations::ListHoldersResponse, ClientError> {
        let request = operations::ListHoldersRequest { id: Some(ids::payload_id_to_pb(id)) };
        self.answer(self.operations().list_holders(self.request(request)).await)
    }

    /// Why a payload is where it is, and what would be evicted next.
    ///
    /// # Errors
    /// NOT_FOUND for a payload that is not there.
    pub async fn explain(&self, id: PayloadId) -> Result<operations::ExplainPayloadResponse, ClientError> {
        let request = operations::ExplainPayloadRequest { id: Some(ids::payload_id_to_pb(id)) };
        self.answer(self.operations().explain_payload(self.request(request)).await)
    }

    pub(crate) fn operations(&self) -> PayloadOperationsServiceClient<Channel> {
        let max = payload_types::limits::MESSAGE_BYTES_MAX;
        PayloadOperationsServiceClient::new(self.channel()).max_decoding_message_size(max)
    }
}
