//! Quantities that must not be mixed up.

use std::fmt;

use crate::limits;

/// A number of bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ByteCount(pub u64);

impl ByteCount {
    /// No bytes.
    pub const ZERO: Self = Self(0);

    /// What this many bytes occupy: capacity is charged in whole pages (DESIGN §5).
    pub fn in_pages(self) -> Self {
        Self(self.0.div_ceil(limits::PAGE_BYTES) * limits::PAGE_BYTES)
    }
}

impl fmt::Display for ByteCount {
    /// As people write it: `1.5 GiB`, `640 B`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
        let mut scale = 0;
        while scale + 1 < UNITS.len() && self.0 >> (10 * (scale + 1)) > 0 {
            scale += 1;
        }
        let unit = 1u64 << (10 * scale);
        if self.0.is_multiple_of(unit) {
            write!(formatter, "{} {}", self.0 / unit, UNITS[scale])
        } else {
            write!(formatter, "{:.1} {}", self.0 as f64 / unit as f64, UNITS[scale])
        }
    }
}

/// XXH3-64 (seed 0) of a payload's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Checksum(pub u64);

impl fmt::Display for Checksum {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_byte_counts_when_printed_then_they_read_as_people_write_them() {
        for (bytes, text) in
            [(0, "0 B"), (640, "640 B"), (4096, "4 KiB"), (1 << 30, "1 GiB"), (1536 << 20, "1.5 GiB")]
        {
            assert_eq!(ByteCount(bytes).to_string(), text);
        }
    }

    #[test]
    fn given_sizes_when_charged_then_whole_pages_count() {
        assert_eq!([1, 4096, 4097].map(|bytes| ByteCount(bytes).in_pages().0), [4096, 4096, 8192]);
    }
}
