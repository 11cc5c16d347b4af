//! Readers who ask nobody: they look into what shards show, write into a cell, look again, and read.
//!
//! ```text
//!   looks: may be leased --> writes its cell --(a while)--> looks again: still so --> reads --> clears its cell
//!                                                           not any more --> clears its cell
//!   a shard's Publish, Scan and Revoke happen when its outbox is emptied; what a scan has found is told a while later
//! ```
//! So each order of a reader's two steps and a shard's is met. What must never be: a block that somebody reads is given to
//! another payload or goes with its slab (the rules of [`super::slabs`] ask [`Cells::reads`]), has other bytes, or an
//! unforced Delete is answered while somebody has read since before it was asked. A payload that somebody reads is
//! not removed for its ttl before as long as a lease may last.

use std::collections::{BTreeMap, BTreeSet};

use payload_types::direct::{Change, Held, Publish, Published, Revoke, SCAN_BATCH_MAX, Scan, ScanDone};
use payload_types::event::Event;
use payload_types::{Generation, Monotonic, NamespaceId, PayloadId, PayloadKey, SessionId, WallMs};

use super::agenda::Task;
use super::canary::Canary;
use super::faults::{MICROS, MILLIS, SECONDS};
use super::oracle::{Breach, Rule, breach};
use super::slabs::name_in_slab;
use super::storage::BlockName;
use super::world::World;

/// Cells in use beyond which nobody begins to read.
const CELLS_MAX: usize = 12;

/// Whoever was found to read may be refused for so long: the answer is on its way.
const LATELY_NS: u64 = 60 * SECONDS;

/// One cell.
#[derive(Clone, Copy, Debug)]
struct Cell {
    session: SessionId,
    shard: usize,
    generation: Generation,
    key: PayloadKey,
    block: BlockName,
    content: u64,
    /// Since when it reads.
    since: Option<Monotonic>,
    /// When what it reads left its slab, if it has: the reader keeps those bytes, and the payload is not held by that.
    left: Option<Monotonic>,
}

/// What readers see of one payload.
#[derive(Clone, Copy, Debug)]
struct Shown {
    published: Published,
    is_readable: bool,
}

/// The tables of all shards, and the cells of all sessions. Held by the oracle.
#[derive(Debug, Default)]
pub(super) struct Cells {
    shown: BTreeMap<(usize, NamespaceId, PayloadId), Shown>,
    closed: BTreeSet<(usize, NamespaceId)>,
    cells: BTreeMap<u64, Cell>,
    last: u64,
    /// When a cell with a payload's claim was last there.
    lately: BTreeMap<PayloadKey, Monotonic>,
}

impl Cells {
    /// True while somebody relies on a direct lease of this block.
    pub(super) fn reads(&self, block: BlockName) -> bool {
        self.cells.values().any(|cell| cell.block == block && cell.since.is_some())
    }

    /// True when a shard may think that somebody reads the payload.
    pub(super) fn may_be_read(&self, key: PayloadKey, now: Monotonic) -> bool {
        let is_claimed = self.cells.values().any(|cell| cell.key == key);
        is_claimed || self.lately.get(&key).is_some_and(|at| now.0 < at.0 + LATELY_NS)
    }

    /// Somebody who has read the payload since before then, in its slab until now.
    pub(super) fn reads_since(
        &self,
        key: PayloadKey,
        before: Monotonic,
        now: Monotonic,
    ) -> Option<SessionId> {
        let in_place = |cell: &&Cell| cell.key == key && cell.left.is_none_or(|left| left == now);
        self.cells
            .values()
            .filter(in_place)
            .find(|cell| cell.since.is_some_and(|since| since < before))
            .map(|cell| cell.session)
    }

    /// Somebody who reads the payload where it is.
    fn reads_in_place(&self, key: PayloadKey) -> Option<SessionId> {
        let in_place = |cell: &&Cell| cell.key == key && cell.left.is_none() && cell.since.is_some();
        self.cells.values().find(in_place).map(|cell| cell.session)
    }

    fn clear(&mut self, cell: u64, now: Monotonic) {
        if let Some(cell) = self.cells.remove(&cell) {
            self.lately.insert(cell.key, now);
        }
    }

