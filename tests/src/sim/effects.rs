//! What shards ask for is carried out, after a while.

use payload_types::effect::{
    BudgetRequest, CatalogChange, CatalogOp, Effect, ReplyTo, StorageAction, StorageOp,
};
use payload_types::event::{BudgetReply, CatalogAck, Completion, Event};
use payload_types::reply::{Reply, ReplyResult};
use payload_types::{Monotonic, PayloadId, ShardIndex, Tier};

use super::agenda::Task;
use super::canary::Canary;
use super::faults::*;
use super::oracle::{Breach, Rule, breach};
use super::storage::{BlockName, is_relocation};
use super::world::{Job, PROBE, World};

impl World {
    pub(super) fn execute(&mut self, shard: usize, effect: Effect) -> Result<(), Breach> {
        self.trace.add(self.now, format_args!("shard {shard} -> {effect:?}"));
        match effect {
            Effect::Reply { to, result } => self.reply(to, result),
            Effect::Storage(op) if op.action == StorageAction::Drop => self.begin_drop(shard, op),
            Effect::Storage(op) if op.action == StorageAction::Stay => self.stays(op.replica),
            Effect::Storage(op) => {
                match op.action {
                    StorageAction::Create => self.storage.begin_create(&op)?,
                    _ => self.storage.begin_use(&op)?,
                }
                if op.action == StorageAction::Sync {
                    self.oracle.coverage.hit("spill_fsync_of_unsynced_replica");
                }
                self.begin_job(op.replica.id, Job::Storage(op));
                Ok(())
            }
            Effect::Transfer(op) => {
                self.storage.begin_transfer(&op)?;
                if is_relocation(&op) {
                    self.moves(&op)?;
                }
                if op.alone {
                    self.apart_begins(&op)?;
                }
                let born_in_ram = self.fact_of(op.to.id).is_some_and(|fact| fact.tier == Tier::Ram);
                if op.to.tier == Tier::Ram && self.came_after_eviction(shard, op.op) {
                    self.oracle.coverage.hit("promote_evicted_others");
                }
                if op.to.tier == Tier::Ram && born_in_ram {
                    self.oracle.coverage.hit("segment_made_again_after_detach");
                }
                self.begin_job(op.to.id, Job::Transfer(op));
                Ok(())
            }
            Effect::Catalog(op) => self.submit_catalog(op),
            Effect::Slab(op) => self.slab_op(shard, op),
            Effect::Publish(publish) => self.shown(shard, publish),
            Effect::Scan(scan) => self.scan(shard, &scan),
            Effect::Revoke(revoke) => self.revoked(shard, revoke),
            Effect::Accepted { descriptor, .. } => self.slab_accepted(&descriptor),
            Effect::Budget(request) => {
                if matches!(request, BudgetRequest::Ask { .. }) {
                    self.oracle.coverage.hit("budget_asked");
                }
                if let BudgetRequest::Ask { op, tier, bytes, .. } = request
                    && self.strikes(Canary::MissingCharge, 300)
                {
                    let reply = BudgetReply::Granted { op, tier, bytes };
                    self.deliver_at(self.now, shard, Completion::Budget(reply), None);
                    return Ok(());
                }
                self.asks_open += u64::from(matches!(request, BudgetRequest::Ask { .. }));
                let delay = self.plan.hop_delay(&mut self.rng);
                let at = self.cores[shard].to_arbiter.arrival(self.now, delay);
                self.agenda.add(at, Task::Arbiter(request));
                Ok(())
            }
        }
    }

    /// When a reply of the arbiter reaches a shard: none overtakes.
    pub(super) fn budget_reply_arrival(&mut self, shard: usize, delay: u64) -> Monotonic {
        self.cores[shard].from_arbiter.arrival(self.now, delay)
    }

    pub(super) fn deliver_at(
        &mut self,
        at: Monotonic,
        shard: usize,
        completion: Completion,
        work: Option<PayloadId>,
    ) {
        self.agenda.add(at, Task::Deliver { shard, event: Event::Completion(completion), work });
    }

