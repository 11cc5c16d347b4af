//! Looking after the nodes of a database from outside: which there are, and removing one that is gone for good.
//!
//! ```text
//! remove: refused while it runs --> its fence moves: it may write no more --> its rows, some a transaction --> its name
//! ```
//! A removal that was interrupted is taken up by the next one: the name goes last. What belongs to the rows goes as with any
//! removal: metadata at once, long histories and lineage by the sweeps of the nodes that stay.

use tokio_postgres::types::Type;

use super::errors::Doing;
use super::link::{Link, Session, Sql, cell};
use super::{DATABASE, PostgresStore, migrate, node, target};
use crate::error::StoreError;

/// Rows that one transaction removes, with what belongs to them.
const ROWS_AT_ONCE: i64 = 4096;

/// A node, as its row and its payloads' rows say.
#[derive(Clone, PartialEq, Debug)]
pub struct NodeInfo {
    /// `node.name`.
    pub name: String,
    /// `host:port` of its gRPC.
    pub address: String,
    /// For how long it was not heard of, in milliseconds; `None`: it has stopped in order.
    pub silent_ms: Option<u64>,
    /// It was heard of lately, or it may be.
    pub is_running: bool,
    /// Payloads that it owns.
    pub payloads: u64,
    /// Their bytes.
    pub bytes: u64,
}

static LIST: Sql = Sql {
    text: "SELECT node.name, node.address,
            (extract(epoch FROM clock_timestamp() - node.heartbeat) * 1000)::bigint,
            coalesce(held.payloads, 0), coalesce(held.bytes, 0)::bigint
        FROM payload_manager.node AS node
        LEFT JOIN LATERAL (SELECT count(*) AS payloads, sum(size) AS bytes FROM payload_manager.payload
            WHERE owner = node.id) AS held ON true
        ORDER BY node.name",
    types: &[],
};

static RETIRE: Sql = Sql {
    text: "UPDATE payload_manager.node SET epoch = (SELECT 1 + max(epoch) FROM payload_manager.node), heartbeat = NULL
        WHERE name = $1 RETURNING id, epoch",
    types: &[Type::TEXT],
};

/// `$1` and `$2`: the node and its epoch. `$3`: rows. Each transaction counts as a group of the node's, by which others know
/// that their totals are old.
static FORGET: Sql = Sql {
    text: "WITH fence AS (
            UPDATE payload_manager.node SET last_group = last_group + 1 WHERE id = $1 AND epoch = $2 RETURNING id
        ), gone AS (
            DELETE FROM payload_manager.payload AS payload USING (
                SELECT namespace, id FROM payload_manager.payload WHERE owner = (SELECT id FROM fence)
                ORDER BY namespace, id LIMIT $3) AS part
            WHERE payload.namespace = part.namespace AND payload.id = part.id
            RETURNING payload.namespace, payload.id
        ), histories AS (
            DELETE FROM payload_manager.history AS history USING gone
            WHERE history.namespace = gone.namespace AND history.payload = gone.id
            RETURNING history.id, history.namespace, history.payload, history.terms
        ), terms AS (
            DELETE FROM payload_manager.metadata_term AS term
            USING (SELECT namespace, payload, unnest(terms) AS term FROM histories) AS old
            WHERE term.namespace = old.namespace AND term.term = old.term AND term.payload = old.payload
        ), garbage AS (
            INSERT INTO payload_manager.garbage SELECT 2, id FROM histories ON CONFLICT DO NOTHING
        ), dirty AS (
            INSERT INTO payload_manager.lineage_dirty SELECT namespace, id FROM gone ON CONFLICT DO NOTHING
        )
        SELECT count(*) FROM gone",
    types: &[Type::INT4, Type::INT8, Type::INT8],
};

static UNNAME: Sql = Sql {
    text: "DELETE FROM payload_manager.node WHERE id = $1 AND epoch = $2",
    types: &[Type::INT4, Type::INT8],
};

impl PostgresStore {
    /// The nodes of a database, by name. Changes nothing; counts every row.
    ///
    /// # Errors
    /// As [`PostgresStore::probe`]; [`StoreError::Refused`] for one without the schema.
    pub fn nodes(connection_uri: &str, pooled: bool) -> Result<Vec<NodeInfo>, StoreError> {
        asked(connection_uri, pooled, async |session| list(session).await)
    }

