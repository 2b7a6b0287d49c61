//! Drops for want of room: counted one by one, recorded at most once a second for each reason.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::pipeline::DropReason;
use crate::sys::clock::WallNanos;

/// They come in floods, and recording each would cost more than the capture.
const TELL_INTERVAL_NANOS: i64 = 1_000_000_000;

/// Counts drops that are not recorded one by one. No lock and no allocation: it is part of a capture.
#[derive(Debug)]
pub(super) struct Flood {
    waiting: [AtomicU64; DropReason::COUNT],
    /// Wall time, as bits; a clock that goes backwards records a little more often.
    told_at: [AtomicU64; DropReason::COUNT],
}

impl Default for Flood {
    fn default() -> Self {
        Self {
            waiting: [const { AtomicU64::new(0) }; DropReason::COUNT],
            told_at: [const { AtomicU64::new(0) }; DropReason::COUNT],
        }
    }
}

impl Flood {
    /// Counts one; answers how many are to be recorded now, if any.
    pub(super) fn due(&self, reason: DropReason, now_nanos: WallNanos) -> Option<u64> {
        let (waiting, told_at) = (self.waiting.get(reason as usize)?, self.told_at.get(reason as usize)?);
        waiting.fetch_add(1, Ordering::Relaxed);
        let last = told_at.load(Ordering::Relaxed);
        let passed = now_nanos.wrapping_sub(last as i64);
        if (0..TELL_INTERVAL_NANOS).contains(&passed) && last != 0 {
            return None;
        }
        told_at.compare_exchange(last, now_nanos as u64, Ordering::Relaxed, Ordering::Relaxed).ok()?;
        Some(waiting.swap(0, Ordering::Relaxed))
    }

    /// Takes what was counted and not recorded yet.
    pub(super) fn drain(&self) -> Vec<(DropReason, u64)> {
        let all = DropReason::ALL.into_iter().zip(&self.waiting);
        all.map(|(reason, waiting)| (reason, waiting.swap(0, Ordering::Relaxed)))
            .filter(|(_, count)| *count > 0)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_drops_is_told_once_a_second_and_every_drop_is_counted() {
        let flood = Flood::default();
        let told: Vec<_> = (1..=3_000).filter_map(|ms| flood.due(DropReason::JournalFull, ms * 1_000_000)).collect();
        assert_eq!(told, [1, 1000, 1000]);
        assert_eq!(flood.due(DropReason::QueueFull, 1), Some(1), "each reason for itself");
        assert_eq!(flood.drain(), [(DropReason::JournalFull, 999)]);
        assert_eq!(flood.drain(), []);
    }
}
