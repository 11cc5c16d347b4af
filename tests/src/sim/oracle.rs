//! What clients were promised, kept apart from what the server knows, and compared with it after every step.
//!
//! This file holds the model: one [`Fact`] a payload, one [`LeaseFact`] a live lease, one [`Pending`] a request.
//! `answers` judges each reply when it leaves; `audit` looks at leases, the durable catalog, space and overdue
//! requests after every step, and at everything once the node is quiet.
//!
//! A request that was never answered, or answered DEADLINE_EXCEEDED, may have happened; a fact then holds `*_maybe`
//! until a reply or a boot decides. A boot decides everything: what has no row is gone, what has one is committed.

use std::collections::{BTreeMap, BTreeSet};

use payload_types::effect::ReplyTo;
use payload_types::request::{Allocate, Request};
use payload_types::tier::SpillTarget;
use payload_types::{
    ByteCount, Descriptor, EvictionPolicy, Generation, LeaseId, Location, Memory, Monotonic, Now, PayloadKey,
    PayloadState, Tier, Version, WallMs,
};

use super::catalog::Catalog;
use super::coverage::Coverage;
use super::direct::Cells;
use super::faults::{Plan, Probing};
use super::storage::{BlockName, Phase, Storage};

/// Which promise was broken.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Rule {
    /// A live lease points at a replica that is gone, going, or has other bytes.
    LiveLease,
    /// An acknowledged commit is lost or changed.
    CommitLost,
    /// Space is used that nobody is charged for, or statistics differ from what is there.
    Accounting,
    /// The arbiter granted more than there is, or its books do not balance.
    Budget,
    /// A payload was evicted that must stay, before another that goes first, or for nothing.
    Eviction,
    /// Somebody waits for what is free, or could be evicted.
    Starved,
    /// A request was answered twice, or by nobody.
    Answers,
    /// A request was answered after its deadline.
    Deadline,
    /// A version went back, or did not grow with a change.
    Version,
    /// A state followed that the table forbids.
    State,
    /// A segment or file was made while its name is taken.
    SegmentName,
    /// An answer left before its transaction was durable.
    Acknowledgement,
    /// A replica was dropped while a durable row still names it.
    FreeBeforeDurable,
    /// Storage was touched that is in use, dropped, or does not exist.
    DropInUse,
    /// A reply says something that is not so, or refuses what must be granted.
    WrongAnswer,
    /// A listing has a row twice, lacks one, or counts wrong.
    Listing,
    /// Something is left when everything was deleted.
    Leak,
    /// A table or queue passed its limit, or a shard spins.
    Limits,
    /// Two replicas share space, or space was reused that somebody still names.
    Extent,
    /// A client that may set a file's length was shown one that others share.
    SharedFile,
    /// The disk holds more than its capacity.
    Capacity,
    /// A payload is gone that a stream keeps.
    Held,
    /// A batch was committed in part.
    Batch,
    /// A session that has ended holds something, or one that lives does not hold what is its own.
    Session,
    /// Memory of a session is used by somebody who must not, or at a time when it must not be.
    Slab,
    /// A catalog row says something that is not so.
    Row,
    /// A shard panicked.
    Panic,
}

/// A broken promise.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Breach {
    /// Which.
    pub rule: Rule,
    /// What was seen.
    pub detail: String,
}

/// An `Err` with a breach.
pub(super) fn breach<T>(rule: Rule, detail: impl Into<String>) -> Result<T, Breach> {
    Err(Breach { rule, detail: detail.into() })
}

/// What the oracle may look at.
#[derive(Clone, Copy)]
pub(super) struct Scene<'a> {
    pub(super) now: Now,
    pub(super) storage: &'a Storage,
    pub(super) catalog: &'a Catalog,
    pub(super) plan: &'a Plan,
    pub(super) shard_count: u16,
}

/// What was last shown of a payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Shown {
    pub(super) state: PayloadState,
    pub(super) tier: Tier,
    pub(super) location: Option<Location>,
    pub(super) version: Version,
    /// The state before DELETING, to which a failed delete returns.
    before_deleting: PayloadState,
}

