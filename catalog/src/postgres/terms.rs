//! Gives metadata of earlier programs the terms by which they are found: the part of migration 5 that is no SQL.

use payload_types::record::Metadata;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::link::{Session, Sql, cell};
use crate::error::StoreError;
use crate::records::terms;

/// Documents read at a time: 16 of 1 MiB.
const DOCUMENTS: i64 = 16;

static CURRENT: Sql = Sql {
    text: "SELECT history.namespace, history.payload, event.data, event.schema FROM (
            SELECT * FROM payload_manager.history WHERE (namespace, payload) > ($1, $2) AND current > 0
            ORDER BY namespace, payload LIMIT $3) AS history, LATERAL (
            SELECT data, schema FROM payload_manager.event
            WHERE event.history = history.id AND event.number = history.current OFFSET 0) AS event
        ORDER BY history.namespace, history.payload",
    types: &[Type::INT8, Type::UUID, Type::INT8],
};
static SET: Sql = Sql {
    text: "UPDATE payload_manager.history SET terms = $3 WHERE namespace = $1 AND payload = $2",
    types: &[Type::INT8, Type::UUID, Type::INT8_ARRAY],
};
static ADD: Sql = Sql {
    text: "INSERT INTO payload_manager.metadata_term (namespace, term, payload)
        SELECT $1, term, $2 FROM unnest($3) AS new (term)",
    types: &[Type::INT8, Type::UUID, Type::INT8_ARRAY],
};

/// Fills in what is missing. Called in the migration's transaction.
pub(super) async fn fill(session: &mut Session) -> Result<(), StoreError> {
    // Namespaces are numbered from 1 on.
    let (mut namespace, mut payload) = (0_i64, Uuid::nil());
    loop {
        let rows = session.query(&CURRENT, &[&namespace, &payload, &DOCUMENTS]).await?;
        for row in &rows {
            (namespace, payload) = (cell(row, 0)?, cell(row, 1)?);
            let schema: Vec<u8> = cell(row, 3)?;
            let schema = String::from_utf8_lossy(&schema).into_owned();
            let terms = terms::of(&Metadata { data: cell(row, 2)?, schema });
            let terms: Vec<i64> = terms.into_iter().map(u64::cast_signed).collect();
            session.execute(&SET, &[&namespace, &payload, &terms]).await?;
            session.execute(&ADD, &[&namespace, &payload, &terms]).await?;
        }
        if rows.is_empty() {
            return Ok(());
        }
    }
}
