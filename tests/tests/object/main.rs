//! The object tier end to end, with a real S3 server.
//!
//! One binary: each one links the whole server's crates, which takes as long as its tests.

mod catalog;
mod flow;
