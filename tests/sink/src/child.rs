//! Child processes with default signal dispositions, whatever the test run has inherited.

#![allow(unsafe_code, reason = "code that runs in the child before `exec`; each block has its proof")]

use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::libc;
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};

/// `Command::new(program)`, with every signal at its default disposition and none blocked.
///
/// A child inherits ignored and blocked signals. A shell's `&`, `nohup` and some CI systems ignore SIGINT, SIGQUIT or
/// SIGHUP in the programs that they start, so without this a test of signals would depend on how the test run was
/// started.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    // SAFETY: `reset_signals` allocates nothing, takes no lock and makes async-signal-safe system calls only.
    unsafe { command.pre_exec(reset_signals) };
    command
}

fn reset_signals() -> io::Result<()> {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: a default disposition runs no code. SIGKILL, SIGSTOP and the C library's own signals are refused with
        // an error, which does not matter here because they cannot be ignored either.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    Ok(sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    const IS_INNER: &str = "SINK_CHILD_OF_A_PARENT_THAT_IGNORES";
    /// Signals 32 and 33 belong to the C library, which refuses to change them.
    const OF_THE_C_LIBRARY: u64 = 0b11 << 31;

    /// The signals that a process of `command` blocks, and those that it ignores.
    fn blocked_and_ignored(mut command: Command) -> Vec<u64> {
        let status = command.arg("/proc/self/status").output().expect("it runs");
        let status = String::from_utf8(status.stdout).expect("text");
        let mask = |line: &str| {
            let hex = line.strip_prefix("SigBlk:").or_else(|| line.strip_prefix("SigIgn:"))?;
            Some(u64::from_str_radix(hex.trim(), 16).expect("a mask") & !OF_THE_C_LIBRARY)
        };
        status.lines().filter_map(mask).collect()
    }

    #[test]
    fn a_child_has_default_signals_where_its_parent_ignores_some() {
        if std::env::var_os(IS_INNER).is_some() {
            assert_ne!(blocked_and_ignored(Command::new("cat")), [0, 0], "inherited without the reset");
            assert_eq!(blocked_and_ignored(command("cat")), [0, 0]);
            return;
        }
        let ignoring = "trap '' HUP INT QUIT PIPE TERM; exec \"$0\" --exact \"$1\"";
        let name = "child::tests::a_child_has_default_signals_where_its_parent_ignores_some";
        let mut shell = Command::new("sh");
        shell.args(["-c", ignoring]).arg(std::env::current_exe().unwrap()).arg(name).env(IS_INNER, "1");
        let output = shell.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
    }
}
