//! The shipped rings, sleeps and texts over the model checker's atomics: every interleaving and every stale value that
//! the memory model allows, within a bound on preemptions. Each model also runs with an ordering taken away, and must
//! then find what goes wrong: a model that cannot fail says nothing.

use std::panic::{AssertUnwindSafe, catch_unwind};
// Plain: a model that fails is unwound where there is no model any more.
use std::sync::Arc;
use std::sync::atomic::Ordering;

use loom::sync::atomic::{self, AtomicU64};
use loom::sync::{Condvar, Mutex, Notify};
use payload_local::layout::{ENTRY_WORDS, ShardView, TEXT_SLOT_WORDS, WakeLine};
use payload_local::ring::{ClientRings, ServerRings};
use payload_local::{Word, text, wake};

/// Nothing is taken away.
const AS_SHIPPED: u8 = 0;
/// Release stores are Relaxed ones.
const NO_RELEASE: u8 = 1;
/// Acquire loads are Relaxed ones.
const NO_ACQUIRE: u8 = 2;
/// Fences do nothing.
const NO_FENCE: u8 = 3;
/// Full fences only order what an acquire and a release do.
const WEAK_FENCE: u8 = 4;

/// The futex of the client's sleep is read without Acquire.
const EARLY_WAKE: u8 = 5;

/// A model's atomic with one ordering taken away.
struct Model<const BUG: u8> {
    word: AtomicU64,
    is_futex: bool,
}

impl<const BUG: u8> Model<BUG> {
    fn new(is_futex: bool) -> Self {
        Self { word: AtomicU64::new(0), is_futex }
    }
}

impl<const BUG: u8> Word for Model<BUG> {
    fn load(&self, ordering: Ordering) -> u64 {
        let is_weak = BUG == NO_ACQUIRE || BUG == EARLY_WAKE && self.is_futex;
        self.word.load(if is_weak { Ordering::Relaxed } else { ordering })
    }

    fn store(&self, value: u64, ordering: Ordering) {
        self.word.store(value, if BUG == NO_RELEASE { Ordering::Relaxed } else { ordering });
    }

    fn fetch_add(&self, value: u64, ordering: Ordering) -> u64 {
        self.word.fetch_add(value, if BUG == NO_RELEASE { Ordering::Relaxed } else { ordering })
    }

    fn fence(ordering: Ordering) {
        match BUG {
            NO_FENCE => {}
            WEAK_FENCE if ordering == Ordering::SeqCst => atomic::fence(Ordering::AcqRel),
            _ => atomic::fence(ordering),
        }
    }
}

/// Where the futex is in [`Memory`].
const WAKE: usize = 3;

/// One shard's part of a session, with rings as small as the model wants them.
struct Memory<const BUG: u8> {
    lines: Vec<Model<BUG>>,
    submissions: Vec<Model<BUG>>,
    completions: Vec<Model<BUG>>,
    texts: Vec<Model<BUG>>,
}

impl<const BUG: u8> Memory<BUG> {
    fn new(entries: usize) -> Self {
        let words = |count| (0..count).map(|_| Model::new(false)).collect();
        let lines = (0..6).map(|line| Model::new(line == WAKE)).collect();
        let ring = entries * ENTRY_WORDS;
        Self { lines, submissions: words(ring), completions: words(ring), texts: Vec::new() }
    }

    fn view(&self) -> ShardView<'_, Model<BUG>> {
        ShardView {
            completions_taken: &self.lines[0],
            submissions_taken: &self.lines[1],
            submissions: &self.submissions,
            completions: &self.completions,
            texts: &self.texts,
        }
    }

    fn wake_line(&self) -> WakeLine<'_, Model<BUG>> {
        WakeLine { waiting: &self.lines[2], wake: &self.lines[WAKE], client_closed: &self.lines[4] }
    }

    fn sleeping(&self) -> &Model<BUG> {
        &self.lines[5]
    }
}

