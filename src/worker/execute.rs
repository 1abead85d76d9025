//! Checks whether a delivered task may run, and runs it.

use std::sync::Arc;

use tracing::{Instrument, info_span, warn};

use super::attempt::{eta_delay, has_expired, times_limited, until_expiry};
use super::canvas;
use super::claim::StoredResult;
use super::concurrency_limit::Permit;
use super::handler::RegisteredHandler;
use super::limits::StartRequest;
use super::outcome::Outcome;
use super::quarantine::{self, QuarantineStatus};
use super::results::prior_result;
use super::run::HandlerRun;
use super::task_delivery::TaskDelivery;
use crate::context::Context;

/// Runs the handler of the task, if it may run at all.
pub(super) async fn execute(task: &mut TaskDelivery, permit: &mut Permit) -> Outcome {
    let state = &Arc::clone(&task.state);
    let envelope = &Arc::clone(&task.envelope);
    let is_resumed = task.claim.is_resumed();
    let is_rerun = task.delivery.redelivered || envelope.attempt > 1 || is_resumed;
    let prior = match std::mem::take(&mut task.claim.result) {
        StoredResult::Read(result) => result.map(|document| *document),
        StoredResult::Unread if is_rerun => Box::pin(prior_result(state, envelope)).await,
        StoredResult::Unread => None,
    };
    if let Some(document) = prior {
        return Outcome::AlreadyEnded(document);
    }
    if state.revoked.contains(&envelope.id) {
        return Outcome::Revoked("revoked");
    }
    if !is_resumed && has_expired(envelope) {
        return Outcome::Revoked("expired");
    }
    if let Some(delay) = eta_delay(envelope) {
        return Outcome::Postponed(delay);
    }
    let Some(handler) = state.handlers.get(envelope.name.as_str()) else {
        return Outcome::Unknown;
    };
    if let Some(failure) = canvas::refusal(envelope) {
        return Outcome::Refused(failure);
    }
    let (times_limited, max_waiting) = (times_limited(envelope), usize::from(state.prefetch / 2));
    let request = StartRequest { permit: &mut *permit, times_limited, max_waiting };
    let type_permit = match handler.limits.acquire(request).await {
        Ok(type_permit) => type_permit,
        Err(delay) => return Outcome::Limited(until_expiry(envelope, delay)),
    };
    if !is_resumed && is_repeated(task, handler).await {
        return Outcome::Repeated;
    }
    let _guard = match quarantine::check(state, &task.delivery).await {
        QuarantineStatus::Clear(guard) => guard,
        QuarantineStatus::Quarantined => return Outcome::Quarantined,
        QuarantineStatus::Poisoned(crashes) => return Outcome::Poisoned(crashes),
    };
    if task.delivery.is_stale() {
        return Outcome::Redelivered;
    }
    let cancelled = state.cancel_runs.child_token();
    let services = Arc::clone(&state.run_services);
    let context = &Context::new(Arc::clone(envelope), is_rerun, cancelled, services);
    let span = info_span!(
        "task",
        task.name = %envelope.name,
        task.id = %envelope.id,
        attempt = envelope.attempt,
        traceparent = %context.trace(),
    );
    let run = HandlerRun { task, state, handler, context, permit };
    let outcome = run.run().instrument(span).await;
    type_permit.report(&envelope.name, &outcome);
    quarantine::clear_crashes(state, &task.delivery).await;
    outcome
}

/// Returns whether another copy of this message has claimed the attempt. A redelivered message runs,
/// because it may be the copy that claimed it; if the store is unreachable, every message runs.
async fn is_repeated(task: &TaskDelivery, handler: &RegisteredHandler) -> bool {
    let TaskDelivery { state, delivery, envelope, .. } = task;
    if envelope.attempt == 1 && !handler.policy.once {
        return false;
    }
    let digest = envelope.digest();
    match state.backends.store.claim_attempt(&envelope.id, &digest, envelope.attempt).await {
        Ok(is_claimed) => !is_claimed && !delivery.redelivered,
        Err(error) => {
            warn!(task.id = %envelope.id, "cannot claim attempt {}: {error}", envelope.attempt);
            false
        }
    }
}
