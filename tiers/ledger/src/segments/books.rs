//! Which segment files there are, where the next payload goes, what is dead, and which file is emptied next.
//!
//! ```text
//!   free --opened--> open in a lane <--a payload does not fit | room is wanted--> closed
//!     ^                                                                             | emptied: what lives in it is
//!     '-------- recycled, under a new number <-- all dead, nobody has it open ------' copied to the mover's file
//! ```
//! A *lane* is a file that is being filled: one for each writer, and the mover's, which compaction fills. A lane is used
//! by one thread at a time; everything else is one lock's work of microseconds. A closed file that has room left is
//! filled further before a new one is taken, after a start too.
//!
//! **What is charged has a place, and the disk never holds more than its capacity.** In bytes: `C` the capacity, `F` a
//! whole file, `H` its header and table, `K` writers, `N` files that fit. Charged are the files of their own `o`, and the
//! live and dead payloads of segment files `p`; `o + p <= usable = C - (K + 2) F - N H - W`, `W` being the waste that is
//! allowed. A closed file is payloads, moved ones and waste, so `closed <= p + moved + waste + N H`. Payloads that were
//! moved and whose file is not recycled yet are charged only once; they are kept below one file. So
//! `o + closed <= C - (K + 1) F` while waste is within `W`: every writer and the mover can have a file. That is what
//! `may_open` asks for, and writers leave one file more for compaction.
//!
//! Files that were made for another capacity are never filled further, so what nothing lies on in them is no waste that
//! `W` allows: it is charged as something dead ([`Books::bury_end`]) until the file is emptied and removed.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::num::NonZeroU32;

use payload_types::limits::PAGE_BYTES;
use payload_types::{ByteCount, Extent, Generation, ShardIndex};

use super::geometry::Geometry;
use super::table::{Header, pages_of};

/// Who fills a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lane {
    /// A thread that copies from faster tiers; below [`Geometry::writers`].
    Writer(usize),
    /// Compaction.
    Mover,
}

/// Where a payload goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Spot {
    /// Its bytes.
    pub extent: Extent,
    /// Its record.
    pub slot: u32,
}

/// Whether there is a place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Room {
    /// Here; it is taken. The file may be one that was closed before.
    Here(Spot),
    /// In a file that has to be opened for the lane first ([`Books::opened`]); then ask again.
    Open,
    /// In no segment file: it gets a file of its own.
    None,
}

/// A dead payload whose space is not free yet: who is told when it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Buried {
    /// Who is told.
    pub shard: ShardIndex,
    /// Which replica.
    pub generation: Generation,
}

/// A file as boot found it: what its header and the end of its table say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    /// Its header.
    pub header: Header,
    /// Records in its table.
    pub slots: u32,
    /// The page after the last record's payload.
    pub next_page: u32,
}

/// A file to be emptied; see [`Books::begin`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Victim {
    /// Which.
    pub file: NonZeroU32,
    /// It is open in this lane.
    pub lane: Option<Lane>,
    target: Target,
}

/// Where what lives in a victim goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Target {
    /// Nothing lives in it: it only has to be closed.
    Nowhere,
    /// Into the mover's file.
    Mover,
    /// Into a closed file that has room.
    Closed(NonZeroU32),
    /// Into the end of the mover's file, and a new one: so files that compaction fills are full.
    New,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Open(Lane),
    Closed,
    /// Somebody is finding out whether it can be used again.
    Recycling,
    Free,
}

#[derive(Clone, Debug)]
struct File {
    header: Header,
    phase: Phase,
    next_page: u32,
    next_slot: u32,
    /// Places that were taken, and are neither written nor given back: until they are, the file is not recycled and not
    /// emptied, whatever else is in it.
    pending: u32,
    /// Pages of payloads that somebody may want, and how many payloads.
    live: u32,
    live_count: u32,
    /// Pages of dead ones.
    dead: u32,
    /// Pages of payloads, live or dead, that compaction copied elsewhere.
    moved: u32,
    /// Compaction is at it.
    emptying: bool,
    /// A sync failed: it is removed and not used again.
    spoilt: bool,
    buried: Vec<Buried>,
}

