//! The simulator: whole nodes of the shipped core, in virtual time, from one seed.
//!
//! It drives `payload_shards::{Shard, Arbiter, Outbox}` and a shipped `payload_catalog` store, not models of them; only
//! drivers, the writer's timing and the clients are simulated. One seed decides everything, so a failing run is run
//! again to see how it came to fail. Used by `tests/simulator.rs` and the `sim` binary; nothing here touches a real
//! clock, file, thread or random source.
//!
//! - [`world`](self): the node and its virtual time (`world`, `effects`, `agenda`, `jobs`), storage (`storage`), catalog
//!   (`catalog`, `late`), clients (`client`), what a seed makes of a run (`faults`)
//! - segment files, as the shipped books and codec would have them (`segments`), their compaction (`compaction`), and
//!   clients that may not be shown them (`apart`)
//! - streams that retain payloads, the front's part of them (`streams`)
//! - batches of commits, and searches for payloads, the front's part of them (`batches`, `find`)
//! - native sessions, the pump's part of them (`sessions`), their memory (`slabs`), readers who ask nobody (`direct`),
//!   and stops that save what lies there (`stop`)
//! - the arbiter and evictions, with the books that are kept of them (`pressure`), and who waits (`waits`)
//! - the oracle: its model of what was promised (`oracle`), each reply (`answers`), the node after each step (`audit`)
//! - [`Canary`]: planted bugs that the oracle must notice; [`Coverage`]: situations that runs must meet; `trace`: the
//!   hash by which two runs are compared
#![forbid(unsafe_code)]

mod agenda;
mod answers;
mod apart;
mod audit;
mod batches;
mod canary;
mod catalog;
mod client;
mod compaction;
mod coverage;
mod direct;
mod effects;
mod faults;
mod find;
mod jobs;
mod late;
mod life;
mod oracle;
mod pressure;
mod segments;
mod sessions;
mod slabs;
mod stop;
mod storage;
mod streams;
mod trace;
mod waits;
mod world;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use payload_types::Monotonic;

pub use canary::Canary;
pub use coverage::{Coverage, SITUATIONS};
pub use oracle::{Breach, Rule};

use agenda::Task;
use trace::Trace;
use world::World;

/// Tasks of a run before clients stop, unless said otherwise.
pub const STEPS_DEFAULT: u64 = 4_000;

/// Trace lines that a failure shows.
const LINES_OF_FAILURE: usize = 30;

/// How to run a seed.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Tasks (messages, timers, ends of ops) before clients stop.
    pub steps: u64,
    /// A bug to plant.
    pub canary: Option<Canary>,
    /// Print everything as it happens.
    pub verbose: bool,
    /// Ask for more than RAM holds, all the time.
    pub overload: bool,
    /// Many payloads on a full disk, each in a file of its own. Some seeds draw that for themselves, packed or not.
    pub crammed: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { steps: STEPS_DEFAULT, canary: None, verbose: false, overload: false, crammed: false }
    }
}

/// A run that kept all promises.
#[derive(Clone, Debug)]
pub struct Passed {
    /// Hash over all that happened.
    pub trace_hash: u64,
    /// Tasks handled.
    pub tasks: u64,
    /// Situations met.
    pub coverage: Coverage,
}

/// A run that broke one.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Which run.
    pub seed: u64,
    /// After how many tasks.
    pub task: u64,
    /// The promise.
    pub breach: Breach,
    /// What the seed made of the run.
    pub plan: String,
    /// What happened last.
    pub lines: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "seed {} failed at task {}: {:?}", self.seed, self.task, self.breach.rule)?;
        writeln!(formatter, "  {}", self.breach.detail)?;
        writeln!(formatter, "  {}", self.plan)?;
        self.lines.iter().try_for_each(|line| writeln!(formatter, "  {line}"))
    }
}

/// Runs one seed to its end.
///
/// # Errors
/// The first broken promise, with what happened before it.
pub fn run(seed: u64, options: Options) -> Result<Passed, Box<Failure>> {
    match attempt(seed, options, 0) {
        Ok(passed) => Ok(passed),
        // The same seed gives the same run: this time the last lines are kept.
        Err(_) => match attempt(seed, Options { verbose: false, ..options }, LINES_OF_FAILURE) {
            Err(failure) => Err(failure),
            Ok(_) => panic!("seed {seed} failed once and passed the second time: a run is not repeatable"),
        },
    }
}

fn attempt(seed: u64, options: Options, lines_max: usize) -> Result<Passed, Box<Failure>> {
    let mut world = World::new(seed, options, Trace::new(lines_max, options.verbose));
    let caught = catch_unwind(AssertUnwindSafe(|| live(&mut world, options.steps)));
    let result = caught.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(Breach { rule: Rule::Panic, detail: text.unwrap_or_default() })
    });
    match result {
        Ok(()) => Ok(Passed {
            trace_hash: world.trace.hash(),
            tasks: world.tasks,
            coverage: world.oracle.coverage.clone(),
        }),
        Err(breach) => Err(Box::new(Failure {
            seed,
            task: world.tasks,
            breach,
            plan: format!("{:?}", world.plan),
            lines: world.trace.into_lines(),
        })),
    }
}

/// Boot, clients, and the end in which everything must come back.
fn live(world: &mut World, steps: u64) -> Result<(), Breach> {
    world.boot()?;
    world.agenda.add(world.now, Task::ClientTick);
    while world.tasks < steps {
        if !world.turn(Monotonic(u64::MAX))? {
            break;
        }
    }
    world.quiesce()
}
