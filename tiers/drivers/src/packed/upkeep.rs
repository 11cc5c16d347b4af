//! The thread that wins space back: recycles segment files in which nothing lives, and has others emptied.
//!
//! ```text
//! all dead --> leased (F_WRLCK)? --no: again in 1 ms ... 4 s
//!                  └-yes-> <number>.free, 0600 --> leased again? --> free, or removed --> Freed to whoever died in it
//! victim --> lanes closed, table read --> Relocate to the shard of each that lives, 16 at a time, at its pace
//!                  shard: TransferOp --> copied to the mover's file, the old place dropped when nobody needs it
//!                         Stay       --> asked again in 100 ms ... 5 s
//!                  moved and still there: asked again in 5 s ... 320 s (leases, or the copy was not wanted after all)
//! ```
//! **Why the proof is made twice.** The first lease says that nobody has the file open. Somebody who looked the name up
//! before it was taken away waits in open(2) for that lease to end, and has the file then: the second one, asked for
//! after that, is refused. Without leases (the filesystem has none) nothing is used again: the file is unlinked, and
//! readers keep their bytes.
//!
//! One thread. It closes lanes (waiting for their writers) and takes the books for moments; the sink may hold it up
//! while a shard's lane is full. Whoever waits for space waits for the catalog and the copies, never for its pauses: an
//! answer wakes it at once. What it has begun at shutdown the next start does anew.
//! Limits: `RELOCATIONS_MAX` unanswered; one file whose replicas are asked for and [`EMPTYING_MAX`] of which some stay, 48
//! bytes each, 3 MiB a file at worst; of what was moved and is not dead yet 60 bytes each; one descriptor.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::num::NonZeroU32;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use payload_ledger::segments::table::Header;
use payload_ledger::segments::{Books, Buried, Lane};
use payload_types::effect::ReplicaRef;
use payload_types::event::{Completion, StorageDone};
use payload_types::limits::{PAGE_BYTES, RELOCATIONS_MAX};
use payload_types::{ByteCount, DiskSegments, DiskState, Generation, Tier};

use super::file::LaneFile;
use super::{Packed, boot};
use crate::CompletionSink;
use crate::stores::Stores;
use crate::sys;

/// The books are looked through at most this often: 4,096 files in 50 µs make 0.5 % of a core.
const LOOK_PAUSE: Duration = Duration::from_millis(10);

/// And this often while something is dead, whether anybody says so or not.
const TICK: Duration = Duration::from_secs(1);

/// The first look after one that found a reader, and the longest pause: 1 ms x 2^12 = 4.096 s.
const HELD_FIRST: Duration = Duration::from_millis(1);
const HELD_LAST: Duration = Duration::from_secs(4);
const HELD_DOUBLINGS: u32 = 12;

/// The same for what stays: 100 ms x 2^6 = 6.4 s.
const STAY_FIRST: Duration = Duration::from_millis(100);
const STAY_LAST: Duration = Duration::from_secs(5);
const STAY_DOUBLINGS: u32 = 6;

/// The same for what was moved and is still there: leases hold it, or its shard did not want the copy after all; and for
/// tables that could not be read. 5 s x 2^6 = 320 s.
const MOVED_FIRST: Duration = Duration::from_secs(5);
const MOVED_DOUBLINGS: u32 = 6;

/// After so many times (35 s) another file may be the better one.
const STAYS_MAX: u32 = 12;

/// Files that are being emptied at a time: one, and those of which something stays.
const EMPTYING_MAX: usize = 4;

/// How far ahead of its pace compaction may run: small payloads are asked for in bursts of this long.
const AHEAD: Duration = Duration::from_millis(50);

/// What a payload counts for at least: an fdatasync and a row cost more than a page.
const BYTES_MIN: u64 = 4 * PAGE_BYTES;

/// Nobody but the server opens a file that is free.
const MODE_FREE: u32 = 0o600;

