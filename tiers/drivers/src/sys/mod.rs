//! Thin safe wrappers over what std does not offer: the only unsafe code of this crate lives below this module.
//!
//! Callers: `store`, `disk`, `transfer`, `retire`, `arena`. Nothing here knows about payloads. Every call blocks, so no shard
//! thread may come here.
#![allow(unsafe_code)]

mod aligned;
pub(crate) mod large;
pub(crate) mod memory;
pub(crate) mod staging;
pub(crate) mod uring;

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Flags for every file that a client may have had its hands on: no symlink is followed, and a FIFO put in its
/// place cannot block the open.
pub(crate) const HANDLE_WITH_CARE: i32 = libc::O_NOFOLLOW | libc::O_NONBLOCK;

/// Reserves real space for the first `bytes` of `file` and makes it at least that long. What has space keeps it.
///
/// # Errors
/// `ENOSPC` when there is too little; the file then still has to be removed by the caller.
pub(crate) fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    let length = libc::off_t::try_from(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
    loop {
        // SAFETY: the descriptor is open for as long as `file` is borrowed; the call touches no memory of ours.
        match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, length) } {
            0 => return Ok(()),
            libc::EINTR => {}
            error => return Err(io::Error::from_raw_os_error(error)),
        }
    }
}

/// Bytes that an unprivileged user may still write to the filesystem that holds `path`.
pub(crate) fn available_bytes(path: &Path) -> io::Result<u64> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: statvfs is plain integers, for which all zeroes is a value.
    let mut answer: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: `path` is NUL-terminated and `answer` is writable; both outlive the call.
    if unsafe { libc::statvfs(path.as_ptr(), &raw mut answer) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if answer.f_blocks == 0 {
        return Ok(u64::MAX); // a tmpfs without a limit
    }
    Ok(answer.f_bavail.saturating_mul(answer.f_frsize))
}

/// What a name is, without opening it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Looked {
    pub(crate) is_file: bool,
    pub(crate) owner_may_read: bool,
    pub(crate) user: u32,
    pub(crate) bytes: u64,
}

/// Looks at `name`, relative to a directory. No link is followed at its end.
///
/// # Errors
/// As fstatat(2); a name with a NUL in it.
pub(crate) fn look(directory: &File, name: &mut String) -> io::Result<Looked> {
    if name.contains('\0') {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    name.push('\0');
    // SAFETY: stat is plain integers, for which all zeroes is a value.
    let mut found: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the directory is open while it is borrowed, `name` ends with a NUL, `found` is writable; all outlive the
    // call.
    let result = unsafe {
        libc::fstatat(directory.as_raw_fd(), name.as_ptr().cast(), &raw mut found, libc::AT_SYMLINK_NOFOLLOW)
    };
    name.pop();
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Looked {
        is_file: found.st_mode & libc::S_IFMT == libc::S_IFREG,
        owner_may_read: found.st_mode & libc::S_IRUSR != 0,
        user: found.st_uid,
        bytes: u64::try_from(found.st_size).unwrap_or(0),
    })
}

/// True when nobody but the caller has `file` open or mapped, by the grant of a write lease (fcntl(2)). The lease
/// ends when `file` is closed.
///
/// # Errors
/// When the filesystem has no leases (`EINVAL`), or the file is not ours (`EACCES`): nothing is proven.
pub(crate) fn nobody_else_has_it(file: &File) -> io::Result<bool> {
    // SAFETY: the descriptor is open for as long as `file` is borrowed; F_SETLEASE takes an integer.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) } == 0 {
        return Ok(true);
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::EAGAIN) => Ok(false),
        error => Err(error),
    }
}

/// True while nobody has asked for `file` since [`nobody_else_has_it`] said so: whoever opens it waits for the end of the
/// lease, and shows here.
pub(crate) fn nobody_else_waits_for_it(file: &File) -> bool {
    // SAFETY: the descriptor is open for as long as `file` is borrowed; F_GETLEASE takes no argument.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLEASE) == libc::F_WRLCK }
}

/// Ends the lease of [`nobody_else_has_it`] before `file` is closed.
pub(crate) fn end_lease(file: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open for as long as `file` is borrowed; F_SETLEASE takes an integer.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK) } == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}

/// A lease that somebody breaks raises SIGIO in its holder, which by default ends the process. We hold one for
/// microseconds only and need no notice: the signal is ignored, unless the program has its own use for it.
pub(crate) fn ignore_lease_breaks() {
    // SAFETY: sigaction is plain integers, a pointer and a set of bits, for which all zeroes is a value.
    let mut present: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: a null new action only reads; `present` is writable and outlives the call.
    let read = unsafe { libc::sigaction(libc::SIGIO, std::ptr::null(), &raw mut present) };
    if read == 0 && present.sa_sigaction == libc::SIG_DFL {
        // SAFETY: ignoring a signal installs no handler, so no code runs in signal context.
        unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
    }
}

/// Bypasses the page cache for all further I/O through `file`, whose offsets, lengths and buffers must then be
/// aligned to pages.
///
/// # Errors
/// `EINVAL` where the filesystem cannot: the file stays buffered.
pub(crate) fn set_direct(file: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open for as long as `file` is borrowed; F_GETFL takes no argument.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above; F_SETFL takes an integer.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags | libc::O_DIRECT) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The user this server runs as: the owner of everything it makes.
pub(crate) fn effective_user() -> u32 {
    // SAFETY: geteuid takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}
