//! Bad input of the machine: full and unwritable file systems, files that are damaged or another program's. A clear
//! error each, the server lives on, and nothing else is harmed. What clients do to their bytes is in hostile_client.rs.

use std::fs::{self, File};
use std::path::Path;

use payload_tests::server::{Place, Server, eventually, may_mount};
use payload_tests::v1::{
    DISK, RAM, V1, acquisition, allocation, content, id, refused, spill_refused, spilled, stranger,
};
use payload_wire::pb::core::v1::PayloadState;
use payload_wire::pb::runtime::v1 as rt;
use payload_wire::pb::services::v1::payload_data_service_client::PayloadDataServiceClient;
use tonic::Code;

/// A file system that one foreign file has filled.
struct Filled(std::path::PathBuf);

impl Filled {
    /// Leaves less than `room` bytes free below `directory` of the server's.
    fn fill(server: &Server, directory: &Path, room: usize) -> Self {
        let path = server.path(directory).join("somebody-elses-file");
        let mut file = File::create(&path).expect("made");
        for part in [1 << 20, 64 << 10, 4096] {
            while std::io::Write::write_all(&mut file, &vec![1; part]).is_ok() {}
        }
        let length = file.metadata().expect("stat").len();
        file.set_len(length.saturating_sub(room as u64)).expect("cut");
        Self(path)
    }

    fn remove(self) {
        fs::remove_file(self.0).expect("removed");
    }
}

#[tokio::test]
async fn given_a_full_dev_shm_when_allocated_then_exhausted_and_what_is_there_is_served_on() {
    if !may_mount() {
        return;
    }
    let place = Place::new().with_tmpfs(Path::new("/dev/shm"), "16m").without("STORAGE__RAM__CAPACITY_BYTES");
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let present = id(&v1.put(RAM, &content(1, 1 << 20)).await);
    let on_disk = id(&v1.put(DISK, &content(2, 4 << 20)).await);
    let filled = Filled::fill(&server, Path::new("/dev/shm"), 1 << 20);
    refused(v1.allocate(allocation(RAM, 4 << 20)).await, Code::ResourceExhausted, &["RAM"]);
    refused(v1.promote_to(&on_disk, RAM).await, Code::ResourceExhausted, &["RAM"]);
    assert_eq!(v1.bytes(&present).await, (RAM, content(1, 1 << 20)));
    assert_eq!(
        v1.bytes(&on_disk).await,
        (DISK, content(2, 4 << 20)),
        "a promotion that failed changes nothing"
    );
    let small = id(&v1.put(RAM, b"there is a little room").await);
    spilled(v1.spill_to(&present, DISK).await, DISK);
    filled.remove();
    assert_eq!(v1.promote_to(&on_disk, RAM).await.expect("there is room again").tier, RAM);
    assert_eq!(v1.bytes(&on_disk).await, (RAM, content(2, 4 << 20)));
    assert_eq!(v1.bytes(&small).await.1, b"there is a little room");
    assert_eq!(v1.stats().await.expect("stats").bytes_ram, (4 << 20) + 22, "failures are not charged");
}

#[tokio::test]
async fn given_more_ram_configured_than_dev_shm_has_when_started_then_clamped_with_a_warning_or_refused() {
    if !may_mount() {
        return;
    }
    let place = Place::new().with_tmpfs(Path::new("/dev/shm"), "8m");
    let server = place.start();
    assert!(server.log().contains("/dev/shm"), "{}", server.log());
    let v1 = V1::connect(&server).await;
    refused(v1.allocate(allocation(RAM, 9 << 20)).await, Code::ResourceExhausted, &["RAM"]);
    drop(server);
    let said = place.with("STORAGE__RAM__STRICT_CAPACITY", "true").start_refused();
    assert!(said.contains("/dev/shm") && said.contains("storage.ram"), "{said}");
}

