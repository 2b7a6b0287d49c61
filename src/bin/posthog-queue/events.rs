//! Events of queues: the options that choose some of them, the walk through all queues that are meant, and how one is
//! shown.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::Args;
use jiff::civil::Date;
use jiff::{SignedDuration, Timestamp};
use posthog::inspect::{Content, EventFilter, EventPlace, EventState, QueueDir, StoredEvent};
use serde::Serialize;

use crate::output::{Output, Unit, shown, visible};
use crate::target::Target;
use crate::{Failure, Verdict};

/// Gets an event and its queue; breaks off the walk.
type Each<'a> = &'a mut dyn FnMut(&mut Output, &QueueDir, &StoredEvent<'_>) -> Result<ControlFlow<()>, Failure>;

/// Which events.
#[derive(Clone, Debug, Args)]
pub(crate) struct Choice {
    #[command(flatten)]
    pub(crate) target: Target,
    /// Only events of this name; may be repeated
    #[arg(long, value_name = "NAME")]
    event: Vec<String>,
    /// Only events of this person; may be repeated
    #[arg(long, value_name = "ID")]
    distinct_id: Vec<String>,
    /// Only events whose time is this or later: 2026-01-31, 2026-01-31T12:00:00Z, or 2h for two hours ago
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<SystemTime>,
    /// Only events whose time is earlier than this
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<SystemTime>,
    /// Only events that are there: waiting in the store, waiting in the journal, or rejected by PostHog
    #[arg(long, value_name = "STATE", value_parser = ["queued", "journal", "dead"])]
    state: Vec<String>,
    #[command(flatten)]
    pub(crate) scratch: Scratch,
}

/// Where copies of queues are made that living processes own.
#[derive(Clone, Debug, Args)]
pub(crate) struct Scratch {
    /// Where a queue is copied to that a living process owns [default: TMPDIR, or /tmp]
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
}

impl Scratch {
    pub(crate) fn dir(&self) -> PathBuf {
        self.scratch.clone().unwrap_or_else(std::env::temp_dir)
    }
}

/// A time, or how long ago.
pub(crate) fn time(text: &str) -> Result<SystemTime, String> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return SystemTime::try_from(time).map_err(|error| error.to_string());
    }
    if text.parse::<Date>().is_ok() {
        return time(&format!("{text}T00:00:00Z"));
    }
    let ago = duration(text)
        .map_err(|_| "neither a time (2026-01-31T12:00:00Z), a date, nor how long ago (90s, 30min, 2h, 7d)")?;
    SystemTime::now().checked_sub(ago).ok_or_else(|| "too long ago".into())
}

/// How long: `90s`, `30min`, `2h`, `7d`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "not a duration: 90s, 30min, 2h, 7d".to_owned();
    if let Some(days) = text.trim().strip_suffix('d') {
        let days: u64 = days.trim().parse().map_err(|_| wrong())?;
        return days.checked_mul(86_400).map(Duration::from_secs).ok_or_else(wrong);
    }
    let duration: SignedDuration = text.parse().map_err(|_| wrong())?;
    Duration::try_from(duration).map_err(|_| wrong())
}

impl Choice {
    /// All events below a directory.
    pub(crate) fn of(dir: Option<PathBuf>, scratch: Scratch) -> Self {
        let (event, distinct_id, state) = (Vec::new(), Vec::new(), Vec::new());
        Self { target: Target::of(dir), event, distinct_id, since: None, until: None, state, scratch }
    }

    pub(crate) fn filter(&self) -> EventFilter {
        let states = [EventState::Queued, EventState::Journal, EventState::Dead];
        let mut filter = EventFilter::default();
        filter.states = states.into_iter().filter(|state| self.state.iter().any(|name| name == state.name())).collect();
        filter.events.clone_from(&self.event);
        filter.distinct_ids.clone_from(&self.distinct_id);
        (filter.since, filter.until) = (self.since, self.until);
        filter
    }

    /// Passes the events that are meant to `each`, queue by queue, the oldest first and the dead letters last.
    pub(crate) fn walk(&self, output: &mut Output, filter: &EventFilter, each: Each<'_>) -> Result<Verdict, Failure> {
        let (queues, mut verdict) = (self.target.queues()?, Verdict::Fine);
        let (many, scratch) = (queues.len() > 1, self.scratch.dir());
        for queue in &queues {
            match walk_one(queue, &scratch, output, filter, each) {
                Ok((ControlFlow::Break(()), found)) => return Ok(verdict.max(found)),
                Ok((ControlFlow::Continue(()), found)) => verdict = verdict.max(found),
                // What the others contain is worth knowing all the same.
                Err(Problem::OfQueue(error)) if many => {
                    output.failed(error.as_ref());
                    verdict = Verdict::CouldNot;
                }
                Err(Problem::OfQueue(error) | Problem::OfOutput(error)) => return Err(error),
            }
        }
        Ok(verdict)
    }
}

enum Problem {
    OfQueue(Failure),
    OfOutput(Failure),
}

