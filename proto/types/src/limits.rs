//! Every limit, with the arithmetic that gave it. A queue or table without a line here is a defect.

/// The unit in which capacity is charged: the page of every machine we run on.
pub const PAGE_BYTES: u64 = 4096;

/// The largest payload: 128 GiB (behaviour.md, AllocatePayload).
pub const PAYLOAD_BYTES_MAX: u64 = 128 << 30;

/// The most shards of one node. Lease ids spend 16 bits on the shard; 256 is 16 times the default's ceiling.
pub const SHARD_COUNT_MAX: u16 = 256;

/// Payloads of one shard: 10^7 (DESIGN §10) must fit one shard; the next power of two above it.
pub const PAYLOADS_PER_SHARD_MAX: u32 = 1 << 24;

/// Leases of one shard: 2^20 x ~104 bytes (owner and time included) = 104 MiB at worst.
pub const LEASES_PER_SHARD_MAX: u32 = 1 << 20;

/// Requests waiting in a shard's mailbox. 1,024 x ~200 bytes = 200 KiB; at 5 M steps/s it is 0.2 ms of work.
pub const REQUEST_LANE_LEN: usize = 1024;

/// Requests a shard has accepted and not answered: those in flight and those parked behind them.
pub const REQUESTS_PER_SHARD_MAX: usize = 4096;

/// Operations of one shard that drivers or the catalog work on for clients.
pub const OPS_FOR_REQUESTS: usize = 1024;

/// Parts of batches (BatchCommit) that one shard has under way. Separate, so that a batch never takes the slots of other
/// clients: all batches of a node together have so many parts at most (the front's gate), wherever they hash to.
pub const OPS_FOR_BATCHES: usize = 1024;

/// Operations a shard starts by itself (expiry, reclaim, background moves). Separate, so that clients who fill
/// their own share never stop expiry, nor expiry clients.
pub const OPS_FOR_UPKEEP: usize = 256;

/// Of those a shard starts by itself: evictions that copy. Half, so that a slow disk under pressure leaves the other
/// half to expiry and to moves that clients asked for.
pub const EVICTIONS_PER_SHARD_MAX: usize = OPS_FOR_UPKEEP / 2;

/// Clients' operations of one shard that may wait for capacity. Half of their slots, so that a full tier never stops
/// the deletes that would make room.
pub const WAITERS_PER_SHARD_MAX: usize = OPS_FOR_REQUESTS / 2;

/// The in-flight table of one shard.
pub const OPS_PER_SHARD_MAX: usize = OPS_FOR_REQUESTS + OPS_FOR_BATCHES + OPS_FOR_UPKEEP;

/// Replicas one shard has handed to a driver to be dropped and that are not yet detached.
pub const DROPS_IN_FLIGHT_MAX: usize = 256;

/// Budget asks one shard may have open: each belongs to an operation.
pub const BUDGET_ASKS_PER_SHARD_MAX: usize = OPS_PER_SHARD_MAX;

/// Completions waiting for a shard. Each operation has at most one under way with a driver or the catalog, each
/// drop two (detached, freed), each budget ask one and one recall a tier; so a lane of their sum never refuses.
/// Freed notices of segments that a client keeps mapped arrive late and are bounded by the drivers' retire lane.
pub const COMPLETION_LANE_LEN: usize = OPS_PER_SHARD_MAX
    + 2 * DROPS_IN_FLIGHT_MAX
    + BUDGET_ASKS_PER_SHARD_MAX
    + RETIRED_NOTICES_MAX
    + RECALLS_MAX
    + RELOCATIONS_MAX;

/// Freed notices a driver may have posted to one shard and the shard not yet read. The driver holds further ones
/// back: nobody waits for them but the budget.
pub const RETIRED_NOTICES_MAX: usize = 1024;

/// Orders (recalls) the arbiter may have open with one shard: one a tier.
pub const RECALLS_MAX: usize = 4;

/// Replicas that the disk store has asked to be moved to another segment file, and not been answered yet. 16 of the
/// smallest share an fdatasync; 16 of the largest are a GiB, which is 16 s at the default pace.
pub const RELOCATIONS_MAX: usize = 16;

/// Catalog operations queued for the writer by one shard: one per operation in flight.
pub const CATALOG_LANE_PER_SHARD: usize = OPS_PER_SHARD_MAX;

/// Work items of one bounded turn: mass expiry, session cleanup, drops resume after this many (DESIGN §1.3).
pub const ITEMS_PER_TURN_MAX: usize = 256;

/// Requests handled between two looks at the completion lane.
pub const REQUESTS_PER_TURN_MAX: usize = 64;

/// Outbox entries one `step` may add at worst. A timer step handles `ITEMS_PER_TURN_MAX` items, each with at most
/// four effects (catalog, drop, budget, reply); every other step stays far below.
pub const OUTBOX_STEP_MAX: usize = 4 * ITEMS_PER_TURN_MAX + OUTBOX_REPLIES_MAX;

/// Replies one step may release at worst: all requests parked behind one payload are looked at in turns of this.
pub const OUTBOX_REPLIES_MAX: usize = ITEMS_PER_TURN_MAX;

