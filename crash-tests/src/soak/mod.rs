//! The soak: two real processes with one queue directory, on which random faults are inflicted for minutes or hours.
//!
//! - The *lasting* process delivers over TLS and is never killed, so that what grows with time shows in it. It is
//!   sampled each second (`samples`).
//! - The *mortal* process delivers over HTTP and is killed again and again.
//!
//! Both deliver to one stand-in, so there is one history for the oracle and one ledger over all shards. The network
//! misbehaves in a way that changes at random and lasts while other faults happen (`Network`). All other faults are
//! inflicted one after another (`Fault`). Both are drawn like cards from a shuffled pack, so that each comes
//! about equally often and in a short soak at least once.
//!
//! At the end all faults end, both processes end on their own, one more process for each endpoint delivers what is
//! left, and the oracle compares.

mod front;
mod place;
mod samples;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use sink::{Answer, Sink, State};

use crate::fixture::PATIENCE;
use crate::oracle::{self, History, Rules};
use crate::protocol::{Child, Key, Line, Orders};
use crate::victim_run::{RunEnd, RunningVictim, VictimRun};
use crate::{Failure, Ledger, Setup, pages};
use front::Front;
use place::Place;
pub use samples::{Course, MEASURES, Measure, Spread};
use samples::{Sampler, courses};

/// Of each process.
const THREADS: u32 = 2;
/// Events per second of each thread.
const PER_SECOND: u32 = 25;
/// Bytes added to each event.
const PADDING: u32 = 300;
/// The seconds by which the clock may be off: days and weeks, both ways.
const STEPS: [i64; 4] = [-3 * 86_400, 2 * 86_400, 40 * 86_400, -400 * 86_400];
/// How long a process may take to end on its own: it drains its queue first.
const END: Duration = Duration::from_secs(150);
/// How long it may take to deliver what is left.
const DRAIN: Duration = Duration::from_secs(240);
const RULES: Rules = Rules { poison: true, evicts: false, power_cuts: false };

/// What happens to the processes and their disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Kill,
    KillDuringRecovery,
    Stop,
    DiskFull,
    DirectoryMoved,
    ClockStepped,
    Fork,
    ConnectionsReset,
    CertificatesReplaced,
}

/// A pack: what is more frequent is in it several times.
const FAULTS: [Fault; 14] = [
    Fault::Kill,
    Fault::Kill,
    Fault::KillDuringRecovery,
    Fault::Stop,
    Fault::Stop,
    Fault::DiskFull,
    Fault::DirectoryMoved,
    Fault::ClockStepped,
    Fault::ClockStepped,
    Fault::Fork,
    Fault::Fork,
    Fault::Fork,
    Fault::ConnectionsReset,
    Fault::CertificatesReplaced,
];

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Self::Kill => "killed while capturing",
            Self::KillDuringRecovery => "killed during recovery",
            Self::Stop => "stopped and continued",
            Self::DiskFull => "disk full",
            Self::DirectoryMoved => "queue directory moved away and back",
            Self::ClockStepped => "wall clock stepped",
            Self::Fork => "forked",
            Self::ConnectionsReset => "connections reset",
            Self::CertificatesReplaced => "certificates replaced",
        }
    }
}

/// How the network and the server behave until that changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Network {
    Up,
    Cut,
    Unavailable,
    TooMany,
    Lost,
    Closed,
    Slow,
    Hanging,
    /// Poison events are answered 500 instead of 400.
    Failing,
}

/// A pack, see [`FAULTS`].
const NETWORKS: [Network; 12] = [
    Network::Up,
    Network::Up,
    Network::Up,
    Network::Cut,
    Network::Cut,
    Network::Unavailable,
    Network::TooMany,
    Network::Lost,
    Network::Closed,
    Network::Slow,
    Network::Hanging,
    Network::Failing,
];

impl Network {
    fn name(self) -> &'static str {
        match self {
            Self::Up => "network: up",
            Self::Cut => "network: server stopped",
            Self::Unavailable => "network: 503",
            Self::TooMany => "network: 429 with Retry-After",
            Self::Lost => "network: accepted, response lost",
            Self::Closed => "network: closed without a response",
            Self::Slow => "network: slow",
            Self::Hanging => "network: hanging",
            Self::Failing => "network: 500 for poison events",
        }
    }

    fn answer(self) -> Answer {
        match self {
            Self::Up | Self::Cut | Self::Failing => Answer::ok(),
            Self::Unavailable => Answer::status(503),
            Self::TooMany => Answer::status(429).retry_after(1),
            Self::Lost => Answer::close().taking(),
            Self::Closed => Answer::close(),
            Self::Slow => Answer::ok().delay(Duration::from_millis(400)),
            Self::Hanging => Answer::hang(),
        }
    }
}

