//! One flag, or all of them, in one call.
//!
//! Each is one read of a snapshot for that one key. What the read tells (`$feature_flag_called`) is told when somebody takes the answer
//! out of its [`Pending`], on the thread that does.

use std::collections::BTreeMap;

use serde_json::Value;

use super::super::Client;
use super::problem::FlagsProblem;
use super::snapshot::FeatureFlags;
use crate::flags::{Evaluated, FlagContext, FlagValue};
use crate::pipeline::pending::Unanswered;
use crate::pipeline::{Pending, pending};

/// What is known of a flag that has a value.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct FeatureFlagResult {
    /// Which.
    pub key: String,
    /// Whether it is on, or has a variant.
    pub enabled: bool,
    /// The key of the variant, if it is one.
    pub variant: Option<String>,
    /// The payload of that value, if it has one.
    pub payload: Option<Value>,
}

/// All flags that have a value, and their payloads.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct AllFlags {
    /// Values by key.
    pub feature_flags: BTreeMap<String, FlagValue>,
    /// Payloads by key, of those that have one.
    pub feature_flag_payloads: BTreeMap<String, Value>,
}

impl Client {
    /// Whether a flag is on for somebody, or has a variant. `false` if it has no value: there is no such flag, or it cannot be evaluated
    /// now. To evaluate several, use [`evaluate_flags`](Self::evaluate_flags).
    ///
    /// ```
    /// # async fn demo(client: posthog::Client) {
    /// if client.is_feature_enabled("new-checkout", "user_1").await {
    ///     // ...
    /// }
    /// # }
    /// ```
    pub fn is_feature_enabled(&self, key: impl AsRef<str>, who: impl Into<FlagContext>) -> Pending<bool> {
        self.is_feature_enabled_or(key, who, false)
    }

    /// [`is_feature_enabled`](Self::is_feature_enabled) with the answer for a flag that has no value, for whatever reason: no such flag, an
    /// outage, a client that is disabled or closed. A value that is there, `false` too, counts more.
    /// To evaluate several, use [`evaluate_flags`](Self::evaluate_flags).
    pub fn is_feature_enabled_or(
        &self,
        key: impl AsRef<str>,
        who: impl Into<FlagContext>,
        default: bool,
    ) -> Pending<bool> {
        self.read_one(key.as_ref(), who.into(), default, move |_, flag| {
            flag.map_or(default, |flag| flag.value.is_enabled())
        })
    }

    /// A flag's value for somebody: on, off, or a variant. `None` if it has none. To read several flags, or one and its payload, use
    /// [`evaluate_flags`](Self::evaluate_flags).
    pub fn get_feature_flag(&self, key: impl AsRef<str>, who: impl Into<FlagContext>) -> Pending<Option<FlagValue>> {
        self.read_one(key.as_ref(), who.into(), None, |_, flag| flag.map(|flag| flag.value.clone()))
    }

    /// A flag's value with its payload. `None` if it has no value: never a flag that is merely said to be off. To read
    /// several flags, use [`evaluate_flags`](Self::evaluate_flags).
    pub fn get_feature_flag_result(
        &self,
        key: impl AsRef<str>,
        who: impl Into<FlagContext>,
    ) -> Pending<Option<FeatureFlagResult>> {
        self.read_one(key.as_ref(), who.into(), None, |key, flag| {
            flag.map(|flag| FeatureFlagResult {
                key: key.to_owned(),
                enabled: flag.value.is_enabled(),
                variant: flag.value.variant().map(str::to_owned),
                payload: flag.payload.clone(),
            })
        })
    }

    /// The payload of a flag's value for somebody, if it has one. Captures nothing. Beside the value, it is in the snapshot of
    /// [`evaluate_flags`](Self::evaluate_flags).
    pub fn get_feature_flag_payload(
        &self,
        key: impl AsRef<str>,
        who: impl Into<FlagContext>,
    ) -> Pending<Option<Value>> {
        let (promise, pending) = pending::pending();
        let key = key.as_ref().to_owned();
        self.evaluate(of_one(&key, who.into()), Box::new(move |flags| promise.answer(flags.payload(&key))));
        pending
    }

