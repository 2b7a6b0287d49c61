//! Files that a process finds on the disk: rows, arenas, and a whole queue in which any bytes are changed.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use crate::flags::loader;
use crate::queue::journal::arena::Round;
use crate::queue::journal::replay::replay;
use crate::queue::{self, Found, Project, Queue, QueueError, QueueOptions, Reader, frame, store};
use crate::report::LaneState;
use crate::sys::disk::Disk;

const NOW: i64 = 1_700_000_000_000_000_000;
const SALT: u64 = 0x1234_5678_9ABC_DEF1;
/// Records in the queue that is damaged: these are in the store, the others in the journal.
const STORED: u64 = 40;
const RECORDS: u64 = 60;

/// A row of the store: whatever its bytes are, reading it gives a value or none.
pub fn store_row(bytes: &[u8]) {
    store::read_any_row(bytes);
}

/// What was kept of flag definitions: any bytes are definitions or none. The same bytes as a document are kept and read
/// as they were.
pub fn kept_flags(bytes: &[u8]) {
    let _any = loader::decode(bytes);
    loader::keep_any_document(bytes);
}

/// The frames of an arena. Each byte of the input below 32 begins that many bytes of the input as they are; any other
/// begins a valid frame whose body has that many bytes modulo 32, with the next sequence number, or an old one if it is
/// above 224.
pub fn arena(bytes: &[u8]) {
    let (mut content, mut written, mut seq) = (Vec::new(), BTreeMap::new(), 1_u64);
    let mut rest = bytes;
    while let Some((first, after)) = rest.split_first() {
        let (part, after) = after.split_at(usize::from(first % 32).min(after.len()));
        rest = after;
        if *first < 32 || part.is_empty() {
            content.extend_from_slice(part);
            continue;
        }
        let salt = if *first % 7 == 0 { SALT + 1 } else { SALT };
        let its_seq = if *first > 224 { seq.saturating_sub(2) } else { seq };
        frame::append(&mut content, part, first % 4, its_seq, salt);
        if salt == SALT && *first <= 224 {
            written.insert(seq, part.to_vec());
            seq += 1;
        }
    }
    let round = Round { salt: SALT, epoch: 1, first_seq: 1 };
    for last_seq in [None, Some(seq), Some(seq + 3)] {
        let found = replay(content.clone(), &round, last_seq);
        let mut next = 1;
        for run in &found.runs {
            assert!(run.first_seq >= next && run.last_seq >= run.first_seq, "runs are in order");
            let frames = found.bytes.get(run.range.clone()).unwrap_or_default();
            let frames: Vec<_> = frame::frames(frames, SALT).collect();
            assert_eq!(frames.len() as u64, u64::from(run.count), "a run has the records that it counts");
            for (head, body) in frames {
                assert_eq!(head.seq, next.max(run.first_seq), "numbers within a run have no gaps");
                next = head.seq + 1;
                // An old number may have been written a second time, with another body.
                let _same = written.get(&head.seq).map(|known| known == body);
            }
        }
    }
}

/// A queue of a process that was killed. The input is a list of changes, each of eight bytes: which file, where, and
/// what. Records that are found are those that were appended, and what the library opens afterwards takes new ones.
pub fn queue(bytes: &[u8]) {
    let place = Place::take();
    let root = place.path();
    let dir = queue::shard_dir(&root.join(project().dir_name()), 0);
    damage(&dir, bytes).expect("the files of the queue can be written");
    let disk = Disk::of_any_user();
    look_into(&disk, &dir);
    // A newer format and a foreign directory are left alone; anything else is opened, whatever it costs.
    match open(&Disk::default(), &root) {
        Ok(queue) => {
            let body = body_of(0);
            queue.append(&body, frame::hash_body(&body), 0).expect("a queue that is open takes a record");
            queue.close();
        }
        Err(QueueError::Newer { .. } | QueueError::JournalNewer { .. } | QueueError::Store { .. }) => {}
        Err(error) => panic!("{error}"),
    }
}

fn look_into(disk: &Disk, dir: &Path) {
    if let Ok(Some(page)) = queue::page(disk, dir) {
        let _any = page.owner.as_ref().map(LaneState::of_words);
        let _any = page.last.queued_events();
    }
    let Ok(reader) = Reader::open(disk, dir, false) else { return };
    let each = &mut |found: Found<'_>| {
        match found {
            Found::Record { seq, body, .. } => assert_eq!(body, body_of(seq), "record {seq} is as it was"),
            Found::Dead(dead) => assert_eq!(dead.body, body_of(dead.seq), "dead letter {} is as it was", dead.seq),
            Found::Bad(bad) => assert!(!bad.why.is_empty(), "damage has a reason"),
        }
        ControlFlow::Continue(())
    };
    let _any = reader.walk(disk, each);
    let _any = reader.verify(disk, &|_| ());
}

