//! The server's side of a table: what is published, withdrawn, given up, and how a table is replaced by a larger one.
//!
//! Each shard has one [`Publisher`] a namespace and is its tables' only writer. Nothing here waits for readers: who
//! withdraws something keeps its block until a scan ([`super::scan`]) has not found its claim.
//!
//! ```text
//!   grow   new table, empty, nobody has it -> every change goes to both -> copy_some, a bounded part a turn, from the last
//!          entry to the first -> switch: the old one is closed -> readers of the old one only miss
//! ```
//! Entries only ever move towards the table's beginning, so a copy that goes from the end misses none.
//!
//! Limits: half of the homes are used; an id that finds no place within the table's probes is refused with [`Full`], and
//! simply stays unpublished: readers ask over the ring.

use std::sync::atomic::Ordering;

use payload_types::{Generation, PayloadId, WallMs};

use super::index::{BUSY, EMPTY, ENTRY_WORDS, Entry, IndexView, READABLE, STATUS, WITHDRAWN, at, id_words};
use crate::word::Word;

/// There is no place for another id: the table has to grow. Nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Full;

/// The tables of one shard and namespace.
#[derive(Debug)]
pub struct Tables<'a, W> {
    /// What readers have.
    pub current: IndexView<'a, W>,
    /// What shall replace it. Nobody else has it yet.
    pub next: Option<IndexView<'a, W>>,
}

impl<W: Word> Tables<'_, W> {
    fn all(&self) -> impl Iterator<Item = &IndexView<'_, W>> {
        [Some(&self.current), self.next.as_ref()].into_iter().flatten()
    }
}

/// Counts and cursors of the tables' writer, in private memory. Every call takes the same [`Tables`].
#[derive(Debug, Default)]
pub struct Publisher {
    len: usize,
    growth: Option<Growth>,
}

#[derive(Debug)]
struct Growth {
    /// Entries of the next table.
    len: usize,
    /// Entries of the current one from here on are copied.
    copied_from: usize,
}

impl Publisher {
    /// Of tables that are empty.
    pub fn new() -> Self {
        Self::default()
    }

    /// Ids that have an entry, withdrawn ones included.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when nothing is published.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether a larger table should be made: three quarters of what may be used are, and none is being filled.
    pub fn wants_growth<W: Word>(&self, tables: &Tables<'_, W>) -> bool {
        self.growth.is_none() && self.len as u64 * 8 >= tables.current.homes() * 3
    }

    /// Publishes a payload, or what has become of it: where it lies now. Returns the generation that this replaces;
    /// its block must not be reused before a scan has not found its claim.
    ///
    /// # Errors
    /// [`Full`]: nothing has changed.
    pub fn publish<W: Word>(
        &mut self,
        tables: &Tables<'_, W>,
        entry: &Entry,
    ) -> Result<Option<Generation>, Full> {
        let before = put(&tables.current, &mut self.len, entry)?;
        if let (Some(next), Some(growth)) = (&tables.next, &mut self.growth) {
            // Without a place in the next one it is not published after the switch: readers ask over the ring.
            let _placed = put(next, &mut growth.len, entry);
        }
        Ok(before)
    }

    /// Lets nobody lease it any more, and keeps its place, so that [`Self::restore`] cannot fail. Returns the generation
    /// whose claims are to be looked for.
    pub fn withdraw<W: Word>(&mut self, tables: &Tables<'_, W>, id: &PayloadId) -> Option<Generation> {
        let changed = tables.all().map(|table| set_status(table, id, WITHDRAWN)).reduce(Option::or);
        changed.flatten()
    }

    /// Takes a withdrawal back, under the same generation: somebody holds it, and the server has refused to drop it.
    pub fn restore<W: Word>(&mut self, tables: &Tables<'_, W>, id: &PayloadId) -> Option<Generation> {
        tables.all().map(|table| set_status(table, id, READABLE)).reduce(Option::or).flatten()
    }

