//! Rotten bytes and failing disks on the real thing: a real server, real files, file systems that fill up and turn
//! read-only. What an operator sees of it (`payloadctl scrub`, `stats`), and that it recovers without a restart.

use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;

use payload_tests::server::{Place, Server, eventually, may_mount, objects, payloadctl};
use payload_tests::v1::{DISK, RAM, V1, allocation, content, id, refused, spill_refused, spilled};
use payload_types::PayloadId;
use payload_wire::pb::core::v1::PayloadId as Id;
use serde_json::Value;
use tonic::Code;

/// The root's state as `payloadctl stats` tells it.
fn disk(server: &Server) -> Value {
    objects(&payloadctl(server, &["stats"]))[0]["disk"].clone()
}

fn text_of(id: &Id) -> String {
    PayloadId::from_bytes(id.value.clone().try_into().expect("16 bytes")).to_string()
}

async fn path_of(v1: &V1, id: &Id) -> std::path::PathBuf {
    let seen = v1.resolve(id).await.expect("known");
    let Some(payload_wire::pb::core::v1::payload_descriptor::Location::Disk(disk)) = seen.location else {
        panic!("it is on disk: {seen:?}")
    };
    disk.path.into()
}

/// One bit of the committed file turns.
fn flip(path: &Path, offset: u64) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("ours");
    let file = fs::OpenOptions::new().read(true).write(true).open(path).expect("opened");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("read");
    file.write_all_at(&[byte[0] ^ 0x10], offset).expect("written");
}

#[tokio::test]
async fn given_one_flipped_bit_among_many_files_when_scrubbed_then_exactly_it_is_found_and_never_served() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let mut all = Vec::new();
    for seed in 0..20 {
        let payload = id(&v1.put(RAM, &content(seed, 100_000 + usize::from(seed as u8))).await);
        spilled(v1.spill_to(&payload, DISK).await, DISK);
        all.push(payload);
    }
    let sound = payloadctl(&server, &["scrub"]);
    assert_eq!(sound.status.code(), Some(0), "{sound:?}");
    let summary = &objects(&sound)[0];
    assert_eq!((&summary["checked"], &summary["findings"]), (&20.into(), &0.into()), "{summary}");

    flip(&path_of(&v1, &all[7]).await, 65_537);
    let found = payloadctl(&server, &["scrub", "--rate", "50MB/s"]);
    assert_eq!(found.status.code(), Some(1), "{found:?}");
    let lines = objects(&found);
    let [finding, summary] = &lines[..] else { panic!("one finding: {lines:?}") };
    assert_eq!(finding["id"], text_of(&all[7]));
    assert_eq!((&finding["what"], &finding["outcome"]), (&"corrupt".into(), &"data_loss".into()));
    assert_eq!(summary["checked"], 20, "the others are fine");
    refused(v1.acquire(payload_tests::v1::acquisition(&all[7])).await, Code::DataLoss, &["anew"]);
    assert_eq!(v1.bytes(&all[8]).await, (DISK, content(8, 100_008)));
    drop(server);
    let server = place.start();
    let v1 = V1::connect(&server).await;
    refused(v1.acquire(payload_tests::v1::acquisition(&all[7])).await, Code::DataLoss, &["anew"]);
    let one = payloadctl(&server, &["scrub", &text_of(&all[8])]);
    assert_eq!((one.status.code(), &objects(&one)[0]["checked"]), (Some(0), &1.into()));
}

#[tokio::test]
async fn given_a_flipped_bit_in_a_file_with_a_twin_in_memory_when_scrubbed_then_it_is_written_anew() {
    let place = Place::new();
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let bytes = content(3, 3_000_000);
    let payload = id(&v1.put(RAM, &bytes).await);
    spilled(v1.spill_to(&payload, DISK).await, DISK);
    let rotten = path_of(&v1, &payload).await;
    v1.promote_to(&payload, RAM).await.expect("promoted");
    flip(&rotten, 2_999_999);
    let found = payloadctl(&server, &["scrub", "--tier", "disk"]);
    assert_eq!(found.status.code(), Some(1), "{found:?}");
    assert_eq!(objects(&found)[0]["outcome"], "other_replica", "{found:?}");
    assert_eq!(v1.bytes(&payload).await, (RAM, bytes.clone()), "it stays where it was");
    spilled(v1.spill_to(&payload, DISK).await, DISK);
    assert_ne!(path_of(&v1, &payload).await, rotten, "another file");
    assert_eq!(v1.bytes(&payload).await, (DISK, bytes));
    assert_eq!(payloadctl(&server, &["scrub"]).status.code(), Some(0));
}

