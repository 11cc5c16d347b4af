//! Space that comes back: files that are recycled when nobody has them open, and emptied where something lives.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::fake::{FakeShard, Rng};
use common::{Place, Rig, eventually, path_of, replica, twin};
use payload_drivers::Drivers;
use payload_drivers::faults::{Answer, Call, Faults};
use payload_types::effect::ReplicaRef;
use payload_types::limits::RELOCATIONS_MAX;
use payload_types::{ByteCount, PayloadId, Tier};

/// Segment files of 4 MiB, for payloads of 1 MiB at most.
const CAPACITY: ByteCount = ByteCount(128 << 20);
const MIB: usize = 1 << 20;

fn place() -> Place {
    let mut place = Place::new();
    place.config.disk_capacity = Some(CAPACITY);
    place.config.compaction_bytes_per_second = 0;
    place
}

fn ids(shard: &FakeShard) -> Vec<PayloadId> {
    shard.payloads.keys().copied().collect()
}

/// As many copies of the source as the disk takes.
fn fill(shard: &mut FakeShard, source: usize) {
    while shard.put(source) {
        shard.pump(Duration::ZERO);
    }
    shard.until("all is copied", FakeShard::is_quiet);
}

#[test]
fn given_readers_that_keep_a_file_open_or_mapped_when_all_is_dropped_then_it_is_recycled_only_after_they_let_go()
 {
    for way in ["descriptor", "process", "mapping"] {
        let mut shard = FakeShard::start(place(), 1, &[MIB - 5]);
        assert!(shard.put(0) && shard.put(0));
        shard.until("packed", FakeShard::is_quiet);
        shard.restart(); // no lane has the file now
        let [one, other] = ids(&shard)[..] else { panic!("two were put") };
        let path = path_of(shard.drivers(), shard.payloads[&one].replica);
        let file = File::open(&path).expect("a client may open it");
        let mut process = None;
        let mut mapping = None;
        match way {
            "process" => {
                let started = Command::new("sleep").arg("600").stdin(Stdio::from(file)).spawn();
                process = Some(started.expect("a process"));
            }
            "mapping" => {
                // SAFETY: what is mapped is a file that nobody changes while it is mapped: that is what is tested.
                mapping = Some(unsafe { memmap2::Mmap::map(&file) }.expect("mapped"));
                drop(file);
            }
            _ => {
                drop(file);
                let reader = shard.open(one);
                shard.readers.push(reader);
            }
        }
        let dropped = [one, other].map(|id| shard.payloads[&id].replica.generation);
        shard.delete(one);
        shard.delete(other);
        shard.until("it is looked at", |shard| shard.segments().files_held == 1);
        // Others come and go; the bytes stay where they are.
        for _ in 0..20 {
            assert!(shard.put(0));
            shard.until("packed", FakeShard::is_quiet);
            shard.verify_all();
            if let Some(mapping) = &mapping {
                let sample = common::sample(MIB - 5);
                assert!(mapping.windows(sample.len()).step_by(4096).any(|bytes| bytes == sample));
            }
        }
        let is_dying = |generation| shard.dying.contains_key(generation);
        assert!(dropped.iter().all(is_dying), "nothing of it is free: {way}");
        assert!(path.exists());
        shard.readers.clear();
        drop(mapping);
        if let Some(mut process) = process {
            process.kill().expect("killed");
            process.wait().expect("dead");
        }
        shard.until("both are free", |shard| !dropped.iter().any(|one| shard.dying.contains_key(one)));
        assert!(!path.exists(), "the old path leads nowhere");
        shard.until("nobody is waited for", |shard| shard.segments().files_held == 0);
        shard.verify_all();
    }
}

