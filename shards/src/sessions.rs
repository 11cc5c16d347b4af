//! What native sessions hold on one shard: leases without a timer, and allocations that nobody committed yet.
//!
//! Leases know their place in their session's list, so that taking and ending one costs the same however many there are.
//! Allocations are only noted here, by slot, and nothing tells that one was committed or removed: each new one looks at
//! [`LOOKS_PER_NOTE`] noted ones and forgets those that are over, so a session notes about as many as it has. A session
//! Caps on leases count all shards of the node together, through [`NodeBooks`]: a shard takes of a cap in pieces of
//! 1/[`PIECES`], and gives back what it has too much, so that a session that leases and releases changes nothing that
//! shards share. A session that spreads over n shards may so be refused up to n * 2 / [`PIECES`] of a cap too early, and never
//! gets more than it; caps below [`PIECES`] are exact. Allocations, which clients spread over shards by taking turns, are
//! divided. A session
//! that has closed is worked off in bounded steps; what is busy then is left to the payload's own timer, as an orphan.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;

use payload_ledger::SlotKey;
use payload_types::{PayloadError, Peer, SessionId};

/// Noted allocations that are looked at for each new one.
const LOOKS_PER_NOTE: usize = 4;

/// Allocations that one session may have uncommitted, divided by the shards that there are: at 256 of them 256 each.
pub const ALLOCATIONS_PER_SESSION_MAX: usize = 1 << 16;

/// A shard takes at least one of so many parts of a cap at a time, and keeps at most two that it does not use.
pub const PIECES: u64 = 1 << 13;

/// Of what there is a cap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Capped {
    /// `local.session_leases_max`.
    Leases,
    /// `local.session_leased_bytes_max`.
    LeasedBytes,
}

/// What shards have taken of each session's caps, all of the node together.
pub trait NodeBooks: Send + fmt::Debug {
    /// Takes `amount`, if no more than `max` is taken then.
    ///
    /// # Errors
    /// What is taken already.
    fn take(&mut self, session: SessionId, what: Capped, amount: u64, max: u64) -> Result<(), u64>;

    /// Gives back what was taken.
    fn give(&mut self, session: SessionId, what: Capped, amount: u64);
}

/// What one session may lease on the node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionCaps {
    /// `local.session_leases_max`.
    pub leases_max: u32,
    /// `local.session_leased_bytes_max`: sizes of leased payloads, each lease counted.
    pub leased_bytes_max: u64,
}

impl Default for SessionCaps {
    /// As when nothing is configured.
    fn default() -> Self {
        Self { leases_max: 1 << 16, leased_bytes_max: u64::MAX }
    }
}

/// A lease in its session's list.
#[derive(Clone, Copy, Debug)]
struct Held {
    lease: SlotKey,
    bytes: u64,
}

/// One session.
#[derive(Debug)]
struct Session {
    id: SessionId,
    leases: Vec<Held>,
    leased_bytes: u64,
    /// Of each cap: what this shard has taken, and the piece it takes.
    taken: [u64; 2],
    piece: [u64; 2],
    allocations: BTreeSet<SlotKey>,
    /// Where the next look at `allocations` begins.
    looked_at: SlotKey,
}

/// What one session holds on one shard; for tests and simulators.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionHolding {
    /// Leases.
    pub leases: usize,
    /// Sizes of what is leased, each lease counted.
    pub leased_bytes: u64,
    /// Allocations noted: all that are not committed, and a few that are, or are gone.
    pub allocations: usize,
}

/// All sessions that hold, or held, something here.
#[derive(Debug, Default)]
pub struct Sessions {
    /// By id; sessions come with growing ids.
    sessions: Vec<Session>,
    /// Where the last one was: mostly the same asks again.
    last: usize,
    /// Closed, and not worked off.
    closed: VecDeque<SessionId>,
    /// Allocations of closed sessions that were busy: their payloads' timers remove them.
    orphans: BTreeSet<SlotKey>,
    /// `None`: this shard is all there is.
    books: Option<Box<dyn NodeBooks>>,
}

impl Session {
    fn used(&self, what: Capped) -> u64 {
        match what {
            Capped::Leases => self.leases.len() as u64,
            Capped::LeasedBytes => self.leased_bytes,
        }
    }
}

