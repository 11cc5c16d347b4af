//! Planted bugs: each breaks one promise between the shards and the world, and the oracle must notice.
//!
//! A check that cannot fail proves nothing. A canary does what a shard, a driver or the catalog with that bug would
//! do; the oracle is not told. The world asks at the few places where a bug could sit.

use super::faults::Rng;
use super::oracle::Rule;

/// A planted bug.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Canary {
    /// When a copy is done its source is dropped, although somebody leases it.
    LeaseSpillRace,
    /// A dropped replica is reported free while somebody still has it mapped.
    EarlyFree,
    /// A change of the catalog is acknowledged when it is queued.
    AcknowledgementBeforeTransaction,
    /// A removal that is not synced yet is acknowledged as durable.
    LateAsDurable,
    /// The same, and nobody looks at drops: it must be seen when power is lost.
    HalfRemoval,
    /// One reply in twenty never leaves.
    LostReply,
    /// One reply in twenty leaves twice.
    RepeatedReply,
    /// One descriptor in twenty shows the version before.
    VersionRegress,
    /// Capacity is granted without the arbiter's books.
    MissingCharge,
    /// A copy writes other bytes and reports the right checksum.
    WrongBytes,
    /// One transaction in ten is acknowledged and never happens.
    LostTransaction,
    /// A segment's name is reported free before it is.
    EarlyDetach,
    /// A file is reported synced, and is not.
    SkippedSync,
    /// An eviction takes a replica that somebody leases.
    EvictsLeased,
    /// A shard evicts all it has, whatever it was told to.
    OverEviction,
    /// One grant in twenty never reaches who waits for it.
    LostWake,
    /// The arbiter never hears that somebody waits no more: what it collected for him stays with him.
    ForgottenCancel,
    /// A segment file is used again while somebody leases what was moved out of it.
    RecycledWhileLeased,
    /// What was moved is charged in its new place, and in its old one.
    RelocationChargedTwice,
    /// A dropped replica in a segment file is reported free before the file is recycled.
    PackedFreedEarly,
    /// The row of a moved replica still names the place that it was moved from.
    RowNamesOldExtent,
    /// The row of a damaged payload that was moved says that it is sound.
    SalvagedAsSound,
    /// A batch is written in two transactions.
    SplitBatch,
    /// Clients that may set lengths are shown files that others share.
    PackedForAll,
    /// Compaction does not hear who waits for space.
    DeafCompaction,
    /// Shards never hear that the disk is full: what waits for it counts as on its way out of RAM.
    DeafToRoom,
    /// While the disk is full nothing leaves RAM, not even what needs no room there.
    FullStopsAll,
    /// Payloads are appended that nobody has asked their shards to hold.
    AppendsUnheld,
    /// Shards are told that a stream has come two entries further than it has.
    FloorsAhead,
    /// Now and then a shard never hears how far a stream has come.
    LostFloor,
    /// Now and then a shard never hears that a session has ended.
    ForgottenEnd,
    /// What a session was granted after its end is never given back.
    LeasedAfterTheEnd,
    /// Some allocations of sessions are not noted as theirs.
    UnnotedAllocation,
    /// A slab is told of before nobody else can write to it.
    ToldBeforeSeal,
    /// Another namespace's bytes are reported zeroed, and are there.
    NotZeroed,
    /// A slab is reported returned while somebody has it mapped.
    SlabFreedEarly,
    /// A session's process is taken for dead, and writes on.
    GoneBeforeDead,
    /// Nobody hears that a session's process is dead.
    NeverGone,
    /// Now and then a scan finds nobody, whoever reads.
    BlindScan,
    /// A server that stops does not say what in slabs it could not save.
    LostUnnamed,
}

impl Canary {
    /// Each of them.
    pub const ALL: [Self; 40] = [
        Self::LeaseSpillRace,
        Self::EarlyFree,
        Self::AcknowledgementBeforeTransaction,
        Self::LateAsDurable,
        Self::HalfRemoval,
        Self::LostReply,
        Self::RepeatedReply,
        Self::VersionRegress,
        Self::MissingCharge,
        Self::WrongBytes,
        Self::LostTransaction,
        Self::EarlyDetach,
        Self::SkippedSync,
        Self::EvictsLeased,
        Self::OverEviction,
        Self::LostWake,
        Self::ForgottenCancel,
        Self::RecycledWhileLeased,
        Self::RelocationChargedTwice,
        Self::PackedFreedEarly,
        Self::RowNamesOldExtent,
        Self::SalvagedAsSound,
        Self::SplitBatch,
        Self::PackedForAll,
        Self::DeafCompaction,
        Self::DeafToRoom,
        Self::FullStopsAll,
        Self::AppendsUnheld,
        Self::FloorsAhead,
        Self::LostFloor,
        Self::ForgottenEnd,
        Self::LeasedAfterTheEnd,
        Self::UnnotedAllocation,
        Self::ToldBeforeSeal,
        Self::NotZeroed,
        Self::SlabFreedEarly,
        Self::GoneBeforeDead,
        Self::NeverGone,
        Self::BlindScan,
        Self::LostUnnamed,
    ];

