//! The disk as a value, and the gate through which tests make any of its calls fail.

use std::fmt::Debug;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::sys::machine::OomCount;

use super::filesystem::FileSystem;

/// The disk. Cheap to clone; the default is the real one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    pub(super) gate: Option<Arc<dyn Gate>>,
}

/// Decides about each call before it is made.
pub(crate) trait Gate: Send + Sync + Debug {
    /// Asked before the call.
    fn before(&self, call: &Call<'_>) -> Verdict;
    /// Told when the call has succeeded.
    fn after(&self, _call: &Call<'_>) {}
    /// The kind of file system that is pretended; `None` tells the truth.
    fn file_system(&self) -> Option<FileSystem> {
        None
    }
    /// The start of the machine that is pretended; `None` tells the truth.
    fn boot_id(&self) -> Option<u128> {
        None
    }
    /// The time since that start that is pretended; `None` tells the truth.
    fn uptime(&self) -> Option<Duration> {
        None
    }
    /// What the OOM killer is pretended to have done; `None` tells the truth.
    fn oom_count(&self) -> Option<OomCount> {
        None
    }
}

/// What a [`Gate`] says.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// Make the call.
    Go,
    /// Do not make it; this is its result.
    #[cfg_attr(not(test), allow(dead_code, reason = "constructed by tests"))]
    Fail(io::Error),
    /// For a write: make it with no more than so many bytes.
    #[cfg_attr(not(test), allow(dead_code, reason = "constructed by tests"))]
    Short(usize),
}

/// One call, as a [`Gate`] sees it.
#[derive(Debug)]
#[cfg_attr(not(test), allow(dead_code, reason = "gates are made by tests"))]
pub(crate) struct Call<'a> {
    /// Which call.
    pub(crate) op: Op,
    /// The file or directory it concerns; for a rename, the source.
    pub(crate) path: &'a Path,
    /// Bytes to be written, or the length to be set; 0 otherwise.
    pub(crate) len: u64,
}

/// The calls there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Op {
    /// Opening an existing file.
    Open,
    /// Creating a file.
    Create,
    /// Reading.
    Read,
    /// Writing.
    Write,
    /// Making a file's bytes durable.
    Sync,
    /// Setting a file's length.
    SetLen,
    /// Mapping a file.
    Map,
    /// Taking a lock.
    Lock,
    /// Making a directory.
    MakeDir,
    /// Making a directory's entries durable.
    SyncDir,
    /// Listing a directory.
    List,
    /// Renaming.
    Rename,
    /// Removing.
    Remove,
    /// Asking for free space.
    Space,
}

impl Disk {
    /// The real disk with a gate before it.
    #[cfg(test)]
    pub(crate) fn gated(gate: Arc<dyn Gate>) -> Self {
        Self { gate: Some(gate) }
    }

    /// Makes a call, unless the gate decides otherwise; retried when a signal interrupted it.
    pub(super) fn guarded<T>(
        &self,
        op: Op,
        path: &Path,
        len: u64,
        mut call: impl FnMut() -> io::Result<T>,
    ) -> io::Result<T> {
        loop {
            let answer = match self.ask(op, path, len) {
                Verdict::Fail(error) => Err(error),
                Verdict::Go | Verdict::Short(_) => call(),
            };
            match answer {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
                Ok(value) => {
                    if let Some(gate) = &self.gate {
                        gate.after(&Call { op, path, len });
                    }
                    return Ok(value);
                }
            }
        }
    }

    pub(super) fn ask(&self, op: Op, path: &Path, len: u64) -> Verdict {
        self.gate.as_ref().map_or(Verdict::Go, |gate| gate.before(&Call { op, path, len }))
    }
}

#[cfg(test)]
pub(crate) use faults::{fail_nth, fail_when};

#[cfg(test)]
mod faults {
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
    pub(crate) fn fail_when(
        decide: impl Fn(&Call<'_>, u64) -> Option<Verdict> + Send + Sync + 'static,
    ) -> Arc<dyn Gate> {
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
}
