//! A shard that is no more than its books: it packs, drops, follows the store's wish to move replicas or not, keeps old
//! places as long as leases would, and remembers what is charged.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use payload_drivers::faults::Faults;
use payload_drivers::{DriverOp, Drivers, checksum};
use payload_ledger::segments::Geometry;
use payload_types::effect::{ReplicaRef, StorageAction, StorageOp};
use payload_types::event::{Completion, StorageDone};
use payload_types::{DiskSegments, Extent, Generation, OpId, PayloadId, ShardIndex, Tier};

use super::{PATIENCE, Place, Rig, copy_op, op_id, path_of, replica, sample, twin};

/// A small generator: the same seed gives the same choices.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) % end.max(1)
    }

    /// So many sizes up to `most`, small ones as often as large ones.
    pub fn sizes(&mut self, count: usize, most: usize) -> Vec<usize> {
        let mut size = || {
            let top = (most >> self.below(9)).max(1);
            1 + self.below(top as u64) as usize
        };
        (0..count).map(|_| size()).collect()
    }
}

/// What is on disk of a payload.
#[derive(Clone, Copy)]
pub struct Live {
    pub replica: ReplicaRef,
    /// Whose bytes it has.
    source: usize,
    is_busy: bool,
}

enum Copying {
    Put { source: usize, to: ReplicaRef },
    Move { to: ReplicaRef },
}

/// Somebody who reads in place, as long as they like.
pub struct Reader {
    file: File,
    offset: u64,
    source: usize,
}

pub struct FakeShard {
    pub place: Place,
    drivers: Option<Drivers>,
    completions: Receiver<(ShardIndex, Completion)>,
    /// Segments that everything is copied from, and their bytes.
    sources: Vec<(ReplicaRef, Vec<u8>)>,
    pub payloads: BTreeMap<PayloadId, Live>,
    copies: HashMap<OpId, Copying>,
    /// What each replica that is not free yet gives back.
    pub dying: HashMap<Generation, u64>,
    /// Old places of moved payloads that leases hold.
    leased: Vec<ReplicaRef>,
    pub readers: Vec<Reader>,
    pub charged: u64,
    pub usable: u64,
    pub rng: Rng,
    /// Of 100 wishes, so many are not followed at once.
    pub stays: u64,
    /// Of 100 copies that it asked for by following a wish, so many are not wanted after all.
    pub unwanted: u64,
    pub moves: u64,
}

impl FakeShard {
    /// With a source of each of these sizes.
    pub fn start(place: Place, seed: u64, sizes: &[usize]) -> Self {
        let drivers = place.open();
        Self::started(place, drivers, seed, sizes)
    }

    /// On a disk that fails as it is told to.
    pub fn start_faulty(place: Place, faults: &Faults, seed: u64, sizes: &[usize]) -> Self {
        let drivers = Drivers::open_faulty(place.config.clone(), faults.clone()).expect("opened");
        Self::started(place, drivers, seed, sizes)
    }

    fn started(place: Place, mut drivers: Drivers, seed: u64, sizes: &[usize]) -> Self {
        drivers.reclaim();
        let mut rig = Rig::started(drivers);
        let sources = sizes.iter().map(|size| {
            let source = replica(Tier::Ram, *size as u64);
            rig.create(source).expect("created");
            fs::write(rig.path(source), sample(*size)).expect("written");
            rig.seal(source, false).expect("sealed");
            (source, sample(*size))
        });
        let sources = sources.collect();
        let capacity = place.config.disk_capacity.expect("packed");
        let geometry = Geometry::of_capacity(capacity).expect("large enough");
        Self {
            place,
            drivers: Some(rig.drivers),
            completions: rig.completions,
            sources,
            payloads: BTreeMap::new(),
            copies: HashMap::new(),
            dying: HashMap::new(),
            leased: Vec::new(),
            readers: Vec::new(),
            charged: 0,
            usable: geometry.usable().0,
            rng: Rng::new(seed),
            stays: 0,
            unwanted: 5,
            moves: 0,
        }
    }

