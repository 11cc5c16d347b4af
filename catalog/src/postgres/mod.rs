//! The catalog in a PostgreSQL server, which nodes of different names may share.
//!
//! ```text
//! group of changes -> fence + rows, one statement (alone: one round trip, which commits)
//!                 or: BEGIN, fence, rows and records in order, COMMIT
//! connection lost -> connect anew, with backoff -> a new session in this node's row, which ends what the old one could
//!                    still do, and tells whether the group in doubt was committed
//! ```
//!
//! Invariants: every write names this node's epoch and session, and is refused when either has moved on; a group's
//! number is written with it, so that its outcome is known once the server answers again; a node reads and changes its
//! own payload rows only (`owner`), and records of any.
//!
//! Durability is the server's: `synchronous_commit` must not be off. Nothing here reads a clock but for pauses.

mod errors;
mod foreign;
mod link;
mod migrate;
mod node;
mod nodes;
mod records;
mod row;
mod target;
mod terms;
mod uploads;

use std::time::{Duration, Instant};

use payload_types::record::{RecordChange, RecordOutcome};
use payload_types::upload::UploadEntry;
use payload_types::{Epoch, Health, NamespaceId, PayloadKey, PayloadRow, WallMs};
use tokio_postgres::types::Type;

use crate::change::{Change, storable};
use crate::error::StoreError;
use crate::migrations::names;
use crate::store::{Reader, Store};
use errors::{Doing, translate};
use link::{Link, Session, Sql, Value, cell};
#[cfg(test)]
pub(crate) use migrate::MIGRATIONS;
use node::Heart;
pub use nodes::NodeInfo;
use records::PostgresReader;
use row::{Fence, Round};
use target::Target;

/// How long a start waits for a server that is not there yet: both may be started together.
const START_WAIT: Duration = Duration::from_secs(10);

/// The pause between tries to connect doubles from the first of these up to the second.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// See [`BACKOFF_MIN`].
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// The oldest server: the first with all that the statements use. Tested with 15.
const SERVER_MIN: i32 = 130_000;

/// What errors of opening begin with: the URI itself may hold a password.
const DATABASE: &str = "catalog database (database.postgres.connection_uri)";

static SERVER: Sql = Sql {
    text: "SELECT current_setting('server_version_num')::integer, current_setting('synchronous_commit'),
        current_setting('fsync')",
    types: &[],
};

static NAMESPACE: Sql =
    Sql { text: "SELECT id FROM payload_manager.namespace WHERE name = $1", types: &[Type::TEXT] };

/// Where the catalog is, and who uses it.
#[derive(Clone, Debug)]
pub struct PostgresConfig {
    /// `postgresql://user:password@host:port/database`, or `key=value` pairs.
    pub connection_uri: String,
    /// The server is reached through a proxy that pools by transaction: no named statements, no settings of a session.
    pub pooled: bool,
    /// This server's name.
    pub node: String,
    /// The id of the disk root that this process holds the lock of.
    pub disk_root: Option<String>,
    /// Where this server's gRPC is reached.
    pub address: String,
}

/// What a connection needs to know.
#[derive(Clone)]
struct Place {
    target: Target,
    pooled: bool,
    disk_root: Option<String>,
    address: String,
}

/// See the module.
pub struct PostgresStore {
    place: Place,
    /// The name that `disk_roots` speaks of.
    node: String,
    link: Option<Link>,
    /// Not before this is the next try to connect made, with this error meanwhile.
    refused: Option<(Instant, Duration, StoreError)>,
    fence: Option<Fence>,
    heart: Option<Heart>,
    /// The number of the last group.
    group: i64,
    /// The last group's outcomes, when it ended in `Unknown`, and whether it took effect, once that is known.
    doubt: Option<(Vec<RecordOutcome>, Option<bool>)>,
}

impl PostgresStore {
    /// Connects, and brings the schema up to date. Waits [`START_WAIT`] for a server that is not there yet.
    ///
    /// # Errors
    /// Every kind but [`StoreError::Unknown`], naming the key or what to do on the server.
    pub fn open(config: PostgresConfig) -> Result<Self, StoreError> {
        let named = |error: StoreError| error.prefixed(DATABASE);
        let PostgresConfig { connection_uri, pooled, node, disk_root, address } = config;
        let target = target::read(&connection_uri).map_err(named)?;
        let place = Place { target, pooled, disk_root, address };
        let link = connect_patiently(&place).map_err(named)?;
        let mut store = Self {
            place,
            node,
            link: Some(link),
            refused: None,
            fence: None,
            heart: None,
            group: 0,
            doubt: None,
        };
        store.ask(look_at).map_err(named)?;
        store.ask(migrate::migrate).map_err(named)?;
        Ok(store)
    }

