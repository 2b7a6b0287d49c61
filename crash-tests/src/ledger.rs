//! The ledger of a queue directory: the client's counters over all runs, which account for every accepted event.

use std::fmt;

use posthog::Stats;

/// The counters of [`Stats`] that must balance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// All accepted events.
    pub accepted: u64,
    /// Events that PostHog accepted.
    pub delivered: u64,
    /// Events in the queue, not yet delivered.
    pub queued: u64,
    /// Events in the dead letters.
    pub dead_lettered: u64,
    /// Events dropped because of a limit on the queue's size or age.
    pub evicted: u64,
    /// Events that could not be read and were moved aside.
    pub damaged: u64,
    /// Events that a power failure lost.
    pub lost_unsynced: u64,
}

impl Ledger {
    /// The counters in `stats`.
    pub fn of(stats: &Stats) -> Self {
        Self {
            accepted: stats.accepted,
            delivered: stats.delivered,
            queued: stats.queued_events,
            dead_lettered: stats.dead_lettered,
            evicted: stats.evicted,
            damaged: stats.damaged,
            lost_unsynced: stats.lost_unsynced,
        }
    }

    /// Whether each accepted event is counted in exactly one place.
    pub fn balances(&self) -> bool {
        let gone = self.delivered + self.dead_lettered + self.evicted + self.damaged + self.lost_unsynced;
        self.accepted == gone + self.queued
    }

    /// Parses the output of [`fmt::Display`].
    pub fn parse(numbers: &str) -> Option<Self> {
        let numbers: Vec<u64> = numbers.split(' ').map(str::parse).collect::<Result<_, _>>().ok()?;
        let [accepted, delivered, queued, dead_lettered, evicted, damaged, lost_unsynced] = numbers[..] else {
            return None;
        };
        Some(Self { accepted, delivered, queued, dead_lettered, evicted, damaged, lost_unsynced })
    }
}

impl std::iter::Sum for Ledger {
    fn sum<I: Iterator<Item = Self>>(shards: I) -> Self {
        shards.fold(Self::default(), |total, shard| Self {
            accepted: total.accepted + shard.accepted,
            delivered: total.delivered + shard.delivered,
            queued: total.queued + shard.queued,
            dead_lettered: total.dead_lettered + shard.dead_lettered,
            evicted: total.evicted + shard.evicted,
            damaged: total.damaged + shard.damaged,
            lost_unsynced: total.lost_unsynced + shard.lost_unsynced,
        })
    }
}

impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { accepted, delivered, queued, dead_lettered, evicted, damaged, lost_unsynced } = self;
        write!(f, "{accepted} {delivered} {queued} {dead_lettered} {evicted} {damaged} {lost_unsynced}")
    }
}
