//! One message after the other: what the arbiter answers.

use payload_types::{EvictionPriority, Monotonic};

use super::*;

const PAGE: u64 = limits::PAGE_BYTES;

/// A tier of so many pages, watermarks at 80 and 90 %.
struct World {
    arbiter: Arbiter,
    /// What the shards were told and did not answer.
    orders: Vec<(u16, u64, Option<EvictOrder>)>,
    granted: Vec<(u16, u64)>,
    denied: Vec<(u16, TierUsage)>,
    /// In pages, as shards were told.
    rooms: Vec<(u16, Option<u64>)>,
}

fn rank(used_at: u64) -> Rank {
    Rank { priority: EvictionPriority::Normal, used_at: Monotonic(used_at) }
}

fn supply(head: Option<u64>, leaving: u64) -> TierSupply {
    TierSupply { evictable: 0, head: head.map(rank), leaving: leaving * PAGE }
}

impl World {
    fn new(pages: u64, shards: u16) -> Self {
        let mut capacity = PerTier::default();
        capacity[Tier::Ram] = Some(ByteCount(pages * PAGE));
        // From there payloads move down to RAM.
        capacity[Tier::Gpu] = Some(ByteCount(PAGE));
        let arbiter = Arbiter::new(capacity, shards);
        Self { arbiter, orders: Vec::new(), granted: Vec::new(), denied: Vec::new(), rooms: Vec::new() }
    }

    fn step(&mut self, request: BudgetRequest) {
        let mut out = Vec::new();
        self.arbiter.step(request, &mut out);
        for (shard, reply) in out {
            match reply {
                BudgetReply::Granted { bytes, .. } => self.granted.push((shard.0, bytes.0 / PAGE)),
                BudgetReply::Denied { usage, .. } => self.denied.push((shard.0, usage)),
                BudgetReply::Recall { recall, room, evict, .. } => {
                    self.orders.push((shard.0, recall, evict));
                    self.rooms.push((shard.0, room.map(|room| room.0 / PAGE)));
                }
            }
        }
    }

    fn ask(&mut self, shard: u16, number: u32, pages: u64) {
        let op = OpId { index: number, generation: 1 };
        let bytes = ByteCount(pages * PAGE);
        self.step(BudgetRequest::Ask { shard: ShardIndex(shard), op, tier: Tier::Ram, bytes });
    }

    fn cancel(&mut self, shard: u16, number: u32) {
        let op = OpId { index: number, generation: 1 };
        self.step(BudgetRequest::Cancel { shard: ShardIndex(shard), op, tier: Tier::Ram });
    }

    fn give(&mut self, shard: u16, pages: u64, recall: Option<u64>, supply: TierSupply) {
        let usage = TierUsage { allocated: 7, ..TierUsage::default() };
        let (shard, bytes) = (ShardIndex(shard), ByteCount(pages * PAGE));
        self.step(BudgetRequest::Return { shard, tier: Tier::Ram, bytes, recall, usage, supply });
    }

    /// Every shard answers what it was told, with so much to spare and to evict.
    fn answer(&mut self, spare: &[u64], supplies: &[TierSupply]) {
        for (shard, recall, _) in std::mem::take(&mut self.orders) {
            let at = usize::from(shard);
            self.give(shard, spare[at], Some(recall), supplies[at]);
        }
    }

    fn grants(&mut self) -> Vec<(u16, u64)> {
        std::mem::take(&mut self.granted)
    }

    /// The tier is full and under pressure; every shard holds its part and has nothing to evict.
    fn full(pages: u64, shards: u16) -> Self {
        let mut world = Self::new(pages, shards);
        let part = pages / u64::from(shards);
        for shard in 0..shards {
            world.arbiter.preload(ShardIndex(shard), Tier::Ram, ByteCount(part * PAGE));
        }
        world
    }
}

#[test]
fn given_one_shard_when_it_asks_then_it_gets_all_below_the_high_watermark() {
    let mut world = World::new(100, 1);
    world.ask(0, 1, 1);
    assert_eq!(world.grants(), [(0, 90)]);
    assert!(world.orders.is_empty());
    world.ask(0, 2, 1);
    assert_eq!(world.grants(), [(0, 1)], "above it, exactly what was asked for");
    assert_eq!(world.orders.len(), 1, "and the tier is under pressure");
}

