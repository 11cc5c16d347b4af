//! `Records`: metadata and lineage, as plain tuples; the other half of the package names their parts.

use std::sync::Arc;

use payload_client::{Direction, Parent};
use payload_types::WallMs;
use payload_types::record::{Metadata, MetadataEventKind, MetadataMode};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::convert;
use crate::link::Link;

/// What is kept beside payloads.
#[pyclass(frozen, module = "payload_manager._native")]
pub struct Records {
    /// The client's.
    pub link: Arc<Link>,
}

/// Data, schema, when.
type Current<'py> = (Bound<'py, PyBytes>, String, f64);
/// Number, kind, data, schema, when, source, reason, version.
type Event<'py> = (u64, &'static str, Bound<'py, PyBytes>, String, f64, String, String, String);
/// Child, parent, operation, role, parameters.
type Edge<'py> = (Bound<'py, PyAny>, Bound<'py, PyAny>, String, String, Bound<'py, PyBytes>);

#[pymethods]
impl Records {
    #[pyo3(signature = (id, timeout))]
    fn metadata<'py>(
        &self,
        py: Python<'py>,
        id: &Bound<'_, PyAny>,
        timeout: Option<f64>,
    ) -> PyResult<Option<Current<'py>>> {
        let id = convert::id(id)?;
        let found = self.link.remote(py, timeout, async |client| client.metadata(id).await)?;
        Ok(found.map(|(metadata, at)| current(py, metadata, at)))
    }

    #[pyo3(signature = (id, data, schema, merge, actor, reason, timeout))]
    #[expect(clippy::too_many_arguments, reason = "only the package calls it")]
    fn update<'py>(
        &self,
        py: Python<'py>,
        id: &Bound<'_, PyAny>,
        data: Vec<u8>,
        schema: String,
        merge: bool,
        actor: &str,
        reason: &str,
        timeout: Option<f64>,
    ) -> PyResult<Current<'py>> {
        let id = convert::id(id)?;
        let mode = if merge { MetadataMode::Merge } else { MetadataMode::Replace };
        let metadata = Metadata { data, schema };
        let call = async |client: &payload_client::Client| {
            client.update_metadata(id, mode, metadata, actor, reason).await
        };
        let (metadata, at) = self.link.remote(py, timeout, call)?;
        Ok(current(py, metadata, at))
    }

    #[pyo3(signature = (id, data, schema, source, version, timeout))]
    #[expect(clippy::too_many_arguments, reason = "only the package calls it")]
    fn note(
        &self,
        py: Python<'_>,
        id: &Bound<'_, PyAny>,
        data: Vec<u8>,
        schema: String,
        source: &str,
        version: &str,
        timeout: Option<f64>,
    ) -> PyResult<f64> {
        let (id, metadata) = (convert::id(id)?, Metadata { data, schema });
        let call = async |client: &payload_client::Client| {
            client.append_metadata_event(id, metadata, source, version).await
        };
        self.link.remote(py, timeout, call).map(convert::seconds)
    }

    #[pyo3(signature = (id, token, timeout))]
    fn history<'py>(
        &self,
        py: Python<'py>,
        id: &Bound<'_, PyAny>,
        token: Option<String>,
        timeout: Option<f64>,
    ) -> PyResult<(Vec<Event<'py>>, Option<String>)> {
        let id = convert::id(id)?;
        let page =
            self.link.remote(py, timeout, async |client| client.metadata_events(id, 0, token).await)?;
        let events = page.events.into_iter().map(|event| {
            let kind = match event.kind {
                MetadataEventKind::Replaced => "replaced",
                MetadataEventKind::Merged => "merged",
                MetadataEventKind::Noted => "noted",
            };
            let (data, schema, at) = current(py, event.metadata, event.at);
            (event.number, kind, data, schema, at, event.source, event.reason, event.version)
        });
        Ok((events.collect(), page.next_page_token))
    }

    #[pyo3(signature = (child, parents, timeout))]
    fn add_lineage(
        &self,
        py: Python<'_>,
        child: &Bound<'_, PyAny>,
        parents: Vec<(Bound<'_, PyAny>, String, String, Vec<u8>)>,
        timeout: Option<f64>,
    ) -> PyResult<()> {
        let child = convert::id(child)?;
        let parent = |(id, operation, role, parameters): (Bound<'_, PyAny>, String, String, Vec<u8>)| {
            Ok(Parent { id: convert::id(&id)?, operation, role, parameters })
        };
        let parents = parents.into_iter().map(parent).collect::<PyResult<Vec<_>>>()?;
        self.link.remote(py, timeout, async |client| client.add_lineage(child, parents).await)
    }

    #[pyo3(signature = (id, upstream, depth, timeout))]
    fn lineage<'py>(
        &self,
        py: Python<'py>,
        id: &Bound<'_, PyAny>,
        upstream: bool,
        depth: u32,
        timeout: Option<f64>,
    ) -> PyResult<Vec<Edge<'py>>> {
        let id = convert::id(id)?;
        let direction = if upstream { Direction::Upstream } else { Direction::Downstream };
        let edges =
            self.link.remote(py, timeout, async |client| client.lineage(id, direction, depth).await)?;
        let edge = |edge: payload_types::record::LineageEdge| {
            let (child, parent) = (convert::uuid(py, edge.child)?, convert::uuid(py, edge.parent)?);
            Ok((child, parent, edge.operation, edge.role, PyBytes::new(py, &edge.parameters)))
        };
        edges.into_iter().map(edge).collect()
    }
}

fn current(py: Python<'_>, metadata: Metadata, at: WallMs) -> Current<'_> {
    (PyBytes::new(py, &metadata.data), metadata.schema, convert::seconds(at))
}
