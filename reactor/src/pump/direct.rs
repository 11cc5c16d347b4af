//! Direct leases, the pump's part: it writes its shard's tables, reads the cells of all sessions, and drains what they sampled.
//!
//! ```text
//! core --Publish--> table (and its successor, while that is being filled)
//!      --Scan-----> fence, all cells of all sessions: microseconds, no system call  --ScanDone, the next turn--> core
//!      --Revoke---> status pages of those who hold it
//! sessions --samples--> at the head of a turn, SESSIONS_PER_TURN at most, each SAMPLE_EVERY_MS --> core: touches recency
//! ```
//! On the shard's thread throughout, because the order of publications, withdrawals and scans is what the protocol rests on. All
//! memory here is allocated and sealed: touching it neither faults nor waits.
//!
//! Limits: [`COPIED_PER_TURN`] entries of a growing table a turn; a scan is as long as the core makes it (256 claims); nothing
//! here allocates but for sessions that hold something.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use payload_local::direct::access::{DRAIN_MAX, Drain};
use payload_local::direct::{self, Claim, Entry, Publisher, Tables, publish, scan};
use payload_types::direct::{Change, Held, Publish, Published, Revoke, SAMPLED_MAX, Sampled, Scan, ScanDone};
use payload_types::{Monotonic, NamespaceId, Now, SessionId, ShardIndex};

use crate::mailbox::Shared;
use crate::session::direct::{HOMES_LAST, Seen, Table};
use crate::session::{TableMade, TableOp};

/// Entries of a table that a turn copies into its successor: 10 us where the successor is warm, 40 where it is not.
const COPIED_PER_TURN: usize = 256;

/// How often the samples of a session are looked at.
const SAMPLE_EVERY_MS: u64 = 50;

/// Sessions whose samples one turn drains: 64 touches each, 20 us.
const SESSIONS_PER_TURN: usize = 4;

/// A table that could not be made is asked for again after this.
const MAKE_AGAIN_MS: u64 = 1000;

/// The table of a namespace, and what shall follow it.
struct Place {
    publisher: Publisher,
    current: Arc<Table>,
    next: Option<Arc<Table>>,
    /// When a successor may be asked for; `None` while one is in the making.
    asks_at: Option<Monotonic>,
}

impl Place {
    /// Works on both tables.
    fn with<T>(&mut self, work: impl FnOnce(&mut Publisher, &Tables<'_, AtomicU64>) -> T) -> T {
        let next = self.next.as_ref().map(|next| next.view());
        work(&mut self.publisher, &Tables { current: self.current.view(), next })
    }
}

const _: () = assert!(DRAIN_MAX <= SAMPLED_MAX);

/// See the head of the file.
pub(super) struct Direct {
    shard: ShardIndex,
    shared: Arc<Shared>,
    places: BTreeMap<NamespaceId, Place>,
    /// The list of pages as it was last seen.
    seen: Seen,
    /// What the session thread had no room for.
    unsent: VecDeque<TableOp>,
    /// Answers for the next turn: the core has one scan under way at a time.
    done: VecDeque<ScanDone>,
    drains: BTreeMap<SessionId, Drain>,
    /// Whose samples come next, by place in the list, and since when nobody's do.
    drain_next: usize,
    drained_at: Monotonic,
}

impl Direct {
    pub(super) fn new(shard: ShardIndex, shared: Arc<Shared>) -> Self {
        Self {
            shard,
            shared,
            places: BTreeMap::new(),
            seen: Seen::default(),
            unsent: VecDeque::new(),
            done: VecDeque::new(),
            drains: BTreeMap::new(),
            drain_next: 0,
            drained_at: Monotonic(0),
        }
    }

    /// Tables that come, and those that grow.
    pub(super) fn turn(&mut self, now: Now) {
        while let Some(op) = self.unsent.pop_front() {
            if let Err(op) = self.shared.ask_table(op) {
                self.unsent.push_front(op);
                break;
            }
        }
        // Looked at first: taking from an empty queue fences.
        while self.has_table()
            && let Some(made) = self.shared.boxes[usize::from(self.shard.0)].tables.pop()
        {
            self.take_table(made, now.monotonic);
        }
        let mut orders = Vec::new();
        for (namespace, place) in &mut self.places {
            let (shard, namespace) = (self.shard, *namespace);
            if let Some(next) = place.next.clone() {
                if place.with(|publisher, tables| publisher.copy_some(tables, COPIED_PER_TURN)) {
                    place.with(Publisher::switch);
                    place.next = None;
                    // The session thread has it still, so that it is not unmapped here.
                    place.current = Arc::clone(&next);
                    place.asks_at = Some(now.monotonic);
                    orders.push(TableOp::Offer { shard, namespace, table: next });
                }
            } else if place.asks_at.is_some_and(|at| at <= now.monotonic)
                && place.with(|publisher, tables| publisher.wants_growth(tables))
            {
                let homes = place.current.view().homes();
                if homes < HOMES_LAST {
                    place.asks_at = None;
                    orders.push(TableOp::Make { shard, namespace, homes });
                }
            }
        }
        for order in orders {
            if let Err(order) = self.shared.ask_table(order) {
                self.unsent.push_back(order);
            }
        }
    }

