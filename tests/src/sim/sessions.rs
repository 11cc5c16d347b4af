//! Native sessions: clients whose leases and allocations end with them, at any moment.
//!
//! ```text
//!   request of a session --> taken, unless its shard has heard of the end --> step --> answered
//!   the client dies --> SessionClosed to each shard --> what it holds is given back
//!                                `--> once more after the last answer, for what was granted meanwhile
//! ```
//! This is the pump's part, and a model of what each session holds. After each step a shard must count as the model
//! does for every session that lives, whoever died beside it; and must know nothing any more of one that was worked
//! off. What a session allocated and nobody committed must be gone a little later.

use std::collections::{BTreeMap, BTreeSet};

use payload_types::effect::ReplyTo;
use payload_types::event::Event;
use payload_types::reply::{Reply, ReplyResult};
use payload_types::request::{Acquire, Request};
use payload_types::{
    ErrorKind, LeaseId, Monotonic, PayloadKey, PayloadState, Peer, PromotionPolicy, SessionId, limits,
};

use super::agenda::Task;
use super::canary::Canary;
use super::faults::SECONDS;
use super::oracle::{Breach, Oracle, Rule, breach, may_remove};
use super::world::World;

/// Sessions open at one time.
const OPEN_MAX: usize = 4;

/// Leases that a hoarder takes: more than one step ends.
const HOARD: usize = limits::ITEMS_PER_TURN_MAX + 100;

/// How long after a session's end the oracle looks for what it allocated, again and again while something is under way.
const LOOK_NS: u64 = 2 * SECONDS;

/// Longer than a removal that failed waits for its next attempt.
const RETRY_NS: u64 = 3 * SECONDS;

/// A request of a session that was not answered.
#[derive(Clone, Copy, Debug)]
struct Out {
    shard: usize,
    taken: bool,
}

/// One session, as its client and the pumps know it.
#[derive(Debug)]
struct Session {
    peer: Peer,
    ended: bool,
    out: BTreeMap<u64, Out>,
    /// Shards that have heard of its end.
    heard: BTreeSet<usize>,
    /// Shards that will not hear of it again.
    done: BTreeSet<usize>,
    /// Since when each of them may know that its process is dead.
    dead_at: BTreeMap<usize, Monotonic>,
    leases: BTreeMap<LeaseId, u64>,
    /// What it allocated, as long as it may be uncommitted.
    allocated: BTreeSet<PayloadKey>,
    /// When its last allocation was answered.
    allocated_last: Monotonic,
}

impl Session {
    /// True while a shard has taken what it has not answered.
    fn awaits(&self, shard: usize) -> bool {
        self.out.values().any(|out| out.taken && out.shard == shard)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    all: BTreeMap<SessionId, Session>,
    last: u32,
    hoarded: bool,
}

/// The session that sends this request.
fn session_of(request: &Request) -> Option<SessionId> {
    match request {
        Request::Allocate(request) => request.owner.session(),
        Request::Acquire(request) => request.owner.session(),
        Request::Abort { owner, .. } => owner.session(),
        _ => None,
    }
}

impl Sessions {
    fn open(&self) -> Vec<SessionId> {
        self.all.iter().filter(|(_, session)| !session.ended).map(|(id, _)| *id).collect()
    }

    /// True for what some session allocated, and may not have committed.
    pub(super) fn owns(&self, key: PayloadKey) -> bool {
        self.all.values().any(|session| session.allocated.contains(&key))
    }
}

impl Oracle {
    /// A request was taken back before its shard saw it.
    fn forget(&mut self, to: ReplyTo) {
        let Some(pending) = self.pending.remove(&to.0) else { return };
        if let Some(deadline) = pending.deadline {
            self.overdue.remove(&(deadline, to.0));
        }
        if let Some(key) = super::oracle::key_of(&pending.request)
            && let Some(fact) = self.facts.get_mut(&key)
            && may_remove(&pending.request, fact)
        {
            fact.gone_pending = fact.gone_pending.saturating_sub(1);
        }
    }
}

impl World {
    // ---- clients ----

