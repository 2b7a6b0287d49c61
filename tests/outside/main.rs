//! Integration tests through the public interface: real processes, a network on the loopback interface, full disks.
//!
//! Parts that must not run in the test process itself (a fork, a resource limit, an exit, an environment) run in a
//! child process; see `apart.rs`.

#![allow(clippy::unwrap_used, reason = "a test may panic, also in its helper functions")]

mod ai;
mod apart;
mod api;
mod bounds;
mod dead_letters;
mod deployment;
mod descriptors;
mod directories;
mod disk_full;
mod endings;
mod exceptions;
mod fixture;
mod flags;
mod fork;
mod fork_rules;
mod identity;
mod limits;
mod memory;
#[cfg(feature = "metrics")]
mod metrics;
mod network;
mod overflow;
mod owners;
mod process;
mod reach;
mod refusals;
mod runs;
mod runtimes;
mod termination;
mod tool_faults;
mod tool_files;
mod tool_fix;
mod tool_forget;
mod tool_move;
mod tool_prove;
mod tool_status;
mod tool_terminal;
mod v1;
mod waiting;
mod wire;
