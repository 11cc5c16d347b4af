//! Limbo: what was withdrawn from readers who ask nobody, until a scan of their cells has not found it (DESIGN §4, §8).
//!
//! Owned by a shard. Pure: a scan goes out as a value and comes back as one; whoever drives the shard reads the cells.
//!
//! ```text
//!   enter --> waiting --take_scan--> Scan { number, generations } --the driver reads all cells--> ScanDone
//!               ^                                                                                  |
//!               +------------- held: looked for again after 1 ms, 2 ms, ... 500 ms ------ finish --+--> free: Outcome::Free
//!   a `Purpose::Ask` is answered by its first scan, Free or Held, and is in limbo no more either way; a `Take` is told Held
//!   revoke --> quarantined until a time --tick--> Outcome::Quarantined: its memory goes to its own namespace only
//! ```
//!
//! Invariants: nothing leaves as free but by a scan that was taken *after* it entered; each generation is here once;
//! what a session holds is the sum of the bytes that the last scans found with it, each counted for everybody who holds it.
//! Nobody is waited for. Limits: [`SCAN_BATCH_MAX`] generations a scan, one scan under way, [`HOLDERS_MAX`] holders
//! counted for each generation, [`REVOKED_TURN_MAX`] named a turn.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use payload_types::{ByteCount, Generation, Monotonic, SessionId};

pub use payload_types::direct::{Held, SCAN_BATCH_MAX, Scan, ScanDone};

/// Sessions that are counted for one generation. Whoever holds more than this is not charged: those first found are.
pub const HOLDERS_MAX: usize = 8;

/// Leases that are named to be taken away in one turn.
pub const REVOKED_TURN_MAX: usize = 64;

/// How soon what is held is looked for again: doubled each time, up to half a second, so that what a dead session held is
/// free within the second. A reader that pins for ever costs a place in two scans a second.
const LOOK_AGAIN_MS_MIN: u64 = 1;
/// See [`LOOK_AGAIN_MS_MIN`].
const LOOK_AGAIN_MS_MAX: u64 = 500;

/// Why something is in limbo.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// It is gone from the payload; its place is wanted back, whenever that may be.
    Drop,
    /// Delete and Spill ask whether anybody holds it; the payload is withdrawn meanwhile. Answered by the next scan.
    Ask,
    /// As `Drop`, and whoever holds it shall lose it (a forced delete): the first scan that finds somebody says so.
    Take,
}

/// What enters limbo.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entering {
    /// Which replica: a claim's generation, withdrawn before this.
    pub generation: Generation,
    /// What its place takes, as charged.
    pub bytes: ByteCount,
    /// Why.
    pub purpose: Purpose,
}

fn has(marks: &[u64; SCAN_BATCH_MAX / 64], at: usize) -> bool {
    marks[at / 64] >> (at % 64) & 1 != 0
}

/// What has become of something in limbo.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Nobody holds it, and nobody can any more: its place may be used again. Of an `Ask`: go on.
    Free {
        /// Which.
        generation: Generation,
    },
    /// Somebody holds it. Of an `Ask`: restore it, and refuse. Of a `Take`, which stays in limbo: take the lease away.
    Held {
        /// Which.
        generation: Generation,
        /// One of those who do.
        by: SessionId,
    },
    /// Its lease was taken away, and the time of grace is over: its place may be used again within its namespace only.
    Quarantined {
        /// Which.
        generation: Generation,
    },
}

/// A lease that is to be taken away.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Overdue {
    /// What it holds.
    pub generation: Generation,
    /// Whose it is.
    pub session: SessionId,
}

/// What entered, and when.
#[derive(Clone, Copy, Debug)]
struct Entered {
    what: Entering,
    since: Monotonic,
}

/// What a scan has found somebody to hold.
#[derive(Debug)]
struct Waiting {
    entered: Entered,
    /// When it is looked for next; `None` while a scan looks for it, and once it is revoked.
    due: Option<Monotonic>,
    look_again_ms: u64,
    /// By whom, as the last scan found.
    holders: Vec<SessionId>,
    /// Its leases are taken away; its place is free then.
    revoked_until: Option<Monotonic>,
}

