//! `crash list` and `crash show`: reports of panics and fatal signals that wait to be sent.

use clap::{Args as ClapArgs, Subcommand};
use jiff::Timestamp;
use posthog::inspect::{Crash, CrashReport, CrashReportState};
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::output::{Output, Tone, shown, visible};
use crate::target::Target;
use crate::{Failure, Verdict};

#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Lists the crash reports that wait to be sent, and those that were given up. Changes nothing.
    List(Target),
    /// Shows a crash report as PostHog will get it, with its stack. Changes nothing.
    Show(ShowArgs),
}

#[derive(Debug, ClapArgs)]
struct ShowArgs {
    #[command(flatten)]
    target: Target,
    /// The report: the beginning of its name in `crash list`. Without it, the newest one
    #[arg(long, short, value_name = "NAME")]
    report: Option<String>,
}

pub(crate) fn run(args: Args, output: &mut Output) -> Result<Verdict, Failure> {
    match args.command {
        Command::List(target) => list(&target, output),
        Command::Show(args) => show(&args, output),
    }
}

/// The width of a line.
const LINE: usize = 80;

/// A report and the queue that it is in, as a line of JSON.
#[derive(Serialize)]
struct Listed {
    queue: String,
    name: String,
    #[serde(flatten)]
    report: CrashReport,
}

fn reports(target: &Target) -> Result<Vec<Listed>, Failure> {
    let mut found = Vec::new();
    for queue in target.queues()? {
        let path = queue.path().to_string_lossy().into_owned();
        let listed = |report: CrashReport| Listed { queue: path.clone(), name: report.name(), report };
        found.extend(queue.crash_reports()?.into_iter().map(listed));
    }
    // Of all queues together, the oldest first.
    let at = |listed: &Listed| listed.report.crashes.first().and_then(|crash| crash.timestamp_seconds).unwrap_or(0.0);
    found.sort_by(|a, b| at(a).total_cmp(&at(b)));
    Ok(found)
}

fn list(target: &Target, output: &mut Output) -> Result<Verdict, Failure> {
    let found = reports(target)?;
    let verdict = if found.is_empty() { Verdict::Fine } else { Verdict::Found };
    if output.is_json() {
        found.iter().try_for_each(|listed| output.json(listed))?;
        return Ok(verdict);
    }
    let count = |state| found.iter().filter(|listed| listed.report.state == state).count();
    let given_up = count(CrashReportState::GivenUp);
    let line = match (found.len() - given_up, given_up) {
        (0, 0) => output.toned(Tone::Good, "No crash report waits."),
        (waiting, 0) => output.toned(Tone::Warning, &format!("{} to be sent.", wait(waiting))),
        (0, given_up) => output.toned(Tone::Bad, &were_given_up(given_up)),
        (waiting, given_up) => {
            output.toned(Tone::Bad, &format!("{} to be sent; {}", wait(waiting), were_given_up(given_up)))
        }
    };
    output.line(line)?;
    if found.is_empty() {
        return Ok(verdict);
    }
    if given_up < found.len() {
        output.line("The next start of the program sends them. `crash show` shows the newest one.")?;
    }
    for listed in &found {
        output.line("")?;
        entries_of(listed).iter().try_for_each(|line| output.line(line))?;
    }
    Ok(verdict)
}

fn wait(count: usize) -> String {
    if count == 1 { "1 crash report waits".to_owned() } else { format!("{count} crash reports wait") }
}

fn were_given_up(count: usize) -> String {
    let reports = if count == 1 { "1 report was" } else { &format!("{count} reports were") };
    format!("{reports} given up: not all of it can be read or sent.")
}

/// Two lines for each crash, or for a file without a readable one.
fn entries_of(listed: &Listed) -> Vec<String> {
    let report = &listed.report;
    let entry = |time: String, pid: Option<u32>, cause: String| {
        let pid = pid.map(|pid| format!(" (process {pid})")).unwrap_or_default();
        let release = report.release.as_ref().map(|release| format!(", release {release}")).unwrap_or_default();
        // The beginning that `--report` needs: a name begins with random digits.
        let name: String = listed.name.chars().take(8).collect();
        let state = match report.state {
            CrashReportState::GivenUp => "given up".to_owned(),
            CrashReportState::InUse => "its process lives".to_owned(),
            _ if report.attempts > 0 => format!("read {} times without success", report.attempts),
            _ => "waits".to_owned(),
        };
        let program = visible(&format!("{}{pid}{release}", program(report))).into_owned();
        [
            beginning(&format!("{name}  {time:<20}  {program}"), LINE),
            beginning(&format!("          {}", visible(&cause)), LINE),
            format!("          {state}, {}", size(report.bytes)),
        ]
    };
    if report.crashes.is_empty() {
        return entry("?".to_owned(), None, damage(report).unwrap_or_default()).to_vec();
    }
    report.crashes.iter().flat_map(|crash| entry(time(crash), crash.pid, cause(crash))).collect()
}

