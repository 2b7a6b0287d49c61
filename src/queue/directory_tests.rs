//! Tests of claims: which shard a process gets, and when a claim is broken.

use super::*;

fn project(host: &str, api_key: &str) -> Project {
    Project { host: host.into(), api_key: api_key.into() }
}

#[test]
fn projects_with_another_key_or_host_have_other_directories() {
    let names = [project("https://a", "phc_1"), project("https://a", "phc_2"), project("https://b", "phc_1")]
        .map(|project| project.dir_name());
    assert!(names[0] != names[1] && names[0] != names[2] && names[1] != names[2]);
    assert!(names.iter().all(|name| name.len() == 32));
}

#[test]
fn the_first_free_shard_is_claimed_before_one_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::default();
    let first = claim(&disk, dir.path(), &[]).unwrap();
    let second = claim(&disk, dir.path(), &[]).unwrap();
    assert_eq!(shard_numbers(&disk, dir.path()).unwrap(), [0, 1]);
    assert!(claim_orphan(&disk, dir.path(), None, &|_| true).unwrap().is_none());
    let left = first.dir().to_path_buf();
    drop(first);
    assert_eq!(claim(&disk, dir.path(), &[]).unwrap().dir(), left);
    let orphan = claim_orphan(&disk, dir.path(), None, &|_| true).unwrap().unwrap();
    assert_eq!((orphan.number(), orphan.dir()), (0, left.as_path()));
    assert!(claim_orphan(&disk, dir.path(), Some(0), &|_| true).unwrap().is_none());
    assert!(matches!(second.hold(), Name::Same));
}

#[test]
fn an_orphan_is_unheld_and_not_known_to_be_empty() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, group) = (Disk::default(), dir.path().join("group"));
    assert!(!has_orphan(&disk, &group), "there is no shard yet");
    let claim = claim(&disk, &group, &[]).unwrap();
    assert!(!has_orphan(&disk, &group), "it is claimed");
    drop(claim);
    assert!(has_orphan(&disk, &group), "its status page was never written");
    assert!(!has_orphan(&disk, dir.path()), "the directory above has shards of its own");
}

#[test]
fn a_claim_is_broken_without_its_lock_file_and_survives_a_move() {
    let dir = tempfile::tempdir().unwrap();
    let claim = claim(&Disk::default(), dir.path(), &[]).unwrap();
    let elsewhere = dir.path().join("elsewhere");
    std::fs::rename(claim.dir(), &elsewhere).unwrap();
    assert!(matches!(claim.hold(), Name::OutOfReach(_)), "{:?}", claim.hold());
    std::fs::create_dir(claim.dir()).unwrap();
    std::fs::write(claim.dir().join("lock"), "").unwrap();
    assert!(matches!(claim.hold(), Name::OutOfReach(_)), "another directory says nothing: {:?}", claim.hold());
    std::fs::remove_dir_all(claim.dir()).unwrap();
    std::fs::rename(&elsewhere, claim.dir()).unwrap();
    assert!(matches!(claim.hold(), Name::Same));
    std::fs::remove_file(claim.dir().join("lock")).unwrap();
    assert!(matches!(claim.hold(), Name::Other));
}

#[test]
fn names_that_are_not_ours_are_no_shards() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["shard-", "shard-01", "shard--1", "shard-x", "Shard-1", "damaged-5"] {
        std::fs::create_dir(dir.path().join(name)).unwrap();
    }
    assert!(shard_numbers(&Disk::default(), dir.path()).unwrap().is_empty());
}

#[test]
fn a_file_system_without_locks_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let gate = crate::sys::disk::fail_when(|call, _| {
        (call.op == crate::sys::disk::Op::Lock)
            .then(|| crate::sys::disk::Verdict::Fail(io::Error::from_raw_os_error(nix::libc::ENOLCK)))
    });
    let refused = claim(&Disk::gated(gate), dir.path(), &[]);
    assert!(matches!(refused, Err(QueueError::NoLocks { .. })));
}
