//! What PostHog reads a property as where it compares text: strings as they are, everything else as JSON. Letters of ASCII are alike
//! in both cases, others are not (PostHog lowercases those for `exact` alone).

use std::borrow::Cow;
use std::fmt::{self, Write};

use serde_json::{Map, Value};

use crate::flags::plain_number::plain;

/// Longest text, times longest part, that is searched in place. What is beyond that could be searched for a long time, and is copied.
const SEARCHED_IN_PLACE: usize = 1 << 16;

/// Gives the value as text. Without an allocation, but for lists and objects.
pub(super) fn with_text<R>(value: &Value, read: impl FnOnce(&str) -> R) -> R {
    match value {
        Value::String(text) => read(text),
        Value::Null => read("null"),
        Value::Bool(true) => read("true"),
        Value::Bool(false) => read("false"),
        Value::Number(number) => {
            let number = plain(number);
            let mut short = ShortText::default();
            match write!(short, "{number}") {
                Ok(()) => read(short.as_str()),
                Err(_) => read(&number.to_string()),
            }
        }
        Value::Array(_) | Value::Object(_) => read(&in_key_order(value).to_string()),
    }
}

/// The value as text that is kept.
pub(super) fn text_of(value: &Value) -> String {
    with_text(value, str::to_owned)
}

/// Where in a property a text has to stand.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    Start,
    End,
    Anywhere,
}

/// A text to look for, whichever case its letters of ASCII have.
#[derive(Clone, Debug)]
pub(super) struct Part {
    lowercase: Box<str>,
}

impl Part {
    pub(super) fn new(value: &Value) -> Self {
        Part { lowercase: text_of(value).to_ascii_lowercase().into() }
    }

    pub(super) fn stands_in(&self, text: &str, place: Place) -> bool {
        let (part, bytes) = (self.lowercase.as_bytes(), text.as_bytes());
        let Some(spare) = bytes.len().checked_sub(part.len()) else { return false };
        // Bytes do: a character's bytes are found in UTF-8 only where that character stands.
        let is_at =
            |from: usize| bytes.get(from..from + part.len()).is_some_and(|there| there.eq_ignore_ascii_case(part));
        match place {
            Place::Start => is_at(0),
            Place::End => is_at(spare),
            Place::Anywhere if bytes.len().saturating_mul(part.len()) <= SEARCHED_IN_PLACE => (0..=spare).any(is_at),
            Place::Anywhere => text.to_ascii_lowercase().contains(&*self.lowercase),
        }
    }
}

/// PostHog writes objects in the order of their keys. Here a crate elsewhere in the program can turn that off, or keep the text of numbers.
fn in_key_order(value: &Value) -> Cow<'_, Value> {
    match value {
        Value::Array(items) => Cow::Owned(items.iter().map(|item| in_key_order(item).into_owned()).collect()),
        Value::Object(object) => {
            let mut entries: Vec<_> = object.iter().collect();
            entries.sort_unstable_by_key(|(key, _)| *key);
            let entries = entries.into_iter().map(|(key, value)| (key.clone(), in_key_order(value).into_owned()));
            Cow::Owned(Value::Object(entries.collect::<Map<_, _>>()))
        }
        Value::Number(number) => match plain(number) {
            Cow::Borrowed(_) => Cow::Borrowed(value),
            Cow::Owned(number) => Cow::Owned(Value::Number(number)),
        },
        _ => Cow::Borrowed(value),
    }
}

/// Room for any number that has 64 bits.
#[derive(Default)]
struct ShortText {
    bytes: [u8; 32],
    len: usize,
}

impl ShortText {
    fn as_str(&self) -> &str {
        self.bytes.get(..self.len).and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or_default()
    }
}

impl Write for ShortText {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.len.saturating_add(text.len());
        self.bytes.get_mut(self.len..end).ok_or(fmt::Error)?.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}
