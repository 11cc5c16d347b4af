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
//! that (`Store::apply_late`): such groups are counted, the acks carry the count, and within 50 ms all of them
//! are made durable together, by a group that is not late or by a flush, and whoever waits is told. A temporary error is
//! retried with backoff for 5 s; while the store stays down, later groups get one try each, so that their callers hear
//! soon. An outcome in doubt is settled by success or by asking the store, for as long as that takes; only a shutdown
//! leaves such ops unanswered. What is queued behind a store that was silent for 5 s was not begun and is refused
//! ([`watch`]), so that a group in doubt holds back nobody else.
//!
//! Changes of records (metadata, lineage, streams) come through the same FIFO, so that a payload's row is always there
//! before what refers to it, and are answered through a closure each. What waits of them is bounded by number and by
//! bytes; rows of shards are bounded by the queue. About once a second the writer asks the store whether retention or
//! lineage has something to clean up, and adds a `RecordChange::Sweep` to its next group then.
//!
//! A commit that is a part of a batch ([`Batches`]) waits beside the queue for the others; the last one queues them all as
//! one message, so they are in one group, and one transaction. A group is longer than its limit by a batch at most.
//!
//! Reads the monotonic clock (`Instant`) for pauses and counters, and the wall clock to tell a sweep what time it is.

mod batches;
mod waiting;
mod watch;
mod worker;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam::channel::{Sender, TrySendError, bounded};
use payload_types::effect::CatalogOp;
use payload_types::event::{CatalogAck, Completion};
use payload_types::record::{RecordChange, RecordOutcome};
use payload_types::{BatchId, ErrorKind, PayloadError, PayloadId, ShardIndex};

use crate::change::weight;
use crate::store::Store;
use waiting::{Share, Waiting};
use watch::Refused;
use worker::{Hearers, RETRY, Worker};

pub use batches::{Arrival, Batches};
pub use waiting::{RECORD_BYTES_WAITING_MAX, RECORDS_WAITING_MAX};

/// Receives each acknowledgement (`Completion::Catalog`) and each `Completion::Durable`, on one of the writer's two
/// threads; must not block.
pub type AckSink = Arc<dyn Fn(ShardIndex, Completion) + Send + Sync>;

/// Answers a change of records, on one of the writer's threads, after its transaction is durable or is known never to
/// happen; must not block. Dropped unused when the writer stops with the outcome in doubt.
pub type RecordReply = Box<dyn FnOnce(Result<RecordOutcome, PayloadError>) + Send>;

/// Hears what the writer's own sweeps met, on the writer's thread, in the order of all changes; must not block.
pub type SweepSink = Arc<dyn Fn(&RecordOutcome) + Send + Sync>;

/// Hears which payloads' rows name an object, once they are stored: on the writer's thread, before they are acknowledged; must
/// not block.
pub type ObjectSink = Arc<dyn Fn(PayloadId) + Send + Sync>;

/// A change of records that was not taken, given back whole.
pub struct RecordRefused {
    /// What was to be changed.
    pub change: Box<RecordChange>,
    /// Whom to answer.
    pub reply: RecordReply,
    /// RESOURCE_EXHAUSTED when too much waits, UNAVAILABLE when the writer has stopped.
    pub error: PayloadError,
}

impl std::fmt::Debug for RecordRefused {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("RecordRefused").field("error", &self.error).finish_non_exhaustive()
    }
}

/// What travels to the writer's thread.
enum Message {
    Op(CatalogOp),
    /// All parts of a batch.
    Batch(Vec<CatalogOp>),
    /// A part of a refused batch.
    PutBack(CatalogOp),
    Record(WaitingRecord),
    Stop,
}

/// What those hear whose changes waited behind a store that does not answer.
const SILENT: &str = "the catalog's database does not answer, and the change was not begun; check that the database runs and its disk works, then repeat the request";

impl Message {
    /// Answers what was not begun.
    fn refuse(self, sink: &AckSink) -> Refused {
        let refuse = |CatalogOp { shard, op, .. }| {
            let ack = CatalogAck { op, result: Err(SILENT.to_owned()), sequence: 0 };
            sink(shard, Completion::Catalog(ack));
        };
        match self {
            Self::Op(op) => refuse(op),
            Self::Batch(parts) => parts.into_iter().for_each(refuse),
            Self::PutBack(part) => sink(part.shard, Completion::BatchRefused(part.op)),
            Self::Record(WaitingRecord { reply, .. }) => {
                reply(Err(PayloadError::new(ErrorKind::Unavailable, SILENT)));
            }
            Self::Stop => return Refused::Stop,
        }
        Refused::Change
    }
}

/// A change of records on its way. Its share of what may wait is given back when it is dropped.
struct WaitingRecord {
    change: Box<RecordChange>,
    reply: RecordReply,
    share: Share,
}

/// The writer's threads, and the way to their queue.
pub struct Writer {
    handle: WriterHandle,
    thread: JoinHandle<Box<dyn Store>>,
    counters: Arc<Counters>,
}

/// The way to a writer's queue.
#[derive(Clone)]
pub struct WriterHandle {
    queue: Sender<Message>,
    waiting: Arc<Waiting>,
    /// Held for a few instructions by whoever brings or refuses a part; never while anything is waited for.
    batches: Arc<Mutex<Batches>>,
    sink: AckSink,
    sweeps: Arc<OnceLock<SweepSink>>,
    objects: Arc<OnceLock<ObjectSink>>,
}

impl WriterHandle {
    /// Tells `sink` from now on of rows that name an object; the first one that is given counts.
    pub fn hear_objects(&self, sink: ObjectSink) {
        // A second one is a mistake that changes nothing.
        drop(self.objects.set(sink));
    }

