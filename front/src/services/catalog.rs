//! `PayloadCatalogService`: lifecycle, placement, metadata and lineage.

use std::sync::Arc;
use std::time::Duration;

use payload_drivers::object::Access;
use payload_reactor::clock;
use payload_types::reply::Reply;
use payload_types::request::Request as Ask;
use payload_types::{PayloadKey, Tier};
use payload_wire::pb::catalog::v1 as pb_catalog;
use payload_wire::pb::runtime::v1 as pb;
use payload_wire::pb::services::v1::payload_catalog_service_server::PayloadCatalogService;
use payload_wire::status::to_status;
use payload_wire::{decode, encode};
use tonic::{Request, Response, Status};

use super::router::{NAMESPACE, Router, mismatch};
use super::{metadata, spill};
use crate::access::audit::Asked;
use crate::access::{self, Role};
use crate::cluster;
use crate::deadline::{Deadline, late};
use crate::incoming::peer_of;
use crate::object;
use crate::records::Records;
use crate::repeats::RequestId;

/// See the module.
pub struct CatalogService {
    router: Arc<Router>,
    records: Arc<Records>,
}

impl CatalogService {
    /// Serves from the shards behind `router`, and from the catalog behind `records`.
    pub fn new(router: Arc<Router>, records: Arc<Records>) -> Self {
        Self { router, records }
    }
}

#[tonic::async_trait]
impl PayloadCatalogService for CatalogService {
    async fn allocate_payload(
        &self,
        request: Request<pb::AllocatePayloadRequest>,
    ) -> Result<Response<pb::AllocatePayloadResponse>, Status> {
        let deadline = Deadline::of(request.metadata())
            .unwrap_or_else(|| Deadline::of_server(self.router.allocate_wait_ms));
        let request_id =
            RequestId::of("AllocatePayload", request.metadata(), request.get_ref()).map_err(to_status)?;
        let upload_url = Duration::from_millis(request.get_ref().upload_url_ms);
        let parts = decode::allocate(request.into_inner(), clock::now().wall).map_err(to_status)?;
        let router = Arc::clone(&self.router);
        let patience = deadline.of_work(request_id.is_some());
        let work = async move {
            let (id, shard) = router.mint.payload_id();
            let ask = Ask::Allocate(parts.into_allocate(PayloadKey { namespace: NAMESPACE, id }));
            match router.ask(shard, ask, Some(patience)).await? {
                Reply::Allocated(descriptor) => {
                    let mut answer = encode::allocated(&descriptor, &router.locator);
                    if let Some(objects) = router.objects.as_ref().filter(|_| descriptor.tier == Tier::Object)
                    {
                        // What a client uploads past the server has to be known after a restart, too.
                        let key = PayloadKey { namespace: NAMESPACE, id };
                        router.ask(shard, Ask::Enrol { key }, Some(patience)).await?;
                        answer.upload_url = objects.sign(id, Access::Write, upload_url).await?;
                    }
                    Ok(answer)
                }
                other => Err(mismatch("AllocatePayload", &other)),
            }
        };
        let answer = self.records.repeats.once(request_id, Some(deadline), work).await;
        answer.map(Response::new).map_err(to_status)
    }

    async fn commit_payload(
        &self,
        request: Request<pb::CommitPayloadRequest>,
    ) -> Result<Response<pb::CommitPayloadResponse>, Status> {
        let deadline = Deadline::of(request.metadata());
        let request_id =
            RequestId::of("CommitPayload", request.metadata(), request.get_ref()).map_err(to_status)?;
        let ask = decode::commit(NAMESPACE, request.into_inner()).map_err(to_status)?;
        let router = Arc::clone(&self.router);
        let patience = deadline.map(|deadline| deadline.of_work(request_id.is_some()));
        let work = async move {
            match router.ask_owner(ask, patience).await? {
                Reply::Committed(descriptor) => Ok(encode::committed(&descriptor, &router.locator)),
                other => Err(mismatch("CommitPayload", &other)),
            }
        };
        let answer = self.records.repeats.once(request_id, deadline, work).await;
        answer.map(Response::new).map_err(to_status)
    }

