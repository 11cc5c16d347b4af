//! What a shard asks of others. `step` only writes these down; the reactor (or the simulator) carries them out.

use crate::batch::BatchPart;
use crate::descriptor::Descriptor;
use crate::direct::{Publish, Revoke, Scan};
use crate::extent::Extent;
use crate::ids::{Epoch, Generation, OpId, PayloadId, PayloadKey, ShardIndex};
use crate::policy::Rank;
use crate::reply::ReplyResult;
use crate::row::PayloadRow;
use crate::slab::{Block, SlabOp};
use crate::tier::Tier;
use crate::units::{ByteCount, Checksum};

/// Names the request a reply belongs to; minted by whoever drives the shard.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ReplyTo(pub u64);

/// One entry of the outbox, to be carried out in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Answer a request. Receiver: `front`. Losing one costs the caller a deadline.
    Reply {
        /// Which request.
        to: ReplyTo,
        /// The answer.
        result: ReplyResult,
    },
    /// A Commit is ACCEPTED: its payload can be leased on this node from now on, and its acknowledgement follows as a
    /// `Reply`. For payloads in slabs only. Receiver: the pump, which passes it on where it was asked for.
    Accepted {
        /// Which request; it is not answered yet.
        to: ReplyTo,
        /// As it is now.
        descriptor: Descriptor,
    },
    /// Work on one replica's storage. Receiver: the tier's driver. Never lost: an op slot waits for it.
    Storage(StorageOp),
    /// Copy a replica to another tier. Receiver: the disk store. Never lost.
    Transfer(TransferOp),
    /// Change the catalog. Receiver: the catalog writer's one FIFO. Never lost.
    Catalog(CatalogOp),
    /// Ask for or give back capacity. Receiver: the budget arbiter. Never lost.
    Budget(BudgetRequest),
    /// Work on memory of a native session. Receiver: the session thread. Never lost.
    Slab(SlabOp),
    /// Change what readers are shown who ask nobody. Receiver: whoever drives the shard, at once.
    Publish(Publish),
    /// Look who holds something of what they were shown. Receiver: whoever drives the shard, at once; answered by one
    /// `Event::ScanDone`.
    Scan(Scan),
    /// Take direct leases away. Receiver: whoever drives the shard, at once.
    Revoke(Revoke),
}

/// What names a replica in storage.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ReplicaRef {
    /// The tier that holds it.
    pub tier: Tier,
    /// Whose bytes.
    pub id: PayloadId,
    /// Which replica.
    pub generation: Generation,
    /// Exactly what was allocated.
    pub size: ByteCount,
    /// Where it lies in a segment file; `None`: it has a segment or file of its own, or is yet to be made.
    pub extent: Option<Extent>,
    /// Where it lies in a slab; on RAM only. Such a replica is never made, sealed or dropped by a `StorageOp`.
    pub block: Option<Block>,
}

/// Work on one replica (RAM: a segment; DISK: a file of its own).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StorageOp {
    /// Who gets the completion.
    pub shard: ShardIndex,
    /// The slot that waits; for `Drop` unused (the generation names the limbo entry).
    pub op: OpId,
    /// The replica.
    pub replica: ReplicaRef,
    /// What to do.
    pub action: StorageAction,
}

/// What to do with a replica's storage.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StorageAction {
    /// Make it: named in the intent log first, at full size, zeroed, writable by the producer.
    /// Answered by `StorageDone::Created`.
    Create,
    /// Commit: check that it exists and has its full size, make it read-only, and with `sync` put data and
    /// directory on stable storage. Answered by `StorageDone::Sealed`.
    Seal {
        /// Data and directory on stable storage first.
        sync: bool,
    },
    /// Put data and directory on stable storage. Answered by `StorageDone::Synced`.
    Sync,
    /// Read it again: check that it exists and has its full size, and its checksum when one is known. The shard keeps
    /// it undropped until the completion. Answered by `StorageDone::Verified`.
    Verify {
        /// What its bytes must have.
        expected: Option<Checksum>,
        /// The pace of all verifications together; 0: as fast as it can be read.
        bytes_per_second: u64,
    },
    /// Drop it: take its name away (`StorageDone::Detached`), and free it once nobody has it open or mapped
    /// (`StorageDone::Freed`, possibly much later). Its capacity stays charged until then.
    Drop,
    /// The answer to a `Completion::Relocate` that the shard cannot follow now. Not answered.
    Stay,
}

