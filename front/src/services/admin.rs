//! `PayloadAdminService`: the node's statistics, summed over all shards.

use std::sync::Arc;

use payload_types::reply::Reply;
use payload_types::request::Request as Ask;
use payload_wire::encode;
use payload_wire::pb::admin::v1 as pb;
use payload_wire::pb::services::v1::payload_admin_service_server::PayloadAdminService;
use payload_wire::status::to_status;
use tonic::{Request, Response, Status};

use super::router::{Router, mismatch};
use crate::deadline::Deadline;

/// See the module.
pub struct AdminService {
    router: Arc<Router>,
}

impl AdminService {
    /// Serves from the shards behind `router`.
    pub fn new(router: Arc<Router>) -> Self {
        Self { router }
    }
}

#[tonic::async_trait]
impl PayloadAdminService for AdminService {
    async fn stats(&self, request: Request<pb::StatsRequest>) -> Result<Response<pb::StatsResponse>, Status> {
        let deadline = Deadline::of(request.metadata());
        let mut parts = Vec::new();
        for reply in self.router.ask_all(&Ask::Stats, deadline).await.map_err(to_status)? {
            let Reply::Stats(part) = reply else { return Err(to_status(mismatch("Stats", &reply))) };
            parts.push(part);
        }
        Ok(Response::new(encode::stats(&parts)))
    }
}
