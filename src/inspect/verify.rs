//! [`Verification`]: whether a queue is sound, and if not, what is damaged and how much of it can be saved.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::error::{InspectError, owner_of};
use super::places::{QueueDir, lossy, strays};
use crate::crash;
use crate::queue::{Facts, Page};
use crate::sys::disk::{Disk, Entry};
use crate::sys::wording;

/// The result of [`QueueDir::verify`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Verification {
    /// The directory of the queue.
    #[serde(serialize_with = "lossy")]
    pub queue: PathBuf,
    /// Whether nothing is wrong with it.
    pub is_sound: bool,
    /// Whether this is the queue of an import that is under way or was not finished.
    pub is_import: bool,
    /// Whether a copy was verified, because a living process owns the queue.
    pub is_copy: bool,
    /// Events that wait and can be read: those in the store and those in the journal.
    pub waiting_events: u64,
    /// How many of them are in the journal.
    pub journal_events: u64,
    /// Dead letters that can be read.
    pub dead_letters: u64,
    /// Records of crash reports that were not sent yet.
    pub crash_records: u64,
    /// Events that cannot be saved, waiting ones and dead letters, as far as their number is known.
    pub lost_events: u64,
    /// What is wrong.
    pub problems: Vec<Problem>,
    /// Whether [`repair`](QueueDir::repair) needs the host and the key, because neither the queue nor another one
    /// of its project says them.
    pub needs_project: bool,
    /// Problems that are not listed, because they are too many.
    pub more_problems: u64,
    /// What is unusual and does no harm: files that an earlier repair has kept, a crash report that ends in the middle.
    pub notes: Vec<String>,
}

/// Something that is wrong with a queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Problem {
    /// What kind of problem it is.
    pub kind: ProblemKind,
    /// The file or directory.
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    /// What is wrong with it.
    pub what: String,
    /// Events that are lost by it; `None` if their number is not known.
    pub lost_events: Option<u64>,
}

/// A kind of problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ProblemKind {
    /// Bytes are not what the library wrote. [`QueueDir::repair`] saves what can be read, and so does the next start of
    /// the queue's program.
    Damage,
    /// A file has an owner or a mode with which the queue's program does not use it, or is no regular file.
    Permissions,
}

impl QueueDir {
    /// Checks everything in the queue without changing it: each checksum, each row of the store, the database around
    /// them, the balance of the ledger and its counts, the rounds of the journal, dead letters, crash reports, and the
    /// owners and modes of the files. Works beside a living owner as [`read`](Self::read) does, with a copy below
    /// `scratch`. `progress` gets the number of events read so far, and how many there are likely to be.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read): damage is no error.
    pub fn verify(&self, scratch: &Path, progress: &dyn Fn(u64, u64)) -> Result<Verification, InspectError> {
        let disk = Disk::of_any_user();
        let reader = self.read(scratch)?;
        let total = crate::queue::predecessor(&disk, self.path()).queued_events();
        let facts = reader.verify(&|done| progress(done, total.max(done)))?;
        let mut verification = self.judged(&facts, reader.is_copy());
        self.check_reports(&disk, &mut verification)?;
        self.check_files(&mut verification)?;
        if self.is_import() && !verification.is_copy {
            verification.notes.push(self.why_unfinished());
        }
        verification.is_sound = verification.problems.is_empty();
        Ok(verification)
    }

    fn judged(&self, facts: &Facts, is_copy: bool) -> Verification {
        let damage =
            |path: PathBuf, what: String, lost_events| Problem { kind: ProblemKind::Damage, path, what, lost_events };
        let mut problems: Vec<_> =
            facts.bad.iter().map(|bad| damage(bad.path.clone(), bad.why.clone(), bad.lost)).collect();
        // The first owner of a blank directory may have died before it had written the page.
        let page = self.path().join("status");
        if facts.page == Page::Damaged && !self.is_blank() {
            let what = "it is no status page; the next owner makes a new one".to_owned();
            problems.push(damage(page.clone(), what, None));
        }
        let changed = (facts.page == Page::Changed).then(|| {
            format!(
                "{}: its words do not match their check, as after a death in the moment in which they were written; the \
                 next owner writes them anew, from the store and the journal",
                page.display()
            )
        });
        let store = self.path().join("queue.redb");
        let expected = match &facts.state {
            Some(state) => state.ledger.queued_events,
            None => facts.page_ledger.map_or(0, |ledger| ledger.queued_events),
        };
        // Rows that came back may be as many as are missing elsewhere.
        let store_lost = expected.saturating_sub(facts.events).max(facts.torn_lost);
        if !facts.has_store && !self.is_blank() {
            let what = if expected > 0 { "it is missing, with the events in it" } else { "it is missing" };
            problems.push(damage(store.clone(), what.into(), Some(expected)));
        }
        if let Some(project) = facts.project.as_ref().filter(|project| project.dir_name() != self.project()) {
            let what = format!(
                "it contains events for {}, which belong in the directory {}",
                project.host,
                project.dir_name()
            );
            problems.push(damage(store, what, None));
        }
        Verification {
            queue: self.path().to_path_buf(),
            is_sound: false,
            is_import: self.is_import(),
            is_copy,
            waiting_events: facts.events.saturating_add(facts.journal_events),
            journal_events: facts.journal_events,
            dead_letters: facts.dead,
            crash_records: 0,
            lost_events: store_lost.saturating_add(facts.journal_lost).saturating_add(facts.dead_lost),
            needs_project: self.project_by_name().is_none() && !self.is_blank(),
            problems,
            more_problems: facts.more_bad,
            notes: changed.into_iter().collect(),
        }
    }