/// What a shard has withdrawn and not got back yet. What nobody holds passes through a queue and a list; only what somebody
/// was found to hold has an entry in the maps.
#[derive(Debug, Default)]
pub struct Limbo {
    /// Not looked for yet.
    fresh: VecDeque<Entered>,
    waiting: BTreeMap<Generation, Waiting>,
    /// Of those: what is to be looked for again, by time.
    due: BTreeSet<(Monotonic, Generation)>,
    /// What was revoked, by the end of its grace.
    quarantine: BTreeSet<(Monotonic, Generation)>,
    /// `None` for what was revoked since the scan began: its grace decides.
    under_way: Option<Vec<Option<Entered>>>,
    scans: u64,
    held: BTreeMap<SessionId, ByteCount>,
    holdings: BTreeSet<(SessionId, Generation)>,
    bytes: ByteCount,
}

impl Limbo {
    /// With nothing in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Generations in it.
    pub fn len(&self) -> usize {
        let scanned = self.under_way.iter().flatten().flatten();
        let first_time =
            scanned.filter(|entered| !self.waiting.contains_key(&entered.what.generation)).count();
        self.fresh.len() + self.waiting.len() + first_time
    }

    /// True when nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What it holds back, `Ask`s apart: those are still their payload's.
    pub fn bytes(&self) -> ByteCount {
        self.bytes
    }

    /// What a session held back of that when it was last looked at.
    pub fn bytes_held_by(&self, session: SessionId) -> ByteCount {
        self.held.get(&session).copied().unwrap_or_default()
    }

    /// Takes in what was withdrawn just now. A scan that is under way does not count for it. A generation is here once:
    /// shards withdraw each once, or ask again after the answer.
    pub fn enter(&mut self, now: Monotonic, what: Entering) {
        if what.purpose != Purpose::Ask {
            self.bytes.0 += what.bytes.0;
        }
        self.fresh.push_back(Entered { what, since: now });
    }

    /// When there is something to do next, a scan under way apart.
    pub fn next_at(&self) -> Option<Monotonic> {
        let fresh = self.fresh.front().map(|entered| entered.since);
        let again = self.due.first().map(|(at, _)| *at);
        let scan = fresh.into_iter().chain(again).filter(|_| self.under_way.is_none());
        scan.chain(self.quarantine.first().map(|(at, _)| *at)).min()
    }

    /// The next scan, if one is due and none is under way. To be made after this call and nothing before it.
    pub fn take_scan(&mut self, now: Monotonic) -> Option<Scan> {
        if self.under_way.is_some() {
            return None;
        }
        let mut looked_for = Vec::with_capacity(SCAN_BATCH_MAX.min(self.fresh.len() + self.due.len()));
        // What is held comes first: it is at most half a second's, and must not starve behind what is new.
        while looked_for.len() < SCAN_BATCH_MAX
            && let Some((_, generation)) = self.due.first().copied().filter(|(at, _)| *at <= now)
        {
            self.due.pop_first();
            let waiting = self.waiting.get_mut(&generation).expect("what is due waits");
            waiting.due = None;
            looked_for.push(waiting.entered);
        }
        let room = SCAN_BATCH_MAX - looked_for.len();
        looked_for.extend(self.fresh.drain(..room.min(self.fresh.len())));
        if looked_for.is_empty() {
            return None;
        }
        self.scans += 1;
        let generations = looked_for.iter().map(|entered| entered.what.generation).collect();
        self.under_way = Some(looked_for.into_iter().map(Some).collect());
        Some(Scan { number: self.scans, generations })
    }

    /// Takes the answer of the scan that is under way, and tells what has become of things.
    ///
    /// # Panics
    /// When it is the answer to another one: there is one at a time.
    pub fn finish(&mut self, now: Monotonic, done: &ScanDone, mut tell: impl FnMut(Outcome)) {
        let looked_for = self.under_way.take().expect("a scan is under way");
        assert!(self.scans == done.number, "one scan at a time");
        let mut any = [0; SCAN_BATCH_MAX / 64];
        for held in &done.held {
            any.iter_mut().zip(held.marks).for_each(|(any, marks)| *any |= marks);
        }
        for (at, entered) in looked_for.into_iter().enumerate() {
            let Some(entered) = entered else { continue };
            let generation = entered.what.generation;
            let is_first = !self.waiting.contains_key(&generation);
            if !is_first {
                self.forget_holders(generation);
            }
            if !has(&any, at) {
                self.leave(entered.what);
                tell(Outcome::Free { generation });
                continue;
            }
            let holders = done.held.iter().filter(|held| has(&held.marks, at)).map(|held| held.session);
            let holders: Vec<SessionId> = holders.take(HOLDERS_MAX).collect();
            let by = holders[0];
            match entered.what.purpose {
                Purpose::Ask => {
                    self.leave(entered.what);
                    tell(Outcome::Held { generation, by });
                    continue;
                }
                Purpose::Take if is_first => tell(Outcome::Held { generation, by }),
                Purpose::Take | Purpose::Drop => {}
            }
            self.keep(now, entered, holders);
        }
    }

