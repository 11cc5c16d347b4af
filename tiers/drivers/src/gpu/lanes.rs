//! The tier's threads. No other thread of the server calls a device.
//!
//! ```text
//! submit --entry lane--> pm-gpu (charges, chooses the device; calls none)
//!                          |--jobs---> pm-gpu-N         create, seal, drop: one thread a device
//!                          |--copies-> pm-gpu-N-copy-M  COPIES_AT_ONCE threads a device, each with a stream and staging; the
//!                          |                            object store's threads ask these for parts, too ([`super::remote`])
//!                          |        '-> pm-gpu-N-help-M  which help with large copies ([`super::striped`])
//!                          '--scrubs-> pm-gpu-scrub     verifications of all devices, one at a time, at their pace
//! ```
//! What was submitted is always answered, also after a panic and at the end. Lanes hold what all shards can have under way, and an
//! op is in one of them at a time, so none is ever full. A drop is `Detached` and `Freed` at once: the shard drops a replica once
//! its leases have ended.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded};
use payload_types::effect::{StorageAction, StorageOp, TransferOp};
use payload_types::event::{
    Completion, Copied, DriverError, DriverErrorKind, StorageDone, TransferDone, TransferError,
};
use payload_types::limits::PAGE_BYTES;
use payload_types::{ByteCount, Checksum, Tier};

use super::copy::{self, Tools};
use super::device::Stream;
use super::places::Held;
use super::remote::Remote;
use super::store::GpuStore;
use super::striped::{STRIPED_BYTES_MIN, Striped};
use crate::fault::finding;
use crate::store::offset_of;
use crate::stores::Stores;
use crate::transfer::engine::Engine;
use crate::transfer::pipeline::Pipeline;
use crate::transfer::scrub::{Pace, Stop};
use crate::transfer::vouched;
use crate::workers::{drained, panicked, prepared};
use crate::{CompletionSink, DriverOp};

/// Copies of one device at a time. Two keep the link busy while one of them opens files; the other way of a full-duplex link
/// is the second one's where a spill and a promotion meet.
const COPIES_AT_ONCE: usize = 2;

/// Threads of each device that help with large copies: a quarter of the cores, six at most. Seven threads that hash 10 GB/s each
/// are what the fastest link (PCIe 5, 16 lanes) carries.
pub(super) fn helper_count() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 4).clamp(1, 6))
}

/// How long the end waits for a device that does not answer.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// What a verification counts for at least.
const BYTES_MIN: u64 = 4 * PAGE_BYTES;

/// Makes a disk engine for the calling thread.
pub(crate) type EngineMaker = Arc<dyn Fn() -> std::io::Result<Box<dyn Engine>> + Send + Sync>;

/// What the threads share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(super) store: Arc<GpuStore>,
    pub(super) stores: Arc<Stores>,
    pub(super) sink: CompletionSink,
    /// Makes a copying thread's disk engine.
    pub(super) engine: EngineMaker,
    /// Threads of each device that help with large copies.
    pub(super) helper_count: usize,
}

impl Shared {
    fn answer(&self, op: &StorageOp, done: StorageDone) {
        (self.sink)(op.shard, Completion::Storage(done));
    }

    fn copied(&self, op: &TransferOp, result: Result<Checksum, TransferError>) {
        let result = result.map(|checksum| Copied { checksum, extent: None });
        (self.sink)(op.shard, Completion::Transfer(TransferDone { op: op.op, result }));
    }
}

/// The lanes and their threads.
pub(crate) struct Lanes {
    entry: Sender<DriverOp>,
    remote: Remote,
    threads: Vec<JoinHandle<()>>,
}

/// Where one device's work goes.
struct Ways {
    jobs: Sender<StorageOp>,
    copies: Sender<Work>,
}

