//! Memory of arena slabs, and of payloads that have their own (DESIGN §5): made, sealed, touched, zeroed, returned.
//!
//! ```text
//! Maker::slab ──> Draft ──writer()──> the one writer maps it (SCM_RIGHTS)
//!                   └─────seal()────> Slab ──reader()──> readers, each with a description of its own
//! Maker::isolated ─> Isolated ──writer()──> the producer ──freeze()──> Frozen ──reader()──> readers
//!                                                             └ refused while a writable mapping exists
//! any of them ──Leaving──> the keeper: unmapped, proven to be nobody's, closed; then its charge may end
//! ```
//! What the types hold, and the kernel enforces (`tests/arena_processes.rs` proves it with other processes):
//! - nobody can cut or extend a memory from the moment it is made, so no store of ours raises SIGBUS;
//! - all of its pages are reserved when it is made: "full" is an error then, never a signal later;
//! - a descriptor for readers comes from a [`Slab`] or [`Frozen`] only, after the seal: whoever reopens it through /proc can
//!   neither write, map it writable, punch holes nor cut it. What was mapped writable before the seal of a slab can be
//!   written on, which is what its writer does; a frozen memory nobody can write.
//!
//! Called by the session thread (`seal`, `writer`, `reader`) and, for all else, through the [`Keeper`], whose thread
//! makes, touches, zeroes and returns. Copies read slabs through [`Sources`]. Every call may block for milliseconds: none of it belongs on a shard thread.
//! `ledger::arena` has the books, and nothing here knows what a block is.
//!
//! Limits: a slab costs two descriptors until it is sealed and one after that, and its size in address space plus 2 MiB.

mod error;
mod keeper;
mod kernel;
mod making;
mod numa;
mod slab;
mod sources;

pub use error::ArenaError;
pub use keeper::{Done, JOBS_WAITING_MAX, Job, Keeper, Leaving};
pub use making::{Granted, LargePages, Maker, MakerConfig, Placement};
pub use slab::{Draft, Frozen, Isolated, Slab};
pub use sources::Sources;
