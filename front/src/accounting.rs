//! The node's figures, as Stats and /metrics both tell them: gathered from all shards, the front and the file system.
//!
//! ```text
//! Stats RPC, /metrics --> Accounting::gather --Request::Stats--> every shard ... sums
//!                                   '--helper thread, at most a tenth of its time--> Locator::footprint
//! ```
//! What shards say is exact at the moment they say it. What the file system holds is counted file by file, so on a node
//! with very many files it is as old as [`Physical`] says, and not waited for once it takes longer than [`FOOTPRINT_WAIT`],
//! nor at all when the last one did: Stats does not depend on how many payloads there are.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use payload_drivers::{DiskWatch, Locator};
use payload_reactor::{DirectLeases, SessionList, SlabCounts};
use payload_types::reply::{Reply, ShardStats};
use payload_types::request::Request as Ask;
use payload_types::{PayloadError, PerTier, Tier};
use payload_wire::encode::{self, DirectFigures, MemoryFigures, NodeFigures};
use payload_wire::pb::admin::v1 as pb;
use tokio::sync::watch;

use crate::bootstrap::Node;
use crate::deadline::Deadline;
use crate::incoming::Connections;
use crate::object::ObjectTier;
use crate::services::router::{Router, mismatch};

/// How long answers wait for a count, from its beginning on: at 2 µs a file that is a node of 50,000 files.
const FOOTPRINT_WAIT: Duration = Duration::from_millis(100);

/// A count that took so long is not repeated before this many times as long has passed: a tenth of one core at most.
const FOOTPRINT_REST: u32 = 9;

/// See the module. One a node.
pub struct Accounting {
    router: Arc<Router>,
    connections: Connections,
    /// `None`: native sessions are not served.
    sessions: Option<SessionList>,
    direct: Option<DirectLeases>,
    memory: Option<Arc<SlabCounts>>,
    physical: Arc<Physical>,
    started: Instant,
    disk: DiskWatch,
    overhead: PerTier<u64>,
    /// `None`: no object store is configured.
    objects: Option<Arc<ObjectTier>>,
}

impl Accounting {
    /// Figures of the shards of `node`, which are behind `router`, of its files and disk root, and of `connections`.
    pub fn new(router: Arc<Router>, node: &Node, connections: Connections) -> Self {
        let physical = Physical::new(node.locator());
        let (disk, overhead, sessions) = (node.disk(), node.overhead(), node.sessions());
        let (direct, memory) = (node.direct(), node.slab_counts());
        let objects = node.objects();
        let started = Instant::now();
        Self { router, connections, sessions, direct, memory, physical, started, disk, overhead, objects }
    }

    /// All figures, now.
    ///
    /// # Errors
    /// As [`Router::ask_all`].
    pub async fn gather(&self, deadline: Option<Deadline>) -> Result<pb::StatsResponse, PayloadError> {
        self.gather_parts(deadline).await.map(|(stats, _parts)| stats)
    }

    /// As [`Accounting::gather`], and what each shard said, in the order of the shards.
    ///
    /// # Errors
    /// As [`Router::ask_all`].
    pub async fn gather_parts(
        &self,
        deadline: Option<Deadline>,
    ) -> Result<(pb::StatsResponse, Vec<ShardStats>), PayloadError> {
        let physical = self.physical.current().await;
        let mut parts = Vec::new();
        for reply in self.router.ask_all(&Ask::Stats, deadline).await? {
            let Reply::Stats(part) = reply else { return Err(mismatch("Stats", &reply)) };
            parts.push(*part);
        }
        let node = NodeFigures {
            physical,
            overhead: self.overhead,
            connections: self.connections.count() as u64,
            native_sessions: self.sessions.as_ref().map_or(0, SessionList::count) as u64,
            direct: self.direct.as_ref().map(direct_figures).unwrap_or_default(),
            memory: self.memory.as_deref().map(memory_figures),
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            disk: self.disk.look(),
            segments: self.disk.segments(),
            object_store: self.objects.as_ref().map(|objects| objects.health()),
        };
        Ok((encode::stats(&parts, &node), parts))
    }
}

fn direct_figures(direct: &DirectLeases) -> DirectFigures {
    let leases = direct.leases().iter().map(|(_, leases)| u64::from(*leases)).sum();
    let (samples_total, unplaced_total) = direct.totals();
    DirectFigures { leases, sessions: direct.sessions() as u64, samples_total, unplaced_total }
}

fn memory_figures(counts: &SlabCounts) -> MemoryFigures {
    let now = |count: &AtomicU64| count.load(Ordering::Relaxed);
    MemoryFigures {
        memories: now(&counts.slabs),
        bytes: now(&counts.bytes),
        held: now(&counts.held),
        made_bytes: now(&counts.made_bytes),
        large_bytes: now(&counts.large_bytes),
        large_refused: now(&counts.large_refused),
        failed: now(&counts.failed),
        opened: now(&counts.opened),
    }
}

/// What the file system held when it was last counted. A count begins when somebody asks, one at a time.
struct Physical {
    locator: Locator,
    last: watch::Sender<PerTier<Option<u64>>>,
    next: Mutex<Next>,
}

/// When the next count may begin.
#[derive(Clone, Copy, Debug)]
enum Next {
    /// One is under way. It is waited for until this moment: later it is one of those that take long.
    Running { wait_end: Instant },
    /// Not before this moment; the last one took so long.
    At { moment: Instant, took: Duration },
}

impl Physical {
    fn new(locator: Locator) -> Arc<Self> {
        let next = Mutex::new(Next::At { moment: Instant::now(), took: Duration::ZERO });
        Arc::new(Self { locator, last: watch::Sender::new(PerTier::default()), next })
    }

    /// The newest count: one that began now, where that may begin and ends within [`FOOTPRINT_WAIT`].
    async fn current(self: &Arc<Self>) -> PerTier<Option<u64>> {
        let mut counted = self.last.subscribe();
        if self.begin() {
            let physical = Arc::clone(self);
            drop(tokio::task::spawn_blocking(move || physical.count()));
        }
        let next = *self.next();
        if let Next::Running { wait_end } = next {
            let left = wait_end.saturating_duration_since(Instant::now());
            // Too late is no error: what was counted last is told, and what is counted now the next time. A wait of
            // nothing would be one of a tick of tokio's clock, 1 ms.
            if !left.is_zero() {
                drop(tokio::time::timeout(left, counted.changed()).await);
            }
        }
        *self.last.borrow()
    }

    fn next(&self) -> MutexGuard<'_, Next> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self) -> bool {
        let mut next = self.next();
        let now = Instant::now();
        match *next {
            Next::At { moment, took } if moment <= now => {
                let wait = if took > FOOTPRINT_WAIT { Duration::ZERO } else { FOOTPRINT_WAIT };
                *next = Next::Running { wait_end: now + wait };
                true
            }
            Next::At { .. } | Next::Running { .. } => false,
        }
    }

    /// Counts, on a thread that may wait.
    fn count(&self) {
        let began = Instant::now();
        let figures = PerTier(Tier::ALL.map(|tier| match self.locator.footprint(tier) {
            Ok(bytes) => Some(bytes.0),
            Err(error) => {
                tracing::debug!(%tier, %error, "the files of a tier could not be counted");
                None
            }
        }));
        let took = began.elapsed();
        *self.next() = Next::At { moment: Instant::now() + took * FOOTPRINT_REST, took };
        self.last.send_replace(figures);
    }
}