    pub fn drivers(&self) -> &Drivers {
        self.drivers.as_ref().expect("running")
    }

    pub fn segments(&self) -> DiskSegments {
        self.drivers().disk_watch().segments().expect("packed")
    }

    fn submit(&self, replica: ReplicaRef, action: StorageAction) {
        self.hand_in(DriverOp::Storage(StorageOp { shard: ShardIndex(0), op: op_id(), replica, action }));
    }

    /// A real shard has fewer ops under way than a lane takes; this one has as many as the test likes.
    fn hand_in(&self, op: DriverOp) {
        while self.drivers().submit(op).is_err() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn copy(&mut self, from: ReplicaRef, to: ReplicaRef, source: usize, copying: Copying) {
        let expected = Some(checksum(&self.sources[source].1));
        let op = copy_op(from, to, expected);
        self.copies.insert(op.op, copying);
        self.hand_in(DriverOp::Transfer(op));
    }

    /// Copies a source to disk, if an arbiter would allow it.
    pub fn put(&mut self, source: usize) -> bool {
        let from = self.sources[source].0;
        let pages = from.size.in_pages().0;
        if self.charged + pages > self.usable {
            return false;
        }
        self.charged += pages;
        let to = replica(Tier::Disk, from.size.0);
        self.copy(from, to, source, Copying::Put { source, to });
        true
    }

    /// Drops a payload, unless it is being moved.
    pub fn delete(&mut self, id: PayloadId) {
        if self.payloads[&id].is_busy {
            return;
        }
        let Live { replica, .. } = self.payloads.remove(&id).expect("it lives");
        self.dying.insert(replica.generation, replica.size.in_pages().0);
        self.submit(replica, StorageAction::Drop);
    }

    /// The leases on what was moved end.
    pub fn leases_end(&mut self) {
        for old in std::mem::take(&mut self.leased) {
            self.submit(old, StorageAction::Drop);
        }
    }

    /// Handles what has come; true when something had, waiting for it so long.
    pub fn pump(&mut self, wait: Duration) -> bool {
        let Ok((_, first)) = self.completions.recv_timeout(wait) else { return false };
        self.handle(first);
        while let Ok((_, completion)) = self.completions.try_recv() {
            self.handle(completion);
        }
        true
    }

    /// Handles everything but wishes, which are left without an answer: how many came within the time, one at most.
    pub fn swallow(&mut self, wait: Duration) -> usize {
        match self.completions.recv_timeout(wait) {
            Ok((_, Completion::Relocate(_))) => 1,
            Ok((_, other)) => {
                self.handle(other);
                0
            }
            Err(_) => 0,
        }
    }

    fn handle(&mut self, completion: Completion) {
        match completion {
            Completion::Storage(StorageDone::Detached { .. }) => {}
            Completion::Storage(StorageDone::Freed { generation, .. }) => {
                self.charged -= self.dying.remove(&generation).expect("told once, of what was dropped");
            }
            Completion::Transfer(done) => {
                let copied = done.result.expect("the disk is sound");
                match self.copies.remove(&done.op).expect("asked for") {
                    Copying::Put { source, to } => {
                        let replica = ReplicaRef { extent: copied.extent, ..to };
                        self.payloads.insert(to.id, Live { replica, source, is_busy: false });
                    }
                    Copying::Move { to } => self.moved(ReplicaRef { extent: copied.extent, ..to }),
                }
            }
            Completion::Relocate(from) => self.relocate(from),
            other => panic!("drivers do not send {other:?}"),
        }
    }

    fn relocate(&mut self, from: ReplicaRef) {
        let stays = self.rng.below(100) < self.stays;
        let live = self.payloads.get_mut(&from.id).filter(|live| live.replica == from && !live.is_busy);
        let Some(live) = live.filter(|_| !stays) else { return self.submit(from, StorageAction::Stay) };
        live.is_busy = true;
        let (source, to) = (live.source, twin(from, Tier::Disk));
        self.copy(from, to, source, Copying::Move { to });
    }

    /// The new one has the charge of the old one; sometimes it is not wanted any more.
    fn moved(&mut self, new: ReplicaRef) {
        self.moves += 1;
        let live = self.payloads.get_mut(&new.id).expect("what is moved is not deleted");
        live.is_busy = false;
        if self.rng.below(100) < self.unwanted {
            self.dying.insert(new.generation, 0);
            return self.submit(new, StorageAction::Drop);
        }
        let old = std::mem::replace(&mut live.replica, new);
        self.dying.insert(old.generation, 0);
        if self.rng.below(4) == 0 { self.leased.push(old) } else { self.submit(old, StorageAction::Drop) }
    }

    /// One of those that live.
    pub fn any(&mut self) -> Option<PayloadId> {
        let index = self.rng.below(self.payloads.len() as u64) as usize;
        self.payloads.keys().nth(index).copied()
    }

    /// Whole pages of what lives.
    pub fn live_bytes(&self) -> u64 {
        self.payloads.values().map(|live| live.replica.size.in_pages().0).sum()
    }

    pub fn is_quiet(&self) -> bool {
        self.copies.is_empty()
    }

    /// A client that reads in place.
    pub fn open(&self, id: PayloadId) -> Reader {
        let Live { replica, source, .. } = self.payloads[&id];
        let file = File::open(path_of(self.drivers(), replica)).expect("a client may open it");
        Reader { file, offset: replica.extent.map_or(0, Extent::offset_bytes), source }
    }

    /// What a client reads is what was written.
    pub fn verify(&self, reader: &Reader) {
        let expected = &self.sources[reader.source].1;
        let mut found = vec![0; expected.len()];
        reader.file.read_exact_at(&mut found, reader.offset).expect("read");
        assert!(found == *expected, "{} bytes at {} changed", expected.len(), reader.offset);
    }

    pub fn verify_all(&self) {
        self.payloads.keys().for_each(|id| self.verify(&self.open(*id)));
        self.readers.iter().for_each(|reader| self.verify(reader));
    }

    /// Neither books nor file system may say that there is more than the disk's capacity.
    pub fn check_capacity(&self) {
        let capacity = self.place.config.disk_capacity.expect("packed").0;
        let held = self.drivers().locate().footprint(Tier::Disk).expect("readable").0;
        assert!(held <= capacity, "the file system holds {held} of {capacity}: {:?}", self.segments());
        assert!(self.segments().file_bytes.0 <= capacity);
    }

    /// The server ends, gracefully or not: what it was doing is done, and nobody hears of it. Starts again.
    pub fn restart(&mut self) {
        drop(self.drivers.take());
        while self.completions.try_recv().is_ok() {}
        let mut drivers = self.place.open();
        for (source, _) in &self.sources {
            assert!(drivers.verify(source));
        }
        for live in self.payloads.values_mut() {
            assert!(drivers.verify(&live.replica), "{:?}", live.replica);
            live.is_busy = false;
        }
        drivers.reclaim();
        (self.copies, self.leased) = (HashMap::new(), Vec::new());
        self.dying = drivers.held().map(|replica| (replica.generation, replica.size.in_pages().0)).collect();
        self.charged = self.live_bytes() + self.dying.values().sum::<u64>();
        let (sender, completions) = channel();
        let sender = std::sync::Mutex::new(sender);
        drivers.start(Arc::new(move |shard, completion| {
            let _ = sender.lock().expect("sound").send((shard, completion));
        }));
        (self.drivers, self.completions) = (Some(drivers), completions);
    }

    /// Pumps until it holds.
    pub fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let start = std::time::Instant::now();
        while !holds(self) {
            let (segments, dying) = (self.segments(), self.dying.len());
            assert!(start.elapsed() < PATIENCE, "{what} did not come about: {segments:?}, {dying} not free");
            if !self.pump(Duration::from_millis(5)) {
                self.leases_end();
            }
        }
    }
}
