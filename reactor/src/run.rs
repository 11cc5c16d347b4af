//! A shard thread's life: turn, spin, sleep, until the reactor stops. Between the pump, which never waits, and the
//! doorbell, which is all that waiting is.

use std::sync::Arc;

use payload_types::{Monotonic, ShardIndex};

use crate::clock::{self, TurnTime};
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
    let mut time = TurnTime::new();
    let mut started = clock::monotonic();
    loop {
        // Each reading takes 26 ns, a tenth of a short turn: where a turn ends the next one begins, or the wait.
        let wake = pump.turn(time.at(started));
        let ended = clock::monotonic();
        if turn_clock.turn_done(&pump.mailbox().stalls, (started, ended), pump.handled()) {
            stalled();
        }
        started = match wake {
            NextWake::Now => ended,
            NextWake::Stop => return pump.close(),
            NextWake::At(_) | NextWake::Idle => {
                let woken = wait(&mut pump, doorbell, wake, ended, &mut spin, &mut turn_clock);
                spin.waited(woken.0 - started.0);
                woken
            }
        };
    }
}

/// Looks for work from a moment that was just read on, and sleeps. When there is some, or it is time for it, a few looks ago.
fn wait<C: Core>(
    pump: &mut Pump<C>,
    doorbell: &Doorbell,
    wake: NextWake,
    from: Monotonic,
    spin: &mut Spin,
    turn_clock: &mut TurnClock,
) -> Monotonic {
    let until = match wake {
        NextWake::At(until) => Some(until),
        _ => None,
    };
    if let Some(found) = spin.spin(until, from, turn_clock, || pump.has_work()) {
        return found;
    }
    turn_clock.rebase();
    pump.sleep(doorbell, until);
    clock::monotonic()
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
