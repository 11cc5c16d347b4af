//! The native half of the Python package `payload_manager`: `payload_client::blocking` as Python classes.
//!
//! Built by maturin into `payload_manager._native`; `python/payload_manager` is the other half, which has what needs no
//! Rust (arrays, tables, `aio`, the errors' names). Without the feature `module` this crate is empty.
//!
//! ```text
//! python/payload_manager --> Client, Records, Streams --link--> payload_client::blocking --> rings, or gRPC
//!                            Writer, Payload (buffers)  `-- they hold their allocation or lease by themselves
//! ```
//!
//! Three rules hold everywhere. Whatever waits does so without the GIL (`link`). Bytes that Python can see stay mapped, and
//! leased, while a buffer of them exists (`buffer`). A process that was forked touches nothing of its parent's (`owned`).
//! `unsafe` stands in `buffer`, `owned` and in the methods of the two classes with a buffer, where Python's protocol demands it.
#![cfg_attr(not(feature = "module"), forbid(unsafe_code))]

#[cfg(feature = "module")]
mod buffer;
#[cfg(feature = "module")]
mod client;
#[cfg(feature = "module")]
mod convert;
#[cfg(feature = "module")]
mod error;
#[cfg(feature = "module")]
mod info;
#[cfg(feature = "module")]
mod link;
#[cfg(feature = "module")]
mod owned;
#[cfg(feature = "module")]
mod payload;
#[cfg(feature = "module")]
mod records;
#[cfg(feature = "module")]
mod streams;
#[cfg(feature = "module")]
mod writer;

/// `payload_manager._native`.
#[cfg(feature = "module")]
#[pyo3::pymodule(gil_used = true)]
mod _native {
    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(_module: &Bound<'_, PyModule>) -> PyResult<()> {
        super::owned::watch_forks()
    }

    #[pymodule_export]
    use super::client::Client;
    #[pymodule_export]
    use super::info::Info;
    #[pymodule_export]
    use super::payload::Payload;
    #[pymodule_export]
    use super::records::Records;
    #[pymodule_export]
    use super::streams::{Streams, Subscription};
    #[pymodule_export]
    use super::writer::Writer;
}
