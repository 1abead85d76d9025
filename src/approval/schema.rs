//! What edited arguments must look like: a JSON Schema of draft 2020-12, whole in itself.
//!
//! A decider reads schemas that workers wrote, so a schema must not make its reader fetch anything,
//! nor run for ever: it refers to its own parts only, never to itself, and its patterns are matched
//! in linear time.

use jsonschema::{Draft, PatternOptions, Validator};
use percent_encoding::percent_decode_str;
use serde_json::Value;

const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";
/// With every reference followed.
const MAX_DEPTH: usize = 64;
const MAX_PARTS: usize = 10_000;
/// Of one compiled pattern, in bytes.
const MAX_PATTERN: usize = 1 << 20;
/// Places that are told at once, and how long the text on each may be.
const MAX_TOLD: usize = 5;
const MAX_TEXT: usize = 200;

/// What is wrong with a schema, if anything is: a line for its author.
pub(super) fn fault(schema: &Value) -> Option<String> {
    read(schema).err().map(|why| format!("its schema is unusable: {why}"))
}

/// Where these arguments do not fit, a text for each place; none when they fit. A schema that cannot
/// be used lets nothing pass.
pub(super) fn misfits(schema: &Value, args: &Value) -> Vec<String> {
    let validator = match read(schema) {
        Ok(validator) => validator,
        Err(why) => return vec![format!("the schema is unusable: {why}")],
    };
    let errors = validator.iter_errors(args).take(MAX_TOLD);
    errors
        .map(|error| match error.instance_path().as_str() {
            "" => shown(&error.to_string()),
            place => shown(&format!("at {place}: {error}")),
        })
        .collect()
}

fn read(schema: &Value) -> Result<Validator, String> {
    let dialect = schema.get("$schema").and_then(Value::as_str).unwrap_or(DIALECT);
    if dialect.trim_end_matches('#') != DIALECT {
        return Err(shown(&format!("it is of {dialect}, and only {DIALECT} is understood")));
    }
    let mut parts = MAX_PARTS;
    walk(schema, schema, 0, &mut parts)?;
    let patterns = PatternOptions::regex().size_limit(MAX_PATTERN).dfa_size_limit(MAX_PATTERN);
    let options = jsonschema::options().with_draft(Draft::Draft202012);
    let validator = options.with_pattern_options(patterns).build(schema);
    validator.map_err(|error| match error.instance_path().as_str() {
        "" => shown(&error.to_string()),
        place => shown(&format!("at {place}: {error}")),
    })
}

/// Visits every part as often as a validation may, so that it ends where that would not.
fn walk(root: &Value, part: &Value, depth: usize, parts: &mut usize) -> Result<(), String> {
    let Some(left) = parts.checked_sub(1) else {
        return Err(format!("it has over {MAX_PARTS} parts, its references followed"));
    };
    *parts = left;
    if depth > MAX_DEPTH {
        return Err(format!("it is deeper than {MAX_DEPTH} levels, or refers to itself"));
    }
    match part {
        Value::Array(items) => items.iter().try_for_each(|it| walk(root, it, depth + 1, parts)),
        Value::Object(fields) => {
            fields.iter().try_for_each(|(name, field)| match (name.as_str(), field.as_str()) {
                ("$ref", Some(reference)) => walk(root, target(root, reference)?, depth + 1, parts),
                (
                    "$dynamicRef" | "$recursiveRef" | "$id" | "$anchor" | "$dynamicAnchor",
                    Some(_),
                ) => {
                    Err(format!("it has {name}: name its parts in $defs, and refer to them there"))
                }
                _ => walk(root, field, depth + 1, parts),
            })
        }
        _ => Ok(()),
    }
}

/// What a reference into the schema itself leads to.
fn target<'s>(root: &'s Value, reference: &str) -> Result<&'s Value, String> {
    let pointer = reference.strip_prefix('#').filter(|it| it.is_empty() || it.starts_with('/'));
    let pointer = pointer
        .ok_or_else(|| shown(&format!("{reference} is not within it: references begin with #/")))?;
    let pointer = percent_decode_str(pointer).decode_utf8_lossy();
    root.pointer(&pointer).ok_or_else(|| shown(&format!("{reference} leads nowhere")))
}

/// A text that somebody else wrote, on one line, and not too long.
fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(MAX_TEXT).flat_map(plain).collect();
    if text.chars().nth(MAX_TEXT).is_some() {
        shown.push_str("...");
    }
    shown
}

fn plain(c: char) -> impl Iterator<Item = char> {
    let is_hostile = c.is_control();
    let code = is_hostile.then(|| c.escape_unicode());
    code.into_iter().flatten().chain((!is_hostile).then_some(c))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn payment() -> Value {
        json!({
            "type": "object",
            "required": ["cents"],
            "additionalProperties": false,
            "properties": {
                "cents": { "$ref": "#/$defs/amount" },
                "to": { "type": "string", "pattern": "^[A-Z]{2}[0-9]+$" },
            },
            "$defs": { "amount": { "type": "integer", "minimum": 1, "maximum": 5000 } },
        })
    }

    #[test]
    fn what_does_not_fit_is_told_with_its_place() {
        assert_eq!(fault(&payment()), None);
        assert_eq!(misfits(&payment(), &json!({"cents": 5000, "to": "DE12"})), [""; 0]);
        let told = misfits(&payment(), &json!({"cents": 5001, "to": "\u{1b}[2J"}));
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told.iter().any(|it| it.starts_with("at /cents: 5001")), "{told:?}");
        assert!(told.iter().any(|it| it.starts_with("at /to: ")), "{told:?}");
        assert!(!told.concat().contains('\u{1b}'));
        let told = misfits(&payment(), &json!({"to": "x".repeat(10_000)}));
        assert!(told.iter().all(|it| it.len() < 300), "{told:?}");
    }

    #[test]
    fn a_schema_that_cannot_be_used_says_why_and_lets_nothing_pass() {
        let nested = (0..100).fold(json!({}), |inner, _| json!({ "not": inner }));
        let double = |n: usize| {
            let next = json!({ "$ref": format!("#/$defs/{}", n + 1) });
            (n.to_string(), json!({ "allOf": [next.clone(), next] }))
        };
        let mut doubled: serde_json::Map<_, _> = (0..16).map(double).collect();
        doubled.insert("16".into(), json!({}));
        for (schema, part) in [
            (json!({"type": "number", "minimum": "x"}), "at /minimum"),
            (json!("text"), "text"),
            (json!({"pattern": "("}), "pattern"),
            (json!({"pattern": "(a{1000}){1000}"}), "pattern"),
            (json!({"pattern": "(?=a)b"}), "pattern"),
            (json!({"$ref": "https://example.com/s.json"}), "not within it"),
            (json!({"$ref": "file:///etc/passwd"}), "not within it"),
            (json!({"$ref": "#/$defs/none"}), "leads nowhere"),
            (json!({"$ref": "#"}), "refers to itself"),
            (json!({"properties": {"next": {"$ref": "#"}}}), "refers to itself"),
            (json!({"$dynamicRef": "#x"}), "$defs"),
            (json!({"$schema": "http://json-schema.org/draft-04/schema#"}), "2020-12"),
            (json!({"$defs": doubled, "$ref": "#/$defs/0"}), "10000 parts"),
            (nested, "64 levels"),
        ] {
            let told = fault(&schema).unwrap_or_default();
            assert!(told.contains(part), "{schema}: {told:?} does not say {part}");
            assert_eq!(misfits(&schema, &json!({})).len(), 1);
        }
    }
}