    /// Gives its entry up. Returns its generation; its block must not be reused before a scan has not found its claim.
    pub fn remove<W: Word>(&mut self, tables: &Tables<'_, W>, id: &PayloadId) -> Option<Generation> {
        let removed = take(&tables.current, &mut self.len, id);
        if let (Some(next), Some(growth)) = (&tables.next, &mut self.growth) {
            take(next, &mut growth.len, id);
        }
        removed
    }

    /// Shows a new version and expiry of what stays where it is. Each is one word, so readers see the old or the new one.
    pub fn describe<W: Word>(
        &mut self,
        tables: &Tables<'_, W>,
        id: &PayloadId,
        version: u64,
        expires_at: Option<WallMs>,
    ) {
        for table in tables.all() {
            if let Some(position) = position(table, id) {
                let slot = table.slot(position);
                slot[at::VERSION].store(version, Ordering::Relaxed);
                slot[at::EXPIRES_AT].store(expires_at.map_or(0, WallMs::as_millis), Ordering::Relaxed);
            }
        }
    }

    /// Copies some of the current table into the next one; looks at `entries_max` entries. True once all are there.
    ///
    /// # Panics
    /// When there is no next table.
    pub fn copy_some<W: Word>(&mut self, tables: &Tables<'_, W>, entries_max: usize) -> bool {
        let next = tables.next.as_ref().expect("the caller has made a next table");
        let (current, end) = (&tables.current, tables.current.len());
        let growth = self.growth.get_or_insert(Growth { len: 0, copied_from: end });
        let stop = growth.copied_from.saturating_sub(entries_max);
        for from in (stop..growth.copied_from).rev() {
            let state = current.slot(from)[at::STATE].load(Ordering::Relaxed);
            if state == EMPTY {
                continue;
            }
            let words = fields(current, from);
            if position(next, &id_of(&words)).is_none() {
                // An id that finds no place there is not published any more; readers ask over the ring.
                let _placed = insert(next, &mut growth.len, state, &words);
            }
        }
        growth.copied_from = stop;
        stop == 0
    }

    /// Closes the current table: from now on `tables.next` is the current one. Claims stay what they are.
    ///
    /// # Panics
    /// Unless [`Self::copy_some`] has said that all is copied.
    pub fn switch<W: Word>(&mut self, tables: &Tables<'_, W>) {
        let growth = self.growth.take().expect("the next table is filled");
        assert!(growth.copied_from == 0, "everything is copied before the switch");
        close(&tables.current);
        self.len = growth.len;
    }
}

/// Lets nobody lease by this table any more, whatever its entries say.
pub fn close<W: Word>(table: &IndexView<'_, W>) {
    // Release is for nobody's sake but the clients' that look at it alone (`is_closed`). Against leases it is the full fence of the next scan that
    // counts: whatever is withdrawn after this and not written to this table is found by the scan's fence to be behind it.
    table.closed.store(1, Ordering::Release);
}

/// The words behind an entry's state. Relaxed: the caller wrote them.
fn fields<W: Word>(table: &IndexView<'_, W>, position: usize) -> [u64; ENTRY_WORDS - 1] {
    let slot = table.slot(position);
    std::array::from_fn(|word| slot[word + 1].load(Ordering::Relaxed))
}

/// Where an id's entry is. Relaxed: nobody else writes here.
fn position<W: Word>(table: &IndexView<'_, W>, id: &PayloadId) -> Option<usize> {
    search(table, table.home(id), id_words(id)).ok()
}

/// The entry of the id whose home that is, or else the empty one where it could be; neither: no place.
fn search<W: Word>(table: &IndexView<'_, W>, home: usize, id: [u64; 2]) -> Result<usize, Option<usize>> {
    for position in home..home + table.probes() {
        let slot = table.slot(position);
        if slot[at::STATE].load(Ordering::Relaxed) == EMPTY {
            return Err(Some(position));
        }
        if [slot[at::ID].load(Ordering::Relaxed), slot[at::ID + 1].load(Ordering::Relaxed)] == id {
            return Ok(position);
        }
    }
    Err(None)
}

fn id_of(words: &[u64; ENTRY_WORDS - 1]) -> PayloadId {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&words[0].to_le_bytes());
    bytes[8..].copy_from_slice(&words[1].to_le_bytes());
    PayloadId::from_bytes(bytes)
}

