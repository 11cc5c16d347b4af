//! Runs of pages in slabs: segregated fits with boundary tags (Knuth, volume 1, 2.5). Taking a run and giving it back,
//! merged with its free neighbours, costs the same whatever there is.
//!
//! ```text
//! bins    97 steps of an eighth and one for whole slabs; a bit each says which have a run
//! tags    12 bytes a page: first and last page of every run say what it is; what lies between is not looked at
//! ```
//! All slabs of an arena share the bins, smaller bins first, so that a slab that is empty is begun last.

use super::geometry::PAGE_UNITS;
use super::sizes::{self, STEP_COUNT};

/// The bin of slabs that are free as a whole.
const WHOLE: usize = STEP_COUNT;

/// Numbers no run.
const NONE: u32 = u32::MAX;

/// Words of a free run's first page.
const PREVIOUS: usize = 0;
const NEXT: usize = 1;

/// Where a run begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct RunAt {
    pub(super) slab: u16,
    pub(super) page: u16,
}

impl RunAt {
    fn pack(self) -> u32 {
        u32::from(self.slab) << 16 | u32::from(self.page)
    }

    fn unpack(bits: u32) -> Option<Self> {
        (bits != NONE).then_some(Self { slab: (bits >> 16) as u16, page: bits as u16 })
    }

    /// In units from the slab's start.
    pub(super) fn unit(self) -> u32 {
        u32::from(self.page) * PAGE_UNITS
    }
}

/// What a page is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// Nothing to be looked at.
    Inner,
    /// An end of a free run; its first page has the neighbours in its bin.
    Free,
    /// The first page of a block; it has the block's state word.
    Block,
    /// Of a span; it has the span's number.
    Span,
    /// The last page of a run that is taken.
    Last,
}

/// `pages 16 | kind 16`, and two words. Integers, because a slab's worth of zeroes then costs nothing until it is used.
#[derive(Clone, Copy, Debug)]
struct Tag([u32; 3]);

impl Tag {
    fn new(kind: Kind, pages: u32, words: [u32; 2]) -> Self {
        Self([pages << 16 | kind as u32, words[0], words[1]])
    }

    fn kind(self) -> Kind {
        match self.0[0] & 0xFFFF {
            1 => Kind::Free,
            2 => Kind::Block,
            3 => Kind::Span,
            4 => Kind::Last,
            _ => Kind::Inner,
        }
    }

    fn pages(self) -> u32 {
        self.0[0] >> 16
    }

    fn words(self) -> [u32; 2] {
        [self.0[1], self.0[2]]
    }
}

/// What stands at a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Standing {
    /// A block of so many pages begins here; its state word.
    Block { word: u64, pages: u32 },
    /// This page belongs to the span in this slot.
    Span { slot: u32 },
}

/// One slab's pages.
#[derive(Debug)]
pub(super) struct Slab {
    tags: Box<[[u32; 3]]>,
    pub(super) pages_used: u32,
    /// From this page on nothing was ever used.
    pub(super) fresh_page: u32,
    /// How far pages were asked to be touched, in bytes.
    pub(super) prefault_to: u64,
    /// Who used it first; whether others did, too.
    pub(super) domain: Option<super::Domain>,
    pub(super) is_mixed: bool,
}

impl Slab {
    fn tag(&self, page: u32) -> Tag {
        Tag(self.tags[page as usize])
    }

    fn set(&mut self, page: u32, tag: Tag) {
        self.tags[page as usize] = tag.0;
    }

    fn set_kind(&mut self, page: u32, kind: Kind) {
        let Tag([head, ..]) = self.tag(page);
        self.tags[page as usize][0] = head & !0xFFFF | kind as u32;
    }
}

/// A run, and from where on its slab was unused before it was taken.
pub(super) struct Taken {
    pub(super) at: RunAt,
    pub(super) fresh_page: u32,
}

/// All slabs of an arena, by their number.
#[derive(Debug)]
pub(super) struct Pages {
    slab_pages: u32,
    slabs: Vec<Option<Slab>>,
    /// A bit for each bin that has a run.
    occupied: u128,
    heads: [u32; STEP_COUNT + 1],
    empty_count: usize,
}

impl Pages {
    pub(super) fn new(slab_pages: u32) -> Self {
        let heads = [NONE; STEP_COUNT + 1];
        Self { slab_pages, slabs: Vec::new(), occupied: 0, heads, empty_count: 0 }
    }

    pub(super) fn slab(&self, number: u16) -> Option<&Slab> {
        self.slabs.get(usize::from(number))?.as_ref()
    }