/// What a copying thread does.
pub(super) enum Work {
    /// A copy of a shard's.
    Copy(TransferOp),
    /// A part of one between a device and the object store, whose threads wait for it.
    Ask(Box<dyn FnOnce(&mut Copying<'_>) + Send>),
}

impl Lanes {
    /// Starts the threads.
    ///
    /// # Panics
    /// When the system refuses one.
    pub(crate) fn start(shared: &Shared, stop: &Arc<Stop>, lane_len: usize) -> Self {
        let (entry, entry_lane) = bounded(lane_len);
        let mut threads = Vec::new();
        let mut spawn = |name: String, body: Box<dyn FnOnce() + Send>| {
            let thread = std::thread::Builder::new().name(name).spawn(body);
            threads.push(thread.expect("the system has room for the driver threads"));
        };
        let (scrubs, scrub_lane) = bounded(lane_len);
        let scrubbing = {
            let (shared, stop) = (shared.clone(), Arc::clone(stop));
            let (busy, over) = bounded::<()>(0);
            let body = move || {
                run_scrubs(&shared, &stop, &scrub_lane);
                drop(busy);
            };
            spawn("pm-gpu-scrub".to_owned(), Box::new(body));
            over
        };
        let mut ways = Vec::new();
        for (index, slot) in shared.store.slots.iter().enumerate() {
            let (jobs, job_lane) = bounded(lane_len);
            let (copies, copy_lane) = bounded(lane_len);
            let (helpers, help_lane) = bounded(COPIES_AT_ONCE * shared.helper_count);
            ways.push(Ways { jobs, copies });
            let name = format!("pm-gpu-{}", slot.id);
            let mut users = vec![scrubbing.clone()];
            for number in 0..COPIES_AT_ONCE {
                let (shared, lane) = (shared.clone(), Receiver::clone(&copy_lane));
                let (helpers, (busy, over)) = (helpers.clone(), bounded::<()>(0));
                users.push(over);
                let body = move || {
                    Copying::new(&shared, index, Some(&helpers)).run(&lane);
                    drop(busy);
                };
                spawn(format!("{name}-copy-{number}"), Box::new(body));
            }
            for number in 0..shared.helper_count {
                let (shared, lane) = (shared.clone(), Receiver::clone(&help_lane));
                let (busy, over) = bounded::<()>(0);
                users.push(over);
                let body = move || {
                    Copying::new(&shared, index, None).run(&lane);
                    drop(busy);
                };
                spawn(format!("{name}-help-{number}"), Box::new(body));
            }
            let shared = shared.clone();
            spawn(name, Box::new(move || run_jobs(&shared, index, &job_lane, &users)));
        }
        let remote = Remote {
            store: Arc::clone(&shared.store),
            lanes: ways.iter().map(|way| way.copies.clone()).collect(),
        };
        let routed = shared.clone();
        let body = move || entry_lane.iter().for_each(|op| route(&routed, &ways, &scrubs, op));
        spawn("pm-gpu".to_owned(), Box::new(body));
        Self { entry, remote, threads }
    }

    /// The devices, for the object store's threads.
    pub(crate) fn remote(&self) -> Remote {
        self.remote.clone()
    }

    /// True when the op is the tier's to do.
    pub(crate) fn takes(op: &DriverOp) -> bool {
        match op {
            DriverOp::Storage(op) => op.replica.tier == Tier::Gpu,
            DriverOp::Transfer(op) => op.from.tier == Tier::Gpu || op.to.tier == Tier::Gpu,
        }
    }

    /// Takes an op; false: its lane is full.
    pub(crate) fn submit(&self, op: DriverOp) -> bool {
        self.entry.try_send(op).is_ok()
    }

    /// Carries out what was submitted, frees all device memory, and ends the threads. A device that does not answer is left to the
    /// end of the process.
    pub(crate) fn end(self) {
        let Self { entry, remote, threads } = self;
        drop((entry, remote));
        let end = Instant::now() + END_PATIENCE;
        while threads.iter().any(|thread| !thread.is_finished()) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(2));
        }
        for thread in threads {
            if !thread.is_finished() {
                tracing::error!("a GPU did not answer within {END_PATIENCE:?}; its work is left");
            } else if thread.join().is_err() {
                tracing::error!("a thread of the GPU tier ended by a panic");
            }
        }
    }
}

