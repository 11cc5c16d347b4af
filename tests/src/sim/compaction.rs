//! The simulated disk store's compaction: recycles segment files in which nothing lives, and asks shards to move what
//! lives in the one that the shipped books choose. Clients' ticks make it ask for others, too, at random.
//!
//! ```text
//!   something died, was moved, was let go --> Compact --> recycle what nobody has open --> Freed
//!                                                 \-----> a victim: Relocate ... --> Transfer or Stay
//! ```
//! The store is told how much waiters want; when the node is quiet somebody asks for what is dead.
//!
//! Checked here: a file that is recycled is named by no lease, no row and no replica; every wish is answered once.

use std::collections::BTreeSet;
use std::num::NonZeroU32;

use payload_ledger::segments::table::Record;
use payload_ledger::segments::{Buried, Lane};
use payload_types::effect::{ReplicaRef, TransferOp};
use payload_types::event::{Completion, StorageDone};
use payload_types::request::{Allocate, Request};
use payload_types::{
    ByteCount, EvictionPolicy, Extent, Generation, Monotonic, PayloadId, PayloadRow, ShardIndex, Tier, limits,
};

use super::agenda::Task;
use super::canary::Canary;
use super::faults::{MICROS, MILLIS, SECONDS};
use super::oracle::{Breach, Rule, breach};
use super::storage::{Block, BlockName, Phase};
use super::world::{Core, World};

/// The longest pause before a file is tried again whose replicas did not all move.
const PAUSE_MAX_NS: u64 = 10 * SECONDS;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Compaction {
    /// A pass is on the agenda.
    scheduled: bool,
    /// Wishes that are not answered.
    offers: BTreeSet<BlockName>,
    /// The file that is being emptied.
    emptying: Option<Emptying>,
    /// Files with a pass on the agenda for when nobody has them open.
    watched: BTreeSet<NonZeroU32>,
    /// The last pass on the agenda that comes because time passes.
    tick_due: Monotonic,
    /// The pause after a file that was not emptied.
    pause: u64,
    /// What the store was told that waiters want.
    wanted: ByteCount,
    /// Something was asked for that no victim has, since the start.
    at_random: bool,
}

#[derive(Debug)]
struct Emptying {
    file: NonZeroU32,
    /// Not asked for yet.
    todo: Vec<BlockName>,
    /// Asked for, and not moved yet.
    under_way: BTreeSet<BlockName>,
    refused: bool,
}

impl World {
    /// A pass soon: something has changed.
    pub(super) fn compact_soon(&mut self) {
        if self.storage.segments.books().is_some() && !self.compaction.scheduled {
            self.compaction.scheduled = true;
            let delay = self.rng.between(50 * MICROS, 20 * MILLIS);
            self.agenda.add(Monotonic(self.now.0 + delay), Task::Compact);
        }
    }

    fn compact_later(&mut self, at: Monotonic) {
        self.agenda.add(at, Task::Compact);
    }

    /// The disk store hears what waiters want, unless a planted bug is deaf.
    pub(super) fn tell_wanted(&mut self) {
        let wanted = self.arbiter.wanted(Tier::Disk);
        if wanted != self.compaction.wanted && self.canary != Some(Canary::DeafCompaction) {
            self.compaction.wanted = wanted;
            self.compact_soon();
        }
    }

    /// One pass.
    pub(super) fn compact(&mut self) -> Result<(), Breach> {
        self.compaction.scheduled = false;
        self.recycle()?;
        if self.compaction.emptying.is_none() {
            self.choose_victim();
        }
        self.offer_more();
        self.tick();
        Ok(())
    }

    /// While something is dead there is a pass every second, as in the drivers: files of their own may fill the disk
    /// meanwhile, and make worth it what was not.
    fn tick(&mut self) {
        let is_dirty = self.storage.segments.books().is_some_and(|books| books.dead_bytes().0 > 0);
        if is_dirty && self.compaction.tick_due <= self.now {
            self.compaction.tick_due = Monotonic(self.now.0 + SECONDS);
            self.compact_later(self.compaction.tick_due);
        }
    }

