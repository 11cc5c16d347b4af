//! Where replicas lie that a completion names by number: the paths that a native client opens.
//!
//! The server's drivers make these names; an end-to-end test holds that the two agree. Segments in memory: `segment`.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use payload_types::{Generation, PayloadId};

/// The file of its own that this replica has below the disk root.
pub fn file_path(root: &Path, id: PayloadId, generation: Generation) -> PathBuf {
    let directory = format!("{:02x}", id.as_bytes()[15]);
    root.join("payloads").join(directory).join(format!("{id}-{:014x}.bin", generation.0))
}

/// The segment file with this number below the disk root.
pub fn segment_file_path(root: &Path, file: NonZeroU32) -> PathBuf {
    root.join("segments").join(format!("{file:08x}.seg"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_replicas_when_named_then_as_the_disk_store_names_them() {
        let id: PayloadId = "0190a5c0-1234-7abc-8def-0123456789ab".parse().expect("an id");
        let path = file_path(Path::new("/data"), id, Generation(0x2a));
        assert_eq!(
            path,
            Path::new("/data/payloads/ab/0190a5c0-1234-7abc-8def-0123456789ab-0000000000002a.bin")
        );
        let file = NonZeroU32::new(0x1a).expect("not 0");
        assert_eq!(segment_file_path(Path::new("/data"), file), Path::new("/data/segments/0000001a.seg"));
    }
}
