//! A queue directory and a PostHog stand-in, shared by the victim runs of one scenario.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use sink::{Sink, State};
use tempfile::TempDir;

use crate::oracle::{self, History, Rules, Summary};
use crate::protocol::{Key, Line, Orders};
use crate::victim_run::{RunEnd, RunningVictim, VictimRun};
use crate::{Failure, Ledger, pages};

/// Maximum wait, generous for machines under load. Nothing takes this long unless something is wrong.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Interval at which the status pages are read: another process gets no notice of their changes.
const LOOK: Duration = Duration::from_millis(2);

/// The environment of one scenario.
#[derive(Debug)]
pub struct Fixture {
    /// The server that the victims deliver to.
    pub sink: Sink,
    victim: PathBuf,
    folder: TempDir,
    rules: Rules,
    runs: u32,
    kills: u32,
    /// Threads whose last acknowledgement a kill may have cut off.
    cut_off: u64,
    history: History,
}

impl Fixture {
    /// An empty queue directory and a new stand-in. `victim` is the program to start.
    pub fn new(victim: &Path) -> Result<Self, Failure> {
        Self::with(victim, Rules::default())
    }

    /// Like [`Fixture::new`], with rules under which an event need not be delivered.
    pub fn with(victim: &Path, rules: Rules) -> Result<Self, Failure> {
        let sink = Sink::start();
        if rules.poison {
            let poison = |event: &Value| Key::of(&event["properties"]).is_some_and(|key| oracle::is_poison(&key));
            sink.refuse_if(poison, 400, "failed to parse request: poison");
        }
        let folder = tempfile::Builder::new().prefix("posthog-crash-").tempdir();
        Ok(Self {
            sink,
            victim: victim.to_owned(),
            folder: folder.map_err(Failure::environment("creating a queue directory"))?,
            rules,
            runs: 0,
            kills: 0,
            cut_off: 0,
            history: History::default(),
        })
    }

    /// Starts a run. End it with [`Fixture::kill`] or one of the waits, so that its output is recorded.
    pub fn start(&mut self, run: &VictimRun) -> Result<RunningVictim, Failure> {
        let orders = Orders {
            host: self.sink.url(),
            queue: self.queue_dir().to_string_lossy().into_owned(),
            run: self.runs,
            threads: run.threads,
            events: run.events.unwrap_or(u32::MAX),
            setup: run.setup,
        };
        self.runs += 1;
        self.cut_off += u64::from(run.threads);
        RunningVictim::start(&self.victim, &orders, run, &self.trace())
    }

    /// Kills a run, which must not have ended on its own.
    pub fn kill(&mut self, running: RunningVictim) -> Result<(), Failure> {
        let (end, lines) = running.kill()?;
        self.record(end, lines);
        match end {
            RunEnd::Killed => Ok(()),
            RunEnd::Finished => Err(Failure::Victim("a victim ended on its own before it was killed".to_owned())),
        }
    }

    /// Waits for a run that must die at a crash point.
    pub fn wait_for_crash(&mut self, running: RunningVictim) -> Result<(), Failure> {
        if self.wait_for_crash_or_end(running)? {
            Ok(())
        } else {
            Err(Failure::Victim("a victim ended without reaching its crash point".to_owned()))
        }
    }

    /// Waits for a run to die at a crash point or to end. Returns whether it died.
    fn wait_for_crash_or_end(&mut self, running: RunningVictim) -> Result<bool, Failure> {
        let (end, lines) = running.wait(PATIENCE)?;
        self.record(end, lines);
        Ok(end == RunEnd::Killed)
    }

    /// Waits for a run that dies at a crash point if it gets there before everything is delivered. Returns whether it
    /// died.
    pub fn wait_for_crash_or_drained(&mut self, mut running: RunningVictim) -> Result<bool, Failure> {
        self.wait_until_drained(&running)?;
        running.request_end();
        self.wait_for_crash_or_end(running)
    }

    /// Waits for a run that ends on its own, and returns its ledger.
    pub fn wait_for_end(&mut self, mut running: RunningVictim) -> Result<Ledger, Failure> {
        running.request_end();
        let (end, lines) = running.wait(PATIENCE)?;
        let ledger = lines.iter().find_map(|line| if let Line::Ledger(ledger) = line { Some(*ledger) } else { None });
        self.record(end, lines);
        ledger.ok_or_else(|| Failure::Victim("a victim ended without reporting its ledger".to_owned()))
    }

