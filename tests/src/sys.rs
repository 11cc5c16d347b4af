//! The system calls that tests need and std has no safe word for. The only file of the tests with `unsafe`.
//!
//! Signals to one process, limits set between fork and exec, and shared mappings as clients in other languages make
//! them: file opened read-write, cut or grown to its size, mapped.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use memmap2::{MmapMut, MmapOptions};

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
