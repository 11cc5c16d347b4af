//! Rows of the catalog become payloads of shards: which of their bytes are still there is asked of the drivers.
//!
//! ```text
//! reader thread       verifying threads           this thread, in the order of keys
//! Store::load --batches of rows--> verify each replica --> Shard::adopt -> Live | Lost | Expired
//! then: what streams retain is held again, from the floor of each; before the first timer, so nothing of it expires
//! then: what is LOST since the last start is noted in its row; Drivers::reclaim removes what the intent logs name and no row
//!       vouched for
//! ```
//! Reading a row, looking at its files and adopting it cost about the same (1 µs each, 10^6 rows), so they overlap.
//! Adopting keeps the rows' order: it is the order in which payloads were made, and shards remember it.
//!
//! Runs before anything serves: nobody else touches store, drivers or shards yet.

use std::collections::BTreeMap;
use std::thread;

use crossbeam::channel::{Receiver, Sender, bounded};
use payload_catalog::{Reader, Store};
use payload_drivers::{Drivers, Verifier};
use payload_shards::{Adopted, Keeper, Shard};
use payload_types::effect::ReplicaRef;
use payload_types::hold::{HeldEntries, HoldingStream};
use payload_types::limits::{STORED_INTEGER_MAX, STREAM_READ_MAX};
use payload_types::record::{RecordAnswer, RecordQuery};
use payload_types::{
    Health, NamespaceId, Now, PayloadId, PayloadKey, PayloadRow, PerTier, ReplicaRow, WallMs,
};

/// Rows that go from thread to thread at a time: 1,024 x ~250 bytes stay in a core's second cache.
const BATCH_LEN: usize = 1024;

/// Batches that wait in each lane: enough that nobody waits for a neighbour that was away for a millisecond.
const LANE_LEN: usize = 4;

/// Threads that look at files. A look waits for memory or, on a machine that just booted, for the disk; with more
/// than this the one reader of the catalog is what all wait for.
const VERIFIERS_MAX: usize = 4;

/// Rows of one transaction that notes what was lost: as many as a group of the writer's has. After a loss of power all of RAM
/// is lost, 24 bytes each until it is noted, once; other starts note nothing.
const NOTED_AT_A_TIME: usize = 4096;

/// Ids of lost payloads that are logged one by one; the rest are counted. A log of a million lines helps nobody.
const LOST_NAMED_MAX: u64 = 20;

/// What a boot found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Recovered {
    /// Payloads that are served again.
    pub live: u64,
    /// Payloads whose bytes did not survive: NOT_FOUND with the reason LOST.
    pub lost: u64,
    /// Payloads whose ttl passed meanwhile; they are being removed.
    pub expired: u64,
}

/// What rows do not say yet.
#[derive(Default)]
struct Changes {
    /// No replica is left.
    lost: Vec<PayloadKey>,
    /// Bytes that an earlier start did not find: on a disk that could not be read, say.
    found: Vec<PayloadKey>,
}

/// Rows, their number in the order of reading, and what was found of their replicas.
struct Batch {
    number: u64,
    rows: Vec<PayloadRow>,
    /// As many as rows, once verified.
    present: Vec<PerTier<bool>>,
}

/// Gives every row of `store` to its shard.
///
/// # Errors
/// When the store cannot be read; the sentence is its own.
///
/// # Panics
/// When a thread of it does, and where [`Shard::adopt`] does.
pub fn rows_adopt(
    store: &mut dyn Store,
    drivers: &Drivers,
    shards: &mut [Shard],
    now: Now,
) -> anyhow::Result<Recovered> {
    let (found, changes) = rows_read_and_adopt(store, drivers, shards, now)?;
    changes_note(store, &changes)?;
    Ok(found)
}

