//! Segment files of the disk store (DESIGN §6): how large they are, what is written in them, and who lies where.
//!
//! ```text
//! page 0        header                                              ([`table`])
//! S / 64 bytes  record table: 64 bytes a payload
//! S bytes       data, each payload from a page boundary on, front to back, no page used twice in a file's life
//! ```
//! - [`Geometry`]: sizes, and how much of the disk they leave for payloads
//! - [`table`]: header and records as bytes
//! - [`Books`]: which files there are, where the next payload goes, what is dead, which file is emptied next
//!
//! Pure. The disk store (`tiers/drivers`) does what they say with real files, the simulator with pretended ones.

mod books;
mod geometry;
pub mod table;

pub use books::{Books, Buried, Found, Lane, Room, Spot, Victim};
pub use geometry::Geometry;
