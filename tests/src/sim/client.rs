//! The clients: what they ask, what they do with the answers, and what they do wrong.
//!
//! Most of what they ask makes sense, so that runs get somewhere; the rest names what is gone, what never was, or what
//! belongs to another namespace. Producers write once, between Allocate and Commit.

use std::collections::{BTreeMap, BTreeSet};

use payload_types::effect::ReplyTo;
use payload_types::event::Event;
use payload_types::reply::{Reply, ReplyResult, ShardPage, Summary};
use payload_types::request::{Acquire, Allocate, List, Request, Spill};
use payload_types::scrub::Scrub;
use payload_types::tier::SpillTarget;
use payload_types::{
    ByteCount, Checksum, EvictionPolicy, EvictionPriority, LeaseId, LeaseNonce, Memory, Monotonic,
    NamespaceId, PayloadId, PayloadKey, Peer, PromotionPolicy, SpillPolicy, Tier, Version, WallMs,
};

use super::agenda::Task;
use super::answers::{VERSION_NEVER, fence_of};
use super::faults::{MICROS, MILLIS, SECONDS};
use super::find::Search;
use super::oracle::{Breach, Pending, Rule, breach, key_of};
use super::world::{NAMESPACES, World};

/// The ttl of a crowd, long enough to commit most of it.
const CROWD_TTL_MS: u64 = 60_000;

/// A listing under way: the front's part, merging the pages of all shards.
#[derive(Debug)]
struct Scan {
    namespace: NamespaceId,
    tier: Option<Tier>,
    page_size: usize,
    waiting: BTreeSet<u64>,
    rows: Vec<Summary>,
    seen: BTreeSet<PayloadId>,
    /// Those that existed when it began; who still does at its end must have been seen.
    expected: Vec<PayloadKey>,
    pages: u32,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Client {
    pub(super) stopped: bool,
    request_last: u64,
    tick_last: u64,
    leases: Vec<LeaseId>,
    readers: BTreeMap<LeaseId, u64>,
    scan: Option<Scan>,
    pub(super) search: Option<Search>,
    crowd_done: bool,
}

impl Client {
    /// The number of the next request.
    pub(super) fn request_number(&mut self) -> u64 {
        self.request_last += 1;
        self.request_last
    }

    /// The server died: leases and the listing under way are void.
    pub(super) fn crash(&mut self) {
        self.leases.clear();
        self.readers.clear();
        self.scan = None;
        self.search = None;
    }
}

impl World {
    /// Clients think of one thing to ask, and of when to ask the next.
    pub(super) fn client_tick(&mut self) -> Result<(), Breach> {
        if self.client.stopped {
            return Ok(());
        }
        let pause = self.rng.between(1, 2 * self.plan.think_ns);
        self.agenda.add(Monotonic(self.now.0 + pause), Task::ClientTick);
        if !self.is_up() {
            return Ok(());
        }
        if self.rng.below(10_000) < self.plan.crash_per_10k {
            if self.plan.stops && self.rng.chance(500) {
                self.stop_begins();
                return Ok(());
            }
            return self.crash();
        }
        if self.rng.chance(self.plan.damage_permille) {
            self.damage_something();
        }
        if self.rng.chance(self.plan.relocate_permille) {
            self.offer_something();
        }
        if self.plan.churn {
            self.lease_something_packed();
        }
        if self.plan.crowd && !self.client.crowd_done {
            self.client.crowd_done = true;
            for _ in 0..self.plan.payloads_wanted {
                let mut request = self.allocation();
                (request.size, request.ttl_ms) = (ByteCount(1), Some(CROWD_TTL_MS));
                (request.no_evict, request.policy) = (false, EvictionPolicy::default());
                self.ask(Request::Allocate(request));
            }
        }
        self.batch_tick();
        self.session_tick();
        self.stream_tick();
        self.find_tick();
        let request = self.think();
        self.ask(request);
        Ok(())
    }

