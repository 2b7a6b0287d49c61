//! The feature `metrics`: publishes [`Stats`] through the facade of that name, with the names of
//! [`Stats::to_prometheus`].
//!
//! The committer thread does it when it is awake anyway: at most once a second, and before it falls asleep without a
//! timer, so that the last values stay right while the client is idle. Nothing wakes for it, except once when delivery
//! begins or ends to fail, which concerns no file. Without a recorder it costs one look at the facade.
//!
//! The recorder is the program's code: it runs as a callback (see `reentry`), and its panics are caught.

use std::sync::atomic::{AtomicBool, Ordering};

use metrics::{Key, Label, Level, Metadata, Recorder, Unit, with_recorder};

use crate::report::{Kind, METRIC_FAMILIES, Stats};
use crate::sys::reentry::{calling_out, caught};

static METADATA: Metadata<'static> = Metadata::new("posthog", Level::INFO, Some("posthog"));

/// Publishes the statistics of one client.
#[derive(Debug, Default)]
pub(crate) struct Publisher {
    /// Whether the recorder has the help texts.
    is_described: AtomicBool,
    has_panicked: AtomicBool,
}

/// What became of an attempt to publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Published {
    /// The recorder has the values, or there is none.
    Yes,
    /// The recorder panicked for the first time.
    FirstPanic,
    /// It panicked again.
    Panic,
}

impl Publisher {
    /// Whether the program has installed a recorder. A recorder without any state is taken for none: the facade has
    /// one such that does nothing, and no other way to tell it.
    pub(crate) fn is_wanted() -> bool {
        calling_out(|| caught(|| with_recorder(|recorder| size_of_val(recorder) > 0))).unwrap_or(false)
    }

    /// Gives the values to the recorder.
    pub(crate) fn publish(&self, stats: &Stats) -> Published {
        let describes = !self.is_described.swap(true, Ordering::Relaxed);
        let published = calling_out(|| caught(|| with_recorder(|recorder| record(recorder, stats, describes))));
        match published {
            Some(()) => Published::Yes,
            None if self.has_panicked.swap(true, Ordering::Relaxed) => Published::Panic,
            None => Published::FirstPanic,
        }
    }
}

fn record(recorder: &dyn Recorder, stats: &Stats, describes: bool) {
    for family in METRIC_FAMILIES {
        if describes {
            let (name, unit) = (family.name.into(), unit(family.name));
            match family.kind {
                Kind::Counter => recorder.describe_counter(name, unit, family.help.into()),
                Kind::Gauge => recorder.describe_gauge(name, unit, family.help.into()),
            }
        }
        for (labels, value) in family.series(stats) {
            let labels: Vec<_> =
                labels.into_iter().map(|(name, value)| Label::from_static_parts(name, value)).collect();
            let key = Key::from_parts(family.name, labels);
            match family.kind {
                // A count: not negative, and exact in a `f64`.
                Kind::Counter => recorder.register_counter(&key, &METADATA).absolute(value as u64),
                Kind::Gauge => recorder.register_gauge(&key, &METADATA).set(value),
            }
        }
    }
}

fn unit(name: &str) -> Option<Unit> {
    match name {
        name if name.ends_with("_seconds") => Some(Unit::Seconds),
        name if name.ends_with("_bytes") => Some(Unit::Bytes),
        name if name.ends_with("_total") || name.ends_with("_events") => Some(Unit::Count),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use metrics::{Counter, Gauge, Histogram, KeyName, NoopRecorder, SharedString, with_local_recorder};

    use super::*;

    /// A recorder that panics at everything. It has a state, as any recorder that records.
    struct Panicking(#[allow(dead_code, reason = "it is what tells the recorder from none")] u8);

    impl Recorder for Panicking {
        fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {
            panic!("described")
        }

        fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {
            panic!("described")
        }

        fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {
            panic!("described")
        }

        fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
            panic!("counted")
        }

        fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
            panic!("measured")
        }

        fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
            panic!("measured")
        }
    }

    #[test]
    fn without_a_recorder_nothing_is_wanted() {
        assert!(!Publisher::is_wanted());
        assert!(!with_local_recorder(&NoopRecorder, Publisher::is_wanted));
        assert!(with_local_recorder(&Panicking(0), Publisher::is_wanted));
    }

    #[test]
    fn a_recorder_that_panics_is_noticed_once_and_harmless() {
        let (publisher, stats) = (Publisher::default(), Stats::disabled(Vec::new()));
        let attempts = with_local_recorder(&Panicking(0), || [(); 3].map(|()| publisher.publish(&stats)));
        assert_eq!(attempts, [Published::FirstPanic, Published::Panic, Published::Panic]);
        assert_eq!(publisher.publish(&stats), Published::Yes);
        assert_eq!(crate::sys::reentry::inside().depth, 0);
    }
}
