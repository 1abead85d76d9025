//! The headers of a message, which are decoded when they are read.
//!
//! Most headers of a task are for other programs: a worker reads about ten of Celery's nineteen. So a
//! received table stays encoded, single fields are read from its bytes, and only code that reads or changes
//! the headers as a map decodes them.

use std::ops::{Deref, DerefMut};
use std::sync::OnceLock;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use super::table::{self, Headers, Table};

/// Message headers: a map that decodes itself on the first access through it.
#[derive(Clone, Default)]
pub struct MessageHeaders {
    /// `None`: the map has all headers.
    encoded: Option<Encoded>,
    map: Headers,
}

/// A received table, of which every entry can be decoded.
#[derive(Clone)]
struct Encoded {
    table: Bytes,
    map: OnceLock<Headers>,
}

/// One header.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Field<'h> {
    /// A value of an AMQP table: its type and its bytes.
    Encoded(u8, &'h [u8]),
    Decoded(&'h Value),
}

impl MessageHeaders {
    /// Keeps the bytes of a table without decoding them. Returns `None` when an entry cannot be decoded, or
    /// a text would have to be repaired.
    pub(crate) fn encoded(table: Bytes) -> Option<Self> {
        table::is_sound(&table).then(|| Self::of_table(table))
    }

    fn of_table(table: Bytes) -> Self {
        let encoded = Some(Encoded { table, map: OnceLock::new() });
        Self { encoded, map: Headers::new() }
    }

    /// The table, as long as it was not decoded.
    fn table(&self) -> Option<&[u8]> {
        let encoded = self.encoded.as_ref()?;
        encoded.map.get().is_none().then_some(&*encoded.table)
    }

    /// Returns the headers of these names in one pass, without decoding the others. Of several headers of
    /// one name, the last counts.
    pub(crate) fn fields<const N: usize>(&self, names: [&str; N]) -> [Option<Field<'_>>; N] {
        let Some(mut table) = self.table() else {
            return names.map(|name| self.get(name).map(Field::Decoded));
        };
        let mut fields = [None; N];
        while let Some(entry) = table::next_entry(&mut table) {
            let named = names.iter().position(|name| name.as_bytes() == entry.name);
            if let Some(field) = named.and_then(|at| fields.get_mut(at)) {
                *field = Some(Field::Encoded(entry.kind, entry.value));
            }
        }
        fields
    }

    /// Returns one header, without decoding the others.
    pub(crate) fn field(&self, name: &str) -> Option<Field<'_>> {
        let [field] = self.fields([name]);
        field
    }

    /// Returns the text of a header, without decoding the others.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.field(name)?.text()
    }

    /// Removes headers. Decodes the others only if one of these is there.
    pub(crate) fn discard<const N: usize>(&mut self, names: [&str; N]) {
        if self.fields(names).iter().any(Option::is_some) {
            for name in names {
                self.remove(name);
            }
        }
    }

    /// Returns the headers whose names pass, except those without a value.
    pub(crate) fn with_values(&self, passes: impl Fn(&str) -> bool) -> Self {
        let Some(mut table) = self.table() else {
            let kept = self.iter().filter(|(name, value)| passes(name) && !value.is_null());
            return kept
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect::<Headers>()
                .into();
        };
        let mut kept = Vec::new();
        while let Some(entry) = table::next_entry(&mut table) {
            let is_kept =
                entry.kind != table::VOID && std::str::from_utf8(entry.name).is_ok_and(&passes);
            if is_kept {
                entry.write(&mut kept);
            }
        }
        if kept.is_empty() { Self::default() } else { Self::of_table(kept.into()) }
    }
}

impl<'h> Field<'h> {
    /// Whether it has no value.
    pub(crate) fn is_null(self) -> bool {
        match self {
            Self::Encoded(kind, _) => kind == table::VOID,
            Self::Decoded(value) => value.is_null(),
        }
    }

    /// Returns a text; `None` for other types.
    pub(crate) fn text(self) -> Option<&'h str> {
        match self {
            Self::Encoded(b'S' | b'x', bytes) => std::str::from_utf8(bytes).ok(),
            Self::Encoded(..) => None,
            Self::Decoded(value) => value.as_str(),
        }
    }

    /// Returns the value as JSON.
    pub(crate) fn value(self) -> Value {
        match self {
            Self::Encoded(kind, bytes) => table::decode_value(kind, bytes),
            Self::Decoded(value) => value.clone(),
        }
    }
}

