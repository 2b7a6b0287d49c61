//! Dead letters from outside: why events were rejected for good, and queueing them again or discarding them.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};
use uuid::Uuid;

use super::error::InspectError;
use super::owned::OwnedQueue;
use super::places::QueueDir;
use super::reader::{Content, EventPlace};
use crate::queue::store::DeadRecord;
use crate::record::View;
use crate::sys::disk::Disk;
use crate::sys::limits::{DETAIL_KEPT, foreign};

/// Names of events that a group lists; the others are counted together.
const NAMES_MOST: usize = 50;

/// Which dead letters are meant: those that match everything that is set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadFilter {
    /// Only those with this HTTP status.
    pub status: Option<u16>,
    /// Only those whose reason contains this text.
    pub reason: Option<String>,
    /// Only events of this name.
    pub event: Option<String>,
}

/// Dead letters that were rejected for the same reason.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct DeadGroup {
    /// The HTTP status of the rejection; 0 if the events could not be read and were never sent.
    pub status: u16,
    /// The server's reason.
    pub reason: String,
    /// Their number.
    pub events: u64,
    /// Their number by the name of the event. At most 50 names; the rest is counted under `(other)`.
    pub by_event: BTreeMap<String, u64>,
    /// When the first of them was rejected, and the last. In JSON, seconds since 1970.
    #[serde(serialize_with = "unix_seconds")]
    pub first_rejected_at: SystemTime,
    /// See `first_rejected_at`.
    #[serde(serialize_with = "unix_seconds")]
    pub last_rejected_at: SystemTime,
    #[serde(serialize_with = "text")]
    /// One of them: the uuid under which `show` finds it. `None` if none can be read.
    pub example_uuid: Option<Uuid>,
}

/// The dead letters of a queue.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct DeadLetters {
    /// By reason, the largest group first.
    pub groups: Vec<DeadGroup>,
    /// What could not be read.
    pub damage: Vec<super::reader::Damage>,
}

/// The result of [`QueueDir::retry_dead`] and [`QueueDir::discard_dead`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DeadChange {
    /// Dead letters that were queued again, or discarded.
    pub events: u64,
    /// Those that match and stay dead letters, because they cannot be read or did not fit into the journal. Whether one
    /// matches whose row is damaged is not known; it counts.
    pub left: u64,
    /// Events, waiting ones or dead letters, that were found to be lost to damage when the queue was opened.
    pub lost_events: u64,
    /// What opening the queue found, in plain words; empty for a sound queue.
    pub notes: Vec<String>,
}

impl DeadFilter {
    /// Whether this dead letter is meant; `event` is `None` if it cannot be read.
    pub fn matches(&self, status: u16, reason: &str, event: Option<&str>) -> bool {
        self.status.is_none_or(|wanted| wanted == status)
            && self.reason.as_ref().is_none_or(|wanted| reason.contains(wanted))
            && self.event.as_ref().is_none_or(|wanted| event == Some(wanted))
    }

    fn matches_record(&self, record: &DeadRecord) -> bool {
        let view = View::parse(&record.body).ok();
        self.matches(record.status, &reason_of(&record.reason), view.map(|view| view.name))
    }
}