/// Hands an op to the threads of its device; answers what no device is needed for.
fn route(shared: &Shared, ways: &[Ways], scrubs: &Sender<StorageOp>, op: DriverOp) {
    const OUTLIVES: &str = "a device's threads outlive the one that gives them work";
    match op {
        DriverOp::Storage(op) => match op.action {
            StorageAction::Create => match shared.store.charge(&op.replica) {
                Ok(slot) => ways[slot].jobs.send(op).expect(OUTLIVES),
                Err(error) => {
                    shared.answer(&op, StorageDone::Created { op: op.op, result: Err(error) });
                }
            },
            StorageAction::Verify { .. } => scrubs.send(op).expect(OUTLIVES),
            StorageAction::Stay => {}
            StorageAction::Seal { .. } | StorageAction::Sync | StorageAction::Drop => {
                // One that is on no device has the first one's thread answer so.
                let slot = shared.store.places.find(&op.replica).map_or(0, |held| held.slot);
                ways[slot].jobs.send(op).expect(OUTLIVES);
            }
        },
        DriverOp::Transfer(op) => {
            let slot = match (op.from.tier, op.to.tier) {
                (Tier::Gpu, Tier::Ram | Tier::Disk) => {
                    shared.store.find(&op.from).map(|held| held.slot).map_err(TransferError::Source)
                }
                (Tier::Ram | Tier::Disk, Tier::Gpu) => {
                    shared.store.charge(&op.to).map_err(TransferError::Destination)
                }
                (from, to) => {
                    let message = format!("no driver copies from {from} to {to}");
                    Err(TransferError::Destination(finding(DriverErrorKind::Io, message)))
                }
            };
            match slot {
                Ok(slot) => {
                    let sent = ways[slot].copies.send(Work::Copy(op));
                    assert!(sent.is_ok(), "{OUTLIVES}");
                }
                Err(error) => shared.copied(&op, Err(error)),
            }
        }
    }
}

/// Carries out what makes and frees memory of one device; once nobody uses it any more, frees all of it.
fn run_jobs(shared: &Shared, slot: usize, lane: &Receiver<StorageOp>, users: &[Receiver<()>]) {
    for op in lane {
        let StorageOp { op: id, replica, action, .. } = op;
        let work = |work: &dyn Fn() -> Result<(), DriverError>| {
            catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(panicked(&*panic)))
        };
        let done = match action {
            StorageAction::Create => {
                StorageDone::Created { op: id, result: work(&|| shared.store.create(slot, &replica)) }
            }
            StorageAction::Seal { .. } => {
                StorageDone::Sealed { op: id, result: work(&|| shared.store.seal(&replica)) }
            }
            // Device memory has no stable storage.
            StorageAction::Sync => {
                let result = work(&|| shared.store.find(&replica).map(drop));
                StorageDone::Synced { op: id, result }
            }
            StorageAction::Drop => {
                let _ = work(&|| {
                    shared.store.drop_replica(&replica);
                    Ok(())
                });
                let (tier, generation) = (replica.tier, replica.generation);
                shared.answer(&op, StorageDone::Detached { tier, generation });
                StorageDone::Freed { tier, generation }
            }
            StorageAction::Verify { .. } | StorageAction::Stay => unreachable!("routed elsewhere"),
        };
        shared.answer(&op, done);
    }
    for thread in users {
        let _ = thread.recv(); // an error: it has ended
    }
    shared.store.clear(slot);
}

/// A copying thread's own.
pub(super) struct Copying<'thread> {
    shared: &'thread Shared,
    slot: usize,
    /// Where help is asked for; helpers have none.
    helpers: Option<&'thread Sender<Work>>,
    stream: Option<Box<dyn Stream>>,
    pipeline: Option<Pipeline>,
}

