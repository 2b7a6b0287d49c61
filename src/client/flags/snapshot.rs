//! Flags for somebody, at one moment.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use serde_json::Value;

use super::super::{Client, Shared};
use super::exposure::Reading;
use super::problem::FlagsProblem;
use crate::diagnostics::Diagnostic;
use crate::flags::{Answer, Evaluated, FlagContext, FlagValue};
use crate::sys::limits::{NAME_KEPT, beginning};

/// Flags for somebody, at one moment: what [`Client::evaluate_flags`] found. It never changes, asks nobody, and does not keep its client
/// alive. Clones are the same snapshot.
///
/// The first read of a value ([`is_enabled`](Self::is_enabled), [`get`](Self::get)) captures `$feature_flag_called`, by which PostHog
/// counts experiments; [`payload`](Self::payload) and the rest are silent.
///
/// ```
/// # let client = posthog::Client::new(posthog::Config::disabled()).unwrap();
/// # async fn demo(client: posthog::Client) {
/// use posthog::Event;
///
/// let flags = client.evaluate_flags("user_1").await;
/// if flags.is_enabled("new-checkout") {
///     client.capture(Event::new("checkout_shown", "user_1").flags(&flags.only_accessed()));
/// }
/// # }
/// ```
#[derive(Clone)]
#[must_use = "a snapshot does nothing by itself"]
pub struct FeatureFlags {
    held: Arc<Held>,
}

struct Held {
    flags: BTreeMap<String, Flag>,
    about: Arc<About>,
    /// A part of another snapshot: what it lacks may be there.
    is_part: bool,
}

struct Flag {
    evaluated: Evaluated,
    was_read: AtomicBool,
}

/// What holds for a snapshot and all its parts.
pub(super) struct About {
    pub(super) client: Weak<Shared>,
    pub(super) context: FlagContext,
    /// But for its flags.
    pub(super) answer: Answer,
    /// `$feature_flag_called` of what was evaluated here is wanted in its small form.
    pub(super) wants_minimal_events_here: bool,
    pub(super) problem: Option<FlagsProblem>,
}

impl FeatureFlags {
    pub(super) fn new(mut answer: Answer, context: FlagContext, client: Weak<Shared>, minimal_here: bool) -> Self {
        let flags = std::mem::take(&mut answer.flags);
        let problem = FlagsProblem::of(&answer);
        let about = About { client, context, answer, wants_minimal_events_here: minimal_here, problem };
        Self::holding(flags.into_iter().map(|(key, evaluated)| (key, Flag::unread(evaluated))), Arc::new(about), false)
    }

    /// One that has nothing to say, and nothing to tell.
    pub(super) fn nothing(problem: Option<FlagsProblem>) -> Self {
        let mut nothing = Self::new(Answer::default(), FlagContext::default(), Weak::new(), false);
        if let Some(about) = Arc::get_mut(&mut nothing.held).and_then(|held| Arc::get_mut(&mut held.about)) {
            about.problem = problem;
        }
        nothing
    }

    fn holding(flags: impl IntoIterator<Item = (String, Flag)>, about: Arc<About>, is_part: bool) -> Self {
        Self { held: Arc::new(Held { flags: flags.into_iter().collect(), about, is_part }) }
    }

    /// Whether the flag is on, or has a variant. `false` for one that has no value.
    pub fn is_enabled(&self, key: impl AsRef<str>) -> bool {
        self.is_enabled_or(key, false)
    }

    /// Whether the flag is on, or has a variant; `default` for one that has no value. A value that is there, `false` too, counts more
    /// than the default.
    pub fn is_enabled_or(&self, key: impl AsRef<str>, default: bool) -> bool {
        self.read(key.as_ref()).map_or(default, |evaluated| evaluated.value.is_enabled())
    }

    /// The flag's value: on, off, or a variant. `None` if it has none: there is no such flag, or [`problem`](Self::problem) says why.
    pub fn get(&self, key: impl AsRef<str>) -> Option<FlagValue> {
        self.read(key.as_ref()).map(|evaluated| evaluated.value.clone())
    }

