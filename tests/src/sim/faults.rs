//! The seeded generator, and what one seed makes of a run: how big the node is, how slow and how faulty its parts are.
//!
//! Everything random in a run comes from one [`Rng`], so that a seed names a run. Chances are in permille.

use super::canary::Canary;
use payload_ledger::segments::Geometry;
use payload_shards::Watermarks;
use payload_types::event::{DriverError, DriverErrorKind};
use payload_types::{ByteCount, PerTier, Tier};

/// SplitMix64 (Steele, Lea, Flood 2014): tiny, and good enough to choose what happens next.
#[derive(Clone, Debug)]
pub(super) struct Rng(u64);

impl Rng {
    /// The generator of this seed; neighbouring seeds give unrelated runs.
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = Self(seed ^ 0x5851_F42D_4C95_7F2D);
        rng.next();
        Self(rng.next())
    }

    /// 64 random bits.
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        value ^ (value >> 31)
    }

    /// Below `end`, which is not 0.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }

    /// From `low` to `high`, both included.
    pub(super) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True in `permille` of 1,000 cases.
    pub(super) fn chance(&mut self, permille: u64) -> bool {
        self.below(1000) < permille
    }

    /// One of these.
    pub(super) fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}

/// One microsecond, in the unit of the virtual clock.
pub(super) const MICROS: u64 = 1_000;
/// One millisecond.
pub(super) const MILLIS: u64 = 1_000_000;
/// One second.
pub(super) const SECONDS: u64 = 1_000_000_000;

/// How often the oracle looks into the shards with List, Stats and Resolve.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Probing {
    /// After every step: sees each state, but its own requests are steps too.
    EveryStep,
    /// Now and then: leaves the shards alone.
    Rarely,
}

/// What a seed makes of a run.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// Shards at the first start; drawn anew at each restart.
    pub(super) shard_count: u16,
    /// Capacity by tier.
    pub(super) capacity: PerTier<Option<ByteCount>>,
    /// Sizes of the disk's segment files; `None`: each replica has a file of its own.
    pub(super) packing: Option<Geometry>,
    /// Where eviction begins and ends, on every tier.
    pub(super) watermarks: Watermarks,
    /// The unit sizes are drawn in.
    pub(super) grain: u64,
    pub(super) lease_ms_default: u64,
    pub(super) lease_ms_max: u64,
    pub(super) allocation_timeout_ms: u64,
    pub(super) disk_fsync: bool,
    /// `database.sqlite.synchronous: normal`.
    pub(super) catalog_normal: bool,
    /// Mean time between two client requests, in nanoseconds.
    pub(super) think_ns: u64,
    /// Payloads the clients try to keep alive.
    pub(super) payloads_wanted: u64,
    /// All of them allocated at once, at the start, with one ttl: mass expiry.
    pub(super) crowd: bool,
    /// Requests with a deadline.
    pub(super) deadline_permille: u64,
    /// Payloads with a ttl.
    pub(super) ttl_permille: u64,
    /// Driver ops that fail.
    pub(super) driver_fault_permille: u64,
    /// Catalog transactions that fail.
    pub(super) catalog_fault_permille: u64,
    /// Clients spill, promote and delete most of the time, on a disk that is full soon: segment files come and go.
    pub(super) churn: bool,
    /// Allocations that want a large part of the disk: more than is free, and less than what is dead there, too.
    pub(super) huge_permille: u64,
    /// Wishes to move a packed replica that no compaction has, per client request.
    pub(super) relocate_permille: u64,
    /// Replicas damaged behind the server's back, per client request.
    pub(super) damage_permille: u64,
    /// Crashes, per 10,000 client requests.
    pub(super) crash_per_10k: u64,
    /// Of those: with loss of power.
    pub(super) power_loss_permille: u64,
    /// Slow parts: a driver op or transaction takes seconds.
    pub(super) slow_permille: u64,
    /// Effects that stay in the outbox for a while.
    pub(super) lazy_pump_permille: u64,
    /// Readers and producers that keep a replica mapped after their lease, or forever.
    pub(super) linger_permille: u64,
    pub(super) probing: Probing,
    /// Batches of commits, per client request.
    pub(super) batch_permille: u64,
    /// Changes of streams that retain payloads, per client request.
    pub(super) stream_permille: u64,
    /// Chance of a search for payloads.
    pub(super) find_permille: u64,
    /// Requests of native sessions, of those that can be theirs.
    pub(super) session_permille: u64,
    /// Allocations of sessions in RAM that are for memory of theirs.
    pub(super) arena_permille: u64,
    /// Half of the crashes are graceful stops.
    pub(super) stops: bool,
    /// What one session may lease on one shard.
    pub(super) session_leases_max: u32,
    /// More is asked for than RAM holds, all the time, and everything may be evicted: nobody may wait long.
    pub(super) overload: bool,
}

