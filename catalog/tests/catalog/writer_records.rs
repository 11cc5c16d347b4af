//! The writer's promises to changes of records: order with rows, one answer each, made at most once, bounds, sweeps.

use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, bounded};
use payload_catalog::{
    AckSink, Fault, Faulty, MemoryStore, RECORD_BYTES_WAITING_MAX, RECORDS_WAITING_MAX, Reader, RecordReply,
    SqliteStore, Store, Synchronous, Writer,
};
use payload_types::record::{
    MetadataMode, RecordAnswer, RecordChange, RecordOutcome, RecordQuery, StreamLimits,
};
use payload_types::{ErrorKind, PayloadError, WallMs};

use crate::records::{append, at, create, id, item, read, stream, update};
use crate::rows::{op, put, remove, row};

/// Longer than any of this takes; reaching it fails the test.
const HANG: Duration = Duration::from_secs(60);

type Answer = Result<RecordOutcome, PayloadError>;

fn ignore() -> AckSink {
    Arc::new(|_, _completion| {})
}

/// A way to answer, and where the answer arrives.
fn reply() -> (RecordReply, Receiver<Answer>) {
    let (sender, receiver) = bounded(1);
    (Box::new(move |answer| sender.send(answer).expect("the test listens")), receiver)
}

fn submit(writer: &Writer, change: RecordChange) -> Receiver<Answer> {
    let (reply, answer) = reply();
    writer.handle().submit_record(change, reply).expect("room");
    answer
}

fn said(answer: &Receiver<Answer>) -> Answer {
    answer.recv_timeout(HANG).expect("an answer")
}

fn entries(reader: &mut dyn Reader) -> usize {
    match reader.read(&read("s", 0, u64::MAX, 10_000, at(0))) {
        Ok(RecordAnswer::Entries(_, entries, false)) => entries.len(),
        other => panic!("no entries: {other:?}"),
    }
}

#[test]
fn given_rows_and_records_in_turns_when_submitted_then_made_in_that_order_and_seen_once_answered() {
    let store = MemoryStore::new();
    let mut reader = store.reader().expect("a reader");
    let writer = Writer::start(Box::new(store), 64, ignore());
    let create = submit(&writer, create("s", None, None));
    let early = submit(&writer, append("s", vec![item(1)], at(0)));
    writer.submit(op(1, put(row(1)))).expect("room");
    let appended = submit(&writer, append("s", vec![item(1)], at(0)));
    writer.submit(op(2, remove(1, 1))).expect("room");
    let late = submit(&writer, append("s", vec![item(1)], at(0)));
    assert_eq!(said(&create), Ok(RecordOutcome::Done));
    assert_eq!(said(&early), Ok(RecordOutcome::NotFound(id(1))));
    assert_eq!(said(&appended), Ok(RecordOutcome::Appended { first: 0, last: 0 }));
    assert_eq!(said(&late), Ok(RecordOutcome::NotFound(id(1))));
    assert_eq!(entries(reader.as_mut()), 1);
    writer.shutdown();
}

#[test]
fn given_an_outcome_in_doubt_when_settled_then_each_append_was_made_once_or_never() {
    use Fault::{LostAfter, LostBefore, Refused};
    for (plan, patience, made) in [
        (vec![LostAfter], HANG, true),
        (vec![LostBefore, LostBefore], HANG, true),
        (vec![LostAfter, LostBefore, Refused], HANG, true),
        (vec![LostAfter], Duration::ZERO, true),
        (vec![LostBefore], Duration::ZERO, false),
        (vec![Refused], Duration::ZERO, false),
    ] {
        let mut inner = MemoryStore::new();
        inner.apply(&[put(row(1)), create("s", None, None).into()]).expect("applied");
        let mut reader = inner.reader().expect("a reader");
        let mut store = Faulty::new(inner);
        store.plan_applies(plan.clone());
        let writer = Writer::start_patient(Box::new(store), 8, ignore(), patience);
        let answer = said(&submit(&writer, append("s", vec![item(1); 2], at(0))));
        if made {
            assert_eq!(answer, Ok(RecordOutcome::Appended { first: 0, last: 1 }), "{plan:?}");
        } else {
            assert_eq!(answer.expect_err("not made").kind, ErrorKind::Unavailable, "{plan:?}");
        }
        assert_eq!(entries(reader.as_mut()), if made { 2 } else { 0 }, "{plan:?}");
        writer.shutdown();
    }
}

