//! Checks settings against their bounds and each other, and builds the options of the layers below.

use std::fmt::Debug;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::endpoint::{former_projects, headers, project};
use super::flags::FlagSettings;
use super::values::TraceSource;
use super::{BeforeSend, Config};
use crate::context;
use crate::crash::InProcess;
use crate::delivery::{CaptureProtocol, Compression, DeliveryOptions, PaceOptions};
use crate::error::Error;
use crate::pipeline::{Intervals, Lane, Limits, OverflowPolicy, PipelineOptions};
use crate::queue::{Project, QueueOptions, journal};
use crate::record::symbols::InAppRules;
use crate::record::{LIB_NAME, LIB_VERSION, NoSymbols, Pairs, Symbols};
use crate::recorder::DiagnosticHook;
use crate::report::Diagnostic;
use crate::sys::backoff::Backoff;
use crate::sys::clock::Clock;
use crate::sys::disk::Disk;
use crate::sys::limits::{self, *};
use crate::sys::machine::{self, System};
use crate::sys::wording::bytes;
use crate::transport::{ClientIdentity, TransportOptions};

/// The settings that the client itself needs.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) ai_lane: bool,
    pub(crate) report_previous_run: bool,
    pub(crate) breadcrumb_events: bool,
    pub(crate) disable_geoip: bool,
    pub(crate) exact_timestamps: bool,
    pub(crate) exception_rate_limit: (u32, Duration),
    pub(crate) trace_context: Option<TraceSource>,
    pub(crate) in_app: Arc<InAppRules>,
    /// Properties of all events.
    pub(crate) release: Pairs,
    /// Properties of all exceptions.
    pub(crate) system: Pairs,
    pub(crate) shutdown_timeout: Duration,
    pub(crate) tracing_hosts: Arc<[String]>,
}

impl Settings {
    /// The properties that all exceptions of this process have.
    pub(crate) fn process_facts(&self) -> Pairs {
        let mut facts = self.release.clone();
        facts.merge(&self.system);
        facts
    }
}

/// A valid configuration, as options of the layers below.
pub(crate) struct Checked {
    /// `None` for a disabled client. The client sets `report` and `ended`, which do nothing here.
    pub(crate) pipeline: Option<PipelineOptions>,
    /// What an operator should know of the configuration.
    pub(crate) diagnostics: Vec<Diagnostic>,
    pub(crate) settings: Settings,
    pub(crate) opted_out: bool,
    /// Each name once.
    pub(crate) super_properties: Pairs,
    pub(crate) before_send: Vec<BeforeSend>,
    pub(crate) flags: FlagSettings,
    pub(crate) on_diagnostic: Option<DiagnosticHook>,
}

impl Config {
    /// Checks every setting.
    pub(crate) fn check(self) -> Result<Checked, Error> {
        let mut diagnostics = Vec::from_iter(self.key_is_missing.then_some(Diagnostic::KeyMissing));
        diagnostics.extend(self.ignored_variables.iter().map(|what| Diagnostic::InputIgnored { what: what.clone() }));
        let pipeline = if self.disabled { None } else { Some(self.pipeline(&mut diagnostics)?) };
        let mut super_properties = Pairs::default();
        let shutdown_timeout = within("shutdown_timeout", self.shutdown_timeout, &SHUTDOWN_TIMEOUT)?;
        let exception_rate_limit = (
            within("exception_rate_limit", self.exception_rate_limit.0, &EXCEPTION_BURST)?,
            within("exception_rate_limit", self.exception_rate_limit.1, &EXCEPTION_REFILL)?,
        );
        let release = self.release_properties(|name| std::env::var(name).ok())?;
        let flags = self.flag_settings()?;
        for pair in self.super_properties {
            super_properties.merge(&pair.map_err(|why| Error::config("super_property", why))?);
        }
        let pattern = |host: String| {
            let why = || format!("is made of names such as api.example.com; {host:?} is none");
            context::host_pattern(&host).ok_or_else(|| Error::config("tracing_hosts", why()))
        };
        Ok(Checked {
            pipeline,
            diagnostics,
            settings: Settings {
                ai_lane: self.ai_lane,
                report_previous_run: self.report_previous_run,
                breadcrumb_events: self.breadcrumb_events,
                disable_geoip: self.disable_geoip,
                exact_timestamps: self.exact_timestamps,
                exception_rate_limit,
                trace_context: self.trace_context,
                in_app: Arc::new(self.in_app),
                release,
                // A disabled client opens no file.
                system: if self.disabled { Pairs::default() } else { system_properties(machine::system()) },
                shutdown_timeout,
                tracing_hosts: self.tracing_hosts.into_iter().map(pattern).collect::<Result<_, _>>()?,
            },
            opted_out: self.opted_out,
            super_properties,
            before_send: self.before_send,
            flags,
            on_diagnostic: self.on_diagnostic,
        })
    }

