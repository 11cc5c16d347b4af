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
//! pages: a later one that succeeds proves nothing. What a copy writes to DISK may lie in a segment file
//! ([`super::segments`]): such a block lives as long as its file, and is freed when that is recycled.

use std::collections::{BTreeMap, BTreeSet};

use payload_ledger::segments::table::Record;
use payload_ledger::segments::{Buried, Lane, Spot};
use payload_types::effect::{ReplicaRef, StorageOp, TransferOp};
use payload_types::event::{Copied, DriverErrorKind, TransferError};
use payload_types::{
    Block as Place, ByteCount, Checksum, Extent, Generation, Monotonic, PayloadId, PayloadRow, ShardIndex,
    SlabId, Tier,
};

use super::faults::{Rng, driver_error};
use super::oracle::{Breach, Rule, breach};
use super::segments::{Segments, overlap};
use super::slabs::Slabs;

/// What names a block.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct BlockName {
    pub(super) tier: Tier,
    pub(super) id: PayloadId,
    pub(super) generation: Generation,
}

impl From<ReplicaRef> for BlockName {
    fn from(replica: ReplicaRef) -> Self {
        super::slabs::name_of(replica)
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
    /// Where it lies in a segment file; `None`: a segment or file of its own.
    pub(super) extent: Option<Extent>,
    /// Where it lies in a slab.
    pub(super) place: Option<Place>,
    /// Somebody is charged for it. Of what a relocation reads and what it makes, one is.
    pub(super) charged: bool,
    /// Stands for the bytes.
    pub(super) content: u64,
    pub(super) phase: Phase,
    pub(super) sealed: bool,
    pub(super) synced: bool,
    sync_broken: bool,
    pub(super) damage: Damage,
    /// It is a copy of what was known to be damaged: nobody may take it for sound.
    pub(super) salvaged: bool,
    /// It was copied into a file of its own for a client that may set lengths.
    pub(super) alone: bool,
    /// A Transfer makes, or made it.
    is_copy: bool,
    /// Ops under way that use it.
    pub(super) jobs: u32,
    /// Who has it mapped, and until when.
    pub(super) readers: BTreeMap<u64, Monotonic>,
}

impl Block {
    pub(super) fn new(size: ByteCount) -> Self {
        Self {
            size,
            extent: None,
            place: None,
            charged: true,
            content: 0,
            phase: Phase::Creating,
            sealed: false,
            synced: false,
            sync_broken: false,
            damage: Damage::None,
            salvaged: false,
            alone: false,
            is_copy: false,
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
    pub(super) segments: Segments,
    pub(super) slabs: Slabs,
    /// What a relocation makes, and what it reads: together they are charged once.
    pairs: BTreeMap<BlockName, BlockName>,
    /// Something that must not be, seen while no breach could be reported.
    pub(super) wrong: Option<Breach>,
}

impl Storage {
    /// The named segment of `id`, complete or being made.
    pub(super) fn named_segment(&self, id: PayloadId) -> Option<BlockName> {
        let low = BlockName { tier: Tier::Ram, id, generation: Generation(0) };
        let high = BlockName { generation: Generation(u64::MAX), ..low };
        self.blocks
            .range(low..=high)
            .find(|(_, block)| block.phase != Phase::Detached && block.place.is_none())
            .map(|(name, _)| *name)
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
            Some(block)
                if block.phase == Phase::Ready
                    && (block.size, block.extent) == (replica.size, replica.extent) =>
            {
                Ok(block)
            }
            Some(block) => breach(Rule::DropInUse, format!("{what} of {name:?}, which is {block:?}")),
            None => breach(Rule::DropInUse, format!("{what} of {name:?}, which does not exist")),
        }
    }

    pub(super) fn begin_create(&mut self, op: &StorageOp) -> Result<(), Breach> {
        if op.replica.tier == Tier::Disk {
            self.segments.own_added(op.replica.size);
        }
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
        let moves = is_relocation(op);
        let makes_sense = if moves { op.from.extent.is_some() && op.sync } else { !op.salvage };
        if op.from.id != op.to.id || op.from.size != op.to.size || op.to.extent.is_some() || !makes_sense {
            return breach(Rule::DropInUse, format!("a copy that makes no sense: {op:?}"));
        }
        let source = self.live(op.from, "copy")?;
        if !source.sealed {
            return breach(Rule::DropInUse, format!("{:?} is copied before it was sealed", op.from));
        }
        source.jobs += 1;
        self.begin_block(op.to)?;
        self.blocks.get_mut(&op.to.into()).expect("just begun").is_copy = true;
        if moves {
            self.pairs.insert(op.to.into(), op.from.into());
            self.blocks.get_mut(&op.to.into()).expect("just begun").charged = false;
        }
        Ok(())
    }

    /// A row is durable: what it says was moved has the charge from here on, and its old place has none. Hands back the
    /// old places.
    pub(super) fn published(&mut self, row: &PayloadRow) -> Vec<BlockName> {
        let mut old_ones = Vec::new();
        for replica in &row.replicas {
            let name = BlockName { tier: replica.tier, id: row.key.id, generation: replica.generation };
            if let Some(old) = self.pairs.remove(&name) {
                for (name, charged) in [(name, true), (old, false)] {
                    if let Some(block) = self.blocks.get_mut(&name) {
                        block.charged = charged;
                    }
                }
                old_ones.push(old);
            }
        }
        old_ones
    }

    /// The replica that a relocation would make of this one, for a row that says so.
    pub(super) fn moved_from(&self, name: BlockName) -> Option<BlockName> {
        self.pairs.get(&name).copied()
    }

    pub(super) fn finish_create(
        &mut self,
        op: &StorageOp,
        fault: Option<DriverErrorKind>,
    ) -> Result<(), DriverErrorKind> {
        let name = BlockName::from(op.replica);
        if let Some(kind) = fault {
            self.blocks.remove(&name);
            if name.tier == Tier::Disk {
                self.segments.own_removed(op.replica.size);
            }
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

    /// The name is taken away. The block goes with the last mapping, or with the file that it lies in. Hands back
    /// whether it is the latter.
    pub(super) fn finish_detach(&mut self, name: BlockName, shard: ShardIndex) -> bool {
        let block = self.blocks.get_mut(&name).expect("it is being dropped");
        let was = std::mem::replace(&mut block.phase, Phase::Detached);
        let Some((extent, books)) = block.extent.zip(self.segments.books()) else { return false };
        if was != Phase::Detached {
            books.dead(extent, block.size, Buried { shard, generation: name.generation });
        }
        true
    }

    /// Frees a detached block if nobody maps it, else says until when somebody does.
    pub(super) fn free(&mut self, name: BlockName, now: Monotonic) -> Result<(), Monotonic> {
        let until = self.blocks.get(&name).map_or(now, Block::mapped_until);
        if until > now {
            return Err(until);
        }
        if let Some(block) = self.blocks.remove(&name)
            && name.tier == Tier::Disk
        {
            self.segments.own_removed(block.size);
        }
        Ok(())
    }

    /// A copy ends. In a segment file it is filled from `lane`; `None`: there is no such file for it.
    pub(super) fn finish_transfer(
        &mut self,
        op: &TransferOp,
        lane: Option<Lane>,
        fault: Option<TransferError>,
    ) -> Result<Copied, TransferError> {
        let source = self.blocks.get_mut(&op.from.into()).expect("an op holds it");
        source.jobs -= 1;
        let (content, damage) = (source.content, source.damage);
        let natural = source.natural_error().filter(|_| !op.salvage);
        let wrong = op.expected.is_some_and(|expected| expected.0 != content) && !op.salvage;
        let error = match (natural, fault) {
            (Some(kind), _) => Some(TransferError::Source(driver_error(kind))),
            (None, Some(fault)) => Some(fault),
            (None, None) if wrong => Some(TransferError::Source(driver_error(DriverErrorKind::Corrupt))),
            (None, None) => None,
        };
        let to_disk = op.to.tier == Tier::Disk;
        let mut spot = None;
        let sync_failed = matches!(
            &error,
            Some(TransferError::Destination(error)) if error.kind == DriverErrorKind::SyncFailed
        );
        let lane = lane.filter(|_| to_disk && !op.alone && (error.is_none() || sync_failed));
        if let Some(lane) = lane {
            spot = self.segments.place(lane, op.to.size);
        }
        if let Some(error) = error {
            if let Some((spot, lane)) = spot.zip(lane) {
                self.segments.write(spot, &record_of(op.to, content, spot), false);
                self.segments.books().expect("they placed it").spoilt(lane);
            }
            self.pairs.remove(&op.to.into());
            self.blocks.remove(&op.to.into());
            return Err(error);
        }
        if let Some(spot) = spot {
            self.check_place(spot, op.to);
            self.segments.write(spot, &record_of(op.to, content, spot), true);
        } else if to_disk {
            self.segments.own_added(op.to.size);
        }
        let made = self.blocks.get_mut(&op.to.into()).expect("it was begun");
        made.extent = spot.map(|spot| spot.extent);
        // A copy of damaged bytes is damaged bytes, whatever nobody could know.
        (made.content, made.damage) = (content, damage);
        (made.salvaged, made.alone) = (op.salvage, op.alone);
        (made.phase, made.sealed) = (Phase::Ready, true);
        made.synced = (op.sync || spot.is_some()) && to_disk;
        if is_relocation(op)
            && let Some((extent, books)) = op.from.extent.zip(self.segments.books())
        {
            books.moved(extent, op.from.size);
        }
        let checksum = op.expected.filter(|_| op.salvage).unwrap_or(Checksum(content));
        Ok(Copied { checksum, extent: spot.map(|spot| spot.extent) })
    }

    /// A crash comes while a copy to a segment file is being written: its record may be there, whole or torn.
    pub(super) fn half_write(&mut self, op: &TransferOp, lane: Lane) {
        let Some(spot) = self.segments.place(lane, op.to.size) else { return };
        let content = self.blocks[&op.from.into()].content;
        self.check_place(spot, op.to);
        self.segments.write(spot, &record_of(op.to, content, spot), false);
        let made = self.blocks.get_mut(&op.to.into()).expect("it was begun");
        (made.extent, made.content, made.sealed) = (Some(spot.extent), content, true);
    }

    /// No two replicas share a page.
    fn check_place(&mut self, spot: Spot, replica: ReplicaRef) {
        let here = (spot.extent, replica.size);
        let taken = self
            .blocks
            .iter()
            .find(|(_, block)| block.extent.is_some_and(|extent| overlap((extent, block.size), here)));
        if let Some((name, block)) = taken {
            let detail = format!("{replica:?} is put at {:?}, where {name:?} is: {block:?}", spot.extent);
            self.wrong.get_or_insert(Breach { rule: Rule::Extent, detail });
        }
    }

    /// Blocks that lie in a segment file.
    pub(super) fn in_file(&self, file: std::num::NonZeroU32) -> impl Iterator<Item = (&BlockName, &Block)> {
        self.blocks.iter().filter(move |(_, block)| block.extent.is_some_and(|extent| extent.file == file))
    }

    /// Bytes of files with one replica, and charged bytes of all, on DISK.
    pub(super) fn disk_bytes(&self) -> (u64, u64) {
        let (mut own, mut charged) = (0, 0);
        for (_, block) in self.blocks.iter().filter(|(name, _)| name.tier == Tier::Disk) {
            let pages = block.size.in_pages().0;
            charged += if block.charged { pages } else { 0 };
            // A copy's own file is made when it is known that it has no place elsewhere.
            let is_own = block.extent.is_none() && (block.phase != Phase::Creating || !block.is_copy);
            own += if is_own { pages } else { 0 };
        }
        (own, charged)
    }

    /// Bytes that the blocks of one shard really occupy, in whole pages; with `removed` those too that somebody removed
    /// behind the server's back, which are charged until it notices.
    pub(super) fn bytes_held(&self, shard: ShardIndex, shard_count: u16, tier: Tier, removed: bool) -> u64 {
        self.blocks
            .iter()
            .filter(|(name, block)| {
                let counts = removed || block.damage != Damage::Missing;
                name.tier == tier && counts && block.charged && name.id.shard(shard_count) == shard
            })
            .map(|(_, block)| block.size.in_pages().0)
            .sum::<u64>()
            + if tier == Tier::Ram { self.slabs.bytes_held(shard) } else { 0 }
    }

    /// Blocks in a slab.
    pub(super) fn in_slab(&self, slab: SlabId) -> impl Iterator<Item = (&BlockName, &Block)> {
        self.blocks.iter().filter(move |(_, block)| block.place.is_some_and(|place| place.slab == slab))
    }

    /// What a crash leaves: names and bytes survive `kill -9`, only synced files survive a loss of power. What was
    /// being made is removed with its private name by the intent log at boot; what was dropped has a private name until
    /// then, too. What lies in segment files is told by their tables. Hands back whose bytes are wrong now.
    pub(super) fn crash(&mut self, power_loss: bool, rng: &mut Rng) -> Vec<PayloadId> {
        self.segments.crash(power_loss, rng);
        let mut wrong = Vec::new();
        self.slabs = Slabs::default();
        self.blocks.retain(|name, block| {
            if block.place.is_some() {
                return false;
            }
            if power_loss {
                block.readers.clear();
            }
            if block.extent.is_some() {
                return true;
            }
            let kept = block.phase != Phase::Creating;
            let survives = !power_loss || (name.tier == Tier::Disk && (block.synced || rng.chance(400)));
            // Unsynced bytes may be there and wrong: a file has its size before its data.
            if power_loss && survives && !block.synced {
                match rng.below(10) {
                    0..=2 => block.damage = Damage::Truncated,
                    3 => {
                        (block.damage, block.content) = (Damage::Corrupt, block.content ^ 0xBAD);
                        wrong.push(name.id);
                    }
                    _ => {}
                }
            }
            kept && survives
        });
        for block in self.blocks.values_mut() {
            if block.phase != Phase::Detached || block.extent.is_some() {
                block.phase = Phase::Ready;
            }
            (block.jobs, block.charged) = (0, true);
        }
        self.pairs.clear();
        wrong
    }

    /// Boot: of what no row vouches for, only what somebody still maps is left, without its name.
    pub(super) fn reclaim(&mut self, vouched: &BTreeSet<BlockName>, now: Monotonic) -> usize {
        let before = self.blocks.len();
        self.blocks.retain(|name, block| {
            let stays = block.extent.is_some() || block.mapped_until() > now;
            if !vouched.contains(name) {
                block.phase = Phase::Detached;
            }
            vouched.contains(name) || stays
        });
        before - self.blocks.len()
    }
}

/// True for a move within a tier that the disk store wished for.
pub(super) fn is_relocation(op: &TransferOp) -> bool {
    op.from.tier == op.to.tier && !op.alone
}

fn record_of(replica: ReplicaRef, content: u64, spot: Spot) -> Record {
    let ReplicaRef { id, generation, size, .. } = replica;
    Record { id, generation, size, checksum: Checksum(content), page: spot.extent.page }
}
