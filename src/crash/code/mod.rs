//! What the process knows of its own code: which images are loaded, where it is on a stack, what an address means.
//!
//! A stack is captured as raw return addresses, on the thread that reports something: no names, no files, no locks that somebody could
//! hold for long (`stack.rs`). Names come when the event is sent, on the delivery's thread (`symbols.rs`), from the images that are
//! loaded then (`modules.rs`): an address of an image with a build id means the same place in any image of that build id, wherever it
//! is loaded, in this process or the next.
//!
//! Names are looked up within a bound of memory: `debug_file.rs` reads debug information a unit at a time, from files that `mapped.rs`
//! maps. Nothing of it stays when a body is done.
//!
//! This is the one folder that may be `unsafe` to look at the process itself; each block proves itself.
//!
//! # Operations
//!
//! [`Edge::above`] marks where our own frames end, [`trace`] walks what lies above it, [`Modules::loaded`] lists the images,
//! [`InProcess`] is the [`Symbols`](crate::record::Symbols) of this process.

mod debug_file;
mod elf;
mod mapped;
mod modules;
mod source;
mod stack;
mod symbols;
#[cfg(all(test, target_os = "linux"))]
mod symbols_tests;

pub(crate) use modules::Modules;
pub(crate) use stack::{Edge, trace};
pub(crate) use symbols::InProcess;
