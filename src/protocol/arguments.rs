//! The arguments of a call, positional and named, each kept as the JSON text it came as.

mod call;
mod collect;
mod parameters;

use std::fmt;

use indexmap::IndexMap;
use serde::de::{DeserializeOwned, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::error::{Error, Failure, Kind};

/// By this name both sides of serde recognise [`Arguments`] in a task type.
const TOKEN: &str = "$countersign::Arguments";

/// Keyword arguments in the order in which they were written.
pub type Kwargs = IndexMap<String, Box<RawValue>>;

/// The arguments of one call, whatever they are: `*args, **kwargs`.
///
/// As a task's type, alone or in a newtype, it takes any call. Elsewhere it is the object
/// `{"args": [..], "kwargs": {..}}`.
#[derive(Clone, Debug, Default)]
pub struct Arguments {
    /// Positional arguments.
    pub args: Vec<Box<RawValue>>,
    /// Keyword arguments.
    pub kwargs: Kwargs,
}

#[derive(Serialize)]
struct Written<'a> {
    args: &'a [Box<RawValue>],
    kwargs: &'a Kwargs,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
struct Read {
    args: Vec<Box<RawValue>>,
    kwargs: Kwargs,
}

impl Arguments {
    /// The call that a task's value stands for: a struct or map gives keyword arguments, a tuple
    /// or list positional ones, a newtype struct one positional one, and a unit none.
    ///
    /// # Errors
    /// The value is none of these (a number, an enum), or does not serialize.
    pub fn of<T: Serialize + ?Sized>(task: &T) -> Result<Self, Error> {
        collect::collect(task)
            .map_err(|error| Kind::Codec { what: "arguments".into(), cause: error.to_string() })
            .map_err(Error::from)
    }

    /// Fills a task's type: fields take positional arguments in their order, keyword arguments by
    /// name; a tuple takes positional ones only; a type with `#[serde(flatten)]` keyword ones only.
    /// Kombu's tagged values arrive as the text or bytes that they stand for.
    ///
    /// A field with `#[serde(alias)]` takes two places in the order: give positional arguments to
    /// types without aliases only.
    ///
    /// # Errors
    /// Python's own `TypeError` for a call of `function` that does not fit: missing, surplus,
    /// duplicate and unknown arguments, and one of the wrong type.
    pub fn read<T: DeserializeOwned>(&self, function: &str) -> Result<T, Failure> {
        call::read(self).map_err(|fault| {
            let function = function.rsplit('.').next().unwrap_or(function);
            Failure::type_error(format!("{function}() {fault}"))
        })
    }

    /// The names by which a task's type takes its arguments, in their order; none when they have no
    /// names, or the type takes any call.
    #[must_use]
    pub fn parameters<T: DeserializeOwned>() -> &'static [&'static str] {
        parameters::of::<T>()
    }
}

impl Serialize for Arguments {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let written = Written { args: &self.args, kwargs: &self.kwargs };
        serializer.serialize_newtype_struct(TOKEN, &written)
    }
}

impl<'de> Deserialize<'de> for Arguments {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Whole;
        impl<'de> Visitor<'de> for Whole {
            type Value = Arguments;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the arguments of a call")
            }
            fn visit_newtype_struct<D: Deserializer<'de>>(
                self,
                deserializer: D,
            ) -> Result<Arguments, D::Error> {
                let Read { args, kwargs } = Read::deserialize(deserializer)?;
                Ok(Arguments { args, kwargs })
            }
        }
        deserializer.deserialize_newtype_struct(TOKEN, Whole)
    }
}

#[cfg(test)]
mod tests;
