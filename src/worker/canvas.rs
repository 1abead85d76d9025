//! What follows a task: callbacks and the next of its chain after a success, errbacks and the
//! failure of the rest of its chain after a failure, only the latter after a revocation.
//!
//! A success is stored only after what follows it is confirmed, as in Celery: `children` are in
//! the result then, and a crash in between sends them again, under the same ids. A failure is
//! stored first, because errbacks look it up; a crash in between finds the failure stored, and
//! sends them then. Either way what follows is sent at least once, and nothing is lost.

use std::time::Duration;

use futures_util::future::join_all;
use tracing::error;

use super::{Crew, settle};
use crate::backend::{Finish, Queue};
use crate::clock;
use crate::error::Failure;
use crate::protocol::{Canvas, Child, Document, Envelope, FollowUp, FollowUps, State};
use crate::task::TaskId;
use crate::trace::TraceParent;

/// The header tasks of a chord end within this, or its errbacks are called again.
const CHORD_KEPT: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// How a task fails that may not run, because what is to follow it cannot be done here.
pub(super) fn refusal(envelope: &Envelope) -> Option<Failure> {
    match Canvas::read(&envelope.embed) {
        Ok(None) => None,
        Ok(Some(canvas)) => canvas.check(envelope, clock::now()).err(),
        Err(failure) => Some(failure),
    }
}

/// Sends what follows a success, and returns what the result says of it.
///
/// # Errors
/// Something could not be sent, and never will be: the task has failed by that.
pub(super) async fn after_success(
    crew: &Crew,
    queue: &Queue,
    envelope: &Envelope,
    canvas: &Canvas,
    result: &serde_json::value::RawValue,
    is_rerun: bool,
) -> Result<Vec<Child>, Failure> {
    let follow_ups = canvas.after_success(envelope, result, clock::now())?;
    send(crew, queue, envelope, follow_ups, is_rerun).await
}

/// Why what was to follow a task will not.
#[derive(Clone, Debug)]
pub(super) enum Broken {
    /// It has failed: its errbacks are called.
    Failed(Failure),
    /// It was revoked, or has expired, and has no errbacks, as in Celery. The failure is that of the
    /// tasks behind it.
    Revoked(Failure),
}

impl Broken {
    /// What the end of this task breaks; nothing if it has succeeded.
    pub(super) fn by(document: &Document) -> Option<Self> {
        match document.state {
            State::Failure => Some(Self::Failed(document.failure())),
            State::Revoked => {
                let failure = Failure::after_revoked(&document.id, &document.reason());
                Some(Self::Revoked(failure))
            }
            _ => None,
        }
    }
}

/// Tells the waiters of the tasks that will not run now, and sends the errbacks: the task's, and those
/// of the chords that come to nothing. What cannot be sent is only logged: the task has ended already.
pub(super) async fn after_failure(
    crew: &Crew,
    queue: &Queue,
    envelope: &Envelope,
    broken: &Broken,
    is_rerun: bool,
) {
    let Ok(Some(canvas)) = Canvas::read(&envelope.embed) else { return };
    let now = clock::now();
    let (Broken::Failed(failure) | Broken::Revoked(failure)) = broken;
    let told = canvas.unreached().into_iter().map(|id| {
        let document = Document::failure_of(&id, failure, now);
        crew.backends.store.finish(Finish { document, reply_to: None, received: None })
    });
    for error in join_all(told).await.into_iter().filter_map(Result::err) {
        error!(task.id = %envelope.id, "the failure of its chain cannot be stored: {error}");
    }
    let errbacks = match broken {
        Broken::Failed(_) => canvas.after_failure(envelope, now),
        Broken::Revoked(_) => Ok(FollowUps::default()),
    };
    let sent = match errbacks {
        Ok(errbacks) => send(crew, queue, envelope, errbacks, is_rerun).await,
        Err(failure) => Err(failure),
    };
    if let Err(failure) = sent {
        error!(task.id = %envelope.id, "an errback cannot be sent: {failure}");
    }
    for (body, errbacks) in canvas.after_lost_chords(envelope, now) {
        if is_first(crew, &body, envelope).await
            && let Err(failure) = send(crew, queue, envelope, errbacks, is_rerun).await
        {
            error!(task.id = %body, "an errback of a chord cannot be sent: {failure}");
        }
    }
}

/// Whether this task calls the errbacks of a chord's body: one of the header does. Should that not be
/// known, all do.
async fn is_first(crew: &Crew, body: &TaskId, task: &Envelope) -> bool {
    let key = format!("lost-chord:{body}");
    let claimed = crew.backends.store.claim_key(&key, &task.id, CHORD_KEPT).await;
    claimed.map_or(true, |claimed| claimed.id == task.id)
}

async fn send(
    crew: &Crew,
    queue: &Queue,
    parent: &Envelope,
    follow_ups: FollowUps,
    is_rerun: bool,
) -> Result<Vec<Child>, Failure> {
    let FollowUps { tasks, children } = follow_ups;
    let sent = tasks.into_iter().map(|task| send_one(crew, queue, parent, task, is_rerun));
    join_all(sent).await.into_iter().collect::<Result<Vec<()>, _>>()?;
    Ok(children)
}

async fn send_one(
    crew: &Crew,
    queue: &Queue,
    parent: &Envelope,
    task: FollowUp,
    is_rerun: bool,
) -> Result<(), Failure> {
    let FollowUp { mut envelope, queue: named } = task;
    let to = named.map_or_else(|| route(crew, queue, &envelope.name), Queue::new);
    envelope.origin = Some(crew.name.clone());
    if let Some(trace) = TraceParent::read(&parent.headers) {
        trace.child().write(&mut envelope.headers);
    }
    let delay = envelope.eta.and_then(|eta| settle::ahead(eta, clock::now()));
    let mut message = envelope.encode();
    if is_rerun {
        // The run before may have sent it: the worker that takes this one reads the stored result first.
        message.mark_returned();
    }
    let sent = settle::publish(crew, message, to, delay).await;
    sent.map(drop).map_err(|error| {
        let told = format!("task {} cannot be sent to follow this one: {error}", envelope.name);
        Failure::new("countersign.errors", "CannotFollow", told)
    })
}

/// A task that names no queue stays on the one it came by, if this worker knows it; else it goes
/// where tasks go that name none.
fn route(crew: &Crew, queue: &Queue, name: &str) -> Queue {
    if crew.handlers.contains_key(name) {
        return queue.clone();
    }
    Queue::new(crew.config.queue.as_str())
}