impl QueueDir {
    /// The dead letters that the filter means, grouped by status and reason. Changes nothing, and works beside a living
    /// owner as [`read`](Self::read) does.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn dead_letters(&self, scratch: &Path, filter: &DeadFilter) -> Result<DeadLetters, InspectError> {
        let (mut groups, mut damage) = (BTreeMap::<(u16, String), DeadGroup>::new(), Vec::new());
        self.read(scratch)?.dead_letters(&mut |content| {
            match content {
                Content::Event(event) => {
                    let EventPlace::DeadLetter { status, reason, last_attempt, .. } = &event.place else {
                        return ControlFlow::Continue(());
                    };
                    let (summary, reason) = (event.summary().ok(), reason_of(reason));
                    let name = summary.map(|summary| summary.event);
                    if filter.matches(*status, &reason, name) {
                        let group = groups.entry((*status, reason.clone())).or_insert_with(|| DeadGroup {
                            status: *status,
                            reason,
                            events: 0,
                            by_event: BTreeMap::new(),
                            first_rejected_at: *last_attempt,
                            last_rejected_at: *last_attempt,
                            example_uuid: None,
                        });
                        group.add(name, summary.map(|summary| summary.uuid), *last_attempt);
                    }
                }
                Content::Damage(found) => damage.push(found),
            }
            ControlFlow::Continue(())
        })?;
        let mut groups: Vec<_> = groups.into_values().collect();
        groups.sort_by_key(|group| std::cmp::Reverse(group.events));
        Ok(DeadLetters { groups, damage })
    }

    /// Queues dead letters again: each becomes a waiting event with its old uuid and time, and is then no dead letter any
    /// more. A kill in between leaves an event in both places; of an event that is sent twice PostHog keeps one.
    ///
    /// # Errors
    ///
    /// [`InspectError::Owned`] while a process has the queue, [`InspectError::OtherUser`] for a user to whom it does not
    /// belong; and if the queue cannot be written.
    pub fn retry_dead(&self, filter: &DeadFilter) -> Result<DeadChange, InspectError> {
        self.retry_dead_on(&Disk::default(), filter)
    }

    fn retry_dead_on(&self, disk: &Disk, filter: &DeadFilter) -> Result<DeadChange, InspectError> {
        let Some(owned) = self.own(disk)? else { return Ok(DeadChange::default()) };
        let failed = |error| InspectError::queue(self.path(), error);
        let mut change = DeadChange::of(&owned);
        let unreadable = each_dead(self, &owned, &mut |records| {
            let matching = records.into_iter().filter(|record| filter.matches_record(record));
            let (mut readable, mut matched) = (Vec::new(), 0);
            for record in matching {
                matched += 1;
                let class = View::parse(&record.body).map(|view| view.head.class as u8).ok();
                readable.extend(class.map(|class| (record, class)));
            }
            let queued = owned.queue.queue_again(&readable, owned.now()).map_err(failed)?;
            let count = queued.len() as u64;
            change.left += matched - count;
            remove(self, &owned, queued)?;
            change.events += count;
            Ok(())
        })?;
        change.left += unreadable;
        Ok(change)
    }

    /// Removes dead letters for good. The statistics of the queue go on counting them.
    ///
    /// # Errors
    ///
    /// As [`retry_dead`](Self::retry_dead).
    pub fn discard_dead(&self, filter: &DeadFilter) -> Result<DeadChange, InspectError> {
        self.discard_dead_on(&Disk::default(), filter)
    }

    fn discard_dead_on(&self, disk: &Disk, filter: &DeadFilter) -> Result<DeadChange, InspectError> {
        let Some(owned) = self.own(disk)? else { return Ok(DeadChange::default()) };
        let mut change = DeadChange::of(&owned);
        change.left = each_dead(self, &owned, &mut |records| {
            let meant = records.iter().filter(|record| filter.matches_record(record));
            let seqs: Vec<u64> = meant.map(|record| record.seq).collect();
            change.events += seqs.len() as u64;
            remove(self, &owned, seqs)
        })?;
        Ok(change)
    }
}

impl DeadChange {
    /// Nothing was changed yet in a queue that was just opened.
    fn of(owned: &OwnedQueue) -> Self {
        Self { events: 0, left: 0, lost_events: owned.lost(), notes: owned.notes() }
    }
}

type EachBatch<'a> = &'a mut dyn FnMut(Vec<DeadRecord>) -> Result<(), InspectError>;

/// Passes the dead letters of this moment in batches that fit the memory. Returns how many cannot be read.
fn each_dead(dir: &QueueDir, owned: &OwnedQueue, each: EachBatch<'_>) -> Result<u64, InspectError> {
    let failed = |error| InspectError::queue(dir.path(), error);
    let Some(newest) = owned.queue.dead_seqs().map_err(failed)?.last().copied() else { return Ok(0) };
    let (mut after, mut unreadable) = (None, 0);
    loop {
        let read = owned.queue.dead(after, usize::MAX).map_err(failed)?;
        unreadable += read.damaged;
        each(read.records.into_iter().filter(|record| record.seq <= newest).collect())?;
        match read.last.filter(|last| *last < newest) {
            Some(last) => after = Some(last),
            None => return Ok(unreadable),
        }
    }
}

fn remove(dir: &QueueDir, owned: &OwnedQueue, seqs: Vec<u64>) -> Result<(), InspectError> {
    if seqs.is_empty() {
        return Ok(());
    }
    owned.queue.remove_dead(seqs).map_err(|error| InspectError::queue(dir.path(), error))
}

/// The text of the server, cleaned of what a terminal would interpret.
fn reason_of(stored: &str) -> String {
    foreign(stored, DETAIL_KEPT)
}

impl DeadGroup {
    fn add(&mut self, name: Option<&str>, uuid: Option<Uuid>, at: SystemTime) {
        self.events += 1;
        let name = match name {
            Some(name) if self.by_event.contains_key(name) || self.by_event.len() < NAMES_MOST => name,
            Some(_) => "(other)",
            None => "(unreadable)",
        };
        *self.by_event.entry(name.to_owned()).or_default() += 1;
        self.first_rejected_at = self.first_rejected_at.min(at);
        self.last_rejected_at = self.last_rejected_at.max(at);
        self.example_uuid = self.example_uuid.or(uuid);
    }
}

fn text<S: Serializer>(uuid: &Option<Uuid>, serializer: S) -> Result<S::Ok, S::Error> {
    match uuid {
        Some(uuid) => serializer.collect_str(uuid),
        None => serializer.serialize_none(),
    }
}

