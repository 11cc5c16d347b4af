//! Direct leases without the model checker: the table against a map, growth in the middle of changes, what a hostile client
//! may write, batches, cells, samples.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use payload_local::direct::access::{DRAIN_MAX, Drain, PERIOD, RING_BYTES, RING_LEN, Sampler, SamplesView};
use payload_local::direct::index::{PROBES_MAX, index_bytes};
use payload_local::direct::page::{CELLS, CellIndex, LINE_CELLS, LINES, PAGE_BYTES};
use payload_local::direct::{
    CellsView, Claim, Entry, Full, IndexView, Miss, Publisher, Scan, StatusView, Tables, publish, read, scan,
};
use payload_types::{Block, Checksum, Generation, PayloadId, ShardIndex, SlabId, WallMs};

const SHARD: ShardIndex = ShardIndex(7);

fn words(bytes: u64) -> Vec<AtomicU64> {
    (0..bytes / 8).map(|_| AtomicU64::new(0)).collect()
}

/// SplitMix64: tests need no more.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        value ^ (value >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

fn id(number: u64) -> PayloadId {
    PayloadId::mint(number << 12, Random(number).next())
}

fn entry(of: PayloadId, generation: u64) -> Entry {
    Entry {
        id: of,
        generation: Generation(generation),
        block: (!generation.is_multiple_of(5))
            .then(|| Block { slab: SlabId::new(generation as u32).expect("not 0"), unit: 3 }),
        length: generation * 11,
        checksum: generation.is_multiple_of(2).then_some(Checksum(generation)),
        version: generation,
        expires_at: generation.is_multiple_of(3).then(|| WallMs::from_millis(generation)),
    }
}

fn claim(generation: u64) -> Claim {
    Claim::new(SHARD, Generation(generation))
}

/// Changes at random, compared with a map after each: what is published can be leased and says what was published, and
/// nothing else can.
// Long because: one arm a kind of change.
fn run_against_a_map(seed: u64) {
    let mut random = Random(seed);
    let mut memory = words(index_bytes(64));
    let mut next: Option<Vec<AtomicU64>> = None;
    let mut publisher = Publisher::new();
    let mut expected: BTreeMap<PayloadId, (Entry, bool)> = BTreeMap::new();
    let (cell, mut generation, mut grown) = (AtomicU64::new(0), 0, 0);
    for _ in 0..3_000 {
        let current = IndexView::new(&memory).expect("a table");
        let tables =
            Tables { current, next: next.as_deref().map(|words| IndexView::new(words).expect("a table")) };
        let of = id(random.below(150) as u64);
        match random.below(8) {
            0..=2 => {
                generation += 1;
                let entry = entry(of, generation);
                match publisher.publish(&tables, &entry) {
                    Ok(before) => {
                        let known = expected.insert(of, (entry, true));
                        let was_there = known.map(|(entry, _)| entry.generation);
                        assert_eq!(before, was_there, "seed {seed}");
                    }
                    Err(Full) => assert!(!expected.contains_key(&of), "seed {seed}: it has a place"),
                }
            }
            3 => {
                let of = publisher.withdraw(&tables, &of).map(|generation| (of, generation));
                if let Some((of, generation)) = of {
                    let known = expected.get_mut(&of).expect("published");
                    assert_eq!(known.0.generation, generation);
                    known.1 = false;
                }
            }
            4 => {
                publisher.restore(&tables, &of);
                expected.entry(of).and_modify(|known| known.1 = true);
            }
            5 => {
                let removed = publisher.remove(&tables, &of);
                assert_eq!(removed, expected.remove(&of).map(|(entry, _)| entry.generation), "seed {seed}");
            }
            6 => {
                publisher.describe(&tables, &of, generation, None);
                expected
                    .entry(of)
                    .and_modify(|(entry, _)| (entry.version, entry.expires_at) = (generation, None));
            }
            _ if next.is_some() => {
                let is_copied = publisher.copy_some(&tables, 1 + random.below(60));
                if is_copied {
                    publisher.switch(&tables);
                    let miss = read::acquire(&current, SHARD, &of, &cell).expect_err("nobody leases by it");
                    assert!(matches!(miss, Miss::Closed | Miss::Unknown | Miss::Unreadable), "{miss:?}");
                    memory = next.take().expect("looked at");
                    grown += 1;
                }
            }
            _ if publisher.wants_growth(&tables) => next = Some(words(index_bytes(2 * current.homes()))),
            _ => {}
        }
        let current = IndexView::new(&memory).expect("a table");
        assert_eq!(publisher.len(), expected.len(), "seed {seed}");
        for number in 0..150 {
            let found =
                read::acquire(&current, SHARD, &id(number), &cell).map(|found| found.entry(&id(number)));
            match expected.get(&id(number)) {
                Some((entry, true)) => assert_eq!(found, Ok(*entry), "seed {seed}"),
                Some((_, false)) => assert_eq!(found, Err(Miss::Unreadable), "seed {seed}"),
                None => assert_eq!(found, Err(Miss::Unknown), "seed {seed}"),
            }
            assert_eq!(cell.load(Ordering::Relaxed) != 0, found.is_ok(), "a miss leaves the cell empty");
            read::release(&cell);
        }
    }
    assert!(grown > 0, "seed {seed}: the table never grew");
}

