//! A node's drivers under test: real segments in /dev/shm under a prefix of their own, a real disk root, and the
//! completions as they come. Dropping it removes what the test left.
#![allow(dead_code)] // every test binary uses its own part

pub mod fake;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use payload_drivers::{DriverOp, Drivers, DriversConfig, IoEngine, Reclaimed};
use payload_types::effect::{ReplicaRef, StorageAction, StorageOp, TransferOp};
use payload_types::event::{Completion, Copied, DriverError, StorageDone, TransferDone, TransferError};
use payload_types::{ByteCount, Checksum, Generation, OpId, PayloadId, PerTier, ShardIndex, Tier};

/// No answer within this time is a failure: generous, so that it decides nothing on a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);

static NUMBER: AtomicU64 = AtomicU64::new(1);

/// A prefix, a node and a root that no other test has.
pub struct Place {
    pub config: DriversConfig,
    directory: Option<tempfile::TempDir>,
}

impl Place {
    pub fn new() -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        // Missing where the tests were carried to another machine.
        let _ = fs::create_dir_all(env!("CARGO_TARGET_TMPDIR"));
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let config = DriversConfig {
            // It ends in a letter: no prefix may be the start of another one, or one test removes what is another's.
            shm_prefix: format!("pmt-drivers-{}-{number}p", std::process::id()),
            disk_root: Some(directory.path().join("root")),
            node: format!("node-{number}"),
            ..DriversConfig::default()
        };
        Self { config, directory: Some(directory) }
    }

    /// A place that another process made; it removes nothing.
    pub fn of(prefix: &str, root: &Path) -> Self {
        let config = DriversConfig {
            shm_prefix: prefix.to_owned(),
            disk_root: Some(root.to_owned()),
            node: "node".to_owned(),
            ..DriversConfig::default()
        };
        Self { config, directory: None }
    }

    pub fn root(&self) -> &Path {
        self.config.disk_root.as_deref().expect("a root")
    }

    pub fn open(&self) -> Drivers {
        Drivers::open(self.config.clone()).expect("the drivers open")
    }

    /// Names in /dev/shm with this place's prefix.
    pub fn segments(&self) -> Vec<String> {
        let names =
            fs::read_dir("/dev/shm").expect("listed").map(|entry| entry.expect("an entry").file_name());
        let mut names: Vec<String> = names.map(|name| name.to_string_lossy().into_owned()).collect();
        names.retain(|name| name.starts_with(&self.config.shm_prefix) && !name.contains("-intent-"));
        names.sort();
        names
    }

    /// Files below the root's payload directories.
    pub fn files(&self) -> Vec<PathBuf> {
        let list = |path: &Path| -> Vec<PathBuf> {
            fs::read_dir(path).expect("listed").map(|entry| entry.expect("an entry").path()).collect()
        };
        list(&self.root().join("payloads")).iter().flat_map(|directory| list(directory)).collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.directory.is_some() {
            for entry in fs::read_dir("/dev/shm").expect("listed").flatten() {
                if entry.file_name().to_string_lossy().starts_with(&self.config.shm_prefix) {
                    let _ = fs::remove_file(entry.path());
                }
            }
        }
    }
}

/// Started drivers and their completions.
pub struct Rig {
    pub drivers: Drivers,
    pub completions: Receiver<(ShardIndex, Completion)>,
    early: Vec<StorageDone>,
    /// What the store asked to be moved.
    pub relocations: Vec<ReplicaRef>,
}

impl Rig {
    pub fn start(place: &Place) -> Self {
        Self::started(place.open())
    }

    pub fn started(mut drivers: Drivers) -> Self {
        let (sender, completions) = channel();
        let sender = std::sync::Mutex::new(sender);
        drivers.start(Arc::new(move |shard, completion| {
            let _ = sender.lock().expect("sound").send((shard, completion));
        }));
        Self { drivers, completions, early: Vec::new(), relocations: Vec::new() }
    }

