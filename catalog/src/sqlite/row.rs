//! How a payload's row is bound and read. The columns stand in one order everywhere: that of the migrations.

use payload_types::{NamespaceId, PayloadId, PayloadKey, PayloadRow};
use rusqlite::{Row, Statement};

use super::errors::rolled_back;
use crate::columns;
use crate::error::{RESTORE, StoreError};

/// Inserts a row, or replaces it unless it is newer (see `supersedes`).
pub(super) const PUT: &str = concat!(
    "INSERT INTO payload (namespace, id, ",
    columns::list!(),
    ")
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22)
    ON CONFLICT (namespace, id) DO UPDATE SET ",
    columns::replacing!(),
    "
    WHERE (excluded.epoch, excluded.version) >= (payload.epoch, payload.version)"
);

/// Removes a row unless it was written after the given epoch.
pub(super) const REMOVE: &str = "DELETE FROM payload WHERE namespace = ?1 AND id = ?2 AND epoch <= ?3";

/// Says of a row how sound its payload's bytes are.
pub(super) const HEALTH: &str = "UPDATE payload SET health = ?1 WHERE namespace = ?2 AND id = ?3";

/// Every row, in the order of keys.
pub(super) const ALL: &str =
    concat!("SELECT namespace, id, ", columns::list!(), " FROM payload ORDER BY namespace, id");

/// One row.
pub(super) const ONE: &str =
    concat!("SELECT namespace, id, ", columns::list!(), " FROM payload WHERE namespace = ?1 AND id = ?2");

/// Runs [`PUT`]. Every number fits: the caller checked with `storable`.
pub(super) fn put(statement: &mut Statement<'_>, row: &PayloadRow) -> rusqlite::Result<()> {
    statement.raw_bind_parameter(1, row.key.namespace.0)?;
    statement.raw_bind_parameter(2, &row.key.id.as_bytes()[..])?;
    for (column, number) in (3..).zip(columns::numbers_of(row)) {
        statement.raw_bind_parameter(column, number)?;
    }
    statement.raw_execute()?;
    Ok(())
}

/// Reads a row selected by [`ALL`] or [`ONE`].
pub(super) fn read(row: &Row<'_>) -> Result<PayloadRow, StoreError> {
    let cell = |column: usize| row.get::<_, Option<i64>>(column).map_err(|error| rolled_back(&error));
    let namespace = cell(0)?.and_then(|number| u32::try_from(number).ok()).ok_or_else(|| {
        StoreError::Corrupt(format!("a row has a namespace that is out of range; {RESTORE}"))
    })?;
    let id = PayloadId::from_bytes(row.get(1).map_err(|error| rolled_back(&error))?);
    let mut numbers = [None; columns::COUNT];
    for (column, number) in (2..).zip(&mut numbers) {
        *number = cell(column)?;
    }
    columns::row_of(PayloadKey { namespace: NamespaceId(namespace), id }, numbers)
}
