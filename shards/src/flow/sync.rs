//! Spill with `fsync` of a replica that was written without: it is brought to stable storage where it lies.

use payload_ledger::SlotKey;
use payload_types::effect::{Effect, StorageAction, StorageOp};
use payload_types::event::{DriverError, DriverErrorKind};
use payload_types::{ErrorKind, OpId, PayloadError, PayloadKey, Tier};

use crate::flow::commit::data_loss;
use crate::flow::copy::Progress;
use crate::op::{Class, Kind, Op, op_id, slot_key};
use crate::parked::Caller;
use crate::shard::{Shard, Step};

impl Shard {
    pub(crate) fn start_sync(
        &mut self,
        step: &mut Step<'_>,
        slot: SlotKey,
        tier: Tier,
        caller: &Caller,
    ) -> Result<Progress, PayloadError> {
        let payload = self.table.at(slot);
        if payload.replicas[tier].is_some_and(|replica| replica.sync_failed) {
            return Err(PayloadError::precondition(format!(
                "payload {} has a file on {tier} that cannot be proven to be on stable storage: it was written without fsync before a restart, or its fdatasync failed; promote the payload and spill it with fsync again, which writes a new file",
                payload.key.id
            )));
        }
        let class = if caller.reply_to.is_some() { Class::Request } else { Class::Upkeep };
        self.check_slot(class)?;
        let replica = self.table.replica_ref(slot, tier).expect("the caller saw the replica");
        let op = self.ops.start(Op::new(slot, class, Kind::Sync { replica }));
        self.table.links(slot).op = Some(op);
        let shard = self.config.shard;
        step.out.push(Effect::Storage(StorageOp {
            shard,
            op: op_id(op),
            replica,
            action: StorageAction::Sync,
        }));
        Ok(Progress::Waits(Some(op)))
    }

    pub(crate) fn sync_done(&mut self, _step: &mut Step<'_>, id: OpId, result: Result<(), DriverError>) {
        let Some(Op { payload, kind: Kind::Sync { replica }, .. }) = self.ops.get(slot_key(id)) else {
            return;
        };
        let (slot, tier) = (*payload, replica.tier);
        let current =
            self.table.links(slot).replicas[tier].as_mut().expect("a replica stays while it is synced");
        current.synced = result.is_ok();
        current.sync_failed = result.as_ref().is_err_and(|error| error.kind == DriverErrorKind::SyncFailed);
        let key = self.table.at(slot).key;
        let failure = result.err().map(|error| sync_error(key, &error));
        self.end_op(slot_key(id), failure.as_ref());
    }
}

fn sync_error(key: PayloadKey, error: &DriverError) -> PayloadError {
    let message = format!("bringing its file to stable storage failed: {}", error.message);
    match error.kind {
        DriverErrorKind::Full | DriverErrorKind::Io => PayloadError::new(
            ErrorKind::Unavailable,
            format!("payload {key}: {message}; try again", key = key.id),
        ),
        DriverErrorKind::Missing
        | DriverErrorKind::Truncated
        | DriverErrorKind::Corrupt
        | DriverErrorKind::DeviceLost
        | DriverErrorKind::SyncFailed => data_loss(key, &message),
    }
}
