//! The writer's thread: gathers groups, commits each until its outcome is known, and answers.
//!
//! Owned by [`super::Writer`]; nobody else calls it.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam::channel::{Receiver, RecvTimeoutError};
use payload_types::effect::{CatalogChange, CatalogOp};
use payload_types::event::{CatalogAck, Completion};
use payload_types::record::{RecordChange, RecordOutcome};
use payload_types::{BatchId, ErrorKind, OpId, PayloadError, PayloadId, ShardIndex, Tier, WallMs};

use super::waiting::Share;
use super::watch::Watch;
use super::{AckSink, Counters, Message, ObjectSink, RecordReply, SweepSink, WaitingRecord};
use crate::change::{Change, storable};
use crate::error::{StoreError, Taken};
use crate::store::Store;

/// Changes in one transaction. 4,096 rows at the 60 k rows/s of a slow disk (FACTS.md) are 70 ms, the longest that an
/// op waits behind another group; at 256 a group already costs 1/256 of a sync, so larger ones would gain nothing.
const GROUP_LEN_MAX: usize = 4096;

/// How long a group is retried before its ops are refused: longer than a lock of a backup or a log rotation is held,
/// shorter than the deadlines that clients set.
pub(super) const RETRY: Duration = Duration::from_secs(5);

/// The first pause between tries; it doubles up to the second.
const BACKOFF_MIN: Duration = Duration::from_millis(1);
/// See [`BACKOFF_MIN`].
const BACKOFF_MAX: Duration = Duration::from_millis(256);

/// The log is checkpointed between two groups when it grew by this: 4,096 pages of 4 KiB. Measured on 2 busy cores:
/// new rows do not notice it; updates of random rows run at 17-20 k/s with 4 MiB, 20-25 k/s with 16 MiB and 34 k/s with
/// 64 MiB, which a killed server would have to read again and one pause to write.
const CHECKPOINT_BYTES: u64 = 16 << 20;

/// A writer that had nothing to do for this long checkpoints what is in the log, once.
const IDLE: Duration = Duration::from_millis(200);

/// What was acknowledged late is made durable this long after the first of it, and space that waits for it is free
/// then. At most 20 syncs a second, each for all that was removed meanwhile; a wait for space at a full tier takes
/// 50 ms longer at worst; and what a loss of power can undo is as old as that.
const FLUSH_AFTER: Duration = Duration::from_millis(50);

/// How soon a flush that failed is tried again.
const FLUSH_RETRY: Duration = Duration::from_secs(1);

/// Clients that were just acknowledged often ask again at once. After a group of several ops, when fewer wait, the next
/// group is gathered after a pause of 1/16 of the transaction, so that they share it instead of alternating with the
/// others in half-empty groups. Measured with 512 concurrent commits on 2 busy cores: groups grew from 320 to 480 rows,
/// and rows/s from 0.64 to 0.8 of raw SQLite; pauses of 1/8 and 1/4 gave no more. A lone op never waits.
const LINGER_DIVISOR: u32 = 16;

/// The longest such pause: 1/16 of a transaction of 16 ms.
const LINGER_MAX: Duration = Duration::from_millis(1);

/// Records in one transaction weigh at most this, and one record more: at the 500 MB/s of a common disk 16 MiB are 32 ms,
/// half of what the largest group of rows takes.
const GROUP_RECORD_BYTES_MAX: u64 = 16 << 20;

/// How often the store is asked whether there is something to clean up; what is too old is not shown meanwhile.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// When the next sweep follows one that left something to do: a sweep is some milliseconds of work, so that cleaning up
/// takes at most a third of the writer's time.
const SWEEP_AGAIN: Duration = Duration::from_millis(20);

/// Whom to answer: one for each change, in the same order.
enum Ticket {
    Row {
        shard: ShardIndex,
        op: OpId,
        /// What it is made together with, or not at all.
        batch: Option<BatchId>,
    },
    Record {
        reply: RecordReply,
        _share: Share,
    },
    /// The writer's own.
    Sweep,
}

impl Ticket {
    fn batch(&self) -> Option<BatchId> {
        match self {
            Self::Row { batch, .. } => *batch,
            Self::Record { .. } | Self::Sweep => None,
        }
    }
}

