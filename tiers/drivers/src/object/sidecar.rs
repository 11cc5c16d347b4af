//! What lies beside an object and explains it: the contract's `PayloadArchiveMetadata` as proto3 JSON.
//!
//! Written with the contract's fields only, since v1 readers reject others; names in lowerCamelCase, 64-bit integers as text,
//! bytes as base64, enums by name, times as RFC 3339, as the proto3 JSON mapping says. Read leniently: what a later version adds is
//! passed over. The integrity checksum is XXH3-64 in big-endian order, of the payload's own bytes, whatever the compression.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, SecondsFormat, Utc};
use payload_types::{ByteCount, Checksum, PayloadId, WallMs};
use serde::{Deserialize, Serialize};

use super::codec::Compression;
use super::error::{ObjectError, ObjectErrorKind};

/// `metadata_version` of what is written.
const VERSION: u32 = 1;

/// A parent of a payload.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Parent {
    /// Which payload.
    pub id: PayloadId,
    /// As AddLineage had it.
    pub operation: String,
    /// As AddLineage had it.
    pub role: String,
    /// As AddLineage had it: opaque.
    pub parameters: Vec<u8>,
}

/// The contract's `EvictionPolicy`, by the names of its enums; an empty one is unspecified.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Policy {
    /// `EVICTION_PRIORITY_...`
    #[serde(skip_serializing_if = "String::is_empty")]
    pub priority: String,
    /// Never discarded.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub require_durable: bool,
    /// `TIER_...`
    #[serde(skip_serializing_if = "String::is_empty")]
    pub spill_target: String,
    /// `TIER_...`
    #[serde(skip_serializing_if = "String::is_empty")]
    pub min_residency_tier: String,
}

/// What the catalog knows of a payload beyond its bytes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Archive {
    /// When it was allocated.
    pub created_at: Option<WallMs>,
    /// When it was stored.
    pub archived_at: Option<WallMs>,
    /// When it expires.
    pub expires_at: Option<WallMs>,
    /// The descriptor's version.
    pub version: u64,
    /// Its policy.
    pub policy: Policy,
    /// From its metadata.
    pub dataset: String,
    /// From its metadata.
    pub producer: String,
    /// From its metadata.
    pub tags: BTreeMap<String, String>,
    /// Where it comes from.
    pub lineage: Vec<Parent>,
}

/// See the module's description.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sidecar {
    /// Whose.
    pub id: PayloadId,
    /// The payload's size.
    pub size: ByteCount,
    /// Of the payload's bytes.
    pub checksum: Checksum,
    /// How the object is stored.
    pub compression: Compression,
    /// Where the object was when this was written.
    pub uri: String,
    /// The rest.
    pub archive: Archive,
}

#[derive(Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Id {
    value: String,
}

#[derive(Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Document {
    uuid: Id,
    metadata_version: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    archived_at: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    dataset: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    producer: String,
    payload_descriptor: Descriptor,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    lineage: Vec<Edge>,
    integrity: Integrity,
    compression: Compressed,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    tags: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Descriptor {
    payload_id: Id,
    tier: String,
    state: String,
    disk: Location,
    version: Number,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    eviction_policy: Option<Policy>,
}

#[derive(Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Location {
    path: String,
    offset_bytes: Number,
    length_bytes: Number,
}

#[derive(Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Edge {
    parent: Id,
    operation: String,
    role: String,
    parameters: String,
}

#[derive(Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Integrity {
    algorithm: String,
    checksum: String,
}

#[derive(Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Compressed {
    #[serde(rename = "type")]
    kind: String,
    level: u32,
}

/// A 64-bit integer: written as text, read as text or number.
#[derive(Default)]
struct Number(u64);

impl Serialize for Number {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.to_string())
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        text.parse().map(Self).map_err(|_| serde::de::Error::custom(format!("`{text}` is no 64-bit integer")))
    }
}

impl Compression {
    /// The contract's `CompressionType`.
    fn name(self) -> &'static str {
        match self {
            Self::None => "COMPRESSION_NONE",
            Self::Zstd => "COMPRESSION_ZSTD",
            Self::Lz4 => "COMPRESSION_LZ4",
        }
    }
}

fn id_text(id: PayloadId) -> Id {
    Id { value: STANDARD.encode(id.as_bytes()) }
}

fn time_text(time: WallMs) -> Option<String> {
    let time = DateTime::<Utc>::from_timestamp_millis(i64::try_from(time.as_millis()).ok()?)?;
    Some(time.to_rfc3339_opts(SecondsFormat::AutoSi, true))
}

fn time_of(text: Option<&String>) -> Option<WallMs> {
    let time = DateTime::parse_from_rfc3339(text?).ok()?;
    u64::try_from(time.timestamp_millis()).ok().map(WallMs::from_millis)
}

