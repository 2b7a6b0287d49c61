//! Opening a shard: recovery, and the order in which things become trusted.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use super::checkpoint::checkpoint_into;
use super::claim::is_of_the_machine;
use super::status::{DEATHS_MAX, Phase, Predecessor, StatusPage};
use super::{Access, Claim, LANE, Shard, ShardError, ShardOptions};
use crate::queue::journal::arena::HEADER_BYTES;
use crate::queue::journal::{ARENAS_MAX, Found, Journal, JournalError, JournalOptions};
use crate::queue::store::{Changes, Identity, OpenReport, Store, StoreError, StoreOptions};
use crate::record::frame::FRAME_HEAD;
use crate::sys::clock::WallNanos;
use crate::sys::crash_point;
use crate::sys::disk::{Disk, up_to};

/// Something found at open that somebody should hear of.
#[derive(Debug)]
pub(crate) enum Finding {
    /// A file was damaged or foreign and was renamed out of the way.
    Salvaged {
        /// Its new name.
        path: PathBuf,
        /// What was wrong.
        why: String,
        /// Events that could not be saved.
        lost: u64,
    },
    /// Accepted events that are nowhere: damaged, or lost with a power cut before they were synced.
    Missing {
        /// How many.
        events: u64,
        /// The machine was restarted since.
        after_restart: bool,
    },
    /// What the journal holds could not be checkpointed yet; it is tried again.
    NotCarried {
        /// Why.
        error: ShardError,
    },
    /// The last owner died inside the store, so its file was checked.
    StoreVerified,
    /// The last owner died while it looked up what addresses mean.
    DiedResolving,
}

/// An open shard, and what was found in it.
#[derive(Debug)]
pub(crate) struct Opened {
    /// The shard.
    pub(crate) shard: Shard,
    /// Events replayed from the journal.
    pub(crate) replayed: u64,
    /// In the order found.
    pub(crate) findings: Vec<Finding>,
    /// The last owner, as its page says.
    pub(crate) before: Predecessor,
}

impl Shard {
    /// Opens the claimed directory and recovers what the last owner left.
    pub(crate) fn open(
        disk: &Disk,
        options: &ShardOptions,
        claim: Claim,
        now: WallNanos,
    ) -> Result<Opened, ShardError> {
        let dir = claim.dir().to_path_buf();
        let failed = |source| ShardError::Io { path: dir.clone(), source };
        let map = disk.file_system(&dir).map_err(failed)?.may_map() && crash_point::may_map();
        // Before anything is written: the journal and the store look again, each at its own version.
        if let Some(version) = StatusPage::newer_version(disk, &dir.join(StatusPage::FILE)).map_err(failed)? {
            return Err(ShardError::Newer { dir, version });
        }
        let (status, before) =
            StatusPage::take_over(disk, &dir.join(StatusPage::FILE), map, options.adopts, now).map_err(failed)?;
        let journal = JournalOptions {
            dir: Some(dir.clone()),
            map,
            arena_bytes: options.arena_bytes,
            lock_wait: options.lock_wait,
        };
        let found = Journal::open(disk, journal)?;
        let mut findings: Vec<Finding> = found
            .set_aside
            .iter()
            .map(|aside| Finding::Salvaged { path: aside.path.clone(), why: aside.why.to_owned(), lost: 0 })
            .collect();

        let store = open_store(disk, &dir, options, &before, &status, now, &mut findings)
            .inspect_err(|_| status.leave_unopened(&before))?;
        let (journal, replayed) = recover(found, &store, &before, &status, options, now, &mut findings)?;
        for dir in up_to(&dir, &options.queue_dir) {
            disk.sync_dir(&dir).map_err(failed)?;
        }
        let shard = Shard {
            dir,
            claim: Mutex::new(Some(claim)),
            status,
            journal,
            store: Mutex::new(Access::Open(Arc::new(store))),
            volatile: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            rest_stays: AtomicBool::new(false),
        };
        shard.mirror(now);
        Ok(Opened { shard, replayed, findings, before })
    }

