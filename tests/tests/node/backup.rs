//! `payload-manager backup` beside a server under load, a server that starts on the backup, `migrate` and `nodes`.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use payload_tests::postgres::{Postgres, name_of};
use payload_tests::server::{Place, ended, objects, payloadctl};
use payload_tests::v1::{DISK, V1, content, id, listing};
use tonic::Code;

const SIZE: usize = 4096;

/// `payload-manager` with the place's configuration and these words instead of `serve`.
fn program(place: &Place, words: &[&str]) -> Command {
    let serve = place.command();
    let mut command = Command::new(serve.get_program());
    command.arg("--data-dir").arg(place.path()).args(words);
    command.envs(serve.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}

/// What a backup said, as success or refusal.
fn said(output: &Output) -> Result<String, String> {
    match output.status.code() {
        Some(0) => Ok(text(&output.stdout)),
        Some(1) => Err(text(&output.stderr)),
        code => panic!("{code:?}: {}", text(&output.stderr)),
    }
}

fn backup(place: &Place, to: &Path) -> Result<String, String> {
    said(&ended(program(place, &["backup", to.to_str().expect("UTF-8")])))
}

/// `migrate --check`: its exit code and what it said.
fn check(place: &Place) -> (Option<i32>, String) {
    let output = ended(program(place, &["migrate", "--check"]));
    (output.status.code(), text(&output.stdout) + &text(&output.stderr))
}

#[tokio::test]
async fn given_a_backup_of_a_running_server_when_a_server_starts_on_it_then_it_has_what_was_there_then() {
    let place = Place::new();
    let copy = place.path().join("copy.db");
    let server = place.start();
    let v1 = V1::connect(&server).await;
    let kept = id(&v1.put(DISK, &content(1, SIZE)).await);
    let deleted = id(&v1.put(DISK, &content(2, SIZE)).await);
    let command = program(&place, &["backup", copy.to_str().expect("UTF-8")]);
    let backing_up = std::thread::spawn(move || said(&ended(command)));
    let mut seed = 10;
    while !backing_up.is_finished() {
        v1.put(DISK, &content(seed, SIZE)).await;
        seed += 1;
    }
    let told = backing_up.join().expect("it ends").expect("backed up");
    assert!(told.contains("payloads"), "{told}");
    let refused = backup(&place, &copy).expect_err("it is there");
    assert!(refused.contains("copy.db") && refused.contains("there already"), "{refused}");
    let later = id(&v1.put(DISK, &content(3, SIZE)).await);
    v1.delete(&deleted, false).await.expect("deleted");
    server.stop();

    // As docs/OPERATIONS.md says it.
    for suffix in ["", "-wal", "-shm"] {
        drop(fs::remove_file(place.path().join(format!("catalog.db{suffix}"))));
    }
    fs::rename(&copy, place.path().join("catalog.db")).expect("put in its place");
    assert_eq!(check(&place).0, Some(0));
    let server = place.start();
    let v1 = V1::connect(&server).await;
    assert_eq!(v1.bytes(&kept).await.1, content(1, SIZE));
    let lost = v1.resolve(&deleted).await.expect_err("its bytes went after the backup");
    assert!(lost.code() == Code::NotFound && lost.message().contains("LOST"), "{lost}");
    let unknown = v1.resolve(&later).await.expect_err("the backup does not know it");
    assert!(unknown.code() == Code::NotFound && !unknown.message().contains("LOST"), "{unknown}");
    let made = id(&v1.put(DISK, &content(4, SIZE)).await);
    assert_eq!(v1.bytes(&made).await.1, content(4, SIZE));
    assert!(v1.list(listing(0, 50)).await.expect("listed").total_count >= 2);
}

#[test]
fn given_a_catalog_that_is_no_file_when_backed_up_then_the_way_to_do_it_is_said() {
    let postgres = Postgres::start().expect("a PostgreSQL server starts; tests/run installs one");
    let place = Place::new().with("DATABASE__POSTGRES__CONNECTION_URI", &postgres.database());
    let copy = place.path().join("copy.db");
    let told = backup(&place, &copy).expect_err("it is no file");
    assert!(told.contains("pg_dump --format=custom --schema=payload_manager"), "{told}");
    assert!(!told.contains("127.0.0.1"), "a URI may hold a password: {told}");
    let memory = Place::new();
    let file = memory.path().join("memory.yaml");
    fs::write(&file, "database:\n  memory: {}\n").expect("written");
    let words = ["--config", file.to_str().expect("UTF-8"), "backup", "copy.db"];
    let told = said(&ended(program(&memory, &words))).expect_err("there is nothing");
    assert!(told.contains("nothing to back up"), "{told}");
    assert!(!copy.exists());
}

#[test]
fn given_catalogs_of_all_ages_when_checked_then_the_exit_code_and_a_sentence_say_what_a_start_would_do() {
    let postgres = Postgres::start().expect("a PostgreSQL server starts; tests/run installs one");
    let uri = postgres.database();
    for place in [Place::new(), Place::new().with("DATABASE__POSTGRES__CONNECTION_URI", &uri)] {
        let (code, said) = check(&place);
        assert!(code == Some(3) && said.contains("0001_initial"), "{code:?} {said}");
        assert!(!place.path().join("catalog.db").exists(), "checking makes nothing");
        let output = ended(program(&place, &["migrate"]));
        assert!(output.status.success() && text(&output.stdout).contains("ran 0001_initial"), "{output:?}");
        assert_eq!(check(&place), (Some(0), "the catalog's schema is up to date".to_owned()));
        let server = place.start();
        assert_eq!(check(&place).0, Some(0), "beside a server, too");
        server.stop();
    }
    postgres.sql(name_of(&uri), "INSERT INTO payload_manager.migration VALUES (99)").expect("inserted");
    let newer = Place::new();
    assert!(ended(program(&newer, &["migrate"])).status.success());
    let database = rusqlite::Connection::open(newer.path().join("catalog.db")).expect("a database");
    database.pragma_update(None, "user_version", 99).expect("set");
    drop(database);
    for place in [newer, Place::new().with("DATABASE__POSTGRES__CONNECTION_URI", &uri)] {
        let (code, said) = check(&place);
        assert!(code == Some(1) && said.contains("version 99") && said.contains("newer program"), "{said}");
        assert!(place.start_refused().contains("version 99"));
    }
}

#[tokio::test]
async fn given_a_node_that_is_gone_for_good_when_removed_then_nobody_lists_its_payloads_and_what_was_lost_is_said()
 {
    let postgres = Postgres::start().expect("a PostgreSQL server starts; tests/run installs one");
    let uri = postgres.database();
    let place = |node| Place::new().with("DATABASE__POSTGRES__CONNECTION_URI", &uri).with("NODE__NAME", node);
    let (kept, gone) = (place("kept"), place("gone"));
    let (server, going) = (kept.start(), gone.start());
    let (v1, v2) = (V1::connect(&server).await, V1::connect(&going).await);
    v1.put(DISK, &content(1, SIZE)).await;
    v2.put(DISK, &content(2, SIZE)).await;
    let rows = objects(&payloadctl(&server, &["ls"]));
    let mut nodes: Vec<_> = rows.iter().map(|row| row["node"].as_str().expect("a name")).collect();
    nodes.sort_unstable();
    assert_eq!(nodes, ["gone", "kept"]);

    let run = |words: &[&str]| {
        let output = ended(program(&kept, &[&["nodes"], words].concat()));
        (output.status.code(), text(&output.stdout) + &text(&output.stderr))
    };
    let (code, listed) = run(&[]);
    assert!(code == Some(0) && listed.contains("gone") && listed.matches("running").count() == 2, "{listed}");
    let (code, refused) = run(&["--remove", "gone", "--yes"]);
    assert!(code == Some(1) && refused.contains("was heard of"), "{refused}");
    going.stop();
    let (code, weighed) = run(&["--remove", "gone"]);
    assert!(code == Some(3) && weighed.contains("1 payloads") && weighed.contains("--yes"), "{weighed}");
    assert_eq!(v1.list(listing(0, 50)).await.expect("listed").total_count, 2, "nothing has changed");
    let (code, removed) = run(&["--remove", "gone", "--yes"]);
    assert!(code == Some(0) && removed.contains("with 1 payloads"), "{removed}");
    assert_eq!(v1.list(listing(0, 50)).await.expect("listed").total_count, 1);
    let (_, listed) = run(&["--json"]);
    assert!(listed.contains(r#""node":"kept""#) && !listed.contains("gone"), "{listed}");

    let alone = Place::new();
    let output = ended(program(&alone, &["nodes"]));
    assert!(output.status.code() == Some(1) && text(&output.stderr).contains("PostgreSQL"), "{output:?}");
}
