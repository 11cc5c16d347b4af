//! Sends each call to its service: by comparing the path's first part, and under the bound on requests in flight.
//!
//! ```text
//! hyper --> tonic (grpc-timeout, error recovery) --> Dispatch --permit--> PayloadDataService ... (ours)
//!                                                          '-----------> health, reflection
//! ```
//!
//! tonic's own router is axum's: it boxes a future and walks a path tree for every call. A few comparisons are less,
//! and this is the path whose cost is measured against a bare echo. Health and reflection take no permit: whoever
//! asks whether a full server is alive must get an answer.
//!
//! tonic ends a call at its deadline with CANCELLED, which clients read as their own doing. [`Answer`] is polled just
//! before tonic's timer and knows the same deadline, counted from a moment earlier, so that it ends the call first.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use payload_wire::pb::operations::v1::payload_batch_service_server::PayloadBatchServiceServer;
use payload_wire::pb::operations::v1::payload_operations_service_server::PayloadOperationsServiceServer;
use payload_wire::pb::operations::v1::payload_records_service_server::PayloadRecordsServiceServer;
use payload_wire::pb::services::v1::payload_admin_service_server::PayloadAdminServiceServer;
use payload_wire::pb::services::v1::payload_catalog_service_server::PayloadCatalogServiceServer;
use payload_wire::pb::services::v1::payload_data_service_server::PayloadDataServiceServer;
use payload_wire::pb::services::v1::payload_stream_service_server::PayloadStreamServiceServer;
use payload_wire::status::to_status;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::NamedService;

use crate::access::Access;
use crate::admission::{Gate, Permit};
use crate::deadline;
use crate::services::{
    AdminService, BatchService, CatalogService, DataService, OperationsService, RecordsService, StreamService,
};
use crate::tally::{Call, Tally};
use crate::telemetry::context::within;

type Data = PayloadDataServiceServer<DataService>;
type Catalog = PayloadCatalogServiceServer<CatalogService>;
type Admin = PayloadAdminServiceServer<AdminService>;
type Stream = PayloadStreamServiceServer<StreamService>;
type Operations = PayloadOperationsServiceServer<OperationsService>;
type Batch = PayloadBatchServiceServer<BatchService>;
type Records = PayloadRecordsServiceServer<RecordsService>;

/// The path of health's service.
const HEALTH: &str = "/grpc.health.v1.Health";

/// The services behind one address. Cheap to clone: tonic does so for every call.
#[derive(Clone)]
pub struct Dispatch {
    services: Arc<Services>,
    access: Access,
    tally: Tally,
}

/// What [`Dispatch`] chooses from.
pub struct Services {
    /// Leases and snapshots: the busiest, so it is looked for first.
    pub data: Data,
    /// Lifecycle, placement, metadata, lineage.
    pub catalog: Catalog,
    /// Statistics.
    pub admin: Admin,
    /// Streams.
    pub stream: Stream,
    /// Holders, explanations, scrubs.
    pub operations: Operations,
    /// Many payloads in one call.
    pub batch: Batch,
    /// Metadata and streams, read back.
    pub records: Records,
    /// Health and reflection.
    pub others: Vec<Other>,
    /// The bound on requests in flight (`limits.requests_in_flight`).
    pub gate: Gate,
}

/// A service that is not ours, under its name. Its type has no name that could be written here.
pub struct Other {
    name: &'static str,
    call: Box<dyn Fn(http::Request<Body>) -> Running + Send + Sync>,
}

type Running = BoxFuture<http::Response<Body>, Infallible>;

impl Other {
    /// Wraps a generated server.
    pub fn new<S>(server: S) -> Self
    where
        S: Service<
                http::Request<Body>,
                Response = http::Response<Body>,
                Error = Infallible,
                Future = Running,
            > + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
    {
        Self { name: S::NAME, call: Box::new(move |request| server.clone().call(request)) }
    }
}

impl Dispatch {
    /// Dispatches to these services what `access` lets through, and counts the answers in `tally`.
    pub fn new(services: Services, access: Access, tally: Tally) -> Self {
        Self { services: Arc::new(services), access, tally }
    }
}

impl Dispatch {
    /// Whether this call may go on. Health may be asked by anybody: orchestrators have no tokens.
    // A status is as large as it is, and boxed by nobody who makes one.
    #[allow(clippy::result_large_err)]
    fn judge(&self, request: &mut http::Request<Body>) -> Result<(), Status> {
        let path = request.uri().path();
        if path.strip_prefix(HEALTH).is_some_and(|method| method.starts_with('/')) {
            return Ok(());
        }
        let mut extensions = std::mem::take(request.extensions_mut());
        let judged = self.access.judge(request.uri().path(), request.headers(), &mut extensions);
        *request.extensions_mut() = extensions;
        judged
    }
}