    async fn delete(&self, request: Request<pb::DeleteRequest>) -> Result<Response<()>, Status> {
        let asked = Asked::by(&request);
        let deadline = Deadline::of(request.metadata());
        let is_forced = request.get_ref().force;
        let allowed = match is_forced {
            true => access::needs(&request, Role::Operator, "a forced Delete"),
            false => Ok(()),
        };
        let ask = decode::delete(NAMESPACE, request.into_inner()).map_err(to_status)?;
        let id = ask.routing_id().expect("a Delete is of one payload");
        let answer = match allowed {
            Err(status) => Err(status),
            Ok(()) => match self.router.ask_owner(ask, deadline).await.map_err(to_status) {
                Ok(Reply::Deleted) => Ok(Response::new(())),
                Ok(other) => Err(to_status(mismatch("Delete", &other))),
                Err(status) => Err(status),
            },
        };
        asked.told(if is_forced { "force-delete" } else { "delete" }, id, answer)
    }

    async fn promote(
        &self,
        request: Request<pb::PromoteRequest>,
    ) -> Result<Response<pb::PromoteResponse>, Status> {
        let deadline = Deadline::of(request.metadata());
        let ask = decode::promote(NAMESPACE, request.into_inner()).map_err(to_status)?;
        match self.router.ask_owner(ask, deadline).await.map_err(to_status)? {
            Reply::Promoted(descriptor) => {
                Ok(Response::new(encode::promoted(&descriptor, &self.router.locator)))
            }
            other => Err(to_status(mismatch("Promote", &other))),
        }
    }

    async fn spill(&self, request: Request<pb::SpillRequest>) -> Result<Response<pb::SpillResponse>, Status> {
        let deadline = Deadline::of(request.metadata());
        spill::spill(&self.router, request.into_inner(), deadline).await.map(Response::new)
    }

    async fn prefetch(&self, request: Request<pb::PrefetchRequest>) -> Result<Response<()>, Status> {
        let deadline = Deadline::of(request.metadata());
        let ask = decode::prefetch(NAMESPACE, request.into_inner()).map_err(to_status)?;
        match self.router.ask_owner(ask, deadline).await.map_err(to_status)? {
            Reply::Prefetching => Ok(Response::new(())),
            other => Err(to_status(mismatch("Prefetch", &other))),
        }
    }

    async fn pin(&self, request: Request<pb::PinRequest>) -> Result<Response<()>, Status> {
        let deadline = Deadline::of(request.metadata());
        let owner = peer_of(&request);
        let ask = decode::pin(NAMESPACE, request.into_inner(), owner).map_err(to_status)?;
        match self.router.ask_owner(ask, deadline).await.map_err(to_status)? {
            Reply::Pinned => Ok(Response::new(())),
            other => Err(to_status(mismatch("Pin", &other))),
        }
    }

    async fn unpin(&self, request: Request<pb::UnpinRequest>) -> Result<Response<()>, Status> {
        let deadline = Deadline::of(request.metadata());
        let ask = decode::unpin(NAMESPACE, request.into_inner()).map_err(to_status)?;
        match self.router.ask_owner(ask, deadline).await.map_err(to_status)? {
            Reply::Unpinned => Ok(Response::new(())),
            other => Err(to_status(mismatch("Unpin", &other))),
        }
    }

    async fn list_payloads(
        &self,
        request: Request<pb::ListPayloadsRequest>,
    ) -> Result<Response<pb::ListPayloadsResponse>, Status> {
        let deadline = Deadline::of(request.metadata());
        let parts = decode::list(NAMESPACE, request.into_inner()).map_err(to_status)?;
        let mut pages = Vec::new();
        for reply in self.router.ask_all(&Ask::List(parts.list.clone()), deadline).await.map_err(to_status)? {
            let Reply::Page(page) = reply else { return Err(to_status(mismatch("ListPayloads", &reply))) };
            pages.push(page);
        }
        let listed = cluster::merged(self.router.cluster.as_ref(), pages, &parts.list, deadline).await;
        let mut listed = listed.map_err(to_status)?;
        let pages = std::mem::take(&mut listed.pages);
        Ok(Response::new(encode::page(&parts, pages, |id| listed.node(id))))
    }

