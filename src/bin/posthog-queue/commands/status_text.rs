//! The text of `status`: the verdict first, then a table of the queues, then what was found, and for a few queues all
//! that is known of each.

use std::time::{Duration, SystemTime};

use indicatif::{BinaryBytes, HumanCount};
use posthog::inspect::{QueueState, QueueStatus};

use super::status::{Found, Reading, text_of};
use crate::output::{Output, Tone, shown, visible, wrapped};
use crate::target::shortened;

/// Up to so many queues, everything that is known is shown.
const DETAILED_MOST: usize = 2;
/// The column at which the details begin.
const INDENT: usize = 12;

/// The text.
pub(crate) fn lines(readings: &[Reading], output: &Output) -> Vec<String> {
    let mut lines = headline(readings, output);
    let mut project = None;
    for reading in readings {
        let Ok(found) = &reading.found else { continue };
        if project.replace(&found.status.project) != Some(&found.status.project) {
            lines.push(String::new());
            lines.extend(project_head(&found.status));
            let of_it =
                |other: &&Reading| other.found.as_ref().is_ok_and(|other| other.status.project == found.status.project);
            lines.extend(table(readings.iter().filter(of_it).filter_map(|other| other.found.as_ref().ok())));
        }
    }
    lines.extend(findings(readings, output));
    if readings.len() <= DETAILED_MOST {
        for found in readings.iter().filter_map(|reading| reading.found.as_ref().ok()) {
            lines.push(String::new());
            let name = (readings.len() > 1).then(|| name_among(&found.status, readings));
            lines.extend(details(found, name));
        }
    }
    lines
}

fn tone(state: QueueState) -> Tone {
    match state {
        QueueState::Fine => Tone::Good,
        QueueState::Waiting | QueueState::Unknown => Tone::Warning,
        _ => Tone::Bad,
    }
}

/// The worst state first, and how many queues are in each.
fn headline(readings: &[Reading], output: &Output) -> Vec<String> {
    let state = |reading: &Reading| reading.found.as_ref().map_or(QueueState::Unknown, |found| found.verdict.state);
    let worst = readings.iter().map(state).max().unwrap_or(QueueState::Fine);
    let mut states: Vec<_> = readings.iter().map(state).collect();
    states.sort_unstable();
    states.dedup();
    let count = |wanted: &QueueState| {
        let many = readings.iter().filter(|reading| state(reading) == *wanted).count();
        format!("{many} {wanted}")
    };
    let queued: u64 =
        readings.iter().filter_map(|reading| reading.found.as_ref().ok()).map(|found| found.status.queued_events).sum();
    let events = if queued == 0 { "nothing queued".to_owned() } else { format!("{} queued", events(queued)) };
    let text = match readings {
        [_] => events,
        _ => {
            let each: Vec<_> = states.iter().rev().map(count).collect();
            format!("{events} in {} queues ({})", readings.len(), each.join(", "))
        }
    };
    let why = match readings {
        [Reading { found: Ok(found), .. }] => found.verdict.findings.first().map(|finding| finding.cause),
        _ => None,
    };
    let why = why.map(|cause| format!(" ({})", cause.replace('_', " "))).unwrap_or_default();
    vec![format!("{}{why}: {text}", output.toned(tone(worst), worst.name()))]
}

fn project_head(status: &QueueStatus) -> Vec<String> {
    let host = status.host.as_deref().unwrap_or("(host unknown)");
    let key = status.key.as_deref().unwrap_or("(key unknown)");
    let below = if status.lane == "ai" { 2 } else { 1 };
    let dir = status.path.ancestors().nth(below).unwrap_or(&status.path);
    vec![visible(&format!("{host}  {key}")).into_owned(), shown(dir)]
}

fn name(status: &QueueStatus) -> String {
    let name = if status.is_import { "importing".to_owned() } else { format!("shard-{}", status.shard) };
    if status.lane == "ai" { format!("ai/{name}") } else { name }
}

/// The name of a queue where those of several projects may be shown.
fn name_among(status: &QueueStatus, readings: &[Reading]) -> String {
    let projects = readings.iter().filter_map(|reading| Some(&reading.found.as_ref().ok()?.status.project));
    let is_alone = projects.into_iter().all(|project| *project == status.project);
    if is_alone { name(status) } else { format!("{}/{}", shortened(&status.project), name(status)) }
}

fn table<'a>(found: impl Iterator<Item = &'a Found>) -> Vec<String> {
    let rate = |rate: Option<f64>| rate.map_or("-".to_owned(), |rate| format!("{rate:.1}"));
    let row = |found: &Found| {
        let status = &found.status;
        vec![
            name(status),
            found.verdict.state.name().to_owned(),
            HumanCount(status.queued_events).to_string(),
            status.oldest_age.map_or("-".to_owned(), short),
            rate(found.accepted_per_second),
            rate(found.delivered_per_second),
            status.fill_percent.map_or("-".to_owned(), |percent| format!("{percent}%")),
            process(status),
        ]
    };
    let headings = ["QUEUE", "STATE", "QUEUED", "OLDEST", "IN/s", "OUT/s", "FULL", "PROCESS"];
    Output::table_lines(&headings, found.map(row).collect())
}

fn process(status: &QueueStatus) -> String {
    match &status.owner {
        None => "none".to_owned(),
        Some(owner) => {
            let pid = owner.pid.map_or("unknown".to_owned(), |pid| pid.to_string());
            let program = owner.program.as_deref().map(|name| format!(" {name}")).unwrap_or_default();
            format!("{pid}{program}")
        }
    }
}

