//! One file system, and the power cuts that it goes through.

use std::collections::BTreeMap;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::rngs::StdRng;
use sink::{Answer, Sink};

use super::bench::{Bench, FileSystem, Idle, Mode, Mounted};
use super::disk::Survivors;
use super::verdict::{Figures, Promised, ledger_findings};
use crate::fixture::PATIENCE;
use crate::oracle::{self, History, Rules};
use crate::protocol::{Line, Orders};
use crate::scenario::storms::{any_setup, change_server_behaviour};
use crate::victim_run::{RunEnd, RunningVictim, VictimRun};
use crate::{Failure, Ledger, Setup, pages};

/// Maximum time, in milliseconds, until a cut, from the moment when a queue is open.
const LONG: u64 = 900;
/// Maximum time, in milliseconds, until a cut, from the start of a victim that may still be opening its queue.
const SHORT: u64 = 60;
/// Maximum time, in microseconds, between the last answer of the server and a cut.
const UNANSWERED: u64 = 20_000;

/// A file system of its own, from its creation to the delivery of everything that is left on it.
#[derive(Debug)]
pub struct Life<'a> {
    bench: &'a mut Bench,
    victim: &'a Path,
    random: StdRng,
    history: History,
    promised: Promised,
    /// One for all runs: a queue belongs to the server that it is for.
    sink: Sink,
    /// How many events had arrived before the last cut.
    arrived: usize,
    runs: u32,
    /// What each run did until its cut, for a finding.
    run_summaries: Vec<String>,
    /// Threads whose last acknowledgement a kill may have cut off.
    cut_off: u64,
}

impl<'a> Life<'a> {
    /// `victim` is the program to start.
    pub fn new(bench: &'a mut Bench, victim: &'a Path, random: StdRng) -> Self {
        let (history, promised, sink) = (History::default(), Promised::default(), Sink::start());
        Self {
            bench,
            victim,
            random,
            history,
            promised,
            sink,
            arrived: 0,
            runs: 0,
            run_summaries: Vec::new(),
            cut_off: 0,
        }
    }

    /// Cuts the power `cuts` times, and then delivers what is left and compares.
    pub fn live(
        mut self,
        file_system: FileSystem,
        mode: Mode,
        cuts: u32,
        is_shared: bool,
    ) -> Result<(Figures, Vec<String>), Failure> {
        let mut disk = self.bench.fresh(file_system, mode)?;
        for _ in 0..cuts {
            disk = self.run_until_cut(disk)?;
            self.bench.change_boot_id().map_err(Failure::environment("changing the boot id"))?;
        }
        let shards = self.deliver_all(disk)?;
        let (events, unique) = self.sink.inspect(|state| (state.events().to_vec(), state.unique()));
        let (before, after) = events.split_at(self.arrived);
        let figures = Figures::of(cuts.into(), &self.promised, before, after);
        let mut findings = figures.broken(is_shared);
        let rules = Rules { power_cuts: true, ..Rules::default() };
        findings.extend(oracle::findings(&self.history, &events, rules));
        let unbalanced = shards.iter().filter(|shard| !shard.balances());
        findings.extend(unbalanced.map(|shard| format!("a shard's ledger does not balance: {shard:?}")));
        let total = shards.into_iter().sum();
        let acknowledged = self.history.acknowledged.len() as u64;
        findings.extend(ledger_findings(&total, unique, acknowledged, self.cut_off));
        if !findings.is_empty() {
            let lost = self.promised.lost(&|uuid| events.iter().any(|event| event.uuid == uuid));
            let keys = lost.iter().filter_map(|uuid| self.history.acknowledged.get(uuid));
            let mut ranges: BTreeMap<(u32, u32), Vec<u32>> = BTreeMap::new();
            keys.for_each(|key| ranges.entry((key.run, key.thread)).or_default().push(key.n));
            findings.extend(ranges.iter().map(|((run, thread), numbers)| {
                let (first, last) = (numbers.iter().min(), numbers.iter().max());
                format!("lost of run {run}, thread {thread}: {} events, from {first:?} to {last:?}", numbers.len())
            }));
            findings.append(&mut self.run_summaries);
        }
        Ok((figures, findings))
    }

