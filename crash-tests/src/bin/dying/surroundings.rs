//! Crashes in unusual environments: forked children, replaced programs, closed descriptors, full and read-only disks.

use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;

use nix::libc;

use crate::signals::fault;

/// Runs between the client's start and the installation of the hook.
pub(crate) fn prepare(scenario: &str, folder: &Path) {
    if scenario == "read_only" && !make_read_only(folder) {
        std::process::exit(crate::UNAVAILABLE);
    }
}

/// Returns `false` if the scenario is not in this file.
pub(crate) fn play(scenario: &str) -> bool {
    match scenario {
        "closed_descriptors" => {
            close_files();
            panic!("without descriptors");
        }
        "forked" => in_child(|| panic!("in a forked child")),
        "forked_fault" => in_child(fault),
        "forked_often" => forked_often(),
        "forked_often_small_files" => {
            use nix::sys::resource::{Resource, setrlimit};
            setrlimit(Resource::RLIMIT_FSIZE, SMALL, SMALL).expect("a limit");
            forked_often();
        }
        "replaced_program" => {
            let _ = std::process::Command::new("/bin/sh").args(["-c", "kill -SEGV $$"]).exec();
        }
        "small_files" => {
            use nix::sys::resource::{Resource, setrlimit};
            setrlimit(Resource::RLIMIT_FSIZE, 16, 16).expect("a limit");
            panic!("no file may grow");
        }
        "full_disk" => {
            fill_the_disk();
            panic!("the disk is full");
        }
        "read_only" => panic!("nowhere to write"),
        _ => return false,
    }
    true
}

/// Closes all descriptors of files, as daemons do.
///
/// Sockets and the event loop stay open: they belong to other packages, which close them without a look at the number,
/// and std aborts an unoptimized program that closes a descriptor twice.
fn close_files() {
    // The client must be idle: a descriptor that is closed between a thread's check and its write cannot be detected.
    if let Some(client) = posthog::client() {
        let _ = client.flush().wait(std::time::Duration::from_secs(10));
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    let open: Vec<i32> = std::fs::read_dir("/proc/self/fd")
        .expect("a list of descriptors")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|descriptor| *descriptor > 2)
        .filter(|descriptor| {
            let target = std::fs::read_link(format!("/proc/self/fd/{descriptor}"));
            target.is_ok_and(|target| target.is_absolute())
        })
        .collect();
    for descriptor in open {
        let _ = nix::unistd::close(descriptor);
    }
    // The files that get the same numbers must not get the library's bytes.
    for _ in 0..200 {
        let stranger = std::fs::OpenOptions::new().append(true).create(true).open(stranger());
        std::mem::forget(stranger.expect("a file"));
    }
}

fn stranger() -> std::path::PathBuf {
    std::env::current_dir().unwrap_or_default().join("stranger")
}

/// Less than children may use of the file.
const SMALL: u64 = 100_000;
/// Maximum size of a report file.
const FILE_MOST: u64 = 256 * 1024;
/// More children than fit, with 5,000 bytes each.
const CHILDREN: usize = 150;
const AT_ONCE: usize = 5;

/// Children that panic and exit; then the parent panics.
fn forked_often() -> ! {
    use nix::sys::wait::{WaitStatus, waitpid};
    for _ in 0..CHILDREN / AT_ONCE {
        let children: Vec<_> = (0..AT_ONCE)
            .map(|_| {
                in_background(|| {
                    drop(std::panic::catch_unwind(|| panic!("of a child: {}", "x".repeat(5_000))));
                })
            })
            .collect();
        for child in children {
            match waitpid(child, None).expect("it ends") {
                WaitStatus::Exited(_, 7) => {}
                end => panic!("a child ended otherwise: {end:?}"),
            }
        }
    }
    for (file, _) in crate::reporting::report_files() {
        let len = std::fs::metadata(&file).map_or(0, |metadata| metadata.len());
        assert!(len <= FILE_MOST, "{file:?} has grown to {len} bytes");
    }
    panic!("of the parent");
}

fn in_background(act: fn()) -> nix::unistd::Pid {
    // SAFETY: as in `in_child`.
    match unsafe { nix::unistd::fork() }.expect("a child") {
        nix::unistd::ForkResult::Child => {
            act();
            // SAFETY: ends the child, without the parent's exit handlers.
            unsafe { libc::_exit(7) }
        }
        nix::unistd::ForkResult::Parent { child } => child,
    }
}

pub(crate) fn in_child(act: fn()) {
    // SAFETY: the other threads of this process are the library's, whose behaviour in such a child is tested.
    match unsafe { nix::unistd::fork() }.expect("a child") {
        nix::unistd::ForkResult::Child => act(),
        nix::unistd::ForkResult::Parent { child } => {
            nix::sys::wait::waitpid(child, None).expect("it ends");
        }
    }
}

/// Fills the disk to the last byte. The test removes the file.
fn fill_the_disk() {
    let mut filler = std::fs::File::create("filler").expect("a file");
    let mut step = vec![0xa5; 64 * 1024];
    while !step.is_empty() {
        if filler.write_all(&step).is_err() {
            step.truncate(step.len() / 2);
        }
    }
}

/// Only in this thread's mount namespace, so that nothing has to be undone.
fn make_read_only(folder: &Path) -> bool {
    // An absolute path: the current directory stays what it was.
    let folder = folder.canonicalize().unwrap_or_default();
    let Ok(folder) = std::ffi::CString::new(folder.as_os_str().as_bytes()) else { return false };
    let nothing = std::ptr::null();
    let mount = |from: *const libc::c_char, to: *const libc::c_char, flags| {
        // SAFETY: strings that outlive the call.
        (unsafe { libc::mount(from, to, nothing, flags, nothing.cast()) }) == 0
    };
    // SAFETY: creates a mount namespace of our own.
    (unsafe { libc::unshare(libc::CLONE_NEWNS) }) == 0
        && mount(nothing, c"/".as_ptr(), libc::MS_REC | libc::MS_PRIVATE)
        && mount(folder.as_ptr(), folder.as_ptr(), libc::MS_BIND)
        && mount(nothing, folder.as_ptr(), libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY)
}
