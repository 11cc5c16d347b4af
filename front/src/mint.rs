//! Makes what must be unique or unguessable: payload ids and lease nonces. The core gets both as values.
//!
//! Ids are UUIDv7 with a strictly growing time part, so the order of ids is the order of Allocate calls. A shard is
//! chosen first (round robin) and random tails are drawn until the id hashes there: with n shards n draws on
//! average, 10 ns each.

use std::sync::atomic::{AtomicU64, Ordering};

use payload_reactor::clock;
use payload_types::{LeaseNonce, PayloadId, ShardIndex};
use rand::Rng;

/// Bits of a tick below the millisecond: `PayloadId::mint` takes milliseconds x 4096 + a 12-bit fraction.
const FRACTION_BITS: u32 = 12;

/// The source of ids of this process.
#[derive(Debug)]
pub struct Mint {
    ticks_last: AtomicU64,
    turn: AtomicU64,
    shard_count: u16,
}

impl Mint {
    /// A source of ids for a node with `shard_count` shards.
    ///
    /// # Panics
    /// When `shard_count` is 0.
    pub fn new(shard_count: u16) -> Self {
        assert!(shard_count > 0, "a node has at least one shard");
        Self { ticks_last: AtomicU64::new(0), turn: AtomicU64::new(0), shard_count }
    }

    /// A new id, and the shard that owns it.
    pub fn payload_id(&self) -> (PayloadId, ShardIndex) {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let shard = ShardIndex((turn % u64::from(self.shard_count)) as u16);
        let ticks = self.ticks_next();
        let mut random = rand::rng();
        loop {
            let id = PayloadId::mint(ticks, random.next_u64());
            if id.shard(self.shard_count) == shard {
                return (id, shard);
            }
        }
    }

    /// The unguessable part of a lease id, from the thread's CSPRNG.
    pub fn lease_nonce(&self) -> LeaseNonce {
        let mut bytes = [0; 10];
        rand::rng().fill_bytes(&mut bytes);
        LeaseNonce(bytes)
    }

    /// The wall clock in ticks, or one more than the last answer when the clock stands still or went back.
    fn ticks_next(&self) -> u64 {
        let clock_ticks = clock::now().wall.as_millis() << FRACTION_BITS;
        let next = |last: u64| clock_ticks.max(last + 1);
        let last = self
            .ticks_last
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(next(last)))
            .expect("the update never declines");
        next(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_many_ids_when_minted_then_they_grow_and_hash_to_their_shard_evenly() {
        let mint = Mint::new(3);
        let minted: Vec<_> = (0..3000).map(|_| mint.payload_id()).collect();
        assert!(minted.windows(2).all(|pair| pair[0].0 < pair[1].0));
        assert!(minted.iter().all(|(id, shard)| id.shard(3) == *shard));
        for shard in 0..3 {
            assert_eq!(minted.iter().filter(|(_, owner)| owner.0 == shard).count(), 1000);
        }
    }

    #[test]
    fn given_two_nonces_when_drawn_then_they_differ() {
        let mint = Mint::new(1);
        assert_ne!(mint.lease_nonce(), mint.lease_nonce());
    }
}
