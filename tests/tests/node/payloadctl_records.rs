//! `payloadctl meta`, `lineage` and `stream` against a real server, as a person or a script uses them.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Output, Stdio};

use payload_tests::server::{Place, Server, ended, objects, payloadctl, program};
use payload_tests::sys::{self, Signal};
use serde_json::{Value, json};

const UNKNOWN: &str = "0190a0b1-c2d3-7e4f-8a5b-6c7d8e9fa0b1";

/// Runs with --json and gives the objects; everything must have been done.
#[track_caller]
fn json(server: &Server, args: &[&str]) -> Vec<Value> {
    let output = payloadctl(server, args);
    assert!(output.status.success() && output.stderr.is_empty(), "{args:?}: {}", text(&output.stderr));
    objects(&output)
}

/// What a person sees.
#[track_caller]
fn shown(server: &Server, args: &[&str]) -> String {
    let output = plain(server, args);
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// Runs what must fail with 1 and one sentence, which is returned.
#[track_caller]
fn fails(server: &Server, args: &[&str]) -> String {
    let output = plain(server, args);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
    assert!(said.starts_with("payloadctl: ") && said.lines().count() == 1, "one sentence: {said}");
    said
}

fn plain(server: &Server, args: &[&str]) -> Output {
    ended(command(server, args))
}

fn command(server: &Server, args: &[&str]) -> Command {
    let mut command = Command::new(program("payloadctl"));
    command.args(args).env("PAYLOAD_MANAGER_ADDR", &server.address);
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

fn file(place: &Place, name: &str, bytes: &[u8]) -> String {
    let path = place.path().join(name);
    fs::write(&path, bytes).expect("written");
    path.to_str().expect("text").to_owned()
}

/// Stores a payload; its id.
fn put(server: &Server, place: &Place, name: &str) -> String {
    let path = file(place, name, name.as_bytes());
    json(server, &["put", &path])[0]["id"].as_str().expect("an id").to_owned()
}

#[test]
fn given_metadata_when_set_merged_got_and_logged_then_as_scripts_expect() {
    let place = Place::new();
    let server = place.start();
    let id = put(&server, &place, "payload");
    let bytes: &[u8] = b"\0\xFFno text";
    let data = file(&place, "bytes", bytes);
    let set = json(&server, &["meta", "set", &id, "--data-file", &data, "--schema", "raw"]);
    assert_eq!((&set[0]["id"], &set[0]["schema"]), (&json!(id), &json!("raw")));
    assert_eq!((&set[0]["data"], &set[0]["data_hex"]), (&Value::Null, &json!("00ff6e6f2074657874")));
    let out = place.path().join("out");
    json(&server, &["meta", "get", &id, "--data-out", out.to_str().expect("text")]);
    assert_eq!(fs::read(&out).expect("written"), bytes, "byte for byte");
    let piped = plain(&server, &["meta", "get", &id, "--data-out", "-"]);
    assert_eq!(piped.stdout, bytes, "nothing but the data");

    let object = file(&place, "object", br#"{"a":1,"b":2}"#);
    let by = ["--actor", "me", "--reason", "a better camera"];
    json(&server, &[&["meta", "set", &id, "--data-file", &object, "--schema", "cam.v1"], &by[..]].concat());
    let patch = file(&place, "patch", br#"{"b":null,"c":3}"#);
    let merged = json(&server, &["meta", "merge", &id, "--data-file", &patch]);
    assert_eq!((&merged[0]["data"], &merged[0]["schema"]), (&json!(r#"{"a":1,"c":3}"#), &json!("cam.v1")));
    assert_eq!(json(&server, &["meta", "get", &id]), merged);
    assert!(shown(&server, &["meta", "get", &id]).contains(r#"{"a":1,"c":3}"#));

    let log = json(&server, &["meta", "log", &id]);
    let told: Vec<_> = log.iter().map(|event| (event["number"].as_u64(), event["kind"].as_str())).collect();
    assert_eq!(told, [(Some(1), Some("replaced")), (Some(2), Some("replaced")), (Some(3), Some("merged"))]);
    assert_eq!((&log[1]["source"], &log[1]["reason"]), (&json!("me"), &json!("a better camera")));
    assert!(log[1]["ts"].as_str().is_some_and(|time| time.ends_with('Z')));
    assert_eq!(log[2]["data"], r#"{"a":1,"c":3}"#);
    assert_eq!(shown(&server, &["meta", "log", &id]).lines().count(), 4, "a heading and three events");

    let never = put(&server, &place, "another");
    let none = json(&server, &["meta", "get", &never]);
    assert_eq!((&none[0]["updated_at"], &none[0]["data"]), (&Value::Null, &json!("")));
    assert!(json(&server, &["meta", "log", &never]).is_empty());
    for args in [["meta", "get", UNKNOWN], ["meta", "log", UNKNOWN]] {
        assert!(fails(&server, &args).contains(UNKNOWN));
    }
    let missing = fails(&server, &["meta", "set", &id, "--data-file", "/absent"]);
    assert!(missing.contains("cannot read the input"), "{missing}");
    let huge = file(&place, "huge", &vec![0; (1 << 20) + 1]);
    assert!(fails(&server, &["meta", "set", &id, "--data-file", &huge]).contains("1048577"));
    let mut stdin = command(&server, &["meta", "set", &id, "--data-file", "-"]);
    let mut child = stdin.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("runs");
    child.stdin.take().expect("piped").write_all(b"from a pipe").expect("read");
    assert!(child.wait().expect("ends").success());
    assert_eq!(json(&server, &["meta", "get", &id])[0]["data"], "from a pipe");
}

#[test]
fn given_lineage_when_added_and_shown_then_edges_a_tree_and_graphviz() {
    let place = Place::new();
    let server = place.start();
    let [a, b, c] = ["a", "b", "c"].map(|name| put(&server, &place, name));
    let added =
        json(&server, &["lineage", "add", &b, "--parent", &a, "--operation", "crop", "--role", "input"]);
    let edge = &added[0];
    assert_eq!((&edge["parent"], &edge["child"]), (&json!(a), &json!(b)));
    assert_eq!((&edge["operation"], &edge["role"]), (&json!("crop"), &json!("input")));
    json(&server, &["lineage", "add", &c, "--parent", &b, "--parent", &a]);
    let edges = |args: &[&str]| -> Vec<(String, String)> {
        let end = |edge: &Value, name: &str| edge[name].as_str().expect("an id").to_owned();
        json(&server, args).iter().map(|edge| (end(edge, "parent"), end(edge, "child"))).collect()
    };
    let pair = |parent: &String, child: &String| (parent.clone(), child.clone());
    let up = edges(&["lineage", "show", &c, "--up"]);
    assert_eq!(up.len(), 3);
    assert_eq!(up[2], pair(&a, &b), "breadth first");
    assert_eq!(edges(&["lineage", "show", &c]), up, "up is where it goes without a flag");
    assert_eq!(edges(&["lineage", "show", &b, "--down"]), [pair(&b, &c)]);
    assert_eq!(edges(&["lineage", "show", &c, "--up", "--depth", "1"]).len(), 2);
    let tree = shown(&server, &["lineage", "show", &c, "--up"]);
    assert_eq!(tree.lines().count(), 4, "{tree}");
    assert!(tree.starts_with(&c) && tree.contains("└─ ") && tree.contains("crop (input)"), "{tree}");
    let dot = shown(&server, &["lineage", "show", &c, "--up", "--dot"]);
    assert!(dot.starts_with("digraph lineage {") && dot.contains(&format!("\"{a}\" -> \"{b}\"")), "{dot}");
    assert!(fails(&server, &["lineage", "show", UNKNOWN, "--up"]).contains(UNKNOWN));
    assert!(fails(&server, &["lineage", "add", &a, "--parent", UNKNOWN]).contains(UNKNOWN));
    assert!(edges(&["lineage", "show", &a, "--up"]).is_empty(), "nothing was stored");
}

#[test]
fn given_a_stream_when_used_by_a_script_then_each_command_does_its_part() {
    let place = Place::new();
    let server = place.start();
    let [one, two] = ["one", "two"].map(|name| put(&server, &place, name));
    let stream = "cam/frames";
    let created = json(&server, &["stream", "create", stream, "--max-entries", "5", "--max-age", "1h"]);
    assert_eq!(created, [json!({ "stream": stream, "result": "created" })]);
    assert!(fails(&server, &["stream", "create", stream]).contains("there is a stream"));
    let appended = json(&server, &["stream", "append", stream, &one, &two, "--tag", "k=v", "--tag", "n=1=2"]);
    assert_eq!(
        appended,
        [json!({ "offset": 0, "payload_id": one }), json!({ "offset": 1, "payload_id": two })]
    );
    assert!(fails(&server, &["stream", "append", stream, &one, UNKNOWN]).contains(UNKNOWN));
    json(&server, &["stream", "append", stream, &one]);

    let read = json(&server, &["stream", "read", stream]);
    assert_eq!(read.len(), 3, "all or none: the failed append left nothing");
    assert_eq!((&read[1]["offset"], &read[1]["payload_id"]), (&json!(1), &json!(two)));
    assert_eq!(read[1]["tags"], json!({ "k": "v", "n": "1=2" }));
    assert!(read[1]["append_time"].as_str().is_some_and(|time| time.ends_with('Z')));
    assert_eq!((&read[1]["event_time"], &read[2]["tags"]), (&Value::Null, &json!({})));
    assert_eq!(json(&server, &["stream", "read", stream, "--from", "1", "--max", "1"]), read[1..2]);
    assert!(json(&server, &["stream", "read", stream, "--from", "3"]).is_empty());
    assert_eq!(json(&server, &["stream", "range", stream, "1", "2"]), read[1..]);
    assert!(shown(&server, &["stream", "read", stream]).contains("k=v"));

    let committed = |group: &str| json(&server, &["stream", "committed", stream, "--group", group]).remove(0);
    assert_eq!((&committed("g")["offset"], &committed("g")["committed"]), (&json!(0), &json!(false)));
    json(&server, &["stream", "commit", stream, "--group", "g", "--offset", "2"]);
    assert_eq!((&committed("g")["offset"], &committed("g")["committed"]), (&json!(2), &json!(true)));
    let beyond = ["stream", "commit", stream, "--group", "g", "--offset", "4"];
    assert!(fails(&server, &beyond).contains("ends at 3"));

    json(&server, &["stream", "commit", stream, "--group", "h", "--offset", "1"]);
    let groups = json(&server, &["stream", "group", "ls", stream]);
    let brief = |group: &Value| (group["group"].clone(), group["offset"].clone());
    assert_eq!(
        groups.iter().map(brief).collect::<Vec<_>>(),
        [(json!("g"), json!(2)), (json!("h"), json!(1))]
    );
    assert!(groups[0]["committed_at"].as_str().is_some_and(|time| time.ends_with('Z')));
    let removed = json(&server, &["stream", "group", "rm", stream, "--group", "h"]);
    let expected =
        json!({ "stream": stream, "group": "h", "result": "deleted", "retained_from_offset": null });
    assert_eq!(removed, [expected]);
    assert!(fails(&server, &["stream", "group", "rm", stream, "--group", "h"]).contains("`h`"));
    assert_eq!(committed("h")["committed"], json!(false));

    for _ in 0..4 {
        json(&server, &["stream", "append", stream, &one]);
    }
    let kept = json(&server, &["stream", "read", stream]);
    assert_eq!((kept.len(), &kept[0]["offset"]), (5, &json!(2)), "the newest five");
    let listed = json(&server, &["stream", "ls"]);
    let expected = json!({
        "stream": stream, "first_offset": 2, "end_offset": 7,
        "retention_max_entries": 5, "retention_max_age_sec": 3600, "retain_payloads": false,
    });
    assert_eq!(listed, [expected]);
    assert_eq!(json(&server, &["stream", "rm", stream]), [json!({ "stream": stream, "result": "deleted" })]);
    assert!(fails(&server, &["stream", "read", stream]).contains("frames"));
    json(&server, &["stream", "rm", stream]);
    let misnamed = plain(&server, &["stream", "create", "cam/"]);
    assert_eq!(misnamed.status.code(), Some(2), "a wrong command line");
}

#[test]
fn given_a_tail_when_entries_are_appended_then_it_prints_each_at_once_until_interrupted() {
    let place = Place::new();
    let server = place.start();
    let id = put(&server, &place, "one");
    json(&server, &["stream", "create", "live"]);
    json(&server, &["stream", "append", "live", &id, &id]);
    let mut tail = command(&server, &["stream", "tail", "/live", "--from", "1", "--json"]);
    let mut child = tail.stdout(Stdio::piped()).spawn().expect("runs");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut next = || -> Value {
        let line = lines.next().expect("another line").expect("readable");
        serde_json::from_str(&line).expect("an object")
    };
    assert_eq!(next()["offset"], 1, "what was there");
    for offset in 2..5 {
        json(&server, &["stream", "append", "live", &id]);
        assert_eq!(next()["offset"], offset, "what comes");
    }
    sys::signal(child.id(), Signal::Term).expect("it runs");
    assert_eq!(child.wait().expect("ends").code(), Some(130));

    let mut tail = command(&server, &["stream", "tail", "/live", "--from", "9"]);
    let mut child = tail.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("runs");
    json(&server, &["stream", "rm", "live"]);
    let mut said = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().expect("piped"), &mut said).expect("readable");
    assert_eq!(child.wait().expect("ends").code(), Some(1));
    assert!(said.contains("live"), "{said}");
}
