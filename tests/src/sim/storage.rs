//! What the node's storage really holds: segments and files whose bytes are an identity token.
//!
//! Called by the world when an op is handed out (`begin_*`: is it legal?) and when it ends (`finish_*`: what became of
//! it?), and by the oracle to compare what shards say with what is there.
//!
//! ```text
//!   Create -> Creating -> Ready -> (Seal: sealed) -> Drop: Dropping -> Detached (no name) -> gone once nobody maps it
//!   Transfer -> Creating -> Ready and sealed
//! ```
//!
//! RAM is lost with power; a file survives it when it was synced, else by chance. A failed sync may have dropped dirty
//! pages: a later one that succeeds proves nothing.

use std::collections::{BTreeMap, BTreeSet};

use payload_types::effect::{ReplicaRef, StorageOp, TransferOp};
use payload_types::event::{DriverErrorKind, TransferError};
use payload_types::{ByteCount, Checksum, Generation, Monotonic, PayloadId, ShardIndex, Tier};

use super::faults::{Rng, driver_error};
use super::oracle::{Breach, Rule, breach};

/// What names a block.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct BlockName {
    pub(super) tier: Tier,
    pub(super) id: PayloadId,
    pub(super) generation: Generation,
}

impl From<ReplicaRef> for BlockName {
    fn from(replica: ReplicaRef) -> Self {
        Self { tier: replica.tier, id: replica.id, generation: replica.generation }
    }
}

/// Where a block is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// Being made: a Create or a Transfer is under way.
    Creating,
    /// Has its name.
    Ready,
    /// A Drop was handed out.
    Dropping,
    /// Its name is gone; somebody may still map it.
    Detached,
}

/// What happened to a block behind the server's back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Damage {
    /// Nothing.
    None,
    /// Other bytes.
    Corrupt,
    /// Shorter than it should be.
    Truncated,
    /// Removed.
    Missing,
}

/// One replica's storage.
#[derive(Clone, Debug)]
pub(super) struct Block {
    pub(super) size: ByteCount,
    /// Stands for the bytes.
    pub(super) content: u64,
    pub(super) phase: Phase,
    pub(super) sealed: bool,
    pub(super) synced: bool,
    sync_broken: bool,
    pub(super) damage: Damage,
    /// Ops under way that use it.
    pub(super) jobs: u32,
    /// Who has it mapped, and until when.
    pub(super) readers: BTreeMap<u64, Monotonic>,
}

impl Block {
    fn new(size: ByteCount) -> Self {
        Self {
            size,
            content: 0,
            phase: Phase::Creating,
            sealed: false,
            synced: false,
            sync_broken: false,
            damage: Damage::None,
            jobs: 0,
            readers: BTreeMap::new(),
        }
    }

    /// True when a reader who opens it by name finds the bytes that were put there.
    pub(super) fn is_intact(&self) -> bool {
        self.phase == Phase::Ready && self.damage == Damage::None
    }

    /// True when boot finds it: right name, right size.
    pub(super) fn is_found_at_boot(&self) -> bool {
        self.phase == Phase::Ready && matches!(self.damage, Damage::None | Damage::Corrupt)
    }

    /// When the last mapping ends.
    pub(super) fn mapped_until(&self) -> Monotonic {
        self.readers.values().copied().max().unwrap_or_default()
    }

