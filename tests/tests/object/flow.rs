//! Payloads on OBJECT, end to end: over a directory and over a real S3 server.

use std::fs;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use payload_client::{AcquireOptions, AllocateOptions, Client, Location, Memory, SpillOptions};
use payload_tests::seaweed::{ACCESS_KEY, SECRET_KEY, Seaweed};
use payload_tests::server::{Place, Server, eventually, objects, payloadctl};
use payload_types::tier::SpillTarget;
use payload_types::{ByteCount, ErrorKind, PayloadId, PayloadState, Tier};

const S3: &str = "STORAGE__OBJECT__FILESYSTEM_OPTIONS__S3__";

fn on_s3(weed: &Seaweed, root: &str) -> Place {
    Place::new()
        .with("STORAGE__OBJECT__ROOT_PATH", root)
        .with(&format!("{S3}ENDPOINT_OVERRIDE"), &weed.endpoint())
        .with(&format!("{S3}REGION"), "us-east-1")
        .with(&format!("{S3}ACCESS_KEY"), ACCESS_KEY)
        .with(&format!("{S3}SECRET_KEY"), SECRET_KEY)
}

fn in_directory(root: &Path) -> Place {
    Place::new().with("STORAGE__OBJECT__ROOT_PATH", root.to_str().expect("text"))
}

fn bytes(size: usize) -> Vec<u8> {
    (0..size).map(|index| (index / 7) as u8 ^ (index / 4099) as u8).collect()
}

async fn connect(server: &Server) -> Client {
    Client::connect(&server.address).await.expect("it listens")
}

async fn put(client: &Client, bytes: &[u8]) -> PayloadId {
    let reader = std::io::Cursor::new(bytes.to_vec());
    let size = ByteCount(bytes.len() as u64);
    // A segment: a slab's memory would go with a server that is killed.
    let options = AllocateOptions { memory: Some(Memory::Segment), ..AllocateOptions::default() };
    client.put_bytes(reader, size, &options).await.expect("stored").id
}

async fn archive(client: &Client, id: PayloadId) {
    let options = SpillOptions { target: Some(SpillTarget::Tier(Tier::Object)), ..SpillOptions::default() };
    let spilled = client.spill(&[id], &options).await.expect("answered").remove(0);
    let descriptor = spilled.result.expect("spilled").expect("it is not discarded");
    assert_eq!((descriptor.tier, descriptor.state), (Tier::Object, PayloadState::Durable));
}

async fn read(client: &Client, id: PayloadId) -> Vec<u8> {
    let lease = client.acquire(id, &AcquireOptions::default()).await.expect("leased");
    let read = lease.to_vec();
    lease.release().await.expect("released");
    read
}

fn uri(descriptor: &payload_client::Descriptor) -> String {
    match &descriptor.location {
        Some(Location::Object { uri, .. }) => uri.clone(),
        other => panic!("{other:?}"),
    }
}

