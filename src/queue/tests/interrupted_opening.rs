//! Openings that are interrupted.

use super::*;
use crate::queue::OpeningMark;
use crate::queue::status_page::DEATHS_MAX;

/// The first shard, after an owner that died in this phase.
fn died_in(disk: &Disk, queue_dir: &Path, phase: Phase) {
    let dir = first_shard(queue_dir);
    open(disk, queue_dir).queue.close();
    let (page, _) = StatusPage::take_over(disk, &dir.join("status"), is_mapped(disk), false, NOW).unwrap();
    std::mem::forget(page.enter(phase));
}

fn is_mapped(disk: &Disk) -> bool {
    disk.file_system(Path::new("/")).unwrap().may_map()
}

/// An opening that is given up if `gives_up`, and then killed.
fn is_cut_short(disk: &Disk, queue_dir: &Path, gives_up: bool) -> Predecessor {
    let claim = claim(disk, &queue_dir.join(project().dir_name()), &[]).unwrap();
    let mark = OpeningMark::of(disk, claim.dir()).unwrap();
    let status = claim.dir().join("status");
    let (page, _) = StatusPage::take_over(disk, &status, is_mapped(disk), false, NOW).unwrap();
    std::mem::forget(page.enter(Phase::Opening));
    if gives_up {
        mark.give_up();
    }
    predecessor(disk, claim.dir())
}

#[test]
fn an_opening_given_up_is_no_death_and_leaves_a_due_check_due() {
    for mapped in [true, false] {
        let root = scratch();
        let (disk, queue_dir) = (Machine::disk(7, mapped), root.path().join("queue"));
        died_in(&disk, &queue_dir, Phase::Quiet);
        let before = is_cut_short(&disk, &queue_dir, true);
        assert_eq!((before.died_in_store, before.deaths_opening), (false, 0), "nothing was to be done");
        died_in(&disk, &queue_dir, Phase::Store);
        for _ in 0..5 {
            let before = is_cut_short(&disk, &queue_dir, true);
            assert_eq!((before.died_in_store, before.deaths_opening), (true, 0));
        }
        for deaths in 1..=DEATHS_MAX {
            assert_eq!(is_cut_short(&disk, &queue_dir, false).deaths_opening, deaths, "a kill counts");
        }
        let before = is_cut_short(&disk, &queue_dir, true);
        assert_eq!(before.deaths_opening, DEATHS_MAX, "neither more nor less");
        let queue = open(&disk, &queue_dir).queue;
        assert_eq!(queue.ledger().imbalance(), 0);
        queue.close();
        let before = predecessor(&disk, &first_shard(&queue_dir));
        assert!(before.clean && !before.died_in_store && before.deaths_opening == 0);
    }
}

#[test]
fn a_store_that_could_not_be_opened_is_still_due_for_a_check() {
    let root = scratch();
    let (disk, queue_dir) = (Machine::disk(7, true), root.path().join("queue"));
    died_in(&disk, &queue_dir, Phase::Store);
    let broken = Disk::gated(crate::sys::disk::fail_when(|call, _| {
        call.path.ends_with("queue.redb").then(|| Verdict::Fail(io::Error::from_raw_os_error(5)))
    }));
    try_open(&broken, &queue_dir).unwrap_err();
    let Opened { findings, before, .. } = open(&disk, &queue_dir);
    assert!(before.died_in_store && matches!(findings[..], [Finding::StoreVerified]), "{findings:?}");
}