/// What a soak is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How long faults are inflicted.
    pub time: Duration,
    /// The seed of the order of faults. What the processes do at that moment varies all the same.
    pub seed: u64,
}

/// The figures of a soak in which nothing was lost.
#[derive(Debug, Default)]
pub struct Report {
    /// How often each fault happened.
    pub faults: BTreeMap<&'static str, u32>,
    /// What was not done, and why.
    pub skipped: Vec<String>,
    /// Acknowledged events.
    pub acknowledged: u64,
    /// Events that `capture` dropped, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Events that arrived more than once.
    pub duplicates: u64,
    /// Days in the timestamps of the events.
    pub days: u64,
    /// Over all shards, at the end.
    pub ledger: Ledger,
    /// The memory, descriptors, threads and files of the lasting process.
    pub courses: Vec<Course>,
}

/// What a soak is doing, for a watchdog on another thread.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<Mutex<(String, Vec<Pid>)>>);

impl Progress {
    /// The last step that was begun.
    pub fn step(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// Kills the processes of the soak.
    pub fn kill_all(&self) {
        for process in std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner).1) {
            let _ = kill(process, Signal::SIGKILL);
        }
    }

    fn begin(&self, step: impl Into<String>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0 = step.into();
    }

    fn processes(&self, change: impl FnOnce(&mut Vec<Pid>)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner).1);
    }
}

/// The endpoint that a process delivers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Endpoint {
    Tls,
    Http,
}

/// Runs a soak with this program as the victim.
pub fn run(victim: &Path, options: Options, progress: &Progress) -> Result<Report, Failure> {
    let mut soak = Soak::new(victim, options.seed, progress)?;
    let lasting = soak.start(Endpoint::Tls, steady_run())?;
    let mortal = soak.start(Endpoint::Http, steady_run())?;
    let sampler = Sampler::start(lasting.pid(), soak.place.above());
    let mut pair = Pair { lasting, mortal };
    let until = Instant::now() + options.time;
    while Instant::now() < until {
        soak.step(&mut pair)?;
    }
    let samples = sampler.stop();
    soak.end(pair)?;
    soak.drain()?;
    Ok(Report { courses: courses(&samples), ..soak.judge()? })
}

/// The two processes.
struct Pair {
    lasting: RunningVictim,
    mortal: RunningVictim,
}

struct Soak {
    victim: PathBuf,
    place: Place,
    sink: Sink,
    front: Front,
    random: StdRng,
    progress: Progress,
    faults: Vec<Fault>,
    networks: Vec<Network>,
    runs: u32,
    /// Threads whose last acknowledgement a kill may have cut off.
    cut_off: u64,
    history: History,
    report: Report,
}

impl Soak {
    fn new(victim: &Path, seed: u64, progress: &Progress) -> Result<Self, Failure> {
        let (place, sink) = (Place::new()?, Sink::start());
        let front = Front::before(sink.port(), place.folder())?;
        let mut report = Report::default();
        if let Err(why) = &place.clock {
            report.skipped.push(format!("{}: {why}", Fault::ClockStepped.name()));
        }
        report.skipped.extend((!place.can_be_filled()).then(|| format!("{}: {}", Fault::DiskFull.name(), place.disk)));
        let soak = Self {
            victim: victim.to_owned(),
            place,
            sink,
            front,
            random: StdRng::seed_from_u64(seed),
            progress: progress.clone(),
            faults: Vec::new(),
            networks: Vec::new(),
            runs: 0,
            cut_off: 0,
            history: History::default(),
            report,
        };
        soak.set_network(Network::Up);
        Ok(soak)
    }

    /// Starts a process, and waits until it has opened its queue.
    fn start(&mut self, endpoint: Endpoint, run: VictimRun) -> Result<RunningVictim, Failure> {
        let running = self.launch(endpoint, run)?;
        running.wait_until_open(PATIENCE)?;
        Ok(running)
    }

