//! The loader's task: loads definitions, waits, and repeats until it is stopped.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use xxhash_rust::xxh3::xxh3_64;

use super::fetch::{self, LoaderOptions, interpret, usable};
use super::handle::{Command, FlagDefinitionsError as Error, LoadedFlags, Loader};
use super::kept;
use super::provider::{FlagDefinitions, ProviderCalls, Spawn};
use crate::flags::LocalFlags;
use crate::report::{Diagnostic, Report};
use crate::sys::backoff::{doubled, jitter};
use crate::sys::clock::Clock;
use crate::sys::entropy::random_u64;
use crate::sys::limits;
use crate::sys::reentry;
use crate::sys::wording;
use crate::transport::Http;

/// The most unreadable flags that a diagnostic names.
const KEYS_REPORTED: usize = 10;
/// The operation that [`Diagnostic::FlagCacheFailed`] names if definitions cannot be kept for the next process.
pub(crate) const KEEP: &str = "keep";

/// What a loader works with.
#[derive(Clone)]
pub(crate) struct LoaderParts {
    pub(crate) options: LoaderOptions,
    pub(crate) http: Arc<dyn Http>,
    pub(crate) clock: Clock,
    /// Starts the threads on which a blocking provider is called.
    pub(crate) spawn: Spawn,
    /// Keeps encoded definitions for the next process. `None` removes those that are kept, which must not be used
    /// again. Does not block.
    pub(crate) keep: Arc<dyn Fn(Option<Vec<u8>>) + Send + Sync>,
    pub(crate) report: Report,
}

/// Loads definitions until the loader is stopped. The first load begins at once.
pub(crate) async fn serve(parts: LoaderParts, loader: Arc<Loader>) {
    let mut poller = Poller::new(parts, &loader);
    loop {
        let loaded = tokio::select! {
            biased;
            () = loader.stopping() => break,
            loaded = poller.load() => loaded,
        };
        if loader.take_reset() {
            // The load began before the reset. The next one answers the callers.
            poller.clear();
            continue;
        }
        let wait = poller.conclude(loaded);
        if !poller.wait(wait).await {
            break;
        }
    }
    poller.shut_down().await;
}

struct Poller {
    parts: LoaderParts,
    loader: Arc<Loader>,
    provider: Option<ProviderCalls>,
    /// A hash of the document that is kept for the next process.
    kept: Option<u64>,
    /// The kind of failure that was reported last. `None` if loading works.
    reported: Option<String>,
    /// Operations whose last attempt failed.
    failing: BTreeSet<&'static str>,
    pace: Pace,
    /// The wait that the server asked for in the last load.
    retry_after: Option<Duration>,
    rng: StdRng,
}

/// Answers the callers even if the runtime drops the task.
impl Drop for Poller {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let why = "the loader of feature flag definitions panicked, which is a defect of this library \
                       (please report it); definitions loaded earlier stay in use until this process ends"
                .to_owned();
            self.loader.note_failure(Some(why.clone()));
            reentry::caught(|| (self.parts.report)(Diagnostic::FlagDefinitionsUnavailable { why }));
        }
        self.loader.close();
    }
}

impl Poller {
    fn new(parts: LoaderParts, loader: &Arc<Loader>) -> Self {
        Self {
            kept: loader.restored_hash,
            provider: calls_of(&parts, loader),
            loader: Arc::clone(loader),
            reported: None,
            failing: BTreeSet::new(),
            pace: Pace::default(),
            retry_after: None,
            rng: StdRng::seed_from_u64(random_u64()),
            parts,
        }
    }

    /// One load, from PostHog or through the provider.
    async fn load(&mut self) -> Result<(), Error> {
        self.retry_after = None;
        if self.loader.take_kept_was_lost() {
            self.kept = None;
        }
        let Some(provider) = self.provider.take() else { return self.fetch().await.map(drop) };
        let loaded = self.load_through(&provider).await;
        self.provider = Some(provider);
        loaded
    }

    async fn load_through(&mut self, provider: &ProviderCalls) -> Result<(), Error> {
        let should_fetch = if self.has_key() { provider.should_fetch().await } else { Ok(false) };
        if matches!(self.checked("should_fetch", should_fetch), Some(false)) {
            let found = provider.read().await.and_then(|found| found.ok_or_else(|| "it has no definitions".into()));
            let read = found.and_then(|found| self.adopt(found.as_json(), None).map_err(|error| error.to_string()));
            let why = read.as_ref().err().cloned().unwrap_or_default();
            if self.checked("read", read).is_some() {
                return Ok(());
            }
            if self.loader.current().is_some() || !self.has_key() {
                return Err(Error::Provider(why));
            }
        }
        if let Some(document) = self.fetch().await? {
            let stored = provider.store(FlagDefinitions::from_json(document)).await;
            self.checked("store", stored);
        }
        Ok(())
    }

