//! The shipped direct leases over the model checker's atomics: every interleaving and every stale value that the memory
//! model allows, within a bound on preemptions. Reader and server have words of different types, so that an
//! ordering, a fence or a look can be taken away from one side alone; each such variant must be found out.

use std::panic::{AssertUnwindSafe, catch_unwind};
// Plain: a model that fails is unwound where there is no model any more.
use std::sync::Arc;
use std::sync::atomic::{AtomicU64 as PlainU64, Ordering};

use loom::sync::atomic::{self, AtomicU64};
use loom::thread;
use payload_local::Word;
use payload_local::direct::page::CellIndex;
use payload_local::direct::{
    CellsView, Claim, Entry, Found, IndexView, Miss, Publisher, Scan, StatusView, Tables, publish, read, scan,
};
use payload_types::{Block, Generation, PayloadId, ShardIndex, SlabId};

/// Nothing is taken away.
const AS_SHIPPED: u8 = 0;
/// Release stores are Relaxed ones.
const NO_RELEASE: u8 = 1;
/// Acquire loads are Relaxed ones.
const NO_ACQUIRE: u8 = 2;
/// Full fences do nothing.
const NO_FULL_FENCE: u8 = 3;
/// Full fences only order what an acquire and a release do.
const WEAK_FULL_FENCE: u8 = 4;
/// Release fences do nothing.
const NO_RELEASE_FENCE: u8 = 5;
/// Acquire fences do nothing.
const NO_ACQUIRE_FENCE: u8 = 6;
/// The second look at a state shows what the first one did.
const NO_SECOND_LOOK: u8 = 7;
/// The table always looks as if it were in use.
const NO_LOOK_AT_CLOSED: u8 = 8;
/// Claims are stored Relaxed.
const RELAXED_CLAIM: u8 = 9;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    State,
    Closed,
    Cell,
    Other,
}

/// One side's way to a word that both share.
struct Model<const BUG: u8> {
    word: Arc<AtomicU64>,
    kind: Kind,
    /// What the first look at a state has shown to this side's one thread.
    seen: PlainU64,
}

impl<const BUG: u8> Word for Model<BUG> {
    fn load(&self, ordering: Ordering) -> u64 {
        match (BUG, self.kind, ordering) {
            (NO_ACQUIRE, ..) => self.word.load(Ordering::Relaxed),
            (NO_LOOK_AT_CLOSED, Kind::Closed, _) => 0,
            (NO_SECOND_LOOK, Kind::State, Ordering::Relaxed) => self.seen.load(Ordering::Relaxed),
            (NO_SECOND_LOOK, Kind::State, _) => {
                let value = self.word.load(ordering);
                self.seen.store(value, Ordering::Relaxed);
                value
            }
            _ => self.word.load(ordering),
        }
    }

    fn store(&self, value: u64, ordering: Ordering) {
        let is_weak = BUG == NO_RELEASE || BUG == RELAXED_CLAIM && self.kind == Kind::Cell && value != 0;
        self.word.store(value, if is_weak { Ordering::Relaxed } else { ordering });
    }

    fn fetch_add(&self, value: u64, ordering: Ordering) -> u64 {
        self.word.fetch_add(value, ordering)
    }

    fn fence(ordering: Ordering) {
        match (BUG, ordering) {
            (NO_FULL_FENCE, Ordering::SeqCst)
            | (NO_RELEASE_FENCE, Ordering::Release)
            | (NO_ACQUIRE_FENCE, Ordering::Acquire) => {}
            (WEAK_FULL_FENCE, Ordering::SeqCst) => atomic::fence(Ordering::AcqRel),
            _ => atomic::fence(ordering),
        }
    }
}

/// Shared words.
struct Shared(Vec<(Arc<AtomicU64>, Kind)>);

impl Shared {
    fn new(count: usize, kind: impl Fn(usize) -> Kind) -> Self {
        Self((0..count).map(|at| (Arc::new(AtomicU64::new(0)), kind(at))).collect())
    }

