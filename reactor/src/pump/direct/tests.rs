//! A shard's tables and scans, and the session thread's pages, with a client's library on mappings of its own.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use payload_local::direct::page::{CellIndex, STATUS_BYTES, written_bytes};
use payload_local::direct::{CellsView, IndexView, Miss, StatusView, page, read};
use payload_local::hello::ServerFrame;
use payload_types::{Block, ByteCount, Generation, PayloadId, SlabId, WallMs};

use super::*;
use crate::mailbox::Mailboxes;
use crate::session::direct::Direct as Pages;
use crate::sys::memory::{SharedMemory, Writers};

const SHARD: ShardIndex = ShardIndex(0);
const NAMESPACE: NamespaceId = NamespaceId::DEFAULT;
const GRACE_MS: u64 = 1_000;

/// One shard and the session thread's part, with a clock that the test turns.
struct Node {
    shared: Arc<Shared>,
    pages: Pages,
    shard: Direct,
    now: Now,
}

/// A session as its process has it.
struct Client {
    session: SessionId,
    cells: SharedMemory,
    status: SharedMemory,
    table: SharedMemory,
}

fn change(change: Change) -> Publish {
    Publish { namespace: NAMESPACE, change }
}

fn put(number: u64) -> Publish {
    let Entry { id, generation, block, length, checksum, version, expires_at } = entry(number);
    let (block, size) = (block.expect("in a slab"), ByteCount(length));
    change(Change::Put(Box::new(Published { id, generation, block, size, checksum, version, expires_at })))
}

fn entry(number: u64) -> Entry {
    Entry {
        id: PayloadId::mint(number, number.wrapping_mul(0x9E37_79B9_7F4A_7C15)),
        generation: Generation(number + 1),
        block: Some(Block { slab: SlabId::new(1).expect("not 0"), unit: number as u32 }),
        length: 64,
        checksum: None,
        version: 1,
        expires_at: None,
    }
}

impl Node {
    fn start() -> Self {
        let shared = Arc::clone(Mailboxes::new(1).handle().shared());
        let now = Now { monotonic: Monotonic(1), wall: WallMs::from_millis(5_000) };
        let pages = Pages::start(Arc::clone(&shared), NAMESPACE, GRACE_MS).expect("a table");
        let mut shard = Direct::new(SHARD, Arc::clone(&shared));
        shard.turn(now);
        Self { shared, pages, shard, now }
    }

    fn pass(&mut self, milliseconds: u64) -> Vec<ServerFrame> {
        self.now.monotonic = self.now.monotonic.plus_millis(milliseconds);
        self.now.wall = WallMs::from_millis(self.now.wall.as_millis() + milliseconds);
        self.shard.turn(self.now);
        self.pages.turn(self.now).into_iter().map(|message| message.frame).collect()
    }

    fn connect(&mut self, number: u32) -> Client {
        let session = SessionId::new(number).expect("not 0");
        let [cells, status] = self.pages.open(session, NAMESPACE, self.now.wall).expect("pages");
        self.pages.opened(session, NAMESPACE);
        let (frame, table) = self.pages.offers(NAMESPACE).pop().expect("of the one shard");
        let ServerFrame::IndexOffered { bytes, .. } = frame else { panic!("{frame:?}") };
        let map = |fd: &OwnedFd, bytes, writers| SharedMemory::map(fd, bytes, writers).expect("mapped");
        let fd = table.descriptor().try_clone_to_owned().expect("a descriptor");
        let client = Client {
            session,
            cells: map(&cells, written_bytes(1), Writers::Everybody),
            status: map(&status, STATUS_BYTES, Writers::OnlyHere),
            table: map(&fd, bytes.0 as usize, Writers::OnlyHere),
        };
        client.cells().take_line();
        client
    }

    /// Who holds any of these.
    fn scan(&mut self, generations: impl IntoIterator<Item = u64>) -> Vec<Held> {
        let generations = generations.into_iter().map(Generation).collect();
        self.shard.scan(&Scan { number: 7, generations });
        let done = self.shard.next_done().expect("answered");
        assert_eq!((done.number, self.shard.is_drained()), (7, true));
        done.held
    }
}

impl Client {
    fn cells(&self) -> CellsView<'_, AtomicU64> {
        CellsView::new(self.cells.words()).expect("long enough")
    }

    fn lease(&self, number: u64) -> Result<(CellIndex, Claim), Miss> {
        let cells = self.cells();
        let cell = cells.free_cell(0).expect("a line of eight");
        let index = IndexView::new(self.table.words()).expect("a table");
        let found = read::acquire(&index, SHARD, &entry(number).id, cells.cell(cell))?;
        assert_eq!(found.entry(&entry(number).id), entry(number));
        Ok((cell, found.claim))
    }

    fn release(&self, cell: CellIndex) {
        read::release(self.cells().cell(cell));
    }
}

fn held_by(client: &Client, marks: u64) -> Vec<Held> {
    vec![Held { session: client.session, marks: [marks, 0, 0, 0] }]
}