    /// The server dies: its tables are gone, and what was read is nobody's matter.
    pub(super) fn crash(&mut self) {
        *self = Self { last: self.last, ..Self::default() };
    }
}

impl World {
    // ---- readers ----

    /// A session begins to read something, as far as it has seen.
    pub(super) fn direct_tick(&mut self, session: SessionId) {
        let cells = &self.oracle.cells;
        if self.plan.arena_permille == 0 || cells.cells.len() >= CELLS_MAX || !self.rng.chance(300) {
            return;
        }
        let readable: Vec<_> = cells
            .shown
            .iter()
            .filter(|(_, shown)| shown.is_readable)
            .map(|(name, shown)| (*name, *shown))
            .collect();
        if readable.is_empty() {
            return;
        }
        let ((shard, namespace, id), Shown { published, .. }) = self.rng.pick(&readable);
        let (key, block) = (PayloadKey { namespace, id }, name_in_slab(id, published.block));
        let content = self.storage.blocks.get(&block).map_or(0, |block| block.content);
        let generation = published.generation;
        let cell = Cell { session, shard, generation, key, block, content, since: None, left: None };
        let cells = &mut self.oracle.cells;
        cells.last += 1;
        let number = cells.last;
        cells.cells.insert(number, cell);
        // Nanoseconds as a rule; a thread may be stopped anywhere.
        let stalls = self.rng.chance(300);
        let after =
            if stalls { self.rng.between(1, 3_000) * MICROS } else { self.rng.between(0, 2) * MICROS };
        self.agenda.add(Monotonic(self.now.0 + after), Task::DirectLook(number));
    }

    /// A reader with a claim looks again.
    pub(super) fn direct_look(&mut self, number: u64) {
        let now = self.clock();
        let cells = &mut self.oracle.cells;
        let Some(cell) = cells.cells.get_mut(&number) else { return };
        let name = (cell.shard, cell.key.namespace, cell.key.id);
        let is_open = !cells.closed.contains(&(cell.shard, cell.key.namespace));
        let still = cells.shown.get(&name).is_some_and(|shown| {
            let expires_at = shown.published.expires_at;
            let over = expires_at.is_some_and(|end| end <= now.wall);
            is_open && shown.is_readable && shown.published.generation == cell.generation && !over
        });
        if !still {
            self.oracle.coverage.hit("direct_lease_came_too_late");
            return self.oracle.cells.clear(number, now.monotonic);
        }
        cell.since = Some(now.monotonic);
        if let Some(block) = self.storage.blocks.get(&cell.block) {
            cell.content = block.content;
        }
        self.oracle.coverage.hit("direct_lease");
        let long = self.rng.chance(150);
        let after = if long { self.rng.between(1, 8) * SECONDS } else { self.rng.between(0, 200) * MILLIS };
        self.agenda.add(Monotonic(self.now.0 + after), Task::DirectEnd(number));
    }

    /// A reader has read, and what it read was right.
    pub(super) fn direct_end(&mut self, number: u64) -> Result<(), Breach> {
        let Some(cell) = self.oracle.cells.cells.get(&number).copied() else { return Ok(()) };
        self.oracle.cells.clear(number, self.now);
        if cell.since.is_none() {
            return Ok(());
        }
        match self.storage.blocks.get(&cell.block) {
            Some(block) if block.content == cell.content => Ok(()),
            other => breach(Rule::LiveLease, format!("read directly: {cell:?}, and there is {other:?}")),
        }
    }

    /// A session's client died: its cells stay until its process is proven dead, and what it had begun is over.
    pub(super) fn direct_dies(&mut self, session: SessionId) {
        let of_it = self.oracle.cells.cells.iter().filter(|(_, cell)| cell.session == session);
        let numbers: Vec<u64> = of_it.map(|(number, _)| *number).collect();
        for number in numbers {
            let after = self.rng.between(500, 3_000) * MILLIS;
            self.agenda.add(Monotonic(self.now.0 + after), Task::DirectEnd(number));
        }
    }

