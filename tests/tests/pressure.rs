//! Issue 3's "done when", small: forty times what RAM holds is put at full speed, and the server is killed meanwhile.
//!
//! `tests/pressure` runs the full size: 256 MiB of RAM, 1 GiB of disk, 10 GiB of puts.

use std::time::Duration;

use payload_tests::crash::pressure::Pressure;
use payload_tests::crash::watch::Peak;
use payload_tests::crash::{self, Options};
use payload_tests::server::PATIENCE;

/// (With less disk, nothing would be packed.)
const CAPACITY: Peak = Peak { memory: 16 << 20, disk: 128 << 20 };

const PRESSURE: Pressure = Pressure { capacity: CAPACITY, put_bytes: 640 << 20, kills: 2 };

#[test]
fn given_forty_times_what_fits_when_put_at_full_speed_and_killed_then_no_refusal_and_every_byte_comes_back() {
    let options = Options { rounds: 0, load_max: Duration::ZERO, patience: PATIENCE, keep: false };
    let passed = crash::press(0, options, PRESSURE).unwrap_or_else(|failure| panic!("{failure}"));
    // It was full all the time: evicting, discarding and reading back from both tiers.
    for situation in [
        "commit",
        "delete",
        "read on RAM",
        "read on DISK",
        "discarded, expired or deleted",
        "segment file used again or removed",
        "payload moved by compaction",
    ] {
        assert!(passed.tally.get(situation).is_some_and(|count| *count > 10), "hardly seen: {situation}");
    }
    assert!(passed.peak.memory > CAPACITY.memory / 4 * 3, "{:?}", passed.peak);
    assert!(passed.peak.disk > CAPACITY.disk / 4, "{:?}", passed.peak);
}
