//! Finding payloads by their metadata: candidates by their terms, each judged by what its metadata are now.
//!
//! ```text
//! span --a list a condition--> ids of its term (and of documents with too many values), as far as the list goes
//!      --the list that goes furthest, less what the others do not have--> candidates --judged--> answer, how far it came
//! ```
//! All within one snapshot. One question reads at most [`LIST_LEN`] ids a list and [`ANSWER_BYTES_MAX`] of documents, one
//! more at worst; whoever wants more asks on behind `reached`.

use payload_types::NamespaceId;
use payload_types::PayloadId;
use payload_types::find::{FindOrder, IdSpan, MetadataFilter};
use payload_types::limits::ANSWER_BYTES_MAX;
use payload_types::record::RecordAnswer;

use super::tables::{Payloads, Tables, TermSpan};
use super::terms;
use crate::error::StoreError;

/// Ids of a term that are read at a time: 256 documents of 1 KiB are a quarter of a megabyte to read and to parse.
const LIST_LEN: usize = 256;

/// Ids in the order asked for: all there are up to `reached`, or of the whole span.
#[derive(Clone)]
struct List {
    ids: Vec<PayloadId>,
    reached: Option<PayloadId>,
}

pub(super) fn find<T: Tables>(
    tables: &mut T,
    namespace: NamespaceId,
    span: IdSpan,
    order: FindOrder,
    filter: &MetadataFilter,
) -> Result<RecordAnswer, StoreError> {
    let span = |term| TermSpan { namespace, term, span, order };
    let mut lists = Vec::new();
    if let Some(schema) = &filter.schema {
        lists.push(list(tables, span(terms::of_schema(schema)))?);
    }
    let fields = filter.fields.iter().map(terms::of_field);
    let values: Vec<u64> =
        fields.chain(filter.tags.iter().map(|(key, value)| terms::of_tag(key, value))).collect();
    if !values.is_empty() {
        let overflow = list(tables, span(terms::OVERFLOW))?;
        for term in &values {
            lists.push(list(tables, span(*term))?.or(&overflow, order));
        }
    }
    let Some(driver) = furthest(&lists, order) else { return Ok(RecordAnswer::Candidates(vec![], None)) };
    let (candidates, end) = (candidates(&lists, driver, order), lists[driver].reached);

    let (mut found, mut bytes, mut last) = (Vec::new(), 0, None);
    let of = Payloads { namespace, ids: &candidates };
    tables.metadata_of(of, !values.is_empty(), &mut |(id, metadata)| {
        if terms::is_as_asked(&metadata, filter) {
            found.push(id);
        }
        bytes += metadata.data.len();
        last = Some(id);
        bytes < ANSWER_BYTES_MAX
    })?;
    let is_early = bytes >= ANSWER_BYTES_MAX && last != candidates.last().copied();
    Ok(RecordAnswer::Candidates(found, if is_early { last } else { end }))
}

fn list<T: Tables>(tables: &mut T, span: TermSpan) -> Result<List, StoreError> {
    let ids = tables.term_payloads(span, LIST_LEN)?;
    let reached = ids.last().copied().filter(|_| ids.len() == LIST_LEN);
    Ok(List { ids, reached })
}

impl List {
    /// What is in one of both, as far as both go.
    fn or(self, other: &Self, order: FindOrder) -> Self {
        let reached = match (self.reached, other.reached) {
            (Some(one), Some(two)) => Some(if order.is_before(one, two) { one } else { two }),
            (one, two) => one.or(two),
        };
        let mut ids = self.ids;
        ids.extend(&other.ids);
        ids.retain(|id| reached.is_none_or(|end| !order.is_before(end, *id)));
        ids.sort_unstable_by(|one, two| compare(order, *one, *two));
        ids.dedup();
        Self { ids, reached }
    }

    /// False when it is known that `id` is not in it.
    fn may_have(&self, id: PayloadId, order: FindOrder) -> bool {
        let is_beyond = self.reached.is_some_and(|end| order.is_before(end, id));
        is_beyond || self.ids.binary_search_by(|other| compare(order, *other, id)).is_ok()
    }
}

fn compare(order: FindOrder, one: PayloadId, other: PayloadId) -> std::cmp::Ordering {
    match order {
        FindOrder::NewestFirst => other.cmp(&one),
        FindOrder::OldestFirst => one.cmp(&other),
    }
}

/// The list that goes furthest: that of the rarest term, around here.
fn furthest(lists: &[List], order: FindOrder) -> Option<usize> {
    (0..lists.len()).reduce(|best, place| match (lists[best].reached, lists[place].reached) {
        (Some(one), Some(two)) if order.is_before(one, two) => place,
        (Some(_), None) => place,
        // Of two that go to the end the shorter one.
        (None, None) if lists[place].ids.len() < lists[best].ids.len() => place,
        _ => best,
    })
}

fn candidates(lists: &[List], driver: usize, order: FindOrder) -> Vec<PayloadId> {
    let ids = lists[driver].ids.iter().copied();
    ids.filter(|id| lists.iter().all(|list| list.may_have(*id, order))).collect()
}