#[test]
fn given_any_changes_when_looked_up_then_the_table_says_what_a_map_does_while_it_grows() {
    (0..12).for_each(run_against_a_map);
}

#[test]
fn given_a_table_when_half_of_its_homes_are_used_then_more_are_refused_and_known_ids_still_move() {
    let memory = words(index_bytes(1_000));
    let tables = Tables { current: IndexView::new(&memory).expect("a table"), next: None };
    let mut publisher = Publisher::new();
    for number in 1..=500 {
        assert_eq!(publisher.publish(&tables, &entry(id(number), number)), Ok(None));
    }
    assert!(publisher.wants_growth(&tables));
    assert_eq!(publisher.publish(&tables, &entry(id(501), 501)), Err(Full));
    assert_eq!(publisher.publish(&tables, &entry(id(5), 502)), Ok(Some(Generation(5))));
    let longest = (1..=500)
        .filter(|number| read::acquire(&tables.current, SHARD, &id(*number), &AtomicU64::new(0)).is_ok());
    assert_eq!(longest.count(), 500);
}

#[test]
fn given_memory_of_any_size_when_taken_as_a_table_then_it_is_one_or_none_and_nothing_lies_outside() {
    for count in 0..8 * (PROBES_MAX + 20) {
        let memory = words(8 * count as u64);
        let Some(view) = IndexView::new(&memory) else {
            assert!(count < 8 * (PROBES_MAX + 1), "{count} words are a table");
            continue;
        };
        for number in 0..50 {
            let miss = read::acquire(&view, SHARD, &id(number), &AtomicU64::new(0));
            assert_eq!(miss.map(|found| found.position), Err(Miss::Unknown));
        }
    }
}

#[test]
fn given_a_batch_when_leased_with_one_fence_then_each_result_is_its_own() {
    let memory = words(index_bytes(100));
    let tables = Tables { current: IndexView::new(&memory).expect("a table"), next: None };
    let mut publisher = Publisher::new();
    for number in 1..=20 {
        publisher.publish(&tables, &entry(id(number), number)).expect("room");
    }
    publisher.withdraw(&tables, &id(4));
    let wanted: Vec<_> = (1..=32).map(|number| (tables.current, SHARD, id(number))).collect();
    let memory = words(PAGE_BYTES as u64);
    let page = CellsView::new(&memory).expect("a page");
    let cells: Vec<&AtomicU64> = (0..32).map(|at| page.cell(CellIndex(at))).collect();
    let mut results = vec![Err(Miss::Contended); 32];
    read::acquire_many(&wanted, &cells, &mut results);
    for (number, (result, cell)) in (1u64..).zip(results.iter().zip(&cells)) {
        match number {
            4 => assert_eq!(*result, Err(Miss::Unreadable)),
            1..=20 => assert_eq!(result.map(|found| found.entry(&id(number))), Ok(entry(id(number), number))),
            _ => assert_eq!(*result, Err(Miss::Unknown)),
        }
        assert_eq!(cell.load(Ordering::Relaxed), result.map_or(0, |found| found.claim.bits()));
    }
    publish::close(&tables.current);
    let mut results = vec![Err(Miss::Contended); 32];
    cells.iter().for_each(|cell| read::release(*cell));
    read::acquire_many(&wanted, &cells, &mut results);
    assert_eq!(results[0], Err(Miss::Closed));
    assert!(cells.iter().all(|cell| cell.load(Ordering::Relaxed) == 0), "nothing is held");
}

#[test]
fn given_pages_full_of_anything_when_scanned_then_only_claims_of_the_batch_are_found() {
    let mut random = Random(1);
    for round in 0..200 {
        // From a misaligned size on: a page is as large as it is.
        let memory = words(8 * (8 + random.below(8 * (LINES + 9))) as u64);
        let batch: Vec<Claim> =
            (1..=random.below(257) as u64).map(|number| claim(round * 300 + number)).collect();
        for word in &memory {
            let value = match random.below(4) {
                0 => 0,
                1 => random.next(),
                2 => u64::MAX,
                _ => claim(1 + random.next() % 100_000).bits(),
            };
            word.store(value, Ordering::Relaxed);
        }
        let page = CellsView::new(&memory).expect("a header");
        let lines = (memory.len() / LINE_CELLS - 1).min(LINES);
        let marked = if random.below(3) == 0 { random.next() } else { random.below(LINES + 9) as u64 };
        memory[0].store(marked, Ordering::Relaxed);
        let in_use = lines.min(usize::try_from(marked).unwrap_or(LINES)) * LINE_CELLS;
        let (scan, status) = (Scan::begin::<AtomicU64>(batch.iter().copied()), words(PAGE_BYTES as u64));
        let marks = scan.pass(&page);
        for (at, claim) in batch.iter().enumerate() {
            let holding =
                memory[8..8 + in_use].iter().filter(|cell| cell.load(Ordering::Relaxed) == claim.bits());
            let held = holding.count();
            assert_eq!(marks.has(at), held > 0);
            let status = StatusView::new(&status).expect("a page");
            assert_eq!(scan::revoke(&page, &status, *claim), held);
        }
    }
}

