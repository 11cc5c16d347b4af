//! What the catalog keeps beside payload rows: metadata with its history, lineage, and streams.
//!
//! Changes go from the front through the catalog writer's one FIFO, so that a payload's row is always stored before what
//! refers to it; queries go to reader connections. One change of a group never fails another: what a change met is its
//! [`RecordOutcome`]. Sizes and names are checked by `wire` before a change is made.

use crate::find::{FindOrder, IdSpan, MetadataFilter};
use crate::foreign::{Foreign, ForeignPage};
use crate::ids::{NamespaceId, PayloadId, PayloadKey};
use crate::request::List;
use crate::tier::Tier;
use crate::time::WallMs;
use crate::upload::UploadChange;

/// Opaque bytes that a client attaches to a payload, and the name of their schema.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Metadata {
    /// At most `limits::OPAQUE_BYTES_MAX`, kept byte for byte.
    pub data: Vec<u8>,
    /// Any text, NULs included.
    pub schema: String,
}

/// How an update treats what was there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MetadataMode {
    /// Both fields are replaced.
    Replace,
    /// An empty field keeps the old value; of two JSON objects the new one is an RFC 7396 merge patch.
    Merge,
}

/// What an entry of the metadata history tells of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum MetadataEventKind {
    /// UpdatePayloadMetadata, REPLACE: `data` and `schema` are what resulted.
    Replaced = 1,
    /// UpdatePayloadMetadata, MERGE: `data` and `schema` are what resulted.
    Merged = 2,
    /// AppendPayloadMetadataEvent: the current metadata stayed as it was.
    Noted = 3,
}

/// One entry of a payload's metadata history; never changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MetadataEvent {
    /// Its number in the payload's history: 1, 2, ... without a gap.
    pub number: u64,
    /// When it was recorded.
    pub at: WallMs,
    /// What it tells of.
    pub kind: MetadataEventKind,
    /// The metadata.
    pub metadata: Metadata,
    /// Who did it: `actor` of an update, `source` of a note.
    pub source: String,
    /// `reason` of an update; empty for a note.
    pub reason: String,
    /// `version` of a note; empty for an update.
    pub version: String,
}

/// An edge of the lineage, keyed by all but its parameters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LineageEdge {
    /// What was made.
    pub child: PayloadId,
    /// Of what.
    pub parent: PayloadId,
    /// By what.
    pub operation: String,
    /// As what the parent served.
    pub role: String,
    /// At most `limits::OPAQUE_BYTES_MAX`, kept byte for byte.
    pub parameters: Vec<u8>,
}

/// The name of a stream: unique in its namespace, which may be empty.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct StreamName {
    /// At most 255 bytes, no NUL.
    pub namespace: String,
    /// 1 to 255 bytes, no NUL.
    pub name: String,
}

/// `google.protobuf.Timestamp`, as a client gave it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Timestamp {
    /// Seconds since 1970, negative ones included.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanoseconds: u32,
}

/// An entry to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StreamItem {
    /// The payload.
    pub payload: PayloadId,
    /// When it happened, if the client says.
    pub event_time: Option<Timestamp>,
    /// How long it lasted.
    pub duration_ns: u64,
    /// In the order of their keys, each once.
    pub tags: Vec<(String, String)>,
}

/// An entry of a stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StreamEntry {
    /// Its place: 0, 1, ... without a gap, never used again.
    pub offset: u64,
    /// When it was appended.
    pub appended_at: WallMs,
    /// What was appended.
    pub item: StreamItem,
}

/// What a stream keeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StreamLimits {
    /// The newest so many; `None`: all.
    pub entries_max: Option<u64>,
    /// Those appended within so long, in milliseconds; `None`: all.
    pub age_ms_max: Option<u64>,
    /// Their payloads, too, until every group has committed past them (`hold`).
    pub retains_payloads: bool,
}

/// How far a stream that retains payloads holds them: those of entries at `floor` or behind it. It is the least offset that
/// some group wants next, or the oldest entry that is kept; without any group it is the latter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StreamFloor {
    /// The stream's incarnation.
    pub stream: u64,
    /// The first offset that is held; `limits::STORED_INTEGER_MAX`: the stream is gone.
    pub floor: u64,
}

