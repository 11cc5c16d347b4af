//! Spans: runs of pages that are cut into blocks of one small class.
//!
//! Each class has a list of the spans with a free block, and each span a word with a bit for each free block, so that
//! finding one is two look-ups whatever there is.

use super::geometry::{SMALL_CLASSES, SpanShape};
use super::pages::RunAt;
use crate::list::{self, Ends, Linked, Links};
use crate::slots::{SlotKey, Slots};

/// Spans of one arena: each has a live block, and there are no more blocks than payloads.
const SPANS_MAX: u32 = payload_types::limits::PAYLOADS_PER_SHARD_MAX;

/// See the module's description.
#[derive(Debug)]
pub(super) struct Span {
    pub(super) at: RunAt,
    class: u8,
    free: u64,
    /// Blocks whose bytes may be somebody's.
    used: u64,
    words: Box<[u64]>,
    links: Links,
}

impl Linked for Span {
    fn links(&mut self) -> &mut Links {
        &mut self.links
    }
}

/// A block of a span.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Cut {
    pub(super) span: SlotKey,
    pub(super) index: u32,
    pub(super) at: RunAt,
    pub(super) shape: SpanShape,
}

impl Cut {
    /// Where it begins in its slab.
    pub(super) fn unit(self) -> u32 {
        self.at.unit() + self.index * self.shape.units
    }
}

/// The spans of one arena.
#[derive(Debug)]
pub(super) struct Spans {
    slots: Slots<Span>,
    open: [Ends; SMALL_CLASSES],
    /// What the last span that was closed had, so that one that comes and goes costs no allocation.
    words_spare: Option<Box<[u64]>>,
}

impl Spans {
    pub(super) fn new() -> Self {
        Self { slots: Slots::new(SPANS_MAX), open: [Ends::default(); SMALL_CLASSES], words_spare: None }
    }

    /// True when no further span can be opened.
    pub(super) fn is_full(&self) -> bool {
        self.slots.is_full()
    }

    /// Takes a block of a span of this class that has one, and says whether its bytes may be somebody's.
    pub(super) fn take(&mut self, class: usize, word: u64) -> Option<(Cut, bool)> {
        let key = self.open[class].first(&self.slots)?;
        let span = self.slots.get_mut(key).expect("a list holds spans that are there");
        let index = span.free.trailing_zeros();
        let bit = 1 << index;
        span.free &= !bit;
        let was_used = span.used & bit != 0;
        span.used |= bit;
        span.words[index as usize] = word;
        let (at, is_taken) = (span.at, span.free == 0);
        if is_taken {
            list::unlink(&mut self.slots, &mut self.open[class], key);
        }
        Some((Cut { span: key, index, at, shape: SpanShape::of_class(class) }, was_used))
    }

    /// Opens a span of this class on a run; its slot.
    pub(super) fn open(&mut self, class: usize, at: RunAt, was_used: bool) -> u32 {
        let shape = SpanShape::of_class(class);
        let words = match self.words_spare.take() {
            Some(words) if words.len() == shape.blocks as usize => words,
            _ => vec![0; shape.blocks as usize].into_boxed_slice(),
        };
        let used = if was_used { u64::MAX } else { 0 };
        let links = Links::default();
        let span = Span { at, class: class as u8, free: shape.mask(), used, words, links };
        let key = self.slots.insert(span).expect("the caller asked whether there is room");
        list::push_back(&mut self.slots, &mut self.open[class], key);
        key.index
    }

    /// The block that begins at this unit of the span in a slot, with its state word.
    pub(super) fn find(&self, slot: u32, unit: u32) -> Option<(Cut, u64)> {
        let key = self.slots.key_at(slot)?;
        let span = self.slots.get(key)?;
        let shape = SpanShape::of_class(usize::from(span.class));
        let distance = unit.checked_sub(span.at.unit())?;
        let index = distance / shape.units;
        if !distance.is_multiple_of(shape.units) || index >= shape.blocks {
            return None;
        }
        Some((Cut { span: key, index, at: span.at, shape }, span.words[index as usize]))
    }

    /// Changes a block's state word.
    pub(super) fn set(&mut self, cut: Cut, word: u64) {
        let span = self.slots.get_mut(cut.span).expect("a block that was found keeps its span");
        span.words[cut.index as usize] = word;
    }

    /// Gives a block back. True when no block of its span is taken any more: the span is gone, and its run free.
    pub(super) fn give(&mut self, cut: Cut) -> bool {
        let span = self.slots.get_mut(cut.span).expect("a block that was found keeps its span");
        let class = usize::from(span.class);
        let was_taken = span.free == 0;
        span.free |= 1 << cut.index;
        span.words[cut.index as usize] = 0;
        let is_free = span.free == cut.shape.mask();
        if was_taken {
            list::push_back(&mut self.slots, &mut self.open[class], cut.span);
        }
        if is_free {
            list::unlink(&mut self.slots, &mut self.open[class], cut.span);
            self.words_spare = self.slots.remove(cut.span).map(|span| span.words);
        }
        is_free
    }
}
