//! A file mapped where its large pages can be shown as such: at an address that is a multiple of their size.
//!
//! Nothing here gives out a reference into the memory. What may be done with the address, [`super::large`] and
//! [`super::memory`] say.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::ptr::{NonNull, null_mut};

use super::large::LARGE_PAGE_BYTES;

/// A shared, writable mapping of a file's beginning. Unmapped when it is dropped.
pub(crate) struct Aligned {
    /// What was reserved to find an aligned part in it.
    reserved: NonNull<libc::c_void>,
    reserved_bytes: usize,
    start: *mut u8,
    bytes: usize,
}

impl Aligned {
    /// Maps the first `bytes` of a file.
    ///
    /// # Errors
    /// `ENOMEM` when the process may not have so much address space.
    pub(crate) fn of(file: &File, bytes: u64) -> io::Result<Self> {
        let no_room = || io::Error::from_raw_os_error(libc::ENOMEM);
        let bytes = usize::try_from(bytes).map_err(|_| no_room())?;
        let align = LARGE_PAGE_BYTES as usize;
        let reserved_bytes = bytes.checked_add(align).ok_or_else(no_room)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at a place of the kernel's choice touches no memory of ours.
        let reserved = unsafe { libc::mmap(null_mut(), reserved_bytes, libc::PROT_NONE, flags, -1, 0) };
        if reserved == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let reserved = NonNull::new(reserved).expect("the kernel never maps address 0 unasked");
        let skipped = reserved.as_ptr().align_offset(align);
        let start = reserved.as_ptr().cast::<u8>().wrapping_add(skipped);
        let aligned = Self { reserved, reserved_bytes, start, bytes };
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        // SAFETY: what is replaced lies within the reservation above, which is this mapping's alone.
        let mapped = unsafe { libc::mmap(start.cast(), bytes, access, flags, file.as_raw_fd(), 0) };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(aligned)
    }

    /// How much of the file it shows.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Where a part of it begins.
    ///
    /// # Panics
    /// When it does not lie within the mapping.
    pub(crate) fn part(&self, range: &Range<usize>) -> *mut u8 {
        assert!(range.start <= range.end && range.end <= self.bytes, "within the mapping");
        self.start.wrapping_add(range.start)
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        // SAFETY: the range is this mapping's alone, the file's part included, and nothing points into it: whoever lends
        // its address to the kernel holds the mapping for as long as the kernel uses it.
        unsafe { libc::munmap(self.reserved.as_ptr(), self.reserved_bytes) };
    }
}