    /// Sends a request to the shard that must answer it; to all of them when it is a listing.
    pub(super) fn ask(&mut self, request: Request) {
        if self.is_up() {
            let shard = match (&request, request.routing_id()) {
                (Request::Release { lease, .. }, _) => lease.shard().0,
                (_, Some(id)) => id.shard(self.shard_count()).0,
                (_, None) => self.rng.below(u64::from(self.shard_count())) as u16,
            };
            if shard < self.shard_count() {
                self.send(usize::from(shard), request);
            }
        }
    }

    pub(super) fn send(&mut self, shard: usize, mut request: Request) -> u64 {
        self.as_session(&mut request);
        // A blocking move without a deadline waits for space to the end; few clients do that.
        let moves = matches!(request, Request::Promote { .. } | Request::Spill(_) | Request::Acquire(_));
        let permille = self.plan.deadline_permille.max(if moves { 700 } else { 0 });
        let deadline = self.rng.chance(permille).then(|| {
            let wait = self.rng.pick(&[50 * MICROS, MILLIS, 20 * MILLIS, SECONDS, 10 * SECONDS]);
            Monotonic(self.now.0 + wait)
        });
        self.client.request_last += 1;
        let to = ReplyTo(self.client.request_last);
        let key = key_of(&request);
        let fact = key.and_then(|key| self.oracle.facts.get(&key));
        let pending = Pending {
            unknown: key.is_some()
                && !matches!(request, Request::Allocate(_))
                && fact.is_none_or(|fact| fact.gone),
            stale: fact.zip(fence_of(&request)).is_some_and(|(fact, version)| version < fact.version_max),
            free_min: Some(u64::MAX),
            pinned: fact.is_some_and(|fact| fact.pinned),
            leased: key.is_some_and(|key| self.oracle.may_be_leased(key)),
            sent: self.now,
            deadline,
            request: request.clone(),
        };
        self.session_asks(to, shard, &request);
        self.note_committer(&request);
        self.note_forced(&request);
        self.oracle.sent(to, pending);
        let at = Monotonic(self.now.0 + self.plan.hop_delay(&mut self.rng));
        self.spoil_request(&mut request);
        let event = Event::Request { reply_to: to, deadline, request };
        self.agenda.add(at, Task::Deliver { shard, event, work: None });
        to.0
    }

    pub(super) fn release(&mut self, lease: LeaseId) {
        self.unmap(lease);
        self.client.leases.retain(|held| *held != lease);
        self.ask(Request::Release { lease, by: None });
    }

    /// The reader is gone.
    pub(super) fn stop_reading(&mut self, lease: LeaseId) {
        self.unmap(lease);
        self.client.leases.retain(|held| *held != lease);
        if let Some(fact) = self.oracle.leases.get_mut(&lease) {
            fact.over = true;
        }
    }

    /// The reader is done: it closes its mapping, now or some time later.
    fn unmap(&mut self, lease: LeaseId) {
        let until = Monotonic(self.now.0 + self.plan.linger(&mut self.rng));
        if let Some(fact) = self.oracle.leases.get(&lease)
            && let Some(block) = self.storage.blocks.get_mut(&fact.block)
            && let Some(reader) = self.client.readers.get(&lease)
        {
            block.readers.insert(*reader, until);
        }
    }

