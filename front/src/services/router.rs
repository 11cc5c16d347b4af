//! Carries a decoded request to its shard and brings the answer back. Shared by all services.
//!
//! A request goes to the shard that its id hashes to, or to every shard ([`Router::ask_all`]). Exactly one answer
//! comes back through a oneshot channel; a handler whose client hung up drops its end, and the shard's answer then
//! goes nowhere. A full lane is RESOURCE_EXHAUSTED at once: nothing is queued here.

use std::sync::Arc;

use payload_reactor::{Envelope, ReactorHandle, ReplySink};
use payload_types::reply::{Reply, ReplyResult};
use payload_types::request::Request;
use payload_types::{ErrorKind, NamespaceId, PayloadError, PayloadId, ShardIndex};
use tokio::sync::oneshot;

use crate::cluster::{Cluster, is_unknown};
use crate::deadline::{Deadline, late};
use crate::locate::Places;
use crate::mint::Mint;
use crate::object::ObjectTier;
use crate::telemetry;

/// The namespace that every caller is in until access control lands.
pub const NAMESPACE: NamespaceId = NamespaceId::DEFAULT;

/// What the handlers of all services share.
pub struct Router {
    reactor: ReactorHandle,
    shard_count: u16,
    /// Where ids and nonces come from.
    pub mint: Mint,
    /// Turns locations into names and paths.
    pub locator: Places,
    /// The nodes that share this one's catalog; `None`: there cannot be any.
    pub cluster: Option<Cluster>,
    /// The OBJECT tier; `None`: no store is configured.
    pub objects: Option<Arc<ObjectTier>>,
    /// `limits.allocate_wait` in milliseconds: how long an Allocate without a deadline waits for space.
    pub allocate_wait_ms: u64,
}

impl Router {
    /// A router to the shards behind `reactor`.
    pub fn new(
        reactor: ReactorHandle,
        locator: Places,
        cluster: Option<Cluster>,
        objects: Option<Arc<ObjectTier>>,
        allocate_wait_ms: u64,
    ) -> Self {
        let shard_count = reactor.shard_count();
        Self {
            reactor,
            shard_count,
            mint: Mint::new(shard_count),
            locator,
            cluster,
            objects,
            allocate_wait_ms,
        }
    }

    /// How many shards there are.
    pub fn shard_count(&self) -> u16 {
        self.shard_count
    }

    /// Asks the shard that owns the payload named by `request`. Where another node has that payload, the answer names it.
    ///
    /// # Errors
    /// As [`Router::ask`]; FAILED_PRECONDITION with the other node's name and address, or NOT_FOUND with the reason LOST;
    /// UNAVAILABLE when no shard knows the payload and the shared catalog cannot be asked.
    pub async fn ask_owner(
        &self,
        request: Request,
        deadline: Option<Deadline>,
    ) -> Result<Reply, PayloadError> {
        let id = request.routing_id().expect("requests about one payload carry its id");
        match self.ask_here(request, deadline).await {
            Err(error) => Err(self.elsewhere(id, error, deadline).await),
            answer => answer,
        }
    }

    /// What this node's shard answered, or, when it does not know the payload and another node has it, which one.
    pub async fn elsewhere(
        &self,
        id: PayloadId,
        error: PayloadError,
        deadline: Option<Deadline>,
    ) -> PayloadError {
        match &self.cluster {
            Some(cluster) if is_unknown(&error) => match cluster.find(id, deadline).await {
                Ok(found) => found.map_or(error, |found| found.elsewhere()),
                Err(unanswered) => unanswered,
            },
            _ => error,
        }
    }

    /// As [`Router::ask_owner`], of this node's payloads only.
    ///
    /// # Errors
    /// As [`Router::ask`].
    pub async fn ask_here(
        &self,
        request: Request,
        deadline: Option<Deadline>,
    ) -> Result<Reply, PayloadError> {
        let id = request.routing_id().expect("requests about one payload carry its id");
        self.ask(id.shard(self.shard_count), request, deadline).await
    }

