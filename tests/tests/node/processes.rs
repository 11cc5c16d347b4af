//! What needs several processes: bytes shared between them, servers that are killed, restarted, stopped, and seconds
//! that want what the first one holds.

use std::fs;

use payload_tests::peer::{Peer, answer};
use payload_tests::server::{Place, Server, eventually, payloadctl};
use payload_tests::sys::{self, Signal};
use payload_tests::v1::{
    DISK, RAM, UNSPECIFIED, V1, allocation, content, id, listing, refused, spilled, spilling,
};
use payload_wire::pb::core::v1::{PayloadId, PayloadState};
use payload_wire::pb::runtime::v1 as rt;
use tonic::Code;

/// All ids of a listing.
async fn listed(v1: &V1) -> Vec<PayloadId> {
    let page = v1.list(listing(UNSPECIFIED, 500)).await.expect("a page");
    page.payloads.into_iter().filter_map(|row| row.id).collect()
}

#[tokio::test]
async fn given_bytes_written_by_one_process_when_leased_by_others_then_they_read_them_in_place() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let mut peers = [Peer::start(&server), Peer::start(&server)];
    for (seed, tier, length) in [(1, RAM, 1), (2, RAM, 5_000_001), (3, DISK, 4096), (4, DISK, 2_000_003)] {
        let bytes = content(seed, length);
        let payload = id(&v1.put(tier, &bytes).await);
        for peer in &mut peers {
            assert_eq!(peer.ask_bytes("read", &payload), answer(tier, &bytes));
        }
        // And the other way round.
        let theirs = peers[0].ask(&format!("write {tier} {seed} {length}"));
        let value =
            (0..16).map(|at| u8::from_str_radix(&theirs[2 * at..2 * at + 2], 16).expect("hex")).collect();
        let theirs = PayloadId { value };
        assert_eq!(v1.bytes(&theirs).await, (tier, bytes.clone()));
        assert_eq!(peers[1].ask_bytes("read", &theirs), answer(tier, &bytes));
    }
}

#[tokio::test]
async fn given_a_reader_that_is_killed_when_its_lease_ends_then_the_payload_is_free_and_its_space_is_reused()
{
    let place = Place::new().with("LEASES__DEFAULT_LEASE", "2s");
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let bytes = content(1, 40 << 20);
    let payload = id(&v1.put(RAM, &bytes).await);
    let mut peer = Peer::start(&server);
    assert_eq!(peer.ask_bytes("hold", &payload), answer(RAM, &bytes));
    refused(v1.delete(&payload, false).await, Code::Aborted, &["leases"]);
    sys::signal(peer.pid(), Signal::Kill).expect("it runs");
    eventually("the lease ends by itself", async || v1.delete(&payload, false).await.ok()).await;
    eventually("its memory is free", async || v1.allocate(allocation(RAM, 40 << 20)).await.ok()).await;
}

#[tokio::test]
async fn given_a_dropped_segment_that_a_reader_maps_when_space_is_asked_for_then_not_before_the_reader_is_gone()
 {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let bytes = content(2, 40 << 20);
    let payload = id(&v1.put(RAM, &bytes).await);
    let mut peer = Peer::start(&server);
    peer.ask_bytes("hold", &payload);
    v1.delete(&payload, true).await.expect("forced");
    let full = v1.allocate(allocation(RAM, 40 << 20)).await;
    refused(full, Code::ResourceExhausted, &["still open"]);
    drop(peer);
    eventually("the space is free", async || v1.allocate(allocation(RAM, 40 << 20)).await.ok()).await;
}

