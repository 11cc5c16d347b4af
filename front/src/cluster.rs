//! The other nodes of a shared catalog: which payloads they have, and who they are.
//!
//! ```text
//! handler --unknown to its shard--> Cluster::find --RecordQuery--> catalog readers --row of another node--> descriptor,
//!         --a page of each shard--> Cluster::page                                                           or its address
//! ```
//! Exists only where nodes share a catalog: on SQLite and in memory nothing is asked. Rows of other nodes are read, never
//! changed. Questions go through the readers' one bounded queue, so what waits there is bounded by it.

use std::collections::HashMap;

use payload_catalog::ReadersHandle;
use payload_reactor::clock;
use payload_types::record::{RecordAnswer, RecordQuery};
use payload_types::reply::ShardPage;
use payload_types::request::List;
use payload_types::{ErrorKind, Foreign, ForeignPage, PayloadError, PayloadId};

use crate::deadline::Deadline;
use crate::records::{self, disagreement};
use crate::services::router::NAMESPACE;

/// This node, as the others know it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OwnNode {
    /// `node.name`.
    pub name: String,
    /// `host:port` of its gRPC, as the others tell it.
    pub address: String,
}

/// See the module.
pub struct Cluster {
    readers: ReadersHandle,
    own: OwnNode,
}

/// What the shards and the catalog answered to one listing.
pub struct Merged {
    /// A page of each shard, and one of all other nodes.
    pub pages: Vec<ShardPage>,
    /// The nodes of those that are not this node's.
    nodes: HashMap<PayloadId, String>,
    own: String,
}

impl Merged {
    /// The name of the node that has a listed payload; empty where no other shares the catalog.
    pub fn node(&self, id: PayloadId) -> String {
        self.nodes.get(&id).unwrap_or(&self.own).clone()
    }
}

impl Cluster {
    /// Asks `readers` about others than `own`.
    pub fn new(readers: ReadersHandle, own: OwnNode) -> Self {
        Self { readers, own }
    }

    /// This node's name.
    pub fn own_name(&self) -> &str {
        &self.own.name
    }

    /// The payload, if another node has it: committed and not expired.
    ///
    /// # Errors
    /// As [`Cluster::describe`].
    pub async fn find(
        &self,
        id: PayloadId,
        deadline: Option<Deadline>,
    ) -> Result<Option<Foreign>, PayloadError> {
        Ok(self.describe(vec![id], deadline).await?.pop())
    }

    /// Those of `ids` that other nodes have, in no order; LOST ones included. One indexed look-up each.
    ///
    /// # Errors
    /// UNAVAILABLE while the catalog is away, RESOURCE_EXHAUSTED when too many ask, DEADLINE_EXCEEDED.
    pub async fn describe(
        &self,
        ids: Vec<PayloadId>,
        deadline: Option<Deadline>,
    ) -> Result<Vec<Foreign>, PayloadError> {
        let query = RecordQuery::Foreign { namespace: NAMESPACE, ids, at: clock::now().wall };
        match records::ask(&self.readers, query, deadline).await? {
            RecordAnswer::Foreign(found) => Ok(found),
            other => Err(disagreement("a payload of another node", &other)),
        }
    }

    /// What the other nodes have of a listing, as each of this node's shards answers it.
    ///
    /// # Errors
    /// As [`Cluster::describe`].
    pub async fn page(&self, list: &List, deadline: Option<Deadline>) -> Result<ForeignPage, PayloadError> {
        let query = RecordQuery::ForeignPage { list: list.clone(), at: clock::now().wall };
        match records::ask(&self.readers, query, deadline).await? {
            RecordAnswer::ForeignPage(page) => Ok(page),
            other => Err(disagreement("payloads of other nodes", &other)),
        }
    }
}

/// Adds to the shards' `pages` of a listing what other nodes have of it, where there may be others.
///
/// # Errors
/// As [`Cluster::describe`].
pub async fn merged(
    cluster: Option<&Cluster>,
    mut pages: Vec<ShardPage>,
    list: &List,
    deadline: Option<Deadline>,
) -> Result<Merged, PayloadError> {
    let Some(cluster) = cluster else {
        return Ok(Merged { pages, nodes: HashMap::new(), own: String::new() });
    };
    let ForeignPage { rows, total } = cluster.page(list, deadline).await?;
    let nodes = rows.iter().map(|row| (row.descriptor.id, row.node.name.clone())).collect();
    pages.push(ShardPage { rows: rows.iter().map(Foreign::summary).collect(), total });
    Ok(Merged { pages, nodes, own: cluster.own.name.clone() })
}

/// True when this node's shards know nothing of the payload, so that another node may have it. That it is LOST is known;
/// the word is the contract's (behaviour.md, "Everywhere").
pub fn is_unknown(error: &PayloadError) -> bool {
    error.kind == ErrorKind::NotFound && !error.message.contains("LOST")
}
