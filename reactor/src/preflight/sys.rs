//! The system calls of the preflight, each behind a safe function. The only unsafe code of this module.
//!
//! Called by the other files of `preflight`. Every descriptor made here is closed before its function returns.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use payload_types::ByteCount;

/// `f_type` of tmpfs (statfs(2)).
pub(super) const TMPFS: i64 = 0x0102_1994;
/// `f_type` of NFS (statfs(2)).
pub(super) const NFS: i64 = 0x6969;

/// What statfs(2) says about the filesystem of a path.
pub(super) struct Filesystem {
    /// `f_type`.
    pub kind: i64,
    /// All of its space; 0 where the filesystem knows no limit.
    pub total: ByteCount,
    /// What an unprivileged process may still use.
    pub free: ByteCount,
}

/// Asks for the filesystem that `path` lies on.
pub(super) fn filesystem(path: &Path) -> io::Result<Filesystem> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut stats = std::mem::MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: `path` is NUL-terminated, and `stats` has room for the structure that the kernel fills in.
    let result = unsafe { libc::statfs(path.as_ptr(), stats.as_mut_ptr()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: every bit pattern is a valid `statfs`, and the call has filled it in.
    let stats = unsafe { stats.assume_init() };
    let block = u64::try_from(stats.f_bsize).unwrap_or(0);
    Ok(Filesystem {
        kind: stats.f_type,
        total: ByteCount(stats.f_blocks.saturating_mul(block)),
        free: ByteCount(stats.f_bavail.saturating_mul(block)),
    })
}

/// Whether this process may open `path` for reading and writing; it is not opened, which would wake a device.
pub(super) fn may_read_and_write(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: `path` is NUL-terminated and outlives the call, which touches no other memory.
    let answer =
        unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), libc::R_OK | libc::W_OK, libc::AT_EACCESS) };
    answer == 0
}

/// Sets up a ring of two entries and closes it again: the only honest way to learn whether io_uring is permitted.
pub(super) fn ring_probe() -> io::Result<()> {
    // `struct io_uring_params` (linux/io_uring.h) is 120 bytes; all zero asks for a plain ring.
    let mut params = [0u64; 15];
    // SAFETY: the kernel reads and writes the 120 bytes of `params`, which live until the call returns.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 2, params.as_mut_ptr()) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the call returned this descriptor, and nobody else has it.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(())
}

/// A resource limit of this process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Limit {
    /// What is enforced.
    pub soft: u64,
    /// How far the process may raise it.
    pub hard: u64,
}

/// Which limit.
#[derive(Clone, Copy, Debug)]
pub(super) enum Resource {
    /// Bytes that may be locked into memory.
    Memlock,
    /// Open descriptors.
    Nofile,
}

impl Resource {
    fn number(self) -> libc::__rlimit_resource_t {
        match self {
            Self::Memlock => libc::RLIMIT_MEMLOCK,
            Self::Nofile => libc::RLIMIT_NOFILE,
        }
    }
}

/// Reads a limit.
pub(super) fn limit(resource: Resource) -> io::Result<Limit> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid structure for the kernel to fill in.
    if unsafe { libc::getrlimit64(resource.number(), &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Limit { soft: limit.rlim_cur, hard: limit.rlim_max })
}

/// Sets a limit of this process.
pub(super) fn set_limit(resource: Resource, limit: Limit) -> io::Result<()> {
    let limit = libc::rlimit64 { rlim_cur: limit.soft, rlim_max: limit.hard };
    // SAFETY: `limit` is a valid structure that the kernel only reads.
    if unsafe { libc::setrlimit64(resource.number(), &raw const limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Takes a write lease on `file` and gives it back. It is granted only while nobody else has the file open or
/// mapped, which is how the server learns that a client's space may be reused (DESIGN §5).
pub(super) fn write_lease_probe(file: &File) -> io::Result<()> {
    // SAFETY: F_SETLEASE takes a descriptor and an integer; the descriptor is open as long as `file` is borrowed.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::c_int::from(libc::F_WRLCK as i16)) }
        != 0
    {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::c_int::from(libc::F_UNLCK as i16)) };
    Ok(())
}