impl<'thread> Copying<'thread> {
    fn new(shared: &'thread Shared, slot: usize, helpers: Option<&'thread Sender<Work>>) -> Self {
        Self { shared, slot, helpers, stream: None, pipeline: None }
    }

    fn run(mut self, lane: &Receiver<Work>) {
        for work in lane {
            match work {
                Work::Copy(op) => {
                    let copied = catch_unwind(AssertUnwindSafe(|| self.copy(&op)));
                    let result =
                        copied.unwrap_or_else(|panic| Err(TransferError::Destination(panicked(&*panic))));
                    self.shared.copied(&op, result);
                }
                // Whoever asked hears of a panic by the end of his channel.
                Work::Ask(work) => {
                    let _ = catch_unwind(AssertUnwindSafe(|| work(&mut self)))
                        .inspect_err(|panic| drop(panicked(&**panic)));
                }
            }
        }
    }

    pub(super) fn store(&self) -> &GpuStore {
        &self.shared.store
    }

    /// Some bytes of a replica.
    pub(super) fn read(&mut self, held: &Held, begin: u64, length: usize) -> Result<Vec<u8>, DriverError> {
        let slot = &self.shared.store.slots[self.slot];
        self.with_stream(
            |error| error,
            |stream| {
                let mut bytes = Vec::with_capacity(length);
                let size = ByteCount(length as u64);
                copy::read(
                    stream,
                    &held.allocation,
                    begin,
                    size,
                    |error| slot.heard(error),
                    |_, part| {
                        bytes.extend_from_slice(part);
                        Ok(())
                    },
                )?;
                Ok(bytes)
            },
        )
    }

    /// Puts some bytes into a replica that nobody is shown yet.
    pub(super) fn write(&mut self, held: &Held, begin: u64, bytes: &[u8]) -> Result<(), DriverError> {
        let slot = &self.shared.store.slots[self.slot];
        self.with_stream(
            |error| error,
            |stream| copy::write(stream, &held.allocation, begin, bytes).map_err(|error| slot.heard(error)),
        )
    }

    fn copy(&mut self, op: &TransferOp) -> Result<Checksum, TransferError> {
        if op.from.tier == Tier::Gpu { self.spill(op) } else { self.promote(op) }
    }

    fn spill(&mut self, op: &TransferOp) -> Result<Checksum, TransferError> {
        let shared = self.shared;
        let held = shared.store.find(&op.from).map_err(TransferError::Source)?;
        let to = shared.stores.get(op.to.tier).map_err(TransferError::Destination)?;
        let result = copy::spill(op, to, |draft| {
            if let Some(helpers) = self.helpers
                && op.to.tier == Tier::Ram
                && op.to.size.0 >= STRIPED_BYTES_MIN
            {
                return Striped::down(op, &held, &draft.file).run(self, helpers, shared.helper_count);
            }
            self.with_tools(TransferError::Source, |tools| {
                copy::into_draft(op, &held.allocation, to, draft, tools)
            })
        });
        result.inspect_err(|error| self.hear(error))
    }

    fn promote(&mut self, op: &TransferOp) -> Result<Checksum, TransferError> {
        let (shared, slot) = (self.shared, self.slot);
        let store = &shared.store;
        let result = self.promoted(op, &shared.stores);
        if let Err(error) = &result {
            store.discharge(slot, &op.to);
            self.hear(error);
        }
        result
    }

