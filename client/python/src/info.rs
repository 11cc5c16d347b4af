//! `Info`: what the server tells about a payload.

use payload_client::Descriptor;
use payload_types::PayloadId;
use payload_types::reply::Summary;
use pyo3::prelude::*;

use crate::convert;

/// What is known of a payload, as it was when it was asked for. What an answer does not tell is `None`.
#[pyclass(frozen, module = "payload_manager")]
#[derive(Clone, PartialEq)]
pub struct Info {
    id: PayloadId,
    /// `gpu`, `ram`, `disk` or `object`: the fastest tier that it is on.
    #[pyo3(get)]
    tier: &'static str,
    /// `allocated`, `active`, `durable` ...
    #[pyo3(get)]
    state: String,
    /// How many bytes it has.
    #[pyo3(get)]
    nbytes: u64,
    /// Grows with every change of tier, location or state. Not in listings.
    #[pyo3(get)]
    version: Option<u64>,
    /// When it was allocated, in seconds since 1970.
    #[pyo3(get)]
    created_at: Option<f64>,
    /// When its ttl passes, in seconds since 1970.
    #[pyo3(get)]
    expires_at: Option<f64>,
    /// The XXH3-64 of its bytes.
    #[pyo3(get)]
    checksum: Option<u64>,
    /// Leases that were held; in listings only.
    #[pyo3(get)]
    leases: Option<u32>,
    /// The node that holds it, where several share a catalog.
    #[pyo3(get)]
    node: Option<String>,
}

impl Info {
    /// Of a descriptor.
    pub fn of(descriptor: &Descriptor) -> Self {
        Self {
            id: descriptor.id,
            tier: convert::word(descriptor.tier),
            state: convert::state_word(descriptor.state),
            nbytes: descriptor.size.0,
            version: Some(descriptor.version.0),
            created_at: descriptor.created_at.map(convert::seconds),
            expires_at: descriptor.expires_at.map(convert::seconds),
            checksum: descriptor.checksum.map(|checksum| checksum.0),
            leases: None,
            node: descriptor.node.as_ref().map(|node| node.name.clone()),
        }
    }

    /// Of a row of a listing.
    pub fn of_row(row: &Summary, node: Option<String>) -> Self {
        Self {
            id: row.id,
            tier: convert::word(row.tier),
            state: convert::state_word(row.state),
            nbytes: row.size.0,
            version: None,
            created_at: Some(convert::seconds(row.created_at)),
            expires_at: row.expires_at.map(convert::seconds),
            checksum: None,
            leases: Some(row.leases),
            node: node.filter(|name| !name.is_empty()),
        }
    }
}

#[pymethods]
impl Info {
    /// The payload's id.
    #[getter]
    fn id<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        convert::uuid(py, self.id)
    }

    fn __repr__(&self) -> String {
        format!("<Info {} {} {} {} bytes>", self.id, self.tier, self.state, self.nbytes)
    }
}