/// Writes the files of the undamaged queue, and changes them.
fn damage(dir: &Path, changes: &[u8]) -> io::Result<()> {
    let mut files: Vec<_> = undamaged().iter().map(|(name, bytes)| (name, bytes.clone())).collect();
    let count = files.len();
    for change in changes.as_chunks::<8>().0 {
        let [which, kind, a, b, c, x, y, z] = *change;
        let Some((_, bytes)) = files.get_mut(usize::from(which) % count) else { continue };
        let place = u32::from_le_bytes([a, b, c, 0]) as usize;
        match kind % 8 {
            // The beginnings of files and pages are where the formats have their heads.
            0..=2 => put(bytes, place % 512, &[x, y, z]),
            3 => put(bytes, (place % 1024) * 4096 + usize::from(z % 64), &[x, y]),
            4 | 5 => put(bytes, place, &[x, y, z]),
            6 => bytes.truncate(place),
            _ => {
                let (from, to) = (place % 4096 * 512, usize::from(x) * 4096);
                let part = bytes.get(from..from + 512).unwrap_or_default().to_vec();
                put(bytes, to, &part);
            }
        }
    }
    fs::create_dir_all(dir)?;
    files.into_iter().try_for_each(|(name, bytes)| fs::write(dir.join(name), bytes))
}

fn put(bytes: &mut [u8], at: usize, part: &[u8]) {
    if let Some(place) = at.checked_add(part.len()).and_then(|end| bytes.get_mut(at..end)) {
        place.copy_from_slice(part);
    }
}

fn project() -> Project {
    Project { host: "https://eu.example".into(), api_key: "phc_fuzz".into() }
}

fn body_of(seq: u64) -> Vec<u8> {
    format!("the body of record {seq}").into_bytes()
}

fn open(disk: &Disk, root: &Path) -> Result<Queue, QueueError> {
    let options = QueueOptions {
        project: project(),
        queue_dir: root.to_path_buf(),
        arena_bytes: 16 * 1024,
        lock_wait: Duration::from_millis(20),
        cache_bytes: 1 << 20,
        reserve_bytes: 0,
        dead_bytes: 1 << 20,
        adopts: false,
    };
    let claim = queue::claim(disk, &root.join(project().dir_name()), &[])?;
    Ok(Queue::open(disk, &options, claim, NOW)?.queue)
}

/// The files of a queue as a killed process leaves them.
fn undamaged() -> &'static BTreeMap<String, Vec<u8>> {
    static FILES: OnceLock<BTreeMap<String, Vec<u8>>> = OnceLock::new();
    FILES.get_or_init(|| {
        let place = Place::take();
        let queue = open(&Disk::default(), &place.path()).expect("an empty directory can be opened");
        for seq in 1..=RECORDS {
            let body = body_of(seq);
            queue.append(&body, frame::hash_body(&body), 0).expect("there is room");
            if seq == STORED {
                queue.checkpoint_all(NOW).expect("the disk works");
            }
        }
        let names = fs::read_dir(queue.dir()).expect("the directory can be read").flatten();
        let read = |entry: fs::DirEntry| Some((entry.file_name().into_string().ok()?, fs::read(entry.path()).ok()?));
        let files = names.filter_map(read).collect();
        // Its lock is released with the process only; the copy has none.
        std::mem::forget(queue);
        files
    })
}

/// A directory of its own, in memory where that is possible. Removed when dropped.
struct Place(PathBuf);

impl Place {
    fn take() -> Self {
        static NEXT: Mutex<u64> = Mutex::new(0);
        let mut next = NEXT.lock().unwrap_or_else(PoisonError::into_inner);
        *next += 1;
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
        let path = parent.join(format!("posthog-fuzz-{}-{next}", std::process::id()));
        let _none = fs::remove_dir_all(&path);
        fs::create_dir(&path).expect("a directory can be made");
        Self(path)
    }

    fn path(&self) -> PathBuf {
        self.0.clone()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _left = fs::remove_dir_all(&self.0);
    }
}
