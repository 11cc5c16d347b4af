//! What the catalog and a payload's shard know of it beyond its bytes, for its sidecar: times, policy, lineage, and `dataset`,
//! `producer` and `tags` of metadata that are a JSON object.
//!
//! Asked for on the object driver's blocking threads, just before a sidecar is written. What cannot be learned now is left out:
//! a sidecar with less in it is better than an upload that fails, and the next change of the payload writes it anew.

use std::collections::BTreeMap;
use std::sync::mpsc;

use payload_catalog::ReadersHandle;
use payload_drivers::object::{Archive, Parent, Policy};
use payload_reactor::{Envelope, ReactorHandle, clock};
use payload_types::record::{LineageEdge, RecordAnswer, RecordQuery};
use payload_types::reply::{Reply, ReplyResult};
use payload_types::request::Request;
use payload_types::{Descriptor, PayloadError, PayloadId, PayloadKey};
use payload_wire::enums;
use serde_json::Value;

use crate::services::router::NAMESPACE;

/// The way to shards and catalog.
#[derive(Clone)]
pub struct Source {
    /// The shards.
    pub reactor: ReactorHandle,
    /// The catalog.
    pub readers: ReadersHandle,
}

impl Source {
    /// What is known now of a payload. Blocks.
    pub fn archive(&self, id: PayloadId) -> Archive {
        let key = PayloadKey { namespace: NAMESPACE, id };
        let now = clock::now().wall;
        let mut archive = Archive { archived_at: Some(now), ..Archive::default() };
        if let Some(Ok(Reply::Resolved(found))) = self.ask_shard(Request::Resolve { key }) {
            describe(&mut archive, &found);
        }
        if let Some(RecordAnswer::Lineage(edges)) =
            self.ask_catalog(RecordQuery::Lineage { key, upstream: true, depth_max: 1, at: now })
        {
            archive.lineage = edges.into_iter().map(parent).collect();
        }
        if let Some(RecordAnswer::Metadata(Some((metadata, _)))) =
            self.ask_catalog(RecordQuery::Metadata { key, at: now })
        {
            tell(&mut archive, &metadata.data);
        }
        archive
    }

    /// Asks the shard of a payload. Blocks; `None`: it cannot answer now.
    pub fn ask_shard(&self, request: Request) -> Option<ReplyResult> {
        let shard = request.routing_id()?.shard(self.reactor.shard_count());
        let (sender, answer) = mpsc::sync_channel(1);
        let reply = Box::new(move |result| drop(sender.send(result)));
        self.reactor.submit(shard, Envelope { request, deadline: None, reply }).ok()?;
        answer.recv().ok()
    }

    fn ask_catalog(&self, query: RecordQuery) -> Option<RecordAnswer> {
        let (sender, answer) = mpsc::sync_channel(1);
        let reply = Box::new(move |result: Result<RecordAnswer, PayloadError>| drop(sender.send(result)));
        self.readers.submit(query, reply).ok()?;
        answer.recv().ok()?.ok()
    }
}

fn parent(edge: LineageEdge) -> Parent {
    let LineageEdge { parent: id, operation, role, parameters, .. } = edge;
    Parent { id, operation, role, parameters }
}

fn describe(archive: &mut Archive, found: &Descriptor) {
    let named = |name: &str| if name.ends_with("_UNSPECIFIED") { String::new() } else { name.to_owned() };
    archive.created_at = Some(found.created_at);
    archive.expires_at = found.expires_at;
    archive.version = found.version.0;
    let residency = found.policy.min_residency.map(|tier| enums::tier_to_pb(tier).as_str_name());
    archive.policy = Policy {
        priority: named(enums::eviction_priority_to_pb(found.policy.priority).as_str_name()),
        require_durable: found.policy.require_durable,
        spill_target: named(enums::spill_target_to_pb(found.policy.spill_target).as_str_name()),
        min_residency_tier: residency.map(named).unwrap_or_default(),
    };
}

/// Takes over what metadata say, if they are a JSON object: texts, and tags whose values are scalars.
fn tell(archive: &mut Archive, metadata: &[u8]) {
    let Ok(Value::Object(fields)) = serde_json::from_slice(metadata) else { return };
    let text = |name: &str| fields.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    (archive.dataset, archive.producer) = (text("dataset"), text("producer"));
    let Some(Value::Object(tags)) = fields.get("tags") else { return };
    let scalar = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    };
    let tags = tags.iter().filter_map(|(name, value)| Some((name.clone(), scalar(value)?)));
    archive.tags = tags.collect::<BTreeMap<_, _>>();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_metadata_when_they_are_an_object_then_the_sidecar_has_what_it_has_room_for() {
        let mut archive = Archive::default();
        tell(
            &mut archive,
            br#"{"dataset": "d", "producer": "p", "tags": {"a": "b", "n": 7, "x": [1]}, "more": 1}"#,
        );
        assert_eq!((archive.dataset.as_str(), archive.producer.as_str()), ("d", "p"));
        assert_eq!(archive.tags, [("a", "b"), ("n", "7")].map(|(a, b)| (a.to_owned(), b.to_owned())).into());
        for strange in [&b"no JSON"[..], b"[1]", b"{\"dataset\": 7, \"tags\": 3}", b""] {
            let mut archive = Archive::default();
            tell(&mut archive, strange);
            assert_eq!(archive, Archive::default());
        }
    }
}
