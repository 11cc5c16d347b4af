//! `PayloadStreamService`: streams of payloads, kept by the catalog.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::stream;
use payload_reactor::clock;
use payload_types::record::{RecordAnswer, RecordChange, RecordOutcome, RecordQuery, StreamName};
use payload_types::{ErrorKind, PayloadError, PayloadId, PayloadState, limits};
use payload_wire::pb::operations::v1 as own;
use payload_wire::pb::runtime::v1 as pb;
use payload_wire::pb::services::v1::payload_stream_service_server::PayloadStreamService;
use payload_wire::status::to_status;
use payload_wire::{decode, encode};
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use crate::access::audit::Asked;
use crate::deadline::Deadline;
use crate::records::subscription::Subscription;
use crate::records::{Records, absent, disagreement, holds, overdue, stream_absent, stream_of};
use crate::repeats::RequestId;

/// See the module.
pub struct StreamService {
    records: Arc<Records>,
}

impl StreamService {
    /// Serves from the catalog behind `records`.
    pub fn new(records: Arc<Records>) -> Self {
        Self { records }
    }

    /// As [`change`].
    async fn change(
        &self,
        rpc: &str,
        change: RecordChange,
        deadline: Option<Deadline>,
    ) -> Result<RecordOutcome, PayloadError> {
        self::change(&self.records, rpc, change, deadline).await
    }

    async fn create(
        &self,
        request: pb::CreateStreamRequest,
        deadline: Option<Deadline>,
    ) -> Result<(), PayloadError> {
        if request.retain_payloads {
            self.records.holds().check_room()?;
        }
        let change = decode::stream_create(request, clock::now().wall)?;
        match self.change("CreateStream", change, deadline).await? {
            RecordOutcome::Done | RecordOutcome::Floored(_) => Ok(()),
            RecordOutcome::StreamExists => Err(PayloadError::new(
                ErrorKind::AlreadyExists,
                "there is a stream of this name; append to it, or delete it first",
            )),
            other => Err(disagreement("CreateStream", &other)),
        }
    }

    /// Entries as a query asks for them, and whether they are all.
    async fn entries(
        &self,
        rpc: &str,
        query: RecordQuery,
        deadline: Option<Deadline>,
    ) -> Result<(Vec<pb::StreamEntry>, bool), PayloadError> {
        let RecordQuery::StreamRead { stream, from, to, .. } = &query else {
            return Err(disagreement(rpc, &query));
        };
        let stream = stream.clone();
        let query = if from > to { RecordQuery::Stream(stream.clone()) } else { query };
        match self.records.query(query, deadline).await? {
            RecordAnswer::Entries(_, entries, more) => {
                let (entries, complete) = encode::stream_entries(&stream, entries);
                Ok((entries, complete && !more))
            }
            RecordAnswer::Stream(_) => Ok((Vec::new(), true)),
            RecordAnswer::StreamNotFound => Err(stream_absent(&stream)),
            other => Err(disagreement(rpc, &other)),
        }
    }

    async fn range(
        &self,
        request: pb::GetRangeRequest,
        deadline: Option<Deadline>,
    ) -> Result<pb::GetRangeResponse, PayloadError> {
        let query = decode::stream_range(request, clock::now().wall)?;
        match self.entries("GetRange", query, deadline).await? {
            (entries, true) => Ok(pb::GetRangeResponse { entries }),
            (_, false) => Err(PayloadError::exhausted(format!(
                "the range has more than {} entries or {} bytes, which one answer cannot hold; page through it with Read, or with smaller ranges",
                limits::STREAM_READ_MAX,
                limits::MESSAGE_BYTES_MAX
            ))),
        }
    }

    async fn group_commit(
        &self,
        request: pb::CommitRequest,
        deadline: Option<Deadline>,
    ) -> Result<(), PayloadError> {
        let offset = request.offset;
        let change = decode::stream_commit(request, clock::now().wall)?;
        match self.change("Commit", change, deadline).await? {
            RecordOutcome::Done => Ok(()),
            RecordOutcome::Floored(floor) => {
                self.records.holds().wait(floor.stream, deadline).await;
                Ok(())
            }
            RecordOutcome::BeyondEnd { end } => Err(PayloadError::invalid(format!(
                "offset is {offset}, and the stream ends at {end}; commit the offset that the group wants next, {end} at most"
            ))),
            other => Err(disagreement("Commit", &other)),
        }
    }

    async fn group_committed(
        &self,
        request: pb::GetCommittedRequest,
        deadline: Option<Deadline>,
    ) -> Result<pb::GetCommittedResponse, PayloadError> {
        let query = decode::stream_committed(request)?;
        let RecordQuery::Committed { stream, .. } = &query else {
            return Err(disagreement("GetCommitted", &query));
        };
        let stream = stream.clone();
        match self.records.query(query, deadline).await? {
            RecordAnswer::Committed(offset) => Ok(pb::GetCommittedResponse {
                offset: offset.unwrap_or_default(),
                committed: offset.is_some(),
            }),
            RecordAnswer::StreamNotFound => Err(stream_absent(&stream)),
            other => Err(disagreement("GetCommitted", &other)),
        }
    }
}