/// What is known of a payload from outside.
#[derive(Clone, Debug)]
pub(super) struct Fact {
    pub(super) key: PayloadKey,
    pub(super) size: ByteCount,
    pub(super) tier: Tier,
    pub(super) policy: EvictionPolicy,
    pub(super) no_evict: bool,
    pub(super) created_at: WallMs,
    pub(super) expires_at: Option<WallMs>,
    /// Stands for the bytes the producer wrote.
    pub(super) content: u64,
    /// The producer gave a checksum that its bytes do not have.
    pub(super) wrong_checksum: bool,
    pub(super) commits_pending: u32,
    /// Some Commit was sent without a checksum: another may have joined it.
    pub(super) commit_plain: bool,
    /// Some commit may have been made durable without an answer.
    pub(super) commit_maybe: bool,
    pub(super) committed: bool,
    pub(super) gone_pending: u32,
    pub(super) gone_maybe: bool,
    pub(super) gone: bool,
    /// It was allocated in a slab.
    pub(super) arena: bool,
    /// The session that allocated it ended before anybody knew it committed.
    pub(super) left_behind: bool,
    /// Pinned until Unpin, and no Unpin was sent since.
    pub(super) pinned: bool,
    /// A stream keeps it: its ttl does not end it.
    pub(super) held: bool,
    /// Somebody has appended it to a stream that retains payloads, so that its shard may hold it.
    pub(super) may_be_held: bool,
    /// A forced delete was sent in this life of the server.
    pub(super) forced: bool,
    /// Its bytes did not survive.
    pub(super) lost: bool,
    /// Some replica was damaged from outside, at some time, or a driver reported an error reading it.
    pub(super) damaged: bool,
    /// Answered in a way that promises survival of power loss.
    pub(super) power_safe: bool,
    pub(super) version_max: Version,
    pub(super) shown: Option<Shown>,
}

impl Fact {
    /// True when a read must find it: no reason is known why it could have gone.
    pub(super) fn must_exist(&self, now: Now, plan: &Plan) -> bool {
        let removed = self.gone || self.gone_maybe || self.gone_pending > 0 || self.lost;
        !removed && !self.is_over(now, plan)
    }

    /// True when its ttl has passed, or nobody committed it in time, or before its session ended.
    pub(super) fn is_over(&self, now: Now, plan: &Plan) -> bool {
        let expired = !self.held && self.expires_at.is_some_and(|end| end <= now.wall);
        let timed_out = !self.committed
            && (self.left_behind
                || self.created_at.as_millis() + plan.allocation_timeout_ms <= now.wall.as_millis());
        expired || timed_out
    }
}

/// A lease that its holder may rely on.
#[derive(Clone, Copy, Debug)]
pub(super) struct LeaseFact {
    pub(super) key: PayloadKey,
    pub(super) block: BlockName,
    pub(super) expires_at: WallMs,
    /// The release is on its way, or a forced delete: the holder does not rely on it any more.
    pub(super) over: bool,
}

impl LeaseFact {
    /// True while its holder relies on it.
    pub(super) fn is_live(&self, now: Now) -> bool {
        !self.over && now.wall < self.expires_at
    }
}

/// A request that waits for its answer.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    pub(super) request: Request,
    pub(super) sent: Monotonic,
    pub(super) deadline: Option<Monotonic>,
    /// Names nothing, or something that was known to be gone.
    pub(super) unknown: bool,
    /// It expects a version that was past when this was sent.
    pub(super) stale: bool,
    /// Allocate: the least that nobody was charged for while it waited; `None` once others asked for space too.
    pub(super) free_min: Option<u64>,
    /// It was pinned until Unpin when this was sent.
    pub(super) pinned: bool,
    /// A lease was live when it was sent (Spill with wait_for_leases).
    pub(super) leased: bool,
}

/// See the module.
#[derive(Default)]
pub(super) struct Oracle {
    pub(super) facts: BTreeMap<PayloadKey, Fact>,
    pub(super) leases: BTreeMap<LeaseId, LeaseFact>,
    pub(super) pending: BTreeMap<u64, Pending>,
    pub(super) overdue: BTreeSet<(Monotonic, u64)>,
    /// What the last loss of power brought back.
    pub(super) came_back: BTreeSet<PayloadKey>,
    /// What readers see who ask nobody, and what they hold.
    pub(super) cells: Cells,
    /// The server is being stopped.
    pub(super) stopping: bool,
    pub(super) coverage: Coverage,
    pub(super) driver_fault_last: Monotonic,
    pub(super) catalog_fault_last: Monotonic,
}