#[tokio::test]
async fn given_a_full_disk_when_allocated_or_spilled_then_refused_and_the_payload_is_as_before() {
    if !may_mount() {
        return;
    }
    let place = Place::new();
    let root = place.path().join("disk");
    let place = place.with_tmpfs(&root, "16m").without("STORAGE__DISK__CAPACITY_BYTES");
    let place = place.with("STORAGE__DISK__CAPACITY_BYTES", "14MiB");
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let on_disk = id(&v1.put(DISK, &content(1, 1 << 20)).await);
    let in_memory = id(&v1.put(RAM, &content(2, 4 << 20)).await);
    let filled = Filled::fill(&server, &root, 1 << 20);
    refused(v1.allocate(allocation(DISK, 4 << 20)).await, Code::ResourceExhausted, &["DISK"]);
    spill_refused(&v1.spill_to(&in_memory, DISK).await, &["DISK"]);
    refused(v1.promote_to(&in_memory, DISK).await, Code::ResourceExhausted, &["DISK"]);
    let seen = v1.resolve(&in_memory).await.expect("known");
    assert_eq!((seen.tier, seen.state()), (RAM, PayloadState::Active), "as before");
    assert_eq!(v1.bytes(&in_memory).await, (RAM, content(2, 4 << 20)));
    assert_eq!(v1.bytes(&on_disk).await, (DISK, content(1, 1 << 20)));
    filled.remove();
    spilled(v1.spill_to(&in_memory, DISK).await, DISK);
    assert_eq!(v1.bytes(&in_memory).await, (DISK, content(2, 4 << 20)));
}

#[tokio::test]
async fn given_a_catalog_that_cannot_write_when_committed_then_unavailable_and_reads_and_leases_go_on() {
    if !may_mount() {
        return;
    }
    let place = Place::new();
    let directory = place.path().join("db");
    let place = place.with_tmpfs(&directory, "2m");
    let place = {
        let database = directory.join("catalog.db");
        place.with("DATABASE__SQLITE__PATH", database.to_str().expect("text"))
    };
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let present = id(&v1.put(RAM, &content(1, 9000)).await);
    let durable = id(&v1.put(DISK, &content(2, 9000)).await);
    let waiting = v1.allocated(RAM, 9000).await;
    v1.map(&waiting).copy_from_slice(&content(3, 9000));
    let filled = Filled::fill(&server, &directory, 0);
    // The log has a little room of its own: until it is used up, commits may work.
    let refusal = eventually("the catalog runs out of room", async || {
        let payload = id(&v1.allocated(RAM, 1).await);
        let refusal = v1.commit(&payload).await.err();
        if refusal.is_some() {
            assert_eq!(v1.resolve(&payload).await.expect("known").state(), PayloadState::Allocated);
        }
        refusal
    })
    .await;
    refused(Err::<(), _>(refusal), Code::Unavailable, &["catalog"]);
    for payload in [&present, &durable] {
        assert!(v1.bytes(payload).await.1.len() == 9000, "reads and leases of known payloads go on");
    }
    assert_eq!(v1.promote_to(&durable, RAM).await.expect("a replica in memory needs no row").tier, RAM);
    filled.remove();
    let committed =
        eventually("the catalog writes again", async || v1.commit(&id(&waiting)).await.ok()).await;
    assert_eq!(committed.state(), PayloadState::Active);
    assert_eq!(v1.bytes(&id(&waiting)).await.1, content(3, 9000));
}

#[tokio::test]
async fn given_directories_that_cannot_be_written_when_started_then_one_sentence_each_and_exit_1() {
    let place = Place::new();
    let file = place.path().join("a-file");
    fs::write(&file, b"no directory").expect("written");
    let below = file.join("below");
    let below = below.to_str().expect("text");
    for (key, option) in [
        ("STORAGE__DISK__ROOT_PATH", "storage.disk.root_path"),
        ("DATABASE__SQLITE__PATH", "database.sqlite.path"),
    ] {
        for (path, named) in [(below, "a-file"), ("/proc/nowhere/at/all", "/proc")] {
            let said = Place::new().with(key, path).start_refused();
            let sentence = said.lines().last().expect("something");
            assert!(sentence.contains(named) && sentence.contains(option), "{key} {path}: {said}");
            assert!(!said.contains("panicked"), "{said}");
        }
    }
    assert_eq!(fs::read(&file).expect("still there"), b"no directory");
    if may_mount() {
        let place = Place::new();
        let read_only = place.path().join("read-only");
        let path = read_only.to_str().expect("text").to_owned();
        let place = place.with_tmpfs(&read_only, "1m,ro").with("STORAGE__DISK__ROOT_PATH", &path);
        let said = place.start_refused();
        assert!(said.contains(&path) && said.contains("ead-only"), "{said}");
    }
}

