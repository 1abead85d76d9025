//! The consumer of one queue: receives messages, and starts the task of each as soon as a permit is free.
//!
//! The broker requeues an unsettled message after its consumer timeout, which counts from the delivery.
//! The consumer therefore does not keep a message that cannot start in time: it pauses, moves its
//! unstarted messages back to the queue by confirmed copies (a requeue would count as a delivery), and
//! consumes again, with a smaller prefetch, once a permit is free and the store answers.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, OptionFuture};
use futures_util::{FutureExt, StreamExt, stream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::concurrency_limit::{ConcurrencyLimit, Permit};
use super::copies::is_near_delivery_limit;
use super::message_delivery::MessageDelivery;
use super::process::process_delivery;
use super::state::WorkerState;
use crate::backend::{Deliveries, Delivery, Queue};

/// Consumption pauses when the store is unreachable for longer than this.
const STORE_TIMEOUT: Duration = Duration::from_secs(5);
/// The number of copies that are confirmed concurrently when a pause moves messages back.
const COPIES_AT_ONCE: usize = 64;

/// The messages of one queue, or of its suspended tasks, and the permits that they run under.
pub(super) struct Consumer {
    /// The queue whose tasks it runs.
    pub(super) queue: Queue,
    /// The queue that it consumes: the same one, or that of its suspended tasks.
    pub(super) source: Queue,
    /// The queue's own concurrency limit.
    pub(super) limit: Option<ConcurrencyLimit>,
    /// Whether the broker delivers. A pause does not change it: a busy worker is healthy.
    pub(super) consuming: watch::Sender<bool>,
}

/// Why the consumer stopped receiving messages.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// The broker client was closed.
    Closed,
    /// The oldest unstarted message cannot start before it has to be settled.
    Overdue,
    /// The store has been unreachable for longer than [`STORE_TIMEOUT`].
    StoreUnreachable,
    /// A reduced prefetch has sufficed for a while.
    Idle,
}

/// Resolves to a permit once the store also answers, or to `None` if the store does not answer.
type PermitFuture = BoxFuture<'static, Option<Permit>>;

impl Consumer {
    /// Receives messages until it is stopped. While the store does not answer, it receives none, because
    /// their results could not be stored. Returns the number of messages that were requeued unstarted.
    ///
    /// A permit is acquired only for a message that has arrived, so an empty queue holds none.
    pub(super) async fn run(self, state: Arc<WorkerState>, stop: CancellationToken) -> usize {
        let mut unstarted = VecDeque::new();
        let mut deliveries = None;
        let ended =
            stop.run_until_cancelled(self.consume(&state, &mut unstarted, &mut deliveries)).await;
        if ended.is_none() {
            let stopping = async {
                if let Some(deliveries) = deliveries {
                    unstarted.extend(deliveries.stop().await);
                }
            };
            state.end_waits.run_until_cancelled(stopping).await;
        }
        unstarted.retain(|delivery| !delivery.is_stale());
        let returned = unstarted.len();
        let requeueing = stream::iter(unstarted).for_each_concurrent(COPIES_AT_ONCE, |delivery| {
            self.message(&state, delivery).requeue_unstarted(&self.source)
        });
        requeueing.await;
        info!(returned, "stopped consuming {}", self.source.name);
        returned
    }

    /// Consumes, with pauses, until the broker is closed. If the future is dropped, the unsettled
    /// messages are in `unstarted` and `deliveries`.
    async fn consume(
        &self,
        state: &Arc<WorkerState>,
        unstarted: &mut VecDeque<Delivery>,
        current: &mut Option<Deliveries>,
    ) {
        state.revoked.loaded().await;
        let mut prefetch = state.prefetch;
        loop {
            state.backends.store.connected().await;
            let deliveries = current.insert(state.backends.broker.consume(&self.source, prefetch));
            let ended = self.receive(state, unstarted, deliveries, prefetch < state.prefetch).await;
            prefetch = match ended {
                Ended::Closed => return,
                Ended::Idle => prefetch.saturating_mul(2).min(state.prefetch),
                Ended::Overdue => (prefetch / 2).max(1),
                Ended::StoreUnreachable => prefetch,
            };
            if let Some(deliveries) = current.take() {
                unstarted.extend(deliveries.stop().await);
            }
            self.move_back(state, unstarted, ended).await;
            drop(self.permit(state).await);
        }
    }

