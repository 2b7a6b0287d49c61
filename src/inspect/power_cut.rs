//! [`power_cuts`]: what is left of a queue when everything is lost that was not synced.
//!
//! A client captures through a [`Gate`] that keeps, beside the queue, a copy of each file as of its last completed sync
//! and of each directory's names as of its. A cut builds a directory from these copies alone. That is the worst case of
//! a real power cut, in which some of the newer pages survive; the library's own tests also cut in between.
//!
//! A copy is made before its sync begins, since only what was written by then is certain to be durable afterwards.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;
use std::time::Duration;

use serde::Serialize;
use uuid::Uuid;

use super::error::InspectError;
use super::prove::{ARENA_BYTES, ProofDir, client_on, stored_uuids};
use crate::client::{Client, Receipt};
use crate::error::Error;
use crate::event::Event;
use crate::sys::disk::{Call, Disk, Gate, Op, Verdict};
use crate::sys::entropy::random_u64;

/// The result of simulated power cuts. Serializes as its fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PowerCuts {
    /// How many.
    pub cuts: u32,
    /// Events of which the library had said that they are persisted, over all cuts.
    pub persisted: u64,
    /// Persisted events that were not found afterwards. Anything but 0 breaks the promise.
    pub lost: u64,
    /// Events that were found more than once. Anything but 0 is a defect.
    pub twice: u64,
    /// Files and rows that were damaged. Anything but 0 is a defect.
    pub damaged: u64,
    /// Accepted events that were not persisted yet, over all cuts; the newest 100 ms.
    pub not_persisted: u64,
    /// How many of those were found all the same.
    pub not_persisted_but_kept: u64,
}

/// How long a sync may take before the disk counts as failed.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between bursts of captures.
const PAUSE_MOST_MILLIS: u64 = 20;

/// Cuts the power of a queue so many times, in simulation: captures below `dir`, keeps of each file what was synced, and
/// opens what is left as the next boot would. `progress` gets the number of cuts so far.
///
/// Takes about a quarter of a second for each cut, and up to 32 MiB of space. Fails if the disk fails.
pub fn power_cuts(dir: &ProofDir, cuts: u32, progress: &mut dyn FnMut(u32)) -> Result<PowerCuts, InspectError> {
    cut(dir.path(), cuts, true, progress)
}

fn cut(dir: &Path, cuts: u32, is_honest: bool, progress: &mut dyn FnMut(u32)) -> Result<PowerCuts, InspectError> {
    let (live, copies, after) = (dir.join("power"), dir.join("synced"), dir.join("after-cut"));
    let failed = |source| InspectError::io(dir, source);
    make_dir(&live).and_then(|()| make_dir(&copies)).map_err(failed)?;
    let tracker = Arc::new(Tracker { root: live.clone(), copies, is_honest, state: Mutex::default() });
    let gate = Arc::clone(&tracker);
    let client = client_on(&live, ARENA_BYTES, |options| options.disk = Disk::gated(gate))
        .map_err(|error| refused(&live, &error))?;
    let mut run = Run { client, persisted: Vec::new(), newer: Vec::new() };
    let mut result = PowerCuts::default();
    for number in 1..=cuts {
        run.capture(&live)?;
        tracker.cut(&after).map_err(failed)?;
        run.compare(&after, &mut result)?;
        fs::remove_dir_all(&after).map_err(failed)?;
        result.cuts = number;
        progress(number);
    }
    drop(run);
    fs::remove_dir_all(&live).and_then(|()| fs::remove_dir_all(&tracker.copies)).map_err(failed)?;
    Ok(result)
}

fn refused(path: &Path, error: &Error) -> InspectError {
    InspectError::Queue { path: path.into(), why: error.describe() }
}

fn make_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)
}

/// The process that runs until its machine loses power.
struct Run {
    client: Client,
    persisted: Vec<Uuid>,
    /// Accepted since.
    newer: Vec<Uuid>,
}

impl Run {
    /// Some bursts of captures; waits until the first and some others are persisted. The last one is never waited for.
    fn capture(&mut self, dir: &Path) -> Result<(), InspectError> {
        for burst in 0..2 + random_u64() % 6 {
            let Some(last) = self.burst(1 + random_u64() % 40) else { continue };
            if burst > 0 && random_u64().is_multiple_of(2) {
                std::thread::sleep(Duration::from_millis(random_u64() % PAUSE_MOST_MILLIS));
                continue;
            }
            let failed = |why: String| InspectError::Queue { path: dir.into(), why: format!("a sync failed: {why}") };
            match last.persisted().wait(PATIENCE) {
                Ok(()) => self.persisted.append(&mut self.newer),
                Err(error) => return Err(failed(error.to_string())),
            }
        }
        self.burst(random_u64() % 40);
        Ok(())
    }

    fn burst(&mut self, events: u64) -> Option<Receipt> {
        let mut last = None;
        for number in 0..events {
            let text = "x".repeat((random_u64() % 400) as usize);
            let receipt =
                self.client.capture(Event::new("proof", "posthog-queue").prop("number", number).prop("text", text));
            if let Some(uuid) = receipt.uuid() {
                self.newer.push(uuid);
                last = Some(receipt);
            }
        }
        last
    }

