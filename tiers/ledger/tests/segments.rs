//! The books of segment files against a model of a disk, in random orders: puts, deletes, readers that hold files,
//! compaction, recycling, restarts. What must hold at every moment is asserted after every step.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;

use payload_ledger::segments::table::Header;
use payload_ledger::segments::{Books, Buried, Found, Geometry, Lane, Room, Spot};
use payload_types::limits::PAGE_BYTES;
use payload_types::{ByteCount, Extent, Generation, ShardIndex};

/// A small generator: the same seed gives the same run.
struct Rng(u64);

impl Rng {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) % end.max(1)
    }
}

#[derive(Clone, Copy, Debug)]
struct Placed {
    extent: Option<Extent>,
    size: ByteCount,
    generation: u64,
    /// Moved by compaction and still leased at its old place.
    old: Option<(Extent, u64)>,
}

/// A file's life: where its records are, and which are taken in this life.
#[derive(Clone, Debug)]
struct Life {
    header: Header,
    records: Vec<(Extent, ByteCount, u64)>,
}

/// Generations from here on are those of files' ends.
const END: u64 = 1 << 32;

struct Disk {
    rng: Rng,
    books: Books,
    capacity: u64,
    usable: u64,
    charged: u64,
    payloads: Vec<Placed>,
    /// What each dead generation gives back when it is free.
    dying: BTreeMap<u64, u64>,
    lives: BTreeMap<NonZeroU32, Life>,
    readers: BTreeSet<NonZeroU32>,
    generation: u64,
    own_though_small: u64,
    /// What somebody waits for.
    wanted: ByteCount,
    relocations: u64,
    recycled: u64,
    /// It held more at the last start than it may: its capacity was lowered.
    is_overfull: bool,
    /// Bytes of files' ends that were charged.
    ends: u64,
}

