//! Memory of native sessions: slabs that one client writes, as the session thread and the kernel would have them.
//!
//! ```text
//!   Make --> the writer maps it, or dies before --> sealed --> Made      Return --> a reader unmaps it, late --> Returned
//!   a session's shards have all heard of its end --> its process is proven dead --> SessionGone
//! ```
//! Where payloads lie is told by the answers of the shards: each is a block of [`super::storage`] until another one is put
//! over it, or its slab goes. So a lease that names a place which is used again points at nothing, and that is noticed as
//! with every other replica. Beside that, what must never be:
//!
//! - a place in a slab that is not sealed, or another session's, or returned;
//! - memory given back that a lease names, that is copied, or that a process may still write to;
//! - a place with another namespace's bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use payload_types::effect::ReplicaRef;
use payload_types::event::{Completion, DriverErrorKind, Event};
use payload_types::reply::{Reply, ReplyResult};
use payload_types::request::{Acquire, Allocate, Request};
use payload_types::slab::{BLOCK_UNIT_BYTES, SlabAction, SlabDone, SlabOp};
use payload_types::{
    Block as Place, ByteCount, Descriptor, EvictionPolicy, Generation, Location, Memory, Monotonic,
    NamespaceId, PayloadId, PayloadKey, Peer, SessionId, ShardIndex, SlabId, Tier, limits,
};

use super::agenda::Task;
use super::canary::Canary;
use super::faults::{MILLIS, SECONDS, driver_error};
use super::oracle::{Breach, Rule, breach};
use super::storage::{Block, BlockName, Phase};
use super::world::World;

/// Blocks in slabs are named by their place. No replica of any other kind has this bit in its generation.
const IN_SLAB: u64 = 1 << 63;

/// Payloads in slabs beyond which sessions delete some first.
const PAYLOADS_MAX: usize = 40;

/// Slabs up to this size are audited after every step, larger ones now and then.
const AUDITED_BYTES: u64 = 1 << 20;

/// What names the block of a replica in a slab.
pub(super) fn name_in_slab(id: PayloadId, place: Place) -> BlockName {
    BlockName { tier: Tier::Ram, id, generation: Generation(IN_SLAB | place.to_bits()) }
}

/// One slab.
#[derive(Clone, Debug)]
struct Slab {
    shard: usize,
    session: SessionId,
    bytes: u64,
    isolated: bool,
    /// From then on readers may have it; `None`: never.
    sealed_at: Option<Monotonic>,
    returning: bool,
    /// Whose bytes may be where.
    dirty: Vec<(Range<u64>, NamespaceId)>,
}

/// All slabs.
#[derive(Debug, Default)]
pub(super) struct Slabs {
    all: BTreeMap<SlabId, Slab>,
    /// Names used in this start.
    seen: BTreeSet<SlabId>,
    /// Operations that were not answered.
    pub(super) ops: usize,
}

impl Slabs {
    /// Bytes of a shard's slabs.
    pub(super) fn bytes_held(&self, shard: ShardIndex) -> u64 {
        let here = self.all.values().filter(|slab| slab.shard == usize::from(shard.0));
        here.map(|slab| slab.bytes).sum()
    }

    /// Some slab that is still there.
    pub(super) fn any(&self) -> Option<String> {
        self.all.iter().next().map(|(id, slab)| format!("slab {id}: {slab:?}"))
    }

    /// True when readers may have the slab in which a place is.
    pub(super) fn place_is_sealed(&self, place: Place, now: Monotonic) -> Result<(), Breach> {
        self.sealed(place, now).map(drop)
    }

    fn sealed(&self, place: Place, now: Monotonic) -> Result<&Slab, Breach> {
        match self.all.get(&place.slab) {
            Some(slab) if slab.sealed_at.is_some_and(|at| at <= now) && !slab.returning => Ok(slab),
            other => breach(Rule::Slab, format!("{place:?} is told of, and its slab is {other:?}")),
        }
    }
}

