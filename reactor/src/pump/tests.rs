//! One pump, or two, turned by hand, with virtual time.

use std::sync::Mutex;

use payload_types::reply::ReplyResult;
use payload_types::request::Request;
use payload_types::{ByteCount, ErrorKind, Generation, OpId, Peer, Tier, WallMs};

use super::*;
use crate::fake::{FakeCore, FakePorts, KEY, generous_arbiter, release, stored, synced};
use crate::mailbox::{Envelope, Mailboxes, ReactorHandle};

#[path = "rings_tests.rs"]
mod rings;

type Answers = Arc<Mutex<Vec<ReplyResult>>>;

struct Node {
    pumps: Vec<Pump<FakeCore>>,
    handle: ReactorHandle,
    shared: Arc<Shared>,
    ports: Arc<FakePorts>,
    answers: Answers,
}

impl Node {
    fn new(shards: u16) -> Self {
        let mailboxes = Mailboxes::new(shards);
        let (handle, shared) = (mailboxes.handle(), mailboxes.0);
        let ports = Arc::new(FakePorts::default());
        let pump = |shard| {
            let arbiter = (shard == 0).then(|| Box::new(generous_arbiter) as ArbiterStep);
            Pump::new(FakeCore::new(shard), ShardIndex(shard), shared.clone(), ports.clone(), arbiter)
        };
        let pumps = (0..shards).map(pump).collect();
        Self { pumps, handle, shared, ports, answers: Answers::default() }
    }

    fn send(&self, shard: u16, request: Request) {
        let answers = self.answers.clone();
        let reply = Box::new(move |result| answers.lock().expect("single-threaded").push(result));
        let sent = self.handle.submit(ShardIndex(shard), Envelope { request, deadline: None, reply });
        assert!(sent.is_ok(), "the lane is full");
    }

    fn turn(&mut self, shard: usize, at_ms: u64) -> NextWake {
        self.pumps[shard].turn(at(at_ms))
    }

    /// (answered with success, answered UNAVAILABLE)
    fn answered(&self) -> (usize, usize) {
        let answers = self.answers.lock().expect("single-threaded");
        let refused =
            |answer: &&ReplyResult| answer.as_ref().is_err_and(|error| error.kind == ErrorKind::Unavailable);
        let refused = answers.iter().filter(refused).count();
        (answers.len() - refused, refused)
    }
}

fn at(milliseconds: u64) -> Now {
    Now {
        monotonic: Monotonic(0).plus_millis(milliseconds),
        wall: WallMs::from_millis(1_700_000_000_000 + milliseconds),
    }
}

fn freed(number: u64) -> Completion {
    Completion::Storage(StorageDone::Freed { tier: Tier::Ram, generation: Generation(number) })
}

#[test]
fn given_nothing_to_do_when_turned_then_it_may_sleep_until_rung() {
    let mut node = Node::new(1);
    assert_eq!(node.turn(0, 1), NextWake::Idle);
    assert_eq!(node.pumps[0].handled().total(), 0);
    assert!(!node.pumps[0].has_work());
    node.send(0, Request::Stats);
    assert!(node.pumps[0].has_work());
}

#[test]
fn given_a_flood_of_requests_when_completions_come_then_they_are_handled_first() {
    let mut node = Node::new(1);
    (0..limits::REQUEST_LANE_LEN).for_each(|_| node.send(0, Request::Stats));
    (0..10).for_each(|number| node.handle.complete(ShardIndex(0), freed(number)));
    assert_eq!(node.turn(0, 1), NextWake::Now);
    let seen = &node.pumps[0].core.seen;
    assert_eq!(seen.len(), 10 + limits::REQUESTS_PER_TURN_MAX);
    assert!(seen[..10].iter().all(|event| matches!(event, Event::Completion(_))));
    assert_eq!(node.answered(), (limits::REQUESTS_PER_TURN_MAX, 0));
}

#[test]
fn given_a_flood_of_completions_when_requests_wait_then_both_get_their_share_of_a_turn() {
    let mut node = Node::new(1);
    (0..1000).for_each(|number| node.handle.complete(ShardIndex(0), freed(number)));
    (0..100).for_each(|_| node.send(0, Request::Stats));
    assert_eq!(node.turn(0, 1), NextWake::Now);
    let expected = Handled { completions: 64, requests: 64, ..Handled::default() };
    assert_eq!(node.pumps[0].handled(), expected);
}

