//! Shards that cannot be claimed, beside others that can.

use super::*;
use crate::queue::directory::{claim_orphan, has_orphan};
use crate::queue::error::QueueError;
use crate::sys::disk::Open;

#[test]
fn a_shard_that_cannot_be_claimed_hides_no_other() {
    let dir = scratch();
    let disk = Disk::default();
    let claims: Vec<_> = (0..4).map(|_| claim(&disk, dir.path(), &[]).unwrap()).collect();
    drop(claims);
    // A file in place of a shard, and a link in place of a lock: no process can claim either.
    let lock = |number| shard_dir(dir.path(), number).join("lock");
    std::fs::remove_dir_all(shard_dir(dir.path(), 0)).unwrap();
    std::fs::write(shard_dir(dir.path(), 0), "a file").unwrap();
    std::fs::remove_file(lock(1)).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", lock(1)).unwrap();
    let mut unusable = Vec::new();
    let own = loop {
        match claim(&disk, dir.path(), &unusable) {
            Ok(claim) => break claim,
            Err(QueueError::Shard { number, .. }) => unusable.push(shard_dir(dir.path(), number)),
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!((unusable.len(), own.number(), own.is_new()), (2, 2, false));
    assert!(has_orphan(&disk, dir.path()), "the last one is found behind the two");
    let orphan = claim_orphan(&disk, dir.path(), Some(1), &|_| true).unwrap().unwrap();
    assert_eq!(orphan.number(), 3);
    let next = claim(&disk, dir.path(), &unusable).unwrap();
    assert_eq!((next.number(), next.is_new()), (4, true), "a new shard takes a free number");
}

#[test]
fn a_lock_that_a_backup_has_linked_is_the_same_lock() {
    let dir = scratch();
    let disk = Disk::default();
    let first = claim(&disk, dir.path(), &[]).unwrap();
    let (queue, backup) = (first.dir().to_path_buf(), dir.path().join("backup"));
    std::fs::hard_link(queue.join("lock"), &backup).unwrap();
    assert!(claim_orphan(&disk, dir.path(), None, &|_| true).unwrap().is_none(), "it is held");
    drop(first);
    let again = claim(&disk, dir.path(), &[]).unwrap();
    assert_eq!(again.dir(), queue);
    assert!(!disk.open(&backup, Open::Existing).unwrap().try_lock().unwrap(), "by its other name, too");
}

#[test]
fn a_lock_that_is_in_its_place_again_is_not_another_owners() {
    let dir = scratch();
    let mut own = claim(&Disk::default(), dir.path(), &[]).unwrap();
    // The look that found it missing fell between a move of the directory and its return.
    assert!(own.renew(|_| panic!("nobody else can have had it")).unwrap());
    assert!(claim_orphan(&Disk::default(), dir.path(), None, &|_| true).unwrap().is_none(), "it is still held");
}
