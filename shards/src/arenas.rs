//! Memory of native sessions on one shard: whose slabs there are, what lies in them, and when each may go back.
//!
//! ```text
//!   Placed: at once     NeedsSlab / NeedsOwn: charged -> Make -> Made -> placed     (`flow::arena` asks and answers)
//!   a slab:   minted -> made -> in the books of its session's `ledger::Arena` -> empty -> Return -> Returned: charge ends
//!   a writer: Open -> Closed: places nothing more, gives nothing back -> Gone: what is empty goes back
//! ```
//! - One [`Arena`] a session; it outlives its session while payloads lie in it. Slabs are named by [`SlabId`], never twice
//!   in a start.
//! - Charged from before `Make` until `Returned`, in whole slabs: a payload in a slab has no charge of its own.
//! - Nothing of a closed session is given back before its process is proven dead: it could still write there.
//!
//! Limits: [`limits::SLABS_PER_SESSION_MAX`] slabs and memories of payloads' own a session, those on their way back included.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use payload_ledger::SlotKey;
use payload_ledger::arena::{
    Arena, Block as BookBlock, Freed, Geometry, MemoryIndex, Place, Placed, Room, Wanted,
};
use payload_ledger::list::Ends;
use payload_types::reply::ArenaStats;
use payload_types::{Block, ByteCount, Generation, SessionId, ShardIndex, SlabId, limits};

/// What is known of a session's process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Writer {
    /// It writes, and asks for more.
    Open,
    /// Its socket is closed, and it may live on.
    Closed,
    /// It is dead.
    Gone,
}

/// One session's memory here.
#[derive(Debug)]
struct SessionArena {
    books: Arena,
    /// By the number under which the books know a memory.
    slabs: Vec<Option<SlabId>>,
    writer: Writer,
    /// Makes the next slab.
    making: Option<SlotKey>,
    /// Requests that wait for it.
    parked: Ends,
    /// Slabs minted and not returned.
    slab_count: usize,
}

/// How far a slab has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// An operation waits for it.
    Making,
    /// In the books.
    Used(MemoryIndex),
    /// Out of them, and its writer may still live.
    Free,
    /// Given back.
    Returning,
}

/// One slab, from when it is minted until it was returned.
#[derive(Clone, Copy, Debug)]
struct Slab {
    session: SessionId,
    stage: Stage,
    bytes: ByteCount,
    /// For one payload.
    own: bool,
    /// The kernel makes it immutable at Commit.
    isolated: bool,
}

/// A placed payload.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct At {
    /// Where.
    pub block: Block,
    /// As the books said it.
    pub placed: Placed,
}

/// What an allocation is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// A place.
    At(At),
    /// A slab of so many bytes first.
    NeedsSlab(ByteCount),
    /// Memory of its own, of so many bytes, first.
    NeedsOwn(ByteCount),
    /// The session has as much as it may have.
    Full,
    /// The session has closed.
    Closed,
}

/// See the module.
#[derive(Debug)]
pub struct Arenas {
    geometry: Geometry,
    shard: ShardIndex,
    shard_count: u16,
    minted: u32,
    sessions: BTreeMap<SessionId, SessionArena>,
    slabs: BTreeMap<SlabId, Slab>,
    /// Slabs that nobody needs any more, to be told of.
    returns: VecDeque<SlabId>,
    /// Sessions with an empty slab in their books.
    spare: BTreeSet<SessionId>,
    charged: ByteCount,
}

impl Arenas {
    /// None yet, of a node with this much RAM.
    pub fn new(shard: ShardIndex, shard_count: u16, capacity: ByteCount) -> Self {
        Self {
            geometry: Geometry::of_capacity(capacity),
            shard,
            shard_count,
            minted: 0,
            sessions: BTreeMap::new(),
            slabs: BTreeMap::new(),
            returns: VecDeque::new(),
            spare: BTreeSet::new(),
            charged: ByteCount::ZERO,
        }
    }

    /// Bytes charged for slabs, those being made or returned included.
    pub fn charged(&self) -> ByteCount {
        self.charged
    }

    fn of(&mut self, session: SessionId) -> &mut SessionArena {
        let geometry = self.geometry;
        self.sessions.entry(session).or_insert_with(|| SessionArena {
            books: Arena::new(geometry),
            slabs: Vec::new(),
            writer: Writer::Open,
            making: None,
            parked: Ends::default(),
            slab_count: 0,
        })
    }

