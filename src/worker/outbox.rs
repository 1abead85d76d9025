//! The outbox: resume messages that are still to be sent.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::state::WorkerState;
use crate::backend::Resume;
use crate::error::Error;
use crate::failpoints;

/// How often the outbox and the list of open approval requests are checked: a deadline is noticed within
/// two seconds.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Sends the resume messages that deciders failed to send, and those of tasks whose requests are overdue,
/// until it is stopped.
pub(super) fn sweep(state: &Arc<WorkerState>, stop: CancellationToken) {
    let state = Arc::clone(state);
    tokio::spawn(async move {
        let sweeping = async {
            loop {
                let interval = SWEEP_INTERVAL.mul_f64(rand::rng().random_range(0.8..1.2));
                sleep(interval).await;
                let overdue = state.backends.store.overdue_resumes().await.unwrap_or_default();
                for resume in overdue {
                    failpoints::point("outbox read");
                    match send(&state, &resume).await {
                        Ok(()) => info!(task.id = %resume.task, "resumed from the outbox"),
                        Err(error) => {
                            warn!(task.id = %resume.task, "cannot resume the task: {error}");
                        }
                    }
                }
            }
        };
        stop.run_until_cancelled(sweeping).await;
    });
}

async fn send(state: &WorkerState, resume: &Resume) -> Result<(), Error> {
    state.client.publish_resume(resume, state.config.publish_timeout).await?;
    failpoints::point("outbox sent");
    state.backends.store.resume_sent(resume).await
}
