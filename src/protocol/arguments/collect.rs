//! A serializer that splits the outermost value into [`Arguments`].

use serde::ser::{
    Error as _, Impossible, Serialize, SerializeMap, SerializeSeq, SerializeStruct, SerializeTuple,
    SerializeTupleStruct, Serializer,
};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Error, Value};

use super::{Arguments, TOKEN};

pub(super) fn collect<T: Serialize + ?Sized>(task: &T) -> Result<Arguments, Error> {
    task.serialize(Collect { in_newtype: false })
}

/// Inside a newtype only [`Arguments`] is split; any other value is one argument.
#[derive(Clone, Copy)]
struct Collect {
    in_newtype: bool,
}

#[derive(Default)]
struct Parts {
    arguments: Arguments,
    name: String,
}

impl Collect {
    fn open(self) -> Result<Parts, Error> {
        if self.in_newtype { Err(refused()) } else { Ok(Parts::default()) }
    }
}

fn refused() -> Error {
    Error::custom("a task's arguments must be a struct, a map, a tuple, a list or a unit")
}

fn raw<T: Serialize + ?Sized>(value: &T) -> Result<Box<RawValue>, Error> {
    to_raw_value(value)
}

impl Serializer for Collect {
    type Ok = Arguments;
    type Error = Error;
    type SerializeSeq = Parts;
    type SerializeTuple = Parts;
    type SerializeTupleStruct = Parts;
    type SerializeTupleVariant = Impossible<Arguments, Error>;
    type SerializeMap = Parts;
    type SerializeStruct = Parts;
    type SerializeStructVariant = Impossible<Arguments, Error>;

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        value: &T,
    ) -> Result<Arguments, Error> {
        if name == TOKEN {
            return serde_json::from_str(&serde_json::to_string(value)?);
        }
        let whole = value.serialize(Self { in_newtype: true });
        if self.in_newtype {
            return whole;
        }
        whole.or_else(|_| Ok(Arguments { args: vec![raw(value)?], ..Arguments::default() }))
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Parts, Error> {
        self.open()
    }

    fn serialize_tuple(self, _: usize) -> Result<Parts, Error> {
        self.open()
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Parts, Error> {
        self.open()
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Parts, Error> {
        self.open()
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Parts, Error> {
        self.open()
    }

    fn serialize_unit(self) -> Result<Arguments, Error> {
        self.open().map(|parts| parts.arguments)
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<Arguments, Error> {
        self.serialize_unit()
    }

    fn serialize_none(self) -> Result<Arguments, Error> {
        self.serialize_unit()
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<Arguments, Error> {
        value.serialize(self)
    }

    fn serialize_bool(self, _: bool) -> Result<Arguments, Error> {
        Err(refused())
    }

    fn serialize_i8(self, _: i8) -> Result<Arguments, Error> {
        Err(refused())
    }

    fn serialize_i16(self, _: i16) -> Result<Arguments, Error> {
        Err(refused())
    }

    fn serialize_i32(self, _: i32) -> Result<Arguments, Error> {
        Err(refused())
    }

    fn serialize_i64(self, _: i64) -> Result<Arguments, Error> {
        Err(refused())
    }

    fn serialize_u8(self, _: u8) -> Result<Arguments, Error> {
        Err(refused())
    }

    fn serialize_u16(self, _: u16) -> Result<Arguments, Error> {
        Err(refused())
    }

    fn serialize_u32(self, _: u32) -> Result<Arguments, Error> {
        Err(refused())
    }

    fn serialize_u64(self, _: u64) -> Result<Arguments, Error> {
        Err(refused())
    }

    fn serialize_f32(self, _: f32) -> Result<Arguments, Error> {
        Err(refused())
    }

    fn serialize_f64(self, _: f64) -> Result<Arguments, Error> {
        Err(refused())
    }

    fn serialize_char(self, _: char) -> Result<Arguments, Error> {
        Err(refused())
    }

    fn serialize_str(self, _: &str) -> Result<Arguments, Error> {
        Err(refused())
    }

    fn serialize_bytes(self, _: &[u8]) -> Result<Arguments, Error> {
        Err(refused())
    }

    fn serialize_unit_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
    ) -> Result<Arguments, Error> {
        Err(refused())
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: &T,
    ) -> Result<Arguments, Error> {
        Err(refused())
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeTupleVariant, Error> {
        Err(refused())
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeStructVariant, Error> {
        Err(refused())
    }
}

impl SerializeSeq for Parts {
    type Ok = Arguments;
    type Error = Error;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        self.arguments.args.push(raw(value)?);
        Ok(())
    }

    fn end(self) -> Result<Arguments, Error> {
        Ok(self.arguments)
    }
}

impl SerializeTuple for Parts {
    type Ok = Arguments;
    type Error = Error;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        SerializeSeq::serialize_element(self, value)
    }

    fn end(self) -> Result<Arguments, Error> {
        Ok(self.arguments)
    }
}

impl SerializeTupleStruct for Parts {
    type Ok = Arguments;
    type Error = Error;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        SerializeSeq::serialize_element(self, value)
    }

    fn end(self) -> Result<Arguments, Error> {
        Ok(self.arguments)
    }
}

impl SerializeMap for Parts {
    type Ok = Arguments;
    type Error = Error;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Error> {
        let Value::String(name) = serde_json::to_value(key)? else {
            return Err(Error::custom("keyword arguments must be named by text"));
        };
        self.name = name;
        Ok(())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        let name = std::mem::take(&mut self.name);
        self.arguments.kwargs.insert(name, raw(value)?);
        Ok(())
    }

    fn end(self) -> Result<Arguments, Error> {
        Ok(self.arguments)
    }
}

impl SerializeStruct for Parts {
    type Ok = Arguments;
    type Error = Error;

    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        name: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        self.arguments.kwargs.insert(name.to_owned(), raw(value)?);
        Ok(())
    }

    fn end(self) -> Result<Arguments, Error> {
        Ok(self.arguments)
    }
}
