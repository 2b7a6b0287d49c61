//! What happened that somebody should know. One notice per occurrence, or per episode where it says so.

use uuid::Uuid;

/// Something that happened during delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub(crate) enum Notice {
    /// A success that is not PostHog's: a captive portal, a wrong host. The events stay queued. Once per episode.
    NotPostHog {
        /// Its status.
        status: u16,
        /// The beginning of its body.
        snippet: String,
    },
    /// The key, the quota or the encoding was refused; once per episode.
    Paused {
        /// 401, 402, 403 or 415.
        status: u16,
        /// In the words of whoever answered.
        reason: String,
        /// They are PostHog's.
        by_posthog: bool,
    },
    /// The endpoint answered with a failure; once per episode.
    ServerFailed {
        /// Its status.
        status: u16,
        /// What that means, and the beginning of its body.
        text: String,
    },
    /// PostHog took events and has something to say about them; once for each answer and text.
    Warned {
        /// The first of them.
        uuid: Uuid,
        /// How many.
        events: u64,
        /// What it says.
        details: String,
    },
    /// PostHog could not take these events this time; once per episode.
    AskedAgain {
        /// How many.
        events: u64,
        /// What it says of the first.
        reason: String,
    },
    /// No answer; once per episode.
    TransportFailed {
        /// The chain of errors.
        reason: String,
    },
    /// The attempts of a cycle are spent; nothing is sent for a while. Told when the number of parks in an episode has doubled.
    Cooldown {
        /// For how long.
        seconds: u64,
        /// Attempts that failed since the last success.
        attempts: u32,
        /// What the last of them met.
        reason: String,
    },
    /// The endpoint works again; once per episode.
    Recovered,
    /// An event was refused, and there is no evidence yet that the event is to blame; or it failed twice on its own while others passed.
    /// It stays queued and is stepped over. Once for each event.
    Quarantined {
        /// Which.
        uuid: Uuid,
        /// The status of the answer; 0 if there was none.
        status: u16,
        /// The refusal's words, or what failed.
        reason: String,
    },
    /// Nothing was accepted between many refusals: taken for an outage. Counted and told as a park.
    RefusingEverything {
        /// The last refusal's status.
        status: u16,
        /// The last refusal's words.
        reason: String,
    },
    /// An event went to the dead letters.
    DeadLettered {
        /// Which.
        uuid: Uuid,
        /// The refusal's status; 0 if the event could not be read.
        status: u16,
        /// The refusal's words.
        reason: String,
    },
    /// PostHog accepted the request and says that it drops these kinds for want of quota.
    QuotaLimited {
        /// As PostHog names them.
        kinds: Vec<String>,
    },
    /// A callback of the program panicked.
    CallbackPanicked,
    /// The engine panicked, which is a defect; another one takes over.
    EngineFailed {
        /// After so long.
        seconds: u64,
    },
    /// The queue could not be read; reading is tried again.
    QueueUnreadable {
        /// The chain of errors.
        reason: String,
    },
}