impl Service<http::Request<Body>> for Dispatch {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Answer {
        let services = &self.services;
        let end =
            deadline::timeout_of(request.headers()).and_then(|timeout| Instant::now().checked_add(timeout));
        let judged = self.judge(&mut request);
        let path = request.uri().path();
        let name = path.strip_prefix('/').and_then(|path| path.split_once('/')).map_or("", |(name, _)| name);
        let target = Target::named(name);
        if target == Target::Other {
            let stage = match services.others.iter().find(|other| other.name == name) {
                Some(other) => match judged {
                    Ok(()) => Stage::Running((other.call)(request)),
                    Err(status) => Stage::Refused(status),
                },
                None => Stage::Refused(Status::unimplemented(format!(
                    "`{path}` names no service of this server; ask its reflection service for those it has"
                ))),
            };
            return Answer { stage, end, call: None, _permit: None };
        }
        let call = self.tally.call(path, request.headers());
        if let Err(status) = judged {
            return Answer { stage: Stage::Refused(status), end, call, _permit: None };
        }
        let Some(permit) = services.gate.enter() else {
            let status = Status::resource_exhausted(format!(
                "the server has {} requests in flight, which is its limit (limits.requests_in_flight); try again in a moment",
                services.gate.limit()
            ));
            return Answer { stage: Stage::Refused(status), end, call, _permit: None };
        };
        let running = match target {
            Target::Data => services.data.clone().call(request),
            Target::Catalog => services.catalog.clone().call(request),
            Target::Admin => services.admin.clone().call(request),
            Target::Operations => services.operations.clone().call(request),
            Target::Batch => services.batch.clone().call(request),
            Target::Records => services.records.clone().call(request),
            Target::Stream | Target::Other => services.stream.clone().call(request),
        };
        Answer { stage: Stage::Running(running), end, call, _permit: Some(permit) }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Target {
    Data,
    Catalog,
    Admin,
    Stream,
    Operations,
    Batch,
    Records,
    Other,
}

impl Target {
    fn named(name: &str) -> Self {
        match name {
            _ if name == Data::NAME => Self::Data,
            _ if name == Catalog::NAME => Self::Catalog,
            _ if name == Admin::NAME => Self::Admin,
            _ if name == Stream::NAME => Self::Stream,
            _ if name == Operations::NAME => Self::Operations,
            _ if name == Batch::NAME => Self::Batch,
            _ if name == Records::NAME => Self::Records,
            _ => Self::Other,
        }
    }
}

/// The answer to one call, and the place it holds under the limit until it is given or dropped.
pub struct Answer {
    stage: Stage,
    /// When the call must have been answered.
    end: Option<Instant>,
    call: Option<Call>,
    _permit: Option<Permit>,
}

enum Stage {
    Running(Running),
    Refused(Status),
}

impl Future for Answer {
    type Output = Result<http::Response<Body>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let trace = self.call.as_ref().and_then(Call::trace);
        let answer = match &mut self.stage {
            Stage::Running(future) => match trace {
                None => future.as_mut().poll(context),
                Some(call) => within(&call, || future.as_mut().poll(context)),
            },
            Stage::Refused(status) => Poll::Ready(Ok(status.clone().into_http())),
        };
        let answer = match answer {
            Poll::Pending if self.end.is_some_and(|end| Instant::now() >= end) => {
                Poll::Ready(Ok(to_status(deadline::late()).into_http()))
            }
            answer => answer,
        };
        if let Poll::Ready(Ok(response)) = &answer
            && let Some(call) = self.call.take()
        {
            call.answered(response.headers());
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_service_names_when_dispatched_then_each_reaches_its_own() {
        for (name, target) in [
            ("payload.manager.services.v1.PayloadDataService", Target::Data),
            ("payload.manager.services.v1.PayloadCatalogService", Target::Catalog),
            ("payload.manager.services.v1.PayloadAdminService", Target::Admin),
            ("payload.manager.services.v1.PayloadStreamService", Target::Stream),
            ("payload.manager.operations.v1.PayloadOperationsService", Target::Operations),
            ("payload.manager.operations.v1.PayloadBatchService", Target::Batch),
            ("payload.manager.operations.v1.PayloadRecordsService", Target::Records),
            ("grpc.health.v1.Health", Target::Other),
            ("", Target::Other),
        ] {
            assert_eq!(Target::named(name), target, "{name}");
        }
    }
}
