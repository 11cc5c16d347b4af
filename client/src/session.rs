//! [`LeaseSession`]: leases and releases over one stream, as many under way as the caller has futures waiting.
//!
//! ```text
//! acquire, release --wish, tag--> stream to the server        server --answer, tag--> reader task --> who waits
//! ```
//! The server releases what a session holds when its stream ends, however it ends: by [`LeaseSession::close`], by dropping the
//! session, by the end of this process. Leases end by their own time as well.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use payload_types::{LeaseId, PayloadId};
use payload_wire::pb::operations::v1 as operations;
use payload_wire::pb::operations::v1::lease_session_request::Wish;
use payload_wire::pb::operations::v1::lease_session_response::Outcome;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Streaming};

use crate::batch::empty;
use crate::client::{AcquireOptions, Client, encode_acquire, encode_release};
use crate::descriptor::Lease;
use crate::error::ClientError;

/// Wishes that are not answered: twice as many as the server has under way for one session. More wait in their callers, not
/// in the server's windows: HTTP/2 ends a connection that fills them with small messages.
const WISHES_UNANSWERED_MAX: usize = 128;

/// An open session. Its methods may be called by many tasks at a time.
#[derive(Debug)]
pub struct LeaseSession {
    wishes: mpsc::Sender<operations::LeaseSessionRequest>,
    unanswered: Semaphore,
    waiting: Arc<Mutex<Waiting>>,
    reader: JoinHandle<()>,
}

type Answer = Result<Outcome, ClientError>;

/// Who waits for which answer.
#[derive(Debug, Default)]
struct Waiting {
    tag_last: u64,
    answers: HashMap<u64, oneshot::Sender<Answer>>,
    /// Why the session has ended.
    ended: Option<String>,
}

impl Client {
    /// Opens a session. The client's deadline, if it has one, is that of the whole session.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED when the server holds as many sessions as it may, and those of the connection.
    pub async fn lease_session(&self) -> Result<LeaseSession, ClientError> {
        let (wishes, sent) = mpsc::channel(WISHES_UNANSWERED_MAX);
        let stream = self.request(ReceiverStream::new(sent));
        let answers = self.answer(self.batches().lease_session(stream).await)?;
        let waiting = Arc::<Mutex<Waiting>>::default();
        let reader = tokio::spawn(read(self.clone(), answers, Arc::clone(&waiting)));
        let unanswered = Semaphore::new(WISHES_UNANSWERED_MAX);
        Ok(LeaseSession { wishes, unanswered, waiting, reader })
    }
}

impl LeaseSession {
    /// Leases a replica for reading, as `Client::acquire_read_lease` does.
    ///
    /// # Errors
    /// As behaviour.md says of AcquireReadLease; RESOURCE_EXHAUSTED when the session holds as many leases as it may;
    /// UNAVAILABLE when it has ended.
    pub async fn acquire(&self, id: PayloadId, options: &AcquireOptions) -> Result<Lease, ClientError> {
        self.lease(id, options, None).await
    }

    /// As [`acquire`](Self::acquire), waiting no longer than `timeout`, in whole milliseconds, at least one.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire); DEADLINE_EXCEEDED.
    pub async fn acquire_within(
        &self,
        id: PayloadId,
        options: &AcquireOptions,
        timeout: Duration,
    ) -> Result<Lease, ClientError> {
        self.lease(id, options, Some(timeout)).await
    }

    async fn lease(
        &self,
        id: PayloadId,
        options: &AcquireOptions,
        timeout: Option<Duration>,
    ) -> Result<Lease, ClientError> {
        match self.wish(Wish::Acquire(encode_acquire(id, options)), timeout).await? {
            Outcome::Acquired(lease) => Lease::decode(lease),
            Outcome::Released(()) | Outcome::Error(_) => Err(empty()),
        }
    }

    /// Ends a lease; one that ended already is fine.
    ///
    /// # Errors
    /// UNAVAILABLE when the session has ended: then its leases have, too.
    pub async fn release(&self, lease: LeaseId) -> Result<(), ClientError> {
        match self.wish(Wish::Release(encode_release(lease)), None).await? {
            Outcome::Released(()) => Ok(()),
            Outcome::Acquired(_) | Outcome::Error(_) => Err(empty()),
        }
    }

    /// Ends the session, and returns when the server has released all that it held.
    ///
    /// # Errors
    /// Why it had ended before.
    pub async fn close(self) -> Result<(), ClientError> {
        let Self { wishes, waiting, reader, unanswered: _ } = self;
        drop(wishes);
        // Fails only when the runtime ends, which ends the connection as well.
        let _ended = reader.await;
        let reason = lock(&waiting).ended.take();
        match reason {
            Some(reason) if reason != CLOSED => Err(ended(&reason)),
            _ => Ok(()),
        }
    }

    async fn wish(&self, wish: Wish, timeout: Option<Duration>) -> Answer {
        let _place = self.unanswered.acquire().await.map_err(|_closed| ended(CLOSED))?;
        let (sender, answer) = oneshot::channel();
        let tag = {
            let mut waiting = lock(&self.waiting);
            if let Some(reason) = &waiting.ended {
                return Err(ended(reason));
            }
            waiting.tag_last += 1;
            let tag = waiting.tag_last;
            waiting.answers.insert(tag, sender);
            tag
        };
        let timeout_ms =
            timeout.map_or(0, |timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX).max(1));
        let request = operations::LeaseSessionRequest { tag, wish: Some(wish), timeout_ms };
        // When nobody takes it any more the reader has said, or will say, why.
        let _gone = self.wishes.send(request).await;
        answer.await.unwrap_or_else(|_| Err(ended("its connection was closed")))
    }
}

/// How a session ends that was closed.
const CLOSED: &str = "it was closed";

/// Hands each answer to who waits for it, until the stream ends.
async fn read(
    client: Client,
    mut answers: Streaming<operations::LeaseSessionResponse>,
    waiting: Arc<Mutex<Waiting>>,
) {
    let reason = loop {
        match client.answer(answers.message().await.map(Response::new)) {
            Ok(Some(operations::LeaseSessionResponse { tag, outcome })) => {
                let answer = match outcome {
                    Some(Outcome::Error(error)) => Err(client.refusal(error)),
                    Some(outcome) => Ok(outcome),
                    None => Err(empty()),
                };
                let waits = lock(&waiting).answers.remove(&tag);
                if let Some(waits) = waits {
                    // Who gave up leaves a lease that the session's end releases.
                    let _gave_up = waits.send(answer);
                }
            }
            Ok(None) => break CLOSED.to_owned(),
            Err(error) => break error.to_string(),
        }
    };
    let mut waiting = lock(&waiting);
    for (_, waits) in waiting.answers.drain() {
        let _gave_up = waits.send(Err(ended(&reason)));
    }
    waiting.ended = Some(reason);
}

fn ended(reason: &str) -> ClientError {
    ClientError::Server {
        kind: payload_types::ErrorKind::Unavailable,
        message: format!("the lease session has ended, and its leases with it: {reason}"),
    }
}

fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    // Each change of it is one call: it is whole whenever the lock is free.
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}
