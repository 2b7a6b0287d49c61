//! `prove`: what the user's own disk does for the promise, by measurement and by killing processes on it.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Barrier, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use clap::Args as ClapArgs;
use posthog::inspect::{self, DiskReport, Latencies, PowerCuts, ProofDir};
use posthog::stats::QueueMedium;
use posthog::{Client, Event};
use serde::Serialize;
use uuid::Uuid;

use crate::output::{Output, Tone, Unit, shown};
use crate::{Failure, Verdict};

#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    /// The directory: the one that a program uses for its queue, or any other on the same disk
    #[arg(value_name = "DIR")]
    dir: Option<PathBuf>,
    /// How often a process is killed
    #[arg(long, value_name = "N", default_value_t = 20)]
    kills: u32,
    /// How many power cuts are simulated
    #[arg(long, value_name = "N", default_value_t = 10)]
    power_cuts: u32,
    /// Stop killing after this time
    #[arg(long, value_name = "N", default_value_t = 45)]
    seconds: u64,
}

/// The process that is killed.
#[derive(Debug, ClapArgs)]
pub(crate) struct VictimArgs {
    dir: PathBuf,
}

const SPACE_NEEDED: u64 = 64 * 1024 * 1024;
/// The journal of the processes that are killed.
const SMALL_JOURNAL: usize = 512 * 1024;

/// All that was found; the object of `--json`.
#[derive(Serialize)]
struct Proof {
    verdict: &'static str,
    problems: Vec<String>,
    notes: Vec<String>,
    disk: DiskReport,
    captures: Option<Captures>,
    kills: Option<Kills>,
    power_cuts: Option<PowerCuts>,
    took_seconds: f64,
}

/// The cost of a capture on this disk.
#[derive(Serialize)]
struct Captures {
    /// Of one thread, at a rate that any disk sustains.
    latency: Latencies,
    threads: usize,
    /// Of all threads together, in a burst as fast as they can.
    accepted_per_second: f64,
    accepted: u64,
    dropped: u64,
}

/// The outcome of the kills.
#[derive(Clone, Debug, Default, Serialize)]
struct Kills {
    kills: u32,
    /// Of the kills, those while the process was opening the queue, which the kill before had left.
    while_opening: u32,
    /// Events whose capture had returned `Accepted` before the kill.
    accepted: u64,
    lost: u64,
    twice: u64,
    damaged: u64,
}

pub(crate) fn run(args: Args, output: &mut Output) -> Result<Verdict, Failure> {
    let began = Instant::now();
    let given = args.dir.clone().map_or_else(inspect::default_queue_dir, Ok)?;
    let dir = nearest_existing(&given);
    let victim = Arc::new(Mutex::new(None));
    let to_stop = Arc::clone(&victim);
    let proof = ProofDir::below(&dir, move || {
        // Never unlocked: no other process may be started while the directory is removed.
        let mut victim = to_stop.lock().unwrap_or_else(PoisonError::into_inner);
        stop(&mut victim);
        std::mem::forget(victim);
    })?;
    let steps = output.progress("syncs, captures", 2, Unit::Events);
    let mut disk = inspect::disk(proof.path())?;
    disk.path = dir.clone();
    if disk.free_bytes < SPACE_NEEDED {
        let free = size(disk.free_bytes);
        return Err(format!("{} has {free} free, and the test needs {}", shown(&dir), size(SPACE_NEEDED)).into());
    }
    steps.at(1);
    let (mut problems, mut notes) = (disk.problems(), disk.notes());
    if dir != given && args.dir.is_none() {
        notes.push(format!("{} does not exist; this is about the disk of {}.", shown(&given), shown(&dir)));
    }
    let captures = match measure_captures(&proof.path().join("captures")) {
        Ok(captures) => Some(captures),
        Err(error) => {
            problems.push(format!("The library refuses this directory: {}.", with_causes(&error)));
            None
        }
    };
    steps.at(2);
    drop(steps);
    let (mut kills, mut power_cuts) = (None, None);
    if captures.is_some() {
        let deadline = began + Duration::from_secs(args.seconds);
        let killed = kill_again_and_again(&proof.path().join("kills"), args.kills, deadline, &victim, output)?;
        if killed.kills < args.kills {
            let of = format!("{} of {} kills", killed.kills, args.kills);
            notes.push(format!("Time was up after {of}: this machine is slow or busy. --seconds gives it more."));
        }
        problems.extend(judge_kills(&killed));
        kills = Some(killed);
        let progress = output.progress("power cuts", args.power_cuts.into(), Unit::Events);
        let cut = inspect::power_cuts(&proof, args.power_cuts, &mut |done| progress.at(done.into()))?;
        problems.extend(judge_cuts(&cut));
        power_cuts = Some(cut);
    }
    drop(proof);
    let verdict = if problems.is_empty() { "fine" } else { "found" };
    let took_seconds = began.elapsed().as_secs_f64();
    let proof = Proof { verdict, problems, notes, disk, captures, kills, power_cuts, took_seconds };
    if output.is_json() {
        output.json(&proof)?
    } else {
        print(&proof, output)?
    }
    Ok(if proof.problems.is_empty() { Verdict::Fine } else { Verdict::Found })
}

