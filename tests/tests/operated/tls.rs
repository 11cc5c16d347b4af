//! TLS and mutual TLS, with certificates made here.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use payload_client::{AllocateOptions, Client, ClientError, ConnectOptions, TlsOptions};
use payload_tests::server::{Place, Server, ended, eventually, program};
use payload_types::ByteCount;

use super::roles::hangup;

/// An authority that signs certificates into files, by openssl.
struct Authority {
    directory: PathBuf,
    name: &'static str,
}

impl Authority {
    fn new(directory: &Path, name: &'static str) -> Self {
        let own = Self { directory: directory.to_owned(), name };
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        own.openssl(&format!(
            "req -x509 {key} -keyout {name}.key -out {name}.pem -subj /CN={name} -days 30 -addext basicConstraints=critical,CA:TRUE"
        ));
        own
    }

    fn openssl(&self, line: &str) {
        let mut command = Command::new("openssl");
        command.args(line.split(' ')).current_dir(&self.directory);
        let output = command.output().expect("openssl is installed");
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn file(&self) -> PathBuf {
        self.directory.join(format!("{}.pem", self.name))
    }

    /// A certificate for these names, as openssl writes them, and its key.
    fn sign(&self, names: &str, file: &str, is_expired: bool) -> (PathBuf, PathBuf) {
        let (days, name) = (if is_expired { -1 } else { 30 }, self.name);
        let extensions = format!("subjectAltName={names}\nextendedKeyUsage=serverAuth,clientAuth\n");
        fs::write(self.directory.join("extensions"), extensions).expect("writable");
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        self.openssl(&format!("req {key} -keyout {file}.key -out {file}.csr -subj /CN={file}"));
        self.openssl(&format!(
            "x509 -req -in {file}.csr -CA {name}.pem -CAkey {name}.key -CAcreateserial -out {file}.pem -days {days} -extfile extensions"
        ));
        (self.directory.join(format!("{file}.pem")), self.directory.join(format!("{file}.key")))
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn place_with(files: &(PathBuf, PathBuf)) -> Place {
    Place::new()
        .with("SERVER__TLS__CERTIFICATE", text(&files.0))
        .with("SERVER__TLS__PRIVATE_KEY", text(&files.1))
}

fn trusting(authority: &Authority) -> ConnectOptions {
    let tls = TlsOptions { ca: Some(authority.file()), ..Default::default() };
    ConnectOptions { tls: Some(tls), ..Default::default() }
}

fn as_client(authority: &Authority, identity: (PathBuf, PathBuf)) -> ConnectOptions {
    let mut options = trusting(authority);
    options.tls.as_mut().expect("it was set").identity = Some(identity);
    options
}

/// Connects and asks for something.
async fn stats(server: &Server, options: &ConnectOptions) -> Result<(), ClientError> {
    Client::connect_grpc_with(&server.address, options).await?.stats().await.map(drop)
}

#[tokio::test]
async fn given_tls_when_clients_connect_then_only_those_that_trust_the_server_are_served() {
    let directory = tempfile::tempdir().expect("writable");
    let (ours, other) = (Authority::new(directory.path(), "ours"), Authority::new(directory.path(), "other"));
    let files = ours.sign("IP:127.0.0.1,DNS:localhost", "server", false);
    let place = place_with(&files);
    let server = place.start();
    stats(&server, &trusting(&ours)).await.expect("it is trusted");
    let client = Client::connect_with(&server.address, &trusting(&ours)).await.expect("it is trusted");
    assert!(client.session().is_some(), "the native path is found over TLS, too");
    client.allocate_payload(ByteCount(4096), &AllocateOptions::default()).await.expect("served");

    let error = stats(&server, &trusting(&other)).await.expect_err("another authority").to_string();
    assert!(error.contains("certificate") && error.contains("UnknownIssuer"), "{error}");
    let mut named = trusting(&ours);
    named.tls.as_mut().expect("set").server_name = Some("elsewhere.example".to_owned());
    let error = stats(&server, &named).await.expect_err("another name").to_string();
    assert!(error.contains("elsewhere.example"), "{error}");
    stats(&server, &ConnectOptions::default()).await.expect_err("without TLS");
    eventually("the handshake's failure is told", async || {
        server.log().contains("TLS handshake failed").then_some(())
    })
    .await;

    let ctl = |args: &[&str]| {
        let mut command = Command::new(program("payloadctl"));
        command.args(["--addr", &format!("https://{}", server.address), "stats"]).args(args);
        ended(command)
    };
    let output = ctl(&["--tls-ca", text(&ours.file())]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!ctl(&["--tls-ca", text(&other.file())]).status.success());

    // A certificate of another authority, exchanged while the server runs.
    other.sign("IP:127.0.0.1", "server", false);
    hangup(&server);
    eventually("the new certificate is shown", async || stats(&server, &trusting(&other)).await.ok()).await;
}

#[tokio::test]
async fn given_an_expired_certificate_when_connected_then_the_client_says_so() {
    let directory = tempfile::tempdir().expect("writable");
    let ours = Authority::new(directory.path(), "ours");
    let place = place_with(&ours.sign("IP:127.0.0.1", "server", true));
    let server = place.start();
    let error = stats(&server, &trusting(&ours)).await.expect_err("expired").to_string();
    assert!(error.to_lowercase().contains("expired"), "{error}");
}

#[tokio::test]
async fn given_an_authority_for_clients_when_they_come_then_their_certificates_name_them() {
    let directory = tempfile::tempdir().expect("writable");
    let (ours, other) = (Authority::new(directory.path(), "ours"), Authority::new(directory.path(), "other"));
    let callers = directory.path().join("callers.yaml");
    fs::write(&callers, "callers: [{name: worker, role: reader, certificate: worker.example}]")
        .expect("writable");
    let place = place_with(&ours.sign("IP:127.0.0.1", "server", false))
        .with("SERVER__TLS__CLIENT_CA", text(&ours.file()))
        .with("SERVER__ACCESS_FILE", text(&callers));
    let server = place.start();
    let worker = as_client(&ours, ours.sign("DNS:worker.example", "worker", false));
    stats(&server, &worker).await.expect("it is known");
    let client = Client::connect_grpc_with(&server.address, &worker).await.expect("it is known");
    let refused = client
        .allocate_payload(ByteCount(4096), &AllocateOptions::default())
        .await
        .expect_err("a reader")
        .to_string();
    assert!(refused.contains("needs the role producer") && refused.contains("`worker`"), "{refused}");

    let stranger = as_client(&ours, ours.sign("DNS:stranger.example", "stranger", false));
    let error = stats(&server, &stranger).await.expect_err("not in the file").to_string();
    assert!(error.contains("stranger.example"), "{error}");
    for (what, options) in [
        ("no certificate", trusting(&ours)),
        ("expired", as_client(&ours, ours.sign("DNS:worker.example", "old", true))),
        ("another authority's", as_client(&ours, other.sign("DNS:worker.example", "false", false))),
    ] {
        let error = stats(&server, &options).await.expect_err(what);
        assert!(error.kind().is_none(), "{what}: the handshake fails, no call is answered: {error}");
    }
}

#[tokio::test]
async fn given_what_is_wrong_with_the_files_when_started_then_refused_with_their_names() {
    let directory = tempfile::tempdir().expect("writable");
    let ours = Authority::new(directory.path(), "ours");
    let (certificate, key) = ours.sign("IP:127.0.0.1", "server", false);
    let (_, other_key) = ours.sign("IP:127.0.0.1", "other", false);
    let missing = directory.path().join("missing.pem");
    for (files, words) in [
        ((missing.clone(), key.clone()), "server.tls.certificate"),
        ((certificate.clone(), missing), "server.tls.private_key"),
        ((certificate.clone(), other_key), "do not fit"),
        ((key.clone(), key.clone()), "holds no certificate"),
    ] {
        let said = place_with(&files).start_refused();
        assert!(said.contains(words), "{words}: {said}");
    }
    let half = Place::new().with("SERVER__TLS__CERTIFICATE", text(&certificate)).start_refused();
    assert!(half.contains("server.tls.private_key"), "{half}");
    let bare = Place::new().with("SERVER__BIND_ADDRESS", "0.0.0.0:0").with("SERVER__REQUIRE_TLS", "true");
    let said = bare.start_refused();
    assert!(said.contains("server.require_tls") && said.contains("TLS is required"), "{said}");
    // With a certificate it is served.
    let place = place_with(&(certificate, key))
        .with("SERVER__BIND_ADDRESS", "0.0.0.0:0")
        .with("SERVER__REQUIRE_TLS", "true");
    let server = place.start();
    assert!(server.log().contains("NO ACCESS CONTROL"), "{}", server.log());
    assert!(!server.log().contains("WITHOUT TLS"), "{}", server.log());
}
