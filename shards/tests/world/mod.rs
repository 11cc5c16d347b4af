//! One shard and the simplest world around it: drivers, catalog and arbiter that do as they are told, when they are
//! told to. Tests of single situations; the simulator in `tests/` covers what no one thought of.

use std::collections::{BTreeMap, VecDeque};

use payload_shards::{Arbiter, Outbox, Shard, ShardConfig};
use payload_types::direct::{Change, Held, Published, Revoke, SCAN_BATCH_MAX, Scan, ScanDone};
use payload_types::effect::{
    BudgetRequest, CatalogOp, Effect, ReplicaRef, ReplyTo, StorageAction, StorageOp, TransferOp,
};
use payload_types::event::{CatalogAck, Completion, Copied, Event, StorageDone, TransferDone};
use payload_types::reply::{LeaseGrant, Reply, ReplyResult};
use payload_types::request::{Acquire, Allocate, Request, Spill};
use payload_types::slab::{SlabAction, SlabDone};
use payload_types::tier::SpillTarget;
use payload_types::*;

pub struct World {
    pub shard: Shard,
    pub now: Now,
    pub replies: BTreeMap<u64, ReplyResult>,
    /// Effects that were taken from the outbox and not answered yet.
    pub storage: VecDeque<StorageOp>,
    pub transfers: VecDeque<TransferOp>,
    pub catalog: VecDeque<CatalogOp>,
    pub freed_later: VecDeque<StorageOp>,
    pub slabs: VecDeque<payload_types::slab::SlabOp>,
    /// Slabs made and not returned.
    pub slab_bytes: BTreeMap<SlabId, ByteCount>,
    /// Requests whose Commit was ACCEPTED.
    pub accepted: VecDeque<u64>,
    /// What readers are shown who ask nobody: the generation, and whether it can be leased.
    pub shown: BTreeMap<PayloadId, (Published, bool)>,
    /// Nothing is shown any more.
    pub is_closed: bool,
    /// Direct leases: who holds which generation.
    pub claims: Vec<(Generation, SessionId)>,
    /// True: scans wait in `scans` until `answer_scan`.
    pub scans_wait: bool,
    pub scans: VecDeque<Scan>,
    pub revoked: VecDeque<Revoke>,
    /// True: budget requests wait in `budget` until `answer_budget`, as they do on a lane between two threads.
    pub budget_waits: bool,
    pub budget: VecDeque<BudgetRequest>,
    arbiter: Arbiter,
    outbox: Outbox,
    requests: u64,
    ids: u64,
}

pub const CAPACITY: u64 = 1 << 20;

pub fn config(epoch: u32) -> ShardConfig {
    let mut capacity = PerTier::default();
    capacity[Tier::Ram] = Some(ByteCount(CAPACITY));
    capacity[Tier::Disk] = Some(ByteCount(CAPACITY));
    ShardConfig {
        dead_grace_ms: 1_000,
        shard: ShardIndex(0),
        shard_count: 1,
        epoch: Epoch(epoch),
        capacity,
        lease_ms_default: 20_000,
        lease_ms_max: 120_000,
        allocation_timeout_ms: 3_600_000,
        disk_fsync: true,
        retry_backoff_ms: 100,
        session_caps: payload_shards::SessionCaps::default(),
    }
}

impl World {
    pub fn new() -> Self {
        Self::with(config(1))
    }

    pub fn with(config: ShardConfig) -> Self {
        let arbiter = Arbiter::new(config.capacity, 1);
        Self {
            shard: Shard::new(config),
            now: Now { monotonic: Monotonic(0), wall: WallMs::from_millis(1_700_000_000_000) },
            replies: BTreeMap::new(),
            storage: VecDeque::new(),
            transfers: VecDeque::new(),
            catalog: VecDeque::new(),
            freed_later: VecDeque::new(),
            slabs: VecDeque::new(),
            slab_bytes: BTreeMap::new(),
            accepted: VecDeque::new(),
            shown: BTreeMap::new(),
            is_closed: false,
            claims: Vec::new(),
            scans_wait: false,
            scans: VecDeque::new(),
            revoked: VecDeque::new(),
            budget_waits: false,
            budget: VecDeque::new(),
            arbiter,
            outbox: Outbox::new(),
            requests: 0,
            ids: 0,
        }
    }

