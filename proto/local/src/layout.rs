//! Where everything lies in the two pieces of memory that a server shares with a native session.
//!
//! Used by whoever maps them (the reactor, the client's mapping module) and by [`crate::ring`], [`crate::wake`] and
//! [`crate::text`], which work on the slices that [`SessionView`] and [`NodeView`] cut out.
//!
//! ```text
//! session memfd (read-write for both)                       node page (read-only for clients)
//!   line 0       wake line: waiting, wake, client_closed      line s        word 0: `sleeping` of shard s
//!   line 1       word 0: server's `revoked`
//!   shard 0      line 0  client's: completions_taken          line 256      word 0: `epoch`, word 1: boot id hash
//!                line 1  server's: submissions_taken
//!                submissions   256 entries of 64 bytes
//!                completions   256 entries of 64 bytes
//!                texts         32 slots of 512 bytes
//!   shard 1 ...
//! ```
//!
//! Invariants: every part starts at a cache line; all sizes follow from the constants here, so that a view never
//! reaches past the words it was given. Limits: [`payload_types::limits::SHARD_COUNT_MAX`] shards.

use payload_types::limits;

use crate::word::Word;

/// Bytes of a word: everything shared is read and written as 64-bit atomics.
pub const WORD_BYTES: usize = 8;

/// Bytes of a cache line of every machine we run on.
pub const LINE_BYTES: usize = 64;

/// Words of a line.
pub const LINE_WORDS: usize = LINE_BYTES / WORD_BYTES;

/// Words of a ring's entry: the sequence and seven of contents. One line, so that an entry costs one transfer.
pub const ENTRY_WORDS: usize = LINE_WORDS;

/// Entries of a submission or completion ring, a power of two. 256 cover 2 M pairs/s for 128 us of a busy shard.
pub const RING_ENTRIES: usize = 256;

/// Slots for the sentences of errors, a power of two: what a client has that reads completions at all.
pub const TEXT_SLOTS: usize = 32;

/// Bytes of a text slot; 496 of them hold the sentence.
pub const TEXT_SLOT_BYTES: usize = 512;

/// Words of a text slot.
pub const TEXT_SLOT_WORDS: usize = TEXT_SLOT_BYTES / WORD_BYTES;

/// Bytes before the first shard's part: the wake line, and one that the server writes seldom; processors fetch lines in
/// pairs.
pub const SESSION_HEADER_BYTES: usize = 2 * LINE_BYTES;

/// Bytes of one shard's part: two lines, two rings of 16 KiB, texts of 16 KiB.
pub const SHARD_BYTES: usize = 2 * LINE_BYTES + 2 * RING_ENTRIES * LINE_BYTES + TEXT_SLOTS * TEXT_SLOT_BYTES;

/// The line of the node page that holds the epoch: behind those of as many shards as there may be.
pub const NODE_EPOCH_LINE: usize = limits::SHARD_COUNT_MAX as usize;

/// Bytes of the node page: a line a shard and the epoch's, in whole pages.
pub const NODE_PAGE_BYTES: usize =
    ((NODE_EPOCH_LINE + 1) * LINE_BYTES).next_multiple_of(limits::PAGE_BYTES as usize);

const _: () = assert!(RING_ENTRIES.is_power_of_two() && TEXT_SLOTS.is_power_of_two());
const _: () = assert!(SHARD_BYTES == 49_280 && SHARD_BYTES.is_multiple_of(LINE_BYTES));
const _: () = assert!(SESSION_HEADER_BYTES.is_multiple_of(LINE_BYTES));
const _: () = assert!(TEXT_SLOT_BYTES.is_multiple_of(LINE_BYTES));
const _: () = assert!(NODE_PAGE_BYTES == 20_480);
// A completion's text is told apart from an older one of the same slot by its position.
const _: () = assert!(TEXT_SLOTS <= RING_ENTRIES);
// The kernel's futex looks at 32 bits: the low half of a word, which comes first.
const _: () = assert!(cfg!(target_endian = "little"));

/// Bytes of the session memfd of a node with so many shards: whole pages.
pub const fn session_bytes(shard_count: u16) -> usize {
    (SESSION_HEADER_BYTES + shard_count as usize * SHARD_BYTES).next_multiple_of(limits::PAGE_BYTES as usize)
}

/// The wake line of a session: how its client sleeps and is woken (`wake`).
#[derive(Debug)]
pub struct WakeLine<'a, W> {
    /// Client: threads that sleep, or are about to.
    pub waiting: &'a W,
    /// Server: counts its wakes; the futex is the word's low half, at its address.
    pub wake: &'a W,
    /// Client: not 0 once it says that it will take no more completions.
    pub client_closed: &'a W,
}

/// One shard's part of a session.
#[derive(Debug)]
pub struct ShardView<'a, W> {
    /// Client: how many completions it has taken.
    pub completions_taken: &'a W,
    /// Server: how many submissions it has taken; for who debugs a client.
    pub submissions_taken: &'a W,
    /// Entries from the client.
    pub submissions: &'a [W],
    /// Entries from the server.
    pub completions: &'a [W],
    /// Sentences from the server.
    pub texts: &'a [W],
}

