//! How large slabs and blocks are.

use payload_types::ByteCount;
use payload_types::limits::PAGE_BYTES;

use super::sizes;

/// Blocks begin on cache lines: no two payloads share one. Offsets are counted in these.
pub const UNIT_BYTES: u64 = 64;

/// Units of a page.
pub(super) const PAGE_UNITS: u32 = (PAGE_BYTES / UNIT_BYTES) as u32;

/// The largest slab (DESIGN §5).
const SLAB_BYTES_MAX: u64 = 64 << 20;

/// The smallest: a few spans of any class must fit. Below it each payload has memory of its own.
const SLAB_BYTES_MIN: u64 = 256 << 10;

/// A capacity has room for so many slabs at least (DESIGN §5).
const SLABS_AT_LEAST: u64 = 64;

/// Blocks up to this share of a slab have sizes in classes.
const CLASS_SHARE: u32 = 16;

/// Blocks beyond this share of a slab have memory of their own.
const RUN_SHARE: u32 = 2;

/// The smallest size that begins on a page, in units; the classes below it are cut from spans of pages.
const PAGED_UNITS: u32 = PAGE_UNITS;

/// Classes of blocks that share pages: 64, 128, ... 3,840 bytes.
pub(super) const SMALL_CLASSES: usize = sizes::step(PAGED_UNITS) as usize;

/// A span has so many blocks at most: a bit each in one word.
const SPAN_BLOCKS_MAX: u32 = u64::BITS;

/// And at least so many, so that opening one is rare.
const SPAN_BLOCKS_MIN: u32 = 16;

/// What a size is given.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fit {
    /// A block of so many bytes that shares pages with others of its class.
    Small(ByteCount),
    /// A run of so many pages.
    Pages(u32),
    /// Memory of its own, of so many bytes: too large for a slab.
    Own(ByteCount),
}

impl Fit {
    /// What it takes.
    pub fn bytes(self) -> ByteCount {
        match self {
            Self::Small(bytes) | Self::Own(bytes) => bytes,
            Self::Pages(pages) => ByteCount(u64::from(pages) * PAGE_BYTES),
        }
    }
}

/// The sizes of one node's slabs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    slab_pages: u32,
}

impl Geometry {
    /// Slabs of min(64 MiB, capacity / 64), whole pages. A capacity below 16 MiB has none: everything is [`Fit::Own`].
    pub fn of_capacity(capacity: ByteCount) -> Self {
        let bytes = (capacity.0 / SLABS_AT_LEAST).min(SLAB_BYTES_MAX);
        Self { slab_pages: if bytes < SLAB_BYTES_MIN { 0 } else { (bytes / PAGE_BYTES) as u32 } }
    }

    /// Bytes of a slab; 0 where there are none.
    pub fn slab_bytes(self) -> ByteCount {
        ByteCount(u64::from(self.slab_pages) * PAGE_BYTES)
    }

    pub(super) fn slab_pages(self) -> u32 {
        self.slab_pages
    }

    /// What a payload of this size is given.
    ///
    /// - below 4 KiB: begins on a cache line, at most an eighth more than whole cache lines
    /// - from 4 KiB up to a 16th of a slab: begins on a page, at most an eighth more than whole pages
    /// - up to half a slab: whole pages
    /// - beyond: whole pages of its own
    ///
    /// # Panics
    /// When `size` is 0: no payload is empty.
    pub fn fit(self, size: ByteCount) -> Fit {
        assert!(size.0 > 0, "a payload has at least one byte");
        let pages = size.0.div_ceil(PAGE_BYTES);
        if pages > u64::from(self.slab_pages / RUN_SHARE) {
            return Fit::Own(size.in_pages());
        }
        let pages = pages as u32;
        let units = sizes::round_up(size.0.div_ceil(UNIT_BYTES).min(u64::from(PAGED_UNITS)) as u32);
        if units < PAGED_UNITS {
            return Fit::Small(ByteCount(u64::from(units) * UNIT_BYTES));
        }
        let has_class = pages <= self.slab_pages / CLASS_SHARE;
        Fit::Pages(if has_class { sizes::round_up(pages) } else { pages })
    }
}

