//! All payloads of a shard, their order for listings, and their counts.
//!
//! Every change that could alter a count or an order goes through [`Table::update`], which takes the payload's share
//! out of the books, applies the change and puts the new share in: the books equal the sum of the replicas because
//! there is no other way to change either. Leases, the commonest change, have two short cuts beside it.
//!
//! The lists of victims hold exactly the payloads that may be evicted: whoever changes a payload leaves its slot in
//! `touched`, and `settle`, at the end of each step, puts those where they belong by now.

mod find;

use std::collections::BTreeMap;
use std::ops::Bound;

use payload_ledger::recency::Recency;
use payload_ledger::{SlotKey, Slots, Sparse};
use payload_types::effect::ReplicaRef;
use payload_types::hold::HoldingStream;
use payload_types::reply::{ShardPage, ShardStats, TierStats};
use payload_types::report::{PinOwner, StreamHold};
use payload_types::request::List;
use payload_types::{
    Block, ByteCount, Descriptor, EvictionPriority, Monotonic, NamespaceId, PayloadId, PayloadKey, PerTier,
    Pin, Rank, Tier, limits,
};

use crate::evict::{self, Candidate, Class, Exit};
use crate::holds::{Holder, Holds};
use crate::index::Index;
use crate::order::Order;
use crate::payload::Payload;

/// Bytes of current replicas of one tier, in whole pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TierBooks {
    /// Logical bytes.
    pub logical: u64,
    /// Whole pages.
    pub charged: u64,
    /// Of those: payloads with a lease.
    pub leased: u64,
    /// Of those: pinned payloads.
    pub pinned: u64,
    /// Of those: payloads that are not committed.
    pub uncommitted: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Table {
    payloads: Slots<Payload>,
    by_key: Index,
    ordered: PerTier<Order>,
    counts: BTreeMap<(NamespaceId, Tier), u64>,
    books: PerTier<TierBooks>,
    capacity: PerTier<Option<ByteCount>>,
    recency: Recency,
    touched: Vec<SlotKey>,
    /// Payloads in slabs that were changed: what readers are shown of them may change.
    changed_blocks: Vec<SlotKey>,
    /// Who set the pins of this start, by the payload's slot. Beside the payloads, of which few are pinned.
    pin_owners: BTreeMap<u32, PinOwner>,
    holds: Holds,
    /// Where payloads in slabs lie, by slot. Beside the payloads, of which few may be there.
    blocks: Sparse<Block>,
    /// Their logical bytes.
    arena_bytes: u64,
}

/// Where a tier is nearly full, so many of those who would go there are looked at for one who fits.
const FIT_WALK_MAX: usize = 64;

fn hash(id: PayloadId) -> u64 {
    // Of the id alone: drivers know no namespaces, and the server mints no id twice. The upper bits of the id's hash
    // choose the shard and are alike within one; the index wants others on top.
    id.hash64().rotate_left(32)
}

fn shown_tier(payload: &Payload) -> Option<Tier> {
    if payload.creating { None } else { payload.fastest() }
}

impl Table {
    /// An empty table of at most `limits::PAYLOADS_PER_SHARD_MAX`, on a node with these tiers.
    pub fn new(capacity: PerTier<Option<ByteCount>>) -> Self {
        Self {
            payloads: Slots::new(limits::PAYLOADS_PER_SHARD_MAX),
            by_key: Index::new(),
            ordered: PerTier::default(),
            counts: BTreeMap::new(),
            books: PerTier::default(),
            capacity,
            recency: Recency::default(),
            touched: Vec::new(),
            changed_blocks: Vec::new(),
            pin_owners: BTreeMap::new(),
            holds: Holds::default(),
            blocks: Sparse::default(),
            arena_bytes: 0,
        }
    }

    /// True when no payload can be added.
    pub fn is_full(&self) -> bool {
        self.payloads.is_full()
    }

    /// Payloads held.
    pub fn len(&self) -> u32 {
        self.payloads.len()
    }

    /// True when nothing is held.
    pub fn is_empty(&self) -> bool {
        self.payloads.is_empty()
    }