pub(super) struct Worker {
    store: Box<dyn Store>,
    receiver: Receiver<Message>,
    sink: AckSink,
    counters: Arc<Counters>,
    changes: Vec<Change>,
    tickets: Vec<Ticket>,
    /// What the records of this group weigh.
    record_bytes: u64,
    /// How long a group is retried while the store is not down.
    patience: Duration,
    /// The last group was refused.
    down: bool,
    /// `log_bytes` at which the next checkpoint is due.
    checkpoint_at: u64,
    /// Groups that were acknowledged before they were durable.
    sequence: u64,
    /// When the last of them shall be durable; `None`: all are.
    flush_at: Option<Instant>,
    /// Who was given a sequence, and not told since that it is durable.
    waiting: BTreeSet<ShardIndex>,
    /// When the store is asked next whether there is something to clean up.
    sweep_at: Instant,
    /// Refuses what is queued while the store does not answer.
    watch: Arc<Watch>,
    hearers: Hearers,
}

/// Who hears of what, once there is somebody.
pub(super) struct Hearers {
    /// Of the writer's own sweeps.
    pub(super) sweeps: Arc<OnceLock<SweepSink>>,
    /// Of rows that name an object.
    pub(super) objects: Arc<OnceLock<ObjectSink>>,
}

/// How a group ended that took effect.
struct Made {
    durable: bool,
    outcomes: Vec<RecordOutcome>,
}

/// What an idle writer does at a certain time.
enum Chore {
    Flush,
    Checkpoint,
    Sweep,
}

/// The payload of which this stores a row that names an object.
fn names_object(change: &Change) -> Option<PayloadId> {
    match change {
        Change::Row(CatalogChange::Put(row)) => {
            row.replicas.last().filter(|replica| replica.tier == Tier::Object).map(|_| row.key.id)
        }
        Change::Row(CatalogChange::Remove { .. }) | Change::Record(_) => None,
    }
}

impl Worker {
    pub(super) fn new(
        store: Box<dyn Store>,
        receiver: Receiver<Message>,
        sink: AckSink,
        counters: Arc<Counters>,
        patience: Duration,
        hearers: Hearers,
    ) -> Self {
        Self {
            hearers,
            store,
            receiver,
            sink,
            counters,
            changes: Vec::new(),
            tickets: Vec::new(),
            record_bytes: 0,
            patience,
            down: false,
            checkpoint_at: CHECKPOINT_BYTES,
            sequence: 0,
            flush_at: None,
            waiting: BTreeSet::new(),
            sweep_at: Instant::now() + SWEEP_EVERY,
            watch: Arc::default(),
        }
    }

    pub(super) fn run(self) -> Box<dyn Store> {
        let (watch, receiver) = (Arc::clone(&self.watch), self.receiver.clone());
        let (sink, patience) = (Arc::clone(&self.sink), self.patience);
        thread::scope(|scope| {
            let _until_the_end = watch.start(scope, receiver, sink, patience);
            self.work()
        })
    }

    fn work(mut self) -> Box<dyn Store> {
        let mut open = true;
        while open {
            open = self.gather();
            self.commit();
            if self.flush_at.is_some_and(|at| at <= Instant::now()) {
                self.flush();
            }
            if self.store.log_bytes() >= self.checkpoint_at {
                self.checkpoint();
            }
        }
        if self.flush_at.is_some() {
            self.flush();
        }
        self.store
    }

    /// Waits for something to do, then takes what else has arrived. False when there is nothing more to come.
    fn gather(&mut self) -> bool {
        let mut open = true;
        let mut next = self.first();
        while let Some(message) = next {
            match message {
                Message::Op(op) => self.take(op),
                Message::Batch(parts) => self.take_batch(parts),
                Message::PutBack(part) => (self.sink)(part.shard, Completion::BatchRefused(part.op)),
                Message::Record(record) => self.take_record(record),
                Message::Stop => open = false,
            }
            // What was queued when the stop came goes with the last group, whatever its length: at most the queue's.
            let room = self.changes.len() < GROUP_LEN_MAX && self.record_bytes < GROUP_RECORD_BYTES_MAX;
            next = if room || !open { self.receiver.try_recv().ok() } else { None };
        }
        if open && self.sweep_at <= Instant::now() {
            self.sweep();
        }
        open
    }

