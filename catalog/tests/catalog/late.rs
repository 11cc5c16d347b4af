//! Removals that are acknowledged before they are durable: what the writer says of them, and when.

use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, bounded};
use payload_catalog::{AckSink, Change, Fault, Faulty, MemoryStore, Reader, Store, StoreError, Writer};
use payload_types::event::Completion;
use payload_types::record::RecordOutcome;
use payload_types::{Epoch, NamespaceId, PayloadKey, PayloadRow, ShardIndex, WallMs};

use crate::rows::{key, op, put, remove, row};

/// Longer than any of this takes; reaching it fails the test.
const HANG: Duration = Duration::from_secs(60);

/// A store in memory of which removals are late, until an `apply` or a flush.
#[derive(Default)]
struct Late {
    inner: MemoryStore,
    late: bool,
}

impl Store for Late {
    fn begin_epoch(&mut self, node: &str) -> Result<Epoch, StoreError> {
        self.inner.begin_epoch(node)
    }
    fn disk_roots(&mut self) -> Result<Vec<String>, StoreError> {
        self.inner.disk_roots()
    }
    fn disk_root_bind(&mut self, node: &str, root_id: &str) -> Result<(), StoreError> {
        self.inner.disk_root_bind(node, root_id)
    }
    fn apply(&mut self, batch: &[Change]) -> Result<Vec<RecordOutcome>, StoreError> {
        self.late = false;
        self.inner.apply(batch)
    }
    fn apply_late(&mut self, batch: &[Change]) -> Result<bool, StoreError> {
        assert!(batch.iter().all(Change::may_be_late), "{batch:?}");
        self.late = true;
        self.inner.apply(batch).map(|_none| false)
    }
    fn resolve(&mut self, batch: &[Change]) -> Result<Option<Vec<RecordOutcome>>, StoreError> {
        self.inner.resolve(batch)
    }
    fn reader(&self) -> Result<Box<dyn Reader>, StoreError> {
        self.inner.reader()
    }
    fn sweep_is_due(&mut self, at: WallMs) -> Result<bool, StoreError> {
        self.inner.sweep_is_due(at)
    }
    fn flush(&mut self) -> Result<(), StoreError> {
        self.late = false;
        Ok(())
    }
    fn load(&mut self, each: &mut dyn FnMut(PayloadRow)) -> Result<(), StoreError> {
        self.inner.load(each)
    }
    fn get(&mut self, key: PayloadKey) -> Result<Option<PayloadRow>, StoreError> {
        self.inner.get(key)
    }
    fn uploads(&mut self) -> Result<Vec<payload_types::upload::UploadEntry>, StoreError> {
        self.inner.uploads()
    }
    fn count(&mut self) -> Result<u64, StoreError> {
        self.inner.count()
    }
    fn namespace(&mut self, name: &str) -> Result<Option<NamespaceId>, StoreError> {
        self.inner.namespace(name)
    }
    fn close(self: Box<Self>) -> Result<(), StoreError> {
        assert!(!self.late, "what was acknowledged is durable at the end");
        Ok(())
    }
}

/// A writer over such a store, and what it says.
struct Desk {
    writer: Writer,
    said: Receiver<(ShardIndex, Completion)>,
}

impl Desk {
    fn new(store: Faulty<Late>) -> Self {
        let (sender, said) = bounded(1000);
        let sink: AckSink = Arc::new(move |shard, completion| {
            sender.send((shard, completion)).expect("the test listens");
        });
        Self { writer: Writer::start_patient(Box::new(store), 64, sink, Duration::ZERO), said }
    }

    fn submit(&self, slot: u32, shard: u16, change: Change) {
        let mut op = op(slot, change);
        op.shard = ShardIndex(shard);
        self.writer.submit(op).expect("room");
    }

    fn said(&self) -> (u16, Completion) {
        let (shard, completion) = self.said.recv_timeout(HANG).expect("the writer says something");
        (shard.0, completion)
    }

    /// The sequence of the next thing said, which is an acknowledgement.
    fn acked(&self, shard: u16) -> u64 {
        match self.said() {
            (from, Completion::Catalog(ack)) if from == shard => {
                assert_eq!(ack.result, Ok(()));
                ack.sequence
            }
            other => panic!("expected an acknowledgement for {shard}, got {other:?}"),
        }
    }

