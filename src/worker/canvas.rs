//! Canvas: the messages sent after a task ends. After a success, its callbacks and the next task of its
//! chain; after a failure, its errbacks, and failures for the rest of its chain; after a revocation, only
//! those failures.
//!
//! A success is stored after its callbacks are confirmed, as in Celery, so the result contains
//! `children`. A crash in between sends the callbacks again, under the same ids. A failure is stored
//! first, because errbacks read it; after a crash in between, the redelivered message finds the failure
//! stored and sends the errbacks then. Both are sent at least once, and nothing is lost.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::value::RawValue;
use tracing::error;

use super::attempt::delay_until;
use super::publish::publish;
use super::state::WorkerState;
use crate::backend::{Queue, StoreResult};
use crate::clock;
use crate::error::Failure;
use crate::protocol::{Canvas, Child, Document, Envelope, FollowUp, FollowUps, State};
use crate::task::TaskId;
use crate::trace::TraceParent;

/// The header tasks of a chord must end within this time; after it, the errbacks are called again.
const CHORD_RETENTION: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Returns the failure of a task that must not run because this worker cannot carry out its canvas.
pub(super) fn refusal(envelope: &Envelope) -> Option<Failure> {
    match Canvas::read(&envelope.embed) {
        Ok(None) => None,
        Ok(Some(canvas)) => canvas.check(envelope, clock::now()).err(),
        Err(failure) => Some(failure),
    }
}

/// Why the rest of a chain does not run.
#[derive(Clone, Debug)]
pub(super) enum ChainBreak {
    /// The task failed: its errbacks are called.
    Failed(Failure),
    /// The task was revoked or expired. As in Celery, its errbacks are not called. The failure is that of
    /// the tasks behind it in the chain.
    Revoked(Failure),
}

impl ChainBreak {
    /// Returns why the final state of this task breaks its chain, or `None` if it succeeded.
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

/// Sends the messages that follow a task.
pub(super) struct FollowUpSender<'t> {
    pub(super) state: &'t WorkerState,
    pub(super) queue: &'t Queue,
    /// The task that has ended.
    pub(super) envelope: &'t Envelope,
    /// Whether an earlier run may have sent the same messages.
    pub(super) is_rerun: bool,
}

impl FollowUpSender<'_> {
    /// Sends the callbacks of a success and the next task of its chain, and returns the `children` of the
    /// result.
    ///
    /// # Errors
    /// A message could not be sent, and a retry would not help: the task fails with this failure.
    pub(super) async fn after_success(
        &self,
        canvas: &Canvas,
        result: &RawValue,
    ) -> Result<Vec<Child>, Failure> {
        let follow_ups = canvas.after_success(self.envelope, result, clock::now())?;
        self.send(follow_ups).await
    }

    /// Stores failures for the tasks that will not run now, and sends the errbacks of the task and of the
    /// chords that cannot complete. Errors are only logged: the task has already ended.
    pub(super) async fn after_failure(&self, broken: &ChainBreak) {
        let (store, envelope) = (&self.state.backends.store, self.envelope);
        let Ok(Some(canvas)) = Canvas::read(&envelope.embed) else { return };
        let now = clock::now();
        let (ChainBreak::Failed(failure) | ChainBreak::Revoked(failure)) = broken;
        let stored = canvas.unreached().into_iter().map(|id| {
            let document = Document::failure_of(&id, failure, now);
            store.store_result(StoreResult { document, reply_to: None, received: None })
        });
        for error in join_all(stored).await.into_iter().filter_map(Result::err) {
            error!(task.id = %envelope.id, "cannot store the failure of its chain: {error}");
        }
        let errbacks = match broken {
            ChainBreak::Failed(_) => canvas.after_failure(envelope, now),
            ChainBreak::Revoked(_) => Ok(FollowUps::default()),
        };
        let sent = match errbacks {
            Ok(errbacks) => self.send(errbacks).await,
            Err(failure) => Err(failure),
        };
        if let Err(failure) = sent {
            error!(task.id = %envelope.id, "cannot send an errback: {failure}");
        }
        for (body, errbacks) in canvas.after_lost_chords(envelope, now) {
            if self.is_first(&body).await
                && let Err(failure) = self.send(errbacks).await
            {
                error!(task.id = %body, "cannot send an errback of a chord: {failure}");
            }
        }
    }

    /// Returns whether this task calls the errbacks of a chord's body. Exactly one header task does; if
    /// the store cannot say which, all do.
    async fn is_first(&self, body: &TaskId) -> bool {
        let key = format!("lost-chord:{body}");
        let id = &self.envelope.id;
        let claimed = self.state.backends.store.claim_key(&key, id, CHORD_RETENTION).await;
        claimed.map_or(true, |claimed| claimed.id == *id)
    }

    async fn send(&self, follow_ups: FollowUps) -> Result<Vec<Child>, Failure> {
        let FollowUps { tasks, children } = follow_ups;
        let sent = tasks.into_iter().map(|task| self.send_one(task));
        join_all(sent).await.into_iter().collect::<Result<Vec<()>, _>>()?;
        Ok(children)
    }

    async fn send_one(&self, task: FollowUp) -> Result<(), Failure> {
        let FollowUp { mut envelope, queue: named } = task;
        let queue = named.map_or_else(|| self.route(&envelope.name), Queue::new);
        envelope.origin = Some(self.state.name.clone());
        envelope.form = self.envelope.form;
        if let Some(trace) = TraceParent::read(&self.envelope.headers) {
            trace.child().write(&mut envelope.headers);
        }
        let delay = envelope.eta.and_then(|eta| delay_until(eta, clock::now()));
        let mut message = envelope.encode();
        if self.is_rerun {
            // The worker that receives this message reads the stored result first.
            message.mark_returned();
        }
        let published = publish(self.state, message, queue, delay).await;
        published.map(drop).map_err(|error| {
            let reason =
                format!("task {} cannot be sent to follow this one: {error}", envelope.name);
            Failure::new("countersign.errors", "CannotFollow", reason)
        })
    }

    /// A task without a queue stays on the queue of its parent if this worker has a handler for it;
    /// otherwise it goes to the default queue.
    fn route(&self, name: &str) -> Queue {
        if self.state.handlers.contains_key(name) {
            return self.queue.clone();
        }
        Queue::new(self.state.config.queue.as_str())
    }
}
