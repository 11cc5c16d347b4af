//! One pump, turned by hand, and the client's end of real rings.

use std::sync::Arc;

use payload_local::entry::{Completion as Answer, Outcome, Submission};
use payload_local::layout::{ENTRY_WORDS, RING_ENTRIES};
use payload_local::ring::ClientRings;
use payload_local::text;
use payload_types::{
    Epoch, ErrorKind, LeaseId, LeaseNonce, NamespaceId, Peer, PromotionPolicy, SessionId, Tier,
};

use super::*;
use crate::session::{Identity, NodePage, Session, SessionNote};
use crate::sys::poll::Bell;

/// A session, and its client's end of shard 0's rings.
struct Client {
    session: Arc<Session>,
    rings: ClientRings,
}

const SHARD: ShardIndex = ShardIndex(0);

fn delete() -> Submission {
    Submission::Delete { id: KEY.id, force: false, expected_version: None }
}

/// The core never answers it.
fn promote() -> Submission {
    Submission::Promote {
        id: KEY.id,
        target: Tier::Ram,
        policy: PromotionPolicy::Blocking,
        expected_version: None,
        deadline_ms: 5,
    }
}

/// Answered when its storage op is done.
fn release() -> Submission {
    Submission::Release { lease: LeaseId::new(SHARD, 0, LeaseNonce([0; 10])) }
}

impl Client {
    fn attach(node: &Node, number: u32) -> Self {
        let page = Arc::new(NodePage::make(Epoch(1), 7).expect("a page"));
        let id = SessionId::new(number).expect("not 0");
        let identity = Identity {
            direct: false,
            arenas: false,
            id,
            slot: number as u16,
            peer: Peer::native(1, 2, id),
            namespace: NamespaceId::DEFAULT,
        };
        let bell = Arc::new(Bell::new().expect("an eventfd"));
        let (session, _) = Session::make(identity, 1, page, bell).expect("memory");
        let session = Arc::new(session);
        node.shared.boxes[0].tell(SessionNote::Attach(Arc::clone(&session)));
        Self { session, rings: ClientRings::new() }
    }

    fn submit(&mut self, submission: &Submission, tag: u32) -> bool {
        let (contents, completions) = (submission.encode(tag), submission.completions());
        self.rings.submit(&self.session.rings(SHARD), &contents, completions)
    }

    fn take(&mut self) -> Option<(u64, Answer)> {
        let (position, contents) = self.rings.take(&self.session.rings(SHARD), |_| 1)?;
        Some((position, Answer::decode(&contents).expect("this server speaks this version")))
    }

    fn tags(&mut self) -> Vec<u32> {
        std::iter::from_fn(|| self.take()).map(|(_, answer)| answer.tag).collect()
    }

    fn close(&self, node: &Node) {
        node.shared.boxes[0].tell(SessionNote::Close(self.session.identity.id));
    }

    /// True when the shard has let go of it.
    fn is_alone(&self) -> bool {
        Arc::strong_count(&self.session) == 1
    }
}

fn closed(node: &Node) -> usize {
    let closed = |event: &&Event| matches!(event, Event::SessionClosed { .. });
    node.pumps[0].core.seen.iter().filter(closed).count()
}

fn requests(node: &Node) -> usize {
    let request = |event: &&Event| matches!(event, Event::Request { .. });
    node.pumps[0].core.seen.iter().filter(request).count()
}

#[test]
fn given_a_session_when_its_client_asks_then_it_is_answered_by_its_tag() {
    let mut node = Node::new(1);
    let mut client = Client::attach(&node, 1);
    assert!(node.pumps[0].has_work());
    assert_eq!(node.turn(0, 1), NextWake::Idle);
    assert!(!node.pumps[0].has_work());
    assert!(client.submit(&delete(), 7) && client.submit(&release(), 8));
    assert!(node.pumps[0].has_work());
    assert_eq!(node.turn(0, 2), NextWake::Idle);
    assert_eq!(client.tags(), [7]);
    let (storage, _) = node.ports.taken();
    node.handle.complete(SHARD, synced(storage[0].op));
    node.turn(0, 3);
    let (_, answer) = client.take().expect("answered");
    assert_eq!((answer.tag, answer.outcome, answer.is_last), (8, Outcome::Done, true));
    assert_eq!(node.pumps[0].handled().completions, 1);
}

