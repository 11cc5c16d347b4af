//! `payloadctl` without a server: its command line, its sentences, its exit codes. What needs one is tested end to end.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};

const ID: &str = "0190a0b1-c2d3-7e4f-8a5b-6c7d8e9fa0b1";

fn payloadctl() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_payloadctl"));
    command.env_remove("PAYLOAD_MANAGER_ADDR");
    command
}

/// Held while a program is written or started: a child that another test forks meanwhile would have the program's file
/// open for writing until it becomes its own program, and nobody can start a file that is open for writing.
fn no_fork() -> MutexGuard<'static, ()> {
    static FORKS: Mutex<()> = Mutex::new(());
    FORKS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn output_of(command: &mut Command) -> Output {
    let _alone = no_fork();
    command.output().expect("payloadctl runs")
}

fn run(args: &[&str]) -> Output {
    output_of(payloadctl().args(args))
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

/// A loopback address at which nobody listens: bound once, so that it was free, and closed again.
fn closed_address() -> String {
    let socket = TcpListener::bind("127.0.0.1:0").expect("a free port");
    socket.local_addr().expect("bound").to_string()
}

/// A directory with a copy of payloadctl, so that a test decides what lies beside it.
fn alone() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("tempdir");
    let program = dir.path().join("payloadctl");
    let _alone = no_fork();
    fs::copy(env!("CARGO_BIN_EXE_payloadctl"), &program).expect("copied");
    (dir, program)
}

fn doctor(program: &Path, address: &str, flags: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.arg("doctor").args(["--addr", address]).args(flags).env("PATH", "");
    output_of(&mut command)
}

#[test]
fn given_help_when_asked_for_then_every_command_is_named_and_described() {
    let help = run(&["--help"]);
    assert!(help.status.success());
    let text = stdout(&help);
    for command in [
        "put",
        "get",
        "cat",
        "ls",
        "stat",
        "allocate",
        "commit",
        "lease",
        "release",
        "rm",
        "promote",
        "spill",
        "prefetch",
        "pin",
        "unpin",
        "stats",
        "holders",
        "explain",
        "doctor",
        "completions",
    ] {
        let line = text.lines().find(|line| line.split_whitespace().next() == Some(command));
        assert!(line.is_some_and(|line| line.split_whitespace().count() > 2), "{command} in {text}");
        let own = run(&[command, "--help"]);
        assert!(own.status.success() && stdout(&own).contains("--addr"), "{command}");
    }
}

#[test]
fn given_a_wrong_command_line_when_run_then_exit_2_and_nothing_on_stdout() {
    for args in [
        &["frobnicate"][..],
        &[],
        &["put"],
        &["stat"],
        &["put", "x", "--tier", "tape"],
        &["put", "x", "--ttl", "soon"],
        &["put", "x", "--ttl", "0s"],
        &["allocate", "-5"],
        &["allocate", "much"],
        &["promote", ID],
        &["spill", ID, "--to", "tape"],
        &["pin", ID, "--for", "10"],
        &["commit", ID, "--checksum", "12"],
        &["ls", "--frob"],
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn given_no_server_when_any_command_runs_then_one_sentence_with_the_address_and_exit_1() {
    let address = closed_address();
    for args in [
        &["ls"][..],
        &["put", "Cargo.toml"],
        &["get", ID],
        &["cat", ID],
        &["stat", ID],
        &["lease", ID],
        &["spill", ID],
        &["stats", "--json"],
    ] {
        let output = output_of(payloadctl().args(args).args(["--addr", &address]));
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {text}");
        assert!(output.stdout.is_empty(), "{args:?}");
        assert_eq!(text.lines().count(), 1, "{args:?}: {text}");
        assert!(
            text.starts_with("payloadctl: ") && text.contains(&address) && text.contains("refused"),
            "{args:?}: {text}"
        );
    }
}

#[test]
fn given_an_address_in_the_environment_when_run_then_it_is_used_and_a_flag_wins() {
    let (from_env, from_flag) = (closed_address(), closed_address());
    let mut command = payloadctl();
    command.env("PAYLOAD_MANAGER_ADDR", &from_env).arg("stats");
    assert!(stderr(&output_of(&mut command)).contains(&from_env));
    command.args(["--addr", &from_flag]);
    assert!(stderr(&output_of(&mut command)).contains(&from_flag));
}

#[test]
fn given_something_that_speaks_no_grpc_when_asked_then_a_sentence_and_exit_1() {
    let socket = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = socket.local_addr().expect("bound").to_string();
    let server = std::thread::spawn(move || {
        use std::io::Write;
        let (mut stream, _) = socket.accept().expect("payloadctl connects");
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").expect("sent");
    });
    let output = run(&["stats", "--addr", &address]);
    server.join().expect("served");
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.lines().count() == 1 && text.contains(&address), "{text}");
}

#[test]
fn given_each_shell_when_completions_are_asked_for_then_a_script_without_any_server() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run(&["completions", shell, "--addr", &closed_address()]);
        assert!(output.status.success(), "{shell}");
        assert!(stdout(&output).contains("payloadctl") && stdout(&output).contains("prefetch"), "{shell}");
    }
}

#[test]
fn given_neither_server_nor_its_program_when_doctored_then_exit_1_says_both() {
    let (_dir, program) = alone();
    let address = closed_address();
    let output = doctor(&program, &address, &[]);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains(&address) && text.contains("nor in PATH") && text.lines().count() == 1, "{text}");
}

#[test]
fn given_the_servers_program_beside_when_doctored_then_its_rows_are_added_and_a_fault_is_exit_1() {
    let (dir, program) = alone();
    let address = closed_address();
    let script = |rows: &str, code: u8| {
        let path = dir.path().join("payload-manager");
        let _alone = no_fork();
        let check = r#"test "$1 $2" = "doctor --json" || exit 9"#;
        fs::write(&path, format!("#!/bin/sh\n{check}\necho '{rows}'\nexit {code}\n")).expect("written");
        fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("set");
    };
    script(r#"{"check":"kernel","status":"ok","detail":"6.18","fix":""}"#, 0);
    let output = doctor(&program, &address, &["--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stdout(&output);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(
        lines[0].contains(r#""check":"server","status":"warn""#) && lines[0].contains(&address),
        "{text}"
    );
    assert_eq!(lines[1], r#"{"check":"kernel","status":"ok","detail":"6.18","fix":""}"#);

    script(r#"{"check":"io_uring","status":"fault","detail":"refused","fix":"allow it"}"#, 1);
    let output = doctor(&program, &address, &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stdout(&output).contains("allow it") && stderr(&output).contains("io_uring"),
        "{}",
        stderr(&output)
    );

    script("nothing of use", 3);
    let output = doctor(&program, &address, &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains("run it by hand"), "{}", stdout(&output));
}
