//! Direct leases, the shard's books: what is shown to readers who ask nobody, whom a scan has to find before something is
//! done, and what of that was found (DESIGN §4, §8).
//!
//! ```text
//!   a payload in a slab may be leased --> Put ... Withdraw, Restore, Describe ...        (`flow::direct` sees what changed)
//!     its block is retired --> Remove, in limbo as one more reader, until a scan finds nobody --> the block may be reused
//!     Delete or Spill, unforced --> Withdraw, `Ask`: scan --> nobody: it goes on   somebody: Restore, and it is refused
//!     eviction, expiry --> the same; somebody: it is passed over, or removed later
//! ```
//! What was shown once under a generation is remembered until its block is retired, readable or not: a claim may be as old
//! as that. Publications go out before everything else of their step, so no answer tells of what readers do not see yet.
//!
//! Limits: an entry of 50 bytes for each payload in a slab; one `Ask` a payload, whose wishes have their callers' places.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use payload_ledger::limbo::{Entering, Limbo, Outcome, Purpose};
use payload_ledger::{SlotKey, TimerId};
use payload_types::direct::{Change, Publish, Published};
use payload_types::effect::ReplicaRef;
use payload_types::request::Request;
use payload_types::{
    ByteCount, Checksum, Generation, Monotonic, NamespaceId, PerTier, SessionId, Tier, WallMs,
};

use crate::limbo::Users;
use crate::parked::Caller;

/// How soon readers are looked for again on behalf of who waits for them: doubled each time.
const AGAIN_MS_MIN: u64 = 1;
/// See [`AGAIN_MS_MIN`].
const AGAIN_MS_MAX: u64 = 64;

/// What readers see of a payload.
#[derive(Debug)]
struct Shown {
    generation: Generation,
    checksum: Option<Checksum>,
    version: u64,
    expires_at: Option<WallMs>,
    is_readable: bool,
}

/// An eviction that waits for a scan.
#[derive(Clone, Copy, Debug)]
pub struct Evict {
    /// The tier that needs room.
    pub tier: Tier,
    /// What that frees: on its way out meanwhile.
    pub bytes: u64,
}

/// What waits for the outcome of a scan.
#[derive(Debug)]
pub enum Wish {
    /// A request, to be handled again.
    Request(Box<(Caller, Request)>),
    /// The payload is to leave its slab because of pressure.
    Evict(Evict),
    /// The payload has expired, and is to be removed.
    Expire,
}

impl Wish {
    /// When it is given up.
    fn until(&self) -> Option<Monotonic> {
        match self {
            Self::Request(wish) => wish.0.deadline.or(wish.0.lease_wait_end),
            Self::Evict(_) | Self::Expire => None,
        }
    }
}

/// See [`Direct::ask`]. From its first scan to its end nobody new reads the payload.
#[derive(Debug)]
struct Ask {
    /// Its payload; gone, if that is.
    slot: SlotKey,
    /// What waits for the scan, and is handled when that has told.
    wishes: VecDeque<Wish>,
    /// What waits for the next one.
    next: VecDeque<Wish>,
    /// What the scan has told: while wishes are left it holds for everybody.
    found: Option<Readers>,
    pause_ms: u64,
    /// When the first of its wishes came.
    since: Monotonic,
}

/// Whether somebody reads a payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Readers {
    /// A scan has to tell.
    Unknown,
    /// Nobody, and nobody can begin to before the end of this step.
    Nobody,
    /// This session does, maybe others.
    Held(SessionId),
}

/// See the module.
#[derive(Debug, Default)]
pub struct Direct {
    /// The step's time.
    pub now: Monotonic,
    /// By slot.
    shown: BTreeMap<u32, Shown>,
    limbo: Limbo,
    asks: BTreeMap<Generation, Ask>,
    /// Of those, the ones that no scan looks for at the moment.
    again: BTreeSet<(Monotonic, Generation)>,
    /// See [`Self::leaving`].
    leaving: PerTier<u64>,
    /// What scans have found, to be worked off.
    pub outcomes: VecDeque<Outcome>,
    /// Asks whose scan has told, the first to be worked off first.
    told: VecDeque<Generation>,
    /// Wishes whose time is up.
    late: VecDeque<(SlotKey, Wish)>,
    /// To go out before everything else of the step.
    pub publications: VecDeque<Publish>,
    /// The timer that is armed, and when it fires.
    pub timer: Option<(Monotonic, Option<TimerId>)>,
    /// Nothing is shown any more.
    is_closed: bool,
    /// False when the end of a step has nothing to do.
    pub is_busy: bool,
}