    fn durable(&self, shard: u16) -> u64 {
        match self.said() {
            (from, Completion::Durable { sequence }) if from == shard => sequence,
            other => panic!("expected word of what is durable for {shard}, got {other:?}"),
        }
    }

    /// Ends the writer; it has nothing more to say.
    fn end(self) {
        self.writer.shutdown().close().expect("closes");
        assert_eq!(self.said.try_iter().collect::<Vec<_>>(), []);
    }
}

#[test]
fn given_removals_when_nothing_follows_then_each_shard_hears_once_that_they_are_durable() {
    let desk = Desk::new(Faulty::new(Late::default()));
    desk.submit(1, 0, put(row(1)));
    assert_eq!(desk.acked(0), 0, "what makes a row is durable");
    desk.submit(2, 0, remove(1, 1));
    let first = desk.acked(0);
    assert!(first > 0);
    assert_eq!(desk.durable(0), first);
    desk.submit(3, 0, remove(1, 1));
    desk.submit(4, 2, remove(2, 1));
    // In one group or in two, with a flush between them or not: four things are said.
    let said: Vec<_> = (0..4).map(|_| desk.said()).collect();
    for shard in [0, 2] {
        let own: Vec<_> = said.iter().filter(|(to, _)| *to == shard).map(|(_, said)| said).collect();
        let [Completion::Catalog(ack), Completion::Durable { sequence }] = own[..] else {
            panic!("an acknowledgement, then word that it is durable: {own:?}")
        };
        assert!(first < ack.sequence && ack.sequence <= *sequence, "{own:?}");
    }
    desk.submit(5, 0, put(row(4)));
    assert_eq!(desk.acked(0), 0);
    desk.end();
}

#[test]
fn given_late_removals_when_a_row_is_made_then_they_are_durable_with_it() {
    let mut store = Faulty::new(Late::default());
    // No flush would succeed: it is the transaction that does it.
    store.plan_flushes([Fault::Refused; 50]);
    let desk = Desk::new(store);
    desk.submit(1, 1, remove(1, 1));
    let sequence = desk.acked(1);
    desk.submit(2, 1, put(row(2)));
    assert_eq!((desk.acked(1), desk.durable(1)), (0, sequence));
    desk.end();
}

#[test]
fn given_a_flush_that_fails_when_removals_are_late_then_nothing_is_said_until_one_succeeds() {
    let mut store = Faulty::new(Late::default());
    store.plan_flushes([Fault::Refused]);
    let desk = Desk::new(store);
    desk.submit(1, 0, remove(1, 1));
    let sequence = desk.acked(0);
    assert_eq!(desk.durable(0), sequence);
    // The store would object if no flush had succeeded.
    desk.end();
}

#[test]
fn given_a_removal_whose_outcome_is_lost_when_found_done_then_it_is_durable_only_if_a_flush_says_so() {
    for flush in [Fault::None, Fault::Refused] {
        let mut store = Faulty::new(Late::default());
        store.plan_applies([Fault::None, Fault::LostAfter]);
        store.plan_flushes([flush]);
        let desk = Desk::new(store);
        desk.submit(1, 0, put(row(1)));
        assert_eq!(desk.acked(0), 0);
        desk.submit(2, 0, remove(1, 1));
        let sequence = desk.acked(0);
        assert_eq!(sequence > 0, flush == Fault::Refused, "that it is there says nothing of stable storage");
        if sequence > 0 {
            assert_eq!(desk.durable(0), sequence);
        }
        desk.end();
    }
}

#[test]
fn given_late_removals_when_the_writer_stops_then_they_are_durable_first() {
    let desk = Desk::new(Faulty::new(Late::default()));
    desk.submit(1, 0, remove(1, 1));
    let sequence = desk.acked(0);
    let Desk { writer, said } = desk;
    let mut store = writer.shutdown();
    assert_eq!(store.get(key(1)), Ok(None));
    store.close().expect("nothing is late");
    let said: Vec<_> = said.try_iter().collect();
    assert_eq!(said, [(ShardIndex(0), Completion::Durable { sequence })]);
}
