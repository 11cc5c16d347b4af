//! The `payload-manager` server as a library, so that tests and the demo run the very parts that the binary runs.
//!
//! main is thin: it reads the command line ([`cli`]), loads the configuration ([`config`]), starts logging
//! ([`logging`]) and calls one of serve, demo ([`demo`]), doctor ([`doctor`]), backup and migrate ([`database`]).
//!
//! ```text
//! serve:  bootstrap::Node (shards, drivers, catalog writer; no gRPC)  --ReactorHandle-->  serve (gRPC on one thread)
//! a call: incoming -> dispatch (admission) -> services -> shard -> services -> client      shutdown ends all of it
//! metadata, lineage, streams: services -> records -> catalog writer and readers, past the shards
//! ```
#![forbid(unsafe_code)]

pub mod access;
pub mod accounting;
pub mod admission;
pub mod bootstrap;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod database;
pub mod deadline;
pub mod demo;
pub mod dispatch;
pub mod doctor;
pub mod incoming;
pub mod locate;
pub mod logging;
pub mod metrics;
pub mod mint;
pub mod nodes;
pub mod object;
pub mod owners;
pub mod ports;
pub mod program;
pub mod records;
pub mod repeats;
pub mod serve;
pub mod services;
pub mod shutdown;
pub mod systemd;
pub mod tally;
pub mod telemetry;
