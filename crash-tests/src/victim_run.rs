//! One run of the victim: started, its output read, and killed.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use uuid::Uuid;

use crate::protocol::{Child as ForkedChild, Line, Orders};
use crate::{Failure, Setup};

const SIGKILL: i32 = 9;

/// What a run does.
#[derive(Clone, Debug)]
pub struct VictimRun {
    /// Number of threads that capture.
    pub threads: u32,
    /// Events that each thread captures, before the run drains the queue and ends on its own; `None`: until it is
    /// killed.
    pub events: Option<u32>,
    /// The crash point to die at, and at which visit (1 is the first).
    pub die_at: Option<(String, u32)>,
    /// How its client is configured.
    pub setup: Setup,
    /// Further variables of its environment.
    pub env: Vec<(String, String)>,
}

impl VictimRun {
    /// Captures until it is killed.
    pub fn capturing(threads: u32) -> Self {
        Self { threads, events: None, die_at: None, setup: Setup::default(), env: Vec::new() }
    }

    /// Captures nothing and delivers what is left, until it is asked to end.
    pub fn draining() -> Self {
        Self { events: Some(0), ..Self::capturing(0) }
    }

    /// The same with this configuration.
    pub fn with(mut self, setup: Setup) -> Self {
        self.setup = setup;
        self
    }

