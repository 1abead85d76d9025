//! Streams: progress and output of running tasks.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{RunOwner, sealed};
use crate::error::{Error, Kind};
use crate::task::TaskId;

/// The writer of stream entries. Entries are numbered within their scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The handler's body: all of its runs number the same entries.
    Body,
    /// One execution of a step; `execution` distinguishes it from others.
    Step {
        /// The step's name.
        name: Arc<str>,
        /// A random number.
        execution: u64,
    },
}

/// An entry to be appended to a task's stream.
#[derive(Clone, Debug)]
pub struct StreamAppend {
    /// The writer.
    pub scope: Scope,
    /// Its number within the scope, from 1. Number 0 only announces that a step runs again.
    pub number: u64,
    /// The kind of the entry.
    pub kind: EntryKind,
    /// The value, as JSON.
    pub json: Bytes,
}

/// The kind of a stream entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EntryKind {
    /// The progress of the task.
    Progress,
    /// A part of the task's output.
    Output,
    /// A step runs again: its earlier entries are void.
    Restarted,
}

impl EntryKind {
    /// Returns the name that is stored and printed.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Progress => "progress",
            Self::Output => "output",
            Self::Restarted => "restarted",
        }
    }

    /// Returns the kind with this stored name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Progress, Self::Output, Self::Restarted].into_iter().find(|it| it.as_str() == name)
    }
}

/// An entry of a task's stream, as a reader gets it.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamEntry {
    /// Its number in the stream, from 1; a stream keeps about its last 10,000 entries.
    pub number: u64,
    /// The kind of the entry.
    pub kind: EntryKind,
    /// The step that wrote it; `None` for the handler's body.
    pub step: Option<String>,
    /// The execution of the step, from 1. It grows with each `restarted`.
    pub run: u32,
    /// The value that was written; `null` in `restarted`.
    pub value: Value,
}

impl StreamEntry {
    /// Deserializes the value.
    ///
    /// # Errors
    /// A codec error when the value has another type.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, Error> {
        T::deserialize(&self.value).map_err(|cause| {
            let what = format!("entry {} of the stream", self.number);
            Kind::Codec { what, cause: cause.to_string() }.into()
        })
    }
}

/// Keeps streams. A part of [`super::Store`], and sealed like it.
pub trait Streams: sealed::Sealed {
    /// Appends to a task's stream, unless it has an entry of the same scope with the same or a higher
    /// number. The caller must append entries of one scope one after the other. A stream is replaced
    /// like a journal, but its numbers continue. Waits like [`super::Journals::task_history`]. If the future is
    /// dropped, the entry may be appended nevertheless.
    fn append_entry(
        &self,
        id: &TaskId,
        writer: &RunOwner,
        entry: StreamAppend,
    ) -> BoxFuture<'_, Result<(), Error>>;

    /// Returns the entries of a task's stream after this number, as stored now: a limited number of
    /// them. Gives up like [`super::Results::read_result`].
    fn read_entries(
        &self,
        id: &TaskId,
        after: u64,
    ) -> BoxFuture<'_, Result<Vec<StreamEntry>, Error>>;

    /// Returns the same, but waits until there are entries, without limit and over reconnects.
    fn next_entries(
        &self,
        id: &TaskId,
        after: u64,
    ) -> BoxFuture<'_, Result<Vec<StreamEntry>, Error>>;

    /// Returns the number of the last entry of a task's stream; 0 when there is none.
    fn last_entry(&self, id: &TaskId) -> BoxFuture<'_, Result<u64, Error>>;
}
