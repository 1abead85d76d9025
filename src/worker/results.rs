//! What a worker stores and reads of a task's result.

use jiff::Timestamp;
use tracing::{debug, error, warn};

use super::state::WorkerState;
use crate::backend::{AuditAction, FailedTask, Queue, StoreResult};
use crate::clock;
use crate::error::Error;
use crate::protocol::{Document, Envelope, State};

/// The number of characters of an error that a list shows.
const MAX_LISTED_ERROR: usize = 200;

/// Creates the request that stores a result. `received`: when the message was received, if it is the first
/// of its task.
pub(super) fn store_request(
    envelope: &Envelope,
    document: Document,
    received: Option<Timestamp>,
) -> StoreResult {
    StoreResult { document, reply_to: envelope.reply_to.clone(), received }
}

/// Like [`store_request`]; `None` for a task whose result is not stored.
pub(super) fn status_request(
    envelope: &Envelope,
    document: Document,
    received: Option<Timestamp>,
) -> Option<StoreResult> {
    (!envelope.ignore_result).then(|| store_request(envelope, document, received))
}

/// Stores a state that the ack does not depend on. An error is only logged.
pub(super) async fn store_status(state: &WorkerState, status: Option<StoreResult>) {
    if let Some(status) = status
        && let Err(error) = state.backends.store.store_result(status).await
    {
        error!("cannot store the task's status: {error}");
    }
}

/// Returns the result of an earlier run. Waits while the store is unreachable.
pub(super) async fn prior_result(state: &WorkerState, envelope: &Envelope) -> Option<Document> {
    let read = async {
        loop {
            match state.backends.store.read_result(&envelope.id).await {
                Ok(document) => return document,
                Err(error) if error.is_connection() => {}
                Err(error) => {
                    warn!(task.id = %envelope.id, "the stored result is unreadable: {error}");
                    return None;
                }
            }
        }
    };
    let found = state.end_waits.run_until_cancelled(read).await.flatten();
    found.filter(|document| document.state.is_terminal())
}

/// Removes the failure or revocation of an earlier task with this id, before the task, whose message was
/// received at `received`, continues by another message: that message reads the stored result, and would
/// treat the old one as its own.
pub(super) async fn remove_older_result(
    state: &WorkerState,
    queue: &Queue,
    envelope: &Envelope,
    received: Timestamp,
) -> Result<(), Error> {
    let stored = state.backends.store.read_result(&envelope.id).await?;
    let is_older = |stored: Document| {
        matches!(stored.state, State::Failure | State::Revoked)
            && stored.date_done().is_some_and(|done| done < received)
    };
    if stored.is_some_and(is_older) {
        let (id, queue, by) = (envelope.id.clone(), queue.name.clone(), state.name.clone());
        let action = AuditAction { what: AuditAction::SUPERSEDE, id, queue, by };
        state.backends.store.reopen(action, 1).await?;
    }
    Ok(())
}

/// Returns the entry that lists of failed tasks show; `None` if the task did not fail.
pub(super) fn failed_task(
    state: &WorkerState,
    queue: &Queue,
    envelope: &Envelope,
    document: &Document,
) -> Option<FailedTask> {
    (document.state == State::Failure).then(|| FailedTask {
        id: envelope.id.clone(),
        name: envelope.name.clone(),
        queue: queue.name.clone(),
        worker: state.name.clone(),
        attempt: envelope.attempt,
        error: document.failure().to_string().chars().take(MAX_LISTED_ERROR).collect(),
        at: document.date_done().unwrap_or_else(clock::now),
        has_result: !envelope.ignore_result,
    })
}

/// Adds a task to the list of failed tasks, once its result is stored. An error is only logged.
pub(super) async fn store_failed_task(state: &WorkerState, failed: FailedTask) {
    let id = failed.id.clone();
    if let Err(error) = state.backends.store.record_failure(failed).await {
        debug!(task.id = %id, "cannot add the task to the list of failed tasks: {error}");
    }
}
