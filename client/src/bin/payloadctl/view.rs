//! How payloads and leases are shown: the objects of `--json`, and the cells of the tables.
//!
//! Field names are the contract's. Tiers and states are the contract's words without their prefix, in lower case, as
//! the flags take them.

use std::path::Path;

use payload_client::{Allocation, Descriptor, Lease, Location};
use payload_types::record::Timestamp;
use payload_types::reply::Summary;
use payload_types::tier::SpillTarget;
use payload_types::{ByteCount, Checksum, EvictionPriority, PayloadId, WallMs};
use serde::Serialize;

use crate::common::shown;
use crate::output::{Block, Column, Row, left, right};

const ID: Column = left("ID", 36);
const SIZE: Column = right("SIZE", 10);
const TIER: Column = left("TIER", 6);
const STATE: Column = left("STATE", 9);
const VERSION: Column = right("VERSION", 8);
const CHECKSUM: Column = left("CHECKSUM", 16);

/// A payload in short.
#[derive(Serialize)]
pub struct Brief {
    id: String,
    size_bytes: u64,
    tier: String,
    state: String,
    version: u64,
    checksum: Option<String>,
}

/// A payload and the file it came from or went to.
#[derive(Serialize)]
pub struct WithPath {
    #[serde(flatten)]
    brief: Brief,
    path: String,
}

/// A payload in full.
#[derive(Serialize)]
pub struct Full {
    #[serde(flatten)]
    brief: Brief,
    created_at: Option<String>,
    expires_at: Option<String>,
    eviction_policy: Policy,
    #[serde(flatten)]
    place: Option<Place>,
    #[serde(skip_serializing_if = "Option::is_none")]
    object_upload_path: Option<String>,
    /// Where nodes share a catalog.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<NodeAt>,
}

/// The node that holds a payload.
#[derive(Serialize)]
struct NodeAt {
    id: String,
    address: String,
}

#[derive(Serialize)]
struct Policy {
    priority: &'static str,
    require_durable: bool,
    spill_target: Option<String>,
    min_residency_tier: Option<String>,
}

/// Where the bytes lie: the contract's `oneof location`, by its field's name.
#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Place {
    Ram {
        shm_name: String,
        slab_id: u32,
        block_index: u64,
        length_bytes: u64,
    },
    Disk {
        path: String,
        offset_bytes: u64,
        length_bytes: u64,
    },
    Gpu {
        device_id: u32,
        ipc_handle: String,
        length_bytes: u64,
        /// What servers of this project add, from here on.
        #[serde(skip_serializing_if = "Option::is_none")]
        generation: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        arena_id: Option<u32>,
        #[serde(skip_serializing_if = "Option::is_none")]
        device_uuid: Option<String>,
    },
}

/// A lease and what it pins.
#[derive(Serialize)]
pub struct Leased {
    lease_id: String,
    lease_expires_at: String,
    #[serde(flatten)]
    payload: Full,
}

/// A line of `ls`: the contract's `PayloadSummary`.
#[derive(Serialize)]
pub struct Listed {
    id: String,
    tier: String,
    state: String,
    size_bytes: u64,
    created_at_ms: u64,
    expires_at_ms: u64,
    active_leases: u32,
    /// Where nodes share a catalog.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
}

/// The same, and whose it is.
#[derive(Serialize)]
#[serde(transparent)]
pub struct WithNode(pub Listed);

/// A payload that a spill discarded.
#[derive(Serialize)]
pub struct Discarded {
    id: String,
    state: &'static str,
}

impl From<&Descriptor> for Brief {
    fn from(descriptor: &Descriptor) -> Self {
        Self {
            id: descriptor.id.to_string(),
            size_bytes: descriptor.size.0,
            tier: word(descriptor.tier),
            state: word(descriptor.state),
            version: descriptor.version.0,
            checksum: descriptor.checksum.map(|checksum| checksum.to_string()),
        }
    }
}

