//! Direct leases (DESIGN §4, §8): what a shard shows to readers who ask nobody, and what it hears of them.
//!
//! ```text
//!   shard -- Publish --> its driver: the table of that namespace, in order
//!         -- Scan ----> all cells of all sessions, after a fence, in order behind every Publish before it -- ScanDone --> shard
//!         -- Revoke --> the cells that hold it are told so
//!   sessions -- Sampled --> shard: what they lease, roughly
//! ```
//! None of these waits for anything: no op slot, no reply. A driver without tables ignores `Publish`, finds nobody, and
//! answers every scan all the same.

use crate::ids::{Generation, NamespaceId, PayloadId};
use crate::session::SessionId;
use crate::slab::Block;
use crate::time::WallMs;
use crate::units::{ByteCount, Checksum};

/// Generations of one scan: about 2 us of a shard's turn with 64 sessions, 40 with 1,024.
pub const SCAN_BATCH_MAX: usize = 256;

/// Ids that one [`Sampled`] names at most.
pub const SAMPLED_MAX: usize = 64;

/// A change of what is shown.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Publish {
    /// Whose readers see it.
    pub namespace: NamespaceId,
    /// What changes.
    pub change: Change,
}

/// See [`Publish`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// May be leased as stated from now on; replaces what was shown of that id. Where there is no room it is not shown.
    Put(Box<Published>),
    /// May not be leased from now on, and keeps its place. Nothing happens where it is not shown.
    Withdraw(PayloadId),
    /// May be leased again, under the generation that it had when it was withdrawn.
    Restore(PayloadId),
    /// Is shown no more.
    Remove(PayloadId),
    /// Has a new version or expiry, where it is.
    Describe {
        /// Which.
        id: PayloadId,
        /// Its version.
        version: u64,
        /// When it stops to be readable.
        expires_at: Option<WallMs>,
    },
    /// Nothing may be leased directly in this namespace any more, for good: the server stops.
    Close,
}

/// What a reader is shown of a payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Published {
    /// Whose bytes.
    pub id: PayloadId,
    /// Of the replica: what a claim names. Its shard never gives it to another.
    pub generation: Generation,
    /// Where they lie.
    pub block: Block,
    /// How many bytes.
    pub size: ByteCount,
    /// Of the bytes, where one is known.
    pub checksum: Option<Checksum>,
    /// As in the descriptor.
    pub version: u64,
    /// When it stops to be readable.
    pub expires_at: Option<WallMs>,
}

/// A scan to be made: after a full fence, all cells of all sessions, those of dead ones within their grace included.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Scan {
    /// Its number; the answer names it.
    pub number: u64,
    /// What is looked for, at most [`SCAN_BATCH_MAX`].
    pub generations: Vec<Generation>,
}

/// What a scan has found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScanDone {
    /// Which scan.
    pub number: u64,
    /// Who holds something, each session once.
    pub held: Vec<Held>,
}

/// What one session holds of a scan's generations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    /// Who.
    pub session: SessionId,
    /// A bit for each generation, in the order of the scan.
    pub marks: [u64; SCAN_BATCH_MAX / 64],
}

/// Leases to be taken away: whoever holds the generation, or one session, finds its lease revoked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Revoke {
    /// What they hold.
    pub generation: Generation,
    /// Of this session alone; `None`: of all.
    pub of: Option<SessionId>,
}

/// What readers of one session have leased lately: a sample, and a claim of theirs that costs them nothing to forge.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sampled {
    /// Where its ids are known.
    pub namespace: NamespaceId,
    /// At most [`SAMPLED_MAX`].
    pub ids: Vec<PayloadId>,
}
