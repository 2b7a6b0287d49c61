//! Settings from environment variables, for an operator who changes them without a rebuild.
//!
//! A value that cannot be used is reported and the setting stays as it is: a typing error of an operator must not keep
//! a daemon from starting. Only a key or a host that cannot be used is an error, because events would go elsewhere.

use std::fs::File;
use std::io::Read;
use std::time::Duration;

use super::Config;
use crate::delivery::{CaptureProtocol, Compression};
use crate::pipeline::OverflowPolicy;
use crate::sys::limits::{NAME_KEPT, foreign};
use crate::transport::{check_certificates, check_proxy};

/// An environment variable, and how its value changes the settings.
struct Variable {
    name: &'static str,
    /// Whether the value may hold a secret, which no text may repeat.
    is_secret: bool,
    set: fn(Config, &str) -> Result<Config, String>,
}

/// Bytes read of a file of certificates: system-wide bundles have a few hundred KiB.
const PEM_MOST: u64 = 4 * 1024 * 1024;

/// The variables, in the order in which they are read. The documentation of [`Config::from_env`] has them as a table.
const VARIABLES: &[Variable] = &[
    plain("POSTHOG_DISABLED", |config, text| Ok(Config { disabled: flag(text)? || config.disabled, ..config })),
    plain("POSTHOG_OPTED_OUT", |config, text| Ok(config.opted_out(flag(text)?))),
    plain("POSTHOG_MEMORY_FALLBACK", |config, text| Ok(config.memory_fallback(flag(text)?))),
    secret("POSTHOG_ADOPT_QUEUE", adopt_queues),
    plain("POSTHOG_MAX_EVENT_BYTES", |config, text| Ok(config.max_event_bytes(size(text)?))),
    plain("POSTHOG_JOURNAL_BYTES", |config, text| Ok(config.journal_bytes(size(text)?))),
    plain("POSTHOG_MAX_QUEUE_BYTES", |config, text| Ok(config.max_queue_bytes(size(text)?))),
    plain("POSTHOG_MAX_QUEUE_EVENTS", |config, text| Ok(config.max_queue_events(number(text)?))),
    plain("POSTHOG_MAX_QUEUE_AGE", |config, text| Ok(config.max_queue_age(time(text)?))),
    plain("POSTHOG_MIN_FREE_SPACE", |config, text| Ok(config.min_free_space(size(text)?))),
    plain("POSTHOG_OVERFLOW", |config, text| Ok(config.overflow(overflow(text)?))),
    plain("POSTHOG_SYNC_INTERVAL", |config, text| Ok(config.sync_interval(time(text)?))),
    plain("POSTHOG_ACK_INTERVAL", |config, text| Ok(config.ack_interval(time(text)?))),
    plain("POSTHOG_FLUSH_AT", |config, text| Ok(config.flush_at(number(text)?))),
    plain("POSTHOG_FLUSH_INTERVAL", |config, text| Ok(config.flush_interval(time(text)?))),
    plain("POSTHOG_SHUTDOWN_TIMEOUT", |config, text| Ok(config.shutdown_timeout(time(text)?))),
    plain("POSTHOG_MAX_BATCH_EVENTS", |config, text| Ok(config.max_batch_events(number(text)?))),
    plain("POSTHOG_MAX_BATCH_BYTES", |config, text| Ok(config.max_batch_bytes(size(text)?))),
    plain("POSTHOG_MAX_IN_FLIGHT", |config, text| Ok(config.max_in_flight(number(text)?))),
    plain("POSTHOG_MAX_RETRIES", |config, text| Ok(config.max_retries(number(text)?))),
    plain("POSTHOG_RETRY_AFTER_CAP", |config, text| Ok(config.retry_after_cap(time(text)?))),
    plain("POSTHOG_FIRST_SEND_JITTER", |config, text| Ok(config.first_send_jitter(time(text)?))),
    plain("POSTHOG_REQUEST_TIMEOUT", |config, text| Ok(config.request_timeout(time(text)?))),
    plain("POSTHOG_CONNECT_TIMEOUT", |config, text| Ok(config.connect_timeout(time(text)?))),
    secret("POSTHOG_PROXY", proxy),
    plain("POSTHOG_CA_CERTIFICATE", ca_certificate),
    plain("POSTHOG_PROTOCOL", |config, text| Ok(config.protocol(protocol(text)?))),
    plain("POSTHOG_COMPRESSION", |config, text| Ok(config.compression(compression(text)?))),
    plain("POSTHOG_DISABLE_GEOIP", |config, text| Ok(config.disable_geoip(flag(text)?))),
    plain("POSTHOG_FLAG_REQUEST_TIMEOUT", |config, text| Ok(config.flag_request_timeout(time(text)?))),
    plain("POSTHOG_FLAG_POLL_INTERVAL", |config, text| Ok(config.flag_poll_interval(time(text)?))),
    plain("POSTHOG_KEEP_FLAG_DEFINITIONS", |config, text| Ok(config.keep_flag_definitions(flag(text)?))),
    plain("POSTHOG_REPORT_PREVIOUS_RUN", |config, text| Ok(config.report_previous_run(flag(text)?))),
    plain("POSTHOG_EXCEPTION_RATE_LIMIT", exception_rate_limit),
    plain("POSTHOG_EXACT_TIMESTAMPS", |config, text| Ok(config.exact_timestamps(flag(text)?))),
    plain("POSTHOG_SYMBOLICATE", |config, text| Ok(config.symbolicate(flag(text)?))),
    plain("POSTHOG_BREADCRUMB_EVENTS", |config, text| Ok(config.breadcrumb_events(flag(text)?))),
];

