//! [`Owned`]: a value that belongs to the process that made it.
//!
//! A child that `fork` made has copies of the parent's sessions, leases and connections, and may use none of them: its
//! memory lacks what was mapped, and dropping a copy would close what the parent still uses. So a child is refused every
//! use, and what it drops is left as it is.
//!
//! Dropping may wait for the server, or take long to unmap. It then lets other Python threads run.
//!
//! A child is told by a handler of `pthread_atfork`, which runs before `fork` returns in it. Asking for the process id each
//! time took 0.2 µs, three times a lease; a hook of Python's own comes after the first objects may have been dropped.

use std::ffi::c_int;
use std::sync::atomic::{AtomicU32, Ordering};

use payload_client::ClientError;
use pyo3::exceptions::PyImportError;
use pyo3::prelude::*;

/// Counts the forks between the process that loaded this module and this one.
static FORKS: AtomicU32 = AtomicU32::new(0);

type Handler = Option<extern "C" fn()>;

// SAFETY: POSIX declares it so; libc, which every Rust program links, has it.
unsafe extern "C" {
    fn pthread_atfork(prepare: Handler, parent: Handler, child: Handler) -> c_int;
}

extern "C" fn in_child() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// Has children told what they are. Once, when the module is loaded.
///
/// # Errors
/// When there is no memory for it.
pub fn watch_forks() -> PyResult<()> {
    // SAFETY: the handler stays loaded as long as the registration, which ends with the library; it adds to an atomic, which
    // is safe after a fork of a program with threads.
    let registered = unsafe { pthread_atfork(None, None, Some(in_child)) };
    match registered {
        0 => Ok(()),
        code => {
            Err(PyImportError::new_err(format!("forks cannot be watched: error {code} of pthread_atfork")))
        }
    }
}

/// A value, and the process that may use it.
#[derive(Debug)]
pub struct Owned<T: Send> {
    /// `None` while it is dropped.
    value: Option<T>,
    /// [`FORKS`] when it was made.
    forks: u32,
    /// Whether dropping it may take long.
    is_slow: bool,
}

/// Why the value is there whenever somebody can look.
const HELD: &str = "it is taken only by what consumes it";

impl<T: Send> Owned<T> {
    /// A value of this process. `is_slow`: dropping it may take long.
    pub fn new(value: T, is_slow: bool) -> Self {
        Self { value: Some(value), forks: FORKS.load(Ordering::Relaxed), is_slow }
    }

    /// The value.
    ///
    /// # Errors
    /// In a child of the process that made it.
    pub fn get(&self) -> Result<&T, ClientError> {
        self.check()?;
        Ok(self.value.as_ref().expect(HELD))
    }

    /// The value, for good.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn take(mut self) -> Result<T, ClientError> {
        self.check()?;
        Ok(self.value.take().expect(HELD))
    }

    fn check(&self) -> Result<(), ClientError> {
        if self.is_own() { Ok(()) } else { Err(ClientError::Forked) }
    }

    fn is_own(&self) -> bool {
        self.forks == FORKS.load(Ordering::Relaxed)
    }
}

impl<T: Send> Drop for Owned<T> {
    fn drop(&mut self) {
        let Some(value) = self.value.take() else { return };
        if !self.is_own() {
            std::mem::forget(value);
        } else if !self.is_slow {
            drop(value);
        } else {
            // While the interpreter shuts down nobody else waits for it, and it must not be let go.
            let mut value = Some(value);
            let dropped = Python::try_attach(|py| {
                let value = value.take();
                py.detach(move || drop(value));
            });
            if dropped.is_none() {
                std::mem::forget(value);
            }
        }
    }
}