    /// Requests the definitions from PostHog. Returns the document, or `None` if the loaded one is the newest.
    async fn fetch(&mut self) -> Result<Option<Vec<u8>>, Error> {
        let LoaderParts { http, clock, options, .. } = &self.parts;
        let Some(secret_key) = &options.secret_key else { return Err(Error::NotConfigured) };
        // If a provider or the store may have lost its copy, no ETag is sent: PostHog then returns the whole document,
        // which is stored again.
        let is_conditional = options.provider.is_none() && (options.keep.is_none() || self.kept.is_some());
        let loaded = self.loader.current().filter(|_| is_conditional);
        let etag = loaded.as_ref().and_then(|loaded| loaded.etag.as_deref());
        let response = fetch::send(&**http, clock, options, secret_key, etag).await.map_err(Error::Unavailable)?;
        match interpret(&response, etag.is_some()) {
            Ok(true) => {
                self.adopt(&response.body, response.etag)?;
                Ok(Some(response.body))
            }
            Ok(false) => {
                self.confirm(response.etag);
                Ok(None)
            }
            Err(error) => {
                if matches!(error, Error::Refused { .. }) {
                    self.clear();
                } else {
                    let wall = clock.wall_nanos();
                    self.retry_after =
                        response.retry_after.map(|after| after.wait_at(wall).min(options.retry_after_cap));
                }
                Err(error)
            }
        }
    }

    /// Parses and publishes a document, and keeps it for the next process.
    fn adopt(&mut self, document: &[u8], etag: Option<String>) -> Result<(), Error> {
        let hash = xxh3_64(document);
        let flags = match self.loader.current().filter(|loaded| loaded.hash == hash) {
            Some(loaded) => loaded.flags.clone(),
            None => {
                let flags = parse(document)?;
                self.report_unreadable(&flags);
                flags
            }
        };
        let fetched_at = self.parts.clock.wall_nanos();
        let loaded = Arc::new(LoadedFlags { flags, fetched_at, is_restored: false, etag: usable(etag), hash });
        self.loader.publish(Arc::clone(&loaded));
        self.keep(document, &loaded);
        Ok(())
    }

    /// The loaded definitions are the newest.
    fn confirm(&mut self, etag: Option<String>) {
        if let Some(loaded) = self.loader.current() {
            let mut loaded = LoadedFlags::clone(&loaded);
            loaded.fetched_at = self.parts.clock.wall_nanos();
            loaded.is_restored = false;
            loaded.etag = usable(etag).or(loaded.etag);
            self.loader.publish(Arc::new(loaded));
        }
    }

    /// Drops the definitions, for this process and the next one.
    fn clear(&mut self) {
        self.loader.clear();
        if self.kept.take().is_some() {
            (self.parts.keep)(None);
        }
    }

    fn keep(&mut self, document: &[u8], loaded: &LoadedFlags) {
        let Some(most) = self.parts.options.keep.filter(|_| self.kept != Some(loaded.hash)) else { return };
        let bytes = kept::encode(document, loaded.etag.as_deref(), loaded.fetched_at, most);
        let too_large = || format!("the compressed definitions are larger than {}", wording::bytes(most as u64));
        self.checked(KEEP, bytes.is_some().then_some(()).ok_or_else(too_large));
        // Even without bytes: the next process must not use older definitions as if they were these.
        (self.parts.keep)(bytes);
        self.kept = Some(loaded.hash);
    }

    /// Ends a load: answers the callers that wait for it, reports a change, and returns the wait until the next load.
    fn conclude(&mut self, loaded: Result<(), Error>) -> Duration {
        self.loader.note_failure(loaded.as_ref().err().map(ToString::to_string));
        let has_definitions = self.loader.current().is_some();
        let (interval, rng) = (self.parts.options.interval, &mut self.rng);
        let wait = match &loaded {
            Ok(()) => self.pace.after_success(interval, rng),
            Err(Error::Refused { .. }) => self.pace.after_refusal(interval, rng),
            Err(_) => self.pace.after_failure(self.retry_after, interval, has_definitions, rng),
        };
        match &loaded {
            Ok(()) if self.reported.take().is_some() => (self.parts.report)(Diagnostic::FlagDefinitionsRecovered),
            Ok(()) => {}
            Err(error) => self.report_failure(error),
        }
        self.loader.answer(&loaded);
        wait
    }

