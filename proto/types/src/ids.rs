//! Identifiers. Newtypes without `Deref`: a generation is never mistaken for a version.

use std::fmt;
use std::str::FromStr;

use crate::error::PayloadError;
use crate::limits;
use crate::time::WallMs;

/// A payload's identity: a UUIDv7 (RFC 9562 §5.7), so the byte order of ids is the order of their creation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PayloadId([u8; 16]);

impl PayloadId {
    /// The id with these 16 bytes, whatever they are: a client may name any.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Decodes the contract's `PayloadID.value`.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` when `bytes` is not exactly 16 long.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, PayloadError> {
        match <[u8; 16]>::try_from(bytes) {
            Ok(exact) => Ok(Self(exact)),
            Err(_) if bytes.is_empty() => Err(PayloadError::invalid(
                "payload id is not set; send the 16 bytes of the id that AllocatePayload returned",
            )),
            Err(_) => Err(PayloadError::invalid(format!(
                "payload id has {} bytes; a payload id has exactly 16",
                bytes.len()
            ))),
        }
    }

    /// Builds a UUIDv7 from `ticks` = milliseconds since the epoch x 4096 + a 12-bit fraction (RFC 9562 §6.2,
    /// method 3), and 62 random bits taken from the low end of `tail`.
    ///
    /// Ids minted with growing `ticks` sort in the order of their creation.
    pub fn mint(ticks: u64, tail: u64) -> Self {
        let milliseconds = ticks >> 12;
        let fraction = ticks & 0xFFF;
        let high = (milliseconds << 16) | 0x7000 | fraction;
        let low = (tail & 0x3FFF_FFFF_FFFF_FFFF) | 0x8000_0000_0000_0000;
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&high.to_be_bytes());
        bytes[8..].copy_from_slice(&low.to_be_bytes());
        Self(bytes)
    }

    /// The 16 bytes, as they travel on the wire.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The creation time that a UUIDv7 carries.
    pub fn created_at(&self) -> WallMs {
        let mut bytes = [0; 8];
        bytes[2..].copy_from_slice(&self.0[..6]);
        WallMs::from_millis(u64::from_be_bytes(bytes))
    }

    /// A well-mixed 64-bit hash of the id; the same on every machine and in every version.
    #[inline]
    pub fn hash64(&self) -> u64 {
        let high = u64::from_le_bytes(self.0[..8].try_into().expect("8 of 16 bytes"));
        let low = u64::from_le_bytes(self.0[8..].try_into().expect("8 of 16 bytes"));
        mix(high ^ mix(low))
    }

    /// The shard that owns this id among `shard_count`; nothing stored depends on it.
    ///
    /// # Panics
    /// When `shard_count` is 0.
    #[inline]
    pub fn shard(&self, shard_count: u16) -> ShardIndex {
        assert!(shard_count > 0, "a node has at least one shard");
        ShardIndex(((u128::from(self.hash64()) * u128::from(shard_count)) >> 64) as u16)
    }
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014): every input bit reaches every output bit.
#[inline]
const fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

impl fmt::Display for PayloadId {
    /// The usual UUID text: lower case, with dashes.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_uuid(&self.0, formatter)
    }
}

impl fmt::Debug for PayloadId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_uuid(&self.0, formatter)
    }
}

fn write_uuid(bytes: &[u8; 16], formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
    // Written at once: names of 10^6 files are made of ids at boot, and sixteen formatted bytes took half a microsecond.
    let mut text = [b'-'; 36];
    let mut at = 0;
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            at += 1;
        }
        text[at] = HEX[usize::from(byte >> 4)];
        text[at + 1] = HEX[usize::from(byte & 15)];
        at += 2;
    }
    formatter.write_str(std::str::from_utf8(&text).expect("digits and dashes are text"))
}

/// The digits of [`write_uuid`].
const HEX: [u8; 16] = *b"0123456789abcdef";

/// Reads 32 hexadecimal digits with dashes anywhere between them; used for payload and lease ids alike.
fn parse_uuid(text: &str, noun: &str) -> Result<[u8; 16], PayloadError> {
    let wrong = || {
        PayloadError::invalid(format!(
            "`{text}` is not a {noun}; it is written as 32 hexadecimal digits with dashes"
        ))
    };
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b'-').collect();
    if digits.len() != 32 {
        return Err(wrong());
    }
    let mut bytes = [0; 16];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16).ok_or_else(wrong)?;
        let low = char::from(pair[1]).to_digit(16).ok_or_else(wrong)?;
        *byte = (high * 16 + low) as u8;
    }
    Ok(bytes)
}

impl FromStr for PayloadId {
    type Err = PayloadError;

    fn from_str(text: &str) -> Result<Self, PayloadError> {
        parse_uuid(text, "payload id").map(Self)
    }
}

/// The namespace a payload belongs to, as the catalog numbers it. Part of every key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NamespaceId(pub u32);

impl NamespaceId {
    /// The namespace named `default`, which the first migration creates.
    pub const DEFAULT: Self = Self(1);
}

/// What a payload is looked up by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PayloadKey {
    /// The namespace; ids of one namespace are unknown in another.
    pub namespace: NamespaceId,
    /// The id.
    pub id: PayloadId,
}

/// One shard of this node, 0-based.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ShardIndex(pub u16);

/// 80 unguessable bits of a lease id. Randomness enters a shard as a value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeaseNonce(pub [u8; 10]);

/// A lease's identity: `shard 16 | slot 32 | nonce 80`, little-endian. Knowing one gives no other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId([u8; 16]);

