//! The server's look at cells: which claims are held, by whom, and how a lease is taken away.
//!
//! A scan answers for a batch: the claims of what was withdrawn go into a table, and all cells of all sessions are
//! streamed through it. So what a client writes is only ever looked up among what the server made (no flooding), and a cell is
//! read once a batch. Nobody is waited for: what is held stays in limbo and is looked for again.

use std::sync::atomic::Ordering;

use super::Claim;
use super::page::{CellIndex, CellsView, StatusView};
use crate::word::Word;

/// Claims of one scan: 64 sessions of one line each cost about 2 us, so 256 of them less than 10 ns a claim.
pub const BATCH_MAX: usize = 256;

/// Slots of the table, a quarter full at most: 9 KiB, which a level-1 cache holds.
const SLOTS: usize = 4 * BATCH_MAX;
const SLOT_BITS: u32 = SLOTS.trailing_zeros();

const _: () = assert!(SLOTS.is_power_of_two() && BATCH_MAX <= 1 << u8::BITS);

/// Which claims of a batch: a bit each, in the order in which they were given.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Marks([u64; BATCH_MAX / 64]);

impl Marks {
    /// Adds one.
    #[inline]
    pub fn set(&mut self, at: usize) {
        self.0[at / 64] |= 1 << (at % 64);
    }

    /// Whether it is among them.
    #[inline]
    pub fn has(&self, at: usize) -> bool {
        self.0[at / 64] >> (at % 64) & 1 != 0
    }

    /// True for none.
    pub fn is_empty(&self) -> bool {
        self.0 == [0; BATCH_MAX / 64]
    }

    /// As the words in which they travel to a shard.
    pub fn bits(self) -> [u64; BATCH_MAX / 64] {
        self.0
    }

    /// Adds another's.
    pub fn merge(&mut self, other: &Self) {
        for (mine, other) in self.0.iter_mut().zip(other.0) {
            *mine |= other;
        }
    }
}

/// A batch of claims that are looked for.
#[derive(Debug)]
pub struct Scan {
    /// 0 is free.
    claims: [u64; SLOTS],
    /// Places in the batch.
    places: [u8; SLOTS],
}

impl Scan {
    /// Begins a scan for claims that are withdrawn already, each given once: a full fence, and from then on cells may be read.
    ///
    /// # Panics
    /// For more than [`BATCH_MAX`] claims.
    pub fn begin<W: Word>(claims: impl IntoIterator<Item = Claim>) -> Self {
        let mut scan = Self { claims: [0; SLOTS], places: [0; SLOTS] };
        for (place, claim) in claims.into_iter().enumerate() {
            assert!(place < BATCH_MAX, "at most {BATCH_MAX} claims a scan");
            let mut at = slot_of(claim.bits());
            while scan.claims[at] != 0 {
                at = (at + 1) % SLOTS;
            }
            (scan.claims[at], scan.places[at]) = (claim.bits(), place as u8);
        }
        // Full: the withdrawals come before the cells are read. A reader that put its claim out in time is seen; one that
        // did not sees the withdrawal at its second look (DMB ISH on ARM; on x86 the one fence that costs something, once a batch).
        W::fence(Ordering::SeqCst);
        scan
    }

    /// Which of the claims a session holds. What its cells say is anything.
    pub fn pass<W: Word>(&self, cells: &CellsView<'_, W>) -> Marks {
        let mut marks = Marks::default();
        for cell in cells.in_use() {
            // Acquire: a cell that is empty, or says something else, ends the lease that was there; what was read under it is read
            // before the block is written to (LDAPR on ARM, a plain load on x86).
            let value = cell.load(Ordering::Acquire);
            if value != 0
                && let Some(place) = self.find(value)
            {
                marks.set(place);
            }
        }
        marks
    }

    #[inline]
    fn find(&self, value: u64) -> Option<usize> {
        let mut at = slot_of(value);
        loop {
            match self.claims[at] {
                0 => return None,
                claim if claim == value => return Some(usize::from(self.places[at])),
                // Ends: three quarters of the slots are free.
                _ => at = (at + 1) % SLOTS,
            }
        }
    }
}

/// Fibonacci hashing: generations follow one another, so those of a batch lie apart.
#[inline]
fn slot_of(claim: u64) -> usize {
    (claim.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (u64::BITS - SLOT_BITS)) as usize
}

/// Takes a claim away from a session that holds it; how many cells said it. The claim was withdrawn, and a scan began after that.
///
/// From then on `is_valid` is false for those leases. Bytes may be written over afterwards, never for another namespace.
pub fn revoke<W: Word>(cells: &CellsView<'_, W>, status: &StatusView<'_, W>, claim: Claim) -> usize {
    let mut count = 0;
    for (at, cell) in cells.in_use().iter().enumerate() {
        if cell.load(Ordering::Relaxed) == claim.bits() {
            status.revoked(CellIndex(at as u16)).store(claim.bits(), Ordering::Relaxed);
            count += 1;
        }
    }
    // Release: whoever writes over the bytes does so behind this; a reader that reads one of those bytes and fences
    // (Acquire) then sees the revocation (DMB ISH on ARM, nothing on x86).
    W::fence(Ordering::Release);
    count
}
