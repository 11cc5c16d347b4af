//! The memory that a native session shares with the server, as atomics; sleeping on one of them; and whether this process
//! is the one that made the session.
//!
//! Used by `native` alone. What lies where is `payload_local::layout`'s business; here are only a mapping, whose words
//! are never touched but as atomics, and the futex.
//!
//! Invariants: a mapping is as long as the file was when it was mapped, and the server has sealed it against shrinking.
//! No child of a fork has it (MADV_DONTFORK): [`ForkGuard`] tells a child before it would touch what is not there.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use memmap2::{Advice, MmapMut, MmapOptions, MmapRaw};

/// Words of memory that another process reads and writes, too.
#[derive(Debug)]
pub(crate) struct SharedWords {
    map: MmapRaw,
}

impl SharedWords {
    /// Maps the first `bytes` of `file` for loads and stores.
    ///
    /// # Errors
    /// What the system says; `InvalidData` when the file is shorter.
    pub(crate) fn map(file: &OwnedFd, bytes: usize) -> io::Result<Self> {
        has_bytes(file, bytes)?;
        Self::of(MmapOptions::new().len(bytes).map_raw(file.as_raw_fd())?)
    }

    /// Maps the first `bytes` of `file`. They are only to be loaded: a store is a SIGSEGV.
    ///
    /// # Errors
    /// As [`SharedWords::map`].
    pub(crate) fn map_read_only(file: &OwnedFd, bytes: usize) -> io::Result<Self> {
        has_bytes(file, bytes)?;
        Self::of(MmapOptions::new().len(bytes).map_raw_read_only(file.as_raw_fd())?)
    }

    /// Maps a table of direct leases, of so many bytes: to be loaded only, its pages at hand from the beginning.
    ///
    /// # Errors
    /// As [`SharedWords::map`].
    pub(crate) fn map_table(file: &OwnedFd, bytes: u64) -> io::Result<Self> {
        let bytes = usize::try_from(bytes).map_err(io::Error::other)?;
        has_bytes(file, bytes)?;
        Self::of(MmapOptions::new().len(bytes).populate().map_raw_read_only(file.as_raw_fd())?)
    }

    fn of(map: MmapRaw) -> io::Result<Self> {
        map.advise(Advice::DontFork)?;
        Ok(Self { map })
    }

    /// The words.
    pub(crate) fn words(&self) -> &[AtomicU64] {
        let count = self.map.len() / size_of::<AtomicU64>();
        // SAFETY: the mapping starts at a page, is `len` bytes long and lives as long as `self`; its file cannot shrink
        // (the server has sealed it). The other process touches it only with atomic instructions, or breaks none but
        // the values; every bit pattern is an AtomicU64.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().cast::<AtomicU64>(), count) }
    }
}

fn has_bytes(file: &OwnedFd, bytes: usize) -> io::Result<()> {
    let length = std::fs::File::from(file.try_clone()?).metadata()?.len();
    if length < bytes as u64 {
        let reason = format!("its memory has {length} bytes, and {bytes} are stated");
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    Ok(())
}

/// Sleeps while the low half of `word` is `seen`, for `timeout` at most. Returns early for any reason or none: who calls
/// looks again.
pub(crate) fn futex_wait(word: &AtomicU64, seen: u32, timeout: Duration) {
    let timeout =
        libc::timespec { tv_sec: timeout.as_secs() as libc::time_t, tv_nsec: timeout.subsec_nanos().into() };
    // SAFETY: the word lives as long as its reference, is aligned, and its low half comes first (layout asserts it); the
    // kernel reads it and the timeout, and writes nothing.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, seen, &raw const timeout);
    }
}

/// Wakes all that sleep on `word`, in any process.
pub(crate) fn futex_wake(word: &AtomicU64) {
    // SAFETY: the kernel looks at the address alone; the word lives as long as its reference.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, libc::c_int::MAX);
    }
}

/// Tells whether this process is the one that made it, at the price of one load: a page that the kernel wipes in children.
#[derive(Debug)]
pub(crate) struct ForkGuard {
    page: MmapMut,
}

impl ForkGuard {
    /// For this process.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn new() -> io::Result<Self> {
        let mut page = MmapMut::map_anon(4096)?;
        page[0] = 1;
        // SAFETY: the page is this value's own, anonymous and private, as MADV_WIPEONFORK demands; its bytes are looked
        // at as one atomic only.
        let advised = unsafe { libc::madvise(page.as_mut_ptr().cast(), page.len(), libc::MADV_WIPEONFORK) };
        if advised == 0 { Ok(Self { page }) } else { Err(io::Error::last_os_error()) }
    }

    /// True in a process that was forked from the one that made it.
    #[inline]
    pub(crate) fn is_child(&self) -> bool {
        // SAFETY: the page is mapped and aligned as long as `self` lives, and nothing writes to it in this process.
        let word = unsafe { &*self.page.as_ptr().cast::<AtomicU64>() };
        word.load(Ordering::Relaxed) == 0
    }
}

/// True in a child that `fork` made, and nothing else is done there; for tests of who must not go on in one.
#[cfg(test)]
pub(crate) fn in_a_child(look: impl FnOnce() -> bool) -> bool {
    // SAFETY: the child only looks at memory and exits at once, without allocating, locking or unwinding.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let found = look();
        // SAFETY: ends the child without running what the parent registered.
        unsafe { libc::_exit(if found { 7 } else { 1 }) }
    }
    let mut status = 0;
    // SAFETY: `child` is this process's own, and `status` is its to be written.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    waited == child && libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 7
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn given_a_fork_when_asked_then_the_child_knows_and_the_parent_goes_on() {
        let guard = ForkGuard::new().expect("a page");
        assert!(!guard.is_child());
        assert!(in_a_child(|| guard.is_child()));
        assert!(!guard.is_child());
    }

    #[test]
    fn given_a_futex_that_changed_or_nobody_wakes_when_waited_on_then_it_returns() {
        let word = AtomicU64::new(1 << 32 | 5);
        futex_wait(&word, 4, Duration::from_secs(3600));
        let start = Instant::now();
        futex_wait(&word, 5, Duration::from_millis(20));
        assert!(start.elapsed() >= Duration::from_millis(15));
    }

    #[test]
    fn given_a_file_that_is_too_short_when_mapped_then_refused() {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(4096).expect("grown");
        let file = OwnedFd::from(file);
        let words = SharedWords::map(&file, 4096).expect("long enough");
        words.words()[511].store(7, Ordering::Relaxed);
        let again = SharedWords::map_read_only(&file, 4096).expect("long enough");
        assert_eq!(again.words()[511].load(Ordering::Relaxed), 7);
        assert_eq!(SharedWords::map(&file, 4097).expect_err("short").kind(), io::ErrorKind::InvalidData);
    }
}
