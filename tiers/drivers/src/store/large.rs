//! Segments in large pages: made, copied, zeroed and freed in a fraction of the time (docs/BENCH.md), where the kernel
//! grants them. Nothing depends on it but speed.
//!
//! ```text
//! new, or used before and to be zeroed:  cut to nothing -> a byte in each 2 MiB -> MADV_COLLAPSE: one zeroed large page
//! used before, to be written over:       MADV_COLLAPSE: as it is, or copied together once
//! what follows the last whole 2 MiB:     small pages, as a segment below 2 MiB
//! ```
//! No mount option or sysfs switch is needed: this is asked for by file (Linux 6.1 and later); an operator who wants none
//! of it sets /sys/kernel/mm/transparent_hugepage/shmem_enabled to `deny`. Only whole 2 MiB become large pages, so a file
//! takes what it is charged, to the byte.
//! Called by the RAM tier's worker and transfer threads, while only the server can open the file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use payload_types::ByteCount;

use super::FileStore;
use crate::sys::large::{LARGE_PAGE_BYTES, Window};

/// How long nobody asks again after a refusal: the kernel may have looked through all memory for it.
const PAUSE: Duration = Duration::from_secs(1);

/// When large pages were refused last.
#[derive(Default)]
pub(crate) struct Refusal(Mutex<Option<Instant>>);

impl Refusal {
    fn is_recent(&self) -> bool {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.is_some_and(|since| since.elapsed() < PAUSE)
    }

    fn note(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }
}

impl FileStore {
    /// The whole large pages of a segment that is being made; what it holds is unspecified. `None`: it has none, and may be
    /// shorter than it will be.
    pub(crate) fn in_large_pages(&self, file: &File, size: ByteCount) -> Option<Window> {
        let (pool, bytes) = (self.pool.as_ref()?, large_bytes(size));
        if bytes == 0 || pool.large_refused.is_recent() {
            return None;
        }
        let made = (|| {
            if file.metadata()?.len() == 0 {
                file.set_len(bytes)?;
                let mut starts = (0..bytes).step_by(LARGE_PAGE_BYTES as usize);
                starts.try_for_each(|start| file.write_all_at(&[0], start))?;
            }
            Window::of_large_pages(file, bytes)
        })();
        made.inspect_err(|error| {
            tracing::debug!("no large pages for a segment of {size}: {error}");
            pool.large_refused.note();
        })
        .ok()
    }

    /// Zeroes the whole large pages of a segment that is being made, whatever it held before. How many bytes: 0 where
    /// there are none.
    pub(super) fn make_large(&self, file: &File, size: ByteCount) -> io::Result<u64> {
        let Some(pool) = &self.pool else { return Ok(0) };
        if large_bytes(size) == 0 || pool.large_refused.is_recent() {
            return Ok(0);
        }
        // New ones are zeroed in a third of the time that it takes to write over old ones.
        file.set_len(0)?;
        Ok(self.in_large_pages(file, size).map_or(0, |window| window.bytes() as u64))
    }
}

fn large_bytes(size: ByteCount) -> u64 {
    let bytes = size.in_pages().0;
    bytes - bytes % LARGE_PAGE_BYTES
}
