//! `Client`: a connection to a server, as Python sees it.
//!
//! The methods that begin with an underscore are for the other half of the package, which makes iterators and the like of
//! them.

use std::sync::Arc;

use payload_client::{AcquireOptions, AllocateOptions, FindOptions, Session, SpillOptions, Spilled};
use payload_types::{ByteCount, Checksum, PayloadId, SpillPolicy, Tier, Version, WallMs};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::buffer::Source;
use crate::convert;
use crate::error::invalid;
use crate::info::Info;
use crate::link::{Link, waiting};
use crate::payload::Payload;
use crate::records::Records;
use crate::streams::Streams;
use crate::writer::Writer;

/// A page of a listing: rows, the next page's token, how many there are in all.
type Rows = (Vec<Info>, Option<String>, Option<u64>);

/// A connection to a server. Threads may share one; a child that was forked needs one of its own.
#[pyclass(subclass, frozen, weakref, module = "payload_manager")]
pub struct Client {
    link: Arc<Link>,
    is_native: bool,
    has_arenas: bool,
}

#[pymethods]
impl Client {
    /// Connects to `host:port`, or to the path of a server's socket.
    #[new]
    #[pyo3(signature = (target="127.0.0.1:50051", *, timeout=None, native=None))]
    fn new(py: Python<'_>, target: &str, timeout: Option<f64>, native: Option<bool>) -> PyResult<Self> {
        let link = Link::connect(py, target.to_owned(), timeout, native)?;
        let client = link.client(py, None)?;
        let has_arenas = client.session().is_some_and(Session::has_arenas);
        Ok(Self { link: Arc::new(link), is_native: client.session().is_some(), has_arenas })
    }

    /// What it was connected to.
    #[getter]
    fn target(&self) -> &str {
        &self.link.target
    }

    /// True when leases and allocations go through shared memory instead of gRPC.
    #[getter]
    fn is_native(&self) -> bool {
        self.is_native
    }

    /// True when `allocate(memory="arena")` and `"sealed"` are to be had here.
    #[getter]
    fn has_arenas(&self) -> bool {
        self.has_arenas
    }

    /// Lets the connection go. Leases and writers that exist stay as they are.
    fn close(&self) {
        self.link.close();
    }

    /// Reserves space for a payload that is then written in place and committed.
    #[pyo3(signature = (nbytes, tier="ram", ttl=None, *, no_evict=false, priority=None, spill_target=None, min_residency=None, require_durable=false, memory=None, timeout=None))]
    #[expect(clippy::too_many_arguments, reason = "Python names them")]
    fn allocate(
        &self,
        py: Python<'_>,
        nbytes: &Bound<'_, PyAny>,
        tier: &str,
        ttl: Option<f64>,
        no_evict: bool,
        priority: Option<&str>,
        spill_target: Option<&str>,
        min_residency: Option<&str>,
        require_durable: bool,
        memory: Option<&str>,
        timeout: Option<f64>,
    ) -> PyResult<Writer> {
        let size = size(nbytes)?;
        let options = AllocateOptions {
            tier: convert::tier(py, "tier", tier)?,
            ttl_ms: convert::millis(py, "ttl", ttl)?,
            no_evict,
            policy: convert::policy(py, priority, spill_target, min_residency, require_durable)?,
            memory: convert::memory(py, memory)?,
        };
        let client = self.link.client(py, timeout)?;
        let payload = waiting(py, || client.allocate(size).options(&options).open())?;
        Ok(Writer::new(payload))
    }

    /// Leases a payload and maps it, read-only.
    #[pyo3(signature = (id, min_tier=None, timeout=None, *, promotion=None, lease=None, expected_version=None))]
    #[expect(clippy::too_many_arguments, reason = "Python names them")]
    fn acquire(
        &self,
        py: Python<'_>,
        id: &Bound<'_, PyAny>,
        min_tier: Option<&str>,
        timeout: Option<f64>,
        promotion: Option<&str>,
        lease: Option<f64>,
        expected_version: Option<u64>,
    ) -> PyResult<Payload> {
        let id = convert::id(id)?;
        let options = AcquireOptions {
            min_tier: convert::tier_or_none(py, "min_tier", min_tier)?,
            promotion_policy: convert::promotion(py, promotion)?,
            lease_ms_min: convert::millis(py, "lease", lease)?.unwrap_or_default(),
            expected_version: expected_version.map(Version),
            own_file: false,
        };
        let client = self.link.client(py, timeout)?;
        let lease = waiting(py, || client.acquire(id, &options))?;
        Ok(Payload::new(lease, self.is_native))
    }