    /// Waits for a message, and does meanwhile what is due: a flush, a checkpoint of what is in the log, once. `None`: a
    /// sweep was put into the group.
    fn first(&mut self) -> Option<Message> {
        let mut checkpoint_at = Some(Instant::now() + IDLE);
        loop {
            let (mut at, mut chore) = (self.sweep_at, Chore::Sweep);
            if let Some(flush_at) = self.flush_at {
                if flush_at <= at {
                    (at, chore) = (flush_at, Chore::Flush);
                }
            } else if let Some(idle_at) = checkpoint_at
                && idle_at <= at
                && self.store.log_bytes() > 0
            {
                (at, chore) = (idle_at, Chore::Checkpoint);
            }
            if self.watch.idle() {
                return Some(Message::Stop);
            }
            let received = self.receiver.recv_deadline(at);
            self.watch.busy();
            match (received, chore) {
                (Ok(message), _) => return Some(message),
                (Err(RecvTimeoutError::Disconnected), _) => return Some(Message::Stop),
                (Err(RecvTimeoutError::Timeout), Chore::Flush) => self.flush(),
                (Err(RecvTimeoutError::Timeout), Chore::Checkpoint) => {
                    checkpoint_at = None;
                    self.checkpoint();
                }
                (Err(RecvTimeoutError::Timeout), Chore::Sweep) => {
                    if self.sweep() {
                        return None;
                    }
                }
            }
        }
    }

    /// Puts an op into the group; one that no store can keep is refused alone.
    fn take(&mut self, op: CatalogOp) {
        let change = Change::Row(op.change);
        match storable(&change) {
            Ok(()) => {
                self.changes.push(change);
                self.tickets.push(Ticket::Row { shard: op.shard, op: op.op, batch: None });
            }
            Err(error) => {
                let ack = CatalogAck { op: op.op, result: Err(error.to_string()), sequence: 0 };
                (self.sink)(op.shard, Completion::Catalog(ack));
            }
        }
    }

    /// Puts a batch into the group; one with a part that no store can keep is refused whole.
    fn take_batch(&mut self, parts: Vec<CatalogOp>) {
        let batch = parts.first().and_then(|part| part.batch).map(|mark| mark.batch);
        let parts = parts.into_iter().map(|part| ((part.shard, part.op), Change::Row(part.change)));
        let (askers, changes): (Vec<_>, Vec<_>) = parts.unzip();
        if let Some(error) = changes.iter().find_map(|change| storable(change).err()) {
            for (shard, op) in askers {
                let ack = CatalogAck { op, result: Err(error.to_string()), sequence: 0 };
                (self.sink)(shard, Completion::Catalog(ack));
            }
            return;
        }
        self.changes.extend(changes);
        self.tickets.extend(askers.into_iter().map(|(shard, op)| Ticket::Row { shard, op, batch }));
    }

    /// As [`Self::take`].
    fn take_record(&mut self, record: WaitingRecord) {
        let WaitingRecord { change, reply, share } = record;
        let change = Change::Record(change);
        match storable(&change) {
            Ok(()) => {
                self.record_bytes += share.bytes;
                self.changes.push(change);
                self.tickets.push(Ticket::Record { reply, _share: share });
            }
            Err(error) => reply(Err(PayloadError::invalid(error.to_string()))),
        }
    }

    /// Puts a sweep into the group when there is something to clean up.
    fn sweep(&mut self) -> bool {
        self.sweep_at = Instant::now() + SWEEP_EVERY;
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let at = WallMs::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
        let due = self.store.sweep_is_due(at).unwrap_or_else(|error| {
            tracing::debug!(%error, "the catalog cannot say whether there is something to clean up");
            false
        });
        if due {
            self.changes.push(Change::from(RecordChange::Sweep { at }));
            self.tickets.push(Ticket::Sweep);
        }
        due
    }

