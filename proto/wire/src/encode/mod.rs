//! From the domain's replies to response messages.
//!
//! Called by `front`. The core knows replicas by id and generation; the contract shows names and paths, which the
//! drivers choose. [`Locate`] brings the two together without `wire` importing `drivers`.
//!
//! One file for each noun: batch, descriptor, explain, holders, listing, records, scrub, stats.

mod batch;
mod descriptor;
mod explain;
mod holders;
mod listing;
mod records;
mod scrub;
mod stats;

pub use batch::{batch_acquired, batch_allocated, batch_committed, batch_released, lease_session};
pub use descriptor::{
    allocated, committed, descriptor, foreign, leased, promoted, resolved, resolved_foreign, spill_result,
};
pub use explain::{explained, outlook};
pub use holders::holders;
pub use listing::{found, page};
pub use records::{
    groups, lineage, metadata_events, metadata_got, metadata_noted, metadata_updated, stream_entries,
    stream_entry, streams,
};
pub use scrub::scrub_finding;
pub use stats::{DirectFigures, MemoryFigures, NodeFigures, stats};

use std::num::NonZeroU32;

use payload_types::{Generation, GpuPlace, PayloadId, WallMs};

/// Names of replicas, as clients open them. Pure: asks nobody.
pub trait Locate {
    /// The shared-memory object of a payload's segment, with its leading slash.
    fn shm_name(&self, id: PayloadId) -> String;
    /// The absolute path of the file that holds this replica.
    fn disk_path(&self, id: PayloadId, generation: Generation) -> String;
    /// The absolute path of the segment file with this number.
    fn segment_path(&self, file: NonZeroU32) -> String;
    /// The full URI of a payload's object; empty on a node without an object store.
    fn object_uri(&self, _id: PayloadId) -> String {
        String::new()
    }
    /// Where a replica lies in device memory, and what opens it; `None`: it is gone, or there are no devices.
    fn gpu(&self, _id: PayloadId, _generation: Generation) -> Option<GpuPlace> {
        None
    }
    /// Name and `host:port` of the node whose replicas these are, where others share its catalog.
    fn node(&self) -> Option<(&str, &str)> {
        None
    }
}

/// A moment as `google.protobuf.Timestamp`.
pub fn timestamp(wall: WallMs) -> prost_types::Timestamp {
    let millis = wall.as_millis().min(WallMs::MAX.as_millis());
    // At most 253_402_300_799 seconds and 999_000_000 nanoseconds.
    prost_types::Timestamp { seconds: (millis / 1000) as i64, nanos: (millis % 1000) as i32 * 1_000_000 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_moments_when_written_then_seconds_and_nanoseconds_add_up() {
        for (millis, seconds, nanos) in
            [(0, 0, 0), (1_999, 1, 999_000_000), (u64::MAX, 253_402_300_799, 999_000_000)]
        {
            let written = timestamp(WallMs::from_millis(millis));
            assert_eq!((written.seconds, written.nanos), (seconds, nanos));
        }
    }
}
