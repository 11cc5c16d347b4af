//! Memory of native sessions: allocations in slabs, making and returning slabs, and the end of blocks.
//!
//! ```text
//!   Allocate(Arena) --> Placed ------------------------------------------> answered at once (zeroed first where it must be)
//!        |-> NeedsSlab --> op MakeSlab: charge or wait -> Make -> Made --> who waited is handled again, first come first
//!        `-> NeedsOwn, Sealed --> op Allocate: charge or wait -> Make -> Made --> answered
//!   a replica dropped --> retired, in limbo while leases or copies name it --> reclaimed --> an empty slab: Return -> Returned
//! ```
//! Whoever waits for a slab stands in its session's list until its deadline (30 s where it has none), as one that joined
//! the operation: what that is told is told to it.

use payload_ledger::SlotKey;
use payload_ledger::arena::{Domain, Wanted, Zero};
use payload_types::effect::{Effect, ReplicaRef};
use payload_types::event::DriverError;
use payload_types::request::{Allocate, Request};
use payload_types::slab::{SlabAction, SlabDone, SlabOp};
use payload_types::{
    Block, ByteCount, ErrorKind, Generation, Memory, OpId, PayloadError, SessionId, SlabId, Tier, limits,
};

use crate::arenas::{Answer as Room, At};
use crate::flow::copy::refusal_kind;
use crate::op::{Class, Kind, Op, op_id, slot_key};
use crate::parked::{Caller, Why};
use crate::shard::{Answer, Shard, Step};

/// Empty slabs that an open session keeps, so that the next payload after the last one finds memory.
const EMPTY_KEPT: usize = 1;

/// An operation that begins a slab ahead of demand waits so long for its bytes at most.
const AHEAD_WAIT_MS: u64 = 500;

impl Shard {
    /// Allocates in the asking session's slabs.
    pub(crate) fn allocate_in_slab(
        &mut self,
        step: &mut Step<'_>,
        caller: Caller,
        request: Allocate,
    ) -> Answer {
        match self.try_slab(step, &caller, &request) {
            Ok(None) => None,
            Ok(Some(op)) => self.park_for_slab(step, op, caller, request),
            Err(error) => Some(Err(error)),
        }
    }

    /// `Some`: this operation makes the slab that it takes.
    fn try_slab(
        &mut self,
        step: &mut Step<'_>,
        caller: &Caller,
        request: &Allocate,
    ) -> Result<Option<SlotKey>, PayloadError> {
        let Some(session) = request.owner.session().filter(|_| request.tier == Tier::Ram) else {
            return Err(PayloadError::invalid(
                "memory in slabs is for native sessions, on tier RAM; allocate a segment",
            ));
        };
        self.check_capacity(request.tier, request.size)?;
        self.check_allocation(request)?;
        let wanted = self.wanted(request.size, request.key.namespace.0);
        let room = match request.memory {
            Memory::Sealed if self.arenas.may_make(session) => Room::NeedsOwn(request.size.in_pages()),
            // The books are asked for the reason.
            Memory::Sealed => match self.arenas.place(session, &wanted) {
                Room::Closed => Room::Closed,
                _ => Room::Full,
            },
            Memory::Arena | Memory::Segment => self.arenas.place(session, &wanted),
        };
        match room {
            Room::At(at) => {
                self.placed(step, caller, request, (session, wanted.generation), at)?;
                Ok(None)
            }
            Room::NeedsOwn(bytes) => {
                self.make_own(step, caller, request, session, bytes)?;
                Ok(None)
            }
            Room::NeedsSlab(bytes) => match self.arenas.making(session) {
                Some(op) => Ok(Some(op)),
                None => {
                    self.check_wait(Tier::Ram, bytes)?;
                    let until = caller.deadline;
                    let until =
                        until.unwrap_or(step.now.monotonic.plus_millis(limits::ALLOCATE_WAIT_MS_DEFAULT));
                    self.make_slab(step, session, Class::Request, until).map(Some)
                }
            },
            Room::Full => Err(PayloadError::exhausted(format!(
                "this session has {} slabs and payloads with memory of their own on this shard, which is as many as it may; delete some, or leases of them are held: release those",
                limits::SLABS_PER_SESSION_MAX
            ))),
            Room::Closed => Err(closed()),
        }
    }

