//! The library as a program in C or Java loads it: with `dlopen`, after the program has installed handlers of its own.
//!
//! Purpose: the hosts in `crash-tests/hosts` show what the crash handler does to programs that repair faults, or die of them in their
//! own way. They need a shared object with functions of C.
//!
//! Operations: `ph_start` makes the client and installs the panic hook and the crash handler; `ph_capture` captures an event;
//! `Java_Host_start` is `ph_start` for a class named `Host`.
//!
//! Rules: it says no more than a number, and never unwinds into the host.
//!
//! Limits: one client for each process, for good. musl's static programs load no libraries, so there is no shared object for them.

#![allow(unsafe_code, reason = "functions that are called by C; each proves itself")]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::time::Duration;

use posthog::{Config, Event};

/// Starts the client with a queue in `dir` that is delivered to `host`, and installs the panic hook and the crash handler. 0 if all
/// of that went well.
///
/// # Safety
///
/// Both are strings that end with a zero.
// SAFETY: as it says; no other function of that name is linked into a host.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ph_start(dir: *const c_char, host: *const c_char) -> c_int {
    // SAFETY: as the caller says.
    let (dir, host) = unsafe { (CStr::from_ptr(dir), CStr::from_ptr(host)) };
    let (Ok(dir), Ok(host)) = (dir.to_str(), host.to_str()) else { return 1 };
    start(dir, host)
}

fn start(dir: &str, host: &str) -> c_int {
    // The key of the program that tells of its end.
    let config = Config::new("phc_dying").queue_dir(dir).host(host).flush_interval(Duration::from_millis(50));
    let is_well = posthog::init(config).is_ok()
        && posthog::try_install_panic_hook().is_ok()
        && posthog::try_install_crash_handler().is_ok();
    c_int::from(!is_well)
}

/// Captures an event. 1 if it is accepted.
// SAFETY: no other function of that name is linked into a host.
#[unsafe(no_mangle)]
pub extern "C" fn ph_capture() -> c_int {
    c_int::from(posthog::capture(Event::new("of_the_host", "user_1")).is_accepted())
}

/// [`ph_start`] for `static native int start()` of a class `Host`: the arguments come by the environment.
// SAFETY: no other function of that name is linked into a host.
#[unsafe(no_mangle)]
pub extern "system" fn Java_Host_start(_environment: *mut c_void, _class: *mut c_void) -> c_int {
    match (std::env::var("PH_DIR"), std::env::var("PH_HOST")) {
        (Ok(dir), Ok(host)) => start(&dir, &host),
        _ => 1,
    }
}