impl Plan {
    /// Draws the plan of a seed.
    // Long because: one field after the other.
    pub(super) fn draw(rng: &mut Rng) -> Self {
        let churn = rng.chance(300);
        let grain = if churn { 4096 } else { rng.pick(&[1, 4096, 4096, 1 << 20, 1 << 28]) };
        let page_grain = grain.max(4096);
        let crammed = churn && rng.chance(300);
        let roomy = rng.chance(400);
        let ram_units = if roomy { rng.between(200, 2000) } else { rng.between(4, 60) };
        let disk_units = match churn {
            true => rng.between(150, 450),
            false if rng.chance(700) => rng.between(200, 3000),
            false => rng.between(4, 60),
        };
        let mut capacity = PerTier::default();
        capacity[Tier::Ram] = Some(ByteCount(ram_units * page_grain));
        let mut packing = None;
        if rng.chance(930) {
            let bytes = ByteCount(disk_units * page_grain);
            packing =
                segment_files(bytes, page_grain, rng).filter(|_| rng.chance(if crammed { 400 } else { 850 }));
            capacity[Tier::Disk] = Some(packing.map_or(bytes, Geometry::usable));
        }
        let lease_ms_max = rng.pick(&[50, 500, 5_000, 120_000]);
        let crowd = rng.chance(30);
        let calm = rng.chance(150);
        let fault = |rng: &mut Rng, high: u64| if calm { 0 } else { rng.pick(&[0, high / 5, high]) };
        Self {
            shard_count: rng.between(1, 5) as u16,
            capacity,
            packing,
            watermarks: rng.pick(&[
                Watermarks::default(),
                Watermarks { low: 40, high: 60 },
                Watermarks { low: 0, high: 10 },
                Watermarks { low: 99, high: 100 },
            ]),
            grain,
            lease_ms_default: rng.between(10, lease_ms_max.min(20_000)),
            lease_ms_max,
            allocation_timeout_ms: rng.pick(&[200, 2_000, 20_000, 3_600_000]),
            disk_fsync: rng.chance(700),
            catalog_normal: rng.chance(500),
            think_ns: rng.pick(&[20 * MICROS, 200 * MICROS, 2 * MILLIS, 20 * MILLIS, 100 * MILLIS]),
            payloads_wanted: match crowd {
                true => 700,
                false if crammed => rng.between(100, 200),
                false if churn => rng.between(30, 120),
                false => rng.pick(&[2, 6, 15, 30]),
            },
            crowd,
            deadline_permille: rng.pick(&[0, 200, 500, 900]),
            ttl_permille: rng.pick(&[0, 100, 400]),
            driver_fault_permille: fault(rng, 100),
            catalog_fault_permille: fault(rng, 150),
            churn,
            huge_permille: rng.pick(&[0, 0, 10, 50]),
            relocate_permille: if churn { rng.pick(&[0, 100, 400]) } else { rng.pick(&[0, 20, 100]) },
            damage_permille: fault(rng, if churn { 30 } else { 10 }),
            crash_per_10k: if churn { rng.pick(&[0, 40, 150]) } else { rng.pick(&[0, 10, 40]) },
            power_loss_permille: rng.pick(&[0, 300, 1000]),
            slow_permille: rng.pick(&[0, 20, 200]),
            lazy_pump_permille: rng.pick(&[0, 50, 400]),
            linger_permille: rng.pick(&[0, 100, 500]),
            overload: false,
            batch_permille: 0,
            stream_permille: 0,
            session_permille: 0,
            session_leases_max: 1 << 16,
            arena_permille: 0,
            stops: false,
            find_permille: 0,
            probing: if rng.chance(500) { Probing::EveryStep } else { Probing::Rarely },
        }
    }

    /// A node without faults whose RAM is asked for more than it holds, by small and by huge payloads, for as long as the
    /// run lasts.
    pub(super) fn overload(&mut self) {
        self.overload = true;
        let grain = self.grain.max(4096);
        self.capacity[Tier::Ram] = Some(ByteCount(40 * grain));
        let disk = Geometry::new(ByteCount(1_000_000 * grain), 64 * grain);
        self.packing = Some(disk).filter(|_| grain <= 1 << 20);
        self.capacity[Tier::Disk] = Some(self.packing.map_or(disk.capacity(), Geometry::usable));
        self.churn = false;
        self.watermarks = Watermarks::default();
        (self.payloads_wanted, self.crowd) = (u64::MAX, false);
        self.allocation_timeout_ms = 200;
        (self.lease_ms_max, self.lease_ms_default) = (50, 50);
        // 5.5 units every 7 ms or so, each held for some 30 ms until it was committed and evicted: more than the third of
        // the tier that is left when the low watermark has been reached, hence waits all the time.
        self.think_ns = 3 * MILLIS;
        self.linger_permille = 0;
        self.pacify();
    }

    /// One seed in three meets batches of commits, a few or many. By the seed, and not drawn: the other runs stay as they are.
    pub(super) fn batches_of(&mut self, seed: u64) {
        self.batch_permille = match seed % 6 {
            _ if self.overload => 0,
            1 => 60,
            4 => 300,
            _ => 0,
        };
    }

