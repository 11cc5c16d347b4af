//! Anonymous shared memory: made, sealed, mapped, touched, bound to a NUMA node. Used by [`crate::arena`] only.
//!
//! The server loads nothing through these mappings, and stores only zeroes. No store can raise SIGBUS: the files are
//! sealed against shrinking before anybody else has them.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd};

use super::aligned::Aligned;

/// A set of seals (fcntl(2), "File Sealing").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Seals(i32);

impl Seals {
    /// Its length is what it is.
    pub(crate) const LENGTH: Self = Self(libc::F_SEAL_SHRINK | libc::F_SEAL_GROW);
    /// Who has it mapped writable may write on; nobody else ever can. And nobody can add a seal.
    pub(crate) const WRITERS: Self = Self(libc::F_SEAL_FUTURE_WRITE | libc::F_SEAL_SEAL);
    /// Nobody can write. And nobody can add a seal.
    pub(crate) const WRITE: Self = Self(libc::F_SEAL_WRITE | libc::F_SEAL_SEAL);
}

/// A new file in memory, empty, closed by exec, that can be sealed and not executed; of large pages from the machine's
/// reserve where `is_huge`.
///
/// It is opened once more, and that is what the caller gets: the kernel counts nobody as a writer who has a description of
/// `memfd_create` itself, so a write lease is granted beside it ([`nobody_else_has_it`](super::nobody_else_has_it) would lie).
///
/// # Errors
/// `EMFILE`, `ENFILE`; `EINVAL` or `ENODEV` where the kernel has no such reserve; as open(2), where /proc is not mounted.
pub(crate) fn memfd(name: &str, is_huge: bool) -> io::Result<File> {
    let uncounted = new_memfd(name, is_huge)?;
    OpenOptions::new().read(true).write(true).open(format!("/proc/self/fd/{}", uncounted.as_raw_fd()))
}

fn new_memfd(name: &str, is_huge: bool) -> io::Result<File> {
    let name = CString::new(name)?;
    let huge = if is_huge { libc::MFD_HUGETLB | libc::MFD_HUGE_2MB } else { 0 };
    let sealed = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | huge;
    let mut last = io::Error::from_raw_os_error(libc::EINVAL);
    // MFD_NOEXEC_SEAL came with Linux 6.3, and some systems demand it (vm.memfd_noexec=2).
    for flags in [sealed | libc::MFD_NOEXEC_SEAL, sealed] {
        // SAFETY: `name` ends with a NUL and outlives the call.
        let descriptor = unsafe { libc::memfd_create(name.as_ptr(), flags) };
        if descriptor >= 0 {
            // SAFETY: the call just made it, and nobody else knows it.
            return Ok(unsafe { File::from_raw_fd(descriptor) });
        }
        last = io::Error::last_os_error();
        if last.raw_os_error() != Some(libc::EINVAL) {
            break;
        }
    }
    Err(last)
}

