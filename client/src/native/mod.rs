//! Native sessions: the same operations over rings in memory that client and server share, for programs on one host.
//!
//! ```text
//! call --submission--> lane of a shard (mutex) --ring--> server        asleep: its doorbell is rung
//!        spins a moment, then sleeps on the session's futex
//!      <--outcome----- who finds completions hands each to who waits for it
//! ```
//!
//! [`Session`] is the whole of it: many threads and tasks may share one. A lease that it holds needs no renewal: it ends
//! when it is released, or with the session, that is at the latest with this process. `payload_client::blocking` is what
//! programs use; here are submissions and outcomes as the protocol has them (docs/NATIVE_PROTOCOL.md).

pub(crate) mod direct;
mod handshake;
mod lane;
pub(crate) mod request;
mod session;
mod slabs;
mod waiter;
mod watch;

pub use session::{Call, Session, Ticket};
pub use watch::Pending;
