//! [`to_prometheus`]: the statuses of queues as metrics, for a monitoring that has no access to the programs
//! themselves.
//!
//! What means the same as in [`Stats::to_prometheus`](crate::Stats::to_prometheus) has the same name, from the same
//! table. There one program reports its lanes; here one text has the queues of many, alive or dead, so each series has
//! the labels `project`, `host`, `lane` and `shard`.

use std::time::{SystemTime, UNIX_EPOCH};

use super::status::QueueStatus;
use super::verdict::QueueState;
use crate::report::{DropReason, Kind, METRIC_FAMILIES, Stats, write_head, write_sample};

/// Metrics of a program that the status page does not have, or that are about its threads or the whole client.
const NOT_ON_THE_PAGE: [&str; 8] = [
    "posthog_events_dropped_total",
    "posthog_queue_unsynced_seconds",
    "posthog_orphaned_queues",
    "posthog_orphaned_events",
    "posthog_thread_up",
    "posthog_thread_busy_seconds",
    "posthog_health",
    "posthog_health_problem",
];
/// Of the tool, not of the queue.
const BUILD_INFO: &str = "posthog_build_info";
/// Known from the ledger, so also of a queue whose owner has said nothing of itself.
const OF_THE_LEDGER: [&str; 9] = [
    "posthog_events_accepted_total",
    "posthog_events_delivered_total",
    "posthog_events_dead_lettered_total",
    "posthog_events_evicted_total",
    "posthog_events_damaged_total",
    "posthog_events_lost_unsynced_total",
    "posthog_queue_events",
    "posthog_queue_bytes",
    "posthog_queue_oldest_age_seconds",
];

type Series = Vec<(Vec<(&'static str, &'static str)>, f64)>;

/// A metric that only an observer has.
struct Observed {
    name: &'static str,
    help: &'static str,
    kind: Kind,
    read: fn(&QueueStatus) -> Series,
}

const OBSERVED: &[Observed] = &[
    Observed {
        name: "posthog_events_dropped_total",
        help: "Events that were not accepted, in the last run of the program, by reason.",
        kind: Kind::Counter,
        read: dropped,
    },
    Observed {
        name: "posthog_queue_state",
        help: "How the queue is, as posthog-queue status judges it.",
        kind: Kind::Gauge,
        read: |status| {
            let is = status.verdict().state;
            QueueState::ALL.map(|state| (vec![("state", state.name())], f64::from(u8::from(state == is)))).into()
        },
    },
    Observed {
        name: "posthog_queue_owned",
        help: "1 if a living process has the queue open.",
        kind: Kind::Gauge,
        read: |status| single(f64::from(u8::from(status.owner.is_some()))),
    },
    Observed {
        name: "posthog_queue_last_seen_timestamp_seconds",
        help: "The last sign of life of the program, as Unix time. An idle program gives none.",
        kind: Kind::Gauge,
        read: |status| maybe(status.last_run.as_ref().and_then(|run| unix_time(run.last_seen))),
    },
    Observed {
        name: "posthog_queue_crash_reports",
        help: "Crash reports that wait to be sent.",
        kind: Kind::Gauge,
        read: |status| single(status.crash_reports as f64),
    },
    Observed {
        name: "posthog_queue_damaged_files",
        help: "Damaged files that were set aside and not removed yet.",
        kind: Kind::Gauge,
        read: |status| single(status.damaged_files.len() as f64),
    },
    Observed {
        name: "posthog_queue_directory_bytes",
        help: "Bytes that all files of the queue take on the disk.",
        kind: Kind::Gauge,
        read: |status| single(status.file_bytes as f64),
    },
    Observed {
        name: "posthog_queue_disk_free_bytes",
        help: "Bytes that are free on the file system of the queue.",
        kind: Kind::Gauge,
        read: |status| maybe(status.free_bytes.map(|bytes| bytes as f64)),
    },
];

/// The statuses in the text format of Prometheus, version 0.0.4, with the labels `project`, `host`, `lane` and `shard`.
/// Names that [`Stats::to_prometheus`](crate::Stats::to_prometheus) has too mean the same. A queue that a newer version
/// wrote has only `posthog_queue_state` and what the file system says.
///
/// For node_exporter's textfile collector, write it to a new file in the collector's directory and rename that, so that
/// no scrape reads half of it.
pub fn to_prometheus(statuses: &[QueueStatus]) -> String {
    let mut text = String::with_capacity(statuses.len().saturating_mul(8 * 1024));
    for family in METRIC_FAMILIES {
        if NOT_ON_THE_PAGE.contains(&family.name) || family.name == BUILD_INFO {
            continue;
        }
        let known = statuses.iter().filter(|status| status.newer_format.is_none());
        let series = known.filter_map(|status| {
            let stats = match status.as_stats() {
                Some(stats) => stats,
                None if OF_THE_LEDGER.contains(&family.name) => of_ledger(status),
                None => return None,
            };
            Some((status, family.series(&stats)))
        });
        write_family(&mut text, (family.name, family.kind, family.help), series);
    }
    for observed in OBSERVED {
        let series = statuses.iter().map(|status| (status, (observed.read)(status)));
        write_family(&mut text, (observed.name, observed.kind, observed.help), series);
    }
    text
}

