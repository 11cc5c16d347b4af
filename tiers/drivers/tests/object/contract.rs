//! The sidecar against the public contract, as the table `proto/v1.tsv` has it: v1 readers reject what they do not know.

use std::collections::BTreeMap;

use payload_drivers::object::{Archive, Compression, Parent, Policy, Sidecar};
use payload_types::{ByteCount, Checksum, WallMs};
use serde_json::{Value, json};

use crate::bed::fresh_id;

const ROOT: &str = "payload.manager.catalog.v1.PayloadArchiveMetadata";

/// The contract: the types of messages' fields, by message and name in JSON; and the names of enums' values.
struct Contract {
    fields: BTreeMap<(String, String), String>,
    values: BTreeMap<String, Vec<String>>,
}

impl Contract {
    fn read() -> Self {
        let (mut fields, mut values) = (BTreeMap::new(), BTreeMap::<String, Vec<String>>::new());
        for line in include_str!("../../../../proto/v1.tsv").lines() {
            match line.split('\t').collect::<Vec<_>>()[..] {
                ["field", message, _, name, kind, ..] => {
                    drop(fields.insert((message.to_owned(), camel(name)), kind.to_owned()));
                }
                ["enum", name, _, value, ..] => {
                    values.entry(name.to_owned()).or_default().push(value.to_owned())
                }
                _ => {}
            }
        }
        Self { fields, values }
    }

    /// What a value of this type says that the contract does not have.
    fn offences(&self, kind: &str, value: &Value, at: &str, found: &mut Vec<String>) {
        let kind = kind.split(" oneof ").next().unwrap_or(kind);
        if let Some(each) = kind.strip_prefix("repeated ") {
            if each.ends_with(".TagsEntry") {
                let entries = value.as_object();
                let is_text = entries.is_some_and(|entries| entries.values().all(Value::is_string));
                found.extend((!is_text).then(|| format!("{at}: no map of text")));
            } else {
                let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
                found.extend(items.is_empty().then(|| format!("{at}: no list")));
                items.iter().for_each(|item| self.offences(each, item, at, found));
            }
            return;
        }
        if let Some(names) = self.values.get(kind) {
            let is_known = value.as_str().is_some_and(|value| names.iter().any(|name| name == value));
            found.extend((!is_known).then(|| format!("{at}: {value} is no {kind}")));
            return;
        }
        let is_right = match kind {
            "string" | "bytes" => value.is_string(),
            "google.protobuf.Timestamp" => value.as_str().is_some_and(|text| text.ends_with('Z')),
            "uint64" => value.as_str().is_some_and(|text| text.parse::<u64>().is_ok()),
            "uint32" => value.as_u64().is_some_and(|number| u32::try_from(number).is_ok()),
            "bool" => value.is_boolean(),
            message => {
                let members = value.as_object().cloned().unwrap_or_default();
                for (name, inner) in &members {
                    let at = format!("{at}.{name}");
                    match self.fields.get(&(message.to_owned(), name.clone())) {
                        Some(kind) => self.offences(kind, inner, &at, found),
                        None => found.push(format!("{at}: {message} has no such field")),
                    }
                }
                value.is_object()
            }
        };
        found.extend((!is_right).then(|| format!("{at}: {value} is no {kind}")));
    }

    fn all_offences(&self, value: &Value) -> Vec<String> {
        let mut found = Vec::new();
        self.offences(ROOT, value, "", &mut found);
        found
    }
}

/// The name of a field in proto3 JSON.
fn camel(name: &str) -> String {
    let mut words = name.split('_');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |all, word| all + &word[..1].to_uppercase() + &word[1..])
}

fn full() -> Sidecar {
    Sidecar {
        id: fresh_id(),
        size: ByteCount(u64::MAX >> 1),
        checksum: Checksum(0x0123_4567_89AB_CDEF),
        compression: Compression::Zstd,
        uri: "s3://bucket/prefix/x.bin".to_owned(),
        archive: Archive {
            created_at: Some(WallMs::from_millis(1_700_000_000_123)),
            archived_at: Some(WallMs::from_millis(1_700_000_000_000)),
            expires_at: Some(WallMs::from_millis(1_900_000_000_001)),
            version: 7,
            policy: Policy {
                priority: "EVICTION_PRIORITY_HIGH".to_owned(),
                require_durable: true,
                spill_target: "TIER_OBJECT".to_owned(),
                min_residency_tier: "TIER_DISK".to_owned(),
            },
            dataset: "d".to_owned(),
            producer: "p".to_owned(),
            tags: BTreeMap::from([("k".to_owned(), "v".to_owned())]),
            lineage: vec![Parent {
                id: fresh_id(),
                operation: "o".to_owned(),
                role: "r".to_owned(),
                parameters: vec![1, 2, 3],
            }],
        },
    }
}

#[test]
fn given_a_sidecar_with_everything_when_written_then_it_has_fields_of_the_contract_only() {
    let contract = Contract::read();
    let value: Value = serde_json::from_slice(&full().to_json()).expect("JSON");
    assert_eq!(contract.all_offences(&value), Vec::<String>::new(), "{value:#}");
    assert_eq!(value["integrity"]["checksum"], json!("ASNFZ4mrze8="), "big-endian");
    assert_eq!(value["createdAt"], json!("2023-11-14T22:13:20.123Z"));
    let bare: Value =
        serde_json::from_slice(&Sidecar { archive: Archive::default(), ..full() }.to_json()).expect("JSON");
    assert_eq!(contract.all_offences(&bare), Vec::<String>::new(), "{bare:#}");
    assert_eq!(Sidecar::from_json(&full().to_json()).expect("read").archive.tags.len(), 1);
}

#[test]
fn given_planted_offences_when_compared_with_the_contract_then_each_is_found() {
    let contract = Contract::read();
    let right: Value = serde_json::from_slice(&full().to_json()).expect("JSON");
    for (at, wrong) in [
        ("/node", json!("x")),
        ("/integrity/algorithm", json!("XXH3")),
        ("/payloadDescriptor/disk/lengthBytes", json!(5)),
        ("/payloadDescriptor/etag", json!("x")),
        ("/createdAt", json!(5)),
        ("/lineage", json!([{"child": {}}])),
    ] {
        let mut planted = right.clone();
        let (parent, name) = at.rsplit_once('/').expect("a path");
        planted.pointer_mut(parent).expect("there")[name] = wrong;
        assert_eq!(contract.all_offences(&planted).len(), 1, "{at}");
    }
}
