//! The process-wide client.

use std::error::Error as StdError;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Client;
use super::exception::Site;
use super::receipt::Receipt;
use crate::config::Config;
use crate::crash;
use crate::error::Error;
use crate::event::Event;
use crate::event::exception::ExceptionOptions;
use crate::recorder::log_without_client;
use crate::report::{Diagnostic, DropReason};

static CLIENT: OnceLock<Client> = OnceLock::new();

/// Creates the process-wide client, which [`capture`] and [`client`] use. It lives as long as the process. Call
/// [`Client::close`] on it before the process ends to deliver what can be delivered, or leave that to the next start.
/// Once closed, it cannot be replaced.
///
/// A daemon calls this after it has forked into the background and dropped its privileges, and before it starts threads
/// that capture. A child that is forked later inherits no queue
/// ([`StorageMode::Forked`](crate::stats::StorageMode::Forked)): its first capture opens one, on the thread that
/// captures.
///
/// # Errors
///
/// As [`Client::new`]; [`Error::AlreadyInitialized`] if it was called before.
pub fn init(config: Config) -> Result<Client, Error> {
    if CLIENT.get().is_some() {
        return Err(Error::AlreadyInitialized);
    }
    let client = Client::new(config)?;
    match CLIENT.set(client.clone()) {
        Ok(()) => {
            client.shared.keep_breadcrumbs();
            if let Err(error) = arm_if_wanted() {
                client
                    .shared
                    .diagnostics
                    .record(Diagnostic::CrashReportUnreadable { path: None, why: error.describe() });
            }
            Ok(client)
        }
        // Another thread was faster. The client of this call is closed by being dropped.
        Err(_) => Err(Error::AlreadyInitialized),
    }
}

/// The process-wide client without a count of its handles.
#[cfg(any(feature = "log", feature = "tracing"))]
pub(crate) fn process_wide() -> Option<&'static Client> {
    CLIENT.get()
}

/// The process-wide client, if [`init`] has created one.
pub fn client() -> Option<Client> {
    CLIENT.get().cloned()
}

/// Opens the crash file, once there are both a hook and a process-wide client.
pub(super) fn arm_if_wanted() -> Result<(), Error> {
    let Some(client) = CLIENT.get().filter(|_| crash::is_requested()) else { return Ok(()) };
    client.shared.arm_process_wide()
}

/// [`Client::capture`] with the process-wide client. Before [`init`] the event is `Dropped(NotInitialized)`; the first
/// such event is logged as a warning.
pub fn capture(event: Event) -> Receipt {
    match CLIENT.get() {
        Some(client) => client.capture(event),
        None => drop_before_init(&event),
    }
}

/// [`Client::capture_exception`] with the process-wide client. Before [`init`] it is `Dropped(NotInitialized)`, as with
/// [`capture`].
#[inline(never)]
#[track_caller]
pub fn capture_exception<E: StdError + ?Sized>(error: &E) -> Receipt {
    let here = 0;
    let options = ExceptionOptions::new();
    match CLIENT.get() {
        Some(client) => client.take_exception(options, Site::above(&here), &error),
        None => drop_before_init(&Event::new_anon("$exception")),
    }
}

/// [`Client::breadcrumb`] with the process-wide client. Before [`init`] it does nothing.
///
/// ```
/// posthog::breadcrumb("configuration loaded");
/// ```
pub fn breadcrumb(text: impl AsRef<str>) {
    if let Some(client) = CLIENT.get() {
        client.breadcrumb(text);
    }
}

#[cold]
fn drop_before_init(event: &Event) -> Receipt {
    static WAS_LOGGED: AtomicBool = AtomicBool::new(false);
    let reason = DropReason::NotInitialized;
    if !WAS_LOGGED.swap(true, Ordering::Relaxed) {
        let detail = format!("{reason}; until it is called, every event is dropped like this one");
        log_without_client(&Diagnostic::Dropped { reason, event: event.name().to_owned(), detail, count: 1 });
    }
    Receipt::dropped(reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Outcome;
    use crate::recorder::captured_log::lines_of;

    #[test]
    fn captures_before_init_are_dropped_and_logged_once() {
        let lines = lines_of(|| {
            for _ in 0..3 {
                let outcome = capture(Event::new("early", "user_1")).outcome();
                assert_eq!(outcome, Outcome::Dropped(DropReason::NotInitialized));
            }
        });
        let [line] = lines.as_slice() else { panic!("{lines:?}") };
        assert!(line.starts_with("WARN ") && line.contains("\"early\"") && line.contains("posthog::init"), "{line}");
    }

    #[test]
    fn a_missing_key_is_recorded_and_logged_as_information() {
        let mut client = None;
        let lines = lines_of(|| client = Client::new(Config::without_key()).ok());
        let [line] = lines.as_slice() else { panic!("{lines:?}") };
        assert!(line.starts_with("INFO POSTHOG_API_KEY is not set: "), "{line}");
        assert_eq!(client.map(|client| client.diagnostics()), Some(vec![Diagnostic::KeyMissing]));
        assert!(
            lines_of(|| drop(Client::new(Config::disabled()))).is_empty(),
            "a client that is disabled on purpose logs nothing"
        );
    }
}
