//! [`Disk`] as a value, and the gate by which tests make any of its calls fail.

#[cfg(feature = "inspect")]
use std::collections::BTreeMap;
use std::fmt::Debug;
#[cfg(feature = "inspect")]
use std::fs::File;
use std::io;
use std::path::Path;
#[cfg(feature = "inspect")]
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::filesystem::FileSystem;
use crate::sys::machine::OomCount;

/// Access to the file system. Cheap to clone; the default has no gate.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    pub(super) gate: Option<Arc<dyn Gate>>,
    /// Whether files of other users may be read.
    pub(super) reads_any_user: bool,
    /// A directory of which copies are read.
    #[cfg(feature = "inspect")]
    pub(super) copied: Option<Arc<Copied>>,
}

/// Copies of files of one directory, under the names of the originals.
#[cfg(feature = "inspect")]
#[derive(Debug)]
pub(super) struct Copied {
    pub(super) dir: PathBuf,
    pub(super) files: BTreeMap<PathBuf, Arc<File>>,
}

/// Decides about each call before it is made. A method that returns `None` leaves the real value in place.
pub(crate) trait Gate: Send + Sync + Debug {
    /// Called before each call.
    fn before(&self, call: &Call<'_>) -> Verdict;
    /// Called after a call has succeeded.
    fn after(&self, _call: &Call<'_>) {}
    /// The kind of file system to report instead of the real one.
    fn file_system(&self) -> Option<FileSystem> {
        None
    }
    /// The boot id to report instead of the real one.
    fn boot_id(&self) -> Option<u128> {
        None
    }
    /// The time since boot to report instead of the real one.
    fn uptime(&self) -> Option<Duration> {
        None
    }
    /// The number of OOM kills to report instead of the real one.
    fn oom_count(&self) -> Option<OomCount> {
        None
    }
}

/// The decision of a [`Gate`].
#[derive(Debug)]
#[cfg_attr(not(test), allow(dead_code, reason = "constructed by tests"))]
pub(crate) enum Verdict {
    Go,
    /// Fail the call with this error.
    Fail(io::Error),
    /// Write at most this number of bytes; only for writes.
    Short(usize),
}

/// A call, as a [`Gate`] receives it.
#[derive(Debug)]
#[cfg_attr(not(test), allow(dead_code, reason = "gates are made by tests"))]
pub(crate) struct Call<'a> {
    pub(crate) op: Op,
    /// The file or directory; for a rename, the source.
    pub(crate) path: &'a Path,
    /// The number of bytes to write, or the length to set; otherwise 0.
    pub(crate) len: u64,
}

/// The kinds of calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Op {
    Open,
    Create,
    Read,
    Write,
    /// Making a file's bytes durable.
    Sync,
    /// Setting a file's length.
    SetLen,
    Map,
    Lock,
    MakeDir,
    /// Making a directory's entries durable.
    SyncDir,
    List,
    Rename,
    Remove,
    Space,
}

impl Disk {
    /// A disk that also reads files of other users, as far as the system permits that: for an operator who looks at the
    /// queue of a daemon. What it reads must not decide what is written or sent.
    #[cfg(feature = "inspect")]
    pub(crate) fn of_any_user() -> Self {
        Self { reads_any_user: true, ..Self::default() }
    }

    /// The real disk behind a gate.
    #[cfg(any(test, feature = "inspect"))]
    pub(crate) fn gated(gate: Arc<dyn Gate>) -> Self {
        Self { gate: Some(gate), ..Self::default() }
    }

    /// Makes a call if the gate allows it; repeats it when a signal interrupted it.
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

    /// A gate that asks `decide` about each call, with the number of calls of that kind so far, this one included.
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