    fn commit(&mut self) {
        if self.changes.is_empty() {
            return;
        }
        let started = Instant::now();
        let outcome = self.outcome(started);
        self.watch.progress();
        let taken = started.elapsed();
        self.counters.groups.fetch_add(1, Ordering::Relaxed);
        self.counters.rows.fetch_add(self.changes.len() as u64, Ordering::Relaxed);
        let nanoseconds = u64::try_from(taken.as_nanos()).unwrap_or(u64::MAX);
        self.counters.group_ns.fetch_add(nanoseconds, Ordering::Relaxed);
        self.counters.group_ns_max.fetch_max(nanoseconds, Ordering::Relaxed);
        if let Some(sink) = self.hearers.objects.get()
            && matches!(outcome, Some(Ok(_)))
        {
            self.changes.iter().filter_map(names_object).for_each(|id| sink(id));
        }
        self.changes.clear();
        self.record_bytes = 0;
        if self.tickets.is_empty() {
            // All of them were claimed by other nodes, and answered.
            return;
        }
        let Some(outcome) = outcome else {
            tracing::error!(
                ops = self.tickets.len(),
                "stopped with a catalog transaction in doubt; its callers get no answer"
            );
            self.tickets.clear();
            return;
        };
        let acknowledged = self.tickets.len();
        let durable = matches!(outcome, Ok(Made { durable: true, .. }));
        self.answer(outcome);
        if durable {
            self.all_durable();
        }
        if acknowledged > 1 && self.receiver.len() < acknowledged {
            thread::sleep(LINGER_MAX.min(taken / LINGER_DIVISOR));
        }
    }

    /// Takes out of the group the rows whose ids other nodes have, each with the batch that it is a part of, and answers
    /// them: the rest can be made without them. False: none of them was in the group.
    fn refuse_taken(&mut self, taken: &[Taken]) -> bool {
        let claim = |change: &Change| match change {
            Change::Row(CatalogChange::Put(row)) => taken.iter().find(|taken| taken.key == row.key),
            Change::Row(CatalogChange::Remove { .. }) | Change::Record(_) => None,
        };
        let claimed = self.tickets.iter().zip(&self.changes).filter(|(_, change)| claim(change).is_some());
        let batches: BTreeSet<BatchId> = claimed.filter_map(|(ticket, _)| ticket.batch()).collect();
        let len = self.changes.len();
        let (tickets, changes) = (std::mem::take(&mut self.tickets), std::mem::take(&mut self.changes));
        for (ticket, change) in tickets.into_iter().zip(changes) {
            let claim = claim(&change);
            match ticket {
                Ticket::Row { shard, op, .. } if let Some(taken) = claim => {
                    let Taken { key, node, address } = taken;
                    let id = key.id;
                    tracing::error!(%id, %node, "two nodes claim one payload id; the row of the other one stays");
                    let reason = format!(
                        "payload {id} was not committed: node `{node}` at {address}, another node of this catalog, has a payload of this id, which stays as it is; delete this one and allocate it anew, and see that no two nodes run on copies of one disk root or database"
                    );
                    (self.sink)(shard, Completion::Claimed { op, reason });
                }
                Ticket::Row { shard, op, batch: Some(batch) } if batches.contains(&batch) => {
                    (self.sink)(shard, Completion::BatchRefused(op));
                }
                ticket => {
                    self.tickets.push(ticket);
                    self.changes.push(change);
                }
            }
        }
        self.changes.len() < len
    }

    /// Tells everybody of the group how it ended.
    fn answer(&mut self, outcome: Result<Made, String>) {
        let (result, late, outcomes) = match outcome {
            Ok(Made { durable, outcomes }) => (Ok(()), !durable, outcomes),
            Err(error) => (Err(error), false, Vec::new()),
        };
        if late {
            self.sequence += 1;
            self.flush_at.get_or_insert_with(|| Instant::now() + FLUSH_AFTER);
        }
        let sequence = if late { self.sequence } else { 0 };
        let mut outcomes = outcomes.into_iter();
        let mut outcome = || match &result {
            Ok(()) => Ok(outcomes.next().expect("a store returns an outcome for each record's change")),
            Err(error) => Err(PayloadError::new(ErrorKind::Unavailable, error.clone())),
        };
        for ticket in self.tickets.drain(..) {
            match ticket {
                Ticket::Row { shard, op, .. } => {
                    if late {
                        self.waiting.insert(shard);
                    }
                    let ack = CatalogAck { op, result: result.clone(), sequence };
                    (self.sink)(shard, Completion::Catalog(ack));
                }
                Ticket::Record { reply, .. } => reply(outcome()),
                Ticket::Sweep => {
                    let swept = outcome();
                    if let (Ok(swept), Some(sink)) = (&swept, self.hearers.sweeps.get()) {
                        sink(swept);
                    }
                    if let Ok(RecordOutcome::Swept { more: true, .. }) = swept {
                        self.sweep_at = Instant::now() + SWEEP_AGAIN;
                    }
                }
            }
        }
    }

