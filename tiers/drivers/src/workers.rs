//! The threads: what each of them does with what it finds in its lane.
//!
//! ```text
//! submit --a lane a tier---> worker_threads each create, seal, sync, detach --retire lane--> its retire thread
//!        --transfer lane--> transfer_threads  copies, each thread with its own ring and staging
//!                             '--groups for a segment file--> a sync thread for each lane of `packed`
//! ```
//! A thread ends when its lane is closed and empty, so what was submitted is always carried out. A panic is answered
//! with an `Io` error (a drop is handed to the retire thread), so that no completion is ever lost.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender};
use payload_types::effect::{ReplicaRef, StorageAction, StorageOp, TransferOp};
use payload_types::event::{
    Completion, Copied, DriverError, DriverErrorKind, StorageDone, TransferDone, TransferError,
};
use payload_types::{ShardIndex, Tier};

use crate::CompletionSink;
use crate::fault::finding;
use crate::packed::syncer::Written;
use crate::packed::writer::{GROUP_BYTES_MAX, GROUP_OPS_MAX, Group, Way};
use crate::retire::Retired;
use crate::store::limbo::Limbo;
use crate::stores::Stores;
use crate::transfer;
use crate::transfer::engine::Engine;
use crate::transfer::pipeline::Pipeline;
use crate::transfer::scrub::{self, Pace, Stop};

/// Carries out storage ops until the lane is closed.
pub(crate) fn run_storage(
    stores: &Arc<Stores>,
    lane: &Receiver<StorageOp>,
    retire: &Sender<Retired>,
    sink: &CompletionSink,
) {
    for StorageOp { shard, op, replica, action } in lane {
        let work = |work: &dyn Fn() -> Result<(), DriverError>| {
            catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(panicked(&*panic)))
        };
        let done = match action {
            StorageAction::Create => {
                let result = work(&|| stores.get(replica.tier)?.create(&replica));
                StorageDone::Created { op, result }
            }
            StorageAction::Seal { sync } => {
                let result = work(&|| stores.get(replica.tier)?.seal(&replica, sync));
                StorageDone::Sealed { op, result }
            }
            StorageAction::Sync => {
                let result = work(&|| stores.get(replica.tier)?.sync(&replica));
                StorageDone::Synced { op, result }
            }
            StorageAction::Verify { .. } => unreachable!("verifications have a lane of their own"),
            StorageAction::Stay => {
                if let Some(packed) = stores.packed() {
                    packed.relocated(&replica, false);
                }
                continue;
            }
            StorageAction::Drop => {
                drop_replica(stores, shard, replica, retire, sink);
                continue;
            }
        };
        sink(shard, Completion::Storage(done));
    }
}

/// Answers a drop, or hands it to who will.
fn drop_replica(
    stores: &Stores,
    shard: ShardIndex,
    replica: ReplicaRef,
    retire: &Sender<Retired>,
    sink: &CompletionSink,
) {
    let (tier, generation) = (replica.tier, replica.generation);
    let detached = || sink(shard, Completion::Storage(StorageDone::Detached { tier, generation }));
    let freed = || sink(shard, Completion::Storage(StorageDone::Freed { tier, generation }));
    if let (Some(packed), Some(extent)) = (stores.packed(), replica.extent) {
        // First: as soon as the books know, upkeep may recycle the whole file and tell `Freed`.
        detached();
        let stays = catch_unwind(AssertUnwindSafe(|| packed.dropped(shard, &replica, extent)))
            .inspect_err(|panic| drop(panicked(&**panic)))
            .unwrap_or(true);
        if !stays {
            freed();
        }
        return;
    }
    let store = match stores.get(tier) {
        Ok(store) if replica.extent.is_none() => store,
        // A row of an earlier configuration: what this node cannot reach is not its to free.
        _ => {
            detached();
            freed();
            return;
        }
    };
    let at_once = catch_unwind(AssertUnwindSafe(|| store.drop_at_once(&replica)))
        .inspect_err(|panic| drop(panicked(&**panic)));
    if let Ok(Ok(Limbo::Freed)) = at_once {
        detached();
        freed();
        return;
    }
    let is_detached = catch_unwind(AssertUnwindSafe(|| store.detach(&replica)))
        .inspect_err(|panic| drop(panicked(&**panic)))
        .is_ok_and(|result| result.is_ok());
    if is_detached {
        detached();
    }
    let retired = Retired { shard, replica, is_detached };
    retire.send(retired).expect("the retire thread outlives the workers");
}

