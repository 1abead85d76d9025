//! From an envelope to its outcome: may it run, run it, and guard the run.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Once};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde_json::Value;
use tokio::time::sleep;
use tracing::{Instrument, debug, error, info_span, warn};

use super::claim::Claim;
use super::gate::Slot;
use super::handler::{Answer, Registered};
use super::park::{End, Parkable};
use super::suspects::{self, Standing};
use super::watchdog::Watched;
use super::{Crew, canvas, settle};
use crate::backend::{Crashes, Delivery, Queue};
use crate::clock;
use crate::context::Context;
use crate::error::Failure;
use crate::lifecycle::Outcome;
use crate::protocol::{Document, Envelope};
use crate::trace;

#[cfg(panic = "abort")]
compile_error!(
    "a worker turns a handler's panic into its task's failure: panic = \"abort\" voids that"
);

/// Why a task is revoked that was running.
const TERMINATED: &str = "terminated";
/// A run that is told to end because its task was revoked has this long.
const TERMINATION_GRACE: Duration = Duration::from_secs(2);
/// When the first attempt of a task began: travels with its retries.
pub(super) const FIRST_BEGAN: &str = "x-countersign-first-began";
/// How long the next attempt of a task is delayed, in milliseconds: travels with it.
pub(super) const RETRY_DELAY: &str = "x-countersign-retry-delay";
/// Delayed delivery brings a message to its queue at most this much too early.
const LADDER_REST: Duration = Duration::from_secs(1);
/// Two clocks may differ by this much before a task counts as expired.
const SKEW: Duration = Duration::from_secs(1);

/// Runs the handler of `envelope`, if it may run at all.
pub(super) async fn execute(
    crew: &Arc<Crew>,
    delivery: &mut Delivery,
    envelope: &Arc<Envelope>,
    slot: &Slot,
    queue: &Queue,
    claim: &mut Claim,
) -> Outcome {
    let is_resumed = claim.is_of_parked();
    let is_rerun = delivery.redelivered || envelope.attempt > 1 || is_resumed;
    if is_rerun && let Some(document) = Box::pin(known(crew, envelope)).await {
        return Outcome::Known(document);
    }
    if crew.revoked.contains(&envelope.id) {
        return Outcome::Revoked("revoked");
    }
    if !is_resumed && has_expired(envelope) {
        return Outcome::Revoked("expired");
    }
    if let Some(early) = ahead(envelope) {
        return Outcome::Postponed(early);
    }
    let Some(handler) = crew.handlers.get(envelope.name.as_str()) else {
        return Outcome::Unknown;
    };
    if let Some(failure) = canvas::refusal(envelope) {
        return Outcome::Refused(failure);
    }
    let admitted = match handler.limits.admit().await {
        Ok(admitted) => admitted,
        Err(pause) => return Outcome::Postponed(pause),
    };
    if !is_resumed && is_repeated(crew, delivery, envelope, handler).await {
        return Outcome::Repeated;
    }
    let _place = match suspects::place(crew, delivery).await {
        Standing::Innocent(place) => place,
        Standing::Quarantined => return Outcome::Quarantined,
        Standing::Convicted(Crashes { runs, alone }) => {
            return Outcome::Convicted { runs, alone };
        }
    };
    if delivery.is_stale() {
        return Outcome::TakenBack;
    }
    let ending = crew.ending.child_token();
    let context =
        Context::new(Arc::clone(envelope), is_rerun, ending, Arc::clone(&crew.surroundings));
    let span = info_span!(
        "task",
        task.name = %envelope.name,
        task.id = %envelope.id,
        attempt = envelope.attempt,
        traceparent = %context.trace(),
    );
    let context = &context;
    let running = Running { crew, handler, context, envelope, slot, queue, claim, delivery };
    let outcome = running.run().instrument(span).await;
    admitted.report(&envelope.name, &outcome);
    suspects::acquit(crew, delivery).await;
    outcome
}

/// How long it is until its ETA. A next attempt comes by delayed delivery, so hardly anything is left;
/// more if a policy of the broker made it expire early, and then it goes on for the rest. What is longer
/// than its whole delay was written by a worker whose clock is ahead, and is not waited for.
fn ahead(envelope: &Envelope) -> Option<Duration> {
    let left = settle::ahead(envelope.eta?, clock::now())?;
    let delay =
        envelope.headers.get(RETRY_DELAY).and_then(Value::as_u64).map(Duration::from_millis);
    let is_believed = left <= LADDER_REST.max(delay.unwrap_or_default());
    (is_believed || first_began(envelope).is_none()).then_some(left)
}

