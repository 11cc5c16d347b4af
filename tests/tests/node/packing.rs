//! Small payloads that share segment files on disk, as users and operators meet them: a real server, real files, real
//! second processes.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use payload_client::{AcquireOptions, Client};
use payload_ledger::segments::Geometry;
use payload_tests::crash::FREE_FILES_MAX;
use payload_tests::peer::{Peer, answer};
use payload_tests::server::{Place, eventually, objects, payloadctl};
use payload_tests::v1::{DISK, RAM, V1, acquisition, allocation, content, id, refused, spilled, within};
use payload_types::limits::{PAGE_BYTES, SPILL_IDS_MAX};
use payload_types::{ByteCount, PayloadId};
use payload_wire::pb::core::v1::PayloadId as Id;
use payload_wire::pb::core::v1::payload_descriptor::Location;
use payload_wire::pb::operations::v1::TierAccounting;
use payload_wire::pb::runtime::v1 as rt;
use tonic::Code;

const MIB: u64 = 1 << 20;

/// The least that has segment files.
const CAPACITY: u64 = 128 * MIB;

/// Large enough to pack; clients may open files of their own for writing.
fn place() -> Place {
    Place::new()
        .with("STORAGE__DISK__CAPACITY_BYTES", &CAPACITY.to_string())
        .with("STORAGE__DISK__COMPACTION_BYTES_PER_SECOND", "0")
}

fn geometry(capacity: u64) -> Geometry {
    Geometry::of_capacity(ByteCount(capacity)).expect("large enough")
}

/// Files that are kept when nothing lies in them: the one of each writer, the mover's, and the free ones.
fn files_kept(geometry: Geometry) -> usize {
    geometry.writers() + 1 + FREE_FILES_MAX
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}

fn segments(place: &Place) -> BTreeSet<PathBuf> {
    files_below(&place.path().join("disk/segments")).into_iter().collect()
}

/// Segment files that payloads lie in, or may be written to.
fn in_use(place: &Place) -> BTreeSet<PathBuf> {
    segments(place).into_iter().filter(|path| path.extension().is_some_and(|end| end == "seg")).collect()
}

fn own_files(place: &Place) -> Vec<PathBuf> {
    files_below(&place.path().join("disk/payloads"))
}

fn held_bytes(place: &Place) -> u64 {
    let files = segments(place).into_iter().chain(own_files(place));
    files.filter_map(|path| path.metadata().ok()).map(|found| found.blocks() * 512).sum()
}

/// A payload and what its bytes must be.
struct Stored {
    id: Id,
    bytes: Vec<u8>,
}

/// Puts one payload for each length, in memory, and spills them all.
async fn stored(v1: &V1, seed: u64, lengths: impl IntoIterator<Item = usize>) -> Vec<Stored> {
    let mut all = Vec::new();
    for (number, length) in (0..).zip(lengths) {
        let bytes = content(seed * 10_000 + number, length);
        all.push(Stored { id: id(&v1.put(RAM, &bytes).await), bytes });
    }
    for part in all.chunks(SPILL_IDS_MAX) {
        let ids = part.iter().map(|stored| stored.id.clone()).collect();
        let request = rt::SpillRequest { ids, target_tier: DISK, fsync: true, ..Default::default() };
        for result in v1.spill(request).await.expect("one result for each id") {
            spilled(result, DISK);
        }
    }
    all
}

/// Where a payload lies: file and first byte.
async fn place_of(v1: &V1, id: &Id) -> (PathBuf, u64) {
    match v1.resolve(id).await.expect("known").location {
        Some(Location::Disk(disk)) => (disk.path.into(), disk.offset_bytes),
        other => panic!("it is on disk: {other:?}"),
    }
}

async fn all_identical(v1: &V1, all: &[Stored]) {
    for Stored { id, bytes } in all {
        assert!(v1.bytes_in_place(id).await == (DISK, bytes.clone()), "{}", uuid(id));
    }
}

