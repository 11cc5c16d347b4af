//! Compaction: the disk store asks for a replica to be moved to another segment file, so that it can recycle the one it
//! lies in.

use payload_types::OpId;
use payload_types::effect::{Effect, ReplicaRef, StorageAction, StorageOp};

use crate::shard::{Shard, Step};

impl Shard {
    /// Follows the wish of the disk store, or says that it cannot be followed now.
    pub(crate) fn relocate(&mut self, step: &mut Step<'_>, replica: ReplicaRef) {
        let (shard, op) = (self.config.shard, OpId { index: u32::MAX, generation: 0 });
        step.out.push(Effect::Storage(StorageOp { shard, op, replica, action: StorageAction::Stay }));
    }
}