/// True when `next` may be shown after `prev` when both were seen, `precise` when nothing can have been in between.
fn follows(prev: PayloadState, next: PayloadState, precise: bool) -> bool {
    use PayloadState::{Active, Allocated, Committing, Deleting, Durable, Evicting, Spilling};
    if prev == next {
        return true;
    }
    let from_committing = prev == Allocated && matches!(next, Active | Durable);
    // One copy fails, and another begins in the same step.
    let again = matches!((prev, next), (Spilling, Evicting) | (Evicting, Spilling));
    if precise {
        return prev.may_become(next) || from_committing || again;
    }
    let mut reached = vec![prev];
    let mut index = 0;
    while index < reached.len() {
        let state = reached[index];
        index += 1;
        if state == Deleting {
            continue;
        }
        let more = if state == Allocated { Committing.successors() } else { &[] };
        for successor in state.successors().iter().chain(more) {
            if !reached.contains(successor) {
                reached.push(*successor);
            }
        }
    }
    reached.contains(&next)
}

impl Oracle {
    /// A request leaves a client.
    pub(super) fn sent(&mut self, to: ReplyTo, pending: Pending) {
        if let Some(key) = key_of(&pending.request)
            && let Some(fact) = self.facts.get_mut(&key)
        {
            fact.gone_pending += u32::from(may_remove(&pending.request, fact));
            if matches!(pending.request, Request::Unpin { .. }) {
                fact.pinned = false;
                // It may overtake what was sent before it.
                let others = self.pending.values_mut().filter(|other| key_of(&other.request) == Some(key));
                others.for_each(|other| other.pinned = false);
            }
            if let Request::Commit { checksum, .. } = &pending.request {
                fact.commits_pending += 1;
                fact.commit_plain |= checksum.is_none();
            }
        }
        if let Request::Release { lease, .. } = pending.request
            && let Some(lease) = self.leases.get_mut(&lease)
        {
            lease.over = true;
        }
        if let Some(deadline) = pending.deadline {
            self.overdue.insert((deadline, to.0));
        }
        self.pending.insert(to.0, pending);
    }

    /// A request reaches its shard.
    pub(super) fn delivered(&mut self, request: &Request, scene: Scene<'_>) {
        match request {
            // From here on the leases may be invalid.
            Request::Delete { key, force: true, .. } => {
                for lease in self.leases.values_mut().filter(|lease| lease.key == *key) {
                    lease.over = true;
                    self.coverage.hit("delete_forced_under_lease");
                }
            }
            Request::Release { lease, .. } => {
                // Answers that were made before may leave a little later: it is forgotten after the usual slack.
                if let Some(lease) = self.leases.get_mut(lease) {
                    lease.over = true;
                    lease.expires_at = lease.expires_at.min(scene.now.wall);
                }
            }
            Request::Promote { key, .. } | Request::Prefetch { key, .. } => {
                let limbo = |(name, block): (&BlockName, &super::storage::Block)| {
                    name.tier == Tier::Ram
                        && name.id == key.id
                        && matches!(block.phase, Phase::Dropping | Phase::Detached)
                };
                if scene.storage.blocks.iter().any(limbo) {
                    self.coverage.hit("promote_while_segment_in_limbo");
                }
            }
            _ => {}
        }
    }

    /// True while the server may think that somebody leases this payload.
    pub(super) fn may_be_leased(&self, key: PayloadKey) -> bool {
        self.leases.values().any(|lease| lease.key == key)
    }

    /// True while a holder relies on a lease of this block.
    pub(super) fn is_leased(&self, block: BlockName, now: Now) -> bool {
        let asked = self.leases.values().any(|lease| lease.block == block && lease.is_live(now));
        asked || self.cells.reads(block)
    }