async fn disk(v1: &V1) -> TierAccounting {
    let stats = v1.stats().await.expect("stats");
    *stats.tiers.iter().find(|part| part.tier == DISK).expect("configured")
}

fn uuid(id: &Id) -> PayloadId {
    PayloadId::from_slice(&id.value).expect("16 bytes")
}

/// Packed payloads, one after another, until the disk has no room for one more.
async fn filled(v1: &V1, place: &Place) -> Vec<Stored> {
    let mut all = Vec::new();
    for seed in 20.. {
        let bytes = content(seed, 900_000);
        let payload = id(&v1.put(RAM, &bytes).await);
        let request =
            rt::SpillRequest { ids: vec![payload.clone()], target_tier: DISK, ..Default::default() };
        let results = v1.catalog().spill(within(500, request)).await.map(tonic::Response::into_inner);
        assert!(held_bytes(place) <= CAPACITY, "{} bytes are on the disk", held_bytes(place));
        match results {
            Ok(answer) if answer.results[0].ok => all.push(Stored { id: payload, bytes }),
            _ => {
                v1.delete(&payload, true).await.expect("deleted");
                break;
            }
        }
    }
    all
}

/// One bit of a committed payload turns.
fn flip(path: &Path, offset: u64) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("ours");
    let file = File::options().read(true).write(true).open(path).expect("opened");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("read");
    file.write_all_at(&[byte[0] ^ 0x10], offset).expect("written");
    fs::set_permissions(path, fs::Permissions::from_mode(0o440)).expect("ours");
}

#[tokio::test]
async fn given_many_small_payloads_when_spilled_then_they_share_a_few_files_and_read_the_same_everywhere() {
    let place = place();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    // 1 byte to 30 KB, seldom in whole pages; 3 MB together.
    let all = stored(&v1, 1, (0..200).map(|number| 1 + number * 151)).await;
    assert_eq!(own_files(&place), Vec::<PathBuf>::new());
    let mut places = BTreeSet::new();
    for Stored { id, bytes } in &all {
        let (path, offset) = place_of(&v1, id).await;
        assert!(
            segments(&place).contains(&path) && offset > 0 && offset.is_multiple_of(PAGE_BYTES),
            "{path:?}"
        );
        assert!(offset + bytes.len() as u64 <= path.metadata().expect("there").len());
        assert_eq!(path.metadata().expect("there").mode() & 0o777, 0o440);
        assert!(places.insert((path, offset)), "two payloads at one place");
    }
    assert!(segments(&place).len() <= files_kept(geometry(CAPACITY)), "{:?}", segments(&place));

    let mut peer = Peer::start(&server);
    for Stored { id, bytes } in all.iter().step_by(7) {
        assert_eq!(peer.ask_bytes("look", id), answer(DISK, bytes));
    }
    all_identical(&v1, &all).await;
    for Stored { id, bytes } in &all {
        v1.promote_to(id, RAM).await.expect("promoted");
        assert!(v1.bytes_in_place(id).await == (RAM, bytes.clone()), "{}", uuid(id));
    }
    assert_eq!(payloadctl(&server, &["scrub"]).status.code(), Some(0));
    server.stop();
}

#[tokio::test]
async fn given_packed_payloads_when_the_server_is_killed_then_they_are_there_whatever_the_number_of_shards() {
    let mut place = place();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let mut all = stored(&v1, 2, (0..150).map(|number| 1 + number * 401)).await;
    server.kill();
    for shards in ["1", "4", "3"] {
        place.set("SHARDS__COUNT", shards);
        let server = place.start();
        let v1 = V1::connect(&server).await;
        all_identical(&v1, &all).await;
        for gone in all.drain(..10) {
            v1.delete(&gone.id, false).await.expect("deleted");
        }
        all.extend(stored(&v1, shards.parse().expect("a number"), [5_000; 20]).await);
        // Starts go on with the files that were being filled: they leave no half-empty ones.
        assert!(segments(&place).len() <= files_kept(geometry(CAPACITY)) + 1, "{:?}", segments(&place));
        assert_eq!(payloadctl(&server, &["scrub"]).status.code(), Some(0));
        server.kill();
    }
}

