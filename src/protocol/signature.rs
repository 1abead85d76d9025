//! Celery's signatures: tasks, chains and groups to send, each part kept as the producer wrote it.

use indexmap::IndexMap;
use jiff::Timestamp;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};

use super::message_headers::Field;
use super::{Kwargs, headers, tagged_json};
use crate::error::Failure;
use crate::task::TaskId;

/// The options of `apply_async`, by their names in Celery.
pub(super) type Options = IndexMap<String, Box<RawValue>>;

/// A signature: a task, chain, group or chord.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Signature {
    pub(super) task: String,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(super) args: Vec<Box<RawValue>>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(super) kwargs: Kwargs,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(super) options: Options,
    #[serde(default)]
    pub(super) subtask_type: Option<String>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(super) immutable: bool,
}

/// The kind of a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Task,
    Chain,
    Group,
    Chord,
}

impl Signature {
    pub(super) fn read(json: &RawValue) -> Result<Self, Failure> {
        serde_json::from_str(json.get()).map_err(|error| decode_error("a signature", &error))
    }

    pub(super) fn write(&self) -> Result<Box<RawValue>, Failure> {
        to_raw_value(self).map_err(|error| decode_error("a signature", &error))
    }

    pub(super) fn kind(&self) -> Kind {
        match self.task.as_str() {
            "celery.chain" => Kind::Chain,
            "celery.group" => Kind::Group,
            "celery.chord" => Kind::Chord,
            _ => Kind::Task,
        }
    }

    /// Returns the signatures of a chain's or group's parts.
    pub(super) fn parts(&self) -> Result<Vec<Self>, Failure> {
        match self.kwargs.get("tasks") {
            Some(tasks) => list(tasks)?.iter().map(|task| Self::read(task)).collect(),
            None => Ok(Vec::new()),
        }
    }

    /// Returns an option; `None` if it is absent or null.
    pub(super) fn option<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Failure> {
        let Some(json) = self.options.get(name) else { return Ok(None) };
        let json = serde_json::from_str(json.get());
        json.map_err(|error| decode_error(&format!("option `{name}`"), &error))
    }

    /// Returns an option that is a list of signatures; a single signature counts as a list of one.
    pub(super) fn signatures(&self, name: &str) -> Result<Vec<Box<RawValue>>, Failure> {
        self.options.get(name).map_or_else(|| Ok(Vec::new()), |json| list(json))
    }

    pub(super) fn id(&self) -> Result<Option<TaskId>, Failure> {
        Ok(self.option::<String>("task_id")?.map(TaskId::from))
    }

    /// Returns a time option: ISO 8601, possibly tagged, or seconds from `now`.
    pub(super) fn time(&self, name: &str, now: Timestamp) -> Result<Option<Timestamp>, Failure> {
        let Some(json) = self.options.get(name).filter(|json| json.get() != "null") else {
            return Ok(None);
        };
        if let Ok(seconds) = serde_json::from_str::<f64>(json.get()) {
            return after(now, seconds).map(Some);
        }
        let text = tagged_json::read(json, std::marker::PhantomData::<String>);
        let text = text.map_err(|error| decode_error(&format!("option `{name}`"), &error))?;
        let date = headers::date(name, Some(Field::Decoded(&Value::String(text))));
        date.map_err(|unreadable| decode_error("a signature", &unreadable))
    }

    pub(super) fn set<T: Serialize>(&mut self, name: &str, value: &T) -> Result<(), Failure> {
        let json = to_raw_value(value).map_err(|error| decode_error("a signature", &error))?;
        self.options.insert(name.to_owned(), json);
        Ok(())
    }

    /// Sets an option that is absent or null.
    pub(super) fn set_missing<T: Serialize>(&mut self, name: &str, to: &T) -> Result<(), Failure> {
        if self.option::<IgnoredAny>(name)?.is_none() { self.set(name, to) } else { Ok(()) }
    }

    /// Appends to an option that is a list of signatures.
    pub(super) fn extend(&mut self, name: &str, more: &[Box<RawValue>]) -> Result<(), Failure> {
        if more.is_empty() {
            return Ok(());
        }
        let mut all = self.signatures(name)?;
        all.extend_from_slice(more);
        self.set(name, &all)
    }

    /// Collects the bodies of the chords in the signature.
    pub(super) fn chord_bodies(&self, found: &mut Vec<Self>) -> Result<(), Failure> {
        match self.kind() {
            Kind::Task => {}
            Kind::Chain | Kind::Group => {
                for part in self.parts()? {
                    part.chord_bodies(found)?;
                }
            }
            Kind::Chord => {
                if let Some(body) = self.kwargs.get("body") {
                    found.push(Self::read(body)?);
                }
            }
        }
        Ok(())
    }

    /// Collects the ids of all tasks in the signature and its parts, including those of chords.
    pub(super) fn task_ids(&self, found: &mut Vec<TaskId>) -> Result<(), Failure> {
        match self.kind() {
            Kind::Task => found.extend(self.id()?),
            Kind::Chain | Kind::Group => {
                for part in self.parts()? {
                    part.task_ids(found)?;
                }
            }
            Kind::Chord => {
                for name in ["header", "body"] {
                    let parts = self.kwargs.get(name).map(|json| list(json)).transpose()?;
                    for part in parts.iter().flatten() {
                        Self::read(part)?.task_ids(found)?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// Returns the time this many seconds after `now`.
fn after(now: Timestamp, seconds: f64) -> Result<Timestamp, Failure> {
    let span = jiff::SignedDuration::try_from_secs_f64(seconds);
    let time = span.ok().and_then(|span| now.checked_add(span).ok());
    time.ok_or_else(|| decode_error("a signature", &format!("a time {seconds} s from now")))
}

/// Parses a list of values; a single object counts as a list of one, and null as an empty list.
pub(super) fn list(json: &RawValue) -> Result<Vec<Box<RawValue>>, Failure> {
    match json.get().as_bytes() {
        [b'{', ..] => Ok(vec![json.to_owned()]),
        [b'n', ..] => Ok(Vec::new()),
        _ => serde_json::from_str(json.get())
            .map_err(|error| decode_error("a list of signatures", &error)),
    }
}

pub(super) fn decode_error(what: &str, cause: &dyn std::fmt::Display) -> Failure {
    let message = format!("cannot decode {what} in the task's `embed`: {cause}");
    Failure::new("countersign.errors", "Unreadable", message)
}

fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}
