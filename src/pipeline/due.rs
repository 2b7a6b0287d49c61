//! What is due when: a pure decision over times and counts.

use std::time::{Duration, Instant};

/// Carries for a batch are this far apart, whatever `flush_at` and `flush_interval` say: each costs two syncs and tens of kilobytes.
pub(super) const CARRY_SPACING: Duration = Duration::from_secs(1);

/// So many settled rows have a transaction of their own without waiting: what a kill makes us send again is bounded by it while a
/// backlog drains, and a commit is small beside what it stands for.
pub(super) const SETTLE_ROWS: usize = 16;

/// The intervals of the options.
#[derive(Clone, Copy, Debug)]
pub(super) struct Intervals {
    pub(super) flush_at: u64,
    pub(super) flush: Duration,
    pub(super) sync: Duration,
    pub(super) settle: Duration,
}

/// Since when things wait. `None`: nothing of the kind waits.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Waiting {
    /// The first record that is not synced.
    pub(super) unsynced_since: Option<Instant>,
    /// The first record that is not carried.
    pub(super) uncarried_since: Option<Instant>,
    /// The first settlement that is not committed.
    pub(super) unsettled_since: Option<Instant>,
    /// The last carry.
    pub(super) carried_at: Option<Instant>,
    /// After a failed sync: when the next one is made unless somebody awaits it.
    pub(super) sync_after: Option<Instant>,
    /// After a failure: when the store is tried again.
    pub(super) retry_at: Option<Instant>,
}

/// What is there now.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Facts {
    /// Records that are not carried.
    pub(super) uncarried: u64,
    /// An arena is half full, or sealed ones wait.
    pub(super) pressing: bool,
    /// Rows that are settled and not committed.
    pub(super) unsettled_rows: usize,
    /// Somebody awaits a receipt.
    pub(super) awaited: bool,
    /// A flush or a stop asks for everything to be carried.
    pub(super) all: bool,
    /// A flush has ended: what it settled is committed before that is told.
    pub(super) flushed: bool,
}

/// What to do now, and when to look again if nobody rings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) sync: bool,
    pub(super) carry: bool,
    pub(super) settle: bool,
    /// `None`: never by itself.
    pub(super) wake_at: Option<Instant>,
}

/// Decides.
pub(super) fn due(intervals: &Intervals, waiting: &Waiting, facts: &Facts, now: Instant) -> Due {
    let mut due = Due::default();
    let mut at = |time: Option<Instant>| {
        let Some(time) = time else { return false };
        if time <= now {
            return true;
        }
        due.wake_at = Some(due.wake_at.map_or(time, |earlier| earlier.min(time)));
        false
    };
    let sync_at = waiting.unsynced_since.map(|since| (since + intervals.sync).max(waiting.sync_after.unwrap_or(since)));
    let sync = sync_at.is_some() && (facts.awaited || at(sync_at));

    let may = waiting.retry_at.is_none() || at(waiting.retry_at);
    let (mut carry, mut settle) = (false, false);
    if may {
        if let Some(since) = waiting.uncarried_since {
            let spaced = waiting.carried_at.map_or(now, |carried_at| carried_at + CARRY_SPACING);
            let batch_at = if facts.uncarried >= intervals.flush_at { now } else { since + intervals.flush };
            carry = facts.pressing || facts.all || at(Some(batch_at.max(spaced)));
        }
        if let Some(since) = waiting.unsettled_since {
            settle =
                facts.all || facts.flushed || facts.unsettled_rows >= SETTLE_ROWS || at(Some(since + intervals.settle));
        }
    }
    Due { sync, carry, settle, wake_at: due.wake_at }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVALS: Intervals = Intervals {
        flush_at: 20,
        flush: Duration::from_secs(5),
        sync: Duration::from_millis(100),
        settle: Duration::from_secs(1),
    };

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn nothing_pending_means_no_timer() {
        let now = Instant::now();
        let waiting = Waiting { carried_at: Some(now), ..Waiting::default() };
        assert_eq!(due(&INTERVALS, &waiting, &Facts::default(), now), Due::default());
    }

    #[test]
    fn a_record_is_synced_after_the_interval_or_at_once_when_awaited() {
        let now = Instant::now();
        let waiting = Waiting { unsynced_since: Some(now), uncarried_since: Some(now), ..Waiting::default() };
        let facts = Facts { uncarried: 1, ..Facts::default() };
        let early = due(&INTERVALS, &waiting, &facts, now);
        assert_eq!(early, Due { wake_at: Some(now + ms(100)), ..Due::default() });
        assert!(due(&INTERVALS, &waiting, &Facts { awaited: true, ..facts }, now).sync);
        assert!(due(&INTERVALS, &waiting, &facts, now + ms(100)).sync);
    }

    #[test]
    fn a_full_batch_is_carried_at_once_but_not_twice_within_a_second() {
        let now = Instant::now();
        let waiting = Waiting { uncarried_since: Some(now), ..Waiting::default() };
        let facts = Facts { uncarried: 20, ..Facts::default() };
        assert!(due(&INTERVALS, &waiting, &facts, now).carry);
        let again = Waiting { carried_at: Some(now - ms(300)), ..waiting };
        let later = due(&INTERVALS, &again, &facts, now);
        assert_eq!(later, Due { wake_at: Some(now + ms(700)), ..Due::default() });
        assert!(due(&INTERVALS, &again, &Facts { pressing: true, ..facts }, now).carry);
        assert!(due(&INTERVALS, &again, &Facts { all: true, ..facts }, now).carry);
    }

    #[test]
    fn a_single_event_is_carried_after_the_flush_interval() {
        let now = Instant::now();
        let waiting = Waiting { uncarried_since: Some(now), ..Waiting::default() };
        let facts = Facts { uncarried: 1, ..Facts::default() };
        assert_eq!(due(&INTERVALS, &waiting, &facts, now).wake_at, Some(now + ms(5000)));
        assert!(due(&INTERVALS, &waiting, &facts, now + ms(5000)).carry);
    }

    #[test]
    fn settlements_wait_for_a_carry_unless_many_have_gathered() {
        let now = Instant::now();
        let waiting = Waiting { unsettled_since: Some(now), ..Waiting::default() };
        let few = Facts { unsettled_rows: SETTLE_ROWS - 1, ..Facts::default() };
        assert_eq!(due(&INTERVALS, &waiting, &few, now), Due { wake_at: Some(now + ms(1000)), ..Due::default() });
        assert!(due(&INTERVALS, &waiting, &few, now + ms(1000)).settle);
        assert!(due(&INTERVALS, &waiting, &Facts { unsettled_rows: SETTLE_ROWS, ..few }, now).settle);
        assert!(due(&INTERVALS, &waiting, &Facts { flushed: true, ..few }, now).settle);
    }

    #[test]
    fn after_a_failure_nothing_is_written_to_the_store_before_its_time_but_syncs_go_on() {
        let now = Instant::now();
        let waiting = Waiting {
            unsynced_since: Some(now - ms(100)),
            uncarried_since: Some(now - ms(9000)),
            unsettled_since: Some(now - ms(9000)),
            retry_at: Some(now + ms(400)),
            ..Waiting::default()
        };
        let facts = Facts { uncarried: 99, pressing: true, all: true, ..Facts::default() };
        let due = due(&INTERVALS, &waiting, &facts, now);
        assert_eq!(due, Due { sync: true, wake_at: Some(now + ms(400)), ..Due::default() });
    }
}
