//! Bytes that nothing between here and the medium can compress or find twice.

use std::io::{self, Read};

use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

/// An endless reader; the same seed gives the same bytes.
pub struct Noise(SmallRng);

impl Noise {
    /// Noise of this seed.
    pub fn new(seed: u64) -> Self {
        Self(SmallRng::seed_from_u64(seed))
    }

    /// Fills `buffer`.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        self.0.fill_bytes(buffer);
    }
}

impl Read for Noise {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.fill(buffer);
        Ok(buffer.len())
    }
}
