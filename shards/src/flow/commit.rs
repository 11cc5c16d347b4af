//! CommitPayload: the driver seals the bytes, the catalog stores the row, then it is acknowledged (DESIGN §7).
//!
//! A part of a batch goes the same way: its row is marked, and the catalog writer stores all rows of the batch in one
//! transaction once it has them. When another part is refused the writer says so, and this payload is put back to ALLOCATED.

use payload_ledger::SlotKey;
use payload_types::effect::{CatalogChange, CatalogOp, Effect, ReplyTo, StorageAction, StorageOp};
use payload_types::event::{DriverError, DriverErrorKind};
use payload_types::reply::Reply;
use payload_types::request::Request;
use payload_types::slab::SlabAction;
use payload_types::{
    BatchPart, Checksum, ErrorKind, Health, OpId, PayloadError, PayloadKey, PayloadState, SlabId, Tier,
};

use crate::op::{self, Class, Kind, Op, op_id, slot_key};
use crate::parked::Caller;
use crate::shard::{Answer, Shard, Step};

impl Shard {
    pub(crate) fn commit(
        &mut self,
        step: &mut Step<'_>,
        caller: Caller,
        key: PayloadKey,
        checksum: Option<Checksum>,
        batch: Option<BatchPart>,
    ) -> Answer {
        let slot = match self.find(step.now, key) {
            Ok(slot) => slot,
            Err(error) => return Some(Err(error)),
        };
        let payload = self.table.at(slot);
        match payload.state {
            PayloadState::Allocated => {}
            // A part never waits for a commit of others: two batches that wait for one another would wait for ever.
            PayloadState::Committing if batch.is_some() => {
                return Some(Err(PayloadError::precondition(format!(
                    "payload {} is being committed by another call; resolve it when that has ended, and send the batch without it if it is committed",
                    key.id
                ))));
            }
            PayloadState::Committing => {
                let joined = payload.op;
                return self.park(slot, joined, caller, Request::Commit { key, checksum, batch });
            }
            _ if caller.joined => return Some(Ok(Reply::Committed(self.table.shown(slot, true)))),
            state => {
                return Some(Err(PayloadError::precondition(format!(
                    "payload {} is {state}: it was committed before, and is committed once",
                    key.id
                ))));
            }
        }
        if payload.health == Health::Damaged {
            return Some(Err(data_loss(
                key,
                "writing its file to stable storage failed; allocate and write it anew",
            )));
        }
        let class = if batch.is_some() { Class::Batch } else { Class::Request };
        if let Err(error) = self.check_slot(class) {
            return Some(Err(error));
        }
        let tier = payload.tier();
        let replica = self.table.replica_ref(slot, tier).expect("an allocated payload has its replica");
        if (replica.block.is_some() || tier == Tier::Gpu)
            && let Err(error) = self.check_stop()
        {
            return Some(Err(error));
        }
        let reply_to = caller.reply_to.expect("only clients commit");
        let kind = Kind::Commit { reply_to, checksum, batch, step: op::Step::Driver };
        let op = self.ops.start(Op::new(slot, class, kind));
        let payload = self.table.links(slot);
        payload.op = Some(op);
        payload.set_state(PayloadState::Committing);
        if let Some(block) = replica.block {
            self.commit_in_slab(step, op, block.slab);
            return None;
        }
        let action = StorageAction::Seal { sync: self.syncs(tier) };
        step.out.push(Effect::Storage(StorageOp {
            shard: self.config.shard,
            op: op_id(op),
            replica,
            action,
        }));
        None
    }

    /// What lies in a slab has no file to be sealed: it is ACCEPTED at once, or when the kernel has made its memory immutable.
    fn commit_in_slab(&mut self, step: &mut Step<'_>, op: SlotKey, slab: SlabId) {
        if self.arenas.is_isolated(slab) {
            let session = self.arenas.writer_of(slab);
            self.ask_slab(step, op, session, slab, SlabAction::Freeze);
        } else {
            self.commit_sealed(step, op_id(op), Ok(()));
        }
    }

    /// Somebody can still write to memory that was to be made immutable.
    pub(crate) fn commit_still_writable(&mut self, step: &mut Step<'_>, id: OpId) {
        let Some(Op { payload, kind: Kind::Commit { .. }, .. }) = self.ops.get(slot_key(id)) else { return };
        let id_of = self.table.at(*payload).key.id;
        let error = PayloadError::precondition(format!(
            "payload {id_of} is to be made immutable, and a writable mapping of it exists: unmap it, then commit again; it is still ALLOCATED"
        ));
        self.commit_failed(step, id, error);
    }

    /// A Commit's payload in a slab can be leased from here on, before its row is stored.
    fn accept(&mut self, step: &mut Step<'_>, slot: SlotKey, to: ReplyTo) {
        self.table.update(slot, |payload| {
            payload.accepted = true;
            payload.version = payload.version.next();
        });
        let descriptor = self.table.shown(slot, true);
        step.out.push(Effect::Accepted { to, descriptor });
    }

    /// True when what is written to `tier` is brought to stable storage unasked.
    pub(crate) fn syncs(&self, tier: Tier) -> bool {
        // A store says that it has an object once it is safe there.
        tier == Tier::Object || tier == Tier::Disk && self.config.disk_fsync
    }