    pub(super) fn slab_mut(&mut self, number: u16) -> &mut Slab {
        self.slabs[usize::from(number)].as_mut().expect("the books hold runs of this slab")
    }

    /// Slabs of which nothing is taken.
    pub(super) fn empty_count(&self) -> usize {
        self.empty_count
    }

    /// A new slab, all of it free.
    pub(super) fn add(&mut self, number: u16) {
        let place = usize::from(number);
        if self.slabs.len() <= place {
            self.slabs.resize_with(place + 1, || None);
        }
        assert!(self.slabs[place].is_none(), "a slab's number is its own");
        let tags = vec![[0; 3]; self.slab_pages as usize].into_boxed_slice();
        let slab = Slab { tags, pages_used: 0, fresh_page: 0, prefault_to: 0, domain: None, is_mixed: false };
        self.slabs[place] = Some(slab);
        self.empty_count += 1;
        self.put(RunAt { slab: number, page: 0 }, self.slab_pages);
    }

    /// Takes an empty slab away, if there is one.
    pub(super) fn remove_empty(&mut self) -> Option<u16> {
        let at = RunAt::unpack(self.heads[WHOLE])?;
        self.cut(at, self.slab_pages);
        self.slabs[usize::from(at.slab)] = None;
        self.empty_count -= 1;
        Some(at.slab)
    }

    /// Takes a run of exactly so many pages from the smallest bin that surely has one.
    pub(super) fn take(&mut self, pages: u32) -> Option<Taken> {
        let step = sizes::step(pages);
        let sure = if sizes::start(step) == pages { step } else { step + 1 };
        let above = self.occupied & (u128::MAX << sure);
        let bin = if above == 0 { step } else { above.trailing_zeros() };
        let at = RunAt::unpack(self.heads[bin as usize])?;
        let found = self.tag(at).pages();
        if found < pages {
            return None;
        }
        self.cut(at, found);
        if found > pages {
            self.put(RunAt { page: at.page + pages as u16, ..at }, found - pages);
        }
        let slab = self.slab_mut(at.slab);
        let end = u32::from(at.page) + pages;
        slab.set_kind(end - 1, Kind::Last);
        slab.set(
            u32::from(at.page),
            Tag::new(if pages == 1 { Kind::Last } else { Kind::Inner }, pages, [0; 2]),
        );
        let (was_empty, fresh_page) = (slab.pages_used == 0, slab.fresh_page);
        slab.pages_used += pages;
        slab.fresh_page = fresh_page.max(end);
        self.empty_count -= usize::from(was_empty);
        Some(Taken { at, fresh_page })
    }

    /// Gives a run back. True when its slab is empty now.
    pub(super) fn give(&mut self, at: RunAt, pages: u32) -> bool {
        let slab = self.slab_mut(at.slab);
        slab.pages_used -= pages;
        let is_empty = slab.pages_used == 0;
        let (mut first, mut end) = (u32::from(at.page), u32::from(at.page) + pages);
        let before = first.checked_sub(1).map(|page| slab.tag(page));
        let after = (end < slab.tags.len() as u32).then(|| slab.tag(end));
        // What was an end may lie in the middle now; nobody may take it for a block.
        slab.set_kind(first, Kind::Inner);
        if let Some(before) = before.filter(|tag| tag.kind() == Kind::Free) {
            first -= before.pages();
            self.cut(RunAt { page: first as u16, ..at }, before.pages());
        }
        if let Some(after) = after.filter(|tag| tag.kind() == Kind::Free) {
            self.cut(RunAt { page: end as u16, ..at }, after.pages());
            end += after.pages();
        }
        self.put(RunAt { page: first as u16, ..at }, end - first);
        self.empty_count += usize::from(is_empty);
        is_empty
    }

    /// Says that a taken run is a block, with this state.
    pub(super) fn set_block(&mut self, at: RunAt, word: u64) {
        let (slab, page) = (self.slab_mut(at.slab), u32::from(at.page));
        let pages = slab.tag(page).pages();
        slab.set(page, Tag::new(Kind::Block, pages, [word as u32, (word >> 32) as u32]));
    }

    /// Says of every page of a taken run which span it belongs to, so that any block in it is found.
    pub(super) fn set_span(&mut self, at: RunAt, pages: u32, slot: u32) {
        let slab = self.slab_mut(at.slab);
        for page in u32::from(at.page)..u32::from(at.page) + pages {
            slab.set(page, Tag::new(Kind::Span, pages, [slot, 0]));
        }
    }

