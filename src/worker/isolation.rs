//! Isolation: quarantined tasks run in a child process of the worker. The next crash can be attributed to
//! one task alone, and no other task waits for it.
//!
//! A task that was running during two crashes is moved to `<queue>.countersign-quarantine`. The child
//! consumes only these queues, one message at a time. It ends when they have been empty for a while, or
//! when its standard input ends because its parent drains or has died. The child of another worker runs
//! the remaining messages.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::state::WorkerState;

/// How often the quarantine queues are inspected without a notification: another worker may have died
/// before its child ran the messages that it moved there.
const CHECK_INTERVAL: Duration = Duration::from_secs(30);
/// The same after a child has crashed: the broker returns its message within moments.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// A child without work ends after this time.
const IDLE_TIME: Duration = Duration::from_secs(10);

/// Starts a child whenever quarantined tasks are queued, until `stop`; the returned task completes when
/// the last child has ended. Returns `None` if this worker isolates nothing.
pub(super) fn supervise(
    state: &Arc<WorkerState>,
    stop: CancellationToken,
) -> Option<JoinHandle<()>> {
    state.child_process.as_ref()?;
    let state = Arc::clone(state);
    Some(tokio::spawn(async move {
        let Some(child) = &state.child_process else { return };
        let mut interval = Duration::ZERO;
        while !stop.is_cancelled() {
            let waiting = async {
                let _ = timeout(interval, child.moved()).await;
                has_work(&state).await
            };
            interval = match stop.run_until_cancelled(waiting).await {
                None => return,
                Some(false) => CHECK_INTERVAL,
                Some(true) => match child.run(&stop).await {
                    Ok(()) => Duration::ZERO,
                    Err(()) => RETRY_INTERVAL,
                },
            };
        }
    }))
}

/// Returns whether messages are ready in a quarantine queue that no child consumes.
async fn has_work(state: &WorkerState) -> bool {
    for (queue, _) in &state.queues {
        match state.backends.broker.inspect(&queue.quarantine().name).await {
            Ok(Some(found)) if found.ready > 0 && found.consumers == 0 => return true,
            Ok(_) => {}
            Err(error) => warn!("cannot inspect the quarantine queue of {}: {error}", queue.name),
        }
    }
    false
}

/// Completes when an isolated worker has had nothing to do for a while.
pub(super) async fn idle(state: &WorkerState) {
    let mut finished = 0;
    loop {
        sleep(IDLE_TIME).await;
        let now = state.finished.load(Ordering::Relaxed);
        if state.tasks.is_empty() && now == finished {
            return;
        }
        finished = now;
    }
}
