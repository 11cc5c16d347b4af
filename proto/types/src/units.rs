//! Quantities that must not be mixed up, as people read and write them.

use std::fmt;
use std::str::FromStr;

use crate::error::PayloadError;
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

impl FromStr for ByteCount {
    type Err = PayloadError;

    /// Reads `4096`, `8GiB`, `1.5 MiB`, `10GB` (decimal), in either case; a bare `K`, `M`, `G`, `T` is binary.
    fn from_str(text: &str) -> Result<Self, PayloadError> {
        let scale = |unit: &str| match unit.to_ascii_lowercase().as_str() {
            "" | "b" => Some(1),
            "k" | "kib" => Some(1 << 10),
            "m" | "mib" => Some(1 << 20),
            "g" | "gib" => Some(1 << 30),
            "t" | "tib" => Some(1 << 40),
            "kb" => Some(1_000),
            "mb" => Some(1_000_000),
            "gb" => Some(1_000_000_000),
            "tb" => Some(1_000_000_000_000),
            _ => None,
        };
        parse_scaled(text, scale).map(Self).ok_or_else(|| {
            PayloadError::invalid(format!(
                "`{text}` is not a size; write bytes, or a size like `64KiB` or `8GiB`"
            ))
        })
    }
}

/// Reads a decimal number and its unit, exactly: no floating point. `None` when either cannot be read, or the
/// product passes `u64`; a fraction of the smallest unit is cut off.
pub(crate) fn parse_scaled(text: &str, scale: impl Fn(&str) -> Option<u64>) -> Option<u64> {
    let text = text.trim();
    let unit_start =
        text.find(|symbol: char| !symbol.is_ascii_digit() && symbol != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_start);
    let scale = u128::from(scale(unit.trim())?);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    // 20 digits (below 2^67) times a unit below 2^41 stay below 2^128.
    if whole.is_empty() || fraction.is_empty() || whole.len() > 20 || fraction.len() > 18 {
        return None;
    }
    let whole: u128 = whole.parse().ok()?;
    let fraction_digits = fraction.len() as u32;
    let fraction: u128 = fraction.parse().ok()?;
    u64::try_from(whole * scale + fraction * scale / 10u128.pow(fraction_digits)).ok()
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
    fn given_sizes_as_people_write_them_when_read_then_bytes_are_exact() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("8GiB", 8 << 30),
            ("8 gib", 8 << 30),
            ("1.5MiB", 3 << 19),
            ("10GB", 10_000_000_000),
            ("64k", 64 << 10),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(text.parse::<ByteCount>().map(|size| size.0), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn given_text_that_is_no_size_when_read_then_refused() {
        for text in ["", "GiB", "-1", "1.", ".5GiB", "1.2.3", "8 lots", "18446744073709551616", "99999999TiB"]
        {
            assert!(text.parse::<ByteCount>().is_err(), "{text}");
        }
    }

    #[test]
    fn given_sizes_when_charged_then_whole_pages_count() {
        assert_eq!([1, 4096, 4097].map(|bytes| ByteCount(bytes).in_pages().0), [4096, 4096, 8192]);
    }
}