    /// What a payload of this size asks of the books, under a new generation.
    fn wanted(&mut self, size: ByteCount, namespace: u32) -> Wanted {
        Wanted { size, generation: self.mint_generation(), domain: Domain(u64::from(namespace)) }
    }

    /// A place was found: the payload is there, unless its bytes have to be zeroed first.
    fn placed(
        &mut self,
        step: &mut Step<'_>,
        caller: &Caller,
        request: &Allocate,
        (session, generation): (SessionId, Generation),
        At { block, placed }: At,
    ) -> Result<(), PayloadError> {
        let reply_to = caller.reply_to.expect("only clients allocate");
        let replica = ReplicaRef {
            tier: Tier::Ram,
            id: request.key.id,
            generation,
            size: request.size,
            extent: None,
            block: Some(block),
        };
        // Within one domain what is left in the block's tail is its writer's own.
        let zero = placed.zero.filter(|zero| zero.crosses_domains);
        let entered = match &zero {
            Some(_) => self.check_slot(Class::Request),
            None => Ok(()),
        };
        let slot = match entered.and_then(|()| self.enter(request)) {
            Ok(slot) => slot,
            Err(error) => {
                // Nobody was told of it.
                self.end_block(block, generation);
                return Err(error);
            }
        };
        if let Some(to) = placed.prefault_to {
            self.tell(step, session, block.slab, SlabAction::Prefault { to: ByteCount(to) });
        }
        match zero {
            None => self.show_allocated(step, slot, reply_to, replica),
            Some(Zero { range, .. }) => {
                let kind = Kind::Allocate { reply_to, deadline: caller.deadline, replica };
                let op = self.ops.start(Op::new(slot, Class::Request, kind));
                self.table.links(slot).op = Some(op);
                let bytes = ByteCount(range.end - range.start);
                self.ask_slab(step, op, session, block.slab, SlabAction::Zero { offset: range.start, bytes });
            }
        }
        if self.arenas.wants_slab_ahead(session) {
            self.make_ahead(step, session);
        }
        Ok(())
    }

    /// Begins memory of its own for a payload.
    fn make_own(
        &mut self,
        step: &mut Step<'_>,
        caller: &Caller,
        request: &Allocate,
        session: SessionId,
        bytes: ByteCount,
    ) -> Result<(), PayloadError> {
        self.check_slot(Class::Request)?;
        self.check_wait(Tier::Ram, bytes)?;
        let isolated = request.memory == Memory::Sealed;
        let slot = self.enter(request)?;
        let Some(slab) = self.arenas.mint(session, bytes, true, isolated) else {
            self.table.remove(slot);
            return Err(no_names());
        };
        let replica = ReplicaRef {
            tier: Tier::Ram,
            id: request.key.id,
            // It gets another one when it is there: those of a session's books only grow.
            generation: self.mint_generation(),
            size: request.size,
            extent: None,
            block: Some(Block { slab, unit: 0 }),
        };
        let reply_to = caller.reply_to.expect("only clients allocate");
        let kind = Kind::Allocate { reply_to, deadline: caller.deadline, replica };
        let op = self.ops.start(Op::new(slot, Class::Request, kind));
        self.table.links(slot).op = Some(op);
        let until = caller.deadline;
        let until = until.unwrap_or(step.now.monotonic.plus_millis(limits::ALLOCATE_WAIT_MS_DEFAULT));
        if self.charge_or_wait(step, op, Tier::Ram, bytes, Some(until)) {
            self.create(step, op_id(op), replica);
        }
        Ok(())
    }

    /// A payload's own memory is charged: has it made.
    pub(crate) fn create_own(&mut self, step: &mut Step<'_>, op: OpId, replica: ReplicaRef, slab: SlabId) {
        self.arenas.charge(slab);
        let (session, isolated) = (self.arenas.writer_of(slab), self.arenas.is_isolated(slab));
        let action = SlabAction::Make { bytes: replica.size.in_pages(), isolated };
        self.ask_slab(step, slot_key(op), session, slab, action);
    }