    /// A shard without files: it lives and dies with the process.
    pub(crate) fn volatile(disk: &Disk, options: &ShardOptions) -> Result<Shard, ShardError> {
        let dir = PathBuf::from("(memory)");
        let journal =
            JournalOptions { dir: None, map: true, arena_bytes: options.arena_bytes, lock_wait: options.lock_wait };
        let journal = Journal::open(disk, journal)?.start(1, 1)?;
        let store = Store::volatile(&store_options(options, None, false))
            .map_err(|source| ShardError::Store { dir: dir.clone(), source })?;
        Ok(Shard {
            status: StatusPage::volatile().map_err(|source| ShardError::Io { path: dir.clone(), source })?,
            dir,
            claim: Mutex::new(None),
            journal,
            store: Mutex::new(Access::Open(Arc::new(store))),
            volatile: AtomicBool::new(true),
            lost: AtomicBool::new(false),
            rest_stays: AtomicBool::new(false),
        })
    }

    /// It was opened to be our own, and too late for that.
    pub(crate) fn become_adopted(&mut self) {
        self.status.become_adopted();
    }

    /// Closes the store's file and opens it again, after a failure.
    pub(crate) fn reopen_store(&self, now: WallNanos) -> Result<Vec<Finding>, ShardError> {
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
    options: &ShardOptions,
    before: &Predecessor,
    status: &StatusPage,
    now: WallNanos,
    findings: &mut Vec<Finding>,
) -> Result<Store, ShardError> {
    let failed = |source| ShardError::Store { dir: dir.to_path_buf(), source };
    let _phase = status.enter(Phase::Opening);
    crash_point::reach("store.opening");
    if before.died_resolving.is_some() && !options.adopts {
        findings.push(Finding::DiedResolving);
    }
    if before.died_in_store {
        findings.push(Finding::StoreVerified);
    }
    let mut store_options = store_options(options, before.ledger, before.died_in_store);
    // Whatever killed them there would kill us: the file is read row by row instead.
    store_options.untrusted = before.deaths_opening >= DEATHS_MAX;
    // Where panics abort, a damaged row is such a thing too. Better the queue is set aside than that no process starts any more.
    store_options.unreadable = cfg!(panic = "abort") && before.deaths_opening >= 2 * DEATHS_MAX;
    let (store, report) = Store::open(disk, dir, &store_options, now).map_err(failed)?;
    status.forget_deaths();
    report_damage(&report, findings);
    Ok(store)
}

fn store_options(
    options: &ShardOptions,
    witness: Option<crate::queue::store::Ledger>,
    check_integrity: bool,
) -> StoreOptions {
    StoreOptions {
        identity: Identity {
            project_hash: options.project.hash(),
            host: options.project.host.clone(),
            api_key: options.project.api_key.clone(),
        },
        cache_bytes: options.cache_bytes,
        reserve_bytes: options.reserve_bytes,
        dead_bytes: options.dead_bytes,
        check_integrity,
        untrusted: false,
        unreadable: false,
        witness,
    }
}

fn report_damage(report: &OpenReport, findings: &mut Vec<Finding>) {
    if let Some(path) = &report.damaged_file {
        let why = report.damage.clone().unwrap_or_default();
        findings.push(Finding::Salvaged { path: path.clone(), why, lost: report.lost_events });
    } else if report.lost_events > 0 {
        findings.push(Finding::Missing { events: report.lost_events, after_restart: false });
    }
}

/// Carries what the last owner did not get to, oldest first, and begins a new round above everything that was ever seen.
fn recover(
    mut found: Found,
    store: &Store,
    before: &Predecessor,
    status: &StatusPage,
    options: &ShardOptions,
    now: WallNanos,
    findings: &mut Vec<Finding>,
) -> Result<(Journal, u64), ShardError> {
    let accepted = believable(before.accepted, store.ledger().accepted.max(found.taken_up_to), options.arena_bytes);
    found.expect_up_to(accepted);
    status.note_restart(before.same_boot, found.epoch_max.max(store.journal_epoch(LANE)));
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
                let error = ShardError::Store { dir: PathBuf::new(), source };
                findings.push(Finding::NotCarried { error });
                // The numbers in these arenas are taken.
                last_seq = last_seq.max(found.last_seq_taken());
                break;
            }
        }
    }
    if found.oldest_sealed().is_none() {
        charge_vanished(store, accepted, before.same_boot, findings);
    }
    let known = found.epoch_max.max(store.journal_epoch(LANE)).max(before.epoch);
    let next_seq = last_seq.max(store.ledger().accepted).checked_add(1);
    let (Some(epoch), Some(next_seq)) = (known.checked_add(1), next_seq) else {
        let source = io::Error::new(io::ErrorKind::InvalidData, "the journal's numbers are used up");
        return Err(ShardError::Io { path: options.queue_dir.clone(), source });
    };
    Ok((found.start(epoch, next_seq)?, replayed))
}

