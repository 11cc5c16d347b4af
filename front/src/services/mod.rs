//! The gRPC services: each call is decoded (`wire`), asked of the shard that owns its payload or of the catalog
//! ([`crate::records`]), and encoded.
//!
//! ```text
//! tonic --> handler --decode--> Router::ask --mailbox--> shard --oneshot--> handler --encode--> tonic
//! ```
//!
//! One file a service; [`router`] holds what they share. Handlers keep no state of their own: a call that is dropped
//! half way leaves nothing behind but work that the shard finishes by itself.

mod admin;
mod batch;
mod catalog;
mod data;
mod find;
mod metadata;
mod operations;
mod records;
pub mod router;
mod scrub;
mod spill;
mod stream;

pub use admin::AdminService;
pub use batch::BatchService;
pub use catalog::CatalogService;
pub use data::DataService;
pub use operations::OperationsService;
pub use records::RecordsService;
pub use router::Router;
pub use stream::StreamService;