fn ctl(server: &Server, args: &[&str]) -> Output {
    let output = payloadctl(server, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Spill, restart, lease in place, promote, delete.
async fn round(place: &Place, root: &str, compressed: bool) {
    let content = bytes(12 << 20);
    let server = place.start();
    let client = connect(&server).await;
    let id = put(&client, &content).await;
    archive(&client, id).await;
    drop(client);
    server.kill();

    let server = place.start();
    let client = connect(&server).await;
    let found = client.resolve(id).await.expect("known");
    assert_eq!(uri(&found), format!("{root}/{id}.bin"));
    let lease = client.acquire_read_lease(id, &AcquireOptions::default()).await.expect("leased");
    let expected = if compressed { Tier::Disk } else { Tier::Object };
    assert_eq!(lease.descriptor.tier, expected, "a compressed object is brought in");
    client.release_lease(lease.id).await.expect("released");
    assert_eq!(read(&client, id).await, content, "a program that maps has it brought in");
    let found = client.promote(id, Tier::Ram, None, None).await.expect("promoted");
    assert_eq!((found.tier, found.state), (Tier::Ram, PayloadState::Durable));
    assert_eq!(read(&client, id).await, content);
    client.delete(id, false, None).await.expect("deleted");
    let gone = client.resolve(id).await.expect_err("deleted");
    assert_eq!(gone.kind(), Some(ErrorKind::NotFound));
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn given_a_directory_when_payloads_are_spilled_and_promoted_then_their_bytes_survive_a_kill_and_delete_removes_them()
 {
    for compression in ["COMPRESSION_UNCOMPRESSED", "COMPRESSION_ZSTD"] {
        let directory = tempfile::tempdir().expect("a directory");
        let place = in_directory(directory.path()).with("STORAGE__OBJECT__COMPRESSION", compression);
        let root = format!("file://{}", directory.path().display());
        round(&place, &root, compression == "COMPRESSION_ZSTD").await;
        eventually("nothing is left", async || {
            let left = fs::read_dir(directory.path()).expect("readable").count();
            (left == 0).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn given_an_s3_server_when_payloads_move_and_it_dies_then_they_stay_and_come_back() {
    let weed = Seaweed::start().expect("an S3 server");
    weed.bucket("test");
    let place = on_s3(&weed, "s3://test/p");
    round(&place, "s3://test/p", false).await;

    let server = place.start();
    let client = connect(&server).await;
    let content = bytes(1 << 20);
    let (kept, archived) = (put(&client, &content).await, put(&client, &content).await);
    archive(&client, archived).await;
    // Presigned: a lease with a URL, and an upload without credentials.
    let (descriptor, _) = client.fetch(archived, std::io::sink()).await.expect("fetched");
    assert_eq!(descriptor.tier, Tier::Object, "straight from the store");
    let reader = std::io::Cursor::new(content.clone());
    let size = ByteCount(content.len() as u64);
    let uploaded = client.put_object(reader, size, &AllocateOptions::default()).await.expect("uploaded");
    assert_eq!((uploaded.tier, uploaded.state), (Tier::Object, PayloadState::Durable));
    assert_eq!(read(&client, uploaded.id).await, content);

    weed.crash();
    let options = SpillOptions { target: Some(SpillTarget::Tier(Tier::Object)), ..SpillOptions::default() };
    let spilled = client.spill(&[kept], &options).await.expect("answered").remove(0);
    assert!(spilled.result.is_err(), "{spilled:?}");
    assert_eq!(client.resolve(kept).await.expect("known").tier, Tier::Ram, "it stays where it was");
    let patient = connect(&server).await.with_deadline(Duration::from_secs(20));
    let lease = patient.acquire(archived, &AcquireOptions::default()).await.expect_err("the store is down");
    assert!(matches!(lease.kind(), Some(ErrorKind::Unavailable | ErrorKind::DeadlineExceeded)), "{lease}");
    let stats = ctl(&server, &["stats"]);
    assert!(String::from_utf8_lossy(&stats.stdout).contains("unreachable"), "{stats:?}");

    weed.start_again().expect("it is back");
    eventually("it is used again", async || {
        client.spill(&[kept], &options).await.expect("answered").remove(0).result.ok()
    })
    .await;
    assert_eq!(read(&client, kept).await, content);
    assert_eq!(read(&client, archived).await, content, "nothing was taken for damaged");
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn given_payloadctl_when_it_puts_and_gets_objects_then_the_bytes_go_past_the_server() {
    let directory = tempfile::tempdir().expect("a directory");
    let place = in_directory(directory.path());
    let server = place.start();
    let (from, to) = (place.path().join("from"), place.path().join("to"));
    fs::write(&from, bytes(3_000_000)).expect("written");
    let row = objects(&ctl(&server, &["put", "--tier", "object", from.to_str().expect("text")])).remove(0);
    assert_eq!(row["tier"], "object");
    let id = row["id"].as_str().expect("text").to_owned();
    ctl(&server, &["get", &id, "-o", to.to_str().expect("text")]);
    assert_eq!(fs::read(&to).expect("fetched"), bytes(3_000_000));

    // By hand: another program uploads, and says nothing of a checksum.
    let row = objects(&ctl(&server, &["allocate", "5", "--tier", "object"])).remove(0);
    let id = row["id"].as_str().expect("text").to_owned();
    let path = row["object_upload_path"]
        .as_str()
        .expect("a URI")
        .strip_prefix("file://")
        .expect("a path")
        .to_owned();
    let early = payloadctl(&server, &["import", &id, "5"]);
    assert!(String::from_utf8_lossy(&early.stderr).contains("nothing was uploaded"), "{early:?}");
    fs::write(&path, "four").expect("written");
    let short = payloadctl(&server, &["import", &id, "5"]);
    assert!(String::from_utf8_lossy(&short.stderr).contains("has 4"), "{short:?}");
    fs::write(&path, "fives").expect("written");
    server.kill();
    let server = place.start();
    let row = objects(&ctl(&server, &["import", &id, "5"])).remove(0);
    assert_eq!(row["state"], "durable", "an allocation on OBJECT survives a kill");
    assert_eq!(ctl(&server, &["cat", &id]).stdout, b"fives");
    let sidecar = fs::read_to_string(path.replace(".bin", ".meta.json")).expect("a sidecar");
    assert!(sidecar.contains("HASH_XXH3_64"), "{sidecar}");
    let again = payloadctl(&server, &["import", &id, "5"]);
    assert!(String::from_utf8_lossy(&again.stderr).contains("only what is ALLOCATED"), "{again:?}");
    server.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn given_a_kill_during_an_upload_when_started_again_then_it_is_swept_and_the_payload_is_archived_anew()
{
    let weed = Seaweed::start().expect("an S3 server");
    weed.bucket("test");
    let place = on_s3(&weed, "s3://test/p").with("STORAGE__DISK__CAPACITY_BYTES", "256MiB");
    let place = place.with("STORAGE__RAM__CAPACITY_BYTES", "128MiB");
    let server = place.start();
    let client = connect(&server).await;
    let content = bytes(64 << 20);
    let id = put(&client, &content).await;
    let options = SpillOptions { target: Some(SpillTarget::Tier(Tier::Object)), ..SpillOptions::default() };
    let spilling = tokio::spawn(async move { client.spill(&[id], &options).await });
    eventually("parts are under way", async || {
        let stats = objects(&payloadctl(&server, &["stats"])).remove(0);
        (stats["object_store"]["parts_in_flight"].as_u64() > Some(0)).then_some(())
    })
    .await;
    server.kill();
    drop(spilling.await);
    let server = place.start();
    let client = connect(&server).await;
    eventually("what was left is swept", async || {
        let left = objects(&ctl(&server, &["sweep", "--dry-run"]));
        let probed = objects(&ctl(&server, &["stats"])).remove(0)["object_store"]["probed"] == true;
        (probed && left.is_empty()).then_some(())
    })
    .await;
    eventually("it is archived", async || {
        client.spill(&[id], &options).await.expect("answered").remove(0).result.ok()
    })
    .await;
    assert_eq!(read(&client, id).await, content);
    server.stop();
}
