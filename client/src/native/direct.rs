//! Direct leases, the client's half: a lease that asks nobody (`payload_local::direct` has the protocol).
//!
//! ```text
//! acquire(id) --> this thread's seat --> the shard's table --> a free cell of the seat's lines --> claim, fence, second look
//!              '-- no seat, table or cell, not there, withdrawn, expired, another version: the ring decides
//! release     --> the cell is emptied, by whichever thread
//! ```
//!
//! Each thread has a seat of its own: lines of cells that it alone fills, the tables as it last saw them, mappings of slabs that it
//! met. So an acquire takes no lock, and writes to no memory that another thread writes to but for counts of what it keeps. A thread
//! that ends gives its lines back with whatever is leased in them; another one takes them over.
//!
//! Invariants: nothing of this is touched in a child of a fork (the session is asked first); what a lease refers to is checked
//! against the slab's mapping, whatever the server wrote. Limits: [`LINES_PER_THREAD`] lines a thread, 511 a session; more leases are
//! asked for over the ring. A seat keeps a table that was replaced until its thread's next acquire.

use std::cell::RefCell;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use payload_local::direct::access::Sampler;
use payload_local::direct::page::{self, CellIndex, LINE_CELLS};
use payload_local::direct::read::{self, BATCH_MAX, Found};
use payload_local::direct::{CellsView, Claim, Entry, IndexView, Miss, StatusView};
use payload_types::{Block, PayloadId, ShardIndex, SlabId, Tier, Version};

use crate::client::AcquireOptions;
use crate::mapping::shared::{ForkGuard, SharedWords};
use crate::mapping::slab::{self, SlabMap};

/// Lines of one thread: 512 leases at a time.
const LINES_PER_THREAD: usize = 64;

/// Slabs whose mapping a thread remembers, a power of two; others are looked up under a lock.
const SLABS_REMEMBERED: usize = 64;

/// Names sessions within this process.
static KEY_LAST: AtomicU64 = AtomicU64::new(0);

/// Who knows the mappings of this process.
pub(super) trait Mappings {
    /// That of a slab, if there is one.
    fn known(&self, slab: SlabId) -> Option<Arc<SlabMap>>;
}

/// A lease that is held, by the cell that says so.
#[derive(Debug)]
pub(crate) struct Pin {
    cell: CellIndex,
    claim: Claim,
}

/// What an acquire has found.
#[derive(Debug)]
pub(crate) struct Pinned {
    pub(crate) pin: Pin,
    pub(crate) entry: Entry,
    /// Where the bytes lie.
    pub(crate) place: Block,
    /// The mapping of its slab, where this thread knows it.
    pub(crate) slab: Option<Arc<SlabMap>>,
}

/// What is acceptable of a replica on RAM.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish {
    version: Option<Version>,
}

impl Wish {
    /// `None` where a replica on RAM will not do.
    #[inline]
    pub(crate) fn of(options: &AcquireOptions) -> Option<Self> {
        (options.min_tier != Some(Tier::Gpu)).then_some(Self { version: options.expected_version })
    }