impl Disk {
    fn new(seed: u64, geometry: Geometry) -> Self {
        Self {
            rng: Rng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1),
            books: Books::new(geometry),
            capacity: geometry.capacity().0,
            usable: geometry.usable().0,
            charged: 0,
            payloads: Vec::new(),
            dying: BTreeMap::new(),
            lives: BTreeMap::new(),
            readers: BTreeSet::new(),
            generation: 0,
            own_though_small: 0,
            wanted: ByteCount(0),
            relocations: 0,
            recycled: 0,
            is_overfull: false,
            ends: 0,
        }
    }

    fn lane(&mut self) -> Lane {
        Lane::Writer(self.rng.below(self.books.geometry().writers() as u64) as usize)
    }

    fn open(&mut self, lane: Lane) {
        let old = self.books.take_free();
        if let Some(old) = old {
            self.lives.remove(&old);
        }
        let number = self.books.number_next();
        let header = Header { number, data_bytes: self.books.geometry().data_bytes(), root: [1; 16] };
        self.books.opened(lane, header, old);
        assert!(self.lives.insert(number, Life { header, records: Vec::new() }).is_none(), "a new number");
    }

    fn place(&mut self, lane: Lane, size: ByteCount) -> Option<Spot> {
        for _ in 0..3 {
            match self.books.reserve(lane, size) {
                Room::Here(spot) => return Some(spot),
                Room::Open => self.open(lane),
                Room::None => return None,
            }
        }
        panic!("a lane was opened three times for {size}");
    }

    fn record(&mut self, spot: Spot, size: ByteCount) -> u64 {
        self.generation += 1;
        let life = self.lives.get_mut(&spot.extent.file).expect("an open file");
        assert_eq!(spot.slot as usize, life.records.len(), "records are written front to back");
        let (start, pages) = (spot.extent.page, size.0.div_ceil(PAGE_BYTES) as u32);
        assert!(start >= life.header.first_page() && start + pages <= life.header.end_page());
        if let Some((extent, size, _)) = life.records.last() {
            assert!(extent.page + size.0.div_ceil(PAGE_BYTES) as u32 <= start, "no page is used twice");
        }
        life.records.push((spot.extent, size, self.generation));
        self.books.written(spot.extent, size);
        self.generation
    }

    /// What an arbiter would let through; false when the disk is full.
    fn put(&mut self, size: ByteCount, by_client: bool) -> bool {
        if self.charged + size.in_pages().0 > self.usable {
            return false;
        }
        self.charged += size.in_pages().0;
        let lane = self.lane();
        let spot = if by_client { None } else { self.place(lane, size) };
        let placed = match spot {
            Some(spot) if self.rng.below(40) == 0 => {
                // The write fails: nothing was acknowledged, and nothing is charged.
                self.books.give_back(spot);
                self.charged -= size.in_pages().0;
                return true;
            }
            Some(spot) => {
                let generation = self.record(spot, size);
                Placed { extent: Some(spot.extent), size, generation, old: None }
            }
            None => {
                self.own_though_small += u64::from(!by_client && size <= self.books.geometry().payload_max());
                self.trim(size);
                self.books.own_added(size);
                Placed { extent: None, size, generation: 0, old: None }
            }
        };
        self.payloads.push(placed);
        true
    }

    fn trim(&mut self, size: ByteCount) {
        while let Some(free) = self.books.surplus(size) {
            self.books.removed(free);
            self.lives.remove(&free);
        }
    }

    fn bury(&mut self, extent: Extent, size: ByteCount, generation: u64, charge: u64) {
        self.dying.insert(generation, charge);
        let buried = Buried { shard: ShardIndex(0), generation: Generation(generation) };
        self.books.dead(extent, size, buried);
    }

    fn delete(&mut self) {
        if self.payloads.is_empty() {
            return;
        }
        let index = self.rng.below(self.payloads.len() as u64) as usize;
        let Placed { extent, size, generation, old } = self.payloads.swap_remove(index);
        if let Some((old, old_generation)) = old {
            self.bury(old, size, old_generation, 0);
        }
        match extent {
            Some(extent) => self.bury(extent, size, generation, size.in_pages().0),
            None => {
                self.books.own_removed(size);
                self.charged -= size.in_pages().0;
            }
        }
    }

    fn release_old(&mut self) {
        for index in 0..self.payloads.len() {
            if let Some((old, generation)) = self.payloads[index].old.take() {
                let size = self.payloads[index].size;
                self.bury(old, size, generation, 0);
            }
        }
    }

    fn recycle(&mut self) {
        for number in self.books.recyclable() {
            assert!(self.books.recycle_begin(number));
            if self.readers.contains(&number) {
                self.books.recycle_failed(number);
                continue;
            }
            let (buried, remove) = self.books.recycled(number);
            self.recycled += 1;
            for Buried { generation, .. } in buried {
                self.charged -= self.dying.remove(&generation.0).expect("told once");
            }
            if remove {
                self.books.removed(number);
                self.lives.remove(&number);
            }
        }
    }

    /// Empties one file, or a part of it. False when there is none.
    fn compact(&mut self, leased_of_8: u64) -> bool {
        let Some(victim) = self.books.victim(self.wanted) else { return false };
        self.books.begin(victim);
        self.trim(ByteCount(0));
        for index in 0..self.payloads.len() {
            let payload = self.payloads[index];
            let Some(from) = payload.extent.filter(|extent| extent.file == victim.file) else { continue };
            if payload.old.is_some() {
                continue; // leased twice over: it stays for now
            }
            let Some(spot) = self.place(Lane::Mover, payload.size) else { break };
            let generation = self.record(spot, payload.size);
            self.books.moved(from, payload.size);
            self.relocations += 1;
            self.payloads[index] = Placed {
                extent: Some(spot.extent),
                generation,
                old: Some((from, payload.generation)),
                ..payload
            };
            if self.rng.below(8) >= leased_of_8 {
                self.payloads[index].old = None;
                self.bury(from, payload.size, payload.generation, 0);
            }
        }
        if self.rng.below(2) == 0 {
            self.books.emptying_ended(victim.file);
        }
        true
    }

    /// Compacts until nothing is worth it, or the waiter has what he wants of the disk.
    fn compact_for(&mut self, asked: u64) {
        for _ in 0..2000 {
            self.wanted = ByteCount(asked.saturating_sub(self.usable - self.charged));
            if asked > 0 && self.wanted == ByteCount(0) || !self.compact(0) {
                break;
            }
            self.recycle();
            self.check();
        }
    }

    /// A kill and a start: what is known afterwards is what the tables and the rows say.
    fn restart(&mut self) {
        self.restart_as(self.books.geometry());
    }

    /// A start with another capacity, or with files of another size.
    fn restart_as(&mut self, geometry: Geometry) {
        let mut books = Books::new(geometry);
        (self.capacity, self.usable) = (geometry.capacity().0, geometry.usable().0);
        let mut live = BTreeMap::new();
        for payload in &mut self.payloads {
            payload.old = None;
            match payload.extent {
                Some(extent) => drop(live.insert(extent, payload.size)),
                None => books.own_added(payload.size),
            }
        }
        self.charged = self.payloads.iter().map(|payload| payload.size.in_pages().0).sum();
        self.dying.clear();
        self.readers.clear();
        for life in self.lives.values() {
            let next_page = life.records.last().map_or(life.header.first_page(), |(extent, size, _)| {
                extent.page + size.0.div_ceil(PAGE_BYTES) as u32
            });
            books.adopt(Found { header: life.header, slots: life.records.len() as u32, next_page });
            for (extent, size, generation) in &life.records {
                if live.remove(extent) == Some(*size) {
                    books.vouched(*extent, *size);
                    continue;
                }
                let buried = Buried { shard: ShardIndex(0), generation: Generation(*generation) };
                books.bury(*extent, *size, buried);
                self.dying.insert(*generation, size.in_pages().0);
                self.charged += size.in_pages().0;
            }
        }
        assert!(live.is_empty(), "every row has its record");
        for number in self.lives.keys() {
            let generation = END + u64::from(number.get());
            let buried = Buried { shard: ShardIndex(0), generation: Generation(generation) };
            if let Some(size) = books.bury_end(*number, buried) {
                self.dying.insert(generation, size.0);
                self.charged += size.0;
                self.ends += size.0;
            }
        }
        let is_over = books.physical().0 > self.capacity || self.charged > self.usable;
        self.is_overfull = is_over && (self.is_overfull || geometry != self.books.geometry());
        self.books = books;
    }

    fn check(&mut self) {
        let physical = self.books.physical().0;
        let fits = physical <= self.capacity;
        self.is_overfull &= !fits || self.charged > self.usable;
        assert!(fits || self.is_overfull, "{physical} of {}: {:?}", self.capacity, self.books);
        let live: u64 = self
            .payloads
            .iter()
            .filter(|payload| payload.extent.is_some())
            .map(|payload| payload.size.in_pages().0)
            .sum();
        let old: u64 = self
            .payloads
            .iter()
            .filter(|payload| payload.old.is_some())
            .map(|payload| payload.size.in_pages().0)
            .sum();
        assert_eq!(self.books.live_bytes().0, live + old);
    }

    /// Something happens.
    fn step(&mut self, by_client: u64) {
        let most = self.books.geometry().payload_max().0 / PAGE_BYTES;
        match self.rng.below(100) {
            0..55 => {
                // Some are larger than what is packed.
                let size = if self.rng.below(50) == 0 { self.size(3 * most) } else { self.size(most) };
                let own = self.rng.below(10) < by_client;
                self.put(size, own);
            }
            55..80 => self.delete(),
            80..86 => self.recycle(),
            86..92 => drop(self.compact(2)),
            92..94 => {
                let files: Vec<NonZeroU32> = self.lives.keys().copied().collect();
                if !files.is_empty() {
                    let file = files[self.rng.below(files.len() as u64) as usize];
                    self.readers.insert(file);
                }
            }
            94..96 => self.readers.clear(),
            96 => self.release_old(),
            // Waiters come and go, for little and for more than there is.
            97 => self.wanted = ByteCount(self.rng.below(3) * self.rng.below(self.usable)),
            98 => {
                let lane = self.lane();
                self.books.close(lane);
                self.trim(ByteCount(0));
            }
            _ if self.rng.below(5) == 0 => self.restart(),
            _ => {}
        }
        self.check();
    }

    fn size(&mut self, most: u64) -> ByteCount {
        let pages = match self.rng.below(4) {
            0 => 1,
            1 => 1 + self.rng.below(most / 8),
            _ => 1 + self.rng.below(most),
        };
        ByteCount(pages * PAGE_BYTES - self.rng.below(PAGE_BYTES))
    }
}

