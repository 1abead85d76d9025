//! Result documents, which are stored under `celery-task-meta-<id>` and published.

use std::borrow::Cow;
use std::marker::PhantomData;

use bytes::Bytes;
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::encode::date;
use super::{Child, Envelope, Lineage, headers, tagged_json};
use crate::approval::ApprovalId;
use crate::error::{Error, Failure, Kind};
use crate::task::TaskId;

/// A task's state as Celery names it. Only `Success`, `Failure` and `Revoked` are terminal.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "named as in Celery")]
#[non_exhaustive]
pub enum State {
    Started,
    Retry,
    Success,
    Failure,
    Revoked,
    /// An application-defined state. Never terminal.
    Custom(String),
}

/// The state of a task that waits for a decision.
pub const SUSPENDED: &str = "PARKED";

/// One encoded result document.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// The task's id.
    pub id: TaskId,
    /// The task's state.
    pub state: State,
    /// The whole document as JSON.
    pub json: Bytes,
}

impl State {
    /// Returns the state with this name in Celery.
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

    /// Returns the state's name in Celery.
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

    /// Returns whether the state is final, so that a waiter returns.
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

/// The contents of a document, without the task's data.
struct Content<'a, R> {
    state: State,
    result: R,
    traceback: Option<Cow<'a, str>>,
    children: &'a [Child],
}

impl<'a> Content<'a, Exception<'a>> {
    fn exception(state: State, failure: &'a Failure) -> Self {
        let Failure { exc_type, exc_module, args, traceback } = failure;
        let result = Exception { exc_type, exc_message: args, exc_module };
        let traceback = traceback.as_deref().map(Cow::Borrowed);
        // As in Celery, a revoked task has no traceback.
        let is_failure = state != State::Revoked;
        let traceback = traceback.or_else(|| is_failure.then(|| failure.to_string().into()));
        Self { state, result, traceback, children: &[] }
    }
}

impl<R: Serialize> Content<'_, R> {
    fn written(self, id: &TaskId, lineage: &Lineage, now: Timestamp) -> Document {
        let written = Written {
            status: self.state.as_str(),
            result: self.result,
            traceback: self.traceback.as_deref(),
            children: self.children,
            date_done: self.state.is_terminal().then(|| date(now)),
            group_id: lineage.group_id.as_deref(),
            parent_id: lineage.parent_id.as_ref().map(TaskId::as_str),
            task_id: id.as_str(),
        };
        let mut json = Vec::with_capacity(256);
        // Writing to memory cannot fail, and every key is text.
        let _ = serde_json::to_writer(&mut json, &written);
        // Many documents are cached for a minute: release the unused capacity.
        Document { id: id.clone(), state: self.state, json: json.into_boxed_slice().into() }
    }
}

#[cfg_attr(not(feature = "unstable"), doc(hidden))]
impl Document {
    /// Creates the document of a task that returned `result` and enqueued `children`.
    #[must_use]
    pub fn success(task: &Envelope, result: &RawValue, children: &[Child], now: Timestamp) -> Self {
        Content { state: State::Success, result, traceback: None, children }.written(
            &task.id,
            &task.lineage,
            now,
        )
    }

    /// Creates the document of a task that failed, and is not retried.
    #[must_use]
    pub fn failed(task: &Envelope, failure: &Failure, now: Timestamp) -> Self {
        Content::exception(State::Failure, failure).written(&task.id, &task.lineage, now)
    }

    /// Creates the failure document of a message of which only the id was readable.
    #[must_use]
    pub fn failure_of(id: &TaskId, failure: &Failure, now: Timestamp) -> Self {
        Content::exception(State::Failure, failure).written(id, &Lineage::default(), now)
    }

