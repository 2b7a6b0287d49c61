//! Queues, shards and files that other users own or may write to.

use std::fs;
use std::os::unix::fs::lchown;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use posthog::Client;
use posthog::diagnostics::Diagnostic;

use crate::apart::{NOBODY, Terms, apart_on, is_a_part};
use crate::directories::{is_unusable, set_mode};
use crate::fixture::{Fixture, PATIENCE, close_empty, eventually, take};

/// Changes the owner of a file, or of a directory and everything in it.
fn give(path: &Path, user: u32) {
    lchown(path, Some(user), Some(user)).unwrap();
    if fs::symlink_metadata(path).unwrap().is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| give(&entry.unwrap().path(), user));
    }
}

/// Whether this test can switch to another user; prints a reason if it cannot.
fn may_change_users() -> bool {
    let may = nix::unistd::geteuid().is_root() || is_a_part();
    if !may {
        eprintln!("skipped: only root can be another user");
    }
    may
}

#[test]
fn a_shard_of_root_hides_no_shard_of_the_user() {
    if !may_change_users() {
        return;
    }
    apart_on(
        || {
            let fixture = Fixture::new();
            fixture.sink.stop();
            let clients: Vec<_> = ["root", "own", "orphan"].map(|name| (fixture.client(), name)).into();
            for (client, name) in &clients {
                (0..10).for_each(|_| _ = take(client, name));
                client.shutdown(Duration::ZERO).wait(PATIENCE).unwrap();
            }
            let shards = fixture.shards();
            give(fixture.folder(), NOBODY);
            give(&shards[0], 0);
            // Hard links, as a backup leaves them, do not keep the queue from being delivered.
            for shard in &shards {
                fs::hard_link(shard.join("lock"), fixture.folder().join(shard.file_name().unwrap())).unwrap();
            }
            fixture.sink.resume();
            fixture
        },
        |_| Terms::default().run_as_nobody(),
        |place| {
            let delivered = Arc::new(AtomicUsize::new(0));
            let counted = Arc::clone(&delivered);
            let config =
                place.config().on_delivery(move |notice| _ = counted.fetch_add(notice.uuids.len(), Ordering::SeqCst));
            let client = Client::new(config).unwrap();
            assert!(client.stats().dir.unwrap().ends_with("shard-1"), "{:?}", client.stats());
            let diagnostics = client.diagnostics();
            let skipped = |diagnostic: &&Diagnostic| {
                matches!(diagnostic, Diagnostic::QueueSkipped { path, why }
                    if path.ends_with("shard-0") && why.contains("Permission denied"))
            };
            assert_eq!(diagnostics.iter().filter(skipped).count(), 1, "{diagnostics:?}");
            eventually("the orphan behind it is delivered, too", || {
                let _ = client.flush().wait(PATIENCE);
                delivered.load(Ordering::SeqCst) == 20
            });
            close_empty(&client);
            // Reported once.
            assert_eq!(client.diagnostics().iter().filter(skipped).count(), 1);
        },
        |fixture| {
            assert_eq!(fixture.names(), [["orphan"; 10], ["own"; 10]].concat());
            give(fixture.folder(), 0);
            // Root's client must not have delivered them before they are counted.
            fixture.sink.stop();
            let client = fixture.client();
            assert_eq!(client.stats().queued_events, 10, "root's own are where they were");
        },
    );
}

/// A fixture with a queue in which root has left an event.
fn fixture_with_a_queue() -> Fixture {
    let fixture = Fixture::new();
    fixture.sink.stop();
    let client = fixture.client();
    take(&client, "left");
    client.shutdown(Duration::ZERO).wait(PATIENCE).unwrap();
    fixture.sink.resume();
    fixture
}

