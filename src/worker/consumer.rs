//! One queue's consumer: takes messages, and starts the task of each as soon as a permit is free.
//!
//! The broker takes an unsettled message back after its consumer timeout, which counts from the
//! delivery. A message that cannot start in time is therefore not held: the consumer pauses, moves
//! what it holds back to the queue by confirmed copies (a return would count as a delivery), and
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

use super::gate::{Gate, Slot};
use super::{Crew, copies, process_delivery};
use crate::backend::{Deliveries, Delivery, Queue};

/// A store that is away longer than this pauses consumption.
const STORE_GRACE: Duration = Duration::from_secs(5);
/// Copies that are confirmed at a time when a pause moves messages back.
const COPIES_AT_ONCE: usize = 64;

/// The messages of one queue, or of its suspended tasks, and the permits that they run under.
pub(super) struct Consumer {
    /// Whose tasks they are.
    pub(super) queue: Queue,
    /// Where the messages come from.
    pub(super) source: Queue,
    /// The queue's own concurrency limit.
    pub(super) limit: Option<Gate>,
    /// Whether the broker delivers. A pause does not change it: a busy worker is healthy.
    pub(super) consuming: watch::Sender<bool>,
}

/// Why no more messages are taken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// The broker was closed.
    Closed,
    /// The oldest held message cannot start before it has to be settled.
    Overdue,
    /// The store has been away for longer than [`STORE_GRACE`].
    StoreAway,
    /// A reduced prefetch has sufficed for a while.
    Idle,
}

/// A permit, once the store answers too; `None`: the store does not.
type Permit = BoxFuture<'static, Option<Slot>>;

impl Consumer {
    /// Takes messages until it is stopped. A worker whose store does not answer takes none: their
    /// results could not be kept. Returns how many were given back without having started.
    ///
    /// A permit is acquired for a message that is there: an empty queue holds none.
    pub(super) async fn run(self, crew: Arc<Crew>, stop: CancellationToken) -> usize {
        let mut held = VecDeque::new();
        let mut deliveries = None;
        let ended = stop.run_until_cancelled(self.consume(&crew, &mut held, &mut deliveries)).await;
        if ended.is_none() {
            let stopping = async {
                if let Some(deliveries) = deliveries {
                    held.extend(deliveries.stop().await);
                }
            };
            crew.give_up.run_until_cancelled(stopping).await;
        }
        held.retain(|delivery| !delivery.is_stale());
        let returned = held.len();
        let returning = stream::iter(held)
            .for_each_concurrent(COPIES_AT_ONCE, |it| copies::give_back(&crew, &self.source, it));
        returning.await;
        info!(returned, "stopped consuming {}", self.source.name);
        returned
    }

    /// Consumes, with pauses, until the broker is closed. What it holds when it is dropped is in
    /// `held` and `deliveries`.
    async fn consume(
        &self,
        crew: &Arc<Crew>,
        held: &mut VecDeque<Delivery>,
        current: &mut Option<Deliveries>,
    ) {
        crew.revoked.loaded().await;
        let mut prefetch = crew.prefetch;
        loop {
            crew.backends.store.connected().await;
            let deliveries = current.insert(crew.backends.broker.consume(&self.source, prefetch));
            let ended = self.take(crew, held, deliveries, prefetch < crew.prefetch).await;
            prefetch = match ended {
                Ended::Closed => return,
                Ended::Idle => prefetch.saturating_mul(2).min(crew.prefetch),
                Ended::Overdue => (prefetch / 2).max(1),
                Ended::StoreAway => prefetch,
            };
            if let Some(deliveries) = current.take() {
                held.extend(deliveries.stop().await);
            }
            self.move_back(crew, held, ended).await;
            drop(self.permit(crew).await);
        }
    }

