//! The shard that a pipeline has for itself: found, claimed and opened, within the time that a start may take.

use std::path::PathBuf;
use std::sync::Arc;

use super::advice::explain_queue;
use super::opening::Orphans;
use super::{Notice, StartError, WorkerOptions};
use crate::queue::{
    ClaimError, Opened, Predecessor, Queue, QueueError, claim, concerns_all_shards, predecessor, shard_dir, shard_dirs,
};
use crate::sys::clock::WallNanos;

/// One that takes longer to open than this part of what the whole start may take is left to a thread of its own.
const IN_TIME: u32 = 3;
/// So many shards may fail to open before the disk is to blame for it: otherwise each start on a disk that fails would make one more.
const UNOPENED_MAX: u32 = 16;

/// The shard that the pipeline has for itself.
#[derive(Debug)]
pub(super) struct Own {
    pub(super) opened: Opened,
    /// The first that could not be opened in time: where it lies, and what its last owner left.
    pub(super) slow: Option<(PathBuf, Predecessor)>,
}

/// Our own shard: the first that can be had, and opened in time. One that cannot is reported and left as it is, for whoever can: a
/// process does not fail because of what another one left, be it of a newer format, damaged or another user's. One that takes too long
/// is left to its thread.
pub(super) fn open_shard(
    options: &WorkerOptions,
    orphans: &Arc<Orphans>,
    skipped: &mut Vec<(u32, String)>,
    now: WallNanos,
) -> Result<Own, StartError> {
    let disk = &options.disk;
    if options.queue_dir.as_os_str().is_empty() {
        return Err(QueueError::NoDirectory.into());
    }
    disk.make_dir_durable(&options.queue_dir)
        .map_err(|source| QueueError::Io { path: options.queue_dir.clone(), source })?;
    let project_dir = options.lane.dir(&options.project, &options.queue_dir);
    let (mut unusable, mut unopened, mut slow) = (Vec::new(), 0, None);
    loop {
        let (number, error) = match claim(disk, &project_dir, &unusable) {
            Ok(claim) if claim.is_new() => {
                let opened = Queue::open(disk, &options.shard_options(), claim, now)?;
                return Ok(Own { opened, slow });
            }
            Ok(claim) => {
                let (number, dir) = (claim.number(), claim.dir().to_path_buf());
                let before = predecessor(disk, &dir);
                let most = options.open_timeout / IN_TIME;
                match orphans.open_in_time(disk, options.shard_options(), claim, now, most) {
                    Err(error) => return Err(StartError::Thread(error)),
                    Ok(Some(Ok(Some(opened)))) => return Ok(Own { opened, slow }),
                    Ok(Some(Err(error))) if unopened < UNOPENED_MAX => {
                        unopened += 1;
                        (number, error)
                    }
                    Ok(Some(Err(error))) => return Err(error.into()),
                    Ok(Some(Ok(None)) | None) => {
                        // Where two are slow, so is the disk: then a new one is made, which is opened without a look at old content.
                        if slow.is_some() {
                            unusable.extend(shard_dirs(disk, &project_dir));
                        }
                        unusable.push(dir.clone());
                        let why = format!("it was not open after {most:?}; what is in it is sent as soon as it is");
                        (options.report)(Notice::ShardSkipped { path: dir.clone(), why });
                        slow = slow.or(Some((dir, before)));
                        continue;
                    }
                }
            }
            Err(ClaimError::Shard { number, source }) => (number, (*source).into()),
            Err(error) => return Err(QueueError::from(error).into()),
        };
        if concerns_all_shards(&error) {
            return Err(error.into());
        }
        let (path, why) = (shard_dir(&project_dir, number), explain_queue(disk, &error));
        unusable.push(path.clone());
        skipped.push((number, why.clone()));
        (options.report)(Notice::ShardSkipped { path, why });
    }
}

/// A shard in memory, where the directory cannot be used.
pub(super) fn in_memory(options: &WorkerOptions) -> Result<Own, StartError> {
    let shard = Queue::volatile(&options.disk, &options.shard_options())?;
    let opened = Opened { shard, replayed: 0, findings: Vec::new(), before: Predecessor::default() };
    Ok(Own { opened, slow: None })
}