#[tokio::test]
async fn given_a_killed_server_when_restarted_with_other_shards_then_every_committed_byte_is_there() {
    let mut place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let mut known = Vec::new();
    for seed in 0..8 {
        let bytes = content(seed, 100_000 + seed as usize * 4097);
        let tier = if seed % 2 == 0 { RAM } else { DISK };
        known.push((v1.put(tier, &bytes).await, bytes));
    }
    let spilled_one = known[2].0.clone();
    known[2].0 = spilled(v1.spill_to(&id(&spilled_one), DISK).await, DISK);
    // What is on disk anyway may be there alone after a restart: its copy in memory is no part of the promise.
    v1.promote_to(&id(&known[3].0), RAM).await.expect("promoted");
    let deleted = known.pop().expect("eight").0;
    v1.delete(&id(&deleted), false).await.expect("deleted");
    let allocated = [v1.allocated(RAM, 5000).await, v1.allocated(DISK, 5000).await];
    let lease = v1.lease(&id(&known[0].0)).await.expect("leased");
    server.kill();

    for count in ["1", "5", "2"] {
        place = place.with("SHARDS__COUNT", count);
        let server = place.start();
        let v1 = V1::connect(&server).await;
        for (before, bytes) in &mut known {
            let now = v1.resolve(&id(before)).await.expect("survived");
            assert_eq!((now.tier, now.state()), (before.tier, before.state()), "{count} shards");
            assert!(now.version > before.version, "versions never go back");
            assert_eq!((now.created_at, now.eviction_policy), (before.created_at, before.eviction_policy));
            assert_eq!(v1.bytes(&id(before)).await, (before.tier, bytes.clone()));
            *before = now;
        }
        for gone in allocated.iter().chain([&deleted]) {
            refused(v1.resolve(&id(gone)).await, Code::NotFound, &[]);
            assert!(!v1.path(gone).exists(), "what was never committed is reclaimed");
        }
        assert_eq!(server.segments().len(), 3, "those of payloads 0, 4 and 6, and no leftover");
        let mut expected: Vec<PayloadId> = known.iter().map(|(before, _)| id(before)).collect();
        expected.reverse();
        assert_eq!(listed(&v1).await, expected);
        v1.release(&lease).await.expect("a lease of the last start is as good as released");
        v1.commit(&id(&allocated[0])).await.expect_err("gone");
        server.kill();
    }
}

#[tokio::test]
async fn given_moves_in_flight_when_the_server_is_killed_then_each_payload_is_whole_wherever_it_is() {
    let place = Place::new();
    let mut known = Vec::new();
    for round in 0..3 {
        let server = place.start();
        let v1 = V1::connect(&server).await;
        for (payload, bytes) in &known {
            assert_eq!(&v1.bytes(payload).await.1, bytes, "round {round}");
        }
        let bytes = content(round, 6 << 20);
        known.push((id(&v1.put(if round == 1 { DISK } else { RAM }, &bytes).await), bytes));
        let moves: Vec<_> = known
            .iter()
            .map(|(payload, _)| {
                let (v1, payload) = (v1.clone(), payload.clone());
                tokio::spawn(async move {
                    let up = v1.resolve(&payload).await.is_ok_and(|seen| seen.tier == DISK);
                    match up {
                        true => drop(v1.promote_to(&payload, RAM).await),
                        false => {
                            drop(v1.spill(rt::SpillRequest { fsync: true, ..spilling(&payload, DISK) }).await)
                        }
                    }
                })
            })
            .collect();
        // Some moves have begun, some may have ended: whatever the kill meets must be sound.
        let newest = &known.last().expect("one").0;
        eventually("a move begins", async || {
            let seen = v1.resolve(newest).await.expect("known");
            (seen.state() == PayloadState::Spilling || moves.iter().any(tokio::task::JoinHandle::is_finished))
                .then_some(())
        })
        .await;
        server.kill();
        for task in moves {
            task.await.expect("no panic");
        }
    }
    let server = place.start();
    let v1 = V1::connect(&server).await;
    for (payload, bytes) in &known {
        assert_eq!(&v1.bytes(payload).await.1, bytes);
    }
    server.stop();
}