#[test]
fn given_a_spare_elsewhere_when_asked_then_it_is_called_in_and_nothing_is_evicted() {
    let mut world = World::new(16, 3);
    world.ask(0, 1, 8);
    world.ask(1, 1, 6);
    world.grants();
    world.ask(2, 1, 4);
    assert_eq!(world.orders.len(), 3);
    world.answer(&[0, 4, 0], &[supply(Some(1), 0); 3]);
    assert_eq!(world.grants(), [(2, 4)]);
    assert!(world.orders.iter().all(|(_, _, evict)| evict.is_none()) || world.arbiter.free(Tier::Ram).0 > 0);
}

#[test]
fn given_victims_on_two_shards_when_somebody_waits_then_the_first_goes_first_up_to_the_others_rank() {
    let mut world = World::full(8, 2);
    world.ask(1, 1, 2);
    world.answer(&[0, 0], &[supply(Some(5), 0), supply(Some(3), 0)]);
    let [(shard, recall, Some(order))] = world.orders[..] else { panic!("{:?}", world.orders) };
    assert_eq!((shard, order.bound), (1, Some(rank(5))));
    assert_eq!(order.bytes.0, 2 * PAGE, "8 of 8 are used: 2 of 8 waited for is more than what is above 80 %");
    world.orders.clear();
    world.give(1, 0, Some(recall), supply(Some(9), 1));
    let [(0, recall, Some(EvictOrder { bytes: ByteCount(PAGE), .. }))] = world.orders[..] else {
        panic!("{:?}", world.orders)
    };
    world.orders.clear();
    world.give(0, 0, Some(recall), supply(None, 1));
    assert!(world.orders.is_empty(), "enough is on its way");
    world.give(0, 1, None, supply(None, 0));
    world.give(1, 1, None, supply(Some(9), 0));
    assert_eq!(world.grants(), [(1, 2)]);
}

#[test]
fn given_the_high_watermark_passed_when_evicting_then_it_ends_at_the_low_one_and_the_pressure_with_it() {
    let mut world = World::new(100, 1);
    world.arbiter.preload(ShardIndex(0), Tier::Ram, ByteCount(90 * PAGE));
    world.ask(0, 1, 5);
    assert_eq!(world.grants(), [(0, 5)]);
    world.answer(&[0], &[supply(Some(1), 0)]);
    let [(0, recall, Some(order))] = world.orders[..] else { panic!("{:?}", world.orders) };
    assert_eq!(order.bytes.0, 15 * PAGE);
    world.orders.clear();
    world.give(0, 0, Some(recall), supply(Some(2), 15));
    assert!(world.orders.is_empty());
    world.give(0, 14, None, supply(Some(2), 1));
    assert!(world.orders.is_empty() && world.arbiter.is_pressed(Tier::Ram));
    world.give(0, 1, None, supply(Some(2), 0));
    assert!(!world.arbiter.is_pressed(Tier::Ram));
    assert!(matches!(world.orders[..], [(0, _, None)]), "the shard is told");
}

#[test]
fn given_a_huge_wait_and_small_asks_when_bytes_are_freed_then_both_are_served() {
    let mut world = World::full(100, 1);
    world.ask(0, 1, 40);
    world.answer(&[0], &[supply(None, 0)]);
    let (mut small, mut number) = (0, 1);
    while world.granted.iter().all(|(_, pages)| *pages != 40) {
        number += 1;
        world.ask(0, number, 1);
        world.give(0, 1, None, supply(None, 0));
        small += 1;
        assert!(small < 100, "the huge one starves");
    }
    assert_eq!(small, 79, "half of what is freed is the huge one's, and what is left at its turn");
    assert!(world.granted.len() >= 40, "and small ones went on");
}

#[test]
fn given_one_page_freed_at_a_time_when_the_oldest_collects_then_never_more_than_half() {
    let mut world = World::full(10, 1);
    world.ask(0, 1, 5);
    world.answer(&[0], &[supply(None, 0)]);
    let pots: Vec<u64> = (0..4)
        .map(|_| {
            world.give(0, 1, None, supply(None, 0));
            world.arbiter.pot(Tier::Ram).0 / PAGE
        })
        .collect();
    assert_eq!(pots, [0, 1, 1, 2]);
    world.give(0, 1, None, supply(None, 0));
    assert_eq!(world.grants(), [(0, 5)], "with nobody else, what is free counts too");
}

