//! The server's process of the torture: the shipped publisher, scan and limbo, and what kills, stops and starts readers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use payload_ledger::limbo::{Entering, Held, Limbo, Outcome, Purpose, ScanDone};
use payload_local::direct::access::{Drain, SamplesView};
use payload_local::direct::index::index_bytes;
use payload_local::direct::page::PAGE_BYTES;
use payload_local::direct::{CellsView, Claim, Entry, IndexView, Publisher, Scan, StatusView, Tables, scan};
use payload_types::{Block, ByteCount, Generation, Monotonic, PayloadId, SessionId, SlabId};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use super::{
    BLOCK_WORDS, BLOCKS, BREACHED, Bug, CELLS_BYTES, Mapped, PAYLOADS, SHARD, id, page, pattern, told,
};
use crate::sys::{self, Signal};

/// What a run is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How long.
    pub duration: Duration,
    /// Reader processes at a time; one more is hostile.
    pub readers: usize,
    /// What is planted.
    pub bug: Option<Bug>,
}

/// How often everything happened.
pub type Tally = BTreeMap<&'static str, u64>;

/// How a run ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ended {
    /// Nothing was wrong.
    Whole(Tally),
    /// A reader has read another's bytes under a valid lease; the run was over then.
    Breached(Tally),
}

/// A reader's process and its session.
struct Session {
    number: u32,
    child: Child,
    is_hostile: bool,
    is_stopped: bool,
    cells: Mapped,
    status: Mapped,
    drain: Drain,
    /// What `Bug::ClosedIsDead` plants: its cells are not read, and it lives.
    is_left_out: bool,
}

impl Session {
    fn id(&self) -> SessionId {
        SessionId::new(self.number).expect("from 1 on")
    }

    fn cells(&self) -> CellsView<'_, AtomicU64> {
        CellsView::new(&self.cells.words()[..PAGE_BYTES / 8]).expect("a page")
    }
}

/// Where a payload is.
#[derive(Clone, Copy)]
struct Placed {
    generation: u64,
    block: usize,
    is_withdrawn: bool,
}

struct Server<'a> {
    directory: &'a Path,
    program: PathBuf,
    options: Options,
    random: SmallRng,
    told: Mapped,
    data: Mapped,
    table: Mapped,
    table_number: u64,
    publisher: Publisher,
    limbo: Limbo,
    generation: u64,
    payloads: BTreeMap<PayloadId, Placed>,
    /// Who is where in limbo.
    leaving: BTreeMap<u64, (PayloadId, usize)>,
    free: Vec<usize>,
    sessions: Vec<Session>,
    next_session: u32,
    started: Instant,
    tally: Tally,
}

/// Runs one, in a directory of its own in /dev/shm. `program` is the built `torture`.
///
/// # Errors
/// When something is missing, or a reader fails otherwise.
pub fn run(program: PathBuf, seed: u64, options: Options) -> anyhow::Result<Ended> {
    let directory = tempfile::Builder::new().prefix("pm-torture-").tempdir_in("/dev/shm")?;
    let at = directory.path();
    let told = Mapped::make(&at.join("told"), 4096)?;
    let data = Mapped::make(&at.join("data"), BLOCKS * BLOCK_WORDS * 8)?;
    let table = Mapped::make(&at.join("table-0"), usize::try_from(index_bytes(4 * PAYLOADS))?)?;
    let mut server = Server {
        directory: at,
        program,
        options,
        random: SmallRng::seed_from_u64(seed),
        told,
        data,
        table,
        table_number: 0,
        publisher: Publisher::new(),
        limbo: Limbo::new(),
        generation: 0,
        payloads: BTreeMap::new(),
        leaving: BTreeMap::new(),
        free: (0..BLOCKS).collect(),
        sessions: Vec::new(),
        next_session: 1,
        started: Instant::now(),
        tally: Tally::new(),
    };
    let ended = server.serve();
    for session in &mut server.sessions {
        let _gone_already = session.child.kill();
        let _reaped = session.child.wait();
    }
    let has_breached = ended?;
    for (name, word) in [
        ("leases", told::LEASES),
        ("leases taken away while they were read", told::TAKEN),
        ("misses", told::MISSES),
        ("closed tables met", told::CLOSED),
    ] {
        server.tally.insert(name, server.told.words()[word].load(Ordering::Relaxed));
    }
    Ok(if has_breached { Ended::Breached(server.tally) } else { Ended::Whole(server.tally) })
}

