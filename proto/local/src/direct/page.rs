//! A session's pages: cells that its client writes, and the status that the server writes.
//!
//! ```text
//! cells (client writes; the server made it and sealed it SHRINK | GROW, so that reading it cannot fault)
//!   line 0        word 0  lines in use: raised before a line is used first, never lowered
//!   line 1..512   cells: 8 a line, one line a thread of the client; 0 or a claim; a lease never moves between cells
//!   then          a ring of samples a shard (`access`)
//! status (server writes; clients map it read-only, sealed FUTURE_WRITE)
//!   line 0        word 0  epoch: of the session, not 0; changes when its leases end all at once
//!                 word 1  tick: the server's wall clock in ms, renewed once a while
//!   line 1..512   revoked: a word for each cell: the claim that was taken from it last
//! ```
//! Limits: [`CELLS`] leases a session at a time; more are asked for over the ring, where they are counted, too.

use std::sync::atomic::Ordering;

use payload_types::{ShardIndex, limits};

use super::access::{self, SamplesView};
use crate::layout::{LINE_BYTES, LINE_WORDS, WORD_BYTES};
use crate::word::Word;

/// Lines of cells: threads with leases of their own, or an eighth of the leases of one. A page of 32 KiB in all.
pub const LINES: usize = 511;

/// Cells of a line.
pub const LINE_CELLS: usize = LINE_WORDS;

/// Cells of a session.
pub const CELLS: usize = LINES * LINE_CELLS;

/// Bytes of a page of cells.
pub const PAGE_BYTES: usize = (LINES + 1) * LINE_BYTES;

/// Bytes of the memory that a server writes for a session.
pub const STATUS_BYTES: usize = PAGE_BYTES;

/// Bytes of the memory that a session writes, on a node with so many shards: cells, and samples of each shard.
pub const fn written_bytes(shard_count: u16) -> usize {
    (PAGE_BYTES + shard_count as usize * access::RING_BYTES).next_multiple_of(limits::PAGE_BYTES as usize)
}

/// The samples of a shard, in the memory that a session writes; `None` when it is too short.
pub fn samples<W: Word>(words: &[W], shard: ShardIndex) -> Option<SamplesView<'_, W>> {
    let start = (PAGE_BYTES + usize::from(shard.0) * access::RING_BYTES) / WORD_BYTES;
    SamplesView::new(words.get(start..)?)
}

const _: () = assert!(PAGE_BYTES == 32 << 10 && PAGE_BYTES.is_multiple_of(4096));

/// A cell's number within its session.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CellIndex(pub u16);

const _: () = assert!(CELLS <= 1 << u16::BITS);

/// The cells of a session.
#[derive(Debug)]
pub struct CellsView<'a, W> {
    lines_in_use: &'a W,
    cells: &'a [W],
}

impl<W> Clone for CellsView<'_, W> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<W> Copy for CellsView<'_, W> {}

impl<'a, W: Word> CellsView<'a, W> {
    /// The cells in these words: a header line, and as many lines as there are (at most [`LINES`]).
    pub fn new(words: &'a [W]) -> Option<Self> {
        let (header, rest) = words.split_at_checked(LINE_WORDS)?;
        let lines = (rest.len() / LINE_WORDS).min(LINES);
        Some(Self { lines_in_use: &header[0], cells: &rest[..lines * LINE_CELLS] })
    }

    /// Client: takes a line that nobody of this client has used yet; `None` when there is none left.
    ///
    /// Lines whose thread has ended are given on by the client's own books, not here.
    pub fn take_line(&self) -> Option<u16> {
        // Relaxed: that the server sees the mark before it reads cells follows from the full fence of the first
        // acquire in this line, which comes after this in the thread that owns it.
        let line = self.lines_in_use.fetch_add(1, Ordering::Relaxed);
        if line as usize >= self.cells.len() / LINE_CELLS {
            // Back again, so that a client that asks for ever does not wrap the mark around.
            self.lines_in_use.fetch_add(u64::MAX, Ordering::Relaxed);
            return None;
        }
        Some(line as u16)
    }

    /// Client: a cell of its own line that holds nothing. Others may empty a line's cells, its owner alone fills them.
    #[inline]
    pub fn free_cell(&self, line: u16) -> Option<CellIndex> {
        let start = usize::from(line) * LINE_CELLS;
        let cells = self.cells.get(start..start + LINE_CELLS)?;
        // Relaxed: nothing is read because a cell is empty; what its last lease has read is ordered before the next claim by
        // that claim's Release, for this thread's leases, and by whoever emptied it (Release) for another's: Acquire below.
        let free = cells.iter().position(|cell| cell.load(Ordering::Acquire) == 0)?;
        Some(CellIndex((start + free) as u16))
    }

    /// All cells of its own line that hold nothing, as [`CellsView::free_cell`] finds the first.
    pub fn free_cells(&self, line: u16) -> impl Iterator<Item = CellIndex> + use<'a, W> {
        let start = usize::from(line) * LINE_CELLS;
        let cells = self.cells.get(start..start + LINE_CELLS).unwrap_or_default();
        let free = cells.iter().enumerate().filter(|(_, cell)| cell.load(Ordering::Acquire) == 0);
        free.map(move |(at, _)| CellIndex((start + at) as u16))
    }

    /// Server: cells that hold something now, for who shows people how much is leased; a client may write anything.
    pub fn held(&self) -> impl Iterator<Item = u64> + use<'a, W> {
        self.in_use().iter().map(|cell| cell.load(Ordering::Relaxed)).filter(|claim| *claim != 0)
    }

    /// The cell.
    ///
    /// # Panics
    /// When there is no such cell.
    #[inline]
    pub fn cell(&self, index: CellIndex) -> &'a W {
        &self.cells[usize::from(index.0)]
    }

    /// Server: the cells that may hold something. Only after a full fence. The mark is the client's: it is clamped.
    pub(super) fn in_use(&self) -> &'a [W] {
        let lines = self.lines_in_use.load(Ordering::Relaxed);
        let cells = usize::try_from(lines).unwrap_or(LINES).min(LINES) * LINE_CELLS;
        &self.cells[..cells.min(self.cells.len())]
    }
}

/// The status of a session.
#[derive(Debug)]
pub struct StatusView<'a, W> {
    /// Changes when all leases of the session end at once.
    pub epoch: &'a W,
    /// The server's wall clock in ms, now and then.
    pub tick: &'a W,
    revoked: &'a [W],
}

impl<W> Clone for StatusView<'_, W> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<W> Copy for StatusView<'_, W> {}

impl<'a, W: Word> StatusView<'a, W> {
    /// The status in these words: as many as its session's cells have.
    pub fn new(words: &'a [W]) -> Option<Self> {
        let (header, revoked) = words.split_at_checked(LINE_WORDS)?;
        Some(Self { epoch: &header[0], tick: &header[1], revoked: &revoked[..revoked.len().min(CELLS)] })
    }

    /// The claim that was taken from this cell last.
    ///
    /// # Panics
    /// When there is no such cell.
    #[inline]
    pub(super) fn revoked(&self, index: CellIndex) -> &'a W {
        &self.revoked[usize::from(index.0)]
    }

    /// Server: ends all leases of the session at once: what was leased before is not valid any more.
    pub fn end_all(&self, epoch: u64) {
        self.epoch.store(epoch, Ordering::Relaxed);
        // As in `scan::revoke`: before anything of theirs is written over.
        W::fence(Ordering::Release);
    }
}
