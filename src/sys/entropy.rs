//! Random numbers from the operating system, for salts, seeds and jitter. Never fails and never panics.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use rand::TryRng;
use rand::rngs::SysRng;

/// A random number. Other processes, forked children among them, draw different ones.
pub(crate) fn random_u64() -> u64 {
    SysRng.try_next_u64().unwrap_or_else(|_| fallback_u64())
}

/// If the system provides no randomness (a sandbox that forbids the call): hashes time, process id, a counter and the
/// random keys of the standard library's hasher. Enough to differ between calls and processes; nothing here is a
/// secret.
fn fallback_u64() -> u64 {
    static DRAWN: AtomicU64 = AtomicU64::new(0);
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    hasher.write_u64(DRAWN.fetch_add(1, Ordering::Relaxed));
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    hasher.write_u128(since_epoch.as_nanos());
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_differ_with_the_system_and_without_it() {
        assert_ne!(random_u64(), random_u64());
        assert_ne!(fallback_u64(), fallback_u64());
    }
}
