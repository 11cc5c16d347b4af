//! Python's buffer protocol: giving mapped bytes out, and taking bytes in.
//!
//! ```text
//! memoryview(payload) --export--> Py_buffer { address, internal: one Arc of what keeps the bytes }
//!                     <-release-- the Arc goes; the last one ends the lease
//! put(bytes_like)     --Source--> its address, pinned by Python while the `Source` lives
//! ```
//!
//! Invariant: every exported buffer owns a count of the value that keeps its bytes mapped and leased. So neither leaving a
//! `with` block nor dropping the Python object can take bytes away from a view.

use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::Arc;

use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use xxhash_rust::xxh3::Xxh3Default;

use crate::error::invalid;

/// Bytes that are copied and hashed at a time: they stay in a core's own cache between the two.
const CHUNK_BYTES: usize = 256 << 10;

/// Bytes as Python is to see them.
#[derive(Clone, Copy, Debug)]
pub struct Exported {
    /// Where they begin, in this process.
    pub address: usize,
    /// How many.
    pub length: usize,
    /// Whether Python may write to them.
    pub is_writable: bool,
}

/// Answers a consumer that wants a buffer of `exporter`.
///
/// # Errors
/// `BufferError` when it wants to write and may not.
///
/// # Safety
/// `view` is what Python passed to `bf_getbuffer`. The bytes are mapped as long as `keeper` lives, and `release` is called
/// with the same type, once, for the same `view`.
pub unsafe fn export<T: Send + Sync>(
    exporter: &Bound<'_, PyAny>,
    view: *mut ffi::Py_buffer,
    flags: c_int,
    bytes: Exported,
    keeper: Arc<T>,
) -> PyResult<()> {
    if view.is_null() {
        return Err(PyBufferError::new_err("a buffer was asked for without a place to describe it"));
    }
    let length =
        isize::try_from(bytes.length).map_err(|_| PyBufferError::new_err("it has too many bytes"))?;
    let address = bytes.address as *mut c_void;
    // SAFETY: `view` is writable (the caller vouches), `exporter` is a live object; the function fills the view, takes a
    // reference to the exporter, and refuses a writable view of read-only bytes.
    let filled = unsafe {
        ffi::PyBuffer_FillInfo(
            view,
            exporter.as_ptr(),
            address,
            length,
            c_int::from(!bytes.is_writable),
            flags,
        )
    };
    if filled != 0 {
        return Err(PyErr::fetch(exporter.py()));
    }
    // SAFETY: the view was filled; its field `internal` is the exporter's own.
    unsafe { (*view).internal = Arc::into_raw(keeper).cast_mut().cast() };
    Ok(())
}

/// Takes a buffer back.
///
/// # Safety
/// `view` was filled by [`export`] with a keeper of this type, and is given back once.
pub unsafe fn release<T>(view: *mut ffi::Py_buffer) {
    // SAFETY: `export` put the keeper's count there, and Python gives each view back once.
    drop(unsafe { Arc::from_raw((*view).internal.cast::<T>()) });
}

/// Bytes of somebody else's object, which Python keeps where they are while this lives.
pub struct Source {
    buffer: PyUntypedBuffer,
}

/// Where a source's bytes lie; usable without the GIL.
#[derive(Clone, Copy)]
pub struct Place {
    address: *const u8,
    length: usize,
}

// SAFETY: it is an address; reading it is `Place::copy_to`'s business.
unsafe impl Send for Place {}

impl Source {
    /// Of anything with a buffer, in one piece.
    ///
    /// # Errors
    /// `TypeError` for what has none, `InvalidArgument` for one in pieces.
    pub fn of(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let buffer = PyUntypedBuffer::get(object)?;
        if !buffer.is_c_contiguous() && !buffer.is_fortran_contiguous() {
            let sentence = "its bytes do not lie in one piece; give bytes(...) of it, or put_array";
            return Err(invalid(object.py(), sentence));
        }
        Ok(Self { buffer })
    }

    /// How many bytes it has.
    pub fn length(&self) -> usize {
        self.buffer.len_bytes()
    }

    /// Where they lie, while this lives.
    pub fn place(&self) -> Place {
        Place { address: self.buffer.buf_ptr().cast_const().cast(), length: self.buffer.len_bytes() }
    }
}

impl Place {
    /// Copies all bytes, and returns the XXH3-64 of what was written.
    ///
    /// # Panics
    /// When `target` has another length.
    ///
    /// # Safety
    /// The [`Source`] of this place lives meanwhile.
    pub unsafe fn copy_to(self, target: &mut [u8]) -> u64 {
        assert_eq!(self.length, target.len(), "as many bytes were allocated as the source has");
        let mut hash = Xxh3Default::new();
        let mut at = 0;
        for chunk in target.chunks_mut(CHUNK_BYTES) {
            // SAFETY: the source lives, hence its bytes are there; they overlap no allocation that nobody has seen yet.
            // Another thread of Python may write to them meanwhile, as with every function that copies a buffer without
            // the GIL: then the copy has some of both, and is hashed as it is.
            unsafe { ptr::copy_nonoverlapping(self.address.add(at), chunk.as_mut_ptr(), chunk.len()) };
            hash.update(chunk);
            at += chunk.len();
        }
        hash.digest()
    }
}
