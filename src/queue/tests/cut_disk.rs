//! A disk whose power can be cut. For each file and directory it knows what is certain to be there afterwards.
//!
//! The bytes of a file are certain as of its last sync, the names in a directory as of the directory's last sync. Of
//! everything newer, any part may have reached the disk: whole files, single pages, single sectors, any of the names. A
//! rename is atomic: a file that had a durable name keeps the old one or has the new one.
//!
//! One call can also be made to fail. After a failed sync, the kernel treats what it could not write as written: a
//! later sync that succeeds makes durable only what was changed since.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::{next, pretended, scratch};
use crate::sys::disk::{Call, FileSystem, Gate, Op, Verdict};

/// What a disk writes atomically.
const SECTOR: usize = 512;
const PAGE: usize = 4096;
/// A call that was interrupted by a signal did nothing.
const INTERRUPTED: i32 = 4;

/// Relative to the root: `None` is a directory, otherwise the number of a file.
type Names = BTreeMap<PathBuf, Option<u64>>;

/// The disk. `F` is what the test knows at the moment of a cut.
pub(super) struct CutDisk<F> {
    root: PathBuf,
    mapped: bool,
    boot_id: u128,
    state: Mutex<State<F>>,
}

/// A call that fails once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fault {
    pub(super) op: Op,
    /// Counted from 1.
    pub(super) nth: u64,
    /// The error number; 0 for a write that is cut short.
    pub(super) errno: i32,
}

struct State<F> {
    random: u64,
    /// Power is cut at one write in this many; with `None` only on demand.
    writes_per_cut: Option<u64>,
    fault: Option<Fault>,
    calls: HashMap<Op, u64>,
    names: Names,
    files: HashMap<u64, Tracked>,
    facts: F,
    cuts: Vec<Cut<F>>,
}

/// Kept open, so that its inode number is not reused.
struct Tracked {
    file: File,
    durable: Vec<u8>,
    /// Its content when a sync failed.
    given_up: Vec<u8>,
}

/// What a cut left, in a directory of its own.
#[derive(Debug)]
pub(super) struct Cut<F> {
    pub(super) dir: tempfile::TempDir,
    /// What was known when the power was cut.
    pub(super) facts: F,
    /// Where the cut happened.
    pub(super) at: String,
}

impl<F: Clone + Default + Send> CutDisk<F> {
    /// A disk on which everything below `root` is durable.
    pub(super) fn new(root: &Path, mapped: bool, boot_id: u128, random: u64) -> Arc<Self> {
        let mut state = State {
            random,
            writes_per_cut: Some(25),
            fault: None,
            calls: HashMap::new(),
            names: live(root),
            files: HashMap::new(),
            facts: F::default(),
            cuts: Vec::new(),
        };
        state.track(root, true);
        Arc::new(Self { root: root.to_path_buf(), mapped, boot_id, state: Mutex::new(state) })
    }

    /// Cuts only on demand, and fails one call.
    pub(super) fn fail(&self, fault: Option<Fault>) {
        let mut state = self.state.lock().unwrap();
        (state.writes_per_cut, state.fault) = (None, fault);
    }

    /// The number of calls of each kind.
    pub(super) fn calls(&self) -> HashMap<Op, u64> {
        self.state.lock().unwrap().calls.clone()
    }

    /// Sets what is known from now on.
    pub(super) fn know(&self, learn: impl FnOnce(&mut F)) {
        learn(&mut self.state.lock().unwrap().facts);
    }

    /// Cuts the power of a copy, now.
    pub(super) fn cut(&self, at: String) {
        let mut state = self.state.lock().unwrap();
        let cut = state.cut(&self.root, at);
        state.cuts.push(cut);
    }

    /// The worst cut: everything that is not certain is gone.
    pub(super) fn cut_badly(&self, at: String) -> Cut<F> {
        let mut state = self.state.lock().unwrap();
        let names = state.names.clone();
        state.write_down(names, 0, at)
    }

    /// The cuts so far.
    pub(super) fn take_cuts(&self) -> Vec<Cut<F>> {
        std::mem::take(&mut self.state.lock().unwrap().cuts)
    }
}

impl<F> std::fmt::Debug for CutDisk<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CutDisk").field("root", &self.root).finish_non_exhaustive()
    }
}

impl<F: Clone + Default + Send> Gate for CutDisk<F> {
    fn before(&self, call: &Call<'_>) -> Verdict {
        let mut state = self.state.lock().unwrap();
        if let Some(verdict) = state.fails(&self.root, call) {
            return verdict;
        }
        let here = match (call.op, state.writes_per_cut) {
            (_, None) => false,
            (Op::Sync | Op::SyncDir | Op::Rename | Op::Remove | Op::SetLen, _) => true,
            (Op::Write, Some(one_in)) => next(&mut state.random).is_multiple_of(one_in),
            _ => false,
        };
        drop(state);
        if here {
            self.cut(format!("before {:?} of {:?}", call.op, call.path));
        }
        Verdict::Go
    }

    fn after(&self, call: &Call<'_>) {
        match call.op {
            Op::Sync => self.state.lock().unwrap().sync(&self.root, call.path),
            Op::SyncDir => self.state.lock().unwrap().sync_dir(&self.root, call.path),
            _ => return,
        }
        if self.state.lock().unwrap().writes_per_cut.is_some() {
            self.cut(format!("after {:?} of {:?}", call.op, call.path));
        }
    }

    fn file_system(&self) -> Option<FileSystem> {
        Some(pretended(self.mapped))
    }