#[tokio::test]
async fn given_a_flipped_bit_in_a_segment_file_when_read_then_the_other_copy_or_data_loss_and_neighbours_unharmed()
 {
    let place = place();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let all = stored(&v1, 3, [20_000; 30]).await;
    let (lost, twin) = (&all[11], &all[17]);
    v1.promote_to(&twin.id, RAM).await.expect("promoted");
    let twin_at = payloadctl(&server, &["explain", &uuid(&twin.id).to_string()]);
    let copies = objects(&twin_at)[0]["replicas"].clone();
    let on_disk = copies.as_array().expect("a list").iter().find(|copy| copy["tier"] == "disk").expect("two");
    let (path, offset) = (on_disk["place"].as_str().expect("text"), on_disk["offset_bytes"].as_u64());
    flip(Path::new(path), offset.expect("a number") + 19_999);
    let (path, offset) = place_of(&v1, &lost.id).await;
    flip(&path, offset + 4096);

    let found = payloadctl(&server, &["scrub", "--tier", "disk"]);
    assert_eq!(found.status.code(), Some(1), "{found:?}");
    let outcome = |of: &Id| {
        let lines = objects(&found);
        let line = lines.iter().find(|line| line["id"] == uuid(of).to_string());
        line.map(|line| (line["what"].clone(), line["outcome"].clone()))
    };
    assert_eq!(outcome(&lost.id), Some(("corrupt".into(), "data_loss".into())), "{found:?}");
    assert_eq!(outcome(&twin.id), Some(("corrupt".into(), "other_replica".into())), "{found:?}");
    assert_eq!(objects(&found).len(), 3, "two findings and a summary: {found:?}");

    refused(v1.acquire(acquisition(&lost.id)).await, Code::DataLoss, &["anew"]);
    assert!(v1.bytes_in_place(&twin.id).await == (RAM, twin.bytes.clone()));
    spilled(v1.spill_to(&twin.id, DISK).await, DISK);
    assert!(v1.bytes_in_place(&twin.id).await == (DISK, twin.bytes.clone()), "it was written anew");
    server.kill();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    refused(v1.acquire(acquisition(&lost.id)).await, Code::DataLoss, &["anew"]);
    let sound: Vec<Stored> =
        all.into_iter().enumerate().filter(|(at, _)| *at != 11).map(|(_, one)| one).collect();
    all_identical(&v1, &sound).await;
}

#[tokio::test]
async fn given_a_flipped_bit_in_a_segment_file_when_promoted_then_data_loss_and_never_other_bytes() {
    let place = place();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let all = stored(&v1, 4, [9_000; 3]).await;
    let (path, offset) = place_of(&v1, &all[1].id).await;
    flip(&path, offset + 8_999);
    refused(v1.promote_to(&all[1].id, RAM).await, Code::DataLoss, &["DISK"]);
    refused(v1.acquire(acquisition(&all[1].id)).await, Code::DataLoss, &[]);
    v1.delete(&all[1].id, false).await.expect("what is damaged can be deleted");
    for neighbour in [0, 2] {
        v1.promote_to(&all[neighbour].id, RAM).await.expect("unharmed");
    }
}

