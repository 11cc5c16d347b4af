//! What operators rely on, end to end: access control, limits under abuse, traces and metrics, devices.
//!
//! One binary: each one links the whole server's crates, which takes as long as its tests.

mod abuse;
mod gpu;
mod observability;
mod roles;
mod tls;