/// As [`rows_adopt`]; names those whose rows say something else than what was found.
fn rows_read_and_adopt(
    store: &mut dyn Store,
    drivers: &Drivers,
    shards: &mut [Shard],
    now: Now,
) -> Result<(Recovered, Changes), payload_catalog::StoreError> {
    let verifiers = thread::available_parallelism().map_or(1, usize::from).min(VERIFIERS_MAX);
    let (read, to_verify) = bounded(LANE_LEN);
    let (verified, to_adopt) = bounded(LANE_LEN);
    thread::scope(|scope| {
        let reader = scope.spawn(move || rows_read(store, &read));
        for _ in 0..verifiers {
            let (to_verify, verified): (Receiver<Batch>, Sender<Batch>) =
                (to_verify.clone(), verified.clone());
            scope.spawn(move || {
                let mut verifier = drivers.verifier();
                for mut batch in to_verify {
                    batch_verify(&mut verifier, &mut batch);
                    if verified.send(batch).is_err() {
                        break;
                    }
                }
            });
        }
        // Only the verifying threads keep the lanes open.
        drop((to_verify, verified));
        let found = batches_adopt(&to_adopt, shards, now);
        reader.join().expect("reading rows does not panic").map(|()| found)
    })
}

/// Notes in the rows of payloads what this start found of their bytes and the last one did not, for what asks the catalog
/// and no shard: appends, lineage, other nodes.
fn changes_note(store: &mut dyn Store, changes: &Changes) -> Result<(), payload_catalog::StoreError> {
    for (keys, health) in [(&changes.lost, Health::Lost), (&changes.found, Health::Good)] {
        keys.chunks(NOTED_AT_A_TIME).try_for_each(|keys| store.health_note(keys, health))?;
    }
    Ok(())
}

/// Reads all rows into batches.
fn rows_read(store: &mut dyn Store, lane: &Sender<Batch>) -> Result<(), payload_catalog::StoreError> {
    let mut number = 0;
    let mut rows = Vec::with_capacity(BATCH_LEN);
    let mut send = |rows: Vec<PayloadRow>| {
        // Nobody listens when adopting has panicked, which ends the start.
        drop(lane.send(Batch { number, rows, present: Vec::new() }));
        number += 1;
    };
    store.load(&mut |row| {
        rows.push(row);
        if rows.len() == BATCH_LEN {
            send(std::mem::replace(&mut rows, Vec::with_capacity(BATCH_LEN)));
        }
    })?;
    send(rows);
    Ok(())
}

/// Finds out which of the batch's replicas are there, whole and of this boot.
fn batch_verify(verifier: &mut Verifier<'_>, batch: &mut Batch) {
    let mut replicas = Vec::with_capacity(batch.rows.len());
    let mut owners = Vec::with_capacity(batch.rows.len());
    for (owner, row) in batch.rows.iter().enumerate() {
        for replica in &row.replicas {
            let ReplicaRow { tier, generation, extent, .. } = *replica;
            replicas.push(ReplicaRef {
                tier,
                id: row.key.id,
                generation,
                size: row.size,
                extent,
                block: None,
            });
            owners.push(owner);
        }
    }
    let present = &mut batch.present;
    present.resize(batch.rows.len(), PerTier::default());
    verifier.verify(&replicas, |number, is_there| present[owners[number]][replicas[number].tier] = is_there);
}

