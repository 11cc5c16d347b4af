//! Keeps an engine's slots busy: short results are resubmitted, interrupted ones repeated.
//!
//! Used by one transfer at a time. A slot goes idle -> started -> finished; `finish` waits for one slot and takes in
//! whatever else completes meanwhile, so completions may come in any order.

use std::fs::File;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use payload_types::limits::PAGE_BYTES;

use super::engine::{Direction, Engine, Io};
use crate::sys::large::Window;
use crate::sys::staging::SLOTS;

/// What O_DIRECT wants offsets and lengths to be a multiple of, on every disk we know.
pub(crate) const ALIGNMENT: usize = PAGE_BYTES as usize;

/// A slot's part of the transfer.
struct Work {
    direction: Direction,
    file: Arc<File>,
    /// Where the buffer's first byte lies in the file.
    offset: u64,
    /// What is read into instead of the buffer, and from where on.
    window: Option<(Rc<Window>, usize)>,
    /// Bytes that must pass.
    needed: usize,
    /// Bytes that the present operation started from; a multiple of `ALIGNMENT`.
    from: usize,
    /// Set when it is over: bytes that passed.
    outcome: Option<io::Result<usize>>,
}

impl Work {
    /// A read into the slot's buffer.
    fn new(file: &Arc<File>, offset: u64, needed: usize) -> Self {
        let file = Arc::clone(file);
        Self { direction: Direction::Read, file, offset, window: None, needed, from: 0, outcome: None }
    }
}

/// See the module's description.
pub(crate) struct Pipeline {
    engine: Box<dyn Engine>,
    slots: [Option<Work>; SLOTS],
}

impl Pipeline {
    pub(crate) fn new(engine: Box<dyn Engine>) -> Self {
        Self { engine, slots: Default::default() }
    }

    /// The buffer of a slot that is idle.
    pub(crate) fn buffer(&mut self, slot: usize) -> &mut [u8] {
        self.engine.buffer(slot)
    }

    /// Starts moving `needed` bytes between the slot's buffer and `offset` of the file. The length is padded to
    /// whole pages: a write takes them from the buffer, a read leaves what follows the end of the file unspecified.
    pub(crate) fn start(
        &mut self,
        slot: usize,
        direction: Direction,
        file: &Arc<File>,
        offset: u64,
        needed: usize,
    ) -> io::Result<()> {
        self.begin(slot, Work { direction, ..Work::new(file, offset, needed) })
    }

    /// True when [`start_into`](Self::start_into) may be called.
    pub(crate) fn takes_windows(&self) -> bool {
        self.engine.takes_windows()
    }

    /// As [`start`](Self::start), but reads into the window, from `at` on: whole pages. The slot's buffer stays unused.
    pub(crate) fn start_into(
        &mut self,
        window: (&Rc<Window>, usize),
        slot: usize,
        file: &Arc<File>,
        offset: u64,
        needed: usize,
    ) -> io::Result<()> {
        let (window, at) = window;
        self.begin(slot, Work { window: Some((Rc::clone(window), at)), ..Work::new(file, offset, needed) })
    }

    fn begin(&mut self, slot: usize, work: Work) -> io::Result<()> {
        assert!(self.slots[slot].is_none(), "a slot is finished before it is used again");
        self.slots[slot] = Some(work);
        self.advance(slot)
    }

    /// Waits until the slot is idle. The bytes that passed: `needed`, or fewer where the file ended.
    pub(crate) fn finish(&mut self, slot: usize) -> io::Result<usize> {
        loop {
            match &mut self.slots[slot] {
                None => return Ok(0),
                Some(Work { outcome: Some(_), .. }) => {
                    let work = self.slots[slot].take().expect("matched above");
                    return work.outcome.expect("matched above");
                }
                Some(_) => self.reap()?,
            }
        }
    }

    /// Takes in what has completed, without waiting.
    pub(crate) fn reap_ready(&mut self) -> io::Result<()> {
        while let Some((slot, result)) = self.engine.next_ready()? {
            self.completed(slot, result)?;
        }
        Ok(())
    }

    /// True when [`finish`](Self::finish) would not wait.
    pub(crate) fn is_finished(&self, slot: usize) -> bool {
        self.slots[slot].as_ref().is_none_or(|work| work.outcome.is_some())
    }

    /// Waits until every slot is idle, whatever came of it. An error means that the pipeline is of no more use.
    pub(crate) fn drain(&mut self) -> io::Result<()> {
        while self.slots.iter().flatten().any(|work| work.outcome.is_none()) {
            self.reap()?;
        }
        self.slots = Default::default();
        Ok(())
    }

