//! Leases many payloads at a time: `cargo run --release --example batch -- 127.0.0.1:50051`.
//!
//! One ring of the doorbell for all of them over a native session, one call over gRPC.

use payload_client::blocking::Client;
use payload_client::{AcquireOptions, ClientError};
use payload_types::ByteCount;

/// How many payloads.
const COUNT: u8 = 100;

fn main() -> Result<(), ClientError> {
    let target = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:50051".to_owned());
    let client = Client::connect(&target)?;

    // Accepted is enough to go on: other programs of this host may lease it at once. Wait for all of them at the end.
    let mut accepted = Vec::new();
    for byte in 0..COUNT {
        let mut payload = client.allocate(ByteCount(4096)).open()?;
        payload.fill(byte);
        accepted.push(payload.commit_accepted(None)?);
    }
    let mut ids = Vec::new();
    for payload in accepted {
        ids.push(payload.durable()?.id);
    }

    let leases = client.acquire_many(&ids, &AcquireOptions::default())?;
    let leases = leases.into_iter().collect::<Result<Vec<_>, _>>()?;
    let sum: u64 = leases.iter().flat_map(|lease| lease.iter()).map(|byte| u64::from(*byte)).sum();
    println!("{} payloads, sum {sum}", leases.len());
    client.release_many(leases)?;

    ids.iter().try_for_each(|id| client.delete(*id, false, None))
}
