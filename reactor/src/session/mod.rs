//! Native sessions, the server's half: who may come in, what a session is made of, and how it ends.
//!
//! ```text
//! client --Unix socket--> pm-sessions: handshake, memory, descriptors; watches socket and process
//!                             | attach, close (a lane of each mailbox)       ^ bell: a fault, or a shard let go
//!                             v                                             |
//!        rings <---------> pump of each shard: polls, answers, wakes -------'
//! ```
//!
//! `front` starts a [`SessionServer`] beside the reactor and stops it after it. Everything that may take a while
//! (accepting, making, mapping, unmapping, closing) is done on the session thread; shards only poll rings. A session ends
//! when its client says so, when its socket is closed or its process has ended, or when it breaks the protocol: shards
//! take nothing more from its rings, give back what it held (at once, and again once their last answer to it is out), and
//! let go; then its memory is unmapped.
//!
//! Limits: [`SESSIONS_MAX`] sessions, [`HANDSHAKES_MAX`] handshakes of [`HANDSHAKE_MS`] at a time. A session costs the
//! server a socket, a pidfd and an eventfd a shard, and [`payload_local::layout::session_bytes`] of memory.

pub(crate) mod direct;
mod file;
mod registry;
mod share;
mod slabs;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use payload_local::hello::ROOT_BYTES_MAX;
use payload_types::{Epoch, NamespaceId, PayloadId, SessionId, WallMs};

use crate::mailbox::{ReactorHandle, Shared};
use crate::session::direct::Direct;
use crate::session::file::SocketFile;
use crate::session::registry::Registry;
use crate::session::slabs::Slabs;
use crate::sys;
use crate::sys::poll::Bell;

pub(crate) use direct::{DirectShared, TableMade, TableOp};
pub use file::{SocketError, probe_socket};
pub(crate) use share::{Identity, NodePage, Session};
pub use slabs::{SlabConfig, SlabCounts};

/// The most sessions that `local.sessions_max` may allow: with 16 shards they are 0.8 GiB of rings.
pub const SESSIONS_MAX: u16 = 1024;

/// Handshakes at a time; more connections wait in the kernel.
pub const HANDSHAKES_MAX: usize = 64;

/// How long a client may take to say who it is.
pub const HANDSHAKE_MS: u64 = 1000;

/// What `local.*` says, and what clients are told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SessionConfig {
    /// `local.socket_path`.
    pub socket_path: PathBuf,
    /// `local.socket_mode`.
    pub socket_mode: u32,
    /// `local.socket_group`: a name or a number; `None`: the server's own.
    pub socket_group: Option<String>,
    /// Who may come in.
    pub allowed: Allowed,
    /// `local.sessions_max`, 1 ..= [`SESSIONS_MAX`].
    pub sessions_max: u16,
    /// This start of the server.
    pub epoch: Epoch,
    /// The machine's boot id, as text.
    pub boot_id: String,
    /// Whose payloads clients see.
    pub namespace: NamespaceId,
    /// `storage.ram.shm_prefix`.
    pub shm_prefix: String,
    /// The disk root, absolute; empty without one.
    pub disk_root: String,
    /// `host:port` of gRPC, as programs on this host reach it; empty, or too long to be one: clients are told none.
    pub address: String,
    /// `leases.dead_grace`: how long after its death what a process has begun with a device may go on; its direct leases
    /// count until then.
    pub dead_grace_ms: u64,
}

/// Users and groups that may open sessions.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Allowed {
    /// `local.allowed_uids`; empty: the server's own user and root.
    pub uids: Vec<u32>,
    /// `local.allowed_gids`: whoever is in one of these groups may come in, too.
    pub gids: Vec<u32>,
}

impl Allowed {
    fn permits(&self, uid: u32, gids: &[u32]) -> bool {
        let by_user = match self.uids.is_empty() {
            true => uid == 0 || uid == sys::socket::own_uid(),
            false => self.uids.contains(&uid),
        };
        by_user || gids.iter().any(|gid| self.gids.contains(gid))
    }
}

/// Why sessions are not served.
#[derive(Debug)]
pub enum SessionError {
    /// The socket could not be made.
    Socket(SocketError),
    /// The system gave no memory, descriptor or thread.
    System {
        /// What was tried.
        what: &'static str,
        /// Its reason.
        error: io::Error,
    },
    /// The disk root's path does not fit into a Welcome.
    RootTooLong,
}

