//! Making a memory: reserved in full, in large pages where they are granted, near the shard that it belongs to.
//!
//! ```text
//! memfd ─> length ─> sealed SHRINK | GROW ─> mapped ─> bound to a node ─> large pages, 2 MiB at a time ─> the rest reserved
//! ```

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use payload_types::ByteCount;

use super::error::ArenaError;
use super::kernel::{Faulty, Kernel, System};
use super::numa;
use super::slab::{Draft, Isolated};
use crate::faults::Faults;
use crate::sys::large::LARGE_PAGE_BYTES;
use crate::sys::memory::{Mapping, Seals};

/// Which pages memories are to be made of (`storage.ram.use_hugepages`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LargePages {
    /// 4 KiB.
    No,
    /// As segments have them: each whole 2 MiB is asked for as one page (`MADV_COLLAPSE`, Linux 6.1), which needs no reserve; then it is also warm.
    #[default]
    Collapse,
    /// From the machine's reserve (`vm.nr_hugepages`), else as [`Collapse`](Self::Collapse).
    Reserve,
}

/// How memories are made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MakerConfig {
    /// Their pages.
    pub large_pages: LargePages,
}

/// What a memory has got, of what was configured.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Granted {
    /// Bytes in large pages, of any kind.
    pub large_bytes: u64,
    /// True when they come from the machine's reserve.
    pub is_from_reserve: bool,
    /// Why there are no (more) large pages, where they were asked for.
    pub refused: Option<String>,
}

/// Where the pages of a memory are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Placement {
    /// The machine has one node, or none was asked for.
    Anywhere,
    /// On this node, as long as it has pages.
    Node(u16),
    /// Wherever the kernel likes, and why.
    Refused(String),
}

/// Makes memories. Cheap to clone.
#[derive(Clone)]
pub struct Maker {
    kernel: Arc<dyn Kernel>,
    config: MakerConfig,
    node_count: usize,
}

/// All that a memory is, before it is known what for.
pub(super) struct Made {
    pub(super) kernel: Arc<dyn Kernel>,
    pub(super) bytes: ByteCount,
    /// The description that a writer gets.
    pub(super) writer: File,
    /// One that nobody else ever gets, so that it can prove that nobody else has the memory.
    pub(super) own: File,
    pub(super) mapping: Mapping,
    pub(super) granted: Granted,
    pub(super) placement: Placement,
}

impl Maker {
    /// A maker on this machine.
    pub fn new(config: MakerConfig) -> Self {
        Self { kernel: Arc::new(System), config, node_count: numa::node_count() }
    }

    /// A maker on a machine that fails as a test says.
    #[doc(hidden)]
    pub fn faulty(config: MakerConfig, faults: Faults) -> Self {
        Self { kernel: Arc::new(Faulty(faults)), config, node_count: numa::node_count() }
    }

    /// Memory for a slab, or for one large payload: `bytes` in whole pages, all reserved, zero, on the node of its shard
    /// where the machine has several. Up to 10 ms for 64 MiB.
    ///
    /// # Errors
    /// [`ArenaError::Full`], [`ArenaError::Descriptors`]; nothing is left behind.
    pub fn slab(&self, bytes: ByteCount, node: Option<u16>) -> Result<Draft, ArenaError> {
        self.make(bytes, node).map(Draft::new)
    }

    /// Memory for one payload with `isolation: sealed`: as [`slab`](Self::slab), without a mapping of the server's.
    ///
    /// # Errors
    /// As [`slab`](Self::slab).
    pub fn isolated(&self, bytes: ByteCount, node: Option<u16>) -> Result<Isolated, ArenaError> {
        self.make(bytes, node).map(Isolated::new)
    }

    fn make(&self, bytes: ByteCount, node: Option<u16>) -> Result<Made, ArenaError> {
        let bytes = bytes.in_pages();
        assert!(bytes.0 > 0, "a memory has at least one page");
        let mut refused = None;
        if self.config.large_pages == LargePages::Reserve {
            if bytes.0.is_multiple_of(LARGE_PAGE_BYTES) {
                match self.make_of(bytes, node, true) {
                    Ok(made) => return Ok(made),
                    Err(error @ ArenaError::Descriptors { .. }) => return Err(error),
                    Err(error) => refused = Some(format!("the reserve of large pages, {}", error.cause())),
                }
            } else {
                refused = Some(format!("{bytes} are no whole large pages"));
            }
        }
        let mut made = self.make_of(bytes, node, false)?;
        made.granted.refused = match (refused, made.granted.refused) {
            (Some(first), Some(second)) => Some(format!("{first}; {second}")),
            (first, second) => first.or(second),
        };
        if let Some(reason) = &made.granted.refused {
            tracing::debug!("not all of {bytes} of shared memory are large pages: {reason}");
        }
        Ok(made)
    }

    fn make_of(&self, bytes: ByteCount, node: Option<u16>, is_huge: bool) -> Result<Made, ArenaError> {
        let kernel = &self.kernel;
        let wrong = |tried| move |source| ArenaError::of(bytes, tried, source);
        let writer = kernel.memfd(is_huge).map_err(wrong("making it"))?;
        let own = kernel.reopen_to_read(&writer).map_err(wrong("opening it again"))?;
        writer.set_len(bytes.0).map_err(wrong("giving it its length"))?;
        kernel.seal(&writer, Seals::LENGTH).map_err(wrong("sealing its length"))?;
        let mapping = kernel.map(&writer, bytes.0).map_err(wrong("mapping it"))?;
        let placement = match node {
            Some(node) if self.node_count > 1 => match mapping.bind(node) {
                Ok(()) => Placement::Node(node),
                Err(error) => Placement::Refused(error.to_string()),
            },
            _ => Placement::Anywhere,
        };
        let granted = match self.config.large_pages {
            _ if is_huge => Granted { large_bytes: bytes.0, is_from_reserve: true, refused: None },
            LargePages::No => Granted::default(),
            LargePages::Collapse | LargePages::Reserve => self.collapse(&writer, &mapping, bytes),
        };
        kernel.reserve(&writer, bytes.0).map_err(wrong("reserving its pages"))?;
        Ok(Made { kernel: Arc::clone(kernel), bytes, writer, own, mapping, granted, placement })
    }

    /// One byte makes a page, and of one page a large one is made without a copy: 25 us and the zeroing, where reserving
    /// first would leave 512 pages to be copied.
    fn collapse(&self, file: &File, mapping: &Mapping, bytes: ByteCount) -> Granted {
        let mut granted = Granted::default();
        for start in (0..bytes.0 - bytes.0 % LARGE_PAGE_BYTES).step_by(LARGE_PAGE_BYTES as usize) {
            let made = file
                .write_all_at(&[0], start)
                .and_then(|()| self.kernel.collapse(mapping, start..start + LARGE_PAGE_BYTES));
            if let Err(error) = made {
                granted.refused = Some(format!("MADV_COLLAPSE: {error}"));
                break;
            }
            granted.large_bytes += LARGE_PAGE_BYTES;
        }
        granted
    }
}
