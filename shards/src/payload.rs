//! One payload: what it is, where its replicas lie, who leases it, what is being done to it.
//!
//! Invariants: at most one current replica a tier; every lease refers to a current replica or to one in limbo; at
//! most one operation at a time works on the payload ([`crate::op`]).

use std::hint::black_box;

use payload_ledger::list::Ends;
use payload_ledger::{SlotKey, TimerId};
use payload_types::effect::ReplicaRef;
use payload_types::reply::Summary;
use payload_types::{
    Block, ByteCount, Checksum, Descriptor, Epoch, EvictionPolicy, Extent, Generation, Health, Location,
    PayloadKey, PayloadRow, PayloadState, PerTier, Pin, ReplicaRow, Tier, Version, WallMs,
};

use crate::evict::Class;
use crate::limbo::Users;

/// A current replica.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Replica {
    /// Which one.
    pub generation: Generation,
    /// Who needs it.
    pub users: Users,
    /// On stable storage.
    pub synced: bool,
    /// True when bringing it to stable storage failed, or may have in an earlier run: the kernel may have dropped the
    /// dirty pages, so asking again would prove nothing.
    pub sync_failed: bool,
    /// True when its bytes were found damaged and another replica serves the payload: it is never served alone.
    pub unsound: bool,
    /// When it was made, in seconds since 1970; 0: before this start. In seconds, because that takes no room: the
    /// record would be padded by as much.
    pub made_s: u32,
}

impl Replica {
    /// A new replica that nobody uses.
    pub fn new(generation: Generation, synced: bool, made_at: WallMs) -> Self {
        let made_s = u32::try_from(made_at.as_millis() / 1000).unwrap_or(u32::MAX);
        Self { generation, users: Users::default(), synced, sync_failed: false, unsound: false, made_s }
    }

    /// True when a faster replica may be dropped because this one is there. After a failed fdatasync the file may hold
    /// anything once its pages have left memory: then it is written anew first.
    pub fn is_trusted(&self) -> bool {
        !self.unsound && !self.sync_failed
    }
}

// Four of them stand in every payload.
const _: () = assert!(std::mem::size_of::<Option<Replica>>() == 24);

/// See the module.
#[derive(Debug)]
pub struct Payload {
    /// Identity.
    pub key: PayloadKey,
    /// Exactly what was asked for.
    pub size: ByteCount,
    /// Lifecycle state.
    pub state: PayloadState,
    /// Whether the bytes can still be had.
    pub health: Health,
    /// Grows with every change of tier, location or state.
    pub version: Version,
    /// Creation time.
    pub created_at: WallMs,
    /// Expiry.
    pub expires_at: Option<WallMs>,
    /// Never evicted automatically.
    pub no_evict: bool,
    /// As given.
    pub policy: EvictionPolicy,
    /// See [`Payload::checksum`]. Apart from its flag, which lies in padding: an `Option` would take 8 bytes more.
    checksum: Checksum,
    has_checksum: bool,
    /// The pin.
    pub pin: Pin,
    /// True while a Put that only changes the pin is on its way to the catalog.
    pub pin_stored_by: Option<SlotKey>,
    /// True once a row stands in the catalog.
    pub stored: bool,
    /// True until Allocate was answered: nobody can know the id.
    pub creating: bool,
    /// True while some stream, or an append, holds it (`holds`). Kept by the table.
    pub held: bool,
    /// The replica on RAM lies in a slab; where, the table knows. It has no charge of its own.
    pub in_arena: bool,
    /// COMMITTING, and already shown as ACTIVE: its Commit was ACCEPTED.
    pub accepted: bool,
    /// Current replicas.
    pub replicas: PerTier<Option<Replica>>,
    /// Where the replica on DISK lies in a segment file; `None`: it has a file of its own, or there is none.
    pub extent: Option<Extent>,
    /// The segment of this payload that is in limbo and still has its name.
    pub limbo_segment: Option<SlotKey>,
    /// What is being done to it.
    pub op: Option<SlotKey>,
    /// Its leases, oldest first.
    pub leases: Ends,
    /// Leases held.
    pub lease_count: u32,
    /// Requests that wait for it.
    pub parked: Ends,
    /// Failed moves in the background that wait for their next attempt.
    pub retries: Ends,
    /// Fires at its expiry, or when its allocation times out.
    pub timer: Option<TimerId>,
    /// Fires when its pin ends.
    pub pin_timer: Option<TimerId>,
    /// The list of victims it stands in, unless it is leased. Kept by the table.
    pub class: Class,
    /// Its last eviction failed: it is passed over until its timer fires.
    pub passed_over: bool,
    /// Evictions that failed in a row.
    pub eviction_failures: u8,
}