    /// The properties that name the release: `$release_id` of the environment, name and version of the program.
    fn release_properties(&self, var: impl Fn(&str) -> Option<String>) -> Result<Pairs, Error> {
        let mut properties = Vec::new();
        // According to PostHog's specification the environment is read once, and a blank id is none.
        let id = var(RELEASE_ID).map(|id| id.trim().to_owned()).filter(|id| !id.is_empty());
        if let Some(id) = id.filter(|id| id.len() <= RELEASE_TEXT_MOST) {
            properties.push(("$release_id", id));
        }
        if let Some((name, version)) = &self.release {
            for (key, text) in [("$app_namespace", name), ("$app_version", version)] {
                if text.trim().is_empty() || text.len() > RELEASE_TEXT_MOST {
                    let why = format!("needs a name and a version of 1 to {RELEASE_TEXT_MOST} bytes; one is {text:?}");
                    return Err(Error::config("release", why));
                }
                properties.push((key, text.clone()));
            }
        }
        Ok(Pairs::of(&properties).unwrap_or_default())
    }

    fn pipeline(&self, diagnostics: &mut Vec<Diagnostic>) -> Result<PipelineOptions, Error> {
        within("max_event_bytes", self.max_event_bytes, &EVENT_BYTES)?;
        let arena_bytes = within("journal_bytes", self.journal_bytes, &JOURNAL_BYTES)?;
        let least = journal::arena_bytes_min(self.max_event_bytes);
        if arena_bytes < least {
            let why = format!(
                "must be at least {least} bytes, four times max_event_bytes and a little more; it is {arena_bytes} ({})",
                bytes(arena_bytes as u64)
            );
            return Err(Error::config("journal_bytes", why));
        }
        let (project, replaced) =
            project(&self.api_key, &self.host).map_err(|error| self.naming_its_variable(error))?;
        let mut also = Vec::new();
        if let Some(given) = replaced {
            // Earlier versions of this library did not replace the host and named their queues by the given one.
            also.push(Project { host: given.clone(), ..project.clone() });
            diagnostics.push(Diagnostic::HostReplaced { given, used: project.host.clone() });
        }
        for (key, host) in &self.adopt_queue {
            also.extend(former_projects(key, host)?);
        }
        let limits = self.limits()?;
        Ok(PipelineOptions {
            delivery: self.delivery(&project)?,
            flags: self.remote_flags(&project)?,
            flag_definitions: self.flag_definitions(&project)?,
            transport: self.transport()?,
            queue: QueueOptions {
                project,
                queue_dir: self.place()?,
                arena_bytes,
                lock_wait: limits::LOCK_WAIT,
                cache_bytes: limits::STORE_CACHE_BYTES,
                reserve_bytes: limits::RESERVE_BYTES,
                dead_bytes: limits.dead_bytes(),
                adopts: false,
            },
            limits,
            held: self.opted_out,
            lane: Lane::Analytics,
            also,
            memory_fallback: self.memory_fallback,
            max_event_bytes: self.max_event_bytes.min(limits::event_bytes_most(limits.queue_bytes)),
            open_timeout: limits::OPEN_TIMEOUT,
            intervals: Intervals {
                flush_at: within("flush_at", self.flush_at, &FLUSH_AT)? as u64,
                flush: within("flush_interval", self.flush_interval, &FLUSH_INTERVAL)?,
                sync: within("sync_interval", self.sync_interval, &SYNC_INTERVAL)?,
                ack: within("ack_interval", self.ack_interval, &ACK_INTERVAL)?,
            },
            network: None,
            on_delivery: self.on_delivery.clone(),
            report: Arc::new(|_| ()),
            ended: Arc::new(|_, _| ()),
            disk: Disk::default(),
            clock: Clock::System,
        })
    }

