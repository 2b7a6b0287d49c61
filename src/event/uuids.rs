//! Uuids of version 7: the milliseconds of the capture and 74 random bits.
//!
//! Each thread has its own generator, seeded by the operating system. It is seeded again in a forked child: parent and
//! child have the same memory at the fork and would otherwise generate the same uuids for different events.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};

use rand::rngs::{SysRng, Xoshiro256PlusPlus};
use rand::{Rng, SeedableRng, TryRng};
use sha2::{Digest, Sha256};
use uuid::{Builder, Uuid};

use crate::sys::clock::WallNanos;

/// A generator and the process that it was seeded in.
#[derive(Clone)]
struct Seeded {
    fork_generation: u64,
    // Uuids must be unique but may be predictable. A cryptographic generator takes three times as long.
    rng: Xoshiro256PlusPlus,
}

thread_local! {
    static GENERATOR: RefCell<Option<Seeded>> = const { RefCell::new(None) };
}

/// The next uuid of this thread. `fork_generation` differs between a process and its forked children.
pub(crate) fn next(now_nanos: WallNanos, fork_generation: u64) -> Uuid {
    let draw = |seeded: &mut Option<Seeded>| {
        let seeded = match seeded {
            Some(seeded) if seeded.fork_generation == fork_generation => seeded,
            stale => stale.insert(Seeded { fork_generation, rng: seed(system_seed(), now_nanos, fork_generation) }),
        };
        (seeded.rng.next_u64(), seeded.rng.next_u64())
    };
    // In place. At the end of a thread, without the thread-local, each call seeds a new generator: slower, but as
    // unique.
    let drawn = GENERATOR.try_with(|generator| generator.try_borrow_mut().map(|mut seeded| draw(&mut seeded)));
    let (high, low) = match drawn {
        Ok(Ok(drawn)) => drawn,
        _ => draw(&mut None),
    };
    version_7(now_nanos, high, low)
}

fn version_7(now_nanos: WallNanos, high: u64, low: u64) -> Uuid {
    let millis = u64::try_from(now_nanos).unwrap_or(0) / 1_000_000;
    let mut random = [0; 10];
    random[..8].copy_from_slice(&high.to_le_bytes());
    random[8..].copy_from_slice(&(low as u16).to_le_bytes());
    Builder::from_unix_timestamp_millis(millis, &random).into_uuid()
}

#[cold]
fn system_seed() -> Option<[u8; 32]> {
    let mut seed = [0; 32];
    SysRng.try_fill_bytes(&mut seed).ok().map(|()| seed)
}

/// Seeds a generator from everything that differs between generators. If the system provides no randomness (early boot
/// of an old kernel, a sandbox that forbids the call), the rest is enough.
#[cold]
fn seed(system: Option<[u8; 32]>, now_nanos: WallNanos, fork_generation: u64) -> Xoshiro256PlusPlus {
    static SEEDED: AtomicU64 = AtomicU64::new(0);
    let on_stack = 0u8;
    let mixed = Sha256::new()
        .chain_update(system.unwrap_or_default())
        .chain_update(fork_generation.to_le_bytes())
        .chain_update(now_nanos.to_le_bytes())
        .chain_update(std::process::id().to_le_bytes())
        .chain_update(SEEDED.fetch_add(1, Ordering::Relaxed).to_le_bytes())
        .chain_update((&raw const on_stack).addr().to_le_bytes())
        .finalize();
    Xoshiro256PlusPlus::from_seed(mixed.into())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const NOW: WallNanos = 1_700_000_000_123_456_789;

    #[test]
    fn a_uuid_has_the_milliseconds_of_its_capture() {
        let uuid = next(NOW, 0);
        assert_eq!((uuid.get_version_num(), uuid.get_variant()), (7, uuid::Variant::RFC4122));
        assert_eq!(uuid.get_timestamp().map(|time| time.to_unix()), Some((1_700_000_000, 123_000_000)));
    }

    #[test]
    fn a_time_before_1970_still_gives_a_uuid() {
        assert_eq!(next(-1, 0).get_timestamp().map(|time| time.to_unix()), Some((0, 0)));
    }

    #[test]
    fn uuids_of_one_moment_differ_within_and_between_threads() {
        let draw = || (0..10_000).map(|_| next(NOW, 0)).collect::<Vec<_>>();
        let threads: Vec<_> = (0..4).map(|_| std::thread::spawn(draw)).collect();
        let all: HashSet<_> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        assert_eq!(all.len(), 40_000);
    }

    #[test]
    fn a_forked_child_does_not_draw_its_parents_uuids() {
        next(NOW, 1);
        // What a fork copies: the thread's generator as it stands.
        let copied = GENERATOR.take();
        GENERATOR.set(copied.clone());
        let parent = next(NOW, 1);
        GENERATOR.set(copied);
        assert_ne!(next(NOW, 2), parent);
        assert_eq!(GENERATOR.take().map(|seeded| seeded.fork_generation), Some(2));
    }

    #[test]
    fn without_the_systems_randomness_generators_still_differ() {
        let draw = |generation| seed(None, NOW, generation).next_u64();
        assert_ne!(draw(0), draw(0));
        assert_ne!(draw(0), draw(1));
    }
}
