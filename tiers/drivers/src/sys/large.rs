//! Shared memory in large pages, and a window through which the kernel moves bytes into it.
//!
//! A [`Window`] is an address range that is lent to the kernel, as the target of reads. This program neither loads from it
//! nor stores to it: whoever cut the file would turn that into a SIGBUS, while the kernel answers EFAULT.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::ptr::{NonNull, null_mut};

/// What the processors we run on have, with base pages of 4 KiB. Where it is another size, the kernel refuses, and
/// everything works with small pages.
pub(crate) const LARGE_PAGE_BYTES: u64 = 2 << 20;

/// See the module's description.
pub(crate) struct Window {
    /// What was reserved to find an aligned part in it.
    reserved: NonNull<libc::c_void>,
    reserved_bytes: usize,
    start: *mut u8,
    bytes: usize,
}

impl Window {
    /// Makes large pages of the first `bytes` of a file in shared memory, which keeps what it has and is zeroes where it has
    /// nothing, and maps them. At least one byte of each large page must have been written. 25 us a large page that is
    /// made of one small one, 1 us if it was one before, half a millisecond if 512 small ones have to be copied.
    ///
    /// # Errors
    /// Where the kernel has no large pages, for now (`ENOMEM`, `EAGAIN`) or at all (`EINVAL`, before Linux 6.1 too), or
    /// there is too little space: any part of the file may have them then.
    pub(crate) fn of_large_pages(file: &File, bytes: u64) -> io::Result<Self> {
        let align = LARGE_PAGE_BYTES as usize;
        let bytes = usize::try_from(bytes).map_err(|_| io::Error::from_raw_os_error(libc::ENOMEM))?;
        assert!(bytes > 0 && bytes.is_multiple_of(align), "whole large pages");
        let reserved_bytes = bytes + align;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at a place of the kernel's choice touches no memory of ours.
        let reserved = unsafe { libc::mmap(null_mut(), reserved_bytes, libc::PROT_NONE, flags, -1, 0) };
        if reserved == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let reserved = NonNull::new(reserved).expect("the kernel never maps address 0 unasked");
        let skipped = reserved.as_ptr().align_offset(align);
        let start = reserved.as_ptr().cast::<u8>().wrapping_add(skipped);
        let window = Self { reserved, reserved_bytes, start, bytes };
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        // SAFETY: what is replaced lies within the reservation above, which is this window's alone.
        let mapped = unsafe { libc::mmap(start.cast(), bytes, access, flags, file.as_raw_fd(), 0) };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the range is the mapping just made, and what the file has is kept.
        if unsafe { libc::madvise(start.cast(), bytes, libc::MADV_COLLAPSE) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(window)
    }

    /// How much of the file it shows.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Where a part of it is, for the kernel.
    pub(crate) fn part(&self, range: &Range<usize>) -> *mut u8 {
        assert!(range.start <= range.end && range.end <= self.bytes, "within the window");
        self.start.wrapping_add(range.start)
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: the range is this window's alone, the mapping of the file included, and nothing points into it: the
        // engine holds the window for as long as the kernel uses it.
        unsafe { libc::munmap(self.reserved.as_ptr(), self.reserved_bytes) };
    }
}
