//! Nodes of one database, looked after from outside: listed, and removed when they are gone for good.

use payload_catalog::{NodeInfo, PostgresConfig, PostgresStore, Store as _, StoreError};
use payload_types::record::{MetadataMode, RecordChange};

use crate::backends::{postgres_config, server};
use crate::postgres_server::name_of;
use crate::records::metadata;
use crate::rows::{key, put, row};

fn started(uri: &str, name: &str) -> PostgresStore {
    let config =
        PostgresConfig { node: name.to_owned(), disk_root: Some(name.to_owned()), ..postgres_config(uri) };
    let mut store = PostgresStore::open(config).expect("the database opens");
    store.begin_epoch(name).expect("registered");
    store.disk_root_bind(name, name).expect("bound");
    store
}

fn listed(uri: &str) -> Vec<(String, bool, u64, u64)> {
    let nodes = PostgresStore::nodes(uri, false).expect("a list");
    let brief = |node: NodeInfo| (node.name, node.is_running, node.payloads, node.bytes);
    nodes.into_iter().map(brief).collect()
}

fn count(uri: &str, table: &str) -> String {
    let question = format!("SELECT count(*) FROM payload_manager.{table}");
    server().sql(name_of(uri), &question).expect("an answer").trim().to_owned()
}

#[test]
fn given_a_node_that_is_gone_when_removed_then_its_rows_go_with_it_and_the_others_stay() {
    let uri = server().database();
    let (mut kept, mut gone) = (started(&uri, "kept"), started(&uri, "gone"));
    kept.apply(&[put(row(1))]).expect("stored");
    let rows: Vec<_> = (10..5010).map(|number| put(row(number))).collect();
    gone.apply(&rows[..2500]).expect("stored");
    gone.apply(&rows[2500..]).expect("stored");
    let note = |number| RecordChange::MetadataUpdate {
        key: key(number),
        mode: MetadataMode::Replace,
        metadata: metadata(br#"{"a":1}"#, "s"),
        actor: String::new(),
        reason: String::new(),
        at: crate::records::at(0),
    };
    kept.apply(&[note(1).into()]).expect("stored");
    gone.apply(&[note(10).into(), note(11).into()]).expect("stored");
    let bytes: u64 = (10..5010).map(|number| row(number).size.0).sum();
    let expected = |running| ("gone".to_owned(), running, 5000, bytes);
    assert_eq!(listed(&uri)[0], expected(true));

    let refused = PostgresStore::node_remove(&uri, false, "gone").expect_err("it runs");
    assert!(matches!(&refused, StoreError::Locked(text) if text.contains("`gone`")), "{refused}");
    let refused = PostgresStore::node_remove(&uri, false, "nobody").expect_err("unknown");
    assert!(matches!(&refused, StoreError::Refused(text) if text.contains("`nobody`")), "{refused}");

    Box::new(gone).close().expect("it stops");
    assert_eq!(listed(&uri)[0], expected(false));
    assert_eq!(PostgresStore::node_remove(&uri, false, "gone"), Ok(5000));
    assert_eq!(listed(&uri), [("kept".to_owned(), true, 1, row(1).size.0)]);
    for (table, left) in [("payload", "1"), ("history", "1"), ("metadata_term", "2"), ("garbage", "2")] {
        assert_eq!(count(&uri, table), left, "{table}");
    }
    kept.apply(&[put(row(2))]).expect("it goes on");
}

#[test]
fn given_a_node_that_was_silent_and_runs_when_removed_then_it_may_write_no_more() {
    let uri = server().database();
    let mut silent = started(&uri, "silent");
    silent.apply(&[put(row(1))]).expect("stored");
    let aged = "UPDATE payload_manager.node SET heartbeat = heartbeat - interval '1 hour'";
    // Its heart beats every two seconds.
    let mut removed = Err(StoreError::Unavailable("not tried".to_owned()));
    for _ in 0..20 {
        server().sql(name_of(&uri), aged).expect("set");
        removed = PostgresStore::node_remove(&uri, false, "silent");
        if removed.is_ok() {
            break;
        }
    }
    assert_eq!(removed, Ok(1));
    let error = silent.apply(&[put(row(2))]).expect_err("it is no node any more");
    assert!(matches!(error, StoreError::Fenced(_)), "{error}");
    assert_eq!((listed(&uri), count(&uri, "payload")), (vec![], "0".to_owned()));
}
