//! What clients ask of the store itself: taking over an object that was stored past the server, leases of objects, and sidecars that
//! tell what became known later.
//!
//! ```text
//! Import: size looked at --> bytes read for their checksum, unless the client gave it --> sidecar --> Commit at the shard
//! ```
//! Runs on the front's runtime; the driver moves the bytes.

use std::sync::Arc;

use payload_drivers::object::{Compression, Download, ObjectError, ObjectErrorKind, Sidecar};
use payload_drivers::objects::Nowhere;
use payload_types::reply::Reply;
use payload_types::request::Request;
use payload_types::{
    Checksum, Descriptor, ErrorKind, PayloadError, PayloadId, PayloadKey, PayloadState, Tier,
};
use payload_wire::decode::ImportParts;
use tokio::sync::oneshot;

use super::{ObjectTier, lock, unanswered};
use crate::deadline::Deadline;
use crate::services::router::{NAMESPACE, Router, mismatch};

/// Payloads of which it is remembered how they are stored; then all are forgotten, and looked up anew.
const KNOWN_MAX: usize = 65_536;

impl ObjectTier {
    /// Takes over an object that a client stored for an allocation.
    ///
    /// # Errors
    /// FAILED_PRECONDITION: not an allocation on OBJECT, nothing there, or another size; as [`unanswered`].
    pub async fn import(
        self: &Arc<Self>,
        router: &Router,
        ImportParts { key, size, checksum }: ImportParts,
        deadline: Option<Deadline>,
    ) -> Result<Descriptor, PayloadError> {
        let id = key.id;
        let Reply::Resolved(found) = router.ask_owner(Request::Resolve { key }, deadline).await? else {
            return Err(PayloadError::new(ErrorKind::Internal, "Resolve was answered with something else"));
        };
        if found.tier != Tier::Object || found.state != PayloadState::Allocated {
            return Err(PayloadError::precondition(format!(
                "payload {id} is {} on {}; only what is ALLOCATED on OBJECT is imported",
                found.state, found.tier
            )));
        }
        let uri = self.uri(id);
        let Some(looked) = self.look(id).await? else {
            return Err(PayloadError::precondition(format!(
                "nothing was uploaded to {uri}, where {} bytes belong; upload them, then import again",
                found.size.0
            )));
        };
        if looked.stored != found.size || size != found.size {
            return Err(PayloadError::precondition(format!(
                "payload {id} was allocated with {} bytes, the import says {}, and {uri} has {}; upload it anew, then import again",
                found.size.0, size.0, looked.stored.0
            )));
        }
        let checksum = match checksum {
            Some(checksum) => checksum,
            None => self.read(id, &found).await?,
        };
        self.tell(id, &found, checksum, Compression::None).await?;
        match router
            .ask_owner(Request::Commit { key, checksum: Some(checksum), batch: None }, deadline)
            .await?
        {
            Reply::Committed(descriptor) => Ok(descriptor),
            other => Err(mismatch("ImportPayload", &other)),
        }
    }

    /// Reads an object to learn its checksum.
    async fn read(&self, id: PayloadId, found: &Descriptor) -> Result<Checksum, PayloadError> {
        let download = Download {
            id,
            size: found.size,
            expected: None,
            compression: Compression::None,
            etag: None,
            sink: Arc::new(Nowhere),
        };
        let (sender, answer) = oneshot::channel();
        self.driver.download(download, move |done| drop(sender.send(done))).map_err(unanswered)?;
        heard(answer).await?.map_err(unanswered)
    }

    /// Writes the sidecar of an object.
    async fn tell(
        self: &Arc<Self>,
        id: PayloadId,
        found: &Descriptor,
        checksum: Checksum,
        compression: Compression,
    ) -> Result<(), PayloadError> {
        let tier = Arc::clone(self);
        let archive = tokio::task::spawn_blocking(move || tier.source.archive(id)).await;
        let archive = archive.map_err(|_stopped| stopping())?;
        let sidecar = Sidecar { id, size: found.size, checksum, compression, uri: self.uri(id), archive };
        let (sender, answer) = oneshot::channel();
        self.driver.explain(&sidecar, move |done| drop(sender.send(done))).map_err(unanswered)?;
        heard(answer).await?.map_err(unanswered)
    }

    /// The payload's lineage or metadata have changed: if it has an object, its sidecar is written anew, in the background and as
    /// far as possible.
    pub fn retell(self: &Arc<Self>, id: PayloadId) {
        let tier = Arc::clone(self);
        let work = async move {
            let asker = Arc::clone(&tier);
            let ask = Request::Explain { key: PayloadKey { namespace: NAMESPACE, id } };
            let found = tokio::task::spawn_blocking(move || asker.source.ask_shard(ask)).await;
            let Ok(Some(Ok(Reply::Explained(found)))) = found else { return };
            let is_object = |tier| tier == Tier::Object;
            if found.descriptor.state == PayloadState::Allocated
                || !found.replicas.iter().any(|replica| is_object(replica.tier))
            {
                return;
            }
            let told = match tier.sidecar(id).await {
                Ok(sidecar) => tier.tell(id, &found.descriptor, sidecar.checksum, sidecar.compression).await,
                Err(error) => Err(unanswered(error)),
            };
            if let Err(error) = told {
                tracing::warn!(%id, "the sidecar of an object could not be written anew: {error}");
            }
        };
        drop(tokio::spawn(work));
    }

    /// True when clients can read an object as it lies there: it is there, and not compressed. Remembered, as objects do not change.
    ///
    /// # Errors
    /// The store does not answer.
    pub async fn is_plain(&self, id: PayloadId) -> Result<bool, PayloadError> {
        if let Some(is_plain) = lock(&self.plain).get(&id) {
            return Ok(*is_plain);
        }
        let is_plain = match self.sidecar(id).await {
            Ok(sidecar) => sidecar.compression == Compression::None,
            // A client stored it and committed it itself, or it is gone.
            Err(error) if error.kind == ObjectErrorKind::Missing => match self.look(id).await? {
                Some(_) => true,
                None => return Ok(false),
            },
            Err(error) => return Err(unanswered(error)),
        };
        let mut known = lock(&self.plain);
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(id, is_plain);
        Ok(is_plain)
    }

    async fn sidecar(&self, id: PayloadId) -> Result<Sidecar, ObjectError> {
        let (sender, answer) = oneshot::channel();
        self.driver.sidecar(id, move |done| drop(sender.send(done)))?;
        answer.await.unwrap_or_else(|_dropped| {
            Err(ObjectError { kind: ObjectErrorKind::Stopping, message: "the server is stopping".to_owned() })
        })
    }
}

async fn heard<T>(answer: oneshot::Receiver<T>) -> Result<T, PayloadError> {
    answer.await.map_err(|_dropped| stopping())
}

fn stopping() -> PayloadError {
    PayloadError::new(ErrorKind::Unavailable, "the server is stopping; ask again once it is back")
}
