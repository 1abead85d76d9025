//! The two records of a suspension: its wake message, which the broker confirms first, and the stored
//! suspension.

use std::time::Duration;

use tokio::time::sleep;
use tracing::warn;

use super::publish::publish_encoded;
use super::state::{STORE_RETRY_DELAY, WorkerState};
use crate::backend::{Queue, SuspendRequest, SuspendResult};
use crate::error::Error;
use crate::protocol::{Envelope, SuspendHeader, SuspendKind};
use crate::task::TaskId;

/// Returns the queue for the wake message of a suspension that is due after `due`. The message may arrive
/// later than that: a sweep resumes the task, and the message is the backstop for a store that has lost it.
pub(super) fn wake_queue(queue: &Queue, due: Duration) -> Queue {
    queue.backstop(due).unwrap_or_else(|| queue.resume())
}

/// Publishes the wake message, which resumes the task if no other message does, to the queue `to`, and waits
/// until it is confirmed.
///
/// # Errors
/// The broker refuses the message, or the store is closed.
pub(super) async fn send_wake(
    state: &WorkerState,
    to: Queue,
    envelope: &Envelope,
    number: u64,
    due: Duration,
) -> Result<(), Error> {
    let sent_at = state.store_clock.now(&*state.backends.store).await?;
    let header = SuspendHeader { kind: SuspendKind::Wake, number };
    let wake = || SuspendHeader::sent(header.on(envelope.encode()), sent_at);
    let _ = publish_encoded(state, &envelope.id, wake, to, Some(due)).await?;
    Ok(())
}

/// Stores a suspension, whose request each attempt creates anew: usually there is one attempt. Retries without
/// a limit.
pub(super) async fn store_suspension(
    state: &WorkerState,
    id: &TaskId,
    request: impl Fn() -> SuspendRequest,
) -> SuspendResult {
    loop {
        match state.backends.store.suspend(request()).await {
            Ok(result) => return result,
            Err(error) => {
                warn!(task.id = %id, "cannot suspend the task: {error}; trying again");
            }
        }
        sleep(STORE_RETRY_DELAY).await;
    }
}
