//! What the server and clients on the same host share, as safe code: how segments are named.
//!
//! Rings, the published index and hazard cells join it with native sessions.
#![forbid(unsafe_code)]

pub mod segment;