    /// `tick`: the server's clock.
    #[inline]
    fn accepts(self, entry: &Entry, tick: impl FnOnce() -> u64) -> bool {
        self.version.is_none_or(|version| version.0 == entry.version)
            && entry.expires_at.is_none_or(|end| tick() < end.as_millis())
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Direct {
    key: u64,
    shard_count: u16,
    /// The session's, as it began.
    epoch: u64,
    cells: SharedWords,
    status: SharedWords,
    /// Counts changes of `tables`.
    version: AtomicU64,
    tables: Mutex<Vec<Option<Arc<SharedWords>>>>,
    /// Of threads that have ended.
    lines: Mutex<Vec<u16>>,
    fork: ForkGuard,
}

/// A slab and its mapping, which this does not keep: the session says when it goes.
type Remembered = Option<(SlabId, Weak<SlabMap>)>;

/// What one thread has of one session.
struct Seat {
    key: u64,
    of: Weak<Direct>,
    lines: Vec<u16>,
    /// The line that had a free cell last.
    last: usize,
    version: u64,
    tables: Vec<Option<Arc<SharedWords>>>,
    slabs: Box<[Remembered; SLABS_REMEMBERED]>,
    sampler: Sampler,
}

thread_local! {
    /// One for each session that this thread leases of.
    static SEATS: RefCell<Vec<Seat>> = const { RefCell::new(Vec::new()) };
}

impl Direct {
    /// Of memory that was mapped as the handshake said.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn new(
        cells: SharedWords,
        status: SharedWords,
        shard_count: u16,
    ) -> std::io::Result<Arc<Self>> {
        let fork = ForkGuard::new()?;
        let short = || std::io::Error::other("the pages of direct leases are too short");
        let epoch = StatusView::new(status.words()).ok_or_else(short)?.epoch.load(Ordering::Acquire);
        CellsView::new(cells.words()).ok_or_else(short)?;
        Ok(Arc::new(Self {
            key: KEY_LAST.fetch_add(1, Ordering::Relaxed) + 1,
            shard_count,
            epoch,
            cells,
            status,
            version: AtomicU64::new(0),
            tables: Mutex::new((0..shard_count).map(|_| None).collect()),
            lines: Mutex::default(),
            fork,
        }))
    }

    /// A table came; it replaces the shard's last one.
    pub(crate) fn take_table(&self, shard: ShardIndex, table: SharedWords) {
        if let Some(place) = locked(&self.tables).get_mut(usize::from(shard.0)) {
            *place = Some(Arc::new(table));
        }
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Leases a payload, if that is possible without asking.
    #[inline]
    pub(super) fn acquire(
        self: &Arc<Self>,
        slabs: &impl Mappings,
        id: &PayloadId,
        wish: Wish,
    ) -> Option<Pinned> {
        let shard = id.shard(self.shard_count);
        self.seated(|seat| {
            seat.look_for_tables(self);
            let cells = self.cells();
            let cell = seat.free_cell(self, &cells)?;
            let table = seat.tables.get(usize::from(shard.0))?.as_ref()?;
            let index = IndexView::new(table.words())?;
            let found = read::acquire(&index, shard, id, cells.cell(cell)).ok()?;
            self.pinned(seat, slabs, shard, id, (cell, &found), wish)
        })?
    }

    /// Leases several, with one fence for each [`BATCH_MAX`]. `None` for those that have to be asked for.
    pub(super) fn acquire_many(
        self: &Arc<Self>,
        slabs: &impl Mappings,
        ids: &[PayloadId],
        wish: Wish,
    ) -> Vec<Option<Pinned>> {
        let mut pinned: Vec<Option<Pinned>> = ids.iter().map(|_| None).collect();
        let seated = self.seated(|seat| {
            seat.look_for_tables(self);
            for (ids, pinned) in ids.chunks(BATCH_MAX).zip(pinned.chunks_mut(BATCH_MAX)) {
                self.acquire_batch(seat, slabs, ids, wish, pinned);
            }
        });
        debug_assert!(seated.is_some() || pinned.iter().all(Option::is_none));
        pinned
    }

    fn acquire_batch(
        &self,
        seat: &mut Seat,
        slabs: &impl Mappings,
        ids: &[PayloadId],
        wish: Wish,
        pinned: &mut [Option<Pinned>],
    ) {
        let cells = self.cells();
        let free = seat.free_cells(self, &cells, ids.len());
        let mut wanted = Vec::with_capacity(ids.len());
        let mut places = Vec::with_capacity(ids.len());
        for (at, id) in ids.iter().enumerate().take(free.len()) {
            let shard = id.shard(self.shard_count);
            let table = seat.tables.get(usize::from(shard.0)).and_then(Option::as_ref);
            if let Some(index) = table.and_then(|table| IndexView::new(table.words())) {
                wanted.push((index, shard, *id));
                places.push(at);
            }
        }
        let taken: Vec<&AtomicU64> = free.iter().take(wanted.len()).map(|cell| cells.cell(*cell)).collect();
        let mut results = vec![Err(Miss::Unknown); wanted.len()];
        read::acquire_many(&wanted, &taken, &mut results);
        let found: Vec<_> = wanted.iter().map(|(_, shard, _)| *shard).zip(results).collect();
        drop(wanted);
        for ((at, cell), (shard, found)) in places.into_iter().zip(&free).zip(found) {
            pinned[at] =
                found.ok().and_then(|found| self.pinned(seat, slabs, shard, &ids[at], (*cell, &found), wish));
        }
    }

    /// Looks whether what was found will do. It is released where it will not.
    #[inline]
    fn pinned(
        &self,
        seat: &mut Seat,
        slabs: &impl Mappings,
        shard: ShardIndex,
        id: &PayloadId,
        (cell, found): (CellIndex, &Found),
        wish: Wish,
    ) -> Option<Pinned> {
        let pin = Pin { cell, claim: found.claim };
        let entry = found.entry(id);
        let place = entry.block.filter(|_| wish.accepts(&entry, || self.tick()));
        let Some(place) = place else {
            self.release(&pin);
            return None;
        };
        if seat.sampler.is_due()
            && let Some(samples) = page::samples(self.cells.words(), shard)
        {
            samples.note(found.position, entry.generation);
        }
        Some(Pinned { pin, entry, place, slab: seat.slab(slabs, place.slab) })
    }

    /// Ends a lease.
    #[inline]
    pub(crate) fn release(&self, pin: &Pin) {
        read::release(self.cells().cell(pin.cell));
    }

    /// Whether nobody has taken the lease away. To be asked after the bytes were used.
    #[inline]
    pub(crate) fn is_valid(&self, pin: &Pin) -> bool {
        read::is_valid(&self.status(), pin.cell, pin.claim, self.epoch)
    }

    fn cells(&self) -> CellsView<'_, AtomicU64> {
        CellsView::new(self.cells.words()).expect("looked at when it was made")
    }

    fn status(&self) -> StatusView<'_, AtomicU64> {
        StatusView::new(self.status.words()).expect("looked at when it was made")
    }

