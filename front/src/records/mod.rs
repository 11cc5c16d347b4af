//! Metadata, lineage and streams: straight to the catalog, past the shards.
//!
//! ```text
//! service --RecordChange--> catalog writer (one FIFO) --after commit--> reply, and a knock at the stream's subscribers
//!         --RecordQuery---> catalog readers ---------------------------> reply
//!         --Resolve, Enrol--> shard of a payload that has no row: it is allocated, or it is not there
//! ```
//!
//! Streams that retain payloads are [`holds`]'s.
//!
//! Nothing is queued here: what the writer or the readers have no room for is RESOURCE_EXHAUSTED at once. A handler whose
//! client hung up leaves its change to be made and its answer unheard.

pub mod holds;
pub mod hub;
pub mod look;
pub mod subscription;

use std::future::Future;
use std::sync::Arc;

use payload_catalog::{ReadersHandle, WriterHandle};
use payload_reactor::clock;
use payload_types::record::{RecordAnswer, RecordChange, RecordOutcome, RecordQuery, StreamName};
use payload_types::reply::Reply;
use payload_types::request::Request;
use payload_types::{BatchId, Descriptor, ErrorKind, PayloadError, PayloadId, PayloadKey, WallMs};
use tokio::sync::oneshot;

use crate::cluster::is_unknown;
use crate::deadline::{Deadline, late};
use crate::records::holds::Holds;
use crate::records::hub::Hub;
use crate::repeats::Repeats;
use crate::services::Router;
use crate::services::router::{NAMESPACE, mismatch};

/// The way to what the catalog keeps beside payload rows.
pub struct Records {
    writer: WriterHandle,
    readers: ReadersHandle,
    router: Arc<Router>,
    hub: Arc<Hub>,
    holds: Arc<Holds>,
    /// Calls that carry a request id.
    pub repeats: Repeats,
}

impl Records {
    /// Asks these.
    pub fn new(writer: WriterHandle, readers: ReadersHandle, router: Arc<Router>, holds: Arc<Holds>) -> Self {
        Self { writer, readers, router, hub: Arc::new(Hub::default()), holds, repeats: Repeats::default() }
    }

    /// Streams that retain payloads.
    pub fn holds(&self) -> &Holds {
        &self.holds
    }

    /// The way to the shards.
    pub fn router(&self) -> &Router {
        &self.router
    }

    /// Who follows streams.
    pub fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// Makes a change and waits until it is durable. Subscribers of the stream that it changed are told.
    ///
    /// # Errors
    /// The writer's own; DEADLINE_EXCEEDED when it did not answer in time; UNAVAILABLE when the server stops: whether the
    /// change was made is unknown then.
    pub async fn change(
        &self,
        change: RecordChange,
        deadline: Option<Deadline>,
    ) -> Result<RecordOutcome, PayloadError> {
        let (sender, receiver) = oneshot::channel();
        let followed = stream_changed(&change).map(|stream| (Arc::clone(&self.hub), stream.clone()));
        let stream = stream_of(&change).cloned();
        let holds = Arc::clone(&self.holds);
        let reply = Box::new(move |result: Result<RecordOutcome, PayloadError>| {
            if let Ok(outcome) = &result {
                holds.heard(stream.as_ref(), outcome);
            }
            if let (Some((hub, stream)), Ok(_)) = (followed, &result) {
                hub.changed(&stream);
            }
            // The receiver is gone when the client hung up: then nobody wants the answer.
            drop(sender.send(result));
        });
        let repeated = if let RecordChange::Once { id, .. } = &change { Some(id.clone()) } else { None };
        self.writer.submit_record(change, reply).map_err(|refused| refused.error)?;
        match (within(deadline, receiver).await?, repeated) {
            (RecordOutcome::UsedBefore, Some(id)) => Err(used_before(&id)),
            (outcome, _) => Ok(outcome),
        }
    }

    /// As [`Records::change`], for a change that may refer to payloads which are not committed yet: `ids` are all that it
    /// refers to. The outcome is neither `NotFound` nor `Lost`.
    ///
    /// # Errors
    /// As [`Records::change`], and the shard's own for a payload that is not there.
    pub async fn change_of(
        &self,
        ids: impl Iterator<Item = PayloadId>,
        change: RecordChange,
        deadline: Option<Deadline>,
    ) -> Result<RecordOutcome, PayloadError> {
        if let Some(id) = change_target(&change) {
            self.refuse_lost(id, deadline).await?;
        }
        let outcome = self.change(change.clone(), deadline).await?;
        let (RecordOutcome::NotFound(_) | RecordOutcome::Lost(_)) = outcome else { return Ok(outcome) };
        for id in ids {
            known_elsewhere(self.enrol(id, deadline).await)?;
        }
        let outcome = self.change(change.clone(), deadline).await?;
        let (RecordOutcome::NotFound(id) | RecordOutcome::Lost(id)) = outcome else { return Ok(outcome) };
        if overdue(&self.resolve(id, deadline).await?).is_none() {
            return Err(absent(id));
        }
        match self.change(RecordChange::Vouched(Box::new(change)), deadline).await? {
            RecordOutcome::NotFound(id) | RecordOutcome::Lost(id) => Err(absent(id)),
            outcome => Ok(outcome),
        }
    }

