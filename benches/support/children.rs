//! This program once more, in a role, so that it can be killed or measured from outside.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Stdio};
use std::time::Duration;

/// A child that says on its standard output how far it is. Killed with SIGKILL when dropped.
#[derive(Debug)]
pub(crate) struct Role {
    child: Child,
    words: BufReader<ChildStdout>,
}

/// Starts it.
pub(crate) fn start(args: &[&str]) -> Role {
    let program = std::env::current_exe().expect("a running program has a path");
    let mut child =
        sink::command(program).arg("role").args(args).stdout(Stdio::piped()).spawn().expect("a child can be started");
    let words = BufReader::new(child.stdout.take().expect("its output is a pipe"));
    Role { child, words }
}

/// The arguments of the role that this process is started in, if it is a child.
pub(crate) fn role() -> Option<Vec<String>> {
    let mut args = std::env::args().skip(1);
    (args.next()? == "role").then(|| args.collect())
}

impl Role {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the child's next line.
    pub(crate) fn hear(&mut self) -> String {
        let mut line = String::new();
        let heard = self.words.read_line(&mut line).expect("a pipe can be read");
        assert!(heard > 0, "the child has died");
        line.trim().to_owned()
    }

    /// The same, and has a look at the child all the while.
    pub(crate) fn hear_watching(&mut self, mut look: impl FnMut(u32)) -> String {
        let pid = self.pid();
        std::thread::scope(|scope| {
            let heard = scope.spawn(|| self.hear());
            while !heard.is_finished() {
                look(pid);
                std::thread::sleep(Duration::from_millis(20));
            }
            heard.join().expect("the listener does not panic")
        })
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        self.end();
    }
}
