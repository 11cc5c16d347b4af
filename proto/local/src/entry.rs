//! What the entries of rings say: [`Submission`] and [`Completion`], to and from seven words.
//!
//! Little-endian; every bit that an operation does not use is 0, or the entry is refused: what a client sends today by
//! accident cannot get a meaning tomorrow. Decoding copies nothing but words, never panics, and its errors say what was
//! wrong; a refused entry still has its tag, so that its answer finds who asked.
//!
//! ```text
//! word 0 of the contents      submission: op u8 | flags u8 | tier u8 | policy u8 | tag u32
//!                             completion: op u8 | status u8 | stage u8 | location kind u8 | tag u32
//! ```
//! docs/NATIVE_PROTOCOL.md has the table of all operations.

use payload_types::tier::SpillTarget;
use payload_types::{
    Block, ByteCount, Checksum, ErrorKind, EvictionPolicy, EvictionPriority, Extent, Generation, LeaseId,
    Location, Memory, PayloadError, PayloadId, PayloadState, PromotionPolicy, SpillPolicy, Tier, Version,
    limits,
};

use crate::ring::Contents;

/// The number of an operation, in both directions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Op {
    /// Of a completion: the submission had no operation that is known.
    Unknown = 0,
    /// Lease a replica.
    Acquire = 1,
    /// End a lease.
    Release = 2,
    /// Describe a payload.
    Resolve = 3,
    /// Remove a payload.
    Delete = 4,
    /// Add a replica on a faster tier.
    Promote = 5,
    /// Move a payload to a slower tier.
    Spill = 6,
    /// Reserve space.
    Allocate = 7,
    /// End writing.
    Commit = 8,
    /// Give an allocation back.
    Abort = 9,
}

impl Op {
    const ALL: [Self; 10] = [
        Self::Unknown,
        Self::Acquire,
        Self::Release,
        Self::Resolve,
        Self::Delete,
        Self::Promote,
        Self::Spill,
        Self::Allocate,
        Self::Commit,
        Self::Abort,
    ];

    /// The operation with this number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }
}

/// What a client asks over a ring. Deadlines are milliseconds from now; 0 is the server's default.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Submission {
    /// Lease a replica for reading; it lives until it is released, or the session ends.
    Acquire {
        /// Target.
        id: PayloadId,
        /// The slowest acceptable tier; `None`: any.
        min_tier: Option<Tier>,
        /// What to do when no replica is that fast.
        policy: PromotionPolicy,
        /// The client never sets a file's length, and reads at offsets.
        accepts_packed: bool,
        /// Version fencing.
        expected_version: Option<Version>,
        /// See above.
        deadline_ms: u64,
    },
    /// End a lease of this session. Goes to the shard that the lease names.
    Release {
        /// Which.
        lease: LeaseId,
    },
    /// Describe.
    Resolve {
        /// Target.
        id: PayloadId,
    },
    /// Remove.
    Delete {
        /// Target.
        id: PayloadId,
        /// Also when it is leased.
        force: bool,
        /// Version fencing.
        expected_version: Option<Version>,
    },
    /// Promote.
    Promote {
        /// Target.
        id: PayloadId,
        /// Where to.
        target: Tier,
        /// Whether to wait.
        policy: PromotionPolicy,
        /// Version fencing.
        expected_version: Option<Version>,
        /// See above.
        deadline_ms: u64,
    },
    /// Spill.
    Spill {
        /// Target.
        id: PayloadId,
        /// Where to; `None`: the payload's spill_target, else DISK.
        target: Option<SpillTarget>,
        /// Whether to wait.
        policy: SpillPolicy,
        /// Wait for the leases that exist now, instead of refusing.
        wait_for_leases: bool,
        /// On stable storage before the answer.
        fsync: bool,
        /// Version fencing.
        expected_version: Option<Version>,
        /// See above.
        deadline_ms: u64,
    },
    /// Reserve space: goes to any shard, which mints the id.
    Allocate {
        /// 1 ..= `limits::PAYLOAD_BYTES_MAX`.
        size: ByteCount,
        /// Where.
        tier: Tier,
        /// Life after creation; 0: no expiry.
        ttl_ms: u64,
        /// Never evicted automatically.
        no_evict: bool,
        /// Validated.
        policy: EvictionPolicy,
        /// Which kind of memory; other than a segment only on tier RAM, with feature ARENAS.
        memory: Memory,
        /// See above.
        deadline_ms: u64,
    },
    /// End writing.
    Commit {
        /// Target.
        id: PayloadId,
        /// XXH3-64 of the bytes, when the producer knows it.
        checksum: Option<Checksum>,
        /// Also tell when it is ACCEPTED: leasable here, and not yet acknowledged.
        accepted: bool,
    },
    /// Delete what this session allocated and did not commit.
    Abort {
        /// Target.
        id: PayloadId,
    },
}

