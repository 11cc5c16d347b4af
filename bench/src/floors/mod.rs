//! What this machine can do without us: the same calls answered by an echo, the same bytes written raw, the same
//! rows put into SQLite and PostgreSQL by hand, two threads that answer each other.
//!
//! The only place of the bench with `unsafe` (`memory` and `shared`, too), libc (`disk`, `ipc`, `shared`) and io_uring (`disk`).

pub mod disk;
pub mod echo;
pub mod ipc;
pub mod memory;
pub mod object;
pub mod postgres;
pub mod shared;
pub mod sqlite;
