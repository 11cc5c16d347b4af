//! What clients may not do to a server: more connections than it takes, connections that never speak, headers without end,
//! answers that nobody reads. Others are served meanwhile, and the memory is given back.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use payload_client::Client;
use payload_tests::server::{PATIENCE, Place, Server, eventually};
use payload_tests::sys;

/// Clients that come.
const CROWD: usize = 2000;
/// Connections that the server takes.
const PLACES: usize = 1500;
/// What the allocator and the kernel's own bookkeeping may keep of a crowd's memory.
const KEPT_BYTES_MAX: u64 = 64 << 20;

/// RFC 9113, 3.4, and an empty SETTINGS frame.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
/// A PING, which the other end must answer.
const PING: [u8; 17] = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];

/// Resident memory of a server that is not shared with anybody, in bytes.
fn resident(server: &Server) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).expect("our child's");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("Linux tells it");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

async fn client(server: &Server) -> Client {
    Client::connect_grpc(&server.address).await.expect("it listens")
}

#[tokio::test]
async fn given_two_thousand_connections_when_they_come_then_others_are_served_and_memory_is_given_back() {
    sys::open_files_raise();
    let place = Place::new()
        .with("LIMITS__CONNECTIONS", &PLACES.to_string())
        .with("LIMITS__HANDSHAKE_TIMEOUT", "500ms");
    let server = place.start();
    let client = client(&server).await;
    client.stats().await.expect("served");
    let (before, files) = (resident(&server), server.open_files());

    let mut after = Vec::new();
    for _crowd in 0..4 {
        crowd_comes_and_goes(&server, &client, files).await;
        eventually("the connections' files are closed", async || {
            (server.open_files() <= files).then_some(())
        })
        .await;
        client.stats().await.expect("served");
        after.push(resident(&server));
    }
    println!("resident: {before} before, {after:?} after each crowd");
    // A crowd's connections take 24 MiB; kept whole, four would be 96. The allocator keeps less with each.
    assert!(after[3] <= before + KEPT_BYTES_MAX, "{after:?} after, {before} before");
    assert!(after[3] - after[2] < (after[0] - before) / 4, "{after:?}: it grows with each crowd");
}

async fn crowd_comes_and_goes(server: &Server, client: &Client, files: usize) {
    let mut crowd = Vec::with_capacity(CROWD);
    for number in 0..CROWD {
        let mut socket = TcpStream::connect(&server.address).expect("the backlog takes it");
        // Some never speak, some stop within the first words, some say all and then nothing more.
        let words = match number % 3 {
            0 => Vec::new(),
            1 => PREFACE[..10].to_vec(),
            _ => [PREFACE, &SETTINGS].concat(),
        };
        // Those that were refused are closed already.
        let _refused = socket.write_all(&words);
        crowd.push((number, socket));
        if number % 100 == 0 {
            client.stats().await.expect("others are served");
        }
    }
    let peak = server.open_files();
    assert!(peak <= files + PLACES, "{peak} files, and {files} before");
    client.stats().await.expect("others are served");

    // Those that did not begin in time are closed; those that did are not.
    let (mut closed, mut open) = (0, 0);
    for (number, mut socket) in crowd {
        let has_begun = number % 3 == 2;
        socket
            .set_read_timeout(Some(if has_begun { Duration::from_millis(1) } else { PATIENCE }))
            .expect("a socket");
        match (has_begun, ends(&mut socket)) {
            (false, is_closed) => {
                assert!(is_closed, "connection {number} is open after limits.handshake_timeout");
                closed += 1;
            }
            (true, true) => closed += 1,
            (true, false) => open += 1,
        }
    }
    assert!(closed >= CROWD - PLACES && open > 0, "{closed} closed, {open} open");
}

/// True when the other end closes; false when it says nothing more for as long as the socket waits.
fn ends(socket: &mut TcpStream) -> bool {
    let mut buffer = [0; 1024];
    loop {
        match socket.read(&mut buffer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return false;
            }
            Err(_) => return true,
        }
    }
}

#[tokio::test]
async fn given_a_client_that_never_reads_when_it_asks_on_and_on_then_it_is_closed_and_costs_little() {
    let place = Place::new().with("LIMITS__WRITE_STALL", "1s");
    let server = place.start();
    let client = client(&server).await;
    client.stats().await.expect("served");
    let before = resident(&server);
    let mut socket = TcpStream::connect(&server.address).expect("it listens");
    socket.write_all(&[PREFACE, &SETTINGS].concat()).expect("it listens");
    socket.set_write_timeout(Some(Duration::from_millis(100))).expect("a socket");
    let pings = PING.repeat(1000);
    let start = Instant::now();
    // Every PING is answered, until nothing more fits between the two; then the server waits, and gives up.
    let broken = loop {
        match socket.write(&pings) {
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                assert!(
                    resident(&server) <= before + KEPT_BYTES_MAX,
                    "what is not read is kept by the kernel"
                );
            }
            Err(error) => break error,
        }
        assert!(start.elapsed() < PATIENCE, "a client that never reads is never closed");
    };
    assert!(matches!(broken.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{broken}");
    client.stats().await.expect("others are served");
    assert!(resident(&server) <= before + KEPT_BYTES_MAX);
}

#[tokio::test]
async fn given_headers_without_end_when_sent_then_refused_and_others_are_served() {
    let place = Place::new().with("LIMITS__HEADER_BYTES", "4096");
    let server = place.start();
    let client = client(&server).await;
    let flood = client.with_request_id(&"x".repeat(128)).expect("an id");
    flood.stats().await.expect("a few headers are fine");
    let channel = client.channel();
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
    let mut request = tonic::Request::new(tonic_health::pb::HealthCheckRequest { service: String::new() });
    for number in 0..100 {
        let name = format!("x-flood-{number}");
        let name: tonic::metadata::MetadataKey<tonic::metadata::Ascii> = name.parse().expect("a header");
        request.metadata_mut().insert(name, "y".repeat(100).parse().expect("a value"));
    }
    health.check(request).await.expect_err("15 KiB of headers");
    client.stats().await.expect("the same connection is served on");
}

#[tokio::test]
async fn given_more_calls_than_a_connection_may_have_when_sent_then_they_wait_for_one_another() {
    let place = Place::new().with("LIMITS__STREAMS_PER_CONNECTION", "4");
    let server = place.start();
    let client = client(&server).await;
    // By its answer the client knows how many it may have.
    client.stats().await.expect("served");
    let calls: Vec<_> = (0..64)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.stats().await.map(drop) })
        })
        .collect();
    for call in calls {
        call.await.expect("nobody panicked").expect("served in its turn");
    }
}
