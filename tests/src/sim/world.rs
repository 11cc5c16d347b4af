//! A whole node in virtual time: the shipped shards and arbiter, simulated drivers, catalog writer and clients.
//!
//! ```text
//!   client --request--> [hop] --> shard.step --> outbox --> execute: Reply -> oracle, client
//!                                    ^                      Storage, Transfer -> job ... -> completion
//!                                    |                      Catalog -> FIFO -> batch ... -> acknowledgements
//!                                    +------ completions -- Budget -> arbiter -> replies
//! ```
//!
//! Every message takes a random time; what the real parts keep in order (one lane to and from the arbiter, the
//! catalog's FIFO and its acknowledgements) stays in order. After every task the oracle looks at everything.

use std::collections::BTreeMap;

use payload_shards::{Arbiter, Outbox, Shard, ShardConfig};
use payload_types::effect::{ReplyTo, StorageOp, TransferOp};
use payload_types::event::{BudgetReply, Completion, Event};
use payload_types::reply::{Reply, ReplyResult};
use payload_types::request::{List, Request};
use payload_types::{
    Monotonic, NamespaceId, Now, PayloadId, PayloadKey, PerTier, ShardIndex, Tier, WallMs, limits,
};

use super::Options;
use super::agenda::{Agenda, Task};
use super::audit::Look;
use super::batches::Batches;
use super::canary::Canary;
use super::catalog::Catalog;
use super::client::Client;
use super::compaction::Compaction;
use super::faults::{MICROS, MILLIS, Plan, Probing, Rng, SECONDS};
use super::oracle::{Breach, Oracle, Rule, Scene, breach, key_of};
use super::pressure::Books;
use super::sessions::Sessions;
use super::stop::Stop;
use super::storage::Storage;
use super::streams::Streams;
use super::trace::Trace;

/// Reply numbers from here on are the oracle's own questions.
pub(super) const PROBE: u64 = 1 << 63;

/// The wall clock at the start of a run: 2026-01-01.
const WALL_START_MS: u64 = 1_767_225_600_000;

/// Both namespaces that clients use.
pub(super) const NAMESPACES: [NamespaceId; 2] = [NamespaceId::DEFAULT, NamespaceId(2)];

/// The recall by which the oracle asks a shard for its spare capacity.
pub(super) const RECALL_OWN: u64 = u64::MAX;

/// Timer steps in a row that may find nothing to do.
const IDLE_TIMERS_MAX: u32 = 10_000;

/// Work that a driver was given.
#[derive(Clone, Copy, Debug)]
pub(super) enum Job {
    /// Create, Seal or Sync.
    Storage(StorageOp),
    /// A copy.
    Transfer(TransferOp),
}

/// One message lane: nothing overtakes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lane(u64);

impl Lane {
    pub(super) fn arrival(&mut self, now: Monotonic, delay: u64) -> Monotonic {
        self.0 = self.0.max(now.0 + delay);
        Monotonic(self.0)
    }
}

/// A running shard and what surrounds it.
pub(super) struct Core {
    pub(super) shard: Shard,
    pub(super) outbox: Outbox,
    timer: Option<Monotonic>,
    idle_timers: u32,
    pub(super) to_arbiter: Lane,
    pub(super) from_arbiter: Lane,
    pub(super) from_catalog: Lane,
}

/// See the module.
pub(super) struct World {
    pub(super) rng: Rng,
    pub(super) plan: Plan,
    pub(super) now: Monotonic,
    pub(super) agenda: Agenda,
    pub(super) oracle: Oracle,
    pub(super) client: Client,
    pub(super) storage: Storage,
    pub(super) compaction: Compaction,
    pub(super) catalog: Catalog,
    pub(super) trace: Trace,
    pub(super) canary: Option<Canary>,
    pub(super) jobs: BTreeMap<u64, Job>,
    /// Drivers' and catalog's work under way, by payload.
    pub(super) works: BTreeMap<PayloadId, u32>,
    /// Asks for capacity that the arbiter has not answered.
    pub(super) asks_open: u64,
    pub(super) cores: Vec<Core>,
    pub(super) arbiter: Arbiter,
    /// What the arbiter granted and did not get back.
    pub(super) granted: PerTier<u64>,
    /// Who waits for capacity, and who makes room.
    pub(super) books: Books,
    pub(super) batches: Batches,
    pub(super) streams: Streams,
    pub(super) sessions: Sessions,
    /// The server is being stopped.
    pub(super) stop: Option<Stop>,
    pub(super) catalog_running: bool,
    pub(super) power_loss: bool,
    pub(super) job_last: u64,
    pub(super) probe_last: u64,
    pub(super) probed: Option<ReplyResult>,
    pub(super) tasks: u64,
}

