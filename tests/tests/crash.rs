//! The crash test's own tests: 50 rounds of kills that the server survives with every promise kept, and canaries that
//! show what the checker would say of a server that does not.
//!
//! `tests/crash --rounds N --from SEED` runs more.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use payload_client::mapping::{ReadMapping, WriteMapping};
use payload_client::{AcquireOptions, AllocateOptions, Client, Location, SpillOptions};
use payload_tests::crash::fact::{Allocated, Fact, Verb};
use payload_tests::crash::ledger::{Breach, Rule};
use payload_tests::crash::{self, Options, Run};
use payload_tests::server::{Server, eventually};
use payload_tests::v1::content;
use payload_types::tier::SpillTarget;
use payload_types::{ByteCount, ErrorKind, PayloadId, Tier};

/// The ordinary run's.
const OPTIONS: Options = Options {
    rounds: 50,
    load_max: Duration::from_millis(400),
    patience: payload_tests::server::PATIENCE,
    keep: false,
};

/// What 50 rounds must have seen, or they prove little.
const SEEN: [&str; 18] = [
    "allocated",
    "batch",
    "commit",
    "commit unanswered",
    "delete",
    "delete unanswered",
    "spill",
    "spill unanswered",
    "pin",
    "unpin",
    "promote",
    "read",
    "killed while it started",
    "client killed",
    "stopped",
    "segment file used again or removed",
    "segment file emptied by compaction",
    "payload moved by compaction",
];

#[test]
fn given_50_rounds_of_load_and_kills_when_restarted_then_every_promise_was_kept() {
    let passed = crash::run(0, OPTIONS).unwrap_or_else(|failure| panic!("{failure}"));
    for situation in SEEN {
        assert!(passed.tally.get(situation).is_some_and(|count| *count > 0), "never seen: {situation}");
    }
    let most = passed.peak;
    assert!(most.memory > 1 << 20 && most.disk > 1 << 20, "the watch saw next to nothing: {most:?}");
}

/// A payload that a ledger knows as committed, put as a client of the load puts it.
async fn put(run: &Run, client: &Client, tier: Tier, seed: u64) -> PayloadId {
    let size = 50_000;
    let bytes = std::io::Cursor::new(content(seed, 50_000));
    let options = AllocateOptions { tier, no_evict: true, ..AllocateOptions::default() };
    let id = client.put_bytes(bytes, ByteCount(size), &options).await.expect("put").id;
    let mut ledger = run.ledger.lock().expect("nobody panicked");
    let allocated = Allocated { id, seed, size, tier, expires_at: None, is_kept: true, is_expendable: false };
    ledger.note(Fact::Allocated(allocated));
    ledger.note(Fact::Asked(Verb::Commit, id));
    ledger.note(Fact::Did(Verb::Commit, id));
    id
}

/// A payload in a segment file, and where it lies there.
async fn packed(run: &Run, client: &Client, seed: u64) -> (PayloadId, PathBuf, u64) {
    let id = put(run, client, Tier::Ram, seed).await;
    run.ledger.lock().expect("nobody panicked").note(Fact::Asked(Verb::Spill, id));
    let target = Some(SpillTarget::Tier(Tier::Disk));
    let options = SpillOptions { target, ..SpillOptions::default() };
    let spilled = client.spill(&[id], &options).await.expect("one result").swap_remove(0).result;
    spilled.expect("spilled");
    run.ledger.lock().expect("nobody panicked").note(Fact::Did(Verb::Spill, id));
    match client.resolve(id).await.expect("known").location {
        Some(Location::File { path, offset, .. }) if path.extension().is_some_and(|end| end == "seg") => {
            (id, path, offset)
        }
        other => panic!("it is packed: {other:?}"),
    }
}

/// Puts a payload into a segment file, kills the server, lets `tamper` do its worst, starts again and verifies.
async fn verified_after_packed(tamper: impl FnOnce(&Path, u64)) -> Result<(), Breach> {
    let mut run = Run::new(0, OPTIONS);
    let (server, client) = run.start().await.expect("it starts");
    packed(&run, &client, 1).await;
    let (_, path, offset) = packed(&run, &client, 2).await;
    server.kill();
    tamper(&path, offset);
    let (_server, client) = run.start().await?;
    run.verify(&client).await
}

/// Puts a payload on each tier, kills the server, lets `tamper` do its worst, starts again and verifies.
async fn verified_after(tamper: impl AsyncFnOnce(&mut Run, [PayloadId; 2])) -> Result<(), Breach> {
    let mut run = Run::new(0, OPTIONS);
    let (server, client) = run.start().await.expect("it starts");
    let ids = [put(&run, &client, Tier::Ram, 1).await, put(&run, &client, Tier::Disk, 2).await];
    server.kill();
    tamper(&mut run, ids).await;
    let (_server, client) = run.start().await?;
    run.verify(&client).await
}

fn broken(result: Result<(), Breach>, rules: &[Rule]) {
    let breach = result.expect_err("it must be noticed");
    assert!(rules.contains(&breach.rule), "{breach}");
}

fn segment(run: &Run, id: PayloadId) -> PathBuf {
    PathBuf::from(format!("/dev/shm/{}-{id}", run.place().prefix()))
}

fn file(run: &Run, id: PayloadId) -> PathBuf {
    let item = run.ground().disk().into_iter().find(|item| item.uuid == id.to_string());
    let root = run.ground().root.join("payloads");
    let shelf = &id.to_string()[34..];
    root.join(shelf).join(item.expect("it is on disk").name)
}

fn flip_byte(path: &Path, at: u64) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("ours");
    let file = fs::OpenOptions::new().read(true).write(true).open(path).expect("opened");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("read");
    file.write_all_at(&[byte[0] ^ 1], at).expect("written");
}

