//! What the commands share: words for tiers, ids and durations of the command line, and the loop over several ids.

use std::path::Path;

use clap::ValueEnum;
use payload_client::{AllocateOptions, Client, ClientError};
use payload_types::tier::SpillTarget;
use payload_types::{EvictionPolicy, Memory, PayloadError, PayloadId, Tier, Version};

use crate::output::Output;

/// A tier, as it is written on the command line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum TierWord {
    /// Shared memory.
    Ram,
    /// Local files.
    Disk,
    /// Device memory.
    Gpu,
    /// Object storage.
    Object,
}

/// Where a payload may be spilled to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum TargetWord {
    /// Shared memory.
    Ram,
    /// Local files.
    Disk,
    /// Device memory.
    Gpu,
    /// Object storage.
    Object,
    /// Nowhere: the payload is discarded.
    Void,
}

impl From<TierWord> for Tier {
    fn from(word: TierWord) -> Self {
        match word {
            TierWord::Gpu => Self::Gpu,
            TierWord::Ram => Self::Ram,
            TierWord::Disk => Self::Disk,
            TierWord::Object => Self::Object,
        }
    }
}

impl From<TargetWord> for SpillTarget {
    fn from(word: TargetWord) -> Self {
        match word {
            TargetWord::Gpu => Self::Tier(Tier::Gpu),
            TargetWord::Ram => Self::Tier(Tier::Ram),
            TargetWord::Disk => Self::Tier(Tier::Disk),
            TargetWord::Object => Self::Tier(Tier::Object),
            TargetWord::Void => Self::Void,
        }
    }
}

/// Where a new payload lies, and how long it lives.
#[derive(clap::Args)]
pub struct Placement {
    /// The tier that holds the bytes.
    #[arg(long, value_enum, ignore_case = true, default_value = "ram")]
    tier: TierWord,
    /// Expire after so long, like 1h; never without it.
    #[arg(long, value_name = "DURATION", value_parser = positive_millis)]
    ttl: Option<u64>,
    /// Never evict it automatically.
    #[arg(long)]
    no_evict: bool,
    /// Where it goes when it is spilled or evicted; the server's default without it.
    #[arg(long, value_enum, ignore_case = true, value_name = "TIER")]
    spill_target: Option<TargetWord>,
}

impl Placement {
    /// As the client takes it.
    pub fn options(&self) -> AllocateOptions {
        AllocateOptions {
            tier: self.tier.into(),
            ttl_ms: self.ttl,
            no_evict: self.no_evict,
            policy: EvictionPolicy { spill_target: self.spill_target.map(Into::into), ..Default::default() },
            // Its programs end at once: what they leave is to be read by everybody, and to survive the server.
            memory: Some(Memory::Segment),
        }
    }
}

/// The own field `expected_version`.
#[derive(clap::Args)]
pub struct Fence {
    /// Do it only while the payload has this version.
    #[arg(long, value_name = "VERSION")]
    expected_version: Option<u64>,
}

impl Fence {
    /// As the client takes it.
    pub fn version(&self) -> Option<Version> {
        self.expected_version.map(Version)
    }
}

/// Reads a duration that is longer than nothing: on the wire 0 means that none was given.
pub fn positive_millis(text: &str) -> Result<u64, PayloadError> {
    match payload_types::time::parse_millis(text)? {
        0 => {
            Err(PayloadError::invalid(format!("`{text}` is no time at all; leave the flag out for no limit")))
        }
        millis => Ok(millis),
    }
}

/// Does `call` for each id, one after the other, and shows what comes of it. A failure is reported and the next id
/// taken, unless there is no server to ask.
pub async fn for_each_id<T>(
    client: &Client,
    output: &mut Output,
    ids: &[String],
    call: impl AsyncFn(&Client, PayloadId) -> Result<T, ClientError>,
    mut show: impl FnMut(&mut Output, PayloadId, T) -> Result<(), ClientError>,
) -> anyhow::Result<()> {
    for text in ids {
        let result = match parse_id(text) {
            Ok(id) => call(client, id).await.map(|value| (id, value)),
            Err(error) => Err(error),
        };
        match result {
            Ok((id, value)) => show(output, id, value)?,
            Err(error) if error.is_broken_pipe() => return Err(error.into()),
            Err(error) => {
                output.fail(text, &error)?;
                if matches!(error, ClientError::Connect { .. }) {
                    break;
                }
            }
        }
    }
    Ok(())
}

/// Reads a payload id of the command line.
pub fn parse_id(text: &str) -> Result<PayloadId, ClientError> {
    Ok(text.parse::<PayloadId>()?)
}

/// A path as it is shown.
pub fn shown(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_every_word_when_converted_then_each_tier_has_one() {
        let mut tiers: Vec<Tier> = TierWord::value_variants().iter().map(|word| (*word).into()).collect();
        tiers.sort();
        assert_eq!(tiers, Tier::ALL);
        let targets: Vec<SpillTarget> =
            TargetWord::value_variants().iter().map(|word| (*word).into()).collect();
        assert!(targets.contains(&SpillTarget::Void) && targets.len() == 5);
    }

    #[test]
    fn given_a_duration_of_nothing_when_read_then_refused() {
        assert_eq!(positive_millis("0.5s"), Ok(500));
        assert!(positive_millis("0s").expect_err("nothing").message.contains("leave the flag out"));
        assert!(positive_millis("soon").is_err());
    }
}