impl Slab {
    /// Zeroes are written here.
    fn clean(&mut self, range: &Range<u64>) {
        let parts = std::mem::take(&mut self.dirty);
        for (old, namespace) in parts {
            for rest in [old.start..old.end.min(range.start), old.start.max(range.end)..old.end] {
                if !rest.is_empty() {
                    self.dirty.push((rest, namespace));
                }
            }
        }
    }
}

impl World {
    // ---- clients ----

    /// Some allocations of sessions are for memory of theirs.
    pub(super) fn wants_slab(&mut self, request: &mut Allocate) {
        if self.plan.arena_permille == 0
            || request.tier != Tier::Ram
            || request.memory != Memory::Segment
            || request.owner.session().is_none()
            || !self.rng.chance(self.plan.arena_permille)
        {
            return;
        }
        request.memory = if self.rng.chance(100) { Memory::Sealed } else { Memory::Arena };
        if self.rng.chance(500) {
            request.size = ByteCount(self.rng.between(1, 3 * limits::PAGE_BYTES));
        }
    }

    /// A session fills its slabs, and gives back what it does not need.
    pub(super) fn slab_tick(&mut self, id: SessionId, owner: Peer) {
        let alive = self.oracle.facts.values().filter(|fact| fact.arena && !fact.gone && !fact.lost);
        let keys: Vec<PayloadKey> = alive.map(|fact| fact.key).collect();
        if self.plan.arena_permille == 0 || !self.rng.chance(400) || self.session_has_ended(id) {
            return;
        }
        if keys.len() > PAYLOADS_MAX {
            let key = self.rng.pick(&keys);
            let force = self.rng.chance(300);
            return self.ask(Request::Delete { key, force, expected_version: None });
        }
        let slab = self.plan.capacity[Tier::Ram].unwrap_or_default().0 / 64;
        let size = match self.rng.below(10) {
            0..=3 => self.rng.between(1, limits::PAGE_BYTES),
            4..=7 => self.rng.between(1, (slab / 4).max(1)),
            8 => self.rng.between(1, 3 * limits::PAGE_BYTES),
            _ => self.rng.between(1, slab.max(1)),
        };
        let memory = if self.rng.chance(80) { Memory::Sealed } else { Memory::Arena };
        let request = self.allocation();
        let ttl_ms = self.rng.chance(300).then(|| self.rng.between(1, 2_000));
        let (tier, no_evict, policy) = (Tier::Ram, false, EvictionPolicy::default());
        let size = ByteCount(size);
        self.ask(Request::Allocate(Allocate {
            size,
            tier,
            ttl_ms,
            no_evict,
            policy,
            memory,
            owner,
            ..request
        }));
    }

    // ---- the session thread's part ----

    /// A shard wants something of a slab.
    pub(super) fn slab_op(&mut self, shard: usize, op: SlabOp) -> Result<(), Breach> {
        let wrong = |why: &str| breach(Rule::Slab, format!("{why}: {op:?}"));
        if op.slab.shard(self.shard_count()) != ShardIndex(shard as u16) {
            return wrong("another shard's slab");
        }
        if let SlabAction::Make { bytes, isolated } = op.action {
            return self.slab_make(shard, op, bytes, isolated);
        }
        let now = self.now;
        let Some(slab) = self.storage.slabs.all.get_mut(&op.slab).filter(|slab| !slab.returning) else {
            return wrong("there is no such slab");
        };
        if slab.sealed_at.is_none_or(|at| at > now) && op.action != SlabAction::Return {
            return wrong("it is not there yet");
        }
        let fault = self.rng.chance(self.plan.driver_fault_permille);
        let result = if fault { Err(driver_error(DriverErrorKind::Io)) } else { Ok(()) };
        let done = match op.action {
            SlabAction::Make { .. } => unreachable!("seen above"),
            SlabAction::Prefault { to } if to.0 > slab.bytes => return wrong("beyond its end"),
            SlabAction::Prefault { .. } => return Ok(()),
            SlabAction::Zero { offset, bytes } => {
                let range = offset..offset + bytes.0;
                if range.is_empty() || range.end > slab.bytes {
                    return wrong("beyond its end");
                }
                self.oracle.coverage.hit("slab_zeroed_for_another_namespace");
                if result.is_ok() && !self.strikes(Canary::NotZeroed, 500) {
                    let slab = self.storage.slabs.all.get_mut(&op.slab).expect("just seen");
                    slab.clean(&range);
                }
                SlabDone::Zeroed { op: op.op, result }
            }
            SlabAction::Freeze if !slab.isolated => return wrong("others lie there, too"),
            SlabAction::Freeze if self.rng.chance(200) => {
                self.oracle.coverage.hit("slab_still_writable_at_commit");
                SlabDone::StillWritable { op: op.op }
            }
            SlabAction::Freeze => SlabDone::Frozen { op: op.op, result },
            SlabAction::Return => return self.slab_return(shard, op),
        };
        if fault {
            self.oracle.driver_fault_last = self.now;
        }
        self.slab_answers(shard, done);
        Ok(())
    }