/// Carries out copies until the lane is closed: what goes into a segment file together with what waits behind it, all
/// else one by one.
pub(crate) fn run_transfers(
    stores: &Arc<Stores>,
    lane: &Receiver<TransferOp>,
    engine: &dyn Fn() -> std::io::Result<Box<dyn Engine>>,
    sink: &CompletionSink,
    syncers: &[Sender<Written>],
) {
    let mut copier = Copier { stores, engine, sink, syncers, pipeline: None };
    let mut queue = Queue { stores, lane, taken: None, group: None };
    while let Some(work) = queue.next() {
        match work {
            Work::Alone(op) => copier.copy_alone(&op),
            Work::Together(way, ops) => copier.write_together(way, ops, &mut || queue.more(way)),
        }
    }
}

/// What a transfer thread does next.
enum Work {
    Alone(TransferOp),
    /// Into a segment file.
    Together(Way, Vec<TransferOp>),
}

/// The lane, and what this thread took from it and has not begun.
struct Queue<'thread> {
    stores: &'thread Stores,
    lane: &'thread Receiver<TransferOp>,
    /// It belongs to no group, or to the next one.
    taken: Option<TransferOp>,
    group: Option<(Way, Vec<TransferOp>)>,
}

impl Queue<'_> {
    /// `None`: the lane is closed and empty.
    fn next(&mut self) -> Option<Work> {
        // A promotion, or a copy for a lease, is not kept behind a group: a client waits for it.
        if let Some(op) = self.taken.take_if(|op| op.to.tier != Tier::Disk || op.alone) {
            return Some(Work::Alone(op));
        }
        if let Some((way, ops)) = self.group.take() {
            return Some(Work::Together(way, ops));
        }
        let op = self.taken.take().or_else(|| self.lane.recv().ok())?;
        match self.way(&op) {
            Some(way) => {
                self.gather(way, op);
                self.next()
            }
            None => Some(Work::Alone(op)),
        }
    }

    /// What waits for the same way, unless something else comes first.
    fn more(&mut self, way: Way) -> Option<Vec<TransferOp>> {
        if self.group.is_none() {
            let op = self.taken.take().or_else(|| self.lane.try_recv().ok())?;
            if self.way(&op) != Some(way) {
                self.taken = Some(op);
                return None;
            }
            self.gather(way, op);
        }
        if self.taken.as_ref().is_some_and(|op| self.way(op).is_none()) {
            return None;
        }
        self.group.take().map(|(_, ops)| ops)
    }

    /// Makes a group of an operation and of what waits behind it. Nobody waits for a group to fill: it is what came while
    /// the thread was busy.
    fn gather(&mut self, way: Way, op: TransferOp) {
        let mut bytes = op.to.size.0;
        let mut ops = vec![op];
        while ops.len() < GROUP_OPS_MAX
            && let Ok(op) = self.lane.try_recv()
        {
            bytes += op.to.size.0;
            if self.way(&op) != Some(way) || bytes > GROUP_BYTES_MAX {
                self.taken = Some(op);
                break;
            }
            ops.push(op);
        }
        self.group = Some((way, ops));
    }

    fn way(&self, op: &TransferOp) -> Option<Way> {
        self.stores.packed().and_then(|packed| packed.way(op))
    }
}

/// A transfer thread's own.
struct Copier<'thread> {
    stores: &'thread Stores,
    engine: &'thread dyn Fn() -> std::io::Result<Box<dyn Engine>>,
    sink: &'thread CompletionSink,
    syncers: &'thread [Sender<Written>],
    pipeline: Option<Pipeline>,
}

