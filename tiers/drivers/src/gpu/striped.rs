//! Large copies between a device and RAM, by several threads: a link to a device is faster than one thread hashes, or moves bytes
//! into a segment.
//!
//! ```text
//! copying thread --Work::Ask--> helpers, as many as are idle, each with a stream and staging of its own
//!   each of them: the next chunk that nobody has --> DMA | pwrite or pread | Part::of --> put together in order: Digest
//! ```
//! The copying thread works like its helpers, and waits for those that began when nothing is left: one that comes later finds
//! nothing, and nothing is kept for it. So a copy never waits for a helper that is busy elsewhere. After a failure nobody takes
//! another chunk.
//! Limit: parts that wait for one before them are those of the chunks that were taken, 256 KiB for each.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

use crossbeam::channel::Sender;
use payload_types::Checksum;
use payload_types::effect::TransferOp;
use payload_types::event::TransferError;

use super::copy::drain;
use super::device::{CHUNK_BYTES, CHUNKS, DeviceError, Stream};
use super::digest::{BLOCK_BYTES, BYTES_MIN, Digest, Part};
use super::lanes::{Copying, Work};
use super::places::Held;
use crate::fault::fault;
use crate::transfer::unread;
use crate::workers::panicked;

/// Below this one thread is done before others have begun.
pub(super) const STRIPED_BYTES_MIN: u64 = 16 << 20;

const _: () = assert!(CHUNK_BYTES.is_multiple_of(BLOCK_BYTES) && STRIPED_BYTES_MIN >= BYTES_MIN);

/// One copy.
pub(super) struct Striped {
    op: TransferOp,
    held: Arc<Held>,
    /// The segment, and where the payload begins in it.
    file: Arc<File>,
    begin: u64,
    is_down: bool,
    /// The next chunk that nobody has.
    next: AtomicUsize,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// Threads that are at it.
    active: usize,
    /// The copying thread is done with its part: nobody begins any more.
    is_over: bool,
    /// The first failure.
    error: Option<TransferError>,
    digest: Digest,
    /// Parts that are put together.
    taken: usize,
    early: BTreeMap<usize, Part>,
}

impl Striped {
    /// A copy from the device into a segment.
    pub(super) fn down(op: &TransferOp, held: &Arc<Held>, file: &Arc<File>) -> Arc<Self> {
        Self::new(op, held, file, 0, true)
    }

    /// A copy from memory to the device.
    pub(super) fn up(op: &TransferOp, held: &Arc<Held>, file: &Arc<File>, begin: u64) -> Arc<Self> {
        Self::new(op, held, file, begin, false)
    }

    fn new(op: &TransferOp, held: &Arc<Held>, file: &Arc<File>, begin: u64, is_down: bool) -> Arc<Self> {
        let digest = Digest::new();
        let early = BTreeMap::new();
        let state = State { active: 0, is_over: false, error: None, digest, taken: 0, early };
        Arc::new(Self {
            op: *op,
            held: Arc::clone(held),
            file: Arc::clone(file),
            begin,
            is_down,
            next: AtomicUsize::new(0),
            state: Mutex::new(state),
            changed: Condvar::new(),
        })
    }