    pub(crate) fn commit_sealed(&mut self, step: &mut Step<'_>, id: OpId, result: Result<(), DriverError>) {
        let Some(Op { payload, kind: Kind::Commit { checksum, batch, step: at, reply_to }, .. }) =
            self.ops.get_mut(slot_key(id))
        else {
            return;
        };
        let (slot, checksum, batch, reply_to) = (*payload, *checksum, *batch, *reply_to);
        if let Err(error) = result {
            let key = self.table.at(slot).key;
            let refusal = seal_error(key, &error);
            if refusal.kind == ErrorKind::DataLoss {
                self.table.links(slot).health = Health::Damaged;
            }
            self.commit_failed(step, id, refusal);
            return;
        }
        *at = op::Step::Catalog;
        let tier = self.table.at(slot).tier();
        let synced = self.syncs(tier);
        let epoch = self.config.epoch;
        let payload = self.table.links(slot);
        payload.set_checksum(checksum);
        payload.replicas[tier].as_mut().expect("the sealed replica").synced = synced;
        // A part of a batch is there with the others, or not at all.
        if payload.in_arena && batch.is_none() {
            self.accept(step, slot, reply_to);
        }
        let payload = self.table.at(slot);
        let version = if payload.accepted { payload.version } else { payload.version.next() };
        let row = payload.row(epoch, payload.settled_state(), version, payload.replica_rows());
        let change = CatalogChange::Put(Box::new(row));
        step.out.push(Effect::Catalog(CatalogOp { shard: self.config.shard, op: id, change, batch }));
    }

    /// Hands a change to the catalog writer on behalf of `op`.
    pub(crate) fn store(&mut self, step: &mut Step<'_>, op: OpId, change: CatalogChange) {
        step.out.push(Effect::Catalog(CatalogOp { shard: self.config.shard, op, change, batch: None }));
    }

    pub(crate) fn commit_stored(&mut self, step: &mut Step<'_>, id: OpId, result: Result<(), String>) {
        let Some(Op { payload, kind: Kind::Commit { reply_to, .. }, .. }) = self.ops.get(slot_key(id)) else {
            return;
        };
        let (slot, reply_to) = (*payload, *reply_to);
        if let Err(reason) = result {
            self.table.links(slot).set_checksum(None);
            self.commit_failed(step, id, unavailable(self.table.at(slot).key, "committed", &reason));
            return;
        }
        self.table.update(slot, |payload| {
            payload.set_state(payload.settled_state());
            if !std::mem::take(&mut payload.accepted) {
                payload.version = payload.version.next();
            }
            payload.stored = true;
        });
        self.arm_payload_timer(step.now, slot);
        self.end_op(slot_key(id), None);
        step.out.reply(reply_to, Ok(Reply::Committed(self.table.shown(slot, true))));
    }

    /// Another node has a row of this id: nothing was stored, and repeating the call will not help.
    pub(crate) fn commit_claimed(&mut self, step: &mut Step<'_>, id: OpId, reason: String) {
        if let Some(Op { payload, .. }) = self.ops.get(slot_key(id)) {
            let slot = *payload;
            self.table.links(slot).set_checksum(None);
        }
        self.commit_failed(step, id, PayloadError::precondition(reason));
    }

    /// Another part of the batch was refused: nothing was stored. Commits that joined this one are made by themselves.
    pub(crate) fn commit_put_back(&mut self, step: &mut Step<'_>, id: OpId) {
        let Some(Op { payload, kind: Kind::Commit { reply_to, .. }, .. }) = self.ops.get(slot_key(id)) else {
            return;
        };
        let (slot, reply_to) = (*payload, *reply_to);
        let payload = self.table.links(slot);
        payload.set_checksum(None);
        payload.set_state(PayloadState::Allocated);
        let message = format!(
            "payload {} was not committed, because another one of its batch was refused; it is still ALLOCATED",
            payload.key.id
        );
        self.arm_payload_timer(step.now, slot);
        self.end_op(slot_key(id), None);
        step.out.reply(reply_to, Err(PayloadError::new(ErrorKind::LeaseConflict, message)));
    }

    fn commit_failed(&mut self, step: &mut Step<'_>, id: OpId, error: PayloadError) {
        let Some(Op { payload, kind: Kind::Commit { reply_to, .. }, .. }) = self.ops.get(slot_key(id)) else {
            return;
        };
        let (slot, reply_to) = (*payload, *reply_to);
        self.table.update(slot, |payload| {
            payload.set_state(PayloadState::Allocated);
            // It was shown as ACTIVE: leases that were granted keep what they name.
            if std::mem::take(&mut payload.accepted) {
                payload.version = payload.version.next();
            }
        });
        self.arm_payload_timer(step.now, slot);
        self.end_op(slot_key(id), Some(&error));
        step.out.reply(reply_to, Err(error));
    }
}

/// DATA_LOSS about a payload.
pub(crate) fn data_loss(key: PayloadKey, what: &str) -> PayloadError {
    PayloadError::new(ErrorKind::DataLoss, format!("payload {}: {what}", key.id))
}

/// UNAVAILABLE because of the catalog.
pub(crate) fn unavailable(key: PayloadKey, asked: &str, reason: &str) -> PayloadError {
    let message = format!(
        "payload {} could not be {asked}: the catalog did not store it ({reason}); try again",
        key.id
    );
    PayloadError::new(ErrorKind::Unavailable, message)
}

fn seal_error(key: PayloadKey, error: &DriverError) -> PayloadError {
    let (kind, advice) = match error.kind {
        DriverErrorKind::Missing | DriverErrorKind::Truncated => {
            (ErrorKind::FailedPrecondition, "it is still ALLOCATED; write it at full size and commit again")
        }
        DriverErrorKind::SyncFailed | DriverErrorKind::Corrupt | DriverErrorKind::DeviceLost => {
            (ErrorKind::DataLoss, "allocate and write it anew")
        }
        DriverErrorKind::Full | DriverErrorKind::Io => {
            (ErrorKind::Unavailable, "it is still ALLOCATED; try again")
        }
    };
    PayloadError::new(kind, format!("payload {} could not be committed: {}; {advice}", key.id, error.message))
}