    pub fn step(&mut self, event: Event) {
        self.shard.step(self.now, event, &mut self.outbox);
        while let Some(effect) = self.outbox.pop() {
            match effect {
                Effect::Reply { to, result } => {
                    assert!(self.replies.insert(to.0, result).is_none(), "answered twice");
                }
                Effect::Storage(op) => self.storage.push_back(op),
                Effect::Transfer(op) => self.transfers.push_back(op),
                Effect::Catalog(op) => self.catalog.push_back(op),
                Effect::Slab(op) => self.slabs.push_back(op),
                Effect::Accepted { to, .. } => self.accepted.push_back(to.0),
                Effect::Publish(publish) => self.publish(publish.change),
                Effect::Scan(scan) => self.scans.push_back(scan),
                Effect::Revoke(revoke) => self.revoked.push_back(revoke),
                Effect::Budget(request) if self.budget_waits => self.budget.push_back(request),
                Effect::Budget(request) => self.arbitrate(request),
            }
        }
        if !self.scans_wait {
            self.answer_scan();
        }
    }

    fn publish(&mut self, change: Change) {
        match change {
            Change::Put(published) => drop(self.shown.insert(published.id, (*published, true))),
            Change::Withdraw(id) => self.shown.get_mut(&id).expect("shown").1 = false,
            Change::Restore(id) => self.shown.get_mut(&id).expect("shown").1 = true,
            Change::Remove(id) => drop(self.shown.remove(&id).expect("shown")),
            Change::Describe { id, version, expires_at } => {
                let (published, _) = self.shown.get_mut(&id).expect("shown");
                (published.version, published.expires_at) = (version, expires_at);
            }
            Change::Close => self.is_closed = true,
        }
    }

    /// Looks at all cells for a scan that waits.
    pub fn answer_scan(&mut self) {
        let Some(Scan { number, generations }) = self.scans.pop_front() else { return };
        let mut held = BTreeMap::new();
        for (claimed, session) in &self.claims {
            if let Some(at) = generations.iter().position(|generation| generation == claimed) {
                let marks = &mut held.entry(*session).or_insert([0; SCAN_BATCH_MAX / 64]);
                marks[at / 64] |= 1 << (at % 64);
            }
        }
        let held = held.into_iter().map(|(session, marks)| Held { session, marks }).collect();
        self.step(Event::ScanDone(ScanDone { number, held }));
    }

    /// A reader that asks nobody leases what it is shown, if it is.
    pub fn claim(&mut self, key: PayloadKey, session: SessionId) -> Option<Generation> {
        let (published, is_readable) = self.shown.get(&key.id)?;
        let found = (*is_readable && !self.is_closed).then_some(published.generation)?;
        self.claims.push((found, session));
        Some(found)
    }

    /// It releases it.
    pub fn unclaim(&mut self, generation: Generation) {
        let at = self.claims.iter().position(|(held, _)| *held == generation).expect("held");
        self.claims.remove(at);
    }

    fn arbitrate(&mut self, request: BudgetRequest) {
        let mut answers = Vec::new();
        self.arbiter.step(request, &mut answers);
        for (_, answer) in answers {
            self.step(Event::Completion(Completion::Budget(answer)));
        }
    }

    /// Lets the arbiter answer what waited for it, and from now on at once.
    pub fn answer_budget(&mut self) {
        self.budget_waits = false;
        while let Some(request) = self.budget.pop_front() {
            self.arbitrate(request);
        }
    }

    /// Sends a request and gives its number; its answer appears in `replies`.
    pub fn send(&mut self, request: Request) -> u64 {
        self.send_until(request, None)
    }

    pub fn send_until(&mut self, request: Request, deadline: Option<Monotonic>) -> u64 {
        self.requests += 1;
        self.step(Event::Request { reply_to: ReplyTo(self.requests), deadline, request });
        self.requests
    }

    /// A deadline so long from now.
    pub fn in_ms(&self, milliseconds: u64) -> Option<Monotonic> {
        Some(self.now.monotonic.plus_millis(milliseconds))
    }

    /// Sends a request, does all the work there is, and gives its answer.
    pub fn ask(&mut self, request: Request) -> ReplyResult {
        let number = self.send(request);
        self.settle();
        self.answer(number).expect("answered once everything is done")
    }

