//! Gates for tests: a disk that fails when it is told to.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Call, Gate, Op, Verdict};

/// Fails the `nth` call of `op` (counted from 1) with "no space left on device".
pub(crate) fn fail_nth(op: Op, nth: u64) -> Arc<dyn Gate> {
    fail_when(move |call, count| {
        (call.op == op && count == nth).then(|| Verdict::Fail(io::Error::from_raw_os_error(28)))
    })
}

/// Asks `decide` about each call; it is told how many calls of the same kind there have been, this one included.
pub(crate) fn fail_when(decide: impl Fn(&Call<'_>, u64) -> Option<Verdict> + Send + Sync + 'static) -> Arc<dyn Gate> {
    Arc::new(Decider { decide, counts: Default::default() })
}

struct Decider<F> {
    decide: F,
    counts: [AtomicU64; 14],
}

impl<F> std::fmt::Debug for Decider<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Decider")
    }
}

impl<F: Fn(&Call<'_>, u64) -> Option<Verdict> + Send + Sync> Gate for Decider<F> {
    fn before(&self, call: &Call<'_>) -> Verdict {
        let count = self.counts[call.op as usize].fetch_add(1, Ordering::SeqCst) + 1;
        (self.decide)(call, count).unwrap_or(Verdict::Go)
    }
}
