//! The state machine of the product: payloads, replicas, leases, lifecycle, moves, expiry and pins of one shard,
//! and the arbiter of the node's budgets.
//!
//! A shard is driven by `step(now, event, outbox)`. It is synchronous, owns everything it knows through `&mut self`,
//! and does no I/O: what it wants done it writes into the [`Outbox`], and what became of it comes back as an event.
//! The reactor and the simulator are two drivers of this same code.
//!
//! ```text
//!   Event::Request ----> step ----> Effect::Reply                          (exactly one for each request)
//!   Event::Completion -> step ----> Effect::{Storage, Transfer, Catalog, Budget}  (exactly one completion for each)
//!   Event::Timer ------> step        next_timer() says when the next one is wanted
//! ```
//!
//! Who is responsible for what:
//! - [`payload`]: one payload's record; [`table`]: all of them, their order ([`order`]) and their counts;
//!   [`index`]: id -> record
//! - [`lease`]: leases and their order; [`limbo`]: replicas that were dropped and whose space is not free yet
//! - `holds`: payloads that streams keep; [`keeper`]: what the node tells shards of such streams
//! - [`op`]: work that drivers or the catalog do for a payload; [`parked`]: requests that wait for such work
//! - `arenas`: memory of native sessions, their slabs and what lies in them; `direct`: what of that readers are shown who ask nobody
//! - `flow`: what each request does, a file each
//! - [`evict`]: who may be evicted and where to; [`door`]: whether there is room there; [`arbiter`]: the node's capacity,
//!   shared among shards, and who waits for it
#![forbid(unsafe_code)]

pub mod arbiter;
mod arenas;
pub mod config;
mod direct;
pub mod door;
pub mod evict;
mod flow;
mod holds;
pub mod index;
pub mod keeper;
pub mod lease;
pub mod limbo;
pub mod op;
pub mod order;
pub mod outbox;
pub mod parked;
pub mod payload;
pub mod sessions;
pub mod shard;
pub mod table;
mod usage;

pub use arbiter::{Arbiter, Watermarks};
pub use arenas::Writer;
pub use config::ShardConfig;
pub use evict::Candidate;
pub use flow::adopt::Adopted;
pub use keeper::Keeper;
pub use outbox::Outbox;
pub use sessions::{Capped, NodeBooks, SessionCaps, SessionHolding};
pub use shard::Shard;
pub use usage::TierLimits;