#[test]
fn given_a_timer_when_its_moment_comes_then_it_fires_once() {
    let mut node = Node::new(1);
    node.pumps[0].core.timer = Some(at(50).monotonic);
    assert_eq!(node.turn(0, 10), NextWake::At(at(50).monotonic));
    assert_eq!(node.pumps[0].core.seen, []);
    assert_eq!(node.turn(0, 50), NextWake::Idle);
    assert_eq!(node.pumps[0].core.seen, [Event::Timer]);
}

#[test]
fn given_a_port_that_refuses_when_it_has_room_again_then_order_is_kept_and_requests_waited() {
    let mut node = Node::new(1);
    node.ports.refuses.store(true, Ordering::SeqCst);
    node.send(0, Request::Resolve { key: KEY });
    node.turn(0, 1);
    // The op is kept. Two more requests wait in their lane; a completion does not, though it makes an op, too.
    node.send(0, Request::Resolve { key: KEY });
    node.send(0, Request::Stats);
    node.handle.complete(ShardIndex(0), freed(1));
    assert_eq!(node.turn(0, 2), NextWake::At(at(3).monotonic), "no spinning: again in 1 ms");
    assert_eq!(node.pumps[0].handled(), Handled { completions: 1, ..Handled::default() });
    assert!(!node.pumps[0].has_work());
    node.ports.refuses.store(false, Ordering::SeqCst);
    assert_eq!(node.turn(0, 3), NextWake::Idle);
    let (_, catalog) = node.ports.taken();
    assert_eq!(catalog.iter().map(|op| op.op.index).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(node.answered(), (1, 0));
    catalog.iter().for_each(|op| node.handle.complete(ShardIndex(0), stored(op.op)));
    node.turn(0, 4);
    assert_eq!(node.answered(), (3, 0));
}

#[test]
fn given_every_reply_slot_taken_when_more_requests_wait_then_they_stay_until_one_is_answered() {
    let mut node = Node::new(1);
    node.send(0, release());
    node.turn(0, 1);
    for _ in 1..limits::REQUESTS_PER_SHARD_MAX {
        node.send(0, Request::Prefetch { key: KEY, target: Tier::Ram });
        node.turn(0, 1);
    }
    node.send(0, Request::Stats);
    assert_eq!(node.turn(0, 2), NextWake::Idle, "nothing can be done until something completes");
    assert_eq!(node.answered(), (0, 0));
    let (storage, _) = node.ports.taken();
    node.handle.complete(ShardIndex(0), synced(storage[0].op));
    assert_eq!(node.turn(0, 3), NextWake::Idle);
    assert_eq!(node.answered(), (2, 0));
}

#[test]
fn given_shards_that_ask_for_budget_when_shard_0_turns_then_each_gets_its_own_answer() {
    let mut node = Node::new(3);
    for shard in 0..3 {
        node.send(shard, Request::Pin { key: KEY, duration_ms: None, owner: Peer::UNKNOWN });
        node.send(shard, Request::Unpin { key: KEY });
    }
    for shard in [1, 2] {
        assert_eq!(node.turn(shard, 1), NextWake::Idle);
    }
    // Shard 0 arbitrates what the others sent, then takes its own requests, whose ask is for the next turn.
    assert_eq!(node.turn(0, 1), NextWake::Now);
    assert_eq!(node.pumps[0].handled().budget_requests, 4);
    assert!(node.pumps[1].has_work() && node.pumps[2].has_work());
    assert_eq!(node.turn(0, 2), NextWake::Now);
    for shard in [0, 1, 2] {
        assert_eq!(node.turn(shard, 3), NextWake::Idle);
        let grant = |event: &Event| {
            matches!(
                event,
                Event::Completion(Completion::Budget(BudgetReply::Granted { bytes: ByteCount(1), .. }))
            )
        };
        assert_eq!(node.pumps[shard].core.seen.iter().filter(|event| grant(event)).count(), 1);
    }
    assert_eq!(node.answered(), (6, 0));
}

#[test]
fn given_a_full_budget_lane_when_shards_go_on_asking_then_every_ask_is_answered() {
    let mut node = Node::new(2);
    for _ in 0..300 {
        node.send(1, Request::Pin { key: KEY, duration_ms: None, owner: Peer::UNKNOWN });
        node.turn(1, 1);
    }
    let mut now_ms = 1;
    while node.answered() != (300, 0) {
        now_ms += 1;
        node.turn(0, now_ms);
        node.turn(1, now_ms);
        assert!(now_ms < 100, "{:?} after {now_ms} turns", node.answered());
    }
}

#[test]
fn given_a_closing_reactor_when_turned_then_work_in_flight_ends_and_everybody_is_answered_once() {
    let mut node = Node::new(1);
    node.pumps[0].core.timer = Some(at(1).monotonic);
    node.send(0, release());
    node.send(0, release());
    node.send(0, Request::Prefetch { key: KEY, target: Tier::Ram });
    node.turn(0, 0);
    node.send(0, Request::Stats);
    node.shared.enter(Phase::Closing);
    node.send(0, Request::Stats);
    assert!(node.pumps[0].has_work(), "the phase is news");
    assert_eq!(node.turn(0, 5), NextWake::Idle, "no timer fires any more");
    assert_eq!(node.answered(), (0, 2), "one waited in its lane, one came later");
    let drained = |node: &Node| node.shared.boxes[0].drained.load(Ordering::SeqCst);
    assert!(!drained(&node), "two ops are in flight");
    let (storage, _) = node.ports.taken();
    node.handle.complete(ShardIndex(0), synced(storage[0].op));
    node.turn(0, 6);
    assert!(!drained(&node));
    node.handle.complete(ShardIndex(0), synced(storage[1].op));
    node.turn(0, 7);
    assert!(drained(&node));
    assert_eq!(node.answered(), (2, 2));
    node.shared.enter(Phase::Stopping);
    assert_eq!(node.turn(0, 8), NextWake::Stop);
    let unfinished = node.pumps.pop().expect("one").close();
    assert_eq!(unfinished, Unfinished { requests: 1, ops: 0 });
    node.send(0, Request::Stats);
    assert_eq!(node.answered(), (2, 4));
}

#[test]
fn given_a_late_freed_notice_when_closing_then_it_is_not_taken_for_an_op() {
    let mut node = Node::new(1);
    node.send(0, release());
    node.turn(0, 0);
    node.shared.enter(Phase::Closing);
    node.handle.complete(ShardIndex(0), freed(7));
    node.turn(0, 1);
    assert!(!node.shared.boxes[0].drained.load(Ordering::SeqCst));
    node.handle.complete(ShardIndex(0), synced(OpId { index: 0, generation: 1 }));
    node.turn(0, 2);
    assert!(node.shared.boxes[0].drained.load(Ordering::SeqCst));
}

#[test]
fn given_work_that_a_step_left_over_when_closing_then_it_is_still_done() {
    let mut node = Node::new(1);
    node.turn(0, 1);
    node.shared.enter(Phase::Closing);
    node.pumps[0].core.timer = Some(Monotonic(0));
    node.turn(0, 2);
    assert_eq!(node.pumps[0].core.seen, [Event::Timer]);
    assert!(node.shared.boxes[0].drained.load(Ordering::SeqCst));
}

#[test]
fn given_word_of_what_is_durable_when_more_comes_before_a_turn_then_the_shard_hears_the_newest_once() {
    let mut node = Node::new(2);
    let durable = |sequence| Completion::Durable { sequence };
    assert_eq!(node.turn(1, 1), NextWake::Idle);
    for sequence in [4, 9, 7] {
        node.handle.complete(ShardIndex(1), durable(sequence));
    }
    assert!(node.pumps[1].has_work() && !node.pumps[0].has_work());
    assert_eq!(node.turn(1, 2), NextWake::Idle);
    assert_eq!(node.pumps[1].core.seen, [Event::Completion(durable(9))]);
    node.handle.complete(ShardIndex(1), durable(9));
    assert!(!node.pumps[1].has_work(), "nothing new");
    // It takes no place among the completions.
    (0..)
        .map(freed)
        .take_while(|_| node.shared.boxes[1].done.len() < node.shared.boxes[1].done.capacity())
        .for_each(|freed| node.handle.complete(ShardIndex(1), freed));
    node.handle.complete(ShardIndex(1), durable(10));
    node.turn(1, 3);
    assert_eq!(node.pumps[1].core.seen[1], Event::Completion(durable(10)));
}