/// A piece of what a closed session holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Piece {
    /// To be ended.
    Lease(SlotKey),
    /// To be removed, if it is not committed.
    Allocation(SlotKey),
}

impl Sessions {
    fn position(&self, id: SessionId) -> Result<usize, usize> {
        if self.sessions.get(self.last).is_some_and(|session| session.id == id) {
            return Ok(self.last);
        }
        self.sessions.binary_search_by_key(&id, |session| session.id)
    }

    fn get(&self, id: SessionId) -> Option<&Session> {
        self.position(id).ok().map(|at| &self.sessions[at])
    }

    /// Counts together with the node's other shards from now on.
    pub fn share(&mut self, books: Box<dyn NodeBooks>) {
        self.books = Some(books);
    }

    fn of(&mut self, id: SessionId) -> &mut Session {
        let at = self.place_of(id);
        &mut self.sessions[at]
    }

    fn place_of(&mut self, id: SessionId) -> usize {
        let at = self.position(id).unwrap_or_else(|at| {
            let (leases, allocations) = (Vec::new(), BTreeSet::new());
            let looked_at = SlotKey::NOWHERE;
            let (taken, piece) = ([0; 2], [0; 2]);
            let new = Session { id, leases, leased_bytes: 0, taken, piece, allocations, looked_at };
            self.sessions.insert(at, new);
            at
        });
        self.last = at;
        at
    }

    /// Makes sure that the session may have so much more.
    ///
    /// # Errors
    /// What it has.
    fn reserve(&mut self, id: SessionId, what: Capped, more: u64, max: u64) -> Result<(), u64> {
        let at = self.place_of(id);
        let session = &mut self.sessions[at];
        let wanted = session.used(what).saturating_add(more);
        let Some(books) = &mut self.books else {
            return if wanted <= max { Ok(()) } else { Err(session.used(what)) };
        };
        let missing = wanted.saturating_sub(session.taken[what as usize]);
        if missing == 0 {
            return Ok(());
        }
        let piece = max / PIECES;
        let mut amount = missing.max(piece);
        if books.take(id, what, amount, max).is_err() {
            amount = missing;
            books.take(id, what, amount, max)?;
        }
        session.taken[what as usize] += amount;
        session.piece[what as usize] = piece;
        Ok(())
    }

    /// Gives back what was taken of a cap, and is too much.
    #[inline]
    fn settle(&mut self, at: usize, what: Capped) {
        let Some(books) = &mut self.books else { return };
        let session = &mut self.sessions[at];
        let (piece, taken) = (session.piece[what as usize], session.taken[what as usize]);
        let spare = taken.saturating_sub(session.used(what));
        if spare > 2 * piece {
            session.taken[what as usize] -= spare - piece;
            books.give(session.id, what, spare - piece);
        }
    }

    /// Refuses a lease that would be one too many.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED, naming the limit and its key.
    pub fn check(&mut self, owner: Peer, caps: SessionCaps, bytes: u64) -> Result<(), PayloadError> {
        let Some(id) = owner.session() else { return Ok(()) };
        if let Err(held) = self.reserve(id, Capped::Leases, 1, caps.leases_max.into()) {
            return Err(PayloadError::exhausted(format!(
                "this session holds {held} leases, and its limit is {} (local.session_leases_max); release some",
                caps.leases_max
            )));
        }
        if caps.leased_bytes_max == u64::MAX {
            return Ok(());
        }
        if let Err(held) = self.reserve(id, Capped::LeasedBytes, bytes, caps.leased_bytes_max) {
            return Err(PayloadError::exhausted(format!(
                "this session leases {held} bytes, and {bytes} more are over its limit of {} (local.session_leased_bytes_max); release some",
                caps.leased_bytes_max
            )));
        }
        Ok(())
    }

    /// Notes a lease; returns its place in the session's list.
    #[inline]
    pub fn leased(&mut self, id: SessionId, lease: SlotKey, bytes: u64) -> u32 {
        let session = self.of(id);
        session.leased_bytes += bytes;
        session.leases.push(Held { lease, bytes });
        (session.leases.len() - 1) as u32
    }