impl Core {
    pub(super) fn new(config: ShardConfig) -> Self {
        Self {
            shard: Shard::new(config),
            outbox: Outbox::new(),
            timer: None,
            idle_timers: 0,
            to_arbiter: Lane::default(),
            from_arbiter: Lane::default(),
            from_catalog: Lane::default(),
        }
    }
}

impl World {
    pub(super) fn new(seed: u64, options: Options, trace: Trace) -> Self {
        let mut rng = Rng::new(seed);
        let mut plan = Plan::draw(&mut rng);
        if options.overload {
            plan.overload();
        }
        if options.crammed {
            plan.cram(&mut rng);
        }
        plan.batches_of(seed);
        plan.streams_of(seed);
        // Other planted bugs are looked for without.
        if options.canary.is_none_or(Canary::needs_sessions) {
            plan.sessions_of(seed);
            plan.arenas_of(seed, options.canary);
        }
        plan.finds_of(seed);
        let arbiter = Arbiter::new(plan.capacity, 1);
        let mut catalog = Catalog::new();
        catalog.late.normal = plan.catalog_normal;
        Self {
            rng,
            plan,
            now: Monotonic(SECONDS),
            agenda: Agenda::default(),
            oracle: Oracle::default(),
            client: Client::default(),
            storage: Storage::default(),
            compaction: Compaction::default(),
            catalog,
            trace,
            canary: options.canary,
            jobs: BTreeMap::new(),
            works: BTreeMap::new(),
            asks_open: 0,
            cores: Vec::new(),
            arbiter,
            granted: PerTier::default(),
            books: Books::default(),
            batches: Batches::default(),
            streams: Streams::default(),
            sessions: Sessions::default(),
            stop: None,
            catalog_running: false,
            power_loss: false,
            job_last: 0,
            probe_last: PROBE,
            probed: None,
            tasks: 0,
        }
    }

    /// Both clocks.
    pub(super) fn clock(&self) -> Now {
        Now { monotonic: self.now, wall: WallMs::from_millis(WALL_START_MS + self.now.0 / MILLIS) }
    }

    pub(super) fn is_up(&self) -> bool {
        !self.cores.is_empty()
    }

    pub(super) fn shard_count(&self) -> u16 {
        self.cores.len().max(1) as u16
    }

    pub(super) fn strikes(&mut self, which: Canary, permille: u64) -> bool {
        Canary::strikes(self.canary, which, permille, &mut self.rng)
    }