/// ListConsumerGroups.
pub async fn groups(
    records: &Records,
    request: own::ListConsumerGroupsRequest,
    deadline: Option<Deadline>,
) -> Result<own::ListConsumerGroupsResponse, PayloadError> {
    let query = decode::group_list(request)?;
    let RecordQuery::Groups { stream, .. } = &query else {
        return Err(disagreement("ListConsumerGroups", &query));
    };
    let stream = stream.clone();
    match records.query(query, deadline).await? {
        RecordAnswer::Groups(groups, more) => Ok(encode::groups(groups, more)),
        RecordAnswer::StreamNotFound => Err(stream_absent(&stream)),
        other => Err(disagreement("ListConsumerGroups", &other)),
    }
}

/// RemoveConsumerGroup: answered once the shards know what is held no more.
pub async fn group_remove(
    records: &Records,
    request: own::RemoveConsumerGroupRequest,
    deadline: Option<Deadline>,
) -> Result<own::RemoveConsumerGroupResponse, PayloadError> {
    let group = request.consumer_group.clone();
    let made = decode::group_remove(request)?;
    match change(records, "RemoveConsumerGroup", made, deadline).await? {
        RecordOutcome::Done => Ok(own::RemoveConsumerGroupResponse { retained_from_offset: None }),
        RecordOutcome::Floored(floor) => {
            records.holds().wait(floor.stream, deadline).await;
            Ok(own::RemoveConsumerGroupResponse { retained_from_offset: Some(floor.floor) })
        }
        RecordOutcome::GroupNotFound => Err(PayloadError::new(
            ErrorKind::NotFound,
            format!("the stream has no group `{group}`; ListConsumerGroups says which there are"),
        )),
        other => Err(disagreement("RemoveConsumerGroup", &other)),
    }
}

/// Makes a change of a stream.
async fn change(
    records: &Records,
    rpc: &str,
    change: RecordChange,
    deadline: Option<Deadline>,
) -> Result<RecordOutcome, PayloadError> {
    let stream = stream_of(&change).cloned();
    let outcome = records.change(change, deadline).await?;
    judged(records, rpc, outcome, stream, deadline).await
}

/// What a change of `stream` met, where that is no error.
async fn judged(
    records: &Records,
    rpc: &str,
    outcome: RecordOutcome,
    stream: Option<StreamName>,
    deadline: Option<Deadline>,
) -> Result<RecordOutcome, PayloadError> {
    match (outcome, stream) {
        (RecordOutcome::StreamNotFound, Some(stream)) => Err(stream_absent(&stream)),
        (RecordOutcome::NotCommitted(id), _) => Err(uncommitted(id)),
        (RecordOutcome::NotFound(id) | RecordOutcome::Lost(id), _) => {
            Err(match records.resolve(id, deadline).await {
                Ok(found) if is_uncommitted(found.state) => uncommitted(id),
                // Streams keep it beyond its ttl: with a hold of its own it can be appended.
                Ok(found) if overdue(&found).is_some() => return Ok(RecordOutcome::NotHeld),
                Ok(_) => absent(id),
                Err(error) => error,
            })
        }
        (
            outcome @ (RecordOutcome::Done
            | RecordOutcome::Floored(_)
            | RecordOutcome::Appended { .. }
            | RecordOutcome::AppendedHeld { .. }
            | RecordOutcome::NotHeld
            | RecordOutcome::StreamExists
            | RecordOutcome::GroupNotFound
            | RecordOutcome::BeyondEnd { .. }),
            _,
        ) => Ok(outcome),
        (other, _) => Err(disagreement(rpc, &other)),
    }
}

/// Appends; where the stream retains payloads, with a hold on them from before.
async fn store(
    records: &Arc<Records>,
    request: pb::AppendRequest,
    call: Option<&RequestId>,
    deadline: Option<Deadline>,
) -> Result<pb::AppendResponse, PayloadError> {
    let made = decode::stream_append(request, clock::now().wall)?;
    let RecordChange::StreamAppend { stream, items, at, .. } = made.clone() else {
        return Err(disagreement("Append", &made));
    };
    let mut outcome = RecordOutcome::NotHeld;
    if !records.holds().retains(&stream) {
        outcome = change(records, "Append", RequestId::wrap(call, made, at), deadline).await?;
    }
    if outcome == RecordOutcome::NotHeld {
        let append = holds::Append { stream: stream.clone(), items, at, call: call.cloned() };
        outcome = holds::append(records, append, deadline).await?;
        outcome = judged(records, "Append", outcome, Some(stream), deadline).await?;
    }
    match outcome {
        RecordOutcome::Appended { first, last } | RecordOutcome::AppendedHeld { first, last, .. } => {
            Ok(pb::AppendResponse { first_offset: first, last_offset: last })
        }
        other => Err(disagreement("Append", &other)),
    }
}