fn walk_one(
    queue: &QueueDir,
    scratch: &std::path::Path,
    output: &mut Output,
    filter: &EventFilter,
    each: Each<'_>,
) -> Result<(ControlFlow<()>, Verdict), Problem> {
    let of_queue = |error: posthog::inspect::InspectError| Problem::OfQueue(error.into());
    let owner = queue.owner().map_err(of_queue)?;
    let reader = {
        let bar = owner.map(|_| output.progress("Copying", bytes_in(queue), Unit::Bytes));
        queue.read_with(scratch, &|done| bar.iter().for_each(|bar| bar.at(done))).map_err(of_queue)?
    };
    if let Some(pid) = owner.and_then(|owner| owner.pid).filter(|_| reader.is_copy() && !output.is_json()) {
        output.note(&format!("Process {pid} owns {}: this is a copy of one moment.", shown(queue.path())));
    }
    let (mut flow, mut verdict, mut failure) = (ControlFlow::Continue(()), Verdict::Fine, None);
    let walked = reader.content(&mut |content| {
        let event = match &content {
            Content::Event(event) => event,
            Content::Damage(damage) => {
                output.note(&format!("Damaged: {damage}"));
                verdict = verdict.max(Verdict::Found);
                return ControlFlow::Continue(());
            }
            _ => return ControlFlow::Continue(()),
        };
        let passed = match filter.matches(event) {
            Ok(true) => each(output, queue, event),
            Ok(false) => Ok(ControlFlow::Continue(())),
            Err(error) => {
                output.note(&format!("Damaged: {error}"));
                verdict = verdict.max(Verdict::Found);
                Ok(ControlFlow::Continue(()))
            }
        };
        flow = passed.unwrap_or_else(|error| {
            failure = Some(error);
            ControlFlow::Break(())
        });
        flow
    });
    match failure {
        Some(failure) => Err(Problem::OfOutput(failure)),
        None => walked.map(|()| (flow, verdict)).map_err(of_queue),
    }
}

fn bytes_in(queue: &QueueDir) -> u64 {
    let entries = std::fs::read_dir(queue.path()).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).filter(|file| file.is_file()).map(|file| file.len()).sum()
}

/// An event without its properties: a line of `list`.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) queue: String,
    pub(crate) lane: &'static str,
    pub(crate) sequence: u64,
    pub(crate) state: &'static str,
    /// Since when it is in that state; null in the journal.
    pub(crate) since: Option<String>,
    pub(crate) event: String,
    pub(crate) distinct_id: String,
    pub(crate) uuid: String,
    pub(crate) timestamp: String,
    pub(crate) bytes: u64,
    /// Of a dead letter.
    pub(crate) status: Option<u16>,
    pub(crate) reason: Option<String>,
    pub(crate) attempts: Option<u32>,
    #[serde(skip)]
    pub(crate) in_state_since: Option<SystemTime>,
}

impl Row {
    pub(crate) fn of(queue: &QueueDir, event: &StoredEvent<'_>) -> Result<Self, Failure> {
        let summary = event.summary()?;
        let in_state_since = match &event.place {
            EventPlace::Store { since } => Some(*since),
            EventPlace::DeadLetter { last_attempt, .. } => Some(*last_attempt),
            _ => None,
        };
        let (status, reason, attempts) = match &event.place {
            EventPlace::DeadLetter { status, reason, attempts, .. } => {
                (Some(*status), Some(reason.clone()), Some(*attempts))
            }
            _ => (None, None, None),
        };
        Ok(Self {
            queue: queue.path().to_string_lossy().into_owned(),
            lane: queue.lane(),
            sequence: event.sequence,
            state: event.place.state().name(),
            since: in_state_since.map(rfc3339),
            event: summary.event.to_owned(),
            distinct_id: summary.distinct_id.to_owned(),
            uuid: summary.uuid.to_string(),
            timestamp: rfc3339(summary.timestamp),
            bytes: event.bytes() as u64,
            status,
            reason,
            attempts,
            in_state_since,
        })
    }
}

/// A time as RFC 3339 in UTC.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    Timestamp::try_from(time).map(|time| time.to_string()).unwrap_or_default()
}

/// `5 s`, `3 min`, `2 h`, `9 d`.
pub(crate) fn age(since: SystemTime) -> String {
    let seconds = SystemTime::now().duration_since(since).unwrap_or_default().as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// `312`, `4.1K`, `2.0M`: at most five characters.
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0..10_000 => bytes.to_string(),
        10_000..1_023_949 => format!("{:.0}K", bytes as f64 / 1024.0),
        _ => format!("{:.1}M", bytes as f64 / 1_048_576.0),
    }
}

/// `1,234,567`.
pub(crate) fn number(number: u64) -> String {
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

/// `1 event`, `2,000 events`.
pub(crate) fn events(count: u64) -> String {
    format!("{} event{}", number(count), if count == 1 { "" } else { "s" })
}

/// The text in exactly `width` columns, on one line.
pub(crate) fn cell(text: &str, width: usize) -> String {
    let (text, mut cell) = (visible(text), String::new());
    for (at, char) in text.chars().enumerate() {
        if at + 1 == width && text.chars().count() > width {
            cell.push('~');
            break;
        }
        cell.push(char);
    }
    let missing = width.saturating_sub(cell.chars().count());
    cell + &" ".repeat(missing)
}
