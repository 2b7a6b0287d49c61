//! `exact`: whether a property is one of some values, whatever the case of its letters, and what PostHog takes for true.

use std::collections::HashSet;

use serde_json::Value;

use super::text::with_text;

/// As many values are compared one by one; more are looked up.
const FEW: usize = 8;

/// Lists are looked up without an allocation by what is no longer than this.
const SHORT: usize = 256;

/// The values that a property may have, in lowercase.
#[derive(Clone, Debug)]
pub(super) enum Choices {
    Few(Box<[Box<str>]>),
    Many { lowercase: HashSet<Box<[u8]>>, longest: usize },
}

impl Choices {
    pub(super) fn new(values: &[Value]) -> Self {
        let lowercase = values.iter().map(|value| with_text(value, str::to_lowercase).into_boxed_str());
        if values.len() <= FEW {
            return Choices::Few(lowercase.collect());
        }
        let lowercase: HashSet<Box<[u8]>> = lowercase.map(Box::<[u8]>::from).collect();
        let longest = lowercase.iter().map(|choice| choice.len()).max().unwrap_or(0);
        Choices::Many { lowercase, longest }
    }

    pub(super) fn contain(&self, text: &str) -> bool {
        if !text.is_ascii() {
            // The case of other letters depends on their neighbours, and can change how many bytes they take.
            let text = text.to_lowercase();
            return match self {
                Choices::Few(choices) => choices.iter().any(|choice| **choice == text),
                Choices::Many { lowercase, .. } => lowercase.contains(text.as_bytes()),
            };
        }
        match self {
            // A choice has been lowercased already, so this is equality with the lowercased text.
            Choices::Few(choices) => choices.iter().any(|choice| choice.eq_ignore_ascii_case(text)),
            Choices::Many { longest, .. } if text.len() > *longest => false,
            Choices::Many { lowercase, .. } => {
                let mut short = [0; SHORT];
                let Some(short) = short.get_mut(..text.len()) else {
                    return lowercase.contains(text.to_ascii_lowercase().as_bytes());
                };
                short.copy_from_slice(text.as_bytes());
                short.make_ascii_lowercase();
                lowercase.contains(&*short)
            }
        }
    }
}

/// Nothing but true and false, as values or as words. A list of nothing is that, too.
pub(super) fn is_truth_value(value: &Value) -> bool {
    match value {
        Value::Bool(_) => true,
        Value::String(word) => word.eq_ignore_ascii_case("true") || word.eq_ignore_ascii_case("false"),
        Value::Array(items) => items.iter().all(is_truth_value),
        _ => false,
    }
}

/// True, as a value or as a word; of a list, everything in it.
pub(super) fn is_true(value: &Value) -> bool {
    match value {
        Value::Bool(truth) => *truth,
        Value::String(word) => word.eq_ignore_ascii_case("true"),
        Value::Array(items) => items.iter().all(is_true),
        _ => false,
    }
}
