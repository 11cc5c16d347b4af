//! The published index: how a table lies in its memory, and how an id is found in it.
//!
//! One table a shard and namespace (mapping is visibility), in a memfd that clients map read-only. Written by
//! [`Publisher`](super::Publisher), read by [`read`](super::read) and by the server itself.
//!
//! ```text
//!   line 0      word 0  closed: not 0 once another table has replaced this one, or nothing is published any more
//!   line 1..    homes and a tail of PROBES_MAX - 1 entries, so that no search wraps around; an entry is one line:
//!     0 state = generation 56 | status 8    1, 2 id    3 block (0: a segment of its own)    4 length 48 | flags 16
//!     5 checksum    6 version    7 expires at, ms of the wall clock (0: never)
//! ```
//!
//! Linear probing from the id's home; an empty entry ends a search, and removal closes gaps, so there are no tombstones.
//! A reader that looks while an entry moves may miss it: a miss is a hint, the ring is the authority.
//! Limits: [`PROBES_MAX`] entries are looked at for one id; half of the homes are used at most.

use std::sync::atomic::Ordering;

use payload_types::{Block, Checksum, Generation, PayloadId, WallMs};

use crate::layout::{LINE_BYTES, LINE_WORDS};
use crate::word::Word;

/// Words of an entry: one line, so that a lookup costs one cache miss.
pub const ENTRY_WORDS: usize = LINE_WORDS;

/// Words before the first entry.
pub const HEADER_WORDS: usize = LINE_WORDS;

/// Entries that are looked at for one id. At half load the longest run among 10^7 is about ln n / 0.19 = 83 long.
pub const PROBES_MAX: usize = 128;

/// The most homes of a table: those of 2^24 payloads. Positions then fit 32 bits.
pub const HOMES_MAX: u64 = 1 << 25;

/// Never used, or used no more. The whole word is 0 then.
pub(super) const EMPTY: u64 = 0;
/// May be leased.
pub(super) const READABLE: u64 = 1;
/// Is being written.
pub(super) const BUSY: u64 = 2;
/// Known, and not to be leased: the server is dropping it, or decides whether it may.
pub(super) const WITHDRAWN: u64 = 3;
/// The bits of a state that are its status.
pub(super) const STATUS: u64 = 0xFF;

/// Where a word lies in an entry.
pub(super) mod at {
    pub(in super::super) const STATE: usize = 0;
    pub(in super::super) const ID: usize = 1;
    pub(in super::super) const BLOCK: usize = 3;
    pub(in super::super) const VERSION: usize = 6;
    pub(in super::super) const EXPIRES_AT: usize = 7;
}

/// Bits of a length; the flags are above them.
const LENGTH_BITS: u32 = 48;
/// The flag: there is a checksum.
const HAS_CHECKSUM: u64 = 1 << LENGTH_BITS;

/// Bytes of a table with so many homes.
pub const fn index_bytes(homes: u64) -> u64 {
    ((HEADER_WORDS / LINE_WORDS) as u64 + homes + PROBES_MAX as u64 - 1) * LINE_BYTES as u64
}

/// What is published of a payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Whose bytes.
    pub id: PayloadId,
    /// Of the replica; its shard never gives it to another.
    pub generation: Generation,
    /// Where they lie in a slab; `None`: in a segment of their own, whose name follows from the id.
    pub block: Option<Block>,
    /// How many bytes; below 2^48.
    pub length: u64,
    /// Of the bytes, where one is known.
    pub checksum: Option<Checksum>,
    /// May grow while it stays published.
    pub version: u64,
    /// When it stops to be readable; may change while it stays published.
    pub expires_at: Option<WallMs>,
}

impl Entry {
    /// The words behind the state.
    pub(super) fn words(&self) -> [u64; ENTRY_WORDS - 1] {
        assert!(self.length >> LENGTH_BITS == 0, "a payload has less than 2^48 bytes");
        let [low, high] = id_words(&self.id);
        let flags = if self.checksum.is_some() { HAS_CHECKSUM } else { 0 };
        [
            low,
            high,
            self.block.map_or(0, Block::to_bits),
            self.length | flags,
            self.checksum.map_or(0, |checksum| checksum.0),
            self.version,
            self.expires_at.map_or(0, WallMs::as_millis),
        ]
    }

    /// What the words of an entry say.
    #[inline]
    pub(super) fn of(id: PayloadId, generation: Generation, fields: &Fields) -> Self {
        let [block, length, checksum, version, expires_at] = *fields;
        Self {
            id,
            generation,
            block: Block::from_bits(block),
            length: length & (HAS_CHECKSUM - 1),
            checksum: (length & HAS_CHECKSUM != 0).then_some(Checksum(checksum)),
            version,
            expires_at: match expires_at {
                0 => None,
                millis => Some(WallMs::from_millis(millis)),
            },
        }
    }
}

/// The id as two words.
#[inline]
pub(super) fn id_words(id: &PayloadId) -> [u64; 2] {
    let (low, high) = id.as_bytes().split_at(8);
    [low, high].map(|half| u64::from_le_bytes(half.try_into().expect("8 of 16 bytes")))
}

/// The words of an entry behind its id, as they were met: what they say is looked at by who wants to know.
pub(super) type Fields = [u64; ENTRY_WORDS - at::BLOCK];

/// A readable entry as a reader met it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sighting {
    pub position: u32,
    pub generation: Generation,
    pub fields: Fields,
}

/// Why there was nothing to see.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Unseen {
    Unknown,
    Unreadable,
}

