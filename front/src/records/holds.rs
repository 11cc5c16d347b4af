//! Streams that retain payloads: the front's side of holds. What is to be done says [`Keeper`]; here it is done.
//!
//! ```text
//! writer's thread, after each commit --heard--> keeper --errand--> run: Floor to every shard, Again for what went back
//! append: a task of its own, so that a client that goes away changes nothing --Take, change, Settle--> shards
//! ```
//! What shards are told of durable changes is told until they have it: a full lane is tried again, and only a server that
//! stops gives up, because its next start reads everything from the catalog.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use payload_shards::Keeper;
use payload_shards::keeper::{Errand, STREAMS_MAX, Taken, newest_offsets};
use payload_types::hold::{HOLD_ITEMS_MAX, HeldEntries, Hold};
use payload_types::limits::STREAM_READ_MAX;
use payload_types::record::{RecordAnswer, RecordChange, RecordOutcome, RecordQuery, StreamItem, StreamName};
use payload_types::reply::Reply;
use payload_types::request::Request;
use payload_types::{ErrorKind, PayloadError, PayloadId, PayloadKey, ShardIndex, WallMs};
use tokio::sync::Notify;

use super::{Records, disagreement};
use crate::cluster::is_unknown;
use crate::deadline::{Deadline, late};
use crate::repeats::RequestId;
use crate::services::router::{NAMESPACE, mismatch};

/// A shard whose lane was full is tried again after so long; so is a catalog that does not answer.
const PAUSE: Duration = Duration::from_millis(5);

/// Messages of one append that are on their way to shards at a time.
const SENT_AT_ONCE: usize = 16;

/// Streams of one look at floors, and payloads of one at other nodes.
const LOOK_MAX: usize = 1024;

/// See the module.
#[derive(Default)]
pub struct Holds {
    keeper: Mutex<Keeper>,
    /// There is something to tell.
    work: Notify,
    /// Shards were told something.
    told: Notify,
}

impl Holds {
    /// What a start knows already.
    pub fn new(keeper: Keeper) -> Self {
        Self { keeper: Mutex::new(keeper), ..Self::default() }
    }

    /// A durable change of `name` met this. Called on the writer's thread, in the order of changes; never blocks for long.
    pub fn heard(&self, name: Option<&StreamName>, outcome: &RecordOutcome) {
        if matches!(
            outcome,
            RecordOutcome::AppendedHeld { .. } | RecordOutcome::Floored(_) | RecordOutcome::Swept { .. }
        ) {
            self.keeper().heard(name, outcome);
            self.work.notify_one();
        }
    }

    /// True when a stream of this name retains payloads, as far as this node knows.
    pub fn retains(&self, name: &StreamName) -> bool {
        self.keeper().retains(name)
    }

    /// Refuses one more stream that retains payloads when there are as many as may be.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED.
    pub fn check_room(&self) -> Result<(), PayloadError> {
        if self.keeper().has_room() {
            return Ok(());
        }
        Err(PayloadError::exhausted(format!(
            "{STREAMS_MAX} streams retain payloads, which is the most that a server keeps track of; delete one, or make this one without retain_payloads"
        )))
    }

    /// Waits until the shards were told all that was heard of a stream so far. The change is durable; a deadline that passes
    /// is no reason to say otherwise.
    pub async fn wait(&self, stream: u64, deadline: Option<Deadline>) {
        let revision = self.keeper().revision(stream);
        let wait = async {
            loop {
                let told = self.told.notified();
                if self.keeper().is_told(stream, revision) {
                    return;
                }
                told.await;
            }
        };
        // Nothing is wrong when it takes longer: it goes on.
        drop(
            within(deadline, async {
                wait.await;
                Ok(())
            })
            .await,
        );
    }