#[test]
fn given_a_recycled_file_when_used_again_then_it_has_a_new_name_and_clients_may_read_it_and_not_write() {
    let mut shard = FakeShard::start(place(), 2, &[MIB]);
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..6 {
        // Four fill a file; the fifth is in the next one.
        (0..5).for_each(|_| assert!(shard.put(0)));
        shard.until("packed", FakeShard::is_quiet);
        let file = |shard: &FakeShard, id| shard.payloads[&id].replica.extent.expect("packed").file;
        seen.extend(ids(&shard).into_iter().map(|id| file(&shard, id)));
        for id in ids(&shard) {
            shard.delete(id);
        }
        shard.until("the full file is free", |shard| shard.dying.len() < 5);
    }
    let files = shard.segments();
    assert!(files.files < seen.len() as u64 && files.recycled_total > 0, "{files:?}, {seen:?}");
    assert!(shard.put(0));
    shard.until("packed", FakeShard::is_quiet);
    let path = path_of(shard.drivers(), shard.payloads[&ids(&shard)[0]].replica);
    assert_eq!(fs::metadata(path).expect("there").permissions().mode() & 0o7777, 0o440);
    for entry in fs::read_dir(shard.place.root().join("segments")).expect("listed").flatten() {
        if entry.path().extension().is_some_and(|name| name == "free") {
            assert_eq!(entry.metadata().expect("there").permissions().mode() & 0o7777, 0o600);
        }
    }
}

#[test]
fn given_a_full_disk_half_of_which_dies_when_written_on_then_compaction_brings_the_space_back() {
    let mut shard = FakeShard::start(place(), 3, &[MIB - 1, 300_000]);
    shard.stays = 10;
    for round in 0..3 {
        fill(&mut shard, 0);
        fill(&mut shard, 1);
        shard.check_capacity();
        // Every other one, so that no file is empty of itself.
        for id in ids(&shard).into_iter().step_by(2) {
            shard.delete(id);
        }
        // As much again: there is room for it only where the dead are.
        let wanted = shard.usable * 9 / 10;
        let mut tries = 0;
        while shard.live_bytes() < wanted {
            let is_put = shard.put(1) | shard.put(0);
            if !is_put {
                tries += 1;
                assert!(tries < 60_000, "round {round}: {} live, {:?}", shard.live_bytes(), shard.segments());
                shard.pump(Duration::from_millis(1));
                shard.leases_end();
            }
            shard.pump(Duration::ZERO);
        }
        shard.until("all is copied", FakeShard::is_quiet);
        shard.check_capacity();
        shard.verify_all();
    }
    assert!(shard.moves > 0);
    let segments = shard.segments();
    assert!(segments.moved_total > 0 && segments.emptied_total > 0, "{segments:?}");
    assert!(segments.moved_bytes_total >= segments.moved_total, "{segments:?}");
    shard.restart();
    shard.verify_all();
}

#[test]
fn given_a_shard_that_does_not_answer_when_compacting_then_it_is_asked_for_a_few_and_a_stop_does_not_wait() {
    let mut shard = FakeShard::start(place(), 4, &[20_000]);
    fill(&mut shard, 0);
    for (number, id) in ids(&shard).into_iter().enumerate() {
        if number % 8 != 0 {
            shard.delete(id);
        }
    }
    let mut asked = 0;
    while asked < RELOCATIONS_MAX {
        asked += shard.swallow(Duration::from_secs(60));
    }
    assert_eq!(asked, RELOCATIONS_MAX);
    assert_eq!(shard.swallow(Duration::from_millis(300)), 0, "no more before an answer");
    shard.restart();
    shard.verify_all();
}

#[test]
fn given_a_full_disk_a_little_of_which_dies_everywhere_when_room_is_wanted_then_all_of_it_comes_back() {
    let mut shard = FakeShard::start(place(), 12, &[60_000]);
    shard.unwanted = 0; // what it did not want would be asked for again seconds later
    fill(&mut shard, 0);
    let before = shard.payloads.len();
    for id in ids(&shard).into_iter().step_by(16) {
        shard.delete(id);
    }
    let free_share = |shard: &FakeShard| (shard.usable - shard.charged) as f64 / shard.usable as f64;
    // No file, not even one that is being filled, holds a larger share than what is free anyway.
    let least = |shard: &FakeShard| free_share(shard) * (shard.segments().file_bytes.0 as f64);
    shard.until("little dead is left", |shard| shard.segments().dead_bytes.0 as f64 <= least(shard));
    while shard.payloads.len() < before {
        if shard.put(0) {
            shard.until("copied", FakeShard::is_quiet);
        } else {
            // Less and less is free, so less and less is left.
            shard.until("room for one more", |shard| shard.charged + 61_440 <= shard.usable);
        }
    }
    shard.verify_all();
    shard.check_capacity();
}

