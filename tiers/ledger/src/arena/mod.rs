//! The books of arena slabs (DESIGN §5): who lies where in the memory that one session writes into.
//!
//! ```text
//! allocate ─> Placed: a block of a slab, at once
//!        └──> NeedsSlab / NeedsOwn: charge so many bytes, have the memory made, add_slab / add_own
//! a block's life:  Live ──retire──> Limbo ──reclaim──> free: may be placed again       (its old lease holders have gone)
//!                     └──free─────────────────────────^                             (nobody was ever told of it)
//! a slab's life:   add_slab ─> blocks come and go ─> take_surplus: nothing is left, so it goes back as a whole
//! ```
//! One [`Arena`] a writer session and shard, owned by the shard. Pure: the driver (`tiers/drivers`, `arena`) makes, seals,
//! touches, zeroes and returns the memory that these books talk of.
//!
//! - Small blocks (below 4 KiB) begin on cache lines of 64 bytes, all others on pages; see [`Geometry::fit`] for sizes.
//! - Every call takes a bounded time, whatever there is: bins and bits, no search ([`pages`], [`spans`]).
//! - A block's generation changes when it is retired, and again when it is placed: what an old lease names is never what
//!   stands there now. Generations are the caller's ([`payload_types::Generation`]); the books insist that they grow.
//! - Memory is charged in whole slabs: [`Arena::charged`] is what the kernel shows of them (`tiers/drivers` tests it).
//!
//! Limits: [`MEMORIES_MAX`] memories an arena. 12 bytes of books a page (192 KiB for 64 MiB), and for small blocks 8 bytes
//! each and a slot a span.

mod books;
mod geometry;
mod pages;
mod sizes;
mod spans;

use std::ops::Range;

use payload_types::{ByteCount, Generation};

pub use books::Arena;
pub use geometry::{Fit, Geometry, UNIT_BYTES};

/// Slabs and memories of payloads' own that one arena may have: 4,096 slabs are 256 GiB, and each costs the server a
/// descriptor.
pub const MEMORIES_MAX: usize = 4096;

/// Pages are touched in pieces of this many bytes: a large page, and about a millisecond of small ones.
pub const PREFAULT_BYTES: u64 = 2 << 20;

/// Which slab, or memory of one payload's own, of its arena. The number is used again after the memory was returned; what
/// clients are told must name the memory itself.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct MemoryIndex(pub u16);

/// Where a block begins.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Place {
    /// In which memory.
    pub memory: MemoryIndex,
    /// After so many cache lines.
    pub unit: u32,
}

impl Place {
    /// Where it begins, in bytes from its memory's start.
    pub fn offset_bytes(self) -> u64 {
        u64::from(self.unit) * UNIT_BYTES
    }
}

/// A block in one of its lives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Block {
    /// Where it is.
    pub place: Place,
    /// Which life.
    pub generation: Generation,
}

/// What separates those who may not see one another's bytes, as the caller tells them apart: within a slab these are
/// payloads of different owners, because a slab is never shared between namespaces.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Domain(pub u64);

/// An allocation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// Of the payload, not 0.
    pub size: ByteCount,
    /// Of the block's new life; above all that this arena was ever given.
    pub generation: Generation,
    /// Whose bytes these will be.
    pub domain: Domain,
}

/// What an allocation is answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Room {
    /// A place.
    Placed(Placed),
    /// No slab has room. Once one more is charged and made, [`Arena::add_slab`], and ask again. The slab's bytes.
    NeedsSlab(ByteCount),
    /// Too large for a slab. Once so many bytes are charged and made, [`Arena::add_own`].
    NeedsOwn(ByteCount),
    /// The arena has as many memories, or blocks, as it may have.
    Full,
}

/// A new block.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Placed {
    /// Its name.
    pub block: Block,
    /// What it takes of its memory.
    pub bytes: ByteCount,
    /// What has to be zeroed.
    pub zero: Option<Zero>,
    /// Touch the slab's pages up to this many bytes from its start, in the background.
    pub prefault_to: Option<u64>,
}

/// A part of a memory that may hold an earlier payload's bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Zero {
    /// From the memory's start.
    pub range: Range<u64>,
    /// True: these may be another domain's, so they are to be zeroed before anybody is told of the block. False: it is
    /// the tail of the payload's last page (below 4 KiB: of its block) after earlier payloads of the same domain, to be zeroed
    /// before that page leaves the slab as a page.
    pub crosses_domains: bool,
}

/// A block was not what the caller took it for: it is gone, or has another generation, or is (not) in limbo.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stale(pub Block);

impl std::fmt::Display for Stale {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self(Block { place, generation }) = self;
        write!(
            formatter,
            "no block of generation {} is in that state at byte {} of memory {}; it was ended before",
            generation.0,
            place.offset_bytes(),
            place.memory.0
        )
    }
}

impl std::error::Error for Stale {}

/// What the end of a block leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Freed {
    /// Its slab goes on.
    Block,
    /// Its slab has nothing left: [`Arena::take_surplus`] may return it.
    SlabEmpty,
    /// It was a memory of its own, of so many bytes, which is out of the books: have it returned, then end its charge.
    Own(ByteCount),
}

/// Sums over an arena.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// Slabs, empty ones included.
    pub slabs: usize,
    /// Memories of payloads' own.
    pub own: usize,
    /// What all of them take.
    pub bytes_charged: ByteCount,
    /// Of that: pages in which a block lives or is in limbo.
    pub bytes_used: ByteCount,
    /// Blocks that live.
    pub blocks_live: u64,
    /// Blocks in limbo.
    pub blocks_limbo: u64,
}
