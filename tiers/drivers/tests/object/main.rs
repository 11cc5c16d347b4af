//! The object store's driver against a real S3 server (SeaweedFS) and a local directory; with a proxy that breaks connections.
//!
//! One process, so that the server is started once: `cargo test -p payload-drivers --test object`.

mod bed;
mod conformance;
mod contract;
mod faults;
mod proxy;
mod restarts;
mod s3;
#[path = "../../../../tests/src/seaweed.rs"]
mod seaweed;
