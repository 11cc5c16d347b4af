//! Pure bookkeeping that shards and disk store are built from: slot tables, the timing wheel, budget accounts, segment
//! files, arena slabs, limbo.
//!
//! No I/O, no clock, no randomness, no locks. Nothing here takes longer when it holds more: tables grow a chunk at a
//! time, so that no insertion ever copies what is already there.
#![forbid(unsafe_code)]

pub mod account;
pub mod arena;
pub mod limbo;
pub mod list;
pub mod recency;
pub mod segments;
pub mod slots;
pub mod sparse;
pub mod wheel;

pub use account::Account;
pub use slots::{SlotKey, Slots};
pub use sparse::Sparse;
pub use wheel::{TimerId, Wheel};