/// Copy a replica's bytes into a new replica, hashing them on the way: on another tier, or from a segment file to
/// another place of the same disk root, which is the answer to `Completion::Relocate` unless it is `alone`.
///
/// The destination is made by the copy (intent log, private name, full size), gets its name when it is complete
/// and read-only, and is gone without a trace when the copy fails. Answered by `TransferDone`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TransferOp {
    /// Who gets the completion.
    pub shard: ShardIndex,
    /// The slot that waits.
    pub op: OpId,
    /// Read from here; the shard keeps it undropped until the completion.
    pub from: ReplicaRef,
    /// Make this.
    pub to: ReplicaRef,
    /// The checksum the bytes must have, when one is known.
    pub expected: Option<Checksum>,
    /// Data and directory of the destination on stable storage before the completion.
    pub sync: bool,
    /// The source is known to be damaged, and is only moved out of the way: its bytes are copied as they are, with zeroes
    /// where they cannot be read, and not compared. The copy answers with the checksum that they should have, so it is
    /// found damaged as its source was.
    pub salvage: bool,
    /// Into a file of its own: `Copied::extent` is `None`, whatever would have room for it.
    pub alone: bool,
}

/// One change of the catalog. Idempotent, keyed by (key, version): a row is never replaced by one of an older
/// (epoch, version), and removing what is not there succeeds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CatalogOp {
    /// Who gets the acknowledgement.
    pub shard: ShardIndex,
    /// The slot that waits.
    pub op: OpId,
    /// The change.
    pub change: CatalogChange,
    /// It happens in one transaction with the batch's other parts; answered by `Completion::BatchRefused` when one of
    /// them was refused.
    pub batch: Option<BatchPart>,
}

/// See [`CatalogOp`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CatalogChange {
    /// Insert or replace the row.
    Put(Box<PayloadRow>),
    /// Remove the row and what belongs to it.
    Remove {
        /// Whose row.
        key: PayloadKey,
        /// Removed in this epoch.
        epoch: Epoch,
    },
}

impl CatalogChange {
    /// True when `synchronous: normal` may acknowledge it before it survives a loss of power (DESIGN §7): a removal,
    /// which leaves the payload as it was should it be lost. What a row says was promised to a client.
    pub fn may_be_late(&self) -> bool {
        matches!(self, Self::Remove { .. })
    }
}

/// What a shard says to the budget arbiter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BudgetRequest {
    /// Needs `bytes` more on `tier`, and waits for them. Answered by `BudgetReply::Granted`, or by `Denied` once it was
    /// cancelled.
    Ask {
        /// Who asks.
        shard: ShardIndex,
        /// The slot that waits.
        op: OpId,
        /// The tier.
        tier: Tier,
        /// In whole pages.
        bytes: ByteCount,
    },
    /// Waits no longer: its caller's deadline passed, or its payload is gone. Answered by `BudgetReply::Denied`, unless
    /// `Granted` is on its way already.
    Cancel {
        /// Who asked.
        shard: ShardIndex,
        /// The slot that waited.
        op: OpId,
        /// The tier.
        tier: Tier,
    },
    /// Gives `bytes` back: unasked, or as the answer to a recall (then also when it is 0). Under pressure also sent
    /// with 0 bytes, when the shard has something better to evict than it said, or more or less on its way out.
    Return {
        /// Who gives.
        shard: ShardIndex,
        /// The tier.
        tier: Tier,
        /// In whole pages.
        bytes: ByteCount,
        /// The recall this answers.
        recall: Option<u64>,
        /// What the shard uses, for the breakdown of a refusal.
        usage: TierUsage,
        /// What it could evict, and what is on its way out.
        supply: TierSupply,
    },
}

/// What a shard could free of a tier, in bytes charged (whole pages).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TierSupply {
    /// Replicas that can be evicted now: without those that would be copied to a tier that is full, or just failed.
    pub evictable: u64,
    /// Who of them goes first; `None` also while all slots for evictions are taken.
    pub head: Option<Rank>,
    /// On their way out: moves to a slower tier but for those that wait for room there while it is full, removals, and
    /// dropped replicas that only wait for their driver.
    pub leaving: u64,
}

/// How a shard, or the node, uses a tier: all in bytes charged (whole pages).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TierUsage {
    /// Charged to replicas, limbo included.
    pub allocated: u64,
    /// Of those: replicas of payloads that somebody leases.
    pub leased: u64,
    /// Of those: replicas of pinned payloads.
    pub pinned: u64,
    /// Of those: sources of copies under way to a slower tier.
    pub spilling: u64,
    /// Of those: dropped, and not yet proven free.
    pub limbo: u64,
}

impl TierUsage {
    /// The sum, field by field.
    pub fn plus(self, other: Self) -> Self {
        Self {
            allocated: self.allocated + other.allocated,
            leased: self.leased + other.leased,
            pinned: self.pinned + other.pinned,
            spilling: self.spilling + other.spilling,
            limbo: self.limbo + other.limbo,
        }
    }
}
