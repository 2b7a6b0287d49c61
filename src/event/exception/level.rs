//! How bad an exception is.

use std::fmt;
use std::str::FromStr;

/// How bad an exception is: `$exception_level`.
///
/// Parses from the words that loggers have for it, in any case: `critical`, `alert` and `emergency` are fatal, `warn` is a warning,
/// `notice` is info, `trace` is debug.
///
/// ```
/// use posthog::Level;
///
/// assert_eq!("WARN".parse(), Ok(Level::Warning));
/// assert!("loud".parse::<Level>().is_err());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Level {
    /// It ended the program, or a part of it.
    Fatal,
    /// Something failed. What an exception is unless something else is said.
    #[default]
    Error,
    /// Something may fail.
    Warning,
    /// Worth a note.
    Log,
    /// For information.
    Info,
    /// For whoever looks for a fault.
    Debug,
}

impl Level {
    /// As PostHog writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Level::Fatal => "fatal",
            Level::Error => "error",
            Level::Warning => "warning",
            Level::Log => "log",
            Level::Info => "info",
            Level::Debug => "debug",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// No word for a [`Level`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a level; say fatal, error, warning, log, info or debug")]
#[non_exhaustive]
pub struct ParseLevelError;

impl FromStr for Level {
    type Err = ParseLevelError;

    fn from_str(text: &str) -> Result<Self, ParseLevelError> {
        Ok(match text.trim().to_ascii_lowercase().as_str() {
            "fatal" | "critical" | "alert" | "emergency" => Level::Fatal,
            "error" => Level::Error,
            "warning" | "warn" => Level::Warning,
            "log" => Level::Log,
            "info" | "notice" => Level::Info,
            "debug" | "trace" => Level::Debug,
            _ => return Err(ParseLevelError),
        })
    }
}
