//! Whole nodes end to end: real servers, real databases, `payloadctl`, faults, restarts.
//!
//! One binary: each one links the whole server's crates, which takes as long as its tests.

mod backup;
mod bad_input;
mod cluster;
mod disk_faults;
mod hammer;
mod late_removals;
mod packing;
mod payloadctl;
mod payloadctl_records;
mod postgres;
mod processes;
mod scrub_and_disks;