    fn slab_answers(&mut self, shard: usize, done: SlabDone) {
        self.storage.slabs.ops += 1;
        let at = Monotonic(self.now.0 + self.plan.driver_delay(&mut self.rng));
        self.deliver_at(at, shard, Completion::Slab(done), None);
    }

    fn slab_make(
        &mut self,
        shard: usize,
        op: SlabOp,
        bytes: ByteCount,
        isolated: bool,
    ) -> Result<(), Breach> {
        let fresh = self.storage.slabs.seen.insert(op.slab);
        if !fresh || bytes.0 == 0 || bytes != bytes.in_pages() {
            return breach(Rule::Slab, format!("cannot be made: {op:?}"));
        }
        let ended = self.session_has_ended(op.session);
        // It may have mapped it before it died.
        let died = ended && self.rng.chance(700);
        let full = self.rng.chance(self.plan.driver_fault_permille);
        let at = Monotonic(self.now.0 + self.plan.driver_delay(&mut self.rng));
        self.storage.slabs.ops += 1;
        if died || full {
            let kind = if full { DriverErrorKind::Full } else { DriverErrorKind::Io };
            self.oracle.coverage.hit(if full {
                "slab_could_not_be_made"
            } else {
                "slab_writer_died_before_mapping"
            });
            let done = SlabDone::Made { op: op.op, result: Err(driver_error(kind)) };
            self.deliver_at(at, shard, Completion::Slab(done), None);
            return Ok(());
        }
        if ended {
            self.oracle.coverage.hit("slab_writer_died_after_mapping");
        }
        let early = self.strikes(Canary::ToldBeforeSeal, 300);
        let sealed_at = if early { Monotonic(at.0 + SECONDS) } else { at };
        let (session, dirty) = (op.session, Vec::new());
        let slab = Slab {
            shard,
            session,
            bytes: bytes.0,
            isolated,
            sealed_at: Some(sealed_at),
            returning: false,
            dirty,
        };
        self.storage.slabs.all.insert(op.slab, slab);
        let done = SlabDone::Made { op: op.op, result: Ok(()) };
        self.deliver_at(at, shard, Completion::Slab(done), None);
        Ok(())
    }

    fn slab_return(&mut self, shard: usize, op: SlabOp) -> Result<(), Breach> {
        let slab = &self.storage.slabs.all[&op.slab];
        if self.may_still_write(slab.session, shard) {
            return breach(Rule::Slab, format!("given back while its writer may live: {op:?}"));
        }
        let now = self.clock();
        let blocks: Vec<BlockName> = self.storage.in_slab(op.slab).map(|(name, _)| *name).collect();
        for name in blocks {
            let block = &self.storage.blocks[&name];
            if self.oracle.is_leased(name, now) || block.jobs > 0 {
                return breach(
                    Rule::LiveLease,
                    format!("{name:?} is used, and its slab goes: {op:?} {block:?}"),
                );
            }
            self.storage.blocks.remove(&name);
        }
        self.oracle.coverage.hit("slab_returned");
        let slab = self.storage.slabs.all.get_mut(&op.slab).expect("just seen");
        slab.returning = true;
        let bytes = ByteCount(slab.bytes);
        let unmapped = self.now.0 + self.plan.linger(&mut self.rng).min(20 * SECONDS);
        let at = Monotonic(unmapped + self.plan.driver_delay(&mut self.rng));
        let told = if self.strikes(Canary::SlabFreedEarly, 500) { self.now } else { at };
        let done = SlabDone::Returned { slab: op.slab, bytes };
        self.deliver_at(told, shard, Completion::Slab(done), None);
        self.agenda.add(at.max(told), Task::SlabFreed(op.slab));
        Ok(())
    }