    /// Receives messages and starts their tasks.
    async fn receive(
        &self,
        state: &Arc<WorkerState>,
        unstarted: &mut VecDeque<Delivery>,
        deliveries: &mut Deliveries,
        is_reduced: bool,
    ) -> Ended {
        let (begun, max_wait) = (Instant::now(), state.max_unsettled / 2);
        let mut consuming = deliveries.consuming();
        let mut waiting: OptionFuture<PermitFuture> = None.into();
        let mut is_waiting = false;
        let mut timer = pin!(sleep(max_wait));
        loop {
            while unstarted.front().is_some_and(Delivery::is_stale) {
                unstarted.pop_front();
            }
            if !unstarted.is_empty() && !is_waiting {
                match self.permit_now(state) {
                    Some(permit) => {
                        self.start(state, unstarted.pop_front(), permit);
                        continue;
                    }
                    None => (waiting, is_waiting) = (Some(self.permit(state)).into(), true),
                }
            }
            tokio::select! {
                biased;
                delivery = deliveries.next() => match delivery {
                    None => return Ended::Closed,
                    Some(delivery) if is_near_delivery_limit(&self.source, &delivery) => self.replace_worn(state, delivery),
                    Some(delivery) => unstarted.push_back(delivery),
                },
                Ok(()) = consuming.changed() => {
                    let now = *consuming.borrow();
                    self.consuming.send_replace(now);
                }
                Some(permit) = &mut waiting, if is_waiting => {
                    (waiting, is_waiting) = (None.into(), false);
                    let Some(permit) = permit else { return Ended::StoreUnreachable };
                    self.start(state, unstarted.pop_front(), permit);
                }
                () = &mut timer => {
                    let now = Instant::now();
                    let oldest = unstarted.front().map(|delivery| delivery.received + max_wait);
                    if oldest.is_some_and(|due| due <= now) {
                        return Ended::Overdue;
                    }
                    if is_reduced && unstarted.is_empty() && now > begun + max_wait * 2 {
                        return Ended::Idle;
                    }
                    timer.as_mut().reset(oldest.unwrap_or(now + max_wait));
                }
            }
        }
    }

    fn start(&self, state: &Arc<WorkerState>, delivery: Option<Delivery>, permit: Permit) {
        if let Some(delivery) = delivery.filter(|delivery| !delivery.is_stale()) {
            state.tasks.spawn(process_delivery(self.message(state, delivery), permit));
        }
    }

    /// Returns a permit if one is free at this moment and the store answers.
    fn permit_now(&self, state: &WorkerState) -> Option<Permit> {
        if !state.backends.store.is_connected() {
            return None;
        }
        match &self.limit {
            Some(limit) => {
                let own = limit.try_acquire()?;
                Some(state.concurrency_limit.try_acquire()?.with_queue_permit(Some(own)))
            }
            None => state.concurrency_limit.try_acquire(),
        }
    }

    fn permit(&self, state: &Arc<WorkerState>) -> PermitFuture {
        let (state, limit) = (Arc::clone(state), self.limit.clone());
        async move {
            let own = match &limit {
                Some(limit) => Some(limit.acquire().await),
                None => None,
            };
            let permit = state.concurrency_limit.acquire().await.with_queue_permit(own);
            timeout(STORE_TIMEOUT, state.backends.store.connected()).await.ok().map(|()| permit)
        }
        .boxed()
    }

    /// Replaces a message that has been delivered almost as often as its queue allows, before another
    /// crash of a worker makes the broker drop it. Needs no permit.
    fn replace_worn(&self, state: &Arc<WorkerState>, delivery: Delivery) {
        let (message, source) = (self.message(state, delivery), self.source.clone());
        state.tasks.spawn(async move {
            let id = message.id().clone();
            message.replace(&source).await;
            info!(task.id = %id, "delivered many times: replaced by a fresh copy");
        });
    }

    /// Moves all unstarted messages to the end of their queue by copies, which are confirmed first.
    async fn move_back(
        &self,
        state: &Arc<WorkerState>,
        unstarted: &mut VecDeque<Delivery>,
        ended: Ended,
    ) {
        let reason = match ended {
            Ended::Overdue => "no permit was free before the consumer timeout",
            Ended::StoreUnreachable => "the store does not answer",
            Ended::Closed | Ended::Idle => "the prefetch changes",
        };
        if !unstarted.is_empty() {
            warn!(
                messages = unstarted.len(),
                "pausing the consumer of {}: {reason}", self.source.name
            );
        }
        let moving = stream::iter(unstarted.drain(..))
            .for_each_concurrent(COPIES_AT_ONCE, |delivery| {
                self.message(state, delivery).replace(&self.source)
            });
        moving.await;
    }

    fn message(&self, state: &Arc<WorkerState>, delivery: Delivery) -> MessageDelivery {
        MessageDelivery { state: Arc::clone(state), queue: self.queue.clone(), delivery }
    }
}