impl fmt::Display for SessionError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(error) => write!(formatter, "native sessions cannot be served: {error}"),
            Self::System { what, error } => write!(
                formatter,
                "native sessions cannot be served: {what} failed: {error}; raise the limit it names, or set local.enabled: false"
            ),
            Self::RootTooLong => write!(
                formatter,
                "native sessions cannot be served: the path of the disk root has more than {ROOT_BYTES_MAX} bytes; shorten storage.disk.root_path, or set local.enabled: false"
            ),
        }
    }
}

impl std::error::Error for SessionError {}

/// One session, as people see it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SessionInfo {
    /// Its number.
    pub id: SessionId,
    /// The process at the other end, when it connected.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// What it calls itself.
    pub program: String,
    /// Since when.
    pub since: WallMs,
}

/// The open sessions, kept current by the session thread.
#[derive(Clone, Default)]
pub struct SessionList(Arc<Mutex<BTreeMap<SessionId, SessionInfo>>>);

impl SessionList {
    /// All of them, oldest first.
    pub fn all(&self) -> Vec<SessionInfo> {
        self.locked(|sessions| sessions.values().cloned().collect())
    }

    /// One, if it is open.
    pub fn get(&self, id: SessionId) -> Option<SessionInfo> {
        self.locked(|sessions| sessions.get(&id).cloned())
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.locked(|sessions| sessions.len())
    }

    fn locked<T>(&self, body: impl FnOnce(&mut BTreeMap<SessionId, SessionInfo>) -> T) -> T {
        body(&mut self.0.lock().expect("nobody panics with it"))
    }
}

/// What is leased directly, as sessions' cells say. For people: looking costs a pass over all cells in use.
#[derive(Clone)]
pub struct DirectLeases(Arc<Shared>);

impl DirectLeases {
    /// Sessions that lease this payload directly, each with how many leases.
    pub fn holders(&self, namespace: NamespaceId, id: &PayloadId) -> Vec<(SessionId, u32)> {
        self.0.direct.holders(namespace, id)
    }

    /// Sessions that lease something directly, each with how many leases.
    pub fn leases(&self) -> Vec<(SessionId, u32)> {
        self.0.direct.leases()
    }

    /// Sessions that may.
    pub fn sessions(&self) -> usize {
        self.0.direct.sessions()
    }

    /// Samples of what was read that shards have taken, and payloads that found no place in a table, since the start.
    pub fn totals(&self) -> (u64, u64) {
        let direct = &self.0.direct;
        (direct.sampled.load(Ordering::Relaxed), direct.unplaced.load(Ordering::Relaxed))
    }
}

/// What the session thread is told, besides what its descriptors tell it.
#[derive(Default)]
struct Orders(AtomicU8);

impl Orders {
    const SERVE: u8 = 0;
    const REFUSE: u8 = 1;
    const END: u8 = 2;

    fn is_refusing(&self) -> bool {
        self.0.load(Ordering::Acquire) != Self::SERVE
    }

    fn is_ending(&self) -> bool {
        self.0.load(Ordering::Acquire) == Self::END
    }
}

/// The session thread, from outside. Dropped, it ends as by [`SessionServer::shutdown`].
pub struct SessionServer {
    list: SessionList,
    counts: Arc<SlabCounts>,
    shared: Arc<Shared>,
    orders: Arc<Orders>,
    bell: Arc<Bell>,
    /// Removed when new sessions are refused.
    file: Option<SocketFile>,
    thread: Option<JoinHandle<()>>,
}

