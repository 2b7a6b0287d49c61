//! [`Repair`]: a damaged queue becomes one that its program can open, with everything that can be read of it.

use std::path::PathBuf;

use serde::Serialize;

use super::error::InspectError;
use super::places::{QueueDir, lossy, lossy_each};
use crate::config::former_projects;
use crate::queue::{Finding, Project};
use crate::sys::disk::Disk;
use crate::sys::wording;

/// The result of [`QueueDir::repair`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Repair {
    /// The directory of the queue.
    #[serde(serialize_with = "lossy")]
    pub queue: PathBuf,
    /// Events that wait in the queue now.
    pub saved_events: u64,
    /// Dead letters in it.
    pub dead_letters: u64,
    /// Events that were found to be lost, waiting ones and dead letters.
    pub lost_events: u64,
    /// The damaged files under their new names. Nothing reads them again.
    #[serde(serialize_with = "lossy_each")]
    pub kept: Vec<PathBuf>,
    /// What was found, in plain words.
    pub notes: Vec<String>,
}

impl QueueDir {
    /// Repairs the queue as the library does when it meets damage: a new store is built from every row of the old one
    /// that can be read, the records of the journal are moved into it, and the damaged files are kept under other names
    /// (`damaged-*`). A kill at any moment leaves the old queue or the new one. Of a sound queue nothing is lost, but a
    /// `damaged-*` file is left, and the status says `damaged` until that is removed.
    ///
    /// `project` is the host and the key whose events the queue contains. It is needed only if neither the store nor
    /// another queue of the project can tell, and is checked against the name of the directory.
    ///
    /// # Errors
    ///
    /// [`InspectError::Owned`] while a process has the queue, [`InspectError::OtherUser`] for a user to whom it does not
    /// belong, [`InspectError::Newer`], or if there is too little space for the new store: then the old one is as it was.
    pub fn repair(&self, project: Option<(&str, &str)>) -> Result<Repair, InspectError> {
        self.check_user()?;
        if self.is_blank() {
            let notes = vec!["it contains neither a store nor a journal; a program takes it as a new one".to_owned()];
            let queue = self.path().to_path_buf();
            return Ok(Repair { queue, saved_events: 0, dead_letters: 0, lost_events: 0, kept: Vec::new(), notes });
        }
        let owned = self.own_as(&Disk::default(), self.project_told(project)?, true)?;
        let failed = |error| InspectError::queue(self.path(), error);
        let is_moved = owned.queue.checkpoint_all(owned.now()).map_err(failed)?;
        let kept = |finding: &Finding| match finding {
            Finding::Salvaged { path, .. } => Some(path.clone()),
            _ => None,
        };
        let mut notes = owned.notes();
        if owned.replayed > 0 {
            notes.push(format!("{} moved from the journal into the store", wording::count(owned.replayed, "event")));
        }
        if !is_moved {
            notes.push("events stay in the journal, because they could not be moved into the new store".into());
        }
        Ok(Repair {
            queue: self.path().to_path_buf(),
            saved_events: owned.queue.ledger().queued_events,
            dead_letters: owned.queue.dead_seqs().map_err(failed)?.len() as u64,
            lost_events: owned.lost(),
            kept: owned.findings.iter().filter_map(kept).collect(),
            notes,
        })
    }

    /// The project of the queue. `given`, its host and key, is checked against the name of the directory.
    pub(super) fn project_told(&self, given: Option<(&str, &str)>) -> Result<Project, InspectError> {
        if let Some((host, key)) = given {
            let is_ours = |project: &Project| project.dir_name() == self.project();
            let candidates = former_projects(key, host).map_err(|error| InspectError::Input(error.to_string()))?;
            return candidates.into_iter().find(is_ours).ok_or_else(|| {
                InspectError::Input(format!(
                    "the directory {} does not belong to that host and key: its name is their hash; nothing was changed",
                    self.project()
                ))
            });
        }
        self.project_by_name().ok_or_else(|| InspectError::Nameless { path: self.path().into() })
    }
}
