//! A disk whose power can be cut: it knows, for each file and each directory, what would be there afterwards for certain.
//!
//! A file's bytes are certain as of its last sync, a directory's names as of the last sync of the directory. Of everything newer any
//! part may have reached the disk: whole files, single pages, single sectors, any of the names. A rename is atomic: what had a
//! durable name keeps the old one or has the new one.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::{next, pretended, scratch};
use crate::disk::{Call, FileSystem, Gate, Op, Verdict};

/// What a disk can write without being interrupted.
const SECTOR: usize = 512;
const PAGE: usize = 4096;

/// Below the root: `None` is a directory, else the number of a file.
type Names = BTreeMap<PathBuf, Option<u64>>;

/// The disk. `F` is what the test knows of the moment of a cut.
pub(super) struct CutDisk<F> {
    root: PathBuf,
    mapped: bool,
    boot_id: u128,
    state: Mutex<State<F>>,
}

struct State<F> {
    random: u64,
    /// One write in so many is cut at.
    writes_per_cut: u64,
    names: Names,
    files: HashMap<u64, Tracked>,
    facts: F,
    cuts: Vec<Cut<F>>,
}

/// Kept open, so that its number is not given to another file.
struct Tracked {
    file: File,
    durable: Vec<u8>,
}

/// What was left of the directory, in a directory of its own.
#[derive(Debug)]
pub(super) struct Cut<F> {
    pub(super) dir: tempfile::TempDir,
    /// What was known when the power went.
    pub(super) facts: F,
    /// Where that was.
    pub(super) at: String,
}

impl<F: Clone + Default + Send> CutDisk<F> {
    /// A disk on which everything below `root` is durable so far.
    pub(super) fn new(root: &Path, mapped: bool, boot_id: u128, random: u64, writes_per_cut: u64) -> Arc<Self> {
        let (names, cuts) = (live(root), Vec::new());
        let mut state = State { random, writes_per_cut, names, files: HashMap::new(), facts: F::default(), cuts };
        state.track(root, true);
        Arc::new(Self { root: root.to_path_buf(), mapped, boot_id, state: Mutex::new(state) })
    }

    /// Notes what is known from now on.
    pub(super) fn know(&self, learn: impl FnOnce(&mut F)) {
        learn(&mut self.state.lock().unwrap().facts);
    }

    /// Cuts the power of a copy, now.
    pub(super) fn cut(&self, at: String) {
        let mut state = self.state.lock().unwrap();
        let cut = state.cut(&self.root, at);
        state.cuts.push(cut);
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
        let here = match call.op {
            Op::Sync | Op::SyncDir | Op::Rename | Op::Remove | Op::SetLen => true,
            Op::Write => {
                let mut state = self.state.lock().unwrap();
                let one_in = state.writes_per_cut;
                next(&mut state.random) % one_in == 0
            }
            _ => false,
        };
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
        self.cut(format!("after {:?} of {:?}", call.op, call.path));
    }

    fn file_system(&self) -> Option<FileSystem> {
        Some(pretended(self.mapped))
    }

    fn boot_id(&self) -> Option<u128> {
        Some(self.boot_id)
    }
}

impl<F: Clone> State<F> {
    /// Takes note of files that are new since the last look. Their content was never synced, unless `durable`.
    fn track(&mut self, root: &Path, durable: bool) {
        for (path, number) in live(root) {
            let Some(number) = number else { continue };
            self.files.entry(number).or_insert_with(|| {
                let file = File::open(root.join(path)).unwrap();
                let durable = if durable { content(&file) } else { Vec::new() };
                Tracked { file, durable }
            });
        }
    }

    fn sync(&mut self, root: &Path, path: &Path) {
        self.track(root, false);
        // Without a name it has nothing to be found by.
        let Ok(metadata) = path.metadata() else { return };
        let tracked = self.files.get_mut(&metadata.ino()).unwrap();
        tracked.durable = content(&tracked.file);
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
        let dir = scratch();
        // A quarter of the cuts each: nothing of the newer, all of it, pages of it, sectors of it.
        let kind = next(&mut self.random) % 4;
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
            if next(&mut self.random) % 2 == 0 {
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
        if next(&mut self.random) % 2 == 0 {
            bytes.resize(live.len(), 0);
        }
        for at in (0..bytes.len().min(live.len())).step_by(block) {
            if next(&mut self.random) % 2 == 0 {
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