/// A change of records. At most a transaction's outcome is in doubt, never a change's: the store makes each at most once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RecordChange {
    /// Replaces or merges the current metadata, and adds to the history. -> `Metadata`, `NotFound`,
    /// `Lost`, `TooLarge`.
    MetadataUpdate {
        /// Whose.
        key: PayloadKey,
        /// How.
        mode: MetadataMode,
        /// With what.
        metadata: Metadata,
        /// Who does it.
        actor: String,
        /// And why.
        reason: String,
        /// Now.
        at: WallMs,
    },
    /// Adds to the history. -> `Done`, `NotFound`, `Lost`.
    MetadataNote {
        /// Whose.
        key: PayloadKey,
        /// What.
        metadata: Metadata,
        /// Who says so.
        source: String,
        /// In which version.
        version: String,
        /// Now.
        at: WallMs,
    },
    /// Adds or replaces edges: all, or none when a payload is unknown. -> `Done`, `NotFound`, `Lost`.
    LineageAdd {
        /// The namespace and id of the child; parents are of the same namespace.
        child: PayloadKey,
        /// Edges to `child`.
        edges: Vec<LineageEdge>,
        /// Now.
        at: WallMs,
    },
    /// Makes an empty stream. -> `Done`, `StreamExists`.
    StreamCreate {
        /// Its name.
        stream: StreamName,
        /// What it keeps.
        limits: StreamLimits,
        /// Now.
        at: WallMs,
    },
    /// Removes a stream, its entries and its groups' positions. -> `Done`, also when there is none; `Floored` for one that
    /// retained payloads.
    StreamDelete {
        /// Which.
        stream: StreamName,
    },
    /// Appends all items at contiguous offsets, or none. -> `Appended`, or `AppendedHeld` to a stream that retains
    /// payloads; `StreamNotFound`, `NotFound`, `Lost`, `NotCommitted`, `NotHeld`.
    StreamAppend {
        /// Where.
        stream: StreamName,
        /// At least one.
        items: Vec<StreamItem>,
        /// Their shards hold the payloads: a stream that retains payloads takes no others. Such a payload has not expired,
        /// whatever its ttl.
        held: bool,
        /// Now; the payloads must be committed, and not expired by then.
        at: WallMs,
    },
    /// Stores how far a group has come. -> `Done`, `Floored` where the stream retains payloads, `StreamNotFound`,
    /// `BeyondEnd`.
    StreamCommit {
        /// Where.
        stream: StreamName,
        /// Who.
        group: String,
        /// The next offset that it wants: at most the stream's end.
        offset: u64,
        /// Now.
        at: WallMs,
    },
    /// Forgets a group, as if it had never committed. -> `Done`, `Floored` where the stream retains payloads,
    /// `StreamNotFound`, `GroupNotFound`.
    GroupRemove {
        /// Where.
        stream: StreamName,
        /// Who.
        group: String,
    },
    /// An append or a change of metadata that a client may send again: made once, however often it comes within
    /// `limits::REPEATS_KEPT_MS`, also after a restart. -> as the change itself; of metadata that were changed before,
    /// `Before`; `UsedBefore`.
    Once {
        /// The method and the client's own id of the call.
        id: String,
        /// A hash of what was asked; its highest bit does not count.
        request: u64,
        /// Now.
        at: WallMs,
        /// What is asked.
        change: Box<RecordChange>,
    },
    /// A change of metadata or lineage, by word of the payloads' shards that none of them has expired, whatever its row says:
    /// streams keep them. As the change itself.
    Vouched(Box<RecordChange>),
    /// A change of the upload journal of the object store. -> `Done`.
    Upload(UploadChange),
    /// Retention and lineage that no living payload is connected with: a bounded share of the work. -> `Swept`.
    Sweep {
        /// Now.
        at: WallMs,
    },
}

impl RecordChange {
    /// The change itself, whatever was said about it.
    pub fn bare(&self) -> &Self {
        match self {
            Self::Vouched(change) | Self::Once { change, .. } => change.bare(),
            change => change,
        }
    }
}

