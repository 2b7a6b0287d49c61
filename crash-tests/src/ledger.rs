//! Where the events of a queue directory went, as the client counts them across all its lives.

use std::fmt;

use posthog::Stats;

/// The counters of [`Stats`] that must add up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Events that were ever taken.
    pub accepted: u64,
    /// Taken by PostHog.
    pub delivered: u64,
    /// Waiting.
    pub queued: u64,
    /// In the dead letters.
    pub dead_lettered: u64,
    /// Gone for want of room, or for age.
    pub evicted: u64,
    /// Set aside because they could not be read.
    pub damaged: u64,
    /// Gone with the power.
    pub lost_unsynced: u64,
}

impl Ledger {
    /// What `stats` say.
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

    /// Whether each accepted event is in exactly one place.
    pub fn balances(&self) -> bool {
        let gone = self.delivered + self.dead_lettered + self.evicted + self.damaged + self.lost_unsynced;
        self.accepted == gone + self.queued
    }

    /// Reads what [`fmt::Display`] writes.
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
