//! The torture of direct leases, for a few seconds, and the bugs that it must find. `tests/run` goes on with it for a minute
//! beside other tests; `target/release/torture --seconds N` runs as long as one likes.

use std::time::Duration;

use payload_tests::server::{PATIENCE, program};
use payload_tests::torture::Bug;
use payload_tests::torture::server::{Ended, Options, run};

/// Long enough to see everything; `tests/run` adds a minute.
const DURATION: Duration = Duration::from_secs(6);

/// What a run must have seen, or it proves little.
const SEEN: [&str; 13] = [
    "published",
    "moved or dropped",
    "asked",
    "refused",
    "deleted by force",
    "taken away",
    "used again",
    "scans",
    "tables replaced",
    "processes killed",
    "stopped or continued",
    "leases",
    "closed tables met",
];

#[test]
fn given_readers_that_are_killed_stopped_and_hostile_when_blocks_are_used_again_then_nobody_reads_anothers_bytes()
 {
    let seed = rand::random();
    let options = Options { duration: DURATION, readers: 3, bug: None };
    let ended = run(program("torture"), seed, options).expect("it runs");
    let Ended::Whole(tally) = ended else { panic!("seed {seed}: a reader was wronged: {ended:?}") };
    for situation in SEEN {
        assert!(tally.get(situation).is_some_and(|count| *count > 0), "never seen: {situation}: {tally:?}");
    }
}

#[test]
fn given_a_planted_bug_when_tortured_then_a_reader_is_wronged() {
    for bug in Bug::ALL {
        let options = Options { duration: PATIENCE, readers: 2, bug: Some(bug) };
        let ended = run(program("torture"), 1, options).expect("it runs");
        assert!(matches!(ended, Ended::Breached(_)), "{bug:?} is not found within {PATIENCE:?}: {ended:?}");
    }
}
