//! The body of a task message: `[args, kwargs, embed]`, each part kept as text.

use std::fmt;

use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::headers::shown;
use super::keyword::{self, Name};
use super::{Arguments, DecodeError, Kwargs};

/// The recursion limit of `serde_json`, so that every accepted body can be read later.
const MAX_DEPTH: usize = 127;

/// The maximum number of arguments. A body with more is an attempt to exhaust memory.
const MAX_ARGUMENTS: usize = 65_536;

/// The `embed` that Celery writes for a task without callbacks.
pub(super) const NO_EMBED: &str =
    r#"{"callbacks": null, "errbacks": null, "chain": null, "chord": null}"#;

/// Returns an `embed` without callbacks.
pub(super) fn no_embed() -> Box<RawValue> {
    serde_json::from_str(NO_EMBED).unwrap_or_else(|_| RawValue::NULL.to_owned())
}

/// Splits a body in one pass, without building a tree.
pub(super) fn read(body: &[u8]) -> Result<(Arguments, Box<RawValue>), DecodeError> {
    if body.is_empty() {
        return Err(DecodeError::new("the body is empty"));
    }
    let text = std::str::from_utf8(body)
        .map_err(|error| DecodeError::new(format!("the body is not UTF-8: {error}")))?;
    if is_too_deep(body) {
        return Err(DecodeError::new(format!("the body is nested deeper than {MAX_DEPTH} levels")));
    }
    match serde_json::from_str::<(Positional, Named, Box<RawValue>)>(text) {
        Ok((args, kwargs, embed)) if matches!(embed.get().as_bytes(), [b'{' | b'n', ..]) => {
            Ok((Arguments { args: args.0, kwargs: kwargs.0 }, embed))
        }
        Ok(_) => Err(DecodeError::new("the third part of the body, embed, is not an object")),
        Err(error) => Err(DecodeError::new(explain(text, &error))),
    }
}

/// The inverse of [`read`]. Writes each value as its original text.
pub(super) fn write(arguments: &Arguments, embed: &RawValue) -> Vec<u8> {
    let values = arguments.args.iter().chain(arguments.kwargs.values());
    let capacity: usize = values.map(|value| value.get().len() + 16).sum();
    let mut body = Vec::with_capacity(capacity + embed.get().len() + 16);
    body.push(b'[');
    // Writing to memory cannot fail.
    let _ = serde_json::to_writer(&mut body, &arguments.args);
    body.extend_from_slice(b",{");
    for (index, (name, value)) in arguments.kwargs.iter().enumerate() {
        if index > 0 {
            body.push(b',');
        }
        keyword::write(name, &mut body);
        body.push(b':');
        body.extend_from_slice(value.get().as_bytes());
    }
    body.extend_from_slice(b"},");
    body.extend_from_slice(embed.get().as_bytes());
    body.push(b']');
    body
}

struct Positional(Vec<Box<RawValue>>);
struct Named(Kwargs);

impl<'de> Deserialize<'de> for Positional {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Items;
        impl<'de> Visitor<'de> for Items {
            type Value = Positional;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of arguments")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Positional, A::Error> {
                let mut args = Vec::new();
                while let Some(item) = items.next_element()? {
                    if args.len() == MAX_ARGUMENTS {
                        return Err(too_many());
                    }
                    args.push(item);
                }
                Ok(Positional(args))
            }
        }
        deserializer.deserialize_seq(Items)
    }
}

