//! Slabs of native sessions whose clients keep no rule: a real server, raw sessions that speak the protocol's bytes.
//!
//! Nothing here waits for a time: what must happen "within a second" is polled until it is so.

use std::fs::File;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use memmap2::MmapRaw;
use payload_client::AcquireOptions;
use payload_client::blocking::Client;
use payload_local::hello::{ClientFrame, FEATURE_ARENAS, Hello, ServerFrame};
use payload_local::layout::{SessionView, session_bytes};
use payload_local::ring::ClientRings;
use payload_local::{Completion, Outcome, Shown, Submission};
use payload_tests::server::{PATIENCE, Place, Server};
use payload_tests::sys;
use payload_types::{
    Block, ByteCount, ErrorKind, EvictionPolicy, Location, Memory, PayloadId, PromotionPolicy, SlabId, Tier,
};

/// A session that does nothing by itself.
struct Raw {
    socket: OwnedFd,
    descriptors: Vec<OwnedFd>,
    memory: MmapRaw,
    shard_count: u16,
    rings: Vec<ClientRings>,
}

impl Raw {
    fn connect(path: &Path, features: u64) -> Self {
        let socket = sys::seqpacket(path).expect("connected");
        let hello = Hello { features, ..Hello::new("raw") };
        sys::send(&socket, &ClientFrame::Hello(hello).encode()).expect("sent");
        let (bytes, descriptors) = sys::receive(&socket).expect("answered");
        let frame = ServerFrame::decode(&bytes).expect("a frame");
        let ServerFrame::Welcome(welcome) = frame else { panic!("{frame:?}") };
        assert_eq!(welcome.features, features & FEATURE_ARENAS);
        let shard_count = welcome.shard_count;
        let memory = sys::map_shared(&descriptors[0], session_bytes(shard_count)).expect("mapped");
        let rings = (0..shard_count).map(|_| ClientRings::new()).collect();
        Self { socket, descriptors, memory, shard_count, rings }
    }