    fn limits(&self) -> Result<Limits, Error> {
        let least_age = Duration::from_secs(1);
        if let Some(age) = self.max_queue_age.filter(|age| *age < least_age) {
            return Err(Error::config("max_queue_age", format!("must be at least {least_age:?}; it is {age:?}")));
        }
        if self.max_queue_events == Some(0) {
            return Err(Error::config("max_queue_events", "must be at least 1"));
        }
        if let OverflowPolicy::Block(most) = self.overflow {
            within("overflow", most, &BLOCK)?;
        }
        Ok(Limits {
            queue_bytes: within("max_queue_bytes", self.max_queue_bytes, &QUEUE_BYTES)?,
            queue_events: self.max_queue_events.unwrap_or(u64::MAX),
            queue_age: self.max_queue_age,
            min_free_space: within("min_free_space", self.min_free_space, &MIN_FREE_SPACE)?,
            overflow: self.overflow,
        })
    }

    fn delivery(&self, project: &Project) -> Result<DeliveryOptions, Error> {
        let (first_backoff, max_backoff) = self.retry_backoff;
        within("retry_backoff", first_backoff, &RETRY_BACKOFF)?;
        within("retry_backoff", max_backoff, &RETRY_BACKOFF)?;
        if first_backoff > max_backoff {
            let why = format!("starts at {first_backoff:?}, which is more than its maximum ({max_backoff:?})");
            return Err(Error::config("retry_backoff", why));
        }
        let jitter = Duration::ZERO..=Duration::from_secs(600);
        let path = match self.protocol {
            CaptureProtocol::V0 => "/batch/",
            CaptureProtocol::V1 => "/i/v1/analytics/events",
        };
        Ok(DeliveryOptions {
            gzip_in_query: true,
            url: format!("{}{path}", project.host).into(),
            api_key: project.api_key.clone(),
            historical_migration: self.historical_migration,
            protocol: self.protocol,
            compression: compression(self.compression, self.protocol)?,
            max_batch_events: within("max_batch_events", self.max_batch_events, &MAX_BATCH_EVENTS)?,
            max_batch_bytes: within("max_batch_bytes", self.max_batch_bytes, &MAX_BATCH_BYTES)?,
            symbols: self.symbols(),
            pace: PaceOptions {
                max_in_flight: within("max_in_flight", self.max_in_flight, &MAX_IN_FLIGHT)?,
                max_retries: within("max_retries", self.max_retries, &MAX_RETRIES)?,
                backoff: Backoff { first: first_backoff, most: max_backoff },
                retry_after_cap: within("retry_after_cap", self.retry_after_cap, &RETRY_AFTER_CAP)?,
                first_send_jitter: within("first_send_jitter", self.first_send_jitter, &jitter)?,
            },
        })
    }

    fn symbols(&self) -> Arc<dyn Symbols> {
        if !self.symbolicate {
            return Arc::new(NoSymbols);
        }
        Arc::new(InProcess::new(self.source_context).with_rules(Arc::new(self.in_app.clone())))
    }

    fn transport(&self) -> Result<TransportOptions, Error> {
        let [major, minor, patch] = LIB_VERSION;
        let request_timeout = within("request_timeout", self.request_timeout, &REQUEST_TIMEOUT)?;
        let connect_timeout = self.connect_timeout.unwrap_or(CONNECT_TIMEOUT_DEFAULT.min(request_timeout));
        within("connect_timeout", connect_timeout, &REQUEST_TIMEOUT)?;
        if connect_timeout > request_timeout {
            let why = format!("is {connect_timeout:?}, more than the whole request may take ({request_timeout:?})");
            return Err(Error::config("connect_timeout", why));
        }
        Ok(TransportOptions {
            request_timeout,
            connect_timeout,
            proxy: self.proxy.clone(),
            ca_pem: self.ca_certificates.clone(),
            identity: self.client_identity.clone().map(identity).transpose()?,
            user_agent: format!("{LIB_NAME}/{major}.{minor}.{patch}"),
            headers: headers(&self.headers)?,
        })
    }
}

/// The environment variable with the id of the release that is deployed, as all libraries of PostHog read it.
const RELEASE_ID: &str = "POSTHOG_RELEASE_ID";

/// The properties that name the operating system, as PostHog's libraries for servers name it.
fn system_properties(system: &System) -> Pairs {
    let System { name, version, distribution } = system;
    let all = [("$os", Some(*name)), ("$os_version", version.as_deref()), ("$os_distro", distribution.as_deref())];
    let known: Vec<_> = all.into_iter().filter_map(|(key, text)| Some((key, text?))).collect();
    Pairs::of(&known).unwrap_or_default()
}

