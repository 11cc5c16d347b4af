//! How the entries of one batch are packed: the same bytes on every backend.
//!
//! ```text
//!   1 (format) | entry | entry | ...
//!   entry = payload id (16 bytes) | flags | [event time] [duration] [tags], each where its flag says so
//!   event time = seconds (zigzag), nanoseconds    tags = count, then length and bytes of each key and value
//! ```
//! Numbers are LEB128. An entry without extras takes 17 bytes. What is read was in a file or a database meanwhile: every
//! length is checked before it is believed, and what is left over is an error.

use payload_types::PayloadId;
use payload_types::record::{StreamItem, Timestamp};

use crate::error::StoreError;

/// The first byte.
const FORMAT: u8 = 1;

const EVENT_TIME: u8 = 1;
const DURATION: u8 = 2;
const TAGS: u8 = 4;

/// Packs one batch.
pub(crate) struct Packer {
    bytes: Vec<u8>,
    count: u64,
}

impl Packer {
    /// An empty batch.
    pub(crate) fn new() -> Self {
        Self { bytes: vec![FORMAT], count: 0 }
    }

    /// Adds an entry.
    pub(crate) fn add(&mut self, item: &StreamItem) {
        self.count += 1;
        let bytes = &mut self.bytes;
        bytes.extend_from_slice(item.payload.as_bytes());
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        bytes.push(
            flag(item.event_time.is_some(), EVENT_TIME)
                | flag(item.duration_ns > 0, DURATION)
                | flag(!item.tags.is_empty(), TAGS),
        );
        if let Some(Timestamp { seconds, nanoseconds }) = item.event_time {
            number_put(bytes, ((seconds << 1) ^ (seconds >> 63)).cast_unsigned());
            number_put(bytes, u64::from(nanoseconds));
        }
        if item.duration_ns > 0 {
            number_put(bytes, item.duration_ns);
        }
        if !item.tags.is_empty() {
            number_put(bytes, item.tags.len() as u64);
            for text in item.tags.iter().flat_map(|(key, value)| [key, value]) {
                number_put(bytes, text.len() as u64);
                bytes.extend_from_slice(text.as_bytes());
            }
        }
    }

    /// How many entries there are.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// The batch so far.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

fn number_put(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// Gives the `count` entries of a batch to `each`, in order, until it returns false.
///
/// # Errors
/// [`StoreError::Corrupt`] when the bytes are not what [`Packer`] makes of so many entries.
pub(crate) fn unpack(
    bytes: &[u8],
    count: u64,
    each: &mut dyn FnMut(StreamItem) -> bool,
) -> Result<(), StoreError> {
    let damaged = || {
        StoreError::Corrupt(
            "a batch of stream entries in the catalog is not as written; restore the catalog from a backup"
                .to_owned(),
        )
    };
    let mut rest = Rest(bytes);
    if rest.byte() != Some(FORMAT) {
        return Err(damaged());
    }
    for _ in 0..count {
        if !each(item(&mut rest).ok_or_else(damaged)?) {
            return Ok(());
        }
    }
    if rest.0.is_empty() { Ok(()) } else { Err(damaged()) }
}

fn item(rest: &mut Rest<'_>) -> Option<StreamItem> {
    let payload = PayloadId::from_bytes(rest.take(16)?.try_into().ok()?);
    let flags = rest.byte()?;
    if flags & !(EVENT_TIME | DURATION | TAGS) != 0 {
        return None;
    }
    let has = |flag: u8| flags & flag != 0;
    let event_time = if has(EVENT_TIME) {
        let seconds = rest.number()?;
        let seconds = (seconds >> 1).cast_signed() ^ -(seconds & 1).cast_signed();
        let nanoseconds = u32::try_from(rest.number()?).ok().filter(|number| *number < 1_000_000_000)?;
        Some(Timestamp { seconds, nanoseconds })
    } else {
        None
    };
    let duration_ns = if has(DURATION) { rest.number()? } else { 0 };
    let mut tags = Vec::new();
    if has(TAGS) {
        let count = rest.number()?;
        for _ in 0..count {
            // Each takes two bytes at least, so a count that lies ends here and not in a huge allocation.
            tags.push((rest.text()?, rest.text()?));
        }
    }
    Some(StreamItem { payload, event_time, duration_ns, tags })
}

/// What is left to read.
struct Rest<'bytes>(&'bytes [u8]);

impl<'bytes> Rest<'bytes> {
    fn take(&mut self, length: usize) -> Option<&'bytes [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|taken| taken[0])
    }

