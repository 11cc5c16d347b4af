//! What the server and clients on the same host share, as safe code: how segments and files are named, and the native
//! session: where everything lies in its memory ([`layout`]), the rings ([`ring`]), what their entries say ([`entry`]),
//! the sentences of errors ([`text`]), who sleeps and who is woken ([`wake`]), how it begins and ends ([`hello`]), and the
//! leases that ask nobody ([`direct`]).
//!
//! Everything works on `&[W]` where `W` is a [`Word`]: 64-bit atomics of shared memory, or those of the model checker
//! (`tests/loom.rs`). Nothing here maps memory or makes a system call; all that the other side wrote is hostile input.
//! docs/NATIVE_PROTOCOL.md says the same for who writes a client in another language.
#![forbid(unsafe_code)]

pub mod direct;
pub mod entry;
pub mod hello;
pub mod layout;
pub mod place;
pub mod ring;
pub mod segment;
pub mod text;
pub mod wake;
mod word;

pub use entry::{Completion, Malformed, Nonsense, Op, Outcome, Shown, Submission};
pub use word::Word;
