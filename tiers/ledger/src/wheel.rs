//! A hierarchical timing wheel (Varghese and Lauck, 1987): arming and disarming cost O(1) whatever is armed.
//!
//! Six levels of 64 slots and a tick of 1 ms reach 2^36 ms (two years); what lies further is looked at again then.
//! Taking due timers is bounded: moving one timer down a level counts as one item of work like handing one out, so a
//! million timers of one moment never make one long turn.

use payload_types::Monotonic;

use crate::slots::{SlotKey, Slots};

const LEVELS: usize = 6;
const SLOTS: usize = 64;
const SLOT_BITS: u32 = 6;
const NONE: u32 = u32::MAX;
const TICK_NS: u64 = 1_000_000;
const REACH_TICKS: u64 = 1 << (SLOT_BITS * LEVELS as u32);

/// Names an armed timer; stale after it was handed out or disarmed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TimerId(SlotKey);

impl TimerId {
    /// One that was never armed.
    pub const NEVER: Self = Self(SlotKey::NOWHERE);
}

#[derive(Debug)]
struct Node<T> {
    due: u64,
    token: T,
    previous: u32,
    next: u32,
    list: u16,
}

/// Timers that carry a `T` each.
#[derive(Debug)]
pub struct Wheel<T> {
    nodes: Slots<Node<T>>,
    heads: [u32; LEVELS * SLOTS],
    occupied: [u64; LEVELS],
    /// All timers due before this tick were handed out.
    elapsed: u64,
    /// The upper slot that is being moved down, before anything else may be handed out.
    cascading: Option<usize>,
}

impl<T: Copy> Wheel<T> {
    /// A wheel of at most `limit` timers.
    pub fn new(limit: u32) -> Self {
        Self {
            nodes: Slots::new(limit),
            heads: [NONE; LEVELS * SLOTS],
            occupied: [0; LEVELS],
            elapsed: 0,
            cascading: None,
        }
    }

    /// Timers armed.
    pub fn len(&self) -> u32 {
        self.nodes.len()
    }

    /// True when nothing is armed.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Arms a timer; `None` when the wheel is full. It is handed out at `due` or up to 1 ms later, never earlier.
    pub fn arm(&mut self, due: Monotonic, token: T) -> Option<TimerId> {
        let due = due.0.div_ceil(TICK_NS).max(self.elapsed);
        let (list, head) = self.list_of(due);
        let node = Node { due, token, previous: NONE, next: head, list: list as u16 };
        let key = self.nodes.insert(node).ok()?;
        self.linked(key.index, list, head);
        Some(TimerId(key))
    }

    /// Disarms a timer; false when it was handed out or disarmed before.
    pub fn disarm(&mut self, timer: TimerId) -> bool {
        let Some(node) = self.nodes.remove(timer.0) else { return false };
        self.unlinked(node.previous, node.next, usize::from(node.list));
        true
    }

    /// When an armed timer is due, in whole ticks.
    pub fn due(&self, timer: TimerId) -> Option<Monotonic> {
        self.nodes.get(timer.0).map(|node| Monotonic(node.due.saturating_mul(TICK_NS)))
    }

    /// When the next timer is due, or the next bounded piece of work is. Never later than the earliest timer.
    pub fn next_due(&self) -> Option<Monotonic> {
        let tick = if self.cascading.is_some() { self.elapsed } else { self.next_list()?.1 };
        Some(Monotonic(tick.saturating_mul(TICK_NS)))
    }

    /// Hands out one timer that is due at `now`. Each hand-out and each move costs one of `work_left`; when that is 0
    /// nothing more happens, and `next_due` says that work is left.
    pub fn pop_due(&mut self, now: Monotonic, work_left: &mut usize) -> Option<T> {
        let now_tick = now.0 / TICK_NS;
        while *work_left > 0 {
            let list = match self.cascading {
                Some(list) => list,
                None => {
                    let (list, tick) = self.next_list()?;
                    if tick > now_tick {
                        return None;
                    }
                    self.elapsed = self.elapsed.max(tick);
                    list
                }
            };
            let Some(key) = self.nodes.key_at(self.heads[list]) else {
                self.cascading = None;
                continue;
            };
            *work_left -= 1;
            self.unlink(key);
            let due = self.nodes.get(key).expect("linked nodes exist").due;
            if list < SLOTS && due <= self.elapsed {
                return self.nodes.remove(key).map(|node| node.token);
            }
            self.cascading = (list >= SLOTS && self.heads[list] != NONE).then_some(list);
            self.link(key);
        }
        None
    }

    /// The list to look at next and the tick at which to do so.
    fn next_list(&self) -> Option<(usize, u64)> {
        let mut best: Option<(usize, u64)> = None;
        for level in 0..LEVELS {
            if self.occupied[level] == 0 {
                continue;
            }
            let shift = SLOT_BITS * level as u32;
            let position = (self.elapsed >> shift) & (SLOTS as u64 - 1);
            let ahead = u64::from(self.occupied[level].rotate_right(position as u32).trailing_zeros());
            let slot = ((position + ahead) % SLOTS as u64) as usize;
            let start = ((self.elapsed >> shift) + ahead) << shift;
            let tick = start.max(self.elapsed);
            // At one tick the upper list goes first: what it holds may be due at once.
            if best.is_none_or(|(_, other)| tick <= other) {
                best = Some((level * SLOTS + slot, tick));
            }
        }
        best
    }

