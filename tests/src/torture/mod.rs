//! The torture of direct leases: real processes over real shared memory, run by `tests/src/bin/torture.rs`.
//!
//! ```text
//! server process    publishes, moves, asks, drops, scans, takes away, poisons what is free, replaces the table; kills, stops and
//!  (server.rs)      starts readers all the time; drops a session's cells once its process was waited for
//! reader process    keeps its store buffer full, leases one or several, compares every word of the block with what its generation
//!  (reader.rs)      must have, twice, and releases; a hostile one writes noise over its page instead
//! directory in /dev/shm    data, table-N, cells-S, status-S, and `told`: which table there is, and counts
//! ```
//! A word that is not its generation's, under a lease that is valid afterwards, is the breach: the reader ends with [`BREACHED`].
//! Bugs can be planted on either side, and must be found; not the server's missing fence, because on x86 the scan's table of claims is
//! more stores than a store buffer holds (the model checker finds it). Nothing here is `payload-manager`: it is the protocol alone.

pub mod reader;
pub mod server;

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::MmapRaw;
use payload_local::direct::access::RING_BYTES;
use payload_local::direct::page::PAGE_BYTES;
use payload_types::{PayloadId, ShardIndex};

use crate::sys;

/// How a reader ends that has read another's bytes under a valid lease.
pub const BREACHED: i32 = 3;

/// Payloads that come and go. Few, so that readers and server meet.
pub const PAYLOADS: u64 = 12;

/// Blocks: some are always free, and are used again soon.
pub const BLOCKS: usize = 24;

/// Words of a block.
pub const BLOCK_WORDS: usize = 32;

/// The shard whose table it is.
pub const SHARD: ShardIndex = ShardIndex(5);

/// A bug that is planted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Bug {
    /// Readers do not fence.
    ReaderFence,
    /// Readers do not look a second time.
    SecondLook,
    /// Readers do not look whether the table is closed.
    LookAtClosed,
    /// The server does not read cells.
    NoScan,
    /// The server does not close tables that it replaces.
    NoClose,
    /// The server drops the cells of readers that are alive.
    ClosedIsDead,
    /// The server uses blocks again before it says that their leases are taken away.
    RevokeLate,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::ReaderFence,
        Self::SecondLook,
        Self::LookAtClosed,
        Self::NoScan,
        Self::NoClose,
        Self::ClosedIsDead,
        Self::RevokeLate,
    ];
}

/// The words of `told`.
pub mod told {
    /// The number of the table.
    pub const TABLE: usize = 0;
    /// Leases that readers had.
    pub const LEASES: usize = 8;
    /// Of those: taken away while they were read.
    pub const TAKEN: usize = 9;
    /// Lookups that found nothing to lease.
    pub const MISSES: usize = 10;
    /// How often a reader met a closed table.
    pub const CLOSED: usize = 11;
}

/// What a word of a block says under this generation.
pub fn pattern(generation: u64, word: usize) -> u64 {
    generation.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(word as u64) | 1
}

/// The `number`-th payload.
pub fn id(number: u64) -> PayloadId {
    PayloadId::mint(number << 12, number.wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

/// A file of the directory, mapped.
pub struct Mapped(MmapRaw);

impl Mapped {
    /// Makes it, of zeroes.
    ///
    /// # Errors
    /// What the system says.
    pub fn make(path: &Path, bytes: usize) -> anyhow::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        file.set_len(bytes as u64)?;
        Ok(Self(sys::map_shared(&OwnedFd::from(file), bytes)?))
    }

    /// Opens it; only to be read unless `writable`.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(path: &Path, writable: bool) -> anyhow::Result<Self> {
        let file = OpenOptions::new().read(true).write(writable).open(path)?;
        let bytes = usize::try_from(File::metadata(&file)?.len())?;
        let file = OwnedFd::from(file);
        Ok(Self(if writable { sys::map_shared(&file, bytes)? } else { sys::map_read_only(&file, bytes)? }))
    }

    /// Its words.
    pub fn words(&self) -> &[AtomicU64] {
        sys::words(&self.0)
    }
}

/// Where a session's page, or its status, is.
pub fn page(directory: &Path, what: &str, session: u32) -> PathBuf {
    directory.join(format!("{what}-{session}"))
}

/// Bytes of a session's cells and, behind them, its samples.
pub const CELLS_BYTES: usize = (PAGE_BYTES + RING_BYTES).next_multiple_of(4096);

/// Keeps the store buffer full: stores to lines that no cache has, which take their time, so that what is stored next is late.
pub struct StoreBuffer {
    lines: Vec<AtomicU64>,
    at: usize,
}

impl StoreBuffer {
    /// Twice what caches hold.
    pub fn new() -> Self {
        Self { lines: (0..8 << 20).map(|_| AtomicU64::new(0)).collect(), at: 0 }
    }

    /// So many stores that miss.
    pub fn fill(&mut self, stores: usize) {
        for _ in 0..stores {
            // A prime step, far from the last line.
            self.at = (self.at + 1_000_003 * 8) % self.lines.len();
            self.lines[self.at].store(1, Ordering::Relaxed);
        }
    }
}

impl Default for StoreBuffer {
    fn default() -> Self {
        Self::new()
    }
}