    /// As [`Records::query`], about this payload: one that streams keep beyond its ttl is there.
    ///
    /// # Errors
    /// As [`Records::query`].
    pub async fn query_of(
        &self,
        id: PayloadId,
        mut query: RecordQuery,
        deadline: Option<Deadline>,
    ) -> Result<RecordAnswer, PayloadError> {
        let answer = self.query(query.clone(), deadline).await?;
        let (RecordAnswer::NotFound(_), Ok(found)) = (&answer, self.resolve(id, deadline).await) else {
            return Ok(answer);
        };
        let (
            Some(end),
            RecordQuery::Metadata { at, .. }
            | RecordQuery::MetadataEvents { at, .. }
            | RecordQuery::Lineage { at, .. },
        ) = (overdue(&found), &mut query)
        else {
            return Ok(answer);
        };
        // The time is asked for nothing but whether the payload has expired.
        *at = WallMs::from_millis(end.as_millis().saturating_sub(1));
        self.query(query, deadline).await
    }

    /// A shard refused its part of a batch; see `WriterHandle::batch_refused`.
    pub fn batch_refused(&self, batch: BatchId) {
        self.writer.batch_refused(batch);
    }

    /// All parts of a refused batch were answered.
    pub fn batch_answered(&self, batch: BatchId) {
        self.writer.batch_answered(batch);
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// The readers' own; DEADLINE_EXCEEDED, UNAVAILABLE as [`Records::change`].
    pub async fn query(
        &self,
        query: RecordQuery,
        deadline: Option<Deadline>,
    ) -> Result<RecordAnswer, PayloadError> {
        ask(&self.readers, query, deadline).await
    }

    /// What the shard knows of a payload that the catalog has no row of.
    ///
    /// # Errors
    /// NOT_FOUND, with the reason where it is LOST.
    pub async fn resolve(
        &self,
        id: PayloadId,
        deadline: Option<Deadline>,
    ) -> Result<Descriptor, PayloadError> {
        let key = PayloadKey { namespace: NAMESPACE, id };
        match self.router.ask_here(Request::Resolve { key }, deadline).await? {
            Reply::Resolved(descriptor) => Ok(descriptor),
            other => Err(mismatch("ResolveSnapshot", &other)),
        }
    }

    /// Refuses a payload whose bytes did not survive a restart: its shard found that out at the start, the catalog's row
    /// does not say so. Where other nodes use the catalog, too, a payload that this node's shards do not know may be theirs.
    ///
    /// # Errors
    /// NOT_FOUND with the reason LOST.
    pub async fn refuse_lost(&self, id: PayloadId, deadline: Option<Deadline>) -> Result<(), PayloadError> {
        known_elsewhere(self.resolve(id, deadline).await.map(drop))
    }

    /// Sees to it that a payload has a row.
    async fn enrol(&self, id: PayloadId, deadline: Option<Deadline>) -> Result<(), PayloadError> {
        let key = PayloadKey { namespace: NAMESPACE, id };
        match self.router.ask_here(Request::Enrol { key }, deadline).await? {
            Reply::Enrolled => Ok(()),
            other => Err(mismatch("Enrol", &other)),
        }
    }
}

/// Lets pass that this node's shards do not know a payload: another node's may, and the catalog tells. That it is LOST is
/// no such thing; the word is the contract's (behaviour.md, "Everywhere").
fn known_elsewhere(answer: Result<(), PayloadError>) -> Result<(), PayloadError> {
    match answer {
        Err(error) if is_unknown(&error) => Ok(()),
        answer => answer,
    }
}

/// When the ttl of a payload ended that its shard keeps all the same, because streams do.
pub fn overdue(found: &Descriptor) -> Option<WallMs> {
    found.expires_at.filter(|end| *end <= clock::now().wall)
}

/// The stream that a change is of.
pub fn stream_of(change: &RecordChange) -> Option<&StreamName> {
    match change {
        RecordChange::StreamCreate { stream, .. }
        | RecordChange::StreamDelete { stream }
        | RecordChange::StreamAppend { stream, .. }
        | RecordChange::StreamCommit { stream, .. }
        | RecordChange::GroupRemove { stream, .. } => Some(stream),
        RecordChange::Vouched(change) | RecordChange::Once { change, .. } => stream_of(change),
        RecordChange::MetadataUpdate { .. }
        | RecordChange::MetadataNote { .. }
        | RecordChange::LineageAdd { .. }
        | RecordChange::Upload(_)
        | RecordChange::Sweep { .. } => None,
    }
}

/// The payload that a change of metadata or lineage names first.
fn change_target(change: &RecordChange) -> Option<PayloadId> {
    match change {
        RecordChange::MetadataUpdate { key, .. }
        | RecordChange::MetadataNote { key, .. }
        | RecordChange::LineageAdd { child: key, .. } => Some(key.id),
        RecordChange::Vouched(change) | RecordChange::Once { change, .. } => change_target(change),
        RecordChange::StreamCreate { .. }
        | RecordChange::StreamDelete { .. }
        | RecordChange::StreamAppend { .. }
        | RecordChange::StreamCommit { .. }
        | RecordChange::GroupRemove { .. }
        | RecordChange::Upload(_)
        | RecordChange::Sweep { .. } => None,
    }
}

/// As [`Repeats`] answers where it remembers the call itself.
fn used_before(id: &str) -> PayloadError {
    PayloadError::invalid(format!(
        "x-request-id of `{id}` was used for another request before; take a new id for a new request"
    ))
}

/// The stream whose subscribers are told of a change.
fn stream_changed(change: &RecordChange) -> Option<&StreamName> {
    match change {
        RecordChange::StreamAppend { stream, .. } | RecordChange::StreamDelete { stream } => Some(stream),
        RecordChange::Vouched(change) | RecordChange::Once { change, .. } => stream_changed(change),
        RecordChange::MetadataUpdate { .. }
        | RecordChange::MetadataNote { .. }
        | RecordChange::LineageAdd { .. }
        | RecordChange::StreamCreate { .. }
        | RecordChange::StreamCommit { .. }
        | RecordChange::GroupRemove { .. }
        | RecordChange::Upload(_)
        | RecordChange::Sweep { .. } => None,
    }
}

/// Asks the readers of the catalog, and waits for the answer.
///
/// # Errors
/// The readers' own; DEADLINE_EXCEEDED when they did not answer in time; UNAVAILABLE when the server stops.
pub async fn ask(
    readers: &ReadersHandle,
    query: RecordQuery,
    deadline: Option<Deadline>,
) -> Result<RecordAnswer, PayloadError> {
    let (sender, receiver) = oneshot::channel();
    readers.submit(query, Box::new(move |answer| drop(sender.send(answer))))?;
    within(deadline, receiver).await
}

/// What arrives through `answer`, if it does in time.
async fn within<T>(
    deadline: Option<Deadline>,
    answer: impl Future<Output = Result<Result<T, PayloadError>, oneshot::error::RecvError>>,
) -> Result<T, PayloadError> {
    let answer = match deadline.and_then(|deadline| deadline.give_up) {
        None => answer.await,
        Some(give_up) => tokio::time::timeout_at(give_up, answer).await.map_err(|_late| late())?,
    };
    answer.map_err(|_dropped| {
        PayloadError::new(
            ErrorKind::Unavailable,
            "the server stopped before the catalog had answered; whether a change was made is not known: look once it is back",
        )
    })?
}

/// The answer when shard and catalog disagree for a moment: it is being deleted.
pub fn absent(id: PayloadId) -> PayloadError {
    PayloadError::new(
        ErrorKind::NotFound,
        format!("payload {id} is not there: it was deleted, or it has expired"),
    )
}

/// The answer when there is no such stream.
pub fn stream_absent(stream: &StreamName) -> PayloadError {
    PayloadError::new(
        ErrorKind::NotFound,
        format!(
            "there is no stream `{}` in namespace `{}`; create it with CreateStream",
            stream.name, stream.namespace
        ),
    )
}

/// The answer when the catalog said something that the question cannot have: a defect of ours.
pub fn disagreement(asked: &str, met: &impl std::fmt::Debug) -> PayloadError {
    tracing::error!(asked, ?met, "the catalog gave the answer to another question");
    PayloadError::new(
        ErrorKind::Internal,
        format!("{asked}: the server's own parts disagree about the answer; please report this"),
    )
}
