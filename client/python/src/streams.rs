//! `Streams` and `Subscription`: payloads in order, as plain tuples; the other half of the package names their parts.

use std::sync::{Arc, Mutex, PoisonError};

use payload_client::{ClientError, Start};
use payload_types::record::{StreamEntry, StreamItem, StreamLimits, StreamName, Timestamp};
use pyo3::prelude::*;

use crate::convert;
use crate::error::{exception, invalid};
use crate::link::Link;

/// Nanoseconds of a second.
const NANOS: i64 = 1_000_000_000;

/// The streams of a server.
#[pyclass(frozen, module = "payload_manager._native")]
pub struct Streams {
    /// The client's.
    pub link: Arc<Link>,
}

/// A stream that is followed. `next` waits for what is appended.
#[pyclass(frozen, module = "payload_manager._native")]
pub struct Subscription {
    link: Arc<Link>,
    /// `None` while somebody waits, and once it was closed.
    entries: Mutex<Option<payload_client::Subscription>>,
}

/// Namespace and name.
type Name = (String, String);
/// Id, event time and duration in nanoseconds, tags.
type Item<'py> = (Bound<'py, PyAny>, Option<i64>, u64, Vec<(String, String)>);
/// Offset, id, appended at, event time and duration in nanoseconds, tags.
type Entry<'py> = (u64, Bound<'py, PyAny>, f64, Option<i64>, u64, Vec<(String, String)>);
/// Name, the offset that it wants next, when it committed.
type Group = (String, u64, f64);
/// Name, most entries, longest age, retains payloads, first offset, end.
type Described = (Name, Option<u64>, Option<f64>, bool, u64, u64);

#[pymethods]
impl Streams {
    #[pyo3(signature = (name, entries_max, age_max, retains_payloads, timeout))]
    fn create(
        &self,
        py: Python<'_>,
        name: Name,
        entries_max: Option<u64>,
        age_max: Option<f64>,
        retains_payloads: bool,
        timeout: Option<f64>,
    ) -> PyResult<()> {
        let limits = StreamLimits {
            entries_max,
            age_ms_max: convert::millis(py, "max_age", age_max)?,
            retains_payloads,
        };
        self.link.remote(py, timeout, async |client| client.stream_create(&named(name), limits).await)
    }

    #[pyo3(signature = (name, timeout))]
    fn delete(&self, py: Python<'_>, name: Name, timeout: Option<f64>) -> PyResult<()> {
        self.link.remote(py, timeout, async |client| client.stream_delete(&named(name)).await)
    }

    #[pyo3(signature = (name, items, timeout))]
    fn append(
        &self,
        py: Python<'_>,
        name: Name,
        items: Vec<Item<'_>>,
        timeout: Option<f64>,
    ) -> PyResult<(u64, u64)> {
        let items = items.into_iter().map(item).collect::<PyResult<Vec<_>>>()?;
        let offsets =
            self.link.remote(py, timeout, async |client| client.stream_append(&named(name), items).await)?;
        Ok((*offsets.start(), *offsets.end()))
    }