    fn launch(&mut self, endpoint: Endpoint, run: VictimRun) -> Result<RunningVictim, Failure> {
        let host = match endpoint {
            Endpoint::Tls => self.front.url(),
            Endpoint::Http => self.sink.url(),
        };
        let mut run = run.env("SSL_CERT_FILE", self.front.authorities()).env("no_proxy", "*");
        if let Ok(clock) = &self.place.clock {
            run.env.extend(clock.env.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        }
        let orders = Orders {
            host,
            queue: self.place.queue().to_string_lossy().into_owned(),
            run: self.runs,
            threads: run.threads,
            events: run.events.unwrap_or(u32::MAX),
            setup: run.setup,
        };
        self.runs += 1;
        self.cut_off += u64::from(run.threads);
        let running = RunningVictim::start(&self.victim, &orders, &run, &self.place.folder().join("trace"))?;
        self.progress.processes(|known| known.push(running.pid()));
        Ok(running)
    }

    /// Perhaps another network, then a fault, then a pause.
    fn step(&mut self, pair: &mut Pair) -> Result<(), Failure> {
        if self.random.random() {
            let network = draw(&mut self.networks, &NETWORKS, &mut self.random);
            self.note(network.name());
            self.set_network(network);
        }
        let fault = draw(&mut self.faults, &FAULTS, &mut self.random);
        self.progress.begin(fault.name());
        if self.inflict(fault, pair)? {
            self.note(fault.name());
        }
        for process in [&pair.lasting, &pair.mortal] {
            if process.has_ended() {
                return Err(Failure::Victim(format!("a process ended on its own after: {}", fault.name())));
            }
        }
        self.pause(300, 2_500);
        Ok(())
    }

    /// Returns `false` if this machine does not allow it.
    fn inflict(&mut self, fault: Fault, pair: &mut Pair) -> Result<bool, Failure> {
        match fault {
            Fault::Kill => {
                self.kill(&mut pair.mortal)?;
                pair.mortal = self.start(Endpoint::Http, steady_run())?;
            }
            Fault::KillDuringRecovery => {
                self.kill(&mut pair.mortal)?;
                pair.mortal = self.launch(Endpoint::Http, steady_run())?;
                self.pause(0, 30);
                self.kill(&mut pair.mortal)?;
                pair.mortal = self.start(Endpoint::Http, steady_run())?;
            }
            Fault::Stop => {
                let stopped = if self.random.random() { &pair.lasting } else { &pair.mortal }.pid();
                signal(stopped, Signal::SIGSTOP)?;
                self.pause(200, 4_000);
                signal(stopped, Signal::SIGCONT)?;
            }
            Fault::DiskFull => {
                if !self.place.fill()? {
                    return Ok(false);
                }
                self.pause(4_000, 20_000);
                self.place.make_room()?;
            }
            Fault::DirectoryMoved => {
                self.place.move_away()?;
                self.pause(200, 4_000);
                self.place.move_back()?;
            }
            Fault::ClockStepped => {
                let Ok(clock) = &self.place.clock else { return Ok(false) };
                clock.step_to(STEPS.get(self.random.random_range(0..STEPS.len())).copied().unwrap_or_default())?;
                self.pause(200, 4_000);
                // Often it stays as it is, while other faults happen.
                if self.random.random()
                    && let Ok(clock) = &self.place.clock
                {
                    clock.step_to(0)?;
                }
            }
            Fault::Fork => {
                let child = Child::ALL[self.random.random_range(0..Child::ALL.len())];
                let parent = if self.random.random() { &mut pair.lasting } else { &mut pair.mortal };
                parent.fork(child, PATIENCE * 2)?;
            }
            Fault::ConnectionsReset => self.front.reset(),
            Fault::CertificatesReplaced => self.front.replace_certificates()?,
        }
        Ok(true)
    }

    fn kill(&mut self, running: &mut RunningVictim) -> Result<(), Failure> {
        let pid = running.pid();
        let (end, lines) = running.end_by_kill()?;
        self.record(pid, end, lines, RunEnd::Killed)
    }

    fn set_network(&self, network: Network) {
        if network == Network::Cut {
            self.sink.stop();
        } else {
            // What hangs goes on only over new connections.
            self.sink.stop();
            self.sink.resume();
        }
        let poison = |event: &Value| Key::of(&event["properties"]).is_some_and(|key| oracle::is_poison(&key));
        match network {
            Network::Failing => self.sink.refuse_if(poison, 500, "internal error"),
            _ => self.sink.refuse_if(poison, 400, "failed to parse request: poison"),
        }
        self.sink.default_answer(network.answer());
    }

    fn note(&mut self, what: &'static str) {
        *self.report.faults.entry(what).or_default() += 1;
    }

    fn pause(&mut self, least: u64, most: u64) {
        thread::sleep(Duration::from_millis(self.random.random_range(least..=most)));
    }

    fn record(&mut self, pid: Pid, end: RunEnd, lines: Vec<Line>, expected: RunEnd) -> Result<(), Failure> {
        self.progress.processes(|known| known.retain(|other| *other != pid));
        self.history.add(lines);
        if end == expected {
            return Ok(());
        }
        Err(Failure::Victim(format!("a process should have ended as {expected:?} and ended as {end:?}")))
    }

    /// Lets a process end on its own.
    fn wait_for_end(&mut self, mut running: RunningVictim) -> Result<(), Failure> {
        let pid = running.pid();
        running.request_end();
        let (end, lines) = running.wait(END)?;
        self.record(pid, end, lines, RunEnd::Finished)
    }

    /// Ends all faults, and both processes.
    fn end(&mut self, mut pair: Pair) -> Result<(), Failure> {
        self.progress.begin("the end of the two processes");
        self.set_network(Network::Up);
        if let Ok(clock) = &self.place.clock {
            clock.step_to(0)?;
        }
        pair.lasting.request_end();
        self.wait_for_end(pair.mortal)?;
        self.wait_for_end(pair.lasting)
    }

    /// Delivers what is left, with one process for each endpoint. Each captures a few events, because a refused event
    /// is only dead-lettered if another one was accepted.
    fn drain(&mut self) -> Result<(), Failure> {
        self.progress.begin("delivering what is left");
        let run = || VictimRun::capturing(1).of(13).with(Setup::default().small().steady(1));
        let running = [self.start(Endpoint::Tls, run())?, self.start(Endpoint::Http, run())?];
        let deadline = Instant::now() + DRAIN;
        while !running.iter().all(RunningVictim::has_ended) && self.ledgers()?.iter().any(|shard| shard.queued > 0) {
            if Instant::now() > deadline {
                let ledgers = self.ledgers()?;
                return Err(Failure::Guarantee(vec![format!("what is left is not delivered in time: {ledgers:?}")]));
            }
            thread::sleep(Duration::from_millis(20));
        }
        running.into_iter().try_for_each(|running| self.wait_for_end(running))
    }

    fn ledgers(&self) -> Result<Vec<Ledger>, Failure> {
        pages::ledgers(&self.place.queue()).map_err(Failure::environment("reading the status pages"))
    }

    /// Compares what was acknowledged with what has arrived.
    fn judge(mut self) -> Result<Report, Failure> {
        self.progress.begin("the oracle");
        let shards = self.ledgers()?;
        let mut findings: Vec<_> = shards
            .iter()
            .filter(|shard| !shard.balances())
            .map(|shard| format!("a shard's ledger does not balance: {shard:?}"))
            .collect();
        let ledger: Ledger = shards.into_iter().sum();
        let days = self.sink.inspect(|state| {
            findings.extend(oracle::findings(&self.history, state.events(), RULES));
            let has_arrived = |uuid: &uuid::Uuid| state.contains(*uuid);
            let arrivals: (&dyn Fn(&uuid::Uuid) -> bool, u64) = (&has_arrived, state.unique());
            findings.extend(oracle::ledger_findings(&ledger, &self.history, RULES, arrivals, self.cut_off));
            state.events().iter().filter_map(|event| event.timestamp.get(..10)).collect::<BTreeSet<_>>().len() as u64
        });
        let steps = self.report.faults.get(Fault::ClockStepped.name()).copied().unwrap_or_default();
        if steps > 0 && days < 2 {
            findings.push("the clock was stepped by days, and no event has another day".to_owned());
        }
        if !findings.is_empty() {
            return Err(Failure::Guarantee(findings));
        }
        for reason in self.history.dropped.values() {
            *self.report.dropped.entry(reason.clone()).or_default() += 1;
        }
        let (acknowledged, duplicates) = (self.history.acknowledged.len() as u64, self.sink.inspect(State::duplicates));
        Ok(Report { acknowledged, duplicates, days, ledger, ..self.report })
    }
}

/// A small journal, so that arenas are rotated and checkpointed all the time, and are full seconds after the disk is.
fn steady_run() -> VictimRun {
    VictimRun::capturing(THREADS).with(Setup::default().small().padded(PADDING).steady(PER_SECOND))
}

/// The next card of a pack, which is shuffled anew when it is used up.
fn draw<T: Copy>(rest: &mut Vec<T>, pack: &[T], random: &mut StdRng) -> T {
    if rest.is_empty() {
        rest.extend_from_slice(pack);
        rest.shuffle(random);
    }
    rest.pop().unwrap_or(pack[0])
}

fn signal(process: Pid, signal: Signal) -> Result<(), Failure> {
    kill(process, signal).map_err(|error| Failure::environment("signalling a victim")(error.into()))
}
