//! How a simulated server starts, dies, and comes to rest.
//!
//! Boot is what `front` does: rows to shards, replicas verified, the rest reclaimed, the arbiter preloaded. A crash takes
//! everything volatile; what drivers and the catalog were doing happened or did not, by chance. At the end of a run
//! clients stop, faults end and time passes: nothing may be left over.

use std::collections::BTreeSet;

use payload_shards::{Adopted, Arbiter, SessionCaps, ShardConfig};
use payload_types::effect::BudgetRequest;
use payload_types::event::{BudgetReply, Completion, Event};
use payload_types::request::Request;
use payload_types::{ByteCount, Monotonic, OpId, PayloadKey, PerTier, ShardIndex, Tier, limits};

use super::agenda::Task;
use super::audit::Look;
use super::faults::{MILLIS, SECONDS, segment_files};
use super::oracle::{Breach, Rule, Scene, breach};
use super::storage::{BlockName, Phase, is_relocation};
use super::world::{Core, Job, RECALL_OWN, World};

impl World {
    /// The server starts: rows to shards, what no row vouches for is reclaimed, budgets are preloaded.
    pub(super) fn boot(&mut self) -> Result<(), Breach> {
        let epoch = self.catalog.begin_epoch();
        let count_before = self.plan.shard_count;
        if epoch.0 > 1 {
            self.plan.shard_count = self.rng.between(1, 5) as u16;
            if count_before != self.plan.shard_count {
                self.oracle.coverage.hit("boot_with_other_shard_count");
            }
        }
        if epoch.0 > 1 && self.rng.chance(200) {
            let tier = self.rng.pick(&[Tier::Ram, Tier::Disk]);
            self.lower_capacity(tier);
        }
        let shard_count = self.plan.shard_count;
        let config = |shard: u16| ShardConfig {
            dead_grace_ms: 1_000,
            shard: ShardIndex(shard),
            shard_count,
            epoch,
            capacity: self.plan.capacity,
            lease_ms_default: self.plan.lease_ms_default,
            lease_ms_max: self.plan.lease_ms_max,
            allocation_timeout_ms: self.plan.allocation_timeout_ms,
            disk_fsync: self.plan.disk_fsync,
            retry_backoff_ms: 50, // 128 attempts end within the quiet time
            session_caps: SessionCaps {
                leases_max: self.plan.session_leases_max,
                leased_bytes_max: u64::MAX,
            },
        };
        let mut cores: Vec<Core> = (0..shard_count).map(|shard| Core::new(config(shard))).collect();
        self.catalog.reload();
        self.audit_batches()?;
        self.read_segments()?;
        let vouched = self.adopt_rows(&mut cores)?;
        self.adopt_holds(&mut cores);
        let reclaimed = self.storage.reclaim(&vouched, self.now);
        self.adopt_dead(&mut cores, &vouched);
        self.trace
            .add(self.now, format_args!("boot {epoch:?} {shard_count} shards, {reclaimed} blocks reclaimed"));
        self.arbiter =
            Arbiter::with_watermarks(self.plan.capacity, PerTier([self.plan.watermarks; 4]), shard_count);
        self.forget_books();
        for (shard, core) in cores.iter().enumerate() {
            for tier in Tier::ALL {
                let bytes = core.shard.budget_held()[tier];
                self.granted[tier] += bytes.0;
                self.arbiter.preload(ShardIndex(shard as u16), tier, bytes);
            }
        }
        self.cores = cores;
        let power_loss = self.power_loss;
        self.judge(|oracle, scene| oracle.boot(scene, power_loss))?;
        self.promise_at_boot()?;
        for shard in 0..self.cores.len() {
            self.arm(shard);
            let look = self.look(shard)?;
            self.judge(|oracle, scene| oracle.judge_look(ShardIndex(shard as u16), &look, scene))?;
            for (key, _) in &look.rows {
                self.resolve_now(shard, *key)?;
            }
        }
        self.lease_what_came_back();
        Ok(())
    }

    fn lower_capacity(&mut self, tier: Tier) {
        let Some(capacity) = self.plan.capacity[tier] else { return };
        let half = |bytes: u64| ByteCount((bytes / 2).max(limits::PAGE_BYTES));
        let mut lower = half(capacity.0);
        if let Some(old) = self.plan.packing.filter(|_| tier == Tier::Disk) {
            let grain = self.plan.grain.max(limits::PAGE_BYTES);
            // Now and then its files have another size then.
            let Some(new) = segment_files(half(old.capacity().0), grain, &mut self.rng) else { return };
            (self.plan.packing, lower) = (Some(new), new.usable());
        }
        self.plan.capacity[tier] = Some(lower);
        self.oracle.coverage.hit("boot_with_less_capacity");
    }

