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
    let mut taken = None;
    while let Some(op) = taken.take().or_else(|| lane.recv().ok()) {
        let way_of = |op: &TransferOp| stores.packed().and_then(|packed| packed.way(op));
        let Some(way) = way_of(&op) else {
            copier.copy_alone(&op);
            continue;
        };
        let mut bytes = op.to.size.0;
        let mut ops = vec![op];
        // Nobody waits for a group to fill: it is what came while the thread was busy.
        while ops.len() < GROUP_OPS_MAX
            && let Ok(op) = lane.try_recv()
        {
            bytes += op.to.size.0;
            if way_of(&op) != Some(way) || bytes > GROUP_BYTES_MAX {
                taken = Some(op);
                break;
            }
            ops.push(op);
        }
        // A promotion, or a copy for a lease, is not kept behind it: a client waits for it.
        if let Some(op) = taken.take_if(|op| op.to.tier != Tier::Disk || op.alone) {
            copier.copy_alone(&op);
        }
        copier.write_together(way, ops);
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

    fn write_together(&mut self, way: Way, ops: Vec<TransferOp>) {
        let (stores, sink) = (self.stores, self.sink);
        let packed = stores.packed().expect("only it has a way for them");
        let answer = |op: &TransferOp, result| answer(stores, sink, op, result);
        let mut group = Group::new(ops, &answer, self.syncers);
        let written = catch_unwind(AssertUnwindSafe(|| {
            let pipeline = prepared(&mut self.pipeline, self.engine)?;
            packed.write(stores, way, &mut group, pipeline);
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
fn prepared<'slot>(
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
fn drained(pipeline: &mut Option<Pipeline>) {
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