    /// Two seeds in five meet streams that retain payloads, as above.
    pub(super) fn streams_of(&mut self, seed: u64) {
        self.stream_permille = match seed % 5 {
            _ if self.overload || self.crowd => 0,
            2 => 60,
            3 => 250,
            _ => 0,
        };
    }

    /// Two seeds in seven search for payloads, as above.
    pub(super) fn finds_of(&mut self, seed: u64) {
        self.find_permille = match seed % 7 {
            3 => 50,
            5 => 200,
            _ => 0,
        };
    }

    /// Three seeds in seven have native sessions, as above; one of them with few leases for each.
    pub(super) fn sessions_of(&mut self, seed: u64) {
        (self.session_permille, self.session_leases_max) = match seed % 7 {
            _ if self.overload || self.crowd || self.stream_permille > 0 => (0, 1 << 16),
            1 => (250, 1 << 16),
            4 => (600, 1 + seed as u32 % 2),
            6 => (600, 1 << 16),
            _ => (0, 1 << 16),
        };
    }

    /// Two of three seeds with sessions have slabs; half of those have a RAM that is large enough for several payloads in
    /// one.
    pub(super) fn arenas_of(&mut self, seed: u64, canary: Option<Canary>) {
        let is_searched = canary.is_none_or(Canary::needs_slabs);
        if self.session_permille == 0 || seed % 3 == 2 || !is_searched {
            return;
        }
        self.arena_permille = if seed.is_multiple_of(3) { 500 } else { 800 };
        self.stops = canary.is_none_or(Canary::needs_stops);
        if self.stops && seed % 5 < 2 {
            self.crash_per_10k = self.crash_per_10k.max(60);
        }
        if let Some(ram) = self.capacity[Tier::Ram].filter(|_| seed.is_multiple_of(2)) {
            self.capacity[Tier::Ram] = Some(ByteCount(ram.0.max((16 << 20) + seed % 5 * (4 << 20))));
        }
    }

    /// More payloads than there is room for, on a disk that is full of them with a file for each: RAM is waited for over a
    /// full disk.
    pub(super) fn cram(&mut self, rng: &mut Rng) {
        let grain = self.grain.max(4096);
        self.capacity[Tier::Ram] = Some(ByteCount(rng.between(4, 100) * grain));
        self.capacity[Tier::Disk] = Some(ByteCount(rng.between(150, 450) * grain));
        (self.packing, self.churn, self.crowd) = (None, true, false);
        self.payloads_wanted = rng.between(100, 200);
    }

    /// No more faults: clients have stopped, and time shall heal everything.
    pub(super) fn pacify(&mut self) {
        self.driver_fault_permille = 0;
        self.catalog_fault_permille = 0;
        self.damage_permille = 0;
        self.crash_per_10k = 0;
        self.slow_permille = 0;
        self.deadline_permille = 0;
    }

    /// True for what a copy to DISK puts into a segment file, if there is one.
    pub(super) fn packs(&self, size: ByteCount) -> bool {
        self.packing.is_some_and(|geometry| size <= geometry.payload_max())
    }

    /// How long a driver op takes.
    pub(super) fn driver_delay(&self, rng: &mut Rng) -> u64 {
        if rng.chance(self.slow_permille) {
            return rng.between(100 * MILLIS, 5 * SECONDS);
        }
        if rng.chance(300) { rng.between(1, 20) * MILLIS } else { rng.between(5, 300) * MICROS }
    }

    /// How long a catalog transaction takes.
    pub(super) fn catalog_delay(&self, rng: &mut Rng) -> u64 {
        if rng.chance(self.slow_permille) {
            rng.between(50 * MILLIS, 3 * SECONDS)
        } else {
            rng.between(30, 4000) * MICROS
        }
    }

    /// How long a message takes from one thread to another.
    pub(super) fn hop_delay(&self, rng: &mut Rng) -> u64 {
        if rng.chance(50) { rng.between(100, 2000) * MICROS } else { rng.between(0, 40) * MICROS }
    }

    /// How long somebody keeps a replica mapped after the lease, or the producer after Commit.
    pub(super) fn linger(&self, rng: &mut Rng) -> u64 {
        if !rng.chance(self.linger_permille) {
            return 0;
        }
        if rng.chance(200) { rng.between(1, 200) * SECONDS } else { rng.between(1, 500) * MILLIS }
    }
}

/// Files of a few of the largest payloads, where a disk has room for some beside what has to be kept free.
pub(super) fn segment_files(capacity: ByteCount, grain: u64, rng: &mut Rng) -> Option<Geometry> {
    let data_bytes = rng.pick(&[8, 16, 16, 48, 64]) * grain;
    // Page numbers of the largest grain would not matter to anybody, and its payloads are never packed.
    let is_sensible = grain <= 1 << 20 && capacity.0 / data_bytes >= 12;
    let geometry = is_sensible.then(|| Geometry::new(capacity, data_bytes))?;
    (geometry.usable().0 >= capacity.0 / 4).then_some(geometry)
}

/// An error as a driver words it.
pub(super) fn driver_error(kind: DriverErrorKind) -> DriverError {
    DriverError { kind, message: format!("simulated {kind:?}") }
}
