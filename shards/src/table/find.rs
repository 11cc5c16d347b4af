//! This shard's part of FindPayloads: a bounded walk over its payloads in the order of their ids.
//!
//! Called by [`Shard`](crate::shard::Shard) for `Request::Find` and `Request::Describe`. Changes nothing. A turn looks at
//! `FIND_STEPS_MAX` payloads at most, however few are as asked: the answer says how far it came, and the front asks on.

use std::iter::Peekable;

use payload_ledger::SlotKey;
use payload_types::find::{Describe, FIND_STEPS_MAX, Find, FindOrder, FoundPart};
use payload_types::{PayloadId, PayloadKey, Tier};

use super::{Table, shown_tier};
use crate::payload::Payload;

impl Table {
    /// The payloads of a span that are as asked, as far as one turn goes.
    pub fn find_part(&self, find: &Find) -> FoundPart {
        let tiers = Tier::ALL.into_iter().filter(|tier| find.filter.tier.is_none_or(|only| only == *tier));
        let mut walks: Vec<_> = tiers.map(|tier| self.walk(tier, find).peekable()).collect();
        let mut part = FoundPart::default();
        let mut last = None;
        for looked_at in 0.. {
            if looked_at == FIND_STEPS_MAX || part.rows.len() >= find.rows_max {
                part.reached = last;
                return part;
            }
            let Some(payload) = first(&mut walks, find.order) else { break };
            last = Some(payload.key.id);
            let row = payload.summary();
            if find.filter.admits(&row) {
                part.rows.push(row);
            }
        }
        part
    }

    /// The payloads whose fastest replica is on `tier`, in the order of their keys.
    pub fn slots_shown_on(&self, tier: Tier) -> impl Iterator<Item = SlotKey> + '_ {
        self.ordered[tier].iter().filter_map(|index| self.payloads.key_at(index))
    }

    /// Those of some payloads that listings show.
    pub fn describe(&self, asked: &Describe) -> FoundPart {
        let shown = |id: &PayloadId| {
            let slot = self.find(PayloadKey { namespace: asked.namespace, id: *id })?;
            let payload = self.at(slot);
            shown_tier(payload).map(|_tier| payload.summary())
        };
        FoundPart { rows: asked.ids.iter().filter_map(shown).collect(), reached: None }
    }

    /// The payloads of a tier within the span that is asked for, in its order.
    fn walk(&self, tier: Tier, find: &Find) -> Box<dyn Iterator<Item = &Payload> + '_> {
        let Find { namespace, span, order, .. } = *find;
        let at =
            |index| self.payloads.key_at(index).map(|slot| self.at(slot)).expect("ordered payloads exist");
        let key = |id| PayloadKey { namespace, id };
        let is_in =
            move |payload: &&Payload| payload.key.namespace == namespace && span.contains(payload.key.id);
        match order {
            FindOrder::NewestFirst => {
                let end = std::ops::Bound::Included(key(span.high));
                let walk = self.ordered[tier].descending(end, move |index| at(index).key);
                Box::new(walk.map(at).take_while(is_in))
            }
            FindOrder::OldestFirst => {
                let walk = self.ordered[tier].ascending(key(span.low), move |index| at(index).key);
                Box::new(walk.map(at).take_while(is_in))
            }
        }
    }
}

/// Takes the next of all walks.
fn first<'table>(
    walks: &mut [Peekable<Box<dyn Iterator<Item = &'table Payload> + 'table>>],
    order: FindOrder,
) -> Option<&'table Payload> {
    let mut best: Option<(usize, PayloadId)> = None;
    for (place, walk) in walks.iter_mut().enumerate() {
        if let Some(payload) = walk.peek()
            && best.is_none_or(|(_, id)| order.is_before(payload.key.id, id))
        {
            best = Some((place, payload.key.id));
        }
    }
    walks[best?.0].next()
}