/// The names of all variables.
#[cfg(test)]
pub(crate) fn names() -> Vec<&'static str> {
    let read_first = ["POSTHOG_API_KEY", "POSTHOG_HOST", "POSTHOG_QUEUE_DIR", "POSTHOG_SECRET_KEY"];
    VARIABLES.iter().map(|variable| variable.name).chain(read_first).collect()
}

type Set = fn(Config, &str) -> Result<Config, String>;

const fn plain(name: &'static str, set: Set) -> Variable {
    Variable { name, is_secret: false, set }
}

const fn secret(name: &'static str, set: Set) -> Variable {
    Variable { name, is_secret: true, set }
}

/// Applies the variables that are set. Values that cannot be used are remembered, to be reported when the client is
/// created.
pub(super) fn apply(config: Config, var: impl Fn(&str) -> Option<String>) -> Config {
    let set_in = |name: &str| var(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
    let mut set: Vec<(&Variable, String)> =
        VARIABLES.iter().filter_map(|variable| Some((variable, set_in(variable.name)?))).collect();
    let mut config = config;
    // Twice, because a value may be valid only after a later one is set: a larger event needs a larger journal.
    let mut ignored = Vec::new();
    for _ in 0..2 {
        ignored.clear();
        set.retain(|(variable, value)| match variable.apply(&config, value) {
            Ok(changed) => {
                config = changed;
                false
            }
            Err(why) => {
                ignored.push(why);
                true
            }
        });
    }
    config.ignored_variables.extend(ignored);
    config
}

impl Variable {
    fn apply(&self, config: &Config, value: &str) -> Result<Config, String> {
        let before = problem(config);
        // `Config::check` has the bounds. A problem that the settings had before is not this variable's.
        let set = (self.set)(config.clone(), value).and_then(|set| match problem(&set) {
            Some(problem) if before.as_ref() != Some(&problem) => Err(format!("is not possible ({problem})")),
            _ => Ok(set),
        });
        set.map_err(|why| {
            let shown = if self.is_secret { String::new() } else { format!(" = {:?}", foreign(value, NAME_KEPT)) };
            let why = foreign(&why, 4 * NAME_KEPT);
            format!(
                "the environment variable {}{shown} is ignored, and its setting stays as it was: it {why}",
                self.name
            )
        })
    }
}

/// Why a client could not be created with these settings, leaving key, host and directory aside.
fn problem(config: &Config) -> Option<String> {
    let settings =
        Config { api_key: "phc".into(), host: "http://host".into(), queue_dir: Some("/".into()), ..config.clone() };
    settings.check().err().map(|error| error.to_string())
}

fn flag(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        _ => Err("must be true or false".into()),
    }
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.replace('_', "").parse().map_err(|_| "must be a whole number, such as 1000".into())
}