    /// Sessions come, hoard, abort and die.
    pub(super) fn session_tick(&mut self) {
        if self.plan.session_permille == 0 {
            return;
        }
        let open = self.sessions.open();
        if open.len() < OPEN_MAX && self.rng.chance(100) {
            self.sessions.last += 1;
            let id = SessionId::new(self.sessions.last).expect("counted from 1");
            let session = Session {
                peer: Peer::native(1000 + id.get(), 0, id),
                ended: false,
                out: BTreeMap::new(),
                heard: BTreeSet::new(),
                done: BTreeSet::new(),
                dead_at: BTreeMap::new(),
                leases: BTreeMap::new(),
                allocated: BTreeSet::new(),
                allocated_last: self.now,
            };
            self.sessions.all.insert(id, session);
        }
        if open.is_empty() {
            return;
        }
        let id = self.rng.pick(&open);
        self.slab_tick(id, self.sessions.all[&id].peer);
        self.direct_tick(id);
        let roomy = self.plan.session_leases_max as usize > HOARD;
        if roomy && !self.sessions.hoarded && self.rng.chance(20) {
            self.hoard(id);
        }
        if self.rng.chance(60) {
            let session = &self.sessions.all[&id];
            let owner = session.peer;
            let keys: Vec<PayloadKey> = session.allocated.iter().copied().collect();
            if !keys.is_empty() {
                let key = self.rng.pick(&keys);
                self.ask(Request::Abort { key, owner });
            }
        }
        let waits = |id: &SessionId| {
            self.sessions.all[id].out.iter().any(|(to, out)| out.taken && self.is_acquire(*to))
        };
        let waiting = open.iter().copied().find(waits);
        match waiting {
            Some(waiting) if self.rng.chance(300) => self.end_session(waiting),
            _ if self.rng.chance(25) => self.end_session(id),
            _ => {}
        }
    }

    fn is_acquire(&self, to: u64) -> bool {
        self.oracle.pending.get(&to).is_some_and(|pending| matches!(pending.request, Request::Acquire(_)))
    }

    /// Many leases on one payload.
    fn hoard(&mut self, id: SessionId) {
        let facts = self.oracle.facts.values();
        let keys: Vec<PayloadKey> =
            facts.filter(|fact| fact.committed && !fact.gone && !fact.lost).map(|fact| fact.key).collect();
        if keys.is_empty() {
            return;
        }
        self.sessions.hoarded = true;
        let (key, owner) = (self.rng.pick(&keys), self.sessions.all[&id].peer);
        for _ in 0..HOARD {
            let nonce = self.nonce();
            let policy = PromotionPolicy::BestEffort;
            let (min_tier, expected_version) = (None, None);
            self.ask(Request::Acquire(Acquire {
                key,
                min_tier,
                policy,
                duration_ms: 0,
                expected_version,
                accepts_packed: true,
                accepts_slabs: owner.session().is_some(),
                nonce,
                owner,
            }));
        }
    }

    /// Some requests come from sessions.
    pub(super) fn as_session(&mut self, request: &mut Request) {
        let mapped = matches!(request, Request::Acquire(asked) if self.is_in_slab(asked.key));
        let owner = match request {
            Request::Allocate(request) => &mut request.owner,
            Request::Acquire(request) => &mut request.owner,
            _ => return,
        };
        if self.plan.session_permille > 0 && *owner == Peer::UNKNOWN {
            let open = self.sessions.open();
            // Half of those who lease what lies in a slab can map it.
            let chance =
                if mapped { 500.max(self.plan.session_permille) } else { self.plan.session_permille };
            if !open.is_empty() && self.rng.chance(chance) {
                *owner = self.sessions.all[&self.rng.pick(&open)].peer;
            }
        }
        match request {
            Request::Allocate(request) => self.wants_slab(request),
            Request::Acquire(request) => request.accepts_slabs |= request.owner.session().is_some(),
            _ => {}
        }
    }

    /// True when a session's client is dead, or has left.
    pub(super) fn session_has_ended(&self, id: SessionId) -> bool {
        self.sessions.all.get(&id).is_none_or(|session| session.ended)
    }

