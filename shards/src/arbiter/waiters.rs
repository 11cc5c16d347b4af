//! Who waits for capacity of one tier, and in which order freed bytes reach them.
//!
//! Freed bytes serve who fits, oldest first, so that a huge wait blocks nobody. The oldest wait that does not fit
//! collects on the side, in its pot, at most half of what becomes free since it is the oldest, so that small asks
//! cannot starve it either. One pot at a time: two that collect could keep half of a tier idle and neither be served.

use std::collections::VecDeque;

use payload_types::{OpId, ShardIndex, limits};

/// One ask that waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Waiter {
    /// Who asks.
    pub shard: ShardIndex,
    /// For which operation.
    pub op: OpId,
    /// In whole pages.
    pub bytes: u64,
}

/// See the module. The pot is the first one's.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    queue: VecDeque<Waiter>,
    /// What all of them ask for.
    asked: u64,
    /// Not more than the smallest ask.
    least: u64,
    pot: u64,
    /// What became free since the first one is first.
    freed: u64,
}

impl Waiters {
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Collected for the first one.
    pub(super) fn pot(&self) -> u64 {
        self.pot
    }

    /// What all of them together still need.
    pub(super) fn lack(&self) -> u64 {
        self.asked - self.pot
    }

    /// What has to be free for the next one to be served, or less: who is gone may still count until then.
    pub(super) fn lack_least(&self) -> Option<u64> {
        self.queue.front().map(|first| self.least.min(first.bytes - self.pot))
    }

    pub(super) fn push(&mut self, waiter: Waiter) {
        self.least = if self.queue.is_empty() { waiter.bytes } else { self.least.min(waiter.bytes) };
        self.asked += waiter.bytes;
        self.queue.push_back(waiter);
    }

    /// `bytes` were added to `free`: the first one takes its part of them.
    pub(super) fn collect(&mut self, free: &mut u64, bytes: u64) {
        let Some(first) = self.queue.front() else { return };
        self.freed += bytes;
        let half = self.freed / 2 / limits::PAGE_BYTES * limits::PAGE_BYTES;
        let part = half.min(first.bytes).saturating_sub(self.pot).min(*free);
        *free -= part;
        self.pot += part;
    }

    /// Takes out everybody who can be served, oldest first, and their bytes out of `free`.
    pub(super) fn serve(&mut self, free: &mut u64, mut grant: impl FnMut(Waiter)) {
        while let Some(first) = self.queue.front().copied().filter(|first| first.bytes <= self.pot + *free) {
            *free -= first.bytes - self.pot;
            self.asked -= first.bytes;
            (self.pot, self.freed) = (0, 0);
            self.queue.pop_front();
            grant(first);
        }
        if self.queue.is_empty() || self.least > *free {
            return;
        }
        let (mut is_first, mut least, mut asked) = (true, u64::MAX, 0);
        self.queue.retain(|waiter| {
            let served = !is_first && waiter.bytes <= *free;
            is_first = false;
            if served {
                *free -= waiter.bytes;
                grant(*waiter);
            } else {
                least = least.min(waiter.bytes);
                asked += waiter.bytes;
            }
            !served
        });
        (self.least, self.asked) = (least, asked);
    }

    /// Takes one out; false when it was served before. What it collected goes back to `free`.
    pub(super) fn cancel(&mut self, free: &mut u64, shard: ShardIndex, op: OpId) -> bool {
        let Some(at) = self.queue.iter().position(|waiter| (waiter.shard, waiter.op) == (shard, op)) else {
            return false;
        };
        if at == 0 {
            *free += self.pot;
            (self.pot, self.freed) = (0, 0);
        }
        let waiter = self.queue.remove(at).expect("just found");
        self.asked -= waiter.bytes;
        true
    }
}
