//! `Writer`: reserved space that Python writes in place, from Allocate to Commit.
//!
//! ```text
//! allocate --> Writer --buffer--> memoryview, numpy: they write where the payload lies
//!              commit: only once none of them is left     `with` left without it: given back, once none is left
//! ```

use std::ffi::c_int;
use std::sync::{Arc, Mutex, PoisonError};

use payload_client::blocking::{Accepted, WritablePayload};
use payload_types::{Checksum, PayloadId};
use pyo3::exceptions::PyTypeError;
use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyMemoryView, PyWeakrefMethods, PyWeakrefReference};

use crate::buffer::{self, Exported};
use crate::convert;
use crate::error::{exception, invalid, raised};
use crate::link::waiting;
use crate::owned::Owned;

/// Reserved space for a new payload.
///
/// `view()` is a writable memoryview of it, and anything that takes a buffer writes there, too. `commit()` makes it a
/// payload that can be read and never changes again; leaving the `with` block without it gives the space back.
#[pyclass(frozen, weakref, module = "payload_manager")]
pub struct Writer {
    id: PayloadId,
    bytes: Exported,
    state: Mutex<State>,
}

/// Held for an instant, never while waiting.
struct State {
    /// `None` once it was committed or given back.
    payload: Option<Arc<Owned<WritablePayload>>>,
    /// The memoryview that `view()` gave out last, weakly.
    view: Option<Py<PyWeakrefReference>>,
    is_committed: bool,
    /// Committed, and not known to be durable.
    accepted: Option<Owned<Accepted>>,
}

impl Writer {
    /// Of space that was just allocated.
    pub fn new(mut payload: WritablePayload) -> Self {
        let bytes =
            Exported { address: payload.as_mut_ptr() as usize, length: payload.len(), is_writable: true };
        let id = payload.id();
        let payload = Some(Arc::new(Owned::new(payload, true)));
        Self {
            id,
            bytes,
            state: Mutex::new(State { payload, view: None, is_committed: false, accepted: None }),
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, py: Python<'_>) -> PyResult<Arc<Owned<WritablePayload>>> {
        let state = self.state();
        let Some(payload) = &state.payload else { return Err(self.ended(py, state.is_committed)) };
        payload.get().map_err(|error| raised(py, &error))?;
        Ok(Arc::clone(payload))
    }

    fn ended(&self, py: Python<'_>, is_committed: bool) -> PyErr {
        let why = if is_committed {
            "was committed, and its bytes never change again; acquire it to read them"
        } else {
            "was given back without a commit; allocate another"
        };
        exception(py, "Released", format!("payload {} {why}", self.id))
    }

    /// Ends the memoryview that `view()` gave out: using it afterwards is a `ValueError`.
    fn end_view(&self, py: Python<'_>) {
        let view = self.state().view.take();
        if let Some(view) = view.and_then(|view| view.bind(py).upgrade()) {
            // When something else has a view of it, `commit` finds that out.
            let _still_viewed = view.call_method0(intern!(py, "release"));
        }
    }

    /// Takes the payload out, if nobody views it any more.
    fn take(&self, py: Python<'_>) -> PyResult<Owned<WritablePayload>> {
        let mut state = self.state();
        let Some(payload) = state.payload.take() else { return Err(self.ended(py, state.is_committed)) };
        Arc::try_unwrap(payload).map_err(|payload| {
            let views = Arc::strong_count(&payload) - 1;
            state.payload = Some(payload);
            let sentence = format!(
                "payload {} has {views} views that could still write to it (numpy arrays, slices of its memoryview); delete them, then commit again",
                self.id
            );
            exception(py, "ViewsAlive", sentence)
        })
    }
}

#[pymethods]
impl Writer {
    /// The id that the payload will have.
    #[getter]
    fn id<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        convert::uuid(py, self.id)
    }

    /// How many bytes were reserved.
    #[getter]
    fn nbytes(&self) -> usize {
        self.bytes.length
    }

    /// True once `commit()` succeeded.
    #[getter]
    fn committed(&self) -> bool {
        self.state().is_committed
    }

