//! The rings: one producer and one consumer each, with the sequence number inside the entry.
//!
//! [`ClientRings`] and [`ServerRings`] are the two ends of one shard's pair of rings; they keep positions in private
//! memory and work on the [`ShardView`] they are handed. Neither sleeps nor makes a system call (`wake` says when to).
//!
//! ```text
//! client  submit --submissions--> take    server        word 0 of an entry = its position + 1, written last (Release)
//!         take   <--completions-- post                  words 1..8 = contents, copied once
//! ```
//!
//! Invariants. What a client has in flight is counted in completions that are owed to it: at most as many as the ring has
//! entries, and it publishes what it took before it submits more. So of the last `entries` submissions one was answered,
//! and what is overwritten was taken, in order. The server takes a submission only when its completions have room:
//! `posted + reserved - completions_taken + owed <= entries`; for a client that keeps the rule there is always room, which
//! is why taking completions rings no bell.
//! Hostile input: a sequence that is not the next one reads as nothing; a counter that goes back or ahead of what was
//! posted is a [`RingFault`], upon which the session is closed. Both sides index by their own positions only.

use std::fmt;
use std::sync::atomic::Ordering;

use crate::layout::{ENTRY_WORDS, ShardView};
use crate::text;
use crate::word::Word;

/// What an entry holds behind its sequence.
pub type Contents = [u64; ENTRY_WORDS - 1];

/// A client's counters that no client which keeps the rules can have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RingFault {
    /// What the client wrote.
    pub taken: u64,
    /// What it had written before.
    pub taken_before: u64,
    /// How many completions there were.
    pub posted: u64,
}

impl fmt::Display for RingFault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { taken, taken_before, posted } = self;
        write!(
            formatter,
            "the ring's counters are not possible: {taken} completions taken, after {taken_before}, of {posted}; the counter must never go back nor run ahead"
        )
    }
}

impl std::error::Error for RingFault {}

/// Writes the entry at `position`.
#[inline]
fn publish<W: Word>(ring: &[W], position: u64, contents: &Contents) {
    let slot = slot(ring, position);
    for (word, value) in slot[1..].iter().zip(contents) {
        word.store(*value, Ordering::Relaxed);
    }
    slot[0].store(position + 1, Ordering::Release);
}

/// Copies the entry at `position`, if it is there.
#[inline]
fn consume<W: Word>(ring: &[W], position: u64) -> Option<Contents> {
    let slot = slot(ring, position);
    if slot[0].load(Ordering::Acquire) != position + 1 {
        return None;
    }
    let mut contents = [0; ENTRY_WORDS - 1];
    for (value, word) in contents.iter_mut().zip(&slot[1..]) {
        *value = word.load(Ordering::Relaxed);
    }
    Some(contents)
}

/// The words of the entry at `position`. Rings have a power of two of entries.
#[inline]
fn slot<W>(ring: &[W], position: u64) -> &[W] {
    let start = (position as usize & (entries(ring) - 1)) * ENTRY_WORDS;
    &ring[start..start + ENTRY_WORDS]
}

/// True when the entry at `position` is there: what may be looked at without being an end of the ring.
#[inline]
pub fn has_entry<W: Word>(ring: &[W], position: u64) -> bool {
    slot(ring, position)[0].load(Ordering::Acquire) == position + 1
}

#[inline]
fn entries<W>(ring: &[W]) -> usize {
    let entries = ring.len() / ENTRY_WORDS;
    debug_assert!(entries.is_power_of_two(), "rings are made by the layout");
    entries
}

/// The client's end of one shard's rings.
#[derive(Debug, Default)]
pub struct ClientRings {
    submitted: u64,
    taken: u64,
    owed: u64,
}

impl ClientRings {
    /// The rings of a new session.
    pub fn new() -> Self {
        Self::default()
    }

    /// Publishes a submission that has `completions` completions at most ([`crate::entry::Submission::completions`]), and what was
    /// taken; `false` when so many more have no room. Ring the doorbell afterwards if [`crate::wake::must_ring`] says so.
    #[must_use]
    #[inline]
    pub fn submit<W: Word>(
        &mut self,
        view: &ShardView<'_, W>,
        contents: &Contents,
        completions: u64,
    ) -> bool {
        if self.owed + completions > entries(view.submissions) as u64 {
            return false;
        }
        self.publish_taken(view);
        publish(view.submissions, self.submitted, contents);
        self.submitted += 1;
        self.owed += completions;
        true
    }

