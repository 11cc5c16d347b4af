//! What shards ask of the object store: threads that wait for the driver's answers, so that copies with an end there are ops like any
//! other.
//!
//! ```text
//! submit --copies--> threads: open the source -> ObjectDriver::upload, or a draft <- ObjectDriver::download -> name it --> TransferDone
//!        --Create, Seal (it is looked at), Drop, Verify--> threads ----------------------------------------------------> StorageDone
//! ```
//! A copy out of the store is in a draft until all of it is there and has its checksum. How an object is compressed is read from its
//! sidecar, whatever is configured now. A drop that fails leaves an entry in the journal, and is answered all the same: the next sweep
//! deletes the object. An object that is gone with its sidecar is lost where this is proven to be the store that it was put into
//! ([`Proof`]); else it says nothing of the payload. Limits: [`COPIES_AT_ONCE`] copies, each within the driver's own memory.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded};
use payload_types::effect::{ReplicaRef, StorageAction, StorageOp, TransferOp};
use payload_types::event::{
    Completion, Copied, DriverError, DriverErrorKind, StorageDone, TransferDone, TransferError,
};
use payload_types::limits::GENERATION_COUNTER_BITS;
use payload_types::{ByteCount, Checksum, Generation, PayloadId, Tier};

use crate::fault::finding;
use crate::gpu::remote::Remote;
use crate::object::{
    Archive, Compression, Download, FileRange, ObjectDriver, ObjectError, ObjectErrorKind, Sink, Source,
    Upload,
};
use crate::store::draft::Draft;
use crate::store::offset_of;
use crate::stores::Stores;
use crate::workers::panicked;
use crate::{CompletionSink, DriverOp};

/// As many as the driver moves at a time.
const COPIES_AT_ONCE: usize = 8;
/// Looks and drops, which are short.
const LOOKS_AT_ONCE: usize = 2;
/// How long the end waits for what is under way.
const END_PATIENCE: Duration = Duration::from_secs(2);

/// What is known of a payload beyond its bytes, for its sidecar. Called on the threads here: it may block.
pub type ArchiveSource = Arc<dyn Fn(PayloadId) -> Archive + Send + Sync>;

/// The store of a node's OBJECT tier.
#[derive(Clone)]
pub(crate) struct Objects {
    pub(crate) driver: Arc<ObjectDriver>,
    pub(crate) source: ArchiveSource,
}

/// Whether `root_path` names the store that objects were put into. What this run stored it put there. That the objects of earlier
/// runs are there is proven by the first of them that is found.
#[derive(Default)]
struct Proof {
    /// The newest epoch seen in anything that is written: this run's.
    epoch: AtomicU64,
    earlier_found: AtomicBool,
}

fn epoch_of(generation: Generation) -> u64 {
    generation.0 >> GENERATION_COUNTER_BITS
}

impl Proof {
    fn writes(&self, to: Generation) {
        self.epoch.fetch_max(epoch_of(to), Relaxed);
    }

    /// An object is where it must be.
    fn found(&self, from: Generation) {
        if epoch_of(from) < self.epoch.load(Relaxed) {
            self.earlier_found.store(true, Relaxed);
        }
    }

    /// Whether an object that is not there was there once.
    fn holds(&self, from: Generation) -> bool {
        self.earlier_found.load(Relaxed) || epoch_of(from) == self.epoch.load(Relaxed)
    }
}

/// The lanes and their threads.
pub(crate) struct Lanes {
    copies: Sender<TransferOp>,
    looks: Sender<StorageOp>,
    driver: Arc<ObjectDriver>,
    threads: Vec<JoinHandle<()>>,
}

