//! Looking up names with a mark on the status page. It reads what compilers and packagers have written, with a parser that is not ours,
//! and takes memory; if that takes the process with it, the next one must not walk into the same event: addresses of that build are sent
//! without names from then on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::queue::{Queue, task_id};
use crate::record::Symbols;
use crate::record::stack::Image;
use crate::record::symbols::{SourceLines, Symbol};
use crate::sys::crash_point;

/// The symbols that delivery uses: none of a build that an owner of the shard died of looking up.
pub(super) fn guarded(symbols: &Arc<dyn Symbols>, shard: &Arc<Queue>) -> Arc<dyn Symbols> {
    Arc::new(Guarded { symbols: Arc::clone(symbols), shard: Arc::clone(shard), marked: AtomicU64::new(0) })
}

#[derive(Debug)]
struct Guarded {
    symbols: Arc<dyn Symbols>,
    shard: Arc<Queue>,
    /// The build on the page, or 0. The mark stands from a body's first look-up to its last, or to that of another build: where the page
    /// is not mapped, setting it is a write.
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

    fn rest(&self) {
        self.symbols.rest();
        if self.marked.swap(0, Ordering::AcqRel) != 0 {
            self.shard.mark_task(None);
        }
    }
}