const _: () = assert!(HELD_FIRST.as_millis() << HELD_DOUBLINGS >= HELD_LAST.as_millis());
const _: () = assert!(STAY_FIRST.as_millis() << STAY_DOUBLINGS >= STAY_LAST.as_millis());

/// The inability to prove that files are unused is worth one line, not one per file.
static UNPROVABLE_REPORTED: AtomicBool = AtomicBool::new(false);

/// What was done since the start.
#[derive(Default)]
pub(crate) struct Figures {
    held: AtomicU64,
    recycled: AtomicU64,
    emptied: AtomicU64,
    moved: AtomicU64,
    moved_bytes: AtomicU64,
}

impl Packed {
    /// How the segment files are. Looks through the books: tens of microseconds.
    pub(crate) fn look(&self) -> DiskSegments {
        let figures = &self.figures;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let books = self.books();
        let (files, files_free) = books.file_count();
        DiskSegments {
            files: files as u64,
            files_free: files_free as u64,
            files_held: read(&figures.held),
            file_bytes: books.file_bytes(),
            live_bytes: books.live_bytes(),
            dead_bytes: books.dead_bytes(),
            recycled_total: read(&figures.recycled),
            emptied_total: read(&figures.emptied),
            moved_total: read(&figures.moved),
            moved_bytes_total: read(&figures.moved_bytes),
        }
    }
}

/// What became of a file in which nothing lives.
enum Proof {
    /// Nobody has it open; it has its private name, and no header.
    Free,
    /// Somebody has.
    Held,
    /// It cannot be known, or there is nothing there: what is there is unlinked.
    Unlink,
}

/// A file that is being emptied.
struct Emptying {
    /// To be asked for.
    ahead: VecDeque<ReplicaRef>,
    /// Asked for, and to stay for now.
    stayed: Vec<ReplicaRef>,
    /// How often they stayed, and when they are asked for again.
    stays: u32,
    due: Instant,
    /// Moved, and not known to be dead: asked for again some time later. How often that was, and when it is.
    moved: Vec<ReplicaRef>,
    moved_looks: u32,
    moved_due: Instant,
    /// What was ever moved.
    moved_ever: HashSet<Generation>,
    /// Asked for and not answered.
    unanswered: usize,
}

impl Emptying {
    fn new(ahead: Vec<ReplicaRef>) -> Self {
        let now = Instant::now();
        Self {
            ahead: ahead.into(),
            stayed: Vec::new(),
            stays: 0,
            due: now,
            moved: Vec::new(),
            moved_looks: 0,
            moved_due: now,
            moved_ever: HashSet::new(),
            unanswered: 0,
        }
    }

    /// When what is still there is asked for again, if anything is.
    fn asks_again(&self) -> Option<Instant> {
        if !self.ahead.is_empty() || self.unanswered > 0 {
            return None;
        }
        let stayed = (!self.stayed.is_empty()).then_some(self.due);
        let moved = (!self.moved.is_empty()).then_some(self.moved_due);
        [stayed, moved].into_iter().flatten().min()
    }

    fn answered(&mut self, replica: ReplicaRef, is_moved: bool) {
        self.unanswered -= 1;
        let pause = |first: Duration, times: u32, doublings| first.saturating_mul(1 << times.min(doublings));
        if is_moved {
            self.moved_ever.insert(replica.generation);
        }
        if self.moved_ever.contains(&replica.generation) {
            if self.moved.is_empty() {
                self.moved_due = Instant::now() + pause(MOVED_FIRST, self.moved_looks, MOVED_DOUBLINGS);
                self.moved_looks += 1;
            }
            self.moved.push(replica);
        } else {
            if self.stayed.is_empty() {
                self.due = Instant::now() + pause(STAY_FIRST, self.stays, STAY_DOUBLINGS).min(STAY_LAST);
                self.stays += 1;
            }
            self.stayed.push(replica);
        }
    }

