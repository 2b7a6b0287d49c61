//! Values of every shape that serde has, including `Serialize` implementations that break its rules.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use serde::ser::{Error, SerializeMap, SerializeSeq, SerializeStruct};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::json::write_value;
use super::msgpack::{MAX_DEPTH, Reader, check};
use super::symbols::NoSymbols;
use super::values::{Unencodable, append_entry, value_as};

fn encoded<T: Serialize>(value: T) -> Result<Vec<u8>, Unencodable> {
    let mut out = b"before".to_vec();
    let appended = append_entry(&mut out, "key", &value);
    let entry = out.strip_prefix(b"before").expect("earlier bytes stay");
    match appended {
        Ok(()) => {
            let mut reader = Reader::new(entry);
            assert_eq!(reader.string(), Ok("key"));
            assert_eq!(check(reader.rest()), Ok(()), "an accepted value is well-formed");
            Ok(reader.rest().to_vec())
        }
        Err(reason) => {
            assert!(entry.is_empty(), "a refused value leaves no bytes");
            Err(reason)
        }
    }
}

fn read_back<T: Serialize>(value: T) -> Value {
    value_as(&encoded(value).unwrap()).unwrap()
}

#[derive(Serialize)]
enum Shape {
    Unit,
    Newtype(u8),
    Tuple(u8, u8),
    Struct { side: u8 },
}

#[derive(Serialize)]
struct Everything {
    unit: (),
    unit_struct: Nothing,
    shapes: Vec<Shape>,
    tuple: (char, f32),
    address: Ipv4Addr,
    none: Option<u8>,
    #[serde(flatten)]
    flattened: BTreeMap<&'static str, i8>,
}

#[derive(Serialize)]
struct Nothing;

#[test]
fn every_shape_of_serde_is_what_serde_json_makes_of_it() {
    let everything = Everything {
        unit: (),
        unit_struct: Nothing,
        shapes: vec![Shape::Unit, Shape::Newtype(1), Shape::Tuple(1, 2), Shape::Struct { side: 3 }],
        tuple: ('\u{1f600}', 0.5),
        address: Ipv4Addr::LOCALHOST,
        none: None,
        flattened: BTreeMap::from([("extra", -1)]),
    };
    assert_eq!(read_back(&everything), serde_json::to_value(&everything).unwrap());
}

#[test]
fn integers_of_128_bits_are_numbers() {
    assert_eq!(read_back(Duration::from_secs(3).as_millis()), json!(3000));
    assert_eq!(read_back(i128::from(u64::MAX)), json!(u64::MAX));
    assert_eq!(read_back(i128::from(i64::MIN)), json!(i64::MIN));
    // No digit is lost, whatever a parser of the JSON does with them.
    for (number, text) in [(encoded(u128::MAX), u128::MAX.to_string()), (encoded(i128::MIN), i128::MIN.to_string())] {
        assert_eq!(as_json(&number.unwrap()), text);
    }
    assert_eq!(value_as::<u128>(&encoded(u128::MAX).unwrap()), Some(u128::MAX));
}

fn as_json(value: &[u8]) -> String {
    let mut out = Vec::new();
    write_value(&mut Reader::new(value), &NoSymbols, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

/// Serializes like a `serde_json::Number` when `arbitrary_precision` is enabled, so that the tests cover that case
/// without enabling the feature.
struct Number<'a>(&'a str);

impl Serialize for Number<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut number = serializer.serialize_struct("$serde_json::private::Number", 1)?;
        number.serialize_field("$serde_json::private::Number", self.0)?;
        number.end()
    }
}