    pub fn answer(&mut self, number: u64) -> Option<ReplyResult> {
        self.replies.remove(&number)
    }

    pub fn complete(&mut self, completion: Completion) {
        self.step(Event::Completion(completion));
    }

    /// Carries out one storage operation faultlessly.
    pub fn store_one(&mut self) {
        let op = self.storage.pop_front().expect("a storage operation waits");
        let done = match op.action {
            StorageAction::Create => StorageDone::Created { op: op.op, result: Ok(()) },
            StorageAction::Seal { .. } => StorageDone::Sealed { op: op.op, result: Ok(()) },
            StorageAction::Verify { .. } => StorageDone::Verified { op: op.op, result: Ok(()) },
            StorageAction::Sync => StorageDone::Synced { op: op.op, result: Ok(()) },
            StorageAction::Stay => return,
            StorageAction::Drop => {
                self.freed_later.push_back(op);
                StorageDone::Detached { tier: op.replica.tier, generation: op.replica.generation }
            }
        };
        self.complete(Completion::Storage(done));
    }

    /// Carries out one operation on a slab faultlessly.
    pub fn slab_one(&mut self) {
        let op = self.slabs.pop_front().expect("an operation on a slab waits");
        let done = match op.action {
            SlabAction::Make { bytes, .. } => {
                self.slab_bytes.insert(op.slab, bytes);
                SlabDone::Made { op: op.op, result: Ok(()) }
            }
            SlabAction::Prefault { .. } => return,
            SlabAction::Zero { .. } => SlabDone::Zeroed { op: op.op, result: Ok(()) },
            SlabAction::Freeze => SlabDone::Frozen { op: op.op, result: Ok(()) },
            SlabAction::Return => {
                let bytes = self.slab_bytes.remove(&op.slab).expect("made, and returned once");
                SlabDone::Returned { slab: op.slab, bytes }
            }
        };
        self.complete(Completion::Slab(done));
    }

    pub fn free_all(&mut self) {
        while let Some(op) = self.freed_later.pop_front() {
            let (tier, generation) = (op.replica.tier, op.replica.generation);
            self.complete(Completion::Storage(StorageDone::Freed { tier, generation }));
        }
    }

    pub fn transfer_one(&mut self, result: Result<Checksum, event::TransferError>) {
        self.transfer_to(result.map(|checksum| Copied { checksum, extent: None }));
    }

    /// Ends a copy; what it made may lie in a segment file.
    pub fn transfer_to(&mut self, result: Result<Copied, event::TransferError>) {
        let op = self.transfers.pop_front().expect("a copy waits");
        self.complete(Completion::Transfer(TransferDone { op: op.op, result }));
    }

    pub fn ack_one(&mut self, result: Result<(), String>) {
        let op = self.catalog.pop_front().expect("a row waits");
        self.complete(Completion::Catalog(CatalogAck { op: op.op, result, sequence: 0 }));
    }

    /// Stores all rows there are; nothing else is carried out.
    pub fn settle_rows(&mut self) {
        while !self.catalog.is_empty() {
            self.ack_one(Ok(()));
        }
    }

    /// Does all the work there is, faultlessly.
    pub fn settle(&mut self) {
        loop {
            if !self.slabs.is_empty() {
                self.slab_one();
            } else if !self.storage.is_empty() {
                self.store_one();
            } else if !self.transfers.is_empty() {
                self.transfer_one(Ok(Checksum(7)));
            } else if !self.catalog.is_empty() {
                self.ack_one(Ok(()));
            } else if !self.freed_later.is_empty() {
                self.free_all();
            } else if self.shard.next_timer().is_some_and(|due| due <= self.now.monotonic) {
                self.step(Event::Timer);
            } else {
                return;
            }
        }
    }

    /// Lets time pass; timers fire, and nothing else is carried out.
    pub fn pass(&mut self, milliseconds: u64) {
        let end = self.now.monotonic.plus_millis(milliseconds);
        while let Some(due) = self.shard.next_timer().filter(|due| *due <= end) {
            self.to(due.max(self.now.monotonic));
            self.step(Event::Timer);
        }
        self.to(end);
    }

    fn to(&mut self, moment: Monotonic) {
        let passed = moment.millis_since(self.now.monotonic);
        self.now = Now { monotonic: moment, wall: self.now.wall.checked_plus(passed).expect("in range") };
    }

