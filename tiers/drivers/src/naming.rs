//! What replicas are called on disk and in shared memory.
//!
//! ```text
//! segments   /dev/shm/<prefix>-<uuid>                        shown to clients as shm_name "/<prefix>-<uuid>"
//!            /dev/shm/<prefix>-draft-<generation>-<uuid>     a copy that is being made
//!            /dev/shm/<prefix>-limbo-<generation>-<uuid>     dropped, and somebody may still have it mapped
//! files      <root>/payloads/<last byte of the uuid>/<uuid>-<generation>.bin      .draft      .limbo
//! packed     <root>/segments/<number>.seg
//! ```
//! A segment's public name has no generation (the v1 contract's `RamLocation` has no room for one), so it belongs to
//! the newest generation of its id; every other name belongs to exactly one replica. Pure: nothing is opened here.

use std::fmt::Write as _;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use payload_types::effect::ReplicaRef;
use payload_types::{Generation, PayloadId, Tier};

/// Where POSIX shared memory lives on Linux (shm_open(3)).
pub(crate) const SHM_DIRECTORY: &str = "/dev/shm";

/// The directory of the payloads' files below a disk root.
pub(crate) const PAYLOADS: &str = "payloads";

/// The directory of the segment files below a disk root.
pub(crate) const SEGMENTS: &str = "segments";

/// The names of one tier's replicas.
#[derive(Clone, Debug)]
pub(crate) enum Names {
    /// Shared-memory segments with this prefix.
    Segments { prefix: Arc<str> },
    /// Files below this absolute root.
    Files { root: Arc<Path> },
}

impl Names {
    /// The directory below which all names are.
    pub(crate) fn base(&self) -> PathBuf {
        match self {
            Self::Segments { .. } => PathBuf::from(SHM_DIRECTORY),
            Self::Files { root } => root.join(PAYLOADS),
        }
    }

    /// [`public`](Self::public) relative to [`base`](Self::base), written over `name`: boot makes 10^6 of them.
    pub(crate) fn public_below_base(&self, replica: &ReplicaRef, name: &mut String) {
        let (id, generation) = (replica.id, replica.generation.0);
        name.clear();
        let written = match self {
            Self::Segments { prefix } => write!(name, "{prefix}-{id}"),
            Self::Files { .. } => write!(name, "{:02x}/{id}-{generation:014x}.bin", id.as_bytes()[15]),
        };
        written.expect("a String takes all that is written");
    }

    /// Where the replica's names are.
    pub(crate) fn directory(&self, id: PayloadId) -> PathBuf {
        match self {
            Self::Segments { .. } => PathBuf::from(SHM_DIRECTORY),
            // The first bytes of a UUIDv7 are the time; the last one is random.
            Self::Files { root } => root.join(PAYLOADS).join(format!("{:02x}", id.as_bytes()[15])),
        }
    }

    /// The name that clients open.
    pub(crate) fn public(&self, replica: &ReplicaRef) -> PathBuf {
        match self {
            Self::Segments { prefix } => self.directory(replica.id).join(format!("{prefix}-{}", replica.id)),
            Self::Files { .. } => self.private(replica, "bin"),
        }
    }

    /// The name of a segment file, which clients open.
    ///
    /// # Panics
    /// In shared memory: there is none.
    pub(crate) fn segment(&self, file: NonZeroU32) -> PathBuf {
        match self {
            Self::Segments { .. } => unreachable!("only the disk store packs"),
            Self::Files { root } => root.join(SEGMENTS).join(format!("{file:08x}.seg")),
        }
    }

    /// The name of a copy in the making.
    pub(crate) fn draft(&self, replica: &ReplicaRef) -> PathBuf {
        self.private(replica, "draft")
    }

    /// The name of a dropped replica that somebody may still use.
    pub(crate) fn limbo(&self, replica: &ReplicaRef) -> PathBuf {
        self.private(replica, "limbo")
    }

