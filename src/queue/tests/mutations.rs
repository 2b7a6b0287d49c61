//! Damaged files: flipped, blanked, cut, shuffled. Opening never panics, never revives what was acked, and accounts for
//! every accepted record: it is found, or counted as damaged.

use std::collections::BTreeMap;

use super::*;

/// A debug build of the database is slower by an order of magnitude.
const MUTATIONS: u64 = if cfg!(debug_assertions) { 200 } else { 3_000 };
const TOTAL: u64 = 100;

/// What a killed owner left: 60 records in the store, of which ten were delivered and five dead-lettered, and two
/// arenas of twenty.
struct Specimen {
    root: tempfile::TempDir,
    /// The records left in the store.
    checkpointed: BTreeMap<u64, u64>,
    /// The records in the journal.
    waiting: BTreeMap<u64, u64>,
}

impl Specimen {
    fn make(mapped: bool) -> Specimen {
        let root = scratch();
        let queue = open(&Machine::disk(7, mapped), &root.path().join("queue")).queue;
        for batch in 0..5 {
            for id in batch * 20 + 1..=batch * 20 + 20 {
                assert_eq!(append(&queue, id, 0).unwrap().seq, id);
            }
            // The fourth batch stays in a sealed arena that is not checkpointed, the fifth in the active one.
            if batch < 4 {
                queue.journal().swap().unwrap();
            }
            if batch < 3 {
                queue.checkpoint(&[], None, NOW).unwrap().unwrap();
            }
        }
        queue.sync().unwrap();
        let dead_lettered: Vec<_> = (1..=5).map(|seq| dead(seq, seq)).collect();
        let row = queue.read(None, 1).unwrap().chunks.remove(0);
        let acked = ack_keeping(&row, 10, dead_lettered, &(16..=20).collect::<Vec<_>>());
        assert_eq!(queue.ack(&[acked], None, NOW).unwrap().stale_removals, 0);
        let left = copy_of(root.path());
        let checkpointed = (16..=60).map(|seq| (seq, seq)).collect();
        Specimen { root: left, checkpointed, waiting: (61..=TOTAL).map(|seq| (seq, seq)).collect() }
    }

    fn files(&self) -> Vec<String> {
        let names = std::fs::read_dir(first_shard(&self.root.path().join("queue"))).unwrap();
        let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| name != "lock" && name != "reserve");
        names.sort();
        names
    }
}

/// Damages the bytes in one way: a flipped bit, a run of noise, a run of zeros, a sector copied to another place, a
/// cut, or appended bytes.
fn mutate(bytes: &mut Vec<u8>, random: &mut u64) {
    if bytes.is_empty() {
        return;
    }
    // Most of an arena and of a new store is empty: written parts are hit more often.
    let written: Vec<_> =
        (0..bytes.len()).step_by(64).filter(|at| bytes[*at..].iter().take(64).any(|b| *b != 0)).collect();
    let at =
        written.get(next(random) as usize % written.len().max(1)).copied().unwrap_or(0) + next(random) as usize % 64;
    let at = at.min(bytes.len() - 1);
    let run = at..(at + next(random) as usize % 700).min(bytes.len());
    match next(random) % 7 {
        0 | 1 => bytes[at] ^= 1 << (next(random) % 8),
        2 => run.for_each(|i| bytes[i] = next(random) as u8),
        3 => bytes[run].fill(0),
        4 => {
            let from = (next(random) as usize % bytes.len()) / 512 * 512;
            let len = 512.min(bytes.len() - from).min(bytes.len() - at / 512 * 512);
            bytes.copy_within(from..from + len, at / 512 * 512);
        }
        5 => bytes.truncate(at),
        _ => bytes.extend_from_slice(&[next(random) as u8; 5000]),
    }
}

/// Everything that can be read, as a consumer reads it: damaged rows are replaced by what is left of them.
fn drained(queue: &Queue, round: u64) -> BTreeMap<u64, u64> {
    for _ in 0..50 {
        let read = match queue.read(None, usize::MAX) {
            Ok(read) => read,
            Err(_) => {
                queue.reopen_store(NOW).unwrap();
                continue;
            }
        };
        if !read.damaged.is_empty() {
            if queue.repair(read.damaged, NOW).is_err() {
                queue.reopen_store(NOW).unwrap();
            }
            continue;
        }
        let found = queued(queue);
        assert!(found.windows(2).all(|pair| pair[0].0 < pair[1].0), "round {round}: {found:?}");
        return found.into_iter().collect();
    }
    panic!("round {round}: the queue cannot be read to its end");
}