    pub fn new_key(&mut self) -> PayloadKey {
        self.ids += 1;
        let id = PayloadId::mint((self.now.wall.as_millis() << 12) + self.ids, self.ids);
        PayloadKey { namespace: NamespaceId::DEFAULT, id }
    }

    pub fn allocate(&mut self, tier: Tier, size: u64) -> PayloadKey {
        let key = self.new_key();
        self.ask(allocation(key, tier, size)).expect("allocated");
        key
    }

    pub fn committed(&mut self, tier: Tier, size: u64) -> PayloadKey {
        let key = self.allocate(tier, size);
        self.ask(Request::Commit { key, checksum: None, batch: None }).expect("committed");
        key
    }

    /// Committed, and pinned until Unpin.
    pub fn pinned(&mut self, tier: Tier, size: u64) -> PayloadKey {
        let key = self.allocate(tier, size);
        self.ask(Request::Pin { key, duration_ms: None, owner: Peer::UNKNOWN }).expect("pinned");
        self.ask(Request::Commit { key, checksum: None, batch: None }).expect("committed");
        key
    }

    /// Committed in RAM and spilled to this extent; on DISK alone.
    pub fn packed(&mut self, at: Extent, size: u64) -> (PayloadKey, ReplicaRef) {
        let key = self.committed(Tier::Ram, size);
        let number = self.send(spill(key, DISK, false));
        let to = self.transfers[0].to;
        self.transfer_to(Ok(Copied { checksum: Checksum(7), extent: Some(at) }));
        self.settle();
        self.answer(number).expect("answered").expect("spilled");
        (key, ReplicaRef { extent: Some(at), ..to })
    }

    pub fn lease(&mut self, key: PayloadKey) -> LeaseGrant {
        match self.ask(acquire(key, None)) {
            Ok(Reply::Leased(grant)) => grant,
            other => panic!("expected a lease, got {other:?}"),
        }
    }

    /// A lease while other work stays as far as it is.
    pub fn lease_now(&mut self, key: PayloadKey) -> LeaseGrant {
        let number = self.send(acquire(key, None));
        match self.answer(number) {
            Some(Ok(Reply::Leased(grant))) => grant,
            other => panic!("expected a lease at once, got {other:?}"),
        }
    }

    pub fn describe(&mut self, key: PayloadKey) -> Descriptor {
        match self.ask(Request::Resolve { key }) {
            Ok(Reply::Resolved(descriptor)) => descriptor,
            other => panic!("expected a descriptor, got {other:?}"),
        }
    }
}

pub fn allocation(key: PayloadKey, tier: Tier, size: u64) -> Request {
    Request::Allocate(Allocate {
        key,
        size: ByteCount(size),
        tier,
        ttl_ms: None,
        no_evict: false,
        policy: EvictionPolicy::default(),
        memory: Memory::Segment,
        owner: Peer::UNKNOWN,
    })
}

pub fn acquire(key: PayloadKey, min_tier: Option<Tier>) -> Request {
    Request::Acquire(acquisition(key, min_tier))
}

/// What our client asks for.
pub fn acquisition(key: PayloadKey, min_tier: Option<Tier>) -> Acquire {
    Acquire {
        key,
        min_tier,
        policy: PromotionPolicy::Blocking,
        duration_ms: 0,
        expected_version: None,
        accepts_packed: true,
        accepts_slabs: true,
        nonce: LeaseNonce([3; 10]),
        owner: Peer::UNKNOWN,
    }
}

pub fn promote(key: PayloadKey, target: Tier) -> Request {
    Request::Promote { key, target, policy: PromotionPolicy::Blocking, expected_version: None }
}

pub fn spill(key: PayloadKey, target: SpillTarget, wait_for_leases: bool) -> Request {
    let policy = SpillPolicy::Blocking;
    Request::Spill(Spill {
        key,
        target: Some(target),
        policy,
        wait_for_leases,
        fsync: false,
        expected_version: None,
    })
}

pub fn kind(result: Option<ReplyResult>) -> Option<ErrorKind> {
    result.and_then(|result| result.err()).map(|error| error.kind)
}

pub const DISK: SpillTarget = SpillTarget::Tier(Tier::Disk);