    #[pyo3(signature = (name, start, entries_max, timeout))]
    fn read<'py>(
        &self,
        py: Python<'py>,
        name: Name,
        start: u64,
        entries_max: u64,
        timeout: Option<f64>,
    ) -> PyResult<Vec<Entry<'py>>> {
        let call = async |client: &payload_client::Client| {
            client.stream_read(&named(name), start, entries_max, None).await
        };
        self.link.remote(py, timeout, call)?.into_iter().map(|found| entry(py, found)).collect()
    }

    #[pyo3(signature = (name, first, last, timeout))]
    fn range<'py>(
        &self,
        py: Python<'py>,
        name: Name,
        first: u64,
        last: u64,
        timeout: Option<f64>,
    ) -> PyResult<Vec<Entry<'py>>> {
        let call =
            async |client: &payload_client::Client| client.stream_range(&named(name), first..=last).await;
        self.link.remote(py, timeout, call)?.into_iter().map(|found| entry(py, found)).collect()
    }

    #[pyo3(signature = (name, group, offset, timeout))]
    fn commit(
        &self,
        py: Python<'_>,
        name: Name,
        group: &str,
        offset: u64,
        timeout: Option<f64>,
    ) -> PyResult<()> {
        self.link.remote(py, timeout, async |client| client.stream_commit(&named(name), group, offset).await)
    }

    #[pyo3(signature = (name, group, timeout))]
    fn committed(
        &self,
        py: Python<'_>,
        name: Name,
        group: &str,
        timeout: Option<f64>,
    ) -> PyResult<Option<u64>> {
        self.link.remote(py, timeout, async |client| client.stream_committed(&named(name), group).await)
    }

    #[pyo3(signature = (token, timeout))]
    fn list(
        &self,
        py: Python<'_>,
        token: Option<String>,
        timeout: Option<f64>,
    ) -> PyResult<(Vec<Described>, Option<String>)> {
        let page = self.link.remote(py, timeout, async |client| client.streams(0, token).await)?;
        let described = page.streams.into_iter().map(|info| {
            let age = info.limits.age_ms_max.map(|millis| millis as f64 / 1e3);
            let name = (info.stream.namespace, info.stream.name);
            (name, info.limits.entries_max, age, info.limits.retains_payloads, info.first, info.end)
        });
        Ok((described.collect(), page.next_page_token))
    }

    #[pyo3(signature = (name, token, timeout))]
    fn groups(
        &self,
        py: Python<'_>,
        name: Name,
        token: Option<String>,
        timeout: Option<f64>,
    ) -> PyResult<(Vec<Group>, Option<String>)> {
        let call = async |client: &payload_client::Client| client.stream_groups(&named(name), 0, token).await;
        let (groups, next) = self.link.remote(py, timeout, call)?;
        let shown = groups.into_iter().map(|group| (group.name, group.next, convert::seconds(group.at)));
        Ok((shown.collect(), next))
    }

    #[pyo3(signature = (name, group, timeout))]
    fn remove_group(&self, py: Python<'_>, name: Name, group: &str, timeout: Option<f64>) -> PyResult<()> {
        let call =
            async |client: &payload_client::Client| client.stream_group_remove(&named(name), group).await;
        self.link.remote(py, timeout, call).map(drop)
    }

    /// `start`: an offset, -1 for the beginning, -2 for what is appended from now on.
    #[pyo3(signature = (name, start, inflight_max, timeout))]
    fn subscribe(
        &self,
        py: Python<'_>,
        name: Name,
        start: i64,
        inflight_max: u32,
        timeout: Option<f64>,
    ) -> PyResult<Subscription> {
        let start = match u64::try_from(start) {
            Ok(offset) => Start::Offset(offset),
            Err(_) if start == -1 => Start::Beginning,
            Err(_) => Start::Latest,
        };
        let call = async |client: &payload_client::Client| {
            client.stream_subscribe(&named(name), start, inflight_max).await
        };
        let entries = self.link.remote(py, timeout, call)?;
        Ok(Subscription { link: Arc::clone(&self.link), entries: Mutex::new(Some(entries)) })
    }
}

#[pymethods]
impl Subscription {
    /// The next entry; `None` when there was none within so many seconds.
    #[pyo3(signature = (wait))]
    fn next<'py>(&self, py: Python<'py>, wait: Option<f64>) -> PyResult<Option<Entry<'py>>> {
        let wait = wait.map(|wait| convert::duration(py, "timeout", wait)).transpose()?;
        let taken = self.entries.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut entries) = taken else {
            let sentence = "the subscription was closed, or another thread waits for its next entry";
            return Err(exception(py, "Closed", sentence.to_owned()));
        };
        let next = async |_: &payload_client::Client| match wait {
            None => entries.next().await.map(Some),
            Some(wait) => match tokio::time::timeout(wait, entries.next()).await {
                Ok(entry) => entry.map(Some),
                Err(_) => Ok(None),
            },
        };
        let found = self.link.remote(py, None, next);
        *self.entries.lock().unwrap_or_else(PoisonError::into_inner) = Some(entries);
        found?.map(|found| entry(py, found)).transpose()
    }

    /// Ends it.
    fn close(&self, py: Python<'_>) {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner).take();
        let call = async |_: &payload_client::Client| {
            // Dropped where its runtime runs, so that the server hears of it at once.
            drop(entries);
            Ok::<_, ClientError>(())
        };
        // A client that was closed or lost has ended it, too.
        let _ended = self.link.remote(py, None, call);
    }
}

fn named((namespace, name): Name) -> StreamName {
    StreamName { namespace, name }
}

fn item((id, event_time_ns, duration_ns, mut tags): Item<'_>) -> PyResult<StreamItem> {
    tags.sort_unstable();
    let event_time = event_time_ns.map(|nanos| Timestamp {
        seconds: nanos.div_euclid(NANOS),
        nanoseconds: nanos.rem_euclid(NANOS) as u32,
    });
    Ok(StreamItem { payload: convert::id(&id)?, event_time, duration_ns, tags })
}

fn entry(py: Python<'_>, entry: StreamEntry) -> PyResult<Entry<'_>> {
    let nanos = |time: Timestamp| {
        let whole = time.seconds.checked_mul(NANOS)?;
        whole.checked_add(i64::from(time.nanoseconds))
    };
    let event_time = match entry.item.event_time {
        None => None,
        Some(time) => Some(nanos(time).ok_or_else(|| {
            invalid(py, format!("entry {} has an event time of another age", entry.offset))
        })?),
    };
    let id = convert::uuid(py, entry.item.payload)?;
    let item = entry.item;
    Ok((entry.offset, id, convert::seconds(entry.appended_at), event_time, item.duration_ns, item.tags))
}