impl Sidecar {
    /// As it is stored.
    pub fn to_json(&self) -> Vec<u8> {
        let archive = &self.archive;
        let edge = |parent: &Parent| Edge {
            parent: id_text(parent.id),
            operation: parent.operation.clone(),
            role: parent.role.clone(),
            parameters: STANDARD.encode(&parent.parameters),
        };
        let document = Document {
            uuid: id_text(self.id),
            metadata_version: VERSION,
            created_at: archive.created_at.and_then(time_text),
            archived_at: archive.archived_at.and_then(time_text),
            dataset: archive.dataset.clone(),
            producer: archive.producer.clone(),
            payload_descriptor: Descriptor {
                payload_id: id_text(self.id),
                tier: "TIER_OBJECT".to_owned(),
                state: "PAYLOAD_STATE_DURABLE".to_owned(),
                disk: Location {
                    path: self.uri.clone(),
                    offset_bytes: Number(0),
                    length_bytes: Number(self.size.0),
                },
                version: Number(archive.version),
                created_at: archive.created_at.and_then(time_text),
                expires_at: archive.expires_at.and_then(time_text),
                eviction_policy: (archive.policy != Policy::default()).then(|| archive.policy.clone()),
            },
            lineage: archive.lineage.iter().map(edge).collect(),
            integrity: Integrity {
                algorithm: "HASH_XXH3_64".to_owned(),
                checksum: STANDARD.encode(self.checksum.0.to_be_bytes()),
            },
            compression: Compressed {
                kind: self.compression.name().to_owned(),
                level: self.compression.level(),
            },
            tags: archive.tags.clone(),
        };
        serde_json::to_vec_pretty(&document).expect("it has text keys only")
    }

    /// Reads a sidecar, to rebuild a catalog from.
    ///
    /// # Errors
    /// `Corrupt`: it is no JSON, or lacks what a payload cannot be served without: id, size, XXH3-64, compression.
    pub fn from_json(text: &[u8]) -> Result<Self, ObjectError> {
        let wrong = |what: String| ObjectError::new(ObjectErrorKind::Corrupt, format!("the sidecar {what}"));
        let document: Document = serde_json::from_slice(text)
            .map_err(|error| wrong(format!("is no archive metadata: {error}")))?;
        let bytes = |what: &str, text: &str| {
            STANDARD.decode(text).map_err(|error| wrong(format!("has a {what} that is no base64: {error}")))
        };
        let id = |what: &str, id: &Id| -> Result<PayloadId, ObjectError> {
            PayloadId::from_slice(&bytes(what, &id.value)?)
                .map_err(|error| wrong(format!("has a wrong {what}: {error}")))
        };
        let found = bytes("checksum", &document.integrity.checksum)?;
        let checksum = match (document.integrity.algorithm.as_str(), <[u8; 8]>::try_from(found)) {
            ("HASH_XXH3_64", Ok(bytes)) => Checksum(u64::from_be_bytes(bytes)),
            (other, _) => {
                return Err(wrong(format!("has no XXH3-64 of 8 bytes (its algorithm is `{other}`)")));
            }
        };
        let all = [Compression::None, Compression::Zstd, Compression::Lz4];
        let kind = document.compression.kind.as_str();
        let compression = match kind {
            "" => Compression::None,
            _ => {
                all.into_iter().find(|one| one.name() == kind).ok_or_else(|| wrong(format!("says {kind}")))?
            }
        };
        let descriptor = document.payload_descriptor;
        if descriptor.disk.length_bytes.0 == 0 {
            return Err(wrong("says that the payload has no bytes".to_owned()));
        }
        let parent = |edge: &Edge| {
            let (operation, role) = (edge.operation.clone(), edge.role.clone());
            Ok(Parent {
                id: id("parent", &edge.parent)?,
                operation,
                role,
                parameters: bytes("parameter", &edge.parameters)?,
            })
        };
        Ok(Self {
            id: id("uuid", &document.uuid)?,
            size: ByteCount(descriptor.disk.length_bytes.0),
            checksum,
            compression,
            uri: descriptor.disk.path,
            archive: Archive {
                created_at: time_of(document.created_at.as_ref()),
                archived_at: time_of(document.archived_at.as_ref()),
                expires_at: time_of(descriptor.expires_at.as_ref()),
                version: descriptor.version.0,
                policy: descriptor.eviction_policy.unwrap_or_default(),
                dataset: document.dataset,
                producer: document.producer,
                tags: document.tags,
                lineage: document.lineage.iter().map(parent).collect::<Result<_, ObjectError>>()?,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_sidecars_that_lack_something_when_read_then_they_say_what() {
        for (text, word) in [
            ("", "no archive metadata"),
            ("{}", "XXH3-64"),
            (r#"{"integrity": {"algorithm": "HASH_SHA256", "checksum": "AAAAAAAAAAA="}}"#, "HASH_SHA256"),
            (r#"{"integrity": {"algorithm": "HASH_XXH3_64", "checksum": "AAAAAAAAAAA="}}"#, "no bytes"),
            (
                r#"{"integrity": {"algorithm": "HASH_XXH3_64", "checksum": "AAAAAAAAAAA="}, "compression": {"type": "COMPRESSION_GZIP"}}"#,
                "GZIP",
            ),
        ] {
            let error = Sidecar::from_json(text.as_bytes()).expect_err(text);
            assert!(error.kind == ObjectErrorKind::Corrupt && error.message.contains(word), "{error}");
        }
    }
}
