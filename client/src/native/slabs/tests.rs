//! What a session does with frames of slabs, against a server that is played here: the other end of its socket.

use std::thread;

use payload_types::ByteCount;

use super::*;

const BYTES: u64 = 65_536;

fn slab(number: u32) -> SlabId {
    SlabId::new(number).expect("not 0")
}

fn memory() -> OwnedFd {
    let file = tempfile::tempfile().expect("a file");
    file.set_len(BYTES).expect("grown");
    file.into()
}

fn pair() -> (Arc<Slabs>, Socket) {
    let (own, server) = Socket::pair().expect("a pair");
    (Slabs::new(own, Bell::new().expect("an eventfd")), server)
}

fn act(slabs: &Slabs, frame: &ServerFrame, descriptors: Vec<OwnedFd>) -> Result<(), String> {
    slabs.act(Message { bytes: frame.encode(), descriptors })
}

fn offer(slabs: &Slabs, number: u32) {
    let bytes = ByteCount(BYTES);
    let offered = ServerFrame::SlabOffered { slab: slab(number), isolated: false, large_pages: false, bytes };
    act(slabs, &offered, vec![memory()]).expect("taken");
}

fn asked(server: &Socket) -> ClientFrame {
    ClientFrame::decode(&server.receive().expect("asked").bytes).expect("a frame")
}

#[test]
fn given_an_offer_when_it_comes_then_it_is_mapped_answered_and_written_to() {
    let (slabs, server) = pair();
    offer(&slabs, 3);
    assert_eq!(asked(&server), ClientFrame::SlabMapped { slab: slab(3) });
    let mut block = slabs.to_write(slab(3), 64, 5).expect("offered");
    block.bytes_mut().copy_from_slice(b"hello");
    assert_eq!(slabs.to_read(slab(3), 64, 5).expect("known").bytes(), b"hello");
    assert!(slabs.to_write(slab(3), BYTES, 1).is_err(), "it has no such bytes");
    assert!(matches!(slabs.to_write(slab(4), 0, 1), Err(ClientError::Contract(_))), "never offered");
}

#[test]
fn given_a_slab_that_is_closed_when_a_lease_has_it_still_then_forgotten_and_readable() {
    let (slabs, _server) = pair();
    offer(&slabs, 3);
    slabs.to_write(slab(3), 0, 3).expect("offered").bytes_mut().copy_from_slice(b"abc");
    let lease = slabs.to_read(slab(3), 0, 3).expect("known");
    act(&slabs, &ServerFrame::SlabClosed { slab: slab(3) }, Vec::new()).expect("taken");
    assert!(!slabs.is_known(slab(3)), "nothing new lies in it");
    assert_eq!(lease.bytes(), b"abc");
    act(&slabs, &ServerFrame::SlabClosed { slab: slab(3) }, Vec::new()).expect("of none is fine");
}

#[test]
fn given_many_callers_that_want_a_slab_when_it_is_refused_then_asked_once_and_all_are_told_why() {
    let (slabs, server) = pair();
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let slabs = Arc::clone(&slabs);
            thread::spawn(move || slabs.to_read(slab(7), 0, 1))
        })
        .collect();
    assert_eq!(asked(&server), ClientFrame::SlabWanted { slab: slab(7) });
    while slabs.lock().wanted.get(&slab(7)).is_none_or(|wanted| wanted.callers < 8) {
        thread::yield_now();
    }
    let text = "it is not sealed".to_owned();
    act(&slabs, &ServerFrame::SlabRefused { slab: slab(7), text }, Vec::new()).expect("taken");
    for caller in callers {
        let error = caller.join().expect("no panic").expect_err("refused");
        assert_eq!(error.kind(), Some(ErrorKind::Unavailable));
        assert_eq!(error.to_string(), "it is not sealed");
    }
    assert!(slabs.lock().wanted.is_empty(), "nothing is kept of it");
    assert!(server.receive_now().is_err(), "it was asked for once");
}

#[test]
fn given_a_server_that_does_not_answer_when_a_slab_is_wanted_then_unavailable_and_asked_for_anew() {
    let (slabs, server) = pair();
    for _ in 0..2 {
        let start = Instant::now();
        let error = slabs.to_read(slab(9), 0, 1).expect_err("nobody answers");
        assert!(start.elapsed() >= SLAB_WITHIN, "it was waited for");
        assert_eq!(error.kind(), Some(ErrorKind::Unavailable));
        assert!(error.to_string().contains("within a second"), "{error}");
        assert_eq!(asked(&server), ClientFrame::SlabWanted { slab: slab(9) });
    }
    // What comes too late is kept for the next one, who need not ask.
    let opened = ServerFrame::SlabOpened { slab: slab(9), bytes: ByteCount(BYTES) };
    act(&slabs, &opened, vec![memory()]).expect("taken");
    assert_eq!(slabs.to_read(slab(9), 0, 1).expect("known").bytes(), [0]);
    assert!(server.receive_now().is_err(), "nothing was asked");
    assert!(slabs.to_write(slab(9), 0, 1).is_err(), "another session's is not to be written");
}

#[test]
fn given_as_many_wanted_as_may_be_when_one_more_comes_then_it_waits_for_room() {
    let (slabs, server) = pair();
    let others = 1..=WANTED_MAX as u32;
    slabs.lock().wanted.extend(others.map(|number| (slab(number), Wanted { callers: 1, refused: None })));
    let late = Arc::clone(&slabs);
    let late = thread::spawn(move || late.to_read(slab(1_000), 0, 1));
    thread::sleep(Duration::from_millis(20));
    assert!(server.receive_now().is_err(), "it has not asked yet");
    slabs.lock().wanted.remove(&slab(1));
    slabs.changed.notify_all();
    assert_eq!(asked(&server), ClientFrame::SlabWanted { slab: slab(1_000) });
    let text = "gone".to_owned();
    act(&slabs, &ServerFrame::SlabRefused { slab: slab(1_000), text }, Vec::new()).expect("taken");
    assert_eq!(late.join().expect("no panic").expect_err("refused").to_string(), "gone");
}

#[test]
fn given_an_end_of_the_session_when_a_slab_is_wanted_then_ended_at_once() {
    let (slabs, server) = pair();
    let waiting = Arc::clone(&slabs);
    let waiting = thread::spawn(move || waiting.to_read(slab(5), 0, 1));
    assert_eq!(asked(&server), ClientFrame::SlabWanted { slab: slab(5) });
    act(&slabs, &ServerFrame::Closed { text: "the server stops".to_owned() }, Vec::new())
        .map_err(|reason| slabs.end(reason))
        .expect_err("it is over");
    let error = waiting.join().expect("no panic").expect_err("over");
    assert!(matches!(&error, ClientError::Ended { reason } if reason == "the server stops"), "{error}");
}

#[test]
fn given_frames_that_make_no_sense_when_acted_on_then_the_session_ends() {
    let (slabs, _server) = pair();
    let opened = ServerFrame::SlabOpened { slab: slab(1), bytes: ByteCount(BYTES) };
    let doorbells = ServerFrame::Doorbells { first: 0 };
    for (frame, descriptors) in [(&opened, vec![]), (&opened, vec![memory(), memory()]), (&doorbells, vec![])]
    {
        act(&slabs, frame, descriptors).expect_err("not to be sent");
    }
    assert!(slabs.act(Message { bytes: b"PMNATIVE?".to_vec(), descriptors: vec![] }).is_err());
}
