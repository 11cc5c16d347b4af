//! The OBJECT tier as the front has it: the driver, what a probe of the store found, the sweep, and what clients ask of the
//! store itself (import, signed URLs).
//!
//! ```text
//! Node::start --> journal (catalog) --> ObjectDriver --> Drivers (copies)      thread: probe ... sweep what earlier runs left
//!                                            '--> ObjectTier --> Import, Allocate(OBJECT), Stats, SweepObjects
//! ```
//! The store need not be up at start: the probe is repeated until it succeeds, and what it said last is part of Stats.
//! Limits: operations are bounded by the driver; one sweep at a time.

mod archive;
mod import;
mod journal;
pub mod lease;
pub mod rebuild;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use payload_drivers::object::{
    Access, Entry, Finding, Journal, Judged, Looked, ObjectDriver, ObjectError, ObjectErrorKind, ObjectState,
    Probed, Swept,
};
use payload_types::limits::GENERATION_COUNTER_BITS;
use payload_types::reply::Reply;
use payload_types::request::Request;
use payload_types::{Epoch, ErrorKind, PayloadError, PayloadId, PayloadKey, PayloadState, Tier};
use payload_wire::pb::operations::v1 as pb;
use tokio::sync::oneshot;

pub use archive::Source;
pub use journal::CatalogJournal;

use crate::config::ObjectTierConfig;
use crate::services::router::NAMESPACE;

/// The pause before a probe that failed is repeated; it doubles up to the second.
const PROBE_AGAIN_MIN: Duration = Duration::from_secs(1);
/// See [`PROBE_AGAIN_MIN`].
const PROBE_AGAIN_MAX: Duration = Duration::from_secs(60);

/// What is under way when the server ends gets so long.
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);

/// What a probe said last.
type LastProbe = Arc<Mutex<Option<Result<Probed, ObjectError>>>>;

/// See the module. One a node.
pub struct ObjectTier {
    driver: Arc<ObjectDriver>,
    root: String,
    probed: LastProbe,
    source: Source,
    epoch: Epoch,
    /// One sweep at a time.
    sweeping: Mutex<()>,
    /// Whether objects are stored as they are.
    plain: Mutex<HashMap<PayloadId, bool>>,
    /// Dropped: the thread that probes ends, once the store has answered or timed out.
    stop: Mutex<Option<Sender<()>>>,
}

/// Makes the driver; asks no network.
///
/// # Errors
/// One sentence that names the key to change.
pub fn open(config: &ObjectTierConfig, journal: Arc<dyn Journal>) -> anyhow::Result<ObjectDriver> {
    Ok(ObjectDriver::open(config.driver()?, journal)?)
}

impl ObjectTier {
    /// Takes the driver over, and starts to probe the store. Shards behind `source` must run.
    ///
    /// # Panics
    /// When the system refuses a thread.
    pub fn start(
        driver: Arc<ObjectDriver>,
        config: &ObjectTierConfig,
        source: Source,
        epoch: Epoch,
    ) -> Arc<Self> {
        let tier = Arc::new(Self {
            driver,
            root: config.root.clone(),
            probed: LastProbe::default(),
            source,
            epoch,
            sweeping: Mutex::default(),
            plain: Mutex::default(),
            stop: Mutex::default(),
        });
        let (stop, stopped) = bounded(1);
        let probing = Arc::downgrade(&tier);
        std::thread::Builder::new()
            .name("object-probe".to_owned())
            .spawn(move || probe_until(&stopped, || Some(probing.upgrade()?.probe())))
            .expect("the system has room for one more thread at start");
        *lock(&tier.stop) = Some(stop);
        tier
    }

    /// Ends the probing; a request under way is not waited for.
    pub fn stop(&self) {
        drop(lock(&self.stop).take());
    }

    /// Ends the driver, where nobody else has it.
    pub fn close(self) {
        if let Some(driver) = Arc::into_inner(self.driver) {
            driver.close(CLOSE_PATIENCE);
        }
    }