    /// The same with this variable in its environment.
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.push((name.to_owned(), value.into()));
        self
    }

    /// Captures this many events on each thread, and stays until it is asked to end.
    pub fn of(mut self, events: u32) -> Self {
        self.events = Some(events);
        self
    }

    /// Dies at `point` when it is reached for the `nth` time.
    pub fn dying_at(mut self, point: &str, nth: u32) -> Self {
        self.die_at = Some((point.to_owned(), nth));
        self
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunEnd {
    /// By SIGKILL, from outside or at a crash point.
    Killed,
    /// On its own, as requested.
    Finished,
}

/// A running victim. Killed when dropped.
#[derive(Debug)]
pub struct RunningVictim {
    child: Child,
    /// Closing it asks the victim to end, once it has captured everything.
    stdin: Option<ChildStdin>,
    output: Arc<VictimOutput>,
    listener: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct VictimOutput {
    state: Mutex<OutputState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct OutputState {
    lines: Vec<Line>,
    acknowledged: usize,
    children_ended: usize,
    is_open: bool,
    ended: bool,
}

impl RunningVictim {
    pub(crate) fn start(victim: &Path, orders: &Orders, run: &VictimRun, trace: &Path) -> Result<Self, Failure> {
        let mut command = sink::command(victim);
        command.args(orders.to_args()).env("POSTHOG_CRASH_TRACE", trace).env_remove("POSTHOG_CRASH_POINT");
        if let Some((point, nth)) = &run.die_at {
            command.env("POSTHOG_CRASH_POINT", format!("{point}:{nth}"));
        }
        if orders.setup.no_map {
            command.env("POSTHOG_CRASH_NO_MAP", "1");
        }
        command.envs(run.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(Failure::environment("starting a victim"))?;
        let output = Arc::new(VictimOutput::default());
        let listener = child.stdout.take().map(|stdout| {
            let output = Arc::clone(&output);
            thread::spawn(move || output.listen(stdout))
        });
        Ok(Self { stdin: child.stdin.take(), child, output, listener })
    }

    /// Waits until it has acknowledged `count` events.
    pub fn wait_for_acknowledged(&self, count: usize, timeout: Duration) -> Result<(), Failure> {
        self.output.wait_for(|state| state.acknowledged >= count, timeout, "acknowledge enough events")
    }

    /// The number of lines that it has written so far, and that were read.
    pub(crate) fn written(&self) -> usize {
        self.output.state().lines.len()
    }

    /// The events it has acknowledged so far.
    pub fn acknowledged(&self) -> Vec<Uuid> {
        let acknowledged = |line: &Line| if let Line::Acknowledged(_, uuid) = line { Some(*uuid) } else { None };
        self.output.state().lines.iter().filter_map(acknowledged).collect()
    }

    /// Its process.
    pub(crate) fn pid(&self) -> Pid {
        // A process id fits: the kernel's are below 2^22.
        Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(i32::MAX))
    }

    /// Waits until its client has opened the queue.
    pub(crate) fn wait_until_open(&self, timeout: Duration) -> Result<(), Failure> {
        self.output.wait_for(|state| state.is_open, timeout, "open its queue")
    }

    /// Lets a steady run fork, and waits until the child has ended.
    pub(crate) fn fork(&mut self, child: ForkedChild, timeout: Duration) -> Result<(), Failure> {
        let before = self.output.state().children_ended;
        let Some(stdin) = &mut self.stdin else { return Ok(()) };
        writeln!(stdin, "{}", child.line()).map_err(Failure::environment("writing to a victim"))?;
        self.output.wait_for(|state| state.children_ended > before, timeout, "see its forked child end")
    }

    /// Kills it.
    pub(crate) fn kill(mut self) -> Result<(RunEnd, Vec<Line>), Failure> {
        self.end_by_kill()
    }

    /// Kills it, and leaves an ended run.
    pub(crate) fn end_by_kill(&mut self) -> Result<(RunEnd, Vec<Line>), Failure> {
        self.child.kill().map_err(Failure::environment("killing a victim"))?;
        self.reap()
    }

    /// Asks it to end, once it has captured everything and its own queue is empty.
    pub(crate) fn request_end(&mut self) {
        drop(self.stdin.take());
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.output.state().ended
    }

    /// Waits until it has ended, on its own or at a crash point.
    pub(crate) fn wait(mut self, timeout: Duration) -> Result<(RunEnd, Vec<Line>), Failure> {
        // Only the victim holds its stdout, so the end of the output is the end of the process.
        self.output.wait_for(|state| state.ended, timeout, "end")?;
        self.reap()
    }

    fn reap(&mut self) -> Result<(RunEnd, Vec<Line>), Failure> {
        let status = self.child.wait().map_err(Failure::environment("waiting for a victim"))?;
        if let Some(listener) = self.listener.take() {
            listener
                .join()
                .map_err(|_| Failure::Victim("the thread that reads a victim's output panicked".to_owned()))?;
        }
        let end = end_of(status)?;
        Ok((end, std::mem::take(&mut self.output.state().lines)))
    }
}

fn end_of(status: ExitStatus) -> Result<RunEnd, Failure> {
    match (status.signal(), status.success()) {
        (Some(SIGKILL), _) => Ok(RunEnd::Killed),
        (None, true) => Ok(RunEnd::Finished),
        _ => Err(Failure::Victim(format!("a victim ended with {status}; see its stderr"))),
    }
}

impl Drop for RunningVictim {
    fn drop(&mut self) {
        // Does nothing to a victim that was waited for already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl VictimOutput {
    fn state(&self) -> MutexGuard<'_, OutputState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listen(&self, stdout: ChildStdout) {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            // Other lines are debugging output.
            let Some(line) = Line::parse(&line) else { continue };
            let mut state = self.state();
            state.acknowledged += usize::from(matches!(line, Line::Acknowledged(..)));
            state.children_ended += usize::from(line == Line::ChildEnded);
            state.is_open |= line == Line::Open;
            state.lines.push(line);
            self.changed.notify_all();
        }
        self.state().ended = true;
        self.changed.notify_all();
    }

    fn wait_for(&self, reached: impl Fn(&OutputState) -> bool, timeout: Duration, what: &str) -> Result<(), Failure> {
        let started = Instant::now();
        let waits = |state: &mut OutputState| !reached(state) && !state.ended;
        let waited = self.changed.wait_timeout_while(self.state(), timeout, waits);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if reached(&state) {
            return Ok(());
        }
        let (why, acknowledged) =
            (if state.ended { "it ended first" } else { "it did not in time" }, state.acknowledged);
        let after = started.elapsed();
        Err(Failure::Victim(format!(
            "a victim should {what}, but {why}; after {after:.1?} it had acknowledged {acknowledged} events"
        )))
    }
}
