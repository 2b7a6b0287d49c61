//! Settings that are a choice among a few.

/// How request bodies are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip at its fastest level: measured, the link is the slower part from about 20 MB/s downwards.
    #[default]
    Gzip,
}

/// Which of PostHog's capture endpoints is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Protocol {
    /// `POST /batch/`, understood by every PostHog there is.
    #[default]
    V0,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ProxyChoice {
    FromEnv,
    None,
    Url(String),
}
