//! Shared memory in large pages, and a window through which the kernel moves bytes into it.
//!
//! A [`Window`] is an address range that is lent to the kernel, as the target of reads. This program neither loads from it
//! nor stores to it: whoever cut the file would turn that into a SIGBUS, while the kernel answers EFAULT.

use std::fs::File;
use std::io;
use std::ops::Range;

use super::aligned::Aligned;

/// What the processors we run on have, with base pages of 4 KiB. Where it is another size, the kernel refuses, and
/// everything works with small pages.
pub(crate) const LARGE_PAGE_BYTES: u64 = 2 << 20;

/// See the module's description.
pub(crate) struct Window(Aligned);

impl Window {
    /// Makes large pages of the first `bytes` of a file in shared memory, which keeps what it has and is zeroes where it has
    /// nothing, and maps them. At least one byte of each large page must have been written. 25 us a large page that is
    /// made of one small one, 1 us if it was one before, half a millisecond if 512 small ones have to be copied.
    ///
    /// # Errors
    /// Where the kernel has no large pages, for now (`ENOMEM`, `EAGAIN`) or at all (`EINVAL`, before Linux 6.1 too), or
    /// there is too little space: any part of the file may have them then.
    pub(crate) fn of_large_pages(file: &File, bytes: u64) -> io::Result<Self> {
        assert!(bytes > 0 && bytes.is_multiple_of(LARGE_PAGE_BYTES), "whole large pages");
        let mapped = Aligned::of(file, bytes)?;
        let all = mapped.part(&(0..mapped.bytes()));
        // SAFETY: the range is the mapping just made, and what the file has is kept.
        if unsafe { libc::madvise(all.cast(), mapped.bytes(), libc::MADV_COLLAPSE) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(mapped))
    }

    /// How much of the file it shows.
    pub(crate) fn bytes(&self) -> usize {
        self.0.bytes()
    }

    /// Where a part of it is, for the kernel.
    pub(crate) fn part(&self, range: &Range<usize>) -> *mut u8 {
        self.0.part(range)
    }
}
