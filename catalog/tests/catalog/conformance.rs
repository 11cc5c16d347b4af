//! The one suite that every backend passes. A new backend adds a line to the list at the end.

use std::num::NonZeroU32;

use payload_catalog::{Change, Store, StoreError, storable};
use payload_types::limits::STORED_INTEGER_MAX;
use payload_types::{
    ByteCount, Checksum, Epoch, Extent, Generation, Health, NamespaceId, PayloadId, PayloadRow, Pin,
    ReplicaRow, Tier, Version, WallMs,
};

use crate::backends::Backend;
use crate::rows::{key, put, remove, row, varied};

fn all(store: &mut dyn Store) -> Vec<PayloadRow> {
    let mut rows = Vec::new();
    store.load(&mut |row| rows.push(row)).expect("rows load");
    rows
}

fn opened<B: Backend>() -> (B::Home, Box<dyn Store>) {
    let home = B::home();
    let store = B::start(&home);
    (home, store)
}

pub fn given_a_new_store_when_asked_then_it_is_empty_and_has_the_default_namespace<B: Backend>() {
    let (_home, mut store) = opened::<B>();
    assert_eq!(store.count(), Ok(0));
    assert_eq!(all(store.as_mut()), []);
    assert_eq!(store.get(key(1)), Ok(None));
    assert_eq!(store.namespace("default"), Ok(Some(NamespaceId::DEFAULT)));
    assert_eq!(store.namespace("other"), Ok(None));
    assert_eq!(store.apply(&[]), Ok(Vec::new()), "no changes are no trouble");
    store.close().expect("closes");
}

pub fn given_starts_when_numbered_then_each_is_one_more_whatever_the_nodes_name<B: Backend>() {
    let home = B::home();
    let mut store = B::open(&home);
    assert_eq!(store.begin_epoch("a"), Ok(Epoch(1)));
    assert_eq!(store.begin_epoch("a"), Ok(Epoch(2)));
    assert_eq!(store.begin_epoch("b"), Ok(Epoch(3)), "a renamed node must not write rows that look old");
    if B::KEEPS {
        drop(store);
        store = B::open(&home);
        assert_eq!(store.begin_epoch("a"), Ok(Epoch(4)));
    }
}

pub fn given_a_node_when_bound_to_a_disk_root_then_the_catalog_knows_it_and_a_new_one_replaces_it<
    B: Backend,
>() {
    let home = B::home();
    let mut store = B::open(&home);
    store.begin_epoch("a").expect("registered");
    assert_eq!(store.disk_roots(), Ok(Vec::new()));
    store.disk_root_bind("a", "first").expect("bound");
    store.disk_root_bind("a", "second").expect("bound anew");
    store.begin_epoch("b").expect("registered");
    assert_eq!(store.disk_roots(), Ok(vec!["second".to_owned()]));
    if B::KEEPS {
        store.close().expect("closes");
        store = B::open(&home);
        store.begin_epoch("a").expect("registered");
        assert_eq!(store.disk_roots(), Ok(vec!["second".to_owned()]));
    }
}

pub fn given_rows_of_every_kind_when_stored_then_they_return_as_they_were_in_key_order<B: Backend>() {
    let (home, mut store) = opened::<B>();
    let rows: Vec<PayloadRow> = (0..400).map(varied).collect();
    let batch: Vec<Change> = rows.iter().rev().cloned().map(put).collect();
    store.apply(&batch).expect("stored");
    assert_eq!(all(store.as_mut()), rows);
    assert_eq!(store.count(), Ok(400));
    assert_eq!(store.get(rows[77].key), Ok(Some(rows[77].clone())));
    if B::KEEPS {
        store.close().expect("closes");
        store = B::start(&home);
        assert_eq!(all(store.as_mut()), rows);
    }
}