    fn tick(&self) -> u64 {
        self.status().tick.load(Ordering::Relaxed)
    }

    /// Works with this thread's seat. `None` while the thread ends, or already works with one.
    #[inline]
    fn seated<T>(self: &Arc<Self>, work: impl FnOnce(&mut Seat) -> T) -> Option<T> {
        SEATS
            .try_with(|seats| {
                let mut seats = seats.try_borrow_mut().ok()?;
                let at = seats.iter().position(|seat| seat.key == self.key);
                let at = at.unwrap_or_else(|| self.sit_down(&mut seats));
                Some(work(&mut seats[at]))
            })
            .ok()
            .flatten()
    }

    #[cold]
    fn sit_down(self: &Arc<Self>, seats: &mut Vec<Seat>) -> usize {
        seats.retain(|seat| seat.of.strong_count() > 0);
        seats.push(Seat {
            key: self.key,
            of: Arc::downgrade(self),
            lines: Vec::new(),
            last: 0,
            version: 0,
            tables: Vec::new(),
            slabs: Box::new([const { None }; SLABS_REMEMBERED]),
            sampler: Sampler::new(RandomState::new().hash_one(self.key)),
        });
        seats.len() - 1
    }
}

impl Seat {
    #[inline]
    fn look_for_tables(&mut self, direct: &Direct) {
        let version = direct.version.load(Ordering::Acquire);
        if version != self.version {
            self.tables.clone_from(&locked(&direct.tables));
            self.version = version;
        }
    }

    #[inline]
    fn free_cell(&mut self, direct: &Direct, cells: &CellsView<'_, AtomicU64>) -> Option<CellIndex> {
        if let Some(line) = self.lines.get(self.last)
            && let Some(cell) = cells.free_cell(*line)
        {
            return Some(cell);
        }
        self.other_cell(direct, cells)
    }

