//! What the session thread and the shards share of a session: its memory, who it is, and what is wrong with it.
//!
//! The session thread makes a [`Session`], lends it to every shard, and keeps it until it is the only one that has it:
//! so it alone unmaps memory and closes descriptors, whichever shard lets go last.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use payload_local::layout::{self, NodeView, SessionView, ShardView};
use payload_local::wake;
use payload_types::{Epoch, NamespaceId, Peer, SessionId, ShardIndex};

use crate::sys::memory::{SharedMemory, Writers, futex_wake_all};
use crate::sys::poll::Bell;

/// The page that every client maps read-only: which shards sleep, and that the server lives.
pub(crate) struct NodePage {
    memory: SharedMemory,
    fd: OwnedFd,
}

impl NodePage {
    /// A page of a server that begins to serve.
    pub(crate) fn make(epoch: Epoch, boot_hash: u64) -> io::Result<Self> {
        let (memory, fd) = SharedMemory::make(c"pm-node", layout::NODE_PAGE_BYTES, Writers::OnlyHere)?;
        let page = Self { memory, fd };
        page.view().boot_hash().store(boot_hash, Ordering::Relaxed);
        page.view().epoch().store(u64::from(epoch.0), Ordering::Release);
        Ok(page)
    }

    fn view(&self) -> NodeView<'_, AtomicU64> {
        NodeView::new(self.memory.words()).expect("made as long as its layout says")
    }

    /// Not 0 while the shard sleeps.
    pub(crate) fn sleeping(&self, shard: ShardIndex) -> &AtomicU64 {
        self.view().sleeping(shard.0)
    }

    /// The server has ended.
    pub(crate) fn end(&self) {
        self.view().epoch().store(0, Ordering::Release);
    }

    /// What clients map.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Which session this is, and whose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Identity {
    /// Unique in one start of the server.
    pub id: SessionId,
    /// Its place in tables; taken again once no shard has it.
    pub slot: u16,
    /// The process.
    pub peer: Peer,
    /// Whose payloads it sees.
    pub namespace: NamespaceId,
    /// It may have slabs: feature ARENAS was asked for and is served.
    pub arenas: bool,
    /// It may lease directly: feature DIRECT.
    pub direct: bool,
}

/// One session, as shards have it.
pub(crate) struct Session {
    pub(crate) identity: Identity,
    memory: SharedMemory,
    shard_count: u16,
    node: Arc<NodePage>,
    /// Why it has to be closed, by whichever shard found out first.
    fault: OnceLock<String>,
    /// Wakes the session thread.
    registry: Arc<Bell>,
}

impl Session {
    /// With its memory, whose descriptor is for the client.
    pub(crate) fn make(
        identity: Identity,
        shard_count: u16,
        node: Arc<NodePage>,
        registry: Arc<Bell>,
    ) -> io::Result<(Self, OwnedFd)> {
        let (memory, fd) =
            SharedMemory::make(c"pm-session", layout::session_bytes(shard_count), Writers::Everybody)?;
        Ok((Self { identity, memory, shard_count, node, fault: OnceLock::new(), registry }, fd))
    }

    fn view(&self) -> SessionView<'_, AtomicU64> {
        SessionView::new(self.memory.words(), self.shard_count).expect("made as long as its layout says")
    }

    /// One shard's rings.
    #[inline]
    pub(crate) fn rings(&self, shard: ShardIndex) -> ShardView<'_, AtomicU64> {
        self.view().shard(shard.0)
    }

    /// Which shards sleep.
    pub(crate) fn node(&self) -> &Arc<NodePage> {
        &self.node
    }

    /// After completions were posted: wakes the client's threads if any sleep. One system call then, which never waits.
    pub(crate) fn wake_sleepers(&self) {
        let line = self.view().wake_line();
        if wake::must_wake(&line) {
            futex_wake_all(line.wake);
        }
    }

    /// Wakes the client's threads, so that they see that the session has ended.
    pub(crate) fn wake_all(&self) {
        let line = self.view().wake_line();
        line.wake.fetch_add(1, Ordering::Release);
        futex_wake_all(line.wake);
    }

    /// A payload was deleted by force: leases that somebody holds may name nothing any more.
    pub(crate) fn revoke(&self) {
        self.view().revoked().fetch_add(1, Ordering::Release);
    }

    /// Has the session closed for this reason. Only the first one counts.
    pub(crate) fn report(&self, fault: String) {
        if self.fault.set(fault).is_ok() {
            self.registry.ring();
        }
    }

    /// What was reported.
    pub(crate) fn fault(&self) -> Option<&str> {
        self.fault.get().map(String::as_str)
    }

    /// A shard lets go, and tells the session thread, which has it still.
    pub(crate) fn let_go(self: Arc<Self>) {
        let registry = Arc::clone(&self.registry);
        drop(self);
        registry.ring();
    }
}
