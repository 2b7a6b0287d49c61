//! Arrays, maps and structs being written by the serializer of property values, one element at a time.

use std::fmt::Display;

use serde::Serialize;
use serde::ser;

use super::Unencodable;
use super::decode::Reader;
use super::encode::{append_str, patch_len};
use super::number::append_number;
use super::serialize::Encoder;

/// serde_json's own types come as structs of these names, each with its text in one field of the same name: a number of `Value` where any
/// crate of the build has turned on `arbitrary_precision`, and JSON that is passed on as it is.
pub(super) const JSON_NUMBER: &str = "$serde_json::private::Number";
pub(super) const RAW_JSON: &str = "$serde_json::private::RawValue";

/// An array or map being written. The length a `Serialize` announces is not trusted: it is counted and patched in.
pub(super) struct Compound<'e, 'a> {
    pub(super) encoder: &'e mut Encoder<'a>,
    pub(super) at: usize,
    pub(super) len: u32,
    pub(super) levels: u8,
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

/// A struct being written.
pub(super) enum Struct<'e, 'a> {
    Fields(Compound<'e, 'a>),
    /// A value of serde_json's, whose text follows.
    Json {
        encoder: &'e mut Encoder<'a>,
        is_number: bool,
        is_written: bool,
    },
}

impl Encoder<'_> {
    /// What `text`, a string or anything else, says as JSON.
    fn json<T: Serialize + ?Sized>(&mut self, text: &T, is_number: bool) -> Result<(), Unencodable> {
        let start = self.out.len();
        text.serialize(&mut *self)?;
        let text = Reader::new(self.out.get(start..).unwrap_or_default()).string()?.to_owned();
        self.out.truncate(start);
        if !is_number {
            let value: serde_json::Value = serde_json::from_str(&text).map_err(not_json)?;
            return value.serialize(self);
        }
        if append_number(self.out, &text) { Ok(()) } else { Err(not_json("its text is none")) }
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

macro_rules! fields {
    ($($of:ident),*) => {$(
        impl ser::$of for Compound<'_, '_> {
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
    )*};
}

fields!(SerializeStructVariant);

impl ser::SerializeStruct for Struct<'_, '_> {
    type Ok = ();
    type Error = Unencodable;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<(), Unencodable> {
        match self {
            Struct::Fields(fields) => fields.field(key, value),
            Struct::Json { is_written: true, .. } => Err(not_json("it has two texts")),
            Struct::Json { encoder, is_number, is_written } => {
                *is_written = true;
                encoder.json(value, *is_number)
            }
        }
    }

    fn end(self) -> Result<(), Unencodable> {
        match self {
            Struct::Fields(fields) => fields.close(),
            Struct::Json { is_written: true, .. } => {}
            Struct::Json { .. } => return Err(not_json("it has no text")),
        }
        Ok(())
    }
}

#[cold]
fn not_json(why: impl Display) -> Unencodable {
    ser::Error::custom(format_args!("a number or raw value of serde_json: {why}"))
}
