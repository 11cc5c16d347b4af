//! A payload's bytes in this process: [`WritablePayload`] from Allocate to Commit, [`ReadLease`] from Acquire to
//! Release.
//!
//! ```text
//! Client::allocate -> WritablePayload (&mut [u8]) -> commit  -> Descriptor
//! Client::acquire  -> ReadLease (&[u8])           -> release
//! ```
//!
//! Both clean up when they are dropped half-way, in the background and as far as possible: an allocation that was
//! not committed is deleted, a lease is released. Where that fails the server's own timeouts do it.
//! The mapping is always gone before Commit is asked for, because only then can the server prove that nobody writes
//! any more (DESIGN §5). Limit: a gRPC lease ends at `expires_at`, also while it is held; the mapping stays readable
//! and its bytes the same, but the payload may be moved or deleted meanwhile.

use std::ops::{Deref, DerefMut};

use payload_types::{ByteCount, Checksum, ErrorKind, PayloadId, WallMs};
use tokio::runtime::Handle;

use crate::client::{AcquireOptions, AllocateOptions, Client};
use crate::descriptor::{Descriptor, Lease};
use crate::error::ClientError;
use crate::mapping::{ReadMapping, WriteMapping};

/// Reserved space that this process may write to.
#[derive(Debug)]
pub struct WritablePayload {
    client: Client,
    descriptor: Descriptor,
    runtime: Handle,
    /// `None` once Commit was asked for, or it was abandoned: nothing is left to clean up.
    mapping: Option<WriteMapping>,
}

/// A replica that is pinned and mapped.
#[derive(Debug)]
pub struct ReadLease {
    client: Client,
    lease: Lease,
    runtime: Handle,
    /// `None` once it was released.
    mapping: Option<ReadMapping>,
}

impl Client {
    /// Reserves `size` bytes and maps them. On RAM or DISK: this process cannot write to the others.
    ///
    /// # Errors
    /// As [`Client::allocate_payload`], and [`ClientError::Mapping`] when the space cannot be mapped; it is given
    /// back then.
    pub async fn allocate(
        &self,
        size: ByteCount,
        options: &AllocateOptions,
    ) -> Result<WritablePayload, ClientError> {
        let descriptor = self.allocate_payload(size, options).await?.descriptor;
        match map(&descriptor, WriteMapping::open) {
            Ok(mapping) => Ok(WritablePayload {
                client: self.clone(),
                descriptor,
                runtime: Handle::current(),
                mapping: Some(mapping),
            }),
            Err(error) => {
                self.discard(descriptor.id).await;
                Err(error)
            }
        }
    }

    /// Leases a replica and maps it.
    ///
    /// # Errors
    /// As [`Client::acquire_read_lease`], and [`ClientError::Mapping`] when the replica cannot be mapped; the lease
    /// is released then.
    pub async fn acquire(&self, id: PayloadId, options: &AcquireOptions) -> Result<ReadLease, ClientError> {
        let lease = self.acquire_read_lease(id, options).await?;
        match map(&lease.descriptor, ReadMapping::open) {
            Ok(mapping) => Ok(ReadLease {
                client: self.clone(),
                lease,
                runtime: Handle::current(),
                mapping: Some(mapping),
            }),
            Err(error) => {
                // The mapping's error is the one to report; an unreleased lease ends by itself.
                let _ended_later = self.release_lease(lease.id).await;
                Err(error)
            }
        }
    }

    /// Deletes an allocation that nobody else knows of. When that fails, `leases.allocation_timeout` reclaims it,
    /// and the caller has a better error to report.
    async fn discard(&self, id: PayloadId) {
        let _reclaimed_later = self.delete(id, true, None).await;
    }
}

impl WritablePayload {
    /// Its id, before anybody else may read it.
    pub fn id(&self) -> PayloadId {
        self.descriptor.id
    }

    /// As Allocate answered.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// Ends writing. `checksum` is the XXH3-64 of the bytes when the producer has it: the server then verifies every
    /// copy against what the producer meant, instead of against what it first read.
    ///
    /// # Errors
    /// As [`Client::commit_payload`]. When the server refuses, the allocation is deleted; when the outcome is unknown,
    /// it is left as it is.
    pub async fn commit(mut self, checksum: Option<Checksum>) -> Result<Descriptor, ClientError> {
        drop(self.mapping.take());
        let result = self.client.commit_payload(self.descriptor.id, checksum).await;
        let refused = [
            ErrorKind::InvalidArgument,
            ErrorKind::FailedPrecondition,
            ErrorKind::ResourceExhausted,
            ErrorKind::DataLoss,
        ];
        if result.as_ref().is_err_and(|error| error.kind().is_some_and(|kind| refused.contains(&kind))) {
            self.client.discard(self.descriptor.id).await;
        }
        result
    }

    /// Gives the space back, and waits until that is done as far as it can be.
    pub async fn abandon(mut self) {
        drop(self.mapping.take());
        self.client.discard(self.descriptor.id).await;
    }

    pub(crate) fn mapping(&mut self) -> &mut WriteMapping {
        self.mapping.as_mut().expect(MAPPED)
    }
}

impl ReadLease {
    /// What is leased: its location is the replica that is mapped.
    pub fn descriptor(&self) -> &Descriptor {
        &self.lease.descriptor
    }

    /// When the lease ends by itself, by the server's clock.
    pub fn expires_at(&self) -> WallMs {
        self.lease.expires_at
    }

    /// Unmaps the bytes and ends the lease.
    ///
    /// # Errors
    /// As [`Client::release_lease`]; the lease then ends by itself.
    pub async fn release(mut self) -> Result<(), ClientError> {
        drop(self.mapping.take());
        self.client.release_lease(self.lease.id).await
    }

    pub(crate) fn mapping(&self) -> &ReadMapping {
        self.mapping.as_ref().expect(MAPPED)
    }
}

/// Why the `Option` of either is `Some` whenever a caller can look.
const MAPPED: &str = "the mapping is taken only by methods that consume the value";

impl Deref for WritablePayload {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.mapping.as_ref().expect(MAPPED)
    }
}

impl DerefMut for WritablePayload {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.mapping()
    }
}

impl Deref for ReadLease {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.mapping()
    }
}

impl Drop for WritablePayload {
    fn drop(&mut self) {
        if self.mapping.take().is_some() {
            let (client, id) = (self.client.clone(), self.descriptor.id);
            self.runtime.spawn(async move { client.discard(id).await });
        }
    }
}

impl Drop for ReadLease {
    fn drop(&mut self) {
        if self.mapping.take().is_some() {
            let (client, id) = (self.client.clone(), self.lease.id);
            self.runtime.spawn(async move { client.release_lease(id).await });
        }
    }
}

fn map<M>(
    descriptor: &Descriptor,
    open: impl Fn(&crate::descriptor::Location) -> Result<M, ClientError>,
) -> Result<M, ClientError> {
    match &descriptor.location {
        Some(location) => open(location),
        None => Err(ClientError::Mapping(format!(
            "tier {} gives no location that this program can map; ask for RAM or DISK",
            descriptor.tier
        ))),
    }
}
