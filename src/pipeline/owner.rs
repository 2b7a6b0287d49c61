//! `owner.txt`: a note in each project's directory that says, to a person, what the directory is and who made it.
//!
//! No program depends on it: `posthog-queue status` takes the host and the beginning of the key from it where a store
//! does not tell them. It is written once, when it is missing, so a failure is ignored. It has no secret: of the key only
//! the beginning.

use std::path::Path;

use jiff::Timestamp;

use super::start::abbreviated;
use crate::queue::Project;
use crate::sys::clock::WallNanos;
use crate::sys::disk::{Disk, Open};
use crate::sys::limits::foreign;

const FILE: &str = "owner.txt";
/// Bytes kept of the path of the program.
const PROGRAM_KEPT: usize = 1024;

/// Writes the note of a project, unless there is one.
pub(super) fn write_note(disk: &Disk, project: &Project, queue_dir: &Path, now: WallNanos) {
    let (dir, program) = (project.dir(queue_dir), std::env::current_exe().unwrap_or_default());
    let path = dir.join(FILE);
    if disk.exists(&path).unwrap_or(true) {
        return;
    }
    let text = note(project, &program, now);
    // Renamed when it is complete. A name of its own, because several processes may write at the same time.
    let unfinished = dir.join(format!("{FILE}.{}.new", std::process::id()));
    let written = disk.open(&unfinished, Open::EnsureExists).and_then(|file| {
        file.set_len(0)?;
        file.write_all_at(0, text.as_bytes())
    });
    if written.and_then(|()| disk.rename(&unfinished, &path)).is_err() {
        let _ = disk.remove_file(&unfinished);
    }
}

fn note(project: &Project, program: &Path, now: WallNanos) -> String {
    let (pid, version) = (std::process::id(), env!("CARGO_PKG_VERSION"));
    let time = Timestamp::from_nanosecond(i128::from(now)).unwrap_or(Timestamp::UNIX_EPOCH);
    let time = time.strftime("%Y-%m-%dT%H:%M:%SZ");
    let program = foreign(&program.to_string_lossy(), PROGRAM_KEPT);
    let (key, host) = (foreign(&abbreviated(&project.api_key), PROGRAM_KEPT), foreign(&project.host, PROGRAM_KEPT));
    format!(
        "This directory holds events for PostHog that a program has captured and that may not be delivered yet.\n\
         \n\
         project key   {key} (only its beginning is written here)\n\
         host          {host}\n\
         created by    {program}, process {pid}, at {time}\n\
         library       posthog-durable {version}\n\
         \n\
         Each directory shard-<n> is the queue of one process; those below ai are queues of AI events. A process with\n\
         this key and host delivers what is in them, also what a process left that has ended. To deliver them under\n\
         another key or host, set POSTHOG_ADOPT_QUEUE to key@host of this directory, or call Config::adopt_queue. To\n\
         discard them, end the program and remove this directory.\n\
         \n\
         This file is for people; posthog-queue status may show what is in it. It may be removed.\n"
    )
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const KEY: &str = "phc_abcdefghijklmnop";

    fn project() -> Project {
        Project { host: "https://eu.i.posthog.com".into(), api_key: KEY.into() }
    }

    #[test]
    fn a_directory_is_explained_once_and_without_a_secret() {
        let root = tempfile::tempdir().unwrap();
        let dir = project().dir(root.path());
        fs::create_dir(&dir).unwrap();
        let write = || write_note(&Disk::default(), &project(), root.path(), 1_700_000_000_000_000_000);
        write();
        let text = fs::read_to_string(dir.join(FILE)).unwrap();
        let program = std::env::current_exe().unwrap();
        let created = format!("{}, process {}, at 2023-11-14T22:13:20Z", program.display(), std::process::id());
        for part in ["phc_abcd...", "https://eu.i.posthog.com", &created] {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
        assert!(!text.contains(KEY) && text.len() < 4096, "{text}");
        assert_eq!(fs::metadata(dir.join(FILE)).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(dir.join(FILE), "a note of the operator").unwrap();
        write();
        assert_eq!(fs::read_to_string(dir.join(FILE)).unwrap(), "a note of the operator");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "nothing unfinished is left");
    }

    #[test]
    fn a_note_that_cannot_be_written_is_left_out() {
        let root = tempfile::tempdir().unwrap();
        write_note(&Disk::default(), &project(), root.path(), 0);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0, "its directory does not exist");
        let long = Project { host: format!("https://{}", "h".repeat(10_000)), ..project() };
        assert!(note(&long, Path::new("/bin/\n\u{202e}x"), i64::MAX).len() < 4096);
        assert_eq!(
            note(&long, Path::new("/bin/\n\u{202e}x"), 0).lines().count(),
            note(&project(), Path::new("/bin/x"), 0).lines().count()
        );
    }
}
