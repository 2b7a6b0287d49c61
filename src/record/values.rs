//! Property values: anything serde can serialize as MessagePack, and back.
//!
//! Values take the shape that `serde_json` would give them (structs by field name, variants by variant name, text where
//! a type has a human-readable form), so PostHog receives what the caller would see as JSON. `rmp-serde` is used to
//! read values back but not to write them: it follows a value to any depth, until the host's stack overflows, trusts
//! announced lengths, and writes 128-bit integers (such as `Duration::as_millis`) as bytes.

use std::fmt::Display;
use std::io::Write;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde::ser::{self, Serializer};

use super::json;
use super::msgpack::{
    MAX_DEPTH, Malformed, Reader, Token, append_bin, append_bool, append_exact, append_f32, append_f64, append_int,
    append_map_header, append_nil, append_number, append_str, append_uint, begin_array, begin_map, begin_str, check,
    patch_len, saturate,
};
use super::symbols::NoSymbols;

/// Why a value cannot be stored in a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unencodable {
    #[error("it nests more than {MAX_DEPTH} levels deep; send a flatter value")]
    TooDeep,
    #[error("it has a map whose keys are not strings, integers or booleans; convert the keys first")]
    MapKey,
    /// The value's `Serialize` breaks serde's contract: keys without values, or ignored errors.
    #[error("its Serialize implementation breaks serde's rules; correct it")]
    Misshapen(#[source] Malformed),
    #[error("its Serialize implementation failed: {0}")]
    Refused(String),
    #[error("it is neither a map, a struct nor a sequence of pairs of a name and a value; give one of these")]
    NotPairs,
    #[error("a group's key is a string or a number; give one of these")]
    NotAKey,
}

impl ser::Error for Unencodable {
    #[cold]
    fn custom<T: Display>(message: T) -> Self {
        Unencodable::Refused(message.to_string())
    }
}

impl From<Malformed> for Unencodable {
    fn from(malformed: Malformed) -> Self {
        match malformed {
            Malformed::MapKey => Unencodable::MapKey,
            Malformed::TooDeep => Unencodable::TooDeep,
            other => Unencodable::Misshapen(other),
        }
    }
}

/// Appends one entry of a map. On an error `out` is unchanged.
#[inline]
pub(crate) fn append_entry<T: Serialize + ?Sized>(out: &mut Vec<u8>, key: &str, value: &T) -> Result<(), Unencodable> {
    let start = out.len();
    append_str(out, key);
    let value_start = out.len();
    let mut encoder = Encoder { out, depth: 0, nested: false };
    let mut appended = value.serialize(&mut encoder);
    // A scalar is written by one call and is always valid. A container's content depends on the `Serialize` of its
    // type.
    if encoder.nested && appended.is_ok() {
        appended = check_shape(out, value_start);
    }
    if appended.is_err() {
        out.truncate(start);
    }
    appended
}

#[cold]
fn check_shape(out: &[u8], value_start: usize) -> Result<(), Unencodable> {
    Ok(check(out.get(value_start..).unwrap_or_default())?)
}

struct Encoder<'a> {
    out: &'a mut Vec<u8>,
    depth: u8,
    /// Whether the value contains any container.
    nested: bool,
}

impl<'a> Encoder<'a> {
    fn descend(&mut self) -> Result<(), Unencodable> {
        if self.depth >= MAX_DEPTH {
            return Err(Unencodable::TooDeep);
        }
        self.depth += 1;
        self.nested = true;
        Ok(())
    }

    fn array(&mut self) -> Result<Compound<'_, 'a>, Unencodable> {
        self.descend()?;
        let at = begin_array(self.out);
        Ok(Compound { encoder: self, at, len: 0, levels: 1, json: None })
    }

    fn map(&mut self) -> Result<Compound<'_, 'a>, Unencodable> {
        self.descend()?;
        let at = begin_map(self.out);
        Ok(Compound { encoder: self, at, len: 0, levels: 1, json: None })
    }

    /// Appends `{"Variant":`; the caller appends the content.
    fn variant(&mut self, variant: &str) -> Result<(), Unencodable> {
        self.descend()?;
        append_map_header(self.out, 1);
        append_str(self.out, variant);
        Ok(())
    }
}

impl<'e, 'a> Serializer for &'e mut Encoder<'a> {
    type Ok = ();
    type Error = Unencodable;
    type SerializeSeq = Compound<'e, 'a>;
    type SerializeTuple = Compound<'e, 'a>;
    type SerializeTupleStruct = Compound<'e, 'a>;
    type SerializeTupleVariant = Compound<'e, 'a>;
    type SerializeMap = Compound<'e, 'a>;
    type SerializeStruct = Compound<'e, 'a>;
    type SerializeStructVariant = Compound<'e, 'a>;

    #[inline]
    fn serialize_bool(self, v: bool) -> Result<(), Unencodable> {
        append_bool(self.out, v);
        Ok(())
    }

    #[inline]
    fn serialize_i8(self, v: i8) -> Result<(), Unencodable> {
        self.serialize_i64(v.into())
    }