/// A submission that is no submission.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Malformed {
    /// The operation, as far as it could be told.
    pub op: Op,
    /// Whom to answer.
    pub tag: u32,
    /// Why.
    pub error: PayloadError,
}

/// How a payload is shown to a native client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shown {
    /// Tier of the replica shown.
    pub tier: Tier,
    /// As shown by the contract: never `Committing`.
    pub state: PayloadState,
    /// Where the replica lies; `None` while it must not be read.
    pub location: Option<Location>,
    /// Logical size.
    pub size: ByteCount,
    /// Its version.
    pub version: Version,
}

/// What a completion says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Done, and there is nothing to show: Release, Delete, Abort, a Spill that discarded.
    Done,
    /// Acquire.
    Leased(LeaseId, Shown),
    /// Resolve, Promote, Spill, Allocate, Commit.
    Payload(PayloadId, Shown),
    /// Refused.
    Refused {
        /// Why, for a program.
        kind: ErrorKind,
        /// A sentence was written to the text slot of this completion.
        has_text: bool,
    },
}

/// What the server answers over a ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Completion {
    /// The submission's operation.
    pub op: Op,
    /// The submission's tag.
    pub tag: u32,
    /// False for ACCEPTED of a Commit: one more follows.
    pub is_last: bool,
    /// What happened.
    pub outcome: Outcome,
}

/// Flags of submissions.
mod flag {
    pub(super) const ACCEPTS_PACKED: u8 = 1;
    pub(super) const FORCE: u8 = 1;
    pub(super) const FSYNC: u8 = 1;
    pub(super) const WAIT_FOR_LEASES: u8 = 2;
    pub(super) const CHECKSUM: u8 = 1;
    pub(super) const ACCEPTED: u8 = 2;
    /// Of whatever can be fenced: word 3 is a version.
    pub(super) const VERSION: u8 = 0x80;
}

/// Bits of an allocation's word of options.
mod option {
    pub(super) const NO_EVICT: u64 = 1;
    pub(super) const REQUIRE_DURABLE: u64 = 2;
    pub(super) const ARENA: u64 = 4;
    pub(super) const SEALED: u64 = 8;
    pub(super) const PRIORITY_SHIFT: u32 = 8;
    pub(super) const SPILL_TARGET_SHIFT: u32 = 16;
    pub(super) const MIN_RESIDENCY_SHIFT: u32 = 24;
    pub(super) const ALL: u64 = 0xFFFF_FF0F;
}

/// The number of VOID, beside those of tiers.
const VOID: u8 = 5;
/// The policy byte: blocking is what is done when nothing is said.
const BLOCKING: u8 = 0;
const BEST_EFFORT: u8 = 1;
/// Kinds of locations.
const LOCATION_NONE: u8 = 0;
const LOCATION_SEGMENT: u8 = 1;
const LOCATION_FILE: u8 = 2;
const LOCATION_PACKED: u8 = 3;
/// As [`LOCATION_NONE`]: a place in a slab.
const LOCATION_ARENA: u8 = 4;
/// As [`LOCATION_NONE`]: an object, which has no place on this host.
const LOCATION_OBJECT: u8 = 5;
/// As [`LOCATION_NONE`]: device memory, by the replica's generation.
const LOCATION_GPU: u8 = 6;
/// Of a refused completion, in the last word: its text slot was written.
const TEXT_BIT: u64 = 1 << 16;

/// The head of an entry, taken apart.
struct Head {
    op: u8,
    flags: u8,
    tier: u8,
    policy: u8,
    tag: u32,
}

impl Head {
    fn word(&self) -> u64 {
        let [low, tag] = [u32::from_le_bytes([self.op, self.flags, self.tier, self.policy]), self.tag];
        u64::from(low) | u64::from(tag) << 32
    }