#[tokio::test]
async fn given_everything_is_deleted_when_compacted_then_the_disk_is_given_back_but_for_the_files_in_use() {
    let place = place();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let all = stored(&v1, 5, [100_000; 300]).await;
    let whole = segments(&place).len();
    assert!(whole >= 7, "30 MB lie in files of 4 MiB: {whole}");
    for one in &all {
        v1.delete(&one.id, false).await.expect("deleted");
    }
    let geometry = geometry(CAPACITY);
    eventually("the files are given back", async || {
        let held = held_bytes(&place) <= files_kept(geometry) as u64 * geometry.file_bytes();
        (held && segments(&place).len() <= files_kept(geometry)).then_some(())
    })
    .await;
    // What died in a file that is being filled stays charged until that is worth a move.
    eventually("and are charged no more", async || {
        (disk(&v1).await.allocated_bytes <= files_kept(geometry) as u64 * geometry.data_bytes()).then_some(())
    })
    .await;
    // All of it can be used again.
    all_identical(&v1, &stored(&v1, 6, [100_000; 300]).await).await;
    server.stop();
}

#[tokio::test]
async fn given_files_that_are_mostly_dead_when_compacted_then_what_lives_is_moved_together_unchanged() {
    let place = place();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let mut all = stored(&v1, 7, [100_000; 300]).await;
    let before = in_use(&place);
    assert!(before.len() >= 7, "30 MB lie in files of 4 MiB: {before:?}");
    let mut kept = Vec::new();
    for (number, one) in all.drain(..).enumerate() {
        match number % 5 {
            0 => kept.push(one),
            _ => v1.delete(&one.id, false).await.expect("deleted"),
        }
    }
    // 6 MB live, which is two files; one more in each lane may hold what died in it.
    let lanes = geometry(CAPACITY).writers() + 1;
    eventually("the living are moved together", async || (in_use(&place).len() <= 2 + lanes).then_some(()))
        .await;
    all_identical(&v1, &kept).await;
    let now = in_use(&place);
    assert!(before.iter().filter(|file| now.contains(*file)).count() <= lanes, "{now:?}");
    server.kill();
    let server = place.start();
    all_identical(&V1::connect(&server).await, &kept).await;
    assert_eq!(payloadctl(&server, &["scrub"]).status.code(), Some(0));
}

#[tokio::test]
async fn given_dead_space_in_files_that_are_not_worth_emptying_when_an_allocation_needs_it_then_it_is_granted_in_time()
 {
    let place = place();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let (mut kept, mut dead) = (Vec::new(), 0);
    // Half of the disk, and a sixth of each file dies: nothing is emptied for that as long as nobody wants it.
    for seed in [30, 31] {
        for (number, one) in stored(&v1, seed, [100_000; 260]).await.into_iter().enumerate() {
            if number % 6 > 0 {
                kept.push(one);
                continue;
            }
            v1.delete(&one.id, false).await.expect("deleted");
            dead += ByteCount(one.bytes.len() as u64).in_pages().0;
        }
    }
    let now = disk(&v1).await;
    let free = now.capacity_bytes - now.allocated_bytes;
    assert!(free > now.capacity_bytes / 3, "it is not full: {now:?}");
    let live: u64 = kept.iter().map(|one| ByteCount(one.bytes.len() as u64).in_pages().0).sum();
    assert!(now.allocated_bytes >= live + dead * 3 / 4, "{dead} are dead and not free: {now:?}");
    let size = free + dead / 2;
    let granted = v1.catalog().allocate_payload(within(20_000, allocation(DISK, size))).await;
    let granted = granted.expect("granted in time").into_inner().payload_descriptor.expect("one");
    assert_eq!(v1.path(&granted).metadata().expect("there").len(), size);
    assert!(held_bytes(&place) <= CAPACITY, "{} bytes are on the disk", held_bytes(&place));
    all_identical(&v1, &kept).await;
    // Who wants more than there is waits in vain, and leaves what there is alone.
    let refusal = v1.catalog().allocate_payload(within(300, allocation(DISK, dead))).await;
    refused(refusal.map(tonic::Response::into_inner), Code::ResourceExhausted, &["DISK", "free"]);
    all_identical(&v1, &kept).await;
    server.stop();
}

