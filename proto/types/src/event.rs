//! What happens to a shard. One `step` handles one event.

use crate::direct::{Sampled, ScanDone};
use crate::effect::{ReplicaRef, ReplyTo, TierUsage};
use crate::extent::Extent;
use crate::ids::{Generation, OpId};
use crate::policy::Rank;
use crate::request::Request;
use crate::session::SessionId;
use crate::slab::SlabDone;
use crate::tier::Tier;
use crate::time::Monotonic;
use crate::units::{ByteCount, Checksum};

/// One event.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// A client asks. Lane: requests.
    Request {
        /// Names the answer.
        reply_to: ReplyTo,
        /// The caller's deadline, if it has one.
        deadline: Option<Monotonic>,
        /// What is asked.
        request: Request,
    },
    /// Somebody finished work for the shard. Lane: completions.
    Completion(Completion),
    /// A native session ends: what it holds here is given back, `limits::ITEMS_PER_TURN_MAX` things a step, the rest in
    /// timer steps. Sent by the pump when it takes nothing more of the session, and again after the last answer to it
    /// where some were owed: those may have granted more.
    SessionClosed {
        /// Which.
        session: SessionId,
    },
    /// A native session's process is proven to have ended, or it never had memory that it could write to: what it did not
    /// commit, and what was dropped of its memory, may be used again. Sent once, after the last `SessionClosed` of it.
    SessionGone {
        /// Which.
        session: SessionId,
    },
    /// The answer to the one `Effect::Scan` that is under way.
    ScanDone(ScanDone),
    /// Readers who ask nobody have leased these lately: their recency is touched as by an Acquire.
    Sampled(Sampled),
    /// The moment named by `Shard::next_timer` has come, or work of the last turn is left. Sent by the pump.
    Timer,
}

/// A finished piece of work. Lane: completions, sized so that it never refuses; losing one would leave its slot
/// taken for ever, so none is ever lost.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Completion {
    /// From a tier's driver.
    Storage(StorageDone),
    /// From the disk store.
    Transfer(TransferDone),
    /// From the catalog writer.
    Catalog(CatalogAck),
    /// From the catalog writer: the slot's row, a part of a batch, was not stored and never will be, because another part
    /// was refused.
    BatchRefused(OpId),
    /// From the catalog writer: the slot's row was not stored and never will be, because another node has one of its id.
    Claimed {
        /// The slot.
        op: OpId,
        /// Which node has it, and what to do: a sentence for the caller.
        reason: String,
    },
    /// From the budget arbiter.
    Budget(BudgetReply),
    /// From the session thread: the end of a `SlabOp`.
    Slab(SlabDone),
    /// The disk store wants this packed replica in another segment file, so that the one it lies in can be recycled.
    /// Always answered: by a `TransferOp` from it to its own tier, for which no capacity is charged, or by
    /// `StorageAction::Stay`. At most `limits::RELOCATIONS_MAX` are unanswered on a node.
    Relocate(ReplicaRef),
    /// From the catalog writer: every transaction up to this one is durable. Sent to a shard that was given a later
    /// [`CatalogAck::sequence`] than it was told. Not queued: only the newest is kept, so it takes no place in the lane.
    Durable {
        /// As in `CatalogAck`.
        sequence: u64,
    },
}

/// The end of a `StorageOp`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StorageDone {
    /// `StorageAction::Create`.
    Created {
        /// The slot.
        op: OpId,
        /// On an error nothing is left behind.
        result: Result<(), DriverError>,
    },
    /// `StorageAction::Seal`.
    Sealed {
        /// The slot.
        op: OpId,
        /// `Missing` or `Truncated` when the client removed or shortened it.
        result: Result<(), DriverError>,
    },
    /// `StorageAction::Sync`.
    Synced {
        /// The slot.
        op: OpId,
        /// The outcome.
        result: Result<(), DriverError>,
    },
    /// `StorageAction::Verify`.
    Verified {
        /// The slot.
        op: OpId,
        /// `Missing`, `Truncated` or `Corrupt`: its bytes are not what was committed. Anything else says nothing.
        result: Result<(), DriverError>,
    },
    /// First end of `StorageAction::Drop`: the name is free again.
    Detached {
        /// The tier.
        tier: Tier,
        /// The replica.
        generation: Generation,
    },
    /// Second end of `StorageAction::Drop`: nobody has it open or mapped, its space is free.
    Freed {
        /// The tier.
        tier: Tier,
        /// The replica.
        generation: Generation,
    },
}