impl Direct {
    /// What readers are to see of a payload in a slab from here on: `None`, nothing.
    pub fn show(&mut self, slot: SlotKey, namespace: NamespaceId, published: &Published, is_readable: bool) {
        if self.is_closed {
            return;
        }
        let Published { id, generation, checksum, version, expires_at, .. } = *published;
        let mut changes = Vec::new();
        match self.shown.get_mut(&slot.index) {
            None if !is_readable => return,
            None => {
                self.shown
                    .insert(slot.index, Shown { generation, checksum, version, expires_at, is_readable });
                changes.push(Change::Put(Box::new(*published)));
            }
            Some(shown) => {
                assert_eq!(
                    shown.generation, generation,
                    "a replica in a slab is retired before the next one"
                );
                // A Commit that was refused after ACCEPTED, and made again of other bytes: under this name they are not shown.
                let is_same = shown.checksum.is_none() || shown.checksum == checksum;
                let is_readable = is_readable && is_same && !self.asks.contains_key(&generation);
                if is_readable && (shown.version, shown.expires_at) != (version, expires_at) {
                    (shown.version, shown.expires_at) = (version, expires_at);
                    changes.push(Change::Describe { id, version, expires_at });
                }
                if shown.is_readable != is_readable {
                    shown.is_readable = is_readable;
                    changes.push(if is_readable { Change::Restore(id) } else { Change::Withdraw(id) });
                }
            }
        }
        self.publications.extend(changes.into_iter().map(|change| Publish { namespace, change }));
    }

    /// A block is retired that may have been shown: who reads it counts as one more who copies it, and a scan tells when
    /// nobody does. With `taken` whoever does shall hear that it is gone.
    pub fn retire(
        &mut self,
        slot: SlotKey,
        namespace: NamespaceId,
        replica: &ReplicaRef,
        users: Users,
        taken: bool,
    ) -> Users {
        if replica.block.is_none() {
            return users;
        }
        let Some(shown) = self.shown.remove(&slot.index) else { return users };
        let generation = shown.generation;
        assert_eq!(generation, replica.generation, "what is shown is what is there");
        self.publications.push_back(Publish { namespace, change: Change::Remove(replica.id) });
        if self.stop_waiting(generation) {
            // What waited for the next scan finds the payload as it is now.
            self.outcomes.push_back(Outcome::Free { generation });
        }
        let purpose = if taken { Purpose::Take } else { Purpose::Drop };
        self.limbo.enter(self.now, Entering { generation, bytes: replica.size.in_pages(), purpose });
        self.is_busy = true;
        Users { copies: users.copies + 1, ..users }
    }

    fn ask_about(&self, slot: SlotKey) -> Option<&Ask> {
        self.asks.get(&self.shown.get(&slot.index)?.generation)
    }

    /// Whether somebody reads the payload directly.
    pub fn readers(&self, slot: SlotKey) -> Readers {
        if !self.shown.contains_key(&slot.index) {
            return Readers::Nobody;
        }
        self.ask_about(slot).and_then(|ask| ask.found).unwrap_or(Readers::Unknown)
    }

    /// True while it is asked on behalf of pressure who reads a payload.
    pub fn may_be_evicted(&self, slot: SlotKey) -> bool {
        self.wishes(slot).any(|wish| matches!(wish, Wish::Evict(_)))
    }

    /// True while it is asked on behalf of an expired payload who reads it.
    pub fn may_expire(&self, slot: SlotKey) -> bool {
        self.wishes(slot).any(|wish| matches!(wish, Wish::Expire))
    }

    fn wishes(&self, slot: SlotKey) -> impl Iterator<Item = &Wish> {
        self.ask_about(slot).into_iter().flat_map(|ask| ask.wishes.iter().chain(&ask.next))
    }

    /// Since when it is asked who reads a payload, again and again; `None`: nobody asks.
    pub fn asked_since(&self, slot: SlotKey) -> Option<Monotonic> {
        self.ask_about(slot).map(|ask| ask.since)
    }

    /// Charged bytes of a tier that leave it unless somebody is found to read them.
    pub fn leaving(&self, tier: Tier) -> u64 {
        self.leaving[tier]
    }

    /// Lets a wish wait until a scan has told who reads its payload, which nobody new does meanwhile. Where one has told
    /// already, the next is made after a pause, or when the wish is given up.
    pub fn ask(&mut self, slot: SlotKey, wish: Wish) {
        let generation = self.shown[&slot.index].generation;
        self.is_busy = true;
        if let Wish::Evict(Evict { tier, bytes }) = wish {
            self.leaving[tier] += bytes;
        }
        match self.asks.get_mut(&generation) {
            None => {
                let (wishes, next) = (VecDeque::from([wish]), VecDeque::new());
                let ask = Ask { slot, wishes, next, found: None, pause_ms: AGAIN_MS_MIN, since: self.now };
                self.asks.insert(generation, ask);
                self.look_for(generation);
            }
            Some(ask) if ask.found.is_some() => ask.next.push_back(wish),
            Some(ask) => {
                ask.wishes.push_back(wish);
                if self.stop_waiting(generation) {
                    self.look_for(generation);
                }
            }
        }
    }

    /// An `Ask` has no bytes of its own: they are its payload's.
    fn look_for(&mut self, generation: Generation) {
        let purpose = Purpose::Ask;
        self.limbo.enter(self.now, Entering { generation, bytes: ByteCount::ZERO, purpose });
    }

