//! Scenarios about the content of a crash report, and about the process that reads it.

use std::os::unix::fs::MetadataExt;
use std::panic::catch_unwind;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Barrier, LazyLock};
use std::time::Duration;

use posthog::Config;

use crate::signals;
use crate::surroundings::in_child;

/// Whether the scenario is a start after a crash.
pub(crate) fn reads(scenario: &str) -> bool {
    matches!(scenario, "read" | "read_scrubbing" | "read_refusing" | "read_opted_out" | "read_full")
}

/// The client's configuration for a scenario.
pub(crate) fn configured(scenario: &str, config: Config) -> Config {
    match scenario {
        "read_scrubbing" => config.before_send(|event| {
            let seen = event.get::<String>("$exception_message");
            Some(event.prop("seen_by_hook", seen).prop("$exception_message", "scrubbed"))
        }),
        "read_refusing" => config.before_send(|_| None),
        "read_opted_out" => config.opted_out(true),
        "read_full" => config.max_queue_events(5),
        "telling_segfaults" => config.before_send(|_| {
            // Waits until the handlers are installed.
            std::thread::sleep(Duration::from_millis(300));
            signals::play("null_read");
            None
        }),
        "telling_panics" => config.before_send(|_| {
            SEEN.fetch_add(1, Ordering::SeqCst);
            panic!("in the hook");
        }),
        _ => config,
    }
}

/// Crashes that `before_send` was called for.
static SEEN: AtomicI32 = AtomicI32::new(0);

/// What has to happen before the hooks are installed.
pub(crate) fn prepare(scenario: &str, client: &posthog::Client) {
    if scenario == "lives_until_reported" {
        wait_until("reading has begun", || client.stats().accepted > 0);
    }
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(std::time::Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Number of recorded panics out of 10,000 at one location.
const LEFT_BY_A_STORM: u64 = 16 + 9;

pub(crate) fn play(scenario: &str) -> bool {
    match scenario {
        "steps_panic" => {
            leave_breadcrumbs();
            panic!("after steps");
        }
        "steps_survived" => {
            leave_breadcrumbs();
            drop(catch_unwind(|| panic!("between steps")));
            posthog::breadcrumb("after it");
            std::thread::sleep(Duration::from_millis(3_000));
        }
        "steps_signal" => {
            leave_breadcrumbs();
            return signals::play("null_read");
        }
        "lives_until_reported" => {
            drop(catch_unwind(|| panic!("survived")));
            wait_until("the panic is reported", || {
                posthog::client().is_none_or(|client| client.stats().delivered > LEFT_BY_A_STORM)
            });
        }
        "filling" => {
            for number in 0..10 {
                let event = posthog::Event::new("filled", "user_1").prop("number", number);
                let _ = posthog::capture(event).persisted().wait(Duration::from_secs(10));
            }
        }
        "forked_queue" => {
            posthog::breadcrumb("before the fork");
            in_child(|| {
                posthog::capture(posthog::Event::new("of_the_child", "user_1"));
                panic!("in a child with a queue");
            });
        }
        "forked_room" => {
            let before = report_files();
            in_child(|| {
                posthog::capture(posthog::Event::new("of_the_child", "user_1"));
            });
            let after = report_files();
            let is_there = !before.is_empty() && before.iter().all(|file| after.contains(file));
            std::process::exit(if is_there { 0 } else { 1 });
        }
        "telling_panics" => {
            drop(catch_unwind(|| panic!("survived")));
            // More than twice the grace period.
            std::thread::sleep(Duration::from_millis(5_500));
            std::process::exit(SEEN.load(Ordering::SeqCst));
        }
        "telling_segfaults" => {
            std::thread::sleep(Duration::from_millis(2_000));
            std::process::exit(0);
        }
        "loaded_later" => loaded_later(),
        "installed_at_once" => installed_at_once(),
        _ => return false,
    }
    true
}

/// Two threads install the hook at the same time, repeatedly; the program's own hook must still be called.
fn installed_at_once() {
    static CALLED: AtomicI32 = AtomicI32::new(0);
    // Blocking: threads that spin make no progress on a busy machine.
    static BEGIN: LazyLock<Barrier> = LazyLock::new(|| Barrier::new(3));
    static END: LazyLock<Barrier> = LazyLock::new(|| Barrier::new(3));
    const TIMES: i32 = 1_000;
    for _ in 0..2 {
        std::thread::spawn(|| {
            for _ in 0..TIMES {
                BEGIN.wait();
                posthog::install_panic_hook();
                END.wait();
            }
        });
    }
    for _ in 0..TIMES {
        drop(std::panic::take_hook());
        std::panic::set_hook(Box::new(|_| {
            CALLED.fetch_add(1, Ordering::SeqCst);
        }));
        BEGIN.wait();
        END.wait();
        // With the client, each would be reported.
        if std::env::args_os().nth(2).is_none() {
            drop(catch_unwind(|| panic!("which hook is called")));
        }
    }
    let is_called = std::env::args_os().nth(2).is_some() || CALLED.load(Ordering::SeqCst) == TIMES;
    std::process::exit(if is_called { 0 } else { 1 });
}

/// The report files in the queue directory (the second argument), with their inodes.
pub(crate) fn report_files() -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = std::env::args_os().nth(2).map(PathBuf::from).into_iter().collect();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let (path, metadata) = (entry.path(), entry.metadata().expect("it is there"));
            if metadata.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "phx") {
                found.push((path, metadata.ino()));
            }
        }
    }
    found
}

/// Adds what the report must have: an event, and two breadcrumbs, one of them too long.
fn leave_breadcrumbs() {
    if let Some(client) = posthog::client() {
        client.capture(posthog::Event::new("order_placed", "user_1").prop("card", "4111"));
        client.breadcrumb("connected");
        posthog::breadcrumb("\u{e9}".repeat(500));
    }
}

/// Crashes inside a library that was loaded last.
fn loaded_later() {
    use nix::libc;
    // SAFETY: a library without initializers that matter, and a function of it that is given an invalid pointer.
    unsafe {
        let library = libc::dlopen(c"libm.so.6".as_ptr(), libc::RTLD_NOW);
        let frexp = libc::dlsym(library, c"frexp".as_ptr());
        assert!(!frexp.is_null(), "a function");
        if let Some(client) = posthog::client() {
            // Wakes the committer, which notices the library.
            let receipt = client.capture(posthog::Event::new("loaded", "user_1"));
            receipt.persisted().wait(Duration::from_secs(5)).expect("the event is synced");
        }
        let frexp: extern "C" fn(f64, *mut libc::c_int) -> f64 = std::mem::transmute(frexp);
        std::hint::black_box(frexp(std::hint::black_box(8.0), std::ptr::without_provenance_mut(8)));
    }
}
