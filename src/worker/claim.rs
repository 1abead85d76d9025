//! The right to run a task that has been parked, and what is known of its parks.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

const RETRY_PAUSE: Duration = Duration::from_millis(500);

use super::{Crew, park};
use crate::approval::{ApprovalId, Ruling};
use crate::backend::{Parking, Queue, Recorded};
use crate::protocol::{Envelope, Message, Ticket, TicketKind};
use crate::task::TaskId;

/// One delivery's claim. A task that was never parked has an empty one, which costs nothing.
#[derive(Debug, Default)]
pub(super) struct Claim {
    /// What the message said.
    ticket: Option<Ticket>,
    /// The task's last park, as far as this delivery knows; 0 before the first.
    pub(super) number: u64,
    /// What it is while the message of this delivery carries the task.
    first: u64,
    /// A name that no other delivery has, once it is needed.
    holder: Option<String>,
    lease: Option<Lease>,
    /// Somebody is about to write the task's first record for this run.
    begun: bool,
    /// What was decided before the run begins.
    pub(super) rulings: Vec<Ruling>,
    /// The proof that the task waits, and so that its message may be acked.
    pub(super) parked: Option<(Recorded, Vec<ApprovalId>)>,
}

/// A lease that is renewed until it is dropped.
#[derive(Debug)]
pub(super) struct Lease {
    lost: CancellationToken,
    renewal: JoinHandle<()>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.renewal.abort();
    }
}

impl Lease {
    /// The store has granted it.
    pub(super) fn renewed(crew: &Crew, id: &TaskId, holder: String) -> Self {
        let lost = CancellationToken::new();
        let (store, lease) = (crew.backends.store.clone(), crew.config.lease);
        let (id, told) = (id.clone(), lost.clone());
        let renewal = tokio::spawn(async move {
            loop {
                sleep(lease / 3).await;
                match store.renew_claim(&id, &holder, lease).await {
                    Ok(true) => {}
                    Ok(false) => return told.cancel(),
                    Err(error) => warn!(task.id = %id, "cannot renew its lease: {error}"),
                }
            }
        });
        Self { lost, renewal }
    }
}

impl Claim {
    pub(super) fn of(ticket: Option<Ticket>) -> Self {
        let number = ticket.map_or(0, |ticket| ticket.number);
        Self { ticket, number, first: number, ..Self::default() }
    }

    /// The message said that its task was suspended before.
    pub(super) fn came_with_ticket(&self) -> bool {
        self.ticket.is_some()
    }

    /// The task has been parked before, or was about to be.
    pub(super) fn is_of_parked(&self) -> bool {
        self.number > 0
    }

    /// The store may have a record of the task.
    pub(super) fn has_record(&self) -> bool {
        self.is_of_parked() || self.begun || self.lease.is_some()
    }

    pub(super) fn holder(&mut self) -> String {
        self.holder.get_or_insert_with(|| uuid::Uuid::new_v4().simple().to_string()).clone()
    }

    /// The store has granted it, under this number: it is renewed from now on.
    pub(super) fn hold(&mut self, crew: &Crew, id: &TaskId, number: u64) {
        self.number = number;
        self.lease = Some(Lease::renewed(crew, id, self.holder()));
    }

    /// The store has granted it to a run whose task was not suspended before.
    pub(super) fn keep(&mut self, number: u64, lease: Lease) {
        (self.number, self.first) = (number, number);
        self.lease = Some(lease);
    }

    /// The task's first record is about to be written for this run.
    pub(super) fn begin(&mut self) {
        self.begun = true;
    }

    /// Nobody runs the task any more on this claim.
    pub(super) fn let_go(&mut self) {
        self.lease = None;
    }

    /// The claim came with the message. One that was granted in a hold came with a park, whose own
    /// messages carry the task on.
    pub(super) fn is_of_message(&self) -> bool {
        self.first == self.number
    }

    /// Completes when another worker has the claim.
    pub(super) async fn lost(&self) {
        match &self.lease {
            Some(lease) => lease.lost.cancelled().await,
            None => std::future::pending().await,
        }
    }

    /// Gives it back, so that the next who has the message need not wait for the lease to end.
    pub(super) async fn release(&mut self, crew: &Crew, id: &TaskId) {
        if self.lease.take().is_some() {
            let holder = self.holder();
            if let Err(error) = crew.backends.store.release_claim(id, &holder).await {
                warn!(task.id = %id, "cannot give its claim back: {error}");
            }
        }
    }

    /// Where this delivery's message came from.
    pub(super) fn home(&self, queue: &Queue) -> Queue {
        match self.ticket {
            Some(Ticket { kind: TicketKind::Resume | TicketKind::Wake, .. }) => queue.resume(),
            _ => queue.clone(),
        }
    }

    /// A copy of the task with what this delivery's message said.
    pub(super) fn ticketed(&self, message: Message) -> Message {
        match self.ticket {
            Some(ticket) => ticket.on(message),
            None => message,
        }
    }

    /// What the message of the next attempt says, so that those of this one's parks are behind.
    pub(super) fn next_ticket(&self) -> Option<Ticket> {
        let number = self.number + 1;
        self.has_record().then_some(Ticket { kind: TicketKind::Original, number })
    }

    /// The next attempt is on its way, and is ahead of everything that this one has sent.
    pub(super) async fn pass_on(&mut self, crew: &Crew, queue: &Queue, next: &Envelope) {
        let Some(ticket) = self.next_ticket() else { return };
        self.let_go();
        let parking = Parking {
            id: next.id.clone(),
            number: ticket.number,
            digest: next.digest(),
            holder: self.holder(),
            lease: crew.config.lease,
            message: next.encode(),
            queue: queue.name.clone(),
            questions: Vec::new(),
            alarm: None,
            abandoned: Vec::new(),
        };
        let _ = park::store(crew, parking).await;
    }

    /// The task has ended: late messages of it are to find that, and its open questions go.
    pub(super) async fn end(&self, crew: &Crew, envelope: &Envelope) {
        if !self.has_record() {
            return;
        }
        let (id, digest) = (&envelope.id, envelope.digest());
        loop {
            match crew.backends.store.end_parked(id, Some(&digest)).await {
                Ok(withdrawn) if withdrawn.is_empty() => return,
                Ok(withdrawn) => {
                    return info!(task.id = %id, ?withdrawn, "ended with open questions");
                }
                Err(error) => warn!(task.id = %id, "cannot note its end: {error}; trying again"),
            }
            sleep(RETRY_PAUSE).await;
        }
    }
}
