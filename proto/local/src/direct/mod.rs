//! Direct leases: reading with no server round trip (DESIGN §8; docs/decisions/2026-11-23-direct-leases.md).
//!
//! Used by the reactor (server) and the client's library; all of it is safe code over [`Word`](crate::Word)s that
//! somebody else has mapped. Nothing here sleeps, waits for a reader, or makes a system call.
//!
//! ```text
//!             server writes, clients read only            a session writes, server reads       server writes for a session
//!   index     one a shard and namespace             page  cells: what each lease holds   status  epoch, tick, revoked[cell]
//!             id -> location, generation, state     ring  samples of what was read
//!
//!   acquire   look the id up -> cell = claim -> full fence -> look at the entry's state and `closed` again
//!   release   cell = 0
//!   drop      withdraw the entry -> limbo -> full fence -> read all cells: a claim that is nowhere is free to reuse
//! ```
//!
//! The claim is `generation << 8 | shard`. A shard never gives a generation twice, so a claim names one publication of one
//! block on the node for ever, wherever its entry lies: entries may be moved and tables be replaced while readers read.
//! Either the server's scan sees the claim, or the reader's second look sees that the entry is withdrawn: both fence
//! between their write and their look. Nobody waits for the other.
//!
//! Invariants: of one claim everything that a lease shows is fixed, but for version and expiry, a word each. What a client writes
//! is only compared with what the server made: a hostile one harms its own leases.

pub mod access;
pub mod index;
pub mod page;
pub mod publish;
pub mod read;
pub mod scan;

use std::num::NonZeroU64;

use payload_types::{Generation, ShardIndex, limits};

pub use index::{Entry, IndexView};
pub use page::{CellsView, StatusView};
pub use publish::{Full, Publisher, Tables};
pub use read::{Found, Miss};
pub use scan::{Marks, Scan};

/// Generations have 56 bits here: a million a second for 2,000 years.
pub const GENERATION_BITS: u32 = 56;

const _: () = assert!(limits::SHARD_COUNT_MAX <= 1 << (u64::BITS - GENERATION_BITS));

/// What a cell says, and what limbo waits for: one publication of one block on this node. Never 0, which is an empty cell.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Claim(NonZeroU64);

impl Claim {
    /// The claim on what a shard published under a generation.
    ///
    /// # Panics
    /// When the generation is 0 or has more than 56 bits: shards count from 1, one at a time.
    #[inline]
    pub fn new(shard: ShardIndex, generation: Generation) -> Self {
        assert!(generation.0 >> GENERATION_BITS == 0, "a shard never makes 2^56 generations");
        assert!(shard.0 < limits::SHARD_COUNT_MAX, "a node has 256 shards at most");
        let bits = NonZeroU64::new(generation.0).expect("shards count generations from 1");
        // Cannot lose bits: the generation has 56.
        Self(NonZeroU64::new(bits.get() << 8 | u64::from(shard.0)).expect("the generation is not 0"))
    }

    /// As a cell holds it.
    #[inline]
    pub fn bits(self) -> u64 {
        self.0.get()
    }

    /// The claim with these bits; `None` for those that no publication has.
    #[inline]
    pub fn from_bits(bits: u64) -> Option<Self> {
        NonZeroU64::new(bits).filter(|bits| bits.get() >> 8 != 0).map(Self)
    }

    /// Under which generation it was published.
    #[inline]
    pub fn generation(self) -> Generation {
        Generation(self.0.get() >> 8)
    }

    /// By which shard.
    #[inline]
    pub fn shard(self) -> ShardIndex {
        ShardIndex((self.0.get() & 0xFF) as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_a_claim_when_stored_as_a_number_then_it_comes_back_and_no_number_without_a_generation_is_one() {
        for (shard, generation) in [(0, 1), (255, 1), (7, (1 << GENERATION_BITS) - 1)] {
            let claim = Claim::new(ShardIndex(shard), Generation(generation));
            assert_eq!(Claim::from_bits(claim.bits()), Some(claim));
            assert_eq!((claim.shard(), claim.generation()), (ShardIndex(shard), Generation(generation)));
        }
        assert_eq!((Claim::from_bits(0), Claim::from_bits(255)), (None, None));
    }
}
