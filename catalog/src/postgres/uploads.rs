//! The upload journal as a start of its node reads it.

use payload_types::upload::{UploadEntry, UploadPart};
use payload_types::{ByteCount, Generation, PayloadId};
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::link::{Session, Sql, cell};
use crate::error::{RESTORE, StoreError};

static UPLOADS: Sql = Sql {
    text: "SELECT payload, removal, generation, size, part_bytes, compression, upload
        FROM payload_manager.object_upload WHERE owner = $1 ORDER BY payload",
    types: &[Type::INT4],
};

static PARTS: Sql = Sql {
    text: "SELECT part.payload, number, tag, hash FROM payload_manager.object_part AS part
        JOIN payload_manager.object_upload AS entry ON entry.payload = part.payload
        WHERE owner = $1 ORDER BY part.payload, number",
    types: &[Type::INT4],
};

/// All entries of a node, by id.
pub(super) async fn read(session: &mut Session, own: i32) -> Result<Vec<UploadEntry>, StoreError> {
    let found = session.query(&UPLOADS, &[&own]).await?;
    let mut entries = found.iter().map(entry).collect::<Result<Vec<_>, _>>()?;
    for row in session.query(&PARTS, &[&own]).await? {
        let id = PayloadId::from_bytes(cell::<Uuid>(&row, 0)?.into_bytes());
        let (index, hash) = (fit(cell(&row, 1)?)?, cell::<i64>(&row, 3)?.cast_unsigned());
        if let Ok(place) = entries.binary_search_by_key(&id, |entry| entry.id) {
            entries[place].parts.push(UploadPart { index, tag: cell(&row, 2)?, hash });
        }
    }
    Ok(entries)
}

fn entry(row: &Row) -> Result<UploadEntry, StoreError> {
    let number = |column: usize| fit(cell(row, column)?);
    Ok(UploadEntry {
        id: PayloadId::from_bytes(cell::<Uuid>(row, 0)?.into_bytes()),
        is_removal: cell(row, 1)?,
        generation: Generation(number(2)?),
        size: ByteCount(number(3)?),
        part_bytes: number(4)?,
        compression: fit(cell(row, 5)?)?,
        upload: cell(row, 6)?,
        parts: Vec::new(),
    })
}

fn fit<T: TryFrom<i64>>(number: i64) -> Result<T, StoreError> {
    T::try_from(number).map_err(|_| {
        StoreError::Corrupt(format!("the upload journal has {number} where it cannot be; {RESTORE}"))
    })
}