    /// Asks again for what is due and not dead.
    fn again(&mut self, now: Instant, dead: &HashSet<Generation>) {
        let lives = |replica: &ReplicaRef| !dead.contains(&replica.generation);
        if self.due <= now {
            self.ahead.extend(self.stayed.drain(..).filter(lives));
        }
        if self.moved_due <= now {
            self.ahead.extend(self.moved.drain(..).filter(lives));
        }
    }
}

/// See the module's description.
pub(crate) struct Upkeep {
    stores: Arc<Stores>,
    shard_count: u16,
    sink: CompletionSink,
    /// Files that somebody has open: when they are looked at again, and how often they were.
    held: BTreeMap<NonZeroU32, (Instant, u32)>,
    emptying: BTreeMap<NonZeroU32, Emptying>,
    /// Files whose table could not be read: when that is tried again, and how often it was.
    unreadable: BTreeMap<NonZeroU32, (Instant, u32)>,
    /// Replicas that shards were asked to move, and the file they are in.
    asked: HashMap<Generation, NonZeroU32>,
    /// When what was asked for should have been copied.
    paced: Instant,
    /// What waiters want, as of the last look.
    wanted: ByteCount,
    /// The books are to be looked through, and not before.
    is_look_wanted: bool,
    look_due: Instant,
    /// While something is dead, also then.
    tick_due: Option<Instant>,
}

impl Upkeep {
    /// For a disk that has segment files.
    pub(crate) fn new(stores: Arc<Stores>, shard_count: u16, sink: CompletionSink) -> Self {
        let now = Instant::now();
        Self {
            stores,
            shard_count,
            sink,
            held: BTreeMap::new(),
            emptying: BTreeMap::new(),
            unreadable: BTreeMap::new(),
            asked: HashMap::new(),
            paced: now,
            wanted: ByteCount::ZERO,
            is_look_wanted: true,
            look_due: now,
            tick_due: None,
        }
    }

    /// Runs until it is told to stop.
    pub(crate) fn run(mut self) {
        loop {
            let turn = catch_unwind(AssertUnwindSafe(|| self.turn()));
            let until = turn.unwrap_or_else(|_| {
                tracing::error!("upkeep of the segment files failed unexpectedly; it goes on in a moment");
                Some(Instant::now() + TICK)
            });
            if !self.wait(until) {
                return;
            }
        }
    }

