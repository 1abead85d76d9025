//! Messages of tasks that may have been parked: who may run them, and who sends them.

use std::sync::{Arc, Once};
use std::time::Duration;

use rand::Rng;
use serde_json::Value;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::claim::Claim;
use super::{Crew, dead_letter, execute, settle};
use crate::backend::{Deed, Delivery, Parcel, Queue, Resume, Taken};
use crate::error::{Error, Failure};
use crate::faults;
use crate::lifecycle::{Outcome, park};
use crate::protocol::{Envelope, Message, TaskDigest, Ticket, TicketKind};
use crate::task::TaskId;

/// How often the outbox and the list of open requests are looked at: a deadline is noticed within two
/// seconds.
const SWEEP: Duration = Duration::from_secs(1);
/// What only a newer worker can go on with is offered again after this long.
const NEWER_PAUSE: Duration = Duration::from_secs(5);
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// Of a wake message whose task may have ended, although nothing says so any more.
const OUTLIVED: &str = "this wake message is over 7 days old, and the store knows nothing of its task any \
    more: the task has probably ended, and its result is left as it is. If it has not, replay this message";

/// Says whether this delivery is to be run, and settles it if not. Only a message that says that
/// its task was parked, or that may have been run before, costs a question to the store.
pub(super) async fn admit(
    crew: &Arc<Crew>,
    queue: &Queue,
    delivery: Delivery,
) -> Option<(Delivery, Claim)> {
    match Ticket::read(&delivery.message) {
        Ok(None) if !delivery.redelivered => Some((delivery, Claim::of(None))),
        // Boxed, so that a task that was never parked has no room for it.
        Ok(ticket) => Box::pin(claim(crew, queue, delivery, ticket)).await,
        Err(unreadable) => {
            // The task that it names may be waiting for its true message: nobody is told.
            Box::pin(dead_letter::bury(crew, queue, delivery, &unreadable.reason, async {})).await;
            None
        }
    }
}

async fn claim(
    crew: &Arc<Crew>,
    queue: &Queue,
    mut delivery: Delivery,
    ticket: Option<Ticket>,
) -> Option<(Delivery, Claim)> {
    let mut claim = Claim::of(ticket);
    let carried = ticket.unwrap_or(Ticket { kind: TicketKind::Original, number: 0 });
    // A resume message has no arguments: it runs what the store has. An unreadable one is buried later.
    let task = match carried.kind {
        TicketKind::Resume => None,
        _ => Envelope::decode(&delivery.message, crew.config.max_arguments).ok(),
    };
    let digest = task.as_ref().map(Envelope::digest);
    faults::point("message taken");
    let Some(taken) = take(crew, &delivery, carried, digest.as_ref(), &mut claim).await else {
        drop(delivery.release());
        return None;
    };
    match taken {
        Taken::Unclaimed => Some((delivery, claim)),
        Taken::Claimed { number, message, rulings } => {
            claim.hold(crew, delivery.id(), number);
            faults::point("claimed");
            claim.rulings = rulings;
            match (message, ticket) {
                (Some(message), _) => delivery.message = claim.ticketed(*message),
                (None, Some(Ticket { kind: TicketKind::Resume, .. })) => {
                    // It has no arguments, and another message of the task has.
                    claim.release(crew, delivery.id()).await;
                    let ignored = crew.backends.store.ignore(delivery.id());
                    settle::ack(delivery, ignored);
                    return None;
                }
                (None, _) => {}
            }
            Some((delivery, claim))
        }
        Taken::Over(recorded) => {
            settle::ack(delivery, recorded);
            None
        }
        Taken::Postpone(pause) => {
            let pause = pause + Duration::from_millis(1);
            put_off(crew, queue, &claim, delivery, pause).await;
            None
        }
        Taken::Newer => {
            leave_to_newer(crew, queue, &claim, delivery).await;
            None
        }
        Taken::StateLost => {
            end_lost(crew, queue, delivery, claim).await;
            None
        }
        Taken::Ended(recorded) => {
            // Where results are stored, the one that is there, or is not, says what this message is.
            if task.is_some_and(|task| task.ignore_result) {
                settle::ack(delivery, recorded);
                return None;
            }
            Some((delivery, claim))
        }
        Taken::Occupied(suspended) => {
            let reason = occupied(delivery.id(), suspended.as_deref());
            dead_letter::bury(crew, queue, delivery, &reason, async {}).await;
            None
        }
    }
}

async fn leave_to_newer(crew: &Crew, queue: &Queue, claim: &Claim, delivery: Delivery) {
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        warn!(task.id = %delivery.id(), "a newer Countersign has parked it: left to newer workers");
    });
    put_off(crew, queue, claim, delivery, NEWER_PAUSE).await;
}