    /// Of another line than the last one; of a new one, if all are taken.
    #[cold]
    fn other_cell(&mut self, direct: &Direct, cells: &CellsView<'_, AtomicU64>) -> Option<CellIndex> {
        for (at, line) in self.lines.iter().enumerate() {
            if let Some(cell) = cells.free_cell(*line) {
                self.last = at;
                return Some(cell);
            }
        }
        // One that another thread has left may be taken whole.
        while self.lines.len() < LINES_PER_THREAD {
            let left = locked(&direct.lines).pop();
            let line = left.or_else(|| cells.take_line())?;
            self.lines.push(line);
            self.last = self.lines.len() - 1;
            if let Some(cell) = cells.free_cell(line) {
                return Some(cell);
            }
        }
        None
    }

    /// At most `count` cells, all different.
    fn free_cells(
        &mut self,
        direct: &Direct,
        cells: &CellsView<'_, AtomicU64>,
        count: usize,
    ) -> Vec<CellIndex> {
        let mut free = Vec::with_capacity(count + LINE_CELLS);
        let mut at = 0;
        while free.len() < count && at < LINES_PER_THREAD {
            if at == self.lines.len() {
                let left = locked(&direct.lines).pop();
                let Some(line) = left.or_else(|| cells.take_line()) else { break };
                self.lines.push(line);
            }
            free.extend(cells.free_cells(self.lines[at]));
            at += 1;
        }
        free.truncate(count);
        free
    }

    /// The mapping of a slab that is known in this process.
    #[inline]
    fn slab(&mut self, slabs: &impl Mappings, slab: SlabId) -> Option<Arc<SlabMap>> {
        let place = &mut self.slabs[slab.get() as usize % SLABS_REMEMBERED];
        if let Some((remembered, map)) = place
            && *remembered == slab
            && let Some(map) = map.upgrade()
        {
            return Some(map);
        }
        let map = slabs.known(slab)?;
        *place = Some((slab, Arc::downgrade(&map)));
        Some(map)
    }
}

impl Drop for Seat {
    /// The thread ends, or the session has.
    fn drop(&mut self) {
        if let Some(direct) = self.of.upgrade()
            && !direct.fork.is_child()
        {
            locked(&direct.lines).append(&mut self.lines);
        }
    }
}

impl Pinned {
    /// Its bytes, if their slab is known and has them.
    pub(crate) fn block(&mut self) -> Option<slab::Block> {
        let length = self.entry.length;
        slab::Block::new(self.slab.take()?, self.place.offset_bytes(), length)
    }
}

