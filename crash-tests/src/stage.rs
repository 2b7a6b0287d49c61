//! A queue directory and a PostHog stand-in, on which victims live and die.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sink::Sink;
use tempfile::TempDir;

use crate::life::{Death, Life, Running};
use crate::oracle::{self, History, Verdict};
use crate::protocol::{Line, Orders};
use crate::{Failure, Ledger};

/// Generous: for machines under load. Nothing waits that long unless something is wrong.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Where a scenario is played.
#[derive(Debug)]
pub struct Stage {
    /// What the victims deliver to.
    pub sink: Sink,
    victim: PathBuf,
    folder: TempDir,
    lives: u32,
    kills: u32,
    history: History,
}

impl Stage {
    /// An empty queue directory, a fresh stand-in. `victim` is the program to start.
    pub fn new(victim: &Path) -> Result<Self, Failure> {
        Ok(Self {
            sink: Sink::start(),
            victim: victim.to_owned(),
            folder: tempfile::Builder::new()
                .prefix("posthog-crash-")
                .tempdir()
                .map_err(Failure::stage("making a queue directory"))?,
            lives: 0,
            kills: 0,
            history: History::default(),
        })
    }

    /// Starts a life. End it with [`Stage::kill`] or [`Stage::wait`], so that what it said is remembered.
    pub fn start(&mut self, life: &Life) -> Result<Running, Failure> {
        let orders = Orders {
            host: self.sink.url(),
            queue: self.folder.path().join("queue").to_string_lossy().into_owned(),
            life: self.lives,
            threads: life.threads,
            events: life.events.unwrap_or(u32::MAX),
        };
        self.lives += 1;
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
        let (death, lines) = running.wait(PATIENCE)?;
        self.remember(death, lines);
        match death {
            Death::Killed => Ok(()),
            Death::Finished => Err(Failure::Victim("a victim ended without reaching its crash point".to_owned())),
        }
    }

    /// A last life delivers what is left; then the oracle judges. Only for stages on which no two lives ran at once.
    pub fn judge(&mut self) -> Result<Verdict, Failure> {
        let ledger = self.drain()?;
        self.judge_with(Some(ledger))
    }

    /// A last life delivers what is left; returns its ledger, which covers the shard that it took over.
    pub fn drain(&mut self) -> Result<Ledger, Failure> {
        let draining = self.start(&Life::draining())?;
        self.wait_for_end(draining)
    }

    /// Waits for a life that ends by itself, and returns its ledger.
    pub fn wait_for_end(&mut self, running: Running) -> Result<Ledger, Failure> {
        let (death, lines) = running.wait(PATIENCE)?;
        let ledger = lines.iter().find_map(|line| if let Line::Ledger(ledger) = line { Some(*ledger) } else { None });
        self.remember(death, lines);
        ledger.ok_or_else(|| Failure::Victim("a victim ended without reporting its ledger".to_owned()))
    }

    /// The oracle's judgement; of the whole ledger, where there is one ledger for everything.
    pub fn judge_with(&self, ledger: Option<Ledger>) -> Result<Verdict, Failure> {
        let (events, duplicates) = self.sink.inspect(|state| (state.events().to_vec(), state.duplicates()));
        let mut findings = oracle::findings(&self.history, &events);
        if let Some(ledger) = ledger {
            let unique = self.sink.inspect(sink::State::unique);
            findings.extend(oracle::ledger_findings(&ledger, self.history.acked.len() as u64, unique));
        }
        if !findings.is_empty() {
            return Err(Failure::Promise(findings));
        }
        Ok(Verdict { kills: self.kills, acked: self.history.acked.len(), duplicates })
    }

    /// The crash points that any life on this stage has reached.
    pub fn reached(&self) -> BTreeSet<String> {
        fs::read_to_string(self.trace()).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    fn trace(&self) -> PathBuf {
        self.folder.path().join("trace")
    }

    fn remember(&mut self, death: Death, lines: Vec<Line>) {
        self.kills += u32::from(death == Death::Killed);
        self.history.add(lines);
    }
}