    /// Probes once; what earlier runs left is swept once that succeeds. True: it is done.
    fn probe(&self) -> bool {
        let probed = self.driver.probe();
        match &probed {
            Ok(found) => {
                tracing::info!(root = %self.root, creates_only = found.honours_create, "the object store answers");
                let swept = self.sweep(false);
                if !swept.is_empty() {
                    tracing::info!(
                        objects = swept.len(),
                        "what earlier runs left in the object store was swept"
                    );
                }
            }
            Err(error) => tracing::warn!(root = %self.root, "the object store cannot be used: {error}"),
        }
        let is_done = probed.is_ok();
        *lock(&self.probed) = Some(probed);
        is_done
    }

    /// Ends and deletes what the journal names and no payload does. Blocks.
    pub fn sweep(&self, is_dry: bool) -> Vec<Swept> {
        let _one_at_a_time = lock(&self.sweeping);
        self.driver.sweep(is_dry, &|entry| self.judge(entry))
    }

    /// What is to become of an upload's entry: a payload may name its object, or be about to.
    fn judge(&self, entry: &Entry) -> Judged {
        let is_of_this_run = entry.generation.0 >> GENERATION_COUNTER_BITS == u64::from(self.epoch.0);
        let ask = Request::Explain { key: PayloadKey { namespace: NAMESPACE, id: entry.id } };
        match self.source.ask_shard(ask) {
            Some(Ok(Reply::Explained(found))) => {
                let is_replica = found.replicas.iter().any(|replica| replica.tier == Tier::Object);
                let is_awaited = found.descriptor.tier == Tier::Object
                    && found.descriptor.state == PayloadState::Allocated;
                if is_replica || is_awaited {
                    Judged::Named
                } else if is_of_this_run || found.work.is_some() {
                    Judged::Left
                } else {
                    Judged::Nobodys
                }
            }
            Some(Err(error)) if error.kind == ErrorKind::NotFound && !is_of_this_run => Judged::Nobodys,
            // A shard that cannot be asked now knows nothing against the object.
            _ => Judged::Left,
        }
    }

    /// Where a payload's object is, or would be.
    pub fn uri(&self, id: PayloadId) -> String {
        self.driver.uri(id)
    }

    /// What the store has of a payload.
    ///
    /// # Errors
    /// As [`unanswered`] says it; `None`: nothing.
    pub async fn look(&self, id: PayloadId) -> Result<Option<Looked>, PayloadError> {
        let (sender, answer) = oneshot::channel();
        self.driver.look(id, move |looked| drop(sender.send(looked))).map_err(unanswered)?;
        match answer.await {
            Ok(Ok(looked)) => Ok(Some(looked)),
            Ok(Err(error)) if error.kind == ObjectErrorKind::Missing => Ok(None),
            Ok(Err(error)) => Err(unanswered(error)),
            Err(_dropped) => Err(PayloadError::new(ErrorKind::Unavailable, "the server is stopping")),
        }
    }

    /// A URL by which a client may read or write a payload's object for a while; empty where this store signs none.
    ///
    /// # Errors
    /// There are no credentials to sign with now.
    pub async fn sign(
        self: &Arc<Self>,
        id: PayloadId,
        access: Access,
        good_for: Duration,
    ) -> Result<String, PayloadError> {
        if good_for.is_zero() {
            return Ok(String::new());
        }
        let tier = Arc::clone(self);
        let signed = tokio::task::spawn_blocking(move || tier.driver.sign(id, access, good_for)).await;
        match signed {
            Ok(Ok(url)) => Ok(url),
            Ok(Err(error)) if error.kind == ObjectErrorKind::Config => Ok(String::new()),
            Ok(Err(error)) => Err(unanswered(error)),
            Err(_stopped) => Err(PayloadError::new(ErrorKind::Unavailable, "the server is stopping")),
        }
    }

