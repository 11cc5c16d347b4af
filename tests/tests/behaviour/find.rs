//! FindPayloads and `payloadctl find` against a real server: what is answered is what was acknowledged, page by page.

use payload_tests::postgres::Postgres;
use payload_tests::server::{Place, Server, objects, payloadctl};
use payload_tests::v1::{DISK, OBJECT, RAM, V1, VOID, allocation, content, id, refused, stranger};
use payload_wire::pb::catalog::v1 as pb;
use payload_wire::pb::core::v1::{MetadataUpdateMode, PayloadId, PayloadState};
use payload_wire::pb::operations::v1 as own;
use payload_wire::pb::operations::v1::payload_records_service_client::PayloadRecordsServiceClient;
use payload_wire::pb::runtime::v1 as rt;
use tonic::{Code, Response, Status};

const OLDEST_FIRST: i32 = own::FindOrder::OldestFirst as i32;

struct Finder(V1);

fn all() -> own::FindPayloadsRequest {
    own::FindPayloadsRequest::default()
}

fn with_field(path: &str, value_json: &str) -> own::FindPayloadsRequest {
    let field = own::FieldEquals { path: path.to_owned(), value_json: value_json.to_owned() };
    own::FindPayloadsRequest { fields: vec![field], ..all() }
}

fn with_tag(key: &str, value: &str) -> own::FindPayloadsRequest {
    let tag = own::FieldTag { key: key.to_owned(), value: value.to_owned() };
    own::FindPayloadsRequest { tags: vec![tag], ..all() }
}

fn ids(rows: &[rt::PayloadSummary]) -> Vec<PayloadId> {
    rows.iter().map(|row| row.id.clone().expect("every row has its id")).collect()
}

fn uuid(id: &PayloadId) -> String {
    payload_wire::ids::payload_id(Some(id)).expect("16 bytes").to_string()
}

impl Finder {
    async fn of(server: &Server) -> Self {
        Self(V1::connect(server).await)
    }

    async fn page(&self, request: own::FindPayloadsRequest) -> Result<own::FindPayloadsResponse, Status> {
        let mut client = PayloadRecordsServiceClient::new(self.0.channel());
        client.find_payloads(request).await.map(Response::into_inner)
    }

    /// All pages.
    async fn find(&self, mut request: own::FindPayloadsRequest) -> Vec<PayloadId> {
        let mut found = Vec::new();
        loop {
            let page = self.page(request.clone()).await.expect("a page");
            found.extend(ids(&page.payloads));
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() {
                return found;
            }
        }
    }

    async fn describe(&self, id: &PayloadId, data: &str, schema: &str) {
        let request = pb::UpdatePayloadMetadataRequest {
            id: Some(id.clone()),
            mode: MetadataUpdateMode::Replace.into(),
            metadata: Some(pb::PayloadMetadata {
                id: None,
                data: data.as_bytes().to_vec(),
                schema: schema.to_owned(),
            }),
            ..Default::default()
        };
        self.0.catalog().update_payload_metadata(request).await.expect("described");
    }
}

