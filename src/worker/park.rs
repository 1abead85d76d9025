//! Runs a handler until it has ended, or waits for decisions and is parked.
//!
//! The order is what makes it safe: the run has a claim, the wake message is confirmed, then the park
//! is stored (from here deciders see the questions), then the run keeps its slot for a short hold,
//! then the handler is dropped, and only then is its message acked.

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::broadcast;
use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::begin::{Beginning, Begun};
use super::claim::Claim;
use super::copies::first_received;
use super::detach::{Attachment, Detached, detach};
use super::handler::Answer;
use super::{Crew, execute, settle};
use crate::approval::{ApprovalId, Question};
use crate::backend::{Delivery, Parked, Parking, Queue, Recorded, Taken};
use crate::context::Context;
use crate::error::Error;
use crate::faults;
use crate::lifecycle::park::RECHECK;
use crate::protocol::{Document, Envelope, Ticket, TicketKind};

const LONGEST_WAKE: Duration = Duration::from_millis(RECHECK.unsigned_abs());
pub(super) const RETRY_PAUSE: Duration = Duration::from_millis(500);
const PARKED: &str = "the task was parked: what it spawned ends";

/// How a run came to an end.
pub(super) enum End {
    /// The handler answered.
    Answered(Answer),
    /// It waits for decisions, and holds nothing.
    Parked,
    /// Another worker has the claim. Its message is looked at again: that worker may die, too.
    Lost,
    /// The same, of a run that was parked before: the messages of its park carry the task on.
    Overtaken,
    /// It cannot be parked.
    Refused(Error),
    /// Another run of it, which took it up while this one was held, has ended it.
    Known(Document),
    /// Another task is suspended under its id, for this reason it is dead-lettered.
    Occupied(String),
}

/// What a park came to.
enum Next {
    RunOn,
    End(End),
}

/// One run that may be parked.
pub(super) struct Parkable<'r> {
    pub(super) crew: &'r Crew,
    pub(super) queue: &'r Queue,
    pub(super) context: &'r Context,
    pub(super) envelope: &'r Envelope,
    pub(super) claim: &'r mut Claim,
    pub(super) delivery: &'r mut Delivery,
    /// How long it may hold its message; `None`: to its end.
    pub(super) detach_after: Option<Duration>,
}

impl<'r> Parkable<'r> {
    /// Polls the handler to its end, and parks it whenever it waits for a decision and no step or
    /// protected section of it runs.
    pub(super) async fn drive(mut self, handler: &mut BoxFuture<'_, Answer>) -> End {
        self.context.run().desk.tell(std::mem::take(&mut self.claim.rulings));
        let mut attachment = Attachment::new(self.detach_after);
        loop {
            tokio::select! {
                biased;
                answer = &mut *handler => {
                    if attachment.is_leaving()
                        && let Some(detached) = attachment.change().await
                        && let Err(end) = self.let_go(&detached)
                    {
                        return end;
                    }
                    return End::Answered(answer);
                }
                () = self.context.run().wants_to_park(), if !attachment.is_leaving() => {}
                () = self.claim.lost() => {
                    return if self.claim.is_of_message() { self.lost() } else { End::Overtaken };
                }
                change = attachment.change() => {
                    attachment = match change.map(|detached| self.let_go(&detached)) {
                        None => Attachment::Leaving(self.detach().boxed()),
                        Some(Ok(())) => Attachment::Settled,
                        Some(Err(end)) => return end,
                    };
                    continue;
                }
            }
            if let Err(end) = self.begin().await {
                return end;
            }
            // Subscribed before the questions can be decided.
            let bell = self.crew.backends.store.decisions();
            let next = match self.park().await {
                Ok(Parked::Ready(rulings)) => {
                    let number = self.claim.number + 1;
                    self.claim.hold(self.crew, self.context.id(), number);
                    self.context.run().desk.tell(rulings);
                    Next::RunOn
                }
                Ok(Parked::Waiting(recorded, _)) => {
                    self.claim.number += 1;
                    self.claim.let_go();
                    self.hold(handler, bell, recorded).await
                }
                Ok(Parked::Behind(recorded)) => {
                    debug!("another copy of it is ahead: this one ends");
                    Next::End(self.dropped(recorded))
                }
                Err(error) => Next::End(End::Refused(error)),
            };
            if let Next::End(end) = next {
                return end;
            }
        }
    }