impl Lanes {
    /// Starts the threads.
    ///
    /// # Panics
    /// When the system refuses one.
    pub(crate) fn start(
        objects: &Objects,
        stores: &Arc<Stores>,
        sink: &CompletionSink,
        gpu: Option<Remote>,
        lane_len: usize,
    ) -> Self {
        let proof = Arc::<Proof>::default();
        let ends = Ends { stores: Arc::clone(stores), gpu, proof: Arc::clone(&proof) };
        let (copies, copy_lane) = bounded(lane_len);
        let (looks, look_lane) = bounded(lane_len);
        let mut threads = Vec::new();
        let mut spawn = |name: String, body: Box<dyn FnOnce() + Send>| {
            let thread = std::thread::Builder::new().name(name).spawn(body);
            threads.push(thread.expect("the system has room for the driver threads"));
        };
        for index in 0..COPIES_AT_ONCE {
            let (objects, ends, sink, lane) =
                (objects.clone(), ends.clone(), Arc::clone(sink), Receiver::clone(&copy_lane));
            let body = move || run_copies(&objects, &ends, &lane, &sink);
            spawn(format!("pm-object-{index}"), Box::new(body));
        }
        for index in 0..LOOKS_AT_ONCE {
            let (objects, sink, lane) = (objects.clone(), Arc::clone(sink), Receiver::clone(&look_lane));
            let proof = Arc::clone(&proof);
            let body = move || run_looks(&objects.driver, &proof, &lane, &sink);
            spawn(format!("pm-object-look-{index}"), Box::new(body));
        }
        Self { copies, looks, driver: Arc::clone(&objects.driver), threads }
    }

    /// True when the op is the store's to do.
    pub(crate) fn takes(op: &DriverOp) -> bool {
        match op {
            DriverOp::Storage(op) => op.replica.tier == Tier::Object,
            DriverOp::Transfer(op) => op.from.tier == Tier::Object || op.to.tier == Tier::Object,
        }
    }

    /// Takes an op; false: its lane is full.
    pub(crate) fn submit(&self, op: DriverOp) -> bool {
        match op {
            DriverOp::Storage(op) => self.looks.try_send(op).is_ok(),
            DriverOp::Transfer(op) => self.copies.try_send(op).is_ok(),
        }
    }

    /// Ends the threads. What the store does not answer in time is left to the end of the process, and to the next start's sweep.
    pub(crate) fn end(self) {
        let Self { copies, looks, driver, threads } = self;
        drop((copies, looks));
        driver.stop();
        let end = Instant::now() + END_PATIENCE;
        while threads.iter().any(|thread| !thread.is_finished()) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        for thread in threads.into_iter().filter(JoinHandle::is_finished) {
            if thread.join().is_err() {
                tracing::error!("a thread of the object store ended by a panic");
            }
        }
    }
}

/// Waits for the answer to what `ask` submits.
fn answer<T: Send + 'static>(
    ask: impl FnOnce(Box<dyn FnOnce(Result<T, ObjectError>) + Send>) -> Result<(), ObjectError>,
) -> Result<T, ObjectError> {
    let (sender, receiver) = mpsc::sync_channel(1);
    ask(Box::new(move |result| drop(sender.send(result))))?;
    receiver.recv().unwrap_or_else(|_dropped| Err(ObjectError::stopping()))
}

/// Where copies come from and go to.
#[derive(Clone)]
struct Ends {
    stores: Arc<Stores>,
    gpu: Option<Remote>,
    proof: Arc<Proof>,
}

impl Ends {
    fn gpu(&self) -> Result<&Remote, DriverError> {
        let absent =
            || finding(DriverErrorKind::Io, "tier GPU has no driver on this node; configure its storage");
        self.gpu.as_ref().ok_or_else(absent)
    }
}

