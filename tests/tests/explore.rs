//! Every small state of direct leases: no promise is broken, everything comes to an end, and each planted bug is found.

use payload_tests::explore::lease::{Bug, Leases};
use payload_tests::explore::{Breach, explore};

#[test]
fn given_readers_that_die_at_any_moment_when_a_table_is_replaced_and_leases_are_taken_then_no_state_breaks_a_promise()
 {
    for revokes in [false, true] {
        let seen = explore(&Leases { bug: None, revokes }).unwrap_or_else(|breach| panic!("{breach:#?}"));
        println!("revokes: {revokes}: {seen:?}");
        assert!(seen.states > 100_000 && seen.ends > 1_000, "{seen:?} is no exploration");
    }
}

#[test]
fn given_a_planted_bug_when_explored_then_a_way_to_the_broken_promise_is_found() {
    for bug in Bug::ALL {
        // What never comes to an end is often ended by taking leases away.
        let found =
            [true, false].into_iter().find_map(|revokes| explore(&Leases { bug: Some(bug), revokes }).err());
        let Breach { promise, way } = found.unwrap_or_else(|| panic!("{bug:?} is not found"));
        println!("{bug:?}: {way:?}");
        assert_eq!(promise.contains("the end"), bug.is_leak(), "{bug:?}: {promise}: {way:?}");
    }
}
