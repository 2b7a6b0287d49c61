//! [`Stats`] as metrics: one table of names, read by [`Stats::to_prometheus`] and by the feature `metrics`.
//!
//! Names follow Prometheus' conventions: the prefix `posthog_`, base units in the name (`_seconds`, `_bytes`), `_total`
//! for counters. A name, a label or the meaning of a value does not change within a major version;
//! `docs/monitoring.md` lists them, and a test compares both.
//!
//! What grows only is a counter, also where the count belongs to the queue and may start again with another queue: that
//! is a reset, which `rate()` and `increase()` recognize. All else is a gauge. A state is a set of series, one for each
//! value it can have, of which one is 1 and the others are 0.

use std::fmt::Write;
use std::time::{Duration, UNIX_EPOCH};

use super::drop_reason::DropReason;
use super::health::{HealthCause, HealthStatus};
use super::stats::{DeliveryPhase, QueueMedium, Stats, StorageMode};

/// Whether a value can fall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Counter,
    Gauge,
}

/// The series of one name.
#[derive(Debug)]
pub(crate) struct Family {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) help: &'static str,
    read: Read,
}

/// Names and values of labels. All are fixed texts, so the number of series is bounded.
pub(crate) type Labels = Vec<(&'static str, &'static str)>;

/// How the values of a family are read.
#[derive(Clone, Copy, Debug)]
enum Read {
    /// One series for each queue, with its name as the label `lane`; none where there is no value.
    Lane(fn(&Stats) -> Option<f64>),
    /// A set of series for each queue: the label's name, its values, and the one that holds.
    State(&'static str, fn() -> Vec<&'static str>, fn(&Stats) -> Option<&'static str>),
    /// Series of the whole client.
    Client(fn(&Stats) -> Vec<(Labels, f64)>),
}

const fn counter(name: &'static str, help: &'static str, read: Read) -> Family {
    Family { name, kind: Kind::Counter, help, read }
}

const fn gauge(name: &'static str, help: &'static str, read: Read) -> Family {
    Family { name, kind: Kind::Gauge, help, read }
}

/// Every metric.
pub(crate) const FAMILIES: &[Family] = &[
    counter(
        "posthog_events_accepted_total",
        "Events accepted, in the life of the queue.",
        Read::Lane(|lane| Some(lane.accepted as f64)),
    ),
    counter(
        "posthog_events_delivered_total",
        "Events that PostHog has accepted.",
        Read::Lane(|lane| Some(lane.delivered as f64)),
    ),
    counter(
        "posthog_events_dead_lettered_total",
        "Events that PostHog rejected for good.",
        Read::Lane(|lane| Some(lane.dead_lettered as f64)),
    ),
    counter(
        "posthog_events_evicted_total",
        "Events deleted undelivered because of the bounds of the queue.",
        Read::Lane(|lane| Some(lane.evicted as f64)),
    ),
    counter(
        "posthog_events_damaged_total",
        "Events whose bytes were damaged on disk.",
        Read::Lane(|lane| Some(lane.damaged as f64)),
    ),
    counter(
        "posthog_events_lost_unsynced_total",
        "Events lost in a power cut before they were synced.",
        Read::Lane(|lane| Some(lane.lost_unsynced as f64)),
    ),
    counter(
        "posthog_events_dropped_total",
        "Events that were not accepted, in this process, by reason.",
        Read::Client(dropped),
    ),
    counter(
        "posthog_delivery_failures_total",
        "Requests that failed through no fault of an event, in this process.",
        Read::Lane(|lane| Some(lane.failed_attempts as f64)),
    ),
    gauge("posthog_queue_events", "Events that wait for delivery.", Read::Lane(|lane| Some(lane.queued_events as f64))),
    gauge("posthog_queue_bytes", "Bytes of the events that wait.", Read::Lane(|lane| Some(lane.queued_bytes as f64))),
    gauge(
        "posthog_queue_used_bytes",
        "Bytes that the events take of posthog_queue_limit_bytes.",
        Read::Lane(|lane| Some(lane.used_bytes as f64)),
    ),
    gauge(
        "posthog_queue_limit_bytes",
        "The bound of the queue in bytes.",
        Read::Lane(|lane| Some(lane.max_bytes as f64)),
    ),
    gauge(
        "posthog_queue_limit_events",
        "The bound of the queue in events. No series without such a bound.",
        Read::Lane(|lane| lane.max_events.map(|most| most as f64)),
    ),
    gauge(
        "posthog_queue_fill_ratio",
        "How full the queue is by bytes or events, whichever is more; 1 is full.",
        Read::Lane(|lane| Some(lane.fill())),
    ),
    gauge(
        "posthog_queue_file_bytes",
        "Bytes that the file of the queue takes on the disk.",
        Read::Lane(|lane| Some(lane.file_bytes as f64)),
    ),
    gauge(
        "posthog_queue_oldest_age_seconds",
        "How long the oldest event has been in the store; 0 if none is.",
        Read::Lane(|lane| Some(seconds(lane.oldest_age))),
    ),
    gauge(
        "posthog_queue_unsynced_seconds",
        "How long the oldest event that would not survive a power cut has waited for its sync; 0 if there is none.",
        Read::Lane(|lane| Some(seconds(lane.unsynced_for))),
    ),
    gauge(
        "posthog_queue_quarantined_events",
        "Events that delivery skips for now.",
        Read::Lane(|lane| Some(lane.quarantined as f64)),
    ),
    gauge(
        "posthog_queue_adopted_events",
        "Events in the queue of another process that is being delivered.",
        Read::Lane(|lane| Some(lane.adopted_events as f64)),
    ),
    gauge(
        "posthog_queue_replayed_events",
        "Events that were replayed from the journal when the queue was opened.",
        Read::Lane(|lane| Some(lane.replayed as f64)),
    ),
    gauge(
        "posthog_queue_rejecting",
        "1 while ordinary events are dropped.",
        Read::Lane(|lane| Some(f64::from(u8::from(lane.rejecting.is_some())))),
    ),
    gauge(
        "posthog_queue_medium",
        "What the queue is stored on.",
        Read::State(
            "medium",
            || QueueMedium::ALL.map(QueueMedium::name).into(),
            |lane| lane.medium.map(QueueMedium::name),
        ),
    ),
    gauge(
        "posthog_storage_mode",
        "Where the queue is kept, and whether that works.",
        Read::State("mode", || StorageMode::NAMES.into(), |lane| Some(lane.storage.name())),
    ),
    gauge(
        "posthog_delivery_phase",
        "What delivery is doing.",
        Read::State("phase", || DeliveryPhase::NAMES.into(), |lane| Some(lane.delivery.name())),
    ),
    gauge(
        "posthog_delivery_consecutive_failures",
        "Requests in a row that failed through no fault of an event.",
        Read::Lane(|lane| Some(f64::from(lane.consecutive_failures))),
    ),
    gauge(
        "posthog_delivery_retry_in_seconds",
        "Time until the next request, if delivery waits for it; otherwise 0.",
        Read::Lane(|lane| Some(seconds(lane.delivery.retry_in()))),
    ),
    gauge(
        "posthog_delivery_last_success_timestamp_seconds",
        "When PostHog last accepted an event, as Unix time. No series before the first time in this process.",
        Read::Lane(|lane| {
            let since_epoch = lane.last_success.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
            since_epoch.map(|since| since.as_secs_f64())
        }),
    ),
    gauge(
        "posthog_orphaned_queues",
        "Queues of other keys or hosts with events in them, as found at the start.",
        Read::Client(|stats| vec![(Vec::new(), stats.orphaned.queues as f64)]),
    ),
    gauge(
        "posthog_orphaned_events",
        "Events in these queues.",
        Read::Client(|stats| vec![(Vec::new(), stats.orphaned.events as f64)]),
    ),
    gauge(
        "posthog_thread_up",
        "1 if the thread of the client serves the queues.",
        Read::Client(|stats| {
            let up = |state: super::ThreadState| f64::from(u8::from(state.is_up()));
            threads(up(stats.commit_thread), up(stats.deliver_thread))
        }),
    ),
    gauge(
        "posthog_thread_busy_seconds",
        "How long the thread has been awake; 0 while it sleeps.",
        Read::Client(|stats| {
            let busy = |state: super::ThreadState| state.busy_for().as_secs_f64();
            threads(busy(stats.commit_thread), busy(stats.deliver_thread))
        }),
    ),
    gauge("posthog_health", "The status of the client.", Read::Client(health)),
    gauge("posthog_health_problem", "1 for each cause of a status that is not ready.", Read::Client(problems)),
    gauge(
        "posthog_build_info",
        "1, with the version of the library.",
        Read::Client(|_| vec![(vec![("version", env!("CARGO_PKG_VERSION"))], 1.0)]),
    ),
];

impl Family {
    /// The series of this family.
    pub(crate) fn series(&self, stats: &Stats) -> Vec<(Labels, f64)> {
        match self.read {
            Read::Client(read) => read(stats),
            Read::Lane(read) => {
                let of_lane = |(lane, stats)| Some((vec![("lane", lane)], read(stats)?));
                stats.lanes().filter_map(of_lane).collect()
            }
            Read::State(label, values, read) => {
                let of_lane = |(lane, stats): (&'static str, &Stats)| {
                    let is = read(stats);
                    let series = move |value| (vec![("lane", lane), (label, value)], holds(is == Some(value)));
                    values().into_iter().map(series)
                };
                stats.lanes().flat_map(of_lane).collect()
            }
        }
    }
}

fn holds(is: bool) -> f64 {
    f64::from(u8::from(is))
}

fn seconds(time: Option<Duration>) -> f64 {
    time.map_or(0.0, |time| time.as_secs_f64())
}

fn threads(commit: f64, deliver: f64) -> Vec<(Labels, f64)> {
    vec![(vec![("thread", "posthog-commit")], commit), (vec![("thread", "posthog-deliver")], deliver)]
}

/// Every reason, also those that never occurred: `increase()` does not see a series that begins with 1.
fn dropped(stats: &Stats) -> Vec<(Labels, f64)> {
    let of = |reason: DropReason| {
        let count = stats.dropped.iter().find(|(found, _)| *found == reason).map_or(0, |(_, count)| *count);
        (vec![("reason", reason.name())], count as f64)
    };
    DropReason::ALL.map(of).into()
}

fn health(stats: &Stats) -> Vec<(Labels, f64)> {
    let status = stats.health().status;
    HealthStatus::ALL.map(|other| (vec![("status", other.name())], holds(other == status))).into()
}

fn problems(stats: &Stats) -> Vec<(Labels, f64)> {
    let found = stats.health().problems;
    let has = |cause, lane| found.iter().any(|problem| problem.cause == cause && problem.lane == lane);
    let of = |lane: &'static str| {
        let labels = move |cause: HealthCause| vec![("lane", lane), ("cause", cause.name())];
        HealthCause::ALL.map(|cause| (labels(cause), holds(has(cause, lane))))
    };
    // The AI lane has no statistics while its queue cannot be opened, and that is a problem of it.
    ["analytics", "ai"].into_iter().flat_map(of).collect()
}