    #[inline]
    fn serialize_i16(self, v: i16) -> Result<(), Unencodable> {
        self.serialize_i64(v.into())
    }

    #[inline]
    fn serialize_i32(self, v: i32) -> Result<(), Unencodable> {
        self.serialize_i64(v.into())
    }

    #[inline]
    fn serialize_i64(self, v: i64) -> Result<(), Unencodable> {
        append_int(self.out, v);
        Ok(())
    }

    fn serialize_i128(self, v: i128) -> Result<(), Unencodable> {
        match i64::try_from(v) {
            Ok(v) => self.serialize_i64(v),
            Err(_) if v > 0 => self.serialize_u128(v.unsigned_abs()),
            Err(_) => {
                append_exact(self.out, &v.to_string());
                Ok(())
            }
        }
    }

    #[inline]
    fn serialize_u8(self, v: u8) -> Result<(), Unencodable> {
        self.serialize_u64(v.into())
    }

    #[inline]
    fn serialize_u16(self, v: u16) -> Result<(), Unencodable> {
        self.serialize_u64(v.into())
    }

    #[inline]
    fn serialize_u32(self, v: u32) -> Result<(), Unencodable> {
        self.serialize_u64(v.into())
    }

    #[inline]
    fn serialize_u64(self, v: u64) -> Result<(), Unencodable> {
        append_uint(self.out, v);
        Ok(())
    }

    fn serialize_u128(self, v: u128) -> Result<(), Unencodable> {
        match u64::try_from(v) {
            Ok(v) => self.serialize_u64(v),
            Err(_) => {
                append_exact(self.out, &v.to_string());
                Ok(())
            }
        }
    }

    #[inline]
    fn serialize_f32(self, v: f32) -> Result<(), Unencodable> {
        append_f32(self.out, v);
        Ok(())
    }

    #[inline]
    fn serialize_f64(self, v: f64) -> Result<(), Unencodable> {
        append_f64(self.out, v);
        Ok(())
    }

    fn serialize_char(self, v: char) -> Result<(), Unencodable> {
        append_str(self.out, v.encode_utf8(&mut [0; 4]));
        Ok(())
    }

    #[inline]
    fn serialize_str(self, v: &str) -> Result<(), Unencodable> {
        append_str(self.out, v);
        Ok(())
    }

    fn collect_str<T: Display + ?Sized>(self, value: &T) -> Result<(), Unencodable> {
        let at = begin_str(self.out);
        let text = self.out.len();
        write!(self.out, "{value}").map_err(<Unencodable as ser::Error>::custom)?;
        let len = saturate(self.out.len() - text);
        patch_len(self.out, at, len);
        Ok(())
    }

    fn serialize_bytes(self, v: &[u8]) -> Result<(), Unencodable> {
        append_bin(self.out, v);
        Ok(())
    }

    #[inline]
    fn serialize_none(self) -> Result<(), Unencodable> {
        self.serialize_unit()
    }

    #[inline]
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Unencodable> {
        value.serialize(self)
    }

    #[inline]
    fn serialize_unit(self) -> Result<(), Unencodable> {
        append_nil(self.out);
        Ok(())
    }

    fn serialize_unit_struct(self, _name: &'static str) -> Result<(), Unencodable> {
        self.serialize_unit()
    }

    fn serialize_unit_variant(self, _name: &'static str, _: u32, variant: &'static str) -> Result<(), Unencodable> {
        self.serialize_str(variant)
    }

