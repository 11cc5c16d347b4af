//! Direct leases, the session thread's part: the pages of sessions, the tables of shards, and who is given which.
//!
//! ```text
//! handshake --> Pages (cells + samples: the client writes; status: it reads) --> `PageList`, which every scan of every shard reads
//! death: pidfd, and `dead_grace_ms` later --> off the list --> unmapped once no shard has it
//! shard --TableOp::Make--> a thread of its own makes it --> mailbox of the shard, which fills it
//!       --TableOp::Offer-> IndexOffered to the sessions of that namespace; the one before is unmapped
//! ```
//!
//! **The list is changed before a client hears of its pages.** A scan fences, then looks whether the list has changed, then reads
//! cells. A claim that was fenced before that is of a session whose change is older still, so that its cells are among those
//! that are read; a claim that comes later finds what was withdrawn.
//!
//! Limits: a session costs 64 KiB and a ring of samples a shard; a table 64 bytes a home and is charged to nobody; one table of a
//! shard and namespace is in the making at a time. Nothing here is unmapped on a shard's thread.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam::queue::ArrayQueue;
use payload_local::direct::access::SamplesView;
use payload_local::direct::index::{HOMES_MAX, PROBES_MAX, index_bytes};
use payload_local::direct::page::{self, STATUS_BYTES, written_bytes};
use payload_local::direct::{CellsView, Claim, IndexView, StatusView};
use payload_local::hello::ServerFrame;
use payload_types::{ByteCount, Monotonic, NamespaceId, Now, PayloadId, SessionId, ShardIndex, WallMs};

use super::slabs::Message;
use crate::mailbox::Shared;
use crate::sys::memory::{LARGE_PAGE_BYTES, SharedMemory, Writers};

/// Homes of a shard's first table: 1 MiB. Growth is asked for at 6,144 payloads, and refused ones go by the ring from 8,192 on.
const HOMES_MIN: u64 = (1 << 14) - PROBES_MAX as u64;

/// A table's successor is so many times as large: half as many tables are made as by doubling, and at most half is spare.
const GROWTH: u64 = 4;

/// Homes of the largest table, in whole large pages.
pub(crate) const HOMES_LAST: u64 = HOMES_MAX - PROBES_MAX as u64;

/// How old the tick of a status page may be. Only payloads with an expiry are compared with it, and those are withdrawn in time.
const TICK_MS: u64 = 250;

/// A session's pages.
pub(crate) struct Pages {
    pub session: SessionId,
    pub namespace: NamespaceId,
    written: SharedMemory,
    status: SharedMemory,
}

impl Pages {
    /// With the descriptors that its client is sent.
    fn make(
        session: SessionId,
        namespace: NamespaceId,
        shard_count: u16,
        wall: WallMs,
    ) -> io::Result<(Self, [OwnedFd; 2])> {
        let (written, cells_fd) =
            SharedMemory::make(c"pm-cells", written_bytes(shard_count), Writers::Everybody)?;
        let (status, status_fd) = SharedMemory::make(c"pm-status", STATUS_BYTES, Writers::OnlyHere)?;
        let pages = Self { session, namespace, written, status };
        pages.status().tick.store(wall.as_millis(), Ordering::Relaxed);
        pages.status().epoch.store(u64::from(session.get()), Ordering::Release);
        Ok((pages, [cells_fd, status_fd]))
    }

    /// What its client leases, as it says.
    pub(crate) fn cells(&self) -> CellsView<'_, AtomicU64> {
        CellsView::new(self.written.words()).expect("made as long as its layout says")
    }

    /// What its client reads.
    pub(crate) fn status(&self) -> StatusView<'_, AtomicU64> {
        StatusView::new(self.status.words()).expect("made as long as its layout says")
    }

    /// What it read of a shard's payloads, as its client says.
    pub(crate) fn samples(&self, shard: ShardIndex) -> SamplesView<'_, AtomicU64> {
        page::samples(self.written.words(), shard).expect("made for as many shards as there are")
    }
}

