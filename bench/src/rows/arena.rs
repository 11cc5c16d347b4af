//! `ledger/arena`: what the books of arena slabs cost for one block that comes and goes.
//!
//! ```text
//! allocate   find a block of the class, or a run of pages -> its generation and state
//! free       find it by its name -> merged with its neighbours
//! ```
//! The note has the same for blocks that were published: retired (a new generation, limbo) and reclaimed.
//!
//! The shipped `Arena` with slabs of 64 MiB. 10,000 blocks stand all the time, half of them below 4 KiB and the others
//! of up to 64 KiB, and the one that ends is any of them.

use std::time::Duration;

use payload_ledger::arena::{Arena, Block, Domain, Geometry, Room, Wanted};
use payload_types::{ByteCount, Generation, limits};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use super::ledger::{BATCH_LEN, in_batches};
use crate::context::{Context, ROUNDS_SHORT};
use crate::histogram::{Latencies, Unit};
use crate::report::{Figure, Findings};
use crate::series::Series;

/// Blocks that stand while others come and go.
const STANDING: usize = 10_000;

/// Large enough for slabs of 64 MiB.
const CAPACITY: ByteCount = ByteCount(4 << 30);

struct Books {
    arena: Arena,
    generation: u64,
    standing: Vec<Block>,
    random: SmallRng,
}

impl Books {
    fn new() -> anyhow::Result<Self> {
        let mut books = Self {
            arena: Arena::new(Geometry::of_capacity(CAPACITY)),
            generation: 0,
            standing: Vec::with_capacity(STANDING),
            random: SmallRng::seed_from_u64(1),
        };
        for _ in 0..STANDING {
            let block = books.allocate()?;
            books.standing.push(block);
        }
        Ok(books)
    }

    fn next_generation(&mut self) -> Generation {
        self.generation += 1;
        Generation(self.generation)
    }

    fn allocate(&mut self) -> anyhow::Result<Block> {
        let draw = self.random.next_u64();
        let size_max = if draw.is_multiple_of(2) { limits::PAGE_BYTES } else { 16 * limits::PAGE_BYTES };
        let size = ByteCount(1 + (draw >> 1) % size_max);
        let wanted = Wanted { size, generation: self.next_generation(), domain: Domain(1) };
        loop {
            match self.arena.allocate(&wanted) {
                Room::Placed(placed) => return Ok(placed.block),
                Room::NeedsSlab(_) => {
                    self.arena.add_slab();
                }
                other => anyhow::bail!("{size} is no size for {other:?}"),
            }
        }
    }

    fn end(&mut self, block: Block, through_limbo: bool) -> anyhow::Result<()> {
        if through_limbo {
            let next = self.next_generation();
            let limbo = self.arena.retire(block, next)?;
            self.arena.reclaim(limbo)?;
        } else {
            self.arena.free(block)?;
        }
        Ok(())
    }

    /// Runs lives for so long; returns nanoseconds a life.
    fn run_for(
        &mut self,
        duration: Duration,
        through_limbo: bool,
        latencies: &mut Latencies,
    ) -> anyhow::Result<f64> {
        in_batches(duration, latencies, || {
            let new = self.allocate()?;
            let victim = (self.random.next_u64() % STANDING as u64) as usize;
            let old = std::mem::replace(&mut self.standing[victim], new);
            self.end(old, through_limbo)
        })
    }
}

/// See the module.
pub fn run(context: &Context, findings: &mut Findings) -> anyhow::Result<()> {
    context.require_own()?;
    let mut books = Books::new()?;
    // A figure that hardly varies: an eighth of the time is enough.
    let slice = context.slice(8 * ROUNDS_SHORT);
    books.run_for(slice, false, &mut Latencies::default())?;
    let (mut series, mut latencies, mut limbo) = (Series::default(), Latencies::default(), Series::default());
    for _ in 0..ROUNDS_SHORT {
        series.push(books.run_for(slice, false, &mut latencies)?);
        limbo.push(books.run_for(slice, true, &mut Latencies::default())?);
    }
    let note = format!(
        "{STANDING} blocks stand in {} slabs; through limbo {:.0} ns; percentiles of batches of {BATCH_LEN}, one each",
        books.arena.tally().slabs,
        limbo.median().unwrap_or(0.0)
    );
    findings.put("ledger/arena", Figure::of(&series)?.with(&latencies, Unit::Nanoseconds).noted(note));
    Ok(())
}
