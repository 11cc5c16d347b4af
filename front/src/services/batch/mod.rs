//! `PayloadBatchService`: for many payloads what the contract's services do for one.
//!
//! ```text
//! BatchAllocate, BatchAcquire, BatchRelease: items --fan--> their shards, some at a time --> one result each, in order
//! BatchCommit: items --commits--> their shards, all of them --> catalog writer, one transaction --> one result each
//! LeaseSession: wishes --session--> their shards, some at a time --> answers as they are ready
//! ```
//! An item that can never be right is refused in its own result; only a batch of no or too many items is refused whole.

mod commit;
mod fan;
mod session;

use std::sync::Arc;
use std::time::Duration;

use payload_drivers::object::Access;
use payload_reactor::clock;
use payload_types::limits::BATCH_ITEMS_MAX;
use payload_types::reply::{LeaseGrant, Reply};
use payload_types::request::Request as Ask;
use payload_types::{LeaseId, Location, PayloadError, PayloadKey, Peer};
use payload_wire::pb::operations::v1 as pb;
use payload_wire::pb::operations::v1::payload_batch_service_server::PayloadBatchService;
use payload_wire::pb::runtime::v1 as runtime;
use payload_wire::status::to_status;
use payload_wire::{decode, encode, ids};
use tonic::{Request, Response, Status, Streaming};

use super::router::{NAMESPACE, Router, mismatch};
use crate::deadline::Deadline;
use crate::incoming::peer_of;
use crate::object::lease::{self, Readable};
use crate::records::Records;
use crate::repeats::RequestId;
use commit::Commits;
use session::Sessions;

/// See the module.
pub struct BatchService {
    router: Arc<Router>,
    records: Arc<Records>,
    commits: Arc<Commits>,
    sessions: Sessions,
}

impl BatchService {
    /// Serves from the shards behind `router`, and commits through the catalog writer behind `records`.
    pub fn new(router: Arc<Router>, records: Arc<Records>) -> Self {
        let commits = Arc::new(Commits::new(Arc::clone(&router), Arc::clone(&records)));
        Self { router, records, commits, sessions: Sessions::default() }
    }
}

/// Refuses a batch of none or too many.
fn check_len(rpc: &str, len: usize) -> Result<(), PayloadError> {
    if (1..=BATCH_ITEMS_MAX).contains(&len) {
        return Ok(());
    }
    Err(PayloadError::invalid(format!(
        "{rpc} has {len} items; send 1 to {BATCH_ITEMS_MAX}, and more in further calls"
    )))
}

/// One item of BatchAllocate.
async fn allocate(
    router: &Router,
    item: runtime::AllocatePayloadRequest,
    deadline: Deadline,
) -> Result<runtime::AllocatePayloadResponse, PayloadError> {
    let parts = decode::allocate(item, clock::now().wall)?;
    let (id, shard) = router.mint.payload_id();
    let ask = Ask::Allocate(parts.into_allocate(PayloadKey { namespace: NAMESPACE, id }));
    match fan::ask(router, shard, ask, Some(deadline)).await? {
        Reply::Allocated(descriptor) => Ok(encode::allocated(&descriptor, &router.locator)),
        other => Err(mismatch("BatchAllocate", &other)),
    }
}

/// A lease, and a URL to read its object by, where one was wanted.
struct Leased {
    grant: LeaseGrant,
    object_url: String,
}

/// One item of BatchAcquire, or one wish of a session.
async fn acquire(
    router: &Router,
    item: runtime::AcquireReadLeaseRequest,
    owner: Peer,
    deadline: Option<Deadline>,
) -> Result<Leased, PayloadError> {
    let good_for = Duration::from_millis(item.object_url_ms);
    let ask = decode::acquire(NAMESPACE, item, router.mint.lease_nonce(), owner)?;
    let id = ask.routing_id().expect("a lease is one payload's");
    let grant = match grant(router, ask, deadline).await {
        Ok(grant) => grant,
        Err(error) => return Err(lease::why(router, id, error).await),
    };
    let objects = router.objects.as_ref().filter(|_| grant.descriptor.location == Some(Location::Object));
    let object_url = match objects {
        Some(objects) => objects.sign(id, Access::Read, good_for).await?,
        None => String::new(),
    };
    Ok(Leased { grant, object_url })
}

/// A lease of what a client can read.
async fn grant(router: &Router, ask: Ask, deadline: Option<Deadline>) -> Result<LeaseGrant, PayloadError> {
    let granted = |reply| match reply {
        Reply::Leased(grant) => Ok(grant),
        other => Err(mismatch("BatchAcquire", &other)),
    };
    let grant = granted(fan::ask_owner(router, ask.clone(), deadline).await?)?;
    match lease::readable(router, grant, ask, deadline).await? {
        Readable::InPlace(grant) => Ok(*grant),
        Readable::After(ask) => granted(fan::ask_owner(router, *ask, deadline).await?),
    }
}

