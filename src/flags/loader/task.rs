//! The task: a load, a wait, and so on until it is told to stop.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use xxhash_rust::xxh3::xxh3_64;

use super::fetch::{self, LoaderOptions, Verdict, judge};
use super::handle::{Call, FlagDefinitionsError as Error, LoadedFlags, Loader};
use super::kept::{self, Restored};
use super::provider::{Consultation, FlagDefinitions, Spawn};
use crate::flags::LocalFlags;
use crate::sys::clock::Clock;
use crate::sys::entropy::random_u64;
use crate::sys::limits;
use crate::sys::reentry;
use crate::sys::wording;
use crate::transport::Http;

/// What a loader works with.
#[derive(Clone)]
pub(crate) struct LoaderParts {
    /// What to load.
    pub(crate) options: LoaderOptions,
    /// The way to PostHog.
    pub(crate) http: Arc<dyn Http>,
    /// The time, by which it sleeps.
    pub(crate) clock: Clock,
    /// What an earlier process left, if anything.
    pub(crate) restored: Option<Restored>,
    /// Where a provider that blocks is asked.
    pub(crate) spawn: Spawn,
    /// Has that kept for the next process, or what was kept forgotten. Does not wait.
    pub(crate) keep: Arc<dyn Fn(Keep) + Send + Sync>,
    /// Hears of everything a human might want to know.
    pub(crate) report: Arc<dyn Fn(Notice) + Send + Sync>,
}

impl LoaderParts {
    /// Calls the provider, if there is one.
    fn consultation(&self, loader: &Arc<Loader>) -> Option<Consultation> {
        let provider = self.options.provider.clone()?;
        Some(Consultation::new(provider, Arc::clone(&self.spawn), self.clock.clone(), loader))
    }
}

/// What the next process is to find.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// These bytes.
    These(Vec<u8>),
    /// Nothing: what was kept is not to be used any more.
    Nothing,
}

/// Something that happened while definitions were loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// They cannot be loaded. Told when that begins, and when it becomes something else.
    Unavailable {
        /// In one line.
        why: String,
    },
    /// They can be loaded again.
    Recovered,
    /// These flags' definitions cannot be read; told once for each version of the definitions.
    Unreadable {
        /// The first of them.
        keys: Vec<String>,
    },
    /// The provider failed, or what was loaded cannot be kept. Told once until the same has worked again.
    CacheFailed {
        /// `should_fetch`, `read`, `store`, `shutdown` or `keep`.
        operation: &'static str,
        /// In one line.
        why: String,
    },
}

/// Of flags that cannot be read, so many are named.
const KEYS_TOLD: usize = 10;
/// A longer `ETag` is no version that anybody would compare.
const ETAG_BYTES: usize = 1024;

/// Loads definitions until it is told to stop, the first time at once.
pub(crate) async fn serve(parts: LoaderParts, loader: Arc<Loader>) {
    // Also where the runtime drops this task: who waits is told.
    let _closing = Closing { loader: Arc::clone(&loader), report: Arc::clone(&parts.report) };
    let mut poller = Poller::new(parts, &loader);
    loop {
        let loaded = tokio::select! {
            biased;
            () = loader.stopping() => break,
            loaded = poller.load() => loaded,
        };
        if loader.takes_forget() {
            // It began before: who waits is answered by the next one.
            poller.clear();
            continue;
        }
        let ended = poller.conclude(loaded);
        if !poller.pause(ended).await {
            break;
        }
    }
    poller.shut_down().await;
}

struct Closing {
    loader: Arc<Loader>,
    report: Arc<dyn Fn(Notice) + Send + Sync>,
}

impl Drop for Closing {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // A defect of ours. What is loaded goes on being used, and is said to be old.
            self.loader.set_stale(true);
            let why = "the loader of feature flag definitions panicked, which is a defect of this library (please report it); those loaded before stay in \
                       use until this process ends".to_owned();
            reentry::caught(|| (self.report)(Notice::Unavailable { why }));
        }
        self.loader.close();
    }
}

/// Why a load came to nothing.
struct Miss {
    error: Error,
    retry_after: Option<Duration>,
}

