//! Runs a handler until it ends, or suspends it while it waits for decisions.
//!
//! The order makes this safe: the run claims the task; the wake message is confirmed; the suspension is
//! stored (from here on deciders see the requests); the run keeps its permit for a short inline wait; the
//! handler is dropped; and only then is its message acked.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::early_ack::{EarlyAck, EarlyAckProgress, EarlyAckResult};
use super::first_claim::{FirstClaim, FirstClaimResult};
use super::handler::HandlerResult;
use super::suspension::{send_wake, store_suspension, wake_queue};
use super::task_delivery::TaskDelivery;
use crate::approval::{ApprovalId, ApprovalRequest};
use crate::backend::{ClaimResult, Recorded, SuspendRequest, SuspendResult};
use crate::context::Context;
use crate::error::Error;
use crate::failpoints;
use crate::keyed_notify::KeyedWatch;
use crate::lifecycle::suspension::RECHECK;
use crate::protocol::{Document, SuspendHeader, SuspendKind};

const MAX_WAKE_DELAY: Duration = Duration::from_millis(RECHECK.unsigned_abs());
/// The error of waits in tasks that a suspended handler has spawned.
const SUSPENDED: &str = "the task was suspended: waits in tasks that it has spawned end";

/// How a run ended.
pub(super) enum RunEnd {
    /// The handler returned.
    Returned(HandlerResult),
    /// The task waits for decisions, and holds no permit.
    Suspended {
        /// Proves that the suspension is stored, or that the task continues by another message.
        recorded: Recorded,
        /// The requests that it waits for.
        requests: Vec<ApprovalId>,
    },
    /// Another worker has the claim. This message is checked again later, because that worker may die
    /// too.
    ClaimedElsewhere,
    /// Like [`RunEnd::ClaimedElsewhere`], for a run that was suspended before: the messages of its
    /// suspension continue the task.
    Superseded,
    /// The task cannot be suspended.
    Refused(Error),
    /// Another run, which claimed the task during the inline wait of this one, has ended it.
    AlreadyEnded(Document),
    /// Another task is suspended under its id; the message is dead-lettered for this reason.
    Occupied(String),
}

/// What a run does after an attempt to suspend it.
enum Next {
    Continue,
    End(RunEnd),
}

/// One run that may be suspended.
pub(super) struct SuspendableRun<'r> {
    pub(super) task: &'r mut TaskDelivery,
    pub(super) context: &'r Context,
    /// How long the run may keep its message; `None`: to its end.
    pub(super) early_ack_after: Option<Duration>,
}