    pub fn submit(&self, action: StorageAction, replica: ReplicaRef) {
        let op = StorageOp { shard: ShardIndex(0), op: op_id(), replica, action };
        assert_eq!(self.drivers.submit(DriverOp::Storage(op)), Ok(()));
    }

    pub fn next(&self) -> Completion {
        self.completions.recv_timeout(PATIENCE).expect("a completion").1
    }

    fn storage(&mut self) -> StorageDone {
        match self.next() {
            Completion::Storage(done) => done,
            Completion::Relocate(replica) => {
                self.relocations.push(replica);
                self.storage()
            }
            other => panic!("a storage completion was expected, not {other:?}"),
        }
    }

    pub fn create(&mut self, replica: ReplicaRef) -> Result<(), DriverError> {
        self.submit(StorageAction::Create, replica);
        loop {
            match self.storage() {
                StorageDone::Created { result, .. } => return result,
                other => self.early.push(other),
            }
        }
    }

    pub fn seal(&mut self, replica: ReplicaRef, sync: bool) -> Result<(), DriverError> {
        self.submit(StorageAction::Seal { sync }, replica);
        loop {
            match self.storage() {
                StorageDone::Sealed { result, .. } => return result,
                other => self.early.push(other),
            }
        }
    }

    /// Drops it and waits until its name is free.
    pub fn detach(&mut self, replica: ReplicaRef) {
        self.submit(StorageAction::Drop, replica);
        let (tier, generation) = (replica.tier, replica.generation);
        self.wait_for(StorageDone::Detached { tier, generation });
    }

    pub fn wait_until_freed(&mut self, replica: ReplicaRef) {
        self.wait_for(StorageDone::Freed { tier: replica.tier, generation: replica.generation });
    }

    /// True when the replica was reported free up to now.
    pub fn is_freed(&mut self, replica: ReplicaRef) -> bool {
        while let Ok((_, completion)) = self.completions.try_recv() {
            match completion {
                Completion::Storage(done) => self.early.push(done),
                Completion::Relocate(replica) => self.relocations.push(replica),
                other => panic!("a storage completion was expected, not {other:?}"),
            }
        }
        let freed = StorageDone::Freed { tier: replica.tier, generation: replica.generation };
        self.early.contains(&freed)
    }

    fn wait_for(&mut self, wanted: StorageDone) {
        while !self.early.contains(&wanted) {
            let done = self.storage();
            self.early.push(done);
        }
        self.early.retain(|done| *done != wanted);
    }

    pub fn copy(
        &mut self,
        from: ReplicaRef,
        to: ReplicaRef,
        expected: Option<Checksum>,
    ) -> Result<Checksum, TransferError> {
        self.copied(from, to, expected).map(|copied| copied.checksum)
    }

    /// As `copy`: what it made.
    pub fn copied(
        &mut self,
        from: ReplicaRef,
        to: ReplicaRef,
        expected: Option<Checksum>,
    ) -> Result<Copied, TransferError> {
        self.copy_all(&[(from, to, expected)]).pop().expect("one answer")
    }

    /// Moves what is known to be damaged.
    pub fn salvaged(
        &mut self,
        from: ReplicaRef,
        to: ReplicaRef,
        expected: Option<Checksum>,
    ) -> Result<Copied, TransferError> {
        let op = TransferOp { salvage: true, ..copy_op(from, to, expected) };
        assert_eq!(self.drivers.submit(DriverOp::Transfer(op)), Ok(()));
        loop {
            match self.next() {
                Completion::Transfer(TransferDone { op: done, result }) if done == op.op => return result,
                Completion::Storage(done) => self.early.push(done),
                Completion::Relocate(replica) => self.relocations.push(replica),
                other => panic!("drivers do not send {other:?}"),
            }
        }
    }