impl<'de> Deserialize<'de> for Named {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Named;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of keyword arguments")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Named, A::Error> {
                let mut kwargs = Kwargs::new();
                while let Some((Name(name), value)) = entries.next_entry()? {
                    if kwargs.len() == MAX_ARGUMENTS {
                        return Err(too_many());
                    }
                    kwargs.insert(name, value);
                }
                Ok(Named(kwargs))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

fn too_many<E: serde::de::Error>() -> E {
    E::custom(format_args!("more than {MAX_ARGUMENTS} arguments"))
}

/// Describes the error in a body. Checks the most likely causes first.
fn explain(text: &str, error: &serde_json::Error) -> String {
    if let Some(constant) = python_constant(text) {
        return format!("the body has {constant}, which JSON does not have");
    }
    let count = match serde_json::from_str::<Vec<IgnoredAny>>(text) {
        Ok(parts) => parts.len(),
        Err(error) if error.is_data() => {
            return "the body is not an array of [args, kwargs, embed]".to_owned();
        }
        Err(error) => {
            return format!("the body is not JSON: {error}, after {:?}", shown(text));
        }
    };
    if count != 3 {
        return format!("the body is an array of {count}, not of [args, kwargs, embed]");
    }
    format!("the body is not [args, kwargs, embed]: {error}")
}

/// Finds `NaN` and similar constants, which Python writes and JSON does not allow.
fn python_constant(text: &str) -> Option<&'static str> {
    let mut found = None;
    outside_strings(text.as_bytes(), |at, byte| {
        found = match byte {
            b'N' if text.as_bytes()[at..].starts_with(b"NaN") => Some("NaN"),
            b'I' if text.as_bytes()[at..].starts_with(b"Infinity") => Some("Infinity"),
            _ => None,
        };
        found.is_none()
    });
    found
}

fn is_too_deep(body: &[u8]) -> bool {
    let mut depth = 0_usize;
    outside_strings(body, |_, byte| {
        match byte {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth <= MAX_DEPTH
    });
    depth > MAX_DEPTH
}

/// Calls `is_continued` with each byte outside strings and its position, until `is_continued` returns false.
fn outside_strings(json: &[u8], mut is_continued: impl FnMut(usize, u8) -> bool) {
    let mut at = 0;
    while let Some(&byte) = json.get(at) {
        if byte == b'"' {
            at = string_end(json, at + 1);
        } else if !is_continued(at, byte) {
            return;
        }
        at += 1;
    }
}

/// Returns the position of the closing quote of the string that begins at `at`, else the end.
pub(super) fn string_end(json: &[u8], mut at: usize) -> usize {
    while let Some(step) = json.get(at..).and_then(|rest| memchr::memchr2(b'"', b'\\', rest)) {
        at += step;
        if json[at] == b'"' {
            return at;
        }
        at += 2;
    }
    json.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(body: &str) -> String {
        read(body.as_bytes()).unwrap_err().reason
    }

    #[test]
    fn values_are_not_changed() {
        let body = r#"[[1.0,"\u00e9"],{"k":{"a" : 1}},{"callbacks": null}]"#;
        let (arguments, embed) = read(body.as_bytes()).unwrap();
        assert_eq!(String::from_utf8(write(&arguments, &embed)).unwrap(), body);
    }

    #[test]
    fn a_body_that_does_not_have_three_parts_is_refused_with_a_description() {
        assert_eq!(reason(""), "the body is empty");
        assert_eq!(reason("[[], {}]"), "the body is an array of 2, not of [args, kwargs, embed]");
        assert_eq!(reason("{}"), "the body is not an array of [args, kwargs, embed]");
        assert!(reason("[{}, {}, {}]").contains("expected an array of arguments"));
        assert!(reason("[[], [], {}]").contains("expected an object of keyword arguments"));
        assert!(reason("[[], {}, 3]").contains("embed"));
        assert!(reason("[[], {}, {}, 1]").contains("an array of 4"));
        assert!(reason("[[], {").starts_with("the body is not JSON"));
        assert!(read(b"[[\"\xff\"], {}, {}]").unwrap_err().reason.contains("UTF-8"));
    }

    #[test]
    fn nan_and_infinity_are_named() {
        assert_eq!(reason("[[NaN], {}, {}]"), "the body has NaN, which JSON does not have");
        assert!(reason("[[-Infinity], {}, {}]").contains("Infinity"));
        assert!(read(br#"[["NaN \" Infinity"], {}, {}]"#).is_ok());
    }

    #[test]
    fn depth_and_number_of_arguments_are_bounded() {
        let deep = format!("[[{}1{}], {{}}, {{}}]", "[".repeat(10_000), "]".repeat(10_000));
        assert!(reason(&deep).contains("deeper than"));
        let brackets = format!("[[\"{}\"], {{}}, {{}}]", "[".repeat(10_000));
        assert!(read(brackets.as_bytes()).is_ok());
        let many = format!("[[{}1], {{}}, {{}}]", "1,".repeat(MAX_ARGUMENTS));
        assert!(reason(&many).contains("more than 65536 arguments"));
    }
}
