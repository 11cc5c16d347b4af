//! The catalog: what is durably known about payloads.
//!
//! ```text
//!  shards --CatalogOp--> [bounded FIFO] --batch--> Writer thread --one transaction--> Store (memory, SQLite)
//!    ^                                                  |
//!    +-------------- CatalogAck, after COMMIT ----------+          boot: Store --rows--> recovery --> shards
//! ```
//!
//! Owns the [`Store`] trait and its implementations, the migrations (the only DDL there is), the group-commit
//! [`Writer`] and boot recovery. Callers: `front` opens a store, recovers, and hands the store to the writer; the
//! simulator drives a [`MemoryStore`] directly. From `Writer::start` on, the writer's thread alone touches the store.
#![forbid(unsafe_code)]

mod error;
mod faulty;
mod memory;
mod recovery;
#[cfg(feature = "sqlite")]
mod sqlite;
mod store;
mod synchronous;
mod writer;

pub use error::StoreError;
pub use faulty::{Fault, Faulty};
pub use memory::MemoryStore;
pub use recovery::{distribute, partition};
#[cfg(feature = "sqlite")]
pub use sqlite::SqliteStore;
pub use store::{Store, storable, supersedes};
pub use synchronous::Synchronous;
pub use writer::{AckSink, Writer, WriterHandle, WriterStats};