fn geometries() -> [Geometry; 3] {
    [
        Geometry::of_capacity(ByteCount(128 << 20)).expect("large enough"),
        Geometry::new(ByteCount(40 << 20), 1 << 20),
        Geometry::new(ByteCount(2000 << 12), 32 << 12),
    ]
}

#[test]
fn given_random_operations_when_the_arbiter_keeps_to_what_is_usable_then_the_disk_never_passes_its_capacity()
{
    for seed in 1..=300 {
        let geometry = geometries()[seed as usize % 3];
        let mut disk = Disk::new(seed, geometry);
        let by_client = disk.rng.below(4);
        for _ in 0..1500 {
            disk.step(by_client);
        }
        assert!(disk.recycled > 0 && disk.relocations > 0, "seed {seed}: nothing was recycled or moved");
    }
}

/// Files of an earlier capacity are larger than today's, and are not filled further.
#[test]
fn given_files_of_a_larger_capacity_when_it_was_lowered_and_fits_again_then_the_disk_never_passes_it() {
    let mut ends = 0;
    for seed in 1..=200 {
        let before = Geometry::new(ByteCount(4000 << 12), 256 << 12);
        let after = Geometry::new(ByteCount(2000 << 12), [32, 64][seed as usize % 2] << 12);
        let mut disk = Disk::new(seed, before);
        let by_client = disk.rng.below(4);
        for _ in 0..disk.rng.below(600) {
            disk.step(by_client);
        }
        disk.restart_as(after);
        for _ in 0..1500 {
            disk.step(6 + by_client);
        }
        ends += disk.ends;
    }
    assert!(ends > 0, "no file's end was charged");
}