impl File {
    fn new(header: Header, phase: Phase) -> Self {
        let next_page = header.first_page();
        Self {
            header,
            phase,
            next_page,
            next_slot: 0,
            pending: 0,
            live: 0,
            live_count: 0,
            dead: 0,
            moved: 0,
            emptying: false,
            spoilt: false,
            buried: Vec::new(),
        }
    }

    fn pages(&self) -> u32 {
        self.header.end_page() - self.header.first_page()
    }

    fn room(&self) -> u32 {
        if self.next_slot < self.header.slots() { self.header.end_page() - self.next_page } else { 0 }
    }

    fn is_recyclable(&self) -> bool {
        self.phase == Phase::Closed && self.live_count == 0 && self.pending == 0
    }

    /// Pages that are neither: of a closed file, what is lost until it is recycled.
    fn waste(&self) -> u32 {
        self.pages() - self.live - self.dead
    }
}

/// See the module's description.
#[derive(Clone, Debug)]
pub struct Books {
    geometry: Geometry,
    /// Charged bytes of files that have one replica each.
    own: u64,
    files: BTreeMap<NonZeroU32, File>,
    writers: Vec<Option<NonZeroU32>>,
    mover: Option<NonZeroU32>,
    /// The number given out last.
    number: u32,
}

const BYTES: u64 = PAGE_BYTES;

/// Free files that are kept for being recycled: a GiB of the largest.
const FREE_FILES_MAX: usize = 4;

/// A closed file with less than this part of it left is not opened again while there are new ones: opening costs more.
const WORTH_REOPENING: u32 = 16;

impl Books {
    /// No file yet.
    pub fn new(geometry: Geometry) -> Self {
        let writers = vec![None; geometry.writers()];
        Self { geometry, own: 0, files: BTreeMap::new(), writers, mover: None, number: 0 }
    }

    /// The sizes.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    // ---- boot ----

    /// Boot: a file is there. Its payloads are told apart by [`vouched`](Self::vouched) and [`bury`](Self::bury).
    ///
    /// # Panics
    /// When it was told before.
    pub fn adopt(&mut self, found: Found) {
        let Found { header, slots, next_page } = found;
        let file = File { next_page, next_slot: slots, ..File::new(header, Phase::Closed) };
        assert!(self.files.insert(header.number, file).is_none(), "file {} is adopted once", header.number);
        self.number = self.number.max(header.number.get());
    }

    /// Boot: a file that cannot be read stays and takes so much, whatever it holds; so much is 0 for one that is gone. Its
    /// number is not given out again.
    pub fn left_alone(&mut self, number: NonZeroU32, bytes: ByteCount) {
        self.own += bytes.in_pages().0;
        self.number = self.number.max(number.get());
    }

    /// Boot: a row vouches for a payload.
    pub fn vouched(&mut self, extent: Extent, size: ByteCount) {
        self.lives(extent, size);
    }

    /// Boot: no row does.
    pub fn bury(&mut self, extent: Extent, size: ByteCount, buried: Buried) {
        let file = self.file(extent.file);
        file.dead += pages_of(size);
        file.buried.push(buried);
    }

    /// Boot, after a file's payloads: what none of them lies on in a file of another size than today's is something dead
    /// from here on, of so many bytes. `None`: there is nothing of that, or the file is of today's size.
    ///
    /// # Panics
    /// When the file was not adopted.
    pub fn bury_end(&mut self, number: NonZeroU32, buried: Buried) -> Option<ByteCount> {
        let today = self.geometry.data_bytes();
        let file = self.file(number);
        let end = file.waste();
        if file.header.data_bytes == today || end == 0 {
            return None;
        }
        file.dead += end;
        file.buried.push(buried);
        Some(ByteCount(u64::from(end) * BYTES))
    }

