//! Private memory that bytes pass through on their way between tiers. Clients never see it.
//!
//! One anonymous mapping of [`SLOTS`] buffers of 1 MiB, page aligned as O_DIRECT asks. One per transfer thread:
//! 10 MiB each.

use std::io;

use memmap2::{Advice, MmapMut};
use payload_types::limits::{IO_BYTES_MAX, IO_DEPTH};

/// Buffers of one transfer thread: `IO_DEPTH` that the disk works on, and one that the processor works on.
pub(crate) const SLOTS: usize = IO_DEPTH + 1;

/// Direct I/O from huge pages reached 2-3 times the bandwidth of small ones (docs/BENCH.md). Linux aligns a mapping to
/// huge pages only when its length is whole ones.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// The buffers.
pub(crate) struct Staging(MmapMut);

impl Staging {
    pub(crate) fn new() -> io::Result<Self> {
        let memory = MmapMut::map_anon((SLOTS * IO_BYTES_MAX).next_multiple_of(HUGE_PAGE_BYTES))?;
        // Where the kernel grants them; nothing but speed depends on it.
        let _ = memory.advise(Advice::HugePage);
        Ok(Self(memory))
    }

    pub(crate) fn slot(&mut self, slot: usize) -> &mut [u8] {
        &mut self.0[slot * IO_BYTES_MAX..][..IO_BYTES_MAX]
    }
}
