//! This server's row in `node`: its start, its fence, and the heartbeat that says it runs.
//!
//! A name belongs to one server at a time. A start under a name is refused while another server's heartbeat is fresh,
//! unless this one holds the disk root that the name is bound to: roots are locked, so the other one has ended. Should
//! both run all the same, the later start's epoch wins, and every write of the earlier one is refused.

use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam::channel::{RecvTimeoutError, Sender, bounded};
use payload_types::Epoch;
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::errors::Doing;
use super::link::{Link, Session, Sql, cell};
use super::row::Fence;
use super::{Place, migrate};
use crate::error::StoreError;
use crate::store::{EPOCH_MAX, epochs_exhausted};

/// How often a server says that it runs.
const BEAT: Duration = Duration::from_secs(2);

/// A server that was silent for five beats does not run, or cannot reach the database: its name may be taken.
pub(super) const SILENT_SECONDS_MAX: f64 = 10.0;

pub(super) static FIND: Sql = Sql {
    text: "SELECT id, epoch, extract(epoch FROM clock_timestamp() - heartbeat)::double precision, address, disk_root
        FROM payload_manager.node WHERE name = $1 FOR UPDATE",
    types: &[Type::TEXT],
};

static START: Sql = Sql {
    text: "INSERT INTO payload_manager.node (name, epoch, session, last_group, heartbeat, address)
        SELECT $1, 1 + coalesce(max(epoch), 0), 1, 0, clock_timestamp(), $2 FROM payload_manager.node
        ON CONFLICT (name) DO UPDATE SET epoch = excluded.epoch, session = node.session + 1, last_group = 0,
            heartbeat = excluded.heartbeat, address = excluded.address
        RETURNING id, epoch, session",
    types: &[Type::TEXT, Type::TEXT],
};

static ENLIST: Sql = Sql {
    text: "UPDATE payload_manager.node SET session = session + 1, heartbeat = clock_timestamp()
        WHERE id = $1 AND epoch = $2 RETURNING session, last_group",
    types: &[Type::INT4, Type::INT8],
};

static HEARTBEAT: Sql = Sql {
    text: "UPDATE payload_manager.node SET heartbeat = clock_timestamp() WHERE id = $1 AND epoch = $2 RETURNING id",
    types: &[Type::INT4, Type::INT8],
};

static STOPPED: Sql = Sql {
    text: "UPDATE payload_manager.node SET heartbeat = NULL WHERE id = $1 AND epoch = $2",
    types: &[Type::INT4, Type::INT8],
};

static ROOT_OWNER: Sql = Sql {
    text: "SELECT name FROM payload_manager.node WHERE name <> $1 AND disk_root = $2",
    types: &[Type::TEXT, Type::TEXT],
};

static ROOT_BIND: Sql = Sql {
    text: "UPDATE payload_manager.node SET disk_root = $2 WHERE name = $1",
    types: &[Type::TEXT, Type::TEXT],
};

/// Refuses a name that another server has: it was heard of lately, and is bound to a disk root that is not ours.
fn free(found: &Row, name: &str, place: &Place) -> Result<(), StoreError> {
    let silent: Option<f64> = cell(found, 2)?;
    let root: Option<String> = cell(found, 4)?;
    let Some(seconds) = silent.filter(|seconds| *seconds < SILENT_SECONDS_MAX) else { return Ok(()) };
    if root.is_none() || root == place.disk_root {
        return Ok(());
    }
    let address: String = cell(found, 3)?;
    Err(StoreError::Locked(format!(
        "the name `{name}` is taken by the server at {address}, which was heard of {seconds:.1} s ago; stop that one and wait {SILENT_SECONDS_MAX} s, or give this one a name of its own (`node.name`)"
    )))
}

/// Registers a start of `name`, in a transaction that is left open. `own`: this process' last one.
pub(super) async fn start(
    session: &mut Session,
    name: &str,
    place: &Place,
    own: Option<Fence>,
) -> Result<Fence, StoreError> {
    session.run("BEGIN").await?;
    migrate::lock(session).await?;
    if let Some(found) = session.query(&FIND, &[&name]).await?.first() {
        let is_own = own.is_some_and(|own| cell(found, 0) == Ok(own.node) && cell(found, 1) == Ok(own.epoch));
        if !is_own {
            free(found, name, place)?;
        }
    }
    let rows = session.query(&START, &[&name, &place.address]).await?;
    let row = rows.first().expect("an upsert that always writes gives its row");
    let fence = Fence { node: cell(row, 0)?, epoch: cell(row, 1)?, session: cell(row, 2)? };
    if fence.epoch > i64::from(EPOCH_MAX) {
        return Err(epochs_exhausted(name));
    }
    Ok(fence)
}