/// The pages of all sessions that may hold something, copied on change.
#[derive(Default)]
pub(crate) struct PageList {
    /// Counts changes, and goes up after each.
    version: AtomicU64,
    list: Mutex<Arc<Vec<Arc<Pages>>>>,
}

/// A shard's copy of the list.
#[derive(Default)]
pub(crate) struct Seen {
    version: u64,
    pub list: Arc<Vec<Arc<Pages>>>,
}

impl PageList {
    /// Brings a shard's copy up to date. After a full fence; see the head of the file.
    #[inline]
    pub(crate) fn refresh(&self, seen: &mut Seen) {
        // Acquire: who sees the number finds at least that list.
        let version = self.version.load(Ordering::Acquire);
        if version != seen.version {
            // Held by others for a copy of a pointer.
            let list = Arc::clone(&locked(&self.list));
            *seen = Seen { version, list };
        }
    }

    /// As it is now.
    pub(crate) fn all(&self) -> Arc<Vec<Arc<Pages>>> {
        Arc::clone(&locked(&self.list))
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Arc<Pages>>)) {
        let mut changed = self.all().to_vec();
        change(&mut changed);
        let changed = Arc::new(changed);
        let before = std::mem::replace(&mut *locked(&self.list), changed);
        self.version.fetch_add(1, Ordering::Release);
        drop(before);
    }
}

/// A table, as its shard writes it and as clients are given it.
pub(crate) struct Table {
    memory: SharedMemory,
    fd: OwnedFd,
}

impl Table {
    fn make(homes: u64) -> io::Result<Self> {
        let bytes = index_bytes(homes);
        let whole = if bytes < LARGE_PAGE_BYTES { 4096 } else { LARGE_PAGE_BYTES };
        let bytes = usize::try_from(bytes.next_multiple_of(whole)).map_err(io::Error::other)?;
        let (memory, fd) = SharedMemory::make_large(c"pm-index", bytes)?;
        Ok(Self { memory, fd })
    }