    async fn add_lineage(
        &self,
        request: Request<pb_catalog::AddLineageRequest>,
    ) -> Result<Response<()>, Status> {
        let deadline = Deadline::of(request.metadata());
        let request = request.into_inner();
        let child = payload_wire::ids::payload_id(request.child.as_ref());
        let answer = metadata::lineage_add(&self.records, request, deadline).await;
        if let (Ok(_), Ok(child), Some(objects)) = (&answer, child, &self.router.objects) {
            objects.retell(child);
        }
        answer.map(Response::new).map_err(to_status)
    }

    async fn get_lineage(
        &self,
        request: Request<pb_catalog::GetLineageRequest>,
    ) -> Result<Response<pb_catalog::GetLineageResponse>, Status> {
        let deadline = Deadline::of(request.metadata());
        let answer = metadata::lineage_get(&self.records, request.into_inner(), deadline).await;
        answer.map(Response::new).map_err(to_status)
    }

    async fn update_payload_metadata(
        &self,
        request: Request<pb_catalog::UpdatePayloadMetadataRequest>,
    ) -> Result<Response<pb_catalog::UpdatePayloadMetadataResponse>, Status> {
        let deadline = Deadline::of(request.metadata());
        let request_id = RequestId::of("UpdatePayloadMetadata", request.metadata(), request.get_ref())
            .map_err(to_status)?;
        let (records, request) = (Arc::clone(&self.records), request.into_inner());
        let patience = deadline.map(|deadline| deadline.of_work(request_id.is_some()));
        let call = request_id.clone();
        let id = payload_wire::ids::payload_id(request.id.as_ref());
        let work = async move { metadata::update(&records, request, call.as_ref(), patience).await };
        let answer = self.records.repeats.once(request_id, deadline, work).await;
        if let (Ok(_), Ok(id), Some(objects)) = (&answer, id, &self.router.objects) {
            objects.retell(id);
        }
        answer.map(Response::new).map_err(to_status)
    }

    async fn append_payload_metadata_event(
        &self,
        request: Request<pb_catalog::AppendPayloadMetadataEventRequest>,
    ) -> Result<Response<pb_catalog::AppendPayloadMetadataEventResponse>, Status> {
        let deadline = Deadline::of(request.metadata());
        let request_id = RequestId::of("AppendPayloadMetadataEvent", request.metadata(), request.get_ref())
            .map_err(to_status)?;
        let (records, request) = (Arc::clone(&self.records), request.into_inner());
        let patience = deadline.map(|deadline| deadline.of_work(request_id.is_some()));
        let call = request_id.clone();
        let work = async move { metadata::note(&records, request, call.as_ref(), patience).await };
        let answer = self.records.repeats.once(request_id, deadline, work).await;
        answer.map(Response::new).map_err(to_status)
    }

    async fn import_payload(
        &self,
        request: Request<pb::ImportPayloadRequest>,
    ) -> Result<Response<pb::ImportPayloadResponse>, Status> {
        let deadline = Deadline::of(request.metadata());
        let parts = decode::import(NAMESPACE, request.into_inner()).map_err(to_status)?;
        let Some(objects) = &self.router.objects else { return Err(to_status(object::unconfigured())) };
        let work = objects.import(&self.router, parts, deadline);
        // The store may take its time; the client's deadline is for all of it.
        let imported = match deadline.and_then(|deadline| deadline.give_up) {
            None => work.await,
            Some(end) => tokio::time::timeout_at(end, work).await.unwrap_or_else(|_late| Err(late())),
        };
        let descriptor = imported.map_err(to_status)?;
        Ok(Response::new(pb::ImportPayloadResponse {
            payload_descriptor: Some(encode::descriptor(&descriptor, &self.router.locator)),
        }))
    }
}
