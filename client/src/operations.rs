//! What operators ask: the accounting, the holders of a payload, and why it is where it is.
//!
//! These answers are for people and monitors, not for moving bytes, so they are given as the messages of the package
//! `payload.manager.operations.v1`: the .proto files say what each field means. A server that lacks the service
//! answers UNIMPLEMENTED, and one without our own fields leaves them empty.

use std::path::PathBuf;

use payload_types::{PayloadId, Tier};
use payload_wire::pb::admin::v1 as admin;
use payload_wire::pb::operations::v1 as operations;
use payload_wire::pb::operations::v1::payload_operations_service_client::PayloadOperationsServiceClient;
pub use payload_wire::pb::operations::v1::scrub_response::Event as ScrubEvent;
use payload_wire::pb::services::v1::payload_admin_service_client::PayloadAdminServiceClient;
use payload_wire::{enums, ids};
use tonic::transport::Channel;

use crate::client::Client;
use crate::error::ClientError;

/// The number of this boot of the machine; two programs that read the same are on one host.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Who a server is, and where it serves native sessions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeInfo {
    /// `node.name`.
    pub name: String,
    /// The server's version.
    pub version: String,
    /// Of its machine.
    pub boot_id: String,
    /// Counts its starts.
    pub boot_epoch: u64,
    /// How many shards it has.
    pub shard_count: u32,
    /// The socket of native sessions, as its own file system names it; `None`: it serves none.
    pub native_socket: Option<PathBuf>,
}

impl NodeInfo {
    /// True when the server runs on the host on which this program does. A container has the host's boot id and need not
    /// see its files: whoever connects finds out.
    pub fn is_this_host(&self) -> bool {
        let own = std::fs::read_to_string(BOOT_ID).unwrap_or_default();
        !self.boot_id.is_empty() && own.trim() == self.boot_id
    }
}

impl Client {
    /// Who the server is.
    ///
    /// # Errors
    /// UNIMPLEMENTED from a server that does not know the call.
    pub async fn node_info(&self) -> Result<NodeInfo, ClientError> {
        let request = self.request(operations::NodeInfoRequest {});
        let answer = self.answer(self.operations().node_info(request).await)?;
        Ok(NodeInfo {
            name: answer.node_name,
            version: answer.server_version,
            boot_id: answer.boot_id,
            boot_epoch: answer.boot_epoch,
            shard_count: answer.shard_count,
            native_socket: answer.native.map(|native| native.socket_path.into()),
        })
    }

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

    /// Verifies the bytes of replicas against their checksums: of one payload, or of all; at most so many bytes a second,
    /// the server's default when it is 0. Findings and progress come as they are made; dropping the stream ends it.
    ///
    /// # Errors
    /// NOT_FOUND for a payload that is not there, when the stream is first asked.
    pub async fn scrub(
        &self,
        id: Option<PayloadId>,
        tier: Option<Tier>,
        bytes_per_second: u64,
    ) -> Result<ScrubStream, ClientError> {
        let tier = tier.map_or(0, |tier| enums::tier_to_pb(tier).into());
        let id = id.map(ids::payload_id_to_pb);
        let request = self.lasting(operations::ScrubRequest { id, tier, bytes_per_second });
        let stream = self.answer(self.operations().scrub(request).await)?;
        Ok(ScrubStream { client: self.clone(), stream })
    }

    pub(crate) fn operations(&self) -> PayloadOperationsServiceClient<Channel> {
        let max = payload_types::limits::MESSAGE_BYTES_MAX;
        PayloadOperationsServiceClient::new(self.channel()).max_decoding_message_size(max)
    }
}

/// What a scrub tells.
pub struct ScrubStream {
    client: Client,
    stream: tonic::Streaming<operations::ScrubResponse>,
}

impl ScrubStream {
    /// The next message; `None` when the scrub is over.
    ///
    /// # Errors
    /// The server's own, and those of the connection.
    pub async fn next(&mut self) -> Result<Option<ScrubEvent>, ClientError> {
        loop {
            let message = self.stream.message().await;
            match self.client.answer(message.map(tonic::Response::new))? {
                None => return Ok(None),
                Some(operations::ScrubResponse { event: Some(event) }) => return Ok(Some(event)),
                // Of a later version.
                Some(operations::ScrubResponse { event: None }) => {}
            }
        }
    }
}