#[tokio::test]
async fn given_a_leased_payload_when_compacted_then_the_lease_reads_its_old_place_until_it_ends() {
    let place = place();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let client = Client::connect_grpc(&server.address).await.expect("it answers");
    let mut all = stored(&v1, 8, [200_000; 80]).await;
    let leased = all.remove(5);
    let lease = client.acquire(uuid(&leased.id), &AcquireOptions::default()).await.expect("leased");
    let (old, offset) = place_of(&v1, &leased.id).await;
    for one in &all {
        v1.delete(&one.id, false).await.expect("deleted");
    }
    let new = eventually("it is moved under the lease", async || {
        Some(place_of(&v1, &leased.id).await).filter(|(path, _)| *path != old)
    })
    .await;
    assert_ne!(new, (old.clone(), offset));
    // Disk is wanted: nothing may be written where the lease reads.
    let more = stored(&v1, 9, [200_000; 200]).await;
    assert!(*lease == leased.bytes, "the old place");
    assert!(v1.bytes_in_place(&leased.id).await == (DISK, leased.bytes.clone()), "the new one");
    let mut seen = vec![0; leased.bytes.len()];
    File::open(&old).and_then(|file| file.read_exact_at(&mut seen, offset)).expect("its file is still there");
    assert!(seen == leased.bytes);
    lease.release().await.expect("released");
    eventually("its file is used again under another name, or gone", async || {
        (!segments(&place).contains(&old)).then_some(())
    })
    .await;
    assert!(v1.bytes_in_place(&leased.id).await == (DISK, leased.bytes.clone()));
    all_identical(&v1, &more).await;
}

#[tokio::test]
async fn given_a_damaged_payload_when_all_around_it_dies_then_its_file_is_used_again_and_it_stays_data_loss()
{
    let place = place();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let mut all = stored(&v1, 21, [200_000; 80]).await;
    let Stored { id: lost, bytes: mut rotten } = all.remove(5);
    let (old, offset) = place_of(&v1, &lost).await;
    flip(&old, offset + 100_000);
    rotten[100_000] ^= 0x10;
    assert_eq!(payloadctl(&server, &["scrub"]).status.code(), Some(1));
    refused(v1.acquire(acquisition(&lost)).await, Code::DataLoss, &["anew"]);
    for one in &all {
        v1.delete(&one.id, false).await.expect("deleted");
    }
    eventually("it is moved out of the way", async || (!segments(&place).contains(&old)).then_some(())).await;
    refused(v1.acquire(acquisition(&lost)).await, Code::DataLoss, &["anew"]);
    server.kill();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    refused(v1.acquire(acquisition(&lost)).await, Code::DataLoss, &["anew"]);
    let told = payloadctl(&server, &["explain", &uuid(&lost).to_string()]);
    let copy = &objects(&told)[0]["replicas"][0];
    let (path, offset) = (copy["place"].as_str().expect("text"), copy["offset_bytes"].as_u64());
    let mut left = vec![0; rotten.len()];
    File::open(path).and_then(|file| file.read_exact_at(&mut left, offset.expect("packed"))).expect("there");
    assert!(left == rotten, "whoever wants to save what is left of it finds it as it was");
    v1.delete(&lost, false).await.expect("deleted");
}

#[tokio::test]
async fn given_a_file_that_is_kept_open_beyond_its_lease_when_all_in_it_died_then_it_is_not_written_again() {
    let place = place();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let all = stored(&v1, 10, [200_000; 60]).await;
    let (path, offset) = place_of(&v1, &all[3].id).await;
    let kept = File::open(&path).expect("readable");
    for one in &all {
        v1.delete(&one.id, false).await.expect("deleted");
    }
    let more = stored(&v1, 11, [200_000; 200]).await;
    let mut seen = vec![0; all[3].bytes.len()];
    kept.read_exact_at(&mut seen, offset).expect("readable");
    assert!(seen == all[3].bytes, "bytes that somebody has open were written over");
    drop(kept);
    eventually("the file is used again under another name, or gone", async || {
        (!segments(&place).contains(&path)).then_some(())
    })
    .await;
    all_identical(&v1, &more).await;
}

