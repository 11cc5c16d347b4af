//! What two threads on this machine take to answer each other: through cache lines while both are awake, and through
//! eventfds while both sleep. The floors of native sessions.
//!
//! Both ends are pinned to cores of their own, as far as there are two. Each round trip is timed alone, the end of one
//! being the start of the next, as the rows above these floors do.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::FromRawFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::histogram::Latencies;

/// A word alone in its pair of lines, which processors fetch together.
#[repr(align(128))]
#[derive(Default)]
struct Line(AtomicU64);

/// Round trips of a cache line between two threads that both look all the time.
///
/// # Errors
/// When no second thread can be had.
pub fn cacheline(duration: Duration) -> anyhow::Result<Latencies> {
    let (ping, pong, is_over) = (Line::default(), Line::default(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let echo = || {
            let _pinned = pin(1);
            let mut seen = 0;
            while !is_over.load(Ordering::Relaxed) {
                let now = ping.0.load(Ordering::Acquire);
                if now != seen {
                    seen = now;
                    pong.0.store(now, Ordering::Release);
                }
                std::hint::spin_loop();
            }
        };
        let other = std::thread::Builder::new().spawn_scoped(scope, echo).context("no second thread")?;
        let pinned = pin(0);
        let mut round = 0;
        let latencies = timed(duration, || {
            round += 1;
            ping.0.store(round, Ordering::Release);
            while pong.0.load(Ordering::Acquire) != round {
                std::hint::spin_loop();
            }
            Ok(())
        });
        is_over.store(true, Ordering::Relaxed);
        drop(pinned);
        other.join().expect("the echo does not panic");
        latencies
    })
}

/// Round trips between two threads that each sleep until the other writes.
///
/// # Errors
/// When no second thread, or no eventfd, can be had.
pub fn eventfd(duration: Duration) -> anyhow::Result<Latencies> {
    let (ping, pong) = (event()?, event()?);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let echo = || {
            let _pinned = pin(1);
            while wait(&ping).is_ok() && !is_over.load(Ordering::Relaxed) && wake(&pong).is_ok() {}
        };
        let other = std::thread::Builder::new().spawn_scoped(scope, echo).context("no second thread")?;
        let pinned = pin(0);
        let latencies = timed(duration, || {
            wake(&ping)?;
            wait(&pong)
        });
        is_over.store(true, Ordering::Relaxed);
        let woken = wake(&ping);
        drop(pinned);
        other.join().expect("the echo does not panic");
        woken?;
        latencies
    })
}

fn timed(duration: Duration, mut trip: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<Latencies> {
    let mut latencies = Latencies::default();
    let start = Instant::now();
    let mut last = start;
    while last - start < duration {
        trip()?;
        let now = Instant::now();
        latencies.record(now - last);
        last = now;
    }
    Ok(latencies)
}

fn event() -> anyhow::Result<File> {
    // SAFETY: takes plain numbers, and returns a descriptor or -1.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error()).context("no eventfd can be made");
    }
    // SAFETY: a descriptor that was just made is nobody else's.
    Ok(unsafe { File::from_raw_fd(fd) })
}

fn wake(mut event: &File) -> anyhow::Result<()> {
    event.write_all(&1u64.to_ne_bytes()).context("an eventfd cannot be written")
}

fn wait(mut event: &File) -> anyhow::Result<()> {
    event.read_exact(&mut [0; 8]).context("an eventfd cannot be read")
}

/// A thread is pinned while this lives: the cores on which it might run before. Dropped by the same thread.
#[must_use]
pub struct Affinity(Option<libc::cpu_set_t>);

impl Drop for Affinity {
    /// Lets the thread run there again.
    fn drop(&mut self) {
        if let Some(set) = self.0.take() {
            // SAFETY: the set is a local value of the size that is stated; 0 is the calling thread.
            unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) };
        }
    }
}

/// The number of the core with this place among those that this thread may use.
pub fn core(place: usize) -> Option<usize> {
    let allowed = allowed()?;
    // SAFETY: the bits of a set of this size are looked at.
    let is_allowed = |core: &usize| unsafe { libc::CPU_ISSET(*core, &allowed) };
    (0..libc::CPU_SETSIZE as usize).filter(is_allowed).nth(place)
}

/// Pins the calling thread to the core with this place among those it may use; where there is none, it stays unpinned.
pub fn pin(place: usize) -> Affinity {
    let (Some(before), Some(core)) = (allowed(), core(place)) else { return Affinity(None) };
    // SAFETY: one bit of a local set is set, whose size is stated; 0 is the calling thread.
    unsafe {
        let mut one: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut one);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const one);
    }
    Affinity(Some(before))
}

fn allowed() -> Option<libc::cpu_set_t> {
    // SAFETY: a set of zeros is the empty one; the call writes to a local one of the size that is stated.
    unsafe {
        let mut allowed: libc::cpu_set_t = std::mem::zeroed();
        let found = libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut allowed);
        (found == 0).then_some(allowed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_two_threads_when_they_answer_each_other_then_every_round_trip_is_counted_and_both_end() {
        for floor in [cacheline, eventfd] {
            let latencies = floor(Duration::from_millis(20)).expect("two threads");
            assert!(latencies.count() > 0);
        }
    }
}