    fn recycle(&mut self) -> Result<(), Breach> {
        let Some(books) = self.storage.segments.books() else { return Ok(()) };
        for number in books.recyclable() {
            let books = self.storage.segments.books().expect("just seen");
            if !books.recycle_begin(number) {
                continue;
            }
            let mapped = self.storage.in_file(number).map(|(_, block)| block.mapped_until()).max();
            if let Some(until) = mapped.filter(|until| *until > self.now) {
                self.oracle.coverage.hit("reader_kept_a_file_from_being_recycled");
                self.storage.segments.books().expect("just seen").recycle_failed(number);
                if self.compaction.watched.insert(number) {
                    let at = until.0 + self.rng.between(0, 300) * MILLIS;
                    self.compact_later(Monotonic(at));
                }
                continue;
            }
            self.recycle_file(number)?;
        }
        Ok(())
    }

    fn recycle_file(&mut self, number: NonZeroU32) -> Result<(), Breach> {
        self.trace.add(self.now, format_args!("segment file {number} is recycled"));
        self.compaction.watched.remove(&number);
        let in_it: Vec<(BlockName, Block)> =
            self.storage.in_file(number).map(|(name, block)| (*name, block.clone())).collect();
        for (name, block) in &in_it {
            self.judge_recycled(*name, block)?;
            self.storage.blocks.remove(name);
        }
        let buried = self.storage.segments.recycle(number);
        let mut told: Vec<_> = buried.iter().map(|buried| buried.generation).collect();
        let mut gone: Vec<_> = in_it.iter().map(|(name, _)| name.generation).collect();
        told.sort_unstable();
        gone.sort_unstable();
        if told != gone {
            return breach(
                Rule::Extent,
                format!("in file {number} were {gone:?}, the books know of {told:?}"),
            );
        }
        for Buried { shard, generation } in buried {
            let done = StorageDone::Freed { tier: Tier::Disk, generation };
            self.complete_in_order(usize::from(shard.0), done);
        }
        self.oracle.coverage.hit("segment_file_recycled");
        self.compact_soon();
        Ok(())
    }

    /// What goes with a file must be nobody's.
    fn judge_recycled(&self, name: BlockName, block: &Block) -> Result<(), Breach> {
        let wrong = |what: &str| {
            breach(Rule::Extent, format!("recycled with its file, and {what}: {name:?} {block:?}"))
        };
        if self.oracle.is_leased(name, self.clock()) {
            return wrong("leased");
        }
        if block.phase != Phase::Detached || block.jobs > 0 {
            return wrong("in use");
        }
        let names_it = |row: &PayloadRow| {
            let same = |replica: &payload_types::ReplicaRow| {
                (replica.tier, replica.generation) == (name.tier, name.generation)
            };
            row.key.id == name.id && row.replicas.iter().any(same)
        };
        if self.catalog.rows.values().any(names_it) {
            return wrong("named by a row");
        }
        Ok(())
    }

    fn choose_victim(&mut self) {
        let Some(books) = self.storage.segments.books() else { return };
        let Some(victim) = books.victim(self.compaction.wanted) else { return };
        let file = victim.file;
        books.begin(victim);
        if !books.is_alive(file) {
            return self.compact_soon();
        }
        let live = self.storage.in_file(file).filter(|(_, block)| block.phase == Phase::Ready);
        let mut todo: Vec<BlockName> = live.map(|(name, _)| *name).collect();
        todo.reverse();
        self.trace.add(self.now, format_args!("segment file {file} is emptied of {}", todo.len()));
        let under_way = BTreeSet::new();
        self.compaction.emptying = Some(Emptying { file, todo, under_way, refused: false });
    }