    fn view(memory: &MmapRaw, shard_count: u16) -> SessionView<'_, AtomicU64> {
        SessionView::new(sys::words(memory), shard_count).expect("as long as stated")
    }

    fn submit(&mut self, shard: u16, submission: &Submission) {
        use std::io::Write as _;
        let view = Self::view(&self.memory, self.shard_count).shard(shard);
        assert!(self.rings[usize::from(shard)].submit(
            &view,
            &submission.encode(1),
            submission.completions()
        ));
        let bell = self.descriptors[2 + usize::from(shard)].try_clone().expect("a descriptor");
        File::from(bell).write_all(&1u64.to_ne_bytes()).expect("rung");
    }

    /// The next completion of a shard.
    fn answer(&mut self, shard: u16) -> Outcome {
        let view = Self::view(&self.memory, self.shard_count).shard(shard);
        let start = Instant::now();
        loop {
            if let Some((_, contents)) = self.rings[usize::from(shard)].take(&view, |_| 1) {
                return Completion::decode(&contents).expect("one of this version").outcome;
            }
            assert!(start.elapsed() < PATIENCE, "no answer");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    fn say(&self, frame: &ClientFrame) {
        sys::send(&self.socket, &frame.encode()).expect("sent");
    }

    fn hear(&self) -> (ServerFrame, Vec<OwnedFd>) {
        let (bytes, descriptors) = sys::receive(&self.socket).expect("told");
        (ServerFrame::decode(&bytes).expect("a frame"), descriptors)
    }

    /// Why the server closed it.
    fn farewell(&self) -> String {
        match self.hear().0 {
            ServerFrame::Closed { text } => text,
            other => panic!("{other:?}"),
        }
    }

    /// What it is offered, after an Allocate.
    fn offered(&self) -> (SlabId, usize, OwnedFd) {
        let (frame, mut descriptors) = self.hear();
        let ServerFrame::SlabOffered { slab, bytes, .. } = frame else { panic!("{frame:?}") };
        (slab, bytes.0 as usize, descriptors.pop().expect("one descriptor"))
    }
}

fn allocate(size: u64, memory: Memory) -> Submission {
    allocate_within(size, memory, 0)
}

fn allocate_within(size: u64, memory: Memory, deadline_ms: u64) -> Submission {
    Submission::Allocate {
        size: ByteCount(size),
        tier: Tier::Ram,
        ttl_ms: 0,
        no_evict: false,
        policy: EvictionPolicy::default(),
        memory,
        deadline_ms,
    }
}

fn acquire(id: PayloadId) -> Submission {
    Submission::Acquire {
        id,
        min_tier: None,
        policy: PromotionPolicy::Blocking,
        accepts_packed: false,
        expected_version: None,
        deadline_ms: 0,
    }
}

fn place() -> Place {
    // Slabs of 1 MiB.
    Place::new().with("STORAGE__RAM__CAPACITY_BYTES", "64MiB")
}

fn client(server: &Server) -> (Client, std::path::PathBuf) {
    let client = Client::connect(&server.address).expect("connected");
    let path = client.session().expect("a native session").path().to_owned();
    (client, path)
}

fn put(client: &Client, bytes: &[u8]) -> PayloadId {
    let size = ByteCount(bytes.len() as u64);
    let mut payload = client.allocate(size).open().expect("allocated");
    payload.copy_from_slice(bytes);
    payload.commit(None).expect("committed").id
}

fn store(map: &MmapRaw, at: usize, bytes: &[u8]) {
    use std::sync::atomic::Ordering::Relaxed;
    for (word, chunk) in sys::words(map)[at / 8..].iter().zip(bytes.chunks_exact(8)) {
        word.store(u64::from_le_bytes(chunk.try_into().expect("8")), Relaxed);
    }
}

fn load(map: &MmapRaw, at: usize, length: usize) -> Vec<u8> {
    use std::sync::atomic::Ordering::Relaxed;
    sys::words(map)[at / 8..][..length / 8].iter().flat_map(|word| word.load(Relaxed).to_le_bytes()).collect()
}

fn block_of(outcome: Outcome) -> (PayloadId, Block) {
    match outcome {
        Outcome::Payload(id, Shown { location: Some(Location::Arena(block)), .. }) => (id, block),
        other => panic!("{other:?}"),
    }
}

#[test]
fn given_a_session_that_never_maps_its_slab_when_a_second_has_passed_then_it_is_closed_and_its_memory_is_free()
 {
    let place = place();
    let server = place.start();
    let (other, path) = client(&server);
    let id = put(&other, b"untouched");
    let mut silent = Raw::connect(&path, FEATURE_ARENAS);
    silent.submit(0, &allocate(1000, Memory::Arena));
    let (_, bytes, memory) = silent.offered();
    // It maps it, and does not say so.
    let map = sys::map_shared(&memory, bytes).expect("mapped");
    let why = silent.farewell();
    assert!(why.contains("not mapped within 1000 ms"), "{why}");
    store(&map, 0, &[7; 64]);
    drop((memory, silent));
    assert_eq!(&*other.acquire(id, &AcquireOptions::default()).expect("leased"), b"untouched");
    other.delete(id, false, None).expect("nobody holds it");
    drop(other);
    // It has the memory still, so all but its bytes can be had.
    let (other, _) = client(&server);
    drop(other.allocate(ByteCount(63 << 20)).open().expect("all but one slab"));
    let mut asker = Raw::connect(&path, FEATURE_ARENAS);
    asker.submit(0, &allocate_within(64 << 20, Memory::Arena, 500));
    let answer = asker.answer(0);
    assert!(matches!(answer, Outcome::Refused { .. }), "{answer:?}, of memory that a client has mapped");
    drop(map);
    let start = Instant::now();
    while other.allocate(ByteCount(64 << 20)).open().is_err() {
        assert!(start.elapsed() < PATIENCE, "the slab's charge does not end");
    }
}

#[test]
fn given_a_writer_and_a_reader_when_the_writer_scribbles_then_readers_cannot_write_and_others_are_unharmed() {
    let place = place();
    let server = place.start();
    let (other, path) = client(&server);
    let kept = put(&other, b"untouched");
    let mut writer = Raw::connect(&path, FEATURE_ARENAS);
    let shard = 0;
    writer.submit(shard, &allocate(4096, Memory::Arena));
    let (slab, bytes, memory) = writer.offered();
    let map = sys::map_shared(&memory, bytes).expect("mapped");
    let mut reader = Raw::connect(&path, FEATURE_ARENAS);
    reader.say(&ClientFrame::SlabWanted { slab });
    let (frame, _) = reader.hear();
    assert!(
        matches!(&frame, ServerFrame::SlabRefused { text, .. } if text.contains("not sealed")),
        "{frame:?}"
    );
    writer.say(&ClientFrame::SlabMapped { slab });
    let (id, block) = block_of(writer.answer(shard));
    assert_eq!(block.slab, slab);
    let at = block.offset_bytes() as usize;
    store(&map, at, &[5; 4096]);
    writer.submit(shard, &Submission::Commit { id, checksum: None, accepted: false });
    let committed = writer.answer(shard);
    assert!(matches!(committed, Outcome::Payload(..)), "{committed:?}");

    reader.submit(shard, &acquire(id));
    let leased = reader.answer(shard);
    let Outcome::Leased(lease, Shown { location: Some(Location::Arena(found)), .. }) = leased else {
        panic!("{leased:?}")
    };
    assert_eq!(found, block);
    reader.say(&ClientFrame::SlabWanted { slab });
    let (frame, descriptors) = reader.hear();
    assert!(matches!(frame, ServerFrame::SlabOpened { .. }), "{frame:?}");
    let read = sys::map_read_only(&descriptors[0], bytes).expect("mapped");
    assert_eq!(load(&read, at, 4096), [5; 4096]);
    // Reopened read-write by the same user, it still cannot be mapped to be written: the seal says so.
    let reopened =
        File::options().read(true).write(true).open(format!("/proc/self/fd/{}", descriptors[0].as_raw_fd()));
    let reopened = OwnedFd::from(reopened.expect("its owner may"));
    assert!(sys::map_shared(&reopened, bytes).is_err(), "mapped writable after the seal");

    // The writer breaks its promise: its reader sees it, and nobody else notices.
    store(&map, at, &[6; 64]);
    assert_eq!(load(&read, at, 64), [6; 64]);
    assert_eq!(&*other.acquire(kept, &AcquireOptions::default()).expect("leased"), b"untouched");
    reader.submit(shard, &Submission::Release { lease });
    assert_eq!(reader.answer(shard), Outcome::Done);
}

#[test]
fn given_sessions_that_speak_of_slabs_that_are_not_theirs_when_heard_then_refused_or_closed() {
    let place = place();
    let server = place.start();
    let (other, path) = client(&server);
    let slab = SlabId::new(77).expect("not 0");
    // A flood is answered or the session closed; it is nobody else's matter.
    let asker = Raw::connect(&path, FEATURE_ARENAS);
    for _ in 0..50 {
        asker.say(&ClientFrame::SlabWanted { slab });
        let (frame, descriptors) = asker.hear();
        assert!(
            matches!(&frame, ServerFrame::SlabRefused { text, .. } if text.contains("no slab 77")),
            "{frame:?}"
        );
        assert!(descriptors.is_empty());
    }
    asker.say(&ClientFrame::SlabMapped { slab });
    let why = asker.farewell();
    assert!(why.contains("was not offered"), "{why}");
    let deaf = Raw::connect(&path, FEATURE_ARENAS);
    while sys::send(&deaf.socket, &ClientFrame::SlabWanted { slab }.encode()).is_ok() {}
    let plain = Raw::connect(&path, 0);
    plain.say(&ClientFrame::SlabWanted { slab });
    let why = plain.farewell();
    assert!(why.contains("no feature ARENAS"), "{why}");
    let mut plain = Raw::connect(&path, 0);
    plain.submit(0, &allocate(1, Memory::Arena));
    let refused = plain.answer(0);
    assert!(matches!(refused, Outcome::Refused { kind: ErrorKind::InvalidArgument, .. }), "{refused:?}");
    let id = put(&other, b"unharmed");
    assert_eq!(&*other.acquire(id, &AcquireOptions::default()).expect("leased"), b"unharmed");
}
