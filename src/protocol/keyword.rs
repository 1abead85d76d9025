//! Names of keyword arguments. Python can write lone surrogates into JSON (from a file name that is not
//! UTF-8), which a Rust string cannot contain.
//!
//! In such a name each lone surrogate is read as the six characters of its escape, `\udc80`, and written as
//! that escape again.

use std::fmt;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer};

/// A name as read from JSON.
pub(super) struct Name(pub(super) String);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Name;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }
            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Name, E> {
                read(bytes).map(Name).ok_or_else(|| E::custom("a name is not UTF-8"))
            }
        }
        // As bytes, `serde_json` also reads lone surrogates: three bytes each, as UTF-8 would encode them.
        deserializer.deserialize_bytes(Text)
    }
}

fn read(bytes: &[u8]) -> Option<String> {
    let mut name = String::with_capacity(bytes.len());
    let mut rest = bytes;
    loop {
        let error = match std::str::from_utf8(rest) {
            Ok(text) => {
                name.push_str(text);
                return Some(name);
            }
            Err(error) => error,
        };
        let (text, bad) = rest.split_at(error.valid_up_to());
        name.push_str(std::str::from_utf8(text).ok()?);
        let (surrogate, after) = bad.split_first_chunk::<3>()?;
        let [0xed, middle @ 0xa0..=0xbf, last @ 0x80..=0xbf] = *surrogate else { return None };
        let unit = 0xd000 | (u16::from(middle & 0x3f) << 6) | u16::from(last & 0x3f);
        name.push_str(&format!("\\u{unit:04x}"));
        rest = after;
    }
}

/// Writes a name as a JSON string.
pub(super) fn write(name: &str, json: &mut Vec<u8>) {
    json.push(b'"');
    let mut rest = name;
    while let Some(at) = rest.find("\\ud") {
        let escape = &rest[at..];
        let is_pair = |unit: u16| unit < 0xdc00 && escape.get(6..).is_some_and(is_low);
        match surrogate(escape) {
            Some(unit) if !is_pair(unit) => {
                write_plain(&rest[..at], json);
                json.extend_from_slice(&escape.as_bytes()[..6]);
                rest = &escape[6..];
            }
            _ => {
                write_plain(&rest[..at + 3], json);
                rest = &escape[3..];
            }
        }
    }
    write_plain(rest, json);
    json.push(b'"');
}

fn write_plain(text: &str, json: &mut Vec<u8>) {
    let quoted = serde_json::to_string(text).unwrap_or_default();
    let inside = quoted.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
    json.extend_from_slice(inside.unwrap_or_default().as_bytes());
}

/// Returns the surrogate whose escape the text begins with.
fn surrogate(text: &str) -> Option<u16> {
    let digits = text.strip_prefix("\\u")?.get(..4)?;
    let is_ours = digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let unit = u16::from_str_radix(digits, 16).ok().filter(|_| is_ours)?;
    (0xd800..=0xdfff).contains(&unit).then_some(unit)
}

fn is_low(text: &str) -> bool {
    surrogate(text).is_some_and(|unit| unit >= 0xdc00)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(name: &str) -> String {
        let mut json = Vec::new();
        write(name, &mut json);
        String::from_utf8(json).unwrap()
    }

    fn name(json: &str) -> String {
        let Name(name) = serde_json::from_str(json).unwrap();
        name
    }

    #[test]
    fn a_lone_surrogate_is_read_as_its_escape_and_written_back() {
        for json in [
            r#""\ud800""#,
            r#""a\udc80b\udfff""#,
            r#""\udc00\ud800""#,
            r#""\ud800\ud800""#,
            r#""\ud800\\""#,
            r#""plain""#,
            r#""""#,
            r#""q\"\\\n\u0000""#,
        ] {
            assert_eq!(written(&name(json)), json);
        }
        assert_eq!(name(r#""a\udc80""#), "a\\udc80");
        assert_eq!(name(r#""\ud83d\ude00""#), "\u{1f600}", "a pair is one character");
    }

    #[test]
    fn a_name_is_unchanged_when_it_is_sent_on() {
        for text in [
            "\\ud83d\\ude00",
            "\\ud800",
            "\\\\ud800",
            "\\udz",
            "\\ud8",
            "\\ud8\u{e9}0",
            "\\uD800",
            "\"\\ud800\"",
            "\\ud800\\ud83d\\ude00",
        ] {
            assert_eq!(name(&written(text)), text);
        }
    }

    #[test]
    fn bytes_that_are_not_a_surrogate_are_refused() {
        for bytes in [&b"\xff"[..], b"a\xed\x9f", b"\xed\xa0", b"\xed\xc0\x80"] {
            assert_eq!(read(bytes), None);
        }
    }
}