fn look(specimen: &Specimen, mapped: bool, mutated: &[&String], round: u64) {
    let (disk, root) = (Machine::disk(7, mapped), copy_of(specimen.root.path()));
    let queue_dir = root.path().join("queue");
    let mut random = 0x1234_5678_9ABC_DEF1 ^ round.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    for name in mutated {
        let path = first_shard(&queue_dir).join(name);
        let mut bytes = std::fs::read(&path).unwrap();
        mutate(&mut bytes, &mut random);
        std::fs::write(&path, bytes).unwrap();
    }
    let opened = try_open(&disk, &queue_dir);
    let Opened { queue, findings, .. } = opened.unwrap_or_else(|error| panic!("round {round}, {mutated:?}: {error:?}"));
    let found = drained(&queue, round);
    let ledger = queue.ledger();
    let all = format!("round {round}, {mutated:?}: {ledger:?}, {findings:?}");
    assert_eq!((ledger.imbalance(), ledger.queued_events), (0, found.len() as u64), "{all}");
    let is_mutated = |prefix: &str| mutated.iter().any(|name| name.starts_with(prefix));
    let has_all = |of: &BTreeMap<u64, u64>| of.iter().all(|(seq, id)| found.get(seq) == Some(id));
    assert!(found.iter().all(|(seq, id)| seq == id && *seq <= TOTAL), "{all}: {found:?}");
    if !is_mutated("queue") {
        assert!(has_all(&specimen.checkpointed), "{all}: {found:?}");
        assert!(found.keys().all(|seq| *seq > 15), "{all}: acked records came back");
    }
    if !is_mutated("journal") {
        assert!(has_all(&specimen.waiting), "{all}: {found:?}");
    }
    if !is_mutated("status") {
        assert_eq!(ledger.accepted, TOTAL, "{all}: {found:?}");
    }
    let next = append(&queue, 7_777, 0).unwrap().seq;
    assert!(next > found.keys().last().copied().unwrap_or(0), "{all}");
    queue.close();
    drop(queue);
    let queue = open(&disk, &queue_dir).queue;
    let expected: BTreeMap<_, _> = found.into_iter().chain([(next, 7_777)]).collect();
    assert_eq!(queued(&queue).into_iter().collect::<BTreeMap<_, _>>(), expected, "{all}");
    assert_eq!(queue.ledger().imbalance(), 0, "{all}");
}

#[test]
fn after_any_damage_each_accepted_record_is_found_or_counted() {
    for mapped in [true, false] {
        let specimen = Specimen::make(mapped);
        let files = specimen.files();
        assert_eq!(files, ["journal-0", "journal-1", "queue.redb", "status"]);
        for round in 0..MUTATIONS / 2 {
            let first = &files[round as usize % files.len()];
            let second = &files[round as usize / files.len() % files.len()];
            // One file in two rounds of three, two files in the third.
            let mutated = if round % 3 == 2 && first != second { vec![first, second] } else { vec![first] };
            look(&specimen, mapped, &mutated, round);
        }
    }
}

/// A byte of each word that the queue reads, low and high ones in turn, and what it is changed by.
fn changes_of_the_page() -> impl Iterator<Item = (usize, u8)> {
    let changes = [(0, 0x01), (0, 0x80), (1, 0xFF), (5, 0x01), (7, 0x80)];
    (0..49).flat_map(move |word| changes.map(|(byte, by)| (word * 8 + byte, by)))
}

fn with_page(root: &Path, place: usize, flipped: u8) -> tempfile::TempDir {
    let copy = copy_of(root);
    let path = first_shard(&copy.path().join("queue")).join("status");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[place] ^= flipped;
    std::fs::write(&path, bytes).unwrap();
    copy
}

#[test]
fn no_byte_of_the_page_makes_an_event_lost() {
    let disk = Machine::disk(7, true);
    let killed = Specimen::make(true);
    // The same queue, which an owner has opened and closed.
    let closed = copy_of(killed.root.path());
    open(&disk, &closed.path().join("queue")).queue.close();
    let all: Vec<_> = killed.checkpointed.keys().chain(killed.waiting.keys()).copied().collect();
    for (root, (place, flipped)) in
        [killed.root.path(), closed.path()].into_iter().flat_map(|root| changes_of_the_page().map(move |of| (root, of)))
    {
        let copy = with_page(root, place, flipped);
        let queue_dir = copy.path().join("queue");
        let what = format!("word {}, byte {} ^ {flipped:#x}", place / 8, place % 8);
        assert!(!is_known_empty(&disk, &first_shard(&queue_dir)), "{what}");
        let Opened { queue, findings, .. } = open(&disk, &queue_dir);
        let is_loss = |finding: &Finding| !matches!(finding, Finding::StoreVerified | Finding::DiedInTask);
        assert!(!findings.iter().any(is_loss), "{what}: {findings:?}");
        assert_eq!(queued(&queue).into_iter().map(|(seq, _)| seq).collect::<Vec<_>>(), all, "{what}");
        let ledger = queue.ledger();
        assert_eq!((ledger.accepted, ledger.delivered, ledger.dead_lettered), (TOTAL, 10, 5), "{what}");
        assert_eq!((ledger.damaged, ledger.lost_unsynced, ledger.evicted), (0, 0, 0), "{what}");
        // What was wrong is not handed on to the next owner.
        let page = predecessor(&disk, queue.dir());
        assert_eq!((page.is_damaged, page.accepted, page.ledger), (false, TOTAL, Some(ledger)), "{what}");
        queue.close();
    }
}

#[test]
fn a_page_of_another_queue_does_not_make_this_one_empty() {
    let disk = Machine::disk(7, true);
    let (full, empty) = (Specimen::make(true), scratch());
    let dirs = [&full.root, &empty].map(|root| root.path().join("queue"));
    dirs.iter().for_each(|dir| open(&disk, dir).queue.close());
    let [full, empty] = dirs.map(|dir| first_shard(&dir));
    assert!(!is_known_empty(&disk, &full) && is_known_empty(&disk, &empty));
    std::fs::copy(empty.join("status"), full.join("status")).unwrap();
    assert!(!is_known_empty(&disk, &full), "it was closed with another store");
}
