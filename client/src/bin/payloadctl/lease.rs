//! `lease` and `release`: reading leases by hand, for scripts and for finding out what a lease does.

use std::time::Duration;

use payload_client::{AcquireOptions, Client, ClientError, Lease};
use payload_types::{LeaseId, WallMs, time};

use crate::common::{Fence, TierWord, for_each_id, positive_millis};
use crate::interrupt::Interrupt;
use crate::output::Output;
use crate::view::Leased;

/// Arguments of `lease`.
#[derive(clap::Args)]
pub struct LeaseArgs {
    /// What to lease.
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
    /// Keep the leases so long, like 10s, then release them; without it they are left to their own end.
    #[arg(long, value_name = "DURATION", value_parser = positive_millis)]
    hold: Option<u64>,
    /// Ask for leases that last so long; the server's default without it.
    #[arg(long = "for", value_name = "DURATION", value_parser = positive_millis)]
    duration: Option<u64>,
    /// The slowest tier that will do; promoted to it first where needed.
    #[arg(long, value_enum, ignore_case = true)]
    tier: Option<TierWord>,
    #[command(flatten)]
    fence: Fence,
}

/// Arguments of `release`.
#[derive(clap::Args)]
pub struct ReleaseArgs {
    /// The leases to end, as `lease` printed them.
    #[arg(required = true, value_name = "LEASE_ID")]
    leases: Vec<String>,
}

/// Takes the leases, shows them, and holds them as long as asked.
pub async fn run_lease(client: &Client, output: &mut Output, args: LeaseArgs) -> anyhow::Result<()> {
    let options = AcquireOptions {
        min_tier: args.tier.map(Into::into),
        lease_ms_min: args.duration.into_iter().chain(args.hold).max().unwrap_or_default(),
        expected_version: args.fence.version(),
        ..Default::default()
    };
    let Some(hold) = args.hold else {
        let acquire = async |client: &Client, id| client.acquire_read_lease(id, &options).await;
        return for_each_id(client, output, &args.ids, acquire, |output, _, lease| {
            output.block(&Leased::from(&lease))
        })
        .await;
    };
    let interrupt = Interrupt::install()?;
    let acquire = async |client: &Client, id| {
        let asked_at = now();
        let lease = client.acquire_read_lease(id, &options).await?;
        match too_short(&lease, asked_at, hold) {
            None => Ok(lease),
            Some(error) => {
                client.release_lease(lease.id).await?;
                Err(error)
            }
        }
    };
    let mut held = Vec::new();
    let taken = for_each_id(client, output, &args.ids, acquire, |output, _, lease| {
        held.push(lease.id);
        output.block(&Leased::from(&lease))
    })
    .await;
    // Whoever waits for the ids must see them now, not when the hold ends.
    let shown = taken.and_then(|()| Ok(output.flush()?));
    if shown.is_ok() && !held.is_empty() {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(hold)) => {}
            () = interrupt.wait() => {}
        }
    }
    for lease in held {
        if let Err(error) = client.release_lease(lease).await {
            output.fail(&lease.to_string(), &error)?;
        }
    }
    shown?;
    Ok(interrupt.check()?)
}

/// Ends each lease.
pub async fn run_release(client: &Client, output: &mut Output, args: ReleaseArgs) -> anyhow::Result<()> {
    for text in &args.leases {
        let result = match text.parse::<LeaseId>() {
            Ok(lease) => client.release_lease(lease).await.map(|()| lease),
            Err(error) => Err(ClientError::from(error)),
        };
        match result {
            Ok(lease) => output.done("lease_id", &lease, "released")?,
            Err(error) => output.fail(text, &error)?,
        }
    }
    Ok(())
}

/// Why a lease cannot be held that long: the server clamps what it grants, and v1 has no renewal. Both ends of the
/// span are rounded to milliseconds and read from two clocks, so a second less passes.
fn too_short(lease: &Lease, asked_at: WallMs, hold: u64) -> Option<ClientError> {
    const SLACK_MS: u64 = 1_000;
    let granted = lease.expires_at.as_millis().saturating_sub(asked_at.as_millis());
    (granted.saturating_add(SLACK_MS) < hold).then(|| {
        ClientError::Input(format!(
            "the server leases it for {} at most (leases.max_lease), and --hold asks for {}; hold it for less",
            time::format_millis(granted.div_ceil(1_000) * 1_000),
            time::format_millis(hold)
        ))
    })
}

fn now() -> WallMs {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    WallMs::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use payload_client::Descriptor;
    use payload_types::{
        ByteCount, EvictionPolicy, LeaseNonce, PayloadId, PayloadState, ShardIndex, Tier, Version,
    };

    use super::*;

    #[test]
    fn given_a_lease_shorter_than_the_hold_when_judged_then_the_sentence_names_both() {
        let descriptor = Descriptor {
            id: PayloadId::from_bytes([1; 16]),
            tier: Tier::Ram,
            state: PayloadState::Active,
            version: Version(2),
            size: ByteCount(1),
            location: None,
            created_at: None,
            expires_at: None,
            policy: EvictionPolicy::default(),
            checksum: None,
            node: None,
        };
        let lease = Lease {
            id: LeaseId::new(ShardIndex(0), 0, LeaseNonce([0; 10])),
            descriptor,
            expires_at: WallMs::from_millis(1_120_000),
        };
        let asked_at = WallMs::from_millis(1_000_000);
        assert!(too_short(&lease, asked_at, 120_500).is_none());
        let sentence = too_short(&lease, asked_at, 600_000).expect("too short").to_string();
        assert!(sentence.contains("2m at most") && sentence.contains("10m"), "{sentence}");
    }
}