    /// Forgets the lease at `place`; returns the lease that has its place now.
    ///
    /// # Panics
    /// When there is none: a session's lease ends once.
    #[inline]
    pub fn lease_ended(&mut self, id: SessionId, place: u32) -> Option<SlotKey> {
        let at = self.place_of(id);
        let session = &mut self.sessions[at];
        let held = session.leases.swap_remove(place as usize);
        session.leased_bytes -= held.bytes;
        let moved = session.leases.get(place as usize).map(|moved| moved.lease);
        self.settle(at, Capped::Leases);
        self.settle(at, Capped::LeasedBytes);
        moved
    }

    /// Refuses an allocation that would be one too many.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED.
    pub fn check_allocations(&self, owner: Peer, shard_count: u16) -> Result<(), PayloadError> {
        let Some(session) = owner.session().and_then(|id| self.get(id)) else { return Ok(()) };
        let share = ALLOCATIONS_PER_SESSION_MAX / usize::from(shard_count);
        if session.allocations.len() < share {
            return Ok(());
        }
        Err(PayloadError::exhausted(format!(
            "this session has {share} allocations on this shard, its part of {ALLOCATIONS_PER_SESSION_MAX}, that are not committed; commit or abort some"
        )))
    }

    /// Notes an allocation, and forgets noted ones for which `is_over`.
    pub fn allocated(&mut self, id: SessionId, payload: SlotKey, mut is_over: impl FnMut(SlotKey) -> bool) {
        let session = self.of(id);
        for _ in 0..LOOKS_PER_NOTE {
            let next = session.allocations.range(session.looked_at..).next();
            let Some(next) = next.or_else(|| session.allocations.first()).copied() else { break };
            session.looked_at = SlotKey { index: next.index.saturating_add(1), ..next };
            if is_over(next) {
                session.allocations.remove(&next);
            }
        }
        session.allocations.insert(payload);
    }

    /// True when this session allocated the payload, and it is noted still.
    pub fn has_allocated(&self, owner: Peer, payload: SlotKey) -> bool {
        owner
            .session()
            .and_then(|id| self.get(id))
            .is_some_and(|session| session.allocations.contains(&payload))
    }

    /// The session ends.
    pub fn close(&mut self, id: SessionId) {
        if self.get(id).is_some() && !self.closed.contains(&id) {
            self.closed.push_back(id);
        }
    }

    /// True while closed sessions have to be worked off.
    #[inline]
    pub fn has_closed(&self) -> bool {
        !self.closed.is_empty()
    }

    /// What is to be given back next. A lease is still noted, its end forgets it; an allocation is not any more.
    pub fn next_piece(&mut self) -> Option<Piece> {
        while let Some(id) = self.closed.front().copied() {
            let at = self.position(id).expect("closed sessions are known until they are worked off");
            let session = &mut self.sessions[at];
            if let Some(held) = session.leases.last() {
                return Some(Piece::Lease(held.lease));
            }
            if let Some(payload) = session.allocations.pop_first() {
                return Some(Piece::Allocation(payload));
            }
            let gone = self.sessions.remove(at);
            self.closed.pop_front();
            if let Some(books) = &mut self.books {
                books.give(id, Capped::Leases, gone.taken[Capped::Leases as usize]);
                books.give(id, Capped::LeasedBytes, gone.taken[Capped::LeasedBytes as usize]);
            }
        }
        None
    }

    /// The allocation could not be removed now: its payload's timer does it.
    pub fn orphan(&mut self, payload: SlotKey) {
        self.orphans.insert(payload);
    }

    /// True for an allocation whose session has ended. `forget`: it is over.
    pub fn is_orphan(&self, payload: SlotKey) -> bool {
        !self.orphans.is_empty() && self.orphans.contains(&payload)
    }

    /// It is over: removed, or committed after all.
    pub fn forget_orphan(&mut self, payload: SlotKey) {
        self.orphans.remove(&payload);
    }

    /// What one session holds; `None` when it is not known here, or no more.
    pub fn holding(&self, id: SessionId) -> Option<SessionHolding> {
        self.get(id).map(|session| SessionHolding {
            leases: session.leases.len(),
            leased_bytes: session.leased_bytes,
            allocations: session.allocations.len(),
        })
    }

    /// Leases and allocations noted, of all sessions; for tests and simulators.
    pub fn held(&self) -> usize {
        let held = |session: &Session| session.leases.len() + session.allocations.len();
        self.sessions.iter().map(held).sum::<usize>() + self.orphans.len()
    }
}
