//! The object store: S3 and compatible servers, Google's, Azure's, or a local directory, through the `object_store` crate.
//!
//! ```text
//! caller --submit (bounded)--> task on our own small runtime --parts--> store        answer: a closure, on that runtime
//!              '-- Full: the operation comes back            '-- blocking pool: pread, hash, compress, pwrite, journal
//! ```
//! Called by `front` (open, probe, sweep, close) and by whoever moves payloads (`upload`, `download`, `look`, `remove`). `submit`-like
//! calls never block; those that do say so.
//!
//! Promises: what is answered `Ok` is in the store with its checksum compared, or at its destination with its checksum compared;
//! every operation that was taken is answered exactly once, but for what `close` gives up; no more than `parts_in_flight` x `part_bytes` of payload bytes are in
//! memory; nothing is replaced or deleted that the journal does not name or the caller did not ask to delete.
//! Limits: `objects_in_flight` operations at once, `objects_waiting` behind them.
//!
//! This is the one place of the drivers with tokio: object_store is asynchronous. The runtime belongs to the driver.

mod codec;
mod config;
mod core;
mod download;
mod error;
mod gate;
mod journal;
mod list;
mod probe;
mod sidecar;
mod sweep;
mod upload;
mod wire;

use std::collections::HashSet;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use object_store::ObjectStoreExt as _;
use payload_types::{ByteCount, Checksum, Generation, PayloadId};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;

pub use self::codec::{Compression, FileRange, Sink, Source};
pub use self::config::{BACKOFF_MAX, ObjectConfig, PART_BYTES_MIN, S3Options};
pub use self::download::Download;
pub use self::error::{ObjectError, ObjectErrorKind};
pub use self::gate::{ObjectHealth, ObjectState};
pub use self::journal::{Entry, EntryKind, FileJournal, Journal, MemoryJournal, PartDone};
pub use self::list::Archived;
pub use self::probe::Probed;
pub use self::sidecar::{Archive, Parent, Policy, Sidecar};
pub use self::sweep::{Finding, Judged, Swept};
pub use self::upload::{Upload, Uploaded};

use self::core::Core;
use self::gate::{Gate, stopping};

/// Threads that speak to the store: one is busy with TLS at 64 MiB payloads, two never were.
const WORKERS: usize = 2;

/// The longest that signed URLs are good for: S3 takes no more than a week.
const SIGNED_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// What an object is, as the store says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Looked {
    /// Its size there.
    pub stored: ByteCount,
    /// The store's tag of this version.
    pub etag: Option<String>,
}

/// What a signed URL lets its holder do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// GET.
    Read,
    /// PUT.
    Write,
}

/// See the module's description.
pub struct ObjectDriver {
    core: Arc<Core>,
    /// `None` once it is closed.
    runtime: Option<Runtime>,
    turns: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
    /// Payloads with an upload or a removal under way: the sweep leaves them alone.
    under_way: Arc<Mutex<HashSet<PayloadId>>>,
}

