//! Counting and checking everything in a shard that this process only reads: every row and record with its checksum,
//! their numbers against the ledger, the rounds of the journal against the store and the status page.

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::path::Path;

use super::QueueError;
use super::error::StoreError;
use super::frame;
use super::reader::{Bad, Found, Reader};
use super::status_page::StatusPage;
use super::store::{self, Chunk, Ledger, Project, Row, State};
use crate::sys::disk::{Disk, Entry};
use crate::sys::wording::{count, number};

/// The state of the status page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Page {
    #[default]
    Missing,
    /// It has no magic number, or a version that never existed; the next owner begins a new one.
    Damaged,
    /// Its words do not match their check.
    Changed,
    Whole,
}

/// Most findings that are listed one by one. A store of which every row is damaged would fill the memory with them.
const BAD_MOST: usize = 200;

/// More records than this cannot be in the journal: four arenas of the largest size, full of the smallest records.
const GAP_MOST: u64 = 4 * 256 * 1024 * 1024 / 32;

/// What was found in a shard.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    pub(crate) page: Page,
    /// The ledger on the page, if it balances.
    pub(crate) page_ledger: Option<Ledger>,
    /// The highest sequence number according to the page.
    pub(crate) page_accepted: u64,
    pub(crate) has_store: bool,
    pub(crate) state: Option<State>,
    pub(crate) project: Option<Project>,
    /// Rows of which at least one record can be read, and the records.
    pub(crate) rows: u64,
    pub(crate) events: u64,
    /// Dead letters that can be read, and the bytes of their reasons and bodies.
    pub(crate) dead: u64,
    pub(crate) dead_bytes: u64,
    /// Events that are missing in rows that were found.
    pub(crate) torn_lost: u64,
    /// Dead letters that are known to be lost.
    pub(crate) dead_lost: u64,
    /// Records in the journal that are not in the store.
    pub(crate) journal_events: u64,
    /// Records that are known to be missing from the journal.
    pub(crate) journal_lost: u64,
    /// Records whose numbers are not in ascending order, or above what the ledger counts.
    pub(crate) out_of_order: u64,
    pub(crate) beyond_ledger: u64,
    /// What is wrong; at most [`BAD_MOST`] findings.
    pub(crate) bad: Vec<Bad>,
    /// How many more there are.
    pub(crate) more_bad: u64,
    row_bytes: u64,
    last_seq: u64,
}

impl Facts {
    fn add(&mut self, bad: Bad) {
        if self.bad.len() < BAD_MOST { self.bad.push(bad) } else { self.more_bad += 1 }
    }

    fn chunk(&mut self, chunk: &Chunk) -> u64 {
        let accepted = self.state.as_ref().map_or(u64::MAX, |state| state.ledger.accepted);
        let mut count = 0;
        for (head, _) in frame::frames(&chunk.frames, chunk.salt) {
            count += 1;
            self.out_of_order += u64::from(head.seq <= self.last_seq);
            self.beyond_ledger += u64::from(head.seq > accepted);
            self.last_seq = self.last_seq.max(head.seq);
        }
        self.rows += 1;
        self.events += count;
        self.row_bytes = self.row_bytes.saturating_add(chunk.row_bytes());
        count
    }
}

impl Reader {
    /// Reads everything. `progress` gets the number of records read so far.
    pub(crate) fn verify(&self, disk: &Disk, progress: &dyn Fn(u64)) -> Result<Facts, QueueError> {
        let page = StatusPage::peek(disk, self.dir());
        let page_file = self.dir().join(StatusPage::FILE);
        let is_there = disk.exists(&page_file).map_err(|source| QueueError::Io { path: page_file, source })?;
        let rows = self.rows();
        let facts = RefCell::new(Facts {
            page: match (&page, is_there) {
                // A living owner writes while its page is copied.
                (Some(page), _) if page.is_damaged && !self.is_copy() => Page::Changed,
                (Some(_), _) => Page::Whole,
                (None, true) => Page::Damaged,
                (None, false) => Page::Missing,
            },
            page_ledger: page.as_ref().and_then(|page| page.ledger),
            page_accepted: page.as_ref().map_or(0, |page| page.accepted),
            has_store: rows.exists(),
            state: rows.state().cloned(),
            project: rows.project().cloned(),
            ..Facts::default()
        });
        self.verify_arenas(&mut facts.borrow_mut());
        self.verify_rows(&facts, progress)?;
        let _ = self.walk_journal(disk, &mut |found| {
            let mut facts = facts.borrow_mut();
            match found {
                Found::Record { .. } => facts.journal_events += 1,
                Found::Bad(bad) => {
                    facts.journal_lost = facts.journal_lost.saturating_add(bad.lost.unwrap_or(0));
                    facts.add(bad);
                }
                Found::Dead(_) => {}
            }
            progress(facts.events + facts.journal_events);
            ControlFlow::Continue(())
        })?;
        let mut facts = facts.into_inner();
        self.find_gap(&mut facts);
        self.compare(&mut facts);
        // What is no file at all is found with the other files.
        let is_file = |path: &Path| Entry::at(path).is_ok_and(|entry| entry == Entry::File);
        if let Some((path, why)) = self.rows().refused_replacement().filter(|(path, _)| is_file(path)) {
            let why = format!(
                "a replacement of the store that was not completed, and cannot be used: {why}; the next start moves it away"
            );
            facts.add(Bad { path, why, lost: Some(0) });
        }
        Ok(facts)
    }

