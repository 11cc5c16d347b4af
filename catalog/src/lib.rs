//! The catalog: what is durably known about payloads.
//!
//! ```text
//!  shards --CatalogOp--> [bounded FIFO] --batch--> Writer thread --one transaction--> Store (memory, SQLite)
//!    ^                                                  |
//!    +-------------- CatalogAck, after COMMIT ----------+          boot: Store --rows--> recovery --> shards
//! ```
//!
//! Owns the [`Store`] trait and its implementations, the migrations (the only DDL there is), the group-commit
//! [`Writer`], the rules for records beside rows (metadata, lineage, streams), the [`Readers`] that answer questions about
//! them, and boot recovery. Callers: `front` opens a store, recovers, and hands the store to the writer; the
//! simulator drives a [`MemoryStore`] directly. From `Writer::start` on, the writer's thread alone touches the store.
#![forbid(unsafe_code)]

mod change;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod columns;
mod error;
mod faulty;
mod memory;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod migrations;
#[cfg(feature = "postgres")]
mod postgres;
mod readers;
mod records;
mod recovery;
#[cfg(feature = "sqlite")]
mod sqlite;
mod store;
mod synchronous;
mod writer;

pub use change::{Change, storable};
pub use error::{StoreError, Taken};
pub use faulty::{Fault, Faulty};
pub use memory::MemoryStore;
#[cfg(feature = "postgres")]
pub use postgres::{NodeInfo, PostgresConfig, PostgresStore};
pub use readers::{QueryReply, Readers, ReadersHandle};
pub use recovery::{distribute, partition};
#[cfg(feature = "sqlite")]
pub use sqlite::{Backup, SqliteStore};
pub use store::{Reader, Store, supersedes};
pub use synchronous::Synchronous;
pub use writer::{
    AckSink, Arrival, Batches, ObjectSink, RECORD_BYTES_WAITING_MAX, RECORDS_WAITING_MAX, RecordRefused,
    RecordReply, SweepSink, Writer, WriterHandle, WriterStats,
};