    /// A writable memoryview of the space. `commit()` ends it.
    fn view<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let (py, writer) = (slf.py(), slf.get());
        let known = writer.state().view.as_ref().and_then(|view| view.bind(py).upgrade());
        // One that was released by its owner has no length any more.
        if let Some(view) = known.filter(|view| view.getattr(intern!(py, "nbytes")).is_ok()) {
            return Ok(view);
        }
        let view = PyMemoryView::from(slf.as_any())?.into_any();
        let weak = PyWeakrefReference::new(&view)?.unbind();
        writer.state().view = Some(weak);
        Ok(view)
    }

    /// Makes the bytes a payload, and returns its id.
    ///
    /// `checksum` is the XXH3-64 of the bytes, when the caller has it. `wait="accepted"` returns as soon as the payload may be
    /// acquired on this node, `"durable"` when its catalog entry, and on disk its bytes, are stored; `durable()` waits for
    /// the rest. Views of the space must be gone: the memoryview of `view()` is ended, others (numpy arrays, slices) raise
    /// `ViewsAlive`, and the commit can be tried again.
    #[pyo3(signature = (*, wait="durable", checksum=None))]
    fn commit<'py>(&self, py: Python<'py>, wait: &str, checksum: Option<u64>) -> PyResult<Bound<'py, PyAny>> {
        if !matches!(wait, "accepted" | "durable") {
            return Err(invalid(py, format!("wait is {wait:?}; it is \"accepted\" or \"durable\"")));
        }
        self.end_view(py);
        let payload = self.take(py)?.take().map_err(|error| raised(py, &error))?;
        let checksum = checksum.map(Checksum);
        let accepted = match wait {
            "accepted" => Some(waiting(py, || payload.commit_accepted(checksum))?),
            _ => waiting(py, || payload.commit(checksum)).map(|_durable| None)?,
        };
        let mut state = self.state();
        state.is_committed = true;
        state.accepted = accepted.map(|accepted| Owned::new(accepted, false));
        drop(state);
        convert::uuid(py, self.id)
    }

    /// Waits until what `commit(wait="accepted")` accepted is durable. When the server could not store it, this raises, and the
    /// payload is gone for everybody.
    fn durable(&self, py: Python<'_>) -> PyResult<()> {
        let accepted = self.state().accepted.take();
        match accepted {
            Some(accepted) => waiting(py, || accepted.take()?.durable().map(drop)),
            None if self.committed() => Ok(()),
            None => Err(exception(py, "FailedPrecondition", format!("payload {} is not committed", self.id))),
        }
    }

    /// Gives the space back, once no view of it is left. After a commit, and again: nothing happens.
    fn abort(&self, py: Python<'_>) {
        self.end_view(py);
        let payload = self.state().payload.take();
        drop(payload);
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, PyAny>) {
        self.abort(py);
    }

    fn __len__(&self) -> usize {
        self.bytes.length
    }

    fn __repr__(&self) -> String {
        let state = self.state();
        let what = match (&state.payload, state.is_committed) {
            (Some(_), _) => "being written",
            (None, true) => "committed",
            (None, false) => "given back",
        };
        format!("<Writer {} {} bytes, {what}>", self.id, self.bytes.length)
    }

    fn __reduce__(&self) -> PyResult<()> {
        Err(PyTypeError::new_err(
            "space that is being written belongs to its process; commit it, and pass its id",
        ))
    }

    // SAFETY: called by Python alone, with a view to fill; `export` keeps the allocation mapped for the view.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let keeper = slf.get().keep(slf.py())?;
        let bytes = slf.get().bytes;
        // SAFETY: the view is Python's; the bytes are this allocation's, mapped for writing as long as it lives, and no
        // Rust reference to them exists before `commit` has taken the allocation back.
        unsafe { buffer::export(slf.as_any(), view, flags, bytes, keeper) }
    }

    // SAFETY: called by Python alone, once for each view that `__getbuffer__` filled.
    unsafe fn __releasebuffer__(&self, view: *mut ffi::Py_buffer) {
        // SAFETY: `__getbuffer__` exported it with a keeper of this type.
        unsafe { buffer::release::<Owned<WritablePayload>>(view) }
    }
}