    /// Makes the copy, with helpers from this lane. Nothing is under way afterwards. The hash of what was moved.
    pub(super) fn run(
        self: Arc<Self>,
        copying: &mut Copying<'_>,
        helpers: &Sender<Work>,
        helper_count: usize,
    ) -> Result<Checksum, TransferError> {
        for _ in 0..helper_count.min(self.chunks() - 1) {
            let weak = Arc::downgrade(&self);
            // A lane that is full of others' copies has no idle helper.
            let _ = helpers.try_send(Work::Ask(Box::new(move |copying| help(&weak, copying))));
        }
        self.begin();
        self.take_part(copying);
        let mut state = self.lock();
        state.is_over = true;
        while state.active > 0 {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if let Some(error) = state.error.take() {
            return Err(error);
        }
        assert!(state.taken == self.chunks() && state.early.is_empty(), "every chunk was moved");
        Ok(std::mem::replace(&mut state.digest, Digest::new()).finish(self.op.from.size.0))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// False: it is over.
    fn begin(&self) -> bool {
        let mut state = self.lock();
        if !state.is_over {
            state.active += 1;
        }
        !state.is_over
    }

    /// Moves chunks until there are none, and says so, also when it panics.
    fn take_part(&self, copying: &mut Copying<'_>) {
        let side = if self.is_down { TransferError::Source } else { TransferError::Destination };
        let work = |stream: &mut dyn Stream| {
            let moved = if self.is_down { self.move_down(stream) } else { self.move_up(stream) };
            // Before anybody may free the device's memory.
            moved.and(drain(stream).map_err(|error| side(error.into())))
        };
        let moved = catch_unwind(AssertUnwindSafe(|| copying.with_stream(side, work)))
            .unwrap_or_else(|panic| Err(TransferError::Destination(panicked(&*panic))));
        if let Err(error) = moved {
            self.fail(error);
        }
        self.lock().active -= 1;
        self.changed.notify_all();
    }

    fn fail(&self, error: TransferError) {
        self.next.store(self.chunks(), Ordering::Relaxed);
        self.lock().error.get_or_insert(error);
    }

    fn chunks(&self) -> usize {
        usize::try_from(self.op.from.size.0.div_ceil(CHUNK_BYTES as u64)).expect("2^15 chunks at most")
    }

    fn claim(&self) -> Option<usize> {
        let next = |chunk: usize| (chunk < self.chunks()).then_some(chunk + 1);
        self.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).ok()
    }

    /// Where a chunk begins, and its length.
    fn part(&self, index: usize) -> (u64, usize) {
        let offset = (index * CHUNK_BYTES) as u64;
        (offset, (self.op.from.size.0 - offset).min(CHUNK_BYTES as u64) as usize)
    }

    /// Adds what a chunk contributes to the hash.
    fn hash(&self, index: usize, bytes: &[u8]) {
        let part = Part::of(bytes, index + 1 == self.chunks());
        let mut state = self.lock();
        state.early.insert(index, part);
        while let Some(part) = {
            let next = state.taken;
            state.early.remove(&next)
        } {
            state.digest.take(part);
            state.taken += 1;
        }
    }

    fn move_down(&self, stream: &mut dyn Stream) -> Result<(), TransferError> {
        let failed = |error: DeviceError| TransferError::Source(error.into());
        let mut under_way = VecDeque::with_capacity(CHUNKS);
        let mut started = 0;
        loop {
            while under_way.len() < CHUNKS
                && let Some(index) = self.claim()
            {
                let (offset, length) = self.part(index);
                let chunk = started % CHUNKS;
                stream.start_read(chunk, &self.held.allocation, offset, length).map_err(failed)?;
                under_way.push_back((index, chunk));
                started += 1;
            }
            let Some((index, chunk)) = under_way.pop_front() else { return Ok(()) };
            let (offset, length) = self.part(index);
            stream.finish(chunk).map_err(failed)?;
            let bytes = &stream.chunk(chunk)[..length];
            self.file.write_all_at(bytes, offset).map_err(|error| {
                let tried = format_args!("writing {} to {}", self.op.to.id, self.op.to.tier);
                TransferError::Destination(fault(tried, &error))
            })?;
            self.hash(index, bytes);
        }
    }

    fn move_up(&self, stream: &mut dyn Stream) -> Result<(), TransferError> {
        let failed = |error: DeviceError| TransferError::Destination(error.into());
        let mut started = 0;
        while let Some(index) = self.claim() {
            let (offset, length) = self.part(index);
            let chunk = started % CHUNKS;
            stream.finish(chunk).map_err(failed)?;
            let bytes = &mut stream.chunk(chunk)[..length];
            self.file
                .read_exact_at(bytes, self.begin + offset)
                .map_err(|error| TransferError::Source(unread(&self.op.from, &error)))?;
            self.hash(index, bytes);
            stream.start_write(chunk, &self.held.allocation, offset, length).map_err(failed)?;
            started += 1;
        }
        Ok(())
    }
}

/// A helper's part.
fn help(copy: &Weak<Striped>, copying: &mut Copying<'_>) {
    if let Some(copy) = copy.upgrade()
        && copy.begin()
    {
        copy.take_part(copying);
    }
}