    /// How the store is doing.
    pub fn health(&self) -> pb::ObjectStoreHealth {
        let health = self.driver.health();
        let state = match health.state {
            ObjectState::Good => "healthy",
            ObjectState::Slow => "slow",
            ObjectState::Throttling => "throttling",
            ObjectState::Unreachable => "unreachable",
            ObjectState::Refused => "refused",
        };
        let (probed, refused) = match &*lock(&self.probed) {
            Some(Ok(found)) => (Some(found.clone()), None),
            Some(Err(error)) => (None, Some(error.clone())),
            None => (None, None),
        };
        let refused_at_start = refused.map(|refused| refused.message);
        let error = match &refused_at_start {
            Some(said) if health.error.is_empty() => said.clone(),
            _ => health.error,
        };
        pb::ObjectStoreHealth {
            state: if refused_at_start.is_some() && state == "healthy" { "refused" } else { state }
                .to_owned(),
            error,
            retry_ms: health.retry_ms,
            parts_limit: health.parts_limit as u64,
            parts_in_flight: health.parts_in_flight as u64,
            parts_in_flight_max: health.parts_in_flight_max as u64,
            requests_total: health.requests_total,
            failures_total: health.failures_total,
            throttled_total: health.throttled_total,
            refused_total: health.refused_total,
            slow_total: health.slow_total,
            stored_bytes_total: health.stored_bytes_total,
            fetched_bytes_total: health.fetched_bytes_total,
            clock_skew_ms: health.clock_skew_ms,
            root: self.root.clone(),
            probed: probed.is_some(),
            signs: probed.is_some_and(|probed| probed.signs),
        }
    }
}

/// Calls `probe` until it says that it is done, with growing pauses; ends when told to, or when `probe` says `None`.
fn probe_until(stopped: &Receiver<()>, probe: impl Fn() -> Option<bool>) {
    let mut pause = PROBE_AGAIN_MIN;
    while probe() == Some(false) && stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
        pause = PROBE_AGAIN_MAX.min(2 * pause);
    }
}

/// What a client is told when the store did not do as it was asked.
pub fn unanswered(error: ObjectError) -> PayloadError {
    let kind = match error.kind {
        ObjectErrorKind::Missing | ObjectErrorKind::Conflict => ErrorKind::FailedPrecondition,
        ObjectErrorKind::Changed | ObjectErrorKind::Corrupt => ErrorKind::DataLoss,
        ObjectErrorKind::Full | ObjectErrorKind::Busy => ErrorKind::ResourceExhausted,
        ObjectErrorKind::Throttled
        | ObjectErrorKind::Unavailable
        | ObjectErrorKind::Refused
        | ObjectErrorKind::Config
        | ObjectErrorKind::Source
        | ObjectErrorKind::Destination
        | ObjectErrorKind::Stopping => ErrorKind::Unavailable,
    };
    PayloadError::new(kind, format!("the object store: {}", error.message))
}

/// What a client is told who asks for the tier where no store is configured.
pub fn unconfigured() -> PayloadError {
    PayloadError::precondition(
        "the tier OBJECT is not configured on this node; set storage.object.root_path, or use another tier",
    )
}

/// What became of an entry, for whoever asked for the sweep.
pub fn swept(swept: &Swept) -> pb::SweptObject {
    let outcome = match swept.finding {
        Finding::Named => pb::SweptOutcome::Named,
        Finding::Unfinished => pb::SweptOutcome::Unfinished,
        Finding::Orphan => pb::SweptOutcome::Orphan,
    };
    pb::SweptObject {
        id: Some(payload_wire::ids::payload_id_to_pb(swept.id)),
        key: swept.key.clone(),
        size_bytes: swept.size,
        outcome: outcome.into(),
        error: swept.failed.clone().unwrap_or_default(),
    }
}

/// Nothing panics half-way through a change of what these guard.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
