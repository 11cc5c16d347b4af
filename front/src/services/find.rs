//! FindPayloads: payloads by what they are and by their metadata, put together from every source that has a part.
//!
//! ```text
//! no word about metadata:  every shard, and the catalog for other nodes' rows --a part each--> merged up to where all have looked
//! metadata asked for:      catalog readers --ids whose metadata fit--> their shards (or other nodes' rows) --> those that fit
//! ```
//! Shards know tiers, states and sizes, the catalog knows metadata; each is asked as of now, so what was answered to anybody
//! before shows. All work in parts of bounded size, in the order of ids, and a page ends where a row might be missing behind:
//! after so many rounds it ends early, with a token that goes on there. So no row comes twice, and none is skipped that was
//! there throughout.

use std::collections::{HashMap, HashSet, VecDeque};

use payload_reactor::clock;
use payload_types::find::{Describe, FIND_STEPS_MAX, Find, FindOrder, FoundPart, IdSpan};
use payload_types::record::{RecordAnswer, RecordQuery};
use payload_types::reply::{Reply, Summary};
use payload_types::request::Request;
use payload_types::{Foreign, PayloadError, PayloadId, ShardIndex};
use payload_wire::decode::FindParts;
use payload_wire::pb::operations::v1 as pb;
use payload_wire::{decode, encode, page_token};

use super::Router;
use super::router::{NAMESPACE, lane_full, mismatch};
use crate::deadline::Deadline;
use crate::records::{Records, disagreement};

/// Rounds over the shards in one call: 64 x 512 payloads of each, some 6 ms of its time in pieces of 0.1 ms.
const SHARD_ROUNDS_MAX: usize = 64;

/// Questions to the catalog in one call: 16 x 256 documents, or 64 MiB of them.
const CATALOG_ROUNDS_MAX: usize = 16;

/// FindPayloads.
pub async fn find(
    records: &Records,
    request: pb::FindPayloadsRequest,
    deadline: Option<Deadline>,
) -> Result<pb::FindPayloadsResponse, PayloadError> {
    let search =
        Search { router: records.router(), records, parts: decode::find(NAMESPACE, request)?, deadline };
    let page = if search.parts.metadata.is_empty() {
        search.everywhere().await?
    } else {
        search.by_metadata().await?
    };
    let token = page.last.map_or_else(String::new, |last| page_token::find_encode(search.parts.asked, last));
    let own = search.router.cluster.as_ref().map_or("", |cluster| cluster.own_name());
    Ok(encode::found(&page.rows, token, |id| page.nodes.get(&id).map_or(own, String::as_str).to_owned()))
}

struct Search<'call> {
    router: &'call Router,
    records: &'call Records,
    parts: FindParts,
    deadline: Option<Deadline>,
}

/// What is answered.
#[derive(Default)]
struct Page {
    rows: Vec<Summary>,
    /// The nodes of those that are not this node's.
    nodes: HashMap<PayloadId, String>,
    /// All up to this id is dealt with; `None`: all there is.
    last: Option<PayloadId>,
}

/// Who has payloads.
#[derive(Clone, Copy)]
enum From {
    Shard(ShardIndex),
    OtherNodes,
}

/// One of them, and how far it was asked.
struct Source {
    from: From,
    /// What was not looked at.
    left: IdSpan,
    /// Found, and not given yet.
    rows: VecDeque<Summary>,
    /// All up to this id was looked at.
    reached: Option<PayloadId>,
}

impl Source {
    fn is_done(&self) -> bool {
        self.left.is_empty()
    }

    /// Takes what it answered.
    fn take(&mut self, part: FoundPart, order: FindOrder) {
        self.rows.extend(part.rows);
        self.reached = part.reached;
        self.left = part.reached.map_or(IdSpan::NONE, |last| self.left.behind(order, last));
    }
}