    /// The rules by which it may be noticed: what it breaks itself, not what breaks later because of it.
    pub const fn rules(self) -> &'static [Rule] {
        match self {
            Self::LeaseSpillRace => &[Rule::LiveLease],
            Self::EarlyFree => &[Rule::Accounting],
            Self::AcknowledgementBeforeTransaction => {
                &[Rule::Acknowledgement, Rule::FreeBeforeDurable, Rule::CommitLost]
            }
            Self::LateAsDurable | Self::HalfRemoval => &[Rule::FreeBeforeDurable],
            Self::LostReply => &[Rule::Answers, Rule::Deadline],
            Self::RepeatedReply => &[Rule::Answers],
            Self::VersionRegress => &[Rule::Version],
            Self::MissingCharge => &[Rule::Budget],
            Self::WrongBytes => &[Rule::CommitLost, Rule::LiveLease],
            Self::LostTransaction => &[Rule::Acknowledgement, Rule::CommitLost, Rule::FreeBeforeDurable],
            Self::EarlyDetach => &[Rule::SegmentName],
            Self::SkippedSync => &[Rule::Row, Rule::Acknowledgement],
            Self::EvictsLeased => &[Rule::LiveLease],
            Self::OverEviction => &[Rule::Eviction],
            Self::LostWake => &[Rule::Deadline, Rule::Answers, Rule::Leak],
            Self::ForgottenCancel => &[Rule::Budget],
            Self::RecycledWhileLeased => &[Rule::LiveLease, Rule::DropInUse, Rule::Extent],
            Self::RelocationChargedTwice => &[Rule::Accounting, Rule::Leak, Rule::Budget],
            Self::PackedFreedEarly => &[Rule::Accounting],
            Self::RowNamesOldExtent => &[Rule::FreeBeforeDurable, Rule::CommitLost],
            Self::SalvagedAsSound => &[Rule::Row],
            Self::SplitBatch => &[Rule::Batch],
            Self::PackedForAll => &[Rule::SharedFile],
            Self::DeafCompaction | Self::DeafToRoom | Self::FullStopsAll => &[Rule::Starved],
            Self::AppendsUnheld | Self::FloorsAhead => &[Rule::Held, Rule::CommitLost, Rule::Listing],
            Self::LostFloor => &[Rule::Leak],
            Self::ForgottenEnd | Self::LeasedAfterTheEnd | Self::UnnotedAllocation => &[Rule::Session],
            Self::ToldBeforeSeal | Self::NotZeroed | Self::GoneBeforeDead => &[Rule::Slab],
            Self::SlabFreedEarly => &[Rule::Accounting],
            Self::NeverGone => &[Rule::Leak],
            Self::BlindScan => &[Rule::LiveLease],
            Self::LostUnnamed => &[Rule::CommitLost],
        }
    }

    /// True for bugs that only show where much is evicted.
    pub const fn needs_overload(self) -> bool {
        matches!(self, Self::EvictsLeased | Self::OverEviction)
    }

    /// True for bugs that only show on a full disk.
    pub const fn needs_crammed(self) -> bool {
        matches!(self, Self::DeafToRoom | Self::FullStopsAll)
    }

    /// True for bugs that only show where native sessions have memory.
    pub const fn needs_slabs(self) -> bool {
        matches!(
            self,
            Self::ToldBeforeSeal
                | Self::NotZeroed
                | Self::SlabFreedEarly
                | Self::GoneBeforeDead
                | Self::NeverGone
                | Self::BlindScan
                | Self::LostUnnamed
        )
    }

    /// True for bugs that only show where servers stop in order.
    pub const fn needs_stops(self) -> bool {
        matches!(self, Self::LostUnnamed)
    }

    /// True for bugs that only show where native sessions end.
    pub const fn needs_sessions(self) -> bool {
        self.needs_slabs()
            || matches!(self, Self::ForgottenEnd | Self::LeasedAfterTheEnd | Self::UnnotedAllocation)
    }

    /// Whether a bug of low frequency strikes now. Draws only when it is planted, so that a healthy run is the same
    /// with and without this file.
    pub(super) fn strikes(planted: Option<Self>, which: Self, permille: u64, rng: &mut Rng) -> bool {
        planted == Some(which) && rng.chance(permille)
    }
}
