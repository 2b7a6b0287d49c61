//! The public interface: accepted values, errors, and results.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use posthog::diagnostics::Diagnostic;
use posthog::feature_flags::FlagsProblem;
use posthog::reports::{DeliveryOutcome, PersistError};
use posthog::stats::StorageMode;
use posthog::{Client, Config, DropReason, Error, Event, Outcome};
use serde::ser::Error as _;
use serde::{Serialize, Serializer};

use crate::apart::{Terms, apart, apart_on};
use crate::fixture::{Fixture, KEY, PATIENCE, accepted, close_empty, event, take};

struct Unserializable;

impl Serialize for Unserializable {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(S::Error::custom("not today"))
    }
}

fn reason(client: &Client, event: Event) -> DropReason {
    let receipt = client.capture(event);
    assert_eq!((receipt.uuid(), receipt.is_accepted()), (None, false));
    assert_eq!(receipt.persisted().wait(PATIENCE), Err(PersistError::Dropped));
    match receipt.outcome() {
        Outcome::Dropped(reason) => reason,
        Outcome::Accepted => panic!("accepted"),
    }
}

#[test]
fn bad_events_are_dropped_for_a_counted_and_reported_reason() {
    let fixture = Fixture::new();
    let client = fixture.client();
    let before_1677 = SystemTime::UNIX_EPOCH - Duration::from_secs(10_000_000_000);
    let after_2262 = SystemTime::UNIX_EPOCH + Duration::from_secs(10_000_000_000);
    let cases = [
        (Event::new("", "user_1"), DropReason::EmptyName),
        (Event::new(" \t\n\u{a0}", "user_1"), DropReason::EmptyName),
        (Event::new("tick", ""), DropReason::EmptyDistinctId),
        (Event::new("tick", "\u{3000} "), DropReason::EmptyDistinctId),
        (event("tick").prop("bad", Unserializable), DropReason::Unserializable),
        (event("tick").prop("bad", HashMap::from([(vec![1], 2)])), DropReason::Unserializable),
        (event("tick").group("bad", Unserializable), DropReason::Unserializable),
        (event("tick").timestamp(before_1677), DropReason::TimestampOutOfRange),
        (event("tick").timestamp(after_2262), DropReason::TimestampOutOfRange),
        (event("huge").prop("x", "x".repeat(64 * 1024)), DropReason::TooLarge),
        (Event::new("n".repeat(70_000), "user_1"), DropReason::TooLarge),
    ];
    let mut counts: Vec<(DropReason, u64)> = Vec::new();
    for (event, expected) in cases {
        assert_eq!(reason(&client, event.clone()), expected, "{event:?}");
        match counts.last_mut() {
            Some((reason, count)) if *reason == expected => *count += 1,
            _ => counts.push((expected, 1)),
        }
    }
    let stats = client.stats();
    assert_eq!((stats.dropped, stats.accepted), (counts, 0));
    let diagnostics = client.diagnostics();
    assert_eq!(diagnostics.iter().filter(|diagnostic| matches!(diagnostic, Diagnostic::Dropped { .. })).count(), 11);
    let names_the_key =
        |found: &Diagnostic| matches!(found, Diagnostic::Dropped { detail, .. } if detail.contains("\"bad\""));
    assert!(diagnostics.iter().any(names_the_key), "{diagnostics:?}");
    // Unusual but valid values are accepted.
    accepted(&client.capture(Event::new("t\u{fc}r", "user 1").prop("", f64::NAN).prop("inf", f64::INFINITY)));
    close_empty(&client);
    assert_eq!(fixture.names(), ["t\u{fc}r"]);
}