    /// Begins a slab for a session.
    fn make_slab(
        &mut self,
        step: &mut Step<'_>,
        session: SessionId,
        class: Class,
        until: payload_types::Monotonic,
    ) -> Result<SlotKey, PayloadError> {
        self.check_slot(class)?;
        let bytes = self.arenas.slab_bytes();
        let slab = self.arenas.mint(session, bytes, false, false).ok_or_else(no_names)?;
        let kind = Kind::MakeSlab { session, slab, bytes };
        let op = self.ops.start(Op::new(SlotKey::NOWHERE, class, kind));
        self.arenas.set_making(session, Some(op));
        if self.charge_or_wait(step, op, Tier::Ram, bytes, Some(until)) {
            self.slab_charged(step, op);
        }
        Ok(op)
    }

    /// Begins a slab before anybody has to wait for it, while this shard's share of the tier has room to spare.
    fn make_ahead(&mut self, step: &mut Step<'_>, session: SessionId) {
        let capacity = self.config.capacity[Tier::Ram].unwrap_or_default().0;
        let share = capacity / u64::from(self.config.shard_count) / 4 * 3;
        let used = self.accounts[Tier::Ram].charged().0 + self.arenas.slab_bytes().0;
        if used <= share && !self.budget[Tier::Ram].on {
            let until = step.now.monotonic.plus_millis(AHEAD_WAIT_MS);
            // Without a slot nobody makes it ahead; who needs it says so.
            drop(self.make_slab(step, session, Class::Upkeep, until));
        }
    }

    /// A slab's bytes are charged: has it made.
    pub(crate) fn slab_charged(&mut self, step: &mut Step<'_>, op: SlotKey) {
        let Some(Op { kind: Kind::MakeSlab { session, slab, bytes }, .. }) = self.ops.get(op) else { return };
        let (session, slab, bytes) = (*session, *slab, *bytes);
        self.arenas.charge(slab);
        self.ask_slab(step, op, session, slab, SlabAction::Make { bytes, isolated: false });
    }

    /// Ends the making of a slab and wakes who waits for it.
    pub(crate) fn end_making(&mut self, op: SlotKey, failure: Option<&PayloadError>) {
        let ended = self.ops.end(op);
        let Kind::MakeSlab { session, .. } = ended.kind else { unreachable!("the caller saw the kind") };
        if let Some(parked) = self.arenas.parked(session) {
            self.parked.wake(parked, Some((op, failure)));
        }
        self.arenas.set_making(session, None);
    }

    /// No room for a slab: who waits for it is told so.
    pub(crate) fn slab_refused(&mut self, op: SlotKey, error: &PayloadError) {
        if let Some(Op { kind: Kind::MakeSlab { slab, .. }, .. }) = self.ops.get(op) {
            let slab = *slab;
            self.end_making(op, Some(error));
            self.arenas.unmake(slab, false);
        }
    }

    /// Lets an allocation wait for the slab that `op` makes.
    fn park_for_slab(
        &mut self,
        step: &mut Step<'_>,
        op: SlotKey,
        mut caller: Caller,
        request: Allocate,
    ) -> Answer {
        if !self.parked.has_room(false) {
            return Some(Err(PayloadError::exhausted(format!(
                "{} requests wait on this shard already; try again later",
                limits::REQUESTS_PER_SHARD_MAX
            ))));
        }
        let wait_end = step.now.monotonic.plus_millis(limits::ALLOCATE_WAIT_MS_DEFAULT);
        let deadline = *caller.deadline.get_or_insert(wait_end);
        self.prolong_wait(step.now.monotonic, op, &caller);
        let session = request.owner.session().expect("only sessions wait for slabs");
        let ends = self.arenas.parked(session).expect("its slab is being made");
        let request = Request::Allocate(request);
        // One that was given up is over in a moment, and failed: whoever waits longer begins anew then.
        let given_up = self.ops.get(op).and_then(|op| op.wait).is_some_and(|wait| wait.cancelled);
        let why = if given_up { Why::Queues } else { Why::Joins(op) };
        let key = self.parked.add(ends, SlotKey::NOWHERE, why, caller, request);
        let timer = self.wheel.arm(deadline, crate::shard::Timer::Parked(key));
        self.parked.get_mut(key).expect("just added").timer = timer;
        None
    }