    fn of(word: u64) -> Self {
        let [op, flags, tier, policy, tag @ ..] = word.to_le_bytes();
        Self { op, flags, tier, policy, tag: u32::from_le_bytes(tag) }
    }
}

fn id_words(bytes: &[u8; 16]) -> [u64; 2] {
    let (low, high) = bytes.split_at(8);
    [low, high].map(|half| u64::from_le_bytes(half.try_into().expect("8 of 16 bytes")))
}

fn id_bytes(words: [u64; 2]) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&words[0].to_le_bytes());
    bytes[8..].copy_from_slice(&words[1].to_le_bytes());
    bytes
}

fn target_number(target: Option<SpillTarget>) -> u8 {
    match target {
        None => 0,
        Some(SpillTarget::Tier(tier)) => tier as u8,
        Some(SpillTarget::Void) => VOID,
    }
}

fn tier_number(tier: Option<Tier>) -> u8 {
    tier.map_or(0, |tier| tier as u8)
}

fn version_flag(version: Option<Version>) -> u8 {
    if version.is_some() { flag::VERSION } else { 0 }
}

fn flag_if(condition: bool, flag: u8) -> u8 {
    if condition { flag } else { 0 }
}

fn promotion_number(policy: PromotionPolicy) -> u8 {
    match policy {
        PromotionPolicy::Blocking => BLOCKING,
        PromotionPolicy::BestEffort => BEST_EFFORT,
    }
}

impl Submission {
    /// Its operation.
    pub fn op(&self) -> Op {
        match self {
            Self::Acquire { .. } => Op::Acquire,
            Self::Release { .. } => Op::Release,
            Self::Resolve { .. } => Op::Resolve,
            Self::Delete { .. } => Op::Delete,
            Self::Promote { .. } => Op::Promote,
            Self::Spill { .. } => Op::Spill,
            Self::Allocate { .. } => Op::Allocate,
            Self::Commit { .. } => Op::Commit,
            Self::Abort { .. } => Op::Abort,
        }
    }

    /// Completions that it may have at most.
    pub fn completions(&self) -> u64 {
        match self {
            Self::Commit { accepted: true, .. } => 2,
            _ => 1,
        }
    }

    /// What a server reserves for an entry that it has not decoded yet; the same as [`Submission::completions`].
    pub fn completions_of(contents: &Contents) -> u64 {
        let head = Head::of(contents[0]);
        if head.op == Op::Commit as u8 && head.flags & flag::ACCEPTED != 0 { 2 } else { 1 }
    }

    /// The entry that says this.
    pub fn encode(&self, tag: u32) -> Contents {
        let (mut flags, mut tier, mut policy, mut words) = (0, 0, BLOCKING, [0; 6]);
        let mut fence = |version: &Option<Version>, words: &mut [u64; 6]| {
            flags |= version_flag(*version);
            words[2] = version.map_or(0, |version| version.0);
        };
        match self {
            Self::Acquire { id, min_tier, policy: wanted, accepts_packed, expected_version, deadline_ms } => {
                words[..2].copy_from_slice(&id_words(id.as_bytes()));
                fence(expected_version, &mut words);
                flags |= flag_if(*accepts_packed, flag::ACCEPTS_PACKED);
                (tier, policy, words[3]) = (tier_number(*min_tier), promotion_number(*wanted), *deadline_ms);
            }
            Self::Release { lease } => words[..2].copy_from_slice(&id_words(lease.as_bytes())),
            Self::Resolve { id } | Self::Abort { id } => {
                words[..2].copy_from_slice(&id_words(id.as_bytes()));
            }
            Self::Delete { id, force, expected_version } => {
                words[..2].copy_from_slice(&id_words(id.as_bytes()));
                fence(expected_version, &mut words);
                flags |= flag_if(*force, flag::FORCE);
            }
            Self::Promote { id, target, policy: wanted, expected_version, deadline_ms } => {
                words[..2].copy_from_slice(&id_words(id.as_bytes()));
                fence(expected_version, &mut words);
                (tier, policy, words[3]) = (*target as u8, promotion_number(*wanted), *deadline_ms);
            }
            Self::Spill {
                id,
                target,
                policy: wanted,
                wait_for_leases,
                fsync,
                expected_version,
                deadline_ms,
            } => {
                words[..2].copy_from_slice(&id_words(id.as_bytes()));
                fence(expected_version, &mut words);
                flags |= flag_if(*fsync, flag::FSYNC) | flag_if(*wait_for_leases, flag::WAIT_FOR_LEASES);
                policy = if *wanted == SpillPolicy::BestEffort { BEST_EFFORT } else { BLOCKING };
                (tier, words[3]) = (target_number(*target), *deadline_ms);
            }
            Self::Allocate { size, tier: wanted, ttl_ms, no_evict, policy, memory, deadline_ms } => {
                tier = *wanted as u8;
                let options = allocation_options(*no_evict, policy, *memory);
                words = [size.0, *ttl_ms, options, *deadline_ms, 0, 0];
            }
            Self::Commit { id, checksum, accepted } => {
                words[..2].copy_from_slice(&id_words(id.as_bytes()));
                words[2] = checksum.map_or(0, |checksum| checksum.0);
                flags |= flag_if(checksum.is_some(), flag::CHECKSUM) | flag_if(*accepted, flag::ACCEPTED);
            }
        }
        let head = Head { op: self.op() as u8, flags, tier, policy, tag }.word();
        [head, words[0], words[1], words[2], words[3], words[4], words[5]]
    }