impl Deref for MessageHeaders {
    type Target = Headers;

    fn deref(&self) -> &Headers {
        match &self.encoded {
            Some(encoded) => encoded.map.get_or_init(|| Table::decode(&encoded.table).headers),
            None => &self.map,
        }
    }
}

impl DerefMut for MessageHeaders {
    fn deref_mut(&mut self) -> &mut Headers {
        if let Some(Encoded { table, map }) = self.encoded.take() {
            self.map = map.into_inner().unwrap_or_else(|| Table::decode(&table).headers);
        }
        &mut self.map
    }
}

impl From<Headers> for MessageHeaders {
    fn from(map: Headers) -> Self {
        Self { encoded: None, map }
    }
}

impl From<MessageHeaders> for Headers {
    fn from(mut headers: MessageHeaders) -> Self {
        std::mem::take(&mut *headers)
    }
}

impl PartialEq for MessageHeaders {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl std::fmt::Debug for MessageHeaders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        (**self).fmt(f)
    }
}

impl Serialize for MessageHeaders {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (**self).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for MessageHeaders {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Headers::deserialize(deserializer).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A table of texts.
    fn table(entries: &[(&str, &str)]) -> Bytes {
        let mut bytes = Vec::new();
        for (name, text) in entries {
            let (name, value) = (name.as_bytes(), text.as_bytes());
            table::Entry { name, kind: b'S', value }.write(&mut bytes);
        }
        bytes.into()
    }

    #[test]
    fn fields_are_read_without_decoding_the_others() {
        let headers =
            MessageHeaders::encoded(table(&[("id", "1"), ("a", "x"), ("a", "y")])).unwrap();
        let [a, none, id] = headers.fields(["a", "none", "id"]).map(|field| field?.text());
        assert_eq!((a, none, id), (Some("y"), None, Some("1")), "the last of one name counts");
        assert!(headers.table().is_some(), "nothing was decoded");
        assert_eq!(*headers, *json!({"id": "1", "a": "y"}).as_object().unwrap());
        assert!(headers.table().is_none());
        assert_eq!(headers.text("a"), Some("y"));
    }

    #[test]
    fn a_change_is_seen_by_every_reader() {
        let mut headers = MessageHeaders::encoded(table(&[("id", "1"), ("a", "x")])).unwrap();
        headers.discard(["b"]);
        assert!(headers.table().is_some(), "there was nothing to remove");
        let clone = headers.clone();
        headers.insert("b".into(), json!(2));
        headers.discard(["a"]);
        assert_eq!(*headers, *json!({"id": "1", "b": 2}).as_object().unwrap());
        assert_eq!(headers.field("a").is_none(), clone.field("a").is_some());
    }

    #[test]
    fn headers_without_a_value_are_left_out() {
        let mut bytes = table(&[("id", "1"), ("a", "x")]).to_vec();
        table::Entry { name: b"null", kind: table::VOID, value: b"" }.write(&mut bytes);
        let encoded = MessageHeaders::encoded(bytes.into()).unwrap();
        let decoded = MessageHeaders::from(Headers::clone(&encoded.clone()));
        for headers in [encoded, decoded] {
            assert_eq!(
                *headers.with_values(|name| name != "id"),
                *json!({"a": "x"}).as_object().unwrap()
            );
            assert_eq!(headers.with_values(|name| name == "none"), MessageHeaders::default());
        }
    }

    #[test]
    fn a_table_that_must_be_repaired_is_not_kept_encoded() {
        for (name, kind, value) in [
            (&b"a\xff"[..], b'S', &b"x"[..]),
            (b"a", b'S', b"\xff"),
            (b"a", b'A', b"I\0"),
            (b"a", b'F', b"\x01\xffV"),
            (b"a", b'A', b"S\0\0\0\x01\xff"),
        ] {
            let mut bytes = Vec::new();
            table::Entry { name, kind, value }.write(&mut bytes);
            assert!(MessageHeaders::encoded(bytes.into()).is_none(), "{name:?} {kind} {value:?}");
        }
        assert!(MessageHeaders::encoded(Bytes::from_static(b"\x02a")).is_none());
    }
}
