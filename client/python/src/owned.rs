//! [`Owned`]: a value that belongs to the process that made it.
//!
//! A child that `fork` made has copies of the parent's sessions, leases and connections, and may use none of them: its
//! memory lacks what was mapped, and dropping a copy would close what the parent still uses. So a child is refused every
//! use, and what it drops is left as it is.
//!
//! Dropping may wait for the server, or take long to unmap. It then lets other Python threads run.

use payload_client::ClientError;
use pyo3::Python;

/// A value, and the process that may use it.
#[derive(Debug)]
pub struct Owned<T: Send> {
    /// `None` while it is dropped.
    value: Option<T>,
    process: u32,
    /// Whether dropping it may take long.
    is_slow: bool,
}

/// Why the value is there whenever somebody can look.
const HELD: &str = "it is taken only by what consumes it";

impl<T: Send> Owned<T> {
    /// A value of this process. `is_slow`: dropping it may take long.
    pub fn new(value: T, is_slow: bool) -> Self {
        Self { value: Some(value), process: std::process::id(), is_slow }
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
        if self.process == std::process::id() { Ok(()) } else { Err(ClientError::Forked) }
    }
}

impl<T: Send> Drop for Owned<T> {
    fn drop(&mut self) {
        let Some(value) = self.value.take() else { return };
        if self.process != std::process::id() {
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
