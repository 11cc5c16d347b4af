//! Memory that the server shares with clients: sealed memfds, mapped here as 64-bit atomics; and waking who waits on it.
//!
//! Whatever a client does, an access through this mapping neither faults nor is a data race: the memfd is reserved in
//! full, sealed against getting shorter, and read and written as atomics only.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

/// What a large page covers where base pages have 4 KiB; elsewhere the kernel refuses, and everything works.
pub(crate) const LARGE_PAGE_BYTES: u64 = 2 << 20;

/// Who may write to shared memory once it is shared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Writers {
    /// Whoever maps it.
    Everybody,
    /// Only this mapping: nobody can map it writable, write to it, or punch holes into it any more.
    OnlyHere,
}

/// A mapping of a memfd of ours. Unmapped when dropped, by whichever thread that is: not a shard's.
pub(crate) struct SharedMemory {
    start: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the mapping belongs to no thread, and it is reached as atomics only.
unsafe impl Send for SharedMemory {}
// SAFETY: as above; atomics may be used from several threads.
unsafe impl Sync for SharedMemory {}

impl SharedMemory {
    /// Makes `bytes` (a multiple of the page size) of zeroed memory, maps it with its pages in place, and seals it.
    /// Returned with the descriptor that clients are sent.
    pub(crate) fn make(name: &CStr, bytes: usize, writers: Writers) -> io::Result<(Self, OwnedFd)> {
        // SAFETY: `name` is a C string that lives through the call.
        let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
        let fd = owned(fd)?;
        let length = libc::off_t::try_from(bytes).map_err(io::Error::other)?;
        // Reserved in full, so that a page which is touched later is there.
        // SAFETY: takes integers only.
        if unsafe { libc::fallocate(fd.as_raw_fd(), 0, 0, length) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
        // SAFETY: a new mapping at an address that the kernel chooses; nothing else is changed.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, fd.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).expect("the kernel maps nothing at address 0");
        let memory = Self { start, words: bytes / size_of::<AtomicU64>() };
        let mut seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
        if writers == Writers::OnlyHere {
            seals |= libc::F_SEAL_FUTURE_WRITE;
        }
        // SAFETY: takes integers only.
        if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok((memory, fd))
    }

    /// As [`make`](Self::make), written only here, in large pages as far as they are granted: for what is looked up at
    /// random. `bytes` of 2 MiB or more are a multiple of that.
    pub(crate) fn make_large(name: &CStr, bytes: usize) -> io::Result<(Self, OwnedFd)> {
        let large = LARGE_PAGE_BYTES as usize;
        if bytes < large {
            return Self::make(name, bytes, Writers::OnlyHere);
        }
        assert!(bytes.is_multiple_of(large), "whole large pages");
        // SAFETY: `name` is a C string that lives through the call.
        let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
        let fd = owned(fd)?;
        let length = libc::off_t::try_from(bytes).map_err(io::Error::other)?;
        // SAFETY: takes integers only.
        if unsafe { libc::ftruncate(fd.as_raw_fd(), length) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let memory = Self::map_aligned(&fd, bytes)?;
        for start in (0..bytes).step_by(large) {
            // One page that is there makes a large one without a copy; written through the file, so that no space is an error
            // and no signal.
            // SAFETY: the kernel reads one byte, which lives through the call.
            let written =
                unsafe { libc::pwrite(fd.as_raw_fd(), [0u8].as_ptr().cast(), 1, start as libc::off_t) };
            if written != 1 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: the range lies within the mapping that was just made; the advice keeps what it holds.
            let granted = unsafe {
                let at = memory.start.as_ptr().cast::<u8>().add(start);
                libc::madvise(at.cast(), large, libc::MADV_COLLAPSE)
            };
            if granted != 0 {
                tracing::debug!(error = %io::Error::last_os_error(), "a table has small pages");
                break;
            }
        }
        // SAFETY: takes integers only.
        if unsafe { libc::fallocate(fd.as_raw_fd(), 0, 0, length) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the range is the mapping. Where the kernel does not know the advice, pages are mapped as they are met.
        unsafe { libc::madvise(memory.start.as_ptr().cast(), bytes, libc::MADV_POPULATE_WRITE) };
        let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_FUTURE_WRITE | libc::F_SEAL_SEAL;
        // SAFETY: takes integers only.
        if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok((memory, fd))
    }

    /// Maps a file where a large page may begin.
    fn map_aligned(fd: &OwnedFd, bytes: usize) -> io::Result<Self> {
        let large = LARGE_PAGE_BYTES as usize;
        let (nothing, private) =
            (libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
        // SAFETY: a new mapping of nothing at an address that the kernel chooses.
        let room = unsafe { libc::mmap(std::ptr::null_mut(), bytes + large, nothing, private, -1, 0) };
        if room == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let before = (room as usize).next_multiple_of(large) - room as usize;
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_FIXED);
        // SAFETY: the range lies within the room that was just made and that nobody knows; what is left of that before and
        // behind it is whole pages, and is unmapped.
        let start = unsafe {
            let at = room.cast::<u8>().add(before);
            let start = libc::mmap(at.cast(), bytes, protection, flags, fd.as_raw_fd(), 0);
            if before > 0 {
                libc::munmap(room, before);
            }
            libc::munmap(at.add(bytes).cast(), large - before);
            start
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).expect("the kernel maps nothing at address 0");
        Ok(Self { start, words: bytes / size_of::<AtomicU64>() })
    }

    /// The memory.
    pub(crate) fn words(&self) -> &[AtomicU64] {
        // SAFETY: `start` is a page-aligned mapping of as many words, which is never written but as atomics, cannot
        // get shorter (sealed), and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.words) }
    }
}

#[cfg(test)]
impl SharedMemory {
    /// As a client maps what it was sent.
    pub(crate) fn map(fd: &OwnedFd, bytes: usize, writers: Writers) -> io::Result<Self> {
        let writes = if writers == Writers::Everybody { libc::PROT_WRITE } else { 0 };
        let (protection, flags) = (libc::PROT_READ | writes, libc::MAP_SHARED);
        // SAFETY: a new mapping at an address that the kernel chooses; nothing else is changed.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, fd.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).expect("the kernel maps nothing at address 0");
        Ok(Self { start, words: bytes / size_of::<AtomicU64>() })
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        let bytes = self.words * size_of::<AtomicU64>();
        // SAFETY: this mapping was made in `make` with this length, and nobody borrows it any more.
        let result = unsafe { libc::munmap(self.start.as_ptr().cast(), bytes) };
        assert_eq!(result, 0, "a whole mapping of ours can be unmapped");
    }
}

/// Wakes every thread of every process that waits on the low half of `word`.
pub(crate) fn futex_wake_all(word: &AtomicU64) {
    // Without FUTEX_PRIVATE_FLAG: the waiters are other processes.
    // SAFETY: the kernel uses the address, which is a valid one, only to find waiters. Nothing is written.
    let woken = unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX, 0, 0, 0) };
    debug_assert!(woken >= 0, "{}", io::Error::last_os_error());
}

/// A descriptor that a call has just returned.
pub(super) fn owned(fd: libc::c_int) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call returned this descriptor just now, so nobody else closes it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::atomic::Ordering;