/// What a change met, and what it made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RecordOutcome {
    /// Made.
    Done,
    /// The metadata that resulted.
    Metadata(Metadata),
    /// Appended.
    Appended {
        /// The first offset.
        first: u64,
        /// The last one.
        last: u64,
    },
    /// Appended to a stream that retains payloads.
    AppendedHeld {
        /// The first offset.
        first: u64,
        /// The last one.
        last: u64,
        /// How far the stream holds payloads now.
        floor: StreamFloor,
    },
    /// Made; how far the stream holds payloads now.
    Floored(StreamFloor),
    /// So much was removed; `more`: there is more to do.
    Swept {
        /// Entries that no stream keeps any more, and edges.
        removed: u64,
        /// There is more to do.
        more: bool,
        /// Streams that retain payloads and keep fewer entries now.
        floors: Vec<StreamFloor>,
    },
    /// Nothing changed: the same call was made before, at this time, and met that.
    Before {
        /// When.
        at: WallMs,
        /// What it met.
        outcome: Box<RecordOutcome>,
    },
    /// Nothing changed: the call's id was used for another request.
    UsedBefore,
    /// Nothing changed: the stream retains payloads, and nobody holds these.
    NotHeld,
    /// Nothing changed: there is no row of this payload, or it has expired.
    NotFound(PayloadId),
    /// Nothing changed: the payload's bytes did not survive a restart.
    Lost(PayloadId),
    /// Nothing changed: the payload is not committed yet.
    NotCommitted(PayloadId),
    /// Nothing changed: what a merge results in is longer than `limits::OPAQUE_BYTES_MAX`.
    TooLarge {
        /// Its length in bytes.
        bytes: u64,
    },
    /// Nothing changed: there is no such stream.
    StreamNotFound,
    /// Nothing changed: there is one of this name.
    StreamExists,
    /// Nothing changed: the stream has no such group.
    GroupNotFound,
    /// Nothing changed: the stream ends at `end`.
    BeyondEnd {
        /// The offset that the next entry gets.
        end: u64,
    },
}

/// A question about records.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RecordQuery {
    /// -> `Metadata`, `NotFound`, `Lost`.
    Metadata {
        /// Whose.
        key: PayloadKey,
        /// Now.
        at: WallMs,
    },
    /// Entries of the history, oldest first. -> `MetadataEvents`, `NotFound`, `Lost`.
    MetadataEvents {
        /// Whose.
        key: PayloadKey,
        /// Those with a greater number.
        after: u64,
        /// At most so many; fewer where their bytes would pass `limits::ANSWER_BYTES_MAX`, but at least one.
        entries_max: usize,
        /// Now.
        at: WallMs,
    },
    /// Edges met from a payload, breadth first, each once; those of one payload by (other end, operation, role).
    /// -> `Lineage`, `NotFound`, `Lost`, `TooLarge`.
    Lineage {
        /// From here.
        key: PayloadKey,
        /// Towards parents, or towards children.
        upstream: bool,
        /// So many steps; 0: all.
        depth_max: u32,
        /// Now.
        at: WallMs,
    },
    /// -> `Stream`, `StreamNotFound`.
    Stream(StreamName),
    /// The streams there are, by name, after `after`. -> `Streams`.
    Streams {
        /// Those behind this one.
        after: Option<StreamName>,
        /// At most so many.
        entries_max: usize,
    },
    /// Entries, oldest first, from `from` or the oldest that is kept. -> `Entries`, `StreamNotFound`.
    StreamRead {
        /// Where.
        stream: StreamName,
        /// The first offset.
        from: u64,
        /// The last offset.
        to: u64,
        /// Those appended then or later.
        not_before: Option<Timestamp>,
        /// At most so many; fewer where their bytes would pass `limits::ANSWER_BYTES_MAX`, but at least one.
        entries_max: usize,
        /// Now: what is older than the stream keeps is not given.
        at: WallMs,
    },
    /// How far the streams that retain payloads hold them, in the order of their incarnations. -> `Floors`.
    Floors {
        /// Those with a greater one.
        after: u64,
        /// At most so many.
        streams_max: usize,
    },
    /// How far a group has come. -> `Committed`, `StreamNotFound`.
    Committed {
        /// Where.
        stream: StreamName,
        /// Who.
        group: String,
    },
    /// The groups of a stream, by name, after `after`. -> `Groups`, `StreamNotFound`.
    Groups {
        /// Where.
        stream: StreamName,
        /// Those behind this one; empty: from the first on.
        after: String,
        /// At most so many.
        groups_max: usize,
    },
    /// How far streams have come, in one look. -> `StreamEnds`.
    StreamEnds(Vec<StreamName>),
    /// Payloads that other nodes own, as far as there are such: neither those that are not committed nor expired ones.
    /// -> `Foreign`, in no order.
    Foreign {
        /// Whose payloads.
        namespace: NamespaceId,
        /// Which ones.
        ids: Vec<PayloadId>,
        /// Now.
        at: WallMs,
    },
    /// A page of the payloads that other nodes own: as each of this node's shards answers the same request.
    /// -> `ForeignPage`.
    ForeignPage {
        /// What every shard is asked.
        list: List,
        /// Now.
        at: WallMs,
    },
    /// Payloads whose current metadata are as asked, whatever became of the payloads: a bounded part of them.
    /// -> `Candidates`.
    Find {
        /// Whose payloads.
        namespace: NamespaceId,
        /// Only these.
        span: IdSpan,
        /// From which end.
        order: FindOrder,
        /// What the metadata must be: not empty.
        filter: MetadataFilter,
    },
    /// Payloads that other nodes own, from one end of a span on, as `ForeignPage` has them: at most
    /// `find::FIND_STEPS_MAX`. -> `ForeignPage`, with the total 0.
    ForeignSpan {
        /// Whose payloads.
        namespace: NamespaceId,
        /// Only these.
        span: IdSpan,
        /// From which end.
        order: FindOrder,
        /// Only those on this tier.
        tier: Option<Tier>,
        /// Now.
        at: WallMs,
    },
}

