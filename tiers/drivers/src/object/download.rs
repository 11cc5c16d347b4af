//! One payload out of the store: ranges of its object, several at once, taken in order.
//!
//! ```text
//! ranges --get, each repeated on its own--> window (permits: parts in flight) --in order--> decompress, hash, write
//! ```
//! All ranges must be of one version of the object (ETag, size), and the whole must have the checksum that was committed: an object
//! that was replaced, cut or damaged behind our back is found, and the destination is then to be thrown away.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectMeta, ObjectStoreExt as _};
use payload_types::{ByteCount, Checksum, PayloadId};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::codec::{Compression, Fetched, Sink, consume};
use super::core::Core;
use super::error::{ObjectError, ObjectErrorKind};
use super::gate::Permit;

/// What is to be fetched.
pub struct Download {
    /// Whose bytes.
    pub id: PayloadId,
    /// How many they are, decompressed.
    pub size: ByteCount,
    /// The checksum that they must have, when one is known.
    pub expected: Option<Checksum>,
    /// How they are stored.
    pub compression: Compression,
    /// The tag of the version that was stored, when it is known.
    pub etag: Option<String>,
    /// Where they go. Holds unverified bytes until the answer is `Ok`.
    pub sink: Arc<dyn Sink>,
}

/// Which version of an object a range is of.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Version {
    size: u64,
    etag: Option<String>,
}

impl Version {
    fn of(meta: &ObjectMeta) -> Self {
        Self { size: meta.size, etag: meta.e_tag.clone() }
    }
}

/// A request whose end somebody waits for; ended when nobody does.
struct Fetching(JoinHandle<Result<(Fetched, Version), ObjectError>>);

impl Drop for Fetching {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Core {
    /// See the module's description. Answers the checksum of what was fetched.
    pub(crate) async fn download(self: &Arc<Self>, download: Download) -> Result<Checksum, ObjectError> {
        let Download { id, size, expected, compression, etag, sink } = download;
        let key = self.store.key(id);
        let version = if compression == Compression::None {
            Version { size: size.0, etag }
        } else {
            let found = self.call("looking at an object", || self.store.objects.head(&key)).await?;
            Version { size: found.size, etag: etag.or(found.e_tag) }
        };
        let (sender, parts) = mpsc::channel(1);
        let writing = tokio::task::spawn_blocking(move || consume(parts, compression, size, &*sink));
        let fetched = self.fetch(&key, version, sender).await;
        let written = writing.await;
        let written =
            written.map_err(|error| ObjectError::new(ObjectErrorKind::Destination, error.to_string()))?;
        // When writing fails nobody takes what is fetched, so its error is the one that counts; and the other way round.
        match (fetched, written) {
            (Err(error), _) if error.kind != ObjectErrorKind::Stopping => Err(error),
            (_, Err(error)) => Err(error),
            (Err(error), Ok(_)) => Err(error),
            (Ok(()), Ok(found)) => match expected {
                Some(expected) if expected != found => {
                    let said = format!("{id} on OBJECT has checksum {found}; it must be {expected}");
                    Err(ObjectError::new(ObjectErrorKind::Corrupt, said))
                }
                _ => Ok(found),
            },
        }
    }

    async fn fetch(
        self: &Arc<Self>,
        key: &Path,
        mut version: Version,
        sender: mpsc::Sender<Fetched>,
    ) -> Result<(), ObjectError> {
        let part_bytes = self.config.part_bytes;
        let count = version.size.div_ceil(part_bytes);
        let (mut window, mut next): (VecDeque<Fetching>, u64) = (VecDeque::new(), 0);
        while next < count || !window.is_empty() {
            let may_begin = next < count && window.len() < self.config.parts_in_flight;
            let first = window.front_mut();
            let permit = match first {
                None => Some(self.gate.acquire().await?),
                Some(first) => tokio::select! {
                    biased;
                    permit = self.gate.acquire(), if may_begin => Some(permit?),
                    fetched = &mut first.0 => {
                        window.pop_front();
                        let fetched = fetched.map_err(|error| ObjectError::new(ObjectErrorKind::Unavailable, error.to_string()))?;
                        let (fetched, found) = fetched?;
                        version.etag = version.etag.or_else(|| found.etag.clone());
                        if found != version {
                            return Err(changed(key, &found, &version));
                        }
                        if sender.send(fetched).await.is_err() {
                            return Err(ObjectError::new(ObjectErrorKind::Stopping, "nobody takes what is fetched"));
                        }
                        None
                    }
                },
            };
            if let Some(permit) = permit {
                let range = next * part_bytes..((next + 1) * part_bytes).min(version.size);
                next += 1;
                let (core, key) = (Arc::clone(self), key.clone());
                window.push_back(Fetching(tokio::spawn(async move {
                    core.fetch_range(&key, range, permit).await
                })));
            }
        }
        Ok(())
    }

    async fn fetch_range(
        &self,
        key: &Path,
        range: Range<u64>,
        permit: Permit,
    ) -> Result<(Fetched, Version), ObjectError> {
        let wanted = range.end - range.start;
        let got = self.call("fetching an object", || async {
            let options =
                GetOptions { range: Some(GetRange::Bounded(range.clone())), ..GetOptions::default() };
            let got = self.store.objects.get_opts(key, options).await?;
            let version = Version::of(&got.meta);
            // What was cut behind our back is not worth reading.
            let found = got.range.end - got.range.start;
            let mut chunks: Vec<Bytes> = Vec::new();
            if found == wanted {
                let mut stream = got.into_stream();
                while let Some(chunk) = stream.next().await {
                    chunks.push(chunk?);
                }
            }
            Ok((chunks, version))
        });
        let (chunks, version) = got.await?;
        let fetched: u64 = chunks.iter().map(|chunk| chunk.len() as u64).sum();
        if fetched != wanted {
            let said = format!("object {key} has {fetched} of the {wanted} bytes from {} on", range.start);
            return Err(ObjectError::new(ObjectErrorKind::Changed, said));
        }
        self.gate.fetched(fetched);
        Ok((Fetched { chunks, permit }, version))
    }
}

fn changed(key: &Path, found: &Version, stored: &Version) -> ObjectError {
    let said = if found.size == stored.size {
        format!("object {key} was replaced by another version")
    } else {
        format!("object {key} has {} bytes, and must have {}", found.size, stored.size)
    };
    ObjectError::new(ObjectErrorKind::Changed, said)
}