/// A session memfd.
#[derive(Debug)]
pub struct SessionView<'a, W> {
    words: &'a [W],
    shard_count: u16,
}

/// The node page.
#[derive(Debug)]
pub struct NodeView<'a, W> {
    words: &'a [W],
}

// By hand: a view is a reference, whatever its words are.
macro_rules! copy {
    ($($view:ident),*) => {$(
        impl<W> Clone for $view<'_, W> {
            fn clone(&self) -> Self {
                *self
            }
        }
        impl<W> Copy for $view<'_, W> {}
    )*};
}
copy!(WakeLine, ShardView, SessionView, NodeView);

impl<'a, W: Word> SessionView<'a, W> {
    /// The memory of a session with so many shards; `None` when it is too short.
    pub fn new(words: &'a [W], shard_count: u16) -> Option<Self> {
        (words.len() >= session_bytes(shard_count) / WORD_BYTES).then_some(Self { words, shard_count })
    }

    /// How the client sleeps.
    pub fn wake_line(&self) -> WakeLine<'a, W> {
        WakeLine { waiting: &self.words[0], wake: &self.words[1], client_closed: &self.words[2] }
    }

    /// Server: goes up each time that a payload is deleted by force on this node. While it is what it was when a lease was
    /// granted, that lease's payload is there; when it is not, ask (Resolve). On a line of its own: it is read often, and
    /// written seldom.
    pub fn revoked(&self) -> &'a W {
        &self.words[LINE_WORDS]
    }

    /// One shard's part.
    ///
    /// # Panics
    /// When there is no such shard.
    pub fn shard(&self, shard: u16) -> ShardView<'a, W> {
        assert!(shard < self.shard_count, "the session has this shard");
        let start = (SESSION_HEADER_BYTES + usize::from(shard) * SHARD_BYTES) / WORD_BYTES;
        let words = &self.words[start..start + SHARD_BYTES / WORD_BYTES];
        let (lines, words) = words.split_at(2 * LINE_WORDS);
        let (submissions, words) = words.split_at(RING_ENTRIES * ENTRY_WORDS);
        let (completions, texts) = words.split_at(RING_ENTRIES * ENTRY_WORDS);
        ShardView {
            completions_taken: &lines[0],
            submissions_taken: &lines[LINE_WORDS],
            submissions,
            completions,
            texts,
        }
    }
}

impl<'a, W: Word> NodeView<'a, W> {
    /// The node page; `None` when it is too short.
    pub fn new(words: &'a [W]) -> Option<Self> {
        (words.len() >= NODE_PAGE_BYTES / WORD_BYTES).then_some(Self { words })
    }

    /// Not 0 while this shard sleeps, or is about to.
    ///
    /// # Panics
    /// When no node has such a shard.
    pub fn sleeping(&self, shard: u16) -> &'a W {
        assert!(shard < limits::SHARD_COUNT_MAX, "a node has fewer shards");
        &self.words[usize::from(shard) * LINE_WORDS]
    }

    /// The server's boot epoch; 0 once it has ended.
    pub fn epoch(&self) -> &'a W {
        &self.words[NODE_EPOCH_LINE * LINE_WORDS]
    }

    /// A hash of the machine's boot id: two servers of one epoch on two machines differ.
    pub fn boot_hash(&self) -> &'a W {
        &self.words[NODE_EPOCH_LINE * LINE_WORDS + 1]
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    fn words(bytes: usize) -> Vec<AtomicU64> {
        (0..bytes / WORD_BYTES).map(|_| AtomicU64::new(0)).collect()
    }

    #[test]
    fn given_a_session_when_every_part_is_marked_then_no_two_parts_share_a_word() {
        for shard_count in [1, 3, 16] {
            let memory = words(session_bytes(shard_count));
            let view = SessionView::new(&memory, shard_count).expect("as long as stated");
            let mark = |word: &AtomicU64| assert_eq!(word.fetch_add(1, Ordering::Relaxed), 0, "marked twice");
            let WakeLine { waiting, wake, client_closed } = view.wake_line();
            [waiting, wake, client_closed, view.revoked()].into_iter().for_each(mark);
            for shard in 0..shard_count {
                let part = view.shard(shard);
                [part.completions_taken, part.submissions_taken].into_iter().for_each(mark);
                for ring in [part.submissions, part.completions] {
                    assert_eq!(ring.len(), RING_ENTRIES * ENTRY_WORDS);
                    ring.iter().for_each(mark);
                }
                assert_eq!(part.texts.len(), TEXT_SLOTS * TEXT_SLOT_WORDS);
                part.texts.iter().for_each(mark);
            }
        }
    }

    #[test]
    fn given_memory_that_is_too_short_when_viewed_then_refused() {
        let memory = words(session_bytes(2));
        assert!(SessionView::new(&memory[1..], 2).is_none() && SessionView::new(&memory, 3).is_none());
        assert!(NodeView::new(&memory[..NODE_PAGE_BYTES / WORD_BYTES - 1]).is_none());
        let node = NodeView::new(&memory).expect("long enough");
        node.sleeping(limits::SHARD_COUNT_MAX - 1).store(1, Ordering::Relaxed);
        assert_eq!(Word::load(node.epoch(), Ordering::Relaxed), 0, "another line");
    }
}
