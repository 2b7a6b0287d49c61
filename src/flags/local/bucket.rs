//! In which bucket somebody is: the same number everywhere, for whoever evaluates the flag.

use sha1::block_api::compress;
use sha1::{Digest, Sha1};

/// The largest number of fifteen hexadecimal digits.
const MOST: u64 = 0xfff_ffff_ffff_ffff;
const DROPPED_BITS: u32 = u64::BITS - 4 * 15;

/// SHA-1 works on blocks; the last one ends with a mark and the length in bits.
const BLOCK: usize = 64;
const MARK: u8 = 0x80;
const LENGTH: usize = BLOCK - size_of::<u64>();
const START: [u32; 5] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0];

/// Of a rollout: who is above the share is left out.
pub(super) fn of_rollout(key: &str, id: &str) -> f64 {
    of(&[key, ".", id])
}

/// Of the flag's variants.
pub(super) fn of_variants(key: &str, id: &str) -> f64 {
    of(&[key, ".", id, "variant"])
}

/// Of a holdout, which is one for all flags that have it.
pub(super) fn of_holdout(id: &str) -> f64 {
    of(&["holdout-", id])
}

/// The first fifteen hexadecimal digits of a SHA-1, as a share of the largest such number.
fn of(parts: &[&str]) -> f64 {
    let start = of_one_block(parts).unwrap_or_else(|| of_any_length(parts));
    let digits = start >> DROPPED_BITS;
    digits as f64 / MOST as f64
}

/// What the hash of a text that fits into one block, as most do, starts with. Quicker than the other way, which gathers the block in a
/// buffer of its own.
fn of_one_block(parts: &[&str]) -> Option<u64> {
    let mut block = [0; BLOCK];
    let mut len = 0_usize;
    for part in parts {
        let end = len.checked_add(part.len()).filter(|end| *end < LENGTH)?;
        block.get_mut(len..end)?.copy_from_slice(part.as_bytes());
        len = end;
    }
    *block.get_mut(len)? = MARK;
    block.get_mut(LENGTH..)?.copy_from_slice(&(8 * len as u64).to_be_bytes());
    let mut state = START;
    compress(&mut state, &[block]);
    let [first, second, ..] = state;
    Some(u64::from(first) << u32::BITS | u64::from(second))
}

fn of_any_length(parts: &[&str]) -> u64 {
    let mut hash = Sha1::new();
    parts.iter().for_each(|part| hash.update(part.as_bytes()));
    let digest: [u8; 20] = hash.finalize().into();
    let [a, b, c, d, e, f, g, h, ..] = digest;
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

#[cfg(test)]
#[path = "bucket_tests.rs"]
mod tests;
