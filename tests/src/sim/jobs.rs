//! How the simulated drivers end what they were given: with success, with a fault of the plan, or with what somebody
//! did to the storage behind the server's back.

use payload_types::effect::{StorageAction, StorageOp, TransferOp};
use payload_types::event::{Completion, Copied, DriverErrorKind, StorageDone, TransferDone, TransferError};
use payload_types::request::Request;
use payload_types::scrub::Scrub;
use payload_types::{Monotonic, PayloadId, ShardIndex, Tier};

use super::agenda::Task;
use super::canary::Canary;
use super::faults::{MILLIS, SECONDS, driver_error};
use super::oracle::{Breach, Fact};
use super::storage::{Block, BlockName, Phase, is_relocation};
use super::world::{Job, NAMESPACES, World};

impl World {
    pub(super) fn fact_of(&mut self, id: PayloadId) -> Option<&mut Fact> {
        let key = NAMESPACES
            .map(|namespace| payload_types::PayloadKey { namespace, id })
            .into_iter()
            .find(|key| self.oracle.facts.contains_key(key))?;
        self.oracle.facts.get_mut(&key)
    }

    pub(super) fn finish_job(&mut self, number: u64) -> Result<(), Breach> {
        let job = self.jobs.remove(&number).expect("a job ends once");
        let completion = self.job_outcome(&job, true);
        self.trace.add(self.now, format_args!("driver: {completion:?}"));
        match job {
            Job::Storage(op) => self.complete(op.shard, completion, Some(op.replica.id)),
            Job::Transfer(op) => {
                let failed = matches!(&completion, Completion::Transfer(done) if done.result.is_err());
                if self.books.evicting.remove(&op.from.id) && failed {
                    self.oracle.coverage.hit("evict_failed");
                }
                if is_relocation(&op) {
                    self.move_ended(&op, failed);
                }
                let name = BlockName::from(op.from);
                if self.canary == Some(Canary::LeaseSpillRace) && self.oracle.is_leased(name, self.clock()) {
                    self.storage.finish_detach(name, op.shard);
                }
                self.complete(op.shard, completion, Some(op.to.id));
            }
        }
        Ok(())
    }

    /// What became of a job. Faults are injected only where somebody will hear of them.
    pub(super) fn job_outcome(&mut self, job: &Job, heard: bool) -> Completion {
        // So few replicas are synced later that most runs would never see one fail.
        let syncs = matches!(job, Job::Storage(op) if op.action == StorageAction::Sync);
        let permille = self.plan.driver_fault_permille * if syncs { 4 } else { 1 };
        let fault = heard && self.rng.chance(permille);
        if fault {
            self.oracle.driver_fault_last = self.now;
        }
        match job {
            Job::Storage(op) => Completion::Storage(self.storage_outcome(op, fault)),
            Job::Transfer(op) => {
                Completion::Transfer(TransferDone { op: op.op, result: self.transfer_outcome(op, fault) })
            }
        }
    }

    fn storage_outcome(&mut self, op: &StorageOp, fault: bool) -> StorageDone {
        let kinds: &[DriverErrorKind] = match op.action {
            StorageAction::Create => &[DriverErrorKind::Full, DriverErrorKind::Io],
            StorageAction::Seal { sync: true } | StorageAction::Sync => {
                &[DriverErrorKind::Io, DriverErrorKind::SyncFailed, DriverErrorKind::SyncFailed]
            }
            _ => &[DriverErrorKind::Io],
        };
        let fault = fault.then(|| self.rng.pick(kinds));
        let skipped = self.strikes_sync();
        let (name, result) = match op.action {
            StorageAction::Create => ("create_failed", self.storage.finish_create(op, fault)),
            StorageAction::Seal { sync } => {
                ("seal_failed", self.storage.finish_use(op.replica, true, sync && !skipped, fault))
            }
            StorageAction::Sync => {
                ("sync_failed", self.storage.finish_use(op.replica, false, !skipped, fault))
            }
            StorageAction::Verify { expected, .. } => {
                ("verify_failed", self.storage.finish_verify(op.replica, expected, fault))
            }
            StorageAction::Drop | StorageAction::Stay => unreachable!("neither is a job"),
        };
        if result.is_err() {
            self.oracle.coverage.hit(name);
        }
        // What a failed sync leaves is unknown: such a payload may be given up.
        if result == Err(DriverErrorKind::SyncFailed)
            && let Some(fact) = self.fact_of(op.replica.id)
        {
            fact.damaged = true;
        }
        let (op, action, result) = (op.op, op.action, result.map_err(driver_error));
        match action {
            StorageAction::Create => StorageDone::Created { op, result },
            StorageAction::Seal { .. } => StorageDone::Sealed { op, result },
            StorageAction::Verify { .. } => StorageDone::Verified { op, result },
            StorageAction::Sync | StorageAction::Drop | StorageAction::Stay => {
                StorageDone::Synced { op, result }
            }
        }
    }