    /// The payload with this key.
    pub fn find(&self, key: PayloadKey) -> Option<SlotKey> {
        self.find_if(key.id, |payload| {
            payload.fetch();
            payload.key == key
        })
    }

    /// The payload, in whichever namespace, that has this very replica now.
    pub fn find_replica(&self, replica: ReplicaRef) -> Option<SlotKey> {
        self.find_if(replica.id, |payload| payload.replica_ref(replica.tier, replica.block) == Some(replica))
    }

    fn find_if(&self, id: PayloadId, is_it: impl Fn(&Payload) -> bool) -> Option<SlotKey> {
        let is_it = |slot: u32| {
            self.payloads.key_at(slot).and_then(|slot| self.payloads.get(slot)).is_some_and(&is_it)
        };
        self.payloads.key_at(self.by_key.find(hash(id), is_it)?)
    }

    /// Adds a payload; `None` when the table is full.
    ///
    /// # Panics
    /// When its key is taken: ids are minted once.
    pub fn insert(&mut self, payload: Payload) -> Option<SlotKey> {
        assert!(self.find(payload.key).is_none(), "payload {} exists already", payload.key.id);
        let key = payload.key;
        let slot = self.payloads.insert(payload).ok()?;
        self.by_key.insert(hash(key.id), slot.index);
        self.recency.reset(slot.index);
        self.account(slot, true);
        self.touched.push(slot);
        Some(slot)
    }

    /// Takes a payload out.
    ///
    /// # Panics
    /// When `slot` is stale.
    pub fn remove(&mut self, slot: SlotKey) -> Payload {
        self.account(slot, false);
        self.unlist(slot);
        let payload = self.payloads.remove(slot).expect("the caller holds a live slot");
        assert!(self.by_key.remove(hash(payload.key.id), slot.index), "every payload is indexed");
        self.pin_owners.remove(&slot.index);
        if payload.in_arena {
            self.blocks.remove(slot.index);
        }
        if payload.held {
            self.holds.forget(slot.index);
        }
        payload
    }

    /// Where the payload's replica in RAM lies, if in a slab.
    pub fn block(&self, slot: SlotKey) -> Option<Block> {
        self.block_of(self.at(slot), slot)
    }

    #[inline]
    fn block_of(&self, payload: &Payload, slot: SlotKey) -> Option<Block> {
        if payload.in_arena { self.blocks.get(slot.index) } else { None }
    }

    /// Notes where the payload's new replica in RAM lies in a slab, or that it does not any more. Within [`Table::update`]
    /// the payload's `in_arena` changes with it.
    pub fn set_block(&mut self, slot: SlotKey, block: Option<Block>) {
        match block {
            Some(block) => drop(self.blocks.insert(slot.index, block)),
            None => drop(self.blocks.remove(slot.index)),
        }
    }

    /// Payloads in slabs.
    pub fn blocks_len(&self) -> usize {
        self.blocks.len()
    }

    /// Their logical bytes.
    pub fn arena_bytes(&self) -> u64 {
        self.arena_bytes
    }

    /// The blocks of all payloads in slabs, with their generations. For checks, and sums.
    pub fn blocks(&self) -> impl Iterator<Item = (Block, &Payload)> {
        self.blocks
            .iter()
            .filter_map(|(index, block)| Some((block, self.payloads.get(self.payloads.key_at(index)?)?)))
    }