    fn promoted(&mut self, op: &TransferOp, stores: &Stores) -> Result<Checksum, TransferError> {
        let (shared, slot) = (self.shared, self.slot);
        let from = stores.get(op.from.tier).map_err(TransferError::Source)?;
        let held = shared.store.allocate(slot, &op.to).map_err(TransferError::Destination)?;
        let held = Arc::new(held);
        let copied = match self.helpers {
            Some(helpers) if op.from.tier == Tier::Ram && op.from.size.0 >= STRIPED_BYTES_MIN => {
                from.open_source(op).map_err(TransferError::Source).and_then(|source| {
                    let copy = Striped::up(op, &held, &Arc::new(source), offset_of(&op.from));
                    let found = copy.run(self, helpers, shared.helper_count)?;
                    vouched(op, found).map_err(TransferError::Source)
                })
            }
            _ => self.with_tools(TransferError::Destination, |tools| {
                copy::promote(op, from, &held.allocation, tools)
            }),
        };
        match copied {
            Ok(_) => shared.store.places.enter(&op.to, held),
            // Nothing is under way: `with_tools` saw to that.
            Err(_) => shared.store.release(slot, &held.allocation),
        }
        copied
    }

    /// Lends stream and disk engine to a copy, and has nothing under way afterwards, also after a panic.
    fn with_tools(
        &mut self,
        side: fn(DriverError) -> TransferError,
        work: impl FnOnce(&mut Tools<'_>) -> Result<Checksum, TransferError>,
    ) -> Result<Checksum, TransferError> {
        let engine = Arc::clone(&self.shared.engine);
        prepared(&mut self.pipeline, &*engine).map_err(TransferError::Destination)?;
        let mut pipeline = self.pipeline.take();
        let result = self.with_stream(side, |stream| {
            let pipeline = pipeline.as_mut().expect("it was just prepared");
            catch_unwind(AssertUnwindSafe(|| work(&mut Tools { stream, pipeline })))
                .unwrap_or_else(|panic| Err(TransferError::Destination(panicked(&*panic))))
        });
        drained(&mut pipeline);
        self.pipeline = pipeline;
        result
    }

    /// Lends the stream, and has nothing under way afterwards. One that failed is replaced: dropping it waits.
    pub(super) fn with_stream<T, E>(
        &mut self,
        side: impl Fn(DriverError) -> E,
        work: impl FnOnce(&mut dyn Stream) -> Result<T, E>,
    ) -> Result<T, E> {
        let slot = &self.shared.store.slots[self.slot];
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => slot.device.stream().map_err(|error| side(slot.heard(error)))?,
        };
        let result = work(&mut *stream);
        if copy::drain(&mut *stream).is_ok() && result.is_ok() {
            self.stream = Some(stream);
        }
        result
    }

    /// A copy's error may be the end of the device.
    fn hear(&self, error: &TransferError) {
        let (TransferError::Source(error) | TransferError::Destination(error)) = error;
        if error.kind == DriverErrorKind::DeviceLost {
            self.shared.store.slots[self.slot].lose(&error.message);
        }
    }
}

fn run_scrubs(shared: &Shared, stop: &Stop, lane: &Receiver<StorageOp>) {
    let mut pace = Pace::new(stop);
    for op in lane {
        let StorageAction::Verify { expected, bytes_per_second } = op.action else {
            unreachable!("only verifications are submitted to this lane")
        };
        let mut paced = |bytes: u64| {
            let goes_on = pace.keep(bytes.max(BYTES_MIN), bytes_per_second);
            goes_on.then_some(()).ok_or_else(|| finding(DriverErrorKind::Io, "the server is stopping"))
        };
        let result = catch_unwind(AssertUnwindSafe(|| {
            let held = shared.store.find(&op.replica)?;
            paced(0)?;
            let slot = &shared.store.slots[held.slot];
            // Pinning 16 MiB takes milliseconds, which nobody waits for here.
            let mut stream = slot.device.stream().map_err(|error| slot.heard(error))?;
            copy::verify(&op.replica, expected, &held.allocation, &mut *stream, &mut paced)
        }))
        .unwrap_or_else(|panic| Err(panicked(&*panic)));
        shared.answer(&op, StorageDone::Verified { op: op.op, result });
    }
}
