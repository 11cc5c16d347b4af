//! `payload-manager nodes`: which nodes a shared catalog knows, and removing one that is gone for good.
//!
//! Called by main alone; works beside the servers of other nodes. Removing asks twice: without `--yes` it says what would be
//! forgotten, and changes nothing.

use anyhow::bail;
#[cfg(feature = "postgres")]
use payload_catalog::{NodeInfo, PostgresStore};
#[cfg(feature = "postgres")]
use payload_types::ByteCount;
#[cfg(feature = "postgres")]
use payload_types::time::format_millis;

use crate::config::DatabaseConfig;

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Task<'name> {
    /// Nothing but a list.
    List {
        /// One JSON object a line.
        json: bool,
    },
    /// Saying what a removal would forget.
    Weigh(&'name str),
    /// Removing.
    Remove(&'name str),
}

/// Does it; returns what there is to print, and whether nothing is left to confirm.
///
/// # Errors
/// One sentence: a catalog that nodes do not share, a database that cannot be reached, a node that is unknown or runs.
#[cfg_attr(not(feature = "postgres"), allow(unused_variables, reason = "only PostgreSQL is shared"))]
pub fn run(database: &DatabaseConfig, task: Task<'_>) -> anyhow::Result<(String, bool)> {
    match database {
        #[cfg(feature = "postgres")]
        DatabaseConfig::Postgres { connection_uri, pooled, .. } => {
            let nodes = || PostgresStore::nodes(&connection_uri.0, *pooled);
            match task {
                Task::List { json: true } => {
                    Ok((nodes()?.iter().map(|node| json(node).to_string() + "\n").collect(), true))
                }
                Task::List { json: false } => Ok((table(&nodes()?), true)),
                Task::Weigh(name) => match nodes()?.iter().find(|node| node.name == name) {
                    None => bail!(
                        "the catalog has no node `{name}`; `payload-manager nodes` says which there are"
                    ),
                    Some(node) if node.is_running => bail!(
                        "node `{name}` at {} runs, or did a moment ago; stop it before it is removed",
                        node.address
                    ),
                    Some(node) => Ok((weighed(node), false)),
                },
                Task::Remove(name) => {
                    let payloads = PostgresStore::node_remove(&connection_uri.0, *pooled, name)?;
                    Ok((format!("node `{name}` is removed, with {payloads} payloads\n"), true))
                }
            }
        }
        DatabaseConfig::Memory => {
            bail!(
                "the catalog is in memory (`database.memory`), which is one node's own; only a PostgreSQL has several"
            )
        }
        _ => bail!(
            "the catalog is one node's own (`database.sqlite`); only a PostgreSQL (`database.postgres`) has several"
        ),
    }
}

#[cfg(feature = "postgres")]
fn state(node: &NodeInfo) -> String {
    match node.silent_ms {
        None => "stopped".to_owned(),
        Some(_) if node.is_running => "running".to_owned(),
        // Whole seconds: it is more than ten.
        Some(silent) => format!("silent for {}", format_millis(silent / 1000 * 1000)),
    }
}

#[cfg(feature = "postgres")]
fn json(node: &NodeInfo) -> serde_json::Value {
    let NodeInfo { name, address, silent_ms, is_running, payloads, bytes } = node;
    serde_json::json!({
        "node": name, "address": address, "running": is_running, "silent_ms": silent_ms,
        "payloads": payloads, "bytes": bytes,
    })
}

#[cfg(feature = "postgres")]
fn table(nodes: &[NodeInfo]) -> String {
    let mut text = format!("{:<20}  {:<26}  {:>10}  {:>10}  STATE\n", "NODE", "ADDRESS", "PAYLOADS", "SIZE");
    for node in nodes {
        let size = ByteCount(node.bytes).to_string();
        let (name, address, payloads) = (&node.name, &node.address, node.payloads);
        text += &format!("{name:<20}  {address:<26}  {payloads:>10}  {size:>10}  {}\n", state(node));
    }
    text
}

#[cfg(feature = "postgres")]
fn weighed(node: &NodeInfo) -> String {
    format!(
        "node `{}` at {} ({}) would be removed, and the catalog would forget its {} payloads of {}, with their metadata, and with the lineage that nothing living is connected with; entries of streams stay, and name what is gone. Its disk root, should it come back, would be refused. Nothing is changed: add --yes to remove it\n",
        node.name,
        node.address,
        state(node),
        node.payloads,
        ByteCount(node.bytes)
    )
}