/// The number of a start.
pub(super) fn epoch(fence: Fence) -> Epoch {
    Epoch(u32::try_from(fence.epoch).expect("starts are counted up to 2^20"))
}

/// Makes `fence` hold for this connection and no earlier one, and returns the last group that was committed. Waits for
/// what an earlier connection is still committing: it holds the row.
pub(super) async fn enlist(session: &mut Session, fence: &mut Fence) -> Result<i64, StoreError> {
    let rows = session.query(&ENLIST, &[&fence.node, &fence.epoch]).await?;
    let row = rows.first().ok_or_else(fenced)?;
    fence.session = cell(row, 0)?;
    cell(row, 1)
}

/// What fences a transaction of several statements, and names its group. Only numbers: it needs no parameters.
pub(super) fn fence_update(fence: Fence, group: i64) -> String {
    let Fence { node, epoch, session } = fence;
    format!(
        "UPDATE payload_manager.node SET last_group = {group} WHERE id = {node} AND epoch = {epoch} AND session = {session}"
    )
}

/// The refusal of a write whose fence does not stand.
pub(super) fn fenced() -> StoreError {
    StoreError::Fenced(
        "another server has started under this node's name since, so this one may not write any more; stop it, or give one of the two another node.name and disk root"
            .to_owned(),
    )
}

/// The disk root that `name` is bound to. Asked before anything is changed, so a taken name is found here.
pub(super) async fn roots(
    session: &mut Session,
    name: &str,
    place: &Place,
    own: Option<Fence>,
) -> Result<Vec<String>, StoreError> {
    let rows = session.query(&FIND, &[&name]).await?;
    let Some(found) = rows.first() else { return Ok(Vec::new()) };
    if own.is_none() {
        free(found, name, place)?;
    }
    Ok(cell::<Option<String>>(found, 4)?.into_iter().collect())
}

/// Binds `name` to a disk root, which no other name may have.
pub(super) async fn root_bind(session: &mut Session, name: &str, root: &str) -> Result<(), StoreError> {
    session.run("BEGIN").await?;
    migrate::lock(session).await?;
    if let Some(owner) = session.query(&ROOT_OWNER, &[&name, &root]).await?.first() {
        let owner: String = cell(owner, 0)?;
        return Err(StoreError::Locked(format!(
            "this disk root belongs to node `{owner}` of the catalog; start with node.name `{owner}`, or on an empty disk root"
        )));
    }
    session.query(&ROOT_BIND, &[&name, &root]).await?;
    session.commit().await
}

/// The thread that says that this server runs. Ends when dropped or fenced.
pub(super) struct Heart {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl Heart {
    /// Starts it, with a connection of its own.
    pub fn start(place: Place, fence: Fence) -> Self {
        let (stop, stopped) = bounded(1);
        let beat = move || {
            let mut link = None;
            while stopped.recv_timeout(BEAT) == Err(RecvTimeoutError::Timeout) {
                match beat_once(&mut link, &place, fence) {
                    Ok(true) => {}
                    Ok(false) => {
                        tracing::error!("{}", fenced());
                        return;
                    }
                    Err(error) => {
                        link = None;
                        tracing::warn!(%error, "the heartbeat did not reach the catalog's database");
                    }
                }
            }
        };
        let thread = thread::Builder::new()
            .name("catalog-beat".to_owned())
            .spawn(beat)
            .expect("the system has room for one more thread at start");
        Self { stop, thread }
    }

    /// Ends the thread, and waits for it.
    pub fn end(self) {
        let Self { stop, thread } = self;
        drop(stop);
        if thread.join().is_err() {
            tracing::error!("the heartbeat's thread had panicked");
        }
    }
}

/// False: this server is fenced.
fn beat_once(link: &mut Option<Link>, place: &Place, fence: Fence) -> Result<bool, StoreError> {
    if link.is_none() {
        *link = Some(Link::connect(&place.target, place.pooled)?);
    }
    let link = link.as_mut().expect("connected above");
    link.run(Doing::Asking, async |session| {
        Ok(!session.query(&HEARTBEAT, &[&fence.node, &fence.epoch]).await?.is_empty())
    })
}

/// Says that this server has stopped, so that its name is free at once.
pub(super) async fn stopped(session: &mut Session, fence: Fence) -> Result<(), StoreError> {
    session.query(&STOPPED, &[&fence.node, &fence.epoch]).await.map(|_none| ())
}
