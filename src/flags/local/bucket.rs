//! In which bucket somebody is: the same number everywhere, for whoever evaluates the flag.

use sha1::{Digest, Sha1};

/// The largest number of fifteen hexadecimal digits.
const MOST: u64 = 0xfff_ffff_ffff_ffff;
const DROPPED_BITS: u32 = u64::BITS - 4 * 15;

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
    let mut hash = Sha1::new();
    parts.iter().for_each(|part| hash.update(part.as_bytes()));
    let digest: [u8; 20] = hash.finalize().into();
    let [a, b, c, d, e, f, g, h, ..] = digest;
    let digits = u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> DROPPED_BITS;
    digits as f64 / MOST as f64
}

#[cfg(test)]
#[path = "bucket_tests.rs"]
mod tests;
