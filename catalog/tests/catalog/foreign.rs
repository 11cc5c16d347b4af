//! Rows of other nodes: what is told of them, page by page, and how many they are.

use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, bounded};
use payload_catalog::{
    AckSink, Change, PostgresConfig, PostgresStore, Reader, Store, StoreError, Taken, Writer,
};
use payload_types::effect::CatalogOp;
use payload_types::event::Completion;
use payload_types::record::{
    RecordAnswer, RecordChange, RecordOutcome, RecordQuery, StreamItem, StreamLimits, StreamName,
};
use payload_types::request::List;
use payload_types::{
    BatchId, BatchPart, ByteCount, Epoch, Foreign, ForeignPage, Health, NamespaceId, PayloadId, PayloadRow,
    PayloadState, Tier, WallMs,
};

use crate::backends::{Backend, Memory, Sqlite, postgres_config, server};
use crate::postgres_server::name_of;
use crate::rows::{key, op, put, remove, row};

const NOW: WallMs = WallMs::from_millis(1_763_000_100_000);

/// A store of the node `name`, at the address `name`:1.
fn started(uri: &str, name: &str) -> PostgresStore {
    let config = PostgresConfig {
        node: name.to_owned(),
        disk_root: Some(format!("root of {name}")),
        address: format!("{name}:1"),
        ..postgres_config(uri)
    };
    let mut store = PostgresStore::open(config).expect("the database opens");
    store.begin_epoch(name).expect("registered");
    store
}

fn found(reader: &mut dyn Reader, numbers: &[u64]) -> Vec<Foreign> {
    let ids = numbers.iter().map(|number| key(*number).id).collect();
    let query = RecordQuery::Foreign { namespace: NamespaceId::DEFAULT, ids, at: NOW };
    let RecordAnswer::Foreign(mut found) = reader.read(&query).expect("answered") else { panic!("foreign") };
    found.sort_by_key(|foreign| foreign.descriptor.id);
    found
}

fn list(tier: Option<Tier>, before: Option<PayloadId>, page_size: usize) -> List {
    List { namespace: NamespaceId::DEFAULT, tier, before, page_size }
}

fn page(reader: &mut dyn Reader, list: List, at: WallMs) -> ForeignPage {
    match reader.read(&RecordQuery::ForeignPage { list, at }).expect("answered") {
        RecordAnswer::ForeignPage(page) => page,
        other => panic!("{other:?}"),
    }
}

fn ids(page: &ForeignPage) -> Vec<PayloadId> {
    page.rows.iter().map(|foreign| foreign.descriptor.id).collect()
}

fn on(number: u64, tier: Tier) -> PayloadRow {
    let mut row = row(number);
    row.replicas[0].tier = tier;
    row
}

#[test]
fn given_rows_of_other_nodes_when_asked_for_then_each_is_described_and_its_node_named() {
    let uri = server().database();
    let (mut one, mut two) = (started(&uri, "one"), started(&uri, "two"));
    let mut durable = on(2, Tier::Disk);
    (durable.state, durable.epoch, durable.size) = (PayloadState::Durable, Epoch(1), ByteCount(77));
    let mut allocated = row(3);
    (allocated.state, allocated.replicas) = (PayloadState::Allocated, Vec::new());
    let mut expired = row(4);
    expired.expires_at = Some(NOW);
    let mut lost = row(5);
    lost.health = Health::Lost;
    two.apply(&[row(1), durable, allocated, expired, lost].map(put)).expect("stored");
    one.apply(&[put(row(6))]).expect("stored");
    let mut reader = one.reader().expect("a reader");
    let there = found(reader.as_mut(), &[1, 2, 3, 4, 5, 6, 7]);
    let described: Vec<_> = there.iter().map(|foreign| (foreign.descriptor.id, foreign.is_lost)).collect();
    assert_eq!(described, [(key(1).id, false), (key(2).id, false), (key(5).id, true)]);
    let Foreign { descriptor, node, .. } = &there[1];
    assert_eq!(
        (descriptor.tier, descriptor.state, descriptor.size.0),
        (Tier::Disk, PayloadState::Durable, 77)
    );
    assert_eq!(descriptor.location, None);
    // Node two is in its second start by the catalog's count, so its own version is past any that it had before.
    assert_eq!(descriptor.version, row(2).version.at_boot(Epoch(1), Epoch(2)));
    assert_eq!((node.name.as_str(), node.address.as_str()), ("two", "two:1"));
    assert!(node.silent_ms.is_some_and(|silent| silent < 60_000), "{node:?}");
    let page = page(reader.as_mut(), list(None, None, 10), NOW);
    assert_eq!((ids(&page), page.total), (vec![key(2).id, key(1).id], 2));
    // It says good-bye: that is told, too.
    Box::new(two).close().expect("closes");
    assert_eq!(found(reader.as_mut(), &[1])[0].node.silent_ms, None);
    // The other way round.
    let mut theirs = started(&uri, "three").reader().expect("a reader");
    assert_eq!(found(theirs.as_mut(), &[1, 6]).len(), 2);
}