    fn advance(&mut self, slot: usize) -> io::Result<()> {
        let work = self.slots[slot].as_ref().expect("an unfinished slot");
        let at = work.window.as_ref().map_or(0, |(_, at)| *at);
        let range = at + work.from..at + work.needed.next_multiple_of(ALIGNMENT);
        self.engine.start(Io {
            slot,
            window: work.window.as_ref().map(|(window, _)| Rc::clone(window)),
            direction: work.direction,
            file: Arc::clone(&work.file),
            offset: work.offset + work.from as u64,
            range,
        })
    }

    fn reap(&mut self) -> io::Result<()> {
        let (slot, result) = self.engine.next()?;
        self.completed(slot, result)
    }

    fn completed(&mut self, slot: usize, result: io::Result<usize>) -> io::Result<()> {
        let work = self.slots[slot].as_mut().expect("only started slots complete");
        match result {
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
            Err(error) => work.outcome = Some(Err(error)),
            Ok(bytes) => {
                let done = work.from + bytes;
                let resume = done - done % ALIGNMENT;
                if done >= work.needed {
                    work.outcome = Some(Ok(work.needed));
                } else if resume > work.from {
                    work.from = resume;
                } else if work.direction == Direction::Read {
                    work.outcome = Some(Ok(done)); // less than a page more: the file ends here
                } else {
                    work.outcome = Some(Err(io::ErrorKind::WriteZero.into()));
                }
            }
        }
        if work.outcome.is_none() { self.advance(slot) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::sys::staging::Staging;

    /// Passes at most `limit` bytes at a time, and interrupts every third operation.
    struct Stingy {
        staging: Staging,
        limit: usize,
        calls: usize,
        finished: VecDeque<(usize, io::Result<usize>)>,
    }

    impl Engine for Stingy {
        fn buffer(&mut self, slot: usize) -> &mut [u8] {
            self.staging.slot(slot)
        }

        fn start(&mut self, io: Io) -> io::Result<()> {
            self.calls += 1;
            let length = io.range.len().min(self.limit);
            let buffer = &mut self.staging.slot(io.slot)[io.range.start..][..length];
            let result = match io.direction {
                _ if self.calls.is_multiple_of(3) => Err(io::ErrorKind::Interrupted.into()),
                Direction::Read => io.file.read_at(buffer, io.offset),
                Direction::Write => io.file.write_at(buffer, io.offset),
            };
            self.finished.push_front((io.slot, result)); // newest first: out of order
            Ok(())
        }

        fn next(&mut self) -> io::Result<(usize, io::Result<usize>)> {
            Ok(self.finished.pop_front().expect("started"))
        }
    }

    fn stingy(limit: usize) -> Pipeline {
        let staging = Staging::new().expect("memory");
        Pipeline::new(Box::new(Stingy { staging, limit, calls: 0, finished: VecDeque::new() }))
    }

    #[test]
    fn given_short_and_interrupted_results_when_finished_then_every_byte_passed_once() {
        let file = Arc::new(tempfile::tempfile().expect("a file"));
        let bytes: Vec<u8> = (0..40_000u32).map(|index| (index * 7) as u8).collect();
        let mut pipeline = stingy(5000);
        pipeline.buffer(0)[..bytes.len()].copy_from_slice(&bytes);
        pipeline.start(0, Direction::Write, &file, 0, bytes.len()).expect("started");
        assert_eq!(pipeline.finish(0).expect("written"), bytes.len());
        pipeline.start(3, Direction::Read, &file, 0, 20_000).expect("started");
        pipeline.start(4, Direction::Read, &file, 20_480, 19_520).expect("started");
        assert_eq!(pipeline.finish(3).expect("read"), 20_000);
        assert_eq!(pipeline.finish(4).expect("read"), 19_520);
        assert_eq!(pipeline.buffer(3)[..20_000], bytes[..20_000]);
        assert_eq!(pipeline.buffer(4)[..19_520], bytes[20_480..]);
    }

    #[test]
    fn given_a_file_that_ends_early_when_read_then_fewer_bytes_are_reported_and_a_write_of_nothing_is_an_error()
     {
        let file = Arc::new(tempfile::tempfile().expect("a file"));
        file.set_len(5000).expect("length");
        let mut pipeline = stingy(4096);
        pipeline.start(1, Direction::Read, &file, 0, 9000).expect("started");
        assert_eq!(pipeline.finish(1).expect("read"), 5000);
        let mut stuck = stingy(0);
        stuck.start(1, Direction::Write, &file, 0, 10).expect("started");
        assert_eq!(stuck.finish(1).expect_err("no progress").kind(), io::ErrorKind::WriteZero);
    }
}