// Long because: one set of payloads, and every question about it.
#[tokio::test]
async fn given_payloads_of_every_kind_when_looked_for_then_exactly_those_that_fit_also_after_a_kill() {
    let place = Place::new().with("SHARDS__COUNT", "3");
    let server = place.start();
    let finder = Finder::of(&server).await;
    let allocated = id(&finder.0.allocated(RAM, 11).await);
    let active = id(&finder.0.put(RAM, &content(1, 22)).await);
    let durable = id(&finder.0.put(DISK, &content(2, 33)).await);
    let spilled = id(&finder.0.put(RAM, &content(3, 44)).await);
    assert!(finder.0.spill_to(&spilled, DISK).await.ok);
    finder.describe(&allocated, r#"{"a":1,"tags":{"set":"train"}}"#, "s").await;
    finder.describe(&active, r#"{"a":1.0,"b":{"c.d":"x"}}"#, "s").await;
    finder.describe(&spilled, r#"{"a":"1","tags":["set"]}"#, "t").await;
    let row = |id: &PayloadId| {
        let (id, v1) = (id.clone(), &finder.0);
        async move { v1.row(&id).await.expect("listed") }
    };
    let (third, last) = (row(&durable).await, row(&spilled).await);
    let state = |state: PayloadState| own::FindPayloadsRequest { state: state.into(), ..all() };
    let questions = [
        (all(), vec![&spilled, &durable, &active, &allocated]),
        (
            own::FindPayloadsRequest { order: OLDEST_FIRST, ..all() },
            vec![&allocated, &active, &durable, &spilled],
        ),
        (own::FindPayloadsRequest { tier: DISK, ..all() }, vec![&spilled, &durable]),
        (own::FindPayloadsRequest { tier: OBJECT, ..all() }, vec![]),
        (state(PayloadState::Allocated), vec![&allocated]),
        (state(PayloadState::Active), vec![&active]),
        (state(PayloadState::Durable), vec![&spilled, &durable]),
        (state(PayloadState::Deleted), vec![]),
        (
            own::FindPayloadsRequest { size_bytes_min: Some(22), size_bytes_max: Some(33), ..all() },
            vec![&durable, &active],
        ),
        (own::FindPayloadsRequest { size_bytes_max: Some(0), ..all() }, vec![]),
        (own::FindPayloadsRequest { created_before_ms: Some(1), ..all() }, vec![]),
        (own::FindPayloadsRequest { created_from_ms: Some(u64::MAX >> 1), ..all() }, vec![]),
        (own::FindPayloadsRequest { schema: "s".to_owned(), ..all() }, vec![&active, &allocated]),
        (own::FindPayloadsRequest { schema: "s".to_owned(), state: 1, ..all() }, vec![&allocated]),
        (own::FindPayloadsRequest { tier: DISK, ..with_field("a", "\"1\"") }, vec![&spilled]),
        (own::FindPayloadsRequest { tier: RAM, ..with_field("a", "\"1\"") }, vec![]),
        (with_field("a", "1"), vec![&active, &allocated]),
        (
            own::FindPayloadsRequest { order: OLDEST_FIRST, ..with_field("a", "1e0") },
            vec![&allocated, &active],
        ),
        (own::FindPayloadsRequest { size_bytes_max: Some(11), ..with_field("a", "1") }, vec![&allocated]),
        (with_field("/b/c.d", "\"x\""), vec![&active]),
        (with_field("b.c.d", "\"x\""), vec![]),
        (with_tag("set", "train"), vec![&allocated]),
        (with_tag("set", ""), vec![&spilled]),
        (
            own::FindPayloadsRequest {
                created_from_ms: Some(last.created_at_ms + 1),
                ..with_field("a", "1")
            },
            vec![],
        ),
    ];
    for (request, expected) in &questions {
        let expected: Vec<PayloadId> = expected.iter().map(|id| (*id).clone()).collect();
        assert_eq!(finder.find(request.clone()).await, expected, "{request:?}");
    }
    // Times: from then on, and before then.
    let from = own::FindPayloadsRequest { created_from_ms: Some(third.created_at_ms), ..all() };
    assert!(finder.find(from).await.contains(&durable));
    let before = own::FindPayloadsRequest { created_before_ms: Some(third.created_at_ms), ..all() };
    assert!(!finder.find(before).await.contains(&durable));
    let rows = finder.page(with_field("a", "1")).await.expect("a page").payloads;
    assert_eq!(rows[0], row(&active).await, "as ListPayloads shows it");

    server.kill();
    let place = place.with("SHARDS__COUNT", "2");
    let server = place.start();
    let finder = Finder::of(&server).await;
    // What was not committed is gone, or it is still there; the rest is as it was.
    for (request, expected) in &questions {
        let rest = |ids: Vec<PayloadId>| ids.into_iter().filter(|id| *id != allocated).collect::<Vec<_>>();
        let expected: Vec<PayloadId> = expected.iter().map(|id| (*id).clone()).collect();
        assert_eq!(rest(finder.find(request.clone()).await), rest(expected), "{request:?}");
    }
}

#[tokio::test]
async fn given_changes_that_were_acknowledged_when_looked_for_at_once_then_they_show() {
    let place = Place::new();
    let server = place.start();
    let finder = Finder::of(&server).await;
    for round in 0..30 {
        let made = id(&finder.0.put(RAM, &content(round, 10)).await);
        let mine = with_field("round", &round.to_string());
        assert_eq!(finder.find(mine.clone()).await, []);
        finder.describe(&made, &format!(r#"{{"round":{round}}}"#), "").await;
        assert_eq!(finder.find(mine.clone()).await, std::slice::from_ref(&made));
        let on_disk = own::FindPayloadsRequest { tier: DISK, ..mine.clone() };
        assert_eq!(finder.find(on_disk.clone()).await, []);
        assert!(finder.0.spill_to(&made, DISK).await.ok);
        assert_eq!(finder.find(on_disk).await, std::slice::from_ref(&made));
        if round % 2 == 0 {
            finder.describe(&made, "{}", "").await;
        } else {
            finder.0.delete(&made, false).await.expect("deleted");
        }
        assert_eq!(finder.find(mine).await, []);
    }
    assert_eq!(finder.find(all()).await.len(), 15);
}

#[tokio::test]
async fn given_inserts_deletes_and_moves_while_paging_when_joined_then_no_row_twice_and_none_skipped() {
    let place = Place::new().with("SHARDS__COUNT", "3");
    let server = place.start();
    let finder = Finder::of(&server).await;
    for (order, base) in
        [(0, all()), (OLDEST_FIRST, all()), (0, with_field("a", "1")), (OLDEST_FIRST, with_field("a", "1"))]
    {
        let mut old = Vec::new();
        for seed in 0..40 {
            let made = id(&finder.0.put(RAM, &content(seed, 10)).await);
            finder.describe(&made, r#"{"a":1}"#, "").await;
            old.push(made);
        }
        let mut request = own::FindPayloadsRequest { order, page_size: 7, ..base };
        let (mut rows, mut turn) = (Vec::new(), 0);
        loop {
            let page = finder.page(request.clone()).await.expect("a page");
            assert!(page.payloads.len() <= 7);
            rows.extend(ids(&page.payloads));
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() {
                break;
            }
            let made = id(&finder.0.put(RAM, &content(99, 10)).await);
            finder.describe(&made, r#"{"a":1}"#, "").await;
            let gone = [rows.last().cloned(), old.iter().find(|id| !rows.contains(id)).cloned()];
            for id in gone.into_iter().flatten() {
                finder.0.delete(&id, false).await.expect("deleted");
                old.retain(|other| *other != id);
            }
            turn += 1;
            if let Some(moved) = old.get(turn) {
                assert!(finder.0.spill_to(moved, DISK).await.ok);
            }
            assert!(turn < 100, "it ends");
        }
        let mut unique = rows.clone();
        unique.sort_by(|a, b| a.value.cmp(&b.value));
        unique.dedup();
        assert_eq!(unique.len(), rows.len(), "no row twice");
        assert!(old.iter().all(|id| rows.contains(id)), "none skipped that was there throughout");
        if order == OLDEST_FIRST {
            assert_eq!(rows, unique, "oldest first");
        } else {
            unique.reverse();
            assert_eq!(rows, unique, "newest first");
        }
        for id in finder.find(all()).await {
            finder.0.delete(&id, false).await.expect("deleted");
        }
    }
}

#[tokio::test]
async fn given_many_payloads_of_which_few_fit_when_looked_for_then_the_rare_ones_are_found_whatever_the_pages()
 {
    let place = Place::new().with("SHARDS__COUNT", "2");
    let server = place.start();
    let finder = Finder::of(&server).await;
    let (mut rare, mut made) = (Vec::new(), Vec::new());
    // More than one part of a shard's walk, and of the catalog's.
    for number in 0..1_500 {
        let size = if number % 500 == 7 { 5_000 } else { 10 };
        let new = id(&finder.0.allocated(RAM, size).await);
        if number % 500 == 7 {
            rare.push(new.clone());
        }
        made.push(new);
    }
    for (number, id) in made.iter().enumerate().take(400) {
        finder.describe(id, &format!(r#"{{"all":true,"n":{number}}}"#), "s").await;
    }
    rare.reverse();
    let large = own::FindPayloadsRequest { size_bytes_min: Some(5_000), ..all() };
    assert_eq!(finder.find(large.clone()).await, rare);
    assert_eq!(finder.find(own::FindPayloadsRequest { page_size: 1, ..large.clone() }).await, rare);
    rare.reverse();
    assert_eq!(finder.find(own::FindPayloadsRequest { order: OLDEST_FIRST, ..large.clone() }).await, rare);
    let described =
        own::FindPayloadsRequest { page_size: 500, order: OLDEST_FIRST, ..with_field("all", "true") };
    assert_eq!(finder.find(described.clone()).await, made[..400]);
    let both = own::FindPayloadsRequest { size_bytes_min: Some(5_000), ..described };
    assert_eq!(finder.find(both).await, rare[..1]);
    made.reverse();
    assert_eq!(finder.find(own::FindPayloadsRequest { page_size: 500, ..all() }).await, made);
    assert_eq!(finder.find(own::FindPayloadsRequest { page_size: 499, ..all() }).await, made);
}

#[tokio::test]
async fn given_bad_questions_when_asked_then_invalid_argument_says_what_is_wrong() {
    let place = Place::new();
    let server = place.start();
    let finder = Finder::of(&server).await;
    for _ in 0..3 {
        finder.0.allocated(RAM, 1).await;
    }
    let first = own::FindPayloadsRequest { page_size: 1, ..all() };
    let token = finder.page(first.clone()).await.expect("a page").next_page_token;
    assert!(!token.is_empty());
    let other = own::FindPayloadsRequest { page_token: token.clone(), tier: RAM, ..first.clone() };
    let listed = rt::ListPayloadsRequest { page_token: token.clone(), ..Default::default() };
    refused(finder.0.list(listed).await, Code::InvalidArgument, &["page_token"]);
    for (request, words) in [
        (other, &["page_token", "filters"][..]),
        (
            own::FindPayloadsRequest { order: OLDEST_FIRST, page_token: token, ..first },
            &["page_token", "order"],
        ),
        (own::FindPayloadsRequest { page_token: "nonsense".to_owned(), ..all() }, &["page_token"]),
        (own::FindPayloadsRequest { tier: VOID, ..all() }, &["tier", "TIER_VOID"]),
        (own::FindPayloadsRequest { tier: 42, ..all() }, &["tier", "42"]),
        (own::FindPayloadsRequest { state: 42, ..all() }, &["state", "42"]),
        (own::FindPayloadsRequest { order: 42, ..all() }, &["order", "42"]),
        (with_field("a", "nonsense"), &["`a`", "JSON", "quotes"]),
        (with_field("a", "[1]"), &["`a`", "array"]),
        (with_field("a..b", "1"), &["`a..b`", "empty"]),
        (with_field("", "1"), &["empty"]),
        (with_field("/~7", "1"), &["pointer"]),
        (with_tag("", "x"), &["tag", "empty"]),
        (
            own::FindPayloadsRequest { size_bytes_min: Some(3), size_bytes_max: Some(2), ..all() },
            &["size_bytes_min", "size_bytes_max"],
        ),
        (
            own::FindPayloadsRequest { created_from_ms: Some(3), created_before_ms: Some(3), ..all() },
            &["created_from_ms", "created_before_ms"],
        ),
        (own::FindPayloadsRequest { created_from_ms: Some(u64::MAX), ..all() }, &["created_from_ms"]),
    ] {
        refused(finder.page(request).await, Code::InvalidArgument, words);
    }
    assert_eq!(finder.find(with_field("a", "1")).await, []);
    assert_eq!(finder.find(all()).await.len(), 3, "the server goes on");
}

#[tokio::test]
async fn given_two_nodes_of_one_catalog_when_looked_for_at_either_then_the_payloads_of_both() {
    let postgres = Postgres::start().expect("a PostgreSQL server starts");
    let uri = postgres.database();
    let place =
        |name: &str| Place::new().with("DATABASE__POSTGRES__CONNECTION_URI", &uri).with("NODE__NAME", name);
    let places = [place("one"), place("two")];
    let servers = [places[0].start(), places[1].start()];
    let (one, two) = (Finder::of(&servers[0]).await, Finder::of(&servers[1]).await);
    let mut made = Vec::new();
    for number in 0..12_u64 {
        let finder = if number % 2 == 0 { &one } else { &two };
        let new = id(&finder.0.put(if number % 3 == 0 { RAM } else { DISK }, &content(number, 10)).await);
        finder.describe(&new, &format!(r#"{{"third":{}}}"#, number % 3), "s").await;
        made.push(new);
    }
    for finder in [&one, &two] {
        let oldest = |request| own::FindPayloadsRequest { order: OLDEST_FIRST, page_size: 5, ..request };
        assert_eq!(finder.find(oldest(all())).await, made);
        assert_eq!(
            finder.find(oldest(own::FindPayloadsRequest { schema: "s".to_owned(), ..all() })).await,
            made
        );
        let third: Vec<PayloadId> = made.iter().step_by(3).cloned().collect();
        assert_eq!(finder.find(oldest(with_field("third", "0"))).await, third);
        assert_eq!(finder.find(oldest(own::FindPayloadsRequest { tier: RAM, ..all() })).await, third);
        let mut newest = made.clone();
        newest.reverse();
        assert_eq!(finder.find(own::FindPayloadsRequest { page_size: 5, ..all() }).await, newest);
        let rows = finder.page(oldest(all())).await.expect("a page").payloads;
        let nodes: Vec<&str> = rows.iter().map(|row| row.node_id.as_str()).collect();
        assert_eq!(nodes, ["one", "two", "one", "two", "one"]);
    }
}

/// The ids that `payloadctl find` prints.
#[track_caller]
fn found(server: &Server, args: &[&str]) -> Vec<String> {
    let args: Vec<&str> = ["find"].iter().chain(args).copied().collect();
    let output = payloadctl(server, &args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    objects(&output).iter().map(|row| row["id"].as_str().expect("an id").to_owned()).collect()
}

#[tokio::test]
async fn given_payloadctl_when_payloads_are_looked_for_then_every_flag_counts_and_bad_ones_are_told() {
    let place = Place::new();
    let server = place.start();
    let finder = Finder::of(&server).await;
    let mut made = Vec::new();
    for number in 0..4_u64 {
        made.push(id(&finder
            .0
            .put(if number == 3 { DISK } else { RAM }, &content(number, 1000 + number as usize))
            .await));
    }
    finder
        .describe(&made[0], r#"{"model":{"name":"resnet","depth":18},"tags":{"set":"train"}}"#, "png")
        .await;
    finder.describe(&made[1], r#"{"model":{"name":"resnet","depth":34},"tags":["set"]}"#, "png").await;
    let text: Vec<String> = made.iter().map(uuid).collect();
    let created = finder.0.row(&made[2]).await.expect("listed").created_at_ms.to_string();
    for (args, expected) in [
        (&[][..], &[3, 2, 1, 0][..]),
        (&["--oldest-first", "--limit", "2"], &[0, 1]),
        (&["--tier", "disk"], &[3]),
        (&["--state", "ACTIVE", "--oldest-first"], &[0, 1, 2]),
        (&["--size-min", "1001", "--size-max", "1002"], &[2, 1]),
        (&["--created-after", "1h"], &[3, 2, 1, 0]),
        (&["--created-before", "1h"], &[]),
        (&["--created-before", "2026-01-01T00:00:00Z"], &[]),
        (&["--schema", "png"], &[1, 0]),
        (&["--field", "model.name=resnet", "--field", "model.depth=18.0"], &[0]),
        (&["--field", "/model/name=\"resnet\""], &[1, 0]),
        (&["--field", "model.depth=\"18\""], &[]),
        (&["--tag", "set=train"], &[0]),
        (&["--tag", "set"], &[1]),
    ] {
        let expected: Vec<&String> = expected.iter().map(|number| &text[*number as usize]).collect();
        assert_eq!(found(&server, args).iter().collect::<Vec<_>>(), expected, "{args:?}");
    }
    assert!(found(&server, &["--created-after", &created]).contains(&text[2]));
    assert!(!found(&server, &["--created-before", &created]).contains(&text[2]));
    let shown = payloadctl(&server, &["find", "--tag", "set"]);
    let shown = String::from_utf8(shown.stdout).expect("text");
    assert!(shown.contains(&text[1]) && shown.contains("active"), "{shown}");
    for (args, code, word) in [
        (&["find", "--state", "sleeping"][..], 2, "sleeping"),
        (&["find", "--created-after", "soon"], 2, "is no time"),
        (&["find", "--field", "a"], 2, "PATH=VALUE"),
        (&["find", "--size-min", "5", "--size-max", "4"], 1, "size_bytes_min"),
        (&["find", "--field", "a=[1"], 1, "no JSON"),
        (&["find", "--field", "a..b=1"], 1, "empty name"),
    ] {
        let output = payloadctl(&server, args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        assert!(said.contains(word), "{args:?}: {said}");
    }
}

#[tokio::test]
async fn given_expired_and_unknown_payloads_when_looked_for_then_as_listings_have_them() {
    let place = Place::new();
    let server = place.start();
    let finder = Finder::of(&server).await;
    let passing = rt::AllocatePayloadRequest { ttl_ms: 60_000, ..allocation(RAM, 10) };
    let passing = finder.0.allocate(passing).await.expect("allocated").payload_descriptor.expect("one");
    finder.describe(&id(&passing), r#"{"a":1}"#, "").await;
    let rows = finder.page(with_field("a", "1")).await.expect("a page").payloads;
    assert_eq!(rows.len(), 1);
    assert!(rows[0].expires_at_ms > rows[0].created_at_ms);
    finder.0.delete(&id(&passing), false).await.expect("deleted");
    refused(finder.0.resolve(&stranger()).await, Code::NotFound, &[]);
    assert_eq!(finder.find(with_field("a", "1")).await, []);
}
