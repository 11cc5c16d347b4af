//! The simulator's own tests: the shipped core keeps its promises, a broken one is noticed, runs are repeatable, and
//! the situations that matter are met.

use payload_tests::sim::{self, Canary, Coverage, Options};

/// Seeds of the ordinary run. `tests/sim --seeds N --from S` runs more.
const SEEDS: u64 = 400;

/// Seeds of nodes that are asked for more than they hold.
const OVERLOAD_SEEDS: u64 = 30;

/// Seeds within which each planted bug must be noticed.
const CANARY_SEEDS: u64 = 120;

#[test]
fn given_400_seeds_when_run_then_every_promise_is_kept_and_every_situation_was_met() {
    let mut coverage = Coverage::default();
    for seed in 0..SEEDS {
        match sim::run(seed, Options::default()) {
            Ok(passed) => coverage.add(&passed.coverage),
            Err(failure) => panic!("{failure}"),
        }
    }
    assert_eq!(coverage.missed(), Vec::<&str>::new(), "situations that no seed met");
}

/// Each showed a rule that was wrong, or a shard.
#[test]
fn given_seeds_that_were_red_when_run_then_every_promise_is_kept() {
    for seed in [
        601_000_146,
        610_000_460,
        610_000_688,
        730_000_461,
        730_000_671,
        730_001_964,
        730_001_971,
        750_000_061,
        5_139,
        5_289,
    ] {
        if let Err(failure) = sim::run(seed, Options::default()) {
            panic!("{failure}");
        }
    }
}

#[test]
fn given_a_planted_bug_when_run_then_the_oracle_notices_it_by_the_promise_it_breaks() {
    for canary in Canary::ALL {
        let (overload, crammed) = (canary.needs_overload(), canary.needs_crammed());
        let options = Options { canary: Some(canary), overload, crammed, ..Options::default() };
        let rules: Vec<_> = (0..CANARY_SEEDS)
            .filter_map(|seed| sim::run(seed, options).err())
            .map(|failure| failure.breach.rule)
            .collect();
        let told = rules.iter().filter(|rule| canary.rules().contains(rule)).count();
        // Now and then a bug is first seen by what it leads to; most often it must be seen by what it is.
        assert!(told > 0 && 2 * told >= rules.len(), "{canary:?} in {CANARY_SEEDS} seeds: {rules:?}");
    }
}

#[test]
fn given_more_demand_than_ram_holds_when_it_never_ends_then_everybody_is_served_in_bounded_time() {
    let mut served = 0;
    for seed in 0..OVERLOAD_SEEDS {
        match sim::run(seed, Options { overload: true, ..Options::default() }) {
            Ok(passed) => {
                let counts: std::collections::BTreeMap<_, _> = passed.coverage.counts().collect();
                served += counts["waiter_served_by_an_eviction"];
            }
            Err(failure) => panic!("{failure}"),
        }
    }
    assert!(served > 50 * OVERLOAD_SEEDS, "{served} waits: this was no overload");
}

#[test]
fn given_one_seed_when_run_twice_then_the_traces_are_equal_and_another_seed_differs() {
    let hash = |seed| match sim::run(seed, Options::default()) {
        Ok(passed) => passed.trace_hash,
        Err(failure) => panic!("{failure}"),
    };
    let hashes: Vec<u64> = (0..10).map(hash).collect();
    assert_eq!(hashes, (0..10).map(hash).collect::<Vec<_>>());
    let distinct: std::collections::BTreeSet<u64> = hashes.iter().copied().collect();
    assert_eq!(distinct.len(), hashes.len());
}
