//! Create, seal, sync and drop on real segments and files, with clients that behave and clients that do not.

mod common;

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::process::{Command, Stdio};

use common::{Place, Rig, eventually, replica};
use payload_drivers::{DriverOp, Drivers, LANE_PER_SHARD};
use payload_types::effect::{StorageAction, StorageOp};
use payload_types::event::DriverErrorKind;
use payload_types::{OpId, ShardIndex, Tier};

const TIERS: [Tier; 2] = [Tier::Ram, Tier::Disk];

#[test]
fn given_an_empty_node_when_a_replica_lives_and_dies_then_it_is_whole_zeroed_sealed_and_gone() {
    let place = Place::new();
    let mut rig = Rig::start(&place);
    for tier in TIERS {
        let replica = replica(tier, 1_000_001);
        rig.create(replica).expect("created");
        let path = rig.path(replica);
        let made = fs::metadata(&path).expect("there under its public name");
        assert_eq!((made.len(), made.permissions().mode() & 0o7777), (1_000_001, 0o660));
        assert!(made.blocks() * 512 >= 1_000_001, "space is reserved, not only promised");
        assert!(fs::read(&path).expect("readable").iter().all(|byte| *byte == 0));
        let file = OpenOptions::new().write(true).open(&path).expect("its producer writes it");
        file.set_len(1_000_001).expect("as v1 clients do");
        file.write_all_at(b"bytes", 500).expect("written");
        drop(file);
        rig.seal(replica, true).expect("sealed");
        rig.seal(replica, true).expect("sealing is repeatable");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o7777, 0o440);
        assert_eq!(&fs::read(&path).expect("readable")[500..505], b"bytes");
        rig.detach(replica);
        assert!(!path.exists(), "the name is free once it is detached");
        rig.wait_until_freed(replica);
    }
    assert!(place.segments().is_empty(), "{:?}", place.segments());
    assert!(place.files().is_empty(), "{:?}", place.files());
    rig.drivers.shutdown();
}

#[test]
fn given_a_client_that_spoils_its_allocation_when_sealed_then_the_error_says_how_and_the_node_lives_on() {
    let place = Place::new();
    let mut rig = Rig::start(&place);
    for tier in TIERS {
        let [gone, cut, swapped, linked] = [0; 4].map(|_| replica(tier, 10_000));
        for each in [gone, cut, swapped, linked] {
            rig.create(each).expect("created");
        }
        fs::remove_file(rig.path(gone)).expect("removed");
        OpenOptions::new().write(true).open(rig.path(cut)).and_then(|file| file.set_len(9_999)).expect("cut");
        fs::remove_file(rig.path(swapped)).expect("removed");
        fs::create_dir(rig.path(swapped)).expect("a directory in its place");
        fs::remove_file(rig.path(linked)).expect("removed");
        std::os::unix::fs::symlink("/etc/passwd", rig.path(linked)).expect("a link in its place");
        let kinds = [gone, cut, swapped, linked].map(|each| rig.seal(each, true).expect_err("refused").kind);
        use DriverErrorKind::{Missing, Truncated};
        assert_eq!(kinds, [Missing, Truncated, Missing, Missing]);
        assert_ne!(fs::metadata("/etc/passwd").expect("there").permissions().mode() & 0o777, 0o440);
        for each in [gone, cut, swapped, linked] {
            rig.detach(each);
            rig.wait_until_freed(each);
        }
        assert!(rig.path(swapped).is_dir(), "what a client put there is not ours to remove");
        fs::remove_dir(rig.path(swapped)).expect("removed");
        fs::remove_file(rig.path(linked)).expect("removed");
    }
    rig.create(replica(Tier::Ram, 1)).expect("the node lives on");
}

#[test]
fn given_a_client_that_stretches_or_hollows_its_segment_when_sealed_then_it_has_its_size_and_its_pages() {
    let place = Place::new();
    let mut rig = Rig::start(&place);
    for tier in TIERS {
        let [long, hollow] = [replica(tier, 100_000), replica(tier, 100_000)];
        rig.create(long).expect("created");
        rig.create(hollow).expect("created");
        let open = |path| OpenOptions::new().write(true).open(path).expect("opened");
        open(rig.path(long)).set_len(50_000_000).expect("stretched");
        open(rig.path(hollow)).set_len(0).expect("hollowed");
        open(rig.path(hollow)).set_len(100_000).expect("stretched again");
        for each in [long, hollow] {
            rig.seal(each, false).expect("sealed");
            assert_eq!(fs::metadata(rig.path(each)).expect("there").len(), 100_000);
        }
        let pages = fs::metadata(rig.path(hollow)).expect("there").blocks() * 512;
        assert!(tier == Tier::Disk || pages >= 100_000, "a reader's first touch finds a page");
    }
}