    fn boot_id(&self) -> Option<u128> {
        Some(self.boot_id)
    }
}

impl<F: Clone> State<F> {
    /// Records files that are new since the last call. Their content was never synced, unless `durable`.
    fn track(&mut self, root: &Path, durable: bool) {
        for (path, number) in live(root) {
            let Some(number) = number else { continue };
            self.files.entry(number).or_insert_with(|| {
                let file = File::open(root.join(path)).unwrap();
                let durable = if durable { content(&file) } else { Vec::new() };
                Tracked { file, durable, given_up: Vec::new() }
            });
        }
    }

    fn fails(&mut self, root: &Path, call: &Call<'_>) -> Option<Verdict> {
        let count = self.calls.entry(call.op).or_default();
        *count += 1;
        let fault = self.fault.filter(|fault| fault.op == call.op && fault.nth == *count)?;
        if call.op == Op::Sync && fault.errno != INTERRUPTED {
            self.track(root, false);
            let number = call.path.metadata().ok()?.ino();
            let tracked = self.files.get_mut(&number).unwrap();
            tracked.given_up = content(&tracked.file);
        }
        Some(match fault.errno {
            0 => Verdict::Short(call.len as usize / 2),
            errno => Verdict::Fail(std::io::Error::from_raw_os_error(errno)),
        })
    }

    fn sync(&mut self, root: &Path, path: &Path) {
        self.track(root, false);
        // A file without a name cannot be found afterwards.
        let Ok(metadata) = path.metadata() else { return };
        let tracked = self.files.get_mut(&metadata.ino()).unwrap();
        let live = content(&tracked.file);
        let mut durable = live.clone();
        for (at, page) in tracked.given_up.chunks(PAGE).enumerate().map(|(index, page)| (index * PAGE, page)) {
            if live.get(at..at + page.len()) == Some(page) {
                let old = tracked.durable.get(at..(at + page.len()).min(tracked.durable.len())).unwrap_or_default();
                durable[at..at + page.len()].fill(0);
                durable[at..at + old.len()].copy_from_slice(old);
            }
        }
        tracked.durable = durable;
    }

    fn sync_dir(&mut self, root: &Path, dir: &Path) {
        self.track(root, false);
        let dir = dir.strip_prefix(root).unwrap();
        let inside = |path: &Path| path.parent() == Some(dir);
        self.names.retain(|path, _| !inside(path));
        self.names.extend(live(root).into_iter().filter(|(path, _)| inside(path)));
    }

    fn cut(&mut self, root: &Path, at: String) -> Cut<F> {
        self.track(root, false);
        let names = self.names_after_cut(&live(root));
        // A quarter of the cuts each: none of the newer content, all of it, some pages of it, some sectors of it.
        let kind = next(&mut self.random) % 4;
        self.write_down(names, kind, at)
    }

    fn write_down(&mut self, names: Names, kind: u64, at: String) -> Cut<F> {
        let dir = scratch();
        for (path, number) in names {
            let path = dir.path().join(path);
            match number {
                _ if !path.parent().unwrap().is_dir() => {}
                None => std::fs::create_dir(path).unwrap(),
                Some(number) => std::fs::write(path, self.content_after_cut(number, kind)).unwrap(),
            }
        }
        Cut { dir, facts: self.facts.clone(), at }
    }

    fn names_after_cut(&mut self, live: &Names) -> Names {
        let mut names = self.names.clone();
        let changed: Vec<_> =
            self.names.keys().chain(live.keys()).filter(|p| self.names.get(*p) != live.get(*p)).collect();
        for path in changed {
            if next(&mut self.random).is_multiple_of(2) {
                continue;
            }
            match live.get(path) {
                Some(number) => names.insert(path.clone(), *number),
                None => names.remove(path),
            };
        }
        for (old, number) in self.names.iter().filter(|(_, number)| number.is_some()) {
            let elsewhere = live.iter().find(|(_, live)| *live == number).map(|(path, _)| path);
            let Some(new) = elsewhere.filter(|new| *new != old) else { continue };
            if !names.values().any(|kept| kept == number) {
                let free = if names.contains_key(old) { new } else { old };
                names.insert(free.clone(), *number);
            }
        }
        names
    }

    fn content_after_cut(&mut self, number: u64, kind: u64) -> Vec<u8> {
        let tracked = &self.files[&number];
        let (mut bytes, live) = (tracked.durable.clone(), content(&tracked.file));
        let block = match kind {
            0 => return bytes,
            1 => return live,
            2 => PAGE,
            _ => SECTOR,
        };
        if next(&mut self.random).is_multiple_of(2) {
            bytes.resize(live.len(), 0);
        }
        for at in (0..bytes.len().min(live.len())).step_by(block) {
            if next(&mut self.random).is_multiple_of(2) {
                let end = (at + block).min(bytes.len()).min(live.len());
                bytes[at..end].copy_from_slice(&live[at..end]);
            }
        }
        bytes
    }
}

fn content(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// Everything below `root`.
fn live(root: &Path) -> Names {
    let mut names = Names::new();
    let mut dirs = vec![root.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let (path, metadata) = entry.map(|entry| (entry.path(), entry.metadata().unwrap())).unwrap();
            let number = metadata.is_file().then(|| metadata.ino());
            names.insert(path.strip_prefix(root).unwrap().to_path_buf(), number);
            if number.is_none() {
                dirs.push(path);
            }
        }
    }
    names
}