impl SessionServer {
    /// Serves sessions for the shards behind `reactor`, which may start later. Without `slabs` there is no feature ARENAS.
    ///
    /// # Errors
    /// [`SessionError`]; then nothing is left.
    ///
    /// # Panics
    /// When `sessions_max` is not 1 ..= [`SESSIONS_MAX`]: the configuration was checked.
    pub fn start(
        config: SessionConfig,
        slabs: Option<SlabConfig>,
        reactor: &ReactorHandle,
    ) -> Result<Self, SessionError> {
        assert!((1..=SESSIONS_MAX).contains(&config.sessions_max), "{} sessions", config.sessions_max);
        if config.disk_root.len() > ROOT_BYTES_MAX {
            return Err(SessionError::RootTooLong);
        }
        let failed = |what| move |error| SessionError::System { what, error };
        let shared = Arc::clone(reactor.shared());
        for mailbox in &shared.boxes {
            mailbox.doorbell.watch().map_err(failed("making an epoll for a shard"))?;
        }
        // A boot id is a UUID; of what is none, the hash is that of nobody's.
        let boot_hash = config.boot_id.parse().map_or(0, |id: PayloadId| id.hash64());
        let node = NodePage::make(config.epoch, boot_hash).map_err(failed("making the node page"))?;
        let bell = Arc::new(Bell::new().map_err(failed("making an eventfd"))?);
        let (list, orders) = (SessionList::default(), Arc::new(Orders::default()));
        let group = config.socket_group.as_deref();
        let (file, listener) = SocketFile::listen(&config.socket_path, config.socket_mode, group)
            .map_err(SessionError::Socket)?;
        let counts = Arc::new(SlabCounts::default());
        let slabs = slabs
            .map(|slabs| Slabs::start(slabs, Arc::clone(&shared), Arc::clone(&bell), Arc::clone(&counts)));
        let direct = match &slabs {
            Some(_) => Some(
                Direct::start(Arc::clone(&shared), config.namespace, config.dead_grace_ms)
                    .map_err(failed("making a table of direct leases"))?,
            ),
            None => None,
        };
        let registry = Registry::new(
            registry::Parts {
                config,
                boot_hash,
                shared,
                node: Arc::new(node),
                bell: Arc::clone(&bell),
                orders: Arc::clone(&orders),
                list: list.clone(),
                slabs,
                direct,
            },
            listener,
        )
        .map_err(failed("watching the socket"))?;
        let thread = std::thread::Builder::new()
            .name("pm-sessions".to_owned())
            .spawn(move || registry.run())
            .map_err(failed("starting the session thread"))?;
        Ok(Self {
            list,
            counts,
            shared: Arc::clone(reactor.shared()),
            orders,
            bell,
            file: Some(file),
            thread: Some(thread),
        })
    }

    /// The open sessions.
    pub fn list(&self) -> SessionList {
        self.list.clone()
    }

    /// Counts of slabs; all 0 without feature ARENAS.
    pub fn slab_counts(&self) -> Arc<SlabCounts> {
        Arc::clone(&self.counts)
    }

    /// What is leased directly.
    pub fn direct(&self) -> DirectLeases {
        DirectLeases(Arc::clone(&self.shared))
    }

    /// The beginning of the end: the socket is removed, and who comes is told that the server stops. Sessions go on.
    pub fn refuse_new(&mut self) {
        self.order(Orders::REFUSE);
        self.file = None;
    }

    /// Ends all sessions, telling their clients why. After the reactor's end, so that nobody polls rings any more.
    pub fn shutdown(mut self) {
        self.end();
    }

    fn order(&self, order: u8) {
        self.orders.0.fetch_max(order, Ordering::AcqRel);
        self.bell.ring();
    }

    fn end(&mut self) {
        self.refuse_new();
        self.order(Orders::END);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("a panic of the session thread ends the process");
        }
    }
}

impl Drop for SessionServer {
    fn drop(&mut self) {
        self.end();
    }
}

/// What a shard is told of a session. Lane: sessions; each session has at most one of each under way to each shard, and of
/// `Gone` there are no more than [`GONE_UNDER_WAY_MAX`].
pub(crate) enum SessionNote {
    /// Poll its rings.
    Attach(Arc<Session>),
    /// Take nothing more from them; give back what it holds, and let go of it.
    Close(SessionId),
    /// Its process is proven dead, or could never write to memory that is shared. After its `Close`.
    Gone(SessionId),
}

/// Notes of this kind in a shard's lane: they have nothing that bounds them there.
const GONE_UNDER_WAY_MAX: usize = SESSIONS_MAX as usize;

/// Notes under way to one shard: two for each session, and those above.
pub(crate) const SESSION_LANE_LEN: usize = 2 * SESSIONS_MAX as usize + GONE_UNDER_WAY_MAX;
