//! `peer ADDR`: a second process for end-to-end tests, a v1 client of its own.
//!
//! Reads tasks from stdin, a line each, and answers each with a line on stdout:
//!
//! ```text
//! read ID          leases, maps, hashes, releases   -> TIER LENGTH XXH3
//! look ID          the same, opening it read-only    -> TIER LENGTH XXH3
//! hold ID          leases and maps, and keeps both  -> TIER LENGTH XXH3
//! session ID       leases it in a lease session, which stays open -> how many are leased so
//! delete ID        deletes                           -> deleted, or the refusal
//! write TIER SEED LENGTH   allocates, writes in place, commits -> ID
//! native-hold ID   leases it over a native session and keeps the lease -> TIER LENGTH XXH3
//! native-allocate LENGTH   allocates in RAM over a native session, and keeps it uncommitted -> ID
//! native-churn ID          -> churning; from then on leases it, allocates, commits and deletes until it is killed
//! ```
//! Ids are hexadecimal, tiers numbers. Ends with its standard input; a task that fails ends it with a panic.
#![forbid(unsafe_code)]

use std::io::{BufRead as _, Write as _};
use std::path::PathBuf;

use payload_client::{AcquireOptions, Client, blocking};
use payload_tests::v1::{V1, content, id};
use payload_types::{ByteCount, PayloadId as PayloadKey};
use payload_wire::pb::core::v1::PayloadId;
use xxhash_rust::xxh3::xxh3_64;

// Long because: one arm a task, each of a few lines.
// Long because: one arm a task.
fn main() {
    let address = std::env::args().nth(1).expect("peer ADDR");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let v1 = runtime.block_on(V1::connect_at(&address, PathBuf::from("/")));
    let mut held = Vec::new();
    let mut session = None;
    let mut leased = Vec::new();
    let mut native = None;
    let mut natively_held = Vec::new();
    let mut natively_allocated = Vec::new();
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("text");
        let words: Vec<&str> = line.split(' ').collect();
        let answer = match words[..] {
            ["write", tier, seed, length] => {
                let bytes = content(seed.parse().expect("a number"), length.parse().expect("a number"));
                let put = runtime.block_on(v1.put(tier.parse().expect("a number"), &bytes));
                hex(&id(&put))
            }
            [verb @ ("read" | "hold"), name] => {
                let lease = runtime.block_on(v1.lease(&from_hex(name))).expect("leased");
                let descriptor = lease.payload_descriptor.as_ref().expect("one");
                let mapping = v1.map(descriptor);
                let answer = format!("{} {} {:016x}", descriptor.tier, mapping.len(), xxh3_64(&mapping));
                match verb {
                    "hold" => held.push(mapping),
                    _ => runtime.block_on(v1.release(&lease)).expect("released"),
                }
                answer
            }
            ["look", name] => {
                let (tier, bytes) = runtime.block_on(v1.bytes_in_place(&from_hex(name)));
                format!("{tier} {} {:016x}", bytes.len(), xxh3_64(&bytes))
            }
            ["session", name] => {
                let wished = runtime.block_on(async {
                    if session.is_none() {
                        let client = Client::connect_grpc(&address).await.expect("connected");
                        session = Some(client.lease_session().await.expect("a session"));
                    }
                    let id = PayloadKey::from_slice(&from_hex(name).value).expect("16 bytes");
                    let session = session.as_ref().expect("just opened");
                    session.acquire(id, &AcquireOptions::default()).await.expect("leased")
                });
                leased.push(wished);
                leased.len().to_string()
            }
            ["native-hold", name] => {
                let id = PayloadKey::from_slice(&from_hex(name).value).expect("16 bytes");
                let client = native.get_or_insert_with(|| native_client(&address));
                let lease = client.acquire(id, &AcquireOptions::default()).expect("leased");
                let answer =
                    format!("{} {} {:016x}", lease.descriptor().tier as i32, lease.len(), xxh3_64(&lease));
                natively_held.push(lease);
                answer
            }
            ["native-allocate", length] => {
                let size = ByteCount(length.parse().expect("a number"));
                let client = native.get_or_insert_with(|| native_client(&address));
                let payload = client.allocate(size).open().expect("allocated");
                let answer = payload.id().as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
                natively_allocated.push(payload);
                answer
            }
            ["native-churn", name] => {
                println!("churning");
                std::io::stdout().flush().expect("somebody reads");
                churn(
                    &native_client(&address),
                    PayloadKey::from_slice(&from_hex(name).value).expect("16 bytes"),
                )
            }
            ["delete", name] => match runtime.block_on(v1.delete(&from_hex(name), false)) {
                Ok(()) => "deleted".to_owned(),
                Err(status) => status.to_string(),
            },
            _ => panic!("no task: {line}"),
        };
        println!("{answer}");
        std::io::stdout().flush().expect("somebody reads");
    }
}

fn native_client(address: &str) -> blocking::Client {
    let client = blocking::Client::connect(address).expect("connected");
    assert!(client.session().is_some(), "the server is on this host");
    client
}

/// A busy client: some leases and an allocation are always open, whenever it is killed.
fn churn(client: &blocking::Client, id: PayloadKey) -> ! {
    let expected = xxh3_64(&client.acquire(id, &AcquireOptions::default()).expect("leased"));
    let mut leases = std::collections::VecDeque::new();
    for round in 0u64.. {
        let lease = client.acquire(id, &AcquireOptions::default()).expect("leased");
        assert_eq!(xxh3_64(&lease), expected, "another's bytes");
        leases.push_back(lease);
        if leases.len() > 5 {
            leases.pop_front();
        }
        let bytes = content(round, 1 + (round as usize * 997) % 20_000);
        // A full tier is no fault: others are being cleaned up after.
        let Ok(mut payload) = client.allocate(ByteCount(bytes.len() as u64)).open() else {
            continue;
        };
        payload.copy_from_slice(&bytes);
        if round % 3 > 0 {
            let made = payload.commit(None).expect("committed").id;
            client.delete(made, false, None).expect("deleted");
        }
    }
    unreachable!("a u64 of rounds")
}

fn hex(id: &PayloadId) -> String {
    id.value.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> PayloadId {
    let value = (0..text.len() / 2).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).expect("hex"));
    PayloadId { value: value.collect() }
}
