//! The GPU tier, end to end, on devices played in host memory (`gpu_server`): real processes share "device memory" by its handle.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use payload_tests::server::{Place, Server, eventually, objects, payloadctl, program};
use payload_tests::v1::{
    DISK, GPU, OBJECT, RAM, V1, acquisition, allocation, content, id, promotion, refused, spilled, within,
};
use payload_wire::pb::core::v1 as core;
use payload_wire::pb::core::v1::PayloadState;
use payload_wire::pb::core::v1::payload_descriptor::Location;
use payload_wire::pb::runtime::v1 as rt;
use tonic::Code;
use xxhash_rust::xxh3::xxh3_64;

const MIB: usize = 1 << 20;

/// One device of 16 MiB.
fn place() -> Place {
    Place::new()
        .with_program("gpu_server")
        .with("STORAGE__GPU__DEVICES__0__DEVICE_ID", "1")
        .with("STORAGE__GPU__DEVICES__0__CAPACITY_BYTES", "16MiB")
        .with("STORAGE__DISK__CAPACITY_BYTES", "256MiB")
}

fn gpu(descriptor: &core::PayloadDescriptor) -> &core::GpuLocation {
    match descriptor.location.as_ref().expect("a location") {
        Location::Gpu(gpu) => gpu,
        other => panic!("not on a device: {other:?}"),
    }
}

/// A second process, which is a client of the contract.
struct Peer(Child, ChildStdin, BufReader<ChildStdout>);

impl Peer {
    fn start(server: &Server) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_peer"))
            .arg(&server.address)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a second process");
        let (to, from) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        Self(child, to, BufReader::new(from))
    }

    fn ask(&mut self, task: &str) -> String {
        writeln!(self.1, "{task}").expect("it listens");
        let mut answer = String::new();
        self.2.read_line(&mut answer).expect("it answers");
        answer.trim().to_owned()
    }

    fn kill(mut self) {
        self.0.kill().expect("our child");
        self.0.wait().expect("it ends");
    }
}

