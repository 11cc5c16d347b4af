//! Clients that look for payloads, the front's part of it: every shard is asked part by part until its span is looked at.
//!
//! Two things are checked. Of what one shard answers: `check_part`, and whenever the oracle looks at a shard, that its parts,
//! put together, are exactly what it lists. Of a search that runs beside everything else: that no payload came twice, and
//! that whatever existed throughout, of a size that was asked for, was found.

use std::collections::{BTreeMap, BTreeSet};

use payload_types::find::{Find, FindOrder, FoundPart, IdSpan, PayloadFilter};
use payload_types::reply::Reply;
use payload_types::request::Request;
use payload_types::{ByteCount, NamespaceId, PayloadId, PayloadKey, PayloadState, Tier};

use super::audit::Look;
use super::oracle::{Breach, Rule, breach};
use super::world::{NAMESPACES, World};

/// A search under way.
#[derive(Debug)]
pub(super) struct Search {
    find: Find,
    /// What each shard was asked last.
    waiting: BTreeMap<u64, (usize, Find)>,
    seen: BTreeSet<PayloadId>,
    /// Those that existed when it began; who still does at its end must have been seen.
    expected: Vec<PayloadKey>,
    parts: u32,
}

impl World {
    /// A client may begin a search. Draws only where there are searches, so that other seeds' runs stay what they are.
    pub(super) fn find_tick(&mut self) {
        let permille = self.plan.find_permille;
        if permille == 0 || self.client.search.is_some() || !self.rng.chance(permille) {
            return;
        }
        let (size_min, size_max) =
            self.rng.pick(&[(0, u64::MAX), (0, u64::MAX), (2, 5000), (5000, u64::MAX)]);
        let filter = PayloadFilter {
            tier: self.rng.pick(&[None, None, Some(Tier::Ram), Some(Tier::Disk)]),
            state: self.rng.pick(&[None, None, None, Some(PayloadState::Durable)]),
            size_min,
            size_max,
        };
        let find = Find {
            namespace: self.rng.pick(&NAMESPACES),
            span: IdSpan::ALL,
            order: self.rng.pick(&[FindOrder::NewestFirst, FindOrder::OldestFirst]),
            filter,
            rows_max: self.rng.pick(&[1, 2, 5, 500]),
        };
        // Tiers and states change while it runs; sizes do not.
        let is_lasting = filter.tier.is_none() && filter.state.is_none();
        let expected = if is_lasting { self.must_be_found(&find).collect() } else { Vec::new() };
        let waiting = (0..usize::from(self.shard_count()))
            .map(|shard| (self.send(shard, Request::Find(find.clone())), (shard, find.clone())))
            .collect();
        self.client.search = Some(Search { find, waiting, seen: BTreeSet::new(), expected, parts: 0 });
    }

    fn must_be_found(&self, find: &Find) -> impl Iterator<Item = PayloadKey> + use<'_> {
        let PayloadFilter { size_min, size_max, .. } = find.filter;
        let has_size = move |size: ByteCount| (size_min..=size_max).contains(&size.0);
        self.must_be_listed(find.namespace).filter(move |key| has_size(self.oracle.facts[key].size))
    }

    /// A shard's part arrives; the shard is asked on behind it.
    pub(super) fn find_part(&mut self, to: u64, part: FoundPart) -> Result<(), Breach> {
        let Some(mut search) = self.client.search.take() else { return Ok(()) };
        let Some((shard, mut find)) = search.waiting.remove(&to) else {
            self.client.search = Some(search);
            return Ok(()); // Of a search that was given up.
        };
        search.parts += 1;
        if let Some(row) = part.rows.iter().find(|row| !search.seen.insert(row.id)) {
            return breach(Rule::Listing, format!("{row:?} is found twice"));
        }
        if let Some(last) = part.reached {
            find.span = find.span.behind(find.order, last);
            search.waiting.insert(self.send(shard, Request::Find(find.clone())), (shard, find));
        }
        if !search.waiting.is_empty() {
            self.client.search = Some(search);
            return Ok(());
        }
        if search.parts > 2 * u32::from(self.shard_count()) {
            self.oracle.coverage.hit("find_of_several_parts");
        }
        let still: BTreeSet<PayloadKey> = self.must_be_found(&search.find).collect();
        let is_skipped = |key: &&PayloadKey| still.contains(key) && !search.seen.contains(&key.id);
        match search.expected.iter().find(is_skipped) {
            Some(key) => breach(Rule::Listing, format!("{key:?} existed throughout and was not found")),
            None => Ok(()),
        }
    }

    /// At one moment: what a shard finds in parts is what it lists, whatever is asked for.
    pub(super) fn find_now(&mut self, shard: usize, look: &Look) -> Result<(), Breach> {
        if self.plan.find_permille == 0 {
            return Ok(());
        }
        // By the moment, and not drawn.
        let turn = (self.now.0 / 1000) as usize;
        let namespace = NAMESPACES[turn % NAMESPACES.len()];
        let filter = PayloadFilter {
            tier: [None, Some(Tier::Ram), Some(Tier::Disk)][turn % 3],
            state: [None, Some(PayloadState::Allocated), Some(PayloadState::Durable)][turn / 3 % 3],
            size_min: [0, 2, 5000][turn / 9 % 3],
            size_max: [u64::MAX, 100_000][turn / 27 % 2],
        };
        let order = [FindOrder::NewestFirst, FindOrder::OldestFirst][turn / 54 % 2];
        let mut find =
            Find { namespace, span: IdSpan::ALL, order, filter, rows_max: [3, 100][turn / 108 % 2] };
        let mut found = Vec::new();
        loop {
            let Ok(Reply::Found(part)) = self.ask_now(shard, Request::Find(find.clone()))? else {
                return breach(Rule::Listing, "Find was refused");
            };
            check_part(&find, &part)?;
            found.extend(part.rows);
            let Some(last) = part.reached else { break };
            find.span = find.span.behind(order, last);
        }
        let mut listed = listed(look, namespace, &filter);
        if order == FindOrder::OldestFirst {
            listed.reverse();
        }
        if found == listed {
            return Ok(());
        }
        breach(Rule::Listing, format!("{filter:?} {order:?}: found {found:?}, and listed {listed:?}"))
    }
}

/// What of a shard's listing is as asked, newest first.
fn listed(look: &Look, namespace: NamespaceId, filter: &PayloadFilter) -> Vec<payload_types::reply::Summary> {
    let mut rows: Vec<_> = look
        .rows
        .iter()
        .filter(|(key, row)| key.namespace == namespace && filter.admits(row))
        .map(|(_, row)| row.clone())
        .collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.id));
    rows
}

/// One shard's part: in order, within the span, as asked for, not more than that, and it goes on behind itself.
pub(super) fn check_part(find: &Find, part: &FoundPart) -> Result<(), Breach> {
    let Find { span, order, filter, rows_max, .. } = find;
    let is_sorted = part.rows.windows(2).all(|pair| order.is_before(pair[0].id, pair[1].id));
    let fits = part.rows.iter().all(|row| span.contains(row.id) && filter.admits(row));
    let is_bounded = part.rows.len() <= *rows_max;
    let goes_on = part
        .reached
        .is_none_or(|last| span.contains(last) && part.rows.iter().all(|row| !order.is_before(last, row.id)));
    if is_sorted && fits && is_bounded && goes_on {
        return Ok(());
    }
    breach(Rule::Listing, format!("{find:?}: {part:?}"))
}
