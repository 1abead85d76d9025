//! Typed access to headers: absent and null are equivalent, any integer width is accepted, and an error for a
//! wrong type names the header.

use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde_json::Value;

use super::message_headers::Field;
use super::{DecodeError, Limits};

/// How many characters of untrusted text are repeated in an error.
const SHOWN: usize = 80;

type Read<T> = Result<Option<T>, DecodeError>;

/// Returns the text of header `name`; `None` if it is empty.
pub(super) fn text<'h>(name: &str, field: Option<Field<'h>>) -> Read<&'h str> {
    let Some(field) = field.filter(|field| !field.is_null()) else { return Ok(None) };
    match field.text() {
        Some(text) => Ok(Some(text).filter(|text| !text.is_empty())),
        None => Err(wrong(name, &field.value(), "text")),
    }
}

pub(super) fn integer(name: &str, field: Option<Field<'_>>) -> Read<i64> {
    match field.map(Field::value) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_i64() {
            Some(number) => Ok(Some(number)),
            None => Err(wrong(name, &value, "a 64-bit integer")),
        },
    }
}

pub(super) fn boolean(name: &str, field: Option<Field<'_>>) -> Read<bool> {
    match field.map(Field::value) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(flag)),
        Some(other) => Err(wrong(name, &other, "true or false")),
    }
}

/// Returns the attempt number, from 1, from header `retries`.
pub(super) fn attempt(retries: Option<Field<'_>>) -> Result<u32, DecodeError> {
    let retries = integer("retries", retries)?.unwrap_or(0);
    u32::try_from(retries)
        .ok()
        .and_then(|retries| retries.checked_add(1))
        .ok_or_else(|| DecodeError::new(format!("header `retries` is out of range: {retries}")))
}

/// Parses an ISO 8601 date with any offset; without an offset it is UTC.
pub(super) fn date(name: &str, field: Option<Field<'_>>) -> Read<Timestamp> {
    let Some(text) = text(name, field)? else {
        return Ok(None);
    };
    let garbage = || format!("header `{name}` is not an ISO 8601 date: {:?}", shown(text));
    parse_date(text).map(Some).ok_or_else(|| DecodeError::new(garbage()))
}

/// An ISO 8601 date with any offset; without one it is UTC.
pub(super) fn parse_date(text: &str) -> Option<Timestamp> {
    text.parse::<Timestamp>().ok().or_else(|| {
        let local = text.parse::<DateTime>().ok()?;
        Some(local.to_zoned(TimeZone::UTC).ok()?.timestamp())
    })
}

/// Parses header `timelimit`: `[hard, soft]` in seconds. Zero means no limit, as in Celery.
pub(super) fn limits(timelimit: Option<Field<'_>>) -> Result<Limits, DecodeError> {
    match timelimit.map(Field::value) {
        None | Some(Value::Null) => Ok(Limits::default()),
        Some(Value::Array(pair)) => match pair.as_slice() {
            [] => Ok(Limits::default()),
            [hard, soft] => Ok(Limits { soft: seconds(soft)?, hard: seconds(hard)? }),
            _ => Err(DecodeError::new("header `timelimit` is not a pair")),
        },
        Some(other) => Err(wrong("timelimit", &other, "a pair of numbers")),
    }
}

fn seconds(value: &Value) -> Read<Duration> {
    if value.is_null() {
        return Ok(None);
    }
    let Some(number) = value.as_f64() else {
        return Err(wrong("timelimit", value, "a pair of numbers"));
    };
    match Duration::try_from_secs_f64(number) {
        Ok(limit) => Ok(Some(limit).filter(|limit| !limit.is_zero())),
        Err(_) => Err(DecodeError::new(format!("header `timelimit` is out of range: {number}"))),
    }
}

fn wrong(name: &str, value: &Value, wanted: &str) -> DecodeError {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "an array",
        Value::Object(_) => "a table",
    };
    let kind = match value {
        Value::Number(number) => format!("the number {number}"),
        _ => kind.to_owned(),
    };
    DecodeError::new(format!("header `{name}` is {kind}, not {wanted}"))
}

/// Returns the beginning of a text that may be long.
pub(super) fn shown(text: &str) -> &str {
    text.char_indices().nth(SHOWN).map_or(text, |(end, _)| &text[..end])
}

/// Marks a copy that was published in place of a requeue.
pub(super) const RETURNED: &str = "x-countersign-returned";

/// Headers that the broker adds when it dead-letters a message, or that Countersign adds on a return. With
/// them, RabbitMQ would treat a republished message as cycling and drop it.
pub(super) fn is_history(name: &str) -> bool {
    name == "x-death"
        || name == RETURNED
        || name == "x-delivery-count"
        || name.starts_with("x-first-death-")
        || name.starts_with("x-last-death-")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_date_may_have_any_offset_and_without_one_is_utc() {
        let expected: Timestamp = "2026-11-21T10:00:00.5Z".parse().unwrap();
        for text in [
            "2026-11-21T10:00:00.5+00:00",
            "2026-11-21T15:30:00.500000+05:30",
            "2026-11-21T02:00:00.5-08:00",
            "2026-11-21T10:00:00.5",
            "2026-11-21 10:00:00.5",
            "2026-11-21T10:00:00.5Z",
        ] {
            let found = date("eta", Some(Field::Decoded(&json!(text)))).unwrap();
            assert_eq!(found, Some(expected), "{text}");
        }
    }

    #[test]
    fn an_invalid_date_is_refused_with_the_name_of_its_header() {
        let reason = date("eta", Some(Field::Decoded(&json!("soon")))).unwrap_err().reason;
        assert_eq!(reason, "header `eta` is not an ISO 8601 date: \"soon\"");
        assert!(date("eta", Some(Field::Decoded(&json!(5)))).is_err());
        assert!(date("eta", Some(Field::Decoded(&json!("9".repeat(60_000))))).is_err());
    }

    #[test]
    fn retries_count_from_zero_and_are_never_negative() {
        assert_eq!(attempt(None).unwrap(), 1);
        assert_eq!(attempt(Some(Field::Decoded(&Value::Null))).unwrap(), 1);
        assert_eq!(attempt(Some(Field::Decoded(&json!(3)))).unwrap(), 4);
        for bad in [json!(-1), json!(u32::MAX), json!(1.5), json!("1"), json!(true)] {
            assert!(attempt(Some(Field::Decoded(&bad))).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_hard_limit_comes_first() {
        let limits = limits(Some(Field::Decoded(&json!([2.5, 1])))).unwrap();
        assert_eq!(limits.hard, Some(Duration::from_millis(2500)));
        assert_eq!(limits.soft, Some(Duration::from_secs(1)));
    }

    #[test]
    fn a_limit_that_is_not_a_duration_is_refused() {
        for bad in
            [json!([-1, null]), json!([1e300, null]), json!(["1", null]), json!([1]), json!(9)]
        {
            assert!(limits(Some(Field::Decoded(&bad))).is_err(), "{bad}");
        }
    }
}