impl Stats {
    /// The snapshot in the text format of Prometheus, version 0.0.4 (content type `text/plain; version=0.0.4`), for an
    /// endpoint `/metrics`. `docs/monitoring.md` explains each metric and has expressions for alerts.
    ///
    /// Names and labels are stable. A program with several clients has to tell their series apart itself, because
    /// they have the same names.
    ///
    /// Follows the specification "Exposition formats" of Prometheus.
    ///
    /// ```
    /// # let client = posthog::Client::new(posthog::Config::disabled()).unwrap();
    /// let text = client.stats().to_prometheus();
    /// assert!(text.contains("\nposthog_queue_events{lane=\"analytics\"} 0\n"));
    /// ```
    pub fn to_prometheus(&self) -> String {
        let mut text = String::with_capacity(16 * 1024);
        for family in FAMILIES {
            write_head(&mut text, family.name, family.kind, family.help);
            for (labels, value) in family.series(self) {
                write_sample(&mut text, family.name, &labels, value);
            }
        }
        text
    }
}

/// Begins a family: what follows are its samples.
pub(crate) fn write_head(text: &mut String, name: &str, kind: Kind, help: &str) {
    let kind = if kind == Kind::Counter { "counter" } else { "gauge" };
    // Writing to a `String` does not fail.
    let _ = writeln!(text, "# HELP {name} {}", escaped(help, false));
    let _ = writeln!(text, "# TYPE {name} {kind}");
}

/// Writes one sample of the family that was begun last.
pub(crate) fn write_sample(text: &mut String, name: &str, labels: &[(&str, &str)], value: f64) {
    let _ = writeln!(text, "{name}{} {value}", braced(labels));
}

fn braced(labels: &[(&str, &str)]) -> String {
    if labels.is_empty() {
        return String::new();
    }
    let pairs: Vec<_> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value, true))).collect();
    format!("{{{}}}", pairs.join(","))
}

/// Escapes a value of a label, or a help text, where quotation marks stay as they are.
fn escaped(text: &str, is_label: bool) -> String {
    let mut escaped = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '\\' => escaped.push_str("\\\\"),
            '\n' => escaped.push_str("\\n"),
            '"' if is_label => escaped.push_str("\\\""),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
#[path = "prometheus_tests.rs"]
pub(super) mod tests;