    /// Looks whether a store could be opened, and changes nothing.
    ///
    /// # Errors
    /// As [`PostgresStore::open`], without its patience.
    pub fn probe(connection_uri: &str, pooled: bool) -> Result<(), StoreError> {
        let target = target::read(connection_uri)?;
        Link::connect(&target, pooled)?.run(Doing::Asking, look_at)
    }

    /// The names of the migrations that a start would run on this database. Changes nothing.
    ///
    /// # Errors
    /// As [`PostgresStore::probe`], and [`StoreError::NewerFormat`].
    pub fn migrations_pending(connection_uri: &str, pooled: bool) -> Result<Vec<&'static str>, StoreError> {
        let named = |error: StoreError| error.prefixed(DATABASE);
        let target = target::read(connection_uri).map_err(named)?;
        let mut link = Link::connect(&target, pooled).map_err(named)?;
        let missing = link.run(Doing::Asking, async |session| migrate::missing(session).await);
        missing.map(names).map_err(named)
    }

    /// Runs `work` on a connection, a new one when it must be. The connection is given up after an error.
    fn ask<T>(
        &mut self,
        work: impl AsyncFnOnce(&mut Session) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut link = self.take_link()?;
        let result = link.run(Doing::Asking, work);
        if result.is_ok() {
            self.link = Some(link);
        }
        result
    }

    /// Takes the connection, which is the one that this node's row names; a new one when it must be. Whoever took it puts it
    /// back unless it failed.
    fn take_link(&mut self) -> Result<Link, StoreError> {
        if let Some(mut link) = self.link.take()
            && !link.is_closed()
        {
            return Ok(link);
        }
        if let Some((at, _, error)) = &self.refused
            && Instant::now() < *at
        {
            return Err(error.clone());
        }
        let connected = self.connect();
        let refused = self.refused.take();
        if let Err(error) = &connected {
            let pause = refused.map_or(BACKOFF_MIN, |(_, pause, _)| BACKOFF_MAX.min(2 * pause));
            self.refused = Some((Instant::now() + pause, pause, error.clone()));
        }
        connected
    }

    fn connect(&mut self) -> Result<Link, StoreError> {
        let mut link = Link::connect(&self.place.target, self.place.pooled)?;
        if let Some(fence) = &mut self.fence {
            let last = link.run(Doing::Asking, async |session| node::enlist(session, fence).await)?;
            if let Some((_, took_effect)) = &mut self.doubt {
                *took_effect = Some(last == self.group);
            }
            tracing::info!("connected to the catalog's database again");
        }
        Ok(link)
    }

    /// Whether the group in doubt took effect: its outcomes if so. No group is in doubt afterwards.
    fn settle(&mut self) -> Result<Option<Vec<RecordOutcome>>, StoreError> {
        if self.doubt.is_some() {
            // Where the connection was given up with the error, a new one tells.
            self.link = Some(self.take_link()?);
        }
        Ok(self.doubt.take().and_then(|(outcomes, took_effect)| {
            took_effect.expect("whoever connects settles what is in doubt").then_some(outcomes)
        }))
    }

    fn write(&mut self, batch: &[Change]) -> Result<Vec<RecordOutcome>, StoreError> {
        // The fence is this connection's: it must not be exchanged for a new one from here on.
        let mut link = self.take_link()?;
        let fence = self.fence.ok_or_else(unregistered)?;
        self.group += 1;
        let group = self.group;
        let steps = steps(batch);
        let mut outcomes = Vec::new();
        let alone = if let [Step::Rows(rounds)] = &steps[..]
            && let [round] = &rounds[..]
        {
            link.run(Doing::Committing, async |session| write_round(session, round, fence, group).await)
        } else {
            Ok(false)
        };
        let result = alone.and_then(|is_made| {
            if is_made {
                return Ok(());
            }
            outcomes = write_all(&mut link, &steps, fence, group)?;
            link.run(Doing::Committing, Session::commit)
        });
        // `Taken` was rolled back in good order; after any other error the connection is given up.
        if matches!(result, Ok(()) | Err(StoreError::Taken(_))) {
            self.link = Some(link);
        }
        match result {
            Ok(()) => Ok(outcomes),
            Err(error) => {
                if matches!(error, StoreError::Unknown(_)) {
                    self.doubt = Some((outcomes, None));
                }
                Err(error)
            }
        }
    }

    fn own(&self) -> Result<i32, StoreError> {
        self.fence.map(|fence| fence.node).ok_or_else(unregistered)
    }
}

fn unregistered() -> StoreError {
    StoreError::Unavailable("this server has not registered its start; begin_epoch comes first".to_owned())
}