    /// Reads an entry that a client wrote.
    ///
    /// # Errors
    /// [`Malformed`], with `INVALID_ARGUMENT` and what was wrong.
    pub fn decode(contents: &Contents) -> Result<(u32, Self), Malformed> {
        let head = Head::of(contents[0]);
        let tag = head.tag;
        let op = Op::from_number(head.op).unwrap_or(Op::Unknown);
        let result = Reader::new(head, contents).submission(op);
        result.map(|submission| (tag, submission)).map_err(|error| Malformed { op, tag, error })
    }
}

fn allocation_options(no_evict: bool, policy: &EvictionPolicy, memory: Memory) -> u64 {
    let memory = match memory {
        Memory::Segment => 0,
        Memory::Arena => option::ARENA,
        Memory::Sealed => option::SEALED,
    };
    let flags = if no_evict { option::NO_EVICT } else { 0 }
        | if policy.require_durable { option::REQUIRE_DURABLE } else { 0 }
        | memory;
    flags
        | (policy.priority as u64) << option::PRIORITY_SHIFT
        | u64::from(target_number(policy.spill_target)) << option::SPILL_TARGET_SHIFT
        | u64::from(tier_number(policy.min_residency)) << option::MIN_RESIDENCY_SHIFT
}

/// Takes an entry apart and notes what was looked at: what is left must be 0.
struct Reader<'a> {
    head: Head,
    words: &'a [u64],
    words_used: usize,
    flags_known: u8,
}

impl<'a> Reader<'a> {
    fn new(head: Head, contents: &'a Contents) -> Self {
        Self { head, words: &contents[1..], words_used: 0, flags_known: 0 }
    }

    fn submission(mut self, op: Op) -> Result<Submission, PayloadError> {
        let submission = match op {
            Op::Unknown => {
                return Err(PayloadError::invalid(format!(
                    "operation {} is not known; this server knows 1 to {}",
                    self.head.op,
                    Op::ALL.len() - 1
                )));
            }
            Op::Acquire => Submission::Acquire {
                id: PayloadId::from_bytes(self.id()),
                min_tier: self.tier()?,
                policy: self.promotion_policy()?,
                accepts_packed: self.flag(flag::ACCEPTS_PACKED),
                expected_version: self.version()?,
                deadline_ms: self.word(),
            },
            Op::Release => Submission::Release { lease: self.lease() },
            Op::Resolve => Submission::Resolve { id: PayloadId::from_bytes(self.id()) },
            Op::Delete => Submission::Delete {
                id: PayloadId::from_bytes(self.id()),
                force: self.flag(flag::FORCE),
                expected_version: self.version()?,
            },
            Op::Promote => Submission::Promote {
                id: PayloadId::from_bytes(self.id()),
                target: self
                    .tier()?
                    .ok_or_else(|| PayloadError::invalid("tier is 0; say where to promote to"))?,
                policy: self.promotion_policy()?,
                expected_version: self.version()?,
                deadline_ms: self.word(),
            },
            Op::Spill => Submission::Spill {
                id: PayloadId::from_bytes(self.id()),
                target: target("tier", std::mem::take(&mut self.head.tier))?,
                policy: if self.is_best_effort()? { SpillPolicy::BestEffort } else { SpillPolicy::Blocking },
                wait_for_leases: self.flag(flag::WAIT_FOR_LEASES),
                fsync: self.flag(flag::FSYNC),
                expected_version: self.version()?,
                deadline_ms: self.word(),
            },
            Op::Allocate => self.allocate()?,
            Op::Commit => {
                let id = PayloadId::from_bytes(self.id());
                let checksum = self.optional(flag::CHECKSUM, "the checksum")?.map(Checksum);
                Submission::Commit { id, checksum, accepted: self.flag(flag::ACCEPTED) }
            }
            Op::Abort => Submission::Abort { id: PayloadId::from_bytes(self.id()) },
        };
        self.rest_is_zero()?;
        Ok(submission)
    }

