//! `ledger/allocate-free`: what the books of one allocation and its end cost, without the shard that asks for them.
//!
//! ```text
//! allocate   charge the account -> take a slot -> stand at the end of a list
//! free       leave the list, wherever -> give the slot back -> release the charge
//! ```
//! The shipped `Account`, `Slots` and `list`. The table holds 10,000 entries all the time, and the one that is freed
//! is any of them, so neither slots nor neighbours come in the order of memory. Timers are not in it: a payload that
//! is committed and has no ttl has none.

use std::time::{Duration, Instant};

use payload_ledger::list::{self, Ends, Linked, Links};
use payload_ledger::{Account, SlotKey, Slots};
use payload_types::{ByteCount, limits};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use crate::context::{Context, ROUNDS_SHORT};
use crate::histogram::{Latencies, Unit};
use crate::report::{Figure, Findings};
use crate::series::Series;

/// Entries that stand while others come and go.
const STANDING: usize = 10_000;

/// How often [`in_batches`] does it between two looks at the clock.
pub(super) const BATCH_LEN: u64 = 64;

/// What a tier's bookkeeping keeps of one allocation.
struct Extent {
    size: ByteCount,
    neighbours: Links,
}

impl Linked for Extent {
    fn links(&mut self) -> &mut Links {
        &mut self.neighbours
    }
}

struct Books {
    account: Account,
    slots: Slots<Extent>,
    order: Ends,
    standing: Vec<SlotKey>,
    random: SmallRng,
}

impl Books {
    fn new() -> anyhow::Result<Self> {
        let mut books = Self {
            account: Account::default(),
            slots: Slots::new(limits::PAYLOADS_PER_SHARD_MAX),
            order: Ends::default(),
            standing: Vec::with_capacity(STANDING),
            random: SmallRng::seed_from_u64(1),
        };
        books.account.grant(ByteCount((STANDING as u64 + 1) * 16 * limits::PAGE_BYTES));
        for _ in 0..STANDING {
            let key = books.allocate()?;
            books.standing.push(key);
        }
        Ok(books)
    }

    fn allocate(&mut self) -> anyhow::Result<SlotKey> {
        let size = ByteCount((1 + self.random.next_u64() % 16) * limits::PAGE_BYTES);
        anyhow::ensure!(self.account.charge(size), "the grant covers all that stands");
        let extent = Extent { size, neighbours: Links::default() };
        let key = self.slots.insert(extent).ok().expect("far fewer stand than the table's limit");
        list::push_back(&mut self.slots, &mut self.order, key);
        Ok(key)
    }

    fn free(&mut self, key: SlotKey) {
        list::unlink(&mut self.slots, &mut self.order, key);
        let extent = self.slots.remove(key).expect("what stands is in the table");
        self.account.release(extent.size);
    }

    /// Runs pairs for so long; returns nanoseconds a pair.
    fn run_for(&mut self, duration: Duration, latencies: &mut Latencies) -> anyhow::Result<f64> {
        in_batches(duration, latencies, || {
            let new = self.allocate()?;
            let victim = (self.random.next_u64() % STANDING as u64) as usize;
            let old = std::mem::replace(&mut self.standing[victim], new);
            self.free(old);
            Ok(())
        })
    }
}

/// Does `one` again and again for so long, [`BATCH_LEN`] times between two looks at the clock; returns nanoseconds each.
pub(super) fn in_batches(
    duration: Duration,
    latencies: &mut Latencies,
    mut one: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<f64> {
    let started = Instant::now();
    let mut batch_started = started;
    let mut done = 0;
    while batch_started - started < duration {
        for _ in 0..BATCH_LEN {
            one()?;
        }
        let batch_ended = Instant::now();
        latencies.record_ns((batch_ended - batch_started).as_nanos() as u64 / BATCH_LEN, BATCH_LEN);
        batch_started = batch_ended;
        done += BATCH_LEN;
    }
    Ok((batch_started - started).as_nanos() as f64 / done as f64)
}

/// See the module.
pub fn run(context: &Context, findings: &mut Findings) -> anyhow::Result<()> {
    context.require_own()?;
    let mut books = Books::new()?;
    // A figure that hardly varies: a quarter of the time is enough.
    let slice = context.slice(4 * ROUNDS_SHORT);
    books.run_for(slice, &mut Latencies::default())?;
    let (mut series, mut latencies) = (Series::default(), Latencies::default());
    for _ in 0..ROUNDS_SHORT {
        series.push(books.run_for(slice, &mut latencies)?);
    }
    let note =
        format!("{STANDING} allocations stand; percentiles of batches of {BATCH_LEN} pairs, a pair each");
    findings
        .put("ledger/allocate-free", Figure::of(&series)?.with(&latencies, Unit::Nanoseconds).noted(note));
    Ok(())
}
