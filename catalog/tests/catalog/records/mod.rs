//! The suite for what is kept beside rows, over every backend.

mod find;
mod holds;
mod lineage;
mod metadata;
mod property;
mod reading;
mod repeats;
mod streams;
mod uploads;

use payload_catalog::{Change, Reader, Store};
use payload_types::record::{
    LineageEdge, Metadata, MetadataMode, RecordAnswer, RecordChange, RecordOutcome, RecordQuery, StreamItem,
    StreamLimits, StreamName,
};
use payload_types::{PayloadId, PayloadState, WallMs};

use crate::backends::Backend;
use crate::rows::{key, put, remove, row};

/// The moment `milliseconds` after the tests' beginning.
pub fn at(milliseconds: u64) -> WallMs {
    WallMs::from_millis(1_763_000_000_000 + milliseconds)
}

/// The id of payload `number`.
pub fn id(number: u64) -> PayloadId {
    key(number).id
}

/// A store, one of its readers, and their home. The reader goes first.
pub struct Desk<B: Backend> {
    pub reader: Box<dyn Reader>,
    pub store: Box<dyn Store>,
    home: B::Home,
}

impl<B: Backend> Desk<B> {
    /// With rows of payloads 0 .. `rows`.
    pub fn new(rows: u64) -> Self {
        let home = B::home();
        let mut store = B::start(&home);
        for first in (0..rows).step_by(1000) {
            let batch: Vec<Change> = (first..rows.min(first + 1000)).map(|number| put(row(number))).collect();
            store.apply(&batch).expect("rows are stored");
        }
        Self { reader: store.reader().expect("a reader"), store, home }
    }

    /// As after a kill, where the backend keeps anything.
    pub fn again(self) -> Self {
        if !B::KEEPS {
            return self;
        }
        let Self { reader, store, home } = self;
        drop((reader, store));
        let store = B::start(&home);
        Self { reader: store.reader().expect("a reader"), store, home }
    }

    pub fn change(&mut self, change: RecordChange) -> RecordOutcome {
        let mut outcomes = self.store.apply(&[change.into()]).expect("applied");
        assert_eq!(outcomes.len(), 1);
        outcomes.pop().expect("one")
    }

    pub fn ask(&mut self, query: RecordQuery) -> RecordAnswer {
        self.reader.read(&query).expect("answered")
    }

    pub fn remove(&mut self, numbers: impl IntoIterator<Item = u64>) {
        let batch: Vec<Change> = numbers.into_iter().map(|number| remove(number, 1)).collect();
        assert_eq!(self.store.apply(&batch), Ok(Vec::new()));
    }

    /// Sweeps until nothing is left to do; what was removed.
    pub fn swept(&mut self, now: WallMs) -> u64 {
        let mut total = 0;
        for _ in 0..10_000 {
            if !self.store.sweep_is_due(now).expect("asked") {
                return total;
            }
            match self.change(RecordChange::Sweep { at: now }) {
                RecordOutcome::Swept { removed, more, .. } => {
                    total += removed;
                    assert_eq!(self.store.sweep_is_due(now), Ok(more));
                }
                other => panic!("a sweep met {other:?}"),
            }
        }
        panic!("sweeps find no end");
    }

    /// A row that is stored and not committed.
    pub fn allocated(&mut self, number: u64) {
        let mut row = row(number);
        (row.state, row.replicas) = (PayloadState::Allocated, Vec::new());
        self.store.apply(&[put(row)]).expect("stored");
    }
}

pub fn metadata(data: &[u8], schema: &str) -> Metadata {
    Metadata { data: data.to_vec(), schema: schema.to_owned() }
}

pub fn update(number: u64, mode: MetadataMode, data: &[u8], schema: &str) -> RecordChange {
    RecordChange::MetadataUpdate {
        key: key(number),
        mode,
        metadata: metadata(data, schema),
        actor: "actor\0".to_owned(),
        reason: "réason".to_owned(),
        at: at(5),
    }
}

pub fn edge(child: u64, parent: u64, operation: &str) -> LineageEdge {
    LineageEdge {
        child: id(child),
        parent: id(parent),
        operation: operation.to_owned(),
        role: "role\0".to_owned(),
        parameters: vec![0, 255],
    }
}

pub fn add_edges(child: u64, edges: Vec<LineageEdge>) -> RecordChange {
    RecordChange::LineageAdd { child: key(child), edges, at: at(5) }
}

pub fn stream(name: &str) -> StreamName {
    StreamName { namespace: "name\0space".to_owned(), name: name.to_owned() }
}

pub fn create(name: &str, entries_max: Option<u64>, age_ms_max: Option<u64>) -> RecordChange {
    RecordChange::StreamCreate {
        stream: stream(name),
        limits: StreamLimits { entries_max, age_ms_max, retains_payloads: false },
        at: at(0),
    }
}

pub fn item(number: u64) -> StreamItem {
    StreamItem { payload: id(number), event_time: None, duration_ns: number, tags: Vec::new() }
}

pub fn append(name: &str, items: Vec<StreamItem>, now: WallMs) -> RecordChange {
    RecordChange::StreamAppend { stream: stream(name), items, held: false, at: now }
}

pub fn read(name: &str, from: u64, to: u64, entries_max: usize, now: WallMs) -> RecordQuery {
    RecordQuery::StreamRead { stream: stream(name), from, to, not_before: None, entries_max, at: now }
}
