//! Records in PostgreSQL: the rules of `crate::records` over statements on one connection.
//!
//! Changes run in the writer's open transaction. A query has a transaction of its own, which sees one state. What another
//! node has made in between ends a change with `Unavailable`: the writer rolls back and makes its group again.

mod ahead;
mod reader;
mod sql;
mod tables;

use std::collections::{BTreeSet, HashMap};

use payload_types::record::{LineageEdge, RecordChange, RecordOutcome};
use payload_types::{PayloadId, WallMs};
use tokio_postgres::Row;
use tokio_postgres::types::FromSqlOwned;
use uuid::Uuid;

use super::errors::Doing;
use super::link::{Link, Sql, Value, cell};
use crate::error::{RESTORE, StoreError};
use crate::records;
use crate::records::cells::Cells;

pub(super) use reader::PostgresReader;

/// The tables, as one open transaction sees them.
struct Records<'link> {
    link: &'link mut Link,
    /// Whose transaction it is; `None`: it only reads.
    writer: Option<i32>,
    /// Edges that were fetched ahead, by the end that they are asked by.
    ahead: Option<HashMap<PayloadId, Vec<LineageEdge>>>,
}

impl Records<'_> {
    fn query(&mut self, sql: &'static Sql, values: &[Value<'_>]) -> Result<Vec<Row>, StoreError> {
        self.link.run(Doing::Asking, async |session| session.query(sql, values).await)
    }

    /// Runs a statement that changes rows; returns how many.
    fn execute(&mut self, sql: &'static Sql, values: &[Value<'_>]) -> Result<u64, StoreError> {
        self.link.run(Doing::Asking, async |session| session.execute(sql, values).await)
    }
}

/// Makes one change in the open transaction of `node`.
pub(super) fn apply(link: &mut Link, node: i32, change: &RecordChange) -> Result<RecordOutcome, StoreError> {
    let mut tables = Records { link, writer: Some(node), ahead: None };
    if matches!(change, RecordChange::Sweep { .. }) {
        let rows = tables.query(&sql::SWEEP_LOCK, &[])?;
        if !rows.first().map_or(Ok(false), |row| cell(row, 0))? {
            return Ok(RecordOutcome::Swept { removed: 0, more: false, floors: Vec::new() });
        }
    }
    records::apply(&mut tables, change)
}

/// Locks the streams that `changes` speak of, where they are several, in one order for all nodes.
pub(super) fn streams_lock<'change>(
    link: &mut Link,
    changes: impl Iterator<Item = &'change RecordChange>,
) -> Result<(), StoreError> {
    let names: BTreeSet<_> = changes
        .filter_map(|change| match change.bare() {
            RecordChange::StreamAppend { stream, .. }
            | RecordChange::StreamCommit { stream, .. }
            | RecordChange::GroupRemove { stream, .. }
            | RecordChange::StreamDelete { stream } => Some(stream),
            _ => None,
        })
        .collect();
    if names.len() < 2 {
        return Ok(());
    }
    let namespaces: Vec<&[u8]> = names.iter().map(|name| name.namespace.as_bytes()).collect();
    let names: Vec<&[u8]> = names.iter().map(|name| name.name.as_bytes()).collect();
    let mut tables = Records { link, writer: None, ahead: None };
    tables.query(&sql::STREAMS_LOCKED, &[&namespaces, &names]).map(|_ids| ())
}

/// Whether a sweep would find something to do.
pub(super) fn sweep_is_due(link: &mut Link, at: WallMs) -> Result<bool, StoreError> {
    records::sweep_is_due(&mut Records { link, writer: None, ahead: None }, at)
}

/// A number that rules keep within 63 bits.
fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn positive(row: &Row, column: usize) -> Result<u64, StoreError> {
    u64::try_from(cell::<i64>(row, column)?).map_err(|_| strange("a negative number"))
}

fn payload(row: &Row, column: usize) -> Result<PayloadId, StoreError> {
    cell::<Uuid>(row, column).map(|id| PayloadId::from_bytes(id.into_bytes()))
}

/// The next cells of a row.
struct RowCells<'row> {
    row: &'row Row,
    column: usize,
}

impl<'row> RowCells<'row> {
    fn of(row: &'row Row) -> Self {
        Self { row, column: 0 }
    }

    fn next<T: FromSqlOwned>(&mut self) -> Result<T, StoreError> {
        self.column += 1;
        cell(self.row, self.column - 1)
    }
}

impl Cells for RowCells<'_> {
    fn optional(&mut self) -> Result<Option<u64>, StoreError> {
        let found = self.next::<Option<i64>>()?;
        found.map(|found| u64::try_from(found).map_err(|_| strange("a negative number"))).transpose()
    }

    fn flag(&mut self) -> Result<bool, StoreError> {
        self.next()
    }

    fn bytes(&mut self) -> Result<Vec<u8>, StoreError> {
        self.next()
    }

    fn id(&mut self) -> Result<PayloadId, StoreError> {
        self.next::<Uuid>().map(|id| PayloadId::from_bytes(id.into_bytes()))
    }
}

fn strange(what: &str) -> StoreError {
    StoreError::Corrupt(format!("the catalog's records hold {what}; {RESTORE}"))
}

/// Another node was faster.
fn overtaken() -> StoreError {
    StoreError::Unavailable("another node changed the same record meanwhile; it is made again".to_owned())
}
