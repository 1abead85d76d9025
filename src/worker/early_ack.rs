//! Early ack: the messages of runs that may outlast the broker's consumer timeout are acked while they
//! run.
//!
//! The order is that of a suspension: the run claims the task, a wake message is confirmed, the record is
//! stored, its claim is granted, and only then is the message acked. The claim is renewed while the handler
//! runs. If the worker dies, the lease expires, and the wake message runs the task again, with its
//! journal.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::{Sleep, sleep};
use tracing::warn;

use super::first_claim::{FirstClaim, FirstClaimResult};
use super::state::{STORE_RETRY_DELAY, WorkerState};
use super::suspension::{send_wake, store_suspension};
use crate::backend::{ClaimResult, Queue, Recorded, SuspendRequest, SuspendResult};
use crate::failpoints;
use crate::protocol::{Document, Envelope, SuspendHeader, SuspendKind};

/// The progress of a run towards its early ack.
pub(super) enum EarlyAckProgress {
    /// The run keeps its message to the end, or has acked it.
    Idle,
    /// The run keeps its message until the timer fires.
    Scheduled(Pin<Box<Sleep>>),
    /// The run is about to ack its message.
    Started(BoxFuture<'static, EarlyAckResult>),
}

impl EarlyAckProgress {
    pub(super) fn new(delay: Option<Duration>) -> Self {
        delay.map_or(Self::Idle, |delay| Self::Scheduled(Box::pin(sleep(delay))))
    }

    pub(super) fn is_started(&self) -> bool {
        matches!(self, Self::Started(_))
    }

    /// Completes with `None` when the early ack is due, and with its result when it is done. Cancel
    /// safe. The caller sets the next state.
    pub(super) async fn change(&mut self) -> Option<EarlyAckResult> {
        match self {
            Self::Idle => std::future::pending().await,
            Self::Scheduled(timer) => {
                timer.await;
                None
            }
            Self::Started(started) => Some(started.await),
        }
    }
}

/// The result of [`EarlyAck::prepare`].
pub(super) enum EarlyAckResult {
    /// The claim is granted, under this number: the message may be acked.
    Granted(u64, Recorded),
    /// Another run of the task is ahead of this one.
    Superseded,
    /// Another run of the task has the claim, through a message that is as old as this one's.
    Elsewhere,
    /// Another copy of the message has ended the task.
    AlreadyEnded(Box<Document>),
    /// Another task is suspended under its id.
    Occupied(String),
}

/// A run whose message is to be acked before its end.
pub(super) struct EarlyAck {
    pub(super) state: Arc<WorkerState>,
    pub(super) queue: Queue,
    pub(super) envelope: Arc<Envelope>,
    /// The number of the new suspension, if the task has a record.
    pub(super) number: u64,
    /// Claims the task first, if it has no record.
    pub(super) first_claim: Option<FirstClaim>,
    pub(super) holder: String,
}

impl EarlyAck {
    /// Makes the run independent of the message that it was started by. Retries without a limit. If the
    /// future is dropped, at most a wake message remains; it finds the task ended, or runs it if the run
    /// was lost.
    pub(super) async fn prepare(self) -> EarlyAckResult {
        let Self { state, queue, envelope, number, first_claim, holder } = self;
        let lease = state.config.lease;
        let (number, first_lease) = match first_claim {
            Some(first_claim) => match first_claim.claim().await {
                FirstClaimResult::Claimed(number, lease) => (number + 1, Some(lease)),
                FirstClaimResult::Over(_) => return EarlyAckResult::Superseded,
                FirstClaimResult::Elsewhere => return EarlyAckResult::Elsewhere,
                FirstClaimResult::AlreadyEnded(document) => {
                    return EarlyAckResult::AlreadyEnded(document);
                }
                FirstClaimResult::Occupied(reason) => return EarlyAckResult::Occupied(reason),
            },
            None => (number, None),
        };
        failpoints::point("long run begun");
        while let Err(error) = send_wake(&state, queue.resume(), &envelope, number, lease).await {
            warn!("cannot send the wake message of a long run: {error}; trying again");
            sleep(STORE_RETRY_DELAY).await;
        }
        failpoints::point("long wake confirmed");
        let digest = envelope.digest();
        let request = || SuspendRequest {
            id: envelope.id.clone(),
            number,
            digest: digest.clone(),
            holder: holder.clone(),
            lease,
            message: envelope.encode(),
            queue: queue.name.clone(),
            requests: Vec::new(),
            alarm: None,
            abandoned: Vec::new(),
        };
        let (SuspendResult::Waiting(recorded, _) | SuspendResult::Behind(recorded)) =
            store_suspension(&state, &envelope.id, request).await
        else {
            return EarlyAckResult::Superseded;
        };
        drop(first_lease);
        failpoints::point("long run stored");
        let header = SuspendHeader { kind: SuspendKind::Wake, number };
        loop {
            let store = &state.backends.store;
            match store.claim_suspended(&envelope.id, header, Some(&digest), &holder, lease).await {
                Ok(ClaimResult::Claimed { number, result, .. }) => {
                    failpoints::point("long run claimed");
                    // Another worker that claimed the task in between may have ended it.
                    return match result {
                        None => EarlyAckResult::Granted(number, recorded),
                        Some(_) => EarlyAckResult::Superseded,
                    };
                }
                Ok(_) => return EarlyAckResult::Superseded,
                Err(error) => warn!("cannot claim a long run: {error}; trying again"),
            }
            sleep(STORE_RETRY_DELAY).await;
        }
    }
}
