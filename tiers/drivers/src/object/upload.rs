//! One payload into the store: its bytes in parts, then its sidecar.
//!
//! ```text
//! journal.begin --> [create multipart --> journal.named] --> parts, several at once, each repeated on its own --> complete
//!                       '-- one part: a plain put            '-- any other error --> abort --> journal.settle
//!               --> size checked --> sidecar --> answered; the entry stays until the caller's row names the object
//! ```
//! Only what the journal names is ever replaced or deleted: an entry is made only where no object was, and where the store honours
//! If-None-Match, one that somebody else makes meanwhile is left alone too.

use std::collections::BTreeMap;
use std::sync::Arc;

use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStoreExt as _, PutMode, PutOptions, PutPayload};
use payload_types::{ByteCount, Checksum, Generation, PayloadId};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;

use super::codec::{Compression, Part, Source, produce};
use super::config::PARTS_MAX;
use super::core::Core;
use super::error::{ObjectError, ObjectErrorKind};
use super::journal::{Entry, EntryKind, PartDone};
use super::sidecar::{Archive, Sidecar};

/// What is to be stored.
pub struct Upload {
    /// Whose bytes.
    pub id: PayloadId,
    /// Which replica.
    pub generation: Generation,
    /// The bytes.
    pub source: Arc<dyn Source>,
    /// The checksum that they must have, when one is known.
    pub expected: Option<Checksum>,
    /// What the sidecar says of the payload, beyond its bytes.
    pub archive: Archive,
}

/// What was stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Uploaded {
    /// Of the payload's bytes.
    pub checksum: Checksum,
    /// The object's size: the payload's, unless it is compressed.
    pub stored: ByteCount,
    /// How it is stored.
    pub compression: Compression,
    /// The store's tag of this version, if it has any.
    pub etag: Option<String>,
    /// As clients are shown it.
    pub uri: String,
}

/// How an object is being written.
enum Writing {
    /// A cloud store's upload in parts.
    Named { store: Arc<dyn MultipartStore>, upload: String },
    /// A directory's: a draft beside it.
    Staged(Arc<Mutex<Box<dyn MultipartUpload>>>),
}

impl Core {
    /// See the module's description.
    pub(crate) async fn upload(self: &Arc<Self>, upload: Upload) -> Result<Uploaded, ObjectError> {
        let size = upload.source.size();
        let part_bytes = self.config.part_bytes.max(size.0.div_ceil(PARTS_MAX - 1).next_multiple_of(1 << 20));
        let compression = self.config.compression;
        let mut entry = Entry {
            id: upload.id,
            generation: upload.generation,
            kind: EntryKind::Upload,
            size: size.0,
            part_bytes,
            compression,
            upload: None,
            parts: BTreeMap::new(),
        };
        let key = self.store.key(upload.id);
        let former = self.journal.find(upload.id);
        let fresh = entry.clone();
        match former {
            Some(former) if former.goes_on_as(&entry) => entry = former,
            former => {
                // What an entry names is ours; anything else is left untouched, and no entry is made for it.
                match former {
                    Some(former) => self.abort_named(&former).await?,
                    None => self.must_not_exist(&key).await?,
                }
                self.noted(entry.clone(), |journal, entry| journal.begin(entry)).await?;
            }
        }
        let is_resumed = entry.upload.is_some();
        let mut sent = self.send(&upload, entry, &key).await;
        if is_resumed && sent.as_ref().is_err_and(|error| error.kind == ObjectErrorKind::Missing) {
            // The store does not know that upload any more.
            self.noted(fresh.clone(), |journal, entry| journal.begin(entry)).await?;
            sent = self.send(&upload, fresh, &key).await;
        }
        let (checksum, stored, etag) = match sent {
            Ok(sent) => sent,
            Err(error) => {
                // What cannot be undone now is undone by the next attempt or the sweep: its entry stays.
                if let Err(left) = self.undo(upload.id, &error).await {
                    tracing::warn!(id = %upload.id, "an upload that failed is left to the sweep: {left}");
                }
                return Err(error);
            }
        };
        let uri = self.store.uri(upload.id);
        let sidecar =
            Sidecar { id: upload.id, size, checksum, compression, uri: uri.clone(), archive: upload.archive };
        let text = PutPayload::from(sidecar.to_json());
        let key = self.store.sidecar_key(upload.id);
        self.call("storing a sidecar", || self.store.objects.put(&key, text.clone())).await?;
        Ok(Uploaded { checksum, stored, compression, etag, uri })
    }