    /// Asks for as many as may be asked for at a time.
    fn offer_more(&mut self) {
        while self.compaction.offers.len() < limits::RELOCATIONS_MAX
            && let Some(emptying) = &mut self.compaction.emptying
            && let Some(name) = emptying.todo.pop()
        {
            emptying.under_way.insert(name);
            if self.compaction.offers.contains(&name) {
                continue; // Asked for at random a moment ago.
            }
            if !self.offer(name) {
                self.emptied(name, true);
            }
        }
        let Some(emptying) = &self.compaction.emptying else { return };
        if !emptying.todo.is_empty() || !emptying.under_way.is_empty() {
            return;
        }
        let (file, refused) = (emptying.file, emptying.refused);
        self.compaction.emptying = None;
        self.storage.segments.books().expect("a file is emptied").emptying_ended(file);
        self.compaction.pause = match refused {
            true => (2 * self.compaction.pause).clamp(20 * MILLIS, PAUSE_MAX_NS),
            false => 20 * MILLIS,
        };
        // Until then what was moved is dropped, mostly.
        self.compact_later(Monotonic(self.now.0 + self.compaction.pause));
    }

    fn offer(&mut self, name: BlockName) -> bool {
        let Some(block) = self.storage.blocks.get(&name).filter(|block| block.extent.is_some()) else {
            return false;
        };
        let BlockName { tier, id, generation } = name;
        let replica =
            ReplicaRef { tier, id, generation, size: block.size, extent: block.extent, block: None };
        self.compaction.offers.insert(name);
        let shard = id.shard(self.shard_count());
        self.complete(shard, Completion::Relocate(replica), None);
        true
    }

    /// Now and then a replica is asked for that no victim has: dropped ones, too.
    pub(super) fn offer_something(&mut self) {
        if self.compaction.offers.len() >= limits::RELOCATIONS_MAX {
            return;
        }
        let dead_too = self.rng.chance(100);
        let packed: Vec<BlockName> = self
            .storage
            .blocks
            .iter()
            .filter(|(_, block)| block.extent.is_some() && (dead_too || block.phase == Phase::Ready))
            .map(|(name, _)| *name)
            .filter(|name| !self.compaction.offers.contains(name))
            .collect();
        if !packed.is_empty() {
            let name = self.rng.pick(&packed);
            self.compaction.at_random = true;
            self.offer(name);
        }
    }

    /// A shard says Stay.
    pub(super) fn stays(&mut self, replica: ReplicaRef) -> Result<(), Breach> {
        let name = BlockName::from(replica);
        if !self.compaction.offers.remove(&name) {
            return breach(Rule::Answers, format!("{replica:?} stays, and nobody asked"));
        }
        self.oracle.coverage.hit("relocation_refused");
        self.emptied(name, true);
        self.offer_more();
        Ok(())
    }

    /// A shard moves a replica.
    pub(super) fn moves(&mut self, op: &TransferOp) -> Result<(), Breach> {
        if !self.compaction.offers.remove(&op.from.into()) {
            return breach(Rule::Answers, format!("{op:?} moves, and nobody asked"));
        }
        self.crash_soon(40, 3 * MILLIS);
        Ok(())
    }

    /// Where servers die, this one does now and then, a moment after something that is over in a moment.
    pub(super) fn crash_soon(&mut self, permille: u64, within_ns: u64) {
        if self.plan.crash_per_10k > 0 && self.rng.chance(permille) {
            let at = Monotonic(self.now.0 + self.rng.between(0, within_ns));
            self.agenda.add(at, Task::Crash);
        }
    }

    /// A move has ended.
    pub(super) fn move_ended(&mut self, op: &TransferOp, failed: bool) {
        self.emptied(op.from.into(), failed);
        self.offer_more();
        if !failed {
            self.compact_soon();
        }
    }

    fn emptied(&mut self, name: BlockName, refused: bool) {
        if let Some(emptying) = &mut self.compaction.emptying
            && emptying.under_way.remove(&name)
        {
            emptying.refused |= refused;
        }
    }