/// Makes the paths of a client identity absolute, because daemons change their working directory. Whether the files can
/// be used is seen when they are read.
fn identity(identity: ClientIdentity) -> Result<ClientIdentity, Error> {
    let absolute = |what: &str, path: PathBuf| match path.as_os_str().is_empty() {
        true => Err(Error::config("client_identity", format!("names no file for the {what}"))),
        false => Ok(std::path::absolute(&path).unwrap_or(path)),
    };
    Ok(match identity {
        ClientIdentity::Files { certificates, key } => ClientIdentity::Files {
            certificates: absolute("certificate (POSTHOG_CLIENT_CERT)", certificates)?,
            key: absolute("private key (POSTHOG_CLIENT_KEY)", key)?,
        },
        pem @ ClientIdentity::Pem { .. } => pem,
    })
}

/// Checks that the protocol and this build support a codec.
fn compression(chosen: Compression, protocol: CaptureProtocol) -> Result<Compression, Error> {
    let is_v0 = protocol == CaptureProtocol::V0;
    match chosen {
        Compression::Deflate | Compression::Brotli | Compression::Zstd if is_v0 => Err(Error::config(
            "compression",
            format!("{chosen:?} needs CaptureProtocol::V1; V0 servers read gzip only"),
        )),
        Compression::Brotli if !cfg!(feature = "brotli") => {
            Err(Error::config("compression", "Brotli needs the cargo feature `brotli`"))
        }
        Compression::Zstd if !cfg!(feature = "zstd") => {
            Err(Error::config("compression", "Zstd needs the cargo feature `zstd`"))
        }
        supported => Ok(supported),
    }
}

pub(super) fn within<T: PartialOrd + Copy + Debug>(
    field: &'static str,
    value: T,
    bounds: &RangeInclusive<T>,
) -> Result<T, Error> {
    if bounds.contains(&value) {
        return Ok(value);
    }
    let [least, most, is] = [*bounds.start(), *bounds.end(), value].map(|value| shown(field, &value));
    Err(Error::config(field, format!("must be from {least} to {most}; it is {is}")))
}