pub fn given_ids_of_any_bytes_when_stored_then_each_is_found_exactly_and_in_byte_order<B: Backend>() {
    let (_home, mut store) = opened::<B>();
    let mut ids = vec![[0; 16], [0xFF; 16], [0x80; 16], *b"\0\0ascii'\"--;\0\0\0\0"];
    ids.extend((0..16).map(|at| std::array::from_fn(|index| if index == at { 0xC3 } else { 0 })));
    let rows: Vec<PayloadRow> = ids
        .iter()
        .map(|bytes| {
            let mut row = row(1);
            row.key.id = PayloadId::from_bytes(*bytes);
            row
        })
        .collect();
    store.apply(&rows.iter().cloned().map(put).collect::<Vec<_>>()).expect("stored");
    ids.sort_unstable();
    let found: Vec<[u8; 16]> = all(store.as_mut()).iter().map(|row| *row.key.id.as_bytes()).collect();
    assert_eq!(found, ids);
    for row in rows {
        assert_eq!(store.get(row.key), Ok(Some(row.clone())));
    }
}

pub fn given_one_id_in_two_namespaces_when_one_is_removed_then_the_other_stays<B: Backend>() {
    let (_home, mut store) = opened::<B>();
    let mut other = row(1);
    other.key.namespace = NamespaceId(u32::MAX);
    store.apply(&[put(other.clone()), put(row(1))]).expect("stored");
    assert_eq!(all(store.as_mut()), [row(1), other.clone()]);
    store.apply(&[remove(1, 1)]).expect("removed");
    assert_eq!(all(store.as_mut()), [other]);
}

pub fn given_versions_out_of_order_when_stored_then_the_newest_stays<B: Backend>() {
    let (_home, mut store) = opened::<B>();
    let at = |epoch: u32, version: u64, size: u64| {
        let mut row = row(1);
        (row.epoch, row.version, row.size) = (Epoch(epoch), Version(version), ByteCount(size));
        row
    };
    for (offered, expected) in [
        (at(3, 5, 1), at(3, 5, 1)),
        (at(3, 4, 2), at(3, 5, 1)),
        (at(2, 99, 3), at(3, 5, 1)),
        (at(3, 6, 4), at(3, 6, 4)),
        (at(4, 1, 5), at(4, 1, 5)),
        // The same version replaces: a pin changes a row without a new version.
        (at(4, 1, 6), at(4, 1, 6)),
    ] {
        store.apply(&[put(offered)]).expect("an old row is no error");
        assert_eq!(all(store.as_mut()), [expected]);
    }
}

pub fn given_removals_when_repeated_or_of_an_older_epoch_then_they_succeed_and_spare_newer_rows<
    B: Backend,
>() {
    let (_home, mut store) = opened::<B>();
    let mut newer = row(2);
    newer.epoch = Epoch(5);
    store.apply(&[put(row(1)), put(newer.clone())]).expect("stored");
    store.apply(&[remove(1, 1), remove(1, 1), remove(77, 1), remove(2, 4)]).expect("none fails");
    assert_eq!(all(store.as_mut()), [newer]);
    store.apply(&[remove(2, 5)]).expect("removed");
    assert_eq!(store.count(), Ok(0));
}

pub fn given_several_changes_of_one_key_in_a_batch_when_applied_then_in_their_order<B: Backend>() {
    let (_home, mut store) = opened::<B>();
    let mut second = row(1);
    second.version = Version(9);
    store.apply(&[put(row(1)), remove(1, 1), put(second.clone()), put(row(1))]).expect("applied");
    assert_eq!(all(store.as_mut()), [second]);
    store.apply(&[put(row(2)), remove(2, 1)]).expect("applied");
    assert_eq!(store.get(key(2)), Ok(None));
}

pub fn given_a_batch_when_applied_twice_then_the_rows_are_as_after_once<B: Backend>() {
    let (_home, mut store) = opened::<B>();
    let mut batch: Vec<Change> = (0..50).map(|number| put(varied(number))).collect();
    batch.extend((0..20).map(|number| remove(number, 9)));
    store.apply(&batch).expect("once");
    let once = all(store.as_mut());
    store.apply(&batch).expect("twice");
    assert_eq!(all(store.as_mut()), once);
    assert_eq!(once.len(), 30);
}

