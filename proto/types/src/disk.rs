//! How a disk root is doing. Written by the drivers, read by the front for Stats, metrics and people.

use crate::time::WallMs;
use crate::units::ByteCount;

/// What keeps a root from taking writes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DiskFault {
    /// No space left, or a quota is used up. Smaller files are still taken.
    Full,
    /// The file system is mounted read-only, or the kernel made it so after errors.
    ReadOnly,
    /// fdatasync or fsync failed.
    SyncFailed,
    /// Any other error of a write: EIO, a directory that is gone ...
    Io,
}

impl DiskFault {
    /// One lower-case word, for metrics and programs.
    pub fn word(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::ReadOnly => "read_only",
            Self::SyncFailed => "sync_failed",
            Self::Io => "io",
        }
    }

    /// What an operator can do about it.
    pub fn advice(self) -> &'static str {
        match self {
            Self::Full => "free space there, or lower storage.disk.capacity_bytes",
            Self::ReadOnly => "mount it read-write again, after a look at the system's log",
            Self::SyncFailed | Self::Io => "look at the system's log (dmesg) and at the disk",
        }
    }
}

/// The state of a root.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum DiskState {
    /// As it should be.
    #[default]
    Healthy,
    /// It works, and an operation takes or took far longer than a disk needs. Nothing is refused for it.
    Slow,
    /// New writes are refused at once until the root has been tried again with success. Reads, leases and drops go on.
    Failing(DiskFault),
}

impl DiskState {
    /// One lower-case word, for metrics and programs.
    pub fn word(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Slow => "slow",
            Self::Failing(fault) => fault.word(),
        }
    }
}

/// A look at a root. All totals count since the server's start.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DiskHealth {
    /// How it is now.
    pub state: DiskState,
    /// Since when, unless it is healthy.
    pub since: Option<WallMs>,
    /// Failures in a row.
    pub attempts: u32,
    /// Milliseconds until it is tried again; 0 unless it is failing.
    pub retry_ms: u64,
    /// What the system said last, or what is slow; empty while healthy.
    pub error: String,
    /// Writes that failed.
    pub failures_total: u64,
    /// Writes that were refused while it was failing.
    pub refused_total: u64,
    /// Reads that failed.
    pub read_failures_total: u64,
    /// Operations that took too long.
    pub slow_total: u64,
}

/// Segment files of a disk root: what they hold, and what was done to keep them small. Totals count since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DiskSegments {
    /// Files, those that are free included.
    pub files: u64,
    /// Files that are kept for what is written next.
    pub files_free: u64,
    /// Files in which nothing lives and that somebody has open.
    pub files_held: u64,
    /// What all of them take on the disk.
    pub file_bytes: ByteCount,
    /// Of that: payloads that live, in whole pages.
    pub live_bytes: ByteCount,
    /// Payloads that are dead and not free: leases, readers, or compaction that has not come to them.
    pub dead_bytes: ByteCount,
    /// Files that were used again or removed.
    pub recycled_total: u64,
    /// Of those: files that had been emptied by compaction.
    pub emptied_total: u64,
    /// Replicas that compaction moved.
    pub moved_total: u64,
    /// Their bytes.
    pub moved_bytes_total: u64,
}