fn has_expired(envelope: &Envelope) -> bool {
    let late = |at: Timestamp| clock::now() > at.saturating_add(SKEW).unwrap_or(at);
    envelope.expires.is_some_and(late)
}

/// Whether another copy of this message has taken the attempt. One that was delivered before may
/// be the copy that took it, so it runs; and while the store cannot be asked, so does any.
async fn is_repeated(
    crew: &Crew,
    delivery: &Delivery,
    envelope: &Envelope,
    handler: &Registered,
) -> bool {
    if envelope.attempt == 1 && !handler.policy.once {
        return false;
    }
    let digest = envelope.digest();
    match crew.backends.store.take(&envelope.id, &digest, envelope.attempt).await {
        Ok(taken) => !taken && !delivery.redelivered,
        Err(error) => {
            warn!(task.id = %envelope.id, "cannot take attempt {}: {error}", envelope.attempt);
            false
        }
    }
}

/// The result of a run before this one. While the store is away it waits.
pub(super) async fn known(crew: &Crew, envelope: &Envelope) -> Option<Document> {
    let look = async {
        loop {
            match crew.backends.store.read(&envelope.id).await {
                Ok(document) => return document,
                Err(error) if error.is_connection() => {}
                Err(error) => {
                    warn!(task.id = %envelope.id, "what is stored is no result: {error}");
                    return None;
                }
            }
        }
    };
    let found = crew.give_up.run_until_cancelled(look).await.flatten();
    found.filter(|document| document.state.is_terminal())
}

/// A run that is about to begin.
struct Running<'r> {
    crew: &'r Crew,
    handler: &'r Registered,
    context: &'r Context,
    envelope: &'r Arc<Envelope>,
    slot: &'r Slot,
    queue: &'r Queue,
    claim: &'r mut Claim,
    delivery: &'r mut Delivery,
}

impl Running<'_> {
    async fn run(self) -> Outcome {
        let Self { crew, handler, context, envelope, slot, queue, claim, delivery } = self;
        let (soft, hard) = limits(handler, envelope);
        let grace = handler.policy.step_grace;
        let started = std::panic::catch_unwind(AssertUnwindSafe(|| {
            handler.start(context.clone(), &envelope.arguments, slot)
        }));
        let began = clock::now();
        debug!("started {} {}", envelope.name, envelope.id);
        let mut run = match started {
            Ok(Ok(run)) => {
                let watched = Watched::new(run, Arc::clone(envelope));
                trace::CURRENT.scope(place(context, envelope), watched).boxed()
            }
            Ok(Err(failure)) => return Outcome::Failed(failure),
            Err(panic) => return Outcome::Failed(panicked(panic.as_ref())),
        };
        // The broker counts from the delivery, and the message may have waited for its permit.
        let held = delivery.received.elapsed();
        let detach_after = (held.saturating_add(hard) > crew.longest_hold)
            .then(|| (crew.longest_hold / 2).saturating_sub(held));
        let parkable = Parkable { crew, queue, context, envelope, claim, delivery, detach_after };
        let outcome = tokio::select! {
            biased;
            end = AssertUnwindSafe(parkable.drive(&mut run)).catch_unwind() => match end {
                Ok(End::Answered(_)) if was_terminated(crew, context) => {
                    Outcome::Revoked(TERMINATED)
                }
                Ok(End::Answered(_)) if context.run().is_outdated() => outdated(context),
                Ok(End::Answered(answer)) => ended(crew, handler, envelope, answer, began),
                Ok(End::Parked) => Outcome::Parked,
                Ok(End::Lost) => Outcome::Postponed(crew.config.lease),
                Ok(End::Overtaken) => Outcome::Repeated,
                Ok(End::Known(document)) => Outcome::Known(document),
                Ok(End::Occupied(reason)) => Outcome::Occupied(reason),
                Ok(End::Refused(error)) if error.is_access_refused() => Outcome::Withheld,
                Ok(End::Refused(error)) => Outcome::Failed(Failure::unparkable(&error)),
                Err(panic) => Outcome::Failed(panicked(panic.as_ref())),
            },
            () = aborted(crew, context, grace) => Outcome::Released,
            () = terminated(crew, context, grace) => Outcome::Revoked(TERMINATED),
            () = time_limit(context, soft, hard, grace) => {
                warn!("stopped after its hard limit of {} s", hard.as_secs_f64());
                Outcome::Failed(Failure::time_limit_exceeded(hard))
            }
        };
        drop_guarded(run);
        context.run().over();
        if outcome.ends_its_task() && context.run().leaves_something() {
            let ended = crew.backends.store.ended(context.id(), &context.run().owner().digest);
            // A store that is closed fails the result, too.
            let _ = crew.give_up.run_until_cancelled(ended).await;
        }
        outcome
    }
}