/// What is known of a stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StreamInfo {
    /// Its name.
    pub stream: StreamName,
    /// What it keeps.
    pub limits: StreamLimits,
    /// The offset of the oldest entry that is kept; `end` when there is none.
    pub first: u64,
    /// The offset that the next entry gets.
    pub end: u64,
    /// Which of the streams that had this name: a later one has a greater number.
    pub incarnation: u64,
}

/// A group of consumers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StreamGroup {
    /// Its name.
    pub name: String,
    /// The offset that it wants next.
    pub next: u64,
    /// When it committed last.
    pub at: WallMs,
}

/// The answer to a [`RecordQuery`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RecordAnswer {
    /// The current metadata and when it was set; `None`: never.
    Metadata(Option<(Metadata, WallMs)>),
    /// Entries of the history, and whether there are more.
    MetadataEvents(Vec<MetadataEvent>, bool),
    /// Edges.
    Lineage(Vec<LineageEdge>),
    /// A stream.
    Stream(StreamInfo),
    /// Streams, and whether there are more.
    Streams(Vec<StreamInfo>, bool),
    /// Entries of the stream as it is described, and whether there are more up to `to`.
    Entries(StreamInfo, Vec<StreamEntry>, bool),
    /// Streams that retain payloads, and whether there are more.
    Floors(Vec<(StreamName, StreamFloor)>, bool),
    /// The offset; `None`: never committed.
    Committed(Option<u64>),
    /// Groups of a stream, and whether there are more.
    Groups(Vec<StreamGroup>, bool),
    /// (incarnation, end) of each stream that was asked for, in their order; `None`: there is none.
    StreamEnds(Vec<Option<(u64, u64)>>),
    /// Payloads of other nodes.
    Foreign(Vec<Foreign>),
    /// Payloads of other nodes, and how many match.
    ForeignPage(ForeignPage),
    /// Payloads whose metadata are as asked, in the order asked for, and the last id that was looked at; `None`: the whole
    /// span.
    Candidates(Vec<PayloadId>, Option<PayloadId>),
    /// There is no such payload, or it has expired.
    NotFound(PayloadId),
    /// The payload's bytes did not survive a restart.
    Lost(PayloadId),
    /// The answer would be longer than `limits::ANSWER_BYTES_MAX`.
    TooLarge,
    /// There is no such stream.
    StreamNotFound,
}
