//! The tasks that follow a task, as its `embed` defines them: callbacks, errbacks, and the rest of its chain.
//!
//! Each becomes an [`Envelope`] to send. The ids are those in the signatures; a missing id is derived from
//! the task's own id. Therefore a task that runs again sends its follow-up tasks under the same ids.

mod plan;

use jiff::Timestamp;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::{RawValue, to_raw_value};

use self::plan::{Plan, unsupported};
use super::signature::{Kind, Signature, decode_error, list};
use super::{Envelope, body};
use crate::error::Failure;
use crate::task::TaskId;

/// The tasks that follow a task.
#[derive(Clone, Debug)]
pub struct Canvas {
    callbacks: Vec<Box<RawValue>>,
    errbacks: Vec<Box<RawValue>>,
    /// In reverse order: the next task is the last element.
    chain: Vec<Box<RawValue>>,
    chord: Option<Box<RawValue>>,
}

/// A task to send because another task has ended.
#[derive(Clone, Debug)]
pub struct FollowUp {
    /// The task to send.
    pub envelope: Envelope,
    /// Its queue; `None` if the signature names none, and the sender chooses.
    pub queue: Option<String>,
}

/// Tasks to send, and their entries in the result of the task that they follow.
#[derive(Clone, Debug, Default)]
pub struct FollowUps {
    /// The tasks to send.
    pub tasks: Vec<FollowUp>,
    /// What a Celery client returns as `AsyncResult.children`.
    pub children: Vec<Child>,
}

/// A result in the form of Celery's `ResultBase.as_tuple`: of a task, or of a group of tasks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Child {
    /// The id of the task or group.
    pub id: TaskId,
    /// The result of the previous task in its chain.
    pub parent: Option<Box<Child>>,
    /// The members of a group; `None` for a task.
    pub members: Option<Vec<Child>>,
}

#[derive(Deserialize)]
struct Embed<'a> {
    #[serde(borrow, default)]
    callbacks: Option<&'a RawValue>,
    #[serde(borrow, default)]
    errbacks: Option<&'a RawValue>,
    #[serde(borrow, default)]
    chain: Option<&'a RawValue>,
    #[serde(borrow, default)]
    chord: Option<&'a RawValue>,
}

impl Canvas {
    /// Parses an `embed`; `None` if no tasks follow. That is the common case, and does not allocate.
    ///
    /// # Errors
    /// If it is not one of Celery's `embed` objects.
    pub fn read(embed: &RawValue) -> Result<Option<Self>, Failure> {
        if embed.get() == body::NO_EMBED || embed.get() == "null" {
            return Ok(None);
        }
        let found: Embed<'_> = serde_json::from_str(embed.get())
            .map_err(|error| decode_error("the object", &error))?;
        let signatures = |json: Option<&RawValue>| json.map_or_else(|| Ok(Vec::new()), list);
        let canvas = Self {
            callbacks: signatures(found.callbacks)?,
            errbacks: signatures(found.errbacks)?,
            chain: signatures(found.chain)?,
            chord: found.chord.map(ToOwned::to_owned),
        };
        let is_empty = canvas.callbacks.is_empty()
            && canvas.errbacks.is_empty()
            && canvas.chain.is_empty()
            && canvas.chord.is_none();
        Ok((!is_empty).then_some(canvas))
    }

    /// Checks that everything that may follow `task` can be sent. Call this before the task runs, because a
    /// chord cannot be sent and would be lost.
    ///
    /// # Errors
    /// The failure with which the task ends instead of being run.
    pub fn check(&self, task: &Envelope, now: Timestamp) -> Result<(), Failure> {
        if self.chord.is_some() {
            return Err(unsupported("the task is part of a chord's header"));
        }
        self.after_success(task, RawValue::NULL, now)?;
        self.after_failure(task, now).map(drop)
    }