fn place(context: &Context, envelope: &Envelope) -> trace::Place {
    let task = envelope.id.clone();
    let root = envelope.lineage.root_id.clone().unwrap_or_else(|| task.clone());
    trace::Place { trace: context.trace(), task, root }
}

/// The producer's limits go before the handler's.
fn limits(handler: &Registered, envelope: &Envelope) -> (Option<Duration>, Duration) {
    let hard = envelope.limits.hard.unwrap_or(handler.policy.hard_limit);
    let soft = envelope.limits.soft.or(handler.policy.soft_limit).filter(|soft| *soft < hard);
    (soft, hard)
}

/// Tells the run of its soft limit, and completes at its hard one.
async fn time_limit(context: &Context, soft: Option<Duration>, hard: Duration, grace: Duration) {
    if let Some(soft) = soft {
        sleep(soft).await;
        context.cancel();
    }
    sleep(hard - soft.unwrap_or_default()).await;
    context.run().cuttable(grace).await;
}

/// Completes when this run is to be cut.
async fn aborted(crew: &Crew, context: &Context, grace: Duration) {
    crew.abort.cancelled().await;
    if context.run().busy() > 0 {
        crew.protected.fetch_add(1, Ordering::Relaxed);
        context.run().cuttable(grace).await;
    }
}

/// Tells a run to end when its task is revoked, and completes when it has not ended by itself.
async fn terminated(crew: &Crew, context: &Context, grace: Duration) {
    crew.revoked.terminated(context.id()).await;
    context.cancel();
    sleep(TERMINATION_GRACE).await;
    context.run().cuttable(grace).await;
}

/// Whether the run has ended because it was told to, and its answer is wanted no more.
fn was_terminated(crew: &Crew, context: &Context) -> bool {
    context.is_cancelled() && crew.revoked.is_terminated(context.id())
}

fn ended(
    crew: &Crew,
    handler: &Registered,
    envelope: &Envelope,
    answer: Answer,
    began: Timestamp,
) -> Outcome {
    match answer {
        Ok(json) if json.get().len() > crew.config.max_result => {
            Outcome::Failed(Failure::result_too_large(json.get().len(), crew.config.max_result))
        }
        Ok(json) => Outcome::Done(json),
        Err(error) => {
            let first_began = first_began(envelope).unwrap_or(began);
            let since = Duration::try_from(clock::now().duration_since(first_began));
            let since = since.unwrap_or_default();
            let retry = &handler.policy.retry;
            match retry.pause(envelope.attempt, since, &error, rand::random()) {
                Some(pause) => Outcome::Retry { failure: error.failure, pause, first_began },
                None => Outcome::Failed(error.failure),
            }
        }
    }
}

/// A newer worker has begun this task, and is to go on with it.
fn outdated(context: &Context) -> Outcome {
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        warn!(task.id = %context.id(), "its journal was written by a newer worker: left to those");
    });
    Outcome::Outdated
}

/// What the header says that an earlier attempt left.
fn first_began(envelope: &Envelope) -> Option<Timestamp> {
    envelope.headers.get(FIRST_BEGAN).and_then(Value::as_str)?.parse().ok()
}

fn panicked(payload: &(dyn Any + Send)) -> Failure {
    let text = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned());
    error!("the handler panicked: {text}");
    Failure::new("countersign.errors", "HandlerPanicked", text)
}

/// What a handler leaves behind may panic when it is dropped.
fn drop_guarded(run: BoxFuture<'_, Answer>) {
    if let Err(panic) = std::panic::catch_unwind(AssertUnwindSafe(|| drop(run))) {
        let _ = panicked(panic.as_ref());
    }
}
