//! The writer's promises: order, groups, acknowledgement after the transaction, and what it does when the store fails.

use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded};
use payload_catalog::{
    AckSink, Change, Fault, Faulty, MemoryStore, Reader, Store, StoreError, Writer, WriterStats,
};
use payload_types::event::{CatalogAck, Completion};
use payload_types::record::RecordOutcome;
use payload_types::{ByteCount, Epoch, NamespaceId, PayloadKey, PayloadRow, ShardIndex, WallMs};

use crate::rows::{key, op, put, remove, row};

/// Enough for what any test here sends before it reads.
const LANE: usize = 20_000;

/// Longer than any of this takes; reaching it fails the test.
const HANG: Duration = Duration::from_secs(60);

fn sink() -> (AckSink, Receiver<CatalogAck>) {
    let (sender, receiver) = bounded(LANE);
    let sink = move |shard, completion| {
        assert_eq!(shard, ShardIndex(3));
        let Completion::Catalog(ack) = completion else { panic!("nothing is late here: {completion:?}") };
        sender.send(ack).expect("the test listens");
    };
    (Arc::new(sink), receiver)
}

fn ack(acks: &Receiver<CatalogAck>) -> CatalogAck {
    acks.recv_timeout(HANG).expect("an acknowledgement")
}

fn rows(mut store: Box<dyn Store>) -> Vec<PayloadRow> {
    let mut rows = Vec::new();
    store.load(&mut |row| rows.push(row)).expect("rows load");
    rows
}

/// A store of which the test opens each transaction by hand.
struct Gate {
    inner: MemoryStore,
    entered: Sender<usize>,
    release: Receiver<()>,
    log: u64,
    checkpointed: Sender<()>,
}

/// The test's side of a [`Gate`].
pub(crate) struct Keeper {
    entered: Receiver<usize>,
    release: Sender<()>,
    checkpointed: Receiver<()>,
}

impl Keeper {
    /// Waits until a transaction has begun, and returns its changes' count.
    pub(crate) fn entered(&self) -> usize {
        self.entered.recv_timeout(HANG).expect("a transaction begins")
    }

    pub(crate) fn open(&self) {
        self.release.send(()).expect("the store waits");
    }
}

pub(crate) fn gate() -> (Box<dyn Store>, Keeper) {
    let (entered, was_entered) = bounded(LANE);
    let (open, release) = bounded(LANE);
    let (checkpointed, was_checkpointed) = bounded(LANE);
    let store = Gate { inner: MemoryStore::new(), entered, release, log: 0, checkpointed };
    (Box::new(store), Keeper { entered: was_entered, release: open, checkpointed: was_checkpointed })
}

impl Store for Gate {
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
        self.entered.send(batch.len()).expect("the test listens");
        self.release.recv_timeout(HANG).expect("the test opens the gate");
        self.log += batch.len() as u64;
        self.inner.apply(batch)
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
    fn log_bytes(&self) -> u64 {
        self.log
    }
    fn checkpoint(&mut self) -> Result<(), StoreError> {
        self.log = 0;
        self.checkpointed.send(()).expect("the test listens");
        Ok(())
    }
    fn close(self: Box<Self>) -> Result<(), StoreError> {
        Ok(())
    }
}

#[test]
fn given_an_idle_writer_when_one_op_comes_then_it_is_committed_alone_and_acknowledged_after_the_transaction()
{
    let (store, keeper) = gate();
    let (sink, acks) = sink();
    let writer = Writer::start(store, 8, sink);
    writer.submit(op(1, put(row(1)))).expect("room");
    assert_eq!(keeper.entered(), 1);
    assert!(acks.is_empty(), "the transaction has not ended");
    keeper.open();
    let ack = ack(&acks);
    assert_eq!((ack.op.index, ack.result), (1, Ok(())));
    assert_eq!(rows(writer.shutdown()), [row(1)]);
}

#[test]
fn given_ops_that_come_during_a_transaction_when_it_ends_then_they_are_one_group_acknowledged_in_order() {
    let (store, keeper) = gate();
    let (sink, acks) = sink();
    let writer = Writer::start(store, 64, sink);
    writer.submit(op(0, put(row(0)))).expect("room");
    assert_eq!(keeper.entered(), 1);
    for slot in 1..=50 {
        writer.submit(op(slot, put(row(u64::from(slot))))).expect("room");
    }
    keeper.open();
    assert_eq!(keeper.entered(), 50);
    keeper.open();
    let order: Vec<u32> = (0..=50).map(|_| ack(&acks).op.index).collect();
    assert!(order.is_sorted(), "{order:?}");
    let WriterStats { groups, rows, .. } = writer.stats();
    assert_eq!((groups, rows), (2, 51));
    writer.shutdown();
}