/// Why a message cannot run while another task is suspended under its id.
pub(super) fn occupied(id: &TaskId, suspended: Option<&Message>) -> String {
    let name = suspended.and_then(|message| message.headers.get("task")).and_then(Value::as_str);
    let other =
        name.map_or_else(|| "another task".to_owned(), |name| format!("another task, {name},"));
    format!(
        "{other} is suspended under the id {id}, with other arguments: wait until that one has ended \
         and replay this message, or send it under an id of its own"
    )
}

/// Asks the store for as long as it takes; `None` when the worker gives up.
async fn take(
    crew: &Crew,
    delivery: &Delivery,
    ticket: Ticket,
    digest: Option<&TaskDigest>,
    claim: &mut Claim,
) -> Option<Taken> {
    let holder = claim.holder();
    let asking = async {
        loop {
            let store = &crew.backends.store;
            let lease = crew.config.lease;
            match store.take_parked(delivery.id(), ticket, digest, &holder, lease).await {
                Ok(taken) => return taken,
                Err(error) => warn!(task.id = %delivery.id(), "cannot ask for it: {error}"),
            }
            sleep(RETRY_PAUSE).await;
        }
    };
    crew.give_up.run_until_cancelled(asking).await
}

/// The same message again, after a while.
async fn put_off(crew: &Crew, queue: &Queue, claim: &Claim, delivery: Delivery, pause: Duration) {
    let mut copy = delivery.message.clone();
    copy.strip_history();
    if delivery.redelivered {
        copy.mark_returned();
    }
    // The task has a record now: a copy of its wake message that comes late says so.
    if let Ok(Some(Ticket { kind: TicketKind::Wake, .. })) = Ticket::read(&copy)
        && let Some(now) = clock(crew).await
    {
        copy = Ticket::sent(copy, now);
    }
    settle::send_on(crew, &claim.home(queue), delivery, copy, pause, async {}).await;
}

/// The store's clock; `None` when the worker gives up.
async fn clock(crew: &Crew) -> Option<i64> {
    crew.give_up.run_until_cancelled(crew.backends.store.clock()).await?.ok()
}

/// The store has lost the park of a task: it cannot be decided any more, so it has failed. Unless its wake
/// message is so old that the task may have ended, and the note of that be gone.
async fn end_lost(crew: &Arc<Crew>, queue: &Queue, delivery: Delivery, claim: Claim) {
    match clock(crew).await.map(|now| park::is_lost(Ticket::sent_at(&delivery.message), now)) {
        Some(true) => {}
        Some(false) => return dead_letter::bury(crew, queue, delivery, OUTLIVED, async {}).await,
        None => return drop(delivery.release()),
    }
    match Envelope::decode(&delivery.message, crew.config.max_arguments) {
        Ok(mut envelope) => {
            Ticket::remove(&mut envelope.headers);
            let outcome = lost(crew, queue, &envelope).await;
            settle::settle(crew, queue, delivery, &envelope, outcome, claim).await;
        }
        Err(unreadable) => dead_letter::bury_unreadable(crew, queue, delivery, unreadable).await,
    }
}

/// It may have ended since: a run that went on without its park does.
async fn lost(crew: &Crew, queue: &Queue, envelope: &Envelope) -> Outcome {
    if let Some(document) = execute::known(crew, envelope).await {
        return Outcome::Known(document);
    }
    let id = envelope.id.clone();
    warn!(task.id = %id, "the store has lost it while it was parked");
    let deed = Deed { what: "state lost", id, queue: queue.name.clone(), by: crew.name.clone() };
    if let Err(error) = crew.backends.store.audit(deed).await {
        warn!("cannot note that a task was lost: {error}");
    }
    Outcome::Failed(Failure::state_lost())
}

/// Sends the resume messages that deciders have not sent, and those of tasks whose requests are overdue,
/// until it is stopped.
pub(super) fn sweep(crew: &Arc<Crew>, stop: CancellationToken) {
    let worker = Arc::clone(crew);
    tokio::spawn(async move {
        let sweeping = async {
            loop {
                let pause = SWEEP.mul_f64(rand::rng().random_range(0.8..1.2));
                sleep(pause).await;
                let overdue = worker.backends.store.overdue_resumes().await.unwrap_or_default();
                for resume in overdue {
                    faults::point("outbox taken");
                    match send(&worker, &resume).await {
                        Ok(()) => info!(task.id = %resume.task, "resumed from the outbox"),
                        Err(error) => warn!(task.id = %resume.task, "cannot resume it: {error}"),
                    }
                }
            }
        };
        stop.run_until_cancelled(sweeping).await;
    });
}

async fn send(crew: &Crew, resume: &Resume) -> Result<(), Error> {
    let parcel = Parcel {
        message: Ticket::resume(&resume.task, resume.number),
        queue: Queue::configured(&resume.queue, &crew.config).resume(),
        delay: None,
        timeout: crew.config.publish_timeout,
    };
    let _ = crew.backends.broker.publish(parcel).await?;
    faults::point("outbox sent");
    crew.backends.store.resume_sent(resume).await
}
