//! From request messages to the domain's requests: everything a client sends is checked here, once.
//!
//! Called by `front` for each RPC. What comes out obeys the limits and rules of behaviour.md that can be judged
//! from the request alone; what depends on the payload or on the node is the shard's to judge. Nothing here
//! allocates by what a number in the request says.
//!
//! One file for each area of behaviour.md: lifecycle, reading, placement, metadata, lineage, stream; and one for what is
//! ours: operations. What metadata, lineage and streams become is the catalog's to judge, not a shard's.

mod lifecycle;
mod lineage;
mod metadata;
mod operations;
mod placement;
mod query;
mod reading;
mod stream;

pub use lifecycle::{AllocateParts, ImportParts, ListParts, allocate, commit, delete, import, list};
pub use lineage::{lineage_add, lineage_get};
pub use metadata::{metadata_events, metadata_get, metadata_note, metadata_update};
pub use operations::{ScrubParts, explain, holders, scrub};
pub use placement::{pin, prefetch, promote, spill, unpin};
pub use query::{FindParts, find};
pub use reading::{acquire, release, resolve};
pub use stream::{
    INFLIGHT_DEFAULT, SubscribeParts, group_list, group_remove, stream_append, stream_commit,
    stream_committed, stream_create, stream_delete, stream_list, stream_range, stream_read, stream_subscribe,
};

use payload_types::{PayloadError, Version, limits};

/// An integer that the store can keep.
///
/// # Errors
/// `INVALID_ARGUMENT` above 2^63-1, naming the field.
fn storable(field: &str, value: u64) -> Result<u64, PayloadError> {
    if value <= limits::STORED_INTEGER_MAX {
        return Ok(value);
    }
    Err(PayloadError::invalid(format!(
        "{field} is {value}; the largest value it can have is {} (2^63-1)",
        limits::STORED_INTEGER_MAX
    )))
}

/// The version that a request insists on, if it does (own field 1000).
///
/// # Errors
/// As [`storable`].
fn fence(expected: Option<u64>) -> Result<Option<Version>, PayloadError> {
    expected.map(|version| storable("expected_version", version).map(Version)).transpose()
}

/// Opaque bytes that the catalog keeps.
///
/// # Errors
/// `INVALID_ARGUMENT` over 1 MiB, naming the field.
fn opaque(field: &str, bytes: Vec<u8>) -> Result<Vec<u8>, PayloadError> {
    if bytes.len() <= limits::OPAQUE_BYTES_MAX {
        return Ok(bytes);
    }
    Err(PayloadError::invalid(format!(
        "{field} has {} bytes; at most {} are kept: store more as a payload",
        bytes.len(),
        limits::OPAQUE_BYTES_MAX
    )))
}

/// A text that the catalog keeps.
///
/// # Errors
/// `INVALID_ARGUMENT` over 64 KiB, naming the field.
fn text(field: &str, text: String) -> Result<String, PayloadError> {
    if text.len() <= limits::TEXT_BYTES_MAX {
        return Ok(text);
    }
    Err(PayloadError::invalid(format!(
        "{field} has {} bytes; at most {} are kept: what is longer belongs into opaque bytes",
        text.len(),
        limits::TEXT_BYTES_MAX
    )))
}

/// Rows of a page: `default` for 0 and less, at most `max`.
fn page_size(asked: i32, default: usize, max: usize) -> usize {
    match usize::try_from(asked) {
        Err(_) | Ok(0) => default,
        Ok(asked) => asked.min(max),
    }
}

/// What the tests of this folder share.
#[cfg(test)]
mod testing {
    use payload_types::{ErrorKind, NamespaceId, PayloadError, PayloadId, PayloadKey};

    use crate::pb::core::v1 as core;

    pub(super) const NAMESPACE: NamespaceId = NamespaceId(7);
    /// One above what the store can keep.
    pub(super) const TOO_LARGE: u64 = 1 << 63;

    pub(super) fn id(byte: u8) -> Option<core::PayloadId> {
        Some(core::PayloadId { value: vec![byte; 16] })
    }

    pub(super) fn key(byte: u8) -> PayloadKey {
        PayloadKey { namespace: NAMESPACE, id: PayloadId::from_bytes([byte; 16]) }
    }

    /// Asserts that the request was refused with this kind, and that the sentence contains this word.
    #[track_caller]
    pub(super) fn refused<T: std::fmt::Debug>(result: Result<T, PayloadError>, kind: ErrorKind, word: &str) {
        let error = result.expect_err("must be refused");
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.message.contains(word), "`{error}` does not say `{word}`");
    }
}