impl ObjectDriver {
    /// Makes the driver; asks no network.
    ///
    /// # Errors
    /// `Config`: a sentence that names the key to change.
    ///
    /// # Panics
    /// When the system refuses threads.
    pub fn open(config: ObjectConfig, journal: Arc<dyn Journal>) -> Result<Self, ObjectError> {
        let store = config::open(&config)?;
        let objects = config.objects_in_flight.max(1);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKERS)
            // A reader or writer an object, one for the journal each, and those of local files.
            .max_blocking_threads(2 * objects + config.parts_in_flight + 4)
            .thread_name("pm-object")
            .enable_all()
            .build()
            .expect("the system has room for the driver threads");
        let core = Arc::new(Core {
            gate: Gate::new(config.parts_in_flight),
            store,
            journal,
            runtime: runtime.handle().clone(),
            honours_create: AtomicBool::new(false),
            config,
        });
        Ok(Self {
            core,
            runtime: Some(runtime),
            turns: Arc::new(Semaphore::new(objects)),
            waiting: Arc::default(),
            under_way: Arc::default(),
        })
    }

    /// Asks the store what it can do. Blocks; not on a thread of a tokio runtime.
    ///
    /// # Errors
    /// One sentence that names the key to change, or that the store is not up. Uploads may be tried all the same, and look first
    /// instead of relying on If-None-Match.
    pub fn probe(&self) -> Result<Probed, ObjectError> {
        self.core.runtime.block_on(self.core.probe())
    }

    /// Stores a payload and its sidecar. `done` is called once, on a thread of this driver: it must not block. The journal has an
    /// entry until [`settle`](Self::settle).
    ///
    /// # Errors
    /// `Busy`, `Unavailable`: nothing was begun, and `done` is never called.
    pub fn upload(
        &self,
        upload: Upload,
        done: impl FnOnce(Result<Uploaded, ObjectError>) + Send + 'static,
    ) -> Result<(), ObjectError> {
        let (core, id) = (Arc::clone(&self.core), upload.id);
        if self.lock_under_way().contains(&id) {
            let said =
                "something else is being done to the payload's object, which may be a sweep; try again later";
            return Err(ObjectError::new(ObjectErrorKind::Busy, said));
        }
        self.submit(Some(id), async move { core.upload(upload).await }, done)
    }

    /// Fetches a payload. As [`upload`](Self::upload).
    ///
    /// # Errors
    /// As [`upload`](Self::upload).
    pub fn download(
        &self,
        download: Download,
        done: impl FnOnce(Result<Checksum, ObjectError>) + Send + 'static,
    ) -> Result<(), ObjectError> {
        let core = Arc::clone(&self.core);
        self.submit(None, async move { core.download(download).await }, done)
    }

    /// Looks whether a payload's object exists, and how large it is: what an import is measured by.
    ///
    /// # Errors
    /// As [`upload`](Self::upload).
    pub fn look(
        &self,
        id: PayloadId,
        done: impl FnOnce(Result<Looked, ObjectError>) + Send + 'static,
    ) -> Result<(), ObjectError> {
        let core = Arc::clone(&self.core);
        let looked = async move {
            let key = core.store.key(id);
            let found = core.call("looking at an object", || core.store.objects.head(&key)).await?;
            Ok(Looked { stored: ByteCount(found.size), etag: found.e_tag })
        };
        self.submit(None, looked, done)
    }

    /// Reads a payload's sidecar.
    ///
    /// # Errors
    /// As [`upload`](Self::upload).
    pub fn sidecar(
        &self,
        id: PayloadId,
        done: impl FnOnce(Result<Sidecar, ObjectError>) + Send + 'static,
    ) -> Result<(), ObjectError> {
        let core = Arc::clone(&self.core);
        let read = async move {
            let key = core.store.sidecar_key(id);
            let read = || async { core.store.objects.get(&key).await?.bytes().await };
            Sidecar::from_json(&core.call("reading a sidecar", read).await?)
        };
        self.submit(None, read, done)
    }

    /// Writes a sidecar anew, for an object that a client stored (Import) or whose lineage grew.
    ///
    /// # Errors
    /// As [`upload`](Self::upload).
    pub fn explain(
        &self,
        sidecar: &Sidecar,
        done: impl FnOnce(Result<(), ObjectError>) + Send + 'static,
    ) -> Result<(), ObjectError> {
        let (core, id) = (Arc::clone(&self.core), sidecar.id);
        let text = object_store::PutPayload::from(sidecar.to_json());
        let written = async move {
            let key = core.store.sidecar_key(id);
            core.call("storing a sidecar", || core.store.objects.put(&key, text.clone())).await.map(drop)
        };
        self.submit(Some(id), written, done)
    }

    /// Deletes a payload's object and sidecar, and what an upload of it left. What is gone already is no error. The caller has told
    /// the journal before ([`EntryKind::Removal`]), in the transaction that removed the row.
    ///
    /// # Errors
    /// As [`upload`](Self::upload).
    pub fn remove(
        &self,
        id: PayloadId,
        done: impl FnOnce(Result<(), ObjectError>) + Send + 'static,
    ) -> Result<(), ObjectError> {
        let core = Arc::clone(&self.core);
        let removed = async move {
            if let Some(entry) = core.journal.find(id) {
                core.abort_named(&entry).await?;
            }
            core.remove_objects(id).await?;
            core.noted(id, |journal, id| journal.settle(id)).await
        };
        self.submit(Some(id), removed, done)
    }

    /// A row names the object now: its entry goes. Blocks for as long as the journal does.
    ///
    /// # Errors
    /// As the journal's; the entry then goes with the next sweep.
    pub fn settle(&self, id: PayloadId) -> std::io::Result<()> {
        self.core.journal.settle(id)
    }

    /// Ends and deletes what the journal names, no row does, and nothing is doing now. Blocks. `is_dry`: only says what it would do.
    /// `judge` may block, too.
    pub fn sweep(&self, is_dry: bool, judge: &(dyn Fn(&Entry) -> Judged + Send + Sync)) -> Vec<Swept> {
        let hold = |id| {
            let is_free = self.lock_under_way().insert(id);
            is_free.then(|| UnderWay { id, all: Arc::clone(&self.under_way) })
        };
        self.core.runtime.block_on(self.core.sweep(is_dry, judge, &hold))
    }

    /// Lists the sidecars below the prefix, and gives each payload that they speak of to `each`, until it says `false`. Blocks; for
    /// rebuilding a catalog alone.
    ///
    /// # Errors
    /// The store cannot be listed. What is wrong with one payload is given to `each`.
    pub fn archived(&self, each: &mut (dyn FnMut(Archived) -> bool + Send)) -> Result<(), ObjectError> {
        self.core.runtime.block_on(self.core.archived(each))
    }

    /// A URL by which its holder can read or write one payload's object, for a while, without credentials. Blocks only while
    /// credentials have to be renewed.
    ///
    /// # Errors
    /// `Config`: this kind of store cannot sign. Otherwise why there are no credentials.
    pub fn sign(&self, id: PayloadId, access: Access, good_for: Duration) -> Result<String, ObjectError> {
        let Some(signer) = &self.core.store.signer else {
            let said = "a local directory signs no URLs; read or write the path itself";
            return Err(ObjectError::new(ObjectErrorKind::Config, said));
        };
        let method = match access {
            Access::Read => http::Method::GET,
            Access::Write => http::Method::PUT,
        };
        let key = self.core.store.key(id);
        let signed = signer.signed_url(method, &key, good_for.min(SIGNED_MAX));
        let signed = self.core.runtime.block_on(signed);
        signed.map(String::from).map_err(|error| ObjectError::of_store("signing a URL", &error))
    }

    /// Where a payload's object is, or would be, as clients are shown it.
    pub fn uri(&self, id: PayloadId) -> String {
        self.core.store.uri(id)
    }

    /// How the store does.
    pub fn health(&self) -> ObjectHealth {
        let seen = &self.core.store.seen;
        ObjectHealth {
            requests_total: seen.requests.load(Relaxed),
            clock_skew_ms: seen.skew_ms.load(Relaxed),
            ..self.core.gate.health()
        }
    }

    /// The beginning of the end: what waits and what comes is answered `Stopping`, what is under way ends as it would.
    pub fn stop(&self) {
        self.turns.close();
        self.core.gate.close();
    }

    /// Notes that a payload's object is to be deleted by a later sweep: it could not be deleted now. Blocks for as long as the
    /// journal does.
    pub fn doom(&self, id: PayloadId, generation: Generation, size: ByteCount) {
        let entry = Entry {
            id,
            generation,
            kind: EntryKind::Removal,
            size: size.0,
            part_bytes: 0,
            compression: Compression::None,
            upload: self.core.journal.find(id).and_then(|entry| entry.upload),
            parts: std::collections::BTreeMap::new(),
        };
        if let Err(error) = self.core.journal.begin(entry) {
            tracing::warn!(%id, %error, "that an object is to be deleted could not be noted; the next start knows it all the same");
        }
    }

    /// Ends: what waits is answered `Stopping`, what is under way ends as it would, up to `patience`; then it is dropped, and its
    /// entries stay for the next start. Blocks.
    pub fn close(mut self, patience: Duration) {
        self.turns.close();
        let runtime = self.runtime.take().expect("closed once");
        let waiting = Arc::clone(&self.waiting);
        runtime.block_on(async {
            let empty = async {
                while waiting.load(Relaxed) > 0 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            if tokio::time::timeout(patience, empty).await.is_err() {
                tracing::warn!(
                    "object store operations were still under way after {patience:?}; they are dropped"
                );
            }
        });
        self.core.gate.close();
        runtime.shutdown_timeout(Duration::from_secs(1));
    }

    fn lock_under_way(&self) -> std::sync::MutexGuard<'_, HashSet<PayloadId>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn submit<T: Send + 'static>(
        &self,
        id: Option<PayloadId>,
        work: impl Future<Output = Result<T, ObjectError>> + Send + 'static,
        done: impl FnOnce(Result<T, ObjectError>) + Send + 'static,
    ) -> Result<(), ObjectError> {
        let limit = self.core.config.objects_in_flight + self.core.config.objects_waiting;
        let ticket = Ticket::take(&self.waiting, limit)?;
        self.core.gate.admit()?;
        let turns = Arc::clone(&self.turns);
        let held = id.map(|id| {
            self.lock_under_way().insert(id);
            UnderWay { id, all: Arc::clone(&self.under_way) }
        });
        self.core.runtime.spawn(async move {
            let worked = async {
                let _turn = turns.acquire_owned().await.map_err(|_| stopping())?;
                work.await
            };
            // A task of its own, so that a panic is an answer too.
            let result = tokio::spawn(worked).await;
            drop((held, ticket));
            done(result.unwrap_or_else(|error| {
                Err(ObjectError::new(
                    ObjectErrorKind::Stopping,
                    format!("the object store's driver failed: {error}"),
                ))
            }));
        });
        Ok(())
    }
}

/// Counts one operation for as long as it lasts.
struct Ticket(Arc<AtomicUsize>);

impl Ticket {
    fn take(count: &Arc<AtomicUsize>, limit: usize) -> Result<Self, ObjectError> {
        let ticket = Self(Arc::clone(count));
        if count.fetch_add(1, Relaxed) < limit {
            return Ok(ticket);
        }
        let said =
            format!("{limit} object store operations are under way or waiting already; try again later");
        Err(ObjectError::new(ObjectErrorKind::Busy, said))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

struct UnderWay {
    id: PayloadId,
    all: Arc<Mutex<HashSet<PayloadId>>>,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}
