//! Starting on what an earlier run left: killed in the middle of its work, locked by another, or not ours at all.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Place, Rig, eventually, path_of, removed, replica, sample, twin};
use payload_drivers::{DriversConfig, IoEngine, OpenError};
use payload_types::effect::{ReplicaRef, StorageAction};
use payload_types::event::Completion;
use payload_types::{ByteCount, Generation, PayloadId, Tier};

const PREFIX: &str = "PAYLOAD_DRIVERS_TEST_PREFIX";
const ROOT: &str = "PAYLOAD_DRIVERS_TEST_ROOT";

/// The number-th replica that the killed process made.
fn numbered(tier: Tier, id: u64, generation: u64) -> ReplicaRef {
    let id = PayloadId::mint(1 << 50, id);
    ReplicaRef {
        tier,
        id,
        generation: Generation(generation),
        size: ByteCount(2_000_000),
        extent: None,
        block: None,
    }
}

#[test]
fn given_a_server_killed_at_work_when_started_again_then_what_rows_vouch_for_is_there_and_the_rest_is_gone() {
    if let Ok(prefix) = std::env::var(PREFIX) {
        work_until_killed(&prefix, Path::new(&std::env::var(ROOT).expect("set together")));
    }
    let mut place = Place::new();
    place.config.node = "node".to_owned();
    let name = "given_a_server_killed_at_work_when_started_again_then_what_rows_vouch_for_is_there_and_the_rest_is_gone";
    let mut server = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", name, "--nocapture"])
        .env(PREFIX, &place.config.shm_prefix)
        .env(ROOT, place.root())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a second process");
    let mut lines = BufReader::new(server.stdout.take().expect("piped")).lines();
    assert!(lines.any(|line| line.expect("text").contains("ready")));
    server.kill().expect("kill -9");
    server.wait().expect("dead");

    let mut drivers = place.open();
    let (ram, disk) = (numbered(Tier::Ram, 1, 12), numbered(Tier::Disk, 2, 2));
    let held =
        fs::File::open(path_of(&drivers, numbered(Tier::Ram, 3, 3))).expect("a reader holds a leftover");
    assert!(drivers.verify(&ram));
    assert!(drivers.verify(&disk));
    assert!(
        !drivers.verify(&numbered(Tier::Ram, 1, 1)),
        "an older generation's name belongs to the newer one"
    );
    assert!(!drivers.verify(&numbered(Tier::Ram, 99, 99)), "never made");
    assert!(!drivers.verify(&ReplicaRef { size: ByteCount(2_000_001), ..numbered(Tier::Disk, 4, 4) }));
    let bystander = format!("/dev/shm/{}-0190a5c0-1234-7abc-8def-0123456789ab", place.config.shm_prefix);
    fs::write(&bystander, "same prefix, not in the log").expect("written");
    let tally = drivers.reclaim();
    // RAM: generation 1 (in limbo) and 3 (held); disk: 4 and the draft 5.
    assert_eq!(removed(&tally), (1, 2), "{tally:?}");
    assert_eq!((tally[Tier::Ram].held, tally[Tier::Ram].held_bytes), (1, 2_000_000));
    assert_eq!(drivers.reclaim(), Default::default(), "a second reclaim does nothing");
    assert!(Path::new(&bystander).exists(), "reclaim is no sweep by prefix");
    assert_eq!(place.files(), [path_of(&drivers, disk)]);
    assert_eq!(fs::read(path_of(&drivers, ram)).expect("readable"), sample(2_000_000));
    assert_eq!(place.segments().len(), 3, "{:?}", place.segments());

    // A reader's leftover may not be mistaken for a new generation of the same id.
    let mut rig = Rig::started(drivers);
    let again = numbered(Tier::Ram, 3, 33);
    rig.create(again).expect("the name is free though the leftover is held");
    drop(held);
    eventually("the leftover is freed", || place.segments().len() == 3);
    assert!(rig.path(again).exists());
    assert!(rig.path(ram).exists());
    rig.drivers.shutdown();
    let mut drivers = place.open();
    assert!(
        drivers.verify(&ram) && drivers.verify(&disk) && drivers.verify(&again),
        "the logs were written anew"
    );
    assert_eq!(removed(&drivers.reclaim()), (0, 0));
}

