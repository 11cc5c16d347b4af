//! The node's capacity, shared among its shards; who waits for it, and who makes room.
//!
//! Shards charge against what they were granted and ask for more when that is not enough; an ask waits until it is
//! met or cancelled. As long as there is plenty a grant comes with something to spare. Once a tier passes its high
//! watermark, or somebody waits, it is *under pressure*: all spares are called in, what is freed comes back at once,
//! and shards are told to evict, until it is below its low watermark and nobody waits.
//!
//! ```text
//!   Ask --> free is enough: Granted
//!       --> else it waits; pressure: Recall to every shard --> their Returns (spare, what they could evict)
//!           --> while too little is on its way out: Recall { evict } to the shard with the first victim --> its Return
//!           --> ... Freed --> Return --> Granted                    Cancel --> Denied
//! ```
//! Victims of all shards are merged by rank: the shard whose first victim goes first of all is told to evict until
//! it has started enough, or its next victim ranks behind another shard's. One such order a tier at a time.
//!
//! A tier to which others move down is *full* once somebody waits for more than is free or on its way out and nobody
//! there can go. Shards are told so, with what is free, and again when that grows, until the pressure there is over: they
//! then evict what needs no room there, and let one after another of the rest wait in the queue like everybody else.
//!
//! Invariant: granted + free + pot = capacity, unless replicas adopted at boot exceed a capacity that was lowered.

mod waiters;

use payload_types::effect::{BudgetRequest, TierSupply, TierUsage};
use payload_types::event::{BudgetReply, EvictOrder};
use payload_types::{ByteCount, OpId, PerTier, Rank, ShardIndex, Tier, limits};

use waiters::{Waiter, Waiters};

/// What one shard is given beyond its need at most: asking again costs two messages, keeping costs others a recall.
const BONUS_BYTES_MAX: u64 = 256 << 20;

/// When eviction begins and where it ends, in percent of a tier's capacity.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Watermarks {
    /// Eviction ends here.
    pub low: u8,
    /// It begins above this.
    pub high: u8,
}

impl Default for Watermarks {
    /// 80 % and 90 % (behaviour.md).
    fn default() -> Self {
        Self { low: 80, high: 90 }
    }
}

/// An order under way to a shard.
#[derive(Clone, Copy, Debug)]
struct Order {
    recall: u64,
    pressure: bool,
}

/// What is known of a shard.
#[derive(Clone, Copy, Debug, Default)]
struct Member {
    usage: TierUsage,
    supply: TierSupply,
    order: Option<Order>,
    /// It has confirmed that the tier is under pressure: it holds no spare, and reports what it could evict.
    pressed: bool,
    /// What it was told to be free of the full tier, or less when some of that is gone. `None`: it has asked since, or the
    /// tier was not full.
    told: Option<u64>,
}

#[derive(Debug)]
struct Budget {
    capacity: u64,
    low: u64,
    high: u64,
    free: u64,
    /// Adopted at boot beyond the capacity; what is returned pays this first.
    overdrawn: u64,
    waiters: Waiters,
    pressure: bool,
    /// The high watermark was passed, and the low one is not reached yet.
    draining: bool,
    /// There is a faster tier, whose replicas may move here.
    is_destination: bool,
    /// Nobody who waits can be served by what is on its way. Until the pressure is over.
    full: bool,
    recall: u64,
    members: Vec<Member>,
}

/// See the module.
#[derive(Debug)]
pub struct Arbiter {
    budgets: PerTier<Budget>,
}

type Replies = Vec<(ShardIndex, BudgetReply)>;

impl Arbiter {
    /// All capacity free; watermarks as they are by default.
    pub fn new(capacity: PerTier<Option<ByteCount>>, shard_count: u16) -> Self {
        Self::with_watermarks(capacity, PerTier::default(), shard_count)
    }

    /// All capacity free.
    ///
    /// # Panics
    /// Unless low < high <= 100 everywhere: the configuration was validated.
    pub fn with_watermarks(
        capacity: PerTier<Option<ByteCount>>,
        watermarks: PerTier<Watermarks>,
        shard_count: u16,
    ) -> Self {
        let budget = |tier| {
            let Watermarks { low, high } = watermarks[tier];
            assert!(low < high && high <= 100, "{tier}: watermarks of {low} % and {high} %");
            let mut faster = Tier::ALL.into_iter().filter(|other| other.is_faster_than(tier));
            let is_destination = faster.any(|other| capacity[other].is_some());
            let capacity = capacity[tier].unwrap_or_default().0;
            let share = |percent: u8| (u128::from(capacity) * u128::from(percent) / 100) as u64;
            Budget {
                capacity,
                low: share(low),
                high: share(high),
                free: capacity,
                overdrawn: 0,
                waiters: Waiters::default(),
                pressure: false,
                draining: false,
                is_destination,
                full: false,
                recall: 0,
                members: vec![Member::default(); usize::from(shard_count)],
            }
        };
        Self { budgets: PerTier(Tier::ALL.map(budget)) }
    }