    /// One request, chosen at random.
    // Long because: one arm a request.
    fn think(&mut self) -> Request {
        let wanted = self.plan.payloads_wanted;
        let alive =
            self.oracle.facts.values().filter(|fact| !fact.gone && !fact.gone_maybe && !fact.lost).count()
                as u64;
        let hungry = if alive < wanted { 400 } else { 30 };
        if self.rng.chance(hungry) {
            return Request::Allocate(self.allocation());
        }
        let key = self.some_key();
        let expected_version = self.some_fence(key);
        let dice = match self.plan.churn && self.rng.chance(600) {
            true => self.rng.pick(&[6, 7, 50, 50, 50, 60, 60, 60, 60, 60, 14, 14, 87]),
            false => self.rng.below(100),
        };
        match dice {
            0..=5 => Request::Commit { key, checksum: None, batch: None },
            6..=13 => Request::Delete { key, force: self.rng.chance(400), expected_version },
            14..=36 => Request::Acquire(Acquire {
                key,
                min_tier: self.rng.pick(&[
                    None,
                    None,
                    Some(Tier::Ram),
                    Some(Tier::Ram),
                    Some(Tier::Disk),
                    Some(Tier::Gpu),
                ]),
                policy: self.rng.pick(&[PromotionPolicy::Blocking, PromotionPolicy::BestEffort]),
                duration_ms: self.rng.pick(&[0, 1, 5, 100, 3_000, u64::MAX / 4]),
                expected_version,
                accepts_packed: self.rng.chance(850),
                accepts_slabs: false,
                nonce: self.nonce(),
                owner: Peer::UNKNOWN,
            }),
            37..=46 => match self.client.leases.is_empty() || self.rng.chance(150) {
                true => Request::Release { lease: self.bogus_lease(), by: None },
                false => {
                    let at = self.rng.below(self.client.leases.len() as u64) as usize;
                    let lease = self.client.leases[at];
                    self.unmap(lease);
                    // A lease stays in the list now and then, and is released twice.
                    if self.rng.chance(900) {
                        self.client.leases.swap_remove(at);
                    }
                    Request::Release { lease, by: None }
                }
            },
            47..=57 => Request::Promote {
                key,
                target: self.rng.pick(&[Tier::Ram, Tier::Ram, Tier::Ram, Tier::Disk, Tier::Gpu]),
                policy: self.rng.pick(&[PromotionPolicy::Blocking, PromotionPolicy::BestEffort]),
                expected_version,
            },
            58..=73 => self.some_spill(key, expected_version),
            74..=78 => Request::Prefetch {
                key,
                target: self.rng.pick(&[Tier::Ram, Tier::Ram, Tier::Disk, Tier::Gpu]),
            },
            79..=83 if !self.plan.overload => {
                let duration_ms = self.rng.pick(&[None, Some(1), Some(50), Some(5_000)]);
                Request::Pin { key, duration_ms, owner: Peer::UNKNOWN }
            }
            84..=85 => Request::Unpin { key },
            86 => Request::Enrol { key },
            87 => Request::Scrub(Scrub { key, tier: None, bytes_per_second: 0, seen: Vec::new() }),
            88..=91 if self.client.scan.is_none() => self.scan_begin(),
            92..=93 => Request::Stats,
            _ => Request::Resolve { key },
        }
    }

    fn some_spill(&mut self, key: PayloadKey, expected_version: Option<Version>) -> Request {
        Request::Spill(Spill {
            key,
            target: self.rng.pick(&[
                None,
                None,
                Some(SpillTarget::Tier(Tier::Disk)),
                Some(SpillTarget::Tier(Tier::Disk)),
                Some(SpillTarget::Tier(Tier::Ram)),
                Some(SpillTarget::Tier(Tier::Object)),
                Some(SpillTarget::Void),
            ]),
            policy: self.rng.pick(&[SpillPolicy::Blocking, SpillPolicy::Blocking, SpillPolicy::BestEffort]),
            wait_for_leases: self.rng.chance(500),
            fsync: self.rng.chance(400),
            expected_version,
        })
    }

    pub(super) fn nonce(&mut self) -> LeaseNonce {
        let mut nonce = [0; 10];
        nonce[..8].copy_from_slice(&self.rng.next().to_le_bytes());
        LeaseNonce(nonce)
    }

    fn bogus_lease(&mut self) -> LeaseId {
        let shard = payload_types::ShardIndex(self.rng.below(6) as u16);
        let slot = self.rng.pick(&[0, 1, 7, u32::MAX]);
        LeaseId::new(shard, slot, self.nonce())
    }