fn unix_seconds<S: Serializer>(at: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(at.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64()))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::path::PathBuf;
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::Event;
    use crate::inspect::staging::{Filling, Group};
    use crate::inspect::stored_uuids;
    use crate::queue::{self, Ack, ChunkRef, OWN, frame};
    use crate::sys::disk::{Call, Gate, Op, Verdict};

    /// What the queues contain at each moment at which something is about to become durable: what a kill there leaves.
    #[derive(Debug)]
    struct Kills {
        queue_dir: PathBuf,
        left: Mutex<Vec<HashMap<Uuid, u32>>>,
    }

    impl Gate for Kills {
        fn before(&self, call: &Call<'_>) -> Verdict {
            if matches!(call.op, Op::Sync | Op::SyncDir | Op::Rename | Op::Remove) {
                let copy = tempfile::tempdir().unwrap();
                copy_dir(&self.queue_dir, copy.path());
                let (uuids, damage) = stored_uuids(copy.path()).unwrap();
                assert!(damage.is_empty(), "{damage:?}");
                self.left.lock().unwrap().push(uuids);
            }
            Verdict::Go
        }
    }

    fn copy_dir(from: &Path, to: &Path) {
        for entry in std::fs::read_dir(from).unwrap() {
            let (path, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
            if path.is_dir() {
                std::fs::create_dir(&to).unwrap();
                copy_dir(&path, &to);
            } else {
                std::fs::copy(&path, &to).unwrap();
            }
        }
    }

    fn append(filling: &Filling, numbers: std::ops::Range<u128>) {
        for n in numbers {
            let record = Event::new("bad", "a person").finish(Uuid::from_u128(n), 1, 1 << 20).unwrap();
            filling.append(record.body(), record.class as u8).unwrap();
        }
        filling.settle().unwrap();
    }

    /// Four dead letters, with the uuids 1 to 4, and two waiting events, 5 and 6.
    fn queue_with_dead_letters(queue_dir: &Path) -> QueueDir {
        let group = Group::of("phc_1", "https://a.example", queue_dir, "analytics").unwrap();
        group.prepare(&Disk::default()).unwrap();
        let claim = queue::claim(&Disk::default(), &group.dir, &[]).unwrap();
        let filling = Filling::open(&Disk::default(), &group, claim).unwrap();
        append(&filling, 1..5);
        let read = filling.queue().read(None, 1 << 20).unwrap();
        let dead = |head: frame::FrameHead, body: &[u8]| DeadRecord {
            seq: head.seq,
            status: 400,
            reason: "a mistake".into(),
            first_attempt: 1,
            last_attempt: 1,
            attempts: 1,
            body: body.to_vec(),
        };
        let acks = read.chunks.iter().map(|chunk| Ack {
            row: ChunkRef { origin: OWN, key: chunk.key },
            delivered: 0,
            dead: frame::frames(&chunk.frames, chunk.salt).map(|(head, body)| dead(head, body)).collect(),
            keep: None,
        });
        filling.queue().ack(&acks.collect::<Vec<_>>(), None, 2).unwrap();
        append(&filling, 5..7);
        QueueDir::at(filling.dir()).unwrap()
    }

    /// Runs the change, and returns how many events were changed, and what a kill at each moment leaves.
    fn killed_everywhere(
        change: impl Fn(&QueueDir, &Disk) -> Result<DeadChange, InspectError>,
    ) -> (u64, Vec<HashMap<Uuid, u32>>) {
        let dir = tempfile::tempdir().unwrap();
        let queue = queue_with_dead_letters(dir.path());
        let kills = Arc::new(Kills { queue_dir: dir.path().to_path_buf(), left: Mutex::default() });
        let changed = change(&queue, &Disk::gated(Arc::clone(&kills) as Arc<dyn Gate>)).unwrap().events;
        let (end, _) = stored_uuids(dir.path()).unwrap();
        let left = std::mem::take(&mut *kills.left.lock().unwrap());
        (changed, left.into_iter().chain([end]).collect())
    }

    fn counts(left: &HashMap<Uuid, u32>) -> Vec<u32> {
        (1..7).map(|n| left.get(&Uuid::from_u128(n)).copied().unwrap_or(0)).collect()
    }

    #[test]
    fn a_dead_letter_is_queued_before_it_is_removed() {
        let all = DeadFilter::default();
        let (changed, left) = killed_everywhere(|queue, disk| queue.retry_dead_on(disk, &all));
        let left: Vec<_> = left.iter().map(counts).collect();
        assert_eq!(changed, 4);
        assert!(left.iter().all(|left| left.iter().all(|places| *places >= 1)), "an event was nowhere: {left:?}");
        assert!(left.contains(&vec![2, 2, 2, 2, 1, 1]), "they are in both places for a moment: {left:?}");
        assert_eq!(left.last(), Some(&vec![1; 6]));
    }

    #[test]
    fn discarding_removes_dead_letters_at_once_and_nothing_else() {
        let all = DeadFilter::default();
        let (changed, left) = killed_everywhere(|queue, disk| queue.discard_dead_on(disk, &all));
        let left: Vec<_> = left.iter().map(counts).collect();
        assert_eq!((changed, left.last()), (4, Some(&vec![0, 0, 0, 0, 1, 1])));
        assert!(left.iter().all(|left| *left == [1; 6] || *left == [0, 0, 0, 0, 1, 1]), "{left:?}");
    }
}