    /// The oracle, and what it may look at.
    pub(super) fn judge<T>(&mut self, look: impl FnOnce(&mut Oracle, Scene<'_>) -> T) -> T {
        let (now, shard_count) = (self.clock(), self.shard_count());
        let Self { storage, catalog, plan, oracle, .. } = self;
        look(oracle, Scene { now, storage, catalog, plan, shard_count })
    }

    /// Handles the next task; false when there is none before `end`.
    pub(super) fn turn(&mut self, end: Monotonic) -> Result<bool, Breach> {
        if self.agenda.next_at().is_none_or(|at| at > end) {
            return Ok(false);
        }
        let (at, task) = self.agenda.pop().expect("just seen");
        self.now = self.now.max(at);
        self.tasks += 1;
        if self.is_up() {
            self.watch_waiters()?;
        }
        self.handle(task)?;
        if self.is_up() {
            self.audit()?;
        }
        Ok(true)
    }

    fn audit(&mut self) -> Result<(), Breach> {
        let works = std::mem::take(&mut self.works);
        // What is under way: work for the payload, and effects that no pump has seen.
        let slabs = self.storage.slabs.ops > 0;
        let anything = slabs || self.cores.iter().any(|core| !core.outbox.is_empty());
        let audited = self.judge(|oracle, scene| {
            oracle.audit(scene, |key| anything || works.get(&key.id).is_some_and(|count| *count > 0))
        });
        self.works = works;
        audited?;
        self.audit_disk()?;
        for tier in Tier::ALL {
            self.watch_free(tier);
            let held: u64 = self.cores.iter().map(|core| core.shard.budget_held()[tier].0).sum();
            if held > self.granted[tier] {
                return breach(
                    Rule::Budget,
                    format!("shards hold {held} bytes of {tier}, {} were granted", self.granted[tier]),
                );
            }
        }
        Ok(())
    }

    /// Notes for allocations that wait how much is free, as long as nobody else asks for space.
    fn watch_free(&mut self, tier: Tier) {
        let used: u64 = self.cores.iter().map(|core| core.shard.usage(tier).allocated).sum();
        let free = self.plan.capacity[tier].unwrap_or_default().0.saturating_sub(used);
        let alone = self.asks_open <= 1;
        for pending in self.oracle.pending.values_mut() {
            if matches!(&pending.request, Request::Allocate(request) if request.tier == tier) {
                pending.free_min = pending.free_min.filter(|_| alone).map(|least| least.min(free));
            }
        }
    }

    // Long because: one arm a task.
    fn handle(&mut self, task: Task) -> Result<(), Breach> {
        match task {
            Task::ClientTick => self.client_tick(),
            Task::ClientCommit(key, checksum) => {
                if !self.oracle.facts.get(&key).is_some_and(|fact| fact.left_behind) {
                    self.ask(Request::Commit { key, checksum, batch: None });
                }
                Ok(())
            }
            Task::ClientRelease(lease) => {
                self.release(lease);
                Ok(())
            }
            Task::Crash => self.crash(),
            Task::Boot => self.boot(),
            Task::Deliver { shard, mut event, work } => {
                if let Some(id) = work {
                    *self.works.entry(id).or_default() -= 1;
                }
                if let Event::Request { reply_to, request, .. } = &mut event {
                    if !self.session_takes(shard, *reply_to, request) {
                        return Ok(());
                    }
                    self.request_arrives(request);
                }
                self.slab_heard(&event);
                let ends = match event {
                    Event::SessionClosed { session } => Some(session),
                    _ => None,
                };
                if let Some(session) = ends {
                    self.drain(shard)?;
                    self.session_ends_at(shard, session);
                }
                self.step(shard, event)?;
                if let Some(session) = ends {
                    self.session_settles(shard, session);
                }
                Ok(())
            }
            Task::Timer { shard, at } => {
                if self.cores[shard].timer != Some(at) {
                    return Ok(());
                }
                self.cores[shard].timer = None;
                self.step(shard, Event::Timer)
            }
            Task::Pump { shard } => self.drain(shard),
            Task::Arbiter(request) => self.arbiter_step(request),
            Task::Job(job) => self.finish_job(job),
            Task::Detach { shard, name } => self.finish_detach(shard, name),
            Task::Free { shard, name, detached } => {
                self.finish_free(shard, name, detached);
                Ok(())
            }
            Task::Compact => self.compact(),
            Task::CatalogBegin => {
                self.catalog_begin();
                Ok(())
            }
            Task::CatalogEnd => self.catalog_end(),
            Task::BatchRefused(batch) => {
                self.batch_is_refused(batch);
                Ok(())
            }
            Task::CatalogFlush => self.catalog_flush(),
            Task::SlabFreed(slab) => self.slab_freed(slab),
            Task::DirectLook(cell) => {
                self.direct_look(cell);
                Ok(())
            }
            Task::DirectEnd(cell) => self.direct_end(cell),
            Task::SessionLeft(session) => self.look_for_left(session),
            Task::AppendStored(append, outcome) => {
                self.append_stored(append, outcome.as_deref());
                Ok(())
            }
        }
    }

    fn request_arrives(&mut self, request: &Request) {
        if let Request::Delete { key, .. } = request {
            if self.books.evicting.contains(&key.id) && self.copies_of(key.id) {
                self.oracle.coverage.hit("evict_raced_delete");
            }
            if self.copies_of(key.id) {
                self.oracle.coverage.hit("delete_during_copy");
            }
            if self.oracle.facts.get(key).is_some_and(|fact| fact.commits_pending > 0) {
                self.oracle.coverage.hit("delete_while_committing");
            }
        }
        if let Request::Release { lease, .. } = request {
            self.session_lease_released(*lease);
        }
        if let Request::Delete { key, .. } = request
            && self.gets_own_file(key.id)
        {
            self.oracle.coverage.hit("file_of_its_own_raced_delete");
        }
        if key_of(request).is_some_and(|key| self.is_moving(key.id)) {
            match request {
                Request::Delete { .. } => self.oracle.coverage.hit("relocation_raced_delete"),
                Request::Promote { target: Tier::Ram, .. } => {
                    self.oracle.coverage.hit("relocation_raced_promote");
                }
                Request::Spill(_) => self.oracle.coverage.hit("relocation_raced_spill"),
                _ => {}
            }
        }
        self.judge(|oracle, scene| oracle.delivered(request, scene));
    }

    pub(super) fn copies_of(&self, id: PayloadId) -> bool {
        self.jobs.values().any(|job| matches!(job, Job::Transfer(op) if op.from.id == id))
    }

    // ---- shards ----

    pub(super) fn step(&mut self, shard: usize, event: Event) -> Result<(), Breach> {
        if !self.cores[shard].outbox.has_credit() {
            self.drain(shard)?;
        }
        let now = self.clock();
        self.trace.add(self.now, format_args!("shard {shard} <- {event:?}"));
        let before = self.cores[shard].outbox.len();
        let is_timer = event == Event::Timer;
        let order = match &event {
            Event::Completion(Completion::Budget(BudgetReply::Recall {
                tier,
                recall,
                evict: Some(order),
                ..
            })) => Some((*tier, *recall, *order)),
            _ => None,
        };
        let victims = order.map(|(tier, ..)| self.before_order(shard, tier));
        let core = &mut self.cores[shard];
        core.shard.step(now, event, &mut core.outbox);
        let added = core.outbox.len() - before;
        core.idle_timers = if is_timer && added == 0 { core.idle_timers + 1 } else { 0 };
        if added > limits::OUTBOX_STEP_MAX || core.idle_timers > IDLE_TIMERS_MAX {
            return breach(
                Rule::Limits,
                format!("shard {shard}: {added} effects, {} idle timers", core.idle_timers),
            );
        }
        if let Some(order) = order {
            self.after_order(shard, order, victims)?;
        }
        self.arm(shard);
        if self.rng.chance(self.plan.lazy_pump_permille) {
            let at = Monotonic(self.now.0 + self.rng.between(10, 100) * MICROS);
            self.agenda.add(at, Task::Pump { shard });
            return Ok(());
        }
        self.drain(shard)?;
        self.audit_sessions(shard)?;
        self.audit_slabs(shard)?;
        let index = ShardIndex(shard as u16);
        let looks = match self.plan.probing {
            Probing::EveryStep => !self.plan.crowd || self.rng.chance(20),
            Probing::Rarely => self.rng.chance(20),
        };
        // What is left of a session that ended is worked off by the oracle's own questions, too.
        let is_ending =
            self.plan.session_permille > 0 && self.cores[shard].shard.next_timer() == Some(Monotonic(0));
        if looks && !is_ending {
            let look = self.look(shard)?;
            self.find_now(shard, &look)?;
            self.judge(|oracle, scene| oracle.judge_look(index, &look, scene))?;
            let key =
                look.rows.get(self.rng.below(look.rows.len().max(1) as u64) as usize).map(|(key, _)| *key);
            if let Some(key) = key {
                self.resolve_now(shard, key)?;
            }
        }
        let exact = false;
        let (now, shard_count) = (self.clock(), self.shard_count());
        let Self { storage, catalog, plan, oracle, cores, .. } = self;
        oracle.audit_space(
            &cores[shard].shard,
            index,
            Scene { now, storage, catalog, plan, shard_count },
            exact,
        )
    }

    /// Keeps exactly one timer armed for what the shard asks for.
    pub(super) fn arm(&mut self, shard: usize) {
        let next = self.cores[shard].shard.next_timer();
        if next == self.cores[shard].timer {
            return;
        }
        self.cores[shard].timer = next;
        if let Some(at) = next {
            let late = if self.rng.chance(100) { self.rng.between(0, 2000) } else { self.rng.between(0, 50) };
            self.agenda.add(Monotonic(at.0.max(self.now.0) + late * MICROS), Task::Timer { shard, at });
        }
    }

    fn drain(&mut self, shard: usize) -> Result<(), Breach> {
        while let Some(effect) = self.cores[shard].outbox.pop() {
            self.execute(shard, effect)?;
        }
        Ok(())
    }

    /// Asks a shard at this very moment, past its mailbox.
    pub(super) fn ask_now(&mut self, shard: usize, request: Request) -> Result<ReplyResult, Breach> {
        self.drain(shard)?;
        self.probe_last += 1;
        let reply_to = ReplyTo(self.probe_last);
        self.probed = None;
        let now = self.clock();
        self.trace.add(self.now, format_args!("shard {shard} <- probe {request:?}"));
        let asked = format!("{request:?}");
        let core = &mut self.cores[shard];
        core.shard.step(now, Event::Request { reply_to, deadline: None, request }, &mut core.outbox);
        self.arm(shard);
        self.drain(shard)?;
        match self.probed.take() {
            Some(result) => Ok(result),
            None => breach(Rule::Answers, format!("not answered at once: {asked}")),
        }
    }

    /// All that a shard lists, and its statistics.
    pub(super) fn look(&mut self, shard: usize) -> Result<Look, Breach> {
        let mut look = Look::default();
        for namespace in NAMESPACES {
            let mut before = None;
            loop {
                let list = List { namespace, tier: None, before, page_size: limits::LIST_PAGE_MAX };
                let Ok(Reply::Page(page)) = self.ask_now(shard, Request::List(list))? else {
                    return breach(Rule::Listing, "List was refused");
                };
                if before.is_none() {
                    look.total += page.total;
                }
                before = page.rows.last().map(|row| row.id);
                let full = page.rows.len() == limits::LIST_PAGE_MAX;
                look.rows
                    .extend(page.rows.into_iter().map(|row| (PayloadKey { namespace, id: row.id }, row)));
                if !full {
                    break;
                }
            }
        }
        let Ok(Reply::Stats(stats)) = self.ask_now(shard, Request::Stats)? else {
            return breach(Rule::Accounting, "Stats was refused");
        };
        look.stats = *stats;
        if let Err(wrong) = self.cores[shard].shard.check_accounting() {
            return breach(Rule::Accounting, wrong);
        }
        Ok(look)
    }

    /// The descriptor of a listed payload.
    pub(super) fn resolve_now(&mut self, shard: usize, key: PayloadKey) -> Result<(), Breach> {
        match self.ask_now(shard, Request::Resolve { key })? {
            Ok(Reply::Resolved(seen)) => self.judge(|oracle, scene| oracle.see(key, &seen, scene)),
            Ok(other) => breach(Rule::WrongAnswer, format!("Resolve was answered with {other:?}")),
            Err(error) => {
                let fact = self.oracle.facts[&key].clone();
                if fact.must_exist(self.clock(), &self.plan) && !fact.damaged {
                    return breach(Rule::CommitLost, format!("listed and not resolved: {error:?} {fact:?}"));
                }
                Ok(())
            }
        }
    }
}
