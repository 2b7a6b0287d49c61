//! What is due when: a pure decision over times and counts.

use std::time::{Duration, Instant};

/// Carries for a batch are this far apart, whatever `flush_at` and `flush_interval` say: each costs two syncs and tens of kilobytes.
pub(super) const CARRY_SPACING: Duration = Duration::from_secs(1);

/// So many acked rows have a transaction of their own without waiting: what a kill makes us send again is bounded by it while a
/// backlog drains, and a commit is small beside what it stands for.
pub(super) const SETTLE_ROWS: usize = 16;

/// The intervals of the options.
#[derive(Clone, Copy, Debug)]
pub(super) struct Intervals {
    pub(super) flush_at: u64,
    pub(super) flush: Duration,
    pub(super) sync: Duration,
    pub(super) ack: Duration,
}

/// Since when things wait. `None`: nothing of the kind waits.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Waiting {
    /// The first record that is not synced.
    pub(super) unsynced_since: Option<Instant>,
    /// The first record that is not checkpointed.
    pub(super) journaled_since: Option<Instant>,
    /// The first ack that is not committed.
    pub(super) unacked_since: Option<Instant>,
    /// The last checkpoint.
    pub(super) checkpointed_at: Option<Instant>,
    /// After a failed sync: when the next one is made unless somebody awaits it.
    pub(super) sync_after: Option<Instant>,
    /// After a failure: when the store is tried again.
    pub(super) retry_at: Option<Instant>,
}

/// What is there now.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Facts {
    /// Records that are not checkpointed.
    pub(super) journaled: u64,
    /// An arena is half full, or sealed ones wait.
    pub(super) pressing: bool,
    /// Rows that are acked and not committed.
    pub(super) unacked_rows: usize,
    /// Somebody awaits a receipt.
    pub(super) awaited: bool,
    /// A flush or a stop asks for everything to be checkpointed.
    pub(super) all: bool,
    /// A flush has ended: what it acked is committed before that is told.
    pub(super) flushed: bool,
}

/// What to do now, and when to look again if nobody rings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) sync: bool,
    pub(super) checkpoint: bool,
    pub(super) ack: bool,
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
    let (mut checkpoint, mut ack) = (false, false);
    if may {
        if let Some(since) = waiting.journaled_since {
            let spaced = waiting.checkpointed_at.map_or(now, |checkpointed_at| checkpointed_at + CARRY_SPACING);
            let batch_at = if facts.journaled >= intervals.flush_at { now } else { since + intervals.flush };
            checkpoint = facts.pressing || facts.all || at(Some(batch_at.max(spaced)));
        }
        if let Some(since) = waiting.unacked_since {
            ack = facts.all || facts.flushed || facts.unacked_rows >= SETTLE_ROWS || at(Some(since + intervals.ack));
        }
    }
    Due { sync, checkpoint, ack, wake_at: due.wake_at }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVALS: Intervals = Intervals {
        flush_at: 20,
        flush: Duration::from_secs(5),
        sync: Duration::from_millis(100),
        ack: Duration::from_secs(1),
    };

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn nothing_pending_means_no_timer() {
        let now = Instant::now();
        let waiting = Waiting { checkpointed_at: Some(now), ..Waiting::default() };
        assert_eq!(due(&INTERVALS, &waiting, &Facts::default(), now), Due::default());
    }

    #[test]
    fn a_record_is_synced_after_the_interval_or_at_once_when_awaited() {
        let now = Instant::now();
        let waiting = Waiting { unsynced_since: Some(now), journaled_since: Some(now), ..Waiting::default() };
        let facts = Facts { journaled: 1, ..Facts::default() };
        let early = due(&INTERVALS, &waiting, &facts, now);
        assert_eq!(early, Due { wake_at: Some(now + ms(100)), ..Due::default() });
        assert!(due(&INTERVALS, &waiting, &Facts { awaited: true, ..facts }, now).sync);
        assert!(due(&INTERVALS, &waiting, &facts, now + ms(100)).sync);
    }

    #[test]
    fn a_full_batch_is_checkpointed_at_once_but_not_twice_within_a_second() {
        let now = Instant::now();
        let waiting = Waiting { journaled_since: Some(now), ..Waiting::default() };
        let facts = Facts { journaled: 20, ..Facts::default() };
        assert!(due(&INTERVALS, &waiting, &facts, now).checkpoint);
        let again = Waiting { checkpointed_at: Some(now - ms(300)), ..waiting };
        let later = due(&INTERVALS, &again, &facts, now);
        assert_eq!(later, Due { wake_at: Some(now + ms(700)), ..Due::default() });
        assert!(due(&INTERVALS, &again, &Facts { pressing: true, ..facts }, now).checkpoint);
        assert!(due(&INTERVALS, &again, &Facts { all: true, ..facts }, now).checkpoint);
    }

    #[test]
    fn a_single_event_is_checkpointed_after_the_flush_interval() {
        let now = Instant::now();
        let waiting = Waiting { journaled_since: Some(now), ..Waiting::default() };
        let facts = Facts { journaled: 1, ..Facts::default() };
        assert_eq!(due(&INTERVALS, &waiting, &facts, now).wake_at, Some(now + ms(5000)));
        assert!(due(&INTERVALS, &waiting, &facts, now + ms(5000)).checkpoint);
    }

    #[test]
    fn acks_wait_for_a_checkpoint_unless_many_have_gathered() {
        let now = Instant::now();
        let waiting = Waiting { unacked_since: Some(now), ..Waiting::default() };
        let few = Facts { unacked_rows: SETTLE_ROWS - 1, ..Facts::default() };
        assert_eq!(due(&INTERVALS, &waiting, &few, now), Due { wake_at: Some(now + ms(1000)), ..Due::default() });
        assert!(due(&INTERVALS, &waiting, &few, now + ms(1000)).ack);
        assert!(due(&INTERVALS, &waiting, &Facts { unacked_rows: SETTLE_ROWS, ..few }, now).ack);
        assert!(due(&INTERVALS, &waiting, &Facts { flushed: true, ..few }, now).ack);
    }

    #[test]
    fn after_a_failure_nothing_is_written_to_the_store_before_its_time_but_syncs_go_on() {
        let now = Instant::now();
        let waiting = Waiting {
            unsynced_since: Some(now - ms(100)),
            journaled_since: Some(now - ms(9000)),
            unacked_since: Some(now - ms(9000)),
            retry_at: Some(now + ms(400)),
            ..Waiting::default()
        };
        let facts = Facts { journaled: 99, pressing: true, all: true, ..Facts::default() };
        let due = due(&INTERVALS, &waiting, &facts, now);
        assert_eq!(due, Due { sync: true, wake_at: Some(now + ms(400)), ..Due::default() });
    }
}