    /// The end of a run: nothing is written any more, and what died in the files that were being filled is freed, too.
    pub(super) fn close_lanes(&mut self) {
        let writers = self.plan.packing.map_or(0, |geometry| geometry.writers());
        let Some(books) = self.storage.segments.books() else { return };
        (0..writers).map(Lane::Writer).chain([Lane::Mover]).for_each(|lane| books.close(lane));
        self.compact_soon();
    }

    /// Which lane a copy is written in.
    pub(super) fn lane_of(&mut self, op: &TransferOp) -> Lane {
        if super::storage::is_relocation(op) {
            return Lane::Mover;
        }
        let writers = self.plan.packing.map_or(1, |geometry| geometry.writers());
        Lane::Writer(self.rng.below(writers as u64) as usize)
    }

    /// A row is durable.
    pub(super) fn note_published(&mut self, row: &PayloadRow) {
        // What a start makes of a mark shows only where it comes before the replica is written anew.
        if row.replicas.iter().any(|replica| !replica.sound) {
            self.crash_soon(400, 3 * MILLIS);
        }
        for old in self.storage.published(row) {
            self.oracle.coverage.hit("relocation_published");
            if self.oracle.is_leased(old, self.clock()) {
                self.oracle.coverage.hit("lease_kept_an_old_extent");
                // A planted bug: what was moved is gone at once, whoever leases its old place.
                if self.canary == Some(Canary::RecycledWhileLeased) {
                    self.storage.blocks.remove(&old);
                }
            }
            if self.is_disk_full() {
                self.oracle.coverage.hit("full_disk_compacted");
            }
            if self.canary == Some(Canary::RelocationChargedTwice) {
                let replica = ReplicaRef {
                    tier: Tier::Disk,
                    id: old.id,
                    generation: payload_types::Generation(u64::MAX - self.tasks),
                    size: payload_types::ByteCount(1),
                    extent: Some(Extent { file: NonZeroU32::MAX, page: 0 }),
                    block: None,
                };
                let shard = usize::from(old.id.shard(self.shard_count()).0);
                let now = self.clock();
                self.cores[shard].shard.adopt_held(now, replica);
            }
        }
    }

    /// True when next to nothing is left of a disk that packs.
    pub(super) fn is_disk_full(&self) -> bool {
        let (_, charged) = self.storage.disk_bytes();
        self.plan.packing.is_some_and(|geometry| charged * 100 >= geometry.usable().0 * 95)
    }

    /// A planted bug: the row of a moved replica still names its old place.
    pub(super) fn spoil_row(&mut self, row: &mut PayloadRow) {
        if self.canary != Some(Canary::RowNamesOldExtent) {
            return;
        }
        for replica in &mut row.replicas {
            let name = BlockName { tier: replica.tier, id: row.key.id, generation: replica.generation };
            if let Some(old) = self.storage.moved_from(name) {
                replica.generation = old.generation;
                replica.extent = self.storage.blocks.get(&old).and_then(|block| block.extent);
            }
        }
    }

    /// Every wish was answered.
    pub(super) fn audit_offers(&self) -> Result<(), Breach> {
        match self.compaction.offers.first() {
            Some(name) => breach(Rule::Answers, format!("{name:?} was to be moved, and nobody answered")),
            None => Ok(()),
        }
    }

    // ---- crash and boot ----

    /// The server died.
    pub(super) fn forget_compaction(&mut self) {
        self.compaction = Compaction::default();
    }