/// Adopts batches in the order in which they were read, whatever order they were verified in.
fn batches_adopt(lane: &Receiver<Batch>, shards: &mut [Shard], now: Now) -> (Recovered, Changes) {
    let shard_count = u16::try_from(shards.len()).expect("limits::SHARD_COUNT_MAX fits");
    let (mut found, mut changes) = (Recovered::default(), Changes::default());
    // As many as are between reader and here: two lanes and the verifying threads.
    let mut early: BTreeMap<u64, Batch> = BTreeMap::new();
    let mut next = 0;
    for batch in lane {
        early.insert(batch.number, batch);
        while let Some(batch) = early.remove(&next) {
            next += 1;
            for (row, present) in batch.rows.into_iter().zip(batch.present) {
                let (key, health) = (row.key, row.health);
                let shard = &mut shards[usize::from(key.id.shard(shard_count).0)];
                let adopted = shard.adopt(now, row, present);
                found.count(key.id, adopted);
                match (adopted, health) {
                    (Adopted::Lost, Health::Good | Health::Damaged) => changes.lost.push(key),
                    (Adopted::Live, Health::Lost) => changes.found.push(key),
                    _ => {}
                }
            }
        }
    }
    if found.lost > LOST_NAMED_MAX {
        tracing::warn!(
            lost = found.lost,
            named = LOST_NAMED_MAX,
            "more payloads are LOST than are named above"
        );
    }
    (found, changes)
}

/// Streams of one question for those that retain payloads.
const STREAMS_AT_ONCE: usize = 256;

/// Tells shards, which have their rows, what streams hold; returns what is known of these. One answer of entries is in
/// memory at a time.
///
/// # Errors
/// When the store cannot be read; the sentence is its own.
pub fn holds_adopt(store: &dyn Store, shards: &mut [Shard], now: Now) -> anyhow::Result<Keeper> {
    let (mut keeper, mut reader, mut after) = (Keeper::default(), store.reader()?, 0);
    loop {
        let query = RecordQuery::Floors { after, streams_max: STREAMS_AT_ONCE };
        let RecordAnswer::Floors(found, more) = reader.read(&query)? else {
            anyhow::bail!("the catalog gave the answer to another question; please report this")
        };
        for (name, floor) in &found {
            let stream = keeper.adopt(name, *floor);
            entries_adopt(reader.as_mut(), &stream, floor.floor, shards, now)?;
        }
        match found.last() {
            Some((_, last)) if more => after = last.stream,
            _ => break,
        }
    }
    if !keeper.is_empty() {
        tracing::info!(streams = keeper.len(), "streams hold their payloads again");
    }
    Ok(keeper)
}

fn entries_adopt(
    reader: &mut dyn Reader,
    stream: &HoldingStream,
    mut from: u64,
    shards: &mut [Shard],
    now: Now,
) -> anyhow::Result<()> {
    let shard_count = u16::try_from(shards.len()).expect("limits::SHARD_COUNT_MAX fits");
    loop {
        let query = RecordQuery::StreamRead {
            stream: stream.name.clone(),
            from,
            to: STORED_INTEGER_MAX,
            not_before: None,
            entries_max: STREAM_READ_MAX,
            // All that is there, whatever its age.
            at: WallMs::default(),
        };
        let (entries, more) = match reader.read(&query)? {
            RecordAnswer::Entries(info, entries, more) if info.incarnation == stream.stream => {
                (entries, more)
            }
            // Another node deleted it meanwhile.
            _ => return Ok(()),
        };
        let Some(last) = entries.last() else { return Ok(()) };
        from = last.offset + 1;
        let mut by_shard = vec![Vec::new(); shards.len()];
        for entry in entries {
            let key = PayloadKey { namespace: NamespaceId::DEFAULT, id: entry.item.payload };
            by_shard[usize::from(key.id.shard(shard_count).0)].push((entry.offset, key));
        }
        for (shard, entries) in shards.iter_mut().zip(by_shard) {
            shard.adopt_holds(now, &HeldEntries { stream: stream.clone(), entries });
        }
        if !more {
            return Ok(());
        }
    }
}

impl Recovered {
    fn count(&mut self, id: PayloadId, adopted: Adopted) {
        match adopted {
            Adopted::Live => self.live += 1,
            Adopted::Expired => self.expired += 1,
            Adopted::Lost => {
                self.lost += 1;
                if self.lost <= LOST_NAMED_MAX {
                    tracing::warn!(%id, "payload is LOST: its bytes did not survive the restart");
                }
            }
        }
    }
}