    /// Tries the group until its outcome is known: made, or refused with the reason. `None`: not known at shutdown, or nothing
    /// is left of it because other nodes have all of its ids.
    fn outcome(&mut self, started: Instant) -> Option<Result<Made, String>> {
        let patience = if self.down { Duration::ZERO } else { self.patience };
        let may_be_late = self.changes.iter().all(Change::may_be_late);
        let mut in_doubt = false;
        let mut backoff = BACKOFF_MIN;
        loop {
            let applied = if may_be_late {
                self.store.apply_late(&self.changes).map(|durable| Made { durable, outcomes: Vec::new() })
            } else {
                self.store.apply(&self.changes).map(|outcomes| Made { durable: true, outcomes })
            };
            let error = match applied {
                Ok(made) => return Some(Ok(self.made(made))),
                Err(error) => error,
            };
            if let StoreError::Taken(taken) = &error
                && self.refuse_taken(taken)
            {
                // Nothing was made, of an earlier try neither; the rest is a group of its own.
                in_doubt = false;
                if self.changes.is_empty() {
                    return None;
                }
                continue;
            }
            in_doubt |= matches!(error, StoreError::Unknown(_));
            if !error.is_temporary() || started.elapsed() >= patience {
                if !in_doubt {
                    return Some(Err(self.refused(&error)));
                }
                match self.store.resolve(&self.changes) {
                    Ok(Some(outcomes)) => {
                        // That it is there says nothing of stable storage when it may be late.
                        let durable = !may_be_late || self.store.flush().is_ok();
                        return Some(Ok(self.made(Made { durable, outcomes })));
                    }
                    Ok(None) => return Some(Err(self.refused(&error))),
                    Err(_) if self.counters.stopping.load(Ordering::Relaxed) => return None,
                    Err(_) => {}
                }
            }
            tracing::debug!(%error, ops = self.changes.len(), "the catalog transaction will be tried again");
            thread::sleep(backoff);
            backoff = BACKOFF_MAX.min(backoff * 2);
        }
    }

    fn made(&mut self, made: Made) -> Made {
        if self.down {
            tracing::info!("the catalog can be written again");
        }
        self.down = false;
        made
    }

    fn refused(&mut self, error: &StoreError) -> String {
        tracing::error!(%error, ops = self.changes.len(), "a catalog transaction was given up and rolled back");
        self.down = true;
        format!(
            "the catalog could not store the change, and nothing of it was kept: {error}; then repeat the request"
        )
    }

    /// Makes durable what was acknowledged late.
    fn flush(&mut self) {
        match self.store.flush() {
            Ok(()) => self.all_durable(),
            Err(error) => {
                tracing::warn!(
                    %error,
                    "removals that were acknowledged could not be synced; their space stays taken until that succeeds"
                );
                self.flush_at = Some(Instant::now() + FLUSH_RETRY);
            }
        }
    }

    /// All that was acknowledged is durable: tells whoever waits for it.
    fn all_durable(&mut self) {
        self.flush_at = None;
        for shard in std::mem::take(&mut self.waiting) {
            (self.sink)(shard, Completion::Durable { sequence: self.sequence });
        }
    }

    fn checkpoint(&mut self) {
        if let Err(error) = self.store.checkpoint() {
            tracing::warn!(%error, "the catalog's log could not be checkpointed; it grows until that succeeds");
        }
        // Whoever reads the log keeps it from emptying: then the next try is due after as much again.
        self.checkpoint_at = self.store.log_bytes() + CHECKPOINT_BYTES;
    }
}
