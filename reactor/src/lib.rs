//! Runs shards: pinned executors, mailboxes and doorbells, the pump, the stall detector.
//!
//! `front` owns a [`Reactor`]; whoever talks to a shard holds a [`ReactorHandle`]. The crate knows what a shard is
//! told and what it asks for ([`payload_types::event`], [`payload_types::effect`]), and nothing of how drivers,
//! the catalog or gRPC do their part: those are behind [`Ports`] and [`ReplySink`].
//!
//! ```text
//!   front ── Envelope ──> request lane ─┐                      ┌─> ReplySink (front)
//!                                       ├─> pump: Shard::step ─┼─> Ports::{storage, transfer, catalog}
//!   drivers ── Completion ─> done lane ─┘        ^             └─> budget lane ─> arbiter, on shard 0's thread
//!                                   timers ──────┘                                    │
//!                     each shard's budget reply lane <────────────────────────────────┘
//! ```
//!
//! A shard thread never waits for anybody but for work: no lock that another thread may hold, no file, no log line.
//! `unsafe` is confined to `sys.rs` and `sys/`, here and in `preflight`.
#![deny(unsafe_code)]
// An op is 128 bytes now that both of its replicas may have an extent.
#![allow(clippy::result_large_err, reason = "a full lane hands the op back, by value")]

mod backlog;
pub mod clock;
mod doorbell;
mod executor;
#[cfg(test)]
mod fake;
mod mailbox;
#[allow(unsafe_code, reason = "its sys.rs asks the system, as ours does")]
pub mod preflight;
mod pump;
mod replies;
mod run;
mod session;
mod shard_core;
mod spin;
mod stall;
mod start;
mod sys;
pub mod topology;

pub use executor::ExecutorChoice;
pub use mailbox::{Drops, Envelope, Lanes, Mailboxes, ReactorHandle, ReplySink};
pub use pump::Ports;
pub use session::{
    Allowed, DirectLeases, SESSIONS_MAX, SessionConfig, SessionError, SessionInfo, SessionList,
    SessionServer, SlabConfig, SlabCounts, SocketError, probe_socket,
};
pub use spin::SpinPolicy;
pub use stall::{Handled, TURN_BUCKETS, Turn, TurnStats, turn_bucket_ns};
pub use start::{Reactor, ReactorConfig, StartError};
