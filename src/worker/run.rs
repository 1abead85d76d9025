//! Runs the handler of a task, and enforces the limits of the run.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Once};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::time::sleep;
use tracing::{debug, warn};

use super::attempt::first_attempt_at;
use super::concurrency_limit::Permit;
use super::handler::{HandlerResult, RegisteredHandler};
use super::outcome::Outcome;
use super::state::WorkerState;
use super::suspend::{RunEnd, SuspendableRun};
use super::task_delivery::TaskDelivery;
use super::watchdog::Watched;
use super::{middleware, panics};
use crate::clock;
use crate::context::Context;
use crate::error::Failure;
use crate::protocol::Envelope;
use crate::trace;

#[cfg(panic = "abort")]
compile_error!(
    "a worker turns a handler's panic into its task's failure: panic = \"abort\" voids that"
);

/// The reason of a task that is revoked while it runs.
const TERMINATED: &str = "terminated";
/// The time that a run has to end after it is cancelled because its task was revoked.
const TERMINATION_GRACE: Duration = Duration::from_secs(2);

/// A run that is about to begin.
pub(super) struct HandlerRun<'r> {
    pub(super) task: &'r mut TaskDelivery,
    pub(super) state: &'r WorkerState,
    pub(super) handler: &'r RegisteredHandler,
    pub(super) context: &'r Context,
    pub(super) permit: &'r Permit,
}

impl HandlerRun<'_> {
    /// Runs the handler under its limits and a panic guard, and returns the outcome.
    pub(super) async fn run(self) -> Outcome {
        let Self { task, state, handler, context, permit } = self;
        let envelope = &Arc::clone(&task.envelope);
        let (soft, hard) = limits(handler, envelope);
        let grace = handler.policy.step_grace;
        let started = std::panic::catch_unwind(AssertUnwindSafe(|| {
            middleware::start(&state.middlewares, handler, context.clone(), permit)
        }));
        let began = clock::now();
        let in_progress = state.runs.begin(envelope, &task.queue, began);
        debug!("started {} {}", envelope.name, envelope.id);
        let mut run = match started {
            Ok(Ok(run)) => {
                let watched = Watched::new(run, Arc::clone(envelope));
                trace::CURRENT.scope(trace_scope(context, envelope), watched).boxed()
            }
            Ok(Err(failure)) => return Outcome::Failed(failure),
            Err(panic) => return Outcome::Failed(panics::failure(panic.as_ref())),
        };
        // The broker counts from the delivery, and the message may have waited for its permit.
        let age = task.delivery.received.elapsed();
        let early_ack_after = (age.saturating_add(hard) > state.max_unsettled)
            .then(|| (state.max_unsettled / 2).saturating_sub(age));
        let suspendable = SuspendableRun { task, context, early_ack_after };
        let outcome = tokio::select! {
            biased;
            end = AssertUnwindSafe(suspendable.run(&mut run)).catch_unwind() => match end {
                Ok(RunEnd::Returned(_)) if was_terminated(state, context) => {
                    Outcome::Revoked(TERMINATED)
                }
                Ok(RunEnd::Returned(_)) if context.run().is_outdated() => outdated(context),
                Ok(RunEnd::Returned(result)) => returned(state, handler, envelope, result, began),
                Ok(RunEnd::Suspended { recorded, requests }) => {
                    Outcome::Suspended { recorded, requests }
                }
                Ok(RunEnd::ClaimedElsewhere) => Outcome::Postponed(state.config.lease),
                Ok(RunEnd::Superseded) => Outcome::Repeated,
                Ok(RunEnd::AlreadyEnded(document)) => Outcome::AlreadyEnded(document),
                Ok(RunEnd::Occupied(reason)) => Outcome::Occupied(reason),
                Ok(RunEnd::Refused(error)) if error.is_access_refused() => {
                    Outcome::SuspensionRefused
                }
                Ok(RunEnd::Refused(error)) => Outcome::Failed(Failure::cannot_suspend(&error)),
                Err(panic) => Outcome::Failed(panics::failure(panic.as_ref())),
            },
            () = dropped_by_drain(state, context, grace) => Outcome::Released,
            () = terminated(state, context, grace) => Outcome::Revoked(TERMINATED),
            () = time_limit(context, soft, hard, grace) => {
                warn!("stopped after its hard limit of {} s", hard.as_secs_f64());
                Outcome::Failed(Failure::time_limit_exceeded(hard))
            }
        };
        drop_guarded(run);
        in_progress.end().await;
        context.run().set_over();
        if outcome.ends_its_task() && context.run().has_stored_data() {
            let ended =
                state.backends.store.end_history(context.id(), &context.run().owner().digest);
            // If the store is closed, storing the result fails too.
            let _ = state.end_waits.run_until_cancelled(ended).await;
        }
        outcome
    }
}

