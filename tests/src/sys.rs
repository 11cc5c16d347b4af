//! The system calls that tests need and std has no safe word for. The only file of the tests with `unsafe`.
//!
//! Signals to one process, limits set between fork and exec, shared mappings as clients in other languages make
//! them (file opened read-write, cut or grown to its size, mapped), and the socket of a native session with its memory, for
//! clients that keep no rule.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicU64;

use memmap2::{MmapMut, MmapOptions, MmapRaw};

/// What [`signal`] sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signal {
    /// SIGKILL: no goodbye.
    Kill,
    /// SIGTERM: please stop.
    Term,
    /// SIGSTOP: hold still.
    Stop,
    /// SIGCONT: go on.
    Continue,
}

/// Sends a signal to one process, which the caller started and has not reaped yet.
///
/// # Errors
/// When there is no such process.
pub fn signal(pid: u32, signal: Signal) -> io::Result<()> {
    let number = match signal {
        Signal::Kill => libc::SIGKILL,
        Signal::Term => libc::SIGTERM,
        Signal::Stop => libc::SIGSTOP,
        Signal::Continue => libc::SIGCONT,
    };
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: kill takes two integers and touches no memory of ours.
    match unsafe { libc::kill(pid, number) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// As `ulimit -n FILES`, hard and soft, for the process that `command` will start.
pub fn open_files_limit(command: &mut Command, files: u64) {
    let limit = libc::rlimit { rlim_cur: files, rlim_max: files };
    let set = move || {
        // SAFETY: setrlimit reads one struct, which the closure owns; it is safe to call after fork.
        match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: between fork and exec the closure calls setrlimit only, which allocates nothing and takes no lock.
    unsafe { command.pre_exec(set) };
}

/// Raises this process's own soft limit of open files to its hard one: a test opens more than most programs.
pub fn open_files_raise() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls read or write one struct that lives on this stack.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}

/// Maps `length` bytes at `offset` of a file as v1 clients do: opened read-write (made when it is not there and
/// `create`), set to `offset + length` bytes, mapped shared and writable.
///
/// # Errors
/// Those of opening, setting the length and mapping.
pub fn map_read_write(path: &Path, create: bool, offset: u64, length: u64) -> io::Result<MmapMut> {
    let file = OpenOptions::new().read(true).write(true).create(create).truncate(false).open(path)?;
    file.set_len(offset + length)?;
    let length = usize::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the file has these bytes, and this test is their only writer; a test that cuts a file under its own
    // mapping does not touch the mapping afterwards.
    unsafe { MmapOptions::new().offset(offset).len(length).map_mut(&file) }
}

/// A SOCK_SEQPACKET socket that is connected to `path`; receiving waits 20 s at most.
///
/// # Errors
/// What the system says.
pub fn seqpacket(path: &Path) -> io::Result<OwnedFd> {
    // SAFETY: takes plain numbers, and returns a descriptor or -1.
    let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0) };
    checked(fd as isize)?;
    // SAFETY: a descriptor that was just made is nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: a sockaddr_un of zeros is a valid one.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let bytes = path.as_os_str().as_bytes();
    assert!(bytes.len() < address.sun_path.len(), "a test's paths are short");
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = from.cast_signed();
    }
    let (size, timeout) = (size_of_val(&address), libc::timeval { tv_sec: 20, tv_usec: 0 });
    // SAFETY: both calls read a struct that lives on this stack, of the size that is stated.
    unsafe {
        let value = (&raw const timeout).cast();
        let of = size_of_val(&timeout) as libc::socklen_t;
        checked(libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVTIMEO, value, of) as isize)?;
        let address = (&raw const address).cast();
        checked(libc::connect(fd.as_raw_fd(), address, size as libc::socklen_t) as isize)?;
    }
    Ok(fd)
}

/// Sends one message.
///
/// # Errors
/// What the system says.
pub fn send(socket: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: the bytes are readable for their length, and the call only reads them.
    let sent =
        unsafe { libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL) };
    checked(sent).map(drop)
}

/// Receives one message and up to 64 descriptors; no bytes when the other side has closed.
///
/// # Errors
/// What the system says.
pub fn receive(socket: &OwnedFd) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let (mut bytes, mut control) = (vec![0u8; 4096], [0u64; 64]);
    let mut vector = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    // SAFETY: a msghdr of zeros is a valid one.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: the message points to buffers of the lengths that it states, which outlive the call.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    bytes.truncate(checked(length)?);
    let mut descriptors = Vec::new();
    // SAFETY: the kernel wrote the control buffer; a header of SCM_RIGHTS is followed by as many descriptors as its
    // length says, each new in this process and nobody else's.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        if !header.is_null() && (*header).cmsg_type == libc::SCM_RIGHTS {
            let data = libc::CMSG_DATA(header);
            let count = ((*header).cmsg_len - (data as usize - header as usize)) / size_of::<RawFd>();
            for index in 0..count {
                descriptors.push(OwnedFd::from_raw_fd(data.cast::<RawFd>().add(index).read_unaligned()));
            }
        }
    }
    Ok((bytes, descriptors))
}

/// Maps the first `bytes` of a session's memory.
///
/// # Errors
/// What the system says.
pub fn map_shared(file: &OwnedFd, bytes: usize) -> io::Result<MmapRaw> {
    MmapOptions::new().len(bytes).map_raw(file.as_raw_fd())
}

/// The same, only to be read: a store through it ends the process.
///
/// # Errors
/// What the system says.
pub fn map_read_only(file: &OwnedFd, bytes: usize) -> io::Result<MmapRaw> {
    MmapOptions::new().len(bytes).map_raw_read_only(file.as_raw_fd())
}

/// The words of such memory.
pub fn words(map: &MmapRaw) -> &[AtomicU64] {
    // SAFETY: the mapping starts at a page and lives as long as its reference; the server has sealed its file against
    // shrinking, and touches it with atomic instructions only.
    unsafe { std::slice::from_raw_parts(map.as_ptr().cast(), map.len() / size_of::<AtomicU64>()) }
}

fn checked(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