/// What a group is made of, in order.
enum Step<'batch> {
    Rows(Vec<Round>),
    Record(&'batch RecordChange),
}

impl<'batch> Step<'batch> {
    fn record(&self) -> Option<&'batch RecordChange> {
        match self {
            Self::Rows(_) => None,
            Self::Record(change) => Some(change),
        }
    }
}

fn steps(batch: &[Change]) -> Vec<Step<'_>> {
    let is_row = |change: &Change| matches!(change, Change::Row(_));
    let mut steps = Vec::with_capacity(1);
    for run in batch.chunk_by(|one, next| is_row(one) && is_row(next)) {
        match &run[0] {
            Change::Record(change) => steps.push(Step::Record(change)),
            Change::Row(_) => {
                steps.push(Step::Rows(Round::of(run.iter().filter_map(|change| match change {
                    Change::Row(change) => Some(change),
                    Change::Record(_) => None,
                }))))
            }
        }
    }
    steps
}

/// One statement, which is a transaction as none is open. False: not every row would have been put, so none was.
async fn write_round(
    session: &mut Session,
    round: &Round,
    fence: Fence,
    group: i64,
) -> Result<bool, StoreError> {
    session.prepare(&row::WRITE).await?;
    let all = round.puts() as i64;
    match session.query_prepared(&row::WRITE, &round.values(&fence, &group, &all)).await {
        Ok(rows) if rows.is_empty() => Err(node::fenced()),
        Ok(_) => Ok(true),
        Err(error) if row::too_few(&error) => Ok(false),
        Err(error) => Err(translate(&error, Doing::Committing)),
    }
}