/// The process that is killed.
fn work_until_killed(prefix: &str, root: &Path) -> ! {
    let mut rig = Rig::start(&Place::of(prefix, root));
    let write = |rig: &mut Rig, replica: ReplicaRef| {
        rig.create(replica).expect("created");
        fs::write(rig.path(replica), sample(2_000_000)).expect("written");
        rig.seal(replica, true).expect("sealed");
    };
    // A RAM replica that somebody holds (this process does) is dropped, and the payload gets a new one.
    write(&mut rig, numbered(Tier::Ram, 1, 1));
    let held = fs::File::open(rig.path(numbered(Tier::Ram, 1, 1))).expect("held");
    rig.detach(numbered(Tier::Ram, 1, 1));
    write(&mut rig, numbered(Tier::Ram, 1, 12));
    write(&mut rig, numbered(Tier::Disk, 2, 2));
    write(&mut rig, numbered(Tier::Ram, 3, 3));
    rig.create(numbered(Tier::Disk, 4, 4)).expect("created and never committed");
    // A copy that was cut off: its draft is named in the log and still there.
    write(&mut rig, numbered(Tier::Disk, 5, 5));
    let public = rig.path(numbered(Tier::Disk, 5, 5));
    fs::rename(&public, public.with_extension("draft")).expect("as if it had not been finished");
    println!("ready");
    std::io::stdout().flush().expect("told");
    std::thread::sleep(std::time::Duration::from_secs(600));
    drop(held);
    panic!("nobody killed this process");
}

#[test]
fn given_a_running_server_when_a_second_one_opens_its_root_or_its_node_then_it_is_refused_by_name() {
    let place = Place::new();
    let drivers = place.open();
    let other = Place::new();
    let open = |config: DriversConfig| match payload_drivers::Drivers::open(config) {
        Err(error) => error,
        Ok(_) => panic!("a second server was let in"),
    };
    let same_root = DriversConfig { disk_root: place.config.disk_root.clone(), ..other.config.clone() };
    let error = open(same_root.clone());
    assert!(matches!(error, OpenError::RootTaken { .. }), "{error}");
    assert!(error.to_string().contains(&*place.root().to_string_lossy()));
    let without_disk = DriversConfig { disk_root: None, ..place.config.clone() };
    let first = payload_drivers::Drivers::open(without_disk.clone()).expect("another owner of segments");
    let error = open(without_disk);
    assert!(matches!(error, OpenError::NodeTaken { .. }), "{error}");
    assert!(error.to_string().contains(&place.config.node));
    first.shutdown();
    drivers.shutdown();
    // A process that another test starts right now has copies of all descriptors until it is itself.
    let open = || payload_drivers::Drivers::open(same_root.clone()).is_ok();
    common::eventually("the end of the lock with its holder", open);
}

#[test]
fn given_another_data_directory_with_the_same_names_when_opened_then_the_first_ones_segments_stay() {
    let place = Place::new();
    let mut rig = Rig::start(&place);
    rig.create(numbered(Tier::Ram, 1, 1)).expect("created");
    let segment = rig.path(numbered(Tier::Ram, 1, 1));
    let other = Place::new();
    let same_names = DriversConfig { disk_root: other.config.disk_root.clone(), ..place.config.clone() };
    let mut second = payload_drivers::Drivers::open(same_names).expect("another root is another owner");
    let reclaimed = second.reclaim();
    assert_eq!((reclaimed[Tier::Ram].removed, segment.exists()), (0, true));
    second.shutdown();
}

