//! Who sleeps, and who must be woken: the words of the two sleeps. System calls are made by the caller.
//!
//! ```text
//! server sleeps:  doze(sleeping); look at every ring and lane again; nothing: park; then rise(sleeping)
//! client submits: ClientRings::submit; must_ring(sleeping) -> write 1 to the eventfd of this session and shard
//!
//! client sleeps:  seen = doze(line); look at the completions again; nothing: FUTEX_WAIT(wake, seen); then rise(line)
//! server posts:   ServerRings::post, once a turn then must_wake(line) -> FUTEX_WAKE(wake), all
//! ```
//!
//! Each side writes its word, fences (SeqCst) and looks at the other's: at least one of the two sees the other, so no
//! wake is lost. A client can forge neither: `sleeping` lies in a page that it maps read-only, and what it writes into
//! its own wake line costs the server one FUTEX_WAKE a turn at most.

use std::sync::atomic::Ordering;

use crate::layout::WakeLine;
use crate::word::Word;

/// The server is about to sleep on this shard: look at every ring and lane once more before parking.
#[inline]
pub fn server_doze<W: Word>(sleeping: &W) {
    sleeping.store(1, Ordering::Relaxed);
    W::fence(Ordering::SeqCst);
}

/// The server is awake again.
#[inline]
pub fn server_rise<W: Word>(sleeping: &W) {
    sleeping.store(0, Ordering::Relaxed);
}

/// After submissions were published: whether the shard sleeps and its doorbell must be rung.
#[must_use]
#[inline]
pub fn must_ring<W: Word>(sleeping: &W) -> bool {
    W::fence(Ordering::SeqCst);
    sleeping.load(Ordering::Relaxed) != 0
}

/// A thread of the client is about to sleep: look at the completions once more, and then wait while the futex shows
/// what this returns.
#[must_use]
#[inline]
pub fn client_doze<W: Word>(line: &WakeLine<'_, W>) -> u32 {
    line.waiting.fetch_add(1, Ordering::Relaxed);
    W::fence(Ordering::SeqCst);
    // Acquire: who sees the wake that a completion brought also sees the completion when it looks again.
    line.wake.load(Ordering::Acquire) as u32
}

/// The thread is awake again, or found something and did not sleep.
#[inline]
pub fn client_rise<W: Word>(line: &WakeLine<'_, W>) {
    // Adds -1.
    line.waiting.fetch_add(u64::MAX, Ordering::Relaxed);
}

/// After a turn that posted completions to a session: whether its client must be woken (FUTEX_WAKE, all). The futex
/// has changed then, so that who looked before does not fall asleep.
#[must_use]
#[inline]
pub fn must_wake<W: Word>(line: &WakeLine<'_, W>) -> bool {
    W::fence(Ordering::SeqCst);
    if line.waiting.load(Ordering::Relaxed) == 0 {
        return false;
    }
    line.wake.fetch_add(1, Ordering::Release);
    true
}