#[test]
fn a_queue_that_another_user_owns_is_not_used_by_root() {
    if !may_change_users() {
        return;
    }
    let fixture = fixture_with_a_queue();
    let project = fixture.shards()[0].parent().unwrap().to_path_buf();
    give(&project, NOBODY);
    let text = Client::new(fixture.config()).map(drop).unwrap_err().to_string();
    for part in [project.to_str().unwrap(), "belongs to user 65534", "runs as user 0", "chown", "queue_dir"] {
        assert!(text.contains(part), "{text}");
    }
    is_unusable(|| fixture.config());
    // A symbolic link of the other user to a file of this one.
    give(&project, 0);
    let elsewhere = fixture.folder().join("elsewhere");
    fs::rename(&project, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &project).unwrap();
    lchown(&project, Some(NOBODY), None).unwrap();
    is_unusable(|| fixture.config());
    lchown(&project, Some(0), None).unwrap();
    let client = fixture.client();
    assert_eq!(client.stats().accepted, 1, "a link of root's is a choice of the administrator");
    close_empty(&client);
}

#[test]
fn a_queue_that_every_user_may_write_is_not_used() {
    let fixture = fixture_with_a_queue();
    let project = fixture.shards()[0].parent().unwrap().to_path_buf();
    set_mode(&project, 0o777);
    let text = Client::new(fixture.config()).map(drop).unwrap_err().to_string();
    assert!(text.contains("every user may write to it (mode 777)") && text.contains("chmod o-w"), "{text}");
    is_unusable(|| fixture.config());
    // As Kubernetes creates a volume with fsGroup: the operator chose the group.
    set_mode(&project, 0o770);
    let files = fs::read_dir(&fixture.shards()[0]).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.is_file()).for_each(|file| set_mode(&file, 0o660));
    let client = fixture.client();
    assert_eq!(client.stats().accepted, 1);
    close_empty(&client);
}

#[test]
fn a_shard_or_a_file_of_another_user_is_skipped() {
    if !may_change_users() {
        return;
    }
    for planted in ["", "lock", "status", "journal-0", "queue.redb"] {
        let fixture = fixture_with_a_queue();
        let shard = fixture.shards()[0].clone();
        let path = if planted.is_empty() { shard.clone() } else { shard.join(planted) };
        lchown(&path, Some(NOBODY), None).unwrap();
        let client = fixture.client();
        assert!(client.stats().dir.unwrap().ends_with("shard-1"), "{planted}");
        let diagnostics = client.diagnostics();
        let skipped = |found: &Diagnostic| matches!(found, Diagnostic::QueueSkipped { path, why } if *path == shard && why.contains("belongs to user"));
        assert!(diagnostics.iter().any(skipped), "{planted}: {diagnostics:?}");
        take(&client, "own");
        close_empty(&client);
        drop(client);
        lchown(&path, Some(0), None).unwrap();
        let client = fixture.client();
        assert_eq!((client.stats().accepted, client.stats().damaged), (1, 0), "{planted}: nothing was changed in it");
        close_empty(&client);
        assert_eq!(fixture.names(), ["left", "own"], "{planted}");
    }
}

#[test]
fn a_directory_above_that_others_may_write_to_is_reported() {
    let exposed = |fixture: &Fixture| {
        let client = fixture.client();
        let diagnostics = client.diagnostics();
        close_empty(&client);
        diagnostics.into_iter().find_map(|diagnostic| match diagnostic {
            Diagnostic::QueueDirExposed { ref path, .. } => Some((path.clone(), diagnostic.to_string())),
            _ => None,
        })
    };
    let fixture = fixture_with_a_queue();
    assert_eq!(exposed(&fixture), None);
    set_mode(fixture.folder(), 0o777);
    let (path, text) = exposed(&fixture).unwrap();
    assert_eq!(path, fixture.folder().canonicalize().unwrap());
    assert!(text.contains("every user may write") && text.contains("chmod o-w"), "{text}");
    set_mode(fixture.folder(), 0o1777);
    assert_eq!(exposed(&fixture), None, "as /tmp is");
    if may_change_users() {
        lchown(&fixture.queue, Some(NOBODY), None).unwrap();
        let (path, text) = exposed(&fixture).unwrap();
        assert!(path == fixture.queue.canonicalize().unwrap() && text.contains("belongs to user 65534"), "{text}");
    }
}