    /// Creates the document of a task that waits for these approvals. Celery clients continue to wait.
    #[must_use]
    pub fn suspended(task: &Envelope, approvals: &[ApprovalId], now: Timestamp) -> Self {
        let result = serde_json::json!({ "approvals": approvals });
        let state = State::Custom(SUSPENDED.to_owned());
        Content { state, result, traceback: None, children: &[] }.written(
            &task.id,
            &task.lineage,
            now,
        )
    }

    /// Creates the document of a running task, with its worker's pid and host as Celery's `track_started`.
    #[must_use]
    pub fn started(task: &Envelope, pid: u32, hostname: &str) -> Self {
        let result = serde_json::json!({ "pid": pid, "hostname": hostname });
        Content { state: State::Started, result, traceback: None, children: &[] }.written(
            &task.id,
            &task.lineage,
            Timestamp::UNIX_EPOCH,
        )
    }

    /// Creates the document of a task that failed, and is retried.
    #[must_use]
    pub fn retry(task: &Envelope, failure: &Failure, now: Timestamp) -> Self {
        Content::exception(State::Retry, failure).written(&task.id, &task.lineage, now)
    }

    /// Creates the document of a revoked task: `reason` is `expired`, `revoked` or `terminated`.
    #[must_use]
    pub fn revoked(task: &Envelope, reason: &str, now: Timestamp) -> Self {
        let failure = Failure::task_revoked(reason);
        Content::exception(State::Revoked, &failure).written(&task.id, &task.lineage, now)
    }
}

/// The fields that are parsed first; other fields stay JSON text.
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
    /// Parses a document from the store or from a channel. The document's own `task_id` is used; `id` applies
    /// if it has none.
    ///
    /// # Errors
    /// If it is not a result document.
    pub fn parse(id: TaskId, json: Bytes) -> Result<Self, Error> {
        let found: Found<'_> =
            serde_json::from_slice(&json).map_err(|error| decode_error(&id, &error))?;
        let state = State::named(&found.status);
        let id = found.task_id.map_or(id, TaskId::from);
        Ok(Self { id, state, json })
    }

    /// Returns the task's result.
    ///
    /// # Errors
    /// If the task failed, was revoked or has not ended yet, or its result is not a `T`.
    pub fn output<T: DeserializeOwned>(&self) -> Result<T, Error> {
        match &self.state {
            State::Success => {}
            State::Failure => {
                return Err(Kind::Failed { id: self.id.clone(), failure: self.failure() }.into());
            }
            State::Revoked => {
                return Err(Kind::Revoked { id: self.id.clone(), reason: self.reason() }.into());
            }
            unfinished => {
                return Err(decode_error(
                    &self.id,
                    &format!("the task has not ended: its state is {}", unfinished.as_str()),
                ));
            }
        }
        let found: Found<'_> =
            serde_json::from_slice(&self.json).map_err(|error| decode_error(&self.id, &error))?;
        tagged_json::read(found.result.unwrap_or(RawValue::NULL), PhantomData::<T>)
            .map_err(|error| decode_error(&self.id, &error))
    }

    /// Returns how the task failed. Fields that are missing or not in Celery's form get default values.
    #[must_use]
    pub fn failure(&self) -> Failure {
        let found: Option<Found<'_>> = serde_json::from_slice(&self.json).ok();
        let (result, traceback) = found.map_or((None, None), |it| (it.result, it.traceback));
        let mut failure = exception(result);
        failure.traceback = traceback.and_then(|text| serde_json::from_str(text.get()).ok());
        failure
    }

    /// Returns when the task ended; `None` if it has not ended, or the stored date is unreadable.
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

    /// Returns the reason of the revocation.
    #[must_use]
    pub fn reason(&self) -> String {
        self.failure().message()
    }
}

/// Parses a stored exception; any value in another form becomes its message.
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

fn decode_error(id: &TaskId, cause: &dyn std::fmt::Display) -> Error {
    Kind::Codec { what: format!("the result of task {id}"), cause: cause.to_string() }.into()
}

#[cfg(test)]
mod tests;