// 264 bytes with their links, index and order are what `memory/payload` may take (DESIGN §10: 320).
const _: () = assert!(std::mem::size_of::<Payload>() <= 264);

/// What Allocate fixes for a payload's life.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Identity.
    pub key: PayloadKey,
    /// Exactly what was asked for.
    pub size: ByteCount,
    /// Creation time.
    pub created_at: WallMs,
    /// Expiry.
    pub expires_at: Option<WallMs>,
    /// Never evicted automatically.
    pub no_evict: bool,
    /// As given.
    pub policy: EvictionPolicy,
}

impl Payload {
    /// Begins to load the record's cache lines all at once. Whoever looks a payload up needs most of them, and would wait for
    /// one after another: a pair of lease and release is 2 to 5 % faster (docs/BENCH.md). It changes and tells nothing.
    #[inline]
    pub(crate) fn fetch(&self) {
        black_box(self.lease_count);
        black_box(self.size);
        black_box(self.replicas[Tier::Gpu].is_some());
        black_box(self.replicas[Tier::Ram].is_some());
        black_box(self.replicas[Tier::Object].is_some());
    }

    /// A payload that nobody knows of yet and that has no replica.
    pub fn new(terms: Terms) -> Self {
        let Terms { key, size, created_at, expires_at, no_evict, policy } = terms;
        Self {
            key,
            size,
            state: PayloadState::Allocated,
            health: Health::Good,
            version: Version::FIRST,
            created_at,
            expires_at,
            no_evict,
            policy,
            checksum: Checksum(0),
            has_checksum: false,
            pin: Pin::None,
            pin_stored_by: None,
            stored: false,
            creating: true,
            held: false,
            in_arena: false,
            accepted: false,
            replicas: PerTier::default(),
            extent: None,
            limbo_segment: None,
            op: None,
            leases: Ends::default(),
            lease_count: 0,
            parked: Ends::default(),
            retries: Ends::default(),
            timer: None,
            pin_timer: None,
            class: Class::NONE,
            passed_over: false,
            eviction_failures: 0,
        }
    }

    /// Of its bytes: known from the first copy on, or from Commit.
    pub fn checksum(&self) -> Option<Checksum> {
        self.has_checksum.then_some(self.checksum)
    }

    /// Notes or forgets the checksum.
    pub fn set_checksum(&mut self, checksum: Option<Checksum>) {
        self.has_checksum = checksum.is_some();
        self.checksum = checksum.unwrap_or(Checksum(0));
    }

    /// The tier its descriptor shows: the fastest replica's.
    ///
    /// # Panics
    /// When it has no replica: such a payload is shown to nobody.
    pub fn tier(&self) -> Tier {
        self.fastest().expect("a payload that is shown has a replica")
    }

    /// The tier of its fastest replica.
    pub fn fastest(&self) -> Option<Tier> {
        Tier::ALL.into_iter().find(|tier| self.replicas[*tier].is_some())
    }

    /// The slowest tier that has a replica.
    pub fn slowest(&self) -> Option<Tier> {
        Tier::ALL.into_iter().rev().find(|tier| self.replicas[*tier].is_some())
    }

    /// True when a disk or object replica exists.
    pub fn is_durable(&self) -> bool {
        Tier::ALL.into_iter().any(|tier| tier.is_durable() && self.replicas[tier].is_some())
    }

    /// The state its replicas give it when nothing is being done to it.
    pub fn settled_state(&self) -> PayloadState {
        if self.is_durable() { PayloadState::Durable } else { PayloadState::Active }
    }

    /// Charged bytes of its replica on `tier`, if it has one: whole pages, or nothing where its slab is charged.
    #[inline]
    pub fn charged_on(&self, tier: Tier) -> u64 {
        if self.in_arena && tier == Tier::Ram { 0 } else { self.size.in_pages().0 }
    }

    /// True when it was committed, as clients see it.
    pub fn is_committed(&self) -> bool {
        self.state.is_committed() || self.accepted
    }

    /// True when a replica on `tier` is there after a `kill -9` of the server: device memory and slabs go with it.
    fn outlives_server(&self, tier: Tier) -> bool {
        match tier {
            Tier::Gpu => false,
            Tier::Ram => !self.in_arena,
            Tier::Disk | Tier::Object => true,
        }
    }

    /// True when it was committed and the end of the server loses its bytes.
    pub fn dies_with_server(&self) -> bool {
        let is_kept = |tier: Tier| self.replicas[tier].is_some() && self.outlives_server(tier);
        self.is_committed() && !Tier::ALL.into_iter().any(is_kept)
    }