#[test]
fn given_no_room_when_created_then_full_and_nothing_is_left_behind() {
    let place = Place::new();
    let mut rig = Rig::start(&place);
    for tier in TIERS {
        let error = rig.create(replica(tier, 1 << 50)).expect_err("a pebibyte does not fit");
        assert_eq!(error.kind, DriverErrorKind::Full, "{}", error.message);
    }
    assert!(place.segments().is_empty());
    assert!(place.files().is_empty());
}

#[test]
fn given_a_tier_this_node_lacks_when_asked_then_an_error_and_a_drop_is_answered() {
    let mut place = Place::new();
    place.config.disk_root = None;
    let mut rig = Rig::start(&place);
    assert_eq!(rig.create(replica(Tier::Disk, 1)).expect_err("no disk").kind, DriverErrorKind::Io);
    assert_eq!(rig.create(replica(Tier::Gpu, 1)).expect_err("no GPU").kind, DriverErrorKind::Io);
    let lost = replica(Tier::Disk, 1);
    rig.detach(lost);
    rig.wait_until_freed(lost);
}

#[test]
fn given_a_process_that_still_maps_a_dropped_replica_when_it_ends_then_it_is_freed_and_not_before() {
    const HOLD: &str = "PAYLOAD_DRIVERS_TEST_HOLD";
    if let Ok(path) = std::env::var(HOLD) {
        hold_until_told(&path);
        return;
    }
    let place = Place::new();
    let mut rig = Rig::start(&place);
    for tier in TIERS {
        let held = replica(tier, 1 << 20);
        rig.create(held).expect("created");
        rig.seal(held, false).expect("sealed");
        let name =
            "given_a_process_that_still_maps_a_dropped_replica_when_it_ends_then_it_is_freed_and_not_before";
        let mut holder = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", name, "--nocapture"])
            .env(HOLD, rig.path(held))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a second process");
        let mut lines = BufReader::new(holder.stdout.take().expect("piped")).lines();
        assert!(lines.any(|line| line.expect("text").contains("mapped")), "the holder has it");
        rig.detach(held);
        assert!(!rig.path(held).exists());
        // Another replica dropped later is freed, so the retire thread has looked at the held one by then.
        for _ in 0..3 {
            let free = replica(tier, 4096);
            rig.create(free).expect("created");
            rig.detach(free);
            rig.wait_until_freed(free);
        }
        assert!(!rig.is_freed(held), "somebody still maps it");
        holder.stdin.take().expect("piped").write_all(b"go\n").expect("told");
        assert!(lines.any(|line| line.expect("text").contains("bytes unchanged")));
        assert!(holder.wait().expect("ended").success());
        rig.wait_until_freed(held);
    }
    assert!(place.segments().is_empty());
    assert!(place.files().is_empty());
}

/// The second process: maps the replica, closes the descriptor, and looks at the bytes again when it is told to end.
fn hold_until_told(path: &str) {
    let file = fs::File::open(path).expect("opened");
    // SAFETY: the file is sealed and its name is this test's; nobody truncates it.
    let memory = unsafe { memmap2::Mmap::map(&file) }.expect("mapped");
    drop(file);
    println!("mapped");
    std::io::stdout().flush().expect("told");
    std::io::stdin().read_exact(&mut [0; 3]).expect("told to go on");
    assert!(memory.iter().all(|byte| *byte == 0));
    println!("bytes unchanged");
}

#[test]
fn given_more_ops_than_the_lane_holds_when_submitted_then_they_come_back_and_those_taken_are_answered() {
    let place = Place::new();
    let mut drivers = place.open();
    let create = |number: u32| {
        let op = OpId { index: number, generation: 1 };
        let replica = replica(Tier::Ram, 4096);
        DriverOp::Storage(StorageOp { shard: ShardIndex(0), op, replica, action: StorageAction::Create })
    };
    let early = create(0);
    assert_eq!(drivers.submit(early), Err(early), "nobody works before start");
    let answers = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let (gate, answered) = (std::sync::Arc::new(std::sync::Barrier::new(3)), std::sync::Arc::clone(&answers));
    let barrier = std::sync::Arc::clone(&gate);
    drivers.start(std::sync::Arc::new(move |_, _| {
        // The first answer of each of the two workers waits for the test, so the lane fills up.
        if answered.fetch_add(1, std::sync::atomic::Ordering::SeqCst) < 2 {
            barrier.wait();
        }
    }));
    let mut taken = 0;
    while drivers.submit(create(taken)).is_ok() {
        taken += 1;
    }
    assert!((LANE_PER_SHARD..=LANE_PER_SHARD + 2).contains(&(taken as usize)), "{taken}");
    eventually("both workers in the sink", || answers.load(std::sync::atomic::Ordering::SeqCst) >= 2);
    gate.wait();
    Drivers::shutdown(drivers);
    assert_eq!(answers.load(std::sync::atomic::Ordering::SeqCst), taken as usize, "drained, never dropped");
    assert_eq!(place.segments().len(), taken as usize);
}