#[tokio::test]
async fn given_a_lowered_capacity_when_restarted_then_what_is_there_stays_and_new_files_have_the_new_size() {
    let mut place = place().with("STORAGE__DISK__CAPACITY_BYTES", &(4 * CAPACITY).to_string());
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let mut all = stored(&v1, 12, [300_000; 150]).await;
    server.kill();
    // Half: other sizes. A quarter less a byte: nothing more is packed.
    for capacity in [2 * CAPACITY, CAPACITY, CAPACITY - PAGE_BYTES] {
        place.set("STORAGE__DISK__CAPACITY_BYTES", &capacity.to_string());
        let server = place.start();
        let v1 = V1::connect(&server).await;
        all_identical(&v1, &all).await;
        for gone in all.drain(..40) {
            v1.delete(&gone.id, false).await.expect("deleted");
        }
        all.extend(stored(&v1, 12 + capacity, [10_000; 10]).await);
        all_identical(&v1, &all).await;
        // Too small a disk packs nothing; a smaller one may have to, until files of the old size were emptied.
        assert!(capacity >= CAPACITY || !own_files(&place).is_empty(), "{:?}", segments(&place));
        assert_eq!(payloadctl(&server, &["scrub"]).status.code(), Some(0));
        server.kill();
    }
    place.set("STORAGE__DISK__CAPACITY_BYTES", &(2 * CAPACITY).to_string());
    let server = place.start();
    let v1 = V1::connect(&server).await;
    all_identical(&v1, &all).await;
    for one in &all {
        v1.delete(&one.id, false).await.expect("deleted");
    }
    eventually("all of it is given back, whatever its size", async || {
        (own_files(&place).is_empty() && segments(&place).len() <= files_kept(geometry(2 * CAPACITY)))
            .then_some(())
    })
    .await;
    server.stop();
}

#[tokio::test]
async fn given_a_full_disk_of_packed_payloads_when_more_comes_then_refused_within_the_capacity_and_room_after_deletes()
 {
    let place = place().with("LIMITS__ALLOCATE_WAIT", "500ms");
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let configured = disk(&v1).await;
    assert_eq!(configured.capacity_bytes + configured.overhead_bytes, CAPACITY);
    assert_eq!(configured.capacity_bytes, geometry(CAPACITY).usable().0);
    let all = filled(&v1, &place).await;
    let stored_bytes = all.len() as u64 * 901_120;
    assert!(
        stored_bytes > configured.capacity_bytes / 100 * 95,
        "{stored_bytes} of {}",
        configured.capacity_bytes
    );
    all_identical(&v1, &all).await;
    for (number, one) in all.iter().enumerate().filter(|(number, _)| number % 2 == 0) {
        v1.delete(&one.id, false).await.unwrap_or_else(|error| panic!("{number}: {error}"));
    }
    let kept: Vec<Stored> = all.into_iter().skip(1).step_by(2).collect();
    // Half of what was stored fits again, though every file holds living payloads.
    let mut more = Vec::new();
    for seed in 0..kept.len() as u64 - 4 {
        let bytes = content(1_000 + seed, 900_000);
        let payload = id(&v1.put(RAM, &bytes).await);
        spilled(v1.spill_to(&payload, DISK).await, DISK);
        assert!(held_bytes(&place) <= CAPACITY, "{} bytes are on the disk", held_bytes(&place));
        more.push(Stored { id: payload, bytes });
    }
    all_identical(&v1, &kept).await;
    all_identical(&v1, &more).await;
}

#[tokio::test]
async fn given_packing_off_when_spilled_then_each_payload_has_its_own_file() {
    let place = place().with("STORAGE__DISK__PACKING", "off");
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let all = stored(&v1, 13, [10_000; 20]).await;
    assert_eq!((own_files(&place).len(), segments(&place).len()), (20, 0));
    assert_eq!(disk(&v1).await.capacity_bytes, CAPACITY, "there is nothing to keep back");
    all_identical(&v1, &all).await;
}

