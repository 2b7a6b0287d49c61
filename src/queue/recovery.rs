//! Recovery: opening a queue, checkpointing what the last owner left in the journal, and the order in which its files
//! become trusted.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use super::checkpoint::checkpoint_into;
use super::status_page::{DEATHS_MAX, Phase, Predecessor, StatusPage};
use super::{Claim, Queue, QueueError, QueueOptions};
use crate::queue::frame::FRAME_HEAD;
use crate::queue::journal::arena::HEADER_BYTES;
use crate::queue::journal::{ARENAS_MAX, Journal, JournalOptions, Pool};
use crate::queue::store::{Changes, OpenReport, Store, StoreOptions};
use crate::sys::clock::WallNanos;
use crate::sys::crash_point;
use crate::sys::disk::{Disk, up_to};

/// Something that was found at open and is worth reporting.
#[derive(Debug)]
pub(crate) enum Finding {
    /// A file was damaged or foreign and was renamed. What could be read of it was kept.
    Salvaged {
        path: PathBuf,
        /// What was wrong with it.
        why: String,
        /// Events that could not be recovered.
        lost: u64,
        /// What that number does not say.
        doubt: Option<String>,
    },
    /// Accepted events that are nowhere: damaged, or lost in a power cut before they were synced.
    Missing {
        events: u64,
        /// Whether the machine was restarted since they were accepted.
        after_restart: bool,
    },
    /// The content of the journal could not be checkpointed. It stays there, and the checkpoint is tried again.
    NotCheckpointed { error: QueueError },
    /// The last owner died inside the store, so the file was checked.
    StoreVerified,
    /// The last owner died in a task that it had marked: see [`Queue::mark_task`].
    DiedInTask,
}

/// An open queue, and what was found in it.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) queue: Queue,
    /// Events that were recovered from the journal.
    pub(crate) replayed: u64,
    /// In the order in which they were found.
    pub(crate) findings: Vec<Finding>,
    /// The last owner, according to the status page.
    pub(crate) before: Predecessor,
}

impl Queue {
    /// Opens the claimed directory and recovers what the last owner left.
    pub(crate) fn open(
        disk: &Disk,
        options: &QueueOptions,
        claim: Claim,
        now: WallNanos,
    ) -> Result<Opened, QueueError> {
        Self::open_as(disk, options, claim, false, now)
    }

    /// Opens the claimed directory; if it `rebuilds`, the store's file is replaced by one that is made of its readable
    /// rows, and kept.
    pub(crate) fn open_as(
        disk: &Disk,
        options: &QueueOptions,
        claim: Claim,
        rebuilds: bool,
        now: WallNanos,
    ) -> Result<Opened, QueueError> {
        let dir = claim.dir().to_path_buf();
        let failed = |source| QueueError::Io { path: dir.clone(), source };
        let map = disk.file_system(&dir).map_err(failed)?.may_map() && crash_point::may_map();
        // Checked before anything is written. The journal and the store check their own versions again.
        if let Some(version) = StatusPage::newer_version(disk, &dir.join(StatusPage::FILE)).map_err(failed)? {
            return Err(QueueError::Newer { dir, version });
        }
        let (status, before) =
            StatusPage::take_over(disk, &dir.join(StatusPage::FILE), map, options.adopts, now).map_err(failed)?;
        let journal = JournalOptions {
            dir: Some(dir.clone()),
            map,
            arena_bytes: options.arena_bytes,
            lock_wait: options.lock_wait,
        };
        let found = Pool::open(disk, journal)?;
        let mut findings: Vec<Finding> = found
            .damaged_files
            .iter()
            .map(|(path, why)| Finding::Salvaged { path: path.clone(), why: (*why).to_owned(), lost: 0, doubt: None })
            .collect();

        let mut store = store_options(options, &before);
        store.untrusted |= rebuilds;
        let store = open_store(disk, &dir, (options, &store), &before, &status, now, &mut findings)
            .inspect_err(|_| status.leave_unopened(&before))?;
        let (journal, replayed) = recover(found, &store, &before, &status, options, now, &mut findings)?;
        for dir in up_to(&dir, &options.queue_dir) {
            disk.sync_dir(&dir).map_err(failed)?;
        }
        // From here on the page counts what is there, whatever it said before.
        status.set_accepted(journal.last_seq());
        let queue = Queue::of(dir, Some(claim), status, journal, store);
        queue.mirror(now);
        Ok(Opened { queue, replayed, findings, before })
    }

