//! `PayloadDataService`: what readers call. Resolve, lease, release.

use std::sync::Arc;
use std::time::Duration;

use payload_drivers::object::Access;
use payload_types::reply::{LeaseGrant, Reply};
use payload_types::request::Request as Ask;
use payload_types::scrub::Scrub;
use payload_types::{Location, PayloadError, PayloadId, PayloadKey, Tier};
use payload_wire::pb::runtime::v1 as pb;
use payload_wire::pb::services::v1::payload_data_service_server::PayloadDataService;
use payload_wire::status::to_status;
use payload_wire::{decode, encode};
use tonic::{Request, Response, Status};

use super::router::{NAMESPACE, Router, mismatch};
use crate::cluster::is_unknown;
use crate::deadline::Deadline;
use crate::incoming::peer_of;
use crate::object::lease::{self, Readable};

/// See the module.
pub struct DataService {
    router: Arc<Router>,
}

impl DataService {
    /// Serves from the shards behind `router`.
    pub fn new(router: Arc<Router>) -> Self {
        Self { router }
    }

    /// A lease; of an object that is compressed once it was brought in, and with a URL to read it by where one is wanted.
    async fn lease(
        &self,
        ask: Ask,
        object_url: Duration,
        deadline: Option<Deadline>,
    ) -> Result<pb::AcquireReadLeaseResponse, PayloadError> {
        let id = ask.routing_id().expect("a lease is one payload's");
        let grant = match self.readable(ask, deadline).await {
            Ok(grant) => grant,
            Err(error) => return Err(lease::why(&self.router, id, error).await),
        };
        let mut answer = encode::leased(&grant, &self.router.locator);
        let objects = self.router.objects.as_ref();
        if let Some(objects) = objects.filter(|_| grant.descriptor.location == Some(Location::Object)) {
            answer.object_url = objects.sign(id, Access::Read, object_url).await?;
        }
        Ok(answer)
    }

    /// A lease of what the client can read.
    async fn readable(&self, ask: Ask, deadline: Option<Deadline>) -> Result<LeaseGrant, PayloadError> {
        let mut grant = self.grant(ask.clone(), deadline).await?;
        let id = grant.descriptor.id;
        if let Some(Location::Gpu(generation)) = grant.descriptor.location
            && self.router.locator.is_lost(id, generation)
        {
            grant = self.grant_elsewhere(&grant, ask.clone(), deadline).await?;
        }
        match lease::readable(&self.router, grant, ask, deadline).await? {
            Readable::InPlace(grant) => Ok(*grant),
            Readable::After(ask) => self.grant(*ask, deadline).await,
        }
    }

    /// A lease of another replica than this one, whose device is lost: its shard hears of that first.
    async fn grant_elsewhere(
        &self,
        lost: &LeaseGrant,
        ask: Ask,
        deadline: Option<Deadline>,
    ) -> Result<LeaseGrant, PayloadError> {
        let release = Ask::Release { lease: lost.lease, by: None };
        self.router.ask(lost.lease.shard(), release, deadline).await?;
        let key = PayloadKey { namespace: NAMESPACE, id: lost.descriptor.id };
        let scrub = Scrub { key, tier: Some(Tier::Gpu), bytes_per_second: 0, seen: Vec::new() };
        self.router.ask_here(Ask::Scrub(scrub), deadline).await?;
        self.grant(ask, deadline).await
    }

    async fn grant(&self, ask: Ask, deadline: Option<Deadline>) -> Result<LeaseGrant, PayloadError> {
        match self.router.ask_owner(ask, deadline).await? {
            Reply::Leased(grant) => Ok(grant),
            other => Err(mismatch("AcquireReadLease", &other)),
        }
    }

    /// The descriptor of what another node has, or else `error`, which is what this node's shard answered.
    async fn resolve_foreign(
        &self,
        id: Option<PayloadId>,
        error: PayloadError,
        deadline: Option<Deadline>,
    ) -> Result<pb::ResolveSnapshotResponse, PayloadError> {
        let (Some(id), Some(cluster)) = (id, &self.router.cluster) else { return Err(error) };
        if !is_unknown(&error) {
            return Err(error);
        }
        match cluster.find(id, deadline).await? {
            Some(found) if found.is_lost => Err(found.lost()),
            Some(found) => Ok(encode::resolved_foreign(&found)),
            None => Err(error),
        }
    }
}

#[tonic::async_trait]
impl PayloadDataService for DataService {
    async fn resolve_snapshot(
        &self,
        request: Request<pb::ResolveSnapshotRequest>,
    ) -> Result<Response<pb::ResolveSnapshotResponse>, Status> {
        let deadline = Deadline::of(request.metadata());
        let ask = decode::resolve(NAMESPACE, request.into_inner()).map_err(to_status)?;
        let id = ask.routing_id();
        match self.router.ask_here(ask, deadline).await {
            Ok(Reply::Resolved(descriptor)) => {
                Ok(Response::new(encode::resolved(&descriptor, &self.router.locator)))
            }
            Ok(other) => Err(to_status(mismatch("ResolveSnapshot", &other))),
            Err(error) => {
                self.resolve_foreign(id, error, deadline).await.map(Response::new).map_err(to_status)
            }
        }
    }

    async fn acquire_read_lease(
        &self,
        request: Request<pb::AcquireReadLeaseRequest>,
    ) -> Result<Response<pb::AcquireReadLeaseResponse>, Status> {
        let deadline = Deadline::of(request.metadata());
        let (nonce, owner) = (self.router.mint.lease_nonce(), peer_of(&request));
        let object_url = Duration::from_millis(request.get_ref().object_url_ms);
        let ask = decode::acquire(NAMESPACE, request.into_inner(), nonce, owner).map_err(to_status)?;
        self.lease(ask, object_url, deadline).await.map(Response::new).map_err(to_status)
    }

    async fn release_lease(&self, request: Request<pb::ReleaseLeaseRequest>) -> Result<Response<()>, Status> {
        let deadline = Deadline::of(request.metadata());
        let ask = decode::release(request.into_inner()).map_err(to_status)?;
        let Ask::Release { lease, .. } = ask else { return Ok(Response::new(())) };
        let shard = lease.shard();
        // A lease of a start with more shards, or of nobody: as good as released (idempotent).
        if shard.0 >= self.router.shard_count() {
            return Ok(Response::new(()));
        }
        match self.router.ask(shard, ask, deadline).await.map_err(to_status)? {
            Reply::Released => Ok(Response::new(())),
            other => Err(to_status(mismatch("ReleaseLease", &other))),
        }
    }
}