    fn keeper(&self) -> MutexGuard<'_, Keeper> {
        // Each use is one call of the keeper, which leaves it whole.
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells shards what is to be told, until the server stops.
pub async fn run(records: Arc<Records>) {
    loop {
        let work = records.holds().work.notified();
        let errand = records.holds().keeper().errand();
        match errand {
            None => work.await,
            Some(errand) => {
                if perform(&records, &errand).await.is_none() {
                    return;
                }
                records.holds().keeper().told(&errand);
                records.holds().told.notify_waiters();
            }
        }
    }
}

/// `None`: the server stops.
async fn perform(records: &Records, errand: &Errand) -> Option<()> {
    let stream = errand.stream.stream;
    for shard in 0..records.router.shard_count() {
        tell(records, ShardIndex(shard), Hold::Floor { stream, floor: errand.floor }).await?;
    }
    let mut next = errand.floor;
    while next < errand.again_to {
        let query = RecordQuery::StreamRead {
            stream: errand.stream.name.clone(),
            from: next,
            to: errand.again_to - 1,
            not_before: None,
            entries_max: STREAM_READ_MAX,
            // All that is there, whatever its age.
            at: WallMs::default(),
        };
        let (entries, more) = match records.query(query, None).await {
            Ok(RecordAnswer::Entries(info, entries, more)) if info.incarnation == stream => (entries, more),
            // Deleted, and perhaps made anew: that is told next.
            Ok(_) => break,
            Err(error) if is_stopping(&error) && records.hub().is_stopping() => return None,
            Err(error) => {
                tracing::debug!(%error, "entries that a group went back to cannot be read yet");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        next = entries.last().map_or(errand.again_to, |entry| entry.offset + 1);
        let mut by_shard = vec![Vec::new(); usize::from(records.router.shard_count())];
        for entry in entries {
            let key = PayloadKey { namespace: NAMESPACE, id: entry.item.payload };
            by_shard[usize::from(key.id.shard(records.router.shard_count()).0)].push((entry.offset, key));
        }
        for (shard, entries) in (0..).zip(by_shard) {
            for some in entries.chunks(HOLD_ITEMS_MAX) {
                let held = HeldEntries { stream: errand.stream.clone(), entries: some.to_vec() };
                tell(records, ShardIndex(shard), Hold::Again(held)).await?;
            }
        }
        if !more {
            break;
        }
    }
    Some(())
}

/// Tells a shard something that it must know. `None`: the server stops.
async fn tell(records: &Records, shard: ShardIndex, hold: Hold) -> Option<()> {
    loop {
        match records.router.ask(shard, Request::Hold(hold.clone()), None).await {
            Ok(_) => return Some(()),
            Err(error) if error.kind == ErrorKind::ResourceExhausted => tokio::time::sleep(PAUSE).await,
            Err(_stopping) => return None,
        }
    }
}

fn is_stopping(error: &PayloadError) -> bool {
    error.kind == ErrorKind::Unavailable
}

/// What is appended to a stream that retains payloads.
pub struct Append {
    /// Where.
    pub stream: StreamName,
    /// What.
    pub items: Vec<StreamItem>,
    /// Now.
    pub at: WallMs,
    /// The call, if it may come again.
    pub call: Option<RequestId>,
}

/// Appends to a stream that retains payloads: nothing that is appended can be gone before its shard knows.
///
/// # Errors
/// A payload that its shard does not have; FAILED_PRECONDITION, with its node, where another node has it; those of
/// [`Records::change`]. After DEADLINE_EXCEEDED the append goes on.
pub async fn append(
    records: &Arc<Records>,
    append: Append,
    deadline: Option<Deadline>,
) -> Result<RecordOutcome, PayloadError> {
    let records = Arc::clone(records);
    let work = tokio::spawn(async move { append_held(&records, append).await });
    let joined = async { work.await.map_err(|error| disagreement("Append", &error))? };
    within(deadline, joined).await
}

async fn append_held(records: &Records, append: Append) -> Result<RecordOutcome, PayloadError> {
    let Append { stream, items, at, call } = append;
    let ids: Vec<PayloadId> = items.iter().map(|item| item.payload).collect();
    let taken = records.holds().keeper().take(NAMESPACE, &items, records.router.shard_count());
    let outcome = match take(records, &taken, &ids).await {
        Ok(()) => {
            let change = RecordChange::StreamAppend { stream, items: items.clone(), held: true, at };
            records.change(RequestId::wrap(call.as_ref(), change, at), None).await
        }
        Err(error) => Err(error),
    };
    let mut kept = None;
    if let Ok(RecordOutcome::AppendedHeld { first, floor, .. }) = &outcome {
        // None: it was deleted since, and keeps nothing.
        kept = records.holds().keeper().stream(floor.stream).map(|stream| (stream, *first));
    }
    let newest = kept.as_ref().map(|(_, first)| newest_offsets(&items, *first)).unwrap_or_default();
    let end = |some: &Taken| match &kept {
        Some((stream, _)) => some.settle(stream, &newest),
        None => some.let_go(),
    };
    let ends: Vec<(ShardIndex, Hold)> = taken.iter().map(|some| (some.shard, end(some))).collect();
    stream::iter(ends)
        .for_each_concurrent(SENT_AT_ONCE, async |(shard, hold)| {
            // A server that stops forgets its holds.
            let _told = tell(records, shard, hold).await;
        })
        .await;
    if let Some((stream, first)) = &kept {
        records.holds().keeper().settled(stream, *first);
        records.holds().work.notify_one();
    }
    outcome
}

/// Holds what an append is about to refer to.
async fn take(records: &Records, taken: &[Taken], ids: &[PayloadId]) -> Result<(), PayloadError> {
    let all = stream::iter(taken.iter().map(|some| (some.shard, some.take())).map(Ok));
    let taking = all.try_for_each_concurrent(SENT_AT_ONCE, async |(shard, hold)| {
        match records.router.ask(shard, Request::Hold(hold), None).await? {
            Reply::Held => Ok(()),
            other => Err(mismatch("Append", &other)),
        }
    });
    match (taking.await, &records.router.cluster) {
        // What another node has it alone can hold.
        (Err(error), Some(cluster)) if is_unknown(&error) => {
            for some in ids.chunks(LOOK_MAX) {
                if let Some(foreign) = cluster.describe(some.to_vec(), None).await?.pop() {
                    return Err(foreign.elsewhere());
                }
            }
            Err(error)
        }
        (taken, _) => taken,
    }
}

/// Where other nodes move floors, too: looks how far each stream has come. Called now and then.
pub async fn look(records: &Records) {
    let mut after = 0;
    while !records.holds().keeper().is_empty() {
        let look = records.holds().keeper().look();
        match records.query(RecordQuery::Floors { after, streams_max: LOOK_MAX }, None).await {
            Ok(RecordAnswer::Floors(found, more)) => {
                records.holds().keeper().looked(look, after, &found, more);
                records.holds().work.notify_one();
                match found.last() {
                    Some((_, last)) if more => after = last.stream,
                    _ => return,
                }
            }
            Ok(other) => return drop(disagreement("the floors of streams", &other)),
            Err(error) => {
                return tracing::debug!(%error, "how far streams hold payloads could not be looked up");
            }
        }
    }
}

/// What `work` comes to, if it does in time.
async fn within<T>(
    deadline: Option<Deadline>,
    work: impl Future<Output = Result<T, PayloadError>>,
) -> Result<T, PayloadError> {
    match deadline.and_then(|deadline| deadline.give_up) {
        None => work.await,
        Some(give_up) => tokio::time::timeout_at(give_up, work).await.map_err(|_late| late())?,
    }
}
