//! The reader's protocol: acquire, release, many at once, and whether a lease still holds.
//!
//! The caller owns the cell: nobody else fills it, and it is empty before. Between the claim and the second look no lock
//! is held and nobody is waited for; a reader that is killed there leaves a claim, which ends with its session.

use std::sync::atomic::Ordering;

use payload_types::{Block, Generation, PayloadId, ShardIndex};

use super::Claim;
use super::index::{Entry, Fields, IndexView, Sighting, Unseen};
use super::page::{CellIndex, StatusView};
use crate::word::Word;

/// How often an acquire looks again when the entry changed under it. Each time the server has moved it meanwhile.
pub const TRIES_MAX: usize = 4;

/// Ids of one call of [`acquire_many`]: claims and second looks wait in an array on the stack. Four lines of cells.
pub const BATCH_MAX: usize = 32;

/// A lease. What it says was copied before it was confirmed, word by word, and holds until the cell is emptied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    /// What the cell says.
    pub claim: Claim,
    /// Where the entry was, for samples ([`super::access`]).
    pub position: u32,
    fields: Fields,
}

impl Found {
    /// What is leased: of the id that was asked for.
    #[inline]
    pub fn entry(&self, id: &PayloadId) -> Entry {
        Entry::of(*id, self.generation(), &self.fields)
    }

    /// Of the replica.
    #[inline]
    pub fn generation(&self) -> Generation {
        self.claim.generation()
    }

    /// Where the bytes lie in a slab; `None`: elsewhere.
    #[inline]
    pub fn block(&self) -> Option<Block> {
        Block::from_bits(self.fields[0])
    }
}

/// Why nothing was leased. All of them are hints: the ring is the authority.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Miss {
    /// Not in this table.
    Unknown,
    /// In the table, and not to be leased just now: it is being dropped, or moves.
    Unreadable,
    /// It changed at each of [`TRIES_MAX`] looks.
    Contended,
    /// Another table has replaced this one: ask for it.
    Closed,
}

impl From<Unseen> for Miss {
    fn from(unseen: Unseen) -> Self {
        match unseen {
            Unseen::Unknown => Self::Unknown,
            Unseen::Unreadable => Self::Unreadable,
        }
    }
}

#[inline]
fn found(seen: &Sighting, shard: ShardIndex) -> Found {
    let Sighting { position, generation, fields } = *seen;
    Found { claim: Claim::new(shard, generation), position, fields }
}

/// Leases a payload of the shard whose table this is; `cell` is empty and the caller's.
///
/// # Errors
/// [`Miss`]; the cell is empty then.
#[inline]
pub fn acquire<W: Word>(
    index: &IndexView<'_, W>,
    shard: ShardIndex,
    id: &PayloadId,
    cell: &W,
) -> Result<Found, Miss> {
    let home = index.home(id);
    match attempt(index, shard, id, home, cell) {
        Err(Miss::Contended) => attempt_again(index, shard, id, home, cell),
        done => done,
    }
}

/// Apart, so that the first attempt is a straight line whose caller has it inlined, and what it read stays in registers.
#[cold]
#[inline(never)]
fn attempt_again<W: Word>(
    index: &IndexView<'_, W>,
    shard: ShardIndex,
    id: &PayloadId,
    home: usize,
    cell: &W,
) -> Result<Found, Miss> {
    for _ in 1..TRIES_MAX {
        match attempt(index, shard, id, home, cell) {
            Err(Miss::Contended) => {}
            done => return done,
        }
    }
    Err(Miss::Contended)
}