/// Another description of the same file, which can only read, with a position and a lease of its own.
///
/// # Errors
/// As open(2); where /proc is not mounted.
pub(crate) fn reopen_to_read(file: &File) -> io::Result<File> {
    OpenOptions::new().read(true).open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Adds seals, which nothing takes away again.
///
/// # Errors
/// `EBUSY`: `F_SEAL_WRITE` while somebody has it mapped writable, or a device writes into it. `EPERM`: sealed against seals.
pub(crate) fn seal(file: &File, seals: Seals) -> io::Result<()> {
    // SAFETY: the descriptor is open for as long as `file` is borrowed; F_ADD_SEALS takes an integer.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals.0) } == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}

/// True when a file has all of these seals.
pub(crate) fn has_seals(file: &File, seals: Seals) -> io::Result<bool> {
    // SAFETY: the descriptor is open for as long as `file` is borrowed; F_GET_SEALS takes no argument.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) } {
        -1 => Err(io::Error::last_os_error()),
        found => Ok(found & seals.0 == seals.0),
    }
}

/// The whole of a file in memory, mapped to be written, beginning on a large page's border. A forked child does not have it.
pub(crate) struct Mapping(Aligned);

// SAFETY: a mapping belongs to the process, not to a thread; what is done with it goes through system calls, or stores
// zeroes where only the caller of `zero` may.
unsafe impl Send for Mapping {}
// SAFETY: as above; no method gives out a reference into the memory.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `bytes` of a file, whole pages, which it must have.
    ///
    /// # Errors
    /// `ENOMEM` when the process may not have so much address space.
    pub(crate) fn of(file: &File, bytes: u64) -> io::Result<Self> {
        let mapping = Self(Aligned::of(file, bytes)?);
        mapping.advise(0..bytes, libc::MADV_DONTFORK)?;
        Ok(mapping)
    }

    /// Makes pages of a range and maps them here, as a write would, and changes nothing.
    ///
    /// # Errors
    /// `EINVAL` before Linux 5.14; `ENOMEM`, `EFAULT` where there is no memory.
    pub(crate) fn populate(&self, range: Range<u64>) -> io::Result<()> {
        self.advise(range, libc::MADV_POPULATE_WRITE)
    }

    /// Makes one large page of each 2 MiB of a range; what is there stays.
    ///
    /// # Errors
    /// As [`super::large::Window::of_large_pages`].
    pub(crate) fn collapse(&self, range: Range<u64>) -> io::Result<()> {
        self.advise(range, libc::MADV_COLLAPSE)
    }

    fn advise(&self, range: Range<u64>, advice: i32) -> io::Result<()> {
        let (at, bytes) = self.part(&range);
        loop {
            // SAFETY: the range lies within this mapping; none of these three advices changes a byte that is there.
            if unsafe { libc::madvise(at.cast(), bytes, advice) } == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if !matches!(error.raw_os_error(), Some(libc::EINTR)) {
                return Err(error);
            }
        }
    }

    /// Asks for pages of this NUMA node, as long as it has some. To be called before there are pages.
    ///
    /// # Errors
    /// `EINVAL` for a node that is not there, `ENOSYS`, `EPERM` where the kernel does not allow it.
    pub(crate) fn bind(&self, node: u16) -> io::Result<()> {
        const MPOL_PREFERRED: libc::c_long = 1;
        let mut nodes = [0u64; 16];
        let word = nodes
            .get_mut(usize::from(node) / 64)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        *word |= 1 << (node % 64);
        let node_bits = nodes.len() * 64;
        // SAFETY: the range is this mapping, `nodes` has as many bits as is said and outlives the call; no byte changes.
        let result = unsafe {
            libc::syscall(
                libc::SYS_mbind,
                self.0.part(&(0..self.0.bytes())),
                self.0.bytes(),
                MPOL_PREFERRED,
                nodes.as_ptr(),
                node_bits,
                0,
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Writes zeroes. Only for a range that no thread of this process uses, and no client may read yet.
    pub(crate) fn zero(&self, range: Range<u64>) {
        let (at, bytes) = self.part(&range);
        // SAFETY: the range lies within this mapping, which is writable; no reference into it exists anywhere, and the
        // file cannot be cut below it (it is sealed).
        unsafe { std::ptr::write_bytes(at, 0, bytes) };
    }

    fn part(&self, range: &Range<u64>) -> (*mut u8, usize) {
        // A range beyond the address space is beyond the mapping, and refused there.
        let [start, end] = [range.start, range.end].map(|at| usize::try_from(at).unwrap_or(usize::MAX));
        (self.0.part(&(start..end)), end - start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_a_mapping_when_bound_to_a_node_then_one_that_is_there_is_taken_and_others_are_refused() {
        let file = memfd("test", false).expect("a memfd");
        file.set_len(4096).expect("a length");
        let mapping = Mapping::of(&file, 4096).expect("mapped");
        mapping.bind(0).expect("every machine has node 0");
        for node in [1000, u16::MAX] {
            assert_eq!(mapping.bind(node).expect_err("no machine has it").raw_os_error(), Some(libc::EINVAL));
        }
        mapping.populate(0..4096).expect("touched");
    }

    #[test]
    fn given_seals_when_added_then_they_are_there_and_others_are_not() {
        let file = memfd("test", false).expect("a memfd");
        seal(&file, Seals::LENGTH).expect("sealed");
        let found = [Seals::LENGTH, Seals::WRITERS, Seals::WRITE]
            .map(|seals| has_seals(&file, seals).expect("known"));
        assert_eq!(found, [true, false, false]);
        seal(&file, Seals::WRITERS).expect("sealed");
        assert_eq!(
            seal(&file, Seals::WRITE).expect_err("sealed against seals").raw_os_error(),
            Some(libc::EPERM)
        );
    }
}