pub fn given_the_largest_numbers_when_stored_then_they_return<B: Backend>() {
    let (_home, mut store) = opened::<B>();
    let mut row = row(1);
    row.size = ByteCount(STORED_INTEGER_MAX);
    row.version = Version(STORED_INTEGER_MAX);
    row.epoch = Epoch(u32::MAX);
    row.created_at = WallMs::from_millis(STORED_INTEGER_MAX);
    row.expires_at = Some(WallMs::from_millis(STORED_INTEGER_MAX));
    row.pin = Pin::Until(WallMs::from_millis(STORED_INTEGER_MAX - 1));
    row.checksum = Some(Checksum(u64::MAX));
    row.replicas = Tier::ALL
        .map(|tier| ReplicaRow {
            tier,
            generation: Generation(STORED_INTEGER_MAX >> 1),
            synced: true,
            sound: false,
            extent: (tier == Tier::Disk).then_some(Extent { file: NonZeroU32::MAX, page: u32::MAX }),
        })
        .to_vec();
    store.apply(&[put(row.clone())]).expect("stored");
    assert_eq!(all(store.as_mut()), [row]);
}

pub fn given_a_row_out_of_range_when_applied_then_its_batch_is_refused_whole<B: Backend>() {
    let (_home, mut store) = opened::<B>();
    let beyond = STORED_INTEGER_MAX + 1;
    let spoil: [fn(&mut PayloadRow, u64); 8] = [
        |row, beyond| row.size = ByteCount(beyond),
        |row, beyond| row.version = Version(beyond),
        |row, beyond| row.created_at = WallMs::from_millis(beyond),
        |row, beyond| row.expires_at = Some(WallMs::from_millis(beyond)),
        |row, beyond| row.pin = Pin::Until(WallMs::from_millis(beyond - 1)),
        |row, beyond| row.replicas[0].generation = Generation(beyond >> 1),
        |row, _| row.replicas = vec![row.replicas[0], row.replicas[0]],
        |row, _| row.replicas[0].extent = Extent::from_bits(1 << 32),
    ];
    for spoil in spoil {
        let mut bad = row(2);
        spoil(&mut bad, beyond);
        let batch = [put(row(1)), put(bad)];
        assert!(storable(&batch[0]).is_ok() && storable(&batch[1]).is_err());
        let error = store.apply(&batch).expect_err("it cannot be stored");
        assert!(
            matches!(&error, StoreError::Unstorable(text) if text.contains(&key(2).id.to_string())),
            "{error}"
        );
        assert_eq!(store.count(), Ok(0));
    }
}

pub fn given_a_packed_or_unsound_replica_when_it_changes_then_the_row_says_what_is_true_now<B: Backend>() {
    let (_home, mut store) = opened::<B>();
    let extent = |bits: u64| Some(Extent::from_bits(bits).expect("an extent"));
    for (extent, sound) in [(extent(1 << 32), true), (extent(u64::MAX), false), (None, false), (None, true)] {
        let mut row = row(1);
        row.replicas.push(ReplicaRow { tier: Tier::Disk, sound, extent, ..row.replicas[0] });
        store.apply(&[put(row.clone())]).expect("stored");
        assert_eq!(all(store.as_mut()), [row]);
    }
}

pub fn given_ten_thousand_rows_when_changed_in_batches_then_all_is_accounted_for<B: Backend>() {
    let (home, mut store) = opened::<B>();
    for first in (0..10_000).step_by(500) {
        let mut batch: Vec<Change> = (first..first + 500).map(|number| put(row(number))).collect();
        batch.extend((first..first + 500).filter(|number| number % 10 == 0).map(|number| remove(number, 1)));
        store.apply(&batch).expect("applied");
    }
    store.checkpoint().expect("checkpointed");
    assert_eq!(store.log_bytes(), 0);
    if B::KEEPS {
        drop(store);
        store = B::start(&home);
    }
    let expected: Vec<PayloadRow> = (0..10_000).filter(|number| number % 10 > 0).map(row).collect();
    assert_eq!(store.count(), Ok(9_000));
    assert_eq!(all(store.as_mut()), expected);
}

pub fn given_payloads_that_are_lost_or_found_when_noted_then_their_rows_say_so_and_else_what_they_said<
    B: Backend,