    /// True while the process of a session that a shard takes for closed may live.
    pub(super) fn may_still_write(&self, id: SessionId, shard: usize) -> bool {
        let Some(session) = self.sessions.all.get(&id) else { return false };
        let dead = session.dead_at.get(&shard).is_some_and(|at| *at <= self.now);
        session.heard.contains(&shard) && !dead
    }

    /// When a shard may take a session's process for dead.
    pub(super) fn note_death(&mut self, id: SessionId, shard: usize, at: Monotonic) {
        if let Some(session) = self.sessions.all.get_mut(&id) {
            session.dead_at.insert(shard, at);
        }
    }

    /// A request of a session leaves its client.
    pub(super) fn session_asks(&mut self, to: ReplyTo, shard: usize, request: &Request) {
        let session = session_of(request).and_then(|id| self.sessions.all.get_mut(&id));
        if let Some(session) = session {
            session.out.insert(to.0, Out { shard, taken: false });
        }
    }

    /// The client of a session dies, or leaves.
    fn end_session(&mut self, id: SessionId) {
        let session = self.sessions.all.get_mut(&id).expect("it is open");
        session.ended = true;
        let leases: Vec<LeaseId> = session.leases.keys().copied().collect();
        let keys: Vec<PayloadKey> = session.allocated.iter().copied().collect();
        let waits: Vec<u64> = session.out.iter().filter(|(_, out)| out.taken).map(|(to, _)| *to).collect();
        for to in waits {
            let request = self.oracle.pending.get(&to).map(|pending| &pending.request);
            match request {
                Some(Request::Acquire(request)) if request.policy == PromotionPolicy::Blocking => {
                    self.oracle.coverage.hit("session_ended_while_it_waits_for_a_replica");
                }
                Some(Request::Allocate(_)) => {
                    self.oracle.coverage.hit("session_ended_while_it_waits_for_space");
                }
                _ => {}
            }
        }
        for shard in 0..usize::from(self.shard_count()) {
            let here = leases.iter().filter(|lease| usize::from(lease.shard().0) == shard).count();
            if here > limits::ITEMS_PER_TURN_MAX {
                self.oracle.coverage.hit("session_ended_with_more_than_a_step_ends");
            }
            if self.strikes(Canary::ForgottenEnd, 300) {
                // The pump believes that the shard has heard it.
                self.session_ends_at(shard, id);
                self.session_settles(shard, id);
                continue;
            }
            let at = Monotonic(self.now.0 + self.plan.hop_delay(&mut self.rng));
            self.agenda
                .add(at, Task::Deliver { shard, event: Event::SessionClosed { session: id }, work: None });
        }
        self.direct_dies(id);
        for lease in leases {
            self.stop_reading(lease);
        }
        for key in keys {
            self.leave_behind(key);
        }
        self.agenda.add(Monotonic(self.now.0 + LOOK_NS), Task::SessionLeft(id));
    }

    /// Nobody will commit it, unless that is on its way.
    fn leave_behind(&mut self, key: PayloadKey) {
        let Some(fact) = self.oracle.facts.get_mut(&key).filter(|fact| !fact.committed) else { return };
        fact.left_behind = true;
        if fact.commits_pending > 0 {
            self.oracle.coverage.hit("session_ended_while_its_commit_was_in_flight");
        }
    }

    /// All sessions end: clients stop.
    pub(super) fn end_sessions(&mut self) {
        for id in self.sessions.open() {
            self.end_session(id);
        }
    }

    /// The server dies, and all sessions with it.
    pub(super) fn sessions_crash(&mut self) {
        for session in std::mem::take(&mut self.sessions.all).into_values() {
            for lease in session.leases.into_keys() {
                self.stop_reading(lease);
            }
        }
    }

    // ---- the pump's part ----