impl SuspendableRun<'_> {
    /// Polls the handler to its end, and suspends it whenever it waits for a decision and none of its
    /// steps or protected sections runs.
    pub(super) async fn run(mut self, handler: &mut BoxFuture<'_, HandlerResult>) -> RunEnd {
        self.context.run().pending.resolve(std::mem::take(&mut self.task.claim.outcomes));
        let mut early_ack = EarlyAckProgress::new(self.early_ack_after);
        loop {
            tokio::select! {
                biased;
                result = &mut *handler => {
                    if early_ack.is_started()
                        && let Some(prepared) = early_ack.change().await
                        && let Err(end) = self.ack_early(&prepared)
                    {
                        return end;
                    }
                    return RunEnd::Returned(result);
                }
                () = self.context.run().wants_to_suspend(), if !early_ack.is_started() => {}
                () = self.task.claim.lost() => {
                    return if self.task.claim.is_of_message() {
                        self.claimed_elsewhere()
                    } else {
                        RunEnd::Superseded
                    };
                }
                change = early_ack.change() => {
                    early_ack = match change.map(|prepared| self.ack_early(&prepared)) {
                        None => EarlyAckProgress::Started(self.early_ack().prepare().boxed()),
                        Some(Ok(())) => EarlyAckProgress::Idle,
                        Some(Err(end)) => return end,
                    };
                    continue;
                }
            }
            // Boxed, to keep the future small for a run that is never suspended.
            if let Err(end) = Box::pin(self.claim_first()).await {
                return end;
            }
            if let Next::End(end) = Box::pin(self.suspend(handler)).await {
                return end;
            }
        }
    }

    fn early_ack(&mut self) -> EarlyAck {
        let first_claim = (!self.task.claim.has_record()).then(|| self.first_claim());
        self.task.claim.set_recording();
        EarlyAck {
            state: Arc::clone(&self.task.state),
            queue: self.task.queue.clone(),
            envelope: Arc::clone(&self.task.envelope),
            number: self.task.claim.number + 1,
            first_claim,
            holder: self.task.claim.holder(),
        }
    }

    /// Returns the parameters to claim a task that this run does not know to be suspended.
    fn first_claim(&mut self) -> FirstClaim {
        FirstClaim {
            state: Arc::clone(&self.task.state),
            queue: self.task.queue.clone(),
            envelope: Arc::clone(&self.task.envelope),
            received: self.task.first_received(),
            holder: self.task.claim.holder(),
        }
    }

    /// Acks the message if the run continues without it.
    fn ack_early(&mut self, prepared: &EarlyAckResult) -> Result<(), RunEnd> {
        match prepared {
            EarlyAckResult::Granted(number, recorded) => {
                info!(suspension = number, "long run: acking its message early");
                let TaskDelivery { state, delivery, claim, .. } = &mut *self.task;
                claim.set_granted(state, self.context.id(), *number);
                if delivery.ack_early(recorded) { Ok(()) } else { Err(RunEnd::Superseded) }
            }
            EarlyAckResult::Superseded => Err(RunEnd::Superseded),
            EarlyAckResult::Elsewhere => Err(self.claimed_elsewhere()),
            EarlyAckResult::AlreadyEnded(document) => {
                Err(RunEnd::AlreadyEnded((**document).clone()))
            }
            EarlyAckResult::Occupied(reason) => Err(RunEnd::Occupied(reason.clone())),
        }
    }

    /// Marks the message as one that may have run, so the next worker that receives it reads the store
    /// first.
    fn claimed_elsewhere(&mut self) -> RunEnd {
        self.task.delivery.redelivered = true;
        RunEnd::ClaimedElsewhere
    }

    /// Claims the task if the run has no claim yet: the wake message of its first suspension may arrive
    /// before the suspension is stored.
    async fn claim_first(&mut self) -> Result<(), RunEnd> {
        if self.task.claim.has_record() {
            return Ok(());
        }
        let pending = &self.context.run().pending;
        match self.first_claim().claim().await {
            FirstClaimResult::Claimed(number, lease) => {
                self.task.claim.set_first(number, lease);
                failpoints::point("suspension begun");
                Ok(())
            }
            FirstClaimResult::Over(recorded) => {
                debug!("another message continues the task: this run ends");
                Err(self.end_suspended(recorded))
            }
            FirstClaimResult::Elsewhere => {
                pending.close(SUSPENDED);
                Err(self.claimed_elsewhere())
            }
            FirstClaimResult::AlreadyEnded(document) => {
                pending.close(SUSPENDED);
                self.task.claim.set_recording();
                Err(RunEnd::AlreadyEnded(*document))
            }
            FirstClaimResult::Occupied(reason) => {
                pending.close(SUSPENDED);
                Err(RunEnd::Occupied(reason))
            }
        }
    }

    /// Suspends the run, unless its requests are decided by now.
    async fn suspend(&mut self, handler: &mut BoxFuture<'_, HandlerResult>) -> Next {
        let requests = self.context.run().pending.requests();
        let ids = requests.iter().map(|request| request.id.clone()).collect();
        // Watches the decisions before the requests can be decided.
        let decided = self.task.state.backends.store.watch_decisions(ids);
        match self.record_suspension(&requests).await {
            Ok(SuspendResult::Ready(outcomes)) => {
                let TaskDelivery { state, claim, .. } = &mut *self.task;
                let number = claim.number + 1;
                claim.set_granted(state, self.context.id(), number);
                self.context.run().pending.resolve(outcomes);
                Next::Continue
            }
            Ok(SuspendResult::Waiting(recorded, _)) => {
                self.task.claim.number += 1;
                self.task.claim.drop_lease();
                self.inline_wait(handler, &requests, decided, recorded).await
            }
            Ok(SuspendResult::Behind(recorded)) => {
                debug!("another message continues the task: this run ends");
                Next::End(self.end_suspended(recorded))
            }
            Err(error) => Next::End(RunEnd::Refused(error)),
        }
    }

    /// Sends the wake message, then stores the suspension.
    async fn record_suspension(
        &mut self,
        requests: &[ApprovalRequest],
    ) -> Result<SuspendResult, Error> {
        let TaskDelivery { state, queue, envelope, claim, .. } = &mut *self.task;
        let pending = &self.context.run().pending;
        let number = claim.number + 1;
        let alarm = pending.first_wakeup();
        let deadlines = requests.iter().map(|request| request.expires_in);
        let due = deadlines.chain(alarm).chain([MAX_WAKE_DELAY]).min().unwrap_or_default();
        send_wake(state, wake_queue(queue, due), envelope, number, due).await?;
        failpoints::point("wake confirmed");
        let holder = claim.holder();
        let request = || SuspendRequest {
            id: envelope.id.clone(),
            number,
            digest: envelope.digest(),
            holder: holder.clone(),
            lease: state.config.lease,
            message: envelope.encode(),
            queue: queue.name.clone(),
            requests: requests.to_vec(),
            alarm,
            abandoned: pending.abandoned(),
        };
        let result = store_suspension(state, &envelope.id, request).await;
        failpoints::point("suspension stored");
        if let SuspendResult::Waiting(_, sooner) = &result
            && *sooner + Duration::from_secs(1) < due
        {
            // The request existed before: its deadline is nearer than that of a new request.
            send_wake(state, wake_queue(queue, *sooner), envelope, number, *sooner).await?;
        }
        Ok(result)
    }

    /// Keeps the permit for a moment, so that a decision in that time is processed at once.
    async fn inline_wait(
        &mut self,
        handler: &mut BoxFuture<'_, HandlerResult>,
        requests: &[ApprovalRequest],
        mut decided: KeyedWatch<ApprovalId>,
        recorded: Recorded,
    ) -> Next {
        let run = self.context.run();
        let (number, inline_wait) = (self.task.claim.number, self.task.state.config.hold);
        let wait = async {
            sleep(inline_wait).await;
            run.idle().await;
        };
        let only_sleeps = requests.is_empty();
        if (only_sleeps || inline_wait.is_zero()) && run.critical_sections() == 0 {
            info!(suspension = number, requests = requests.len(), "suspended");
            return Next::End(self.end_suspended(recorded));
        }
        tokio::select! {
            biased;
            result = &mut *handler => return Next::End(RunEnd::Returned(result)),
            () = decided.changed() => {}
            () = wait => {
                if run.pending.requests() == requests {
                    info!(suspension = number, requests = requests.len(), "suspended");
                    return Next::End(self.end_suspended(recorded));
                }
                return Next::Continue;
            }
        }
        self.reacquire(recorded).await
    }

    /// Continues this run after a decision during the inline wait, unless another run has claimed the
    /// task.
    async fn reacquire(&mut self, recorded: Recorded) -> Next {
        let TaskDelivery { state, envelope, claim, .. } = &mut *self.task;
        let pending = &self.context.run().pending;
        let id = self.context.id();
        let header = SuspendHeader { kind: SuspendKind::Resume, number: claim.number };
        let (holder, lease, digest) = (claim.holder(), state.config.lease, envelope.digest());
        let store = &state.backends.store;
        match store.claim_suspended(id, header, Some(&digest), &holder, lease).await {
            Ok(ClaimResult::Claimed { number, result, outcomes, .. }) => {
                failpoints::point("slot reacquired");
                claim.set_granted(state, id, number);
                if let Some(document) = result {
                    pending.close(SUSPENDED);
                    return Next::End(RunEnd::AlreadyEnded(*document));
                }
                pending.resolve(outcomes);
                Next::Continue
            }
            Ok(_) => Next::End(self.end_suspended(recorded)),
            Err(error) => {
                // The messages of the suspension continue the task, as if this run had not waited.
                warn!("cannot claim the task after its inline wait: {error}");
                Next::End(self.end_suspended(recorded))
            }
        }
    }

    fn end_suspended(&mut self, recorded: Recorded) -> RunEnd {
        let pending = &self.context.run().pending;
        let requests = pending.requests().into_iter().map(|request| request.id).collect();
        pending.close(SUSPENDED);
        RunEnd::Suspended { recorded, requests }
    }
}