impl WithPath {
    /// `descriptor` and the file's name; `checksum` is of the bytes that were moved, known or not to the server.
    pub fn new(descriptor: &Descriptor, checksum: Option<Checksum>, path: &Path) -> Self {
        let mut brief = Brief::from(descriptor);
        brief.checksum = brief.checksum.or_else(|| checksum.map(|checksum| checksum.to_string()));
        Self { brief, path: shown(path) }
    }
}

impl From<&Descriptor> for Full {
    fn from(descriptor: &Descriptor) -> Self {
        let policy = &descriptor.policy;
        Self {
            brief: descriptor.into(),
            created_at: descriptor.created_at.map(time),
            expires_at: descriptor.expires_at.map(time),
            eviction_policy: Policy {
                priority: match policy.priority {
                    EvictionPriority::Unspecified => "unspecified",
                    EvictionPriority::Low => "low",
                    EvictionPriority::Normal => "normal",
                    EvictionPriority::High => "high",
                    EvictionPriority::Never => "never",
                },
                require_durable: policy.require_durable,
                spill_target: policy.spill_target.map(|target| match target {
                    SpillTarget::Tier(tier) => word(tier),
                    SpillTarget::Void => "void".to_owned(),
                }),
                min_residency_tier: policy.min_residency.map(word),
            },
            place: descriptor.location.as_ref().map(Place::from),
            object_upload_path: None,
            node: descriptor
                .node
                .as_ref()
                .map(|node| NodeAt { id: node.name.clone(), address: node.address.clone() }),
        }
    }
}

