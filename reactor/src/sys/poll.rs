//! Waiting for descriptors (epoll) and bells that make one readable (eventfd).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::memory::owned;

/// An epoll instance. Any thread may add and remove; one waits.
pub(crate) struct Poll {
    epoll: OwnedFd,
}

/// What happened to something watched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Happened {
    /// As given to [`Poll::add`].
    pub token: u64,
}

/// When somebody who waits hears of a descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Trigger {
    /// As long as it can be read, or has ended.
    Level,
    /// Each time that something arrives, read or not.
    Edge,
}

/// Events of one wait: who is left out is told at the next one.
const EVENTS_MAX: usize = 64;

impl Poll {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: takes an integer.
        let epoll = owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        Ok(Self { epoll })
    }

    /// Watches `fd` for input and its end.
    pub(crate) fn add(&self, fd: BorrowedFd<'_>, token: u64, trigger: Trigger) -> io::Result<()> {
        let edge = if trigger == Trigger::Edge { libc::EPOLLET } else { 0 };
        let events = (libc::EPOLLIN | libc::EPOLLRDHUP | edge) as u32;
        let mut event = libc::epoll_event { events, u64: token };
        // SAFETY: the kernel reads one event, which lives through the call.
        let result = unsafe {
            libc::epoll_ctl(self.epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd.as_raw_fd(), &raw mut event)
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Forgets `fd`. Needed before it is closed: what a client has a copy of stays watched for as long as that is open.
    pub(crate) fn remove(&self, fd: BorrowedFd<'_>) {
        // SAFETY: takes integers; the kernel ignores the event.
        let result = unsafe {
            libc::epoll_ctl(self.epoll.as_raw_fd(), libc::EPOLL_CTL_DEL, fd.as_raw_fd(), std::ptr::null_mut())
        };
        debug_assert_eq!(result, 0, "only what was added is removed: {}", io::Error::last_os_error());
    }

    /// Waits until something happens or `timeout_ms` passes (`None`: for ever); it may also return early, seldom.
    pub(crate) fn wait(&self, timeout_ms: Option<u64>) -> impl Iterator<Item = Happened> {
        let timeout = timeout_ms.map_or(-1, |timeout| i32::try_from(timeout).unwrap_or(i32::MAX));
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; EVENTS_MAX];
        // SAFETY: the kernel writes at most EVENTS_MAX events to `events`, which lives through the call.
        let count = unsafe {
            libc::epoll_wait(self.epoll.as_raw_fd(), events.as_mut_ptr(), EVENTS_MAX as i32, timeout)
        };
        // Interrupted by a signal: nothing happened.
        let count = usize::try_from(count).unwrap_or(0);
        events.into_iter().take(count).map(|event| Happened { token: event.u64 })
    }
}

/// An eventfd: rung by whoever has a copy, watched on its edges, and never read. What a client does to the file
/// description that both share can therefore neither block the server nor silence the bell.
pub(crate) struct Bell {
    eventfd: OwnedFd,
}

impl Bell {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: takes integers.
        let eventfd = owned(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
        Ok(Self { eventfd })
    }

    /// Rings. Only for bells that no client has a copy of: a client could make this block.
    pub(crate) fn ring(&self) {
        let one = 1u64.to_ne_bytes();
        // A full counter (2^64 - 2 rings) refuses; whoever sleeps has been woken by then.
        // SAFETY: the kernel reads 8 bytes of `one`, which lives through the call.
        let _ = unsafe { libc::write(self.eventfd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.eventfd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_a_bell_that_is_never_read_when_rung_again_then_each_ring_is_heard_once() {
        let (poll, bell) = (Poll::new().expect("epoll"), Bell::new().expect("eventfd"));
        poll.add(bell.as_fd(), 7, Trigger::Edge).expect("watched");
        let heard = |timeout| poll.wait(Some(timeout)).map(|happened| happened.token).collect::<Vec<_>>();
        assert_eq!(heard(0), [0_u64; 0]);
        for _ in 0..3 {
            bell.ring();
            assert_eq!(heard(10_000), [7]);
            assert_eq!(heard(0), [0_u64; 0], "heard once, though nobody has read it");
        }
        poll.remove(bell.as_fd());
        bell.ring();
        assert_eq!(heard(0), [0_u64; 0]);
    }

    #[test]
    fn given_a_bell_rung_before_it_is_watched_when_waited_then_it_is_heard() {
        let (poll, bell) = (Poll::new().expect("epoll"), Bell::new().expect("eventfd"));
        bell.ring();
        poll.add(bell.as_fd(), 1, Trigger::Edge).expect("watched");
        assert_eq!(poll.wait(Some(10_000)).count(), 1);
    }
}