#[test]
fn given_a_collector_when_it_is_cancelled_then_its_pot_serves_the_next_and_it_is_told_who_uses_the_tier() {
    let mut world = World::full(10, 2);
    world.ask(0, 1, 9);
    world.answer(&[0, 0], &[supply(None, 0); 2]);
    world.ask(1, 2, 4);
    world.give(0, 3, None, supply(None, 0));
    world.give(1, 3, None, supply(None, 0));
    assert!(world.granted.is_empty(), "3 of 6 are in the pot");
    world.cancel(0, 1);
    assert_eq!((world.grants(), world.denied[0].0), (vec![(1, 4)], 0));
    assert_eq!(world.denied[0].1.allocated, 7, "the other shard's");
    assert_eq!((world.arbiter.pot(Tier::Ram).0, world.arbiter.free(Tier::Ram).0), (0, 2 * PAGE));
    world.cancel(1, 2);
    assert_eq!(world.denied.len(), 1, "served before it was cancelled");
}

#[test]
fn given_more_adopted_than_the_capacity_when_returned_then_the_overdraft_is_paid_first() {
    let mut world = World::new(1, 1);
    world.arbiter.preload(ShardIndex(0), Tier::Ram, ByteCount(3 * PAGE));
    world.give(0, 2, None, supply(None, 0));
    assert_eq!(world.arbiter.free(Tier::Ram), ByteCount::ZERO);
    world.give(0, 1, None, supply(None, 0));
    assert_eq!(world.arbiter.free(Tier::Ram), ByteCount(PAGE));
}

#[test]
fn given_waiters_when_they_come_and_go_then_what_is_wanted_is_what_the_next_one_lacks() {
    let mut world = World::full(100, 2);
    let wanted = |world: &World| world.arbiter.wanted(Tier::Ram).0 / PAGE;
    world.give(0, 4, None, supply(None, 0));
    world.ask(0, 1, 20);
    assert_eq!(wanted(&world), 0, "the other shard may have it to spare");
    world.answer(&[0, 3], &[supply(None, 0); 2]);
    // It collected one of the three, and six are free.
    assert_eq!((world.arbiter.pot(Tier::Ram).0 / PAGE, world.arbiter.free(Tier::Ram).0 / PAGE), (1, 6));
    assert_eq!(wanted(&world), 20 - 1 - 6);
    world.ask(1, 1, 9);
    assert_eq!(wanted(&world), 9 - 6, "the second one lacks less");
    world.give(1, 6, None, supply(None, 0));
    assert_eq!(world.grants(), [(1, 9)]);
    assert_eq!(wanted(&world), 20 - 4, "and the first one goes on");
    world.cancel(0, 1);
    assert_eq!(wanted(&world), 96 - 80, "down to the low watermark, which 96 of 100 are above");
    world.give(0, 16, None, supply(None, 0));
    assert_eq!(wanted(&world), 0);
}

#[test]
fn given_a_tier_in_which_nothing_moves_when_waited_for_then_shards_are_told_what_is_free_and_that_it_grows() {
    let mut world = World::full(100, 2);
    let told = |world: &mut World| std::mem::take(&mut world.rooms);
    world.ask(0, 1, 20);
    assert_eq!(told(&mut world), [(0, None), (1, None)], "not known yet");
    world.answer(&[0, 0], &[supply(None, 0), supply(Some(3), 0)]);
    assert_eq!(told(&mut world), [(1, None)], "somebody can go");
    world.answer(&[0, 0], &[supply(None, 0), supply(None, 20)]);
    assert!(told(&mut world).is_empty(), "and is on his way");
    world.give(1, 0, None, supply(None, 5));
    assert_eq!(told(&mut world), [(0, Some(0)), (1, Some(0))]);
    world.answer(&[0, 0], &[supply(None, 0), supply(None, 5)]);
    world.give(1, 2, None, supply(None, 3));
    assert_eq!(told(&mut world), [(0, Some(1)), (1, Some(1))], "of two freed one is collected for the first");
    world.answer(&[0, 0], &[supply(None, 0); 2]);
    world.ask(1, 2, 4);
    assert_eq!(told(&mut world), [(1, Some(1))], "who asks anew is told");
    world.answer(&[0, 0], &[supply(None, 0); 2]);
    assert!(told(&mut world).is_empty());
    world.cancel(1, 2);
    world.cancel(0, 1);
    assert_eq!(told(&mut world), [(0, Some(2)), (1, Some(2))], "what was collected is free");
    world.answer(&[0, 0], &[supply(None, 0); 2]);
    world.give(0, 18, None, supply(None, 0));
    assert_eq!(told(&mut world), [(0, None), (1, None)], "the pressure is over");
}
