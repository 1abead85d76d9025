//! The names of a task type's fields, as passed by its `Deserialize` implementation.

use std::fmt;

use serde::de::{self, DeserializeOwned, Deserializer, Visitor};
use serde::forward_to_deserialize_any;

/// Aborts the deserialization of a nonexistent value. Carries the field names if the type is a struct.
#[derive(Debug)]
struct Names(&'static [&'static str]);

pub(super) fn of<T: DeserializeOwned>() -> &'static [&'static str] {
    T::deserialize(Probe).map_or_else(|Names(names)| names, |_| &[])
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("only the names of the fields were requested")
    }
}

impl std::error::Error for Names {}

impl de::Error for Names {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self(&[])
    }
}

struct Probe;

impl<'de> Deserializer<'de> for Probe {
    type Error = Names;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Names> {
        Err(Names(fields))
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Names> {
        Err(Names(&[]))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use crate::protocol::Arguments;

    #[test]
    fn a_struct_has_names_and_no_other_type() {
        #[derive(Deserialize)]
        struct Transfer {
            #[serde(rename = "amount")]
            _cents: u64,
            #[serde(rename = "to")]
            _to: Option<String>,
        }
        assert_eq!(Arguments::parameters::<Transfer>(), ["amount", "to"]);
        assert!(Arguments::parameters::<(u64, String)>().is_empty());
        assert!(Arguments::parameters::<Arguments>().is_empty());
    }
}
