//! The io_uring engine: one ring and its staging buffers, used by one thread.
//!
//! ```text
//! start(slot) -> SQE -> io_uring_enter -> disk ... CQE -> next() -> slot is free again
//! ```
//! Invariants: while a slot is in flight its buffer is out of the caller's reach and its file stays open (the ring
//! holds it, and the window that it reads into). Dropping the engine waits for what is in flight; if even waiting fails, buffers and
//! windows are leaked rather than freed under the kernel's hands. Needs Linux 5.6; buffers are registered where RLIMIT_MEMLOCK
//! allows, and used plainly where it does not.

use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use io_uring::{IoUring, opcode, squeue, types};
use payload_types::limits::IO_BYTES_MAX;

use super::large::Window;
use super::staging::{SLOTS, Staging};
use crate::transfer::engine::{Direction, Engine, Io};

/// Entries of the ring: every slot at once, rounded up as the kernel wants it.
const RING_ENTRIES: u32 = (SLOTS as u32).next_power_of_two();

/// See the module's description.
pub(crate) struct UringEngine {
    ring: IoUring,
    staging: ManuallyDrop<Staging>,
    registered: bool,
    in_flight: [Option<Lent>; SLOTS],
}

/// What the kernel uses until an operation's completion, beside the slot's buffer.
struct Lent {
    _file: Arc<File>,
    _window: Option<Rc<Window>>,
}

/// Whether this process may use io_uring at all.
pub(crate) fn probe() -> io::Result<()> {
    IoUring::new(2).map(drop)
}

impl UringEngine {
    pub(crate) fn new() -> io::Result<Self> {
        let ring = IoUring::builder().dontfork().build(RING_ENTRIES)?;
        let mut staging = Staging::new()?;
        let buffers: Vec<libc::iovec> = (0..SLOTS)
            .map(|slot| libc::iovec {
                iov_base: staging.slot(slot).as_mut_ptr().cast(),
                iov_len: IO_BYTES_MAX,
            })
            .collect();
        // SAFETY: the buffers live in `staging`, which `Drop` frees only when nothing is in flight.
        let registered = unsafe { ring.submitter().register_buffers(&buffers) }.is_ok();
        if !registered {
            tracing::debug!(
                "staging buffers could not be registered (RLIMIT_MEMLOCK); they are used unregistered"
            );
        }
        Ok(Self { ring, staging: ManuallyDrop::new(staging), registered, in_flight: Default::default() })
    }

    fn entry(&mut self, io: &Io) -> squeue::Entry {
        let fd = types::Fd(io.file.as_raw_fd());
        if let Some(window) = &io.window {
            assert!(io.direction == Direction::Read, "nothing is written from a window");
            let entry = opcode::Read::new(fd, window.part(&io.range), io.range.len() as u32);
            return entry.offset(io.offset).build().user_data(io.slot as u64);
        }
        let buffer = &mut self.staging.slot(io.slot)[io.range.clone()];
        let (pointer, length) = (buffer.as_mut_ptr(), buffer.len() as u32);
        let slot = io.slot as u16;
        let entry = match (io.direction, self.registered) {
            (Direction::Read, true) => {
                opcode::ReadFixed::new(fd, pointer, length, slot).offset(io.offset).build()
            }
            (Direction::Read, false) => opcode::Read::new(fd, pointer, length).offset(io.offset).build(),
            (Direction::Write, true) => {
                opcode::WriteFixed::new(fd, pointer, length, slot).offset(io.offset).build()
            }
            (Direction::Write, false) => opcode::Write::new(fd, pointer, length).offset(io.offset).build(),
        };
        entry.user_data(io.slot as u64)
    }
}

impl Engine for UringEngine {
    fn buffer(&mut self, slot: usize) -> &mut [u8] {
        assert!(self.in_flight[slot].is_none(), "a buffer is touched only while the kernel does not use it");
        self.staging.slot(slot)
    }

    fn takes_windows(&self) -> bool {
        true
    }

    fn start(&mut self, io: Io) -> io::Result<()> {
        assert!(self.in_flight[io.slot].is_none(), "one operation a slot");
        let entry = self.entry(&io);
        // SAFETY: the buffer lives in `staging`, descriptor and window in `in_flight` until the completion is reaped, and
        // the length was taken from the very slice the pointer points to, or checked against the window.
        unsafe { self.ring.submission().push(&entry) }.expect("the ring has an entry for every slot");
        self.in_flight[io.slot] = Some(Lent { _file: io.file, _window: io.window });
        match self.ring.submit() {
            // Refused for now: the entry stays queued and goes in with the next look for completions.
            Err(error) if is_transient(&error) => Ok(()),
            other => other.map(drop),
        }
    }

    fn next(&mut self) -> io::Result<(usize, io::Result<usize>)> {
        loop {
            if let Some(completed) = self.next_ready()? {
                return Ok(completed);
            }
            assert!(
                self.in_flight.iter().any(Option::is_some),
                "something is in flight when it is waited for"
            );
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                Err(error) if is_transient(&error) => std::thread::sleep(Duration::from_millis(1)),
                Err(error) => return Err(error),
            }
        }
    }

    fn next_ready(&mut self) -> io::Result<Option<(usize, io::Result<usize>)>> {
        let Some(completion) = self.ring.completion().next() else { return Ok(None) };
        let slot = completion.user_data() as usize;
        self.in_flight[slot] = None;
        let result = completion.result();
        let passed = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(result.wrapping_neg()));
        Ok(Some((slot, passed)))
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
}

impl Drop for UringEngine {
    fn drop(&mut self) {
        while self.in_flight.iter().any(Option::is_some) {
            if let Err(error) = self.next() {
                tracing::error!("waiting for the disk failed ({error}); its buffers are given up");
                std::mem::forget(std::mem::take(&mut self.in_flight));
                return;
            }
        }
        // SAFETY: dropped once, here; nothing is in flight, so the kernel does not use the buffers any more.
        unsafe { ManuallyDrop::drop(&mut self.staging) };
    }
}
