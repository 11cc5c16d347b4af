//! BatchCommit: all of the payloads are committed in one transaction, or none is.
//!
//! ```text
//! gate --> every part to its shard --> sealed: its row goes to the catalog writer, which waits for all of them
//!                                  --> refused: the writer is told, and puts the others back
//! answers of all parts: committed, or each with its reason
//! ```
//! The work runs in a task of its own: a client that goes away changes nothing. The gate lets so many parts in, of all
//! batches together, that each has its slot, whatever shard it hashes to; batches wait at it in the order in which they come.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use payload_types::limits::{BATCH_PARTS_COUNTED_MIN, OPS_FOR_BATCHES};
use payload_types::reply::Reply;
use payload_types::request::Request;
use payload_types::{BatchId, BatchPart, Checksum, ErrorKind, PayloadError, PayloadId, PayloadKey};
use payload_wire::pb::operations::v1 as pb;
use payload_wire::pb::runtime::v1 as runtime;
use payload_wire::{decode, encode};
use tokio::sync::{Semaphore, watch};

use super::fan;
use crate::deadline::{Deadline, late};
use crate::records::Records;
use crate::services::router::{NAMESPACE, Router, mismatch};

/// Parts that are sent before others have their turn on the front's thread.
const PARTS_AT_ONCE: usize = 64;

/// One payload of a batch, or why it can never be.
type Part = Result<(PayloadKey, Option<Checksum>), PayloadError>;

/// See the module.
pub struct Commits {
    router: Arc<Router>,
    records: Arc<Records>,
    gate: Arc<Semaphore>,
    stopping: watch::Receiver<bool>,
    batches: AtomicU64,
}

/// Decodes a batch.
///
/// # Errors
/// INVALID_ARGUMENT when a payload is named twice. What is wrong with one item alone is in its place.
pub fn read(items: Vec<runtime::CommitPayloadRequest>) -> Result<Vec<Part>, PayloadError> {
    let mut seen = HashSet::with_capacity(items.len());
    let mut parts = Vec::with_capacity(items.len());
    for item in items {
        let part = match decode::commit(NAMESPACE, item) {
            Ok(Request::Commit { key, checksum, .. }) => Ok((key, checksum)),
            Ok(other) => Err(decoded_wrong(&other)),
            Err(error) => Err(error),
        };
        if let Ok((key, _)) = &part
            && !seen.insert(key.id)
        {
            return Err(PayloadError::invalid(format!(
                "payload {} is in the batch twice; name each payload once",
                key.id
            )));
        }
        parts.push(part);
    }
    Ok(parts)
}

impl Commits {
    /// Commits through these.
    pub fn new(router: Arc<Router>, records: Arc<Records>) -> Self {
        let stopping = records.hub().stopping();
        let gate = Arc::new(Semaphore::new(OPS_FOR_BATCHES));
        Self { router, records, gate, stopping, batches: AtomicU64::new(0) }
    }

    /// Commits a batch, or nothing of it.
    ///
    /// # Errors
    /// DEADLINE_EXCEEDED when it takes longer than the caller waits: it goes on. UNAVAILABLE when the server stops before the
    /// outcome is known.
    pub async fn commit(
        self: Arc<Self>,
        parts: Vec<Part>,
        deadline: Option<Deadline>,
    ) -> Result<pb::BatchCommitResponse, PayloadError> {
        if parts.iter().any(Result::is_err) {
            let results =
                parts.into_iter().map(|part| encode::batch_committed(not_sent(part), &self.router.locator));
            return Ok(pb::BatchCommitResponse { committed: false, results: results.collect() });
        }
        let parts = parts.into_iter().flatten().collect();
        let mut task = tokio::spawn(async move { self.settle(parts).await });
        let joined = match deadline.and_then(|deadline| deadline.give_up) {
            None => (&mut task).await,
            Some(give_up) => tokio::time::timeout_at(give_up, &mut task).await.map_err(|_late| late())?,
        };
        joined.unwrap_or_else(|_ended| Err(unknown()))
    }

