//! The process-wide client.

use std::error::Error as StdError;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Client;
use super::receipt::Receipt;
use crate::config::Config;
use crate::crash::{self, Edge};
use crate::diagnostics::{Diagnostic, log_without_client};
use crate::error::Error;
use crate::event::Event;
use crate::event::exception::{Chain, ExceptionOptions};
use crate::pipeline::DropReason;

static CLIENT: OnceLock<Client> = OnceLock::new();

/// Makes the process-wide client, which [`capture`] and [`client`] use. It lives as long as the process; call
/// [`Client::close`] on it before the process ends to send what can be sent, or let the next start send it. Once closed it cannot be
/// replaced.
///
/// A daemon calls this after it has forked into the background and dropped its privileges, and before it starts threads that capture.
/// A child that is forked later inherits no queue ([`StorageMode::Forked`](crate::StorageMode::Forked)): its first capture opens one of its own, on
/// the thread that captures.
///
/// # Errors
///
/// As [`Client::new`]; [`Error::AlreadyInitialised`] if it was called before.
pub fn init(config: Config) -> Result<Client, Error> {
    if CLIENT.get().is_some() {
        return Err(Error::AlreadyInitialised);
    }
    let client = Client::new(config)?;
    match CLIENT.set(client.clone()) {
        Ok(()) => {
            if let Err(error) = arm_if_wanted() {
                client
                    .shared
                    .diagnostics
                    .record(Diagnostic::CrashReportUnreadable { path: None, why: error.describe() });
            }
            Ok(client)
        }
        // Somebody was faster; ours is closed by being dropped.
        Err(_) => Err(Error::AlreadyInitialised),
    }
}

/// The process-wide client, if [`init`] has made one.
pub fn client() -> Option<Client> {
    CLIENT.get().cloned()
}

/// Gives the panic hook somewhere to write, once there are both a hook and a process-wide client.
pub(super) fn arm_if_wanted() -> Result<(), Error> {
    let Some(client) = CLIENT.get().filter(|_| crash::is_requested()) else { return Ok(()) };
    client.shared.arm_process_wide()
}

/// Captures with the process-wide client. Before [`init`] the event is `Dropped(NotInitialized)`; the first time, that is logged as a
/// warning.
pub fn capture(event: Event) -> Receipt {
    match CLIENT.get() {
        Some(client) => client.capture(event),
        None => drop_before_init(&event),
    }
}

/// [`Client::capture_exception`] with the process-wide client. Before [`init`] it is `Dropped(NotInitialized)`, as with [`capture`].
#[inline(never)]
pub fn capture_exception<E: StdError + ?Sized>(error: &E) -> Receipt {
    let here = 0;
    let options = ExceptionOptions::new();
    match CLIENT.get() {
        Some(client) => client.take_exception(options, Edge::above(&here), &|| (Chain::of(error), None)),
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
    static TOLD: AtomicBool = AtomicBool::new(false);
    let reason = DropReason::NotInitialized;
    if !TOLD.swap(true, Ordering::Relaxed) {
        let detail = format!("{reason}; until it is called, every event is dropped like this one");
        log_without_client(&Diagnostic::Dropped { reason, event: event.name().to_owned(), detail, count: 1 });
    }
    Receipt::dropped(reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Outcome;
    use crate::diagnostics::heard::lines_of;

    #[test]
    fn captures_before_init_are_dropped_by_that_name_and_warned_of_once() {
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
    fn an_environment_without_a_key_is_told_as_information_and_recorded() {
        let mut client = None;
        let lines = lines_of(|| client = Client::new(Config::without_key()).ok());
        let [line] = lines.as_slice() else { panic!("{lines:?}") };
        assert!(line.starts_with("INFO POSTHOG_API_KEY is not set: "), "{line}");
        assert_eq!(client.map(|client| client.diagnostics()), Some(vec![Diagnostic::KeyMissing]));
        assert!(lines_of(|| drop(Client::new(Config::disabled()))).is_empty(), "who asks for it knows it");
    }
}