impl From<Error> for Miss {
    fn from(error: Error) -> Self {
        Self { error, retry_after: None }
    }
}

struct Poller {
    parts: LoaderParts,
    loader: Arc<Loader>,
    provider: Option<Consultation>,
    /// Which version PostHog says is loaded.
    etag: Option<String>,
    /// Of the document that is loaded.
    hash: Option<u64>,
    /// Of the document that the next process will find.
    kept: Option<u64>,
    /// What was told of the failures in a row, by the kind of error.
    told: Option<String>,
    /// Operations of caches that failed the last time.
    failing: BTreeSet<&'static str>,
    pace: Pace,
    rng: StdRng,
}

impl Poller {
    fn new(parts: LoaderParts, loader: &Arc<Loader>) -> Self {
        let restored = parts.restored.as_ref();
        let hash = restored.map(|restored| restored.hash);
        Self {
            etag: restored.and_then(|restored| usable(restored.etag.clone())),
            hash,
            kept: hash,
            provider: parts.consultation(loader),
            loader: Arc::clone(loader),
            told: None,
            failing: BTreeSet::new(),
            pace: Pace::default(),
            rng: StdRng::seed_from_u64(random_u64()),
            parts,
        }
    }

    /// One load, from wherever it is to come.
    async fn load(&mut self) -> Result<(), Miss> {
        if self.loader.takes_kept_is_lost() {
            // Without the version the whole document comes, and is kept.
            (self.kept, self.etag) = (None, None);
        }
        let Some(provider) = self.provider.take() else { return self.fetch().await.map(drop) };
        let loaded = self.load_through(&provider).await;
        self.provider = Some(provider);
        loaded
    }

    async fn load_through(&mut self, provider: &Consultation) -> Result<(), Miss> {
        let decided = if self.has_key() { provider.should_fetch().await } else { Ok(false) };
        if matches!(self.told_of("should_fetch", decided), Some(false)) {
            let found = provider.read().await.and_then(|found| found.ok_or_else(|| "it has none".into()));
            let read = found.and_then(|found| self.adopt(found.as_json(), None).map_err(|error| error.to_string()));
            let why = match &read {
                Ok(()) => String::new(),
                Err(why) => why.clone(),
            };
            if self.told_of("read", read).is_some() {
                return Ok(());
            }
            if self.loader.current().is_some() || !self.has_key() {
                return Err(Error::Provider(why).into());
            }
        }
        if let Some(document) = self.fetch().await? {
            let stored = provider.store(FlagDefinitions::from_json(document)).await;
            self.told_of("store", stored);
        }
        Ok(())
    }

    /// Asks PostHog. Returns the document, unless the one that is loaded is the newest.
    async fn fetch(&mut self) -> Result<Option<Vec<u8>>, Miss> {
        let Some(secret_key) = &self.parts.options.secret_key else { return Err(Error::NotConfigured.into()) };
        // A provider may have lost what it had: it gets the whole document each time.
        let is_known = self.loader.current().is_some() && self.provider_is_absent();
        let etag = self.etag.clone().filter(|_| is_known);
        let answer =
            fetch::ask(&*self.parts.http, &self.parts.clock, &self.parts.options, secret_key, etag.as_deref()).await;
        let response = answer.map_err(Error::Unavailable)?;
        match judge(&response, etag.is_some()) {
            Verdict::Replace => {
                self.adopt(&response.body, response.etag)?;
                Ok(Some(response.body))
            }
            Verdict::Unchanged => {
                self.etag = usable(response.etag).or(etag);
                self.confirm();
                Ok(None)
            }
            Verdict::Clear { status, why } => {
                self.clear();
                Err(Error::Refused { status, why }.into())
            }
            Verdict::Failed { why, retry_after } => {
                let wall = self.parts.clock.wall_nanos();
                let cap = self.parts.options.retry_after_cap;
                let retry_after = retry_after.map(|after| after.wait_at(wall).min(cap));
                Err(Miss { error: Error::Unavailable(why), retry_after })
            }
        }
    }

