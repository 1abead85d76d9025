//! From a message to an [`Envelope`], trusting nothing in it.

use std::borrow::Cow;

use serde_json::Value;

use super::headers::{attempt, boolean, date, integer, is_history, limits, shown, text};
use super::{
    Envelope, Headers, Lineage, Message, Properties, UNREADABLE, Unreadable, body, compression,
};
use crate::task::TaskId;

impl Envelope {
    /// Reads a task message, protocol 2. `limit` bounds the body in bytes, also while it is
    /// being decompressed.
    ///
    /// # Errors
    /// Says what is wrong and where. Only this one message is bad then.
    pub fn decode(message: &Message, limit: usize) -> Result<Self, Unreadable> {
        let headers = &message.headers;
        let properties = &message.properties;
        if let Some(reason) = headers.get(UNREADABLE).and_then(Value::as_str) {
            return Err(Unreadable::new(reason));
        }
        let name = task_name(message)?;
        // `Message::id` has it already; a wrong type is still somebody's mistake.
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

fn task_name(message: &Message) -> Result<&str, Unreadable> {
    match text(&message.headers, "task")? {
        Some(name) => Ok(name),
        None if message.body.trim_ascii_start().starts_with(b"{") => Err(Unreadable::new(
            "no header `task`: a message of protocol 1; producers must set task_protocol = 2",
        )),
        None => Err(Unreadable::new("no header `task`: not a task message")),
    }
}

fn is_json_in_utf8(properties: &Properties) -> Result<(), Unreadable> {
    if let Some(found) = &properties.content_type {
        let kind = found.split(';').next().unwrap_or_default().trim();
        if !kind.eq_ignore_ascii_case("application/json") {
            let found = shown(found);
            return Err(Unreadable::new(format!("content type {found:?} is not application/json")));
        }
    }
    match properties.content_encoding.as_deref() {
        None | Some("" | "utf-8" | "utf8" | "us-ascii" | "ascii" | "binary") => Ok(()),
        Some(found) if found.eq_ignore_ascii_case("utf-8") => Ok(()),
        Some(found) => {
            let found = shown(found);
            Err(Unreadable::new(format!("content encoding {found:?} is not utf-8")))
        }
    }
}

fn content<'a>(
    message: &'a Message,
    compressed: Option<&str>,
    limit: usize,
) -> Result<Cow<'a, [u8]>, Unreadable> {
    if let Some(method) = compressed {
        return compression::inflate(method, &message.body, limit).map(Cow::Owned);
    }
    let size = message.body.len();
    if size > limit {
        let reason = format!("the body is {size} bytes, over the limit of {limit}");
        return Err(Unreadable::new(reason));
    }
    Ok(Cow::Borrowed(&message.body))
}

fn lineage(headers: &Headers) -> Result<Lineage, Unreadable> {
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

/// A header that is carried along; the others have a field of their own, or are the broker's.
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
