//! `payload-manager rebuild-catalog --from URL`: a new catalog from the sidecars of an object store alone, when the old one is lost.
//!
//! ```text
//! list *.meta.json --> sidecar + size of its object --> row on OBJECT --batches--> empty catalog
//!                                                  '--> lineage and metadata, once all rows are there
//! ```
//! Called by main, in a server's place: the catalog is opened as a start does, which takes its lock. It must be empty. The store is
//! only read. What is wrong with one payload is said and passed over. Lineage to payloads that the store does not have is left out:
//! the catalog keeps edges between known payloads only.

use std::collections::HashSet;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use payload_catalog::{Change, Store};
use payload_drivers::object::{
    Archive, Archived, Compression, Looked, MemoryJournal, ObjectDriver, Policy, Sidecar,
};
use payload_reactor::clock;
use payload_types::effect::CatalogChange;
use payload_types::record::{LineageEdge, Metadata, MetadataMode, RecordChange, RecordOutcome};
use payload_types::{
    ByteCount, Epoch, EvictionPolicy, Generation, Health, PayloadId, PayloadKey, PayloadRow, PayloadState,
    Pin, ReplicaRow, Tier, Version,
};
use payload_wire::enums;
use payload_wire::pb::core::v1 as core;
use serde_json::{Map, Value};

use crate::config::{Config, ObjectTierConfig};
use crate::database;
use crate::services::router::NAMESPACE;

/// Rows and records of one transaction.
const BATCH_LEN: usize = 1000;

/// What was made, and what was not.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rebuilt {
    /// Payloads in the catalog.
    pub payloads: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Edges of lineage.
    pub edges: u64,
    /// Edges to payloads that are not there.
    pub edges_left_out: u64,
    /// A sentence for each payload that was passed over.
    pub passed_over: Vec<String>,
}

impl Rebuilt {
    /// For the operator: a line a payload that was passed over, and a last one.
    pub fn said(&self) -> String {
        let Self { payloads, bytes, edges, edges_left_out, passed_over } = self;
        let mut said: String =
            passed_over.iter().map(|sentence| format!("passed over: {sentence}\n")).collect();
        said.push_str(&format!(
            "the catalog has {payloads} payloads ({}) and {edges} edges of lineage now; {} payloads were passed over, and {edges_left_out} edges to payloads that are not there\n",
            ByteCount(*bytes),
            passed_over.len()
        ));
        said
    }
}

/// Fills the configured catalog, which must be empty, from the store at `from`, which is spoken to as `storage.object` says.
///
/// # Errors
/// One sentence: a catalog that is not empty or not kept anywhere, a store that cannot be listed.
pub fn run(config: &Config, from: &str) -> anyhow::Result<Rebuilt> {
    let driver = ObjectDriver::open(tier(config, from)?.driver()?, Arc::new(MemoryJournal::default()))?;
    config.prepare()?;
    let mut store = database::open_alone(config)?;
    // Rows are a node's own, and are counted by whoever has started.
    let epoch = store.begin_epoch(&config.node.name)?;
    let rows = store.count()?;
    if rows > 0 {
        bail!(
            "the catalog has {rows} payloads already; name an empty one (database.sqlite.path, or database.postgres.connection_uri), or move this one out of the way"
        );
    }
    let mut filling = Filling {
        store: store.as_mut(),
        epoch,
        count: 0,
        known: HashSet::new(),
        told: Vec::new(),
        batch: Vec::new(),
        rebuilt: Rebuilt::default(),
    };
    let mut failed = None;
    driver
        .archived(&mut |archived| {
            failed = filling.take(archived).err();
            failed.is_none()
        })
        .with_context(|| format!("{from} cannot be read"))?;
    if let Some(error) = failed {
        return Err(error);
    }
    let rebuilt = filling.finish()?;
    store.close()?;
    Ok(rebuilt)
}

/// `storage.object`, with this root.
fn tier(config: &Config, from: &str) -> anyhow::Result<ObjectTierConfig> {
    let root = match from.split_once("://") {
        Some(_) => from.to_owned(),
        None => {
            let path = std::path::absolute(from).with_context(|| format!("--from {from} is no path"))?;
            format!("file://{}", path.display())
        }
    };
    if let Some(path) = root.strip_prefix("file://")
        && !std::path::Path::new(path).is_dir()
    {
        bail!("--from {from} is no directory; name the one that storage.object.root_path named");
    }
    Ok(match &config.storage.object {
        Some(tier) => ObjectTierConfig { root, ..tier.clone() },
        None => ObjectTierConfig::at(root),
    })
}

struct Filling<'store> {
    store: &'store mut dyn Store,
    epoch: Epoch,
    /// Replicas so far: they number generations.
    count: u64,
    known: HashSet<PayloadId>,
    /// What refers to rows, which are all there before it.
    told: Vec<(PayloadId, Archive)>,
    batch: Vec<Change>,
    rebuilt: Rebuilt,
}