    // ---- filling ----

    /// Takes a place for a payload. Where the lane's file has no room for it, that is closed, and a closed one with room
    /// is opened again.
    pub fn reserve(&mut self, lane: Lane, size: ByteCount) -> Room {
        let pages = pages_of(size);
        if size > self.geometry.payload_max() || size.0 == 0 {
            return Room::None;
        }
        let present = self.lane(lane);
        if let Some(number) = present
            && let Some(spot) = self.take(number, pages)
        {
            return Room::Here(spot);
        }
        if lane == Lane::Mover {
            // Compaction chose where it goes, see `begin`: what is left over goes on in a new file.
            let closing = if present.is_some() { self.geometry.file_bytes() } else { 0 };
            if !self.may_open(lane, closing) {
                return Room::None;
            }
            self.close(lane);
            return Room::Open;
        }
        let end = present.map_or(0, |number| u64::from(self.files[&number].room()) * BYTES);
        let closing = if present.is_some() { self.geometry.file_bytes() } else { 0 };
        let may_waste = self.waste() + end <= self.geometry.waste_bytes_max();
        let opens = may_waste && self.may_open(lane, closing);
        // A file that is nearly full is worth opening again only where there is no new one.
        let worth = if opens { pages.max(self.pages() / WORTH_REOPENING) } else { pages };
        if let Some(number) = self.partial(worth, None) {
            self.close(lane);
            self.reopen(lane, number);
            return Room::Here(self.take(number, pages).expect("it was chosen for its room"));
        }
        if !opens {
            return Room::None;
        }
        self.close(lane);
        Room::Open
    }

    fn take(&mut self, number: NonZeroU32, pages: u32) -> Option<Spot> {
        let file = self.file(number);
        if file.room() < pages {
            return None;
        }
        let extent = Extent { file: number, page: file.next_page };
        let spot = Spot { extent, slot: file.next_slot };
        file.next_page += pages;
        file.next_slot += 1;
        file.pending += 1;
        Some(spot)
    }

    /// The closed file whose room is the smallest of those that have so much.
    fn partial(&self, pages: u32, except: Option<NonZeroU32>) -> Option<NonZeroU32> {
        let data_bytes = self.geometry.data_bytes();
        let fits = |number: NonZeroU32, file: &File| {
            let is_usable = !file.spoilt && !file.emptying && file.header.data_bytes == data_bytes;
            is_usable && file.phase == Phase::Closed && file.room() >= pages && Some(number) != except
        };
        let fitting = self.files.iter().filter(|(number, file)| fits(**number, file));
        fitting.min_by_key(|(_, file)| file.room()).map(|(number, _)| *number)
    }

    fn reopen(&mut self, lane: Lane, number: NonZeroU32) {
        self.file(number).phase = Phase::Open(lane);
        self.set_lane(lane, Some(number));
    }

    /// Gives the last places back, from this one on: nothing was acknowledged there.
    pub fn give_back(&mut self, from: Spot) {
        let file = self.file(from.extent.file);
        file.pending -= file.next_slot - from.slot;
        file.next_page = from.extent.page;
        file.next_slot = from.slot;
    }

    /// A payload and its record are on stable storage.
    ///
    /// # Panics
    /// When no place was taken for it.
    pub fn written(&mut self, extent: Extent, size: ByteCount) {
        let file = self.file(extent.file);
        assert!(file.pending > 0, "{extent:?} was taken before it was written");
        file.pending -= 1;
        self.lives(extent, size);
    }

    fn lives(&mut self, extent: Extent, size: ByteCount) {
        let file = self.file(extent.file);
        file.live += pages_of(size);
        file.live_count += 1;
    }

