//! Every operation, completion and frame comes back as it was written; what has no meaning is refused with a reason.

use std::sync::atomic::AtomicU64;

use payload_local::hello::{ClientFrame, Hello, RefusalKind, ServerFrame, Welcome};
use payload_local::layout::{RING_ENTRIES, SessionView, TEXT_SLOTS, WORD_BYTES, session_bytes};
use payload_local::ring::{ClientRings, Contents, ServerRings};
use payload_local::{Completion, Op, Outcome, Shown, Submission, text};
use payload_types::tier::SpillTarget;
use payload_types::{
    Block, ByteCount, Checksum, Epoch, ErrorKind, EvictionPolicy, EvictionPriority, Extent, Generation,
    LeaseId, LeaseNonce, Location, Memory, NamespaceId, PayloadId, PayloadState, PromotionPolicy, ShardIndex,
    SlabId, SpillPolicy, Tier, Version, limits,
};

const ID: PayloadId = PayloadId::from_bytes([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);

fn lease() -> LeaseId {
    LeaseId::new(ShardIndex(3), 70_000, LeaseNonce([9; 10]))
}

fn memory(shard_count: u16) -> Vec<AtomicU64> {
    (0..session_bytes(shard_count) / WORD_BYTES).map(|_| AtomicU64::new(0)).collect()
}

// Long because: one of each kind of submission.
fn submissions() -> Vec<Submission> {
    let mut all = vec![
        Submission::Release { lease: lease() },
        Submission::Resolve { id: ID },
        Submission::Abort { id: ID },
        Submission::Commit { id: ID, checksum: None, accepted: false },
        Submission::Commit { id: ID, checksum: Some(Checksum(0)), accepted: true },
        Submission::Commit { id: ID, checksum: Some(Checksum(u64::MAX)), accepted: false },
    ];
    for version in [None, Some(Version(0)), Some(Version(u64::MAX))] {
        for flag in [false, true] {
            all.push(Submission::Delete { id: ID, force: flag, expected_version: version });
            let policy = if flag { PromotionPolicy::BestEffort } else { PromotionPolicy::Blocking };
            for min_tier in [None, Some(Tier::Ram), Some(Tier::Object)] {
                all.push(Submission::Acquire {
                    id: ID,
                    min_tier,
                    policy,
                    accepts_packed: flag,
                    expected_version: version,
                    deadline_ms: 1234,
                });
            }
            all.push(Submission::Promote {
                id: ID,
                target: Tier::Gpu,
                policy,
                expected_version: version,
                deadline_ms: u64::MAX,
            });
            for target in [None, Some(SpillTarget::Void), Some(SpillTarget::Tier(Tier::Disk))] {
                all.push(Submission::Spill {
                    id: ID,
                    target,
                    policy: if flag { SpillPolicy::BestEffort } else { SpillPolicy::Blocking },
                    wait_for_leases: flag,
                    fsync: !flag,
                    expected_version: version,
                    deadline_ms: 0,
                });
            }
        }
    }
    for policy in [
        EvictionPolicy::default(),
        EvictionPolicy {
            priority: EvictionPriority::Never,
            require_durable: true,
            spill_target: Some(SpillTarget::Tier(Tier::Disk)),
            min_residency: Some(Tier::Object),
        },
        EvictionPolicy { spill_target: Some(SpillTarget::Void), ..EvictionPolicy::default() },
    ] {
        for (size, no_evict) in [(1, false), (limits::PAYLOAD_BYTES_MAX, true)] {
            all.push(Submission::Allocate {
                size: ByteCount(size),
                tier: Tier::Disk,
                ttl_ms: size,
                no_evict,
                policy,
                memory: Memory::Segment,
                deadline_ms: 5,
            });
        }
    }
    for memory in [Memory::Segment, Memory::Arena, Memory::Sealed] {
        all.push(Submission::Allocate {
            size: ByteCount(1),
            tier: Tier::Ram,
            ttl_ms: 0,
            no_evict: false,
            policy: EvictionPolicy::default(),
            memory,
            deadline_ms: 0,
        });
    }
    all
}

#[test]
fn given_every_submission_when_written_and_read_then_it_is_the_same() {
    for (tag, submission) in (u32::MAX - 20..=u32::MAX).cycle().zip(submissions()) {
        let contents = submission.encode(tag);
        assert_eq!(Submission::decode(&contents), Ok((tag, submission.clone())));
        assert_eq!(Submission::completions_of(&contents), submission.completions());
    }
}

#[test]
fn given_any_bit_that_an_operation_does_not_use_when_set_then_refused_or_it_has_a_meaning() {
    for submission in submissions() {
        let contents = submission.encode(7);
        for bit in 0..7 * 64 {
            let mut changed = contents;
            changed[bit / 64] ^= 1 << (bit % 64);
            if let Ok((tag, other)) = Submission::decode(&changed) {
                assert!(tag != 7 || other != submission, "bit {bit} of {submission:?} has no meaning");
                assert_eq!(other.encode(tag), changed);
            }
        }
    }
}

#[test]
fn given_submissions_that_are_wrong_when_read_then_the_reason_is_said_and_the_tag_kept() {
    let allocate = |size: u64| {
        Submission::Allocate {
            size: ByteCount(size),
            tier: Tier::Ram,
            ttl_ms: 0,
            no_evict: false,
            policy: EvictionPolicy::default(),
            memory: Memory::Segment,
            deadline_ms: 0,
        }
        .encode(8)
    };
    let changed = |mut contents: Contents, word: usize, value: u64| {
        contents[word] |= value;
        contents
    };
    let resolve = Submission::Resolve { id: ID }.encode(8);
    let delete = Submission::Delete { id: ID, force: false, expected_version: None }.encode(8);
    let spill = |tier: u64| changed([0; 7], 0, 6 | tier << 16 | 8 << 32);
    let cases: [(Contents, &str); 12] = [
        (changed([0; 7], 0, 8 << 32), "operation 0 is not known"),
        (changed([0; 7], 0, 200 | 8 << 32), "operation 200 is not known"),
        (allocate(0), "the size is 0"),
        (allocate(limits::PAYLOAD_BYTES_MAX + 1), "128 GiB"),
        (changed(resolve, 3, 1), "an unused word"),
        (changed(resolve, 0, 1 << 8), "flags 0x1 has no meaning"),
        (changed(delete, 3, 5), "the expected version is 5"),
        (spill(6), "tier 6 is no tier"),
        (changed(spill(0), 0, 2 << 24), "policy 2 is not known"),
        (changed(allocate(1), 3, 1 << 40), "have no meaning"),
        (changed(allocate(1), 3, 12), "ARENA and SEALED are both set"),
        (changed(changed(allocate(1), 0, 1 << 16), 3, 4), "kinds of memory"),
    ];
    for (contents, sentence) in cases {
        let malformed = Submission::decode(&contents).expect_err(sentence);
        assert_eq!((malformed.tag, malformed.error.kind), (8, ErrorKind::InvalidArgument));
        assert!(malformed.error.message.contains(sentence), "{}", malformed.error.message);
    }
}

#[test]
fn given_every_completion_when_written_and_read_then_it_is_the_same() {
    let extent = Extent::from_bits(7 << 32 | 5).expect("an extent");
    let mut outcomes =
        vec![(Op::Release, Outcome::Done), (Op::Delete, Outcome::Done), (Op::Spill, Outcome::Done)];
    for location in [
        None,
        Some(Location::Segment),
        Some(Location::File(Generation(u64::MAX))),
        Some(Location::Packed(extent)),
        Some(Location::Arena(Block { slab: SlabId::new(u32::MAX).expect("not 0"), unit: 9 })),
    ] {
        for state in PayloadState::ALL {
            let shown = Shown {
                tier: Tier::Disk,
                state,
                location,
                size: ByteCount(limits::PAYLOAD_BYTES_MAX),
                version: Version(3),
            };
            outcomes.push((Op::Acquire, Outcome::Leased(lease(), shown)));
            outcomes.push((Op::Spill, Outcome::Payload(ID, shown)));
            outcomes.push((Op::Commit, Outcome::Payload(ID, shown)));
        }
    }
    for kind in [ErrorKind::InvalidArgument, ErrorKind::LeaseConflict, ErrorKind::Internal] {
        for has_text in [false, true] {
            outcomes.push((Op::Unknown, Outcome::Refused { kind, has_text }));
        }
    }
    for (op, outcome) in outcomes {
        for is_last in if op == Op::Commit { vec![true, false] } else { vec![true] } {
            let completion = Completion { op, tag: 77, is_last, outcome };
            assert_eq!(Completion::decode(&completion.encode()), Ok(completion));
            assert_eq!(Completion::tag_of(&completion.encode()), 77);
        }
    }
}

fn welcome() -> Welcome {
    Welcome {
        version: 1,
        shard_count: 256,
        session: 4,
        namespace: NamespaceId::DEFAULT,
        features: 7,
        epoch: Epoch(9),
        boot_hash: u64::MAX,
        shm_prefix: "p".repeat(64),
        disk_root: format!("/{}", "d".repeat(1023)),
        address: format!("{}:65535", "h".repeat(253)),
    }
}

#[test]
fn given_every_frame_when_written_and_read_then_it_is_the_same_and_cut_ones_are_refused() {
    let texts = |text: &str| {
        [
            ServerFrame::Refusal { kind: RefusalKind::Full, text: text.to_owned() },
            ServerFrame::Closed { text: text.to_owned() },
        ]
    };
    let mut frames = vec![ServerFrame::Welcome(Box::new(welcome())), ServerFrame::Doorbells { first: 250 }];
    frames.extend(texts("the server stops").into_iter().chain(texts("")));
    let slab = SlabId::new(u32::MAX).expect("not 0");
    for (isolated, large_pages, bytes) in [(false, true, 4096), (true, false, limits::PAYLOAD_BYTES_MAX)] {
        frames.push(ServerFrame::SlabOffered { slab, isolated, large_pages, bytes: ByteCount(bytes) });
        frames.push(ServerFrame::SlabOpened { slab, bytes: ByteCount(bytes) });
    }
    frames
        .extend([ServerFrame::SlabRefused { slab, text: "no".to_owned() }, ServerFrame::SlabClosed { slab }]);
    for frame in frames {
        let bytes = frame.encode();
        assert_eq!(ServerFrame::decode(&bytes), Ok(frame.clone()));
        for length in 0..bytes.len() {
            assert!(ServerFrame::decode(&bytes[..length]).is_err(), "{length} bytes of {frame:?}");
        }
        assert!(ServerFrame::decode(&[&bytes[..], &[0]].concat()).is_err());
        assert!(ClientFrame::decode(&bytes).is_err(), "the wrong direction");
    }
    for frame in [
        ClientFrame::Hello(Hello::new("trainer")),
        ClientFrame::Bye,
        ClientFrame::SlabMapped { slab },
        ClientFrame::SlabWanted { slab },
    ] {
        let bytes = frame.encode();
        assert_eq!(ClientFrame::decode(&bytes), Ok(frame));
        assert!((0..bytes.len()).all(|length| ClientFrame::decode(&bytes[..length]).is_err()));
    }
}

#[test]
fn given_slabs_that_cannot_be_when_read_then_refused() {
    let slab = SlabId::new(1).expect("not 0");
    let offered = |bytes: u64| {
        ServerFrame::SlabOffered { slab, isolated: false, large_pages: false, bytes: ByteCount(bytes) }
            .encode()
    };
    assert!(ServerFrame::decode(&offered(8192)).is_ok());
    for bytes in [0, 1, 4097, limits::PAYLOAD_BYTES_MAX + 4096, u64::MAX - 4095] {
        assert!(ServerFrame::decode(&offered(bytes)).is_err(), "{bytes} bytes");
    }
    let mut flagged = offered(8192);
    flagged[16] = 4;
    assert!(ServerFrame::decode(&flagged).is_err(), "a flag without a meaning");
    let mut mapped = ClientFrame::SlabMapped { slab }.encode();
    mapped[12] = 0;
    assert!(ClientFrame::decode(&mapped).is_err(), "slab 0");
}

#[test]
fn given_long_texts_and_names_when_written_then_cut_between_characters() {
    let long = "é".repeat(400);
    let ServerFrame::Closed { text } =
        ServerFrame::decode(&ServerFrame::Closed { text: long.clone() }.encode()).expect("a frame")
    else {
        panic!("another frame")
    };
    assert_eq!(text, "é".repeat(256));
    let hello = ClientFrame::Hello(Hello::new(&format!("x{long}")));
    let ClientFrame::Hello(read) = ClientFrame::decode(&hello.encode()).expect("a frame") else {
        panic!("another frame")
    };
    assert_eq!(read.program, format!("x{}", "é".repeat(15)), "31 of 32 bytes: the next character has two");
}

#[test]
fn given_versions_without_a_common_one_when_greeted_then_the_refusal_names_both() {
    assert_eq!(Hello { version_min: 0, version_max: 7, ..Hello::new("x") }.version(), Ok(1));
    let hello = Hello { version_min: 2, version_max: 3, ..Hello::new("x") };
    let Err(ServerFrame::Refusal { kind: RefusalKind::Version, text }) = hello.version() else {
        panic!("must be refused")
    };
    assert!(text.contains("speaks version 1") && text.contains("2 to 3"), "{text}");
}

#[test]
fn given_a_full_session_when_everything_is_answered_late_then_each_answer_comes_once_and_in_order() {
    let memory = memory(2);
    let session = SessionView::new(&memory, 2).expect("long enough");
    let view = session.shard(1);
    let (mut client, mut server) = (ClientRings::new(), ServerRings::new());
    let mut expected = 0;
    for round in 0..5_u64 {
        let mut sent = 0;
        while client.submit(&view, &[round, sent, 0, 0, 0, 0, 0], 1) {
            sent += 1;
        }
        assert_eq!(sent, RING_ENTRIES as u64, "as many as the ring has entries");
        let mut taken = Vec::new();
        while let Some(contents) = server.take(&view, |_| 1).expect("possible counters") {
            taken.push(contents);
        }
        assert_eq!(taken.len(), RING_ENTRIES, "a client that keeps the rule always has room");
        for contents in &taken {
            let sentence = contents[1].is_multiple_of(2).then(|| format!("{} of {round}", contents[1]));
            server.post(&view, contents, sentence.as_deref());
        }
        while let Some((position, contents)) = client.take(&view, |_| 1) {
            assert_eq!(
                (position, contents[0], contents[1]),
                (expected, round, expected % RING_ENTRIES as u64)
            );
            let sentence = text::read(view.texts, position);
            let is_there = contents[1].is_multiple_of(2) && contents[1] as usize >= RING_ENTRIES - TEXT_SLOTS;
            assert_eq!(sentence, is_there.then(|| format!("{} of {round}", contents[1])), "{position}");
            expected += 1;
        }
        assert_eq!((client.owed(), server.reserved()), (0, 0));
    }
}

#[test]
fn given_a_client_that_takes_nothing_when_it_submits_on_then_the_server_takes_no_more_than_it_can_answer() {
    let memory = memory(1);
    let session = SessionView::new(&memory, 1).expect("long enough");
    let view = session.shard(0);
    let mut server = ServerRings::new();
    // A client that breaks the rule: two rings' worth of submissions, and no completion is ever taken.
    let mut answered = 0;
    for _ in 0..2 {
        let mut hostile = ClientRings::new();
        if answered > 0 {
            // Sequences go on where they were, as a raw writer would write them.
            for position in 0..RING_ENTRIES {
                let sequence = (RING_ENTRIES + position + 1) as u64;
                view.submissions[position * 8].store(sequence, std::sync::atomic::Ordering::Release);
            }
        } else {
            while hostile.submit(&view, &[0; 7], 1) {}
        }
        while let Some(contents) = server.take(&view, |_| 1).expect("possible counters") {
            server.post(&view, &contents, None);
            answered += 1;
        }
    }
    assert_eq!(answered, RING_ENTRIES);
    assert_eq!(server.is_ready(&view), Ok(false), "it does not keep its shard awake");
    for impossible in [u64::MAX, RING_ENTRIES as u64 + 1] {
        view.completions_taken.store(impossible, std::sync::atomic::Ordering::Relaxed);
        let fault = server.take(&view, |_| 1).expect_err("impossible");
        assert!(fault.to_string().contains("not possible"), "{fault}");
    }
    view.completions_taken.store(5, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(server.is_ready(&view), Ok(true));
    view.completions_taken.store(4, std::sync::atomic::Ordering::Relaxed);
    for _ in 0..5 {
        let contents = server.take(&view, |_| 1).expect("room is left").expect("is there");
        server.post(&view, &contents, None);
    }
    assert!(server.take(&view, |_| 1).is_err(), "it went back");
}

#[test]
fn given_a_commit_that_asks_for_accepted_when_taken_then_room_for_both_answers_is_kept() {
    let memory = memory(1);
    let session = SessionView::new(&memory, 1).expect("long enough");
    let view = session.shard(0);
    let (mut client, mut server) = (ClientRings::new(), ServerRings::new());
    let commit = Submission::Commit { id: ID, checksum: None, accepted: true };
    let mut sent = 0;
    while client.submit(&view, &commit.encode(sent), commit.completions()) {
        sent += 1;
    }
    assert_eq!(sent as usize, RING_ENTRIES / 2);
    for tag in 0..sent {
        let contents = server.take(&view, Submission::completions_of).expect("possible").expect("there");
        let outcome = Outcome::Refused { kind: ErrorKind::NotFound, has_text: false };
        server.post(&view, &Completion { op: Op::Commit, tag, is_last: true, outcome }.encode(), None);
        assert_eq!(contents, commit.encode(tag));
        server.forgo();
    }
    assert_eq!(server.reserved(), 0);
    while client.take(&view, |_| 2).is_some() {}
    assert_eq!(client.owed(), 0);
}

#[test]
fn given_a_sentence_when_longer_than_its_slot_then_cut_and_when_spoilt_then_none() {
    let memory = memory(1);
    let texts = SessionView::new(&memory, 1).expect("long enough").shard(0).texts;
    text::write(texts, 40, &"é".repeat(300));
    assert_eq!(text::read(texts, 40), Some("é".repeat(248)));
    assert_eq!(text::read(texts, 8), None, "another completion's");
    text::write(texts, 41, "plain");
    assert_eq!(text::read(texts, 41).as_deref(), Some("plain"));
    let slot = 41 % TEXT_SLOTS * 64;
    texts[slot + 2].store(u64::MAX, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(text::read(texts, 41), None, "not UTF-8");
    texts[slot + 1].store(497, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(text::read(texts, 41), None, "longer than the slot");
}
