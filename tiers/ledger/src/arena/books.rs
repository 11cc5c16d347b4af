//! The arena itself: blocks' states and generations over [`super::pages`] and [`super::spans`].

use payload_types::limits::PAGE_BYTES;
use payload_types::{ByteCount, Generation};

use super::geometry::{Fit, Geometry, PAGE_UNITS, UNIT_BYTES};
use super::pages::{Pages, RunAt, Standing};
use super::sizes;
use super::spans::{Cut, Spans};
use super::{
    Block, Domain, Freed, MEMORIES_MAX, MemoryIndex, PREFAULT_BYTES, Place, Placed, Room, Stale, Tally,
    Wanted, Zero,
};

/// A block's state word: `generation 56 | status 8`, as a direct lease's entry has it.
const STATUS_BITS: u32 = 8;

/// What a block may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Status {
    Live = 1,
    Limbo = 2,
}

fn word(generation: Generation, status: Status) -> u64 {
    generation.0 << STATUS_BITS | status as u64
}

/// A memory's number is in use.
#[derive(Debug)]
enum Memory {
    Slab,
    Own { bytes: ByteCount, word: u64 },
}

/// What a place is, when a block begins there.
enum Found {
    Run { at: RunAt, pages: u32 },
    Cut(Cut),
    Own { bytes: ByteCount },
}

/// The slabs and memories of one writer session on one shard. See [`super`].
#[derive(Debug)]
pub struct Arena {
    geometry: Geometry,
    memories: Vec<Option<Memory>>,
    numbers_free: Vec<u16>,
    pages: Pages,
    spans: Spans,
    generation_last: Generation,
    tally: Tally,
}

impl Arena {
    /// Without any memory yet.
    pub fn new(geometry: Geometry) -> Self {
        Self {
            geometry,
            memories: Vec::new(),
            numbers_free: Vec::new(),
            pages: Pages::new(geometry.slab_pages()),
            spans: Spans::new(),
            generation_last: Generation(0),
            tally: Tally::default(),
        }
    }

    /// Sums.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// What the arena's memories take, in whole pages: what its shard is to be charged for.
    pub fn charged(&self) -> ByteCount {
        self.tally.bytes_charged
    }

    /// Places a payload, or says what it takes first.
    ///
    /// # Panics
    /// When the size is 0, or the generation is not above all earlier ones.
    pub fn allocate(&mut self, wanted: &Wanted) -> Room {
        let fit = self.geometry.fit(wanted.size);
        let placed = match fit {
            Fit::Own(_) if self.has_no_number() => return Room::Full,
            Fit::Own(bytes) => return Room::NeedsOwn(bytes),
            Fit::Pages(pages) => self.place_run(wanted, pages),
            Fit::Small(_) if self.spans.is_full() => return Room::Full,
            Fit::Small(bytes) => self.place_cut(wanted, bytes),
        };
        match placed {
            Some(placed) => {
                self.note_generation(wanted.generation);
                self.tally.blocks_live += 1;
                Room::Placed(placed)
            }
            None if self.has_no_number() => Room::Full,
            None => Room::NeedsSlab(self.geometry.slab_bytes()),
        }
    }

    /// A slab was charged and made: empty, its pages zero. Its number, and how far to touch its pages at once; `None`:
    /// there are [`MEMORIES_MAX`].
    pub fn add_slab(&mut self) -> Option<(MemoryIndex, u64)> {
        let number = self.number()?;
        self.memories[usize::from(number)] = Some(Memory::Slab);
        self.pages.add(number);
        let prefault_to = PREFAULT_BYTES.min(self.geometry.slab_bytes().0);
        self.pages.slab_mut(number).prefault_to = prefault_to;
        self.tally.slabs += 1;
        self.tally.bytes_charged.0 += self.geometry.slab_bytes().0;
        Some((MemoryIndex(number), prefault_to))
    }