    /// Mostly a payload that is alive; else one that was, never was, or is somebody else's.
    fn some_key(&mut self) -> PayloadKey {
        let dice = self.rng.below(100);
        let alive = dice < 88 || dice == 95;
        let mut keys: Vec<PayloadKey> =
            self.oracle.facts.values().filter(|fact| fact.gone != alive).map(|fact| fact.key).collect();
        if (80..88).contains(&dice) {
            // What a stream keeps after its ttl is rare.
            let wall = self.clock().wall;
            let kept = self
                .oracle
                .facts
                .values()
                .filter(|fact| fact.held && !fact.gone && fact.expires_at.is_some_and(|end| end < wall));
            let kept: Vec<PayloadKey> = kept.map(|fact| fact.key).collect();
            keys = if kept.is_empty() { keys } else { kept };
        }
        if dice >= 96 || keys.is_empty() {
            let id = PayloadId::mint(self.rng.next() >> 4, self.rng.next());
            return PayloadKey { namespace: NAMESPACES[0], id };
        }
        let mut key = self.rng.pick(&keys);
        if dice == 95 {
            key.namespace = if key.namespace == NAMESPACES[0] { NAMESPACES[1] } else { NAMESPACES[0] };
        }
        key
    }

    fn some_fence(&mut self, key: PayloadKey) -> Option<Version> {
        if !self.rng.chance(120) {
            return None;
        }
        let seen = self.oracle.facts.get(&key).map_or(Version(1), |fact| fact.version_max);
        Some(if self.rng.chance(700) {
            seen
        } else {
            self.rng.pick(&[VERSION_NEVER, Version(seen.0.saturating_sub(1))])
        })
    }

    // Long because: one draw for each thing that an allocation may say.
    pub(super) fn allocation(&mut self) -> Allocate {
        let wall_ms = self.clock().wall.as_millis();
        self.client.tick_last = (self.client.tick_last + 1).max(wall_ms << 12);
        let namespace = if self.rng.chance(100) { NAMESPACES[1] } else { NAMESPACES[0] };
        let key = PayloadKey { namespace, id: PayloadId::mint(self.client.tick_last, self.rng.next()) };
        let tier = if self.rng.chance(20) {
            Tier::Gpu
        } else {
            self.rng.pick(&[Tier::Ram, Tier::Ram, Tier::Ram, Tier::Disk])
        };
        let units = if self.rng.chance(15) { 5_000 } else { self.rng.between(1, 12) };
        let size = (units * self.plan.grain).saturating_sub(self.rng.below(self.plan.grain)).max(1);
        let mut policy = EvictionPolicy {
            priority: self.rng.pick(&[
                EvictionPriority::Unspecified,
                EvictionPriority::Low,
                EvictionPriority::High,
                EvictionPriority::Never,
            ]),
            require_durable: self.rng.chance(150),
            spill_target: self.rng.pick(&[
                None,
                None,
                None,
                Some(SpillTarget::Tier(Tier::Disk)),
                Some(SpillTarget::Void),
                Some(SpillTarget::Tier(Tier::Ram)),
            ]),
            min_residency: self.rng.pick(&[None, None, None, Some(Tier::Ram), Some(Tier::Disk)]),
        };
        if policy.validate().is_err() {
            policy = EvictionPolicy::default();
        }
        if self.plan.overload {
            let units = if self.rng.chance(50) { 24 } else { self.rng.between(1, 12) };
            let size = ByteCount(units * self.plan.grain.max(4096));
            let policy = EvictionPolicy::default();
            return Allocate {
                key,
                size,
                tier: Tier::Ram,
                ttl_ms: None,
                no_evict: false,
                policy,
                memory: Memory::Segment,
                owner: Peer::UNKNOWN,
            };
        }
        if self.rng.chance(self.plan.huge_permille)
            && let Some(capacity) = self.plan.capacity[Tier::Disk]
        {
            let size = ByteCount((capacity.0 / 1000 * self.rng.between(100, 900)).max(1));
            let policy = EvictionPolicy::default();
            return Allocate {
                key,
                size,
                tier: Tier::Disk,
                ttl_ms: None,
                no_evict: false,
                policy,
                memory: Memory::Segment,
                owner: Peer::UNKNOWN,
            };
        }
        let no_evict = self.rng.chance(100);
        let mortal = !no_evict
            && policy.priority != EvictionPriority::Never
            && self.rng.chance(self.plan.ttl_permille);
        let ttl_ms = mortal.then(|| self.rng.pick(&[1, 5, 50, 1_000, 20_000, 3_600_000]));
        Allocate {
            key,
            size: ByteCount(size),
            tier,
            ttl_ms,
            no_evict,
            policy,
            memory: Memory::Segment,
            owner: Peer::UNKNOWN,
        }
    }

