//! Guards symbol lookup with a mark on the status page.
//!
//! Looking up names parses debug information, which is foreign input, with third-party code, and takes memory. If it
//! kills the process, the next process must not die of the same event. So the build that is being looked up is marked
//! on the page, and if the mark is still there at the next start, addresses of that build are sent without names from
//! then on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::queue::{Queue, task_id};
use crate::record::Symbols;
use crate::record::stack::Image;
use crate::record::symbols::{SourceLines, Symbol};
use crate::sys::crash_point;

/// Wraps the symbols that delivery uses, so that a build is skipped if its lookup ended an earlier process.
pub(super) fn guarded(symbols: &Arc<dyn Symbols>, shard: &Arc<Queue>) -> Arc<dyn Symbols> {
    Arc::new(Guarded { symbols: Arc::clone(symbols), shard: Arc::clone(shard), marked: AtomicU64::new(0) })
}

#[derive(Debug)]
struct Guarded {
    symbols: Arc<dyn Symbols>,
    shard: Arc<Queue>,
    /// The id of the build that is marked on the page, or 0. The mark stays until a lookup in another build or the end
    /// of the request body, not for one lookup only: if the page is not mapped, each change is a write.
    marked: AtomicU64,
}

impl Symbols for Guarded {
    fn resolve(&self, image: &Image<'_>, address: u64) -> Vec<Symbol> {
        let build = task_id(image.build_id);
        if self.shard.is_fatal_task(build) {
            return Vec::new();
        }
        if self.marked.swap(build, Ordering::AcqRel) != build {
            self.shard.mark_task(Some(build));
            crash_point::reach("symbols.asked");
        }
        self.symbols.resolve(image, address)
    }

    fn source(&self, file: &str, line: u32) -> Option<SourceLines> {
        self.symbols.source(file, line)
    }

    fn is_in_app(&self, function: &str, file: Option<&str>, in_executable: bool) -> bool {
        self.symbols.is_in_app(function, file, in_executable)
    }

    fn rest(&self) {
        self.symbols.rest();
        if self.marked.swap(0, Ordering::AcqRel) != 0 {
            self.shard.mark_task(None);
        }
    }
}
