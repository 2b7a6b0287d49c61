//! The process-wide client, and free functions for its everyday calls.
//!
//! Each free function is the method of [`Client`] with the same name. Before [`init`] there is no client; then events
//! are `Dropped(NotInitialized)`, flags have no values, and calls that change a client do nothing. The first dropped
//! event is logged, and so is the first call of each of [`register`], [`opt_out`] and [`opt_in`].

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::Client;
use super::exception::{Site, Unread};
use super::flags::{FeatureFlags, FlagsProblem};
use super::receipt::Receipt;
use crate::config::Config;
use crate::crash;
use crate::error::Error;
use crate::event::Event;
use crate::event::exception::ExceptionOptions;
use crate::flags::{FlagContext, FlagValue};
use crate::pipeline::Pending;
use crate::pipeline::pending::{self, Unanswered};
use crate::recorder::log_without_client;
use crate::report::{DeliveryReport, Diagnostic, DropReason, FlushReport, ShutdownReport};

static CLIENT: OnceLock<Client> = OnceLock::new();

/// Creates the process-wide client, which [`capture`], [`client`] and the other free functions use. It lives as long as
/// the process. Call [`close`] before the process ends to deliver what can be delivered, or leave that to the next
/// start. Once closed, it cannot be replaced.
///
/// A daemon calls this after it has forked into the background and dropped its privileges, and before it starts threads
/// that capture. A child that is forked later inherits no queue
/// ([`StorageMode::Forked`](crate::stats::StorageMode::Forked)): its first capture opens one, on the thread that
/// captures.
///
/// # Errors
///
/// As [`Client::new`]; [`Error::AlreadyInitialized`] if it was called before, or in a test while another client stands
/// in for the process-wide one.
pub fn init(config: Config) -> Result<Client, Error> {
    if client().is_some() {
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

/// The process-wide client, if [`init`] has created one.
pub fn client() -> Option<Client> {
    with(|client| client.cloned())
}

/// Passes the process-wide client to `call`, or in a test the client that stands in for it.
#[inline]
pub(crate) fn with<T>(call: impl FnOnce(Option<&Client>) -> T) -> T {
    #[cfg(feature = "testing")]
    if let Some(client) = super::stand_in::current() {
        return call(Some(&client));
    }
    call(CLIENT.get())
}

/// Opens the crash file, once there are both a hook and a process-wide client.
pub(super) fn arm_if_wanted() -> Result<(), Error> {
    let Some(client) = CLIENT.get().filter(|_| crash::is_requested()) else { return Ok(()) };
    client.shared.arm_process_wide()
}

/// [`Client::capture`] with the process-wide client. Before [`init`] the event is `Dropped(NotInitialized)`; the first
/// such event is logged as a warning.
pub fn capture(event: Event) -> Receipt {
    with(|client| match client {
        Some(client) => client.capture(event),
        None => drop_before_init(event.name()),
    })
}

/// [`Client::capture_ai`] with the process-wide client. Before [`init`] as [`capture`].
pub fn capture_ai(event: Event) -> Receipt {
    with(|client| match client {
        Some(client) => client.capture_ai(event),
        None => drop_before_init(event.name()),
    })
}

/// [`Client::capture_immediate`] with the process-wide client. Before [`init`] it resolves with
/// [`DeliveryReport::Dropped`].
pub fn capture_immediate(event: Event) -> Pending<DeliveryReport> {
    with(|client| match client {
        Some(client) => client.capture_immediate(event),
        None => {
            drop_before_init(event.name());
            pending::answered(DeliveryReport::Dropped(DropReason::NotInitialized))
        }
    })
}

/// [`Client::identify`] with the process-wide client. Before [`init`] as [`capture`].
///
/// ```
/// posthog::identify("user_1", [("plan", "pro")]);
/// ```
pub fn identify(distinct_id: impl AsRef<str>, props: impl Serialize) -> Receipt {
    with(|client| match client {
        Some(client) => client.identify(distinct_id, props),
        None => drop_before_init("$identify"),
    })
}

/// [`Client::set_person`] with the process-wide client. Before [`init`] as [`capture`].
pub fn set_person(distinct_id: impl AsRef<str>, props: impl Serialize) -> Receipt {
    with(|client| match client {
        Some(client) => client.set_person(distinct_id, props),
        None => drop_before_init("$set"),
    })
}

/// [`Client::set_person_once`] with the process-wide client. Before [`init`] as [`capture`].
pub fn set_person_once(distinct_id: impl AsRef<str>, props: impl Serialize) -> Receipt {
    with(|client| match client {
        Some(client) => client.set_person_once(distinct_id, props),
        None => drop_before_init("$set"),
    })
}

/// [`Client::alias`] with the process-wide client. Before [`init`] as [`capture`].
pub fn alias(previous_id: impl AsRef<str>, alias: impl AsRef<str>) -> Receipt {
    with(|client| match client {
        Some(client) => client.alias(previous_id, alias),
        None => drop_before_init("$create_alias"),
    })
}

/// [`Client::group_identify`] with the process-wide client. Before [`init`] as [`capture`].
pub fn group_identify(group_type: impl AsRef<str>, group_key: impl Serialize, props: impl Serialize) -> Receipt {
    with(|client| match client {
        Some(client) => client.group_identify(group_type, group_key, props),
        None => drop_before_init("$groupidentify"),
    })
}

/// [`Client::capture_exception`] with the process-wide client. Before [`init`] it is `Dropped(NotInitialized)`, as with
/// [`capture`].
// None of these functions is inlined, because their frames mark the edge of the stack.
#[inline(never)]
#[track_caller]
pub fn capture_exception<E: StdError + ?Sized>(error: &E) -> Receipt {
    let here = 0;
    take_exception(ExceptionOptions::new(), Site::above(&here), &error)
}

/// [`Client::capture_exception_with`] with the process-wide client. Before [`init`] as [`capture_exception`].
#[inline(never)]
#[track_caller]
pub fn capture_exception_with<E: StdError + ?Sized>(error: &E, options: ExceptionOptions) -> Receipt {
    let here = 0;
    take_exception(options, Site::above(&here), &error)
}

/// [`Client::capture_anyhow`] with the process-wide client. Before [`init`] as [`capture_exception`].
#[cfg(feature = "anyhow")]
#[cfg_attr(docsrs, doc(cfg(feature = "anyhow")))]
#[inline(never)]
#[track_caller]
pub fn capture_anyhow(error: &anyhow::Error) -> Receipt {
    let here = 0;
    take_exception(ExceptionOptions::new(), Site::above(&here), &super::exception::Anyhow(error))
}

/// [`Client::capture_anyhow_with`] with the process-wide client. Before [`init`] as [`capture_exception`].
#[cfg(feature = "anyhow")]
#[cfg_attr(docsrs, doc(cfg(feature = "anyhow")))]
#[inline(never)]
#[track_caller]
pub fn capture_anyhow_with(error: &anyhow::Error, options: ExceptionOptions) -> Receipt {
    let here = 0;
    take_exception(options, Site::above(&here), &super::exception::Anyhow(error))
}

/// [`Client::capture_eyre`] with the process-wide client. Before [`init`] as [`capture_exception`].
#[cfg(feature = "eyre")]
#[cfg_attr(docsrs, doc(cfg(feature = "eyre")))]
#[inline(never)]
#[track_caller]
pub fn capture_eyre(report: &eyre::Report) -> Receipt {
    let here = 0;
    take_exception(ExceptionOptions::new(), Site::above(&here), &super::exception::Eyre(report))
}

/// [`Client::capture_eyre_with`] with the process-wide client. Before [`init`] as [`capture_exception`].
#[cfg(feature = "eyre")]
#[cfg_attr(docsrs, doc(cfg(feature = "eyre")))]
#[inline(never)]
#[track_caller]
pub fn capture_eyre_with(report: &eyre::Report, options: ExceptionOptions) -> Receipt {
    let here = 0;
    take_exception(options, Site::above(&here), &super::exception::Eyre(report))
}

fn take_exception(options: ExceptionOptions, site: Site, error: &dyn Unread) -> Receipt {
    with(|client| match client {
        Some(client) => client.take_exception(options, site, error),
        None => drop_before_init("$exception"),
    })
}

/// [`Client::breadcrumb`] with the process-wide client. Before [`init`] it does nothing.
///
/// ```
/// posthog::breadcrumb("configuration loaded");
/// ```
pub fn breadcrumb(text: impl AsRef<str>) {
    with(|client| {
        if let Some(client) = client {
            client.breadcrumb(text);
        }
    });
}

/// [`Client::register`] with the process-wide client: a property of every future event. Before [`init`] it does nothing
/// but log a warning; use [`Config::super_property`] there.
///
/// ```
/// posthog::register("release", env!("CARGO_PKG_VERSION"));
/// ```
pub fn register(key: impl AsRef<str>, value: impl Serialize) {
    static WARNED: AtomicBool = AtomicBool::new(false);
    with(|client| match client {
        Some(client) => client.register(key, value),
        None => warn_before_init(&WARNED, "register", "set Config::super_property instead"),
    });
}

/// [`Client::unregister`] with the process-wide client. Before [`init`] it returns `false`.
pub fn unregister(key: impl AsRef<str>) -> bool {
    with(|client| client.is_some_and(|client| client.unregister(key)))
}

/// [`Client::opt_out`] with the process-wide client: stops capturing. Before [`init`] nothing is captured anyway, and
/// the call does nothing but log a warning: **it does not opt out the client that `init` creates later**. Use
/// [`Config::opted_out`] for that.
pub fn opt_out() {
    static WARNED: AtomicBool = AtomicBool::new(false);
    with(|client| match client {
        Some(client) => client.opt_out(),
        None => {
            warn_before_init(
                &WARNED,
                "opt_out",
                "a client that is created later captures; set Config::opted_out instead",
            );
        }
    });
}

/// [`Client::opt_in`] with the process-wide client. Before [`init`] it does nothing but log a warning.
pub fn opt_in() {
    static WARNED: AtomicBool = AtomicBool::new(false);
    with(|client| match client {
        Some(client) => client.opt_in(),
        None => warn_before_init(&WARNED, "opt_in", "set Config::opted_out instead"),
    });
}

/// [`Client::is_opted_out`] with the process-wide client. Before [`init`] it returns `false`.
pub fn is_opted_out() -> bool {
    with(|client| client.is_some_and(Client::is_opted_out))
}

/// [`Client::flush`] with the process-wide client. Before [`init`] it resolves at once with
/// [`EndpointStatus::Closed`](crate::reports::EndpointStatus::Closed).
///
/// ```
/// use std::time::Duration;
///
/// let report = posthog::flush().wait(Duration::from_secs(5));
/// # assert!(report.is_ok());
/// ```
pub fn flush() -> Pending<FlushReport> {
    with(|client| client.map_or_else(closed, Client::flush))
}

/// [`Client::shutdown`] with the process-wide client: the last call of a program. Before [`init`] it resolves at once
/// with [`EndpointStatus::Closed`](crate::reports::EndpointStatus::Closed).
pub fn shutdown(timeout: Duration) -> Pending<ShutdownReport> {
    with(|client| client.map_or_else(closed, |client| client.shutdown(timeout)))
}

/// [`Client::close`] with the process-wide client: [`shutdown`] with [`Config::shutdown_timeout`].
pub fn close() -> Pending<ShutdownReport> {
    with(|client| client.map_or_else(closed, Client::close))
}

/// [`Client::evaluate_flags`] with the process-wide client. Before [`init`] the snapshot is empty and its
/// [`problem`](FeatureFlags::problem) is [`FlagsProblem::NotInitialized`].
pub fn evaluate_flags(who: impl Into<FlagContext>) -> Pending<FeatureFlags> {
    with(|client| match client {
        Some(client) => client.evaluate_flags(who),
        None => pending::answered(FeatureFlags::empty(Some(FlagsProblem::NotInitialized))),
    })
}

/// [`Client::known_flags`] with the process-wide client. Before [`init`] as [`evaluate_flags`].
pub fn known_flags(who: impl Into<FlagContext>) -> FeatureFlags {
    with(|client| match client {
        Some(client) => client.known_flags(who),
        None => FeatureFlags::empty(Some(FlagsProblem::NotInitialized)),
    })
}

/// [`Client::is_feature_enabled`] with the process-wide client. Before [`init`] it resolves with `false`.
///
/// ```
/// # async fn demo() {
/// if posthog::is_feature_enabled("new-checkout", "user_1").await {
///     // ...
/// }
/// # }
/// ```
pub fn is_feature_enabled(key: impl AsRef<str>, who: impl Into<FlagContext>) -> Pending<bool> {
    is_feature_enabled_or(key, who, false)
}

/// [`Client::is_feature_enabled_or`] with the process-wide client. Before [`init`] it resolves with the default.
pub fn is_feature_enabled_or(key: impl AsRef<str>, who: impl Into<FlagContext>, default: bool) -> Pending<bool> {
    with(|client| match client {
        Some(client) => client.is_feature_enabled_or(key, who, default),
        None => pending::answered(default),
    })
}

/// [`Client::get_feature_flag`] with the process-wide client. Before [`init`] it resolves with `None`.
pub fn get_feature_flag(key: impl AsRef<str>, who: impl Into<FlagContext>) -> Pending<Option<FlagValue>> {
    with(|client| match client {
        Some(client) => client.get_feature_flag(key, who),
        None => closed(),
    })
}

/// [`Client::get_feature_flag_payload`] with the process-wide client. Before [`init`] it resolves with `None`.
pub fn get_feature_flag_payload(key: impl AsRef<str>, who: impl Into<FlagContext>) -> Pending<Option<Value>> {
    with(|client| match client {
        Some(client) => client.get_feature_flag_payload(key, who),
        None => closed(),
    })
}

/// [`Client::get_all_flags`] with the process-wide client. Before [`init`] it resolves with an empty map.
pub fn get_all_flags(who: impl Into<FlagContext>) -> Pending<BTreeMap<String, FlagValue>> {
    with(|client| match client {
        Some(client) => client.get_all_flags(who),
        None => closed(),
    })
}

/// The result of a closed client, for calls before `init`.
fn closed<T: Unanswered>() -> Pending<T> {
    pending::answered(T::closed())
}

#[cold]
fn drop_before_init(event: &str) -> Receipt {
    static WAS_LOGGED: AtomicBool = AtomicBool::new(false);
    let reason = DropReason::NotInitialized;
    if !WAS_LOGGED.swap(true, Ordering::Relaxed) {
        let detail = format!("{reason}; until it is called, every event is dropped like this one");
        log_without_client(&Diagnostic::Dropped { reason, event: event.to_owned(), detail, count: 1 });
    }
    Receipt::dropped(reason)
}

/// Logs that a call had no effect, the first time.
#[cold]
fn warn_before_init(was_logged: &AtomicBool, call: &str, remedy: &str) {
    if !was_logged.swap(true, Ordering::Relaxed) {
        let what = format!("posthog::{call} was called before posthog::init and has no effect; {remedy}");
        log_without_client(&Diagnostic::InputIgnored { what });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Outcome;
    use crate::recorder::captured_log::lines_of;
    use crate::report::EndpointStatus;

    const AT_ONCE: Duration = Duration::ZERO;

    #[test]
    fn captures_before_init_are_dropped_and_logged_once() {
        let error = std::fmt::Error;
        let lines = lines_of(|| {
            let receipts = [
                capture(Event::new("early", "user_1")),
                capture(Event::new("early", "user_1")),
                capture_ai(Event::new("$ai_generation", "user_1")),
                identify("user_1", ()),
                set_person("user_1", [("a", 1)]),
                set_person_once("user_1", [("a", 1)]),
                alias("a", "b"),
                group_identify("company", "acme", ()),
                capture_exception(&error),
                capture_exception_with(&error, ExceptionOptions::new()),
            ];
            for receipt in receipts {
                assert_eq!(receipt.outcome(), Outcome::Dropped(DropReason::NotInitialized));
            }
            let report = capture_immediate(Event::new("early", "user_1")).try_get();
            assert_eq!(report, Some(DeliveryReport::Dropped(DropReason::NotInitialized)));
        });
        let [line] = lines.as_slice() else { panic!("{lines:?}") };
        assert!(line.starts_with("WARN ") && line.contains("\"early\"") && line.contains("posthog::init"), "{line}");
    }

    #[test]
    fn flags_before_init_have_no_values() {
        assert_eq!(is_feature_enabled("flag", "user_1").wait(AT_ONCE), Ok(false));
        assert_eq!(is_feature_enabled_or("flag", "user_1", true).wait(AT_ONCE), Ok(true));
        assert_eq!(get_feature_flag("flag", "user_1").wait(AT_ONCE), Ok(None));
        assert_eq!(get_feature_flag_payload("flag", "user_1").wait(AT_ONCE), Ok(None));
        assert_eq!(get_all_flags("user_1").wait(AT_ONCE), Ok(BTreeMap::new()));
        let evaluated = evaluate_flags("user_1").try_get();
        for flags in [evaluated, Some(known_flags("user_1"))] {
            assert_eq!(flags.and_then(|flags| flags.problem().cloned()), Some(FlagsProblem::NotInitialized));
        }
    }

    #[test]
    fn a_client_cannot_be_changed_or_flushed_before_init() {
        let lines = lines_of(|| {
            (0..2).for_each(|_| opt_out());
            opt_in();
            register("release", "1");
        });
        let calls = ["opt_out", "opt_in", "register"]
            .map(|call| format!("WARN posthog::{call} was called before posthog::init"));
        let begins = |(line, call): (&String, &String)| line.starts_with(call.as_str());
        assert!(lines.len() == 3 && lines.iter().zip(&calls).all(begins), "{lines:?}");
        assert!(lines[0].contains("Config::opted_out"), "{lines:?}");
        assert!(!is_opted_out() && !unregister("release"));
        assert_eq!(flush().try_get().map(|report| report.endpoint), Some(EndpointStatus::Closed));
        assert_eq!(close().try_get().map(|report| report.endpoint), Some(EndpointStatus::Closed));
        assert_eq!(shutdown(AT_ONCE).try_get().map(|report| report.endpoint), Some(EndpointStatus::Closed));
        assert!(client().is_none());
    }

    #[test]
    fn a_missing_key_is_recorded_and_logged_as_a_warning() {
        let mut client = None;
        let lines = lines_of(|| client = Client::new(Config::without_key()).ok());
        let [line] = lines.as_slice() else { panic!("{lines:?}") };
        assert!(line.starts_with("WARN POSTHOG_API_KEY is not set: "), "{line}");
        assert_eq!(client.map(|client| client.diagnostics()), Some(vec![Diagnostic::KeyMissing]));
        assert!(
            lines_of(|| drop(Client::new(Config::disabled()))).is_empty(),
            "a client that is disabled on purpose logs nothing"
        );
    }
}