    /// An answer reaches its client, who goes on from there.
    pub(super) fn client_reply(
        &mut self,
        to: ReplyTo,
        pending: Pending,
        result: ReplyResult,
    ) -> Result<(), Breach> {
        if let Request::Hold(_) = pending.request {
            return self.hold_answered(to.0, &result);
        }
        if let Request::Commit { batch: Some(mark), .. } = pending.request {
            self.batch_answered(to.0, mark, &result)?;
        }
        if self.session_answered(to, &pending.request, &result)? {
            return Ok(());
        }
        match result {
            Ok(Reply::Allocated(seen)) => {
                if let Request::Allocate(request) = pending.request {
                    self.produce(request.key, seen.tier);
                }
            }
            Ok(Reply::Leased(grant)) => {
                self.client.leases.push(grant.lease);
                self.read(grant.lease);
                let slow = self.now.0 > pending.sent.0 + 5 * MILLIS;
                if let Request::Acquire(request) = &pending.request
                    && request.min_tier == Some(Tier::Ram)
                    && request.policy == PromotionPolicy::Blocking
                    && slow
                {
                    self.oracle.coverage.hit("acquire_blocking_promoted_first");
                }
            }
            Ok(Reply::ArenasSpilled(done)) => self.stop_answered(to, &done)?,
            Ok(Reply::Page(page)) => self.scan_page(to.0, page)?,
            Ok(Reply::Found(part)) => self.find_part(to.0, part)?,
            Err(error) => {
                if let Request::Allocate(request) = &pending.request {
                    let full = error.kind == payload_types::ErrorKind::ResourceExhausted;
                    let over = self.plan.capacity[request.tier]
                        .is_none_or(|capacity| request.size.in_pages() > capacity);
                    match (full, over) {
                        (true, true) => self.oracle.coverage.hit("allocation_refused_over_capacity"),
                        (true, false) => self.oracle.coverage.hit("allocation_refused_tier_full"),
                        _ => {}
                    }
                }
                let other = key_of(&pending.request).is_some_and(|key| {
                    NAMESPACES.into_iter().any(|namespace| {
                        namespace != key.namespace
                            && self
                                .oracle
                                .facts
                                .get(&PayloadKey { namespace, ..key })
                                .is_some_and(|fact| !fact.gone)
                    })
                });
                if other {
                    self.oracle.coverage.hit("namespace_kept_apart");
                }
            }
            Ok(_) => {}
        }
        Ok(())
    }

    /// The producer writes its bytes and commits, mostly.
    fn produce(&mut self, key: PayloadKey, tier: Tier) {
        let content = self.rng.next();
        let linger = self.plan.linger(&mut self.rng);
        let fact = self.oracle.facts.get_mut(&key).expect("just born");
        fact.content = content;
        let location =
            self.storage.blocks.iter_mut().find(|(name, _)| name.id == key.id && name.tier == tier);
        let (_, block) = location.expect("Allocated was checked to name a block");
        block.content = content;
        let dice = if self.plan.overload { 50 } else { self.rng.below(100) };
        let commit_at = self.now.0 + self.rng.between(0, 5 * MILLIS);
        block.readers.insert(0, Monotonic(commit_at + linger));
        if dice >= 90 {
            return; // Never committed, unless somebody guesses.
        }
        let honest = dice >= 3;
        let checksum = match dice {
            0..=2 => Some(Checksum(content ^ 0xFF)),
            3..=45 => Some(Checksum(content)),
            _ => None,
        };
        if !honest {
            fact.wrong_checksum = true;
            self.oracle.coverage.hit("commit_with_wrong_checksum");
        }
        if !self.sessions.owns(key) && self.leaves_to_batch(key, checksum) {
            return;
        }
        self.agenda.add(Monotonic(commit_at), Task::ClientCommit(key, checksum));
        if self.rng.chance(200) {
            let again = commit_at + self.rng.between(0, 3 * MILLIS);
            self.agenda.add(Monotonic(again), Task::ClientCommit(key, checksum));
        }
    }

