//! Payloads whose bytes lie in the object store: put there and fetched from there straight, past the server.
//!
//! ```text
//! put_object: Allocate(OBJECT) --> signed URL, or a path --PUT, hashed on the way--> Import(checksum) --> Descriptor
//! fetch:      Acquire --> on OBJECT: signed URL, or a path --GET, hashed on the way--> writer, then compared
//!                    '--> on another tier: mapped and copied, as `transfer` does
//! ```
//! Needs no credentials of the store: the server signs URLs that are good for [`URL_GOOD_FOR`]. Where it cannot sign there is
//! only a directory, which this process must be able to reach. Memory: [`CHUNKS_WAITING_MAX`] chunks.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::Duration;

use payload_types::{ByteCount, Checksum, PayloadId, Tier};
use payload_wire::pb::operations::v1 as operations;
use payload_wire::pb::runtime::v1 as runtime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use xxhash_rust::xxh3::Xxh3Default;

use crate::client::{
    AcquireOptions, AllocateOptions, Allocation, Client, encode_acquire, encode_allocation, encode_id,
};
use crate::descriptor::{Descriptor, Lease, Location};
use crate::error::ClientError;
use crate::mapping::CHUNK_BYTES;
use crate::transfer::{blocking, cannot_read, cannot_write, read_fully};

/// How long a signed URL is good for: the largest object that one takes, at 1.5 MB/s.
pub const URL_GOOD_FOR: Duration = Duration::from_secs(3600);

/// The most that one PUT may carry: S3 takes no more.
pub const PUT_BYTES_MAX: u64 = 5 << 30;

/// Mode of an object in a directory, less the umask: others read it, too.
const OBJECT_MODE: u32 = 0o666;

/// Chunks between the thread that reads or writes and the connection.
const CHUNKS_WAITING_MAX: usize = 4;

impl Client {
    /// Stores the first `size` bytes of `reader` as an object, past the server, and imports it as a new payload.
    ///
    /// # Errors
    /// As [`Client::allocate_payload`] and [`Client::import_payload`]; [`ClientError::Io`] when `reader` fails or ends early, or
    /// the store does not take the bytes. Nothing is left behind then.
    pub async fn put_object<R>(
        &self,
        reader: R,
        size: ByteCount,
        options: &AllocateOptions,
    ) -> Result<Descriptor, ClientError>
    where
        R: Read + Send + 'static,
    {
        let options = options.clone().tier(Tier::Object);
        let upload_url_ms = millis(URL_GOOD_FOR);
        let request = runtime::AllocatePayloadRequest { upload_url_ms, ..encode_allocation(size, &options) };
        let mut answer = self.answer(self.catalog().allocate_payload(self.request(request)).await)?;
        let url = std::mem::take(&mut answer.upload_url);
        let allocation = Allocation::decode(answer)?;
        let id = allocation.descriptor.id;
        let stored = match (url.is_empty(), directory_path(allocation.object_upload_path.as_deref())) {
            (false, _) if size.0 > PUT_BYTES_MAX => Err(ClientError::Input(format!(
                "{size} are more than one upload may carry ({}); put it on disk and spill it to object",
                ByteCount(PUT_BYTES_MAX)
            ))),
            (false, _) => upload(&url, reader, size).await,
            (true, Some(path)) => blocking(move || write_object(&path, reader, size)).await,
            (true, None) => Err(ClientError::Input(
                "the server signs no URLs for its object store, so it can only be written with the store's own tools; put it on disk and spill it to object".to_owned(),
            )),
        };
        let imported = match stored {
            Ok(checksum) => self.import_payload(id, size, Some(checksum)).await,
            Err(error) => Err(error),
        };
        if imported.is_err() {
            // The error at hand is the one to report; the server reclaims the allocation by itself, later.
            let _reclaimed_later = self.delete(id, true, None).await;
        }
        imported
    }

    /// Takes over an object that was stored for an allocation on OBJECT.
    ///
    /// # Errors
    /// As behaviour.md says of ImportPayload.
    pub async fn import_payload(
        &self,
        id: PayloadId,
        size: ByteCount,
        checksum: Option<Checksum>,
    ) -> Result<Descriptor, ClientError> {
        let request = runtime::ImportPayloadRequest {
            id: encode_id(id),
            size_bytes: size.0,
            checksum_xxh3_64: checksum.map(|checksum| checksum.0),
        };
        let answer = self.answer(self.catalog().import_payload(self.request(request)).await)?;
        Descriptor::decode(answer.payload_descriptor)
    }

