//! The answer to Stats, summed over shards.

use payload_types::Tier;
use payload_types::reply::ShardStats;

use crate::pb::admin::v1 as pb;

/// Sums what the shards answered. No sum of payload counts or sizes of one machine comes near 2^64.
pub fn stats(shards: &[ShardStats]) -> pb::StatsResponse {
    let payloads = |tier| shards.iter().map(|shard| shard.tiers[tier].payloads).sum();
    let bytes = |tier| shards.iter().map(|shard| shard.tiers[tier].bytes).sum();
    pb::StatsResponse {
        payloads_gpu: payloads(Tier::Gpu),
        payloads_ram: payloads(Tier::Ram),
        payloads_disk: payloads(Tier::Disk),
        payloads_object: payloads(Tier::Object),
        bytes_gpu: bytes(Tier::Gpu),
        bytes_ram: bytes(Tier::Ram),
        bytes_disk: bytes(Tier::Disk),
        bytes_object: bytes(Tier::Object),
        ..pb::StatsResponse::default()
    }
}

#[cfg(test)]
mod tests {
    use payload_types::PerTier;
    use payload_types::reply::TierStats;

    use super::*;

    #[test]
    fn given_two_shards_when_summed_then_each_tier_has_its_own_totals() {
        let shard = |factor: u64| ShardStats {
            tiers: PerTier([1, 2, 3, 4].map(|n| TierStats {
                payloads: n * factor,
                bytes: n * factor * 100,
                ..TierStats::default()
            })),
            ..ShardStats::default()
        };
        let expected = pb::StatsResponse {
            payloads_gpu: 11,
            payloads_ram: 22,
            payloads_disk: 33,
            payloads_object: 44,
            bytes_gpu: 1_100,
            bytes_ram: 2_200,
            bytes_disk: 3_300,
            bytes_object: 4_400,
            ..pb::StatsResponse::default()
        };
        assert_eq!(stats(&[shard(1), shard(10)]), expected);
        assert_eq!(stats(&[]), pb::StatsResponse::default());
    }
}
