//! The fast path of an append, compared with the plain rules that it implements.

use super::arena::HEADER_BYTES;
use std::time::Duration;

use super::active::cost;
use super::*;
use crate::queue::frame::{framed_len, hash_body};
use crate::sys::disk::Disk;

const ARENA: usize = 64 * 1024;
const SIZES: [usize; 9] = [1, 8, 100, 211, 900, 4072, 4080, 8168, 9000];

/// The plain rules, applied to each record.
struct Model {
    seq: u64,
    cost: u64,
    limits: [(u64, u64); 2],
    position: usize,
}

impl Model {
    fn takes(&self, framed: usize, class: u8) -> bool {
        let (seq, most) = self.limits[usize::from(class != 0)];
        self.seq < seq && self.cost + cost(framed) <= most
    }

    fn fits(&self, framed: usize, class: u8) -> bool {
        let kept = if class == 0 { ARENA / 8 } else { 0 };
        self.position + framed <= ARENA - kept - 8
    }
}

fn checkpoint(journal: &Journal) {
    while journal.oldest_sealed().is_some() {
        journal.free_oldest();
    }
}

#[test]
fn the_fast_path_decides_as_the_plain_rules_would() {
    let options = JournalOptions { dir: None, map: true, arena_bytes: ARENA, lock_wait: Duration::from_millis(20) };
    let journal = Pool::open(&Disk::default(), options).unwrap().start(1, 1).unwrap();
    let mut model = Model { seq: 0, cost: 0, limits: [(u64::MAX, u64::MAX); 2], position: HEADER_BYTES };
    let mut dice = 12345_u64;
    let mut roll = |sides: u64| {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (dice >> 33) % sides
    };
    let mut outcomes = [0; 4];
    for _ in 0..40_000 {
        if roll(300) == 0 {
            let mut room = || Budget { events: roll(400), bytes: roll(400_000) };
            let (ordinary, priority) = (room(), room());
            // Everything is checkpointed: the budget counts from here.
            checkpoint(&journal);
            journal.swap().unwrap();
            checkpoint(&journal);
            journal.set_budget(model.seq, ordinary, priority);
            model.position = HEADER_BYTES;
            model.limits = [ordinary, priority].map(|room| (model.seq + room.events, model.cost + room.bytes));
        }
        let (body, class) = (vec![7; SIZES[roll(SIZES.len() as u64) as usize]], (roll(4) == 0) as u8);
        let framed = framed_len(body.len()).unwrap();
        let was_half_full = model.position >= ARENA / 2;
        let appended = journal.append(&body, hash_body(&body), class, |_| ());
        match appended {
            Ok(appended) => {
                assert!(model.takes(framed, class));
                let rotated = !model.fits(framed, class);
                if rotated {
                    model.position = HEADER_BYTES;
                }
                model.seq += 1;
                model.cost += cost(framed);
                model.position += framed;
                let notifies = rotated || (!was_half_full && model.position >= ARENA / 2);
                assert_eq!((appended.seq, appended.half_full), (model.seq, notifies));
                outcomes[usize::from(appended.half_full)] += 1;
            }
            Err(AppendError::Bounded) => {
                assert!(!model.takes(framed, class));
                outcomes[2] += 1;
            }
            Err(AppendError::Full) => {
                assert!(model.takes(framed, class) && !model.fits(framed, class));
                outcomes[3] += 1;
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    assert!(outcomes.iter().all(|outcome| *outcome > 20), "each was seen: {outcomes:?}");
    journal.close();
    assert!(matches!(journal.append(b"x", hash_body(b"x"), 1, |_| ()), Err(AppendError::Closed)));
}
