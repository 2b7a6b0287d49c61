//! The guarantees of `Disk` itself.

use std::sync::{Arc, Mutex};

use super::*;

#[derive(Debug, Default)]
struct Script(Mutex<Vec<(Op, Verdict)>>);

impl Gate for Script {
    fn before(&self, call: &Call<'_>) -> Verdict {
        let mut script = self.0.lock().unwrap();
        match script.iter().position(|(op, _)| *op == call.op) {
            Some(index) => script.remove(index).1,
            None => Verdict::Go,
        }
    }
}

fn scripted(script: Vec<(Op, Verdict)>) -> Disk {
    Disk::gated(Arc::new(Script(Mutex::new(script))))
}

#[test]
fn a_short_or_interrupted_write_is_continued() {
    let dir = tempfile::tempdir().unwrap();
    let interrupted = Verdict::Fail(io::ErrorKind::Interrupted.into());
    let disk = scripted(vec![(Op::Write, Verdict::Short(3)), (Op::Write, interrupted), (Op::Write, Verdict::Short(1))]);
    let file = disk.open(&dir.path().join("f"), Open::CreateNew).unwrap();
    file.write_all_at(2, b"abcdefgh").unwrap();
    let mut back = [0; 10];
    file.read_exact_at(0, &mut back).unwrap();
    assert_eq!(&back, b"\0\0abcdefgh");
}

#[test]
fn a_failing_call_goes_up_unchanged_and_is_not_made() {
    let dir = tempfile::tempdir().unwrap();
    let disk = scripted(vec![(Op::Write, Verdict::Fail(io::Error::from_raw_os_error(28)))]);
    let file = disk.open(&dir.path().join("f"), Open::CreateNew).unwrap();
    assert_eq!(file.write_all_at(0, b"abc").unwrap_err().raw_os_error(), Some(28));
    assert_eq!(file.len().unwrap(), 0);
}

#[test]
fn links_are_not_followed_and_replaced_files_are_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let (real, link) = (dir.path().join("real"), dir.path().join("link"));
    let file = Disk::default().open(&real, Open::CreateNew).unwrap();
    std::os::unix::fs::symlink(&real, &link).unwrap();
    assert!(Disk::default().open(&link, Open::Existing).is_err());
    assert!(file.is_same_file().unwrap());
    std::fs::rename(&real, dir.path().join("elsewhere")).unwrap();
    std::fs::write(&real, b"another").unwrap();
    assert!(!file.is_same_file().unwrap());
}

#[test]
fn what_is_written_to_a_shared_mapping_is_read_from_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = Disk::default().open(&dir.path().join("f"), Open::CreateNew).unwrap();
    file.write_zeros(0, 8192).unwrap();
    let mapping = file.map(8192).unwrap();
    assert!(mapping.write(16, b"eleven byte"));
    let mut back = [0xFF; 16];
    file.read_exact_at(16, &mut back).unwrap();
    assert_eq!(&back, b"eleven byte\0\0\0\0\0");
    assert_eq!(mapping.read(17, 9), b"leven byt");
    assert_eq!(mapping.read(8190, 100), [0, 0]);
}

#[test]
fn a_mapping_refuses_what_does_not_fit() {
    let mapping = Mapping::anonymous(64).unwrap();
    assert!(mapping.write(56, b"12345678"));
    assert!(!mapping.write(56, b"123456789"));
    assert!(!mapping.write(4, b"1"));
    assert!(!mapping.write(usize::MAX - 7, b"1"));
    assert!(mapping.word64(64).is_none() && mapping.word64(4).is_none());
}

#[test]
fn bytes_of_every_length_are_padded_with_zeros_in_a_mapping() {
    let bytes: Vec<u8> = (1..=100).collect();
    for len in 0..=bytes.len() {
        let mapping = Mapping::anonymous(256).unwrap();
        assert!(mapping.write(8, &[0xff; 120]) && mapping.write(16, &bytes[..len]));
        let end = 16 + len.next_multiple_of(8);
        assert_eq!(mapping.read(16, len), bytes[..len]);
        assert_eq!(mapping.read(16 + len, end - 16 - len), vec![0; end - 16 - len], "{len}");
        assert_eq!((mapping.read(8, 8), mapping.read(end, 8)), (vec![0xff; 8], vec![0xff; 8]), "{len}");
    }
}

#[test]
fn a_mapping_longer_than_its_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = Disk::default().open(&dir.path().join("f"), Open::CreateNew).unwrap();
    file.set_len(4096).unwrap();
    assert!(file.map(8192).is_err());
}

#[test]
fn two_opens_of_one_file_do_not_both_get_its_lock() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Disk::default().open(&dir.path().join("lock"), Open::EnsureExists).unwrap();
    let (first, second) = (open(), open());
    assert!(first.try_lock().unwrap());
    assert!(!second.try_lock().unwrap());
    drop(first);
    assert!(second.try_lock().unwrap());
}

#[test]
fn directories_to_sync_go_up_to_the_queue_directory() {
    let dirs: Vec<_> = up_to(Path::new("/q/p/s"), Path::new("/q")).collect();
    assert_eq!(dirs, [Path::new("/q/p/s"), Path::new("/q/p"), Path::new("/q")]);
}

#[test]
fn a_new_directory_and_its_new_parents_have_durable_names() {
    #[derive(Debug, Default)]
    struct Synced(Mutex<Vec<PathBuf>>);
    impl Gate for Synced {
        fn before(&self, call: &Call<'_>) -> Verdict {
            if call.op == Op::SyncDir {
                self.0.lock().unwrap().push(call.path.to_path_buf());
            }
            Verdict::Go
        }
    }
    let (dir, synced) = (tempfile::tempdir().unwrap(), Arc::new(Synced::default()));
    let disk = Disk::gated(Arc::clone(&synced) as Arc<dyn Gate>);
    for _ in 0..2 {
        // The second time nothing is synced.
        disk.make_dir_durable(&dir.path().join("a/b/c")).unwrap();
        let expected = [dir.path().join("a/b"), dir.path().join("a"), dir.path().to_path_buf()];
        assert_eq!(*synced.0.lock().unwrap(), expected);
    }
}

#[test]
#[cfg(feature = "inspect")]
fn who_asks_for_the_owner_of_a_lock_does_not_keep_it_from_anybody() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lock");
    let lock = Disk::default().open_locked(&path, Open::EnsureExists).unwrap().unwrap();
    assert!(Disk::default().is_locked(&path).unwrap());
    drop(lock);
    assert!(!Disk::default().is_locked(&path).unwrap());

    // Another process holds a shared lock, and releases it at the fourth attempt.
    let asking = std::fs::File::open(&path).unwrap();
    asking.try_lock_shared().unwrap();
    let asking = std::sync::Mutex::new(Some(asking));
    let disk = Disk::gated(fail_when(move |call, count| {
        if call.op == Op::Lock && count == 4 {
            asking.lock().unwrap().take();
        }
        None
    }));
    assert!(disk.open_locked(&path, Open::EnsureExists).unwrap().is_some());
    let forever = std::fs::File::open(&path).unwrap();
    forever.try_lock_shared().unwrap();
    assert!(Disk::default().open_locked(&path, Open::EnsureExists).unwrap().is_none());
}
