//! A queue directory whose path no longer works, while the client's descriptors do.

use std::fs;
use std::time::Duration;

use nix::unistd::{Uid, chroot, setgid, setuid};
use posthog::Client;
use posthog::stats::StorageMode;

use crate::apart::{NOBODY, apart};
use crate::fixture::{Fixture, PATIENCE, Place, assert_balanced, close_empty, event, eventually, take};

fn is_degraded(client: &Client) -> bool {
    matches!(client.stats().storage, StorageMode::Degraded { problem } if problem.contains("out of reach"))
}

fn failures_reported(client: &Client) -> usize {
    client.diagnostics().iter().filter(|diagnostic| diagnostic.kind() == "storage_failing").count()
}

#[test]
fn a_directory_moved_away_and_back_is_reported_once() {
    let fixture = Fixture::new();
    let client = fixture.client();
    take(&client, "before");
    eventually("it is delivered", || client.flush().wait(PATIENCE).unwrap().remaining == 0);
    let away = fixture.folder().join("away");
    fs::rename(&fixture.queue, &away).unwrap();
    for _ in 0..300 {
        take(&client, "meanwhile");
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(client.capture(event("persisted")).persisted().wait(PATIENCE), Ok(()));
    eventually("they are delivered", || client.flush().wait(PATIENCE).unwrap().remaining == 0);
    assert!(is_degraded(&client), "{:?}", client.stats().storage);
    assert_eq!(failures_reported(&client), 1, "{:?}", client.diagnostics());
    fs::rename(&away, &fixture.queue).unwrap();
    eventually("it is back", || client.stats().storage == StorageMode::Durable);
    take(&client, "after");
    close_empty(&client);
    assert_eq!(fixture.names().iter().filter(|name| *name == "meanwhile").count(), 300);
    let next = fixture.client();
    assert_balanced(&next);
    assert_eq!(next.stats().damaged, 0);
}

/// A daemon that opens its queue and then takes a step that makes the path unreachable.
fn goes_on_after(place: &Place, step: impl FnOnce()) {
    let client = place.client();
    take(&client, "before");
    eventually("it is delivered", || client.flush().wait(PATIENCE).unwrap().remaining == 0);
    step();
    for _ in 0..100 {
        take(&client, "after");
    }
    assert_eq!(client.capture(event("persisted")).persisted().wait(PATIENCE), Ok(()));
    eventually("they are delivered", || client.flush().wait(PATIENCE).unwrap().remaining == 0);
    eventually("the mode says so", || is_degraded(&client));
    assert_eq!(failures_reported(&client), 1, "{:?}", client.diagnostics());
    close_empty(&client);
}

fn is_root() -> bool {
    let is_root = Uid::effective().is_root();
    if !is_root {
        eprintln!("skipped: only root may do that");
    }
    is_root
}

fn has_arrived(fixture: &Fixture) {
    assert_eq!(fixture.names().iter().filter(|name| *name == "after").count(), 100);
}

#[test]
fn a_client_goes_on_after_a_chroot() {
    if !is_root() {
        return;
    }
    apart(
        |place| {
            goes_on_after(place, || {
                let root = tempfile::tempdir().unwrap();
                chroot(root.path()).unwrap();
                std::env::set_current_dir("/").unwrap();
                std::mem::forget(root);
            });
        },
        has_arrived,
    );
}

#[test]
fn a_client_goes_on_after_its_process_has_become_another_user() {
    if !is_root() {
        return;
    }
    apart(
        |place| {
            goes_on_after(place, || {
                setgid(NOBODY.into()).unwrap();
                setuid(NOBODY.into()).unwrap();
            });
        },
        has_arrived,
    );
}
