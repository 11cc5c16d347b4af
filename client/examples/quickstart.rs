//! Stores bytes and reads them in place: `cargo run --release --example quickstart -- 127.0.0.1:50051`.
//!
//! On the server's own host every call goes through shared memory; elsewhere through gRPC. The code is the same.

use payload_client::blocking::Client;
use payload_client::{AcquireOptions, ClientError};
use payload_types::ByteCount;

fn main() -> Result<(), ClientError> {
    let target = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:50051".to_owned());
    let client = Client::connect(&target)?;

    // A producer: reserve, write where the bytes will lie, commit.
    let mut payload = client.allocate(ByteCount(1 << 20)).open()?;
    for (at, byte) in payload.iter_mut().enumerate() {
        *byte = at as u8;
    }
    let id = payload.commit(None)?.id;

    // A worker: lease, read in place. The lease ends when it is dropped.
    let lease = client.acquire(id, &AcquireOptions::default())?;
    let sum: u64 = lease.iter().map(|byte| u64::from(*byte)).sum();
    println!("{id}: {} bytes, sum {sum}", lease.len());
    drop(lease);

    client.delete(id, false, None)
}
