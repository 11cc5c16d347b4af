//! `Payload`: a leased payload that Python reads in place.
//!
//! ```text
//! acquire --> Payload { lease } --buffer--> numpy, pyarrow, memoryview: each keeps the lease
//!             `with` left, or release(): no new views; the lease ends with the last one
//! ```

use std::ffi::c_int;
use std::sync::{Arc, Mutex, PoisonError};

use payload_client::blocking::ReadLease;
use payload_client::{ClientError, Descriptor};
use payload_types::PayloadId;
use pyo3::exceptions::PyTypeError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyMemoryView};

use crate::buffer::{self, Exported};
use crate::convert;
use crate::error::{exception, raised};
use crate::info::Info;
use crate::link::waiting;
use crate::owned::Owned;

/// Above this, unmapping takes long enough to let other Python threads run.
const SLOW_BYTES: usize = 1 << 20;

/// A leased payload: read-only bytes that lie where the server put them.
///
/// Anything that takes a buffer reads it without a copy: `memoryview(p)`, `numpy.frombuffer(p, dtype)`,
/// `pyarrow.py_buffer(p)`. The lease ends when the `with` block is left (or `release()` was called, or the object is gone)
/// and the last view of it is gone, too. `copy()` gives bytes of one's own.
#[pyclass(frozen, weakref, module = "payload_manager")]
pub struct Payload {
    id: PayloadId,
    descriptor: Descriptor,
    bytes: Exported,
    /// `None` once it was released. Held for an instant.
    lease: Mutex<Option<Arc<Owned<ReadLease>>>>,
}

impl Payload {
    /// Of a lease that was just granted.
    pub fn new(lease: ReadLease, is_native: bool) -> Self {
        let descriptor = lease.descriptor().clone();
        let bytes = Exported { address: lease.as_ptr() as usize, length: lease.len(), is_writable: false };
        let is_slow = !is_native || bytes.length > SLOW_BYTES;
        let lease = Mutex::new(Some(Arc::new(Owned::new(lease, is_slow))));
        Self { id: descriptor.id, descriptor, bytes, lease }
    }

    /// Keeps the lease.
    fn keep(&self, py: Python<'_>) -> PyResult<Arc<Owned<ReadLease>>> {
        let held = self.lease.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(lease) = &*held else {
            let sentence = format!("the lease of payload {} was released; acquire it again", self.id);
            return Err(exception(py, "Released", sentence));
        };
        lease.get().map_err(|error| raised(py, &error))?;
        Ok(Arc::clone(lease))
    }
}

#[pymethods]
impl Payload {
    /// The payload's id.
    #[getter]
    fn id<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        convert::uuid(py, self.id)
    }

    /// How many bytes it has.
    #[getter]
    fn nbytes(&self) -> usize {
        self.bytes.length
    }

    /// The tier that it is read from: `ram` or `disk`.
    #[getter]
    fn tier(&self) -> &'static str {
        convert::word(self.descriptor.tier)
    }

    /// What was known of it when it was leased.
    #[getter]
    fn info(&self) -> Info {
        Info::of(&self.descriptor)
    }

    /// True once the lease was given back; views that were made before go on.
    #[getter]
    fn released(&self) -> bool {
        self.lease.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    /// True while the server vouches for the lease. False once the payload was deleted by force, the lease's time is over (gRPC
    /// alone), or the server is gone. Ask after the bytes were used: what is mapped stays readable all the same.
    fn is_valid(&self, py: Python<'_>) -> PyResult<bool> {
        let lease = self.keep(py)?;
        waiting(py, || Ok(lease.get()?.is_valid()))
    }

    /// A read-only memoryview of the bytes. It keeps the lease.
    fn view<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyMemoryView>> {
        PyMemoryView::from(slf.as_any())
    }

    /// A writable copy of the bytes, of the caller's own.
    fn copy<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyByteArray>> {
        let lease = self.keep(py)?;
        PyByteArray::new_with(py, self.bytes.length, |target| {
            let copied = py.detach(|| {
                let lease = lease.get()?;
                lease.prepare()?;
                target.copy_from_slice(lease);
                Ok::<_, ClientError>(())
            });
            copied.map_err(|error| raised(py, &error))
        })
    }

    /// Reads every page once, so that bytes which somebody cut off are an exception here instead of a crash later.
    fn prepare(&self, py: Python<'_>) -> PyResult<()> {
        let lease = self.keep(py)?;
        waiting(py, || lease.get()?.prepare())
    }

    /// Gives the lease back. Views that exist keep it until they are gone. Again: nothing happens.
    fn release(&self) {
        let lease = self.lease.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(lease);
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, _exception: &Bound<'_, PyAny>) {
        self.release();
    }

    fn __len__(&self) -> usize {
        self.bytes.length
    }

    fn __repr__(&self) -> String {
        let ended = if self.released() { ", released" } else { "" };
        format!("<Payload {} {} bytes on {}{ended}>", self.id, self.bytes.length, self.tier())
    }

    fn __reduce__(&self) -> PyResult<()> {
        Err(PyTypeError::new_err(
            "a leased payload belongs to its process; pass its id, and acquire it there",
        ))
    }

    // SAFETY: called by Python alone, with a view to fill; `export` keeps the lease, and with it the mapping, for the view.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let keeper = slf.get().keep(slf.py())?;
        let bytes = slf.get().bytes;
        // SAFETY: the view is Python's; the bytes are those of the lease's mapping, which lives as long as the lease.
        unsafe { buffer::export(slf.as_any(), view, flags, bytes, keeper) }
    }

    // SAFETY: called by Python alone, once for each view that `__getbuffer__` filled.
    unsafe fn __releasebuffer__(&self, view: *mut ffi::Py_buffer) {
        // SAFETY: `__getbuffer__` exported it with a keeper of this type.
        unsafe { buffer::release::<Owned<ReadLease>>(view) }
    }
}
