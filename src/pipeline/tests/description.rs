//! What the status page says of a lane.

use super::*;
use crate::queue;
use crate::report::{LanePhase, LaneState, StorageMode};

impl Fixture {
    /// Sleeps and wakes as the committer thread does, with the turns that are due in between.
    fn live(&mut self) {
        self.settle_down();
        self.committer.next_turn = self.committer.wake_at();
        self.committer.describe();
    }

    fn clock_nanos(&self) -> i64 {
        self.pipeline.options.clock.wall_nanos()
    }

    fn page(&self) -> Option<LaneState> {
        let page = queue::page(&Disk::default(), self.pipeline.shard.dir()).unwrap().unwrap();
        page.owner.map(|words| LaneState::of_words(&words))
    }
}

#[test]
fn an_idle_lane_says_that_nothing_is_due() {
    let mut fixture = fixture(|options| options.limits.queue_events = 500);
    assert_eq!(fixture.page(), None);
    fixture.live();
    let page = fixture.page().unwrap();
    assert_eq!((page.due_at, page.phase, page.storage), (None, LanePhase::Idle, StorageMode::Durable));
    assert_eq!((page.max_bytes, page.max_events), (fixture.pipeline.stats().max_bytes, Some(500)));
    let program = std::env::current_exe().unwrap();
    assert_eq!(page.program, program.file_name().unwrap().to_str().unwrap());
}

#[test]
fn a_lane_says_by_when_it_writes_again() {
    let mut fixture = fixture(|_| ());
    fixture.live();
    fixture.append(3);
    fixture.live();
    let now = fixture.clock_nanos();
    let page = fixture.page().unwrap();
    assert_eq!(page.due_at, Some(now + 100_000_000), "the sync is due");
    fixture.clock.advance(Duration::from_millis(100));
    fixture.live();
    fixture.clock.advance(Duration::from_secs(1));
    fixture.live();
    assert_eq!(fixture.page().unwrap().due_at, Some(now + 5_000_000_000), "the checkpoint is due");
}

#[test]
fn a_turn_that_hangs_is_due_on_the_page() {
    let mut fixture = fixture(|_| ());
    fixture.live();
    fixture.clock.advance(HOUR);
    fixture.committer.describe_begin();
    assert_eq!(fixture.page().unwrap().due_at, Some(fixture.clock_nanos()));
}

#[test]
fn an_idle_lane_is_not_described_again() {
    let mut fixture = fixture(|_| ());
    fixture.live();
    let described = fixture.page().unwrap().at;
    fixture.clock.advance(HOUR);
    // The thread was woken for another lane.
    fixture.committer.is_due = false;
    fixture.committer.describe_begin();
    fixture.committer.describe();
    assert_eq!(fixture.page().unwrap().at, described);
}

#[test]
fn the_end_of_a_run_is_the_last_that_is_said() {
    let mut fixture = fixture(|_| ());
    fixture.live();
    fixture.append(3);
    let dir = fixture.pipeline.shard.dir().clone();
    drop(fixture.pipeline.shutdown(Duration::ZERO));
    for _ in 0..20 {
        let commands = fixture.pipeline.mailbox.take();
        fixture.committer.receive(commands);
        if fixture.committer.turn().is_break() {
            break;
        }
        fixture.clock.advance(HOUR);
    }
    let page = queue::page(&Disk::default(), &dir).unwrap().unwrap();
    let state = LaneState::of_words(&page.owner.unwrap());
    assert_eq!((state.storage, state.due_at, page.last.clean), (StorageMode::Closed, None, true));
}
