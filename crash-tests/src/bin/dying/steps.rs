//! What a program did before it died, and libraries that it loaded late.

use std::panic::catch_unwind;
use std::time::Duration;

use nix::libc;

pub(crate) fn play(scenario: &str) -> bool {
    match scenario {
        "steps_panic" => {
            leave_steps();
            panic!("after steps");
        }
        "steps_survived" => {
            leave_steps();
            drop(catch_unwind(|| panic!("between steps")));
            posthog::breadcrumb("after it");
            std::thread::sleep(Duration::from_millis(3_000));
        }
        "steps_signal" => {
            leave_steps();
            return crate::signals::play("null_read");
        }
        "loaded_later" => loaded_later(),
        _ => return false,
    }
    true
}

/// What led to it: an event, and two breadcrumbs of which one is too long.
fn leave_steps() {
    if let Some(client) = posthog::client() {
        client.capture(posthog::Event::new("order_placed", "user_1").prop("card", "4111"));
        client.breadcrumb("connected");
        posthog::breadcrumb("\u{e9}".repeat(500));
    }
}

/// Dies inside a library that was loaded after everything else.
fn loaded_later() {
    // SAFETY: a library without an initialiser that does anything, and a function of it that is given no memory to write to.
    unsafe {
        let library = libc::dlopen(c"libm.so.6".as_ptr(), libc::RTLD_NOW);
        let frexp = libc::dlsym(library, c"frexp".as_ptr());
        assert!(!frexp.is_null(), "a function");
        if let Some(client) = posthog::client() {
            // Has the committer awake, which notices.
            let receipt = client.capture(posthog::Event::new("loaded", "user_1"));
            receipt.persisted().wait(Duration::from_secs(5)).expect("an answer").expect("a disk");
        }
        let frexp: extern "C" fn(f64, *mut libc::c_int) -> f64 = std::mem::transmute(frexp);
        std::hint::black_box(frexp(std::hint::black_box(8.0), std::ptr::without_provenance_mut(8)));
    }
}
