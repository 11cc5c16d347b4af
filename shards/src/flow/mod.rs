//! What each request does, and what becomes of the work it starts. All of it are methods of [`crate::Shard`].

pub mod adopt;
mod allocate;
mod apart;
mod arena;
mod catalog;
mod commit;
mod copy;
pub(crate) mod direct;
mod enrol;
mod evict;
mod hold;
mod lease;
mod pin;
pub mod promote;
mod relocate;
mod remove;
mod report;
mod retry;
pub mod scrub;
mod session;
mod spill;
pub(crate) mod stop;
mod sync;
