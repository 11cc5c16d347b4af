//! `database.sqlite.synchronous: normal` on a real server: space comes back, and a kill brings nothing back.

use std::path::Path;

use payload_tests::server::{Place, eventually};
use payload_tests::v1::{DISK, V1, allocation, content, id, refused};
use payload_wire::pb::core::v1::PayloadId;
use tonic::Code;

const MIB: usize = 1 << 20;

fn place() -> Place {
    Place::new()
        .with("DATABASE__SQLITE__SYNCHRONOUS", "normal")
        .with("STORAGE__DISK__CAPACITY_BYTES", "16MiB")
        .with("LIMITS__ALLOCATE_WAIT", "1h")
}

async fn put(v1: &V1, number: u64, size: usize) -> PayloadId {
    let request = allocation(DISK, size as u64);
    let descriptor = v1.allocate(request).await.expect("allocated").payload_descriptor.expect("one");
    v1.map(&descriptor).copy_from_slice(&content(number, size));
    v1.commit(&id(&descriptor)).await.expect("committed");
    id(&descriptor)
}

/// How many files there are; what vanishes meanwhile is none.
fn files_below(directory: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(directory) else { return 0 };
    let count = |entry: std::fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => files_below(&entry.path()),
        Ok(_) => 1,
        Err(_) => 0,
    };
    entries.flatten().map(count).sum()
}

#[tokio::test]
async fn given_a_full_disk_tier_when_payloads_are_deleted_one_after_the_other_then_each_gives_way_to_the_next()
 {
    let place = place();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    // Each fills the tier, so that each waits for the flush of the removal before it.
    for number in 0..20 {
        let payload = put(&v1, number, 12 * MIB).await;
        v1.delete(&payload, false).await.expect("deleted");
        refused(v1.resolve(&payload).await, Code::NotFound, &["deleted"]);
    }
}

#[tokio::test]
async fn given_removals_just_answered_when_the_server_is_killed_then_they_stay_removed_and_their_space_is_free()
 {
    let place = place();
    for round in 0..5 {
        let server = place.start();
        let v1 = V1::connect(&server).await;
        let kept = put(&v1, round, MIB).await;
        let gone = put(&v1, 100 + round, 10 * MIB).await;
        v1.delete(&gone, false).await.expect("deleted");
        server.kill();
        let server = place.start();
        let v1 = V1::connect(&server).await;
        refused(v1.resolve(&gone).await, Code::NotFound, &["deleted"]);
        v1.resolve(&kept).await.expect("what was committed is there");
        v1.delete(&kept, false).await.expect("deleted");
        let fills = put(&v1, 200 + round, 12 * MIB).await;
        v1.delete(&fills, false).await.expect("deleted");
        let files = place.path().join("disk/payloads");
        eventually("the files of what was removed go", async || (files_below(&files) == 0).then_some(()))
            .await;
        server.stop();
    }
}
