//! What hostile bytes are put through, by the deterministic test (`hostile_bytes.rs`) and by the fuzz target
//! (`fuzz/fuzz_targets/decode.rs`) alike: every decoder, and the server's end of the rings over memory that says anything.

use std::sync::atomic::{AtomicU64, Ordering};

use payload_local::hello::{ClientFrame, ServerFrame};
use payload_local::layout::{RING_ENTRIES, SessionView, WORD_BYTES, session_bytes};
use payload_local::ring::{ClientRings, Contents, ServerRings};
use payload_local::{Completion, Outcome, Submission, text, wake};
use payload_types::{ErrorKind, limits};

/// Feeds `bytes` to everything that reads what the other side wrote. Whatever they are, nothing panics, and what is
/// accepted is written again as it was read.
pub fn feed(bytes: &[u8]) {
    frames(bytes);
    let words: Vec<u64> =
        bytes.chunks_exact(WORD_BYTES).map(|word| u64::from_le_bytes(word.try_into().expect("8"))).collect();
    for contents in words.chunks_exact(7) {
        entries(contents.try_into().expect("7 words"));
    }
    memory(&words);
}

fn frames(bytes: &[u8]) {
    match ClientFrame::decode(bytes) {
        Ok(ClientFrame::Hello(hello)) => {
            // Its name may have lost what is not shown; all else comes back.
            let again = ClientFrame::decode(&ClientFrame::Hello(hello.clone()).encode());
            assert_eq!(again, Ok(ClientFrame::Hello(hello.clone())));
            assert!(hello.version().is_ok() || hello.version_min > 1 || hello.version_max < 1);
        }
        Ok(frame) => assert_eq!(frame.encode(), bytes),
        Err(error) => assert_eq!(error.kind, ErrorKind::InvalidArgument),
    }
    if let Ok(frame) = ServerFrame::decode(bytes) {
        assert_eq!(frame.encode(), bytes);
    }
}

fn entries(contents: &Contents) {
    match Submission::decode(contents) {
        Ok((tag, submission)) => {
            assert_eq!(&submission.encode(tag), contents, "{submission:?}");
            assert_eq!(submission.completions(), Submission::completions_of(contents));
            if let Submission::Allocate { size, .. } = submission {
                assert!((1..=limits::PAYLOAD_BYTES_MAX).contains(&size.0));
            }
        }
        Err(malformed) => {
            assert_eq!(malformed.error.kind, ErrorKind::InvalidArgument);
            assert!(malformed.error.message.len() <= text::TEXT_BYTES_MAX, "{}", malformed.error.message);
        }
    }
    if let Ok(completion) = Completion::decode(contents) {
        // Bits that a later version may use are ignored only where it refused.
        if !matches!(completion.outcome, Outcome::Refused { .. }) {
            assert_eq!(&completion.encode(), contents, "{completion:?}");
        }
    }
}

/// A session whose memory says what `words` say, over and over, met by both ends of the rings.
fn memory(words: &[u64]) {
    let fill = |at: usize| words.get(at % words.len().max(1)).copied().unwrap_or(at as u64);
    let memory: Vec<AtomicU64> =
        (0..session_bytes(1) / WORD_BYTES).map(|at| AtomicU64::new(fill(at))).collect();
    let session = SessionView::new(&memory, 1).expect("long enough");
    let view = session.shard(0);
    let mut server = ServerRings::new();
    let mut posted = 0;
    for _ in 0..2 * RING_ENTRIES {
        let taken = server.take(&view, Submission::completions_of);
        let Ok(Some(contents)) = taken else { break };
        entries(&contents);
        while server.reserved() > 0 {
            server.post(&view, &contents, Some("no"));
            posted += 1;
        }
    }
    let _ready = server.is_ready(&view);
    assert!(posted <= RING_ENTRIES, "never more than there is room for, whatever the counters say");
    let mut client = ClientRings::new();
    for _ in 0..2 * RING_ENTRIES {
        let Some((position, contents)) = client.take(&view, |_| 1) else { break };
        entries(&contents);
        let _sentence = text::read(view.texts, position);
    }
    for position in [0, 1, fill(0), fill(1), u64::MAX - 1] {
        let _sentence = text::read(view.texts, position);
    }
    let line = session.wake_line();
    let before = line.wake.load(Ordering::Relaxed);
    let woken = u64::from(wake::must_wake(&line));
    assert_eq!(line.wake.load(Ordering::Relaxed), before.wrapping_add(woken));
}
