//! Where the file systems of the trials are made and mounted.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::geteuid;
use rand::RngExt;
use rand::rngs::StdRng;
use uuid::Uuid;

use super::disk::{Content, Disk, Survivors};
use super::fuse;
use crate::Failure;

const MIB: u64 = 1024 * 1024;
/// The XFS on which clones are made; sparse, in memory.
const LOWER_BYTES: u64 = 4096 * MIB;
/// Folders that every system has and few use: the bench hides one of them, from this process and its children only.
const HIDEABLE: &[&str] = &["/media", "/mnt"];
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A file system under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileSystem {
    /// Journals are mapped.
    Ext4,
    /// Journals are written by position.
    Xfs,
    /// Journals are written by position; blocks are never written in place.
    Btrfs,
}

impl FileSystem {
    /// All.
    pub const ALL: [Self; 3] = [Self::Ext4, Self::Xfs, Self::Btrfs];

    /// Its name, as for `mount -t`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }

    /// Little more than a queue needs, or the smallest size that is allowed.
    fn bytes(self) -> u64 {
        match self {
            Self::Ext4 => 160 * MIB,
            Self::Xfs => 300 * MIB,
            Self::Btrfs => 256 * MIB,
        }
    }

    fn mkfs_options(self) -> &'static [&'static str] {
        match self {
            Self::Ext4 => &["-q", "-F", "-m", "0", "-E", "lazy_itable_init=0"],
            Self::Xfs | Self::Btrfs => &["-q", "-f"],
        }
    }

    /// `nouuid`: XFS refuses a clone otherwise, because it has the UUID of its original. `nodiscard`: freed blocks stay on
    /// the disk, as on most machines.
    fn mount_options(self) -> &'static str {
        match self {
            Self::Ext4 => "loop,nodiscard",
            Self::Xfs => "loop,nodiscard,nouuid",
            Self::Btrfs => "loop,nodiscard",
        }
    }
}

/// How the power is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// The disk keeps every write that it was given.
    Clone,
    /// The disk loses some of the writes since its last flush.
    Unflushed,
}

impl Mode {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Clone, Self::Unflushed];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Clone => "clone",
            Self::Unflushed => "unflushed",
        }
    }
}

/// The place for all mounts. There is one for each process.
#[derive(Debug)]
pub struct Bench {
    root: PathBuf,
    /// Files and folders made so far, for names that were not used yet.
    made: u32,
    /// Empty file systems.
    empty: BTreeMap<FileSystem, Content>,
}

/// A disk that is not mounted.
#[derive(Debug)]
pub(super) struct Idle {
    file_system: FileSystem,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// A file on the lower XFS.
    Image(PathBuf),
    Content(Content),
}

/// A disk whose file system is mounted. Unmounted when dropped.
#[derive(Debug)]
pub(super) struct Mounted {
    /// Where.
    pub(super) folder: PathBuf,
    file_system: FileSystem,
    kind: MountedKind,
}

#[derive(Debug)]
enum MountedKind {
    Image(PathBuf),
    /// The disk, and the file as which it is mounted.
    Disk(Arc<Mutex<Disk>>, PathBuf),
}

impl Bench {
    /// Leaves the mount namespace of the caller. Call it before any other thread is started, because a thread has the
    /// namespace of the thread that started it. An error is the reason why this machine does not allow it.
    pub fn new() -> Result<Self, String> {
        if !geteuid().is_root() {
            return Err("mounting needs root".to_owned());
        }
        unshare(CloneFlags::CLONE_NEWNS).map_err(|error| format!("no mount namespace of its own: {error}"))?;
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
            .map_err(|error| format!("mounts cannot be made private: {error}"))?;
        let program = std::env::current_exe().unwrap_or_default();
        let root = HIDEABLE.iter().map(Path::new).find(|folder| folder.is_dir() && !program.starts_with(folder));
        let root = root.ok_or_else(|| format!("none of {HIDEABLE:?} is a folder"))?.to_owned();
        mount(Some("powercut"), &root, Some("tmpfs"), MsFlags::empty(), none)
            .map_err(|error| format!("no tmpfs at {}: {error}", root.display()))?;
        let bench = Self { root, made: 0, empty: BTreeMap::new() };
        bench.change_boot_id().map_err(|error| format!("no file for the boot id: {error}"))?;
        mount(Some(&bench.boot_id()), BOOT_ID, none, MsFlags::MS_BIND, none)
            .map_err(|error| format!("the boot id cannot be replaced: {error}"))?;
        Ok(bench)
    }

    /// Where the crash points that were visited are written.
    pub(super) fn trace(&self) -> PathBuf {
        self.root.join("trace")
    }

    /// Makes empty file systems of this kind, and tries whether they can be cut in this mode. An error is the reason
    /// why not.
    pub fn prepare(&mut self, file_system: FileSystem, mode: Mode) -> Result<(), String> {
        self.try_out(file_system, mode).map_err(|failure| match failure {
            Failure::Environment { what, source } => format!("{what}: {source}"),
            other => other.to_string(),
        })
    }

    fn try_out(&mut self, file_system: FileSystem, mode: Mode) -> Result<(), Failure> {
        let template = self.template(file_system);
        if !template.exists() {
            self.make_lower()?;
            let made = File::create(&template).and_then(|file| file.set_len(file_system.bytes()));
            made.map_err(Failure::environment("creating an image"))?;
            let mkfs = format!("mkfs.{}", file_system.name());
            if let Err(failure) = run(&mkfs, &[file_system.mkfs_options(), &[&text(&template)]].concat()) {
                let _ = fs::remove_file(&template);
                return Err(failure);
            }
        }
        let mounted = self.fresh(file_system, mode).and_then(|idle| self.mount(idle))?;
        let heir = mounted.cut(self, Survivors::All, &mut rand::make_rng())?;
        drop(mounted);
        self.mount(heir).map(drop)
    }

