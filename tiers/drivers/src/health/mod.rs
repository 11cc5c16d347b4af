//! How the disk root is doing, and whether it is written to at all.
//!
//! ```text
//!            a write fails                    next_try: tried with a file of our own
//!  healthy ----------------> failing --refuses writes at once--> works: healthy
//!     ^                         ^                                fails: twice the pause, up to 30 s
//!     └-- a larger file fits ---┴-- (full: only files as large as the one that failed are refused)
//! ```
//! A root that fails is not hammered, and no client's bytes are what it is tried with: a failed fdatasync of a probe
//! costs nothing, one of a Commit costs the payload. Reads, leases and drops never come here. Slowness is reported,
//! and nothing is refused for it.
//!
//! Shared by the driver threads (writes), the probe thread ([`Health::run_probes`]) and the front
//! ([`Health::look`]). One small mutex, never held over a call that may block; no shard thread takes it.
//! The count of failures in a row outlives a probe that worked, until a real write has: a disk whose probes work and
//! whose writes fail is left alone longer and longer too.

mod state;

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use payload_types::event::{DriverError, DriverErrorKind};
use payload_types::{ByteCount, DiskFault, DiskHealth, WallMs};

use self::state::{Failing, State, Verdict};
use crate::calls::Calls;
use crate::fault::finding;

/// The longest pause between two attempts, unless the first one is configured longer: a person who repaired a disk
/// waits this long at most.
const PAUSE_LAST: Duration = Duration::from_secs(30);

/// What every operation may take on a sound disk under load: an fdatasync that waits for a full write cache.
const SLOW_BASE: Duration = Duration::from_secs(5);

/// What it may take besides, for each MiB that it writes: a thousandth of what the disks of FACTS.md do.
const SLOW_PER_MIB: Duration = Duration::from_secs(1);

/// What a probe writes: a page.
const PROBE: [u8; 4096] = [0xA5; 4096];

/// The probe's name in the directory that payloads are in. What a crash leaves of it is removed by the next one.
pub(crate) const PROBE_NAME: &str = "payload-manager.probe";

/// What an operation asks of the root.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Work {
    /// Room for a new file of this size, which it writes.
    Space(ByteCount),
    /// Only what has its room already: Commit, Sync.
    Bytes(ByteCount),
}

impl Work {
    fn bytes(self) -> u64 {
        match self {
            Self::Space(bytes) | Self::Bytes(bytes) => bytes.0,
        }
    }
}

/// See the module's description.
pub(crate) struct Health {
    /// Where the payloads are.
    directory: PathBuf,
    calls: Arc<dyn Calls>,
    pause_first: Duration,
    state: Mutex<State>,
    /// The root began to fail, or the probe thread is to end.
    changed: Condvar,
}

impl Health {
    pub(crate) fn new(directory: PathBuf, calls: Arc<dyn Calls>, pause_first: Duration) -> Self {
        Self { directory, calls, pause_first, state: Mutex::new(State::default()), changed: Condvar::new() }
    }

