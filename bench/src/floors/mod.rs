//! What this machine can do without us: the same calls answered by an echo, the same bytes written raw, the same
//! rows put into SQLite and PostgreSQL by hand.
//!
//! The only place of the bench with `unsafe` (`memory`, too), libc and io_uring (`disk`).

pub mod disk;
pub mod echo;
pub mod memory;
pub mod postgres;
pub mod sqlite;