    /// Allocate was answered: a payload is born.
    pub(super) fn born(&mut self, request: &Allocate, descriptor: &Descriptor) {
        let fact = Fact {
            key: request.key,
            size: request.size,
            tier: request.tier,
            policy: request.policy,
            no_evict: request.no_evict,
            created_at: descriptor.created_at,
            expires_at: descriptor.expires_at,
            content: 0,
            wrong_checksum: false,
            commits_pending: 0,
            commit_plain: false,
            commit_maybe: false,
            committed: false,
            gone_pending: 0,
            gone_maybe: false,
            gone: false,
            arena: request.memory != Memory::Segment,
            left_behind: false,
            pinned: false,
            held: false,
            may_be_held: false,
            forced: false,
            lost: false,
            damaged: false,
            power_safe: false,
            version_max: Version(0),
            shown: None,
        };
        self.facts.insert(request.key, fact);
    }

    /// A descriptor leaves the server: is all of it so?
    pub(super) fn see(&mut self, key: PayloadKey, seen: &Descriptor, scene: Scene<'_>) -> Result<(), Breach> {
        let Some(fact) = self.facts.get_mut(&key) else {
            return breach(
                Rule::WrongAnswer,
                format!("a descriptor of {key:?}, which nobody allocated: {seen:?}"),
            );
        };
        if fact.gone || fact.lost {
            return breach(Rule::WrongAnswer, format!("gone or lost, and shown again: {seen:?} {fact:?}"));
        }
        let echoed = (seen.id, seen.size, seen.created_at, seen.expires_at, seen.policy);
        if echoed != (key.id, fact.size, fact.created_at, fact.expires_at, fact.policy) {
            return breach(Rule::WrongAnswer, format!("not as allocated: {seen:?} {fact:?}"));
        }
        let precise = scene.plan.probing == Probing::EveryStep;
        fact.see_version(seen, precise)?;
        if let Some(checksum) = seen.checksum
            && checksum.0 != fact.content
            && !fact.wrong_checksum
            && !fact.damaged
        {
            return breach(Rule::CommitLost, format!("checksum {checksum} is not of the bytes: {fact:?}"));
        }
        let committed = !matches!(seen.state, PayloadState::Allocated);
        if committed && !fact.committed && fact.commits_pending == 0 && !fact.commit_maybe {
            // EXPIRED and DELETING may follow ALLOCATED.
            if !matches!(seen.state, PayloadState::Expired | PayloadState::Deleting) {
                return breach(Rule::WrongAnswer, format!("nobody committed it: {seen:?}"));
            }
        }
        if fact.committed && seen.state == PayloadState::Allocated {
            return breach(Rule::CommitLost, format!("committed, and shown as ALLOCATED: {fact:?}"));
        }
        // What is packed is on stable storage, whatever was asked for.
        let is_packed = matches!(seen.location, Some(Location::Packed(_)));
        if seen.state == PayloadState::Durable && (scene.plan.disk_fsync || is_packed) {
            fact.power_safe = true;
        }
        if let Some(location) = seen.location {
            self.find(key, seen.tier, location, scene)?;
        }
        Ok(())
    }

    /// The block that a location names.
    pub(super) fn find(
        &self,
        key: PayloadKey,
        tier: Tier,
        location: Location,
        scene: Scene<'_>,
    ) -> Result<BlockName, Breach> {
        let name = match location {
            Location::Segment if tier == Tier::Ram => scene.storage.named_segment(key.id),
            Location::Arena(place) if tier == Tier::Ram => Some(super::slabs::name_in_slab(key.id, place)),
            Location::Packed(extent) if tier == Tier::Disk => {
                let low = BlockName { tier, id: key.id, generation: Generation(0) };
                let high = BlockName { generation: Generation(u64::MAX), ..low };
                let mut blocks = scene.storage.blocks.range(low..=high);
                blocks.find(|(_, block)| block.extent == Some(extent)).map(|(name, _)| *name)
            }
            Location::File(generation) if tier == Tier::Disk => {
                let name = BlockName { tier, id: key.id, generation };
                Some(name)
                    .filter(|name| scene.storage.blocks.get(name).is_none_or(|block| block.extent.is_none()))
            }
            _ => None,
        };
        let block = name.and_then(|name| scene.storage.blocks.get(&name));
        match (name, block) {
            (Some(name), Some(block)) if block.phase == Phase::Ready => Ok(name),
            _ => breach(
                Rule::WrongAnswer,
                format!("{key:?} at {location:?} on {tier} leads to {name:?} {block:?}"),
            ),
        }
    }

