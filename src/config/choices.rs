//! Settings that are a choice among a few.

/// How request bodies are compressed.
///
/// [`CaptureProtocol::V0`] servers read gzip and nothing else; [`CaptureProtocol::V1`] ones read all of these. What is chosen and cannot be done is
/// an error that names the setting, when the client is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip at its fastest level: measured, the link is the slower part from about 20 MB/s downwards.
    #[default]
    Gzip,
    /// zlib at its fastest level, `deflate` in HTTP: gzip in another wrapping. V1 only.
    Deflate,
    /// Brotli at quality 4: smaller than gzip, and slower. V1 only; needs the cargo feature `brotli`.
    Brotli,
    /// Zstandard at level 1: smaller than gzip, and a little slower. V1 only; needs the cargo feature `zstd`.
    Zstd,
}

/// Which of PostHog's endpoints is asked for flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum FlagsProtocol {
    /// `POST /flags/?v=2`: PostHog Cloud, and self-hosted servers since 2025.
    #[default]
    V2,
    /// `POST /decide/?v=3`, for self-hosted servers that know nothing newer. It tells values and payloads of flags, and neither ids nor
    /// reasons.
    Decide,
}

/// Which of PostHog's capture endpoints is spoken to.
///
/// Both take the same events and the queue does not depend on it: what was captured under one can be delivered under the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum CaptureProtocol {
    /// `POST /batch/`, understood by every PostHog there is. One verdict for all events of a request.
    #[default]
    V0,
    /// `POST /i/v1/analytics/events`: a verdict on each event, so that a refused one is found at once and a warning is heard of
    /// ([`Diagnostic::Warned`](crate::Diagnostic::Warned)). Properties that V1 wants elsewhere are put there: `$cookieless_mode`,
    /// `$ignore_sent_at`, `$process_person_profile`, `$product_tour_id`, `$session_id`, `$window_id`.
    V1,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ProxyChoice {
    FromEnv,
    None,
    Url(String),
}