impl Filling<'_> {
    fn take(&mut self, (id, found): Archived) -> anyhow::Result<()> {
        let (sidecar, looked) = match found {
            Ok(found) => found,
            Err(error) => {
                self.rebuilt.passed_over.push(format!("{id}: {error}"));
                return Ok(());
            }
        };
        if sidecar.compression == Compression::None && looked.stored != sidecar.size {
            let (said, found) = (sidecar.size, looked.stored);
            self.rebuilt
                .passed_over
                .push(format!("{id}: its sidecar says {said}, and the object has {found}"));
            return Ok(());
        }
        self.count += 1;
        let generation = Generation::new(self.epoch, self.count);
        self.rebuilt.payloads += 1;
        self.rebuilt.bytes += sidecar.size.0;
        self.known.insert(id);
        self.batch.push(CatalogChange::Put(Box::new(row(&sidecar, &looked, self.epoch, generation))).into());
        self.told.push((id, sidecar.archive));
        if self.batch.len() >= BATCH_LEN { self.store_batch() } else { Ok(()) }
    }

    fn store_batch(&mut self) -> anyhow::Result<()> {
        let outcomes = self.store.apply(&self.batch)?;
        self.batch.clear();
        match outcomes
            .into_iter()
            .find(|outcome| !matches!(outcome, RecordOutcome::Done | RecordOutcome::Metadata(_)))
        {
            None => Ok(()),
            Some(outcome) => bail!("the catalog did not take what a sidecar says: {outcome:?}"),
        }
    }

    /// Metadata and lineage, now that all rows are there.
    fn finish(mut self) -> anyhow::Result<Rebuilt> {
        let at = clock::now().wall;
        for (id, archive) in std::mem::take(&mut self.told) {
            let key = PayloadKey { namespace: NAMESPACE, id };
            if let Some(data) = metadata(&archive) {
                let change = RecordChange::MetadataUpdate {
                    key,
                    mode: MetadataMode::Replace,
                    metadata: Metadata { data, schema: String::new() },
                    actor: "rebuild-catalog".to_owned(),
                    reason: "from the sidecar in the object store".to_owned(),
                    at,
                };
                // An expired payload keeps what is known of it until its shard removes it.
                self.batch.push(RecordChange::Vouched(Box::new(change)).into());
            }
            let all = archive.lineage.len();
            let edges: Vec<LineageEdge> = archive
                .lineage
                .into_iter()
                .filter(|parent| self.known.contains(&parent.id))
                .map(|parent| LineageEdge {
                    child: id,
                    parent: parent.id,
                    operation: parent.operation,
                    role: parent.role,
                    parameters: parent.parameters,
                })
                .collect();
            self.rebuilt.edges += edges.len() as u64;
            self.rebuilt.edges_left_out += (all - edges.len()) as u64;
            if !edges.is_empty() {
                let change = RecordChange::LineageAdd { child: key, edges, at };
                self.batch.push(RecordChange::Vouched(Box::new(change)).into());
            }
            if self.batch.len() >= BATCH_LEN {
                self.store_batch()?;
            }
        }
        self.store_batch()?;
        Ok(self.rebuilt)
    }
}

/// The row of an archived payload.
fn row(sidecar: &Sidecar, looked: &Looked, epoch: Epoch, generation: Generation) -> PayloadRow {
    let archive = &sidecar.archive;
    PayloadRow {
        key: PayloadKey { namespace: NAMESPACE, id: sidecar.id },
        size: sidecar.size,
        state: PayloadState::Durable,
        version: Version(archive.version.max(Version::FIRST.0 + 1)),
        epoch,
        created_at: archive.created_at.unwrap_or_else(|| sidecar.id.created_at()),
        expires_at: archive.expires_at,
        no_evict: false,
        policy: policy(&archive.policy),
        checksum: Some(sidecar.checksum),
        pin: Pin::None,
        health: Health::Good,
        replicas: vec![replica(sidecar, looked, generation)],
    }
}

/// Its object.
fn replica(_sidecar: &Sidecar, _looked: &Looked, generation: Generation) -> ReplicaRow {
    ReplicaRow { tier: Tier::Object, generation, synced: true, sound: true, extent: None }
}

/// A policy of the contract; what its names do not say is unspecified.
fn policy(policy: &Policy) -> EvictionPolicy {
    let tier = |name: &str| core::Tier::from_str_name(name).unwrap_or(core::Tier::Unspecified) as i32;
    let priority = core::EvictionPriority::from_str_name(&policy.priority)
        .unwrap_or(core::EvictionPriority::Unspecified) as i32;
    let read = EvictionPolicy {
        priority: enums::eviction_priority("priority", priority).unwrap_or_default(),
        require_durable: policy.require_durable,
        spill_target: enums::tier_or_void("spill_target", tier(&policy.spill_target)).unwrap_or_default(),
        min_residency: enums::tier_optional("min_residency_tier", tier(&policy.min_residency_tier))
            .unwrap_or_default(),
    };
    if read.validate().is_ok() { read } else { EvictionPolicy::default() }
}

/// `dataset`, `producer` and `tags` as the metadata that they were taken from, as far as the sidecar has them.
fn metadata(archive: &Archive) -> Option<Vec<u8>> {
    let mut fields = Map::new();
    for (name, text) in [("dataset", &archive.dataset), ("producer", &archive.producer)] {
        if !text.is_empty() {
            fields.insert(name.to_owned(), Value::from(text.clone()));
        }
    }
    if !archive.tags.is_empty() {
        let tags = archive.tags.iter().map(|(name, value)| (name.clone(), Value::from(value.clone())));
        fields.insert("tags".to_owned(), Value::Object(tags.collect()));
    }
    (!fields.is_empty()).then(|| Value::Object(fields).to_string().into_bytes())
}
