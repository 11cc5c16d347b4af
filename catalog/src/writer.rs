//! The group-commit writer: one thread, one bounded FIFO for all producers, one transaction at a time.
//!
//! ```text
//!  submit --try_send--> [FIFO] --all that arrived--> apply (one transaction) --> an ack an op --> checkpoint if due
//!                          ^------- meanwhile the next group gathers here -------'
//! ```
//!
//! Self-clocked: an idle writer commits the first op at once; the next group is what arrived during that transaction.
//! An ack leaves only after its transaction is durable (`Ok`), or is known never to happen (`Err`). Ops are applied
//! in the order of the queue. A group of removals alone may be acknowledged before it is durable, where the store has
//! that (`Store::apply_late`): such groups are counted, the acks carry the count, and within [`FLUSH_AFTER`] all of them
//! are made durable together, by a group that is not late or by a flush, and whoever waits is told. A temporary error is retried with backoff for [`RETRY`]; while the store stays down,
//! later groups get one try each, so that their callers hear soon. An outcome in doubt is settled by success or by
//! reading back, for as long as that takes; only a shutdown leaves such ops unanswered.
//!
//! Reads the monotonic clock (`Instant`) for pauses and counters only: nothing that is stored depends on it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};
use payload_types::effect::{CatalogChange, CatalogOp};
use payload_types::event::{CatalogAck, Completion};
use payload_types::{OpId, ShardIndex};

use crate::error::StoreError;
use crate::store::{Store, storable, supersedes};

/// Receives each acknowledgement (`Completion::Catalog`) and each `Completion::Durable`, on the writer's thread; must
/// not block.
pub type AckSink = Arc<dyn Fn(ShardIndex, Completion) + Send + Sync>;

/// Changes in one transaction. 4,096 rows at the 60 k rows/s of a slow disk (FACTS.md) are 70 ms, the longest that an
/// op waits behind another group; at 256 a group already costs 1/256 of a sync, so larger ones would gain nothing.
const GROUP_LEN_MAX: usize = 4096;

/// How long a group is retried before its ops are refused: longer than a lock of a backup or a log rotation is held,
/// shorter than the deadlines that clients set.
const RETRY: Duration = Duration::from_secs(5);

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

enum Message {
    Op(CatalogOp),
    Stop,
}

/// The writer's thread, and the way to its queue.
pub struct Writer {
    handle: WriterHandle,
    thread: JoinHandle<Box<dyn Store>>,
    counters: Arc<Counters>,
}

/// The way to a writer's queue.
#[derive(Clone)]
pub struct WriterHandle {
    queue: Sender<Message>,
}

impl WriterHandle {
    /// Queues an op. Never blocks.
    ///
    /// # Errors
    /// Hands the op back when the queue is full, or the writer has stopped.
    pub fn submit(&self, op: CatalogOp) -> Result<(), CatalogOp> {
        self.queue.try_send(Message::Op(op)).map_err(|error| match error {
            TrySendError::Full(Message::Op(op)) | TrySendError::Disconnected(Message::Op(op)) => op,
            TrySendError::Full(Message::Stop) | TrySendError::Disconnected(Message::Stop) => {
                unreachable!("an op was sent")
            }
        })
    }
}

/// What a writer has done since it started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WriterStats {
    /// Groups whose transaction ended, well or not.
    pub groups: u64,
    /// Changes in them.
    pub rows: u64,
    /// The longest of them, from its first try to its outcome, in nanoseconds.
    pub group_ns_max: u64,
}

#[derive(Default)]
struct Counters {
    groups: AtomicU64,
    rows: AtomicU64,
    group_ns_max: AtomicU64,
    stopping: AtomicBool,
}

impl Writer {
    /// Starts the thread. `capacity` is the length of the queue: `CATALOG_LANE_PER_SHARD` a shard.
    ///
    /// # Panics
    /// When the system refuses a thread, as [`std::thread::spawn`] does.
    pub fn start(store: Box<dyn Store>, capacity: usize, sink: AckSink) -> Self {
        Self::start_patient(store, capacity, sink, RETRY)
    }

