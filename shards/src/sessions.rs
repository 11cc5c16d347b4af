//! What native sessions hold on one shard: leases without a timer, and allocations that nobody committed yet.
//!
//! Leases know their place in their session's list, so that taking and ending one costs the same however many there are.
//! Allocations are only noted here, by slot, and nothing tells that one was committed or removed: each new one looks at
//! [`LOOKS_PER_NOTE`] noted ones and forgets those that are over, so a session notes about as many as it has. A session
//! that has closed is worked off in bounded steps; what is busy then is left to the payload's own timer, as an orphan.

use std::collections::{BTreeSet, VecDeque};

use payload_ledger::SlotKey;
use payload_types::{PayloadError, Peer, SessionId};

/// Noted allocations that are looked at for each new one.
const LOOKS_PER_NOTE: usize = 4;

/// Allocations that one session may have uncommitted on one shard.
pub const ALLOCATIONS_PER_SESSION_MAX: usize = 1 << 16;

/// What one session may lease on one shard.
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

    fn of(&mut self, id: SessionId) -> &mut Session {
        let at = self.position(id).unwrap_or_else(|at| {
            let (leases, allocations) = (Vec::new(), BTreeSet::new());
            let looked_at = SlotKey::NOWHERE;
            self.sessions.insert(at, Session { id, leases, leased_bytes: 0, allocations, looked_at });
            at
        });
        self.last = at;
        &mut self.sessions[at]
    }

    /// Refuses a lease that would be one too many.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED, naming the limit and its key.
    pub fn check(&self, owner: Peer, caps: SessionCaps, bytes: u64) -> Result<(), PayloadError> {
        let Some(session) = owner.session().and_then(|id| self.get(id)) else { return Ok(()) };
        if session.leases.len() >= caps.leases_max as usize {
            return Err(PayloadError::exhausted(format!(
                "this session holds {} leases on this shard, which is its limit (local.session_leases_max); release some",
                session.leases.len()
            )));
        }
        if session.leased_bytes.saturating_add(bytes) > caps.leased_bytes_max {
            return Err(PayloadError::exhausted(format!(
                "this session leases {} bytes on this shard, and {bytes} more are over its limit of {} (local.session_leased_bytes_max); release some",
                session.leased_bytes, caps.leased_bytes_max
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
        let session = self.of(id);
        let held = session.leases.swap_remove(place as usize);
        session.leased_bytes -= held.bytes;
        session.leases.get(place as usize).map(|moved| moved.lease)
    }

    /// Refuses an allocation that would be one too many.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED.
    pub fn check_allocations(&self, owner: Peer) -> Result<(), PayloadError> {
        let Some(session) = owner.session().and_then(|id| self.get(id)) else { return Ok(()) };
        if session.allocations.len() < ALLOCATIONS_PER_SESSION_MAX {
            return Ok(());
        }
        Err(PayloadError::exhausted(format!(
            "this session has {ALLOCATIONS_PER_SESSION_MAX} allocations on this shard that are not committed; commit or abort some"
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
            self.sessions.remove(at);
            self.closed.pop_front();
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
