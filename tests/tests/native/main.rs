//! Native sessions end to end: rings, slabs, direct leases, hostile and dying clients.
//!
//! One binary: each one links the whole server's crates, which takes as long as its tests.

mod arena_client;
mod arena_hostile;
mod arena_moves;
mod arena_restart;
mod direct;
mod direct_leases;
mod hostile_client;
mod native_stress;
mod sessions;