fn is_uncommitted(state: PayloadState) -> bool {
    matches!(state, PayloadState::Allocated | PayloadState::Committing)
}

fn uncommitted(id: PayloadId) -> PayloadError {
    PayloadError::precondition(format!("payload {id} is not committed; commit it, then append it"))
}

#[tonic::async_trait]
impl PayloadStreamService for StreamService {
    type SubscribeStream = Pin<Box<dyn Stream<Item = Result<pb::SubscribeResponse, Status>> + Send>>;

    async fn create_stream(&self, request: Request<pb::CreateStreamRequest>) -> Result<Response<()>, Status> {
        let deadline = Deadline::of(request.metadata());
        self.create(request.into_inner(), deadline).await.map(Response::new).map_err(to_status)
    }

    async fn delete_stream(&self, request: Request<pb::DeleteStreamRequest>) -> Result<Response<()>, Status> {
        let asked = Asked::by(&request);
        let deadline = Deadline::of(request.metadata());
        let stream = request.get_ref().stream.clone().unwrap_or_default();
        let change = decode::stream_delete(request.into_inner()).map_err(to_status)?;
        let answer = match self.change("DeleteStream", change, deadline).await.map_err(to_status) {
            Ok(RecordOutcome::Done) => Ok(Response::new(())),
            Ok(RecordOutcome::Floored(floor)) => {
                self.records.holds().wait(floor.stream, deadline).await;
                Ok(Response::new(()))
            }
            Ok(other) => Err(to_status(disagreement("DeleteStream", &other))),
            Err(status) => Err(status),
        };
        asked.told("delete-stream", format_args!("{:?}/{:?}", stream.namespace, stream.name), answer)
    }

    async fn append(
        &self,
        request: Request<pb::AppendRequest>,
    ) -> Result<Response<pb::AppendResponse>, Status> {
        let deadline = Deadline::of(request.metadata());
        let request_id = RequestId::of("Append", request.metadata(), request.get_ref()).map_err(to_status)?;
        let (records, request) = (Arc::clone(&self.records), request.into_inner());
        let patience = deadline.map(|deadline| deadline.of_work(request_id.is_some()));
        let call = request_id.clone();
        let work = async move { store(&records, request, call.as_ref(), patience).await };
        let answer = self.records.repeats.once(request_id, deadline, work).await;
        answer.map(Response::new).map_err(to_status)
    }

    async fn read(&self, request: Request<pb::ReadRequest>) -> Result<Response<pb::ReadResponse>, Status> {
        let deadline = Deadline::of(request.metadata());
        let query = decode::stream_read(request.into_inner(), clock::now().wall).map_err(to_status)?;
        let (entries, _) = self.entries("Read", query, deadline).await.map_err(to_status)?;
        Ok(Response::new(pb::ReadResponse { entries }))
    }

    async fn subscribe(
        &self,
        request: Request<pb::SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let deadline = Deadline::of(request.metadata());
        let parts = decode::stream_subscribe(request.into_inner()).map_err(to_status)?;
        let start = Subscription::start(Arc::clone(&self.records), parts, deadline);
        let subscription = start.await.map_err(to_status)?;
        // After an error there is nothing more: the stream ends with it.
        let entries = stream::unfold(Some(subscription), async |subscription| {
            let mut subscription = subscription?;
            match subscription.next().await {
                Ok(entry) => Some((Ok(pb::SubscribeResponse { entry: Some(entry) }), Some(subscription))),
                Err(error) => Some((Err(to_status(error)), None)),
            }
        });
        Ok(Response::new(Box::pin(entries)))
    }

    async fn commit(&self, request: Request<pb::CommitRequest>) -> Result<Response<()>, Status> {
        let deadline = Deadline::of(request.metadata());
        self.group_commit(request.into_inner(), deadline).await.map(Response::new).map_err(to_status)
    }

    async fn get_committed(
        &self,
        request: Request<pb::GetCommittedRequest>,
    ) -> Result<Response<pb::GetCommittedResponse>, Status> {
        let deadline = Deadline::of(request.metadata());
        self.group_committed(request.into_inner(), deadline).await.map(Response::new).map_err(to_status)
    }

    async fn get_range(
        &self,
        request: Request<pb::GetRangeRequest>,
    ) -> Result<Response<pb::GetRangeResponse>, Status> {
        let deadline = Deadline::of(request.metadata());
        self.range(request.into_inner(), deadline).await.map(Response::new).map_err(to_status)
    }
}
