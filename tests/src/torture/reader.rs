//! The reader's process: leases, compares, releases, until it is killed. With a planted bug, its words leave something out.

use std::cell::RefCell;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use payload_local::Word;
use payload_local::direct::access::{Sampler, SamplesView};
use payload_local::direct::page::{CellIndex, PAGE_BYTES};
use payload_local::direct::{CellsView, Found, IndexView, Miss, StatusView, read};
use rand::rngs::SmallRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};

use super::{BLOCK_WORDS, BREACHED, Bug, Mapped, PAYLOADS, SHARD, StoreBuffer, id, page, pattern, told};

/// Leases of one fence.
const BATCH: usize = 4;

const READER_FENCE: u8 = 1;
const SECOND_LOOK: u8 = 2;
const LOOK_AT_CLOSED: u8 = 3;

thread_local! {
    static STORES: RefCell<StoreBuffer> = RefCell::default();
}

/// A word of shared memory from which a bug takes something away.
struct Broken<'a, const BUG: u8> {
    word: &'a AtomicU64,
    is_closed: bool,
    is_state: bool,
    seen: AtomicU64,
}

impl<'a, const BUG: u8> Broken<'a, BUG> {
    fn table(words: &'a [AtomicU64]) -> Vec<Self> {
        let broken = |(at, word)| Self {
            word,
            is_closed: at == 0,
            is_state: at >= 8 && at % 8 == 0,
            seen: AtomicU64::new(0),
        };
        words.iter().enumerate().map(broken).collect()
    }
}

impl<const BUG: u8> Word for Broken<'_, BUG> {
    fn load(&self, ordering: Ordering) -> u64 {
        if BUG == LOOK_AT_CLOSED && self.is_closed {
            return 0;
        }
        if BUG == SECOND_LOOK && self.is_state && ordering == Ordering::Relaxed {
            return self.seen.load(Ordering::Relaxed);
        }
        let value = self.word.load(ordering);
        self.seen.store(value, Ordering::Relaxed);
        value
    }

    fn store(&self, value: u64, ordering: Ordering) {
        if BUG == READER_FENCE && value != 0 {
            // Right before the claim: it leaves the processor when these have found their lines, unless somebody fences.
            STORES.with_borrow_mut(|stores| stores.fill(55));
        }
        self.word.store(value, ordering);
    }

    fn fetch_add(&self, value: u64, ordering: Ordering) -> u64 {
        self.word.fetch_add(value, ordering)
    }

    fn fence(ordering: Ordering) {
        if BUG != READER_FENCE || ordering != Ordering::SeqCst {
            std::sync::atomic::fence(ordering);
        }
    }
}

/// What a reader works with.
struct Reader<'a> {
    told: &'a [AtomicU64],
    data: &'a [AtomicU64],
    status: StatusView<'a, AtomicU64>,
    epoch: u64,
    random: SmallRng,
    stores: StoreBuffer,
}

/// Reads until it is killed; returns how it ends when it has read another's bytes.
///
/// # Errors
/// When the directory is not what the server made.
pub fn run(directory: &Path, session: u32, seed: u64, bug: Option<Bug>) -> anyhow::Result<i32> {
    let told = Mapped::open(&directory.join("told"), true)?;
    let data = Mapped::open(&directory.join("data"), false)?;
    let status = Mapped::open(&page(directory, "status", session), false)?;
    let cells = Mapped::open(&page(directory, "cells", session), true)?;
    let status = StatusView::new(status.words()).expect("a page");
    let mut reader = Reader {
        told: told.words(),
        data: data.words(),
        epoch: status.epoch.load(Ordering::Relaxed),
        status,
        random: SmallRng::seed_from_u64(seed),
        stores: StoreBuffer::new(),
    };
    loop {
        let number = reader.told[told::TABLE].load(Ordering::Acquire);
        // Gone again: another one is told by now.
        let Ok(table) = Mapped::open(&directory.join(format!("table-{number}")), false) else { continue };
        let (table, cells) = (table.words(), cells.words());
        let has_breached = match bug {
            Some(Bug::ReaderFence) => reader.read_broken::<READER_FENCE>(table, cells),
            Some(Bug::SecondLook) => reader.read_broken::<SECOND_LOOK>(table, cells),
            Some(Bug::LookAtClosed) => reader.read_broken::<LOOK_AT_CLOSED>(table, cells),
            _ => reader.read_shipped(table, cells),
        };
        if has_breached {
            return Ok(BREACHED);
        }
        reader.told[told::CLOSED].fetch_add(1, Ordering::Relaxed);
    }
}