/// Ends one lease. One of a start with more shards, or of nobody, is as good as released.
async fn release(router: &Router, lease: LeaseId, deadline: Option<Deadline>) -> Result<(), PayloadError> {
    let shard = lease.shard();
    if shard.0 >= router.shard_count() {
        return Ok(());
    }
    match fan::ask(router, shard, Ask::Release { lease, by: None }, deadline).await? {
        Reply::Released => Ok(()),
        other => Err(mismatch("BatchRelease", &other)),
    }
}

fn is_any_allocated(response: &pb::BatchAllocateResponse) -> bool {
    let is_allocated = |result: &pb::BatchAllocateResult| {
        matches!(result.outcome, Some(pb::batch_allocate_result::Outcome::Allocated(_)))
    };
    response.results.iter().any(is_allocated)
}

#[tonic::async_trait]
impl PayloadBatchService for BatchService {
    type LeaseSessionStream = session::Answers;

    async fn batch_allocate(
        &self,
        request: Request<pb::BatchAllocateRequest>,
    ) -> Result<Response<pb::BatchAllocateResponse>, Status> {
        let deadline = Deadline::of(request.metadata())
            .unwrap_or_else(|| Deadline::of_server(self.router.allocate_wait_ms));
        let request_id =
            RequestId::of("BatchAllocate", request.metadata(), request.get_ref()).map_err(to_status)?;
        let items = request.into_inner().items;
        check_len("BatchAllocate", items.len()).map_err(to_status)?;
        let router = Arc::clone(&self.router);
        let patience = deadline.of_work(request_id.is_some());
        let work = async move {
            let router = &*router;
            let ask = |item| async move { encode::batch_allocated(allocate(router, item, patience).await) };
            Ok(pb::BatchAllocateResponse { results: fan::out(items.into_iter().map(ask).collect()).await })
        };
        // A batch of which nothing was allocated is tried again when it is repeated, as a refused Allocate is.
        let kept = is_any_allocated;
        let answer = self.records.repeats.once_if(request_id, Some(deadline), kept, work).await;
        answer.map(Response::new).map_err(to_status)
    }

    async fn batch_commit(
        &self,
        request: Request<pb::BatchCommitRequest>,
    ) -> Result<Response<pb::BatchCommitResponse>, Status> {
        let deadline = Deadline::of(request.metadata());
        let request_id =
            RequestId::of("BatchCommit", request.metadata(), request.get_ref()).map_err(to_status)?;
        let items = request.into_inner().items;
        check_len("BatchCommit", items.len()).map_err(to_status)?;
        let batch = commit::read(items).map_err(to_status)?;
        let patience = deadline.map(|deadline| deadline.of_work(request_id.is_some()));
        let work = Arc::clone(&self.commits).commit(batch, patience);
        let kept = |response: &pb::BatchCommitResponse| response.committed;
        let answer = self.records.repeats.once_if(request_id, deadline, kept, work).await;
        answer.map(Response::new).map_err(to_status)
    }

    async fn batch_acquire(
        &self,
        request: Request<pb::BatchAcquireRequest>,
    ) -> Result<Response<pb::BatchAcquireResponse>, Status> {
        let deadline = Deadline::of(request.metadata());
        let owner = peer_of(&request);
        let items = request.into_inner().items;
        check_len("BatchAcquire", items.len()).map_err(to_status)?;
        let router = &*self.router;
        let ask = |item| async move {
            let leased = acquire(router, item, owner, deadline).await;
            let (grant, object_url) = match leased {
                Ok(Leased { grant, object_url }) => (Ok(grant), object_url),
                Err(error) => (Err(error), String::new()),
            };
            let mut result = encode::batch_acquired(grant, &router.locator);
            if let Some(pb::batch_acquire_result::Outcome::Acquired(acquired)) = &mut result.outcome {
                acquired.object_url = object_url;
            }
            result
        };
        let results = fan::out(items.into_iter().map(ask).collect()).await;
        Ok(Response::new(pb::BatchAcquireResponse { results }))
    }

    async fn batch_release(
        &self,
        request: Request<pb::BatchReleaseRequest>,
    ) -> Result<Response<pb::BatchReleaseResponse>, Status> {
        let deadline = Deadline::of(request.metadata());
        let leases = request.into_inner().lease_ids;
        check_len("BatchRelease", leases.len()).map_err(to_status)?;
        let router = &*self.router;
        let ask = |lease| async move {
            let result = match ids::lease_id(Some(&lease)) {
                Ok(lease) => release(router, lease, deadline).await,
                Err(error) => Err(error),
            };
            encode::batch_released(result)
        };
        let results = fan::out(leases.into_iter().map(ask).collect()).await;
        Ok(Response::new(pb::BatchReleaseResponse { results }))
    }

    async fn lease_session(
        &self,
        request: Request<Streaming<pb::LeaseSessionRequest>>,
    ) -> Result<Response<Self::LeaseSessionStream>, Status> {
        let owner = peer_of(&request);
        let stopping = self.records.hub().stopping();
        self.sessions
            .start(&self.router, request.into_inner(), owner, stopping)
            .map(Response::new)
            .map_err(to_status)
    }
}
