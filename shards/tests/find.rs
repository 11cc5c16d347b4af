//! Find and Describe: one shard's part of FindPayloads.

#[allow(dead_code, reason = "every test binary uses its own part")]
mod world;

use payload_types::find::{Describe, FIND_STEPS_MAX, Find, FindOrder, FoundPart, IdSpan, PayloadFilter};
use payload_types::reply::Reply;
use payload_types::request::Request;
use payload_types::*;
use world::{World, config};

fn find() -> Find {
    Find {
        namespace: NamespaceId::DEFAULT,
        span: IdSpan::ALL,
        order: FindOrder::NewestFirst,
        filter: PayloadFilter::default(),
        rows_max: 500,
    }
}

fn part(world: &mut World, find: &Find) -> FoundPart {
    match world.ask(Request::Find(find.clone())) {
        Ok(Reply::Found(part)) => part,
        other => panic!("{other:?}"),
    }
}

/// All there are, and in how many parts they came.
fn all(world: &mut World, mut find: Find) -> (Vec<PayloadId>, usize) {
    let mut rows = Vec::new();
    for count in 1.. {
        let part = part(world, &find);
        assert!(part.rows.len() <= find.rows_max);
        rows.extend(part.rows.iter().map(|row| row.id));
        let Some(last) = part.reached else { return (rows, count) };
        assert!(find.span.contains(last), "each part goes on");
        find.span = find.span.behind(find.order, last);
    }
    unreachable!("counted without end")
}

#[test]
fn given_payloads_on_two_tiers_when_found_in_parts_then_in_both_orders_each_once_and_as_filtered() {
    let mut world = World::new();
    let made: Vec<PayloadId> = (0..30)
        .map(|number: u64| {
            let tier = if number.is_multiple_of(3) { Tier::Disk } else { Tier::Ram };
            match number % 5 {
                0 => world.allocate(tier, 10 + number).id,
                _ => world.committed(tier, 10 + number).id,
            }
        })
        .collect();
    let numbers = |is: &dyn Fn(usize) -> bool| -> Vec<PayloadId> {
        (0..30).filter(|number| is(*number)).map(|number| made[number]).collect()
    };
    let any = PayloadFilter::default();
    let cases: [(PayloadFilter, Vec<PayloadId>); 6] = [
        (any, made.clone()),
        (PayloadFilter { tier: Some(Tier::Disk), ..any }, numbers(&|number| number % 3 == 0)),
        (PayloadFilter { tier: Some(Tier::Gpu), ..any }, Vec::new()),
        (PayloadFilter { state: Some(PayloadState::Allocated), ..any }, numbers(&|number| number % 5 == 0)),
        (
            PayloadFilter { state: Some(PayloadState::Durable), ..any },
            numbers(&|number| number % 3 == 0 && number % 5 > 0),
        ),
        (PayloadFilter { size_min: 12, size_max: 14, ..any }, made[2..=4].to_vec()),
    ];
    for (filter, expected) in cases {
        for rows_max in [1, 7, 500] {
            let oldest = Find { filter, rows_max, order: FindOrder::OldestFirst, ..find() };
            assert_eq!(all(&mut world, oldest).0, expected, "{filter:?}");
            let (mut newest, _) = all(&mut world, Find { filter, rows_max, ..find() });
            newest.reverse();
            assert_eq!(newest, expected, "{filter:?}");
        }
    }
    let span = IdSpan { low: made[10], high: made[20] };
    for order in [FindOrder::NewestFirst, FindOrder::OldestFirst] {
        let (mut some, _) = all(&mut world, Find { span, order, rows_max: 4, ..find() });
        some.sort();
        assert_eq!(some, made[10..=20]);
    }
    let other = Find { namespace: NamespaceId(7), ..find() };
    assert_eq!(part(&mut world, &other), FoundPart::default());
    assert_eq!(part(&mut world, &Find { span: IdSpan::NONE, ..find() }), FoundPart::default());
}

#[test]
fn given_more_payloads_than_a_part_looks_at_when_few_fit_then_the_turn_is_bounded_and_says_how_far_it_came() {
    let mut large = config(1);
    large.capacity[Tier::Disk] = Some(ByteCount(1 << 30));
    let mut world = World::with(large);
    let count = 2 * FIND_STEPS_MAX + 10;
    let made: Vec<PayloadId> =
        (0..count).map(|number| world.allocate(Tier::Disk, if number == 3 { 2 } else { 1 }).id).collect();
    let large = Find { filter: PayloadFilter { size_min: 2, ..PayloadFilter::default() }, ..find() };
    let first = part(&mut world, &large);
    assert_eq!((first.rows.len(), first.reached), (0, Some(made[count - FIND_STEPS_MAX])));
    assert_eq!(all(&mut world, large.clone()), (vec![made[3]], 3));
    let oldest = Find { order: FindOrder::OldestFirst, ..large };
    let first = part(&mut world, &oldest);
    assert_eq!((first.rows.len(), first.reached), (1, Some(made[FIND_STEPS_MAX - 1])));
}

#[test]
fn given_some_ids_when_described_then_what_listings_show_of_those_that_are_there() {
    let mut world = World::new();
    let keys = [world.committed(Tier::Ram, 5), world.allocate(Tier::Disk, 6), world.committed(Tier::Ram, 7)];
    world.ask(Request::Delete { key: keys[2], force: false, expected_version: None }).expect("deleted");
    let ids = keys.iter().map(|key| key.id).chain([world.new_key().id]).collect();
    let asked = Describe { namespace: NamespaceId::DEFAULT, ids };
    let Ok(Reply::Found(described)) = world.ask(Request::Describe(asked)) else { panic!("a part") };
    let Ok(Reply::Found(mut listed)) = world.ask(Request::Find(find())) else { panic!("a part") };
    listed.rows.reverse();
    assert_eq!(described.rows, listed.rows);
    assert_eq!(described.rows.len(), 2);
}