    fn detach(&mut self) -> impl Future<Output = Detached> + Send + use<'r> {
        let beginning = (!self.claim.has_record()).then(|| self.beginning());
        let number = self.claim.number + 1;
        self.claim.begin();
        detach(self.crew, self.queue, self.envelope, (number, beginning), self.claim.holder())
    }

    /// What it takes to claim the task, which this run does not know to be suspended.
    fn beginning(&mut self) -> Beginning<'r> {
        Beginning {
            crew: self.crew,
            queue: self.queue,
            envelope: self.envelope,
            received: first_received(self.delivery, self.envelope, self.claim),
            holder: self.claim.holder(),
        }
    }

    /// Acks the message, if the run goes on without it.
    fn let_go(&mut self, detached: &Detached) -> Result<(), End> {
        match detached {
            Detached::Held(number, recorded) => {
                info!(park = number, "runs long: it goes on without its message");
                self.claim.hold(self.crew, self.context.id(), *number);
                if self.delivery.ack_early(recorded) { Ok(()) } else { Err(End::Overtaken) }
            }
            Detached::Behind => Err(End::Overtaken),
            Detached::Elsewhere => Err(self.lost()),
            Detached::Known(document) => Err(End::Known((**document).clone())),
            Detached::Occupied(reason) => Err(End::Occupied(reason.clone())),
        }
    }

    /// The message goes back as one that may have begun: whoever takes it asks first.
    fn lost(&mut self) -> End {
        self.delivery.redelivered = true;
        End::Lost
    }

    /// A run that has no claim yet takes one: the wake message of its first park may come before
    /// the park is stored.
    async fn begin(&mut self) -> Result<(), End> {
        if self.claim.has_record() {
            return Ok(());
        }
        match self.beginning().claim().await {
            Begun::Claimed(number, lease) => {
                self.claim.keep(number, lease);
                faults::point("park begun");
                Ok(())
            }
            Begun::Over(recorded) => {
                debug!("another copy of it is ahead: this one ends");
                Err(self.dropped(recorded))
            }
            Begun::Elsewhere => {
                self.context.run().desk.close(PARKED);
                Err(self.lost())
            }
            Begun::Known(document) => {
                self.context.run().desk.close(PARKED);
                self.claim.begin();
                Err(End::Known(*document))
            }
            Begun::Occupied(reason) => {
                self.context.run().desk.close(PARKED);
                Err(End::Occupied(reason))
            }
        }
    }

    /// Sends the wake message, then stores the park.
    async fn park(&mut self) -> Result<Parked, Error> {
        let desk = &self.context.run().desk;
        let number = self.claim.number + 1;
        let questions = desk.questions();
        let alarm = desk.first_nap();
        let deadlines = questions.iter().map(|question| Duration::from_millis(question.expires_in));
        let due = deadlines.chain(alarm).chain([LONGEST_WAKE]).min().unwrap_or_default();
        send_wake(self.crew, self.queue, self.envelope, number, due).await?;
        faults::point("wake confirmed");
        let parking = Parking {
            id: self.context.id().clone(),
            number,
            digest: self.envelope.digest(),
            holder: self.claim.holder(),
            lease: self.crew.config.lease,
            message: self.envelope.encode(),
            queue: self.queue.name.clone(),
            questions,
            alarm,
            abandoned: desk.abandoned(),
        };
        let parked = store(self.crew, parking).await;
        faults::point("park stored");
        if let Parked::Waiting(_, sooner) = &parked
            && *sooner + Duration::from_secs(1) < due
        {
            // It was asked before: its deadline is nearer than that of a new question.
            send_wake(self.crew, self.queue, self.envelope, number, *sooner).await?;
        }
        Ok(parked)
    }

    /// Keeps the slot for a moment: a decision that comes meanwhile is answered at once.
    async fn hold(
        &mut self,
        handler: &mut BoxFuture<'_, Answer>,
        mut bell: broadcast::Receiver<Option<ApprovalId>>,
        recorded: Recorded,
    ) -> Next {
        let run = self.context.run();
        let questions = run.desk.questions();
        let held = async {
            sleep(self.crew.config.hold).await;
            run.idle().await;
        };
        let is_asleep = questions.is_empty();
        if (is_asleep || self.crew.config.hold.is_zero()) && run.busy() == 0 {
            info!(park = self.claim.number, questions = questions.len(), "parked");
            return Next::End(self.dropped(recorded));
        }
        tokio::select! {
            biased;
            answer = &mut *handler => return Next::End(End::Answered(answer)),
            () = rung(&mut bell, &questions) => {}
            () = held => {
                if run.desk.questions() == questions {
                    info!(park = self.claim.number, questions = questions.len(), "parked");
                    return Next::End(self.dropped(recorded));
                }
                return Next::RunOn;
            }
        }
        self.claim_back(recorded).await
    }

    /// Something was decided in the hold: this run goes on, unless another one has begun to.
    async fn claim_back(&mut self, recorded: Recorded) -> Next {
        let (id, number) = (self.context.id(), self.claim.number);
        let ticket = Ticket { kind: TicketKind::Resume, number };
        let holder = self.claim.holder();
        let lease = self.crew.config.lease;
        let digest = self.envelope.digest();
        let taken = self.crew.backends.store.take_parked(id, ticket, Some(&digest), &holder, lease);
        match taken.await {
            Ok(Taken::Claimed { number, rulings, .. }) => {
                faults::point("claimed back");
                self.claim.hold(self.crew, id, number);
                if let Some(document) = execute::known(self.crew, self.envelope).await {
                    self.context.run().desk.close(PARKED);
                    return Next::End(End::Known(document));
                }
                self.context.run().desk.tell(rulings);
                Next::RunOn
            }
            Ok(_) => Next::End(self.dropped(recorded)),
            Err(error) => {
                // Its messages carry it on, as if nobody had held it.
                warn!("cannot claim it back: {error}");
                Next::End(self.dropped(recorded))
            }
        }
    }

    fn dropped(&mut self, recorded: Recorded) -> End {
        let desk = &self.context.run().desk;
        let questions = desk.questions().into_iter().map(|question| question.id).collect();
        desk.close(PARKED);
        self.claim.parked = Some((recorded, questions));
        End::Parked
    }
}

/// Sends the message that runs a task on when nothing else does, and waits until it is confirmed.
pub(super) async fn send_wake(
    crew: &Crew,
    queue: &Queue,
    envelope: &Envelope,
    number: u64,
    due: Duration,
) -> Result<(), Error> {
    let wake = Ticket { kind: TicketKind::Wake, number }.on(envelope.encode());
    let wake = Ticket::sent(wake, crew.backends.store.clock().await?);
    let _ = settle::publish(crew, wake, queue.resume(), Some(due)).await?;
    Ok(())
}

/// Stores a park, for as long as it takes.
pub(super) async fn store(crew: &Crew, parking: Parking) -> Parked {
    loop {
        match crew.backends.store.park(parking.clone()).await {
            Ok(parked) => return parked,
            Err(error) => warn!(task.id = %parking.id, "cannot park it: {error}; trying again"),
        }
        sleep(RETRY_PAUSE).await;
    }
}

/// Completes when one of these may have been decided.
async fn rung(bell: &mut broadcast::Receiver<Option<ApprovalId>>, questions: &[Question]) {
    loop {
        match bell.recv().await {
            Ok(Some(id)) if questions.iter().all(|question| question.id != id) => {}
            Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => return,
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}
