//! `direct/*`: leases that ask nobody, over memory that two mappings share: the shipped protocols and no server around them.
//!
//! ```text
//! reader, core 0     acquire (index: read-only mapping; cell: its own) -> release
//! server, core 1     every 100 us: Scan::begin, one pass over the reader's cells; for reclaim the roles are turned
//! ```
//! Hot: 1,000 payloads; a table of 64 KiB lines, which a level-2 cache holds. 1e7: random among 10^7, a table of 1.3 GB, on pages of 4 KiB
//! or 2 MiB. Where one takes less than the clock does, 64 are timed together; a single one at random among 10^7 is timed alone, and the clock's
//! own time is measured beside it and taken off.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use payload_ledger::limbo::{Entering, Limbo, Purpose, ScanDone};
use payload_local::direct::index::index_bytes;
use payload_local::direct::page::{CellIndex, LINE_CELLS, PAGE_BYTES};
use payload_local::direct::scan::BATCH_MAX;
use payload_local::direct::{CellsView, Claim, Entry, IndexView, Miss, Publisher, Scan, Tables, read};
use payload_types::{Block, ByteCount, Generation, Monotonic, PayloadId, ShardIndex, SlabId};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use super::ledger::{BATCH_LEN, in_batches};
use crate::context::{Context, ROUNDS_SHORT, Skip};
use crate::floors::ipc;
use crate::floors::shared::{Second, Shared};
use crate::histogram::{Latencies, Unit};
use crate::report::{Figure, Findings};
use crate::series::Series;

/// The rows of this file, but for the floor.
pub(super) const ROWS: [&str; 6] = [
    "direct/lease-hot",
    "direct/lease-hot-16",
    "direct/lease-1e7",
    "direct/lease-1e7-4k",
    "direct/lease-1e7-16",
    "direct/reclaim",
];

/// Hot ones.
const HOT: u64 = 1_000;

/// All that a shard may have and more (DESIGN §10).
const MANY: u64 = 10_000_000;

/// Leases of one fence.
const BATCH: usize = 16;

/// Sessions whose cells a reclaim reads.
const SESSIONS: usize = 64;

/// How often the server looks at a reader's cells.
const SCAN_EVERY: Duration = Duration::from_micros(100);

const SHARD: ShardIndex = ShardIndex(0);

