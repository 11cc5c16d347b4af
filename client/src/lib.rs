//! The Rust client of Payload Manager.
//!
//! The control goes over gRPC, the bytes never do: they are written and read where they lie, in shared memory or a
//! file of the server's machine.
//!
//! ```no_run
//! # async fn example() -> Result<(), payload_client::ClientError> {
//! use payload_client::{AcquireOptions, Client};
//! use payload_types::ByteCount;
//!
//! let client = Client::connect("127.0.0.1:50051").await?;
//! let mut payload = client.allocate(ByteCount(5)).await?;
//! payload.copy_from_slice(b"hello");
//! let descriptor = payload.commit(None).await?;
//!
//! let lease = client.acquire(descriptor.id, &AcquireOptions::default()).await?;
//! assert_eq!(&*lease, b"hello");
//! lease.release().await?;
//! # Ok(())
//! # }
//! ```
//!
//! [`Client`] has a method for each RPC (`client`, `batch`, `session`, `metadata`, `lineage`, `streams`) and the ones that move bytes (`payload`, `transfer`); what the server
//! answers is decoded and checked by `descriptor`. [`blocking`] is the same for programs without an async runtime; on the server's
//! own host it goes through memory that both share ([`native`]) instead of gRPC. Only [`mapping`] holds unsafe code.
#![deny(unsafe_code)]

pub mod allocating;
pub mod batch;
pub mod blocking;
pub mod client;
pub mod connect;
pub mod descriptor;
pub mod error;
pub mod find;
pub mod interrupt;
pub mod lineage;
#[allow(unsafe_code)]
pub mod mapping;
pub mod metadata;
pub mod native;
pub mod objects;
pub mod operations;
pub mod payload;
pub mod session;
pub mod streams;
pub mod transfer;

pub use allocating::Allocating;
pub use batch::{BatchCommit, Each};
pub use client::{
    ADDRESS_DEFAULT, AcquireOptions, AllocateOptions, Allocation, Client, SpillOptions, Spilled,
};
pub use connect::{ConnectOptions, TlsOptions};
pub use descriptor::{Descriptor, Lease, Location, Node, OwnGpu, Page};
pub use error::ClientError;
pub use find::{FindOptions, FoundPage};
pub use lineage::{Direction, Parent};
pub use metadata::MetadataPage;
pub use native::Session;
pub use operations::NodeInfo;
pub use payload::{Accepted, ReadLease, WritablePayload};
pub use payload_types::Memory;
pub use session::LeaseSession;
pub use streams::{Start, StreamPage, Subscription};