    /// Submits copies at once, and waits for all of them: in their order.
    pub fn copy_all(
        &mut self,
        copies: &[(ReplicaRef, ReplicaRef, Option<Checksum>)],
    ) -> Vec<Result<Copied, TransferError>> {
        let submit = |&(from, to, expected): &(ReplicaRef, ReplicaRef, Option<Checksum>)| {
            let op = copy_op(from, to, expected);
            assert_eq!(self.drivers.submit(DriverOp::Transfer(op)), Ok(()));
            op.op
        };
        let ops: Vec<OpId> = copies.iter().map(submit).collect();
        let mut results: Vec<Option<_>> = copies.iter().map(|_| None).collect();
        while results.iter().any(Option::is_none) {
            match self.next() {
                Completion::Transfer(TransferDone { op, result }) => {
                    let index = ops.iter().position(|asked| *asked == op).expect("it was asked for");
                    assert!(results[index].replace(result).is_none(), "one answer each");
                }
                Completion::Storage(done) => self.early.push(done),
                Completion::Relocate(replica) => self.relocations.push(replica),
                other => panic!("drivers do not send {other:?}"),
            }
        }
        results.into_iter().flatten().collect()
    }

    /// Where clients find it.
    pub fn path(&self, replica: ReplicaRef) -> PathBuf {
        path_of(&self.drivers, replica)
    }
}

pub fn path_of(drivers: &Drivers, replica: ReplicaRef) -> PathBuf {
    match replica.tier {
        Tier::Ram => PathBuf::from(format!("/dev/shm{}", drivers.locate().shm_name(replica.id))),
        _ => match replica.extent {
            Some(extent) => drivers.locate().segment_path(extent.file),
            None => drivers.locate().disk_path(replica.id, replica.generation),
        },
    }
}

/// An ordinary copy to stable storage.
fn copy_op(from: ReplicaRef, to: ReplicaRef, expected: Option<Checksum>) -> TransferOp {
    let (shard, op) = (ShardIndex(0), op_id());
    TransferOp { shard, op, from, to, expected, sync: true, salvage: false, alone: false }
}

fn op_id() -> OpId {
    OpId { index: NUMBER.fetch_add(1, Ordering::Relaxed) as u32, generation: 1 }
}

/// A new id and generation.
pub fn replica(tier: Tier, size: u64) -> ReplicaRef {
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let id = PayloadId::mint((1_700_000_000_000 << 12) + number, number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    ReplicaRef { tier, id, generation: Generation(number), size: ByteCount(size), extent: None, block: None }
}

/// A committed replica with these bytes.
pub fn committed(rig: &mut Rig, tier: Tier, bytes: &[u8]) -> ReplicaRef {
    let replica = replica(tier, bytes.len() as u64);
    rig.create(replica).expect("created");
    fs::OpenOptions::new()
        .write(true)
        .open(rig.path(replica))
        .and_then(|file| file.write_all_at(bytes, 0))
        .expect("written");
    rig.seal(replica, false).expect("sealed");
    replica
}

/// What a client would read.
pub fn read(rig: &Rig, replica: ReplicaRef) -> Vec<u8> {
    let mut bytes = vec![0; replica.size.0 as usize];
    let offset = replica.extent.map_or(0, payload_types::Extent::offset_bytes);
    let file = fs::File::open(rig.path(replica)).expect("a client may open it");
    file.read_exact_at(&mut bytes, offset).expect("it is there");
    bytes
}

/// The same payload on another tier.
pub fn twin(replica: ReplicaRef, tier: Tier) -> ReplicaRef {
    ReplicaRef {
        tier,
        generation: Generation(NUMBER.fetch_add(1, Ordering::Relaxed)),
        extent: None,
        ..replica
    }
}

/// Bytes that repeat nowhere near a page or a chunk.
pub fn sample(length: usize) -> Vec<u8> {
    let mut state = length as u64 + 1;
    (0..length)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .collect()
}

/// Waits for what other processes do.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "{what} did not come about");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Both engines, so that every test of copies runs on each.
pub fn engines() -> [IoEngine; 2] {
    [IoEngine::Uring, IoEngine::Plain]
}

pub fn removed(tally: &PerTier<Reclaimed>) -> (u64, u64) {
    (tally[Tier::Ram].removed, tally[Tier::Disk].removed)
}