    /// Returns the tasks to send after `task` has returned `result`, before that is stored.
    ///
    /// # Errors
    /// If a follow-up task cannot be sent.
    pub fn after_success(
        &self,
        task: &Envelope,
        result: &RawValue,
        now: Timestamp,
    ) -> Result<FollowUps, Failure> {
        let mut plan = Plan::new(task, now);
        let argument = [result.to_owned()];
        match self.callbacks.as_slice() {
            [] => {}
            [only] => plan.add(Signature::read(only)?, "link", &argument, &[])?,
            several => {
                let several = several.iter().map(|json| Signature::read(json));
                let several = several.collect::<Result<Vec<_>, _>>()?;
                let (groups, plain): (Vec<_>, Vec<_>) =
                    several.into_iter().partition(|signature| signature.kind() == Kind::Group);
                for (place, group) in groups.into_iter().enumerate() {
                    plan.add(group, &format!("link/group/{place}"), &argument, &[])?;
                }
                plan.add_together(plain, "link", &argument)?;
            }
        }
        if let Some((next, rest)) = self.chain.split_last() {
            plan.add(Signature::read(next)?, "chain", &argument, rest)?;
        }
        Ok(plan.follow_ups)
    }

    /// Returns the errbacks to send after `task` has failed and the failure is stored; each is called with
    /// the task's id. (Errbacks that take the exception, which Celery calls inside the worker, are sent as
    /// tasks.)
    ///
    /// # Errors
    /// If one of them cannot be sent.
    pub fn after_failure(&self, task: &Envelope, now: Timestamp) -> Result<FollowUps, Failure> {
        let mut plan = Plan::new(task, now);
        let errbacks = self.errbacks.iter().map(|json| Signature::read(json));
        let id = to_raw_value(&task.id).map_err(|error| decode_error("the id", &error))?;
        plan.add_together(errbacks.collect::<Result<_, _>>()?, "link_error", &[id])?;
        Ok(plan.follow_ups)
    }

    /// Returns the errbacks of the bodies of chords that will never run because `task` has not succeeded: the
    /// chord that it is in the header of, and the chords that would follow it. As in Celery, each errback is
    /// called with the id of the body, and its own id is derived from that: each header task sends the same
    /// messages. Skips unreadable signatures.
    #[must_use]
    pub fn after_lost_chords(&self, task: &Envelope, now: Timestamp) -> Vec<(TaskId, FollowUps)> {
        let mut bodies = Vec::new();
        if let Some(Ok(body)) = self.chord.as_ref().map(|json| Signature::read(json)) {
            bodies.push(body);
        }
        for json in self.chain.iter().chain(&self.callbacks) {
            let _ = Signature::read(json).and_then(|signature| signature.chord_bodies(&mut bodies));
        }
        let errbacks = |body: Signature| {
            let (id, list) = (body.id()?, body.signatures("link_error")?);
            let Some(id) = id.filter(|_| !list.is_empty()) else { return Ok(None) };
            let mut failed = task.clone();
            failed.id = id.clone();
            failed.lineage.root_id.get_or_insert_with(|| task.id.clone());
            let argument = to_raw_value(&id).map_err(|error| decode_error("the id", &error))?;
            let mut plan = Plan::new(&failed, now);
            let list = list.iter().map(|json| Signature::read(json)).collect::<Result<_, _>>()?;
            plan.add_together(list, "link_error", &[argument])?;
            Ok::<_, Failure>(Some((id, plan.follow_ups)))
        };
        bodies.into_iter().filter_map(|body| errbacks(body).ok().flatten()).collect()
    }

    /// Returns the ids of the tasks that never run when this one fails: the later tasks of its chain, and the
    /// body of its chord. Their waiters must get a failure. Skips unreadable signatures.
    #[must_use]
    pub fn unreached(&self) -> Vec<TaskId> {
        let mut ids = Vec::new();
        for json in self.chain.iter().chain(&self.chord) {
            let _ = Signature::read(json).and_then(|signature| signature.task_ids(&mut ids));
        }
        ids
    }
}

impl Child {
    /// Creates the result of a signature whose id is known.
    fn of(id: TaskId, signature: &Signature) -> Result<Self, Failure> {
        if signature.kind() != Kind::Group {
            return Ok(Self { id, parent: None, members: None });
        }
        let mut members = Vec::new();
        for part in signature.parts()? {
            if let Some(id) = part.id()? {
                members.push(Self::of(id, &part)?);
            }
        }
        Ok(Self { id, parent: None, members: Some(members) })
    }

    /// Returns the first task of its chain.
    fn first(mut self) -> Self {
        while let Some(parent) = self.parent {
            self = *parent;
        }
        self
    }
}

impl Serialize for Child {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        ((&self.id, &self.parent), &self.members).serialize(serializer)
    }
}

#[cfg(test)]
mod tests;
