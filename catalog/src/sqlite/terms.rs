//! Gives metadata of earlier programs the terms by which they are found: the part of migration 5 that is no SQL.

use payload_types::record::Metadata;
use rusqlite::{Connection, params};

use super::records::terms_bytes;
use crate::records::terms;

/// Documents read at a time: 16 of 1 MiB.
const DOCUMENTS: i64 = 16;

const CURRENT: &str = "SELECT history.id, history.namespace, history.payload, event.data, event.schema
    FROM history CROSS JOIN event ON event.history = history.id AND event.number = history.current
    WHERE history.id > ?1 ORDER BY history.id LIMIT ?2";
const SET: &str = "UPDATE history SET terms = ?2 WHERE id = ?1";
const ADD: &str = "INSERT INTO metadata_term (namespace, term, payload) VALUES (?1, ?2, ?3)";

/// A payload, its history, and its terms.
type Filled = (i64, u32, [u8; 16], Vec<u64>);

/// Fills in what is missing. Called in the migration's transaction.
pub(super) fn fill(connection: &Connection) -> rusqlite::Result<()> {
    let mut last = 0;
    loop {
        let read = |row: &rusqlite::Row<'_>| -> rusqlite::Result<Filled> {
            let schema: Vec<u8> = row.get(4)?;
            let metadata =
                Metadata { data: row.get(3)?, schema: String::from_utf8_lossy(&schema).into_owned() };
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, terms::of(&metadata)))
        };
        let mut statement = connection.prepare_cached(CURRENT)?;
        let some: Vec<Filled> = statement.query_map([last, DOCUMENTS], read)?.collect::<Result<_, _>>()?;
        for (history, namespace, payload, terms) in &some {
            connection.prepare_cached(SET)?.execute(params![history, terms_bytes(terms)])?;
            let mut add = connection.prepare_cached(ADD)?;
            for term in terms {
                add.execute(params![namespace, term.cast_signed(), payload])?;
            }
        }
        match some.last() {
            Some((history, ..)) => last = *history,
            None => return Ok(()),
        }
    }
}