    /// The kernel has the memory back.
    pub(super) fn slab_freed(&mut self, slab: SlabId) -> Result<(), Breach> {
        self.storage.slabs.all.remove(&slab);
        Ok(())
    }

    /// A shard hears of a slab.
    pub(super) fn slab_heard(&mut self, event: &Event) {
        let Event::Completion(Completion::Slab(done)) = event else { return };
        match done {
            // The memory is free first; the task for that may be the next one.
            SlabDone::Returned { slab, .. } if self.canary != Some(Canary::SlabFreedEarly) => {
                self.storage.slabs.all.remove(slab);
            }
            SlabDone::Returned { .. } => {}
            SlabDone::Made { result: Err(_), .. } => {
                self.oracle.driver_fault_last = self.now;
                self.storage.slabs.ops -= 1;
            }
            _ => self.storage.slabs.ops -= 1,
        }
    }

    /// A shard has heard for the last time of a session's end: a while later its process is proven dead.
    pub(super) fn session_dies(&mut self, shard: usize, session: SessionId) {
        if self.strikes(Canary::NeverGone, 500) {
            return;
        }
        let early = self.strikes(Canary::GoneBeforeDead, 500);
        let lives_on = self.rng.chance(300);
        let after =
            if lives_on { self.rng.between(1, 900) * MILLIS } else { self.plan.hop_delay(&mut self.rng) };
        let at = Monotonic(self.now.0 + after);
        let told = if early { self.now } else { at };
        let dead_at = if early { Monotonic(at.0 + 2 * SECONDS) } else { at };
        self.note_death(session, shard, dead_at);
        self.agenda.add(told, Task::Deliver { shard, event: Event::SessionGone { session }, work: None });
    }

    // ---- the oracle's part ----

    /// An answer that tells of a place in a slab: nobody else's, and nobody's bytes.
    pub(super) fn slab_answered(
        &mut self,
        request: Option<&Request>,
        result: &ReplyResult,
    ) -> Result<(), Breach> {
        let (Some(Request::Allocate(request)), Ok(Reply::Allocated(seen))) = (request, result) else {
            return Ok(());
        };
        let Some(Location::Arena(place)) = seen.location else {
            if request.memory != Memory::Segment {
                return breach(Rule::Slab, format!("asked for {:?}, got {seen:?}", request.memory));
            }
            return Ok(());
        };
        let request = request.clone();
        self.put_in_slab(&request, place)
    }

