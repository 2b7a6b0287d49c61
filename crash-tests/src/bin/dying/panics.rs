//! Panics.

use std::panic::{AssertUnwindSafe, catch_unwind, panic_any, resume_unwind};
use std::sync::Barrier;
use std::time::Duration;

/// Returns `false` if the scenario is not in this file.
pub(crate) fn play(scenario: &str) -> bool {
    match scenario {
        "quiet" => {}
        "literal" | "previous_hook_panics" => panic!("a literal"),
        "in_context" => in_context(),
        "after_context" => after_context(),
        "formatted" => panic!("formatted {}", std::env::args().count() > 1),
        "index" => {
            let empty: Vec<u8> = Vec::new();
            let at = std::env::args().count().min(2);
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
        "soon_after" => {
            drop(catch_unwind(|| panic!("the first")));
            std::thread::sleep(Duration::from_millis(1_500));
            let _busy = BusyWhenDropped;
            panic!("the second");
        }
        "rethrown" => drop(catch_unwind(|| resume_unwind(Box::new("no hook is called for this")))),
        "sixteen" => at_once(16, |number| panic!("thread {number}")),
        "two_hundred" => at_once(200, |_| panic!("one of many")),
        "storm" => (0..10_000).for_each(|_| drop(catch_unwind(|| panic!("again")))),
        "capacity" => drop(std::hint::black_box(Vec::<u8>::with_capacity(std::hint::black_box(usize::MAX)))),
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
            panic!("after another hook");
        }
        // As some crates for friendly panic messages do.
        "displaced_for_good" => {
            std::panic::set_hook(Box::new(|_| {}));
            panic!("no hook of the library is called");
        }
        "catch_then_abort" => {
            drop(catch_unwind(|| panic!("caught long ago")));
            std::process::abort();
        }
        _ => return false,
    }
    true
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

fn at_once(threads: usize, act: impl Fn(usize) + Sync) {
    let together = Barrier::new(threads);
    std::thread::scope(|scope| {
        for number in 0..threads {
            let (together, act) = (&together, &act);
            scope.spawn(move || {
                let _ = catch_unwind(AssertUnwindSafe(|| {
                    together.wait();
                    act(number);
                }));
            });
        }
    });
}

/// A value whose destructor takes time, as if it closed connections.
struct BusyWhenDropped;

impl Drop for BusyWhenDropped {
    fn drop(&mut self) {
        std::thread::sleep(Duration::from_millis(700));
    }
}

fn in_context() {
    let headers = [("X-PostHog-Distinct-Id", "user_7"), ("X-PostHog-Session-Id", "session_7")];
    let request = posthog::Context::from_request("GET", "https://shop.example/reset?token=secret", headers);
    request.enter(|| panic!("in a request"));
}

fn after_context() {
    posthog::Context::new().distinct_id("user_7").enter(|| {});
    panic!("in no request");
}