    /// At boot: `shard` holds `bytes` already.
    pub fn preload(&mut self, _shard: ShardIndex, tier: Tier, bytes: ByteCount) {
        let budget = &mut self.budgets[tier];
        budget.overdrawn += bytes.0.saturating_sub(budget.free);
        budget.free = budget.free.saturating_sub(bytes.0);
    }

    /// Granted to nobody, and collected for nobody.
    pub fn free(&self, tier: Tier) -> ByteCount {
        ByteCount(self.budgets[tier].free)
    }

    /// Collected for the oldest ask that waits.
    pub fn pot(&self, tier: Tier) -> ByteCount {
        ByteCount(self.budgets[tier].waiters.pot())
    }

    /// Asks that wait.
    pub fn waiting(&self, tier: Tier) -> usize {
        self.budgets[tier].waiters.len()
    }

    /// So much must become free before the next of those who wait can be served, or, once the high watermark was passed,
    /// before the low one is reached, whichever is less. 0: neither is so, or shards may still have it to spare.
    pub fn wanted(&self, tier: Tier) -> ByteCount {
        let budget = &self.budgets[tier];
        if !budget.members.iter().all(|member| member.pressed) {
            return ByteCount::ZERO;
        }
        let lack = budget.waiters.lack_least().map(|lack| lack.saturating_sub(budget.free));
        let surplus = budget.draining.then(|| budget.granted() - budget.low);
        ByteCount(lack.into_iter().chain(surplus).min().unwrap_or_default())
    }

    /// True between the high watermark and the low one, and while somebody waits.
    pub fn is_pressed(&self, tier: Tier) -> bool {
        self.budgets[tier].pressure
    }

    /// Handles one message; the answers are added to `out`: at most one order a shard, and one for each ask that is
    /// over.
    pub fn step(&mut self, request: BudgetRequest, out: &mut Replies) {
        let tier = match request {
            BudgetRequest::Ask { shard, op, tier, bytes } => {
                let budget = &mut self.budgets[tier];
                let limit = limits::BUDGET_ASKS_PER_SHARD_MAX * budget.members.len();
                assert!(budget.waiters.len() < limit, "each ask belongs to an operation");
                budget.waiters.push(Waiter { shard, op, bytes: bytes.0 });
                budget.members[usize::from(shard.0)].told = None;
                tier
            }
            BudgetRequest::Cancel { shard, op, tier } => {
                self.budgets[tier].cancel(tier, shard, op, out);
                tier
            }
            BudgetRequest::Return { shard, tier, bytes, recall, usage, supply } => {
                let budget = &mut self.budgets[tier];
                let member = &mut budget.members[usize::from(shard.0)];
                (member.usage, member.supply) = (usage, supply);
                if let Some(order) = member.order.filter(|order| recall == Some(order.recall)) {
                    member.order = None;
                    member.pressed = order.pressure;
                }
                budget.take_back(bytes.0);
                tier
            }
        };
        let budget = &mut self.budgets[tier];
        budget.serve(tier, out);
        budget.watch();
        budget.order(tier, out);
    }
}

impl Budget {
    /// Charged or spare, with the shards.
    fn granted(&self) -> u64 {
        self.capacity + self.overdrawn - self.free - self.waiters.pot()
    }

    fn take_back(&mut self, bytes: u64) {
        let repaid = bytes.min(self.overdrawn);
        self.overdrawn -= repaid;
        self.free += bytes - repaid;
        self.waiters.collect(&mut self.free, bytes - repaid);
    }

    fn cancel(&mut self, tier: Tier, shard: ShardIndex, op: OpId, out: &mut Replies) {
        if self.waiters.cancel(&mut self.free, shard, op) {
            let others = (0..).zip(&self.members).filter(|(other, _)| *other != shard.0);
            let usage = others.fold(TierUsage::default(), |sum, (_, member)| sum.plus(member.usage));
            let free = ByteCount(self.free);
            out.push((shard, BudgetReply::Denied { op, tier, free, usage }));
        }
    }