    fn number(&mut self) -> Option<u64> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7F);
            if bits << shift >> shift != bits {
                return None;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn text(&mut self) -> Option<String> {
        let length = usize::try_from(self.number()?).ok()?;
        String::from_utf8(self.take(length)?.to_vec()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items() -> Vec<StreamItem> {
        let plain = |number: u8| StreamItem {
            payload: PayloadId::from_bytes([number; 16]),
            event_time: None,
            duration_ns: 0,
            tags: Vec::new(),
        };
        let time = |seconds, nanoseconds| Some(Timestamp { seconds, nanoseconds });
        let tag = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        vec![
            plain(0),
            StreamItem { event_time: time(i64::MIN, 999_999_999), duration_ns: u64::MAX, ..plain(255) },
            StreamItem { event_time: time(i64::MAX, 0), ..plain(1) },
            StreamItem { event_time: time(-1, 1), tags: vec![tag("", "")], ..plain(2) },
            StreamItem {
                duration_ns: 1,
                tags: vec![tag("a\0b", "é"), tag("k", &"v".repeat(300))],
                ..plain(3)
            },
        ]
    }

    fn packed(items: &[StreamItem]) -> Vec<u8> {
        let mut packer = Packer::new();
        items.iter().for_each(|item| packer.add(item));
        assert_eq!(packer.count(), items.len() as u64);
        packer.bytes().to_vec()
    }

    fn unpacked(bytes: &[u8], count: u64) -> Result<Vec<StreamItem>, StoreError> {
        let mut items = Vec::new();
        unpack(bytes, count, &mut |item| {
            items.push(item);
            true
        })?;
        Ok(items)
    }

    #[test]
    fn given_entries_of_every_kind_when_packed_then_they_return_as_they_were() {
        let items = items();
        assert_eq!(unpacked(&packed(&items), 5).as_ref(), Ok(&items));
        assert_eq!(packed(&items[..1]).len(), 1 + 17);
        let mut seen = 0;
        let stopped = unpack(&packed(&items), 5, &mut |_| {
            seen += 1;
            seen < 2
        });
        assert_eq!((stopped, seen), (Ok(()), 2));
    }

    #[test]
    fn given_bytes_that_were_cut_when_unpacked_then_corrupt_at_every_length() {
        let whole = packed(&items());
        for length in 0..whole.len() {
            assert!(matches!(unpacked(&whole[..length], 5), Err(StoreError::Corrupt(_))), "{length}");
        }
        let mut longer = whole.clone();
        longer.push(0);
        assert!(matches!(unpacked(&longer, 5), Err(StoreError::Corrupt(_))));
        assert!(matches!(unpacked(&whole, 4), Err(StoreError::Corrupt(_))), "there are five");
        assert!(matches!(unpacked(&whole, u64::MAX), Err(StoreError::Corrupt(_))));
    }

    #[test]
    fn given_hostile_bytes_when_unpacked_then_corrupt_and_nothing_huge_is_allocated() {
        let with = |tail: &[u8]| [&[FORMAT][..], &[7; 16], tail].concat();
        for tail in [
            &[8][..],                                                                // a flag that has no meaning
            &[TAGS, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F],                                   // 2^35 tags
            &[TAGS, 1, 0xFF, 0xFF, 0xFF, 0xFF, 0x0F, 1],                             // a key of 4 GiB
            &[TAGS, 1, 1, 0xFF, 0],                                                  // no UTF-8
            &[DURATION, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x02], // 2^64
            &[EVENT_TIME, 0, 0x80, 0x94, 0xEB, 0xDC, 0x03],                          // 10^9 nanoseconds
        ] {
            assert!(matches!(unpacked(&with(tail), 1), Err(StoreError::Corrupt(_))), "{tail:?}");
        }
        assert!(unpacked(&with(&[0]), 1).is_ok(), "the canary: such bytes without the fault are fine");
        assert!(matches!(unpacked(&[2], 0), Err(StoreError::Corrupt(_))), "a later format");
    }

    #[test]
    fn given_any_byte_changed_when_unpacked_then_it_is_an_answer_or_corrupt_and_never_a_panic() {
        let whole = packed(&items());
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut bytes = whole.clone();
                bytes[at] ^= 1 << bit;
                if let Err(error) = unpacked(&bytes, 5) {
                    assert!(matches!(error, StoreError::Corrupt(_)), "{error}");
                }
            }
        }
    }
}