#[test]
fn every_drop_is_reported_with_the_events_name_and_a_remedy() {
    let fixture = Fixture::new();
    let spoil = |mut event: Event| {
        if event.name() == "spoilt" {
            event.set_prop("bad", Unserializable);
        }
        Some(event)
    };
    let client = Client::new(fixture.config().before_send(spoil)).unwrap();
    let before_1677 = SystemTime::UNIX_EPOCH - Duration::from_secs(10_000_000_000);
    reason(&client, event("unserializable").prop("bad", Unserializable));
    reason(&client, event("early").timestamp(before_1677));
    reason(&client, event("large").prop("x", "x".repeat(64 * 1024)));
    reason(&client, event("spoilt"));
    close_empty(&client);
    reason(&client, event("late"));
    let dropped: Vec<_> = client
        .diagnostics()
        .into_iter()
        .filter_map(|diagnostic| {
            if let Diagnostic::Dropped { event, detail, .. } = diagnostic { Some((event, detail)) } else { None }
        })
        .collect();
    let names: Vec<_> = dropped.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["unserializable", "early", "large", "spoilt", "late"]);
    for (at, words) in [(0, "not today"), (1, "1678"), (2, "raise Config::max_event_bytes"), (3, "not today")] {
        assert!(dropped[at].1.contains(words), "{dropped:?}");
    }
}