    /// True when the pump takes a request: it takes none of a session of whose end it has heard.
    pub(super) fn session_takes(&mut self, shard: usize, to: ReplyTo, request: &mut Request) -> bool {
        let Some(session) = session_of(request).and_then(|id| self.sessions.all.get_mut(&id)) else {
            return true;
        };
        if session.heard.contains(&shard) {
            session.out.remove(&to.0);
            self.oracle.forget(to);
            return false;
        }
        if let Some(out) = session.out.get_mut(&to.0) {
            out.taken = true;
        }
        if let Request::Allocate(request) = request
            && self.strikes(Canary::UnnotedAllocation, 300)
        {
            request.owner = Peer::UNKNOWN;
        }
        true
    }

    /// SessionClosed reaches a shard. What is leased now, nobody relies on.
    pub(super) fn session_ends_at(&mut self, shard: usize, id: SessionId) {
        let now = self.clock().wall;
        let Some(session) = self.sessions.all.get_mut(&id) else { return };
        session.heard.insert(shard);
        let Oracle { leases, .. } = &mut self.oracle;
        session.leases.retain(|lease, _| {
            let here = usize::from(lease.shard().0) == shard;
            if here && let Some(fact) = leases.get_mut(lease) {
                (fact.over, fact.expires_at) = (true, fact.expires_at.min(now));
            }
            !here
        });
    }

    /// After a SessionClosed: when no answer is awaited it was the last one.
    pub(super) fn session_settles(&mut self, shard: usize, id: SessionId) {
        let Some(session) = self.sessions.all.get_mut(&id) else { return };
        if !session.awaits(shard) && session.done.insert(shard) && self.plan.arena_permille > 0 {
            self.session_dies(shard, id);
        }
    }

    /// An answer for a session. True when there is nobody who could act on it.
    pub(super) fn session_answered(
        &mut self,
        to: ReplyTo,
        request: &Request,
        result: &ReplyResult,
    ) -> Result<bool, Breach> {
        let Some(id) = session_of(request) else { return Ok(false) };
        let Some(session) = self.sessions.all.get_mut(&id) else { return Ok(false) };
        let out = session.out.remove(&to.0);
        let ended = session.ended;
        match (request, result) {
            (Request::Acquire(request), Ok(Reply::Leased(grant))) => {
                session.leases.insert(grant.lease, self.oracle.facts[&request.key].size.0);
                if ended {
                    self.oracle.coverage.hit("session_leased_after_its_end");
                    self.stop_reading(grant.lease);
                }
            }
            (Request::Allocate(request), Ok(Reply::Allocated(_))) => {
                session.allocated.insert(request.key);
                session.allocated_last = self.now;
                if ended {
                    self.leave_behind(request.key);
                    self.agenda.add(Monotonic(self.now.0 + LOOK_NS), Task::SessionLeft(id));
                }
            }
            (Request::Abort { key, .. }, Ok(_)) => {
                session.allocated.remove(key);
                self.oracle.coverage.hit("session_aborted");
            }
            (Request::Acquire(_), Err(error))
                if error.kind == ErrorKind::ResourceExhausted && error.message.contains("this session") =>
            {
                if session.leases.len() < self.plan.session_leases_max as usize / 2 {
                    return breach(Rule::Session, format!("{id} holds few: {error:?} {session:?}"));
                }
                self.oracle.coverage.hit("session_refused_at_its_limit");
            }
            _ => {}
        }
        let session = &self.sessions.all[&id];
        if let Some(Out { shard, .. }) = out
            && session.heard.contains(&shard)
            && !session.awaits(shard)
        {
            if self.strikes(Canary::LeasedAfterTheEnd, 1000) {
                self.session_ends_at(shard, id);
                self.session_settles(shard, id);
            } else {
                let event = Event::SessionClosed { session: id };
                self.agenda.add(self.now, Task::Deliver { shard, event, work: None });
            }
        }
        Ok(ended)
    }

    /// A release reaches its shard.
    pub(super) fn session_lease_released(&mut self, lease: LeaseId) {
        for session in self.sessions.all.values_mut() {
            session.leases.remove(&lease);
        }
    }

    // ---- the oracle's part ----