    /// The payload of the flag's value, if it has one. Silent: not a read, and no event. Text that is not JSON is a string.
    pub fn payload(&self, key: impl AsRef<str>) -> Option<Value> {
        self.look(key.as_ref())?.payload.clone()
    }

    /// The keys of all flags that have a value, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.held.flags.keys().map(String::as_str)
    }

    /// How many flags have a value.
    pub fn len(&self) -> usize {
        self.held.flags.len()
    }

    /// Whether no flag has a value.
    pub fn is_empty(&self) -> bool {
        self.held.flags.is_empty()
    }

    /// These flags alone, for an event that is to say no more. What is read there does not count as read here. A key that is not there is
    /// left out, and recorded.
    pub fn only<K: AsRef<str>>(&self, keys: impl IntoIterator<Item = K>) -> Self {
        let mut kept = Vec::new();
        for key in keys {
            match self.held.flags.get(key.as_ref()) {
                Some(flag) => kept.push((key.as_ref().to_owned(), flag.again())),
                None => self.tell_of_unknown(key.as_ref()),
            }
        }
        Self::holding(kept, Arc::clone(&self.held.about), true)
    }

    /// The flags whose values were read so far, by whoever has this snapshot. None, if none was.
    pub fn only_accessed(&self) -> Self {
        let read = self.held.flags.iter().filter(|(_, flag)| flag.was_read.load(Ordering::Relaxed));
        Self::holding(read.map(|(key, flag)| (key.clone(), flag.again())), Arc::clone(&self.held.about), true)
    }

    /// Why something may be missing, or older than it should be. `None`: all is as PostHog would have it now.
    pub fn problem(&self) -> Option<&FlagsProblem> {
        self.held.about.problem.as_ref()
    }

    /// Each flag and its value. Silent.
    pub(super) fn values(&self) -> impl Iterator<Item = (&str, &Evaluated)> {
        self.held.flags.iter().map(|(key, flag)| (key.as_str(), &flag.evaluated))
    }

    /// What is known of a flag. Silent.
    pub(super) fn look(&self, key: &str) -> Option<&Evaluated> {
        self.held.flags.get(key).map(|flag| &flag.evaluated)
    }

    /// What is known of a flag, whose value is read with that.
    pub(super) fn read(&self, key: &str) -> Option<&Evaluated> {
        let flag = self.held.flags.get(key);
        if let Some(flag) = flag {
            flag.was_read.store(true, Ordering::Relaxed);
        }
        let evaluated = flag.map(|flag| &flag.evaluated);
        if evaluated.is_some() || !self.held.is_part {
            Reading { key, evaluated, about: &self.held.about }.tell();
        }
        evaluated
    }

    fn tell_of_unknown(&self, key: &str) {
        if let Some(shared) = self.held.about.client.upgrade() {
            let what = format!(
                "flag {:?} was read, but is not in the snapshot and has no value: name it when the snapshot is made",
                beginning(key, NAME_KEPT)
            );
            Client { shared }.record(Diagnostic::Invalid { what });
        }
    }
}

impl Flag {
    fn unread(evaluated: Evaluated) -> Self {
        Self { evaluated, was_read: AtomicBool::new(false) }
    }

    /// For another snapshot, which begins with what was read of this one, and counts on for itself.
    fn again(&self) -> Self {
        Self { evaluated: self.evaluated.clone(), was_read: AtomicBool::new(self.was_read.load(Ordering::Relaxed)) }
    }
}

impl fmt::Debug for FeatureFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        struct Values<'a>(&'a FeatureFlags);
        impl fmt::Debug for Values<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_map().entries(self.0.values().map(|(key, flag)| (key, &flag.value))).finish()
            }
        }
        f.debug_struct("FeatureFlags")
            .field("values", &Values(self))
            .field("problem", &self.problem())
            .finish_non_exhaustive()
    }
}