    /// Copies a payload to `writer` from wherever it lies, and compares it with its checksum; from an object store straight,
    /// without bringing it in. Returns what was written.
    ///
    /// # Errors
    /// As [`Client::acquire_read_lease`]; [`ClientError::Io`] when the store does not give the bytes or `writer` fails, and
    /// [`ClientError::Checksum`] when they are not what was committed: what was written is then not to be used.
    pub async fn fetch<W>(&self, id: PayloadId, mut writer: W) -> Result<(Descriptor, Checksum), ClientError>
    where
        W: Write + Send + 'static,
    {
        let options = AcquireOptions { lease_ms_min: millis(URL_GOOD_FOR), ..AcquireOptions::default() };
        let request = runtime::AcquireReadLeaseRequest {
            object_url_ms: millis(URL_GOOD_FOR),
            ..encode_acquire(id, &options)
        };
        let mut answer = self.answer(self.data().acquire_read_lease(self.request(request)).await)?;
        let url = std::mem::take(&mut answer.object_url);
        let lease = Lease::decode(answer)?;
        let (lease_id, descriptor) = (lease.id, lease.descriptor.clone());
        let copied = match &descriptor.location {
            Some(Location::Object { .. }) if !url.is_empty() => download(&url, writer).await,
            Some(Location::Object { uri, .. }) => match directory_path(Some(uri)) {
                Some(path) => blocking(move || read_object(&path, writer)).await,
                None => Err(ClientError::Input(format!(
                    "the server signs no URLs for {uri}; promote the payload to disk, or read it with the store's own tools"
                ))),
            },
            _ => {
                let lease = self.map_lease(lease)?;
                blocking(move || {
                    let copied = lease.copy_to(&mut writer);
                    drop(lease);
                    copied
                })
                .await
            }
        };
        // It ends by itself where this fails.
        let _ended_later = self.release_lease(lease_id).await;
        match (copied?, descriptor.checksum) {
            (found, Some(expected)) if found != expected => {
                Err(ClientError::Checksum { id, expected, found })
            }
            (found, _) => Ok((descriptor, found)),
        }
    }