    /// Reads the tables, before the rows are adopted: what has no record there is gone, and what has one and was never
    /// seen, or was freed, is there again.
    pub(super) fn read_segments(&mut self) -> Result<(), Breach> {
        let (records, torn) = self.storage.segments.read(self.plan.packing)?;
        if torn {
            self.oracle.coverage.hit("torn_table_at_boot");
        }
        let mut there: BTreeSet<BlockName> = BTreeSet::new();
        for (file, Record { id, generation, size, page, .. }) in records {
            let name = BlockName { tier: Tier::Disk, id, generation };
            there.insert(name);
            let block = self.storage.blocks.entry(name).or_insert_with(|| {
                let mut ghost = Block::new(size);
                ghost.phase = Phase::Ready;
                ghost
            });
            if block.size != size || block.extent.is_some_and(|extent| extent != Extent { file, page }) {
                return breach(Rule::Extent, format!("file {file} has {name:?} at page {page}: {block:?}"));
            }
            block.extent = Some(Extent { file, page });
        }
        self.storage.blocks.retain(|name, block| block.extent.is_none() || there.contains(name));
        Ok(())
    }

    /// What nothing lies on in files of another size is charged as something dead, as the disk store has it.
    fn bury_ends(&mut self, cores: &mut [Core]) {
        let (now, shard_count) = (self.clock(), cores.len() as u16);
        for number in self.storage.segments.numbers() {
            let mut id = [0; 16];
            id[12..].copy_from_slice(&number.get().to_be_bytes());
            let (id, generation) = (PayloadId::from_bytes(id), Generation(u64::from(number.get())));
            let shard = id.shard(shard_count);
            let Some(books) = self.storage.segments.books() else { return };
            let Some(size) = books.bury_end(number, Buried { shard, generation }) else { continue };
            // Nothing is ever put into such a file, so which of its pages are named is nobody's affair.
            let extent = Some(Extent { file: number, page: 0 });
            let mut end = Block::new(size);
            (end.phase, end.extent) = (Phase::Detached, extent);
            self.storage.blocks.insert(BlockName { tier: Tier::Disk, id, generation }, end);
            let replica = ReplicaRef { tier: Tier::Disk, id, generation, size, extent, block: None };
            cores[usize::from(shard.0)].shard.adopt_held(now, replica);
            self.oracle.coverage.hit("end_of_a_larger_file_charged");
        }
    }

    /// After the rows: what no row names is handed to the shards and charged until it is free.
    pub(super) fn adopt_dead(&mut self, cores: &mut [Core], vouched: &BTreeSet<BlockName>) {
        let (now, shard_count) = (self.clock(), cores.len() as u16);
        for (name, block) in &self.storage.blocks {
            let BlockName { tier, id, generation } = *name;
            let shard = id.shard(shard_count);
            let (size, extent) = (block.size, block.extent);
            if let Some((extent, books)) = extent.zip(self.storage.segments.books()) {
                match vouched.contains(name) {
                    true => books.vouched(extent, size),
                    false => books.bury(extent, size, Buried { shard, generation }),
                }
            }
            if !vouched.contains(name) {
                let packed = extent.is_some();
                self.oracle.coverage.hit(if packed { "dead_record_adopted" } else { "held_block_adopted" });
                let replica = ReplicaRef { tier, id, generation, size, extent, block: None };
                cores[usize::from(shard.0)].shard.adopt_held(now, replica);
                if !packed {
                    let (shard, name) = (usize::from(shard.0), *name);
                    let at = Monotonic(block.mapped_until().0 + self.rng.between(0, 300) * MILLIS);
                    self.agenda.add(at, Task::Free { shard, name, detached: self.now });
                }
            }
        }
        self.bury_ends(cores);
        let (own, charged) = self.storage.disk_bytes();
        self.storage.segments.begin(own, charged);
        self.compact_soon();
    }

    /// Charged for nobody's good, in segment files that nobody has open and that can be emptied.
    fn dead_bytes(&self) -> u64 {
        let blocks = || self.storage.blocks.values();
        let file = |block: &Block| block.extent.map(|extent| extent.file);
        let held: BTreeSet<_> = blocks().filter(|block| block.mapped_until() > self.now).map(file).collect();
        let moved = blocks().filter(|block| block.extent.is_some() && !block.charged);
        let moved: u64 = moved.map(|block| block.size.in_pages().0).sum();
        let is_dead = |block: &&Block| {
            block.charged
                && block.phase == Phase::Detached
                && !held.contains(&file(block))
                && block.extent.is_some_and(|extent| self.can_be_emptied(extent.file, moved))
        };
        blocks().filter(is_dead).map(|block| block.size.in_pages().0).sum()
    }