    /// Copies bytes into a writer's space, commits it with their checksum, and returns the id.
    #[pyo3(signature = (data, tier="ram", ttl=None, *, no_evict=false, priority=None, spill_target=None, min_residency=None, require_durable=false, memory=None, timeout=None))]
    #[expect(clippy::too_many_arguments, reason = "Python names them")]
    fn put<'py>(
        &self,
        py: Python<'py>,
        data: &Bound<'_, PyAny>,
        tier: &str,
        ttl: Option<f64>,
        no_evict: bool,
        priority: Option<&str>,
        spill_target: Option<&str>,
        min_residency: Option<&str>,
        require_durable: bool,
        memory: Option<&str>,
        timeout: Option<f64>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let source = Source::of(data)?;
        let options = AllocateOptions {
            tier: convert::tier(py, "tier", tier)?,
            ttl_ms: convert::millis(py, "ttl", ttl)?,
            no_evict,
            policy: convert::policy(py, priority, spill_target, min_residency, require_durable)?,
            memory: convert::memory(py, memory)?,
        };
        let client = self.link.client(py, timeout)?;
        let (size, place) = (ByteCount(source.length() as u64), source.place());
        let id = waiting(py, move || {
            let mut payload = client.allocate(size).options(&options).open()?;
            // SAFETY: `source` lives until after this call.
            let checksum = unsafe { place.copy_to(&mut payload) };
            Ok(payload.commit(Some(Checksum(checksum)))?.id)
        });
        drop(source);
        convert::uuid(py, id?)
    }

    /// Tells what a payload is now. Nothing keeps it so: acquire it to read it.
    #[pyo3(signature = (id, *, timeout=None))]
    fn info(&self, py: Python<'_>, id: &Bound<'_, PyAny>, timeout: Option<f64>) -> PyResult<Info> {
        let (id, client) = (convert::id(id)?, self.link.client(py, timeout)?);
        Ok(Info::of(&waiting(py, || client.resolve(id))?))
    }

    /// Removes a payload; with `force` also one that somebody reads.
    #[pyo3(signature = (id, *, force=false, expected_version=None, timeout=None))]
    fn delete(
        &self,
        py: Python<'_>,
        id: &Bound<'_, PyAny>,
        force: bool,
        expected_version: Option<u64>,
        timeout: Option<f64>,
    ) -> PyResult<()> {
        let (id, client) = (convert::id(id)?, self.link.client(py, timeout)?);
        waiting(py, || client.delete(id, force, expected_version.map(Version)))
    }

    /// Brings a payload to a faster tier.
    #[pyo3(signature = (id, tier="ram", *, policy=None, expected_version=None, timeout=None))]
    fn promote(
        &self,
        py: Python<'_>,
        id: &Bound<'_, PyAny>,
        tier: &str,
        policy: Option<&str>,
        expected_version: Option<u64>,
        timeout: Option<f64>,
    ) -> PyResult<Info> {
        let (id, target) = (convert::id(id)?, convert::tier(py, "tier", tier)?);
        let (policy, client) = (convert::promotion(py, policy)?, self.link.client(py, timeout)?);
        let promoted = waiting(py, || client.promote(id, target, policy, expected_version.map(Version)))?;
        Ok(Info::of(&promoted))
    }

    /// Has a payload brought to a faster tier in the background.
    #[pyo3(signature = (id, tier="ram", *, timeout=None))]
    fn prefetch(
        &self,
        py: Python<'_>,
        id: &Bound<'_, PyAny>,
        tier: &str,
        timeout: Option<f64>,
    ) -> PyResult<()> {
        let (id, target) = (convert::id(id)?, convert::tier(py, "tier", tier)?);
        self.link.remote(py, timeout, async |client| client.prefetch(id, target).await)
    }

    /// Keeps a payload where it is, for so many seconds, or until `unpin`.
    #[pyo3(signature = (id, duration=None, *, timeout=None))]
    fn pin(
        &self,
        py: Python<'_>,
        id: &Bound<'_, PyAny>,
        duration: Option<f64>,
        timeout: Option<f64>,
    ) -> PyResult<()> {
        let (id, duration_ms) = (convert::id(id)?, convert::millis(py, "duration", duration)?);
        self.link.remote(py, timeout, async |client| client.pin(id, duration_ms).await)
    }

    /// Ends a pin; one that is not there is fine.
    #[pyo3(signature = (id, *, timeout=None))]
    fn unpin(&self, py: Python<'_>, id: &Bound<'_, PyAny>, timeout: Option<f64>) -> PyResult<()> {
        let id = convert::id(id)?;
        self.link.remote(py, timeout, async |client| client.unpin(id).await)
    }

    /// Moves payloads down: what became of each, as (info or None, why not or None).
    #[pyo3(signature = (ids, to, wait, wait_for_leases, fsync, expected_version, timeout))]
    #[expect(clippy::too_many_arguments, reason = "only the package calls it")]
    fn _spill(
        &self,
        py: Python<'_>,
        ids: Vec<Bound<'_, PyAny>>,
        to: Option<&str>,
        wait: bool,
        wait_for_leases: bool,
        fsync: bool,
        expected_version: Option<u64>,
        timeout: Option<f64>,
    ) -> PyResult<Vec<(Option<Info>, Option<String>)>> {
        let ids = ids.iter().map(convert::id).collect::<PyResult<Vec<PayloadId>>>()?;
        let options = SpillOptions {
            target: convert::target(py, "to", to)?,
            policy: Some(if wait { SpillPolicy::Blocking } else { SpillPolicy::BestEffort }),
            wait_for_leases,
            fsync,
            expected_version: expected_version.map(Version),
        };
        let client = self.link.client(py, timeout)?;
        let spilled = waiting(py, || client.spill(&ids, &options))?;
        let result = |spilled: Spilled| match spilled.result {
            Ok(descriptor) => (descriptor.as_ref().map(Info::of), None),
            Err(sentence) => (None, Some(sentence)),
        };
        Ok(spilled.into_iter().map(result).collect())
    }

    #[pyo3(signature = (tier, page_size, token, timeout))]
    fn _list_page(
        &self,
        py: Python<'_>,
        tier: Option<&str>,
        page_size: u16,
        token: Option<String>,
        timeout: Option<f64>,
    ) -> PyResult<Rows> {
        let tier = convert::tier_or_none(py, "tier", tier)?;
        let page = self.link.remote(py, timeout, async |client| client.list(tier, page_size, token).await)?;
        let rows = page.rows.iter().zip(page.nodes).map(|(row, node)| Info::of_row(row, Some(node)));
        Ok((rows.collect(), page.next_page_token, Some(page.total_count)))
    }

    #[pyo3(signature = (wish, token, timeout))]
    fn _find_page(
        &self,
        py: Python<'_>,
        wish: &Bound<'_, PyDict>,
        token: Option<String>,
        timeout: Option<f64>,
    ) -> PyResult<Rows> {
        let options = find_options(wish)?;
        let page = self.link.remote(py, timeout, async |client| client.find(&options, token).await)?;
        let rows = page.rows.iter().map(|row| Info::of_row(row, None));
        Ok((rows.collect(), page.next_page_token, None))
    }

    /// What each tier holds, and what the node does: `{"tiers": {"ram": {...}}, "node": {...}}`.
    #[pyo3(signature = (*, timeout=None))]
    fn stats<'py>(&self, py: Python<'py>, timeout: Option<f64>) -> PyResult<Bound<'py, PyDict>> {
        let stats = self.link.remote(py, timeout, async |client| client.accounting().await)?;
        let (all, tiers) = (PyDict::new(py), PyDict::new(py));
        for tier in &stats.tiers {
            let shown = PyDict::new(py);
            let figures = [
                ("payloads", tier.payloads),
                ("capacity_bytes", tier.capacity_bytes),
                ("allocated_bytes", tier.allocated_bytes),
                ("free_bytes", tier.free_bytes),
                ("logical_bytes", tier.logical_bytes),
                ("uncommitted_bytes", tier.uncommitted_bytes),
                ("leased_bytes", tier.leased_bytes),
                ("pinned_bytes", tier.pinned_bytes),
                ("spilling_bytes", tier.spilling_bytes),
                ("limbo_bytes", tier.limbo_bytes),
                ("peak_bytes", tier.peak_bytes),
                ("evictions_total", tier.evictions_total),
            ];
            for (name, figure) in figures {
                shown.set_item(name, figure)?;
            }
            let known = Tier::from_number(tier.tier.into());
            tiers.set_item(known.map_or("unknown", convert::word), shown)?;
        }
        all.set_item("tiers", tiers)?;
        let node = PyDict::new(py);
        if let Some(shown) = &stats.node {
            node.set_item("leases", shown.leases)?;
            node.set_item("leases_granted_total", shown.leases_granted_total)?;
            node.set_item("operations", shown.operations)?;
            node.set_item("requests_parked", shown.requests_parked)?;
            node.set_item("native_sessions", shown.native_sessions)?;
            node.set_item("direct_leases", shown.direct_leases)?;
            node.set_item("uptime", shown.uptime_ms as f64 / 1e3)?;
        }
        all.set_item("node", node)?;
        Ok(all)
    }

    /// Metadata and lineage.
    #[getter]
    fn _records(&self) -> Records {
        Records { link: Arc::clone(&self.link) }
    }

    #[getter]
    fn _streams(&self) -> Streams {
        Streams { link: Arc::clone(&self.link) }
    }

    fn __repr__(&self) -> String {
        let way = if self.is_native { "native" } else { "gRPC" };
        format!("<Client of {}, {way}>", self.link.target)
    }
}

