//! Random and mutated bytes through every decoder, from fixed seeds. The fuzz target goes on where this ends.

use payload_local::hello::{ClientFrame, Hello, RefusalKind, ServerFrame, Welcome};
use payload_local::{Completion, Op, Outcome, Submission};
use payload_types::{
    ByteCount, Epoch, ErrorKind, EvictionPolicy, Memory, NamespaceId, PayloadId, SlabId, Tier,
};

mod hostile;

/// Each takes a few microseconds, and memory() a few more: seconds in all.
const ROUNDS: u64 = 20_000;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        value ^ (value >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

/// What is right, to be mutated: nearly right is what random bytes never are.
fn samples() -> Vec<Vec<u8>> {
    let words = |contents: [u64; 7]| contents.into_iter().flat_map(u64::to_le_bytes).collect::<Vec<u8>>();
    let id = PayloadId::from_bytes([7; 16]);
    let allocate = Submission::Allocate {
        size: ByteCount(4096),
        tier: Tier::Ram,
        ttl_ms: 1,
        no_evict: true,
        policy: EvictionPolicy::default(),
        memory: Memory::Arena,
        deadline_ms: 9,
    };
    let welcome = Welcome {
        version: 1,
        shard_count: 3,
        session: 9,
        namespace: NamespaceId::DEFAULT,
        features: 0,
        epoch: Epoch(7),
        boot_hash: 1,
        shm_prefix: "pm".to_owned(),
        disk_root: "/data".to_owned(),
        address: String::new(),
    };
    let refused = Completion {
        op: Op::Commit,
        tag: 3,
        is_last: true,
        outcome: Outcome::Refused { kind: ErrorKind::NotFound, has_text: true },
    };
    let mut samples: Vec<Vec<u8>> = (1..10_u64).map(|op| words([op, 0, 0, 0, 0, 0, 0])).collect();
    samples.push(words(allocate.encode(4)));
    samples.push(words(Submission::Commit { id, checksum: None, accepted: true }.encode(5)));
    samples.push(words(refused.encode()));
    samples.push(ClientFrame::Hello(Hello::new("test")).encode());
    samples.push(ClientFrame::Bye.encode());
    let slab = SlabId::new(7).expect("not 0");
    samples.push(ClientFrame::SlabMapped { slab }.encode());
    samples.push(ClientFrame::SlabWanted { slab }.encode());
    let bytes = ByteCount(1 << 20);
    samples.push(ServerFrame::SlabOffered { slab, isolated: true, large_pages: false, bytes }.encode());
    samples.push(ServerFrame::SlabOpened { slab, bytes }.encode());
    samples.push(ServerFrame::SlabRefused { slab, text: "no".to_owned() }.encode());
    samples.push(ServerFrame::SlabClosed { slab }.encode());
    samples.push(ServerFrame::Welcome(Box::new(welcome)).encode());
    samples.push(ServerFrame::Closed { text: "é".to_owned() }.encode());
    samples.push(ServerFrame::Refusal { kind: RefusalKind::User, text: "no".to_owned() }.encode());
    // Rings whose every entry is in sequence, and counters of all kinds.
    samples.push((1..64_u64).flat_map(|word| (word / 8 + 1).to_le_bytes()).collect());
    samples
}

#[test]
fn given_random_bytes_when_decoded_then_nothing_panics_and_what_is_accepted_comes_back() {
    let mut random = Random(1);
    for _ in 0..ROUNDS {
        let length = random.below(300);
        let bytes: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
        hostile::feed(&bytes);
    }
}

#[test]
fn given_right_bytes_when_mutated_and_decoded_then_nothing_panics_and_what_is_accepted_comes_back() {
    let samples = samples();
    let mut random = Random(2);
    for _ in 0..ROUNDS {
        let mut bytes = samples[random.below(samples.len())].clone();
        for _ in 0..random.below(4) {
            match random.below(4) {
                0 if !bytes.is_empty() => bytes.truncate(random.below(bytes.len())),
                1 => bytes.extend_from_slice(&random.next().to_le_bytes()),
                2 if !bytes.is_empty() => {
                    let at = random.below(bytes.len());
                    bytes[at] ^= 1 << random.below(8);
                }
                _ if !bytes.is_empty() => {
                    let at = random.below(bytes.len());
                    bytes[at] = [0, 1, 5, 0x7F, 0x80, 0xFF][random.below(6)];
                }
                _ => {}
            }
        }
        hostile::feed(&bytes);
    }
}

#[test]
#[should_panic(expected = "planted")]
fn given_a_planted_panic_when_fed_then_the_harness_lets_it_out() {
    hostile::feed(&[]);
    let submission = Submission::decode(&[0; 7]).expect_err("operation 0 is none");
    assert_eq!(submission.op, Op::Acquire, "planted");
}
