//! Runs that may outlast the broker's patience: their messages are acked while they run.
//!
//! The order is that of a park: the run has a claim, a wake message is confirmed, the record is
//! stored, its claim is taken, and only then is the message acked. The claim is renewed while the
//! handler runs; when its worker dies, the lease ends, and the wake message runs the task again, with
//! its journal.

use std::pin::Pin;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::{Sleep, sleep};
use tracing::warn;

use super::begin::{Beginning, Begun};
use super::{Crew, execute, park};
use crate::backend::{Parked, Parking, Queue, Recorded, Taken};
use crate::faults;
use crate::protocol::{Document, Envelope, Ticket, TicketKind};

/// How a run stands with the message that it came with.
pub(super) enum Attachment<'r> {
    /// It holds it to its end, or has let it go.
    Settled,
    /// It holds it until then.
    Until(Pin<Box<Sleep>>),
    /// It is about to let it go.
    Leaving(BoxFuture<'r, Detached>),
}

impl Attachment<'_> {
    pub(super) fn new(detach_after: Option<Duration>) -> Self {
        detach_after.map_or(Self::Settled, |time| Self::Until(Box::pin(sleep(time))))
    }

    pub(super) fn is_leaving(&self) -> bool {
        matches!(self, Self::Leaving(_))
    }

    /// Completes with `None` when it is time to let go, and when that is done. Cancel safe. What
    /// follows sets it anew.
    pub(super) async fn change(&mut self) -> Option<Detached> {
        match self {
            Self::Settled => std::future::pending().await,
            Self::Until(timer) => {
                timer.await;
                None
            }
            Self::Leaving(leaving) => Some(leaving.await),
        }
    }
}

/// What the message of a run is traded for.
pub(super) enum Detached {
    /// The claim is granted, under this number: the message may be acked.
    Held(u64, Recorded),
    /// Another run of the task is ahead of this one.
    Behind,
    /// Another run of the task has the claim, by a message that is as old as this one's.
    Elsewhere,
    /// Another copy of the message has ended the task.
    Known(Box<Document>),
    /// Another task is suspended under its id.
    Occupied(String),
}

/// Makes a run independent of the message that it came with. Tries for as long as it takes; dropped,
/// it leaves at most a wake message that finds the task ended, or runs it when it is lost.
pub(super) async fn detach(
    crew: &Crew,
    queue: &Queue,
    envelope: &Envelope,
    (number, beginning): (u64, Option<Beginning<'_>>),
    holder: String,
) -> Detached {
    let lease = crew.config.lease;
    let (number, begun) = match beginning {
        Some(beginning) => match beginning.claim().await {
            Begun::Claimed(number, lease) => (number + 1, Some(lease)),
            Begun::Over(_) => return Detached::Behind,
            Begun::Elsewhere => return Detached::Elsewhere,
            Begun::Known(document) => return Detached::Known(document),
            Begun::Occupied(reason) => return Detached::Occupied(reason),
        },
        None => (number, None),
    };
    faults::point("long run begun");
    while let Err(error) = park::send_wake(crew, queue, envelope, number, lease).await {
        warn!("cannot make a long run safe: {error}; trying again");
        sleep(park::RETRY_PAUSE).await;
    }
    faults::point("long wake confirmed");
    let digest = envelope.digest();
    let parking = Parking {
        id: envelope.id.clone(),
        number,
        digest: digest.clone(),
        holder: holder.clone(),
        lease,
        message: envelope.encode(),
        queue: queue.name.clone(),
        questions: Vec::new(),
        alarm: None,
        abandoned: Vec::new(),
    };
    let (Parked::Waiting(recorded, _) | Parked::Behind(recorded)) =
        park::store(crew, parking).await
    else {
        return Detached::Behind;
    };
    drop(begun);
    faults::point("long run stored");
    let ticket = Ticket { kind: TicketKind::Wake, number };
    loop {
        let store = &crew.backends.store;
        match store.take_parked(&envelope.id, ticket, Some(&digest), &holder, lease).await {
            Ok(Taken::Claimed { number, .. }) => {
                faults::point("long run claimed");
                // Whoever took the task up in between may have ended it.
                return match execute::known(crew, envelope).await {
                    None => Detached::Held(number, recorded),
                    Some(_) => Detached::Behind,
                };
            }
            Ok(_) => return Detached::Behind,
            Err(error) => warn!("cannot claim a long run: {error}; trying again"),
        }
        sleep(park::RETRY_PAUSE).await;
    }
}
