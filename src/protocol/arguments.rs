//! The arguments of a call, positional and named; each value is kept as its original JSON text.

mod call;
mod collect;
mod parameters;

use std::fmt;

use indexmap::IndexMap;
use serde::de::{DeserializeOwned, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use crate::error::{Error, Failure, Kind};

/// The name by which both sides of serde recognise [`Arguments`] in a task type.
const TOKEN: &str = "$countersign::Arguments";

/// Keyword arguments in the order in which they were written.
pub type Kwargs = IndexMap<String, Box<RawValue>>;

/// The arguments of any call: `*args, **kwargs`.
///
/// As a task's type, alone or in a newtype, it accepts every call. In other positions it is the object
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
    /// Converts a task's value into a call: a struct or map becomes keyword arguments, a tuple or list
    /// positional ones, a newtype struct one positional argument, and a unit no arguments.
    ///
    /// # Errors
    /// If the value is of another kind (a number, an enum), or does not serialize.
    pub fn of<T: Serialize + ?Sized>(task: &T) -> Result<Self, Error> {
        collect::collect(task)
            .map_err(|error| Kind::Codec { what: "arguments".into(), cause: error.to_string() })
            .map_err(Error::from)
    }

    /// Deserializes a task's type: fields take positional arguments in their order, and keyword arguments by
    /// name; a tuple takes only positional ones; a type with `#[serde(flatten)]` only keyword ones. Kombu's
    /// tagged values are read as the text or bytes that they represent.
    ///
    /// A field with `#[serde(alias)]` takes two positions: pass positional arguments only to types without
    /// aliases.
    ///
    /// # Errors
    /// Python's own `TypeError` for an invalid call of `function`: missing, surplus, duplicate or unknown
    /// arguments, and arguments of the wrong type.
    pub fn read<T: DeserializeOwned>(&self, function: &str) -> Result<T, Failure> {
        call::read(self).map_err(|fault| {
            let function = function.rsplit('.').next().unwrap_or(function);
            Failure::type_error(format!("{function}() {fault}"))
        })
    }

    /// Returns the parameter names of a task's type, in their order; empty if its arguments have no names, or
    /// the type accepts every call.
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