/// The `number`-th payload: computed, because a table of ids would miss the cache as the index does.
fn id(number: u64) -> PayloadId {
    PayloadId::mint(number, number.wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

/// A published table and a session's cells.
struct Side {
    index: Second,
    cells: Shared,
    count: u64,
    large_share: f64,
    random: SmallRng,
}

/// Which payload is next.
struct Next {
    at: usize,
    count: u64,
    random: SmallRng,
}

impl Next {
    #[inline]
    fn id(&mut self, order: &[PayloadId]) -> PayloadId {
        if order.is_empty() {
            return id(((u128::from(self.random.next_u64()) * u128::from(self.count)) >> 64) as u64);
        }
        self.at = if self.at + 1 < order.len() { self.at + 1 } else { 0 };
        order[self.at]
    }
}

impl Side {
    fn next(&self) -> Next {
        Next { at: 0, count: self.count, random: self.random.clone() }
    }

    fn new(count: u64, large: bool) -> anyhow::Result<Self> {
        let memory = Shared::new(usize::try_from(index_bytes(2 * count))?, large)?;
        let current = IndexView::new(memory.words()).context("memory for a table")?;
        let (tables, mut publisher) = (Tables { current, next: None }, Publisher::new());
        for number in 0..count {
            let block = Block { slab: SlabId::new(1).expect("not 0"), unit: number as u32 };
            let entry = Entry {
                id: id(number),
                generation: Generation(number + 1),
                block: Some(block),
                length: 4096,
                checksum: None,
                version: 1,
                expires_at: None,
            };
            // A table at half load may refuse one in ten millions: it is asked for over the ring.
            let _refused = publisher.publish(&tables, &entry);
        }
        anyhow::ensure!(publisher.len() as u64 > count - 100, "{} of {count} are published", publisher.len());
        let (index, large_share) = (memory.second(false)?, memory.large_share());
        let cells = Shared::new(PAGE_BYTES, false)?;
        let page = CellsView::new(cells.words()).context("a page")?;
        (0..BATCH / LINE_CELLS).for_each(|_| {
            page.take_line();
        });
        Ok(Self { index, cells, count, large_share, random: SmallRng::seed_from_u64(1) })
    }

    fn any(&mut self) -> u64 {
        ((u128::from(self.random.next_u64()) * u128::from(self.count)) >> 64) as u64
    }

    /// Runs `one` beside a server that scans.
    fn beside_a_server<T>(&mut self, run: impl FnOnce(&mut Self) -> anyhow::Result<T>) -> anyhow::Result<T> {
        let (server, is_over) = (self.cells.second(true)?, AtomicBool::new(false));
        std::thread::scope(|scope| {
            let scan = || {
                let _pinned = ipc::pin(1);
                let cells = CellsView::new(server.words()).expect("a page");
                let claims =
                    (1..=BATCH_MAX as u64).map(|number| Claim::new(SHARD, Generation(MANY + number)));
                while !is_over.load(Ordering::Relaxed) {
                    std::hint::black_box(Scan::begin::<AtomicU64>(claims.clone()).pass(&cells));
                    std::thread::sleep(SCAN_EVERY);
                }
            };
            let server = std::thread::Builder::new().spawn_scoped(scope, scan).context("no second thread")?;
            let pinned = ipc::pin(0);
            let result = run(self);
            is_over.store(true, Ordering::Relaxed);
            drop(pinned);
            server.join().expect("a scan does not panic");
            result
        })
    }

    /// Ids in an order that no processor guesses; of many payloads they are computed as they are used, because a table of them
    /// would miss the cache as the index does.
    fn order(&mut self) -> Vec<PayloadId> {
        let count = if self.count == HOT { 4 * HOT } else { 0 };
        (0..count).map(|_| id(self.any())).collect()
    }

    /// Pairs of acquire and release, one after another.
    fn one_by_one(&mut self, duration: Duration, latencies: &mut Latencies) -> anyhow::Result<()> {
        self.beside_a_server(|side| {
            let (order, mut next) = (side.order(), side.next());
            let index = IndexView::new(side.index.words()).context("a table")?;
            let page = CellsView::new(side.cells.words()).context("a page")?;
            let cell = page.cell(CellIndex(0));
            let each = in_batches(duration, latencies, || {
                let id = next.id(&order);
                std::hint::black_box(read::acquire(&index, SHARD, &id, cell).is_ok());
                read::release(cell);
                Ok(())
            });
            side.random = next.random;
            each.map(drop)
        })
    }

    /// The same, each timed alone; and, in turns with them, nothing: what the two readings of the clock take.
    fn alone(
        &mut self,
        duration: Duration,
        latencies: &mut Latencies,
        nothing: &mut Latencies,
    ) -> anyhow::Result<()> {
        self.beside_a_server(|side| {
            let start = Instant::now();
            let mut last = start;
            while last - start < duration {
                let wanted = id(side.any());
                let index = IndexView::new(side.index.words()).context("a table")?;
                let page = CellsView::new(side.cells.words()).context("a page")?;
                let cell = page.cell(CellIndex(0));
                let before = Instant::now();
                nothing.record(before.elapsed());
                let before = Instant::now();
                std::hint::black_box(read::acquire(&index, SHARD, &wanted, cell).is_ok());
                read::release(cell);
                last = Instant::now();
                latencies.record(last - before);
            }
            Ok(())
        })
    }

    /// Batches with one fence.
    fn sixteen(&mut self, duration: Duration, latencies: &mut Latencies) -> anyhow::Result<()> {
        self.beside_a_server(|side| {
            let (order, mut next) = (side.order(), side.next());
            let index = IndexView::new(side.index.words()).context("a table")?;
            let page = CellsView::new(side.cells.words()).context("a page")?;
            let cells: [&AtomicU64; BATCH] = std::array::from_fn(|at| page.cell(CellIndex(at as u16)));
            let each = in_batches(duration, latencies, || {
                let wanted: [_; BATCH] = std::array::from_fn(|_| (index, SHARD, next.id(&order)));
                let mut results = [Err(Miss::Unknown); BATCH];
                read::acquire_many(&wanted, &cells, &mut results);
                std::hint::black_box(&results);
                cells.iter().for_each(|cell| read::release(*cell));
                Ok(())
            });
            side.random = next.random;
            each.map(drop)
        })
    }
}

/// Rounds of each, in turns; the first turn warms up.
fn rounds(mut turn: impl FnMut(bool) -> anyhow::Result<()>) -> anyhow::Result<()> {
    (0..=ROUNDS_SHORT).try_for_each(|at| turn(at > 0))
}

/// Hot payloads, and the floor in turns with them.
fn hot(context: &Context, findings: &mut Findings) -> anyhow::Result<()> {
    let mut side = Side::new(HOT, false)?;
    let slice = context.slice(2 * ROUNDS_SHORT);
    let mut series = [Series::default(), Series::default(), Series::default()];
    let mut latencies = [Latencies::default(), Latencies::default(), Latencies::default()];
    rounds(|is_measured| {
        let floor = ipc::cacheline(slice)?;
        let (mut one, mut many) = (Latencies::default(), Latencies::default());
        side.one_by_one(slice, &mut one)?;
        side.sixteen(slice, &mut many)?;
        if is_measured {
            let mut values = [&floor, &one, &many].map(|latencies| latencies.p50(Unit::Nanoseconds));
            values[2] /= BATCH as f64;
            for (at, value) in values.into_iter().enumerate() {
                series[at].push(value);
            }
            [floor, one, many].iter().zip(&mut latencies).for_each(|(new, all)| all.merge(new));
        }
        Ok(())
    })?;
    findings.put("ipc/cacheline", Figure::of(&series[0])?.with(&latencies[0], Unit::Nanoseconds));
    let note = format!("{HOT} payloads, at random; percentiles of {BATCH_LEN} pairs together, a pair each");
    let figure = Figure::of(&series[1])?.with(&latencies[1], Unit::Nanoseconds).noted(note);
    findings.put("direct/lease-hot", figure);
    let note = format!("{BATCH} leases a fence; a lease and its release");
    findings.put("direct/lease-hot-16", Figure::of(&series[2])?.noted(note));
    Ok(())
}

/// Among ten millions.
fn cold(context: &Context, findings: &mut Findings, large: bool) -> anyhow::Result<()> {
    let mut side = Side::new(MANY, large)?;
    let slice = context.slice(2 * ROUNDS_SHORT);
    let [mut series, mut batched, mut back_to_back, mut clocks] = [0; 4].map(|_| Series::default());
    let mut latencies = Latencies::default();
    rounds(|is_measured| {
        let (mut alone, mut nothing) = (Latencies::default(), Latencies::default());
        side.alone(slice, &mut alone, &mut nothing)?;
        let (mut each, mut sixteen) = (Latencies::default(), Latencies::default());
        side.one_by_one(slice, &mut each)?;
        side.sixteen(slice, &mut sixteen)?;
        if is_measured {
            let clock = nothing.p50(Unit::Nanoseconds);
            series.push((alone.p50(Unit::Nanoseconds) - clock).max(0.0));
            clocks.push(clock);
            back_to_back.push(each.p50(Unit::Nanoseconds));
            batched.push(sixteen.p50(Unit::Nanoseconds) / BATCH as f64);
            latencies.merge(&alone);
        }
        Ok(())
    })?;
    let note = format!(
        "each timed alone, less the {:.0} ns that reading the clock takes (percentiles are with them); {:.0} ns one after another, {:.0} in batches of {BATCH}; {:.0} % large pages",
        clocks.median().unwrap_or(0.0),
        back_to_back.median().unwrap_or(0.0),
        batched.median().unwrap_or(0.0),
        100.0 * side.large_share
    );
    let figure = Figure::of(&series)?.with(&latencies, Unit::Nanoseconds).noted(note);
    findings.put(if large { "direct/lease-1e7" } else { "direct/lease-1e7-4k" }, figure);
    if large {
        findings.put("direct/lease-1e7-16", Figure::of(&batched)?);
    }
    Ok(())
}

/// What a scan of [`SESSIONS`] costs a block, while another core writes their cells all the time.
fn reclaim(context: &Context, findings: &mut Findings) -> anyhow::Result<()> {
    let pages = (0..SESSIONS).map(|_| Shared::new(PAGE_BYTES, false)).collect::<Result<Vec<_>, _>>()?;
    let of_clients = pages.iter().map(|page| page.second(true)).collect::<Result<Vec<_>, _>>()?;
    let views: Vec<_> = pages.iter().filter_map(|page| CellsView::new(page.words())).collect();
    views.iter().for_each(|view| {
        view.take_line();
    });
    let slice = context.slice(4 * ROUNDS_SHORT);
    let (mut quiet, mut busy, mut books) = (Series::default(), Series::default(), Series::default());
    let scan = |generation: &mut u64| {
        let first = *generation;
        *generation += BATCH_MAX as u64;
        let claims = (first..*generation).map(|number| Claim::new(SHARD, Generation(number)));
        let scan = Scan::begin::<AtomicU64>(claims);
        views.iter().map(|view| scan.pass(view)).fold(0, |held, marks| held + u64::from(!marks.is_empty()))
    };
    let mut generation = 1;
    let mut timed = |series: &mut Series| -> anyhow::Result<()> {
        let each = in_batches(slice, &mut Latencies::default(), || {
            std::hint::black_box(scan(&mut generation));
            Ok(())
        })?;
        series.push(each / BATCH_MAX as f64);
        Ok(())
    };
    let is_over = AtomicBool::new(false);
    rounds(|_| timed(&mut quiet))?;
    std::thread::scope(|scope| {
        let lease = || {
            let _pinned = ipc::pin(1);
            let views: Vec<_> = of_clients.iter().filter_map(|page| CellsView::new(page.words())).collect();
            for round in 1u64.. {
                for view in &views {
                    view.cell(CellIndex((round % 8) as u16)).store((round << 8).max(1), Ordering::Release);
                }
                if is_over.load(Ordering::Relaxed) {
                    return;
                }
            }
        };
        let clients = std::thread::Builder::new().spawn_scoped(scope, lease).context("no second thread")?;
        let pinned = ipc::pin(0);
        let measured = rounds(|_| timed(&mut busy));
        is_over.store(true, Ordering::Relaxed);
        drop(pinned);
        clients.join().expect("a client does not panic");
        measured
    })?;
    rounds(|_| {
        books.push(through_limbo(slice)?);
        Ok(())
    })?;
    let note = format!(
        "{SESSIONS} sessions of a line each, batches of {BATCH_MAX}, all lines written by another core meanwhile; {:.1} ns when nobody writes; \
         beside it the books of limbo, {:.0} ns a block in and out",
        quiet.median().unwrap_or(0.0),
        books.median().unwrap_or(0.0)
    );
    findings.put("direct/reclaim", Figure::of(&busy)?.noted(note));
    Ok(())
}

/// The books of one block that nobody holds, with what a scan that takes no time finds.
fn through_limbo(duration: Duration) -> anyhow::Result<f64> {
    let (mut limbo, mut generation, mut now) = (Limbo::new(), 0, 0);
    let each = in_batches(duration, &mut Latencies::default(), || {
        now += 1;
        for _ in 0..BATCH_MAX {
            generation += 1;
            let (generation, bytes) = (Generation(generation), ByteCount(4096));
            limbo.enter(Monotonic(now), Entering { generation, bytes, purpose: Purpose::Drop });
        }
        let scan = limbo.take_scan(Monotonic(now)).context("due")?;
        let done = ScanDone { number: scan.number, held: Vec::new() };
        limbo.finish(Monotonic(now), &done, |outcome| {
            std::hint::black_box(outcome);
        });
        Ok(())
    })?;
    anyhow::ensure!(limbo.is_empty(), "nobody holds anything");
    Ok(each / BATCH_MAX as f64)
}

/// See the module. What nobody asked for is left out: ten millions take a while to publish.
pub fn run(context: &Context, findings: &mut Findings) -> anyhow::Result<()> {
    if !ROWS.iter().any(|row| context.wants(row)) {
        return Ok(());
    }
    context.require_own()?;
    if context.cores < 2 {
        return Err(Skip("readers and a server that are awake need two cores".to_owned()).into());
    }
    hot(context, findings)?;
    if context.wants("direct/lease-1e7-4k") {
        cold(context, findings, false)?;
    }
    if context.wants("direct/lease-1e7") || context.wants("direct/lease-1e7-16") {
        cold(context, findings, true)?;
    }
    if context.wants("direct/reclaim") {
        reclaim(context, findings)?;
    }
    Ok(())
}