    /// A table of one entry.
    fn table() -> Self {
        Self::new(16, |at| match at {
            0 => Kind::Closed,
            8 => Kind::State,
            _ => Kind::Other,
        })
    }

    /// Cells, with their header.
    fn cells(lines: usize) -> Self {
        Self::new(8 + 8 * lines, |at| if at < 8 { Kind::Other } else { Kind::Cell })
    }

    fn of<const BUG: u8>(&self) -> Vec<Model<BUG>> {
        let words = self.0.iter();
        words
            .map(|(word, kind)| Model { word: Arc::clone(word), kind: *kind, seen: PlainU64::new(0) })
            .collect()
    }
}

fn index<const BUG: u8>(words: &[Model<BUG>]) -> IndexView<'_, Model<BUG>> {
    IndexView::with_probes(words, 1).expect("a table of one entry")
}

fn only<const BUG: u8>(words: &[Model<BUG>]) -> Tables<'_, Model<BUG>> {
    Tables { current: index(words), next: None }
}

fn cells<const BUG: u8>(words: &[Model<BUG>]) -> CellsView<'_, Model<BUG>> {
    CellsView::new(words).expect("a header and lines")
}

const SHARD: ShardIndex = ShardIndex(3);

fn id(number: u8) -> PayloadId {
    PayloadId::from_bytes([number; 16])
}

fn claim(generation: u64) -> Claim {
    Claim::new(SHARD, Generation(generation))
}

/// Published under this generation, in the block of the same number.
fn entry(of: PayloadId, generation: u64) -> Entry {
    let block = Block { slab: SlabId::new(1).expect("not 0"), unit: generation as u32 };
    Entry {
        id: of,
        generation: Generation(generation),
        block: Some(block),
        length: generation,
        checksum: None,
        version: generation,
        expires_at: None,
    }
}

fn unit(found: &Found) -> u64 {
    u64::from(found.block().expect("all have one").unit)
}

