//! The claim of a run whose task is not known to be suspended: before its first suspension, and before it
//! lets its message go.

use jiff::Timestamp;
use tokio::time::sleep;
use tracing::warn;

use super::claim::Lease;
use super::park::RETRY_PAUSE;
use super::{Crew, copies, execute, resume};
use crate::backend::{Queue, Recorded, Taken};
use crate::protocol::{Document, Envelope};

/// What it takes to claim the task.
pub(super) struct Beginning<'r> {
    pub(super) crew: &'r Crew,
    pub(super) queue: &'r Queue,
    pub(super) envelope: &'r Envelope,
    /// When its message was received, if that was never delivered before and is the first of its task.
    pub(super) received: Option<Timestamp>,
    pub(super) holder: String,
}

/// What came of it.
pub(super) enum Begun {
    /// The run holds the claim. Its parks come after this number.
    Claimed(u64, Lease),
    /// Another message carries the task on, or it has ended.
    Over(Recorded),
    /// Another copy of the message has the claim.
    Elsewhere,
    /// Another copy of the message has ended the task. The run holds the claim.
    Known(Box<Document>),
    /// Another task is suspended under its id.
    Occupied(String),
}

impl Beginning<'_> {
    /// Claims the task, for as long as it takes. Cancel safe: a claim that is left behind ends with its
    /// lease.
    ///
    /// The task goes on by other messages, which take a stored result for their own: one of an earlier
    /// task with this id goes first. And the suspension that is replaced may be that of another copy of
    /// this message, which has ended in the meantime: its result is there then.
    pub(super) async fn claim(self) -> Begun {
        let Self { crew, queue, envelope, received, holder } = self;
        let (store, id, lease) = (&crew.backends.store, &envelope.id, crew.config.lease);
        let digest = envelope.digest();
        // Where no result is stored, only the record says that a copy of this message has ended.
        let starts_anew = received.is_some() || !envelope.ignore_result;
        while let Some(received) = received
            && let Err(error) = copies::take_back_older(crew, queue, envelope, received).await
        {
            warn!(task.id = %id, "cannot look for an older result of this id: {error}; trying again");
            sleep(RETRY_PAUSE).await;
        }
        let taken = loop {
            match store.begin_park(id, &digest, starts_anew, &holder, lease).await {
                Ok(taken) => break taken,
                Err(error) => {
                    warn!(task.id = %id, "cannot begin to park it: {error}; trying again")
                }
            }
            sleep(RETRY_PAUSE).await;
        };
        match taken {
            Taken::Claimed { number, .. } => match execute::known(crew, envelope).await {
                Some(document) => Begun::Known(Box::new(document)),
                None => Begun::Claimed(number, Lease::renewed(crew, id, holder)),
            },
            Taken::Over(recorded) => Begun::Over(recorded),
            Taken::Occupied(suspended) => {
                Begun::Occupied(resume::occupied(id, suspended.as_deref()))
            }
            _ => Begun::Elsewhere,
        }
    }
}