    fn take_table(&mut self, TableMade { namespace, table }: TableMade, now: Monotonic) {
        match (self.places.get_mut(&namespace), table) {
            (Some(place), Some(table)) => place.next = Some(table),
            (Some(place), None) => place.asks_at = Some(now.plus_millis(MAKE_AGAIN_MS)),
            (None, Some(current)) => {
                let place = Place { publisher: Publisher::new(), current, next: None, asks_at: Some(now) };
                self.places.insert(namespace, place);
            }
            (None, None) => {}
        }
    }

    fn has_table(&self) -> bool {
        !self.shared.boxes[usize::from(self.shard.0)].tables.is_empty()
    }

    /// True while a turn would find something.
    pub(super) fn has_work(&self) -> bool {
        !self.done.is_empty() || self.has_table() || self.places.values().any(|place| place.next.is_some())
    }

    /// While the server stops: no answer is owed to the core.
    pub(super) fn is_drained(&self) -> bool {
        self.done.is_empty()
    }

    /// Changes what may be leased.
    pub(super) fn publish(&mut self, Publish { namespace, change }: Publish) {
        let Some(place) = self.places.get_mut(&namespace) else { return };
        let is_placed = place.with(|publisher, tables| {
            match change {
                Change::Put(shown) => return publisher.publish(tables, &entry_of(&shown)).is_ok(),
                Change::Withdraw(id) => drop(publisher.withdraw(tables, &id)),
                Change::Restore(id) => drop(publisher.restore(tables, &id)),
                Change::Remove(id) => drop(publisher.remove(tables, &id)),
                Change::Describe { id, version, expires_at } => {
                    publisher.describe(tables, &id, version, expires_at);
                }
                Change::Close => tables.next.iter().chain([&tables.current]).for_each(publish::close),
            }
            true
        });
        if !is_placed {
            // There is no room: it is not shown, and leased over rings.
            self.shared.direct.unplaced.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Looks for claims in all cells. The answer is for the next turn.
    pub(super) fn scan(&mut self, wanted: &Scan) {
        let claims = wanted.generations.iter().map(|generation| Claim::new(self.shard, *generation));
        let scan = direct::Scan::begin::<AtomicU64>(claims);
        // Behind the scan's fence, as the list demands.
        self.shared.direct.pages.refresh(&mut self.seen);
        let held = |pages: &Arc<crate::session::direct::Pages>| {
            let marks = scan.pass(&pages.cells());
            (!marks.is_empty()).then(|| Held { session: pages.session, marks: marks.bits() })
        };
        let held = self.seen.list.iter().filter_map(held).collect();
        self.done.push_back(ScanDone { number: wanted.number, held });
    }

    /// What a scan has found, once.
    pub(super) fn next_done(&mut self) -> Option<ScanDone> {
        self.done.pop_front()
    }

    /// Takes leases away.
    pub(super) fn revoke(&mut self, Revoke { generation, of }: Revoke) {
        self.shared.direct.pages.refresh(&mut self.seen);
        let claim = Claim::new(self.shard, generation);
        for pages in self.seen.list.iter().filter(|pages| of.is_none_or(|of| pages.session == of)) {
            scan::revoke(&pages.cells(), &pages.status(), claim);
        }
    }

    /// What sessions have sampled since, of a few whose turn has come.
    pub(super) fn samples(&mut self, now: Now) -> Vec<Sampled> {
        if self.drain_next == 0 && now.monotonic.millis_since(self.drained_at) < SAMPLE_EVERY_MS {
            return Vec::new();
        }
        self.shared.direct.pages.refresh(&mut self.seen);
        if self.drain_next == 0 {
            self.drained_at = now.monotonic;
            let list = &self.seen.list;
            self.drains.retain(|session, _| list.iter().any(|pages| pages.session == *session));
        }
        let mut sampled = Vec::new();
        let end = (self.drain_next + SESSIONS_PER_TURN).min(self.seen.list.len());
        for pages in self.seen.list.get(self.drain_next..end).unwrap_or_default() {
            let Some(place) = self.places.get(&pages.namespace) else { continue };
            let mut ids = Vec::new();
            let drain = self.drains.entry(pages.session).or_default();
            drain.drain(&pages.samples(self.shard), &place.current.view(), |id| ids.push(id));
            if !ids.is_empty() {
                self.shared.direct.sampled.fetch_add(ids.len() as u64, Ordering::Relaxed);
                sampled.push(Sampled { namespace: pages.namespace, ids });
            }
        }
        self.drain_next = if end >= self.seen.list.len() { 0 } else { end };
        sampled
    }

    /// The end: nobody leases by these tables any more.
    pub(super) fn close(&self) {
        for place in self.places.values() {
            publish::close(&place.current.view());
        }
    }
}

fn entry_of(shown: &Published) -> Entry {
    let Published { id, generation, block, size, checksum, version, expires_at } = *shown;
    Entry { id, generation, block: Some(block), length: size.0, checksum, version, expires_at }
}

#[cfg(test)]
mod tests;
