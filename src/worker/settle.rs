//! From an outcome to a durable effect, and then the ack. The only place that settles.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::time::sleep;
use tracing::{debug, error, info, warn};

use super::canvas::Broken;
use super::claim::Claim;
use super::copies::{self, first_received, give_back, supersede};
use super::dead_letter::{HEADER_ROOM, bury, bury_task};
use super::execute::{FIRST_BEGAN, RETRY_DELAY};
use super::{Crew, canvas, suspects, unsettled};
use crate::backend::{Crashes, Delivery, Finish, Parcel, Queue, Recorded};
use crate::clock;
use crate::error::{Error, Failure};
use crate::faults;
use crate::lifecycle::Outcome;
use crate::protocol::{Attempt, Canvas, Document, Envelope, History, Message, UNKNOWN_SINCE};
use crate::task::TaskId;

const UNKNOWN_PAUSE: Duration = Duration::from_secs(1);
/// What only a newer worker can go on with is offered again after this long.
const OUTDATED_PAUSE: Duration = Duration::from_secs(1);
const RETRY_CEILING: Duration = Duration::from_secs(5);

/// A task due within this is started at once.
const PROMPT: Duration = Duration::from_millis(20);

/// Makes `outcome` durable, then acks; or gives the delivery back.
pub(super) async fn settle(
    crew: &Arc<Crew>,
    queue: &Queue,
    delivery: Delivery,
    envelope: &Envelope,
    outcome: Outcome,
    claim: Claim,
) {
    match outcome {
        Outcome::Done(json) => succeed(crew, queue, delivery, envelope, &json, &claim).await,
        // Boxed, as every rare way is: what a task may need takes room from when it is spawned.
        other => Box::pin(settle_undone(crew, queue, delivery, envelope, other, claim)).await,
    }
}

async fn settle_undone(
    crew: &Arc<Crew>,
    queue: &Queue,
    delivery: Delivery,
    envelope: &Envelope,
    outcome: Outcome,
    mut claim: Claim,
) {
    let now = clock::now();
    match outcome {
        Outcome::Done(json) => succeed(crew, queue, delivery, envelope, &json, &claim).await,
        Outcome::Failed(failure) => fail(crew, queue, delivery, envelope, &failure, &claim).await,
        Outcome::Retry { failure, pause, first_began } => {
            supersede(crew, queue, &delivery, envelope, &claim).await;
            let mut next = next_attempt(envelope, pause, first_began, now);
            note_attempt(&mut next, &delivery, crew, &failure, now);
            let told = Document::retry(envelope, &failure, now);
            info!(task.name = %envelope.name, task.id = %envelope.id, "retry in {pause:?}: {failure}");
            try_again(crew, queue, delivery, next, pause, told, claim).await;
        }
        Outcome::Postponed(pause) => {
            supersede(crew, queue, &delivery, envelope, &claim).await;
            let message = again(envelope);
            postpone(crew, queue, delivery, message, pause, claim).await;
        }
        Outcome::Outdated => {
            let message = again(envelope);
            postpone(crew, queue, delivery, message, OUTDATED_PAUSE, claim).await;
        }
        Outcome::Parked => wait(crew, delivery, envelope, claim).await,
        Outcome::Revoked(reason) => {
            let document = Document::revoked(envelope, reason, now);
            record(crew, queue, delivery, envelope, document, &claim).await;
        }
        // The run before may have ended between its failure and what follows that.
        Outcome::Known(document) => record(crew, queue, delivery, envelope, document, &claim).await,
        Outcome::Repeated => {
            info!(task.id = %envelope.id, "another copy of it runs, or has run: not run again");
            ack(delivery, crew.backends.store.ignore(&envelope.id));
        }
        // Waiters for this id wait for the other task.
        Outcome::Occupied(reason) => bury(crew, queue, delivery, &reason, async {}).await,
        Outcome::Refused(failure) => {
            bury_task(crew, queue, delivery, envelope, &failure.message(), &failure, &claim).await;
        }
        Outcome::Convicted { runs, alone } => {
            let crashes = Crashes { runs, alone };
            convict(crew, queue, delivery, envelope, crashes, &claim).await;
        }
        Outcome::Quarantined => quarantine(crew, queue, delivery, claim).await,
        Outcome::Unknown => unknown(crew, queue, delivery, envelope, claim).await,
        Outcome::Withheld => {
            claim.release(crew, &envelope.id).await;
            unsettled::withhold(crew, delivery);
        }
        Outcome::TakenBack => {
            info!(task.id = %envelope.id, "not started: the broker has taken its message back");
            claim.release(crew, &envelope.id).await;
        }
        Outcome::Released => {
            supersede(crew, queue, &delivery, envelope, &claim).await;
            abandon(crew, &envelope.id);
            claim.release(crew, &envelope.id).await;
            give_back(crew, &claim.home(queue), delivery).await;
        }
    }
}

