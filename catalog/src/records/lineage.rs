//! Lineage: who was made of whom. Descriptive only: cycles and self edges are fine, and every walk ends.
//!
//! Edges outlive the payloads that they name as long as anything connected with them lives, so that a chain stays
//! walkable over what was deleted; `sweep` removes the rest.

use std::collections::{HashMap, HashSet};

use payload_types::limits::ANSWER_BYTES_MAX;
use payload_types::record::{LineageEdge, RecordAnswer, RecordOutcome};
use payload_types::{PayloadId, PayloadKey, WallMs};

use super::tables::{Payloads, Tables, TablesMut};
use super::{Moment, Needed, distinct, unfit, unfit_to_ask};
use crate::error::StoreError;

/// Payloads whose edges are asked for together: a backend that is far away has that many fewer round trips.
const NODES_AT_ONCE: usize = 256;

/// What of an edge's encoding is neither text nor parameters: two ids, and each field's head.
const EDGE_BYTES: usize = 64;

pub(super) fn add<T: TablesMut>(
    tables: &mut T,
    child: PayloadKey,
    edges: &[LineageEdge],
    moment: Moment,
) -> Result<RecordOutcome, StoreError> {
    let ids = distinct(std::iter::once(child.id).chain(edges.iter().map(|edge| edge.parent)));
    if let Some(outcome) = unfit(tables, child.namespace, &ids, Needed::Known, moment.judged_at)? {
        return Ok(outcome);
    }
    tables.edges_put(child.namespace, edges)?;
    Ok(RecordOutcome::Done)
}

/// Breadth first. Each payload is left once, so each edge is met once; within a payload edges are in the order of (other
/// end, operation, role), whatever order a backend has them in.
pub(super) fn walk<T: Tables>(
    tables: &mut T,
    from: PayloadKey,
    upstream: bool,
    depth_max: u32,
    at: WallMs,
) -> Result<RecordAnswer, StoreError> {
    if let Some(answer) = unfit_to_ask(tables, from, at)? {
        return Ok(answer);
    }
    tables.edges_ahead(from, upstream, depth_max)?;
    let near = |edge: &LineageEdge| if upstream { edge.child } else { edge.parent };
    let far = |edge: &LineageEdge| if upstream { edge.parent } else { edge.child };
    let (mut met, mut bytes) = (Vec::new(), 0);
    let mut seen = HashSet::from([from.id]);
    let mut level = vec![from.id];
    let mut depth = 0;
    while !level.is_empty() && (depth_max == 0 || depth < depth_max) {
        depth += 1;
        let mut next = Vec::new();
        for nodes in level.chunks(NODES_AT_ONCE) {
            let mut found: HashMap<PayloadId, Vec<LineageEdge>> = HashMap::new();
            tables.edges(Payloads { namespace: from.namespace, ids: nodes }, upstream, &mut |edge| {
                bytes += weight(&edge);
                found.entry(near(&edge)).or_default().push(edge);
                bytes <= ANSWER_BYTES_MAX
            })?;
            if bytes > ANSWER_BYTES_MAX {
                return Ok(RecordAnswer::TooLarge);
            }
            for node in nodes {
                let mut edges = found.remove(node).unwrap_or_default();
                edges.sort_by(|a, b| (far(a), &a.operation, &a.role).cmp(&(far(b), &b.operation, &b.role)));
                next.extend(edges.iter().map(far).filter(|id| seen.insert(*id)));
                met.append(&mut edges);
            }
        }
        level = next;
    }
    Ok(RecordAnswer::Lineage(met))
}

/// What an edge takes in an answer, at most.
fn weight(edge: &LineageEdge) -> usize {
    EDGE_BYTES + edge.operation.len() + edge.role.len() + edge.parameters.len()
}

pub(super) fn forget<T: TablesMut>(tables: &mut T, key: PayloadKey) -> Result<(), StoreError> {
    for upstream in [true, false] {
        let mut has_edges = false;
        tables.edges(Payloads { namespace: key.namespace, ids: &[key.id] }, upstream, &mut |_| {
            has_edges = true;
            false
        })?;
        if has_edges {
            return tables.dirty_add(key);
        }
    }
    Ok(())
}