    /// Takes the next completion and its position, which names its text slot. `settles` says of the contents how many
    /// owed completions it settles: 1, or 2 for the last one of a submission that skipped the one before.
    #[inline]
    pub fn take<W: Word>(
        &mut self,
        view: &ShardView<'_, W>,
        settles: impl FnOnce(&Contents) -> u64,
    ) -> Option<(u64, Contents)> {
        let contents = consume(view.completions, self.taken)?;
        let position = self.taken;
        self.taken += 1;
        // A server that answers more than it was asked breaks no memory of ours.
        self.owed = self.owed.saturating_sub(settles(&contents));
        Some((position, contents))
    }

    /// Tells the server how many completions were taken. [`ClientRings::submit`] does it, too.
    #[inline]
    pub fn publish_taken<W: Word>(&self, view: &ShardView<'_, W>) {
        // Release: the copies of the entries are done before the server may write over them.
        view.completions_taken.store(self.taken, Ordering::Release);
    }

    /// True when there is a completion to take.
    #[inline]
    pub fn has_completion<W: Word>(&self, view: &ShardView<'_, W>) -> bool {
        has_entry(view.completions, self.taken)
    }

    /// How many completions were taken: the position of the next one.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// Completions that are owed to this client.
    pub fn owed(&self) -> u64 {
        self.owed
    }
}

/// The server's end of one shard's rings.
#[derive(Debug, Default)]
pub struct ServerRings {
    taken: u64,
    posted: u64,
    reserved: u64,
    /// As last read; what the client wrote since may be more.
    completions_taken: u64,
}

impl ServerRings {
    /// The rings of a new session.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next submission and reserves the completions that `owed` says it may have; `None` when there is none, or
    /// no room to answer it.
    ///
    /// # Errors
    /// [`RingFault`] when the client's counter is impossible: close the session.
    #[inline]
    pub fn take<W: Word>(
        &mut self,
        view: &ShardView<'_, W>,
        owed: impl FnOnce(&Contents) -> u64,
    ) -> Result<Option<Contents>, RingFault> {
        let Some(contents) = consume(view.submissions, self.taken) else { return Ok(None) };
        let owed = owed(&contents);
        if !self.has_room(view, owed)? {
            return Ok(None);
        }
        self.taken += 1;
        self.reserved += owed;
        view.submissions_taken.store(self.taken, Ordering::Relaxed);
        Ok(Some(contents))
    }

    /// True when [`ServerRings::take`] may have something now: what to look at again before going to sleep. A client
    /// that takes no completions does not keep its shard awake.
    ///
    /// # Errors
    /// As [`ServerRings::take`].
    #[inline]
    pub fn is_ready<W: Word>(&mut self, view: &ShardView<'_, W>) -> Result<bool, RingFault> {
        Ok(has_entry(view.submissions, self.taken) && self.has_room(view, 1)?)
    }

    /// Gives a reserved completion back that will not be posted: a Commit was answered without ACCEPTED.
    ///
    /// # Panics
    /// When none was reserved.
    #[inline]
    pub fn forgo(&mut self) {
        assert!(self.reserved > 0, "only what was reserved is given back");
        self.reserved -= 1;
    }

    /// Publishes a completion that was reserved, with the sentence of an error if there is one.
    ///
    /// # Panics
    /// When none was reserved.
    #[inline]
    pub fn post<W: Word>(&mut self, view: &ShardView<'_, W>, contents: &Contents, sentence: Option<&str>) {
        assert!(self.reserved > 0, "a completion is reserved before its submission is taken");
        if let Some(sentence) = sentence {
            text::write(view.texts, self.posted, sentence);
        }
        publish(view.completions, self.posted, contents);
        self.posted += 1;
        self.reserved -= 1;
    }

    /// Completions that are owed: what a closing session waits for.
    pub fn reserved(&self) -> u64 {
        self.reserved
    }

    /// Whether so many more completions have room. Reads the client's line only when what is known of it is not enough.
    #[inline]
    fn has_room<W: Word>(&mut self, view: &ShardView<'_, W>, owed: u64) -> Result<bool, RingFault> {
        let room = entries(view.completions) as u64;
        let fits = |completions_taken| self.posted - completions_taken + self.reserved + owed <= room;
        if fits(self.completions_taken) {
            return Ok(true);
        }
        let taken = view.completions_taken.load(Ordering::Acquire);
        if taken < self.completions_taken || taken > self.posted {
            return Err(RingFault { taken, taken_before: self.completions_taken, posted: self.posted });
        }
        let fits = fits(taken);
        self.completions_taken = taken;
        Ok(fits)
    }
}