/// A payload's size.
fn size(nbytes: &Bound<'_, PyAny>) -> PyResult<ByteCount> {
    let wrong = |_| invalid(nbytes.py(), format!("nbytes is {nbytes}; it is a whole number, from 1 on"));
    nbytes.extract::<u64>().map(ByteCount).map_err(wrong)
}

fn find_options(wish: &Bound<'_, PyDict>) -> PyResult<FindOptions> {
    let py = wish.py();
    fn get<'py, T: FromPyObjectOwned<'py>>(wish: &Bound<'py, PyDict>, name: &str) -> PyResult<Option<T>> {
        let value = wish.get_item(name)?.filter(|value| !value.is_none());
        value.map(|value| value.extract::<T>().map_err(Into::into)).transpose()
    }
    let time = |name: &str| -> PyResult<Option<WallMs>> {
        let seconds: Option<f64> = get(wish, name)?;
        let millis =
            seconds.map(|seconds| Ok::<_, PyErr>(convert::duration(py, name, seconds)?.as_millis() as u64));
        Ok(millis.transpose()?.map(WallMs::from_millis))
    };
    let (tier, state): (Option<String>, Option<String>) = (get(wish, "tier")?, get(wish, "state")?);
    Ok(FindOptions {
        tier: convert::tier_or_none(py, "tier", tier.as_deref())?,
        state: state.map(|state| convert::state(py, &state)).transpose()?,
        created_from: time("created_from")?,
        created_before: time("created_before")?,
        size_min: get(wish, "size_min")?,
        size_max: get(wish, "size_max")?,
        schema: get(wish, "schema")?,
        fields: get(wish, "fields")?.unwrap_or_default(),
        tags: get(wish, "tags")?.unwrap_or_default(),
        oldest_first: get(wish, "oldest_first")?.unwrap_or_default(),
        page_size: get(wish, "page_size")?.unwrap_or_default(),
    })
}
