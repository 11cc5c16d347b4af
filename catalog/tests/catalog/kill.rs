//! A process that is killed while it commits: what it acknowledged is there.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::thread;

use payload_catalog::{AckSink, SqliteStore, Store, Synchronous, Writer};
use payload_types::event::{CatalogAck, Completion};

use crate::child;
use crate::rows::{key, op, put, remove, row};

const THIS: &str =
    "kill::given_a_process_killed_mid_load_when_reopened_then_every_acknowledged_change_is_there";

fn open(directory: &Path) -> SqliteStore {
    SqliteStore::open(&directory.join("catalog.db"), Synchronous::Full).expect("the database opens")
}

/// Commits rows without end, removes every tenth again, and prints each acknowledgement.
fn commit_for_ever(directory: &Path) -> ! {
    let print = |ack: CatalogAck| {
        ack.result.expect("this disk has room");
        // One write a line: a kill leaves whole lines and at most one broken one.
        let line = format!("ack {} {}\n", ack.op.index, ack.op.generation);
        std::io::stdout().write_all(line.as_bytes()).expect("the parent reads");
    };
    let sink: AckSink = Arc::new(move |_, completion| match completion {
        Completion::Catalog(ack) => print(ack),
        other => panic!("nothing is late here: {other:?}"),
    });
    let writer = Writer::start(Box::new(open(directory)), 1024, sink);
    let submit = |mut change| {
        while let Err(back) = writer.submit(change) {
            change = back;
            thread::yield_now();
        }
    };
    for number in 0.. {
        submit(op(number, put(row(u64::from(number)))));
        if number % 10 == 0 {
            let mut removal = op(number, remove(u64::from(number), 1));
            removal.op.generation = 2;
            submit(removal);
        }
    }
    unreachable!("the parent kills this process");
}

#[test]
fn given_a_process_killed_mid_load_when_reopened_then_every_acknowledged_change_is_there() {
    if let Some(directory) = child::directory() {
        commit_for_ever(&directory);
    }
    // Killed at different depths: early, and after checkpoints and log restarts.
    for acks_before_kill in [1, 5_000, 200_000] {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut process = child::command(&child::program(), THIS, directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the child starts");
        let mut lines = BufReader::new(process.stdout.take().expect("piped")).lines();
        let (mut stored, mut removed) = (BTreeSet::new(), BTreeSet::new());
        let mut acks = 0;
        while let Some(line) = lines.next().transpose().expect("text") {
            let mut words = line.split(' ');
            // The harness prints lines of its own; the kill may cut the last one.
            let (Some("ack"), Some(number), Some(kind)) = (words.next(), words.next(), words.next()) else {
                continue;
            };
            let number: u64 = number.parse().expect("a number");
            if kind == "2" {
                removed.insert(number)
            } else {
                stored.insert(number)
            };
            acks += 1;
            if acks == acks_before_kill {
                process.kill().expect("SIGKILL");
            }
        }
        process.wait().expect("it ended");
        assert!(acks >= acks_before_kill, "the child ended by itself after {acks} acknowledgements");

        let mut store = open(directory.path());
        let mut found = BTreeSet::new();
        store.load(&mut |row| assert!(found.insert(row.key))).expect("rows load");
        for number in stored.iter().filter(|number| *number % 10 > 0) {
            assert!(found.contains(&key(*number)), "row {number} of {acks} acknowledged ones is gone");
        }
        for number in &removed {
            assert!(!found.contains(&key(*number)), "row {number} came back");
        }
    }
}