fn write_family<'a>(
    text: &mut String,
    (name, kind, help): (&str, Kind, &str),
    all: impl Iterator<Item = (&'a QueueStatus, Series)>,
) {
    write_head(text, name, kind, help);
    for (status, series) in all {
        let shard = status.shard.to_string();
        let host = status.host.as_deref().unwrap_or("");
        let labels =
            [("project", status.project.as_str()), ("host", host), ("lane", status.lane), ("shard", shard.as_str())];
        for (own, value) in series {
            // The lane of the series is the queue's.
            let own = own.iter().filter(|(label, _)| *label != "lane").copied();
            let labels: Vec<_> = labels.into_iter().chain(own).collect();
            write_sample(text, name, &labels, value);
        }
    }
}

/// What the ledger says, where the owner has said nothing of itself.
fn of_ledger(status: &QueueStatus) -> Stats {
    Stats {
        accepted: status.accepted,
        delivered: status.delivered,
        queued_events: status.queued_events,
        queued_bytes: status.queued_bytes,
        dead_lettered: status.dead_lettered,
        evicted: status.evicted,
        damaged: status.damaged,
        lost_unsynced: status.lost_unsynced,
        oldest_age: status.oldest_age,
        ..Stats::disabled(Vec::new())
    }
}

/// Every reason, also those that never occurred: `increase()` does not see a series that begins with 1.
fn dropped(status: &QueueStatus) -> Series {
    if status.state.is_none() || status.lane != "analytics" {
        // The drops of both lanes are counted in this one.
        return Vec::new();
    }
    let of = |reason: DropReason| {
        let count = status.dropped.iter().find(|(found, _)| *found == reason).map_or(0, |(_, count)| *count);
        (vec![("reason", reason.name())], count as f64)
    };
    DropReason::ALL.map(of).into()
}

fn single(value: f64) -> Series {
    vec![(Vec::new(), value)]
}

fn maybe(value: Option<f64>) -> Series {
    value.map(single).unwrap_or_default()
}

fn unix_time(at: SystemTime) -> Option<f64> {
    at.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::path::Path;

    use super::*;
    use crate::report::{LaneState, parse_prometheus};

    fn status(path: &str) -> QueueStatus {
        QueueStatus::for_test(Path::new(path), 1_700_000_000_000_000_000)
    }

    #[test]
    fn the_text_is_what_a_strict_parser_reads_without_a_series_twice() {
        let project = "/q/0123456789abcdef0123456789abcdef";
        let mut described = status(&format!("{project}/shard-0"));
        described.state = Some(LaneState::for_test(1_700_000_000_000_000_000));
        described.host = Some("https://a\"b\\c\n".into());
        let of_ledger = QueueStatus { queued_events: 7, ..status(&format!("{project}/shard-1")) };
        let ai = status(&format!("{project}/ai/shard-0"));
        let newer = QueueStatus { newer_format: Some(2), ..status(&format!("{project}/shard-2")) };
        let families = parse_prometheus(&to_prometheus(&[described, of_ledger, ai, newer]));
        let mut seen = HashSet::new();
        for sample in families.iter().flat_map(|(_, _, samples)| samples) {
            assert!(seen.insert(format!("{} {:?}", sample.name, sample.labels)), "twice: {sample:?}");
            let names: Vec<_> = sample.labels.iter().take(4).map(|(name, _)| name.as_str()).collect();
            assert_eq!(names, ["project", "host", "lane", "shard"], "{sample:?}");
            let distinct: HashSet<_> = sample.labels.iter().map(|(name, _)| name).collect();
            assert_eq!(distinct.len(), sample.labels.len(), "a label twice: {sample:?}");
        }
        let queued = families.iter().find(|(name, ..)| name == "posthog_queue_events").map(|(_, _, samples)| samples);
        let queued: Vec<_> = queued.unwrap().iter().map(|sample| sample.value).collect();
        assert_eq!(queued, [0.0, 7.0, 0.0], "not of a queue that cannot be read");
        let with_limit = families.iter().find(|(name, ..)| name == "posthog_queue_limit_bytes").unwrap();
        assert_eq!(with_limit.2.len(), 1, "what an owner has not said has no series");
    }

    #[test]
    fn every_metric_of_a_client_is_there_or_left_out_on_purpose() {
        let text = to_prometheus(&[]);
        for family in METRIC_FAMILIES {
            let is_there = text.contains(&format!("# TYPE {} ", family.name));
            let is_dropped = family.name == "posthog_events_dropped_total";
            let is_left_out = NOT_ON_THE_PAGE.contains(&family.name) || family.name == BUILD_INFO;
            assert_eq!(is_there, !is_left_out || is_dropped, "{}", family.name);
        }
    }
}