    /// What was moved and is not free yet, because somebody has its file open, or because it was asked for at random, stays
    /// below one file together with what lives in the next one. More may live in a file of an earlier capacity than a file
    /// of today's takes: only deletes empty such a one.
    fn can_be_emptied(&self, file: NonZeroU32, moved: u64) -> bool {
        let live = self.storage.in_file(file).filter(|(_, block)| block.phase != Phase::Detached);
        let live: u64 = live.map(|(_, block)| block.size.in_pages().0).sum();
        live == 0 || self.plan.packing.is_some_and(|today| moved + live <= today.data_bytes())
    }

    /// What is charged for nobody's good and held by nobody, while somebody waits for so many bytes.
    pub(super) fn dead_and_not_freed(&mut self, wanted: u64) -> Option<String> {
        let bytes = self.dead_bytes();
        (bytes > 0 && bytes >= wanted).then(|| {
            format!(
                "{bytes} are dead and not free: {:?} {:?}",
                self.compaction,
                self.storage.segments.books()
            )
        })
    }

    /// Nobody reads or does anything: who asks for more than is free, and for no more than what is free and dead together,
    /// gets it before his wait ends, however much of the disk is free.
    pub(super) fn wish_for_the_dead(&mut self) -> Result<(), Breach> {
        let Some(capacity) = self.plan.packing.map(|geometry| geometry.usable().0) else { return Ok(()) };
        let used: u64 = self.cores.iter().map(|core| core.shard.usage(Tier::Disk).allocated).sum();
        let (free, most) =
            (capacity.saturating_sub(used), (capacity + self.dead_bytes()).saturating_sub(used));
        // Others who wait would have their part of it; what was moved at random has taken the room that emptying a file
        // needs; and a file of an earlier, larger capacity may be too large for that.
        let is_excused = self.compaction.at_random || self.storage.segments.has_other_sizes();
        if most <= free || self.anybody_waits() || is_excused {
            return Ok(());
        }
        let pages = self.rng.between(free / limits::PAGE_BYTES + 1, most / limits::PAGE_BYTES);
        let (size, policy) = (ByteCount(pages * limits::PAGE_BYTES), EvictionPolicy::default());
        let request =
            Allocate { size, tier: Tier::Disk, ttl_ms: None, no_evict: false, policy, ..self.allocation() };
        let key = request.key;
        self.ask(Request::Allocate(request));
        self.run_for(60 * SECONDS)?;
        if !self.oracle.facts.contains_key(&key) {
            return breach(
                Rule::Starved,
                format!(
                    "{size} of DISK were asked for, {free} free, {most} with what is dead: {:?} {:?}",
                    self.compaction,
                    self.storage.segments.books(),
                ),
            );
        }
        self.oracle.coverage.hit("waiter_served_by_compaction");
        Ok(())
    }

    /// Looks at the disk as a whole.
    pub(super) fn audit_disk(&mut self) -> Result<(), Breach> {
        if let Some(wrong) = self.storage.wrong.take() {
            return Err(wrong);
        }
        let (own, charged) = self.storage.disk_bytes();
        self.storage.segments.audit(own, charged)
    }

    /// True when a relocation of this payload is under way.
    pub(super) fn is_moving(&self, id: payload_types::PayloadId) -> bool {
        self.jobs.values().any(|job| {
            matches!(job, super::world::Job::Transfer(op)
                if op.from.id == id && super::storage::is_relocation(op))
        })
    }

    /// The shard of a payload's block.
    pub(super) fn shard_of(&self, name: BlockName) -> ShardIndex {
        name.id.shard(self.shard_count())
    }
}
