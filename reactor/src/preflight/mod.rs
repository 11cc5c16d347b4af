//! Asks the system whether a node can run here: the preflight behind `payload-manager doctor` and the server's start.
//!
//! Owns: the facts of the machine ([`Machine`]) that defaults are computed from, the checks ([`run`]) as plain data,
//! and raising this process's own limits ([`raise_memlock`], [`raise_nofile`]). Callers: front's configuration,
//! bootstrap and doctor, before any shard runs; nothing here is for a shard thread, every check may block.
//! Invariants: a check never changes the system beyond this process's limits; what it creates (one empty file on
//! shared memory, one on the disk root) is unlinked before the check goes on. A check that cannot be made says so
//! as a warning; a fault means that the server would not start or not keep its promises.
//!
//! ```text
//!   Machine::probe() ──> config defaults        run(&Input) ──> Vec<Check> ──> doctor's table, the server's log
//! ```

mod disk;
mod gpu;
mod kernel;
mod machine;
mod rlimit;
mod shm;
mod sys;

#[cfg(test)]
mod tests;

use std::path::PathBuf;

use payload_types::ByteCount;

pub use machine::{DiskSpace, Machine};
pub use rlimit::{Raised, raise_memlock, raise_nofile};

/// How a check ended.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Status {
    /// As wanted.
    Ok,
    /// The server runs, but slower, smaller or with less protection.
    Warning,
    /// The server would not start, or not keep a promise.
    Fault,
}

impl Status {
    /// The word that tables and JSON show.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warn",
            Self::Fault => "fault",
        }
    }
}

/// One row: what was looked at, how it is, and what to do about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How it is.
    pub status: Status,
    /// What was found, in one sentence.
    pub detail: String,
    /// What to change, in one sentence; always there unless `status` is [`Status::Ok`].
    pub fix: Option<String>,
}

impl Check {
    /// A check that found what was wanted.
    pub fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, detail: detail.into(), fix: None }
    }

    /// A check that found something worse than wanted.
    pub fn warning(name: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, status: Status::Warning, detail: detail.into(), fix: Some(fix.into()) }
    }

    /// A check that found what the server cannot work with.
    pub fn fault(name: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, status: Status::Fault, detail: detail.into(), fix: Some(fix.into()) }
    }
}

/// What the checks are made for: the parts of the effective configuration that touch the system.
#[derive(Clone, Debug)]
pub struct Input {
    /// `storage.ram.capacity_bytes`.
    pub ram_capacity: ByteCount,
    /// `storage.ram.shm_prefix`.
    pub shm_prefix: String,
    /// `storage.disk.root_path`, absolute; it need not exist yet.
    pub disk_root: PathBuf,
    /// `storage.disk.capacity_bytes`.
    pub disk_capacity: ByteCount,
    /// `shards.count`.
    pub shard_count: u16,
    /// True when `storage.gpu` names a device.
    pub gpu_configured: bool,
}

/// Makes every check, in the order in which a person would repair them. Raises this process's limits first, as the
/// server does, so that what is reported is what the server would have.
pub fn run(input: &Input) -> Vec<Check> {
    let machine = Machine::probe();
    vec![
        kernel::version(),
        kernel::io_uring(),
        rlimit::memlock(input.shard_count),
        rlimit::nofile(),
        shm::space(input),
        shm::leases(input),
        machine::memory(&machine, input.ram_capacity),
        disk::writable(input),
        disk::space(input),
        disk::direct_io(input),
        disk::leases(input),
        kernel::clock(),
        machine::cpus(&machine, input.shard_count),
        gpu::driver(input.gpu_configured),
    ]
}