/// What was found, with what to do.
fn findings(readings: &[Reading], output: &Output) -> Vec<String> {
    let mut lines = Vec::new();
    for reading in readings {
        let found = match &reading.found {
            Ok(found) => found,
            Err(error) => {
                lines.push(String::new());
                lines.push(format!("{}: {}", shown(&reading.path), output.toned(Tone::Bad, "cannot be read")));
                lines.extend(wrapped(&text_of(error), 2, 2));
                continue;
            }
        };
        for finding in &found.verdict.findings {
            lines.push(String::new());
            let state = output.toned(tone(finding.state), finding.state.name());
            let cause = finding.cause.replace('_', " ");
            lines.push(format!("{} {state}: {cause}", name_among(&found.status, readings)));
            lines.extend(wrapped(&finding.what, 2, 2));
            if !finding.advice.is_empty() {
                lines.extend(wrapped(&format!("-> {}", finding.advice), 2, 5));
            }
        }
    }
    lines
}

/// Everything that is known of a queue.
fn details(found: &Found, name: Option<String>) -> Vec<String> {
    let status = &found.status;
    let mut lines = Vec::from_iter(name);
    let mut add = |label: &str, text: String| {
        let text = format!("{label:<width$}{text}", width = INDENT - 2);
        lines.extend(wrapped(&text, 2, INDENT));
    };
    let count = |many: u64, what: &str| format!("{} {what}", HumanCount(many));
    let mut all = vec![
        count(status.accepted, "accepted"),
        count(status.delivered, "delivered"),
        count(status.queued_events, "queued"),
    ];
    let rare = [
        (status.dead_lettered, "dead-lettered"),
        (status.evicted, "evicted"),
        (status.damaged, "damaged"),
        (status.lost_unsynced, "lost unsynced"),
    ];
    all.extend(rare.into_iter().filter(|(many, _)| *many > 0).map(|(many, what)| count(many, what)));
    add("events", all.join(", "));
    if status.journal_events > 0 {
        add("", format!("{} of the queued are in the journal only", HumanCount(status.journal_events)));
    }
    if !status.dropped.is_empty() {
        let each: Vec<_> = status.dropped.iter().map(|(why, many)| count(*many, why.name())).collect();
        add("dropped", format!("in the last run: {}", each.join(", ")));
    }
    delivery(found, &mut add);
    storage(status, &mut add);
    owner(status, &mut add);
    if status.crash_reports + status.given_up_crash_reports > 0 {
        let given_up = match status.given_up_crash_reports {
            0 => String::new(),
            many => format!(", {} unreadable", HumanCount(many)),
        };
        add("crashes", format!("{} to be sent{given_up}", HumanCount(status.crash_reports)));
    }
    lines
}

fn delivery(found: &Found, add: &mut impl FnMut(&str, String)) {
    let status = &found.status;
    let Some(delivery) = &status.delivery else { return };
    if status.owner.is_some() {
        let failures = match delivery.consecutive_failures {
            0 => String::new(),
            1 => "; 1 failure in a row".to_owned(),
            many => format!("; {} failures in a row", HumanCount(many.into())),
        };
        let since = delivery.failing_since.map(|at| format!(" since {}", clock(at))).unwrap_or_default();
        add("delivery", format!("{}{failures}{since}", delivery.phase));
    } else {
        add("delivery", "none: no process has the queue open".to_owned());
    }
    if delivery.quarantined > 0 {
        add("", format!("{} skipped for now", events(delivery.quarantined)));
    }
    if let Some(at) = delivery.last_success {
        add("", format!("last success {}", clock(at)));
    }
    // What a finding says is not said again.
    let is_said = |error: &&String| found.verdict.findings.iter().any(|finding| finding.what.contains(error.as_str()));
    if let Some(error) = delivery.last_error.as_ref().filter(|error| !is_said(error)) {
        add("", format!("last error: {error}"));
    }
}

fn storage(status: &QueueStatus, add: &mut impl FnMut(&str, String)) {
    let mut parts = Vec::new();
    if status.owner.is_some() {
        parts.extend(status.storage.as_ref().map(ToString::to_string));
        parts.extend(status.medium.map(|medium| medium.to_string()));
    }
    parts.push(format!("files of {}", BinaryBytes(status.file_bytes)));
    parts.extend(status.free_bytes.map(|free| format!("{} free on the disk", BinaryBytes(free))));
    add("storage", parts.join(", "));
}

fn owner(status: &QueueStatus, add: &mut impl FnMut(&str, String)) {
    if let Some(owner) = &status.owner {
        let version =
            owner.library_version.as_deref().map(|version| format!(", library {version}")).unwrap_or_default();
        let since = owner.since.map(|at| format!(", since {}", clock(at))).unwrap_or_default();
        add("process", format!("{}{version}{since}", process(status)));
    } else if let Some(run) = &status.last_run {
        let end = match (run.closed, run.machine_restarted) {
            (true, _) => "closed the queue",
            (false, Some(true)) => "ended with the machine or before",
            (false, _) => "ended without closing the queue",
        };
        add("last run", format!("process {}, since {}, {end}", run.pid, clock(run.started_at)));
        add("", format!("last sign of life {}", clock(run.last_seen)));
    }
}

fn events(many: u64) -> String {
    if many == 1 { "1 event".to_owned() } else { format!("{} events", HumanCount(many)) }
}

fn clock(at: SystemTime) -> String {
    let at = jiff::Timestamp::try_from(at).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// A time in a column: `5 s`, `12 min`, `3 h`, `9 days`.
fn short(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7_200 => format!("{} min", seconds / 60),
        seconds @ 7_200..172_800 => format!("{} h", seconds / 3_600),
        seconds => format!("{} days", seconds / 86_400),
    }
}