    /// Places a payload in the session's slabs, or says what that takes first.
    pub fn place(&mut self, session: SessionId, wanted: &Wanted) -> Answer {
        let arena = self.of(session);
        if arena.writer != Writer::Open {
            return Answer::Closed;
        }
        let is_full = arena.slab_count >= limits::SLABS_PER_SESSION_MAX;
        match arena.books.allocate(wanted) {
            Room::Placed(placed) => {
                let slab = arena.slabs[usize::from(placed.block.place.memory.0)];
                let slab = slab.expect("a placed block lies in a slab that was made");
                Answer::At(At { block: Block { slab, unit: placed.block.place.unit }, placed })
            }
            Room::Full => Answer::Full,
            Room::NeedsSlab(_) | Room::NeedsOwn(_) if is_full => Answer::Full,
            Room::NeedsSlab(bytes) => Answer::NeedsSlab(bytes),
            Room::NeedsOwn(bytes) => Answer::NeedsOwn(bytes),
        }
    }

    /// True when one more memory may be made for an open session.
    pub fn may_make(&mut self, session: SessionId) -> bool {
        let arena = self.of(session);
        arena.writer == Writer::Open && arena.slab_count < limits::SLABS_PER_SESSION_MAX
    }

    /// Names a new slab, and holds its place. `None`: this start has used up all names.
    pub fn mint(
        &mut self,
        session: SessionId,
        bytes: ByteCount,
        own: bool,
        isolated: bool,
    ) -> Option<SlabId> {
        let slab = SlabId::minted(self.shard, self.shard_count, self.minted)?;
        self.minted += 1;
        self.of(session).slab_count += 1;
        self.slabs.insert(slab, Slab { session, stage: Stage::Making, bytes, own, isolated });
        Some(slab)
    }

    /// The slab's bytes are charged from here on.
    pub fn charge(&mut self, slab: SlabId) {
        self.charged.0 += self.slabs[&slab].bytes.0;
    }

    /// A slab came to nothing before anybody had it. `charged`: its charge ends here.
    pub fn unmake(&mut self, slab: SlabId, charged: bool) {
        let gone = self.slabs.remove(&slab).expect("minted, and not returned");
        if charged {
            self.charged.0 -= gone.bytes.0;
        }
        self.end_one(gone.session);
    }

    fn end_one(&mut self, session: SessionId) {
        self.sessions.get_mut(&session).expect("an arena stays while it has slabs").slab_count -= 1;
        self.forget_if_over(session);
    }

    /// A slab that payloads share was made. How far to touch its pages; `None`: its writer is no more, and it goes back.
    pub fn made(&mut self, slab: SlabId) -> Option<u64> {
        let session = self.slabs[&slab].session;
        let arena = self.of(session);
        if arena.writer != Writer::Open {
            self.leave(slab);
            return None;
        }
        let (memory, prefault_to) = arena.books.add_slab().expect("fewer than the books allow");
        Self::enter(&mut arena.slabs, memory, slab);
        self.slabs.get_mut(&slab).expect("just seen").stage = Stage::Used(memory);
        self.spare.insert(session);
        Some(prefault_to)
    }

    /// A payload's own memory was made. Where it lies; `None`: its writer is no more, and it goes back.
    pub fn made_own(&mut self, slab: SlabId, wanted: &Wanted) -> Option<At> {
        let session = self.slabs[&slab].session;
        let arena = self.of(session);
        if arena.writer != Writer::Open {
            self.leave(slab);
            return None;
        }
        let placed = arena.books.add_own(wanted).expect("fewer than the books allow");
        Self::enter(&mut arena.slabs, placed.block.place.memory, slab);
        self.slabs.get_mut(&slab).expect("just seen").stage = Stage::Used(placed.block.place.memory);
        Some(At { block: Block { slab, unit: 0 }, placed })
    }

    fn enter(slabs: &mut Vec<Option<SlabId>>, memory: MemoryIndex, slab: SlabId) {
        let number = usize::from(memory.0);
        if slabs.len() <= number {
            slabs.resize(number + 1, None);
        }
        slabs[number] = Some(slab);
    }

    /// Nobody needs a slab that is out of the books, or never was in them: it goes back, as soon as nobody can write to it
    /// unseen.
    pub fn leave(&mut self, slab: SlabId) {
        let book = self.slabs.get_mut(&slab).expect("not returned yet");
        book.stage = Stage::Free;
        if self.sessions[&book.session].writer != Writer::Closed {
            self.give_back(slab);
        }
    }

    /// Nobody needs a slab that is out of the books, or never was in them: it goes back.
    fn give_back(&mut self, slab: SlabId) {
        self.slabs.get_mut(&slab).expect("not returned yet").stage = Stage::Returning;
        self.returns.push_back(slab);
    }

