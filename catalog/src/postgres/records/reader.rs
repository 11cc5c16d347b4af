//! Answers questions on a connection of its own, each in a transaction that sees one state.

use payload_types::record::{RecordAnswer, RecordQuery};

use super::super::Place;
use super::super::errors::Doing;
use super::super::foreign::{self, Totals};
use super::super::link::Link;
use super::Records;
use crate::error::StoreError;
use crate::records;
use crate::store::Reader;

/// See the module.
pub(in super::super) struct PostgresReader {
    place: Place,
    /// This node, as the database numbers it; 0: none has started.
    own: i32,
    link: Option<Link>,
    totals: Totals,
}

impl PostgresReader {
    /// Connects, so that a start finds out what does not work.
    pub fn open(place: Place, own: i32) -> Result<Self, StoreError> {
        let link = Link::connect(&place.target, place.pooled)?;
        Ok(Self { place, own, link: Some(link), totals: Totals::default() })
    }

    fn ask(&mut self, query: &RecordQuery) -> Result<RecordAnswer, StoreError> {
        let mut link = match self.link.take() {
            Some(link) => link,
            None => Link::connect(&self.place.target, self.place.pooled)?,
        };
        let answer = if let RecordQuery::Foreign { namespace, ids, at } = query {
            // One statement: it needs no transaction.
            let found = async |session: &mut _| foreign::find(session, self.own, *namespace, ids, *at).await;
            RecordAnswer::Foreign(link.run(Doing::Asking, found)?)
        } else {
            link.run(Doing::Asking, async |session| session.begin_reading().await)?;
            let answer = if let RecordQuery::ForeignPage { list, at } = query {
                let (own, totals) = (self.own, &mut self.totals);
                let page = async |session: &mut _| foreign::page(session, own, list, *at, totals).await;
                RecordAnswer::ForeignPage(link.run(Doing::Asking, page)?)
            } else if let RecordQuery::ForeignSpan { namespace, span, order, tier, at } = query {
                let (own, order, tier) = (self.own, *order, *tier);
                let wanted = foreign::Wanted { namespace: *namespace, span: *span, order, tier, at: *at };
                let part = async |session: &mut _| foreign::span(session, own, wanted).await;
                RecordAnswer::ForeignPage(link.run(Doing::Asking, part)?)
            } else {
                records::answer(&mut Records { link: &mut link, writer: None, ahead: None }, query)?
            };
            link.run(Doing::Asking, async |session| session.run("COMMIT").await)?;
            answer
        };
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
