//! Tasks of an async program that share one client: `cargo run --release --example tasks -- 127.0.0.1:50051`.
//!
//! Nothing blocks the runtime: a task that waits for the server lets others run.

use payload_client::{AcquireOptions, Client, ClientError, Memory};
use payload_types::ByteCount;

/// How many producers and consumers.
const PAIRS: u8 = 8;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), ClientError> {
    let target = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:50051".to_owned());
    let client = Client::connect(&target).await?;

    let pairs: Vec<_> = (1..=PAIRS).map(|byte| tokio::spawn(pair(client.clone(), byte))).collect();
    let mut sum = 0;
    for pair in pairs {
        sum += pair.await.expect("no task panics")?;
    }
    println!("{PAIRS} pairs, sum {sum}");
    Ok(())
}

/// Stores a payload, reads it in place, and deletes it.
async fn pair(client: Client, byte: u8) -> Result<u64, ClientError> {
    // A segment outlives this program and the server; leave `memory` out to have the fastest there is.
    let mut payload = client.allocate(ByteCount(1 << 16)).memory(Memory::Segment).await?;
    payload.fill(byte);
    let id = payload.commit(None).await?.id;

    let lease = client.acquire(id, &AcquireOptions::default()).await?;
    let sum = lease.iter().map(|byte| u64::from(*byte)).sum();
    lease.release().await?;

    client.delete(id, false, None).await?;
    Ok(sum)
}