fn cause(crash: &Crash) -> String {
    let survived = if crash.is_fatal { "" } else { " (survived)" };
    format!("{}: {}{survived}", crash.kind, crash.message.lines().next().unwrap_or_default())
}

fn damage(report: &CrashReport) -> Option<String> {
    match &report.problem {
        Some(problem) => Some(problem.clone()),
        None => {
            (report.damaged_bytes > 0).then(|| format!("damaged: {} of it cannot be read", size(report.damaged_bytes)))
        }
    }
}

fn program(report: &CrashReport) -> String {
    let path = report.executable.as_deref().unwrap_or("?");
    path.rsplit('/').next().unwrap_or(path).to_owned()
}

fn time(crash: &Crash) -> String {
    let at = crash.timestamp_seconds.and_then(|seconds| Timestamp::from_second(seconds as i64).ok());
    at.map_or_else(|| "?".to_owned(), |at| at.to_string())
}

fn size(bytes: u64) -> String {
    if bytes < 1024 { format!("{bytes} B") } else { format!("{:.1} KiB", bytes as f64 / 1024.0) }
}

fn beginning(text: &str, most: usize) -> String {
    if text.chars().count() <= most { text.to_owned() } else { text.chars().take(most - 3).collect::<String>() + "..." }
}

fn show(args: &ShowArgs, output: &mut Output) -> Result<Verdict, Failure> {
    let mut found = reports(&args.target)?;
    let wanted = args.report.as_deref().unwrap_or_default();
    found.retain(|listed| listed.name.starts_with(wanted));
    let Some(listed) = found.pop() else {
        if args.report.is_none() {
            if !output.is_json() {
                output.line(output.toned(Tone::Good, "No crash report waits."))?;
            }
            return Ok(Verdict::Fine);
        }
        return Err(format!("no crash report begins with {wanted:?}; `posthog-queue crash list` lists them").into());
    };
    if args.report.is_some() && !found.is_empty() {
        let names = found.iter().chain([&listed]).map(|listed| listed.name.as_str()).collect::<Vec<_>>().join(", ");
        return Err(format!("several crash reports begin with {wanted:?}: {names}").into());
    }
    let exceptions = listed.report.exceptions()?;
    if output.is_json() {
        for exception in &exceptions {
            output.json(&serde_json::from_str::<&RawValue>(exception)?)?;
        }
        return Ok(Verdict::Found);
    }
    for (crash, exception) in listed.report.crashes.iter().zip(&exceptions) {
        show_crash(crash, &listed.report, &serde_json::from_str(exception)?, output)?;
    }
    output.line(format!("file      {}", shown(&listed.report.path)))?;
    output.line(format!("          {}", fate(&listed.report)))?;
    if let Some(damage) = damage(&listed.report) {
        output.line(output.toned(Tone::Bad, &format!("          {damage}")))?;
    }
    Ok(Verdict::Found)
}

fn fate(report: &CrashReport) -> String {
    match report.state {
        CrashReportState::GivenUp => {
            "given up: what could not be read or sent of it stays here; it is not read again".to_owned()
        }
        CrashReportState::InUse => "its process is alive and sends it itself".to_owned(),
        _ if report.attempts > 0 => {
            format!("read {} times without success; after three it is given up", report.attempts)
        }
        _ => "the next start of the program sends it".to_owned(),
    }
}