fn name(id: &core::PayloadId) -> String {
    id.value.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn said(tier: i32, bytes: &[u8]) -> String {
    format!("{tier} {} {:016x}", bytes.len(), xxh3_64(bytes))
}

#[tokio::test]
async fn given_two_processes_when_one_writes_device_memory_then_the_other_reads_it_and_all_tiers_give_it_back()
 {
    let place = place();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let bytes = content(1, 5 * MIB + 123);
    let allocated = v1.allocated(GPU, bytes.len() as u64).await;
    let shown = gpu(&allocated);
    assert_eq!((shown.device_id, shown.length_bytes), (1, bytes.len() as u64));
    assert_eq!((shown.ipc_handle.len(), shown.device_uuid.len(), shown.arena_id), (72, 16, 0));
    assert!(shown.generation > 0 && shown.allocation_bytes == shown.length_bytes);
    assert_eq!((allocated.state(), allocated.version), (PayloadState::Allocated, 1));
    let key = id(&allocated);
    let mut memory = v1.map(&allocated);
    assert!(memory.iter().all(|byte| *byte == 0), "what another program left there is nobody's business");
    memory.copy_from_slice(&bytes);
    let committed = v1.commit(&key).await.expect("committed");
    assert_eq!((committed.state(), committed.tier), (PayloadState::Active, GPU));
    let mut reader = Peer::start(&server);
    assert_eq!(reader.ask(&format!("read {}", name(&key))), said(GPU, &bytes));
    for tier in [RAM, DISK] {
        assert_eq!(spilled(v1.spill_to(&key, tier).await, tier).tier, tier);
        assert_eq!(v1.bytes_in_place(&key).await, (tier, bytes.clone()));
        let faster = rt::AcquireReadLeaseRequest { min_tier: GPU, ..acquisition(&key) };
        let lease = v1.acquire(faster).await.expect("promoted and leased");
        let descriptor = lease.payload_descriptor.as_ref().expect("one");
        assert_ne!(gpu(descriptor).generation, shown.generation, "another replica");
        assert_eq!(v1.look(descriptor), bytes);
        assert_eq!(descriptor.checksum_xxh3_64, Some(xxh3_64(&bytes)));
        v1.release(&lease).await.expect("released");
        assert_eq!(reader.ask(&format!("read {}", name(&key))), said(GPU, &bytes));
    }
    assert_eq!(v1.resolve(&key).await.expect("there").state(), PayloadState::Durable);
    let stats = v1.stats().await.expect("figures");
    assert_eq!((stats.payloads_gpu, stats.bytes_gpu), (1, bytes.len() as u64));
    let tier = stats.tiers.iter().find(|tier| tier.tier == GPU).expect("a row of its own");
    assert_eq!(tier.capacity_bytes, 16 << 20);
    let rows = objects(&payloadctl(&server, &["stat", &name(&key)]));
    assert_eq!(rows[0]["gpu"]["device_id"], 1);
    v1.delete(&key, false).await.expect("deleted");
    let empty = async || v1.stats().await.ok()?.tiers.iter().find(|tier| tier.tier == GPU).cloned();
    eventually("its memory is free", async || empty().await.filter(|tier| tier.allocated_bytes == 0)).await;
}

#[tokio::test]
async fn given_a_lease_of_device_memory_when_deleted_by_force_or_spilled_then_it_is_readable_until_released()
{
    let place = place();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let bytes = content(2, 8 * MIB);
    let key = id(&v1.put(GPU, &bytes).await);
    let lease = v1.lease(&key).await.expect("leased");
    let descriptor = lease.payload_descriptor.as_ref().expect("one");
    refused(v1.delete(&key, false).await, Code::Aborted, &["leases are held"]);
    v1.delete(&key, true).await.expect("deleted");
    assert_eq!(v1.look(descriptor), bytes, "still there");
    // The other half of the device is free, and this one is not.
    let half = v1.allocated(GPU, 8 * MIB as u64).await;
    let full = v1.catalog().allocate_payload(within(500, allocation(GPU, 8 * MIB as u64))).await;
    refused(full, Code::ResourceExhausted, &["GPU", "dropped but still open"]);
    v1.release(&lease).await.expect("released");
    let next = v1.catalog().allocate_payload(within(30_000, allocation(GPU, 8 * MIB as u64))).await;
    next.expect("the release made room");
    v1.delete(&id(&half), false).await.expect("deleted");
}

#[tokio::test]
async fn given_more_than_a_device_holds_when_put_then_the_oldest_leave_it_and_no_byte_changes() {
    let place = place();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let mut all = Vec::new();
    for seed in 0..12 {
        let bytes = content(100 + seed, 3 * MIB);
        all.push((id(&v1.put(GPU, &bytes).await), bytes));
    }
    let mut tiers = Vec::new();
    for (key, bytes) in &all {
        let (tier, found) = v1.bytes_in_place(key).await;
        assert!(found == *bytes);
        tiers.push(tier);
    }
    assert!(tiers.contains(&GPU) && tiers.iter().any(|tier| *tier != GPU), "{tiers:?}");
    assert_ne!(tiers[0], GPU, "the oldest went first: {tiers:?}");
    // Promoting makes others leave again.
    let back = v1.promote_to(&all[0].0, GPU).await.expect("promoted");
    assert_eq!(v1.look(&back), all[0].1);
    let too_large = v1.allocate(allocation(GPU, 17 * MIB as u64)).await;
    refused(too_large, Code::ResourceExhausted, &["GPU", "16 MiB"]);
}

#[tokio::test]
async fn given_a_reader_or_writer_that_dies_when_its_time_is_over_then_its_device_memory_is_free() {
    let place = place().with("LEASES__MAX_LEASE", "1s").with("LEASES__DEFAULT_LEASE", "1s");
    let place = place.with("LEASES__ALLOCATION_TIMEOUT", "1s");
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let bytes = content(3, 4 * MIB);
    let key = id(&v1.put(GPU, &bytes).await);
    let mut reader = Peer::start(&server);
    assert_eq!(reader.ask(&format!("hold {}", name(&key))), said(GPU, &bytes));
    v1.allocated(GPU, 4 * MIB as u64).await;
    reader.kill();
    v1.delete(&key, true).await.expect("deleted");
    let used = async || {
        let stats = v1.stats().await.ok()?;
        stats.tiers.iter().find(|tier| tier.tier == GPU).map(|tier| tier.allocated_bytes)
    };
    eventually("both are free", async || used().await.filter(|bytes| *bytes == 0)).await;
}

#[tokio::test]
async fn given_a_server_that_is_killed_or_stopped_when_it_comes_back_then_device_memory_is_lost_or_spilled() {
    let place = place();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let bytes = content(4, 2 * MIB);
    let gone = id(&v1.put(GPU, &bytes).await);
    let in_segment = id(&v1.put(GPU, &bytes).await);
    spilled(v1.spill_to(&in_segment, RAM).await, RAM);
    let durable = id(&v1.put(DISK, &bytes).await);
    v1.promote_to(&durable, GPU).await.expect("promoted");
    server.kill();

    let server = place.start();
    let v1 = V1::connect(&server).await;
    refused(v1.resolve(&gone).await, Code::NotFound, &["LOST"]);
    assert_eq!(v1.bytes_in_place(&durable).await, (DISK, bytes.clone()));
    assert_eq!(v1.bytes(&in_segment).await, (RAM, bytes.clone()), "a segment outlives the server");
    let saved = id(&v1.put(GPU, &bytes).await);
    server.stop();

    let server = place.start();
    let v1 = V1::connect(&server).await;
    assert_eq!(v1.bytes_in_place(&saved).await, (DISK, bytes), "a graceful stop spills");
    server.stop();
}

#[tokio::test]
async fn given_a_device_that_is_lost_when_asked_then_what_is_elsewhere_serves_and_other_tiers_go_on() {
    let place = place();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let bytes = content(5, 2 * MIB);
    let alone = id(&v1.put(GPU, &bytes).await);
    let spilt = id(&v1.put(GPU, &bytes).await);
    let twice = id(&v1.put(DISK, &bytes).await);
    v1.promote_to(&twice, GPU).await.expect("promoted");
    File::create(place.path().join("gpu-lost")).expect("writable");
    let next = async || v1.catalog().allocate_payload(within(5_000, allocation(GPU, 4096))).await.err();
    let refusal = eventually("the loss is noticed", next).await;
    assert_eq!(refusal.code(), Code::Unavailable, "{refusal}");
    assert!(!v1.spill_to(&spilt, RAM).await.ok);
    refused(v1.lease(&alone).await, Code::DataLoss, &["no other replica is left"]);
    assert_eq!(v1.bytes_in_place(&twice).await, (DISK, bytes.clone()), "its file serves it");
    refused(v1.promote(promotion(&twice, GPU)).await, Code::Unavailable, &["GPU", "lost"]);
    for tier in [RAM, DISK] {
        let other = id(&v1.put(tier, &bytes).await);
        assert_eq!(v1.bytes_in_place(&other).await.1, bytes);
    }
    fs::remove_file(place.path().join("gpu-lost")).expect("there");
    server.stop();
}

#[tokio::test]
async fn given_a_device_without_memory_when_allocated_then_exhausted_and_later_it_works_again() {
    let place = place();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    File::create(place.path().join("gpu-out-of-memory")).expect("writable");
    let refusal = eventually("nothing can be made", async || {
        v1.catalog().allocate_payload(within(2_000, allocation(GPU, 4096))).await.err()
    })
    .await;
    assert_eq!(refusal.code(), Code::ResourceExhausted, "{refusal}");
    fs::remove_file(place.path().join("gpu-out-of-memory")).expect("there");
    let answer = async || v1.allocate(allocation(GPU, 4096)).await.ok();
    eventually("another program gave memory back", answer).await;
    assert_eq!(v1.put(RAM, &content(6, 4096)).await.tier, RAM);
}

#[tokio::test]
async fn given_a_configured_device_that_is_absent_when_started_then_a_warning_and_refusals_that_say_why() {
    // This one has no driver here, or not ninety-nine devices.
    let place = Place::new().with("STORAGE__GPU__DEVICES__0__DEVICE_ID", "99");
    let server = place.start();
    let v1 = V1::connect(&server).await;
    assert!(server.log().contains("GPU 99 is not used"), "{}", server.log());
    refused(v1.allocate(allocation(GPU, 64)).await, Code::FailedPrecondition, &["GPU 99", "doctor"]);
    let key = id(&v1.put(RAM, &content(7, 4096)).await);
    let faster = rt::AcquireReadLeaseRequest { min_tier: GPU, ..acquisition(&key) };
    refused(v1.acquire(faster).await, Code::FailedPrecondition, &["GPU 99"]);
    refused(v1.allocate(allocation(OBJECT, 64)).await, Code::FailedPrecondition, &["OBJECT"]);
    let mut doctor = Command::new(program("payload-manager"));
    doctor.arg("--data-dir").arg(place.path()).args(["doctor", "--json"]);
    doctor.env("PAYLOAD_MANAGER__STORAGE__GPU__DEVICES__0__DEVICE_ID", "99");
    let rows = String::from_utf8(doctor.output().expect("it runs").stdout).expect("text");
    assert!(
        rows.lines().any(|row| row.contains("\"check\":\"GPU\"") || row.contains("\"check\": \"GPU\"")),
        "{rows}"
    );
}
