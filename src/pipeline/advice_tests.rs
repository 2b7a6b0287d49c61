//! What is advised for each error of the system.

use super::*;

/// Each error number, and what is advised.
const ADVICE: &[(i32, &str)] = &[
    (
        libc::ENOSPC,
        "the disk is full: 12 KiB free, about 9 MiB needed; free some space, or choose a directory on another disk (queue_dir, POSTHOG_QUEUE_DIR)",
    ),
    (
        libc::EDQUOT,
        "the disk quota of uid 1000 is used up, about 9 MiB needed; free some space, raise the quota, or choose a directory on \
         another disk (queue_dir, POSTHOG_QUEUE_DIR)",
    ),
    (
        libc::EMFILE,
        "this process may open no more files (RLIMIT_NOFILE = 1024); raise the limit (ulimit -n, LimitNOFILE= of systemd), or \
         find out what keeps so many open",
    ),
    (
        libc::ENFILE,
        "the machine may open no more files (fs.file-max); raise that limit, or find out what keeps so many open",
    ),
    (
        libc::ENOMEM,
        "there is not enough memory, about 9 MiB needed, RLIMIT_AS = 1 KiB; raise the memory limit of this process or its \
         container, or lower Config::journal_bytes (POSTHOG_JOURNAL_BYTES)",
    ),
    (
        libc::EFBIG,
        "a file of the queue may not grow so large (RLIMIT_FSIZE = 1 KiB); raise the limit (ulimit -f), or lower \
         Config::max_queue_bytes (POSTHOG_MAX_QUEUE_BYTES)",
    ),
    (
        libc::EACCES,
        "uid 1000, gid 1000 may not use it (/var/lib belongs to uid 0, gid 0, mode 0755); change its owner or mode, or choose \
         another directory (queue_dir, POSTHOG_QUEUE_DIR)",
    ),
    (
        libc::EROFS,
        "its file system is mounted read-only; mount it for writing, or choose another directory (queue_dir, POSTHOG_QUEUE_DIR)",
    ),
    (
        libc::ENOTDIR,
        "it is not a directory, or lies below a file; move the file away, or choose another directory (queue_dir, POSTHOG_QUEUE_DIR)",
    ),
    (
        libc::ENOENT,
        "it does not exist and cannot be created: it was removed, its path contains a broken symbolic link, or no directory can \
         be made there, as in /proc; choose another directory (queue_dir, POSTHOG_QUEUE_DIR)",
    ),
    (
        libc::ELOOP,
        "a symbolic link stands where the queue needs a file or directory; name the real path, or choose another directory \
         (queue_dir, POSTHOG_QUEUE_DIR)",
    ),
    (
        libc::ENOLCK,
        "its file system does not support what a queue needs, such as file locks; choose a directory on a local disk \
         (queue_dir, POSTHOG_QUEUE_DIR)",
    ),
    (
        libc::ENOTSUP,
        "its file system does not support what a queue needs, such as file locks; choose a directory on a local disk \
         (queue_dir, POSTHOG_QUEUE_DIR)",
    ),
    (
        libc::EIO,
        "the disk reports an error; look into the kernel's log (dmesg), repair or replace the disk, or choose another \
         directory (queue_dir, POSTHOG_QUEUE_DIR)",
    ),
    (
        libc::ESTALE,
        "its network file system has lost the file; mount it again, or choose another directory (queue_dir, POSTHOG_QUEUE_DIR)",
    ),
    (libc::ENAMETOOLONG, "its path is too long; choose a shorter one (queue_dir, POSTHOG_QUEUE_DIR)"),
    (
        libc::ETIMEDOUT,
        "its disk or its file server does not respond; check both, or choose another directory (queue_dir, POSTHOG_QUEUE_DIR)",
    ),
    (
        libc::ENXIO,
        "it cannot be used; choose a directory on a local disk that this user may write to (queue_dir, POSTHOG_QUEUE_DIR)",
    ),
];

#[test]
fn each_error_has_a_remedy_of_its_own() {
    let facts = Facts {
        free: Some(12 << 10),
        needed: Some(9 << 20),
        limit: Some(1024),
        user: (1000, 1000),
        guard: Some(Guard { path: "/var/lib".into(), owner: (0, 0), mode: 0o755 }),
    };
    for &(code, expected) in ADVICE {
        assert_eq!(advice(&io::Error::from_raw_os_error(code), &facts), expected, "{code}");
    }
    let free = Facts { free: Some(5 << 30), needed: None, ..facts };
    assert_eq!(
        advice(&io::Error::from_raw_os_error(libc::ENOSPC), &free),
        "the disk is full although it has 5 GiB free: it may have no free inodes, or reserve the rest for root; \
         delete files, or choose a directory on another disk (queue_dir, POSTHOG_QUEUE_DIR)"
    );
}

#[test]
fn advice_has_the_figures_of_this_process_and_this_directory() {
    let disk = Disk::default();
    let limit = getrlimit(Resource::RLIMIT_NOFILE).unwrap().0;
    let said = advise(&disk, &io::Error::from_raw_os_error(libc::EMFILE), Path::new("/"), None);
    assert!(said.contains(&format!("RLIMIT_NOFILE = {limit}")), "{said}");
    let dir = tempfile::tempdir().unwrap();
    let (missing, found) = (dir.path().join("a/b"), std::fs::metadata(dir.path()).unwrap());
    let said = advise(&disk, &io::Error::from_raw_os_error(libc::EACCES), &missing, None);
    let mode = found.mode() & 0o7777;
    let whose = format!("belongs to uid {}, gid {}, mode {mode:04o}", found.uid(), found.gid());
    let expected = format!("({} {whose})", dir.path().display());
    assert!(said.contains(&expected), "{said}");
    let said = advise(&disk, &io::Error::from_raw_os_error(libc::ENOSPC), &missing, Some(u64::MAX));
    assert!(said.starts_with("the disk is full: ") && said.contains(" free, about "), "{said}");
}
