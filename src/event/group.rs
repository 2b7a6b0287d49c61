//! The groups an event belongs to: of each type one, named by its key.

use serde::Serialize;
use serde_json::{Map, Value};

use super::builder::{Event, Flaw, is_blank};
use super::edit::{as_map, ranges_of};
use crate::record::msgpack::{Reader, Token, text};
use crate::record::values::append_entry;
use crate::record::{Entries, NUMBER_EXT, Pairs, Unencodable};
use crate::sys::limits::{NAME_KEPT, beginning};

impl Event {
    /// Says which group of this type the event belongs to, by the group's key: a string or a number. The last key of a type counts.
    /// Anything else refuses the event when it is captured: a blank type (`Dropped(EmptyGroupType)`), a blank key or none
    /// (`Dropped(EmptyGroupKey)`), a list, a map, a boolean or a number that is not finite (`Dropped(Unserializable)`).
    ///
    /// ```
    /// use posthog::Event;
    ///
    /// let event = Event::new("run_started", "user_1").group("company", "acme").group("seat", 7);
    /// assert_eq!(event.groups()["company"], "acme");
    /// ```
    pub fn group(mut self, group_type: impl AsRef<str>, key: impl Serialize) -> Self {
        self.set_group(group_type, key);
        self
    }

    /// [`group`](Self::group) for an event behind a reference.
    pub fn set_group(&mut self, group_type: impl AsRef<str>, key: impl Serialize) {
        let (group_type, draft) = (group_type.as_ref(), &mut *self.draft);
        let start = draft.groups.len();
        let appended = append_entry(&mut draft.groups, group_type, &key);
        let flaw = match appended.and_then(|()| is_nobody(draft.groups.get(start..).unwrap_or_default())) {
            Ok(_) if is_blank(group_type) => Flaw::EmptyGroupType,
            Ok(true) => Flaw::EmptyGroupKey,
            Ok(false) => {
                draft.group_count = draft.group_count.saturating_add(1);
                return;
            }
            Err(reason) => Flaw::Value { key: beginning(group_type, NAME_KEPT).into(), reason },
        };
        draft.groups.truncate(start);
        draft.remember(flaw);
    }

    /// Takes the event out of the group of that type, and tells whether it was in one.
    pub fn remove_group(&mut self, group_type: impl AsRef<str>) -> bool {
        let found = ranges_of(group_type.as_ref(), self.group_entries(), self.draft.groups.len());
        // From the last to the first, so that the places of the others stay what they are.
        for range in found.iter().rev() {
            self.draft.groups.drain(range.clone());
            self.draft.group_count = self.draft.group_count.saturating_sub(1);
        }
        !found.is_empty()
    }

    /// A copy of the groups: type to key.
    pub fn groups(&self) -> Map<String, Value> {
        as_map(self.group_entries())
    }

    fn group_entries(&self) -> Entries<'_> {
        Entries::new(self.draft.group_count, &self.draft.groups)
    }
}

/// A group's key as it stands in a distinct id.
pub(super) fn key_text(key: &impl Serialize) -> Result<String, Unencodable> {
    let encoded = Pairs::one("", key)?;
    let value = encoded.entries().next().map(|(_, value)| value);
    match key_token(value.unwrap_or_default())? {
        Token::Str(key) => Ok(text(key)?.to_owned()),
        Token::Unsigned(key) => Ok(key.to_string()),
        Token::Signed(key) => Ok(key.to_string()),
        Token::F32(key) => Ok(key.to_string()),
        Token::F64(key) => Ok(key.to_string()),
        Token::Ext(NUMBER_EXT, key) => Ok(text(key)?.to_owned()),
        _ => Ok(String::new()),
    }
}

/// Whether the key of an encoded pair is missing or blank.
fn is_nobody(pair: &[u8]) -> Result<bool, Unencodable> {
    let mut reader = Reader::new(pair);
    reader.string_bytes()?;
    match key_token(reader.rest())? {
        Token::Nil => Ok(true),
        Token::Str(key) => Ok(is_blank(text(key)?)),
        _ => Ok(false),
    }
}

/// A group's key, or nothing.
fn key_token(value: &[u8]) -> Result<Token<'_>, Unencodable> {
    let token = Reader::new(value).token()?;
    match token {
        Token::F32(key) if !key.is_finite() => Err(Unencodable::NotAKey),
        Token::F64(key) if !key.is_finite() => Err(Unencodable::NotAKey),
        Token::Nil | Token::Str(_) | Token::Unsigned(_) | Token::Signed(_) | Token::F32(_) | Token::F64(_) => Ok(token),
        Token::Ext(NUMBER_EXT, _) => Ok(token),
        _ => Err(Unencodable::NotAKey),
    }
}
