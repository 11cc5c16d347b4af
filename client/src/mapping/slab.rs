//! Slabs of native sessions: memory that is mapped once, and parts of it that allocations and leases refer to.
//!
//! ```text
//! SlabMap (one a slab and session)  <--Arc-- Block: one allocation (&mut) or lease (&), by offset and length
//! ```
//!
//! Used by `native::slabs`, which alone makes [`Block`]s, one writable one for an allocation of this session. Invariants:
//! a mapping is as long as its file, which the server has sealed against shrinking before it offers it (a shorter one is
//! refused); it lives as long as any block of it, also when the server is gone; no child of a fork has it (MADV_DONTFORK).
//! What a hostile *server* can do to it, it can do to every segment as well.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;

use memmap2::{Advice, MmapOptions, MmapRaw};

/// A slab, mapped whole.
#[derive(Debug)]
pub(crate) struct SlabMap {
    map: MmapRaw,
    is_writable: bool,
}

/// A part of a slab.
#[derive(Debug)]
pub(crate) struct Block {
    slab: Arc<SlabMap>,
    range: Range<usize>,
}

impl SlabMap {
    /// Maps the first `bytes` of `file`; to write, if `is_writable`.
    ///
    /// # Errors
    /// What the system says; `InvalidData` when the file is shorter.
    pub(crate) fn map(file: OwnedFd, bytes: u64, is_writable: bool) -> io::Result<Self> {
        let file = File::from(file);
        let length = file.metadata()?.len();
        let mapped = usize::try_from(bytes).ok().filter(|_| length >= bytes);
        let Some(mapped) = mapped else {
            let reason = format!("a slab has {length} bytes, and {bytes} are stated");
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        };
        let mut options = MmapOptions::new();
        let map = match is_writable {
            true => options.len(mapped).map_raw(file.as_raw_fd())?,
            false => options.len(mapped).map_raw_read_only(file.as_raw_fd())?,
        };
        map.advise(Advice::DontFork)?;
        Ok(Self { map, is_writable })
    }

    /// True when this process may write to it.
    pub(crate) fn is_writable(&self) -> bool {
        self.is_writable
    }

    /// Bytes.
    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }

    /// Has the pages of `range` mapped before somebody writes to them. Changes no byte.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn touch(&self, range: Range<usize>) -> io::Result<()> {
        self.map.advise_range(Advice::PopulateWrite, range.start, range.len())
    }
}

impl Block {
    /// The part of `slab`; `None` when it is not within it.
    pub(crate) fn new(slab: Arc<SlabMap>, offset: u64, length: u64) -> Option<Self> {
        let start = usize::try_from(offset).ok()?;
        let end = start.checked_add(usize::try_from(length).ok()?)?;
        (start < end && end <= slab.len()).then(|| Self { slab, range: start..end })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the range lies within the mapping (`new`), which this value keeps, and whose file cannot shrink. The bytes
        // do not change while the block lives: either it is an allocation of this process, written through `bytes_mut` only;
        // or a lease keeps them, and they are immutable by contract as those of a segment are.
        unsafe { std::slice::from_raw_parts(self.slab.map.as_ptr().add(self.range.start), self.range.len()) }
    }

    /// The bytes, to be written.
    ///
    /// # Panics
    /// When the slab is not this session's own: who makes blocks for allocations looks first.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        assert!(self.slab.is_writable, "a block of an allocation lies in a slab of this session");
        let (start, length) = (self.range.start, self.range.len());
        // SAFETY: as above; and the server gives no two allocations one place, so that this is the only block of these bytes
        // until Commit, by which it is gone.
        unsafe { std::slice::from_raw_parts_mut(self.slab.map.as_mut_ptr().add(start), length) }
    }

    /// Makes sure that a part of it, in bytes from its start, can be loaded or stored to.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn prepare(&self, part: Range<usize>) -> io::Result<()> {
        let advice = if self.slab.is_writable { Advice::PopulateWrite } else { Advice::PopulateRead };
        self.slab.map.advise_range(advice, self.range.start + part.start, part.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: u64) -> OwnedFd {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(bytes).expect("grown");
        file.into()
    }

    #[test]
    fn given_a_slab_when_written_in_one_mapping_then_a_reader_of_another_sees_its_block_only() {
        let shared = file(65_536);
        let own = shared.try_clone().expect("cloned");
        let writer = Arc::new(SlabMap::map(own, 65_536, true).expect("mapped"));
        let reader = Arc::new(SlabMap::map(shared, 65_536, false).expect("mapped"));
        writer.touch(0..65_536).expect("touched");
        let mut block = Block::new(Arc::clone(&writer), 4_160, 3).expect("within");
        block.prepare(0..3).expect("there");
        block.bytes_mut().copy_from_slice(b"abc");
        let seen = Block::new(reader, 4_160, 3).expect("within");
        seen.prepare(0..3).expect("there");
        assert_eq!(seen.bytes(), b"abc");
        drop(writer);
        assert_eq!(block.bytes(), b"abc", "the block keeps its mapping");
    }

    #[test]
    fn given_blocks_that_are_not_within_when_made_then_none_and_a_short_file_is_refused() {
        let slab = Arc::new(SlabMap::map(file(8_192), 8_192, false).expect("mapped"));
        for (offset, length) in [(0, 0), (0, 8_193), (8_192, 1), (u64::MAX, 1), (1, u64::MAX)] {
            assert!(Block::new(Arc::clone(&slab), offset, length).is_none(), "{offset} {length}");
        }
        assert!(Block::new(slab, 8_191, 1).is_some());
        assert!(SlabMap::map(file(4_096), 8_192, true).is_err());
    }
}
