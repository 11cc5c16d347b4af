//! [`Allocating`]: an allocation that is being described. Both flavours build it alike, and each has its own way to ask for
//! it: a task awaits it, a blocking program opens it.
//!
//! ```text
//! async:    client.allocate(size).tier(..).ttl(..).await?    -> WritablePayload
//! blocking: client.allocate(size).tier(..).ttl(..).open()?   -> blocking::WritablePayload
//! ```
//!
//! Nothing is asked of the server before that.

use std::pin::Pin;
use std::time::Duration;

use payload_types::{ByteCount, EvictionPolicy, Memory, Tier};

use crate::client::{AllocateOptions, Client};
use crate::error::ClientError;
use crate::payload::WritablePayload;

/// An allocation that is being described: on RAM, without an expiry, unless a method says otherwise.
#[derive(Clone, Debug)]
#[must_use = "nothing is allocated before it is awaited, or opened"]
pub struct Allocating<'a, C> {
    pub(crate) client: &'a C,
    pub(crate) size: ByteCount,
    pub(crate) options: AllocateOptions,
}

impl<'a, C> Allocating<'a, C> {
    pub(crate) fn new(client: &'a C, size: ByteCount) -> Self {
        Self { client, size, options: AllocateOptions::default() }
    }

    /// On this tier: RAM or DISK, this process cannot write to the others.
    pub fn tier(self, tier: Tier) -> Self {
        Self { options: self.options.tier(tier), ..self }
    }

    /// With a life of so long after creation, in whole milliseconds.
    pub fn ttl(self, ttl: Duration) -> Self {
        Self { options: self.options.ttl(ttl), ..self }
    }

    /// With this policy: who is evicted first, and where to.
    pub fn policy(self, policy: EvictionPolicy) -> Self {
        Self { options: self.options.policy(policy), ..self }
    }

    /// Never evicted automatically.
    pub fn no_evict(self) -> Self {
        Self { options: AllocateOptions { no_evict: true, ..self.options }, ..self }
    }

    /// In this kind of memory, on RAM.
    pub fn memory(self, memory: Memory) -> Self {
        Self { options: self.options.memory(memory), ..self }
    }

    /// All of these at once, instead of what was said before.
    pub fn options(self, options: &AllocateOptions) -> Self {
        Self { options: options.clone(), ..self }
    }
}

/// Reserves the bytes and maps them.
///
/// # Errors
/// As [`Client::allocate_payload`], and [`ClientError::Mapping`] when the space cannot be mapped; it is given back then.
impl<'a> IntoFuture for Allocating<'a, Client> {
    type Output = Result<WritablePayload, ClientError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send + 'a>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { self.client.open(self.size, &self.options).await })
    }
}