    /// Somebody holds it: it is charged to them, and looked for again.
    fn keep(&mut self, now: Monotonic, entered: Entered, holders: Vec<SessionId>) {
        let generation = entered.what.generation;
        for session in &holders {
            self.held.entry(*session).or_default().0 += entered.what.bytes.0;
            self.holdings.insert((*session, generation));
        }
        let waiting = self.waiting.entry(generation).or_insert_with(|| Waiting {
            entered,
            due: None,
            look_again_ms: LOOK_AGAIN_MS_MIN,
            holders: Vec::new(),
            revoked_until: None,
        });
        let at = now.plus_millis(waiting.look_again_ms);
        waiting.look_again_ms = (2 * waiting.look_again_ms).min(LOOK_AGAIN_MS_MAX);
        waiting.due = Some(at);
        waiting.holders = holders;
        self.due.insert((at, generation));
    }

    /// Leases to take away: of sessions that hold back more than `quota`, the oldest that have been in limbo since
    /// `since` at least, at most [`REVOKED_TURN_MAX`] in all.
    pub fn overdue(&self, since: Monotonic, quota: impl Fn(SessionId) -> ByteCount) -> Vec<Overdue> {
        let mut overdue = Vec::new();
        for (session, held) in &self.held {
            let mut excess = held.0.saturating_sub(quota(*session).0);
            let of_session = (*session, Generation(0))..=(*session, Generation(u64::MAX));
            for (_, generation) in self.holdings.range(of_session) {
                // Generations follow the order in which shards give them, not that of withdrawal: younger ones are passed over.
                if excess == 0 || overdue.len() >= REVOKED_TURN_MAX {
                    break;
                }
                let waiting = &self.waiting[generation];
                if waiting.entered.since <= since {
                    excess = excess.saturating_sub(waiting.entered.what.bytes.0);
                    overdue.push(Overdue { generation: *generation, session: *session });
                }
            }
        }
        overdue
    }

    /// Its leases are taken away (in all cells, before this): its place is free at `until`, whoever still holds it. False
    /// when no scan has found anybody to hold it.
    pub fn revoke(&mut self, generation: Generation, until: Monotonic) -> bool {
        let Some(waiting) = self.waiting.get_mut(&generation) else { return false };
        if let Some(at) = waiting.due.take() {
            self.due.remove(&(at, generation));
        }
        if let Some(before) = waiting.revoked_until.replace(until) {
            self.quarantine.remove(&(before, generation));
        }
        self.quarantine.insert((until, generation));
        for entered in self.under_way.iter_mut().flatten() {
            entered.take_if(|entered| entered.what.generation == generation);
        }
        self.forget_holders(generation);
        true
    }

    /// Tells what has been in quarantine for long enough, at most [`SCAN_BATCH_MAX`]; true when there is more.
    pub fn tick(&mut self, now: Monotonic, mut tell: impl FnMut(Outcome)) -> bool {
        for _ in 0..SCAN_BATCH_MAX {
            let Some((at, generation)) = self.quarantine.first().copied().filter(|(at, _)| *at <= now) else {
                return false;
            };
            self.quarantine.remove(&(at, generation));
            let what = self.waiting[&generation].entered.what;
            self.leave(what);
            tell(Outcome::Quarantined { generation });
        }
        self.quarantine.first().is_some_and(|(at, _)| *at <= now)
    }

    fn forget_holders(&mut self, generation: Generation) {
        let Some(waiting) = self.waiting.get_mut(&generation) else { return };
        for session in std::mem::take(&mut waiting.holders) {
            self.holdings.remove(&(session, generation));
            if let Some(held) = self.held.get_mut(&session) {
                held.0 -= waiting.entered.what.bytes.0;
                if held.0 == 0 {
                    self.held.remove(&session);
                }
            }
        }
    }

    fn leave(&mut self, what: Entering) {
        self.waiting.remove(&what.generation);
        if what.purpose != Purpose::Ask {
            self.bytes.0 -= what.bytes.0;
        }
    }
}
