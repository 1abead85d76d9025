//! Validation of edited arguments: a self-contained JSON Schema of draft 2020-12.
//!
//! Deciders process schemas that workers wrote, so a schema must not cause requests to other servers or
//! unbounded work: it may only reference its own parts, never recursively, and its patterns are matched in
//! linear time.

use jsonschema::{Draft, PatternOptions, Validator};
use percent_encoding::percent_decode_str;
use serde_json::Value;

const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";
/// Limits on the nesting and the number of subschemas, with every reference followed.
const MAX_DEPTH: usize = 64;
const MAX_PARTS: usize = 10_000;
/// The maximum size of one compiled pattern, in bytes.
const MAX_PATTERN: usize = 1 << 20;
/// Violations that are reported at once, and the maximum length of the text on each.
const MAX_VIOLATIONS: usize = 5;
const MAX_TEXT: usize = 200;

/// Returns the error in a schema, as one line of text; `None` if it is usable.
pub(super) fn fault(schema: &Value) -> Option<String> {
    read(schema).err().map(|why| format!("its schema is unusable: {why}"))
}

/// Returns one text for each place where these arguments violate the schema; empty if they match. An unusable
/// schema accepts no arguments.
pub(super) fn violations(schema: &Value, args: &Value) -> Vec<String> {
    let validator = match read(schema) {
        Ok(validator) => validator,
        Err(why) => return vec![format!("the schema is unusable: {why}")],
    };
    let errors = validator.iter_errors(args).take(MAX_VIOLATIONS);
    errors
        .map(|error| match error.instance_path().as_str() {
            "" => shown(&error.to_string()),
            location => shown(&format!("at {location}: {error}")),
        })
        .collect()
}

fn read(schema: &Value) -> Result<Validator, String> {
    let dialect = schema.get("$schema").and_then(Value::as_str).unwrap_or(DIALECT);
    if dialect.trim_end_matches('#') != DIALECT {
        return Err(shown(&format!("its dialect is {dialect}; only {DIALECT} is supported")));
    }
    let mut parts = MAX_PARTS;
    walk(schema, schema, 0, &mut parts)?;
    let patterns = PatternOptions::regex().size_limit(MAX_PATTERN).dfa_size_limit(MAX_PATTERN);
    let options = jsonschema::options().with_draft(Draft::Draft202012);
    let validator = options.with_pattern_options(patterns).build(schema);
    validator.map_err(|error| match error.instance_path().as_str() {
        "" => shown(&error.to_string()),
        location => shown(&format!("at {location}: {error}")),
    })
}

/// Visits every subschema as often as validation may, and fails at the limits. This bounds the work of a
/// validation.
fn walk(root: &Value, part: &Value, depth: usize, parts: &mut usize) -> Result<(), String> {
    let Some(left) = parts.checked_sub(1) else {
        return Err(format!("it has over {MAX_PARTS} parts, counted with its references followed"));
    };
    *parts = left;
    if depth > MAX_DEPTH {
        return Err(format!("it is nested deeper than {MAX_DEPTH} levels, or refers to itself"));
    }
    match part {
        Value::Array(items) => items.iter().try_for_each(|it| walk(root, it, depth + 1, parts)),
        Value::Object(fields) => {
            fields.iter().try_for_each(|(name, field)| match (name.as_str(), field.as_str()) {
                ("$ref", Some(reference)) => walk(root, target(root, reference)?, depth + 1, parts),
                (
                    "$dynamicRef" | "$recursiveRef" | "$id" | "$anchor" | "$dynamicAnchor",
                    Some(_),
                ) => Err(format!(
                    "it has {name}: define parts in $defs, and refer to them with $ref"
                )),
                _ => walk(root, field, depth + 1, parts),
            })
        }
        _ => Ok(()),
    }
}

/// Resolves a reference within the schema.
fn target<'s>(root: &'s Value, reference: &str) -> Result<&'s Value, String> {
    let pointer = reference.strip_prefix('#').filter(|it| it.is_empty() || it.starts_with('/'));
    let pointer = pointer.ok_or_else(|| {
        shown(&format!("{reference} is outside the schema: references begin with #/"))
    })?;
    let pointer = percent_decode_str(pointer).decode_utf8_lossy();
    root.pointer(&pointer)
        .ok_or_else(|| shown(&format!("{reference} does not exist in the schema")))
}

/// Formats untrusted text on one line of limited length.
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
    fn violations_name_their_location() {
        assert_eq!(fault(&payment()), None);
        assert_eq!(violations(&payment(), &json!({"cents": 5000, "to": "DE12"})), [""; 0]);
        let messages = violations(&payment(), &json!({"cents": 5001, "to": "\u{1b}[2J"}));
        assert_eq!(messages.len(), 2, "{messages:?}");
        assert!(messages.iter().any(|it| it.starts_with("at /cents: 5001")), "{messages:?}");
        assert!(messages.iter().any(|it| it.starts_with("at /to: ")), "{messages:?}");
        assert!(!messages.concat().contains('\u{1b}'));
        let messages = violations(&payment(), &json!({"to": "x".repeat(10_000)}));
        assert!(messages.iter().all(|it| it.len() < 300), "{messages:?}");
    }

    #[test]
    fn an_invalid_schema_gives_a_reason_and_accepts_nothing() {
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
            (json!({"$ref": "https://example.com/s.json"}), "outside the schema"),
            (json!({"$ref": "file:///etc/passwd"}), "outside the schema"),
            (json!({"$ref": "#/$defs/none"}), "does not exist"),
            (json!({"$ref": "#"}), "refers to itself"),
            (json!({"properties": {"next": {"$ref": "#"}}}), "refers to itself"),
            (json!({"$dynamicRef": "#x"}), "$defs"),
            (json!({"$schema": "http://json-schema.org/draft-04/schema#"}), "2020-12"),
            (json!({"$defs": doubled, "$ref": "#/$defs/0"}), "10000 parts"),
            (nested, "64 levels"),
        ] {
            let messages = fault(&schema).unwrap_or_default();
            assert!(messages.contains(part), "{schema}: {messages:?} does not say {part}");
            assert_eq!(violations(&schema, &json!({})).len(), 1);
        }
    }
}