fn run_copies(objects: &Objects, ends: &Ends, lane: &Receiver<TransferOp>, sink: &CompletionSink) {
    for op in lane {
        ends.proof.writes(op.to.generation);
        let copied = catch_unwind(AssertUnwindSafe(|| match op.to.tier {
            Tier::Object => store(objects, ends, &op),
            Tier::Gpu => fetch_to_device(&objects.driver, ends, &op),
            Tier::Ram | Tier::Disk => fetch(&objects.driver, ends, &op),
        }));
        let result = copied.unwrap_or_else(|panic| Err(TransferError::Destination(panicked(&*panic))));
        let result = result.map(|checksum| Copied { checksum, extent: None });
        sink(op.shard, Completion::Transfer(TransferDone { op: op.op, result }));
    }
}

/// Into the store.
fn store(objects: &Objects, ends: &Ends, op: &TransferOp) -> Result<Checksum, TransferError> {
    let source = source(ends, op).map_err(TransferError::Source)?;
    let upload = Upload {
        id: op.to.id,
        generation: op.to.generation,
        source,
        expected: op.expected,
        archive: (objects.source)(op.to.id),
    };
    let uploaded = answer(|done| objects.driver.upload(upload, done));
    uploaded.map(|uploaded| uploaded.checksum).map_err(|error| match error.kind {
        ObjectErrorKind::Source | ObjectErrorKind::Corrupt => TransferError::Source(error.into()),
        _ => TransferError::Destination(error.into()),
    })
}

fn source(ends: &Ends, op: &TransferOp) -> Result<Arc<dyn Source>, DriverError> {
    if op.from.tier == Tier::Gpu {
        return Ok(Arc::new(ends.gpu()?.source(&op.from)?));
    }
    let file = ends.stores.get(op.from.tier)?.open_source(op)?;
    Ok(Arc::new(FileRange { file: Arc::new(file), offset: offset_of(&op.from), size: op.from.size }))
}

/// Out of the store, to a device: nobody is shown it before it has its checksum.
fn fetch_to_device(driver: &ObjectDriver, ends: &Ends, op: &TransferOp) -> Result<Checksum, TransferError> {
    let draft = ends.gpu().and_then(|gpu| gpu.draft(op.to)).map_err(TransferError::Destination)?;
    let checksum = read(driver, &ends.proof, &op.from, op.expected, draft.sink()).map_err(fetch_error)?;
    draft.publish();
    Ok(checksum)
}

fn fetch_error(error: ObjectError) -> TransferError {
    match error.kind {
        ObjectErrorKind::Destination | ObjectErrorKind::Full => TransferError::Destination(error.into()),
        _ => TransferError::Source(error.into()),
    }
}

/// Out of the store.
fn fetch(driver: &ObjectDriver, ends: &Ends, op: &TransferOp) -> Result<Checksum, TransferError> {
    let to = ends.stores.get(op.to.tier).map_err(TransferError::Destination)?;
    let draft = Draft::begin(to, op.to).map_err(TransferError::Destination)?;
    let sink = FileRange { file: Arc::clone(&draft.file), offset: 0, size: op.to.size };
    let checksum = read(driver, &ends.proof, &op.from, op.expected, Arc::new(sink)).map_err(fetch_error)?;
    draft.publish(op.sync).map_err(TransferError::Destination)?;
    Ok(checksum)
}

/// Reads an object, as its sidecar says that it is stored; without one it is what a client stored, plainly.
///
/// # Errors
/// As the driver's; where neither object nor sidecar are there and [`Proof`] has none, that the store may be another one: that says
/// nothing of the payload.
fn read(
    driver: &ObjectDriver,
    proof: &Proof,
    from: &ReplicaRef,
    expected: Option<Checksum>,
    sink: Arc<dyn Sink>,
) -> Result<Checksum, ObjectError> {
    let (compression, is_told) = match answer(|done| driver.sidecar(from.id, done)) {
        Ok(sidecar) => (sidecar.compression, true),
        // The bytes prove themselves.
        Err(error) if error.kind == ObjectErrorKind::Corrupt => (Compression::None, true),
        Err(error) if error.kind == ObjectErrorKind::Missing => (Compression::None, false),
        Err(error) => return Err(error),
    };
    let download = Download { id: from.id, size: from.size, expected, compression, etag: None, sink };
    let fetched = answer(|done| driver.download(download, done));
    if is_told || fetched.is_ok() {
        proof.found(from.generation);
    }
    fetched.map_err(|error| match error.kind {
        ObjectErrorKind::Missing if !is_told && !proof.holds(from.generation) => ObjectError {
            kind: ObjectErrorKind::Refused,
            message: format!(
                "there is neither {} nor its sidecar, nor was any object of an earlier run found yet; is \
                 storage.object.root_path the one that it was stored at?",
                driver.uri(from.id)
            ),
        },
        _ => error,
    })
}