    /// The session thread finished something.
    pub(crate) fn slab_done(&mut self, step: &mut Step<'_>, done: SlabDone) {
        match done {
            SlabDone::Made { op, result } => match self.ops.get(slot_key(op)).map(|op| &op.kind) {
                Some(Kind::MakeSlab { session, slab, bytes }) => {
                    let parts = (*session, *slab, *bytes);
                    self.slab_made(step, slot_key(op), parts, result);
                }
                Some(Kind::Allocate { .. }) => self.own_made(step, op, result),
                _ => {}
            },
            SlabDone::Zeroed { op, result } => self.block_zeroed(step, op, result),
            SlabDone::Frozen { op, result } => self.commit_sealed(step, op, result),
            SlabDone::StillWritable { op } => self.commit_still_writable(step, op),
            SlabDone::Returned { slab, .. } => {
                if let Some(bytes) = self.arenas.returned(slab) {
                    self.release_charge(Tier::Ram, bytes);
                }
            }
        }
    }

    fn slab_made(
        &mut self,
        step: &mut Step<'_>,
        op: SlotKey,
        (session, slab, bytes): (SessionId, SlabId, ByteCount),
        result: Result<(), DriverError>,
    ) {
        if let Err(error) = result {
            self.release_charge(Tier::Ram, bytes);
            self.end_making(op, Some(&making_error(bytes, &error)));
            self.arenas.unmake(slab, true);
            return;
        }
        let prefault_to = self.arenas.made(slab);
        let failure = closed();
        self.end_making(op, prefault_to.is_none().then_some(&failure));
        if let Some(to) = prefault_to {
            self.tell(step, session, slab, SlabAction::Prefault { to: ByteCount(to) });
        }
    }

    fn own_made(&mut self, step: &mut Step<'_>, op: OpId, result: Result<(), DriverError>) {
        let Some(Op { payload: slot, kind: Kind::Allocate { reply_to, deadline, replica }, .. }) =
            self.ops.get(slot_key(op))
        else {
            return;
        };
        let (slot, reply_to, deadline, mut replica) = (*slot, *reply_to, *deadline, *replica);
        let slab = replica.block.expect("only what lies in slabs is made so").slab;
        if let Err(error) = result {
            self.release_charge(Tier::Ram, replica.size.in_pages());
            self.arenas.unmake(slab, true);
            return self.allocation_failed(step, op, making_error(replica.size, &error));
        }
        if deadline.is_some_and(|deadline| deadline < step.now.monotonic) {
            self.arenas.leave(slab);
            return self.allocation_failed(step, op, late());
        }
        let wanted = self.wanted(replica.size, self.table.at(slot).key.namespace.0);
        replica.generation = wanted.generation;
        let Some(_) = self.arenas.made_own(slab, &wanted) else {
            return self.allocation_failed(step, op, closed());
        };
        if !self.arenas.is_isolated(slab) {
            let session = self.arenas.writer_of(slab);
            self.tell(step, session, slab, SlabAction::Prefault { to: replica.size.in_pages() });
        }
        self.end_op(slot_key(op), None);
        self.show_allocated(step, slot, reply_to, replica);
    }

    fn block_zeroed(&mut self, step: &mut Step<'_>, op: OpId, result: Result<(), DriverError>) {
        let Some(Op { payload: slot, kind: Kind::Allocate { reply_to, deadline, replica }, .. }) =
            self.ops.get(slot_key(op))
        else {
            return;
        };
        let (slot, reply_to, deadline, replica) = (*slot, *reply_to, *deadline, *replica);
        let is_late = deadline.is_some_and(|deadline| deadline < step.now.monotonic);
        let failure = match result {
            Err(error) => Some(making_error(replica.size, &error)),
            Ok(()) => is_late.then(late),
        };
        if let Some(error) = failure {
            self.end_block(replica.block.expect("only blocks are zeroed"), replica.generation);
            return self.allocation_failed(step, op, error);
        }
        self.end_op(slot_key(op), None);
        self.show_allocated(step, slot, reply_to, replica);
    }

    /// A block that no reader was told of is free again.
    fn end_block(&mut self, block: Block, generation: Generation) {
        let next = self.mint_generation();
        self.arenas.retire(block, generation, next);
        self.block_freed(block, next);
    }

