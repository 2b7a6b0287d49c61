//! Queues that this process fills: the part that import and move share.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::InspectError;
use super::owned::check_user;
use crate::config::Config;
use crate::queue::frame::hash_body;
use crate::queue::journal::AppendError;
use crate::queue::{Claim, Finding, Opened, Project, Queue, QueueOptions};
use crate::sys::clock::Clock;
use crate::sys::disk::Disk;
use crate::sys::limits;

/// Space that is left free beyond what one checkpoint may take.
const CHECKPOINT_MOST: u64 = 2 * limits::AI_JOURNAL_BYTES as u64;

/// Where a lane's queues of a project are.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) project: Project,
    queue_dir: PathBuf,
    pub(super) dir: PathBuf,
    pub(super) is_ai: bool,
}

impl Group {
    /// The group of the lane `analytics` or `ai`. Checks host and key as a client does.
    pub(super) fn of(api_key: &str, host: &str, queue_dir: &Path, lane: &str) -> Result<Self, InspectError> {
        let project = Config::project_of(api_key, host).map_err(|error| InspectError::Input(error.to_string()))?;
        let queue_dir = std::path::absolute(queue_dir).map_err(|source| InspectError::io(queue_dir, source))?;
        let (is_ai, project_dir) = (lane == "ai", project.dir(&queue_dir));
        let dir = if is_ai { project_dir.join("ai") } else { project_dir };
        Ok(Self { project, queue_dir, dir, is_ai })
    }

    /// Makes the directory, if it is missing. Fails for a directory of another user, whose programs could not use what
    /// this one creates.
    pub(super) fn prepare(&self, disk: &Disk) -> Result<(), InspectError> {
        check_user(&self.queue_dir)?;
        disk.make_dir_durable(&self.dir).map_err(|source| InspectError::io(&self.dir, source))
    }

    /// The most bytes of one event.
    pub(super) fn max_event_bytes(&self) -> usize {
        if self.is_ai { limits::AI_EVENT_BYTES } else { limits::EVENT_BYTES_DEFAULT }
    }
}

/// A queue that this process fills. Nothing bounds it but the disk.
#[derive(Debug)]
pub(super) struct Filling {
    queue: Queue,
    disk: Disk,
    clock: Clock,
    dir: PathBuf,
    findings: Vec<Finding>,
}

impl Filling {
    /// Opens a claimed directory.
    pub(super) fn open(disk: &Disk, group: &Group, claim: Claim) -> Result<Self, InspectError> {
        let (clock, dir) = (Clock::default(), claim.dir().to_path_buf());
        let options = QueueOptions {
            project: group.project.clone(),
            queue_dir: group.queue_dir.clone(),
            arena_bytes: if group.is_ai { limits::AI_JOURNAL_BYTES } else { limits::JOURNAL_BYTES_DEFAULT },
            lock_wait: Duration::from_secs(10),
            cache_bytes: limits::STORE_CACHE_BYTES,
            reserve_bytes: limits::RESERVE_BYTES,
            dead_bytes: u64::MAX,
            adopts: true,
        };
        let opened = Queue::open(disk, &options, claim, clock.wall_nanos());
        let Opened { queue, findings, .. } = opened.map_err(|error| InspectError::queue(&dir, error))?;
        let mut filling = Self { queue, disk: disk.clone(), clock, dir, findings };
        let failed = |finding: &Finding| matches!(finding, Finding::NotCheckpointed { .. });
        if let Some(at) = filling.findings.iter().position(failed)
            && let Finding::NotCheckpointed { error } = filling.findings.swap_remove(at)
        {
            return Err(InspectError::queue(&filling.dir, error));
        }
        Ok(filling)
    }

    /// What recovery found in the queue.
    pub(super) fn findings(&self) -> &[Finding] {
        &self.findings
    }

    pub(super) fn queue(&self) -> &Queue {
        &self.queue
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Appends a record. It survives the process at once, and the machine from the next [`settle`](Self::settle) on.
    pub(super) fn append(&self, body: &[u8], class: u8) -> Result<(), InspectError> {
        let hash = hash_body(body);
        let appended = match self.queue.append(body, hash, class) {
            Err(AppendError::Full) => {
                self.settle()?;
                self.queue.append(body, hash, class)
            }
            other => other,
        };
        match appended {
            Ok(appended) if appended.half_full => self.settle(),
            Ok(_) => Ok(()),
            Err(AppendError::Io(source)) => Err(InspectError::io(&self.dir, source)),
            Err(error) => Err(self.failed(format!("an event of {} bytes could not be stored ({error:?})", body.len()))),
        }
    }

    /// Moves everything that was appended into the store, durably.
    pub(super) fn settle(&self) -> Result<(), InspectError> {
        let free = self.disk.free_bytes(&self.dir).map_err(|source| InspectError::io(&self.dir, source))?;
        if free < limits::MIN_FREE_SPACE_DEFAULT + CHECKPOINT_MOST {
            let why = format!("only {} are free; what was stored so far is kept", crate::sys::wording::bytes(free));
            let source = std::io::Error::new(std::io::ErrorKind::StorageFull, why);
            return Err(InspectError::Io { path: self.dir.clone(), source });
        }
        let failed = |error| InspectError::queue(&self.dir, error);
        let newest = self.queue.journal().last_seq();
        let checkpoint = || self.queue.checkpoint(&[], None, self.clock.wall_nanos());
        while checkpoint().map_err(failed)?.is_some() {}
        self.queue.journal().swap().map_err(failed)?;
        while checkpoint().map_err(failed)?.is_some() {}
        if self.queue.ledger().accepted < newest {
            return Err(self.failed("events could not be moved from the journal into the store".into()));
        }
        Ok(())
    }

    /// Closes the queue; other processes may use it now.
    pub(super) fn close(self) {}

    fn failed(&self, why: String) -> InspectError {
        InspectError::Queue { path: self.dir.clone(), why }
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        self.queue.close();
    }
}
