//! Where a replica lies that shares its file with others (DESIGN §6, "Disk store").

use std::num::NonZeroU32;

use crate::limits::PAGE_BYTES;

/// A place in a segment file of the disk root. Shards and the catalog keep it; the disk store owns the space.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Extent {
    /// The file's number; a recycled file has a new one.
    pub file: NonZeroU32,
    /// Where the bytes begin, in pages from the file's start.
    pub page: u32,
}

impl Extent {
    /// Where the bytes begin, in bytes from the file's start.
    pub fn offset_bytes(self) -> u64 {
        u64::from(self.page) * PAGE_BYTES
    }

    /// As one number, for the catalog; never 0.
    pub fn to_bits(self) -> u64 {
        u64::from(self.file.get()) << 32 | u64::from(self.page)
    }

    /// The extent with this number; `None` for a number that no extent has.
    pub fn from_bits(bits: u64) -> Option<Self> {
        let file = NonZeroU32::new((bits >> 32) as u32)?;
        Some(Self { file, page: bits as u32 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_an_extent_when_stored_as_a_number_then_it_comes_back_and_no_number_below_a_file_is_one() {
        for (file, page) in [(1, 0), (7, 65_535), (u32::MAX, u32::MAX)] {
            let extent = Extent { file: NonZeroU32::new(file).expect("not 0"), page };
            assert_eq!(Extent::from_bits(extent.to_bits()), Some(extent));
            assert_eq!(extent.offset_bytes(), u64::from(page) * 4096);
        }
        assert_eq!(Extent::from_bits(u64::from(u32::MAX)), None);
    }
}
