//! Fields of definitions: what is null is absent, and what is of another kind than it should be is unreadable.

use serde_json::{Map, Value};

use crate::flags::plain_number::plain;

pub(super) type Object = Map<String, Value>;

/// A definition that is not as this version knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unreadable;

/// A field that is neither absent nor null.
pub(super) fn field<'v>(object: &'v Object, name: &str) -> Option<&'v Value> {
    object.get(name).filter(|value| !value.is_null())
}

/// Absent: `false`.
pub(super) fn boolean(object: &Object, name: &str) -> Result<bool, Unreadable> {
    field(object, name).map_or(Ok(false), |value| value.as_bool().ok_or(Unreadable))
}

pub(super) fn text<'v>(object: &'v Object, name: &str) -> Result<Option<&'v str>, Unreadable> {
    field(object, name).map(|value| value.as_str().ok_or(Unreadable)).transpose()
}

/// A percentage as a share of one. It is never rounded: PostHog rolls out to tenths of a percent.
pub(super) fn share(object: &Object, name: &str) -> Result<Option<f64>, Unreadable> {
    field(object, name).map(|value| value.as_f64().map(|percent| percent / 100.0).ok_or(Unreadable)).transpose()
}

pub(super) fn object<'v>(object: &'v Object, name: &str) -> Result<Option<&'v Object>, Unreadable> {
    field(object, name).map(|value| value.as_object().ok_or(Unreadable)).transpose()
}

/// Absent: none.
pub(super) fn list<'v>(object: &'v Object, name: &str) -> Result<&'v [Value], Unreadable> {
    field(object, name).map_or(Ok(&[]), |value| value.as_array().map(Vec::as_slice).ok_or(Unreadable))
}

/// A number or a string, as a string: ids come as either.
pub(super) fn id_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(plain(number).to_string()),
        _ => None,
    }
}