    /// Waits for news, or for the moment. False: it is time to end.
    fn wait(&mut self, until: Option<Instant>) -> bool {
        let stores = Arc::clone(&self.stores);
        let packed = packed_of(&stores);
        let mut news = packed.news();
        loop {
            if news.is_stopping {
                return false;
            }
            let relocated = std::mem::take(&mut news.relocated);
            let is_woken = std::mem::take(&mut news.is_woken);
            if is_woken || !relocated.is_empty() {
                drop(news);
                self.is_look_wanted |= is_woken;
                relocated.into_iter().for_each(|(replica, is_moved)| self.answered(replica, is_moved));
                return true;
            }
            let told = packed.told();
            news = match until.map(|until| until.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => return true,
                Some(time) => told.wait_timeout(news, time).unwrap_or_else(PoisonError::into_inner).0,
                None => told.wait(news).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Does what there is to do. The moment at which there may be more, unless somebody says so before.
    fn turn(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let is_due = |due: Instant| due <= now;
        let is_wanted = self.is_look_wanted
            || self.tick_due.is_some_and(is_due)
            || self.held.values().any(|(due, _)| is_due(*due))
            || self.emptying.values().filter_map(Emptying::asks_again).any(is_due);
        let is_sound = !matches!(packed_of(&self.stores).health.look().state, DiskState::Failing(_));
        if is_wanted && is_due(self.look_due) {
            self.is_look_wanted = false;
            self.wanted = packed_of(&self.stores).take_wanted();
            self.recycle_all(now);
            if is_sound {
                self.review(now);
                self.choose();
            }
            let is_dirty =
                !is_sound || !self.emptying.is_empty() || packed_of(&self.stores).books().dead_bytes().0 > 0;
            let now = Instant::now();
            self.look_due = now + LOOK_PAUSE;
            self.tick_due = is_dirty.then(|| now + TICK);
        }
        let paced = if is_sound { self.ask() } else { None };
        let look = self.is_look_wanted.then_some(self.look_due);
        let held = self.held.values().map(|(due, _)| (*due).max(self.look_due)).min();
        let stayed =
            self.emptying.values().filter_map(Emptying::asks_again).map(|due| due.max(self.look_due));
        [paced, look, held, stayed.min(), self.tick_due].into_iter().flatten().min()
    }

    // ---- recycling ----

    fn recycle_all(&mut self, now: Instant) {
        packed_of(&self.stores).forget_closed();
        let recyclable = packed_of(&self.stores).books().recyclable();
        // They come in the order of their numbers.
        self.held.retain(|number, _| recyclable.binary_search(number).is_ok());
        for number in recyclable {
            let refusals = match self.held.get(&number) {
                Some((due, _)) if *due > now => continue,
                Some((_, refusals)) => *refusals,
                None => 0,
            };
            if !packed_of(&self.stores).books().recycle_begin(number) {
                continue;
            }
            match self.prove(number) {
                Ok(Proof::Free) => self.recycled(number),
                Ok(Proof::Unlink) => self.removed(number),
                Ok(Proof::Held) => self.postpone(number, refusals),
                Err(error) => {
                    if refusals == 0 {
                        tracing::warn!(
                            "segment file {number:08x} could not be recycled and is tried again: {error}"
                        );
                    }
                    self.postpone(number, refusals);
                }
            }
        }
        packed_of(&self.stores).figures.held.store(self.held.len() as u64, Ordering::Relaxed);
    }

    fn postpone(&mut self, number: NonZeroU32, refusals: u32) {
        packed_of(&self.stores).books().recycle_failed(number);
        let pause = HELD_FIRST.saturating_mul(1 << refusals.min(HELD_DOUBLINGS)).min(HELD_LAST);
        self.held.insert(number, (Instant::now() + pause, refusals.saturating_add(1)));
    }

    /// Finds out whether anybody has the file open, and takes its name away.
    fn prove(&self, number: NonZeroU32) -> io::Result<Proof> {
        let packed = packed_of(&self.stores);
        let (public, free) = (packed.path(number), packed.path_free(number));
        if let Some(file) = self.open_ours(&public)? {
            if let Some(proof) = self.unless_alone(&file) {
                return Ok(proof);
            }
            packed.calls.rename(&public, &free)?;
            file.set_permissions(Permissions::from_mode(MODE_FREE))?;
        }
        // The first lease has ended with its descriptor.
        let proof = self.prove_free(&free);
        if !matches!(proof, Ok(Proof::Free | Proof::Unlink))
            && let Some(file) = self.open_ours(&free)?
        {
            // What is not free has its name: it may be filled further.
            file.set_permissions(Permissions::from_mode(packed.mode_sealed))?;
            packed.calls.rename(&free, &public)?;
        }
        proof
    }

    fn prove_free(&self, free: &Path) -> io::Result<Proof> {
        let Some(file) = self.open_ours(free)? else { return Ok(Proof::Unlink) };
        if let Some(proof) = self.unless_alone(&file) {
            return Ok(proof);
        }
        drop(file);
        // What a boot finds of it is nobody's. (No sync: after a power loss it may be found full of dead records.)
        let file = OpenOptions::new().write(true).custom_flags(sys::HANDLE_WITH_CARE).open(free)?;
        packed_of(&self.stores).calls.write(&file, &[0; PAGE_BYTES as usize], 0)?;
        Ok(Proof::Free)
    }

    /// What to do with a file that is not proven to be the server's alone; `None` when it is.
    fn unless_alone(&self, file: &File) -> Option<Proof> {
        match packed_of(&self.stores).calls.nobody_else_has_it(file) {
            Ok(true) => None,
            Ok(false) => Some(Proof::Held),
            Err(error) => {
                if !UNPROVABLE_REPORTED.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        "this filesystem cannot prove that a file is unused ({error}); segment files are not used again, \
                         and space that clients still map is counted as free"
                    );
                }
                Some(Proof::Unlink)
            }
        }
    }

    /// `None` when there is no such file, or it is not ours: somebody removed it or put another in its place.
    fn open_ours(&self, path: &Path) -> io::Result<Option<File>> {
        match OpenOptions::new().read(true).custom_flags(sys::HANDLE_WITH_CARE).open(path) {
            Ok(file) => {
                let metadata = file.metadata()?;
                Ok((metadata.is_file() && metadata.uid() == packed_of(&self.stores).user).then_some(file))
            }
            Err(error) if boot::is_absence(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Nobody has it open: it may be used again.
    fn recycled(&mut self, number: NonZeroU32) {
        let (buried, is_surplus) = packed_of(&self.stores).books().recycled(number);
        if is_surplus || !packed_of(&self.stores).takes_more {
            self.unlink(number);
            packed_of(&self.stores).books().removed(number);
        }
        self.freed(number, buried);
    }

    /// It is not used again, whoever has it open.
    fn removed(&mut self, number: NonZeroU32) {
        self.unlink(number);
        let buried = packed_of(&self.stores).books().removed(number);
        self.freed(number, buried);
    }

    fn unlink(&self, number: NonZeroU32) {
        let packed = packed_of(&self.stores);
        let header = packed.books().header(number).expect("a file is in the books until it is removed");
        for path in [packed.path(number), packed.path_free(number)] {
            boot::remove(&path, packed.user);
        }
        packed.forget(number, header.file_bytes());
    }

    fn freed(&mut self, number: NonZeroU32, buried: Vec<Buried>) {
        self.held.remove(&number);
        if self.emptying.remove(&number).is_some() {
            packed_of(&self.stores).figures.emptied.fetch_add(1, Ordering::Relaxed);
        }
        packed_of(&self.stores).figures.recycled.fetch_add(1, Ordering::Relaxed);
        for Buried { shard, generation } in buried {
            (self.sink)(shard, Completion::Storage(StorageDone::Freed { tier: Tier::Disk, generation }));
        }
    }

    // ---- compaction ----

    /// Looks again at what stayed, and gives up where another file may be the better one.
    fn review(&mut self, now: Instant) {
        let mut books = packed_of(&self.stores).books();
        let is_due = |(_, (due, _)): &(&NonZeroU32, &(Instant, u32))| *due <= now;
        self.unreadable.iter().filter(is_due).for_each(|(number, _)| books.emptying_ended(*number));
        self.unreadable.retain(|number, _| books.has(*number));
        self.emptying.retain(|number, file| {
            if !books.is_alive(*number) && file.unanswered == 0 {
                // It is recycled as soon as nobody has it open.
                *file = Emptying::new(Vec::new());
                return books.has(*number);
            }
            if file.ahead.is_empty() {
                file.ahead = VecDeque::new(); // and its memory
            }
            if file.asks_again().is_none_or(|due| due > now) {
                return true;
            }
            if file.stays > STAYS_MAX {
                books.emptying_ended(*number);
                return false;
            }
            file.again(now, &books.buried(*number).collect());
            true
        });
    }

    /// Begins with another file, when nothing is left to ask for in the others.
    fn choose(&mut self) {
        let is_busy = |file: &Emptying| !file.ahead.is_empty() || file.unanswered > 0;
        let waiting = self.emptying.values().filter(|file| !file.stayed.is_empty()).count();
        if self.emptying.values().any(is_busy) || waiting >= EMPTYING_MAX {
            return;
        }
        let Some((number, header)) = self.begin() else { return };
        match boot::replicas_of(packed_of(&self.stores), header) {
            Ok(mut ahead) => {
                self.unreadable.remove(&number);
                let dead: HashSet<Generation> = packed_of(&self.stores).books().buried(number).collect();
                ahead.retain(|replica| !dead.contains(&replica.generation));
                let file = Emptying::new(ahead);
                self.emptying.insert(number, file);
            }
            // It stays marked for now, so that it is not chosen again.
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    packed_of(&self.stores).health.read_failed();
                }
                let (due, times) = self.unreadable.entry(number).or_insert((Instant::now(), 0));
                if *times == 0 {
                    tracing::error!(
                        "the table of segment file {number:08x} cannot be read ({error}): it is not emptied for now, and \
                         what is dead in it stays charged; see `dmesg`"
                    );
                }
                *due = Instant::now() + MOVED_FIRST.saturating_mul(1 << (*times).min(MOVED_DOUBLINGS));
                *times += 1;
            }
        }
    }

    /// The books begin with a victim; what they closed is closed here, too.
    fn begin(&mut self) -> Option<(NonZeroU32, Header)> {
        let packed = packed_of(&self.stores);
        let wanted = self.wanted;
        let first = packed.books().victim(wanted)?;
        // Waits for whoever writes; nobody else holds two lanes.
        let mut mover = packed.lane(Lane::Mover);
        let mut lane = first.lane.filter(|lane| *lane != Lane::Mover).map(|lane| packed.lane(lane));
        let mut books = packed.books();
        // Things may have changed meanwhile; another lane than the one that is held is left for the next look.
        let victim = books
            .victim(wanted)
            .filter(|victim| [None, first.lane, Some(Lane::Mover)].contains(&victim.lane));
        let Some(victim) = victim else {
            self.is_look_wanted = true;
            return None;
        };
        books.begin(victim);
        let has = |books: &Books, lane, file: &LaneFile| {
            books.lane_file(lane).is_some_and(|(number, _)| number == file.header.number)
        };
        mover.take_if(|file| !has(&books, Lane::Mover, file));
        if let (Some(lane), Some(name)) = (&mut lane, first.lane) {
            lane.take_if(|file| !has(&books, name, file));
        }
        if !books.is_alive(victim.file) {
            self.is_look_wanted = true; // now it is closed, it can be recycled
            return None;
        }
        books.header(victim.file).map(|header| (victim.file, header))
    }

    /// Asks shards to move what is ahead. The moment at which the pace lets it ask for more.
    fn ask(&mut self) -> Option<Instant> {
        let bytes_per_second = packed_of(&self.stores).compaction_bytes_per_second;
        while self.asked.len() < RELOCATIONS_MAX {
            let now = Instant::now();
            let (number, file) = self.emptying.iter_mut().find(|(_, file)| !file.ahead.is_empty())?;
            if bytes_per_second > 0 && self.paced > now + AHEAD {
                return Some(self.paced - AHEAD);
            }
            let replica = file.ahead.pop_front().expect("it was looked at just now");
            file.unanswered += 1;
            self.asked.insert(replica.generation, *number);
            if bytes_per_second > 0 {
                let bytes = replica.size.0.max(BYTES_MIN) as f64;
                // Time in which nothing was moved is not caught up.
                self.paced = self.paced.max(now) + Duration::from_secs_f64(bytes / bytes_per_second as f64);
            }
            (self.sink)(replica.id.shard(self.shard_count), Completion::Relocate(replica));
        }
        None
    }

    fn answered(&mut self, replica: ReplicaRef, is_moved: bool) {
        let Some(number) = self.asked.remove(&replica.generation) else { return };
        if is_moved {
            let figures = &packed_of(&self.stores).figures;
            figures.moved.fetch_add(1, Ordering::Relaxed);
            figures.moved_bytes.fetch_add(replica.size.0, Ordering::Relaxed);
        }
        let Some(file) = self.emptying.get_mut(&number) else { return };
        file.answered(replica, is_moved);
        self.is_look_wanted |= file.unanswered == 0 && file.ahead.is_empty();
    }
}

fn packed_of(stores: &Stores) -> &Packed {
    stores.packed().expect("upkeep runs only where there are segment files")
}