    /// Asks one shard and waits for its answer.
    ///
    /// # Errors
    /// The shard's own; RESOURCE_EXHAUSTED when its lane is full; DEADLINE_EXCEEDED when it did not answer in time;
    /// UNAVAILABLE when the server stops.
    pub async fn ask(
        &self,
        shard: ShardIndex,
        request: Request,
        deadline: Option<Deadline>,
    ) -> Result<Reply, PayloadError> {
        let answer = self.submit(shard, request, deadline)?;
        self.hear(answer, deadline).await
    }

    /// Waits for the answer to what was posted.
    ///
    /// # Errors
    /// As [`Router::ask`].
    pub async fn hear(&self, answer: Posted, deadline: Option<Deadline>) -> Result<Reply, PayloadError> {
        let outcome = match deadline.and_then(|deadline| deadline.give_up) {
            None => answer.await,
            Some(give_up) => tokio::time::timeout_at(give_up, answer).await.map_err(|_late| late())?,
        };
        outcome.map_err(|_dropped| stopping())?
    }

    /// Asks every shard the same and gathers the answers, in the order of the shards.
    ///
    /// # Errors
    /// As [`Router::ask`]; the first one ends it.
    pub async fn ask_all(
        &self,
        request: &Request,
        deadline: Option<Deadline>,
    ) -> Result<Vec<Reply>, PayloadError> {
        let mut answers = Vec::with_capacity(usize::from(self.shard_count));
        for shard in 0..self.shard_count {
            answers.push(self.submit(ShardIndex(shard), request.clone(), deadline)?);
        }
        let gather = async {
            let mut replies = Vec::with_capacity(answers.len());
            for answer in answers {
                replies.push(answer.await.map_err(|_dropped| stopping())??);
            }
            Ok(replies)
        };
        match deadline.and_then(|deadline| deadline.give_up) {
            None => gather.await,
            Some(give_up) => tokio::time::timeout_at(give_up, gather).await.map_err(|_late| late())?,
        }
    }

    fn submit(
        &self,
        shard: ShardIndex,
        request: Request,
        deadline: Option<Deadline>,
    ) -> Result<Posted, PayloadError> {
        self.post(shard, request, deadline).map_err(|_full| lane_full())
    }

    /// Puts a request into a shard's lane.
    ///
    /// # Errors
    /// Hands the request back when the lane is full.
    // The request is as large as it is: handing it back costs nothing but on the rare full lane.
    #[allow(clippy::result_large_err)]
    pub fn post(
        &self,
        shard: ShardIndex,
        request: Request,
        deadline: Option<Deadline>,
    ) -> Result<Posted, Request> {
        let (sender, receiver) = oneshot::channel();
        // The receiver is gone when the client hung up: then nobody wants the answer.
        let reply: ReplySink = match telemetry::asked(shard, &request) {
            None => Box::new(move |result| drop(sender.send(result))),
            Some(asked) => Box::new(move |result| {
                asked.answered(&result);
                drop(sender.send(result));
            }),
        };
        let envelope = Envelope { request, deadline: deadline.map(|deadline| deadline.shard), reply };
        self.reactor.submit(shard, envelope).map(|()| receiver).map_err(|full| full.request)
    }
}

/// The answer to what was posted, once it is there.
pub type Posted = oneshot::Receiver<ReplyResult>;

/// The answer when a shard's lane is full.
pub fn lane_full() -> PayloadError {
    PayloadError::exhausted("the queue of the shard that owns this payload is full; try again in a moment")
}

/// The answer when a shard replied with something its request cannot have: a defect of ours.
pub fn mismatch(asked: &str, reply: &Reply) -> PayloadError {
    tracing::error!(asked, ?reply, "a shard gave the answer to another question");
    PayloadError::new(
        ErrorKind::Internal,
        format!("{asked}: the server's own parts disagree about the answer; please report this"),
    )
}

fn stopping() -> PayloadError {
    PayloadError::new(ErrorKind::Unavailable, "the server is stopping; call again once it is back")
}
