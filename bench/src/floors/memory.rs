//! `memory/copy`: memcpy into memory of this process, and the same memcpy into an arena slab, as its writer does it.

use std::io;
use std::os::fd::BorrowedFd;

use memmap2::{Advice, MmapMut, MmapRaw};

/// Memory of this process.
pub struct Plain(MmapMut);

impl Plain {
    /// So many bytes, which are touched when they are written first.
    ///
    /// # Errors
    /// When there is no memory.
    pub fn new(bytes: usize) -> io::Result<Self> {
        MmapMut::map_anon(bytes).map(Self)
    }

    /// Copies all of `source` to its start.
    pub fn write(&mut self, source: &[u8]) {
        self.0[..source.len()].copy_from_slice(source);
    }
}

/// A slab, mapped by the writer that it belongs to.
pub struct Writer(MmapRaw);

impl Writer {
    /// Maps all of it.
    ///
    /// # Errors
    /// As mmap(2): after the seal nobody can.
    pub fn map(slab: BorrowedFd<'_>) -> io::Result<Self> {
        MmapRaw::map_raw(&slab).map(Self)
    }

    /// Maps its pages before they are written, so that no write waits for that.
    ///
    /// # Errors
    /// Before Linux 5.14.
    pub fn touch(&self) -> io::Result<()> {
        self.0.advise(Advice::PopulateWrite)
    }

    /// Copies all of `source` to its start.
    ///
    /// # Panics
    /// When it is larger than the slab.
    pub fn write(&self, source: &[u8]) {
        assert!(source.len() <= self.0.len(), "{} bytes fit {}", source.len(), self.0.len());
        // SAFETY: the range lies within the mapping, whose file cannot be cut (it is sealed); `source` is memory of this
        // process, nobody reads the slab, and no reference into it exists.
        unsafe { std::ptr::copy_nonoverlapping(source.as_ptr(), self.0.as_mut_ptr(), source.len()) };
    }
}