    fn allocate(&mut self) -> Result<Submission, PayloadError> {
        let (size, ttl_ms, options, deadline_ms) = (self.word(), self.word(), self.word(), self.word());
        if !(1..=limits::PAYLOAD_BYTES_MAX).contains(&size) {
            return Err(PayloadError::invalid(format!(
                "the size is {size}; a payload has 1 to {} bytes ({})",
                limits::PAYLOAD_BYTES_MAX,
                ByteCount(limits::PAYLOAD_BYTES_MAX)
            )));
        }
        if ttl_ms > limits::STORED_INTEGER_MAX {
            return Err(PayloadError::invalid(format!(
                "the ttl is {ttl_ms} ms; it is {} at most, and 0 for no expiry",
                limits::STORED_INTEGER_MAX
            )));
        }
        if options & !option::ALL != 0 {
            return Err(PayloadError::invalid(format!(
                "the options are {options:#x}; the bits {:#x} have no meaning and must be 0",
                options & !option::ALL
            )));
        }
        let byte = |shift: u32| (options >> shift) as u8;
        let policy = EvictionPolicy {
            priority: priority(byte(option::PRIORITY_SHIFT))?,
            require_durable: options & option::REQUIRE_DURABLE != 0,
            spill_target: target("spill_target", byte(option::SPILL_TARGET_SHIFT))?,
            min_residency: tier("min_residency_tier", byte(option::MIN_RESIDENCY_SHIFT))?,
        };
        policy.validate()?;
        let tier = self.tier()?.ok_or_else(|| PayloadError::invalid("tier is 0; say where to allocate"))?;
        let memory = match options & (option::ARENA | option::SEALED) {
            0 => Memory::Segment,
            option::ARENA => Memory::Arena,
            option::SEALED => Memory::Sealed,
            _ => {
                return Err(PayloadError::invalid(
                    "ARENA and SEALED are both set; choose one kind of memory",
                ));
            }
        };
        if memory != Memory::Segment && tier != Tier::Ram {
            return Err(PayloadError::invalid(
                "ARENA or SEALED is set, and the tier is not RAM; they are kinds of memory",
            ));
        }
        Ok(Submission::Allocate {
            size: ByteCount(size),
            tier,
            ttl_ms,
            no_evict: options & option::NO_EVICT != 0,
            policy,
            memory,
            deadline_ms,
        })
    }

    fn word(&mut self) -> u64 {
        let word = self.words[self.words_used];
        self.words_used += 1;
        word
    }

    fn id(&mut self) -> [u8; 16] {
        id_bytes([self.word(), self.word()])
    }

    fn lease(&mut self) -> LeaseId {
        LeaseId::from_slice(&self.id()).expect("16 bytes are a lease id")
    }

    fn flag(&mut self, flag: u8) -> bool {
        self.flags_known |= flag;
        self.head.flags & flag != 0
    }

    fn optional(&mut self, flag: u8, what: &str) -> Result<Option<u64>, PayloadError> {
        let word = self.word();
        match self.flag(flag) {
            true => Ok(Some(word)),
            false if word == 0 => Ok(None),
            false => Err(PayloadError::invalid(format!(
                "{what} is {word}, and the flag that says it is there is not set; set the flag or send 0"
            ))),
        }
    }

