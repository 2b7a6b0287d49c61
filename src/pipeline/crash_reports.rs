//! The directory of crash reports, and the adoption of reports from other shards.

use std::path::{Path, PathBuf};

use super::{Notice, Pipeline};
use crate::crash;

impl Pipeline {
    /// The directory of this shard's crash reports; `None` if the queue is in memory.
    pub(crate) fn crash_dir(&self) -> Option<PathBuf> {
        (!self.shard.is_volatile()).then(|| self.shard.dir().join(crash::DIR))
    }

    /// Calls `call` whenever crash reports of an orphaned shard were adopted.
    pub(crate) fn on_reports_adopted(&self, call: impl Fn() + Send + Sync + 'static) {
        let _ = self.reports_adopted.set(Box::new(call));
    }

    /// Moves the crash reports of an orphaned shard into this shard's directory, where this client reads them.
    pub(super) fn adopt_crash_reports(&self, from: &Path) {
        let Some(to) = self.crash_dir() else { return };
        match crash::adopt_reports(&self.options.disk, from, &to) {
            Ok(false) => {}
            Ok(true) => {
                if let Some(found) = self.reports_adopted.get() {
                    found();
                }
            }
            Err(error) => {
                let why = format!("its crash reports cannot be moved to this queue ({error}); they are left there");
                (self.options.report)(Notice::ShardSkipped { path: from.to_path_buf(), why });
            }
        }
    }
}
