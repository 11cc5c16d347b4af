//! LeaseSession: one client's leases over one stream, many wishes under way, all released when the stream ends.
//!
//! ```text
//! wishes --read while fewer than WISHES_MAX are under way--> shards --as they are ready--> answers
//! the client ends, dies or stops reading; the server stops --> what is under way is waited for --> all is released
//! ```
//! A slow reader fills the answers' channel; then no more wishes are read, and only its own stream stands still. Leases end
//! by their own time as all do; a session that forgets them keeps [`LEASES_MAX`] at most.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{self, FuturesUnordered};
use payload_reactor::clock;
use payload_types::{ErrorKind, LeaseId, PayloadError, Peer, WallMs};
use payload_wire::pb::operations::v1 as pb;
use payload_wire::pb::operations::v1::lease_session_request::Wish;
use payload_wire::status::to_status;
use payload_wire::{encode, ids};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::Stream;
use tonic::{Status, Streaming};

use super::{Leased, acquire, fan, release};
use crate::admission::{Gate, Permit};
use crate::deadline::Deadline;
use crate::services::router::Router;

/// Wishes of one session under way, and answers that wait for its reader: as many as a batch has under way.
const WISHES_MAX: usize = fan::ITEMS_AT_A_TIME_MAX;

/// Sessions of one server: 1,024 x (64 wishes of about 1 KiB + 64 answers of about 512 bytes) are 96 MiB at worst.
const SESSIONS_MAX: usize = 1024;

/// Leases that one session holds: a sixteenth of a shard's. 64 bytes each are 4 MiB.
const LEASES_MAX: usize = 65_536;

/// The longest that a wish may ask to wait.
const TIMEOUT_MAX: Duration = Duration::from_secs(86_400);

/// What a session's stream is served as.
pub type Answers = Pin<Box<dyn Stream<Item = Result<pb::LeaseSessionResponse, Status>> + Send>>;

/// The sessions of one server.
pub struct Sessions {
    gate: Gate,
}

impl Default for Sessions {
    fn default() -> Self {
        Self { gate: Gate::new(SESSIONS_MAX) }
    }
}

impl Sessions {
    /// Begins a session.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED when there are [`SESSIONS_MAX`].
    pub fn start(
        &self,
        router: &Arc<Router>,
        wishes: Streaming<pb::LeaseSessionRequest>,
        owner: Peer,
        stopping: watch::Receiver<bool>,
    ) -> Result<Answers, PayloadError> {
        let permit = self.gate.enter().ok_or_else(|| {
            PayloadError::exhausted(format!(
                "{SESSIONS_MAX} lease sessions are open, which is the most that this server holds; end one, or use AcquireReadLease"
            ))
        })?;
        let (answers, answered) = mpsc::channel(WISHES_MAX);
        let (ends, end) = oneshot::channel();
        let held = Held::default();
        let session = Session { router: Arc::clone(router), owner, held, _permit: permit };
        tokio::spawn(session.run(wishes, answers, stopping, ends));
        Ok(Box::pin(with_end(answered, end)))
    }
}

/// The answers, and then, whatever was read of them, how the session ended.
fn with_end(
    answered: mpsc::Receiver<pb::LeaseSessionResponse>,
    end: oneshot::Receiver<Status>,
) -> impl Stream<Item = Result<pb::LeaseSessionResponse, Status>> {
    stream::unfold((answered, Some(end)), async |(mut answered, end)| {
        let end = end?;
        match answered.recv().await {
            Some(answer) => Some((Ok(answer), (answered, Some(end)))),
            // Dropped unused where the client ended it.
            None => end.await.ok().map(|status| (Err(status), (answered, None))),
        }
    })
}

/// One session, in a task of its own.
struct Session {
    router: Arc<Router>,
    owner: Peer,
    held: Held,
    _permit: Permit,
}

/// A wish that was done.
struct Done {
    tag: u64,
    outcome: Result<Outcome, PayloadError>,
}

enum Outcome {
    Acquired(Box<Leased>),
    Released(LeaseId),
}

/// Why no more wishes are read.
enum End {
    /// The client has none: what is under way is still answered.
    Wished,
    /// Nobody reads the answers.
    Gone,
    /// The server ends it.
    Told(Status),
}

impl Session {
    async fn run(
        mut self,
        mut wishes: Streaming<pb::LeaseSessionRequest>,
        answers: mpsc::Sender<pb::LeaseSessionResponse>,
        mut stopping: watch::Receiver<bool>,
        ends: oneshot::Sender<Status>,
    ) {
        let router = Arc::clone(&self.router);
        let owner = self.owner;
        let mut stops = stopping.clone();
        let mut under_way = FuturesUnordered::new();
        let end = loop {
            tokio::select! {
                () = stop(&mut stops) => break End::Told(to_status(is_stopping())),
                () = answers.closed() => break End::Gone,
                Some(done) = under_way.next() => {
                    if let Some(end) = self.answer(done, &answers, &mut stopping).await {
                        break end;
                    }
                }
                wish = wishes.next(), if under_way.len() < WISHES_MAX => match wish {
                    Some(Ok(request)) => {
                        let refused = self.held.refusal(request.wish.as_ref());
                        under_way.push(grant(&router, owner, request, refused));
                    }
                    Some(Err(_broken)) => break End::Gone,
                    None => break End::Wished,
                },
            }
        };
        let mut told = None;
        match end {
            End::Wished => {
                while let Some(done) = under_way.next().await {
                    if let Some(end) = self.answer(done, &answers, &mut stopping).await {
                        told = if let End::Told(status) = end { Some(status) } else { None };
                        break;
                    }
                }
            }
            End::Gone => {}
            End::Told(status) => told = Some(status),
        }
        match told {
            Some(status) => {
                // Nobody listens where the client is gone.
                let _gone = ends.send(status);
                drop(answers);
                self.leave(under_way).await;
            }
            None => {
                // The client sees the end only once everything is released.
                self.leave(under_way).await;
                drop(answers);
            }
        }
    }