    /// What a sync failed for, and with it all that is not written there: the lane's file takes nothing more, what lives
    /// in it is moved elsewhere, and it is never used again.
    pub fn spoilt(&mut self, lane: Lane) {
        if let Some(number) = self.lane(lane) {
            let pending = self.file(number).pending;
            self.spoil(number, pending);
        }
    }

    /// The same of a file, wherever it is open, for so many of the places that were taken there.
    pub fn spoil(&mut self, number: NonZeroU32, places: u32) {
        let file = self.file(number);
        file.spoilt = true;
        file.pending -= places;
        if let Phase::Open(lane) = file.phase {
            self.close(lane);
        }
    }

    /// True of a file that a sync failed for.
    pub fn is_spoilt(&self, number: NonZeroU32) -> bool {
        self.files.get(&number).is_some_and(|file| file.spoilt)
    }

    /// Closes a lane's file. What is left of it is waste, until it is opened again or recycled.
    pub fn close(&mut self, lane: Lane) {
        if let Some(number) = self.lane(lane) {
            self.file(number).phase = Phase::Closed;
            self.set_lane(lane, None);
        }
    }

    /// The number of the next file.
    pub fn number_next(&mut self) -> NonZeroU32 {
        loop {
            self.number = self.number.wrapping_add(1);
            if let Some(number) =
                NonZeroU32::new(self.number).filter(|number| !self.files.contains_key(number))
            {
                return number;
            }
        }
    }

    /// The number given out last, or found at boot.
    pub fn number_last(&self) -> Option<NonZeroU32> {
        NonZeroU32::new(self.number)
    }

    /// A free file, to be opened under a new number. It counts until [`opened`](Self::opened) or
    /// [`removed`](Self::removed) says what became of it.
    pub fn take_free(&mut self) -> Option<NonZeroU32> {
        let data_bytes = self.geometry.data_bytes();
        let fits = |file: &File| file.phase == Phase::Free && file.header.data_bytes == data_bytes;
        let number = self.files.iter().find(|(_, file)| fits(file)).map(|(number, _)| *number)?;
        self.file(number).phase = Phase::Recycling;
        Some(number)
    }

    /// An empty file is there for the lane, made or recycled from `old`.
    ///
    /// # Panics
    /// When the lane has one.
    pub fn opened(&mut self, lane: Lane, header: Header, old: Option<NonZeroU32>) {
        assert!(self.lane(lane).is_none(), "{lane:?} is closed before another file is opened for it");
        if let Some(old) = old {
            self.files.remove(&old);
        }
        self.files.insert(header.number, File::new(header, Phase::Open(lane)));
        self.set_lane(lane, Some(header.number));
    }

    /// True when one more file may be open: see the module's description. `closing` is what the lane's present file
    /// adds to the closed ones.
    fn may_open(&self, lane: Lane, closing: u64) -> bool {
        let closed = self.own + self.closed_bytes() + closing;
        let kept = match lane {
            Lane::Writer(_) => self.geometry.files_kept(),
            Lane::Mover => self.geometry.files_kept() - 1,
        };
        let within = lane == Lane::Mover || self.waste() <= self.geometry.waste_bytes_max();
        within && closed + kept * self.geometry.file_bytes() <= self.geometry.capacity().0
    }

    // ---- dying ----

    /// A payload is wanted no more.
    ///
    /// # Panics
    /// When the file has no such payload: the books would be wrong from here on.
    pub fn dead(&mut self, extent: Extent, size: ByteCount, buried: Buried) {
        let file = self.file(extent.file);
        let pages = pages_of(size);
        assert!(file.live >= pages && file.live_count > 0, "{extent:?} of {size} lives in {file:?}");
        file.live -= pages;
        file.live_count -= 1;
        file.dead += pages;
        file.buried.push(buried);
    }

    /// Compaction has copied a payload elsewhere; its old place is dropped when nobody needs it.
    pub fn moved(&mut self, extent: Extent, size: ByteCount) {
        if let Some(file) = self.files.get_mut(&extent.file) {
            file.moved += pages_of(size);
        }
    }