/// One look, one claim, one second look. `Miss::Contended`: it changed in between.
#[inline(always)]
fn attempt<W: Word>(
    index: &IndexView<'_, W>,
    shard: ShardIndex,
    id: &PayloadId,
    home: usize,
    cell: &W,
) -> Result<Found, Miss> {
    let seen = index.look(id, home)?;
    let found = found(&seen, shard);
    // Release and a full fence: see `claim` and `is_unchanged`.
    cell.store_and_fence(found.claim.bits());
    let miss = match index.is_unchanged(seen.position, seen.generation) {
        Ok(true) => return Ok(found),
        Ok(false) => Miss::Contended,
        Err(_closed) => Miss::Closed,
    };
    release(cell);
    Err(miss)
}

/// Puts the claim out; a full fence must follow before the second look.
#[inline]
fn claim<W: Word>(cell: &W, claim: Claim) {
    // Release, not Relaxed: a server that reads this claim knows that the lease before it in this cell has ended, and must then see
    // its last reads as done. A Relaxed store would break the release sequence of the 0 that it overwrites (STLR on ARM;
    // x86 forgives it, the model finds it).
    cell.store(claim.bits(), Ordering::Release);
}

/// Ends the lease that the cell holds.
#[inline]
pub fn release<W: Word>(cell: &W) {
    // Release: what was read under the lease is read before the server sees the cell empty (STLR on ARM).
    cell.store(0, Ordering::Release);
}

/// Leases several payloads with one fence: `wanted[i]` into the cell `cells[i]`, the result in `results[i]`.
///
/// What changes under it is not tried again: `Miss::Contended`, and one by one it may work.
///
/// # Panics
/// When the slices are not equally long, or longer than [`BATCH_MAX`].
pub fn acquire_many<W: Word>(
    wanted: &[(IndexView<'_, W>, ShardIndex, PayloadId)],
    cells: &[&W],
    results: &mut [Result<Found, Miss>],
) {
    assert!(wanted.len() <= BATCH_MAX, "at most {BATCH_MAX} at a time");
    assert!(wanted.len() == cells.len() && cells.len() == results.len(), "a cell and a result for each");
    // The first lines of all searches are asked for before any is looked at: a search ends in a branch that waits for its
    // line, and behind a wrong guess no other line would be on its way (10^7 payloads: a third of the time).
    let mut homes = [0; BATCH_MAX];
    let mut ahead = 0;
    for ((index, _, id), home) in wanted.iter().zip(&mut homes) {
        *home = index.home(id);
        ahead ^= index.touch(*home);
    }
    std::hint::black_box(ahead);
    for ((((index, shard, id), home), cell), result) in wanted.iter().zip(homes).zip(cells).zip(&mut *results)
    {
        *result = index.look(id, home).map_err(Miss::from).map(|sighting| {
            let found = found(&sighting, *shard);
            claim(*cell, found.claim);
            found
        });
    }
    // One fence for all: each claim is before it, each second look behind it.
    W::fence(Ordering::SeqCst);
    for (((index, ..), cell), result) in wanted.iter().zip(cells).zip(results) {
        let Ok(seen) = result else { continue };
        let miss = match index.is_unchanged(seen.position, seen.generation()) {
            Ok(true) => continue,
            Ok(false) => Miss::Contended,
            Err(_closed) => Miss::Closed,
        };
        release(*cell);
        *result = Err(miss);
    }
}

/// Whether a lease still held when the bytes that were read under it were read: to be asked afterwards. `epoch` is what the
/// session's was when it was leased.
///
/// Not whether the generation is the same: a payload that moves has another one, and the lease holds the old place.
#[inline]
pub fn is_valid<W: Word>(status: &StatusView<'_, W>, index: CellIndex, claim: Claim, epoch: u64) -> bool {
    // Acquire: the loads of the bytes come before the looks below (DMB ISHLD on ARM, nothing on x86). Whoever wrote over the
    // bytes did so behind the server's Release fence (`scan::revoke`), so one new byte read means that the revocation is seen.
    W::fence(Ordering::Acquire);
    status.revoked(index).load(Ordering::Relaxed) != claim.bits()
        && status.epoch.load(Ordering::Relaxed) == epoch
}