    /// A queue without files. It ends with the process.
    pub(crate) fn volatile(disk: &Disk, options: &QueueOptions) -> Result<Queue, QueueError> {
        let dir = PathBuf::from("(memory)");
        let journal =
            JournalOptions { dir: None, map: true, arena_bytes: options.arena_bytes, lock_wait: options.lock_wait };
        let journal = Pool::open(disk, journal)?.start(1, 1)?;
        let store = Store::volatile(&store_options(options, &Predecessor::default()))
            .map_err(|source| QueueError::Store { dir: dir.clone(), source })?;
        let status = StatusPage::volatile().map_err(|source| QueueError::Io { path: dir.clone(), source })?;
        Ok(Queue::of(dir, None, status, journal, store))
    }

    fn of(dir: PathBuf, claim: Option<Claim>, status: StatusPage, journal: Journal, store: Store) -> Queue {
        Queue {
            dir,
            volatile: AtomicBool::new(claim.is_none()),
            claim: Mutex::new(claim),
            status,
            journal,
            store,
            closed: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            files_remain: AtomicBool::new(false),
        }
    }

    /// Makes this an adopted queue: it was opened to be the process's own, but too late.
    pub(crate) fn become_adopted(&mut self) {
        self.status.become_adopted();
    }

    /// Closes the file of the store and opens it again after a failure.
    pub(crate) fn reopen_store(&self, now: WallNanos) -> Result<Vec<Finding>, QueueError> {
        let report = self.in_store(|store| store.reopen(now))?;
        let mut findings = Vec::new();
        report_damage(&report, &mut findings);
        self.mirror(now);
        Ok(findings)
    }
}

fn open_store(
    disk: &Disk,
    dir: &Path,
    (options, store): (&QueueOptions, &StoreOptions),
    before: &Predecessor,
    status: &StatusPage,
    now: WallNanos,
    findings: &mut Vec<Finding>,
) -> Result<Store, QueueError> {
    let failed = |source| QueueError::Store { dir: dir.to_path_buf(), source };
    let _phase = status.enter(Phase::Opening);
    crash_point::reach("store.opening");
    if before.died_in_task.is_some() && !options.adopts {
        findings.push(Finding::DiedInTask);
    }
    if before.died_in_store {
        findings.push(Finding::StoreVerified);
    }
    let (store, report) = Store::open(disk, dir, store, now).map_err(failed)?;
    status.forget_deaths();
    report_damage(&report, findings);
    Ok(store)
}

fn store_options(options: &QueueOptions, before: &Predecessor) -> StoreOptions {
    StoreOptions {
        project: options.project.clone(),
        cache_bytes: options.cache_bytes,
        reserve_bytes: options.reserve_bytes,
        dead_bytes: options.dead_bytes,
        check_integrity: before.died_in_store,
        // Opening it killed the last owners and might kill this one: the file is read row by row instead.
        untrusted: before.deaths_opening >= DEATHS_MAX,
        // Where panics abort, a damaged row can kill too. It is better to move the file away unread than that no process
        // starts again.
        unreadable: cfg!(panic = "abort") && before.deaths_opening >= 2 * DEATHS_MAX,
        witness: before.ledger,
    }
}

fn report_damage(report: &OpenReport, findings: &mut Vec<Finding>) {
    if let Some((path, why)) = &report.refused {
        findings.push(Finding::Salvaged { path: path.clone(), why: why.clone(), lost: 0, doubt: None });
    }
    if let Some(path) = &report.damaged_file {
        let why = report.damage.clone().unwrap_or_default();
        let doubt = report.doubt.clone();
        findings.push(Finding::Salvaged { path: path.clone(), why, lost: report.lost_events, doubt });
    } else if report.lost_events > 0 {
        findings.push(Finding::Missing { events: report.lost_events, after_restart: false });
    }
}

