//! Which queues a command is about.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::Args;
use posthog::inspect::{self, InspectError, QueueDir};

use crate::output::shown;

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
        self.chosen(inspect::queues(&dir)?, &dir)
    }

    /// The queues and those of imports that are not finished; at least one.
    pub(crate) fn queues_and_imports(&self) -> Result<Vec<QueueDir>, InspectError> {
        let dir = self.dir()?;
        self.chosen(inspect::queues_and_imports(&dir)?, &dir)
    }

    /// Those that `--project` and `--lane` choose.
    fn chosen(&self, all: Vec<QueueDir>, dir: &Path) -> Result<Vec<QueueDir>, InspectError> {
        let is_chosen = |queue: &&QueueDir| {
            let is_of = |wanted: &String| queue.project().starts_with(&wanted.to_ascii_lowercase());
            self.project.as_ref().is_none_or(is_of) && self.lane.as_ref().is_none_or(|lane| queue.lane() == lane)
        };
        let chosen: Vec<_> = all.iter().filter(is_chosen).cloned().collect();
        if !chosen.is_empty() {
            return Ok(chosen);
        }
        let options = [("--project", &self.project), ("--lane", &self.lane)].into_iter();
        let options: Vec<_> = options.filter_map(|(name, value)| Some(format!("{name} {}", value.as_ref()?))).collect();
        let there: BTreeSet<_> =
            all.iter().map(|queue| format!("{} (lane {})", shortened(queue.project()), queue.lane())).collect();
        let there: Vec<_> = there.into_iter().take(NAMED_MOST).collect();
        Err(InspectError::Input(format!(
            "no queue below {} matches {}; there are queues of project {}",
            shown(dir),
            options.join(" "),
            there.join(", ")
        )))
    }
}

/// Projects that an error names.
const NAMED_MOST: usize = 10;

/// The beginning of a project's name, as `--project` takes it.
pub(crate) fn shortened(project: &str) -> &str {
    project.get(..8).unwrap_or(project)
}