/// ListPayloads: rows of a page when none is asked for, and at most (behaviour.md).
pub const LIST_PAGE_DEFAULT: usize = 50;
/// See [`LIST_PAGE_DEFAULT`].
pub const LIST_PAGE_MAX: usize = 500;

/// Ids in one Spill request: as the batch RPCs.
pub const SPILL_IDS_MAX: usize = BATCH_ITEMS_MAX;

/// Items of BatchAllocate, BatchCommit, BatchAcquire and BatchRelease: 1,000.
pub const BATCH_ITEMS_MAX: usize = 1000;

/// A batch of fewer parts counts as so many at the gate that lets `OPS_FOR_BATCHES` parts in at a time.
pub const BATCH_PARTS_COUNTED_MIN: usize = 16;

/// Batches that commit at a time on one node: 64. Each may have two messages beside its parts in the catalog writer's
/// queue.
pub const BATCHES_MAX: usize = OPS_FOR_BATCHES / BATCH_PARTS_COUNTED_MIN;

/// `leases.default_lease` and `leases.max_lease` when not configured, in milliseconds.
pub const LEASE_MS_DEFAULT: u64 = 20_000;
/// See [`LEASE_MS_DEFAULT`].
pub const LEASE_MS_MAX_DEFAULT: u64 = 120_000;

/// `leases.allocation_timeout`: an allocation that is never committed is reclaimed after 1 h.
pub const ALLOCATION_TIMEOUT_MS_DEFAULT: u64 = 3_600_000;

/// `limits.allocate_wait`: an allocation without a deadline waits 30 s for space (behaviour.md).
pub const ALLOCATE_WAIT_MS_DEFAULT: u64 = 30_000;

/// Opaque bytes of metadata and lineage parameters: 1 MiB (behaviour.md).
pub const OPAQUE_BYTES_MAX: usize = 1 << 20;

/// One gRPC message: the largest legal request is 1 MiB of opaque bytes, twice, with room for the rest.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// Entries, events or edges of one answer, in encoded bytes: what one message may be, less 64 KiB for what is around them.
pub const ANSWER_BYTES_MAX: usize = MESSAGE_BYTES_MAX - (64 << 10);

/// Names of streams, of their namespaces and of consumer groups: 255 bytes (behaviour.md).
pub const NAME_BYTES_MAX: usize = 255;

/// Other texts that clients attach (schema, actor, reason, operation, role, tags): long enough for a page of prose; what
/// is longer belongs into opaque bytes.
pub const TEXT_BYTES_MAX: usize = 64 << 10;

/// Entries of one Read or GetRange (behaviour.md).
pub const STREAM_READ_MAX: usize = 10_000;

/// ListPayloadMetadataEvents: entries of a page when none is asked for, and at most; as listings of payloads.
pub const EVENT_PAGE_DEFAULT: usize = LIST_PAGE_DEFAULT;
/// See [`EVENT_PAGE_DEFAULT`].
pub const EVENT_PAGE_MAX: usize = LIST_PAGE_MAX;

/// How long a call's `x-request-id` is remembered (behaviour.md, "Everywhere").
pub const REPEATS_KEPT_MS: u64 = 600_000;

/// Slabs, and memories of payloads' own, of one native session on one shard, those on their way back included: each is a
/// descriptor of the server's, and 1,024 slabs are 64 GiB.
pub const SLABS_PER_SESSION_MAX: usize = 1024;

/// Integers that the store keeps as signed 64 bits.
pub const STORED_INTEGER_MAX: u64 = i64::MAX as u64;

/// Changes one boot may make to a version before two boots could collide: 2^20 (DESIGN §4).
pub const VERSION_EPOCH_BITS: u32 = 20;

/// Bits of a replica's generation: 20 for the epoch (10^6 starts), 36 for the counter (6.8 x 10^10 replicas a
/// start); 56 together, which is what a direct lease's state word has room for.
pub const GENERATION_EPOCH_BITS: u32 = 20;
/// See [`GENERATION_EPOCH_BITS`].
pub const GENERATION_COUNTER_BITS: u32 = 36;

/// One disk write or read (DESIGN §6): at most 1 MiB.
pub const IO_BYTES_MAX: usize = 1 << 20;

/// Disk I/O in flight for one transfer: 8 x 1 MiB saturates the disks we measured (FACTS.md, depth 8).
pub const IO_DEPTH: usize = 8;

const _: () = assert!(GENERATION_EPOCH_BITS + GENERATION_COUNTER_BITS == 56);
const _: () = assert!(REQUESTS_PER_SHARD_MAX >= OPS_FOR_REQUESTS + OPS_FOR_BATCHES + REQUEST_LANE_LEN);
const _: () = assert!(BATCH_ITEMS_MAX <= OPS_FOR_BATCHES);
const _: () = assert!(LIST_PAGE_MAX >= LIST_PAGE_DEFAULT);
const _: () = assert!(PAYLOAD_BYTES_MAX < STORED_INTEGER_MAX);
const _: () = assert!(ITEMS_PER_TURN_MAX <= OPS_FOR_UPKEEP);
const _: () = assert!(EVICTIONS_PER_SHARD_MAX < OPS_FOR_UPKEEP && WAITERS_PER_SHARD_MAX < OPS_FOR_REQUESTS);
const _: () = assert!((IO_BYTES_MAX as u64).is_multiple_of(PAGE_BYTES));
