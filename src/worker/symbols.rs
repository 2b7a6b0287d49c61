//! Looking up names with a mark on the status page. It reads what compilers and packagers have written, with a parser that is not ours;
//! if it takes the process with it, the next one must not walk into the same event: it sends addresses without names.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::crash_point;
use crate::record::stack::Image;
use crate::record::symbols::{SourceLines, Symbol};
use crate::record::{NoSymbols, Symbols};
use crate::shard::Shard;

/// The symbols that delivery uses: none if the shard's last owner died of them.
pub(super) fn guarded(symbols: &Arc<dyn Symbols>, shard: &Arc<Shard>) -> Arc<dyn Symbols> {
    if shard.distrusts_symbols() {
        return Arc::new(NoSymbols);
    }
    Arc::new(Guarded { symbols: Arc::clone(symbols), shard: Arc::clone(shard), is_marked: AtomicBool::new(false) })
}

#[derive(Debug)]
struct Guarded {
    symbols: Arc<dyn Symbols>,
    shard: Arc<Shard>,
    /// The mark stands from the first look-up of a body to its end: where the page is not mapped, setting it is a write.
    is_marked: AtomicBool,
}

impl Symbols for Guarded {
    fn resolve(&self, image: &Image<'_>, address: u64) -> Vec<Symbol> {
        if !self.is_marked.swap(true, Ordering::AcqRel) {
            self.shard.mark_resolving(true);
            crash_point::reach("symbols.asked");
        }
        self.symbols.resolve(image, address)
    }

    fn source(&self, file: &str, line: u32) -> Option<SourceLines> {
        self.symbols.source(file, line)
    }

    fn rest(&self) {
        self.symbols.rest();
        if self.is_marked.swap(false, Ordering::AcqRel) {
            self.shard.mark_resolving(false);
        }
    }
}
