//! behaviour.md, "Lifecycle": ListPayloads and Stats.

use std::time::{SystemTime, UNIX_EPOCH};

use payload_tests::server::{Place, eventually};
use payload_tests::v1::{
    DISK, OBJECT, RAM, UNSPECIFIED, V1, VOID, allocation, content, id, listing, refused,
};
use payload_wire::pb::core::v1::{PayloadId, PayloadState};
use payload_wire::pb::runtime::v1 as rt;
use tonic::Code;

/// All pages, and the total that each stated.
async fn pages(v1: &V1, tier: i32, page_size: i32) -> (Vec<rt::PayloadSummary>, Vec<i32>) {
    let (mut rows, mut totals) = (Vec::new(), Vec::new());
    let mut request = listing(tier, page_size);
    loop {
        let page = v1.list(request.clone()).await.expect("a page");
        assert!(page.payloads.len() <= usize::try_from(page_size).expect("positive"));
        rows.extend(page.payloads);
        totals.push(page.total_count);
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            return (rows, totals);
        }
    }
}

fn ids(rows: &[rt::PayloadSummary]) -> Vec<PayloadId> {
    rows.iter().map(|row| row.id.clone().expect("every row has its id")).collect()
}

#[tokio::test]
async fn given_more_payloads_than_a_page_when_listed_then_sizes_are_clamped_and_the_order_is_newest_first() {
    let place = Place::new().with("SHARDS__COUNT", "3");
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let mut made = Vec::new();
    for _ in 0..505 {
        made.push(id(&v1.allocated(RAM, 1).await));
    }
    made.reverse();
    for (asked, shown) in [(0, 50), (-1, 50), (i32::MIN, 50), (1, 1), (500, 500), (501, 500), (i32::MAX, 500)]
    {
        let page = v1.list(listing(UNSPECIFIED, asked)).await.expect("a page");
        assert_eq!((page.payloads.len(), page.total_count), (shown, 505), "page_size {asked}");
        assert_eq!(ids(&page.payloads), made[..shown]);
        assert!(!page.next_page_token.is_empty());
    }
    let (rows, totals) = pages(&v1, UNSPECIFIED, 101).await;
    assert_eq!((ids(&rows), totals), (made.clone(), vec![505; 5]), "505 rows are five full pages");
    let (rows, _) = pages(&v1, RAM, 500).await;
    assert_eq!(ids(&rows), made);
}

#[tokio::test]
async fn given_bad_page_tokens_when_listed_then_invalid_argument() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    for _ in 0..3 {
        v1.allocated(RAM, 1).await;
    }
    let token = v1.list(listing(RAM, 1)).await.expect("a page").next_page_token;
    let cut = token[..token.len() - 1].to_owned();
    for bad in ["nonsense", " ", "\0", "AAAA", &cut, &format!("{token}A"), &"x".repeat(100_000)] {
        let request = rt::ListPayloadsRequest { page_token: bad.to_owned(), ..listing(RAM, 1) };
        refused(v1.list(request).await, Code::InvalidArgument, &["page_token"]);
    }
    let other_filter = rt::ListPayloadsRequest { page_token: token, ..listing(DISK, 1) };
    refused(v1.list(other_filter).await, Code::InvalidArgument, &["page_token"]);
    refused(v1.list(listing(VOID, 1)).await, Code::InvalidArgument, &["tier_filter"]);
    assert_eq!(v1.list(listing(OBJECT, 1)).await.expect("a page").total_count, 0);
}

#[tokio::test]
async fn given_inserts_and_deletes_while_paging_when_joined_then_no_row_twice_and_none_skipped() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let mut old = Vec::new();
    for _ in 0..60 {
        old.push(id(&v1.allocated(RAM, 1).await));
    }
    let (mut rows, mut deleted) = (Vec::new(), Vec::new());
    let mut request = listing(UNSPECIFIED, 7);
    loop {
        let page = v1.list(request.clone()).await.expect("a page");
        rows.extend(ids(&page.payloads));
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
        v1.allocated(RAM, 1).await;
        // The last row of the page, where the next one would go on, and one that has not been reached.
        let gone = [rows.last().cloned(), old.first().filter(|id| !rows.contains(id)).cloned()];
        for id in gone.into_iter().flatten() {
            v1.delete(&id, false).await.expect("deleted");
            old.retain(|other| *other != id);
            deleted.push(id);
        }
    }
    let mut unique = rows.clone();
    unique.sort_by(|a, b| a.value.cmp(&b.value));
    unique.dedup();
    assert_eq!(unique.len(), rows.len(), "no row twice");
    assert!(
        !deleted.is_empty() && old.iter().all(|id| rows.contains(id)),
        "none skipped that was there throughout"
    );
    assert!(rows.is_sorted_by(|a, b| a.value > b.value), "newest first");
}

