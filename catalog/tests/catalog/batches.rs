//! Batches of commits at the writer: nothing before all parts are there, then all of them in one transaction, or none.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, bounded};
use payload_catalog::{AckSink, Fault, Faulty, MemoryStore, Store, Writer};
use payload_types::effect::CatalogOp;
use payload_types::event::Completion;
use payload_types::{BatchId, BatchPart, ByteCount, OpId, PayloadRow, Version};

use crate::rows::{op, put, row};
use crate::writer::gate;

/// Longer than any of this takes; reaching it fails the test.
const HANG: Duration = Duration::from_secs(60);

const BATCH: BatchId = BatchId(7);

fn sink() -> (AckSink, Receiver<Completion>) {
    let (sender, receiver) = bounded(20_000);
    (Arc::new(move |_, completion| sender.send(completion).expect("the test listens")), receiver)
}

fn heard(answers: &Receiver<Completion>) -> (u32, Result<(), bool>) {
    match answers.recv_timeout(HANG).expect("an answer") {
        Completion::Catalog(ack) => (ack.op.index, ack.result.map_err(|_| false)),
        Completion::BatchRefused(op) => (op.index, Err(true)),
        Completion::Claimed { op, .. } => (op.index, Err(false)),
        other => panic!("nobody asked for {other:?}"),
    }
}

fn part(number: u32, len: u32) -> CatalogOp {
    let change = put(row(u64::from(number)));
    CatalogOp { batch: Some(BatchPart { batch: BATCH, len }), ..op(number, change) }
}

fn ids(store: &mut dyn Store) -> usize {
    let mut rows: Vec<PayloadRow> = Vec::new();
    store.load(&mut |row| rows.push(row)).expect("rows load");
    rows.len()
}

#[test]
fn given_parts_of_a_batch_when_one_is_missing_then_nothing_is_stored_and_with_it_one_transaction_stores_all()
{
    let (sink, answers) = sink();
    let writer = Writer::start(Box::new(MemoryStore::new()), 100, sink);
    writer.submit(part(1, 3)).expect("room");
    writer.submit(part(2, 3)).expect("room");
    // What comes later is not held up.
    writer.submit(op(9, put(row(9)))).expect("room");
    assert_eq!(heard(&answers), (9, Ok(())));
    assert_eq!((writer.stats().groups, writer.stats().rows), (1, 1));
    writer.submit(part(3, 3)).expect("room");
    assert_eq!([heard(&answers), heard(&answers), heard(&answers)], [(1, Ok(())), (2, Ok(())), (3, Ok(()))]);
    assert_eq!((writer.stats().groups, writer.stats().rows), (2, 4));
    assert_eq!(ids(writer.shutdown().as_mut()), 4);
}

#[test]
fn given_a_refused_batch_when_parts_are_there_or_come_then_each_is_put_back_and_none_is_stored() {
    let (sink, answers) = sink();
    let writer = Writer::start(Box::new(MemoryStore::new()), 100, sink);
    writer.submit(part(1, 3)).expect("room");
    writer.handle().batch_refused(BATCH);
    assert_eq!(heard(&answers), (1, Err(true)));
    writer.submit(part(2, 3)).expect("room");
    assert_eq!(heard(&answers), (2, Err(true)));
    writer.handle().batch_answered(BATCH);
    // The name is free again, as after a restart.
    for number in 4..=6 {
        writer.submit(part(number, 3)).expect("room");
    }
    assert_eq!([heard(&answers), heard(&answers), heard(&answers)], [(4, Ok(())), (5, Ok(())), (6, Ok(()))]);
    assert_eq!(ids(writer.shutdown().as_mut()), 3);
}

#[test]
fn given_a_store_that_refuses_or_leaves_in_doubt_when_a_batch_is_stored_then_all_parts_hear_the_same() {
    for (fault, stored) in [(Fault::Broken, 0), (Fault::LostAfter, 3), (Fault::LostBefore, 3)] {
        let (sink, answers) = sink();
        let mut store = Faulty::new(MemoryStore::new());
        store.plan_applies([fault]);
        let writer = Writer::start_patient(Box::new(store), 100, sink, Duration::from_millis(50));
        for number in 1..=3 {
            writer.submit(part(number, 3)).expect("room");
        }
        let expected = if stored == 0 { Err(false) } else { Ok(()) };
        for number in 1..=3 {
            assert_eq!(heard(&answers), (number, expected), "{fault:?}");
        }
        assert_eq!(ids(writer.shutdown().as_mut()), stored, "{fault:?}");
    }
}

