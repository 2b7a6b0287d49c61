//! Reading PostHog's response. It is untrusted JSON in one of two formats.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::flags::{Answer, Evaluated, FlagValue};
use crate::sys::limits::{NAME_KEPT, foreign};

/// The maximum number of unreadable flags that are listed.
const KEYS_KEPT: usize = 10;

/// A response, read.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Reply {
    pub(crate) answer: Answer,
    /// The keys of flags that could not be read, shortened if they are long.
    pub(crate) unreadable: Vec<String>,
}

/// Reads the body of a response. `Err`: why it contains no answer.
pub(crate) fn read(body: &[u8]) -> Result<Reply, String> {
    let reply: Value = serde_json::from_slice(body).map_err(|error| format!("it is no JSON: {error}"))?;
    let Value::Object(mut reply) = reply else { return Err("it is no JSON object".to_owned()) };
    let is_quota_limited = is_quota_limited(reply.get("quotaLimited"));
    let mut read = match (reply.remove("flags"), reply.remove("featureFlags")) {
        (Some(Value::Object(flags)), _) => each(flags, of_object),
        (_, Some(values @ (Value::Object(_) | Value::Array(_)))) => {
            of_values(values, reply.remove("featureFlagPayloads"))
        }
        _ if is_quota_limited => Reply::default(),
        _ => return Err("it has no flags in it".to_owned()),
    };
    let answer = &mut read.answer;
    answer.request_id = text(reply.remove("requestId"));
    answer.evaluated_at = reply.get("evaluatedAt").and_then(Value::as_i64);
    answer.has_errors |= is_true(reply.get("errorsWhileComputingFlags"));
    answer.wants_minimal_events = is_true(reply.get("minimalFlagCalledEvents"));
    answer.is_quota_limited = is_quota_limited;
    if is_quota_limited {
        // Values in a response without quota are defaults, not results of an evaluation.
        answer.flags.clear();
    }
    Ok(read)
}

/// A list of the exceeded quotas; a boolean in older versions.
fn is_quota_limited(limited: Option<&Value>) -> bool {
    match limited {
        Some(Value::Array(kinds)) => kinds.iter().any(|kind| kind == "feature_flags"),
        other => is_true(other),
    }
}

/// The result of reading one flag.
enum Read {
    Known(Evaluated),
    /// PostHog could not evaluate it.
    Failed,
    Unreadable,
}

fn each(flags: Map<String, Value>, read: impl Fn(&str, Value) -> Read) -> Reply {
    let (mut known, mut unreadable, mut has_errors) = (BTreeMap::new(), Vec::new(), false);
    for (key, flag) in flags {
        match read(&key, flag) {
            Read::Known(flag) => drop(known.insert(key, flag)),
            Read::Failed => has_errors = true,
            Read::Unreadable => {
                has_errors = true;
                if unreadable.len() < KEYS_KEPT {
                    unreadable.push(foreign(&key, NAME_KEPT));
                }
            }
        }
    }
    Reply { answer: Answer { flags: known, has_errors, ..Answer::default() }, unreadable }
}

/// Reads one flag of `flags`.
fn of_object(_key: &str, flag: Value) -> Read {
    let Value::Object(mut flag) = flag else { return Read::Unreadable };
    if is_true(flag.get("failed")) {
        return Read::Failed;
    }
    let value = match (flag.remove("enabled"), flag.remove("variant")) {
        (Some(Value::Bool(true)), Some(Value::String(variant))) if !variant.is_empty() => FlagValue::Variant(variant),
        (Some(Value::Bool(enabled)), None | Some(Value::Null | Value::String(_))) => FlagValue::Boolean(enabled),
        _ => return Read::Unreadable,
    };
    let mut metadata = object(flag.remove("metadata"));
    let mut reason = object(flag.remove("reason"));
    Read::Known(Evaluated {
        payload: metadata.remove("payload").and_then(payload),
        id: number(metadata.get("id")),
        version: number(metadata.get("version")),
        reason: text(reason.remove("description")).or_else(|| text(reason.remove("code"))),
        has_experiment: metadata.get("has_experiment").and_then(Value::as_bool),
        ..known(value)
    })
}

/// The older format: values by key or a list of the keys that are on, and a map of payloads.
fn of_values(values: Value, payloads: Option<Value>) -> Reply {
    let values = match values {
        Value::Object(values) => values,
        Value::Array(keys) => return of_list(keys),
        _ => Map::new(),
    };
    let payloads = object(payloads);
    each(values, |key, value| match FlagValue::from_json(&value) {
        Some(value) => Read::Known(Evaluated { payload: payloads.get(key).cloned().and_then(payload), ..known(value) }),
        None => Read::Unreadable,
    })
}

fn of_list(keys: Vec<Value>) -> Reply {
    let mut reply = Reply::default();
    for key in keys {
        match key {
            Value::String(key) => drop(reply.answer.flags.insert(key, known(FlagValue::Boolean(true)))),
            // An entry that is not a string has no key to report.
            _ => reply.answer.has_errors = true,
        }
    }
    reply
}

/// A flag of which only the value is known.
fn known(value: FlagValue) -> Evaluated {
    Evaluated { value, payload: None, id: None, version: None, reason: None, has_experiment: None, is_local: false }
}

/// A payload is usually JSON in a string. A string that is not JSON is kept.
fn payload(payload: Value) -> Option<Value> {
    match payload {
        Value::Null => None,
        Value::String(text) => Some(serde_json::from_str(&text).unwrap_or(Value::String(text))),
        other => Some(other),
    }
}

fn object(value: Option<Value>) -> Map<String, Value> {
    match value {
        Some(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

fn text(value: Option<Value>) -> Option<String> {
    match value {
        Some(Value::String(text)) if !text.is_empty() => Some(text),
        _ => None,
    }
}

/// PostHog uses 0 for an absent number.
fn number(value: Option<&Value>) -> Option<u64> {
    value.and_then(Value::as_u64).filter(|&number| number != 0)
}

fn is_true(value: Option<&Value>) -> bool {
    value.and_then(Value::as_bool).unwrap_or(false)
}

#[cfg(test)]
#[path = "reply_tests.rs"]
mod tests;
