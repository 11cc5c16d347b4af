//! The object driver's journal over the catalog: entries are records, changed through the writer's one FIFO, in which rows
//! settle them.
//!
//! ```text
//! driver --begin, named: wait--> writer --> transaction        a row with an object --> writer --> settled here, too
//!            '--part, settle: do not wait
//! ```
//! What a start found and what was changed since is kept in memory, so that questions cost nothing. Called on the driver's
//! threads, which may block; its calls fail once the writer has stopped, and then nothing may be put into the store.

use std::io;
use std::sync::{Arc, mpsc};

use payload_catalog::WriterHandle;
use payload_drivers::object::{Compression, Entry, EntryKind, Journal, MemoryJournal, PartDone};
use payload_types::record::RecordChange;
use payload_types::upload::{UploadChange, UploadEntry, UploadPart};
use payload_types::{ByteCount, PayloadError, PayloadId};

/// The contract's numbers of `CompressionType`.
const COMPRESSIONS: [(Compression, u8); 3] =
    [(Compression::None, 0), (Compression::Zstd, 1), (Compression::Lz4, 2)];

/// See the module.
pub struct CatalogJournal {
    entries: MemoryJournal,
    writer: WriterHandle,
}

impl CatalogJournal {
    /// With the entries that the catalog had at the start; hears from now on what rows settle.
    ///
    /// # Errors
    /// An entry that this version cannot have written.
    pub fn new(found: Vec<UploadEntry>, writer: WriterHandle) -> io::Result<Arc<Self>> {
        let entries = MemoryJournal::default();
        for entry in found {
            entries.begin(read(entry)?)?;
        }
        let journal = Arc::new(Self { entries, writer: writer.clone() });
        let hears = Arc::downgrade(&journal);
        writer.hear_objects(Arc::new(move |id| {
            if let Some(journal) = hears.upgrade()
                && journal.entries.find(id).is_some_and(|entry| entry.kind == EntryKind::Upload)
            {
                // In memory: it does not fail.
                drop(journal.entries.settle(id));
            }
        }));
        Ok(journal)
    }

    /// Makes a change, and waits until it is durable.
    fn make(&self, change: UploadChange) -> io::Result<()> {
        let (sender, answer) = mpsc::sync_channel(1);
        let reply = Box::new(move |result| drop(sender.send(result)));
        self.writer
            .submit_record(RecordChange::Upload(change), reply)
            .map_err(|refused| io::Error::other(refused.error))?;
        match answer.recv() {
            Ok(outcome) => outcome.map(drop).map_err(io::Error::other),
            Err(_dropped) => Err(io::Error::other("the server is stopping")),
        }
    }

    /// Makes a change, some time.
    fn tell(&self, change: UploadChange) -> io::Result<()> {
        let reply = Box::new(|result: Result<_, PayloadError>| {
            if let Err(error) = result {
                tracing::debug!(%error, "a part or the end of an upload was not noted");
            }
        });
        let told = self.writer.submit_record(RecordChange::Upload(change), reply);
        told.map_err(|refused| io::Error::other(refused.error))
    }
}

impl Journal for CatalogJournal {
    fn begin(&self, entry: Entry) -> io::Result<()> {
        self.make(UploadChange::Begin(written(&entry)))?;
        self.entries.begin(entry)
    }

    fn named(&self, id: PayloadId, upload: &str) -> io::Result<()> {
        self.make(UploadChange::Named { id, upload: upload.to_owned() })?;
        self.entries.named(id, upload)
    }

    fn part(&self, id: PayloadId, index: u32, done: &PartDone) -> io::Result<()> {
        self.tell(UploadChange::Part { id, part: part_written(index, done) })?;
        self.entries.part(id, index, done)
    }

    fn settle(&self, id: PayloadId) -> io::Result<()> {
        self.tell(UploadChange::Settle { id })?;
        self.entries.settle(id)
    }

    fn find(&self, id: PayloadId) -> Option<Entry> {
        self.entries.find(id)
    }

    fn entries(&self) -> Vec<Entry> {
        self.entries.entries()
    }
}

fn part_written(index: u32, done: &PartDone) -> UploadPart {
    UploadPart { index, tag: done.content_id.clone(), hash: done.hash }
}

/// As the catalog keeps it.
fn written(entry: &Entry) -> UploadEntry {
    let number = COMPRESSIONS.iter().find(|(kind, _)| *kind == entry.compression);
    UploadEntry {
        id: entry.id,
        generation: entry.generation,
        is_removal: entry.kind == EntryKind::Removal,
        size: ByteCount(entry.size),
        part_bytes: entry.part_bytes,
        compression: number.map_or(0, |(_, number)| *number),
        upload: entry.upload.clone(),
        parts: entry.parts.iter().map(|(index, done)| part_written(*index, done)).collect(),
    }
}

