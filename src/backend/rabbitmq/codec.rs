//! [`Message`] to and from lapin's properties and tables.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldArray, FieldTable, LongString, ShortString};
use serde_json::{Map, Number, Value};

use crate::protocol::{Headers, Message, Properties};
use crate::task::TaskId;

const PERSISTENT: u8 = 2;
/// Deeper tables are cut: nothing that Celery sends nests like that.
const MAX_DEPTH: usize = 32;

/// Reads a delivery.
pub(super) fn decode(properties: &BasicProperties, body: Vec<u8>) -> Message {
    let text = |field: &Option<ShortString>| field.as_ref().map(|text| text.as_str().to_owned());
    let headers = properties.headers().as_ref().map_or_else(Map::new, |table| read_table(table, 0));
    let kept = Properties {
        content_type: text(properties.content_type()),
        content_encoding: text(properties.content_encoding()),
        correlation_id: text(properties.correlation_id()),
        reply_to: text(properties.reply_to()),
        expiration: text(properties.expiration()),
        message_id: text(properties.message_id()),
        app_id: text(properties.app_id()),
        user_id: text(properties.user_id()),
        kind: text(properties.kind()),
        priority: *properties.priority(),
        timestamp: *properties.timestamp(),
    };
    let id = match headers.get("id").and_then(Value::as_str) {
        Some(id) if !id.is_empty() => TaskId::from(id),
        _ => kept
            .correlation_id
            .as_deref()
            .or(kept.message_id.as_deref())
            .map_or_else(TaskId::random, TaskId::from),
    };
    Message { id, headers, body: body.into(), properties: kept }
}

/// Writes what is published. Fails when a text is too long for AMQP's short strings.
pub(super) fn encode(message: &Message) -> Result<BasicProperties, String> {
    let Properties {
        content_type,
        content_encoding,
        correlation_id,
        reply_to,
        expiration,
        message_id,
        app_id,
        // RabbitMQ refuses a user id that is not the connection's own.
        user_id: _,
        kind,
        priority,
        timestamp,
    } = &message.properties;
    let mut properties = BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_headers(write_table(&message.headers)?)
        .with_message_id(short(message_id.as_deref().unwrap_or(message.id.as_str()))?)
        .with_priority(priority.unwrap_or(0));
    if let Some(text) = content_type {
        properties = properties.with_content_type(short(text)?);
    }
    if let Some(text) = content_encoding {
        properties = properties.with_content_encoding(short(text)?);
    }
    if let Some(text) = correlation_id {
        properties = properties.with_correlation_id(short(text)?);
    }
    if let Some(text) = reply_to {
        properties = properties.with_reply_to(short(text)?);
    }
    if let Some(text) = expiration {
        properties = properties.with_expiration(short(text)?);
    }
    if let Some(text) = app_id {
        properties = properties.with_app_id(short(text)?);
    }
    if let Some(text) = kind {
        properties = properties.with_type(short(text)?);
    }
    if let Some(seconds) = timestamp {
        properties = properties.with_timestamp(*seconds);
    }
    Ok(properties)
}

/// A short string, which holds 255 bytes (AMQP 0-9-1, section 4.2.5.3).
pub(super) fn short(text: &str) -> Result<ShortString, String> {
    ShortString::try_new(text).map_err(|_| format!("longer than 255 bytes: {text:.40}..."))
}

fn read_table(table: &FieldTable, depth: usize) -> Headers {
    table
        .inner()
        .iter()
        .map(|(name, value)| (name.as_str().to_owned(), read_value(value, depth + 1)))
        .collect()
}

fn read_value(value: &AMQPValue, depth: usize) -> Value {
    if depth > MAX_DEPTH {
        return Value::Null;
    }
    match value {
        AMQPValue::Boolean(flag) => Value::Bool(*flag),
        AMQPValue::ShortShortInt(n) => Value::from(*n),
        AMQPValue::ShortShortUInt(n) => Value::from(*n),
        AMQPValue::ShortInt(n) => Value::from(*n),
        AMQPValue::ShortUInt(n) => Value::from(*n),
        AMQPValue::LongInt(n) => Value::from(*n),
        AMQPValue::LongUInt(n) => Value::from(*n),
        AMQPValue::LongLongInt(n) => Value::from(*n),
        AMQPValue::Timestamp(seconds) => Value::from(*seconds),
        AMQPValue::Float(n) => Value::from(f64::from(*n)),
        AMQPValue::Double(n) => Value::from(*n),
        AMQPValue::DecimalValue(d) => {
            Value::from(f64::from(d.value) / 10_f64.powi(i32::from(d.scale)))
        }
        AMQPValue::ShortString(text) => Value::from(text.as_str()),
        AMQPValue::LongString(text) => Value::from(String::from_utf8_lossy(text.as_bytes())),
        AMQPValue::ByteArray(bytes) => Value::from(String::from_utf8_lossy(bytes.as_slice())),
        AMQPValue::FieldArray(items) => {
            items.as_slice().iter().map(|item| read_value(item, depth + 1)).collect()
        }
        AMQPValue::FieldTable(table) => Value::Object(read_table(table, depth)),
        AMQPValue::Void => Value::Null,
    }
}

fn write_table(headers: &Headers) -> Result<FieldTable, String> {
    let mut table = FieldTable::default();
    for (name, value) in headers {
        table.insert(short(name)?, write_value(value)?);
    }
    Ok(table)
}

fn write_value(value: &Value) -> Result<AMQPValue, String> {
    Ok(match value {
        Value::Null => AMQPValue::Void,
        Value::Bool(flag) => AMQPValue::Boolean(*flag),
        Value::Number(number) => write_number(number),
        Value::String(text) => AMQPValue::LongString(LongString::from(text.as_bytes())),
        Value::Array(items) => {
            let items = items.iter().map(write_value).collect::<Result<Vec<_>, _>>()?;
            AMQPValue::FieldArray(FieldArray::from(items))
        }
        Value::Object(fields) => AMQPValue::FieldTable(write_table(fields)?),
    })
}

fn write_number(number: &Number) -> AMQPValue {
    match number.as_i64() {
        Some(n) => i32::try_from(n).map_or(AMQPValue::LongLongInt(n), AMQPValue::LongInt),
        None => AMQPValue::Double(number.as_f64().unwrap_or(f64::NAN)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_come_back_as_they_were_written() {
        let headers = serde_json::json!({
            "id": "x", "retries": 3, "big": 1_u64 << 40, "timelimit": [null, 2.5],
            "stamps": {"a": ["b", true]}, "none": null,
        });
        let Value::Object(headers) = headers else { unreachable!() };
        let table = write_table(&headers).unwrap();
        assert_eq!(read_table(&table, 0), headers);
    }

    #[test]
    fn a_text_over_255_bytes_is_an_error_and_no_panic() {
        assert!(short(&"x".repeat(256)).is_err());
        let headers = Headers::from_iter([("k".repeat(300), Value::Null)]);
        assert!(write_table(&headers).is_err());
    }
}