#[test]
fn given_what_is_published_when_leased_then_scans_find_it_with_its_session_until_it_is_released() {
    let mut node = Node::start();
    (0..10).for_each(|number| node.shard.publish(put(number)));
    let (one, other) = (node.connect(1), node.connect(2));
    assert_eq!(node.scan([1, 2]), []);
    let (cell, claim) = one.lease(1).expect("published");
    node.shard.publish(change(Change::Withdraw(entry(1).id)));
    assert_eq!(node.scan([1, 2, 3]), held_by(&one, 0b10));
    assert_eq!(other.lease(1), Err(Miss::Unreadable));
    // Refused: it is as it was, for both.
    node.shard.publish(change(Change::Restore(entry(1).id)));
    let (second, _) = other.lease(1).expect("restored");
    assert_eq!(node.scan([2]).len(), 2);
    one.release(cell);
    assert_eq!(node.scan([2]), held_by(&other, 1));
    assert_eq!(node.shared.direct.holders(NAMESPACE, &entry(1).id), [(other.session, 1)]);
    assert_eq!((node.shared.direct.leases(), node.shared.direct.sessions()), (vec![(other.session, 1)], 2));
    // Taken away from who holds it, and from nobody else.
    node.shard.publish(change(Change::Remove(entry(1).id)));
    node.shard.revoke(Revoke { generation: Generation(2), of: None });
    let is_valid = |client: &Client, cell| {
        read::is_valid(
            &StatusView::new(client.status.words()).expect("long enough"),
            cell,
            claim,
            client.session.get().into(),
        )
    };
    assert!(!is_valid(&other, second) && is_valid(&one, cell));
    assert_eq!(one.lease(1), Err(Miss::Unknown));
    other.release(second);
    assert_eq!(node.scan([2]), []);
}

#[test]
fn given_sessions_that_end_when_scanned_then_cells_count_until_bye_or_until_death_and_grace() {
    let mut node = Node::start();
    node.shard.publish(put(0));
    let (polite, dead) = (node.connect(1), node.connect(2));
    polite.lease(0).expect("published");
    dead.lease(0).expect("published");
    assert!(node.pages.closed(polite.session) && node.pages.closed(dead.session), "both have pages");
    assert_eq!(node.scan([1]).len(), 2, "a closed socket proves nothing");
    node.pages.forget(polite.session);
    assert_eq!(node.scan([1]), held_by(&dead, 1));
    node.pages.dead(dead.session, node.now.monotonic);
    node.pass(GRACE_MS - 1);
    assert_eq!(node.scan([1]), held_by(&dead, 1), "a device may still read");
    assert!(node.pages.next_look().is_some_and(|at| at > node.now.monotonic));
    node.pass(1);
    assert_eq!((node.scan([1]), node.shared.direct.sessions()), (vec![], 0));
    assert_eq!(node.pages.next_look(), None);
}

#[test]
fn given_a_table_that_fills_when_a_larger_one_comes_then_no_lease_is_lost_and_sessions_are_offered_it() {
    const MANY: u64 = 12_000;
    let mut node = Node::start();
    let client = node.connect(1);
    node.shard.publish(put(0));
    let (_, claim) = client.lease(0).expect("published");
    let mut offered = Vec::new();
    let start = Instant::now();
    for number in 1..MANY {
        node.shard.publish(put(number));
        // As fast as the table is made.
        while offered.is_empty() && number == 7_000 {
            offered.extend(node.pass(1));
            assert!(start.elapsed() < Duration::from_secs(60), "no larger table");
        }
        if number % 64 == 0 {
            offered.extend(node.pass(1));
        }
    }
    let [ServerFrame::IndexOffered { shard: SHARD, namespace: NAMESPACE, bytes }] = offered[..] else {
        panic!("offered: {offered:?}")
    };
    assert_eq!(client.lease(5), Err(Miss::Closed), "the old one leases nothing");
    assert_eq!(node.scan([1]), held_by(&client, 1), "what it leased before counts");
    assert_eq!(claim.generation(), Generation(1));
    let again = Client { ..node.connect(2) };
    assert_eq!(size_of_val(again.table.words()) as u64, bytes.0);
    for number in [0, 5, 6_999, 7_000, MANY - 1] {
        let (cell, _) = again.lease(number).expect("in the larger one");
        again.release(cell);
    }
    assert_eq!(node.shared.direct.unplaced.load(Ordering::Relaxed), 0);
    node.shard.close();
    assert_eq!(again.lease(5), Err(Miss::Closed), "the end");
}

#[test]
fn given_samples_of_sessions_when_drained_then_each_is_heard_once_in_turns_of_a_few() {
    let mut node = Node::start();
    (0..100).for_each(|number| node.shard.publish(put(number)));
    let clients: Vec<Client> = (1..=6).map(|number| node.connect(number)).collect();
    let index = |client: &Client, number: u64| {
        let view = IndexView::new(client.table.words()).expect("a table");
        let found =
            (0..view.len() as u32).find(|at| view.id_at(*at).is_some_and(|(id, _)| id == entry(number).id));
        found.expect("published")
    };
    for (client, number) in clients.iter().zip(0..) {
        let samples = page::samples(client.cells.words(), SHARD).expect("long enough");
        samples.note(index(client, number), entry(number).generation);
        // What is not there any more, and what never was.
        samples.note(index(client, number), Generation(u64::MAX >> 8));
        samples.note(u32::MAX, Generation(1));
    }
    node.pass(SAMPLE_EVERY_MS);
    let first = node.shard.samples(node.now);
    let second = node.shard.samples(node.now);
    assert_eq!((first.len(), second.len()), (SESSIONS_PER_TURN, 2));
    let heard: Vec<_> = first.into_iter().chain(second).collect();
    for (sampled, number) in heard.into_iter().zip(0..) {
        assert_eq!(sampled, Sampled { namespace: NAMESPACE, ids: vec![entry(number).id] });
    }
    assert_eq!(node.shard.samples(node.now), [], "not before it is time");
    node.pass(SAMPLE_EVERY_MS);
    assert_eq!(node.shard.samples(node.now), [], "each is heard once");
}