    pub(super) fn complete(&mut self, shard: ShardIndex, completion: Completion, work: Option<PayloadId>) {
        let at = Monotonic(self.now.0 + self.plan.hop_delay(&mut self.rng));
        self.deliver_at(at, usize::from(shard.0), completion, work);
    }

    fn reply(&mut self, to: ReplyTo, mut result: ReplyResult) -> Result<(), Breach> {
        if to.0 >= PROBE {
            if self.probed.replace(result).is_some() || to.0 != self.probe_last {
                return breach(Rule::Answers, format!("{to:?} was answered twice"));
            }
            return Ok(());
        }
        if self.strikes(Canary::LostReply, 50) {
            return Ok(());
        }
        if let Ok(Reply::Resolved(seen) | Reply::Promoted(seen)) = &mut result
            && self.strikes(Canary::VersionRegress, 50)
        {
            seen.version.0 -= 1;
        }
        if let Ok(Reply::ArenasSpilled(done)) = &mut result {
            self.spoil_stop(done);
        }
        let asked = self.oracle.pending.get(&to.0).map(|pending| pending.request.clone());
        self.slab_answered(asked.as_ref(), &result)?;
        let pending = self.judge(|oracle, scene| oracle.answered(to, &result, scene))?;
        if self.strikes(Canary::RepeatedReply, 50) {
            self.judge(|oracle, scene| oracle.answered(to, &result, scene))?;
        }
        self.client_reply(to, pending, result)
    }

    fn begin_job(&mut self, id: PayloadId, job: Job) {
        self.job_last += 1;
        self.jobs.insert(self.job_last, job);
        *self.works.entry(id).or_default() += 1;
        let at = Monotonic(self.now.0 + self.plan.driver_delay(&mut self.rng));
        self.agenda.add(at, Task::Job(self.job_last));
    }

    fn begin_drop(&mut self, shard: usize, op: StorageOp) -> Result<(), Breach> {
        let name = BlockName::from(op.replica);
        if self.oracle.is_leased(name, self.clock()) {
            return breach(Rule::LiveLease, format!("{name:?} is dropped while it is leased"));
        }
        let names_it = |row: &payload_types::PayloadRow| {
            row.key.id == name.id
                && row
                    .replicas
                    .iter()
                    .any(|replica| (replica.tier, replica.generation) == (name.tier, name.generation))
        };
        if let Some(row) = self.catalog.rows.values().find(|row| names_it(row)) {
            return breach(
                Rule::FreeBeforeDurable,
                format!("{name:?} is dropped, and the durable row names it: {row:?}"),
            );
        }
        let mut waiting = self.catalog.batch.iter().chain(&self.catalog.queue);
        let last = waiting.rfind(|change| match &change.change {
            CatalogChange::Put(row) => row.key.id == name.id,
            CatalogChange::Remove { key, .. } => key.id == name.id,
        });
        if let Some(CatalogChange::Put(row)) = last.map(|op| &op.change)
            && names_it(row)
        {
            return breach(
                Rule::FreeBeforeDurable,
                format!("{name:?} is dropped, and a row on its way names it: {row:?}"),
            );
        }
        self.audit_drop(name)?;
        self.storage.begin_drop(&op)?;
        if self.strikes(Canary::EarlyDetach, 1000) {
            let done =
                payload_types::event::StorageDone::Detached { tier: name.tier, generation: name.generation };
            self.deliver_at(self.now, shard, Completion::Storage(done), None);
        }
        let early = self.canary == Some(Canary::EarlyDetach);
        let delay = self.plan.driver_delay(&mut self.rng) + if early { 100 * MILLIS } else { 0 };
        self.agenda.add(Monotonic(self.now.0 + delay), Task::Detach { shard, name });
        Ok(())
    }