    /// Files in which nothing lives: somebody may find out whether they can be used again.
    pub fn recyclable(&self) -> Vec<NonZeroU32> {
        let is = |file: &File| file.is_recyclable();
        self.files.iter().filter(|(_, file)| is(file)).map(|(number, _)| *number).collect()
    }

    /// Somebody finds that out now. False when it is no longer so.
    pub fn recycle_begin(&mut self, number: NonZeroU32) -> bool {
        let is = |file: &&mut File| file.is_recyclable();
        self.files.get_mut(&number).filter(is).is_some_and(|file| {
            file.phase = Phase::Recycling;
            true
        })
    }

    /// Somebody has it open.
    pub fn recycle_failed(&mut self, number: NonZeroU32) {
        self.file(number).phase = Phase::Closed;
    }

    /// Nobody has it open: it is free, and whoever died in it is told. True when it is to be removed: it is spoilt, of
    /// another size, or there are enough.
    pub fn recycled(&mut self, number: NonZeroU32) -> (Vec<Buried>, bool) {
        let data_bytes = self.geometry.data_bytes();
        let file = self.file(number);
        let is_unfit = file.spoilt || file.header.data_bytes != data_bytes;
        let buried = std::mem::take(&mut file.buried);
        *file = File { spoilt: file.spoilt, ..File::new(file.header, Phase::Free) };
        let remove = is_unfit || self.free_count() > FREE_FILES_MAX || !self.may_keep_free(0);
        if remove {
            self.file(number).phase = Phase::Recycling;
        }
        (buried, remove)
    }

    /// A free file that has to be removed before a file of one replica of this size is made, or because a lane was
    /// closed. To be asked until there is none; the caller removes it, and says so.
    pub fn surplus(&mut self, size: ByteCount) -> Option<NonZeroU32> {
        if self.may_keep_free(size.in_pages().0) {
            return None;
        }
        let free = self.files.iter_mut().find(|(_, file)| file.phase == Phase::Free);
        free.map(|(number, file)| {
            file.phase = Phase::Recycling;
            *number
        })
    }

    /// True while the free files are within what is kept anyway, or within what nobody else may use.
    fn may_keep_free(&self, more: u64) -> bool {
        let open = self.writers.iter().flatten().count() as u64 + u64::from(self.mover.is_some());
        let files = (open + self.free_count() as u64).max(self.geometry.files_kept());
        let others = self.own + more + self.closed_bytes();
        others + files * self.geometry.file_bytes() <= self.geometry.capacity().0
    }

    fn free_count(&self) -> usize {
        self.files.values().filter(|file| file.phase == Phase::Free).count()
    }

    /// A file is gone. Whoever died in it and was not told is.
    pub fn removed(&mut self, number: NonZeroU32) -> Vec<Buried> {
        self.files.remove(&number).map(|file| file.buried).unwrap_or_default()
    }

    // ---- compaction ----

    /// The file whose emptying gains most, if that is worth it: the fuller the disk, the less has to be gained. So much is
    /// `wanted` before somebody who waits for space can be served, and where all that is dead would be enough for him, every
    /// page is worth it; 0: nobody waits.
    pub fn victim(&self, wanted: ByteCount) -> Option<Victim> {
        let serves = wanted > ByteCount::ZERO && wanted <= self.dead_bytes();
        let least = if serves { 1 } else { self.gain_min() };
        let is_wasteful = self.waste() * 2 > self.geometry.waste_bytes_max();
        // What died in a file that is still being filled comes last.
        self.best(least, is_wasteful, |file| file.phase == Phase::Closed && file.live > 0).or_else(|| {
            self.best(least, is_wasteful, |file| matches!(file.phase, Phase::Open(_)) && file.dead > 0)
        })
    }