    /// A crash: nobody holds anything any more, and nothing that was asked will be answered.
    pub(super) fn crash(&mut self) {
        for (_, pending) in std::mem::take(&mut self.pending) {
            let Some(fact) = key_of(&pending.request).and_then(|key| self.facts.get_mut(&key)) else {
                continue;
            };
            if may_remove(&pending.request, fact) {
                fact.gone_pending -= 1;
                fact.gone_maybe = true;
            }
            if matches!(pending.request, Request::Commit { .. }) {
                fact.commits_pending -= 1;
                fact.commit_maybe = true;
            }
        }
        self.overdue.clear();
        self.leases.clear();
        self.cells.crash();
    }
}

impl Fact {
    /// Versions never go back, and grow with every change of state, tier or location.
    fn see_version(&mut self, seen: &Descriptor, precise: bool) -> Result<(), Breach> {
        if seen.version < self.version_max {
            return breach(Rule::Version, format!("{:?} was shown before {seen:?}", self.version_max));
        }
        let mut shown = Shown {
            state: seen.state,
            tier: seen.tier,
            location: seen.location,
            version: seen.version,
            before_deleting: seen.state,
        };
        if let Some(prev) = self.shown {
            let moved = prev.location.zip(seen.location).is_some_and(|(old, new)| old != new);
            let changed = prev.state != seen.state || prev.tier != seen.tier || moved;
            if changed && prev.version == seen.version {
                return breach(Rule::Version, format!("the same version after a change: {prev:?} {seen:?}"));
            }
            let from = match (prev.state, seen.state) {
                (PayloadState::Deleting, next) if next != PayloadState::Deleting => prev.before_deleting,
                (state, _) => state,
            };
            // What was ACCEPTED and not stored is as it was before its Commit.
            let taken_back = self.arena && !self.committed && seen.state == PayloadState::Allocated;
            if !taken_back && !follows(from, seen.state, precise && from == prev.state) {
                return breach(Rule::State, format!("{} may not follow {from}: {seen:?}", seen.state));
            }
            shown.location = seen.location.or(prev.location.filter(|_| !changed));
            if seen.state == PayloadState::Deleting {
                shown.before_deleting =
                    if prev.state == PayloadState::Deleting { prev.before_deleting } else { prev.state };
            }
        }
        self.version_max = seen.version;
        self.shown = Some(shown);
        Ok(())
    }
}

/// The payload that a request names.
pub(super) fn key_of(request: &Request) -> Option<PayloadKey> {
    match request {
        Request::Allocate(request) => Some(request.key),
        Request::Acquire(request) => Some(request.key),
        Request::Spill(request) => Some(request.key),
        Request::Scrub(request) => Some(request.key),
        Request::Commit { key, .. }
        | Request::Delete { key, .. }
        | Request::Abort { key, .. }
        | Request::Resolve { key }
        | Request::Enrol { key }
        | Request::Promote { key, .. }
        | Request::Prefetch { key, .. }
        | Request::Pin { key, .. }
        | Request::Unpin { key }
        | Request::Holders { key, .. }
        | Request::Explain { key } => Some(*key),
        Request::Release { .. }
        | Request::Hold(_)
        | Request::List(_)
        | Request::Find(_)
        | Request::Describe(_)
        | Request::Stats
        | Request::SpillArenas
        | Request::Outlook { .. } => None,
    }
}

/// True when a request may make its payload disappear.
pub(super) fn may_remove(request: &Request, fact: &Fact) -> bool {
    match request {
        Request::Delete { .. } | Request::Abort { .. } => true,
        Request::Spill(spill) => spill.target.or(fact.policy.spill_target) == Some(SpillTarget::Void),
        _ => false,
    }
}

/// The block of a replica.
pub(super) fn block_name(key: PayloadKey, tier: Tier, generation: Generation) -> BlockName {
    BlockName { tier, id: key.id, generation }
}