#[test]
fn given_a_full_disk_when_a_twentieth_is_deleted_then_compaction_brings_all_of_it_back_and_it_can_be_filled_again()
 {
    for seed in 1..=60 {
        let geometry = geometries()[seed as usize % 3];
        let most = geometry.payload_max().0 / PAGE_BYTES;
        let mut disk = Disk::new(seed, geometry);
        for _ in 0..6 {
            let mut refusals = 0;
            while refusals < 20 {
                let size = disk.size(most);
                refusals += u64::from(!disk.put(size, false));
                disk.check();
            }
            for _ in 0..disk.payloads.len().div_ceil(20) {
                disk.delete();
            }
            for _ in 0..2000 {
                let goes_on = disk.compact(0);
                disk.recycle();
                disk.check();
                if !goes_on {
                    break;
                }
            }
            let live: u64 = disk.payloads.iter().map(|payload| payload.size.in_pages().0).sum();
            let stuck = disk.charged - live;
            assert!(
                stuck * 50 <= disk.capacity,
                "seed {seed}: {stuck} bytes of {} are dead and never come back",
                disk.capacity
            );
        }
        let small = disk.own_though_small as f64 / disk.generation as f64;
        assert!(small < 0.25, "seed {seed}: {small:.2} of all small payloads found no segment file");
    }
}

#[test]
fn given_a_disk_that_is_not_full_when_somebody_wants_more_than_is_free_then_what_is_dead_is_won_for_him_and_no_more()
 {
    for seed in 1..=60 {
        let geometry = geometries()[seed as usize % 3];
        let most = geometry.payload_max().0 / PAGE_BYTES;
        let mut disk = Disk::new(seed, geometry);
        while disk.charged < disk.usable / 2 {
            let size = disk.size(most);
            disk.put(size, false);
        }
        for _ in 0..disk.payloads.len() / 6 {
            disk.delete();
        }
        disk.compact_for(0);
        let free = disk.usable - disk.charged;
        let live: u64 = disk.payloads.iter().map(|payload| payload.size.in_pages().0).sum();
        let dead = disk.charged - live;
        assert!(dead * 20 > live, "seed {seed}: {dead} of {live} are too little to speak of");
        let moved = disk.relocations;
        // More than there is: nothing that could be moved would help him.
        disk.compact_for(free + dead + 1);
        assert_eq!(disk.relocations, moved, "seed {seed}: in vain");
        // What there is: all of it, but for less than a page of each payload's.
        disk.compact_for(free + dead);
        assert!(disk.relocations > moved && disk.usable - disk.charged >= free + dead, "seed {seed}");
        disk.compact_for(0);
        disk.check();
    }
}