/// Moves a task to where the process for quarantined tasks takes it.
async fn quarantine(crew: &Crew, queue: &Queue, delivery: Delivery, mut claim: Claim) {
    claim.release(crew, delivery.id()).await;
    copies::replace(crew, queue, &queue.quarantine(), delivery).await;
    if let Some(isolation) = &crew.isolation {
        isolation.wake();
    }
}

/// A poison task: into the dead letters, and it has failed.
async fn convict(
    crew: &Arc<Crew>,
    queue: &Queue,
    mut delivery: Delivery,
    envelope: &Envelope,
    Crashes { runs, alone }: Crashes,
    claim: &Claim,
) {
    let failure = Failure::worker_lost(runs, alone);
    suspects::acquit(crew, &delivery).await;
    let lost = Attempt::failed(envelope.attempt, &failure, clock::now(), None);
    History::add(&mut delivery.message.headers, lost);
    bury_task(crew, queue, delivery, envelope, &failure.message(), &failure, claim).await;
}

/// A task without a handler here: sent on while another worker may have one, else a dead letter.
async fn unknown(
    crew: &Crew,
    queue: &Queue,
    delivery: Delivery,
    envelope: &Envelope,
    claim: Claim,
) {
    if let Some(later) = grace(crew, envelope, clock::now()) {
        let pause = UNKNOWN_PAUSE.mul_f64(0.5 + rand::random::<f64>());
        supersede(crew, queue, &delivery, envelope, &claim).await;
        return postpone(crew, queue, delivery, again(&later), pause, claim).await;
    }
    let failure = Failure::not_registered(&envelope.name);
    let reason = format!("no handler for {}", envelope.name);
    bury_task(crew, queue, delivery, envelope, &reason, &failure, &claim).await;
}

/// How long it is until `eta`, if that is worth a detour. The ladder rounds up to its lowest level.
pub(super) fn ahead(eta: Timestamp, now: Timestamp) -> Option<Duration> {
    Duration::try_from(eta.duration_since(now)).ok().filter(|ahead| *ahead > PROMPT)
}

/// Sends the next attempt, and says why there is one.
async fn try_again(
    crew: &Crew,
    queue: &Queue,
    delivery: Delivery,
    next: Envelope,
    pause: Duration,
    told: Document,
    mut claim: Claim,
) {
    let message = next.encode();
    let message = match claim.next_ticket() {
        Some(ticket) => ticket.on(message),
        None => message,
    };
    let told = (!next.ignore_result).then(|| finish(&next, told, None));
    let beside = async {
        tell(crew, told).await;
        claim.pass_on(crew, queue, &next).await;
    };
    send_on(crew, queue, delivery, message, pause, beside).await;
}

/// Says that it waits for decisions, then acks: its park is stored.
async fn wait(crew: &Crew, delivery: Delivery, envelope: &Envelope, claim: Claim) {
    let Some((recorded, questions)) = claim.parked else { return release(crew, delivery) };
    let document = Document::parked(envelope, &questions, clock::now());
    let told = (!envelope.ignore_result).then(|| finish(envelope, document, None));
    match crew.give_up.run_until_cancelled(tell(crew, told)).await {
        Some(()) => {
            faults::point("park told");
            ack(delivery, recorded);
        }
        None => release(crew, delivery),
    }
}

