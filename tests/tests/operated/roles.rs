//! Tokens, roles, namespaces and the audit's lines.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use payload_client::{AllocateOptions, Client, ConnectOptions};
use payload_tests::server::{Place, Server, eventually};
use payload_types::{ByteCount, PayloadId};
use prost::Message as _;
use prost_types::FileDescriptorSet;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

const ROLES: [&str; 4] = ["reader", "producer", "operator", "admin"];

/// A place whose callers have one role each, and the token `<role>-token`; and the file that says so.
fn place() -> (Place, PathBuf) {
    let place = Place::new();
    let file = place.path().join("callers.yaml");
    fs::write(&file, callers(&ROLES)).expect("writable");
    let shown = file.to_str().expect("UTF-8").to_owned();
    (place.with("SERVER__ACCESS_FILE", &shown), file)
}

fn callers(roles: &[&str]) -> String {
    let row = |role: &&str| {
        let hash = sha256(&format!("{role}-token"));
        format!("  - {{name: the-{role}, role: {role}, token_sha256: {hash}}}\n")
    };
    format!("callers:\n{}", roles.iter().map(row).collect::<String>())
}

/// As the manual tells operators to make it.
fn sha256(token: &str) -> String {
    let output =
        Command::new("sh").args(["-c", "printf %s \"$0\" | sha256sum", token]).output().expect("a shell");
    String::from_utf8_lossy(&output.stdout).split_whitespace().next().expect("a hash").to_owned()
}

async fn channel(server: &Server) -> Channel {
    let endpoint = Channel::from_shared(format!("http://{}", server.address)).expect("an address");
    endpoint.connect().await.expect("it listens")
}

fn token_of(role: &str) -> String {
    format!("Bearer {role}-token")
}