    /// Evaluates with this document from now on, if it can be read.
    fn adopt(&mut self, document: &[u8], etag: Option<String>) -> Result<(), Error> {
        let hash = xxh3_64(document);
        let loaded = self.loader.current().filter(|_| self.hash == Some(hash));
        let flags = match loaded {
            Some(loaded) => loaded.flags,
            None => {
                let flags = read(document)?;
                self.tell_of_unreadable(&flags);
                flags
            }
        };
        (self.hash, self.etag) = (Some(hash), usable(etag));
        let fetched_at = self.parts.clock.wall_nanos();
        self.loader.publish(LoadedFlags { flags, fetched_at, is_restored: false });
        self.keep(document, hash, fetched_at);
        Ok(())
    }

    /// What is loaded is the newest.
    fn confirm(&mut self) {
        if let Some(loaded) = self.loader.current() {
            let fetched_at = self.parts.clock.wall_nanos();
            self.loader.publish(LoadedFlags { fetched_at, is_restored: false, ..loaded });
        }
    }

    /// Nothing is evaluated here any more, neither by this process nor by the next one.
    fn clear(&mut self) {
        self.loader.clear();
        (self.hash, self.etag) = (None, None);
        if self.kept.take().is_some() {
            (self.parts.keep)(Keep::Nothing);
        }
    }

    fn keep(&mut self, document: &[u8], hash: u64, fetched_at: i64) {
        let Some(most) = self.parts.options.keep.filter(|_| self.kept != Some(hash)) else { return };
        match kept::encode(document, self.etag.as_deref(), fetched_at, most) {
            Some(bytes) => {
                self.told_of("keep", Ok(()));
                (self.parts.keep)(Keep::These(bytes));
            }
            None => {
                self.told_of::<()>(
                    "keep",
                    Err(format!("they take more than {} compressed", wording::bytes(most as u64))),
                );
                // Older ones would be worse than none: nobody would know how they differ.
                (self.parts.keep)(Keep::Nothing);
            }
        }
        self.kept = Some(hash);
    }

    /// Ends a load: tells whoever waits for it, and whoever should know.
    fn conclude(&mut self, loaded: Result<(), Miss>) -> Ended {
        self.loader.set_stale(loaded.is_err());
        let (answer, ended) = match loaded {
            Ok(()) => {
                if self.told.take().is_some() {
                    (self.parts.report)(Notice::Recovered);
                }
                (Ok(()), Ended::Loaded)
            }
            Err(Miss { error, retry_after }) => {
                self.tell_of_failure(&error);
                let is_refused = matches!(error, Error::Refused { .. });
                (Err(error), if is_refused { Ended::Refused } else { Ended::Failed { retry_after } })
            }
        };
        self.loader.answer(&answer);
        ended
    }

    /// Waits until the next load is due, or asked for. False if none is wanted any more.
    async fn pause(&mut self, ended: Ended) -> bool {
        let has_some = self.loader.current().is_some();
        let wait = self.pace.wait_after(ended, self.parts.options.interval, has_some, &mut self.rng);
        let asked = match ended {
            Ended::Failed { retry_after } => retry_after,
            Ended::Loaded | Ended::Refused => None,
        };
        let clock = self.parts.clock.clone();
        let mut may_ask = asked.is_none();
        let mut waited = pin!(clock.sleep(asked.unwrap_or_default()));
        let mut slept = pin!(clock.sleep(wait));
        loop {
            tokio::select! {
                biased;
                // Our own pause may be much longer than what the server has asked for.
                () = &mut waited, if !may_ask => may_ask = true,
                call = self.loader.called() => match call {
                    Call::Stop => return false,
                    Call::Forget => {
                        self.loader.takes_forget();
                        self.clear();
                        if may_ask {
                            return true;
                        }
                    }
                    Call::Load if !may_ask => {
                        self.loader.answer(&Err(Error::Unavailable("PostHog asked to wait before the next request".into())));
                    }
                    Call::Load => return true,
                },
                () = &mut slept => return true,
            }
        }
    }