    /// Tells `sink` of sweeps from now on; the first one that is given counts.
    pub fn hear_sweeps(&self, sink: SweepSink) {
        // A second one is a mistake that changes nothing.
        drop(self.sweeps.set(sink));
    }

    /// Queues an op. Never blocks.
    ///
    /// # Errors
    /// Hands the op back when the queue is full, or the writer has stopped.
    pub fn submit(&self, op: CatalogOp) -> Result<(), CatalogOp> {
        let Some(mark) = op.batch else { return self.send(Message::Op(op)) };
        // Locked until the batch is queued or its last part is out again, so that nobody refuses it in between.
        let mut batches = self.batches();
        match batches.part(op, mark) {
            Arrival::Kept => Ok(()),
            Arrival::Refused(op) => self.send(Message::PutBack(op)),
            Arrival::Whole(parts) => match self.queue.try_send(Message::Batch(parts)) {
                Ok(()) => Ok(()),
                Err(
                    TrySendError::Full(Message::Batch(parts))
                    | TrySendError::Disconnected(Message::Batch(parts)),
                ) => Err(batches.part_again(parts)),
                Err(_) => unreachable!("a batch was sent"),
            },
        }
    }

    fn send(&self, message: Message) -> Result<(), CatalogOp> {
        self.queue.try_send(message).map_err(|error| {
            let (TrySendError::Full(message) | TrySendError::Disconnected(message)) = error;
            match message {
                Message::Op(op) | Message::PutBack(op) => op,
                Message::Batch(_) | Message::Record(_) | Message::Stop => unreachable!("an op was sent"),
            }
        })
    }

    fn batches(&self) -> MutexGuard<'_, Batches> {
        // Each change of it is one call, so it is whole whenever the lock is free.
        self.batches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A shard refused its part of a batch: the others are answered with `Completion::BatchRefused`, those that are here now
    /// and those that come. Once all are answered [`WriterHandle::batch_answered`] is called. Not for a shard's thread: what
    /// is here is answered from inside.
    pub fn batch_refused(&self, batch: BatchId) {
        let parts = self.batches().refuse(batch);
        for part in parts {
            (self.sink)(part.shard, Completion::BatchRefused(part.op));
        }
    }

    /// All parts of a refused batch were answered, and nothing more comes of it.
    pub fn batch_answered(&self, batch: BatchId) {
        self.batches().forget(batch);
    }

    /// Queues a change of records. Never blocks.
    ///
    /// # Errors
    /// Hands both back when [`RECORDS_WAITING_MAX`] changes or [`RECORD_BYTES_WAITING_MAX`] bytes of them wait, the queue
    /// is full, or the writer has stopped.
    pub fn submit_record(&self, change: RecordChange, reply: RecordReply) -> Result<(), RecordRefused> {
        let change = Box::new(change);
        let Some(share) = Waiting::enter(&self.waiting, weight(&change)) else {
            return Err(RecordRefused { change, reply, error: crowded() });
        };
        let message = Message::Record(WaitingRecord { change, reply, share });
        self.queue.try_send(message).map_err(|error| {
            let (message, error) = match error {
                TrySendError::Full(message) => (message, crowded()),
                TrySendError::Disconnected(message) => (message, stopped()),
            };
            let Message::Record(WaitingRecord { change, reply, .. }) = message else {
                unreachable!("a record was sent")
            };
            RecordRefused { change, reply, error }
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
    /// All of them together, each from its first try to its outcome, in nanoseconds.
    pub group_ns: u64,
    /// The longest of them, in nanoseconds.
    pub group_ns_max: u64,
}

#[derive(Default)]
struct Counters {
    groups: AtomicU64,
    rows: AtomicU64,
    group_ns: AtomicU64,
    group_ns_max: AtomicU64,
    stopping: AtomicBool,
}

impl Counters {
    fn stats(&self) -> WriterStats {
        WriterStats {
            groups: self.groups.load(Ordering::Relaxed),
            rows: self.rows.load(Ordering::Relaxed),
            group_ns: self.group_ns.load(Ordering::Relaxed),
            group_ns_max: self.group_ns_max.load(Ordering::Relaxed),
        }
    }
}

impl Writer {
    /// Starts the thread. `capacity` is the length of the queue: `CATALOG_LANE_PER_SHARD` a shard, and
    /// [`RECORDS_WAITING_MAX`] where there are changes of records.
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
        let handle = WriterHandle {
            queue: sender,
            waiting: Arc::default(),
            batches: Arc::default(),
            sink: Arc::clone(&sink),
            sweeps: Arc::default(),
            objects: Arc::default(),
        };
        let hearers = Hearers { sweeps: Arc::clone(&handle.sweeps), objects: Arc::clone(&handle.objects) };
        let worker = Worker::new(store, receiver, sink, Arc::clone(&counters), patience, hearers);
        let thread = thread::Builder::new()
            .name("catalog".to_owned())
            .spawn(move || worker.run())
            .expect("the system has room for one more thread at start");
        Self { handle, thread, counters }
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
        self.counters.stats()
    }

    /// As [`Writer::stats`], for somebody who may outlive this value.
    pub fn watch(&self) -> impl Fn() -> WriterStats + Send + Sync + use<> {
        let counters = Arc::clone(&self.counters);
        move || counters.stats()
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

fn crowded() -> PayloadError {
    PayloadError::exhausted(
        "too many changes of metadata, lineage and streams wait for the catalog; send the request again in a while",
    )
}

fn stopped() -> PayloadError {
    PayloadError::new(
        ErrorKind::Unavailable,
        "the server is stopping and takes no more changes; send the request again once it is back",
    )
}
