//! Encodes an [`Envelope`] as a message that Celery 5 reads.

use bytes::Bytes;
use jiff::Timestamp;
use jiff::fmt::temporal::DateTimePrinter;
use jiff::tz::Offset;
use serde_json::Value;

use super::decode::is_custom;
use super::failures::seconds;
use super::{
    Arguments, Envelope, EnvelopeForm, Headers, Limits, Lineage, Message, Properties, body,
    compression, repr,
};

/// Kombu's name for a zlib stream. It is not gzip, despite the name.
const ZLIB: &str = "application/x-gzip";

impl Envelope {
    /// Returns the message to publish.
    ///
    /// It has no `expiration`, because a broker drops expired messages without a notification; the worker
    /// revokes them instead. It has no `user_id`, because RabbitMQ refuses any other than the connection's
    /// own.
    #[must_use]
    pub fn encode(&self) -> Message {
        let mut headers = match self.form {
            EnvelopeForm::Lean => self.lean_headers(),
            EnvelopeForm::Celery => self.celery_headers(),
        };
        let custom = self.headers.iter().filter(|(name, _)| is_custom(name));
        headers.extend(custom.map(|(name, value)| (name.clone(), value.clone())));
        if self.form == EnvelopeForm::Celery {
            describe(&self.arguments, &mut headers);
        }
        let mut body = body::write(&self.arguments, &self.embed);
        if self.compressed {
            body = compression::deflate(&body);
            headers.insert("compression".into(), ZLIB.into());
        }
        Message {
            id: self.id.clone(),
            headers: headers.into(),
            body: Bytes::from(body),
            properties: Properties {
                content_type: Some("application/json".into()),
                content_encoding: Some("utf-8".into()),
                correlation_id: Some(self.id.to_string()),
                reply_to: Some(self.reply_to.clone().unwrap_or_default()),
                priority: Some(self.priority),
                app_id: self.properties.app_id.clone(),
                kind: self.properties.kind.clone(),
                timestamp: self.properties.timestamp,
                ..Properties::default()
            },
        }
    }

    /// Returns the headers whose value is not the one that a worker assumes without them.
    fn lean_headers(&self) -> Headers {
        let Lineage { root_id, parent_id, group_id, group_index } = &self.lineage;
        let root = root_id.as_ref().unwrap_or(&self.id);
        let retries = self.attempt.saturating_sub(1);
        let headers: [(&str, Option<Value>); 12] = [
            ("lang", Some("rust".into())),
            ("task", Some(self.name.as_str().into())),
            ("id", Some(self.id.as_str().into())),
            ("root_id", Some(root.as_str().into())),
            ("parent_id", parent_id.as_ref().map(|id| id.as_str().into())),
            ("group", group_id.as_deref().map(Value::from)),
            ("group_index", group_index.map(Value::from)),
            ("eta", self.eta.map(|at| date(at).into())),
            ("expires", self.expires.map(|at| date(at).into())),
            ("retries", (retries > 0).then(|| retries.into())),
            ("timelimit", (self.limits != Limits::default()).then(|| timelimit(self.limits))),
            ("origin", self.origin.as_deref().map(Value::from)),
        ];
        let mut lean: Headers = headers
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?)))
            .collect();
        if self.ignore_result {
            lean.insert("ignore_result".to_owned(), true.into());
        }
        lean
    }

    /// Returns the headers that a Celery client writes, also those without a value.
    fn celery_headers(&self) -> Headers {
        let lineage = &self.lineage;
        let root = lineage.root_id.as_ref().unwrap_or(&self.id);
        let parent = lineage.parent_id.as_ref().map(ToString::to_string);
        let headers: [(&str, Value); 17] = [
            ("lang", "rust".into()),
            ("task", self.name.as_str().into()),
            ("id", self.id.as_str().into()),
            ("shadow", Value::Null),
            ("eta", self.eta.map(date).into()),
            ("expires", self.expires.map(date).into()),
            ("group", lineage.group_id.clone().into()),
            ("group_index", lineage.group_index.into()),
            ("retries", self.attempt.saturating_sub(1).into()),
            ("timelimit", timelimit(self.limits)),
            ("root_id", root.as_str().into()),
            ("parent_id", parent.into()),
            ("origin", self.origin.clone().into()),
            ("ignore_result", self.ignore_result.into()),
            ("replaced_task_nesting", 0.into()),
            ("stamped_headers", Value::Null),
            ("stamps", Value::Object(Headers::new())),
        ];
        headers.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

/// Adds the arguments as text for logs and events, unless the producer has set its own text.
fn describe(arguments: &Arguments, headers: &mut Headers) {
    if !headers.contains_key("argsrepr") {
        headers.insert("argsrepr".into(), repr::args(arguments).into());
    }
    if !headers.contains_key("kwargsrepr") {
        headers.insert("kwargsrepr".into(), repr::kwargs(arguments).into());
    }
}

fn timelimit(limits: Limits) -> Value {
    Value::Array(vec![limits.hard.map(seconds).into(), limits.soft.map(seconds).into()])
}

/// Formats a time as Python's `isoformat`: `2026-11-21T10:00:00.000000+00:00`.
pub(crate) fn date(time: Timestamp) -> String {
    const PRINTER: DateTimePrinter = DateTimePrinter::new().precision(Some(6));
    PRINTER.timestamp_with_offset_to_string(&time, Offset::UTC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_written_with_microseconds_and_an_offset() {
        let time: Timestamp = "2026-11-21T10:00:00Z".parse().unwrap();
        assert_eq!(date(time), "2026-11-21T10:00:00.000000+00:00");
    }
}