    /// Takes messages and starts their tasks.
    async fn take(
        &self,
        crew: &Arc<Crew>,
        held: &mut VecDeque<Delivery>,
        deliveries: &mut Deliveries,
        is_reduced: bool,
    ) -> Ended {
        let (begun, longest_wait) = (Instant::now(), crew.longest_hold / 2);
        let mut consuming = deliveries.consuming();
        let mut waiting: OptionFuture<Permit> = None.into();
        let mut is_waiting = false;
        let mut timer = pin!(sleep(longest_wait));
        loop {
            while held.front().is_some_and(Delivery::is_stale) {
                held.pop_front();
            }
            if !held.is_empty() && !is_waiting {
                match self.permit_now(crew) {
                    Some(permit) => {
                        self.start(crew, held.pop_front(), permit);
                        continue;
                    }
                    None => (waiting, is_waiting) = (Some(self.permit(crew)).into(), true),
                }
            }
            tokio::select! {
                biased;
                delivery = deliveries.next() => match delivery {
                    None => return Ended::Closed,
                    Some(delivery) if copies::is_worn(&self.source, &delivery) => self.renew(crew, delivery),
                    Some(delivery) => held.push_back(delivery),
                },
                Ok(()) = consuming.changed() => {
                    let now = *consuming.borrow();
                    self.consuming.send_replace(now);
                }
                Some(permit) = &mut waiting, if is_waiting => {
                    (waiting, is_waiting) = (None.into(), false);
                    let Some(permit) = permit else { return Ended::StoreAway };
                    self.start(crew, held.pop_front(), permit);
                }
                () = &mut timer => {
                    let now = Instant::now();
                    let oldest = held.front().map(|delivery| delivery.received + longest_wait);
                    if oldest.is_some_and(|due| due <= now) {
                        return Ended::Overdue;
                    }
                    if is_reduced && held.is_empty() && now > begun + longest_wait * 2 {
                        return Ended::Idle;
                    }
                    timer.as_mut().reset(oldest.unwrap_or(now + longest_wait));
                }
            }
        }
    }

    fn start(&self, crew: &Arc<Crew>, delivery: Option<Delivery>, permit: Slot) {
        if let Some(delivery) = delivery.filter(|delivery| !delivery.is_stale()) {
            let run = process_delivery(Arc::clone(crew), self.queue.clone(), delivery, permit);
            crew.tasks.spawn(run);
        }
    }

    /// A permit that is free at this moment, while the store answers.
    fn permit_now(&self, crew: &Crew) -> Option<Slot> {
        if !crew.backends.store.is_connected() {
            return None;
        }
        match &self.limit {
            Some(limit) => {
                let own = limit.try_acquire()?;
                Some(crew.gate.try_acquire()?.within(Some(own)))
            }
            None => crew.gate.try_acquire(),
        }
    }

    fn permit(&self, crew: &Arc<Crew>) -> Permit {
        let (crew, limit) = (Arc::clone(crew), self.limit.clone());
        async move {
            let own = match &limit {
                Some(limit) => Some(limit.acquire().await),
                None => None,
            };
            let permit = crew.gate.acquire().await.within(own);
            timeout(STORE_GRACE, crew.backends.store.connected()).await.ok().map(|()| permit)
        }
        .boxed()
    }

    /// Replaces a message that has been delivered almost as often as its queue allows, before a
    /// further crash of a worker lets the broker drop it. It needs no permit for that.
    fn renew(&self, crew: &Arc<Crew>, delivery: Delivery) {
        let (queue, source) = (self.queue.clone(), self.source.clone());
        let worker = Arc::clone(crew);
        crew.tasks.spawn(async move {
            let id = delivery.id().clone();
            copies::replace(&worker, &queue, &source, delivery).await;
            info!(task.id = %id, "delivered many times: replaced by a fresh copy");
        });
    }

    /// Puts everything that is held at the end of its queue, by copies that are confirmed first.
    async fn move_back(&self, crew: &Crew, held: &mut VecDeque<Delivery>, why: Ended) {
        let why = match why {
            Ended::Overdue => "no permit was free before the consumer timeout",
            Ended::StoreAway => "the store does not answer",
            Ended::Closed | Ended::Idle => "the prefetch changes",
        };
        if !held.is_empty() {
            warn!(messages = held.len(), "pausing the consumer of {}: {why}", self.source.name);
        }
        let moving = stream::iter(held.drain(..)).for_each_concurrent(COPIES_AT_ONCE, |it| async {
            copies::replace(crew, &self.queue, &self.source, it).await;
        });
        moving.await;
    }
}
