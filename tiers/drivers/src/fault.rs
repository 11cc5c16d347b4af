//! Turns the system's errors into `DriverError`s: one sentence of what was tried, and no client's path.

use std::fmt::Display;
use std::io;

use payload_types::event::{DriverError, DriverErrorKind};

/// What was tried, and what the system answered.
pub(crate) fn fault(tried: impl Display, error: &io::Error) -> DriverError {
    let kind = match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT | libc::ENOMEM) => DriverErrorKind::Full,
        Some(libc::ENOENT) => DriverErrorKind::Missing,
        _ => DriverErrorKind::Io,
    };
    DriverError { kind, message: format!("{tried}: {error}") }
}

/// An error that no system call reported.
pub(crate) fn finding(kind: DriverErrorKind, message: impl Into<String>) -> DriverError {
    DriverError { kind, message: message.into() }
}