#[test]
fn given_sessions_and_a_lane_that_flood_when_turned_then_all_get_their_share_of_every_turn() {
    let mut node = Node::new(1);
    let mut clients: Vec<Client> = (1..=4).map(|number| Client::attach(&node, number)).collect();
    for client in &mut clients {
        (0..100).for_each(|tag| assert!(client.submit(&delete(), tag)));
    }
    (0..200).for_each(|_| node.send(0, Request::Stats));
    for turn in 1..=4 {
        assert_eq!(node.turn(0, turn), NextWake::Now);
        assert_eq!(node.pumps[0].handled().requests, limits::REQUESTS_PER_TURN_MAX as u32);
    }
    let taken: Vec<usize> = clients.iter_mut().map(|client| client.tags().len()).collect();
    // Two sessions a turn, then the two others: 32 for rings and 32 for the lane.
    assert_eq!((taken, node.answered()), (vec![32; 4], (128, 0)));
}

#[test]
fn given_every_reply_slot_taken_when_rings_ask_then_their_entries_stay_until_one_is_answered() {
    let mut node = Node::new(1);
    let mut client = Client::attach(&node, 1);
    node.turn(0, 1);
    node.send(0, crate::fake::release());
    for _ in 1..limits::REQUESTS_PER_SHARD_MAX {
        node.send(0, Request::Prefetch { key: KEY, target: Tier::Ram });
        node.turn(0, 1);
    }
    assert!(client.submit(&delete(), 1));
    assert_eq!(node.turn(0, 2), NextWake::Idle, "nothing can be done until something completes");
    assert_eq!(client.tags(), [0_u32; 0]);
    let (storage, _) = node.ports.taken();
    node.handle.complete(SHARD, synced(storage[0].op));
    node.turn(0, 3);
    assert_eq!(client.tags(), [1]);
}

#[test]
fn given_a_client_that_takes_no_completions_when_its_ring_is_full_then_it_waits_and_others_do_not() {
    let mut node = Node::new(1);
    let (mut deaf, mut other) = (Client::attach(&node, 1), Client::attach(&node, 2));
    let session = Arc::clone(&deaf.session);
    let view = session.rings(SHARD);
    // It does not count what is owed to it.
    let mut submit = |tag| assert!(deaf.rings.submit(&view, &delete().encode(tag), 0));
    (0..RING_ENTRIES as u32).for_each(&mut submit);
    let turns = RING_ENTRIES as u64 / ENTRIES_PER_SESSION_MAX as u64;
    (1..=turns).for_each(|at| assert_ne!(node.turn(0, at), NextWake::Stop));
    assert_eq!(requests(&node), RING_ENTRIES);
    submit(999);
    assert!(!node.pumps[0].has_work(), "no room for an answer: it keeps nobody awake");
    assert!(other.submit(&delete(), 5));
    assert_eq!(node.turn(0, 50), NextWake::Idle);
    assert_eq!(other.tags(), [5]);
    assert_eq!(requests(&node), RING_ENTRIES + 1);
    assert_eq!(deaf.tags().len(), RING_ENTRIES);
    deaf.rings.publish_taken(&view);
    assert_eq!(node.turn(0, 51), NextWake::Idle);
    assert_eq!(deaf.tags(), [999]);
}

#[test]
fn given_entries_that_are_none_when_taken_then_each_is_refused_with_its_reason_and_too_many_end_the_session()
{
    let mut node = Node::new(1);
    let (mut client, mut other) = (Client::attach(&node, 1), Client::attach(&node, 2));
    let mut contents = delete().encode(3);
    contents[0] |= 0x7F;
    let mut now_ms = 0;
    for number in 1..=256 {
        assert!(client.session.fault().is_none(), "after {number}");
        assert!(client.rings.submit(&client.session.rings(SHARD), &contents, 1));
        now_ms += 1;
        node.turn(0, now_ms);
        let (position, answer) = client.take().expect("answered");
        let text = text::read(client.session.rings(SHARD).texts, position).expect("a sentence");
        assert!(text.contains("is not known"), "{text}");
        let refused = Outcome::Refused { kind: ErrorKind::InvalidArgument, has_text: true };
        assert_eq!((answer.tag, answer.outcome), (3, refused));
    }
    assert!(client.session.fault().is_some_and(|fault| fault.contains("no submissions")));
    assert!(client.submit(&delete(), 4) && other.submit(&delete(), 5));
    node.turn(0, now_ms + 1);
    assert_eq!((client.tags(), other.tags()), (vec![], vec![5]));
    assert!(!node.pumps[0].has_work(), "what it submits keeps nobody awake");
}

#[test]
fn given_payloads_of_other_shards_when_asked_for_then_the_ring_to_use_is_named() {
    let mut node = Node::new(1);
    let mut client = Client::attach(&node, 1);
    let foreign = Submission::Release { lease: LeaseId::new(ShardIndex(3), 0, LeaseNonce([0; 10])) };
    assert!(client.submit(&foreign, 1));
    node.turn(0, 1);
    let (position, answer) = client.take().expect("answered");
    assert!(matches!(answer.outcome, Outcome::Refused { kind: ErrorKind::InvalidArgument, .. }));
    let text = text::read(client.session.rings(SHARD).texts, position).expect("a sentence");
    assert!(text.contains("belongs to shard 3"), "{text}");
    assert_eq!(requests(&node), 0);
    assert!(client.session.fault().is_none(), "an honest client may be mistaken");
}