/// The value as a program writes it; sizes also with a unit.
fn shown(field: &str, value: &impl Debug) -> String {
    let written = format!("{value:?}");
    let is_size = field.ends_with("_bytes") || field == "min_free_space";
    match written.parse::<u64>() {
        Ok(size) if is_size && size >= 1024 => format!("{written} ({})", bytes(size)),
        _ => written,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config::new("phc_test").queue_dir("/q")
    }

    fn refused(config: Config) -> &'static str {
        match config.check() {
            Err(Error::Config { field, .. }) => field,
            Err(other) => panic!("{other}"),
            Ok(_) => "",
        }
    }

    #[test]
    fn a_setting_out_of_its_bounds_is_an_error_that_names_it() {
        assert_eq!(refused(config()), "");
        assert_eq!(refused(config().flush_at(0)), "flush_at");
        assert_eq!(refused(config().sync_interval(Duration::ZERO)), "sync_interval");
        assert_eq!(refused(config().max_queue_bytes(5)), "max_queue_bytes");
        assert_eq!(refused(config().max_queue_age(Duration::ZERO)), "max_queue_age");
        assert_eq!(refused(config().max_in_flight(0)), "max_in_flight");
        assert_eq!(refused(config().request_timeout(Duration::MAX)), "request_timeout");
        assert_eq!(refused(config().retry_backoff(Duration::from_secs(9), Duration::from_secs(1))), "retry_backoff");
        assert_eq!(refused(config().exception_rate_limit(0, Duration::ZERO)), "exception_rate_limit");
        assert_eq!(refused(config().exception_rate_limit(100_001, Duration::from_secs(1))), "exception_rate_limit");
        assert_eq!(refused(config().queue_dir("")), "queue_dir");
        assert_eq!(refused(config().overflow(OverflowPolicy::Block(Duration::from_secs(3601)))), "overflow");
        assert_eq!(refused(config().min_free_space(u64::MAX)), "min_free_space");
        assert_eq!(refused(config().flag_request_timeout(Duration::from_millis(49))), "flag_request_timeout");
        assert_eq!(refused(config().flag_request_max_retries(11)), "flag_request_max_retries");
    }

    #[test]
    fn a_connect_timeout_must_fit_into_the_request_timeout() {
        let within = |most: u64| config().request_timeout(Duration::from_secs(most));
        assert_eq!(refused(within(5)), "", "the default is lowered");
        assert_eq!(within(5).check().unwrap().pipeline.unwrap().transport.connect_timeout, Duration::from_secs(5));
        assert_eq!(refused(within(5).connect_timeout(Duration::from_secs(6))), "connect_timeout");
    }

    #[test]
    fn a_release_has_an_id_of_the_environment_a_name_or_both() {
        let named = |config: Config, id: &str| {
            let var = |name: &str| (name == "POSTHOG_RELEASE_ID").then(|| id.to_owned());
            let pairs = config.release_properties(var).unwrap();
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            let value = |bytes: &[u8]| crate::record::values::value_as::<String>(bytes).unwrap();
            pairs.entries().map(|(key, at)| format!("{}={}", text(key), value(at))).collect::<Vec<_>>()
        };
        let long = "x".repeat(257);
        for nothing in ["", " \n", &long] {
            assert_eq!(named(config(), nothing), [""; 0], "{nothing:?}");
        }
        assert_eq!(named(config(), " rel-abc123 \n"), ["$release_id=rel-abc123"]);
        let both = named(config().release("checkout", "1.4.0"), "rel-abc123");
        assert_eq!(both, ["$release_id=rel-abc123", "$app_namespace=checkout", "$app_version=1.4.0"]);
        for (name, version) in [("", "1"), ("checkout", " "), (&long, "1")] {
            assert_eq!(refused(config().release(name, version)), "release", "{name:?} {version:?}");
        }
    }

    #[test]
    fn a_backoff_above_its_maximum_is_reported_with_both() {
        let config = config().retry_backoff(Duration::from_secs(9), Duration::from_secs(1));
        let Err(error) = config.check() else { panic!("taken") };
        let text = error.to_string();
        assert!(text.contains("9s") && text.contains("1s"), "{text}");
    }

    #[test]
    fn a_journal_too_small_for_four_large_events_is_refused() {
        assert_eq!(refused(config().journal_bytes(1024 * 1024)), "journal_bytes");
        assert_eq!(refused(config().journal_bytes(1024 * 1024).max_event_bytes(200 * 1024)), "");
    }

    #[test]
    fn the_largest_event_fits_into_a_small_queue() {
        let most = |config: Config| config.check().unwrap().pipeline.unwrap().max_event_bytes;
        assert_eq!(most(config()), 1024 * 1024);
        assert_eq!(most(config().max_queue_bytes(1024 * 1024)), 508 * 1024);
        assert_eq!(most(config().max_queue_bytes(1024 * 1024).max_event_bytes(4096)), 4096);
    }

    #[test]
    fn hosts_that_mean_the_same_are_the_same_project() {
        let name = |host: &str| config().host(host).check().unwrap().pipeline.unwrap().queue.project.dir_name();
        let plain = name("https://eu.i.posthog.com");
        for same in [
            "https://eu.i.posthog.com/",
            "eu.i.posthog.com",
            "HTTPS://EU.I.POSTHOG.COM:443//",
            " https://eu.i.posthog.com ",
        ] {
            assert_eq!(name(same), plain, "{same}");
        }
        assert_ne!(name("https://us.i.posthog.com"), plain);
    }

    #[test]
    fn an_unsupported_codec_is_an_error_that_names_it() {
        use super::super::Compression::{Brotli, Deflate, Gzip, None, Zstd};
        let v1 = |codec| refused(config().protocol(CaptureProtocol::V1).compression(codec));
        let v0 = |codec| refused(config().compression(codec));
        assert_eq!([None, Gzip, Deflate].map(v1), [""; 3]);
        assert_eq!([None, Gzip].map(v0), [""; 2]);
        assert_eq!([Deflate, Brotli, Zstd].map(v0), ["compression"; 3]);
        let unless = |compiled: bool| if compiled { "" } else { "compression" };
        assert_eq!(v1(Brotli), unless(cfg!(feature = "brotli")));
        assert_eq!(v1(Zstd), unless(cfg!(feature = "zstd")));
    }

    #[test]
    fn a_disabled_client_has_no_pipeline() {
        assert!(Config::disabled().check().unwrap().pipeline.is_none());
    }
}
