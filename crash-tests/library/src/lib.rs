//! The client as a shared library for programs in C and Java: with `dlopen`, after the program has installed handlers
//! of its own.
//!
//! The hosts in `crash-tests/hosts` show how the crash handler affects programs that repair faults, or die of them in
//! their own way. They need a shared object with C functions.
//!
//! `ph_start` creates the client and installs the panic hook and the crash handler; `ph_capture` captures an event;
//! `Java_Host_start` is `ph_start` for a class named `Host`. All return a number and never unwind into the host.
//!
//! One client per process. Static musl programs load no libraries, so there is no shared object for musl.

#![allow(unsafe_code, reason = "functions that are called by C; each proves itself")]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::time::Duration;

use posthog::{Config, Event};

/// Starts the client with a queue in `dir` and the server `host`, and installs the panic hook and the crash handler.
/// Returns 0 if all of that succeeded.
///
/// # Safety
///
/// Both must be C strings.
// SAFETY: as documented; no other function of this name is linked into a host.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ph_start(dir: *const c_char, host: *const c_char) -> c_int {
    // SAFETY: guaranteed by the caller.
    let (dir, host) = unsafe { (CStr::from_ptr(dir), CStr::from_ptr(host)) };
    let (Ok(dir), Ok(host)) = (dir.to_str(), host.to_str()) else { return 1 };
    start(dir, host)
}

fn start(dir: &str, host: &str) -> c_int {
    // The API key of `dying`, which reports the crash.
    let config = Config::new("phc_dying").queue_dir(dir).host(host).flush_interval(Duration::from_millis(50));
    let is_well = posthog::init(config).is_ok()
        && posthog::crashes::try_install_panic_hook().is_ok()
        && posthog::crashes::try_install_crash_handler().is_ok();
    c_int::from(!is_well)
}

/// Captures an event. Returns 1 if it is accepted.
// SAFETY: no other function of that name is linked into a host.
#[unsafe(no_mangle)]
pub extern "C" fn ph_capture() -> c_int {
    c_int::from(posthog::capture(Event::new("of_the_host", "user_1")).is_accepted())
}

/// [`ph_start`] for `static native int start()` of a class `Host`, with its arguments in the environment.
// SAFETY: no other function of that name is linked into a host.
#[unsafe(no_mangle)]
pub extern "system" fn Java_Host_start(_environment: *mut c_void, _class: *mut c_void) -> c_int {
    match (std::env::var("PH_DIR"), std::env::var("PH_HOST")) {
        (Ok(dir), Ok(host)) => start(&dir, &host),
        _ => 1,
    }
}
