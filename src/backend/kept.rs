//! What the runs of a task leave: for its later runs, and for those who watch it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{Error, Kind};
use crate::protocol::TaskDigest;

/// What earlier runs of a task have left.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    /// The journal's entries, by the names of their steps.
    pub steps: HashMap<String, Bytes>,
    /// The steps that have written into the task's stream.
    pub streamed: HashSet<String>,
}

/// Which run writes what it leaves.
#[derive(Clone, Debug)]
pub struct RunOwner {
    /// The task's digest.
    pub digest: TaskDigest,
    /// It is the first run of a message that was never delivered before.
    pub is_fresh: bool,
}

impl RunOwner {
    /// Whether what is stored is left as it is: `owner` is a digest, with [`ENDED`] behind it once
    /// its task has ended, or nothing in what an older version wrote.
    #[must_use]
    pub(in crate::backend) fn continues(&self, owner: Option<&str>) -> bool {
        match owner {
            None => true,
            Some(owner) if owner == self.digest.as_str() => true,
            Some(owner) => is_ended(owner, &self.digest) && !self.is_fresh,
        }
    }
}

/// Behind the digest of a task that has ended: a first run of the same message begins anew.
pub(in crate::backend) const ENDED: &str = " ended";

/// Whether `owner` says that the task with this digest has ended.
pub(in crate::backend) fn is_ended(owner: &str, digest: &TaskDigest) -> bool {
    owner.strip_suffix(ENDED) == Some(digest.as_str())
}

/// Whether what is stored is of the task with this digest; of any, where one of the two is not known.
pub(in crate::backend) fn is_of(owner: Option<&str>, digest: Option<&TaskDigest>) -> bool {
    owner
        .zip(digest)
        .is_none_or(|(owner, digest)| owner == digest.as_str() || is_ended(owner, digest))
}

/// Who writes into a task's stream, and so with whose entries its own are numbered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The handler's body: all runs of it number the same entries.
    Body,
    /// One execution of a step; `execution` tells it from another.
    Step {
        /// The step's name.
        name: Arc<str>,
        /// Random.
        execution: u64,
    },
}

/// An entry on its way into a task's stream.
#[derive(Clone, Debug)]
pub struct Line {
    /// Who writes it.
    pub scope: Scope,
    /// Its number within the scope, from 1. With 0 it only says that a step runs again.
    pub number: u64,
    /// What it says.
    pub said: Said,
    /// As JSON.
    pub json: Bytes,
}

/// What an entry of a stream says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// How far the task has come.
    Progress,
    /// A part of what it makes.
    Output,
    /// A step runs again: what it has written before is void.
    Restarted,
}

impl Said {
    /// As it is stored and printed.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Progress => "progress",
            Self::Output => "output",
            Self::Restarted => "restarted",
        }
    }

    /// What is stored as `name`.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Progress, Self::Output, Self::Restarted].into_iter().find(|it| it.as_str() == name)
    }
}

/// An entry of a task's stream, as a reader gets it.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamEntry {
    /// Its place in the stream, from 1; a stream keeps about its last 10,000 entries.
    pub number: u64,
    /// What it says.
    pub said: Said,
    /// The step that wrote it; `None`: the handler's body.
    pub step: Option<String>,
    /// Which execution of the step, from 1. It grows with each `restarted`.
    pub run: u32,
    /// What was written; `null` in `restarted`.
    pub value: Value,
}

impl StreamEntry {
    /// The value as a type.
    ///
    /// # Errors
    /// It is of another one.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, Error> {
        T::deserialize(&self.value).map_err(|cause| {
            let what = format!("entry {} of the stream", self.number);
            Kind::Codec { what, cause: cause.to_string() }.into()
        })
    }
}