impl Search<'_> {
    /// All sources side by side.
    async fn everywhere(&self) -> Result<Page, PayloadError> {
        let FindParts { span, order, page_size, .. } = self.parts;
        let shards = (0..self.router.shard_count()).map(|shard| From::Shard(ShardIndex(shard)));
        let others = self.router.cluster.is_some().then_some(From::OtherNodes);
        let source = |from| Source { from, left: span, rows: VecDeque::new(), reached: None };
        let mut sources: Vec<Source> = shards.chain(others).map(source).collect();
        let mut page = Page::default();
        for _ in 0..SHARD_ROUNDS_MAX {
            self.ask(&mut sources, &mut page.nodes).await?;
            give(&mut sources, &mut page, order, page_size);
            if page.rows.len() == page_size {
                let is_end = sources.iter().all(|source| source.is_done() && source.rows.is_empty());
                page.last = page.rows.last().map(|row| row.id).filter(|_| !is_end);
                return Ok(page);
            }
            if sources.iter().all(Source::is_done) {
                return Ok(page);
            }
        }
        // What is found and not given is behind what some source has not looked at yet.
        page.last = frontier(&sources, order);
        Ok(page)
    }

    /// Asks each source that has nothing more to give and is not at its end.
    async fn ask(
        &self,
        sources: &mut [Source],
        nodes: &mut HashMap<PayloadId, String>,
    ) -> Result<(), PayloadError> {
        let FindParts { order, filter, page_size, .. } = self.parts;
        let mut posted = Vec::with_capacity(sources.len());
        for source in sources.iter_mut().filter(|source| source.rows.is_empty() && !source.is_done()) {
            let From::Shard(shard) = source.from else { continue };
            let find = Find { namespace: NAMESPACE, span: source.left, order, filter, rows_max: page_size };
            posted.push((self.post(shard, Request::Find(find))?, source));
        }
        for (answer, source) in posted {
            source.take(self.hear(answer).await?, order);
        }
        let others = sources.iter_mut().find(|source| matches!(source.from, From::OtherNodes));
        if let Some(source) = others.filter(|source| source.rows.is_empty() && !source.is_done()) {
            let query = RecordQuery::ForeignSpan {
                namespace: NAMESPACE,
                span: source.left,
                order,
                tier: filter.tier,
                at: clock::now().wall,
            };
            let rows = match self.records.query(query, self.deadline).await? {
                RecordAnswer::ForeignPage(page) => page.rows,
                other => return Err(disagreement("FindPayloads", &other)),
            };
            let reached = rows.last().map(|row| row.descriptor.id).filter(|_| rows.len() == FIND_STEPS_MAX);
            source.take(FoundPart { rows: self.foreign(&rows, nodes), reached }, order);
        }
        Ok(())
    }

    /// Those whose metadata fit, looked up where they are.
    async fn by_metadata(&self) -> Result<Page, PayloadError> {
        let FindParts { mut span, order, page_size, .. } = self.parts;
        let mut page = Page::default();
        for _ in 0..CATALOG_ROUNDS_MAX {
            let query =
                RecordQuery::Find { namespace: NAMESPACE, span, order, filter: self.parts.metadata.clone() };
            let (ids, reached) = match self.records.query(query, self.deadline).await? {
                RecordAnswer::Candidates(ids, reached) => (ids, reached),
                other => return Err(disagreement("FindPayloads", &other)),
            };
            page.rows.extend(self.described(&ids, &mut page.nodes).await?);
            page.last = reached;
            if page.rows.len() > page_size || (page.rows.len() == page_size && reached.is_some()) {
                page.rows.truncate(page_size);
                page.last = page.rows.last().map(|row| row.id);
                break;
            }
            let Some(last) = reached else { break };
            span = span.behind(order, last);
            if span.is_empty() {
                page.last = None;
                break;
            }
        }
        Ok(page)
    }

    /// What listings show of those of `ids` that are as asked, in their order.
    async fn described(
        &self,
        ids: &[PayloadId],
        nodes: &mut HashMap<PayloadId, String>,
    ) -> Result<Vec<Summary>, PayloadError> {
        let mut by_shard = vec![Vec::new(); usize::from(self.router.shard_count())];
        for id in ids {
            by_shard[usize::from(id.shard(self.router.shard_count()).0)].push(*id);
        }
        let mut posted = Vec::new();
        for (shard, ids) in (0..).zip(by_shard).filter(|(_, ids)| !ids.is_empty()) {
            let describe = Describe { namespace: NAMESPACE, ids };
            posted.push(self.post(ShardIndex(shard), Request::Describe(describe))?);
        }
        let mut rows = Vec::new();
        for answer in posted {
            rows.extend(self.hear(answer).await?.rows);
        }
        if let Some(cluster) = &self.router.cluster {
            let known: HashSet<PayloadId> = rows.iter().map(|row| row.id).collect();
            let unknown: Vec<PayloadId> = ids.iter().copied().filter(|id| !known.contains(id)).collect();
            if !unknown.is_empty() {
                let found = cluster.describe(unknown, self.deadline).await?;
                rows.extend(self.foreign(&found, nodes));
            }
        }
        rows.retain(|row| self.parts.filter.admits(row));
        match self.parts.order {
            FindOrder::NewestFirst => rows.sort_by_key(|row| std::cmp::Reverse(row.id)),
            FindOrder::OldestFirst => rows.sort_by_key(|row| row.id),
        }
        Ok(rows)
    }

    /// The rows of other nodes that are as asked; LOST ones are listed nowhere.
    fn foreign(&self, found: &[Foreign], nodes: &mut HashMap<PayloadId, String>) -> Vec<Summary> {
        let fit = |foreign: &&Foreign| !foreign.is_lost && self.parts.filter.admits(&foreign.summary());
        let fit: Vec<&Foreign> = found.iter().filter(fit).collect();
        nodes.extend(fit.iter().map(|foreign| (foreign.descriptor.id, foreign.node.name.clone())));
        fit.into_iter().map(Foreign::summary).collect()
    }

    fn post(&self, shard: ShardIndex, request: Request) -> Result<super::router::Posted, PayloadError> {
        self.router.post(shard, request, self.deadline).map_err(|_full| lane_full())
    }

    async fn hear(&self, answer: super::router::Posted) -> Result<FoundPart, PayloadError> {
        match self.router.hear(answer, self.deadline).await? {
            Reply::Found(part) => Ok(part),
            other => Err(mismatch("FindPayloads", &other)),
        }
    }
}

