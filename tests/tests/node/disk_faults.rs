//! A shard over the real drivers over a disk that fails as the test says (the faults decorator): what a client is
//! told, that its bytes are where they were, that the books balance, and that everything works again by itself.
//!
//! ```text
//! test --Request--> Shard --effects--> Drivers (real files, real segments, Faults) --completions--> Shard
//!                         --rows, asks--> answered at once (catalog), Arbiter
//! ```
//! One thread drives it; time is a value for the shard and for the drivers, and moves when the test says so.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use payload_drivers::faults::{Answer, Call, Faults};
use payload_drivers::{DriverOp, Drivers, DriversConfig};
use payload_shards::{Arbiter, Outbox, Shard, ShardConfig};
use payload_types::effect::{Effect, ReplyTo, StorageAction};
use payload_types::event::{CatalogAck, Completion, Event};
use payload_types::peer::Peer;
use payload_types::reply::{Reply, ReplyResult};
use payload_types::request::{Acquire, Allocate, Request, Spill};
use payload_types::tier::SpillTarget;
use payload_types::*;

const CAPACITY: u64 = 16 << 20;
const PATIENCE: Duration = Duration::from_secs(60);

struct Node {
    shard: Shard,
    arbiter: Arbiter,
    drivers: Drivers,
    faults: Faults,
    completions: mpsc::Receiver<Completion>,
    /// Completions that are still to come.
    under_way: usize,
    outbox: Outbox,
    now: Now,
    requests: u64,
    answer: Option<(u64, ReplyResult)>,
    prefix: String,
    _root: tempfile::TempDir,
}

impl Drop for Node {
    fn drop(&mut self) {
        for entry in fs::read_dir("/dev/shm").into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&self.prefix) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

impl Node {
    fn new(name: &str) -> Self {
        let root = tempfile::tempdir().expect("a directory");
        let prefix = format!("pmfault-{}-{name}p", std::process::id());
        let faults = Faults::new();
        faults.available(1 << 40); // other programs' files come and go
        let config = DriversConfig {
            shm_prefix: prefix.clone(),
            disk_root: Some(root.path().join("root")),
            node: name.to_owned(),
            ..DriversConfig::default()
        };
        let mut drivers = Drivers::open_faulty(config, faults.clone()).expect("opened");
        let (sender, completions) = mpsc::sync_channel(1 << 12);
        drivers.start(Arc::new(move |_, completion| drop(sender.send(completion))));
        let mut capacity = PerTier::default();
        capacity[Tier::Ram] = Some(ByteCount(CAPACITY));
        capacity[Tier::Disk] = Some(ByteCount(CAPACITY));
        let shard = Shard::new(ShardConfig {
            dead_grace_ms: 1_000,
            shard: ShardIndex(0),
            shard_count: 1,
            epoch: Epoch(1),
            capacity,
            lease_ms_default: 20_000,
            lease_ms_max: 120_000,
            allocation_timeout_ms: 3_600_000,
            disk_fsync: true,
            retry_backoff_ms: 500,
            session_caps: payload_shards::SessionCaps::default(),
        });
        Self {
            shard,
            arbiter: Arbiter::new(capacity, 1),
            drivers,
            faults,
            completions,
            under_way: 0,
            outbox: Outbox::new(),
            now: Now { monotonic: Monotonic(0), wall: WallMs::from_millis(1_700_000_000_000) },
            requests: 0,
            answer: None,
            prefix,
            _root: root,
        }
    }

