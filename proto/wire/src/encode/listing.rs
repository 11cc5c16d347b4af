//! A page of ListPayloads, put together from what every shard answered.

use std::cmp::Reverse;

use payload_types::reply::{ShardPage, Summary};
use payload_types::{PayloadId, WallMs};

use crate::decode::ListParts;
use crate::pb::operations::v1 as own;
use crate::pb::runtime::v1 as pb;
use crate::{enums, ids, page_token};

/// Merges the shards' pages, newest first. `asked` is the request they answer: it asked each of them for one row
/// more than the page has, so a row left over after the merge means that there is a next page. Payloads of other nodes
/// are the page of one shard more. `node` names the node of a payload; empty where none shares the catalog.
pub fn page(
    asked: &ListParts,
    shards: Vec<ShardPage>,
    node: impl Fn(PayloadId) -> String,
) -> pb::ListPayloadsResponse {
    let total: u64 = shards.iter().map(|shard| shard.total).sum();
    let mut rows: Vec<Summary> = shards.into_iter().flat_map(|shard| shard.rows).collect();
    // Runs that are sorted already: the stable sort merges them. Ids are unique across shards.
    rows.sort_by_key(|row| Reverse(row.id));
    let more = rows.len() > asked.page_size;
    rows.truncate(asked.page_size);
    let next_page_token = match rows.last() {
        Some(last) if more => page_token::encode(asked.listing, last.id),
        _ => String::new(),
    };
    pb::ListPayloadsResponse {
        payloads: rows.iter().map(|row| summary(row, node(row.id))).collect(),
        next_page_token,
        total_count: i32::try_from(total).unwrap_or(i32::MAX),
    }
}

/// A page of FindPayloads, in the order asked for.
pub fn found(
    rows: &[Summary],
    next_page_token: String,
    node: impl Fn(PayloadId) -> String,
) -> own::FindPayloadsResponse {
    let payloads = rows.iter().map(|row| summary(row, node(row.id))).collect();
    own::FindPayloadsResponse { payloads, next_page_token }
}

fn summary(row: &Summary, node_id: String) -> pb::PayloadSummary {
    pb::PayloadSummary {
        id: Some(ids::payload_id_to_pb(row.id)),
        tier: enums::tier_to_pb(row.tier).into(),
        state: enums::state_to_pb(row.state).into(),
        size_bytes: row.size.0,
        created_at_ms: row.created_at.as_millis(),
        expires_at_ms: row.expires_at.map_or(0, WallMs::as_millis),
        active_leases: row.leases,
        node_id,
    }
}

#[cfg(test)]
mod tests {
    use payload_types::{ByteCount, NamespaceId, PayloadId, PayloadState, Tier};

    use super::*;
    use crate::decode;

    fn row(number: u8) -> Summary {
        Summary {
            id: PayloadId::from_bytes([number; 16]),
            tier: Tier::Ram,
            state: PayloadState::Committing,
            size: ByteCount(u64::from(number)),
            created_at: WallMs::from_millis(1_000),
            expires_at: None,
            leases: 3,
        }
    }

    /// No other node shares the catalog.
    fn nobody(_id: PayloadId) -> String {
        String::new()
    }

    fn asked(page_size: i32, page_token: &str) -> ListParts {
        let request =
            pb::ListPayloadsRequest { tier_filter: 0, page_size, page_token: page_token.to_owned() };
        decode::list(NamespaceId::DEFAULT, request).expect("valid")
    }

    /// What shards that hold these ids answer.
    fn answers(shards: &[&[u8]], asked: &ListParts) -> Vec<ShardPage> {
        let answer = |numbers: &&[u8]| {
            let mut rows: Vec<Summary> = numbers.iter().map(|number| row(*number)).collect();
            rows.sort_by_key(|row| Reverse(row.id));
            rows.retain(|row| asked.list.before.is_none_or(|before| row.id < before));
            rows.truncate(asked.list.page_size);
            ShardPage { rows, total: numbers.len() as u64 }
        };
        shards.iter().map(answer).collect()
    }

    fn numbers(page: &pb::ListPayloadsResponse) -> Vec<u8> {
        page.payloads.iter().map(|row| row.id.as_ref().expect("an id").value[0]).collect()
    }

    #[test]
    fn given_shards_when_paged_through_then_every_row_comes_once_newest_first() {
        let shards: [&[u8]; 3] = [&[1, 4, 7, 8], &[], &[2, 3, 5, 6, 9]];
        let mut token = String::new();
        let mut seen = Vec::new();
        for _ in 0..5 {
            let asked = asked(2, &token);
            let page = page(&asked, answers(&shards, &asked), nobody);
            assert_eq!(page.total_count, 9, "the total does not depend on the cursor");
            seen.extend(numbers(&page));
            token = page.next_page_token;
        }
        assert_eq!(seen, [9, 8, 7, 6, 5, 4, 3, 2, 1]);
        assert!(token.is_empty(), "the fifth page is the last");
    }

    #[test]
    fn given_exactly_one_page_of_rows_when_listed_then_there_is_no_next_token() {
        let (one, two): ([&[u8]; 1], [&[u8]; 2]) = ([&[1, 2, 3]], [&[1, 3], &[2]]);
        for shards in [&one[..], &two[..]] {
            let asked = asked(3, "");
            let page = page(&asked, answers(shards, &asked), nobody);
            assert_eq!((numbers(&page), page.next_page_token.as_str()), (vec![3, 2, 1], ""));
        }
    }

    #[test]
    fn given_nothing_when_listed_then_the_page_is_empty() {
        let page = page(&asked(0, ""), vec![ShardPage::default(); 4], nobody);
        assert_eq!(page, pb::ListPayloadsResponse::default());
    }

    #[test]
    fn given_a_row_when_listed_then_every_field_is_set() {
        let living = Summary { expires_at: Some(WallMs::from_millis(2_000)), ..row(5) };
        let shards = vec![ShardPage { rows: vec![living, row(4)], total: 1 << 40 }];
        let page = page(&asked(0, ""), shards, |id| format!("node-{}", id.as_bytes()[0]));
        let expected = pb::PayloadSummary {
            id: Some(ids::payload_id_to_pb(PayloadId::from_bytes([5; 16]))),
            tier: 2,
            state: 1,
            size_bytes: 5,
            created_at_ms: 1_000,
            expires_at_ms: 2_000,
            active_leases: 3,
            node_id: "node-5".to_owned(),
        };
        assert_eq!(page.payloads[0], expected);
        assert_eq!(page.payloads[1].expires_at_ms, 0, "0 means no expiry");
        assert_eq!(page.total_count, i32::MAX, "saturates");
    }
}
