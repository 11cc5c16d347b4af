//! Answers questions on a connection of its own, each in a transaction that sees one state.

use payload_types::record::{RecordAnswer, RecordQuery};

use super::super::Place;
use super::super::errors::Doing;
use super::super::link::Link;
use super::Records;
use crate::error::StoreError;
use crate::records;
use crate::store::Reader;

/// See the module.
pub(in super::super) struct PostgresReader {
    place: Place,
    link: Option<Link>,
}

impl PostgresReader {
    /// Connects, so that a start finds out what does not work.
    pub fn open(place: Place) -> Result<Self, StoreError> {
        let link = Link::connect(&place.config, place.pooled)?;
        Ok(Self { place, link: Some(link) })
    }

    fn ask(&mut self, query: &RecordQuery) -> Result<RecordAnswer, StoreError> {
        let mut link = match self.link.take() {
            Some(link) => link,
            None => Link::connect(&self.place.config, self.place.pooled)?,
        };
        let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
        link.run(Doing::Asking, async |session| session.run(begin).await)?;
        let answer = records::answer(&mut Records { link: &mut link, writer: None, ahead: None }, query)?;
        link.run(Doing::Asking, async |session| session.run("COMMIT").await)?;
        // After an error it is given up: its transaction may be open.
        self.link = Some(link);
        Ok(answer)
    }
}

impl Reader for PostgresReader {
    fn read(&mut self, query: &RecordQuery) -> Result<RecordAnswer, StoreError> {
        let was_connected = self.link.is_some();
        match self.ask(query) {
            // The server may have been restarted since the last question.
            Err(StoreError::Unavailable(_)) if was_connected => self.ask(query),
            result => result,
        }
    }
}
