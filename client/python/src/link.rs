//! [`Link`]: the connection that a client and what it hands out share, and the one way in which they wait.
//!
//! ```text
//! method --Link::client--> blocking::Client (a clone) --waiting--> without the GIL; Ctrl-C is noticed each 100 ms
//!                                                     `-remote---> the same, over gRPC, on its runtime
//! ```
//!
//! Invariant: who holds the GIL never waits for the runtime. Its threads take turns at driving it, and the one whose turn it
//! is may wait for the GIL. Only the main thread looks for signals, as in Python itself: it cannot meet the interpreter's end
//! in the middle of a call.

use std::cell::{Cell, OnceCell};
use std::sync::{Mutex, PoisonError};

use payload_client::blocking::Client;
use payload_client::interrupt::interruptible;
use payload_client::{ClientError, client};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use crate::convert;
use crate::error::{exception, raised};
use crate::owned::Owned;

/// A connection.
#[derive(Debug)]
pub struct Link {
    /// As it was given.
    pub target: String,
    /// `None` once it was closed. Held for an instant, never while waiting.
    client: Mutex<Option<Owned<Client>>>,
    /// For calls that say none.
    timeout: Option<f64>,
}

impl Link {
    /// Connects. `is_native`: only by the native path, or only by gRPC; `None`: as is best.
    ///
    /// # Errors
    /// As `blocking::Client::connect`.
    pub fn connect(
        py: Python<'_>,
        target: String,
        timeout: Option<f64>,
        is_native: Option<bool>,
    ) -> PyResult<Self> {
        if let Some(timeout) = timeout {
            convert::duration(py, "timeout", timeout)?;
        }
        let connected = py.detach(|| match is_native {
            Some(false) => Client::connect_grpc(&target),
            _ => Client::connect(&target),
        });
        let client = connected.map_err(|error| raised(py, &error))?;
        if is_native == Some(true) && client.session().is_none() {
            let sentence = format!(
                "no native session with {target}: its server is on another host, serves none, or lets this user not in; leave native=True out to use gRPC then"
            );
            return Err(exception(py, "ConnectionFailed", sentence));
        }
        Ok(Self { target, client: Mutex::new(Some(Owned::new(client, true))), timeout })
    }

    /// The client, with the deadline of a call.
    ///
    /// # Errors
    /// When it was closed, and in a child that was forked; for what is no time.
    pub fn client(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Client> {
        let held = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(owned) = &*held else {
            let sentence = format!("this client of {} was closed; connect again", self.target);
            return Err(exception(py, "Closed", sentence));
        };
        let client = owned.get().map_err(|error| raised(py, &error))?;
        match timeout.or(self.timeout) {
            None => Ok(client.clone()),
            Some(seconds) => Ok(client.with_deadline(convert::duration(py, "timeout", seconds)?)),
        }
    }

    /// Lets the connection go. What was leased and allocated over it stays.
    pub fn close(&self) {
        let client = self.client.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(client);
    }

    /// Calls the server over gRPC, without the GIL.
    ///
    /// # Errors
    /// As the call; what a signal's handler raised, in the main thread.
    pub fn remote<T: Send>(
        &self,
        py: Python<'_>,
        timeout: Option<f64>,
        call: impl AsyncFnOnce(&client::Client) -> Result<T, ClientError> + Send,
    ) -> PyResult<T> {
        let client = self.client(py, timeout)?;
        // Dropped where nobody holds the GIL: it may be the last one, and wait.
        waiting(py, move || client.grpc(call))
    }
}

thread_local! {
    /// True in the main thread; looked up once.
    static IS_MAIN: OnceCell<bool> = const { OnceCell::new() };
    /// What a handler raised, until it is raised where the call was made.
    static RAISED: Cell<Option<PyErr>> = const { Cell::new(None) };
}

/// Waits without the GIL; in the main thread also for what a signal's handler raises.
///
/// # Errors
/// As `wait`; what the handler raised.
pub fn waiting<T: Send>(py: Python<'_>, wait: impl FnOnce() -> Result<T, ClientError> + Send) -> PyResult<T> {
    let is_main = match IS_MAIN.with(|known| known.get().copied()) {
        Some(known) => known,
        None => {
            let is_main = is_main_thread(py)?;
            IS_MAIN.with(|known| *known.get_or_init(|| is_main))
        }
    };
    let result = py.detach(|| {
        if !is_main {
            return Ok(wait());
        }
        let result = interruptible(has_raised, wait);
        match RAISED.take() {
            None => Ok(result),
            // What came all the same is dropped here, because that may wait.
            Some(raised) => Err(raised),
        }
    });
    result?.map_err(|error| raised(py, &error))
}

/// Lets handlers of signals run, for which it waits for the GIL.
fn has_raised() -> bool {
    match Python::attach(|py| py.check_signals()) {
        Ok(()) => false,
        Err(error) => {
            RAISED.set(Some(error));
            true
        }
    }
}

fn is_main_thread(py: Python<'_>) -> PyResult<bool> {
    static CURRENT: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    static MAIN: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let current = CURRENT.import(py, "threading", "current_thread")?.call0()?;
    let main = MAIN.import(py, "threading", "main_thread")?.call0()?;
    Ok(current.is(&main))
}