    /// A memory of its own was charged and made for a payload, which is its only block. `None`: there are [`MEMORIES_MAX`].
    ///
    /// # Panics
    /// As [`allocate`](Self::allocate).
    pub fn add_own(&mut self, wanted: &Wanted) -> Option<Placed> {
        assert!(wanted.size.0 > 0, "a payload has at least one byte");
        let number = self.number()?;
        let bytes = wanted.size.in_pages();
        let state = word(wanted.generation, Status::Live);
        self.memories[usize::from(number)] = Some(Memory::Own { bytes, word: state });
        self.note_generation(wanted.generation);
        self.tally.own += 1;
        self.tally.bytes_charged.0 += bytes.0;
        self.tally.bytes_used.0 += bytes.0;
        self.tally.blocks_live += 1;
        let place = Place { memory: MemoryIndex(number), unit: 0 };
        let block = Block { place, generation: wanted.generation };
        Some(Placed { block, bytes, zero: None, prefault_to: Some(bytes.0) })
    }

    /// True while the block lives: placed, and neither retired nor freed.
    pub fn is_live(&self, block: Block) -> bool {
        self.find(block, Status::Live).is_ok()
    }

    /// Invalidates a block: from now on it has the generation `next`, and waits in limbo under that name until
    /// [`reclaim`](Self::reclaim). Its bytes stay.
    ///
    /// # Errors
    /// [`Stale`]: it does not live.
    ///
    /// # Panics
    /// When `next` is not above all earlier generations.
    pub fn retire(&mut self, block: Block, next: Generation) -> Result<Block, Stale> {
        let found = self.find(block, Status::Live)?;
        self.note_generation(next);
        let state = word(next, Status::Limbo);
        match found {
            Found::Run { at, .. } => self.pages.set_block(at, state),
            Found::Cut(cut) => self.spans.set(cut, state),
            Found::Own { bytes } => {
                let memory = &mut self.memories[usize::from(block.place.memory.0)];
                *memory = Some(Memory::Own { bytes, word: state });
            }
        }
        self.tally.blocks_live -= 1;
        self.tally.blocks_limbo += 1;
        Ok(Block { generation: next, ..block })
    }

    /// Nobody uses a block in limbo any more: its place may be used again.
    ///
    /// # Errors
    /// [`Stale`]: it is not in limbo under this name.
    pub fn reclaim(&mut self, block: Block) -> Result<Freed, Stale> {
        let found = self.find(block, Status::Limbo)?;
        self.tally.blocks_limbo -= 1;
        Ok(self.end(block.place.memory, found))
    }

    /// Ends a block that no reader was ever told of: an allocation that was aborted.
    ///
    /// # Errors
    /// [`Stale`]: it does not live.
    pub fn free(&mut self, block: Block) -> Result<Freed, Stale> {
        let found = self.find(block, Status::Live)?;
        self.tally.blocks_live -= 1;
        Ok(self.end(block.place.memory, found))
    }

    /// Takes one empty slab out of the books when there are more than `kept`: have it returned, then end its charge of
    /// [`Geometry::slab_bytes`].
    pub fn take_surplus(&mut self, kept: usize) -> Option<MemoryIndex> {
        if self.pages.empty_count() <= kept {
            return None;
        }
        let number = self.pages.remove_empty()?;
        self.memories[usize::from(number)] = None;
        self.numbers_free.push(number);
        self.tally.slabs -= 1;
        self.tally.bytes_charged.0 -= self.geometry.slab_bytes().0;
        Some(MemoryIndex(number))
    }

    /// True when less than a quarter of a slab is free in all slabs together: with capacity to spare, one more may be
    /// made before somebody has to wait for it. Never before the first was used.
    pub fn wants_slab_ahead(&self) -> bool {
        let slabs = self.tally.slabs as u64 * self.geometry.slab_bytes().0;
        let own = self.tally.bytes_charged.0 - slabs;
        let free = slabs - (self.tally.bytes_used.0 - own);
        self.tally.slabs > 0 && free < self.geometry.slab_bytes().0 / 4
    }

    fn note_generation(&mut self, generation: Generation) {
        assert!(generation > self.generation_last, "generations of a shard only grow");
        self.generation_last = generation;
    }

