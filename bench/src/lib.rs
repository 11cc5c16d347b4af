//! `payload-bench`: measures what the machine can do (floors) and what we do, side by side, in the same run.
//!
//! ```text
//! cli -> rows::FAMILIES -> one family: floor, ours, floor, ours ... -> Findings -> report (JSON lines or a table)
//!            `rows/` drive the shipped parts      `floors/` are what they are compared with
//! ```
//! A *row* is one line of DESIGN §10; a *family* measures the rows that share a floor, interleaved, so that what the
//! machine does meanwhile meets both. The value is the median of the rounds; its spread is printed beside it.
//! `unsafe`, libc and io_uring appear below `floors` only.
#![deny(unsafe_code)]

pub mod cli;
pub mod context;
#[allow(unsafe_code, reason = "raw disk I/O is the floor that the disk rows are measured against")]
pub mod floors;
pub mod histogram;
pub mod interrupt;
pub mod lease_load;
pub mod noise;
#[path = "../../tests/src/postgres.rs"]
#[allow(dead_code, reason = "tests use the rest")]
mod postgres_server;
pub mod report;
pub mod rows;
pub mod scratch;
#[path = "../../tests/src/seaweed.rs"]
#[allow(dead_code, reason = "tests use the rest")]
mod seaweed;
pub mod series;
pub mod server;