#[test]
fn given_three_nodes_when_listed_page_by_page_then_newest_first_each_once_and_totals_exact() {
    let uri = server().database();
    let mut nodes: Vec<PostgresStore> =
        ["one", "two", "three"].into_iter().map(|name| started(&uri, name)).collect();
    let tiers = [Tier::Ram, Tier::Disk];
    for number in 0..90 {
        let stored = on(number, tiers[number as usize % 2]);
        nodes[number as usize % 3].apply(&[put(stored)]).expect("stored");
    }
    let mut reader = nodes[0].reader().expect("a reader");
    for tier in [None, Some(Tier::Ram), Some(Tier::Disk), Some(Tier::Gpu)] {
        let is_wanted = |number: &u64| {
            !number.is_multiple_of(3) && tier.is_none_or(|tier| tiers[*number as usize % 2] == tier)
        };
        let wanted: Vec<PayloadId> = (0..90).rev().filter(is_wanted).map(|number| key(number).id).collect();
        let (mut seen, mut before) = (Vec::new(), None);
        loop {
            let page = page(reader.as_mut(), list(tier, before, 7), NOW);
            assert_eq!(page.total, wanted.len() as u64, "{tier:?}");
            let Some(last) = ids(&page).last().copied() else { break };
            before = Some(last);
            seen.extend(ids(&page));
        }
        assert_eq!(seen, wanted, "{tier:?}");
    }
    assert_eq!(page(nodes[1].reader().expect("a reader").as_mut(), list(None, None, 100), NOW).total, 60);
}

#[test]
fn given_totals_that_were_counted_when_rows_come_go_move_and_expire_then_they_are_exact() {
    let uri = server().database();
    let (one, mut two) = (started(&uri, "one"), started(&uri, "two"));
    let mut reader = one.reader().expect("a reader");
    let mut total = |tier, at| page(reader.as_mut(), list(tier, None, 2), at).total;
    assert_eq!(total(None, NOW), 0);
    let later = WallMs::from_millis(NOW.as_millis() + 1_000);
    let mut short = row(2);
    short.expires_at = Some(later);
    two.apply(&[put(row(1)), put(short)]).expect("stored");
    assert_eq!((total(None, NOW), total(Some(Tier::Ram), NOW), total(Some(Tier::Disk), NOW)), (2, 2, 0));
    assert_eq!((total(None, NOW), total(None, later)), (2, 1), "it has expired, and nobody wrote");
    let mut moved = on(1, Tier::Disk);
    moved.version = moved.version.next();
    two.apply(&[put(moved)]).expect("stored");
    assert_eq!((total(Some(Tier::Ram), later), total(Some(Tier::Disk), later)), (0, 1));
    two.apply(&[remove(1, 9), put(row(3))]).expect("stored");
    assert_eq!((total(None, later), total(Some(Tier::Disk), later)), (1, 0));
    // A new start counts its groups from the beginning.
    drop(two);
    let mut two = started(&uri, "two");
    assert_eq!(total(None, later), 1);
    two.apply(&[put(row(4))]).expect("stored");
    two.apply(&[put(row(5))]).expect("stored");
    assert_eq!(total(None, later), 3);
}

#[test]
fn given_a_catalog_that_nobody_shares_when_asked_for_others_then_there_are_none() {
    fn none<B: Backend>(home: &B::Home) {
        let mut store = B::start(home);
        store.apply(&[put(row(1))]).expect("stored");
        let mut reader = store.reader().expect("a reader");
        assert_eq!(found(reader.as_mut(), &[1, 2]), []);
        assert_eq!(page(reader.as_mut(), list(None, None, 5), NOW), ForeignPage::default());
    }
    none::<Memory>(&Memory::home());
    none::<Sqlite>(&Sqlite::home());
}