fn trace_scope(context: &Context, envelope: &Envelope) -> trace::TraceScope {
    let task = envelope.id.clone();
    let root = envelope.lineage.root_id.clone().unwrap_or_else(|| task.clone());
    trace::TraceScope { trace: context.trace(), task, root }
}

/// The producer's limits take precedence over the handler's.
fn limits(handler: &RegisteredHandler, envelope: &Envelope) -> (Option<Duration>, Duration) {
    let hard = envelope.limits.hard.unwrap_or(handler.policy.hard_limit);
    let soft = envelope.limits.soft.or(handler.policy.soft_limit).filter(|soft| *soft < hard);
    (soft, hard)
}

/// Cancels the run at its soft limit, and completes at its hard limit.
async fn time_limit(context: &Context, soft: Option<Duration>, hard: Duration, grace: Duration) {
    if let Some(soft) = soft {
        sleep(soft).await;
        context.cancel();
    }
    sleep(hard - soft.unwrap_or_default()).await;
    context.run().can_be_dropped(grace).await;
}

/// Completes when this run must be dropped because of a shutdown.
async fn dropped_by_drain(state: &WorkerState, context: &Context, grace: Duration) {
    state.drop_runs.cancelled().await;
    if context.run().critical_sections() > 0 {
        state.protected.fetch_add(1, Ordering::Relaxed);
        context.run().can_be_dropped(grace).await;
    }
}

/// Cancels the run when its task is revoked, and completes if it has not ended by itself in time.
async fn terminated(state: &WorkerState, context: &Context, grace: Duration) {
    state.revoked.terminated(context.id()).await;
    context.cancel();
    sleep(TERMINATION_GRACE).await;
    context.run().can_be_dropped(grace).await;
}

/// Returns whether the run ended because its task was revoked; its result is then discarded.
fn was_terminated(state: &WorkerState, context: &Context) -> bool {
    context.is_cancelled() && state.revoked.is_terminated(context.id())
}

fn returned(
    state: &WorkerState,
    handler: &RegisteredHandler,
    envelope: &Envelope,
    result: HandlerResult,
    began: Timestamp,
) -> Outcome {
    match result {
        Ok(json) if json.get().len() > state.config.max_result => {
            Outcome::Failed(Failure::result_too_large(json.get().len(), state.config.max_result))
        }
        Ok(json) => Outcome::Done(json),
        Err(error) => {
            let first_attempt_at = first_attempt_at(envelope).unwrap_or(began);
            let since = Duration::try_from(clock::now().duration_since(first_attempt_at));
            let since = since.unwrap_or_default();
            let retry = &handler.policy.retry;
            match retry.next_delay(envelope.attempt, since, &error, rand::random()) {
                Some(delay) => Outcome::Retry { failure: error.failure, delay, first_attempt_at },
                None => Outcome::Failed(error.failure),
            }
        }
    }
}

/// Returns the outcome of a task that a newer worker has begun: it is left to newer workers.
fn outdated(context: &Context) -> Outcome {
    static LOGGED: Once = Once::new();
    LOGGED.call_once(|| {
        warn!(
            task.id = %context.id(),
            "a newer worker has written the task's journal: requeueing the task for newer workers"
        );
    });
    Outcome::Outdated
}

/// Drops the future of a run. Values that the handler owns may panic on drop.
fn drop_guarded(run: BoxFuture<'_, HandlerResult>) {
    if let Err(panic) = std::panic::catch_unwind(AssertUnwindSafe(|| drop(run))) {
        let _ = panics::failure(panic.as_ref());
    }
}