    /// The payloads in slabs.
    pub fn block_slots(&self) -> impl Iterator<Item = SlotKey> + '_ {
        self.blocks.iter().filter_map(|(index, _)| self.payloads.key_at(index))
    }

    /// How drivers are told about a payload's replica on `tier`.
    pub fn replica_ref(&self, slot: SlotKey, tier: Tier) -> Option<ReplicaRef> {
        self.at(slot).replica_ref(tier, self.block(slot))
    }

    /// What a client is told of the payload in `slot`; `with_location` is false where the bytes must not be read.
    pub fn shown(&self, slot: SlotKey, with_location: bool) -> Descriptor {
        let payload = self.at(slot);
        payload.describe(with_location, self.block_of(payload, slot))
    }

    /// The payload in `slot`, unless it is gone.
    pub fn get(&self, slot: SlotKey) -> Option<&Payload> {
        self.payloads.get(slot)
    }

    /// The payload in `slot`.
    ///
    /// # Panics
    /// When it is gone.
    pub fn at(&self, slot: SlotKey) -> &Payload {
        self.payloads.get(slot).expect("the caller holds a live slot")
    }

    /// Changes what no count and no order depends on: links, timers, operations, versions.
    ///
    /// # Panics
    /// When it is gone.
    pub fn links(&mut self, slot: SlotKey) -> &mut Payload {
        if self.touched.last() != Some(&slot) {
            self.touched.push(slot);
        }
        self.payloads.get_mut(slot).expect("the caller holds a live slot")
    }

    /// Changes anything, and keeps the books.
    ///
    /// # Panics
    /// When it is gone.
    pub fn update<R>(&mut self, slot: SlotKey, change: impl FnOnce(&mut Payload) -> R) -> R {
        let before = shown_tier(self.at(slot));
        self.account_bytes(slot, false);
        let result = change(self.links(slot));
        self.account_bytes(slot, true);
        let after = shown_tier(self.at(slot));
        if before != after {
            self.account_order(slot, before, false);
            self.account_order(slot, after, true);
        }
        result
    }

    /// Counts one more lease on the payload. The commonest change of all: it touches only the count of leased bytes.
    ///
    /// # Panics
    /// When it is gone.
    pub fn lease_added(&mut self, slot: SlotKey) -> &mut Payload {
        let payload = self.payloads.get_mut(slot).expect("the caller holds a live slot");
        payload.lease_count += 1;
        if payload.lease_count == 1 {
            let pages = payload.size.in_pages().0;
            for tier in Tier::ALL.into_iter().filter(|tier| payload.replicas[*tier].is_some()) {
                self.books[tier].leased += payload.charged_on(tier);
            }
            if payload.class != Class::NONE {
                self.recency.remove(payload.class.list(), slot.index, pages);
            }
        }
        payload
    }

    /// Counts one lease less on the payload, unless it is gone. After its last one it is the last to be evicted.
    pub fn lease_ended(&mut self, slot: SlotKey, now: Monotonic) -> Option<&mut Payload> {
        let payload = self.payloads.get_mut(slot)?;
        payload.lease_count -= 1;
        if payload.lease_count == 0 {
            let pages = payload.size.in_pages().0;
            for tier in Tier::ALL.into_iter().filter(|tier| payload.replicas[*tier].is_some()) {
                self.books[tier].leased -= payload.charged_on(tier);
            }
            if payload.class == Class::NONE {
                self.recency.set_stamp(slot.index, now.0);
            } else {
                self.recency.push_newest(payload.class.list(), slot.index, pages, now.0);
            }
        }
        Some(payload)
    }

    /// Takes a payload out of its list of victims.
    fn unlist(&mut self, slot: SlotKey) {
        let payload = self.payloads.get_mut(slot).expect("the caller holds a live slot");
        let class = std::mem::replace(&mut payload.class, Class::NONE);
        if class != Class::NONE && payload.lease_count == 0 {
            self.recency.remove(class.list(), slot.index, payload.size.in_pages().0);
        }
    }

    /// True when [`settle`](Self::settle) has something to do.
    pub fn is_touched(&self) -> bool {
        !self.touched.is_empty()
    }

    /// Puts the payloads that were changed into the lists of victims where they belong by now. Called at the end of
    /// each step.
    pub fn settle(&mut self, now: Monotonic) {
        while let Some(slot) = self.touched.pop() {
            let Some(payload) = self.payloads.get(slot) else { continue };
            if payload.in_arena {
                self.changed_blocks.push(slot);
            }
            let class = Class::of(payload, &self.capacity);
            if class == payload.class {
                continue;
            }
            self.unlist(slot);
            let payload = self.payloads.get_mut(slot).expect("just seen");
            payload.class = class;
            if class != Class::NONE && payload.lease_count == 0 {
                let pages = payload.size.in_pages().0;
                match self.recency.stamp(slot.index) {
                    0 => self.recency.push_newest(class.list(), slot.index, pages, now.0),
                    _ => self.recency.insert(class.list(), slot.index, pages),
                }
            }
        }
    }

    /// The next payload in a slab that was changed since this was asked last; it may be gone.
    pub fn next_changed_block(&mut self) -> Option<SlotKey> {
        self.changed_blocks.pop()
    }

    /// True when there is one.
    pub fn has_changed_blocks(&self) -> bool {
        !self.changed_blocks.is_empty()
    }

    /// Notes that a payload is used now, as a lease does when it ends: it was promoted.
    pub fn used(&mut self, slot: SlotKey, now: Monotonic) {
        self.unlist(slot);
        self.recency.set_stamp(slot.index, now.0);
        self.touched.push(slot);
    }

    /// Who is evicted from `tier` first, of those who need no room elsewhere, or no more than `room` says.
    pub fn victim(&self, tier: Tier, room: impl Fn(Tier) -> u64) -> Option<(Rank, SlotKey)> {
        evict::IN_ORDER.into_iter().find_map(|priority| {
            let lists = Class::of_tier(tier, priority).into_iter();
            let heads = lists.filter_map(|class| {
                let oldest = self.recency.oldest(class.list())?;
                match class.needs() {
                    None => Some(oldest),
                    Some(to) => self.first_that_fits(class, room(to)),
                }
            });
            let first = heads.min_by_key(|index| self.recency.stamp(*index))?;
            Some(self.ranked(priority, first))
        })
    }

    /// The first of a list that takes no more than `room`, among as many as are looked at.
    fn first_that_fits(&self, class: Class, room: u64) -> Option<u32> {
        if room < limits::PAGE_BYTES {
            return None;
        }
        let fits = |index: &u32| {
            room == u64::MAX || {
                let slot = self.payloads.key_at(*index).expect("listed payloads exist");
                self.at(slot).size.in_pages().0 <= room
            }
        };
        self.recency.iter(class.list()).take(FIT_WALK_MAX).find(fits)
    }

    /// True when a victim of `tier` was found that takes no more than `room` on `to`.
    pub fn any_fits(&self, tier: Tier, to: Tier, room: u64) -> bool {
        let lists = evict::IN_ORDER.into_iter().flat_map(|priority| Class::of_tier(tier, priority));
        let mut lists = lists.filter(|class| class.needs() == Some(to));
        lists.any(|class| self.first_that_fits(class, room).is_some())
    }

    /// Who is evicted from `tier`, in order, of those who need no room elsewhere or need it on a tier that `takes` some.
    pub fn victims<'a>(
        &'a self,
        tier: Tier,
        takes: impl Fn(Tier) -> bool + Copy + 'a,
    ) -> impl Iterator<Item = (Rank, SlotKey)> + 'a {
        evict::IN_ORDER.into_iter().flat_map(move |priority| {
            let lists = Class::of_tier(tier, priority);
            let open = lists.into_iter().filter(move |class| class.needs().is_none_or(takes));
            let mut walks: Vec<_> = open.map(|class| self.recency.iter(class.list()).peekable()).collect();
            std::iter::from_fn(move || {
                let stamp = |index: Option<&u32>| index.map(|index| self.recency.stamp(*index));
                let heads = walks.iter_mut().filter_map(|walk| Some((stamp(walk.peek())?, walk)));
                let (_, walk) = heads.min_by_key(|(stamp, _)| *stamp)?;
                Some(self.ranked(priority, walk.next()?))
            })
        })
    }

    /// A victim, as others see it.
    pub fn candidate(&self, rank: Rank, slot: SlotKey) -> Candidate {
        let payload = self.at(slot);
        let (bytes, needs) = (payload.size.in_pages().0, payload.class.needs());
        Candidate { rank, key: payload.key, bytes, needs }
    }

    fn ranked(&self, priority: EvictionPriority, index: u32) -> (Rank, SlotKey) {
        let used_at = Monotonic(self.recency.stamp(index));
        (Rank { priority, used_at }, self.payloads.key_at(index).expect("listed payloads exist"))
    }

    /// When the payload's last lease ended, or when it arrived on its tier; `None`: not known.
    pub fn used_at(&self, slot: SlotKey) -> Option<Monotonic> {
        Some(self.recency.stamp(slot.index)).filter(|stamp| *stamp > 0).map(Monotonic)
    }

    /// The payload's rank among the victims of its fastest tier, while it is one.
    pub fn rank(&self, slot: SlotKey) -> Option<Rank> {
        let payload = self.at(slot);
        let priority = payload.class.priority().filter(|_| payload.lease_count == 0)?;
        Some(Rank { priority, used_at: Monotonic(self.recency.stamp(slot.index)) })
    }

    /// Charged bytes of the payloads that can be evicted from `tier` now: to a slower one, no more than `room` says.
    pub fn evictable(&self, tier: Tier, room: impl Fn(Tier) -> u64) -> u64 {
        let mut needed = PerTier::<u64>::default();
        let mut sum = 0;
        for class in evict::IN_ORDER.into_iter().flat_map(|priority| Class::of_tier(tier, priority)) {
            match self.recency.weight(class.list()) {
                0 => {}
                weight => match class.needs() {
                    None => sum += weight,
                    Some(to) => needed[to] += weight,
                },
            }
        }
        let slower = Tier::ALL.into_iter().filter(|to| needed[*to] > 0);
        sum + slower.map(|to| needed[to].min(room(to))).sum::<u64>()
    }

    /// Where a payload goes when it is evicted from `tier`.
    pub fn exit(&self, slot: SlotKey, tier: Tier) -> Option<Exit> {
        evict::exit(self.at(slot), tier, &self.capacity)
    }

    fn account(&mut self, slot: SlotKey, add: bool) {
        self.account_bytes(slot, add);
        let tier = shown_tier(self.at(slot));
        self.account_order(slot, tier, add);
    }

    fn account_bytes(&mut self, slot: SlotKey, add: bool) {
        let payload = self.payloads.get(slot).expect("the caller holds a live slot");
        for tier in Tier::ALL {
            if payload.replicas[tier].is_none() {
                continue;
            }
            let pages = payload.charged_on(tier);
            let leased = if payload.lease_count > 0 { pages } else { 0 };
            let pinned = if payload.pin == Pin::None { 0 } else { pages };
            let uncommitted = if payload.state.is_committed() { 0 } else { pages };
            let books = &mut self.books[tier];
            let put = |sum: &mut u64, bytes: u64| if add { *sum += bytes } else { *sum -= bytes };
            put(&mut books.logical, payload.size.0);
            if tier == Tier::Ram && payload.in_arena {
                put(&mut self.arena_bytes, payload.size.0);
            }
            put(&mut books.charged, pages);
            put(&mut books.leased, leased);
            put(&mut books.pinned, pinned);
            put(&mut books.uncommitted, uncommitted);
        }
    }

    fn account_order(&mut self, slot: SlotKey, tier: Option<Tier>, add: bool) {
        let Some(tier) = tier else { return };
        let key = self.at(slot).key;
        let count = self.counts.entry((key.namespace, tier)).or_default();
        let payloads = &self.payloads;
        let key_of = |index| key_at(payloads, index);
        if add {
            self.ordered[tier].insert(key, slot.index, key_of);
            *count += 1;
        } else {
            assert!(self.ordered[tier].remove(key, slot.index, key_of), "what is shown is ordered");
            *count -= 1;
        }
    }

    /// Notes that an entry at `offset` refers to a payload.
    ///
    /// # Panics
    /// When it is gone.
    pub(crate) fn hold(&mut self, slot: SlotKey, holder: Holder, name: Option<&HoldingStream>, offset: u64) {
        self.links(slot).held = true;
        self.holds.add(holder, name, offset, slot.index);
    }

    /// Entries before `floor` hold nothing any more.
    pub(crate) fn hold_floor(&mut self, holder: Holder, floor: u64) {
        self.holds.set_floor(holder, floor);
    }

    /// True while there is something for [`hold_drain`](Self::hold_drain).
    pub(crate) fn holds_drain(&self) -> bool {
        self.holds.is_draining()
    }

    /// Takes one hold out that a floor has passed; the payload, if it was the last one. `None`: there is none.
    pub(crate) fn hold_drain(&mut self) -> Option<Option<SlotKey>> {
        let (index, is_last) = self.holds.drain()?;
        let slot = self.payloads.key_at(index).expect("what is held exists");
        if is_last {
            self.links(slot).held = false;
        }
        Some(is_last.then_some(slot))
    }

    /// True when as many more can be held.
    pub(crate) fn holds_have_room(&self, more: usize) -> bool {
        self.holds.has_room(more)
    }

    /// How many holds there are.
    pub(crate) fn holds_len(&self) -> usize {
        self.holds.len()
    }

    /// Which streams keep a payload.
    pub(crate) fn holders(&self, slot: SlotKey) -> Vec<StreamHold> {
        self.holds.holders(slot.index)
    }

    /// Whether the holds fit together, and payloads know of them.
    pub(crate) fn check_holds(&self) -> Result<(), String> {
        self.holds.check()?;
        for index in self.iter().filter_map(|payload| self.find(payload.key)) {
            if self.at(index).held != self.holds.is_noted(index.index) {
                return Err(format!("{:?}: held is not what is noted", self.at(index).key));
            }
        }
        Ok(())
    }

    /// Who set the payload's pin; `None` when it was set before this start, or there is none.
    pub fn pin_owner(&self, slot: SlotKey) -> Option<PinOwner> {
        self.pin_owners.get(&slot.index).copied()
    }

    /// Remembers who set the payload's pin.
    pub fn set_pin_owner(&mut self, slot: SlotKey, owner: Option<PinOwner>) {
        match owner {
            Some(owner) => drop(self.pin_owners.insert(slot.index, owner)),
            None => drop(self.pin_owners.remove(&slot.index)),
        }
    }

    /// Every payload, in no order. For checks: as long as the table.
    pub fn iter(&self) -> impl Iterator<Item = &Payload> {
        self.ordered
            .0
            .iter()
            .flat_map(Order::iter)
            .filter_map(|slot| self.payloads.get(self.payloads.key_at(slot)?))
    }

    /// Bytes of current replicas by tier.
    pub fn books(&self, tier: Tier) -> TierBooks {
        self.books[tier]
    }

    /// This shard's part of Stats.
    pub fn stats(&self) -> ShardStats {
        let mut stats = ShardStats::default();
        for tier in Tier::ALL {
            let payloads = self.ordered[tier].len() as u64;
            let TierBooks { logical: bytes, charged: current, uncommitted, .. } = self.books[tier];
            stats.tiers[tier] = TierStats { payloads, bytes, current, uncommitted, ..TierStats::default() };
        }
        stats
    }

    /// This shard's part of a page: newest first, below the cursor.
    pub fn page(&self, list: &List) -> ShardPage {
        let tiers = Tier::ALL.into_iter().filter(|tier| list.tier.is_none_or(|only| only == *tier));
        let end = match list.before {
            Some(id) => Bound::Excluded(PayloadKey { namespace: list.namespace, id }),
            None => Bound::Included(PayloadKey {
                namespace: list.namespace,
                id: PayloadId::from_bytes([0xFF; 16]),
            }),
        };
        let at =
            |index| self.payloads.key_at(index).map(|slot| self.at(slot)).expect("ordered payloads exist");
        let mut page = ShardPage::default();
        // One walk a tier, newest first; each head is the newest not yet taken of its tier.
        let mut walks = Vec::with_capacity(Tier::ALL.len());
        for tier in tiers {
            page.total += self.counts.get(&(list.namespace, tier)).copied().unwrap_or(0);
            let walk = self.ordered[tier].descending(end, |index| at(index).key);
            let mut walk = walk.map(at).take_while(|payload| payload.key.namespace == list.namespace);
            walks.push((walk.next(), walk));
        }
        while page.rows.len() < list.page_size {
            let newest = walks.iter_mut().max_by_key(|(head, _)| head.map(|payload| payload.key));
            let Some((head, walk)) = newest else { break };
            let Some(payload) = *head else { break };
            *head = walk.next();
            page.rows.push(payload.summary());
        }
        page
    }
}

/// The key of the payload in a slot that is taken.
fn key_at(payloads: &Slots<Payload>, index: u32) -> PayloadKey {
    let slot = payloads.key_at(index).and_then(|slot| payloads.get(slot));
    slot.expect("ordered payloads exist").key
}