fn locked<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change of it is whole whenever the lock is free.
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::os::fd::OwnedFd;

    use payload_local::direct::index::index_bytes;
    use payload_local::direct::page::{LINES, STATUS_BYTES, written_bytes};
    use payload_local::direct::{Publisher, Scan, Tables, publish, scan};
    use payload_types::{Generation, WallMs};

    use super::*;

    const SHARD: ShardIndex = ShardIndex(0);
    const ANY: Wish = Wish { version: None };

    /// Knows no slab, and counts who asks.
    #[derive(Default)]
    struct Nothing(Cell<u32>);

    impl Mappings for Nothing {
        fn known(&self, _slab: SlabId) -> Option<Arc<SlabMap>> {
            self.0.set(self.0.get() + 1);
            None
        }
    }

    /// Memory as the server and as the client have it.
    fn shared(bytes: usize) -> (SharedWords, SharedWords) {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(bytes as u64).expect("grown");
        let file = OwnedFd::from(file);
        let map = || SharedWords::map(&file, bytes).expect("mapped");
        (map(), map())
    }

    fn id(number: u64) -> PayloadId {
        PayloadId::mint(number, number.wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    fn entry(number: u64) -> Entry {
        let block = Block { slab: SlabId::new(1).expect("not 0"), unit: 0 };
        let expires_at = (number == 7).then(|| WallMs::from_millis(1_000));
        let (id, generation) = (id(number), Generation(number + 1));
        Entry { id, generation, block: Some(block), length: 64, checksum: None, version: 3, expires_at }
    }

    /// A session with `count` payloads; the server's side of its pages and of the table.
    fn session(count: u64) -> (Arc<Direct>, [SharedWords; 3]) {
        let (cells, of_client) = shared(written_bytes(1));
        let (status, status_read) = shared(STATUS_BYTES);
        let (table, table_read) = shared(index_bytes(2 * count) as usize);
        let view = IndexView::new(table.words()).expect("a table");
        let (tables, mut publisher) = (Tables { current: view, next: None }, Publisher::new());
        (0..count).for_each(|number| {
            publisher.publish(&tables, &entry(number)).expect("room");
        });
        let direct = Direct::new(of_client, status_read, 1).expect("pages");
        direct.take_table(SHARD, table_read);
        (direct, [cells, status, table])
    }

    fn held(cells: &SharedWords) -> usize {
        CellsView::new(cells.words()).expect("cells").held().count()
    }

    #[test]
    fn given_payloads_in_a_table_when_leased_and_released_then_the_server_sees_each_in_its_cell() {
        let (direct, [cells, status, table]) = session(1_000);
        let slabs = Nothing::default();
        let one = direct.acquire(&slabs, &id(1), ANY).expect("published");
        assert_eq!((one.entry, held(&cells)), (entry(1), 1));
        assert!(direct.acquire(&slabs, &id(5_000), ANY).is_none(), "unknown: the ring decides");
        let other_version = Wish { version: Some(Version(4)) };
        assert!(direct.acquire(&slabs, &id(1), other_version).is_none());
        let ids: Vec<_> = (0..100).chain([5_000]).map(id).collect();
        let many = direct.acquire_many(&slabs, &ids, ANY);
        let found = many.iter().flatten().map(|pinned| pinned.entry).collect::<Vec<_>>();
        assert!(found == (0..100).map(entry).collect::<Vec<_>>() && held(&cells) == 101);
        // 7 ends at 1,000 ms by the server's clock.
        let tick = StatusView::new(status.words()).expect("status").tick;
        tick.store(1_000, Ordering::Relaxed);
        assert!(direct.acquire(&slabs, &id(7), ANY).is_none() && held(&cells) == 101);
        // Taken away from one cell, and from no other.
        let view = CellsView::new(cells.words()).expect("cells");
        let claim = Claim::new(SHARD, Generation(2));
        assert!(!Scan::begin::<AtomicU64>([claim]).pass(&view).is_empty());
        scan::revoke(&view, &StatusView::new(status.words()).expect("status"), claim);
        assert!(!direct.is_valid(&one.pin) && direct.is_valid(&many[2].as_ref().expect("leased").pin));
        many.iter().flatten().chain([&one]).for_each(|pinned| direct.release(&pinned.pin));
        assert_eq!(held(&cells), 0);
        publish::close(&IndexView::new(table.words()).expect("a table"));
        assert!(direct.acquire(&slabs, &id(1), ANY).is_none() && held(&cells) == 0);
    }

    #[test]
    fn given_more_leases_than_one_thread_has_cells_when_threads_come_and_go_then_lines_are_used_again() {
        let (direct, [cells, ..]) = session(1_000);
        let lease_all = || {
            let slabs = Nothing::default();
            let leases = (0..600).map_while(|number| direct.acquire(&slabs, &id(number), ANY));
            leases.collect::<Vec<_>>()
        };
        // More threads than there are lines for: each takes over what one before has left.
        for _ in 0..3 * LINES / LINES_PER_THREAD {
            let leases = std::thread::scope(|scope| scope.spawn(lease_all).join().expect("no panic"));
            assert_eq!(
                (leases.len(), held(&cells)),
                (LINES_PER_THREAD * LINE_CELLS, 512),
                "beyond: the ring"
            );
            leases.iter().for_each(|lease| direct.release(&lease.pin));
        }
        // A line that is left with a lease in it keeps that, and lends the rest.
        let kept = std::thread::scope(|scope| {
            let one = || direct.acquire(&Nothing::default(), &id(1), ANY).expect("published");
            scope.spawn(one).join().expect("no panic")
        });
        assert_eq!(lease_all().len(), LINES_PER_THREAD * LINE_CELLS - 1);
        assert!(direct.is_valid(&kept.pin));
    }
}