    fn private(&self, replica: &ReplicaRef, kind: &str) -> PathBuf {
        let (id, generation) = (replica.id, replica.generation.0);
        self.directory(id).join(match self {
            Self::Segments { prefix } => format!("{prefix}-{kind}-{generation:014x}-{id}"),
            Self::Files { .. } => format!("{id}-{generation:014x}.{kind}"),
        })
    }
}

/// Turns ids into what descriptors show. Cheap to clone; pure names, nothing is looked up.
#[derive(Clone, Debug)]
pub struct Locator {
    pub(crate) segments: Names,
    pub(crate) files: Option<Names>,
}

impl Locator {
    /// The contract's `RamLocation.shm_name`: with its slash, bytes at offset 0.
    pub fn shm_name(&self, id: PayloadId) -> String {
        let replica = replica(Tier::Ram, id, Generation(0));
        let path = self.segments.public(&replica);
        format!("/{}", path.file_name().and_then(|name| name.to_str()).expect("a name made of text"))
    }

    /// The contract's `DiskLocation.path`: absolute, bytes at offset 0.
    ///
    /// # Panics
    /// On a node without a disk tier: no replica there can be on one.
    pub fn disk_path(&self, id: PayloadId, generation: Generation) -> PathBuf {
        let files = self.files.as_ref().expect("a disk replica exists only where a disk root is configured");
        files.public(&replica(Tier::Disk, id, generation))
    }

    /// The contract's `DiskLocation.path` of a packed replica: absolute.
    ///
    /// # Panics
    /// On a node without a disk tier: no replica there can be on one.
    pub fn segment_path(&self, file: NonZeroU32) -> PathBuf {
        let files = self.files.as_ref().expect("a disk replica exists only where a disk root is configured");
        files.segment(file)
    }
}

fn replica(tier: Tier, id: PayloadId, generation: Generation) -> ReplicaRef {
    ReplicaRef { tier, id, generation, size: payload_types::ByteCount::ZERO, extent: None, block: None }
}

/// A part of a file name in /dev/shm made from what an operator chose: as it is when it is plain, hashed when not.
pub(crate) fn file_name_part(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if !text.is_empty() && text.len() <= 64 && text.bytes().all(plain) {
        text.to_owned()
    } else {
        format!("x{:016x}", xxhash_rust::xxh3::xxh3_64(text.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_an_id_when_named_then_clients_see_the_contracts_names_and_private_names_differ() {
        let id: PayloadId = "0190a5c0-1234-7abc-8def-0123456789ab".parse().expect("an id");
        let locator = Locator {
            segments: Names::Segments { prefix: "pm".into() },
            files: Some(Names::Files { root: Path::new("/data").into() }),
        };
        assert_eq!(locator.shm_name(id), "/pm-0190a5c0-1234-7abc-8def-0123456789ab");
        assert_eq!(
            locator.disk_path(id, Generation(0x2A)),
            Path::new("/data/payloads/ab/0190a5c0-1234-7abc-8def-0123456789ab-0000000000002a.bin")
        );
        let replica = replica(Tier::Ram, id, Generation(1));
        let limbo = locator.segments.limbo(&replica);
        assert_eq!(limbo, Path::new("/dev/shm/pm-limbo-00000000000001-0190a5c0-1234-7abc-8def-0123456789ab"));
        assert_ne!(limbo, locator.segments.draft(&replica));
        assert_ne!(limbo, locator.segments.public(&replica));
        for names in [&locator.segments, locator.files.as_ref().expect("configured")] {
            let mut name = "what was there before".to_owned();
            names.public_below_base(&replica, &mut name);
            assert_eq!(names.base().join(name), names.public(&replica));
        }
    }

    #[test]
    fn given_a_node_name_with_slashes_when_used_in_a_file_name_then_it_is_hashed() {
        assert_eq!(file_name_part("node-1.local"), "node-1.local");
        assert!(!file_name_part("127.0.0.1:50051/../x").contains(['/', ':']));
        assert_ne!(file_name_part("a/b"), file_name_part("a/c"));
    }
}
