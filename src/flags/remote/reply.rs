//! Reading PostHog's response. It is untrusted JSON in one of two formats.

use serde_json::{Map, Value};

use crate::flags::{Answer, Evaluated, FlagValue};
use crate::sys::limits::{NAME_KEPT, foreign};

/// The maximum number of unreadable flags that are listed.
const KEYS_KEPT: usize = 10;

/// Reads the body of a response. `Err`: why it contains no answer.
pub(crate) fn read(body: &[u8]) -> Result<Answer, String> {
    let reply: Value = serde_json::from_slice(body).map_err(|error| format!("it is no JSON: {error}"))?;
    let Value::Object(mut reply) = reply else { return Err("it is no JSON object".to_owned()) };
    let is_quota_limited = is_quota_limited(reply.get("quotaLimited"));
    let mut answer = match (reply.remove("flags"), reply.remove("featureFlags")) {
        (Some(Value::Object(flags)), _) => each(flags, of_object),
        (_, Some(values @ (Value::Object(_) | Value::Array(_)))) => {
            of_values(values, reply.remove("featureFlagPayloads"))
        }
        _ if is_quota_limited => Answer::default(),
        _ => return Err("it has no flags in it".to_owned()),
    };
    answer.request_id = text(reply.remove("requestId"));
    answer.evaluated_at = reply.get("evaluatedAt").and_then(Value::as_i64);
    answer.has_errors |= is_true(reply.get("errorsWhileComputingFlags"));
    answer.wants_minimal_events = is_true(reply.get("minimalFlagCalledEvents"));
    answer.is_quota_limited = is_quota_limited;
    if is_quota_limited {
        // Values in a response without quota are defaults, not results of an evaluation.
        answer.flags.clear();
    }
    Ok(answer)
}

/// A list of the exceeded quotas; a boolean in older versions.
fn is_quota_limited(limited: Option<&Value>) -> bool {
    match limited {
        Some(Value::Array(kinds)) => kinds.iter().any(|kind| kind == "feature_flags"),
        other => is_true(other),
    }
}

/// `read` returns `None` if it cannot read a flag, and `Some(None)` if PostHog could not evaluate it.
fn each(flags: Map<String, Value>, read: impl Fn(&str, Value) -> Option<Option<Evaluated>>) -> Answer {
    let mut answer = Answer::default();
    for (key, flag) in flags {
        let flag = read(&key, flag);
        if flag.is_none() && answer.unreadable.len() < KEYS_KEPT {
            answer.unreadable.push(foreign(&key, NAME_KEPT));
        }
        match flag.flatten() {
            Some(flag) => drop(answer.flags.insert(key, flag)),
            None => answer.has_errors = true,
        }
    }
    answer
}

/// Reads one flag of `flags`.
fn of_object(_key: &str, flag: Value) -> Option<Option<Evaluated>> {
    let Value::Object(mut flag) = flag else { return None };
    if is_true(flag.get("failed")) {
        return Some(None);
    }
    let value = match (flag.remove("enabled"), flag.remove("variant")) {
        (Some(Value::Bool(true)), Some(Value::String(variant))) if !variant.is_empty() => FlagValue::Variant(variant),
        (Some(Value::Bool(enabled)), None | Some(Value::Null | Value::String(_))) => FlagValue::Boolean(enabled),
        _ => return None,
    };
    let mut metadata = object(flag.remove("metadata"));
    let mut reason = object(flag.remove("reason"));
    Some(Some(Evaluated {
        payload: metadata.remove("payload").and_then(payload),
        id: number(metadata.get("id")),
        version: number(metadata.get("version")),
        reason: text(reason.remove("description")).or_else(|| text(reason.remove("code"))),
        has_experiment: metadata.get("has_experiment").and_then(Value::as_bool),
        ..Evaluated::of(value)
    }))
}

/// The older format: values by key or a list of the keys that are on, and a map of payloads.
fn of_values(values: Value, payloads: Option<Value>) -> Answer {
    let values = match values {
        Value::Object(values) => values,
        Value::Array(keys) => return of_list(keys),
        _ => Map::new(),
    };
    let payloads = object(payloads);
    each(values, |key, value| {
        let payload = payloads.get(key).cloned().and_then(payload);
        FlagValue::from_json(&value).map(|value| Some(Evaluated { payload, ..Evaluated::of(value) }))
    })
}

fn of_list(keys: Vec<Value>) -> Answer {
    let mut answer = Answer::default();
    for key in keys {
        match key {
            Value::String(key) => drop(answer.flags.insert(key, Evaluated::of(true.into()))),
            // An entry that is not a string has no key to report.
            _ => answer.has_errors = true,
        }
    }
    answer
}

/// A payload is usually JSON in a string. A string that is not JSON is kept.
pub(super) fn payload(payload: Value) -> Option<Value> {
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