    fn submit_catalog(&mut self, mut op: CatalogOp) -> Result<(), Breach> {
        let id = match &mut op.change {
            CatalogChange::Put(row) => {
                if self.canary == Some(Canary::SalvagedAsSound) {
                    row.health = payload_types::Health::Good;
                    row.replicas.iter_mut().for_each(|replica| replica.sound = true);
                }
                self.judge(|oracle, scene| oracle.judge_row(row, scene))?;
                row.key.id
            }
            CatalogChange::Remove { key, .. } => {
                self.judge_removal(*key)?;
                key.id
            }
        };
        *self.works.entry(id).or_default() += 1;
        if self.canary == Some(Canary::AcknowledgementBeforeTransaction) {
            let ack = CatalogAck { op: op.op, result: Ok(()), sequence: 0 };
            self.complete(op.shard, Completion::Catalog(ack), None);
        }
        let queued = match op.batch {
            Some(mark) => self.batch_part(op, mark),
            None => {
                self.catalog.queue.push_back(op);
                true
            }
        };
        if queued {
            self.catalog_wake();
        }
        Ok(())
    }

    /// Something was queued for the writer.
    pub(super) fn catalog_wake(&mut self) {
        if !self.catalog_running {
            self.catalog_running = true;
            let at = Monotonic(self.now.0 + self.plan.hop_delay(&mut self.rng));
            self.agenda.add(at, Task::CatalogBegin);
        }
    }

    pub(super) fn catalog_begin(&mut self) {
        let batch_max = self.rng.between(1, 64) as usize;
        let splits = self.canary == Some(Canary::SplitBatch);
        self.catalog_running = self.catalog.begin(batch_max, splits);
        if self.catalog_running {
            if self.catalog.batch.len() >= 8 {
                self.oracle.coverage.hit("batch_of_many_changes");
            }
            let at = Monotonic(self.now.0 + self.plan.catalog_delay(&mut self.rng));
            self.agenda.add(at, Task::CatalogEnd);
        }
    }

    fn catalog_apply(&mut self) -> u64 {
        let mut batch = std::mem::take(&mut self.catalog.batch);
        for op in &mut batch {
            if let CatalogChange::Put(row) = &mut op.change {
                self.spoil_row(row);
                self.note_published(row);
            }
        }
        self.catalog.batch = batch;
        self.catalog.apply()
    }

    pub(super) fn catalog_end(&mut self) -> Result<(), Breach> {
        let mut sequence = 0;
        let result = if self.rng.chance(self.plan.catalog_fault_permille) {
            self.oracle.catalog_fault_last = self.now;
            self.oracle.coverage.hit("catalog_transaction_failed");
            Err("simulated: the database is locked".to_owned())
        } else {
            if !self.strikes(Canary::LostTransaction, 100) {
                sequence = self.catalog_apply();
            }
            Ok(())
        };
        self.trace.add(self.now, format_args!("catalog: {} changes {result:?}", self.catalog.batch.len()));
        let delay = self.plan.hop_delay(&mut self.rng);
        let batch = std::mem::take(&mut self.catalog.batch);
        if result.is_ok() {
            self.transaction_acknowledged(&batch, sequence);
        }
        if matches!(self.canary, Some(Canary::LateAsDurable | Canary::HalfRemoval)) {
            sequence = 0;
        }
        for op in batch {
            let id = match &op.change {
                CatalogChange::Put(row) => row.key.id,
                CatalogChange::Remove { key, .. } => key.id,
            };
            if self.canary == Some(Canary::AcknowledgementBeforeTransaction) {
                *self.works.entry(id).or_default() -= 1;
                continue;
            }
            let shard = usize::from(op.shard.0);
            let at = self.cores[shard].from_catalog.arrival(self.now, delay);
            let ack = CatalogAck { op: op.op, result: result.clone(), sequence };
            self.deliver_at(at, shard, Completion::Catalog(ack), Some(id));
        }
        let outcomes = self.catalog.records_end();
        self.catalog_begin();
        if outcomes.is_empty() && self.plan.stream_permille == 0 {
            Ok(())
        } else {
            self.records_end(outcomes)
        }
    }
}
