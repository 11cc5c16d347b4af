//! What a node put, or is about to put, into an object store and no row vouches for yet: the upload journal, as the catalog
//! keeps it.
//!
//! ```text
//! Begin --> Named --> Part ... --> a row that names the object (the entry goes in its transaction)    crash --> resume | sweep
//!                                  a removed row that named one (an entry to delete it comes in its transaction) --> Settle
//! ```
//! One entry a payload. The object driver decides what an entry means; the catalog only keeps it.

use crate::ids::{Generation, PayloadId};
use crate::units::ByteCount;

/// A part that the store has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UploadPart {
    /// Its place: 0, 1, ... below 10,000.
    pub index: u32,
    /// What completes the upload: the part's ETag.
    pub tag: String,
    /// XXH3-64 of its bytes as stored.
    pub hash: u64,
}

/// An object that no row vouches for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UploadEntry {
    /// Whose.
    pub id: PayloadId,
    /// Which replica.
    pub generation: Generation,
    /// Its row is gone, and it is to be deleted; false: it is being stored, or was, and no row names it.
    pub is_removal: bool,
    /// The payload's size.
    pub size: ByteCount,
    /// How it is cut.
    pub part_bytes: u64,
    /// How it is compressed: the contract's number of `CompressionType`.
    pub compression: u8,
    /// The store's name for the upload in parts, once it has one.
    pub upload: Option<String>,
    /// Parts that it has, by their index.
    pub parts: Vec<UploadPart>,
}

/// A change of the journal. Sender: the object driver's journal; receiver: the catalog writer. -> `RecordOutcome::Done`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum UploadChange {
    /// Keeps an entry, in place of the payload's former one.
    Begin(UploadEntry),
    /// The upload has a name. Nothing changes where there is no entry.
    Named {
        /// Whose.
        id: PayloadId,
        /// The store's.
        upload: String,
    },
    /// The store has a part. As `Named`.
    Part {
        /// Whose.
        id: PayloadId,
        /// Which.
        part: UploadPart,
    },
    /// A row names the object, or it is gone: the entry goes, if there is one.
    Settle {
        /// Whose.
        id: PayloadId,
    },
}
