//! Power cuts on real file systems.
//!
//! A victim captures on a file system of its own while the power is cut: its disk is what had reached the device by
//! then. The kernel mounts that disk as after any power cut, victims continue on it, and the oracle compares what
//! arrives with what the victims had said before the cut.
//!
//! - A [`Bench`] is where file systems are made and mounted. Its mounts are in a mount namespace of this process, so
//!   the kernel removes them however the process ends.
//! - [`Mode::Clone`]: the file system is in a file on an XFS, and a cut is a clone (`FICLONE`) of that file. A clone is
//!   atomic. It has every write that the device was given, also those that were never flushed.
//! - [`Mode::Unflushed`]: the file system is on a `Disk` in the memory of this process, which `fuse` serves to the
//!   kernel as a file. A cut loses a random part of what was written since the last flush, as a disk with a write
//!   cache may.
//! - A [`Life`] is one file system with one or several cuts. At its end everything is delivered and judged
//!   ([`verdict`]).
//!
//! A restart of the machine has a new boot id. The victims read it from a file that each cut changes.

mod bench;
mod disk;
mod fuse;
mod life;
pub mod verdict;

pub use bench::{Bench, FileSystem, Mode};
pub use life::Life;