#[tokio::test]
async fn given_a_disk_that_fills_up_when_room_is_made_then_the_state_was_shown_and_ends_by_itself() {
    if !may_mount() {
        return;
    }
    let place = Place::new();
    let root = place.path().join("disk");
    let place = place.with_tmpfs(&root, "16m").with("STORAGE__DISK__CAPACITY_BYTES", "14MiB");
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let in_memory = id(&v1.put(RAM, &content(2, 4 << 20)).await);
    let filler = server.path(&root).join("somebody-elses-file");
    fs::write(&filler, vec![1; 13 << 20]).expect("written");
    spill_refused(&v1.spill_to(&in_memory, DISK).await, &["DISK"]);
    let state = disk(&server);
    assert_eq!((&state["state"], &state["writable"]), (&"full".into(), &false.into()), "{state}");
    assert!(state["error"].as_str().expect("text").contains("No space left"), "{state}");
    let small = id(&v1.put(DISK, &content(1, 5000)).await);
    assert_eq!(v1.bytes(&in_memory).await, (RAM, content(2, 4 << 20)));
    fs::remove_file(&filler).expect("removed");
    eventually("nobody writes, and the root is found to have room", async || {
        (disk(&server)["state"] == "healthy").then_some(())
    })
    .await;
    spilled(v1.spill_to(&in_memory, DISK).await, DISK);
    assert_eq!(v1.bytes(&in_memory).await, (DISK, content(2, 4 << 20)));
    assert_eq!(v1.bytes(&small).await, (DISK, content(1, 5000)));
}

/// An ext4 image on a loop device, mounted where the server keeps its files, in the server's own mount namespace.
struct Image<'server> {
    server: &'server Server,
    mounted_at: std::path::PathBuf,
}

impl<'server> Image<'server> {
    /// `None`, loudly, where this machine has no loop devices or no mkfs.ext4.
    fn mount(server: &'server Server, file: &Path, at: &Path) -> Option<Self> {
        let made = Command::new("sh")
            .arg("-c")
            .arg(format!("truncate -s 32M '{0}' && mkfs.ext4 -q -F '{0}'", file.display()))
            .status();
        let image = Self { server, mounted_at: at.to_owned() };
        let mounted = made.is_ok_and(|made| made.success())
            && image.run(&format!("mount -o loop '{}' '{}'", file.display(), at.display()));
        if !mounted {
            println!(
                "left out: the read-only remount needs mkfs.ext4 and a loop device, which are not to be had here"
            );
        }
        mounted.then_some(image)
    }

    fn remount(&self, how: &str) {
        assert!(
            self.run(&format!("mount -o remount,{how} '{}'", self.mounted_at.display())),
            "remount,{how}"
        );
    }

    fn run(&self, script: &str) -> bool {
        let pid = self.server.pid().to_string();
        let run = Command::new("nsenter").args(["-t", &pid, "-m", "sh", "-c", script]).status();
        run.is_ok_and(|status| status.success())
    }
}

#[tokio::test]
async fn given_a_file_system_remounted_read_only_when_written_again_then_typed_and_it_recovers_by_itself() {
    if !may_mount() {
        return;
    }
    let place = Place::new();
    // A namespace of its own comes with any mount; this one is for nothing else.
    let place = {
        let elsewhere = place.path().join("elsewhere");
        place.with_tmpfs(&elsewhere, "1m")
    };
    let server = place.start();
    // The intent log is open for writing as long as the server runs, and would keep its file system from being
    // remounted: the image holds the files only.
    let files = place.path().join("disk").join("payloads");
    let Some(image) = Image::mount(&server, &place.path().join("image.ext4"), &files) else { return };
    let v1 = V1::connect(&server).await;
    let in_memory = id(&v1.put(RAM, &content(1, 1 << 20)).await);
    let on_disk = id(&v1.put(DISK, &content(2, 1 << 20)).await);
    let written = v1.allocated(DISK, 9000).await;
    image.remount("ro");
    spill_refused(&v1.spill_to(&in_memory, DISK).await, &["DISK", "Read-only"]);
    let state = disk(&server);
    assert_eq!((&state["state"], &state["writable"]), (&"read_only".into(), &false.into()), "{state}");
    refused(v1.allocate(allocation(DISK, 5000)).await, Code::Unavailable, &["DISK"]);
    refused(v1.commit(&id(&written)).await, Code::Unavailable, &["still ALLOCATED"]);
    assert_eq!(v1.bytes(&in_memory).await, (RAM, content(1, 1 << 20)));
    assert_eq!(v1.promote_to(&on_disk, RAM).await.expect("reads go on").tier, RAM);
    assert_eq!(v1.bytes(&on_disk).await, (RAM, content(2, 1 << 20)));
    image.remount("rw");
    eventually("the root is tried again and works", async || {
        (disk(&server)["state"] == "healthy").then_some(())
    })
    .await;
    spilled(v1.spill_to(&in_memory, DISK).await, DISK);
    assert_eq!(v1.bytes(&in_memory).await, (DISK, content(1, 1 << 20)));
    v1.commit(&id(&written)).await.expect("committed at last");
    let log = server.log();
    assert_eq!(
        log.matches("the disk root fails").count(),
        1,
        "logged at the change, not at each write: {log}"
    );
}