    /// The bytes. Answers their checksum, and the object's size and tag.
    async fn send(
        self: &Arc<Self>,
        upload: &Upload,
        entry: Entry,
        key: &Path,
    ) -> Result<(Checksum, ByteCount, Option<String>), ObjectError> {
        let (sender, mut parts) = mpsc::channel(1);
        let (source, gate, runtime) =
            (Arc::clone(&upload.source), Arc::clone(&self.gate), self.runtime.clone());
        // Known before anything is read: what waits for a second part would wait for a second permit, with the first in hand.
        let is_whole = entry.size <= entry.part_bytes;
        let compression = entry.compression;
        let cut = if is_whole { whole_bytes(entry.size, compression) } else { entry.part_bytes };
        let reading = tokio::task::spawn_blocking(move || {
            produce(&*source, compression, cut as usize, &gate, &runtime, sender)
        });
        let read = async {
            let checksum = reading
                .await
                .map_err(|error| ObjectError::new(ObjectErrorKind::Source, error.to_string()))??;
            match upload.expected {
                Some(expected) if expected != checksum => {
                    let said = format!("{} has checksum {checksum}; it must be {expected}", upload.id);
                    Err(ObjectError::new(ObjectErrorKind::Source, said))
                }
                _ => Ok(checksum),
            }
        };
        let (checksum, stored, etag) = if is_whole {
            let only = parts.recv().await;
            let checksum = read.await?;
            let only =
                only.ok_or_else(|| ObjectError::new(ObjectErrorKind::Source, "there is nothing to store"))?;
            let etag = self.put_whole(key, &only).await?;
            (checksum, only.bytes.len() as u64, etag)
        } else {
            let writing = self.begin(&entry, key).await?;
            let sent = self.send_parts(&writing, &entry, key, &mut parts).await;
            // Whoever reads must not wait for a place in a channel that nobody empties.
            drop(parts);
            let (checksum, (ids, stored)) = match sent {
                Ok(sent) => (read.await?, sent),
                Err(error) => return Err(error),
            };
            (checksum, stored, self.complete(&writing, key, ids, stored).await?)
        };
        self.gate.stored(stored);
        self.check_size(key, stored).await?;
        Ok((checksum, ByteCount(stored), etag))
    }

