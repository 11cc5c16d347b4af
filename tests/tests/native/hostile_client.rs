//! Clients that cut, delete or replace what they were given, by mistake or on purpose: a clear error each, the server
//! lives on, and another payload is fine. And many payloads with few descriptors.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::symlink;
use std::process::Command;

use payload_tests::server::{PATIENCE, Place};
use payload_tests::sys;
use payload_tests::v1::{
    DISK, RAM, UNSPECIFIED, V1, content, id, listing, refused, spill_refused, spilled, spilling,
};
use payload_wire::pb::core::v1::{PayloadDescriptor, PayloadState};
use payload_wire::pb::runtime::v1 as rt;
use tonic::Code;

/// Sets the length of a payload's segment or file, as its owner may.
fn cut(v1: &V1, payload: &PayloadDescriptor, length: u64) {
    let file = OpenOptions::new().write(true).open(v1.path(payload)).expect("it is the client's");
    file.set_len(length).expect("set");
}

/// A server, and a payload on each tier that must stay what they are.
async fn bystanders(v1: &V1) -> Vec<(PayloadDescriptor, Vec<u8>)> {
    let mut kept = Vec::new();
    for (seed, tier) in [(901, RAM), (902, DISK)] {
        kept.push((v1.put(tier, &content(seed, 30_000)).await, content(seed, 30_000)));
    }
    kept
}

async fn unharmed(v1: &V1, kept: &[(PayloadDescriptor, Vec<u8>)]) {
    for (payload, bytes) in kept {
        assert_eq!(v1.bytes(&id(payload)).await, (payload.tier, bytes.clone()));
    }
    let another = id(&v1.put(RAM, &content(903, 30_000)).await);
    spilled(v1.spill_to(&another, DISK).await, DISK);
    assert_eq!(v1.bytes(&another).await, (DISK, content(903, 30_000)));
}

#[tokio::test]
async fn given_bytes_that_were_cut_or_deleted_before_commit_when_committed_then_refused_and_still_allocated()
{
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let kept = bystanders(&v1).await;
    for tier in [RAM, DISK] {
        for length in [Some(0), Some(29_999), None] {
            let payload = v1.allocated(tier, 30_000).await;
            match length {
                Some(length) => cut(&v1, &payload, length),
                None => fs::remove_file(v1.path(&payload)).expect("removed"),
            }
            refused(v1.commit(&id(&payload)).await, Code::FailedPrecondition, &[]);
            assert_eq!(v1.resolve(&id(&payload)).await.expect("known").state(), PayloadState::Allocated);
            refused(v1.lease(&id(&payload)).await, Code::FailedPrecondition, &[]);
            v1.delete(&id(&payload), false).await.expect("deleted");
        }
        // Longer than asked for is no harm: the payload is what was allocated.
        let payload = v1.allocated(tier, 30_000).await;
        v1.map(&payload).copy_from_slice(&content(1, 30_000));
        cut(&v1, &payload, 90_000);
        v1.commit(&id(&payload)).await.expect("all bytes are there");
        assert_eq!(v1.bytes(&id(&payload)).await, (tier, content(1, 30_000)));
        if tier == RAM {
            spilled(v1.spill_to(&id(&payload), DISK).await, DISK);
            assert_eq!(v1.bytes(&id(&payload)).await, (DISK, content(1, 30_000)));
        }
    }
    unharmed(&v1, &kept).await;
}

#[tokio::test]
async fn given_something_else_in_the_place_of_the_bytes_when_committed_then_refused_and_not_followed() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let kept = bystanders(&v1).await;
    let precious = place.path().join("precious");
    fs::write(&precious, content(5, 30_000)).expect("written");
    for tier in [RAM, DISK] {
        for kind in ["link", "directory", "pipe"] {
            let payload = v1.allocated(tier, 30_000).await;
            let path = v1.path(&payload);
            fs::remove_file(&path).expect("removed");
            match kind {
                "link" => symlink(&precious, &path).expect("linked"),
                "directory" => fs::create_dir(&path).expect("made"),
                _ => assert!(Command::new("mkfifo").arg(&path).status().expect("mkfifo").success()),
            }
            let answer = tokio::time::timeout(PATIENCE, v1.commit(&id(&payload))).await.expect("never hangs");
            refused(answer, Code::FailedPrecondition, &[]);
            let deleted = tokio::time::timeout(PATIENCE, v1.delete(&id(&payload), true)).await;
            deleted.expect("never hangs").expect("deleted");
            if kind == "directory" {
                // The server removes files only; it is not its own.
                drop(fs::remove_dir(&path));
            } else {
                drop(fs::remove_file(&path));
            }
        }
    }
    assert_eq!(fs::read(&precious).expect("still there"), content(5, 30_000));
    unharmed(&v1, &kept).await;
}

