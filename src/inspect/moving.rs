//! [`move_to`]: the events of a queue into a queue of another project.

use std::path::{Path, PathBuf};

use super::error::InspectError;
use super::owned::{self, check_user};
use super::places::QueueDir;
use super::staging::{Filling, Group};
use crate::queue::{self, Ack, ChunkRef, OWN, QueueError, frame};
use crate::sys::disk::Disk;

/// Bytes of rows that are moved in one step.
const STEP_BYTES: usize = 2 * 1024 * 1024;

/// What [`move_to`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Moved {
    /// Events that were moved.
    pub events: u64,
    /// Events that were found to be lost, in the queue that they were in or in the one that they were moved to: they could
    /// not be read, or are in no file. The ledger of that queue counts them.
    pub damaged: u64,
    /// What opening the two queues found, in plain words; empty for sound ones.
    pub notes: Vec<String>,
    /// The queue that has them now; `None` if there was nothing to move.
    pub into: Option<PathBuf>,
}

/// The name of a project's directory below the directory of queues: [`QueueDir::project`]. Fails for a host or a key that a
/// client would not take.
pub fn project_name(api_key: &str, host: &str) -> Result<String, InspectError> {
    Ok(Group::of(api_key, host, Path::new("/"), "analytics")?.project.dir_name())
}

/// Moves all waiting events of a queue without an owner into a queue of the project with this host and key, below the same
/// queue directory. Uuids, times and order stay. Dead letters stay where they are.
///
/// A step is durable in the target before it is removed from the source, so a process that is killed loses nothing; the
/// events of one step (2 MiB) may then be in both queues, under the same uuids, of which PostHog keeps one. In the source
/// they count as delivered: its program has nothing left to do for them.
///
/// `progress` gets the number of events moved so far, and stops the move after a step by returning `false`; a further call
/// goes on.
pub fn move_to(
    from: &QueueDir,
    api_key: &str,
    host: &str,
    progress: &mut dyn FnMut(u64) -> bool,
) -> Result<Moved, InspectError> {
    let group = Group::of(api_key, host, from.queue_dir(), from.lane())?;
    check_user(from.path())?;
    let mut moved = Moved { events: 0, damaged: 0, notes: Vec::new(), into: None };
    let Some(source) = from.own(&Disk::default())? else { return Ok(moved) };
    moved.notes = source.notes();
    if from.project_of_store().is_some_and(|project| project == group.project) {
        return Err(InspectError::Input(format!("{:?} belongs to this host and key already", from.path())));
    }
    let failed = |error| InspectError::queue(from.path(), error);
    let damaged_before = source.queue.ledger().damaged;
    let mut target: Option<Filling> = None;
    loop {
        let read = source.queue.read(None, STEP_BYTES).map_err(failed)?;
        if !read.damaged.is_empty() {
            source.queue.repair(read.damaged, source.now()).map_err(failed)?;
            continue;
        }
        if read.chunks.is_empty() {
            break;
        }
        let filling = match &target {
            Some(filling) => filling,
            None => target.insert(open(&group)?),
        };
        let mut acks = Vec::with_capacity(read.chunks.len());
        for chunk in &read.chunks {
            let mut events = 0;
            for (head, body) in frame::frames(&chunk.frames, chunk.salt) {
                filling.append(body, head.class)?;
                events += 1;
            }
            moved.events += events;
            acks.push(Ack {
                row: ChunkRef { origin: OWN, key: chunk.key },
                delivered: events,
                dead: Vec::new(),
                keep: None,
            });
        }
        filling.settle()?;
        source.queue.ack(&acks, None, source.now()).map_err(failed)?;
        if !progress(moved.events) {
            break;
        }
    }
    let met = source.queue.ledger().damaged.saturating_sub(damaged_before);
    let in_target = target.as_ref().map_or(0, |target| owned::lost(target.findings()));
    moved.damaged = source.lost().saturating_add(met).saturating_add(in_target);
    moved.notes.extend(target.iter().flat_map(|target| owned::notes(target.findings())));
    moved.into = target.map(|filling| filling.dir().to_path_buf());
    Ok(moved)
}

/// A queue of the project that no process has: the first that can be opened, or a new one.
fn open(group: &Group) -> Result<Filling, InspectError> {
    let disk = Disk::default();
    group.prepare(&disk)?;
    let mut unusable = Vec::new();
    loop {
        match queue::claim(&disk, &group.dir, &unusable) {
            Ok(claim) => {
                let dir = claim.dir().to_path_buf();
                match Filling::open(&disk, group, claim) {
                    Err(_) if dir.join("queue.redb").exists() => unusable.push(dir),
                    opened => return opened,
                }
            }
            Err(QueueError::Shard { number, .. }) => unusable.push(queue::shard_dir(&group.dir, number)),
            Err(error) => return Err(InspectError::queue(&group.dir, error)),
        }
    }
}
