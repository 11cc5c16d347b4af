//! The binary as a user runs it: real processes, real files, short rounds. Figures are looked at, never judged.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn bench(arguments: &[&str]) -> Output {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let output = Command::new(env!("CARGO_BIN_EXE_payload-bench"))
        .args(arguments)
        .arg("--data-dir")
        .arg(directory.path())
        .output()
        .expect("the binary runs");
    let left = std::fs::read_dir(directory.path()).expect("it is still there").count();
    assert_eq!(left, 0, "nothing is left in --data-dir");
    output
}

fn lines(output: &Output) -> Vec<Value> {
    let text = String::from_utf8(output.stdout.clone()).expect("UTF-8");
    text.lines().map(|line| serde_json::from_str(line).expect("one object a line")).collect()
}

#[test]
fn given_rows_without_a_server_when_measured_then_each_prints_one_line_with_the_designs_fields() {
    let rows = ["shard/lease", "ledger/allocate-free", "catalog/commit-sqlite"];
    let output = bench(&[&rows[..], &["--seconds", "0.2", "--json"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = lines(&output);
    assert_eq!(lines.iter().map(|line| &line["bench"]).collect::<Vec<_>>(), rows);
    for line in &lines {
        assert!(line["value"].as_f64().is_some_and(|value| value > 0.0), "{line}");
        assert!(line["met"].is_boolean() && line["p99"].as_f64() >= line["p50"].as_f64(), "{line}");
        for field in ["unit", "floor", "floor_value", "ratio", "target", "better", "rounds"] {
            assert!(line.get(field).is_some(), "{field} in {line}");
        }
    }
    let [.., last] = &lines[..] else { panic!("three lines") };
    let number = |field: &str| last[field].as_f64().expect("a number");
    assert!((number("value") / number("floor_value") - number("ratio")).abs() < 0.01, "{last}");
}

#[test]
fn given_a_shard_with_a_million_payloads_when_measured_then_its_bytes_each_are_more_than_the_record() {
    let output = bench(&["memory/payload", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let line = &lines(&output)[0];
    let bytes = line["value"].as_f64().expect("a number");
    let record = line["note"].as_str().and_then(|note| note.split(' ').nth(3)?.parse::<f64>().ok());
    assert!(record.is_some_and(|record| bytes > record && bytes < 4.0 * record), "{line}");
}

#[test]
fn given_the_echo_floors_when_measured_then_separate_processes_answered() {
    let output = bench(&["grpc/echo", "grpc/echo-hop", "--seconds", "0.2", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for line in lines(&output) {
        assert!(line["value"].as_f64().is_some_and(|value| value > 0.0) && line["met"].is_null(), "{line}");
    }
}

#[test]
fn given_nobody_at_the_target_when_measured_then_the_row_is_skipped_with_the_reason_and_the_exit_code_is_1() {
    let output =
        bench(&["grpc/acquire", "idle/cpu", "--seconds", "0.2", "--json", "--target", "127.0.0.1:1"]);
    assert_eq!(output.status.code(), Some(1));
    let lines = lines(&output);
    let reason = |line: &Value| line["skipped"].as_str().expect("skipped says why").to_owned();
    assert!(reason(&lines[0]).contains("127.0.0.1:1") && lines[0]["met"].is_null(), "{}", lines[0]);
    assert!(reason(&lines[1]).contains("only gRPC rows"), "{}", lines[1]);
}

#[test]
fn given_a_mistyped_row_when_run_then_usage_is_explained_and_the_exit_code_is_2() {
    let output = bench(&["grpc/aquire"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("payload-bench list"));
    let list = bench(&["list"]);
    let text = String::from_utf8(list.stdout).expect("UTF-8");
    assert!(list.status.success() && text.contains("disk/promote-64MiB"), "{text}");
}

#[test]
fn given_a_run_when_interrupted_then_it_ends_as_shells_expect_and_leaves_nothing() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let left = || std::fs::read_dir(directory.path()).expect("it is still there").count();
    let mut child = Command::new(env!("CARGO_BIN_EXE_payload-bench"))
        .args(["shard/lease", "--seconds", "600", "--data-dir"])
        .arg(directory.path())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let mut first_line = String::new();
    let messages = child.stderr.take().expect("piped");
    BufReader::new(messages).read_line(&mut first_line).expect("it says what it measures");
    assert_eq!((first_line.trim(), left()), ("measuring shard/lease", 1));
    let asked = Command::new("sh").args(["-c", "kill -INT \"$0\"", &child.id().to_string()]).status();
    assert!(asked.expect("a shell").success());
    assert_eq!(child.wait().expect("our child").code(), Some(130));
    assert_eq!(left(), 0);
}
