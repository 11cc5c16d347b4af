//! The object store and the catalog: what earlier runs left is swept, and a catalog is rebuilt from sidecars alone.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, mpsc};

use payload_catalog::{Change, SqliteStore, Store, Synchronous};
use payload_drivers::object::{
    Archive, FileRange, MemoryJournal, ObjectConfig, ObjectDriver, Parent, Policy, S3Options, Upload,
};
use payload_tests::seaweed::{ACCESS_KEY, SECRET_KEY, Seaweed};
use payload_tests::server::{Place, Server, ended, eventually, objects, payloadctl, program};
use payload_types::record::{RecordAnswer, RecordChange, RecordQuery};
use payload_types::tier::SpillTarget;
use payload_types::upload::{UploadChange, UploadEntry};
use payload_types::{
    ByteCount, Checksum, Epoch, EvictionPriority, Generation, NamespaceId, PayloadId, PayloadKey, PayloadRow,
    PayloadState, Tier, WallMs,
};
use xxhash_rust::xxh3::xxh3_64;

/// A payload's id that is no other's here.
fn id(number: u64) -> PayloadId {
    PayloadId::mint((1_763_000_000_000 << 12) + number, number)
}

fn entry(id: PayloadId) -> UploadEntry {
    UploadEntry {
        id,
        generation: Generation::new(Epoch(1), 1),
        is_removal: false,
        size: ByteCount(5),
        part_bytes: 8 << 20,
        compression: 0,
        upload: None,
        parts: Vec::new(),
    }
}

fn catalog(place: &Place) -> SqliteStore {
    let path = place.path().join("catalog.db");
    SqliteStore::open(&path, Synchronous::Full).expect("no server runs on it")
}

/// A payload in a store, as a server would put it there.
fn stored(driver: &ObjectDriver, id: PayloadId, bytes: &[u8], archive: Archive) {
    let file = tempfile::tempfile().expect("a file");
    std::os::unix::fs::FileExt::write_all_at(&file, bytes, 0).expect("written");
    let size = ByteCount(bytes.len() as u64);
    let upload = Upload {
        id,
        generation: Generation(1),
        source: Arc::new(FileRange { file: Arc::new(file), offset: 0, size }),
        expected: None,
        archive,
    };
    let (sender, answer) = mpsc::sync_channel(1);
    driver.upload(upload, move |done| drop(sender.send(done))).expect("taken");
    answer.recv().expect("answered").expect("stored");
}

fn driver(config: ObjectConfig) -> ObjectDriver {
    ObjectDriver::open(config, Arc::new(MemoryJournal::default())).expect("a driver")
}

fn stats(server: &Server) -> serde_json::Value {
    let output = payloadctl(server, &["stats"]);
    assert!(output.status.success(), "{output:?}");
    objects(&output)[0]["object_store"].clone()
}