    /// As [`Writer::start`], with another time to retry a group before its ops are refused.
    ///
    /// # Panics
    /// As [`Writer::start`].
    pub fn start_patient(store: Box<dyn Store>, capacity: usize, sink: AckSink, patience: Duration) -> Self {
        let (sender, receiver) = bounded(capacity);
        let counters = Arc::new(Counters::default());
        let worker = Worker {
            store,
            receiver,
            sink,
            counters: Arc::clone(&counters),
            changes: Vec::new(),
            tickets: Vec::new(),
            patience,
            down: false,
            checkpoint_at: CHECKPOINT_BYTES,
            sequence: 0,
            flush_at: None,
            waiting: BTreeSet::new(),
        };
        let thread = thread::Builder::new()
            .name("catalog".to_owned())
            .spawn(move || worker.run())
            .expect("the system has room for one more thread at start");
        Self { handle: WriterHandle { queue: sender }, thread, counters }
    }

    /// Queues an op; see [`WriterHandle::submit`].
    ///
    /// # Errors
    /// Hands the op back when the queue is full.
    pub fn submit(&self, op: CatalogOp) -> Result<(), CatalogOp> {
        self.handle.submit(op)
    }

    /// A way to the queue that can outlive this value.
    pub fn handle(&self) -> WriterHandle {
        self.handle.clone()
    }

    /// What was done so far.
    pub fn stats(&self) -> WriterStats {
        WriterStats {
            groups: self.counters.groups.load(Ordering::Relaxed),
            rows: self.counters.rows.load(Ordering::Relaxed),
            group_ns_max: self.counters.group_ns_max.load(Ordering::Relaxed),
        }
    }