    fn book_block(&self, block: Block, generation: Generation) -> BookBlock {
        let Stage::Used(memory) = self.slabs[&block.slab].stage else {
            unreachable!("a block's slab is in the books: {block:?}")
        };
        BookBlock { place: Place { memory, unit: block.unit }, generation }
    }

    /// A payload leaves its block, which goes on under the name `next` until [`reclaim`](Self::reclaim).
    ///
    /// # Panics
    /// When it does not live there.
    pub fn retire(&mut self, block: Block, generation: Generation, next: Generation) {
        let named = self.book_block(block, generation);
        let arena = self.sessions.get_mut(&self.slabs[&block.slab].session).expect("it has slabs");
        arena.books.retire(named, next).expect("a current replica's block lives");
    }

    /// Nobody uses a retired block any more.
    ///
    /// # Panics
    /// When it is not in limbo.
    pub fn reclaim(&mut self, block: Block, next: Generation, keep: usize) {
        let named = self.book_block(block, next);
        let session = self.slabs[&block.slab].session;
        let arena = self.sessions.get_mut(&session).expect("it has slabs");
        let freed = arena.books.reclaim(named).expect("a retired block is in limbo until now");
        self.freed(session, block.slab, freed, keep);
    }

    fn freed(&mut self, session: SessionId, slab: SlabId, freed: Freed, keep: usize) {
        match freed {
            Freed::Block => {}
            Freed::SlabEmpty => {
                self.spare.insert(session);
                self.trim(session, keep);
            }
            Freed::Own(_) => {
                let arena = self.sessions.get_mut(&session).expect("it has slabs");
                let book = self.slabs.get_mut(&slab).expect("not returned yet");
                if let Stage::Used(memory) = book.stage {
                    arena.slabs[usize::from(memory.0)] = None;
                }
                self.leave(slab);
            }
        }
    }

    /// Gives a session's empty slabs back, but for `keep` while it is open; all once it is gone.
    pub fn trim(&mut self, session: SessionId, keep: usize) {
        let Some(arena) = self.sessions.get_mut(&session) else { return };
        let keep = match arena.writer {
            Writer::Open => keep,
            Writer::Closed => return,
            Writer::Gone => 0,
        };
        let mut out = Vec::new();
        // Bounded by the slabs that a session may have.
        while let Some(memory) = arena.books.take_surplus(keep) {
            out.push(arena.slabs[usize::from(memory.0)].take().expect("the books know slabs that were made"));
        }
        if keep == 0 {
            self.spare.remove(&session);
        }
        for slab in out {
            self.give_back(slab);
        }
    }

    /// Gives every empty slab back: memory is short.
    pub fn trim_all(&mut self) {
        let spare: Vec<_> = self.spare.iter().copied().collect();
        for session in spare {
            self.trim(session, 0);
        }
    }

    /// True while there is something for [`next_return`](Self::next_return).
    pub fn has_returns(&self) -> bool {
        !self.returns.is_empty()
    }

    /// A slab that its session's thread has to be told to take back.
    pub fn next_return(&mut self) -> Option<(SlabId, SessionId)> {
        let slab = self.returns.pop_front()?;
        Some((slab, self.slabs[&slab].session))
    }

    /// A slab's memory is free: its charge is over. `None`: none was being returned.
    pub fn returned(&mut self, slab: SlabId) -> Option<ByteCount> {
        let bytes = self.slabs.get(&slab).filter(|slab| slab.stage == Stage::Returning)?.bytes;
        self.unmake(slab, true);
        Some(bytes)
    }

    /// The session's socket is closed: who waits for its memory waits in vain. The list of those, and what they joined.
    pub fn close(&mut self, session: SessionId) -> Option<(Ends, SlotKey)> {
        let arena = self.sessions.get_mut(&session)?;
        arena.writer = arena.writer.max(Writer::Closed);
        let parked = std::mem::take(&mut arena.parked);
        arena.making.map(|making| (parked, making))
    }

    /// The session's process is dead: what nobody needs of its memory goes back.
    pub fn gone(&mut self, session: SessionId) {
        let Some(arena) = self.sessions.get_mut(&session) else { return };
        arena.writer = Writer::Gone;
        let freed = |slab: &Slab| slab.session == session && slab.stage == Stage::Free;
        let freed: Vec<_> = self.slabs.iter().filter(|(_, slab)| freed(slab)).map(|(id, _)| *id).collect();
        for slab in freed {
            self.give_back(slab);
        }
        self.trim(session, 0);
        self.forget_if_over(session);
    }