    fn transfer_outcome(&mut self, op: &TransferOp, fault: bool) -> Result<Copied, TransferError> {
        let fault = fault.then(|| match self.rng.below(5) {
            0 => TransferError::Source(driver_error(DriverErrorKind::Io)),
            1 => TransferError::Destination(driver_error(DriverErrorKind::Io)),
            2 if op.to.tier == Tier::Disk => {
                TransferError::Destination(driver_error(DriverErrorKind::SyncFailed))
            }
            _ => TransferError::Destination(driver_error(DriverErrorKind::Full)),
        });
        if matches!(fault, Some(TransferError::Source(_)))
            && let Some(fact) = self.fact_of(op.from.id)
        {
            fact.damaged = true;
        }
        let skipped = self.strikes_sync();
        let lane = self.lane_of(op);
        // Now and then the file system has no room for a whole segment file.
        let lane = (is_relocation(op) || !self.rng.chance(15)).then_some(lane);
        let mut result = self.storage.finish_transfer(op, lane, fault);
        if skipped && let Some(made) = self.storage.blocks.get_mut(&op.to.into()) {
            made.synced = false;
        }
        if op.salvage && result.is_ok() {
            self.oracle.coverage.hit("damaged_replica_moved");
        }
        match &mut result {
            Ok(Copied { extent: Some(_), .. }) => self.oracle.coverage.hit("packed"),
            Ok(_) if op.alone => self.apart_ended(op),
            Ok(_) if op.to.tier == Tier::Disk && self.plan.packs(op.to.size) => {
                self.oracle.coverage.hit("packed_without_a_segment_file");
            }
            Err(TransferError::Destination(error))
                if error.kind == DriverErrorKind::SyncFailed && !op.alone =>
            {
                self.oracle.coverage.hit("packed_sync_failed");
            }
            _ => {}
        }
        match &result {
            Ok(_) if self.canary == Some(Canary::WrongBytes) => {
                self.storage.blocks.get_mut(&op.to.into()).expect("just made").content ^= 1;
            }
            Ok(_) => {}
            Err(TransferError::Source(_)) => self.oracle.coverage.hit("copy_source_failed"),
            Err(TransferError::Destination(_)) => self.oracle.coverage.hit("copy_destination_failed"),
        }
        result
    }

    fn strikes_sync(&mut self) -> bool {
        Canary::strikes(self.canary, Canary::SkippedSync, 500, &mut self.rng)
    }

    pub(super) fn finish_detach(&mut self, shard: usize, name: BlockName) -> Result<(), Breach> {
        let packed = self.storage.finish_detach(name, ShardIndex(shard as u16));
        if self.canary != Some(Canary::EarlyDetach) {
            let done = StorageDone::Detached { tier: name.tier, generation: name.generation };
            self.complete_in_order(shard, done);
        }
        if self.canary == Some(Canary::EarlyFree) && self.storage.blocks[&name].mapped_until() > self.now {
            let done = StorageDone::Freed { tier: name.tier, generation: name.generation };
            self.complete_in_order(shard, done);
            return Ok(());
        }
        if packed {
            if self.canary == Some(Canary::PackedFreedEarly) {
                let done = StorageDone::Freed { tier: name.tier, generation: name.generation };
                self.complete_in_order(shard, done);
            }
            // It is free when its file is recycled.
            self.compact_soon();
            return Ok(());
        }
        let at = Monotonic(self.now.0 + self.plan.driver_delay(&mut self.rng));
        self.agenda.add(at, Task::Free { shard, name, detached: self.now });
        Ok(())
    }

    pub(super) fn finish_free(&mut self, shard: usize, name: BlockName, detached: Monotonic) {
        match self.storage.free(name, self.now) {
            Ok(()) => {
                if self.now.0 > detached.0 + SECONDS {
                    self.oracle.coverage.hit("freed_long_after_detached");
                }
                let done = StorageDone::Freed { tier: name.tier, generation: name.generation };
                self.complete_in_order(shard, done);
            }
            Err(until) => {
                let at = Monotonic(until.0 + self.rng.between(0, 300) * MILLIS);
                self.agenda.add(at, Task::Free { shard, name, detached });
            }
        }
    }

    /// Both ends of a Drop come from one driver thread: the second never overtakes the first. The longest hop is the
    /// delay of all of them.
    pub(super) fn complete_in_order(&mut self, shard: usize, done: StorageDone) {
        let at = Monotonic(self.now.0 + 2 * MILLIS);
        self.agenda.add(
            at,
            Task::Deliver {
                shard,
                event: payload_types::event::Event::Completion(Completion::Storage(done)),
                work: None,
            },
        );
    }

    /// Somebody damages a replica behind the server's back: a hostile client, a bad disk.
    pub(super) fn damage_something(&mut self) {
        use super::storage::Damage;
        // Files with a copy in memory, mostly, where files come and go; and somebody looks at them at once.
        let in_memory = |name: &BlockName| {
            let segment = self.storage.named_segment(name.id).map(|name| &self.storage.blocks[&name]);
            name.tier == Tier::Disk && segment.is_some_and(Block::is_intact)
        };
        let twins = self.plan.churn && self.rng.chance(700);
        let ready: Vec<BlockName> = self
            .storage
            .blocks
            .iter()
            .filter(|(_, block)| block.phase == Phase::Ready && block.place.is_none())
            .map(|(name, _)| *name)
            .filter(|name| !twins || in_memory(name))
            .collect();
        if ready.is_empty() {
            return;
        }
        let name = self.rng.pick(&ready);
        if self.fact_of(name.id).is_none() {
            return; // Nobody knows of it yet.
        }
        let damage = self.rng.pick(&[Damage::Corrupt, Damage::Truncated, Damage::Missing]);
        let block = self.storage.blocks.get_mut(&name).expect("just listed");
        if block.damage != Damage::None {
            return;
        }
        // Nobody shortens or removes a segment file; its pages may rot.
        let damage = if block.extent.is_some() { Damage::Corrupt } else { damage };
        block.damage = damage;
        if damage == Damage::Corrupt {
            block.content ^= 0xBAD;
        }
        self.trace.add(self.now, format_args!("{name:?} is {damage:?} from now on"));
        if let Some(fact) = self.fact_of(name.id) {
            fact.damaged = true;
            let key = fact.key;
            if twins {
                self.ask(Request::Scrub(Scrub { key, tier: None, bytes_per_second: 0, seen: Vec::new() }));
            }
        }
        debug_assert!(matches!(name.tier, Tier::Ram | Tier::Disk));
    }
}