#[test]
fn given_a_lease_when_it_is_revoked_or_all_end_then_it_is_not_valid_and_another_in_its_cell_is() {
    let (cells, status) = (words(PAGE_BYTES as u64), words(PAGE_BYTES as u64));
    let (cells, status) =
        (CellsView::new(&cells).expect("a page"), StatusView::new(&status).expect("a page"));
    status.end_all(1);
    let line = cells.take_line().expect("the first");
    let at = cells.free_cell(line).expect("all are free");
    cells.cell(at).store(claim(5).bits(), Ordering::Release);
    assert!(read::is_valid(&status, at, claim(5), 1));
    assert_eq!(scan::revoke(&cells, &status, claim(6)), 0);
    assert!(read::is_valid(&status, at, claim(5), 1));
    assert_eq!(scan::revoke(&cells, &status, claim(5)), 1);
    assert!(!read::is_valid(&status, at, claim(5), 1));
    assert!(read::is_valid(&status, at, claim(7), 1), "the next lease in the same cell");
    status.end_all(2);
    assert!(!read::is_valid(&status, at, claim(7), 1));
}

#[test]
fn given_a_page_when_all_lines_and_cells_are_taken_then_none_is_left_and_a_released_one_comes_again() {
    let memory = words(PAGE_BYTES as u64);
    let cells = CellsView::new(&memory).expect("a page");
    let mut taken = Vec::new();
    while let Some(line) = cells.take_line() {
        while let Some(at) = cells.free_cell(line) {
            cells.cell(at).store(1, Ordering::Release);
            taken.push(at);
        }
    }
    assert_eq!((taken.len(), cells.take_line(), cells.take_line()), (CELLS, None, None));
    assert_eq!(cells.free_cell(LINES as u16), None, "no such line");
    taken.dedup();
    assert_eq!(taken.len(), CELLS);
    read::release(cells.cell(CellIndex(100)));
    assert_eq!(cells.free_cell(100 / LINE_CELLS as u16), Some(CellIndex(100)));
}

#[test]
fn given_samples_when_drained_then_the_newest_are_told_and_forged_ones_harm_nobody() {
    let memory = words(index_bytes(100));
    let tables = Tables { current: IndexView::new(&memory).expect("a table"), next: None };
    let mut publisher = Publisher::new();
    for number in 1..=20 {
        publisher.publish(&tables, &entry(id(number), number)).expect("room");
    }
    let ring = words(RING_BYTES as u64);
    let samples = SamplesView::new(&ring).expect("a ring");
    let mut drain = Drain::new();
    let told = |drain: &mut Drain| {
        let mut told = Vec::new();
        drain.drain(&samples, &tables.current, |id| told.push(id));
        told
    };
    let cell = AtomicU64::new(0);
    let mut note = |number: u64| {
        let found = read::acquire(&tables.current, SHARD, &id(number), &cell).expect("published");
        samples.note(found.position, found.generation());
    };
    assert_eq!(told(&mut drain), []);
    (1..=3).for_each(&mut note);
    assert_eq!(told(&mut drain), [id(3), id(2), id(1)]);
    assert_eq!(told(&mut drain), [], "each once");
    (0..10 * RING_LEN as u64).for_each(|round| note(1 + round % 20));
    assert_eq!(told(&mut drain).len(), DRAIN_MAX, "a session has its share and no more");
    // A payload that moved, and a position that is none.
    samples.note(0, Generation(77));
    samples.note(u32::MAX, Generation(1));
    assert_eq!(told(&mut drain), []);
    let mut random = Random(3);
    for _ in 0..1_000 {
        for word in &ring {
            word.store(random.next(), Ordering::Relaxed);
        }
        assert!(told(&mut drain).len() <= DRAIN_MAX);
    }
}

#[test]
fn given_acquires_when_sampled_then_one_in_a_period_is_and_a_loop_over_payloads_meets_them_all() {
    let (mut sampler, mut met, mut due) = (Sampler::new(9), [0u32; 64], 0u32);
    let rounds = 1_000_000;
    for round in 0..rounds {
        if sampler.is_due() {
            due += 1;
            met[round as usize % met.len()] += 1;
        }
    }
    let expected = rounds / PERIOD;
    assert!((expected - expected / 20..expected + expected / 20).contains(&due), "{due} of {rounds}");
    assert!(met.iter().all(|count| *count > 100), "{met:?}");
}