#[tokio::test]
async fn given_bytes_that_did_not_survive_when_restarted_then_not_found_with_lost_and_the_rest_is_served() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let removed = v1.put(RAM, &content(1, 5000)).await;
    let cut = v1.put(RAM, &content(2, 5000)).await;
    let file = v1.put(DISK, &content(3, 5000)).await;
    let both = v1.put(DISK, &content(4, 5000)).await;
    let in_memory = v1.promote_to(&id(&both), RAM).await.expect("promoted");
    let kept = id(&v1.put(RAM, &content(5, 5000)).await);
    server.kill();
    for gone in [&removed, &file, &in_memory] {
        fs::remove_file(v1.path(gone)).expect("removed behind its back");
    }
    fs::OpenOptions::new().write(true).open(v1.path(&cut)).and_then(|file| file.set_len(4999)).expect("cut");

    let server = place.start();
    let v1 = V1::connect(&server).await;
    for lost in [&removed, &cut, &file] {
        for status in [
            v1.resolve(&id(lost)).await.expect_err("lost"),
            v1.lease(&id(lost)).await.expect_err("lost"),
            v1.promote_to(&id(lost), RAM).await.expect_err("lost"),
        ] {
            refused(Err::<(), _>(status), Code::NotFound, &["LOST"]);
        }
        assert!(v1.spill_to(&id(lost), DISK).await.error_message.contains("LOST"));
    }
    assert_eq!(v1.bytes(&id(&both)).await, (DISK, content(4, 5000)), "its other replica is served");
    assert_eq!(v1.bytes(&kept).await, (RAM, content(5, 5000)));
    // What asks the catalog and no shard hears it, too.
    let text = |id: PayloadId| {
        payload_types::PayloadId::from_bytes(id.value.try_into().expect("16 bytes")).to_string()
    };
    let kept = text(kept.clone());
    assert!(payloadctl(&server, &["stream", "create", "all/here"]).status.success());
    for lost in [&removed, &cut, &file] {
        let lost = text(id(lost));
        for words in
            [["stream", "append", "all/here", &lost, ""], ["lineage", "add", &kept, "--parent", &lost]]
        {
            let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
            let output = payloadctl(&server, &words);
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success() && said.contains("LOST"), "{words:?}: {said}");
        }
    }
    // The message says that the id can be deleted, and then it is not known any more.
    for lost in [&removed, &cut, &file] {
        v1.delete(&id(lost), false).await.expect("a lost payload can be deleted");
        let status = refused(v1.resolve(&id(lost)).await, Code::NotFound, &[]);
        assert!(!status.message().contains("LOST"), "{status}");
    }
    assert_eq!(listed(&v1).await.len(), 2);
}

#[tokio::test]
async fn given_bytes_that_were_away_at_one_start_when_they_are_back_at_the_next_then_nothing_was_lost_by_it()
{
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let on_disk = v1.put(DISK, &content(3, 5000)).await;
    let (path, payload) = (v1.path(&on_disk), id(&on_disk));
    let text =
        payload_types::PayloadId::from_bytes(payload.value.clone().try_into().expect("16 bytes")).to_string();
    server.stop();
    let away = path.with_extension("away");
    fs::rename(&path, &away).expect("away, as a directory that cannot be read");

    let server = place.start();
    assert!(payloadctl(&server, &["stream", "create", "all/here"]).status.success());
    let append = ["stream", "append", "all/here", &text];
    let refused = payloadctl(&server, &append);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("LOST"), "{refused:?}");
    server.stop();
    fs::rename(&away, &path).expect("back");

    let server = place.start();
    let v1 = V1::connect(&server).await;
    assert_eq!(v1.bytes(&payload).await, (DISK, content(3, 5000)));
    let appended = payloadctl(&server, &append);
    assert!(appended.status.success(), "{appended:?}");
}

#[tokio::test]
async fn given_a_running_server_when_a_second_wants_its_address_root_or_database_then_refused_by_name() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let bytes = content(1, 50_000);
    let (ram, disk) = (id(&v1.put(RAM, &bytes).await), id(&v1.put(DISK, &bytes).await));
    let allocated = v1.allocated(RAM, 6).await;
    let (root, database) = (place.path().join("disk"), place.path().join("catalog.db"));
    let (root, database) = (root.to_str().expect("text"), database.to_str().expect("text"));
    let seconds = [
        (Place::new().with("SERVER__BIND_ADDRESS", &server.address), server.address.as_str()),
        (Place::new().with("STORAGE__DISK__ROOT_PATH", root), root),
        (Place::new().with("DATABASE__SQLITE__PATH", database), database),
    ];
    for (second, taken) in &seconds {
        let said = second.start_refused();
        assert!(said.contains(taken), "`{taken}` in: {said}");
        let sentences = said.lines().filter(|line| !line.contains("WARN") && !line.contains("INFO")).count();
        assert_eq!(sentences, 1, "one sentence: {said}");
    }
    let said = place.start_refused();
    assert!(said.contains(root), "the same directory altogether: {said}");

    for payload in [&ram, &disk] {
        assert_eq!(v1.bytes(payload).await.1, bytes, "the first server is unharmed");
    }
    spilled(v1.spill_to(&ram, DISK).await, DISK);
    v1.map(&allocated).copy_from_slice(b"unhurt");
    v1.commit(&id(&allocated)).await.expect("committed");
    server.kill();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    assert_eq!(v1.bytes(&ram).await, (DISK, bytes));
    assert_eq!(v1.bytes(&id(&allocated)).await.1, b"unhurt");
}