impl From<&Allocation> for Full {
    fn from(allocation: &Allocation) -> Self {
        let object_upload_path = allocation.object_upload_path.clone();
        Self { object_upload_path, ..Self::from(&allocation.descriptor) }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl From<&Location> for Place {
    fn from(location: &Location) -> Self {
        match location {
            Location::Segment { shm_name, slab_id, block_index, length } => Self::Ram {
                shm_name: shm_name.clone(),
                slab_id: *slab_id,
                block_index: *block_index,
                length_bytes: length.0,
            },
            // Of a session's memory: no name, and the place in the slab in cache lines.
            Location::Block { slab, offset, length } => Self::Ram {
                shm_name: String::new(),
                slab_id: slab.get(),
                block_index: offset / payload_types::slab::BLOCK_UNIT_BYTES,
                length_bytes: length.0,
            },
            Location::File { path, offset, length } => {
                Self::Disk { path: shown(path), offset_bytes: *offset, length_bytes: length.0 }
            }
            Location::Gpu { device_id, ipc_handle, length, own } => Self::Gpu {
                device_id: *device_id,
                ipc_handle: hex(ipc_handle),
                length_bytes: length.0,
                generation: own.map(|own| own.generation.0),
                arena_id: own.map(|own| own.arena),
                device_uuid: own.map(|own| hex(&own.device_uuid)),
            },
            // As the contract shows it: an object's URI stands in `disk.path`.
            Location::Object { uri, length } => {
                Self::Disk { path: uri.clone(), offset_bytes: 0, length_bytes: length.0 }
            }
        }
    }
}

impl From<&Lease> for Leased {
    fn from(lease: &Lease) -> Self {
        Self {
            lease_id: lease.id.to_string(),
            lease_expires_at: time(lease.expires_at),
            payload: Full::from(&lease.descriptor),
        }
    }
}

impl From<&Summary> for Listed {
    fn from(summary: &Summary) -> Self {
        Self {
            id: summary.id.to_string(),
            tier: word(summary.tier),
            state: word(summary.state),
            size_bytes: summary.size.0,
            created_at_ms: summary.created_at.as_millis(),
            expires_at_ms: summary.expires_at.map_or(0, WallMs::as_millis),
            active_leases: summary.leases,
            node: None,
        }
    }
}

impl Listed {
    /// A payload that this node holds; an empty name: nodes share nothing.
    pub fn new(summary: &Summary, node: &str) -> Self {
        Self { node: Some(node.to_owned()).filter(|node| !node.is_empty()), ..Self::from(summary) }
    }
}

impl Discarded {
    /// It is gone.
    pub fn new(id: PayloadId) -> Self {
        Self { id: id.to_string(), state: "deleted" }
    }
}

impl Row for Brief {
    const COLUMNS: &'static [Column] = &[ID, SIZE, TIER, STATE, VERSION, CHECKSUM];
    fn cells(&self) -> Vec<String> {
        vec![
            self.id.clone(),
            ByteCount(self.size_bytes).to_string(),
            self.tier.clone(),
            self.state.clone(),
            self.version.to_string(),
            self.checksum.clone().unwrap_or_else(dash),
        ]
    }
}

impl Row for WithPath {
    const COLUMNS: &'static [Column] = &[ID, SIZE, TIER, STATE, VERSION, CHECKSUM, left("PATH", 0)];
    fn cells(&self) -> Vec<String> {
        let mut cells = self.brief.cells();
        cells.push(self.path.clone());
        cells
    }
}

impl Row for Listed {
    const COLUMNS: &'static [Column] =
        &[ID, SIZE, TIER, STATE, right("LEASES", 6), left("CREATED", 24), left("EXPIRES", 0)];
    fn cells(&self) -> Vec<String> {
        let expires = Some(self.expires_at_ms).filter(|millis| *millis != 0);
        vec![
            self.id.clone(),
            ByteCount(self.size_bytes).to_string(),
            self.tier.clone(),
            self.state.clone(),
            self.active_leases.to_string(),
            time(WallMs::from_millis(self.created_at_ms)),
            expires.map_or_else(dash, |millis| time(WallMs::from_millis(millis))),
        ]
    }
}

impl Row for WithNode {
    const COLUMNS: &'static [Column] = &[
        ID,
        SIZE,
        TIER,
        STATE,
        right("LEASES", 6),
        left("CREATED", 24),
        left("EXPIRES", 24),
        left("NODE", 0),
    ];
    fn cells(&self) -> Vec<String> {
        let mut cells = self.0.cells();
        cells.push(self.0.node.clone().unwrap_or_else(dash));
        cells
    }
}

impl Row for Discarded {
    const COLUMNS: &'static [Column] = Brief::COLUMNS;
    fn cells(&self) -> Vec<String> {
        vec![self.id.clone(), dash(), dash(), self.state.to_owned(), dash(), dash()]
    }
}

impl Block for Full {
    fn fields(&self) -> Vec<(&'static str, String)> {
        let brief = &self.brief;
        let size = match brief.size_bytes {
            bytes if bytes < 1024 => ByteCount(bytes).to_string(),
            bytes => format!("{} ({bytes} bytes)", ByteCount(bytes)),
        };
        let mut fields = vec![
            ("id", brief.id.clone()),
            ("size", size),
            ("tier", brief.tier.clone()),
            ("state", brief.state.clone()),
            ("version", brief.version.to_string()),
            ("checksum", brief.checksum.clone().unwrap_or_else(dash)),
            ("created", self.created_at.clone().unwrap_or_else(dash)),
            ("expires", self.expires_at.clone().unwrap_or_else(dash)),
            ("eviction priority", self.eviction_policy.priority.to_owned()),
            ("require durable", self.eviction_policy.require_durable.to_string()),
            ("spill target", self.eviction_policy.spill_target.clone().unwrap_or_else(dash)),
            ("min residency tier", self.eviction_policy.min_residency_tier.clone().unwrap_or_else(dash)),
        ];
        match &self.place {
            None => fields.push(("location", dash())),
            Some(Place::Ram { shm_name, slab_id, block_index, .. }) => {
                fields.push(("shared memory", shm_name.clone()));
                if (*slab_id, *block_index) != (0, 0) {
                    fields.push(("slab, block", format!("{slab_id}, {block_index}")));
                }
            }
            Some(Place::Disk { path, offset_bytes, .. }) => {
                fields.push(("file", path.clone()));
                fields.push(("offset", offset_bytes.to_string()));
            }
            Some(Place::Gpu { device_id, ipc_handle, device_uuid, .. }) => {
                fields.push(("gpu", device_id.to_string()));
                fields.extend(device_uuid.clone().map(|uuid| ("gpu uuid", uuid)));
                fields.push(("ipc handle", ipc_handle.clone()));
            }
        }
        fields.extend(self.object_upload_path.clone().map(|path| ("upload to", path)));
        fields.extend(self.node.as_ref().map(|node| ("node", format!("{} at {}", node.id, node.address))));
        fields
    }
}

impl Block for Leased {
    fn fields(&self) -> Vec<(&'static str, String)> {
        let lease = [("lease", self.lease_id.clone()), ("lease ends", self.lease_expires_at.clone())];
        lease.into_iter().chain(self.payload.fields()).collect()
    }
}

/// A contract's word without its prefix, as flags and JSON have it.
pub fn word(name: impl ToString) -> String {
    name.to_string().to_ascii_lowercase()
}

/// RFC 3339, in UTC.
pub fn time(wall: WallMs) -> String {
    let millis = wall.as_millis();
    // Both fit: a WallMs ends in the year 9999 (a hostile server's beyond i64 is shown as that year).
    let seconds = i64::try_from(millis.min(WallMs::MAX.as_millis()) / 1_000).unwrap_or(i64::MAX);
    let nanos = i32::try_from(millis % 1_000 * 1_000_000).unwrap_or_default();
    prost_types::Timestamp { seconds, nanos }.to_string()
}

/// A client's own moment, in RFC 3339.
pub fn time_of(time: Timestamp) -> String {
    let nanos = i32::try_from(time.nanoseconds).unwrap_or_default();
    prost_types::Timestamp { seconds: time.seconds, nanos }.to_string()
}

/// Bytes of any kind: `NAME` when they are text, else null and `NAME_hex`.
#[derive(Serialize)]
pub struct Opaque {
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Option<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_hex: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<Option<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters_hex: Option<String>,
}

impl Opaque {
    /// Named `data`.
    pub fn data(bytes: &[u8]) -> Self {
        let (text, hex) = text_or_hex(bytes);
        Self { data: Some(text), data_hex: hex, parameters: None, parameters_hex: None }
    }