    fn step(&mut self, event: Event) {
        self.shard.step(self.now, event, &mut self.outbox);
        while let Some(effect) = self.outbox.pop() {
            match effect {
                Effect::Reply { to, result } => self.answer = Some((to.0, result)),
                Effect::Storage(op) => {
                    self.under_way += if op.action == StorageAction::Drop { 2 } else { 1 };
                    assert_eq!(self.drivers.submit(DriverOp::Storage(op)), Ok(()));
                }
                Effect::Transfer(op) => {
                    self.under_way += 1;
                    assert_eq!(self.drivers.submit(DriverOp::Transfer(op)), Ok(()));
                }
                Effect::Catalog(op) => {
                    let ack = CatalogAck { op: op.op, result: Ok(()), sequence: 0 };
                    self.step(Event::Completion(Completion::Catalog(ack)));
                }
                Effect::Slab(_)
                | Effect::Accepted { .. }
                | Effect::Publish(_)
                | Effect::Scan(_)
                | Effect::Revoke(_) => unreachable!("no session here"),
                Effect::Budget(request) => {
                    let mut answers = Vec::new();
                    self.arbiter.step(request, &mut answers);
                    for (_, answer) in answers {
                        self.step(Event::Completion(Completion::Budget(answer)));
                    }
                }
            }
        }
    }

    /// Lets everything that was begun come to its end.
    fn settle(&mut self) {
        loop {
            if self.under_way > 0 {
                let completion = self.completions.recv_timeout(PATIENCE).expect("a completion");
                self.under_way -= 1;
                self.step(Event::Completion(completion));
            } else if self.shard.next_timer().is_some_and(|due| due <= self.now.monotonic) {
                self.step(Event::Timer);
            } else {
                return;
            }
        }
    }

    fn pass(&mut self, milliseconds: u64) {
        self.faults.advance(Duration::from_millis(milliseconds));
        let wall = self.now.wall.checked_plus(milliseconds).expect("in range");
        self.now = Now { monotonic: self.now.monotonic.plus_millis(milliseconds), wall };
        self.settle();
    }

    fn ask(&mut self, request: Request) -> ReplyResult {
        self.requests += 1;
        let reply_to = ReplyTo(self.requests);
        self.step(Event::Request { reply_to, deadline: None, request });
        self.settle();
        let (number, answer) = self.answer.take().expect("answered when everything is done");
        assert_eq!(number, self.requests);
        answer
    }

    fn allocate(&mut self, tier: Tier, size: u64) -> Result<Descriptor, PayloadError> {
        let id = PayloadId::mint((self.now.wall.as_millis() << 12) + self.requests, self.requests);
        let key = PayloadKey { namespace: NamespaceId::DEFAULT, id };
        let policy = EvictionPolicy::default();
        let size = ByteCount(size);
        let allocate = Allocate {
            key,
            size,
            tier,
            ttl_ms: None,
            no_evict: false,
            policy,
            memory: Memory::Segment,
            owner: Peer::UNKNOWN,
        };
        match self.ask(Request::Allocate(allocate))? {
            Reply::Allocated(descriptor) => Ok(descriptor),
            other => panic!("{other:?}"),
        }
    }

    fn written(&mut self, tier: Tier, bytes: &[u8]) -> PayloadKey {
        let made = self.allocate(tier, bytes.len() as u64).expect("allocated");
        let file = fs::OpenOptions::new().write(true).open(self.path(&made)).expect("opened");
        file.write_all_at(bytes, 0).expect("written");
        key(&made)
    }

    fn committed(&mut self, tier: Tier, bytes: &[u8]) -> PayloadKey {
        let key = self.written(tier, bytes);
        self.commit(key).expect("committed");
        key
    }

    fn commit(&mut self, key: PayloadKey) -> ReplyResult {
        self.ask(Request::Commit { key, checksum: None, batch: None })
    }

    fn resolve(&mut self, key: PayloadKey) -> Descriptor {
        match self.ask(Request::Resolve { key }) {
            Ok(Reply::Resolved(descriptor)) => descriptor,
            other => panic!("{other:?}"),
        }
    }

    fn path(&self, descriptor: &Descriptor) -> PathBuf {
        let (id, names) = (descriptor.id, self.drivers.locate());
        match descriptor.location.expect("a location") {
            Location::Segment => PathBuf::from(format!("/dev/shm{}", names.shm_name(id))),
            Location::File(generation) => names.disk_path(id, generation),
            Location::Arena(_) | Location::Object | Location::Gpu(_) => {
                unreachable!("no session, no store and no device here")
            }
            Location::Packed(extent) => names.segment_path(extent.file),
        }
    }