#[test]
fn given_a_waiter_who_was_served_or_has_gone_when_looked_at_then_nothing_is_worth_it_any_more() {
    let geometry = geometries()[0];
    let mut disk = Disk::new(9, geometry);
    while disk.charged < disk.usable / 2 {
        assert!(disk.put(ByteCount(60_000), false));
    }
    for _ in 0..disk.payloads.len() / 6 {
        disk.delete();
    }
    disk.compact_for(0);
    let asked = disk.usable - disk.charged + 64 * PAGE_BYTES;
    disk.compact_for(asked);
    assert!(disk.usable - disk.charged >= asked, "served");
    assert_eq!(disk.books.victim(ByteCount(0)), None, "what is still dead waits for the next");
    let dead = disk.books.dead_bytes();
    assert!(disk.books.victim(dead).is_some());
    assert_eq!(disk.books.victim(ByteCount(dead.0 + 1)), None);
}

#[test]
fn given_readers_that_let_nothing_go_when_compacted_and_filled_with_own_files_then_the_capacity_is_kept() {
    for seed in 1..=200 {
        let geometry = geometries()[seed as usize % 3];
        let most = geometry.payload_max().0 / PAGE_BYTES;
        let mut disk = Disk::new(seed, geometry);
        for _ in 0..8 {
            let (own_of_10, deleted_percent) = (disk.rng.below(11), 5 + disk.rng.below(60));
            let mut refusals = 0;
            while refusals < 20 {
                let (size, own) = (disk.size(most), disk.rng.below(10) < own_of_10);
                refusals += u64::from(!disk.put(size, own));
                disk.check();
            }
            disk.readers = disk.lives.keys().copied().collect();
            for _ in 0..disk.payloads.len() as u64 * deleted_percent / 100 {
                disk.delete();
            }
            for _ in 0..40 {
                disk.compact(8);
                disk.recycle();
                disk.check();
            }
            if disk.rng.below(2) == 0 {
                disk.release_old();
                disk.readers.clear();
                disk.recycle();
                disk.check();
            }
        }
    }
}

#[test]
fn given_many_starts_with_a_payload_each_when_resumed_then_the_same_files_are_filled_on() {
    let geometry = geometries()[1];
    let mut disk = Disk::new(7, geometry);
    for _ in 0..50 {
        assert!(disk.put(ByteCount(5000), false));
        disk.restart();
        disk.check();
    }
    assert!(disk.lives.len() <= geometry.writers() + 1, "{} files", disk.lives.len());
}

#[test]
fn given_a_sync_that_failed_when_the_file_is_emptied_then_it_is_removed_and_never_used_again() {
    let mut disk = Disk::new(3, geometries()[1]);
    for _ in 0..20 {
        assert!(disk.put(ByteCount(30_000), false));
    }
    let (file, _) = disk.books.lane_file(Lane::Writer(0)).expect("open");
    let Room::Here(_) = disk.books.reserve(Lane::Writer(0), ByteCount(4096)) else { panic!("there is room") };
    disk.books.spoilt(Lane::Writer(0));
    assert_eq!(disk.books.lane_file(Lane::Writer(0)), None);
    while !disk.payloads.is_empty() {
        disk.delete();
    }
    disk.recycle();
    assert!(!disk.books.has(file), "removed");
    assert_eq!(disk.charged, 0);
}

#[test]
fn given_a_file_that_a_sync_failed_for_when_something_lives_in_it_then_it_is_emptied_though_nothing_is_dead()
{
    let geometry = Geometry::of_capacity(ByteCount(128 << 20)).expect("large enough");
    let mut books = Books::new(geometry);
    let lane = Lane::Writer(0);
    let size = ByteCount(3 * PAGE_BYTES);
    let open = |books: &mut Books| {
        let header = Header { number: books.number_next(), data_bytes: geometry.data_bytes(), root: [1; 16] };
        books.opened(lane, header, None);
    };
    open(&mut books);
    let Room::Here(first) = books.reserve(lane, size) else { panic!("there is room") };
    books.written(first.extent, size);
    assert_eq!(books.victim(ByteCount(0)), None, "nothing is dead");
    let Room::Here(_) = books.reserve(lane, size) else { panic!("there is room") };
    books.spoilt(lane);
    assert_eq!(books.victim(ByteCount(0)).map(|victim| victim.file), Some(first.extent.file));
    open(&mut books);
    let Room::Here(second) = books.reserve(lane, size) else { panic!("there is room") };
    assert_ne!(second.extent.file, first.extent.file, "nothing is added to it");
}