    /// Named `parameters`.
    pub fn parameters(bytes: &[u8]) -> Self {
        let (text, hex) = text_or_hex(bytes);
        Self { data: None, data_hex: None, parameters: Some(text), parameters_hex: hex }
    }

    /// For people: text without control characters on one line, or how much there is of something else.
    pub fn shown(&self, length_bytes: usize) -> String {
        match self.data.iter().chain(&self.parameters).next() {
            Some(Some(text)) if !text.chars().any(char::is_control) => text.clone(),
            Some(Some(text)) if !text.contains('\0') => text.split_whitespace().collect::<Vec<_>>().join(" "),
            _ => format!("{length_bytes} bytes that are no text"),
        }
    }
}

fn text_or_hex(bytes: &[u8]) -> (Option<String>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text.to_owned()), None),
        Err(_) => (None, Some(bytes.iter().map(|byte| format!("{byte:02x}")).collect())),
    }
}

fn dash() -> String {
    "-".to_owned()
}

#[cfg(test)]
mod tests {
    use payload_client::Node;
    use payload_types::{EvictionPolicy, LeaseId, LeaseNonce, PayloadState, ShardIndex, Tier, Version};

    use super::*;

    fn descriptor() -> Descriptor {
        Descriptor {
            id: PayloadId::from_bytes([0xAB; 16]),
            tier: Tier::Disk,
            state: PayloadState::Durable,
            version: Version(4),
            size: ByteCount(1 << 20),
            location: Some(Location::File { path: "/d/x".into(), offset: 0, length: ByteCount(1 << 20) }),
            created_at: Some(WallMs::from_millis(1_700_000_000_123)),
            expires_at: None,
            policy: EvictionPolicy { spill_target: Some(SpillTarget::Void), ..Default::default() },
            checksum: Some(Checksum(0xC)),
            node: None,
        }
    }

