//! The catalog's tests from outside, in one binary: conformance of every backend, files that are not what they
//! should be, the writer's promises, a process killed while it commits, and where DDL may stand.
#![forbid(unsafe_code)]

#[macro_use]
mod suite;

mod backends;
mod backup;
mod batches;
mod child;
mod conformance;
mod ddl;
mod files;
mod foreign;
mod kill;
mod kill_appends;
mod late;
mod migrations;
mod nodes;
mod postgres;
mod postgres_records;
#[path = "../../../tests/src/postgres.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod postgres_server;
mod records;
mod recovery;
mod rows;
mod terms;
mod tls;
mod writer;
mod writer_records;