    /// The payload that a flag has with that value, for whomever it may have it: without an evaluation where definitions are loaded. Else
    /// PostHog tells of no other payload than that of the person's own value: `None` if that is another.
    /// Captures nothing. The payload of the person's own value is in the snapshot of [`evaluate_flags`](Self::evaluate_flags).
    pub fn get_feature_flag_payload_of(
        &self,
        key: impl AsRef<str>,
        who: impl Into<FlagContext>,
        value: impl Into<FlagValue>,
    ) -> Pending<Option<Value>> {
        let (key, value) = (key.as_ref().to_owned(), value.into());
        if let Some(payload) = self.defined_payload(&key, &value) {
            return pending::answered(Some(payload));
        }
        let (promise, pending) = pending::pending();
        let who = of_one(&key, who.into());
        let then = move |flags: FeatureFlags| {
            let flag = flags.look(&key).filter(|flag| flag.value == value);
            promise.answer(flag.and_then(|flag| flag.payload.clone()));
        };
        self.evaluate(who, Box::new(then));
        pending
    }

    /// All flags for somebody that have a value. Empty if nothing is known, partial if not all is. Captures nothing. What is read to
    /// decide by is read of [`evaluate_flags`](Self::evaluate_flags), which tells PostHog so.
    pub fn get_all_flags(&self, who: impl Into<FlagContext>) -> Pending<BTreeMap<String, FlagValue>> {
        let (promise, pending) = pending::pending();
        self.evaluate(who.into(), Box::new(|flags| promise.answer(all_of(&flags).feature_flags)));
        pending
    }

    /// All flags for somebody that have a value, with their payloads. Captures nothing, unlike the reads of a snapshot
    /// ([`evaluate_flags`](Self::evaluate_flags)).
    pub fn get_all_flags_and_payloads(&self, who: impl Into<FlagContext>) -> Pending<AllFlags> {
        let (promise, pending) = pending::pending();
        self.evaluate(who.into(), Box::new(|flags| promise.answer(all_of(&flags))));
        pending
    }

    /// Asks PostHog for somebody's flags, whatever is known, and keeps the answer for all who ask for the same later.
    pub fn reload_feature_flags(&self, who: impl Into<FlagContext>) -> Pending<FeatureFlags> {
        self.evaluate_flags(who.into().ask_posthog(true))
    }

    /// A read of one flag, which is told when its answer is taken.
    fn read_one<T: Unanswered + 'static>(
        &self,
        key: &str,
        who: FlagContext,
        instead: T,
        read: impl FnOnce(&str, Option<&Evaluated>) -> T + Send + 'static,
    ) -> Pending<T> {
        let (promise, pending) = pending::pending_or(instead);
        let key = key.to_owned();
        let who = of_one(&key, who);
        let then = move |flags: FeatureFlags| {
            let answer = read(&key, flags.look(&key));
            promise.answer_and(answer, move || {
                let _told = flags.read(&key);
            });
        };
        self.evaluate(who, Box::new(then));
        pending
    }
}

/// That flag alone.
fn of_one(key: &str, who: FlagContext) -> FlagContext {
    who.only_keys([key])
}

fn all_of(flags: &FeatureFlags) -> AllFlags {
    let mut all = AllFlags::default();
    for (key, flag) in flags.values() {
        all.feature_flags.insert(key.to_owned(), flag.value.clone());
        if let Some(payload) = &flag.payload {
            all.feature_flag_payloads.insert(key.to_owned(), payload.clone());
        }
    }
    all
}

impl Unanswered for FeatureFlags {
    fn closed() -> Self {
        FeatureFlags::nothing(Some(FlagsProblem::Closed))
    }

    fn forked() -> Self {
        FeatureFlags::nothing(Some(FlagsProblem::Closed))
    }
}

/// Nothing is known.
macro_rules! without_value {
    ($($answer:ty),*) => {
        $(impl Unanswered for $answer {
            fn closed() -> Self {
                Self::default()
            }

            fn forked() -> Self {
                Self::default()
            }
        })*
    };
}

without_value!(
    bool,
    Option<FlagValue>,
    Option<Value>,
    Option<FeatureFlagResult>,
    BTreeMap<String, FlagValue>,
    AllFlags
);