    /// Records between the last one of the store and the first one of the journal: they are in no file. Without a round
    /// in the journal, those that the page counts as accepted and the store does not.
    fn find_gap(&self, facts: &mut Facts) {
        let Some(known) = facts.state.as_ref().map(|state| state.ledger.accepted) else { return };
        let next = self.rounds().next().map(|round| round.first_seq.saturating_sub(1));
        let gap = next.unwrap_or(facts.page_accepted).saturating_sub(known);
        // A count that the arenas could not have held is damaged, and not used.
        if gap > 0 && gap <= GAP_MOST {
            facts.journal_lost = facts.journal_lost.saturating_add(gap);
            let why = "events were accepted and are in no file".to_owned();
            facts.add(Bad { path: self.dir().to_path_buf(), why, lost: Some(gap) });
        }
    }

    fn verify_arenas(&self, facts: &mut Facts) {
        self.bad_arenas().iter().for_each(|bad| facts.add(bad.clone()));
        for pair in self.arenas().windows(2) {
            let [(_, earlier), (path, later)] = pair else { continue };
            let why = if earlier.epoch == later.epoch {
                format!("its round has the epoch {} of another arena", later.epoch)
            } else if earlier.first_seq > later.first_seq {
                format!("its round {} begins with record {}, before the round before it", later.epoch, later.first_seq)
            } else {
                continue;
            };
            facts.add(Bad { path: path.clone(), why, lost: None });
        }
    }

    fn verify_rows(&self, facts: &RefCell<Facts>, progress: &dyn Fn(u64)) -> Result<(), QueueError> {
        let path = self.dir().join(store::QUEUE);
        let lost = |why: String, lost: Option<u64>| Bad { path: path.clone(), why, lost };
        if let Some(why) = self.rows().check() {
            facts.borrow_mut().add(lost(why, None));
        }
        let mut each = |row: Row| {
            let mut facts = facts.borrow_mut();
            match row {
                Row::Chunk { chunk, lost: torn } => {
                    let count = facts.chunk(&chunk);
                    let missing = u64::from(chunk.count).saturating_sub(count).saturating_add(torn);
                    facts.torn_lost = facts.torn_lost.saturating_add(missing);
                    if missing > 0 {
                        let why = format!("the row of record {} is damaged in part", chunk.key.first_seq);
                        facts.add(lost(why, Some(missing)));
                    }
                    progress(facts.events);
                }
                Row::Dead(dead) => {
                    facts.dead += 1;
                    facts.dead_bytes = facts.dead_bytes.saturating_add(dead.row_bytes());
                }
                Row::Lost { why, events } => facts.add(lost(why, events)),
            }
            ControlFlow::Continue(())
        };
        let failed = |source: StoreError| self.failed(source);
        let _ = self.rows().chunks(&mut each).map_err(failed)?;
        let mut each_dead = |row: Row| {
            if let Row::Lost { events: Some(lost), .. } = &row {
                let mut facts = facts.borrow_mut();
                facts.dead_lost = facts.dead_lost.saturating_add(*lost);
            }
            each(row)
        };
        let _ = self.rows().dead(&mut each_dead).map_err(failed)?;
        Ok(())
    }

    /// What was read against what the ledger says.
    fn compare(&self, facts: &mut Facts) {
        let path = self.dir().join(store::QUEUE);
        let bad = |why: String| Bad { path: path.clone(), why, lost: None };
        let Some(state) = facts.state.clone() else {
            if facts.has_store {
                facts.add(bad("the row with the state and the ledger is missing or damaged".into()));
            }
            return;
        };
        let was_whole = facts.bad.is_empty();
        if state.ledger.imbalance() != 0 {
            facts.add(bad(format!("the ledger does not balance: its sides differ by {}", state.ledger.imbalance())));
        }
        if facts.events < state.ledger.queued_events {
            let missing = state.ledger.queued_events - facts.events;
            facts.add(bad(format!(
                "the ledger counts {}, and {} can be read: {missing} lost",
                count(state.ledger.queued_events, "waiting event"),
                number(facts.events)
            )));
        } else if facts.events > state.ledger.queued_events {
            facts.add(bad(format!(
                "the ledger counts {}, and {} can be read",
                count(state.ledger.queued_events, "waiting event"),
                number(facts.events)
            )));
        }
        if was_whole && (facts.rows, facts.row_bytes) != (state.rows, state.ledger.queued_bytes) {
            facts.add(bad(format!(
                "{} of {} were read, and the ledger counts {} of {}",
                count(facts.rows, "row"),
                count(facts.row_bytes, "byte"),
                number(state.rows),
                count(state.ledger.queued_bytes, "byte")
            )));
        }
        if let Some(counted) = self.rows().dead_bytes().filter(|counted| was_whole && *counted != facts.dead_bytes) {
            let read = count(facts.dead_bytes, "byte");
            facts.add(bad(format!("dead letters of {read} were read, and the store counts {}", number(counted))));
        }
        if was_whole && facts.out_of_order > 0 {
            facts.add(bad(format!("sequence numbers out of order: {}", count(facts.out_of_order, "event"))));
        }
        if facts.beyond_ledger > 0 {
            facts.add(bad(format!(
                "sequence numbers above the {} that the ledger counts as accepted: {}",
                number(state.ledger.accepted),
                count(facts.beyond_ledger, "event")
            )));
        }
    }
}