#[test]
fn given_a_directory_that_is_not_ours_when_opened_then_it_is_refused_and_untouched() {
    let place = Place::new();
    let open = || payload_drivers::Drivers::open(place.config.clone()).map(drop).expect_err("refused");
    fs::create_dir_all(place.root()).expect("made");
    fs::write(place.root().join("thesis.tex"), "years of work").expect("written");
    assert!(matches!(open(), OpenError::RootForeign { .. }));
    let names = || -> Vec<_> {
        fs::read_dir(place.root()).expect("listed").flatten().map(|e| e.file_name()).collect()
    };
    assert_eq!(names(), ["thesis.tex"]);
    fs::remove_file(place.root().join("thesis.tex")).expect("removed");
    fs::create_dir(place.root().join("lost+found")).expect("a new filesystem has one");
    place.open().shutdown();
    let marker = place.root().join("payload-manager.root");
    let text = fs::read_to_string(&marker).expect("a marker");
    fs::write(&marker, text.replace("format: 2", "format: 3")).expect("a later version was here");
    let error = open();
    assert!(matches!(error, OpenError::RootNewer { format: 3, format_max: 2, .. }), "{error}");
    fs::write(&marker, [0xFF, 0xFE, 0]).expect("damaged");
    assert!(matches!(open(), OpenError::MarkerDamaged { .. }));
    fs::write(&marker, &text).expect("restored");
    fs::write(place.root().join("payload-manager.intent"), [1; 100]).expect("not a log");
    assert!(matches!(open(), OpenError::Log { .. }));
    let file = place.root().join("a-file");
    fs::write(&file, "").expect("written");
    let config = DriversConfig { disk_root: Some(file), ..place.config.clone() };
    assert!(matches!(payload_drivers::Drivers::open(config), Err(OpenError::Io { .. })));
}

#[test]
fn given_a_bad_prefix_when_opened_then_it_is_named_and_a_root_keeps_its_id() {
    let place = Place::new();
    for prefix in ["", "a/b", ".hidden", &"x".repeat(200)] {
        let config = DriversConfig { shm_prefix: prefix.to_owned(), ..place.config.clone() };
        let error = payload_drivers::Drivers::open(config).map(drop).expect_err("refused");
        assert!(matches!(error, OpenError::Prefix { .. }), "{error}");
    }
    let first = place.open().root_id().expect("a disk root").to_owned();
    assert_eq!(first.len(), 32);
    let again = place.open();
    assert_eq!(again.root_id(), Some(&*first));
    assert!(again.locate().disk_path(PayloadId::mint(1, 1), Generation(1)).is_absolute());
}

#[test]
fn given_committed_replicas_when_a_graceful_stop_and_a_start_pass_then_they_are_there_and_idle_nodes_leave_nothing()
 {
    let mut place = Place::new();
    place.config.io = IoEngine::Plain;
    let mut rig = Rig::start(&place);
    let ram = replica(Tier::Ram, 4097);
    rig.create(ram).expect("created");
    rig.seal(ram, true).expect("sealed");
    let disk = twin(ram, Tier::Disk);
    rig.copy(ram, disk, None).expect("spilled");
    rig.drivers.shutdown();
    let drivers = place.open();
    assert!(drivers.verify(&ram) && drivers.verify(&disk));
    let mut drivers = drivers;
    assert_eq!(removed(&drivers.reclaim()), (0, 0));
    let rig = Rig::started(drivers);
    for replica in [ram, disk] {
        rig.submit(StorageAction::Drop, replica);
    }
    let Rig { drivers, completions, .. } = rig;
    drivers.shutdown();
    let answers = completions.iter().filter(|(_, done)| matches!(done, Completion::Storage(_))).count();
    assert_eq!(answers, 4, "detached and freed, twice, before shutdown returns");
    let logs = fs::read_dir("/dev/shm").expect("listed").flatten();
    let ours = logs.filter(|entry| entry.file_name().to_string_lossy().starts_with(&place.config.shm_prefix));
    assert_eq!(ours.count(), 0, "an empty intent log is removed");
}
