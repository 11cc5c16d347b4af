//! `payloadctl` against a real server, as a person or a script uses it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use payload_tests::server::{Place, Server, ended, eventually, objects, program};
use payload_tests::sys::{self, Signal};
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64;

const UNKNOWN: &str = "0190a0b1-c2d3-7e4f-8a5b-6c7d8e9fa0b1";

/// `payloadctl` that asks this server.
struct Ctl(String);

impl Ctl {
    fn of(server: &Server) -> Self {
        Self(server.address.clone())
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program("payloadctl"));
        command.args(args).env("PAYLOAD_MANAGER_ADDR", &self.0);
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        ended(self.command(args))
    }

    /// Runs with --json and gives the objects; everything must have been done.
    #[track_caller]
    fn json(&self, args: &[&str]) -> Vec<Value> {
        let output = self.run(&[args, &["--json"]].concat());
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        assert!(output.stderr.is_empty(), "{args:?}: {}", text(&output.stderr));
        objects(&output)
    }

    /// Runs what must fail: with 1, and one sentence on stderr for each failure, which is returned.
    #[track_caller]
    fn fails(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {}", text(&output.stderr));
        let said = text(&output.stderr);
        assert!(said.lines().all(|line| line.starts_with("payloadctl: ")), "{said}");
        assert_eq!(said.lines().count(), 1, "one sentence: {said}");
        said
    }

    #[track_caller]
    fn put(&self, path: &Path, flags: &[&str]) -> String {
        let objects = self.json(&[&["put", path.to_str().expect("text")], flags].concat());
        assert_eq!(objects.len(), 1);
        string(&objects[0], "id")
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

#[track_caller]
fn string(object: &Value, field: &str) -> String {
    object[field].as_str().unwrap_or_else(|| panic!("`{field}` in {object}")).to_owned()
}

/// Real files: this repository's own documents and contract.
fn repository() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in it").to_owned();
    ["docs", "proto/payload"].into_iter().map(|name| root.join(name)).filter(|path| path.is_dir()).collect()
}

fn files_below(directory: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs::read_dir(directory).expect("readable").flatten() {
        if entry.path().is_dir() {
            files_below(&entry.path(), found);
        } else {
            let bytes = fs::read(entry.path()).expect("readable");
            found.insert(entry.path().to_str().expect("text").to_owned(), bytes);
        }
    }
}

#[test]
fn given_a_directory_of_real_files_when_put_spilled_restarted_and_promoted_then_they_come_back_identical() {
    let place = Place::new();
    let server = place.start();
    let ctl = Ctl::of(&server);
    let directories = repository();
    let mut files = BTreeMap::new();
    directories.iter().for_each(|directory| files_below(directory, &mut files));
    files.retain(|_, bytes| !bytes.is_empty());
    assert!(files.len() > 10, "real files: {}", files.len());
    let names: Vec<&str> = directories.iter().map(|path| path.to_str().expect("text")).collect();

    let put = ctl.json(&[&["put", "-r"], names.as_slice()].concat());
    assert_eq!(put.len(), files.len());
    let mut ids = BTreeMap::new();
    for object in &put {
        let path = string(object, "path");
        let bytes = files.get(&path).unwrap_or_else(|| panic!("{path} was asked for"));
        assert_eq!(object["size_bytes"], bytes.len());
        assert_eq!((string(object, "tier"), string(object, "state")), ("ram".into(), "active".into()));
        assert!(object["version"].as_u64().is_some_and(|version| version > 1));
        assert_eq!(string(object, "checksum"), format!("{:016x}", xxh3_64(bytes)));
        ids.insert(string(object, "id"), path);
    }
    assert_eq!(ids.len(), files.len());
    let listed = ctl.json(&["ls"]);
    assert_eq!(
        listed.iter().map(|row| string(row, "id")).collect::<std::collections::BTreeSet<_>>().len(),
        ids.len()
    );
    assert!(
        listed
            .iter()
            .all(|row| row["state"] == "active" && row["active_leases"] == 0 && row["expires_at_ms"] == 0)
    );

    let all: Vec<&str> = ids.keys().map(String::as_str).collect();
    let spilled = ctl.json(&[&["spill", "--fsync"], all.as_slice()].concat());
    assert_eq!(spilled.iter().map(|row| string(row, "id")).collect::<Vec<_>>(), all, "in the order asked");
    assert!(spilled.iter().all(|row| row["tier"] == "disk" && row["state"] == "durable"));
    server.kill();
    let server = place.start();
    let ctl = Ctl::of(&server);
    let promoted = ctl.json(&[&["promote"], all.as_slice(), &["ram"]].concat());
    assert!(
        promoted.len() == all.len()
            && promoted.iter().all(|row| row["tier"] == "ram" && row["state"] == "durable")
    );

    let back = place.path().join("back");
    fs::create_dir(&back).expect("made");
    let got = ctl.json(&[&["get", "-o", back.to_str().expect("text")], all.as_slice()].concat());
    assert_eq!(got.len(), all.len());
    for (id, path) in &ids {
        assert!(fs::read(back.join(id)).expect("fetched") == files[path], "{path} comes back identical");
    }
    let stats = &ctl.json(&["stats"])[0];
    assert_eq!(stats["payloads_ram"], all.len());
    assert_eq!(stats["payloads_disk"], 0);
    let total: usize = files.values().map(Vec::len).sum();
    assert_eq!(
        (stats["bytes_ram"].as_u64(), stats["bytes_disk"].as_u64()),
        (Some(total as u64), Some(total as u64))
    );
    server.stop();
}

