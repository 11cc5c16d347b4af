//! Memories of arenas on this machine and on one that fails: pages, descriptors, address space, the keeper's thread.

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use payload_drivers::arena::{
    ArenaError, JOBS_WAITING_MAX, Job, Keeper, LargePages, Leaving, Maker, MakerConfig, Placement, Slab,
};
use payload_drivers::faults::{Answer, Call, Faults};
use payload_ledger::arena::{Arena, Block, Domain, Freed, Geometry, MemoryIndex, Room, Wanted};
use payload_types::{ByteCount, Generation};

const SMALL: &str = "PAYLOAD_DRIVERS_TEST_SMALL_LIMIT";
const SLAB: ByteCount = ByteCount(8 << 20);

/// Long enough for a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(30);

fn maker(large_pages: LargePages) -> Maker {
    Maker::new(MakerConfig { large_pages })
}

fn sealed(maker: &Maker, bytes: ByteCount) -> Slab {
    maker.slab(bytes, None).expect("memory").seal().expect("sealed")
}

/// What `/proc/self/smaps` says of the mapping of the memory behind a descriptor: kilobytes that are there, and its flags.
fn mapped(slab: &Slab) -> (u64, String) {
    let reader = slab.reader().expect("a descriptor");
    let inode = std::fs::metadata(format!("/proc/self/fd/{}", reader.as_raw_fd())).expect("known");
    let inode = std::os::unix::fs::MetadataExt::ino(&inode).to_string();
    let smaps = std::fs::read_to_string("/proc/self/smaps").expect("readable");
    let mut lines = smaps.lines().skip_while(|line| {
        !(line.contains("memfd:payload-manager") && line.split_whitespace().nth(4) == Some(&inode))
    });
    let rss = lines.find_map(|line| line.strip_prefix("Rss:")).expect("mapped");
    let flags = lines.find_map(|line| line.strip_prefix("VmFlags:")).expect("flags");
    (rss.trim().trim_end_matches(" kB").parse().expect("a number"), flags.to_owned())
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("listed").count()
}

