//! Whole payloads in and out: put from a reader, read under a lease, copy to a writer.
//!
//! What `payloadctl`, the demo and the bench do most. The bytes are moved on a blocking thread of the runtime, so
//! that the connection is served meanwhile; they are hashed in the chunk in which they are moved, while it is in the
//! core's cache.
//!
//! ```text
//! reader --CHUNK_BYTES--> mapped payload --(same chunk)--> XXH3-64 --> Commit(checksum)
//! mapped lease --CHUNK_BYTES--> XXH3-64 --(same chunk)--> writer, then compared with the descriptor's checksum
//! ```

use std::io::{self, ErrorKind, Read, Write};

use payload_types::{ByteCount, Checksum, PayloadId};
use xxhash_rust::xxh3::Xxh3Default;

use crate::client::{AcquireOptions, AllocateOptions, Client};
use crate::descriptor::Descriptor;
use crate::error::ClientError;
use crate::mapping::CHUNK_BYTES;
use crate::payload::{ReadLease, WritablePayload};

impl Client {
    /// Stores the first `size` bytes of `reader` as a new payload, and commits it with their checksum.
    ///
    /// # Errors
    /// As [`Client::allocate`] and [`WritablePayload::commit`]; [`ClientError::Io`] when `reader` fails or ends
    /// early. Nothing is left behind then.
    pub async fn put_bytes<R>(
        &self,
        reader: R,
        size: ByteCount,
        options: &AllocateOptions,
    ) -> Result<Descriptor, ClientError>
    where
        R: Read + Send + 'static,
    {
        let mut payload = self.allocate(size).options(options).await?;
        let (payload, filled) = blocking(move || {
            let filled = payload.fill_from(reader);
            (payload, filled)
        })
        .await;
        match filled {
            Ok(checksum) => payload.commit(Some(checksum)).await,
            Err(error) => {
                payload.abandon().await;
                Err(error)
            }
        }
    }

    /// Leases a payload, lets `read` use its bytes where they lie, and releases it. `read` runs on a blocking thread.
    ///
    /// # Errors
    /// As [`Client::acquire`] and [`ReadLease::release`].
    pub async fn read_leased<T, F>(
        &self,
        id: PayloadId,
        options: &AcquireOptions,
        read: F,
    ) -> Result<T, ClientError>
    where
        T: Send + 'static,
        F: FnOnce(&ReadLease) -> T + Send + 'static,
    {
        // For `copy_to` and `verify`, which compare with it: over rings no checksum comes with a lease.
        let lease = self.acquire(id, options).await?.described(self).await?;
        let (lease, value) = blocking(move || {
            let value = read(&lease);
            (lease, value)
        })
        .await;
        lease.release().await?;
        Ok(value)
    }
}

impl WritablePayload {
    /// Fills the payload from `reader` and hashes what it wrote. Blocks.
    ///
    /// # Errors
    /// [`ClientError::Io`] when `reader` fails, or ends before the payload is full; [`ClientError::Mapping`] when the
    /// space is gone.
    pub fn fill_from(&mut self, mut reader: impl Read) -> Result<Checksum, ClientError> {
        let mapping = self.mapping();
        let mut hash = Xxh3Default::new();
        let size = mapping.len();
        let mut start = 0;
        while start < size {
            let end = size.min(start + CHUNK_BYTES);
            mapping.prepare(start..end)?;
            let chunk = &mut mapping[start..end];
            let read = read_fully(&mut reader, chunk).map_err(cannot_read)?;
            if read < chunk.len() {
                return Err(cannot_read(io::Error::new(
                    ErrorKind::UnexpectedEof,
                    format!("it ended after {} of {size} bytes; it shrank while it was read", start + read),
                )));
            }
            hash.update(chunk);
            start = end;
        }
        Ok(Checksum(hash.digest()))
    }
}

impl ReadLease {
    /// Copies the bytes to `writer`, and compares them with the checksum when the server knows one. Blocks. Returns
    /// the checksum of what was written.
    ///
    /// # Errors
    /// [`ClientError::Io`] when `writer` fails, [`ClientError::Mapping`] when bytes are gone, and
    /// [`ClientError::Checksum`] when they are not what was committed: what was written is then not to be used.
    pub fn copy_to(&self, mut writer: impl Write) -> Result<Checksum, ClientError> {
        self.scan(|chunk| writer.write_all(chunk).map_err(cannot_write))
    }

    /// Reads all bytes once, in place, and compares them with the checksum when the server knows one. Blocks.
    ///
    /// # Errors
    /// As [`ReadLease::copy_to`].
    pub fn verify(&self) -> Result<Checksum, ClientError> {
        self.scan(|_| Ok(()))
    }

    fn scan(&self, mut each: impl FnMut(&[u8]) -> Result<(), ClientError>) -> Result<Checksum, ClientError> {
        let mapping = self.mapping();
        let mut hash = Xxh3Default::new();
        for start in (0..mapping.len()).step_by(CHUNK_BYTES) {
            let end = mapping.len().min(start + CHUNK_BYTES);
            mapping.prepare(start..end)?;
            hash.update(&mapping[start..end]);
            // Bytes that vanish between the two make the system refuse to write them: that is not the writer's fault.
            each(&mapping[start..end]).map_err(|error| mapping.prepare(start..end).err().unwrap_or(error))?;
        }
        let found = Checksum(hash.digest());
        match self.descriptor().checksum {
            Some(expected) if expected != found => {
                Err(ClientError::Checksum { id: self.descriptor().id, expected, found })
            }
            _ => Ok(found),
        }
    }
}

/// Runs `work` on a blocking thread; a panic in it goes on here.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(failed) => std::panic::resume_unwind(failed.into_panic()),
    }
}

/// Reads until `chunk` is full or the reader ends.
pub(crate) fn read_fully(reader: &mut impl Read, chunk: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < chunk.len() {
        match reader.read(&mut chunk[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

pub(crate) fn cannot_read(reason: io::Error) -> ClientError {
    ClientError::Io { what: "cannot read the input", reason }
}

pub(crate) fn cannot_write(reason: io::Error) -> ClientError {
    ClientError::Io { what: "cannot write the output", reason }
}