    /// The span is gone; its run is to be given back.
    pub(super) fn end_span(&mut self, at: RunAt, pages: u32) {
        let slab = self.slab_mut(at.slab);
        for page in u32::from(at.page)..u32::from(at.page) + pages {
            slab.set_kind(page, Kind::Inner);
        }
    }

    /// What stands at a page, of a block only if it begins there.
    pub(super) fn standing(&self, slab: u16, page: u32) -> Option<Standing> {
        let tag = Tag(*self.slab(slab)?.tags.get(page as usize)?);
        let words = tag.words();
        match tag.kind() {
            Kind::Block => {
                let word = u64::from(words[1]) << 32 | u64::from(words[0]);
                Some(Standing::Block { word, pages: tag.pages() })
            }
            Kind::Span => Some(Standing::Span { slot: words[0] }),
            Kind::Inner | Kind::Free | Kind::Last => None,
        }
    }

    fn tag(&self, at: RunAt) -> Tag {
        self.slab(at.slab).expect("bins hold runs of slabs that are there").tag(u32::from(at.page))
    }

    /// Changes one of the neighbours that a free run has in its bin.
    fn link(&mut self, at: RunAt, side: usize, neighbour: u32) {
        self.slab_mut(at.slab).tags[usize::from(at.page)][1 + side] = neighbour;
    }

    fn bin(&self, pages: u32) -> usize {
        if pages == self.slab_pages { WHOLE } else { sizes::step(pages) as usize }
    }

    /// Puts a free run into its bin.
    fn put(&mut self, at: RunAt, pages: u32) {
        let bin = self.bin(pages);
        let next = std::mem::replace(&mut self.heads[bin], at.pack());
        self.occupied |= 1 << bin;
        let (slab, page) = (self.slab_mut(at.slab), u32::from(at.page));
        slab.set(page + pages - 1, Tag::new(Kind::Free, pages, [NONE; 2]));
        slab.set(page, Tag::new(Kind::Free, pages, [NONE, next]));
        if let Some(next) = RunAt::unpack(next) {
            self.link(next, PREVIOUS, at.pack());
        }
    }

    /// Takes a free run out of its bin.
    fn cut(&mut self, at: RunAt, pages: u32) {
        let bin = self.bin(pages);
        let [previous, next] = self.tag(at).words();
        match RunAt::unpack(previous) {
            Some(before) => self.link(before, NEXT, next),
            None => self.heads[bin] = next,
        }
        if let Some(after) = RunAt::unpack(next) {
            self.link(after, PREVIOUS, previous);
        }
        if self.heads[bin] == NONE {
            self.occupied &= !(1 << bin);
        }
    }

    /// Walks everything: free and taken pages of each slab are all its pages, no two free runs touch, and every free
    /// run is in its bin. For tests and the simulator.
    pub(super) fn audit(&self) -> Result<(), String> {
        let mut free_runs = 0;
        for (number, slab) in self.slabs.iter().enumerate().filter_map(|(n, slab)| Some((n, slab.as_ref()?)))
        {
            let (mut page, mut free, mut was_free) = (0, 0, false);
            while page < self.slab_pages {
                let tag = slab.tag(page);
                let is_free = tag.kind() == Kind::Free;
                let pages = match tag.kind() {
                    // Its first page says how long a span's run is, as a block's does.
                    Kind::Free | Kind::Block | Kind::Span => tag.pages(),
                    Kind::Inner | Kind::Last => 0,
                };
                if pages == 0 || page + pages > self.slab_pages || (is_free && was_free) {
                    return Err(format!("slab {number}, page {page}: {tag:?}"));
                }
                free += if is_free { pages } else { 0 };
                free_runs += usize::from(is_free);
                (page, was_free) = (page + pages, is_free);
            }
            if free + slab.pages_used != self.slab_pages {
                return Err(format!("slab {number}: {free} free and {} used pages", slab.pages_used));
            }
        }
        let mut binned = 0;
        for (bin, head) in self.heads.iter().enumerate() {
            let mut next = RunAt::unpack(*head);
            if next.is_some() != (self.occupied >> bin & 1 == 1) {
                return Err(format!("bin {bin} and its bit differ"));
            }
            while let Some(at) = next {
                let tag = self.tag(at);
                if tag.kind() != Kind::Free || self.bin(tag.pages()) != bin {
                    return Err(format!("bin {bin} has {at:?}, {tag:?}"));
                }
                binned += 1;
                next = RunAt::unpack(tag.words()[NEXT]);
            }
        }
        if binned != free_runs {
            return Err(format!("{free_runs} free runs, {binned} of them in bins"));
        }
        Ok(())
    }
}
