//! What all operations on a store share: its handle, the gate, the journal, and how one request is repeated.

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use object_store::ObjectStoreExt as _;
use payload_types::PayloadId;
use tokio::runtime::Handle;

use super::config::{BACKOFF_MAX, ObjectConfig, Store};
use super::error::{ObjectError, ObjectErrorKind};
use super::gate::Gate;
use super::journal::Journal;

/// Drafts of one name that a directory's store may have left: it numbers them from 1 on.
const DRAFTS_MAX: usize = 8;

/// See the module's description.
pub(crate) struct Core {
    pub(crate) config: ObjectConfig,
    pub(crate) store: Store,
    pub(crate) gate: Arc<Gate>,
    pub(crate) journal: Arc<dyn Journal>,
    pub(crate) runtime: Handle,
    /// Proven by a probe: the store refuses to replace what exists when it is asked to.
    pub(crate) honours_create: AtomicBool,
}

impl Core {
    /// True when a put can be told not to replace anything.
    pub(crate) fn creates_only(&self) -> bool {
        self.store.multipart.is_none() || self.honours_create.load(Relaxed)
    }

    /// Makes a request until it succeeds, fails for good, or was tried often enough. Waits while the store is left alone.
    pub(crate) async fn call<T, F>(
        &self,
        tried: &str,
        mut request: impl FnMut() -> F,
    ) -> Result<T, ObjectError>
    where
        F: Future<Output = object_store::Result<T>>,
    {
        let mut pause = self.config.backoff;
        let mut attempt = 1;
        loop {
            let began = Instant::now();
            let error = match request().await {
                Ok(answer) => {
                    self.gate.succeeded(began.elapsed());
                    return Ok(answer);
                }
                Err(error) => ObjectError::of_store(tried, &error),
            };
            self.gate.failed(&error);
            if !error.is_worth_another_try() || attempt >= self.config.attempts {
                return Err(error);
            }
            attempt += 1;
            tokio::time::sleep(jittered(pause).max(self.gate.pause_left())).await;
            pause = (pause * 2).min(BACKOFF_MAX);
        }
    }

    /// Tells the journal, on a thread that may block.
    pub(crate) async fn noted<T: Send + 'static>(
        &self,
        what: T,
        tell: impl FnOnce(&dyn Journal, T) -> io::Result<()> + Send + 'static,
    ) -> Result<(), ObjectError> {
        let journal = Arc::clone(&self.journal);
        let told = tokio::task::spawn_blocking(move || tell(&*journal, what)).await;
        let told = told.unwrap_or_else(|error| Err(io::Error::other(error)));
        told.map_err(|error| {
            ObjectError::of_io(ObjectErrorKind::Source, "keeping the upload journal", &error)
        })
    }

    /// Deletes a payload's object and sidecar; the bytes first, so that no sidecar vouches for what is gone for longer than that.
    pub(crate) async fn remove_objects(&self, id: PayloadId) -> Result<(), ObjectError> {
        for key in [self.store.key(id), self.store.sidecar_key(id)] {
            match self.call("deleting an object", || self.store.objects.delete(&key)).await {
                Err(error) if error.kind == ObjectErrorKind::Missing => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// A directory's unfinished drafts of a payload's object.
    pub(crate) fn drafts(&self, id: PayloadId) -> Vec<PathBuf> {
        let Some(directory) = &self.store.directory else { return Vec::new() };
        let named = (1..=DRAFTS_MAX).map(|number| directory.join(format!("{id}.bin#{number}")));
        named.filter(|path| path.exists()).collect()
    }

    pub(crate) fn remove_drafts(&self, id: PayloadId) {
        for path in self.drafts(id) {
            if let Err(error) = std::fs::remove_file(&path) {
                tracing::warn!("removing {}: {error}", path.display());
            }
        }
    }
}

/// Up to half as long again, so that parts that failed together do not come back together. The clock's last digits do.
fn jittered(pause: Duration) -> Duration {
    let digits = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |now| now.subsec_nanos());
    pause + pause.mul_f64(f64::from(digits % 1024) / 2048.0)
}
