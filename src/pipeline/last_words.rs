//! Where last words lie, and how those of other shards come there.

use std::path::{Path, PathBuf};

use super::{Notice, Pipeline};
use crate::crash;

impl Pipeline {
    /// Where last words lie; `None` if the queue is in memory.
    pub(crate) fn crash_dir(&self) -> Option<PathBuf> {
        (!self.shard.is_volatile()).then(|| self.shard.dir().join(crash::DIR))
    }

    /// Has `call` called when an orphan's last words were brought here.
    pub(crate) fn when_last_words_are_found(&self, call: impl Fn() + Send + Sync + 'static) {
        let _ = self.on_last_words.set(Box::new(call));
    }

    /// Crashes are told by one client each, so those of an orphan are brought to where ours looks.
    pub(super) fn bring_last_words(&self, from: &Path) {
        let Some(to) = self.crash_dir() else { return };
        match crash::take_over(&self.options.disk, from, &to) {
            Ok(false) => {}
            Ok(true) => {
                if let Some(found) = self.on_last_words.get() {
                    found();
                }
            }
            Err(error) => {
                let why = format!("the crash reports in it cannot be taken over: {error}");
                (self.options.report)(Notice::ShardSkipped { path: from.to_path_buf(), why });
            }
        }
    }
}