fn explore(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

/// Runs a model that must go wrong.
fn must_find(what: &str, model: impl FnOnce()) {
    assert!(catch_unwind(AssertUnwindSafe(model)).is_err(), "the model does not notice {what}");
}

/// Whether nobody holds the claim.
fn is_free<const BUG: u8>(of: Claim, sessions: &[&[Model<BUG>]]) -> bool {
    let scan = Scan::begin::<Model<BUG>>([of]);
    sessions.iter().all(|session| scan.pass(&cells(session)).is_empty())
}

/// `readers` sessions lease a payload while the server drops it and uses its block again; with `refuses`, a held one is
/// published again instead, and dropped a second time.
fn dropped_under_readers<const R: u8, const S: u8>(readers: usize, refuses: bool) {
    explore(if readers > 1 { 2 } else { 3 }, move || {
        let table = Shared::table();
        let pages: Vec<Shared> = (0..readers).map(|_| Shared::cells(1)).collect();
        let block = Arc::new(AtomicU64::new(1));
        let (words, mut publisher) = (table.of::<S>(), Publisher::new());
        publisher.publish(&only(&words), &entry(id(1), 1)).expect("room");
        pages.iter().for_each(|page| page.0[0].0.store(1, Ordering::Relaxed));
        let threads: Vec<_> = pages
            .iter()
            .map(|page| {
                let (words, page, block) = (table.of::<R>(), page.of::<R>(), Arc::clone(&block));
                thread::spawn(move || {
                    let cell = cells(&page).cell(CellIndex(0));
                    if read::acquire(&index(&words), SHARD, &id(1), cell).is_ok() {
                        assert_eq!(block.load(Ordering::Relaxed), 1, "leased, and written over");
                        read::release(cell);
                    }
                })
            })
            .collect();
        let pages: Vec<_> = pages.iter().map(Shared::of::<S>).collect();
        let sessions: Vec<&[Model<S>]> = pages.iter().map(|page| &page[..]).collect();
        publisher.withdraw(&only(&words), &id(1));
        if refuses && !is_free(claim(1), &sessions) {
            publisher.restore(&only(&words), &id(1));
        }
        publisher.remove(&only(&words), &id(1));
        if is_free(claim(1), &sessions) {
            block.store(2, Ordering::Relaxed);
        }
        threads.into_iter().for_each(|thread| thread.join().expect("the reader is done"));
    });
}

#[test]
fn given_readers_when_a_payload_is_dropped_then_no_lease_shows_a_block_that_is_used_again() {
    dropped_under_readers::<AS_SHIPPED, AS_SHIPPED>(1, false);
    dropped_under_readers::<AS_SHIPPED, AS_SHIPPED>(2, false);
    must_find("a reader without its fence", || dropped_under_readers::<NO_FULL_FENCE, 0>(1, false));
    must_find("a reader's fence that is too weak", || dropped_under_readers::<WEAK_FULL_FENCE, 0>(1, false));
    must_find("a server without its fence", || dropped_under_readers::<0, NO_FULL_FENCE>(1, false));
    must_find("a server's fence that is too weak", || dropped_under_readers::<0, WEAK_FULL_FENCE>(1, false));
    must_find("a reader that does not look again", || dropped_under_readers::<NO_SECOND_LOOK, 0>(1, false));
}

#[test]
fn given_a_reader_when_a_drop_is_refused_and_tried_again_then_no_lease_shows_a_block_that_is_used_again() {
    dropped_under_readers::<AS_SHIPPED, AS_SHIPPED>(1, true);
    must_find("a reader that does not look again", || dropped_under_readers::<NO_SECOND_LOOK, 0>(1, true));
    must_find("a server without its fence", || dropped_under_readers::<0, NO_FULL_FENCE>(1, true));
}

/// The server moves a payload to another block while a reader leases it.
fn moved_under_a_reader<const R: u8, const S: u8>() {
    explore(3, || {
        let (table, page) = (Shared::table(), Shared::cells(1));
        let blocks: Arc<[AtomicU64; 3]> = Arc::new([0, 1, 0].map(AtomicU64::new));
        let (words, mut publisher) = (table.of::<S>(), Publisher::new());
        publisher.publish(&only(&words), &entry(id(1), 1)).expect("room");
        page.0[0].0.store(1, Ordering::Relaxed);
        let reader = thread::spawn({
            let (words, page, blocks) = (table.of::<R>(), page.of::<R>(), Arc::clone(&blocks));
            move || {
                let cell = cells(&page).cell(CellIndex(0));
                if let Ok(found) = read::acquire(&index(&words), SHARD, &id(1), cell) {
                    let generation = found.generation().0;
                    assert_eq!((unit(&found), found.entry(&id(1)).length), (generation, generation), "torn");
                    let bytes = blocks[generation as usize].load(Ordering::Relaxed);
                    assert_eq!(bytes, generation, "another's bytes");
                    read::release(cell);
                }
            }
        });
        blocks[2].store(2, Ordering::Relaxed);
        publisher.publish(&only(&words), &entry(id(1), 2)).expect("its own place");
        if is_free(claim(1), &[&page.of::<S>()]) {
            blocks[1].store(9, Ordering::Relaxed);
        }
        reader.join().expect("the reader is done");
    });
}

#[test]
fn given_a_reader_when_a_payload_moves_then_its_lease_is_whole_and_shows_the_payloads_bytes() {
    moved_under_a_reader::<AS_SHIPPED, AS_SHIPPED>();
    must_find("an entry published without Release", moved_under_a_reader::<0, NO_RELEASE>);
    must_find("fields that overtake BUSY", moved_under_a_reader::<0, NO_RELEASE_FENCE>);
    must_find("an entry read without Acquire", moved_under_a_reader::<NO_ACQUIRE, 0>);
    must_find("a reader that does not look again", moved_under_a_reader::<NO_SECOND_LOOK, 0>);
    must_find("a reader without its fence", moved_under_a_reader::<NO_FULL_FENCE, 0>);
    must_find("a server without its fence", moved_under_a_reader::<0, NO_FULL_FENCE>);
}

/// A reader ends a lease and puts another one into the same cell; the server must see its last read as done.
fn another_lease_in_the_cell<const R: u8, const S: u8>() {
    explore(3, || {
        let (tables, page) = ([Shared::table(), Shared::table()], Shared::cells(1));
        let has_read = Arc::new(AtomicU64::new(0));
        let (words, mut publishers) =
            (tables.each_ref().map(Shared::of::<S>), [Publisher::new(), Publisher::new()]);
        for at in 0..2 {
            let entry = entry(id(at as u8), at as u64 + 1);
            publishers[at].publish(&only(&words[at]), &entry).expect("room");
        }
        page.0[0].0.store(1, Ordering::Relaxed);
        let (reader_words, reader_page) = (tables.each_ref().map(Shared::of::<R>), page.of::<R>());
        let cell = cells(&reader_page).cell(CellIndex(0));
        read::acquire(&index(&reader_words[0]), SHARD, &id(0), cell).expect("nobody drops it yet");
        let reader = thread::spawn({
            let has_read = Arc::clone(&has_read);
            move || {
                let cell = cells(&reader_page).cell(CellIndex(0));
                has_read.store(1, Ordering::Relaxed);
                read::release(cell);
                let _either_way = read::acquire(&index(&reader_words[1]), SHARD, &id(1), cell);
            }
        });
        publishers[0].remove(&only(&words[0]), &id(0));
        if is_free(claim(1), &[&page.of::<S>()]) {
            assert_eq!(has_read.load(Ordering::Relaxed), 1, "used again before the last read");
        }
        reader.join().expect("the reader is done");
    });
}

#[test]
fn given_a_cell_that_is_used_again_when_scanned_then_the_reads_of_its_last_lease_are_over() {
    another_lease_in_the_cell::<AS_SHIPPED, AS_SHIPPED>();
    must_find("a claim stored Relaxed", another_lease_in_the_cell::<RELAXED_CLAIM, 0>);
    must_find("a release stored Relaxed", another_lease_in_the_cell::<NO_RELEASE, 0>);
    must_find("cells read without Acquire", another_lease_in_the_cell::<0, NO_ACQUIRE>);
}

/// The server replaces the table, and drops a payload that only the new one says to be dropped, while a reader has
/// the old one.
fn table_is_replaced<const R: u8, const S: u8>(is_closed: bool) {
    explore(3, move || {
        let (old, new, page) = (Shared::table(), Shared::table(), Shared::cells(1));
        let block = Arc::new(AtomicU64::new(1));
        let (old_words, new_words, mut publisher) = (old.of::<S>(), new.of::<S>(), Publisher::new());
        publisher.publish(&only(&old_words), &entry(id(1), 1)).expect("room");
        page.0[0].0.store(1, Ordering::Relaxed);
        let reader = thread::spawn({
            let (words, page, block) = (old.of::<R>(), page.of::<R>(), Arc::clone(&block));
            move || {
                let cell = cells(&page).cell(CellIndex(0));
                match read::acquire(&index(&words), SHARD, &id(1), cell) {
                    Ok(_) => {
                        assert_eq!(block.load(Ordering::Relaxed), 1, "leased, and written over");
                        read::release(cell);
                    }
                    Err(miss) => assert_eq!(miss, Miss::Closed),
                }
            }
        });
        let both = Tables { current: index(&old_words), next: Some(index(&new_words)) };
        assert!(publisher.copy_some(&both, 9));
        if is_closed {
            publisher.switch(&both);
        }
        // What `is_closed` leaves out is what a broken server would: the old table is in use, and not written any more.
        let mut of_new = if is_closed { publisher } else { Publisher::new() };
        assert!(of_new.withdraw(&only(&new_words), &id(1)).is_some());
        if is_free(claim(1), &[&page.of::<S>()]) {
            block.store(2, Ordering::Relaxed);
        }
        reader.join().expect("the reader is done");
    });
}

#[test]
fn given_a_reader_of_an_old_table_when_it_is_replaced_then_its_leases_hold_or_it_misses() {
    table_is_replaced::<AS_SHIPPED, AS_SHIPPED>(true);
    must_find("a table that is not closed", || table_is_replaced::<0, 0>(false));
    must_find("a reader that does not look at `closed`", || table_is_replaced::<NO_LOOK_AT_CLOSED, 0>(true));
    must_find("a reader without its fence", || table_is_replaced::<NO_FULL_FENCE, 0>(true));
    must_find("a server without its fence", || table_is_replaced::<0, NO_FULL_FENCE>(true));
}

/// A lease is taken away, and its block written over, while its reader reads.
fn revoked_under_a_reader<const R: u8, const S: u8>(in_order: bool) {
    explore(3, move || {
        let (table, page, status) = (Shared::table(), Shared::cells(1), Shared::cells(1));
        let block = Arc::new(AtomicU64::new(1));
        let (words, mut publisher) = (table.of::<S>(), Publisher::new());
        publisher.publish(&only(&words), &entry(id(1), 1)).expect("room");
        page.0[0].0.store(1, Ordering::Relaxed);
        let (reader_words, reader_page) = (table.of::<R>(), page.of::<R>());
        let cell = cells(&reader_page).cell(CellIndex(0));
        let lease = read::acquire(&index(&reader_words), SHARD, &id(1), cell).expect("nobody drops it yet");
        let reader = thread::spawn({
            let (status, block) = (status.of::<R>(), Arc::clone(&block));
            move || {
                let bytes = block.load(Ordering::Relaxed);
                let status = StatusView::new(&status).expect("a header and lines");
                if read::is_valid(&status, CellIndex(0), lease.claim, 0) {
                    assert_eq!(bytes, 1, "valid, and written over");
                }
            }
        });
        publisher.remove(&only(&words), &id(1));
        let page = page.of::<S>();
        assert!(!is_free(claim(1), &[&page]), "it is held");
        if !in_order {
            block.store(2, Ordering::Relaxed);
        }
        let status = status.of::<S>();
        let status = StatusView::new(&status).expect("a header and lines");
        assert_eq!(scan::revoke(&cells(&page), &status, claim(1)), 1);
        block.store(2, Ordering::Relaxed);
        reader.join().expect("the reader is done");
    });
}

#[test]
fn given_a_lease_that_is_taken_away_when_its_block_is_written_over_then_who_read_that_is_told() {
    revoked_under_a_reader::<AS_SHIPPED, AS_SHIPPED>(true);
    must_find("bytes written over first", || revoked_under_a_reader::<0, 0>(false));
    must_find("a reader that asks without its fence", || revoked_under_a_reader::<NO_ACQUIRE_FENCE, 0>(true));
    must_find("a revocation without its fence", || revoked_under_a_reader::<0, NO_RELEASE_FENCE>(true));
}

/// A reader leases two payloads with one fence, and the server drops both in one batch.
fn two_with_one_fence<const R: u8, const S: u8>() {
    explore(2, || {
        let (tables, page) = ([Shared::table(), Shared::table()], Shared::cells(1));
        let blocks: Arc<[AtomicU64; 2]> = Arc::new([1, 1].map(AtomicU64::new));
        let (words, mut publishers) =
            (tables.each_ref().map(Shared::of::<S>), [Publisher::new(), Publisher::new()]);
        for at in 0..2 {
            let entry = entry(id(at as u8), at as u64 + 1);
            publishers[at].publish(&only(&words[at]), &entry).expect("room");
        }
        page.0[0].0.store(1, Ordering::Relaxed);
        let reader = thread::spawn({
            let words = tables.each_ref().map(Shared::of::<R>);
            let (page, blocks) = (page.of::<R>(), Arc::clone(&blocks));
            move || {
                let wanted = [0, 1].map(|at| (index(&words[at]), SHARD, id(at as u8)));
                let of = [CellIndex(0), CellIndex(1)].map(|at| cells(&page).cell(at));
                let mut results = [Err(Miss::Unknown); 2];
                read::acquire_many(&wanted, &of, &mut results);
                for at in 0..2 {
                    if results[at].is_ok() {
                        assert_eq!(blocks[at].load(Ordering::Relaxed), 1, "leased, and written over");
                        read::release(of[at]);
                    }
                }
            }
        });
        for at in 0..2 {
            publishers[at].remove(&only(&words[at]), &id(at as u8));
        }
        let scan = Scan::begin::<Model<S>>([claim(1), claim(2)]);
        let page = page.of::<S>();
        let held = scan.pass(&cells(&page));
        for at in 0..2 {
            if !held.has(at) {
                blocks[at].store(2, Ordering::Relaxed);
            }
        }
        reader.join().expect("the reader is done");
    });
}

#[test]
fn given_two_leases_with_one_fence_when_both_payloads_are_dropped_then_neither_shows_a_block_used_again() {
    two_with_one_fence::<AS_SHIPPED, AS_SHIPPED>();
    must_find("a reader without its fence", two_with_one_fence::<NO_FULL_FENCE, 0>);
    must_find("a reader that does not look again", two_with_one_fence::<NO_SECOND_LOOK, 0>);
    must_find("a server without its fence", two_with_one_fence::<0, NO_FULL_FENCE>);
}

/// A reader leases in a line that was not in use before.
fn line_is_new(in_order: bool) {
    explore(3, move || {
        let (table, page) = (Shared::table(), Shared::cells(1));
        let block = Arc::new(AtomicU64::new(1));
        let (words, mut publisher) = (table.of::<AS_SHIPPED>(), Publisher::new());
        publisher.publish(&only(&words), &entry(id(1), 1)).expect("room");
        let reader = thread::spawn({
            let (words, page, block) = (table.of::<AS_SHIPPED>(), page.of(), Arc::clone(&block));
            move || {
                let cells = cells(&page);
                let line = if in_order { cells.take_line().expect("the first") } else { 0 };
                let cell = cells.cell(cells.free_cell(line).expect("all are free"));
                let leased = read::acquire(&index(&words), SHARD, &id(1), cell).is_ok();
                if !in_order {
                    cells.take_line();
                }
                if leased {
                    assert_eq!(block.load(Ordering::Relaxed), 1, "leased, and written over");
                }
                read::release(cell);
            }
        });
        publisher.remove(&only(&words), &id(1));
        if is_free(claim(1), &[&page.of::<AS_SHIPPED>()]) {
            block.store(2, Ordering::Relaxed);
        }
        reader.join().expect("the reader is done");
    });
}

#[test]
fn given_a_thread_that_takes_a_new_line_when_scanned_then_its_first_lease_is_seen() {
    line_is_new(true);
    must_find("a line that is marked after its first lease", || line_is_new(false));
}

/// The server says once and for all that nothing is published any more, and then uses blocks again.
#[test]
fn given_a_table_that_is_closed_for_good_when_blocks_are_used_again_then_no_lease_shows_one() {
    explore(3, || {
        let (table, page) = (Shared::table(), Shared::cells(1));
        let block = Arc::new(AtomicU64::new(1));
        let (words, mut publisher) = (table.of::<AS_SHIPPED>(), Publisher::new());
        publisher.publish(&only(&words), &entry(id(1), 1)).expect("room");
        page.0[0].0.store(1, Ordering::Relaxed);
        let reader = thread::spawn({
            let (words, page, block) = (table.of::<AS_SHIPPED>(), page.of(), Arc::clone(&block));
            move || {
                let cell = cells(&page).cell(CellIndex(0));
                if read::acquire(&index(&words), SHARD, &id(1), cell).is_ok() {
                    assert_eq!(block.load(Ordering::Relaxed), 1, "leased, and written over");
                    read::release(cell);
                }
            }
        });
        publish::close(&index(&words));
        if is_free(claim(1), &[&page.of::<AS_SHIPPED>()]) {
            block.store(2, Ordering::Relaxed);
        }
        reader.join().expect("the reader is done");
    });
}