    /// Does it, however long it takes.
    async fn settle(
        &self,
        parts: Vec<(PayloadKey, Option<Checksum>)>,
    ) -> Result<pb::BatchCommitResponse, PayloadError> {
        let counted = parts.len().max(BATCH_PARTS_COUNTED_MIN);
        // At most 1,000 of 1,024: it fits once others are done. The gate is never closed.
        let _inside = self.gate.acquire_many(counted as u32).await.map_err(|_closed| unknown())?;
        let batch = BatchId(self.batches.fetch_add(1, Ordering::Relaxed));
        let answers = self.send(batch, parts).await;
        let is_committed = answers.iter().all(Result::is_ok);
        let is_unknown = |answer: &Result<Reply, PayloadError>| {
            answer.as_ref().is_err_and(|error| error.kind == ErrorKind::Unavailable)
        };
        // A shard that stops answers before it has heard from the catalog. No other part is committed without the rest.
        if !is_committed
            && (answers.iter().any(Result::is_ok)
                || (*self.stopping.borrow() && answers.iter().any(is_unknown)))
        {
            return Err(unknown());
        }
        let locator = &self.router.locator;
        let results = answers.into_iter().map(|answer| {
            let answer = answer.and_then(|reply| match reply {
                Reply::Committed(descriptor) => Ok(descriptor),
                other => Err(mismatch("BatchCommit", &other)),
            });
            encode::batch_committed(answer, locator)
        });
        Ok(pb::BatchCommitResponse { committed: is_committed, results: results.collect() })
    }

    /// Sends every part, and waits until each is answered; refuses the batch at the first refusal.
    async fn send(
        &self,
        batch: BatchId,
        parts: Vec<(PayloadKey, Option<Checksum>)>,
    ) -> Vec<Result<Reply, PayloadError>> {
        let len = u32::try_from(parts.len()).expect("at most 1,000");
        let keys: Vec<PayloadKey> = parts.iter().map(|(key, _)| *key).collect();
        let mut answers: Vec<Result<Reply, PayloadError>> = Vec::with_capacity(parts.len());
        let mut under_way = FuturesUnordered::new();
        let mut is_refused = false;
        for (index, (key, checksum)) in parts.into_iter().enumerate() {
            answers.push(Err(put_back(key.id)));
            if is_refused {
                continue;
            }
            let shard = key.id.shard(self.router.shard_count());
            let ask = Request::Commit { key, checksum, batch: Some(BatchPart { batch, len }) };
            match fan::post(&self.router, shard, ask, None).await {
                Ok(posted) => {
                    under_way.push(async move { (index, self.router.hear(posted, None).await) });
                }
                Err(error) => {
                    answers[index] = Err(error);
                    is_refused = true;
                }
            }
            if index % PARTS_AT_ONCE == PARTS_AT_ONCE - 1 {
                tokio::task::yield_now().await;
            }
        }
        if is_refused {
            self.records.batch_refused(batch);
        }
        while let Some((index, answer)) = under_way.next().await {
            if answer.is_err() && !is_refused {
                is_refused = true;
                self.records.batch_refused(batch);
            }
            answers[index] = match answer {
                Err(error) => Err(self.router.elsewhere(keys[index].id, error, None).await),
                answer => answer,
            };
        }
        if is_refused {
            self.records.batch_answered(batch);
        }
        answers
    }
}

/// What is said of a part of a batch that was not sent to any shard.
fn not_sent(part: Part) -> Result<payload_types::Descriptor, PayloadError> {
    part.and_then(|(key, _)| Err(put_back(key.id)))
}

fn put_back(id: PayloadId) -> PayloadError {
    PayloadError::new(
        ErrorKind::LeaseConflict,
        format!(
            "payload {id} was not committed, because another one of its batch was refused; it is as it was"
        ),
    )
}

fn unknown() -> PayloadError {
    PayloadError::new(
        ErrorKind::Unavailable,
        "the server is stopping, and whether the batch was committed is not known: all of it is, or nothing; resolve one of its payloads once the server is back",
    )
}

fn decoded_wrong(other: &Request) -> PayloadError {
    tracing::error!(?other, "a commit was decoded as something else");
    PayloadError::new(ErrorKind::Internal, "BatchCommit: a commit was misread; please report this")
}

#[cfg(test)]
mod tests {
    use payload_wire::ids;

    use super::*;

    fn item(number: u8) -> runtime::CommitPayloadRequest {
        let id = PayloadId::from_bytes([number; 16]);
        runtime::CommitPayloadRequest { id: Some(ids::payload_id_to_pb(id)), checksum_xxh3_64: None }
    }

    #[test]
    fn given_a_payload_twice_when_read_then_the_batch_is_refused_and_else_each_item_alone() {
        let twice = read(vec![item(1), item(2), item(1)]).expect_err("twice");
        assert_eq!(twice.kind, ErrorKind::InvalidArgument);
        let parts = read(vec![item(1), runtime::CommitPayloadRequest::default()]).expect("one is bad alone");
        assert!(parts[0].is_ok());
        assert_eq!(parts[1].as_ref().expect_err("no id").kind, ErrorKind::InvalidArgument);
    }
}