#[test]
fn given_a_part_that_no_store_can_keep_when_the_batch_is_whole_then_none_of_it_is_stored() {
    let (sink, answers) = sink();
    let writer = Writer::start(Box::new(MemoryStore::new()), 100, sink);
    writer.submit(part(1, 2)).expect("room");
    let unstorable = PayloadRow { size: ByteCount(u64::MAX), version: Version(1), ..row(2) };
    writer
        .submit(CatalogOp { batch: Some(BatchPart { batch: BATCH, len: 2 }), ..op(2, put(unstorable)) })
        .expect("room");
    assert_eq!([heard(&answers), heard(&answers)], [(1, Err(false)), (2, Err(false))]);
    assert_eq!(ids(writer.shutdown().as_mut()), 0);
}

#[test]
fn given_ids_that_another_node_has_when_stored_then_their_batch_goes_back_and_nobody_else_is_harmed() {
    let (sink, answers) = sink();
    let mut store = Faulty::new(MemoryStore::new());
    [2, 8].into_iter().for_each(|number| store.claim(row(number).key));
    // The first tries are left in doubt: nobody may hear before it is known that they were not made.
    store.plan_applies([Fault::LostBefore, Fault::LostAfter]);
    let writer = Writer::start_patient(Box::new(store), 100, sink, Duration::from_millis(50));
    for number in 1..=3 {
        writer.submit(part(number, 3)).expect("room");
    }
    assert_eq!(
        [heard(&answers), heard(&answers), heard(&answers)],
        [(1, Err(true)), (2, Err(false)), (3, Err(true))]
    );
    // As the front does when it hears the first of these.
    writer.handle().batch_refused(BATCH);
    writer.handle().batch_answered(BATCH);
    for number in [8, 9] {
        writer.submit(op(number, put(row(u64::from(number))))).expect("room");
    }
    let mut told = [heard(&answers), heard(&answers)];
    told.sort_unstable();
    assert_eq!(told, [(8, Err(false)), (9, Ok(()))]);
    writer.submit(op(8, put(row(8)))).expect("room");
    assert_eq!(heard(&answers), (8, Err(false)), "alone in its group");
    writer.submit(op(10, put(row(10)))).expect("room");
    assert_eq!(heard(&answers), (10, Ok(())));
    assert_eq!(ids(writer.shutdown().as_mut()), 2);
}

#[test]
fn given_a_full_queue_when_the_last_part_comes_then_it_is_handed_back_and_the_batch_is_whole_the_next_time() {
    let (sink, answers) = sink();
    let (store, keeper) = gate();
    let writer = Writer::start(store, 1, sink);
    writer.submit(op(8, put(row(8)))).expect("room");
    assert_eq!(keeper.entered(), 1, "the writer is busy");
    writer.submit(part(1, 2)).expect("parts wait beside the queue");
    writer.submit(op(9, put(row(9)))).expect("the one place");
    let again = writer.submit(part(2, 2)).expect_err("the queue is full");
    assert_eq!(again.op, OpId { index: 2, generation: 1 });
    keeper.open();
    keeper.open();
    assert_eq!([heard(&answers), heard(&answers)], [(8, Ok(())), (9, Ok(()))]);
    keeper.open();
    writer.submit(again).expect("room again");
    assert_eq!([heard(&answers), heard(&answers)], [(1, Ok(())), (2, Ok(()))]);
    writer.shutdown();
}

#[test]
fn given_many_batches_from_many_threads_when_some_are_refused_then_each_is_stored_whole_or_not_at_all() {
    const THREADS: u32 = 4;
    const BATCHES: u32 = 50;
    const LEN: u32 = 5;
    let (sink, answers) = sink();
    let writer = Writer::start(Box::new(MemoryStore::new()), 2_000, sink);
    let refused = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (handle, refused) = (writer.handle(), &refused);
            scope.spawn(move || {
                // Each thread brings one part of every batch, and the last one refuses some instead of it.
                for number in 0..BATCHES {
                    let (batch, slot) = (BatchId(u64::from(number)), number * LEN + thread);
                    let mark = BatchPart { batch, len: THREADS };
                    if thread == THREADS - 1 && number % 3 == 0 {
                        refused.fetch_add(1, Ordering::Relaxed);
                        handle.batch_refused(batch);
                    } else {
                        let change = put(row(u64::from(slot)));
                        handle.submit(CatalogOp { batch: Some(mark), ..op(slot, change) }).expect("room");
                    }
                }
            });
        }
    });
    let refused = refused.load(Ordering::Relaxed) as u32;
    let mut stored: Vec<u32> = vec![0; BATCHES as usize];
    for _ in 0..THREADS * BATCHES - refused {
        let (slot, result) = heard(&answers);
        stored[(slot / LEN) as usize] += u32::from(result.is_ok());
    }
    let expected: Vec<u32> = (0..BATCHES).map(|number| if number % 3 == 0 { 0 } else { THREADS }).collect();
    assert_eq!(stored, expected);
    let rows = ids(writer.shutdown().as_mut()) as u32;
    assert_eq!(rows, expected.iter().sum::<u32>());
}
