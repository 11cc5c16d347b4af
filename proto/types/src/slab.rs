//! Memory of native sessions (DESIGN §5, "Arena slabs"): how it is named, and what a shard asks of who makes it.
//!
//! A slab is a memfd that one session writes and others read. Its books are the shard's (`ledger::arena`); its
//! descriptor is the session thread's. They speak of it by [`SlabId`]:
//!
//! ```text
//!   shard -- Make --> session thread: made, offered to the writer, mapped by him, sealed -- Made --> shard
//!         -- Zero, Freeze --> one answer each          -- Prefault --> no answer
//!         -- Return --> taken from everybody, proven to be nobody's -- Returned --> shard
//! ```

use std::fmt;
use std::num::NonZeroU32;

use crate::event::DriverError;
use crate::ids::{OpId, ShardIndex};
use crate::session::SessionId;
use crate::units::ByteCount;

/// Blocks begin at multiples of this: a cache line. A slab of 2^32 units has 256 GiB, twice the largest payload.
pub const BLOCK_UNIT_BYTES: u64 = 64;

/// Names a slab; unique on a node in one start of a server, because clients remember mappings by it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SlabId(NonZeroU32);

impl SlabId {
    /// The slab with this number; `None` for 0.
    pub fn new(number: u32) -> Option<Self> {
        NonZeroU32::new(number).map(Self)
    }

    /// The `counter`-th slab that a shard of `shard_count` makes; `None` once its share of the numbers is used up, which
    /// takes 2^24 slabs where there are 256 shards.
    pub fn minted(shard: ShardIndex, shard_count: u16, counter: u32) -> Option<Self> {
        let number = u64::from(counter) * u64::from(shard_count) + u64::from(shard.0) + 1;
        Self::new(u32::try_from(number).ok()?)
    }

    /// The shard whose slab it is.
    pub fn shard(self, shard_count: u16) -> ShardIndex {
        ShardIndex(((self.0.get() - 1) % u32::from(shard_count)) as u16)
    }

    /// Its number, from 1 on.
    pub fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for SlabId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// Where a payload lies in a slab. One with memory of its own lies at the beginning of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Block {
    /// Which slab.
    pub slab: SlabId,
    /// Where the bytes begin, in [`BLOCK_UNIT_BYTES`] from the slab's start.
    pub unit: u32,
}

impl Block {
    /// Where the bytes begin, in bytes from the slab's start.
    pub fn offset_bytes(self) -> u64 {
        u64::from(self.unit) * BLOCK_UNIT_BYTES
    }

    /// As one number; never 0.
    pub fn to_bits(self) -> u64 {
        u64::from(self.slab.get()) << 32 | u64::from(self.unit)
    }

    /// The block with this number; `None` for a number that no block has.
    pub fn from_bits(bits: u64) -> Option<Self> {
        Some(Self { slab: SlabId::new((bits >> 32) as u32)?, unit: bits as u32 })
    }
}

/// Which kind of memory a payload on tier RAM gets (DESIGN §5).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Memory {
    /// A named segment of its own, which every client can open. The only one for clients without a session, and
    /// everywhere but on tier RAM.
    #[default]
    Segment,
    /// A block in a slab of the session that asks.
    Arena,
    /// A memfd of its own, which the kernel makes immutable at Commit.
    Sealed,
}

/// Work on one slab. Receiver: the session thread. Never lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SlabOp {
    /// Who gets the answer.
    pub shard: ShardIndex,
    /// The slot that waits; unused by `Prefault`, and by `Return`, which the slab names.
    pub op: OpId,
    /// Its writer.
    pub session: SessionId,
    /// Which; minted by the shard.
    pub slab: SlabId,
    /// What to do.
    pub action: SlabAction,
}

/// What to do with a slab.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SlabAction {
    /// Make it, offer it to its writer, and seal it once he has mapped it (`isolated`: it is sealed by `Freeze`).
    /// Answered by `SlabDone::Made`; on an error nothing is left behind.
    Make {
        /// Whole pages.
        bytes: ByteCount,
        /// For one payload that the kernel makes immutable at Commit: no mapping of the server's, ever.
        isolated: bool,
    },
    /// Have the pages up to here, in bytes from its start, before somebody writes to them. Not answered.
    Prefault {
        /// Whole pages.
        to: ByteCount,
    },
    /// Overwrite this part with zeroes before it is handed out. Answered by `SlabDone::Zeroed`.
    Zero {
        /// From the slab's start.
        offset: u64,
        /// So many.
        bytes: ByteCount,
    },
    /// Let nobody write to it any more (an isolated one, at Commit). Answered by `SlabDone::Frozen` or `StillWritable`.
    Freeze,
    /// Nobody of ours refers to it any more: tell its clients to unmap it, and free it once it is proven that nobody has it
    /// mapped. Answered by `SlabDone::Returned`, possibly much later; its capacity stays charged until then.
    Return,
}

/// The end of a [`SlabOp`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SlabDone {
    /// `SlabAction::Make`: its writer has mapped it, and nobody else can ever write to it.
    Made {
        /// The slot.
        op: OpId,
        /// On an error nothing is left of it.
        result: Result<(), DriverError>,
    },
    /// `SlabAction::Zero`.
    Zeroed {
        /// The slot.
        op: OpId,
        /// The outcome.
        result: Result<(), DriverError>,
    },
    /// `SlabAction::Freeze`: nobody can write to it.
    Frozen {
        /// The slot.
        op: OpId,
        /// The outcome.
        result: Result<(), DriverError>,
    },
    /// `SlabAction::Freeze`: somebody can still write to it. It is as it was, and may be tried again.
    StillWritable {
        /// The slot.
        op: OpId,
    },
    /// `SlabAction::Return`: its memory is free.
    Returned {
        /// Which.
        slab: SlabId,
        /// What it was made with.
        bytes: ByteCount,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_a_block_when_stored_as_a_number_then_it_comes_back_and_no_number_without_a_slab_is_one() {
        for (slab, unit) in [(1, 0), (7, 65_535), (u32::MAX, u32::MAX)] {
            let block = Block { slab: SlabId::new(slab).expect("not 0"), unit };
            assert_eq!(Block::from_bits(block.to_bits()), Some(block));
        }
        assert_eq!(Block::from_bits(u64::from(u32::MAX)), None);
    }

    #[test]
    fn given_several_shards_when_they_mint_slabs_then_no_name_comes_twice_and_each_tells_its_shard() {
        let mut seen = std::collections::BTreeSet::new();
        for counter in 0..100 {
            for shard in (0..3).map(ShardIndex) {
                let slab = SlabId::minted(shard, 3, counter).expect("far from the end");
                assert!(seen.insert(slab));
                assert_eq!(slab.shard(3), shard);
            }
        }
        assert_eq!(SlabId::minted(ShardIndex(2), 3, u32::MAX / 3), None);
    }
}
