//! Memory that two mappings share, as a server and its clients do: one may write, the other only reads.
//!
//! For the rows of direct leases, which need the shipped protocols over a real shared mapping and no server around them.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _};
use std::sync::atomic::AtomicU64;

use memmap2::{MmapOptions, MmapRaw};

/// What a large page covers.
const LARGE_BYTES: usize = 2 << 20;

/// A memfd that is mapped read-write.
pub struct Shared {
    file: File,
    mapping: MmapRaw,
    large_bytes: usize,
}

/// A second mapping of one.
pub struct Second(MmapRaw);

impl Shared {
    /// At least so many bytes of zeroes, all of them there already; of 2 MiB pages with `large`, as far as they are granted.
    ///
    /// # Errors
    /// What the system says.
    pub fn new(bytes: usize, large: bool) -> io::Result<Self> {
        let bytes = bytes.next_multiple_of(if large { LARGE_BYTES } else { 4096 });
        // SAFETY: takes a constant name and plain numbers, and returns a descriptor or -1.
        let fd = unsafe { libc::memfd_create(c"payload-bench".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a descriptor that was just made is nobody else's.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(bytes as u64)?;
        let mapping = MmapOptions::new().len(bytes).map_raw(file.as_raw_fd())?;
        let mut large_bytes = 0;
        if large {
            for start in (0..bytes).step_by(LARGE_BYTES) {
                // SAFETY: the range lies within the mapping, which nobody else knows yet; both calls leave zeroes there.
                let granted = unsafe {
                    let at = mapping.as_mut_ptr().add(start);
                    at.write_volatile(0);
                    libc::madvise(at.cast(), LARGE_BYTES, libc::MADV_COLLAPSE)
                };
                large_bytes += if granted == 0 { LARGE_BYTES } else { 0 };
            }
        }
        mapping.advise(memmap2::Advice::PopulateWrite)?;
        Ok(Self { file, mapping, large_bytes })
    }

    /// How much of it are large pages, of 1.
    pub fn large_share(&self) -> f64 {
        self.large_bytes as f64 / self.mapping.len() as f64
    }

    /// As words.
    pub fn words(&self) -> &[AtomicU64] {
        words(&self.mapping)
    }

    /// A second mapping, which can be written with `writable`. Its words must not be written otherwise.
    ///
    /// # Errors
    /// What the system says.
    pub fn second(&self, writable: bool) -> io::Result<Second> {
        let mut options = MmapOptions::new();
        options.len(self.mapping.len()).populate();
        let file = self.file.as_raw_fd();
        Ok(Second(if writable { options.map_raw(file)? } else { options.map_raw_read_only(file)? }))
    }
}

impl Second {
    /// As words.
    pub fn words(&self) -> &[AtomicU64] {
        words(&self.0)
    }
}

fn words(mapping: &MmapRaw) -> &[AtomicU64] {
    // SAFETY: the mapping starts at a page and lives as long as its reference; nobody cuts the file, and all that look at
    // it use atomic instructions. A store through a read-only one would end the bench with SIGSEGV, and change nothing.
    unsafe { std::slice::from_raw_parts(mapping.as_ptr().cast(), mapping.len() / size_of::<AtomicU64>()) }
}