    /// Delivers what is left in all shards with a last run, and then checks everything with the oracle.
    pub fn verify(&mut self) -> Result<Summary, Failure> {
        let ledger = self.drain()?;
        let (events, duplicates, unique) =
            self.sink.inspect(|state| (state.events().to_vec(), state.duplicates(), state.unique()));
        let mut findings = oracle::findings(&self.history, &events, self.rules);
        let shards = self.ledgers()?;
        // A run with AI events to deliver has two shards.
        let is_of_last_run = |one: &Ledger| *one == ledger || shards.iter().any(|other| plus(one, other) == ledger);
        if !shards.iter().any(is_of_last_run) {
            findings.push(format!("`stats` returned {ledger:?}, but no status page has these values: {shards:?}"));
        }
        findings.extend(
            shards
                .iter()
                .filter(|shard| !shard.balances())
                .map(|shard| format!("a shard's ledger does not balance: {shard:?}")),
        );
        let arrived: BTreeSet<_> = events.iter().map(|event| event.uuid).collect();
        let total = shards.into_iter().sum();
        let arrivals: (&dyn Fn(&uuid::Uuid) -> bool, u64) = (&|uuid| arrived.contains(uuid), unique);
        findings.extend(oracle::ledger_findings(&total, &self.history, self.rules, arrivals, self.cut_off));
        if !findings.is_empty() {
            return Err(Failure::Guarantee(findings));
        }
        Ok(Summary { kills: self.kills, acknowledged: self.history.acknowledged.len(), duplicates })
    }

    /// The crash points that any run has reached.
    pub fn reached(&self) -> BTreeSet<String> {
        fs::read_to_string(self.trace()).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// The ledgers on the status pages of all shards.
    pub fn ledgers(&self) -> Result<Vec<Ledger>, Failure> {
        pages::ledgers(&self.queue_dir()).map_err(Failure::environment("reading the status pages"))
    }

    /// Delivers what is left in all shards with one run, and returns its ledger.
    fn drain(&mut self) -> Result<Ledger, Failure> {
        self.sink.resume();
        // A refused event is only dead-lettered if another event was accepted, so the last run captures one itself.
        let run = if self.rules.poison { VictimRun::capturing(1).of(1) } else { VictimRun::draining() };
        let draining = self.start(&run)?;
        self.wait_until_drained(&draining)?;
        self.wait_for_end(draining)
    }

    /// Waits until nothing is left to deliver, or the run has ended.
    fn wait_until_drained(&self, run: &RunningVictim) -> Result<(), Failure> {
        let deadline = Instant::now() + PATIENCE;
        while !run.has_ended() && !self.is_drained()? {
            if Instant::now() > deadline {
                let (taken, acknowledged) = (self.sink.inspect(State::unique), self.history.acknowledged.len());
                let ledgers = self.ledgers()?;
                let finding =
                    format!("the queue was not drained in time: {acknowledged} accepted, {taken} arrived, {ledgers:?}");
                return Err(Failure::Guarantee(vec![finding]));
            }
            thread::sleep(LOOK);
        }
        Ok(())
    }

    fn is_drained(&self) -> Result<bool, Failure> {
        let shards = self.ledgers()?;
        if shards.is_empty() || shards.iter().any(|shard| shard.queued > 0) {
            return Ok(false);
        }
        // The page of a killed process may be outdated if it was not mapped, so the accepted events are checked too.
        let may_be_missing = self.rules.evicts || self.rules.poison;
        let all_there = |state: &State| self.history.acknowledged.keys().all(|uuid| state.contains(*uuid));
        Ok(may_be_missing || self.sink.inspect(all_there))
    }

    fn queue_dir(&self) -> PathBuf {
        self.folder.path().join("queue")
    }

    fn trace(&self) -> PathBuf {
        self.folder.path().join("trace")
    }

    fn record(&mut self, end: RunEnd, lines: Vec<Line>) {
        self.kills += u32::from(end == RunEnd::Killed);
        self.history.add(lines);
    }
}

fn plus(one: &Ledger, other: &Ledger) -> Ledger {
    [*one, *other].into_iter().sum()
}