    /// Waits until the next load is due or requested. `false` if the loader is to stop.
    async fn wait(&mut self, wait: Duration) -> bool {
        let clock = self.parts.clock.clone();
        let mut may_request = self.retry_after.is_none();
        // A requested load only has to respect Retry-After, which may be much shorter than the wait for the next poll.
        let mut retry_allowed = pin!(clock.sleep(self.retry_after.unwrap_or_default()));
        let mut due = pin!(clock.sleep(wait));
        loop {
            tokio::select! {
                biased;
                () = &mut retry_allowed, if !may_request => may_request = true,
                command = self.loader.command() => match command {
                    Command::Stop => return false,
                    Command::Reset => {
                        self.loader.take_reset();
                        self.clear();
                        if may_request {
                            return true;
                        }
                    }
                    Command::Load if !may_request => {
                        let why = "PostHog asked to wait before the next request".into();
                        self.loader.answer(&Err(Error::Unavailable(why)));
                    }
                    Command::Load => return true,
                },
                () = &mut due => return true,
            }
        }
    }

    /// Shuts the provider down.
    async fn shut_down(&mut self) {
        let Some(provider) = self.provider.take().or_else(|| calls_of(&self.parts, &self.loader)) else { return };
        let loader = Arc::clone(&self.loader);
        tokio::select! {
            biased;
            ended = provider.shutdown() => {
                self.checked("shutdown", ended);
            }
            () = loader.abandoned() => {}
        }
    }

    fn has_key(&self) -> bool {
        self.parts.options.secret_key.is_some()
    }

    /// The result of an operation, if it succeeded. A failure is reported once, until the operation has succeeded
    /// again.
    fn checked<T>(&mut self, operation: &'static str, result: Result<T, String>) -> Option<T> {
        match result {
            Ok(result) => {
                self.failing.remove(operation);
                Some(result)
            }
            Err(why) => {
                if self.failing.insert(operation) {
                    (self.parts.report)(Diagnostic::FlagCacheFailed { operation, why });
                }
                None
            }
        }
    }

    fn report_failure(&mut self, error: &Error) {
        let why = error.to_string();
        // The beginning names the kind of failure. The rest may differ between attempts (a port, a time).
        let kind = limits::beginning(&why, 80).to_owned();
        // A failure of the provider was already reported by `checked`.
        if !matches!(error, Error::Provider(_)) && self.reported.as_ref() != Some(&kind) {
            self.reported = Some(kind);
            (self.parts.report)(Diagnostic::FlagDefinitionsUnavailable { why });
        }
    }

    fn report_unreadable(&self, flags: &LocalFlags) {
        let unreadable = flags.unreadable().iter().take(KEYS_REPORTED);
        let keys: Vec<String> = unreadable.map(|key| limits::foreign(key, limits::NAME_KEPT)).collect();
        if !keys.is_empty() {
            (self.parts.report)(Diagnostic::FlagsInvalid { keys });
        }
    }
}

/// The means to call the provider, if there is one.
fn calls_of(parts: &LoaderParts, loader: &Arc<Loader>) -> Option<ProviderCalls> {
    let provider = parts.options.provider.clone()?;
    Some(ProviderCalls::new(provider, Arc::clone(&parts.spawn), parts.clock.clone(), loader))
}

fn parse(document: &[u8]) -> Result<LocalFlags, Error> {
    match reentry::caught(|| LocalFlags::parse(document)) {
        Some(Ok(flags)) => Ok(flags),
        Some(Err(error)) => Err(Error::Unreadable(error.to_string())),
        None => Err(Error::Unreadable("parsing panicked, which is a defect of this library (please report it)".into())),
    }
}

/// Without definitions the first retry comes soon, not after a whole interval.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
/// The longest wait after failures, unless the interval is longer.
const MAX_BACKOFF: Duration = Duration::from_secs(300);
/// The first wait after PostHog refused the key or the quota was exceeded. Neither recovers without a person's help.
const FIRST_REFUSAL_WAIT: Duration = Duration::from_secs(300);
/// The longest wait after refusals, unless the interval is longer.
const MAX_REFUSAL_WAIT: Duration = Duration::from_secs(1800);