fn explore(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

/// Runs a model that must go wrong.
fn must_find(what: &str, model: impl FnOnce()) {
    assert!(catch_unwind(AssertUnwindSafe(model)).is_err(), "the model does not notice {what}");
}

/// A client asks `asks` times over rings of `entries`, as many at a time as fit; the server echoes. Every word that
/// arrives is the one that was sent, in order, though entries are written over.
fn echo<const BUG: u8>(entries: usize, asks: u64) {
    explore(2, move || {
        let memory = Arc::new(Memory::<BUG>::new(entries));
        let server = loom::thread::spawn({
            let memory = Arc::clone(&memory);
            move || {
                let (view, mut rings) = (memory.view(), ServerRings::new());
                let mut expected = 0;
                while expected < asks {
                    match rings.take(&view, |_| 1).expect("possible counters") {
                        Some(contents) => {
                            assert_eq!(contents, [expected + 1; 7], "the server read something else");
                            rings.post(&view, &contents, None);
                            expected += 1;
                        }
                        None => loom::thread::yield_now(),
                    }
                }
            }
        });
        let (view, mut rings) = (memory.view(), ClientRings::new());
        let (mut sent, mut expected) = (0, 0);
        while expected < asks {
            let mut is_idle = true;
            if sent < asks && rings.submit(&view, &[sent + 1; 7], 1) {
                (sent, is_idle) = (sent + 1, false);
            }
            if let Some((position, contents)) = rings.take(&view, |_| 1) {
                assert_eq!(
                    (position, contents),
                    (expected, [expected + 1; 7]),
                    "the client read something else"
                );
                (expected, is_idle) = (expected + 1, false);
            }
            if is_idle {
                loom::thread::yield_now();
            }
        }
        server.join().expect("the server is done");
    });
}

#[test]
fn given_small_rings_when_they_wrap_around_then_every_entry_arrives_whole_and_in_order() {
    echo::<AS_SHIPPED>(1, 2);
    echo::<AS_SHIPPED>(2, 3);
    must_find("entries published without Release", || echo::<NO_RELEASE>(1, 2));
    must_find("entries read without Acquire", || echo::<NO_ACQUIRE>(1, 2));
}

/// The server sleeps until its bell rings; a client submits once.
fn server_sleeps<const BUG: u8>() {
    explore(3, || {
        let memory = Arc::new(Memory::<BUG>::new(1));
        let bell = Arc::new(Notify::new());
        let client = loom::thread::spawn({
            let (memory, bell) = (Arc::clone(&memory), Arc::clone(&bell));
            move || {
                assert!(ClientRings::new().submit(&memory.view(), &[1; 7], 1));
                if wake::must_ring(memory.sleeping()) {
                    bell.notify();
                }
            }
        });
        let (view, mut rings) = (memory.view(), ServerRings::new());
        while rings.take(&view, |_| 1).expect("possible counters").is_none() {
            wake::server_doze(memory.sleeping());
            if !rings.is_ready(&view).expect("possible counters") {
                // Nobody else runs any more when a wake is lost: the model calls that a deadlock.
                bell.wait();
            }
            wake::server_rise(memory.sleeping());
        }
        client.join().expect("the client is done");
    });
}

#[test]
fn given_a_server_that_goes_to_sleep_when_a_client_submits_then_it_wakes_up() {
    server_sleeps::<AS_SHIPPED>();
    must_find("missing fences", server_sleeps::<NO_FENCE>);
    must_find("fences that are too weak", server_sleeps::<WEAK_FENCE>);
}

/// FUTEX_WAIT and FUTEX_WAKE on the wake word: the kernel compares under the lock under which it wakes.
#[derive(Default)]
struct Futex {
    lock: Mutex<()>,
    sleepers: Condvar,
}

impl Futex {
    fn wait<const BUG: u8>(&self, word: &Model<BUG>, seen: u32) {
        let held = self.lock.lock().expect("nobody panics under it");
        if word.word.load(Ordering::SeqCst) as u32 == seen {
            drop(self.sleepers.wait(held).expect("nobody panics under it"));
        }
    }

    fn wake(&self) {
        let _held = self.lock.lock().expect("nobody panics under it");
        self.sleepers.notify_all();
    }
}

/// A client sleeps until it is woken; the server answers `answers` times, a turn each.
fn client_sleeps<const BUG: u8>(answers: u64) {
    explore(3, move || {
        let memory = Arc::new(Memory::<BUG>::new(2));
        let futex = Arc::new(Futex::default());
        let (view, mut rings) = (memory.view(), ClientRings::new());
        let mut server_rings = ServerRings::new();
        for ask in 0..answers {
            assert!(rings.submit(&view, &[ask; 7], 1));
            assert!(server_rings.take(&view, |_| 1).expect("possible").is_some());
        }
        let server = loom::thread::spawn({
            let (memory, futex) = (Arc::clone(&memory), Arc::clone(&futex));
            move || {
                for answer in 0..answers {
                    server_rings.post(&memory.view(), &[answer; 7], None);
                    if wake::must_wake(&memory.wake_line()) {
                        futex.wake();
                    }
                }
            }
        });
        let line = memory.wake_line();
        let mut taken = 0;
        while taken < answers {
            if let Some((_, contents)) = rings.take(&view, |_| 1) {
                assert_eq!(contents, [taken; 7]);
                taken += 1;
                continue;
            }
            let seen = wake::client_doze(&line);
            if !rings.has_completion(&view) {
                futex.wait(line.wake, seen);
            }
            wake::client_rise(&line);
        }
        server.join().expect("the server is done");
    });
}

#[test]
fn given_a_client_that_goes_to_sleep_when_the_server_answers_then_it_wakes_up() {
    client_sleeps::<AS_SHIPPED>(1);
    client_sleeps::<AS_SHIPPED>(2);
    must_find("missing fences", || client_sleeps::<NO_FENCE>(1));
    must_find("fences that are too weak", || client_sleeps::<WEAK_FENCE>(1));
    must_find("a wake seen before what it is for", || client_sleeps::<EARLY_WAKE>(1));
}

/// The server writes a second sentence over the first while the client reads.
fn sentence_is_overwritten<const BUG: u8>() {
    explore(3, || {
        let words: Vec<Model<BUG>> = (0..TEXT_SLOT_WORDS).map(|_| Model::new(false)).collect();
        let words = Arc::new(words);
        text::write(&words, 0, "one bites.......");
        let server = loom::thread::spawn({
            let words = Arc::clone(&words);
            move || text::write(&words, 1, "the other barks.")
        });
        match text::read(&words, 0).as_deref() {
            None | Some("one bites.......") => {}
            Some(other) => panic!("`{other}` was never written"),
        }
        match text::read(&words, 1).as_deref() {
            None | Some("the other barks.") => {}
            Some(other) => panic!("`{other}` was never written"),
        }
        server.join().expect("the server is done");
    });
}

#[test]
fn given_a_sentence_that_is_written_over_when_read_then_it_is_whole_or_none() {
    sentence_is_overwritten::<AS_SHIPPED>();
    must_find("missing fences", sentence_is_overwritten::<NO_FENCE>);
    must_find("a slot published without Release", sentence_is_overwritten::<NO_RELEASE>);
    must_find("a slot read without Acquire", sentence_is_overwritten::<NO_ACQUIRE>);
}