    /// Commits and acknowledges what was queued, stops the thread and returns the store, not closed. Submits that
    /// race this call may be taken and never acknowledged: stop the producers first.
    ///
    /// # Panics
    /// When the thread panicked: with its panic.
    pub fn shutdown(self) -> Box<dyn Store> {
        self.counters.stopping.store(true, Ordering::Relaxed);
        // Waits for room if it must. An error means that the thread is gone, which `join` explains.
        let _ = self.handle.queue.send(Message::Stop);
        match self.thread.join() {
            Ok(store) => store,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

/// Whom to acknowledge: one for each change, in the same order.
struct Ticket {
    shard: ShardIndex,
    op: OpId,
}

struct Worker {
    store: Box<dyn Store>,
    receiver: Receiver<Message>,
    sink: AckSink,
    counters: Arc<Counters>,
    changes: Vec<CatalogChange>,
    tickets: Vec<Ticket>,
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
}

/// How a group ended that took effect.
#[derive(Clone, Copy)]
enum Made {
    Durable,
    Late,
}

impl Worker {
    fn run(mut self) -> Box<dyn Store> {
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

    /// Waits for an op, then takes what else has arrived. False when there is nothing more to come.
    fn gather(&mut self) -> bool {
        let first = self.first();
        let mut open = true;
        let mut next = Some(first);
        while let Some(message) = next {
            match message {
                Message::Op(op) => self.take(op),
                Message::Stop => open = false,
            }
            // What was queued when the stop came goes with the last group, whatever its length: at most the queue's.
            next = if self.changes.len() < GROUP_LEN_MAX || !open {
                self.receiver.try_recv().ok()
            } else {
                None
            };
        }
        open
    }

    /// Waits for a message, and does meanwhile what is due: a flush, then a checkpoint of what is in the log, once.
    fn first(&mut self) -> Message {
        while let Some(at) = self.flush_at {
            match self.receiver.recv_deadline(at) {
                Ok(message) => return message,
                Err(RecvTimeoutError::Timeout) => self.flush(),
                Err(RecvTimeoutError::Disconnected) => return Message::Stop,
            }
        }
        if self.store.log_bytes() > 0 {
            match self.receiver.recv_timeout(IDLE) {
                Ok(message) => return message,
                Err(RecvTimeoutError::Timeout) => self.checkpoint(),
                Err(RecvTimeoutError::Disconnected) => return Message::Stop,
            }
        }
        self.receiver.recv().unwrap_or(Message::Stop)
    }

    /// Puts an op into the group; one that no store can keep is refused alone.
    fn take(&mut self, op: CatalogOp) {
        match storable(&op.change) {
            Ok(()) => {
                self.changes.push(op.change);
                self.tickets.push(Ticket { shard: op.shard, op: op.op });
            }
            Err(error) => {
                let ack = CatalogAck { op: op.op, result: Err(error.to_string()), sequence: 0 };
                (self.sink)(op.shard, Completion::Catalog(ack));
            }
        }
    }

    fn commit(&mut self) {
        if self.changes.is_empty() {
            return;
        }
        let started = Instant::now();
        let outcome = self.outcome(started);
        let taken = started.elapsed();
        self.counters.groups.fetch_add(1, Ordering::Relaxed);
        self.counters.rows.fetch_add(self.changes.len() as u64, Ordering::Relaxed);
        let nanoseconds = u64::try_from(taken.as_nanos()).unwrap_or(u64::MAX);
        self.counters.group_ns_max.fetch_max(nanoseconds, Ordering::Relaxed);
        self.changes.clear();
        let Some(outcome) = outcome else {
            tracing::error!(
                ops = self.tickets.len(),
                "stopped with a catalog transaction in doubt; its callers get no answer"
            );
            self.tickets.clear();
            return;
        };
        let acknowledged = self.tickets.len();
        let late = matches!(outcome, Ok(Made::Late));
        if late {
            self.sequence += 1;
            self.flush_at.get_or_insert_with(|| Instant::now() + FLUSH_AFTER);
            self.waiting.extend(self.tickets.iter().map(|ticket| ticket.shard));
        }
        let (result, sequence) = (outcome.clone().map(|_| ()), if late { self.sequence } else { 0 });
        for ticket in self.tickets.drain(..) {
            let ack = CatalogAck { op: ticket.op, result: result.clone(), sequence };
            (self.sink)(ticket.shard, Completion::Catalog(ack));
        }
        if matches!(outcome, Ok(Made::Durable)) {
            self.all_durable();
        }
        if acknowledged > 1 && self.receiver.len() < acknowledged {
            thread::sleep(LINGER_MAX.min(taken / LINGER_DIVISOR));
        }
    }

    /// Tries the group until its outcome is known: made, or refused with the reason. `None`: not known at shutdown.
    fn outcome(&mut self, started: Instant) -> Option<Result<Made, String>> {
        let patience = if self.down { Duration::ZERO } else { self.patience };
        let may_be_late = self.changes.iter().all(CatalogChange::may_be_late);
        let mut in_doubt = false;
        let mut backoff = BACKOFF_MIN;
        loop {
            let applied = if may_be_late {
                self.store.apply_late(&self.changes)
            } else {
                self.store.apply(&self.changes).map(|()| true)
            };
            let error = match applied {
                Ok(durable) => return Some(self.made(durable)),
                Err(error) => error,
            };
            in_doubt |= matches!(error, StoreError::Unknown(_));
            if !error.is_temporary() || started.elapsed() >= patience {
                if !in_doubt {
                    return Some(self.refused(&error));
                }
                match took_effect(self.store.as_mut(), &self.changes) {
                    Ok(true) => {
                        // That it is there says nothing of stable storage when it may be late.
                        let durable = !may_be_late || self.store.flush().is_ok();
                        return Some(self.made(durable));
                    }
                    Ok(false) => return Some(self.refused(&error)),
                    Err(_) if self.counters.stopping.load(Ordering::Relaxed) => return None,
                    Err(_) => {}
                }
            }
            tracing::debug!(%error, ops = self.changes.len(), "the catalog transaction will be tried again");
            thread::sleep(backoff);
            backoff = BACKOFF_MAX.min(backoff * 2);
        }
    }

    fn made(&mut self, durable: bool) -> Result<Made, String> {
        if self.down {
            tracing::info!("the catalog can be written again");
        }
        self.down = false;
        Ok(if durable { Made::Durable } else { Made::Late })
    }

    fn refused(&mut self, error: &StoreError) -> Result<Made, String> {
        tracing::error!(%error, ops = self.changes.len(), "a catalog transaction was given up and rolled back");
        self.down = true;
        Err(format!(
            "the catalog could not store the change, and nothing of it was kept: {error}; then repeat the request"
        ))
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

/// Whether a group of which the outcome was lost is in the store. A transaction is whole, so the last change of each
/// key tells for all. Rows that are there in a newer version were there before or came with the group: also told.
fn took_effect(store: &mut dyn Store, changes: &[CatalogChange]) -> Result<bool, StoreError> {
    let mut last = std::collections::BTreeMap::new();
    for change in changes {
        let key = match change {
            CatalogChange::Put(row) => row.key,
            CatalogChange::Remove { key, .. } => *key,
        };
        last.insert(key, change);
    }
    for (key, change) in last {
        let found = store.get(key)?;
        let told = match change {
            CatalogChange::Put(row) => found.is_some_and(|found| {
                let (there, ours) = ((found.epoch, found.version), (row.epoch, row.version));
                found == **row || (supersedes(there, ours) && there != ours)
            }),
            CatalogChange::Remove { epoch, .. } => found.is_none_or(|found| found.epoch > *epoch),
        };
        if !told {
            return Ok(false);
        }
    }
    Ok(true)
}
