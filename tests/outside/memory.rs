//! Queues in memory: `memory_fallback`, and a directory that is deleted.

use std::fs;
use std::time::Duration;

use posthog::Client;
use posthog::diagnostics::Diagnostic;
use posthog::reports::PersistError;
use posthog::stats::StorageMode;

use crate::fixture::{Fixture, PATIENCE, event, eventually, take};

fn kinds(client: &Client) -> Vec<&'static str> {
    client.diagnostics().iter().map(Diagnostic::kind).collect()
}

#[test]
fn a_queue_in_memory_says_why_and_says_what_is_lost_with_it() {
    let fixture = Fixture::new();
    fixture.sink.stop();
    let file = fixture.folder().join("file");
    fs::write(&file, "not a directory").unwrap();
    let client = Client::new(fixture.config().queue_dir(&file).memory_fallback(true)).unwrap();
    for _ in 0..30 {
        take(&client, "volatile");
    }
    let _ = client.flush().wait(PATIENCE);
    let StorageMode::Volatile { problem } = client.stats().storage else { panic!("{:?}", client.stats()) };
    assert!(problem.contains(file.to_str().unwrap()), "{problem}");
    assert_eq!(
        kinds(&client).iter().filter(|kind| kind.starts_with("storage")).count(),
        0,
        "{:?}",
        client.diagnostics()
    );
    let text =
        client.diagnostics().into_iter().find(|diagnostic| diagnostic.kind() == "in_memory").unwrap().to_string();
    assert!(text.contains(file.to_str().unwrap()) && text.contains("in memory only"), "{text}");
    let report = client.shutdown(Duration::ZERO).wait(PATIENCE).unwrap();
    assert_eq!((report.remaining, report.persisted), (30, false));
    let diagnostics = client.diagnostics();
    assert!(
        diagnostics.iter().any(|diagnostic| matches!(diagnostic, Diagnostic::MemoryQueueLost { events: 30 })),
        "{diagnostics:?}"
    );
    assert!(diagnostics.iter().all(|diagnostic| diagnostic.kind() != "left_on_disk"), "{diagnostics:?}");
}

#[test]
fn a_deleted_directory_is_reported_and_events_continue() {
    let fixture = Fixture::new();
    let client = fixture.client();
    take(&client, "before");
    eventually("it is delivered", || client.flush().wait(PATIENCE).unwrap().remaining == 0);
    // A thread of the client may create a file in it at the same time.
    eventually("the directory is deleted", || fs::remove_dir_all(&fixture.queue).is_ok() || !fixture.queue.exists());
    let receipt = client.capture(event("after"));
    assert!(receipt.is_accepted());
    assert!(receipt.persisted().wait(PATIENCE).is_err_and(|error| error != PersistError::Timeout));
    eventually("the storage mode is volatile", || matches!(client.stats().storage, StorageMode::Volatile { .. }));
    let StorageMode::Volatile { problem } = client.stats().storage else { panic!("{:?}", client.stats()) };
    assert!(problem.contains("deleted"), "{problem}");
    for _ in 0..500 {
        eventually("the event is accepted", || client.capture(event("later")).is_accepted());
    }
    assert_eq!(client.capture(event("later")).persisted().wait(PATIENCE), Err(PersistError::Volatile));
    eventually("they are delivered", || fixture.names().iter().filter(|name| *name == "later").count() == 501);
    assert_eq!(kinds(&client).iter().filter(|kind| **kind == "in_memory").count(), 1, "{:?}", client.diagnostics());
    assert_eq!(client.stats().imbalance(), 0, "{:?}", client.stats());
    client.shutdown(PATIENCE).wait(PATIENCE).unwrap();
    assert_eq!(fixture.names().iter().filter(|name| *name == "after").count(), 1);
}
