//! Samples of what direct readers read: how eviction knows what is hot although nobody calls.
//!
//! A ring a session and shard, which its client writes, and the server reads now and then. Lossy on purpose: what is
//! written over is lost, nobody waits. Forgeable on purpose: a sample is a hint; each session has the same number of samples a
//! drain, whatever it claims, so that none can make its own payloads look hotter than others can theirs.
//!
//! ```text
//!   line 0     word 0  how many were written ever
//!   line 1..   RING_LEN samples: position of the entry 32 | low half of its generation 32; 0 is none
//! ```

use std::sync::atomic::Ordering;

use payload_types::{Generation, PayloadId};

use super::index::IndexView;
use crate::layout::{LINE_BYTES, LINE_WORDS};
use crate::word::Word;

/// Samples that a ring holds, a power of two: 8 drains' worth.
pub const RING_LEN: usize = 512;

/// Samples that a drain takes from one session: 64 touches cost a shard about 5 us.
pub const DRAIN_MAX: usize = 64;

/// One acquire in so many is sampled, on average. A touch more or less does not matter to what is read often.
pub const PERIOD: u32 = 64;

/// Bytes of a ring.
pub const RING_BYTES: usize = LINE_BYTES + RING_LEN * 8;

const _: () = assert!(RING_LEN.is_power_of_two() && PERIOD.is_power_of_two() && DRAIN_MAX <= RING_LEN);

/// A ring of samples.
#[derive(Debug)]
pub struct SamplesView<'a, W> {
    written: &'a W,
    samples: &'a [W],
}

impl<'a, W: Word> SamplesView<'a, W> {
    /// The ring in these words; `None` when they are too few.
    pub fn new(words: &'a [W]) -> Option<Self> {
        let (header, samples) = words.split_at_checked(LINE_WORDS)?;
        Some(Self { written: &header[0], samples: samples.get(..RING_LEN)? })
    }

    /// Client: notes what a lease has found.
    #[inline]
    pub fn note(&self, position: u32, generation: Generation) {
        // All of it Relaxed: a sample that is torn from its count, or lost, is one hint less.
        let at = self.written.fetch_add(1, Ordering::Relaxed) as usize % RING_LEN;
        let sample = u64::from(position) << 32 | generation.0 & u64::from(u32::MAX);
        self.samples[at].store(sample, Ordering::Relaxed);
    }
}

/// Which acquires are sampled, by one thread of a client: at random, so that a loop over payloads does not meet the same ones always.
#[derive(Debug)]
pub struct Sampler {
    random: u64,
    left: u32,
}

impl Sampler {
    /// With a seed of the thread's own.
    pub fn new(seed: u64) -> Self {
        let mut sampler = Self { random: seed | 1, left: 0 };
        sampler.draw();
        sampler
    }

    /// Counts an acquire; whether to note it.
    #[inline]
    pub fn is_due(&mut self) -> bool {
        if self.left > 0 {
            self.left -= 1;
            return false;
        }
        self.draw();
        true
    }

    /// Between 0 and 2 x PERIOD - 2, so that one in PERIOD is due. (Xorshift, Marsaglia 2003.)
    fn draw(&mut self) {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.left = (self.random >> 32) as u32 % (2 * PERIOD - 1);
    }
}

/// The server's place in a session's ring, in private memory.
#[derive(Debug, Default)]
pub struct Drain {
    seen: u64,
}

impl Drain {
    /// From the ring's beginning.
    pub fn new() -> Self {
        Self::default()
    }

    /// The payloads of the newest samples that were not looked at yet, at most [`DRAIN_MAX`]. A sample of an entry that moved since, or that
    /// is none, is left out.
    pub fn drain<W: Word>(
        &mut self,
        samples: &SamplesView<'_, W>,
        index: &IndexView<'_, W>,
        mut touch: impl FnMut(PayloadId),
    ) {
        // The client's word: whatever it says, at most DRAIN_MAX are looked at, and the next drain begins there.
        let written = samples.written.load(Ordering::Relaxed);
        let count = written.wrapping_sub(self.seen).min(DRAIN_MAX as u64);
        self.seen = written;
        for back in 1..=count {
            let at = written.wrapping_sub(back) as usize % RING_LEN;
            let sample = samples.samples[at].load(Ordering::Relaxed);
            if let Some((id, generation)) = index.id_at((sample >> 32) as u32)
                && generation.0 as u32 == sample as u32
            {
                touch(id);
            }
        }
    }
}
