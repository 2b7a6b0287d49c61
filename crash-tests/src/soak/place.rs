//! Where the queue of a soak is: a small file system that can be full, and a wall clock that can be stepped.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::Failure;

/// Size of the file system in MiB.
const DISK_MIB: u64 = 96;
/// What is left of a full disk, in bytes.
const LEFT: u64 = 16 * 1024;
const CLOCK_SOURCE: &str = include_str!("stepped_clock.c");

/// A directory for the queue, and what can be done to it.
pub(super) struct Place {
    // Before `folder`, which cannot be removed while something is mounted in it.
    _mount: Option<Mount>,
    folder: TempDir,
    /// What the queue is stored on, or why that cannot be filled.
    pub(super) disk: String,
    can_be_filled: bool,
    /// The clock that the victims see.
    pub(super) clock: Result<SteppedClock, String>,
}

/// A mounted file system. Unmounted when dropped.
struct Mount(PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        // In a mount namespace of its own (see the program `soak`) it goes with the process in any case.
        let _ = run("umount", &["-l", text(&self.0)]);
    }
}

impl Place {
    /// A new one: ext4 on a loop device if this machine allows it, else tmpfs, else a plain directory.
    pub(super) fn new() -> Result<Self, Failure> {
        let failed = || Failure::environment("creating a place for the queue");
        let folder = tempfile::Builder::new().prefix("posthog-soak-").tempdir().map_err(failed())?;
        let root = folder.path().join("root");
        fs::create_dir(&root).map_err(failed())?;
        let mounted = mount_ext4(folder.path(), &root).or_else(|ext4| {
            let size = format!("size={DISK_MIB}m");
            let tmpfs = run("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", text(&root)]);
            tmpfs.map(|()| "tmpfs").map_err(|tmpfs| format!("{ext4}; {tmpfs}"))
        });
        let (mount, disk) = match &mounted {
            Ok(kind) => (Some(Mount(root.clone())), format!("{kind} of {DISK_MIB} MiB")),
            Err(why) => (None, format!("a plain directory, never full ({why})")),
        };
        let clock = SteppedClock::in_folder(folder.path());
        let place = Self { _mount: mount, folder, disk, can_be_filled: mounted.is_ok(), clock };
        fs::create_dir(place.above()).map_err(failed())?;
        Ok(place)
    }

    /// A directory for files that are not on the small file system.
    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The directory that contains the queue, whatever name it has at the moment.
    pub(super) fn above(&self) -> PathBuf {
        self.folder.path().join("root/above")
    }

    /// The queue directory.
    pub(super) fn queue(&self) -> PathBuf {
        self.above().join("queue")
    }

    /// Moves the queue directory away.
    pub(super) fn move_away(&self) -> Result<(), Failure> {
        fs::rename(self.queue(), self.above().join("away")).map_err(Failure::environment("moving the queue directory"))
    }

    /// Moves it back. It is a finding if a directory was created in its place.
    pub(super) fn move_back(&self) -> Result<(), Failure> {
        if self.queue().exists() {
            let why = "a queue directory was created at the old path while the queue was away";
            return Err(Failure::Guarantee(vec![why.to_owned()]));
        }
        fs::rename(self.above().join("away"), self.queue())
            .map_err(Failure::environment("moving the queue directory back"))
    }

    /// Whether its file system is small.
    pub(super) fn can_be_filled(&self) -> bool {
        self.can_be_filled
    }

    /// Fills the disk. Returns `false` if it cannot be filled.
    pub(super) fn fill(&self) -> Result<bool, Failure> {
        if !self.can_be_filled {
            return Ok(false);
        }
        let mut filler = File::create(self.filler()).map_err(Failure::environment("filling the disk"))?;
        let step = vec![0xA5; 1024 * 1024];
        loop {
            // The victims write too, so it is full when a write fails or nothing is left.
            let size = match self.free()? {
                free if free <= LEFT => break,
                free if free > 4 * 1024 * 1024 => step.len(),
                _ => 16 * 1024,
            };
            let part = step.get(..size).unwrap_or(&step);
            if filler.write_all(part).and_then(|()| filler.sync_data()).is_err() {
                break;
            }
        }
        Ok(true)
    }

    /// Frees what [`Place::fill`] has taken.
    pub(super) fn make_room(&self) -> Result<(), Failure> {
        fs::remove_file(self.filler()).map_err(Failure::environment("freeing the disk"))
    }

    fn filler(&self) -> PathBuf {
        self.folder.path().join("root/filler")
    }

    fn free(&self) -> Result<u64, Failure> {
        let stat = nix::sys::statvfs::statvfs(&self.above()).map_err(io::Error::from);
        let stat = stat.map_err(Failure::environment("asking for free space"))?;
        Ok(stat.blocks_available() * stat.fragment_size())
    }
}

/// The blocks of all files below `dir`, in KiB. What disappears meanwhile does not count.
pub(super) fn disk_use(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().map_while(Result::ok);
    let sizes = entries.filter_map(|entry| {
        let meta = entry.metadata().ok()?;
        Some(meta.blocks() / 2 + if meta.is_dir() { disk_use(&entry.path()) } else { 0 })
    });
    sizes.sum()
}

/// A file with seconds that the victims add to their wall clock.
pub(super) struct SteppedClock {
    seconds: File,
    /// The variables of a victim's environment.
    pub(super) env: [(&'static str, String); 2],
}

impl SteppedClock {
    fn in_folder(folder: &Path) -> Result<Self, String> {
        let [source, object, seconds] = ["clock.c", "clock.so", "clock"].map(|name| folder.join(name));
        fs::write(&source, CLOCK_SOURCE).map_err(|error| error.to_string())?;
        run("cc", &["-shared", "-fPIC", "-O1", "-o", text(&object), text(&source)])?;
        fs::write(&seconds, native(0)).map_err(|error| error.to_string())?;
        let env = [("LD_PRELOAD", text(&object).to_owned()), ("SOAK_CLOCK", text(&seconds).to_owned())];
        let seconds = File::options().write(true).open(seconds).map_err(|error| error.to_string())?;
        Ok(Self { seconds, env })
    }

    /// Sets the victims' clock to the true time and this many seconds.
    pub(super) fn step_to(&self, seconds: i64) -> Result<(), Failure> {
        // The library runs on the same machine, and reads the eight bytes with one load.
        self.seconds.write_all_at(&native(seconds), 0).map_err(Failure::environment("stepping the clock"))
    }
}

/// As the C program reads it.
fn native(seconds: i64) -> [u8; 8] {
    if cfg!(target_endian = "big") { seconds.to_be_bytes() } else { seconds.to_le_bytes() }
}

fn mount_ext4(folder: &Path, root: &Path) -> Result<&'static str, String> {
    let image = folder.join("image");
    let made = File::create(&image).and_then(|file| file.set_len(DISK_MIB * 1024 * 1024));
    made.map_err(|error| error.to_string())?;
    run("mkfs.ext4", &["-q", "-F", "-m", "0", text(&image)])?;
    run("mount", &["-o", "loop", text(&image), text(root)])?;
    // The loop device keeps it. Without a name it goes with the mount.
    fs::remove_file(&image).map_err(|error| error.to_string())?;
    Ok("ext4")
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}

fn run(program: &str, args: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', " ");
    if output.status.success() { Ok(()) } else { Err(format!("{program}: {said}")) }
}
