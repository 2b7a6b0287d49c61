//! A queue directory and a PostHog stand-in, on which victims live and die.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use sink::{Sink, State};
use tempfile::TempDir;

use crate::life::{Death, Life, Running};
use crate::oracle::{self, DeliveryOutcome, History, Rules};
use crate::protocol::{Key, Line, Orders};
use crate::{Failure, Ledger, pages};

/// Generous: for machines under load. Nothing waits that long unless something is wrong.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// How often the status pages are looked at: another process cannot be told when they change.
const LOOK: Duration = Duration::from_millis(2);

/// Where a scenario is played.
#[derive(Debug)]
pub struct Stage {
    /// What the victims deliver to.
    pub sink: Sink,
    victim: PathBuf,
    folder: TempDir,
    rules: Rules,
    lives: u32,
    kills: u32,
    /// Threads whose last acknowledgement a kill may have cut off.
    cut_off: u64,
    history: History,
}

impl Stage {
    /// An empty queue directory, a fresh stand-in. `victim` is the program to start.
    pub fn new(victim: &Path) -> Result<Self, Failure> {
        Self::with(victim, Rules::default())
    }

    /// The same, where more may become of an event than being delivered.
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
            folder: folder.map_err(Failure::stage("making a queue directory"))?,
            rules,
            lives: 0,
            kills: 0,
            cut_off: 0,
            history: History::default(),
        })
    }

    /// Starts a life. End it with [`Stage::kill`] or one of the waits, so that what it said is remembered.
    pub fn start(&mut self, life: &Life) -> Result<Running, Failure> {
        let orders = Orders {
            host: self.sink.url(),
            queue: self.queue_dir().to_string_lossy().into_owned(),
            life: self.lives,
            threads: life.threads,
            events: life.events.unwrap_or(u32::MAX),
            setup: life.setup,
        };
        self.lives += 1;
        self.cut_off += u64::from(life.threads);
        Running::start(&self.victim, &orders, life, &self.trace())
    }

    /// Kills a life that must still be going on.
    pub fn kill(&mut self, running: Running) -> Result<(), Failure> {
        let (death, lines) = running.kill()?;
        self.remember(death, lines);
        match death {
            Death::Killed => Ok(()),
            Death::Finished => Err(Failure::Victim("a victim ended by itself before it could be killed".to_owned())),
        }
    }

    /// Waits for a life that is to die at a crash point.
    pub fn wait_for_crash(&mut self, running: Running) -> Result<(), Failure> {
        if self.wait_for_crash_or_end(running)? {
            Ok(())
        } else {
            Err(Failure::Victim("a victim ended without reaching its crash point".to_owned()))
        }
    }

    /// Waits for a life that is to die at a crash point or to end.
    fn wait_for_crash_or_end(&mut self, running: Running) -> Result<bool, Failure> {
        let (death, lines) = running.wait(PATIENCE)?;
        self.remember(death, lines);
        Ok(death == Death::Killed)
    }

    /// Waits for a life that may die at a crash point, if it comes there before everything was delivered. Says whether it did.
    pub fn wait_for_crash_or_drained(&mut self, mut running: Running) -> Result<bool, Failure> {
        self.wait_until_drained(&running)?;
        running.tell_to_end();
        self.wait_for_crash_or_end(running)
    }

    /// Waits for a life that ends by itself, and returns its ledger.
    pub fn wait_for_end(&mut self, mut running: Running) -> Result<Ledger, Failure> {
        running.tell_to_end();
        let (death, lines) = running.wait(PATIENCE)?;
        let ledger = lines.iter().find_map(|line| if let Line::Ledger(ledger) = line { Some(*ledger) } else { None });
        self.remember(death, lines);
        ledger.ok_or_else(|| Failure::Victim("a victim ended without reporting its ledger".to_owned()))
    }

    /// A last life delivers what is left in all shards; then the oracle judges.
    pub fn judge(&mut self) -> Result<DeliveryOutcome, Failure> {
        let ledger = self.drain()?;
        let (events, duplicates, unique) =
            self.sink.inspect(|state| (state.events().to_vec(), state.duplicates(), state.unique()));
        let mut findings = oracle::findings(&self.history, &events, self.rules);
        let shards = self.ledgers()?;
        // A life that has AI events to deliver has a shard of each lane.
        let is_of_one_life = |one: &Ledger| *one == ledger || shards.iter().any(|other| plus(one, other) == ledger);
        if !shards.iter().any(is_of_one_life) {
            findings.push(format!("`stats` said {ledger:?}, and no status page does: {shards:?}"));
        }
        findings.extend(shards.iter().filter(|shard| !shard.balances()).map(|shard| format!("unbalanced: {shard:?}")));
        let arrived: BTreeSet<_> = events.iter().map(|event| event.uuid).collect();
        let total = shards.into_iter().sum();
        let arrivals: (&dyn Fn(&uuid::Uuid) -> bool, u64) = (&|uuid| arrived.contains(uuid), unique);
        findings.extend(oracle::ledger_findings(&total, &self.history, self.rules, arrivals, self.cut_off));
        if !findings.is_empty() {
            return Err(Failure::Promise(findings));
        }
        Ok(DeliveryOutcome { kills: self.kills, acked: self.history.acked.len(), duplicates })
    }

    /// The crash points that any life on this stage has reached.
    pub fn reached(&self) -> BTreeSet<String> {
        fs::read_to_string(self.trace()).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// The ledgers on the status pages of all shards.
    pub fn ledgers(&self) -> Result<Vec<Ledger>, Failure> {
        pages::ledgers(&self.queue_dir()).map_err(Failure::stage("reading the status pages"))
    }

    /// A life delivers what is left, in its own shard and in those that others have left, and ends. Returns its ledger.
    fn drain(&mut self) -> Result<Ledger, Failure> {
        self.sink.resume();
        // A refusal is believed only where something else was taken: so the last life has one event of its own.
        let life = if self.rules.poison { Life::capturing(1).of(1) } else { Life::draining() };
        let draining = self.start(&life)?;
        self.wait_until_drained(&draining)?;
        self.wait_for_end(draining)
    }

    /// Waits until nothing is left to be delivered, or the life has ended.
    fn wait_until_drained(&self, life: &Running) -> Result<(), Failure> {
        let deadline = Instant::now() + PATIENCE;
        while !life.has_ended() && !self.is_drained()? {
            if Instant::now() > deadline {
                let (taken, acked) = (self.sink.inspect(State::unique), self.history.acked.len());
                let stuck = format!("never drained: {acked} acked, {taken} arrived, {:?}", self.ledgers()?);
                return Err(Failure::Promise(vec![stuck]));
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
        // The page of a process that was killed may be behind where it was not mapped: what was acked has the last word.
        let may_be_missing = self.rules.evicts || self.rules.poison;
        let all_there = |state: &State| self.history.acked.keys().all(|uuid| state.contains(*uuid));
        Ok(may_be_missing || self.sink.inspect(all_there))
    }

    fn queue_dir(&self) -> PathBuf {
        self.folder.path().join("queue")
    }

    fn trace(&self) -> PathBuf {
        self.folder.path().join("trace")
    }

    fn remember(&mut self, death: Death, lines: Vec<Line>) {
        self.kills += u32::from(death == Death::Killed);
        self.history.add(lines);
    }
}

fn plus(one: &Ledger, other: &Ledger) -> Ledger {
    [*one, *other].into_iter().sum()
}