#[tokio::test]
async fn given_a_database_that_is_damaged_or_foreign_when_started_then_refused_and_left_as_it_is() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let bytes = content(1, 9000);
    let payload = id(&v1.put(RAM, &bytes).await);
    let file = v1.put(DISK, &bytes).await;
    server.stop();
    let database = place.path().join("catalog.db");
    let sound = fs::read(&database).expect("the catalog");
    let segments = place.segments();

    let mut no_header = sound.clone();
    no_header[..64].fill(0x5A);
    let mut torn = sound.clone();
    torn[100..4096].fill(0xFF);
    let cut = sound[..sound.len() - 1000].to_vec();
    let tiny = sound[..50].to_vec();
    let text = b"#!/bin/sh\necho this is my script\n".to_vec();
    for (what, damaged) in
        [("no header", no_header), ("torn", torn), ("cut", cut), ("tiny", tiny), ("text", text)]
    {
        fs::write(&database, &damaged).expect("damaged");
        let said = place.start_refused();
        assert!(said.contains(database.to_str().expect("text")), "{what}: {said}");
        assert!(!said.contains("panicked"), "{what}: {said}");
        assert!(fs::read(&database).expect("there") == damaged, "{what}: left as it is");
        assert_eq!(place.segments(), segments, "{what}: no payload is reclaimed for want of a catalog");
        assert!(v1.path(&file).exists(), "{what}");
    }

    let foreign = place.path().join("foreign.db");
    let connection = rusqlite::Connection::open(&foreign).expect("made");
    connection.execute_batch("CREATE TABLE mine (a); INSERT INTO mine VALUES (42);").expect("filled");
    drop(connection);
    let before = fs::read(&foreign).expect("there");
    let other = Place::new().with("DATABASE__SQLITE__PATH", foreign.to_str().expect("text"));
    let said = other.start_refused();
    assert!(said.contains("another program") && said.contains("foreign.db"), "{said}");
    assert!(fs::read(&foreign).expect("there") == before, "untouched");
    for suffix in ["-wal", "-shm", "-journal"] {
        assert!(!place.path().join(format!("foreign.db{suffix}")).exists(), "{suffix}");
    }

    fs::write(&database, &sound).expect("restored");
    let server = place.start();
    let v1 = V1::connect(&server).await;
    assert_eq!(v1.bytes(&payload).await, (RAM, bytes.clone()));
    assert_eq!(v1.bytes(&id(&file)).await, (DISK, bytes));
}

#[tokio::test]
async fn given_a_disk_root_that_is_not_ours_when_started_then_refused_and_untouched() {
    let place = Place::new();
    let foreign = place.path().join("photos");
    fs::create_dir(&foreign).expect("made");
    fs::write(foreign.join("cat.jpg"), b"a cat").expect("written");
    let place = place.with("STORAGE__DISK__ROOT_PATH", foreign.to_str().expect("text"));
    let said = place.start_refused();
    assert!(said.contains("photos"), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    let names: Vec<_> =
        fs::read_dir(&foreign).expect("there").flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(names, ["cat.jpg"], "not even a marker or a lock is left");

    // A root of ours, of a later format or with a damaged marker.
    let place = Place::new();
    place.start().stop();
    let marker = place.path().join("disk/payload-manager.root");
    let sound = fs::read_to_string(&marker).expect("every root has its marker");
    let later = sound.replace("format: ", "format: 99");
    assert_ne!(later, sound);
    for (text, word) in [
        (later, "format 99"),
        ("\0\0\0".to_owned(), "payload-manager.root"),
        (String::new(), "payload-manager.root"),
    ] {
        fs::write(&marker, &text).expect("changed");
        let said = place.start_refused();
        assert!(said.contains(word) && said.contains("disk") && !said.contains("panicked"), "{said}");
        assert_eq!(fs::read_to_string(&marker).expect("there"), text, "left as it is");
    }
    fs::write(&marker, &sound).expect("restored");
    place.start().stop();
}

#[tokio::test]
async fn given_damaged_intent_logs_when_started_then_what_was_committed_is_served_or_the_start_refused() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let mut known = Vec::new();
    for seed in 0..6 {
        known.push((v1.put(DISK, &content(seed, 9000)).await, content(seed, 9000)));
    }
    let in_memory = v1.put(RAM, &content(9, 9000)).await;
    let never_committed = v1.allocated(DISK, 9000).await;
    server.kill();
    let logs: Vec<_> = fs::read_dir(place.path().join("disk"))
        .expect("the root")
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().contains("intent")))
        .collect();
    assert_eq!(logs.len(), 1, "{logs:?}");
    // Records in the middle are damaged, and the last one was torn.
    let mut log = fs::read(&logs[0]).expect("readable");
    let middle = log.len() / 2;
    log[middle..middle + 20].fill(0xA5);
    log.extend_from_slice(b"torn");
    fs::write(&logs[0], &log).expect("damaged");
    let server = place.start();
    let v1 = V1::connect(&server).await;
    for (payload, bytes) in &known {
        assert_eq!(
            v1.bytes(&id(payload)).await,
            (DISK, bytes.clone()),
            "the catalog vouches for it, not the log"
        );
    }
    assert_eq!(v1.bytes(&id(&in_memory)).await, (RAM, content(9, 9000)));
    refused(v1.resolve(&id(&never_committed)).await, Code::NotFound, &[]);
    server.kill();
    // Its head is somebody else's: not ours to overwrite.
    fs::write(&logs[0], b"#!/bin/sh\n# not a log at all, and longer than one record of the log is\n")
        .expect("replaced");
    let said = place.start_refused();
    assert!(said.contains("intent") && !said.contains("panicked"), "{said}");
    assert!(v1.path(&known[0].0).exists());
}

