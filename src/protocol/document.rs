//! Result documents: what is stored under `celery-task-meta-<id>`, and published.

use std::borrow::Cow;
use std::marker::PhantomData;

use bytes::Bytes;
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::encode::date;
use super::{Child, Envelope, Lineage, headers, kombu};
use crate::approval::ApprovalId;
use crate::error::{Error, Failure, Kind};
use crate::task::TaskId;

/// A task's state as Celery names it. Only `Success`, `Failure` and `Revoked` are terminal.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "named as in Celery")]
pub enum State {
    Started,
    Retry,
    Success,
    Failure,
    Revoked,
    /// A state of somebody's own. Never terminal.
    Custom(String),
}

/// The state of a task that waits for a decision.
pub const PARKED: &str = "PARKED";

/// One result document, encoded.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// Whose result it is.
    pub id: TaskId,
    /// What it says.
    pub state: State,
    /// The whole document.
    pub json: Bytes,
}

impl State {
    /// The state that Celery calls `name`.
    #[must_use]
    pub fn named(name: &str) -> Self {
        match name {
            "STARTED" => Self::Started,
            "RETRY" => Self::Retry,
            "SUCCESS" => Self::Success,
            "FAILURE" => Self::Failure,
            "REVOKED" => Self::Revoked,
            other => Self::Custom(other.to_owned()),
        }
    }

    /// The name that Celery has for it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Started => "STARTED",
            Self::Retry => "RETRY",
            Self::Success => "SUCCESS",
            Self::Failure => "FAILURE",
            Self::Revoked => "REVOKED",
            Self::Custom(name) => name,
        }
    }

    /// Nothing follows such a state; a waiter has its answer.
    #[must_use]
    pub fn is_terminal(&self) -> bool {
        matches!(self, Self::Success | Self::Failure | Self::Revoked)
    }
}

/// A document's fields in the order in which Celery writes them.
#[derive(Serialize)]
struct Written<'a, R> {
    status: &'a str,
    result: R,
    traceback: Option<&'a str>,
    children: &'a [Child],
    date_done: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_id: Option<&'a str>,
    task_id: &'a str,
}

#[derive(Serialize)]
struct Exception<'a> {
    exc_type: &'a str,
    exc_message: &'a [Value],
    exc_module: &'a str,
}

/// What is written, before it is known of whom.
struct Content<'a, R> {
    state: State,
    result: R,
    traceback: Option<&'a str>,
    children: &'a [Child],
}

impl<'a> Content<'a, Exception<'a>> {
    fn exception(state: State, failure: &'a Failure) -> Self {
        let Failure { exc_type, exc_module, args, traceback } = failure;
        let result = Exception { exc_type, exc_message: args, exc_module };
        Self { state, result, traceback: traceback.as_deref(), children: &[] }
    }
}

impl<R: Serialize> Content<'_, R> {
    fn written(self, id: &TaskId, lineage: &Lineage, now: Timestamp) -> Document {
        let written = Written {
            status: self.state.as_str(),
            result: self.result,
            traceback: self.traceback,
            children: self.children,
            date_done: self.state.is_terminal().then(|| date(now)),
            group_id: lineage.group_id.as_deref(),
            parent_id: lineage.parent_id.as_ref().map(TaskId::as_str),
            task_id: id.as_str(),
        };
        let mut json = Vec::with_capacity(256);
        // Writing to memory cannot fail, and every key is text.
        let _ = serde_json::to_writer(&mut json, &written);
        // Many are kept for a minute: without the room that was not needed.
        Document { id: id.clone(), state: self.state, json: json.into_boxed_slice().into() }
    }
}

impl Document {
    /// The task answered `result`, and put `children` on their way.
    #[must_use]
    pub fn success(task: &Envelope, result: &RawValue, children: &[Child], now: Timestamp) -> Self {
        Content { state: State::Success, result, traceback: None, children }.written(
            &task.id,
            &task.lineage,
            now,
        )
    }

    /// The task failed, and is not tried again.
    #[must_use]
    pub fn failed(task: &Envelope, failure: &Failure, now: Timestamp) -> Self {
        Content::exception(State::Failure, failure).written(&task.id, &task.lineage, now)
    }

    /// A message failed of which only the id was readable.
    #[must_use]
    pub fn failure_of(id: &TaskId, failure: &Failure, now: Timestamp) -> Self {
        Content::exception(State::Failure, failure).written(id, &Lineage::default(), now)
    }

    /// The task waits for these questions to be decided. Celery's clients go on waiting.
    #[must_use]
    pub fn parked(task: &Envelope, questions: &[ApprovalId], now: Timestamp) -> Self {
        let result = serde_json::json!({ "approvals": questions });
        let state = State::Custom(PARKED.to_owned());
        Content { state, result, traceback: None, children: &[] }.written(
            &task.id,
            &task.lineage,
            now,
        )
    }

