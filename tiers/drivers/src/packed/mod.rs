//! The packed store: segment files that many replicas share (DESIGN §6).
//!
//! ```text
//! transfer thread --group--> writer: places -> bytes (O_DIRECT) + records --> syncer: one fdatasync -> books -> TransferDone for each
//! worker thread   --drop---> books: dead -> Detached ... upkeep: file recycled -> Freed
//! ```
//! What the files say is in `payload_ledger::segments` (pure); this does it with real ones, for the disk's `FileStore`.
//! - [`file`]: making, recycling and opening a segment file
//! - [`writer`]: groups of payloads into a lane's file ([`held`]), as one [`stream`]
//! - [`syncer`]: what was written onto stable storage
//! - [`upkeep`]: recycling and compaction
//! - [`boot`]: what an earlier run left
//!
//! Threads and locks: a lane's mutex is held by whoever writes to its file or closes it, across I/O; the mutex over the
//! books is taken after it, for microseconds, and never held over a call that may block. A file that is open for
//! writing has one descriptor here, so that [`crate::sys::nobody_else_has_it`] refuses it while anybody writes to it.
//! Limits: one descriptor a lane, `Geometry::writers() + 1` lanes.

pub(crate) mod boot;
pub(crate) mod file;
mod held;
mod stream;
pub(crate) mod syncer;
pub(crate) mod upkeep;
pub(crate) mod writer;

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use payload_ledger::segments::{Books, Buried, Geometry, Lane, table};
use payload_types::effect::ReplicaRef;
use payload_types::{ByteCount, Extent, Generation, PayloadId, ShardIndex, Tier};

use self::file::LaneFile;
use self::upkeep::Figures;
use crate::calls::Calls;
use crate::health::Health;
use crate::intent::{IntentLog, Live};
use crate::naming::{Names, SEGMENTS};

/// See the module's description. Only the disk tier has one.
pub(crate) struct Packed {
    /// The disk root's.
    pub(crate) names: Names,
    /// What the files' headers and records are sealed with.
    pub(crate) root: table::Root,
    /// The mode that clients see.
    pub(crate) mode_sealed: u32,
    /// Who owns what we make.
    pub(crate) user: u32,
    pub(crate) calls: Arc<dyn Calls>,
    pub(crate) health: Arc<Health>,
    /// Names the segment files: [`name_in_log`].
    pub(crate) log: IntentLog,
    /// What the log named when it was opened; taken at boot.
    pub(crate) live: Mutex<Option<Live>>,
    /// False where the disk is too small for segment files, and has some of an earlier configuration: they are served
    /// and emptied, and nothing is added.
    pub(crate) takes_more: bool,
    /// The pace of compaction; 0: none.
    pub(crate) compaction_bytes_per_second: u64,
    /// The largest payload that has a place in a segment file.
    payload_max: ByteCount,
    books: Mutex<Books>,
    /// So much must become free before somebody who waits can be served; 0: nobody waits.
    wanted: AtomicU64,
    /// That changed since upkeep looked last.
    is_wanted_news: AtomicBool,
    /// Spreads writers that found every lane taken.
    turns: AtomicUsize,
    /// The writers' lanes, and the mover's last. `None`: nothing is open.
    lanes: Vec<Mutex<Option<LaneFile>>>,
    /// Threads that wait for one.
    lanes_wanted: AtomicUsize,
    /// What upkeep did.
    figures: Figures,
    news: Mutex<News>,
    /// There are news for the upkeep thread.
    told: Condvar,
}

/// What the upkeep thread is told, beside what it finds in the books.
#[derive(Default)]
pub(crate) struct News {
    /// It is to end.
    pub(crate) is_stopping: bool,
    /// Something died, or room is wanted.
    pub(crate) is_woken: bool,
    /// Relocations that were answered: the replica that was to be moved, and whether it was. At most
    /// `RELOCATIONS_MAX` a shard, which is what upkeep asks for at a time.
    pub(crate) relocated: VecDeque<(ReplicaRef, bool)>,
}

