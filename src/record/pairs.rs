//! Properties that belong to no event yet: encoded once, merged, and added to any number of events.

use std::collections::HashMap;

use serde::Serialize;

use super::body::Entries;
use super::msgpack::{self, Reader, Token, append_map_header, append_str};
use super::values::{Unencodable, append_entry};

/// Names and values as entries of a MessagePack map. After [`merge`](Pairs::merge) each name occurs once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pairs {
    count: u32,
    bytes: Vec<u8>,
}

impl Pairs {
    /// The pairs of a map, a struct or a sequence of pairs; `()` and `None` have none.
    pub(crate) fn of<T: Serialize + ?Sized>(pairs: &T) -> Result<Self, Unencodable> {
        let mut entry = Vec::new();
        append_entry(&mut entry, "", pairs)?;
        let mut reader = Reader::new(&entry);
        reader.string_bytes()?;
        let mut read = Self::default();
        read.copy(&mut reader)?;
        Ok(read)
    }

    pub(crate) fn one<T: Serialize + ?Sized>(name: &str, value: &T) -> Result<Self, Unencodable> {
        let mut bytes = Vec::new();
        append_entry(&mut bytes, name, value)?;
        Ok(Self { count: 1, bytes })
    }

    /// The pairs of a property's value if that is a map, otherwise none.
    pub(crate) fn in_value(value: &[u8]) -> Self {
        let mut read = Self::default();
        match read.copy(&mut Reader::new(value)) {
            Ok(()) => read,
            Err(_) => Self::default(),
        }
    }

    /// The pairs as a MessagePack map.
    pub(crate) fn to_map(&self) -> Vec<u8> {
        let mut map = Vec::new();
        append_map_header(&mut map, self.count);
        map.extend_from_slice(&self.bytes);
        map
    }

    /// Reads what [`to_map`](Self::to_map) wrote, from untrusted bytes. Anything else has no pairs.
    pub(crate) fn of_map(map: &[u8]) -> Self {
        if msgpack::check(map).is_ok() { Self::in_value(map) } else { Self::default() }
    }