    fn check_reports(&self, disk: &Disk, verification: &mut Verification) -> Result<(), InspectError> {
        let dir = self.path().join(crash::DIR);
        let (reports, passed_over) =
            crash::erase::report_facts(disk, &dir).map_err(|source| InspectError::io(&dir, source))?;
        let note = |(path, why): (PathBuf, String)| {
            format!("{}: {why}; the library passes it over, remove it if it is not needed", path.display())
        };
        verification.notes.extend(passed_over.into_iter().map(note));
        for report in reports {
            verification.crash_records = verification.crash_records.saturating_add(report.records.saturating_sub(1));
            if report.damaged_bytes > 0 {
                verification.notes.push(format!(
                    "{}: {} of the crash report are incomplete or damaged, {} can be read",
                    report.path.display(),
                    wording::bytes(report.damaged_bytes),
                    wording::count(report.records, "record"),
                ));
            }
        }
        Ok(())
    }

    /// The owners and modes of the files, and what lies there besides.
    fn check_files(&self, verification: &mut Verification) -> Result<(), InspectError> {
        let failed = |source| InspectError::io(self.path(), source);
        let uid = fs::metadata(self.path()).map_err(failed)?.uid();
        let mut paths = vec![self.project_dir(), self.path().to_path_buf()];
        for entry in fs::read_dir(self.path()).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            if name.starts_with("damaged-") {
                verification.notes.push(format!(
                    "{}: kept by an earlier repair; nothing reads it, remove it when it is not needed any more",
                    path.display()
                ));
                continue;
            }
            if !is_of_library(&name) {
                verification.notes.push(format!("{}: not a file of this library", path.display()));
                continue;
            }
            let expected = if name == crash::DIR { Entry::Dir } else { Entry::File };
            // A living owner may have removed it meanwhile.
            let Ok(found) = Entry::at(&path) else { continue };
            if found != expected {
                let what = format!("it is {found}, not {expected}, so the library does not use it: remove it");
                let kind = ProblemKind::Permissions;
                verification.problems.push(Problem { kind, path, what, lost_events: None });
                continue;
            }
            if expected == Entry::Dir {
                paths.extend(fs::read_dir(&path).map_err(failed)?.flatten().map(|entry| entry.path()));
            }
            paths.push(path);
        }
        for path in if self.is_first() { strays(&self.project_dir()) } else { Vec::new() } {
            let Ok(found) = Entry::at(&path) else { continue };
            let what = format!("it is {found}, not a directory, so the library does not use it: remove it");
            let kind = ProblemKind::Permissions;
            verification.problems.push(Problem { kind, path, what, lost_events: None });
        }
        paths.sort();
        for path in paths {
            // A living owner may have removed it meanwhile.
            let Ok(found) = fs::symlink_metadata(&path) else { continue };
            let what = if found.uid() != uid {
                format!(
                    "it belongs to {}, and the queue to {}, whose program cannot use it: change its owner (chown)",
                    owner_of(&path),
                    owner_of(self.path())
                )
            } else if found.mode() & 0o002 != 0 && !found.is_symlink() {
                "every user may write to it, so the library does not use it: remove that (chmod o-w)".into()
            } else {
                continue;
            };
            verification.problems.push(Problem { kind: ProblemKind::Permissions, path, what, lost_events: None });
        }
        Ok(())
    }
}

pub(super) fn is_of_library(name: &str) -> bool {
    let is_known =
        ["lock", "status", "reserve", "breadcrumbs", crash::DIR, "queue.redb", "queue.redb.new", "queue.redb.ready"]
            .contains(&name);
    is_known || name.strip_prefix("journal-").is_some_and(|number| number.parse::<u8>().is_ok())
}