/// Runs a test of this file again, in a process of its own with this limit. True in the parent.
fn under(limit: &str, test: &str) -> bool {
    if std::env::var_os(SMALL).is_some() {
        return false;
    }
    let script = format!(r#"ulimit {limit} && exec "$0" --exact "$1" --nocapture --test-threads 1"#);
    let mut shell = Command::new("bash");
    shell.args(["-c", &script]).arg(std::env::current_exe().expect("this test")).arg(test).env(SMALL, "1");
    assert!(shell.status().expect("a shell").success());
    true
}

#[test]
fn given_each_kind_of_pages_when_made_then_the_kernel_has_charged_all_of_them_and_what_was_not_granted_is_said()
 {
    for large_pages in [LargePages::No, LargePages::Collapse, LargePages::Reserve] {
        // Not a whole number of large pages.
        let bytes = ByteCount(SLAB.0 + 4096);
        let draft = maker(large_pages).slab(bytes, Some(0)).expect("memory");
        let granted = draft.granted().clone();
        let large = SLAB.0;
        match large_pages {
            LargePages::No => assert_eq!((granted.large_bytes, granted.refused.as_deref()), (0, None)),
            LargePages::Collapse => assert_eq!(granted.large_bytes < large, granted.refused.is_some()),
            LargePages::Reserve => {
                assert!(
                    granted.refused.as_ref().is_some_and(|why| why.contains("large pages")),
                    "{granted:?}"
                );
            }
        }
        assert!(
            matches!(draft.placement(), Placement::Anywhere | Placement::Node(0)),
            "{:?}",
            draft.placement()
        );
        let slab = draft.seal().expect("sealed");
        assert_eq!(slab.bytes_in_kernel().expect("known"), bytes, "{large_pages:?}");
        assert_eq!(slab.bytes(), bytes);
    }
    let draft = maker(LargePages::Reserve).slab(SLAB, None).expect("memory");
    let granted = draft.granted();
    assert!(granted.is_from_reserve || granted.refused.as_ref().is_some_and(|why| why.contains("reserve")));
}

#[test]
fn given_a_kernel_without_large_pages_when_made_then_small_ones_are_used_and_it_is_said() {
    let faults = Faults::new();
    faults.fail_after(1, Call::Collapse, Answer::Unsupported);
    let maker = Maker::faulty(MakerConfig { large_pages: LargePages::Collapse }, faults);
    let slab = sealed(&maker, SLAB);
    assert_eq!(slab.granted().large_bytes, 2 << 20);
    assert!(
        slab.granted().refused.as_ref().is_some_and(|why| why.contains("MADV_COLLAPSE")),
        "{:?}",
        slab.granted()
    );
    assert_eq!(slab.bytes_in_kernel().expect("known"), SLAB);
}

#[test]
fn given_a_machine_that_fails_at_any_call_when_made_or_sealed_then_the_error_is_typed_and_nothing_is_left() {
    // In a process of its own: descriptors are counted.
    let name = "given_a_machine_that_fails_at_any_call_when_made_or_sealed_then_the_error_is_typed_and_nothing_is_left";
    if under("-n 256", name) {
        return;
    }
    let before = descriptors();
    for (call, passing, answer) in [
        (Call::Memfd, 0, Answer::NoDescriptor),
        (Call::Memfd, 1, Answer::NoDescriptor),
        (Call::Memfd, 2, Answer::NoDescriptor),
        (Call::Map, 0, Answer::NoMemory),
        (Call::Reserve, 0, Answer::NoSpace),
        (Call::Reserve, 1, Answer::NoMemory),
        (Call::Seal, 0, Answer::Unsupported),
        (Call::Seal, 1, Answer::Unsupported),
    ] {
        let faults = Faults::new();
        faults.fail_after(passing, call, answer);
        let maker = Maker::faulty(MakerConfig::default(), faults);
        let slab = maker.slab(SLAB, None).and_then(|draft| draft.seal().map_err(|(_, error)| error));
        let error = slab.and_then(|slab| slab.reader()).expect_err("the fault");
        let is_right = match answer {
            Answer::NoDescriptor => matches!(error, ArenaError::Descriptors { asked: SLAB, .. }),
            Answer::NoMemory | Answer::NoSpace => matches!(error, ArenaError::Full { asked: SLAB, .. }),
            _ => matches!(error, ArenaError::Io { asked: SLAB, .. }),
        };
        assert!(is_right && error.to_string().contains("8 MiB"), "{call:?} {passing}: {error}");
        assert_eq!(descriptors(), before, "{call:?} {passing}");
    }
    let faults = Faults::new();
    faults.fail_after(1, Call::Seal, Answer::Io);
    let isolated =
        Maker::faulty(MakerConfig::default(), faults.clone()).isolated(SLAB, None).expect("memory");
    let (isolated, error) = isolated.freeze().err().expect("the fault");
    assert!(matches!(error, ArenaError::Io { .. }), "{error}");
    faults.end();
    isolated.freeze().map_err(|(_, error)| error).expect("it came back whole");
}

#[test]
fn given_40_descriptors_when_more_slabs_are_made_then_the_error_says_so_and_one_that_goes_makes_room() {
    if under(
        "-n 40",
        "given_40_descriptors_when_more_slabs_are_made_then_the_error_says_so_and_one_that_goes_makes_room",
    ) {
        return;
    }
    let maker = maker(LargePages::No);
    let mut slabs = Vec::new();
    let error = loop {
        match maker.slab(ByteCount(4096), None).and_then(|draft| draft.seal().map_err(|(_, error)| error)) {
            Ok(slab) => slabs.push(slab),
            Err(error) => break error,
        }
        assert!(slabs.len() < 40);
    };
    assert!(matches!(error, ArenaError::Descriptors { .. }), "{error}");
    assert!(error.to_string().contains("ulimit -n"), "{error}");
    assert!(slabs.len() > 20, "a sealed slab has one descriptor; {} were made", slabs.len());
    slabs.truncate(slabs.len() - 2);
    sealed(&maker, ByteCount(4096));
    slabs.iter().for_each(|slab| drop(slab.reader().expect("a descriptor")));
}

#[test]
fn given_little_address_space_when_a_large_memory_is_made_then_it_is_full_and_a_small_one_is_made() {
    if under(
        "-v 3000000",
        "given_little_address_space_when_a_large_memory_is_made_then_it_is_full_and_a_small_one_is_made",
    ) {
        return;
    }
    let maker = maker(LargePages::No);
    let error = maker.slab(ByteCount(4 << 30), None).expect_err("3 GB are less than 4 GiB");
    assert!(matches!(error, ArenaError::Full { asked: ByteCount(0x1_0000_0000), .. }), "{error}");
    sealed(&maker, SLAB);
}

#[test]
fn given_a_slab_when_pages_are_wanted_ahead_then_they_are_there_up_to_the_mark_and_no_child_has_them() {
    let keeper = Keeper::start(maker(LargePages::No));
    let slab = Arc::new(sealed(&maker(LargePages::No), SLAB));
    let (rss, flags) = mapped(&slab);
    assert!(rss < 1024, "{rss} kB were touched before anybody asked");
    assert!(flags.contains(" dc"), "a forked child would have it: {flags}");
    let wait_for = |kilobytes: u64| {
        let started = Instant::now();
        while mapped(&slab).0 < kilobytes {
            assert!(started.elapsed() < PATIENCE, "{} of {kilobytes} kB", mapped(&slab).0);
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    keeper.submit(Job::Prefault { slab: Arc::downgrade(&slab), to: 3 << 20 }).ok().expect("room");
    wait_for(3 << 10);
    assert_eq!(mapped(&slab).0, 3 << 10, "and no further");
    keeper.submit(Job::Prefault { slab: Arc::downgrade(&slab), to: u64::MAX }).ok().expect("room");
    wait_for(8 << 10);
}

#[test]
fn given_a_kernel_that_cannot_touch_pages_when_asked_to_then_other_jobs_go_on() {
    let faults = Faults::new();
    faults.fail(Call::Populate, Answer::Unsupported);
    let maker = Maker::faulty(MakerConfig::default(), faults.clone());
    let keeper = Keeper::start(maker.clone());
    let slab = Arc::new(sealed(&maker, SLAB));
    for _ in 0..3 {
        keeper.submit(Job::Prefault { slab: Arc::downgrade(&slab), to: 8 << 20 }).ok().expect("room");
    }
    let (done, returned) = mpsc::channel();
    let done = Box::new(move |bytes| done.send(bytes).expect("the test listens"));
    keeper.submit(Job::Return { memory: Leaving::Slab(slab), done }).ok().expect("room");
    assert_eq!(returned.recv_timeout(PATIENCE).expect("returned"), SLAB);
    assert_eq!(faults.made(Call::Populate), 1, "asked once");
}

#[test]
fn given_a_keeper_that_is_busy_when_given_more_than_may_wait_then_the_job_comes_back_and_all_others_are_answered()
 {
    let keeper = Keeper::start(maker(LargePages::No));
    let (hold, held) = mpsc::channel::<()>();
    let (began, begins) = mpsc::channel();
    let done = Box::new(move |draft: Result<_, ArenaError>| {
        began.send(draft.is_ok()).expect("the test listens");
        held.recv_timeout(PATIENCE).expect("the test lets it go on");
    });
    keeper.submit(Job::Make { bytes: ByteCount(4096), node: None, done }).ok().expect("room");
    assert!(begins.recv_timeout(PATIENCE).expect("it began"));
    let (answers, answered) = mpsc::channel();
    let job = || {
        let answers = answers.clone();
        let done = Box::new(move |made: Result<_, ArenaError>| {
            answers.send(made.is_ok()).expect("the test listens");
        });
        Job::MakeIsolated { bytes: ByteCount(1), node: None, done }
    };
    for _ in 0..JOBS_WAITING_MAX {
        keeper.submit(job()).ok().expect("room");
    }
    assert!(matches!(keeper.submit(job()), Err(Job::MakeIsolated { .. })), "handed back");
    hold.send(()).expect("the keeper waits");
    drop(keeper);
    drop(answers);
    assert_eq!(answered.iter().filter(|made| *made).count(), JOBS_WAITING_MAX, "also those behind its end");
}

#[test]
fn given_books_that_say_what_to_make_and_return_when_done_then_the_kernel_has_charged_what_they_say() {
    let geometry = Geometry::of_capacity(ByteCount(64 << 20));
    let (mut arena, maker) = (Arena::new(geometry), maker(LargePages::No));
    let mut memories: BTreeMap<MemoryIndex, Slab> = BTreeMap::new();
    let mut blocks: Vec<Block> = Vec::new();
    let (mut random, mut made) = (1u64, 0);
    for generation in 1..=3000 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (draw, growing) = (random >> 33, generation / 300 % 2 == 1);
        if blocks.is_empty() || draw % 10 < if growing { 6 } else { 3 } {
            let size = ByteCount(1 + draw % if draw % 50 == 0 { 3 << 20 } else { 100_000 });
            let wanted = Wanted { size, generation: Generation(generation), domain: Domain(0) };
            let block = loop {
                match arena.allocate(&wanted) {
                    Room::Placed(placed) => break placed.block,
                    Room::NeedsSlab(bytes) => {
                        let (index, _) = arena.add_slab().expect("room");
                        memories.insert(index, sealed(&maker, bytes));
                    }
                    Room::NeedsOwn(bytes) => {
                        let placed = arena.add_own(&wanted).expect("room");
                        memories.insert(placed.block.place.memory, sealed(&maker, bytes));
                        break placed.block;
                    }
                    Room::Full => panic!("far below every limit"),
                }
                made += 1;
            };
            blocks.push(block);
        } else {
            let block = blocks.swap_remove(draw as usize % blocks.len());
            if let Freed::Own(bytes) = arena.free(block).expect("live") {
                assert_eq!(memories.remove(&block.place.memory).expect("made").bytes(), bytes);
            }
            while let Some(index) = arena.take_surplus(1) {
                memories.remove(&index).expect("made");
            }
        }
        if generation % 20 == 0 {
            let in_kernel: u64 = memories.values().map(|slab| slab.bytes_in_kernel().expect("known").0).sum();
            assert_eq!(arena.charged(), ByteCount(in_kernel));
        }
    }
    assert!(made > 10, "{made} slabs came");
}
