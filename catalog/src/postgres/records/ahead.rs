//! All edges of a walk at once, because each step of it would be a round trip.
//!
//! ```text
//! along all paths, up to 512 edges --all of them--------------------------------------> done
//!   more, few met twice --along all paths, up to 16,384 edges --all of them-----------> done
//!   many met twice, a long text, or more ------> ids that were not met before, then the edges of each
//! ```
//! Along paths an edge is looked up once, and comes while the walk goes on: half the time of the other way for a chain. But
//! where paths meet again their number doubles, and a cycle has no end, so what comes in vain is bounded.

use std::collections::HashMap;

use payload_types::limits::ANSWER_BYTES_MAX;
use payload_types::record::LineageEdge;
use payload_types::{PayloadId, PayloadKey};

use super::super::link::Value;
use super::super::row::uuid;
use super::tables::namespace_of;
use super::{Records, RowCells, sql};
use crate::error::StoreError;
use crate::records::cells::Cells as _;

/// What an edge takes beside its texts, at least: two ids.
const EDGE_BYTES: usize = 32;

/// Edges that are asked for along all paths, in turn: most graphs are smaller than the first, and a walk that is no larger than
/// the second takes half the time so. More than that is worth a walk that keeps in mind where it was.
const PATHS: [usize; 2] = [512, 16_384];

/// A walk along paths is given up when more than one edge in so many came twice: where paths meet again and again their number
/// doubles each time, and on a cycle they have no end.
const REPEATS_SHARE: usize = 8;

/// The longest text of an edge that is fetched along paths: 16,384 edges that come in vain are 50 MiB at most.
const PATH_TEXT_BYTES_MAX: i32 = 1024;

/// Edges that were fetched ahead.
struct Ahead {
    upstream: bool,
    /// By the end that they are asked by.
    found: HashMap<PayloadId, Vec<LineageEdge>>,
    count: usize,
    bytes: usize,
}

impl Ahead {
    fn new(upstream: bool) -> Self {
        Self { upstream, found: HashMap::new(), count: 0, bytes: 0 }
    }

    /// False: no more of them fit into an answer.
    fn push(&mut self, edge: LineageEdge) -> bool {
        self.count += 1;
        self.bytes += EDGE_BYTES + edge.operation.len() + edge.role.len() + edge.parameters.len();
        self.found.entry(if self.upstream { edge.child } else { edge.parent }).or_default().push(edge);
        self.fits()
    }

    fn fits(&self) -> bool {
        self.bytes <= ANSWER_BYTES_MAX
    }

    /// Leaves each edge once; returns how many were there again.
    fn sort(&mut self) -> usize {
        fn name(edge: &LineageEdge) -> (PayloadId, PayloadId, &str, &str) {
            (edge.child, edge.parent, &edge.operation, &edge.role)
        }
        let before = self.count;
        for edges in self.found.values_mut().filter(|edges| edges.len() > 1) {
            let len = edges.len();
            edges.sort_unstable_by(|one, other| name(one).cmp(&name(other)));
            edges.dedup_by(|one, other| name(one) == name(other));
            self.count -= len - edges.len();
        }
        before - self.count
    }
}

impl Records<'_> {
    /// All edges of a walk from `from` on, by the end that they are asked by; `None`: they are more than an answer takes.
    pub(super) fn edges_all(
        &mut self,
        from: PayloadKey,
        upstream: bool,
    ) -> Result<Option<HashMap<PayloadId, Vec<LineageEdge>>>, StoreError> {
        for count_max in PATHS {
            let mut ahead = Ahead::new(upstream);
            let is_whole = self.edges_by_paths(from, count_max, &mut ahead)?;
            let count = ahead.count;
            let repeats = ahead.sort();
            if is_whole {
                return Ok(Some(ahead.found));
            }
            // Fewer than there may be: a text was too long.
            if repeats > count_max / REPEATS_SHARE || count < count_max {
                break;
            }
        }
        let statement = if upstream { &sql::EDGES_UP_ALL } else { &sql::EDGES_DOWN_ALL };
        let mut ahead = Ahead::new(upstream);
        self.link.each_row(statement, &[&namespace_of(from.namespace), &uuid(from.id)], &mut |row| {
            Ok(ahead.push(RowCells::of(row).edge()?))
        })?;
        // What is longer than an answer is asked for step by step until the answer is full, or deep enough.
        Ok(ahead.fits().then_some(ahead.found))
    }

    /// Fetches at most so many edges along all paths from `from` on. False: there may be more of them, or one has a long text.
    fn edges_by_paths(
        &mut self,
        from: PayloadKey,
        count_max: usize,
        ahead: &mut Ahead,
    ) -> Result<bool, StoreError> {
        let statement = if ahead.upstream { &sql::EDGES_UP_PATHS } else { &sql::EDGES_DOWN_PATHS };
        let (namespace, id) = (namespace_of(from.namespace), uuid(from.id));
        let values: [Value<'_>; 4] = [&namespace, &id, &(count_max as i64), &PATH_TEXT_BYTES_MAX];
        let mut is_whole = true;
        self.link.each_row(statement, &values, &mut |row| {
            let is_short = (2..5).all(|text| matches!(row.try_get::<_, Option<&[u8]>>(text), Ok(Some(_))));
            is_whole = is_short && ahead.push(RowCells::of(row).edge()?);
            Ok(is_whole)
        })?;
        Ok(is_whole && ahead.count < count_max)
    }
}