    /// A shard begins to remove a payload: because it was asked to, or nobody reads it.
    pub(super) fn judge_removal(&mut self, key: PayloadKey) -> Result<(), Breach> {
        let Some(fact) = self.oracle.facts.get(&key) else { return Ok(()) };
        let now = self.clock();
        let waited = |end: WallMs| end.as_millis() + self.plan.lease_ms_max <= now.wall.as_millis();
        let is_over = fact.is_over(now, &self.plan) && fact.expires_at.is_none_or(waited);
        let is_wished = fact.gone_pending > 0 || fact.gone || is_over || fact.forced;
        match self.oracle.cells.reads_in_place(key) {
            Some(session) if !is_wished => {
                breach(Rule::LiveLease, format!("{key:?} is removed while {session} reads it directly"))
            }
            _ => Ok(()),
        }
    }

    // ---- the pump's part ----

    /// What readers see changes.
    pub(super) fn shown(&mut self, shard: usize, publish: Publish) -> Result<(), Breach> {
        let Publish { namespace, change } = publish;
        let shown = &mut self.oracle.cells.shown;
        let wrong = |why: &str, id: PayloadId| breach(Rule::Slab, format!("shard {shard}: {why} {id}"));
        match change {
            Change::Put(published) => {
                self.storage.slabs.place_is_sealed(published.block, self.now)?;
                let name = name_in_slab(published.id, published.block);
                if self.storage.blocks.get(&name).is_none_or(|block| block.size != published.size) {
                    return wrong("shows a place that is not its own:", published.id);
                }
                shown.insert(
                    (shard, namespace, published.id),
                    Shown { published: *published, is_readable: true },
                );
            }
            Change::Withdraw(id) | Change::Restore(id) => {
                let is_readable = matches!(change, Change::Restore(_));
                match shown.get_mut(&(shard, namespace, id)) {
                    Some(shown) if shown.is_readable != is_readable => shown.is_readable = is_readable,
                    _ => return wrong("withdraws or restores what is not, or is so already:", id),
                }
            }
            Change::Remove(id) => {
                if shown.remove(&(shard, namespace, id)).is_none() {
                    return wrong("removes what is not shown:", id);
                }
                let (key, now) = (PayloadKey { namespace, id }, self.now);
                for cell in self.oracle.cells.cells.values_mut().filter(|cell| cell.key == key) {
                    cell.left.get_or_insert(now);
                }
            }
            Change::Describe { id, version, expires_at } => match shown.get_mut(&(shard, namespace, id)) {
                Some(shown) => {
                    (shown.published.version, shown.published.expires_at) = (version, expires_at);
                }
                None => return wrong("describes what is not shown:", id),
            },
            Change::Close => {
                self.oracle.cells.closed.insert((shard, namespace));
            }
        }
        Ok(())
    }

    /// All cells are looked at, now.
    pub(super) fn scan(&mut self, shard: usize, scan: &Scan) -> Result<(), Breach> {
        if scan.generations.is_empty() || scan.generations.len() > SCAN_BATCH_MAX {
            return breach(Rule::Limits, format!("shard {shard}: {} in a scan", scan.generations.len()));
        }
        let mut held = BTreeMap::<SessionId, [u64; SCAN_BATCH_MAX / 64]>::new();
        let is_blind = self.strikes(Canary::BlindScan, 300);
        for cell in self.oracle.cells.cells.values().filter(|cell| cell.shard == shard && !is_blind) {
            for at in 0..scan.generations.len() {
                if scan.generations[at] == cell.generation {
                    held.entry(cell.session).or_default()[at / 64] |= 1 << (at % 64);
                }
            }
        }
        if !held.is_empty() {
            self.oracle.coverage.hit("scan_found_a_reader");
        }
        let held = held.into_iter().map(|(session, marks)| Held { session, marks }).collect();
        let at = Monotonic(self.now.0 + self.plan.hop_delay(&mut self.rng));
        let event = Event::ScanDone(ScanDone { number: scan.number, held });
        self.agenda.add(at, Task::Deliver { shard, event, work: None });
        Ok(())
    }

    /// Whoever holds it is told, and relies on it no more.
    pub(super) fn revoked(&mut self, shard: usize, revoke: Revoke) -> Result<(), Breach> {
        self.oracle.coverage.hit("direct_lease_revoked");
        let cells = self.oracle.cells.cells.values_mut();
        for cell in cells.filter(|cell| cell.shard == shard && cell.generation == revoke.generation) {
            if revoke.of.is_none_or(|of| of == cell.session) {
                cell.since = None;
            }
        }
        Ok(())
    }
}
