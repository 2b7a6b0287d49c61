//! A run of a queue, repeated once for each call that it makes to the disk: that call fails, and the queue goes on as
//! its committer would. The next owner finds what was accepted, and after a power cut it finds what a sync had
//! confirmed.

use super::cut_disk::{Cut, CutDisk, Fault};
use super::power_cut::{Facts, Fate, look_at};
use super::*;
use crate::sys::disk::Op;

const NO_SPACE: i32 = 28;
const BROKEN: i32 = 5;
const INTERRUPTED: i32 = 4;
const SHORT: i32 = 0;

struct Run {
    queue_dir: PathBuf,
    disk: Arc<CutDisk<Facts>>,
    queue: Queue,
    next_id: u64,
    /// For messages.
    fault: Option<Fault>,
}

impl Run {
    fn begin(root: &Path, mapped: bool, fault: Option<Fault>) -> Run {
        let queue_dir = root.join("queue");
        std::fs::create_dir(&queue_dir).unwrap();
        let disk = CutDisk::new(root, mapped, 1, 1);
        disk.fail(fault);
        let queue = Self::open(&disk, &queue_dir, fault);
        Run { queue_dir, disk, queue, next_id: 1, fault }
    }

    /// Succeeds the second time at the latest, because only one call fails.
    fn open(disk: &Arc<CutDisk<Facts>>, queue_dir: &Path, fault: Option<Fault>) -> Queue {
        let gated = Disk::gated(Arc::clone(disk) as Arc<dyn Gate>);
        let opened = try_open(&gated, queue_dir).or_else(|_| try_open(&gated, queue_dir));
        let Opened { queue, findings, .. } = opened.unwrap_or_else(|error| panic!("{fault:?}: {error:?}"));
        let is_harmless = |finding: &Finding| matches!(finding, Finding::NotCheckpointed { .. });
        assert!(findings.iter().all(is_harmless), "{fault:?}: {findings:?}");
        queue
    }

    fn reopen(&mut self) {
        self.queue.close();
        // The old one is dropped first: a directory has one owner.
        let disk = Disk::default();
        self.queue = Queue::volatile(&disk, &options(&self.queue_dir)).unwrap();
        self.queue = Self::open(&self.disk, &self.queue_dir, self.fault);
    }

    fn append(&mut self, count: u64) {
        for id in self.next_id..self.next_id + count {
            if let Ok(appended) = append(&self.queue, id, 0) {
                self.disk.know(|facts| facts.appended.push((appended.seq, id)));
            }
        }
        self.next_id += count;
    }

    fn sync(&self) {
        match self.queue.sync() {
            Ok(up_to) => self.confirm(up_to),
            Err(_) => self.checkpoint(&[]),
        }
    }

    fn confirm(&self, up_to: u64) {
        self.disk.know(|facts| facts.confirmed = facts.confirmed.max(up_to));
        self.look("confirmed");
    }

    fn checkpoint(&self, acked: &[Ack]) {
        let _ = self.queue.journal().swap();
        let (mut acked, mut failures) = (acked, 0);
        loop {
            match self.queue.checkpoint(acked, None, NOW) {
                Ok(Some(checkpointed)) => {
                    assert_eq!(checkpointed.missing, 0, "{:?}", self.fault);
                    self.disk.know(Facts::commit);
                    acked = &[];
                    self.confirm(checkpointed.up_to);
                }
                Ok(None) if acked.is_empty() => return,
                Ok(None) => return self.ack(acked),
                Err(error) => self.repair(&error, &mut failures),
            }
        }
    }

    fn ack(&self, acked: &[Ack]) {
        let mut failures = 0;
        while let Err(error) = self.queue.ack(acked, None, NOW) {
            self.repair(&error, &mut failures);
        }
        self.disk.know(Facts::commit);
        self.look("acked");
    }

    fn repair(&self, error: &QueueError, failures: &mut u32) {
        *failures += 1;
        assert!(*failures < 4, "{:?}: {error:?}", self.fault);
        if self.queue.open_store().unwrap().is_latched() {
            let reopened = self.queue.reopen_store(NOW).or_else(|_| self.queue.reopen_store(NOW));
            let findings = reopened.unwrap_or_else(|error| panic!("{:?}: {error:?}", self.fault));
            assert!(findings.is_empty(), "{:?}: {findings:?}", self.fault);
        }
    }