fn ends_of<B: Backend>(home: &B::Home) -> Vec<Option<u64>> {
    let name = |name: &str| StreamName { namespace: "n\0".to_owned(), name: name.to_owned() };
    let mut store = B::start(home);
    let create = |stream| RecordChange::StreamCreate { stream, limits: StreamLimits::default(), at: NOW };
    let made: Vec<Change> = ["a", "b"].into_iter().map(|text| create(name(text)).into()).collect();
    store.apply(&made).expect("made");
    let mut reader = store.reader().expect("a reader");
    let query = RecordQuery::StreamEnds(["b", "none", "a", "b"].into_iter().map(name).collect());
    let RecordAnswer::StreamEnds(ends) = reader.read(&query).expect("answered") else { panic!("ends") };
    assert_eq!(reader.read(&RecordQuery::StreamEnds(Vec::new())), Ok(RecordAnswer::StreamEnds(Vec::new())));
    assert_eq!(ends[0], ends[3]);
    assert_ne!(ends[0], ends[2], "they are told apart by their incarnations");
    ends.into_iter().map(|end| end.map(|(_, end)| end)).collect()
}

#[test]
fn given_streams_when_their_ends_are_asked_for_then_they_come_in_order_on_every_backend() {
    let wanted = [Some(0), None, Some(0), Some(0)];
    assert_eq!(ends_of::<Memory>(&Memory::home()), wanted);
    assert_eq!(ends_of::<Sqlite>(&Sqlite::home()), wanted);
    use crate::backends::Postgres;
    assert_eq!(ends_of::<Postgres>(&Postgres::home()), wanted);
}

/// A writer over `store`, and what each op of it was told: `Ok`, or whether it was claimed, with the reason.
type Told = (u32, Result<(), (bool, String)>);

fn writer(store: PostgresStore) -> (Writer, Receiver<Told>) {
    let (sender, told) = bounded(64);
    let sink: AckSink = Arc::new(move |_, completion| {
        let told = match completion {
            Completion::Catalog(ack) => (ack.op.index, ack.result.map_err(|reason| (false, reason))),
            Completion::Claimed { op, reason } => (op.index, Err((true, reason))),
            Completion::BatchRefused(op) => (op.index, Err((false, String::new()))),
            other => panic!("nothing is late here: {other:?}"),
        };
        sender.send(told).expect("the test listens");
    });
    (Writer::start(Box::new(store), 64, sink), told)
}

fn next(told: &Receiver<Told>) -> Told {
    told.recv_timeout(Duration::from_secs(60)).expect("every op is answered")
}

/// That op `number` was told that node one has the payload `claimed`.
fn assert_claimed((number, told): Told, expected: u32, claimed: u64) {
    let Err((true, reason)) = told else { panic!("{told:?}") };
    let id = key(claimed).id.to_string();
    assert!(
        number == expected && ["`one`", "one:1", &id].iter().all(|word| reason.contains(word)),
        "{reason}"
    );
}

fn rows_of(store: &mut PostgresStore) -> Vec<PayloadRow> {
    let mut rows = Vec::new();
    store.load(&mut |row| rows.push(row)).expect("rows load");
    rows
}

#[test]
fn given_two_nodes_that_claim_one_id_when_the_second_stores_it_then_it_alone_is_refused_and_the_first_row_stays()
 {
    let uri = server().database();
    let (mut one, two) = (started(&uri, "one"), started(&uri, "two"));
    one.apply(&[put(row(2)), put(row(4))]).expect("stored");
    let (writer, told) = writer(two);
    let mut theirs = row(2);
    (theirs.epoch, theirs.size) = (Epoch(900), ByteCount(7));
    let ops = [put(row(1)), put(theirs), put(row(3)), remove(4, 900), put(row(5))];
    for (number, change) in (0..).zip(ops) {
        writer.submit(op(number, change)).expect("there is room");
    }
    let mut all: Vec<Told> = (0..5).map(|_| next(&told)).collect();
    all.sort_by_key(|(number, _)| *number);
    assert_claimed(all.remove(1), 1, 2);
    assert_eq!(all, [0, 2, 3, 4].map(|number| (number, Ok(()))));
    drop(writer.shutdown());
    assert_eq!(rows_of(&mut one), [row(2), row(4)]);
    assert_eq!(rows_of(&mut started(&uri, "two")), [row(1), row(3), row(5)]);
}

