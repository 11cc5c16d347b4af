//! How disk I/O is done: the trait, and the engine for where io_uring is not permitted.
//!
//! An engine owns [`SLOTS`] staging buffers and runs at most one operation on each. It is used by one thread.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::sync::Arc;

use crate::sys::large::Window;
use crate::sys::staging::{SLOTS, Staging};
use crate::sys::uring::UringEngine;

/// Which way the bytes go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Direction {
    /// From the file into the buffer.
    Read,
    /// From the buffer into the file.
    Write,
}

/// One operation: `range` of the slot's buffer, or of the window if there is one, from or to `offset` of the file.
pub(crate) struct Io {
    pub(crate) slot: usize,
    pub(crate) direction: Direction,
    pub(crate) file: Arc<File>,
    pub(crate) offset: u64,
    pub(crate) range: Range<usize>,
    /// Where a read goes instead of the slot's buffer; only for engines that take windows.
    pub(crate) window: Option<Rc<Window>>,
}

/// See the module's description.
pub(crate) trait Engine {
    /// The slot's buffer.
    ///
    /// # Panics
    /// While the slot is in flight.
    fn buffer(&mut self, slot: usize) -> &mut [u8];

    /// True when bytes can be read into a window.
    fn takes_windows(&self) -> bool {
        false
    }

    /// Starts an operation. After an error the engine is of no more use.
    fn start(&mut self, io: Io) -> io::Result<()>;

    /// Waits for a finished operation: its slot and what came of it, possibly less than was asked for. An outer
    /// error means that the engine is of no more use.
    fn next(&mut self) -> io::Result<(usize, io::Result<usize>)>;

    /// As [`next`](Self::next), if that would not wait. An engine may leave everything to `next`.
    fn next_ready(&mut self) -> io::Result<Option<(usize, io::Result<usize>)>> {
        Ok(None)
    }
}

/// Plain pread and pwrite, one at a time: slower, and everywhere available.
pub(crate) struct PlainEngine {
    staging: Staging,
    finished: VecDeque<(usize, io::Result<usize>)>,
}

impl PlainEngine {
    fn new() -> io::Result<Self> {
        Ok(Self { staging: Staging::new()?, finished: VecDeque::with_capacity(SLOTS) })
    }
}

impl Engine for PlainEngine {
    fn buffer(&mut self, slot: usize) -> &mut [u8] {
        self.staging.slot(slot)
    }

    fn start(&mut self, io: Io) -> io::Result<()> {
        assert!(io.window.is_none(), "this engine moves bytes itself, which nobody may do in a window");
        let buffer = &mut self.staging.slot(io.slot)[io.range];
        let result = match io.direction {
            Direction::Read => io.file.read_at(buffer, io.offset),
            Direction::Write => io.file.write_at(buffer, io.offset),
        };
        self.finished.push_back((io.slot, result));
        Ok(())
    }

    fn next(&mut self) -> io::Result<(usize, io::Result<usize>)> {
        Ok(self.finished.pop_front().expect("something was started when it is waited for"))
    }
}

/// Which engine the transfer threads use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IoEngine {
    /// io_uring where it is permitted, else plain reads and writes, with a warning.
    Auto,
    /// io_uring, or `OpenError::IoUring`.
    Uring,
    /// pread and pwrite.
    Plain,
}

impl IoEngine {
    /// Makes one for the calling thread; `Auto` has been settled by `Drivers::open` before.
    pub(crate) fn build(self) -> io::Result<Box<dyn Engine>> {
        match self {
            Self::Plain => Ok(Box::new(PlainEngine::new()?)),
            Self::Auto | Self::Uring => Ok(Box::new(UringEngine::new()?)),
        }
    }
}
