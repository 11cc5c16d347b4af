//! The upload journal as a start reads it.

use payload_types::upload::{UploadEntry, UploadPart};
use payload_types::{ByteCount, Generation, PayloadId};
use rusqlite::{Connection, Row};

use crate::error::StoreError;
use crate::sqlite::errors::rolled_back;

const UPLOADS: &str = "SELECT payload, removal, generation, size, part_bytes, compression, upload
    FROM object_upload ORDER BY payload";
const PARTS: &str = "SELECT number, tag, hash FROM object_part WHERE payload = ?1 ORDER BY number";

/// All entries, by id.
pub(in crate::sqlite) fn uploads(connection: &Connection) -> Result<Vec<UploadEntry>, StoreError> {
    let read = || -> rusqlite::Result<Vec<UploadEntry>> {
        let mut statement = connection.prepare(UPLOADS)?;
        let mut parts = connection.prepare(PARTS)?;
        let mut entries: Vec<UploadEntry> = statement.query_map([], entry)?.collect::<Result<_, _>>()?;
        for entry in &mut entries {
            entry.parts = parts.query_map([&entry.id.as_bytes()[..]], part)?.collect::<Result<_, _>>()?;
        }
        Ok(entries)
    };
    read().map_err(|error| rolled_back(&error))
}

fn entry(row: &Row<'_>) -> rusqlite::Result<UploadEntry> {
    let number = |column: usize| row.get::<_, i64>(column).map(i64::cast_unsigned);
    Ok(UploadEntry {
        id: PayloadId::from_bytes(row.get(0)?),
        is_removal: row.get(1)?,
        generation: Generation(number(2)?),
        size: ByteCount(number(3)?),
        part_bytes: number(4)?,
        compression: row.get(5)?,
        upload: row.get(6)?,
        parts: Vec::new(),
    })
}

fn part(row: &Row<'_>) -> rusqlite::Result<UploadPart> {
    Ok(UploadPart { index: row.get(0)?, tag: row.get(1)?, hash: row.get::<_, i64>(2)?.cast_unsigned() })
}