    fn version(&mut self) -> Result<Option<Version>, PayloadError> {
        Ok(self.optional(flag::VERSION, "the expected version")?.map(Version))
    }

    fn tier(&mut self) -> Result<Option<Tier>, PayloadError> {
        tier("tier", std::mem::take(&mut self.head.tier))
    }

    fn promotion_policy(&mut self) -> Result<PromotionPolicy, PayloadError> {
        Ok(if self.is_best_effort()? { PromotionPolicy::BestEffort } else { PromotionPolicy::Blocking })
    }

    fn is_best_effort(&mut self) -> Result<bool, PayloadError> {
        match std::mem::take(&mut self.head.policy) {
            BLOCKING => Ok(false),
            BEST_EFFORT => Ok(true),
            other => Err(PayloadError::invalid(format!(
                "policy {other} is not known; use {BLOCKING} (blocking) or {BEST_EFFORT} (best effort)"
            ))),
        }
    }

    /// Bits that this operation gives no meaning to must be 0.
    fn rest_is_zero(&self) -> Result<(), PayloadError> {
        let unknown = self.head.flags & !self.flags_known;
        let rest = [
            ("flags", u64::from(unknown)),
            ("tier", self.head.tier.into()),
            ("policy", self.head.policy.into()),
        ];
        for (what, value) in rest {
            if value != 0 {
                return Err(PayloadError::invalid(format!(
                    "{what} {value:#x} has no meaning for this operation and must be 0"
                )));
            }
        }
        match self.words[self.words_used..].iter().find(|word| **word != 0) {
            None => Ok(()),
            Some(word) => Err(PayloadError::invalid(format!(
                "an unused word of the entry is {word:#x}; what an operation does not use must be 0"
            ))),
        }
    }
}

fn tier(what: &str, number: u8) -> Result<Option<Tier>, PayloadError> {
    match number {
        0 => Ok(None),
        _ => match Tier::from_number(number.into()) {
            Some(tier) => Ok(Some(tier)),
            None => Err(PayloadError::invalid(format!(
                "{what} {number} is no tier; 1 is GPU, 2 RAM, 3 DISK, 4 OBJECT, 0 not said"
            ))),
        },
    }
}

fn target(what: &str, number: u8) -> Result<Option<SpillTarget>, PayloadError> {
    match number {
        VOID => Ok(Some(SpillTarget::Void)),
        _ => Ok(tier(what, number)?.map(SpillTarget::Tier)),
    }
}

fn priority(number: u8) -> Result<EvictionPriority, PayloadError> {
    use EvictionPriority::{High, Low, Never, Normal, Unspecified};
    let all = [Unspecified, Low, Normal, High, Never];
    all.get(usize::from(number)).copied().ok_or_else(|| {
        PayloadError::invalid(format!("priority {number} is not known; it is 0 (not said) to 4 (never)"))
    })
}

/// Its place in `ErrorKind::ALL`, from 1 on; 0 is success.
fn kind_number(kind: ErrorKind) -> u8 {
    let at = ErrorKind::ALL.iter().position(|known| *known == kind).expect("every kind has a number");
    at as u8 + 1
}

/// What a completion says that no server of this version writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Nonsense;

impl Completion {
    /// The entry that says this.
    pub fn encode(&self) -> Contents {
        let (mut status, mut location_kind, mut words) = (0, LOCATION_NONE, [0; 6]);
        match &self.outcome {
            Outcome::Done => {}
            Outcome::Leased(lease, shown) => {
                location_kind = shown.write(id_words(lease.as_bytes()), &mut words);
            }
            Outcome::Payload(id, shown) => {
                location_kind = shown.write(id_words(id.as_bytes()), &mut words);
            }
            Outcome::Refused { kind, has_text } => {
                status = kind_number(*kind);
                words[5] = if *has_text { TEXT_BIT } else { 0 };
            }
        }
        let stage = u8::from(!self.is_last);
        let head =
            Head { op: self.op as u8, flags: status, tier: stage, policy: location_kind, tag: self.tag };
        [head.word(), words[0], words[1], words[2], words[3], words[4], words[5]]
    }

    /// The tag alone: who is to be told even of nonsense.
    pub fn tag_of(contents: &Contents) -> u32 {
        Head::of(contents[0]).tag
    }