    use super::*;

    /// Tries to do as a client would who wants more than it was given.
    fn map_writable(fd: &OwnedFd) -> bool {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping at an address that the kernel chooses.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, fd.as_raw_fd(), 0) };
        start != libc::MAP_FAILED
    }

    #[test]
    fn given_memory_only_the_server_writes_when_a_client_reopens_it_then_it_can_only_read() {
        let (memory, fd) = SharedMemory::make(c"pm-test", 8192, Writers::OnlyHere).expect("memory");
        memory.words()[7].store(42, Ordering::Relaxed);
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let reopened = File::options().read(true).write(true).open(&path).expect("its owner may");
        assert!(!map_writable(&OwnedFd::from(reopened.try_clone().expect("a copy"))), "mapped writable");
        assert!(reopened.set_len(0).is_err() && reopened.set_len(1 << 20).is_err(), "the length is sealed");
        assert!(std::io::Write::write(&mut &reopened, &[1; 8]).is_err(), "and so are the bytes");
        assert_eq!(memory.words()[7].load(Ordering::Relaxed), 42);
        assert_eq!(memory.words().len(), 1024);
    }

    #[test]
    fn given_a_large_memory_when_made_then_it_is_aligned_zeroed_and_read_only_to_others() {
        let (memory, fd) = SharedMemory::make_large(c"pm-test", 4 << 20).expect("memory");
        assert_eq!(memory.start.as_ptr() as usize % (2 << 20), 0);
        assert!(
            memory.words().len() == 4 << 17
                && memory.words().iter().all(|word| word.load(Ordering::Relaxed) == 0)
        );
        assert!(!map_writable(&fd), "nobody else writes");
        memory.words()[1].store(3, Ordering::Relaxed);
        let again = SharedMemory::map(&fd, 4 << 20, Writers::OnlyHere).expect("mapped");
        assert_eq!(again.words()[1].load(Ordering::Relaxed), 3);
    }

    #[test]
    fn given_memory_of_both_when_a_client_shortens_it_then_refused_and_it_may_write() {
        let (memory, fd) = SharedMemory::make(c"pm-test", 4096, Writers::Everybody).expect("memory");
        let client = File::from(fd);
        assert!(client.set_len(0).is_err(), "a load of ours would fault");
        std::os::unix::fs::FileExt::write_at(&client, &7u64.to_le_bytes(), 8).expect("it may write");
        assert_eq!(memory.words()[1].load(Ordering::Relaxed), 7);
    }
}
