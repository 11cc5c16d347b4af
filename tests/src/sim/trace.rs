//! What happened, as one number: a hash over every event and effect, and on request the last few lines in words.
//!
//! Two runs of one seed have the same hash. Lines cost allocations, so a run keeps them only when it is run again
//! because it failed.

use std::collections::VecDeque;
use std::fmt::{self, Write};

use payload_types::Monotonic;

/// See the module.
#[derive(Debug)]
pub(super) struct Trace {
    hash: Fnv,
    lines: VecDeque<String>,
    lines_max: usize,
    pub(super) verbose: bool,
    pub(super) entries: u64,
}

/// FNV-1a, 64 bits.
#[derive(Debug)]
struct Fnv(u64);

impl Write for Fnv {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3);
        }
        Ok(())
    }
}

impl Trace {
    /// Keeps the last `lines_max` entries in words; `verbose` prints all of them as they come.
    pub(super) fn new(lines_max: usize, verbose: bool) -> Self {
        Self { hash: Fnv(0xCBF2_9CE4_8422_2325), lines: VecDeque::new(), lines_max, verbose, entries: 0 }
    }

    /// Adds an entry.
    pub(super) fn add(&mut self, at: Monotonic, what: fmt::Arguments<'_>) {
        self.entries += 1;
        writeln!(self.hash, "{}|{what}", at.0).expect("hashing never fails");
        if self.verbose {
            println!("{:>14.6} ms  {what}", at.0 as f64 / 1e6);
        }
        if self.lines_max > 0 {
            if self.lines.len() == self.lines_max {
                self.lines.pop_front();
            }
            self.lines.push_back(format!("{:>14.6} ms  {what}", at.0 as f64 / 1e6));
        }
    }

    /// The hash so far.
    pub(super) fn hash(&self) -> u64 {
        self.hash.0
    }

    /// The last entries, oldest first.
    pub(super) fn into_lines(self) -> Vec<String> {
        self.lines.into()
    }
}