/// Sends what is to follow, then stores the answer, then acks.
async fn succeed(
    crew: &Crew,
    queue: &Queue,
    delivery: Delivery,
    envelope: &Envelope,
    answer: &RawValue,
    claim: &Claim,
) {
    let mut children = Vec::new();
    let is_rerun = first_received(&delivery, envelope, claim).is_none();
    if let Ok(Some(canvas)) = Canvas::read(&envelope.embed) {
        let sent =
            Box::pin(canvas::after_success(crew, queue, envelope, &canvas, answer, is_rerun));
        match crew.give_up.run_until_cancelled(sent).await {
            Some(Ok(sent)) => children = sent,
            Some(Err(failure)) => {
                let failed = fail(crew, queue, delivery, envelope, &failure, claim);
                return Box::pin(failed).await;
            }
            None => return release(crew, delivery),
        }
    }
    let document = Document::success(envelope, answer, &children, clock::now());
    record(crew, queue, delivery, envelope, document, claim).await;
}

async fn fail(
    crew: &Crew,
    queue: &Queue,
    delivery: Delivery,
    envelope: &Envelope,
    failure: &Failure,
    claim: &Claim,
) {
    warn!(
        task.id = %envelope.id, task.name = %envelope.name, attempt = envelope.attempt,
        error = %failure, "task failed"
    );
    let document = Document::failed(envelope, failure, clock::now());
    record(crew, queue, delivery, envelope, document, claim).await;
}

/// Stores how a task ended, does what follows if it has not succeeded, then acks.
async fn record(
    crew: &Crew,
    queue: &Queue,
    delivery: Delivery,
    envelope: &Envelope,
    document: Document,
    claim: &Claim,
) {
    let received = first_received(&delivery, envelope, claim);
    let broken = Broken::by(&document);
    let effects = async {
        faults::point("handler ran");
        let recorded = if envelope.ignore_result {
            Ok(crew.backends.store.ignore(&envelope.id))
        } else {
            crew.backends.store.finish(finish(envelope, document, received)).await
        };
        faults::point("result stored");
        if let Some(broken) = &broken {
            Box::pin(canvas::after_failure(crew, queue, envelope, broken, received.is_none()))
                .await;
        }
        if claim.has_record() {
            Box::pin(claim.end(crew, envelope)).await;
        }
        faults::point("park ended");
        recorded
    };
    match crew.give_up.run_until_cancelled(effects).await {
        Some(Ok(recorded)) => ack(delivery, recorded),
        Some(Err(error)) => {
            error!(task.id = %envelope.id, "the result cannot be stored: {error}");
            let reason = format!("result cannot be stored: {error}");
            Box::pin(bury(crew, queue, delivery, &reason, async {})).await;
        }
        None => release(crew, delivery),
    }
}

/// An unknown task within its grace, to be looked at again: another worker may know it by then.
fn grace(crew: &Crew, envelope: &Envelope, now: Timestamp) -> Option<Envelope> {
    let since = envelope.headers.get(UNKNOWN_SINCE).and_then(Value::as_str);
    let since = since.and_then(|text| text.parse::<Timestamp>().ok()).unwrap_or(now);
    let waited = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    if waited >= crew.unknown_grace {
        return None;
    }
    let mut later = envelope.clone();
    later.headers.insert(UNKNOWN_SINCE.into(), Value::String(since.to_string()));
    Some(later)
}

/// The same attempt again. Marked: should this delivery come again, too, whichever is later finds the
/// result of the other.
fn again(envelope: &Envelope) -> Message {
    let mut message = envelope.encode();
    message.mark_returned();
    message
}

/// The same task again, `pause` from now.
fn next_attempt(
    envelope: &Envelope,
    pause: Duration,
    first_began: Timestamp,
    now: Timestamp,
) -> Envelope {
    let mut next = envelope.clone();
    next.attempt = envelope.attempt.saturating_add(1);
    next.eta = now.saturating_add(pause).ok();
    next.lineage.parent_id = Some(envelope.id.clone());
    next.headers.insert(FIRST_BEGAN.into(), Value::String(first_began.to_string()));
    let delay = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
    next.headers.insert(RETRY_DELAY.into(), Value::from(delay));
    next
}