impl Copier<'_> {
    fn copy_alone(&mut self, op: &TransferOp) {
        let copied =
            catch_unwind(AssertUnwindSafe(|| copy(self.stores, op, self.engine, &mut self.pipeline)));
        let result = copied.unwrap_or_else(|panic| Err(TransferError::Destination(panicked(&*panic))));
        drained(&mut self.pipeline);
        answer(self.stores, self.sink, op, result.map(|checksum| Copied { checksum, extent: None }));
    }

    /// Writes a group, and what comes meanwhile for the same way.
    fn write_together(
        &mut self,
        way: Way,
        ops: Vec<TransferOp>,
        more: &mut dyn FnMut() -> Option<Vec<TransferOp>>,
    ) {
        let (stores, sink) = (self.stores, self.sink);
        let packed = stores.packed().expect("only it has a way for them");
        let answer = |op: &TransferOp, result| answer(stores, sink, op, result);
        let mut group = Group::new(ops, &answer, self.syncers);
        let written = catch_unwind(AssertUnwindSafe(|| {
            let pipeline = prepared(&mut self.pipeline, self.engine)?;
            packed.write(stores, way, &mut group, more, pipeline);
            Ok(())
        }));
        drained(&mut self.pipeline);
        let left: Vec<TransferOp> = group.left().collect();
        match written.unwrap_or_else(|panic| Err(panicked(&*panic))) {
            // What had no place there gets a file of its own.
            Ok(()) => left.iter().for_each(|op| self.copy_alone(op)),
            Err(error) => {
                left.iter().for_each(|op| answer(op, Err(TransferError::Destination(error.clone()))));
            }
        }
    }
}

/// Answers a copy, and tells the books and upkeep of one that was a relocation.
pub(crate) fn answer(
    stores: &Stores,
    sink: &CompletionSink,
    op: &TransferOp,
    result: Result<Copied, TransferError>,
) {
    if let (Some(packed), Some(extent), Tier::Disk, false) =
        (stores.packed(), op.from.extent, op.to.tier, op.alone)
    {
        if result.is_ok() {
            packed.books().moved(extent, op.from.size);
        }
        packed.relocated(&op.from, result.is_ok());
    }
    sink(op.shard, Completion::Transfer(TransferDone { op: op.op, result }));
}

/// Carries out verifications, one at a time and at their pace, until the lane is closed.
pub(crate) fn run_scrub(
    stores: &Arc<Stores>,
    lane: &Receiver<StorageOp>,
    engine: &dyn Fn() -> std::io::Result<Box<dyn Engine>>,
    stop: &Stop,
    sink: &CompletionSink,
) {
    let mut pipeline = None;
    let mut pace = Pace::new(stop);
    for StorageOp { shard, op, replica, action } in lane {
        let StorageAction::Verify { expected, bytes_per_second } = action else {
            unreachable!("only verifications are submitted to this lane")
        };
        let result = catch_unwind(AssertUnwindSafe(|| {
            let store = stores.get(replica.tier)?;
            let pipeline = prepared(&mut pipeline, engine)?;
            scrub::verify(&replica, expected, bytes_per_second, store, pipeline, &mut pace)
        }))
        .unwrap_or_else(|panic| Err(panicked(&*panic)));
        drained(&mut pipeline);
        sink(shard, Completion::Storage(StorageDone::Verified { op, result }));
    }
}

/// The thread's pipeline; made at first use, and again after one failed.
pub(crate) fn prepared<'slot>(
    pipeline: &'slot mut Option<Pipeline>,
    engine: &dyn Fn() -> std::io::Result<Box<dyn Engine>>,
) -> Result<&'slot mut Pipeline, DriverError> {
    Ok(match pipeline {
        Some(pipeline) => pipeline,
        None => {
            let engine = engine().map_err(|error| crate::fault::fault("preparing the I/O engine", &error))?;
            pipeline.insert(Pipeline::new(engine))
        }
    })
}

/// After an error chunks may still be under way; nobody is answered before their buffers are ours again.
pub(crate) fn drained(pipeline: &mut Option<Pipeline>) {
    if let Some(used) = pipeline
        && let Err(error) = used.drain()
    {
        tracing::error!("the I/O engine failed and is replaced: {error}");
        *pipeline = None;
    }
}

fn copy(
    stores: &Stores,
    op: &TransferOp,
    engine: &dyn Fn() -> std::io::Result<Box<dyn Engine>>,
    pipeline: &mut Option<Pipeline>,
) -> Result<payload_types::Checksum, TransferError> {
    let from = stores.get(op.from.tier).map_err(TransferError::Source)?;
    let to = stores.get(op.to.tier).map_err(TransferError::Destination)?;
    let pipeline = prepared(pipeline, engine).map_err(TransferError::Destination)?;
    transfer::run(op, from, to, pipeline)
}

pub(crate) fn panicked(panic: &(dyn Any + Send)) -> DriverError {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
    tracing::error!("a driver thread panicked: {text}");
    finding(DriverErrorKind::Io, format!("the driver failed unexpectedly: {text}"))
}