    /// The XFS for images.
    fn make_lower(&mut self) -> Result<(), Failure> {
        let folder = self.root.join("lower");
        if folder.exists() {
            return Ok(());
        }
        fs::create_dir(&folder).map_err(Failure::environment("creating a folder"))?;
        let image = self.root.join("lower.img");
        let made = File::create(&image).and_then(|file| file.set_len(LOWER_BYTES));
        made.map_err(Failure::environment("creating an image"))?;
        // If this fails, the folder of the tmpfs serves the mode that does not clone, and `cp` fails in the other.
        let _ = run("mkfs.xfs", &["-q", "-f", "-m", "reflink=1", &text(&image)])
            .and_then(|()| run("mount", &["-o", "loop", &text(&image), &text(&folder)]));
        Ok(())
    }

    /// An empty file system.
    pub(super) fn fresh(&mut self, file_system: FileSystem, mode: Mode) -> Result<Idle, Failure> {
        let template = self.template(file_system);
        let kind = match mode {
            Mode::Clone => Kind::Image(self.clone_of(&template)?),
            Mode::Unflushed => {
                let content = match self.empty.entry(file_system) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(unknown) => {
                        let bytes = fs::read(&template).map_err(Failure::environment("reading an image"))?;
                        unknown.insert(Content::of(&bytes))
                    }
                };
                Kind::Content(content.clone())
            }
        };
        Ok(Idle { file_system, kind })
    }

    /// Mounts a disk. The kernel recovers the file system if it was not unmounted.
    pub(super) fn mount(&mut self, idle: Idle) -> Result<Mounted, Failure> {
        let Idle { file_system, kind } = idle;
        let folder = self.unused("mounted");
        fs::create_dir(&folder).map_err(Failure::environment("creating a folder"))?;
        let (device, kind) = match kind {
            Kind::Image(image) => (image.clone(), MountedKind::Image(image)),
            Kind::Content(content) => {
                let file = self.unused("disk");
                File::create(&file).map_err(Failure::environment("creating a file"))?;
                let disk = Arc::new(Mutex::new(Disk::new(content)));
                fuse::serve(Arc::clone(&disk), file_system.bytes(), &file)
                    .map_err(Failure::environment("serving a disk by FUSE"))?;
                (file.clone(), MountedKind::Disk(disk, file))
            }
        };
        if file_system == FileSystem::Btrfs {
            // It remembers the disks of file systems that are no longer mounted, and refuses an older state of one.
            let _ = run("btrfs", &["device", "scan", "--forget"]);
        }
        let mounted = Mounted { folder, file_system, kind };
        let (kind, options) = (file_system.name(), file_system.mount_options());
        run("mount", &["-t", kind, "-o", options, &text(&device), &text(&mounted.folder)])?;
        Ok(mounted)
    }

    /// What a restart changes besides the disk.
    pub(super) fn change_boot_id(&self) -> io::Result<()> {
        fs::write(self.boot_id(), format!("{}\n", Uuid::from_u128(rand::make_rng::<StdRng>().random())))
    }

    fn boot_id(&self) -> PathBuf {
        self.root.join("boot_id")
    }

    fn template(&self, file_system: FileSystem) -> PathBuf {
        self.root.join("lower").join(file_system.name())
    }

    fn clone_of(&mut self, image: &Path) -> Result<PathBuf, Failure> {
        let name = self.unused("image").file_name().unwrap_or_default().to_owned();
        let clone = self.root.join("lower").join(name);
        // Fails where it cannot be an atomic clone.
        run("cp", &["--reflink=always", &text(image), &text(&clone)])?;
        Ok(clone)
    }

    fn unused(&mut self, what: &str) -> PathBuf {
        self.made += 1;
        self.root.join(format!("{what}-{}", self.made))
    }
}

impl Mounted {
    /// The disk as it is if the power is cut now. The file system stays mounted, and its further writes are lost.
    pub(super) fn cut(&self, bench: &mut Bench, survivors: Survivors, random: &mut StdRng) -> Result<Idle, Failure> {
        let kind = match &self.kind {
            MountedKind::Image(image) => Kind::Image(bench.clone_of(image)?),
            MountedKind::Disk(disk, _) => {
                Kind::Content(disk.lock().unwrap_or_else(PoisonError::into_inner).cut(survivors, random))
            }
        };
        Ok(Idle { file_system: self.file_system, kind })
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A file system that is in use goes away when it no longer is. Whatever fails here ends with the namespace.
        //
        // In a process of its own: it waits for the disk, which a thread of this process serves. If this process were
        // killed while it waits itself, the thread would be gone, and the kernel would wait for its answer forever.
        let at = text(&self.folder);
        let _ = run("umount", &[&at]).or_else(|_| run("umount", &["-l", &at]));
        let _ = fs::remove_dir(&self.folder);
        match &self.kind {
            MountedKind::Image(image) => {
                let _ = fs::remove_file(image);
            }
            MountedKind::Disk(_, file) => {
                let _ = umount2(file, MntFlags::MNT_DETACH);
                let _ = fs::remove_file(file);
            }
        }
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Runs a command of the system.
fn run(program: &str, arguments: &[&str]) -> Result<(), Failure> {
    let output = sink::command(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.map_err(|error| io::Error::new(error.kind(), format!("{program}: {error}")));
    let output = output.map_err(Failure::environment("a command of the system"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    let command = format!("`{program} {}` ended with {}: {said}", arguments.join(" "), output.status);
    Err(Failure::environment("a command of the system")(io::Error::other(command)))
}