#[test]
fn bad_settings_are_errors_that_name_them() {
    let fixture = Fixture::new();
    let config = || fixture.config();
    let named = |config: Config| match Client::new(config).map(drop).unwrap_err() {
        Error::Config { field, why } => {
            assert!(!why.is_empty());
            field
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(named(Config::new("").queue_dir(&fixture.queue)), "api_key");
    assert_eq!(named(Config::new(" \n").queue_dir(&fixture.queue)), "api_key");
    for host in ["", "ftp://example.org", "https://", "https://a b", "http://example.org/?x=1", "http://:80"] {
        assert_eq!(named(config().host(host)), "host", "{host:?}");
    }
    assert_eq!(named(config().adopt_queue("", "https://example.org")), "adopt_queue");
    assert_eq!(named(config().flush_at(0)), "flush_at");
    assert_eq!(named(config().flush_interval(Duration::ZERO)), "flush_interval");
    assert_eq!(named(config().sync_interval(Duration::MAX)), "sync_interval");
    assert_eq!(named(config().shutdown_timeout(Duration::MAX)), "shutdown_timeout");
    assert_eq!(named(config().max_queue_bytes(1)), "max_queue_bytes");
    assert_eq!(named(config().max_queue_events(0)), "max_queue_events");
    assert_eq!(named(config().journal_bytes(1)), "journal_bytes");
    assert_eq!(named(config().max_event_bytes(usize::MAX)), "max_event_bytes");
    assert_eq!(named(config().max_event_bytes(1024 * 1024)), "journal_bytes");
    assert_eq!(named(config().super_property("bad", Unserializable)), "super_property");
    for host in ["", "https://example.org", "example.org:443", "*.example.org", ".example.org"] {
        assert_eq!(named(config().tracing_hosts([host])), "tracing_hosts", "{host:?}");
    }
    assert!(!fixture.queue.exists(), "nothing is made for a client that cannot be");
}

#[test]
fn a_disabled_client_takes_nothing_and_answers_everything() {
    let client = Client::new(Config::disabled()).unwrap();
    assert!(client.is_disabled());
    assert_eq!(reason(&client, event("tick")), DropReason::Disabled);
    assert!(client.flush().wait(PATIENCE).is_ok());
    assert!(client.close().wait(PATIENCE).is_ok());
    let stats = client.stats();
    assert_eq!((stats.storage, stats.dropped), (StorageMode::Disabled, vec![(DropReason::Disabled, 1)]));
}

#[test]
fn the_process_wide_client_is_created_once() {
    apart(
        |place| {
            assert!(posthog::client().is_none());
            assert_eq!(posthog::capture(event("early")).outcome(), Outcome::Dropped(DropReason::NotInitialized));
            let client = posthog::init(place.config()).unwrap();
            assert!(matches!(posthog::init(place.config()), Err(Error::AlreadyInitialized)));
            assert!(posthog::capture(event("free")).is_accepted());
            accepted(&posthog::client().unwrap().capture(event("found")));
            close_empty(&client);
        },
        |fixture| assert_eq!(fixture.names(), ["found", "free"]),
    );
}

#[test]
fn the_environment_names_key_host_and_directory() {
    apart_on(
        Fixture::new,
        |fixture| {
            Terms::default()
                .env("POSTHOG_API_KEY", " phc_env\n")
                .env("POSTHOG_HOST", &fixture.host)
                .env("POSTHOG_QUEUE_DIR", fixture.queue.to_str().unwrap())
        },
        |place| {
            let client = Client::new(Config::from_env().no_proxy()).unwrap();
            take(&client, "tick");
            assert!(client.stats().dir.unwrap().starts_with(&place.queue));
            close_empty(&client);
        },
        |fixture| assert_eq!((fixture.names().len(), fixture.sink.requests()[0].api_key.as_str()), (1, "phc_env")),
    );
}

#[test]
fn without_a_key_disabled_and_without_a_directory_an_error() {
    apart_on(
        Fixture::new,
        |_| {
            let empty = ["POSTHOG_API_KEY", "POSTHOG_QUEUE_DIR", "STATE_DIRECTORY", "XDG_STATE_HOME", "HOME"];
            empty.into_iter().fold(Terms::default(), |terms, name| terms.env(name, ""))
        },
        |_| {
            let client = Client::new(Config::from_env()).unwrap();
            assert!(client.is_disabled());
            assert_eq!(client.diagnostics(), [Diagnostic::KeyMissing]);
            let error = Client::new(Config::new(KEY)).unwrap_err();
            assert!(matches!(error, Error::Config { field: "queue_dir", .. }), "{error:?}");
        },
        |_| (),
    );
}

#[test]
fn hooks_change_and_drop_events_before_they_reach_the_disk() {
    let fixture = Fixture::new();
    let config = fixture
        .config()
        .before_send(|mut event| {
            event.remove("secret");
            event.set_prop("seen", event.given_uuid().is_some());
            Some(event)
        })
        .before_send(|event| if event.name() == "unwanted" { None } else { Some(event) })
        .before_send(|mut event| {
            assert_ne!(event.name(), "explosive", "before_send hides it");
            if event.name() == "old" {
                event.set_name("new");
                event.set_distinct_id("user_2");
            }
            Some(event)
        });
    let client = Client::new(config).unwrap();
    accepted(&client.capture(event("old").prop("secret", "abc").prop("kept", 1)));
    assert_eq!(reason(&client, event("unwanted")), DropReason::BeforeSend);
    assert_eq!(reason(&client, event("explosive")), DropReason::BeforeSendPanicked);
    accepted(&client.capture(event("fine")));
    close_empty(&client);
    let counts = vec![(DropReason::BeforeSend, 1), (DropReason::BeforeSendPanicked, 1)];
    assert_eq!(client.stats().dropped, counts);
    assert!(client.diagnostics().contains(&Diagnostic::CallbackPanicked { callback: "before_send" }));
    let events = fixture.sink.events();
    let first = &events[0];
    assert_eq!((first.event.as_str(), first.distinct_id.as_str(), events.len()), ("new", "user_2", 2));
    assert_eq!((&first.properties["seen"], &first.properties["kept"]), (&true.into(), &1.into()));
    assert!(first.properties.get("secret").is_none());
}

#[test]
fn a_capture_in_a_hook_is_accepted_but_a_nested_one_dropped() {
    let fixture = Fixture::new();
    let held: Arc<Mutex<Option<Client>>> = Arc::default();
    let outcomes = Arc::new(Mutex::new(Vec::new()));
    let (inside, heard) = (Arc::clone(&held), Arc::clone(&outcomes));
    let on_hook = move |name: &str| {
        let client = inside.lock().unwrap().clone();
        if let Some(client) = client {
            let outcome = client.capture(event(name)).outcome();
            heard.lock().unwrap().push(outcome);
        }
    };
    let on_diagnostic = on_hook.clone();
    let config = fixture.config().before_send(move |event| {
        on_hook("inner");
        Some(event)
    });
    // Acts on drops only: a capture here that is dropped causes another diagnostic.
    let client = Client::new(config.on_diagnostic(move |_| on_diagnostic(""))).unwrap();
    *held.lock().unwrap() = Some(client.clone());
    take(&client, "outer");
    assert_eq!(*outcomes.lock().unwrap(), [Outcome::Accepted]);
    // The callback's capture has no name and is reported to the callback, which captures again; the loop ends there.
    assert_eq!(client.capture(event("")).outcome(), Outcome::Dropped(DropReason::EmptyName));
    let seen = outcomes.lock().unwrap().clone();
    assert!(seen.contains(&Outcome::Dropped(DropReason::Reentrant)), "{seen:?}");
    assert!(seen.len() < 10, "{seen:?}");
    *held.lock().unwrap() = None;
    close_empty(&client);
}

#[test]
fn callbacks_that_panic_are_survived_and_reported() {
    let fixture = Fixture::new();
    let config =
        fixture.config().on_delivery(|_| panic!("in on_delivery")).on_diagnostic(|_| panic!("in on_diagnostic"));
    let client = Client::new(config).unwrap();
    take(&client, "one");
    assert!(client.flush().wait(PATIENCE).is_ok());
    take(&client, "two");
    close_empty(&client);
    assert!(client.diagnostics().contains(&Diagnostic::CallbackPanicked { callback: "on_delivery" }));
    assert_eq!(fixture.names(), ["one", "two"]);
    assert_eq!(client.stats().delivered, 2);
}

#[test]
fn names_of_results_stay_what_dashboards_read() {
    let outcomes = [DeliveryOutcome::Delivered, DeliveryOutcome::DeadLettered { status: 400, reason: "no" }];
    assert_eq!(outcomes.map(|outcome| outcome.name()), ["delivered", "dead_lettered"]);
    let failed = PersistError::Sync("no".into());
    let errors = [
        PersistError::Dropped,
        PersistError::Volatile,
        failed,
        PersistError::Closed,
        PersistError::Forked,
        PersistError::Timeout,
    ];
    assert_eq!(errors.map(|error| error.name()), ["dropped", "volatile", "sync", "closed", "forked", "timeout"]);
    let problems = [
        FlagsProblem::Nobody,
        FlagsProblem::NotInitialized,
        FlagsProblem::Disabled,
        FlagsProblem::Closed,
        FlagsProblem::Timeout,
        FlagsProblem::NoAnswer { why: "no".into() },
        FlagsProblem::QuotaLimited,
        FlagsProblem::Incomplete,
    ];
    let names =
        ["nobody", "not_initialized", "disabled", "closed", "timeout", "no_answer", "quota_limited", "incomplete"];
    assert_eq!(problems.map(|problem| problem.name()), names);
}

#[test]
fn public_types_may_cross_threads_and_caught_panics() {
    fn may<T: Send + Sync + std::panic::UnwindSafe + std::panic::RefUnwindSafe>() {}
    may::<Client>();
    may::<Config>();
    may::<Event>();
    may::<Outcome>();
    may::<posthog::Context>();
    may::<posthog::Pending<posthog::reports::FlushReport>>();
    may::<posthog::Receipt>();
    may::<posthog::Stats>();
    may::<posthog::exceptions::CallStack>();
    may::<posthog::exceptions::ExceptionOptions>();
    may::<posthog::feature_flags::FeatureFlags>();
    may::<posthog::feature_flags::FlagContext>();
    may::<Diagnostic>();
}