    /// Hands each row to its shard, and says which blocks rows vouch for.
    fn adopt_rows(&mut self, cores: &mut [Core]) -> Result<BTreeSet<BlockName>, Breach> {
        let (now, shard_count) = (self.clock(), cores.len() as u16);
        let mut vouched = BTreeSet::new();
        for row in self.catalog.rows.values() {
            let mut present = PerTier([false; 4]);
            for replica in &row.replicas {
                let name = BlockName { tier: replica.tier, id: row.key.id, generation: replica.generation };
                let block = self.storage.blocks.get(&name).filter(|block| block.is_found_at_boot());
                if let Some(block) = block.filter(|block| block.extent != replica.extent) {
                    return breach(Rule::Row, format!("names another place: {row:?} {block:?}"));
                }
                present[replica.tier] = block.is_some();
                if block.is_some() && !replica.sound {
                    self.oracle.coverage.hit("damaged_replica_of_an_earlier_start");
                }
                if present[replica.tier] {
                    vouched.insert(name);
                }
            }
            let shard = usize::from(row.key.id.shard(shard_count).0);
            let adopted = cores[shard].shard.adopt(now, row.clone(), present);
            let found = present.0.iter().any(|found| *found);
            let expired = row.expires_at.is_some_and(|end| end <= now.wall);
            let right = match adopted {
                Adopted::Expired => expired,
                Adopted::Live => found && !expired,
                Adopted::Lost => !found && !expired,
            };
            if !right {
                return breach(Rule::Row, format!("adopted as {adopted:?}: {row:?}"));
            }
        }
        Ok(vouched)
    }

    /// What drivers were doing at a crash happened, or half of it, or did not.
    fn leave_jobs(&mut self) {
        let mut half = Vec::new();
        for (_, job) in std::mem::take(&mut self.jobs) {
            match (self.rng.below(4), job) {
                (0..=1, job) => drop(self.job_outcome(&job, false)),
                (2, Job::Transfer(op)) if op.to.tier == Tier::Disk && !op.alone => half.push(op),
                _ => {}
            }
        }
        // Those that are in the middle of being written come after those that ended.
        for op in half {
            let lane = self.lane_of(&op);
            self.storage.half_write(&op, lane);
        }
        let detaching: Vec<BlockName> = self
            .storage
            .blocks
            .iter()
            .filter(|(_, block)| block.phase == Phase::Dropping)
            .map(|(name, _)| *name)
            .collect();
        for name in detaching {
            if self.rng.chance(500) {
                let shard = self.shard_of(name);
                self.storage.finish_detach(name, shard);
            }
        }
    }

    /// The server dies, with or without the machine.
    pub(super) fn crash(&mut self) -> Result<(), Breach> {
        self.power_loss = self.rng.chance(self.plan.power_loss_permille);
        self.trace.add(self.now, format_args!("crash, power loss: {}", self.power_loss));
        let coverage = &mut self.oracle.coverage;
        coverage.hit("crash");
        if self.power_loss {
            coverage.hit("power_loss");
        }
        if self.jobs.values().any(|job| matches!(job, Job::Transfer(_))) {
            coverage.hit("crash_with_copy_in_flight");
        }
        if self.jobs.values().any(|job| matches!(job, Job::Transfer(op) if is_relocation(op))) {
            coverage.hit("relocation_in_flight_at_crash");
        }
        self.note_apart_at_crash();
        let coverage = &mut self.oracle.coverage;
        if self.cores.iter().any(|core| !core.outbox.is_empty()) {
            coverage.hit("crash_with_effects_in_the_outbox");
        }
        let happened = self.rng.chance(500);
        if !self.catalog.batch.is_empty() {
            coverage.hit(if happened {
                "crash_with_transaction_that_happened"
            } else {
                "crash_with_transaction_that_did_not"
            });
        }
        self.leave_jobs();
        if self.catalog.crash(happened, self.power_loss, &mut self.rng) {
            self.oracle.coverage.hit("power_loss_undid_removals");
        }
        self.forget_batches();
        self.forget_streams()?;
        self.catalog_running = false;
        let wrong = self.storage.crash(self.power_loss, &mut self.rng);
        for id in wrong {
            if let Some(fact) = self.fact_of(id) {
                fact.damaged = true;
            }
        }
        self.forget_compaction();
        self.stop_ends();
        self.sessions_crash();
        self.oracle.crash();
        self.client.crash();
        self.works.clear();
        self.asks_open = 0;
        self.cores.clear();
        self.agenda.crash();
        let at = Monotonic(self.now.0 + self.rng.between(5, 3000) * MILLIS);
        self.agenda.add(at, Task::Boot);
        Ok(())
    }

    // ---- the end ----