/// The waits between loads, with jitter: many daemons may have been started by one deployment, and see an outage end at
/// the same time.
#[derive(Debug, Default)]
struct Pace {
    /// Failures in a row.
    failures: u32,
    /// Refusals in a row.
    refusals: u32,
}

impl Pace {
    /// `interval` is the wait between successful loads, here and below.
    fn after_success(&mut self, interval: Duration, rng: &mut impl Rng) -> Duration {
        *self = Self::default();
        jitter(interval.mul_f64(0.9), interval.mul_f64(1.1), rng)
    }

    fn after_refusal(&mut self, interval: Duration, rng: &mut impl Rng) -> Duration {
        self.failures = 0;
        self.refusals = self.refusals.saturating_add(1);
        let wait = doubled(FIRST_REFUSAL_WAIT, self.refusals).min(MAX_REFUSAL_WAIT).max(interval);
        jitter(wait, wait.mul_f64(1.2), rng)
    }

    /// Never sooner than the server asked for (`retry_after`).
    fn after_failure(
        &mut self,
        retry_after: Option<Duration>,
        interval: Duration,
        has_definitions: bool,
        rng: &mut impl Rng,
    ) -> Duration {
        self.failures = self.failures.saturating_add(1);
        let first = if has_definitions { interval } else { FIRST_BACKOFF.min(interval) };
        let wait = doubled(first, self.failures).min(MAX_BACKOFF.max(interval));
        let asked = retry_after.map_or(Duration::ZERO, |asked| {
            jitter(asked, asked.saturating_add((asked / 10).min(Duration::from_secs(10))), rng)
        });
        jitter(wait / 2, wait, rng).max(asked)
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    const INTERVAL: Duration = Duration::from_secs(30);

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn within(wait: Duration, least: u64, most: u64) {
        assert!((secs(least)..=secs(most)).contains(&wait), "{wait:?} is not from {least} to {most} s");
    }

    #[test]
    fn polls_are_an_interval_apart_more_or_less_and_not_all_alike() {
        let (mut pace, mut rng) = (Pace::default(), StdRng::seed_from_u64(1));
        let waits: Vec<_> = (0..50).map(|_| pace.after_success(INTERVAL, &mut rng)).collect();
        waits.iter().for_each(|wait| within(*wait, 27, 33));
        assert!(waits.iter().any(|wait| *wait < secs(29)) && waits.iter().any(|wait| *wait > secs(31)));
    }

    #[test]
    fn failures_double_the_wait_until_a_success() {
        let (mut pace, mut rng) = (Pace::default(), StdRng::seed_from_u64(2));
        for (least, most) in [(15, 30), (30, 60), (60, 120), (120, 240), (150, 300), (150, 300)] {
            within(pace.after_failure(None, INTERVAL, true, &mut rng), least, most);
        }
        within(pace.after_success(INTERVAL, &mut rng), 27, 33);
        within(pace.after_failure(None, INTERVAL, true, &mut rng), 15, 30);
    }

    #[test]
    fn without_definitions_a_failed_load_is_retried_soon() {
        let (mut pace, mut rng) = (Pace::default(), StdRng::seed_from_u64(3));
        let waits: Vec<_> = (0..4).map(|_| pace.after_failure(None, INTERVAL, false, &mut rng)).collect();
        for (wait, most) in waits.into_iter().zip([1, 2, 4, 8]) {
            assert!(wait >= secs(most) / 2 && wait <= secs(most), "{wait:?}");
        }
    }

    #[test]
    fn a_long_interval_is_not_shortened_by_the_backoff() {
        let (mut pace, mut rng) = (Pace::default(), StdRng::seed_from_u64(4));
        within(pace.after_failure(None, secs(3600), true, &mut rng), 1800, 3600);
        within(pace.after_refusal(secs(3600), &mut rng), 3600, 4320);
    }

    #[test]
    fn retry_after_is_a_minimum_and_refusals_wait_long() {
        let (mut pace, mut rng) = (Pace::default(), StdRng::seed_from_u64(5));
        within(pace.after_failure(Some(secs(600)), INTERVAL, true, &mut rng), 600, 610);
        for (least, most) in [(300, 360), (600, 720), (1200, 1440), (1800, 2160), (1800, 2160)] {
            within(pace.after_refusal(INTERVAL, &mut rng), least, most);
        }
    }
}
