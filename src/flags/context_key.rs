//! What an evaluation context is known by in the cache.

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::FlagContext;
use super::plain_number::plain;

/// A digest of everything on which PostHog's answer depends. Of an algorithm that nobody can find two inputs for: distinct ids and
/// properties come from outside, and a collision would give one person another's flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ContextKey([u8; 32]);

impl ContextKey {
    /// Of a context that is resolved: whose distinct id and GeoIP choice are those that will be sent. `scope` stands for its own keys.
    pub(crate) fn of(context: &FlagContext, scope: Option<&[String]>) -> Self {
        let mut words = Words(Sha256::new());
        words.optional(context.distinct_id.as_deref());
        words.optional(context.device_id.as_deref());
        words.count(context.groups.len());
        for (group_type, key) in &context.groups {
            words.text(group_type);
            words.text(key);
        }
        words.map(&context.person_properties);
        words.count(context.group_properties.len());
        for (group_type, properties) in &context.group_properties {
            words.text(group_type);
            words.map(properties);
        }
        words.flag(context.disable_geoip == Some(true));
        words.flag(scope.is_some());
        let mut keys: Vec<&str> = scope.unwrap_or_default().iter().map(String::as_str).collect();
        keys.sort_unstable();
        keys.dedup();
        words.count(keys.len());
        keys.iter().for_each(|key| words.text(key));
        Self(words.0.finalize().into())
    }
}

/// Lengths before contents, and a mark before each kind: no two contexts are the same row of bytes.
struct Words(Sha256);

impl Words {
    fn count(&mut self, count: usize) {
        self.0.update((count as u64).to_le_bytes());
    }

    fn flag(&mut self, on: bool) {
        self.0.update([u8::from(on)]);
    }

    fn text(&mut self, text: &str) {
        self.count(text.len());
        self.0.update(text);
    }

    fn optional(&mut self, text: Option<&str>) {
        self.flag(text.is_some());
        self.text(text.unwrap_or_default());
    }

    fn map(&mut self, map: &serde_json::Map<String, Value>) {
        // Somebody else in the build may have turned on serde_json's feature by which maps keep their order.
        let mut pairs: Vec<_> = map.iter().collect();
        pairs.sort_unstable_by_key(|(name, _)| name.as_str());
        self.count(pairs.len());
        for (name, value) in pairs {
            self.text(name);
            self.value(value);
        }
    }

    fn value(&mut self, value: &Value) {
        match value {
            Value::Null => self.0.update([0]),
            Value::Bool(on) => self.0.update([1, u8::from(*on)]),
            Value::Number(number) => {
                self.0.update([2]);
                self.text(&plain(number).to_string());
            }
            Value::String(text) => {
                self.0.update([3]);
                self.text(text);
            }
            Value::Array(items) => {
                self.0.update([4]);
                self.count(items.len());
                items.iter().for_each(|item| self.value(item));
            }
            Value::Object(map) => {
                self.0.update([5]);
                self.map(map);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(context: &FlagContext) -> ContextKey {
        ContextKey::of(context, context.flag_keys.as_deref())
    }

    #[test]
    fn the_order_in_which_a_context_was_described_does_not_matter() {
        let one = FlagContext::new("u")
            .group("company", "a")
            .group("team", "b")
            .person_property("x", 1)
            .only_keys(["f", "g"]);
        let other = FlagContext::new("u")
            .only_keys(["g", "f", "g"])
            .person_property("x", 1)
            .group("team", "b")
            .group("company", "a");
        assert_eq!(key(&one), key(&other));
    }

    #[test]
    fn whatever_changes_the_answer_changes_the_key() {
        let person = || FlagContext::new("u");
        let contexts = [
            person(),
            FlagContext::new("v"),
            person().device_id("d"),
            person().device_id(""),
            person().group("company", "a"),
            person().group("companya", ""),
            person().person_property("a", "1"),
            person().person_property("a", 1),
            person().person_property("a", serde_json::json!(["1"])),
            person().group_property("company", "a", 1),
            person().group_property("team", "a", 1),
            person().disable_geoip(true),
            person().only_keys([""; 0]),
            person().only_keys(["f"]),
            person().only_keys(["f", "g"]),
            person().only_keys(["fg"]),
        ];
        let mut keys: Vec<ContextKey> = Vec::new();
        for context in &contexts {
            let key = key(context);
            assert!(!keys.contains(&key), "{context:?}");
            keys.push(key);
        }
    }
}
