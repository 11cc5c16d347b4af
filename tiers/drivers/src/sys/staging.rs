//! Private memory that bytes pass through on their way between tiers. Clients never see it.
//!
//! One anonymous mapping of [`SLOTS`] buffers of 1 MiB, page aligned as O_DIRECT asks. One per transfer thread:
//! 9 MiB each.

use std::io;

use memmap2::{Advice, MmapMut};
use payload_types::limits::{IO_BYTES_MAX, IO_DEPTH};

/// Buffers of one transfer thread: `IO_DEPTH` that the disk works on, and one that the processor works on.
pub(crate) const SLOTS: usize = IO_DEPTH + 1;

/// The buffers.
pub(crate) struct Staging(MmapMut);

impl Staging {
    pub(crate) fn new() -> io::Result<Self> {
        let memory = MmapMut::map_anon(SLOTS * IO_BYTES_MAX)?;
        // Fewer page-table entries where the kernel grants them; nothing depends on it.
        let _ = memory.advise(Advice::HugePage);
        Ok(Self(memory))
    }

    pub(crate) fn slot(&mut self, slot: usize) -> &mut [u8] {
        &mut self.0[slot * IO_BYTES_MAX..][..IO_BYTES_MAX]
    }
}