fn show_crash(crash: &Crash, report: &CrashReport, event: &Value, output: &mut Output) -> Result<(), Failure> {
    let tone = if crash.is_fatal { Tone::Bad } else { Tone::Warning };
    // A message may have lines of its own; each is a line of one incident.
    for (at, line) in format!("{}: {}", crash.kind, crash.message).lines().enumerate() {
        let indent = if at == 0 { "" } else { "  " };
        output.line(format!("{indent}{}", output.toned(tone, line)))?;
    }
    let text = |name: &str| event["properties"][name].as_str().map(str::to_owned);
    let place = text("$exception_panic_file").map(|file| {
        let line = event["properties"]["$exception_panic_line"].as_u64().unwrap_or(0);
        format!("{file}:{line}")
    });
    let pid = crash.pid.map(|pid| format!(", process {pid}")).unwrap_or_default();
    let thread = crash.thread.as_ref().map(|name| format!(", thread {name}")).unwrap_or_default();
    let ended = if crash.is_fatal { "the process died of it" } else { "the process survived it" };
    let program = report.executable.clone().unwrap_or_else(|| "?".to_owned());
    let lines = [
        Some(("time", format!("{}; {ended}", time(crash)))),
        Some(("program", format!("{program}{pid}{thread}"))),
        report.release.clone().map(|release| ("release", release)),
        report.host_name.clone().map(|host| ("host", host)),
        place.map(|place| ("place", place)),
        text("$session_id").map(|session| ("session", session)),
        event["distinct_id"].as_str().map(|id| ("person", id.to_owned())),
        event["uuid"].as_str().map(|uuid| ("uuid", uuid.to_owned())),
    ];
    for (name, value) in lines.into_iter().flatten() {
        output.line(format!("{name:<10}{}", visible(&value)))?;
    }
    show_steps(event, output)?;
    for exception in event["properties"]["$exception_list"].as_array().into_iter().flatten() {
        show_stack(exception, output)?;
    }
    let unnamed = images_without_names(event);
    if !unnamed.is_empty() {
        output.line("")?;
        output.line("Frames without names belong to builds that are not on this machine with these ids:")?;
        for (file, id) in unnamed {
            output.line(format!("  {}  {}", visible(&file), visible(&id)))?;
        }
        output.line("PostHog names them once the symbols of the build are uploaded:")?;
        output.line("  posthog-cli symbol-sets upload --directory DIRECTORY_OF_THE_BUILD")?;
    }
    output.line("")
}

fn show_steps(event: &Value, output: &mut Output) -> Result<(), Failure> {
    let steps = event["properties"]["$exception_steps"].as_array().map(Vec::as_slice).unwrap_or_default();
    if steps.is_empty() {
        return Ok(());
    }
    output.line("\nBefore it:")?;
    for step in steps.iter().skip(steps.len().saturating_sub(10)) {
        let said = |name: &str| step[name].as_str().unwrap_or_default().to_owned();
        output.line(format!("  {}  {}", said("$timestamp"), beginning(&visible(&said("$message")), 50)))?;
    }
    Ok(())
}

/// Frames shown of a stack; of more, the innermost three quarters and the outermost quarter.
const FRAMES_SHOWN: usize = 40;

fn show_stack(exception: &Value, output: &mut Output) -> Result<(), Failure> {
    let frames = exception["stacktrace"]["frames"].as_array().map(Vec::as_slice).unwrap_or_default();
    output.line(format!(
        "\nStack of {}, the innermost call first:",
        visible(exception["type"].as_str().unwrap_or("it"))
    ))?;
    let hidden = frames.len().saturating_sub(FRAMES_SHOWN);
    let first_hidden = FRAMES_SHOWN / 4 * 3;
    for (at, frame) in frames.iter().rev().enumerate() {
        if hidden > 0 && at == first_hidden {
            output.line(format!("       ... {hidden} calls more (all of them with --json)"))?;
        }
        if (first_hidden..first_hidden + hidden).contains(&at) {
            continue;
        }
        let said = |name: &str| frame[name].as_str().unwrap_or_default();
        let mark = if frame["in_app"] == true { '>' } else { ' ' };
        let name = if said("function").is_empty() { said("instruction_addr") } else { said("function") };
        output.line(beginning(&format!("{mark} {at:3}  {}", visible(name)), LINE))?;
        if let (Some(file), Some(line)) = (frame["filename"].as_str(), frame["lineno"].as_u64()) {
            output.line(format!("         {}:{line}", visible(without_commit(file))))?;
        }
    }
    Ok(())
}

/// The path of a source of the standard library, `/rustc/<commit>/library/...`, without the commit.
fn without_commit(path: &str) -> &str {
    path.strip_prefix("/rustc/").and_then(|rest| rest.split_once('/')).map_or(path, |(_, rest)| rest)
}

/// The images of frames of which no name is known, each with its debug id.
fn images_without_names(event: &Value) -> Vec<(String, String)> {
    let stacks = event["properties"]["$exception_list"].as_array().into_iter().flatten();
    let frames = stacks.flat_map(|exception| exception["stacktrace"]["frames"].as_array().into_iter().flatten());
    // Without a name, the function is written as the image's file and an offset.
    let unnamed: Vec<_> = frames.filter(|frame| frame["client_resolved"] == false).collect();
    let images = event["properties"]["$debug_images"].as_array().into_iter().flatten();
    let is_needed = |image: &&Value| unnamed.iter().any(|frame| frame["image_addr"] == image["image_addr"]);
    let said = |image: &Value, name: &str| image[name].as_str().unwrap_or_default().to_owned();
    images.filter(is_needed).map(|image| (said(image, "code_file"), said(image, "debug_id"))).collect()
}