    /// What it says.
    pub(crate) fn view(&self) -> IndexView<'_, AtomicU64> {
        IndexView::new(self.memory.words()).expect("made long enough for a table")
    }

    fn bytes(&self) -> ByteCount {
        ByteCount(size_of_val(self.memory.words()) as u64)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A table that was made, or that could not be. From whoever made it, to its shard.
pub(crate) struct TableMade {
    pub namespace: NamespaceId,
    pub table: Option<Arc<Table>>,
}

/// What a shard asks of the session thread.
pub(crate) enum TableOp {
    /// Make the table that follows one of so many homes. Answered by `TableMade`.
    Make { shard: ShardIndex, namespace: NamespaceId, homes: u64 },
    /// It is filled and the one before is closed: sessions are to have it.
    Offer { shard: ShardIndex, namespace: NamespaceId, table: Arc<Table> },
}

/// What threads share of direct leases.
pub(crate) struct DirectShared {
    pub pages: PageList,
    /// At most two under way for each shard and namespace; more wait in the shard.
    pub table_ops: ArrayQueue<TableOp>,
    /// What sessions are given.
    tables: Mutex<BTreeMap<(NamespaceId, ShardIndex), Arc<Table>>>,
    /// Samples that shards have drained.
    pub sampled: AtomicU64,
    /// Payloads that found no place in their table since the start.
    pub unplaced: AtomicU64,
}

impl DirectShared {
    pub(crate) fn new(shard_count: usize) -> Self {
        Self {
            pages: PageList::default(),
            table_ops: ArrayQueue::new(4 * shard_count),
            tables: Mutex::default(),
            sampled: AtomicU64::new(0),
            unplaced: AtomicU64::new(0),
        }
    }

    /// Sessions that lease this payload directly, each with how many leases, as their cells say just now.
    pub(crate) fn holders(&self, namespace: NamespaceId, id: &PayloadId) -> Vec<(SessionId, u32)> {
        let count = self.shard_count(namespace);
        let shard = if count == 0 { return Vec::new() } else { id.shard(count) };
        let table = locked(&self.tables).get(&(namespace, shard)).map(Arc::clone);
        let Some(entry) = table.and_then(|table| table.view().find(id)) else { return Vec::new() };
        let claim = Claim::new(shard, entry.generation).bits();
        self.count(|cell| cell == claim)
    }

    /// Sessions that lease something directly, each with how many leases.
    pub(crate) fn leases(&self) -> Vec<(SessionId, u32)> {
        self.count(|_| true)
    }

    /// Sessions that may lease directly.
    pub(crate) fn sessions(&self) -> usize {
        locked(&self.pages.list).len()
    }

    fn count(&self, counts: impl Fn(u64) -> bool) -> Vec<(SessionId, u32)> {
        let of = |pages: &Arc<Pages>| {
            let held = pages.cells().held().filter(|cell| counts(*cell)).count() as u32;
            (held > 0).then_some((pages.session, held))
        };
        self.pages.all().iter().filter_map(of).collect()
    }

    fn shard_count(&self, namespace: NamespaceId) -> u16 {
        let of = (namespace, ShardIndex(0))..=(namespace, ShardIndex(u16::MAX));
        locked(&self.tables).range(of).count() as u16
    }
}

/// See the head of the file.
pub(crate) struct Direct {
    shared: Arc<Shared>,
    dead_grace_ms: u64,
    /// Of dead processes: off the list then.
    leaving: VecDeque<(Monotonic, SessionId)>,
    /// Off the list; some shard may have them still.
    retired: Vec<Arc<Pages>>,
    /// Sessions that are told of tables.
    told: Vec<(SessionId, NamespaceId)>,
    tick_at: Monotonic,
}

impl Direct {
    /// With a table for each shard.
    pub(crate) fn start(shared: Arc<Shared>, namespace: NamespaceId, dead_grace_ms: u64) -> io::Result<Self> {
        for (shard, mailbox) in (0..).map(ShardIndex).zip(&shared.boxes) {
            let table = Arc::new(Table::make(HOMES_MIN)?);
            locked(&shared.direct.tables).insert((namespace, shard), Arc::clone(&table));
            mailbox.hand_table(TableMade { namespace, table: Some(table) });
        }
        Ok(Self {
            shared,
            dead_grace_ms,
            leaving: VecDeque::new(),
            retired: Vec::new(),
            told: Vec::new(),
            tick_at: Monotonic(0),
        })
    }

    /// Makes the pages of a session, and lets shards know of them before its client does.
    pub(crate) fn open(
        &mut self,
        session: SessionId,
        namespace: NamespaceId,
        wall: WallMs,
    ) -> io::Result<[OwnedFd; 2]> {
        let shard_count = self.shared.boxes.len() as u16;
        let (pages, descriptors) = Pages::make(session, namespace, shard_count, wall)?;
        self.shared.direct.pages.change(|list| list.push(Arc::new(pages)));
        Ok(descriptors)
    }

    /// The tables that a session is given before its pages.
    pub(crate) fn offers(&self, namespace: NamespaceId) -> Vec<(ServerFrame, Arc<Table>)> {
        let tables = locked(&self.shared.direct.tables);
        let of = (namespace, ShardIndex(0))..=(namespace, ShardIndex(u16::MAX));
        let offer = |((namespace, shard), table): (&(NamespaceId, ShardIndex), &Arc<Table>)| {
            (offered(*shard, *namespace, table), Arc::clone(table))
        };
        tables.range(of).map(offer).collect()
    }

    /// From now on it is told of new tables.
    pub(crate) fn opened(&mut self, session: SessionId, namespace: NamespaceId) {
        self.told.push((session, namespace));
    }

    /// Its connection has ended. True when it has pages, which stay until its process is dead.
    pub(crate) fn closed(&mut self, session: SessionId) -> bool {
        self.told.retain(|(told, _)| *told != session);
        self.shared.direct.pages.all().iter().any(|pages| pages.session == session)
    }

    /// It said that it holds nothing, or never got its pages: they are off the list now.
    pub(crate) fn forget(&mut self, session: SessionId) {
        let mut gone = None;
        self.shared.direct.pages.change(|list| {
            if let Some(at) = list.iter().position(|pages| pages.session == session) {
                gone = Some(list.remove(at));
            }
        });
        self.retired.extend(gone);
    }

    /// Its process is dead. What it had begun with a device may go on for a while.
    pub(crate) fn dead(&mut self, session: SessionId, now: Monotonic) {
        self.leaving.push_back((now.plus_millis(self.dead_grace_ms), session));
    }

    /// When something is due that no descriptor tells.
    pub(crate) fn next_look(&self) -> Option<Monotonic> {
        let tick = (!self.told.is_empty()).then_some(self.tick_at);
        self.leaving.front().map(|(at, _)| *at).into_iter().chain(tick).min()
    }

    /// Does what is due and what shards ask for; returns what clients are to be sent.
    pub(crate) fn turn(&mut self, now: Now) -> Vec<Message> {
        while let Some((_, session)) = self.leaving.pop_front_if(|(at, _)| *at <= now.monotonic) {
            self.forget(session);
        }
        // A shard that sleeps keeps its copy of the list until its next turn.
        self.retired.retain_mut(|pages| Arc::get_mut(pages).is_none());
        if self.tick_at <= now.monotonic && !self.told.is_empty() {
            self.tick_at = now.monotonic.plus_millis(TICK_MS);
            for pages in &**self.shared.direct.pages.all() {
                pages.status().tick.store(now.wall.as_millis(), Ordering::Relaxed);
            }
        }
        let mut messages = Vec::new();
        while let Some(op) = self.shared.direct.table_ops.pop() {
            match op {
                TableOp::Make { shard, namespace, homes } => self.make(shard, namespace, homes),
                TableOp::Offer { shard, namespace, table } => {
                    self.offer(shard, namespace, table, &mut messages);
                }
            }
        }
        messages
    }

    /// On a thread of its own: a GiB takes half a second.
    fn make(&self, shard: ShardIndex, namespace: NamespaceId, homes: u64) {
        let shared = Arc::clone(&self.shared);
        let work = move || {
            let made = Table::make((homes * GROWTH).min(HOMES_LAST));
            if let Err(error) = &made {
                tracing::warn!(shard = shard.0, homes, %error, "a larger table of direct leases could not be made; what it would have shown is leased over rings");
            }
            let made = TableMade { namespace, table: made.ok().map(Arc::new) };
            shared.boxes[usize::from(shard.0)].hand_table(made);
        };
        let spawned = std::thread::Builder::new().name("pm-index".to_owned()).spawn(work);
        if let Err(error) = spawned {
            tracing::warn!(shard = shard.0, %error, "there is no thread to make a larger table of direct leases");
            self.shared.boxes[usize::from(shard.0)].hand_table(TableMade { namespace, table: None });
        }
    }

    fn offer(&self, shard: ShardIndex, namespace: NamespaceId, table: Arc<Table>, to: &mut Vec<Message>) {
        for (session, _) in self.told.iter().filter(|(_, of)| *of == namespace) {
            match table.fd().try_clone_to_owned() {
                Ok(fd) => {
                    let frame = offered(shard, namespace, &table);
                    to.push(Message { session: *session, frame, descriptor: Some(fd) });
                }
                Err(error) => {
                    tracing::warn!(%session, %error, "no descriptor is left to show a session its table; it leases over rings");
                }
            }
        }
        let before = locked(&self.shared.direct.tables).insert((namespace, shard), table);
        // A GiB takes a moment; a thread that cannot be had drops it here.
        let _unmapped = std::thread::Builder::new().name("pm-index".to_owned()).spawn(move || drop(before));
    }
}

impl Table {
    /// For a message that carries it.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.fd()
    }
}

fn offered(shard: ShardIndex, namespace: NamespaceId, table: &Table) -> ServerFrame {
    ServerFrame::IndexOffered { shard, namespace, bytes: table.bytes() }
}

fn locked<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change of it is whole whenever the lock is free.
    value.lock().unwrap_or_else(PoisonError::into_inner)
}
