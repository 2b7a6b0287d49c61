//! The feature `metrics` with the recorder of a process. In a process of its own, which has no other recorder and no
//! other client.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ::metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit, set_global_recorder};
use posthog::{Client, Event};

use crate::apart::apart;
use crate::fixture::{PATIENCE, eventually, take};

/// Keeps the newest value of each series.
#[derive(Clone, Default)]
struct Values {
    counters: Series,
    gauges: Series,
    described: Arc<Mutex<BTreeSet<String>>>,
    panics: Arc<AtomicBool>,
    /// Captures an event at each description, as an exporter that logs might.
    client: Arc<Mutex<Option<Client>>>,
}

type Series = Arc<Mutex<BTreeMap<String, Arc<AtomicU64>>>>;

fn name_of(key: &Key) -> String {
    let mut labels: Vec<_> = key.labels().map(|label| format!("{}=\"{}\"", label.key(), label.value())).collect();
    labels.sort();
    if labels.is_empty() { key.name().to_owned() } else { format!("{}{{{}}}", key.name(), labels.join(",")) }
}

fn cell(series: &Series, key: &Key) -> Arc<AtomicU64> {
    Arc::clone(series.lock().unwrap_or_else(PoisonError::into_inner).entry(name_of(key)).or_default())
}

impl Values {
    fn describe(&self, name: &KeyName, description: &SharedString) {
        assert!(!description.is_empty());
        self.described.lock().unwrap().insert(name.as_str().to_owned());
        if let Some(client) = self.client.lock().unwrap().as_ref() {
            client.capture(Event::new("described", "recorder"));
        }
    }

    fn counter(&self, name: &str) -> Option<u64> {
        Some(self.counters.lock().unwrap().get(name)?.load(Ordering::SeqCst))
    }

    fn gauge(&self, name: &str) -> Option<f64> {
        Some(f64::from_bits(self.gauges.lock().unwrap().get(name)?.load(Ordering::SeqCst)))
    }

    fn names(&self) -> BTreeSet<String> {
        let of = |series: &Series| series.lock().unwrap().keys().cloned().collect::<Vec<_>>();
        [of(&self.counters), of(&self.gauges)].concat().into_iter().collect()
    }
}

impl Recorder for Values {
    fn describe_counter(&self, name: KeyName, _: Option<Unit>, description: SharedString) {
        self.describe(&name, &description);
    }

    fn describe_gauge(&self, name: KeyName, _: Option<Unit>, description: SharedString) {
        self.describe(&name, &description);
    }

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        assert!(!self.panics.load(Ordering::SeqCst), "a defect of the recorder");
        Counter::from_arc(cell(&self.counters, key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(cell(&self.gauges, key))
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

/// The series of the text for Prometheus, with their labels in the order of their names.
fn series_of(text: &str) -> BTreeSet<String> {
    let samples = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' '));
    let sorted = |(series, _): (&str, &str)| {
        let Some((name, labels)) = series.split_once('{') else { return series.to_owned() };
        let mut labels: Vec<_> = labels.trim_end_matches('}').split(',').collect();
        labels.sort_unstable();
        format!("{name}{{{}}}", labels.join(","))
    };
    samples.map(sorted).collect()
}

#[test]
fn a_recorder_gets_all_metrics_and_cannot_harm_the_client() {
    apart(
        |place| {
            let client = place.client();
            let recorder = Values::default();
            take(&client, "before");
            set_global_recorder(recorder.clone()).ok().unwrap();
            *recorder.client.lock().unwrap() = Some(client.clone());
            take(&client, "after");
            const DELIVERED: &str = "posthog_events_delivered_total{lane=\"analytics\"}";
            eventually("both are delivered", || client.flush().wait(PATIENCE).unwrap().remaining == 0);
            let delivered = client.stats().delivered;
            assert!(delivered >= 2);
            eventually("it is published", || recorder.counter(DELIVERED) >= Some(delivered));
            recorder.client.lock().unwrap().take();
            // One publication registers the series one after the other.
            let series = || series_of(&client.stats().to_prometheus());
            eventually("each series is published", || recorder.names() == series());
            let described = recorder.described.lock().unwrap().clone();
            assert!(described.contains("posthog_queue_events") && described.len() > 30, "{described:?}");
            eventually("it is ready", || recorder.gauge("posthog_health{status=\"ready\"}") == Some(1.0));

            recorder.panics.store(true, Ordering::SeqCst);
            let panics = |client: &Client| {
                client.diagnostics().iter().filter(|diagnostic| diagnostic.kind() == "callback_panicked").count()
            };
            take(&client, "while it panics");
            eventually("the panic is reported", || panics(&client) == 1);
            eventually("it is delivered", || client.flush().wait(PATIENCE).unwrap().remaining == 0);
            assert_eq!(panics(&client), 1);
            recorder.panics.store(false, Ordering::SeqCst);
            client.shutdown(PATIENCE).wait(PATIENCE).unwrap();
            eventually("the end is published", || recorder.gauge("posthog_health{status=\"failing\"}") == Some(1.0));

            // An outage is published although nothing is captured any more.
            let unreachable = place.config().host("http://127.0.0.1:9").flush_interval(PATIENCE);
            let client = Client::new(unreachable).unwrap();
            take(&client, "in an outage");
            drop(client.flush());
            let failing = "posthog_health_problem{cause=\"endpoint_failing\",lane=\"analytics\"}";
            eventually("the outage is published", || recorder.gauge(failing) == Some(1.0));
        },
        |fixture| {
            let names = fixture.names();
            for name in ["before", "after", "while it panics"] {
                assert!(names.iter().any(|found| found == name), "{name}: {names:?}");
            }
        },
    );
}