#[test]
fn given_a_batch_with_an_id_of_another_node_when_stored_then_nothing_of_it_is_and_the_rest_of_its_group_is() {
    let uri = server().database();
    let (mut one, mut two) = (started(&uri, "one"), started(&uri, "two"));
    one.apply(&[put(row(2))]).expect("stored");
    let name = StreamName { namespace: String::new(), name: "s".to_owned() };
    let create =
        RecordChange::StreamCreate { stream: name.clone(), limits: StreamLimits::default(), at: NOW };
    two.apply(&[put(row(9)), create.into()]).expect("stored");
    let mut reader = two.reader().expect("a reader");
    // The row of the node is held, so that all of this waits and is one group.
    let hold = "BEGIN; SELECT FROM payload_manager.node FOR UPDATE; SELECT pg_sleep(1); COMMIT";
    let (writer, told) = writer(two);
    let appended = std::thread::scope(|scope| {
        scope.spawn(|| server().sql(name_of(&uri), hold).expect("held"));
        std::thread::sleep(Duration::from_millis(300));
        writer.submit(op(0, put(row(7)))).expect("room");
        std::thread::sleep(Duration::from_millis(50));
        let part = |number: u32, batch, len| {
            let mark = BatchPart { batch: BatchId(batch), len };
            CatalogOp { batch: Some(mark), ..op(number, put(row(u64::from(number)))) }
        };
        // The second of them is node one's; the other batch has none of its.
        for (number, batch, len) in [(1, 1, 3), (2, 1, 3), (4, 2, 2), (3, 1, 3), (5, 2, 2)] {
            writer.submit(part(number, batch, len)).expect("room");
        }
        writer.submit(op(6, put(row(6)))).expect("room");
        let item = StreamItem { payload: key(9).id, event_time: None, duration_ns: 0, tags: Vec::new() };
        let append =
            RecordChange::StreamAppend { stream: name.clone(), items: vec![item], held: false, at: NOW };
        let (reply, answer) = bounded(1);
        let reply = Box::new(move |made| reply.send(made).expect("the test listens"));
        writer.handle().submit_record(append, reply).expect("room");
        answer.recv_timeout(Duration::from_secs(60)).expect("answered")
    });
    assert_eq!(appended, Ok(RecordOutcome::Appended { first: 0, last: 0 }));
    let mut all: Vec<Told> = (0..7).map(|_| next(&told)).collect();
    all.sort_by_key(|(number, _)| *number);
    assert_claimed(all.remove(2), 2, 2);
    let whole = [0, 4, 5, 6].map(|number| (number, Ok(())));
    let put_back = [1, 3].map(|number| (number, Err((false, String::new()))));
    let mut expected = [whole.as_slice(), put_back.as_slice()].concat();
    expected.sort_by_key(|(number, _)| *number);
    assert_eq!(all, expected);
    let stats = writer.stats();
    assert_eq!((stats.groups, stats.rows), (2, 5), "all but the first of them were one group");
    drop(writer.shutdown());
    assert_eq!(rows_of(&mut one), [row(2)]);
    assert_eq!(rows_of(&mut started(&uri, "two")), [4, 5, 6, 7, 9].map(row));
    let ends = reader.read(&RecordQuery::StreamEnds(vec![name])).expect("answered");
    assert!(matches!(ends, RecordAnswer::StreamEnds(ends) if ends[0].is_some_and(|(_, end)| end == 1)));
}

#[test]
fn given_a_claimed_id_in_a_transaction_when_stored_then_all_of_it_is_rolled_back_and_the_claim_is_told() {
    let uri = server().database();
    let (mut one, mut two) = (started(&uri, "one"), started(&uri, "two"));
    one.apply(&[put(row(1))]).expect("stored");
    let claim = Taken { key: key(1), node: "one".to_owned(), address: "one:1".to_owned() };
    let taken = Err(StoreError::Taken(vec![claim]));
    // One statement, and several: of one key, and with records.
    assert_eq!(two.apply(&[put(row(2)), put(row(1)), put(row(3))]), taken);
    assert_eq!(two.apply(&[put(row(2)), remove(2, 9), put(row(1)), put(row(3))]), taken);
    let name = StreamName { namespace: String::new(), name: "s".to_owned() };
    let create =
        RecordChange::StreamCreate { stream: name.clone(), limits: StreamLimits::default(), at: NOW };
    assert_eq!(two.apply(&[create.into(), put(row(1)), put(row(3))]), taken);
    assert_eq!(rows_of(&mut two), []);
    let ends = two.reader().expect("a reader").read(&RecordQuery::StreamEnds(vec![name]));
    assert_eq!(ends, Ok(RecordAnswer::StreamEnds(vec![None])));
    // What was rolled back may be made without it, and an older version of an own row, which is not stored either, is
    // nobody else's.
    let mut newer = row(3);
    newer.version = newer.version.next();
    two.apply(&[put(row(2)), put(newer.clone())]).expect("stored");
    two.apply(&[put(row(4)), put(row(3))]).expect("one of them is stored");
    assert_eq!(rows_of(&mut two), [row(2), newer, row(4)]);
    assert_eq!(rows_of(&mut one), [row(1)]);
}