    /// The best of some files. Where the live ones would go is looked up only for those that may be it: that costs a look
    /// at every file.
    fn best(&self, least: u32, is_wasteful: bool, is_one: fn(&File) -> bool) -> Option<Victim> {
        let most = |file: &File| match file {
            // What lives in a file that a sync failed for is safest elsewhere, whatever that gains.
            File { spoilt: true, .. } => u32::MAX,
            File { phase: Phase::Closed, live: 1.., .. } if is_wasteful => file.dead + file.waste(),
            _ => file.dead,
        };
        let files = self.files.iter().filter(|(_, file)| is_one(file) && !file.emptying && file.pending == 0);
        let mut files: Vec<_> = files.map(|(number, file)| (most(file), *number)).collect();
        files.retain(|(most, _)| *most >= least);
        files.sort_unstable_by_key(|(most, number)| Reverse((*most, *number)));
        let mut best: Option<(u32, Victim)> = None;
        for (most, number) in files {
            if best.is_some_and(|(gain, _)| gain >= most) {
                break;
            }
            let file = &self.files[&number];
            let Some((gain, victim)) = self.gain(number, file, is_wasteful) else { continue };
            let gain = if file.spoilt { u32::MAX } else { gain };
            if gain >= least && best.is_none_or(|(other, _)| other < gain) {
                best = Some((gain, victim));
            }
        }
        best.map(|(_, victim)| victim)
    }

    /// What emptying a file would gain, in pages. Its end is gained only where what lives in it goes into the ends of
    /// others: each step leaves fewer dead pages or fewer files, so it comes to an end.
    fn gain(&self, number: NonZeroU32, file: &File, is_wasteful: bool) -> Option<(u32, Victim)> {
        let lane = if let Phase::Open(lane) = file.phase { Some(lane) } else { None };
        let victim = |target| Victim { file: number, lane, target };
        if file.live == 0 {
            return Some((file.dead, victim(Target::Nowhere)));
        }
        let merged = if is_wasteful && lane.is_none() { file.dead + file.waste() } else { file.dead };
        let mover = self.mover.filter(|mover| *mover != number);
        if mover.is_some_and(|mover| self.files[&mover].room() >= file.live) {
            return Some((merged, victim(Target::Mover)));
        }
        if let Some(closed) = self.partial(file.live, Some(number)) {
            return Some((merged, victim(Target::Closed(closed))));
        }
        self.may_replace_mover(number, lane, file.live).then(|| (file.dead, victim(Target::New)))
    }

    /// What is moved and not recycled yet stays below one file: see the module's description.
    fn may_replace_mover(&self, number: NonZeroU32, lane: Option<Lane>, live: u32) -> bool {
        let file_bytes = self.geometry.file_bytes();
        let moved: u32 = self.files.values().map(|file| file.moved).sum();
        let closing = u64::from(self.mover.is_some()) * file_bytes
            + u64::from(lane.is_some() && self.mover != Some(number)) * file_bytes;
        moved + live <= self.pages() && self.may_open(Lane::Mover, closing)
    }

    /// Compaction begins with a file: its lane is closed, and the mover's lane is made ready for what lives in it. The
    /// caller holds both lanes.
    pub fn begin(&mut self, victim: Victim) {
        if let Some(lane) = victim.lane {
            self.close(lane);
        }
        match victim.target {
            Target::Nowhere => return,
            Target::Mover | Target::New => {}
            Target::Closed(number) => {
                self.close(Lane::Mover);
                self.reopen(Lane::Mover, number);
            }
        }
        self.file(victim.file).emptying = true;
    }

    /// Pages of data in a file.
    fn pages(&self) -> u32 {
        (self.geometry.data_bytes() / BYTES) as u32
    }