    /// Clients stop, parts work again, time passes: nothing may be left over, and deleting everything gives all back.
    pub(super) fn quiesce(&mut self) -> Result<(), Breach> {
        self.plan.pacify();
        self.client.stopped = true;
        self.end_sessions();
        if self.plan.stream_permille > 0 {
            self.run_for(60 * SECONDS)?;
            self.streams_let_go();
        }
        let patience = self.plan.lease_ms_max.max(self.plan.allocation_timeout_ms) * MILLIS + 600 * SECONDS;
        self.run_for(patience)?;
        self.audit_let_go()?;
        self.audit_sessions_over()?;
        let looks = self.looks()?;
        self.count_endings(&looks);
        let waiting = self.anybody_waits();
        self.judge(|oracle, scene| oracle.judge_quiet(&looks, waiting, scene))?;
        self.audit_space_exactly()?;
        self.wish_for_the_dead()?;
        for round in 0.. {
            let keys: Vec<PayloadKey> =
                self.oracle.facts.values().filter(|fact| !fact.gone).map(|fact| fact.key).collect();
            for key in keys {
                self.ask(Request::Delete { key, force: round > 0, expected_version: None });
            }
            self.run_for(300 * SECONDS)?;
            self.close_lanes();
            self.run_for(300 * SECONDS)?;
            if self.looks()?.iter().all(|look| look.total == 0) && self.catalog.rows.is_empty() {
                break;
            }
            if round == 5 {
                return breach(Rule::Leak, format!("cannot be deleted: {:?}", self.catalog.rows.values()));
            }
        }
        self.judge(|oracle, scene| oracle.judge_quiet(&[], false, scene))?;
        self.audit_offers()?;
        self.audit_space_exactly()?;
        self.reclaim_budgets()
    }

    pub(super) fn run_for(&mut self, nanoseconds: u64) -> Result<(), Breach> {
        let end = Monotonic(self.now.0 + nanoseconds);
        while self.turn(end)? {}
        self.now = end;
        for (shard, core) in self.cores.iter().enumerate() {
            if !core.shard.is_quiet() && !core.shard.only_waits() {
                return breach(Rule::Leak, format!("shard {shard} does not come to rest"));
            }
        }
        self.audit_waiters()
    }

    fn looks(&mut self) -> Result<Vec<Look>, Breach> {
        let mut looks = Vec::new();
        for shard in 0..self.cores.len() {
            let look = self.look(shard)?;
            self.judge(|oracle, scene| oracle.judge_look(ShardIndex(shard as u16), &look, scene))?;
            looks.push(look);
        }
        Ok(looks)
    }

    fn count_endings(&mut self, looks: &[Look]) {
        let now = self.clock();
        let listed: BTreeSet<PayloadKey> =
            looks.iter().flat_map(|look| look.rows.iter().map(|(key, _)| *key)).collect();
        let ended: Vec<_> =
            self.oracle.facts.values().filter(|fact| !fact.gone && !listed.contains(&fact.key)).collect();
        let expired = ended.iter().filter(|fact| fact.expires_at.is_some_and(|end| end <= now.wall)).count();
        let timed_out = ended.iter().any(|fact| !fact.committed && fact.expires_at.is_none());
        if expired > 0 {
            self.oracle.coverage.hit("ttl_reclaimed");
        }
        if expired > limits::ITEMS_PER_TURN_MAX {
            self.oracle.coverage.hit("mass_expiry");
        }
        if timed_out {
            self.oracle.coverage.hit("allocation_timed_out");
        }
    }

    fn audit_space_exactly(&mut self) -> Result<(), Breach> {
        let (now, shard_count) = (self.clock(), self.shard_count());
        let Self { storage, catalog, plan, oracle, cores, .. } = self;
        let scene = Scene { now, storage, catalog, plan, shard_count };
        for (index, core) in cores.iter().enumerate() {
            oracle.audit_space(&core.shard, ShardIndex(index as u16), scene, true)?;
        }
        Ok(())
    }

    /// Every shard gives its spare back, and the arbiter can grant the whole of each tier.
    fn reclaim_budgets(&mut self) -> Result<(), Breach> {
        for tier in Tier::ALL {
            let Some(capacity) = self.plan.capacity[tier] else { continue };
            for shard in 0..self.cores.len() {
                let recall =
                    BudgetReply::Recall { tier, recall: RECALL_OWN, pressure: true, room: None, evict: None };
                self.step(shard, Event::Completion(Completion::Budget(recall)))?;
            }
            self.run_for(SECONDS)?;
            let held: u64 = self.cores.iter().map(|core| core.shard.budget_held()[tier].0).sum();
            if held != 0 || self.granted[tier] != 0 {
                return breach(
                    Rule::Leak,
                    format!("{held} bytes of {tier} are held, {} granted", self.granted[tier]),
                );
            }
            let (shard, op) = (ShardIndex(0), OpId { index: u32::MAX, generation: u32::MAX });
            let mut replies = Vec::new();
            let bytes = ByteCount(capacity.0 / limits::PAGE_BYTES * limits::PAGE_BYTES);
            self.arbiter.step(BudgetRequest::Ask { shard, op, tier, bytes }, &mut replies);
            if !matches!(replies.first(), Some((_, BudgetReply::Granted { .. }))) {
                return breach(Rule::Leak, format!("an empty {tier} cannot be granted: {replies:?}"));
            }
        }
        Ok(())
    }
}