/// A transaction, but for its COMMIT. [`StoreError::Taken`]: it was rolled back.
fn write_all(
    link: &mut Link,
    steps: &[Step<'_>],
    fence: Fence,
    group: i64,
) -> Result<Vec<RecordOutcome>, StoreError> {
    let update = node::fence_update(fence, group);
    if !link.run(Doing::Asking, async |session| session.begin(&update).await)? {
        return Err(node::fenced());
    }
    records::streams_lock(link, steps.iter().filter_map(Step::record))?;
    let mut outcomes = Vec::new();
    for step in steps {
        match step {
            Step::Rows(rounds) => {
                for round in rounds {
                    let values = round.values(&fence, &group, &0);
                    let put: i64 =
                        link.run(Doing::Asking, async |session| session.one(&row::WRITE, &values).await)?;
                    if put < round.puts() as i64 {
                        // Newer rows of our own stay, too, and are no harm.
                        none_taken(link, round, fence)?;
                    }
                }
            }
            Step::Record(change) => outcomes.push(records::apply(link, fence.node, change)?),
        }
    }
    Ok(outcomes)
}

/// Rolls back when rows of other nodes have ids of `round`. What is committed by now is seen: the statement that put the
/// round has waited for whoever wrote the same ids.
fn none_taken(link: &mut Link, round: &Round, fence: Fence) -> Result<(), StoreError> {
    let values = round.keys(&fence);
    let found = link.run(Doing::Asking, async |session| session.query(&row::TAKEN, &values).await)?;
    if found.is_empty() {
        return Ok(());
    }
    link.run(Doing::Asking, async |session| session.run("ROLLBACK").await)?;
    Err(StoreError::Taken(found.iter().map(row::taken).collect::<Result<_, StoreError>>()?))
}

/// Refuses a server on which the promises of the catalog would not hold.
async fn look_at(session: &mut Session) -> Result<(), StoreError> {
    let rows = session.query(&SERVER, &[]).await?;
    let row = rows.first().expect("a SELECT without FROM gives one row");
    let (version, synchronous, fsync): (i32, String, String) = (cell(row, 0)?, cell(row, 1)?, cell(row, 2)?);
    if version < SERVER_MIN {
        return Err(StoreError::Refused(format!(
            "the server's version is {}.{}; at least {} is needed",
            version / 10_000,
            version % 10_000,
            SERVER_MIN / 10_000
        )));
    }
    if synchronous == "off" {
        return Err(StoreError::Refused(
            "synchronous_commit is off for this user, so a crash would lose what was acknowledged; run ALTER ROLE ... SET synchronous_commit = on"
                .to_owned(),
        ));
    }
    if fsync == "off" {
        tracing::warn!(
            "the catalog's PostgreSQL runs with fsync = off: a loss of power can destroy the catalog"
        );
    }
    Ok(())
}

fn connect_patiently(place: &Place) -> Result<Link, StoreError> {
    let started = Instant::now();
    let mut pause = BACKOFF_MIN;
    loop {
        match Link::connect(&place.target, place.pooled) {
            Err(error) if error.is_temporary() && started.elapsed() < START_WAIT => {
                tracing::info!(%error, "waiting for the catalog's database");
                std::thread::sleep(pause);
                pause = BACKOFF_MAX.min(2 * pause);
            }
            result => return result,
        }
    }
}

impl Store for PostgresStore {
    fn begin_epoch(&mut self, name: &str) -> Result<Epoch, StoreError> {
        let (place, own) = (self.place.clone(), self.fence);
        if let Some(heart) = self.heart.take() {
            heart.end();
        }
        let fence = self.ask(async |session| {
            let fence = node::start(session, name, &place, own).await?;
            session.commit().await?;
            Ok(fence)
        })?;
        (self.fence, self.group, self.doubt) = (Some(fence), 0, None);
        self.heart = Some(Heart::start(place, fence));
        Ok(node::epoch(fence))
    }

    fn disk_roots(&mut self) -> Result<Vec<String>, StoreError> {
        let (name, place, own) = (self.node.clone(), self.place.clone(), self.fence);
        self.ask(async |session| node::roots(session, &name, &place, own).await)
    }

    fn disk_root_bind(&mut self, name: &str, root_id: &str) -> Result<(), StoreError> {
        self.ask(async |session| node::root_bind(session, name, root_id).await)
    }

    fn apply(&mut self, batch: &[Change]) -> Result<Vec<RecordOutcome>, StoreError> {
        batch.iter().try_for_each(storable)?;
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        match self.settle()? {
            // The same batch again, which was made.
            Some(outcomes) => Ok(outcomes),
            None => self.write(batch),
        }
    }

    fn resolve(&mut self, _batch: &[Change]) -> Result<Option<Vec<RecordOutcome>>, StoreError> {
        self.settle()
    }

    fn reader(&self) -> Result<Box<dyn Reader>, StoreError> {
        Ok(Box::new(PostgresReader::open(self.place.clone(), self.fence.map_or(0, |fence| fence.node))?))
    }

    fn sweep_is_due(&mut self, at: WallMs) -> Result<bool, StoreError> {
        let mut link = self.take_link()?;
        let is_due = records::sweep_is_due(&mut link, at)?;
        self.link = Some(link);
        Ok(is_due)
    }

    fn load(&mut self, each: &mut dyn FnMut(PayloadRow)) -> Result<(), StoreError> {
        let own = self.own()?;
        let mut link = self.take_link()?;
        link.each_row(&row::ALL, &[&own], &mut |found| {
            each(row::read(found)?);
            Ok(true)
        })?;
        self.link = Some(link);
        Ok(())
    }

    fn get(&mut self, key: PayloadKey) -> Result<Option<PayloadRow>, StoreError> {
        let own = self.own()?;
        let (namespace, id) = (i64::from(key.namespace.0), row::uuid(key.id));
        let found = self.ask(async |session| session.query(&row::ONE, &[&own, &namespace, &id]).await)?;
        found.first().map(row::read).transpose()
    }

    fn health_note(&mut self, keys: &[PayloadKey], health: Health) -> Result<(), StoreError> {
        let fence = self.fence.ok_or_else(unregistered)?;
        let health = health as i64;
        let namespaces: Vec<i64> = keys.iter().map(|key| i64::from(key.namespace.0)).collect();
        let ids: Vec<_> = keys.iter().map(|key| row::uuid(key.id)).collect();
        let values: [Value<'_>; 5] = [&fence.node, &fence.epoch, &health, &namespaces, &ids];
        self.ask(async |session| session.query(&row::HEALTH, &values).await).map(drop)
    }

    fn uploads(&mut self) -> Result<Vec<UploadEntry>, StoreError> {
        let own = self.own()?;
        self.ask(async |session| uploads::read(session, own).await)
    }

    fn count(&mut self) -> Result<u64, StoreError> {
        let own = self.own()?;
        let count: i64 = self.ask(async |session| session.one(&row::COUNT, &[&own]).await)?;
        Ok(count.cast_unsigned())
    }

    fn namespace(&mut self, name: &str) -> Result<Option<NamespaceId>, StoreError> {
        let found = self.ask(async |session| session.query(&NAMESPACE, &[&name]).await)?;
        let Some(row) = found.first() else { return Ok(None) };
        let number: i64 = cell(row, 0)?;
        u32::try_from(number)
            .map(|number| Some(NamespaceId(number)))
            .map_err(|_| StoreError::Corrupt(format!("namespace `{name}` has the number {number}")))
    }

    fn close(mut self: Box<Self>) -> Result<(), StoreError> {
        if let Some(heart) = self.heart.take() {
            heart.end();
        }
        match self.fence {
            Some(fence) => self.ask(async |session| node::stopped(session, fence).await),
            None => Ok(()),
        }
    }
}