    /// The pairs, each name as the bytes of its text.
    pub(crate) fn entries(&self) -> Entries<'_> {
        Entries::new(self.count, &self.bytes)
    }

    /// Each pair's name and the bytes of the whole pair.
    pub(crate) fn each(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut entries = self.entries();
        std::iter::from_fn(move || {
            let before = entries.rest();
            let (name, _) = entries.next()?;
            Some((name, before.get(..before.len() - entries.rest().len())?))
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Adds the pairs of `newer`, whose value replaces an earlier one of the same name.
    pub(crate) fn merge(&mut self, newer: &Pairs) {
        let all: Vec<(&[u8], &[u8])> = self.each().chain(newer.each()).collect();
        let last: HashMap<&[u8], usize> = all.iter().enumerate().map(|(at, (name, _))| (*name, at)).collect();
        let counts = |&(at, (name, _)): &(usize, &(&[u8], &[u8]))| last.get(name) == Some(&at);
        let mut merged = Self::default();
        for (_, (_, pair)) in all.iter().enumerate().filter(counts) {
            merged.push(pair);
        }
        *self = merged;
    }

    /// Removes a name; returns whether it was present.
    pub(crate) fn remove(&mut self, name: &str) -> bool {
        let mut left = Self::default();
        for (_, pair) in self.each().filter(|(other, _)| *other != name.as_bytes()) {
            left.push(pair);
        }
        let was_there = left.count < self.count;
        *self = left;
        was_there
    }

    /// Appends an entry called `name` whose value is a map of these pairs. On an error `out` is unchanged.
    pub(crate) fn append_as_map(&self, out: &mut Vec<u8>, name: &str) -> Result<(), Unencodable> {
        let start = out.len();
        append_str(out, name);
        let value = out.len();
        append_map_header(out, self.count);
        out.extend_from_slice(&self.bytes);
        // A value of the greatest depth is now one level deeper.
        let checked = msgpack::check(out.get(value..).unwrap_or_default());
        if checked.is_err() {
            out.truncate(start);
        }
        Ok(checked?)
    }

    fn push(&mut self, pair: &[u8]) {
        self.bytes.extend_from_slice(pair);
        self.count = self.count.saturating_add(1);
    }

    /// Adds the pairs of the value that `reader` is at, which has been checked.
    fn copy(&mut self, reader: &mut Reader<'_>) -> Result<(), Unencodable> {
        match reader.token()? {
            Token::Nil => Ok(()),
            Token::Map(len) => (0..len).try_for_each(|_| self.copy_pair(reader)),
            Token::Array(len) => (0..len).try_for_each(|_| match reader.token()? {
                Token::Array(2) => self.copy_pair(reader),
                _ => Err(Unencodable::NotPairs),
            }),
            _ => Err(Unencodable::NotPairs),
        }
    }

    fn copy_pair(&mut self, reader: &mut Reader<'_>) -> Result<(), Unencodable> {
        // Names are strings in JSON. As serde_json does, integers and booleans are converted.
        match reader.token()? {
            Token::Str(name) => append_str(&mut self.bytes, msgpack::text(name)?),
            Token::Unsigned(name) => append_str(&mut self.bytes, &name.to_string()),
            Token::Signed(name) => append_str(&mut self.bytes, &name.to_string()),
            Token::Bool(name) => append_str(&mut self.bytes, if name { "true" } else { "false" }),
            _ => return Err(Unencodable::NotPairs),
        }
        self.bytes.extend_from_slice(reader.value()?);
        self.count = self.count.saturating_add(1);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};

    use serde_json::{Value, json};

    use super::*;
    use crate::record::json::write_entries;

    fn shown(pairs: &Pairs) -> Value {
        let mut text = Vec::new();
        write_entries(pairs.entries(), &mut text).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    fn of(pairs: impl Serialize) -> Result<Value, Unencodable> {
        Pairs::of(&pairs).map(|pairs| shown(&pairs))
    }

    #[test]
    fn pairs_read_back_from_a_map_and_other_bytes_have_none() {
        let pairs = Pairs::of(&[("a", 1), ("b", 2)]).unwrap();
        let map = pairs.to_map();
        assert_eq!(Pairs::of_map(&map), pairs);
        assert_eq!(Pairs::of_map(&Pairs::default().to_map()), Pairs::default());
        for cut in 0..map.len() {
            assert_eq!(Pairs::of_map(&map[..cut]), Pairs::default(), "cut at {cut}");
        }
        assert_eq!(Pairs::of_map(&[0xdf, 0xff, 0xff, 0xff, 0xff]), Pairs::default());
        assert_eq!(Pairs::of_map(b"\x05"), Pairs::default());
    }

    #[test]
    fn maps_structs_sequences_of_pairs_and_nothing_are_pairs() {
        #[derive(Serialize)]
        struct Person {
            plan: &'static str,
            seats: u32,
        }
        #[derive(Serialize)]
        struct Unit;
        let expected = Ok(json!({"plan": "pro", "seats": 3}));
        assert_eq!(of(Person { plan: "pro", seats: 3 }), expected);
        assert_eq!(of(json!({"plan": "pro", "seats": 3})), expected);
        assert_eq!(of([("plan", json!("pro")), ("seats", json!(3))]), expected);
        assert_eq!(of(json!([["plan", "pro"], ["seats", 3]])), expected);
        assert_eq!(of(vec![("plan", "pro")]), Ok(json!({"plan": "pro"})));
        assert_eq!(of(HashMap::from([("plan".to_owned(), "pro")])), Ok(json!({"plan": "pro"})));
        assert_eq!(of(BTreeMap::from([(7, true)])), Ok(json!({"7": true})));
        for nothing in [of(()), of(None::<Person>), of(Unit), of(json!({})), of([(); 0])] {
            assert_eq!(nothing, Ok(json!({})));
        }
    }

    #[test]
    fn anything_else_is_refused_as_no_pairs() {
        for wrong in [json!("plan"), json!(3), json!(true), json!(["plan", "pro"]), json!([["a", 1, 2]])] {
            assert_eq!(of(&wrong), Err(Unencodable::NotPairs), "{wrong}");
        }
        assert_eq!(of([([1], 2)]), Err(Unencodable::NotPairs));
        assert_eq!(of(BTreeMap::from([(None::<u8>, 3)])), Err(Unencodable::MapKey));
    }

    #[test]
    fn of_two_values_of_a_name_the_newer_counts() {
        let mut pairs = Pairs::of(&json!([["a", 1], ["b", 2], ["a", 3]])).unwrap();
        pairs.merge(&Pairs::of(&json!({"b": [4], "c": null})).unwrap());
        assert_eq!((pairs.count, shown(&pairs)), (3, json!({"a": 3, "b": [4], "c": null})));
        assert!(pairs.remove("b") && !pairs.remove("b"));
        assert_eq!((pairs.count, shown(&pairs)), (2, json!({"a": 3, "c": null})));
    }

    #[test]
    fn a_map_of_pairs_nests_no_deeper_than_any_value() {
        let nested = |levels| (0..levels).fold(json!(1), |inside, _| json!([inside]));
        let deepest = Pairs::one("deep", &nested(super::super::MAX_DEPTH)).unwrap();
        let mut out = vec![7];
        assert_eq!(deepest.append_as_map(&mut out, "$set"), Err(Unencodable::TooDeep));
        assert_eq!(out, [7]);
        let fits = Pairs::one("deep", &nested(super::super::MAX_DEPTH - 1)).unwrap();
        assert_eq!(fits.append_as_map(&mut out, "$set"), Ok(()));
        assert_eq!(Pairs::in_value(&out[6..]), fits);
    }

    #[test]
    fn a_value_that_is_no_map_holds_no_pairs() {
        assert!(Pairs::in_value(&[0xa1, b'x']).is_empty() && Pairs::in_value(&[]).is_empty());
    }
}
