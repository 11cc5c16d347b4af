//! A payload as the catalog keeps it.

use crate::extent::Extent;
use crate::ids::{Epoch, Generation, PayloadKey, Version};
use crate::policy::{EvictionPolicy, Pin};
use crate::state::PayloadState;
use crate::tier::Tier;
use crate::time::WallMs;
use crate::units::{ByteCount, Checksum};

/// Whether the bytes can still be had.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(u8)]
pub enum Health {
    /// As far as anybody knows.
    #[default]
    Good = 0,
    /// They did not survive a restart: NOT_FOUND with the reason LOST.
    Lost = 1,
    /// They were found missing or altered: DATA_LOSS.
    Damaged = 2,
}

/// A replica that the row vouches for.
///
/// A RAM replica stands in the row only while no durable one exists: dropping a volatile twin of a durable replica
/// then costs no transaction (DESIGN §4), and at boot such a twin is reclaimed by the intent log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplicaRow {
    /// Its tier.
    pub tier: Tier,
    /// Which replica: {id, generation} names its segment or file.
    pub generation: Generation,
    /// True when its bytes were on stable storage before the row was written.
    pub synced: bool,
    /// False when its bytes were found damaged and another replica serves the payload: it is never served alone.
    pub sound: bool,
    /// Where it lies in a segment file; `None`: it has a segment or file of its own.
    pub extent: Option<Extent>,
}

/// A committed payload. ALLOCATED ones are not stored (DESIGN §7).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PayloadRow {
    /// Identity.
    pub key: PayloadKey,
    /// Exactly what was allocated.
    pub size: ByteCount,
    /// `Active`, `Durable` or `Expired`.
    pub state: PayloadState,
    /// Version at the time of writing.
    pub version: Version,
    /// The epoch in which the row was written.
    pub epoch: Epoch,
    /// Creation time.
    pub created_at: WallMs,
    /// Expiry, if any.
    pub expires_at: Option<WallMs>,
    /// As given at Allocate.
    pub no_evict: bool,
    /// As given at Allocate.
    pub policy: EvictionPolicy,
    /// XXH3-64 of the bytes, when known.
    pub checksum: Option<Checksum>,
    /// The pin, if any.
    pub pin: Pin,
    /// Whether the bytes can still be had.
    pub health: Health,
    /// The replicas the row vouches for; at most one a tier, fastest first.
    pub replicas: Vec<ReplicaRow>,
}