/// A table in the memory that was mapped for it.
#[derive(Debug)]
pub struct IndexView<'a, W> {
    pub(super) closed: &'a W,
    entries: &'a [[W; ENTRY_WORDS]],
    homes: u64,
    probes: usize,
}

impl<W> Clone for IndexView<'_, W> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<W> Copy for IndexView<'_, W> {}

impl<'a, W: Word> IndexView<'a, W> {
    /// The table in these words; `None` when they are too few or too many for one. Both sides have to map equally many.
    pub fn new(words: &'a [W]) -> Option<Self> {
        Self::with_probes(words, PROBES_MAX)
    }

    /// The same with shorter searches, as the model checker wants it: both sides have to agree.
    pub fn with_probes(words: &'a [W], probes: usize) -> Option<Self> {
        let (header, entries) = words.split_at_checked(HEADER_WORDS)?;
        let (entries, _) = entries.as_chunks::<ENTRY_WORDS>();
        let homes = (entries.len() + 1).checked_sub(probes).filter(|homes| *homes > 0)? as u64;
        (homes <= HOMES_MAX && probes > 0).then_some(Self { closed: &header[0], entries, homes, probes })
    }

    /// Where searches for ids may begin.
    pub fn homes(&self) -> u64 {
        self.homes
    }

    /// Entries in all.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// A table always has an entry.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn probes(&self) -> usize {
        self.probes
    }

    /// Where the search for an id begins. The low half of the hash counts most: the high one has chosen the shard.
    #[inline]
    pub(super) fn home(&self, id: &PayloadId) -> usize {
        ((u128::from(id.hash64().rotate_left(32)) * u128::from(self.homes)) >> 64) as usize
    }

    /// The words of an entry.
    #[inline]
    pub(super) fn slot(&self, position: usize) -> &'a [W; ENTRY_WORDS] {
        &self.entries[position]
    }

    /// Reads the line where a search begins, so that it is there soon. What it says means nothing.
    #[inline]
    pub(super) fn touch(&self, home: usize) -> u64 {
        self.slot(home)[at::STATE].load(Ordering::Relaxed)
    }

    /// Finds an id, whose home that is, as a reader does: everything may change meanwhile.
    ///
    /// Always inlined: as a call it returns 56 bytes through memory, word by word, which are then copied 16 bytes at a time;
    /// each such load waits until the two stores before it have left the store buffer (half of a hot lease).
    #[inline(always)]
    pub(super) fn look(&self, id: &PayloadId, home: usize) -> Result<Sighting, Unseen> {
        let wanted = id_words(id);
        for (slot, position) in self.entries[home..].iter().take(self.probes).zip(home..) {
            // Acquire: who sees READABLE sees the fields that were written before it, and the bytes of the block. On ARM
            // an LDAPR; on x86 every load is one.
            let state = slot[at::STATE].load(Ordering::Acquire);
            if state == EMPTY {
                return Err(Unseen::Unknown);
            }
            // Relaxed, as all fields are: should they be newer than the state, the second look finds another state
            // (`Publisher::write` fences between BUSY and the fields).
            let read = |word: usize| slot[word].load(Ordering::Relaxed);
            if [read(at::ID), read(at::ID + 1)] == wanted {
                if state & STATUS != READABLE {
                    return Err(Unseen::Unreadable);
                }
                let fields = std::array::from_fn(|field| read(at::BLOCK + field));
                return Ok(Sighting {
                    position: position as u32,
                    generation: Generation(state >> 8),
                    fields,
                });
            }
        }
        Err(Unseen::Unknown)
    }

    /// Whether what was met is there still, and the table is in use. Only after a full fence behind the claim.
    #[inline]
    pub(super) fn is_unchanged(&self, position: u32, generation: Generation) -> Result<bool, Closed> {
        // Relaxed: the fence before has ordered both behind the claim's store. The server withdraws an entry, or closes the table, fences, and
        // then reads cells: one of the two sees the other (C++20 [atomics.order] 4; DMB ISH on ARM, MFENCE or a locked
        // instruction on x86).
        if self.closed.load(Ordering::Relaxed) != 0 {
            return Err(Closed);
        }
        let state = self.slot(position as usize)[at::STATE].load(Ordering::Relaxed);
        Ok(state == generation.0 << 8 | READABLE)
    }

    /// Whether this table has been replaced, or nothing is published any more. For who has time: leases look themselves.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed) != 0
    }

    /// What is published of an id just now. For who shows it: nothing keeps it so.
    pub fn find(&self, id: &PayloadId) -> Option<Entry> {
        let seen = self.look(id, self.home(id)).ok()?;
        Some(Entry::of(*id, seen.generation, &seen.fields))
    }

    /// Whose entry is there now, for samples of readers: `position` may be anything. For the table's writer only.
    pub fn id_at(&self, position: u32) -> Option<(PayloadId, Generation)> {
        let position = position as usize;
        if position >= self.len() {
            return None;
        }
        let slot = self.slot(position);
        // Relaxed: these are the caller's own stores.
        let read = |word: usize| slot[word].load(Ordering::Relaxed);
        if read(at::STATE) == EMPTY {
            return None;
        }
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&read(at::ID).to_le_bytes());
        bytes[8..].copy_from_slice(&read(at::ID + 1).to_le_bytes());
        Some((PayloadId::from_bytes(bytes), Generation(read(at::STATE) >> 8)))
    }
}

/// The table was replaced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Closed;