    /// Opens what the cut left, as a client does after the machine has booted again, and adds what is found to `result`.
    fn compare(&self, after: &Path, result: &mut PowerCuts) -> Result<(), InspectError> {
        let reopened = client_on(after, ARENA_BYTES, |options| options.disk = Disk::gated(Arc::new(NextBoot)));
        drop(reopened.map_err(|error| refused(after, &error))?);
        let (found, damage) = stored_uuids(after)?;
        let count = |uuids: &[Uuid]| uuids.iter().filter(|uuid| found.contains_key(uuid)).count() as u64;
        result.damaged += damage.len() as u64;
        result.persisted += self.persisted.len() as u64;
        result.lost += self.persisted.len() as u64 - count(&self.persisted);
        result.not_persisted += self.newer.len() as u64;
        result.not_persisted_but_kept += count(&self.newer);
        result.twice += found.values().filter(|times| **times > 1).count() as u64;
        Ok(())
    }
}

/// Names relative to the root: `None` is a directory, otherwise the number of a file.
type Names = BTreeMap<PathBuf, Option<u64>>;

/// Keeps what is certain to be on the disk after a power cut.
#[derive(Debug)]
struct Tracker {
    root: PathBuf,
    /// The copies of files, each named by the number of its file.
    copies: PathBuf,
    /// A disk that is not honest says that it has synced a file, and has not.
    is_honest: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    names: Names,
    /// Kept open, so that their numbers are not given to other files.
    files: HashMap<u64, File>,
    /// What each thread is syncing.
    under_way: HashMap<ThreadId, UnderWay>,
    copied: u64,
}

#[derive(Debug)]
enum UnderWay {
    File { number: u64, copy: PathBuf },
    Dir { dir: PathBuf, names: Names },
}

impl Gate for Tracker {
    fn before(&self, call: &Call<'_>) -> Verdict {
        let begun = match call.op {
            Op::Sync => self.begin_file(call.path),
            Op::SyncDir => self.begin_dir(call.path),
            _ => return Verdict::Go,
        };
        begun.map_or_else(Verdict::Fail, |()| Verdict::Go)
    }

    fn after(&self, call: &Call<'_>) {
        if !matches!(call.op, Op::Sync | Op::SyncDir) {
            return;
        }
        let mut state = self.state();
        match state.under_way.remove(&std::thread::current().id()) {
            Some(UnderWay::File { number, copy }) if self.is_honest => {
                // Within one directory, which exists.
                let _ = fs::rename(copy, self.copy_of(number));
            }
            Some(UnderWay::Dir { dir, names }) => {
                state.names.retain(|path, _| path.parent() != Some(&dir));
                state.names.extend(names);
            }
            _ => {}
        }
    }
}

impl Tracker {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn copy_of(&self, number: u64) -> PathBuf {
        self.copies.join(number.to_string())
    }

    fn begin_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        let file = match File::open(path) {
            Ok(file) => file,
            // A file without a name cannot be found after the cut.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let number = file.metadata()?.ino();
        state.files.entry(number).or_insert(file);
        state.copied += 1;
        let copy = self.copies.join(format!("{number}-{}", state.copied));
        fs::copy(path, &copy)?;
        state.under_way.insert(std::thread::current().id(), UnderWay::File { number, copy });
        Ok(())
    }

    fn begin_dir(&self, path: &Path) -> io::Result<()> {
        // The directories above the root are there.
        let Ok(dir) = path.strip_prefix(&self.root) else { return Ok(()) };
        let (mut state, mut names) = (self.state(), Names::new());
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let number = match File::open(entry.path()) {
                Ok(file) if file.metadata()?.is_file() => {
                    let number = file.metadata()?.ino();
                    state.files.entry(number).or_insert(file);
                    Some(number)
                }
                Ok(_) => None,
                // Removed meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            names.insert(dir.join(entry.file_name()), number);
        }
        state.under_way.insert(std::thread::current().id(), UnderWay::Dir { dir: dir.into(), names });
        Ok(())
    }

    /// Writes down what is left if the power is cut now.
    fn cut(&self, to: &Path) -> io::Result<()> {
        let state = self.state();
        make_dir(to)?;
        for (path, number) in &state.names {
            let path = to.join(path);
            if !path.parent().is_some_and(Path::is_dir) {
                continue;
            }
            match number {
                None => make_dir(&path)?,
                Some(number) => match fs::copy(self.copy_of(*number), &path) {
                    // Its name is durable, and its content never was.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => File::create(&path).map(drop)?,
                    copied => copied.map(drop)?,
                },
            }
        }
        Ok(())
    }
}

/// The disk after the machine has booted again.
#[derive(Debug)]
struct NextBoot;

impl Gate for NextBoot {
    fn before(&self, _call: &Call<'_>) -> Verdict {
        Verdict::Go
    }

    fn boot_id(&self) -> Option<u128> {
        Some(u128::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut_in_a_new_dir(cuts: u32, is_honest: bool) -> PowerCuts {
        let dir = tempfile::tempdir().unwrap();
        let mut seen = 0;
        let result = cut(dir.path(), cuts, is_honest, &mut |number| seen = number).unwrap();
        assert_eq!((seen, fs::read_dir(dir.path()).unwrap().count()), (cuts, 0), "nothing stays");
        result
    }

    #[test]
    fn a_simulated_power_cut_keeps_what_was_persisted() {
        let result = cut_in_a_new_dir(6, true);
        assert!(result.cuts == 6 && result.persisted > 0, "{result:?}");
        assert_eq!((result.lost, result.twice, result.damaged), (0, 0, 0), "{result:?}");
    }

    #[test]
    fn a_disk_that_syncs_nothing_loses_what_was_persisted() {
        let result = cut_in_a_new_dir(6, false);
        assert!(result.persisted > 0 && result.lost == result.persisted, "{result:?}");
    }
}
