//! Child processes: the same program, started with a role, so that it can be killed or measured from outside.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Stdio};
use std::time::Duration;

/// A child process that reports its progress on standard output. Killed with SIGKILL when dropped.
#[derive(Debug)]
pub(crate) struct Role {
    child: Child,
    output: BufReader<ChildStdout>,
}

/// Starts this program with `args` as its role.
pub(crate) fn start(args: &[&str]) -> Role {
    let program = std::env::current_exe().expect("a running program has a path");
    let mut child =
        sink::command(program).arg("role").args(args).stdout(Stdio::piped()).spawn().expect("a child can be started");
    let output = BufReader::new(child.stdout.take().expect("its output is a pipe"));
    Role { child, output }
}

/// The arguments of this process's role, if it is a child.
pub(crate) fn role() -> Option<Vec<String>> {
    let mut args = std::env::args().skip(1);
    (args.next()? == "role").then(|| args.collect())
}

impl Role {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the child's next line.
    pub(crate) fn next_line(&mut self) -> String {
        let mut line = String::new();
        let read = self.output.read_line(&mut line).expect("a pipe can be read");
        assert!(read > 0, "the child has died");
        line.trim().to_owned()
    }

    /// Waits for the child's next line and calls `look` with its process id meanwhile.
    pub(crate) fn next_line_watching(&mut self, mut look: impl FnMut(u32)) -> String {
        let pid = self.pid();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| self.next_line());
            while !reader.is_finished() {
                look(pid);
                std::thread::sleep(Duration::from_millis(20));
            }
            reader.join().expect("the reader does not panic")
        })
    }

    /// Kills the child with SIGKILL.
    pub(crate) fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // Fails if it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        self.end();
    }
}