    /// Takes a replica out of its block: what names it now finds nothing there. The block's new generation.
    pub(crate) fn retire_block(&mut self, replica: &ReplicaRef) -> Option<Generation> {
        let block = replica.block?;
        let next = self.mint_generation();
        self.arenas.retire(block, replica.generation, next);
        Some(next)
    }

    /// Nobody needs a retired block any more.
    pub(crate) fn block_freed(&mut self, block: Block, next: Generation) {
        let kept = if self.budget[Tier::Ram].on { 0 } else { EMPTY_KEPT };
        self.arenas.reclaim(block, next, kept);
    }

    /// Tells the session thread what to take back, as far as this step's work reaches.
    pub(crate) fn run_returns(&mut self, step: &mut Step<'_>, work_left: &mut usize) {
        while *work_left > 0
            && let Some((slab, session)) = self.arenas.next_return()
        {
            *work_left -= 1;
            self.tell(step, session, slab, SlabAction::Return);
        }
    }

    /// The session takes no more part: who waits for its memory waits in vain.
    pub(crate) fn close_arena(&mut self, step: &mut Step<'_>, session: SessionId) {
        if let Some((mut parked, op)) = self.arenas.close(session) {
            self.parked.wake(&mut parked, Some((op, Some(&closed()))));
            // If it waits for capacity, nobody wants it any more.
            self.cancel_wait(step.out, op);
        }
    }

    /// Asks the session thread for something that `op` waits for.
    pub(crate) fn ask_slab(
        &self,
        step: &mut Step<'_>,
        op: SlotKey,
        session: SessionId,
        slab: SlabId,
        action: SlabAction,
    ) {
        step.out.push(Effect::Slab(SlabOp {
            shard: self.config.shard,
            op: op_id(op),
            session,
            slab,
            action,
        }));
    }

    fn tell(&self, step: &mut Step<'_>, session: SessionId, slab: SlabId, action: SlabAction) {
        self.ask_slab(step, SlotKey::NOWHERE, session, slab, action);
    }

    /// What [`payload_types::reply::ShardStats`] says of sessions' memory.
    pub(crate) fn arena_stats(&self) -> payload_types::reply::ArenaStats {
        let mut stats = self.arenas.stats();
        stats.payloads = self.table.blocks_len() as u64;
        stats.payload_bytes = self.table.arena_bytes();
        stats.shown = self.direct.shown_len() as u64;
        stats.direct_limbo_bytes = self.direct.limbo_bytes().0;
        stats
    }

    /// What is known of a session's process; `None` where it has no memory here. For tests and the simulator.
    pub fn arena_writer(&self, session: SessionId) -> Option<crate::Writer> {
        self.arenas.writer(session)
    }

    /// Bytes charged for slabs, those being made or returned included. For tests and the simulator.
    pub fn arena_charged(&self) -> ByteCount {
        self.arenas.charged()
    }

    /// Walks the books of all sessions' memory. For tests and the simulator.
    ///
    /// # Errors
    /// What does not add up.
    pub fn check_arenas(&self) -> Result<(), String> {
        let current = self.table.blocks().map(|(block, payload)| {
            let replica = payload.replicas[Tier::Ram].expect("a payload in a slab has a replica in RAM");
            (block, replica.generation)
        });
        let under_way = self
            .ops
            .blocks_under_way()
            .map(|replica| (replica.block.expect("only those are listed"), replica.generation));
        let zeroed = under_way.filter(|(block, _)| self.arenas.is_shared(block.slab));
        self.arenas.audit(&current.chain(zeroed).collect())
    }
}

/// What a request is told whose session has closed; nobody may be there to hear it.
fn closed() -> PayloadError {
    PayloadError::new(ErrorKind::Unavailable, "the session has closed; connect again")
}

fn late() -> PayloadError {
    let late = "the memory was ready only after the call's deadline, and was taken back; allow more time";
    PayloadError::new(ErrorKind::DeadlineExceeded, late)
}

fn no_names() -> PayloadError {
    PayloadError::exhausted(
        "this shard has made as many slabs as it can name in one start (2^32 of all shards); restart the server",
    )
}

/// How a client is told that memory could not be made for its session.
fn making_error(bytes: ByteCount, error: &DriverError) -> PayloadError {
    PayloadError::new(
        refusal_kind(error),
        format!("{bytes} of memory for this session could not be made: {}", error.message),
    )
}
