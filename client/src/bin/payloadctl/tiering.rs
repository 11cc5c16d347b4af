//! `promote`, `spill`, `prefetch`, `pin`, `unpin`: where payloads lie.

use clap::ValueEnum;
use payload_client::{Client, ClientError, SpillOptions};
use payload_types::{ErrorKind, PayloadId, limits};

use crate::common::{Fence, TargetWord, TierWord, for_each_id, parse_id, positive_millis};
use crate::output::Output;
use crate::view::{Brief, Discarded};

/// Arguments of `promote`.
#[derive(clap::Args)]
pub struct PromoteArgs {
    /// What to promote.
    #[arg(required = true, value_name = "ID")]
    pub ids: Vec<String>,
    /// Where to.
    #[arg(value_enum, ignore_case = true)]
    pub tier: TierWord,
    #[command(flatten)]
    fence: Fence,
}

/// Arguments of `spill`.
#[derive(clap::Args)]
pub struct SpillArgs {
    /// What to spill.
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
    /// Where to; each payload's own spill target without it, else disk.
    #[arg(long, value_enum, ignore_case = true, value_name = "TIER")]
    to: Option<TargetWord>,
    /// Bytes and catalog are on stable storage when it is done.
    #[arg(long)]
    fsync: bool,
    /// Wait until the leases that exist now have ended, instead of failing.
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    fence: Fence,
}

/// Arguments of `prefetch`.
#[derive(clap::Args)]
pub struct PrefetchArgs {
    /// What to prefetch; the last word may be the tier.
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
    /// Where to; ram without it.
    #[arg(long, value_enum, ignore_case = true, value_name = "TIER")]
    to: Option<TierWord>,
}

/// Arguments of `pin`.
#[derive(clap::Args)]
pub struct PinArgs {
    /// What to pin.
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
    /// For so long, like 10m; until `unpin` without it.
    #[arg(long = "for", value_name = "DURATION", value_parser = positive_millis)]
    duration: Option<u64>,
}

/// Arguments of `unpin`.
#[derive(clap::Args)]
pub struct UnpinArgs {
    /// What to unpin.
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
}

/// Promotes each payload.
pub async fn run_promote(client: &Client, output: &mut Output, args: PromoteArgs) -> anyhow::Result<()> {
    let promote =
        async |client: &Client, id| client.promote(id, args.tier.into(), None, args.fence.version()).await;
    for_each_id(client, output, &args.ids, promote, |output, _, descriptor| {
        output.row(&Brief::from(&descriptor))?;
        output.flush()
    })
    .await
}

/// Spills all payloads, as many a call as the server takes.
pub async fn run_spill(client: &Client, output: &mut Output, args: SpillArgs) -> anyhow::Result<()> {
    let options = SpillOptions {
        target: args.to.map(Into::into),
        wait_for_leases: args.wait,
        fsync: args.fsync,
        expected_version: args.fence.version(),
        ..Default::default()
    };
    let mut ids: Vec<PayloadId> = Vec::with_capacity(args.ids.len());
    for text in &args.ids {
        match parse_id(text) {
            Ok(id) => ids.push(id),
            Err(error) => output.fail(text, &error)?,
        }
    }
    for batch in ids.chunks(limits::SPILL_IDS_MAX) {
        let results = match client.spill(batch, &options).await {
            Ok(results) => results,
            // The one id is the subject of the sentence; of several, none is.
            Err(error) if batch.len() == 1 => {
                output.fail(&batch[0].to_string(), &error)?;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        for spilled in results {
            match spilled.result {
                Ok(Some(descriptor)) => output.row(&Brief::from(&descriptor))?,
                Ok(None) => output.row(&Discarded::new(spilled.id))?,
                Err(message) => {
                    let error = ClientError::Server { kind: ErrorKind::FailedPrecondition, message };
                    output.fail(&spilled.id.to_string(), &error)?;
                }
            }
        }
        output.flush()?;
    }
    Ok(())
}

/// Schedules each promotion.
pub async fn run_prefetch(
    client: &Client,
    output: &mut Output,
    mut args: PrefetchArgs,
) -> anyhow::Result<()> {
    let named = split_tier(&mut args.ids);
    if args.to.is_some() && named.is_some() {
        anyhow::bail!("the tier is given twice; leave out --to or the last word");
    }
    let tier = args.to.or(named).unwrap_or(TierWord::Ram);
    let prefetch = async |client: &Client, id| client.prefetch(id, tier.into()).await;
    for_each_id(client, output, &args.ids, prefetch, |output, id, ()| output.done("id", &id, "prefetching"))
        .await
}

/// Pins each payload.
pub async fn run_pin(client: &Client, output: &mut Output, args: PinArgs) -> anyhow::Result<()> {
    let pin = async |client: &Client, id| client.pin(id, args.duration).await;
    for_each_id(client, output, &args.ids, pin, |output, id, ()| output.done("id", &id, "pinned")).await
}

/// Unpins each payload.
pub async fn run_unpin(client: &Client, output: &mut Output, args: UnpinArgs) -> anyhow::Result<()> {
    for_each_id(client, output, &args.ids, Client::unpin, |output, id, ()| output.done("id", &id, "unpinned"))
        .await
}

/// Takes a tier off the end of `ID... [TIER]`: no id reads as one.
fn split_tier(ids: &mut Vec<String>) -> Option<TierWord> {
    let tier = TierWord::from_str(ids.last().filter(|_| ids.len() > 1)?, true).ok()?;
    ids.pop();
    Some(tier)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_ids_and_a_tier_when_split_then_only_a_last_tier_is_taken() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        for (line, tier, rest) in [
            ("A ram", Some(TierWord::Ram), "A"),
            ("A B DISK", Some(TierWord::Disk), "A B"),
            ("A B", None, "A B"),
            ("ram", None, "ram"),
        ] {
            let mut ids = words(line);
            assert_eq!((split_tier(&mut ids), ids), (tier, words(rest)), "{line}");
        }
    }
}