impl Reader<'_> {
    fn read_shipped(&mut self, table: &[AtomicU64], cells: &[AtomicU64]) -> bool {
        let samples = SamplesView::new(&cells[PAGE_BYTES / 8..]).expect("behind the cells");
        self.read_all(table, &cells[..PAGE_BYTES / 8], Some(&samples))
    }

    fn read_broken<const BUG: u8>(&mut self, table: &[AtomicU64], cells: &[AtomicU64]) -> bool {
        let table = Broken::<BUG>::table(table);
        let cells = Broken::<BUG>::table(&cells[..PAGE_BYTES / 8]);
        self.read_all(&table, &cells, None)
    }

    /// Leases until the table is closed (false), or something else was read (true).
    fn read_all<W: Word>(
        &mut self,
        table: &[W],
        cells: &[W],
        samples: Option<&SamplesView<'_, AtomicU64>>,
    ) -> bool {
        let index = IndexView::new(table).expect("a table");
        let page = CellsView::new(cells).expect("a page");
        let line = page.take_line().unwrap_or(0);
        let mut sampler = Sampler::new(self.random.next_u64());
        let mut counts = [0u64; 3];
        for round in 0u64.. {
            if round.is_multiple_of(256) {
                for (word, count) in [told::LEASES, told::MISSES, told::TAKEN].into_iter().zip(&mut counts) {
                    self.told[word].fetch_add(std::mem::take(count), Ordering::Relaxed);
                }
                // Never noticed otherwise by a reader that does not look whether it is closed.
                if round.is_multiple_of(1 << 16) && round > 0 {
                    return false;
                }
            }
            let cell = page.free_cell(line).expect("all are released");
            let fill = self.random.random_range(0..64);
            let mut leases = [None::<(CellIndex, Found)>; BATCH];
            let mut is_closed = false;
            if round.is_multiple_of(8) {
                let wanted: [_; BATCH] =
                    std::array::from_fn(|_| (index, SHARD, id(self.random.random_range(0..PAYLOADS))));
                let at: [_; BATCH] = std::array::from_fn(|at| CellIndex(cell.0 + at as u16));
                let of = at.map(|at| page.cell(at));
                let mut results = [Err(Miss::Unknown); BATCH];
                self.stores.fill(fill);
                read::acquire_many(&wanted, &of, &mut results);
                for (lease, (at, result)) in leases.iter_mut().zip(at.into_iter().zip(results)) {
                    is_closed |= result == Err(Miss::Closed);
                    *lease = result.ok().map(|found| (at, found));
                }
            } else {
                let id = id(self.random.random_range(0..PAYLOADS));
                self.stores.fill(fill);
                let result = read::acquire(&index, SHARD, &id, page.cell(cell));
                is_closed = result == Err(Miss::Closed);
                leases[0] = result.ok().map(|found| (cell, found));
            }
            for (at, found) in leases.into_iter().flatten() {
                counts[0] += 1;
                match self.compare(at, &found) {
                    None => return true,
                    Some(is_whole) => counts[2] += u64::from(!is_whole),
                }
                if sampler.is_due()
                    && let Some(samples) = samples
                {
                    samples.note(found.position, found.generation());
                }
                read::release(page.cell(at));
            }
            counts[1] += u64::from(leases[0].is_none());
            if is_closed {
                return false;
            }
        }
        unreachable!("a u64 of rounds")
    }

    /// Reads the block twice: whether it was all that generation's; `None` when it was not, and the lease is valid.
    fn compare(&mut self, at: CellIndex, found: &Found) -> Option<bool> {
        let block = found.block().expect("all have one");
        let words = &self.data[block.unit as usize * BLOCK_WORDS..][..BLOCK_WORDS];
        let generation = found.generation().0;
        let is_right =
            |(word, value): (usize, &AtomicU64)| value.load(Ordering::Relaxed) == pattern(generation, word);
        let mut is_whole = words.iter().enumerate().all(is_right);
        if self.random.random_range(0..1_000) == 0 {
            std::thread::sleep(std::time::Duration::from_micros(200));
        } else {
            (0..self.random.random_range(0..200)).for_each(|_| std::hint::spin_loop());
        }
        is_whole &= words.iter().enumerate().all(is_right);
        let is_valid = read::is_valid(&self.status, at, found.claim, self.epoch);
        if !is_whole && is_valid {
            eprintln!("{found:?}: valid, and its block says something else");
            return None;
        }
        Some(is_whole)
    }
}

/// Writes noise, and what may be others' claims, over its whole page until it is killed.
///
/// # Errors
/// When the directory is not what the server made.
pub fn be_hostile(directory: &Path, session: u32, seed: u64) -> anyhow::Result<i32> {
    let cells = Mapped::open(&page(directory, "cells", session), true)?;
    let mut random = SmallRng::seed_from_u64(seed);
    loop {
        let at = random.random_range(0..cells.words().len());
        let value = match random.random_range(0..4) {
            0 => 0,
            1 => u64::MAX,
            2 => random.random_range(1..1u64 << 24) << 8 | u64::from(SHARD.0),
            _ => random.next_u64(),
        };
        cells.words()[at].store(value, Ordering::Relaxed);
    }
}
