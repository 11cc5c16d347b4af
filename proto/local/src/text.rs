//! The sentences of errors: written by the server beside its completions, read by the client if they are still there.
//!
//! The completion at position p has slot p modulo their number. A slot is `{position + 1, length, bytes}`; the first
//! word is 0 while it is being written and is written last. A client looks at it before and after it copied: whatever
//! was overwritten meanwhile, or makes no sense, is no text, and the client says a general sentence instead.

use std::sync::atomic::Ordering;

use crate::layout::{TEXT_SLOT_WORDS, WORD_BYTES};
use crate::word::Word;

/// Words of a slot before its bytes.
const HEADER_WORDS: usize = 2;

/// The longest sentence; longer ones are cut at a character's border.
pub const TEXT_BYTES_MAX: usize = (TEXT_SLOT_WORDS - HEADER_WORDS) * WORD_BYTES;

/// Writes the sentence of the completion at `position`, which must not have been published yet.
pub fn write<W: Word>(texts: &[W], position: u64, sentence: &str) {
    let slot = slot(texts, position);
    let sentence = &sentence.as_bytes()[..sentence.floor_char_boundary(TEXT_BYTES_MAX)];
    slot[0].store(0, Ordering::Relaxed);
    // Whoever sees a word of the new text sees that the old one is gone.
    W::fence(Ordering::Release);
    slot[1].store(sentence.len() as u64, Ordering::Relaxed);
    for (word, chunk) in slot[HEADER_WORDS..].iter().zip(sentence.chunks(WORD_BYTES)) {
        let mut bytes = [0; WORD_BYTES];
        bytes[..chunk.len()].copy_from_slice(chunk);
        word.store(u64::from_le_bytes(bytes), Ordering::Relaxed);
    }
    slot[0].store(position + 1, Ordering::Release);
}

/// The sentence of the completion at `position`; `None` when it was overwritten or makes no sense.
pub fn read<W: Word>(texts: &[W], position: u64) -> Option<String> {
    let slot = slot(texts, position);
    if slot[0].load(Ordering::Acquire) != position + 1 {
        return None;
    }
    let length = usize::try_from(slot[1].load(Ordering::Relaxed)).ok()?;
    if length > TEXT_BYTES_MAX {
        return None;
    }
    let words = &slot[HEADER_WORDS..][..length.div_ceil(WORD_BYTES)];
    let mut bytes: Vec<u8> =
        words.iter().flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()).collect();
    // The words are copied before the first one is looked at again.
    W::fence(Ordering::Acquire);
    if slot[0].load(Ordering::Relaxed) != position + 1 {
        return None;
    }
    bytes.truncate(length);
    String::from_utf8(bytes).ok()
}

fn slot<W>(texts: &[W], position: u64) -> &[W] {
    let slots = texts.len() / TEXT_SLOT_WORDS;
    let start = (position as usize & (slots - 1)) * TEXT_SLOT_WORDS;
    &texts[start..start + TEXT_SLOT_WORDS]
}
