//! XXH3-64 (seed 0) of bytes that several threads look at: the very value that `xxhash_rust` computes of them in one piece.
//!
//! XXH3 adds up what the 16 stripes of a block of 1 KiB contribute, each without regard to the others, and scrambles the sum between
//! blocks. So [`Part::of`] adds up blocks anywhere, and [`Digest::take`] puts sums together in order: 64 bytes for each KiB.
//! After XXH3's specification (github.com/Cyan4973/xxHash, doc/xxhash_spec.md); a test compares it with the crate.

use payload_types::Checksum;

/// A block, after which the sum is scrambled.
pub(super) const BLOCK_BYTES: usize = 1024;
const STRIPE_BYTES: usize = 64;
const LANES: usize = 8;
/// From here on sums are taken over blocks; what is shorter is hashed in other ways.
pub(super) const BYTES_MIN: u64 = 241;

const PRIME32: [u64; 3] = [0x9E37_79B1, 0x85EB_CA77, 0xC2B2_AE3D];
const PRIME64: [u64; 5] = [
    0x9E37_79B1_85EB_CA87,
    0xC2B2_AE3D_27D4_EB4F,
    0x1656_67B1_9E37_79F9,
    0x85EB_CA77_C2B2_AE63,
    0x27D4_EB2F_1656_67C5,
];
const BEGIN: Sum =
    [PRIME32[2], PRIME64[0], PRIME64[1], PRIME64[2], PRIME64[3], PRIME32[1], PRIME64[4], PRIME32[0]];

/// The default secret of the specification.
#[rustfmt::skip]
static SECRET: [u8; 192] = [
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
];

type Sum = [u64; LANES];

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

/// What one stripe contributes.
fn add(sum: &mut Sum, stripe: &[u8], secret: &[u8]) {
    let (stripe, secret) = (&stripe[..STRIPE_BYTES], &secret[..STRIPE_BYTES]);
    for lane in 0..LANES {
        let value = word(stripe, lane * 8);
        let keyed = value ^ word(secret, lane * 8);
        sum[lane ^ 1] = sum[lane ^ 1].wrapping_add(value);
        sum[lane] = sum[lane].wrapping_add((keyed & 0xFFFF_FFFF).wrapping_mul(keyed >> 32));
    }
}

/// What some neighbouring bytes contribute.
pub(super) struct Part {
    blocks: Vec<Sum>,
    /// What is no whole block, or the last one: XXH3 treats that apart.
    rest: Vec<u8>,
    /// The last bytes of whole blocks; the last stripe may begin there.
    edge: [u8; STRIPE_BYTES],
}

impl Part {
    /// Of `bytes`, which begin at a block's beginning; the last bytes of all if `is_last`, and whole blocks if not.
    pub(super) fn of(bytes: &[u8], is_last: bool) -> Self {
        assert!(!bytes.is_empty() && (is_last || bytes.len().is_multiple_of(BLOCK_BYTES)), "whole blocks");
        let whole = if is_last { (bytes.len() - 1) / BLOCK_BYTES } else { bytes.len() / BLOCK_BYTES };
        let (summed, rest) = bytes.split_at(whole * BLOCK_BYTES);
        let blocks = summed.chunks_exact(BLOCK_BYTES).map(|block| {
            let mut sum = [0; LANES];
            for (number, stripe) in block.chunks_exact(STRIPE_BYTES).enumerate() {
                add(&mut sum, stripe, &SECRET[number * 8..]);
            }
            sum
        });
        let mut edge = [0; STRIPE_BYTES];
        if let Some(last) = summed.last_chunk() {
            edge = *last;
        }
        Self { blocks: blocks.collect(), rest: rest.to_vec(), edge }
    }
}

/// Puts parts together.
pub(super) struct Digest {
    sum: Sum,
    edge: [u8; STRIPE_BYTES],
    rest: Vec<u8>,
}

impl Digest {
    pub(super) fn new() -> Self {
        Self { sum: BEGIN, edge: [0; STRIPE_BYTES], rest: Vec::new() }
    }

    /// The next part.
    pub(super) fn take(&mut self, part: Part) {
        assert!(self.rest.is_empty(), "only the last part has a rest");
        for block in &part.blocks {
            for (lane, added) in block.iter().enumerate() {
                let sum = self.sum[lane].wrapping_add(*added);
                let scrambled = sum ^ (sum >> 47) ^ word(&SECRET, SECRET.len() - STRIPE_BYTES + lane * 8);
                self.sum[lane] = scrambled.wrapping_mul(PRIME32[0]);
            }
        }
        if !part.blocks.is_empty() {
            self.edge = part.edge;
        }
        self.rest = part.rest;
    }

    /// Of all parts, which have so many bytes together: at least [`BYTES_MIN`].
    pub(super) fn finish(mut self, bytes: u64) -> Checksum {
        assert!(bytes >= BYTES_MIN && !self.rest.is_empty(), "what is shorter has another hash");
        let stripes = (self.rest.len() - 1) / STRIPE_BYTES;
        for number in 0..stripes {
            add(&mut self.sum, &self.rest[number * STRIPE_BYTES..], &SECRET[number * 8..]);
        }
        let mut last = self.edge.to_vec();
        last.extend_from_slice(&self.rest);
        let last = &last[last.len() - STRIPE_BYTES..];
        add(&mut self.sum, last, &SECRET[SECRET.len() - STRIPE_BYTES - 7..]);
        let mut hash = bytes.wrapping_mul(PRIME64[0]);
        for pair in 0..LANES / 2 {
            let key = 11 + pair * 16;
            let left = self.sum[pair * 2] ^ word(&SECRET, key);
            let right = self.sum[pair * 2 + 1] ^ word(&SECRET, key + 8);
            let product = u128::from(left) * u128::from(right);
            hash = hash.wrapping_add(product as u64 ^ (product >> 64) as u64);
        }
        hash ^= hash >> 37;
        hash = hash.wrapping_mul(0x1656_6791_9E37_79F9);
        Checksum(hash ^ (hash >> 32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum;

    #[test]
    fn given_bytes_of_every_length_when_hashed_in_parts_then_as_in_one_piece() {
        let bytes: Vec<u8> = (0..20_000u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let lengths = (241..4200).chain((4200..20_000).step_by(61)).chain([8192, 8193, 16_384]);
        for length in lengths {
            let bytes = &bytes[..length];
            for part in [BLOCK_BYTES, 4 * BLOCK_BYTES] {
                let mut digest = Digest::new();
                let mut left = bytes;
                while left.len() > part {
                    digest.take(Part::of(&left[..part], false));
                    left = &left[part..];
                }
                digest.take(Part::of(left, true));
                assert_eq!(
                    digest.finish(length as u64),
                    checksum(bytes),
                    "{length} bytes in parts of {part}"
                );
            }
        }
    }
}