#[test]
fn given_a_change_that_no_store_can_keep_when_submitted_then_it_is_refused_alone() {
    let writer = Writer::start(Box::new(MemoryStore::new()), 8, ignore());
    let bad = submit(&writer, create("s", Some(u64::MAX), None));
    let good = submit(&writer, create("s", None, None));
    let refused = said(&bad).expect_err("out of range");
    assert_eq!(refused.kind, ErrorKind::InvalidArgument);
    assert!(refused.message.contains("max_entries"), "{refused}");
    assert_eq!(said(&good), Ok(RecordOutcome::Done));
    writer.shutdown();
}

#[test]
fn given_too_much_that_waits_when_submitted_then_handed_back_as_exhausted_and_taken_again_later() {
    // The first answer holds the writer's thread until the test lets go.
    let writer = Writer::start(Box::new(MemoryStore::new()), 2 * RECORDS_WAITING_MAX, ignore());
    let (entered, was_entered) = bounded(1);
    let (let_go, wait) = bounded::<()>(1);
    let hold: RecordReply = Box::new(move |_answer| {
        entered.send(()).expect("the test listens");
        wait.recv_timeout(HANG).expect("the test lets go");
    });
    writer.handle().submit_record(create("s", None, None), hold).expect("room");
    was_entered.recv_timeout(HANG).expect("it is answered");

    let heavy = || update(1, MetadataMode::Replace, &vec![0; 1 << 20], "");
    let mut answers = Vec::new();
    let refused = loop {
        let (reply, answer) = reply();
        match writer.handle().submit_record(heavy(), reply) {
            Ok(()) => answers.push(answer),
            Err(refused) => break refused,
        }
    };
    let taken = (RECORD_BYTES_WAITING_MAX >> 20) as usize - 1;
    assert_eq!(answers.len(), taken, "by their bytes");
    assert_eq!(refused.error.kind, ErrorKind::ResourceExhausted);
    assert_eq!(*refused.change, heavy(), "handed back whole");
    let light = loop {
        let (reply, answer) = reply();
        match writer.handle().submit_record(create("s", None, None), reply) {
            Ok(()) => answers.push(answer),
            Err(refused) => break refused,
        }
    };
    assert_eq!(light.error.kind, ErrorKind::ResourceExhausted);
    assert!(answers.len() <= RECORDS_WAITING_MAX, "by their number");
    // Rows of shards still find room.
    writer.submit(op(1, put(row(1)))).expect("room");
    let_go.send(()).expect("it waits");
    for answer in &answers {
        said(answer).expect("made, or met something");
    }
    assert_eq!(said(&submit(&writer, create("t", None, None))), Ok(RecordOutcome::Done));
    let handle = writer.handle();
    writer.shutdown();
    let (reply, _answer) = reply();
    let stopped = handle.submit_record(heavy(), reply).expect_err("nobody listens");
    assert_eq!(stopped.error.kind, ErrorKind::Unavailable);
}

/// Waits until `is_so`; that it never is fails the test.
fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..6000 {
        if is_so() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("never: {what}");
}

#[test]
fn given_entries_that_grow_too_old_when_nobody_does_anything_then_the_writer_removes_them() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut store =
        SqliteStore::open(&directory.path().join("catalog.db"), Synchronous::Full).expect("it opens");
    // Long ago: all of it is too old by now.
    let limits = StreamLimits { age_ms_max: Some(1000), ..StreamLimits::default() };
    let make = RecordChange::StreamCreate { stream: stream("s"), limits, at: at(0) };
    let mut batch = vec![put(row(1)), make.into()];
    batch.extend((0..1000).map(|_| append("s", vec![item(1)], WallMs::from_millis(1)).into()));
    store.apply(&batch).expect("applied");
    let mut reader = store.reader().expect("a reader");
    let writer = Writer::start(Box::new(store), 8, ignore());
    eventually("the stream is empty", || {
        let found = reader.read(&RecordQuery::Stream(stream("s"))).expect("answered");
        matches!(found, RecordAnswer::Stream(info) if (info.first, info.end) == (1000, 1000))
    });
    // 1,000 batches, 128 a sweep.
    eventually("nothing is left to sweep", || writer.stats().groups >= 8);
    drop(reader);
    let mut store = writer.shutdown();
    assert_eq!(store.sweep_is_due(at(0)), Ok(false));
}