/// Where bytes go that are read for their checksum alone.
pub struct Nowhere;

impl Sink for Nowhere {
    fn write_at(&self, _bytes: &[u8], _offset: u64) -> std::io::Result<()> {
        Ok(())
    }
}

fn run_looks(driver: &ObjectDriver, proof: &Proof, lane: &Receiver<StorageOp>, sink: &CompletionSink) {
    for StorageOp { shard, op, replica, action } in lane {
        let work = |work: &dyn Fn() -> Result<(), DriverError>| {
            catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(panicked(&*panic)))
        };
        let done = match action {
            // Its client stores it.
            StorageAction::Create => StorageDone::Created { op, result: Ok(()) },
            StorageAction::Seal { .. } => {
                StorageDone::Sealed { op, result: work(&|| look(driver, &replica)) }
            }
            // The store has it, or its upload was no success.
            StorageAction::Sync => StorageDone::Synced { op, result: Ok(()) },
            StorageAction::Verify { expected, .. } => {
                let verify = || verify(driver, proof, &replica, expected).map_err(DriverError::from);
                StorageDone::Verified { op, result: work(&verify) }
            }
            StorageAction::Stay => continue,
            StorageAction::Drop => {
                let removed = work(&|| Ok(answer(|done| driver.remove(replica.id, done))?));
                if let Err(error) = removed {
                    tracing::warn!(id = %replica.id, "an object is deleted by a later sweep: {}", error.message);
                    driver.doom(replica.id, replica.generation, replica.size);
                }
                let (tier, generation) = (replica.tier, replica.generation);
                sink(shard, Completion::Storage(StorageDone::Detached { tier, generation }));
                StorageDone::Freed { tier, generation }
            }
        };
        sink(shard, Completion::Storage(done));
    }
}

/// Whether a client stored all of it.
fn look(driver: &ObjectDriver, replica: &ReplicaRef) -> Result<(), DriverError> {
    let ByteCount(stored) = answer(|done| driver.look(replica.id, done))?.stored;
    if stored == replica.size.0 {
        return Ok(());
    }
    let said =
        format!("the object of {} has {stored} bytes, and {} were allocated", replica.id, replica.size.0);
    Err(finding(DriverErrorKind::Truncated, said))
}

fn verify(
    driver: &ObjectDriver,
    proof: &Proof,
    replica: &ReplicaRef,
    expected: Option<Checksum>,
) -> Result<(), ObjectError> {
    read(driver, proof, replica, expected, Arc::new(Nowhere)).map(drop)
}

#[cfg(test)]
mod tests {
    use payload_types::Epoch;

    use super::*;

    #[test]
    fn given_what_was_stored_and_found_when_an_object_is_gone_then_its_store_is_proven_or_not() {
        let [earlier, now] = [3, 4].map(|epoch| Generation::new(Epoch(epoch), 7));
        let proof = Proof::default();
        assert!(!proof.holds(earlier), "nothing is known yet");
        proof.writes(now);
        assert!(proof.holds(now), "this run put it there");
        proof.found(now);
        assert!(!proof.holds(earlier), "what this run stored says nothing of earlier ones");
        proof.found(earlier);
        assert!(proof.holds(earlier), "its like are there");
    }
}
