//! A disk that fails as it is told to: a decorator around [`crate::calls::Calls`] and around the I/O engine, with a
//! clock that moves when it is told to. For tests, and reached through [`crate::Drivers::open_faulty`] only, which no
//! production code calls; nothing in a server's surroundings can switch it on.
//!
//! ```text
//! store, drafts, health --> Faulty<System>     --(armed?)--> error, or the system's own answer
//! transfer threads ------> FaultyEngine<real> --(armed?)--> error or less than was asked, or the real engine's
//! ```

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use payload_types::limits::PAGE_BYTES;

use crate::calls::{Calls, System};
use crate::transfer::engine::{Direction, Engine, Io, IoEngine};

/// A call that can be made to fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    /// A new file.
    Create,
    /// Its space.
    Reserve,
    /// Bytes to the disk, of copies and of probes.
    Write,
    /// Bytes from the disk, of copies.
    Read,
    /// fdatasync of a file.
    Sync,
    /// fsync of a directory.
    SyncDirectory,
    /// The name of a finished copy.
    Rename,
    /// The record table of a segment file.
    ReadTable,
    /// The proof that nobody has a segment file open.
    Lease,
    /// A new memory of an arena, or another description of one.
    Memfd,
    /// Its mapping.
    Map,
    /// Its seals.
    Seal,
    /// Its large pages.
    Collapse,
    /// Its pages, ahead of demand.
    Populate,
}

/// What the system is made to answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// EIO.
    Io,
    /// ENOSPC.
    NoSpace,
    /// ENOMEM.
    NoMemory,
    /// EMFILE.
    NoDescriptor,
    /// EROFS.
    ReadOnly,
    /// EINVAL: what a file system says that has no leases.
    Unsupported,
}

impl Answer {
    fn error(self) -> io::Error {
        io::Error::from_raw_os_error(match self {
            Self::Io => libc::EIO,
            Self::NoSpace => libc::ENOSPC,
            Self::NoMemory => libc::ENOMEM,
            Self::NoDescriptor => libc::EMFILE,
            Self::ReadOnly => libc::EROFS,
            Self::Unsupported => libc::EINVAL,
        })
    }
}

struct Rule {
    call: Call,
    /// So many calls pass first.
    passing: u64,
    answer: Answer,
}

#[derive(Default)]
struct Plan {
    rules: Vec<Rule>,
    /// The most bytes that one write or read passes.
    bytes_max: Option<usize>,
    /// How far the clock moves at each call of a kind.
    slow: Option<(Call, Duration)>,
    available: Option<u64>,
    now: Duration,
    made: Vec<Call>,
}

/// The plan, shared by the test and the decorators.
#[derive(Clone, Default)]
pub struct Faults(Arc<Mutex<Plan>>);

impl Faults {
    /// Nothing fails yet; the clock stands at 0.
    pub fn new() -> Self {
        Self::default()
    }

    /// Every such call fails from now on.
    pub fn fail(&self, call: Call, answer: Answer) {
        self.fail_after(0, call, answer);
    }

    /// So many such calls pass, then every one fails.
    pub fn fail_after(&self, passing: u64, call: Call, answer: Answer) {
        self.plan().rules.push(Rule { call, passing, answer });
    }

    /// One write or read passes at most so many bytes, in whole pages as direct I/O has them, and at least one.
    pub fn shorten(&self, bytes_max: usize) {
        let page = PAGE_BYTES as usize;
        self.plan().bytes_max = Some((bytes_max - bytes_max % page).max(page));
    }

    /// Every such call takes so long.
    pub fn slow(&self, call: Call, by: Duration) {
        self.plan().slow = Some((call, by));
    }

    /// What the file system says is free.
    pub fn available(&self, bytes: u64) {
        self.plan().available = Some(bytes);
    }

    /// The disk is sound again. The clock goes on from where it is.
    pub fn end(&self) {
        let mut plan = self.plan();
        *plan = Plan { now: plan.now, made: std::mem::take(&mut plan.made), ..Plan::default() };
    }

    /// Time passes.
    pub fn advance(&self, by: Duration) {
        self.plan().now += by;
    }

    /// How often a call was made.
    pub fn made(&self, call: Call) -> usize {
        self.plan().made.iter().filter(|made| **made == call).count()
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn before(&self, call: Call) -> io::Result<()> {
        let mut plan = self.plan();
        plan.made.push(call);
        if let Some((slow, by)) = plan.slow
            && slow == call
        {
            plan.now += by;
        }
        for rule in plan.rules.iter_mut().filter(|rule| rule.call == call) {
            if rule.passing == 0 {
                return Err(rule.answer.error());
            }
            rule.passing -= 1;
        }
        Ok(())
    }
}

/// The system, as the plan lets it.
pub(crate) struct Faulty {
    pub(crate) faults: Faults,
    pub(crate) system: System,
}

impl Calls for Faulty {
    fn create(&self, path: &Path) -> io::Result<File> {
        self.faults.before(Call::Create)?;
        self.system.create(path)
    }

    fn reserve(&self, file: &File, bytes: u64) -> io::Result<()> {
        self.faults.before(Call::Reserve)?;
        self.system.reserve(file, bytes)
    }

    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.faults.before(Call::Write)?;
        self.system.write(file, bytes, offset)
    }

    fn read_table(&self, file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.faults.before(Call::ReadTable)?;
        self.system.read_table(file, buffer, offset)
    }

    fn nobody_else_has_it(&self, file: &File) -> io::Result<bool> {
        self.faults.before(Call::Lease)?;
        self.system.nobody_else_has_it(file)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        self.faults.before(Call::Sync)?;
        self.system.sync(file)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        self.faults.before(Call::SyncDirectory)?;
        self.system.sync_directory(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.faults.before(Call::Rename)?;
        self.system.rename(from, to)
    }

    fn available_bytes(&self, path: &Path) -> io::Result<u64> {
        let told = self.faults.plan().available;
        told.map_or_else(|| self.system.available_bytes(path), Ok)
    }

    fn engine(&self, kind: IoEngine) -> io::Result<Box<dyn Engine>> {
        let engine = self.system.engine(kind)?;
        Ok(Box::new(FaultyEngine { faults: self.faults.clone(), engine, failed: VecDeque::new() }))
    }

    fn now(&self) -> Duration {
        self.faults.plan().now
    }
}

/// An engine that fails or falls short as the plan says.
struct FaultyEngine {
    faults: Faults,
    engine: Box<dyn Engine>,
    /// Slots whose operation never reached the engine.
    failed: VecDeque<(usize, io::Error)>,
}

impl Engine for FaultyEngine {
    fn buffer(&mut self, slot: usize) -> &mut [u8] {
        self.engine.buffer(slot)
    }

    fn takes_windows(&self) -> bool {
        self.engine.takes_windows()
    }

    fn start(&mut self, io: Io) -> io::Result<()> {
        let call = match io.direction {
            Direction::Read => Call::Read,
            Direction::Write => Call::Write,
        };
        if let Err(error) = self.faults.before(call) {
            self.failed.push_back((io.slot, error));
            return Ok(());
        }
        let bytes_max = self.faults.plan().bytes_max.unwrap_or(usize::MAX);
        let end = io.range.end.min(io.range.start.saturating_add(bytes_max));
        self.engine.start(Io { range: io.range.start..end, ..io })
    }

    fn next(&mut self) -> io::Result<(usize, io::Result<usize>)> {
        match self.failed.pop_front() {
            Some((slot, error)) => Ok((slot, Err(error))),
            None => self.engine.next(),
        }
    }
}