    fn put_in_slab(&mut self, request: &Allocate, place: Place) -> Result<(), Breach> {
        let slab = self.storage.slabs.sealed(place, self.now)?.clone();
        let range = place.offset_bytes()..place.offset_bytes() + request.size.0;
        let alone = request.memory == Memory::Sealed;
        if Some(slab.session) != request.owner.session() || range.end > slab.bytes || slab.isolated != alone {
            return breach(Rule::Slab, format!("{place:?} is not for {request:?}: {slab:?}"));
        }
        let aligned = request.size.0 < limits::PAGE_BYTES
            || (u64::from(place.unit) * BLOCK_UNIT_BYTES).is_multiple_of(limits::PAGE_BYTES);
        if !aligned {
            return breach(Rule::Slab, format!("{place:?} is not aligned for {request:?}"));
        }
        let (now, own) = (self.clock(), request.key.namespace);
        let over: Vec<BlockName> = self
            .storage
            .in_slab(place.slab)
            .filter(|(_, block)| {
                let start = block.place.expect("it lies in a slab").offset_bytes();
                start < range.end && range.start < start + block.size.0
            })
            .map(|(name, _)| *name)
            .collect();
        for name in over {
            let block = &self.storage.blocks[&name];
            if self.oracle.is_leased(name, now) || block.jobs > 0 {
                return breach(
                    Rule::LiveLease,
                    format!("{place:?} is given to {request:?}, and {name:?} is used: {block:?}"),
                );
            }
            self.oracle.coverage.hit("slab_place_used_again");
            self.storage.blocks.remove(&name);
        }
        let meets = |old: &Range<u64>| old.start < range.end && range.start < old.end;
        if let Some(other) = slab.dirty.iter().find(|(old, whose)| *whose != own && meets(old)) {
            return breach(Rule::Slab, format!("{place:?} for {request:?} holds bytes of {other:?}"));
        }
        let slab = self.storage.slabs.all.get_mut(&place.slab).expect("just seen");
        slab.clean(&range);
        slab.dirty.push((range, own));
        let mut block = Block::new(request.size);
        (block.phase, block.charged, block.place) = (Phase::Ready, false, Some(place));
        self.storage.blocks.insert(name_in_slab(request.key.id, place), block);
        self.oracle.coverage.hit(match request.memory {
            Memory::Sealed => "allocated_sealed",
            _ if request.size.0 < limits::PAGE_BYTES => "allocated_in_a_slab_small",
            _ => "allocated_in_a_slab",
        });
        Ok(())
    }

    /// A Commit is ACCEPTED: its bytes stay as they are from here on.
    pub(super) fn slab_accepted(&mut self, seen: &Descriptor) -> Result<(), Breach> {
        let Some(Location::Arena(place)) = seen.location else {
            return breach(Rule::Slab, format!("accepted, and in no slab: {seen:?}"));
        };
        let Some(block) = self.storage.blocks.get_mut(&name_in_slab(seen.id, place)) else {
            return breach(Rule::Slab, format!("accepted, and nobody was given that place: {seen:?}"));
        };
        block.sealed = true;
        self.oracle.coverage.hit("commit_accepted_before_its_row");
        let key = self.fact_of(seen.id).map(|fact| fact.key);
        match key {
            Some(key) => self.judge(|oracle, scene| oracle.see(key, seen, scene)),
            None => Ok(()),
        }
    }

    /// After a step: the books of every session's memory add up.
    pub(super) fn audit_slabs(&mut self, shard: usize) -> Result<(), Breach> {
        if self.plan.arena_permille == 0 || !self.cores[shard].outbox.is_empty() {
            return Ok(());
        }
        let largest = self.plan.capacity[Tier::Ram].unwrap_or_default().0 / 64;
        if largest > AUDITED_BYTES && !self.tasks.is_multiple_of(64) {
            return Ok(());
        }
        let audited = self.cores[shard].shard.check_arenas();
        audited.map_err(|wrong| Breach { rule: Rule::Slab, detail: format!("shard {shard}: {wrong}") })
    }

    /// Some leases of what lies in slabs are of clients that cannot map them.
    pub(super) fn is_in_slab(&self, key: PayloadKey) -> bool {
        self.oracle.facts.get(&key).is_some_and(|fact| fact.arena)
    }
}

/// What names the block of a replica, in a slab or not.
pub(super) fn name_of(replica: ReplicaRef) -> BlockName {
    match replica.block {
        Some(place) => name_in_slab(replica.id, place),
        None => BlockName { tier: replica.tier, id: replica.id, generation: replica.generation },
    }
}

impl super::oracle::Oracle {
    /// A lease at a place in a slab: only for who can map it.
    pub(super) fn judge_mappable(&self, request: &Acquire, location: Location) -> Result<(), Breach> {
        match (location, request.accepts_slabs) {
            (Location::Arena(place), false) => {
                breach(Rule::Slab, format!("{place:?} is shown to a client that cannot map it: {request:?}"))
            }
            _ => Ok(()),
        }
    }
}
