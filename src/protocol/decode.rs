//! Decodes a message into an [`Envelope`]. All input is untrusted.

use std::borrow::Cow;

use super::headers::{attempt, boolean, date, integer, is_history, limits, shown, text};
use super::message_headers::Field;
use super::{
    DecodeError, Envelope, EnvelopeForm, Lineage, Message, Properties, UNREADABLE, body,
    compression,
};
use crate::task::TaskId;

/// The headers that become fields of an envelope, or that say why there is none.
const FIELDS: [&str; 15] = [
    UNREADABLE,
    "argsrepr",
    "compression",
    "eta",
    "expires",
    "group",
    "group_index",
    "id",
    "ignore_result",
    "origin",
    "parent_id",
    "retries",
    "root_id",
    "task",
    "timelimit",
];

impl Envelope {
    /// Decodes a task message of protocol 2. `limit` is the maximum size of the body in bytes, also during
    /// decompression.
    ///
    /// # Errors
    /// A description of the error and its place. Only this message is affected.
    pub fn decode(message: &Message, limit: usize) -> Result<Self, DecodeError> {
        let properties = &message.properties;
        let [
            unreadable,
            argsrepr,
            compression,
            eta,
            expires,
            group,
            group_index,
            id,
            ignore_result,
            origin,
            parent_id,
            retries,
            root_id,
            task,
            timelimit,
        ] = message.headers.fields(FIELDS);
        if let Some(reason) = unreadable.and_then(Field::text) {
            return Err(DecodeError::new(reason));
        }
        let name = task_name(task, message)?;
        // `Message::id` already has it; a wrong type is still reported as the producer's error.
        text("id", id)?;
        is_json_in_utf8(properties)?;
        let compressed = text("compression", compression)?;
        let content = content(message, compressed, limit)?;
        let (arguments, embed) = body::read(&content)?;
        Ok(Self {
            id: message.id.clone(),
            name: name.to_owned(),
            arguments,
            embed,
            attempt: attempt(retries)?,
            eta: date("eta", eta)?,
            expires: date("expires", expires)?,
            limits: limits(timelimit)?,
            lineage: Lineage {
                root_id: text("root_id", root_id)?.map(TaskId::from),
                parent_id: text("parent_id", parent_id)?.map(TaskId::from),
                group_id: text("group", group)?.map(str::to_owned),
                group_index: integer("group_index", group_index)?,
            },
            ignore_result: boolean("ignore_result", ignore_result)?.unwrap_or(false),
            reply_to: properties.reply_to.clone().filter(|channel| !channel.is_empty()),
            priority: properties.priority.unwrap_or(0),
            origin: text("origin", origin)?.map(str::to_owned),
            // A copy has the form in which its producer wrote the task.
            form: if argsrepr.is_some() { EnvelopeForm::Celery } else { EnvelopeForm::Lean },
            compressed: compressed.is_some(),
            headers: message.headers.with_values(is_custom),
            properties: Properties {
                app_id: properties.app_id.clone(),
                kind: properties.kind.clone(),
                timestamp: properties.timestamp,
                ..Properties::default()
            },
        })
    }
}

fn task_name<'m>(task: Option<Field<'m>>, message: &Message) -> Result<&'m str, DecodeError> {
    match text("task", task)? {
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