    /// Ends and deletes what earlier runs of the server began to put into the object store and no payload names; with `dry_run`
    /// only says what it would do.
    ///
    /// # Errors
    /// FAILED_PRECONDITION where the server has no object store.
    pub async fn sweep_objects(&self, dry_run: bool) -> Result<Vec<operations::SweptObject>, ClientError> {
        let request = self.request(operations::SweepObjectsRequest { dry_run });
        Ok(self.answer(self.operations().sweep_objects(request).await)?.objects)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The path of an object that lies in a directory.
fn directory_path(uri: Option<&str>) -> Option<PathBuf> {
    uri?.strip_prefix("file://").map(PathBuf::from)
}

/// Chunks of a reader, hashed as they are read.
fn read_chunks(
    mut reader: impl Read,
    size: ByteCount,
    mut each: impl FnMut(Vec<u8>) -> Result<(), ClientError>,
) -> Result<Checksum, ClientError> {
    let mut hash = Xxh3Default::new();
    let mut left = size.0;
    while left > 0 {
        let mut chunk = vec![0; left.min(CHUNK_BYTES as u64) as usize];
        let read = read_fully(&mut reader, &mut chunk).map_err(cannot_read)?;
        if read < chunk.len() {
            let done = size.0 - left + read as u64;
            return Err(cannot_read(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("it ended after {done} of {} bytes; it shrank while it was read", size.0),
            )));
        }
        hash.update(&chunk);
        left -= read as u64;
        each(chunk)?;
    }
    Ok(Checksum(hash.digest()))
}

/// PUTs the bytes to a signed URL.
async fn upload<R>(url: &str, reader: R, size: ByteCount) -> Result<Checksum, ClientError>
where
    R: Read + Send + 'static,
{
    let (chunks, body) = mpsc::channel::<io::Result<Vec<u8>>>(CHUNKS_WAITING_MAX);
    let reading = tokio::task::spawn_blocking(move || {
        let hung_up = || cannot_read(io::ErrorKind::BrokenPipe.into());
        let read = read_chunks(reader, size, |chunk| chunks.blocking_send(Ok(chunk)).map_err(|_| hung_up()));
        if read.is_err() {
            // So that the request ends, too; if it has ended already, nobody needs to hear it.
            drop(chunks.blocking_send(Err(io::ErrorKind::UnexpectedEof.into())));
        }
        read
    });
    let request = http()?.put(url).header("content-length", size.0);
    let body = ReceiverStream::new(body);
    let sent = request.body(reqwest::Body::wrap_stream(body)).send().await;
    let read = reading.await.map_err(|_| cannot_read(io::ErrorKind::Interrupted.into()))?;
    match sent {
        Ok(answer) if answer.status().is_success() => read,
        Ok(answer) => Err(refused(UPLOAD, answer).await),
        // What was read wrongly explains why the connection broke.
        Err(error) => match read {
            Err(ClientError::Io { what, reason }) if reason.kind() != io::ErrorKind::BrokenPipe => {
                Err(ClientError::Io { what, reason })
            }
            _ => Err(unreachable_store(UPLOAD, &error)),
        },
    }
}

/// GETs the bytes from a signed URL.
async fn download<W>(url: &str, mut writer: W) -> Result<Checksum, ClientError>
where
    W: Write + Send + 'static,
{
    let mut answer = http()?.get(url).send().await.map_err(|error| unreachable_store(DOWNLOAD, &error))?;
    if !answer.status().is_success() {
        return Err(refused(DOWNLOAD, answer).await);
    }
    let (sender, mut chunks) = mpsc::channel::<Vec<u8>>(CHUNKS_WAITING_MAX);
    let writing = tokio::task::spawn_blocking(move || {
        let mut hash = Xxh3Default::new();
        while let Some(chunk) = chunks.blocking_recv() {
            hash.update(&chunk);
            writer.write_all(&chunk).map_err(cannot_write)?;
        }
        writer.flush().map_err(cannot_write)?;
        Ok(Checksum(hash.digest()))
    });
    let mut broken = None;
    loop {
        match answer.chunk().await {
            Ok(Some(chunk)) if sender.send(chunk.to_vec()).await.is_ok() => {}
            // The writer has failed, and says why.
            Ok(Some(_)) | Ok(None) => break,
            Err(error) => {
                broken = Some(unreachable_store(DOWNLOAD, &error));
                break;
            }
        }
    }
    drop(sender);
    let written = writing.await.map_err(|_| cannot_write(io::ErrorKind::Interrupted.into()))?;
    broken.map_or(written, Err)
}

/// Writes an object into a directory's store: whole, or not at all.
fn write_object(path: &Path, reader: impl Read, size: ByteCount) -> Result<Checksum, ClientError> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let mut draft = tempfile::Builder::new()
        .permissions(std::fs::Permissions::from_mode(OBJECT_MODE))
        .tempfile_in(directory)
        .map_err(cannot_write)?;
    let checksum = read_chunks(reader, size, |chunk| draft.write_all(&chunk).map_err(cannot_write))?;
    draft.as_file().sync_all().map_err(cannot_write)?;
    draft.persist(path).map_err(|error| cannot_write(error.error))?;
    Ok(checksum)
}

fn read_object(path: &Path, mut writer: impl Write) -> Result<Checksum, ClientError> {
    let file = File::open(path).map_err(cannot_read)?;
    let size = ByteCount(file.metadata().map_err(cannot_read)?.len());
    let checksum = read_chunks(file, size, |chunk| writer.write_all(&chunk).map_err(cannot_write))?;
    writer.flush().map_err(cannot_write)?;
    Ok(checksum)
}

const UPLOAD: &str = "cannot store the bytes in the object store";
const DOWNLOAD: &str = "cannot fetch the bytes from the object store";

/// One for each call: connections are not worth keeping between payloads of this size.
fn http() -> Result<reqwest::Client, ClientError> {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Whoever installed another provider first keeps it.
        let _kept = rustls::crypto::ring::default_provider().install_default();
    });
    let made = reqwest::Client::builder().build();
    made.map_err(|error| ClientError::Io {
        what: "cannot speak HTTP",
        reason: io::Error::other(error.to_string()),
    })
}

/// What the store said, without the URL: it holds a signature.
async fn refused(what: &'static str, answer: reqwest::Response) -> ClientError {
    let status = answer.status();
    let text = answer.text().await.unwrap_or_default();
    let between = |from: &str, to: &str| Some(text.split_once(from)?.1.split_once(to)?.0.to_owned());
    let said =
        between("<Message>", "</Message>").or_else(|| between("<Code>", "</Code>")).unwrap_or_default();
    ClientError::Io { what, reason: io::Error::other(format!("it answered {status} {said}")) }
}

fn unreachable_store(what: &'static str, error: &reqwest::Error) -> ClientError {
    let mut reason = String::new();
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(error);
    while let Some(error) = cause {
        reason = error.to_string();
        cause = error.source();
    }
    if reason.is_empty() {
        reason = "the connection failed".to_owned();
    }
    ClientError::Io { what, reason: io::Error::other(reason) }
}