/// As the driver knows it.
fn read(entry: UploadEntry) -> io::Result<Entry> {
    let known = COMPRESSIONS.iter().find(|(_, number)| *number == entry.compression);
    let Some((compression, _)) = known else {
        return Err(io::Error::other(format!(
            "the upload of {} is compressed in a way that this version does not know ({}); start the newer version that wrote it",
            entry.id, entry.compression
        )));
    };
    let parts =
        entry.parts.into_iter().map(|part| (part.index, PartDone { content_id: part.tag, hash: part.hash }));
    Ok(Entry {
        id: entry.id,
        generation: entry.generation,
        kind: if entry.is_removal { EntryKind::Removal } else { EntryKind::Upload },
        size: entry.size.0,
        part_bytes: entry.part_bytes,
        compression: *compression,
        upload: entry.upload,
        parts: parts.collect(),
    })
}

#[cfg(test)]
mod tests {
    use payload_catalog::{AckSink, MemoryStore, Writer};
    use payload_types::effect::{CatalogChange, CatalogOp};
    use payload_types::event::Completion;
    use payload_types::{
        Epoch, EvictionPolicy, Generation, Health, NamespaceId, OpId, PayloadKey, PayloadRow, PayloadState,
        Pin, ReplicaRow, ShardIndex, Tier, Version, WallMs,
    };

    use super::*;

    fn id(number: u64) -> PayloadId {
        PayloadId::mint(7 << 12, number)
    }

    fn entry(number: u64) -> Entry {
        let part = PartDone { content_id: format!("\"{number}\""), hash: number };
        Entry {
            id: id(number),
            generation: Generation(number),
            kind: EntryKind::Upload,
            size: 64 << 20,
            part_bytes: 8 << 20,
            compression: Compression::Lz4,
            upload: Some("u".to_owned()),
            parts: [(3, part)].into(),
        }
    }

    fn archived(number: u64) -> CatalogChange {
        CatalogChange::Put(Box::new(PayloadRow {
            key: PayloadKey { namespace: NamespaceId::DEFAULT, id: id(number) },
            size: ByteCount(1),
            state: PayloadState::Durable,
            version: Version(2),
            epoch: Epoch(1),
            created_at: WallMs::default(),
            expires_at: None,
            no_evict: false,
            policy: EvictionPolicy::default(),
            checksum: None,
            pin: Pin::None,
            health: Health::Good,
            replicas: vec![replica()],
        }))
    }

    fn replica() -> ReplicaRow {
        ReplicaRow { tier: Tier::Object, generation: Generation(1), synced: true, sound: true, extent: None }
    }

    #[test]
    fn given_a_journal_when_a_start_reads_it_again_then_all_is_there_but_what_rows_settled() {
        let (acked, acks) = mpsc::channel();
        let sink: AckSink = Arc::new(move |_shard, completion: Completion| drop(acked.send(completion)));
        let writer = Writer::start(Box::new(MemoryStore::new()), 64, sink);
        let journal = CatalogJournal::new(Vec::new(), writer.handle()).expect("empty");
        for number in 1..=3 {
            journal.begin(entry(number)).expect("kept");
        }
        journal.named(id(1), "other").expect("kept");
        journal.part(id(1), 0, &PartDone { content_id: "a".to_owned(), hash: u64::MAX }).expect("kept");
        journal.settle(id(2)).expect("gone");
        let op = CatalogOp {
            shard: ShardIndex(0),
            op: OpId { index: 0, generation: 1 },
            change: archived(3),
            batch: None,
        };
        writer.submit(op).expect("there is room");
        acks.recv().expect("the row is stored");
        let known = journal.entries();
        assert_eq!(known.iter().map(|entry| entry.id).collect::<Vec<_>>(), [id(1)]);

        let mut store = writer.shutdown();
        let found = store.uploads().expect("readable");
        let other = Writer::start(Box::new(MemoryStore::new()), 64, Arc::new(|_, _| ()));
        let again = CatalogJournal::new(found, other.handle()).expect("ours");
        assert_eq!(again.entries(), known);
        assert_eq!(again.find(id(1)).and_then(|entry| entry.upload).as_deref(), Some("other"));
        drop(other.shutdown());
        assert!(journal.begin(entry(9)).is_err(), "a writer that has stopped keeps nothing");
    }

    #[test]
    fn given_an_entry_of_a_later_version_when_read_then_the_start_is_refused_with_what_to_do() {
        let writer = Writer::start(Box::new(MemoryStore::new()), 64, Arc::new(|_, _| ()));
        let strange = UploadEntry { compression: 9, ..written(&entry(1)) };
        let error = CatalogJournal::new(vec![strange], writer.handle()).err().expect("refused").to_string();
        assert!(error.contains("newer version"), "{error}");
        drop(writer.shutdown());
    }
}