/// Bytes: `1048576`, `64KiB`, `256 MiB`.
fn size<T: TryFrom<u64>>(text: &str) -> Result<T, String> {
    let wrong = || "must be a number of bytes, such as 1048576, or of KiB, MiB, GiB or TiB, such as 256MiB".to_owned();
    let (digits, unit) = split_unit(text);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "kib" => 10,
        "mib" => 20,
        "gib" => 30,
        "tib" => 40,
        _ => return Err(wrong()),
    };
    let bytes = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    bytes.and_then(|bytes| T::try_from(bytes).ok()).ok_or_else(wrong)
}

/// A time with its unit: `500ms`, `5s`, `10min`, `12h`, `7d`. Only `0` needs no unit.
fn time(text: &str) -> Result<Duration, String> {
    let wrong = || "must be a time with its unit (ms, s, min, h, d), such as 500ms or 5s".to_owned();
    let (digits, unit) = split_unit(text);
    let number = digits.parse::<u64>().map_err(|_| wrong())?;
    let seconds = match unit.to_ascii_lowercase().as_str() {
        "ms" => return Ok(Duration::from_millis(number)),
        "s" => 1,
        "min" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ if number == 0 && unit.is_empty() => 0,
        _ => return Err(wrong()),
    };
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(wrong)
}

fn split_unit(text: &str) -> (&str, &str) {
    let ends = text.find(|char: char| !char.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at_checked(ends).unwrap_or((text, ""));
    (digits, unit.trim())
}

/// `drop-newest`, `drop-oldest`, or `block:5s`.
fn overflow(text: &str) -> Result<OverflowPolicy, String> {
    match text.to_ascii_lowercase().split_once(':') {
        Some(("block", most)) => Ok(OverflowPolicy::Block(time(most.trim())?)),
        None if text.eq_ignore_ascii_case("drop-newest") => Ok(OverflowPolicy::DropNewest),
        None if text.eq_ignore_ascii_case("drop-oldest") => Ok(OverflowPolicy::DropOldest),
        _ => Err("must be drop-newest, drop-oldest or block:<time>, such as block:5s".into()),
    }
}

/// `10/10s`: how many at once, and the time for one more; or `0`.
fn exception_rate_limit(config: Config, text: &str) -> Result<Config, String> {
    let wrong = || "must be a number and a time, such as 10/10s, or 0".to_owned();
    match text.split_once('/') {
        Some((burst, refill)) => Ok(config.exception_rate_limit(number(burst.trim())?, time(refill.trim())?)),
        None if text == "0" => {
            let (_, refill) = config.exception_rate_limit;
            Ok(config.exception_rate_limit(0, refill))
        }
        None => Err(wrong()),
    }
}

fn protocol(text: &str) -> Result<CaptureProtocol, String> {
    match text.to_ascii_lowercase().as_str() {
        "v0" => Ok(CaptureProtocol::V0),
        "v1" => Ok(CaptureProtocol::V1),
        _ => Err("must be v0 or v1".into()),
    }
}

fn compression(text: &str) -> Result<Compression, String> {
    match text.to_ascii_lowercase().as_str() {
        "none" => Ok(Compression::None),
        "gzip" => Ok(Compression::Gzip),
        "deflate" => Ok(Compression::Deflate),
        "brotli" => Ok(Compression::Brotli),
        "zstd" => Ok(Compression::Zstd),
        _ => Err("must be none, gzip, deflate, brotli or zstd".into()),
    }
}

fn proxy(config: Config, text: &str) -> Result<Config, String> {
    if text.eq_ignore_ascii_case("none") {
        return Ok(config.no_proxy());
    }
    check_proxy(text).map_err(|error| format!("must be http://[user:password@]host[:port] or none: {error}"))?;
    Ok(config.proxy(text))
}

fn ca_certificate(config: Config, path: &str) -> Result<Config, String> {
    let unreadable = |error| format!("must be the path of a PEM file: {error}");
    // A pipe or a device would not end.
    if !std::fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err("must be the path of a PEM file, and is not a regular file".to_owned());
    }
    let mut pem = Vec::new();
    File::open(path).and_then(|file| file.take(PEM_MOST).read_to_end(&mut pem)).map_err(unreadable)?;
    check_certificates(&pem).map_err(|_| "must be the path of a file with certificates in PEM".to_owned())?;
    Ok(config.ca_certificate(pem))
}