/// What a [`Packed`] is made of, beside the defaults.
pub(crate) struct Parts {
    pub(crate) names: Names,
    pub(crate) root: table::Root,
    pub(crate) mode_sealed: u32,
    pub(crate) calls: Arc<dyn Calls>,
    pub(crate) health: Arc<Health>,
    pub(crate) log: IntentLog,
    pub(crate) live: Live,
    pub(crate) geometry: Geometry,
    pub(crate) takes_more: bool,
    pub(crate) compaction_bytes_per_second: u64,
}

impl Packed {
    pub(crate) fn new(parts: Parts) -> Self {
        let lanes = (0..=parts.geometry.writers()).map(|_| Mutex::new(None)).collect();
        Self {
            names: parts.names,
            root: parts.root,
            mode_sealed: parts.mode_sealed,
            user: crate::sys::effective_user(),
            calls: parts.calls,
            health: parts.health,
            log: parts.log,
            live: Mutex::new(Some(parts.live)),
            takes_more: parts.takes_more,
            compaction_bytes_per_second: parts.compaction_bytes_per_second,
            payload_max: parts.geometry.payload_max(),
            wanted: AtomicU64::new(0),
            is_wanted_news: AtomicBool::new(false),
            turns: AtomicUsize::new(0),
            books: Mutex::new(Books::new(parts.geometry)),
            lanes,
            lanes_wanted: AtomicUsize::new(0),
            figures: Figures::default(),
            news: Mutex::default(),
            told: Condvar::new(),
        }
    }