    /// Where a timer of this tick belongs now, and what is there.
    fn list_of(&self, due: u64) -> (usize, u32) {
        let due = due.min(self.elapsed + REACH_TICKS - 1);
        let differing = (due ^ self.elapsed) | 1;
        let level = ((63 - differing.leading_zeros()) / SLOT_BITS).min(LEVELS as u32 - 1) as usize;
        let slot = (due >> (SLOT_BITS * level as u32)) as usize % SLOTS;
        let list = level * SLOTS + slot;
        (list, self.heads[list])
    }

    fn link(&mut self, key: SlotKey) {
        let (list, head) = self.list_of(self.nodes.get(key).expect("the caller holds a live key").due);
        let node = self.nodes.get_mut(key).expect("the caller holds a live key");
        (node.previous, node.next, node.list) = (NONE, head, list as u16);
        self.linked(key.index, list, head);
    }

    /// A node stands before `head` now.
    fn linked(&mut self, index: u32, list: usize, head: u32) {
        if let Some(second) = self.nodes.value_at(head) {
            second.previous = index;
        }
        self.heads[list] = index;
        self.occupied[list / SLOTS] |= 1 << (list % SLOTS);
    }

    fn unlink(&mut self, key: SlotKey) {
        let node = self.nodes.get(key).expect("the caller holds a live key");
        self.unlinked(node.previous, node.next, usize::from(node.list));
    }

    /// What stood between these two stands there no more.
    fn unlinked(&mut self, previous: u32, next: u32, list: usize) {
        match self.nodes.value_at(previous) {
            Some(before) => before.next = next,
            None => self.heads[list] = next,
        }
        if let Some(after) = self.nodes.value_at(next) {
            after.previous = previous;
        }
        if self.heads[list] == NONE {
            self.occupied[list / SLOTS] &= !(1 << (list % SLOTS));
            if self.cascading == Some(list) {
                self.cascading = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: u64) -> Monotonic {
        Monotonic(milliseconds * TICK_NS)
    }

    fn due_at(wheel: &mut Wheel<u64>, milliseconds: u64) -> Vec<u64> {
        let mut work_left = usize::MAX;
        std::iter::from_fn(|| wheel.pop_due(at(milliseconds), &mut work_left)).collect()
    }

    /// A small generator: the same seed gives the same run.
    fn random(state: &mut u64) -> u64 {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *state >> 33
    }

    #[test]
    fn given_random_timers_when_time_passes_then_each_is_handed_out_once_never_early_and_in_the_first_look_after()
     {
        for seed in 0..200 {
            let mut state = seed;
            let mut wheel = Wheel::new(10_000);
            let mut armed: Vec<(u64, TimerId)> = Vec::new();
            let mut now = random(&mut state) % 1_000_000;
            for round in 0..200 {
                for _ in 0..random(&mut state) % 10 {
                    let reach = 1 << (random(&mut state) % 40);
                    let due = now + random(&mut state) % reach;
                    armed.push((due, wheel.arm(at(due), due).expect("room")));
                }
                if round % 3 == 0 && !armed.is_empty() {
                    let victim = random(&mut state) as usize % armed.len();
                    assert!(wheel.disarm(armed.swap_remove(victim).1));
                }
                now += random(&mut state) % (1 << (random(&mut state) % 24));
                let mut got = due_at(&mut wheel, now);
                let mut want: Vec<u64> =
                    armed.extract_if(.., |(due, _)| *due <= now).map(|(due, _)| due).collect();
                got.sort_unstable();
                want.sort_unstable();
                assert_eq!(got, want, "seed {seed} round {round}");
                if let Some(next) = wheel.next_due() {
                    let earliest = armed.iter().map(|(due, _)| *due).min().expect("something is armed");
                    assert!(next <= at(earliest) && next > at(now), "seed {seed}: {next:?} {earliest} {now}");
                } else {
                    assert!(armed.is_empty());
                }
            }
        }
    }

    #[test]
    fn given_many_timers_of_one_moment_when_work_is_bounded_then_the_rest_waits_for_the_next_turn() {
        let mut wheel = Wheel::new(10_000);
        for token in 0..1000 {
            wheel.arm(at(5_000_000), token).expect("room");
        }
        let (mut handed_out, mut turns) = (0, 0);
        while wheel.next_due().is_some_and(|due| due <= at(6_000_000)) {
            let mut work_left = 64;
            while wheel.pop_due(at(6_000_000), &mut work_left).is_some() {
                handed_out += 1;
            }
            turns += 1;
            assert!(turns < 1000, "work goes on");
        }
        assert_eq!(handed_out, 1000);
        assert!(turns > 1000 / 64);
    }

    #[test]
    fn given_a_full_wheel_when_armed_then_refused() {
        let mut wheel = Wheel::new(1);
        let first = wheel.arm(at(1), 1).expect("room");
        assert!(wheel.arm(at(1), 2).is_none());
        assert!(wheel.disarm(first) && !wheel.disarm(first) && wheel.is_empty());
    }
}