#[tokio::test]
async fn given_a_page_token_when_the_server_is_killed_and_restarted_then_it_still_continues_its_listing() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let mut made = Vec::new();
    for seed in 0..9 {
        made.push(id(&v1.put(if seed % 2 == 0 { RAM } else { DISK }, &content(seed, 100)).await));
    }
    made.reverse();
    let first = v1.list(listing(UNSPECIFIED, 4)).await.expect("a page");
    assert_eq!(ids(&first.payloads), made[..4]);
    server.kill();
    let place = place.with("SHARDS__COUNT", "3");
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let request = rt::ListPayloadsRequest { page_token: first.next_page_token, ..listing(UNSPECIFIED, 50) };
    let rest = v1.list(request).await.expect("the token survived");
    assert_eq!((ids(&rest.payloads), rest.total_count), (made[4..].to_vec(), 9));
    assert_eq!(rest.next_page_token, "");
}

#[tokio::test]
async fn given_payloads_on_both_tiers_when_listed_then_filters_fields_and_totals_are_exact() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let before = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as u64;
    let allocated = v1.allocated(RAM, 11).await;
    let lasting = rt::AllocatePayloadRequest { ttl_ms: 3_600_000, ..allocation(DISK, 22) };
    let lasting = v1.allocate(lasting).await.expect("allocated").payload_descriptor.expect("one");
    let leased = v1.put(RAM, &content(1, 33)).await;
    let spilled = v1.put(RAM, &content(2, 44)).await;
    assert!(v1.spill_to(&id(&spilled), DISK).await.ok);
    let leases = [v1.lease(&id(&leased)).await.expect("one"), v1.lease(&id(&leased)).await.expect("two")];

    let (ram, totals) = pages(&v1, RAM, 10).await;
    assert_eq!((ids(&ram), totals), (vec![id(&leased), id(&allocated)], vec![2]), "ALLOCATED ones included");
    let (disk, totals) = pages(&v1, DISK, 10).await;
    assert_eq!((ids(&disk), totals), (vec![id(&spilled), id(&lasting)], vec![2]), "by the descriptor's tier");
    let shape = |row: &rt::PayloadSummary| (row.tier, row.state(), row.size_bytes, row.active_leases);
    assert_eq!(shape(&ram[0]), (RAM, PayloadState::Active, 33, 2));
    assert_eq!(shape(&ram[1]), (RAM, PayloadState::Allocated, 11, 0));
    assert_eq!(shape(&disk[0]), (DISK, PayloadState::Durable, 44, 0));
    assert_eq!(shape(&disk[1]), (DISK, PayloadState::Allocated, 22, 0));
    for row in ram.iter().chain(&disk) {
        assert!(row.created_at_ms >= before && row.created_at_ms < before + 3_600_000, "{row:?}");
        let expires = if row.size_bytes == 22 { row.created_at_ms + 3_600_000 } else { 0 };
        assert_eq!(row.expires_at_ms, expires, "{row:?}");
    }
    for lease in &leases {
        v1.release(lease).await.expect("released");
    }
    assert_eq!(
        v1.row(&id(&leased)).await.expect("listed").active_leases,
        0,
        "List reflects every answered call"
    );
}

#[tokio::test]
async fn given_replicas_on_two_tiers_when_counted_then_each_payload_once_and_bytes_of_every_replica() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let counts = async || {
        let stats = v1.stats().await.expect("stats");
        assert_eq!(
            (stats.payloads_gpu, stats.payloads_object, stats.bytes_gpu, stats.bytes_object),
            (0, 0, 0, 0)
        );
        (stats.payloads_ram, stats.payloads_disk, stats.bytes_ram, stats.bytes_disk)
    };
    assert_eq!(counts().await, (0, 0, 0, 0));
    let allocated = v1.allocated(RAM, 100).await;
    assert_eq!(counts().await, (1, 0, 100, 0), "ALLOCATED included, logical bytes");
    let payload = id(&v1.put(RAM, &content(1, 5000)).await);
    assert_eq!(counts().await, (2, 0, 5100, 0));
    assert!(v1.spill_to(&payload, DISK).await.ok);
    eventually("the segment is dropped", async || (counts().await == (1, 1, 100, 5000)).then_some(())).await;
    v1.promote_to(&payload, RAM).await.expect("promoted");
    assert_eq!(counts().await, (2, 0, 5100, 5000), "once, by its descriptor's tier; its disk replica stays");
    v1.delete(&payload, false).await.expect("deleted");
    v1.delete(&id(&allocated), false).await.expect("deleted");
    assert_eq!(counts().await, (0, 0, 0, 0), "Stats reflect every answered call");
}