#[test]
fn given_several_files_of_which_some_cannot_be_put_when_put_then_those_are_named_and_the_rest_is_stored() {
    let place = Place::new();
    let server = place.start();
    let ctl = Ctl::of(&server);
    let file = |name: &str, bytes: &[u8]| {
        let path = place.path().join(name);
        fs::write(&path, bytes).expect("written");
        path.to_str().expect("text").to_owned()
    };
    let (first, empty, last) = (file("first", b"1"), file("empty", b""), file("with a space", b"333"));
    let absent = place.path().join("absent").to_str().expect("text").to_owned();
    let output = ctl.run(&["put", &first, &empty, &absent, &last, "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let stored = objects(&output);
    assert_eq!(
        stored.iter().map(|object| string(object, "path")).collect::<Vec<_>>(),
        [first.as_str(), &last]
    );
    let said = text(&output.stderr);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 2, "{said}");
    assert!(lines[0].contains(&empty) && lines[0].contains("empty"), "{said}");
    assert!(lines[1].contains(&absent) && lines[1].contains("No such file"), "{said}");
    assert_eq!(ctl.json(&["ls"]).len(), 2, "nothing of the others is left");

    let directory = place.path().to_str().expect("text");
    assert!(ctl.fails(&["put", directory]).contains("-r"));
    let big = file("big", &[7; 100]);
    fs::File::options().write(true).open(&big).and_then(|file| file.set_len(65 << 20)).expect("sparse");
    let said = ctl.fails(&["put", &big]);
    assert!(said.contains("big") && said.contains("64 MiB"), "{said}");
    assert!(ctl.fails(&["put", &first, "--tier", "gpu"]).contains("GPU"));
}

#[test]
fn given_flags_of_a_payload_when_put_then_stat_shows_them() {
    let place = Place::new();
    let server = place.start();
    let ctl = Ctl::of(&server);
    let file = place.path().join("file");
    fs::write(&file, b"some bytes").expect("written");
    let id = ctl.put(&file, &["--tier", "disk", "--ttl", "1h", "--spill-target", "void"]);
    let kept = ctl.put(&file, &["--no-evict", "--ttl", "1h"]);
    let shown = ctl.json(&["stat", &id, &kept]);
    let (disk, ram) = (&shown[0], &shown[1]);
    for field in [
        "id",
        "size_bytes",
        "tier",
        "state",
        "version",
        "checksum",
        "created_at",
        "expires_at",
        "eviction_policy",
    ] {
        assert!(!disk[field].is_null(), "{field} in {disk}");
    }
    assert_eq!(
        (string(disk, "id"), string(disk, "tier"), string(disk, "state")),
        (id.clone(), "disk".into(), "durable".into())
    );
    assert_eq!(disk["eviction_policy"]["spill_target"], "void");
    assert_eq!(
        (disk["disk"]["offset_bytes"].as_u64(), disk["disk"]["length_bytes"].as_u64()),
        (Some(0), Some(10))
    );
    assert_eq!(fs::read(string(&disk["disk"], "path")).expect("where it says"), b"some bytes");
    assert!(
        string(disk, "created_at").ends_with('Z') && string(disk, "expires_at") > string(disk, "created_at")
    );
    assert!(ram["expires_at"].is_null(), "no_evict has no expiry");
    let segment = string(&ram["ram"], "shm_name");
    assert_eq!(fs::read(format!("/dev/shm{segment}")).expect("where it says"), b"some bytes");
    // For people: the same, as names and values.
    let table = text(&ctl.run(&["stat", &id]).stdout);
    assert!(table.contains(&id) && table.contains("durable") && table.contains("10 B"), "{table}");
    let result = &ctl.json(&["spill", &id])[0];
    assert_eq!(
        (string(result, "id"), string(result, "state")),
        (id, "deleted".into()),
        "its spill target is void"
    );
}

#[test]
fn given_payloads_when_written_out_then_cat_and_get_give_their_bytes_and_replace_only_whole_files() {
    let place = Place::new();
    let server = place.start();
    let ctl = Ctl::of(&server);
    let bytes = payload_tests::v1::content(1, 3_000_001);
    let (file, short) = (place.path().join("file"), place.path().join("short"));
    fs::write(&file, &bytes).expect("written");
    fs::write(&short, b"short\n").expect("written");
    let (id, other) = (ctl.put(&file, &[]), ctl.put(&short, &["--tier", "disk"]));
    let cat = ctl.run(&["cat", &other, &id]);
    assert!(cat.status.success());
    assert!(cat.stdout == [b"short\n", bytes.as_slice()].concat(), "one after the other");
    let target = place.path().join("target");
    fs::write(&target, b"old").expect("written");
    let target = target.to_str().expect("text");
    assert!(ctl.fails(&["get", UNKNOWN, "-o", target]).contains(UNKNOWN));
    assert_eq!(fs::read(target).expect("there"), b"old");
    let got = &ctl.json(&["get", &id, "-o", target])[0];
    assert_eq!((string(got, "path"), string(got, "id")), (target.to_owned(), id.clone()));
    assert!(fs::read(target).expect("there") == bytes, "overwritten");
    let here = ended({
        let mut command = ctl.command(&["get", &other]);
        command.current_dir(place.path());
        command
    });
    assert!(here.status.success());
    assert_eq!(fs::read(place.path().join(&other)).expect("named by its id"), b"short\n");
    assert!(ctl.fails(&["get", &id, &other, "-o", target]).contains("directory"));
}

#[test]
fn given_space_allocated_by_hand_when_written_and_committed_then_it_is_a_payload() {
    let place = Place::new();
    let server = place.start();
    let ctl = Ctl::of(&server);
    let allocated = &ctl.json(&["allocate", "4KiB", "--tier", "disk"])[0];
    let (id, path) = (string(allocated, "id"), string(&allocated["disk"], "path"));
    assert_eq!(
        (string(allocated, "state"), allocated["size_bytes"].as_u64()),
        ("allocated".into(), Some(4096))
    );
    assert!(ctl.fails(&["cat", &id]).contains("ALLOCATED"));
    let bytes = payload_tests::v1::content(2, 4096);
    fs::write(&path, &bytes).expect("in place");
    let wrong = "0123456789abcdef";
    let sum = format!("{:016x}", xxh3_64(&bytes));
    let committed = &ctl.json(&["commit", &id, "--checksum", &sum])[0];
    assert_eq!((string(committed, "state"), string(committed, "checksum")), ("durable".into(), sum));
    assert!(ctl.run(&["cat", &id]).stdout == bytes);
    assert!(ctl.fails(&["commit", &id]).contains("committed"));
    let second = &ctl.json(&["allocate", "1MB", "--ttl", "10m"])[0];
    assert_eq!(second["size_bytes"], 1_000_000);
    assert!(string(&second["ram"], "shm_name").starts_with('/'));
    // A wrong checksum is found at the first copy at the latest, and never served.
    let second = string(second, "id");
    if ctl.run(&["commit", &second, "--checksum", wrong]).status.success() {
        let said = ctl.fails(&["spill", &second]);
        assert!(said.contains(&second), "{said}");
    }
    assert!(ctl.fails(&["allocate", "0"]).contains("at least 1"));
    assert!(ctl.fails(&["allocate", "129GiB"]).contains("128 GiB"));
}

#[test]
fn given_leases_when_held_and_released_then_rm_and_spill_see_them() {
    let place = Place::new();
    let server = place.start();
    let ctl = Ctl::of(&server);
    let file = place.path().join("file");
    fs::write(&file, b"leased").expect("written");
    let id = ctl.put(&file, &[]);
    let lease = &ctl.json(&["lease", &id])[0];
    let lease_id = string(lease, "lease_id");
    assert!(string(lease, "lease_expires_at").ends_with('Z'));
    assert_eq!((string(lease, "id"), string(lease, "tier")), (id.clone(), "ram".into()));
    assert!(ctl.fails(&["rm", &id]).contains("force"));
    assert!(ctl.fails(&["spill", &id]).contains("leased"));
    let released = &ctl.json(&["release", &lease_id, &lease_id])[1];
    assert_eq!(string(released, "lease_id"), lease_id, "twice is fine");
    // --hold shows the lease at once, keeps it, and lets it go when it is interrupted.
    let mut holder = ctl
        .command(&["lease", &id, "--hold", "100s", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("runs");
    let mut line = String::new();
    BufReader::new(holder.stdout.take().expect("piped"))
        .read_line(&mut line)
        .expect("shown while it is held");
    assert_eq!(string(&serde_json::from_str(&line).expect("an object"), "id"), id);
    assert_eq!(ctl.json(&["ls"])[0]["active_leases"], 1);
    assert!(ctl.fails(&["rm", &id]).contains("lease"));
    sys::signal(holder.id(), Signal::Term).expect("it runs");
    holder.wait().expect("ended");
    let short = ctl.run(&["lease", &id, "--hold", "10ms"]);
    assert!(short.status.success(), "{}", text(&short.stderr));
    ctl.json(&["rm", "--force", &id]);
    assert!(ctl.fails(&["stat", &id]).contains(&id));
}

#[test]
fn given_pins_and_moves_when_asked_for_then_each_says_what_became_of_it() {
    let place = Place::new();
    let server = place.start();
    let ctl = Ctl::of(&server);
    let file = place.path().join("file");
    fs::write(&file, b"moved about").expect("written");
    let (id, other) = (ctl.put(&file, &[]), ctl.put(&file, &[]));
    let pinned = ctl.json(&["pin", &id, &other, "--for", "10m"]);
    assert_eq!((string(&pinned[0], "id"), string(&pinned[0], "result")), (id.clone(), "pinned".into()));
    assert!(ctl.fails(&["spill", &id, "--to", "disk"]).contains("pinned"));
    ctl.json(&["unpin", &id]);
    // One of two fails: the other is done, and the exit code tells.
    let output = ctl.run(&["spill", &other, &id, "--to", "disk", "--wait", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains(&other));
    assert_eq!(
        objects(&output).iter().map(|row| string(row, "id")).collect::<Vec<_>>(),
        std::slice::from_ref(&id)
    );
    assert_eq!(string(&ctl.json(&["prefetch", &id])[0], "id"), id);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(eventually("it is prefetched", async || {
        (ctl.json(&["stat", &id])[0]["tier"] == "ram").then_some(())
    }));
    assert_eq!(ctl.json(&["promote", &id, "DISK"])[0]["tier"], "disk");
    let version = ctl.json(&["stat", &id])[0]["version"].as_u64().expect("a number");
    assert!(ctl.fails(&["rm", &id, "--expected-version", "1"]).contains(&version.to_string()));
    ctl.json(&["rm", &id, "--expected-version", &version.to_string()]);
    assert_eq!(ctl.json(&["ls", "--tier", "ram"]).len(), 1);
    assert!(ctl.json(&["ls", "--tier", "disk"]).is_empty());
}

#[test]
fn given_more_payloads_than_a_page_when_listed_then_all_are_shown_newest_first() {
    let place = Place::new();
    let server = place.start();
    let ctl = Ctl::of(&server);
    let directory = place.path().join("many");
    fs::create_dir(&directory).expect("made");
    for number in 0..1203 {
        fs::write(directory.join(format!("{number:04}")), number.to_string()).expect("written");
    }
    let put = ctl.json(&["put", "-r", directory.to_str().expect("text")]);
    let mut ids: Vec<String> = put.iter().map(|object| string(object, "id")).collect();
    // Each shard mints for its own sessions, so what was put within a moment is in the order of its ids.
    ids.sort_by(|one, other| other.cmp(one));
    let listed: Vec<String> = ctl.json(&["ls"]).iter().map(|row| string(row, "id")).collect();
    assert_eq!(listed, ids);
    let table = text(&ctl.run(&["ls"]).stdout);
    assert_eq!(table.lines().count(), 1204, "one heading");
    assert!(table.lines().next().is_some_and(|heading| heading.contains("ID") && heading.contains("LEASES")));
}

#[test]
fn given_mistakes_when_made_then_one_sentence_on_stderr_and_exit_1() {
    let place = Place::new();
    let server = place.start();
    let ctl = Ctl::of(&server);
    for command in ["stat", "cat", "commit", "rm", "lease", "pin", "unpin", "prefetch", "spill"] {
        assert!(ctl.fails(&[command, UNKNOWN]).contains(UNKNOWN), "{command}");
        assert!(ctl.fails(&[command, "no-id"]).contains("no-id"), "{command}");
    }
    assert!(ctl.fails(&["promote", UNKNOWN, "ram"]).contains(UNKNOWN));
    assert!(ctl.fails(&["release", "no-lease"]).contains("no-lease"));
    let both = ctl.run(&["stat", UNKNOWN, "no-id"]);
    assert_eq!((both.status.code(), text(&both.stderr).lines().count()), (Some(1), 2), "a sentence each");
}

#[test]
fn given_a_server_when_doctored_and_flags_stand_anywhere_then_understood() {
    let place = Place::new();
    let server = place.start();
    let none = Ctl("127.0.0.1:1".to_owned());
    for line in [
        &["--addr", &server.address, "--json", "stats"][..],
        &["stats", "--json", "--addr", &server.address],
        &["--json", "stats", &format!("--addr={}", server.address)],
    ] {
        let output = none.run(line);
        assert!(output.status.success(), "{line:?}: {}", text(&output.stderr));
        let stats = &objects(&output)[0];
        for field in [
            "payloads_gpu",
            "payloads_ram",
            "payloads_disk",
            "payloads_object",
            "bytes_gpu",
            "bytes_ram",
            "bytes_disk",
            "bytes_object",
        ] {
            assert_eq!(stats[field], 0, "{field}");
        }
    }
    assert!(none.fails(&["stats"]).contains("127.0.0.1:1"));
    let ctl = Ctl::of(&server);
    let table = text(&ctl.run(&["stats"]).stdout);
    assert!(table.contains("TIER") && table.contains("disk"), "{table}");
    let doctor = ctl.run(&["doctor", "--json"]);
    let checks = objects(&doctor);
    assert!(checks.iter().any(|check| check["check"] == "server" && check["status"] == "ok"), "{checks:?}");
    for check in &checks {
        assert!(["check", "status", "detail", "fix"].iter().all(|field| check[field].is_string()), "{check}");
    }
    let has_fault = checks.iter().any(|check| check["status"] == "fault");
    assert_eq!(doctor.status.code(), Some(i32::from(has_fault)), "exit 1 only on a fault: {checks:?}");
    let completions = ctl.run(&["completions", "bash"]);
    assert!(completions.status.success() && text(&completions.stdout).contains("payloadctl"));
}
