//! A deserializer that fills a task's type as Python fills a function's parameters.

use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, Expected, MapAccess, SeqAccess, Visitor,
};
use serde::forward_to_deserialize_any;
use serde_json::value::RawValue;

use super::{Arguments, TOKEN};
use crate::protocol::tagged_json;

/// Deserializes `T`. First tries a newtype as a wrapper of [`Arguments`], which takes the whole call;
/// otherwise the newtype is one argument.
pub(super) fn read<T: DeserializeOwned>(arguments: &Arguments) -> Result<T, Fault> {
    match T::deserialize(Call { arguments, newtype: Newtype::LookInside }) {
        Err(Fault::NotWhole) => T::deserialize(Call { arguments, newtype: Newtype::OneArgument }),
        read => read,
    }
}

/// An error in a call, in Python's words, without the function's name in front.
#[derive(Debug)]
pub(super) enum Fault {
    Message(String),
    /// The newtype does not contain [`Arguments`].
    NotWhole,
}

impl Fault {
    fn takes(takes: usize, given: usize) -> Self {
        let plural = if takes == 1 { "" } else { "s" };
        let were = if given == 1 { "was" } else { "were" };
        Self::Message(format!("takes {takes} positional argument{plural} but {given} {were} given"))
    }

    fn unexpected(name: &str) -> Self {
        Self::Message(format!("got an unexpected keyword argument '{name}'"))
    }

    fn multiple(name: &str) -> Self {
        Self::Message(format!("got multiple values for argument '{name}'"))
    }

    fn value(argument: impl fmt::Display, error: &serde_json::Error) -> Self {
        let text = error.to_string();
        let place = format!(" at line {} column {}", error.line(), error.column());
        let text = text.strip_suffix(&place).unwrap_or(&text);
        Self::Message(format!("argument {argument}: {text}"))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Message(text) => f.write_str(text),
            Self::NotWhole => f.write_str("takes one positional argument"),
        }
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::Message(message.to_string())
    }

    fn missing_field(name: &'static str) -> Self {
        Self::Message(format!("missing 1 required positional argument: '{name}'"))
    }

    fn invalid_length(given: usize, _: &dyn Expected) -> Self {
        Self::Message(format!("missing 1 required positional argument: number {}", given + 1))
    }

    fn duplicate_field(name: &'static str) -> Self {
        Self::multiple(name)
    }

    fn unknown_field(name: &str, _: &'static [&'static str]) -> Self {
        Self::unexpected(name)
    }
}

#[derive(Clone, Copy)]
enum Newtype {
    LookInside,
    OneArgument,
}

#[derive(Clone, Copy)]
struct Call<'a> {
    arguments: &'a Arguments,
    newtype: Newtype,
}

impl<'a> Call<'a> {
    fn no_positional(self) -> Result<(), Fault> {
        match self.arguments.args.len() {
            0 => Ok(()),
            given => Err(Fault::takes(0, given)),
        }
    }

    fn no_keywords(self) -> Result<(), Fault> {
        match self.arguments.kwargs.keys().next() {
            None => Ok(()),
            Some(name) => Err(Fault::unexpected(name)),
        }
    }

    fn named(self) -> impl Iterator<Item = (&'a str, &'a RawValue)> {
        self.arguments.kwargs.iter().map(|(name, value)| (name.as_str(), &**value))
    }

    fn positional<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.no_keywords()?;
        visitor.visit_seq(Positional { rest: self.arguments.args.iter(), number: 0 })
    }
}

impl<'de> Deserializer<'de> for Call<'de> {
    type Error = Fault;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let Arguments { args, kwargs } = self.arguments;
        if args.len() > fields.len() {
            return Err(Fault::takes(fields.len(), args.len()));
        }
        let filled = &fields[..args.len()];
        for name in kwargs.keys() {
            if filled.contains(&name.as_str()) {
                return Err(Fault::multiple(name));
            }
            if !fields.contains(&name.as_str()) {
                return Err(Fault::unexpected(name));
            }
        }
        let positional = filled.iter().copied().zip(args.iter().map(|value| &**value));
        visitor.visit_map(Named { rest: positional.chain(self.named()), current: None })
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.no_positional()?;
        visitor.visit_map(Named { rest: self.named(), current: None })
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.positional(visitor)
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match self.arguments.args.len() {
            given if given > length => Err(Fault::takes(length, given)),
            _ => self.positional(visitor),
        }
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.deserialize_tuple(length, visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        if name == TOKEN {
            return Whole(self.arguments).deserialize_newtype_struct(name, visitor);
        }
        if matches!(self.newtype, Newtype::LookInside) {
            return visitor.visit_newtype_struct(Whole(self.arguments));
        }
        self.no_keywords()?;
        match self.arguments.args.as_slice() {
            [] => Err(de::Error::invalid_length(0, &visitor)),
            [one] => {
                tagged_json::read(one, InNewtype(visitor)).map_err(|error| Fault::value(1, &error))
            }
            more => Err(Fault::takes(1, more.len())),
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.no_positional()?;
        self.no_keywords()?;
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.arguments {
            none if none.args.is_empty() && none.kwargs.is_empty() => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        if self.arguments.args.is_empty() {
            self.deserialize_map(visitor)
        } else {
            self.deserialize_seq(visitor)
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        enum identifier ignored_any
    }
}

/// Passes the whole call to [`Arguments`]; fails for any other type.
struct Whole<'a>(&'a Arguments);

impl<'de> Deserializer<'de> for Whole<'_> {
    type Error = Fault;

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        if name != TOKEN {
            return visitor.visit_newtype_struct(self);
        }
        let to_fault = |error: serde_json::Error| Fault::Message(error.to_string());
        let text = serde_json::to_string(self.0).map_err(to_fault)?;
        let mut json = serde_json::Deserializer::from_reader(text.as_bytes());
        visitor.visit_newtype_struct(&mut json).map_err(to_fault)
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Fault> {
        Err(Fault::NotWhole)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        option unit unit_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

/// Deserializes the content of a newtype with the newtype's own visitor.
struct InNewtype<V>(V);

impl<'de, V: Visitor<'de>> DeserializeSeed<'de> for InNewtype<V> {
    type Value = V::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        self.0.visit_newtype_struct(deserializer)
    }
}

struct Positional<'a> {
    rest: std::slice::Iter<'a, Box<RawValue>>,
    number: usize,
}

impl<'de> SeqAccess<'de> for Positional<'de> {
    type Error = Fault;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Fault> {
        let Some(value) = self.rest.next() else {
            return Ok(None);
        };
        self.number += 1;
        let read = tagged_json::read(value, seed);
        read.map(Some).map_err(|error| Fault::value(self.number, &error))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.rest.len())
    }
}

struct Named<'a, I> {
    rest: I,
    current: Option<(&'a str, &'a RawValue)>,
}

impl<'de, I: Iterator<Item = (&'de str, &'de RawValue)>> MapAccess<'de> for Named<'de, I> {
    type Error = Fault;

    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Fault> {
        self.current = self.rest.next();
        let Some((name, _)) = self.current else {
            return Ok(None);
        };
        seed.deserialize(StrDeserializer::new(name)).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Fault> {
        let Some((name, value)) = self.current.take() else {
            return Err(de::Error::custom("a value was read before its name"));
        };
        tagged_json::read(value, seed)
            .map_err(|error| Fault::value(format_args!("'{name}'"), &error))
    }
}