    /// Removes a node that does not run, and all that the catalog keeps of its payloads; returns how many there were.
    ///
    /// # Errors
    /// As [`PostgresStore::nodes`]; [`StoreError::Locked`] while it runs, or started meanwhile; [`StoreError::Refused`] when
    /// there is none of this name.
    pub fn node_remove(connection_uri: &str, pooled: bool, name: &str) -> Result<u64, StoreError> {
        let named = |error: StoreError| error.prefixed(DATABASE);
        let target = target::read(connection_uri).map_err(named)?;
        let mut link = Link::connect(&target, pooled).map_err(named)?;
        let (node, epoch) = link.run(Doing::Asking, async |session| retire(session, name).await)?;
        let mut removed = 0;
        loop {
            let some: i64 = link.run(Doing::Asking, async |session| {
                session.one(&FORGET, &[&node, &epoch, &ROWS_AT_ONCE]).await
            })?;
            removed += some.cast_unsigned();
            if some < ROWS_AT_ONCE {
                break;
            }
        }
        match link.run(Doing::Asking, async |session| session.execute(&UNNAME, &[&node, &epoch]).await)? {
            0 => Err(StoreError::Locked(format!(
                "a server has started as `{name}` meanwhile; stop that one first"
            ))),
            _ => Ok(removed),
        }
    }
}

fn asked<T>(
    connection_uri: &str,
    pooled: bool,
    work: impl AsyncFnOnce(&mut Session) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let named = |error: StoreError| error.prefixed(DATABASE);
    let target = target::read(connection_uri).map_err(named)?;
    let mut link = Link::connect(&target, pooled).map_err(named)?;
    link.run(Doing::Asking, async |session| {
        let pending = migrate::missing(session).await?;
        if !pending.is_empty() {
            return Err(StoreError::Refused(
                "its schema is not up to date; run `payload-manager migrate`".to_owned(),
            ));
        }
        work(session).await
    })
    .map_err(named)
}

async fn list(session: &mut Session) -> Result<Vec<NodeInfo>, StoreError> {
    let mut nodes = Vec::new();
    for row in session.query(&LIST, &[]).await? {
        let silent_ms: Option<i64> = cell(&row, 2)?;
        let (payloads, bytes): (i64, i64) = (cell(&row, 3)?, cell(&row, 4)?);
        nodes.push(NodeInfo {
            name: cell(&row, 0)?,
            address: cell(&row, 1)?,
            silent_ms: silent_ms.map(|silent| u64::try_from(silent).unwrap_or_default()),
            is_running: silent_ms.is_some_and(|silent| (silent as f64) < node::SILENT_SECONDS_MAX * 1000.0),
            payloads: payloads.cast_unsigned(),
            bytes: bytes.cast_unsigned(),
        });
    }
    Ok(nodes)
}

/// Ends a node that does not run: whoever still writes in its name is refused from now on.
async fn retire(session: &mut Session, name: &str) -> Result<(i32, i64), StoreError> {
    session.run("BEGIN").await?;
    migrate::lock(session).await?;
    let found = session.query(&node::FIND, &[&name]).await?;
    let Some(found) = found.first() else {
        return Err(StoreError::Refused(format!(
            "the catalog has no node `{name}`; `payload-manager nodes` says which there are"
        )));
    };
    let silent: Option<f64> = cell(found, 2)?;
    if let Some(seconds) = silent.filter(|seconds| *seconds < node::SILENT_SECONDS_MAX) {
        let address: String = cell(found, 3)?;
        return Err(StoreError::Locked(format!(
            "node `{name}` at {address} was heard of {seconds:.1} s ago; stop it, and wait {} s if it was killed",
            node::SILENT_SECONDS_MAX
        )));
    }
    let retired = session.query(&RETIRE, &[&name]).await?;
    let row = retired.first().expect("the row that was just found is locked");
    let fence = (cell(row, 0)?, cell(row, 1)?);
    session.commit().await?;
    Ok(fence)
}
