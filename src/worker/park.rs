//! Runs a handler until it has ended, or waits for decisions and is parked.
//!
//! The order is what makes it safe: the wake message is confirmed, then the park is stored (from
//! here deciders see the questions), then the run keeps its slot for a short hold, then the handler
//! is dropped, and only then is its message acked.

use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::broadcast;
use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::claim::Claim;
use super::handler::Answer;
use super::{Crew, settle};
use crate::approval::{ApprovalId, Question};
use crate::backend::{Parked, Parking, Queue, Recorded, Taken};
use crate::context::Context;
use crate::error::Error;
use crate::lifecycle::park::RECHECK;
use crate::protocol::{Envelope, Ticket, TicketKind};

const LONGEST_WAKE: Duration = Duration::from_millis(RECHECK.unsigned_abs());
const RETRY_PAUSE: Duration = Duration::from_millis(500);
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
}

impl Parkable<'_> {
    /// Polls the handler to its end, and parks it whenever it waits for a decision and no step or
    /// protected section of it runs.
    pub(super) async fn drive(mut self, handler: &mut BoxFuture<'_, Answer>) -> End {
        self.context.run().desk.tell(std::mem::take(&mut self.claim.rulings));
        loop {
            tokio::select! {
                biased;
                answer = &mut *handler => return End::Answered(answer),
                () = self.context.run().wants_to_park() => {}
                () = self.claim.lost() => {
                    return if self.claim.is_of_message() { End::Lost } else { End::Overtaken };
                }
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

    /// Sends the wake message, then stores the park.
    async fn park(&mut self) -> Result<Parked, Error> {
        let desk = &self.context.run().desk;
        let questions = desk.questions();
        let soonest = questions.iter().map(|question| question.expires_in).min();
        let due = Duration::from_millis(soonest.unwrap_or_default()).min(LONGEST_WAKE);
        self.send_wake(due).await?;
        let parking = Parking {
            id: self.context.id().clone(),
            number: self.claim.number + 1,
            holder: self.claim.holder(),
            lease: self.crew.config.lease,
            message: self.envelope.encode(),
            queue: self.queue.name.clone(),
            questions,
            abandoned: desk.abandoned(),
        };
        let parked = store(self.crew, parking).await;
        if let Parked::Waiting(_, sooner) = &parked
            && *sooner + Duration::from_secs(1) < due
        {
            // It was asked before: its deadline is nearer than that of a new question.
            self.send_wake(*sooner).await?;
        }
        Ok(parked)
    }

    async fn send_wake(&self, due: Duration) -> Result<(), Error> {
        let number = self.claim.number + 1;
        let wake = Ticket { kind: TicketKind::Wake, number }.on(self.envelope.encode());
        let _ = settle::publish(self.crew, wake, self.queue.resume(), Some(due)).await?;
        Ok(())
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
        if self.crew.config.hold.is_zero() && run.busy() == 0 {
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
        match self.crew.backends.store.take_parked(id, ticket, &holder, lease).await {
            Ok(Taken::Claimed { number, rulings, .. }) => {
                self.claim.hold(self.crew, id, number);
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