/// Calls `path` with an empty message and these headers, and gives what was answered.
async fn call(channel: &Channel, path: &str, headers: &[(&'static str, &str)]) -> Status {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.expect("connected");
    let mut request = Request::new(());
    for (name, value) in headers {
        request.metadata_mut().insert(*name, value.parse().expect("ASCII"));
    }
    request.set_timeout(Duration::from_secs(20));
    let path: PathAndQuery = path.parse().expect("a path");
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    grpc.unary(request, path, codec).await.map_or_else(|status| status, |_| Status::ok(""))
}

/// Every RPC of our services.
fn rpcs() -> Vec<String> {
    let set = FileDescriptorSet::decode(payload_wire::FILE_DESCRIPTOR_SET).expect("descriptors");
    let mut rpcs = Vec::new();
    for file in &set.file {
        for service in &file.service {
            let path = |method: &str| format!("/{}.{}/{method}", file.package(), service.name());
            rpcs.extend(service.method.iter().map(|method| path(method.name())));
        }
    }
    rpcs
}

#[tokio::test]
async fn given_callers_of_each_role_when_every_rpc_is_called_then_each_is_refused_what_its_role_lacks() {
    let (place, _) = place();
    let server = place.start();
    let channel = channel(&server).await;
    let rpcs = rpcs();
    assert!(rpcs.len() >= 42, "{rpcs:?}");
    let mut refused = [const { Vec::new() }; ROLES.len()];
    for path in &rpcs {
        for headers in [&[][..], &[("authorization", "Bearer wrong")], &[("authorization", "reader-token")]] {
            let answer = call(&channel, path, headers).await;
            assert_eq!(answer.code(), Code::Unauthenticated, "{path} {headers:?}: {answer}");
            assert!(answer.message().contains("Bearer TOKEN"), "{answer}");
        }
        let mut may = false;
        for (index, role) in ROLES.into_iter().enumerate() {
            let answer = call(&channel, path, &[("authorization", &token_of(role))]).await;
            assert_ne!(answer.code(), Code::Unauthenticated, "{path} as {role}: {answer}");
            if answer.code() == Code::PermissionDenied {
                assert!(!may, "{path}: {role} may less than the role before it");
                let words = answer.message();
                let names_both = words.contains(&format!("`the-{role}` has the role {role}"))
                    && words.contains("needs the role");
                assert!(names_both, "{path}: {words}");
                refused[index].push(path.rsplit_once('/').expect("a path").1.to_owned());
            } else {
                may = true;
            }
        }
    }
    let [reader, producer, operator, admin] = refused;
    assert_eq!(
        (producer, operator),
        (
            ["ListHolders", "Scrub", "SweepObjects"].map(str::to_owned).to_vec(),
            vec!["SweepObjects".to_owned()],
        )
    );
    assert_eq!(admin, Vec::<String>::new());
    for rpc in ["AllocatePayload", "Delete", "Append", "CreateStream", "BatchCommit", "Pin", "Spill"] {
        assert!(reader.iter().any(|refused| refused == rpc), "{rpc}: {reader:?}");
    }
    for rpc in ["AcquireReadLease", "ListPayloads", "Subscribe", "Stats", "FindPayloads"] {
        assert!(!reader.iter().any(|refused| refused == rpc), "{rpc}: {reader:?}");
    }
}

#[tokio::test]
async fn given_tokens_when_health_and_reflection_are_asked_then_health_needs_none() {
    let (place, _) = place();
    let server = place.start();
    let channel = channel(&server).await;
    let health = call(&channel, "/grpc.health.v1.Health/Check", &[]).await;
    assert_eq!(health.code(), Code::Ok, "{health}");
    for path in ["/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "/grpc.health.v1.Healthy/Check"]
    {
        let answer = call(&channel, path, &[]).await;
        assert_ne!(answer.code(), Code::Ok, "{path}");
    }
    let reflection = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    assert_eq!(call(&channel, reflection, &[]).await.code(), Code::Unauthenticated);
    // A name that no service has is as good as none, whoever asks.
    let unknown = "/payload.manager.services.v1.PayloadCatalogService/DropAll";
    let answer = call(&channel, unknown, &[("authorization", &token_of("operator"))]).await;
    assert_eq!(answer.code(), Code::PermissionDenied, "{answer}");
    let answer = call(&channel, unknown, &[("authorization", &token_of("admin"))]).await;
    assert_eq!(answer.code(), Code::Unimplemented, "{answer}");
}

async fn client(server: &Server, role: &str) -> Client {
    let options = ConnectOptions { token: Some(format!("{role}-token")), ..Default::default() };
    Client::connect_grpc_with(&server.address, &options).await.expect("it listens")
}

async fn allocated(client: &Client) -> PayloadId {
    client
        .allocate_payload(ByteCount(4096), &AllocateOptions::default())
        .await
        .expect("a producer may")
        .descriptor
        .id
}

#[tokio::test]
async fn given_payloads_when_deleted_then_force_needs_an_operator_and_the_audit_tells_who_did_what() {
    let (place, _) = place();
    let server = place.start();
    let (producer, operator) = (client(&server, "producer").await, client(&server, "operator").await);
    let (first, second) = (allocated(&producer).await, allocated(&producer).await);
    let refused = producer.delete(first, true, None).await.expect_err("a producer may not").to_string();
    assert!(refused.contains("a forced Delete needs the role operator"), "{refused}");
    producer.delete(first, false, None).await.expect("a producer may");
    operator.delete(second, true, None).await.expect("an operator may");
    let lines = [
        ["the-producer", "force-delete", &first.to_string(), "PermissionDenied"],
        ["the-producer", "delete", &first.to_string(), "done"],
        ["the-operator", "force-delete", &second.to_string(), "done"],
        ["server", "load", "callers.yaml", "done"],
    ]
    .map(|words| words.map(str::to_owned));
    for words in lines {
        eventually(&format!("{words:?}"), async || {
            let log = server.log();
            let told = |line: &&str| line.contains("audit") && words.iter().all(|word| line.contains(word));
            assert!(!log.contains("-token"), "tokens are never logged");
            log.lines().find(told).map(drop)
        })
        .await;
    }
}

#[tokio::test]
async fn given_a_namespace_when_named_then_only_the_default_exists_and_nothing_is_told_of_others() {
    const STATS: &str = "/payload.manager.services.v1.PayloadAdminService/Stats";
    let open = Place::new();
    let server = open.start();
    let anybody = channel(&server).await;
    for (name, code) in [
        ("default", Code::Ok),
        ("team-7", Code::NotFound),
        ("../x", Code::InvalidArgument),
        ("Team", Code::InvalidArgument),
    ] {
        let answer = call(&anybody, STATS, &[("x-payload-namespace", name)]).await;
        assert_eq!(answer.code(), code, "{name}: {answer}");
    }
    let (place, _) = place();
    let server = place.start();
    let known = channel(&server).await;
    let token = token_of("admin");
    let own = call(&known, STATS, &[("authorization", &token), ("x-payload-namespace", "default")]).await;
    assert_eq!(own.code(), Code::Ok, "{own}");
    let other = call(&known, STATS, &[("authorization", &token), ("x-payload-namespace", "team-7")]).await;
    assert_eq!(other.code(), Code::PermissionDenied, "{other}");
    assert!(other.message().contains("`default` only"), "{other}");
}

#[tokio::test]
async fn given_a_changed_file_of_callers_when_hung_up_then_it_holds_at_once_and_a_broken_one_changes_nothing()
{
    const STATS: &str = "/payload.manager.services.v1.PayloadAdminService/Stats";
    let (place, file) = place();
    let server = place.start();
    let channel = channel(&server).await;
    let code = async |role| call(&channel, STATS, &[("authorization", &token_of(role))]).await.code();
    assert_eq!(code("reader").await, Code::Ok);
    fs::write(&file, callers(&ROLES[1..])).expect("writable");
    hangup(&server);
    eventually("the reader is forgotten", async || {
        (code("reader").await == Code::Unauthenticated).then_some(())
    })
    .await;
    fs::write(&file, "callers: [{name: x}]").expect("writable");
    hangup(&server);
    eventually("it says what is wrong", async || server.log().contains("stays in force").then_some(())).await;
    assert_eq!(code("producer").await, Code::Ok);
    server.stop();
    // At the start there is nothing that could stay.
    let said = place.start_refused();
    assert!(said.contains("callers.yaml") && said.contains("role"), "{said}");
}

pub fn hangup(server: &Server) {
    let pid = server.pid().to_string();
    let sent = Command::new("kill").args(["-HUP", &pid]).status().expect("kill is part of every system");
    assert!(sent.success());
}