#[tokio::test]
async fn given_a_segment_cut_after_commit_when_spilled_then_data_loss_for_it_alone() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let kept = bystanders(&v1).await;
    let payload = v1.put(RAM, &content(1, 30_000)).await;
    cut(&v1, &payload, 5000);
    let result = v1.spill_to(&id(&payload), DISK).await;
    spill_refused(&result, &["RAM"]);
    refused(v1.lease(&id(&payload)).await, Code::DataLoss, &[]);
    let removed = v1.put(RAM, &content(2, 30_000)).await;
    fs::remove_file(v1.path(&removed)).expect("removed");
    spill_refused(&v1.spill_to(&id(&removed), DISK).await, &["RAM"]);
    refused(v1.lease(&id(&removed)).await, Code::DataLoss, &[]);
    for payload in [&payload, &removed] {
        v1.delete(&id(payload), false).await.expect("deleted");
    }
    unharmed(&v1, &kept).await;
}

#[tokio::test]
async fn given_a_producer_that_cuts_or_writes_while_it_is_spilled_when_read_then_whole_bytes_or_an_error() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let kept = bystanders(&v1).await;
    let mut whole = 0;
    for round in 0..8 {
        let bytes = content(round, 8 << 20);
        let payload = v1.put(RAM, &bytes).await;
        // The producer keeps its mapping, which Commit cannot take away.
        let producer = OpenOptions::new().read(true).write(true).open(v1.path(&payload)).expect("its own");
        let spiller = v1.clone();
        let request = rt::SpillRequest { fsync: true, ..spilling(&id(&payload), DISK) };
        let spill = tokio::spawn(async move { spiller.spill_one(request).await });
        for _ in 0..round * 3 {
            tokio::task::yield_now().await;
            v1.resolve(&id(&payload)).await.expect("known");
        }
        producer.set_len(round * 100_000).expect("cut");
        let result = tokio::time::timeout(PATIENCE, spill).await.expect("never hangs").expect("no panic");
        if result.ok {
            assert_eq!(
                v1.bytes(&id(&payload)).await,
                (DISK, bytes),
                "round {round}: what was copied is whole"
            );
            whole += 1;
        } else {
            spill_refused(&result, &[]);
            refused(v1.lease(&id(&payload)).await, Code::DataLoss, &[]);
        }
        v1.delete(&id(&payload), true).await.expect("deleted");
    }
    println!("{whole} of 8 were copied before they were cut");

    // Writing instead of cutting: whatever the copy caught is what its checksum says, for good.
    let mut producer = {
        let payload = v1.put(RAM, &content(1, 8 << 20)).await;
        (v1.map(&payload), payload)
    };
    let spiller = v1.clone();
    let request = spilling(&id(&producer.1), DISK);
    let spill = tokio::spawn(async move { spiller.spill_one(request).await });
    let mut turn = 0_u8;
    while !spill.is_finished() {
        turn = turn.wrapping_add(1);
        for at in (0..8 << 20).step_by(4096) {
            producer.0[at] = turn;
        }
        tokio::task::yield_now().await;
        v1.resolve(&id(&producer.1)).await.expect("known");
    }
    spilled(spill.await.expect("no panic"), DISK);
    let first = v1.bytes(&id(&producer.1)).await;
    producer.0.fill(0xEE);
    assert_eq!(v1.bytes(&id(&producer.1)).await, first, "the copy is immutable");
    v1.promote_to(&id(&producer.1), RAM).await.expect("its checksum fits");
    assert_eq!(v1.bytes(&id(&producer.1)).await, (RAM, first.1));
    unharmed(&v1, &kept).await;
}

#[tokio::test]
async fn given_ten_thousand_ram_payloads_when_the_server_may_open_1024_files_then_all_are_kept_and_served() {
    const COUNT: u64 = 10_000;
    sys::open_files_raise();
    let place = Place::new().with_open_files(1024);
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let makers: Vec<_> = (0..20_u64)
        .map(|maker| {
            let v1 = v1.clone();
            tokio::spawn(async move {
                let mut made = Vec::new();
                for number in 0..COUNT / 20 {
                    let seed = maker * COUNT + number;
                    made.push((id(&v1.put(RAM, &content(seed, 64)).await), seed));
                }
                made
            })
        })
        .collect();
    let mut made = Vec::new();
    for maker in makers {
        made.extend(maker.await.expect("no panic"));
    }
    assert_eq!(made.len() as u64, COUNT);
    let page = v1.list(listing(UNSPECIFIED, 1)).await.expect("a page");
    assert_eq!(page.total_count as u64, COUNT);
    assert_eq!(server.segments().len() as u64, COUNT);
    assert!(server.open_files() < 500, "no descriptor per payload: {} are open", server.open_files());
    for (payload, seed) in made.iter().step_by(97) {
        assert_eq!(v1.bytes(payload).await, (RAM, content(*seed, 64)));
    }
    server.kill();
    let server = place.start();
    assert!(server.open_files() < 500, "nor after a restart: {} are open", server.open_files());
    let v1 = V1::connect(&server).await;
    let ids: Vec<_> = made.iter().step_by(10).map(|(payload, _)| payload.clone()).collect();
    let request = rt::SpillRequest { ids, target_tier: DISK, ..Default::default() };
    for result in v1.spill(request).await.expect("OK") {
        spilled(result, DISK);
    }
    for (payload, seed) in made.iter().step_by(89) {
        assert_eq!(v1.bytes(payload).await.1, content(*seed, 64));
    }
}