    /// After a step, when all its answers have left.
    pub(super) fn audit_sessions(&mut self, shard: usize) -> Result<(), Breach> {
        let core = &self.cores[shard];
        if self.plan.session_permille == 0 || !core.outbox.is_empty() {
            return Ok(());
        }
        let is_busy = core.shard.next_timer() == Some(Monotonic(0));
        for (id, session) in &self.sessions.all {
            let holding = core.shard.held_by_session(*id);
            if session.done.contains(&shard) && !is_busy && holding.is_some() {
                return breach(
                    Rule::Session,
                    format!("shard {shard}: session {id} has ended, and holds {holding:?}"),
                );
            }
            if session.heard.contains(&shard) {
                continue;
            }
            let here = session.leases.iter().filter(|(lease, _)| usize::from(lease.shard().0) == shard);
            let leased = here.fold((0, 0), |(count, bytes), (_, size)| (count + 1, bytes + size));
            let counted = holding.map_or((0, 0), |holding| (holding.leases, holding.leased_bytes));
            let uncommitted = session.allocated.iter().filter(|key| self.must_be_noted(shard, **key)).count();
            let noted = holding.map_or(0, |holding| holding.allocations);
            if leased != counted || noted < uncommitted || leased.0 > self.plan.session_leases_max as usize {
                return breach(
                    Rule::Session,
                    format!(
                        "shard {shard}: session {id} holds {leased:?} and {uncommitted} allocations: {holding:?}"
                    ),
                );
            }
        }
        Ok(())
    }

    /// True for an allocation on a shard that cannot have been committed or removed.
    fn must_be_noted(&self, shard: usize, key: PayloadKey) -> bool {
        let fact = &self.oracle.facts[&key];
        usize::from(key.id.shard(self.shard_count()).0) == shard
            && !fact.committed
            && !fact.commit_maybe
            && fact.commits_pending == 0
            && fact.must_exist(self.clock(), &self.plan)
    }

    /// A while after the end of a session: what it left behind is gone, unless something is under way.
    pub(super) fn look_for_left(&mut self, id: SessionId) -> Result<(), Breach> {
        let Some(session) = self.sessions.all.get(&id) else { return Ok(()) };
        let keys: Vec<PayloadKey> = session.allocated.iter().copied().collect();
        let settled = session.done.len() == usize::from(self.shard_count());
        let recent = session.allocated_last.0 + LOOK_NS > self.now.0;
        let faulty = recent || self.oracle.catalog_fault_last.0 + RETRY_NS > self.now.0;
        let mut left = !settled;
        for key in keys {
            let fact = &self.oracle.facts[&key];
            let is_over = fact.committed || fact.commit_maybe || fact.gone;
            let works = self.works.get(&key.id).is_some_and(|works| *works > 0);
            if !is_over && (!settled || faulty || works || fact.commits_pending > 0 || fact.gone_pending > 0)
            {
                left = true;
                continue;
            }
            if !is_over {
                let shard = usize::from(key.id.shard(self.shard_count()).0);
                match self.ask_now(shard, Request::Resolve { key })? {
                    Ok(Reply::Resolved(seen)) if seen.state == PayloadState::Deleting => {
                        left = true;
                        continue;
                    }
                    Ok(other) => {
                        return breach(Rule::Session, format!("session {id} has left {key:?}: {other:?}"));
                    }
                    Err(_) => self.oracle.coverage.hit("session_allocation_taken_back"),
                }
            }
            if let Some(session) = self.sessions.all.get_mut(&id) {
                session.allocated.remove(&key);
            }
        }
        if left {
            self.agenda.add(Monotonic(self.now.0 + LOOK_NS), Task::SessionLeft(id));
        } else {
            // Nothing of it is to be heard any more.
            self.sessions.all.remove(&id);
        }
        Ok(())
    }

    /// The end: every session is over, except where somebody waits without a deadline.
    pub(super) fn audit_sessions_over(&mut self) -> Result<(), Breach> {
        for shard in 0..self.cores.len() {
            self.audit_sessions(shard)?;
        }
        match self.sessions.all.iter().find(|(_, session)| session.out.is_empty()) {
            Some((id, session)) => breach(Rule::Session, format!("session {id} is not over: {session:?}")),
            None => Ok(()),
        }
    }
}
