//! Scrub: walks the payloads, shard by shard and page by page, asks their shards to verify them one at a time, and
//! streams how far it is and what it finds.
//!
//! ```text
//! Request::List --> ids, newest first --Request::Scrub--> shard --> driver (keeps the pace) --> findings --> stream
//! ```
//! One task a stream, which ends when its client is gone: between two payloads, or while it waits for one. What was
//! made meanwhile is newer than the cursor and not looked at: it has just been written.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use payload_types::limits::LIST_PAGE_MAX;
use payload_types::reply::Reply;
use payload_types::request::{List, Request};
use payload_types::scrub::{Scrub, ScrubVerdict};
use payload_types::{ErrorKind, PayloadError, PayloadId, PayloadKey, ShardIndex, Tier};
use payload_wire::decode::ScrubParts;
use payload_wire::encode;
use payload_wire::pb::operations::v1 as pb;
use payload_wire::pb::operations::v1::scrub_response::Event;
use payload_wire::status::to_status;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::router::{NAMESPACE, Router, mismatch};

/// What a scrub reads a second when it is not told: a twentieth of what the disks of FACTS.md can.
pub const BYTES_PER_SECOND_DEFAULT: u64 = 100_000_000;

/// Messages that wait for a slow client before the scrub waits for it too.
const MESSAGES_WAITING_MAX: usize = 16;

/// Progress is told so often.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// A shard that has no room for another request is asked again after so long.
const FULL_PAUSE: Duration = Duration::from_millis(100);

/// What the stream is served as.
pub type ScrubStream = Pin<Box<dyn Stream<Item = Result<pb::ScrubResponse, Status>> + Send>>;

/// Starts a scrub.
pub fn start(router: Arc<Router>, wanted: ScrubParts) -> ScrubStream {
    let (messages, stream) = mpsc::channel(MESSAGES_WAITING_MAX);
    let mut walk =
        Walk { router, wanted, messages, progress: pb::ScrubProgress::default(), told: Instant::now() };
    tokio::spawn(async move {
        let gone = walk.messages.clone();
        tokio::select! {
            () = gone.closed() => {}
            () = walk.run() => {}
        }
    });
    Box::pin(ReceiverStream::new(stream))
}

struct Walk {
    router: Arc<Router>,
    wanted: ScrubParts,
    messages: mpsc::Sender<Result<pb::ScrubResponse, Status>>,
    progress: pb::ScrubProgress,
    told: Instant,
}

impl Walk {
    async fn run(&mut self) {
        let walked = match self.wanted.key {
            Some(key) => self.one(key).await,
            None => self.all().await,
        };
        match walked {
            Ok(()) => {
                self.progress.done = true;
                self.progress.total_bytes = self.progress.checked_bytes;
                self.tell(Event::Progress(self.progress)).await;
            }
            // Nobody is left to tell when this fails.
            Err(error) => drop(self.messages.send(Err(to_status(error))).await),
        }
    }

    async fn one(&mut self, key: PayloadKey) -> Result<(), PayloadError> {
        if let Reply::Resolved(found) = self.router.ask_owner(Request::Resolve { key }, None).await? {
            self.progress.total_bytes = found.size.0;
        }
        self.scrub(key).await
    }

    async fn all(&mut self) -> Result<(), PayloadError> {
        for reply in self.router.ask_all(&Request::Stats, None).await? {
            let Reply::Stats(part) = reply else { return Err(mismatch("Stats", &reply)) };
            let tiers =
                Tier::ALL.into_iter().filter(|tier| self.wanted.tier.is_none_or(|only| only == *tier));
            self.progress.total_bytes += tiers.map(|tier| part.tiers[tier].bytes).sum::<u64>();
        }
        self.tell(Event::Progress(self.progress)).await;
        for shard in 0..self.router.shard_count() {
            let mut before = None;
            loop {
                let ids = self.page(ShardIndex(shard), before).await?;
                let Some(last) = ids.last() else { break };
                before = Some(*last);
                for id in ids {
                    match self.scrub(PayloadKey { namespace: NAMESPACE, id }).await {
                        Err(error) if error.kind == ErrorKind::NotFound => self.progress.skipped += 1,
                        other => other?,
                    }
                }
            }
        }
        Ok(())
    }

    async fn page(
        &self,
        shard: ShardIndex,
        before: Option<PayloadId>,
    ) -> Result<Vec<PayloadId>, PayloadError> {
        let list = List { namespace: NAMESPACE, tier: None, before, page_size: LIST_PAGE_MAX };
        match self.patiently(|| self.router.ask(shard, Request::List(list.clone()), None)).await? {
            Reply::Page(page) => Ok(page.rows.into_iter().map(|row| row.id).collect()),
            other => Err(mismatch("ListPayloads", &other)),
        }
    }

    async fn scrub(&mut self, key: PayloadKey) -> Result<(), PayloadError> {
        let bytes_per_second = self.wanted.bytes_per_second.unwrap_or(BYTES_PER_SECOND_DEFAULT);
        let scrub = Scrub { key, tier: self.wanted.tier, bytes_per_second, seen: Vec::new() };
        let asked = self.patiently(|| self.router.ask_owner(Request::Scrub(scrub.clone()), None)).await;
        let seen = match asked? {
            Reply::Scrubbed(seen) => seen,
            other => return Err(mismatch("Scrub", &other)),
        };
        self.progress.skipped += u64::from(seen.is_empty());
        for replica in &seen {
            self.progress.checked += 1;
            self.progress.checked_bytes += replica.size.0;
            self.progress.unverifiable += u64::from(replica.verdict == ScrubVerdict::Unverifiable);
            if let Some(finding) = encode::scrub_finding(key.id, replica) {
                self.tell(Event::Finding(finding)).await;
            }
        }
        self.progress.total_bytes = self.progress.total_bytes.max(self.progress.checked_bytes);
        if self.told.elapsed() >= PROGRESS_EVERY {
            self.tell(Event::Progress(self.progress)).await;
        }
        Ok(())
    }

    /// Asks until there is room: a scrub has time, and its client ends it by leaving.
    async fn patiently<F>(&self, ask: impl Fn() -> F) -> Result<Reply, PayloadError>
    where
        F: Future<Output = Result<Reply, PayloadError>>,
    {
        loop {
            match ask().await {
                Err(error) if error.kind == ErrorKind::ResourceExhausted => {
                    tokio::time::sleep(FULL_PAUSE).await;
                }
                other => return other,
            }
        }
    }

    /// A client that is gone ends the walk elsewhere.
    async fn tell(&mut self, event: Event) {
        self.told = Instant::now();
        drop(self.messages.send(Ok(pb::ScrubResponse { event: Some(event) })).await);
    }
}