    /// The books. Never held over a call that may block.
    pub(crate) fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody writes to the lane's file. Taken before the books, never after.
    pub(crate) fn lane(&self, lane: Lane) -> MutexGuard<'_, Option<LaneFile>> {
        self.lanes_wanted.fetch_add(1, Ordering::Relaxed);
        let held = self.lanes[self.lane_index(lane)].lock().unwrap_or_else(PoisonError::into_inner);
        self.lanes_wanted.fetch_sub(1, Ordering::Relaxed);
        held
    }

    /// True while somebody waits for a lane: a writer that could go on and on lets go of its own.
    pub(crate) fn is_lane_wanted(&self) -> bool {
        self.lanes_wanted.load(Ordering::Relaxed) > 0
    }

    /// The lane, unless somebody writes to its file.
    pub(crate) fn lane_if_idle(&self, lane: Lane) -> Option<MutexGuard<'_, Option<LaneFile>>> {
        match self.lanes[self.lane_index(lane)].try_lock() {
            Ok(guard) => Some(guard),
            Err(std::sync::TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(std::sync::TryLockError::WouldBlock) => None,
        }
    }

    fn lane_index(&self, lane: Lane) -> usize {
        match lane {
            Lane::Writer(index) => index,
            Lane::Mover => self.lanes.len() - 1,
        }
    }

    /// Lets go of files that the books have closed behind their lanes' backs, after a failed sync.
    pub(crate) fn forget_closed(&self) {
        for lane in (0..self.writers()).map(Lane::Writer).chain([Lane::Mover]) {
            if let Some(mut file) = self.lane_if_idle(lane) {
                let number = self.books().lane_file(lane).map(|(number, _)| number);
                file.take_if(|file| Some(file.header.number) != number);
            }
        }
    }

    /// How many lanes there are: the writers' and the mover's.
    pub(crate) fn lane_count(&self) -> usize {
        self.lanes.len()
    }

    /// How many writers' lanes there are.
    pub(crate) fn writers(&self) -> usize {
        self.lanes.len() - 1
    }

    fn turn(&self) -> usize {
        self.turns.fetch_add(1, Ordering::Relaxed) % self.writers()
    }

    /// A packed replica is wanted no more: its space is free when its file is recycled, and its shard is told then.
    /// False when there is no such file any more: it is free already.
    pub(crate) fn dropped(&self, shard: ShardIndex, replica: &ReplicaRef, extent: Extent) -> bool {
        let mut books = self.books();
        if !books.has(extent.file) {
            return false;
        }
        books.dead(extent, replica.size, Buried { shard, generation: replica.generation });
        drop(books);
        self.wake();
        true
    }

    /// A file for one replica alone is about to be made: it is counted, and what was only kept free is given up for it.
    pub(crate) fn own_added(&self, size: ByteCount) {
        let mut books = self.remove_surplus(size);
        books.own_added(size);
    }

    /// Gives up what was only kept free, as far as something of this size needs its space.
    pub(crate) fn remove_surplus(&self, size: ByteCount) -> MutexGuard<'_, Books> {
        loop {
            let mut books = self.books();
            let Some(surplus) = books.surplus(size) else { return books };
            drop(books);
            self.remove_free(surplus);
        }
    }

    /// Upkeep is to look at the books.
    pub(crate) fn wake(&self) {
        self.news().is_woken = true;
        self.told.notify_one();
    }

    /// So much must become free before somebody who waits can be served; 0: nobody waits. Upkeep is woken once a look,
    /// however often this changes, and not to be told that nobody waits.
    pub(crate) fn wanted(&self, bytes: ByteCount) {
        self.wanted.store(bytes.0, Ordering::SeqCst);
        if bytes > ByteCount::ZERO && !self.is_wanted_news.swap(true, Ordering::SeqCst) {
            self.wake();
        }
    }

    /// What is wanted now. Called by upkeep at each look.
    pub(crate) fn take_wanted(&self) -> ByteCount {
        self.is_wanted_news.store(false, Ordering::SeqCst);
        ByteCount(self.wanted.load(Ordering::SeqCst))
    }

    /// The upkeep thread is to end.
    pub(crate) fn stop(&self) {
        self.news().is_stopping = true;
        self.told.notify_one();
    }

    /// A relocation was answered: by a copy that is done, by one that failed, or by `StorageAction::Stay`.
    pub(crate) fn relocated(&self, from: &ReplicaRef, is_moved: bool) {
        self.news().relocated.push_back((*from, is_moved));
        self.told.notify_one();
    }

    /// The news, and what says that there are some.
    pub(crate) fn news(&self) -> MutexGuard<'_, News> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What [`news`](Self::news) is waited for with.
    pub(crate) fn told(&self) -> &Condvar {
        &self.told
    }

    /// Where a segment file is.
    pub(crate) fn path(&self, number: NonZeroU32) -> PathBuf {
        self.names.segment(number)
    }

    /// Where a file is that was recycled under this number and waits for its next one: mode 0600, and no client was ever
    /// told this name.
    pub(crate) fn path_free(&self, number: NonZeroU32) -> PathBuf {
        self.names.segment(number).with_extension("free")
    }

    /// The directory of all of them.
    pub(crate) fn directory(&self) -> PathBuf {
        match &self.names {
            Names::Segments { .. } => unreachable!("only the disk store packs"),
            Names::Files { root } => root.join(SEGMENTS),
        }
    }
}

/// What a segment file is called in the intent log, whose records name replicas.
pub(crate) fn name_in_log(number: NonZeroU32, file_bytes: u64) -> ReplicaRef {
    let mut id = [0; 16];
    id[12..].copy_from_slice(&number.get().to_be_bytes());
    ReplicaRef {
        tier: Tier::Disk,
        id: PayloadId::from_bytes(id),
        generation: Generation(u64::from(number.get())),
        size: ByteCount(file_bytes),
        extent: None,
        block: None,
    }
}

/// The file that a record of the intent log names; `None` when it is no name of ours.
pub(crate) fn number_in_log(id: PayloadId, generation: Generation) -> Option<NonZeroU32> {
    let number = NonZeroU32::new(u32::try_from(generation.0).ok()?)?;
    (name_in_log(number, 0).id == id).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_a_files_number_when_named_in_the_log_then_it_comes_back_and_a_payloads_name_is_none() {
        for number in [1, 77, u32::MAX] {
            let number = NonZeroU32::new(number).expect("not 0");
            let name = name_in_log(number, 4096);
            assert_eq!(number_in_log(name.id, name.generation), Some(number));
        }
        assert_eq!(number_in_log(PayloadId::mint(1 << 50, 7), Generation(7)), None);
        assert_eq!(number_in_log(name_in_log(NonZeroU32::MIN, 0).id, Generation(0)), None);
    }
}