    fn natural_error(&self) -> Option<DriverErrorKind> {
        match self.damage {
            Damage::None | Damage::Corrupt => None,
            Damage::Truncated => Some(DriverErrorKind::Truncated),
            Damage::Missing => Some(DriverErrorKind::Missing),
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Storage {
    pub(super) blocks: BTreeMap<BlockName, Block>,
}

impl Storage {
    /// The named segment of `id`, complete or being made.
    pub(super) fn named_segment(&self, id: PayloadId) -> Option<BlockName> {
        let low = BlockName { tier: Tier::Ram, id, generation: Generation(0) };
        let high = BlockName { generation: Generation(u64::MAX), ..low };
        self.blocks.range(low..=high).find(|(_, block)| block.phase != Phase::Detached).map(|(name, _)| *name)
    }

    fn begin_block(&mut self, replica: ReplicaRef) -> Result<(), Breach> {
        let name = BlockName::from(replica);
        if self.blocks.contains_key(&name) {
            return breach(Rule::SegmentName, format!("{name:?} is made a second time"));
        }
        if replica.tier == Tier::Ram
            && let Some(other) = self.named_segment(replica.id)
        {
            return breach(Rule::SegmentName, format!("{name:?} is made while {other:?} has the name"));
        }
        self.blocks.insert(name, Block::new(replica.size));
        Ok(())
    }

    fn live(&mut self, replica: ReplicaRef, what: &str) -> Result<&mut Block, Breach> {
        let name = BlockName::from(replica);
        match self.blocks.get_mut(&name) {
            Some(block) if block.phase == Phase::Ready && block.size == replica.size => Ok(block),
            Some(block) => breach(Rule::DropInUse, format!("{what} of {name:?}, which is {block:?}")),
            None => breach(Rule::DropInUse, format!("{what} of {name:?}, which does not exist")),
        }
    }

    pub(super) fn begin_create(&mut self, op: &StorageOp) -> Result<(), Breach> {
        self.begin_block(op.replica)
    }

    /// Seal or Sync is handed out.
    pub(super) fn begin_use(&mut self, op: &StorageOp) -> Result<(), Breach> {
        self.live(op.replica, "Seal or Sync")?.jobs += 1;
        Ok(())
    }

    /// Drop is handed out; the caller has checked leases and the catalog.
    pub(super) fn begin_drop(&mut self, op: &StorageOp) -> Result<(), Breach> {
        let block = self.live(op.replica, "Drop")?;
        if block.jobs > 0 {
            return breach(
                Rule::DropInUse,
                format!("{:?} is dropped while {} ops use it", op.replica, block.jobs),
            );
        }
        block.phase = Phase::Dropping;
        Ok(())
    }

    pub(super) fn begin_transfer(&mut self, op: &TransferOp) -> Result<(), Breach> {
        if op.from.id != op.to.id || op.from.size != op.to.size || op.from.tier == op.to.tier {
            return breach(Rule::DropInUse, format!("a copy that makes no sense: {op:?}"));
        }
        let source = self.live(op.from, "copy")?;
        if !source.sealed {
            return breach(Rule::DropInUse, format!("{:?} is copied before it was sealed", op.from));
        }
        source.jobs += 1;
        self.begin_block(op.to)
    }

    pub(super) fn finish_create(
        &mut self,
        op: &StorageOp,
        fault: Option<DriverErrorKind>,
    ) -> Result<(), DriverErrorKind> {
        let name = BlockName::from(op.replica);
        if let Some(kind) = fault {
            self.blocks.remove(&name);
            return Err(kind);
        }
        let block = self.blocks.get_mut(&name).expect("it was begun");
        block.phase = Phase::Ready;
        Ok(())
    }

    /// Seal (`seal`), or Sync, or both.
    pub(super) fn finish_use(
        &mut self,
        replica: ReplicaRef,
        seal: bool,
        sync: bool,
        fault: Option<DriverErrorKind>,
    ) -> Result<(), DriverErrorKind> {
        let block = self.blocks.get_mut(&BlockName::from(replica)).expect("an op holds it");
        block.jobs -= 1;
        if let Some(kind) = block.natural_error() {
            return Err(kind);
        }
        if let Some(kind) = fault {
            block.sync_broken |= kind == DriverErrorKind::SyncFailed;
            return Err(kind);
        }
        block.sealed |= seal;
        block.synced |= sync && !block.sync_broken && replica.tier == Tier::Disk;
        Ok(())
    }

    /// Verify: what can be seen of the block, and its checksum where one is known.
    pub(super) fn finish_verify(
        &mut self,
        replica: ReplicaRef,
        expected: Option<Checksum>,
        fault: Option<DriverErrorKind>,
    ) -> Result<(), DriverErrorKind> {
        let block = self.blocks.get_mut(&BlockName::from(replica)).expect("an op holds it");
        block.jobs -= 1;
        let wrong = expected.is_some_and(|expected| expected.0 != block.content);
        match block.natural_error().or(fault) {
            Some(kind) => Err(kind),
            None if wrong => Err(DriverErrorKind::Corrupt),
            None => Ok(()),
        }
    }

    /// The name is taken away. The block goes with the last mapping.
    pub(super) fn finish_detach(&mut self, name: BlockName) {
        self.blocks.get_mut(&name).expect("it is being dropped").phase = Phase::Detached;
    }

    /// Frees a detached block if nobody maps it, else says until when somebody does.
    pub(super) fn free(&mut self, name: BlockName, now: Monotonic) -> Result<(), Monotonic> {
        let until = self.blocks.get(&name).map_or(now, Block::mapped_until);
        if until > now {
            return Err(until);
        }
        self.blocks.remove(&name);
        Ok(())
    }

    pub(super) fn finish_transfer(
        &mut self,
        op: &TransferOp,
        fault: Option<TransferError>,
    ) -> Result<Checksum, TransferError> {
        let source = self.blocks.get_mut(&op.from.into()).expect("an op holds it");
        source.jobs -= 1;
        let (content, damage) = (source.content, source.damage);
        let natural = source.natural_error();
        let wrong = op.expected.is_some_and(|expected| expected.0 != content);
        let error = match (natural, fault) {
            (Some(kind), _) => Some(TransferError::Source(driver_error(kind))),
            (None, Some(fault)) => Some(fault),
            (None, None) if wrong => Some(TransferError::Source(driver_error(DriverErrorKind::Corrupt))),
            (None, None) => None,
        };
        if let Some(error) = error {
            self.blocks.remove(&op.to.into());
            return Err(error);
        }
        let made = self.blocks.get_mut(&op.to.into()).expect("it was begun");
        // A copy of damaged bytes is damaged bytes, whatever nobody could know.
        (made.content, made.damage) = (content, damage);
        (made.phase, made.sealed) = (Phase::Ready, true);
        made.synced = op.sync && op.to.tier == Tier::Disk;
        Ok(Checksum(content))
    }

    /// Bytes that the blocks of one shard really occupy, in whole pages; with `removed` those too that somebody removed
    /// behind the server's back, which are charged until it notices.
    pub(super) fn bytes_held(&self, shard: ShardIndex, shard_count: u16, tier: Tier, removed: bool) -> u64 {
        self.blocks
            .iter()
            .filter(|(name, block)| {
                let counts = removed || block.damage != Damage::Missing;
                name.tier == tier && counts && name.id.shard(shard_count) == shard
            })
            .map(|(_, block)| block.size.in_pages().0)
            .sum()
    }

    /// What a crash leaves: names and bytes survive `kill -9`, only synced files survive a loss of power. What was
    /// being made is removed with its private name by the intent log at boot.
    pub(super) fn crash(&mut self, power_loss: bool, rng: &mut Rng) {
        self.blocks.retain(|name, block| {
            let kept = matches!(block.phase, Phase::Ready | Phase::Dropping);
            let survives = !power_loss || (name.tier == Tier::Disk && (block.synced || rng.chance(400)));
            // Unsynced bytes may be there and wrong: the file has its size before its data.
            if power_loss && survives && !block.synced && rng.chance(300) {
                block.damage = Damage::Truncated;
            }
            kept && survives
        });
        for block in self.blocks.values_mut() {
            block.phase = Phase::Ready;
            block.jobs = 0;
        }
    }

    /// Boot: what no row vouches for is reclaimed.
    pub(super) fn reclaim(&mut self, vouched: &BTreeSet<BlockName>) -> usize {
        let before = self.blocks.len();
        self.blocks.retain(|name, _| vouched.contains(name));
        before - self.blocks.len()
    }
}