/// How far all sources have looked that have nothing more to give; `None`: all of them to their end.
fn frontier(sources: &[Source], order: FindOrder) -> Option<PayloadId> {
    let open = sources.iter().filter(|source| source.rows.is_empty() && !source.is_done());
    open.filter_map(|source| source.reached)
        .reduce(|one, two| if order.is_before(one, two) { one } else { two })
}

/// Gives rows, in order, up to where a source might have one before the next.
fn give(sources: &mut [Source], page: &mut Page, order: FindOrder, page_size: usize) {
    while page.rows.len() < page_size {
        let end = frontier(sources, order);
        let heads = sources.iter_mut().filter(|source| !source.rows.is_empty());
        let first =
            heads.reduce(|one, two| if order.is_before(two.rows[0].id, one.rows[0].id) { two } else { one });
        let Some(source) = first else { return };
        if end.is_some_and(|end| order.is_before(end, source.rows[0].id)) {
            return;
        }
        page.rows.extend(source.rows.pop_front());
    }
}

#[cfg(test)]
mod tests {
    use payload_types::{ByteCount, PayloadState, Tier, WallMs};

    use super::*;

    fn id(number: u8) -> PayloadId {
        PayloadId::from_bytes([number; 16])
    }

    fn row(number: u8) -> Summary {
        Summary {
            id: id(number),
            tier: Tier::Ram,
            state: PayloadState::Active,
            size: ByteCount(1),
            created_at: WallMs::from_millis(1),
            expires_at: None,
            leases: 0,
        }
    }

    /// Sources that hold these numbers and look at `steps` of them at a time; every third one is as asked.
    fn pages(held: &[Vec<u8>], order: FindOrder, steps: usize, page_size: usize, rounds: usize) -> Vec<u8> {
        let (mut span, mut seen) = (IdSpan::ALL, Vec::new());
        loop {
            let source = |place: u16| Source {
                from: From::Shard(ShardIndex(place)),
                left: span,
                rows: VecDeque::new(),
                reached: None,
            };
            let mut sources: Vec<Source> = (0..held.len() as u16).map(source).collect();
            let mut page = Page::default();
            for _ in 0..rounds {
                for (source, numbers) in sources.iter_mut().zip(held) {
                    if !source.rows.is_empty() || source.is_done() {
                        continue;
                    }
                    let mut inside: Vec<u8> =
                        numbers.iter().copied().filter(|number| source.left.contains(id(*number))).collect();
                    inside.sort_unstable();
                    if order == FindOrder::NewestFirst {
                        inside.reverse();
                    }
                    let looked = &inside[..steps.min(inside.len())];
                    let reached = looked.last().filter(|_| looked.len() < inside.len()).map(|last| id(*last));
                    let rows = looked.iter().filter(|number| **number % 3 == 0).map(|number| row(*number));
                    source.take(FoundPart { rows: rows.collect(), reached }, order);
                }
                give(&mut sources, &mut page, order, page_size);
                if page.rows.len() == page_size {
                    break;
                }
            }
            seen.extend(page.rows.iter().map(|row| row.id.as_bytes()[0]));
            let is_end = sources.iter().all(|source| source.is_done() && source.rows.is_empty());
            let last = match page.rows.last() {
                Some(last) if page.rows.len() == page_size => Some(last.id).filter(|_| !is_end),
                _ => frontier(&sources, order),
            };
            let Some(last) = last else { return seen };
            let rest = span.behind(order, last);
            assert_ne!(rest, span, "each page goes on");
            span = rest;
        }
    }

    #[test]
    fn given_sources_that_look_at_a_few_at_a_time_when_paged_then_every_row_once_and_in_order() {
        let even: Vec<Vec<u8>> = (0..4).map(|shard| (0..=250).filter(|n| n % 4 == shard).collect()).collect();
        let apart = vec![(0..50).collect(), (50..240).collect(), Vec::new(), vec![249]];
        for held in [even, apart, vec![Vec::new()]] {
            for order in [FindOrder::NewestFirst, FindOrder::OldestFirst] {
                let mut all: Vec<u8> =
                    held.iter().flatten().copied().filter(|number| number % 3 == 0).collect();
                all.sort_unstable();
                if order == FindOrder::NewestFirst {
                    all.reverse();
                }
                for (steps, page_size, rounds) in [(1, 1, 1), (2, 3, 1), (5, 7, 2), (7, 500, 3), (300, 4, 9)]
                {
                    let seen = pages(&held, order, steps, page_size, rounds);
                    assert_eq!(seen, all, "{order:?} {steps} {page_size} {rounds}");
                }
            }
        }
    }
}
