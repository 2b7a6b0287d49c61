//! Ends in a way that is named by its first argument, with the client (second and third argument: queue directory and host) or without.
//! Whatever the way, the status must be the same.

#![allow(unsafe_code, reason = "fork")]

use std::panic::{AssertUnwindSafe, catch_unwind, panic_any, resume_unwind};
use std::sync::Barrier;
use std::time::Duration;

use posthog::Config;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let scenario = arguments.get(1).map_or("", String::as_str);
    if scenario == "previous_hook_panics" {
        std::panic::set_hook(Box::new(|_| panic!("in the previous hook")));
    } else {
        // The default hook looks for symbols, for a tenth of a second each time.
        std::panic::set_hook(Box::new(|_| {}));
    }
    if let (Some(queue_dir), Some(host)) = (arguments.get(2), arguments.get(3)) {
        posthog::init(Config::new("phc_dying").queue_dir(queue_dir).host(host)).expect("a queue");
        posthog::install_panic_hook();
    }
    play(scenario);
}

fn play(scenario: &str) {
    match scenario {
        "literal" | "previous_hook_panics" => panic!("a literal"),
        "formatted" => panic!("formatted {}", std::env::args().count() > 1),
        "index" => {
            let empty: Vec<u8> = Vec::new();
            let at = std::env::args().count();
            std::hint::black_box(empty[at]);
        }
        "unwrap" => {
            let nothing: Result<(), String> = std::hint::black_box(Err("an error".to_owned()));
            nothing.expect("what must not fail");
        }
        "any" => panic_any(5u32),
        "long" => panic!("{}", "\u{e9}".repeat(20_000)),
        "thread" => drop(
            std::thread::Builder::new()
                .name("worker-7".to_owned())
                .spawn(|| panic!("in a thread"))
                .map(std::thread::JoinHandle::join),
        ),
        "caught" => drop(catch_unwind(|| panic!("caught"))),
        "survived" => {
            drop(catch_unwind(|| panic!("survived")));
            std::thread::sleep(Duration::from_millis(3_000));
        }
        "rethrown" => drop(catch_unwind(|| resume_unwind(Box::new("nobody's hook hears of this")))),
        "sixteen" => sixteen(),
        "storm" => (0..10_000).for_each(|_| drop(catch_unwind(|| panic!("again")))),
        "drop" => {
            let _guard = PanicsWhenDropped;
            panic!("first");
        }
        "extern_c" => in_c(),
        "display" => panic!("{}", PanicsWhenShown),
        "reinstalled" => {
            posthog::install_panic_hook();
            posthog::install_panic_hook();
            panic!("once");
        }
        "displaced" => {
            std::panic::set_hook(Box::new(|_| {}));
            posthog::install_panic_hook();
            panic!("after somebody else");
        }
        "closed_descriptors" => {
            close_everything();
            panic!("without descriptors");
        }
        "forked" => forked(),
        "small_files" => {
            use nix::sys::resource::{Resource, setrlimit};
            setrlimit(Resource::RLIMIT_FSIZE, 16, 16).expect("a limit");
            panic!("no file may grow");
        }
        "quiet" => {}
        other => panic!("there is no scenario {other:?}"),
    }
}

struct PanicsWhenDropped;

impl Drop for PanicsWhenDropped {
    fn drop(&mut self) {
        panic!("second");
    }
}

struct PanicsWhenShown;

impl std::fmt::Display for PanicsWhenShown {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        panic!("while shown")
    }
}

extern "C" fn in_c() {
    panic!("in a callback of C");
}

fn sixteen() {
    let together = Barrier::new(16);
    std::thread::scope(|scope| {
        for number in 0..16 {
            let together = &together;
            scope.spawn(move || {
                let _ = catch_unwind(AssertUnwindSafe(|| {
                    together.wait();
                    panic!("thread {number}");
                }));
            });
        }
    });
}

/// As daemons do it.
fn close_everything() {
    let open: Vec<i32> = std::fs::read_dir("/proc/self/fd")
        .expect("a list of descriptors")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|descriptor| *descriptor > 2)
        .collect();
    for descriptor in open {
        let _ = nix::unistd::close(descriptor);
    }
    // What takes their place must not get our bytes.
    for _ in 0..200 {
        std::mem::forget(std::fs::OpenOptions::new().append(true).create(true).open(stranger()));
    }
}

fn stranger() -> std::path::PathBuf {
    std::env::current_dir().unwrap_or_default().join("stranger")
}

fn forked() {
    // SAFETY: the other threads of this process are the library's; what it does in such a child is what is tested.
    match unsafe { nix::unistd::fork() }.expect("a child") {
        nix::unistd::ForkResult::Child => panic!("in a forked child"),
        nix::unistd::ForkResult::Parent { child } => {
            nix::sys::wait::waitpid(child, None).expect("it ends");
        }
    }
}