#[test]
fn a_number_of_serde_json_is_a_number_whatever_features_it_has() {
    for (text, expected) in [
        ("1", "1"),
        ("-7", "-7"),
        ("18446744073709551615", "18446744073709551615"),
        ("0.1", "0.1"),
        ("1.50", "1.5"),
        ("123456789012345678901234567890", "123456789012345678901234567890"),
        ("0.12345678901234567890123456789", "0.12345678901234567890123456789"),
        ("1e999", "1e999"),
    ] {
        assert_eq!(as_json(&encoded(Number(text)).unwrap()), expected);
        let nested = encoded(BTreeMap::from([("n", vec![Some(Number(text))])])).unwrap();
        assert_eq!(as_json(&nested), format!(r#"{{"n":[{expected}]}}"#));
    }
    assert_eq!(read_back(json!({"n": 1, "f": [0.5, -3]})), json!({"n": 1, "f": [0.5, -3]}));
    for none in ["", "NaN", "1,5", "{}"] {
        assert!(matches!(encoded(Number(none)), Err(Unencodable::Refused(_))), "{none}");
    }
}

#[test]
fn json_that_is_passed_on_as_it_is_is_the_value_that_it_says() {
    for text in [r#"{"a":[1,2.5,"x",null,{"b":true}]}"#, "7", r#""text""#, "null", " [ ] "] {
        let raw = RawValue::from_string(text.to_owned()).unwrap();
        let value: Value = serde_json::from_str(text).unwrap();
        assert_eq!(read_back(&raw), value);
        assert_eq!(read_back(BTreeMap::from([("raw", &raw)])), json!({"raw": value}));
    }
    let deep = "[".repeat(usize::from(MAX_DEPTH) + 1) + &"]".repeat(usize::from(MAX_DEPTH) + 1);
    assert_eq!(encoded(RawValue::from_string(deep).unwrap()), Err(Unencodable::TooDeep));
}

#[test]
fn a_struct_that_pretends_to_be_a_number_is_refused() {
    struct Fields(&'static [&'static str]);
    impl Serialize for Fields {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let mut fields = serializer.serialize_struct("$serde_json::private::Number", 1)?;
            self.0.iter().try_for_each(|field| fields.serialize_field("x", field))?;
            fields.end()
        }
    }
    assert!(encoded(Fields(&[])).is_err());
    assert!(encoded(Fields(&["1", "2"])).is_err());
    assert!(encoded(vec![Fields(&["1", "2"]), Fields(&[])]).is_err());
    assert!(encoded(Fields(&["1"])).is_ok());
}

#[test]
fn a_displayed_value_is_text_without_a_detour() {
    struct Shown;
    impl Serialize for Shown {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_str(&format_args!("{}-{}", 1, 2))
        }
    }
    assert_eq!(read_back(Shown), json!("1-2"));
}

#[test]
fn a_value_deeper_than_the_limit_is_refused() {
    /// Nests without a limit.
    struct Endless;
    impl Serialize for Endless {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_seq([Endless])
        }
    }
    assert_eq!(encoded(Endless), Err(Unencodable::TooDeep));
    let nested = |levels: u8| (0..levels).fold(json!(1), |inside, _| json!([inside]));
    assert!(encoded(nested(MAX_DEPTH)).is_ok());
    assert_eq!(encoded(nested(MAX_DEPTH + 1)), Err(Unencodable::TooDeep));
}

#[test]
fn variants_do_not_use_up_depth_once_they_are_closed() {
    let many: Vec<_> =
        (0..100).flat_map(|_| [Shape::Newtype(1), Shape::Tuple(1, 2), Shape::Struct { side: 3 }]).collect();
    assert_eq!(read_back(&many), serde_json::to_value(&many).unwrap());
}

#[test]
fn keys_json_cannot_express_are_refused() {
    assert_eq!(encoded(BTreeMap::from([((1, 2), 3)])), Err(Unencodable::MapKey));
    assert_eq!(encoded(BTreeMap::from([(None::<u8>, 3)])), Err(Unencodable::MapKey));
    assert!(encoded(BTreeMap::from([(-5i64, 3)])).is_ok());
    assert!(encoded(BTreeMap::from([(true, 3)])).is_ok());
}

#[test]
fn a_serialize_that_fails_is_quoted() {
    struct Fails;
    impl Serialize for Fails {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.serialize_seq(Some(2))?.serialize_element(&1)?;
            Err(S::Error::custom("out of luck"))
        }
    }
    assert_eq!(encoded(Fails), Err(Unencodable::Refused("out of luck".into())));
}

#[test]
fn a_wrong_announced_length_is_corrected() {
    struct Liar;
    impl Serialize for Liar {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let mut seq = serializer.serialize_seq(Some(200))?;
            seq.serialize_element(&1)?;
            seq.end()
        }
    }
    assert_eq!(read_back(Liar), json!([1]));
}

#[test]
fn a_serialize_that_breaks_serdes_rules_is_refused() {
    struct KeyOnly;
    impl Serialize for KeyOnly {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let mut map = serializer.serialize_map(None)?;
            map.serialize_key("alone")?;
            map.end()
        }
    }
    /// Ignores the error of an element and continues.
    struct Swallows;
    impl Serialize for Swallows {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let mut seq = serializer.serialize_seq(None)?;
            for _ in 0..1000 {
                let _swallowed = seq.serialize_element(&(0..=MAX_DEPTH).fold(json!(1), |inside, _| json!([inside])));
            }
            seq.end()
        }
    }
    assert!(matches!(encoded(KeyOnly), Err(Unencodable::Misshapen(_))));
    assert!(encoded(Swallows).is_err());
}
