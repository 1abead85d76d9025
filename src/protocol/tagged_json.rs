//! Kombu's tagged values: `{"__type__": "uuid", "__value__": ..}` and the like, read into fields
//! that expect text, bytes or a number.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::value::{MapAccessDeserializer, MapDeserializer, SeqDeserializer};
use serde::de::{DeserializeSeed, Deserializer, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::value::RawValue;
use serde_json::{Error, Map, Value};

const MARK: &[u8] = b"\"__type__\"";

/// Deserializes one JSON text. Builds the tree that tags need only if the text contains a tag.
pub(super) fn read<'de, S: DeserializeSeed<'de>>(
    json: &'de RawValue,
    seed: S,
) -> Result<S::Value, Error> {
    if memchr::memmem::find(json.get().as_bytes(), MARK).is_none() {
        return seed.deserialize(&mut serde_json::Deserializer::from_str(json.get()));
    }
    seed.deserialize(Tagged(serde_json::from_str(json.get())?))
}

/// A JSON value in which tagged objects stand for the values that they represent.
struct Tagged(Value);

/// The value that a tagged object represents.
struct Meaning {
    text: String,
    /// Only for a value that was `bytes` in Python.
    bytes: Option<Vec<u8>>,
}

impl Meaning {
    fn of(value: &Value) -> Option<Self> {
        let tagged = value.as_object().filter(|fields| fields.len() == 2)?;
        let value = tagged.get("__value__")?;
        let plain = |bytes| Some(Self { text: value.as_str()?.to_owned(), bytes });
        match tagged.get("__type__")?.as_str()? {
            "datetime" | "date" | "time" | "decimal" => plain(None),
            "bytes" => plain(Some(value.as_str()?.as_bytes().to_vec())),
            "base64" => plain(Some(STANDARD.decode(value.as_str()?).ok()?)),
            "uuid" => {
                let id = uuid::Uuid::parse_str(value.get("hex")?.as_str()?).ok()?;
                Some(Self { text: id.hyphenated().to_string(), bytes: None })
            }
            _ => None,
        }
    }
}

impl Tagged {
    fn bytes(&self) -> Option<Vec<u8>> {
        Meaning::of(&self.0)?.bytes
    }
}

fn object<'de>(fields: Map<String, Value>) -> impl serde::de::MapAccess<'de, Error = Error> {
    MapDeserializer::new(fields.into_iter().map(|(name, value)| (name, Tagged(value))))
}

impl<'de> IntoDeserializer<'de, Error> for Tagged {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Tagged {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if let Some(meaning) = Meaning::of(&self.0) {
            return visitor.visit_string(meaning.text);
        }
        match self.0 {
            Value::Array(items) => {
                let mut items = SeqDeserializer::new(items.into_iter().map(Tagged));
                let value = visitor.visit_seq(&mut items)?;
                items.end()?;
                Ok(value)
            }
            Value::Object(fields) => visitor.visit_map(object(fields)),
            scalar => scalar.deserialize_any(visitor),
        }
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match Meaning::of(&self.0).and_then(|decimal| decimal.text.parse().ok()) {
            Some(number) => visitor.visit_f64(number),
            None => self.deserialize_any(visitor),
        }
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.bytes() {
            Some(bytes) => visitor.visit_byte_buf(bytes),
            None => self.deserialize_any(visitor),
        }
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_byte_buf(visitor)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.bytes() {
            Some(bytes) => visitor.visit_seq(SeqDeserializer::new(bytes.into_iter())),
            None => self.deserialize_any(visitor),
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        // A `RawValue` must stay raw, including tags; `serde_json` recognises its own name.
        if name.starts_with("$serde_json") {
            return self.0.deserialize_newtype_struct(name, visitor);
        }
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.0 {
            Value::Object(fields) if fields.len() == 1 => {
                let variant = MapAccessDeserializer::new(object(fields));
                variant.deserialize_enum(name, variants, visitor)
            }
            other => other.deserialize_enum(name, variants, visitor),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 char str string unit unit_struct
        tuple_struct map struct identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use std::marker::PhantomData;

    use serde::Deserialize;
    use serde::de::DeserializeOwned;

    use super::*;

    fn read_as<T: DeserializeOwned>(json: &str) -> Result<T, Error> {
        let raw = RawValue::from_string(json.to_owned()).unwrap();
        read(&raw, PhantomData::<T>)
    }

    #[test]
    fn tagged_values_are_read_as_text_at_any_depth() {
        let json = r#"{"when": [{"__type__": "datetime", "__value__": "2026-01-01T00:00:00"}],
            "who": {"__type__": "uuid", "__value__": {"hex": "00000000000000000000000000000005"}}}"#;
        #[derive(Deserialize)]
        struct Found {
            when: Vec<String>,
            who: uuid_text::Text,
        }
        mod uuid_text {
            #[derive(serde::Deserialize)]
            pub(super) struct Text(pub String);
        }
        let found: Found = read_as(json).unwrap();
        assert_eq!(found.when, ["2026-01-01T00:00:00"]);
        assert_eq!(found.who.0, "00000000-0000-0000-0000-000000000005");
    }

    #[test]
    fn tagged_bytes_are_read_as_text_or_bytes() {
        let text = r#"{"__type__": "bytes", "__value__": "ab"}"#;
        assert_eq!(read_as::<String>(text).unwrap(), "ab");
        assert_eq!(read_as::<Vec<u8>>(text).unwrap(), b"ab");
        assert_eq!(read_as::<[u8; 2]>(text).unwrap(), *b"ab");
        let base64 = r#"{"__type__": "base64", "__value__": "/w=="}"#;
        assert_eq!(read_as::<Vec<u8>>(base64).unwrap(), [0xff]);
        assert_eq!(read_as::<Option<Vec<u8>>>(base64).unwrap(), Some(vec![0xff]));
    }

    #[test]
    fn a_decimal_is_read_as_text_or_a_float() {
        let json = r#"{"__type__": "decimal", "__value__": "1.50"}"#;
        assert_eq!(read_as::<String>(json).unwrap(), "1.50");
        assert_eq!(read_as::<f64>(json).unwrap().to_bits(), 1.5_f64.to_bits());
        assert!(read_as::<i64>(json).is_err());
    }

    #[test]
    fn enums_and_raw_values_are_read_next_to_tags() {
        #[derive(Deserialize, Debug, PartialEq)]
        enum Shape {
            Named(String),
            Plain,
        }
        let json = r#"[{"Named": {"__type__": "date", "__value__": "2026-01-01"}}, "Plain"]"#;
        let shapes: Vec<Shape> = read_as(json).unwrap();
        assert_eq!(shapes, [Shape::Named("2026-01-01".into()), Shape::Plain]);
        let raw: Box<RawValue> = read_as(r#"{"__type__":"date","__value__":"x"}"#).unwrap();
        assert_eq!(raw.get(), r#"{"__type__":"date","__value__":"x"}"#);
    }

    #[test]
    fn an_unknown_or_invalid_tag_is_read_as_an_object() {
        for json in [
            r#"{"__type__": "zoo", "__value__": "x"}"#,
            r#"{"__type__": "uuid", "__value__": {"hex": "nothex"}}"#,
            r#"{"__type__": 5, "__value__": 5}"#,
        ] {
            assert!(read_as::<String>(json).is_err(), "{json}");
            assert!(read_as::<Value>(json).unwrap().is_object(), "{json}");
        }
    }

    #[test]
    fn depth_is_bounded_with_tags_too() {
        let json =
            format!("{}{}\"__type__\"{}{}", "[".repeat(10_000), "[", "]", "]".repeat(10_000));
        assert!(read_as::<Value>(&json).is_err());
    }
}
