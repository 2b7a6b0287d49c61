//! The task: a load, a wait, and so on until it is told to stop.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use xxhash_rust::xxh3::xxh3_64;

use super::super::LocalFlags;
use super::consult::Consultation;
use super::fetch;
use super::judge::{Verdict, judge};
use super::kept;
use super::loaded::{FlagDefinitionsError as Error, LoadedFlags};
use super::mailbox::{Call, Loader};
use super::options::{Keep, LoaderParts, Notice};
use super::pace::{Ended, Pace};
use super::provider::FlagDefinitions;
use crate::sys::entropy::random_u64;
use crate::sys::limits;
use crate::sys::reentry;
use crate::sys::wording;

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
            provider: Consultation::new(&parts, loader),
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
        let answer = fetch::ask(&self.parts, secret_key.expose(), etag.as_deref()).await;
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
        let Some(provider) = self.provider.take().or_else(|| Consultation::new(&self.parts, &self.loader)) else {
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