impl LeaseId {
    /// Composes a lease id.
    pub fn new(shard: ShardIndex, slot: u32, nonce: LeaseNonce) -> Self {
        let mut bytes = [0; 16];
        bytes[..2].copy_from_slice(&shard.0.to_le_bytes());
        bytes[2..6].copy_from_slice(&slot.to_le_bytes());
        bytes[6..].copy_from_slice(&nonce.0);
        Self(bytes)
    }

    /// Decodes the contract's `LeaseID.value`.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` when `bytes` is not exactly 16 long.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, PayloadError> {
        <[u8; 16]>::try_from(bytes).map(Self).map_err(|_| {
            PayloadError::invalid(format!("lease id has {} bytes; a lease id has exactly 16", bytes.len()))
        })
    }

    /// The 16 bytes, as they travel on the wire.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The shard that granted it; it may not exist on this node.
    pub fn shard(&self) -> ShardIndex {
        ShardIndex(u16::from_le_bytes([self.0[0], self.0[1]]))
    }

    /// The slot of the shard's lease table.
    pub fn slot(&self) -> u32 {
        u32::from_le_bytes([self.0[2], self.0[3], self.0[4], self.0[5]])
    }

    /// The unguessable part.
    pub fn nonce(&self) -> LeaseNonce {
        LeaseNonce(self.0[6..].try_into().expect("10 of 16 bytes"))
    }
}

impl fmt::Display for LeaseId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_uuid(&self.0, formatter)
    }
}

impl fmt::Debug for LeaseId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_uuid(&self.0, formatter)
    }
}

impl FromStr for LeaseId {
    type Err = PayloadError;

    fn from_str(text: &str) -> Result<Self, PayloadError> {
        parse_uuid(text, "lease id").map(Self)
    }
}

/// The number of this start of the node: 1 at the first, one more at each.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Epoch(pub u32);

/// Distinguishes every replica a node ever made, across restarts and changes of the shard count.
///
/// `epoch 20 bits | counter 36 bits`: 56 together, as direct leases require. Each shard counts in steps of the shard
/// count from its own number, so no two replicas of a node ever share one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Generation(pub u64);

impl Generation {
    /// The first generation of an epoch.
    ///
    /// # Panics
    /// After 2^20 starts or 2^36 replicas in one of them.
    pub fn new(epoch: Epoch, counter: u64) -> Self {
        assert!(epoch.0 < 1 << limits::GENERATION_EPOCH_BITS, "epoch fits its bits");
        assert!(counter < 1 << limits::GENERATION_COUNTER_BITS, "generation counter fits its bits");
        Self((u64::from(epoch.0) << limits::GENERATION_COUNTER_BITS) | counter)
    }
}

/// Grows whenever a payload's tier, location or state changes, and never goes back.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Version(pub u64);

impl Version {
    /// What AllocatePayload answers.
    pub const FIRST: Self = Self(1);

    /// The version that a row stored at `row_epoch` has when read at `boot_epoch`: changes that were made and
    /// not stored before the restart are skipped over, 2^20 an epoch (DESIGN §4).
    pub fn at_boot(self, row_epoch: Epoch, boot_epoch: Epoch) -> Self {
        let epochs = u64::from(boot_epoch.0.saturating_sub(row_epoch.0));
        Self(self.0.saturating_add(epochs << limits::VERSION_EPOCH_BITS))
    }

    /// The next version.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// Names one slot of a shard's in-flight table; the generation makes a stale completion recognisable.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct OpId {
    /// Slot number.
    pub index: u32,
    /// How often the slot was taken.
    pub generation: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_growing_ticks_when_minted_then_ids_sort_by_creation_and_are_uuid_v7() {
        let ids: Vec<PayloadId> = (0..100)
            .map(|tick| PayloadId::mint((1_700_000_000_000 << 12) + tick, u64::MAX / (tick + 1)))
            .collect();
        assert!(ids.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(ids.iter().all(|id| id.as_bytes()[6] >> 4 == 7 && id.as_bytes()[8] >> 6 == 0b10));
        assert_eq!(ids[7].created_at(), WallMs::from_millis(1_700_000_000_000));
    }

    #[test]
    fn given_an_id_when_printed_and_parsed_then_it_is_the_same() {
        let id = PayloadId::mint(123_456_789 << 12, 42);
        assert_eq!(id.to_string().parse::<PayloadId>().expect("own text"), id);
        assert!("0190".parse::<PayloadId>().is_err());
        assert!(PayloadId::from_slice(&[0; 15]).is_err());
    }

    #[test]
    fn given_many_ids_when_routed_then_shards_are_even() {
        let mut counts = [0u32; 8];
        for tick in 0..80_000u64 {
            counts[usize::from(PayloadId::mint((1 << 50) + tick, tick).shard(8).0)] += 1;
        }
        assert!(counts.iter().all(|count| (9_400..10_600).contains(count)), "{counts:?}");
    }

    #[test]
    fn given_a_lease_id_when_taken_apart_then_its_parts_return() {
        let lease = LeaseId::new(ShardIndex(3), 70_000, LeaseNonce([7; 10]));
        assert_eq!(
            (lease.shard(), lease.slot(), lease.nonce()),
            (ShardIndex(3), 70_000, LeaseNonce([7; 10]))
        );
        assert_eq!(lease.to_string().parse::<LeaseId>().expect("own text"), lease);
    }

    #[test]
    fn given_a_restart_when_a_row_is_read_then_its_version_is_past_any_it_had() {
        assert_eq!(Version(5).at_boot(Epoch(2), Epoch(2)), Version(5));
        assert_eq!(Version(5).at_boot(Epoch(2), Epoch(4)), Version(5 + 2 * (1 << 20)));
    }
}
