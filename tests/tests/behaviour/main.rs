//! What each RPC answers in each condition (`contract/behaviour.md`), by a client of the contract's first version.
//!
//! One binary: each one links the whole server's crates, which takes as long as its tests.

mod batches;
mod everywhere;
mod find;
mod holds;
mod lifecycle;
mod listing;
mod metadata;
mod operations;
mod placement;
mod pressure;
mod reading;
mod repeats;
mod streams;