    #[inline]
    fn serialize_newtype_struct<T>(self, _name: &'static str, value: &T) -> Result<(), Unencodable>
    where
        T: Serialize + ?Sized,
    {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T>(
        self,
        _name: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<(), Unencodable>
    where
        T: Serialize + ?Sized,
    {
        self.variant(variant)?;
        value.serialize(&mut *self)?;
        self.depth -= 1;
        Ok(())
    }

    fn serialize_seq(self, _len: Option<usize>) -> Result<Compound<'e, 'a>, Unencodable> {
        self.array()
    }

    fn serialize_tuple(self, _len: usize) -> Result<Compound<'e, 'a>, Unencodable> {
        self.array()
    }

    fn serialize_tuple_struct(self, _name: &'static str, _len: usize) -> Result<Compound<'e, 'a>, Unencodable> {
        self.array()
    }

    fn serialize_tuple_variant(
        self,
        _name: &'static str,
        _: u32,
        variant: &'static str,
        _len: usize,
    ) -> Result<Compound<'e, 'a>, Unencodable> {
        self.variant(variant)?;
        self.array().map(|compound| Compound { levels: 2, ..compound })
    }

    fn serialize_map(self, _len: Option<usize>) -> Result<Compound<'e, 'a>, Unencodable> {
        self.map()
    }

    fn serialize_struct(self, name: &'static str, _len: usize) -> Result<Compound<'e, 'a>, Unencodable> {
        let is_number = name == JSON_NUMBER;
        if is_number || name == RAW_JSON {
            return Ok(Compound { encoder: self, at: 0, len: 0, levels: 0, json: Some(is_number) });
        }
        self.map()
    }

    fn serialize_struct_variant(
        self,
        _name: &'static str,
        _: u32,
        variant: &'static str,
        _len: usize,
    ) -> Result<Compound<'e, 'a>, Unencodable> {
        self.variant(variant)?;
        self.map().map(|compound| Compound { levels: 2, ..compound })
    }
}

/// Names of structs as which serde_json passes its own types, each with its text in one field of the same name: a
/// number of `Value` if any crate of the build enables `arbitrary_precision`, and a `RawValue`.
const JSON_NUMBER: &str = "$serde_json::private::Number";
const RAW_JSON: &str = "$serde_json::private::RawValue";

/// An array or map that is being written. Its elements are counted and the count is patched in, because the length that
/// a `Serialize` announces may be wrong.
struct Compound<'e, 'a> {
    encoder: &'e mut Encoder<'a>,
    at: usize,
    len: u32,
    levels: u8,
    /// For a number (true) or raw value of serde_json, whose text follows as the only field.
    json: Option<bool>,
}

impl Compound<'_, '_> {
    fn element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Unencodable> {
        self.len = self.len.saturating_add(1);
        value.serialize(&mut *self.encoder)
    }

    fn field<T: Serialize + ?Sized>(&mut self, name: &str, value: &T) -> Result<(), Unencodable> {
        append_str(self.encoder.out, name);
        self.element(value)
    }

    fn close(self) {
        patch_len(self.encoder.out, self.at, self.len);
        self.encoder.depth -= self.levels;
    }
}

impl Encoder<'_> {
    /// Appends the value whose JSON text is `text`; fails if `text` does not serialize as a string.
    fn json<T: Serialize + ?Sized>(&mut self, text: &T, is_number: bool) -> Result<(), Unencodable> {
        let start = self.out.len();
        text.serialize(&mut *self)?;
        let text = Reader::new(self.out.get(start..).unwrap_or_default()).string()?.to_owned();
        self.out.truncate(start);
        if !is_number {
            let value: serde_json::Value = serde_json::from_str(&text).map_err(not_json)?;
            return value.serialize(self);
        }
        if append_number(self.out, &text) { Ok(()) } else { Err(not_json("its text is not a number")) }
    }
}

impl ser::SerializeMap for Compound<'_, '_> {
    type Ok = ();
    type Error = Unencodable;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Unencodable> {
        self.element(key)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Unencodable> {
        value.serialize(&mut *self.encoder)
    }

    fn end(self) -> Result<(), Unencodable> {
        self.close();
        Ok(())
    }
}

macro_rules! elements {
    ($($of:ident :: $each:ident),*) => {$(
        impl ser::$of for Compound<'_, '_> {
            type Ok = ();
            type Error = Unencodable;

            fn $each<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Unencodable> {
                self.element(value)
            }

            fn end(self) -> Result<(), Unencodable> {
                self.close();
                Ok(())
            }
        }
    )*};
}

elements!(
    SerializeSeq::serialize_element,
    SerializeTuple::serialize_element,
    SerializeTupleStruct::serialize_field,
    SerializeTupleVariant::serialize_field
);

impl ser::SerializeStructVariant for Compound<'_, '_> {
    type Ok = ();
    type Error = Unencodable;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<(), Unencodable> {
        self.field(key, value)
    }

    fn end(self) -> Result<(), Unencodable> {
        self.close();
        Ok(())
    }
}

impl ser::SerializeStruct for Compound<'_, '_> {
    type Ok = ();
    type Error = Unencodable;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<(), Unencodable> {
        match self.json {
            None => self.field(key, value),
            Some(_) if self.len > 0 => Err(not_json("it has two texts")),
            Some(is_number) => {
                self.len = 1;
                self.encoder.json(value, is_number)
            }
        }
    }

    fn end(self) -> Result<(), Unencodable> {
        match self.json {
            None => self.close(),
            Some(_) if self.len > 0 => {}
            Some(_) => return Err(not_json("it has no text")),
        }
        Ok(())
    }
}

#[cold]
fn not_json(why: impl Display) -> Unencodable {
    ser::Error::custom(format_args!("a number or raw value of serde_json: {why}"))
}

/// Reads a value as the type that the caller asks for; `None` if it is not of that type.
pub(crate) fn value_as<T: DeserializeOwned>(raw: &[u8]) -> Option<T> {
    if holds_ext(raw) {
        // Extension values have a form that callers know in JSON only.
        let mut text = Vec::new();
        json::write_value(&mut Reader::new(raw), &NoSymbols, &mut text).ok()?;
        return serde_json::from_slice(&text).ok();
    }
    // As it was written: an address or a uuid is text.
    T::deserialize(&mut rmp_serde::Deserializer::new(raw).with_human_readable()).ok()
}

/// Whether a checked value is or contains an extension value.
fn holds_ext(raw: &[u8]) -> bool {
    let mut reader = Reader::new(raw);
    // The content of a container follows its header, so all tokens of a value can be read in sequence.
    std::iter::from_fn(|| reader.token().ok()).any(|token| matches!(token, Token::Ext(..)))
}