    /// How drivers are told about its replica on `tier`; `block` is where one in a slab lies.
    pub fn replica_ref(&self, tier: Tier, block: Option<Block>) -> Option<ReplicaRef> {
        let replica = self.replicas[tier]?;
        let extent = self.extent.filter(|_| tier == Tier::Disk);
        Some(ReplicaRef {
            tier,
            id: self.key.id,
            generation: replica.generation,
            size: self.size,
            extent,
            block: block.filter(|_| tier == Tier::Ram && self.in_arena),
        })
    }

    /// True when the ttl has passed at `wall`, and no stream keeps it.
    pub fn is_expired_at(&self, wall: WallMs) -> bool {
        !self.held && self.expires_at.is_some_and(|end| end <= wall)
    }

    /// Moves to `next`.
    ///
    /// # Panics
    /// When the transition table does not allow it.
    pub fn set_state(&mut self, next: PayloadState) {
        if self.state != next {
            assert!(self.state.may_become(next), "{} may not become {next}", self.state);
            self.state = next;
        }
    }

    /// The state as clients see it: COMMITTING is internal.
    pub fn shown_state(&self) -> PayloadState {
        match self.state {
            PayloadState::Committing if self.accepted => self.settled_state(),
            PayloadState::Committing => PayloadState::Allocated,
            state => state,
        }
    }

    /// Where the replica on `tier` lies; `block` is where one in a slab does.
    pub fn location(&self, tier: Tier, block: Option<Block>) -> Option<Location> {
        let replica = self.replicas[tier]?;
        Some(match tier {
            Tier::Ram if self.in_arena => Location::Arena(block?),
            Tier::Disk => self.extent.map_or(Location::File(replica.generation), Location::Packed),
            Tier::Gpu => Location::Gpu(replica.generation),
            Tier::Ram => Location::Segment,
            Tier::Object => Location::Object,
        })
    }

    /// True when its fastest replica lies in a slab.
    pub fn shows_block(&self) -> bool {
        self.in_arena && self.fastest() == Some(Tier::Ram)
    }

    /// True when its fastest replica lies in a file that others share.
    pub fn shows_packed(&self) -> bool {
        self.extent.is_some() && self.fastest() == Some(Tier::Disk)
    }

    /// What a client is told; `with_location` is false where the bytes must not be read.
    pub fn describe(&self, with_location: bool, block: Option<Block>) -> Descriptor {
        let tier = self.tier();
        let location = self.location(tier, block).expect("the shown tier has a replica");
        Descriptor {
            id: self.key.id,
            tier,
            state: self.shown_state(),
            location: with_location.then_some(location),
            size: self.size,
            version: self.version,
            created_at: self.created_at,
            expires_at: self.expires_at,
            policy: self.policy,
            checksum: self.checksum(),
        }
    }

    /// One row of a listing.
    pub fn summary(&self) -> Summary {
        Summary {
            id: self.key.id,
            tier: self.tier(),
            state: self.shown_state(),
            size: self.size,
            created_at: self.created_at,
            expires_at: self.expires_at,
            leases: self.lease_count,
        }
    }

    /// The row to store for it as it is, but with `state`, `version` and `replicas` as they will be.
    pub fn row(
        &self,
        epoch: Epoch,
        state: PayloadState,
        version: Version,
        replicas: Vec<ReplicaRow>,
    ) -> PayloadRow {
        PayloadRow {
            key: self.key,
            size: self.size,
            state,
            version,
            epoch,
            created_at: self.created_at,
            expires_at: self.expires_at,
            no_evict: self.no_evict,
            policy: self.policy,
            checksum: self.checksum(),
            pin: self.pin,
            health: self.health,
            replicas,
        }
    }

    /// The replicas its row vouches for: the durable ones, and the volatile ones while no sound durable one exists. So
    /// what serves a payload whose file was found damaged is found again after a `kill -9`.
    pub fn replica_rows(&self) -> Vec<ReplicaRow> {
        let sound = |tier: Tier| self.replicas[tier].is_some_and(|replica| !replica.unsound);
        let durable = Tier::ALL.into_iter().any(|tier| tier.is_durable() && sound(tier));
        let vouched = |tier: &Tier| tier.is_durable() || !durable && self.outlives_server(*tier);
        let row = |tier: Tier| {
            let replica = self.replicas[tier]?;
            Some(ReplicaRow {
                tier,
                generation: replica.generation,
                synced: replica.synced,
                sound: !replica.unsound,
                extent: self.extent.filter(|_| tier == Tier::Disk),
            })
        };
        Tier::ALL.into_iter().filter(vouched).filter_map(row).collect()
    }
}
