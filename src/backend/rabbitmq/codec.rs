//! Converts between [`Message`] and lapin's properties and tables.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldArray, FieldTable, LongString, ShortString};
use serde_json::{Number, Value};

use super::frame;
use crate::protocol::table::Table;
use crate::protocol::{Headers, Message, MessageHeaders, Properties, RAW_HEADERS, UNREADABLE};
use crate::task::TaskId;

const PERSISTENT: u8 = 2;
/// The maximum length of a short string in bytes.
const MAX_SHORT: usize = 255;
/// Unreadable bytes are kept up to this size: they are forwarded as text.
const MAX_RAW: usize = 44 * 1024;

/// Decodes a delivery. Its header table is the one that [`frame::rewrite_header`] produced. Header
/// [`UNREADABLE`] names the parts that could not be read, and [`RAW_HEADERS`] holds their bytes.
pub(super) fn decode(properties: &BasicProperties, body: Vec<u8>) -> Message {
    let text = |field: &Option<ShortString>| field.as_ref().map(|text| text.as_str().to_owned());
    let headers = properties.headers().as_ref().map_or_else(MessageHeaders::default, read_headers);
    let decoded = Properties {
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
    let id = match headers.text("id") {
        Some(id) if !id.is_empty() => TaskId::from(id),
        _ => decoded
            .correlation_id
            .as_deref()
            .or(decoded.message_id.as_deref())
            .map_or_else(TaskId::random, TaskId::from),
    };
    Message { id, headers, body: body.into(), properties: decoded }
}

/// Encodes a message for publishing. Fails when a text is too long for a short string of AMQP.
pub(super) fn encode(message: &Message) -> Result<BasicProperties, String> {
    let Properties {
        content_type,
        content_encoding,
        correlation_id,
        reply_to,
        expiration,
        // `message_id_of` reads it.
        message_id: _,
        app_id,
        // RabbitMQ rejects a user id that differs from the connection's user.
        user_id: _,
        kind,
        priority,
        timestamp,
    } = &message.properties;
    let mut properties = BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_headers(write_table(&message.headers)?)
        .with_message_id(short(&message_id_of(message))?)
        .with_priority(priority.unwrap_or(0));
    if let Some(text) = content_type {
        properties = properties.with_content_type(short(text)?);
    }
    if let Some(text) = content_encoding {
        properties = properties.with_content_encoding(short(text)?);
    }
    if let Some(text) = correlation_id {
        properties = properties.with_correlation_id(short(&identifier(text))?);
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

/// The message id under which `message` is published; a returned message carries the same id.
pub(super) fn message_id_of(message: &Message) -> Cow<'_, str> {
    identifier(message.properties.message_id.as_deref().unwrap_or(message.id.as_str()))
}

/// The property holds 255 bytes, and a task id may be longer. Header `id` holds the whole id, under
/// which the result is stored; the property then holds a UUID that is always the same for that id.
fn identifier(text: &str) -> Cow<'_, str> {
    if text.len() <= MAX_SHORT {
        return Cow::Borrowed(text);
    }
    let id = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, text.as_bytes());
    Cow::Owned(id.hyphenated().to_string())
}

/// Converts to a short string, which holds 255 bytes (AMQP 0-9-1, section 4.2.5.3).
pub(super) fn short(text: &str) -> Result<ShortString, String> {
    ShortString::try_new(text).map_err(|_| format!("longer than 255 bytes: {text:.40}..."))
}

fn read_headers(table: &FieldTable) -> MessageHeaders {
    let bytes = |name| match table.inner().get(name) {
        Some(AMQPValue::ByteArray(bytes)) => Some(bytes.as_slice()),
        _ => None,
    };
    let raw = bytes(frame::RAW_TABLE).unwrap_or_default();
    if bytes(frame::REASON).is_none()
        && let Some(mut headers) = MessageHeaders::encoded(Bytes::copy_from_slice(raw))
    {
        // Only the code below sets it: a producer's own value is removed.
        headers.discard([UNREADABLE]);
        return headers;
    }
    let Table { mut headers, fault } = Table::decode(raw);
    headers.remove(UNREADABLE);
    let reason = bytes(frame::REASON).map(|reason| String::from_utf8_lossy(reason).into_owned());
    let reasons: Vec<_> = reason.into_iter().chain(fault).collect();
    if !reasons.is_empty() {
        headers.insert(UNREADABLE.into(), Value::String(reasons.join("; ")));
        let raw = bytes(frame::RAW_PROPERTIES).unwrap_or(raw);
        if raw.len() <= MAX_RAW {
            headers.insert(RAW_HEADERS.into(), Value::String(STANDARD.encode(raw)));
        }
    }
    headers.into()
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
    use amq_protocol::types::generation::gen_field_table;

    use super::*;

    #[test]
    fn headers_come_back_as_they_were_written() {
        let headers = serde_json::json!({
            "id": "x", "retries": 3, "big": 1_u64 << 40, "timelimit": [null, 2.5],
            "stamps": {"a": ["b", true]}, "none": null,
        });
        let Value::Object(headers) = headers else { unreachable!() };
        let table = write_table(&headers).unwrap();
        let mut bytes = [0; 1024];
        let buffer = std::io::Cursor::new(&mut bytes[..]);
        let (_, size) = gen_field_table(&table)(buffer.into()).unwrap().into_inner();
        let size = usize::try_from(size).unwrap();
        assert_eq!(Table::decode(&bytes[4..size]), Table { headers, fault: None });
    }

    #[test]
    fn an_id_over_255_bytes_is_mapped_to_a_uuid_and_its_header_retains_it() {
        let id = "x".repeat(300);
        let headers = Headers::from_iter([("id".to_owned(), Value::from(id.as_str()))]);
        let properties = Properties { correlation_id: Some(id.clone()), ..Properties::default() };
        let message = Message {
            id: TaskId::from(&id),
            headers: headers.into(),
            body: Vec::new().into(),
            properties,
        };
        let encoded = encode(&message).unwrap();
        assert_eq!(encoded, encode(&message).unwrap(), "the same for each copy");
        let mapped = encoded.message_id().as_ref().unwrap().as_str();
        assert_eq!(mapped, message_id_of(&message), "a returned message is found by it");
        assert_eq!(mapped, encoded.correlation_id().as_ref().unwrap().as_str());
        let header = AMQPValue::LongString(id.as_bytes().into());
        assert_eq!(encoded.headers().as_ref().unwrap().inner()["id"], header);
        assert_eq!(identifier(&"x".repeat(255)), "x".repeat(255));
    }

    #[test]
    fn a_text_over_255_bytes_is_an_error_and_no_panic() {
        assert!(short(&"x".repeat(256)).is_err());
        let headers = Headers::from_iter([("k".repeat(300), Value::Null)]);
        assert!(write_table(&headers).is_err());
    }
}
