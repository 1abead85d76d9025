//! Decodes a message into an [`Envelope`]. All input is untrusted.

use std::borrow::Cow;

use serde_json::Value;

use super::headers::{attempt, boolean, date, integer, is_history, limits, shown, text};
use super::{
    DecodeError, Envelope, Headers, Lineage, Message, Properties, UNREADABLE, body, compression,
};
use crate::task::TaskId;

impl Envelope {
    /// Decodes a task message of protocol 2. `limit` is the maximum size of the body in bytes, also during
    /// decompression.
    ///
    /// # Errors
    /// A description of the error and its place. Only this message is affected.
    pub fn decode(message: &Message, limit: usize) -> Result<Self, DecodeError> {
        let headers = &message.headers;
        let properties = &message.properties;
        if let Some(reason) = headers.get(UNREADABLE).and_then(Value::as_str) {
            return Err(DecodeError::new(reason));
        }
        let name = task_name(message)?;
        // `Message::id` already has it; a wrong type is still reported as the producer's error.
        text(headers, "id")?;
        is_json_in_utf8(properties)?;
        let compressed = text(headers, "compression")?;
        let content = content(message, compressed, limit)?;
        let (arguments, embed) = body::read(&content)?;
        Ok(Self {
            id: message.id.clone(),
            name: name.to_owned(),
            arguments,
            embed,
            attempt: attempt(headers)?,
            eta: date(headers, "eta")?,
            expires: date(headers, "expires")?,
            limits: limits(headers)?,
            lineage: lineage(headers)?,
            ignore_result: boolean(headers, "ignore_result")?.unwrap_or(false),
            reply_to: properties.reply_to.clone().filter(|channel| !channel.is_empty()),
            priority: properties.priority.unwrap_or(0),
            origin: text(headers, "origin")?.map(str::to_owned),
            compressed: compressed.is_some(),
            headers: custom(headers),
            properties: Properties {
                app_id: properties.app_id.clone(),
                kind: properties.kind.clone(),
                timestamp: properties.timestamp,
                ..Properties::default()
            },
        })
    }
}

fn task_name(message: &Message) -> Result<&str, DecodeError> {
    match text(&message.headers, "task")? {
        Some(name) => Ok(name),
        None if message.body.trim_ascii_start().starts_with(b"{") => Err(DecodeError::new(
            "no header `task`: a message of protocol 1; producers must set task_protocol = 2",
        )),
        None => Err(DecodeError::new("no header `task`: not a task message")),
    }
}

fn is_json_in_utf8(properties: &Properties) -> Result<(), DecodeError> {
    if let Some(found) = &properties.content_type {
        let kind = found.split(';').next().unwrap_or_default().trim();
        if !kind.eq_ignore_ascii_case("application/json") {
            let found = shown(found);
            return Err(DecodeError::new(format!(
                "content type {found:?} is not application/json"
            )));
        }
    }
    match properties.content_encoding.as_deref() {
        None | Some("" | "utf-8" | "utf8" | "us-ascii" | "ascii" | "binary") => Ok(()),
        Some(found) if found.eq_ignore_ascii_case("utf-8") => Ok(()),
        Some(found) => {
            let found = shown(found);
            Err(DecodeError::new(format!("content encoding {found:?} is not utf-8")))
        }
    }
}

fn content<'a>(
    message: &'a Message,
    compressed: Option<&str>,
    limit: usize,
) -> Result<Cow<'a, [u8]>, DecodeError> {
    if let Some(method) = compressed {
        return compression::inflate(method, &message.body, limit).map(Cow::Owned);
    }
    let size = message.body.len();
    if size > limit {
        let reason = format!("the body is {size} bytes, over the limit of {limit}");
        return Err(DecodeError::new(reason));
    }
    Ok(Cow::Borrowed(&message.body))
}

fn lineage(headers: &Headers) -> Result<Lineage, DecodeError> {
    Ok(Lineage {
        root_id: text(headers, "root_id")?.map(TaskId::from),
        parent_id: text(headers, "parent_id")?.map(TaskId::from),
        group_id: text(headers, "group")?.map(str::to_owned),
        group_index: integer(headers, "group_index")?,
    })
}

fn custom(headers: &Headers) -> Headers {
    let kept = headers.iter().filter(|(name, value)| is_custom(name) && **value != Value::Null);
    kept.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// Returns whether a header is passed on as it is; the others have envelope fields, or belong to the broker.
pub(super) fn is_custom(name: &str) -> bool {
    let has_field = matches!(
        name,
        "compression"
            | "eta"
            | "expires"
            | "group"
            | "group_index"
            | "id"
            | "ignore_result"
            | "lang"
            | "origin"
            | "parent_id"
            | "retries"
            | "root_id"
            | "task"
            | "timelimit"
    );
    !has_field && !is_history(name)
}
