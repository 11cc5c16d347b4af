//! Sizes of segment files, and what of a disk's capacity payloads may use.

use payload_types::ByteCount;
use payload_types::limits::PAGE_BYTES;

use super::table::RECORD_BYTES;

const MIB: u64 = 1 << 20;

/// The largest data area: recycling one is over in a moment, and a terabyte is 4,096 files.
const DATA_BYTES_MAX: u64 = 256 * MIB;

/// The smallest: below this the table's syncs and the reserve cost more than files of their own.
const DATA_BYTES_MIN: u64 = 4 * MIB;

/// A capacity has room for about so many files. (DESIGN §6 says 16; what has to be kept free is counted in whole files,
/// and with 16 it would be a quarter of a small disk.)
const FILES_AT_LEAST: u64 = 32;

/// The largest payload that is packed; larger ones gain nothing.
const PAYLOAD_BYTES_MAX: u64 = 64 * MIB;

/// A payload takes at most this share of a file, so that the ends of files stay small.
const PAYLOAD_SHARE: u64 = 4;

/// Threads that write at a time, each to a file of its own: one for this many files, at most four.
const FILES_PER_WRITER: u64 = 64;
const WRITERS_MAX: u64 = 4;

/// The ends of files that no payload fitted into may take this share of the capacity together.
const WASTE_SHARE: u64 = 32;

/// Files kept free beside the writers': the one that is being filled by compaction, and the one that it may need next.
const FILES_FOR_COMPACTION: u64 = 2;

/// The sizes of one disk's segment files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    capacity: u64,
    data_bytes: u64,
}

impl Geometry {
    /// For a disk of this capacity; `None`: it is too small for segment files, and every replica has its own.
    pub fn of_capacity(capacity: ByteCount) -> Option<Self> {
        let data_bytes = (capacity.0 / FILES_AT_LEAST).min(DATA_BYTES_MAX) / MIB * MIB;
        (data_bytes >= DATA_BYTES_MIN).then_some(Self { capacity: capacity.0, data_bytes })
    }

    /// For files of another size than a disk's server would choose: the simulator's are a few pages.
    ///
    /// # Panics
    /// When that is no whole number of pages, or leaves nothing for payloads.
    pub fn new(capacity: ByteCount, data_bytes: u64) -> Self {
        assert!(data_bytes > 0 && data_bytes.is_multiple_of(PAGE_BYTES), "{data_bytes} are whole pages");
        let geometry = Self { capacity: capacity.0, data_bytes };
        assert!(geometry.reserve() < capacity.0, "{capacity} have room for more than the reserve");
        geometry
    }

    /// The disk's capacity: what files and segment files may take together.
    pub fn capacity(self) -> ByteCount {
        ByteCount(self.capacity)
    }

    /// Bytes of payloads in a file.
    pub fn data_bytes(self) -> u64 {
        self.data_bytes
    }

    /// Bytes of a whole file.
    pub fn file_bytes(self) -> u64 {
        head_bytes(self.data_bytes) + self.data_bytes
    }

    /// The largest payload that is packed.
    pub fn payload_max(self) -> ByteCount {
        ByteCount(PAYLOAD_BYTES_MAX.min(self.data_bytes / PAYLOAD_SHARE))
    }

    /// How many threads may write segment files at a time.
    pub fn writers(self) -> usize {
        (self.capacity / self.file_bytes() / FILES_PER_WRITER).clamp(1, WRITERS_MAX) as usize
    }

    /// What the unused ends of closed files may take together.
    pub fn waste_bytes_max(self) -> u64 {
        self.capacity / WASTE_SHARE
    }

    /// What payloads may be charged for: the rest of the capacity is the record tables, the unused ends, the files that
    /// are being filled and those that compaction needs. With no more than this charged, there is always a place for
    /// what was charged, and the disk never holds more than its capacity ([`super::Books`] has the arithmetic).
    pub fn usable(self) -> ByteCount {
        ByteCount((self.capacity - self.reserve()) / PAGE_BYTES * PAGE_BYTES)
    }

    fn reserve(self) -> u64 {
        let files = self.capacity / self.file_bytes();
        self.files_kept() * self.file_bytes() + files * head_bytes(self.data_bytes) + self.waste_bytes_max()
    }

    /// Files that are being filled or kept free at a time.
    pub(super) fn files_kept(self) -> u64 {
        self.writers() as u64 + FILES_FOR_COMPACTION
    }
}

/// Header and record table of a file with so much data.
pub(super) fn head_bytes(data_bytes: u64) -> u64 {
    PAGE_BYTES + (data_bytes / PAGE_BYTES * RECORD_BYTES as u64).next_multiple_of(PAGE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_a_capacity_when_divided_then_whole_pages_remain_and_the_reserve_is_a_small_part() {
        for (capacity, usable_percent) in
            [(128 * MIB, 80), (1 << 30, 80), (10 << 30, 80), (100 << 30, 90), (4 << 40, 95)]
        {
            let geometry = Geometry::of_capacity(ByteCount(capacity)).expect("large enough");
            let (data, usable) = (geometry.data_bytes(), geometry.usable().0);
            assert!(data.is_multiple_of(MIB) && (4 * MIB..=256 * MIB).contains(&data), "{geometry:?}");
            assert!(geometry.file_bytes().is_multiple_of(PAGE_BYTES) && usable.is_multiple_of(PAGE_BYTES));
            assert!(geometry.payload_max().0 * PAYLOAD_SHARE <= data);
            assert!(usable < capacity && usable * 100 >= capacity * usable_percent, "{usable} of {capacity}");
        }
        let large = Geometry::of_capacity(ByteCount(1 << 40)).expect("large enough");
        assert_eq!((large.data_bytes(), large.payload_max().0), (256 * MIB, 64 * MIB));
        assert_eq!((large.writers(), large.file_bytes()), (4, 260 * MIB + 4096));
    }

    #[test]
    fn given_a_small_capacity_when_divided_then_nothing_is_packed() {
        assert_eq!(Geometry::of_capacity(ByteCount(128 * MIB - 1)), None);
        assert_eq!(Geometry::of_capacity(ByteCount(0)), None);
    }
}