    /// True when an ask waited for its next scan, and does no more.
    fn stop_waiting(&mut self, generation: Generation) -> bool {
        let at = self.again.iter().find(|(_, waits)| *waits == generation).copied();
        at.is_some_and(|at| self.again.remove(&at))
    }

    /// Asks whose pause is over are looked for again; of their wishes, those whose time is up are given up.
    pub fn look_again(&mut self) {
        while let Some((at, generation)) = self.again.first().copied().filter(|(at, _)| *at <= self.now) {
            self.again.remove(&(at, generation));
            let now = self.now;
            let ask = self.asks.get_mut(&generation).expect("what waits asks");
            let wishes = std::mem::take(&mut ask.wishes);
            let is_late = |wish: &Wish| wish.until().is_some_and(|until| until <= now);
            let (late, wishes): (VecDeque<_>, VecDeque<_>) = wishes.into_iter().partition(is_late);
            self.late.extend(late.into_iter().map(|wish| (ask.slot, wish)));
            ask.wishes = wishes;
            if ask.wishes.is_empty() {
                // It ends as if it had been told.
                ask.found = Some(Readers::Unknown);
                self.told.push_back(generation);
            } else {
                self.look_for(generation);
            }
        }
    }

    /// A scan has told: true when that is the answer to an ask.
    pub fn tell(&mut self, generation: Generation, readers: Readers) -> bool {
        match self.asks.get_mut(&generation) {
            Some(ask) if ask.found.is_none() => {
                ask.found = Some(readers);
                self.told.push_back(generation);
                true
            }
            _ => false,
        }
    }

    /// The next wish whose scan has told, and its payload; or the end of an ask, whose payload may be shown again.
    pub fn next_told(&mut self) -> Option<(SlotKey, Option<Wish>)> {
        let told = self.next_of_told();
        if let Some((_, Some(Wish::Evict(Evict { tier, bytes })))) = told {
            self.leaving[tier] -= bytes;
        }
        told
    }

    fn next_of_told(&mut self) -> Option<(SlotKey, Option<Wish>)> {
        let generation = *self.told.front()?;
        let ask = self.asks.get_mut(&generation).expect("what was told asks");
        let slot = ask.slot;
        if let Some(wish) = ask.wishes.pop_front() {
            return Some((slot, Some(wish)));
        }
        let is_there = self.shown.get(&slot.index).is_some_and(|shown| shown.generation == generation);
        if !ask.next.is_empty() && !is_there {
            // They find the payload as it is now.
            ask.wishes = std::mem::take(&mut ask.next);
            return ask.wishes.pop_front().map(|wish| (slot, Some(wish)));
        }
        self.told.pop_front();
        if ask.next.is_empty() {
            self.asks.remove(&generation);
            return Some((slot, None));
        }
        ask.wishes = std::mem::take(&mut ask.next);
        ask.found = None;
        let at = self.now.plus_millis(ask.pause_ms);
        ask.pause_ms = (2 * ask.pause_ms).min(AGAIN_MS_MAX);
        let until = ask.wishes.iter().filter_map(Wish::until).min();
        self.again.insert((until.map_or(at, |until| at.min(until)), generation));
        self.next_of_told()
    }

    /// The next wish whose time is up.
    pub fn next_late(&mut self) -> Option<(SlotKey, Wish)> {
        self.late.pop_front()
    }

    /// True while bounded work is left over.
    pub fn has_left_over(&self) -> bool {
        !(self.outcomes.is_empty() && self.told.is_empty() && self.late.is_empty())
    }

    /// The books of withdrawn generations.
    pub fn limbo(&mut self) -> &mut Limbo {
        &mut self.limbo
    }

    /// When there is something to do next.
    pub fn next_at(&self) -> Option<Monotonic> {
        self.limbo.next_at().into_iter().chain(self.again.first().map(|(at, _)| *at)).min()
    }

    /// Shows nothing any more, in any of these namespaces: the server stops.
    pub fn close(&mut self, namespaces: BTreeSet<NamespaceId>) {
        if !std::mem::replace(&mut self.is_closed, true) {
            let close = |namespace| Publish { namespace, change: Change::Close };
            self.publications.extend(namespaces.into_iter().map(close));
        }
    }

    /// Payloads that readers may lease directly, or could.
    pub fn shown_len(&self) -> usize {
        self.shown.len()
    }

    /// What scans have to find unread before it can be used again.
    pub fn limbo_bytes(&self) -> ByteCount {
        self.limbo.bytes()
    }

    /// True when the end of a step has something to do.
    pub fn has_news(&self) -> bool {
        self.is_busy || !self.publications.is_empty()
    }

    /// True when nothing is asked, and nothing found is left to be worked off.
    pub fn is_quiet(&self) -> bool {
        self.asks.is_empty() && !self.has_left_over()
    }
}