    /// The provider hears that it is over, once.
    async fn shut_down(mut self) {
        let Some(provider) = self.provider.take().or_else(|| self.parts.consultation(&self.loader)) else {
            return;
        };
        let loader = Arc::clone(&self.loader);
        tokio::select! {
            biased;
            ended = provider.shutdown() => {
                self.told_of("shutdown", ended);
            }
            () = loader.abandoned() => {}
        }
    }

    fn has_key(&self) -> bool {
        self.parts.options.secret_key.is_some()
    }

    fn provider_is_absent(&self) -> bool {
        self.parts.options.provider.is_none()
    }

    /// The outcome of an operation of a cache, if it is good; if not, that is told once until the operation has worked again.
    fn told_of<T>(&mut self, operation: &'static str, outcome: Result<T, String>) -> Option<T> {
        match outcome {
            Ok(outcome) => {
                self.failing.remove(operation);
                Some(outcome)
            }
            Err(why) => {
                if self.failing.insert(operation) {
                    (self.parts.report)(Notice::CacheFailed { operation, why });
                }
                None
            }
        }
    }

    fn tell_of_failure(&mut self, error: &Error) {
        let why = error.to_string();
        // What comes after the kind and the status changes with each attempt: a port, a time.
        let kind = limits::beginning(&why, 80).to_owned();
        // Of a provider it was told.
        if !matches!(error, Error::Provider(_)) && self.told.as_ref() != Some(&kind) {
            self.told = Some(kind);
            (self.parts.report)(Notice::Unavailable { why });
        }
    }

    fn tell_of_unreadable(&self, flags: &LocalFlags) {
        let keys: Vec<String> =
            flags.unreadable().iter().take(KEYS_TOLD).map(|key| limits::foreign(key, limits::NAME_KEPT)).collect();
        if !keys.is_empty() {
            (self.parts.report)(Notice::Unreadable { keys });
        }
    }
}

/// A document that makes the reader panic is one that cannot be read.
fn read(document: &[u8]) -> Result<LocalFlags, Error> {
    match reentry::caught(|| LocalFlags::parse(document)) {
        Some(Ok(flags)) => Ok(flags),
        Some(Err(error)) => Err(Error::Unreadable(error.to_string())),
        None => {
            Err(Error::Unreadable("reading them panicked, which is a defect of this library (please report it)".into()))
        }
    }
}

/// A version that can be sent back as it came.
fn usable(etag: Option<String>) -> Option<String> {
    etag.filter(|etag| {
        (1..=ETAG_BYTES).contains(&etag.len()) && etag.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic())
    })
}

/// With nothing to evaluate, a first failure is no reason to wait for a whole interval.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
/// The longest wait after failures, unless the interval is longer.
const MAX_BACKOFF: Duration = Duration::from_secs(300);
/// The first wait after the key or the quota was refused; neither comes back by itself.
const FIRST_REFUSAL_WAIT: Duration = Duration::from_secs(300);
/// The longest of those.
const MAX_REFUSAL_WAIT: Duration = Duration::from_secs(1800);

/// How a load ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// What is there is the newest.
    Loaded,
    /// It came to nothing; the server may have said when it wants to hear from us again.
    Failed {
        /// How long from now.
        retry_after: Option<Duration>,
    },
    /// The key or the quota was refused.
    Refused,
}

/// Loads that ended alike, in a row.
#[derive(Debug, Default)]
pub(super) struct Pace {
    failures: u32,
    refusals: u32,
}