/// The end of a `TransferOp`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TransferDone {
    /// The slot.
    pub op: OpId,
    /// What was made, or why nothing was; the destination is gone then.
    pub result: Result<Copied, TransferError>,
}

/// What a copy made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Copied {
    /// The checksum of the bytes written.
    pub checksum: Checksum,
    /// Where it lies, if it shares a segment file with others. Such a replica is on stable storage, whatever was asked.
    pub extent: Option<Extent>,
}

/// Why a copy failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TransferError {
    /// The source is missing, shorter than its size, or does not have the expected checksum.
    Source(DriverError),
    /// The destination could not be made or written; the source is as good as before.
    Destination(DriverError),
}

/// What a driver can report.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DriverErrorKind {
    /// No space left (ENOSPC, EDQUOT, ENOMEM, CUDA_ERROR_OUT_OF_MEMORY).
    Full,
    /// The segment or file is not there.
    Missing,
    /// It is shorter than its size.
    Truncated,
    /// Its bytes do not have the expected checksum.
    Corrupt,
    /// fdatasync or fsync failed: what the file holds is unknown, and asking again would prove nothing.
    SyncFailed,
    /// The device that holds it, or was to, fails every call until the server is started anew. Of a source: its bytes are gone.
    DeviceLost,
    /// Anything else: EIO, EROFS, EMFILE ...
    Io,
}

/// A driver's error: the message says what was tried and what the system answered, without a client's paths.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DriverError {
    /// How the shard tells it apart.
    pub kind: DriverErrorKind,
    /// How a person reads it.
    pub message: String,
}

/// The end of a `CatalogOp`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CatalogAck {
    /// The slot.
    pub op: OpId,
    /// `Ok`: the transaction is durable, or will be (`sequence`). `Err`: it is known not to have happened; the sentence
    /// says why.
    pub result: Result<(), String>,
    /// 0: the transaction is durable. Otherwise it survives the server, but power only once a [`Completion::Durable`]
    /// names this number or a later one: until then nothing may be reused that the row it removed speaks of. Only
    /// removals are acknowledged so early (`CatalogChange::may_be_late`), and only with `synchronous: normal`.
    pub sequence: u64,
}

/// What the budget arbiter says to a shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BudgetReply {
    /// The ask is met, possibly with more than was asked for.
    Granted {
        /// The slot that asked.
        op: OpId,
        /// The tier.
        tier: Tier,
        /// At least what was asked for.
        bytes: ByteCount,
    },
    /// The ask was cancelled, and had not been met.
    Denied {
        /// The slot that asked.
        op: OpId,
        /// The tier.
        tier: Tier,
        /// Not granted to anybody.
        free: ByteCount,
        /// The node's use of the tier.
        usage: TierUsage,
    },
    /// An order, at most one a tier and shard at a time; answered by one `BudgetRequest::Return` with its number.
    Recall {
        /// The tier.
        tier: Tier,
        /// Names the recall.
        recall: u64,
        /// True: give back what is spare, now and from now on as soon as it is; report what could be evicted.
        /// False: the pressure is over.
        pressure: bool,
        /// The tier is full: somebody waits, and nothing that would serve him is on its way or could be evicted. Only so
        /// much is free. `None`: it is not, or nobody moves down to it.
        room: Option<ByteCount>,
        /// Start evictions first.
        evict: Option<EvictOrder>,
    },
}

/// How much of a tier a shard shall free.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EvictOrder {
    /// Start evictions until this much is on its way out: the last one may pass it.
    pub bytes: ByteCount,
    /// But none that ranks behind this: another shard's go first.
    pub bound: Option<Rank>,
    /// What this shard had said to be on its way out: `bytes` come on top. What else it has begun since counts.
    pub leaving: ByteCount,
}