fn text(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

#[tokio::test]
async fn given_what_earlier_runs_left_when_started_then_it_is_swept_and_what_is_not_ours_stays() {
    let root = tempfile::tempdir().expect("a directory");
    let place = Place::new().with("STORAGE__OBJECT__ROOT_PATH", root.path().to_str().expect("text"));
    place.start().stop();
    let (orphan, doomed, strange) = (id(1), id(2), id(3));
    let object = |id: PayloadId| root.path().join(format!("{id}.bin"));
    for id in [orphan, doomed, strange] {
        fs::write(object(id), "bytes").expect("written");
    }
    let mut store = catalog(&place);
    store.begin_epoch("node").expect("registered");
    let removal = UploadEntry { is_removal: true, ..entry(doomed) };
    let changes = [entry(orphan), removal].map(|entry| RecordChange::Upload(UploadChange::Begin(entry)));
    store.apply(&changes.map(Change::from)).expect("kept");
    Box::new(store).close().expect("closed");

    let server = place.start();
    eventually("the store is probed and swept", async || {
        (!object(orphan).exists() && !object(doomed).exists()).then_some(())
    })
    .await;
    assert!(object(strange).exists(), "no journal names it: it is not ours to delete");
    let health = stats(&server);
    assert_eq!(
        (&health["state"], &health["probed"], &health["signs"]),
        (&"healthy".into(), &true.into(), &false.into())
    );
    let left = payloadctl(&server, &["sweep", "--dry-run"]);
    assert!(left.status.success() && objects(&left).is_empty(), "{left:?}");
    server.stop();
    assert_eq!(catalog(&place).uploads(), Ok(Vec::new()));
}

#[test]
fn given_a_server_without_an_object_store_when_asked_to_sweep_then_the_key_is_named() {
    let server = Place::new().start();
    let output = payloadctl(&server, &["sweep", "--dry-run"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).1.contains("storage.object.root_path"), "{output:?}");
    assert!(stats(&server).is_null());
}

#[tokio::test]
async fn given_a_wrong_configuration_when_the_server_runs_then_stats_say_which_key_to_change() {
    let weed = Seaweed::start().expect("an S3 server");
    weed.bucket("test");
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
    let nobody = format!("http://{free}");
    let endpoint = weed.endpoint();
    for (root, endpoint, key, secret, state, words) in [
        ("s3://test/p", &endpoint, ACCESS_KEY, SECRET_KEY, "healthy", ""),
        ("s3://absent/p", &endpoint, ACCESS_KEY, SECRET_KEY, "refused", "storage.object.root_path"),
        ("s3://test/p", &endpoint, ACCESS_KEY, "wrong", "refused", "secret_key"),
        ("s3://test/p", &endpoint, "unknown", SECRET_KEY, "refused", "access_key"),
        ("s3://test/p", &nobody, ACCESS_KEY, SECRET_KEY, "", "endpoint_override"),
    ] {
        let server = s3(Place::new(), root, endpoint).with(&format!("{S3}SECRET_KEY"), secret);
        let server = server.with(&format!("{S3}ACCESS_KEY"), key).start();
        let health = eventually("the probe has ended", async || {
            let health = stats(&server);
            let is_known = health["probed"] == true || health["error"] != "";
            is_known.then_some(health)
        })
        .await;
        assert!(health["error"].as_str().expect("text").contains(words), "{root} {words}: {health}");
        assert!(state.is_empty() || health["state"] == state, "{root}: {health}");
        assert!(state != "healthy" || health["signs"] == true, "{health}");
        assert!(!health.to_string().contains(SECRET_KEY));
        server.stop();
    }
}

const S3: &str = "STORAGE__OBJECT__FILESYSTEM_OPTIONS__S3__";

/// An S3 server's store.
fn s3(place: Place, root: &str, endpoint: &str) -> Place {
    place
        .with("STORAGE__OBJECT__ROOT_PATH", root)
        .with(&format!("{S3}ENDPOINT_OVERRIDE"), endpoint)
        .with(&format!("{S3}REGION"), "us-east-1")
        .with(&format!("{S3}ACCESS_KEY"), ACCESS_KEY)
        .with(&format!("{S3}SECRET_KEY"), SECRET_KEY)
}

/// A family of two payloads, and three that cannot be used.
fn archive(driver: &ObjectDriver) -> [PayloadId; 2] {
    let (parent, child, absent) = (id(10), id(11), id(99));
    stored(driver, parent, b"parent", Archive::default());
    let edge =
        |id| Parent { id, operation: "crop".to_owned(), role: "input".to_owned(), parameters: vec![0, 255] };
    let archive = Archive {
        created_at: Some(WallMs::from_millis(1_763_000_000_123)),
        expires_at: Some(WallMs::from_millis(4_000_000_000_000)),
        version: 9,
        policy: Policy {
            priority: "EVICTION_PRIORITY_HIGH".to_owned(),
            require_durable: true,
            spill_target: "TIER_OBJECT".to_owned(),
            min_residency_tier: String::new(),
        },
        dataset: "flowers".to_owned(),
        tags: [("colour".to_owned(), "red".to_owned())].into(),
        lineage: vec![edge(parent), edge(absent)],
        ..Archive::default()
    };
    stored(driver, child, b"the child", archive);
    [parent, child]
}

fn rows(store: &mut SqliteStore) -> Vec<PayloadRow> {
    let mut rows = Vec::new();
    store.load(&mut |row| rows.push(row)).expect("readable");
    rows
}

/// Looks whether the catalog has what [`archive`] put.
fn check(place: &Place, [parent, child]: [PayloadId; 2]) {
    let mut store = catalog(place);
    let found = rows(&mut store);
    assert_eq!(found.iter().map(|row| row.key.id).collect::<Vec<_>>(), [parent, child]);
    let row = &found[1];
    assert_eq!((row.size, row.state, row.version.0), (ByteCount(9), PayloadState::Durable, 9));
    assert_eq!(row.checksum, Some(Checksum(xxh3_64(b"the child"))));
    assert_eq!(
        (row.created_at.as_millis(), row.expires_at.map(|at| at.as_millis())),
        (1_763_000_000_123, Some(4_000_000_000_000))
    );
    assert_eq!((row.policy.priority, row.policy.require_durable), (EvictionPriority::High, true));
    assert_eq!(row.policy.spill_target, Some(SpillTarget::Tier(Tier::Object)));
    assert_eq!(
        row.replicas.iter().map(|replica| (replica.tier, replica.synced)).collect::<Vec<_>>(),
        [(Tier::Object, true)]
    );
    assert_eq!(found[0].created_at, parent.created_at(), "its sidecar says nothing");
    let key = PayloadKey { namespace: NamespaceId::DEFAULT, id: child };
    let at = WallMs::from_millis(1_763_000_000_200);
    let mut reader = store.reader().expect("a reader");
    let lineage = reader.read(&RecordQuery::Lineage { key, upstream: true, depth_max: 0, at }).expect("read");
    let RecordAnswer::Lineage(edges) = lineage else { panic!("{lineage:?}") };
    assert_eq!(
        edges.iter().map(|edge| (edge.parent, edge.parameters.as_slice())).collect::<Vec<_>>(),
        [(parent, &[0, 255][..])]
    );
    let metadata = reader.read(&RecordQuery::Metadata { key, at }).expect("read");
    let RecordAnswer::Metadata(Some((metadata, _))) = metadata else { panic!("{metadata:?}") };
    let metadata: serde_json::Value = serde_json::from_slice(&metadata.data).expect("JSON");
    assert_eq!(metadata, serde_json::json!({"dataset": "flowers", "tags": {"colour": "red"}}));
}

fn rebuild(place: &Place, from: &str) -> Output {
    // The server's environment, without its `serve`.
    let server = place.command();
    let mut command = Command::new(program("payload-manager"));
    for (name, value) in server.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.arg("--data-dir").arg(place.path()).args(["rebuild-catalog", "--from", from]);
    ended(command)
}

#[test]
fn given_a_directory_of_objects_when_the_catalog_is_rebuilt_then_it_has_all_but_what_is_damaged() {
    let root = tempfile::tempdir().expect("a directory");
    let from = format!("file://{}", root.path().display());
    let driver = driver(ObjectConfig { root: from.clone(), ..ObjectConfig::default() });
    let family = archive(&driver);
    let damaged = [id(20), id(21), id(22)];
    for id in damaged {
        stored(&driver, id, b"as it was", Archive::default());
    }
    let path = |name: String| root.path().join(name);
    fs::write(path(format!("{}.bin", damaged[0])), "cut").expect("written");
    fs::remove_file(path(format!("{}.bin", damaged[1]))).expect("removed");
    fs::write(path(format!("{}.meta.json", damaged[2])), "{").expect("written");
    fs::write(path("notes.meta.json".to_owned()), "somebody else's").expect("written");
    fs::create_dir(path("below".to_owned())).expect("made");
    let below = path(format!("below/{}.meta.json", family[0]));
    fs::copy(path(format!("{}.meta.json", family[0])), below).expect("copied");

    let place = Place::new();
    let output = rebuild(&place, &from);
    let (said, complaint) = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}{complaint}");
    for id in damaged {
        assert!(said.contains(&format!("passed over: {id}: ")), "{said}");
    }
    let last = said.lines().last().unwrap_or_default();
    assert!(last.contains("has 2 payloads (15 B)") && last.contains("1 edges of lineage"), "{said}");
    assert!(last.contains("3 payloads were passed over") && last.contains("1 edges to payloads"), "{said}");
    check(&place, family);
    assert!(Path::new(&path(format!("{}.bin", family[0]))).exists(), "the store is only read");

    let (_, complaint) = text(&rebuild(&place, &from));
    assert!(complaint.contains("has 2 payloads already"), "{complaint}");
    let (_, complaint) = text(&rebuild(&Place::new(), "/no/such/directory"));
    assert!(complaint.contains("/no/such/directory"), "{complaint}");
    let memory = Place::new().with("DATABASE__MEMORY", "{}");
    assert!(text(&rebuild(&memory, &from)).1.contains("database.memory"));
}

#[test]
fn given_a_bucket_when_the_catalog_is_rebuilt_then_it_is_spoken_to_as_configured() {
    let weed = Seaweed::start().expect("an S3 server");
    weed.bucket("test");
    let from = "s3://test/some/prefix";
    let driver = driver(ObjectConfig {
        root: from.to_owned(),
        s3: S3Options {
            endpoint: Some(weed.endpoint()),
            allow_http: true,
            region: Some("us-east-1".to_owned()),
            access_key: Some(ACCESS_KEY.to_owned()),
            secret_key: Some(SECRET_KEY.to_owned()),
            ..S3Options::default()
        },
        ..ObjectConfig::default()
    });
    let family = archive(&driver);
    let place = s3(Place::new(), "s3://test/another", &weed.endpoint());
    let output = rebuild(&place, from);
    assert!(output.status.success(), "{:?}", text(&output));
    check(&place, family);
    let (_, complaint) = text(&rebuild(&s3(Place::new(), "s3://test/p", &weed.endpoint()), "s3://absent/p"));
    assert!(complaint.contains("s3://absent/p"), "{complaint}");
}