    fn json(object: &impl Serialize) -> String {
        serde_json::to_string(object).expect("plain data")
    }

    #[test]
    fn given_a_payload_when_shown_to_programs_then_names_and_words_are_the_documented_ones() {
        let brief = r#""id":"abababab-abab-abab-abab-abababababab","size_bytes":1048576,"tier":"disk","state":"durable","version":4,"checksum":"000000000000000c""#;
        assert_eq!(json(&Brief::from(&descriptor())), format!("{{{brief}}}"));
        assert_eq!(
            json(&WithPath::new(&descriptor(), None, Path::new("a/b"))),
            format!(r#"{{{brief},"path":"a/b"}}"#)
        );
        let full = format!(
            r#"{brief},"created_at":"2023-11-14T22:13:20.123Z","expires_at":null,"eviction_policy":{{"priority":"unspecified","require_durable":false,"spill_target":"void","min_residency_tier":null}},"disk":{{"path":"/d/x","offset_bytes":0,"length_bytes":1048576}}"#
        );
        assert_eq!(json(&Full::from(&descriptor())), format!("{{{full}}}"));
        let lease = Lease {
            id: LeaseId::new(ShardIndex(0), 1, LeaseNonce([0; 10])),
            descriptor: descriptor(),
            expires_at: WallMs::from_millis(1_000),
        };
        assert_eq!(
            json(&Leased::from(&lease)),
            format!(
                r#"{{"lease_id":"00000100-0000-0000-0000-000000000000","lease_expires_at":"1970-01-01T00:00:01Z",{full}}}"#
            )
        );
    }

    #[test]
    fn given_a_payload_without_location_or_checksum_when_shown_then_absent_and_null() {
        let bare = Descriptor { location: None, checksum: None, ..descriptor() };
        let text = json(&Full::from(&bare));
        assert!(text.contains(r#""checksum":null"#) && !text.contains(r#""disk":{"#), "{text}");
        let fields = Full::from(&bare).fields();
        assert!(fields.contains(&("location", "-".to_owned())));
        let node = Node { name: "two".to_owned(), address: "h2:2".to_owned() };
        let shared = Full::from(&Descriptor { node: Some(node), ..bare.clone() });
        assert!(json(&shared).contains(r#""node":{"id":"two","address":"h2:2"}"#), "{}", json(&shared));
        assert!(shared.fields().contains(&("node", "two at h2:2".to_owned())));
        let moved = WithPath::new(&bare, Some(Checksum(1)), Path::new("x"));
        assert!(json(&moved).contains(r#""checksum":"0000000000000001""#));
    }

    #[test]
    fn given_a_row_when_laid_out_then_it_has_a_cell_for_each_column() {
        assert_eq!(Brief::from(&descriptor()).cells().len(), Brief::COLUMNS.len());
        assert_eq!(WithPath::new(&descriptor(), None, Path::new("x")).cells().len(), WithPath::COLUMNS.len());
        assert_eq!(Discarded::new(descriptor().id).cells().len(), Discarded::COLUMNS.len());
        let summary = Summary {
            id: descriptor().id,
            tier: Tier::Ram,
            state: PayloadState::Active,
            size: ByteCount(1),
            created_at: WallMs::from_millis(1),
            expires_at: None,
            leases: 2,
        };
        let listed = Listed::from(&summary);
        assert_eq!(listed.cells().len(), Listed::COLUMNS.len());
        assert!(json(&listed).contains(r#""expires_at_ms":0,"active_leases":2"#));
    }

    #[test]
    fn given_a_time_beyond_the_calendar_when_shown_then_the_last_year_and_no_panic() {
        assert!(time(WallMs::from_millis(u64::MAX)).starts_with("9999-12-31T23:59:59"));
    }
}