    /// What a reader finds: where, and which bytes.
    fn read(&mut self, key: PayloadKey) -> (Tier, Vec<u8>) {
        let acquire = Acquire {
            key,
            min_tier: None,
            policy: PromotionPolicy::Blocking,
            duration_ms: 0,
            expected_version: None,
            accepts_packed: true,
            accepts_slabs: false,
            nonce: LeaseNonce([3; 10]),
            owner: Peer::UNKNOWN,
        };
        let Ok(Reply::Leased(grant)) = self.ask(Request::Acquire(acquire)) else { panic!("no lease") };
        let bytes = fs::read(self.path(&grant.descriptor)).expect("readable");
        self.ask(Request::Release { lease: grant.lease, by: None }).expect("released");
        (grant.descriptor.tier, bytes)
    }

    fn spill(&mut self, key: PayloadKey, policy: SpillPolicy) -> ReplyResult {
        let target = Some(SpillTarget::Tier(Tier::Disk));
        let spill =
            Spill { key, target, policy, wait_for_leases: false, fsync: false, expected_version: None };
        self.ask(Request::Spill(spill))
    }

    fn promote(&mut self, key: PayloadKey) -> ReplyResult {
        let (target, policy) = (Tier::Ram, PromotionPolicy::Blocking);
        self.ask(Request::Promote { key, target, policy, expected_version: None })
    }

    fn state(&self) -> DiskState {
        self.drivers.health().expect("a disk").state
    }

