//! The books of arena slabs against a naive model, in random orders: placements, invalidations, limbo, aborts, slabs that
//! come and go. What must hold at every moment is asserted after every step; planted lies prove that it can fail.

use std::collections::BTreeMap;

use payload_ledger::arena::{
    Arena, Block, Domain, Freed, Geometry, MEMORIES_MAX, MemoryIndex, Place, Placed, Room, Stale, UNIT_BYTES,
    Wanted,
};
use payload_types::limits::PAGE_BYTES;
use payload_types::{ByteCount, Generation};

/// A small generator: the same seed gives the same run.
struct Rng(u64);

impl Rng {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) % end.max(1)
    }
}

/// What stands between the books and the model may lie, in one way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Lie {
    None,
    /// A place that somebody else has.
    Overlap,
    /// The generation that the place had before.
    Repeated,
    /// Limbo is skipped.
    Early,
    /// A block of twice the size.
    Waste,
    /// A block below 4 KiB between cache lines, or another one between pages.
    Crooked,
    /// Dirty bytes are not told of.
    Dirty,
    /// A block that ended stays in the books.
    Leak,
    /// A slab that was returned stays charged.
    Kept,
    /// A slab that has blocks is returned.
    Torn,
}

#[derive(Clone, Copy, Debug)]
struct Standing {
    block: Block,
    bytes: u64,
    is_live: bool,
}

/// One memory as the model has it: who wrote each cache line last.
struct Memory {
    bytes: u64,
    is_own: bool,
    lines: Vec<Option<Domain>>,
}

struct Model {
    rng: Rng,
    geometry: Geometry,
    arena: Arena,
    lie: Lie,
    memories: BTreeMap<MemoryIndex, Memory>,
    /// By place; both who live and who are in limbo.
    standing: BTreeMap<Place, Standing>,
    /// The last generation of every place there ever was.
    generations: BTreeMap<Place, Generation>,
    gone: Vec<Block>,
    generation: u64,
    domains: u64,
    slabs_made: usize,
    slabs_returned: usize,
    placed: u64,
    zeroed: u64,
}