impl Server<'_> {
    fn count(&mut self, what: &'static str) {
        *self.tally.entry(what).or_default() += 1;
    }

    fn now(&self) -> Monotonic {
        Monotonic(self.started.elapsed().as_nanos() as u64)
    }

    fn has(&self, bug: Bug) -> bool {
        self.options.bug == Some(bug)
    }

    /// Until the time is over (false) or a reader was wronged (true).
    fn serve(&mut self) -> anyhow::Result<bool> {
        for _ in 0..self.options.readers {
            self.start_reader(false)?;
        }
        self.start_reader(true)?;
        for round in 0u64.. {
            // Most often one alone, and looked for at once: who was late with a claim is missed by nanoseconds.
            let changes = if self.random.random_range(0..4) == 0 { 6 } else { 1 };
            (0..changes).for_each(|_| self.change());
            self.scan();
            if round.is_multiple_of(64) {
                if self.started.elapsed() > self.options.duration {
                    return Ok(false);
                }
                if self.look_after_readers()? {
                    return Ok(true);
                }
            }
            if round % 4_096 == 17 {
                self.replace_table()?;
            }
        }
        unreachable!("a u64 of rounds")
    }

    /// Publishes, moves, asks about, drops or takes away a payload.
    fn change(&mut self) {
        let of = id(self.random.random_range(0..PAYLOADS));
        let placed = self.payloads.get(&of).copied().filter(|placed| !placed.is_withdrawn);
        let action = self.random.random_range(0..10);
        if self.payloads.contains_key(&of) && placed.is_none() {
            return;
        }
        let tables = Tables { current: IndexView::new(self.table.words()).expect("a table"), next: None };
        match placed {
            Some(placed) if action < 3 => {
                let purpose = match action {
                    0 => Purpose::Ask,
                    1 => Purpose::Drop,
                    _ => Purpose::Take,
                };
                if purpose == Purpose::Ask {
                    self.publisher.withdraw(&tables, &of);
                    self.payloads.insert(of, Placed { is_withdrawn: true, ..placed });
                } else {
                    self.publisher.remove(&tables, &of);
                    self.payloads.remove(&of);
                }
                self.enter(of, placed, purpose);
            }
            _ => {
                let Some(block) = self.free.pop() else { return };
                self.generation += 1;
                let generation = self.generation;
                self.fill(block, |word| pattern(generation, word));
                let block_at = Block { slab: SlabId::new(1).expect("not 0"), unit: block as u32 };
                let entry = Entry {
                    id: of,
                    generation: Generation(generation),
                    block: Some(block_at),
                    length: generation,
                    checksum: None,
                    version: generation,
                    expires_at: None,
                };
                let before = self.publisher.publish(&tables, &entry).expect("few payloads have room");
                self.payloads.insert(of, Placed { generation, block, is_withdrawn: false });
                assert_eq!(before.map(|before| before.0), placed.map(|placed| placed.generation));
                match placed {
                    Some(placed) => self.enter(of, placed, Purpose::Drop),
                    None => self.count("published"),
                }
            }
        }
    }

    fn enter(&mut self, of: PayloadId, placed: Placed, purpose: Purpose) {
        self.count(match purpose {
            Purpose::Ask => "asked",
            Purpose::Drop => "moved or dropped",
            Purpose::Take => "deleted by force",
        });
        self.leaving.insert(placed.generation, (of, placed.block));
        let (generation, bytes) = (Generation(placed.generation), ByteCount(1));
        self.limbo.enter(self.now(), Entering { generation, bytes, purpose });
    }

    fn fill(&self, block: usize, value: impl Fn(usize) -> u64) {
        let words = &self.data.words()[block * BLOCK_WORDS..][..BLOCK_WORDS];
        words.iter().enumerate().for_each(|(at, word)| word.store(value(at), Ordering::Relaxed));
    }

    fn scan(&mut self) {
        let now = self.now();
        let mut told = Vec::new();
        if let Some(wanted) = self.limbo.take_scan(now) {
            let claims = wanted.generations.iter().map(|generation| Claim::new(SHARD, *generation));
            let scan = Scan::begin::<AtomicU64>(claims);
            let is_blind = self.has(Bug::NoScan);
            // The hostile one's page takes long, and nobody waits for what it says.
            let (last, first): (Vec<_>, Vec<_>) =
                self.sessions.iter().partition(|session| session.is_hostile);
            let seen = first.into_iter().chain(last).filter(|session| !session.is_left_out && !is_blind);
            let held =
                seen.map(|session| Held { session: session.id(), marks: scan.pass(&session.cells()).bits() });
            let done = ScanDone { number: wanted.number, held: held.collect() };
            self.limbo.finish(now, &done, |outcome| told.push(outcome));
            self.count("scans");
        }
        self.limbo.tick(now, |outcome| told.push(outcome));
        for outcome in told {
            self.follow(outcome);
        }
    }

    fn follow(&mut self, outcome: Outcome) {
        let (Outcome::Free { generation }
        | Outcome::Held { generation, .. }
        | Outcome::Quarantined { generation }) = outcome;
        let (of, block) = self.leaving[&generation.0];
        let asked = self.payloads.get(&of).is_some_and(|placed| placed.generation == generation.0);
        let tables = Tables { current: IndexView::new(self.table.words()).expect("a table"), next: None };
        match outcome {
            Outcome::Held { .. } if asked => {
                self.publisher.restore(&tables, &of).expect("withdrawn, and there");
                self.payloads.get_mut(&of).expect("looked at").is_withdrawn = false;
                self.leaving.remove(&generation.0);
                self.count("refused");
            }
            Outcome::Held { .. } => {
                if self.has(Bug::RevokeLate) {
                    self.fill(block, |word| u64::MAX - word as u64);
                    (0..2_000).for_each(|_| std::hint::spin_loop());
                }
                for session in &self.sessions {
                    let status = StatusView::new(session.status.words()).expect("a page");
                    scan::revoke(&session.cells(), &status, Claim::new(SHARD, generation));
                }
                // No device reads here, so there is no grace.
                assert!(self.limbo.revoke(generation, self.now()));
                self.count("taken away");
            }
            Outcome::Free { .. } | Outcome::Quarantined { .. } => {
                if asked {
                    self.publisher.remove(&tables, &of).expect("withdrawn, and there");
                    self.payloads.remove(&of);
                }
                self.leaving.remove(&generation.0);
                self.fill(block, |word| !(word as u64));
                // The one that is free for the shortest time is used next.
                self.free.push(block);
                self.count("used again");
            }
        }
    }

    fn replace_table(&mut self) -> anyhow::Result<()> {
        let number = self.table_number + 1;
        let homes = self.random.random_range(4..9) * PAYLOADS;
        let path = |number| self.directory.join(format!("table-{number}"));
        let next = Mapped::make(&path(number), usize::try_from(index_bytes(homes))?)?;
        let tables = Tables {
            current: IndexView::new(self.table.words()).context("a table")?,
            next: Some(IndexView::new(next.words()).context("a table")?),
        };
        while !self.publisher.copy_some(&tables, 16) {}
        self.publisher.switch(&tables);
        if self.has(Bug::NoClose) {
            self.table.words()[0].store(0, Ordering::Relaxed);
        }
        self.told.words()[told::TABLE].store(number, Ordering::Release);
        std::fs::remove_file(path(self.table_number))?;
        (self.table, self.table_number) = (next, number);
        self.count("tables replaced");
        Ok(())
    }

    fn start_reader(&mut self, is_hostile: bool) -> anyhow::Result<()> {
        let number = self.next_session;
        self.next_session += 1;
        let cells = Mapped::make(&page(self.directory, "cells", number), CELLS_BYTES)?;
        let status = Mapped::make(&page(self.directory, "status", number), PAGE_BYTES)?;
        StatusView::new(status.words()).context("a page")?.end_all(1);
        let mut command = Command::new(&self.program);
        command
            .arg(if is_hostile { "hostile" } else { "reader" })
            .arg(self.directory)
            .arg(number.to_string());
        command.arg(self.random.random::<u32>().to_string());
        if let (Some(bug), false) = (self.options.bug, is_hostile) {
            let name = clap::ValueEnum::to_possible_value(&bug).context("none is hidden")?;
            command.args(["--bug", name.get_name()]);
        }
        let child =
            command.spawn().with_context(|| format!("{} cannot be started", self.program.display()))?;
        let (is_stopped, is_left_out, drain) = (false, false, Drain::new());
        self.sessions.push(Session {
            number,
            child,
            is_hostile,
            is_stopped,
            cells,
            status,
            drain,
            is_left_out,
        });
        self.count("processes started");
        Ok(())
    }

    /// Kills, stops, goes on, starts anew; true when one has ended as wronged.
    fn look_after_readers(&mut self) -> anyhow::Result<bool> {
        for at in 0..self.sessions.len() {
            if let Some(status) = self.sessions[at].child.try_wait()? {
                return breached(status);
            }
        }
        let at = self.random.random_range(0..self.sessions.len());
        match self.random.random_range(0..400) {
            0 => {
                let mut gone = self.sessions.swap_remove(at);
                gone.child.kill()?;
                // Waited for: nothing of it runs, and its stores have arrived. From here on its cells are not read.
                let status = gone.child.wait()?;
                if status.code().is_some() && breached(status)? {
                    return Ok(true);
                }
                for what in ["cells", "status"] {
                    std::fs::remove_file(page(self.directory, what, gone.number))?;
                }
                self.count("processes killed");
                self.start_reader(gone.is_hostile)?;
            }
            1..8 => {
                let session = &mut self.sessions[at];
                let signal = if session.is_stopped { Signal::Continue } else { Signal::Stop };
                session.is_stopped = !session.is_stopped;
                sys::signal(session.child.id(), signal)?;
                self.count("stopped or continued");
            }
            8..12 if self.has(Bug::ClosedIsDead) => self.sessions[at].is_left_out = true,
            _ => {}
        }
        let index = IndexView::new(self.table.words()).context("a table")?;
        let mut touched = 0;
        for session in &mut self.sessions {
            let samples =
                SamplesView::new(&session.cells.words()[PAGE_BYTES / 8..]).context("behind the cells")?;
            session.drain.drain(&samples, &index, |_| touched += 1);
        }
        *self.tally.entry("samples").or_default() += touched;
        Ok(false)
    }
}

fn breached(status: ExitStatus) -> anyhow::Result<bool> {
    anyhow::ensure!(status.code() == Some(BREACHED), "a reader has ended with {status}");
    Ok(true)
}