    fn forget_if_over(&mut self, session: SessionId) {
        let Some(arena) = self.sessions.get(&session) else { return };
        if arena.writer == Writer::Gone && arena.slab_count == 0 && arena.making.is_none() {
            self.sessions.remove(&session);
            self.spare.remove(&session);
        }
    }

    /// What makes the session's next slab.
    pub fn making(&self, session: SessionId) -> Option<SlotKey> {
        self.sessions.get(&session)?.making
    }

    /// An operation makes the session's next slab, or none does any more.
    pub fn set_making(&mut self, session: SessionId, op: Option<SlotKey>) {
        self.of(session).making = op;
        self.forget_if_over(session);
    }

    /// The requests that wait for the session's next slab.
    pub fn parked(&mut self, session: SessionId) -> Option<&mut Ends> {
        self.sessions.get_mut(&session).map(|arena| &mut arena.parked)
    }

    /// True when the session will soon need one more slab.
    pub fn wants_slab_ahead(&self, session: SessionId) -> bool {
        let Some(arena) = self.sessions.get(&session) else { return false };
        let may = arena.making.is_none() && arena.slab_count < limits::SLABS_PER_SESSION_MAX;
        may && arena.writer == Writer::Open && arena.books.wants_slab_ahead()
    }

    /// Bytes of a slab that payloads share.
    pub fn slab_bytes(&self) -> ByteCount {
        self.geometry.slab_bytes()
    }

    /// True for a slab in the books that payloads share.
    pub fn is_shared(&self, slab: SlabId) -> bool {
        self.slabs.get(&slab).is_some_and(|slab| !slab.own && matches!(slab.stage, Stage::Used(_)))
    }

    /// Whose slab it is.
    ///
    /// # Panics
    /// When it was returned.
    pub fn writer_of(&self, slab: SlabId) -> SessionId {
        self.slabs[&slab].session
    }

    /// True when the kernel makes the slab immutable at Commit.
    pub fn is_isolated(&self, slab: SlabId) -> bool {
        self.slabs.get(&slab).is_some_and(|slab| slab.isolated)
    }

    /// For reports; the payloads are the table's to count.
    pub fn stats(&self) -> ArenaStats {
        let mut stats = ArenaStats {
            sessions: self.sessions.len() as u64,
            charged_bytes: self.charged.0,
            ..ArenaStats::default()
        };
        for slab in self.slabs.values() {
            match slab.stage {
                Stage::Used(_) if slab.own => stats.own += 1,
                Stage::Used(_) => stats.slabs += 1,
                Stage::Returning => stats.returning += 1,
                Stage::Making | Stage::Free => {}
            }
        }
        stats.limbo_blocks = self.sessions.values().map(|arena| arena.books.tally().blocks_limbo).sum();
        stats
    }

    /// Walks everything, for tests and the simulator.
    ///
    /// # Errors
    /// What does not add up.
    pub fn audit(&self, live: &BTreeMap<Block, Generation>) -> Result<(), String> {
        let mut counted = BTreeMap::<SessionId, usize>::new();
        for slab in self.slabs.values() {
            *counted.entry(slab.session).or_default() += 1;
        }
        let mut blocks_live = 0;
        for (session, arena) in &self.sessions {
            arena.books.audit().map_err(|wrong| format!("session {session}: {wrong}"))?;
            let count = counted.get(session).copied().unwrap_or_default();
            if count != arena.slab_count {
                return Err(format!("session {session}: {count} slabs, {} are told", arena.slab_count));
            }
            blocks_live += arena.books.tally().blocks_live;
        }
        for (block, generation) in live {
            let Some(Slab { session, stage: Stage::Used(memory), .. }) = self.slabs.get(&block.slab) else {
                return Err(format!("{block:?} lies in no slab of the books"));
            };
            let named =
                BookBlock { place: Place { memory: *memory, unit: block.unit }, generation: *generation };
            if !self.sessions[session].books.is_live(named) {
                return Err(format!("{block:?} does not live as {generation:?}"));
            }
        }
        if blocks_live != live.len() as u64 {
            return Err(format!("{blocks_live} blocks live in the books, {} payloads are there", live.len()));
        }
        Ok(())
    }

    /// What is known of a session's process; `None` where it has no memory here. For the simulator.
    pub fn writer(&self, session: SessionId) -> Option<Writer> {
        self.sessions.get(&session).map(|arena| arena.writer)
    }
}