#[tokio::test]
async fn given_two_servers_with_the_same_segment_prefix_when_both_restart_then_neither_reclaims_the_others_bytes()
 {
    let first = Place::new();
    let second = Place::new().with("STORAGE__RAM__SHM_PREFIX", first.prefix());
    let mut known = Vec::new();
    for round in 0..2 {
        let servers = [first.start(), second.start()];
        for (place, server) in servers.iter().enumerate() {
            let v1 = V1::connect(server).await;
            for (owner, payload, bytes) in &known {
                match *owner == place {
                    true => assert_eq!(v1.bytes(payload).await, (RAM, Vec::clone(bytes))),
                    false => drop(refused(v1.resolve(payload).await, Code::NotFound, &[])),
                }
            }
            let bytes = content(round * 2 + place as u64, 9000);
            known.push((place, id(&v1.put(RAM, &bytes).await), bytes));
            v1.allocated(RAM, 100).await;
        }
        servers.into_iter().for_each(Server::kill);
    }
}

#[tokio::test]
async fn given_a_server_under_load_when_terminated_then_it_drains_and_exits_with_0_and_forgets_nothing() {
    let place = Place::new();
    let mut server = place.start();
    let v1 = V1::connect(&server).await;
    let workers: Vec<_> = (0..16)
        .map(|worker: u64| {
            let v1 = v1.clone();
            tokio::spawn(async move {
                // Until the server refuses: what was acknowledged as committed.
                let mut committed = Vec::new();
                for round in 0.. {
                    let bytes = content(worker << 32 | round, 20_000);
                    let tier = if round % 3 == 0 { DISK } else { RAM };
                    let Ok(answer) = v1.allocate(allocation(tier, 20_000)).await else { break };
                    let allocated = answer.payload_descriptor.expect("one");
                    if !v1.path(&allocated).exists() {
                        break;
                    }
                    v1.map(&allocated).copy_from_slice(&bytes);
                    if v1.commit(&id(&allocated)).await.is_err() {
                        break;
                    }
                    if round % 5 == 0 {
                        drop(v1.spill(spilling(&id(&allocated), DISK)).await);
                    }
                    if round >= 4 && round % 2 == 0 && v1.delete(&id(&allocated), false).await.is_ok() {
                        continue;
                    }
                    committed.push((id(&allocated), bytes));
                }
                committed
            })
        })
        .collect();
    eventually("the load is on", async || {
        (v1.stats().await.expect("stats").payloads_disk > 40).then_some(())
    })
    .await;
    server.signal(Signal::Term);
    let mut committed = Vec::new();
    for worker in workers {
        committed.extend(worker.await.expect("no panic"));
    }
    // In a blocking place: the runtime has nothing left to do.
    assert_eq!(server.exit_code(), Some(0), "{}", server.log());
    // Its own watchdog leaves after 9 s; that it was not needed is what "within 10 s" means here.
    assert!(!server.log().contains("takes too long"), "{}", server.log());

    let server = place.start();
    let v1 = V1::connect(&server).await;
    assert!(committed.len() >= 40);
    for (payload, bytes) in &committed {
        match v1.resolve(payload).await {
            Ok(_) => assert_eq!(&v1.bytes(payload).await.1, bytes),
            // A Delete that was not answered before the end may have been done.
            Err(status) => {
                assert!(status.code() == Code::NotFound && !status.message().contains("LOST"), "{status}")
            }
        }
    }
    server.stop();
}

#[tokio::test]
async fn given_a_stopping_server_when_terminated_again_then_it_exits_at_once() {
    let place = Place::new().with("SHUTDOWN__DRAIN_TIMEOUT", "1h");
    let mut server = place.start();
    let v1 = V1::connect(&server).await;
    let payload = id(&v1.put(RAM, &content(1, 5000)).await);
    let _lease = v1.lease(&payload).await.expect("leased");
    let waiter = v1.clone();
    let waiting = rt::SpillRequest { wait_for_leases: true, ..spilling(&payload, DISK) };
    let spill = tokio::spawn(async move { waiter.spill(waiting).await });
    // A waiting call is what keeps it from ending by itself; it has arrived when another call has been answered
    // after it on the same connection.
    for _ in 0..3 {
        tokio::task::yield_now().await;
        v1.resolve(&payload).await.expect("known");
    }
    server.signal(Signal::Term);
    eventually("it is stopping", async || server.log().contains("stopping").then_some(())).await;
    assert!(server.is_running(), "it waits for the call");
    server.signal(Signal::Term);
    assert_eq!(server.exit_code(), Some(143), "128 + SIGTERM; {}", server.log());
    assert!(spill.await.expect("no panic").is_err());
    let server = place.start();
    assert_eq!(V1::connect(&server).await.bytes(&payload).await, (RAM, content(1, 5000)));
}