#[test]
fn given_more_ops_than_a_group_holds_when_committed_then_in_groups_of_at_most_4096() {
    let (store, keeper) = gate();
    let (sink, acks) = sink();
    let writer = Writer::start(store, 10_000, sink);
    writer.submit(op(0, put(row(0)))).expect("room");
    assert_eq!(keeper.entered(), 1);
    for slot in 1..=9_000 {
        writer.submit(op(slot, put(row(u64::from(slot))))).expect("room");
    }
    for _ in 0..4 {
        keeper.open();
    }
    assert_eq!([keeper.entered(), keeper.entered(), keeper.entered()], [4096, 4096, 808]);
    for _ in 0..=9_000 {
        assert_eq!(ack(&acks).result, Ok(()));
    }
    writer.shutdown();
}

#[test]
fn given_a_full_queue_when_submitted_then_the_op_comes_back_and_nothing_is_lost() {
    let (store, keeper) = gate();
    let (sink, acks) = sink();
    let writer = Writer::start(store, 4, sink);
    writer.submit(op(0, put(row(0)))).expect("room");
    assert_eq!(keeper.entered(), 1);
    for slot in 1..=4 {
        writer.submit(op(slot, put(row(u64::from(slot))))).expect("room");
    }
    let refused = op(5, put(row(5)));
    assert_eq!(writer.submit(refused.clone()), Err(refused));
    keeper.open();
    keeper.open();
    assert_eq!((0..5).map(|_| ack(&acks).op.index).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    assert_eq!(rows(writer.shutdown()).len(), 5);
}

#[test]
fn given_changes_of_one_key_in_one_group_when_committed_then_in_the_order_of_submission() {
    let (store, keeper) = gate();
    let (sink, acks) = sink();
    let writer = Writer::start(store, 8, sink);
    writer.submit(op(0, put(row(9)))).expect("room");
    assert_eq!(keeper.entered(), 1);
    let mut second = row(1);
    second.size = ByteCount(7);
    for (slot, change) in (1..).zip([put(row(1)), remove(1, 1), put(second.clone()), remove(9, 1)]) {
        writer.submit(op(slot, change)).expect("room");
    }
    keeper.open();
    keeper.open();
    for _ in 0..5 {
        assert_eq!(ack(&acks).result, Ok(()));
    }
    assert_eq!(rows(writer.shutdown()), [second]);
}

#[test]
fn given_a_change_that_no_store_can_keep_when_submitted_then_it_is_refused_alone() {
    let (sink, acks) = sink();
    let writer = Writer::start(Box::new(MemoryStore::new()), 8, sink);
    let mut bad = row(1);
    bad.size = ByteCount(u64::MAX);
    writer.submit(op(1, put(bad))).expect("room");
    writer.submit(op(2, put(row(2)))).expect("room");
    let refused = ack(&acks);
    assert_eq!(refused.op.index, 1);
    assert!(refused.result.expect_err("out of range").contains("size"));
    assert_eq!(ack(&acks).result, Ok(()));
    assert_eq!(rows(writer.shutdown()), [row(2)]);
}

#[test]
fn given_a_store_that_fails_for_a_while_when_committed_then_retried_and_acknowledged_once() {
    use Fault::{LostAfter, LostBefore, Refused};
    for plan in [vec![Refused, Refused], vec![LostBefore, LostBefore], vec![LostAfter, LostBefore, Refused]] {
        let mut store = Faulty::new(MemoryStore::new());
        store.plan_applies(plan);
        let (sink, acks) = sink();
        let writer = Writer::start_patient(Box::new(store), 8, sink, HANG);
        writer.submit(op(1, put(row(1)))).expect("room");
        assert_eq!(ack(&acks).result, Ok(()));
        assert_eq!(rows(writer.shutdown()), [row(1)]);
        assert!(acks.is_empty(), "acknowledged once");
    }
}

#[test]
fn given_a_store_that_stays_down_when_committed_then_refused_and_later_groups_once_it_is_back_succeed() {
    let mut store = Faulty::new(MemoryStore::new());
    store.plan_applies([Fault::Refused, Fault::Refused]);
    let (sink, acks) = sink();
    let writer = Writer::start_patient(Box::new(store), 8, sink, Duration::ZERO);
    for slot in 1..=3 {
        writer.submit(op(slot, put(row(u64::from(slot))))).expect("room");
        let ack = ack(&acks);
        assert_eq!(ack.result.is_ok(), slot == 3, "{ack:?}");
    }
    assert_eq!(rows(writer.shutdown()), [row(3)]);
}

#[test]
fn given_a_broken_store_when_committed_then_refused_at_once_with_the_reason() {
    let mut store = Faulty::new(MemoryStore::new());
    store.plan_applies([Fault::Broken]);
    let (sink, acks) = sink();
    let writer = Writer::start_patient(Box::new(store), 8, sink, HANG);
    writer.submit(op(1, put(row(1)))).expect("room");
    assert!(ack(&acks).result.expect_err("broken").contains("the store is broken, as planned"));
    assert_eq!(rows(writer.shutdown()), []);
}

#[test]
fn given_an_outcome_in_doubt_when_patience_ends_then_the_answer_is_what_the_store_holds() {
    let last = |fault, reads: &[Fault]| {
        let mut store = Faulty::new(MemoryStore::new());
        // As long as reads fail the group is tried again, and stays in doubt.
        store.plan_applies(vec![fault; reads.len() + 1]);
        store.plan_reads(reads.iter().copied());
        let (sink, acks) = sink();
        let writer = Writer::start_patient(Box::new(store), 8, sink, Duration::ZERO);
        writer.submit(op(1, put(row(1)))).expect("room");
        let result = ack(&acks).result;
        (result.is_ok(), rows(writer.shutdown()).len())
    };
    for reads in [&[][..], &[Fault::Refused, Fault::Broken, Fault::Refused]] {
        assert_eq!(last(Fault::LostAfter, reads), (true, 1));
        assert_eq!(last(Fault::LostBefore, reads), (false, 0));
    }
}

#[test]
fn given_a_removal_or_several_changes_of_a_key_in_doubt_when_read_back_then_the_last_change_tells() {
    for (fault, made) in [(Fault::LostAfter, true), (Fault::LostBefore, false)] {
        let mut inner = MemoryStore::new();
        inner.apply(&[put(row(1))]).expect("stored");
        let mut store = Faulty::new(inner);
        store.plan_applies([fault]);
        let (sink, acks) = sink();
        let writer = Writer::start_patient(Box::new(store), 8, sink, Duration::ZERO);
        writer.submit(op(1, remove(1, 1))).expect("room");
        assert_eq!(ack(&acks).result.is_ok(), made);
        let mut store = writer.shutdown();
        assert_eq!(store.get(key(1)).expect("read").is_none(), made);
    }
}

#[test]
fn given_a_shutdown_when_ops_are_queued_then_they_are_committed_first_and_later_ones_come_back() {
    let (store, keeper) = gate();
    let (sink, acks) = sink();
    let writer = Writer::start(store, 64, sink);
    let handle = writer.handle();
    for slot in 0..20 {
        writer.submit(op(slot, put(row(u64::from(slot))))).expect("room");
    }
    for _ in 0..20 {
        keeper.open();
    }
    assert_eq!(rows(writer.shutdown()).len(), 20);
    assert_eq!(acks.len(), 20);
    assert!(handle.submit(op(99, put(row(99)))).is_err());
}

#[test]
fn given_a_log_that_is_not_empty_when_the_writer_is_idle_then_it_is_checkpointed_once() {
    let (store, keeper) = gate();
    let (sink, acks) = sink();
    let writer = Writer::start(store, 8, sink);
    assert!(keeper.checkpointed.is_empty());
    writer.submit(op(1, put(row(1)))).expect("room");
    keeper.open();
    ack(&acks);
    keeper.checkpointed.recv_timeout(HANG).expect("a checkpoint");
    writer.shutdown();
    assert!(keeper.checkpointed.is_empty());
}

#[test]
fn given_a_store_that_does_not_answer_when_changes_wait_then_they_are_refused_and_the_group_settled_later() {
    let (store, keeper) = gate();
    let (sink, acks) = sink();
    let writer = Writer::start_patient(store, 64, sink, Duration::from_millis(100));
    writer.submit(op(0, put(row(0)))).expect("room");
    assert_eq!(keeper.entered(), 1);
    for slot in 1..=20 {
        writer.submit(op(slot, put(row(u64::from(slot))))).expect("room");
    }
    // The gate stays closed until all of them have heard.
    for slot in 1..=20 {
        let refused = ack(&acks);
        assert_eq!(refused.op.index, slot);
        assert!(refused.result.expect_err("not begun").contains("was not begun"));
    }
    writer.submit(op(21, put(row(21)))).expect("room");
    assert_eq!(ack(&acks).op.index, 21, "who comes meanwhile hears, too");
    keeper.open();
    let settled = ack(&acks);
    assert_eq!((settled.op.index, settled.result), (0, Ok(())));
    writer.submit(op(22, put(row(22)))).expect("room");
    keeper.open();
    let next = ack(&acks);
    assert_eq!((next.op.index, next.result), (22, Ok(())), "the writer goes on");
    assert_eq!(rows(writer.shutdown()), [row(0), row(22)]);
}

#[test]
fn given_a_store_that_does_not_answer_when_the_writer_is_stopped_then_it_ends_once_the_store_has_answered() {
    let (store, keeper) = gate();
    let (sink, acks) = sink();
    let writer = Writer::start_patient(store, 64, sink, Duration::from_millis(100));
    writer.submit(op(0, put(row(0)))).expect("room");
    assert_eq!(keeper.entered(), 1);
    writer.submit(op(1, put(row(1)))).expect("room");
    let stopped = std::thread::spawn(move || rows(writer.shutdown()));
    assert!(ack(&acks).result.is_err(), "it waited behind the store");
    // Long enough for the order to stop to be taken by whoever refuses; it must not be lost by either way.
    std::thread::sleep(Duration::from_millis(200));
    keeper.open();
    assert_eq!(ack(&acks).op.index, 0);
    assert_eq!(stopped.join().expect("the writer ends"), [row(0)]);
}
