//! What the tables' rows are in cells, for backends that store them as such.
//!
//! A backend says how it reads the next cell of a row; which cells a batch, an edge or an event has, in which order and
//! with what meaning, is said here once. Statements name their columns in that order.

use payload_types::record::{
    LineageEdge, Metadata, MetadataEvent, MetadataEventKind, StreamGroup, StreamLimits, StreamName,
};
use payload_types::{NamespaceId, PayloadId, PayloadKey, PayloadState, WallMs};

use super::strange;
use super::tables::{Batch, Garbage, Note, Standing, StreamRow};
use crate::columns;
use crate::error::StoreError;

/// The cells of a row, from left to right.
pub(crate) trait Cells {
    /// One that may be NULL; a negative number is an error.
    fn optional(&mut self) -> Result<Option<u64>, StoreError>;

    /// A truth value.
    fn flag(&mut self) -> Result<bool, StoreError>;

    /// Bytes as they were stored.
    fn bytes(&mut self) -> Result<Vec<u8>, StoreError>;

    /// A payload's id.
    fn id(&mut self) -> Result<PayloadId, StoreError>;

    fn number(&mut self) -> Result<u64, StoreError> {
        self.optional()?.ok_or_else(|| strange("a number is missing"))
    }

    fn time(&mut self) -> Result<WallMs, StoreError> {
        self.number().map(WallMs::from_millis)
    }

    fn text(&mut self) -> Result<String, StoreError> {
        String::from_utf8(self.bytes()?).map_err(|_| strange("a text is not UTF-8"))
    }

    fn key(&mut self) -> Result<PayloadKey, StoreError> {
        let namespace = u32::try_from(self.number()?).map_err(|_| strange("a namespace is out of range"))?;
        Ok(PayloadKey { namespace: NamespaceId(namespace), id: self.id()? })
    }

    fn standing(&mut self) -> Result<Standing, StoreError> {
        let state = i64::try_from(self.number()?).ok().and_then(PayloadState::from_number);
        let expires_at = self.optional()?.map(WallMs::from_millis);
        let health = i64::try_from(self.number()?).ok().and_then(columns::health);
        Ok(Standing {
            state: state.ok_or_else(|| strange("a payload has a state that has no meaning"))?,
            expires_at,
            health: health.ok_or_else(|| strange("a payload has a health that has no meaning"))?,
        })
    }

    fn event(&mut self) -> Result<MetadataEvent, StoreError> {
        use MetadataEventKind::{Merged, Noted, Replaced};
        let (number, at, kind) = (self.number()?, self.time()?, self.number()?);
        let kind = [Replaced, Merged, Noted].into_iter().find(|known| *known as u64 == kind);
        Ok(MetadataEvent {
            number,
            at,
            kind: kind.ok_or_else(|| strange("an event of an unknown kind"))?,
            metadata: self.metadata()?,
            source: self.text()?,
            reason: self.text()?,
            version: self.text()?,
        })
    }

    fn metadata(&mut self) -> Result<Metadata, StoreError> {
        Ok(Metadata { data: self.bytes()?, schema: self.text()? })
    }

    fn edge(&mut self) -> Result<LineageEdge, StoreError> {
        Ok(LineageEdge {
            child: self.id()?,
            parent: self.id()?,
            operation: self.text()?,
            role: self.text()?,
            parameters: self.bytes()?,
        })
    }

    fn stream(&mut self) -> Result<StreamRow, StoreError> {
        Ok(StreamRow {
            id: self.number()?,
            name: StreamName { namespace: self.text()?, name: self.text()? },
            limits: StreamLimits {
                entries_max: self.optional()?,
                age_ms_max: self.optional()?,
                retains_payloads: self.flag()?,
            },
            first: self.number()?,
            next: self.number()?,
            last_at: self.time()?,
            due_at: self.optional()?.map(WallMs::from_millis),
        })
    }

    fn group(&mut self) -> Result<StreamGroup, StoreError> {
        Ok(StreamGroup { name: self.text()?, next: self.number()?, at: self.time()? })
    }

    fn note(&mut self) -> Result<Note, StoreError> {
        Ok(Note {
            request: self.number()?,
            at: self.time()?,
            about: self.number()?,
            first: self.number()?,
            last: self.number()?,
        })
    }

    fn batch(&mut self) -> Result<Batch, StoreError> {
        Ok(Batch { first: self.number()?, count: self.number()?, appended_at: self.time()? })
    }

    fn garbage(&mut self) -> Result<(Garbage, u64), StoreError> {
        let kind = self.number()?;
        let garbage = [Garbage::Stream, Garbage::History].into_iter().find(|known| *known as u64 == kind);
        Ok((garbage.ok_or_else(|| strange("garbage of an unknown kind"))?, self.number()?))
    }
}