    /// Notes what is held now, and tells the client.
    async fn answer(
        &mut self,
        done: Done,
        answers: &mpsc::Sender<pb::LeaseSessionResponse>,
        stopping: &mut watch::Receiver<bool>,
    ) -> Option<End> {
        self.held.note(&done);
        let mut object_url = String::new();
        let outcome = done.outcome.map(|outcome| match outcome {
            Outcome::Acquired(leased) => {
                object_url = leased.object_url;
                Some(leased.grant)
            }
            Outcome::Released(_) => None,
        });
        let mut answer = encode::lease_session(done.tag, outcome, &self.router.locator);
        if let Some(pb::lease_session_response::Outcome::Acquired(acquired)) = &mut answer.outcome {
            acquired.object_url = object_url;
        }
        tokio::select! {
            sent = answers.send(answer) => sent.is_err().then_some(End::Gone),
            () = stop(stopping) => Some(End::Told(to_status(is_stopping()))),
        }
    }

    /// Waits for what is under way, and releases everything.
    async fn leave(mut self, mut under_way: FuturesUnordered<impl Future<Output = Done>>) {
        while let Some(done) = under_way.next().await {
            self.held.note(&done);
        }
        let router = &*self.router;
        let ask = |lease| async move {
            if let Err(error) = release(router, lease, None).await {
                // It ends by its own time.
                tracing::debug!(%error, "a lease of a session that ended could not be released");
            }
        };
        fan::out(self.held.into_leases().into_iter().map(ask).collect()).await;
    }
}

/// Waits until the server stops.
async fn stop(stopping: &mut watch::Receiver<bool>) {
    drop(stopping.wait_for(|stopping| *stopping).await);
}

/// Does one wish.
async fn grant(
    router: &Router,
    owner: Peer,
    request: pb::LeaseSessionRequest,
    refused: Option<PayloadError>,
) -> Done {
    let pb::LeaseSessionRequest { tag, wish, timeout_ms } = request;
    let limit = Duration::from_millis(timeout_ms).min(TIMEOUT_MAX);
    let deadline = (timeout_ms > 0).then(|| Deadline::after(limit));
    let outcome = match (refused, wish) {
        (Some(error), _) => Err(error),
        (None, Some(Wish::Acquire(item))) => {
            acquire(router, item, owner, deadline).await.map(|leased| Outcome::Acquired(Box::new(leased)))
        }
        (None, Some(Wish::Release(item))) => match ids::lease_id(item.lease_id.as_ref()) {
            Ok(lease) => release(router, lease, deadline).await.map(|()| Outcome::Released(lease)),
            Err(error) => Err(error),
        },
        (None, None) => Err(PayloadError::invalid(
            "a LeaseSessionRequest has neither `acquire` nor `release`; set one of them",
        )),
    };
    Done { tag, outcome }
}

/// The leases of one session, and when each ends by itself.
#[derive(Default)]
struct Held {
    leases: HashMap<LeaseId, WallMs>,
    /// None of them has ended before.
    first_end: Option<WallMs>,
}

impl Held {
    /// Why a wish is refused before any shard is asked.
    fn refusal(&mut self, wish: Option<&Wish>) -> Option<PayloadError> {
        let Some(Wish::Acquire(_)) = wish else { return None };
        if self.leases.len() < LEASES_MAX {
            return None;
        }
        let now = clock::now().wall;
        if self.first_end.is_none_or(|end| end <= now) {
            self.leases.retain(|_, end| *end > now);
            self.first_end = self.leases.values().min().copied();
        }
        (self.leases.len() >= LEASES_MAX).then(|| {
            PayloadError::exhausted(format!(
                "this session holds {LEASES_MAX} leases, which is the most of one session; release some, or open another"
            ))
        })
    }

    fn note(&mut self, done: &Done) {
        match &done.outcome {
            Ok(Outcome::Acquired(leased)) => {
                let grant = &leased.grant;
                self.leases.insert(grant.lease, grant.expires_at);
                self.first_end = self.first_end.map(|end| end.min(grant.expires_at));
            }
            Ok(Outcome::Released(lease)) => {
                self.leases.remove(lease);
            }
            Err(_) => {}
        }
    }

    fn into_leases(self) -> Vec<LeaseId> {
        self.leases.into_keys().collect()
    }
}

fn is_stopping() -> PayloadError {
    PayloadError::new(
        ErrorKind::Unavailable,
        "the server is stopping, and this session's leases end with it; open another once it is back",
    )
}