>() {
    let (home, mut store) = opened::<B>();
    let rows: Vec<PayloadRow> = (0..60).map(varied).collect();
    store.apply(&rows.iter().cloned().map(put).collect::<Vec<_>>()).expect("stored");
    let lost: Vec<_> = (0..80).step_by(2).map(|number| varied(number).key).collect();
    for _ in 0..2 {
        store.health_note(&lost, Health::Lost).expect("noted; some have no row");
    }
    store.health_note(&[], Health::Lost).expect("none is no trouble");
    store.health_note(&lost[..1], Health::Good).expect("found again");
    let mut expected = rows;
    for row in expected.iter_mut().filter(|row| lost.contains(&row.key)) {
        row.health = if row.key == lost[0] { Health::Good } else { Health::Lost };
    }
    expected.sort_by_key(|row| row.key);
    assert_eq!(all(store.as_mut()), expected);
    if B::KEEPS {
        drop(store);
        assert_eq!(all(B::start(&home).as_mut()), expected);
    }
}

pub fn given_late_changes_when_applied_then_they_are_seen_at_once_in_order_and_stay<B: Backend>() {
    let (home, mut store) = opened::<B>();
    store.flush().expect("nothing to flush is no trouble");
    store.apply(&[put(row(1)), put(row(2)), put(row(3))]).expect("stored");
    let durable = store.apply_late(&[remove(1, 1)]).expect("removed");
    assert_eq!(all(store.as_mut()), [row(2), row(3)]);
    assert_eq!(store.apply_late(&[]), Ok(durable), "no changes make nothing durable");
    store.apply(&[put(row(4))]).expect("stored");
    assert_eq!(store.apply_late(&[]), Ok(true), "a transaction that is not late takes those before it along");
    assert_eq!(store.apply_late(&[remove(2, 1)]), Ok(durable));
    store.checkpoint().expect("checkpointed");
    assert_eq!(store.apply_late(&[remove(2, 1)]), Ok(durable), "repeated");
    store.flush().expect("flushed");
    assert_eq!(store.apply_late(&[]), Ok(true));
    assert_eq!(store.apply_late(&[remove(3, 1)]), Ok(durable));
    let mut unstorable = row(5);
    unstorable.size = ByteCount(STORED_INTEGER_MAX + 1);
    assert!(matches!(store.apply_late(&[remove(4, 1), put(unstorable)]), Err(StoreError::Unstorable(_))));
    if B::KEEPS {
        // As after a kill: nobody flushed.
        drop(store);
        store = B::start(&home);
        assert_eq!(store.apply_late(&[]), Ok(true), "a start makes durable what the one before left");
    }
    assert_eq!(all(store.as_mut()), [row(4)]);
}

suite! {
    Memory: memory, Decorated: decorated, Sqlite: sqlite, SqliteNormal: sqlite_normal,
    Postgres: postgres, PostgresPooled: postgres_pooled => [
        given_a_new_store_when_asked_then_it_is_empty_and_has_the_default_namespace,
        given_starts_when_numbered_then_each_is_one_more_whatever_the_nodes_name,
        given_a_node_when_bound_to_a_disk_root_then_the_catalog_knows_it_and_a_new_one_replaces_it,
        given_rows_of_every_kind_when_stored_then_they_return_as_they_were_in_key_order,
        given_ids_of_any_bytes_when_stored_then_each_is_found_exactly_and_in_byte_order,
        given_one_id_in_two_namespaces_when_one_is_removed_then_the_other_stays,
        given_versions_out_of_order_when_stored_then_the_newest_stays,
        given_removals_when_repeated_or_of_an_older_epoch_then_they_succeed_and_spare_newer_rows,
        given_several_changes_of_one_key_in_a_batch_when_applied_then_in_their_order,
        given_a_batch_when_applied_twice_then_the_rows_are_as_after_once,
        given_the_largest_numbers_when_stored_then_they_return,
        given_a_row_out_of_range_when_applied_then_its_batch_is_refused_whole,
        given_a_packed_or_unsound_replica_when_it_changes_then_the_row_says_what_is_true_now,
        given_ten_thousand_rows_when_changed_in_batches_then_all_is_accounted_for,
        given_payloads_that_are_lost_or_found_when_noted_then_their_rows_say_so_and_else_what_they_said,
        given_late_changes_when_applied_then_they_are_seen_at_once_in_order_and_stay,
    ]
}