    /// After everything is deleted the whole of both tiers can be had: nothing is charged that is not there.
    fn balance(&mut self, keys: &[PayloadKey]) {
        for key in keys {
            self.ask(Request::Delete { key: *key, force: false, expected_version: None }).expect("deleted");
        }
        for tier in [Tier::Ram, Tier::Disk] {
            let all = self.allocate(tier, CAPACITY).expect("the tier is empty");
            let all = Request::Delete { key: key(&all), force: false, expected_version: None };
            self.ask(all).expect("deleted");
        }
        let files: Vec<PathBuf> = walk(&self._root.path().join("root/payloads"));
        assert!(files.is_empty(), "left behind: {files:?}");
    }
}

fn key(descriptor: &Descriptor) -> PayloadKey {
    PayloadKey { namespace: NamespaceId::DEFAULT, id: descriptor.id }
}

fn walk(directory: &std::path::Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("listed").flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

fn content(seed: u8, length: usize) -> Vec<u8> {
    (0..length as u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8 ^ seed).collect()
}

#[track_caller]
fn refused(answer: ReplyResult, kind: ErrorKind) -> String {
    let error = answer.expect_err("refused");
    assert_eq!(error.kind, kind, "{}", error.message);
    error.message
}

/// Every call of a spill that can fail, and what a client is told.
const FAULTS: [(Call, Answer, ErrorKind); 7] = [
    (Call::Create, Answer::ReadOnly, ErrorKind::Unavailable),
    (Call::Reserve, Answer::NoSpace, ErrorKind::ResourceExhausted),
    (Call::Write, Answer::Io, ErrorKind::Unavailable),
    (Call::Write, Answer::NoSpace, ErrorKind::ResourceExhausted),
    (Call::Sync, Answer::Io, ErrorKind::Unavailable),
    (Call::Rename, Answer::Io, ErrorKind::Unavailable),
    (Call::SyncDirectory, Answer::Io, ErrorKind::Unavailable),
];

#[test]
fn given_a_failing_disk_when_spilled_then_typed_and_the_payload_is_readable_where_it_was_until_it_works() {
    for (number, (call, answer, kind)) in FAULTS.into_iter().enumerate() {
        let mut node = Node::new(&format!("spill{number}"));
        let bytes = content(1, 3_000_000);
        let key = node.committed(Tier::Ram, &bytes);
        let other = node.committed(Tier::Disk, &content(2, 9000));
        node.faults.fail(call, answer);
        refused(node.spill(key, SpillPolicy::Blocking), kind);
        let seen = node.resolve(key);
        assert_eq!((seen.tier, seen.state), (Tier::Ram, PayloadState::Active), "{call:?}: as before");
        let said = refused(node.spill(key, SpillPolicy::Blocking), kind);
        assert!(said.contains("500 ms") && said.contains("where it was"), "{said}");
        assert_eq!(node.read(key), (Tier::Ram, bytes.clone()));
        node.promote(other).expect("reads go on");
        assert_eq!(node.read(other), (Tier::Ram, content(2, 9000)));
        node.faults.end();
        node.faults.available(1 << 40);
        node.pass(500);
        node.spill(key, SpillPolicy::Blocking).unwrap_or_else(|error| panic!("{call:?}: {error}"));
        assert_eq!(node.read(key), (Tier::Disk, bytes), "{call:?}");
        assert_eq!(node.state(), DiskState::Healthy);
        node.balance(&[key, other]);
    }
}

#[test]
fn given_a_failing_disk_when_spilled_in_the_background_then_it_is_tried_again_until_the_disk_works() {
    let mut node = Node::new("later");
    let bytes = content(3, 1_000_000);
    let key = node.committed(Tier::Ram, &bytes);
    node.faults.fail(Call::Write, Answer::Io);
    node.spill(key, SpillPolicy::BestEffort).expect("accepted");
    for _ in 0..60 {
        node.pass(1000);
    }
    assert_eq!(node.read(key), (Tier::Ram, bytes.clone()), "a minute of failures later");
    node.faults.end();
    node.pass(64_000);
    assert_eq!(node.read(key), (Tier::Disk, bytes), "nobody asked again");
    node.balance(&[key]);
}

#[test]
fn given_a_failing_disk_when_allocated_there_then_typed_and_nothing_is_charged() {
    for (number, (call, answer, kind)) in FAULTS.into_iter().take(2).enumerate() {
        let mut node = Node::new(&format!("allocate{number}"));
        node.faults.fail(call, answer);
        for _ in 0..2 {
            refused(node.allocate(Tier::Disk, CAPACITY).map(|_| Reply::Deleted), kind);
        }
        let in_memory = node.committed(Tier::Ram, &content(1, 5000));
        node.faults.end();
        node.faults.available(1 << 40);
        node.pass(500);
        let key = node.committed(Tier::Disk, &content(2, 5000));
        assert_eq!(node.read(key), (Tier::Disk, content(2, 5000)));
        node.balance(&[in_memory, key]);
    }
}

#[test]
fn given_a_failing_fdatasync_when_committed_on_disk_then_data_loss_for_it_and_others_commit_later() {
    let mut node = Node::new("commit");
    let [lost, spared] = [1, 2].map(|seed| node.written(Tier::Disk, &content(seed, 9000)));
    node.faults.fail(Call::Sync, Answer::Io);
    let said = refused(node.commit(lost), ErrorKind::DataLoss);
    assert!(said.contains("allocate and write it anew"), "{said}");
    let said = refused(node.commit(spared), ErrorKind::Unavailable);
    assert!(said.contains("still ALLOCATED"), "{said}");
    assert_eq!(node.resolve(spared).state, PayloadState::Allocated);
    node.faults.end();
    node.pass(500);
    node.commit(spared).expect("the disk works again");
    assert_eq!(node.read(spared), (Tier::Disk, content(2, 9000)));
    refused(node.commit(lost), ErrorKind::DataLoss);
    let in_memory = node.committed(Tier::Ram, &content(3, 9000));
    node.balance(&[lost, spared, in_memory]);
}

#[test]
fn given_a_disk_that_cannot_be_read_when_promoted_then_unavailable_and_not_marked_and_readable_again() {
    let mut node = Node::new("promote");
    let bytes = content(1, 3_000_000);
    let key = node.committed(Tier::Disk, &bytes);
    node.faults.fail_after(2, Call::Read, Answer::Io);
    let said = refused(node.promote(key), ErrorKind::Unavailable);
    assert!(said.contains("try again"), "{said}");
    assert_eq!(node.read(key), (Tier::Disk, bytes.clone()), "an unreadable moment is no damage");
    node.faults.end();
    node.faults.shorten(100_000);
    node.promote(key).expect("read");
    assert_eq!(node.read(key), (Tier::Ram, bytes));
    node.balance(&[key]);
}