    /// A reader maps what it leased, and stays until it releases the lease or the lease ends.
    fn read(&mut self, lease: LeaseId) {
        let reader = self.client.request_last;
        self.client.readers.insert(lease, reader);
        let fact = self.oracle.leases[&lease];
        let left_ms = match fact.expires_at {
            // A session's: it stays as long as its reader wants.
            WallMs::MAX => self.rng.between(1, 3_000),
            end => end.as_millis().saturating_sub(self.clock().wall.as_millis()),
        };
        let end = self.now.0 + left_ms * MILLIS + self.plan.linger(&mut self.rng);
        if let Some(block) = self.storage.blocks.get_mut(&fact.block) {
            block.readers.insert(reader, Monotonic(end));
        }
        if self.rng.chance(600) {
            let reads_for = self.rng.between(10 * MICROS, (left_ms + 1) * MILLIS);
            self.agenda.add(Monotonic(self.now.0 + reads_for), Task::ClientRelease(lease));
        }
    }

    // ---- listing ----

    pub(super) fn must_be_listed(&self, namespace: NamespaceId) -> impl Iterator<Item = PayloadKey> + '_ {
        let now = self.clock();
        self.oracle
            .facts
            .values()
            .filter(move |fact| {
                fact.key.namespace == namespace && !fact.damaged && fact.must_exist(now, &self.plan)
            })
            .map(|fact| fact.key)
    }

    /// Begins a listing, and hands back something else to ask beside it.
    fn scan_begin(&mut self) -> Request {
        let namespace = self.rng.pick(&NAMESPACES);
        let tier = self.rng.pick(&[None, None, Some(Tier::Ram), Some(Tier::Disk)]);
        let page_size = self.rng.pick(&[1, 2, 3, 5, 50, 500]);
        let expected = if tier.is_none() { self.must_be_listed(namespace).collect() } else { Vec::new() };
        self.client.scan = Some(Scan {
            namespace,
            tier,
            page_size,
            waiting: BTreeSet::new(),
            rows: Vec::new(),
            seen: BTreeSet::new(),
            expected,
            pages: 0,
        });
        self.scan_next(None);
        Request::Stats
    }

    /// Asks every shard for its part of the next page.
    fn scan_next(&mut self, before: Option<PayloadId>) {
        let Some(mut scan) = self.client.scan.take() else { return };
        scan.pages += 1;
        let list = List { namespace: scan.namespace, tier: scan.tier, before, page_size: scan.page_size };
        for shard in 0..usize::from(self.shard_count()) {
            scan.waiting.insert(self.send(shard, Request::List(list.clone())));
        }
        self.client.scan = Some(scan);
    }

    /// A shard's part of a page arrives. When all are there the page is merged, as the front does it.
    fn scan_page(&mut self, to: u64, page: ShardPage) -> Result<(), Breach> {
        let Some(scan) = self.client.scan.as_mut() else { return Ok(()) };
        if !scan.waiting.remove(&to) {
            return Ok(()); // Of a listing that was given up.
        }
        scan.rows.extend(page.rows);
        if !scan.waiting.is_empty() {
            return Ok(());
        }
        let mut rows = std::mem::take(&mut scan.rows);
        rows.sort_by_key(|row| std::cmp::Reverse(row.id));
        let more = rows.len() >= scan.page_size;
        rows.truncate(scan.page_size);
        for row in &rows {
            if !scan.seen.insert(row.id) {
                return breach(Rule::Listing, format!("{row:?} is listed twice"));
            }
        }
        if more && !self.client.stopped {
            self.scan_next(rows.last().map(|row| row.id));
            return Ok(());
        }
        let scan = self.client.scan.take().expect("it was there");
        if scan.pages > 2 {
            self.oracle.coverage.hit("list_of_several_pages");
        }
        let still: BTreeSet<PayloadKey> = self.must_be_listed(scan.namespace).collect();
        let skipped = scan.expected.iter().find(|key| still.contains(key) && !scan.seen.contains(&key.id));
        match skipped {
            Some(key) if !more => {
                breach(Rule::Listing, format!("{key:?} existed throughout and was skipped"))
            }
            _ => Ok(()),
        }
    }
}
