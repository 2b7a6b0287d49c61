//! The words of the status page; what they mean stands in `docs/format.md`.

/// Where each word lies, in words.
#[derive(Clone, Copy, Debug)]
pub(super) enum Word {
    Magic = 0,
    Version = 1,
    Pid = 2,
    StartedAt = 3,
    BootIdHigh = 4,
    BootIdLow = 5,
    LastActivity = 6,
    Phase = 7,
    CleanExit = 8,
    Deaths = 9,
    Epoch = 10,
    Accepted = 11,
    Delivered = 12,
    DeadLettered = 13,
    Evicted = 14,
    Damaged = 15,
    LostUnsynced = 16,
    QueuedEvents = 17,
    QueuedBytes = 18,
    CheckpointedUpTo = 19,
    OldestAt = 20,
    VersionAgain = 21,
    // From here on: see `life.rs`.
    LifeKept = 22,
    LifePid = 23,
    LifeStartedAt = 24,
    LifeBootHigh = 25,
    LifeBootLow = 26,
    SeenAt = 27,
    AliveFor = 28,
    Watches = 29,
    Closed = 30,
    Ended = 31,
    DyingOf = 32,
    OomPath = 33,
    OomInode = 34,
    OomKills = 35,
    /// The build whose addresses the owner is looking up; 0 while it does not.
    Resolving = 36,
    /// The newest epoch that was there when the machine had been restarted. Epochs rise, so it stays true whoever leaves it here.
    EpochAtRestart = 37,
    /// The builds whose addresses owners died of looking up, the last first, in eight words; 0 where there are no more.
    Untrusted = 38,
    Refused = 64,
}