/// What the status page saw accepted and no arena holds: the journal's files were removed, or never reached the disk.
fn charge_vanished(store: &Store, accepted: u64, same_boot: bool, findings: &mut Vec<Finding>) {
    let events = accepted.saturating_sub(store.ledger().accepted);
    if events == 0 {
        return;
    }
    let mut changes = Changes::default();
    changes.ledger.accepted_up_to = accepted;
    if same_boot {
        changes.ledger.damaged = events;
    } else {
        changes.ledger.lost_unsynced = events;
    }
    // Counted at the next open if it cannot be counted now: the page still says the same then.
    if let Err(source) = store.apply(&changes) {
        findings.push(Finding::NotCarried { error: ShardError::Store { dir: PathBuf::new(), source } });
    }
    findings.push(Finding::Missing { events, after_restart: !same_boot });
}

/// The page's count of accepted records, unless it claims more than the arenas can hold: then it is damaged.
fn believable(claimed: u64, known: u64, arena_bytes: usize) -> u64 {
    let most = (arena_bytes.saturating_sub(HEADER_BYTES) / FRAME_HEAD * ARENAS_MAX) as u64;
    if claimed.saturating_sub(known) > most { known } else { claimed.max(known) }
}

/// Whether an error at open says something about the disk or the process, so that another shard would fail as well.
pub(crate) fn concerns_all_shards(error: &ShardError) -> bool {
    match error {
        ShardError::Claim(error) => error.concerns_all(),
        ShardError::Io { source, .. }
        | ShardError::Journal(JournalError::File { source, .. })
        | ShardError::Store { source: StoreError::Io(source), .. } => is_of_the_machine(source),
        ShardError::Store { source, .. } => matches!(source, StoreError::NoSpace(_) | StoreError::Forked),
        ShardError::Journal(error) => matches!(error, JournalError::Memory { .. }),
        ShardError::Nowhere => true,
        ShardError::Newer { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::{Project, claim};
    use crate::record::frame::hash_body;

    fn open(queue_dir: &Path) -> Opened {
        let options = ShardOptions {
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
        Shard::open(&Disk::default(), &options, claim, 7).unwrap()
    }

    #[test]
    fn a_life_without_records_uses_up_no_number_and_misses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut numbers = Vec::new();
        for life in 0..6 {
            let Opened { shard, findings, .. } = open(dir.path());
            assert!(findings.is_empty(), "life {life}: {findings:?}");
            // Every other life is one in which nothing is captured.
            if life % 2 == 0 {
                numbers.push(shard.append(b"record", hash_body(b"record"), 0).unwrap().seq);
            }
            shard.close();
        }
        assert_eq!(numbers, [1, 2, 3]);
        let ledger = open(dir.path()).shard.ledger();
        assert_eq!((ledger.accepted, ledger.queued_events, ledger.damaged, ledger.imbalance()), (3, 3, 0, 0));
    }
}