    fn serve(&mut self, tier: Tier, out: &mut Replies) {
        let Self { waiters, free, .. } = self;
        let first = out.len();
        waiters.serve(free, |Waiter { shard, op, bytes }| {
            out.push((shard, BudgetReply::Granted { op, tier, bytes: ByteCount(bytes) }));
        });
        // Something to spare, below the high watermark; with one shard there is nobody to keep anything for.
        let plenty = self.high.saturating_sub(self.granted());
        if self.pressure || !self.waiters.is_empty() || plenty == 0 {
            return;
        }
        let shard_count = self.members.len() as u64;
        let share = if shard_count == 1 { plenty } else { (plenty / (2 * shard_count)).min(BONUS_BYTES_MAX) };
        let bonus = share.min(self.free) / limits::PAGE_BYTES * limits::PAGE_BYTES;
        if let Some((_, BudgetReply::Granted { bytes, .. })) = out.get_mut(first) {
            self.free -= bonus;
            bytes.0 += bonus;
        }
    }

    /// Begins and ends the pressure. It ends at the low watermark, so that it does not come and go with each ask.
    fn watch(&mut self) {
        let granted = self.granted();
        let waits = !self.waiters.is_empty();
        self.pressure = waits || granted > if self.pressure { self.low } else { self.high };
        self.draining &= self.pressure && granted > self.low;
        self.full &= self.pressure;
    }

    /// Tells shards what they do not know yet, and who shall evict.
    fn order(&mut self, tier: Tier, out: &mut Replies) {
        let pressure = self.pressure;
        let mut all_told = true;
        for shard in 0..self.members.len() {
            let member = &self.members[shard];
            all_told &= member.pressed == pressure && member.order.is_none();
            if member.pressed != pressure && member.order.is_none() {
                self.send(tier, shard, None, out);
            }
        }
        // Spares are used by nobody: only without them it is known whether the tier is full, and who goes first.
        if !pressure || !all_told {
            return;
        }
        self.draining |= self.granted() > self.high;
        let leaving: u64 = self.members.iter().map(|member| member.supply.leaving).sum();
        let need = self.need().saturating_sub(leaving);
        let head = |member: &Member| member.supply.head;
        let first =
            (0..self.members.len()).filter_map(|shard| Some((head(&self.members[shard])?, shard))).min();
        if let Some((_, shard)) = first.filter(|_| need > 0) {
            let others = (0..).zip(&self.members).filter(|(other, _)| *other != shard);
            let bound: Option<Rank> = others.filter_map(|(_, member)| head(member)).min();
            let leaving = ByteCount(self.members[shard].supply.leaving);
            self.send(tier, shard, Some(EvictOrder { bytes: ByteCount(need), bound, leaving }), out);
        } else {
            self.tell_room(tier, leaving, out);
        }
    }

    /// Nobody can be told to evict: is the tier full, and do all shards know?
    fn tell_room(&mut self, tier: Tier, leaving: u64, out: &mut Replies) {
        let lacks = self.waiters.lack() > self.free + leaving;
        self.full |= lacks && self.is_destination;
        if !self.full {
            return;
        }
        for shard in 0..self.members.len() {
            let free = self.free;
            let told = &mut self.members[shard].told;
            if told.map_or(lacks || self.waiters.is_empty(), |told| free > told) {
                self.send(tier, shard, None, out);
            } else {
                *told = told.map(|told| told.min(free));
            }
        }
    }

    /// What must leave: down to the low watermark once the high one was passed, and what those who wait lack.
    fn need(&self) -> u64 {
        let surplus = if self.draining { self.granted() - self.low } else { 0 };
        surplus.max(self.waiters.lack().saturating_sub(self.free))
    }

    fn send(&mut self, tier: Tier, shard: usize, evict: Option<EvictOrder>, out: &mut Replies) {
        self.recall += 1;
        let (recall, pressure) = (self.recall, self.pressure);
        let room = self.full.then_some(ByteCount(self.free));
        let member = &mut self.members[shard];
        member.order = Some(Order { recall, pressure });
        member.told = room.map(|room| room.0);
        out.push((ShardIndex(shard as u16), BudgetReply::Recall { tier, recall, pressure, room, evict }));
    }
}

#[cfg(test)]
mod tests;