/// `phc_old@https://eu.i.posthog.com`, several separated by white space or commas.
fn adopt_queues(config: Config, text: &str) -> Result<Config, String> {
    let mut queues = text.split([' ', '\t', '\n', ',']).filter(|queue| !queue.is_empty());
    queues.try_fold(config, |config, queue| match queue.split_once('@') {
        Some((key, host)) => Ok(config.adopt_queue(key, host)),
        None => Err("must be key@host of an earlier key or host, several separated by commas".to_owned()),
    })
}

/// For the fuzz target: each variable is applied or reported in one line, and what results can be checked.
#[cfg(all(any(fuzzing, test), feature = "inspect"))]
pub(crate) fn apply_any(var: impl Fn(&str) -> Option<String>) {
    let config = apply(Config::new("phc_fuzz"), var);
    assert!(
        config.ignored_variables.iter().all(|why| !why.contains(char::is_control)),
        "{:?}",
        config.ignored_variables
    );
    assert_eq!(problem(&config), None, "a variable that makes the settings impossible is ignored");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Diagnostic;

    fn with(vars: &[(&str, &str)]) -> Config {
        let var = |name: &str| vars.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        apply(Config::new("phc_1").queue_dir("/q"), var)
    }

    /// A value for each variable.
    const VALUES: [(&str, &str); 37] = [
        ("POSTHOG_DISABLED", "false"),
        ("POSTHOG_OPTED_OUT", "yes"),
        ("POSTHOG_MEMORY_FALLBACK", "on"),
        ("POSTHOG_ADOPT_QUEUE", "phc_2@https://eu.i.posthog.com, phc_3@us.i.posthog.com"),
        ("POSTHOG_MAX_EVENT_BYTES", "2MiB"),
        ("POSTHOG_JOURNAL_BYTES", "16 MiB"),
        ("POSTHOG_MAX_QUEUE_BYTES", "64mib"),
        ("POSTHOG_MAX_QUEUE_EVENTS", "1_000_000"),
        ("POSTHOG_MAX_QUEUE_AGE", "7d"),
        ("POSTHOG_MIN_FREE_SPACE", "1048576"),
        ("POSTHOG_OVERFLOW", "block:5s"),
        ("POSTHOG_SYNC_INTERVAL", "250ms"),
        ("POSTHOG_ACK_INTERVAL", "2s"),
        ("POSTHOG_FLUSH_AT", "50"),
        ("POSTHOG_FLUSH_INTERVAL", "1min"),
        ("POSTHOG_SHUTDOWN_TIMEOUT", "20s"),
        ("POSTHOG_MAX_BATCH_EVENTS", "500"),
        ("POSTHOG_MAX_BATCH_BYTES", "1MiB"),
        ("POSTHOG_MAX_IN_FLIGHT", "2"),
        ("POSTHOG_MAX_RETRIES", "5"),
        ("POSTHOG_RETRY_AFTER_CAP", "12h"),
        ("POSTHOG_FIRST_SEND_JITTER", "0"),
        ("POSTHOG_REQUEST_TIMEOUT", "60s"),
        ("POSTHOG_CONNECT_TIMEOUT", "45s"),
        ("POSTHOG_PROXY", "http://user:secret@proxy:3128"),
        ("POSTHOG_CA_CERTIFICATE", ""),
        ("POSTHOG_PROTOCOL", "V1"),
        ("POSTHOG_COMPRESSION", "deflate"),
        ("POSTHOG_DISABLE_GEOIP", "1"),
        ("POSTHOG_FLAG_REQUEST_TIMEOUT", "2s"),
        ("POSTHOG_FLAG_POLL_INTERVAL", "1min"),
        ("POSTHOG_KEEP_FLAG_DEFINITIONS", "off"),
        ("POSTHOG_REPORT_PREVIOUS_RUN", "on"),
        ("POSTHOG_EXCEPTION_RATE_LIMIT", "100 / 1min"),
        ("POSTHOG_EXACT_TIMESTAMPS", "yes"),
        ("POSTHOG_SYMBOLICATE", "no"),
        ("POSTHOG_BREADCRUMB_EVENTS", "no"),
    ];

    #[test]
    fn every_variable_sets_its_setting() {
        let names: Vec<_> = VARIABLES.iter().map(|variable| variable.name).collect();
        assert_eq!(VALUES.map(|(name, _)| name).to_vec(), names);
        let config = with(&VALUES);
        assert_eq!(config.ignored_variables, Vec::<String>::new());
        assert!(config.opted_out && config.memory_fallback && config.disable_geoip && !config.disabled);
        assert_eq!(config.adopt_queue.len(), 2);
        assert_eq!(
            (config.max_event_bytes, config.journal_bytes, config.max_queue_bytes),
            (2 << 20, 16 << 20, 64 << 20)
        );
        assert_eq!((config.max_queue_events, config.min_free_space), (Some(1_000_000), 1 << 20));
        assert_eq!(config.max_queue_age, Some(Duration::from_secs(7 * 86_400)));
        assert_eq!(config.overflow, OverflowPolicy::Block(Duration::from_secs(5)));
        assert_eq!((config.sync_interval.as_millis(), config.ack_interval.as_secs()), (250, 2));
        assert_eq!((config.flush_at, config.flush_interval.as_secs(), config.shutdown_timeout.as_secs()), (50, 60, 20));
        assert_eq!((config.max_batch_events, config.max_batch_bytes), (500, 1 << 20));
        assert_eq!((config.max_in_flight, config.max_retries, config.retry_after_cap.as_secs()), (2, 5, 43_200));
        assert_eq!((config.first_send_jitter, config.request_timeout.as_secs()), (Duration::ZERO, 60));
        assert_eq!(config.connect_timeout, Some(Duration::from_secs(45)));
        assert_eq!((config.protocol, config.compression), (CaptureProtocol::V1, Compression::Deflate));
        assert!(
            config.report_previous_run && config.exact_timestamps && !config.symbolicate && !config.breadcrumb_events
        );
        assert_eq!(config.exception_rate_limit, (100, Duration::from_secs(60)));
        assert_eq!(with(&[("POSTHOG_EXCEPTION_RATE_LIMIT", "0")]).exception_rate_limit.0, 0);
        assert!(config.proxy == crate::transport::Proxy::Url("http://user:secret@proxy:3128".into()));
        assert!(config.check().is_ok());
    }

    #[test]
    fn a_value_that_cannot_be_used_is_reported_and_ignored() {
        for variable in VARIABLES {
            let config = with(&[(variable.name, "a_secret and nonsense")]);
            let [why] = &config.ignored_variables[..] else {
                panic!("{}: {:?}", variable.name, config.ignored_variables)
            };
            let why = why.clone();
            assert!(why.contains(variable.name) && why.contains("is ignored"), "{why}");
            assert_eq!(why.contains("a_secret"), !variable.is_secret, "{why}");
            let checked = config.check().unwrap();
            assert_eq!(checked.diagnostics, [Diagnostic::InputIgnored { what: why }]);
        }
        for (name, value) in [
            ("POSTHOG_FLUSH_AT", "0"),
            ("POSTHOG_FLUSH_INTERVAL", "5"),
            ("POSTHOG_FLUSH_INTERVAL", "2h"),
            ("POSTHOG_SYNC_INTERVAL", "18446744073709551615d"),
            ("POSTHOG_MAX_QUEUE_BYTES", "99999999999TiB"),
            ("POSTHOG_JOURNAL_BYTES", "64KiB"),
            ("POSTHOG_COMPRESSION", "deflate"),
            ("POSTHOG_CONNECT_TIMEOUT", "45s"),
            ("POSTHOG_ADOPT_QUEUE", "phx_hush@x"),
            ("POSTHOG_CA_CERTIFICATE", "/dev/null"),
            ("POSTHOG_PROXY", "ftp://user:hush@proxy"),
        ] {
            let config = with(&[(name, value)]);
            assert!(matches!(&config.ignored_variables[..], [why] if !why.contains("hush")), "{name} = {value}");
            assert!(config.check().is_ok());
        }
    }

    #[test]
    fn the_documentation_lists_every_variable() {
        let documentation = include_str!("env.rs");
        for name in VARIABLES.iter().map(|variable| variable.name) {
            assert!(documentation.contains(&format!("/// | `{name}` |")), "{name}");
        }
    }
}