    /// A victim captures until the power is cut. Returns what is on the disk then.
    fn run_until_cut(&mut self, disk: Idle) -> Result<Idle, Failure> {
        let mounted = self.bench.mount(disk)?;
        change_server_behaviour(&self.sink, &mut self.random);
        let setup = self.any_setup();
        let threads = self.random.random_range(1..=3);
        let began = Instant::now();
        let running = self.start(&mounted, &VictimRun::capturing(threads).with(setup))?;
        if self.random.random_ratio(1, 5) {
            thread::sleep(Duration::from_millis(self.random.random_range(0..=SHORT)));
        } else {
            running.wait_until_open(PATIENCE)?;
            thread::sleep(Duration::from_millis(self.random.random_range(0..=LONG)));
        }
        // What arrives behind the cut must not count. So nothing is answered from here on.
        self.sink.stop();
        self.arrived = self.sink.events().len();
        thread::sleep(Duration::from_micros(self.random.random_range(0..=UNANSWERED)));
        let survivors = Survivors::any(&mut self.random);
        let said = running.written();
        let heir = mounted.cut(self.bench, survivors, &mut self.random)?;
        let (end, lines) = running.kill()?;
        if end != RunEnd::Killed {
            return Err(Failure::Victim("a victim ended on its own before the power was cut".to_owned()));
        }
        let before = &lines[..said.min(lines.len())];
        let count = |is: &dyn Fn(&Line) -> bool| before.iter().filter(|line| is(line)).count();
        self.run_summaries.push(format!(
            "run {}: {threads} threads, {setup:?}, {survivors:?} of the cache survived, {:?} after its start; it had \
             reported {} events and {} rounds",
            self.runs - 1,
            began.elapsed(),
            count(&|line| matches!(line, Line::Acknowledged(..))),
            count(&|line| *line == Line::Round)
        ));
        self.promised.add(Promised::by(before));
        self.history.add(lines);
        Ok(heir)
    }

    /// Mounts the disk for the last time, and delivers everything. Returns the ledgers of all shards.
    fn deliver_all(&mut self, disk: Idle) -> Result<Vec<Ledger>, Failure> {
        let mounted = self.bench.mount(disk)?;
        self.sink.resume();
        self.sink.default_answer(Answer::ok());
        let mut running = self.start(&mounted, &VictimRun::draining())?;
        running.request_end();
        let (end, lines) = running.wait(PATIENCE)?;
        if end != RunEnd::Finished || !lines.iter().any(|line| matches!(line, Line::Ledger(_))) {
            return Err(Failure::Victim("the last victim ended without reporting its ledger".to_owned()));
        }
        pages::ledgers(&mounted.folder.join("queue")).map_err(Failure::environment("reading the status pages"))
    }

    fn start(&mut self, mounted: &Mounted, run: &VictimRun) -> Result<RunningVictim, Failure> {
        let orders = Orders {
            host: self.sink.url(),
            queue: mounted.folder.join("queue").to_string_lossy().into_owned(),
            run: self.runs,
            threads: run.threads,
            events: run.events.unwrap_or(u32::MAX),
            setup: run.setup,
        };
        self.runs += 1;
        self.cut_off += u64::from(run.threads);
        RunningVictim::start(self.victim, &orders, run, &self.bench.trace())
    }

    /// Half of the runs wait for no event, so that only the interval makes events durable. Half of the runs measure the
    /// disk. The others do not, because a sync of any file flushes the whole disk.
    fn any_setup(&mut self) -> Setup {
        let awaits = [0, 0, 0, 1, 10, 50][self.random.random_range(0..6)];
        let setup = Setup { awaits, rounds: self.random.random(), ..any_setup(&mut self.random, Rules::default()) };
        // Without pauses, large events would fill the file system.
        Setup { padding: if setup.burst { 0 } else { setup.padding }, ..setup }
    }
}