    /// False for ACCEPTED of a Commit, whose answer is to follow.
    pub fn is_last_of(contents: &Contents) -> bool {
        // The stage lies where submissions have their tier.
        Head::of(contents[0]).tier == 0
    }

    /// Reads an entry that a server wrote.
    ///
    /// # Errors
    /// [`Nonsense`] when it is none of this version.
    pub fn decode(contents: &Contents) -> Result<Self, Nonsense> {
        let Head { op, flags: status, tier: stage, policy: location_kind, tag } = Head::of(contents[0]);
        let op = Op::from_number(op).ok_or(Nonsense)?;
        let words: &[u64; 6] = contents[1..].try_into().expect("six of seven words");
        let outcome = match (status, op) {
            (0, Op::Unknown) => return Err(Nonsense),
            (0, Op::Acquire) => {
                let bytes = id_bytes([words[0], words[1]]);
                let lease = LeaseId::from_slice(&bytes).expect("16 bytes are a lease id");
                Outcome::Leased(lease, Shown::read(location_kind, words)?)
            }
            (0, Op::Release | Op::Delete | Op::Abort | Op::Spill)
                if location_kind == LOCATION_NONE && words.iter().all(|word| *word == 0) =>
            {
                Outcome::Done
            }
            (0, Op::Release | Op::Delete | Op::Abort) => return Err(Nonsense),
            (0, Op::Resolve | Op::Promote | Op::Spill | Op::Allocate | Op::Commit) => {
                let id = PayloadId::from_bytes(id_bytes([words[0], words[1]]));
                Outcome::Payload(id, Shown::read(location_kind, words)?)
            }
            (status, _) => {
                let kind = *ErrorKind::ALL.get(usize::from(status) - 1).ok_or(Nonsense)?;
                Outcome::Refused { kind, has_text: words[5] & TEXT_BIT != 0 }
            }
        };
        let is_last = match stage {
            0 => true,
            1 if op == Op::Commit => false,
            _ => return Err(Nonsense),
        };
        Ok(Self { op, tag, is_last, outcome })
    }
}

impl Shown {
    /// Writes it behind an id, and returns the kind of its location.
    fn write(&self, id: [u64; 2], words: &mut [u64; 6]) -> u8 {
        let (kind, location) = match self.location {
            None => (LOCATION_NONE, 0),
            Some(Location::Segment) => (LOCATION_SEGMENT, 0),
            Some(Location::File(generation)) => (LOCATION_FILE, generation.0),
            Some(Location::Packed(extent)) => (LOCATION_PACKED, extent.to_bits()),
            Some(Location::Arena(block)) => (LOCATION_ARENA, block.to_bits()),
            Some(Location::Object) => (LOCATION_OBJECT, 0),
            Some(Location::Gpu(generation)) => (LOCATION_GPU, generation.0),
        };
        let last = u64::from(self.tier as u8) | u64::from(self.state as u8) << 8;
        *words = [id[0], id[1], self.size.0, location, self.version.0, last];
        kind
    }

    fn read(location_kind: u8, words: &[u64; 6]) -> Result<Self, Nonsense> {
        let [_, _, size, location, version, last] = *words;
        let location = match location_kind {
            LOCATION_NONE if location == 0 => None,
            LOCATION_SEGMENT if location == 0 => Some(Location::Segment),
            LOCATION_OBJECT if location == 0 => Some(Location::Object),
            LOCATION_GPU => Some(Location::Gpu(Generation(location))),
            LOCATION_FILE => Some(Location::File(Generation(location))),
            LOCATION_PACKED => Some(Location::Packed(Extent::from_bits(location).ok_or(Nonsense)?)),
            LOCATION_ARENA => Some(Location::Arena(Block::from_bits(location).ok_or(Nonsense)?)),
            _ => return Err(Nonsense),
        };
        if !(1..=limits::PAYLOAD_BYTES_MAX).contains(&size) || last >> 16 != 0 {
            return Err(Nonsense);
        }
        Ok(Self {
            tier: Tier::from_number((last & 0xFF) as i64).ok_or(Nonsense)?,
            state: PayloadState::from_number((last >> 8) as i64).ok_or(Nonsense)?,
            location,
            size: ByteCount(size),
            version: Version(version),
        })
    }
}