    async fn put_whole(&self, key: &Path, part: &Part) -> Result<Option<String>, ObjectError> {
        let mode = if self.creates_only() { PutMode::Create } else { PutMode::Overwrite };
        let payload = PutPayload::from(part.bytes.clone());
        let put = self.call("storing an object", || {
            self.store.objects.put_opts(key, payload.clone(), PutOptions::from(mode.clone()))
        });
        match put.await {
            Ok(put) => Ok(put.e_tag),
            // The answer to our first attempt may have been lost, or it is what an earlier run of ours stored.
            Err(error)
                if error.kind == ObjectErrorKind::Conflict && self.is_stored(key, &part.bytes).await =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// True when the object is these very bytes.
    async fn is_stored(&self, key: &Path, bytes: &bytes::Bytes) -> bool {
        let read = self
            .call("reading an object back", || async { self.store.objects.get(key).await?.bytes().await });
        read.await.is_ok_and(|found| found == bytes)
    }

    async fn must_not_exist(&self, key: &Path) -> Result<(), ObjectError> {
        match self.call("looking whether an object exists", || self.store.objects.head(key)).await {
            Err(error) if error.kind == ObjectErrorKind::Missing => Ok(()),
            Err(error) => Err(error),
            Ok(_) => Err(ObjectError::new(
                ObjectErrorKind::Conflict,
                format!("object {key} exists, and nothing here says that it is ours; it was left untouched"),
            )),
        }
    }

    /// What was stored must have its full size.
    async fn check_size(&self, key: &Path, stored: u64) -> Result<(), ObjectError> {
        let found = self.call("looking at what was stored", || self.store.objects.head(key)).await?;
        if found.size == stored {
            return Ok(());
        }
        let said = format!("object {key} has {} bytes after {stored} were stored", found.size);
        Err(ObjectError::new(ObjectErrorKind::Changed, said))
    }

    async fn begin(&self, entry: &Entry, key: &Path) -> Result<Writing, ObjectError> {
        let Some(store) = &self.store.multipart else {
            let begun = self.call("beginning an object", || self.store.objects.put_multipart(key)).await?;
            return Ok(Writing::Staged(Arc::new(Mutex::new(begun))));
        };
        let store = Arc::clone(store);
        if let Some(upload) = &entry.upload {
            return Ok(Writing::Named { store, upload: upload.clone() });
        }
        let upload = self.call("beginning an upload in parts", || store.create_multipart(key)).await?;
        let (id, name) = (entry.id, upload.clone());
        if let Err(error) = self.noted((id, name), |journal, (id, name)| journal.named(id, &name)).await {
            self.call("aborting an upload", || store.abort_multipart(key, &upload)).await?;
            return Err(error);
        }
        Ok(Writing::Named { store, upload })
    }

    /// Sends parts as they come, as many at once as the gate lets through. Answers their ids in order, and their size.
    async fn send_parts(
        self: &Arc<Self>,
        writing: &Writing,
        entry: &Entry,
        key: &Path,
        parts: &mut mpsc::Receiver<Part>,
    ) -> Result<(Vec<PartId>, u64), ObjectError> {
        let (mut ids, mut stored, mut sending) = (BTreeMap::new(), 0, JoinSet::new());
        loop {
            let part = tokio::select! {
                biased;
                Some(done) = sending.join_next() => {
                    let (index, id) = finished(done)?;
                    ids.insert(index, id);
                    continue;
                }
                part = parts.recv() => match part {
                    Some(part) => part,
                    None => break,
                },
            };
            stored += part.bytes.len() as u64;
            let known = entry.parts.get(&part.index).filter(|done| done.hash == part.hash);
            if let (Some(done), Writing::Named { .. }) = (known, writing) {
                ids.insert(part.index, PartId { content_id: done.content_id.clone() });
                continue;
            }
            match writing {
                Writing::Named { store, upload } => {
                    let (core, store) = (Arc::clone(self), Arc::clone(store));
                    let (upload, key, id) = (upload.clone(), key.clone(), entry.id);
                    sending.spawn(async move { core.send_part(&*store, &upload, &key, id, part).await });
                }
                Writing::Staged(staged) => {
                    // Parts of a draft have their places by the order of these calls.
                    let written = staged.lock().await.put_part(PutPayload::from(part.bytes));
                    sending.spawn(async move {
                        let written = written.await;
                        written.map_err(|error| ObjectError::of_store("writing an object", &error))?;
                        Ok((part.index, PartId { content_id: String::new() }))
                    });
                }
            }
        }
        while let Some(done) = sending.join_next().await {
            let (index, id) = finished(done)?;
            ids.insert(index, id);
        }
        Ok((ids.into_values().collect(), stored))
    }

    async fn send_part(
        &self,
        store: &dyn MultipartStore,
        upload: &String,
        key: &Path,
        id: PayloadId,
        part: Part,
    ) -> Result<(u32, PartId), ObjectError> {
        let Part { index, bytes, hash } = part;
        let put = self.call("storing a part", || {
            store.put_part(key, upload, index as usize, PutPayload::from(bytes.clone()))
        });
        let stored = put.await?;
        let done = PartDone { content_id: stored.content_id.clone(), hash };
        self.noted((index, done), move |journal, (index, done)| journal.part(id, index, &done)).await?;
        Ok((index, stored))
    }

    async fn complete(
        &self,
        writing: &Writing,
        key: &Path,
        ids: Vec<PartId>,
        stored: u64,
    ) -> Result<Option<String>, ObjectError> {
        match writing {
            Writing::Named { store, upload } => {
                let done =
                    self.call("completing an upload", || store.complete_multipart(key, upload, ids.clone()));
                match done.await {
                    Ok(done) => Ok(done.e_tag),
                    // The answer to our first attempt may have been lost: nobody else knows this upload's name.
                    Err(error) if error.kind == ObjectErrorKind::Missing => {
                        let found =
                            self.call("looking at what was stored", || self.store.objects.head(key)).await?;
                        if found.size == stored { Ok(found.e_tag) } else { Err(error) }
                    }
                    Err(error) => Err(error),
                }
            }
            Writing::Staged(staged) => {
                let done = staged.lock().await.complete().await;
                Ok(done.map_err(|error| ObjectError::of_store("publishing an object", &error))?.e_tag)
            }
        }
    }

    /// Leaves nothing of an upload that failed, and its entry goes; unless the store cannot be asked.
    async fn undo(&self, id: PayloadId, error: &ObjectError) -> Result<(), ObjectError> {
        let Some(entry) = self.journal.find(id) else { return Ok(()) };
        self.abort_named(&entry).await?;
        // Somebody else's object, made since we looked, is not ours to delete.
        if error.kind != ObjectErrorKind::Conflict {
            self.remove_objects(id).await?;
        }
        self.noted(id, |journal, id| journal.settle(id)).await
    }

    /// Ends the upload in parts that an entry names.
    pub(crate) async fn abort_named(&self, entry: &Entry) -> Result<(), ObjectError> {
        let key = self.store.key(entry.id);
        match (&self.store.multipart, &entry.upload) {
            (Some(store), Some(upload)) => {
                let aborted = self.call("aborting an upload", || store.abort_multipart(&key, upload)).await;
                match aborted {
                    // It was completed, or aborted before.
                    Err(error) if error.kind == ObjectErrorKind::Missing => Ok(()),
                    other => other,
                }
            }
            _ => {
                self.remove_drafts(entry.id);
                Ok(())
            }
        }
    }
}

/// The most that a payload can become by compression: both formats store what does not shrink, with a few bytes for each block.
fn whole_bytes(size: u64, compression: Compression) -> u64 {
    if compression == Compression::None { size } else { size + size / 64 + (64 << 10) }
}

type Sent = Result<(u32, PartId), ObjectError>;

fn finished(done: Result<Sent, tokio::task::JoinError>) -> Sent {
    done.unwrap_or_else(|error| Err(ObjectError::new(ObjectErrorKind::Unavailable, error.to_string())))
}