    /// The task failed, and is tried again.
    #[must_use]
    pub fn retry(task: &Envelope, failure: &Failure, now: Timestamp) -> Self {
        Content::exception(State::Retry, failure).written(&task.id, &task.lineage, now)
    }

    /// The task will not run, or not to its end: `reason` is `expired`, `revoked` or `terminated`.
    #[must_use]
    pub fn revoked(task: &Envelope, reason: &str, now: Timestamp) -> Self {
        let failure = Failure::task_revoked(reason);
        Content::exception(State::Revoked, &failure).written(&task.id, &task.lineage, now)
    }
}

/// What is read of a document at first; the rest stays text.
#[derive(Deserialize)]
struct Found<'a> {
    #[serde(borrow)]
    status: Cow<'a, str>,
    #[serde(borrow, default)]
    result: Option<&'a RawValue>,
    #[serde(borrow, default)]
    traceback: Option<&'a RawValue>,
    #[serde(borrow, default)]
    task_id: Option<Cow<'a, str>>,
}

impl Document {
    /// Reads a document that was stored, or heard on a channel. Its own `task_id` counts; `id` is
    /// for those that have none.
    ///
    /// # Errors
    /// It is no result document.
    pub fn parse(id: TaskId, json: Bytes) -> Result<Self, Error> {
        let found: Found<'_> =
            serde_json::from_slice(&json).map_err(|error| garbled(&id, &error))?;
        let state = State::named(&found.status);
        let id = found.task_id.map_or(id, TaskId::from);
        Ok(Self { id, state, json })
    }

    /// The task's answer.
    ///
    /// # Errors
    /// The task failed or was revoked, has not ended yet, or answered something else than a `T`.
    pub fn output<T: DeserializeOwned>(&self) -> Result<T, Error> {
        match &self.state {
            State::Success => {}
            State::Failure => {
                return Err(Kind::Failed { id: self.id.clone(), failure: self.failure() }.into());
            }
            State::Revoked => {
                return Err(Kind::Revoked { id: self.id.clone(), reason: self.reason() }.into());
            }
            unfinished => return Err(garbled(&self.id, &format!("it is {}", unfinished.as_str()))),
        }
        let found: Found<'_> =
            serde_json::from_slice(&self.json).map_err(|error| garbled(&self.id, &error))?;
        kombu::read(found.result.unwrap_or(RawValue::NULL), PhantomData::<T>)
            .map_err(|error| garbled(&self.id, &error))
    }

    /// How the task failed. What the document does not say, or says in another shape than Celery,
    /// is filled in.
    #[must_use]
    pub fn failure(&self) -> Failure {
        let found: Option<Found<'_>> = serde_json::from_slice(&self.json).ok();
        let (result, traceback) = found.map_or((None, None), |it| (it.result, it.traceback));
        let mut failure = exception(result);
        failure.traceback = traceback.and_then(|text| serde_json::from_str(text.get()).ok());
        failure
    }

    /// When the task ended; `None` of one that has not, or where no readable date is stored.
    #[must_use]
    pub fn date_done(&self) -> Option<Timestamp> {
        #[derive(Deserialize)]
        struct Done<'a> {
            #[serde(borrow, default)]
            date_done: Option<Cow<'a, str>>,
        }
        let Done { date_done } = serde_json::from_slice(&self.json).ok()?;
        headers::parse_date(&date_done?)
    }

    /// Why the task was revoked.
    #[must_use]
    pub fn reason(&self) -> String {
        self.failure().message()
    }
}

/// An exception as somebody wrote it; a text, or whatever stands there instead, is its message.
fn exception(result: Option<&RawValue>) -> Failure {
    let Some(result) = result else {
        return Failure::new("builtins", "Exception", "");
    };
    let mut fields = match serde_json::from_str(result.get()) {
        Ok(Value::Object(fields)) => fields,
        Ok(Value::String(text)) => return Failure::new("builtins", "Exception", text),
        Ok(_) | Err(_) => return Failure::new("builtins", "Exception", result.get()),
    };
    let mut text = |name, otherwise: &str| match fields.remove(name) {
        Some(Value::String(text)) => text,
        _ => otherwise.to_owned(),
    };
    let exc_type = text("exc_type", "Exception");
    let exc_module = text("exc_module", "builtins");
    let args = match fields.remove("exc_message") {
        Some(Value::Array(args)) => args,
        None | Some(Value::Null) => Vec::new(),
        Some(message) => vec![message],
    };
    Failure { exc_type, exc_module, args, traceback: None }
}

fn garbled(id: &TaskId, cause: &dyn std::fmt::Display) -> Error {
    Kind::Codec { what: format!("the result of task {id}"), cause: cause.to_string() }.into()
}

#[cfg(test)]
mod tests;