/// The directory, or the nearest one above it that exists: a queue directory is created by its program.
fn nearest_existing(dir: &Path) -> PathBuf {
    let absolute = std::path::absolute(dir).unwrap_or_else(|_| dir.to_path_buf());
    let found = absolute.ancestors().find(|path| path.exists()).map(Path::to_path_buf);
    found.unwrap_or(absolute)
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let (mut text, mut source) = (error.to_string(), error.source());
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

// ---- captures
// --------------------------------------------------------------------------------------------------------------------

/// Events measured one by one, and between two pauses.
const MEASURED: usize = 20_000;
const AT_A_TIME: usize = 200;
const WARM_UP: usize = 1000;
const PAUSE: Duration = Duration::from_millis(1);
/// Events of each thread in the burst. Those of eight fit into the journal.
const BURST: u64 = 3000;
const THREADS_MOST: usize = 8;

fn typical_event(number: u64) -> Event {
    let event =
        Event::new("proof", "posthog-queue").prop("number", number).prop("plan", "pro").prop("workspace", "ws_abc");
    event.prop("duration_ms", 12.5).prop("ok", true)
}

fn measure_captures(dir: &Path) -> Result<Captures, posthog::Error> {
    let client = inspect::proof_client(dir, None)?;
    let mut times = Vec::with_capacity(MEASURED);
    for number in 0..WARM_UP + MEASURED {
        let event = typical_event(number as u64);
        let before = Instant::now();
        let _receipt = client.capture(event);
        if number >= WARM_UP {
            times.push(before.elapsed());
        }
        if number.is_multiple_of(AT_A_TIME) {
            std::thread::sleep(PAUSE);
        }
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MOST);
    let start = Arc::new(Barrier::new(threads));
    let capturing: Vec<JoinHandle<(Duration, u64)>> = (0..threads)
        .map(|_| {
            let (client, start) = (client.clone(), Arc::clone(&start));
            std::thread::spawn(move || {
                start.wait();
                let before = Instant::now();
                let accepted = (0..BURST).filter(|number| client.capture(typical_event(*number)).is_accepted()).count();
                (before.elapsed(), accepted as u64)
            })
        })
        .collect();
    let ended: Vec<_> = capturing.into_iter().filter_map(|thread| thread.join().ok()).collect();
    let accepted = ended.iter().map(|(_, accepted)| accepted).sum::<u64>();
    let longest = ended.iter().map(|(took, _)| *took).max().unwrap_or_default().max(Duration::from_nanos(1));
    drop(client);
    // The space is needed for what follows.
    let _ = std::fs::remove_dir_all(dir);
    Ok(Captures {
        latency: Latencies::of(times),
        threads,
        accepted_per_second: accepted as f64 / longest.as_secs_f64(),
        accepted,
        dropped: BURST * threads as u64 - accepted,
    })
}

// ---- kills
// --------------------------------------------------------------------------------------------------------------------

/// The victim, or none while there is none.
type Victim = Arc<Mutex<Option<Child>>>;

/// A victim lives at most this long after its first event, or after its start if it is killed while it opens the queue.
const LIFE_MOST_MILLIS: u64 = 250;
const OPENING_MOST_MILLIS: u64 = 60;
/// One victim in this many is killed while it opens the queue.
const KILLED_EARLY: u64 = 4;
/// A debug build on a busy machine needs seconds to open a queue.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// Time kept for the last comparison and the power cuts.
const TIME_KEPT: Duration = Duration::from_secs(5);

/// A random number; good enough for moments.
fn random(below: u64) -> u64 {
    (Uuid::now_v7().as_u128() as u32 as u64) % below.max(1)
}

fn stop(victim: &mut Option<Child>) {
    if let Some(mut child) = victim.take() {
        // It may have ended by itself.
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn kill_again_and_again(
    dir: &Path,
    kills: u32,
    deadline: Instant,
    victim: &Victim,
    output: &Output,
) -> Result<Kills, Failure> {
    let progress = output.progress("kills", kills.into(), Unit::Events);
    let (mut accepted, mut missed) = (HashSet::new(), HashSet::new());
    let mut result = Kills::default();
    while result.kills < kills && Instant::now() + TIME_KEPT < deadline {
        let is_early = result.kills > 0 && random(KILLED_EARLY) == 0;
        accepted.extend(one_life(dir, is_early, victim)?);
        result.kills += 1;
        result.while_opening += u32::from(is_early);
        compare(dir, &accepted, &mut missed, &mut result)?;
        progress.at(result.kills.into());
    }
    // What recovery makes of the last kill.
    drop(inspect::proof_client(dir, Some(SMALL_JOURNAL))?);
    compare(dir, &accepted, &mut missed, &mut result)?;
    (result.accepted, result.lost) = (accepted.len() as u64, missed.len() as u64);
    std::fs::remove_dir_all(dir)?;
    Ok(result)
}

/// Starts a victim, kills it at a random moment, and returns the uuids of the events that it had reported as accepted.
fn one_life(dir: &Path, is_early: bool, victim: &Victim) -> Result<Vec<Uuid>, Failure> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("prove-victim").arg(dir).stdin(Stdio::null()).stdout(Stdio::piped());
    // Ctrl-C is for the process that removes the directory.
    command.process_group(0);
    let pipe = {
        let mut victim = victim.lock().unwrap_or_else(PoisonError::into_inner);
        let mut child = command.spawn()?;
        let pipe = child.stdout.take();
        *victim = Some(child);
        pipe.ok_or("the process to be killed has no standard output")?
    };
    let (first, reading) = read_reports(pipe);
    let started = if is_early {
        std::thread::sleep(Duration::from_millis(random(OPENING_MOST_MILLIS)));
        Ok(())
    } else {
        let started = first.recv_timeout(START_PATIENCE);
        std::thread::sleep(Duration::from_millis(random(LIFE_MOST_MILLIS)));
        started
    };
    stop(&mut victim.lock().unwrap_or_else(PoisonError::into_inner));
    let reported = reading.join().map_err(|_| "the thread that reads reports has panicked")??;
    match started {
        Ok(()) => Ok(reported),
        Err(RecvTimeoutError::Timeout) => {
            Err(format!("the process to be killed accepted no event within {} s", START_PATIENCE.as_secs()).into())
        }
        Err(RecvTimeoutError::Disconnected) => Err("the process to be killed has ended by itself".into()),
    }
}

/// Reads reports until the process has ended. The channel says when the first one has come.
fn read_reports(mut pipe: ChildStdout) -> (Receiver<()>, JoinHandle<std::io::Result<Vec<Uuid>>>) {
    let (first, came) = channel();
    let reading = std::thread::spawn(move || {
        let (mut bytes, mut piece) = (Vec::new(), [0; 4096]);
        loop {
            let read = pipe.read(&mut piece)?;
            if read == 0 {
                break;
            }
            bytes.extend_from_slice(piece.get(..read).unwrap_or_default());
            if bytes.len() >= size_of::<Uuid>() {
                // Nobody listens after the first time.
                let _ = first.send(());
            }
        }
        // A last report that is incomplete was not made.
        let (reports, _) = bytes.as_chunks::<16>();
        Ok(reports.iter().map(|uuid| Uuid::from_bytes(*uuid)).collect())
    });
    (came, reading)
}

/// Every accepted event must be there, exactly once.
fn compare(
    dir: &Path,
    accepted: &HashSet<Uuid>,
    missed: &mut HashSet<Uuid>,
    result: &mut Kills,
) -> Result<(), Failure> {
    if !dir.exists() && accepted.is_empty() {
        return Ok(());
    }
    let (found, damage) = inspect::stored_uuids(dir)?;
    missed.extend(accepted.iter().filter(|uuid| !found.contains_key(uuid)));
    result.twice = result.twice.max(found.values().filter(|times| **times > 1).count() as u64);
    result.damaged = result.damaged.max(damage.len() as u64);
    Ok(())
}

/// Events of one victim at most, and in a burst.
const VICTIM_EVENTS: u64 = 20_000;
const VICTIM_BURST: u64 = 48;
const VICTIM_PAUSE_MICROS: u64 = 8000;

/// Captures until it is killed. Writes the 16 bytes of each uuid to standard output as soon as its event is accepted.
pub(crate) fn run_victim(args: &VictimArgs) -> Result<Verdict, Failure> {
    let client: Client = inspect::proof_client(&args.dir, Some(SMALL_JOURNAL))?;
    let (mut out, mut captured) = (std::io::stdout().lock(), 0);
    loop {
        for _ in 0..random(VICTIM_BURST) {
            let size = if random(100) == 0 { random(20_000) } else { random(300) };
            let receipt = client.capture(typical_event(captured).prop("text", "x".repeat(size as usize)));
            if let Some(uuid) = receipt.uuid() {
                // Fails when the parent is gone.
                out.write_all(uuid.as_bytes())?;
                out.flush()?;
            }
            captured += 1;
        }
        if captured > VICTIM_EVENTS {
            return Ok(Verdict::Fine);
        }
        std::thread::sleep(Duration::from_micros(random(VICTIM_PAUSE_MICROS)));
    }
}

// ---- the result
// --------------------------------------------------------------------------------------------------------------------

fn judge_kills(kills: &Kills) -> Option<String> {
    let Kills { lost, twice, damaged, accepted, .. } = kills;
    (lost + twice + damaged > 0).then(|| {
        format!(
            "Of {accepted} events that were accepted before a kill, {lost} are lost, {twice} are there twice, and \
             {damaged} places are damaged. Do not use this disk, and report it as a defect."
        )
    })
}

fn judge_cuts(cuts: &PowerCuts) -> Option<String> {
    let PowerCuts { lost, twice, damaged, persisted, .. } = cuts;
    (lost + twice + damaged > 0).then(|| {
        format!(
            "Of {persisted} events that were persisted before a simulated power cut, {lost} are lost, {twice} are \
             there twice, and {damaged} places are damaged. Report it as a defect of the library."
        )
    })
}

fn print(proof: &Proof, output: &mut Output) -> Result<(), Failure> {
    let disk = &proof.disk;
    if proof.problems.is_empty() {
        output.line(output.toned(Tone::Good, "Fine: this disk keeps what the library promises."))?;
    }
    for problem in &proof.problems {
        wrapped(problem).iter().try_for_each(|line| output.line(output.toned(Tone::Bad, line)))?;
    }
    for note in &proof.notes {
        wrapped(note).iter().try_for_each(|line| output.line(output.toned(Tone::Warning, line)))?;
    }
    output.line("")?;
    let device = disk.device.as_ref().map(|device| format!(" ({device})")).unwrap_or_default();
    output.line(format!("Disk      {}", shown(&disk.path)))?;
    output.line(format!("          {}{device}, {} free", disk.file_system, size(disk.free_bytes)))?;
    let mapped = if disk.is_mapped { "the journal is mapped" } else { "the journal is written, not mapped" };
    let locks = if disk.has_working_locks { "locks exclude other processes" } else { "locks do not work" };
    output.line(format!("          {mapped}; {locks}"))?;
    output.line("")?;
    output.line(format!("Sync      {}", times(&disk.sync_latency, false)))?;
    output.line("          of 4 KiB appended (fdatasync); below:")?;
    histogram(&disk.sync_latency).iter().try_for_each(|line| output.line(line))?;
    if let Some(captures) = &proof.captures {
        output.line("")?;
        output.line(format!("Capture   {}", times(&captures.latency, true)))?;
        let (threads, rate) = (captures.threads, captures.accepted_per_second);
        let dropped = match captures.dropped {
            0 => String::new(),
            dropped => format!("; {dropped} dropped, as the journal was full"),
        };
        let threads = if threads == 1 { "1 thread".to_owned() } else { format!("{threads} threads") };
        output.line(format!("          {}/s in a burst of {threads}{dropped}", grouped(rate as u64)))?;
    }
    output.line("")?;
    print_losses(proof, output)?;
    output.line("")?;
    output.line(format!("{:.0} s; the test directory is removed.", proof.took_seconds))
}

/// The table of what happened and what was lost.
fn print_losses(proof: &Proof, output: &mut Output) -> Result<(), Failure> {
    let mut rows = Vec::new();
    let row = |what: &str, tried: String, promised: String, bad: [u64; 2]| {
        let [lost, twice] = bad.map(grouped);
        vec![what.to_owned(), tried, promised, lost, twice]
    };
    if let Some(kills) = &proof.kills {
        let promised = format!("{} accepted", grouped(kills.accepted));
        rows.push(row("SIGKILL at any moment", times_tried(kills.kills), promised, [kills.lost, kills.twice]));
    }
    if let Some(cuts) = &proof.power_cuts {
        let promised = format!("{} persisted", grouped(cuts.persisted));
        // The simulation takes memory for a disk.
        let is_memory = proof.disk.medium == QueueMedium::MemoryFileSystem;
        let what = if is_memory { "power cut (were it a disk)" } else { "power cut (simulated)" };
        rows.push(row(what, times_tried(cuts.cuts), promised, [cuts.lost, cuts.twice]));
    }
    if !rows.is_empty() {
        output.table(&["WHAT HAPPENED", "TRIED", "EVENTS", "LOST", "TWICE"], rows)?;
    }
    if let Some(cuts) = proof.power_cuts {
        let (newer, kept) = (grouped(cuts.not_persisted), grouped(cuts.not_persisted_but_kept));
        output.line("")?;
        for line in wrapped(&format!(
            "{newer} events were accepted shortly before the power cuts and not persisted yet; {kept} of them were \
             kept. Wait for `persisted()` where that matters. What the disk's own cache does in a real power cut \
             cannot be tested without one."
        )) {
            output.line(line)?;
        }
    }
    Ok(())
}

fn times_tried(count: u32) -> String {
    if count == 1 { "once".to_owned() } else { format!("{count} times") }
}

fn times(latencies: &Latencies, is_many: bool) -> String {
    let of = |name: &str, seconds| format!("{name} {}", time(seconds));
    let mut parts = vec![of("min", latencies.min_seconds), of("median", latencies.median_seconds)];
    parts.push(of("p99", latencies.p99_seconds));
    if is_many {
        parts.push(of("p99.9", latencies.p999_seconds));
    }
    parts.push(of("max", latencies.max_seconds));
    parts.join(", ")
}

const BAR: u64 = 48;

fn histogram(latencies: &Latencies) -> Vec<String> {
    let most = latencies.histogram.iter().map(|range| range.count).max().unwrap_or(0).max(1);
    let line = |range: &inspect::LatencyRange| {
        let len = (range.count * BAR).div_ceil(most);
        let bar = "#".repeat(usize::try_from(len).unwrap_or(0));
        format!("{:>18}  {:>6}  {bar}", time(range.below_seconds), grouped(range.count)).trim_end().to_owned()
    };
    latencies.histogram.iter().map(line).collect()
}

/// A time with its unit, two or three digits.
fn time(seconds: f64) -> String {
    let (value, unit) = match seconds {
        s if s < 1e-6 => (s * 1e9, "ns"),
        s if s < 1e-3 => (s * 1e6, "us"),
        s if s < 1.0 => (s * 1e3, "ms"),
        s => (s, "s"),
    };
    if value < 10.0 { format!("{value:.1} {unit}") } else { format!("{value:.0} {unit}") }
}

fn size(bytes: u64) -> String {
    let (mut value, mut unit) = (bytes as f64, "B");
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, next);
    }
    if value < 10.0 && unit != "B" { format!("{value:.1} {unit}") } else { format!("{value:.0} {unit}") }
}

/// With commas between thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Lines of at most 80 characters, as far as the words allow it.
fn wrapped(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= 80 => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}