/// The pages that blocks of one small class are cut from: all of them are used, nothing is left over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SpanShape {
    /// Of a block.
    pub(super) units: u32,
    /// In a span.
    pub(super) blocks: u32,
    /// Of a span.
    pub(super) pages: u32,
}

impl SpanShape {
    /// Of the class whose number is `class`.
    pub(super) fn of_class(class: usize) -> Self {
        SHAPES[class]
    }

    const fn find(class: usize) -> Self {
        let units = sizes::start(class as u32);
        let mut blocks = SPAN_BLOCKS_MIN;
        while !(units * blocks).is_multiple_of(PAGE_UNITS) {
            blocks *= 2;
        }
        assert!(blocks <= SPAN_BLOCKS_MAX, "64 blocks of any class are whole pages");
        Self { units, blocks, pages: units * blocks / PAGE_UNITS }
    }

    /// All of its blocks, a bit each.
    pub(super) fn mask(self) -> u64 {
        u64::MAX >> (SPAN_BLOCKS_MAX - self.blocks)
    }
}

/// By class.
const SHAPES: [SpanShape; SMALL_CLASSES] = {
    let mut shapes = [SpanShape { units: 0, blocks: 0, pages: 0 }; SMALL_CLASSES];
    let mut class = 1;
    while class < SMALL_CLASSES {
        shapes[class] = SpanShape::find(class);
        class += 1;
    }
    shapes
};

const _: () = assert!(SLAB_BYTES_MIN / PAGE_BYTES / 2 >= 15, "a span fits the smallest slab");
const _: () =
    assert!(SLAB_BYTES_MAX / PAGE_BYTES <= 1 << 14, "a page's number and a run's length fit 16 bits");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_capacities_when_divided_then_slabs_are_a_64th_and_64_mib_at_most() {
        for (capacity, slab) in [
            (1 << 40, 64 << 20),
            (4 << 30, 64 << 20),
            (1 << 30, 16 << 20),
            ((1 << 30) + 4095 * 64, 16 << 20),
            (16 << 20, 256 << 10),
            ((16 << 20) - 1, 0),
            (0, 0),
        ] {
            assert_eq!(
                Geometry::of_capacity(ByteCount(capacity)).slab_bytes(),
                ByteCount(slab),
                "{capacity}"
            );
        }
    }

    #[test]
    fn given_any_size_when_fitted_then_waste_is_an_eighth_at_most_beyond_lines_and_pages() {
        let geometry = Geometry::of_capacity(ByteCount(4 << 30));
        let mut size = 1u64;
        while size <= 40 << 20 {
            for size in [size, size + 1, size.next_power_of_two()] {
                let bytes = geometry.fit(ByteCount(size)).bytes().0;
                let unit = if size < PAGE_BYTES { UNIT_BYTES } else { PAGE_BYTES };
                let whole = size.next_multiple_of(unit);
                assert!(bytes >= whole && (bytes - whole) * 8 <= whole, "{size}: {bytes}");
                assert!(bytes >= PAGE_BYTES || bytes.is_multiple_of(UNIT_BYTES));
                assert!(size < PAGE_BYTES || bytes.is_multiple_of(PAGE_BYTES), "{size}: {bytes}");
            }
            size += size / 13 + 1;
        }
        assert_eq!(geometry.fit(ByteCount(4 << 20)), Fit::Pages(1024), "a 16th: the last class");
        assert_eq!(geometry.fit(ByteCount((4 << 20) + 1)), Fit::Pages(1025), "beyond it, pages");
        assert_eq!(geometry.fit(ByteCount(32 << 20)), Fit::Pages(8192), "half");
        assert_eq!(geometry.fit(ByteCount((32 << 20) + 1)), Fit::Own(ByteCount((32 << 20) + 4096)));
        assert_eq!(Geometry::of_capacity(ByteCount(0)).fit(ByteCount(1)), Fit::Own(ByteCount(4096)));
    }

    #[test]
    fn given_every_small_class_when_cut_then_no_byte_of_a_span_is_left_over() {
        for class in 1..SMALL_CLASSES {
            let shape = SpanShape::of_class(class);
            assert_eq!(shape.units * shape.blocks, shape.pages * PAGE_UNITS);
            assert!((16..=64).contains(&shape.blocks) && shape.pages <= 15, "{shape:?}");
            assert_eq!(shape.mask().count_ones(), shape.blocks);
        }
    }
}