fn must(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

impl Model {
    fn new(seed: u64, capacity: u64, lie: Lie) -> Self {
        let geometry = Geometry::of_capacity(ByteCount(capacity));
        let mut rng = Rng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        let domains = 1 + rng.below(2);
        Self {
            rng,
            geometry,
            arena: Arena::new(geometry),
            lie,
            memories: BTreeMap::new(),
            standing: BTreeMap::new(),
            generations: BTreeMap::new(),
            gone: Vec::new(),
            generation: 0,
            domains,
            slabs_made: 0,
            slabs_returned: 0,
            placed: 0,
            zeroed: 0,
        }
    }

    fn next_generation(&mut self) -> Generation {
        self.generation += 1 + self.rng.below(3);
        Generation(self.generation)
    }

    fn lies(&mut self, lie: Lie) -> bool {
        self.lie == lie && self.rng.below(8) == 0
    }

    fn size(&mut self) -> u64 {
        let slab = self.geometry.slab_bytes().0;
        match self.rng.below(20) {
            0..9 => 1 + self.rng.below(PAGE_BYTES),
            9..15 => 1 + self.rng.below(8 * PAGE_BYTES),
            15..18 => 1 + self.rng.below(slab / 8),
            18 => 1 + self.rng.below(slab / 2),
            _ => 1 + self.rng.below(2 * slab),
        }
    }

    fn allocate(&mut self) -> Result<(), String> {
        let domain = Domain(self.rng.below(self.domains));
        let wanted = Wanted { size: ByteCount(self.size()), generation: self.next_generation(), domain };
        let has_empty = self.arena.tally().slabs > 0
            && self.memories.iter().any(|(index, memory)| {
                !memory.is_own && self.standing.keys().all(|place| place.memory != *index)
            });
        match self.arena.allocate(&wanted) {
            Room::Placed(placed) => self.place(wanted, placed),
            Room::Full => Err("no arena is full so early".to_owned()),
            Room::NeedsSlab(bytes) => {
                must(!has_empty, || format!("{} has room in an empty slab", wanted.size))?;
                must(bytes == self.geometry.slab_bytes(), || format!("a slab of {bytes}"))?;
                let (index, prefault_to) = self.arena.add_slab().ok_or("too many slabs")?;
                must(prefault_to > 0 && prefault_to <= bytes.0, || format!("prefault to {prefault_to}"))?;
                self.slabs_made += 1;
                self.remember(index, bytes.0, false)?;
                match self.arena.allocate(&wanted) {
                    Room::Placed(placed) => self.place(wanted, placed),
                    other => Err(format!("{other:?} with a new slab, for {}", wanted.size)),
                }
            }
            Room::NeedsOwn(bytes) => {
                must(bytes == wanted.size.in_pages(), || format!("{bytes} for {}", wanted.size))?;
                must(bytes.0 > self.geometry.slab_bytes().0 / 2, || format!("{} alone", wanted.size))?;
                let placed = self.arena.add_own(&wanted).ok_or("too many memories")?;
                self.remember(placed.block.place.memory, bytes.0, true)?;
                self.place(wanted, placed)
            }
        }
    }

    fn remember(&mut self, index: MemoryIndex, bytes: u64, is_own: bool) -> Result<(), String> {
        let memory = Memory { bytes, is_own, lines: vec![None; (bytes / UNIT_BYTES) as usize] };
        must(self.memories.insert(index, memory).is_none(), || format!("{index:?} was there"))
    }

    fn distort(&mut self, mut placed: Placed) -> Placed {
        let place = &mut placed.block.place;
        if self.lies(Lie::Overlap) && place.unit >= 64 {
            place.unit -= 64;
        } else if self.lies(Lie::Crooked) {
            place.unit += 1;
        } else if self.lies(Lie::Waste) {
            placed.bytes.0 *= 2;
        } else if self.lies(Lie::Dirty) {
            placed.zero = None;
        } else if self.lies(Lie::Repeated)
            && let Some(old) = self.generations.get(place)
        {
            placed.block.generation = *old;
        }
        placed
    }

    fn place(&mut self, wanted: Wanted, placed: Placed) -> Result<(), String> {
        let placed = self.distort(placed);
        let Block { place, generation } = placed.block;
        let (start, size, bytes) = (place.offset_bytes(), wanted.size.0, placed.bytes.0);
        let memory = self.memories.get(&place.memory).ok_or_else(|| format!("{place:?} lies nowhere"))?;
        must(start + bytes <= memory.bytes, || format!("{place:?} passes its memory's end"))?;
        let unit = if size < PAGE_BYTES { UNIT_BYTES } else { PAGE_BYTES };
        let whole = size.next_multiple_of(unit);
        must(start.is_multiple_of(unit), || format!("{size} bytes begin at {start}"))?;
        must(bytes >= whole && (bytes - whole) * 8 <= whole, || format!("{size} bytes take {bytes}"))?;
        for other in self.standing.values().filter(|other| other.block.place.memory == place.memory) {
            let there = other.block.place.offset_bytes();
            let apart = there + other.bytes <= start || start + bytes <= there;
            must(apart, || format!("{placed:?} overlaps {other:?}"))?;
        }
        must(generation == wanted.generation, || format!("{generation:?} is not what was given"))?;
        let before = self.generations.insert(place, generation);
        must(before.is_none_or(|before| before < generation), || format!("{place:?} repeats {before:?}"))?;
        self.check_zero(&wanted, &placed)?;
        let lines = &mut self.memories.get_mut(&place.memory).expect("found above").lines;
        lines[place.unit as usize..][..(bytes / UNIT_BYTES) as usize].fill(Some(wanted.domain));
        self.standing.insert(place, Standing { block: placed.block, bytes, is_live: true });
        self.placed += 1;
        Ok(())
    }

    /// Whatever an earlier payload may have left must be told: of another domain anywhere in the block, of the same in
    /// the rest of its last page or small block.
    fn check_zero(&mut self, wanted: &Wanted, placed: &Placed) -> Result<(), String> {
        let place = placed.block.place;
        let (start, bytes) = (place.offset_bytes(), placed.bytes.0);
        let zero = placed.zero.clone().map_or(0..0, |zero| zero.range);
        must(zero.is_empty() || (zero.start >= start && zero.end <= start + bytes), || {
            format!("{zero:?} is not in {placed:?}")
        })?;
        let tail_end = start + if bytes < PAGE_BYTES { bytes } else { wanted.size.in_pages().0 };
        for line in start / UNIT_BYTES..(start + bytes) / UNIT_BYTES {
            let Some(left) = self.memories[&place.memory].lines[line as usize] else { continue };
            let line = line * UNIT_BYTES..(line + 1) * UNIT_BYTES;
            let is_other = left != wanted.domain;
            let in_tail = line.end > start + wanted.size.0 && line.end <= tail_end;
            let from = if is_other { line.start } else { line.start.max(start + wanted.size.0) };
            if is_other || in_tail {
                let covered = zero.start <= from && line.end <= zero.end;
                must(covered, || format!("{line:?} keeps {left:?} in {placed:?} for {wanted:?}"))?;
                let crosses = placed.zero.as_ref().is_some_and(|zero| zero.crosses_domains);
                must(!is_other || crosses, || format!("{placed:?} crosses domains and does not say so"))?;
                self.zeroed += 1;
            }
        }
        Ok(())
    }

    fn any(&mut self, is_live: bool) -> Option<Standing> {
        let count = self.standing.values().filter(|standing| standing.is_live == is_live).count();
        let index = self.rng.below(count as u64) as usize;
        self.standing.values().filter(|standing| standing.is_live == is_live).nth(index).copied()
    }

    fn retire(&mut self) -> Result<(), String> {
        let Some(old) = self.any(true) else { return Ok(()) };
        let next = self.next_generation();
        let new = self.arena.retire(old.block, next).map_err(|stale| stale.to_string())?;
        must(new.place == old.block.place && new.generation == next, || format!("{old:?} became {new:?}"))?;
        must(!self.arena.is_live(old.block) && !self.arena.is_live(new), || format!("{old:?} lives on"))?;
        if self.lies(Lie::Early) {
            self.arena.reclaim(new).map_err(|stale| stale.to_string())?;
        }
        self.generations.insert(new.place, next);
        self.standing.insert(new.place, Standing { block: new, is_live: false, ..old });
        self.gone.push(old.block);
        Ok(())
    }

    fn end(&mut self, is_live: bool) -> Result<(), String> {
        let Some(old) = self.any(is_live) else { return Ok(()) };
        self.standing.remove(&old.block.place);
        self.gone.push(old.block);
        if self.lies(Lie::Leak) {
            return Ok(());
        }
        let ended = if is_live { self.arena.free(old.block) } else { self.arena.reclaim(old.block) };
        let freed = ended.map_err(|stale| stale.to_string())?;
        let memory = old.block.place.memory;
        let is_empty = self.standing.keys().all(|place| place.memory != memory);
        let expected = match &self.memories[&memory] {
            Memory { is_own: true, bytes, .. } => Freed::Own(ByteCount(*bytes)),
            _ if is_empty => Freed::SlabEmpty,
            _ => Freed::Block,
        };
        must(freed == expected, || format!("{old:?} ended as {freed:?}, not {expected:?}"))?;
        if matches!(freed, Freed::Own(_)) {
            self.memories.remove(&memory);
        }
        Ok(())
    }

    fn take_surplus(&mut self, kept: usize) -> Result<(), String> {
        if self.lies(Lie::Torn)
            && let Some(index) = self.memories.keys().next().copied()
        {
            return self.returned(index);
        }
        while let Some(index) = self.arena.take_surplus(kept) {
            if self.lies(Lie::Kept) {
                continue;
            }
            self.returned(index)?;
        }
        let empty = self.memories.iter().filter(|(index, memory)| {
            !memory.is_own && self.standing.keys().all(|place| place.memory != **index)
        });
        let empty = empty.count();
        must(empty <= kept, || format!("{empty} empty slabs are kept"))
    }

    fn returned(&mut self, index: MemoryIndex) -> Result<(), String> {
        let has_blocks = self.standing.keys().any(|place| place.memory == index);
        must(!has_blocks, || format!("{index:?} is returned with blocks in it"))?;
        let memory = self.memories.remove(&index).ok_or("a slab that is not there")?;
        self.slabs_returned += 1;
        must(!memory.is_own, || format!("{index:?} is no slab"))
    }

    fn ask_for_what_is_gone(&mut self) -> Result<(), String> {
        let index = self.rng.below(self.gone.len() as u64) as usize;
        let Some(block) = self.gone.get(index).copied() else { return Ok(()) };
        let next = self.next_generation();
        let answers = (self.arena.retire(block, next), self.arena.reclaim(block), self.arena.free(block));
        let stale = matches!(answers, (Err(Stale(_)), Err(Stale(_)), Err(Stale(_))));
        must(stale && !self.arena.is_live(block), || format!("{block:?} is gone, and {answers:?}"))
    }

    fn check_sums(&self) -> Result<(), String> {
        let tally = self.arena.tally();
        let charged: u64 = self.memories.values().map(|memory| memory.bytes).sum();
        let live = self.standing.values().filter(|standing| standing.is_live).count() as u64;
        let limbo = self.standing.len() as u64 - live;
        let standing: u64 = self.standing.values().map(|standing| standing.bytes).sum();
        must(tally.bytes_charged.0 == charged, || format!("{tally:?}, and {charged} bytes are there"))?;
        must((tally.blocks_live, tally.blocks_limbo) == (live, limbo), || {
            format!("{tally:?}: {live}, {limbo}")
        })?;
        must(tally.bytes_used.0 >= standing && tally.bytes_used.0 <= charged, || {
            format!("{tally:?}: {standing}")
        })
    }

    fn step(&mut self, growing: bool) -> Result<(), String> {
        match self.rng.below(100) {
            0..45 if growing => self.allocate()?,
            0..25 => self.allocate()?,
            25..55 => self.retire()?,
            55..80 => self.end(false)?,
            80..88 => self.end(true)?,
            88..94 => self.ask_for_what_is_gone()?,
            _ => {
                let kept = self.rng.below(3) as usize;
                self.take_surplus(kept)?;
            }
        }
        self.check_sums()
    }

    fn run(&mut self, steps: u64) -> Result<(), String> {
        for step in 0..steps {
            self.step(step / 500 % 2 == 0).map_err(|wrong| format!("step {step}: {wrong}"))?;
            if step % 64 == 0 {
                self.arena.audit().map_err(|wrong| format!("step {step}: {wrong}"))?;
            }
        }
        while !self.standing.is_empty() {
            self.end(true)?;
            self.end(false)?;
        }
        self.take_surplus(0)?;
        self.check_sums()?;
        self.arena.audit()?;
        must(self.arena.tally() == Default::default(), || format!("{:?} is left", self.arena.tally()))
    }
}

#[test]
fn given_any_order_of_work_when_every_step_is_compared_with_a_model_then_nothing_overlaps_repeats_or_leaks() {
    let (mut placed, mut returned, mut zeroed) = (0, 0, 0);
    for seed in 1..=60 {
        // Slabs of 256 KiB, of an odd number of pages, and of a MiB.
        let capacity = [16 << 20, (20 << 20) + 4097 * 64, 64 << 20][seed as usize % 3];
        let mut model = Model::new(seed, capacity, Lie::None);
        model.run(4000).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
        placed += model.placed;
        returned += model.slabs_returned;
        zeroed += model.zeroed;
        assert_eq!(model.slabs_made, model.slabs_returned, "seed {seed}");
    }
    assert!(
        placed > 40_000 && returned > 500 && zeroed > 10_000,
        "{placed}, {returned}, {zeroed}: too quiet"
    );
}

#[test]
fn given_the_largest_slabs_when_worked_with_then_the_same_holds() {
    for seed in 1..=2 {
        let mut model = Model::new(seed, 8 << 30, Lie::None);
        model.run(600).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
    }
}

#[test]
fn given_a_planted_lie_when_compared_with_the_model_then_it_is_found() {
    for lie in [
        Lie::Overlap,
        Lie::Repeated,
        Lie::Early,
        Lie::Waste,
        Lie::Crooked,
        Lie::Dirty,
        Lie::Leak,
        Lie::Kept,
        Lie::Torn,
    ] {
        for seed in 1..=5 {
            let found = Model::new(seed, 16 << 20, lie).run(4000);
            assert!(found.is_err(), "{lie:?} was believed with seed {seed}");
        }
    }
}

fn wanted(size: u64, generation: u64) -> Wanted {
    Wanted { size: ByteCount(size), generation: Generation(generation), domain: Domain(0) }
}

fn place(arena: &mut Arena, size: u64, generation: u64) -> Placed {
    match arena.allocate(&wanted(size, generation)) {
        Room::Placed(placed) => placed,
        other => panic!("{other:?}"),
    }
}

#[test]
fn given_an_empty_arena_when_asked_then_it_says_what_to_make_first() {
    let mut arena = Arena::new(Geometry::of_capacity(ByteCount(4 << 30)));
    assert_eq!(arena.allocate(&wanted(1, 1)), Room::NeedsSlab(ByteCount(64 << 20)));
    assert_eq!(arena.allocate(&wanted((32 << 20) + 1, 1)), Room::NeedsOwn(ByteCount((32 << 20) + 4096)));
    let own = arena.add_own(&wanted((32 << 20) + 1, 1)).expect("room");
    assert_eq!(arena.charged(), ByteCount((32 << 20) + 4096));
    let limbo = arena.retire(own.block, Generation(2)).expect("live");
    assert_eq!(arena.reclaim(own.block), Err(Stale(own.block)), "its name changed");
    assert_eq!(arena.reclaim(limbo), Ok(Freed::Own(ByteCount((32 << 20) + 4096))));
    assert_eq!(arena.charged(), ByteCount::ZERO);
}

#[test]
fn given_a_node_without_slabs_when_asked_then_every_payload_has_memory_of_its_own() {
    let mut arena = Arena::new(Geometry::of_capacity(ByteCount(1 << 20)));
    assert_eq!(arena.allocate(&wanted(1, 1)), Room::NeedsOwn(ByteCount(4096)));
}

#[test]
fn given_as_many_memories_as_there_may_be_when_asked_for_more_then_it_is_full() {
    let mut arena = Arena::new(Geometry::of_capacity(ByteCount(1 << 20)));
    let mut last = None;
    for generation in 1..=MEMORIES_MAX as u64 {
        last = arena.add_own(&wanted(1, generation));
        assert!(last.is_some());
    }
    let next = MEMORIES_MAX as u64 + 1;
    assert_eq!((arena.allocate(&wanted(1, next)), arena.add_own(&wanted(1, next))), (Room::Full, None));
    assert_eq!(arena.add_slab(), None);
    arena.free(last.expect("made").block).expect("live");
    assert!(arena.add_own(&wanted(1, next)).is_some(), "and what was freed is used again");
}

#[test]
fn given_a_retired_block_when_others_are_placed_then_its_place_waits_for_the_reclaim() {
    let mut arena = Arena::new(Geometry::of_capacity(ByteCount(16 << 20)));
    arena.add_slab().expect("room");
    let old = place(&mut arena, 128 << 10, 1);
    let limbo = arena.retire(old.block, Generation(2)).expect("live");
    let other = place(&mut arena, 128 << 10, 3);
    assert_ne!(other.block.place, old.block.place);
    assert_eq!(arena.allocate(&wanted(128 << 10, 4)), Room::NeedsSlab(ByteCount(256 << 10)));
    assert_eq!(arena.reclaim(limbo), Ok(Freed::Block));
    let new = place(&mut arena, 128 << 10, 4);
    assert_eq!(new.block.place, old.block.place);
    assert!(arena.is_live(new.block) && !arena.is_live(old.block) && !arena.is_live(limbo));
}

#[test]
fn given_a_slab_that_fills_when_blocks_are_placed_then_pages_are_touched_ahead_and_not_all_at_once() {
    let mut arena = Arena::new(Geometry::of_capacity(ByteCount(4 << 30)));
    assert!(!arena.wants_slab_ahead(), "a session that writes nothing gets nothing");
    let (_, mut touched) = arena.add_slab().expect("room");
    assert_eq!(touched, 2 << 20, "not the whole slab for a first small payload");
    let (mut orders, mut used) = (0, 0);
    for generation in 1..=64 {
        assert!(touched > used, "{used} bytes are used, {touched} touched");
        let placed = place(&mut arena, 1 << 20, generation);
        if let Some(to) = placed.prefault_to {
            assert!(to > touched && to <= 64 << 20);
            (touched, orders) = (to, orders + 1);
        }
        used = placed.block.place.offset_bytes() + placed.bytes.0;
    }
    assert_eq!((touched, used), (64 << 20, 64 << 20));
    assert!((4..=6).contains(&orders), "{orders} orders");
    assert!(arena.wants_slab_ahead());
}

#[test]
#[should_panic(expected = "generations of a shard only grow")]
fn given_a_generation_that_was_given_before_when_placed_then_it_panics() {
    let mut arena = Arena::new(Geometry::of_capacity(ByteCount(16 << 20)));
    arena.add_slab().expect("room");
    place(&mut arena, 1, 7);
    place(&mut arena, 1, 7);
}