    /// Of the oldest row, every third record is dead-lettered, every third is kept, and the others were delivered.
    fn judge_oldest(&self) -> Vec<Ack> {
        let Some(chunk) =
            (0..3).find_map(|_| self.queue.read(None, 1).ok()).and_then(|read| read.chunks.into_iter().next())
        else {
            return Vec::new();
        };
        let (mut delivered, mut dead_lettered, mut keep) = (0, Vec::new(), Vec::new());
        for (head, body) in frame::frames(&chunk.frames, chunk.salt) {
            let fate = match head.seq % 3 {
                0 => {
                    dead_lettered.push(dead(head.seq, u64::from_le_bytes(*body.first_chunk().unwrap())));
                    Fate::DeadLettered
                }
                1 => {
                    keep.push(head.seq);
                    continue;
                }
                _ => {
                    delivered += 1;
                    Fate::Delivered
                }
            };
            self.disk.know(|facts| _ = facts.leaving.insert(head.seq, fate));
        }
        vec![ack_keeping(&chunk, delivered, dead_lettered, &keep)]
    }

    /// Checks what the next owner would find after the worst power cut.
    fn look(&self, after: &str) {
        look_at(&self.disk.cut_badly(format!("{:?}, {after}", self.fault)), true, false);
    }

    /// Checks what it would find after a kill.
    fn look_after_kill(&self, root: &Path) {
        let mut facts = Facts::default();
        self.disk.know(|known| facts = known.clone());
        facts.confirmed = facts.appended.iter().map(|(seq, _)| *seq).max().unwrap_or(0);
        look_at(&Cut { dir: copy_of(root), facts, at: format!("{:?}, killed", self.fault) }, true, true);
    }
}

/// Returns the calls that it took.
fn live(mapped: bool, fault: Option<Fault>) -> std::collections::HashMap<Op, u64> {
    let root = scratch();
    let mut run = Run::begin(root.path(), mapped, fault);
    run.append(20);
    run.sync();
    run.append(20);
    run.checkpoint(&[]);
    run.append(10);
    run.ack(&run.judge_oldest());
    run.sync();
    let _ = run.queue.journal().swap();
    run.append(10);
    run.look_after_kill(root.path());
    run.reopen();
    run.append(5);
    run.checkpoint(&run.judge_oldest());
    run.append(5);
    run.sync();
    run.look_after_kill(root.path());
    let calls = run.disk.calls();
    drop(run);
    calls
}

/// In a debug build one in this many calls fails, of writes and of all others; the database is slower there by an order
/// of magnitude.
const STRIDES: (usize, usize) = if cfg!(debug_assertions) { (37, 4) } else { (1, 1) };

fn every_call_fails_once(mapped: bool) {
    let calls = live(mapped, None);
    assert!(calls[&Op::Write] > 50 && calls[&Op::Sync] > 10, "{calls:?}");
    for (op, count) in calls {
        let (errors, stride): (&[i32], _) = match op {
            Op::Write => (&[NO_SPACE, BROKEN, INTERRUPTED, SHORT], STRIDES.0),
            Op::Sync | Op::SetLen | Op::Create | Op::Rename => (&[NO_SPACE, BROKEN, INTERRUPTED], STRIDES.1),
            _ => (&[BROKEN, INTERRUPTED], STRIDES.1),
        };
        for (first, &errno) in (1..).zip(errors) {
            for nth in (first..=count).step_by(stride) {
                live(mapped, Some(Fault { op, nth, errno }));
            }
        }
    }
}

#[test]
fn no_single_fault_costs_an_accepted_record_in_mapped_arenas() {
    every_call_fails_once(true);
}

#[test]
fn no_single_fault_costs_an_accepted_record_in_written_arenas() {
    every_call_fails_once(false);
}

#[test]
fn no_sync_after_a_failed_one_confirms_what_the_kernel_dropped() {
    for mapped in [true, false] {
        let root = scratch();
        let mut run = Run::begin(root.path(), mapped, None);
        run.append(10);
        let next = run.disk.calls()[&Op::Sync] + 1;
        run.disk.fail(Some(Fault { op: Op::Sync, nth: next, errno: BROKEN }));
        run.queue.sync().unwrap_err();
        run.queue.sync().unwrap_err();
        // If the store cannot take the records, sealing the arena changes nothing.
        assert!(run.queue.journal().swap().unwrap());
        run.append(1);
        run.queue.sync().unwrap_err();
        run.checkpoint(&[]);
        run.append(1);
        assert_eq!(run.queue.sync().unwrap(), 12, "once they are in the store, the journal is as good as new");
        run.confirm(12);
    }
}
