//! Which queues a command is about.

use std::path::PathBuf;

use clap::Args;
use posthog::inspect::{self, InspectError, QueueDir};

/// The queues below a directory, or some of them.
#[derive(Clone, Debug, Args)]
pub(crate) struct Target {
    /// The queue directory of a program (`Config::queue_dir`), or the directory of one project or one queue below it
    #[arg(value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Only queues of this project: the beginning of the name of its directory
    #[arg(long, value_name = "HEX")]
    project: Option<String>,
    /// Only queues of this lane
    #[arg(long, value_name = "LANE", value_parser = ["analytics", "ai"])]
    lane: Option<String>,
}

impl Target {
    /// All queues below a directory.
    pub(crate) fn of(dir: Option<PathBuf>) -> Self {
        Self { dir, project: None, lane: None }
    }

    /// Whether only one lane is meant.
    pub(crate) fn has_lane(&self) -> bool {
        self.lane.is_some()
    }

    /// The directory that was given, or the one that the environment names.
    pub(crate) fn dir(&self) -> Result<PathBuf, InspectError> {
        self.dir.clone().map_or_else(inspect::default_queue_dir, Ok)
    }

    /// The queues; at least one.
    pub(crate) fn queues(&self) -> Result<Vec<QueueDir>, InspectError> {
        let dir = self.dir()?;
        let mut found = inspect::queues(&dir)?;
        found.retain(|queue| {
            let is_of = |wanted: &String| queue.project().starts_with(&wanted.to_ascii_lowercase());
            self.project.as_ref().is_none_or(is_of) && self.lane.as_ref().is_none_or(|lane| queue.lane() == lane)
        });
        if found.is_empty() { Err(InspectError::NotAQueue { path: dir }) } else { Ok(found) }
    }
}
