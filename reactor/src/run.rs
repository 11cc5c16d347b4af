//! A shard thread's life: turn, spin, sleep, until the reactor stops. Between the pump, which never waits, and the
//! doorbell, which is all that waiting is.

use std::sync::Arc;

use payload_types::{Now, ShardIndex};

use crate::clock;
use crate::doorbell::Doorbell;
use crate::pump::{Core, NextWake, Pump, Unfinished};
use crate::spin::Spin;
use crate::stall::TurnClock;

/// Runs the pump on the calling thread until the reactor stops. `stalled` is called after a turn that was too long.
pub(crate) fn run<C: Core>(mut pump: Pump<C>, mut spin: Spin, stalled: impl Fn()) -> Unfinished {
    let shared = Arc::clone(pump.shared());
    let doorbell = &shared.boxes[usize::from(pump.shard().0)].doorbell;
    doorbell.adopt();
    let mut turn_clock = TurnClock::default();
    turn_clock.rebase();
    loop {
        let now = clock::now();
        let wake = pump.turn(now);
        if turn_clock.turn_done(&pump.mailbox().stalls, now.monotonic, pump.handled()) {
            stalled();
        }
        match wake {
            NextWake::Now => {}
            NextWake::Stop => return pump.close(),
            NextWake::At(_) | NextWake::Idle => {
                wait(&mut pump, doorbell, wake, now, &mut spin, &mut turn_clock)
            }
        }
    }
}

fn wait<C: Core>(
    pump: &mut Pump<C>,
    doorbell: &Doorbell,
    wake: NextWake,
    turn: Now,
    spin: &mut Spin,
    turn_clock: &mut TurnClock,
) {
    let until = match wake {
        NextWake::At(until) => Some(until),
        _ => None,
    };
    if !spin.spin(until, turn_clock, || pump.has_work()) {
        turn_clock.rebase();
        pump.sleep(doorbell, until);
    }
    spin.waited(clock::monotonic().0 - turn.monotonic.0);
}

/// Ends the process when it is dropped by a panic: a shard that died must not be served around, since nobody else
/// can free or move what it owns.
pub(crate) struct AbortOnPanic(pub(crate) ShardIndex);

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(
                shard = self.0.0,
                "a shard's thread panicked; the server ends, since nobody can serve that shard's payloads"
            );
            std::process::abort();
        }
    }
}