#[tokio::test]
async fn given_clients_that_set_lengths_when_they_lease_packed_payloads_then_they_get_files_of_their_own_and_all_stay_whole()
 {
    let place = place();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let all = stored(&v1, 14, (1..=40).map(|number| number * 777)).await;
    assert_eq!(own_files(&place), Vec::<PathBuf>::new(), "whoever runs the server, and whatever the mode");
    // Each opens read-write, sets the length to offset + length, and maps: one reads, the other keeps it.
    let (mut reader, mut holder) = (Peer::start(&server), Peer::start(&server));
    let copied: Vec<&Stored> = all.iter().step_by(3).collect();
    for Stored { id, bytes } in &copied {
        let before = v1.resolve(id).await.expect("known");
        let (packed, offset) = place_of(&v1, id).await;
        assert!(segments(&place).contains(&packed), "{packed:?}");
        let in_place = rt::AcquireReadLeaseRequest { accepts_packed: true, ..acquisition(id) };
        let lease = v1.acquire(in_place).await.expect("leased");
        assert_eq!(reader.ask_bytes("read", id), answer(DISK, bytes));
        assert_eq!(holder.ask_bytes("hold", id), answer(DISK, bytes));
        let (own, start) = place_of(&v1, id).await;
        assert!(own_files(&place).contains(&own) && start == 0, "{own:?}");
        assert!(v1.resolve(id).await.expect("known").version > before.version);
        // Who leased it before goes on reading there.
        let mut seen = vec![0; bytes.len()];
        File::open(&packed)
            .and_then(|file| file.read_exact_at(&mut seen, offset))
            .expect("it is still there");
        assert!(seen == *bytes, "{}", uuid(id));
        v1.release(&lease).await.expect("released");
    }
    assert_eq!(own_files(&place).len(), copied.len(), "one copy each, however many lease it");
    all_identical(&v1, &all).await;
    assert_eq!(payloadctl(&server, &["scrub"]).status.code(), Some(0));
    server.kill();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    all_identical(&v1, &all).await;
    for Stored { id, bytes } in &copied {
        assert!(v1.bytes(id).await == (DISK, bytes.clone()), "{}", uuid(id));
    }
    assert_eq!(own_files(&place).len(), copied.len(), "they were there already");
    // A copy in memory is shown as ever, whatever lies beneath.
    for Stored { id, bytes } in [copied[0], &all[1]] {
        v1.promote_to(id, RAM).await.expect("promoted");
        assert!(v1.bytes(id).await == (RAM, bytes.clone()), "{}", uuid(id));
    }
    assert_eq!(own_files(&place).len(), copied.len());
    server.stop();
}

#[tokio::test]
async fn given_a_full_disk_when_a_client_that_sets_lengths_comes_then_refused_with_what_fills_it_until_there_is_room()
 {
    let place = place();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let all = filled(&v1, &place).await;
    let (wanted, other) = (&all[0], &all[1]);
    let refusal = v1.data().acquire_read_lease(within(300, acquisition(&wanted.id))).await;
    refused(refusal, Code::ResourceExhausted, &["accepts_packed", "DISK", "allocated", "free"]);
    assert!(v1.bytes_in_place(&wanted.id).await == (DISK, wanted.bytes.clone()), "it is where it was");
    for gone in &all[2..12] {
        v1.delete(&gone.id, false).await.expect("deleted");
    }
    assert!(v1.bytes(&wanted.id).await == (DISK, wanted.bytes.clone()), "there is room now");
    assert!(held_bytes(&place) <= CAPACITY, "{} bytes are on the disk", held_bytes(&place));
    assert!(v1.bytes_in_place(&other.id).await == (DISK, other.bytes.clone()));
}
