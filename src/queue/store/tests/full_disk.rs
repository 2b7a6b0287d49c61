//! A disk without space: a real one, if this process may mount one.

use std::fs::File;
use std::process::Command;

use super::*;

/// A small ext4 file system, unmounted when dropped.
struct SmallDisk {
    dir: tempfile::TempDir,
}

impl SmallDisk {
    const SIZE: u64 = 24 << 20;

    /// `Err` with the reason where mounting is not possible.
    fn mount() -> Result<Self, String> {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        File::create(&image).unwrap().set_len(Self::SIZE).unwrap();
        let small = Self { dir };
        std::fs::create_dir(small.root()).unwrap();
        // No blocks reserved for root: the test may run as root.
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image))?;
        run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(small.root()))?;
        Ok(small)
    }

    fn root(&self) -> std::path::PathBuf {
        self.dir.path().join("mounted")
    }

    /// Takes all the space that is left.
    fn fill(&self) {
        let file = File::create(self.root().join("filler")).unwrap();
        let mut offset = 0;
        for step in [1 << 20, 4096, 512] {
            while std::os::unix::fs::FileExt::write_all_at(&file, &vec![1; step], offset).is_ok() {
                offset += step as u64;
            }
        }
        file.sync_all().unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = run(Command::new("umount").arg(self.root()));
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

/// Acks 200 small rows on a full disk, in one transaction each. Returns how many succeeded.
fn ack_on_a_full_disk(disk: &SmallDisk, options: &StoreOptions) -> (Store, usize) {
    let (store, _) = Store::open(&Disk::default(), &disk.root(), options, 0).unwrap();
    let chunks: Vec<_> = (0..200).map(|i| chunk(i + 1, 1, 200)).collect();
    store.apply(&Changes { insert: chunks.clone(), accepted_up_to: 200, ..Changes::default() }).unwrap();
    // Uses up the free pages of the store's file, so that an ack needs space on the disk.
    let mut seq = 201;
    disk.fill();
    while store.apply(&checkpoint_of(seq, chunk(seq, 1, 50_000))).is_ok() {
        seq += 1;
    }
    store.reopen(1).unwrap();
    let mut acked = 0;
    for chunk in &chunks {
        match store.apply(&delivered(chunk)) {
            Ok(_) => acked += 1,
            Err(error) => {
                assert!(matches!(error, StoreError::NoSpace(_)), "{error}");
                store.reopen(1).unwrap();
            }
        }
    }
    assert_eq!(store.ledger().imbalance(), 0);
    (store, acked)
}

#[test]
fn acks_get_through_on_a_full_disk_because_of_the_reserve() {
    let with_reserve = StoreOptions { reserve_bytes: 1 << 20, ..options() };
    let disk = match SmallDisk::mount() {
        Ok(disk) => disk,
        Err(reason) => return eprintln!("skipped, no file system of our own: {reason}"),
    };
    let (store, acked) = ack_on_a_full_disk(&disk, &with_reserve);
    assert_eq!(acked, 200);
    let reserve = disk.root().join("reserve");
    // There is space again: the next commit makes the reserve.
    std::fs::remove_file(disk.root().join("filler")).unwrap();
    store.apply(&Changes { next_attempt: Some(None), ..Changes::default() }).unwrap();
    assert!(std::os::unix::fs::MetadataExt::blocks(&reserve.metadata().unwrap()) * 512 >= 1 << 20);
}

#[test]
fn a_checkpoint_never_uses_up_the_reserve() {
    let dir = tempfile::tempdir().unwrap();
    let fault = Fault::of(Op::Write, "queue.redb", full);
    let options = StoreOptions { reserve_bytes: 1 << 16, ..options() };
    let disk = Disk::gated(Arc::clone(&fault) as Arc<dyn Gate>);
    let (store, _) = Store::open(&disk, dir.path(), &options, 0).unwrap();
    let reserve = dir.path().join("reserve");
    store.apply(&checkpoint(1, 1, 5)).unwrap();
    fault.arm(0);
    assert!(matches!(store.apply(&checkpoint(2, 6, 5)), Err(StoreError::NoSpace(_))));
    assert!(reserve.exists());
    fault.disarm();
    store.reopen(0).unwrap();
    fault.arm(0);
    store.apply(&delivered(&chunk(1, 5, 100))).unwrap_err();
    assert!(!reserve.exists(), "an ack may use it");
    fault.disarm();
    store.reopen(0).unwrap();
    store.apply(&delivered(&chunk(1, 5, 100))).unwrap();
    assert!(reserve.exists(), "it comes back when there is space");
}

#[test]
fn no_reserve_is_made_where_it_would_itself_fill_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let options = StoreOptions { reserve_bytes: u64::MAX / 8, ..options() };
    let (store, _) = Store::open(&Disk::default(), dir.path(), &options, 0).unwrap();
    store.apply(&checkpoint(1, 1, 5)).unwrap();
    assert!(!dir.path().join("reserve").exists());
}