#[test]
fn given_a_disk_that_is_not_full_when_somebody_wants_what_is_dead_then_it_is_won_for_him_and_for_nobody_else()
{
    let mut shard = FakeShard::start(place(), 13, &[60_000]);
    shard.unwanted = 0;
    while shard.charged < shard.usable / 2 {
        assert!(shard.put(0));
        shard.pump(Duration::ZERO);
    }
    shard.until("all is copied", FakeShard::is_quiet);
    let is_packed = |id: &PayloadId| shard.payloads[id].replica.extent.is_some();
    let dying: Vec<PayloadId> = ids(&shard).into_iter().filter(is_packed).step_by(6).collect();
    dying.iter().for_each(|id| shard.delete(*id));
    let dead = dying.len() as u64 * 61_440;
    shard.until("they are dead", |shard| shard.segments().dead_bytes.0 == dead);
    let wants = |shard: &FakeShard, bytes| shard.drivers().disk_wanted(ByteCount(bytes));
    // He could not have it if all of it were free.
    wants(&shard, dead + 1);
    assert!(!shard.pump(Duration::from_millis(300)), "nothing is moved in vain");
    assert_eq!((shard.moves, shard.segments().dead_bytes.0), (0, dead));
    let goal = shard.charged - dead / 2;
    shard.until("he has half of it", |shard| {
        wants(shard, shard.charged.saturating_sub(goal));
        shard.charged <= goal
    });
    shard.until("what was begun is done", FakeShard::is_quiet);
    shard.leases_end();
    shard.check_capacity();
    shard.verify_all();
    // A file that was begun may still come free.
    let left = shard.segments();
    assert!(left.dead_bytes.0 + 2 * (4 << 20) >= dead / 2, "{left:?}");
    let goal = shard.charged - left.dead_bytes.0.min(dead / 4);
    shard.until("another has some of the rest", |shard| {
        wants(shard, shard.charged.saturating_sub(goal));
        shard.charged <= goal
    });
    shard.until("what was begun is done", FakeShard::is_quiet);
    shard.verify_all();
    shard.check_capacity();
}

#[test]
fn given_a_slow_pace_when_stopped_amid_it_then_the_stop_does_not_wait_for_it() {
    let mut place = place();
    place.config.compaction_bytes_per_second = 1; // eleven days for a payload
    let mut shard = FakeShard::start(place, 5, &[MIB]);
    fill(&mut shard, 0);
    for id in ids(&shard).into_iter().step_by(2) {
        shard.delete(id);
    }
    shard.until("one is moved", |shard| shard.moves > 0);
    shard.restart();
    shard.verify_all();
}