/// Puts an entry where its id has one, or where there is room.
fn put<W: Word>(
    table: &IndexView<'_, W>,
    len: &mut usize,
    entry: &Entry,
) -> Result<Option<Generation>, Full> {
    let (state, words) = (entry.generation.0 << 8 | READABLE, entry.words());
    assert!(
        entry.generation.0 != 0 && state >> 8 == entry.generation.0,
        "generations have 56 bits, from 1 on"
    );
    match position(table, &entry.id) {
        Some(position) => {
            let before = table.slot(position)[at::STATE].load(Ordering::Relaxed);
            write(table.slot(position), state, &words);
            Ok(Some(Generation(before >> 8)))
        }
        None => insert(table, len, state, &words).map(|()| None),
    }
}

/// Puts what has no entry here where there is room.
fn insert<W: Word>(
    table: &IndexView<'_, W>,
    len: &mut usize,
    state: u64,
    words: &[u64; ENTRY_WORDS - 1],
) -> Result<(), Full> {
    if *len as u64 * 2 >= table.homes() {
        return Err(Full);
    }
    let home = table.home(&id_of(words));
    let Err(Some(free)) = search(table, home, [words[0], words[1]]) else { return Err(Full) };
    write(table.slot(free), state, words);
    *len += 1;
    Ok(())
}

/// Writes an entry while readers may be looking at it.
fn write<W: Word>(slot: &[W], state: u64, words: &[u64; ENTRY_WORDS - 1]) {
    let before = slot[at::STATE].load(Ordering::Relaxed);
    // BUSY goes ahead of the fields: a reader that meets one of the new fields has met this fence, so that its second
    // look finds BUSY or something later, never the state that it took the old fields for. Relaxed and a Release fence
    // (DMB ISH on ARM, nothing on x86): a Release store would order what is before it, not what follows.
    slot[at::STATE].store(before & !STATUS | BUSY, Ordering::Relaxed);
    W::fence(Ordering::Release);
    for (word, value) in slot[1..].iter().zip(words) {
        word.store(*value, Ordering::Relaxed);
    }
    // Release (STLR on ARM): who sees READABLE sees the fields, and the bytes that the block was filled with before.
    slot[at::STATE].store(state, Ordering::Release);
}

/// Changes the status of an id's entry; its generation.
fn set_status<W: Word>(table: &IndexView<'_, W>, id: &PayloadId, status: u64) -> Option<Generation> {
    let slot = table.slot(position(table, id)?);
    let state = slot[at::STATE].load(Ordering::Relaxed);
    // Release: who meets READABLE again meets the fields, as with the first one. Withdrawals are ordered against cells by
    // the scan's full fence, which always comes before the cells are read.
    slot[at::STATE].store(state & !STATUS | status, Ordering::Release);
    Some(Generation(state >> 8))
}

/// Removes an id's entry and closes the gap: entries that were pushed away from their homes move back.
fn take<W: Word>(table: &IndexView<'_, W>, len: &mut usize, id: &PayloadId) -> Option<Generation> {
    let mut gap = position(table, id)?;
    let state = table.slot(gap)[at::STATE].load(Ordering::Relaxed);
    let mut from = gap + 1;
    // An id lies within its probes, so nothing further away can belong into the gap; runs end at an empty entry.
    while from < table.len() {
        let moving = table.slot(from)[at::STATE].load(Ordering::Relaxed);
        if moving == EMPTY {
            break;
        }
        let words = fields(table, from);
        if table.home(&id_of(&words)) <= gap {
            // Written there before it is gone here, so that most readers find it; the claim is the same. It is gone here
            // before anybody can withdraw it, because this is one call of the only writer.
            write(table.slot(gap), moving, &words);
            gap = from;
        }
        from += 1;
    }
    // Release for uniformity; nobody reads anything because of an empty entry.
    table.slot(gap)[at::STATE].store(EMPTY, Ordering::Release);
    *len -= 1;
    Some(Generation(state >> 8))
}