    /// Pages that must be dead in a file: the share of it that the disk has free, at most half, and one where the disk is
    /// full. Full is what payloads may use, whichever files they lie in: with more charged somebody waits.
    fn gain_min(&self) -> u32 {
        let pages = u64::from(self.pages());
        let usable = self.geometry.usable().0.max(1);
        let charged = |file: &File| u64::from((file.live + file.dead).saturating_sub(file.moved)) * BYTES;
        let charged = self.own + self.files.values().map(charged).sum::<u64>();
        let free = usable.saturating_sub(charged);
        (pages * free / usable).clamp(1, pages.div_ceil(2)) as u32
    }

    /// Compaction gave it up for now.
    pub fn emptying_ended(&mut self, number: NonZeroU32) {
        if let Some(file) = self.files.get_mut(&number) {
            file.emptying = false;
        }
    }

    /// What died in a file and is not free yet.
    pub fn buried(&self, number: NonZeroU32) -> impl Iterator<Item = Generation> {
        self.files.get(&number).into_iter().flat_map(|file| &file.buried).map(|buried| buried.generation)
    }

    /// True while something lives in the file.
    pub fn is_alive(&self, number: NonZeroU32) -> bool {
        self.files.get(&number).is_some_and(|file| file.live_count > 0)
    }

    /// True when there is such a file.
    pub fn has(&self, number: NonZeroU32) -> bool {
        self.files.contains_key(&number)
    }

    /// A file's header.
    pub fn header(&self, number: NonZeroU32) -> Option<Header> {
        self.files.get(&number).map(|file| file.header)
    }

    /// A lane's file, and how many records it has.
    pub fn lane_file(&self, lane: Lane) -> Option<(NonZeroU32, u32)> {
        let number = self.lane(lane)?;
        Some((number, self.files[&number].next_slot))
    }

    // ---- sums ----

    /// A file for one replica alone takes so much more, in whole pages.
    pub fn own_added(&mut self, size: ByteCount) {
        self.own += size.in_pages().0;
    }

    /// It takes so much less.
    pub fn own_removed(&mut self, size: ByteCount) {
        self.own = self.own.saturating_sub(size.in_pages().0);
    }

    /// What the disk holds: files of one replica, and segment files whole.
    pub fn physical(&self) -> ByteCount {
        ByteCount(self.own + self.files.values().map(|file| file.header.file_bytes()).sum::<u64>())
    }

    /// Bytes of the segment files.
    pub fn file_bytes(&self) -> ByteCount {
        ByteCount(self.physical().0 - self.own)
    }

    /// Bytes, in whole pages, of the payloads that live in segment files.
    pub fn live_bytes(&self) -> ByteCount {
        ByteCount(self.files.values().map(|file| u64::from(file.live) * BYTES).sum())
    }

    /// Of those that are dead and not free.
    pub fn dead_bytes(&self) -> ByteCount {
        ByteCount(self.files.values().map(|file| u64::from(file.dead) * BYTES).sum())
    }

    /// How many files there are, and how many of them are free.
    pub fn file_count(&self) -> (usize, usize) {
        (self.files.len(), self.free_count())
    }

    fn closed_bytes(&self) -> u64 {
        let closed = |file: &&File| matches!(file.phase, Phase::Closed | Phase::Recycling);
        self.files.values().filter(closed).map(|file| file.header.file_bytes()).sum()
    }

    fn waste(&self) -> u64 {
        let closed = |file: &&File| file.phase == Phase::Closed;
        self.files.values().filter(closed).map(|file| u64::from(file.waste()) * BYTES).sum()
    }

    fn file(&mut self, number: NonZeroU32) -> &mut File {
        self.files.get_mut(&number).unwrap_or_else(|| panic!("segment file {number} is known"))
    }

    fn lane(&self, lane: Lane) -> Option<NonZeroU32> {
        match lane {
            Lane::Writer(index) => self.writers[index],
            Lane::Mover => self.mover,
        }
    }

    fn set_lane(&mut self, lane: Lane, number: Option<NonZeroU32>) {
        match lane {
            Lane::Writer(index) => self.writers[index] = number,
            Lane::Mover => self.mover = number,
        }
    }
}
