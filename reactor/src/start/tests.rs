//! Whole reactors: real threads, both executors, a fake core.

use std::process::Command;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc;

use payload_types::reply::{Reply, ReplyResult};
use payload_types::request::Request;
use payload_types::{ErrorKind, Peer, Tier};

use super::*;
use crate::fake::{FakeCore, FakePorts, KEY, generous_arbiter, list, release, stored, synced};
use crate::mailbox::{Envelope, ReactorHandle};

/// Long enough for any machine; only a test that fails waits for it.
const PATIENCE: Duration = Duration::from_secs(30);

fn start(shards: u16, config: ReactorConfig) -> (Reactor, ReactorHandle, Arc<FakePorts>) {
    let mailboxes = Mailboxes::new(shards);
    let (handle, ports) = (mailboxes.handle(), Arc::new(FakePorts::default()));
    let cores = (0..shards).map(FakeCore::new).collect();
    let reactor = Reactor::start_cores(config, mailboxes, cores, Box::new(generous_arbiter), ports.clone())
        .expect("threads can be started");
    (reactor, handle, ports)
}

fn ask(handle: &ReactorHandle, shard: u16, request: Request) -> mpsc::Receiver<ReplyResult> {
    let (answer, heard) = mpsc::sync_channel(1);
    let reply = Box::new(move |result| answer.try_send(result).expect("answered once"));
    assert!(handle.submit(ShardIndex(shard), Envelope { request, deadline: None, reply }).is_ok());
    heard
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let end = clock::monotonic().plus_millis(PATIENCE.as_millis() as u64);
    while !condition() {
        assert!(clock::monotonic() < end, "{what} did not come true");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn given_either_executor_when_asked_then_every_shard_answers_also_through_the_arbiter() {
    for executor in [ExecutorChoice::Auto, ExecutorChoice::Threads] {
        let config = ReactorConfig { executor, cores: Some(vec![0; 3]), ..ReactorConfig::default() };
        let (reactor, handle, _) = start(3, config);
        for shard in 0..3 {
            for request in
                [Request::Stats, Request::Pin { key: KEY, duration_ms: None, owner: Peer::UNKNOWN }]
            {
                let heard = ask(&handle, shard, request).recv_timeout(PATIENCE);
                assert_eq!(heard, Ok(Ok(Reply::Released)));
            }
        }
        reactor.shutdown();
        let refused = ask(&handle, 1, Request::Stats).recv().expect("answered").expect_err("stopped");
        assert_eq!(refused.kind, ErrorKind::Unavailable);
    }
}

#[test]
fn given_threads_that_flood_with_requests_and_completions_when_it_ends_then_all_were_answered() {
    const SENDERS: usize = 4;
    const EACH: usize = 5_000;
    let (reactor, handle, ports) = start(2, ReactorConfig::default());
    let answered = Arc::new(AtomicUsize::new(0));
    let senders: Vec<_> = (0..SENDERS)
        .map(|sender| {
            let (handle, answered) = (handle.clone(), answered.clone());
            std::thread::spawn(move || {
                for number in 0..EACH {
                    let answered = answered.clone();
                    let reply = Box::new(move |result: ReplyResult| {
                        answered.fetch_add(usize::from(result.is_ok()), Ordering::SeqCst);
                    });
                    let request = if number % 3 == 0 { release() } else { Request::Stats };
                    let mut envelope = Envelope { request, deadline: None, reply };
                    while let Err(refused) =
                        handle.submit(ShardIndex(((number + sender) % 2) as u16), envelope)
                    {
                        envelope = refused;
                        std::thread::yield_now();
                    }
                }
            })
        })
        .collect();
    // This thread is the driver.
    wait_until("every answer", || {
        for op in ports.taken().0 {
            handle.complete(op.shard, synced(op.op));
        }
        answered.load(Ordering::SeqCst) == SENDERS * EACH
    });
    senders.into_iter().for_each(|sender| sender.join().expect("sent all"));
    reactor.shutdown();
    assert_eq!(answered.load(Ordering::SeqCst), SENDERS * EACH);
}

#[test]
fn given_an_idle_server_when_time_passes_then_it_makes_no_turns() {
    for spin in [SpinPolicy::Adaptive, SpinPolicy::Always] {
        let (_reactor, handle, _) = start(2, ReactorConfig { spin, ..ReactorConfig::default() });
        for shard in 0..2 {
            ask(&handle, shard, Request::Stats).recv_timeout(PATIENCE).expect("answered").expect("well");
        }
        let turns = || handle.stalls().iter().map(|stats| stats.turns).sum::<u64>();
        std::thread::sleep(Duration::from_millis(100));
        let before = turns();
        std::thread::sleep(Duration::from_millis(200));
        assert!(turns() - before <= 2, "{} turns while idle", turns() - before);
        assert!(before >= 2);
    }
}

#[test]
fn given_ops_in_flight_when_shut_down_then_it_waits_for_them_and_answers_each_request_once() {
    let (reactor, handle, ports) = start(2, ReactorConfig::default());
    let waiting = [ask(&handle, 0, release()), ask(&handle, 1, Request::Resolve { key: KEY })];
    let never = ask(&handle, 1, Request::Prefetch { key: KEY, target: Tier::Ram });
    wait_until("both ops", || {
        ports.storage.lock().expect("ours").len() + ports.catalog.lock().expect("ours").len() == 2
    });
    let stopping = std::thread::spawn(move || reactor.shutdown());
    // New requests are refused while the ops are still in flight.
    wait_until("refusal", || {
        ask(&handle, 0, Request::Stats).recv_timeout(PATIENCE).expect("answered").is_err()
    });
    assert!(waiting.iter().all(|heard| heard.try_recv().is_err()), "their ops are not done");
    let (storage, catalog) = ports.taken();
    handle.complete(ShardIndex(0), synced(storage[0].op));
    handle.complete(ShardIndex(1), stored(catalog[0].op));
    stopping.join().expect("drained");
    for heard in &waiting {
        assert_eq!(heard.recv(), Ok(Ok(Reply::Released)));
    }
    assert_eq!(never.recv().expect("answered").expect_err("cut off").kind, ErrorKind::Unavailable);
    assert!(never.recv().is_err(), "once");
}

#[test]
fn given_an_op_that_never_ends_when_shut_down_then_the_drain_timeout_ends_it() {
    let config = ReactorConfig { drain_timeout: Duration::from_millis(20), ..ReactorConfig::default() };
    let (reactor, handle, ports) = start(1, config);
    let waiting = ask(&handle, 0, release());
    wait_until("the op", || !ports.storage.lock().expect("ours").is_empty());
    reactor.shutdown();
    assert_eq!(waiting.recv().expect("answered").expect_err("cut off").kind, ErrorKind::Unavailable);
    // The driver ends it later: nobody is there, and nobody waits.
    handle.complete(ShardIndex(0), synced(ports.taken().0[0].op));
}

#[test]
fn given_counts_that_do_not_match_when_started_then_it_fails_and_who_waits_is_told() {
    let mailboxes = Mailboxes::new(2);
    let heard = ask(&mailboxes.handle(), 1, Request::Stats);
    let arbiter = Box::new(generous_arbiter);
    let (cores, ports) = (vec![FakeCore::new(0)], Arc::new(FakePorts::default()));
    let started = Reactor::start_cores(ReactorConfig::default(), mailboxes, cores, arbiter, ports);
    assert!(matches!(started, Err(StartError::Counts { mailboxes: 2, shards: 1, cores: None })));
    assert_eq!(heard.recv().expect("answered").expect_err("refused").kind, ErrorKind::Unavailable);
}

#[test]
fn given_a_step_of_2_ms_when_it_is_done_then_the_stall_detector_has_it() {
    let (_reactor, handle, _) = start(1, ReactorConfig::default());
    ask(&handle, 0, list()).recv_timeout(PATIENCE).expect("answered").expect("well");
    wait_until("the record", || handle.stalls()[0].over_1ms > 0);
    let stats = &handle.stalls()[0];
    assert!(stats.longest[0].on_cpu_ns >= 2_000_000, "{stats:?}");
    assert_eq!(stats.longest[0].handled.requests, 1);
}

/// Set in the child process that is meant to die.
const CHILD: &str = "PAYLOAD_REACTOR_PANIC_TEST";

#[test]
fn given_a_shard_that_panics_when_it_dies_then_the_process_ends_and_says_why() {
    const NAME: &str =
        "start::tests::given_a_shard_that_panics_when_it_dies_then_the_process_ends_and_says_why";
    if std::env::var_os(CHILD).is_some() {
        let (_reactor, handle, _) = start(2, ReactorConfig::default());
        let _ =
            ask(&handle, 1, Request::Commit { key: KEY, checksum: None, batch: None }).recv_timeout(PATIENCE);
        // Reached only if the process lives on; then the parent sees exit code 0.
        return;
    }
    let this = std::env::current_exe().expect("its own path");
    let child = Command::new(this).args(["--exact", NAME, "--nocapture"]).env(CHILD, "1").output();
    let child = child.expect("the test binary can be run");
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(child.status.signal(), Some(libc::SIGABRT), "{:?}", child.status);
    let stderr = String::from_utf8_lossy(&child.stderr);
    assert!(stderr.contains("pm-shard-1") && stderr.contains("a planted defect of the core"), "{stderr}");
}