#[test]
fn given_counters_that_cannot_be_when_looked_at_then_the_session_ends_with_that_reason() {
    let mut node = Node::new(1);
    let mut client = Client::attach(&node, 1);
    let view = client.session.rings(SHARD);
    view.completions_taken.store(u64::MAX, Ordering::Relaxed);
    let turns = RING_ENTRIES as u64 / ENTRIES_PER_SESSION_MAX as u64;
    (0..RING_ENTRIES as u32).for_each(|tag| assert!(client.rings.submit(&view, &delete().encode(tag), 0)));
    view.completions_taken.store(u64::MAX, Ordering::Relaxed);
    (1..=turns).for_each(|at| assert_ne!(node.turn(0, at), NextWake::Stop));
    assert!(client.session.fault().is_none(), "its counter was not needed yet");
    assert!(client.rings.submit(&view, &delete().encode(9), 0));
    view.completions_taken.store(u64::MAX, Ordering::Relaxed);
    node.turn(0, 100);
    assert!(client.session.fault().is_some_and(|fault| fault.contains("not possible")));
    assert!(!node.pumps[0].has_work());
}

#[test]
fn given_random_words_in_a_ring_when_turned_then_the_pump_goes_on() {
    let mut node = Node::new(1);
    let (client, mut other) = (Client::attach(&node, 1), Client::attach(&node, 2));
    let view = client.session.rings(SHARD);
    let mut random = 0x9E37_79B9_7F4A_7C15_u64;
    for at in 1..200 {
        for (index, word) in view.submissions.iter().enumerate() {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            // Now and then a sequence that fits.
            let is_head = index % ENTRY_WORDS == 0;
            word.store(if is_head { random % 600 } else { random }, Ordering::Relaxed);
        }
        view.completions_taken.store(random % 300, Ordering::Relaxed);
        assert!(other.submit(&delete(), at));
        assert_ne!(node.turn(0, u64::from(at)), NextWake::Stop);
        assert_eq!(other.tags(), [at]);
    }
}

#[test]
fn given_a_session_that_closes_when_requests_are_out_then_it_is_let_go_of_after_the_last_answer() {
    let mut node = Node::new(1);
    let (mut client, mut idle) = (Client::attach(&node, 1), Client::attach(&node, 2));
    assert!(client.submit(&release(), 1) && client.submit(&release(), 2));
    node.turn(0, 1);
    assert!(client.submit(&delete(), 3) && idle.submit(&delete(), 4));
    client.close(&node);
    idle.close(&node);
    node.turn(0, 2);
    assert_eq!(
        (closed(&node), requests(&node)),
        (2, 2),
        "what it held is given back at once, nothing is taken"
    );
    assert!(idle.is_alone() && !client.is_alone());
    assert_eq!(idle.tags(), [0_u32; 0]);
    let (storage, _) = node.ports.taken();
    node.handle.complete(SHARD, synced(storage[0].op));
    node.turn(0, 3);
    assert_eq!((closed(&node), client.is_alone()), (2, false));
    node.handle.complete(SHARD, synced(storage[1].op));
    node.turn(0, 4);
    assert_eq!((closed(&node), client.is_alone()), (3, true), "what was granted meanwhile goes, too");
    assert_eq!(client.tags(), [1, 2], "answered: it may still look");
    // Its slot can be taken again.
    let mut next = Client::attach(&node, 1);
    assert!(next.submit(&delete(), 5));
    node.turn(0, 5);
    assert_eq!(next.tags(), [5]);
}

#[test]
fn given_a_closing_reactor_when_rings_ask_then_they_are_told_that_it_stops_and_its_end_answers_the_rest() {
    let mut node = Node::new(1);
    let mut client = Client::attach(&node, 1);
    assert!(client.submit(&promote(), 1));
    node.turn(0, 1);
    node.shared.enter(Phase::Closing);
    assert!(client.submit(&delete(), 2));
    node.turn(0, 2);
    let unavailable = Outcome::Refused { kind: ErrorKind::Unavailable, has_text: true };
    let (_, answer) = client.take().expect("answered");
    assert_eq!((answer.tag, answer.outcome), (2, unavailable));
    node.shared.enter(Phase::Stopping);
    assert_eq!(node.turn(0, 3), NextWake::Stop);
    let unfinished = node.pumps.remove(0).close();
    assert_eq!(unfinished, Unfinished { requests: 1, ops: 0 });
    let (_, answer) = client.take().expect("answered");
    assert_eq!((answer.tag, answer.outcome), (1, unavailable));
    assert!(client.is_alone());
}