/// Says in the next attempt how this one failed, if its headers have room for that.
fn note_attempt(
    next: &mut Envelope,
    delivery: &Delivery,
    crew: &Crew,
    failure: &Failure,
    now: Timestamp,
) {
    if delivery.message.header_bytes() < HEADER_ROOM {
        let number = next.attempt.saturating_sub(1);
        let failed = Attempt::failed(number, failure, now, Some(&crew.name));
        History::add(&mut next.headers, failed);
    }
}

/// Sends the same attempt again, `pause` from now, under the ticket that it came by.
async fn postpone(
    crew: &Crew,
    queue: &Queue,
    delivery: Delivery,
    message: Message,
    pause: Duration,
    mut claim: Claim,
) {
    let (message, home, id) = (claim.ticketed(message), claim.home(queue), delivery.id().clone());
    let beside = claim.release(crew, &id);
    send_on(crew, &home, delivery, message, pause, beside).await;
}

/// Sends a copy on its way through the delay ladder, tells the waiters, then acks: the next attempt
/// is confirmed before this one is gone.
pub(super) async fn send_on(
    crew: &Crew,
    queue: &Queue,
    delivery: Delivery,
    message: Message,
    pause: Duration,
    beside: impl Future<Output = ()>,
) {
    let copy = message.clone();
    let effects = async {
        let recorded = publish(crew, message, queue.clone(), Some(pause)).await;
        if recorded.is_ok() {
            faults::point("copy sent");
            beside.await;
        }
        recorded
    };
    match crew.give_up.run_until_cancelled(effects).await {
        Some(Ok(recorded)) => ack(delivery, recorded),
        Some(Err(error)) if error.is_access_refused() => {
            unsettled::keep(crew, delivery, copy, queue.clone(), Some(pause));
        }
        Some(Err(error)) => {
            let reason = format!("it cannot be sent again: {error}");
            bury(crew, queue, delivery, &reason, async {}).await;
        }
        None => release(crew, delivery),
    }
}

/// Stores what is beside the ack: if it cannot be stored, that is logged.
pub(super) async fn tell(crew: &Crew, told: Option<Finish>) {
    if let Some(finish) = told
        && let Err(error) = crew.backends.store.finish(finish).await
    {
        error!("what became of a task cannot be stored: {error}");
    }
}

/// Publishes until the broker has confirmed.
///
/// # Errors
/// The message is refused for what it is, or the broker's user may not do what it takes.
pub(super) async fn publish(
    crew: &Crew,
    message: Message,
    queue: Queue,
    delay: Option<Duration>,
) -> Result<Recorded, Error> {
    let mut backoff = Duration::from_millis(100);
    loop {
        let parcel = Parcel {
            message: message.clone(),
            queue: queue.clone(),
            delay,
            timeout: crew.config.publish_timeout,
        };
        match crew.backends.broker.publish(parcel).await {
            Ok(recorded) => return Ok(recorded),
            Err(error) if error.is_refusal() || error.is_access_refused() => return Err(error),
            Err(error) => warn!(task.id = %message.id, "{error}; trying again"),
        }
        sleep(backoff.mul_f64(rand::random())).await;
        backoff = (backoff * 2).min(RETRY_CEILING);
    }
}

pub(super) fn finish(
    envelope: &Envelope,
    document: Document,
    received: Option<Timestamp>,
) -> Finish {
    Finish { document, reply_to: envelope.reply_to.clone(), received }
}

pub(super) fn ack(delivery: Delivery, recorded: Recorded) {
    match delivery.ack(recorded) {
        Ok(_settled) => {}
        Err(delivery) => {
            error!(task.id = %delivery.id(), "a proof of another task was offered for this one");
            let _ = delivery.release();
        }
    }
}

/// It was started, and will be again.
pub(super) fn release(crew: &Crew, delivery: Delivery) {
    abandon(crew, delivery.id());
    let _ = delivery.release();
}

fn abandon(crew: &Crew, id: &TaskId) {
    debug!(task.id = %id, "given back");
    crew.abandoned.lock().unwrap_or_else(PoisonError::into_inner).push(id.clone());
}