/// Checkpoints what the last owner did not get to, oldest first, and starts the journal above every epoch and number
/// ever seen.
fn recover(
    found: Pool,
    store: &Store,
    before: &Predecessor,
    status: &StatusPage,
    options: &QueueOptions,
    now: WallNanos,
    findings: &mut Vec<Finding>,
) -> Result<(Journal, u64), QueueError> {
    let accepted = believable(before.accepted, store.ledger().accepted.max(found.taken_until), options.arena_bytes);
    found.expect_last_seq(accepted);
    status.note_restart(before.same_boot, found.epoch_max.max(store.journal_epoch()));
    let mut replayed = 0;
    let mut last_seq = accepted;
    while let Some(sealed) = found.oldest_sealed() {
        last_seq = last_seq.max(sealed.last_seq.unwrap_or(0));
        crash_point::reach("recovery.replayed");
        let checkpointed = {
            let _phase = status.enter(Phase::Store);
            checkpoint_into(store, &sealed, Changes::default(), now, status.is_of_this_boot(sealed.round.epoch))
        };
        match checkpointed {
            Ok(checkpointed) => {
                crash_point::reach("recovery.committed");
                replayed += checkpointed.events;
                last_seq = last_seq.max(checkpointed.up_to);
                if checkpointed.missing > 0 {
                    findings.push(Finding::Missing {
                        events: checkpointed.missing,
                        after_restart: checkpointed.after_restart,
                    });
                }
                found.free_oldest();
            }
            Err(source) => {
                let error = QueueError::Store { dir: PathBuf::new(), source };
                findings.push(Finding::NotCheckpointed { error });
                // The numbers in these arenas are taken.
                last_seq = last_seq.max(found.last_seq_taken());
                break;
            }
        }
    }
    if found.oldest_sealed().is_none() {
        charge_vanished(store, accepted, before.same_boot, findings);
    }
    let known = found.epoch_max.max(store.journal_epoch()).max(before.epoch);
    let next_seq = last_seq.max(store.ledger().accepted).checked_add(1);
    let (Some(epoch), Some(next_seq)) = (known.checked_add(1), next_seq) else {
        let source = io::Error::new(io::ErrorKind::InvalidData, "the journal's numbers are used up");
        return Err(QueueError::Io { path: options.queue_dir.clone(), source });
    };
    Ok((found.start(epoch, next_seq)?, replayed))
}

/// Counts records that the status page saw accepted and no arena holds: the files of the journal were removed, or never
/// reached the disk.
fn charge_vanished(store: &Store, accepted: u64, same_boot: bool, findings: &mut Vec<Finding>) {
    let events = accepted.saturating_sub(store.ledger().accepted);
    if events == 0 {
        return;
    }
    let mut changes = Changes { accepted_up_to: accepted, ..Changes::default() };
    changes.count_missing(events, same_boot);
    // If it cannot be counted now, it is counted at the next open: the page still says the same then.
    if let Err(source) = store.apply(&changes) {
        findings.push(Finding::NotCheckpointed { error: QueueError::Store { dir: PathBuf::new(), source } });
    }
    findings.push(Finding::Missing { events, after_restart: !same_boot });
}

/// The page's count of accepted records. A count beyond what the arenas can hold is damaged, and `known` is used
/// instead.
fn believable(claimed: u64, known: u64, arena_bytes: usize) -> u64 {
    let most = (arena_bytes.saturating_sub(HEADER_BYTES) / FRAME_HEAD * ARENAS_MAX) as u64;
    if claimed.saturating_sub(known) > most { known } else { claimed.max(known) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::frame::hash_body;
    use crate::queue::{Project, claim};

    fn open(queue_dir: &Path) -> Opened {
        let options = QueueOptions {
            project: Project { host: "https://a".into(), api_key: "phc_1".into() },
            queue_dir: queue_dir.to_path_buf(),
            arena_bytes: 64 * 1024,
            lock_wait: std::time::Duration::from_millis(20),
            cache_bytes: 256 * 1024,
            reserve_bytes: 0,
            dead_bytes: 1 << 20,
            adopts: false,
        };
        let claim = claim(&Disk::default(), &queue_dir.join("project"), &[]).unwrap();
        Queue::open(&Disk::default(), &options, claim, 7).unwrap()
    }

    #[test]
    fn a_run_without_records_uses_no_number_and_misses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut numbers = Vec::new();
        for run in 0..6 {
            let Opened { queue, findings, .. } = open(dir.path());
            assert!(findings.is_empty(), "run {run}: {findings:?}");
            // Every other run appends nothing.
            if run % 2 == 0 {
                numbers.push(queue.append(b"record", hash_body(b"record"), 0).unwrap().seq);
            }
            queue.close();
        }
        assert_eq!(numbers, [1, 2, 3]);
        let ledger = open(dir.path()).queue.ledger();
        assert_eq!((ledger.accepted, ledger.queued_events, ledger.damaged, ledger.imbalance()), (3, 3, 0, 0));
    }
}