#[tokio::test]
async fn given_nothing_was_tampered_with_when_verified_then_all_is_well() {
    verified_after(async |_, _| {}).await.expect("every promise is kept");
    verified_after_packed(|_, _| {}).await.expect("every promise is kept");
}

#[tokio::test]
async fn given_a_flipped_byte_when_verified_then_it_is_told() {
    // A server that notices before we do answers DATA_LOSS: then the payload was not kept.
    let rules = [Rule::Bytes, Rule::Kept];
    broken(verified_after(async |run, [_, disk]| flip_byte(&file(run, disk), 49_999)).await, &rules);
    broken(verified_after(async |run, [ram, _]| flip_byte(&segment(run, ram), 7)).await, &rules);
    broken(verified_after_packed(|path, offset| flip_byte(path, offset + 49_999)).await, &rules);
}

#[tokio::test]
async fn given_a_removed_file_when_verified_then_it_is_told() {
    let remove = |path: PathBuf| fs::remove_file(path).expect("removed");
    broken(verified_after(async |run, [_, disk]| remove(file(run, disk))).await, &[Rule::Kept]);
    broken(verified_after(async |run, [ram, _]| remove(segment(run, ram))).await, &[Rule::Kept]);
    broken(verified_after_packed(|path, _| remove(path.to_owned())).await, &[Rule::Kept]);
    let cut = |path: &Path, offset: u64| {
        fs::File::options().write(true).open(path).and_then(|file| file.set_len(offset + 1)).expect("cut");
    };
    broken(verified_after_packed(cut).await, &[Rule::Kept]);
}

#[tokio::test]
async fn given_a_deleted_payload_that_comes_back_when_verified_then_it_is_told() {
    for is_settled in [false, true] {
        let result = verified_after(async |run, [_, disk]| {
            let data = run.place().path().to_owned();
            let before = tempfile::tempdir().expect("a directory");
            copy(&data, before.path());
            let (server, client) = run.start().await.expect("it starts");
            client.delete(disk, false, None).await.expect("deleted");
            {
                let mut ledger = run.ledger.lock().expect("nobody panicked");
                ledger.note(Fact::Asked(Verb::Delete, disk));
                ledger.note(Fact::Did(Verb::Delete, disk));
            }
            server.kill();
            if is_settled {
                let (server, client) = run.start().await.expect("it starts");
                run.verify(&client).await.expect("it is gone");
                Server::kill(server);
            }
            fs::remove_dir_all(&data).expect("removed");
            copy(before.path(), &data);
        });
        broken(result.await, &[Rule::StaysGone]);
    }
}

#[tokio::test]
async fn given_bytes_that_no_payload_accounts_for_when_verified_then_it_is_told() {
    // What was planted never goes: there is no use in waiting for it.
    let mut run = Run::new(0, Options { patience: Duration::from_millis(50), ..OPTIONS });
    let (_server, client) = run.start().await.expect("it starts");
    let root = run.ground().root.clone();
    let shelf = root.join("payloads/00");
    fs::create_dir_all(&shelf).expect("made");
    for directory in [Path::new("/dev/shm"), &shelf, &root.join("segments"), &root] {
        let planted = directory.join(format!("{}-{}", run.place().prefix(), PayloadId::mint(1, 1)));
        fs::write(&planted, b"left over").expect("planted");
        broken(run.verify(&client).await, &[Rule::Leak]);
        fs::remove_file(&planted).expect("removed");
        run.verify(&client).await.expect("all is well again");
    }
}

#[tokio::test]
async fn given_clients_that_outlive_the_server_when_restarted_then_what_they_hold_stays_charged() {
    const PART: ByteCount = ByteCount(12 << 20);
    // 32 MiB of RAM: what was never committed, and what was deleted under a lease, leave no room for a third.
    let mut run = Run::new(0, OPTIONS);
    let (server, client) = run.start().await.expect("it starts");
    let options = AllocateOptions::default();
    let allocated = client.allocate_payload(PART, &options).await.expect("allocated").descriptor;
    let allocation = WriteMapping::open(allocated.location.as_ref().expect("one")).expect("mapped");
    let bytes = content(1, 12 << 20);
    let id = client.put_bytes(std::io::Cursor::new(bytes.clone()), PART, &options).await.expect("put").id;
    let leased = client.acquire_read_lease(id, &AcquireOptions::default()).await.expect("leased");
    let lease = ReadMapping::open(leased.descriptor.location.as_ref().expect("one")).expect("mapped");
    client.delete(id, true, None).await.expect("deleted by force");
    server.kill();

    let (server, client) = run.start().await.expect("it starts");
    let short = client.with_deadline(Duration::from_millis(200));
    let refusal = short.allocate_payload(PART, &options).await.expect_err("there is no room");
    let kinds = [Some(ErrorKind::ResourceExhausted), Some(ErrorKind::DeadlineExceeded)];
    assert!(kinds.contains(&refusal.kind()), "{refusal}");
    assert!(*lease == bytes, "what is mapped is not reused");
    drop((allocation, lease));
    let whole = eventually("all of it is free", async || {
        client.allocate_payload(ByteCount(32 << 20), &options).await.ok()
    });
    whole.await;
    server.stop();
}

/// Copies a directory with everything below it, but the socket that a killed server leaves.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("made");
    for entry in fs::read_dir(from).expect("readable").map(|entry| entry.expect("readable")) {
        let target = to.join(entry.file_name());
        match entry.file_type().expect("known") {
            kind if kind.is_dir() => copy(&entry.path(), &target),
            kind if kind.is_socket() => {}
            _ => drop(fs::copy(entry.path(), target).expect("copied")),
        }
    }
}