    /// Asks to write. The attempt is told how it ended: [`Attempt::succeeded`], or dropped.
    ///
    /// # Errors
    /// `Full` or `Io` at once, while the root fails and it is not time to try it again.
    pub(crate) fn begin(&self, work: Work) -> Result<Attempt<'_>, DriverError> {
        let mut tried = false;
        loop {
            let mut state = self.lock();
            match state.judge(work, self.calls.now()) {
                Verdict::Go => return Ok(self.attempt(&mut state, work)),
                Verdict::Try if !tried => {
                    drop(state);
                    self.try_again();
                    tried = true;
                }
                Verdict::Full { free_then } if !tried => {
                    drop(state);
                    let free = self.calls.available_bytes(&self.directory).unwrap_or(0);
                    if free > free_then && free >= work.bytes() {
                        return Ok(self.attempt(&mut self.lock(), work)); // somebody made room
                    }
                    tried = true;
                }
                Verdict::Refuse | Verdict::Try | Verdict::Full { .. } => {
                    state.totals.refused += 1;
                    return Err(refusal(state.failing.as_ref(), self.calls.now()));
                }
            }
        }
    }

    /// Watches a read, which is never refused.
    pub(crate) fn watch(&self, bytes: ByteCount) -> Attempt<'_> {
        self.attempt(&mut self.lock(), Work::Bytes(bytes))
    }

    fn attempt(&self, state: &mut State, work: Work) -> Attempt<'_> {
        let ticket = state.started(self.calls.now(), slow_after(work.bytes()));
        Attempt { health: self, work, ticket, is_done: false }
    }

    /// A write failed. Shortages of this process (descriptors, memory) say nothing about the disk.
    pub(crate) fn failed(&self, error: &io::Error, bytes: ByteCount) {
        if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM)) {
            return;
        }
        self.note(fault_of(error), error.to_string(), bytes);
    }

    /// An fdatasync or fsync failed.
    pub(crate) fn sync_failed(&self, error: &io::Error) {
        let fault = match fault_of(error) {
            DiskFault::Io => DiskFault::SyncFailed,
            other => other,
        };
        self.note(fault, format!("fdatasync: {error}"), ByteCount::ZERO);
    }

    /// A read failed: counted, and nothing else is made of it.
    pub(crate) fn read_failed(&self) {
        self.lock().totals.read_failures += 1;
    }

    fn note(&self, fault: DiskFault, error: String, bytes: ByteCount) {
        let free = match fault {
            DiskFault::Full => self.calls.available_bytes(&self.directory).unwrap_or(0),
            _ => 0,
        };
        let mut state = self.lock();
        state.totals.failures += 1;
        let now = self.calls.now();
        match &mut state.failing {
            // What is on its way when the root begins to fail fails too, and is no attempt of its own.
            Some(failing) => {
                if fault != DiskFault::Full || failing.fault == DiskFault::Full {
                    failing.changed(fault, error, bytes.0, free);
                }
            }
            None => {
                state.attempts += 1;
                let pause = self.pause(state.attempts);
                tracing::error!(
                    fault = fault.word(),
                    "the disk root fails ({error}): new writes are refused, what it holds is served on, and it is tried again in {pause:?}; {}",
                    fault.advice()
                );
                state.failing = Some(Failing {
                    fault,
                    since: wall_now(),
                    next_try: now + pause,
                    error,
                    bytes: bytes.0,
                    free_then: free,
                });
                self.changed.notify_all();
            }
        }
    }

    /// Tries a failing root whose time has come, and nobody else does meanwhile.
    fn try_again(&self) {
        let (fault, bytes) = {
            let mut state = self.lock();
            let now = self.calls.now();
            let attempts = state.attempts + 1;
            let pause = self.pause(attempts);
            let Some(failing) = state.failing.as_mut().filter(|failing| failing.next_try <= now) else {
                return;
            };
            failing.next_try = now + pause;
            let turn = (failing.fault, failing.bytes);
            state.attempts = attempts;
            turn
        };
        let result = match fault {
            DiskFault::Full => self.room(bytes),
            _ => self.probe(),
        };
        let mut state = self.lock();
        match result {
            Ok(()) => {
                state.attempts -= 1;
                self.recovered(&mut state);
            }
            Err(error) => {
                tracing::debug!(attempts = state.attempts, "the disk root fails still: {error}");
                if let Some(failing) = &mut state.failing {
                    let fault = match fault_of(&error) {
                        DiskFault::Io => failing.fault, // the failure that began it says more
                        other => other,
                    };
                    let bytes = if fault == DiskFault::Full { bytes } else { 0 };
                    failing.changed(fault, error.to_string(), bytes, failing.free_then);
                }
            }
        }
    }

    fn recovered(&self, state: &mut State) {
        if let Some(failing) = state.failing.take() {
            let lasted_ms = wall_now().as_millis().saturating_sub(failing.since.as_millis());
            tracing::warn!(lasted_ms, fault = failing.fault.word(), "the disk root works again");
        }
    }

    fn room(&self, bytes: u64) -> io::Result<()> {
        if self.calls.available_bytes(&self.directory)? >= bytes.max(PROBE.len() as u64) {
            return Ok(());
        }
        Err(io::Error::from_raw_os_error(libc::ENOSPC))
    }

    /// Everything that a write needs: a new name, room, bytes, fdatasync, the directory's sync.
    fn probe(&self) -> io::Result<()> {
        let path = self.directory.join(PROBE_NAME);
        let _ = fs::remove_file(&path);
        let written = self.calls.create(&path).and_then(|file| {
            self.calls.reserve(&file, PROBE.len() as u64)?;
            self.calls.write(&file, &PROBE, 0)?;
            self.calls.sync(&file)?;
            self.calls.sync_directory(&self.directory)
        });
        let _ = fs::remove_file(&path);
        written
    }

    /// The pause after so many failures in a row.
    fn pause(&self, attempts: u32) -> Duration {
        let doubled = self.pause_first.saturating_mul(1 << attempts.saturating_sub(1).min(20));
        doubled.min(PAUSE_LAST.max(self.pause_first))
    }

    /// How the root is now. Takes the lock for a moment and makes no call: for the front.
    pub(crate) fn look(&self) -> DiskHealth {
        self.lock().look(self.calls.now(), wall_now())
    }

    /// The probe thread: tries a failing root when its time has come, also when nobody wants to write. Sleeps while
    /// there is nothing to do.
    pub(crate) fn run_probes(&self) {
        let mut state = self.lock();
        while !state.stopped {
            let now = self.calls.now();
            state = match state.failing.as_ref().map(|failing| failing.next_try.saturating_sub(now)) {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => {
                    drop(state);
                    self.try_again();
                    self.lock()
                }
                Some(wait) => {
                    self.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Ends the probe thread.
    pub(crate) fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An operation under way.
pub(crate) struct Attempt<'health> {
    health: &'health Health,
    work: Work,
    ticket: u64,
    is_done: bool,
}

impl Attempt<'_> {
    /// The write is done: failures in a row are over, and a full root has room again if this was large enough.
    pub(crate) fn succeeded(mut self) {
        self.is_done = true;
        let mut state = self.health.lock();
        let cured = match (&state.failing, self.work) {
            (None, _) => {
                state.attempts = 0;
                false
            }
            (Some(failing), Work::Space(bytes)) => {
                failing.fault == DiskFault::Full && bytes.0 >= failing.bytes
            }
            (Some(_), Work::Bytes(_)) => false,
        };
        if cured {
            state.attempts = 0;
            self.health.recovered(&mut state);
        }
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let Health { calls, directory, .. } = self.health;
        self.health.lock().ended(self.ticket, calls.now());
        let is_full = |state: &State| state.failing.as_ref().is_some_and(|now| now.fault == DiskFault::Full);
        if self.is_done || !is_full(&self.health.lock()) {
            return;
        }
        // What it had reserved before it failed is free by now; only more than that is room that somebody made.
        let free = calls.available_bytes(directory).unwrap_or(0);
        if let Some(failing) = &mut self.health.lock().failing {
            failing.free_then = free;
        }
    }
}

fn slow_after(bytes: u64) -> Duration {
    let mib = u32::try_from(bytes >> 20).expect("a payload has at most 2^17 MiB");
    SLOW_BASE + SLOW_PER_MIB * mib
}

fn fault_of(error: &io::Error) -> DiskFault {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => DiskFault::Full,
        Some(libc::EROFS) => DiskFault::ReadOnly,
        _ => DiskFault::Io,
    }
}

fn refusal(failing: Option<&Failing>, now: Duration) -> DriverError {
    let Some(failing) = failing else {
        // It began to work between two looks; the caller's next attempt finds it so.
        return finding(DriverErrorKind::Io, "the disk root is just being tried again; try again");
    };
    let kind = if failing.fault == DiskFault::Full { DriverErrorKind::Full } else { DriverErrorKind::Io };
    let retry_ms = failing.next_try.saturating_sub(now).as_millis();
    let failing_ms = wall_now().as_millis().saturating_sub(failing.since.as_millis());
    finding(
        kind,
        format!(
            "the disk root has been failing for {failing_ms} ms ({}) and is not written to before its next try in {retry_ms} ms; {}",
            failing.error,
            failing.fault.advice()
        ),
    )
}

fn wall_now() -> WallMs {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    WallMs::from_millis(since.as_millis() as u64)
}