#[tokio::test]
async fn given_connections_that_only_sit_there_when_there_are_more_than_allowed_then_others_are_served_on() {
    let place = Place::new().with("LIMITS__CONNECTIONS", "8");
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let payload = id(&v1.put(RAM, b"served").await);
    let idle: Vec<_> =
        (0..50).map(|_| std::net::TcpStream::connect(&server.address).expect("the kernel accepts")).collect();
    assert_eq!(v1.bytes(&payload).await.1, b"served");
    drop(idle);
    let endpoint =
        tonic::transport::Endpoint::from_shared(format!("http://{}", server.address)).expect("an address");
    eventually("new connections are served again", async || {
        let channel = endpoint.connect().await.ok()?;
        let request = rt::ResolveSnapshotRequest { id: Some(payload.clone()) };
        PayloadDataServiceClient::new(channel).resolve_snapshot(request).await.ok()
    })
    .await;
}

#[tokio::test]
async fn given_a_catalog_and_a_root_that_do_not_belong_together_when_started_then_refused_and_nothing_is_removed()
 {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let (ram, disk) = (v1.put(RAM, &content(1, 9000)).await, v1.put(DISK, &content(2, 9000)).await);
    server.stop();
    let (new_catalog, new_root) = (place.path().join("new.db"), place.path().join("new-disk"));
    let place = place.with("DATABASE__SQLITE__PATH", new_catalog.to_str().expect("text"));
    let said = place.start_refused();
    assert!(said.contains("another catalog") && said.contains("database.sqlite.path"), "{said}");
    let place = place
        .without("DATABASE__SQLITE__PATH")
        .with("STORAGE__DISK__ROOT_PATH", new_root.to_str().expect("text"));
    let said = place.start_refused();
    assert!(said.contains("another disk root") && said.contains("storage.disk.root_path"), "{said}");
    let place = place.without("STORAGE__DISK__ROOT_PATH");
    let server = place.start();
    let v1 = V1::connect(&server).await;
    assert_eq!(v1.bytes(&id(&ram)).await, (RAM, content(1, 9000)));
    assert_eq!(v1.bytes(&id(&disk)).await, (DISK, content(2, 9000)));
}

#[tokio::test]
async fn given_absurd_requests_when_sent_together_then_each_is_refused_and_a_plain_one_is_served() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let too_many = rt::SpillRequest { ids: vec![stranger(); 1001], target_tier: DISK, ..Default::default() };
    refused(v1.spill(too_many).await, Code::InvalidArgument, &["1000"]);
    let most = rt::SpillRequest { ids: vec![stranger(); 1000], target_tier: DISK, ..Default::default() };
    assert_eq!(v1.spill(most).await.expect("OK").len(), 1000);
    let calls: Vec<_> = (0..200_u64)
        .map(|number| {
            let v1 = v1.clone();
            tokio::spawn(async move {
                match number % 4 {
                    0 => v1.allocate(allocation(RAM, 128 << 30)).await.map(drop),
                    1 => v1.allocate(allocation(DISK, u64::MAX - number)).await.map(drop),
                    2 => v1.delete(&stranger(), true).await,
                    _ => v1
                        .acquire(rt::AcquireReadLeaseRequest { mode: 9, ..acquisition(&stranger()) })
                        .await
                        .map(drop),
                }
            })
        })
        .collect();
    for call in calls {
        call.await.expect("no panic").expect_err("absurd");
    }
    let plain = id(&v1.put(RAM, b"plain").await);
    assert_eq!(v1.bytes(&plain).await.1, b"plain");
}