/// Puts, drops, moves, leases, readers, restarts, in the order that the seed says.
fn random_run(seed: u64, steps: u64) {
    println!("seed {seed}");
    let mut sizes: Vec<usize> = Rng::new(seed).sizes(20, MIB);
    sizes.extend([1, 4096, MIB, MIB + 4097]);
    let mut shard = FakeShard::start(place(), seed, &sizes);
    shard.stays = 15;
    for step in 0..steps {
        match shard.rng.below(100) {
            0..60 => {
                let source = shard.rng.below(sizes.len() as u64) as usize;
                if !shard.put(source) {
                    for _ in 0..shard.rng.below(40) {
                        shard.any().into_iter().for_each(|id| shard.delete(id));
                    }
                }
            }
            60..75 => shard.any().into_iter().for_each(|id| shard.delete(id)),
            75..80 => shard.leases_end(),
            80..85 => {
                if let Some(id) = shard.any().filter(|_| shard.readers.len() < 4) {
                    let reader = shard.open(id);
                    shard.readers.push(reader);
                }
            }
            85..90 => {
                if !shard.readers.is_empty() {
                    let index = shard.rng.below(shard.readers.len() as u64) as usize;
                    shard.readers.remove(index);
                }
            }
            90..99 => drop(shard.pump(Duration::from_millis(2))),
            _ => {
                if step % 4 == 0 {
                    shard.restart();
                }
            }
        }
        shard.pump(Duration::ZERO);
        shard.check_capacity();
        shard.readers.iter().for_each(|reader| shard.verify(reader));
        if step % 50 == 0 {
            shard.verify_all();
        }
    }
    shard.until("what was begun is done", FakeShard::is_quiet);
    shard.verify_all();
    // Nothing leaks: all of it comes back.
    shard.readers.clear();
    shard.restart();
    for id in ids(&shard) {
        shard.delete(id);
    }
    shard.until("everything is free", |shard| shard.payloads.is_empty() && shard.charged == 0);
    let segments = shard.segments();
    assert_eq!((segments.live_bytes.0, segments.dead_bytes.0), (0, 0), "{segments:?}");
    let held = shard.drivers().locate().footprint(Tier::Disk).expect("readable");
    assert!(held.0 <= segments.file_bytes.0 + (1 << 20), "{held} for {segments:?}");
}

#[test]
fn given_random_puts_drops_moves_readers_and_restarts_when_run_then_bytes_and_capacity_hold_at_every_step() {
    let seeds: Vec<u64> = match std::env::var("PAYLOAD_DRIVERS_SEED") {
        Ok(seed) => vec![seed.parse().expect("a number")],
        Err(_) => vec![1, 2],
    };
    for seed in seeds {
        random_run(seed, 1_500);
    }
}

#[test]
fn given_a_file_whose_sync_failed_when_the_disk_works_again_then_what_lives_in_it_is_moved_and_it_is_removed()
{
    let place = place();
    let faults = Faults::new();
    let mut drivers = Drivers::open_faulty(place.config.clone(), faults.clone()).expect("opened");
    drivers.reclaim();
    let mut rig = Rig::started(drivers);
    let ram = replica(Tier::Ram, MIB as u64);
    rig.create(ram).expect("created");
    rig.seal(ram, false).expect("sealed");
    let pack = |rig: &mut Rig, from| {
        let to = twin(from, Tier::Disk);
        rig.copied(from, to, None).map(|copied| ReplicaRef { extent: copied.extent, ..to })
    };
    let old = pack(&mut rig, ram).expect("packed");
    faults.fail(Call::Sync, Answer::Io);
    pack(&mut rig, ram).expect_err("it cannot be synced");
    faults.end();
    faults.advance(Duration::from_secs(60));
    let other = pack(&mut rig, ram).expect("the disk works again");
    assert_ne!(other.extent.map(|extent| extent.file), old.extent.map(|extent| extent.file));
    eventually("a move is asked for", || !rig.is_freed(old) && rig.relocations.contains(&old));
    let new = pack(&mut rig, old).expect("moved");
    assert!(new.extent.is_some());
    let path = path_of(&rig.drivers, old);
    assert!(path.exists());
    rig.detach(old);
    rig.wait_until_freed(old);
    assert!(!path.exists() && !path.with_extension("free").exists(), "it is not used again");
}

#[test]
fn given_nothing_dead_when_idle_then_nobody_is_asked() {
    let mut shard = FakeShard::start(place(), 6, &[MIB]);
    (0..6).for_each(|_| assert!(shard.put(0)));
    shard.until("packed", FakeShard::is_quiet);
    assert!(!shard.pump(Duration::from_millis(200)), "nothing comes of itself");
    assert_eq!(shard.segments().recycled_total, 0);
}