impl Pace {
    /// Notes how a load ended. `interval` is what is waited where all is well; `has_some`: there is something to evaluate with.
    pub(super) fn wait_after(
        &mut self,
        ended: Ended,
        interval: Duration,
        has_some: bool,
        rng: &mut impl Rng,
    ) -> Duration {
        match ended {
            Ended::Loaded => {
                *self = Self::default();
                between(interval.mul_f64(0.9), interval.mul_f64(1.1), rng)
            }
            Ended::Refused => {
                self.failures = 0;
                self.refusals = self.refusals.saturating_add(1);
                let wait = doubled(FIRST_REFUSAL_WAIT, self.refusals).min(MAX_REFUSAL_WAIT).max(interval);
                between(wait, wait.mul_f64(1.2), rng)
            }
            Ended::Failed { retry_after } => {
                self.failures = self.failures.saturating_add(1);
                let first = if has_some { interval } else { FIRST_BACKOFF.min(interval) };
                let wait = doubled(first, self.failures).min(MAX_BACKOFF.max(interval));
                // Never sooner than asked for, nor all at the same second.
                let asked = retry_after.map_or(Duration::ZERO, |asked| {
                    between(asked, asked.saturating_add((asked / 10).min(Duration::from_secs(10))), rng)
                });
                between(wait / 2, wait, rng).max(asked)
            }
        }
    }
}

/// After the `nth` time in a row, from 1.
fn doubled(first: Duration, nth: u32) -> Duration {
    first.saturating_mul(1 << nth.saturating_sub(1).min(20))
}

fn between(least: Duration, most: Duration, rng: &mut impl Rng) -> Duration {
    let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(rng.random_range(nanos(least)..=nanos(most).max(nanos(least))))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    const INTERVAL: Duration = Duration::from_secs(30);
    const FAILED: Ended = Ended::Failed { retry_after: None };

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn within(wait: Duration, least: u64, most: u64) {
        assert!((secs(least)..=secs(most)).contains(&wait), "{wait:?} is not from {least} to {most} s");
    }

    #[test]
    fn polls_are_an_interval_apart_more_or_less_and_not_all_alike() {
        let (mut pace, mut rng) = (Pace::default(), StdRng::seed_from_u64(1));
        let waits: Vec<_> = (0..50).map(|_| pace.wait_after(Ended::Loaded, INTERVAL, true, &mut rng)).collect();
        waits.iter().for_each(|wait| within(*wait, 27, 33));
        assert!(waits.iter().any(|wait| *wait < secs(29)) && waits.iter().any(|wait| *wait > secs(31)));
    }

    #[test]
    fn failures_double_the_wait_up_to_minutes_and_a_success_forgets_them() {
        let (mut pace, mut rng) = (Pace::default(), StdRng::seed_from_u64(2));
        for (least, most) in [(15, 30), (30, 60), (60, 120), (120, 240), (150, 300), (150, 300)] {
            within(pace.wait_after(FAILED, INTERVAL, true, &mut rng), least, most);
        }
        within(pace.wait_after(Ended::Loaded, INTERVAL, true, &mut rng), 27, 33);
        within(pace.wait_after(FAILED, INTERVAL, true, &mut rng), 15, 30);
    }

    #[test]
    fn with_nothing_to_evaluate_it_is_tried_again_soon() {
        let (mut pace, mut rng) = (Pace::default(), StdRng::seed_from_u64(3));
        let waits: Vec<_> = (0..4).map(|_| pace.wait_after(FAILED, INTERVAL, false, &mut rng)).collect();
        for (wait, most) in waits.into_iter().zip([1, 2, 4, 8]) {
            assert!(wait >= secs(most) / 2 && wait <= secs(most), "{wait:?}");
        }
    }

    #[test]
    fn a_long_interval_is_never_shortened_by_what_the_longest_backoff_is() {
        let (mut pace, mut rng) = (Pace::default(), StdRng::seed_from_u64(4));
        within(pace.wait_after(FAILED, secs(3600), true, &mut rng), 1800, 3600);
        within(pace.wait_after(Ended::Refused, secs(3600), false, &mut rng), 3600, 4320);
    }

    #[test]
    fn retry_after_is_a_least_and_a_refusal_waits_long() {
        let (mut pace, mut rng) = (Pace::default(), StdRng::seed_from_u64(5));
        let asked = Ended::Failed { retry_after: Some(secs(600)) };
        within(pace.wait_after(asked, INTERVAL, true, &mut rng), 600, 610);
        for (least, most) in [(300, 360), (600, 720), (1200, 1440), (1800, 2160), (1800, 2160)] {
            within(pace.wait_after(Ended::Refused, INTERVAL, false, &mut rng), least, most);
        }
    }
}