    fn has_no_number(&self) -> bool {
        self.numbers_free.is_empty() && self.memories.len() == MEMORIES_MAX
    }

    fn number(&mut self) -> Option<u16> {
        if self.has_no_number() {
            return None;
        }
        Some(self.numbers_free.pop().unwrap_or_else(|| {
            self.memories.push(None);
            (self.memories.len() - 1) as u16
        }))
    }

    fn place_run(&mut self, wanted: &Wanted, pages: u32) -> Option<Placed> {
        let taken = self.pages.take(pages)?;
        self.pages.set_block(taken.at, word(wanted.generation, Status::Live));
        let bytes = u64::from(pages) * PAGE_BYTES;
        self.tally.bytes_used.0 += bytes;
        let start = u64::from(taken.at.page) * PAGE_BYTES;
        let dirty_to = u64::from(taken.fresh_page) * PAGE_BYTES;
        let tail = start + wanted.size.0..start + wanted.size.in_pages().0;
        let crosses = self.crosses(taken.at.slab, wanted.domain);
        let range = if crosses { start..start + bytes } else { tail };
        let range = range.start..range.end.min(dirty_to);
        let zero = (!range.is_empty()).then_some(Zero { range, crosses_domains: crosses });
        Some(self.placed(wanted, taken.at.slab, taken.at.unit(), (bytes, zero)))
    }

    fn place_cut(&mut self, wanted: &Wanted, bytes: ByteCount) -> Option<Placed> {
        let class = sizes::step((bytes.0 / UNIT_BYTES) as u32) as usize;
        let state = word(wanted.generation, Status::Live);
        let (cut, was_used) = match self.spans.take(class, state) {
            Some(taken) => taken,
            None => {
                self.open_span(class)?;
                self.spans.take(class, state).expect("a new span has free blocks")
            }
        };
        let start = u64::from(cut.unit()) * UNIT_BYTES;
        let crosses = self.crosses(cut.at.slab, wanted.domain);
        let range = if crosses { start } else { start + wanted.size.0 }..start + bytes.0;
        let zero = (was_used && !range.is_empty()).then_some(Zero { range, crosses_domains: crosses });
        Some(self.placed(wanted, cut.at.slab, cut.unit(), (bytes.0, zero)))
    }

    fn open_span(&mut self, class: usize) -> Option<()> {
        let pages = super::geometry::SpanShape::of_class(class).pages;
        let taken = self.pages.take(pages)?;
        let was_used = u32::from(taken.at.page) < taken.fresh_page;
        let slot = self.spans.open(class, taken.at, was_used);
        self.pages.set_span(taken.at, pages, slot);
        self.tally.bytes_used.0 += u64::from(pages) * PAGE_BYTES;
        Some(())
    }

    /// True when the slab may hold bytes of a domain that is not this one. Conservative: once two were there, always.
    fn crosses(&mut self, slab: u16, domain: Domain) -> bool {
        let slab = self.pages.slab_mut(slab);
        slab.is_mixed |= *slab.domain.get_or_insert(domain) != domain;
        slab.is_mixed
    }

    /// Puts the answer together. Pages are touched as far ahead as were used so far: a session that writes little pays for
    /// little, and one that fills its slab has five orders given.
    fn placed(
        &mut self,
        wanted: &Wanted,
        slab: u16,
        unit: u32,
        (bytes, zero): (u64, Option<Zero>),
    ) -> Placed {
        let slab_bytes = self.geometry.slab_bytes().0;
        let books = self.pages.slab_mut(slab);
        let used = u64::from(books.fresh_page) * PAGE_BYTES;
        let ahead = (2 * used).next_power_of_two().max(PREFAULT_BYTES).min(slab_bytes);
        let prefault_to = (ahead > books.prefault_to).then_some(ahead);
        books.prefault_to = books.prefault_to.max(ahead);
        let place = Place { memory: MemoryIndex(slab), unit };
        let block = Block { place, generation: wanted.generation };
        Placed { block, bytes: ByteCount(bytes), zero, prefault_to }
    }

