//! One run of the victim: started, listened to, killed.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::protocol::{Line, Orders};
use crate::{Failure, Setup};

const SIGKILL: i32 = 9;

/// How a victim is to live.
#[derive(Clone, Debug)]
pub struct Life {
    /// How many threads capture.
    pub threads: u32,
    /// How many events each captures before the life drains the queue and ends by itself; `None` is until it is killed.
    pub events: Option<u32>,
    /// The crash point to die at, and at which of its visits (1 is the first).
    pub die_at: Option<(String, u32)>,
    /// How its client is configured.
    pub setup: Setup,
}

impl Life {
    /// Captures until it is killed.
    pub fn capturing(threads: u32) -> Self {
        Self { threads, events: None, die_at: None, setup: Setup::default() }
    }

    /// Captures nothing and delivers what is left. It stays until it is told to end.
    pub fn draining() -> Self {
        Self { events: Some(0), ..Self::capturing(0) }
    }

    /// With its client configured like this.
    pub fn with(mut self, setup: Setup) -> Self {
        self.setup = setup;
        self
    }

    /// Captures so many events on each thread, and stays until it is told to end.
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

/// How a life ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// By SIGKILL, from outside or from a crash point.
    Killed,
    /// By itself, as ordered.
    Finished,
}

/// A living victim. Killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    /// Closing it tells the victim to end, once it has done what it was ordered.
    stdin: Option<ChildStdin>,
    heard: Arc<Heard>,
    listener: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Heard {
    speech: Mutex<Speech>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Speech {
    lines: Vec<Line>,
    acked: usize,
    ended: bool,
}

impl Running {
    pub(crate) fn start(victim: &Path, orders: &Orders, life: &Life, trace: &Path) -> Result<Self, Failure> {
        let mut command = sink::command(victim);
        command.args(orders.to_args()).env("POSTHOG_CRASH_TRACE", trace).env_remove("POSTHOG_CRASH_POINT");
        if let Some((point, nth)) = &life.die_at {
            command.env("POSTHOG_CRASH_POINT", format!("{point}:{nth}"));
        }
        if orders.setup.no_map {
            command.env("POSTHOG_CRASH_NO_MAP", "1");
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(Failure::stage("starting a victim"))?;
        let heard = Arc::new(Heard::default());
        let listener = child.stdout.take().map(|stdout| {
            let heard = Arc::clone(&heard);
            thread::spawn(move || heard.listen(stdout))
        });
        Ok(Self { stdin: child.stdin.take(), child, heard, listener })
    }

    /// Waits until it has acked `count` events.
    pub fn wait_for_acks(&self, count: usize, timeout: Duration) -> Result<(), Failure> {
        self.heard.wait_for(|speech| speech.acked >= count, timeout, "ack as many events as wanted")
    }

    /// The events it has acked so far.
    pub fn acked(&self) -> Vec<Uuid> {
        let acked = |line: &Line| if let Line::Acked(_, uuid) = line { Some(*uuid) } else { None };
        self.heard.speech().lines.iter().filter_map(acked).collect()
    }

    /// Kills it, wherever it is. It must still be alive.
    pub(crate) fn kill(mut self) -> Result<(Death, Vec<Line>), Failure> {
        self.child.kill().map_err(Failure::stage("killing a victim"))?;
        self.dead_letter()
    }

    /// Tells it to end once it has captured what it was ordered to and its own queue is empty.
    pub(crate) fn tell_to_end(&mut self) {
        drop(self.stdin.take());
    }

    /// Whether it is dead already.
    pub(crate) fn has_ended(&self) -> bool {
        self.heard.speech().ended
    }

    /// Waits until it has ended, by itself or at a crash point.
    pub(crate) fn wait(mut self, timeout: Duration) -> Result<(Death, Vec<Line>), Failure> {
        // The end of its stdout is the end of the process: nobody else holds it.
        self.heard.wait_for(|speech| speech.ended, timeout, "end")?;
        self.dead_letter()
    }

    fn dead_letter(&mut self) -> Result<(Death, Vec<Line>), Failure> {
        let status = self.child.wait().map_err(Failure::stage("waiting for a victim"))?;
        if let Some(listener) = self.listener.take() {
            listener.join().map_err(|_| Failure::Victim("the listener to a victim panicked".to_owned()))?;
        }
        let death = death_of(status)?;
        Ok((death, std::mem::take(&mut self.heard.speech().lines)))
    }
}

fn death_of(status: ExitStatus) -> Result<Death, Failure> {
    match (status.signal(), status.success()) {
        (Some(SIGKILL), _) => Ok(Death::Killed),
        (None, true) => Ok(Death::Finished),
        _ => Err(Failure::Victim(format!("a victim ended with {status}; its stderr tells why"))),
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A victim that has been waited for already is not killed again: `Child` knows.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Heard {
    fn speech(&self) -> MutexGuard<'_, Speech> {
        self.speech.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listen(&self, stdout: ChildStdout) {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            // What is no line of the protocol is somebody's debugging output.
            let Some(line) = Line::parse(&line) else { continue };
            let mut speech = self.speech();
            speech.acked += usize::from(matches!(line, Line::Acked(..)));
            speech.lines.push(line);
            self.changed.notify_all();
        }
        self.speech().ended = true;
        self.changed.notify_all();
    }

    fn wait_for(&self, reached: impl Fn(&Speech) -> bool, timeout: Duration, what: &str) -> Result<(), Failure> {
        let started = Instant::now();
        let waits = |speech: &mut Speech| !reached(speech) && !speech.ended;
        let waited = self.changed.wait_timeout_while(self.speech(), timeout, waits);
        let (speech, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if reached(&speech) {
            return Ok(());
        }
        let (why, acked) = (if speech.ended { "it ended before" } else { "it did not" }, speech.acked);
        let after = started.elapsed();
        Err(Failure::Victim(format!(
            "a victim should {what}, but {why}; after {after:.1?} it had acked {acked} events"
        )))
    }
}
