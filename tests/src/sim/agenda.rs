//! What will happen when: a queue of tasks ordered by virtual time, and by age within one moment.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use payload_types::effect::BudgetRequest;
use payload_types::event::Event;
use payload_types::record::RecordOutcome;
use payload_types::{BatchId, Checksum, LeaseId, Monotonic, PayloadId, PayloadKey, SessionId, SlabId};

use super::storage::BlockName;

/// One thing that will happen.
#[derive(Clone, Debug)]
pub(super) enum Task {
    /// Clients think of something to ask.
    ClientTick,
    /// A producer is done writing.
    ClientCommit(PayloadKey, Option<Checksum>),
    /// A reader is done reading.
    ClientRelease(LeaseId),
    /// The server dies.
    Crash,
    /// The server starts.
    Boot,
    /// An event reaches a shard. `work` names the payload for which a driver or the catalog worked.
    Deliver { shard: usize, event: Event, work: Option<PayloadId> },
    /// A shard wanted to be woken.
    Timer { shard: usize, at: Monotonic },
    /// A pump comes back to an outbox it left.
    Pump { shard: usize },
    /// A message reaches the arbiter.
    Arbiter(BudgetRequest),
    /// A driver is done with an op.
    Job(u64),
    /// A driver takes a name away.
    Detach { shard: usize, name: BlockName },
    /// A driver looks whether anybody still maps a detached block.
    Free { shard: usize, name: BlockName, detached: Monotonic },
    /// The disk store looks for segment files to recycle, and for one to empty.
    Compact,
    /// The catalog writer takes a batch.
    CatalogBegin,
    /// Its transaction ends.
    CatalogEnd,
    /// It hears that a part of a batch was refused.
    BatchRefused(BatchId),
    /// It syncs what it acknowledged early.
    CatalogFlush,
    /// The front hears what became of an append.
    AppendStored(u64, Option<Box<RecordOutcome>>),
    /// A reader who asks nobody looks again.
    DirectLook(u64),
    /// It has read.
    DirectEnd(u64),
    /// The kernel has the memory of a slab back.
    SlabFreed(SlabId),
    /// A session ended a while ago: the oracle looks for what is left of it.
    SessionLeft(SessionId),
}

impl Task {
    /// True for what ends with the server's process.
    fn dies_with_server(&self) -> bool {
        !matches!(self, Self::ClientTick | Self::ClientCommit(..) | Self::ClientRelease(_) | Self::Boot)
    }
}

#[derive(Clone, Debug)]
struct Entry {
    at: Monotonic,
    sequence: u64,
    task: Task,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    /// The earliest is the greatest: `BinaryHeap` gives the greatest first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.sequence).cmp(&(self.at, self.sequence))
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    heap: BinaryHeap<Entry>,
    sequence: u64,
}

impl Agenda {
    /// Adds a task.
    pub(super) fn add(&mut self, at: Monotonic, task: Task) {
        self.sequence += 1;
        self.heap.push(Entry { at, sequence: self.sequence, task });
    }

    /// The next task and its moment.
    pub(super) fn pop(&mut self) -> Option<(Monotonic, Task)> {
        self.heap.pop().map(|entry| (entry.at, entry.task))
    }

    /// When the next task is due.
    pub(super) fn next_at(&self) -> Option<Monotonic> {
        self.heap.peek().map(|entry| entry.at)
    }

    /// Everything that will happen, in no order.
    pub(super) fn tasks(&self) -> impl Iterator<Item = &Task> {
        self.heap.iter().map(|entry| &entry.task)
    }

    /// The server dies.
    pub(super) fn crash(&mut self) {
        self.heap.retain(|entry| !entry.task.dies_with_server());
    }
}
