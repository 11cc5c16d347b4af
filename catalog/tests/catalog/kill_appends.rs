//! A process that is killed while it appends: what it acknowledged is there, and offsets have no gap.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use crossbeam::channel::bounded;
use payload_catalog::{SqliteStore, Store, Synchronous, Writer};
use payload_types::record::{RecordAnswer, RecordChange, RecordOutcome, StreamItem};

use crate::child;
use crate::records::{append, at, create, item, read};
use crate::rows::{op, put, row};

const THIS: &str = "kill_appends::given_a_process_killed_while_it_appends_when_reopened_then_acknowledged_entries_are_there_without_a_gap";

/// Appends under way.
const OUTSTANDING: usize = 32;

fn open(directory: &Path) -> SqliteStore {
    SqliteStore::open(&directory.join("catalog.db"), Synchronous::Full).expect("the database opens")
}

/// The `number`-th append: 1 to 7 entries, which carry the number.
fn numbered(number: u64) -> RecordChange {
    let entry = StreamItem { duration_ns: number, ..item(number % 3) };
    append("s", vec![entry; 1 + (number % 7) as usize], at(number))
}

fn append_for_ever(directory: &Path) -> ! {
    let mut store = open(directory);
    let mut batch: Vec<_> = (0..3).map(|number| put(row(number))).collect();
    batch.push(create("s", Some(5_000), None).into());
    store.apply(&batch).expect("applied");
    let writer = Writer::start(Box::new(store), 1024, Arc::new(|_, _completion| {}));
    let (done, places) = bounded(OUTSTANDING);
    for number in 0.. {
        if number >= OUTSTANDING as u64 {
            places.recv().expect("appends end");
        }
        let done = done.clone();
        let reply = move |answer: Result<RecordOutcome, _>| {
            let Ok(RecordOutcome::Appended { first, last }) = answer else {
                panic!("an append met {answer:?}")
            };
            // One write a line: a kill leaves whole lines and at most one broken one. Nobody reads: the test failed.
            let line = format!("ack {number} {first} {last} .\n");
            if std::io::stdout().write_all(line.as_bytes()).is_err() {
                std::process::exit(1);
            }
            done.send(()).expect("it waits");
        };
        writer.handle().submit_record(numbered(number), Box::new(reply)).expect("room");
        // Rows go between them.
        writer.submit(op(number as u32, put(row(number % 3)))).expect("room");
    }
    unreachable!("the parent kills this process");
}

#[test]
fn given_a_process_killed_while_it_appends_when_reopened_then_acknowledged_entries_are_there_without_a_gap() {
    if let Some(directory) = child::directory() {
        append_for_ever(&directory);
    }
    for acks_before_kill in [1, 500, 10_000] {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut process = child::command(&child::program(), THIS, directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the child starts");
        let (mut acks, mut end) = (0, 0);
        for line in BufReader::new(process.stdout.take().expect("piped")).lines() {
            let line = line.expect("text");
            // The harness begins the first line.
            let Some((_, words)) = line.split_once("ack ") else { continue };
            let words: Vec<&str> = words.split(' ').collect();
            let [number, first, last, "."] = words[..] else { continue };
            let [number, first, last] =
                [number, first, last].map(|word| word.parse::<u64>().expect("a number"));
            assert_eq!((number, first, last), (acks, end, end + number % 7), "in order, without a gap");
            (acks, end) = (acks + 1, last + 1);
            if acks == acks_before_kill {
                process.kill().expect("SIGKILL");
            }
        }
        process.wait().expect("it ended");
        assert!(acks >= acks_before_kill, "the child ended by itself after {acks} acknowledgements");

        let store = open(directory.path());
        let mut reader = store.reader().expect("a reader");
        let answer = reader.read(&read("s", 0, u64::MAX, 10_000, at(0))).expect("answered");
        let RecordAnswer::Entries(info, entries, false) = answer else { panic!("no entries: {answer:?}") };
        assert!(info.end >= end, "{} of {end} acknowledged entries are there", info.end);
        assert_eq!(info.first, info.end.saturating_sub(5_000));
        assert_eq!(entries.len() as u64, info.end - info.first);
        // Whole appends in the order of their numbers, the last of which may not have been acknowledged.
        let (mut offset, mut number) = (0, 0);
        for (expected, entry) in (info.first..).zip(&entries) {
            assert_eq!(entry.offset, expected);
            while offset + number % 7 < expected {
                (offset, number) = (offset + 1 + number % 7, number + 1);
            }
            assert_eq!(entry.item.duration_ns, number, "offset {expected}");
            assert_eq!(entry.appended_at, at(number));
        }
        assert_eq!(offset + 1 + number % 7, info.end, "the last append is whole");
    }
}