    /// The block of this name in this state.
    fn find(&self, block: Block, status: Status) -> Result<Found, Stale> {
        let Place { memory, unit } = block.place;
        let state = word(block.generation, status);
        let found = match self.memories.get(usize::from(memory.0)) {
            Some(Some(Memory::Own { bytes, word })) if unit == 0 => {
                Some((Found::Own { bytes: *bytes }, *word))
            }
            Some(Some(Memory::Slab)) => match self.pages.standing(memory.0, unit / PAGE_UNITS) {
                Some(Standing::Block { word, pages }) if unit.is_multiple_of(PAGE_UNITS) => {
                    let at = RunAt { slab: memory.0, page: (unit / PAGE_UNITS) as u16 };
                    Some((Found::Run { at, pages }, word))
                }
                Some(Standing::Span { slot }) => {
                    self.spans.find(slot, unit).map(|(cut, word)| (Found::Cut(cut), word))
                }
                _ => None,
            },
            _ => None,
        };
        found.filter(|(_, word)| *word == state).map(|(found, _)| found).ok_or(Stale(block))
    }

    fn end(&mut self, memory: MemoryIndex, found: Found) -> Freed {
        let (at, pages) = match found {
            Found::Run { at, pages } => (at, pages),
            Found::Cut(cut) => {
                if !self.spans.give(cut) {
                    return Freed::Block;
                }
                self.pages.end_span(cut.at, cut.shape.pages);
                (cut.at, cut.shape.pages)
            }
            Found::Own { bytes } => {
                self.memories[usize::from(memory.0)] = None;
                self.numbers_free.push(memory.0);
                self.tally.own -= 1;
                self.tally.bytes_charged.0 -= bytes.0;
                self.tally.bytes_used.0 -= bytes.0;
                return Freed::Own(bytes);
            }
        };
        self.tally.bytes_used.0 -= u64::from(pages) * PAGE_BYTES;
        if self.pages.give(at, pages) { Freed::SlabEmpty } else { Freed::Block }
    }

    /// Walks everything and compares it with the sums. For tests and the simulator: it takes as long as there is memory.
    ///
    /// # Errors
    /// What does not add up.
    pub fn audit(&self) -> Result<(), String> {
        self.pages.audit()?;
        let mut counted = Tally::default();
        for (number, memory) in self.memories.iter().enumerate() {
            match memory {
                None => {}
                Some(Memory::Own { bytes, word }) => {
                    counted.own += 1;
                    counted.bytes_charged.0 += bytes.0;
                    counted.bytes_used.0 += bytes.0;
                    self.count(&mut counted, *word);
                }
                Some(Memory::Slab) => {
                    counted.slabs += 1;
                    counted.bytes_charged.0 += self.geometry.slab_bytes().0;
                    self.count_slab(&mut counted, number as u16)?;
                }
            }
        }
        if counted == self.tally {
            Ok(())
        } else {
            Err(format!("{counted:?} is there, {:?} is told", self.tally))
        }
    }

    fn count(&self, counted: &mut Tally, word: u64) {
        match word & 0xFF {
            status if status == Status::Live as u64 => counted.blocks_live += 1,
            status if status == Status::Limbo as u64 => counted.blocks_limbo += 1,
            _ => {}
        }
    }

    fn count_slab(&self, counted: &mut Tally, number: u16) -> Result<(), String> {
        let slab = self.pages.slab(number).ok_or_else(|| format!("slab {number} has no pages"))?;
        counted.bytes_used.0 += u64::from(slab.pages_used) * PAGE_BYTES;
        for page in 0..self.geometry.slab_pages() {
            match self.pages.standing(number, page) {
                None => {}
                Some(Standing::Block { word, .. }) => self.count(counted, word),
                Some(Standing::Span { slot }) => {
                    for unit in page * PAGE_UNITS..(page + 1) * PAGE_UNITS {
                        if let Some((_, word)) = self.spans.find(slot, unit) {
                            self.count(counted, word);
                        }
                    }
                }
            }
        }
        Ok(())
    }
}
