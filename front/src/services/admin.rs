//! `PayloadAdminService`: the node's statistics.

use std::sync::Arc;

use payload_wire::pb::admin::v1 as pb;
use payload_wire::pb::services::v1::payload_admin_service_server::PayloadAdminService;
use payload_wire::status::to_status;
use tonic::{Request, Response, Status};

use crate::accounting::Accounting;
use crate::deadline::Deadline;

/// See the module.
pub struct AdminService {
    accounting: Arc<Accounting>,
}

impl AdminService {
    /// Serves these figures.
    pub fn new(accounting: Arc<Accounting>) -> Self {
        Self { accounting }
    }
}

#[tonic::async_trait]
impl PayloadAdminService for AdminService {
    async fn stats(&self, request: Request<pb::StatsRequest>) -> Result<Response<pb::StatsResponse>, Status> {
        let deadline = Deadline::of(request.metadata());
        self.accounting.gather(deadline).await.map(Response::new).map_err(to_status)
    }
}
